//! The configuration: one file, `limpet.toml`, and environment variables over its tables.
//!
//! Three steps, each a module of its own: [`load`] reads the text and remembers where every key stands, [`file`] gives
//! the keys their types, and [`resolve`] checks them against each other and fills in what depends on other keys. What
//! comes out is the [`Config`] below, in which every default is filled in and every name refers to something that
//! exists. [`effective`] prints it with the origin of every value.
//!
//! A problem is one sentence that names the file and line (or the variable), the key, what was found, what was expected
//! and what to do. All problems of a file are reported together, except where one hides the others (broken TOML).

pub mod codec;
pub mod effective;
mod file;
pub mod load;
mod model;
mod resolve;
pub mod units;
mod url;

#[cfg(test)]
mod tests;

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use limpet_wire::command::Verb;
use serde::{Deserialize, Serialize, Serializer};

pub use codec::Codec;
pub use effective::effective;
pub use file::OneOrMany;
pub use load::{Loaded, Overlay, Surroundings, load};
pub use model::ModelRef;
pub use units::{Fraction, Interval, Size};
pub use url::{BrokerUrl, ProxyUrl, Scheme};

use crate::CliError;

use crate::topic::{Filter, Template};

/// Reads the configuration of this process: the file, and the environment over it.
///
/// # Errors
/// One sentence for each problem.
pub fn read(path: &Path) -> Result<Loaded, CliError> {
    read_with(path, None)
}

/// The same, with the tables of a signed configuration in the place of the file's.
///
/// # Errors
/// One sentence for each problem.
pub fn read_with(path: &Path, overlay: Option<Overlay<'_>>) -> Result<Loaded, CliError> {
    load(path, &Surroundings::of_this_process(), overlay)
        .map_err(|error| CliError::configuration(vec![error.to_string()]))
}

/// A configuration for one recording: a source of raw `f32` samples, and a pipeline that publishes every result.
pub fn for_recording(package: &Path, channels: usize, rate_hz: f64) -> Config {
    let source = Source {
        name: Name("recording".into()),
        broker: None,
        input: Input::Topic(Filter::parse("recording").expect("a topic of one level is one")),
        message: None,
        codec: Codec::Raw(codec::Raw { number: codec::NumberType::F32, channels, header: Vec::new() }),
        scale: Vec::new(),
        offset: Vec::new(),
        rate_hz: Some(rate_hz),
        time: TimeOrigin::Arrival,
        max_skew: Interval(Duration::ZERO),
        // A recording has no gaps, whatever the machine that plays it does.
        max_gap: Some(Interval(Duration::MAX)),
        on_gap: OnGap::Reset,
        max_streams: 1,
        stream_idle: Interval(Duration::MAX),
        accept_retained: false,
    };
    let pipeline = Pipeline {
        name: Name("try".into()),
        source: Name("recording".into()),
        model: ModelRef::Path(package.to_owned()),
        class: Class::Realtime,
        deadline: Interval(Duration::from_millis(100)),
        queue: Queue { depth: 1, policy: QueuePolicy::LatestOnly },
        publish: Publish::Every,
        deadband: 0.0,
        heartbeat: Interval(Duration::ZERO),
        inference_batch: InferenceBatch { max: 1, delay: Interval(Duration::ZERO) },
        pin: false,
        swap: Swap::Warm,
        message_batch: MessageBatch { max: 1, delay: Interval(Duration::ZERO) },
        encoding: Encoding::Json,
        outbox_policy: DropPolicy::DropOldest,
        trial: Trial::none(),
        local: Vec::new(),
    };
    Config {
        format: FORMAT,
        gateway: Gateway {
            id: Name("try".into()),
            labels: BTreeMap::new(),
            state: PathBuf::new(),
            run: PathBuf::new(),
        },
        brokers: BTreeMap::new(),
        uplink: Uplink { broker: Name("none".into()), prefix: String::new(), commands: BTreeSet::new() },
        budget: Budget { cpu: 1.0, memory: Size(u64::MAX) },
        runtime: Runtime::default(),
        pressure: Pressure::default(),
        outbox: Outbox::default(),
        depot: None,
        sources: vec![source],
        pipelines: vec![pipeline],
        log: Log { level: LogLevel::Warn, format: LogFormat::Text },
    }
}

