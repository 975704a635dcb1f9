//! End to end: the real binaries, real brokers, and what a user of them would see.

mod access;
mod bad_configuration;
mod bad_input;
mod check;
mod delivery;
mod demo;
mod play;
mod proof;
mod results;
mod status;
mod wakeword;

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
        let broker = Broker::start();
        let mut client = Client::connect(&broker);
        client.subscribe(&["limpet/1/#"]);
        let agent = Agent::start(&format!("{}{config}", local(&broker)));
        agent.wait_for_model(&mut client, model, "active");
        broker.wait_subscribed(filter);
        Self { broker, client, agent }
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
