//! What the agent says of itself: events, counters, and log lines that do not flood.
//!
//! Log levels have a meaning: WARN, nothing that was accepted is lost; ERROR, something is, or a person is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use limpet_depot::{Manifest, Proved};
use limpet_runtime::ledger::StageQuantiles;
use limpet_runtime::{Ledger, Moment, Outcome, Stage};
use limpet_wire::message::{Event, Message, PipelineFigures, Quantiles, SourceFigures};

use crate::config::BrokerUrl;
use crate::crash::Death;
use crate::link::Why;
use crate::outbox::{EventIds, Notice, Outbox};
use crate::wall;

/// The same complaint is logged at most once in this time.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Every kind of event, with the keys that say what one is about. docs/events.md says when each comes.
const EVENTS: [(&str, &[&str]); 48] = [
    ("begins-again", &[]),
    ("certificate-expires", &["broker"]),
    ("clock-step", &[]),
    ("configuration-activated", &["configuration"]),
    ("configuration-not-on-record", &[]),
    ("configuration-passed", &["configuration"]),
    ("configuration-rejected", &["configuration"]),
    ("configuration-rolled-back", &["configuration"]),
    ("configuration-waits", &["configuration"]),
    ("crashed", &[]),
    ("depot-expired", &["about"]),
    ("depot-refused", &["about"]),
    ("link-down", &["broker"]),
    ("link-refused", &["broker"]),
    ("link-up", &["broker"]),
    ("missing-chunk", &["name"]),
    ("model-activated", &["model", "version"]),
    ("model-damaged", &["model", "version"]),
    ("model-proved", &["model", "version"]),
    ("model-refused", &["pipeline", "model"]),
    ("model-rejected", &["model", "version"]),
    ("model-staged", &["model", "version"]),
    ("model-waits", &["model"]),
    ("model-withdrawn", &["model", "version"]),
    ("out-of-range", &["source", "stream"]),
    ("outbox-damaged", &[]),
    ("outbox-failing", &[]),
    ("outbox-ring-failing", &[]),
    ("outbox-ring-full", &[]),
    ("outbox-works", &[]),
    ("over-budget", &["source"]),
    ("pipeline-refused", &["pipeline"]),
    ("pressure", &[]),
    ("pressure-relieved", &[]),
    ("publish-refused", &["broker", "topic"]),
    ("results-dropped", &["count"]),
    ("rolled-back", &["model", "version"]),
    ("session-hung", &["model", "pipeline"]),
    ("session-taken-over", &["broker"]),
    ("shadow-passed", &["model", "version"]),
    ("silent-source", &["source"]),
    ("source-ended", &["source"]),
    ("starved", &["worker"]),
    ("store-notice", &[]),
    ("subscription-refused", &["broker", "topic"]),
    ("swap-refused", &["model"]),
    ("too-large", &["broker", "topic"]),
    ("trial-passed", &["model", "version"]),
];

/// Sends events and writes the log.
pub struct Reporter {
    outbox: Arc<Outbox>,
    ids: Arc<EventIds>,
    /// The topic of events.
    events: String,
    /// What keeps each broker from being reached and needs a person, as far as it was said since the last connection.
    barred: Mutex<BTreeMap<String, BTreeSet<String>>>,
}

impl Reporter {
    /// Events with these ids on this topic, through the outbox.
    pub fn new(outbox: Arc<Outbox>, ids: Arc<EventIds>, events: String) -> Self {
        Self { outbox, ids, events, barred: Mutex::default() }
    }

    /// Sends an event: a word for programs, a sentence for people, and what it is about.
    pub fn event(&self, kind: &str, message: &str, about: &[(&str, &str)]) {
        let listed =
            |(listed, keys): &(&str, &[&str])| *listed == kind && about.iter().all(|(key, _)| keys.contains(key));
        debug_assert!(EVENTS.iter().any(listed), "{kind} {about:?} is not in the list of events");
        let event = Event {
            id: self.ids.next(),
            gateway: self.ids.gateway().as_ref().to_owned(),
            at: wall::now_text(),
            kind: kind.to_owned(),
            message: message.to_owned(),
            about: about.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        };
        self.outbox.offer_event(event.to_json());
    }

