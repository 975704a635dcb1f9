//! What may run: arithmetic before the first sample.
//!
//! Every source that is to be served says what one of its streams asks for ([`Demand`]): tasks with their cost on this
//! device, how often they come, and when each has to be done. [`admit`] places all streams on workers, first-fit by
//! density, or refuses with the sum that does not fit. Three tests:
//!
//! 1. *Load*: Σ mean C ÷ T over everything is at most the CPU budget; on each worker Σ C99 ÷ T is at most 1.
//! 2. *Deadlines*: on each worker, non-preemptive earliest deadline first. For every t from the smallest D′ to the end of
//!    the busy period, the work that is due by t and the longest job that may be running already fit into t:
//!    Σ max(0, ⌊(t − D′) ÷ T⌋ + 1) · C99 + max { C99 : D′ + J > t } ≤ t. Analytic jobs have no D′: they only block. A
//!    batch blocks with what all of it takes; so that it does so once, none of its jobs but the first may overtake what
//!    waits and is due earlier.
//!    (Jeffay, Stanat, Martel, "On non-preemptive scheduling of periodic and sporadic tasks", RTSS 1991; George,
//!    Rivierre, Spuri, "Preemptive and non-preemptive real-time uniprocessor scheduling", INRIA 2966, 1996.)
//! 3. *Memory*: Σ measured bytes is at most the memory budget ([`fit_memory`]).
//!
//! The largest analytic batch that keeps test 2 true on a worker is the cap on batches there.
//!
//! Times are whole nanoseconds, and T is rounded down and C never, so that rounding only makes the tests stricter.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::time::Duration;

use crate::queue::{BatchCost, Class};

/// Points in time that one test looks at, at most. A set of tasks that needs more is so close to its limit that the
/// next measurement would put it beyond.
const POINTS: usize = 1_000_000;
/// Longest busy period that is looked at, in nanoseconds: a hundred seconds.
const HORIZON: u64 = 100_000_000_000;

/// Jobs of one kind, of one stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// What it is, for people: `motor: infer`.
    pub name: String,
    /// What it gives up last.
    pub class: Class,
    /// C: thread CPU time of one, on average…
    pub mean: Duration,
    /// …and of all but one in a hundred, or the longest of too few.
    pub worst: Duration,
    /// T: shortest time from one to the next.
    pub period: Duration,
    /// D′: from when it can start at the latest to when it has to be done. For an analytic task only a single one has to
    /// fit into it; test 2 takes it as infinite.
    pub deadline: Duration,
    /// J: what was taken off the deadline that somebody asked for, since it can start so late; for the explanation.
    pub jitter: Duration,
    /// What batches of it cost, ascending by size, as far as batches are proved and allowed.
    pub batches: Vec<BatchCost>,
}

/// What one stream of a source asks for, and how many streams there may be.
#[derive(Debug, Clone, PartialEq)]
pub struct Demand {
    /// The source.
    pub source: String,
    /// Streams that it may have.
    pub streams: u32,
    /// Its tasks: one ingest, and one infer for each pipeline.
    pub tasks: Vec<Task>,
}

impl Demand {
    /// Σ C99 ÷ T of one stream.
    pub fn density(&self) -> f64 {
        self.tasks.iter().map(|task| share(task.worst, task.period)).sum()
    }

    fn class(&self) -> Class {
        self.tasks.iter().map(|task| task.class).min().unwrap_or(Class::Analytic)
    }
}

/// What there is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// Cores.
    pub cpu: f64,
    /// Worker threads: the cores, rounded up.
    pub workers: usize,
}

/// The moment after the arrival of everything at once at which a worker has the least time left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tightest {
    /// t.
    pub at: Duration,
    /// Work that is due by then.
    pub due: Duration,
    /// The longest job that may have been running when it came.
    pub blocked: Duration,
}

/// What a worker is to do.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerPlan {
    /// Σ C99 ÷ T.
    pub density: f64,
    /// Streams of each demand, in the order of the demands.
    pub streams: Vec<u32>,
    /// Where it is closest to missing a deadline; none without realtime tasks.
    pub tightest: Option<Tightest>,
    /// Longest job that may run without making a realtime job late; none where nothing limits it.
    pub longest_job: Option<Duration>,
}

