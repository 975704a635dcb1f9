//! Sources that are programs.

use std::path::Path;

use limpet_tests::agent::Home;
use limpet_tests::program::text_of;
use limpet_tests::{Agent, Broker, Client, Package};
use serde_json::Value;

use crate::{assert_says, event, levels, local, sound, uplink};

/// [`levels`] with a program in the place of the topic.
fn levels_of(package: &Package, program: &[&str]) -> String {
    levels(package, "", "")
        .replace("topic = \"plant/{stream}/scores\"", &format!("exec = {program:?}"))
        .replace("broker = \"local\"\nexec", "exec")
}

/// A script, to be run by a shell that the configuration names.
fn script(home: &Home, text: &str) -> String {
    let path = home.path().join("program.sh");
    std::fs::write(&path, text).expect("a temporary file can be written");
    text_of(&path).to_owned()
}

/// Whether a process runs; one that has ended and was not waited for does not.
fn runs(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[track_caller]
fn wait_until_gone(pid: &str) {
    let until = std::time::Instant::now() + limpet_tests::LIMIT;
    while runs(pid) {
        assert!(std::time::Instant::now() < until, "process {pid} outlives the agent");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// What a line of the log says after a word.
fn after<'l>(line: &'l str, word: &str) -> &'l str {
    line.split_once(word).expect("the line holds it").1.split_whitespace().next().expect("something follows")
}

fn results(client: &mut Client, topic: &str) -> impl Iterator<Item = Value> {
    client.results(uplink(topic))
}

#[test]
fn a_program_gives_samples_its_words_go_into_the_log_and_it_is_started_again() {
    let (broker, home, package) = (Broker::start(), Home::proved(), Package::scores());
    let program = script(
        &home,
        "echo \"sensor warms up, $$ is its number\" >&2\necho '[0.9, 0.1, 0.1]'\nprintf '\\n[0.1, 0.1,'\necho ' 0.9]'\nread -r nothing && echo '[0, 0, 0]'\nexec sleep 1000\n",
    );
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/#"]);
    let agent = Agent::start_in(home, &format!("{}{}", local(&broker), levels_of(&package, &["sh", &program])));
    let line = agent.wait_for_log(&["INFO", "sensor warms up", "source=\"scores\""]);
    let labels: Vec<Value> =
        results(&mut client, "result/levels/scores").take(2).map(|result| result["label"].clone()).collect();
    assert_eq!(labels, ["low", "high"], "its standard input is empty, so nothing else comes");
    let pid: i32 = after(&line, "sensor warms up, ").parse().expect("it tells its number");
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).expect("a number"),
        rustix::process::Signal::KILL,
    )
    .expect("it runs");
    let told = event(&mut client, "source-ended");
    assert_eq!(told["source"], "scores");
    assert_says(
        &told["message"],
        &["program of source scores, sh, was ended by signal 9: sensor warms up", "started again in 0."],
    );
    let again: Vec<Value> =
        results(&mut client, "result/levels/scores").take(2).map(|result| result["label"].clone()).collect();
    assert_eq!(again, ["low", "high"], "it goes on");
    assert_eq!(agent.status()["sources"]["scores"]["messages"], 4);
}

#[test]
fn a_program_ends_with_the_agent_whether_it_stops_or_is_killed() {
    let (broker, package) = (Broker::start(), Package::scores());
    let mut home = Home::proved();
    // It does not want to, and has a child.
    let program =
        script(&home, "trap '' TERM\nsleep 1000 &\necho \"started $$ with $!\" >&2\nwhile true; do wait; done\n");
    let config = format!("{}{}", local(&broker), levels_of(&package, &["/bin/sh", &program]));
    let agent = Agent::start_in(home, &config);
    let line = agent.wait_for_log(&["started ", " with "]);
    let (status, left, _) = agent.stop();
    assert!(status.success());
    wait_until_gone(after(&line, "started "));
    wait_until_gone(after(&line, " with "));
    home = left;
    let agent = Agent::start_in(home, &config);
    let line = agent.wait_for_log(&["started ", " with "]);
    agent.kill();
    wait_until_gone(after(&line, "started "));
    // What it started in turn is the service manager's, which ends all that a service has started.
    let child = after(&line, " with ").parse().ok().and_then(rustix::process::Pid::from_raw).expect("a number");
    let _ = rustix::process::kill_process(child, rustix::process::Signal::KILL);
}

#[test]
fn a_program_that_ends_or_falls_silent_is_noticed_whatever_it_has_started() {
    let (broker, package) = (Broker::start(), Package::scores());
    for (text, expected) in [
        // Something holds its pipes.
        ("sleep 1000 &\necho \"started $!\" >&2\nexit 3\n", "ended with exit code 3"),
        ("sleep 1000 >&- &\necho \"started $!\" >&2\nexec >&- sleep 1000\n", "closed its output and did not end"),
    ] {
        let home = Home::proved();
        let program = script(&home, text);
        let mut client = Client::connect(&broker);
        client.subscribe(&["limpet/1/#"]);
        let config = format!("{}{}", local(&broker), levels_of(&package, &["sh", &program]));
        let agent = Agent::start_in(home, &config);
        let line = agent.wait_for_log(&["started "]);
        let told = event(&mut client, "source-ended");
        assert_says(&told["message"], &[expected, "it is started again"]);
        wait_until_gone(after(&line, "started "));
        agent.stop();
    }
}

#[test]
fn what_a_program_has_started_ends_with_it_when_the_agent_stops() {
    let (broker, home, package) = (Broker::start(), Home::proved(), Package::scores());
    let program =
        script(&home, "(trap '' TERM; while true; do sleep 1; done) &\necho \"started $!\" >&2\nexec sleep 1000\n");
    let agent = Agent::start_in(home, &format!("{}{}", local(&broker), levels_of(&package, &["sh", &program])));
    let line = agent.wait_for_log(&["started "]);
    agent.stop();
    wait_until_gone(after(&line, "started "));
}

#[test]
fn samples_with_a_header_are_cut_by_their_length() {
    let (broker, home, package) = (Broker::start(), Home::proved(), Package::loudness());
    let path = home.path().join("samples");
    let samples: Vec<u8> = (0..3_u32).flat_map(|sequence| crate::samples(sequence, &[0.5; 10])).collect();
    std::fs::write(&path, samples).expect("a temporary file can be written");
    let config = sound(&package, "message = \"44B\"")
        .replace("broker = \"local\"\n", "")
        .replace("topic = \"plant/{stream}/level\"", &format!("exec = [\"cat\", {:?}]", text_of(&path)));
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/#"]);
    let _agent = Agent::start_in(home, &format!("{}{config}", local(&broker)));
    let windows: Vec<Value> =
        results(&mut client, "result/sound/level").take(5).map(|result| result["window"]["last"].clone()).collect();
    assert_eq!(windows, [9, 14, 19, 24, 29], "30 samples in a row, a hop of 5");
}

#[test]
fn a_program_that_is_not_there_is_named_and_tried_again_and_stops_nothing() {
    let (broker, home, package) = (Broker::start(), Home::proved(), Package::scores());
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/#"]);
    let nowhere = Path::new("/nowhere/arecord");
    let agent = Agent::start_in(home, &format!("{}{}", local(&broker), levels_of(&package, &[text_of(nowhere), "-q"])));
    let told = event(&mut client, "source-ended");
    assert_says(&told["message"], &["/nowhere/arecord cannot be started: No such file or directory"]);
    agent.wait_for_log(&["WARN", "/nowhere/arecord", "started again in"]);
    assert_eq!(agent.status()["pipelines"][0]["state"], "serving");
}
