//! The real agent as a child process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::LIMIT;
use crate::client::{Client, Message};
use crate::clock::Clock;
use crate::lines::Lines;
use crate::local;
use crate::package::Package;
use crate::program::{binary, command, end_of, run, text_of};

/// Name of the gateway in all tests.
pub const GATEWAY: &str = "gw";
/// Bytes of the memory budget that the ring of its outbox takes where nothing else is configured.
pub const RING: u64 = 8 << 20;

/// Nobody listens there: a proof needs no broker.
const NOBODY: &str = "[broker.nobody]\nurl = \"mqtt://127.0.0.1:1\"\n";

/// A folder with a configuration, and state and run folders of its own.
pub struct Home {
    folder: TempDir,
}

impl Home {
    /// A home in which nothing was ever proved.
    pub fn empty() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder can be made") }
    }

    /// A home in which the packages that the tests make by hand were proved before.
    pub fn proved() -> Self {
        let home = Self::empty();
        copy(proofs(), &home.folder.path().join("state"));
        home
    }

    /// [`Home::proved`] where more packages were proved besides, each for use by pipelines with these lines. What is
    /// proved under one `key` is proved once for all tests.
    pub fn proved_with(key: &'static str, packages: &[(&Package, &str)]) -> Self {
        static FOLDERS: Mutex<BTreeMap<&str, Arc<OnceLock<PathBuf>>>> = Mutex::new(BTreeMap::new());
        let folder = Arc::clone(FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default());
        let folder = folder.get_or_init(|| {
            let home = Self::proved();
            let mut config = NOBODY.to_owned();
            for (number, (package, pipeline)) in packages.iter().enumerate() {
                config += &source_and_pipeline(&format!("proved{number}"), package, "json = {}");
                config += pipeline;
            }
            let path = home.write(&config);
            let checked = run("limpet", &["check", "--prove", "--config", text_of(&path)]);
            // One that would be refused is proved all the same.
            assert!(matches!(checked.code, Some(0 | 78)), "{}\n{}", checked.stdout, checked.stderr);
            let folder = proofs().with_file_name(format!("limpet-tests-proofs-{key}"));
            // It is not there at first.
            let _ = std::fs::remove_dir_all(&folder);
            copy(&home.path().join("state"), &folder);
            folder
        });
        let home = Self::empty();
        copy(folder, &home.folder.path().join("state"));
        home
    }

    /// Its state folder.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// What the local depot says of a model, if it says anything.
    ///
    /// # Panics
    /// If that is no JSON: it is written by one rename, so it is whole at any moment.
    #[track_caller]
    pub fn record(&self, model: &str) -> Option<Value> {
        let path = self.state().join(format!("depot/models/{model}.json"));
        let text = std::fs::read_to_string(path).ok()?;
        Some(serde_json::from_str(&text).unwrap_or_else(|error| panic!("the record of {model}: {error}: {text}")))
    }

    /// Files of the chunks in the local depot.
    pub fn chunks(&self) -> Vec<PathBuf> {
        let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().map_while(Result::ok);
        let folders = entries(&self.state().join("depot/chunks"));
        let files = folders.flat_map(|folder| entries(&folder.path()).map(|file| file.path()).collect::<Vec<_>>());
        // What is being written has another name yet.
        files.filter(|path| path.file_name().is_some_and(|name| name.len() == 64)).collect()
    }

    /// Writes a configuration of [`GATEWAY`]; `config` is everything but `format` and `[gateway]`.
    pub fn write(&self, config: &str) -> PathBuf {
        self.write_as(GATEWAY, config)
    }

    /// [`Home::write`] for a gateway of another name.
    pub fn write_as(&self, gateway: &str, config: &str) -> PathBuf {
        let base = text_of(self.folder.path());
        let text = format!(
            "format = 1\n[gateway]\nid = \"{gateway}\"\nstate = \"{base}/state\"\nrun = \"{base}/run\"\n{config}"
        );
        let path = self.folder.path().join("limpet.toml");
        std::fs::write(&path, text).expect("a temporary file can be written");
        path
    }

    /// Where the agent's local socket is.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("run/limpet.sock")
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// A state folder with proofs of [`Package::scores`] and [`Package::loudness`], made once for all tests.
fn proofs() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = binary("limpet").with_file_name("limpet-tests-proofs");
        // It is not there at first.
        let _ = std::fs::remove_dir_all(&folder);
        let (scores, loudness) = (Package::scores(), Package::loudness());
        let config = format!(
            "{NOBODY}{}{}",
            source_and_pipeline("scores", &scores, "json = {}"),
            source_and_pipeline("loudness", &loudness, "json = {}")
        );
        let agent = Agent::start_in(Home::empty(), &config);
        agent.wait_for_log(&["proved", "scores"]);
        agent.wait_for_log(&["proved", "loudness"]);
        copy(&agent.home.path().join("state"), &folder);
        folder
    })
}

fn source_and_pipeline(name: &str, package: &Package, codec: &str) -> String {
    format!(
        "[[source]]\nname = \"{name}\"\ntopic = \"{name}\"\ncodec = {{ {codec} }}\n\
         [[pipeline]]\nname = \"{name}\"\nsource = \"{name}\"\nmodel = \"{}\"\n",
        package.display()
    )
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a temporary folder can be made");
    for entry in std::fs::read_dir(from).expect("the folder is there").map_while(Result::ok) {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), &to).expect("a temporary file can be copied");
        }
    }
}

/// A running agent; it ends with this value.
pub struct Agent {
    home: Home,
    child: Child,
    lines: Lines,
}

