//! Gateway and publisher are killed at random moments of a delivery; scripts/soak does it 200 times.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use limpet_tests::agent::Home;
use limpet_tests::{Agent, Broker, Client, Depot, Message, Package, Random, program, repeats, seed};
use rustix::process::Signal;
use serde_json::Value;

use super::{LETTERS, Stored, Stream, asked, assert_clean, running, until_serving, whole};
use crate::depot::event_of;
use crate::{Bench, uplink};

/// The depot's newest metadata.
const TIMESTAMP: &str = "limpet/1/depot/meta/timestamp";
/// Chunks that a publisher has on the way at once: those may go out twice if it dies.
const AT_ONCE: usize = 8;
/// Messages of one publication, about.
const MESSAGES: usize = 28;

/// One gateway that gets version after version.
struct Line {
    depot: Depot,
    bench: Bench,
    config: String,
    random: Random,
    /// The newest version is 1.0.NUMBER.
    number: u32,
    stream: Stream,
}

fn version(number: u32) -> String {
    format!("1.0.{number}")
}

fn package(number: u32) -> Package {
    Package::laden(&version(number), (number % 5) as f32 * 0.01, LETTERS)
}

impl Line {
    fn start(what: &str, rate: &str) -> Self {
        let seed = seed();
        eprintln!("{what}: LIMPET_SEED={seed}");
        let (depot, mut bench) = running(Home::empty(), rate);
        let config = whole(&bench.broker.url(), &depot, rate);
        bench.client.subscribe(&["limpet/1/depot/#"]);
        let mut line = Self { depot, bench, config, random: Random::new(seed), number: 0, stream: Stream::named("a") };
        line.heard(3);
        line
    }

    /// Versions in the results of quiet samples.
    fn heard(&mut self, count: usize) -> BTreeSet<String> {
        self.stream.heard(&mut self.bench.client, count)
    }

    /// Publishes the next version and waits for its metadata; gives the publisher, and what it reads.
    fn publish_next(&mut self) -> (program::Running, Package) {
        self.bench.client.came_on(TIMESTAMP);
        self.number += 1;
        let package = package(self.number);
        let publishing = self.depot.start_publishing(&package);
        self.bench.client.wait_on(TIMESTAMP);
        (publishing, package)
    }

    /// How long publishing takes if nobody disturbs it.
    fn publishing(&mut self) -> Duration {
        self.number += 1;
        let package = package(self.number);
        let from = Instant::now();
        self.depot.publish(&package);
        let took = from.elapsed();
        event_of(&mut self.bench.client, "model-activated", &version(self.number));
        took
    }

    /// How long a delivery takes that nobody disturbs, from the metadata to the event.
    fn undisturbed(&mut self) -> Duration {
        let (publishing, _package) = self.publish_next();
        let from = Instant::now();
        event_of(&mut self.bench.client, "model-activated", &version(self.number));
        let took = from.elapsed();
        publishing.end().expect_code(0);
        took
    }
}

/// Where a delivery was when the gateway was killed.
fn phase(log: &[String], home: &Home, number: u32) -> &'static str {
    let version = version(number);
    let said = |word: &str| log.iter().any(|line| line.contains(word) && line.contains(&version));
    let record = home.record("loudness").unwrap_or(Value::Null);
    match () {
        () if said("serving") => "after",
        () if record["active"]["version"] == *version || said("proved") => "activation",
        () if said("is here") => "proof",
        () if Stored::of(home, &version).is_some() => "chunks",
        () => "metadata",
    }
}

#[test]
fn a_gateway_killed_at_any_moment_serves_the_old_or_the_new_version_at_once_and_the_delivery_ends() {
    let mut line = Line::start("gateway killed", "512KiB");
    let mut took = line.undisturbed().max(line.undisturbed());
    eprintln!("a delivery takes {took:.2?}");
    let mut phases: BTreeMap<&str, usize> = BTreeMap::new();
    for case in 0..repeats(120) {
        let aim = AIMS[case % AIMS.len()];
        let phase;
        (line, phase) = kill_gateway(line, case, aim, took.mul_f64(1.1));
        if aim == Aim::Anywhere {
            // The machine is not as fast all the while: about a sixth should come too late.
            took = took.mul_f64(if phase == "after" { 0.95 } else { 1.01 });
        }
        *phases.entry(phase).or_default() += 1;
    }
    eprintln!("killed in: {phases:?}");
    assert_hit(&phases, &["metadata", "proof", "activation"], &["chunks", "after"], repeats(120) == 120);
}

/// That each of the phases that are aimed at was hit, and in a soak the others, too.
#[track_caller]
fn assert_hit(phases: &BTreeMap<&str, usize>, aimed: &[&str], others: &[&str], soak: bool) {
    let missed = |of: &[&str]| of.iter().any(|phase| !phases.contains_key(phase));
    assert!(!(missed(aimed) || soak && missed(others)), "killed in: {phases:?}");
}

