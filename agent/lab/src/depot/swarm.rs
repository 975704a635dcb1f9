//! `limpet-lab depot swarm`: what a fleet asks of a broker, from few processes.
//!
//! Each gateway is a thread with a runtime, an MQTT connection, a store and a state of trust of its own, and runs the
//! code that the agent runs between the depot's timestamp and a whole package: [`limpet_depot::ask`], `trust`, `select`,
//! `fetch` and `store`. There it ends: nothing is proved and no engine runs, so a version that is whole in the store is put on
//! record as what serves, and the gateway's retained `models` say so.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use jiff::Timestamp;
use limpet_depot::Store;
use limpet_depot::clock::Clock;
use limpet_depot::fetch::{self, Bounds, Chunks, Progress};
use limpet_depot::remote::Remote;
use limpet_depot::select::{self, Choice, Gateway};
use limpet_depot::store::Installed;
use limpet_depot::trust::{Trust, Trusted};
use limpet_wire::depot::{MESSAGE_MAX, Name};
use limpet_wire::message::{Message as _, ModelPhase, ModelState, Models};
use limpet_wire::name::check_name;
use limpet_wire::topic::Topics;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use tokio::sync::watch;

use super::cli::SwarmArgs;
use super::mqtt::{MqttDepot, NotTaken, random};
use super::place::prefix;
use crate::bench::text::thousands;
use crate::mqtt::broker::Broker;
use crate::usage;

/// Stack of a gateway's thread: addresses, of which it uses a few hundred kilobytes.
const STACK: usize = 2 << 20;
/// Bytes that a store may hold.
const DISK: u64 = 256 << 20;
/// Versions that are kept beside the one that serves.
const KEEP: usize = 1;
/// Gateways that are named for each reason.
const NAMED: usize = 5;
/// What the swarm says of itself.
const NOT_DONE: &str = "no proof and no engine: a version that is whole in the store counts as active";

/// What all gateways of the swarm share.
struct Swarm<'a> {
    args: &'a SwarmArgs,
    prefix: &'a str,
    broker: Broker,
    state: &'a Path,
    started: Instant,
    until: tokio::time::Instant,
    /// How many have looked at the depot once.
    looked: AtomicU32,
    /// How many have come to an end.
    ended: watch::Sender<u32>,
}

/// What became of a gateway.
struct Outcome {
    id: String,
    /// Since the start, or why it is not active.
    active: Result<Duration, NotActive>,
    messages: u64,
    bytes: u64,
    chunk_bytes: u64,
}

/// Why a gateway is not active.
struct NotActive {
    why: String,
    /// Something was refused, or went wrong; else nothing came.
    failed: bool,
}

/// What became of all.
#[derive(Serialize)]
struct Report {
    gateways: u32,
    active: usize,
    failed: Vec<Complaint>,
    waiting: Vec<Complaint>,
    /// When it started, in seconds since 1970.
    started_unix_s: f64,
    /// From the start until a gateway was active.
    first_s: Option<f64>,
    median_s: Option<f64>,
    last_s: Option<f64>,
    /// Messages that all of them received.
    messages: u64,
    /// Their topics and payloads.
    bytes: u64,
    /// Chunks that were kept, as stored.
    chunk_bytes: u64,
    not_done: &'static str,
}

#[derive(Serialize)]
struct Complaint {
    gateway: String,
    why: String,
}