    /// A link is up.
    pub fn link_made(&self, broker: &str, url: &BrokerUrl) {
        tracing::info!(broker, %url, "connected");
        self.barred.lock().unwrap_or_else(PoisonError::into_inner).remove(broker);
        self.event("link-up", &format!("connected to broker {broker} at {url}"), &[("broker", broker)]);
    }

    /// A link is down, or could not be made.
    ///
    /// What only a person can change, such as a wrong password, is an error and an event the first time; later tries
    /// that fail for the same reason are warnings, until a connection is made.
    pub fn link_lost(&self, broker: &str, url: &BrokerUrl, why: &Why, connected: bool) {
        let what = if connected { "connection lost" } else { "cannot connect" };
        let (newly_barred, why) = (self.is_newly_barred(broker, why), &why.text);
        if newly_barred {
            tracing::error!(broker, %url, why, "{what}");
            if !connected {
                let message = format!("cannot connect to broker {broker} at {url}: {why}");
                self.event("link-refused", &message, &[("broker", broker)]);
            }
        } else {
            tracing::warn!(broker, %url, why, "{what}");
        }
        if connected {
            self.event("link-down", &format!("lost broker {broker} at {url}: {why}"), &[("broker", broker)]);
        }
    }

    /// The broker closed several connections in a row soon after they were made.
    pub fn rival(&self, broker: &str, client_id: &str, times: u32) {
        let message = format!(
            "broker {broker} closed the connection {times} times in a row soon after it was made; does another client use the client id '{client_id}'? Give each gateway an id of its own"
        );
        tracing::error!(broker, client_id, "{message}");
        self.event("session-taken-over", &message, &[("broker", broker)]);
    }

    /// The broker refused a subscription.
    pub fn subscription_refused(&self, broker: &str, filter: &str, why: &str) {
        let message = format!(
            "broker {broker} refuses the subscription to {filter} ({why}); allow it in the broker's access list"
        );
        tracing::error!(broker, topic = filter, "{message}");
        self.event("subscription-refused", &message, &[("broker", broker), ("topic", filter)]);
    }

    /// The broker refused a message; it is kept and tried again.
    pub fn publish_refused(&self, broker: &str, topic: &str, why: &str) {
        let message =
            format!("broker {broker} refuses a message on {topic} ({why}); allow it in the broker's access list");
        tracing::error!(broker, topic, "{message}");
        // Not as an event through the same broker if events are what it refuses.
        if topic != self.events {
            self.event("publish-refused", &message, &[("broker", broker), ("topic", topic)]);
        }
    }

    /// A result or event is larger than the broker takes, and is given up.
    pub fn too_large(&self, broker: &str, topic: &str, bytes: usize, most: usize) {
        let message = format!(
            "a message of {bytes} bytes on {topic} is lost: broker {broker} takes {most} at most; raise its max_packet_size"
        );
        tracing::error!(broker, topic, bytes, "{message}");
        self.event("too-large", &message, &[("broker", broker), ("topic", topic)]);
    }

    /// The clock was set.
    pub fn clock_stepped(&self, how: &str) {
        tracing::warn!("{how}");
        self.event("clock-step", how, &[]);
    }

    /// A certificate ends soon, or has ended.
    pub fn certificate(&self, broker: &str, message: &str) {
        tracing::warn!(broker, "{message}");
        self.event("certificate-expires", message, &[("broker", broker)]);
    }

    /// Whether `why` needs a person and was not said of this broker since the last connection to it.
    fn is_newly_barred(&self, broker: &str, why: &Why) -> bool {
        why.needs_a_person && {
            let mut barred = self.barred.lock().unwrap_or_else(PoisonError::into_inner);
            barred.entry(broker.to_owned()).or_default().insert(why.text.clone())
        }
    }

