//! `limpet check`: what is in effect, and where each value came from.

use limpet_tests::agent::Home;
use limpet_tests::{Package, program, root};

use crate::levels;

const NOBODY: &str = "[broker.local]\nurl = \"mqtt://127.0.0.1:1\"\n";

/// The one line of the effective configuration that sets `key`.
#[track_caller]
fn line<'a>(printed: &'a str, key: &str) -> &'a str {
    let found: Vec<_> = printed.lines().filter(|line| line.trim_start().starts_with(key)).collect();
    assert!(!found.is_empty(), "no {key} in:\n{printed}");
    found[0]
}

#[test]
fn every_value_says_where_it_came_from() {
    let package = Package::scores();
    let home = Home::empty();
    let path = home.write(&format!("{NOBODY}{}", levels(&package, "max_streams = 3", "")));
    let printed = program::run_with(
        "limpet",
        &["check", "--config", program::text_of(&path)],
        &[("LIMPET_BROKER__LOCAL__KEEP_ALIVE", "7s")],
        &[],
    )
    .expect_code(0)
    .stdout;
    assert!(line(&printed, "max_streams").contains("limpet.toml:"), "{printed}");
    assert!(line(&printed, "stream_idle").contains("default"), "{printed}");
    let keep_alive = line(&printed, "keep_alive");
    assert!(keep_alive.contains("7s") && keep_alive.contains("LIMPET_BROKER__LOCAL__KEEP_ALIVE"), "{keep_alive}");
}

#[test]
fn what_check_prints_is_a_configuration_with_the_same_effect() {
    let package = Package::scores();
    let home = Home::empty();
    let path = home.write(&format!("{NOBODY}{}", levels(&package, "max_streams = 3", "")));
    let check = |path| program::run("limpet", &["check", "--config", program::text_of(path)]).expect_code(0).stdout;
    let first = check(&path);
    let again = home.path().join("again.toml");
    std::fs::write(&again, &first).expect("a temporary file can be written");
    let values = |printed: &str| -> toml::Table { printed.parse().expect("what is printed is TOML") };
    assert_eq!(values(&first), values(&check(&again)));
}

#[test]
fn a_variable_that_is_no_key_is_refused_by_name() {
    let package = Package::scores();
    let home = Home::empty();
    let path = home.write(&format!("{NOBODY}{}", levels(&package, "", "")));
    let arguments = ["check", "--config", program::text_of(&path)];
    program::run_with("limpet", &arguments, &[("LIMPET_GATEWAY__IDD", "x")], &[])
        .expect_code(78)
        .expect_complaint(&["LIMPET_GATEWAY__IDD", "id"]);
}

#[test]
fn a_variable_reaches_the_running_agent() {
    let broker = limpet_tests::Broker::start();
    let package = Package::scores();
    let home = Home::empty();
    let path = home.write(&format!("{NOBODY}{}", levels(&package, "", "")));
    let printed = program::run_with(
        "limpet",
        &["check", "--config", program::text_of(&path)],
        &[("LIMPET_BROKER__LOCAL__URL", &broker.url())],
        &[],
    )
    .expect_code(0)
    .stdout;
    assert!(line(&printed, "url").contains(&broker.url()), "{printed}");
}

#[test]
fn the_configuration_that_ships_is_sound_with_the_model_that_ships() {
    let home = Home::empty();
    let path = home.path().join("limpet.toml");
    std::fs::copy(root().join("config/limpet.toml"), &path).expect("it ships");
    std::os::unix::fs::symlink(root().join("models"), home.path().join("models"))
        .expect("a temporary link can be made");
    let printed = program::run("limpet", &["check", "--config", program::text_of(&path)]).expect_code(0).stdout;
    assert!(line(&printed, "model").contains("motor-health"), "{printed}");
}
