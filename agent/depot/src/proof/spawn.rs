//! The parent's side of a proof: one child process, watched until it ends or its time is over.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use std::{io, thread};

use super::BatchCost;
use super::batch::not_kept;
use super::child::{Doing, Job, MARKER, Measured, Message, write_job};

/// How much of what a child prints is kept: enough for its last words.
const STDERR_KEPT: usize = 16 << 10;
/// Longest message of a child, in bytes.
const MESSAGE_MAX: u64 = 1 << 20;
/// Longest last word that goes into a reason, in characters.
const LAST_WORD_MAX: usize = 300;

/// What the kernel sends when a process has used up its CPU time.
const SIGXCPU: i32 = 24;

/// How a child ended.
pub(super) enum Outcome {
    Measured(Box<Measured>, Option<Larger>),
    Refused {
        load_ms: Option<f64>,
        reason: String,
    },
    /// It crashed, was killed, or did not end in time.
    Broken {
        reason: String,
        cause: Cause,
    },
}

/// Why a child did not come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// It would do so again.
    Own,
    /// It took too long, which may be the device's bad day.
    Time,
    /// Somebody stopped it: memory ran out, or a person did.
    Stopped,
}

/// What was found of batches.
pub(super) struct Larger {
    /// Sizes from 2 on that are right and worth it.
    pub sizes: Vec<BatchCost>,
    /// Why there are no more.
    pub stopped: String,
}

/// Runs one job.
///
/// # Errors
/// If the process cannot be started.
pub(super) fn run(job: &Job, graph: &[u8], golden: &[u8], wall: Duration) -> io::Result<Outcome> {
    // The very program that runs, even if an update has put another file in its place.
    let mut child = Command::new("/proc/self/exe")
        .arg0("limpet-proof-child")
        .arg(MARKER)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let end = Instant::now() + wall;
    let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(stdin), Some(stdout), Some(stderr)) = pipes else { unreachable!("all three were asked for") };
    thread::scope(|scope| {
        // A child that has ended reads no further; what it said counts, not that it did not listen.
        scope.spawn(move || drop(write_job(stdin, job, graph, golden)));
        let printed = scope.spawn(move || last_of(stderr));
        let (sender, messages) = mpsc::channel();
        scope.spawn(move || {
            let mut lines = BufReader::new(stdout);
            while let Ok(Some(message)) = next_message(&mut lines) {
                if sender.send(message).is_err() {
                    break;
                }
            }
        });
        let mut doing = None;
        let mut answer = None;
        let mut sizes = Vec::new();
        let mut stopped = None;
        let in_time = loop {
            match messages.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(Message::Doing(now)) => doing = Some(now),
                Ok(Message::Refused { load_ms, reason }) => answer = Some(Outcome::Refused { load_ms, reason }),
                Ok(Message::Done(measured)) => answer = Some(Outcome::Measured(Box::new(measured), None)),
                Ok(Message::Batch(cost)) => sizes.push(cost),
                Ok(Message::BatchesEnd(reason)) => stopped = Some(reason),
                Err(RecvTimeoutError::Disconnected) => break true,
                Err(RecvTimeoutError::Timeout) => break false,
            }
        };
        let status = if in_time { wait_until(&mut child, end)? } else { None };
        if status.is_none() {
            // It may have ended in this moment, and then there is nothing to kill.
            let _ = child.kill();
            child.wait()?;
        }
        let printed = printed.join().unwrap_or_default();
        let ended_well = status.is_some_and(|status| status.success());
        Ok(match (answer, doing) {
            // Whatever a batch did to the process, what was found before it stands.
            (Some(Outcome::Measured(measured, _)), Some(Doing::Batch(size))) => {
                let (reason, _) = why_ended(status, doing, &printed, wall);
                let stopped = stopped.filter(|_| ended_well).unwrap_or_else(|| not_kept(size, &reason));
                Outcome::Measured(measured, Some(Larger { sizes, stopped }))
            }
            (Some(Outcome::Measured(measured, _)), _) if ended_well => {
                let larger = stopped.map(|stopped| Larger { sizes, stopped });
                Outcome::Measured(measured, larger)
            }
            (Some(answer), _) if ended_well => answer,
            _ => {
                let (reason, cause) = why_ended(status, doing, &printed, wall);
                Outcome::Broken { reason, cause }
            }
        })
    })
}

/// How a child that failed ended, and why.
fn why_ended(status: Option<ExitStatus>, doing: Option<Doing>, printed: &[u8], wall: Duration) -> (String, Cause) {
    let when = doing.map_or_else(|| "starting".to_owned(), Doing::word);
    let (what, cause) = match status {
        None => (format!("did not end within {} s and was stopped while {when}", wall.as_secs_f32()), Cause::Time),
        Some(status) => match status.signal() {
            // Whoever sent these had a reason outside the graph.
            Some(signal @ (2 | 9 | 15)) => (format!("killed by {} while {when}", signal_name(signal)), Cause::Stopped),
            Some(SIGXCPU) => ("took more CPU time than it may while ".to_owned() + &when, Cause::Time),
            Some(signal) => (format!("killed by {} while {when}", signal_name(signal)), Cause::Own),
            None => (format!("ended with exit code {} while {when}", status.code().unwrap_or_default()), Cause::Own),
        },
    };
    let printed = String::from_utf8_lossy(printed);
    let last = printed.lines().map(str::trim).rfind(|line| !line.is_empty() && !line.starts_with("note: "));
    let reason = match last {
        Some(line) => {
            format!("{what}: {}", line.chars().filter(|c| !c.is_control()).take(LAST_WORD_MAX).collect::<String>())
        }
        None => what,
    };
    (reason, cause)
}

/// The child's exit, if it comes before `end`. It has closed its output already, so this takes a moment at most.
fn wait_until(child: &mut Child, end: Instant) -> io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// The next message; none at the end or at a line that is none.
fn next_message(lines: &mut impl BufRead) -> io::Result<Option<Message>> {
    let mut line = Vec::new();
    lines.take(MESSAGE_MAX).read_until(b'\n', &mut line)?;
    Ok(serde_json::from_slice(&line).ok())
}

/// Reads to the end and keeps the last of it.
fn last_of(mut stream: impl Read) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..count]);
        let excess = kept.len().saturating_sub(STDERR_KEPT);
        kept.drain(..excess);
    }
    kept
}

/// The usual name of a signal that ends processes.
fn signal_name(signal: i32) -> String {
    let name = match signal {
        2 => "SIGINT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        15 => "SIGTERM",
        24 => "SIGXCPU (too much CPU time)",
        31 => "SIGSYS",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}
