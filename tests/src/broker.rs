//! A real mosquitto, or a real rumqttd, on a free port of the loopback interface.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::LIMIT;
use crate::lines::Lines;
use crate::program::{command, end_of, text_of};

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the loopback interface has free ports");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// Where mosquitto is; Debian puts it where only root looks.
fn mosquitto() -> &'static str {
    let known = "/usr/sbin/mosquitto";
    if Path::new(known).exists() { known } else { "mosquitto" }
}

/// A password file of mosquitto.
///
/// # Panics
/// If `mosquitto_passwd`, which comes with mosquitto, is not there.
pub fn passwords(users: &[(&str, &str)]) -> String {
    let file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    let lines: String = users.iter().map(|(user, password)| format!("{user}:{password}\n")).collect();
    std::fs::write(file.path(), lines).expect("a temporary file can be written");
    let made = Command::new("mosquitto_passwd").arg("-U").arg(file.path()).status();
    assert!(made.is_ok_and(|status| status.success()), "mosquitto_passwd comes with mosquitto: scripts/setup --tests");
    std::fs::read_to_string(file.path()).expect("it was written")
}

/// What serves as a broker.
#[derive(Clone, Copy)]
enum Kind {
    Mosquitto,
    /// The one in `limpet-lab`, in a process of its own.
    Rumqttd,
}

/// One broker; it ends with this value.
pub struct Broker {
    folder: TempDir,
    port: u16,
    config: PathBuf,
    kind: Kind,
    running: Option<(Child, Lines)>,
}

impl Broker {
    /// A rumqttd that lets everybody in. It does not say who subscribes to what.
    ///
    /// # Panics
    /// If it does not start.
    pub fn rumqttd() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        Self::on_some_port(folder, Kind::Rumqttd, |_| String::new())
    }

    /// A broker that lets everybody in and throws nothing away.
    pub fn start() -> Self {
        Self::start_with("allow_anonymous true\nmax_queued_messages 0\n", &[])
    }

    /// A broker with the given lines in its configuration and the given files beside it.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start_with(lines: &str, files: &[(&str, &str)]) -> Self {
        let fixed = "listener {port} 127.0.0.1\nset_tcp_nodelay true\npersistence false\n";
        Self::start_from(&format!("{fixed}{lines}"), files)
    }

    /// A broker with the given configuration and the given files beside it. `{dir}` stands for the folder of the files
    /// and `{port}` for a free port.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start_from(text: &str, files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content).expect("a temporary file can be written");
        }
        let text = text.replace("{dir}", text_of(folder.path()));
        let user = if rustix::process::geteuid().is_root() { "user root\n" } else { "" };
        let log = "log_dest stderr\nlog_type error\nlog_type warning\nlog_type notice\nlog_type subscribe\n";
        Self::on_some_port(folder, Kind::Mosquitto, |port| {
            format!("{}\n{user}{log}", text.replace("{port}", &port.to_string()))
        })
    }

    fn on_some_port(folder: TempDir, kind: Kind, text: impl Fn(u16) -> String) -> Self {
        let config = folder.path().join("mosquitto.conf");
        // A port that is taken between the choice and the start is another test's; there are others.
        for _ in 0..20 {
            let port = free_port();
            std::fs::write(&config, text(port)).expect("a temporary file can be written");
            if let Some(broker) = Self::try_start(&folder, port, &config, kind) {
                return Self { folder, port, config, kind, running: Some(broker) };
            }
        }
        panic!("the broker does not start: install it with scripts/setup --tests")
    }

    fn try_start(folder: &TempDir, port: u16, config: &Path, kind: Kind) -> Option<(Child, Lines)> {
        let mut program = match kind {
            Kind::Mosquitto => {
                let mut program = Command::new(mosquitto());
                program.arg("-c").arg(config);
                program
            }
            Kind::Rumqttd => {
                let mut program = command("limpet-lab");
                program.args(["broker", "--port", &port.to_string()]);
                program
            }
        };
        let mut child = program
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("mosquitto is not installed: run scripts/setup --tests");
        let lines = Lines::read(child.stderr.take().expect("it is piped"));
        let until = Instant::now() + LIMIT;
        while Instant::now() < until {
            if child.try_wait().expect("a child can be asked").is_some() {
                eprintln!("the broker ended: {}", lines.to_end().join("\n"));
                return None;
            }
            if TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), LIMIT).is_ok() {
                return Some((child, lines));
            }
            thread::sleep(Duration::from_millis(5));
        }
        // It is being given up.
        let _ = child.kill();
        let _ = child.wait();
        None
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// The folder with its configuration and files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Waits until a client has subscribed to a filter since the broker started.
    ///
    /// # Panics
    /// If nobody does.
    #[track_caller]
    pub fn wait_subscribed(&self, filter: &str) {
        self.wait_subscribed_after(0, filter);
    }

    /// Waits until a client has subscribed to a filter after a [`Broker::mark`].
    ///
    /// # Panics
    /// If nobody does.
    #[track_caller]
    pub fn wait_subscribed_after(&self, mark: usize, filter: &str) {
        let ending = format!(" {filter}");
        let seen = self.lines().wait_for(mark, |line| line.ends_with(&ending));
        seen.unwrap_or_else(|why| panic!("no subscription to {filter}: {why}"));
    }

    /// The filters that clients have subscribed to since the broker started.
    pub fn subscribed(&self) -> Vec<String> {
        self.subscribed_after(0, "")
    }

    /// This moment in what it has said since it started.
    pub fn mark(&self) -> usize {
        self.lines().all().len()
    }

    /// Filters that a client has subscribed to after a mark, as often as it did; a client is known by what its id begins
    /// with.
    pub fn subscribed_after(&self, mark: usize, client: &str) -> Vec<String> {
        // `TIME: CLIENT QOS FILTER`; its other lines are sentences.
        let filter = |line: &String| {
            let words: Vec<&str> = line.split(' ').collect();
            let [_, id, qos, filter] = words[..] else { return None };
            (id.starts_with(client) && matches!(qos, "0" | "1" | "2")).then(|| filter.to_owned())
        };
        self.lines().all()[mark..].iter().filter_map(filter).collect()
    }

    fn lines(&self) -> &Lines {
        &self.running.as_ref().expect("the broker runs").1
    }

    /// Ends it as if the power went.
    pub fn kill(&mut self) {
        if let Some((mut child, _)) = self.running.take() {
            child.kill().expect("a child can be killed");
            child.wait().expect("a killed child ends");
        }
    }

    /// Starts it again, on the same port and without anything it knew.
    ///
    /// # Panics
    /// If it does not start.
    pub fn restart(&mut self) {
        self.kill();
        let again = Self::try_start(&self.folder, self.port, &self.config, self.kind);
        self.running = Some(again.unwrap_or_else(|| panic!("the broker does not come back on port {}", self.port)));
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some((mut child, _)) = self.running.take() {
            // Nothing can be done about a child that is gone.
            let _ = child.kill();
            let _ = end_of(&mut child, LIMIT);
        }
    }
}
