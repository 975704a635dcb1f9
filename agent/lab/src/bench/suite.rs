//! The scenarios on one contender, and the rows that come of them.

use std::time::Duration;

use anyhow::Context as _;
use limpet_engine::LoadOptions;
use serde::{Serialize, Serializer};

use super::arrivals::poisson;
use super::progress::Progress;
use super::scenario::{self, MULTI_STREAM_SAMPLES, QUERIES_MAX, STRETCH, Stream, Times, nanoseconds};
use super::search::{Search, Step};
use super::statistics::{self, Percentile, Tail};
use super::subject::{Contender, Loaded};
use super::text;

/// How long a session runs before it is timed.
const WARM_UP: Duration = Duration::from_millis(50);
/// Seed of the arrivals: the same in every run, so that two rates differ by their rate alone.
const SEED: u64 = 1;
/// A short run of the server scenario lasts this share of a full one.
const PROBE_SHARE: u32 = 5;
/// A backlog grows by the overload, so a run shorter than so many bounds ends before an overload shows: one of a
/// hundredth of the rate, in a run of full length, takes a hundred bounds to grow to one.
const BOUNDS_IN_A_PROBE: u32 = 25;
const BOUNDS_IN_A_RUN: u32 = 100;

/// A way of sending samples to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// One sample after the other; p90 of the latency.
    SingleStream,
    /// Eight samples after eight others; p99 of the latency.
    MultiStream,
    /// Poisson arrivals; the highest rate with 99 % of the latencies within the bound.
    Server,
    /// All samples at once; samples a second.
    Offline,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::SingleStream, Self::MultiStream, Self::Server, Self::Offline];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::SingleStream => "single-stream",
            Self::MultiStream => "multi-stream",
            Self::Server => "server",
            Self::Offline => "offline",
        }
    }
}

/// What is to be run on each contender.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Which scenarios, in order.
    pub scenarios: Vec<Scenario>,
    /// How long each at least.
    pub length: Duration,
    /// Latency that the server scenario keeps.
    pub bound: Duration,
    /// Numbers of threads: inside one run for the streams, of sessions side by side for server and offline.
    pub threads: Vec<usize>,
    /// Numbers of samples of one run.
    pub batches: Vec<usize>,
}

/// A tail of latencies as programs read it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TailUs(pub Tail);

impl Serialize for TailUs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Told {
            is: &'static str,
            us: f64,
            #[serde(skip_serializing_if = "Option::is_none")]
            discarded: Option<usize>,
        }
        let us = us(self.0.ns());
        match self.0 {
            Tail::Estimate { percentile, discarded, .. } => {
                Told { is: percentile.name(), us, discarded: Some(discarded) }
            }
            Tail::Max { .. } => Told { is: "max", us, discarded: None },
        }
        .serialize(serializer)
    }
}

/// Latencies of one run, in short.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    /// How many there are: queries, or batches in the offline scenario.
    pub queries: usize,
    /// The median, in microseconds.
    pub p50_us: f64,
    /// The scenario's percentile by early stopping, or the longest.
    pub tail: TailUs,
}

impl Latency {
    fn of(times: &Times, percentile: Percentile) -> Self {
        Self {
            queries: times.sorted.len(),
            p50_us: us(statistics::median(&times.sorted)),
            tail: TailUs(statistics::tail(&times.sorted, percentile)),
        }
    }
}

/// One rate of the server scenario.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// Scheduled arrivals a second.
    pub rate: f64,
    /// Latencies from the scheduled time.
    #[serde(flatten)]
    pub latency: Latency,
    /// How many were above the bound.
    pub over: usize,
    /// Whether that shows, with 99 % confidence, that 99 % are within it.
    pub kept: bool,
}

/// The result of one scenario.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Name of the engine.
    pub engine: &'static str,
    /// The variant's file.
    pub variant: String,
    /// What the engine says of its kernels for this graph.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// How samples were sent.
    pub scenario: Scenario,
    /// Threads inside a run (streams) or sessions side by side (server, offline).
    pub threads: usize,
    /// Samples of one run of the session.
    pub batch: usize,
    /// Of the queries; of the batches if offline. None if the server scenario found no rate.
    pub latency: Option<Latency>,
    /// Samples a second: those of the run, and for the server scenario the rate that keeps the bound.
    pub per_second: Option<f64>,
    /// Every rate that the server scenario tried, ascending.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sweep: Vec<Point>,
    /// What a reader has to know beside the figures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Row {
    /// What the scenario is judged by.
    pub fn result(&self) -> String {
        match (self.scenario, &self.latency, self.per_second) {
            (Scenario::SingleStream | Scenario::MultiStream, Some(latency), _) => {
                format!("{} {}", latency.tail.0.name(), text::time(latency.tail.0.ns() as f64))
            }
            (Scenario::Server, _, Some(rate)) => text::rate(rate, "queries"),
            (Scenario::Offline, _, Some(rate)) => text::rate(rate, "samples"),
            _ => "none".to_owned(),
        }
    }

    /// Titles of [`Row::cells`]; those of columns to the left end in a space.
    pub const TITLES: [&'static str; 9] =
        ["engine ", "variant ", "scenario ", "threads", "batch", "result", "p50", "tail", "queries"];

    /// The row for people.
    pub fn cells(&self) -> [String; 9] {
        let dash = || "–".to_owned();
        let latency = self.latency.as_ref();
        let stream = matches!(self.scenario, Scenario::SingleStream | Scenario::MultiStream);
        [
            self.engine.to_owned(),
            self.variant.clone(),
            self.scenario.name().to_owned(),
            self.threads.to_string(),
            self.batch.to_string(),
            self.result(),
            latency.map_or_else(dash, |latency| text::time(latency.p50_us * 1e3)),
            latency.filter(|_| !stream).map_or_else(dash, |latency| {
                format!("{} {}", latency.tail.0.name(), text::time(latency.tail.0.ns() as f64))
            }),
            latency.map_or_else(dash, |latency| text::thousands(latency.queries as u64)),
        ]
    }
}