    /// Something about the outbox that a person should know.
    pub fn outbox(&self, notice: &Notice) {
        match notice {
            Notice::Damaged { why, aside, salvaged, lost } => {
                let lost = lost.map_or_else(|| "an unknown number is".to_owned(), |lost| format!("{lost} are"));
                let message = format!(
                    "the outbox's database was no longer what was written ({why}); it was set aside as {}, {salvaged} results and events were read out of it, {lost} lost; look at the disk, and remove the file when you have no more use for it",
                    aside.display()
                );
                tracing::error!("{message}");
                self.event("outbox-damaged", &message, &[]);
            }
            Notice::Failing(why) => {
                let message = format!(
                    "results and events that the broker does not acknowledge cannot be written to the disk ({why}); they are in memory alone, and the oldest are dropped when that is full; see that there is room and that the disk can be written"
                );
                tracing::error!("{message}");
                self.event("outbox-failing", &message, &[]);
            }
            Notice::Works => {
                let message = "results and events that the broker does not acknowledge are written to the disk again";
                tracing::info!("{message}");
                self.event("outbox-works", message, &[]);
            }
            Notice::RingFull => {
                let message = "the ring of the outbox is full: more results come than the disk takes, and those that are in memory alone do not outlive the process; raise outbox.ring and budget.memory by as much, publish less, or see why the disk takes so little";
                tracing::warn!("{message}");
                self.event("outbox-ring-full", message, &[]);
            }
            Notice::RingFailing(why) => {
                let message = format!(
                    "the ring of the outbox cannot be written ({why}), so results do not outlive the process until they are committed; see that there is room in the run folder, gateway.run, and that it can be written"
                );
                tracing::error!("{message}");
                self.event("outbox-ring-failing", &message, &[]);
            }
        }
    }

    /// Results or events were dropped by a policy, because more waited for the broker than the agent keeps.
    pub fn dropped(&self, count: u64) {
        let message = format!(
            "{count} results or events were dropped, because too many wait for the uplink's broker, or for too long; range records say which; see that the broker can be reached and takes them, raise outbox.max_bytes, or publish less, such as with publish = \"changes\""
        );
        tracing::error!(count, "{message}");
        self.event("results-dropped", &message, &[("count", &count.to_string())]);
    }

    /// A model serves from now on.
    pub fn model_activated(&self, manifest: &Manifest, proved: &Proved) {
        let (name, version) = (manifest.name.as_str(), manifest.version.to_string());
        let (engine, variant) = (proved.serving.choice.engine.as_str(), proved.serving.choice.variant.as_str());
        tracing::info!(model = name, version, engine, variant, "serving");
        let message = format!("model {name} {version} serves: {variant} on {engine}");
        self.event("model-activated", &message, &[("model", name), ("version", &version)]);
    }

    /// A pipeline does not fit beside what runs.
    pub fn pipeline_refused(&self, pipeline: &str, why: &str) {
        tracing::error!(pipeline, why, "the pipeline is refused; what runs goes on");
        self.event("pipeline-refused", why, &[("pipeline", pipeline)]);
    }

    /// A new version does not take the place of the one that serves.
    pub fn swap_refused(&self, model: &str, why: &str) {
        tracing::error!(model, why, "the new version is refused; the old one goes on");
        self.event("swap-refused", why, &[("model", model)]);
    }

    /// Windows wait for a model that finds no room.
    pub fn model_waits(&self, model: &str, why: &str) {
        tracing::warn!(model, why, "a model that is wanted cannot be loaded now; its windows are rejected");
        self.event("model-waits", why, &[("model", model)]);
    }

    /// A source turned out to ask for more than was admitted.
    pub fn over_budget(&self, source: &str, why: &str) {
        let message =
            format!("source {source}, as measured, does not fit: {why}; what comes faster than declared is shed first");
        tracing::warn!(source, "{message}");
        self.event("over-budget", &message, &[("source", source)]);
    }