/// Runs the swarm until each gateway is active or has failed.
///
/// # Errors
/// If it cannot start. Exit code 1 says that not all became active.
pub fn run(args: &SwarmArgs) -> anyhow::Result<ExitCode> {
    let prefix = prefix(&args.topics)?;
    let longest = id(args, args.gateways - 1);
    check_name(&longest).map_err(|error| usage(format!("--id-prefix: '{longest}' is no gateway: {error}")))?;
    anyhow::ensure!(args.root.is_file(), "{}: there is no such file; `init` writes it", args.root.display());
    raise_open_files();
    let scratch;
    let state = match &args.state {
        Some(state) => state,
        None => {
            scratch = tempfile::tempdir().context("no folder for the stores")?;
            scratch.path()
        }
    };
    let started_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let started = Instant::now();
    let swarm = Swarm {
        args,
        prefix,
        broker: Broker::new(&args.broker, &args.login)?,
        state,
        started,
        until: (started + args.timeout.0).into(),
        looked: AtomicU32::new(0),
        ended: watch::channel(0).0,
    };
    let outcomes = thread::scope(|scope| -> anyhow::Result<Vec<Outcome>> {
        let gateways = (0..args.gateways).map(|number| {
            let swarm = &swarm;
            let builder = thread::Builder::new().name(id(args, number)).stack_size(STACK);
            builder.spawn_scoped(scope, move || swarm.gateway(number)).context("a gateway has no thread")
        });
        let gateways: Vec<_> = gateways.collect::<anyhow::Result<_>>()?;
        gateways.into_iter().map(|gateway| gateway.join().map_err(|_| anyhow::anyhow!("a gateway panicked"))).collect()
    })?;
    let report = Report::of(args.gateways, outcomes, started_unix_s);
    if args.json {
        println!("{}", serde_json::to_string(&report).context("the report is no JSON")?);
    } else {
        print!("{}", report.text());
    }
    Ok(if report.active == args.gateways as usize { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn id(args: &SwarmArgs, number: u32) -> String {
    format!("{}{number}", args.id_prefix)
}

/// A connection, a runtime and a file that is being written take several files each.
fn raise_open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Where it is not allowed the gateways that lack one say so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

impl Swarm<'_> {
    /// One gateway, from its first connection until all have ended.
    fn gateway(&self, number: u32) -> Outcome {
        let id = id(self.args, number);
        let mut outcome = Outcome { id, active: failed("it did not begin"), messages: 0, bytes: 0, chunk_bytes: 0 };
        match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(self.live(&mut outcome)),
            Err(error) => {
                outcome.active = failed(format!("it has no runtime: {error}"));
                self.ended.send_modify(|ended| *ended += 1);
            }
        }
        outcome
    }

    async fn live(&self, outcome: &mut Outcome) {
        let connected = MqttDepot::connect(self.broker.clone(), self.prefix, &outcome.id).await;
        let depot = match connected {
            Ok(depot) => {
                let depot = Arc::new(depot);
                let mut life = Life::new(self, Arc::clone(&depot), &outcome.id);
                outcome.active = match tokio::time::timeout_at(self.until, life.follow()).await {
                    Ok(Ok(())) => Ok(self.started.elapsed()),
                    Ok(Err(why)) => failed(why),
                    Err(_) => Err(NotActive { why: life.why, failed: false }),
                };
                outcome.chunk_bytes = life.chunk_bytes;
                Some(depot)
            }
            Err(error) => {
                outcome.active = failed(error.to_string());
                None
            }
        };
        self.ended.send_modify(|ended| *ended += 1);
        // Gateways stay connected, and so do these until the last one has come to an end.
        let all = self.args.gateways;
        let _ = tokio::time::timeout_at(self.until, self.ended.subscribe().wait_for(|ended| *ended == all)).await;
        if let Some(depot) = depot {
            (outcome.messages, outcome.bytes) = (depot.traffic().messages(), depot.traffic().bytes());
        }
    }

    /// A gateway has done what the depot asked of it first; the last one of them says so.
    fn one_has_looked(&self) {
        if self.looked.fetch_add(1, Ordering::Relaxed) + 1 == self.args.gateways {
            eprintln!("limpet-lab: all {} gateways have looked at the depot", self.args.gateways);
        }
    }
}

/// One gateway.
struct Life<'a> {
    swarm: &'a Swarm<'a>,
    depot: Arc<MqttDepot>,
    gateway: Gateway,
    topic: String,
    /// Its state directory.
    folder: PathBuf,
    /// What it says of its models.
    models: BTreeMap<String, ModelState>,
    chunk_bytes: u64,
    /// Why it is not active yet.
    why: String,
}

impl<'a> Life<'a> {
    fn new(swarm: &'a Swarm<'a>, depot: Arc<MqttDepot>, id: &str) -> Self {
        let args = swarm.args;
        let (labels, channel) = (args.label.iter().cloned().collect(), args.channel.clone());
        Self {
            swarm,
            depot,
            gateway: Gateway { id: id.to_owned(), labels, channel },
            topic: Topics::new(swarm.prefix, id).models(),
            folder: swarm.state.join(id),
            models: BTreeMap::new(),
            chunk_bytes: 0,
            why: "the depot's timestamp has not come".to_owned(),
        }
    }

