//! What a version that passed its proof does at the plant, and what becomes of it then.

use std::time::{Duration, Instant};

use limpet_tests::agent::Home;
use limpet_tests::{Agent, Broker, Client, Depot, LIMIT, Message, Package};
use serde_json::Value;

use super::{config, delivered, event_of, pour, table, until_event};
use crate::hang::hang;
use crate::swap::Flow;
use crate::{assert_says, event, feed, local, uplink};

/// A trial that no test is long enough to end well.
const LONG: &str = "trial = { windows = 5000, time = \"1m\", shadow_cpu = 1.0 }\n";

/// Lets a second version loose on windows of these levels, until it is taken back; the first one then serves, the second
/// is never tried again, and a third is.
#[track_caller]
fn taken_back(pipeline: &str, newer: &Package, level: fn(u32) -> f32, words: &[&str]) {
    let (depot, mut bench) = delivered(pipeline);
    depot.publish(newer);
    event_of(&mut bench.client, "model-activated", "2.0.0");
    let (back, _) = pour(&mut bench, 0, level, "rolled-back", "2.0.0");
    assert_says(&back["message"], &["loudness 2.0.0 was taken back", "1.0.0 serves again", "pipeline sound"]);
    assert_says(&back["message"], words);
    let record = bench.agent.home().record("loudness").expect("it serves");
    assert_eq!((&record["active"]["version"], &record["trial"]), (&"1.0.0".into(), &Value::Null));
    let rejected = record["rejected"].as_object().expect("a map").values().next().expect("one was");
    assert_eq!(rejected["version"], "2.0.0");
    depot.publish(&Package::loudness_of("3.0.0", 0.0));
    let (_, versions) = pour(&mut bench, 100_000, level, "model-activated", "3.0.0");
    assert!(versions.iter().any(|version| version == "1.0.0"), "{versions:?}");
}

#[test]
fn a_version_that_disagrees_with_the_one_before_is_taken_back() {
    // It hears loud where the other one hears quiet, from 0.2 to 0.5.
    let newer = Package::loudness_of("2.0.0", 0.3);
    let level = |sequence| (sequence % 30) as f32 / 100.0;
    taken_back(LONG, &newer, level, &["agrees with the other version", "at least 90.0 %"]);
}

#[test]
fn a_version_that_knows_one_class_where_the_one_before_knew_two_is_taken_back() {
    let level = |sequence| {
        let step = (sequence % 10) as f32 / 200.0;
        if sequence % 30 < 20 { 0.3 + step } else { 0.93 + step }
    };
    // The two agree well enough for this pipeline.
    let pipeline = LONG.replace(" }", ", agreement = 0.1 }");
    taken_back(&pipeline, &Package::deaf("2.0.0"), level, &["compared windows \"quiet\"", "tells 2 classes apart"]);
}

#[test]
fn a_version_that_gives_no_answers_is_taken_back() {
    let level = |sequence| (sequence % 30) as f32 / 100.0;
    taken_back(LONG, &Package::undefined("2.0.0"), level, &["windows have no answer"]);
}

#[test]
fn a_version_in_shadow_that_disagrees_is_never_heard_and_rejected() {
    let (depot, mut bench) = delivered("trial = { windows = 500, time = \"1m\", shadow = true, shadow_cpu = 1.0 }\n");
    depot.publish(&Package::loudness_of("2.0.0", 0.3));
    let (rejected, versions) = until_event(&mut bench, 0, "model-rejected", "2.0.0");
    assert_says(
        &rejected["message"],
        &["loudness 2.0.0 is rejected", "1.0.0 goes on", "agrees with the other version"],
    );
    assert!(!versions.is_empty() && versions.iter().all(|version| version == "1.0.0"), "{versions:?}");
    let record = bench.agent.home().record("loudness").expect("it serves");
    assert_eq!((&record["active"]["version"], &record["trial"]), (&"1.0.0".into(), &Value::Null));
}

#[test]
fn a_version_in_shadow_is_promoted_after_its_windows_and_its_time_and_not_before() {
    let soak = Duration::from_secs(2);
    for (windows, time) in [(60, Duration::from_millis(1)), (1, soak)] {
        let time_text = format!("{}ms", time.as_millis());
        let (depot, mut bench) = delivered(&format!(
            "trial = {{ windows = {windows}, time = \"{time_text}\", shadow = true, shadow_cpu = 1.0 }}\n"
        ));
        depot.publish(&Package::loudness_of("2.0.0", 0.01));
        bench.agent.wait_for_model(&mut bench.client, "loudness", "shadow");
        let begun = Instant::now();
        let (passed, versions) = until_event(&mut bench, 0, "shadow-passed", "2.0.0");
        assert!(begun.elapsed() >= time && versions.len() >= windows, "{:?} {versions:?}", begun.elapsed());
        assert!(versions.iter().all(|version| version == "1.0.0"), "{versions:?}");
        assert_says(&passed["message"], &["loudness 2.0.0 passed", "0 errors", "0 misses"]);
        event_of(&mut bench.client, "model-activated", "2.0.0");
    }
}

