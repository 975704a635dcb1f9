//! When and where a job runs.
//!
//! A fixed set of worker threads ([`pool`]), each with a queue of its own ([`queue`]) in order of deadline, and with a
//! handler of its own that nobody else touches: sessions and stream state live there and need no lock. What a job is,
//! the user of this crate says ([`Handler`]); there are two kinds of them:
//!
//! - *ingest*: one message of one stream. Never replaced, because a missing message would tear a hole in a window; a
//!   lane that is full refuses, and the refusal is a counted gap.
//! - *infer*: one window. Subject to the pipeline's policy: the newest wins, the oldest goes, or the new one is refused.
//!   It expires when it can no longer be ready in time, and may run in a batch with others of its model.
//!
//! Every completed window ends in exactly one [`ledger::Outcome`].
//!
//! Before any of that, [`admission`] decides by arithmetic what may run at all, and on which worker.
//!
//! Time is CLOCK_BOOTTIME ([`clock`]), because a gateway sleeps and its wall clock jumps.

#![forbid(unsafe_code)]
// The tests compile the hand-over a second time, over loom's locks.
#![cfg_attr(test, allow(clippy::duplicate_mod))]

pub mod admission;
pub mod clock;
mod handover;
pub mod ledger;
pub mod pool;
pub mod queue;

/// The locks of [`handover`], which the tests exchange for loom's.
mod sync {
    pub use std::sync::atomic::{AtomicU64, Ordering};
    pub use std::sync::{Arc, Condvar, Mutex, MutexGuard};
}

pub use clock::{Clock, Moment};
pub use handover::{Context, Handler, Watch};
pub use ledger::{Ledger, Outcome, Stage};
pub use pool::{Pool, Worker};
pub use queue::{BatchCost, Class, Group, Lane, LanePolicy, Order, Overflow};

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