    /// Follows the depot until all models serve.
    async fn follow(&mut self) -> Result<(), String> {
        let store = Store::open(&self.folder).map_err(|error| error.to_string())?;
        let mut following = self.depot.fetcher().follow(&Name::Timestamp, MESSAGE_MAX);
        following.next().await;
        let mut first = true;
        loop {
            let serves = tokio::select! {
                serves = self.round(&store) => serves,
                // What is under way may be out of date.
                _ = following.next() => continue,
            };
            if std::mem::take(&mut first) {
                self.swarm.one_has_looked();
            }
            if serves? {
                return Ok(());
            }
            following.next().await;
        }
    }

    /// Does what the depot asks for now. Says whether all models serve.
    async fn round(&mut self, store: &Store) -> Result<bool, String> {
        let root = &self.swarm.args.root;
        // Simulated gateways know the time, and no time before it.
        let mut trust = Trust::open(&self.folder, root, Timestamp::UNIX_EPOCH).map_err(|error| error.to_string())?;
        let clock = Clock { now: Timestamp::now(), right: true };
        let remote: Arc<dyn Remote> = Arc::clone(&self.depot) as _;
        let updated = trust.update(remote, || clock).await;
        // A gateway shows itself also while it has nothing, and when it trusts nothing.
        self.show().await?;
        updated.map_err(|error| error.to_string())?;
        let time = trust.judge(clock).time;
        let Some(trusted) = trust.trusted() else { return Ok(false) };
        let mut all = true;
        for (model, range) in &self.swarm.args.model {
            let active = store.record(model).map_err(|error| error.to_string())?.active;
            let version = active.as_ref().map(|active| active.version.as_str());
            match select::choose(trusted, &self.gateway, model, range, version, &|_| false, time) {
                Choice::Take(version) => {
                    if let Err(error) = self.take(store, trusted, model, &version).await {
                        let why = format!("{model} {version} is not delivered: {error}");
                        self.set(model, &version, ModelPhase::Fetching, None, Some(why.clone()));
                        self.show().await?;
                        return Err(why);
                    }
                }
                Choice::Stay(why) if active.is_none() => {
                    self.why = format!("{model}: {why}");
                    all = false;
                }
                Choice::Stay(_) | Choice::Withdrawn { .. } => {}
            }
        }
        Ok(all)
    }

    /// Brings a version into the store, and lets it count as what serves.
    async fn take(
        &mut self,
        store: &Store,
        trusted: &Trusted,
        model: &str,
        version: &str,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let args = self.swarm.args;
        let depot = Arc::clone(&self.depot);
        let _hold = store.hold()?;
        let index = fetch::index(trusted, store, &*depot, model, version).await?;
        if !store.missing(&index).is_empty() {
            self.why = format!("{model} {version} is on its way");
            tokio::time::sleep(args.jitter.0.mul_f64(random() as f64 / u64::MAX as f64)).await;
        }
        let chunks = Chunks::of(trusted, &*depot, None)?;
        let bounds = Bounds { rate: args.rate.0, disk: DISK };
        let shown = Mutex::new((&mut *self, None));
        let progress = |progress: Progress| {
            let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
            let before = shown.1.replace(progress.done);
            shown.0.chunk_bytes += progress.done - before.unwrap_or(progress.done);
            // In steps of a tenth, as the agent's board.
            let tenth = |done: u64| done * 10 / progress.of.max(1);
            if before.map(tenth) != Some(tenth(progress.done)) {
                let share = progress.done as f32 / progress.of.max(1) as f32;
                shown.0.set(model, version, ModelPhase::Fetching, Some(share), None);
                // Sent in this order; nobody waits for it.
                tokio::spawn(shown.0.say());
            }
        };
        fetch::chunks(store, chunks.remote(), &index, bounds, &progress).await?;
        let package = fetch::open(store, &index)?;
        store.update_record(model, |record| record.activate(Installed::of(&package), KEEP))?;
        self.models.retain(|_, shown| shown.name != model);
        self.set(model, version, ModelPhase::Active, None, None);
        self.show().await?;
        Ok(())
    }

    fn set(&mut self, model: &str, version: &str, state: ModelPhase, progress: Option<f32>, failure: Option<String>) {
        let (name, version) = (model.to_owned(), version.to_owned());
        let (engine, variant, agreement) = (None, None, None);
        let key = format!("{name}@{version}");
        self.models.insert(key, ModelState { name, version, state, engine, variant, progress, agreement, failure });
    }

    /// Puts what it says of its models on the broker.
    async fn show(&self) -> Result<(), String> {
        self.say().await.map_err(|error| format!("{}: {error}", self.topic))
    }