/// The version of the configuration that this agent reads.
pub const FORMAT: u32 = 1;

/// A configured name that was checked (`[a-z0-9][a-z0-9_-]{0,47}`): of a gateway, broker, source or pipeline. Cheap to
/// clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// Checks a name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, limpet_wire::WireError> {
        limpet_wire::name::check_name(text).map(|()| Self(text.into()))
    }

    /// The shared text, as results carry it.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Everything that a person can set. Serializing it gives the keys of `limpet.toml`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Config {
    /// Version of the file's keys; [`FORMAT`].
    pub format: u32,
    /// Who this gateway is.
    pub gateway: Gateway,
    /// Brokers by name; at least one.
    #[serde(rename = "broker")]
    pub brokers: BTreeMap<Name, Broker>,
    /// Where results, status and models go.
    pub uplink: Uplink,
    /// What all models together may use.
    pub budget: Budget,
    /// The worker threads.
    pub runtime: Runtime,
    /// When the machine is too hot or too busy.
    pub pressure: Pressure,
    /// What waits for the uplink.
    pub outbox: Outbox,
    /// Where models come from over the air, if they do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depot: Option<Depot>,
    /// Origins of samples, in the order of the file; names are unique.
    #[serde(rename = "source")]
    pub sources: Vec<Source>,
    /// Trips from samples to results, in the order of the file; names are unique.
    #[serde(rename = "pipeline")]
    pub pipelines: Vec<Pipeline>,
    /// What is written to standard error.
    pub log: Log,
}

/// Identity and folders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gateway {
    /// Name of this gateway in topics and ids.
    pub id: Name,
    /// Groups that this gateway belongs to.
    pub labels: BTreeMap<String, String>,
    /// Folder of what must survive a restart.
    pub state: PathBuf,
    /// Folder on tmpfs, for the socket and the ring.
    pub run: PathBuf,
}

/// One MQTT broker, and how to connect to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Broker {
    /// Addresses, tried in order; at least one.
    pub url: Vec<BrokerUrl>,
    /// MQTT client id.
    pub client_id: String,
    /// User name, if the broker asks for one.
    pub username: Option<String>,
    /// File with the password; only there together with `username`.
    pub password_file: Option<PathBuf>,
    /// Authorities that vouch for the broker; `None`: those of the system.
    pub ca_file: Option<PathBuf>,
    /// This gateway's certificate, with those between it and its authority, if the broker asks for one.
    pub cert_file: Option<PathBuf>,
    /// Its key; there if the certificate is.
    pub key_file: Option<PathBuf>,
    /// HTTP proxy that the connection goes through.
    pub proxy: Option<ProxyUrl>,
    /// MQTT keep-alive, whole seconds.
    pub keep_alive: Interval,
    /// Version of MQTT: 5, or 4 for 3.1.1.
    pub mqtt: u8,
    /// Whether the broker keeps what sensors send while the link is away, and sends it later.
    pub resume: bool,
}

impl Broker {
    /// Reads the password, anew at each connection, so that it can be changed without a restart. One line end at the
    /// end of the file is not part of it.
    ///
    /// # Errors
    /// If the file cannot be read or holds no UTF-8.
    pub fn password(&self) -> std::io::Result<Option<String>> {
        let Some(path) = &self.password_file else { return Ok(None) };
        let text = std::fs::read_to_string(path)?;
        let mut lines = text.lines();
        let (first, more) = (lines.next().unwrap_or_default(), lines.next());
        let wrong = |what: &str| Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
        match (first, more) {
            ("", _) => wrong("its first line is empty, and should be the password"),
            (_, Some(more)) if !more.is_empty() => wrong("it has several lines, and should have one"),
            _ => {
                passwords().insert(first.to_owned());
                Ok(Some(first.to_owned()))
            }
        }
    }
}

