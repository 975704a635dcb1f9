//! Sources that are programs: `arecord`, a serial reader, an IIO or a Modbus tool. What one writes to its standard output
//! is cut into messages ([`Cutter`]), which go where an MQTT source's go.
//!
//! - The program is started as it is configured, never through a shell; its standard input is empty.
//! - When it ends, it is started again after a pause that grows from 0.5 s to a minute ([`Backoff`]). What it took down with
//!   it is a gap, by the rules of the source.
//! - What it writes to standard error goes into the log, with the source's name, at most [`SAID`] lines in [`SAID_IN`].
//! - It ends with the agent: with SIGTERM and, after [`GRACE`], SIGKILL where the agent stops, and with SIGKILL from the
//!   kernel where the agent is killed. The kernel is told by the child itself ([`become_program`]), since a program in
//!   between must ask for that; what the program started in turn, its process group, is ended with it where the agent stops.

use std::cell::RefCell;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::{ExitStatus, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::sync::watch;

use crate::config::{Codec, Source};
use crate::console;
use crate::link::backoff::Backoff;
use crate::link::{Received, Stop, random};
use crate::pipeline::plan::SourcePlan;
use crate::report::Reporter;
use crate::service::Pulse;

/// The argument that makes this program become another one. Nobody types it.
const MARKER: &str = "--limpet-source-program";
/// Largest message, as of MQTT.
pub const MESSAGE_MAX: usize = 1024 * 1024;
/// Most bytes that are read at once, and largest message of bare samples.
const READ: usize = 64 * 1024;
/// Bare samples that come in smaller pieces than this are waited for together: each message costs some microseconds.
const PIECE: Duration = Duration::from_millis(5);
/// How long a program may take to end when the agent stops.
const GRACE: Duration = Duration::from_secs(2);
/// How long the pipes of a program that has ended are read on: what it has started may hold them.
const DRAIN: Duration = Duration::from_millis(200);
/// Messages after which others have a turn: links are on this thread too.
const TURN: usize = 64;
/// A program that ran for so long had started well; its end is told anew.
const STARTED_WELL: Duration = Duration::from_secs(30);
/// Lines of its standard error that go into the log…
const SAID: u32 = 20;
/// …in this time.
const SAID_IN: Duration = Duration::from_secs(10);
/// Longest such line.
const LINE_MAX: u64 = 1000;

/// Becomes the program of a source, if this process was started for that; else returns at once.
///
/// The kernel kills it when its parent, the agent's main thread, is gone: that outlasts the change into another program.
pub fn become_program() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|argument| argument != MARKER) {
        return;
    }
    let parent = arguments.next().and_then(|id| id.to_str()?.parse().ok()).and_then(Pid::from_raw);
    let told = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    // The parent may have gone before the kernel knew of it.
    if told.is_err() || rustix::process::getppid() != parent {
        std::process::exit(1);
    }
    let Some(program) = arguments.next() else { std::process::exit(1) };
    let error = std::process::Command::new(&program).args(arguments).exec();
    eprintln!("{} cannot be started: {error}", program.display());
    std::process::exit(if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 });
}

/// Cuts a program's output into messages.
#[derive(Debug)]
pub struct Cutter {
    rule: Rule,
    rest: BytesMut,
    /// Bytes of it that hold no end of a line.
    searched: usize,
    /// Whether the line at hand is too long, and its rest is passed over.
    passing: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// A message is a line.
    Lines,
    /// A message has so many bytes.
    Length(usize),
    /// A message is all that is there, in whole frames of so many bytes.
    Frames(usize),
}

/// What comes out of a [`Cutter`].
#[derive(Debug, PartialEq, Eq)]
pub enum Cut {
    /// A message.
    Message(Bytes),
    /// A line that is longer than a message may be was passed over.
    TooLong,
}

