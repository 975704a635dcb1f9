//! The outbox: what survives kills, stops, and a link that is not there, and who can prove it.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use limpet_tests::agent::Home;

use limpet_tests::program::Running;
use limpet_tests::{Agent, Broker, Client, LIMIT, Package, Proxy, Random, repeats, seed};
use rustix::process::Signal;
use serde_json::Value;

use crate::{levels, local, serial, uplink};

const EVERY: &str = "publish = \"every\"\n";

/// An audit that was there before the gateway.
struct Audit(Running);

impl Audit {
    fn start(broker: &Broker) -> Self {
        let url = broker.url();
        let arguments = ["audit", "--broker", &url, "--from-start", "--json"];
        let running = Running::start("limpet-lab", &arguments, &[]);
        broker.wait_subscribed("limpet/1/+/result/#");
        Self(running)
    }

    /// Ends it; the report and the exit code.
    fn end(mut self) -> (Value, Option<i32>) {
        self.0.signal(Signal::TERM);
        let outcome = self.0.end();
        let report = serde_json::from_str(&outcome.stdout);
        (report.unwrap_or_else(|error| panic!("{error}: {}{}", outcome.stdout, outcome.stderr)), outcome.code)
    }
}

/// The sum of a column of an audit.
fn sum(report: &Value, column: &str) -> u64 {
    let rows = report["streams"].as_array().expect("there are streams");
    let count = |value: &Value| match value {
        Value::Object(by_reason) => by_reason.values().filter_map(Value::as_u64).sum(),
        value => value.as_u64().unwrap_or(0),
    };
    rows.iter().map(|row| count(&row[column])).sum()
}

/// Waits until the agent has nothing left to deliver.
fn wait_until_empty(agent: &Agent) {
    agent.wait_for_status("an empty outbox", |status| {
        let outbox = &status["outbox"];
        (outbox["live"] == 0 && outbox["stored"] == 0).then_some(())
    });
}

#[test]
fn killed_under_load_nothing_that_was_stored_is_lost() {
    let broker = Broker::start();
    let audit = Audit::start(&broker);
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/gw/#"]);
    let package = Package::scores();
    let config = format!("{}{}", local(&broker), levels(&package, "", EVERY));
    let mut home = Home::proved();
    let mut random = Random::new(seed());
    let kills = 5 * repeats(10);
    let (mut came, mut sent) = (BTreeSet::new(), 0);
    let mut send = |client: &Client, count: usize| {
        for _ in 0..count {
            client.send(&format!("plant/s{}/scores", sent % 3), "[0.9, 0.1, 0.1]");
            sent += 1;
        }
    };
    for _ in 0..kills {
        let mark = broker.mark();
        let agent = Agent::start_in(home, &config);
        broker.wait_subscribed_after(mark, "plant/+/scores");
        agent.wait_for_model(&mut client, "scores", "active");
        // What came of this life; repeats of the one before are not new.
        let enough = came.len() + 50;
        while came.len() < enough {
            send(&client, 1);
            let result = client.wait_for("a result", |message| message.topic.starts_with(&uplink("result/")));
            came.extend(result.json_lines().iter().map(serial));
        }
        // And then somewhere in the middle of many.
        send(&client, 100 + random.below(300));
        std::thread::sleep(Duration::from_micros(random.below(30_000) as u64));
        home = agent.kill();
    }
    let mark = broker.mark();
    let agent = Agent::start_in(home, &config);
    broker.wait_subscribed_after(mark, "plant/+/scores");
    wait_until_empty(&agent);
    let (status, _, _) = agent.stop();
    assert!(status.success());
    let (report, code) = audit.end();
    assert_eq!((sum(&report, "lost"), code), (0, Some(0)), "{report}");
    assert!(sum(&report, "received") >= 50 * kills as u64, "{report}");
}

/// Two brokers, of which the uplink is behind a wire that is cut.
struct Remote {
    near: Broker,
    far: Broker,
    wire: Proxy,
    package: Package,
}

