//! Models over the air: published by `limpet-lab depot`, fetched, proved, swapped in, watched and taken back.

mod blocked;
mod clock;
mod configured;
mod damage;
mod forged;
mod hold;
mod proofs;
mod rights;
mod rollout;
mod secrets;
mod trial;
mod web;

use std::time::{Duration, Instant};

use limpet_tests::agent::{GATEWAY, Home};
use limpet_tests::package::HOP;
use limpet_tests::{Agent, Broker, Client, Depot, LIMIT, Message, Package, program};
use serde_json::Value;

use crate::swap::Flow;
use crate::{Bench, assert_says, event, local, named, samples, sound, uplink};

/// From one message to the next, while an event is waited for. A flood would leave no room for a version in shadow.
const PACE: Duration = Duration::from_millis(5);

/// A trial that ends soon.
const SHORT: &str = "trial = { windows = 20, time = \"100ms\" }\n";

/// The configuration of a pipeline `sound` over the depot's model `loudness`.
fn config(depot: &Depot, pipeline: &str) -> String {
    let any = Package::loudness();
    let sound = sound(&any, "").replace(&any.display().to_string(), "loudness@*");
    format!("{}{sound}{pipeline}", table(depot))
}

/// What a configuration says of a depot.
fn table(depot: &Depot) -> String {
    format!("[depot]\nroot = \"{}\"\njitter = \"0s\"\nrate = \"64MiB\"\n", depot.root().display())
}

/// An agent that waits for its model, and the depot on its broker.
fn waiting(pipeline: &str) -> (Depot, Bench) {
    let broker = Broker::start();
    let depot = Depot::on(&broker);
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/gw/#"]);
    let agent = Agent::start_in(Home::empty(), &format!("{}{}", local(&broker), config(&depot, pipeline)));
    (depot, Bench { broker, client, agent })
}

/// The same, when version 1.0.0 was delivered and serves.
fn delivered(pipeline: &str) -> (Depot, Bench) {
    let (depot, mut bench) = waiting(pipeline);
    depot.publish(&Package::loudness());
    bench.agent.wait_for_model(&mut bench.client, "loudness", "active");
    bench.broker.wait_subscribed("plant/+/level");
    (depot, bench)
}

/// The next event of a kind about a version.
#[track_caller]
fn event_of(client: &mut Client, kind: &str, version: &str) -> Value {
    let (topic, what) = (uplink("event"), format!("{kind} {version}"));
    let about = |m: &Message| m.topic == topic && m.json()["kind"] == kind && m.json()["version"] == version;
    client.wait_for(&what, about).json()
}

/// Sends windows of quiet samples until an event comes about a version, and gives it with the versions that answered.
#[track_caller]
fn until_event(bench: &mut Bench, first: u32, kind: &str, version: &str) -> (Value, Vec<String>) {
    pour(bench, first, |sequence| (sequence % 30) as f32 / 100.0, kind, version)
}

/// Sends windows, each of one level all through, until an event comes about a version, and gives it with the versions
/// that answered. Not every window needs an answer.
#[track_caller]
fn pour(bench: &mut Bench, first: u32, level: fn(u32) -> f32, kind: &str, version: &str) -> (Value, Vec<String>) {
    let topic = uplink("event");
    let about = |m: &Message| m.topic == topic && m.json()["kind"] == kind && m.json()["version"] == version;
    let until = Instant::now() + LIMIT;
    // The first message completes no window.
    for sequence in first.. {
        bench.client.publish("plant/a/level", samples(sequence, &[level(sequence); HOP]));
        let event = bench.client.try_wait_for(PACE, about).map(|message| message.json());
        if event.is_some() || Instant::now() > until {
            // What was not delivered at once comes as a batch.
            let came = bench.client.came_on(&uplink("result/sound/a"));
            let answers = came.iter().flat_map(Message::json_lines);
            let versions: Vec<String> = answers.filter_map(|r| r["version"].as_str().map(str::to_owned)).collect();
            return (event.unwrap_or_else(|| panic!("no {kind} {version}; it answered {versions:?}")), versions);
        }
    }
    unreachable!("the limit ends it")
}

