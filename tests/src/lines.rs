//! What a child process says, line by line, as it says it.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use crate::LIMIT;

#[derive(Default)]
struct State {
    lines: Vec<String>,
    ended: bool,
}

/// The lines so far, and a bell for new ones.
#[derive(Clone, Default)]
pub struct Lines {
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl Lines {
    /// Reads until the pipe ends, on a thread of its own.
    pub fn read(pipe: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let shared = Arc::clone(&lines.shared);
        thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                let mut state = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
                state.lines.push(line);
                shared.1.notify_all();
            }
            shared.0.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
            shared.1.notify_all();
        });
        lines
    }

    /// All lines so far.
    pub fn all(&self) -> Vec<String> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).lines.clone()
    }

    /// Whether the process has closed the pipe, which it does when it ends.
    pub fn ended(&self) -> bool {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).ended
    }

    /// Waits for the first line from `start` on that `wanted` accepts; gives it and its position.
    pub fn wait_for(&self, start: usize, wanted: impl Fn(&str) -> bool) -> Result<(usize, String), String> {
        let until = Instant::now() + LIMIT;
        let mut state = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = start;
        loop {
            if let Some(at) = (next..state.lines.len()).find(|at| wanted(&state.lines[*at])) {
                return Ok((at, state.lines[at].clone()));
            }
            next = state.lines.len().max(start);
            let left = until.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                let why = if state.ended { "the process ended" } else { "the limit passed" };
                return Err(format!("{why}; it said:\n{}", state.lines.join("\n")));
            }
            state = self.shared.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the process has closed the pipe, and gives everything it said.
    pub fn to_end(&self) -> Vec<String> {
        let until = Instant::now() + LIMIT;
        let mut state = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.ended && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            state = self.shared.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.lines.clone()
    }
}
