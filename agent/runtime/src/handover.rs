//! How jobs pass from thread to thread: onto a worker, off it when they expire, and back when nobody wants them.
//!
//! Three kinds of thread meet at a [`Desk`]: whoever pushes jobs, the worker that runs them, and the timekeeper, which
//! gives up what expires while the worker is busy. The file names its locks through `super::sync`, so that the tests
//! compile it a second time over loom's, which tries every order in which the threads can meet.

use super::sync::{Arc, AtomicU64, Condvar, Mutex, MutexGuard, Ordering};

use std::time::Duration;

use crate::clock::Moment;
use crate::ledger::Outcome;
use crate::queue::{BatchCost, Class, Group, Lane, LanePolicy, Order, Pushed, Queue, Turn};

/// What a worker thread does with jobs. It is built before the thread starts and never leaves it afterwards.
pub trait Handler: Sized + 'static {
    /// A job.
    type Job: Send;

    /// Runs jobs of one group together, and leaves none of them in `jobs`. It may push further ones through the context.
    fn run(&mut self, jobs: Vec<Self::Job>, context: &mut Context<'_, Self>);

    /// A job will not run. Called on whichever thread noticed, without any lock.
    fn give_up(job: Self::Job, outcome: Outcome);
}

/// Who hears of what the timekeeper notices. Called on its thread, without any lock.
pub trait Watch: Send + Sync + 'static {
    /// On this worker no analytic job has started for so long, while some wait.
    fn starved(&self, worker: usize, waited: Duration);

    /// On this worker a job has been running for so long, which is longer than it may.
    fn hung(&self, worker: usize, ran: Duration);
}

