//! Whether there is room where the agent keeps its state.

use super::{Finding, Patient};

const CHECK: &str = "disk";
/// Without so much nothing can be kept.
const LEAST: u64 = 16 << 20;

pub fn check(patient: &Patient<'_>) -> Vec<Finding> {
    let (state, outbox) = (&patient.config.gateway.state, &patient.config.outbox);
    let stat = match rustix::fs::statvfs(state) {
        Ok(stat) => stat,
        Err(error) => {
            let todo = "create the folder of gateway.state for the user that runs the agent";
            return vec![Finding::error(CHECK, format!("{}: {error}", state.display()), todo)];
        }
    };
    let mib = |bytes: u64| bytes >> 20;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let used = patient.status.map_or(0, |status| status.outbox.stored_bytes);
    let wanted = outbox.max_bytes.0.saturating_sub(used);
    let found = format!("{} MiB are free in {}", mib(free), state.display());
    vec![if stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        Finding::error(
            CHECK,
            format!("{} cannot be written: the file system is read-only", state.display()),
            "look at dmesg: a card that fails becomes read-only; replace it",
        )
    } else if free < LEAST {
        Finding::error(CHECK, found, "make room: results that cannot be delivered are kept there")
    } else if free < wanted {
        let found = format!("{found}, and the outbox may want {} MiB more", mib(wanted));
        Finding::warning(CHECK, found, "make room, or lower outbox.max_bytes")
    } else {
        Finding::ok(CHECK, found)
    }]
}
