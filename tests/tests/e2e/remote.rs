//! Commands by way of the broker, under the access list that ships with the project; and the doctor, near and far.

use std::os::unix::fs::PermissionsExt as _;

use limpet_tests::agent::Home;
use limpet_tests::broker::free_port;
use limpet_tests::{Agent, Broker, Package, program};
use serde_json::{Value, json};

use crate::access::{client, press, shipped};
use crate::{levels, local};

/// What `limpet doctor --json` says, and its exit code.
fn doctor(home: &Home) -> (Value, Option<i32>) {
    let path = home.path().join("limpet.toml");
    let outcome = program::run("limpet", &["doctor", "--json", "--config", program::text_of(&path)]);
    let found = serde_json::from_str(&outcome.stdout);
    (found.unwrap_or_else(|error| panic!("{error}: {}{}", outcome.stdout, outcome.stderr)), outcome.code)
}

/// State and words of what a check found, all of it.
fn findings(diagnosis: &Value, check: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let findings = diagnosis["findings"].as_array().expect("there are findings").iter();
    let of = findings.filter(|finding| finding["check"] == check);
    of.map(|finding| (text(&finding["state"]), format!("{} {}", text(&finding["found"]), text(&finding["todo"]))))
        .collect()
}

#[track_caller]
fn assert_finds(diagnosis: &Value, check: &str, state: &str, words: &str) {
    let found = findings(diagnosis, check);
    assert!(
        found.iter().any(|(is, said)| is == state && said.contains(words)),
        "{check}, {state}, {words}: {diagnosis:#}"
    );
}

#[test]
fn a_gateway_answers_the_commands_that_are_enabled_and_no_others() {
    let broker = shipped();
    let package = Package::scores();
    let home = Home::proved();
    let config = format!("[uplink]\ncommands = [\"status\", \"logs\"]\n{}", press(&broker, &home, &package));
    let agent = Agent::start_as("press-07", home, &config);
    let mut operator = client(&broker, "operator");
    operator.subscribe(&["limpet/1/+/#"]);
    agent.wait_for_model(&mut operator, "scores", "active");
    let password = agent.home().path().join("operator");
    std::fs::write(&password, "o\n").expect("a temporary file can be written");
    let url = broker.url();
    let remote = |arguments: &[&str]| {
        let login = ["--broker", &url, "--username", "operator", "--password-file", program::text_of(&password)];
        program::run("limpet-lab", &[&["remote", "press-07"], arguments, &login].concat())
    };
    let status: Value = serde_json::from_str(&remote(&["status"]).expect_code(0).stdout).expect("it is one object");
    assert_eq!((&status["gateway"], &status["models"][0]["name"]), (&json!("press-07"), &json!("scores")));
    let lines = remote(&["logs", "--lines", "3"]).expect_code(0).stdout;
    assert_eq!(lines.lines().count(), 3, "{lines}");
    // Nobody listens there, so nobody says no either.
    let silent = remote(&["diagnose", "--seconds", "1"]).expect_code(69);
    silent
        .expect_complaint(&["press-07 was asked and does not answer within 1 s", "has it diagnose in uplink.commands"]);
    drop(operator);
    let mut operator = client(&broker, "operator");
    remote(&["diagnose"]).expect_code(69).expect_complaint(&["press-07 does not hear diagnose"]);
    remote(&["diagnose", "--lines", "3"]).expect_code(64).expect_complaint(&["--lines is for logs"]);
    // One that the broker keeps is none, however often the gateway comes back.
    operator.publish_with("limpet/1/press-07/cmd/status", true, r#"{"session":"x"}"#);
    agent.wait_for_log(&["WARN", "a command is refused", "it is retained"]);
}

#[test]
fn commands_are_off_unless_they_are_named() {
    let broker = Broker::start();
    let package = Package::scores();
    let agent = Agent::start(&format!("{}{}", local(&broker), levels(&package, "", "")));
    broker.wait_subscribed("plant/+/scores");
    assert!(!broker.subscribed().iter().any(|filter| filter.contains("/cmd/")), "{:?}", broker.subscribed());
    agent.stop();
}

#[test]
fn the_doctor_examines_an_agent_that_runs_and_one_that_does_not() {
    let broker = shipped();
    let package = Package::scores();
    let home = Home::proved();
    let config = press(&broker, &home, &package);
    let agent = Agent::start_as("press-07", home, &config);
    let mut operator = client(&broker, "operator");
    operator.subscribe(&["limpet/1/+/#"]);
    agent.wait_for_model(&mut operator, "scores", "active");
    let password = agent.home().path().join("password");
    std::fs::set_permissions(password, std::fs::Permissions::from_mode(0o644)).expect("it is ours");
    let (diagnosis, _) = doctor(agent.home());
    assert_eq!((&diagnosis["running"], &diagnosis["gateway"]), (&json!(true), &json!("press-07")));
    assert_finds(&diagnosis, "configuration", "ok", "1 sources, 1 pipelines");
    assert_finds(&diagnosis, "brokers", "ok", "a message to limpet/1/press-07/probe came back");
    assert_finds(&diagnosis, "pipelines", "warning", "source scores is silent since the start");
    assert_finds(&diagnosis, "unit", "warning", "not started by systemd");
    // The test made the password readable for all.
    assert_finds(&diagnosis, "certificates", "warning", "password_file");
    let (_, home, _) = agent.stop();
    let (diagnosis, code) = doctor(&home);
    assert_eq!((&diagnosis["running"], code), (&json!(false), Some(1)));
    assert_finds(&diagnosis, "agent", "error", "no agent runs start it: systemctl start limpet");
    assert_finds(&diagnosis, "brokers", "ok", "a message to limpet/1/press-07/probe came back");
}

#[test]
fn the_doctor_names_what_a_broker_does_not_let_through() {
    // One that grants everything and passes nothing on.
    let deaf = Broker::start_with(
        "allow_anonymous true\nacl_file {dir}/acl\n",
        &[("acl", "topic readwrite limpet/1/gw/status\ntopic readwrite limpet/1/gw/models\n")],
    );
    let package = Package::scores();
    let agent = Agent::start(&format!("{}{}", local(&deaf), levels(&package, "", "")));
    deaf.wait_subscribed("plant/+/scores");
    let (diagnosis, code) = doctor(agent.home());
    assert_eq!(code, Some(1));
    assert_finds(&diagnosis, "brokers", "error", "limpet/1/gw/probe");
    assert_finds(&diagnosis, "brokers", "error", "it refuses what this gateway publishes on limpet/1/gw/");
    agent.stop();
    // And one that is not there.
    let away = format!("[broker.local]\nurl = \"mqtt://127.0.0.1:{}\"\n{}", free_port(), levels(&package, "", ""));
    let (_, home, _) = Agent::start(&away).stop();
    let (diagnosis, _) = doctor(&home);
    assert_finds(&diagnosis, "brokers", "error", "connection refused; does a broker listen there?");
}
