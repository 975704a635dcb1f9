//! Whether what the depot delivered is still what was delivered.

use std::os::unix::fs::MetadataExt as _;

use limpet_depot::Store;

use super::{Finding, Patient};

const CHECK: &str = "store";

pub fn check(patient: &Patient<'_>) -> Vec<Finding> {
    if patient.config.depot.is_none() {
        return vec![Finding::ok(CHECK, "no models are delivered: there is no [depot]")];
    }
    let unreadable = |error: &dyn std::fmt::Display| {
        vec![Finding::error(CHECK, format!("it cannot be read: {error}"), "run this as the user that runs the agent")]
    };
    let folder = patient.config.gateway.state.join("depot");
    // Opening it makes what is missing, which is not for whoever looks; and not under another user's name.
    match std::fs::metadata(&folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return vec![Finding::ok(CHECK, "nothing was delivered yet")];
        }
        Err(error) => return unreadable(&error),
        Ok(data) if data.uid() != rustix::process::geteuid().as_raw() => {
            return unreadable(&format!("{} belongs to user {}", folder.display(), data.uid()));
        }
        Ok(_) => {}
    }
    let store = match Store::open(&patient.config.gateway.state) {
        Ok(store) => store,
        Err(error) => return unreadable(&error),
    };
    match store.check(false) {
        Ok(checked) if checked.damaged.is_empty() && checked.missing.is_empty() => {
            vec![Finding::ok(CHECK, format!("{} chunks were read, and all are what was delivered", checked.chunks))]
        }
        Ok(checked) => {
            let (damaged, missing) = (checked.damaged.len(), checked.missing.len());
            let found = format!("of {} chunks {damaged} are damaged, and {missing} versions lack some", checked.chunks);
            vec![Finding::error(CHECK, found, "limpet store check --repair; and look at the disk")]
        }
        Err(error) => unreadable(&error),
    }
}