/// What was measured of one contender.
#[derive(Debug, Default)]
pub struct Measured {
    /// A row for each scenario, number of threads and batch.
    pub rows: Vec<Row>,
    /// What was not measured and why.
    pub notes: Vec<String>,
}

/// Runs the settings on one contender.
///
/// # Errors
/// If a session that was loaded fails to run.
pub fn measure(contender: &Contender<'_>, settings: &Settings, progress: &Progress) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    let name = format!("{} on {}", contender.variant, contender.engine());
    let batched = settings.scenarios.iter().any(|s| matches!(s, Scenario::MultiStream | Scenario::Offline));
    let mut batches = Vec::new();
    for &batch in settings.batches.iter().filter(|batch| batched || **batch == 1) {
        match contender.stations(1, LoadOptions { batch, threads: 1 }) {
            Ok(_) => batches.push(batch),
            Err(error) => {
                measured.notes.push(format!("{name}: batch {batch} is not measured, it runs one by one: {error}"))
            }
        }
    }
    // A query of eight needs a batch that divides it; sessions always take 1.
    let multi = batches.iter().copied().filter(|batch| MULTI_STREAM_SAMPLES.is_multiple_of(*batch)).max().unwrap_or(1);
    for &scenario in &settings.scenarios {
        for &threads in &settings.threads {
            let stream = matches!(scenario, Scenario::SingleStream | Scenario::MultiStream);
            if stream && threads > 1 && !contender.threads_in_a_run() {
                let (scenario, engine) = (scenario.name(), contender.engine());
                let note = format!("{name}: no {scenario} on {threads} threads, {engine} runs a graph on one");
                measured.notes.push(note);
                progress.done(1);
                continue;
            }
            let sizes = match scenario {
                Scenario::SingleStream | Scenario::Server => &[1][..],
                Scenario::MultiStream => &[multi],
                Scenario::Offline => &batches,
            };
            for &batch in sizes {
                progress.start(format!("{name} · {} · {threads} × batch {batch}", scenario.name()));
                let row = run(contender, scenario, threads, batch, settings, progress)
                    .with_context(|| format!("{name}, {}", scenario.name()))?;
                measured.rows.push(row);
                progress.done(1);
            }
            if scenario == Scenario::Offline {
                progress.done(settings.batches.len() - batches.len());
            }
        }
    }
    Ok(measured)
}

/// How many rows [`measure`] works through.
pub fn work(settings: &Settings) -> usize {
    let of = |scenario| if scenario == Scenario::Offline { settings.batches.len() } else { 1 };
    settings.scenarios.iter().map(|scenario| of(*scenario)).sum::<usize>() * settings.threads.len()
}

fn run(
    contender: &Contender<'_>,
    scenario: Scenario,
    threads: usize,
    batch: usize,
    settings: &Settings,
    progress: &Progress,
) -> anyhow::Result<Row> {
    let row = |latency, per_second| Row {
        engine: contender.engine(),
        variant: contender.variant.clone(),
        detail: contender.detail.clone(),
        scenario,
        threads,
        batch,
        latency,
        per_second,
        sweep: Vec::new(),
        note: None,
    };
    Ok(match scenario {
        Scenario::SingleStream | Scenario::MultiStream => {
            let (samples, percentile) = match scenario {
                Scenario::MultiStream => (MULTI_STREAM_SAMPLES, Percentile::P99),
                _ => (1, Percentile::P90),
            };
            let options = LoadOptions { batch, threads };
            let rule = Stream { samples, percentile, length: settings.length };
            let times = stream(contender, options, rule, |share| progress.at(share))?;
            let per_second = (times.sorted.len() * samples) as f64 / times.elapsed.as_secs_f64();
            row(Some(Latency::of(&times, percentile)), Some(per_second))
        }
        Scenario::Offline => {
            let times = offline(contender, threads, batch, settings.length)?;
            let per_second = (times.sorted.len() * batch) as f64 / times.elapsed.as_secs_f64();
            row(Some(Latency::of(&times, Percentile::P99)), Some(per_second))
        }
        Scenario::Server => {
            let mut stations = contender.stations(threads, LoadOptions::default())?;
            let served = server(&mut stations, settings, progress)?;
            let found = served.found.as_ref();
            Row {
                note: served.why,
                sweep: served.sweep,
                ..row(found.map(|(_, latency)| *latency), found.map(|(rate, _)| *rate))
            }
        }
    })
}

