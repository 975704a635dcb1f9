//! A depot on a broker that lets each do only what they have to, by the access list that ships with the project.

use limpet_tests::agent::Home;
use limpet_tests::{Agent, Broker, Depot, Message, Package, program};
use rumqttc::v5::mqttbytes::v5::PubAckReason;

use super::table;
use crate::access::{client, press, shipped};
use crate::assert_says;

/// Configuration of the gateway `press-07` for a model of the depot.
fn waiting_press(broker: &Broker, home: &Home, depot: &Depot) -> String {
    let any = Package::scores();
    let text = press(broker, home, &any).replace(&any.display(), "scores@*");
    // The first table is the broker's.
    let (first, rest) = text.split_once("[[source]]").expect("it has a source");
    format!("{first}{}[[source]]{rest}", table(depot))
}

#[test]
fn a_publisher_that_may_write_and_a_gateway_that_may_read_deliver_under_the_shipped_access_list() {
    let broker = shipped();
    let mut operator = client(&broker, "operator");
    operator.subscribe(&["limpet/1/+/#"]);
    let depot = Depot::on_as(&broker, "publisher", "p");
    let home = Home::empty();
    let text = waiting_press(&broker, &home, &depot);
    let agent = Agent::start_as("press-07", home, &text);
    depot.publish(&Package::scores());
    agent.wait_for_model(&mut operator, "scores", "active");
    broker.wait_subscribed("plant/+/vibration");
    client(&broker, "sensors").publish("plant/a/vibration", "[0.1, 0.1, 0.9]");
    assert_eq!(operator.wait_on("limpet/1/press-07/result/levels/a").json()["label"], "high");
    // Exact topics: a list that names no more than these would do.
    let asked: Vec<String> =
        broker.subscribed().into_iter().filter(|topic| topic.starts_with("limpet/1/depot/")).collect();
    assert!(asked.len() > 5 && asked.iter().all(|topic| !topic.contains(['+', '#'])), "{asked:?}");
    // A gateway that was broken into changes nothing for the others, and neither does whoever it is not for.
    let before = depot.run(&["verify"]).expect_code(0).stdout;
    for user in ["press-07", "sensors", "operator"] {
        let answer = client(&broker, user).publish_with("limpet/1/depot/meta/timestamp", true, "");
        assert_eq!(answer, PubAckReason::NotAuthorized, "{user}");
    }
    assert_eq!(depot.run(&["verify"]).expect_code(0).stdout, before);
}

#[test]
fn a_gateway_that_may_not_read_the_depot_says_so_and_names_the_access_list() {
    let broker = shipped();
    let mut operator = client(&broker, "operator");
    operator.subscribe(&["limpet/1/press-08/#"]);
    let depot = Depot::on_as(&broker, "publisher", "p");
    depot.publish(&Package::scores());
    let home = Home::empty();
    // Its user has no block in the list.
    let text = waiting_press(&broker, &home, &depot).replace("press-07", "press-08");
    std::fs::write(home.path().join("password"), "h\n").expect("a temporary file can be written");
    let agent = Agent::start_as("press-08", home, &text);
    let silent = |m: &Message| m.topic == "limpet/1/press-08/event" && m.json()["kind"] == "missing-chunk";
    let told = operator.wait_for("the event", silent).json();
    assert_says(&told["message"], &["limpet/1/depot/meta/timestamp", "access list", "what runs goes on"]);
    let status = agent.status();
    let pipeline = crate::named(&status, "pipelines", "levels");
    assert_eq!(pipeline["state"], "waiting", "{status}");
}

#[test]
fn a_publisher_that_may_not_write_is_told_so_and_nothing_is_published() {
    let broker = shipped();
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (keys, password) = (folder.path().join("keys"), folder.path().join("password"));
    std::fs::write(&password, "s\n").expect("a temporary file can be written");
    let url = broker.url();
    let place = ["--broker", &url, "--patience", "1", "--username", "sensors"];
    let files = ["--password-file", program::text_of(&password), "--keys", program::text_of(&keys), "--no-passphrase"];
    let outcome = program::run("limpet-lab", &[&["depot", "init"][..], &place, &files].concat());
    assert_ne!(outcome.code, Some(0), "{}", outcome.stdout);
    outcome.expect_complaint(&["limpet/1/depot", "access list"]);
    let mut operator = client(&broker, "operator");
    operator.subscribe(&["limpet/1/depot/#", "limpet/1/+/status"]);
    assert!(operator.came_on("limpet/1/depot/meta/timestamp").is_empty());
}
