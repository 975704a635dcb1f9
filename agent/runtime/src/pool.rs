//! Worker threads.
//!
//! Each worker owns a [`Handler`] and a queue. Jobs come in from any thread through a [`Worker`] handle, and from the
//! handler itself while it runs ([`Context`]). A worker that has nothing to do sleeps on a condition variable; nothing
//! polls.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::queue::{Lane, LanePolicy, Order, Pushed, Queue};

/// What a worker thread does with jobs. It is built before the thread starts and never leaves it afterwards.
pub trait Handler: Send + Sized + 'static {
    /// A job.
    type Job: Send;

    /// Runs a job. It may push further ones through the context.
    fn run(&mut self, job: Self::Job, context: &mut Context<'_, Self>);
}

/// A change to a handler, run on its own thread between two jobs.
type Change<H> = Box<dyn FnOnce(&mut H, &mut Context<'_, H>) + Send>;

struct State<H: Handler> {
    queue: Queue<H::Job>,
    changes: Vec<Change<H>>,
    busy: bool,
    stop: bool,
}

struct Shared<H: Handler> {
    state: Mutex<State<H>>,
    /// Woken when there is something to do or to stop for.
    work: Condvar,
    /// Woken when a worker has nothing left to do.
    idle: Condvar,
}

impl<H: Handler> Shared<H> {
    fn lock(&self) -> MutexGuard<'_, State<H>> {
        // The state is consistent between any two statements that can panic, so a poisoned lock is still good.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a running handler reaches its own queue.
pub struct Context<'a, H: Handler> {
    queue: QueueAccess<'a, H>,
}

enum QueueAccess<'a, H: Handler> {
    Shared(&'a Shared<H>),
    Own(&'a mut Queue<H::Job>),
}

impl<'a, H: Handler> Context<'a, H> {
    /// A context over a queue without a thread, for whoever runs jobs itself: tests, and recordings on a virtual clock.
    pub fn over(queue: &'a mut Queue<H::Job>) -> Self {
        Self { queue: QueueAccess::Own(queue) }
    }

    fn with<T>(&mut self, act: impl FnOnce(&mut Queue<H::Job>) -> T) -> T {
        match &mut self.queue {
            QueueAccess::Shared(shared) => act(&mut shared.lock().queue),
            QueueAccess::Own(queue) => act(queue),
        }
    }

    /// Adds a job to this worker's own queue.
    pub fn push(&mut self, order: Order, job: H::Job) -> Pushed<H::Job> {
        self.with(|queue| queue.push(order, job))
    }

    /// Opens a lane in this worker's own queue.
    pub fn open(&mut self, policy: LanePolicy) -> Lane {
        self.with(|queue| queue.open(policy))
    }

    /// Closes a lane of this worker's own queue and gives back what waited in it.
    pub fn close(&mut self, lane: Lane) -> Vec<H::Job> {
        self.with(|queue| queue.close(lane))
    }
}

/// A handle to one worker; cheap to clone.
pub struct Worker<H: Handler> {
    shared: Arc<Shared<H>>,
}

impl<H: Handler> Clone for Worker<H> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<H: Handler> Worker<H> {
    /// Adds a job.
    pub fn push(&self, order: Order, job: H::Job) -> Pushed<H::Job> {
        let mut state = self.shared.lock();
        let pushed = state.queue.push(order, job);
        let wake = !state.busy;
        drop(state);
        if wake {
            self.shared.work.notify_one();
        }
        pushed
    }

    /// Opens a lane.
    pub fn open(&self, policy: LanePolicy) -> Lane {
        self.shared.lock().queue.open(policy)
    }

    /// Closes a lane and gives back what waited in it.
    pub fn close(&self, lane: Lane) -> Vec<H::Job> {
        self.shared.lock().queue.close(lane)
    }

    /// Has a change made to the handler on its own thread, before the next job.
    pub fn change(&self, change: impl FnOnce(&mut H, &mut Context<'_, H>) + Send + 'static) {
        self.shared.lock().changes.push(Box::new(change));
        self.shared.work.notify_one();
    }
}

/// The worker threads. Dropping it stops them after their current job.
pub struct Pool<H: Handler> {
    workers: Vec<Worker<H>>,
    threads: Vec<JoinHandle<()>>,
}

impl<H: Handler> Pool<H> {
    /// Starts one thread for each handler, named `worker-<number>`.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(handlers: Vec<H>) -> std::io::Result<Self> {
        let mut pool = Self { workers: Vec::new(), threads: Vec::new() };
        for (number, handler) in handlers.into_iter().enumerate() {
            let state = State { queue: Queue::default(), changes: Vec::new(), busy: true, stop: false };
            let shared = Arc::new(Shared { state: Mutex::new(state), work: Condvar::new(), idle: Condvar::new() });
            pool.workers.push(Worker { shared: Arc::clone(&shared) });
            let thread = std::thread::Builder::new().name(format!("worker-{number}"));
            pool.threads.push(thread.spawn(move || work(&shared, handler))?);
        }
        Ok(pool)
    }

    /// The workers, in the order of their handlers.
    pub fn workers(&self) -> &[Worker<H>] {
        &self.workers
    }

    /// Waits until no worker has anything to do, or `limit` has passed. Says whether all were done.
    pub fn drain(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        self.workers.iter().all(|worker| {
            let busy = |state: &mut State<H>| state.busy || !state.queue.is_empty() || !state.changes.is_empty();
            let left = end.saturating_duration_since(Instant::now());
            let state = worker.shared.lock();
            let (state, timeout) =
                worker.shared.idle.wait_timeout_while(state, left, busy).unwrap_or_else(PoisonError::into_inner);
            drop(state);
            !timeout.timed_out()
        })
    }
}

impl<H: Handler> Drop for Pool<H> {
    fn drop(&mut self) {
        for worker in &self.workers {
            worker.shared.lock().stop = true;
            worker.shared.work.notify_one();
        }
        for thread in self.threads.drain(..) {
            // A worker that panicked has said so on standard error already.
            let _ = thread.join();
        }
    }
}

fn work<H: Handler>(shared: &Shared<H>, mut handler: H) {
    let mut state = shared.lock();
    loop {
        if state.stop {
            state.busy = false;
            shared.idle.notify_all();
            return;
        }
        if !state.changes.is_empty() {
            let changes = std::mem::take(&mut state.changes);
            state.busy = true;
            drop(state);
            for change in changes {
                change(&mut handler, &mut Context { queue: QueueAccess::Shared(shared) });
            }
            state = shared.lock();
        } else if let Some(job) = state.queue.pop() {
            state.busy = true;
            drop(state);
            handler.run(job, &mut Context { queue: QueueAccess::Shared(shared) });
            state = shared.lock();
        } else {
            state.busy = false;
            shared.idle.notify_all();
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Moment;
    use crate::queue::{Class, Overflow};
    use std::sync::mpsc;

    struct Counter {
        sum: u64,
        out: mpsc::Sender<u64>,
        lane: Option<Lane>,
    }

    impl Handler for Counter {
        type Job = u64;

        fn run(&mut self, job: u64, context: &mut Context<'_, Self>) {
            self.sum += job;
            self.out.send(self.sum).unwrap();
            if job > 1 {
                let lane = *self.lane.get_or_insert_with(|| context.open(OPEN));
                context.push(order(lane), job - 1);
            }
        }
    }

    const OPEN: LanePolicy = LanePolicy { depth: 10_000, weight: usize::MAX, overflow: Overflow::Refuse };

    fn order(lane: Lane) -> Order {
        Order { lane, class: Class::Realtime, deadline: Moment(0), weight: 0 }
    }

    #[test]
    fn jobs_run_and_push_further_jobs_until_the_pool_is_drained() {
        let (out, sums) = mpsc::channel();
        let pool = Pool::start(vec![Counter { sum: 0, out, lane: None }]).unwrap();
        let worker = &pool.workers()[0];
        let lane = worker.open(OPEN);
        for _ in 0..100 {
            assert_eq!(worker.push(order(lane), 10), Pushed::Waiting);
        }
        assert!(pool.drain(Duration::from_secs(60)));
        assert_eq!(sums.try_iter().last(), Some(100 * 55));
    }

    #[test]
    fn a_change_runs_on_the_handler_before_the_next_job() {
        let (out, sums) = mpsc::channel();
        let pool = Pool::start(vec![Counter { sum: 0, out, lane: None }]).unwrap();
        let worker = &pool.workers()[0];
        worker.change(|handler, _| handler.sum = 1000);
        let lane = worker.open(OPEN);
        worker.push(order(lane), 1);
        assert_eq!(sums.recv_timeout(Duration::from_secs(60)), Ok(1001));
    }

    #[test]
    fn dropping_the_pool_stops_its_threads() {
        let (out, sums) = mpsc::channel();
        let pool = Pool::start(vec![Counter { sum: 0, out, lane: None }]).unwrap();
        drop(pool);
        // The handler, and with it the sender, is gone.
        assert_eq!(sums.recv(), Err(mpsc::RecvError));
    }
}
