//! The systemd unit and its drop-ins: how much of the system they leave to whoever takes the agent over.

use std::path::Path;
use std::process::Command;

use limpet_tests::program::text_of;

/// What `systemd-analyze security` gives the unit with these drop-ins, from 0 (nothing is left) to 10.
#[track_caller]
fn exposure(drop_ins: &[&Path]) -> f64 {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let unit = folder.path().join("limpet.service");
    std::fs::copy(root.join("systemd/limpet.service"), &unit).expect("the unit is there");
    let beside = folder.path().join("limpet.service.d");
    std::fs::create_dir(&beside).expect("a temporary folder can be made");
    for path in drop_ins {
        std::fs::copy(path, beside.join(path.file_name().expect("a file has a name"))).expect("it is there");
    }
    let outcome = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager", text_of(&unit)])
        .output()
        .expect("systemd-analyze is there: scripts/setup --tests installs it");
    let (said, complaints) = (String::from_utf8_lossy(&outcome.stdout), String::from_utf8_lossy(&outcome.stderr));
    assert!(complaints.is_empty(), "the unit has mistakes: {complaints}");
    let overall = said.lines().find_map(|line| line.split_once("Overall exposure level for limpet.service: "));
    let score = overall.and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
    score.unwrap_or_else(|| panic!("no score in:\n{said}"))
}

#[test]
fn the_unit_leaves_little_and_no_drop_in_opens_much() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/drop-ins");
    let drop_ins: Vec<_> =
        std::fs::read_dir(folder).expect("they are there").flatten().map(|file| file.path()).collect();
    assert!(exposure(&[]) <= 1.5);
    let mut scores = Vec::new();
    for path in &drop_ins {
        scores.push((path.file_stem().and_then(|stem| stem.to_str()), exposure(&[path])));
    }
    scores.sort_by_key(|(name, _)| *name);
    let names: Vec<_> = scores.iter().filter_map(|(name, _)| *name).collect();
    assert_eq!(names, ["camera", "microphone", "realtime", "serial"]);
    assert!(scores.iter().all(|(_, score)| *score > exposure(&[]) && *score <= 2.0), "{scores:?}");
    let all: Vec<&Path> = drop_ins.iter().map(|path| &**path).collect();
    assert!(exposure(&all) <= 2.0, "all together");
}
