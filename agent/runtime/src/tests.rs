//! The scheduler on a virtual clock: what was admitted keeps every deadline, whatever arrives.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::admission::{Admitted, Budget, Demand, Task, WorkerPlan, admit};
use crate::clock::Moment;
use crate::queue::{BatchCost, Class, LanePolicy, Order, Overflow, Pushed, Queue, Turn};

/// A lane that never gives a window up for another: what is admitted must need no policy.
const LANE: LanePolicy = LanePolicy { depth: 64, weight: usize::MAX, overflow: Overflow::Refuse };

/// One job of the simulation.
#[derive(Debug, Clone, Copy)]
struct Job {
    stream: usize,
    /// Its task, as a position in the demand; none for the flood.
    task: Option<usize>,
    arrived: Moment,
    deadline: Moment,
    /// How many messages of its stream came before this one.
    number: u64,
}

/// How messages arrive.
#[derive(Debug, Clone, Copy)]
enum Arrivals {
    /// All at once and then as often as they may: the worst case of the test.
    Together,
    /// Each stream from a moment of its own, as often as it may.
    Apart(u64),
    /// Each stream from a moment of its own, with random pauses on top.
    Sporadic(u64),
}

/// A small generator, so that a case is told by its seed (Knuth's MMIX).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound.max(1)
    }
}

#[derive(Debug, Default, PartialEq)]
struct Outcomes {
    done: u64,
    missed: u64,
    batches: u64,
}

