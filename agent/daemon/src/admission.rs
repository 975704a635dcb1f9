//! From pipelines and proofs to the arithmetic of [`limpet_runtime::admission`], and to the text that explains it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use limpet_depot::IngestCost;
use limpet_runtime::Class;
use limpet_runtime::admission::{
    Admitted, Budget, Demand, Mebibytes, Refusal, Shown, Task, WorkerPlan, admit_beside, fit_memory,
};

use crate::config::Config;
use crate::pipeline::model::Facts;
use crate::pipeline::observe::{Figures, Observed};
use crate::pipeline::plan::{PipelinePlan, Plan, SourcePlan, Version};
use crate::pipeline::stream::INGEST_COST;

/// How much later than captured a window may be complete, until it was measured.
const JITTER: Duration = Duration::from_millis(5);

/// A pipeline with what it is to serve.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The package.
    pub version: Arc<Version>,
    /// The model that runs.
    pub full: Arc<Facts>,
    /// The one that runs under pressure.
    pub reduced: Option<Arc<Facts>>,
    /// What the front end takes for a window, by the proof.
    pub ingest: Option<Estimate>,
}

impl Candidate {
    /// Its models.
    pub fn facts(&self) -> impl Iterator<Item = &Arc<Facts>> {
        std::iter::once(&self.full).chain(&self.reduced)
    }

    /// Their numbers.
    pub fn numbers(&self) -> impl Iterator<Item = u32> {
        self.facts().map(|facts| facts.number)
    }

    /// Whether it needs this model.
    pub fn uses(&self, number: u32) -> bool {
        self.numbers().any(|used| used == number)
    }
}

/// Thread CPU time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// On average.
    pub mean: Duration,
    /// All but one in a hundred.
    pub worst: Duration,
}

impl From<IngestCost> for Estimate {
    fn from(cost: IngestCost) -> Self {
        Self { mean: micros(cost.mean_us), worst: micros(cost.p99_us) }
    }
}

/// Microseconds of a proof.
pub fn micros(us: f64) -> Duration {
    Duration::from_secs_f64(us.max(0.0) / 1e6)
}

/// What was seen of a source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Samples in its largest message so far; 0 before the first.
    samples: usize,
    figures: Option<Figures>,
    /// What was measured and did not fit.
    exceeded: Option<Figures>,
}

impl Seen {
    /// The worse of what was seen before and of this.
    pub fn with(self, observed: Observed) -> Self {
        match observed {
            Observed::Samples(samples) => Self { samples: self.samples.max(samples), ..self },
            Observed::Figures(figures) => {
                Self { figures: Some(self.figures.map_or(figures, |before| before.worse(figures))), ..self }
            }
        }
    }

    /// It asks for more than was admitted: what its messages would be like at the declared rate is kept, for shedding.
    pub fn exceeded(self, observed: Observed) -> Self {
        match observed {
            Observed::Samples(_) => self,
            Observed::Figures(figures) => Self { exceeded: Some(figures), ..self },
        }
    }

    /// J: how much later than captured a window may be complete. Until it was measured, the first window of a message
    /// waits for its last sample, and then come 5 ms.
    fn jitter(&self, rate_hz: f64) -> Duration {
        let message = self.samples.saturating_sub(1) as f64 / rate_hz;
        let assumed = || Duration::try_from_secs_f64(message).unwrap_or(Duration::MAX).saturating_add(JITTER);
        self.figures.map_or_else(assumed, |figures| figures.wait)
    }
}

/// What pipelines are tested against.
pub struct Trial<'a> {
    /// The budget.
    pub config: &'a Config,
    /// What is configured.
    pub plan: &'a Plan,
    /// What was seen of each source.
    pub seen: &'a [Seen],
    /// The places that sources have already.
    pub placed: Vec<Option<Vec<u32>>>,
}