impl Cutter {
    /// By the codec of a source, and by the length of a message where that is configured.
    pub fn of(source: &Source) -> Self {
        let length = source.message.and_then(|bytes| usize::try_from(bytes.0).ok());
        let rule = match (&source.codec, length) {
            (_, Some(length)) => Rule::Length(length),
            (Codec::Raw(raw), None) => Rule::Frames(raw.channels * raw.number.size()),
            _ => Rule::Lines,
        };
        Self { rule, rest: BytesMut::new(), searched: 0, passing: false }
    }

    /// Bytes of a frame, if messages are whatever is there.
    fn frame(&self) -> Option<usize> {
        match self.rule {
            Rule::Frames(frame) => Some(frame),
            Rule::Lines | Rule::Length(_) => None,
        }
    }

    /// The next message of what was read.
    pub fn next(&mut self) -> Option<Cut> {
        match self.rule {
            Rule::Length(length) => self.first(length),
            Rule::Frames(frame) => self.first(self.rest.len().min(READ.max(frame)) / frame * frame),
            Rule::Lines => self.line(),
        }
    }

    /// The last message, when no more comes: a line whose end is missing is one all the same.
    fn last(&mut self) -> Option<Cut> {
        let is_line = self.rule == Rule::Lines && !self.passing && !self.rest.trim_ascii().is_empty();
        is_line.then(|| message(self.rest.split().trim_ascii_end()))
    }

    fn first(&mut self, length: usize) -> Option<Cut> {
        (length > 0 && self.rest.len() >= length).then(|| {
            let bytes = self.rest.split_to(length);
            // What waits holds its bytes, and should not hold all those beside which they were read.
            if length < READ / 4 { message(&bytes) } else { Cut::Message(bytes.freeze()) }
        })
    }

    fn line(&mut self) -> Option<Cut> {
        loop {
            let found = self.rest[self.searched..].iter().position(|byte| *byte == b'\n');
            let Some(end) = found.map(|end| self.searched + end) else {
                self.searched = self.rest.len();
                if self.rest.len() <= MESSAGE_MAX && !self.passing {
                    return None;
                }
                self.rest.clear();
                self.searched = 0;
                return (!std::mem::replace(&mut self.passing, true)).then_some(Cut::TooLong);
            };
            let line = self.rest.split_to(end);
            self.rest.advance(1);
            self.searched = 0;
            if std::mem::take(&mut self.passing) {
                continue;
            }
            if line.len() > MESSAGE_MAX {
                return Some(Cut::TooLong);
            }
            if !line.trim_ascii().is_empty() {
                return Some(message(line.trim_ascii_end()));
            }
        }
    }
}

fn message(bytes: &[u8]) -> Cut {
    Cut::Message(Bytes::copy_from_slice(bytes))
}