/// Runs one worker's share for `length`, with an analytic flood of jobs of `flood` besides, and counts realtime jobs.
///
/// A demand's first task takes in messages; when it ends, it pushes what the others do with them. Every job takes its
/// worst time, and a batch that of its size.
fn simulate(
    demands: &[Demand],
    plan: &WorkerPlan,
    arrivals: Arrivals,
    flood: Option<Duration>,
    length: Duration,
) -> Outcomes {
    let mut queue: Queue<Job> = Queue::default();
    let mut random = Random(match arrivals {
        Arrivals::Together => 1,
        Arrivals::Apart(seed) | Arrivals::Sporadic(seed) => seed,
    });
    // Analytic batches are cut to what the plan leaves room for; a single one was part of the test.
    let longest = plan.longest_job.unwrap_or(Duration::MAX);
    let costs = |task: &Task| -> Vec<BatchCost> {
        let fits = |cost: &&BatchCost| cost.size > 1 && (task.class == Class::Realtime || cost.worst <= longest);
        std::iter::once(BatchCost::single(task.worst)).chain(task.batches.iter().filter(fits).copied()).collect()
    };
    let groups: Vec<Vec<_>> = demands
        .iter()
        .map(|demand| demand.tasks.iter().map(|task| queue.open_group(task.class, &costs(task))).collect())
        .collect();
    let mut streams = Vec::new();
    for (index, count) in plan.streams.iter().enumerate() {
        let tasks = demands[index].tasks.len();
        streams.extend((0..*count).map(|_| (index, (0..tasks).map(|_| queue.open(LANE)).collect::<Vec<_>>())));
    }
    let flood_group = flood.map(|cost| queue.open_group(Class::Analytic, &[BatchCost::single(cost)]));
    let flood_lane = queue.open(LANE);

    let mut next: BinaryHeap<Reverse<(Moment, usize, u64)>> = BinaryHeap::new();
    for (stream, (demand, _)) in streams.iter().enumerate() {
        let offset = match arrivals {
            Arrivals::Together => 0,
            Arrivals::Apart(_) | Arrivals::Sporadic(_) => {
                random.below(demands[*demand].tasks[0].period.as_nanos() as u64)
            }
        };
        next.push(Reverse((Moment(offset), stream, 0)));
    }
    let (mut now, mut outcomes) = (Moment(0), Outcomes::default());
    let end = Moment(0).after(length);
    let class_of =
        |job: &Job| job.task.map_or(Class::Analytic, |task| demands[streams[job.stream].0].tasks[task].class);
    loop {
        // A realtime task may not need its lane's bound; an analytic one may be too slow for it.
        let push = |queue: &mut Queue<Job>, now: Moment, job: Job, outcomes: &mut Outcomes| {
            let (demand, lanes) = &streams[job.stream];
            let at = job.task.expect("the flood is pushed elsewhere");
            let order = Order {
                lane: lanes[at],
                group: groups[*demand][at],
                deadline: job.deadline,
                expires: true,
                // A window of a batched task waits for company as long as it may.
                hold: if at == 0 { Moment(0) } else { job.arrived.after(demands[*demand].tasks[at].jitter) },
                weight: 0,
            };
            if let Pushed::Refused(job) = queue.push(now, order, job) {
                outcomes.missed += u64::from(class_of(&job) == Class::Realtime);
            }
        };
        let job = |stream: usize, task: usize, arrived: Moment, number: u64| {
            let task_of = &demands[streams[stream].0].tasks[task];
            let deadline = match task_of.class {
                Class::Realtime => arrived.after(task_of.deadline).after(task_of.jitter),
                Class::Analytic => Moment::NEVER,
            };
            Job { stream, task: Some(task), arrived, deadline, number }
        };
        while let Some(&Reverse((at, stream, number))) = next.peek().filter(|Reverse((at, ..))| *at <= now) {
            next.pop();
            let period = demands[streams[stream].0].tasks[0].period;
            let pause = match arrivals {
                Arrivals::Sporadic(_) => random.below(period.as_nanos() as u64),
                _ => 0,
            };
            let again = at.after(period).after(Duration::from_nanos(pause));
            if again < end {
                next.push(Reverse((again, stream, number + 1)));
            }
            push(&mut queue, now, job(stream, 0, at, number), &mut outcomes);
        }
        if let Some(group) = flood_group {
            let order = Order { lane: flood_lane, group, deadline: Moment::NEVER, expires: true, hold: now, weight: 0 };
            let job = Job { stream: 0, task: None, arrived: now, deadline: Moment::NEVER, number: 0 };
            while matches!(queue.push(now, order, job), Pushed::Waiting) {}
        }
        match queue.next(now) {
            Turn::Run(jobs) => {
                let Some(task) = jobs[0].task else {
                    now = now.after(flood.unwrap_or_default());
                    if next.is_empty() && now > end.after(length) {
                        return outcomes;
                    }
                    continue;
                };
                let tasks = &demands[streams[jobs[0].stream].0].tasks;
                let cost = costs(&tasks[task]).iter().find(|cost| cost.size == jobs.len()).map(|cost| cost.worst);
                now = now.after(cost.expect("batches are of a size that has a cost"));
                outcomes.batches += u64::from(jobs.len() > 1);
                for done in jobs {
                    if class_of(&done) == Class::Realtime {
                        outcomes.done += 1;
                        outcomes.missed += u64::from(now > done.deadline);
                    }
                    if task > 0 {
                        continue;
                    }
                    // A window is complete with every so many messages.
                    let tasks = &demands[streams[done.stream].0].tasks;
                    for (index, infer) in tasks.iter().enumerate().skip(1) {
                        let every = (infer.period.as_nanos() / tasks[0].period.as_nanos()) as u64;
                        if done.number.is_multiple_of(every) {
                            push(&mut queue, now, job(done.stream, index, done.arrived, done.number), &mut outcomes);
                        }
                    }
                }
            }
            Turn::Expired(jobs) => {
                outcomes.missed += jobs.iter().filter(|job| class_of(job) == Class::Realtime).count() as u64;
            }
            // Until then, or until the next message.
            Turn::Wait(until) => now = next.peek().map_or(until, |Reverse((at, ..))| until.min(*at)),
            Turn::Idle => match next.peek() {
                Some(Reverse((at, ..))) => now = *at,
                None => return outcomes,
            },
        }
    }
}

