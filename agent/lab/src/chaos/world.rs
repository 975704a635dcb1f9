//! The agent and everything around it: sensors, brokers, the wire, the disk. Each can be broken and made whole again.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rumqttc::v5::AsyncClient;
use rumqttc::v5::mqttbytes::QoS;
use rustix::process::Signal;
use serde::Serialize;
use tempfile::TempDir;

use super::child::Process;
use super::fault::{Backlog, Fault, Killing, Release};
use super::judge::{END, End, Judge, Tally};
use super::wire::{Mode, Wire};
use super::{RECOVERS_WITHIN, STREAM_RATE};
use crate::demo::agent::quoted;
use crate::mqtt::{self, Address};
use crate::{broker, unavailable};

/// Set for this program when it runs in mounts of its own.
const INSIDE: &str = "LIMPET_CHAOS_INSIDE";
/// Begins the names of the variables that the agent takes for its configuration.
const VARIABLES: &str = "LIMPET_";
/// Names the FIFO for the agent.
const MARKS: &str = "LIMPET_MARKS";
/// Keep-alive of the uplink, in seconds: the least that the agent takes, so that a stall need not be long.
const KEEP_ALIVE: u64 = 5;
/// The disk of the agent's state, where it can be one that fills up.
const DISK: &str = "size=48m,mode=0700";
/// A broker takes so long to listen, or an agent to leave, at most.
const PATIENCE: Duration = Duration::from_secs(30);
/// Size of a page of the database.
const PAGE: u64 = 4096;
/// Samples a second of a sensor, and in a message of it: one message a result.
const SAMPLES: f64 = 100.0;
const HOP: usize = (SAMPLES / STREAM_RATE) as usize;

/// The model: its scores are the mean of the newer half of a window of ten samples, and what that leaves to one.
const MODEL: [(&str, &[u8]); 4] = [
    ("model.toml", include_bytes!("model/model.toml")),
    ("f32.onnx", include_bytes!("model/f32.onnx")),
    ("labels.txt", include_bytes!("model/labels.txt")),
    ("golden.safetensors", include_bytes!("model/golden.safetensors")),
];

/// Whether this program runs in mounts of its own.
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Starts this program once more in mounts of its own, from where this call does not return. Gives why that cannot be, or
/// nothing if it is there already.
///
/// # Errors
/// If the system cannot say where this program is.
pub fn enter_namespace() -> anyhow::Result<Result<(), String>> {
    if is_inside() {
        return Ok(Ok(()));
    }
    let program = std::env::current_exe().context("where this program is")?;
    let mut why = "no folder can be mounted here".to_owned();
    for way in [&["--mount"][..], &["--user", "--map-root-user", "--mount"]] {
        let probe = tempfile::tempdir().context("making a temporary folder")?;
        let mount = ["mount", "-t", "tmpfs", "none"];
        let tried = Command::new("unshare").args(way).args(mount).arg(probe.path()).stdin(Stdio::null()).output();
        match tried {
            Ok(tried) if tried.status.success() => {
                let error = Command::new("unshare")
                    .args(way)
                    .arg(&program)
                    .args(std::env::args_os().skip(1))
                    .env(INSIDE, "1")
                    .exec();
                why = error.to_string();
            }
            Ok(tried) => why = String::from_utf8_lossy(&tried.stderr).trim().to_owned(),
            Err(error) => why = format!("unshare: {error}"),
        }
    }
    Ok(Err(format!("mounts of its own are needed for a disk that fills up, and {why}")))
}

/// How often the agent was killed, by whatever fault.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Kills {
    /// At all.
    pub all: u64,
    /// While a backlog was on the disk that a dead or silent link had left.
    pub with_backlog: u64,
    /// Of those, in the middle of its drain.
    pub in_drain: u64,
    /// In the first 0.3 s of a start.
    pub in_start: u64,
    /// While no byte was left on the disk.
    pub on_full_disk: u64,
}

/// All of it.
pub struct World {
    limpet: PathBuf,
    folder: PathBuf,
    config: PathBuf,
    judge: Arc<Judge>,
    wire: Wire,
    broker_port: u16,
    broker: Process,
    agent: Process,
    starts: u64,
    kills: Kills,
    /// Ends the sensors.
    silence: Arc<AtomicBool>,
    /// Whether somebody wants an end.
    interrupted: Arc<AtomicBool>,
    random: fastrand::Rng,
    has_disk: bool,
    /// Removed when all that is in it has ended.
    temporary: Option<TempDir>,
}

