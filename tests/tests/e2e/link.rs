//! A link by MQTT 3.1.1, and one with several brokers to choose from.

use limpet_tests::broker::free_port;
use limpet_tests::{Agent, Broker, Client, Package};
use serde_json::json;

use crate::{levels, serial, uplink};

fn score(client: &mut Client) {
    client.publish("plant/a/scores", json!([0.9, 0.0, 0.0]).to_string());
}

#[test]
fn a_broker_that_has_nothing_newer_is_spoken_to_by_mqtt_3_1_1() {
    let mut broker = Broker::start();
    let package = Package::scores();
    let config = format!("[broker.local]\nurl = \"{}\"\nmqtt = 4\n{}", broker.url(), levels(&package, "", ""));
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/#"]);
    let agent = Agent::start(&config);
    agent.wait_for_model(&mut client, "scores", "active");
    broker.wait_subscribed("plant/+/scores");
    score(&mut client);
    let result = client.wait_on(&uplink("result/levels/a"));
    assert_eq!((result.content_type, result.id), (None, None), "3.1.1 has no properties");
    let result: serde_json::Value = serde_json::from_slice(&result.payload).expect("it is a result all the same");
    let (run, seq) = serial(&result);
    assert_eq!((seq, &result["label"]), (1, &json!("low")));
    // It comes back by itself, and goes on where it was.
    broker.restart();
    broker.wait_subscribed("plant/+/scores");
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/#"]);
    score(&mut client);
    let next = client.results(uplink("result/levels/a")).map(|r| serial(&r)).find(|heard| *heard != (run, 1));
    assert_eq!(next, Some((run, 2)));
    // And its last will is known.
    agent.kill();
    let gone =
        |message: &limpet_tests::Message| message.topic == uplink("status") && message.json()["state"] == "offline";
    client.wait_for("the last will", gone);
}

#[test]
fn a_sample_that_a_3_1_1_broker_had_kept_is_not_taken_for_a_fresh_one() {
    let broker = Broker::start();
    let package = Package::scores();
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/#"]);
    client.publish_with("plant/a/scores", true, json!([0.9, 0.0, 0.0]).to_string());
    let config = format!("[broker.local]\nurl = \"{}\"\nmqtt = 4\n{}", broker.url(), levels(&package, "", ""));
    let agent = Agent::start(&config);
    agent.wait_for_log(&["WARN", "retained", "not a fresh sample"]);
    agent.wait_for_model(&mut client, "scores", "active");
    client.publish("plant/a/scores", json!([0.0, 0.0, 0.9]).to_string());
    // Of the two, the first result is that of the fresh one.
    let result = client.results(uplink("result/levels/a")).next().expect("they go on");
    assert_eq!((serial(&result).1, &result["label"]), (1, &json!("high")));
}

#[test]
fn of_several_brokers_the_next_is_tried_until_one_takes_the_link() {
    let (mut first, second) = (Broker::start(), Broker::start());
    let nobody = free_port();
    let package = Package::scores();
    let config = format!(
        "[broker.local]\nurl = [\"mqtt://127.0.0.1:{nobody}\", \"{}\", \"{}\"]\n{}",
        first.url(),
        second.url(),
        levels(&package, "", "")
    );
    let mut near = Client::connect(&first);
    near.subscribe(&["limpet/1/#"]);
    let mut far = Client::connect(&second);
    far.subscribe(&["limpet/1/#"]);
    let agent = Agent::start(&config);
    agent.wait_for_log(&["cannot connect", &nobody.to_string()]);
    first.wait_subscribed("plant/+/scores");
    score(&mut near);
    let (run, seq) = serial(&near.wait_on(&uplink("result/levels/a")).json());
    assert_eq!(seq, 1);
    first.kill();
    second.wait_subscribed("plant/+/scores");
    score(&mut far);
    // What the first one had not acknowledged goes to the second.
    let next = far.results(uplink("result/levels/a")).map(|r| serial(&r)).find(|heard| *heard != (run, 1));
    assert_eq!(next, Some((run, 2)));
}