/// What was admitted.
#[derive(Debug, Clone, PartialEq)]
pub struct Admitted {
    /// Σ mean C ÷ T over all workers, in cores.
    pub load: f64,
    /// The workers.
    pub workers: Vec<WorkerPlan>,
}

/// Why something was not admitted, with the arithmetic.
#[derive(Debug, Clone, PartialEq)]
pub enum Refusal {
    /// A single job takes longer than it may.
    Deadline {
        /// The task.
        task: String,
        /// What it takes.
        worst: Duration,
        /// D′.
        deadline: Duration,
        /// J.
        jitter: Duration,
    },
    /// Test 1, over everything.
    Load {
        /// Σ mean C ÷ T.
        load: f64,
        /// The budget.
        cpu: f64,
        /// The tasks that make the most of it: name, streams, mean, period, share.
        terms: Vec<LoadTerm>,
    },
    /// What has its place already does not fit there.
    Worker {
        /// The worker.
        worker: usize,
        /// Why.
        obstacle: Obstacle,
    },
    /// No worker can take a stream more.
    Full {
        /// The source.
        source: String,
        /// Streams that found a place, and how many there are to be.
        placed: u32,
        /// Streams that were asked for.
        streams: u32,
        /// Why each worker cannot, in order.
        workers: Vec<Obstacle>,
    },
    /// Test 3.
    Memory {
        /// What holds how much.
        terms: Vec<(String, u64)>,
        /// The budget, in bytes.
        budget: u64,
    },
}

/// One task's part of the load.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadTerm {
    /// The task.
    pub task: String,
    /// Streams.
    pub streams: u32,
    /// C.
    pub mean: Duration,
    /// T.
    pub period: Duration,
}

/// Why a worker can take no more.
#[derive(Debug, Clone, PartialEq)]
pub enum Obstacle {
    /// Σ C99 ÷ T would be this, which is above 1.
    Density(f64),
    /// At this moment a deadline would be missed.
    Deadline(Tightest),
    /// Σ C99 ÷ T is so close to 1 that the busy period has no end in sight.
    Endless(f64),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deadline { task, worst, deadline, jitter } => write!(
                f,
                "{task} takes {} on this device (p99), and of the deadline of {} only {} are left after a jitter of {}; allow a longer deadline, or use a smaller model",
                Shown(*worst),
                Shown(*deadline + *jitter),
                Shown(*deadline),
                Shown(*jitter)
            ),
            Self::Load { load, cpu, terms } => {
                write!(f, "Σ mean C ÷ T = {load:.3} cores is above budget.cpu = {cpu}: ")?;
                for (index, term) in terms.iter().enumerate() {
                    let plus = if index == 0 { "" } else { " + " };
                    write!(f, "{plus}{term}")?;
                }
                f.write_str("; lower max_streams or the rate, or raise the budget")
            }
            Self::Worker { worker, obstacle } => write!(
                f,
                "on worker {worker}, where its source has its place, {obstacle}; lower max_streams or the rate, or allow longer deadlines"
            ),
            Self::Full { source, placed, streams, workers } => {
                write!(
                    f,
                    "{placed} of the {streams} streams of source {source} (max_streams) find a worker that still meets every deadline"
                )?;
                for (number, obstacle) in workers.iter().enumerate() {
                    write!(f, "; worker {number}: {obstacle}")?;
                }
                f.write_str("; lower max_streams or the rate, allow longer deadlines, or raise budget.cpu")
            }
            Self::Memory { terms, budget } => {
                let sum: u64 = terms.iter().map(|(_, bytes)| bytes).sum();
                let text: Vec<_> = terms.iter().map(|(name, bytes)| format!("{name} {}", Mebibytes(*bytes))).collect();
                write!(
                    f,
                    "Σ measured = {} is above budget.memory = {}: {}; raise the budget, serve fewer or smaller models, or make outbox.ring smaller",
                    Mebibytes(sum),
                    Mebibytes(*budget),
                    text.join(" + ")
                )
            }
        }
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for LoadTerm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { task, streams, mean, period } = self;
        let sum = f64::from(*streams) * share(*mean, *period);
        write!(f, "{task} {streams} × {} ÷ {} = {sum:.3}", Shown(*mean), Shown(*period))
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Density(density) => write!(f, "Σ C99 ÷ T = {density:.3} would be above 1"),
            Self::Deadline(Tightest { at, due, blocked }) => write!(
                f,
                "t = {}: {} due + {} of a job that is running > {}",
                Shown(*at),
                Shown(*due),
                Shown(*blocked),
                Shown(*at)
            ),
            Self::Endless(density) => {
                write!(f, "Σ C99 ÷ T = {density:.6} is so close to 1 that no end of the busy period is in sight")
            }
        }
    }
}

