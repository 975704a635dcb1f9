//! Results: their content, their encodings, and which are published.

use std::collections::BTreeSet;
use std::io::Write as _;

use limpet_tests::{Agent, Broker, Client, program};
use limpet_wire::binary;
use limpet_wire::result::ResultRecord;
use serde_json::json;

use crate::{Bench, assert_close, samples, serial, uplink};

#[test]
fn a_result_says_what_where_and_when() {
    let mut bench = Bench::levels("", "");
    bench.score("Press-3", [0.25, 0.5, 0.125]);
    let message = bench.client.wait_on(&uplink("result/levels/Press-3"));
    assert_eq!(message.content_type.as_deref(), Some("application/json"));
    assert_eq!((message.qos, message.retained), (1, false));
    let result = message.json();
    assert_eq!(message.id.as_deref(), result["id"].as_str(), "the user property lets a consumer drop repeats");
    assert_eq!(serial(&result).1, 1);
    for (key, value) in [
        ("v", json!(1)),
        ("type", json!("result")),
        ("gateway", json!("gw")),
        ("pipeline", json!("levels")),
        ("stream", json!("Press-3")),
        ("model", json!("scores")),
        ("version", json!("1.0.0")),
        ("engine", json!("tract")),
        ("variant", json!("f32.onnx")),
        ("filled", json!(0)),
        ("label", json!("middle")),
        ("trigger", json!(false)),
        ("late", json!(false)),
    ] {
        assert_eq!(result[key], value, "{key}");
    }
    assert_close(&result["score"], 0.5);
    for (label, score) in [("low", 0.25), ("middle", 0.5), ("high", 0.125)] {
        assert_close(&result["scores"][label], score);
    }
    let parts: u64 = ["wait", "features", "queue", "compute", "decide"]
        .iter()
        .map(|part| result["latency_us"][part].as_u64().expect("every part is there"))
        .sum();
    assert_eq!(result["latency_us"]["total"], parts);
    ResultRecord::from_json(&message.payload).expect("a reader of the contract takes it");
}

#[test]
fn ids_count_from_one_without_gaps_and_streams_have_runs_of_their_own() {
    let mut bench = Bench::levels("", "");
    let mut runs = Vec::new();
    for stream in ["a", "b"] {
        for seq in 1..=20 {
            bench.score(stream, [0.9, 0.0, 0.0]);
            let result = bench.result(stream);
            let (run, found) = serial(&result);
            assert_eq!(found, seq, "{result}");
            runs.push(run);
        }
    }
    runs.dedup();
    assert_eq!(runs.len(), 2, "one run a stream");
}

#[test]
fn windows_overlap_by_the_hop_and_name_their_samples() {
    let mut bench = Bench::sound("");
    for sequence in 0..4 {
        bench.client.publish("plant/a/level", samples(sequence, &[0.1 * sequence as f32; 5]));
    }
    for window in 1..4_u64 {
        let result = bench.heard("a");
        assert_eq!(result["window"], json!({ "first": 5 * (window - 1), "last": 5 * window + 4 }));
        assert_close(&result["scores"]["loud"], 0.1 * window as f64);
    }
}

#[test]
fn a_message_may_hold_part_of_a_window_or_several() {
    let mut bench = Bench::sound("");
    let sizes = [1, 1, 3, 27, 2, 6];
    let mut sent = 0_u64;
    for (sequence, size) in sizes.iter().enumerate() {
        let values: Vec<f32> = (sent..sent + size).map(|sample| (sample % 10) as f32 / 10.0).collect();
        bench.client.publish("plant/a/level", samples(sequence as u32, &values));
        sent += size;
    }
    for window in 0..(sent - 10) / 5 + 1 {
        let result = bench.heard("a");
        assert_eq!(result["window"]["first"], window * 5);
        assert_close(&result["scores"]["loud"], if window % 2 == 0 { 0.7 } else { 0.2 });
    }
}

#[test]
fn changes_are_published_and_what_stays_the_same_is_not() {
    let mut bench = Bench::levels("", "publish = \"changes\"\ndeadband = 0.1");
    for scores in [[0.9, 0.0, 0.0], [0.91, 0.0, 0.0], [0.75, 0.0, 0.0], [0.0, 0.7, 0.0], [0.0, 0.72, 0.0]] {
        bench.score("a", scores);
    }
    bench.score("a", [0.0, 0.0, 0.7]);
    for (label, score) in [("low", 0.9), ("low", 0.75), ("middle", 0.7), ("high", 0.7)] {
        let result = bench.result("a");
        assert_eq!(result["label"], label);
        assert_close(&result["score"], score);
    }
}