/// A change to a handler, run on its own thread between two jobs.
type Change<H> = Box<dyn FnOnce(&mut H, &mut Context<'_, H>) + Send>;

struct State<H: Handler> {
    queue: Queue<H::Job>,
    changes: Vec<Change<H>>,
    /// Whether the worker is at work, or about to look for some.
    busy: bool,
    /// Since when it has run what it runs, until the timekeeper has told that this is too long.
    running: Option<Moment>,
    /// Whether it has run anything since the timekeeper looked.
    ran: bool,
    stop: bool,
    ended: bool,
}

/// Where one worker and everybody else meet.
pub struct Desk<H: Handler> {
    state: Mutex<State<H>>,
    /// Woken when there is something to do or to stop for.
    work: Condvar,
    /// Woken when the worker has nothing left to do, and when it ends.
    idle: Condvar,
    alarm: Arc<Alarm>,
    now: fn() -> Moment,
}

/// When the timekeeper looks at the desks again.
pub struct Alarm {
    at: Mutex<AlarmState>,
    changed: Condvar,
    /// The same moment, to be read without the lock: most jobs need no earlier alarm.
    armed: AtomicU64,
    /// How long a job may run.
    hang_limit: Duration,
}

struct AlarmState {
    at: Moment,
    stop: bool,
}

fn good<'a, T>(guard: Result<MutexGuard<'a, T>, std::sync::PoisonError<MutexGuard<'a, T>>>) -> MutexGuard<'a, T> {
    // What the locks protect is consistent between any two statements that can panic, so a poisoned lock is still good.
    guard.unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Alarm {
    /// An alarm that is not set.
    pub fn new(hang_limit: Duration) -> Self {
        Self {
            at: Mutex::new(AlarmState { at: Moment::NEVER, stop: false }),
            changed: Condvar::new(),
            armed: AtomicU64::new(Moment::NEVER.0),
            hang_limit,
        }
    }

    /// Sees that the timekeeper looks at `at` or before.
    ///
    /// Call it after the desk's lock was held and let go with the cause in place. Then no alarm is lost: the timekeeper
    /// takes the alarm back before it locks a desk, so either it finds the cause there, or its lock came first and the
    /// alarm that is read here is one that it took back.
    fn arm(&self, at: Moment) {
        if at.0 >= self.armed.load(Ordering::Relaxed) {
            return;
        }
        let mut state = good(self.at.lock());
        if at < state.at {
            state.at = at;
            self.armed.store(at.0, Ordering::Relaxed);
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Ends the timekeeper.
    pub fn stop(&self) {
        good(self.at.lock()).stop = true;
        self.changed.notify_one();
    }

    /// Takes the alarm back. Says whether to stop instead.
    fn take_back(&self) -> bool {
        let mut state = good(self.at.lock());
        state.at = Moment::NEVER;
        self.armed.store(Moment::NEVER.0, Ordering::Relaxed);
        state.stop
    }

    /// Sleeps until `at`, or an earlier moment that somebody armed meanwhile.
    fn sleep(&self, at: Moment, now: fn() -> Moment) {
        let mut state = good(self.at.lock());
        if at < state.at {
            state.at = at;
            self.armed.store(at.0, Ordering::Relaxed);
        }
        while !state.stop {
            let left = state.at.since(now());
            if left.is_zero() {
                return;
            }
            state = if state.at == Moment::NEVER {
                good(self.changed.wait(state))
            } else {
                self.changed.wait_timeout(state, left).unwrap_or_else(std::sync::PoisonError::into_inner).0
            };
        }
    }
}

/// The timekeeper: gives up what expires, on time, whatever the workers are doing; and tells what takes too long.
pub fn keep_time<H: Handler>(alarm: &Alarm, desks: &[Arc<Desk<H>>], watch: &dyn Watch, now: fn() -> Moment) {
    while !alarm.take_back() {
        let mut next = Moment::NEVER;
        for (worker, desk) in desks.iter().enumerate() {
            let mut state = desk.lock();
            let at = now();
            let expired = state.queue.expire(at);
            let starved = state.queue.starved(at);
            let hung = state.running.map(|since| at.since(since)).filter(|ran| *ran >= alarm.hang_limit);
            if hung.is_some() {
                state.running = None;
            }
            next = next.min(state.notice(alarm));
            // While it is at work the alarm stays within a hang's time, so that no job has to set it anew: a thread that
            // is woken costs more than many a session.
            if std::mem::take(&mut state.ran) {
                next = next.min(at.after(alarm.hang_limit));
            }
            drop(state);
            expired.into_iter().for_each(|job| H::give_up(job, Outcome::Expired));
            if let Some(waited) = starved {
                watch.starved(worker, waited);
            }
            if let Some(ran) = hung {
                watch.hung(worker, ran);
            }
        }
        alarm.sleep(next, now);
    }
}

impl<H: Handler> State<H> {
    /// When the timekeeper should look at this desk, if nothing changes.
    fn notice(&self, alarm: &Alarm) -> Moment {
        let hang = self.running.map_or(Moment::NEVER, |since| since.after(alarm.hang_limit));
        // A worker that sleeps takes what comes in at once, and gives up for itself what is too late.
        if self.busy { self.queue.next_notice().min(hang) } else { Moment::NEVER }
    }
}

impl<H: Handler> Desk<H> {
    /// A desk whose worker is yet to come.
    pub fn new(alarm: Arc<Alarm>, now: fn() -> Moment) -> Self {
        let state = State {
            queue: Queue::default(),
            changes: Vec::new(),
            busy: true,
            running: None,
            ran: false,
            stop: false,
            ended: false,
        };
        Self { state: Mutex::new(state), work: Condvar::new(), idle: Condvar::new(), alarm, now }
    }

    fn lock(&self) -> MutexGuard<'_, State<H>> {
        good(self.state.lock())
    }

    /// Adds a job.
    pub fn push(&self, order: Order, job: H::Job) -> Pushed<H::Job> {
        let mut state = self.lock();
        let pushed = state.queue.push((self.now)(), order, job);
        let (wake, notice) = (!state.busy, state.notice(&self.alarm));
        drop(state);
        if wake {
            self.work.notify_one();
        }
        self.alarm.arm(notice);
        pushed
    }

    /// Adds a job from the worker itself, while it runs another. It looks at its queue next, and nobody need be woken;
    /// should it then run something else first, it sets the alarm.
    fn push_own(&self, order: Order, job: H::Job) -> Pushed<H::Job> {
        let now = (self.now)();
        self.with_queue(|queue| queue.push(now, order, job))
    }

    /// Acts on the queue.
    pub fn with_queue<T>(&self, act: impl FnOnce(&mut Queue<H::Job>) -> T) -> T {
        act(&mut self.lock().queue)
    }

    /// Has a change made to the handler on its own thread, before the next job.
    pub fn change(&self, change: Change<H>) {
        self.lock().changes.push(change);
        self.work.notify_one();
    }

    /// Ends the worker after its current job.
    pub fn stop(&self) {
        self.lock().stop = true;
        self.work.notify_one();
    }

    /// Waits until the worker has nothing to do, or `limit` has passed. Says whether it had nothing to do.
    pub fn drain(&self, limit: Duration) -> bool {
        self.wait_until(limit, |state| state.ended || !state.busy && state.queue.is_empty() && state.changes.is_empty())
    }

    /// Waits until the worker has ended, or `limit` has passed. Says whether it has ended.
    pub fn wait_for_end(&self, limit: Duration) -> bool {
        self.wait_until(limit, |state| state.ended)
    }

    fn wait_until(&self, limit: Duration, holds: impl Fn(&State<H>) -> bool) -> bool {
        let end = (self.now)().after(limit);
        let mut state = self.lock();
        while !holds(&state) {
            let left = end.since((self.now)());
            if left.is_zero() {
                return false;
            }
            state = self.idle.wait_timeout(state, left).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        true
    }

    /// The worker's loop: changes first, then the queue's turns, until it is stopped.
    pub fn work(&self, handler: &mut H) {
        let mut state = self.lock();
        loop {
            if state.stop {
                (state.busy, state.ended) = (false, true);
                self.idle.notify_all();
                return;
            }
            state.busy = true;
            if !state.changes.is_empty() {
                let changes = std::mem::take(&mut state.changes);
                drop(state);
                for change in changes {
                    change(handler, &mut Context { queue: Access::Desk(self) });
                }
                state = self.lock();
                continue;
            }
            let now = (self.now)();
            match state.queue.next(now) {
                Turn::Run(jobs) => {
                    (state.running, state.ran) = (Some(now), true);
                    let notice = state.notice(&self.alarm);
                    drop(state);
                    self.alarm.arm(notice);
                    handler.run(jobs, &mut Context { queue: Access::Desk(self) });
                    state = self.lock();
                    state.running = None;
                }
                Turn::Expired(jobs) => {
                    drop(state);
                    jobs.into_iter().for_each(|job| H::give_up(job, Outcome::Expired));
                    state = self.lock();
                }
                Turn::Wait(until) => {
                    state.busy = false;
                    let left = until.min(state.queue.next_expiry()).since(now);
                    state = self.work.wait_timeout(state, left).unwrap_or_else(std::sync::PoisonError::into_inner).0;
                }
                Turn::Idle => {
                    state.busy = false;
                    self.idle.notify_all();
                    // What waits in a group that is blocked expires all the same.
                    let expiry = state.queue.next_expiry();
                    state = if expiry == Moment::NEVER {
                        good(self.work.wait(state))
                    } else {
                        let left = expiry.since(now);
                        self.work.wait_timeout(state, left).unwrap_or_else(std::sync::PoisonError::into_inner).0
                    };
                }
            }
        }
    }
}

/// How a running handler reaches its own queue.
pub struct Context<'a, H: Handler> {
    queue: Access<'a, H>,
}

enum Access<'a, H: Handler> {
    Desk(&'a Desk<H>),
    Own(&'a mut Queue<H::Job>, Moment),
}

impl<'a, H: Handler> Context<'a, H> {
    /// A context over a queue without a thread, at this moment, for whoever runs jobs itself: tests, and recordings on
    /// a virtual clock.
    pub fn over(queue: &'a mut Queue<H::Job>, now: Moment) -> Self {
        Self { queue: Access::Own(queue, now) }
    }

    fn with<T>(&mut self, act: impl FnOnce(&mut Queue<H::Job>) -> T) -> T {
        match &mut self.queue {
            Access::Desk(desk) => desk.with_queue(act),
            Access::Own(queue, _) => act(queue),
        }
    }

    /// Adds a job to this worker's own queue.
    pub fn push(&mut self, order: Order, job: H::Job) -> Pushed<H::Job> {
        match &mut self.queue {
            Access::Desk(desk) => desk.push_own(order, job),
            Access::Own(queue, now) => queue.push(*now, order, job),
        }
    }

    /// Opens a lane in this worker's own queue.
    pub fn open(&mut self, policy: LanePolicy) -> Lane {
        self.with(|queue| queue.open(policy))
    }

    /// Whether any job of a lane of this worker's own queue waits.
    pub fn waits(&mut self, lane: Lane) -> bool {
        self.with(|queue| queue.waits(lane))
    }

    /// Jobs that wait in this worker's own queue.
    pub fn queued(&mut self) -> usize {
        self.with(|queue| queue.len())
    }

    /// Closes a lane of this worker's own queue. What waited in it is given up as `outcome`.
    pub fn close(&mut self, lane: Lane, outcome: Outcome) {
        self.with(|queue| queue.close(lane)).into_iter().for_each(|job| H::give_up(job, outcome));
    }

    /// Opens a group in this worker's own queue.
    pub fn open_group(&mut self, class: Class, costs: &[BatchCost]) -> Group {
        self.with(|queue| queue.open_group(class, costs))
    }

    /// Changes what batches of a group of this worker's own queue may be, and cost; a single job's cost stays.
    pub fn set_batches(&mut self, group: Group, costs: &[BatchCost]) {
        self.with(|queue| queue.set_batches(group, costs));
    }

    /// Keeps the jobs of a group of this worker's own queue from running, or lets them run again.
    pub fn block(&mut self, group: Group, blocked: bool) {
        self.with(|queue| queue.block(group, blocked));
    }

    /// Gives up all jobs of a group of this worker's own queue as `outcome`.
    pub fn drain(&mut self, group: Group, outcome: Outcome) {
        self.with(|queue| queue.drain(group)).into_iter().for_each(|job| H::give_up(job, outcome));
    }

    /// Takes no more jobs into a group of this worker's own queue; what waits in it still runs.
    pub fn retire(&mut self, group: Group) {
        self.with(|queue| queue.retire(group));
    }
}
