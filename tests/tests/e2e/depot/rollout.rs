//! Who gets a version: labels, channels, times, shares, and rollouts that are halted.

use std::time::{Duration, Instant};

use limpet_tests::agent::Home;
use limpet_tests::forge::sha256;
use limpet_tests::{Agent, Broker, Client, Depot, LIMIT, Package, program};
use serde_json::{Value, json};

use super::damage::AT_ONCE;
use super::{config, delivered, event_of};
use crate::local;

/// A gateway without an agent, which is shown the depot by hand.
struct Gateway {
    id: String,
    home: Home,
}

impl Gateway {
    /// With these keys in its `[gateway]` and its `[depot]`.
    fn new(id: &str, depot: &Depot, labels: &str, channel: &str) -> Self {
        let home = Home::empty();
        let text = config(depot, "").replacen("[depot]", &format!("[depot]\n{channel}"), 1);
        home.write_as(id, &format!("{labels}[broker.local]\nurl = \"mqtt://127.0.0.1:1\"\n{text}"));
        Self { id: id.to_owned(), home }
    }

    /// What `limpet depot import` says of the model.
    #[track_caller]
    fn shown(&self, depot: &Depot) -> String {
        let (content, config) = (depot.content(), self.home.path().join("limpet.toml"));
        let arguments = ["depot", "import", program::text_of(&content), "--config", program::text_of(&config)];
        let said = program::run("limpet", &arguments).expect_code(0).stdout;
        said.lines().find(|line| line.starts_with("loudness")).unwrap_or_else(|| panic!("{said}")).to_owned()
    }

    #[track_caller]
    fn takes(&self, depot: &Depot, version: &str) {
        let said = self.shown(depot);
        assert!(said.starts_with(&format!("loudness {version}: ")), "{}: {said}", self.id);
    }

    #[track_caller]
    fn leaves(&self, depot: &Depot, version: &str, why: &str) {
        let said = self.shown(depot);
        assert!(said.contains(&format!("{version}: {why}")), "{}: {said}", self.id);
    }

    /// All that it is offered is there already.
    #[track_caller]
    fn leaves_nothing_for(&self, depot: &Depot) {
        let said = self.shown(depot);
        assert!(said.contains(": 0 of "), "{}: {said}", self.id);
    }
}

#[test]
fn a_version_goes_to_the_gateways_that_its_labels_channels_and_times_name_and_says_why_to_no_other() {
    let depot = Depot::in_folder();
    let plain = Gateway::new("plain", &depot, "", "");
    let third = Gateway::new("third", &depot, "labels = { line = \"3\", hall = \"a\" }\n", "");
    let fourth = Gateway::new("fourth", &depot, "labels = { line = \"4\" }\n", "");
    let beta = Gateway::new("beta", &depot, "", "channel = \"beta\"\n");
    let publish = |version: &str, who: &[&str]| {
        let package = Package::loudness_of(version, 0.0);
        depot.run(&[&["publish", program::text_of(package.path())], who].concat()).expect_code(0);
    };
    let rollout = |version: &str, who: &[&str]| {
        depot.run(&[&["rollout", "loudness", version], who].concat()).expect_code(0);
    };

    publish("1.0.0", &["--label", "line=3"]);
    third.takes(&depot, "1.0.0");
    plain.leaves(&depot, "1.0.0", "it is for gateways with line=3");
    fourth.leaves(&depot, "1.0.0", "it is for gateways with line=3");
    rollout("1.0.0", &["--label", "line=3", "--label", "hall=b"]);
    third.leaves(&depot, "1.0.0", "it is for gateways with hall=b");
    rollout("1.0.0", &["--any-label"]);
    [&plain, &third, &fourth].into_iter().for_each(|gateway| gateway.takes(&depot, "1.0.0"));

    publish("1.1.0", &["--channel", "beta"]);
    beta.takes(&depot, "1.1.0");
    beta.leaves_nothing_for(&depot);
    plain.takes(&depot, "1.0.0");
    rollout("1.0.0", &["--halt"]);
    plain.leaves(&depot, "1.1.0", "it is on [\"beta\"], and this gateway follows \"stable\"");
    plain.leaves(&depot, "1.0.0", "its rollout is halted");
    rollout("1.1.0", &["--channel", "beta", "--channel", "stable"]);
    plain.takes(&depot, "1.1.0");

    publish("1.2.0", &["--not-before", "2100-01-01T00:00:00Z"]);
    plain.takes(&depot, "1.1.0");
    rollout("1.1.0", &["--not-after", "2026-11-01T00:00:00Z"]);
    plain.leaves(&depot, "1.2.0", "it is not offered before 2100-01-01T00:00:00Z");
    plain.leaves(&depot, "1.1.0", "it was offered until 2026-11-01T00:00:00Z");
    rollout("1.2.0", &["--not-before", "none", "--not-after", "2100-01-01T00:00:00Z"]);
    plain.takes(&depot, "1.2.0");
    rollout("1.2.0", &["--halt"]);
    plain.leaves(&depot, "1.2.0", "its rollout is halted");
    rollout("1.2.0", &["--resume"]);
    plain.takes(&depot, "1.2.0");
    depot.run(&["withdraw", "loudness", "1.2.0"]).expect_code(0);
    plain.leaves(&depot, "1.2.0", "it was withdrawn");
}

