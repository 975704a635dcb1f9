//! The demo as plain lines, for a log or a pipe: what happens, and every result.

use super::show::Show;

/// Prints what is new.
#[derive(Default)]
pub struct Lines {
    next_log: u64,
    results: u64,
}

impl Lines {
    /// Prints the log lines and the result that came since the last call.
    pub fn print_new(&mut self, show: &Show) {
        for (number, line) in show.log() {
            if number >= self.next_log {
                println!("{line}");
                self.next_log = number + 1;
            }
        }
        if show.results() > self.results
            && let (Some(beat), Some(latest)) = (show.recent().next_back(), show.latest())
        {
            self.results = show.results();
            let mark = if beat.right { '=' } else { '≠' };
            let l = beat.latency;
            println!(
                "{:6.1} s  {:<9} {:.2} {mark} {:<9}  {} µs: wait {} · features {} · queue {} · compute {} · decide {}",
                beat.at,
                beat.label,
                latest.score,
                beat.truth.label(),
                l.total(),
                l.wait,
                l.features,
                l.queue,
                l.compute,
                l.decide,
            );
        }
    }
}
