//! Whether the gateway is there, what its models do, and the latest decision.

use limpet_tests::{Agent, Broker, Client, Package};

use crate::{Bench, levels, local, uplink};

#[test]
fn status_is_online_with_a_session_and_retained() {
    let mut bench = Bench::levels("", "");
    let status = bench.client.wait_on(&uplink("status")).json();
    assert_eq!((&status["state"], &status["v"], &status["type"]), (&"online".into(), &1.into(), &"status".into()));
    let session = status["session"].as_str().expect("a session is text");
    assert!(session.len() >= 16, "{session}");
    let mut late = Client::connect(&bench.broker);
    late.subscribe(&[&uplink("status")]);
    let kept = late.wait_on(&uplink("status"));
    assert!(kept.retained);
    assert_eq!(kept.json(), status);
}

#[test]
fn a_crash_leaves_the_last_will_offline() {
    let mut bench = Bench::levels("", "");
    let online = bench.client.wait_on(&uplink("status")).json();
    bench.agent.kill();
    let offline = bench.client.wait_on(&uplink("status")).json();
    assert_eq!(offline["state"], "offline");
    assert_eq!(offline["session"], online["session"]);
    let mut late = Client::connect(&bench.broker);
    late.subscribe(&[&uplink("status")]);
    let kept = late.wait_on(&uplink("status"));
    assert!(kept.retained && kept.json()["state"] == "offline");
}

#[test]
fn sigterm_delivers_what_waits_then_says_offline_and_exits_with_zero() {
    let mut bench = Bench::levels("", "message_batch = { max = 1000, delay = \"10s\" }");
    bench.client.wait_on(&uplink("status"));
    for step in 0..10 {
        bench.score("a", [0.9, 0.0, 0.01 * f64::from(step)]);
        // The broker has it; and a stop takes what the agent has.
        bench.agent.wait_for_status("the result", |status| {
            let results = &status["pipelines"][0]["outcomes"]["result"];
            (*results == step + 1).then_some(())
        });
    }
    let (status, _, log) = bench.agent.stop();
    assert_eq!(status.code(), Some(0));
    let offline = bench
        .client
        .wait_for("offline", |message| message.topic == uplink("status") && message.json()["state"] == "offline");
    assert!(!offline.payload.is_empty());
    let results: usize =
        bench.client.came_on(&uplink("result/levels/a")).iter().map(|message| message.json_lines().len()).sum();
    assert_eq!(results, 10, "the results come before the goodbye: {}", log.join("\n"));
}

#[test]
fn every_connection_has_a_session_of_its_own() {
    let broker = Broker::start();
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/#"]);
    let package = Package::scores();
    let config = format!("{}{}", local(&broker), levels(&package, "", ""));
    let agent = Agent::start(&config);
    let first = client.wait_on(&uplink("status")).json();
    let (_, home, _) = agent.stop();
    assert_eq!(client.wait_on(&uplink("status")).json()["state"], "offline");
    let _again = Agent::start_in(home, &config);
    let second = client.wait_on(&uplink("status")).json();
    assert_eq!(second["state"], "online");
    assert_ne!(first["session"], second["session"]);
}

#[test]
fn models_are_retained_with_engine_variant_and_state() {
    let bench = Bench::levels("", "");
    let mut late = Client::connect(&bench.broker);
    late.subscribe(&[&uplink("models")]);
    let kept = late.wait_on(&uplink("models"));
    assert!(kept.retained);
    let models = kept.json();
    assert_eq!(models["type"], "models");
    let model = &models["models"][0];
    assert_eq!(
        (&model["name"], &model["version"], &model["engine"], &model["variant"], &model["state"]),
        (&"scores".into(), &"1.0.0".into(), &"tract".into(), &"f32.onnx".into(), &"active".into())
    );
}

#[test]
fn the_latest_decision_is_retained_published_or_not() {
    let mut bench = Bench::levels("", "publish = \"triggers\"");
    bench.score("a", [0.7, 0.1, 0.2]);
    let latest = bench.client.wait_on(&uplink("latest/levels/a")).json();
    assert_eq!(latest["label"], "low");
    assert!(latest.get("id").is_none(), "it was not published as a result: {latest}");
    // At most one a second goes out, and the newest is never left behind.
    bench.score("a", [0.1, 0.7, 0.2]);
    bench.score("a", [0.1, 0.0, 0.9]);
    let topic = uplink("latest/levels/a");
    let newest =
        bench.client.wait_for("the newest decision", |m| m.topic == topic && m.json()["label"] == "high").json();
    assert!(newest["id"].is_string(), "a trigger is published: {newest}");
    let mut late = Client::connect(&bench.broker);
    late.subscribe(&[&topic]);
    let kept = late.wait_on(&topic);
    assert!(kept.retained && kept.json() == newest);
}
