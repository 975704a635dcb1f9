//! The JSON messages beside results: status, models, events and telemetry.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::VERSION;
use crate::dropped::Reason;
use crate::result::Clock;

/// Types that know how they are called on the wire.
pub trait Message: Serialize {
    /// Value of `"type"`.
    const TYPE: &'static str;

    /// The message as one JSON object.
    fn to_json(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Envelope<'a, T: ?Sized> {
            v: u8,
            r#type: &'static str,
            #[serde(flatten)]
            body: &'a T,
        }
        serde_json::to_vec(&Envelope { v: VERSION, r#type: Self::TYPE, body: self })
            .expect("writing plain values into memory cannot fail")
    }
}

/// Whether the gateway is connected: retained, and as the Last Will with `offline`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// `online` or `offline`.
    pub state: Presence,
    /// Random, drawn for each connection; commands must carry it.
    pub session: String,
    /// When this connection was made, RFC 3339; null where the time is not known.
    pub connected_at: Option<String>,
}

/// Presence of a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    /// Connected.
    Online,
    /// Gone.
    Offline,
}

impl Message for Status {
    const TYPE: &'static str = "status";
}

/// The models that a gateway has: retained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Models {
    /// Version of the agent.
    pub agent: String,
    /// Labels of the gateway.
    pub labels: BTreeMap<String, String>,
    /// How far its clock can be trusted.
    pub clock: Clock,
    /// One entry a model, ordered by name.
    pub models: Vec<ModelState>,
    /// What is in effect of signed configurations; left out where there never was one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub configuration: Option<ConfigurationState>,
}

/// The signed configuration of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationState {
    /// The target that it is, such as `config.press-07`, or `file` for the gateway's own file alone.
    pub name: String,
    /// SHA-256 of its text in hexadecimal digits; empty for the file.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub sha256: String,
    /// How it is in effect.
    pub state: ConfigurationPhase,
    /// Which other one waits, was rejected or taken back since, and why.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub failure: Option<String>,
}

/// How a signed configuration is in effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConfigurationPhase {
    /// It is watched.
    Trial,
    /// It passed.
    Active,
}

impl ConfigurationPhase {
    /// How it is written.
    pub fn word(self) -> &'static str {
        match self {
            Self::Trial => "trial",
            Self::Active => "active",
        }
    }
}

impl Message for Models {
    const TYPE: &'static str = "models";
}

/// One model on a gateway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelState {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it is doing.
    pub state: ModelPhase,
    /// The engine that runs it, once one was chosen.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub engine: Option<String>,
    /// The variant that runs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub variant: Option<String>,
    /// Share done, 0 to 1, of a state that takes time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub progress: Option<f32>,
    /// Share of the compared windows on which a version on trial agreed with the other one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub agreement: Option<f32>,
    /// Why it failed last.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub failure: Option<String>,
}

/// What a model is doing on a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelPhase {
    /// Its package is on the way.
    Fetching,
    /// Its golden vectors are being run.
    Proving,
    /// It runs beside the active version without being heard.
    Shadow,
    /// It serves, watched.
    Trial,
    /// It serves.
    Active,
    /// Its publisher took it back.
    Withdrawn,
    /// It does not serve.
    Failed,
}

impl ModelPhase {
    /// Whether its results are published.
    pub fn serves(self) -> bool {
        matches!(self, Self::Trial | Self::Active | Self::Withdrawn)
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// `<gateway>/event/<run>-<seq>`.
    pub id: String,
    /// The gateway.
    pub gateway: String,
    /// When, RFC 3339; null where the time is not known.
    pub at: Option<String>,
    /// A word for programs, such as `model-refused`.
    pub kind: String,
    /// A sentence for people.
    pub message: String,
    /// What it is about: `pipeline`, `stream`, `model`, `source`, `broker`, `topic`.
    #[serde(flatten, deserialize_with = "words")]
    pub about: BTreeMap<String, String>,
}

/// The keys of an event that are words, without those of every message.
fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let all = BTreeMap::<String, serde_json::Value>::deserialize(deserializer)?;
    let word = |(key, value): (String, serde_json::Value)| match value {
        serde_json::Value::String(text) if key != "type" => Some((key, text)),
        _ => None,
    };
    Ok(all.into_iter().filter_map(word).collect())
}

impl Message for Event {
    const TYPE: &'static str = "event";
}

/// What a gateway has stored and dropped, so that who receives its results can tell what is lost: retained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// The gateway.
    pub gateway: String,
    /// When, RFC 3339; null where the time is not known.
    pub at: Option<String>,
    /// One entry a stream of which something waits or was dropped, and those of the last runs besides.
    pub streams: Vec<StreamDelivery>,
    /// Streams that found no room in the message, of which the oldest are left out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub omitted: u64,
}

/// What one stream has stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamDelivery {
    /// The pipeline's name.
    pub pipeline: String,
    /// The stream's name.
    pub stream: String,
    /// Results and range records that the broker has not acknowledged.
    pub waiting: u64,
    /// Its runs, the oldest first.
    pub runs: Vec<RunDelivery>,
}

/// What one run has stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunDelivery {
    /// The run.
    #[serde(with = "crate::dropped::hexadecimal")]
    pub run: u64,
    /// The last number that was stored.
    pub last: u64,
    /// What was dropped, as far as it is remembered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<DroppedRange>,
}