    /// No analytic job has started for so long.
    pub fn starved(&self, worker: usize, waited: Duration) {
        let message = format!(
            "worker {worker} has started no analytic job for {:.0} s, for all the realtime work; raise budget.cpu, or lower rates",
            waited.as_secs_f64()
        );
        tracing::warn!(worker, "{message}");
        self.event("starved", &message, &[("worker", &worker.to_string())]);
    }

    /// The last process did not end by itself.
    pub fn crashed(&self, death: &Death) {
        let digests: Vec<String> = death.digests.iter().map(ToString::to_string).collect();
        let running = match digests.as_slice() {
            [] => "no session was running".to_owned(),
            some => format!("a session of the package {} was running", some.join(" or ")),
        };
        let message = format!("the agent was ended by {}; {running}", death.signal);
        tracing::error!("{message}");
        self.event("crashed", &message, &[]);
    }

    /// A session does not come back.
    pub fn session_hung(&self, model: &str, pipeline: Option<&str>, ran: Duration) {
        let message = format!(
            "model {model} has been running for {:.1} s, which is longer than runtime.hang_limit; its windows failed, and the agent ends to be started again",
            ran.as_secs_f64()
        );
        tracing::error!(model, pipeline, "{message}");
        self.event("session-hung", &message, &[("model", model), ("pipeline", pipeline.unwrap_or("request"))]);
    }

    /// The machine suffers, or no longer.
    pub fn pressure(&self, pressed: bool, why: &str) {
        let kind = if pressed { "pressure" } else { "pressure-relieved" };
        tracing::warn!(
            pressed,
            why,
            "pipelines with a reduced variant {}",
            if pressed { "go down to it" } else { "come back" }
        );
        self.event(kind, why, &[]);
    }

    /// A model does not serve.
    pub fn model_refused(&self, pipeline: &str, model: &str, why: &str) {
        tracing::error!(pipeline, model, why, "the model is refused, its pipeline does not run");
        self.event("model-refused", why, &[("pipeline", pipeline), ("model", model)]);
    }
}

/// What was dropped for want of room, and how much of it was said.
///
/// The event that tells of it may itself take the place of a result. That one is told with the next that are dropped,
/// or an agent without its broker and without samples would report its own reports for ever.
#[derive(Debug, Default)]
pub struct DropWatch {
    told: u64,
    by_telling: u64,
}

impl DropWatch {
    /// Looks at the count, and calls `tell` with what was dropped since it was called last, if there is any. `dropped`
    /// gives the count since the start.
    pub fn look(&mut self, dropped: impl Fn() -> u64, tell: impl FnOnce(u64)) {
        let count = dropped();
        let lost = count.saturating_sub(self.told);
        if lost > self.by_telling {
            tell(lost);
            self.told = count;
            self.by_telling = dropped().saturating_sub(count);
        }
    }
}

/// Why messages or samples of a source were refused, and how often.
#[derive(Debug, Default)]
pub struct SourceLedger {
    messages: AtomicU64,
    samples: AtomicU64,
    complaints: Mutex<BTreeMap<&'static str, Complaint>>,
}

#[derive(Debug, Default)]
struct Complaint {
    count: u64,
    logged: Option<Moment>,
    since_logged: u64,
}

impl SourceLedger {
    /// Counts a message that was taken, with its samples.
    pub fn took(&self, samples: u64) {
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.samples.fetch_add(samples, Ordering::Relaxed);
    }

    /// Counts `count` of something refused, and logs it unless the same was logged within the minute.
    pub fn complain(
        &self,
        source: &str,
        topic: &str,
        reason: &'static str,
        count: u64,
        sentence: impl FnOnce() -> String,
    ) {
        let now = Moment::now();
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        let complaint = complaints.entry(reason).or_default();
        complaint.count += count;
        complaint.since_logged += count;
        if complaint.logged.is_none_or(|at| now.since(at) >= COMPLAIN_EVERY) {
            let times = std::mem::take(&mut complaint.since_logged);
            complaint.logged = Some(now);
            drop(complaints);
            tracing::warn!(source, topic, reason, times, "{}", sentence());
        }
    }

