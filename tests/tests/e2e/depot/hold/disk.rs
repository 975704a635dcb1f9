//! A disk with too little room for a delivery, and one that fills up under it.

use limpet_tests::{Message, Package, SmallDisk};
use serde_json::Value;

use super::{LETTERS, Stored, Stream, asked, assert_clean, running, until, until_fetched, until_serving};
use crate::depot::event_of;
use crate::swap::Flow;
use crate::{Bench, assert_says, uplink};

/// Size of the disk, in KiB; a twentieth of it stays free for others.
const DISK: usize = 8 << 10;

/// The next event that a delivery was refused for want of room.
fn refused(bench: &mut Bench, version: &str) -> Value {
    let topic = uplink("event");
    let about = |m: &Message| {
        m.topic == topic
            && m.json()["kind"] == "depot-refused"
            && m.json()["message"].as_str().is_some_and(|text| text.contains(version))
    };
    bench.client.wait_for("the refusal", about).json()
}

/// The number in front of some words.
fn number(text: &str, words: &str) -> u64 {
    let (before, _) = text.split_once(words).unwrap_or_else(|| panic!("no {words:?} in: {text}"));
    let digits = before.rsplit(' ').next().expect("a split has a last part");
    digits.parse().unwrap_or_else(|error| panic!("{digits}: {error} in: {text}"))
}

#[test]
fn a_disk_without_room_refuses_before_it_is_full_and_goes_on_when_there_is_room() {
    let Some(disk) = SmallDisk::mount(DISK) else { return };
    let (depot, mut bench) = running(disk.home(), "96KiB");
    let keeps = (DISK as u64) * 1024 / 20;
    // Room for a part of it.
    let ballast = disk.ballast(disk.free() - keeps - 150_000);
    depot.publish(&Package::laden("2.0.0", 0.01, LETTERS));
    let refused_before = refused(&mut bench, "2.0.0");
    let text = refused_before["message"].as_str().expect("it is text");
    assert_says(&refused_before["message"], &["loudness 2.0.0 is not delivered yet", "make room on it"]);
    let [needs, has, kept] = [" more bytes", " left", " stay free"].map(|words| number(text, words));
    assert!(needs + kept > has && needs > 250_000 && kept == keeps, "{text}");
    assert!(Stored::of(bench.agent.home(), "2.0.0").is_none(), "nothing was fetched");
    let mut flow = Flow::start(&mut bench, &[("1.0.0", 0.0), ("2.0.0", 0.01), ("3.0.0", 0.02)]);
    flow.until(&mut bench, "1.0.0", 20);
    std::fs::remove_file(ballast).expect("it was written");
    event_of(&mut bench.client, "model-activated", "2.0.0");
    flow.until(&mut bench, "2.0.0", 20);

    // The disk fills up under the next one.
    let mark = bench.broker.mark();
    depot.publish(&Package::laden("3.0.0", 0.02, LETTERS));
    until_fetched(&mut bench.client, "3.0.0", 0.3);
    let filling = disk.fill();
    let full = refused(&mut bench, "3.0.0");
    assert_says(&full["message"], &["loudness 3.0.0 is not delivered yet", "the disk is full", "make room"]);
    flow.until(&mut bench, "2.0.0", 20);
    assert_clean(bench.agent.home(), true);
    let stored = Stored::of(bench.agent.home(), "3.0.0").expect("it is being fetched");
    assert!(!stored.here.is_empty() && !stored.missing().is_empty());
    std::fs::remove_file(filling).expect("it was written");
    // New metadata makes it look at once; without it that takes up to half a minute.
    let again = bench.broker.mark();
    depot.run(&["refresh"]).expect_code(0);
    event_of(&mut bench.client, "model-activated", "3.0.0");
    flow.until(&mut bench, "3.0.0", 20);
    let fetched: Vec<String> = asked(&bench.broker, again);
    assert!(fetched.iter().all(|chunk| !stored.here.contains(chunk)), "verified before, and fetched again");
    assert!(asked(&bench.broker, mark).len() >= stored.all.len() - stored.here.len());
    assert_clean(bench.agent.home(), false);
}

#[test]
fn a_disk_that_fills_up_during_the_proof_keeps_what_serves_and_the_version_comes_when_there_is_room() {
    let Some(disk) = SmallDisk::mount(DISK) else { return };
    let (depot, mut bench) = running(disk.home(), "64MiB");
    // Its proof takes far longer than the disk needs to fill up.
    depot.publish(&Package::laborious("2.0.0", 0.01));
    event_of(&mut bench.client, "model-staged", "2.0.0");
    let filling = disk.fill();
    assert!(bench.agent.log_with(&["proved", "2.0.0"]).is_empty(), "the disk was full before the proof was over");
    let full = refused(&mut bench, "2.0.0");
    assert_says(&full["message"], &["loudness 2.0.0 is not ", " yet, what runs goes on", "make room"]);
    bench.agent.wait_for_log(&["proved", "2.0.0"]);
    let mut stream = Stream::named("a");
    let versions = stream.heard(&mut bench.client, 20);
    assert_eq!(versions, ["1.0.0".to_owned()].into(), "what served goes on");
    assert_clean(bench.agent.home(), false);
    std::fs::remove_file(filling).expect("it was written");
    until_serving(&mut bench, "2.0.0");
    until("version 2.0.0", || stream.heard(&mut bench.client, 5).contains("2.0.0").then_some(()));
    bench.agent.wait_for_model(&mut bench.client, "loudness", "active");
    assert_clean(bench.agent.home(), false);
}
