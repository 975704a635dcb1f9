//! What a publisher says when it is stopped in the middle with Ctrl-C.
//!
//! Every command of a publisher may end at any point, so nothing has to be brought to an end first. It must be told how
//! far it was, and what to do. That happens on a thread of its own: the main one may be waiting for a passphrase.

use std::io::IsTerminal as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;

use crate::bench::text::thousands;

/// Exit code of a process that an interrupt ended, as shells have it: 128 and the signal.
const INTERRUPTED: i32 = 130;

/// How far this process is; a signal is the process's too.
static WORK: Mutex<Work> = Mutex::new(Work { what: String::new(), done: 0, of: 0 });

/// What is being moved, or was last.
struct Work {
    what: String,
    done: u64,
    of: u64,
}

fn work() -> MutexGuard<'static, Work> {
    // Nothing panics while it is locked.
    WORK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Something begins that moves so many bytes.
pub fn begin(what: &str, bytes: u64) {
    *work() = Work { what: what.to_owned(), done: 0, of: bytes };
}

/// So many bytes were moved.
pub fn moved(bytes: u64) {
    work().done += bytes;
}

/// From now on Ctrl-C ends the process with a sentence.
///
/// # Errors
/// If the system gives no thread, or does not let it listen.
pub fn listen() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("listening for Ctrl-C")?;
    let listening = move || {
        if runtime.block_on(tokio::signal::ctrl_c()).is_err() {
            return;
        }
        let line = if std::io::stderr().is_terminal() { "\n" } else { "" };
        eprintln!("{line}limpet-lab: {}", work().sentence());
        std::process::exit(INTERRUPTED);
    };
    std::thread::Builder::new().name("interrupt".into()).spawn(listening).context("listening for Ctrl-C")?;
    Ok(())
}

impl Work {
    fn sentence(&self) -> String {
        if self.what.is_empty() {
            return "interrupted before anything was sent; the same command again begins anew".to_owned();
        }
        format!(
            "interrupted; {}: {} of {} bytes are done. The same command again sends only what is missing; until it has \
             ended, gateways go on with what was published before",
            self.what,
            thousands(self.done),
            thousands(self.of)
        )
    }
}
