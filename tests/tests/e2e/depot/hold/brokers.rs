//! Brokers that forget, lose, or have little room.

use std::collections::BTreeSet;

use limpet_tests::agent::Home;
use limpet_tests::{Agent, Broker, Client, Depot, Message, Package, Sieve, program};
use serde_json::Value;

use super::{LETTERS, Stored, Stream, asked, assert_clean, at, config, running, serving, until, until_fetched, whole};
use crate::depot::{SHORT, event_of};
use crate::swap::Flow;
use crate::{Bench, assert_says, uplink};

/// The broker loses everything.
fn forget_everything(bench: &mut Bench) {
    bench.broker.restart();
    listen_anew(bench);
}

/// Listens to a broker that was restarted, and waits until the agent does too.
fn listen_anew(bench: &mut Bench) {
    bench.client = Client::connect(&bench.broker);
    bench.client.subscribe(&["limpet/1/gw/#"]);
    bench.broker.wait_subscribed("plant/+/level");
}

/// That no event so far tells of more than a broker that was away and lacks something, and a version that serves.
#[track_caller]
fn assert_unharmed(client: &mut Client, version: &str) {
    let events = client.came_on(&uplink("event"));
    let harmless = |event: &Value| match event["kind"].as_str() {
        Some("link-down" | "link-up" | "missing-chunk" | "trial-passed") => true,
        // As it was before; a process that starts says so.
        Some("model-activated") => event["version"] == version,
        _ => false,
    };
    let harmful: Vec<_> = events.iter().map(Message::json).filter(|event| !harmless(event)).collect();
    assert!(harmful.is_empty(), "{harmful:?}");
}

/// Waits for the event that something of the depot does not come.
fn missing(client: &mut Client, what: &str) {
    let topic = uplink("event");
    let about = |m: &Message| {
        m.topic == topic
            && m.json()["kind"] == "missing-chunk"
            && m.json()["name"].as_str().is_some_and(|n| n.starts_with(what))
    };
    let missing = client.wait_for(&format!("the event that {what} is missing"), about).json();
    assert_says(&missing["message"], &[what, "limpet-lab depot repair"]);
}

#[test]
fn a_broker_that_forgets_everything_half_way_takes_nothing_away_and_a_repair_ends_the_delivery() {
    let broker = Broker::start();
    let depot = Depot::on(&broker);
    let config = whole(&broker.url(), &depot, "128KiB");
    let mut bench = serving(broker, &depot, Home::empty(), &config);
    let newer = Package::laden("2.0.0", 0.01, LETTERS);
    depot.publish(&newer);
    until_fetched(&mut bench.client, "2.0.0", 0.3);
    forget_everything(&mut bench);
    let stored = Stored::of(bench.agent.home(), "2.0.0").expect("it is being fetched");
    assert!(!stored.here.is_empty() && !stored.missing().is_empty());
    missing(&mut bench.client, "chunk/");
    let record = bench.agent.home().record("loudness").expect("it serves");
    assert_eq!(record["active"]["version"], "1.0.0");
    let mut flow = Flow::start(&mut bench, &[("1.0.0", 0.0), ("2.0.0", 0.01)]);
    flow.until(&mut bench, "1.0.0", 20);
    let now = Stored::of(bench.agent.home(), "2.0.0").expect("nothing was removed");
    assert!(now.here.is_superset(&stored.here), "nothing was removed");
    assert_unharmed(&mut bench.client, "1.0.0");
    assert_eq!(depot.run(&["verify"]).code, Some(1));
    let packages = [Package::loudness(), newer];
    let [older, newer] = [program::text_of(packages[0].path()), program::text_of(packages[1].path())];
    depot.run(&["repair", older, newer]).expect_code(0);
    flow.until(&mut bench, "2.0.0", 20);
    event_of(&mut bench.client, "model-activated", "2.0.0");
    let again: Vec<String> = asked(&bench.broker, 0).into_iter().filter(|chunk| stored.here.contains(chunk)).collect();
    assert!(again.is_empty(), "verified before, and fetched again: {again:?}");
    depot.run(&["verify"]).expect_code(0);
    assert_clean(bench.agent.home(), false);
}

#[test]
fn a_broker_that_comes_back_empty_takes_nothing_from_a_gateway_that_runs_or_starts() {
    let (depot, mut bench) = running(Home::empty(), "64MiB");
    let config = whole(&bench.broker.url(), &depot, "64MiB");
    depot.publish(&Package::loudness_of("2.0.0", 0.01));
    let mut flow = Flow::start(&mut bench, &[("1.0.0", 0.0), ("2.0.0", 0.01)]);
    flow.until(&mut bench, "2.0.0", 20);
    let home = |bench: &Bench| bench.agent.home().record("loudness").expect("it serves");
    // Until its trial is over.
    while !home(&bench)["trial"].is_null() {
        flow.until(&mut bench, "2.0.0", 20);
    }
    event_of(&mut bench.client, "trial-passed", "2.0.0");
    let (record, chunks) = (home(&bench), chunks(&bench));
    assert_eq!(record["previous"][0]["version"], "1.0.0");
    for (stream, starts) in [("runs", false), ("starts", true)] {
        if starts {
            let home = bench.agent.kill();
            bench.broker.restart();
            bench.agent = Agent::start_in(home, &config);
            listen_anew(&mut bench);
        } else {
            forget_everything(&mut bench);
        }
        missing(&mut bench.client, "meta/timestamp");
        Stream::named("knock").knock(&mut bench.client);
        assert_eq!(Stream::named(stream).heard(&mut bench.client, 20), BTreeSet::from(["2.0.0".to_owned()]));
        assert_eq!((home(&bench), self::chunks(&bench)), (record.clone(), chunks.clone()));
        assert_unharmed(&mut bench.client, "2.0.0");
    }
    assert_clean(bench.agent.home(), false);
}

