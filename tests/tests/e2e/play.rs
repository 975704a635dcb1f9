//! `limpet try`: recordings through the very same path.

use std::fmt::Write as _;

use limpet_tests::package::{HOP, Tensor, WINDOW, write_safetensors};
use limpet_tests::{Package, graph, program};
use limpet_wire::result::ResultRecord;
use serde_json::json;

/// A recording of 100 Hz: quiet, loud from 1.0 to 2.0 s, quiet until 3.0 s.
fn levels() -> Vec<f32> {
    (0..300).map(|sample| if (100..200).contains(&sample) { 0.95 } else { 0.05 }).collect()
}

fn csv() -> String {
    levels().iter().fold("level\n".to_owned(), |mut text, level| {
        writeln!(text, "{level}").expect("a string takes text");
        text
    })
}

/// Runs `limpet try` on a recording with this name and content.
fn play(package: &Package, name: &str, content: &[u8], arguments: &[&str]) -> program::Outcome {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join(name);
    std::fs::write(&path, content).expect("a temporary file can be written");
    let fixed = ["try", program::text_of(package.path()), program::text_of(&path)];
    program::run("limpet", &[&fixed, arguments].concat())
}

#[test]
fn every_window_of_a_recording_is_a_result_of_the_contract() {
    let package = Package::loudness();
    let raw: Vec<u8> = levels().iter().flat_map(|level| level.to_le_bytes()).collect();
    for (name, content, more) in [("levels.csv", csv().into_bytes(), &[][..]), ("levels.raw", raw, &["--type", "f32"])]
    {
        let played = play(&package, name, &content, &[&["--json"], more].concat()).expect_code(0);
        let results: Vec<ResultRecord> = played
            .stdout
            .lines()
            .map(|line| ResultRecord::from_json(line.as_bytes()).expect("a reader of the contract takes it"))
            .collect();
        assert_eq!(results.len(), (300 - WINDOW) / HOP + 1, "{name}");
        for (at, result) in results.iter().enumerate() {
            assert_eq!(result.window.first as usize, at * HOP, "{name}");
        }
        let triggers: Vec<u64> = results.iter().filter(|r| r.trigger).map(|r| r.window.last).collect();
        assert_eq!(triggers, [104], "{name}: once, as soon as the newer half of a window is loud");
    }
}

#[test]
fn what_was_expected_makes_it_a_test() {
    let package = Package::loudness();
    play(&package, "levels.csv", csv().as_bytes(), &["--expect", "1.0-2.0:loud"]).expect_code(0);
    play(&package, "levels.csv", csv().as_bytes(), &["--expect", "2.2-2.9:loud"]).expect_code(1).expect_complaint(&[
        "loud",
        "2.2",
        "did not come",
    ]);
}

#[test]
fn labels_other_than_the_triggers_are_expected_of_most_windows() {
    let package = Package::loudness();
    let with = |expectations: &[&str]| {
        let arguments: Vec<&str> = expectations.iter().flat_map(|expected| ["--expect", expected]).collect();
        play(&package, "levels.csv", csv().as_bytes(), &arguments)
    };
    with(&["0.0-0.9:quiet", "1.0-2.0:loud", "2.1-3.0:quiet"]).expect_code(0);
    with(&["1.0-2.0:quiet", "1.0-2.0:loud"]).expect_code(1).expect_complaint(&["quiet", "best label of only"]);
    // The trigger is expected nowhere.
    with(&["0.0-0.9:quiet"]).expect_code(1).expect_complaint(&["trigger 'loud'", "not expected"]);
    with(&["0.0-0.9:laud"]).expect_code(64).expect_complaint(&["laud", "loud, quiet"]);
}

#[test]
fn channels_of_a_raw_file_are_counted_by_its_owner() {
    let package = Package::loudness();
    // Four channels, of which the third has the level.
    let raw: Vec<u8> =
        levels().iter().flat_map(|level| [0.5, 0.9, *level, 0.1]).flat_map(|value| value.to_le_bytes()).collect();
    let with = |arguments: &[&str]| play(&package, "levels.raw", &raw, &[&["--type", "f32"], arguments].concat());
    with(&["--channels", "2", "--of", "4", "--expect", "1.0-2.0:loud"]).expect_code(0);
    with(&["--channels", "2"]).expect_code(64).expect_complaint(&["levels.raw", "--of"]);
    with(&["--channels", "2", "--of", "0"]).expect_code(64);
    with(&["--channels", "2", "--of", "7"]).expect_code(1).expect_complaint(&["4800 bytes", "7 × f32"]);
    // Where the file says it, nobody needs to, and whoever says otherwise is wrong.
    play(&package, "levels.csv", csv().as_bytes(), &["--of", "2"]).expect_code(64).expect_complaint(&["--of 2", "1 "]);
}