impl Drop for World {
    fn drop(&mut self) {
        if self.has_disk {
            // Either may be gone; then the folder can be removed all the same.
            let _ = self.agent.kill();
            let state = self.folder.join("state");
            if self.temporary.is_none() {
                // What is mounted here goes with this program.
                let _ = ran(Command::new("cp").arg("-r").arg(&state).arg(self.folder.join("state-at-the-end")));
            }
            let _ = ran(Command::new("umount").arg(&state));
        }
    }
}

impl World {
    /// Starts everything. `has_disk`: folders can be mounted.
    ///
    /// # Errors
    /// If something is missing, or does not start.
    pub fn start(
        limpet: PathBuf,
        keep: Option<PathBuf>,
        rate: f64,
        has_disk: bool,
        seed: u64,
        interrupted: Arc<AtomicBool>,
    ) -> anyhow::Result<Self> {
        let (folder, temporary) = match keep {
            Some(folder) => {
                fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
                if fs::read_dir(&folder)?.next().is_some() {
                    bail!("{} is not empty; name one that is, or a new one", folder.display());
                }
                (folder.canonicalize()?, None)
            }
            None => {
                let folder = tempfile::Builder::new().prefix("limpet-chaos-").tempdir().context("a scratch folder")?;
                (folder.path().to_owned(), Some(folder))
            }
        };
        for name in ["state", "run", "model"] {
            fs::create_dir(folder.join(name)).with_context(|| format!("making {name} in {}", folder.display()))?;
        }
        if has_disk {
            let state = folder.join("state");
            ran(Command::new("mount").args(["-t", "tmpfs", "-o", DISK, "none"]).arg(state))
                .context("mounting a small disk")?;
        }
        for (name, bytes) in MODEL {
            fs::write(folder.join("model").join(name), bytes).with_context(|| format!("writing {name}"))?;
        }
        let judge = Arc::new(Judge::default());
        read_marks(&folder.join("marks"), Arc::clone(&judge))?;
        let samples = broker::start_on_free_port()?;
        let broker_port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("a free port")?.local_addr()?.port();
        let broker = start_broker(broker_port)?;
        let wire = Wire::to(broker_port, Arc::clone(&judge)).context("a free port")?;
        let config = folder.join("limpet.toml");
        fs::write(&config, configuration(&folder, &samples, wire.port()))?;
        let silence = Arc::new(AtomicBool::new(false));
        sense(samples, (rate / STREAM_RATE).round() as usize, Arc::clone(&silence))?;
        let agent = start_agent(&limpet, &config, &folder)?;
        Ok(Self {
            limpet,
            folder,
            config,
            judge,
            wire,
            broker_port,
            broker,
            agent,
            starts: 1,
            kills: Kills::default(),
            silence,
            interrupted,
            random: fastrand::Rng::with_seed(seed ^ 0x5eed),
            has_disk,
            temporary,
        })
    }

    /// Where everything is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Who knows what was produced and delivered.
    pub fn judge(&self) -> &Judge {
        &self.judge
    }

    /// How often the agent was started.
    pub fn starts(&self) -> u64 {
        self.starts
    }

    /// How often it was killed.
    pub fn kills(&self) -> Kills {
        self.kills
    }

    /// Waits until a result is delivered that was stored from now on, and gives how long that took.
    ///
    /// # Errors
    /// If none comes, or the agent has ended.
    pub fn wait_for_news(&mut self, most: Duration) -> anyhow::Result<Duration> {
        let began = Instant::now();
        self.judge.expect_news();
        while began.elapsed() < most {
            if self.judge.has_news_within(Duration::from_millis(250)) {
                return Ok(began.elapsed());
            }
            self.is_alive()?;
            self.goes_on()?;
        }
        bail!("no new result was delivered within {} s; {}", most.as_secs(), self.last_words())
    }

    fn is_alive(&mut self) -> anyhow::Result<()> {
        match self.agent.exit()? {
            None => Ok(()),
            Some(status) => bail!("the agent ended by itself ({status}); {}", self.last_words()),
        }
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.folder.join("limpet.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        format!("it said:\n{}", lines[lines.len().saturating_sub(12)..].join("\n"))
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.random.u64(range))
    }

    fn kill_agent(&mut self) -> anyhow::Result<()> {
        // One that had ended by itself would look like one that was killed.
        self.is_alive()?;
        self.agent.kill()?;
        self.kills.all += 1;
        self.mark(End::Killed.line())
    }

