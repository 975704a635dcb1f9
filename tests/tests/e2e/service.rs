//! What a service manager hears of the agent: ready, what is missing, and signs of life.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use limpet_tests::agent::{GATEWAY, Home};
use limpet_tests::manager::Manager;
use limpet_tests::program::run_with;
use limpet_tests::{Agent, Broker, Client, Package};

use crate::{levels, local};

/// Long enough that nobody is called dead.
const PATIENT: Duration = Duration::from_secs(30);

#[test]
fn the_agent_is_ready_without_its_broker_and_the_status_says_what_is_missing() {
    let mut manager = Manager::default();
    let mut broker = Broker::start();
    let package = Package::scores();
    let config = format!("{}{}", local(&broker), levels(&package, "", ""));
    broker.kill();
    let agent = Agent::start_with(GATEWAY, Home::proved(), &config, &manager.environment(PATIENT));
    manager.wait_for("READY=1", &[]);
    let status = manager.heard().iter().rfind(|line| line.starts_with("STATUS=")).expect("one comes before");
    assert!(status.starts_with("STATUS=serving 1 pipeline; broker local: "), "{status}");
    broker.restart();
    // Reasons may change before that.
    while manager.wait_for("STATUS=serving 1 pipeline", &[]) != "STATUS=serving 1 pipeline" {}
    let (status, ..) = agent.stop();
    assert!(status.success());
    assert!(manager.hears("STOPPING=1", PATIENT));
}

#[test]
fn a_proof_that_goes_on_delays_no_readiness() {
    let mut manager = Manager::default();
    let (proved, unproved) = (Package::scores(), Package::slow());
    let broker = Broker::start();
    let config = format!(
        "{}{}{}",
        local(&broker),
        levels(&proved, "", ""),
        crate::feed("slow", &unproved, "max_streams = 1", "")
    );
    let agent = Agent::start_with(GATEWAY, Home::proved(), &config, &manager.environment(PATIENT));
    manager.wait_for("READY=1", &[]);
    assert!(agent.log_with(&["proved", "slow"]).is_empty(), "it was ready before");
    let status = manager.heard().iter().rfind(|line| line.starts_with("STATUS=")).expect("one comes before");
    // The broker may be missing still.
    let expected = "STATUS=serving 1 of 2 pipelines; slow: its model is being proved or loaded";
    assert!(status.starts_with(expected), "{status}");
    manager.wait_for("STATUS=serving 2 pipelines", &[]);
}

#[test]
fn a_reload_is_told_with_its_time() {
    let mut manager = Manager::default();
    let broker = Broker::start();
    let package = Package::scores();
    let config = format!("{}{}", local(&broker), levels(&package, "", ""));
    let agent = Agent::start_with(GATEWAY, Home::proved(), &config, &manager.environment(PATIENT));
    manager.wait_for("READY=1", &[]);
    agent.reload();
    manager.wait_for("RELOADING=1", &[]);
    let time = manager.heard().last().and_then(|line| line.strip_prefix("MONOTONIC_USEC="));
    assert!(time.is_some_and(|time| time.parse::<u64>().is_ok()), "in the same message: {:?}", manager.heard());
    manager.wait_for("READY=1", &[]);
}

#[test]
fn the_watchdog_is_fed_until_a_worker_does_not_answer() {
    let mut manager = Manager::default();
    let broker = Broker::start();
    let package = Package::scores();
    let config = format!("[runtime]\nhang_limit = \"100ms\"\n{}{}", local(&broker), levels(&package, "", ""));
    let watchdog = manager.environment(Duration::from_secs(2));
    let agent = Agent::start_with(GATEWAY, Home::proved(), &config, &watchdog);
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/#"]);
    agent.wait_for_model(&mut client, "scores", "active");
    for _ in 0..3 {
        manager.wait_for("WATCHDOG=1", &[]);
    }
    let held = Held::thread(agent.pid(), "worker-0");
    agent.wait_for_log(&["ERROR", "worker-0 has not answered for", "the watchdog is fed no more"]);
    // What was said before that may still be read.
    while manager.hears("", Duration::from_millis(10)) {}
    assert!(!manager.hears("WATCHDOG=1", Duration::from_secs(2)), "one period long nothing feeds it");
    drop(held);
    // Here nobody ends it, so it can be seen that the answer is what counts.
    manager.wait_for("WATCHDOG=1", &[]);
}

#[test]
fn why_it_does_not_start_stands_in_the_status() {
    let mut manager = Manager::default();
    let home = Home::empty();
    let path = home.write("[broker.local]\nurl = \"mqtt://127.0.0.1:1\"\nkeep_alife = \"5s\"\n");
    let arguments = ["run", "--config", limpet_tests::program::text_of(&path)];
    let environment = manager.environment(PATIENT);
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
    let outcome = run_with("limpet", &arguments, &environment, b"");
    assert_eq!(outcome.code, Some(78), "{}", outcome.stderr);
    let status = manager.wait_for("STATUS=limpet.toml:8: ", &["keep_alife", "keep_alive"]);
    assert!(outcome.stderr.contains(status.trim_start_matches("STATUS=")), "{}", outcome.stderr);
}

/// A thread of a process that is kept from running, for as long as this lives; the other threads go on.
struct Held(Child);

impl Held {
    /// The thread of this name.
    fn thread(pid: u32, name: &str) -> Self {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs").flatten();
        let of_name = |path: &std::path::PathBuf| {
            std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name)
        };
        let task = tasks.map(|task| task.path()).find(of_name).expect("there is such a thread");
        let tid = task.file_name().and_then(|id| id.to_str()).expect("a thread's id is a number").to_owned();
        // A debugger's request, which stops one thread (a signal stops them all); it holds while the debugger lives.
        let script = "import ctypes, sys\n\
             ptrace = ctypes.CDLL(None, use_errno=True).ptrace\n\
             ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]\n\
             PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207\n\
             assert ptrace(PTRACE_SEIZE, int(sys.argv[1]), None, None) == 0, ctypes.get_errno()\n\
             assert ptrace(PTRACE_INTERRUPT, int(sys.argv[1]), None, None) == 0, ctypes.get_errno()\n\
             print('held', flush=True)\n\
             sys.stdin.read()\n";
        let child =
            Command::new("python3").args(["-c", script, &tid]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("python3 is there: scripts/setup needs it");
        let mut said = String::new();
        let stdout = child.stdout.as_mut().expect("it is piped");
        // A system may let nobody but a process's ancestors do that (kernel.yama.ptrace_scope), and root.
        BufReader::new(stdout).read_line(&mut said).expect("a pipe can be read");
        assert_eq!(said, "held\n", "the thread can be stopped; what python3 says is above");
        Self(child)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Its end lets the thread go.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
