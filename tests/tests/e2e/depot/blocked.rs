//! What does not come keeps nothing else from coming, and nothing from going.

use super::*;
use crate::feed;

/// Random letters in a package that takes most of a small depot.
const LETTERS: usize = 900_000;

/// An agent that was away while a version was published of which the broker lost so many chunks; it misses them now.
fn missing(depot: &Depot, mut bench: Bench, newer: &Package, count: usize, config: &str) -> Bench {
    let (_, home, _) = bench.agent.stop();
    lose(&mut bench.client, depot, newer, count);
    bench.agent = Agent::start_in(home, config);
    event(&mut bench.client, "missing-chunk");
    bench
}

#[test]
fn a_withdrawn_version_gives_way_before_the_next_one_has_come() {
    let (depot, mut bench) = delivered(SHORT);
    depot.publish(&Package::loudness_of("2.0.0", 0.01));
    event_of(&mut bench.client, "model-activated", "2.0.0");
    until_event(&mut bench, 1, "trial-passed", "2.0.0");
    let newer = Package::loudness_of("3.0.0", 0.02);
    let text = format!("{}{}", local(&bench.broker), config(&depot, SHORT));
    let mut bench = missing(&depot, bench, &newer, usize::MAX, &text);
    depot.run(&["withdraw", "loudness", "2.0.0"]).expect_code(0);
    let said = event_of(&mut bench.client, "model-withdrawn", "2.0.0");
    assert_says(&said["message"], &["1.0.0 serves again"]);
    bench.agent.wait_for_status("the version before", |status| serves(status, "1.0.0"));
    depot.run(&["repair", program::text_of(newer.path())]).expect_code(0);
    event_of(&mut bench.client, "model-activated", "3.0.0");
}

#[test]
fn a_model_of_which_a_chunk_does_not_come_lets_the_others_go_first() {
    let broker = Broker::start();
    let depot = Depot::on(&broker);
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/gw/#"]);
    // The first in the order of names.
    let scores = Package::scores_named("absent");
    lose(&mut client, &depot, &scores, 1);
    depot.publish(&Package::loudness());
    let levels = feed("levels", &scores, "", "").replace(&scores.display().to_string(), "absent@*");
    let text = format!("{}{}{levels}", local(&broker), config(&depot, ""));
    let agent = Agent::start_in(Home::proved(), &text);
    let missing = event(&mut client, "missing-chunk");
    let topic = missing["name"].as_str().expect("it is text").to_owned();
    // A minute without anything new.
    let about = |m: &Message| m.topic == uplink("event") && m.json()["model"] == "loudness";
    let staged = client.try_wait_for(LIMIT + Duration::from_secs(60), about).expect("it comes").json();
    assert_eq!(staged["kind"], "model-staged");
    let refused = event(&mut client, "depot-refused");
    assert_says(&refused["message"], &["absent", "is not delivered yet", "nothing came for 60 s", &topic]);
    agent.wait_for_model(&mut client, "loudness", "active");
    depot.run(&["repair", program::text_of(scores.path())]).expect_code(0);
    depot.run(&["refresh"]).expect_code(0);
    agent.wait_for_model(&mut client, "absent", "active");
}

#[test]
fn a_version_that_never_came_makes_room_for_the_next_one() {
    let (depot, mut bench) = delivered(SHORT);
    let text = format!("{}{}", local(&bench.broker), config(&depot, SHORT));
    let text = text.replace("[depot]\n", "[depot]\ndisk = \"1MiB\"\n");
    let (_, home, _) = bench.agent.stop();
    bench.agent = Agent::start_in(home, &text);
    let mut bench = missing(&depot, bench, &Package::laden("2.0.0", 0.01, LETTERS), 1, &text);
    depot.publish(&Package::laden("3.0.0", 0.02, LETTERS));
    event_of(&mut bench.client, "model-activated", "3.0.0");
}

#[test]
fn while_metadata_does_not_come_what_was_trusted_before_still_mends_the_store() {
    let (depot, mut bench) = delivered(SHORT);
    bench.client.subscribe(&["limpet/1/depot/meta/+"]);
    let is_snapshot = |m: &Message| m.topic.ends_with(".snapshot");
    while bench.client.try_wait_for(Duration::from_millis(300), is_snapshot).is_some() {}
    let (_, home, _) = bench.agent.stop();
    depot.publish(&Package::loudness_of("2.0.0", 0.01));
    let lost = bench.client.wait_for("the next snapshot", is_snapshot).topic;
    bench.client.publish_with(&lost, true, "");
    bench.agent = Agent::start_in(home, &format!("{}{}", local(&bench.broker), config(&depot, SHORT)));
    let missing = event(&mut bench.client, "missing-chunk");
    assert_says(&missing["message"], &[&lost, "does not come"]);
    let home = bench.agent.home();
    let (chunk, config) = (home.chunks().pop().expect("it has chunks"), home.path().join("limpet.toml"));
    std::fs::remove_file(&chunk).expect("it is there");
    program::run("limpet", &["store", "check", "--repair", "--config", program::text_of(&config)]);
    bench.agent.wait_for_status("the chunk", |_| chunk.exists().then_some(()));
    depot.run(&["repair"]).expect_code(0);
    event_of(&mut bench.client, "model-activated", "2.0.0");
}
