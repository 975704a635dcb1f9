//! A bar on standard error while it measures; none where that is no terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Parts of one piece of work.
const PARTS: u64 = 100;

/// How far the work is.
pub struct Progress(ProgressBar);

impl Progress {
    /// For so many pieces of work.
    pub fn new(pieces: usize) -> Self {
        let bar = ProgressBar::with_draw_target(Some(pieces as u64 * PARTS), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{bar:30} {percent:>3} % · {elapsed} · {wide_msg}");
        bar.set_style(style.expect("the template is valid"));
        Self(bar)
    }

    /// Says what is being done; the bar stays where it is.
    pub fn start(&self, what: String) {
        self.0.set_message(what);
        self.0.tick();
    }

    /// Says how many pieces of work there are after all.
    pub fn pieces(&self, pieces: usize) {
        self.0.set_length(pieces as u64 * PARTS);
    }

    /// Says how far the piece is, 0 to 1.
    pub fn at(&self, share: f64) {
        let done = self.0.position() / PARTS * PARTS;
        self.0.set_position(done + ((share * PARTS as f64) as u64).min(PARTS - 1));
    }

    /// So many pieces are done.
    pub fn done(&self, pieces: usize) {
        self.0.set_position((self.0.position() / PARTS + pieces as u64) * PARTS);
    }

    /// Takes the bar away.
    pub fn end(&self) {
        self.0.finish_and_clear();
    }
}