impl Trial<'_> {
    /// Tests whether these pipelines fit, by all three tests. The workers of what is admitted count streams by the plan's
    /// sources; a source without a pipeline has none.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn test(&self, serving: &[Option<Candidate>]) -> Result<Admitted, Refusal> {
        let budget = Budget { cpu: self.config.budget.cpu, workers: self.config.budget.workers() };
        let demands = self.demands(serving);
        let nowhere = || Some(vec![0; budget.workers]);
        let placed: Vec<_> = demands
            .iter()
            .zip(&self.placed)
            .map(|(demand, placed)| if demand.tasks.is_empty() { nowhere() } else { placed.clone() })
            .collect();
        let admitted = admit_beside(budget, &demands, &placed)?;
        self.memory(serving, &admitted)?;
        Ok(admitted)
    }

    /// Test 3: measured bytes and the outbox's ring, and the terms. What may be unloaded counts as the largest of it, since
    /// only one such model need be there at a time.
    ///
    /// # Errors
    /// [`Refusal::Memory`].
    pub fn memory(
        &self,
        serving: &[Option<Candidate>],
        admitted: &Admitted,
    ) -> Result<(u64, Vec<(String, u64)>), Refusal> {
        let mut resident: BTreeMap<u32, (String, u64)> = BTreeMap::new();
        let mut passing: BTreeMap<u32, (String, u64)> = BTreeMap::new();
        for (pipeline, candidate) in self.plan.pipelines.iter().zip(serving) {
            let Some(candidate) = candidate else { continue };
            let has_streams = |worker: &&WorkerPlan| worker.streams[pipeline.source] > 0;
            let workers = admitted.workers.iter().filter(has_streams).count() as u64;
            for facts in candidate.facts() {
                let into = if pipeline.stays() { &mut resident } else { &mut passing };
                let on = if workers == 1 { String::new() } else { format!(" on {workers} workers") };
                let name = format!("{} ({}{on})", facts.name, facts.variant);
                let held = (name, facts.memory * workers);
                let entry = into.entry(facts.number).or_insert_with(|| held.clone());
                if entry.1 < held.1 {
                    *entry = held;
                }
            }
        }
        passing.retain(|number, _| !resident.contains_key(number));
        // On tmpfs, where its pages are memory.
        let mut terms = vec![("outbox.ring".to_owned(), self.config.outbox.ring.0)];
        terms.extend(resident.into_values());
        if let Some((name, bytes)) = passing.into_values().max_by_key(|(_, bytes)| *bytes) {
            terms.push((format!("the largest of those that may be unloaded, {name}"), bytes));
        }
        Ok((fit_memory(self.config.budget.memory.0, &terms)?, terms))
    }

    /// T of a pipeline's windows, as it was admitted.
    pub fn period(&self, pipeline: usize, candidate: &Candidate) -> Duration {
        let plan = &self.plan.pipelines[pipeline];
        period(&self.plan.sources[plan.source], &candidate.version, plan.deadline, self.seen[plan.source])
    }

    /// D′ of a source's messages, from their arrival: that of its most urgent windows.
    pub fn message_deadline(&self, source: usize, serving: &[Option<Candidate>]) -> Duration {
        let demand = demand(self.plan, &self.plan.sources[source], serving, self.seen[source]);
        demand.tasks.first().map_or(Duration::ZERO, |ingest| match ingest.class {
            Class::Realtime => ingest.deadline,
            Class::Analytic => self.plan.sources[source].deadline,
        })
    }

    /// T of a stream's messages, as far as it is known: measured, and of what is too fast as it would be at the declared
    /// rate.
    pub fn message_period(&self, source: usize) -> Option<Duration> {
        let (source, seen) = (&self.plan.sources[source], self.seen[source]);
        match (seen.figures, seen.exceeded) {
            (Some(figures), _) => Some(figures.message_period.mul_f64(0.98)),
            (None, Some(figures)) if source.rate_declared => {
                let samples = figures.message_period.as_secs_f64() / figures.sample_period.as_secs_f64();
                Duration::try_from_secs_f64(samples / source.timing.rate_hz).ok()
            }
            _ => None,
        }
    }

    fn demands(&self, serving: &[Option<Candidate>]) -> Vec<Demand> {
        let sources = self.plan.sources.iter().zip(self.seen);
        sources.map(|(source, seen)| demand(self.plan, source, serving, *seen)).collect()
    }
}

/// The streams of a source on each worker, if it was given any.
pub fn streams_of(admitted: &Admitted, source: usize) -> Option<Vec<u32>> {
    let streams: Vec<u32> = admitted.workers.iter().map(|worker| worker.streams[source]).collect();
    streams.iter().any(|streams| *streams > 0).then_some(streams)
}

/// What became of new pipelines: what serves now, how it was admitted if anything was, and who was refused.
pub type Introduced = (Vec<Option<Candidate>>, Option<Admitted>, Vec<(usize, Refusal)>);