impl Remote {
    fn new() -> Self {
        let (near, far) = (Broker::start(), Broker::start());
        let wire = Proxy::to(far.port());
        wire.cut();
        Self { near, far, wire, package: Package::scores() }
    }

    fn config(&self, outbox: &str) -> String {
        format!(
            "{}[broker.far]\nurl = \"{}\"\nkeep_alive = \"5s\"\n[uplink]\nbroker = \"far\"\n[outbox]\n{outbox}\n{}",
            local(&self.near),
            self.wire.url(),
            levels(&self.package, "", EVERY)
        )
    }

    /// Has so many windows inferred while the uplink is away, and waits until they are.
    fn infer(&self, agent: &Agent, windows: u64) {
        let mut client = Client::connect(&self.near);
        self.near.wait_subscribed("plant/+/scores");
        let results = |status: &Value| status["pipelines"][0]["outcomes"]["result"].as_u64();
        let end = Instant::now() + LIMIT;
        while agent.status()["pipelines"][0]["state"] != "serving" {
            assert!(Instant::now() < end, "{}", agent.status());
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut sent = 0;
        while sent < windows {
            // A window takes the place of one that waits, so that few are sent at once.
            let some = 10.min(windows - sent);
            (0..some).for_each(|at| client.send(&format!("plant/s{at}/scores"), "[0.9, 0.1, 0.1]"));
            client.publish("plant/none", "");
            sent += some;
            agent.wait_for_status("the windows", |status| results(status).filter(|count| *count >= sent));
        }
    }
}

#[test]
fn what_waits_at_a_stop_goes_with_the_next_start_though_the_power_went() {
    let remote = Remote::new();
    let config = remote.config("");
    let agent = Agent::start_in(Home::proved(), &config);
    remote.infer(&agent, 200);
    let (status, home, log) = agent.stop();
    assert!(status.success(), "{}", log.join("\n"));
    assert!(log.iter().any(|line| line.contains("wait on the disk")), "{}", log.join("\n"));
    // tmpfs does not outlive the power.
    fs::remove_dir_all(home.path().join("run")).expect("it is there");
    let mut consumer = Client::connect(&remote.far);
    consumer.subscribe(&["limpet/1/gw/result/#"]);
    remote.wire.mend();
    let _agent = Agent::start_in(home, &config);
    let mut numbers = std::collections::BTreeMap::<u64, Vec<u64>>::new();
    while numbers.values().map(Vec::len).sum::<usize>() < 200 {
        let message = consumer.wait_for("a result", |message| message.topic.starts_with(&uplink("result/")));
        for result in message.json_lines() {
            let (run, seq) = serial(&result);
            numbers.entry(run).or_default().push(seq);
        }
    }
    for (run, numbers) in numbers {
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "run {run:016x} is whole and in order");
    }
}

#[test]
fn what_finds_no_room_is_dropped_by_policy_and_the_audit_tells_it_from_what_is_lost() {
    let remote = Remote::new();
    let audit = Audit::start(&remote.far);
    let config = remote.config("max_bytes = \"1MiB\"\ncommit_interval = \"50ms\"\n");
    let agent = Agent::start_in(Home::proved(), &config);
    remote.infer(&agent, 10_000);
    agent.wait_for_status("results that were dropped", |status| {
        status["outbox"]["dropped"].as_u64().filter(|dropped| *dropped > 0)
    });
    remote.wire.mend();
    wait_until_empty(&agent);
    let log = agent.stop().2;
    assert!(log.iter().any(|line| line.contains("results or events were dropped")), "{}", log.join("\n"));
    let (report, code) = audit.end();
    assert_eq!((sum(&report, "lost"), code), (0, Some(0)), "{report}");
    assert_eq!(sum(&report, "received") + sum(&report, "dropped"), 10_000, "{report}");
    assert!(sum(&report, "dropped") > 100, "{report}");
}