/// Every password that this process has read: the log may hold what a broker said of one that was changed since.
pub fn passwords() -> MutexGuard<'static, BTreeSet<String>> {
    static READ: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    READ.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The link that carries results.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Uplink {
    /// Which broker.
    pub broker: Name,
    /// First levels of all topics, without a slash at the end.
    pub prefix: String,
    /// Commands that are enabled. None exists in this version.
    pub commands: BTreeSet<Verb>,
}

/// Limits for all models together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Budget {
    /// Processor cores; the number of workers is this, rounded up.
    pub cpu: f64,
    /// Measured memory of all models, and the ring of the outbox.
    pub memory: Size,
}

impl Budget {
    /// How many worker threads run sessions.
    pub fn workers(&self) -> usize {
        // Checked when it was read: above 0 and at most 64.
        self.cpu.ceil() as usize
    }
}

/// How worker threads run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Runtime {
    /// CPUs that they may run on, by number; empty: all.
    pub affinity: Vec<usize>,
    /// Their SCHED_FIFO priority, 1 to 99; `None`: the ordinary scheduler.
    pub fifo_priority: Option<u8>,
    /// Whether the memory of the process stays in RAM.
    pub lock_memory: bool,
    /// How long a job may run before the process ends itself.
    pub hang_limit: Interval,
}

impl Default for Runtime {
    fn default() -> Self {
        let hang_limit = Interval(Duration::from_secs(10));
        Self { affinity: Vec::new(), fifo_priority: None, lock_memory: false, hang_limit }
    }
}

/// When pipelines with a reduced variant go down to it, and when they come back.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pressure {
    /// Temperature of the hottest zone; `None`: the zone's own passive trip point, or 80.
    pub temperature_c: Option<f64>,
    /// Share of time in which some task waits for a CPU.
    pub cpu: f64,
    /// Share of its highest frequency below which the CPU counts as throttled.
    pub frequency: f64,
    /// How long any of these must last.
    pub sustain: Interval,
    /// How long all must be over before pipelines come back.
    pub recover: Interval,
    /// Where /sys and /proc are found.
    pub root: PathBuf,
}

impl Default for Pressure {
    fn default() -> Self {
        Self {
            temperature_c: None,
            cpu: 0.5,
            frequency: 0.6,
            sustain: Interval(Duration::from_secs(10)),
            recover: Interval(Duration::from_secs(60)),
            root: "/".into(),
        }
    }
}

/// Results and events that the uplink's broker has not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outbox {
    /// How long one is unacknowledged before it is written to the disk.
    pub commit_interval: Interval,
    /// Whether that interval is at risk when the power goes.
    pub durability: Durability,
    /// Most bytes on the disk.
    pub max_bytes: Size,
    /// How long one may wait.
    pub max_age: Interval,
    /// Most bytes on tmpfs; in memory up to twice as much.
    pub ring: Size,
    /// What is dropped when there is no room, unless a pipeline says otherwise.
    pub policy: DropPolicy,
    /// What goes out first.
    pub order: OutboxOrder,
    /// Most bytes of the backlog a second.
    pub drain_rate: Size,
    /// Where results stay after delivery, for whoever asks at the gateway.
    pub history: HistoryPlace,
    /// How many of each pipeline.
    pub history_results: u32,
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            commit_interval: Interval(Duration::from_secs(1)),
            durability: Durability::Interval,
            max_bytes: Size(256 << 20),
            max_age: Interval(Duration::from_secs(30 * 24 * 3600)),
            ring: Size(8 << 20),
            policy: DropPolicy::DropOldest,
            order: OutboxOrder::LiveFirst,
            drain_rate: Size(16 << 20),
            history: HistoryPlace::Memory,
            history_results: 1000,
        }
    }
}

/// Where results stay after delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HistoryPlace {
    /// They end with the process.
    Memory,
    /// The next process has them again.
    Disk,
}

/// What survives the power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// All but what was stored in the last interval, and a quarter of one.
    Interval,
    /// Everything that was ever sent, and all that waits to be: each is on the disk first.
    Each,
}

/// What goes to the uplink first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutboxOrder {
    /// What is new; a quarter of the link is left to the backlog.
    LiveFirst,
    /// What is oldest: each stream in the order in which it was stored.
    BacklogFirst,
}

