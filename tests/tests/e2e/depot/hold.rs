//! It holds on: deliveries while processes die, brokers forget, wires break and disks fill up.

mod brokers;
mod disk;
mod kill;
mod next;
mod wire;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use limpet_tests::agent::Home;
use limpet_tests::package::HOP;
use limpet_tests::{Agent, Broker, Client, Depot, LIMIT, Message, Package, program};
use limpet_wire::depot::{Hex, Index};
use serde_json::Value;

use crate::{Bench, samples, uplink};

/// Letters in a [`Package::laden`]: some twenty chunks, 300 KB as they are stored.
const LETTERS: usize = 400_000;

/// Everything but the broker of a pipeline `sound` over the depot's model, which is fetched no faster than `rate`.
fn config(depot: &Depot, rate: &str, pipeline: &str) -> String {
    super::config(depot, pipeline).replace("rate = \"64MiB\"", &format!("rate = \"{rate}\""))
}

/// The broker `local` at some URL.
fn at(url: &str) -> String {
    format!("[broker.local]\nurl = \"{url}\"\n")
}

/// The broker at some URL, and the pipeline with a trial that ends soon: everything.
fn whole(url: &str, depot: &Depot, rate: &str) -> String {
    format!("{}{}", at(url), config(depot, rate, super::SHORT))
}

/// An agent in which version 1.0.0 was delivered and serves; `config` is everything.
fn serving(broker: Broker, depot: &Depot, home: Home, config: &str) -> Bench {
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/gw/#"]);
    let agent = Agent::start_in(home, config);
    depot.publish(&Package::loudness());
    let mut bench = Bench { broker, client, agent };
    bench.agent.wait_for_model(&mut bench.client, "loudness", "active");
    bench
}

/// The same with a broker and a depot of its own, `rate` bytes a second, heard by its agent.
fn running(home: Home, rate: &str) -> (Depot, Bench) {
    let broker = Broker::start();
    let depot = Depot::on(&broker);
    let config = whole(&broker.url(), &depot, rate);
    let bench = serving(broker, &depot, home, &config);
    bench.broker.wait_subscribed("plant/+/level");
    (depot, bench)
}

/// What the local depot has of one version.
struct Stored {
    /// Digests of all of its chunks.
    all: BTreeSet<String>,
    /// Of those that are there.
    here: BTreeSet<String>,
}

impl Stored {
    /// None if not even its index is there.
    fn of(home: &Home, version: &str) -> Option<Self> {
        let path = home.state().join(format!("depot/indexes/loudness-{version}.index"));
        let file = std::fs::read(path).ok()?;
        let (bytes, _digest) = file.split_last_chunk::<32>().expect("an index that is there is whole");
        let index = Index::from_bytes(bytes).expect("an index that is there is whole");
        let all: BTreeSet<String> = index.chunks.iter().map(|chunk| Hex(&chunk.stored).to_string()).collect();
        let name = |path: &std::path::PathBuf| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let here = home.chunks().iter().filter_map(name).filter(|name| all.contains(name)).collect();
        Some(Self { all, here })
    }

    fn missing(&self) -> BTreeSet<String> {
        self.all.difference(&self.here).cloned().collect()
    }
}

/// Chunks that the gateway asked its broker for after a mark, by the broker's own log, each as often as it did.
fn asked(broker: &Broker, mark: usize) -> Vec<String> {
    let chunk = |filter: String| filter.strip_prefix("limpet/1/depot/chunk/").map(str::to_owned);
    broker.subscribed_after(mark, "limpet-gw").into_iter().filter_map(chunk).collect()
}

/// Waits until so much of a version was fetched.
#[track_caller]
fn until_fetched(client: &mut Client, version: &str, share: f64) {
    let there = |model: &Value| {
        model["version"] == version && model["state"] == "fetching" && model["progress"].as_f64() >= Some(share)
    };
    let topic = uplink("models");
    let wanted =
        |m: &Message| m.topic == topic && m.json()["models"].as_array().is_some_and(|models| models.iter().any(there));
    client.wait_for(&format!("{share} of version {version}"), wanted);
}

/// Waits until a version serves, on trial or not, by the retained `models` message and the record.
#[track_caller]
fn until_serving(bench: &mut Bench, version: &str) {
    let serves =
        |model: &Value| model["version"] == version && matches!(model["state"].as_str(), Some("active" | "trial"));
    let topic = uplink("models");
    let wanted =
        |m: &Message| m.topic == topic && m.json()["models"].as_array().is_some_and(|models| models.iter().any(serves));
    bench.client.wait_for(&format!("version {version} that serves"), wanted);
    let record = bench.agent.home().record("loudness").expect("it serves");
    assert_eq!(record["active"]["version"], version);
}

/// That `limpet store check` finds nothing wrong; with `missing`, nothing but chunks that have not come yet.
#[track_caller]
fn assert_clean(home: &Home, missing: bool) {
    let config = home.path().join("limpet.toml");
    let checked = program::run("limpet", &["store", "check", "--config", program::text_of(&config)]);
    assert!(checked.stdout.contains("chunks were read: 0 damaged"), "{}{}", checked.stdout, checked.stderr);
    if !missing {
        checked.expect_code(0);
    }
}

/// A stream of quiet samples for the pipeline `sound`.
struct Stream {
    name: String,
    /// Of the next message.
    sequence: u32,
}

impl Stream {
    /// One that has sent nothing yet.
    fn named(name: &str) -> Self {
        Self { name: name.to_owned(), sequence: 0 }
    }

    fn send(&mut self, client: &mut Client) {
        let level = (self.sequence % 30) as f32 / 100.0;
        client.publish(&format!("plant/{}/level", self.name), samples(self.sequence, &[level; HOP]));
        self.sequence += 1;
    }

    /// Sends messages until a result comes: for a moment from which on samples are heard and scored, which nobody tells.
    #[track_caller]
    fn knock(&mut self, client: &mut Client) {
        let topic = uplink(&format!("result/sound/{}", self.name));
        until("a result", || {
            self.send(client);
            client.try_wait_for(Duration::from_millis(20), |message| message.topic == topic)
        });
    }

    /// Sends messages until there are `count` more windows; gives the versions in their results, which come in order and
    /// leave none out.
    #[track_caller]
    fn heard(&mut self, client: &mut Client, count: usize) -> BTreeSet<String> {
        if self.sequence == 0 {
            // The first completes no window.
            self.send(client);
        }
        let windows = self.sequence - 1..self.sequence - 1 + count as u32;
        (0..count).for_each(|_| self.send(client));
        let topic = uplink(&format!("result/sound/{}", self.name));
        let mut results = Vec::new();
        while results.len() < count {
            results.extend(client.wait_on(&topic).json_lines());
        }
        let first = |result: &Value| result["window"]["first"].as_u64().map(|first| first as usize / HOP);
        let found: Vec<_> = results.iter().filter_map(first).collect();
        assert_eq!(found, windows.map(|window| window as usize).collect::<Vec<_>>(), "every window once, in order");
        let version = |result: &Value| result["version"].as_str().expect("a result names its version").to_owned();
        results.iter().map(version).collect()
    }
}

/// Waits for something that nobody announces.
#[track_caller]
pub(super) fn until<T>(what: &str, mut there: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(found) = there() {
            return found;
        }
        assert!(Instant::now() < end, "{what} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}
