//! When and where a job runs.
//!
//! A fixed set of worker threads ([`pool`]), each with a queue of its own ([`queue`]) in order of deadline, and with a
//! handler of its own that nobody else touches: sessions and stream state live there and need no lock. What a job is,
//! the user of this crate says ([`Handler`]); there are two kinds of them, told apart by their lane's policy:
//!
//! - *ingest*: one message of one stream. Never replaced, because a missing message would tear a hole in a window; a
//!   lane that is full refuses, and the refusal is a counted gap.
//! - *infer*: one window. Subject to the pipeline's policy: the newest wins, the oldest goes, or the new one is refused.
//!
//! Every completed window ends in exactly one [`ledger::Outcome`].
//!
//! Time is CLOCK_BOOTTIME ([`clock`]), because a gateway sleeps and its wall clock jumps.

#![forbid(unsafe_code)]

pub mod clock;
pub mod ledger;
pub mod pool;
pub mod queue;

pub use clock::{Clock, Moment};
pub use ledger::{Ledger, Outcome, Stage};
pub use pool::{Context, Handler, Pool, Worker};
pub use queue::{Class, Lane, LanePolicy, Order, Overflow};