#[test]
fn only_triggers_are_published_and_they_need_the_score_to_fall_first() {
    let mut bench = Bench::levels("", "publish = \"triggers\"\nheartbeat = \"0s\"");
    for high in [0.5, 0.85, 0.95, 0.8, 0.9] {
        bench.score("a", [0.1, 0.1, high]);
    }
    for high in [0.85, 0.9] {
        let result = bench.result("a");
        assert_eq!(result["trigger"], true);
        assert_close(&result["score"], high);
    }
}

#[test]
fn the_heartbeat_publishes_what_would_not_be() {
    let mut bench = Bench::levels("", "publish = \"triggers\"\nheartbeat = \"200ms\"");
    // Whichever comes once 200 ms have passed is published; none of them is a trigger or a change.
    let beat = bench.client.knock("plant/a/scores", "[0.9, 0.0, 0.0]", &uplink("result/levels/a")).json();
    assert_eq!((&beat["trigger"], &beat["label"]), (&json!(false), &json!("low")));
    assert_eq!(serial(&beat).1, 1);
}

#[test]
fn results_of_a_batch_are_json_lines_in_order() {
    let mut bench = Bench::levels("", "message_batch = { max = 5, delay = \"1m\" }");
    for step in 0..5 {
        bench.score("a", [0.9, 0.01 * f64::from(step), 0.0]);
    }
    let message = bench.client.wait_on(&uplink("result/levels/a"));
    assert_eq!(message.content_type.as_deref(), Some("application/x-ndjson"));
    assert_eq!(message.id, None, "one id would not do for five results");
    let results = message.json_lines();
    let numbers: Vec<u64> = results.iter().map(|result| serial(result).1).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5]);
}

#[test]
fn a_batch_goes_out_when_its_delay_is_over() {
    let mut bench = Bench::levels("", "message_batch = { max = 1000, delay = \"300ms\" }");
    bench.score("a", [0.9, 0.0, 0.0]);
    let message = bench.client.wait_on(&uplink("result/levels/a"));
    assert_eq!(message.json_lines().len(), 1);
}

#[test]
fn postcard_results_read_back_and_decode_to_the_same_json() {
    let mut bench = Bench::levels("", "encoding = \"postcard\"");
    bench.score("a", [0.25, 0.5, 0.125]);
    let message = bench.client.wait_on(&uplink("result/levels/a"));
    assert_eq!(message.content_type.as_deref(), Some("application/vnd.limpet.postcard"));
    let record = binary::read_result(&message.payload).expect("it is one item");
    assert_eq!(message.id, record.id().map(|id| id.to_string()));
    assert_eq!(record.verdict.label(), Some("middle"));
    let decoded = program::run_with("limpet-lab", &["decode"], &[], &message.payload).expect_code(0);
    let mut expected = Vec::new();
    record.to_json(&mut expected);
    assert_eq!(decoded.stdout.trim_end().as_bytes(), expected);
}

#[test]
fn a_batch_of_postcard_results_decodes_to_json_lines() {
    let mut bench = Bench::levels("", "encoding = \"postcard\"\nmessage_batch = { max = 3, delay = \"1m\" }");
    for _ in 0..3 {
        bench.score("a", [0.25, 0.5, 0.125]);
    }
    let message = bench.client.wait_on(&uplink("result/levels/a"));
    assert_eq!(message.content_type.as_deref(), Some("application/vnd.limpet.postcard"));
    let decoded = program::run_with("limpet-lab", &["decode"], &[], &message.payload).expect_code(0);
    let numbers: Vec<u64> = decoded
        .stdout
        .lines()
        .map(|line| ResultRecord::from_json(line.as_bytes()).expect("a result").serial.expect("an id").seq)
        .collect();
    assert_eq!(numbers, [1, 2, 3]);
}

#[test]
fn decode_says_where_its_input_is_damaged() {
    let damaged = program::run_with("limpet-lab", &["decode"], &[], &[9, 0, 0, 0, 1, 1]);
    damaged.expect_code(1).expect_complaint(&["item 1"]);
}

