//! Links: what survives a broker that goes away, a wire that is cut, and a crash.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use limpet_tests::{Agent, Broker, Client, LIMIT, Message, Package, Proxy, repeats};
use serde_json::Value;

use crate::{Bench, levels, local, serial, uplink};

const ALARM: &str = "local = [{ broker = \"local\", topic = \"plant/{stream}/alarm\", on = \"triggers\", qos = 0 }]";

#[test]
fn a_local_output_carries_triggers_at_once_and_expires() {
    let mut bench = Bench::levels("", ALARM);
    bench.client.subscribe(&["plant/+/alarm"]);
    bench.score("a", [0.5, 0.1, 0.1]);
    bench.score("a", [0.1, 0.1, 0.9]);
    let alarm = bench.client.wait_on("plant/a/alarm");
    assert_eq!((alarm.qos, alarm.retained), (0, false));
    let expiry = alarm.expiry_s.expect("an alarm that nobody takes in time is worth nothing");
    assert!((1..=30).contains(&expiry), "the deadline's remainder, at least a second: {expiry}");
    let result = alarm.json();
    assert_eq!((&result["trigger"], &result["label"]), (&true.into(), &"high".into()));
    // The same object as on the uplink.
    bench.result("a");
    assert_eq!(bench.result("a"), result);
}

/// Two brokers: the machine's own, and an uplink that can go away.
struct Plant {
    local: Broker,
    machine: Client,
    agent: Agent,
}

impl Plant {
    /// Waits until the model serves if `uplink` is told where to hear of it.
    fn start(uplink_url: &str, pipeline: &str) -> Self {
        let package = Package::scores();
        let broker = Broker::start();
        let mut machine = Client::connect(&broker);
        machine.subscribe(&["plant/+/alarm"]);
        let config = format!(
            "{}[broker.far]\nurl = \"{uplink_url}\"\nkeep_alive = \"5s\"\n[uplink]\nbroker = \"far\"\n[outbox]\norder = \"backlog-first\"\n{}",
            local(&broker),
            levels(&package, "", pipeline)
        );
        let agent = Agent::start(&config);
        broker.wait_subscribed("plant/+/scores");
        Self { local: broker, machine, agent }
    }

    fn score(&mut self, scores: [f64; 3]) {
        self.machine.publish("plant/a/scores", serde_json::json!(scores).to_string());
    }
}

#[test]
fn local_outputs_go_on_while_the_uplink_was_never_there() {
    let mut plant = Plant::start("mqtt://127.0.0.1:1", ALARM);
    // Without the uplink nothing says when the model serves, so knock until somebody answers.
    let alarm = plant.machine.knock("plant/a/scores", "[0.1, 0.1, 0.9]", "plant/a/alarm");
    assert_eq!(alarm.json()["label"], "high");
    assert!(plant.agent.runs());
    plant.agent.wait_for_log(&["far", "cannot connect", "127.0.0.1:1"]);
}

/// Results in messages, in the order in which they came.
fn results(messages: &[Message]) -> Vec<Value> {
    messages.iter().flat_map(Message::json_lines).collect()
}

/// Waits until the result `last` came, and gives all of stream `a` until then.
fn until_seq(client: &mut Client, last: u64) -> Vec<Value> {
    let topic = uplink("result/levels/a");
    let mut all = Vec::new();
    loop {
        let message = client.wait_on(&topic);
        all.extend(results(&[message]));
        if all.iter().any(|result| serial(result).1 == last) {
            return all;
        }
    }
}

/// How often a link is broken in the life of one agent: each time it waits twice as long before it tries again.
const BREAKS: u64 = 3;

#[test]
fn a_backlog_comes_after_the_wire_is_mended_whole_and_in_order() {
    (0..repeats(10)).for_each(|_| the_wire_is_cut_and_mended());
}