/// Runs the program of a source until the agent stops.
pub async fn run(
    plan: Arc<SourcePlan>,
    reporter: Arc<Reporter>,
    receive: Rc<dyn Fn(Received<'_>)>,
    pulse: Pulse,
    mut stop: watch::Receiver<Stop>,
) {
    let Some(program) = plan.config.program() else { return };
    let source = plan.name();
    let mut backoff = Backoff::default();
    let mut is_told = false;
    loop {
        let started = Instant::now();
        let ended = match start(program) {
            Ok(mut child) => {
                let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
                tracing::info!(source, program = program[0], "the program runs");
                let ended = tokio::select! {
                    ended = pulse.through(read(&mut child, &plan, &*receive)) => Some(ended),
                    _ = stop.wait_for(|stop| *stop != Stop::Run) => None,
                };
                let Some(ended) = ended else { return end(child, group).await };
                // Whatever it has started goes too, or two of them would read one device.
                signal_group(group, Signal::KILL);
                ended
            }
            Err(error) => format!("cannot be started: {error}"),
        };
        let held = started.elapsed();
        let wait = backoff.next(held, random());
        let message = format!(
            "the program of source {source}, {}, {ended}; it is started again in {:.1} s",
            program[0],
            wait.as_secs_f64()
        );
        tracing::warn!(source, "{message}");
        if !std::mem::replace(&mut is_told, true) || held >= STARTED_WELL {
            reporter.event("source-ended", &message, &[("source", source)]);
        }
        tokio::select! {
            () = pulse.through(tokio::time::sleep(wait)) => {}
            _ = stop.wait_for(|stop| *stop != Stop::Run) => return,
        }
    }
}

fn start(program: &[String]) -> std::io::Result<Child> {
    let own = std::process::id().to_string();
    let arguments = [MARKER, &own].into_iter().map(OsString::from).chain(program.iter().map(OsString::from));
    let mut command = Command::new("/proc/self/exe");
    command.arg0("limpet-source").args(arguments).process_group(0).kill_on_drop(true);
    // It is no service, and is given no credentials; SECURITY.md says what it can reach all the same.
    for variable in ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "CREDENTIALS_DIRECTORY"] {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
}

/// Reads what a program writes until it ends or gives nothing any more, and says which.
///
/// What it has started may hold its pipes for ever, and it may close its output and go on: neither is waited for.
async fn read(child: &mut Child, plan: &SourcePlan, receive: &dyn Fn(Received<'_>)) -> String {
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        unreachable!("both were asked for")
    };
    let last = RefCell::new(String::new());
    let mut messages = std::pin::pin!(messages(stdout, plan, receive));
    let mut said = std::pin::pin!(said(stderr, plan.name(), &last));
    let (mut closed, mut silent, mut status) = (None, false, None);
    // Once it has ended, or its output has, the rest has a moment to come.
    let mut patience = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
    while closed.is_none() || !silent || status.is_none() {
        tokio::select! {
            broken = &mut messages, if closed.is_none() => {
                closed = Some(broken);
                patience.as_mut().reset(tokio::time::Instant::now() + GRACE);
            }
            () = &mut said, if !silent => silent = true,
            ended = child.wait(), if status.is_none() => {
                status = Some(ended);
                patience.as_mut().reset(tokio::time::Instant::now() + DRAIN);
            }
            () = &mut patience, if closed.is_some() || status.is_some() => break,
        }
    }
    let how = match (status, closed) {
        (Some(Ok(status)), _) => how(status),
        (Some(Err(error)), _) => format!("has ended: {error}"),
        (None, Some(Some(error))) => format!("cannot be read: {error}"),
        (None, _) => "closed its output and did not end".to_owned(),
    };
    let last = last.take();
    if last.is_empty() { how } else { format!("{how}: {last}") }
}

fn how(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, signal) => format!("was ended by signal {}", signal.unwrap_or_default()),
    }
}

