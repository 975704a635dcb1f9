//! Whether results get away.

use super::{Finding, Patient};
use crate::outbox::{self, ASIDE, DATABASE};

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
        let shown = path.display();
        findings.push(match outbox::examine(&path) {
            Ok(None) => Finding::ok(CHECK, "nothing waits on the disk"),
            Ok(Some(rows)) => Finding::ok(CHECK, format!("{rows} wait on the disk, in {shown}")),
            Err(why) => Finding::error(
                CHECK,
                format!("{shown}: {why}"),
                "the agent sets it aside when it starts, reads what can be read, and tells what cannot; look at the disk (dmesg, smartctl)",
            ),
        });
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