/// A time for people: three digits and a unit.
#[derive(Debug, Clone, Copy)]
pub struct Shown(pub Duration);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos() as f64;
        let (value, unit) = match nanos {
            _ if nanos < 1e3 => (nanos, "ns"),
            _ if nanos < 1e6 => (nanos / 1e3, "µs"),
            _ if nanos < 1e9 => (nanos / 1e6, "ms"),
            _ => (nanos / 1e9, "s"),
        };
        // Whole numbers need no decimals; others as many as make three digits.
        let decimals = if value.fract() == 0.0 || value >= 100.0 {
            0
        } else if value >= 10.0 {
            1
        } else {
            2
        };
        write!(f, "{value:.decimals$} {unit}")
    }
}

/// Bytes for people, in MiB.
#[derive(Debug, Clone, Copy)]
pub struct Mebibytes(pub u64);

impl fmt::Display for Mebibytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} MiB", self.0 as f64 / f64::from(1 << 20))
    }
}

/// Places everything, or says why it does not fit. Demands of realtime sources are placed first, then the densest.
///
/// # Errors
/// [`Refusal`], never one of memory.
pub fn admit(budget: Budget, demands: &[Demand]) -> Result<Admitted, Refusal> {
    admit_beside(budget, demands, &vec![None; demands.len()])
}

/// [`admit`], where some demands have their places already: `placed` holds, for each demand, its streams on each worker,
/// if so. What runs is not moved for what is new.
///
/// # Errors
/// [`Refusal`], never one of memory.
pub fn admit_beside(budget: Budget, demands: &[Demand], placed: &[Option<Vec<u32>>]) -> Result<Admitted, Refusal> {
    let tasks = || demands.iter().flat_map(|demand| &demand.tasks);
    if let Some(task) = tasks().find(|task| task.worst > task.deadline) {
        let Task { name, worst, deadline, jitter, .. } = task.clone();
        return Err(Refusal::Deadline { task: name, worst, deadline, jitter });
    }
    let load = demands
        .iter()
        .map(|demand| {
            let one: f64 = demand.tasks.iter().map(|task| share(task.mean, task.period)).sum();
            f64::from(demand.streams) * one
        })
        .fold(0.0, |sum, load| sum + load);
    if load > budget.cpu {
        return Err(Refusal::Load { load, cpu: budget.cpu, terms: largest_terms(demands) });
    }
    let mut workers: Vec<Load> = (0..budget.workers)
        .map(|worker| Load {
            streams: placed.iter().map(|place| place.as_ref().map_or(0, |streams| streams[worker])).collect(),
        })
        .collect();
    for (number, worker) in workers.iter().enumerate() {
        if let Err(obstacle) = worker.test(demands, None) {
            return Err(Refusal::Worker { worker: number, obstacle });
        }
    }
    let mut order: Vec<usize> = (0..demands.len()).filter(|index| placed[*index].is_none()).collect();
    order.sort_by(|a, b| {
        let key = |index: &usize| (demands[*index].class(), demands[*index].density());
        let ((a_class, a_density), (b_class, b_density)) = (key(a), key(b));
        a_class.cmp(&b_class).then(b_density.total_cmp(&a_density))
    });
    for index in order {
        let mut left = demands[index].streams;
        let mut obstacles = Vec::new();
        for worker in &mut workers {
            let most = worker.most(demands, index, left);
            worker.streams[index] = most;
            left -= most;
            if left == 0 {
                break;
            }
            worker.streams[index] += 1;
            obstacles.push(worker.test(demands, None).expect_err("a stream more than most does not fit"));
            worker.streams[index] -= 1;
        }
        if left > 0 {
            let Demand { source, streams, .. } = demands[index].clone();
            return Err(Refusal::Full { source, placed: streams - left, streams, workers: obstacles });
        }
    }
    let workers = workers.into_iter().map(|worker| worker.plan(demands)).collect();
    Ok(Admitted { load, workers })
}

