//! The bench: what it says of a model, and what it refuses to say.

use limpet_tests::{Package, graph, program, root};
use serde_json::Value;

use crate::proof::wrong_golden;

/// Runs `limpet-lab bench --json` and reads what it found.
fn bench(arguments: &[&str]) -> Value {
    let arguments: Vec<&str> = ["bench"].iter().chain(arguments).chain(&["--json"]).copied().collect();
    let outcome = program::run("limpet-lab", &arguments).expect_code(0);
    serde_json::from_str(outcome.stdout.trim_end()).unwrap_or_else(|error| panic!("{error}: {}", outcome.stdout))
}

fn rows(results: &Value) -> &Vec<Value> {
    results["rows"].as_array().expect("rows are a list")
}

/// That a tail is a percentile of enough queries, or else the maximum by that name.
#[track_caller]
fn assert_tail(latency: &Value) {
    let queries = latency["queries"].as_u64().expect("queries are counted");
    let tail = &latency["tail"];
    match tail["is"].as_str() {
        Some("p90") => assert!(queries >= 64, "{latency}"),
        Some("p99") => assert!(queries >= 662, "{latency}"),
        Some("max") => assert!(queries < 662, "{latency}"),
        _ => panic!("{latency}"),
    }
    let (p50, tail) = (latency["p50_us"].as_f64(), tail["us"].as_f64());
    assert!(p50 > Some(0.0) && tail >= p50, "{latency}");
}

#[test]
fn every_scenario_is_measured_on_every_engine_and_drawn_on_one_page() {
    let model = root().join("models/motor-health");
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let page = folder.path().join("report.html");
    let results = bench(&[
        program::text_of(&model),
        "--engine",
        "all",
        "--seconds",
        "0.2",
        "--bound",
        "10ms",
        "--batch",
        "1,8",
        "--threads",
        "2,1",
        "--report",
        program::text_of(&page),
    ]);
    assert_eq!((&results["subject"], &results["inputs"]), (&"motor-health 1.0.0".into(), &"golden".into()));
    assert!(results["machine"]["cores"].as_u64() >= Some(1), "{results}");
    let found: Vec<(&str, &str, u64, u64)> = rows(&results)
        .iter()
        .map(|row| {
            let word = |key: &str| row[key].as_str().unwrap_or_else(|| panic!("no {key} in {row}"));
            let number = |key: &str| row[key].as_u64().unwrap_or_else(|| panic!("no {key} in {row}"));
            (word("engine"), word("scenario"), number("threads"), number("batch"))
        })
        .collect();
    for engine in ["tflite", "tract"] {
        for threads in [1, 2] {
            for (scenario, batch) in
                [("single-stream", 1), ("multi-stream", 8), ("server", 1), ("offline", 1), ("offline", 8)]
            {
                // tract runs a graph on one thread.
                let expected = engine == "tflite" || threads == 1 || !scenario.ends_with("stream");
                assert_eq!(
                    found.contains(&(engine, scenario, threads, batch)),
                    expected,
                    "{engine} {scenario} {threads}"
                );
            }
        }
    }
    for row in rows(&results) {
        if row["scenario"] == "server" {
            let sweep = row["sweep"].as_array().unwrap_or_else(|| panic!("no sweep in {row}"));
            sweep.iter().for_each(assert_tail);
            // On a machine that others use it may be that no rate keeps the bound; then it says so.
            match row["per_second"].as_f64() {
                Some(rate) => {
                    let at = sweep.iter().find(|point| point["rate"].as_f64() == Some(rate)).expect("it was tried");
                    assert_eq!(at["kept"], true, "{at}");
                    assert!(row["latency"]["tail"]["us"].as_f64() <= Some(10_000.0), "{row}");
                }
                None => assert!(row["note"].is_string(), "{row}"),
            }
        } else {
            assert_tail(&row["latency"]);
            assert!(row["per_second"].as_f64() > Some(0.0), "{row}");
        }
    }
    let page = std::fs::read_to_string(&page).expect("the report was written");
    for foreign in ["http:", "https:", "<script", "<link", "<img", "@import", "url("] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    for word in ["motor-health 1.0.0", "int8.tflite", "int8-qdq.onnx", "bound 10 ms", "instruction sets", "<svg"] {
        assert!(page.contains(word), "no {word} in the report");
    }
}

#[test]
fn a_model_that_does_not_give_its_golden_outputs_is_not_timed() {
    let package = Package::scores();
    wrong_golden(&package);
    let outcome = program::run("limpet-lab", &["bench", program::text_of(package.path()), "--json"]).expect_code(1);
    let results: Value = serde_json::from_str(outcome.stdout.trim_end()).expect("it says what it found");
    assert!(rows(&results).is_empty(), "{results}");
    let not_timed = &results["not_timed"][0];
    assert_eq!((&not_timed["engine"], &not_timed["failed"]), (&"tract".into(), &true.into()));
    assert!(not_timed["reason"].as_str().is_some_and(|reason| reason.contains("top-1")), "{not_timed}");
}

