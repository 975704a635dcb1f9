//! `limpet doctor`: what is wrong with this gateway, and what to do.
//!
//! Each check looks at one thing and has a file of its own. An agent that runs examines itself: it alone can probe its
//! links, and sees its own sandbox. Without one, this program does what it can by itself.

mod brokers;
mod certificates;
mod clock;
mod configuration;
mod disk;
mod memory;
mod outbox;
mod pipelines;
mod store;
mod temperature;
mod unit;

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use hyper::Method;
use limpet_wire::message::Message;
use serde::{Deserialize, Serialize};

pub use self::brokers::{PATIENCE as PROBE, Probed, probe_directly};
use crate::api::client::{Unanswered, send};
use crate::api::report::StatusReport;
use crate::api::socket;
use crate::cli::DoctorArgs;
use crate::config::Config;
use crate::{CliError, console};

/// How long an agent may take to examine itself: a probe of each link, and a store that is read as a whole.
const PATIENCE: Duration = Duration::from_secs(120);

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// All is well.
    Ok,
    /// It works, and will not for ever, or not as well as it could.
    Warning,
    /// It does not work.
    Error,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The check.
    pub check: String,
    /// How bad it is.
    pub state: State,
    /// What was found, a sentence.
    pub found: String,
    /// What to do; none if nothing.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub todo: Option<String>,
}

impl Finding {
    fn ok(check: &str, found: impl Into<String>) -> Self {
        Self { check: check.to_owned(), state: State::Ok, found: found.into(), todo: None }
    }

    fn warning(check: &str, found: impl Into<String>, todo: impl Into<String>) -> Self {
        Self { check: check.to_owned(), state: State::Warning, found: found.into(), todo: Some(todo.into()) }
    }

    fn error(check: &str, found: impl Into<String>, todo: impl Into<String>) -> Self {
        Self { check: check.to_owned(), state: State::Error, found: found.into(), todo: Some(todo.into()) }
    }
}

/// What all checks found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// Name of the gateway.
    pub gateway: String,
    /// Whether an agent runs, which has examined itself.
    pub running: bool,
    /// What was found, check by check.
    pub findings: Vec<Finding>,
}

impl Message for Diagnosis {
    const TYPE: &'static str = "diagnosis";
}

/// Who is examined.
pub struct Patient<'a> {
    /// What is configured.
    pub config: &'a Config,
    /// What the agent does, if this is one.
    pub status: Option<&'a StatusReport>,
    /// What came of the probes, by broker.
    pub probed: Vec<(String, Probed)>,
}

/// Examines everything that need not be asked from afar. It reads the whole store, so it is not for a thread that has
/// anything else to do.
pub fn examine(patient: &Patient<'_>) -> Vec<Finding> {
    let checks: [fn(&Patient<'_>) -> Vec<Finding>; 10] = [
        brokers::check,
        certificates::check,
        clock::check,
        disk::check,
        memory::check,
        temperature::check,
        store::check,
        outbox::check,
        pipelines::check,
        unit::check,
    ];
    checks.iter().flat_map(|check| check(patient)).collect()
}

/// Prints what is wrong with this gateway.
///
/// # Errors
/// [`CliError::No`] if there is any error.
pub fn doctor(args: &DoctorArgs) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio does not start")?;
    let (mut findings, loaded) = configuration::check(&args.config);
    let running = match (&args.socket, &loaded) {
        (Some(socket), _) => Some(socket.clone()),
        (None, Some(loaded)) => Some(socket::path(&loaded.config.gateway.run)),
        (None, None) => None,
    };
    let asked = running.map(|socket| runtime.block_on(send(&socket, Method::GET, "/v1/diagnosis", PATIENCE)));
    let gateway = loaded.as_ref().map_or_else(String::new, |loaded| loaded.config.gateway.id.to_string());
    let mut diagnosis = Diagnosis { gateway, running: false, findings: Vec::new() };
    match (asked, &loaded) {
        (Some(Ok(answer)), _) => {
            let told: Diagnosis = serde_json::from_slice(&answer).map_err(|error| {
                CliError::Unavailable(format!(
                    "what the agent answers is no diagnosis: {error}; was it restarted since limpet was upgraded?"
                ))
            })?;
            findings.push(Finding::ok("agent", "it runs, and has examined itself"));
            findings.extend(told.findings);
            (diagnosis.running, diagnosis.gateway) = (true, told.gateway);
        }
        (Some(Err(why)), loaded) => {
            let stopped = matches!(&why, Unanswered::Connect(_, error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused));
            let held = loaded.as_ref().is_some_and(|loaded| socket::is_held(&loaded.config.gateway.run));
            findings.push(match stopped {
                true if held => Finding::error("agent", "it is starting, or stopping", "ask again in some seconds"),
                true => Finding::error("agent", "no agent runs", "start it: systemctl start limpet"),
                false => {
                    let todo = "ask again as a user who may, or look at journalctl -u limpet";
                    Finding::error("agent", why.to_string(), todo)
                }
            });
            // With another agent at work, connecting under its name would throw it off the broker.
            if let Some(loaded) = loaded.as_ref().filter(|_| stopped && !held) {
                let probed = runtime.block_on(probe_directly(&loaded.config));
                findings.extend(examine(&Patient { config: &loaded.config, status: None, probed }));
            }
        }
        (None, _) => {}
    }
    diagnosis.findings = findings;
    let worst = diagnosis.findings.iter().map(|finding| finding.state).max();
    let text =
        if args.json { String::from_utf8_lossy(&diagnosis.to_json()).into_owned() + "\n" } else { text(&diagnosis) };
    console::print(text.as_bytes())?;
    if worst == Some(State::Error) { Err(CliError::No) } else { Ok(()) }
}

fn text(diagnosis: &Diagnosis) -> String {
    let mut text = String::new();
    for Finding { check, state, found, todo } in &diagnosis.findings {
        let state = match state {
            State::Ok => "ok     ",
            State::Warning => "warning",
            State::Error => "ERROR  ",
        };
        _ = writeln!(text, "{state}  {check:<13} {}", console::plain(found));
        if let Some(todo) = todo {
            _ = writeln!(text, "{:9}{:<13} → {}", "", "", console::plain(todo));
        }
    }
    let count = |state| diagnosis.findings.iter().filter(|finding| finding.state == state).count();
    _ = writeln!(
        text,
        "\n{} checks: {} ok, {} warnings, {} errors",
        diagnosis.findings.len(),
        count(State::Ok),
        count(State::Warning),
        count(State::Error)
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_lines_with_what_to_do_below_them() {
        let findings =
            vec![Finding::ok("clock", "it is right"), Finding::error("disk", "it is full\x1b[2J", "make room")];
        let text = text(&Diagnosis { gateway: "g".into(), running: true, findings });
        assert!(text.contains("ok       clock         it is right\n"), "{text}");
        assert!(text.contains("ERROR    disk          it is full [2J\n                       → make room\n"), "{text}");
        assert!(text.ends_with("2 checks: 1 ok, 0 warnings, 1 errors\n"), "{text}");
    }
}