#[test]
fn a_pipeline_waits_for_its_model_and_serves_when_it_comes_without_another_process() {
    let (depot, mut bench) = waiting("");
    bench.client.wait_on(&uplink("models"));
    let waits = bench.agent.wait_for_status("a pipeline that waits", |status| {
        let pipeline = named(status, "pipelines", "sound").clone();
        (pipeline["state"] == "waiting").then_some(pipeline)
    });
    assert_says(&waits["refusal"], &["no version of its model was delivered yet"]);
    let pid = bench.agent.pid();
    depot.publish(&Package::loudness());
    bench.agent.wait_for_model(&mut bench.client, "loudness", "active");
    assert_eq!(bench.agent.pid(), pid);
    bench.broker.wait_subscribed("plant/+/level");
    Flow::start(&mut bench, &[("1.0.0", 0.0)]).until(&mut bench, "1.0.0", 20);
    let record = bench.agent.home().record("loudness").expect("it serves");
    assert_eq!(record["active"]["version"], "1.0.0");
}

/// The agent may have ended, or begun again for another model, between the proof and the record.
#[test]
fn a_first_version_whose_proof_is_there_already_serves() {
    let broker = Broker::start();
    let depot = Depot::on(&broker);
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/gw/#"]);
    let agent = Agent::start_in(Home::proved(), &format!("{}{}", local(&broker), config(&depot, "")));
    let mut bench = Bench { broker, client, agent };
    depot.publish(&Package::loudness());
    bench.agent.wait_for_model(&mut bench.client, "loudness", "active");
    assert!(bench.agent.log_with(&["proving"]).is_empty(), "the proof was there");
}

#[test]
fn a_newer_version_is_delivered_proved_and_swapped_in_without_losing_a_window() {
    let (depot, mut bench) = delivered(SHORT);
    let mut flow = Flow::start(&mut bench, &[("1.0.0", 0.0), ("2.0.0", 0.01)]);
    flow.until(&mut bench, "1.0.0", 20);
    depot.publish(&Package::loudness_of("2.0.0", 0.01));
    flow.until(&mut bench, "2.0.0", 20);
    // It is over once it has seen enough windows, and long enough.
    while bench.agent.home().record("loudness").is_some_and(|record| !record["trial"].is_null()) {
        flow.until(&mut bench, "2.0.0", 20);
    }
    event_of(&mut bench.client, "trial-passed", "2.0.0");
    let record = bench.agent.home().record("loudness").expect("it serves");
    assert_eq!((&record["active"]["version"], &record["previous"][0]["version"]), (&"2.0.0".into(), &"1.0.0".into()));
    assert_eq!(record["trial"], Value::Null);
    // Nothing is fetched or proved again after a power cut.
    let home = bench.agent.kill();
    let config = format!("{}{}", local(&bench.broker), config(&depot, SHORT));
    bench.agent = Agent::start_in(home, &config);
    bench.agent.wait_for_log(&["serving", "version=\"2.0.0\""]);
    assert!(bench.agent.log_with(&["proving"]).is_empty() && bench.agent.log_with(&["is here"]).is_empty());
}

#[test]
fn a_version_that_fails_its_proof_is_rejected_once_and_the_old_one_goes_on() {
    let (depot, mut bench) = delivered("");
    let wrong = Package::loudness_of("2.0.0", 0.3);
    wrong.put("golden.safetensors", &std::fs::read(Package::loudness().file("golden.safetensors")).unwrap());
    depot.publish(&wrong);
    let rejected = event_of(&mut bench.client, "model-rejected", "2.0.0");
    assert_says(&rejected["message"], &["loudness 2.0.0 is rejected", "1.0.0 goes on", "f32.onnx"]);
    Flow::start(&mut bench, &[("1.0.0", 0.0)]).until(&mut bench, "1.0.0", 20);
    let record = bench.agent.home().record("loudness").expect("it serves");
    let rejected = record["rejected"].as_object().expect("a map").values().next().expect("one was");
    assert_eq!(rejected["version"], "2.0.0");
    // Not tried again by the next process; a version that is good is.
    let (_, home, _) = bench.agent.stop();
    bench.agent = Agent::start_in(home, &format!("{}{}", local(&bench.broker), config(&depot, "")));
    bench.agent.wait_for_log(&["serving", "version=\"1.0.0\""]);
    // Whoever counts failures still counts this gateway.
    let failed = bench.agent.wait_for_status("the version that was rejected", |status| {
        let models = status["models"].as_array()?;
        models.iter().find(|model| model["version"] == "2.0.0" && model["state"] == "failed").cloned()
    });
    assert_says(&failed["failure"], &["f32.onnx"]);
    depot.publish(&Package::loudness_of("2.1.0", 0.01));
    event_of(&mut bench.client, "model-activated", "2.1.0");
    assert!(bench.agent.log_with(&["proving", "version=2.0.0"]).is_empty());
}

