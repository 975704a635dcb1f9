//! The real agent as a child process, with a configuration made for the demo.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

use crate::mqtt::Address;
use crate::unavailable;

/// Name of the gateway in the demo.
pub const GATEWAY: &str = "demo";
/// Name of the pipeline.
pub const PIPELINE: &str = "motor";
/// How long the agent may take to drain and leave after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// What the agent is told about the sensor.
pub struct Sensor<'a> {
    /// Topic filter with `{stream}`.
    pub topic: &'a str,
    /// Samples a second.
    pub rate_hz: f64,
    /// Steps of the payload's integers in one g.
    pub steps_per_g: f64,
}

/// A running agent. It is stopped when this is dropped.
pub struct Agent {
    child: Child,
    log: PathBuf,
    stopped: bool,
}

/// Finds the agent: where `--limpet` says, or beside this program.
pub fn find(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let path = match given {
        Some(path) => path.to_owned(),
        None => std::env::current_exe().context("where this program is")?.with_file_name("limpet"),
    };
    if path.is_file() {
        return Ok(path);
    }
    Err(unavailable(format!(
        "{}: no such file; build it with 'cargo build --workspace --bins', or name it with --limpet",
        path.display()
    )))
}

/// Writes the configuration into `dir` and gives its path.
pub fn configure(dir: &Path, broker: &Address, package: &Path, sensor: &Sensor<'_>) -> anyhow::Result<PathBuf> {
    let text = configuration(dir, broker, package, sensor);
    let path = dir.join("limpet.toml");
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    for sub in ["state", "run"] {
        fs::create_dir_all(dir.join(sub)).with_context(|| format!("making {}", dir.join(sub).display()))?;
    }
    Ok(path)
}

fn configuration(dir: &Path, broker: &Address, package: &Path, sensor: &Sensor<'_>) -> String {
    let Sensor { topic, rate_hz, steps_per_g } = sensor;
    let state = quoted(&dir.join("state"));
    let run = quoted(&dir.join("run"));
    let package = quoted(package);
    format!(
        r#"# Written by limpet-lab demo.
format = 1

[gateway]
id = "{GATEWAY}"
state = {state}
run = {run}

[broker.local]
url = "{broker}"

[[source]]
name = "vibration"
broker = "local"
topic = "{topic}"
codec = {{ raw = {{ type = "i16", channels = 3, header = [{{ sequence = "u32le" }}, {{ tag = "u64le" }}] }} }}
scale = ["1/{steps_per_g}", "1/{steps_per_g}", "1/{steps_per_g}"]
rate_hz = {rate_hz}
# A busy desktop may hold the sensor up; the sequence in its messages tells a pause from a loss.
max_gap = "1s"

[[pipeline]]
name = "{PIPELINE}"
source = "vibration"
model = {package}
deadline = "500ms"
queue = {{ depth = 4, policy = "drop_oldest" }}
publish = "every"
"#
    )
}

/// A path as a TOML string. JSON's escapes are a subset of TOML's.
pub fn quoted(path: &Path) -> String {
    serde_json::to_string(&path.to_string_lossy()).expect("a string is always valid JSON")
}

impl Agent {
    /// Starts `limpet run`; its log goes into `dir`.
    pub fn start(limpet: &Path, config: &Path, dir: &Path) -> anyhow::Result<Self> {
        let log = dir.join("limpet.log");
        let file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let output = file.try_clone().context("a second handle on the log")?;
        let child = Command::new(limpet)
            .arg("run")
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(file)
            .spawn()
            .map_err(|e| unavailable(format!("{} does not start: {e}", limpet.display())))?;
        Ok(Self { child, log, stopped: false })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.child.try_wait().context("asking for the agent's exit status")
    }

    /// The last lines that it logged.
    pub fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// Asks it to stop and waits until it has.
    ///
    /// # Errors
    /// If it does not leave in time; then it is killed.
    pub fn stop(mut self) -> anyhow::Result<ExitStatus> {
        self.terminate()
    }

    fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        self.stopped = true;
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("the agent's process id")?;
        // It is our own child and not waited for yet, so the id is still its own.
        kill_process(pid, Signal::TERM).context("sending SIGTERM to the agent")?;
        let until = Instant::now() + STOP_LIMIT;
        while Instant::now() < until {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.child.kill().context("killing the agent")?;
        self.child.wait().context("waiting for the killed agent")?;
        anyhow::bail!("limpet did not leave within {STOP_LIMIT:?} after SIGTERM and was killed")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // On the way out after an error, which is what will be reported.
        if !self.stopped {
            let _ = self.terminate();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_quotes_stays_one_string() {
        assert_eq!(quoted(Path::new(r#"/tmp/a "b" \c"#)), r#""/tmp/a \"b\" \\c""#);
    }

    #[test]
    fn dropping_an_agent_ends_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("limpet");
        fs::write(&script, "#!/bin/sh\nexec sleep 600\n").unwrap();
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let agent = Agent::start(&script, Path::new("unused"), dir.path()).unwrap();
        let pid = Pid::from_raw(agent.pid() as i32).unwrap();
        assert!(rustix::process::test_kill_process(pid).is_ok());
        drop(agent);
        assert!(rustix::process::test_kill_process(pid).is_err());
    }
}
