//! Proofs that are not valid any more, cannot be carried out, or say otherwise than before.

use std::fs;
use std::path::PathBuf;

use limpet_tests::agent::Home;
use limpet_tests::package::HOP;
use limpet_tests::{Agent, Message, Package};
use serde_json::Value;

use super::hold::until;
use super::{config, delivered, event_of, until_event};
use crate::{Bench, assert_says, local, samples, uplink};

/// A trial that no test is long enough to end well.
const LONG: &str = "trial = { windows = 5000, time = \"1m\", shadow_cpu = 1.0 }\n";

/// What was proved of a package.
fn proofs(home: &Home, package: &str) -> Vec<(PathBuf, String)> {
    let all = fs::read_dir(home.state().join("proofs")).expect("something was proved");
    let all = all.map(|entry| entry.expect("it can be read").path());
    let texts = all.filter_map(|path| fs::read_to_string(&path).ok().map(|text| (path, text)));
    let found: Vec<_> = texts.filter(|(_, text)| text.contains(package)).collect();
    assert!(!found.is_empty(), "nothing was proved of {package}");
    found
}

/// Removes what was proved of a package.
fn forget_proofs(home: &Home, package: &str) {
    proofs(home, package).into_iter().for_each(|(path, _)| fs::remove_file(path).expect("it is there"));
}

/// Kills the proof of a version that goes on, and gives what is told of that.
#[track_caller]
fn kill_proof(bench: &mut Bench, version: &str) -> Value {
    until("a process that proves", || (bench.agent.kill_children() > 0).then_some(()));
    let (topic, what) = (uplink("event"), format!("loudness {version} is not taken up yet"));
    let about = |m: &Message| m.topic == topic && m.json()["message"].as_str().is_some_and(|text| text.contains(&what));
    let told = bench.client.wait_for(&what, about).json();
    assert_eq!((&told["kind"], &told["about"]), (&"depot-refused".into(), &"loudness".into()));
    assert_says(&told["message"], &["what runs goes on", "was stopped", "killed by SIGKILL"]);
    told
}

#[test]
fn a_proof_that_somebody_kills_says_nothing_of_the_version_and_is_made_again() {
    let (depot, mut bench) = delivered("trial = { windows = 0 }\n");
    depot.publish(&Package::laborious("2.0.0", 0.01));
    kill_proof(&mut bench, "2.0.0");
    let record = bench.agent.home().record("loudness").expect("it serves");
    assert_eq!((&record["active"]["version"], &record["rejected"]), (&"1.0.0".into(), &serde_json::json!({})));
    // Nobody publishes anything: it is here. That makes it look at once, which it does by itself after a while.
    bench.agent.reload();
    event_of(&mut bench.client, "model-activated", "2.0.0");
    // The same at a start, where nothing else serves.
    let package = bench.agent.home().record("loudness").expect("it serves")["active"]["package"].to_string();
    let (_, home, _) = bench.agent.stop();
    forget_proofs(&home, package.trim_matches('"'));
    bench.agent = Agent::start_in(home, &format!("{}{}", local(&bench.broker), config(&depot, "")));
    kill_proof(&mut bench, "2.0.0");
    bench.agent.wait_for_log(&["serving", "version=\"2.0.0\""]);
    let record = bench.agent.home().record("loudness").expect("it serves");
    assert_eq!((&record["active"]["version"], &record["rejected"]), (&"2.0.0".into(), &serde_json::json!({})));
}

#[test]
fn a_version_whose_proof_is_killed_each_time_is_rejected_at_last() {
    let (depot, mut bench) = delivered("trial = { windows = 0 }\n");
    depot.publish(&Package::laborious("2.0.0", 0.01));
    for times in 1..=3 {
        until("a process that proves", || (bench.agent.kill_children() > 0).then_some(()));
        if times < 3 {
            // It is told of once.
            until("what became of it", || (bench.agent.log_with(&["not taken up now"]).len() == times).then_some(()));
            bench.agent.reload();
        }
    }
    let told = event_of(&mut bench.client, "model-rejected", "2.0.0");
    assert_says(&told["message"], &["loudness 2.0.0 is rejected, 1.0.0 goes on", "was stopped", "killed by SIGKILL"]);
}