/// What the signed state says of a release.
fn release(depot: &Depot, version: &str) -> Value {
    let listed = depot.run(&["list", "--json"]).expect_code(0).stdout;
    let listed: Value = serde_json::from_str(&listed).expect("it is JSON");
    let mut models = listed["models"].as_array().expect("models are a list").iter();
    models.find(|model| model["version"] == version).unwrap_or_else(|| panic!("{listed}"))["release"].clone()
}

#[test]
fn a_share_is_drawn_by_the_rule_of_the_contract_and_only_grows() {
    let depot = Depot::in_folder();
    let gateways: Vec<Gateway> = (0..12).map(|n| Gateway::new(&format!("gw-{n}"), &depot, "", "")).collect();
    let package = Package::loudness();
    depot.run(&["publish", program::text_of(package.path()), "--percent", "0"]).expect_code(0);
    let salt = release(&depot, "1.0.0")["salt"].as_str().expect("a release has a salt").to_owned();
    let mut before = 0;
    for percent in [0_u32, 35, 70, 100] {
        depot.run(&["rollout", "loudness", "1.0.0", "--percent", &percent.to_string()]).expect_code(0);
        assert_eq!(release(&depot, "1.0.0")["salt"], salt, "who is in stays in");
        let mut taken = 0;
        for gateway in &gateways {
            let digest = sha256(format!("{}\0{salt}", gateway.id).as_bytes());
            let place = u64::from_be_bytes(digest[..8].try_into().expect("it has 32 bytes")) as f64 / 2f64.powi(64);
            if place < f64::from(percent) / 100.0 {
                gateway.takes(&depot, "1.0.0");
                taken += 1;
            } else {
                gateway.leaves(&depot, "1.0.0", &format!("it goes to {percent} % of the gateways so far"));
            }
        }
        assert!(taken >= before);
        before = taken;
    }
    assert_eq!(before, gateways.len());
}

#[test]
fn a_halted_version_is_taken_by_nobody_until_it_is_resumed() {
    let (depot, mut bench) = delivered(AT_ONCE);
    let newer = Package::loudness_of("2.0.0", 0.0);
    depot.run(&["publish", program::text_of(newer.path()), "--percent", "0"]).expect_code(0);
    depot.run(&["rollout", "loudness", "2.0.0", "--percent", "100", "--halt"]).expect_code(0);
    depot.publish(&Package::loudness_of("1.5.0", 0.0));
    event_of(&mut bench.client, "model-activated", "1.5.0");
    depot.run(&["rollout", "loudness", "2.0.0", "--resume"]).expect_code(0);
    event_of(&mut bench.client, "model-activated", "2.0.0");
    // Who has it keeps it.
    depot.run(&["rollout", "loudness", "2.0.0", "--halt"]).expect_code(0);
    depot.run(&["rollout", "loudness", "1.5.0", "--percent", "50"]).expect_code(0);
    let record = bench.agent.home().record("loudness").expect("it serves");
    assert_eq!(record["active"]["version"], "2.0.0");
}

