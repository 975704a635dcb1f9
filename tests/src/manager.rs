//! What stands in for the service manager: it hears what an agent tells it by sd_notify(3).

use std::os::unix::net::UnixDatagram;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::LIMIT;
use crate::program::text_of;

/// A service manager that only listens.
pub struct Manager {
    folder: TempDir,
    messages: Receiver<Vec<String>>,
    heard: Vec<String>,
}

impl Default for Manager {
    fn default() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("a socket can be bound");
        let (hears, messages) = mpsc::channel();
        // Always read: an agent waits for room in a socket that is full. The thread ends with the test's process.
        std::thread::spawn(move || {
            let mut message = [0; 4096];
            while let Ok(length) = socket.recv(&mut message) {
                let lines = String::from_utf8_lossy(&message[..length]).lines().map(str::to_owned).collect();
                if hears.send(lines).is_err() {
                    return;
                }
            }
        });
        Self { folder, messages, heard: Vec::new() }
    }
}

impl Manager {
    /// What an agent finds in its environment. `watchdog`: after how long without a sign of life it would be ended.
    pub fn environment(&self, watchdog: Duration) -> [(&'static str, String); 2] {
        let path = self.folder.path().join("notify");
        [("NOTIFY_SOCKET", text_of(&path).to_owned()), ("WATCHDOG_USEC", watchdog.as_micros().to_string())]
    }

    /// Waits for a line that starts with `start` and holds all of `words`, among those that come from now on.
    ///
    /// # Panics
    /// With what came, if it does not.
    #[track_caller]
    pub fn wait_for(&mut self, start: &str, words: &[&str]) -> String {
        let until = Instant::now() + LIMIT;
        while let Some(lines) = self.hear(until.saturating_duration_since(Instant::now())) {
            let wanted = |line: &&String| line.starts_with(start) && words.iter().all(|word| line.contains(word));
            if let Some(line) = lines.iter().find(wanted) {
                return line.clone();
            }
        }
        panic!("no {start} with {words:?}; what came:\n{}", self.heard.join("\n"));
    }

    /// Whether a line that starts so comes within this time.
    pub fn hears(&mut self, start: &str, within: Duration) -> bool {
        let until = Instant::now() + within;
        while let Some(lines) = self.hear(until.saturating_duration_since(Instant::now())) {
            if lines.iter().any(|line| line.starts_with(start)) {
                return true;
            }
        }
        false
    }

    /// All that was heard so far.
    pub fn heard(&self) -> &[String] {
        &self.heard
    }

    /// The lines of the next message, if one comes in time.
    fn hear(&mut self, within: Duration) -> Option<Vec<String>> {
        let lines = self.messages.recv_timeout(within).ok()?;
        self.heard.extend(lines.iter().cloned());
        Some(lines)
    }
}