#[test]
fn a_version_that_collapses_at_the_plant_is_taken_back() {
    let (depot, mut bench) = delivered("trial = { windows = 5000, time = \"1m\", shadow_cpu = 1.0 }\n");
    depot.publish(&Package::stuck("2.0.0"));
    event_of(&mut bench.client, "model-activated", "2.0.0");
    let (back, versions) = until_event(&mut bench, 0, "rolled-back", "2.0.0");
    assert_says(&back["message"], &["loudness 2.0.0 was taken back", "1.0.0 serves again", "pipeline sound"]);
    assert!(versions.iter().any(|version| version == "2.0.0"), "{versions:?}");
    let record = bench.agent.home().record("loudness").expect("it serves");
    assert_eq!((&record["active"]["version"], &record["trial"]), (&"1.0.0".into(), &Value::Null));
    bench.agent.wait_for_status("the version that failed", |status| {
        let models = status["models"].as_array()?;
        models.iter().find(|model| model["version"] == "2.0.0" && model["state"] == "failed").map(|_| ())
    });
}

#[test]
fn a_version_in_shadow_takes_over_when_it_agrees() {
    let (depot, mut bench) = delivered("trial = { windows = 40, time = \"100ms\", shadow = true, shadow_cpu = 1.0 }\n");
    depot.publish(&Package::loudness_of("2.0.0", 0.01));
    let (passed, versions) = until_event(&mut bench, 0, "shadow-passed", "2.0.0");
    assert_says(&passed["message"], &["loudness 2.0.0 passed", "100.0 %", "compared"]);
    assert!(versions.iter().all(|version| version == "1.0.0"), "a version in shadow is not heard: {versions:?}");
    event_of(&mut bench.client, "model-activated", "2.0.0");
}

#[test]
fn a_withdrawn_version_gives_way_to_the_one_before_it() {
    let (depot, mut bench) = delivered(SHORT);
    depot.publish(&Package::loudness_of("2.0.0", 0.01));
    event_of(&mut bench.client, "model-activated", "2.0.0");
    depot.run(&["withdraw", "loudness", "2.0.0"]).expect_code(0);
    bench.agent.wait_for_status("the version before", |status| serves(status, "1.0.0"));
    Flow::start(&mut bench, &[("1.0.0", 0.0)]).until(&mut bench, "1.0.0", 20);
}

/// Whether a version of any model serves.
fn serves(status: &Value, version: &str) -> Option<()> {
    let models = status["models"].as_array()?;
    let serves =
        |model: &Value| model["version"] == version && (model["state"] == "active" || model["state"] == "trial");
    models.iter().any(serves).then_some(())
}

#[test]
fn a_version_for_nobody_is_taken_by_nobody_until_its_share_grows() {
    let (depot, mut bench) = delivered("");
    let newer = Package::loudness_of("2.0.0", 0.01);
    let path = program::text_of(newer.path());
    depot.run(&["publish", path, "--channel", "stable", "--percent", "0"]).expect_code(0);
    depot
        .run(&["publish", program::text_of(Package::loudness_of("1.5.0", 0.02).path()), "--channel", "stable"])
        .expect_code(0);
    event_of(&mut bench.client, "model-activated", "1.5.0");
    depot.run(&["rollout", "loudness", "2.0.0", "--percent", "100"]).expect_code(0);
    event_of(&mut bench.client, "model-activated", "2.0.0");
}

#[test]
fn a_folder_is_a_depot_too_with_and_without_an_agent() {
    let depot = Depot::in_folder();
    depot.publish(&Package::loudness());
    let broker = Broker::start();
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/gw/#"]);
    let home = Home::empty();
    let config = home.write(&format!("{}{}", local(&broker), config(&depot, SHORT)));
    let import = |folder: &std::path::Path| {
        let arguments = ["depot", "import", program::text_of(folder), "--config", program::text_of(&config)];
        program::run("limpet", &arguments).expect_code(0).stdout
    };
    let said = import(&depot.content());
    assert!(said.contains("loudness 1.0.0:") && said.contains("no agent runs"), "{said}");
    let text = std::fs::read_to_string(&config).unwrap();
    let (_, rest) = text.split_once("[broker.local]").expect("it has a broker");
    let agent = Agent::start_in(home, &format!("[broker.local]{rest}"));
    let mut bench = Bench { broker, client, agent };
    bench.agent.wait_for_model(&mut bench.client, "loudness", "active");
    depot.publish(&Package::loudness_of("2.0.0", 0.01));
    assert!(import(&depot.content()).contains("the agent that runs takes it up now"));
    event_of(&mut bench.client, "model-activated", "2.0.0");
}

