//! Whether results get away.

use super::{Finding, Patient};
use crate::outbox::{ASIDE, DATABASE};

const CHECK: &str = "outbox";

pub fn check(patient: &Patient<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let state = &patient.config.gateway.state;
    let aside = std::fs::read_dir(state).into_iter().flatten().flatten();
    let aside = aside.filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.starts_with(ASIDE) && name.ends_with(".db")
    });
    findings.extend(aside.map(|entry| {
        Finding::warning(
            CHECK,
            format!("a damaged database was set aside: {}", entry.path().display()),
            "look at the disk (dmesg, smartctl); remove the file when you have no more use for it",
        )
    }));
    let Some(status) = patient.status else {
        let path = state.join(DATABASE);
        let found = match std::fs::metadata(&path) {
            Ok(data) => format!("{} has {} KiB", path.display(), data.len() >> 10),
            Err(_) => "nothing waits on the disk".to_owned(),
        };
        findings.push(Finding::ok(CHECK, found));
        return findings;
    };
    let (outbox, most) = (&status.outbox, patient.config.outbox.max_bytes.0);
    let found = format!(
        "{} wait in memory, {} on the disk ({} KiB of {}); {} delivered, {} dropped",
        outbox.live,
        outbox.stored,
        outbox.stored_bytes >> 10,
        most >> 10,
        outbox.delivered,
        outbox.dropped
    );
    findings.push(if outbox.dropped > 0 {
        Finding::error(CHECK, found, "see that the broker can be reached; raise outbox.max_bytes, or publish less")
    } else if outbox.stored_bytes > most / 2 {
        Finding::warning(CHECK, found, "see that the broker can be reached, before results are dropped")
    } else {
        Finding::ok(CHECK, found)
    });
    findings
}