fn the_wire_is_cut_and_mended() {
    let far = Broker::start();
    let wire = Proxy::to(far.port());
    let mut consumer = Client::connect(&far);
    consumer.subscribe(&["limpet/1/#"]);
    let mut plant = Plant::start(&wire.url(), ALARM);
    plant.agent.wait_for_model(&mut consumer, "scores", "active");
    let mut sent = 0;
    let mut send = |plant: &mut Plant, count: u64| {
        for _ in 0..count {
            plant.score([0.1, 0.1, if sent % 2 == 0 { 0.9 } else { 0.3 }]);
            sent += 1;
        }
        sent
    };
    let last = send(&mut plant, 10);
    let mut all = until_seq(&mut consumer, last);
    for _ in 0..BREAKS {
        // Some are on their way when it is cut.
        send(&mut plant, 30);
        wire.cut();
        plant.machine.came_on("plant/a/alarm");
        send(&mut plant, 100);
        // What stands beside the machine hears of every second one all the while.
        (0..50).for_each(|_| drop(plant.machine.wait_on("plant/a/alarm")));
        wire.mend();
        let last = send(&mut plant, 20);
        all.extend(until_seq(&mut consumer, last));
    }
    let runs: BTreeSet<u64> = all.iter().map(|result| serial(result).0).collect();
    assert_eq!(runs.len(), 1, "one process, one stream, one run");
    // Repeats are allowed where a wire was cut before the acknowledgement; the ids tell them.
    let mut numbers: Vec<u64> = Vec::new();
    for result in &all {
        let seq = serial(result).1;
        if !numbers.contains(&seq) {
            numbers.push(seq);
        }
    }
    let expected: Vec<u64> = (1..=last_of(&numbers)).collect();
    assert_eq!(numbers, expected, "nothing is lost and the order is kept");
    assert_eq!(numbers.len() as u64, 10 + 150 * BREAKS);
    assert!(wire.connections() as u64 > BREAKS);
}

fn last_of(numbers: &[u64]) -> u64 {
    numbers.iter().copied().max().unwrap_or(0)
}

#[test]
fn a_broker_that_was_restarted_is_subscribed_to_again() {
    (0..repeats(10)).for_each(|_| the_broker_is_restarted());
}

fn the_broker_is_restarted() {
    let mut bench = Bench::levels("", "");
    bench.score("a", [0.9, 0.0, 0.0]);
    let (run, seq) = serial(&bench.result("a"));
    assert_eq!(seq, 1);
    for round in 0..BREAKS {
        bench.broker.restart();
        bench.broker.wait_subscribed("plant/+/scores");
        bench.client = Client::connect(&bench.broker);
        bench.client.subscribe(&["limpet/1/#"]);
        let status = bench.client.wait_on(&uplink("status")).json();
        assert_eq!(status["state"], "online", "a broker without memory is told again");
        bench.score("a", [0.9, 0.0, 0.0]);
        // The last one comes again if its acknowledgement went down with the broker.
        let heard = std::iter::repeat_with(|| serial(&bench.result("a"))).find(|heard| *heard != (run, 1 + round));
        assert_eq!(heard, Some((run, 2 + round)), "the counter goes on");
    }
}

#[test]
fn a_broker_that_is_not_there_yet_is_found_when_it_comes() {
    let mut broker = Broker::start();
    broker.kill();
    let package = Package::scores();
    let mut agent = Agent::start(&format!("{}{}", local(&broker), levels(&package, "", "")));
    let complaint = agent.wait_for_log(&["cannot connect", "connection refused"]);
    assert!(complaint.contains(&broker.url()), "it names the address: {complaint}");
    assert!(agent.runs());
    broker.restart();
    broker.wait_subscribed("plant/+/scores");
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/#"]);
    agent.wait_for_model(&mut client, "scores", "active");
    client.publish("plant/a/scores", "[0.9, 0.1, 0.1]");
    assert_eq!(client.wait_on(&uplink("result/levels/a")).json()["label"], "low");
}

