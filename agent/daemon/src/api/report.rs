//! What the agent says of itself at `GET /v1/status`, as JSON.
//!
//! The object carries `"v": 1` and `"type": "status-report"` like every JSON object of the agent. Counters are since
//! the start, quantiles of the last minute, as in `telemetry`.

use std::collections::BTreeMap;

use limpet_wire::message::{ConfigurationState, Message, ModelPhase, OutboxFigures, PipelineFigures, SourceFigures};
use limpet_wire::result::Clock;
use serde::{Deserialize, Serialize};

use crate::config::Class;

/// What the agent is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Name of the gateway.
    pub gateway: String,
    /// Version of the agent.
    pub agent: String,
    /// Seconds since the agent started.
    pub uptime_s: u64,
    /// How far its clock can be trusted.
    pub clock: Clock,
    /// What may be used, and what of it is.
    pub budget: BudgetStatus,
    /// One entry a worker thread.
    pub workers: Vec<WorkerStatus>,
    /// One entry a model, ordered by name.
    pub models: Vec<ModelStatus>,
    /// What is in effect of signed configurations; none where there never was one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub configuration: Option<ConfigurationState>,
    /// What each source received and refused, by its name.
    #[serde(default)]
    pub sources: BTreeMap<String, SourceFigures>,
    /// One entry a pipeline, in the configuration's order.
    pub pipelines: Vec<PipelineStatus>,
    /// What the machine suffers from, such as heat, as a sentence; none if nothing.
    pub pressure: Option<String>,
    /// One entry a broker, ordered by name.
    pub links: Vec<LinkStatus>,
    /// What waits for the uplink, and what became of it.
    #[serde(default)]
    pub outbox: OutboxFigures,
}

impl Message for StatusReport {
    const TYPE: &'static str = "status-report";
}

/// `[budget]`, and what of it is used.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct BudgetStatus {
    /// Cores that sessions and front ends may use.
    pub cpu: f64,
    /// Cores that the admitted pipelines use on average: Σ mean C / T.
    pub cpu_admitted: f64,
    /// Bytes that models, and the ring of the outbox, may hold.
    pub memory_bytes: u64,
    /// Bytes that the ring and the admitted models hold, if all of these are loaded.
    pub memory_admitted_bytes: u64,
    /// Bytes that the ring and the loaded models hold.
    pub memory_loaded_bytes: u64,
}

/// One worker thread.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its number, from 0.
    pub number: usize,
    /// Share of it that is admitted: Σ C99 / T, at most 1.
    pub cpu_share_admitted: f64,
    /// Jobs that wait for it.
    pub queued: u64,
    /// What it runs now, such as `motor/press-3`.
    pub running: Option<String>,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelStatus {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it is doing.
    pub state: ModelPhase,
    /// The engine that runs it, once one was chosen.
    pub engine: Option<String>,
    /// The variant that runs.
    pub variant: Option<String>,
    /// Whether that is the reduced one, because the machine is under pressure.
    pub reduced: bool,
    /// Bytes that it holds while it is loaded, as measured; none before the proof.
    pub memory_bytes: Option<u64>,
    /// Whether it is in memory.
    pub loaded: bool,
    /// Whether it stays there when others need the room.
    pub pinned: bool,
    /// Half of its runs take less, in microseconds, by its proof.
    pub p50_us: Option<u64>,
    /// All but one in a hundred take less, in microseconds, by its proof.
    pub p99_us: Option<u64>,
    /// Why it failed last.
    pub failure: Option<String>,
}

/// What a pipeline is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PipelineState {
    /// Its windows are inferred.
    Serving,
    /// Its model is on the way, being proved or being loaded.
    Loading,
    /// It does not run, by admission or because of its model; `refusal` says why.
    Refused,
    /// The depot has not delivered a version of its model that can run; `refusal` says why.
    Waiting,
}

/// One pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PipelineStatus {
    /// Its name.
    pub name: String,
    /// Its class.
    pub class: Class,
    /// Its deadline from the capture, in milliseconds.
    pub deadline_ms: f64,
    /// What it is doing.
    pub state: PipelineState,
    /// Why it does not run, with the arithmetic.
    pub refusal: Option<String>,
    /// Windows, outcomes and latencies of all its streams together.
    #[serde(flatten)]
    pub figures: PipelineFigures,
    /// One entry a stream, ordered by name.
    pub streams: Vec<StreamStatus>,
}

/// One stream of a pipeline.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct StreamStatus {
    /// Its name.
    pub name: String,
    /// Windows, outcomes and latencies.
    #[serde(flatten)]
    pub figures: PipelineFigures,
}

/// One connection to a broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// Name of the broker.
    pub broker: String,
    /// Whether it is connected.
    pub state: LinkState,
    /// Why it is not, if that is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why: Option<String>,
}

/// State of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// Connected.
    Up,
    /// Not connected; the agent goes on trying.
    Down,
}