/// Admits new pipelines beside those that serve: all together if they fit, else one after the other in the order of
/// the configuration, each beside what was admitted before it.
pub fn introduce(
    mut trial: Trial<'_>,
    serving: &[Option<Candidate>],
    candidates: BTreeMap<usize, Candidate>,
) -> Introduced {
    let mut all = serving.to_vec();
    for (pipeline, candidate) in &candidates {
        all[*pipeline] = Some(candidate.clone());
    }
    if let Ok(admitted) = trial.test(&all) {
        return (all, Some(admitted), Vec::new());
    }
    let (mut serving, mut last, mut refused) = (serving.to_vec(), None, Vec::new());
    for (pipeline, candidate) in candidates {
        let before = serving[pipeline].replace(candidate);
        match trial.test(&serving) {
            Ok(admitted) => {
                for (source, place) in trial.placed.iter_mut().enumerate() {
                    *place = streams_of(&admitted, source).or(place.take());
                }
                last = Some(admitted);
            }
            Err(refusal) => {
                serving[pipeline] = before;
                refused.push((pipeline, refusal));
            }
        }
    }
    (serving, last, refused)
}

/// What one source asks for.
fn demand(plan: &Plan, source: &SourcePlan, serving: &[Option<Candidate>], seen: Seen) -> Demand {
    let fed: Vec<(&Arc<PipelinePlan>, &Candidate)> = source
        .pipelines
        .iter()
        .filter_map(|index| Some((&plan.pipelines[*index], serving[*index].as_ref()?)))
        .collect();
    let mut tasks = Vec::new();
    if !fed.is_empty() {
        tasks.push(ingest(source, &fed, seen));
    }
    for (pipeline, candidate) in fed {
        let most = pipeline.batching.max;
        let costs = candidate.full.costs_up_to(most, Duration::MAX);
        // A window that waits for company may be ready to run so much later.
        let company =
            if costs.len() > 1 && pipeline.class == Class::Realtime { pipeline.batching.delay } else { Duration::ZERO };
        let jitter = seen.jitter(source.timing.rate_hz).saturating_add(company);
        // Under pressure the reduced variant runs, which is not always the cheaper one.
        let mean = candidate.facts().map(|facts| facts.mean).max().unwrap_or_default();
        let worst = candidate.facts().map(|facts| facts.costs[0].worst).max().unwrap_or_default();
        tasks.push(Task {
            name: format!("{}: infer", pipeline.name),
            class: pipeline.class,
            mean,
            worst,
            period: period(source, &candidate.version, pipeline.deadline, seen),
            deadline: pipeline.deadline.saturating_sub(jitter),
            jitter: jitter.min(pipeline.deadline),
            // An analytic batch is cut to what the others leave room for; a realtime one is part of the test.
            batches: if pipeline.class == Class::Realtime { costs.to_vec() } else { Vec::new() },
        });
    }
    Demand { source: source.name().to_owned(), streams: source.config.max_streams, tasks }
}

/// T of a pipeline's windows.
fn period(source: &SourcePlan, version: &Version, deadline: Duration, seen: Seen) -> Duration {
    let seen = seen.figures.map(|figures| match &version.front_end {
        Some(_) => figures.sample_period.saturating_mul(u32::try_from(version.hop()).unwrap_or(u32::MAX)),
        None => figures.message_period,
    });
    match (source.declared_period(version), seen) {
        // Clocks of sensors are off by parts in ten thousand, and arrival is no clock.
        (Some(declared), Some(seen)) if seen < declared.mul_f64(0.98) => seen,
        (Some(declared), _) => declared,
        (None, Some(seen)) => seen,
        // A stream whose rate nobody told is taken to bring a window a deadline.
        (None, None) => deadline,
    }
    .max(Duration::from_nanos(1))
}

