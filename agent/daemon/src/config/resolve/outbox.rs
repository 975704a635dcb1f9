//! `[outbox]`, and what a pipeline says of it.

use std::time::Duration;

use super::super::{DropPolicy, Durability, Interval, Outbox, OutboxOrder, Size, file};
use super::{At, Check};

/// Below this the disk has no rest.
const COMMIT_MIN: Duration = Duration::from_millis(50);
const COMMIT_MAX: Duration = Duration::from_secs(60);
/// Eight segments, each of which holds more than one large event.
const RING_MIN: u64 = 256 << 10;
const RING_MAX: u64 = 1 << 30;
const BYTES_MIN: u64 = 1 << 20;
const AGE_MIN: Duration = Duration::from_secs(60);
const DRAIN_MIN: u64 = 1 << 10;
/// Some hundred bytes each.
const HISTORY_MAX: u32 = 100_000;
/// Beyond this next to nothing is kept.
const THIN_MAX: u64 = 1000;

impl Check<'_> {
    pub(super) fn outbox(&mut self, file: &file::Outbox) -> Outbox {
        let at = At::table("outbox");
        let default = Outbox::default();
        let commit_interval = file.commit_interval.unwrap_or(default.commit_interval);
        self.require(&at, "commit_interval", (COMMIT_MIN..=COMMIT_MAX).contains(&commit_interval.0), || {
            format!("found {commit_interval}, expected {} to {}", Interval(COMMIT_MIN), Interval(COMMIT_MAX))
        });
        let max_bytes = file.max_bytes.unwrap_or(default.max_bytes);
        self.require(&at, "max_bytes", max_bytes.0 >= BYTES_MIN, || {
            format!("found {max_bytes}, expected at least {}", Size(BYTES_MIN))
        });
        let max_age = file.max_age.unwrap_or(default.max_age);
        self.require(&at, "max_age", max_age.0 >= AGE_MIN, || {
            format!("found {max_age}, expected at least {}", Interval(AGE_MIN))
        });
        let ring = file.ring.unwrap_or(default.ring);
        self.require(&at, "ring", (RING_MIN..=RING_MAX).contains(&ring.0), || {
            format!("found {ring}, expected {} to {}", Size(RING_MIN), Size(RING_MAX))
        });
        let drain_rate = file.drain_rate.unwrap_or(default.drain_rate);
        self.require(&at, "drain_rate", drain_rate.0 >= DRAIN_MIN, || {
            format!("found {drain_rate}, expected at least {} a second", Size(DRAIN_MIN))
        });
        let history_results = file.history_results.unwrap_or(default.history_results);
        self.require(&at, "history_results", history_results <= HISTORY_MAX, || {
            format!("found {history_results}, expected at most {HISTORY_MAX} of each pipeline; they are in memory")
        });
        Outbox {
            commit_interval,
            durability: file.durability.unwrap_or(Durability::Interval),
            max_bytes,
            max_age,
            ring,
            policy: self.drop_policy(&at, "policy", file.policy, default.policy),
            order: file.order.unwrap_or(OutboxOrder::LiveFirst),
            drain_rate,
            history: file.history.unwrap_or(default.history),
            history_results,
        }
    }

    pub(super) fn drop_policy(
        &mut self,
        at: &At,
        key: &str,
        given: Option<DropPolicy>,
        default: DropPolicy,
    ) -> DropPolicy {
        let policy = given.unwrap_or(default);
        if let DropPolicy::Thin(every) = policy {
            self.require(at, key, (2..=THIN_MAX).contains(&every), || {
                format!("found {{ thin = {every} }}, expected 2 to {THIN_MAX}: one result of so many is kept")
            });
        }
        policy
    }
}
