//! Bad configurations, packages and brokers: one clear sentence, and the exit code of the contract.

use limpet_tests::agent::Home;
use limpet_tests::{Agent, Broker, Client, Package, program};

use crate::{levels, local, sound, uplink};

const NOBODY: &str = "[broker.local]\nurl = \"mqtt://127.0.0.1:1\"\n";

/// That a configuration is refused with code 78 and one sentence that holds all of `words`, by `check` and by `run`.
#[track_caller]
pub(crate) fn is_refused(config: &str, words: &[&str]) {
    let home = Home::empty();
    let path = home.write(config);
    for command in ["check", "run"] {
        let arguments = [command, "--config", program::text_of(&path)];
        program::run("limpet", &arguments).expect_code(78).expect_complaint(words);
    }
}

/// That a package is refused with code 78 and one sentence that holds all of `words`, by `check` and by `prove`.
#[track_caller]
fn package_is_refused(package: &Package, words: &[&str]) {
    let home = Home::empty();
    let path = home.write(&format!("{NOBODY}{}", levels(package, "", "")));
    program::run("limpet", &["check", "--config", program::text_of(&path)]).expect_code(78).expect_complaint(words);
    program::run("limpet", &["prove", program::text_of(package.path())]).expect_code(78).expect_complaint(words);
}

#[test]
fn a_wrong_command_line_is_usage() {
    for arguments in [&["fly"][..], &["run", "--confg", "x"], &["try"], &[]] {
        program::run("limpet", arguments).expect_code(64);
    }
    program::run("limpet-lab", &["fly"]).expect_code(64);
}

#[test]
fn a_configuration_that_is_not_there_is_named() {
    program::run("limpet", &["run", "--config", "/nowhere/limpet.toml"])
        .expect_code(78)
        .expect_complaint(&["/nowhere/limpet.toml", "--config"]);
}

#[test]
fn an_unknown_key_names_its_line_and_the_nearest_known_one() {
    let package = Package::scores();
    is_refused(
        &format!("{NOBODY}{}", levels(&package, "max_steams = 4", "")),
        &["limpet.toml:", "max_steams", "max_streams"],
    );
}

#[test]
fn text_that_is_no_toml_is_named_with_its_line() {
    is_refused("[broker.local\n", &["limpet.toml:6"]);
}

#[test]
fn two_pipelines_with_one_name_are_refused() {
    let package = Package::scores();
    let twice = format!("{NOBODY}{}", levels(&package, "", ""));
    let second = format!("[[pipeline]]\nname = \"levels\"\nsource = \"scores\"\nmodel = \"{}\"\n", package.display());
    is_refused(&format!("{twice}{second}"), &["[[pipeline]]", "levels", "exists already", "rename"]);
}

#[test]
fn a_pipeline_of_a_source_that_is_not_there_names_the_nearest() {
    let package = Package::scores();
    let config = format!("{NOBODY}{}", levels(&package, "", "")).replace("source = \"scores\"", "source = \"score\"");
    is_refused(&config, &["pipeline", "'score'", "'scores'"]);
}

#[test]
fn a_model_that_is_not_there_is_named() {
    let package = Package::scores();
    let path = package.display();
    let config = format!("{NOBODY}{}", levels(&package, "", ""));
    drop(package);
    is_refused(&config, &["levels", &path]);
}

#[test]
fn channels_that_do_not_match_the_model_are_refused() {
    let package = Package::loudness();
    let config = format!("{NOBODY}{}", sound(&package, "")).replace("type = \"f32\"", "type = \"f32\", channels = 3");
    is_refused(&config, &["level", "3 channels", "expects 1"]);
}

#[test]
fn a_pipeline_that_wants_triggers_needs_a_model_with_one() {
    let package = Package::scores();
    package.edit("trigger = { label = \"high\", above = 0.8 }", "");
    is_refused(&format!("{NOBODY}{}", levels(&package, "", "publish = \"triggers\"")), &["levels", "trigger"]);
}

#[test]
fn an_unknown_key_in_a_manifest_names_the_nearest_known_one() {
    let package = Package::scores();
    package.edit("task = ", "taks = ");
    package_is_refused(&package, &["model.toml", "taks", "task"]);
}

#[test]
fn a_manifest_of_a_later_format_is_refused_by_its_number() {
    let package = Package::scores();
    package.edit("format = 1", "format = 2\nnovelty = true");
    package_is_refused(&package, &["model.toml", "format", "2", "update"]);
}

#[test]
fn a_trigger_on_a_label_that_is_not_there_names_the_nearest() {
    let package = Package::scores();
    package.edit("label = \"high\"", "label = \"hihg\"");
    package_is_refused(&package, &["hihg", "high"]);
}

#[test]
fn a_package_without_golden_vectors_is_refused() {
    let package = Package::scores();
    std::fs::remove_file(package.file("golden.safetensors")).expect("it is there");
    package_is_refused(&package, &["golden"]);
}

#[test]
fn a_wrong_password_is_told_with_user_and_broker_and_run_goes_on() {
    let passwords = limpet_tests::broker::passwords(&[("press", "right")]);
    let broker =
        Broker::start_with("allow_anonymous false\npassword_file {dir}/passwords\n", &[("passwords", &passwords)]);

    let package = Package::scores();
    let home = Home::proved();
    let password = home.path().join("password");
    std::fs::write(&password, "wrong\n").expect("a temporary file can be written");
    let config = format!(
        "{}username = \"press\"\npassword_file = \"{}\"\n{}",
        local(&broker),
        program::text_of(&password),
        levels(&package, "", "")
    );
    let mut agent = Agent::start_in(home, &config);
    let told = agent.wait_for_log(&["cannot connect", "press", "password_file"]);
    assert!(told.contains(&broker.url()), "{told}");
    assert!(agent.runs());
    // A password that is put right needs no restart.
    std::fs::write(&password, "right\n").expect("a temporary file can be written");
    let mut client = Client::connect_as(&broker, Some(("press", "right"))).expect("the password is right");
    client.subscribe(&[&uplink("status")]);
    assert_eq!(client.wait_on(&uplink("status")).json()["state"], "online");
}

#[test]
fn a_password_file_that_is_not_there_is_named() {
    let package = Package::scores();
    let config =
        format!("{NOBODY}username = \"press\"\npassword_file = \"/nowhere/password\"\n{}", levels(&package, "", ""));
    is_refused(&config, &["broker.local.password_file", "/nowhere/password"]);
}

#[test]
fn a_keep_alive_that_the_client_cannot_keep_is_refused() {
    let package = Package::scores();
    let config = format!("{NOBODY}keep_alive = \"2s\"\n{}", levels(&package, "", ""));
    is_refused(&config, &["broker.local.keep_alive", "2s", "5s"]);
}
