//! Chunks from a web server, where the signed metadata names one.

use limpet_tests::agent::Home;
use limpet_tests::web::{Manner, Web};
use limpet_tests::{Agent, Broker, Client, Depot, Objects, Package};

use super::damage::AT_ONCE;
use super::{config, event_of};
use crate::swap::Flow;
use crate::{Bench, assert_says, event, local};

/// A version with several chunks of text that does not repeat.
fn large(version: &str, seed: u64) -> Package {
    let package = Package::loudness_of(version, 0.0);
    let number = |n: u64| (n + seed * 1_000_000).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let card: String = (0..6000).map(|n| format!("{:x}\n", number(n))).collect();
    package.put("README.md", card.as_bytes());
    package
}

/// Carries everything but chunks to the broker: those are the web server's.
fn carry(client: &mut Client, depot: &Depot) {
    for (name, bytes) in Objects::of(&depot.content()).in_order() {
        if !name.starts_with("chunk/") {
            limpet_tests::objects::send(client, name, bytes);
        }
    }
}

#[test]
fn chunks_come_from_a_web_server_of_a_private_authority_and_go_on_where_they_were_interrupted() {
    let depot = Depot::in_folder();
    let web = Web::of(&depot);
    depot.run(&["chunks-url", &web.url()]).expect_code(0);
    depot.publish(&large("1.0.0", 1));
    let broker = Broker::start();
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/gw/#"]);
    carry(&mut client, &depot);
    let authority = format!("ca_file = \"{}\"\n[[source]]", web.authority().display());
    let text = config(&depot, AT_ONCE).replacen("[[source]]", &authority, 1);
    let agent = Agent::start_in(Home::empty(), &format!("{}{text}", local(&broker)));
    let mut bench = Bench { broker, client, agent };
    bench.agent.wait_for_model(&mut bench.client, "loudness", "active");
    bench.broker.wait_subscribed("plant/+/level");
    let asked = web.asked();
    assert!(asked.len() > 2 && asked.iter().all(|asked| asked.from.is_none()), "{asked:?}");
    assert!(bench.broker.subscribed().iter().all(|topic| !topic.contains("/chunk/")), "the broker was not asked");

    // Servers that are not as they should be, one after the other; what runs goes on.
    let mut flow = Flow::start(&mut bench, &[("1.0.0", 0.0), ("2.0.0", 0.0), ("3.0.0", 0.0)]);
    depot.publish(&large("2.0.0", 2));
    for (manner, why) in [
        (Manner::Empty, "404"),
        (Manner::Other, "SHA-256"),
        (Manner::Plain, "not https"),
        (Manner::Stranger, "certificate is not trusted"),
    ] {
        web.behave(manner);
        carry(&mut bench.client, &depot);
        let refused = event(&mut bench.client, "depot-refused");
        assert_says(&refused["message"], &["loudness 2.0.0 is not delivered yet", &web.url(), "chunk/", why]);
        assert_says(&refused["message"], &["what runs goes on"]);
        flow.until(&mut bench, "1.0.0", 5);
        // Newer metadata: it looks again at once.
        depot.run(&["refresh"]).expect_code(0);
    }
    assert_eq!(web.asked_plainly(), 0, "nothing is asked for without TLS");

    // Every transfer ends half-way, and the rest comes by itself.
    web.behave(Manner::Broken);
    web.asked();
    carry(&mut bench.client, &depot);
    event_of(&mut bench.client, "model-activated", "2.0.0");
    let asked = web.asked();
    let (rests, starts): (Vec<_>, Vec<_>) = asked.iter().partition(|asked| asked.from.is_some());
    assert!(!starts.is_empty() && starts.len() == rests.len(), "{asked:?}");
    for start in starts {
        let digest = start.path.rsplit('/').next().expect("a path has an end");
        let length = Objects::of(&depot.content()).get(&format!("chunk/{digest}")).len();
        let rest = rests.iter().find(|rest| rest.path == start.path);
        assert_eq!(rest.and_then(|rest| rest.from), Some(length / 2), "{asked:?}");
    }
    flow.until(&mut bench, "2.0.0", 5);

    // Without the URL they come from the broker again.
    web.behave(Manner::Failing);
    web.asked();
    depot.run(&["chunks-url"]).expect_code(0);
    depot.publish(&large("3.0.0", 3));
    Objects::of(&depot.content()).send(&mut bench.client);
    event_of(&mut bench.client, "model-activated", "3.0.0");
    assert_eq!(web.asked(), []);
    flow.until(&mut bench, "3.0.0", 5);
}