#[test]
fn a_trial_goes_on_where_it_was_when_the_agent_comes_back() {
    let pipeline = "trial = { windows = 300, time = \"10ms\", shadow_cpu = 1.0 }\n";
    let (depot, mut bench) = delivered(pipeline);
    let mut flow = Flow::start(&mut bench, &[("1.0.0", 0.0), ("2.0.0", 0.01)]);
    depot.publish(&Package::loudness_of("2.0.0", 0.01));
    flow.until(&mut bench, "2.0.0", 150);
    let (_, home, _) = bench.agent.stop();
    let record = home.record("loudness").expect("it serves");
    let (active, trial) = (&record["active"]["version"], &record["trial"]);
    let seen = trial["windows"].as_u64().unwrap_or_else(|| panic!("no trial goes on: {record}"));
    assert!(active == "2.0.0" && (140..300).contains(&seen), "{record}");
    bench.agent = Agent::start_in(home, &format!("{}{}", local(&bench.broker), config(&depot, pipeline)));
    bench.agent.wait_for_log(&["serving", "version=\"2.0.0\""]);
    let (passed, _) = until_event(&mut bench, 0, "trial-passed", "2.0.0");
    assert_says(&passed["message"], &["loudness 2.0.0 passed", "0 errors"]);
    // What ran beside it since the restart is less than a whole trial.
    let text = passed["message"].as_str().expect("an event has a message");
    let ran = text.split_once("ran on ").and_then(|(_, rest)| rest.split(' ').next()?.parse::<u64>().ok());
    assert!(ran.is_some_and(|ran| ran > 0 && ran + seen < 330), "it began again: {text}, and {seen} windows before");
    let record = bench.agent.home().record("loudness").expect("it serves");
    assert_eq!((&record["active"]["version"], &record["trial"]), (&"2.0.0".into(), &Value::Null));
    assert_eq!(record["previous"][0]["version"], "1.0.0");
}

#[test]
fn a_version_that_ends_the_process_twice_is_taken_back_at_the_next_start() {
    // It passes its proof, and takes longer than a session may.
    let slow = Package::slow();
    slow.edit("version = \"1.0.0\"", "version = \"2.0.0\"");
    let broker = Broker::start();
    let depot = Depot::on(&broker);
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/gw/#"]);
    let any = Package::scores();
    let pipeline = feed("slow", &any, "max_streams = 1", "").replace(&any.display(), "slow@*");
    let text = format!("[runtime]\nhang_limit = \"100ms\"\n{}{}{pipeline}", local(&broker), table(&depot));
    let mut agent = Agent::start_in(Home::empty(), &text);
    depot.publish(&Package::scores_named("slow"));
    agent.wait_for_model(&mut client, "slow", "active");
    depot.publish(&slow);
    // Its proof takes many of its runs.
    let activated = |m: &Message| {
        let told = (m.topic == uplink("event")).then(|| m.json());
        told.is_some_and(|told| told["kind"] == "model-activated" && told["version"] == "2.0.0")
    };
    client.try_wait_for(4 * LIMIT, activated).expect("it passes its proof");
    for times in 1..=2 {
        hang(&mut client);
        let (status, home, _) = agent.wait_for_end();
        assert_eq!(status.code(), Some(70), "time {times}");
        let record = home.record("slow").expect("it served");
        assert_eq!((&record["active"]["version"], record["trial"].is_null()), (&"2.0.0".into(), false), "time {times}");
        agent = Agent::start_in(home, &text);
        if times == 1 {
            agent.wait_for_log(&["serving", "version=\"2.0.0\""]);
        }
    }
    let back = event(&mut client, "rolled-back");
    assert_says(&back["message"], &["slow 2.0.0 was taken back, 1.0.0 serves again", "ended the agent 2 times"]);
    let result = client.knock("plant/a/slow", "[0.9, 0.1, 0.1]", &uplink("result/slow/a")).json();
    assert_eq!((&result["version"], &result["label"]), (&"1.0.0".into(), &"low".into()));
    let record = agent.home().record("slow").expect("it serves");
    assert_eq!((&record["active"]["version"], &record["trial"]), (&"1.0.0".into(), &Value::Null));
}
