//! Wires that break, a publisher that is stopped, and a pipeline that must not feel a delivery.

use std::time::{Duration, Instant};

use limpet_tests::agent::Home;
use limpet_tests::package::HOP;
use limpet_tests::{Broker, Client, Depot, Message, Package, Proxy, Sieve};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{LETTERS, Stored, Stream, asked, assert_clean, at, config, running, serving, until, until_fetched, whole};
use crate::depot::{SHORT, event_of};
use crate::swap::Flow;
use crate::{named, samples, uplink};

#[test]
fn a_wire_cut_in_the_middle_of_a_fetch_goes_on_where_it_was() {
    let broker = Broker::start();
    let depot = Depot::on(&broker);
    let wire = Proxy::to(broker.port());
    let config = whole(&wire.url(), &depot, "128KiB");
    let mut bench = serving(broker, &depot, Home::empty(), &config);
    bench.broker.wait_subscribed("plant/+/level");
    depot.publish(&Package::laden("2.0.0", 0.01, LETTERS));
    until_fetched(&mut bench.client, "2.0.0", 0.3);
    wire.cut();
    bench.agent.wait_for_log(&["WARN", "local"]);
    let stored = Stored::of(bench.agent.home(), "2.0.0").expect("it is being fetched");
    assert!(!stored.here.is_empty() && !stored.missing().is_empty());
    let mark = bench.broker.mark();
    wire.mend();
    bench.broker.wait_subscribed_after(mark, "plant/+/level");
    let mut flow = Flow::start(&mut bench, &[("1.0.0", 0.0), ("2.0.0", 0.01)]);
    flow.until(&mut bench, "1.0.0", 5);
    event_of(&mut bench.client, "model-activated", "2.0.0");
    flow.until(&mut bench, "2.0.0", 20);
    let mut fetched = asked(&bench.broker, mark);
    fetched.sort();
    assert_eq!(fetched, Vec::from_iter(stored.missing()), "each that was missing once, and nothing else");
    assert_clean(bench.agent.home(), false);
}

#[test]
fn a_trial_that_ends_in_the_middle_of_the_next_fetch_costs_no_chunk() {
    let (depot, mut bench) = running(Home::empty(), "128KiB");
    depot.publish(&Package::loudness_of("2.0.0", 0.01));
    event_of(&mut bench.client, "model-activated", "2.0.0");
    // Without windows its trial goes on.
    depot.publish(&Package::laden("3.0.0", 0.02, LETTERS));
    until_fetched(&mut bench.client, "3.0.0", 0.3);
    let mark = bench.broker.mark();
    let stored = Stored::of(bench.agent.home(), "3.0.0").expect("it is being fetched");
    let mut stream = Stream::named("a");
    while bench.agent.home().record("loudness").is_some_and(|record| !record["trial"].is_null()) {
        stream.heard(&mut bench.client, 10);
    }
    event_of(&mut bench.client, "trial-passed", "2.0.0");
    event_of(&mut bench.client, "model-activated", "3.0.0");
    let again: Vec<String> = asked(&bench.broker, mark).into_iter().filter(|c| stored.here.contains(c)).collect();
    assert!(!stored.missing().is_empty() && again.is_empty(), "verified before, and fetched again: {again:?}");
}

#[test]
fn a_publisher_that_is_interrupted_says_what_was_done_and_repeated_sends_only_what_is_missing() {
    let broker = Broker::start();
    let sieve = Sieve::slow(broker.port(), 128 << 10);
    let depot = Depot::through(&sieve.url());
    let package = Package::laden("2.0.0", 0.01, LETTERS);
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/depot/chunk/+"]);
    let mut publishing = depot.start_publishing(&package);
    (0..8).for_each(|_| _ = client.wait_for("a chunk", |m: &Message| m.topic.contains("/chunk/")));
    publishing.signal(Signal::INT);
    let interrupted = publishing.end().expect_code(130);
    let words =
        ["interrupted; loudness 2.0.0: ", " bytes are done", "The same command again sends only what is missing"];
    interrupted.expect_complaint(&words);
    sieve.widen();
    let mut sent = 8;
    while client.try_wait_for(Duration::from_millis(200), |m| m.topic.contains("/chunk/")).is_some() {
        sent += 1;
    }
    let path = limpet_tests::program::text_of(package.path());
    let repeated = depot.run(&["publish", path, "--channel", "stable", "--json"]).expect_code(0);
    let done: Value = serde_json::from_str(&repeated.stdout).expect("it is JSON");
    let (all, more) = (done["chunks"].as_u64().expect("a number"), done["sent_chunks"].as_u64().expect("a number"));
    // What was on the way without an answer goes out again: eight at most.
    assert!((all - sent..=all - sent + 8).contains(&more), "{sent} were there, {more} of {all} were sent");
    assert!(more < all, "{done}");
    depot.run(&["verify"]).expect_code(0);
}

/// Messages of the stream in the test below, a second.
const LOAD: u32 = 100;

#[test]
fn a_delivery_costs_a_pipeline_with_a_hundred_windows_a_second_no_window_and_no_deadline() {
    let broker = Broker::start();
    let depot = Depot::on(&broker);
    let text = config(&depot, "256KiB", SHORT).replace("deadline = \"30s\"", "deadline = \"1s\"");
    let config = format!("{}{text}", at(&broker.url()));
    let mut bench = serving(broker, &depot, Home::empty(), &config);
    bench.broker.wait_subscribed("plant/+/level");
    assert_eq!(niceness(bench.agent.pid(), "delivery"), Some(19));
    let topic = uplink("result/sound/a");
    let package = Package::laden("2.0.0", 0.01, LETTERS);
    let publishing = depot.start_publishing(&package);
    let from = Instant::now();
    let (mut sent, mut newer) = (0, 0);
    // Until a second of it was the new version's.
    while newer < LOAD {
        let due = from + Duration::from_secs(1) / LOAD * sent;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        bench.client.send("plant/a/level", samples(sent, &[(sent % 30) as f32 / 100.0; HOP]));
        sent += 1;
        let results = bench.client.came_on(&topic).iter().flat_map(Message::json_lines).collect::<Vec<_>>();
        newer += results.iter().filter(|result| result["version"] == "2.0.0").count() as u32;
        assert!(from.elapsed() < limpet_tests::LIMIT, "2.0.0 did not come");
    }
    publishing.end().expect_code(0);
    event_of(&mut bench.client, "model-activated", "2.0.0");
    // The first message completes no window.
    let figures = until("the last window", || {
        let figures = named(&bench.agent.status(), "pipelines", "sound").clone();
        // The last one may have begun and not ended.
        let ended: u64 = figures["outcomes"].as_object()?.values().filter_map(serde_json::Value::as_u64).sum();
        (ended == u64::from(sent - 1)).then_some(figures)
    });
    eprintln!("{sent} windows in {:.1?}: {figures}", from.elapsed());
    let outcomes = figures["outcomes"].as_object().expect("outcomes are a table");
    assert_eq!((&outcomes["result"], &figures["late"]), (&json!(sent - 1), &json!(0)), "{figures}");
    assert!(outcomes.iter().all(|(name, count)| name == "result" || *count == json!(0)), "{outcomes:?}");
}

/// Niceness of a thread of a process, by its name.
fn niceness(pid: u32, name: &str) -> Option<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
    tasks.map_while(Result::ok).find_map(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        let (head, rest) = stat.rsplit_once(") ")?;
        // `ID (NAME) STATE …`; niceness is the 19th field.
        (head.split_once('(')?.1 == name).then(|| rest.split(' ').nth(16)?.parse().ok())?
    })
}