/// Test 3.
///
/// # Errors
/// [`Refusal::Memory`].
pub fn fit_memory(budget: u64, terms: &[(String, u64)]) -> Result<u64, Refusal> {
    let sum = terms.iter().map(|(_, bytes)| *bytes).fold(0, u64::saturating_add);
    if sum <= budget { Ok(sum) } else { Err(Refusal::Memory { terms: terms.to_vec(), budget }) }
}

/// The tasks with the largest parts, as far as they matter.
fn largest_terms(demands: &[Demand]) -> Vec<LoadTerm> {
    const SHOWN: usize = 8;
    let term = |demand: &Demand, task: &Task| LoadTerm {
        task: task.name.clone(),
        streams: demand.streams,
        mean: task.mean,
        period: task.period,
    };
    let mut terms: Vec<LoadTerm> =
        demands.iter().flat_map(|demand| demand.tasks.iter().map(move |task| term(demand, task))).collect();
    let part = |term: &LoadTerm| f64::from(term.streams) * share(term.mean, term.period);
    terms.sort_by(|a, b| part(b).total_cmp(&part(a)));
    if terms.len() > SHOWN {
        let rest = terms.split_off(SHOWN);
        let sum: f64 = rest.iter().map(part).sum();
        let mean = Duration::try_from_secs_f64(sum).unwrap_or(Duration::MAX);
        terms.push(LoadTerm {
            task: format!("{} more tasks", rest.len()),
            streams: 1,
            mean,
            period: Duration::from_secs(1),
        });
    }
    terms
}

fn share(cost: Duration, period: Duration) -> f64 {
    cost.as_secs_f64() / period.as_secs_f64()
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn duration(nanos: u64) -> Duration {
    Duration::from_nanos(nanos)
}

/// What is on one worker.
#[derive(Debug, Clone)]
struct Load {
    /// Streams of each demand.
    streams: Vec<u32>,
}

impl Load {
    fn tasks<'d>(&self, demands: &'d [Demand]) -> impl Iterator<Item = (u64, &'d Task)> {
        let present = self.streams.iter().zip(demands).filter(|(streams, _)| **streams > 0);
        present.flat_map(|(streams, demand)| demand.tasks.iter().map(move |task| (u64::from(*streams), task)))
    }

    fn density(&self, demands: &[Demand]) -> f64 {
        let shares = self.tasks(demands).map(|(streams, task)| streams as f64 * share(task.worst, task.period));
        // An empty sum of floats is −0.
        shares.fold(0.0, |sum, share| sum + share)
    }

    /// How many streams of a demand fit here beside what is placed, up to `wanted`.
    fn most(&self, demands: &[Demand], index: usize, wanted: u32) -> u32 {
        let fits = |streams: u32| {
            let mut with = self.clone();
            with.streams[index] = streams;
            with.test(demands, None).is_ok()
        };
        if fits(wanted) {
            return wanted;
        }
        // More streams never fit where fewer do not.
        let (mut fit, mut unfit) = (0, wanted);
        while unfit - fit > 1 {
            let middle = fit + (unfit - fit) / 2;
            if fits(middle) { fit = middle } else { unfit = middle }
        }
        fit
    }

    /// The second half of test 1, and test 2. `longest` is a job that may run besides.
    fn test(&self, demands: &[Demand], longest: Option<Duration>) -> Result<Option<Tightest>, Obstacle> {
        let density = self.density(demands);
        if density > 1.0 {
            return Err(Obstacle::Density(density));
        }
        let mut realtime: Vec<Sporadic> = Vec::new();
        let mut blocking: Vec<(u64, u64)> = longest.iter().map(|cost| (u64::MAX, nanos(*cost))).collect();
        for (streams, task) in self.tasks(demands) {
            let worst = nanos(task.worst);
            match task.class {
                Class::Realtime => {
                    let deadline = nanos(task.deadline);
                    // Its own batches block those that are due earlier, and begin before the jitter is over if enough of
                    // them are there.
                    let batch = task.batches.last().map_or(worst, |cost| nanos(cost.worst).max(worst));
                    blocking.push((deadline.saturating_add(nanos(task.jitter)), batch));
                    let period = nanos(task.period).max(1);
                    realtime.push(Sporadic { cost: worst.saturating_mul(streams), period, deadline });
                }
                Class::Analytic => blocking.push((u64::MAX, worst)),
            }
        }
        if realtime.is_empty() {
            return Ok(None);
        }
        blocking.sort_unstable();
        demand_bound(&realtime, &blocking).map_err(|miss| miss.unwrap_or(Obstacle::Endless(density)))
    }

    fn plan(self, demands: &[Demand]) -> WorkerPlan {
        let tightest = self.test(demands, None).unwrap_or_default();
        let longest_job = tightest.map(|_| self.longest_job(demands));
        WorkerPlan { density: self.density(demands), streams: self.streams, tightest, longest_job }
    }

    /// The longest job without a deadline that still leaves every other in time, by bisection to a microsecond.
    fn longest_job(&self, demands: &[Demand]) -> Duration {
        let (mut fit, mut unfit) = (0, HORIZON / 1000);
        while unfit - fit > 1 {
            let middle = fit + (unfit - fit) / 2;
            if self.test(demands, Some(Duration::from_micros(middle))).is_ok() { fit = middle } else { unfit = middle }
        }
        Duration::from_micros(fit)
    }
}

