//! The log: standard error, as text or JSON; and its last lines in memory, for whoever asks from afar.
//!
//! Where standard error is systemd's journal, text goes there as entries with fields (`LIMPET_MODEL=…`), so that
//! `journalctl -t limpet LIMPET_BROKER=uplink -p warning` finds what it is about.

use std::collections::VecDeque;
use std::io::{self, IsTerminal as _};
use std::sync::{Mutex, PoisonError};

use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{Log, LogFormat, LogLevel};

/// Lines that are kept.
const LINES: usize = crate::commands::LINES_MOST as usize;
/// Longest line that is kept whole.
pub const LONGEST: usize = 1000;

static LAST: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

/// Starts it. Called once, before anything is logged.
pub fn start(log: Log) {
    let level = match log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    // The MQTT client logs what its caller handles: refused publications, lost connections.
    let filter = Targets::new().with_default(level).with_target("rumqttc", LevelFilter::OFF);
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_target(false);
    let shown = match (log.format, journal()) {
        (LogFormat::Text, Some(journal)) => journal.boxed(),
        (LogFormat::Text, None) => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        (LogFormat::Json, _) => lines.json().flatten_event(true).boxed(),
    };
    let kept = tracing_subscriber::fmt::layer().with_writer(Memory).with_target(false).with_ansi(false);
    tracing_subscriber::registry().with(filter).with(shown).with(kept).init();
}

/// The journal, if standard error goes there: systemd tells by which file to know that.
fn journal() -> Option<tracing_journald::Layer> {
    let stderr = rustix::fs::fstat(io::stderr()).ok()?;
    let file = format!("{}:{}", stderr.st_dev, stderr.st_ino);
    if std::env::var("JOURNAL_STREAM").ok()? != file {
        return None;
    }
    // Informational and not a notice, as everybody else has it.
    let priorities = PriorityMappings {
        error: Priority::Error,
        warn: Priority::Warning,
        info: Priority::Informational,
        debug: Priority::Debug,
        trace: Priority::Debug,
    };
    // A sandbox may hide its socket; then there is standard error.
    let layer = tracing_journald::Layer::new().ok()?.with_priority_mappings(priorities);
    Some(layer.with_field_prefix(Some("LIMPET".to_owned())).with_syslog_identifier("limpet".to_owned()))
}

/// The last lines of the log, at most so many, the oldest first.
pub fn last_lines(most: usize) -> Vec<String> {
    let lines = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    lines.iter().skip(lines.len().saturating_sub(most)).cloned().collect()
}

/// A line of the log in the making.
struct Memory;

impl<'a> MakeWriter<'a> for Memory {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(Vec::new())
    }
}

struct Line(Vec<u8>);

impl io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(&bytes[..bytes.len().min(LONGEST.saturating_sub(self.0.len()))]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let line = String::from_utf8_lossy(&self.0).trim_end().to_owned();
        let mut lines = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }
}
