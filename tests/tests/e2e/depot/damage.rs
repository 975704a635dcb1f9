//! Messages that are not what was signed: damaged, cut short, swapped, old, mixed, or of somebody else.

use limpet_tests::agent::Home;
use limpet_tests::{Agent, Broker, Carrier, Client, Depot, Message, Objects, Package};
use serde_json::Value;

use super::{config, event_of};
use crate::swap::Flow;
use crate::{Bench, assert_says, event, local, uplink};

/// No trial: a version serves and that is that.
pub const AT_ONCE: &str = "trial = { windows = 0 }\n";

/// A depot in a folder, whose messages a test carries to the agent's broker, and an agent that serves version 1.0.0.
pub struct Carried {
    pub depot: Depot,
    pub carrier: Carrier,
    pub bench: Bench,
}

impl Carried {
    #[track_caller]
    pub fn start(pipeline: &str) -> Self {
        let (broker, depot) = (Broker::start(), Depot::in_folder());
        let mut client = Client::connect(&broker);
        client.subscribe(&["limpet/1/gw/#"]);
        let mut carrier = Carrier::new(&depot);
        depot.publish(&Package::loudness());
        carrier.carry(&mut client);
        let agent = Agent::start_in(Home::empty(), &format!("{}{}", local(&broker), config(&depot, pipeline)));
        let mut bench = Bench { broker, client, agent };
        bench.agent.wait_for_model(&mut bench.client, "loudness", "active");
        bench.broker.wait_subscribed("plant/+/level");
        Self { depot, carrier, bench }
    }

    /// Signs a newer timestamp, at which the agent looks at once, and carries it.
    #[track_caller]
    pub fn refresh(&mut self) {
        self.depot.run(&["refresh"]).expect_code(0);
        self.carrier.carry(&mut self.bench.client);
    }

    /// Publishes a version, carries it with one message damaged, and gives the name of that and the event about it.
    #[track_caller]
    fn damaged(&mut self, version: &str, kind: &str, damage: fn(&[u8]) -> Vec<u8>) -> (String, Value) {
        self.depot.publish(&Package::loudness_of(version, 0.0));
        let waiting = self.carrier.waiting();
        let name = name_of(&waiting, kind);
        self.carrier.carry_but(&mut self.bench.client, &name, &damage(waiting.get(&name)));
        let told = event(&mut self.bench.client, told_by(&name));
        (name, told)
    }
}

/// The name of the new message of a kind.
#[track_caller]
fn name_of(waiting: &Objects, kind: &str) -> String {
    match kind {
        "timestamp" | "roots" => format!("meta/{kind}"),
        "snapshot" | "targets" | "rollout" => waiting.newest(kind).to_owned(),
        _ => waiting.names(kind)[0].to_owned(),
    }
}

/// The event about a message that is damaged. What names its own digest is asked for until it is right.
fn told_by(name: &str) -> &'static str {
    if name.starts_with("meta/") { "depot-refused" } else { "missing-chunk" }
}

/// Every kind of message, and what the event about a damaged one names it.
const KINDS: [(&str, &str); 8] = [
    ("timestamp", "timestamp"),
    ("snapshot", "snapshot"),
    ("targets", "targets"),
    ("rollout", "rollout"),
    ("roots", "root"),
    (".rollout.json", ".rollout.json"),
    (".index", ".index"),
    ("chunk/", "chunk/"),
];
const VERSIONS: [&str; 9] = ["1.0.0", "1.0.1", "1.0.2", "1.0.3", "1.0.4", "1.0.5", "1.0.6", "1.0.7", "1.0.8"];

/// Brings one version after another, each with a message of another kind damaged at first.
fn refused_until_it_is_right(damage: fn(&[u8]) -> Vec<u8>) {
    let mut carried = Carried::start(AT_ONCE);
    let mut flow = Flow::start(&mut carried.bench, &VERSIONS.map(|version| (version, 0.0)));
    for (number, (kind, named)) in KINDS.into_iter().enumerate() {
        let (old, new) = (VERSIONS[number], VERSIONS[number + 1]);
        if kind == "roots" {
            carried.depot.run(&["rotate-keys", "--no-passphrase"]).expect_code(0);
        }
        let (name, told) = carried.damaged(new, kind, damage);
        assert_says(&told["message"], &["limpet/1/depot", named, "what runs goes on"]);
        flow.until(&mut carried.bench, old, 5);
        carried.carrier.mend(&mut carried.bench.client, &name);
        if name.starts_with("meta/") && kind != "timestamp" {
            // It would look again by itself, a while later.
            carried.refresh();
        }
        event_of(&mut carried.bench.client, "model-activated", new);
        flow.until(&mut carried.bench, new, 5);
    }
}

#[test]
fn a_flipped_bit_in_any_kind_of_message_is_refused_by_name_and_the_delivery_ends_when_it_is_right() {
    refused_until_it_is_right(|bytes| {
        let mut flipped = bytes.to_vec();
        // In the newer part of a chain of roots, and in what is signed of all others.
        flipped[bytes.len() * 3 / 4] ^= 1;
        flipped
    });
}

#[test]
fn any_kind_of_message_cut_short_is_refused_by_name_and_the_delivery_ends_when_it_is_whole() {
    refused_until_it_is_right(|bytes| bytes[..bytes.len() / 2].to_vec());
}

