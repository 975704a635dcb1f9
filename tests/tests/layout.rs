//! Who may import whom, and what lies at the top: the rules of the architecture, read from cargo and the folder.

use std::collections::BTreeSet;

use cargo_metadata::{CargoOpt, DependencyKind, MetadataCommand};
use limpet_tests::root;

/// Each crate of the workspace and the crates of the workspace that it may use, tests and build scripts included.
const MAY_USE: [(&str, &[&str]); 9] = [
    ("limpet", &["limpet-depot", "limpet-engine", "limpet-runtime", "limpet-signal", "limpet-wire"]),
    ("limpet-lab", &["limpet-depot", "limpet-engine", "limpet-runtime", "limpet-signal", "limpet-wire"]),
    ("limpet-depot", &["limpet-engine", "limpet-signal", "limpet-wire"]),
    ("limpet-tests", &["limpet-wire"]),
    ("limpet-fuzz", &["limpet", "limpet-depot", "limpet-wire"]),
    ("limpet-runtime", &["limpet-engine"]),
    ("limpet-engine", &[]),
    ("limpet-signal", &[]),
    ("limpet-wire", &[]),
];

/// Libraries that only these crates may name: MQTT, HTTP, SQLite and the network live in the binaries, each engine's
/// library in the engine crate.
const ONLY: [(&str, &[&str]); 6] = [
    ("rumqttc", &["limpet", "limpet-lab", "limpet-tests"]),
    ("rumqttd", &["limpet-lab"]),
    // The depot waits for messages and web servers by it, through whatever connection the binaries own.
    ("tokio", &["limpet", "limpet-lab", "limpet-depot", "limpet-fuzz"]),
    ("tract-onnx", &["limpet-engine"]),
    ("tflitec", &["limpet-engine"]),
    ("anyhow", &["limpet", "limpet-lab", "limpet-tests"]),
];

/// Folders at the top of the checkout; folders whose name starts with a dot are free.
const FOLDERS: [&str; 8] = ["agent", "config", "cross", "docs", "models", "scripts", "systemd", "tests"];

fn workspace() -> cargo_metadata::Metadata {
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .features(CargoOpt::AllFeatures)
        .no_deps()
        .exec()
        .expect("cargo metadata describes the workspace")
}

#[test]
fn every_crate_uses_only_those_that_the_architecture_lets_it_use() {
    let metadata = workspace();
    let names: BTreeSet<&str> = metadata.packages.iter().map(|package| package.name.as_str()).collect();
    let known: BTreeSet<&str> = MAY_USE.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, known, "a crate that is not in the architecture, or one that is missing");
    for (name, may_use) in MAY_USE {
        let package = metadata.packages.iter().find(|package| package.name.as_str() == name).expect("it is known");
        for dependency in package.dependencies.iter().filter(|dependency| known.contains(dependency.name.as_str())) {
            assert!(
                may_use.contains(&dependency.name.as_str()),
                "{name} must not use {} ({})",
                dependency.name,
                dependency.kind
            );
        }
    }
}

#[test]
fn libraries_of_the_outside_world_are_named_only_where_they_belong() {
    for package in workspace().packages {
        for dependency in package.dependencies.iter().filter(|d| d.kind != DependencyKind::Build) {
            let rule = ONLY.iter().find(|(library, _)| *library == dependency.name);
            if let Some((library, users)) = rule {
                assert!(users.contains(&package.name.as_str()), "{} must not use {library}", package.name);
            }
        }
    }
}

#[test]
fn nothing_else_lies_at_the_top() {
    let entries = std::fs::read_dir(root()).expect("the checkout can be read");
    for entry in entries.map(|entry| entry.expect("the checkout can be read")) {
        let name = entry.file_name().into_string().expect("names are UTF-8");
        // Build output where somebody keeps it in the checkout.
        let is_free = name.starts_with('.') || name == "target";
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        assert!(!is_folder || is_free || FOLDERS.contains(&name.as_str()), "{name}/ has no place at the top");
    }
}
