//! What a version that passed its proof does at the plant, and what becomes of it then.

use std::process::Command;
use std::time::{Duration, Instant};

use limpet_tests::agent::{Home, RING};
use limpet_tests::package::HOP;
use limpet_tests::{Agent, Broker, Client, Depot, LIMIT, Message, Package, program};
use serde_json::Value;

use super::{config, delivered, event_of, pour, table, until_event};
use crate::hang::hang;
use crate::swap::Flow;
use crate::{Bench, assert_says, event, feed, local, named, samples, uplink};

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
fn after_a_restart_no_pipeline_gets_credit_for_what_another_has_seen() {
    let broker = Broker::start();
    let depot = Depot::on(&broker);
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/gw/#"]);
    let (any, newer) = (Package::scores(), Package::scores());
    newer.edit("version = \"1.0.0\"", "version = \"2.0.0\"");
    let trial = "trial = { windows = 200, time = \"10ms\" }\n";
    let feeds = ["one", "two"].map(|name| feed(name, &any, "max_streams = 1", trial));
    let feeds = feeds.concat().replace(&any.display(), "scores@*");
    let text = format!("{}{}{feeds}", local(&broker), table(&depot));
    let mut agent = Agent::start_in(Home::proved(), &text);
    depot.publish(&any);
    agent.wait_for_model(&mut client, "scores", "active");
    depot.publish(&newer);
    event_of(&mut client, "model-activated", "2.0.0");
    let mut windows = |name: &str, windows: u64| {
        let (topic, answer) = (format!("plant/a/{name}"), uplink(&format!("result/{name}/a")));
        // It is not known from when on the agent hears this.
        client.knock(&topic, "[0.9, 0.1, 0.1]", &answer);
        for _ in 1..windows {
            client.publish(&topic, "[0.9, 0.1, 0.1]");
            assert_eq!(client.wait_on(&answer).json()["version"], "2.0.0");
        }
    };
    windows("one", 150);
    let (_, home, _) = agent.stop();
    agent = Agent::start_in(home, &text);
    agent.wait_for_log(&["serving", "version=\"2.0.0\""]);
    windows("two", 60);
    let (_, home, _) = agent.stop();
    let record = home.record("scores").expect("it serves");
    let seen = ["one", "two"].map(|name| record["trials"][name]["windows"].as_u64());
    let [Some(one), Some(two)] = seen else { panic!("the trial is over: {record}") };
    // Any number of them pass between the start and the watch; more than came would be another pipeline's.
    assert!((150..200).contains(&one) && two < 150, "{record}");
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

#[test]
fn with_shadow_a_newer_version_waits_until_the_one_that_serves_was_judged() {
    let pipeline = "trial = { windows = 60, time = \"100ms\", shadow = true, shadow_cpu = 1.0 }\n";
    let (depot, mut bench) = delivered(pipeline);
    depot.publish(&Package::loudness_of("2.0.0", 0.01));
    until_event(&mut bench, 0, "shadow-passed", "2.0.0");
    event_of(&mut bench.client, "model-activated", "2.0.0");
    depot.publish(&Package::loudness_of("3.0.0", 0.02));
    bench.agent.wait_for_log(&["waits for the end of a trial", "version=3.0.0"]);
    let record = bench.agent.home().record("loudness").expect("it serves");
    let (active, on_trial) = (&record["active"], &record["trial"]["package"]);
    assert_eq!((&active["version"], on_trial), (&"2.0.0".into(), &active["package"]), "2.0.0 is still on trial");
    until_event(&mut bench, 100_000, "trial-passed", "2.0.0");
    until_event(&mut bench, 200_000, "shadow-passed", "3.0.0");
    event_of(&mut bench.client, "model-activated", "3.0.0");
}

/// Large versions of a model, and an agent that serves the first of them from a depot, in a budget of so many halves of
/// what one takes.
fn cramped(halves: u64, pipeline: &str) -> (Depot, Bench, [Package; 3]) {
    let packages = ["1.0.0", "2.0.0", "3.0.0"].map(|version| {
        let package = Package::dense("roomy");
        package.edit("version = \"1.0.0\"", &format!("version = \"{version}\""));
        package
    });
    let [one, two, three] = &packages;
    let home = Home::proved_with("roomy", &[(one, ""), (two, ""), (three, "")]);
    let broker = Broker::start();
    let depot = Depot::on(&broker);
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/gw/#"]);
    let any = Package::scores();
    let feed = feed("roomy", &any, "max_streams = 1", pipeline).replace(&any.display(), "roomy@*");
    let text = |bytes: u64| format!("[budget]\nmemory = \"{bytes}B\"\n{}{}{feed}", local(&broker), table(&depot));
    let agent = Agent::start_in(home, &text(1 << 30));
    depot.publish(one);
    agent.wait_for_model(&mut client, "roomy", "active");
    let bytes = named(&agent.status(), "models", "roomy")["memory_bytes"].as_u64().expect("it was proved");
    let (_, home, _) = agent.stop();
    let mut agent = Agent::start_in(home, &text(RING + bytes * halves / 2));
    client.came_on(&uplink("models"));
    agent.wait_for_log(&["serving", "version=\"1.0.0\""]);
    assert!(agent.runs());
    broker.wait_subscribed("plant/+/roomy");
    (depot, Bench { broker, client, agent }, packages)
}

#[test]
fn a_fix_that_arrives_during_a_trial_takes_the_room_of_the_version_beside_it() {
    let (depot, mut bench, [_, two, three]) = cramped(5, LONG);
    depot.publish(&two);
    event_of(&mut bench.client, "model-activated", "2.0.0");
    bench.agent.wait_for_status("both are loaded", |status| {
        let budget = &status["budget"];
        let (loaded, all) = (budget["memory_loaded_bytes"].as_u64()? - RING, budget["memory_bytes"].as_u64()? - RING);
        (loaded * 5 > all * 3).then_some(())
    });
    depot.publish(&three);
    let message = |m: &Message| {
        let told = (m.topic == uplink("event")).then(|| m.json());
        let about = |told: Value| told["version"] == "3.0.0" && told["kind"] != "model-staged";
        told.is_some_and(about)
    };
    let told = bench.client.wait_for("what becomes of 3.0.0", message).json();
    assert_eq!(told["kind"], "model-activated", "{told}");
    let record = bench.agent.home().record("roomy").expect("it serves");
    assert_eq!((&record["active"]["version"], &record["rejected"]), (&"3.0.0".into(), &serde_json::json!({})));
    assert_eq!(bench.ask("roomy", [0.9, 0.1, 0.2])["version"], "3.0.0");
}

/// A file that nothing can be renamed to, while this lives.
struct Pinned(std::path::PathBuf);

impl Pinned {
    /// None if this user may not mount; a line says so.
    fn new(path: std::path::PathBuf) -> Option<Self> {
        let text = program::text_of(&path);
        let made = Command::new("mount").args(["--bind", text, text]).status();
        if made.is_ok_and(|status| status.success()) {
            return Some(Self(path));
        }
        eprintln!("skipped: this user may not mount");
        None
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l", program::text_of(&self.0)]).status();
    }
}

#[test]
fn what_was_taken_down_for_a_version_that_cannot_be_put_on_record_serves_again() {
    let (depot, mut bench, [_, two, _]) = cramped(3, "swap = \"cold\"\n");
    let record = bench.agent.home().state().join("depot/models/roomy.json");
    let Some(pinned) = Pinned::new(record) else { return };
    depot.publish(&two);
    let refused = |m: &Message| {
        let told = (m.topic == uplink("models")).then(|| m.json());
        let failed = |told: Value| {
            let models = told["models"].as_array().cloned().unwrap_or_default();
            let again = |model: &Value| model["failure"].as_str().is_some_and(|why| why.contains("it is tried again"));
            models.iter().any(|model| model["version"] == "2.0.0" && again(model))
        };
        told.is_some_and(failed)
    };
    bench.client.wait_for("2.0.0 is not taken up", refused);
    assert_eq!(bench.ask("roomy", [0.9, 0.1, 0.2])["version"], "1.0.0");
    drop(pinned);
    let record = bench.agent.home().record("roomy").expect("it serves");
    assert_eq!((&record["active"]["version"], &record["rejected"]), (&"1.0.0".into(), &serde_json::json!({})));
}

/// What is shown of a version of the model.
fn shown(status: &Value, version: &str) -> Option<Value> {
    status["models"].as_array()?.iter().find(|model| model["version"] == version).cloned()
}

#[test]
fn a_version_that_waits_for_a_trial_gives_way_to_a_newer_one_and_goes_when_it_is_no_longer_offered() {
    let pipeline = "trial = { windows = 60, time = \"100ms\", shadow = true, shadow_cpu = 1.0 }\n";
    let (depot, mut bench) = delivered(pipeline);
    depot.publish(&Package::loudness_of("2.0.0", 0.01));
    until_event(&mut bench, 0, "shadow-passed", "2.0.0");
    event_of(&mut bench.client, "model-activated", "2.0.0");
    // No windows come from here on, so its trial goes on.
    for (version, threshold) in [("3.0.0", 0.02), ("4.0.0", 0.03)] {
        depot.publish(&Package::loudness_of(version, threshold));
        bench.agent.wait_for_status("one that waits", |status| {
            let waits = shown(status, version)?;
            waits["failure"].as_str()?.contains("waits for the end of a trial").then_some(())
        });
    }
    assert_eq!(shown(&bench.agent.status(), "3.0.0"), None, "a newer one waits in its place");
    depot.run(&["rollout", "loudness", "4.0.0", "--halt"]).expect_code(0);
    bench.agent.wait_for_status("the next one waits", |status| {
        (shown(status, "4.0.0").is_none() && shown(status, "3.0.0").is_some()).then_some(())
    });
    depot.run(&["withdraw", "loudness", "2.0.0"]).expect_code(0);
    let told = event_of(&mut bench.client, "model-withdrawn", "2.0.0");
    assert_says(&told["message"], &["1.0.0 serves again"]);
    bench.agent.wait_for_model(&mut bench.client, "loudness", "shadow");
    until_event(&mut bench, 100_000, "shadow-passed", "3.0.0");
    event_of(&mut bench.client, "model-activated", "3.0.0");
    let indexes = bench.agent.home().state().join("depot/indexes");
    bench.agent.wait_for_status("nothing of the others is kept", |_| {
        let names = std::fs::read_dir(&indexes).ok()?.map(|entry| entry.expect("it is there").file_name());
        let mut names: Vec<_> = names.collect();
        names.sort();
        (names == ["loudness-1.0.0.index", "loudness-3.0.0.index"]).then_some(())
    });
    let chunks = program::run(
        "limpet",
        &["store", "check", "--config", program::text_of(&bench.agent.home().path().join("limpet.toml"))],
    );
    chunks.expect_code(0);
}

#[test]
fn what_passed_in_shadow_and_cannot_be_put_on_record_is_tried_again() {
    let pipeline = "trial = { windows = 40, time = \"100ms\", shadow = true, shadow_cpu = 1.0 }\n";
    let (depot, mut bench) = delivered(pipeline);
    depot.publish(&Package::loudness_of("2.0.0", 0.01));
    bench.agent.wait_for_model(&mut bench.client, "loudness", "shadow");
    let record = bench.agent.home().state().join("depot/models/loudness.json");
    let Some(pinned) = Pinned::new(record) else { return };
    let not_yet = |agent: &Agent| !agent.log_with(&["what passed in shadow does not take over yet"]).is_empty();
    let until = Instant::now() + LIMIT;
    for sequence in 0.. {
        bench.client.publish("plant/a/level", samples(sequence, &[(sequence % 30) as f32 / 100.0; HOP]));
        std::thread::sleep(super::PACE);
        if not_yet(&bench.agent) {
            break;
        }
        assert!(Instant::now() < until, "it does not pass");
    }
    drop(pinned);
    // That makes it look at once, which it does by itself after a while; then it is in shadow once more.
    bench.agent.reload();
    until_event(&mut bench, 100_000, "model-activated", "2.0.0");
}

#[test]
fn a_version_whose_proof_ends_after_another_was_withdrawn_is_taken_up_all_the_same() {
    let broker = Broker::start();
    let depot = Depot::on(&broker);
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/gw/#"]);
    let any = Package::scores();
    let pipeline = feed("slow", &any, "max_streams = 1", "trial = { windows = 0 }\n").replace(&any.display(), "slow@*");
    let mut agent = Agent::start_in(Home::empty(), &format!("{}{}{pipeline}", local(&broker), table(&depot)));
    depot.publish(&Package::scores_named("slow"));
    agent.wait_for_model(&mut client, "slow", "active");
    let (second, third) = (Package::scores_named("slow"), Package::slow());
    second.edit("version = \"1.0.0\"", "version = \"2.0.0\"");
    third.edit("version = \"1.0.0\"", "version = \"3.0.0\"");
    depot.publish(&second);
    event_of(&mut client, "model-activated", "2.0.0");
    depot.publish(&third);
    agent.wait_for_log(&["proving", "version=3.0.0"]);
    depot.run(&["withdraw", "slow", "2.0.0"]).expect_code(0);
    assert_says(&event_of(&mut client, "model-withdrawn", "2.0.0")["message"], &["1.0.0 serves again"]);
    // The proof takes many of its runs.
    let activated = |m: &Message| {
        let told = (m.topic == uplink("event")).then(|| m.json());
        told.is_some_and(|told| told["kind"] == "model-activated" && told["version"] == "3.0.0")
    };
    client.try_wait_for(4 * LIMIT, activated).expect("it is taken up");
    assert!(agent.runs());
}

#[test]
fn a_version_in_shadow_whose_rollout_is_halted_is_let_go_and_comes_again_when_it_is_resumed() {
    let pipeline = "trial = { windows = 60, time = \"100ms\", shadow = true, shadow_cpu = 1.0 }\n";
    let (depot, mut bench) = delivered(pipeline);
    depot.publish(&Package::loudness_of("2.0.0", 0.01));
    bench
        .agent
        .wait_for_status("it runs in shadow", |status| (shown(status, "2.0.0")?["state"] == "shadow").then_some(()));
    depot.run(&["rollout", "loudness", "2.0.0", "--halt"]).expect_code(0);
    bench.agent.wait_for_status("it is let go", |status| shown(status, "2.0.0").is_none().then_some(()));
    let record = bench.agent.home().record("loudness").expect("it serves");
    assert_eq!((&record["active"]["version"], &record["trial"]), (&"1.0.0".into(), &Value::Null));
    depot.run(&["rollout", "loudness", "2.0.0", "--resume"]).expect_code(0);
    bench.agent.wait_for_status("it is back", |status| (shown(status, "2.0.0")?["state"] == "shadow").then_some(()));
    until_event(&mut bench, 0, "shadow-passed", "2.0.0");
    event_of(&mut bench.client, "model-activated", "2.0.0");
}