/// Publishes a package while no gateway is there, and has the broker lose so many of the chunks that only it has.
#[track_caller]
fn lose(client: &mut Client, depot: &Depot, package: &Package, count: usize) {
    let next = |client: &mut Client| client.try_wait_for(Duration::from_millis(300), |m| m.topic.contains("/chunk/"));
    client.subscribe(&["limpet/1/depot/chunk/+"]);
    while next(client).is_some() {}
    depot.publish(package);
    let lost: Vec<String> = std::iter::from_fn(|| next(client)).map(|message| message.topic).take(count).collect();
    assert!(!lost.is_empty());
    lost.iter().for_each(|topic| _ = client.publish_with(topic, true, ""));
}

#[test]
fn a_chunk_that_the_broker_lost_is_named_and_comes_with_a_repair() {
    let (depot, mut bench) = delivered("");
    let newer = Package::loudness_of("2.0.0", 0.01);
    let (_, home, _) = bench.agent.stop();
    lose(&mut bench.client, &depot, &newer, usize::MAX);
    bench.agent = Agent::start_in(home, &format!("{}{}", local(&bench.broker), config(&depot, "")));
    let missing = event(&mut bench.client, "missing-chunk");
    assert_says(&missing["message"], &["chunk/", "limpet-lab depot repair"]);
    assert_eq!(depot.run(&["verify"]).code, Some(1));
    depot.run(&["repair", program::text_of(newer.path())]).expect_code(0);
    event_of(&mut bench.client, "model-activated", "2.0.0");
}

#[test]
fn metadata_of_before_is_refused_and_what_runs_goes_on() {
    let (depot, mut bench) = delivered("");
    bench.client.subscribe(&["limpet/1/depot/meta/timestamp"]);
    let old = bench.client.wait_on("limpet/1/depot/meta/timestamp");
    depot.publish(&Package::loudness_of("2.0.0", 0.01));
    event_of(&mut bench.client, "model-activated", "2.0.0");
    bench.client.publish_with("limpet/1/depot/meta/timestamp", true, old.payload.clone());
    let refused = event(&mut bench.client, "depot-refused");
    assert_says(&refused["message"], &["timestamp", "went back", "what runs goes on"]);
    Flow::start(&mut bench, &[("2.0.0", 0.01)]).until(&mut bench, "2.0.0", 20);
}

#[test]
fn metadata_that_another_signed_is_refused() {
    let (depot, mut bench) = delivered("");
    let stranger = Depot::in_folder();
    stranger.publish(&Package::loudness_of("3.0.0", 0.01));
    let timestamp = std::fs::read(stranger.content().join("meta/timestamp")).unwrap();
    bench.client.publish_with("limpet/1/depot/meta/timestamp", true, timestamp);
    let refused = event(&mut bench.client, "depot-refused");
    assert_says(&refused["message"], &["not signed as it must be", "what runs goes on"]);
    drop(depot);
    Flow::start(&mut bench, &[("1.0.0", 0.0)]).until(&mut bench, "1.0.0", 20);
}

#[test]
fn a_damaged_chunk_in_the_store_is_found_and_fetched_again() {
    let (depot, bench) = delivered("");
    let chunk = bench.agent.home().chunks().pop().expect("it has chunks");
    let mut bytes = std::fs::read(&chunk).unwrap();
    bytes[3] ^= 1;
    // At once: of a file that is cut short for a moment the agent would fetch the chunk again by itself.
    let damaged = bench.agent.home().path().join("damaged");
    std::fs::write(&damaged, &bytes).and_then(|()| std::fs::rename(&damaged, &chunk)).unwrap();
    let text = format!("{}{}", local(&bench.broker), config(&depot, ""));
    let config = bench.agent.home().write(&text);
    let check = |more: &[&str]| {
        let mut arguments = vec!["store", "check", "--config", program::text_of(&config)];
        arguments.extend(more);
        program::run("limpet", &arguments)
    };
    let found = check(&[]).expect_code(1);
    assert!(found.stdout.contains(chunk.file_name().unwrap().to_str().unwrap()), "{}", found.stdout);
    let repaired = check(&["--repair"]).expect_code(0).stdout;
    assert!(repaired.contains("the agent fetches what is missing now"), "{repaired}");
    bench.agent.wait_for_status("the chunk", |_| (check(&[]).code == Some(0)).then_some(()));
}