#[test]
fn a_chunk_in_the_place_of_another_is_refused_and_repaired_by_the_publisher() {
    let mut carried = Carried::start(AT_ONCE);
    let large = Package::loudness_of("2.0.0", 0.01);
    // Enough text that does not repeat for several chunks.
    let card: String = (0_u64..9000).map(|n| format!("{:x}\n", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
    large.put("README.md", card.as_bytes());
    carried.depot.publish(&large);
    let mut waiting = carried.carrier.waiting();
    let chunks: Vec<String> = waiting.names("chunk/").into_iter().map(str::to_owned).collect();
    assert!(chunks.len() > 2, "{chunks:?}");
    let (one, other) = (waiting.get(&chunks[0]).to_vec(), waiting.get(&chunks[1]).to_vec());
    waiting.put(&chunks[0], other);
    waiting.put(&chunks[1], one);
    waiting.send(&mut carried.bench.client);
    let mut swapped = chunks[..2].to_vec();
    while !swapped.is_empty() {
        let told = event(&mut carried.bench.client, "missing-chunk");
        let text = told["message"].as_str().expect("an event has a message").to_owned();
        assert_says(&told["message"], &["damaged", "SHA-256", "limpet-lab depot repair", "what runs goes on"]);
        let before = swapped.len();
        swapped.retain(|name| !text.contains(name.as_str()));
        assert_eq!(swapped.len(), before - 1, "each is named once: {text}");
    }
    Flow::start(&mut carried.bench, &[("1.0.0", 0.0)]).until(&mut carried.bench, "1.0.0", 5);
    // The publisher's own command finds the two at the broker and puts them right.
    let url = carried.bench.broker.url();
    let at_broker = |arguments: &[&str]| {
        let keys = carried.depot.keys();
        let all = [&["depot"], arguments, &["--broker", &url, "--patience", "2", "--keys"]].concat();
        let all: Vec<&str> = all.into_iter().chain([limpet_tests::program::text_of(&keys)]).collect();
        limpet_tests::program::run("limpet-lab", &all)
    };
    let found = at_broker(&["verify"]).expect_code(1).stdout;
    assert!(chunks[..2].iter().all(|name| found.contains(name)) && !found.contains(&chunks[2]), "{found}");
    at_broker(&["repair", limpet_tests::program::text_of(large.path())]).expect_code(0);
    event_of(&mut carried.bench.client, "model-activated", "2.0.0");
}

#[test]
fn a_whole_set_of_before_a_mixed_one_and_those_of_strangers_are_refused() {
    let mut carried = Carried::start(AT_ONCE);
    let mut flow = Flow::start(&mut carried.bench, &[("1.0.0", 0.0), ("2.0.0", 0.0), ("3.0.0", 0.0), ("4.0.0", 0.0)]);
    let first = Objects::of(&carried.depot.content());
    carried.depot.publish(&Package::loudness_of("2.0.0", 0.0));
    carried.carrier.carry(&mut carried.bench.client);
    event_of(&mut carried.bench.client, "model-activated", "2.0.0");
    // All of it as it was.
    first.send(&mut carried.bench.client);
    let refused = event(&mut carried.bench.client, "depot-refused");
    assert_says(&refused["message"], &["limpet/1/depot", "timestamp went back", "what runs goes on"]);
    flow.until(&mut carried.bench, "2.0.0", 5);
    // Good signatures of two different sets.
    carried.depot.publish(&Package::loudness_of("3.0.0", 0.0));
    for role in ["targets", "rollout", "snapshot"] {
        let name = Objects::of(&carried.depot.content()).newest(role).to_owned();
        carried.carrier.carry_but(&mut carried.bench.client, &name, first.get(first.newest(role)));
        let refused = event(&mut carried.bench.client, "depot-refused");
        assert_says(&refused["message"], &["limpet/1/depot", role, "what runs goes on"]);
        carried.carrier.mend(&mut carried.bench.client, &name);
        carried.depot.run(&["refresh"]).expect_code(0);
    }
    carried.carrier.carry(&mut carried.bench.client);
    event_of(&mut carried.bench.client, "model-activated", "3.0.0");
    // Another depot in its place, and one that even has a newer root.
    let stranger = Depot::in_folder();
    stranger.publish(&Package::loudness_of("9.0.0", 0.0));
    for named in ["timestamp is not signed as it must be", "root 2 is not signed as it must be"] {
        Objects::of(&stranger.content()).send(&mut carried.bench.client);
        let refused = event(&mut carried.bench.client, "depot-refused");
        assert_says(&refused["message"], &["limpet/1/depot", named, "what runs goes on"]);
        stranger.run(&["rotate-keys", "--no-passphrase"]).expect_code(0);
    }
    flow.until(&mut carried.bench, "3.0.0", 5);
    Objects::of(&carried.depot.content()).send(&mut carried.bench.client);
    carried.depot.publish(&Package::loudness_of("4.0.0", 0.0));
    carried.carrier.carry(&mut carried.bench.client);
    event_of(&mut carried.bench.client, "model-activated", "4.0.0");
    flow.until(&mut carried.bench, "4.0.0", 5);
    let nobody = |m: &Message| m.topic == uplink("event") && m.json()["version"] == "9.0.0";
    assert!(carried.bench.client.try_wait_for(std::time::Duration::ZERO, nobody).is_none());
}