/// Where in a delivery the gateway is to be killed.
#[derive(Clone, Copy, PartialEq)]
enum Aim {
    /// At any moment of it.
    Anywhere,
    /// When its metadata is out.
    Metadata,
    /// When all of it is there.
    Proof,
    /// When it was proved: while the record is written and the sessions change.
    Activation,
}

/// In turns, since most of the time of a delivery goes into its chunks.
const AIMS: [Aim; 4] = [Aim::Anywhere, Aim::Activation, Aim::Metadata, Aim::Proof];
/// How long after what is waited for an aimed kill comes at most; the shortest phase takes longer.
const LATER: Duration = Duration::from_millis(8);

impl Aim {
    /// Waits for the moment in the delivery of a version whose metadata has just come out.
    fn wait(self, random: &mut Random, agent: &Agent, version: &str, within: Duration) {
        match self {
            Self::Anywhere | Self::Metadata => {}
            Self::Proof => drop(agent.wait_for_log(&["is here", version])),
            Self::Activation => drop(agent.wait_for_log(&["proved", version])),
        }
        std::thread::sleep(if self == Self::Anywhere { within } else { LATER }.mul_f64(random.share()));
    }
}

fn kill_gateway(mut line: Line, case: usize, aim: Aim, within: Duration) -> (Line, &'static str) {
    let (old, new) = (version(line.number), version(line.number + 1));
    // Sometimes the trial of the old version is over, sometimes it goes on.
    let windows = 1 + line.random.below(40);
    line.heard(windows);
    let (publishing, _package) = line.publish_next();
    let from = Instant::now();
    aim.wait(&mut line.random, &line.bench.agent, &new, within);
    let point = from.elapsed();
    let (home, log) = line.bench.agent.kill_and_read();
    let phase = phase(&log, &home, line.number);
    publishing.end().expect_code(0);
    assert_clean(&home, true);
    let stored = Stored::of(&home, &new);
    let here = stored.as_ref().map(|stored| stored.here.clone()).unwrap_or_default();
    line.bench.client.came_on(&uplink("models"));

    let mark = line.bench.broker.mark();
    let from = Instant::now();
    line.bench.agent = Agent::start_in(home, &line.config);
    line.bench.broker.wait_subscribed_after(mark, "plant/+/level");
    // Of streams that the process before this one never heard.
    Stream::named(&format!("knock{case}")).knock(&mut line.bench.client);
    line.stream = Stream::named(&format!("a{case}"));
    let versions = line.heard(3);
    let heard = from.elapsed();
    assert!(versions.iter().all(|version| *version == old || *version == new), "case {case}: {versions:?}");
    until_serving(&mut line.bench, &new);
    eprintln!(
        "case {case}: killed after {point:.3?} in {phase} with {} of {} chunks; {versions:?} after {heard:.2?}, \
         all after {:.2?}",
        here.len(),
        stored.as_ref().map_or(0, |stored| stored.all.len()),
        from.elapsed()
    );
    // By the broker's own count.
    let whole = Stored::of(line.bench.agent.home(), &new).expect("it serves");
    let fetched: BTreeSet<String> =
        asked(&line.bench.broker, mark).into_iter().filter(|chunk| whole.all.contains(chunk)).collect();
    let again: Vec<&String> = fetched.intersection(&here).collect();
    assert!(again.is_empty(), "case {case}: verified before, and fetched again: {again:?}");
    if let Some(stored) = stored {
        assert_eq!(fetched, stored.missing(), "case {case}");
    }
    assert!(line.bench.agent.log_with(&["proving", &old]).is_empty(), "what served was proved before");
    assert_clean(line.bench.agent.home(), false);
    (line, phase)
}

