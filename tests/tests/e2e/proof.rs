//! The proof: what does not give its golden outputs does not serve.

use limpet_tests::agent::Home;
use limpet_tests::package::{Tensor, write_safetensors};
use limpet_tests::{Agent, Broker, Client, Package, program, shared};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::{Bench, levels, local, uplink};

/// Golden vectors for [`Package::scores`] that its graph does not give: each class where another should be.
pub(crate) fn wrong_golden(package: &Package) {
    let path = package.file("golden.safetensors");
    let bytes = std::fs::read(&path).expect("the package has it");
    let golden = SafeTensors::deserialize(&bytes).expect("it was written by the tests");
    let read = |name: &str| -> Vec<f32> {
        let data = golden.tensor(name).expect("it is there").data().to_vec();
        data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect()
    };
    let (input, mut output) = (read("input"), read("output"));
    output.chunks_exact_mut(3).for_each(|vector| vector.rotate_left(1));
    let tensors = [("input", Tensor::f32(&[12, 3], &input)), ("output", Tensor::f32(&[12, 3], &output))];
    write_safetensors(&path, &tensors, &[]);
}

fn prove_json(arguments: &[&str], code: i32) -> Value {
    let arguments: Vec<&str> = ["prove"].iter().chain(arguments).chain(&["--json"]).copied().collect();
    let outcome = program::run("limpet", &arguments).expect_code(code);
    serde_json::from_str(outcome.stdout.trim_end()).unwrap_or_else(|error| panic!("{error}: {}", outcome.stdout))
}

#[test]
fn a_package_that_gives_its_golden_outputs_passes_and_says_how() {
    let package = Package::scores();
    let table = program::run("limpet", &["prove", program::text_of(package.path())]).expect_code(0).stdout;
    for word in ["tract", "f32.onnx", "passed"] {
        assert!(table.contains(word), "no {word} in:\n{table}");
    }
    let report = prove_json(&[program::text_of(package.path())], 0);
    let keys = |value: &Value| -> Vec<String> {
        let mut keys: Vec<String> = value.as_object().expect("an object").keys().cloned().collect();
        keys.sort_unstable();
        keys
    };
    assert_eq!(keys(&report), ["chosen", "rows", "verdict"]);
    assert_eq!(report["verdict"], "passed");
    assert_eq!(report["chosen"], serde_json::json!({ "engine": "tract", "variant": "f32.onnx" }));
    let row = &report["rows"][0];
    let expected = [
        "engine",
        "load_ms",
        "mean_abs_error",
        "mean_us",
        "memory_bytes",
        "nmae",
        "p50_us",
        "p99_us",
        "reason",
        "runs",
        "top1_agreement",
        "variant",
        "verdict",
    ];
    assert_eq!(keys(row), expected);
    assert_eq!((&row["verdict"], &row["top1_agreement"]), (&"passed".into(), &1.0.into()));
    assert!(row["nmae"].as_f64().is_some_and(|nmae| nmae < 1e-5), "{row}");
    assert!(row["p50_us"].as_f64().is_some_and(|p50| p50 > 0.0), "{row}");
}

