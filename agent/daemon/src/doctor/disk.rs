//! Whether there is room where the agent keeps its state.

use rustix::fs::Access;
use rustix::io::Errno;

use super::{Finding, Patient};
use crate::outbox::DATABASE;

const CHECK: &str = "disk";
/// What statfs(2) says of a tmpfs.
const TMPFS: rustix::fs::FsWord = 0x0102_1994;
/// Without so much nothing can be kept.
const LEAST: u64 = 16 << 20;

pub fn check(patient: &Patient<'_>) -> Vec<Finding> {
    let (state, run) = (&patient.config.gateway.state, &patient.config.gateway.run);
    let mut findings = vec![room(patient)];
    for (key, folder) in [("gateway.state", state), ("gateway.run", run)] {
        // One that is not there is made.
        let access = rustix::fs::access(folder, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK);
        if let Err(error @ (Errno::ACCESS | Errno::PERM)) = access {
            findings.push(Finding::error(
                CHECK,
                format!("{key}, {}, cannot be opened and written by this user: {error}", folder.display()),
                "let it belong to the user that runs the agent, and ask as that one: sudo -u limpet limpet doctor",
            ));
        }
    }
    let Ok(stat) = rustix::fs::statfs(run) else { return findings };
    if stat.f_type != TMPFS {
        findings.push(Finding::warning(
            CHECK,
            format!("gateway.run, {}, is on a disk: each result is written there", run.display()),
            "name a folder on tmpfs, such as one below /run",
        ));
    }
    let wanted =
        patient.status.map_or(0, |status| patient.config.outbox.ring.0.saturating_sub(status.outbox.ring_bytes));
    if let Ok(stat) = rustix::fs::statvfs(run)
        && stat.f_bavail.saturating_mul(stat.f_frsize) < wanted
    {
        findings.push(Finding::warning(
            CHECK,
            format!("gateway.run, {}, has no room for the {} MiB that the ring may want", run.display(), wanted >> 20),
            "remove what fills it, or make outbox.ring smaller",
        ));
    }
    findings
}

fn room(patient: &Patient<'_>) -> Finding {
    let (state, outbox) = (&patient.config.gateway.state, &patient.config.outbox);
    let stat = match rustix::fs::statvfs(state) {
        Ok(stat) => stat,
        Err(Errno::NOENT) if patient.status.is_none() => {
            let found = format!("there is no {} yet", state.display());
            return Finding::warning(CHECK, found, "the agent makes it when it starts, if its user may");
        }
        Err(error) => {
            let todo = "create the folder of gateway.state for the user that runs the agent";
            return Finding::error(CHECK, format!("{}: {error}", state.display()), todo);
        }
    };
    let mib = |bytes: u64| bytes >> 20;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    // Its file does not shrink: what was deleted is room for what comes.
    let used = std::fs::metadata(state.join(DATABASE)).map_or(0, |file| file.len());
    let wanted = outbox.max_bytes.0.saturating_sub(used);
    let found = format!("{} MiB are free in {}", mib(free), state.display());
    if stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
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
    }
}