fn chunks(bench: &Bench) -> BTreeSet<std::path::PathBuf> {
    bench.agent.home().chunks().into_iter().collect()
}

#[test]
fn a_broker_that_forgets_everything_while_it_is_published_to_has_it_all_after_a_repair() {
    let mut broker = Broker::start();
    let sieve = Sieve::slow(broker.port(), 128 << 10);
    let depot = Depot::through(&sieve.url());
    let package = Package::laden("2.0.0", 0.01, LETTERS);
    let publishing = depot.start_publishing(&package);
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/depot/chunk/+"]);
    (0..8).for_each(|_| _ = client.wait_for("a chunk", |m: &Message| m.topic.contains("/chunk/")));
    broker.restart();
    sieve.widen();
    // What was not acknowledged is sent again; of what was, nobody has said that it is gone.
    publishing.end().expect_code(0);
    let lacking = depot.run(&["verify"]).expect_code(1);
    assert!(lacking.stderr.contains("`limpet-lab depot repair` with the packages of loudness 2.0.0"), "{lacking:?}");
    depot.run(&["repair", program::text_of(package.path())]).expect_code(0);
    depot.run(&["verify"]).expect_code(0);
    let text = config(&depot, "64MiB", SHORT);
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/gw/#"]);
    let agent = Agent::start_in(Home::empty(), &format!("{}{text}", at(&broker.url())));
    agent.wait_for_model(&mut client, "loudness", "active");
    assert_clean(agent.home(), false);
}

#[test]
fn a_broker_that_loses_every_tenth_message_delivers_all_the_same() {
    let broker = Broker::start();
    let depot = Depot::on(&broker);
    let sieve = Sieve::losing(broker.port(), 10);
    // What is lost may be the news itself: it is asked for every `refresh`.
    let config = whole(&sieve.url(), &depot, "64MiB").replace("[depot]\n", "[depot]\nrefresh = \"10s\"\n");
    assert!(config.contains("refresh"));
    let mut bench = serving(broker, &depot, Home::empty(), &config);
    depot.publish(&Package::laden("2.0.0", 0.01, LETTERS));
    event_of(&mut bench.client, "model-activated", "2.0.0");
    assert!(sieve.lost() >= 3, "{} messages were lost", sieve.lost());
    assert_clean(bench.agent.home(), false);
}

#[test]
fn rumqttd_is_a_repository() {
    publishes_activates_and_replaces(Broker::rumqttd());
}

#[test]
fn mosquitto_with_its_default_queue_is_a_repository() {
    publishes_activates_and_replaces(Broker::start_with("allow_anonymous true\n", &[]));
}

#[test]
fn a_broker_with_a_queue_of_twenty_messages_is_a_repository() {
    let lines = "allow_anonymous true\nmax_queued_messages 20\nmax_inflight_messages 5\n";
    publishes_activates_and_replaces(Broker::start_with(lines, &[]));
}

fn publishes_activates_and_replaces(broker: Broker) {
    let depot = Depot::on(&broker);
    let config = whole(&broker.url(), &depot, "64MiB");
    let mut bench = serving(broker, &depot, Home::empty(), &config);
    // Not every broker says who has subscribed.
    Stream::named("knock").knock(&mut bench.client);
    let mut stream = Stream::named("a");
    assert_eq!(stream.heard(&mut bench.client, 20), BTreeSet::from(["1.0.0".to_owned()]));
    let newer = Package::laden("2.0.0", 0.01, LETTERS);
    let publishing = depot.start_publishing(&newer);
    // Every window has a result all the while.
    until("version 2.0.0", || stream.heard(&mut bench.client, 5).contains("2.0.0").then_some(()));
    publishing.end().expect_code(0);
    event_of(&mut bench.client, "model-activated", "2.0.0");
    depot.run(&["verify"]).expect_code(0);
    assert_clean(bench.agent.home(), false);
}

#[test]
fn a_broker_that_takes_no_message_of_such_a_size_gives_the_publisher_a_reason() {
    let broker = Broker::start_with("allow_anonymous true\nmessage_size_limit 8000\n", &[]);
    let depot = Depot::on(&broker);
    let package = Package::laden("2.0.0", 0.01, LETTERS);
    let refused = depot.start_publishing(&package).end().expect_code(1);
    refused.expect_complaint(&["chunk/", " bytes was on its way", "message_size_limit"]);
}