/// Runs a stream on one session.
///
/// # Errors
/// If the graph does not load with these options or fails to run.
pub fn stream(
    contender: &Contender<'_>,
    options: LoadOptions,
    rule: Stream,
    tick: impl FnMut(f64),
) -> anyhow::Result<Times> {
    let mut stations = contender.stations(1, options)?;
    let station = stations.first_mut().context("one session was loaded")?;
    scenario::warm_up(station, WARM_UP)?;
    Ok(scenario::stream(station, rule, tick)?)
}

/// Runs as many samples as last `length`, on so many sessions side by side.
///
/// # Errors
/// If the graph does not load with this batch or fails to run.
pub fn offline(contender: &Contender<'_>, threads: usize, batch: usize, length: Duration) -> anyhow::Result<Times> {
    let mut stations = contender.stations(threads, LoadOptions { batch, threads: 1 })?;
    for station in &mut stations {
        scenario::warm_up(station, WARM_UP / threads as u32)?;
    }
    // All samples are there at the start, so their number is decided before: from a short run, and again from a run
    // that proved too short.
    let mut batches = threads * 3;
    loop {
        let times = scenario::offline(&mut stations, batches)?;
        if times.elapsed >= length || batches >= QUERIES_MAX {
            return Ok(times);
        }
        let share = length.as_secs_f64() / times.elapsed.as_secs_f64().max(1e-9);
        // From a run that is too short to tell, not all the way.
        batches = ((batches as f64 * (share * 1.1).min(20.0)).ceil() as usize).min(QUERIES_MAX);
    }
}

/// What the server scenario found.
struct Served {
    found: Option<(f64, Latency)>,
    sweep: Vec<Point>,
    why: Option<String>,
}

fn server(stations: &mut [Loaded], settings: &Settings, progress: &Progress) -> anyhow::Result<Served> {
    let bound = nanoseconds(settings.bound);
    let none = |sweep, why: String| Ok(Served { found: None, sweep, why: Some(why) });
    let mut service = 0.0_f64;
    for station in stations.iter_mut() {
        service = service.max(scenario::warm_up(station, WARM_UP)?);
    }
    if service > bound as f64 {
        let service = text::time(service);
        return none(Vec::new(), format!("one run takes {service}, which is above the bound: give a longer --bound"));
    }
    let probe = (settings.length / PROBE_SHARE).max(settings.bound * BOUNDS_IN_A_PROBE);
    let full = settings.length.max(settings.bound * BOUNDS_IN_A_RUN);
    // A run of a lower rate would take too long until there are enough queries for a p99.
    let enough = Percentile::P99.queries_min();
    let longest = (settings.length * STRETCH).max(full);
    let lowest = enough as f64 / longest.as_secs_f64();
    let capacity = stations.len() as f64 * 1e9 / service;
    if lowest > capacity {
        let needed = enough as f64 / capacity / f64::from(STRETCH);
        return none(
            Vec::new(),
            format!("a p99 needs {enough} queries, which take too long here: give --seconds {:.0}", needed.ceil()),
        );
    }
    let mut search = Search::new((capacity / 8.0).max(lowest), lowest);
    let mut sweep: Vec<Point> = Vec::new();
    let mut why = None;
    let found = loop {
        let (rate, length, what) = match search.next() {
            Step::Probe(rate) => (rate, probe, "tries"),
            Step::Confirm(rate) => (rate, full, "confirms"),
            Step::Found(rate) => {
                break sweep.iter().rfind(|point| point.rate == rate).map(|point| (rate, point.latency));
            }
            Step::None => {
                let least = sweep.iter().min_by(|a, b| a.rate.total_cmp(&b.rate));
                why = least.map(|Point { rate, latency: Latency { queries, .. }, over, .. }| {
                    let rate = text::rate(*rate, "queries");
                    format!("not even {rate} keep the bound: {over} of {queries} were above it")
                });
                break None;
            }
        };
        progress.start(format!("server {what} {}", text::rate(rate, "queries")));
        let queries = ((rate * length.as_secs_f64()).ceil() as usize).clamp(enough, QUERIES_MAX);
        let times = scenario::server(stations, &poisson(rate, queries, SEED))?;
        let kept = statistics::keeps(&times.sorted, bound);
        search.tell(kept);
        // A confirming run says more of its rate than the short one before it.
        sweep.retain(|point| point.rate != rate);
        let over = statistics::over(&times.sorted, bound);
        sweep.push(Point { rate, latency: Latency::of(&times, Percentile::P99), over, kept });
    };
    sweep.sort_unstable_by(|a, b| a.rate.total_cmp(&b.rate));
    Ok(Served { found, sweep, why })
}

fn us(ns: u64) -> f64 {
    ns as f64 / 1e3
}
