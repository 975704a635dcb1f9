//! The log: standard error, as text or JSON; and its last lines in memory, for whoever asks from afar.

use std::collections::VecDeque;
use std::io::{self, IsTerminal as _};
use std::sync::{Mutex, PoisonError};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{Log, LogFormat};

/// Lines that are kept.
const LINES: usize = crate::commands::LINES_MOST as usize;
/// Longest line that is kept whole.
pub const LONGEST: usize = 1000;

static LAST: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

/// Starts it. Called once, before anything is logged.
pub fn start(log: Log) {
    let level = format!("{:?}", log.level).to_lowercase();
    // The MQTT client logs what its caller handles: refused publications, lost connections.
    let filter = EnvFilter::new(format!("{level},rumqttc=off"));
    let shown = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_target(false);
    let shown = match log.format {
        LogFormat::Text => shown.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => shown.json().flatten_event(true).boxed(),
    };
    let kept = tracing_subscriber::fmt::layer().with_writer(Memory).with_target(false).with_ansi(false);
    tracing_subscriber::registry().with(filter).with(shown).with(kept).init();
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