/// Another agent may have another engine: here its proofs are already made, and say no.
#[test]
fn a_version_whose_proof_fails_under_another_agent_gives_way_to_the_one_before() {
    let (depot, mut bench) = delivered("trial = { windows = 0 }\n");
    depot.publish(&Package::loudness_of("2.0.0", 0.01));
    event_of(&mut bench.client, "model-activated", "2.0.0");
    let (_, home, _) = bench.agent.stop();
    let package = home.record("loudness").expect("it serves")["active"]["package"].to_string();
    for (path, text) in proofs(&home, package.trim_matches('"')) {
        fs::write(path, text.replace("\"passed\"", "\"failed\"")).expect("the disk has room");
    }
    bench.agent = Agent::start_in(home, &format!("{}{}", local(&bench.broker), config(&depot, "")));
    let told = event_of(&mut bench.client, "model-rejected", "2.0.0");
    assert_says(
        &told["message"],
        &["loudness 2.0.0 is rejected", "no version of it runs", "no variant passed its proof"],
    );
    let told = event_of(&mut bench.client, "rolled-back", "2.0.0");
    assert_says(&told["message"], &["loudness 2.0.0 was taken back, 1.0.0 is proved and serves then"]);
    bench.agent.wait_for_log(&["serving", "version=\"1.0.0\""]);
    let record = bench.agent.home().record("loudness").expect("it serves");
    assert_eq!((&record["active"]["version"], &record["previous"]), (&"1.0.0".into(), &serde_json::json!([])));
    // The one that failed is not chosen again, and the next one is.
    depot.publish(&Package::loudness_of("3.0.0", 0.02));
    event_of(&mut bench.client, "model-activated", "3.0.0");
    assert_eq!(bench.agent.log_with(&["2.0.0 is rejected"]).len(), 1);
}

/// After an update of the agent no proof of before is valid.
#[test]
fn a_version_to_go_back_to_is_proved_after_a_start_and_else_before_it_takes_over() {
    let (depot, mut bench) = delivered(LONG);
    depot.publish(&Package::undefined("2.0.0"));
    event_of(&mut bench.client, "model-activated", "2.0.0");
    let package = |home: &Home| {
        let record = home.record("loudness").expect("it serves");
        assert_eq!(record["previous"][0]["version"], "1.0.0", "{record}");
        record["previous"][0]["package"].as_str().expect("a digest").to_owned()
    };
    let (_, home, _) = bench.agent.stop();
    forget_proofs(&home, &package(&home));
    bench.agent = Agent::start_in(home, &format!("{}{}", local(&bench.broker), config(&depot, LONG)));
    bench.agent.wait_for_log(&["this version can serve again", "version=1.0.0"]);
    assert!(bench.agent.log_with(&["serving", "version=\"1.0.0\""]).is_empty(), "2.0.0 goes on");
    let home = bench.agent.home();
    forget_proofs(home, &package(home));
    let (told, _) = until_event(&mut bench, 0, "rolled-back", "2.0.0");
    assert_says(&told["message"], &["loudness 2.0.0 is to be taken back", "1.0.0", "is being proved", "takes over"]);
    let told = event_of(&mut bench.client, "rolled-back", "2.0.0");
    assert_says(&told["message"], &["loudness 2.0.0 was taken back, 1.0.0 serves again", "have no answer"]);
    let record = bench.agent.home().record("loudness").expect("it serves");
    assert_eq!((&record["active"]["version"], &record["trial"]), (&"1.0.0".into(), &Value::Null));
    for sequence in 100_000..100_004 {
        bench.client.publish("plant/a/level", samples(sequence, &[0.1; HOP]));
    }
    assert_eq!(bench.client.wait_on(&uplink("result/sound/a")).json()["version"], "1.0.0");
}
