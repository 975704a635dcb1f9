//! Whether there is memory for the models that are admitted.

use super::{Finding, Patient};

const CHECK: &str = "memory";
/// What the system should have besides.
const RESERVE: u64 = 32 << 20;

pub fn check(patient: &Patient<'_>) -> Vec<Finding> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(value.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? << 10)
    };
    let (Some(total), Some(available)) = (field("MemTotal:"), field("MemAvailable:")) else {
        return vec![Finding::warning(CHECK, "/proc/meminfo does not say how much there is", "mount /proc")];
    };
    let to_load = patient
        .status
        .map_or(0, |status| status.budget.memory_admitted_bytes.saturating_sub(status.budget.memory_loaded_bytes));
    let mib = |bytes: u64| bytes >> 20;
    let found = format!("{} of {} MiB are available", mib(available), mib(total));
    vec![if available < to_load + RESERVE {
        let found = format!("{found}; models that are admitted and not loaded want {} MiB", mib(to_load));
        Finding::warning(CHECK, found, "stop what else runs here, or lower budget.memory")
    } else {
        Finding::ok(CHECK, found)
    }]
}