#[test]
fn the_loss_of_one_broker_stops_no_other() {
    let far = Broker::start();
    let mut consumer = Client::connect(&far);
    consumer.subscribe(&["limpet/1/#"]);
    let mut plant = Plant::start(&far.url(), ALARM);
    plant.agent.wait_for_model(&mut consumer, "scores", "active");
    plant.score([0.9, 0.1, 0.1]);
    assert_eq!(serial(&consumer.wait_on(&uplink("result/levels/a")).json()).1, 1);
    plant.local.kill();
    plant.agent.wait_for_log(&["local", "connection lost"]);
    let event = consumer.wait_for("an event about the broker", |message| {
        message.topic == uplink("event") && message.json()["kind"] == "link-down"
    });
    assert_eq!(event.json()["broker"], "local");
}

#[test]
fn a_link_that_went_dead_is_noticed_within_two_and_a_half_keep_alives() {
    let far = Broker::start();
    let wire = Proxy::to(far.port());
    let mut consumer = Client::connect(&far);
    consumer.subscribe(&["limpet/1/#"]);
    let package = Package::scores();
    let config = format!("[broker.local]\nurl = \"{}\"\nkeep_alive = \"5s\"\n{}", wire.url(), levels(&package, "", ""));
    let agent = Agent::start(&config);
    agent.wait_for_model(&mut consumer, "scores", "active");
    far.wait_subscribed("plant/+/scores");
    let dead_since = Instant::now();
    wire.deaden();
    agent.wait_for_log(&["local", "connection lost"]);
    let noticed = dead_since.elapsed();
    // A second more for a machine that is busy with other tests.
    assert!(noticed <= Duration::from_secs(5).mul_f64(2.5) + Duration::from_secs(1), "noticed after {noticed:?}");
    wire.mend();
    let result = consumer.knock("plant/a/scores", "[0.9, 0.1, 0.1]", &uplink("result/levels/a"));
    assert_eq!(result.json()["label"], "low");
}

#[test]
fn two_gateways_with_one_id_are_told() {
    let bench = Bench::levels("", "");
    let package = Package::scores();
    let _other = Agent::start(&format!("{}{}", local(&bench.broker), levels(&package, "", "")));
    // Mosquitto says nothing to the one that it throws off, so it is told from how often that happens.
    bench.agent.wait_for_log(&["ERROR", "client id", "limpet-gw-local"]);
}

#[test]
fn a_new_process_starts_a_new_run() {
    let broker = Broker::start();
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/#"]);
    let package = Package::scores();
    let config = format!("{}{}", local(&broker), levels(&package, "", ""));
    let mut runs = BTreeSet::new();
    let mut home = limpet_tests::agent::Home::proved();
    let rounds = repeats(20);
    for _ in 0..rounds {
        let agent = Agent::start_in(home, &config);
        // The retained `models` of the process before may come first; an online status comes after it.
        client.wait_for("online", |m| m.topic == uplink("status") && m.json()["state"] == "online");
        let topic = uplink("result/levels/a");
        // What the process before was killed too soon to hear acknowledged comes once more, and is of its run.
        let fresh = |message: &Message| message.json_lines().iter().map(serial).find(|(run, _)| !runs.contains(run));
        let end = Instant::now() + LIMIT;
        let message = loop {
            assert!(Instant::now() < end, "no result of a new run");
            client.publish("plant/a/scores", "[0.9, 0.1, 0.1]");
            let came = |message: &Message| message.topic == topic && fresh(message).is_some();
            if let Some(message) = client.try_wait_for(Duration::from_millis(50), came) {
                break message;
            }
        };
        let (run, seq) = fresh(&message).expect("it was looked at");
        assert_eq!(seq, 1);
        runs.insert(run);
        home = agent.kill();
        client.wait_for("offline", |m| m.topic == uplink("status") && m.json()["state"] == "offline");
        client.came_on(&topic);
    }
    assert_eq!(runs.len(), rounds);
}