#[test]
fn a_gateway_killed_at_any_moment_of_its_first_delivery_goes_on_with_it() {
    let seed = seed();
    eprintln!("gateway killed in its first delivery: LIMPET_SEED={seed}");
    let mut random = Random::new(seed);
    let broker = Broker::start();
    let depot = Depot::on(&broker);
    let config = whole(&broker.url(), &depot, "512KiB");
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/gw/#"]);
    depot.publish(&package(1));
    let from = Instant::now();
    let agent = Agent::start_in(Home::empty(), &config);
    let mut bench = Bench { broker, client, agent };
    until_serving(&mut bench, &version(1));
    let took = from.elapsed();
    let mut phases: BTreeMap<&str, usize> = BTreeMap::new();
    for case in 0..repeats(30) {
        let from = Instant::now();
        bench.agent = Agent::start_in(Home::empty(), &config);
        let aim = [Aim::Anywhere, Aim::Activation, Aim::Proof][case % 3];
        aim.wait(&mut random, &bench.agent, &version(1), took.mul_f64(1.1));
        let point = from.elapsed();
        let (home, log) = bench.agent.kill_and_read();
        let phase = phase(&log, &home, 1);
        *phases.entry(phase).or_default() += 1;
        assert_clean(&home, true);
        let here = Stored::of(&home, &version(1)).map(|stored| stored.here).unwrap_or_default();
        bench.client.came_on(&uplink("models"));
        let mark = bench.broker.mark();
        bench.agent = Agent::start_in(home, &config);
        until_serving(&mut bench, &version(1));
        eprintln!("case {case}: killed after {point:.3?} in {phase} with {} chunks", here.len());
        let all = Stored::of(bench.agent.home(), &version(1)).expect("it serves").all;
        let fetched: BTreeSet<String> = asked(&bench.broker, mark).into_iter().filter(|c| all.contains(c)).collect();
        assert_eq!(
            fetched,
            all.difference(&here).cloned().collect(),
            "case {case}: what was missing, and nothing else"
        );
        Stream::named("knock").knock(&mut bench.client);
        assert_clean(bench.agent.home(), false);
    }
    eprintln!("killed in: {phases:?}");
    assert_hit(&phases, &["proof", "activation"], &["chunks"], repeats(30) == 30);
}

#[test]
fn a_publisher_killed_at_any_moment_leaves_the_old_or_the_new_version_and_the_command_repeated_ends_well() {
    let mut line = Line::start("publisher killed", "64MiB");
    let took = (line.publishing() + line.publishing()) / 2;
    eprintln!("publishing takes {took:.2?}");
    let mut phases: BTreeMap<&str, usize> = BTreeMap::new();
    for case in 0..repeats(80) {
        *phases.entry(kill_publisher(&mut line, case, took)).or_default() += 1;
    }
    eprintln!("killed in: {phases:?}");
    assert_hit(&phases, &["metadata", "after"], &["nothing sent", "chunks"], repeats(80) == 80);
}

fn kill_publisher(line: &mut Line, case: usize, within: Duration) -> &'static str {
    let (old, new) = (version(line.number), version(line.number + 1));
    line.number += 1;
    let package = package(line.number);
    sent(&mut line.bench);
    let mut publishing = line.depot.start_publishing(&package);
    let mut before = BTreeSet::new();
    // Every second time when the first of the metadata came, or the last: those are few, and one soon after the other.
    let aim: Option<fn(&str) -> bool> = match case % 4 {
        1 => Some(is_metadata),
        3 => Some(|name| name == "meta/timestamp"),
        _ => None,
    };
    // Else before anything was sent, or after so many messages.
    let messages = line.random.below(MESSAGES + MESSAGES / 4).saturating_sub(MESSAGES / 4);
    if messages == 0 && aim.is_none() {
        std::thread::sleep(within.mul_f64(line.random.share()));
    }
    let enough = |before: &BTreeSet<String>| match aim {
        Some(wanted) => before.iter().any(|name| wanted(name)),
        None => before.len() >= messages,
    };
    while !enough(&before) && publishing.runs() {
        let message = line.bench.client.try_wait_for(Duration::from_millis(1), |m| name(m).is_some());
        before.extend(message.as_ref().and_then(name));
    }
    publishing.signal(Signal::KILL);
    publishing.end();
    let versions = line.heard(3);
    assert!(versions.iter().all(|version| *version == old || *version == new), "case {case}: {versions:?}");
    // What was published by then came before the results did.
    before.extend(sent(&mut line.bench));
    let phase = match () {
        () if before.contains("meta/timestamp") => "after",
        () if before.iter().any(|name| is_metadata(name)) => "metadata",
        () if !before.is_empty() => "chunks",
        () => "nothing sent",
    };
    line.depot.publish(&package);
    event_of(&mut line.bench.client, "model-activated", &new);
    let again = sent(&mut line.bench).intersection(&before).filter(|name| name.starts_with("chunk/")).count();
    eprintln!("case {case}: killed in {phase}; {} objects sent before, {again} chunks twice", before.len());
    assert!(again <= AT_ONCE, "case {case}: {again} chunks went out twice");
    line.depot.run(&["verify"]).expect_code(0);
    assert_clean(line.bench.agent.home(), false);
    phase
}

/// Whether an object of this name is published after all chunks.
fn is_metadata(name: &str) -> bool {
    name.starts_with("meta/") || name.starts_with("target/")
}

/// The object that a message of the depot holds.
fn name(message: &Message) -> Option<String> {
    message.topic.strip_prefix("limpet/1/depot/").map(str::to_owned)
}

/// Names of what was published since the last call.
fn sent(bench: &mut Bench) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    while let Some(message) = bench.client.try_wait_for(Duration::ZERO, |m| name(m).is_some()) {
        names.extend(name(&message));
    }
    names
}
