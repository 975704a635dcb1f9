use super::*;
use crate::handover::Handler;
use crate::ledger::Outcome;
use crate::queue::Overflow;
use std::sync::mpsc::{Receiver, Sender, channel};

struct Counter {
    sum: u64,
    out: Sender<u64>,
    lane: Option<(Lane, Group)>,
}

impl Handler for Counter {
    type Job = u64;

    fn run(&mut self, jobs: Vec<u64>, context: &mut Context<'_, Self>) {
        for job in jobs {
            self.sum += job;
            self.out.send(self.sum).unwrap();
            if job > 1 {
                let (lane, group) = *self
                    .lane
                    .get_or_insert_with(|| (context.open(OPEN), context.open_group(Class::Realtime, &[COST])));
                context.push(order(lane, group), job - 1);
            }
        }
    }

    fn give_up(_: u64, _: Outcome) {}
}

struct Nobody;

impl Watch for Nobody {
    fn starved(&self, _: usize, _: Duration) {}
    fn hung(&self, _: usize, _: Duration) {}
}

const OPEN: LanePolicy = LanePolicy { depth: 10_000, weight: usize::MAX, overflow: Overflow::Refuse };
const COST: BatchCost = BatchCost::single(Duration::ZERO);
const LONG: Duration = Duration::from_secs(60);

fn order(lane: Lane, group: Group) -> Order {
    Order { lane, group, deadline: Moment::NEVER, expires: false, hold: Moment(0), weight: 0 }
}

fn counting() -> (Pool<Counter>, Receiver<u64>) {
    let (out, sums) = channel();
    let pool = Pool::start(vec![Counter { sum: 0, out, lane: None }], LONG, Nobody, |_| Ok(())).unwrap();
    (pool, sums)
}

#[test]
fn jobs_run_and_push_further_jobs_until_the_pool_is_drained() {
    let (pool, sums) = counting();
    let worker = &pool.workers()[0];
    let (lane, group) = (worker.open(OPEN), worker.open_group(Class::Realtime, &[COST]));
    for _ in 0..100 {
        assert_eq!(worker.push(order(lane, group), 10), Pushed::Waiting);
    }
    assert!(pool.drain(LONG));
    assert_eq!(sums.try_iter().last(), Some(100 * 55));
}

#[test]
fn a_change_runs_on_the_handler_before_the_next_job() {
    let (pool, sums) = counting();
    let worker = &pool.workers()[0];
    worker.change(|handler, _| handler.sum = 1000);
    let (lane, group) = (worker.open(OPEN), worker.open_group(Class::Realtime, &[COST]));
    worker.push(order(lane, group), 1);
    assert_eq!(sums.recv_timeout(LONG), Ok(1001));
}

#[test]
fn dropping_the_pool_stops_its_threads() {
    let (pool, sums) = counting();
    drop(pool);
    // The handler, and with it the sender, is gone.
    assert!(sums.recv().is_err());
}

#[test]
fn a_worker_that_cannot_be_prepared_is_an_error() {
    let (out, _sums) = channel();
    let handlers = (0..2).map(|_| Counter { sum: 0, out: out.clone(), lane: None }).collect();
    let prepare = |number| if number == 1 { Err(io::Error::other("no such CPU")) } else { Ok(()) };
    let error = Pool::start(handlers, LONG, Nobody, prepare).err().expect("an error");
    assert_eq!(error.to_string(), "no such CPU");
}

/// A job of the tests below.
enum Work {
    /// Runs until it is told to end, and says when it begins.
    Until(Sender<()>, Receiver<()>),
    /// Says what became of it.
    Tell(Sender<Option<Outcome>>),
}

struct Performer;

impl Handler for Performer {
    type Job = Work;

    fn run(&mut self, jobs: Vec<Work>, _: &mut Context<'_, Self>) {
        for job in jobs {
            match job {
                Work::Until(begun, end) => {
                    begun.send(()).unwrap();
                    let _ = end.recv();
                }
                Work::Tell(out) => out.send(None).unwrap(),
            }
        }
    }

    fn give_up(job: Work, outcome: Outcome) {
        if let Work::Tell(out) = job {
            out.send(Some(outcome)).unwrap();
        }
    }
}

struct Tell(Sender<(usize, Duration)>);

impl Watch for Tell {
    fn starved(&self, _: usize, _: Duration) {}

    fn hung(&self, worker: usize, ran: Duration) {
        self.0.send((worker, ran)).unwrap();
    }
}

/// A pool whose worker is in the middle of a job; it ends when the sender is dropped.
fn busy(hang_limit: Duration, watch: impl Watch) -> (Pool<Performer>, Lane, Group, Sender<()>) {
    let pool = Pool::start(vec![Performer], hang_limit, watch, |_| Ok(())).unwrap();
    let worker = &pool.workers()[0];
    let (lane, group) = (worker.open(OPEN), worker.open_group(Class::Realtime, &[COST]));
    let (begun, begins) = channel();
    let (end, ends) = channel();
    worker.push(order(lane, group), Work::Until(begun, ends));
    begins.recv_timeout(LONG).unwrap();
    (pool, lane, group, end)
}

#[test]
fn a_job_expires_on_time_while_another_runs() {
    let (pool, lane, group, end) = busy(LONG, Nobody);
    let (out, outcomes) = channel();
    let soon = Moment::now().after(Duration::from_millis(20));
    let order = Order { deadline: soon, expires: true, ..order(lane, group) };
    pool.workers()[0].push(order, Work::Tell(out));
    assert_eq!(outcomes.recv_timeout(LONG), Ok(Some(Outcome::Expired)));
    assert!(Moment::now() > soon, "not before");
    drop(end);
    assert!(pool.stop(LONG));
}

#[test]
fn a_job_that_hangs_is_told_once() {
    let (sender, told) = channel();
    let (pool, lane, group, end) = busy(Duration::from_millis(20), Tell(sender));
    let (worker, ran) = told.recv_timeout(LONG).unwrap();
    assert!(worker == 0 && ran >= Duration::from_millis(20));
    // An alarm for another reason, well after the limit, does not tell again.
    let (out, outcomes) = channel();
    let order = Order { deadline: Moment::now().after(Duration::from_millis(30)), expires: true, ..order(lane, group) };
    pool.workers()[0].push(order, Work::Tell(out));
    assert_eq!(outcomes.recv_timeout(LONG), Ok(Some(Outcome::Expired)));
    assert!(told.try_recv().is_err());
    assert!(!pool.stop(Duration::from_millis(1)), "it is left to itself");
    drop(end);
}