#[test]
fn a_rollout_that_fails_on_gateways_is_halted_by_whoever_watches_and_reaches_no_others() {
    let (depot, mut bench) = delivered(AT_ONCE);
    let mut client = Client::connect(&bench.broker);
    client.subscribe(&["limpet/1/gw-2/#", "limpet/1/gw-3/#"]);
    let text = format!("{}{}", local(&bench.broker), config(&depot, AT_ONCE));
    let second = Agent::start_as("gw-2", Home::empty(), &text);
    second.wait_for_model(&mut client, "loudness", "active");
    let wrong = Package::loudness_of("2.0.0", 0.3);
    wrong.put("golden.safetensors", &std::fs::read(Package::loudness().file("golden.safetensors")).unwrap());
    depot.run(&["publish", program::text_of(wrong.path()), "--percent", "0", "--no-prove"]).expect_code(0);
    depot.run(&["rollout", "loudness", "2.0.0", "--percent", "100"]).expect_code(0);
    let (url, keys) = (bench.broker.url(), depot.keys());
    let what = ["--halt", "loudness@2.0.0", "--halt-at", "2", "--keys", program::text_of(&keys)];
    let watched = program::run("limpet-lab", &[&["depot", "status", "--broker", &url][..], &what].concat());
    let watched = watched.expect_code(1);
    event_of(&mut bench.client, "model-rejected", "2.0.0");
    client.wait_for("the second's", |m| {
        m.topic == "limpet/1/gw-2/event" && m.json()["kind"] == "model-rejected" && m.json()["version"] == "2.0.0"
    });
    assert!(watched.stdout.contains("loudness 2.0.0: active on 0 of 2 (0 %), failed on 2"), "{}", watched.stdout);
    watched.expect_complaint(&["loudness 2.0.0 failed on 2 gateways (gw, gw-2)", "halted"]);
    assert_eq!(release(&depot, "2.0.0")["halted"], true);
    // A gateway that comes later takes what is good, and nothing else.
    let third = Agent::start_as("gw-3", Home::empty(), &text);
    let of_third = |m: &limpet_tests::Message| {
        m.topic == "limpet/1/gw-3/event" && ["model-activated", "model-rejected"].iter().any(|k| m.json()["kind"] == *k)
    };
    let first = client.wait_for("what the third does", of_third).json();
    assert_eq!((&first["kind"], &first["version"]), (&"model-activated".into(), &"1.0.0".into()));
    drop(third);
    let status = program::run("limpet-lab", &["depot", "status", "--broker", &bench.broker.url(), "--json"]);
    let status: Value = serde_json::from_str(&status.expect_code(0).stdout).expect("it is JSON");
    assert_eq!(status["gateways"].as_object().map(serde_json::Map::len), Some(3), "{status}");
    let newest = status["versions"].as_array().and_then(|all| all.iter().find(|v| v["version"] == "2.0.0"));
    assert_eq!(newest.map(|version| version["failed"].clone()), Some(2.into()), "{status}");
}

#[test]
fn a_rollout_is_halted_while_the_fleet_never_stops_talking() {
    let broker = Broker::start();
    let depot = Depot::on(&broker);
    let package = Package::loudness_of("2.0.0", 0.0);
    depot.run(&["publish", program::text_of(package.path()), "--percent", "50"]).expect_code(0);
    let mut client = Client::connect(&broker);
    let mut says = |gateway: &str, state: &str, done: Option<f64>| {
        let model = json!({"name": "loudness", "version": "2.0.0", "state": state, "progress": done});
        let models =
            json!({"v": 1, "type": "models", "agent": "1", "labels": {}, "clock": "synced", "models": [model]});
        client.publish_with(&format!("limpet/1/{gateway}/models"), true, models.to_string());
    };
    says("gw-1", "failed", None);
    let (url, keys) = (broker.url(), depot.keys());
    let what = ["--halt", "loudness@2.0.0", "--halt-at", "2", "--keys", program::text_of(&keys)];
    let mark = broker.mark();
    let arguments = [&["depot", "status", "--broker", &url][..], &what].concat();
    let mut watched = program::Running::start("limpet-lab", &arguments, &[]);
    broker.wait_subscribed_after(mark, "limpet/1/+/models");
    // Far more often than tables are shown; the second fails when a first table has been.
    let (begun, tick) = (Instant::now(), Duration::from_millis(20));
    let mut number = 0;
    while watched.runs() {
        assert!(begun.elapsed() < LIMIT, "it is not halted as long as somebody talks");
        if begun.elapsed() > Duration::from_secs(3) {
            says("gw-2", "failed", None);
        }
        number += 1;
        says(&format!("gw-{}", 3 + number % 50), "fetching", Some(f64::from(number % 100) / 100.0));
        std::thread::sleep(tick);
    }
    let watched = watched.end().expect_code(1);
    let watched = watched.expect_complaint(&["loudness 2.0.0 failed on 2 gateways (gw-1, gw-2)", "halted"]);
    assert_eq!(release(&depot, "2.0.0")["halted"], true);
    let tables = watched.stdout.matches("loudness 2.0.0: active on").count();
    assert!((2..=12).contains(&tables), "about one a second: {}", watched.stdout);
    assert!(watched.stdout.contains("failed on 1") && watched.stdout.contains("failed on 2"), "{}", watched.stdout);
}