/// Messages every 1 to 20 ms, one or two pipelines with a window every 1 to 4 messages; deadlines from half to twice a
/// window's period; batches for some.
fn demand() -> impl Strategy<Value = Demand> {
    let classes = || prop_oneof![3 => Just(Class::Realtime), 1 => Just(Class::Analytic)];
    let infer = (classes(), 1u32..5, 1u64..200, 50u64..200, any::<bool>(), 0u64..300);
    (1u32..5, 1000u64..20_000, 1u64..100, proptest::collection::vec(infer, 1..3)).prop_map(
        |(streams, message, ingest, infers)| {
            let share = |period: Duration, thousandths: u64| period * u32::try_from(thousandths).unwrap_or(1) / 1000;
            let message = Duration::from_micros(message);
            let tasks: Vec<Task> = infers
                .into_iter()
                .map(|(class, every, cost, deadline, batched, delay)| {
                    let period = message * every;
                    let worst = share(period, cost);
                    let batch = |size: u32| BatchCost {
                        size: size as usize,
                        typical: worst * size * 8 / 10,
                        worst: if size == 1 { worst } else { worst * size * 9 / 10 },
                    };
                    Task {
                        name: "infer".into(),
                        class,
                        mean: worst / 2,
                        worst,
                        period,
                        deadline: share(period, deadline * 10),
                        jitter: if batched && class == Class::Realtime { share(period, delay) } else { Duration::ZERO },
                        batches: if batched { [1, 2, 4].map(batch).to_vec() } else { Vec::new() },
                    }
                })
                .collect();
            let class = tasks.iter().map(|task| task.class).min().unwrap_or(Class::Analytic);
            let urgent = tasks.iter().filter(|task| task.class == class).map(|task| task.deadline).min();
            let ingest = Task {
                name: "ingest".into(),
                class,
                mean: share(message, ingest) / 2,
                worst: share(message, ingest),
                period: message,
                deadline: urgent.unwrap_or_default(),
                jitter: Duration::ZERO,
                batches: Vec::new(),
            };
            let tasks = std::iter::once(ingest).chain(tasks).collect();
            Demand { source: "s".into(), streams, tasks }
        },
    )
}

/// Random sets of pipelines: those that are admitted miss no deadline, in the worst case and in others, also beside a
/// flood of the longest analytic jobs that the arithmetic allows.
#[test]
fn what_is_admitted_misses_no_deadline() {
    let cases = Config::default().cases.max(4000);
    let mut runner = TestRunner::new(Config { cases, ..Config::default() });
    let (tried, busy, batched) = (std::cell::Cell::new(0), std::cell::Cell::new(0), std::cell::Cell::new(0));
    let strategy = (proptest::collection::vec(demand(), 1..5), 1u64..1_000_000, 1usize..4);
    let outcome = runner.run(&strategy, |(demands, seed, cpu)| {
        let budget = Budget { cpu: cpu as f64, workers: cpu };
        let Ok(Admitted { workers, .. }) = admit(budget, &demands) else { return Ok(()) };
        tried.set(tried.get() + 1);
        for plan in &workers {
            busy.set(busy.get() + u32::from(plan.density > 0.5 && plan.tightest.is_some()));
            for arrivals in [Arrivals::Together, Arrivals::Apart(seed), Arrivals::Sporadic(seed)] {
                for flood in [None, plan.longest_job.filter(|longest| !longest.is_zero())] {
                    let outcomes = simulate(&demands, plan, arrivals, flood, Duration::from_millis(300));
                    prop_assert_eq!(outcomes.missed, 0, "{:?} {:?} {:?}", arrivals, flood, plan);
                    batched.set(batched.get() + outcomes.batches);
                }
            }
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    // The cases are worth something: enough are admitted, of those many fill a worker by half, and batches form.
    assert!(tried.get() > cases / 5 && busy.get() > cases / 20, "{} admitted, {} busy", tried.get(), busy.get());
    assert!(batched.get() > 100, "{} batches", batched.get());
}

/// The simulation can tell: beyond what is admitted, it finds misses.
#[test]
fn a_job_longer_than_admitted_makes_somebody_late() {
    let task = |name: &str, worst: u64| Task {
        name: name.into(),
        class: Class::Realtime,
        mean: Duration::from_micros(worst),
        worst: Duration::from_micros(worst),
        period: Duration::from_millis(10),
        deadline: Duration::from_millis(8),
        jitter: Duration::ZERO,
        batches: Vec::new(),
    };
    let demands = [Demand { source: "s".into(), streams: 2, tasks: vec![task("ingest", 200), task("infer", 800)] }];
    let admitted = admit(Budget { cpu: 1.0, workers: 1 }, &demands).unwrap();
    let plan = &admitted.workers[0];
    let longest = plan.longest_job.unwrap();
    let missed = |flood| -> u64 {
        let run = |seed| simulate(&demands, plan, Arrivals::Apart(seed), Some(flood), Duration::from_millis(400));
        (1..200).map(|seed| run(seed).missed).sum()
    };
    assert_eq!(missed(longest), 0);
    assert!(missed(longest + Duration::from_millis(2)) > 0);
}