/// What of a pipeline is dropped when there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropPolicy {
    /// Its oldest results.
    DropOldest,
    /// Its newest.
    DropNewest,
    /// All but those whose number this divides, the oldest first.
    Thin(u64),
}

/// An origin of samples.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Source {
    /// Unique name.
    pub name: Name,
    /// Which broker; none if a program gives the samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker: Option<Name>,
    /// Which messages.
    #[serde(flatten)]
    pub input: Input,
    /// Bytes of a program's message; none where lines or samples tell where one ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<Size>,
    /// How a payload becomes samples.
    pub codec: Codec,
    /// Factor per channel, payload → the manifest's unit; empty: all 1.
    pub scale: Vec<Fraction>,
    /// Added after `scale`, per channel; empty: all 0.
    pub offset: Vec<Fraction>,
    /// Samples a second; `None`: as the model's manifest says.
    pub rate_hz: Option<f64>,
    /// Where a sample's time comes from.
    pub time: TimeOrigin,
    /// How far a payload's time may deviate from its mapping to this machine's clock.
    pub max_skew: Interval,
    /// Longest step between samples that is no gap; `None`: 1.5 periods of payload time, or 3 × the median interval of
    /// arrivals.
    pub max_gap: Option<Interval>,
    /// What a gap does to a window.
    pub on_gap: OnGap,
    /// How many streams the source may have.
    pub max_streams: u32,
    /// After how long without samples a stream is forgotten.
    pub stream_idle: Interval,
    /// Whether retained messages are samples; only with times in the payload.
    pub accept_retained: bool,
}

impl Source {
    /// Every filter to subscribe to: one, or one per joined channel; none if a program gives the samples.
    pub fn filters(&self) -> &[Filter] {
        match &self.input {
            Input::Topic(filter) => std::slice::from_ref(filter),
            Input::Join(join) => &join.topics,
            Input::Exec(_) => &[],
        }
    }

    /// Whether it reads from this broker.
    pub fn reads(&self, broker: &str) -> bool {
        self.broker.as_deref() == Some(broker)
    }

    /// The program that gives the samples, with its arguments.
    pub fn program(&self) -> Option<&[String]> {
        match &self.input {
            Input::Exec(program) => Some(program),
            Input::Topic(_) | Input::Join(_) => None,
        }
    }

    /// Whether the source is a shared subscription. That is allowed only where one message holds a whole window, which
    /// only the model's manifest can tell.
    pub fn is_shared(&self) -> bool {
        self.filters().iter().any(Filter::is_shared)
    }
}

/// Which messages a source reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Input {
    /// One filter; every message holds all channels.
    Topic(Filter),
    /// One filter per channel.
    Join(Join),
    /// A program and its arguments; its standard output holds the messages.
    Exec(Vec<String>),
}

/// Several topics that are the channels of one source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Join {
    /// At least two, in the order of the channels; all of them name the stream, or none does.
    pub topics: Vec<Filter>,
    /// How far apart in time samples of one row may be.
    pub tolerance: Interval,
}

/// Where a sample's time comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeOrigin {
    /// The moment its message arrived.
    Arrival,
    /// The message itself.
    Payload,
}

/// What a gap does to a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnGap {
    /// The window starts anew.
    Reset,
    /// The last sample is repeated.
    Hold,
    /// A straight line is drawn.
    Interpolate,
}

/// One configured trip: source, model, decision, publish.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pipeline {
    /// Unique name.
    pub name: Name,
    /// Name of a source that exists.
    pub source: Name,
    /// Its model.
    pub model: ModelRef,
    /// What is given up last.
    pub class: Class,
    /// From the capture of the window's last sample.
    pub deadline: Interval,
    /// What waits for a worker.
    pub queue: Queue,
    /// What goes to the uplink.
    pub publish: Publish,
    /// By how much a score must change to count as a change.
    pub deadband: f64,
    /// A result is published at least this often; 0: no such promise.
    pub heartbeat: Interval,
    /// How windows share a run of the session.
    pub inference_batch: InferenceBatch,
    /// Whether its model is never unloaded for another.
    pub pin: bool,
    /// How a new version takes the place of the old one.
    pub swap: Swap,
    /// How results share a message.
    pub message_batch: MessageBatch,
    /// How results are written.
    pub encoding: Encoding,
    /// What is dropped of its results when the outbox is full.
    pub outbox_policy: DropPolicy,
    /// How a new version of its model is watched.
    pub trial: Trial,
    /// Who else hears of results.
    pub local: Vec<LocalOutput>,
}

