//! Whether there is memory for the models that are admitted.

use sysinfo::System;

use super::{Finding, Patient};

const CHECK: &str = "memory";
/// What the system should have besides.
const RESERVE: u64 = 32 << 20;

pub fn check(patient: &Patient<'_>) -> Vec<Finding> {
    let Ok(mut system) = System::new() else {
        return vec![Finding::warning(CHECK, "the system does not say how much there is", "mount /proc")];
    };
    system.refresh_memory();
    let (total, available) = (system.total_memory(), system.available_memory());
    let to_load = patient.status.map_or(0, |status| {
        let models = status.budget.memory_admitted_bytes.saturating_sub(status.budget.memory_loaded_bytes);
        models + patient.config.outbox.ring.0.saturating_sub(status.outbox.ring_bytes)
    });
    let mib = |bytes: u64| bytes >> 20;
    let found = format!("{} of {} MiB are available", mib(available), mib(total));
    vec![if available < to_load + RESERVE {
        let found =
            format!("{found}; what was admitted and is not there yet, models and the ring, wants {} MiB", mib(to_load));
        Finding::warning(CHECK, found, "stop what else runs here, or lower budget.memory")
    } else {
        Finding::ok(CHECK, found)
    }]
}