/// An agent whose version 2.0.0 is damaged and does not come again, so that 1.0.0 stands in for it; with the package.
fn stood_in_for() -> (Depot, Bench, Package) {
    let (depot, mut bench) = delivered(SHORT);
    let before = bench.agent.home().chunks();
    let newer = Package::loudness_of("2.0.0", 0.01);
    depot.publish(&newer);
    event_of(&mut bench.client, "model-activated", "2.0.0");
    until_event(&mut bench, 1, "trial-passed", "2.0.0");
    let own: Vec<_> = bench.agent.home().chunks().into_iter().filter(|path| !before.contains(path)).collect();
    let chunk = own.first().expect("it has chunks of its own");
    let home = bench.agent.kill();
    let mut bytes = std::fs::read(chunk).unwrap();
    bytes[3] ^= 1;
    std::fs::write(chunk, &bytes).unwrap();
    // It cannot come at once, so what serves meanwhile is to be seen.
    let topic = format!("limpet/1/depot/chunk/{}", chunk.file_name().unwrap().to_str().unwrap());
    bench.client.publish_with(&topic, true, "");
    bench.agent = Agent::start_in(home, &format!("{}{}", local(&bench.broker), config(&depot, SHORT)));
    let damaged = event_of(&mut bench.client, "model-damaged", "2.0.0");
    assert_says(&damaged["message"], &["loudness 2.0.0 cannot be opened", "1.0.0 serves", "is damaged"]);
    bench.agent.wait_for_status("the version before", |status| serves(status, "1.0.0"));
    bench.broker.wait_subscribed("plant/+/level");
    let record = bench.agent.home().record("loudness").expect("it serves");
    assert_eq!(record["active"]["version"], "2.0.0", "it is what should serve");
    // What was answered before the kill may have come late.
    bench.client.came_on(&uplink("result/sound/a"));
    (depot, bench, newer)
}

#[test]
fn a_damaged_version_is_stood_in_for_by_the_one_before_until_it_is_whole() {
    let (depot, mut bench, newer) = stood_in_for();
    Flow::start(&mut bench, &[("1.0.0", 0.0)]).until(&mut bench, "1.0.0", 20);
    depot.run(&["repair", program::text_of(newer.path())]).expect_code(0);
    event_of(&mut bench.client, "model-activated", "2.0.0");
    let record = bench.agent.home().record("loudness").expect("it serves");
    assert_eq!(record["active"]["version"], "2.0.0");
    assert_eq!(record["previous"][0]["version"], "1.0.0");
}

#[test]
fn a_version_that_fails_its_trial_gives_way_to_the_one_that_stood_in_for_another() {
    let (depot, mut bench, _) = stood_in_for();
    depot.publish(&Package::undefined("3.0.0"));
    event_of(&mut bench.client, "model-activated", "3.0.0");
    let (told, _) = until_event(&mut bench, 0, "rolled-back", "3.0.0");
    assert_says(&told["message"], &["loudness 3.0.0 was taken back, 1.0.0 serves again"]);
    bench.agent.wait_for_status("it serves", |status| serves(status, "1.0.0"));
}

#[test]
fn a_damaged_version_that_is_withdrawn_leaves_the_one_that_stood_in_for_it() {
    let (depot, mut bench, _) = stood_in_for();
    depot.run(&["withdraw", "loudness", "2.0.0"]).expect_code(0);
    let told = event_of(&mut bench.client, "model-withdrawn", "2.0.0");
    assert_says(&told["message"], &["loudness 2.0.0 was withdrawn; 1.0.0 serves"]);
    bench.agent.wait_for_status("it serves", |status| serves(status, "1.0.0"));
    let record = bench.agent.home().record("loudness").expect("it serves");
    assert_eq!((&record["active"]["version"], &record["withdrawn"]), (&"1.0.0".into(), &false.into()));
    assert_eq!(record["previous"], serde_json::json!([]));
}