/// What a pipeline gives up last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Latency.
    Realtime,
    /// Throughput.
    Analytic,
}

/// Windows that wait for a worker, per stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Queue {
    /// How many.
    pub depth: u32,
    /// What happens to the next one.
    pub policy: QueuePolicy,
}

/// What happens to a window when the queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueuePolicy {
    /// It replaces all that wait.
    LatestOnly,
    /// It replaces the oldest.
    DropOldest,
    /// It is rejected.
    Reject,
}

/// Which results go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Publish {
    /// All.
    Every,
    /// Those whose label changed, or whose score changed by more than the deadband.
    Changes,
    /// Those at which the model's trigger fired.
    Triggers,
}

/// How windows of one model share a run of its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct InferenceBatch {
    /// Windows in one run, as far as the proof and the deadlines of others allow it.
    pub max: u32,
    /// How long a window may wait for others.
    pub delay: Interval,
}

/// How a new version of a model takes the place of the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Swap {
    /// Both are loaded until the new one has its first full window.
    Warm,
    /// The old one goes first, where memory does not suffice for both; windows are missed meanwhile.
    Cold,
}

/// How results share a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MessageBatch {
    /// Results in one message.
    pub max: u32,
    /// How long a result may wait for others.
    pub delay: Interval,
}

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// JSON objects; JSON lines in batches.
    Json,
    /// Postcard items.
    Postcard,
}

/// Results for whoever stands beside the machine: sent first, never stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LocalOutput {
    /// Which broker.
    pub broker: Name,
    /// Where to.
    pub topic: Template,
    /// Which results.
    pub on: Publish,
    /// MQTT quality of service: 0 or 1.
    pub qos: u8,
}

/// How a new version of a model that came over the air is watched before it is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Trial {
    /// Windows that it must see; 0: there is no trial.
    pub windows: u64,
    /// How long it must run, in which windows come.
    pub time: Interval,
    /// Whether the new version runs beside the old one first, unheard, and takes over only when both agree.
    pub shadow: bool,
    /// Share of one core that the version which is not heard may use; 0: it does not run.
    pub shadow_cpu: f64,
    /// Share of the compared windows on which both versions must agree.
    pub agreement: f64,
}

impl Trial {
    /// No trial at all.
    pub fn none() -> Self {
        Self { windows: 0, time: Interval(Duration::ZERO), shadow: false, shadow_cpu: 0.0, agreement: 0.0 }
    }
}

/// Where models and signed configurations come from over the air.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Depot {
    /// The root metadata that the owner of the gateway installed; trust starts there.
    pub root: PathBuf,
    /// The channel that this gateway follows.
    pub channel: String,
    /// Versions of each model that are kept beside the one that runs.
    pub keep: usize,
    /// Most bytes a second that are fetched.
    pub rate: Size,
    /// Most bytes of chunks that are kept.
    pub disk: Size,
    /// Longest time, drawn at random, before something new is fetched: a fleet does not fetch all at once.
    pub jitter: Interval,
    /// How often the depot is asked whether there is something new, beside what it says by itself.
    pub refresh: Interval,
    /// How long a signed configuration is on trial. It is the gateway's own to say.
    pub trial: Interval,
    /// Authorities that vouch for the web server with the chunks; `None`: those of the system.
    pub ca_file: Option<PathBuf>,
}

/// What is written to standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Log {
    /// Least important level that is written.
    pub level: LogLevel,
    /// How.
    pub format: LogFormat,
}

/// Importance of a log event. WARN: nothing was lost; ERROR: data was lost or a person is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// How a log event is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line for people; in systemd's journal, an entry with fields.
    Text,
    /// One JSON object a line.
    Json,
}