/// Numbers of a run that were dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedRange {
    /// The first of them.
    pub first: u64,
    /// The last of them.
    pub last: u64,
    /// Numbers that this divides were kept; 1: none.
    #[serde(default = "crate::dropped::all", skip_serializing_if = "crate::dropped::is_all")]
    pub every: u64,
    /// Why.
    pub reason: Reason,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Message for Delivery {
    const TYPE: &'static str = "delivery";
}

/// Figures of the last minute and since the start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Telemetry {
    /// The gateway.
    pub gateway: String,
    /// When, RFC 3339; null where the time is not known.
    pub at: Option<String>,
    /// Seconds since the agent started.
    pub uptime_s: u64,
    /// The process and the machine.
    pub system: SystemFigures,
    /// By source name.
    pub sources: BTreeMap<String, SourceFigures>,
    /// By pipeline name.
    pub pipelines: BTreeMap<String, PipelineTelemetry>,
    /// What waits for the uplink, and what became of it.
    pub outbox: OutboxFigures,
    /// By broker name.
    #[serde(default)]
    pub links: BTreeMap<String, LinkFigures>,
}

/// The link to a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LinkFigures {
    /// Whether it is up.
    pub connected: bool,
    /// Connections that were made since the start.
    pub connections: u64,
    /// Messages since the start that go out now or not at all, and found no link or no place.
    pub unsent: u64,
}

impl Message for Telemetry {
    const TYPE: &'static str = "telemetry";
}

/// The process and the machine it runs on.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SystemFigures {
    /// Share of one core that the agent used in the last minute.
    pub cpu: f32,
    /// Resident bytes of the agent.
    pub memory_bytes: u64,
    /// Bytes that the machine has left.
    pub available_bytes: u64,
    /// Bytes that the agent had written to disks since its start.
    #[serde(default)]
    pub written_bytes: u64,
    /// Hottest sensor, in degrees Celsius.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub temperature_c: Option<f32>,
}

/// Results, events and range records that the uplink's broker has not acknowledged, and counts since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OutboxFigures {
    /// How many are in memory and in the ring, waiting or in flight.
    pub live: u64,
    /// How many are in the database.
    pub stored: u64,
    /// Their bytes.
    pub stored_bytes: u64,
    /// Bytes of the ring, on tmpfs.
    pub ring_bytes: u64,
    /// How many were written to the database since the start.
    pub committed: u64,
    /// How many the broker acknowledged.
    pub delivered: u64,
    /// Those of them that nobody had subscribed to.
    pub unheard: u64,
    /// How many a policy dropped; range records say which.
    pub dropped: u64,
}

/// What a source received since the start.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SourceFigures {
    /// Messages.
    pub messages: u64,
    /// Samples taken.
    pub samples: u64,
    /// Messages or samples that were refused, by reason.
    pub refused: BTreeMap<String, u64>,
}

/// What a pipeline did, and its streams.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PipelineTelemetry {
    /// All its streams together.
    #[serde(flatten)]
    pub figures: PipelineFigures,
    /// By stream name; left out where there are too many for one message.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub streams: BTreeMap<String, PipelineFigures>,
}

/// What a pipeline or a stream of it did since the start. The outcomes add up to the windows completed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PipelineFigures {
    /// Windows completed.
    pub windows: u64,
    /// Windows by outcome: `result`, `expired`, `replaced`, `rejected`, `invalid`, `failed`.
    pub outcomes: BTreeMap<String, u64>,
    /// Results that were ready only after their deadline; they are among the outcome `result` too.
    #[serde(default)]
    pub late: u64,
    /// Windows by the size of the batch that they ran in: 1, 2 to 3, 4 to 7 and so on, each by its smallest size.
    #[serde(default, deserialize_with = "sizes")]
    pub batches: BTreeMap<u32, u64>,
    /// Quantiles by stage (`wait`, `features`, `queue`, `compute`, `decide`, `total`), in microseconds.
    pub latency_us: BTreeMap<String, Quantiles>,
}

/// Keys of a JSON object as numbers. Where structs are flattened into each other, serde keeps them as text.
fn sizes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<u32, u64>, D::Error> {
    let text = BTreeMap::<String, u64>::deserialize(deserializer)?;
    text.into_iter().map(|(size, count)| Ok((size.parse().map_err(D::Error::custom)?, count))).collect()
}

/// Quantiles of the last minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Quantiles {
    /// Half are below.
    pub p50: u64,
    /// All but one in a hundred are below.
    pub p99: u64,
    /// The largest.
    pub max: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_has_its_type_and_version() {
        let status = Status {
            state: Presence::Offline,
            session: "5f".into(),
            connected_at: Some("2026-11-23T10:15:02Z".into()),
        };
        let json: serde_json::Value = serde_json::from_slice(&status.to_json()).unwrap();
        let expected = serde_json::json!({
            "v": 1, "type": "status", "state": "offline", "session": "5f", "connected_at": "2026-11-23T10:15:02Z"
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn an_event_names_what_it_is_about_beside_its_message() {
        let event = Event {
            id: "g/event/0000000000000001-1".into(),
            gateway: "g".into(),
            at: None,
            kind: "model-refused".into(),
            message: "m".into(),
            about: [("pipeline".to_owned(), "p".to_owned())].into(),
        };
        let json: serde_json::Value = serde_json::from_slice(&event.to_json()).unwrap();
        assert_eq!(json["pipeline"], "p");
        assert_eq!(json["type"], "event");
        assert_eq!(json["at"], serde_json::Value::Null);
        assert_eq!(serde_json::from_slice::<Event>(&event.to_json()).unwrap(), event, "and reads back");
    }
}