    /// Whether any message was taken or refused so far.
    pub fn heard(&self) -> bool {
        self.messages.load(Ordering::Relaxed) > 0
            || !self.complaints.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// For telemetry.
    pub fn figures(&self) -> SourceFigures {
        let complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        SourceFigures {
            messages: self.messages.load(Ordering::Relaxed),
            samples: self.samples.load(Ordering::Relaxed),
            refused: complaints.iter().map(|(reason, c)| ((*reason).to_owned(), c.count)).collect(),
        }
    }
}

/// A ledger for telemetry and status, with these quantiles.
pub fn figures(ledger: &Ledger, quantiles: Option<[StageQuantiles; Stage::ALL.len()]>) -> PipelineFigures {
    let outcomes = Outcome::ALL.iter().map(|outcome| (outcome.word().to_owned(), ledger.count(*outcome))).collect();
    let latency_us = quantiles
        .iter()
        .flat_map(|quantiles| Stage::ALL.iter().zip(quantiles))
        .map(|(stage, q)| (stage.word().to_owned(), Quantiles { p50: q.p50, p99: q.p99, max: q.max }));
    PipelineFigures {
        windows: ledger.windows(),
        outcomes,
        late: ledger.late(),
        batches: ledger.batches().map(|(size, count)| (size as u32, count)).collect(),
        latency_us: latency_us.collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn the_list_of_events_is_that_of_the_documentation() {
        let text = include_str!("../../../docs/events.md");
        let named = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        let mut documented = Vec::new();
        for row in text.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = row.split(" | ").collect();
            let keys = named(cells.last().expect("a row has cells"));
            documented.extend(named(cells[0]).into_iter().map(|kind| (kind, keys.clone())));
        }
        documented.sort();
        let listed: Vec<_> = EVENTS
            .iter()
            .map(|(kind, keys)| ((*kind).to_owned(), keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>()))
            .collect();
        assert_eq!(documented, listed);
    }

    /// A reporter, its outbox, and where that is.
    fn reporter() -> (Reporter, Arc<Outbox>, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::for_test(folder.path(), crate::link::outgoing::Packing::SINGLE, &Arc::default());
        (Reporter::new(Arc::clone(&outbox), Arc::new(EventIds::new("g".into())), "l/1/g/event".into()), outbox, folder)
    }

    fn url() -> BrokerUrl {
        "mqtt://broker".parse().unwrap()
    }

    fn login() -> Why {
        Why::lasting("the broker refuses user 'a' with client id 'g' (NotAuthorized); check username and password_file")
    }

    #[test]
    fn a_refused_login_is_an_event_once_until_a_connection_is_made() {
        let (reporter, outbox, _folder) = reporter();
        for _ in 0..5 {
            reporter.link_lost("b", &url(), &login(), false);
            reporter.link_lost("b", &url(), &Why::passing("connection refused"), false);
        }
        assert_eq!(outbox.waiting(), 1);
        // Another reason, and another broker, are news.
        reporter.link_lost("b", &url(), &Why::lasting("password_file /p cannot be read: No such file"), false);
        reporter.link_lost("c", &url(), &login(), false);
        assert_eq!(outbox.waiting(), 3);
        reporter.link_made("b", &url());
        reporter.link_lost("b", &url(), &login(), false);
        assert_eq!(outbox.waiting(), 5, "link-up, and the login is refused anew");
    }

    #[test]
    fn every_drop_is_told_in_some_report() {
        let (count, told) = (Cell::new(0), Cell::new(0));
        let mut watch = DropWatch::default();
        let mut look = |more: u64, own: u64| {
            count.set(count.get() + more);
            let before = told.get();
            watch.look(
                || count.get(),
                |lost| {
                    told.set(before + lost);
                    count.set(count.get() + own);
                },
            );
            told.get() - before
        };
        assert_eq!(look(0, 0), 0);
        assert_eq!(look(3, 1), 3);
        assert_eq!(look(0, 1), 0, "what the report itself pushed out is no reason for another");
        assert_eq!(look(2, 1), 3, "and is told with the next");
        assert_eq!(look(0, 1), 0);
    }
}