/// Classes `more` and `less` by a hundred times the mean of a window's newer half, which overflows before its input
/// does.
fn steep() -> Package {
    let manifest = format!(
        r#"format = 1
[model]
name = "steep"
version = "1.0.0"
task = "classification"
[[variant]]
file = "f32.onnx"
[[input]]
kind = "series"
rate_hz = 100
channels = [{{ name = "level", unit = "full scale" }}]
window = {{ frames = {WINDOW}, hop = {HOP} }}
"#
    );
    let mut weights = [0.0; 2 * WINDOW];
    weights[2 * (WINDOW - HOP)..].copy_from_slice(&[20.0, -20.0].repeat(HOP));
    let graph = graph::gemm(WINDOW, 2, &weights, &[0.0, 100.0]);
    let package = Package::new(&manifest, &[("f32.onnx", &graph), ("labels.txt", b"more\nless\n")]);
    let (mut samples, mut output) = (Vec::new(), Vec::new());
    for vector in 0..16 {
        // The order of a window's samples makes the answer, or the proof would not take them as golden.
        let level = if vector % 2 == 0 { 0.75 + 0.015 * vector as f32 } else { 0.01 * vector as f32 };
        let wobble = |sample: usize| 0.01 * (sample as f32 - 2.0);
        samples.extend((0..WINDOW - HOP).map(|sample| 1.0 - level + wobble(sample)));
        samples.extend((0..HOP).map(|sample| level + wobble(sample)));
        output.extend([100.0 * level, 100.0 - 100.0 * level]);
    }
    let tensors = [
        ("samples", Tensor::f32(&[16, WINDOW, 1], &samples)),
        ("features", Tensor::f32(&[16, WINDOW], &samples)),
        ("output", Tensor::f32(&[16, 2], &output)),
    ];
    write_safetensors(&package.file("golden.safetensors"), &tensors, &[]);
    package
}

#[test]
fn windows_without_a_judgement_are_counted_and_explained() {
    let package = steep();
    let half = [["0.5\n"; WINDOW], ["1e38\n"; WINDOW]].concat().concat();
    let played = play(&package, "half.csv", half.as_bytes(), &[]).expect_code(1);
    assert_eq!(played.stdout.lines().count(), 1, "{}", played.stderr);
    played.expect_complaint(&["not every window could be judged", "2 invalid"]).expect_complaint(&["WARN", "try"]);
    // With no result at all the reason is not that the recording is too short.
    let all = ["1e38\n"; WINDOW].concat();
    let played = play(&package, "all.csv", all.as_bytes(), &["--json"]).expect_code(1);
    assert!(!played.stderr.contains("no window was complete"), "{}", played.stderr);
    played.expect_complaint(&["not every window could be judged", "1 invalid"]);
}

#[test]
fn who_stops_reading_results_breaks_nothing() {
    let package = Package::loudness();
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("levels.csv");
    std::fs::write(&path, csv()).expect("a temporary file can be written");
    // The results are not read, and what was expected still counts.
    for (expectations, code) in [(&[][..], 0), (&["--expect", "1.0-2.0:loud"], 0), (&["--expect", "2.2-2.9:loud"], 1)] {
        let mut child = program::command("limpet")
            .arg("try")
            .args([package.path(), &path])
            .arg("--json")
            .args(expectations)
            .spawn()
            .expect("the built binary starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("it ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{expectations:?}: {stderr}");
        assert!(!stderr.contains("panicked") && !stderr.contains("pipe"), "{stderr}");
    }
}

#[test]
fn the_real_clock_gives_the_same_answers() {
    let package = Package::loudness();
    let played = play(&package, "levels.csv", csv().as_bytes(), &["--json", "--realtime", "--expect", "1.0-2.0:loud"]);
    let played = played.expect_code(0);
    let results: Vec<serde_json::Value> =
        played.stdout.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    // The queue of a real clock may drop windows on a busy machine, and never invents one.
    assert!(results.len() <= (300 - WINDOW) / HOP + 1);
    let trigger = results.iter().find(|result| result["trigger"] == true).expect("it was expected and came");
    assert_eq!(trigger["label"], json!("loud"));
}

#[test]
fn recordings_that_do_not_fit_are_refused_in_one_sentence() {
    let package = Package::loudness();
    let cases: [(&str, &[u8], i32, &[&str]); 4] = [
        ("levels.mp3", b"", 64, &["levels.mp3", ".wav"]),
        ("levels.csv", b"1.0\nx\n", 1, &["levels.csv", "line 2"]),
        ("levels.raw", b"\0\0\0", 1, &["levels.raw", "3 bytes"]),
        ("levels.csv", b"0.5\n0.5\n", 1, &["no window was complete", "10"]),
    ];
    for (name, content, code, words) in cases {
        play(&package, name, content, &[]).expect_code(code).expect_complaint(words);
    }
}

#[test]
fn a_recording_for_a_model_without_samples_is_usage() {
    play(&Package::scores(), "levels.csv", csv().as_bytes(), &[]).expect_code(64).expect_complaint(&["series"]);
}
