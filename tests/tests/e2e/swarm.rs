//! Simulated gateways of `limpet-lab depot swarm`: they take what a depot offers, refuse what is not signed for them, and
//! show themselves as gateways do.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;

use limpet_tests::program::{self, Outcome, text_of};
use limpet_tests::{Broker, Client, Depot, Package};
use serde_json::Value;

/// How many there are.
const GATEWAYS: usize = 5;

/// Runs five gateways that want `loudness`, to their end.
fn swarm(broker: &Broker, root: &Path, more: &[&str]) -> Outcome {
    let (url, gateways) = (broker.url(), GATEWAYS.to_string());
    let arguments = ["depot", "swarm", "--gateways", &gateways, "--broker", &url, "--root", text_of(root)];
    let arguments = [&arguments[..], &["--model", "loudness@^1", "--json"], more].concat();
    program::run("limpet-lab", &arguments)
}

#[track_caller]
fn report(outcome: &Outcome) -> Value {
    serde_json::from_str(&outcome.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", outcome.stdout, outcome.stderr))
}

/// Bytes of the chunks of `loudness` as the publisher's list has them.
#[track_caller]
fn stored_bytes(depot: &Depot) -> u64 {
    let listed: Value =
        serde_json::from_str(&depot.run(&["list", "--json"]).expect_code(0).stdout).expect("it is JSON");
    listed["models"][0]["stored_bytes"].as_u64().expect("a number of bytes")
}

#[test]
fn gateways_that_wait_take_a_version_when_it_is_published_and_show_it() {
    let broker = Broker::start();
    let depot = Depot::on(&broker);
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/+/models"]);
    let report = thread::scope(|scope| {
        let gateways = scope.spawn(|| swarm(&broker, &depot.root(), &[]));
        // Each has looked at a depot without versions, and waits.
        let mut waiting = BTreeSet::new();
        while waiting.len() < GATEWAYS {
            waiting.insert(client.wait_for("a gateway", |message| message.topic.ends_with("/models")).topic);
        }
        depot.publish(&Package::loudness());
        report(&gateways.join().expect("the thread ends").expect_code(0))
    });
    assert_eq!((&report["active"], &report["failed"]), (&GATEWAYS.into(), &Value::Array(vec![])));
    // Each fetched all chunks once, and received them beside metadata and index.
    let chunks = GATEWAYS as u64 * stored_bytes(&depot);
    assert_eq!(report["chunk_bytes"].as_u64(), Some(chunks));
    assert!(report["bytes"].as_u64().is_some_and(|bytes| bytes > chunks), "{report}");
    assert!(report["first_s"].as_f64() <= report["median_s"].as_f64(), "{report}");
    assert!(report["median_s"].as_f64() <= report["last_s"].as_f64(), "{report}");
    assert!(report["not_done"].as_str().is_some_and(|said| said.contains("no proof")), "{report}");
    let status = program::run("limpet-lab", &["depot", "status", "--broker", &broker.url(), "--once"]);
    let shown = status.expect_code(0).stdout;
    assert!(shown.contains("loudness 1.0.0: active on 5 of 5 (100 %), failed on 0"), "{shown}");
}

#[test]
fn gateways_with_another_root_take_nothing_and_say_why() {
    let broker = Broker::start();
    let depot = Depot::on(&broker);
    depot.publish(&Package::loudness());
    let (other, state) = (Depot::in_folder(), tempfile::tempdir().expect("a temporary folder can be made"));
    let report = report(&swarm(&broker, &other.root(), &["--state", text_of(state.path())]).expect_code(1));
    assert_eq!((&report["active"], &report["chunk_bytes"]), (&0.into(), &0.into()));
    let failed = report["failed"].as_array().expect("a list");
    assert_eq!(failed.len(), GATEWAYS);
    for complaint in failed {
        let why = complaint["why"].as_str().expect("a sentence");
        assert!(why.contains("timestamp") && why.contains(&broker.url()), "{why}");
    }
    let chunks = state.path().join("swarm-0/depot/chunks");
    let folders =
        std::fs::read_dir(chunks).expect("the store is there").map(|folder| folder.expect("it can be read").path());
    assert_eq!(folders.flat_map(|folder| std::fs::read_dir(folder).expect("it can be read")).count(), 0);
}

#[test]
fn gateways_that_have_a_version_fetch_nothing_again() {
    let broker = Broker::start();
    let depot = Depot::on(&broker);
    depot.publish(&Package::loudness());
    let state = tempfile::tempdir().expect("a temporary folder can be made");
    let kept = ["--state", text_of(state.path())];
    let first = report(&swarm(&broker, &depot.root(), &kept).expect_code(0));
    assert_eq!(first["chunk_bytes"].as_u64(), Some(GATEWAYS as u64 * stored_bytes(&depot)));
    let again = report(&swarm(&broker, &depot.root(), &kept).expect_code(0));
    assert_eq!((&again["active"], &again["chunk_bytes"]), (&GATEWAYS.into(), &0.into()));
}

#[test]
fn arguments_that_make_no_fleet_are_refused() {
    let broker = Broker::start();
    let depot = Depot::on(&broker);
    swarm(&broker, &depot.root(), &["--id-prefix", "Hall 3/"])
        .expect_code(64)
        .expect_complaint(&["--id-prefix", "Hall"]);
    swarm(&broker, Path::new("/nowhere/root.json"), &[])
        .expect_code(1)
        .expect_complaint(&["/nowhere/root.json", "init"]);
}
