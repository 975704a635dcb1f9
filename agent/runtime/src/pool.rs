//! Worker threads.
//!
//! Each worker owns a [`Handler`] and a queue. Jobs come in from any thread through a [`Worker`] handle, and from the
//! handler itself while it runs ([`Context`](crate::Context)). A worker that has nothing to do sleeps on a condition
//! variable. One more thread, the timekeeper, sleeps until the next job expires behind a busy worker. Nothing polls.
//!
//! Timed sleeps count CLOCK_MONOTONIC, which stands still while the machine is suspended, whereas deadlines are of
//! CLOCK_BOOTTIME: after a suspension the timekeeper may wake late. No worker starts anything late for that, since each
//! looks at the clock itself.

use std::io;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::Moment;
use crate::handover::{Alarm, Desk, Handler, keep_time};
use crate::queue::{BatchCost, Class, Group, Lane, LanePolicy, Order, Pushed};
use crate::{Context, Watch};

/// A handle to one worker; cheap to clone.
pub struct Worker<H: Handler> {
    desk: Arc<Desk<H>>,
}

impl<H: Handler> Clone for Worker<H> {
    fn clone(&self) -> Self {
        Self { desk: Arc::clone(&self.desk) }
    }
}

impl<H: Handler> Worker<H> {
    /// Adds a job.
    pub fn push(&self, order: Order, job: H::Job) -> Pushed<H::Job> {
        self.desk.push(order, job)
    }

    /// Opens a lane.
    pub fn open(&self, policy: LanePolicy) -> Lane {
        self.desk.with_queue(|queue| queue.open(policy))
    }

    /// Closes a lane and gives back what waited in it.
    pub fn close(&self, lane: Lane) -> Vec<H::Job> {
        self.desk.with_queue(|queue| queue.close(lane))
    }

    /// Opens a group.
    pub fn open_group(&self, class: Class, costs: &[BatchCost]) -> Group {
        self.desk.with_queue(|queue| queue.open_group(class, costs))
    }

    /// Jobs that wait.
    pub fn waiting(&self) -> usize {
        self.desk.with_queue(|queue| queue.len())
    }

    /// Has a change made to the handler on its own thread, before the next job.
    pub fn change(&self, change: impl FnOnce(&mut H, &mut Context<'_, H>) + Send + 'static) {
        self.desk.change(Box::new(change));
    }
}

/// The worker threads and their timekeeper. Dropping it stops them after their current job.
pub struct Pool<H: Handler> {
    workers: Vec<Worker<H>>,
    threads: Vec<JoinHandle<()>>,
    alarm: Arc<Alarm>,
    timekeeper: Option<JoinHandle<()>>,
}

impl<H: Handler + Send> Pool<H> {
    /// Starts one thread for each handler, named `worker-<number>`, and the timekeeper.
    ///
    /// `prepare` runs first on every worker thread: priority, affinity. A job that runs for `hang_limit` is told to
    /// `watch`.
    ///
    /// # Errors
    /// If the system gives no thread, or what `prepare` gives.
    pub fn start(
        handlers: Vec<H>,
        hang_limit: Duration,
        watch: impl Watch,
        prepare: impl Fn(usize) -> io::Result<()> + Clone + Send + 'static,
    ) -> io::Result<Self> {
        let alarm = Arc::new(Alarm::new(hang_limit));
        let mut pool = Self { workers: Vec::new(), threads: Vec::new(), alarm: Arc::clone(&alarm), timekeeper: None };
        let (prepared, answers) = mpsc::channel();
        for (number, mut handler) in handlers.into_iter().enumerate() {
            let desk = Arc::new(Desk::new(Arc::clone(&alarm), Moment::now));
            pool.workers.push(Worker { desk: Arc::clone(&desk) });
            let (prepare, prepared) = (prepare.clone(), prepared.clone());
            let thread = std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
                let ready = prepare(number);
                let failed = ready.is_err();
                // Nobody listens any more only if another worker failed first.
                let _ = prepared.send(ready);
                if !failed {
                    desk.work(&mut handler);
                }
            });
            pool.threads.push(thread?);
        }
        for _ in &pool.threads {
            answers.recv().map_err(io::Error::other)??;
        }
        let desks: Vec<_> = pool.workers.iter().map(|worker| Arc::clone(&worker.desk)).collect();
        let timekeeper = std::thread::Builder::new().name("timekeeper".into());
        pool.timekeeper = Some(timekeeper.spawn(move || keep_time(&alarm, &desks, &watch, Moment::now))?);
        Ok(pool)
    }
}

impl<H: Handler> Pool<H> {
    /// The workers, in the order of their handlers.
    pub fn workers(&self) -> &[Worker<H>] {
        &self.workers
    }

    /// Waits until no worker has anything to do, or `limit` has passed. Says whether all were done.
    pub fn drain(&self, limit: Duration) -> bool {
        let end = Moment::now().after(limit);
        self.workers.iter().all(|worker| worker.desk.drain(end.since(Moment::now())))
    }

    /// Stops the workers after their current job, and waits for that no longer than `limit`. Says whether all have
    /// ended; one that has not is left to itself, since a thread cannot be ended from outside.
    pub fn stop(mut self, limit: Duration) -> bool {
        self.tell_to_stop();
        let end = Moment::now().after(limit);
        let ended = self.workers.iter().all(|worker| worker.desk.wait_for_end(end.since(Moment::now())));
        if !ended {
            self.threads.clear();
        }
        ended
    }

    fn tell_to_stop(&self) {
        self.workers.iter().for_each(|worker| worker.desk.stop());
        self.alarm.stop();
    }
}

impl<H: Handler> Drop for Pool<H> {
    fn drop(&mut self) {
        self.tell_to_stop();
        for thread in self.threads.drain(..).chain(self.timekeeper.take()) {
            // A worker that panicked has said so on standard error already.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
