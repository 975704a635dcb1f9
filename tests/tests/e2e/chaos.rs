//! `limpet-lab chaos` as a user runs it, for as long as a test may take.

use std::time::{Duration, Instant};

use limpet_tests::program::{self, Running};
use limpet_tests::{LIMIT, seed};
use rustix::process::Signal;
use serde_json::Value;

/// Faults are some seconds each, whatever the machine.
const LONGEST: Duration = Duration::from_secs(600);

/// Runs it with these faults, and gives its report.
#[track_caller]
fn chaos(faults: &str) -> Value {
    let seed = seed().to_string();
    let mine = tempfile::tempdir().expect("a folder");
    // As somebody has it who runs an agent of their own.
    let environment = [("LIMPET_GATEWAY__STATE", program::text_of(mine.path()))];
    let arguments = ["chaos", "--json", "--seed", &seed, "--faults", faults];
    let mut running = Running::start("limpet-lab", &arguments, &environment);
    if !running.ends_within(LONGEST) {
        // In order, so that no agent stays behind.
        running.signal(Signal::TERM);
        panic!("it did not end in time: {:?}", running.end().stdout);
    }
    let outcome = running.end();
    let report = serde_json::from_str::<Value>(&outcome.stdout);
    let report = report.unwrap_or_else(|error| panic!("{error}: {}{}", outcome.stdout, outcome.stderr));
    assert_eq!(outcome.code, Some(0), "{report:#}");
    let found = std::fs::read_dir(mine.path()).expect("it is there").count();
    assert_eq!(found, 0, "the agent that is broken worked on the state of another");
    report
}

/// Asserts that everything was delivered that was stored, and that all faults struck.
#[track_caller]
fn assert_nothing_lost(report: &Value, faults: &[(&str, u64)]) {
    for column in ["lost", "skipped", "unknown", "unreadable"] {
        assert_eq!(report[column], 0, "{column}: {report:#}");
    }
    let struck = report["faults"].as_array().expect("faults struck");
    for (fault, times) in faults {
        let found = struck.iter().find(|struck| struck["fault"] == *fault);
        assert_eq!(found.map(|struck| &struck["times"]), Some(&Value::from(*times)), "{fault}: {report:#}");
    }
    let number = |column: &str| report[column].as_u64().expect("it is a number");
    let dropped: u64 = report["dropped"].as_object().expect("by reason").values().filter_map(Value::as_u64).sum();
    assert!(number("stored") > 100 && number("delivered") + dropped >= number("stored"), "{report:#}");
    assert!(number("unstored") < number("starts"), "at most one a kill: {report:#}");
}

#[test]
fn a_tenth_of_the_soak_loses_nothing() {
    let report = chaos("kill=50,broker-restart=5,broker-stall=2");
    assert_nothing_lost(&report, &[("kill", 50), ("broker-restart", 5), ("broker-stall", 2)]);
    let kills = |when: &str| report["kills"][when].as_u64().expect("it is a number");
    assert!(kills("all") == 50 + kills("in_start") && report["starts"] == kills("all") + 1, "{report:#}");
    assert!(kills("with_backlog") > kills("in_drain"), "some of them meet a backlog: {report:#}");
    assert_eq!(report["dropped"], serde_json::json!({}), "nothing was to be dropped");
}

#[test]
fn every_other_kind_of_fault_loses_nothing() {
    const KINDS: [(&str, u64); 6] =
        [("cut", 1), ("half-open", 1), ("slow-link", 1), ("refusal", 1), ("unacknowledged", 4), ("disk-full", 2)];
    // A disk that fills up needs mounts of its own, which not every machine lets a test have.
    let tried = std::process::Command::new("unshare").args(["--user", "--map-root-user", "--mount", "true"]).output();
    let can = tried.is_ok_and(|tried| tried.status.success());
    let kinds = if can { &KINDS[..] } else { &KINDS[..5] };
    if !can {
        println!("skipped: disk-full needs unshare with mounts of its own");
    }
    let faults: Vec<_> = kinds.iter().map(|(kind, times)| format!("{kind}={times}")).collect();
    let report = chaos(&faults.join(","));
    assert_nothing_lost(&report, kinds);
    assert_eq!(report["dropped"], serde_json::json!({}), "nothing was to be dropped");
}

#[test]
fn a_damaged_page_is_told_of_in_full_though_it_comes_three_times() {
    // By itself: what is told of it could excuse what another fault loses.
    let report = chaos("damaged-page=3");
    assert_nothing_lost(&report, &[("damaged-page", 3)]);
    let reasons: Vec<&String> = report["dropped"].as_object().expect("by reason").keys().collect();
    assert!(reasons.iter().all(|reason| *reason == "damaged"), "what stood in a page, and nothing else: {report:#}");
}

#[test]
fn a_harness_that_is_killed_leaves_no_agent_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let kept = program::text_of(folder.path());
    let mut running = Running::start("limpet-lab", &["chaos", "--faults", "kill=1000", "--keep-dir", kept], &[]);
    // What the agent alone has in its command line.
    let config = folder.path().canonicalize().expect("it is there").join("limpet.toml");
    let until = Instant::now() + LIMIT;
    let wait_for = |is_there: bool| {
        while runs_with(program::text_of(&config)) != is_there {
            assert!(Instant::now() < until, "the agent is {}", if is_there { "not there" } else { "still there" });
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    wait_for(true);
    running.signal(Signal::KILL);
    assert!(running.ends_within(LIMIT));
    wait_for(false);
}

/// Whether there is a process with this text in its command line.
fn runs_with(text: &str) -> bool {
    let processes = std::fs::read_dir("/proc").expect("it can be read").flatten();
    let mut command_lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    command_lines.any(|line| String::from_utf8_lossy(&line).contains(text))
}

#[test]
fn what_cannot_be_done_is_said_before_anything_is_broken() {
    for (arguments, words) in [
        (&["--faults", "kil=3"][..], &["'kil' is no fault", "broker-restart"][..]),
        (&["--faults", "kill=often"], &["'kill=often' says no number of times"]),
        (&["--minutes", "0"], &["--minutes: expected more than 0"]),
        (&["--rate", "1"], &["--rate: expected 20 to 5000"]),
        (&["--without", "kil"], &["'kil' is no fault"]),
        (&["--faults", "clock-step"], &["clock-step cannot be had here", "--clock-steps"]),
    ] {
        program::run("limpet-lab", &[&["chaos"], arguments].concat()).expect_code(64).expect_complaint(words);
    }
    let missing = program::run("limpet-lab", &["chaos", "--limpet", "/nowhere/limpet"]);
    missing.expect_code(69).expect_complaint(&["/nowhere/limpet: no such file"]);
    let full = tempfile::tempdir().expect("a folder");
    std::fs::write(full.path().join("mine"), "").expect("it can be written");
    let kept = program::run("limpet-lab", &["chaos", "--faults", "kill", "--keep-dir", program::text_of(full.path())]);
    kept.expect_code(1).expect_complaint(&["is not empty"]);
}