impl Agent {
    /// Starts `limpet run`; `config` is everything but `format` and `[gateway]`.
    pub fn start(config: &str) -> Self {
        Self::start_in(Home::proved(), config)
    }

    /// Starts `limpet run` where an agent may have run before.
    pub fn start_in(home: Home, config: &str) -> Self {
        Self::start_as(GATEWAY, home, config)
    }

    /// Starts `limpet run` for a gateway of another name.
    pub fn start_as(gateway: &str, home: Home, config: &str) -> Self {
        Self::start_with(gateway, home, config, &[])
    }

    /// Starts `limpet run` where an agent may have run before, with a wall clock of its own.
    pub fn start_at(clock: Clock, home: Home, config: &str) -> Self {
        Self::start_with(GATEWAY, home, config, &clock.environment())
    }

    /// Starts `limpet run` for a gateway with more environment.
    pub fn start_with(gateway: &str, home: Home, config: &str, environment: &[(&str, String)]) -> Self {
        let path = home.write_as(gateway, config);
        let mut child = command("limpet")
            .args(["run", "--config", text_of(&path)])
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::null())
            .spawn()
            .expect("a built binary starts");
        let lines = Lines::read(child.stderr.take().expect("it is piped"));
        Self { home, child, lines }
    }

    /// Its log so far.
    pub fn log(&self) -> Vec<String> {
        self.lines.all()
    }

    /// Lines of its log that hold all of `words`.
    pub fn log_with(&self, words: &[&str]) -> Vec<String> {
        self.log().into_iter().filter(|line| words.iter().all(|word| line.contains(word))).collect()
    }

    /// Waits for a line of the log that holds all of `words`.
    ///
    /// # Panics
    /// If none comes.
    #[track_caller]
    pub fn wait_for_log(&self, words: &[&str]) -> String {
        match self.lines.wait_for(0, |line| words.iter().all(|word| line.contains(word))) {
            Ok((_, line)) => line,
            Err(why) => panic!("no line with {words:?}: {why}"),
        }
    }

    /// Waits until a model is in a state, by the retained `models` message; gives the model's entry.
    ///
    /// # Panics
    /// If it does not get there. `client` must have subscribed to the topic.
    #[track_caller]
    pub fn wait_for_model(&self, client: &mut Client, model: &str, state: &str) -> Value {
        let entry = |json: &Value| {
            json["models"].as_array()?.iter().find(|m| m["name"] == model && m["state"] == state).cloned()
        };
        let wanted = |message: &Message| message.topic.ends_with("/models") && entry(&message.json()).is_some();
        let until = Instant::now() + LIMIT;
        while Instant::now() < until && !self.lines.ended() {
            if let Some(message) = client.try_wait_for(Duration::from_millis(200), wanted) {
                return entry(&message.json()).expect("it was waited for");
            }
        }
        panic!("{model} did not become {state}");
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().expect("a child can be asked").is_none()
    }

    /// The most memory that it ever held, in bytes.
    ///
    /// # Panics
    /// If the kernel does not tell.
    #[track_caller]
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the agent runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.expect("the kernel counts in kB") * 1024
    }

    /// Its folder.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// Asks it with SIGHUP to look for packages that changed.
    pub fn reload(&self) {
        self.signal(Signal::HUP);
    }

    /// What it says of itself over its local socket.
    ///
    /// # Panics
    /// If it does not answer.
    #[track_caller]
    pub fn status(&self) -> Value {
        local::request(&self.home.socket(), "GET", "/v1/status", None).expect(200)
    }

    /// Asks for its status until something is there, and gives that: for what nobody announces.
    ///
    /// # Panics
    /// With the last status, if it does not come.
    #[track_caller]
    pub fn wait_for_status<T>(&self, what: &str, wanted: impl Fn(&Value) -> Option<T>) -> T {
        let until = Instant::now() + LIMIT;
        loop {
            let status = self.status();
            if let Some(found) = wanted(&status) {
                return found;
            }
            assert!(Instant::now() < until, "{what} did not come: {status:#}");
        }
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn wait_for_end(mut self) -> (ExitStatus, Home, Vec<String>) {
        let Some(status) = end_of(&mut self.child, LIMIT) else {
            panic!("the agent did not end; it said:\n{}", self.log().join("\n"))
        };
        (status, std::mem::replace(&mut self.home, Home::empty()), self.lines.to_end())
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a child has a process id");
        kill_process(pid, signal).expect("the agent runs");
    }

    /// Kills the processes that it has started and that run now, as a system does that is short of memory. Gives how many.
    pub fn kill_children(&self) -> usize {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("the agent runs");
        let mut killed = 0;
        for task in tasks.flatten() {
            // A thread may have ended meanwhile.
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for child in children.split_whitespace().filter_map(|child| Pid::from_raw(child.parse().ok()?)) {
                killed += usize::from(kill_process(child, Signal::KILL).is_ok());
            }
        }
        killed
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to stop with SIGTERM and waits for its end.
    ///
    /// # Panics
    /// If it does not end.
    #[track_caller]
    pub fn stop(self) -> (ExitStatus, Home, Vec<String>) {
        self.signal(Signal::TERM);
        self.wait_for_end()
    }

    /// Ends it as if it had crashed.
    pub fn kill(self) -> Home {
        self.kill_and_read().0
    }

    /// [`Agent::kill`], with everything that it had said.
    pub fn kill_and_read(mut self) -> (Home, Vec<String>) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a killed child ends");
        (std::mem::replace(&mut self.home, Home::empty()), self.lines.to_end())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            // Nothing can be done about a child that is gone.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("the agent said:\n{}", self.log().join("\n"));
        }
    }
}