#[test]
fn a_raw_tag_is_echoed() {
    let package = limpet_tests::Package::loudness();
    let config = crate::sound(&package, "")
        .replace("header = [{ sequence = \"u32le\" }]", "header = [{ tag = \"u64le\" }, { time = \"u64le ns\" }]");
    let config = config.replace("max_gap = \"1h\"", "time = \"payload\"\nmax_skew = \"1h\"");
    let mut bench = Bench::start(&config, "plant/+/level", "loudness");
    let mut payload = Vec::new();
    payload.write_all(&77_u64.to_le_bytes()).expect("a vector takes bytes");
    payload.write_all(&1_800_000_000_123_456_000_u64.to_le_bytes()).expect("a vector takes bytes");
    payload.extend([0.5_f32; 10].iter().flat_map(|value| value.to_le_bytes()));
    bench.client.publish("plant/a/level", payload);
    let result = bench.heard("a");
    assert_eq!(result["tag"], 77);
    assert_eq!(result["captured"], "2027-01-15T08:00:00.123456Z", "the payload's own time, to the microsecond");
}

#[test]
fn a_session_that_is_resumed_brings_what_came_while_the_agent_was_away() {
    let package = limpet_tests::Package::loudness();
    let config = crate::sound(&package, "")
        .replace("header = [{ sequence = \"u32le\" }]", "header = [{ time = \"u64le ns\" }]")
        .replace("max_gap = \"1h\"", "time = \"payload\"\nmax_skew = \"1h\"");
    let broker = Broker::start();
    let config = format!("{}resume = true\n{config}", crate::local(&broker));
    let agent = Agent::start(&config);
    broker.wait_subscribed("plant/+/level");
    let (_, home, _) = agent.stop();
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/gw/result/#"]);
    for second in 0..3_u64 {
        let time = 1_800_000_000_000_000_000 + second * 1_000_000_000;
        let samples = [0.5_f32; 10].iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        client.publish("plant/a/level", [&time.to_le_bytes()[..], &samples].concat());
    }
    let _agent = Agent::start_in(home, &config);
    let mut wanted: BTreeSet<String> = (0..3).map(|second| format!("2027-01-15T08:00:0{second}.000000Z")).collect();
    let mut results = client.results(uplink("result/sound/a"));
    while !wanted.is_empty() {
        let result = results.next().expect("they go on");
        wanted.remove(result["captured"].as_str().expect("the payload has a time"));
    }
}

#[test]
fn one_source_feeds_several_pipelines() {
    let package = limpet_tests::Package::scores();
    let second = format!(
        "[[pipeline]]\nname = \"second\"\nsource = \"scores\"\nmodel = \"{}\"\npublish = \"every\"\n",
        package.display()
    );
    let config = format!("{}{second}", crate::levels(&package, "", ""));
    let mut bench = Bench::start(&config, "plant/+/scores", "scores");
    bench.score("a", [0.9, 0.0, 0.0]);
    assert_eq!(bench.result("a")["pipeline"], "levels");
    assert_eq!(bench.client.wait_on(&uplink("result/second/a")).json()["pipeline"], "second");
}

#[test]
fn topics_joined_into_channels_make_one_stream() {
    let package = limpet_tests::Package::loudness();
    package.edit("name = \"loudness\"", "name = \"joined\"");
    package.edit("frames = 10, hop = 5", "frames = 5, hop = 5");
    package.edit("[{ name = \"level\",", "[{ name = \"x\", unit = \"full scale\" }, { name = \"y\",");
    let join = "join = { topics = [\"plant/{stream}/x\", \"plant/{stream}/y\"], tolerance = \"1m\" }";
    let config = crate::sound(&package, "")
        .replace("topic = \"plant/{stream}/level\"", join)
        .replace(", header = [{ sequence = \"u32le\" }]", "");
    let mut bench = Bench::start(&config, "plant/+/x", "joined");
    bench.broker.wait_subscribed("plant/+/y");
    for _ in 0..5 {
        bench.client.publish("plant/a/x", 0.2_f32.to_le_bytes());
        bench.client.publish("plant/a/y", 0.9_f32.to_le_bytes());
    }
    let result = bench.heard("a");
    assert_eq!(result["window"], json!({ "first": 0, "last": 4 }));
    // The newer half of x y x y x y x y x y is two of x and three of y.
    assert_close(&result["scores"]["loud"], (2.0 * 0.2 + 3.0 * 0.9) / 5.0);
}