    fn start_agent(&mut self) -> anyhow::Result<()> {
        self.agent = start_agent(&self.limpet, &self.config, &self.folder)?;
        self.starts += 1;
        Ok(())
    }

    /// Asks the agent to stop, and waits until it has.
    fn stop_agent(&mut self) -> anyhow::Result<()> {
        self.is_alive()?;
        self.agent.signal(Signal::TERM)?;
        let until = Instant::now() + PATIENCE;
        while self.agent.exit()?.is_none() {
            if Instant::now() > until {
                bail!("the agent did not leave within {} s after SIGTERM", PATIENCE.as_secs());
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.mark(End::Stopped.line())
    }

    /// Leaves a line behind all marks that were left so far.
    fn mark(&self, line: &str) -> anyhow::Result<()> {
        let path = self.folder.join("marks");
        let mut fifo = OpenOptions::new().write(true).open(&path).with_context(|| path.display().to_string())?;
        // One write, as each of the agent's.
        fifo.write_all(format!("{line}\n").as_bytes()).with_context(|| format!("leaving the mark '{line}'"))
    }

    /// Waits until the judge has read all marks that were left so far.
    fn read_all_marks(&self) -> anyhow::Result<()> {
        self.mark(END)?;
        let until = Instant::now() + PATIENCE;
        while !self.judge.has_read_all() {
            if Instant::now() > until {
                bail!("the marks could not be read to their end");
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Breaks something, and makes it whole again.
    ///
    /// # Errors
    /// If that cannot be done.
    pub fn strike(&mut self, fault: Fault) -> anyhow::Result<()> {
        match fault {
            Fault::Kill => {
                let killing = Killing::draw(&mut self.random);
                self.kill(killing)?;
            }
            Fault::BrokerRestart => {
                self.broker.kill()?;
                thread::sleep(self.millis(0..1500));
                self.broker = start_broker(self.broker_port)?;
            }
            Fault::BrokerStall => {
                self.broker.signal(Signal::STOP)?;
                thread::sleep(Duration::from_secs(KEEP_ALIVE).mul_f64(2.5));
                self.broker.signal(Signal::CONT)?;
            }
            Fault::Cut => {
                for _ in 0..self.random.u64(1..4) {
                    self.wire.cut();
                    thread::sleep(self.millis(0..300));
                }
            }
            Fault::HalfOpen => self.during(Mode::Frozen, 1000..4000),
            Fault::SlowLink => {
                let delay = Duration::from_millis(250);
                self.during(Mode::Slow { delay, bytes_per_s: 20e3 }, 4000..8000);
                // What is on its way by then comes late, and is lost with the connection if that is cut.
                self.wire.cut();
            }
            Fault::Refusal => self.during(Mode::Refusing, 500..3000),
            Fault::Unacknowledged => {
                self.wire.set(Mode::Withholding);
                thread::sleep(self.millis(100..2500));
                match Release::draw(&mut self.random) {
                    Release::Kill => {
                        self.kill_agent()?;
                        self.wire.set(Mode::Through);
                        self.start_agent()?;
                    }
                    Release::Cut => {
                        self.wire.cut();
                        self.wire.set(Mode::Through);
                    }
                    Release::Late => self.wire.set(Mode::Through),
                }
            }
            Fault::DiskFull => {
                self.wire.set(Mode::Down);
                let filled = self.fill_disk();
                thread::sleep(self.millis(1500..3000));
                let killed = if filled.is_ok() && self.random.bool() { self.kill_on_full_disk() } else { Ok(()) };
                thread::sleep(self.millis(1500..3000));
                let ballast = self.folder.join("state/ballast");
                fs::remove_file(&ballast).with_context(|| ballast.display().to_string())?;
                self.wire.set(Mode::Through);
                filled?;
                killed?;
            }
            Fault::DamagedPage => {
                self.wire.set(Mode::Down);
                thread::sleep(self.millis(2000..4000));
                // In order, so that the backlog is in the database itself and not in its log.
                self.stop_agent()?;
                self.damage_page()?;
                self.wire.set(Mode::Through);
                self.start_agent()?;
            }
            Fault::ClockStep => {
                step_clock(3600)?;
                thread::sleep(self.millis(1000..3000));
                step_clock(-3600)?;
            }
        }
        Ok(())
    }

    fn kill(&mut self, Killing { backlog, again }: Killing) -> anyhow::Result<()> {
        if let Some(Backlog { mode, lasts, drain }) = backlog {
            self.wire.set(mode);
            thread::sleep(lasts);
            if let Some((narrow, after)) = drain {
                let before = self.judge.arrivals();
                self.wire.set(narrow);
                self.wait_for_arrivals(before)?;
                thread::sleep(after);
                self.kills.in_drain += 1;
            }
            self.kills.with_backlog += 1;
        }
        self.kill_agent()?;
        self.wire.set(Mode::Through);
        self.start_agent()?;
        if let Some(after) = again {
            thread::sleep(after);
            self.kill_agent()?;
            self.kills.in_start += 1;
            self.start_agent()?;
        }
        Ok(())
    }

    fn kill_on_full_disk(&mut self) -> anyhow::Result<()> {
        self.kill_agent()?;
        self.kills.on_full_disk += 1;
        self.start_agent()
    }

    /// Waits until the broker has got another message of results.
    fn wait_for_arrivals(&mut self, before: u64) -> anyhow::Result<()> {
        let until = Instant::now() + RECOVERS_WITHIN;
        while self.judge.arrivals() == before {
            if Instant::now() > until {
                bail!(
                    "nothing of a backlog was delivered within {} s; {}",
                    RECOVERS_WITHIN.as_secs(),
                    self.last_words()
                );
            }
            self.is_alive()?;
            self.goes_on()?;
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn during(&mut self, mode: Mode, millis: std::ops::Range<u64>) {
        self.wire.set(mode);
        thread::sleep(self.millis(millis));
        self.wire.set(Mode::Through);
    }

    fn fill_disk(&self) -> anyhow::Result<()> {
        if !self.has_disk {
            bail!("there is no disk that could be filled");
        }
        let path = self.folder.join("state/ballast");
        let mut file = File::create(&path).with_context(|| path.display().to_string())?;
        for size in [1 << 20, 1 << 12, 1] {
            let block = vec![0; size];
            loop {
                match file.write_all(&block) {
                    Ok(()) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                    Err(error) => return Err(error).with_context(|| path.display().to_string()),
                }
            }
        }
        Ok(())
    }

    /// Overwrites a page of the outbox's database, any of them but the first.
    fn damage_page(&mut self) -> anyhow::Result<()> {
        let path = self.folder.join("state/outbox.db");
        let mut file =
            OpenOptions::new().read(true).write(true).open(&path).with_context(|| path.display().to_string())?;
        let pages = file.metadata()?.len() / PAGE;
        if pages < 2 {
            bail!("{} holds nothing that could be damaged", path.display());
        }
        let page = self.random.u64(1..pages);
        let mut noise = vec![0; PAGE as usize];
        self.random.fill(&mut noise);
        file.seek(SeekFrom::Start(page * PAGE))?;
        file.write_all(&noise).with_context(|| path.display().to_string())
    }

    /// Ends the sensors, and waits until all that is stored is accounted for.
    ///
    /// # Errors
    /// If for that long nothing more of it is delivered.
    pub fn drain(&mut self, most: Duration) -> anyhow::Result<()> {
        self.silence.store(true, Ordering::SeqCst);
        let (mut left, mut moved) = (u64::MAX, Instant::now());
        loop {
            let now = self.judge.outstanding();
            if now == 0 {
                return Ok(());
            }
            if now != left {
                (left, moved) = (now, Instant::now());
            }
            if moved.elapsed() > most {
                bail!(
                    "{left} results are stored, and nothing of them was delivered for {} s; {}",
                    most.as_secs(),
                    self.last_words()
                );
            }
            self.is_alive()?;
            self.goes_on()?;
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn goes_on(&self) -> anyhow::Result<()> {
        if self.interrupted.load(Ordering::SeqCst) {
            bail!("it was interrupted");
        }
        Ok(())
    }

    /// Ends everything. Gives what came of it, and what was wrong with the end.
    ///
    /// # Errors
    /// If the system refuses to say how a process ended.
    pub fn end(mut self) -> anyhow::Result<(Tally, Option<String>)> {
        self.silence.store(true, Ordering::SeqCst);
        let mut wrong = None;
        match self.agent.exit()? {
            Some(status) => wrong = Some(format!("the agent had ended by itself ({status}); {}", self.last_words())),
            None => {
                if let Err(error) = self.stop_agent() {
                    wrong = Some(format!("{error:#}"));
                } else if let Some(status) = self.agent.exit()?.filter(|status| !status.success()) {
                    wrong = Some(format!("the agent ended with {status}; {}", self.last_words()));
                }
            }
        }
        self.read_all_marks()?;
        Ok((self.judge.tally(), wrong))
    }
}

fn ran(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Makes the FIFO and reads it for as long as this program runs.
fn read_marks(path: &Path, judge: Arc<Judge>) -> anyhow::Result<()> {
    ran(Command::new("mkfifo").arg(path))?;
    // For writing too, or it would end with each agent.
    let fifo = OpenOptions::new().read(true).write(true).open(path).with_context(|| path.display().to_string())?;
    thread::spawn(move || {
        for line in BufReader::new(fifo).lines().map_while(Result::ok) {
            judge.marked(&line);
        }
    });
    Ok(())
}

fn start_broker(port: u16) -> anyhow::Result<Process> {
    let program = std::env::current_exe().context("where this program is")?;
    let mut command = Command::new(program);
    command.args(["broker", "--port", &port.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
    let broker = Process::start(&mut command).context("starting a broker")?;
    let until = Instant::now() + PATIENCE;
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        if Instant::now() > until {
            return Err(unavailable(format!("the broker does not listen on port {port}")));
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(broker)
}

fn start_agent(limpet: &Path, config: &Path, folder: &Path) -> anyhow::Result<Process> {
    let log = folder.join("limpet.log");
    let log = OpenOptions::new().create(true).append(true).open(&log).with_context(|| log.display().to_string())?;
    let mut command = Command::new(limpet);
    // What the user has set for an agent of their own, as LIMPET_GATEWAY__STATE, would come before the configuration.
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(VARIABLES.as_bytes()) {
            command.env_remove(name);
        }
    }
    command
        .args(["run", "--config"])
        .arg(config)
        .env(MARKS, folder.join("marks"))
        .stdout(log.try_clone().context("a second handle on the log")?)
        .stderr(log);
    Process::start(&mut command).map_err(|error| unavailable(format!("{} does not start: {error}", limpet.display())))
}

fn configuration(folder: &Path, samples: &Address, uplink: u16) -> String {
    let path = |name| quoted(&folder.join(name));
    format!(
        r#"# Written by limpet-lab chaos.
format = 1

[gateway]
id = "chaos"
state = {state}
run = {run}

[broker.samples]
url = "{samples}"

[broker.cloud]
url = "{uplink}"
keep_alive = "{KEEP_ALIVE}s"

[uplink]
broker = "cloud"

[[source]]
name = "level"
broker = "samples"
topic = "chaos/{{stream}}/level"
codec = {{ raw = {{ type = "f32" }} }}
rate_hz = {SAMPLES}
max_gap = "1s"

[[pipeline]]
name = "level"
source = "level"
model = {model}
deadline = "500ms"
publish = "every"
"#,
        state = path("state"),
        run = path("run"),
        model = path("model"),
        uplink = Address::local(uplink),
    )
}

/// Publishes samples of so many streams until `silence` is set.
fn sense(broker: Address, streams: usize, silence: Arc<AtomicBool>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio does not start")?;
    thread::spawn(move || {
        runtime.block_on(async {
            let (client, connection) = AsyncClient::new(broker.options("limpet-lab-chaos"), 256);
            let mut told = mqtt::events(connection, 256, Duration::from_millis(100));
            tokio::spawn(async move { while told.recv().await.is_some() {} });
            let mut tick = tokio::time::interval(Duration::from_secs_f64(1.0 / STREAM_RATE));
            let mut step = 0_u32;
            while !silence.load(Ordering::SeqCst) {
                tick.tick().await;
                for stream in 0..streams {
                    let level = f32::from(u8::try_from((step + stream as u32) % 100).unwrap_or(0)) / 100.0;
                    let payload = level.to_le_bytes().repeat(HOP);
                    let sent = client.publish(format!("chaos/s{stream}/level"), QoS::AtMostOnce, false, payload).await;
                    if sent.is_err() {
                        return;
                    }
                }
                step += 1;
            }
        });
    });
    Ok(())
}

/// Moves the system's clock.
fn step_clock(seconds: i64) -> anyhow::Result<()> {
    use rustix::time::{ClockId, clock_gettime, clock_settime};
    let mut now = clock_gettime(ClockId::Realtime);
    now.tv_sec += seconds;
    clock_settime(ClockId::Realtime, now).context("setting the clock")
}
