//! The agent's local socket: status, inference, and who may ask.

use std::os::unix::fs::PermissionsExt as _;

use limpet_tests::{Package, local, program};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::{Bench, assert_close, assert_says, levels, named};

/// The first `rows` golden vectors of [`Package::scores`]: inputs and outputs.
fn golden(package: &Package, rows: usize) -> (Vec<f32>, Vec<f32>) {
    let bytes = std::fs::read(package.file("golden.safetensors")).expect("the package has it");
    let golden = SafeTensors::deserialize(&bytes).expect("it was written by the tests");
    let read = |name: &str| -> Vec<f32> {
        let data = golden.tensor(name).expect("it is there").data();
        let values = data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")));
        values.take(rows * 3).collect()
    };
    (read("input"), read("output"))
}

fn request(rows: usize, data: &[f32]) -> Value {
    json!({ "id": "7", "inputs": [{ "name": "input", "shape": [rows, 3], "datatype": "FP32", "data": data }] })
}

#[test]
fn a_model_gives_its_golden_outputs_over_the_socket() {
    let bench = Bench::levels("", "");
    let socket = bench.agent.home().socket();
    let metadata = local::request(&socket, "GET", "/v2/models/scores", None).expect(200);
    assert_eq!(metadata["inputs"], json!([{ "name": "input", "datatype": "FP32", "shape": [-1, 3] }]));
    let package = Package::scores();
    for rows in [1, 3] {
        let (input, output) = golden(&package, rows);
        let answer =
            local::request(&socket, "POST", "/v2/models/scores/infer", Some(&request(rows, &input))).expect(200);
        assert_eq!((&answer["id"], &answer["model_version"]), (&"7".into(), &"1.0.0".into()));
        let given = &answer["outputs"][0];
        assert_eq!((&given["name"], &given["shape"]), (&"output".into(), &json!([rows, 3])));
        let data = given["data"].as_array().expect("data are a list");
        assert_eq!(data.len(), output.len());
        for (found, expected) in data.iter().zip(&output) {
            assert_close(found, f64::from(*expected));
        }
    }
}

#[test]
fn realtime_requests_and_models_that_are_not_there_are_refused() {
    let mut bench = Bench::levels("", "");
    let socket = bench.agent.home().socket();
    let (input, _) = golden(&Package::scores(), 1);
    let mut realtime = request(1, &input);
    realtime["parameters"] = json!({ "class": "realtime" });
    let refused = local::request(&socket, "POST", "/v2/models/scores/infer", Some(&realtime)).expect(403);
    assert_says(&refused["error"], &["realtime", "admitted"]);
    let unknown = local::request(&socket, "POST", "/v2/models/scoers/infer", Some(&request(1, &input))).expect(404);
    assert_says(&unknown["error"], &["scoers"]);
    let short = local::request(&socket, "POST", "/v2/models/scores/infer", Some(&request(2, &input))).expect(400);
    assert_says(&short["error"], &["input"]);
    bench.score("a", [0.9, 0.0, 0.0]);
    assert_eq!(bench.result("a")["label"], "low");
}

#[test]
fn the_socket_is_for_owner_and_group_and_goes_with_the_agent() {
    let bench = Bench::levels("", "");
    let socket = bench.agent.home().socket();
    let mode = std::fs::metadata(&socket).expect("the agent made it").permissions().mode();
    assert_eq!(mode & 0o7777, 0o660);
    let (status, _home, _) = bench.agent.stop();
    assert_eq!(status.code(), Some(0));
    assert!(!socket.exists(), "a stop takes the socket away");
}

#[test]
fn status_is_a_table_for_people_and_an_object_for_programs() {
    let mut bench = Bench::levels("", "");
    bench.score("a", [0.9, 0.0, 0.0]);
    bench.result("a");
    let path = bench.agent.home().path().join("limpet.toml");
    let path = program::text_of(&path);
    let table = program::run("limpet", &["status", "--streams", "--config", path]).expect_code(0).stdout;
    let words = ["limpet ", " on gw", "cores admitted", "local up", "levels", "realtime", "scores", "1.0.0", "active"];
    assert_says(&table.into(), &words);
    let printed = program::run("limpet", &["status", "--json", "--config", path]).expect_code(0).stdout;
    let report: Value = serde_json::from_str(printed.trim_end()).expect("it is one object");
    assert_eq!((&report["v"], &report["type"]), (&1.into(), &"status-report".into()));
    let levels = named(&report, "pipelines", "levels");
    assert_eq!((&levels["windows"], &levels["outcomes"]["result"]), (&1.into(), &1.into()));
    let stream = named(levels, "streams", "a");
    assert_eq!((&stream["windows"], &stream["batches"]), (&1.into(), &json!({ "1": 1 })));
    let (_, home, _) = bench.agent.stop();
    let path = home.path().join("limpet.toml");
    program::run("limpet", &["status", "--config", program::text_of(&path)])
        .expect_code(69)
        .expect_complaint(&["limpet.sock", "is limpet running?"]);
}

#[test]
fn a_second_agent_on_the_same_run_directory_is_refused_and_the_first_goes_on() {
    let package = Package::scores();
    let mut bench = Bench::start(&levels(&package, "", ""), "plant/+/scores", "scores");
    let path = bench.agent.home().path().join("limpet.toml");
    program::run("limpet", &["run", "--config", program::text_of(&path)])
        .expect_code(78)
        .expect_complaint(&["another limpet runs with this run directory", "gateway.run"]);
    assert_eq!(bench.agent.status()["gateway"], "gw");
    bench.score("a", [0.9, 0.0, 0.0]);
    assert_eq!(bench.result("a")["label"], "low");
    assert!(bench.agent.runs());
}

#[test]
fn the_last_results_stay_to_be_looked_at_after_they_were_delivered() {
    let mut bench = Bench::levels("", "");
    for (stream, low) in [("a", 0.9), ("b", 0.8), ("a", 0.1)] {
        bench.score(stream, [low, 0.5, 0.0]);
        bench.result(stream);
    }
    let path = bench.agent.home().path().join("limpet.toml");
    let config = program::text_of(&path);
    let ask = |more: &[&str]| program::run("limpet", &[&["results", "levels", "--config", config], more].concat());
    let shown = ask(&[]).expect_code(0).stdout;
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), 4, "{shown}");
    assert!(lines[0].starts_with("captured") && lines[1].contains("low") && lines[3].contains("middle"), "{shown}");
    let json = ask(&["--json", "--stream", "a", "--last", "1", "--since", "1h"]).expect_code(0).stdout;
    let result: Value = serde_json::from_str(&json).expect("one result object");
    assert_eq!(
        (&result["type"], &result["stream"], &result["label"]),
        (&"result".into(), &"a".into(), &"middle".into())
    );
    let none = ask(&["--stream", "c"]).expect_code(0).stdout;
    assert!(none.contains("has published nothing of stream c since the agent started"), "{none}");
    let other = program::run("limpet", &["results", "level", "--config", config]);
    other.expect_code(64).expect_complaint(&["there is no pipeline 'level'; there are: levels"]);
}