/// All streams of a realtime task, in nanoseconds.
struct Sporadic {
    /// C99, times the streams.
    cost: u64,
    period: u64,
    deadline: u64,
}

/// Test 2 itself. `blocking` holds D′ and longest run of every task, ascending. An error without a miss is a busy period
/// without an end in sight.
fn demand_bound(tasks: &[Sporadic], blocking: &[(u64, u64)]) -> Result<Option<Tightest>, Option<Obstacle>> {
    // The longest run of those due later, by position.
    let mut longest_from = vec![0; blocking.len() + 1];
    for (index, (_, cost)) in blocking.iter().enumerate().rev() {
        longest_from[index] = longest_from[index + 1].max(*cost);
    }
    let end = busy_period(tasks, longest_from[0]).ok_or(None)?;
    let mut next: BinaryHeap<Reverse<(u64, usize)>> =
        tasks.iter().enumerate().map(|(index, task)| Reverse((task.deadline, index))).collect();
    let (mut due, mut later, mut points) = (0u64, 0, 0);
    let mut tightest: Option<(u64, Tightest)> = None;
    while let Some(&Reverse((at, _))) = next.peek() {
        // The first point is looked at in any case: there is always one to tell of.
        if at > end && tightest.is_some() {
            break;
        }
        while let Some(&Reverse((same, index))) = next.peek().filter(|Reverse((same, _))| *same == at) {
            next.pop();
            due = due.saturating_add(tasks[index].cost);
            next.push(Reverse((same.saturating_add(tasks[index].period), index)));
            points += 1;
        }
        while blocking.get(later).is_some_and(|(deadline, _)| *deadline <= at) {
            later += 1;
        }
        let blocked = longest_from[later];
        let needed = due.saturating_add(blocked);
        let moment = Tightest { at: duration(at), due: duration(due), blocked: duration(blocked) };
        if needed > at {
            return Err(Some(Obstacle::Deadline(moment)));
        }
        if tightest.is_none_or(|(slack, _)| at - needed < slack) {
            tightest = Some((at - needed, moment));
        }
        if points > POINTS {
            return Err(None);
        }
    }
    Ok(tightest.map(|(_, moment)| moment))
}

/// From the arrival of everything at once behind the longest job, until the worker has nothing to do for the first
/// time.
fn busy_period(tasks: &[Sporadic], blocked: u64) -> Option<u64> {
    let mut length = blocked.saturating_add(tasks.iter().map(|task| task.cost).fold(0, u64::saturating_add));
    // Each turn adds what arrived meanwhile; close to a density of 1 that goes on for too long.
    for _ in 0..POINTS {
        let arrived = tasks
            .iter()
            .map(|task| length.div_ceil(task.period).saturating_mul(task.cost))
            .fold(blocked, u64::saturating_add);
        if arrived == length {
            return Some(length);
        }
        if arrived > HORIZON {
            return None;
        }
        length = arrived;
    }
    None
}

#[cfg(test)]
mod tests;
