//! End to end: the real binaries, real brokers, and what a user of them would see.

mod access;
mod bad_configuration;
mod bad_input;
mod bench;
mod budgets;
mod chaos;
mod check;
mod delivery;
mod demo;
mod depot;
mod exec;
mod hang;

mod link;
mod local_api;
mod outbox;
mod pack;
mod play;
mod proof;
mod remote;
mod results;
mod service;
mod status;
mod swap;
mod swarm;
mod tls;
mod unit;
mod wakeword;

use limpet_tests::agent::Home;
use limpet_tests::{Agent, Broker, Client, Package};
use limpet_wire::id::ResultId;
use serde_json::Value;

/// Topics of the gateway that all tests use.
fn uplink(rest: &str) -> String {
    format!("limpet/1/gw/{rest}")
}

/// One broker, named `local`.
fn local(broker: &Broker) -> String {
    format!("[broker.local]\nurl = \"{}\"\n", broker.url())
}

/// A source of scores as JSON arrays on `plant/{stream}/scores`, and a pipeline `levels` over them that publishes
/// every result unless `pipeline` says otherwise.
fn levels(package: &Package, source: &str, pipeline: &str) -> String {
    let publish = if pipeline.contains("publish") { "" } else { "publish = \"every\"\n" };
    format!(
        r#"[[source]]
name = "scores"
broker = "local"
topic = "plant/{{stream}}/scores"
codec = {{ json = {{}} }}
{source}
[[pipeline]]
name = "levels"
source = "scores"
model = "{}"
deadline = "30s"
queue = {{ depth = 1000, policy = "drop_oldest" }}
{publish}{pipeline}
"#,
        package.display()
    )
}

/// A source of samples as raw floats after a sequence number on `plant/{stream}/level`, and a pipeline `sound` over
/// them that publishes every result.
fn sound(package: &Package, source: &str) -> String {
    format!(
        r#"[[source]]
name = "level"
broker = "local"
topic = "plant/{{stream}}/level"
codec = {{ raw = {{ type = "f32", header = [{{ sequence = "u32le" }}] }} }}
max_gap = "1h"
{source}
[[pipeline]]
name = "sound"
source = "level"
model = "{}"
deadline = "30s"
queue = {{ depth = 1000, policy = "drop_oldest" }}
publish = "every"
"#,
        package.display()
    )
}

/// A source of JSON arrays on `plant/{stream}/NAME` and a pipeline over them, both called `name`, that publishes every
/// result.
fn feed(name: &str, package: &Package, source: &str, pipeline: &str) -> String {
    levels(package, source, pipeline)
        .replace("name = \"scores\"", &format!("name = \"{name}\""))
        .replace("source = \"scores\"", &format!("source = \"{name}\""))
        .replace("name = \"levels\"", &format!("name = \"{name}\""))
        .replace("plant/{stream}/scores", &format!("plant/{{stream}}/{name}"))
}

/// A message for [`sound`]: a sequence number and samples.
fn samples(sequence: u32, values: &[f32]) -> Vec<u8> {
    let values = values.iter().flat_map(|value| value.to_le_bytes());
    sequence.to_le_bytes().into_iter().chain(values).collect()
}

/// An agent with a model that serves, subscribed to what it wants.
struct Bench {
    broker: Broker,
    client: Client,
    agent: Agent,
}

impl Bench {
    /// Starts everything and waits until samples would be heard and scored. `config` comes after the broker `local`.
    #[track_caller]
    fn start(config: &str, filter: &str, model: &str) -> Self {
        Self::start_in(Home::proved(), config, filter, model)
    }

    /// [`Bench::start`] where an agent may have run before.
    #[track_caller]
    fn start_in(home: Home, config: &str, filter: &str, model: &str) -> Self {
        let mut bench = Self::unready(home, config);
        bench.agent.wait_for_model(&mut bench.client, model, "active");
        bench.broker.wait_subscribed(filter);
        bench
    }

    /// [`Bench::start_in`] that waits for nothing.
    #[track_caller]
    fn unready(home: Home, config: &str) -> Self {
        let broker = Broker::start();
        let mut client = Client::connect(&broker);
        client.subscribe(&["limpet/1/#"]);
        let agent = Agent::start_in(home, &format!("{}{config}", local(&broker)));
        Self { broker, client, agent }
    }

    /// Ends the agent and starts another in its place, with another configuration, when its model serves.
    #[track_caller]
    fn restart(self, config: &str, filter: &str, model: &str) -> Self {
        let (_, home, _) = self.agent.stop();
        drop(self.client);
        Self::start_in(home, config, filter, model)
    }

    /// With [`levels`] over [`Package::scores`].
    #[track_caller]
    fn levels(source: &str, pipeline: &str) -> Self {
        let package = Package::scores();
        Self::start(&levels(&package, source, pipeline), "plant/+/scores", "scores")
    }

    /// With [`sound`] over [`Package::loudness`].
    #[track_caller]
    fn sound(source: &str) -> Self {
        let package = Package::loudness();
        Self::start(&sound(&package, source), "plant/+/level", "loudness")
    }

    /// Sends scores for [`levels`].
    #[track_caller]
    fn score(&mut self, stream: &str, scores: [f64; 3]) {
        self.client.publish(&format!("plant/{stream}/scores"), serde_json::json!(scores).to_string());
    }

    /// Sends scores for a [`feed`], and gives the result.
    #[track_caller]
    fn ask(&mut self, feed: &str, scores: [f64; 3]) -> Value {
        self.client.publish(&format!("plant/a/{feed}"), serde_json::json!(scores).to_string());
        self.client.wait_on(&uplink(&format!("result/{feed}/a"))).json()
    }

    /// The next result of [`levels`] for a stream.
    #[track_caller]
    fn result(&mut self, stream: &str) -> Value {
        self.client.wait_on(&uplink(&format!("result/levels/{stream}"))).json()
    }

    /// The next result of [`sound`] for a stream.
    #[track_caller]
    fn heard(&mut self, stream: &str) -> Value {
        self.client.wait_on(&uplink(&format!("result/sound/{stream}"))).json()
    }
}

/// The next event of a kind.
#[track_caller]
fn event(client: &mut Client, kind: &str) -> Value {
    let topic = uplink("event");
    client.wait_for(kind, |message| message.topic == topic && message.json()["kind"] == kind).json()
}

/// An entry of a list in the status, by its name.
#[track_caller]
fn named<'a>(status: &'a Value, list: &str, name: &str) -> &'a Value {
    let entries = status[list].as_array().unwrap_or_else(|| panic!("no {list} in {status}"));
    entries.iter().find(|entry| entry["name"] == name).unwrap_or_else(|| panic!("no {name} in {entries:#?}"))
}

/// That a text holds all of `words`.
#[track_caller]
fn assert_says(text: &Value, words: &[&str]) {
    let text = text.as_str().unwrap_or_else(|| panic!("{text} is no text"));
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
}

/// Run and sequence number of a result.
#[track_caller]
fn serial(result: &Value) -> (u64, u64) {
    let id = result["id"].as_str().expect("a published result has an id");
    let serial = ResultId::parse(id).expect("ids have the form of the contract").serial;
    (serial.run, serial.seq)
}

/// That two scores are the same but for rounding.
#[track_caller]
fn assert_close(found: &Value, expected: f64) {
    let found = found.as_f64().unwrap_or_else(|| panic!("{found} is no number"));
    assert!((found - expected).abs() < 1e-4, "found {found}, expected {expected}");
}
