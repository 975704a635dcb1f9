//! The programs that are broken: the agent and the uplink's broker, as children that do not outlive the harness.

#![allow(unsafe_code)] // `pre_exec` alone: nothing else runs in a child between its fork and its program.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal};

/// A child that is killed when this is dropped, and by the kernel when whoever started it has gone without that.
pub struct Process(Child);

impl Process {
    /// Starts it, without input, in a process group of its own: Ctrl-C in a terminal is for the harness, which ends the others
    /// in order.
    ///
    /// The kernel kills a child when the *thread* has ended that started it, so call this from the main thread, or from one
    /// that lasts as long.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(command: &mut Command) -> io::Result<Self> {
        let parent = getpid();
        let bind = move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // One whose parent went in between is told of no death any more.
            if getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
        };
        // SAFETY: it makes two system calls; it allocates nothing, takes no lock and touches nothing of the other threads.
        unsafe { command.pre_exec(bind) };
        Ok(Self(command.process_group(0).stdin(Stdio::null()).spawn()?))
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn exit(&mut self) -> anyhow::Result<Option<std::process::ExitStatus>> {
        self.0.try_wait().context("asking for a child's exit status")
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).context("a process id")?;
        // It is our own child and not waited for yet, so the id is still its own.
        kill_process(pid, signal).with_context(|| format!("sending {signal:?} to process {pid:?}"))
    }

    /// Kills it, and waits until it is gone.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.0.kill().context("killing a child")?;
        self.0.wait().context("waiting for a child that was killed")?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_goes_with_the_thread_that_started_it() {
        let mut child =
            std::thread::spawn(|| Process::start(Command::new("sleep").arg("600")).unwrap()).join().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.0.wait().unwrap()), Some(9));
    }
}