#[test]
fn a_package_that_gives_other_outputs_fails_with_exit_code_one() {
    let package = Package::scores();
    wrong_golden(&package);
    let report = prove_json(&[program::text_of(package.path())], 1);
    assert_eq!((&report["verdict"], &report["chosen"]), (&"failed".into(), &Value::Null));
    let row = &report["rows"][0];
    assert_eq!((&row["verdict"], &row["top1_agreement"]), (&"failed".into(), &0.0.into()));
    assert!(row["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{row}");
}

#[test]
fn a_damaged_graph_is_refused_and_the_other_variant_serves() {
    let package = Package::scores();
    std::fs::copy(package.file("f32.onnx"), package.file("broken.onnx")).expect("a temporary file can be copied");
    package.cut("broken.onnx", 0.5);
    package.edit("[[input]]", "[[variant]]\nfile = \"broken.onnx\"\n[[input]]");
    let report = prove_json(&[program::text_of(package.path())], 0);
    assert_eq!(report["chosen"]["variant"], "f32.onnx");
    let rows = report["rows"].as_array().expect("rows are a list");
    let broken = rows.iter().find(|row| row["variant"] == "broken.onnx").expect("every variant has a row");
    assert_ne!(broken["verdict"], "passed");
    assert!(broken["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{broken}");
}

#[test]
fn a_package_with_nothing_but_a_damaged_graph_does_not_pass() {
    for share in [0.0, 0.1, 0.5, 0.9, 0.99] {
        let package = Package::scores();
        package.cut("f32.onnx", share);
        let report = prove_json(&[program::text_of(package.path())], 1);
        assert_ne!(report["verdict"], "passed", "cut to {share}");
        assert_eq!(report["chosen"], Value::Null);
    }
}

#[test]
fn a_damaged_tflite_file_does_not_pass() {
    let Some(model) = shared("models/mlperf-tiny/anomaly-detection/int8.tflite") else { return };
    let golden = model.with_file_name("int8.golden.safetensors");
    let whole = std::fs::read(&model).expect("it is there");
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let damaged = folder.path().join("int8.tflite");
    for share in [0.001, 0.3, 0.7, 0.999] {
        std::fs::write(&damaged, &whole[..(whole.len() as f64 * share) as usize]).expect("it can be written");
        let report = prove_json(&[program::text_of(&damaged), "--golden", program::text_of(&golden)], 1);
        assert_ne!(report["verdict"], "passed", "cut to {share}: {report}");
    }
}

#[test]
fn golden_vectors_that_prove_nothing_are_refused() {
    let package = Package::scores();
    let same = [0.9_f32, 0.1, 0.1].repeat(12);
    let tensors = [("input", Tensor::f32(&[12, 3], &same)), ("output", Tensor::f32(&[12, 3], &same))];
    write_safetensors(&package.file("golden.safetensors"), &tensors, &[]);
    let refused = program::run("limpet", &["prove", program::text_of(package.path())]);
    assert!(matches!(refused.code, Some(1 | 78)), "{refused:?}");
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(said.contains("golden.safetensors") && said.contains("proves nothing"), "{said}");
}

#[test]
fn a_window_that_does_not_match_the_graphs_input_is_refused_with_both_shapes() {
    let package = Package::loudness();
    package.edit("frames = 10", "frames = 12");
    let refused = program::run("limpet", &["prove", program::text_of(package.path())]);
    assert!(matches!(refused.code, Some(1 | 78)), "{refused:?}");
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(said.contains("12") && said.contains("10"), "{said}");
}

#[test]
fn a_bare_graph_is_proved_against_golden_vectors_and_its_outputs_are_kept() {
    let package = Package::scores();
    let (model, golden) = (package.file("f32.onnx"), package.file("golden.safetensors"));
    let outputs = tempfile::tempdir().expect("a temporary folder can be made");
    let arguments = [
        program::text_of(&model),
        "--golden",
        program::text_of(&golden),
        "--outputs",
        program::text_of(outputs.path()),
    ];
    let report = prove_json(&arguments, 0);
    assert_eq!(report["chosen"], serde_json::json!({ "engine": "tract", "variant": "f32.onnx" }));
    let given = std::fs::read(outputs.path().join("tract.f32.onnx.safetensors"))
        .or_else(|_| std::fs::read(outputs.path().join("tract.f32.safetensors")))
        .unwrap_or_else(|error| {
            let found: Vec<_> = std::fs::read_dir(outputs.path()).into_iter().flatten().flatten().collect();
            panic!("{error}; there are {found:?}")
        });
    let recorded = std::fs::read(&golden).expect("it is there");
    let (given, recorded) = (SafeTensors::deserialize(&given), SafeTensors::deserialize(&recorded));
    let tensor = |file: &SafeTensors<'_>| file.tensor("output").map(|t| (t.shape().to_vec(), t.data().to_vec()));
    let (given, recorded) = (given.expect("a safetensors file"), recorded.expect("a safetensors file"));
    assert_eq!(tensor(&given).expect("output"), tensor(&recorded).expect("output"), "y = x gives what was recorded");
}

#[test]
fn a_bare_graph_without_golden_vectors_is_usage() {
    let package = Package::scores();
    program::run("limpet", &["prove", program::text_of(&package.file("f32.onnx"))])
        .expect_code(64)
        .expect_complaint(&["--golden"]);
}

#[test]
fn the_reference_models_pass_on_both_engines_and_the_faster_is_chosen() {
    for (file, engine) in [("int8.tflite", "tflite"), ("int8-qdq.onnx", "tract")] {
        let Some(model) = shared(&format!("models/mlperf-tiny/keyword-spotting/{file}")) else { return };
        let golden = model.with_file_name("int8.golden.safetensors");
        let report = prove_json(&[program::text_of(&model), "--golden", program::text_of(&golden)], 0);
        assert_eq!(report["chosen"]["engine"], engine);
        let rows = report["rows"].as_array().expect("rows are a list");
        let row = rows.iter().find(|row| row["engine"] == engine).expect("the engine has a row");
        // On a processor with VNNI XNNPACK gives a tie in one of the 48 vectors, and a tie is a disagreement.
        assert!(row["top1_agreement"].as_f64().is_some_and(|agreement| agreement > 0.97), "{row}");
        assert!(row["nmae"].as_f64().is_some_and(|nmae| nmae <= 0.12), "{row}");
    }
}

#[test]
fn run_refuses_a_model_that_fails_its_proof_and_serves_the_others() {
    let broker = Broker::start();
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/#"]);
    let (good, bad) = (Package::scores(), Package::scores_named("wrong"));
    wrong_golden(&bad);
    let second = format!(
        "[[pipeline]]\nname = \"second\"\nsource = \"scores\"\nmodel = \"{}\"\npublish = \"every\"\n",
        bad.display()
    );
    let agent = Agent::start(&format!("{}{}{second}", local(&broker), levels(&good, "", "")));
    let failed = agent.wait_for_model(&mut client, "wrong", "failed");
    assert!(
        failed["failure"].as_str().is_some_and(|why| why.contains("tract") || why.contains("f32.onnx")),
        "{failed}"
    );
    let event = client
        .wait_for("the event", |message| message.topic == uplink("event") && message.json()["kind"] == "model-refused");
    assert_eq!((&event.json()["model"], &event.json()["pipeline"]), (&"wrong".into(), &"second".into()));
    agent.wait_for_log(&["ERROR", "wrong", "second"]);
    broker.wait_subscribed("plant/+/scores");
    client.publish("plant/a/scores", "[0.9, 0.1, 0.1]");
    assert_eq!(client.wait_on(&uplink("result/levels/a")).json()["label"], "low");
    assert!(client.came_on(&uplink("result/second/a")).is_empty());
}

#[test]
fn a_proof_is_kept_and_a_changed_package_needs_a_new_one() {
    let broker = Broker::start();
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/#"]);
    let package = Package::scores_named("kept");
    let config = format!("{}{}", local(&broker), levels(&package, "", ""));
    let agent = Agent::start_in(Home::empty(), &config);
    agent.wait_for_model(&mut client, "kept", "proving");
    agent.wait_for_model(&mut client, "kept", "active");
    let (_, home, _) = agent.stop();
    client.came_on(&uplink("models"));

    let agent = Agent::start_in(home, &config);
    client.wait_for("online", |m| m.topic == uplink("status") && m.json()["state"] == "online");
    agent.wait_for_model(&mut client, "kept", "active");
    let (_, home, log) = agent.stop();
    assert!(!log.iter().any(|line| line.contains("proving")), "{}", log.join("\n"));
    client.came_on(&uplink("models"));

    package.edit("above = 0.8", "above = 0.7");
    let agent = Agent::start_in(home, &config);
    agent.wait_for_model(&mut client, "kept", "proving");
    agent.wait_for_model(&mut client, "kept", "active");
}

#[test]
fn the_same_model_serves_two_pipelines_after_one_proof() {
    let package = Package::scores();
    let second = format!(
        "[[pipeline]]\nname = \"second\"\nsource = \"scores\"\nmodel = \"{}\"\npublish = \"every\"\n",
        package.display()
    );
    let mut bench = Bench::start(&format!("{}{second}", levels(&package, "", "")), "plant/+/scores", "scores");
    bench.score("a", [0.1, 0.9, 0.1]);
    assert_eq!(bench.result("a")["label"], "middle");
    assert_eq!(bench.client.wait_on(&uplink("result/second/a")).json()["label"], "middle");
}