/// Hands its messages on until there are no more. Gives why they cannot be read, if that is why.
async fn messages(
    mut stdout: ChildStdout,
    plan: &SourcePlan,
    receive: &dyn Fn(Received<'_>),
) -> Option<std::io::Error> {
    let mut cutter = Cutter::of(&plan.config);
    let topic = plan.config.program().map_or("", |program| &program[0]);
    // Bytes of samples that are too few to be read by themselves.
    let few = cutter.frame().map_or(0, |frame| (plan.timing.rate_hz * PIECE.as_secs_f64()) as usize * frame);
    loop {
        cutter.rest.reserve(READ);
        let count = match stdout.read_buf(&mut cutter.rest).await {
            Ok(0) => {
                if let Some(Cut::Message(payload)) = cutter.last() {
                    receive(Received { topic, payload, retained: false, reply: None });
                }
                return None;
            }
            Ok(count) => count,
            Err(error) => return Some(error),
        };
        let mut cuts = 0_usize;
        while let Some(cut) = cutter.next() {
            cuts += 1;
            if cuts.is_multiple_of(TURN) {
                tokio::task::yield_now().await;
            }
            match cut {
                Cut::Message(payload) => receive(Received { topic, payload, retained: false, reply: None }),
                Cut::TooLong => plan.ledger.complain(plan.name(), topic, "too_large", 1, || {
                    format!("a line is longer than {MESSAGE_MAX} bytes, which no message may be")
                }),
            }
        }
        if count < few {
            tokio::time::sleep(PIECE).await;
        }
    }
}

/// Puts what it says on standard error into the log, and the last line of it into `last`.
async fn said(stderr: ChildStderr, source: &str, last: &RefCell<String>) {
    let mut lines = BufReader::new(stderr);
    let (mut since, mut count) = (Instant::now(), 0_u32);
    let more = |count: u32| {
        if count > SAID {
            tracing::info!(source, "and {} lines more", count - SAID);
        }
    };
    let mut line = Vec::new();
    loop {
        line.clear();
        // A line that is longer comes in pieces.
        match (&mut lines).take(LINE_MAX).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return more(count),
            Ok(_) => {}
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        if since.elapsed() >= SAID_IN {
            more(count);
            (since, count) = (Instant::now(), 0);
        }
        count += 1;
        if count > SAID && (count as usize).is_multiple_of(TURN) {
            tokio::task::yield_now().await;
        }
        let text = console::plain(String::from_utf8_lossy(&line).trim());
        if count <= SAID {
            tracing::info!(source, "{text}");
        }
        last.replace(text);
    }
}

/// Ends a program: first it is asked to, then made to.
async fn end(mut child: Child, group: Option<Pid>) {
    signal_group(group, Signal::TERM);
    let _ = tokio::time::timeout(GRACE, child.wait()).await;
    // What it has started goes too, whether or not it ended well itself.
    signal_group(group, Signal::KILL);
    let _ = child.wait().await;
}

/// A group whose last process has ended gets no signal.
fn signal_group(group: Option<Pid>, signal: Signal) {
    let _ = group.map(|group| rustix::process::kill_process_group(group, signal));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cutter(rule: Rule) -> Cutter {
        Cutter { rule, rest: BytesMut::new(), searched: 0, passing: false }
    }

    /// What comes out of `bytes` that are read in pieces of these lengths, over and over.
    fn cut(rule: Rule, bytes: &[u8], pieces: &[usize]) -> Vec<Cut> {
        let (mut cutter, mut cuts, mut rest) = (cutter(rule), Vec::new(), bytes);
        for piece in pieces.iter().cycle() {
            let (now, later) = rest.split_at((*piece).clamp(1, rest.len()));
            cutter.rest.extend_from_slice(now);
            cuts.extend(std::iter::from_fn(|| cutter.next()));
            if later.is_empty() {
                break;
            }
            rest = later;
        }
        cuts
    }

    #[test]
    fn lines_are_messages_without_their_ends_and_empty_ones_are_none() {
        let cuts = cut(Rule::Lines, b"[1]\r\n\n  \n[2]\nnot yet", &[3]);
        assert_eq!(cuts, [message(b"[1]"), message(b"[2]")]);
    }

    #[test]
    fn a_line_that_is_too_long_is_passed_over_and_told_once() {
        let long = vec![b'x'; 3 * MESSAGE_MAX];
        let text = [b"a\n", &long[..], b"\nb\n"].concat();
        for piece in [1 << 16, text.len()] {
            assert_eq!(cut(Rule::Lines, &text, &[piece]), [message(b"a"), Cut::TooLong, message(b"b")]);
        }
    }

    proptest! {
        #[test]
        fn the_pieces_that_are_read_make_no_difference_and_no_byte_is_lost(
            bytes in prop::collection::vec(any::<u8>(), 1..400),
            pieces in prop::collection::vec(1_usize..50, 1..8),
            length in 1_usize..20,
        ) {
            let whole = bytes.len() / length * length;
            for rule in [Rule::Length(length), Rule::Frames(length)] {
                let cuts = cut(rule, &bytes, &pieces);
                let mut joined = Vec::new();
                for cut in cuts {
                    let Cut::Message(message) = cut else { panic!("none is too long") };
                    prop_assert_eq!(message.len() % length, 0);
                    prop_assert!(rule != Rule::Length(length) || message.len() == length);
                    joined.extend_from_slice(&message);
                }
                prop_assert_eq!(&joined[..], &bytes[..whole]);
            }
            let lines = |pieces: &[usize]| cut(Rule::Lines, &bytes, pieces);
            prop_assert_eq!(lines(&pieces), lines(&[bytes.len()]));
        }
    }
}
