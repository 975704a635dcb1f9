//! The built binaries, and runs of them that end by themselves.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::LIMIT;
use crate::lines::Lines;

/// A built binary of the workspace.
///
/// # Panics
/// If it is not built.
pub fn binary(name: &str) -> PathBuf {
    let folder = std::env::var_os("LIMPET_BIN_DIR").map(PathBuf::from).unwrap_or_else(|| {
        let test = std::env::current_exe().expect("a running test has a path");
        // target/debug/deps/<test>
        test.ancestors().nth(2).expect("a test lies in target/<profile>/deps").to_owned()
    });
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} is not built: run scripts/test, or `cargo build --workspace --bins` before `cargo test`",
        path.display()
    );
    path
}

/// A binary of the workspace, ready to start: without input, its output piped, and without the variables of the tests,
/// which it would take for its configuration.
pub fn command(name: &str) -> Command {
    let mut command = Command::new(binary(name));
    for (variable, _) in std::env::vars_os() {
        if variable.to_str().is_some_and(|variable| variable.starts_with("LIMPET_")) {
            command.env_remove(variable);
        }
    }
    // Whoever runs the tests may be a service; what they start is none.
    for variable in ["INVOCATION_ID", "JOURNAL_STREAM", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"] {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What a program did.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Outcome {
    /// The exit code.
    ///
    /// # Panics
    /// With everything that the program said, if it is another.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// That the program complained in one sentence which holds all of `words`, and about nothing else.
    ///
    /// # Panics
    /// With everything that the program said, if it did not.
    #[track_caller]
    pub fn expect_complaint(self, words: &[&str]) -> Self {
        let lines: Vec<_> = self.stderr.lines().filter(|line| !line.trim().is_empty()).collect();
        let complaints: Vec<_> = lines.iter().filter(|line| words.iter().all(|word| line.contains(word))).collect();
        assert!(complaints.len() == 1, "no single line with {words:?} in:\n{}", self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }
}

/// Runs a binary of the workspace until it ends.
///
/// # Panics
/// If it does not end within [`LIMIT`].
pub fn run(name: &str, arguments: &[impl AsRef<OsStr>]) -> Outcome {
    run_with(name, arguments, &[], &[])
}

/// Runs a binary of the workspace with more environment and something on standard input.
///
/// # Panics
/// If it does not end within four times [`LIMIT`].
pub fn run_with(name: &str, arguments: &[impl AsRef<OsStr>], environment: &[(&str, &str)], input: &[u8]) -> Outcome {
    let mut running = Running::start(name, arguments, environment);
    // A program that reads nothing may have ended already.
    let _ = running.child.stdin.take().expect("it is piped").write_all(input);
    running.end()
}

/// A binary of the workspace that runs; it ends with this value.
pub struct Running {
    name: String,
    child: Child,
    stdout: Lines,
    stderr: Lines,
}

impl Running {
    /// Starts it.
    pub fn start(name: &str, arguments: &[impl AsRef<OsStr>], environment: &[(&str, &str)]) -> Self {
        let mut child = command(name)
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .spawn()
            .expect("a built binary starts");
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let stdout = Lines::read(stdout.expect("it is piped"));
        let stderr = Lines::read(stderr.expect("it is piped"));
        Self { name: name.to_owned(), child, stdout, stderr }
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_none())
    }

    /// Waits for its end, at most so long. Says whether it has ended.
    pub fn ends_within(&mut self, limit: Duration) -> bool {
        end_of(&mut self.child, limit).is_some()
    }

    /// Sends it a signal; one that has ended gets none.
    pub fn signal(&mut self, signal: Signal) {
        if self.runs() {
            let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a child has a process id");
            kill_process(pid, signal).expect("it was not waited for");
        }
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it does not end within four times [`LIMIT`].
    pub fn end(mut self) -> Outcome {
        drop(self.child.stdin.take());
        let status = end_of(&mut self.child, LIMIT * 4).unwrap_or_else(|| {
            panic!(
                "{} did not end; it said:\n{}\n{}",
                self.name,
                self.stdout.all().join("\n"),
                self.stderr.all().join("\n")
            )
        });
        Outcome { code: status.code(), stdout: text(&self.stdout), stderr: text(&self.stderr) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.runs() {
            // Nothing can be done about a child that is gone.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn text(lines: &Lines) -> String {
    lines.to_end().iter().map(|line| format!("{line}\n")).collect()
}

/// Waits for the end of a child, up to a limit.
pub fn end_of(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let until = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < until => thread::sleep(Duration::from_millis(5)),
            _ => return None,
        }
    }
}

/// The path as text, for arguments and configurations.
pub fn text_of(path: &Path) -> &str {
    path.to_str().expect("test folders have plain names")
}