fn ingest(source: &SourcePlan, fed: &[(&Arc<PipelinePlan>, &Candidate)], seen: Seen) -> Task {
    let period_of = |(pipeline, candidate): &(&Arc<PipelinePlan>, &Candidate)| {
        period(source, &candidate.version, pipeline.deadline, Seen::default())
    };
    let (cost, period) = match seen.figures {
        Some(figures) => (Estimate { mean: figures.ingest_mean, worst: figures.ingest_worst }, figures.message_period),
        None => {
            // By the proof, of each front end, for each of its windows; the shortest period counts for all.
            let sum = |part: fn(Estimate) -> Duration| -> Duration {
                fed.iter().map(|(_, candidate)| candidate.ingest.map_or(INGEST_COST, part)).sum()
            };
            let cost = Estimate { mean: sum(|cost| cost.mean), worst: sum(|cost| cost.worst) };
            (cost, fed.iter().map(period_of).min().unwrap_or(Duration::MAX))
        }
    };
    // That of an analytic pipeline is no promise, and none that the others have to make room for.
    let urgent = fed.iter().filter(|(pipeline, _)| pipeline.class == source.class);
    let deadline = urgent.map(|(pipeline, _)| pipeline.deadline).min().unwrap_or(Duration::MAX);
    let jitter = seen.jitter(source.timing.rate_hz);
    Task {
        name: format!("{}: ingest", source.name()),
        class: source.class,
        mean: cost.mean,
        worst: cost.worst,
        period: period.max(Duration::from_nanos(1)),
        deadline: deadline.saturating_sub(jitter),
        jitter: jitter.min(deadline),
        batches: Vec::new(),
    }
}

/// What these pipelines ask for, task by task, as `limpet check` prints it.
pub fn terms(trial: &Trial<'_>, serving: &[Option<Candidate>]) -> String {
    let demands = trial.demands(serving);
    let mut out = String::new();
    // Writing into a string cannot fail.
    let _ = writeln!(
        out,
        "# admission: C is thread CPU time on this device, T the shortest time between two of a stream, D′ the deadline less\n# the jitter J of {}",
        Shown(JITTER)
    );
    let rows: Vec<[String; 7]> = demands
        .iter()
        .flat_map(|demand| demand.tasks.iter().map(move |task| (demand.streams, task)))
        .map(|(streams, task)| {
            let share = f64::from(streams) * task.mean.as_secs_f64() / task.period.as_secs_f64();
            [
                task.name.clone(),
                streams.to_string(),
                Shown(task.mean).to_string(),
                Shown(task.worst).to_string(),
                Shown(task.period).to_string(),
                match task.class {
                    Class::Realtime => Shown(task.deadline).to_string(),
                    Class::Analytic => "∞".to_owned(),
                },
                format!("{share:.4}"),
            ]
        })
        .collect();
    let head = ["task", "streams", "C mean", "C99", "T", "D′", "Σ C ÷ T"].map(str::to_owned);
    let widths: Vec<usize> = (0..7)
        .map(|column| rows.iter().chain([&head]).map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    for row in std::iter::once(&head).chain(&rows) {
        let mut line = format!("#   {}{}", row[0], " ".repeat(widths[0] - row[0].chars().count()));
        for (cell, width) in row.iter().zip(&widths).skip(1) {
            let _ = write!(line, "  {}{cell}", " ".repeat(width - cell.chars().count()));
        }
        let _ = writeln!(out, "{line}");
    }
    out
}

/// The sums of what was admitted, as `limpet check` prints them.
pub fn sums(config: &Config, plan: &Plan, admitted: &Admitted, memory: &(u64, Vec<(String, u64)>)) -> String {
    let mut out = String::new();
    // Writing into a string cannot fail.
    let _ = writeln!(out, "# load: Σ mean C ÷ T = {:.4} ≤ budget.cpu = {}", admitted.load, config.budget.cpu);
    for (number, worker) in admitted.workers.iter().enumerate() {
        let streams: Vec<String> = worker
            .streams
            .iter()
            .zip(&plan.sources)
            .filter(|(streams, _)| **streams > 0)
            .map(|(streams, source)| format!("{} × {streams}", source.name()))
            .collect();
        let streams = if streams.is_empty() { "no streams".to_owned() } else { streams.join(", ") };
        let _ = write!(out, "# worker {number}: {streams}; Σ C99 ÷ T = {:.4} ≤ 1", worker.density);
        if let Some(tightest) = worker.tightest {
            let _ = write!(
                out,
                "; tightest at t = {}: {} due + {} blocked ≤ t",
                Shown(tightest.at),
                Shown(tightest.due),
                Shown(tightest.blocked)
            );
        }
        if let Some(longest) = worker.longest_job {
            let _ = write!(out, "; analytic batches up to {}", Shown(longest));
        }
        out.push('\n');
    }
    let (sum, terms) = memory;
    let terms: Vec<_> = terms.iter().map(|(name, bytes)| format!("{name} {}", Mebibytes(*bytes))).collect();
    let _ = writeln!(
        out,
        "# memory: Σ measured = {} ≤ budget.memory = {}: {}",
        Mebibytes(*sum),
        Mebibytes(config.budget.memory.0),
        terms.join(" + ")
    );
    out
}