    fn say(&self) -> impl Future<Output = Result<(), NotTaken>> + Send + use<> {
        let message = Models {
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            labels: self.gateway.labels.clone(),
            clock: limpet_wire::result::Clock::Synced,
            models: self.models.values().cloned().collect(),
            configuration: None,
        };
        self.depot.say(self.topic.clone(), message.to_json().into())
    }
}

fn failed(why: impl Into<String>) -> Result<Duration, NotActive> {
    Err(NotActive { why: why.into(), failed: true })
}

impl Report {
    fn of(gateways: u32, outcomes: Vec<Outcome>, started_unix_s: f64) -> Self {
        let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum();
        let (messages, bytes, chunk_bytes) = (sum(|o| o.messages), sum(|o| o.bytes), sum(|o| o.chunk_bytes));
        let mut times = Vec::new();
        let (mut failed, mut waiting) = (Vec::new(), Vec::new());
        for Outcome { id: gateway, active, .. } in outcomes {
            match active {
                Ok(time) => times.push(time.as_secs_f64()),
                Err(NotActive { why, failed: true }) => failed.push(Complaint { gateway, why }),
                Err(NotActive { why, .. }) => waiting.push(Complaint { gateway, why }),
            }
        }
        times.sort_unstable_by(f64::total_cmp);
        Self {
            gateways,
            active: times.len(),
            failed,
            waiting,
            started_unix_s,
            first_s: times.first().copied(),
            median_s: times.get(times.len() / 2).copied(),
            last_s: times.last().copied(),
            messages,
            bytes,
            chunk_bytes,
            not_done: NOT_DONE,
        }
    }

    fn text(&self) -> String {
        let (failed, waiting) = (self.failed.len(), self.waiting.len());
        let mut text = format!("{} of {} gateways are active, {failed} failed", self.active, self.gateways);
        if waiting > 0 {
            text.push_str(&format!(", {waiting} wait"));
        }
        if let (Some(first), Some(median), Some(last)) = (self.first_s, self.median_s, self.last_s) {
            text.push_str(&format!("; first after {first:.2} s, half after {median:.2} s, last after {last:.2} s"));
        }
        let (messages, bytes, chunks) = (thousands(self.messages), thousands(self.bytes), thousands(self.chunk_bytes));
        text.push_str(&format!("\n{messages} messages received, {bytes} bytes, of which {chunks} of chunks\n"));
        text.push_str(&format!("{NOT_DONE}\n"));
        for (what, list) in [("failed", &self.failed), ("waits", &self.waiting)] {
            let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            list.iter().for_each(|one| reasons.entry(&one.why).or_default().push(&one.gateway));
            for (why, gateways) in reasons {
                let more = gateways.len().saturating_sub(NAMED);
                let names = gateways.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                text.push_str(&format!("{what}: {names}{more}: {why}\n"));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_counts_what_became_of_each_and_names_a_few_for_every_reason() {
        let outcome = |number: u64, active| {
            let id = format!("g{number}");
            Outcome { id, active, messages: 10, bytes: 1000 * number, chunk_bytes: number }
        };
        let mut outcomes: Vec<Outcome> =
            (1..=3).rev().map(|number| outcome(number, Ok(Duration::from_secs(number)))).collect();
        outcomes.extend((4..=10).map(|number| outcome(number, failed("no root"))));
        outcomes.push(outcome(11, Err(NotActive { why: "m: not offered".into(), failed: false })));
        let report = Report::of(11, outcomes, 0.0);
        assert_eq!((report.active, report.failed.len(), report.waiting.len()), (3, 7, 1));
        assert_eq!((report.first_s, report.median_s, report.last_s), (Some(1.0), Some(2.0), Some(3.0)));
        assert_eq!((report.messages, report.bytes, report.chunk_bytes), (110, 66_000, 66));
        let text = report.text();
        assert!(text.contains("3 of 11 gateways are active, 7 failed, 1 wait; first after 1.00 s"), "{text}");
        assert!(text.contains("failed: g4, g5, g6, g7, g8 and 2 more: no root\n"), "{text}");
        assert!(text.contains("waits: g11: m: not offered\n") && text.contains(NOT_DONE), "{text}");
        let nobody = Report::of(1, vec![outcome(1, failed("no root"))], 0.0);
        assert_eq!((nobody.first_s, nobody.median_s), (None, None));
    }
}
