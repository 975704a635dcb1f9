//! Gateways whose clock is wrong, and metadata that has expired.

use limpet_tests::forge::Forge;
use limpet_tests::{Agent, Clock, Package};

use super::damage::{AT_ONCE, Carried};
use super::{config, event_of};
use crate::swap::Flow;
use crate::{assert_says, event, local, uplink};

impl Carried {
    /// Another agent in the place of the one that runs, with another clock, when it serves a version.
    #[track_caller]
    fn restarted(self, clock: Clock, version: &str) -> Self {
        let Self { depot, carrier, mut bench } = self;
        let (_, home, _) = bench.agent.stop();
        // What was said before is not what is said now.
        bench.client.came_on(&crate::uplink("event"));
        bench.agent = Agent::start_at(clock, home, &format!("{}{}", local(&bench.broker), config(&depot, AT_ONCE)));
        bench.agent.wait_for_log(&["serving", &format!("version=\"{version}\"")]);
        Self { depot, carrier, bench }
    }

    #[track_caller]
    fn publish(&mut self, version: &str) {
        self.depot.publish(&Package::loudness_of(version, 0.0));
        self.carrier.carry(&mut self.bench.client);
    }
}

#[test]
fn a_clock_of_1970_or_2100_that_nobody_set_refuses_nothing_good() {
    let mut carried = Carried::start(AT_ONCE);
    for (clock, old, new) in [(Clock::OF_1970, "1.0.0", "2.0.0"), (Clock::OF_2100, "2.0.0", "3.0.0")] {
        carried = carried.restarted(clock, old);
        carried.publish(new);
        event_of(&mut carried.bench.client, "model-activated", new);
    }
}

#[test]
fn a_clock_of_2100_that_was_set_stops_what_is_new_and_not_what_runs() {
    let mut carried = Carried::start(AT_ONCE).restarted(Clock::OF_2100.set(), "1.0.0");
    let says = ["limpet/1/depot", " expired at 20", "2100-01-01", "by the clock", "depot refresh", "goes on"];
    assert_says(&event(&mut carried.bench.client, "depot-expired")["message"], &says);
    carried.publish("2.0.0");
    Flow::start(&mut carried.bench, &[("1.0.0", 0.0)]).until(&mut carried.bench, "1.0.0", 20);
    // The same root has expired, which was said.
    assert!(carried.bench.client.came_on(&uplink("event")).iter().all(|event| event.json()["kind"] != "depot-expired"));
    assert!(carried.bench.agent.log_with(&["2.0.0 is here"]).is_empty());
    // With a clock that is right it is taken, from the same depot.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is after 1970");
    let right = Clock { shows: now.as_secs().cast_signed(), set: true };
    let mut carried = carried.restarted(right, "1.0.0");
    event_of(&mut carried.bench.client, "model-activated", "2.0.0");
}

#[test]
fn metadata_that_expired_is_refused_also_by_a_clock_of_1970_until_the_publisher_refreshes_it() {
    let mut carried = Carried::start(AT_ONCE).restarted(Clock::OF_1970, "1.0.0");
    let mut flow = Flow::start(&mut carried.bench, &[("1.0.0", 0.0), ("2.0.0", 0.0)]);
    carried.depot.publish(&Package::loudness_of("2.0.0", 0.0));
    for role in ["timestamp", "snapshot", "rollout", "targets"] {
        let mut forge = Forge::of(&carried.depot);
        forge.role("timestamp")["limpet"]["issued"] = "2026-11-01T12:00:00Z".into();
        forge.role(role)["expires"] = "2026-11-02T00:00:00Z".into();
        forge.sign().send(&mut carried.bench.client);
        let expired = event(&mut carried.bench.client, "depot-expired");
        let named = format!("{role} expired at 2026-11-02T00:00:00Z");
        assert_says(&expired["message"], &["limpet/1/depot", &named, "by the newest signed time known", "goes on"]);
    }
    flow.until(&mut carried.bench, "1.0.0", 5);
    carried.refresh();
    event_of(&mut carried.bench.client, "model-activated", "2.0.0");
    flow.until(&mut carried.bench, "2.0.0", 5);
}