#[test]
fn a_bare_graph_is_fed_noise_and_the_answer_says_so_unless_there_are_golden_vectors() {
    let package = Package::scores();
    let (graph, golden) = (package.file("f32.onnx"), package.file("golden.safetensors"));
    let short = ["--scenario", "single-stream", "--seconds", "0.1"];
    let arguments = [&["bench", program::text_of(&graph)][..], &short].concat();
    let shown = program::run("limpet-lab", &arguments).expect_code(0).stdout;
    assert!(shown.contains("not checked") && shown.contains("p90"), "{shown}");
    let results = bench(&[&[program::text_of(&graph), "--golden", program::text_of(&golden)][..], &short].concat());
    assert_eq!(results["inputs"], "golden");
    assert_eq!(rows(&results)[0]["latency"]["tail"]["is"], "p90");
}

#[test]
fn a_batch_that_the_graph_does_not_take_is_told_and_the_others_are_measured() {
    let package = Package::scores();
    std::fs::write(package.file("f32.onnx"), graph::reshape(3)).expect("a temporary file can be written");
    let subject = program::text_of(package.path());
    let short = ["--scenario", "offline", "--seconds", "0.1", "--batch"];
    let results = bench(&[&[subject][..], &short, &["8,1"]].concat());
    assert_eq!(rows(&results).iter().map(|row| row["batch"].as_u64()).collect::<Vec<_>>(), [Some(1)]);
    let note = results["notes"][0].as_str().expect("it says why");
    assert!(note.contains("batch 8") && note.contains("runs one by one: tract"), "{note}");
    let arguments = [&["bench", subject][..], &short, &["8"]].concat();
    let shown = program::run("limpet-lab", &arguments).expect_code(1).stdout;
    assert!(shown.contains("runs one by one"), "{shown}");
}

#[test]
fn tuning_keeps_what_is_best() {
    let (package, state) = (Package::scores(), tempfile::tempdir().expect("a temporary folder can be made"));
    let arguments = ["--tune", "--time", "6s", "--for", "throughput", "--threads", "1", "--batch", "1"];
    let state = program::text_of(state.path());
    let sweep = bench(&[&[program::text_of(package.path()), "--state", state][..], &arguments].concat());
    assert_eq!((&sweep["objective"], &sweep["chosen"]), (&"throughput".into(), &0.into()));
    let best = &sweep["combinations"][0];
    assert_eq!((&best["engine"], &best["threads"], &best["batch"]), (&"tract".into(), &1.into(), &1.into()));
    assert!(best["samples_per_second"].as_f64() > Some(0.0), "{best}");
    let kept = std::fs::read_dir(std::path::Path::new(state).join("proofs")).expect("the folder was made");
    let paths = kept.map(|entry| entry.expect("the folder can be read").path());
    let tuned: Vec<_> = paths.filter(|path| path.extension().is_some_and(|extension| extension == "tuning")).collect();
    let [tuned] = &tuned[..] else { panic!("expected one tuning, found {tuned:?}") };
    let tuned: Value = serde_json::from_slice(&std::fs::read(tuned).expect("it is there")).expect("it is JSON");
    let expected = serde_json::json!({
        "choice": { "engine": "tract", "variant": "f32.onnx" }, "threads": 1, "batch": 1
    });
    assert_eq!(tuned["tuning"], expected);
}

#[test]
fn what_cannot_be_measured_is_refused_in_one_sentence() {
    let package = Package::scores();
    let subject = program::text_of(package.path());
    for (arguments, code, words) in [
        (&["--engine", "onnx"][..], 64, &["--engine onnx", "tract"][..]),
        (&["--seconds", "0"], 64, &["--seconds 0"]),
        (&["--seconds", "-1"], 64, &["--seconds -1"]),
        (&["--bound", "0ms"], 64, &["--bound", "above 0"]),
        (&["--bound", "-5ms"], 64, &["-5ms", "duration"]),
        (&["--batch", "0"], 64, &["--batch 0"]),
        (&["--threads", "1,0"], 64, &["--threads 0"]),
        (&["--tune", "--time", "0s"], 64, &["--time", "above 0"]),
        (&["--tune", "--batch", "8"], 64, &["--for latency", "--batch"]),
        (&["--for", "latency"], 64, &["Usage", "--tune"]),
        (&["--scenario", "online"], 64, &["online", "offline"]),
        (&["--variant", "int4.onnx"], 64, &["int4.onnx", "f32.onnx"]),
        (&["--engine", "tflite"], 64, &["tflite", "f32.onnx"]),
        (&["--report", "/nowhere/report.html"], 1, &["/nowhere/report.html"]),
    ] {
        let arguments = [&["bench", subject][..], arguments].concat();
        program::run("limpet-lab", &arguments).expect_code(code).expect_complaint(words);
    }
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let empty = program::text_of(folder.path());
    program::run("limpet-lab", &["bench", empty]).expect_code(1).expect_complaint(&["model.toml"]);
}
