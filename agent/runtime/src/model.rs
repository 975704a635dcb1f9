//! The hand-over under loom, which tries every order in which the threads can meet.

/// The same file again, over loom's locks.
#[allow(dead_code, reason = "the model drives the desk and needs no pool")]
#[path = "handover.rs"]
mod handover;

mod sync {
    pub use loom::sync::atomic::{AtomicU64, Ordering};
    pub use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
}

use std::time::Duration;

use handover::{Alarm, Context, Desk, Handler, Watch, keep_time};
use loom::sync::atomic::{AtomicUsize, Ordering};
use sync::Arc;

use crate::clock::Moment;
use crate::ledger::Outcome;
use crate::queue::{BatchCost, Class, LanePolicy, Order, Overflow};

const OPEN: LanePolicy = LanePolicy { depth: 8, weight: usize::MAX, overflow: Overflow::Refuse };
const COST: BatchCost = BatchCost::single(Duration::ZERO);

struct Count {
    ran: Arc<AtomicUsize>,
}

impl Handler for Count {
    type Job = Arc<AtomicUsize>;

    fn run(&mut self, jobs: Vec<Self::Job>, _: &mut Context<'_, Self>) {
        self.ran.fetch_add(jobs.len(), Ordering::SeqCst);
    }

    fn give_up(job: Self::Job, _: Outcome) {
        job.fetch_add(1, Ordering::SeqCst);
    }
}

struct Nobody;

impl Watch for Nobody {
    fn starved(&self, _: usize, _: Duration) {}
    fn hung(&self, _: usize, _: Duration) {}
}

/// A clock that stands still, at a moment when the jobs with deadline 1 are late.
fn now() -> Moment {
    Moment(10)
}

fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(run);
}

fn desk() -> (Arc<Alarm>, Arc<Desk<Count>>, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let alarm = Arc::new(Alarm::new(Duration::from_secs(1)));
    let desk = Arc::new(Desk::new(Arc::clone(&alarm), now));
    (alarm, desk, Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)))
}

/// No wake-up is lost: what is pushed while the worker goes to sleep runs, and a stop is heard. loom reports a
/// worker that sleeps on as a deadlock.
#[test]
fn a_push_and_a_stop_always_reach_the_worker() {
    model(|| {
        let (_, desk, ran, given_up) = desk();
        let (lane, group) = desk.with_queue(|queue| (queue.open(OPEN), queue.open_group(Class::Realtime, &[COST])));
        let worker = loom::thread::spawn({
            let (desk, ran) = (Arc::clone(&desk), Arc::clone(&ran));
            move || desk.work(&mut Count { ran })
        });
        let order = Order { lane, group, deadline: Moment::NEVER, expires: false, hold: Moment(0), weight: 0 };
        desk.push(order, Arc::clone(&given_up));
        assert!(desk.drain(Duration::MAX));
        assert_eq!(ran.load(Ordering::SeqCst), 1);
        desk.stop();
        worker.join().unwrap();
    });
}

/// A job that expires while the worker may be taking it is run or given up, once.
#[test]
fn a_job_is_run_or_given_up_once() {
    model(|| {
        let (alarm, desk, ran, given_up) = desk();
        let (lane, group) = desk.with_queue(|queue| (queue.open(OPEN), queue.open_group(Class::Realtime, &[COST])));
        let order = |deadline| Order { lane, group, deadline, expires: true, hold: Moment(0), weight: 0 };
        desk.push(order(Moment(1)), Arc::clone(&given_up));
        let worker = loom::thread::spawn({
            let (desk, ran) = (Arc::clone(&desk), Arc::clone(&ran));
            move || desk.work(&mut Count { ran })
        });
        let timekeeper = loom::thread::spawn({
            let (alarm, desks) = (Arc::clone(&alarm), [Arc::clone(&desk)]);
            move || keep_time(&alarm, &desks, &Nobody, now)
        });
        assert!(desk.drain(Duration::MAX));
        desk.stop();
        worker.join().unwrap();
        alarm.stop();
        timekeeper.join().unwrap();
        assert_eq!(ran.load(Ordering::SeqCst) + given_up.load(Ordering::SeqCst), 1);
    });
}

/// A job that is pushed behind a busy worker and expires is given up by the timekeeper, whenever it sleeps or looks:
/// the alarm is never lost. Nobody else could: there is no worker here.
#[test]
fn an_alarm_is_never_lost() {
    model(|| {
        let (alarm, desk, _, given_up) = desk();
        let (lane, group) = desk.with_queue(|queue| (queue.open(OPEN), queue.open_group(Class::Realtime, &[COST])));
        let timekeeper = loom::thread::spawn({
            let (alarm, desks) = (Arc::clone(&alarm), [Arc::clone(&desk)]);
            move || keep_time(&alarm, &desks, &Nobody, now)
        });
        let order = Order { lane, group, deadline: Moment(1), expires: true, hold: Moment(0), weight: 0 };
        desk.push(order, Arc::clone(&given_up));
        while given_up.load(Ordering::SeqCst) == 0 {
            loom::thread::yield_now();
        }
        alarm.stop();
        timekeeper.join().unwrap();
    });
}
