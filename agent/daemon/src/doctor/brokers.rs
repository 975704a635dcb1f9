//! Whether messages go to each broker, and come back.

use std::time::Duration;

use limpet_wire::topic::Topics;

use super::{Finding, Patient};
use crate::config::Config;
use crate::link::direct::{self, Spoken};
use crate::link::probe::Seen;

const CHECK: &str = "brokers";
/// How long a broker may take.
pub const PATIENCE: Duration = Duration::from_secs(8);

/// What came of probing a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probed {
    /// The uplink, by a message to this topic.
    Uplink(String, Seen),
    /// The uplink or another broker, without a connection, for this reason.
    Away(String),
    /// Another broker, which was connected to.
    Reached,
    /// One that refuses these subscriptions.
    Refuses(Vec<String>),
    /// One that refuses messages on these topics.
    TakesNot(Vec<String>),
    /// So many connections to it in a row ended soon after they were made.
    ThrownOff(u32),
}

/// What an agent's probes found.
pub fn check(patient: &Patient<'_>) -> Vec<Finding> {
    let finding = |(name, probed): &(String, Probed)| match probed {
        Probed::Uplink(topic, seen) => match seen.sentence(topic) {
            Ok(found) => Finding::ok(CHECK, format!("{name}: {found}")),
            Err(found) => Finding::error(
                CHECK,
                format!("{name}: {found}"),
                "docs/remote.md and config/mosquitto.acl show what a broker must allow",
            ),
        },
        Probed::Away(why) => {
            Finding::error(CHECK, format!("{name}: {why}"), "put that right; the agent tries again by itself")
        }
        Probed::Reached => Finding::ok(CHECK, format!("{name}: connected, and it has refused no subscription")),
        Probed::Refuses(filters) => Finding::error(
            CHECK,
            format!("{name}: it refuses to let this gateway read {}", filters.join(", ")),
            "allow it in the broker's access list",
        ),
        Probed::TakesNot(topics) => Finding::error(
            CHECK,
            format!("{name}: it refuses what this gateway publishes on {}", shortened(topics)),
            "allow it in the broker's access list; until then it waits in the outbox",
        ),
        Probed::ThrownOff(times) => Finding::error(
            CHECK,
            format!("{name}: the last {times} connections ended soon after they were made"),
            "another client may use the same client id: give each gateway a gateway.id of its own",
        ),
    };
    patient.probed.iter().map(finding).collect()
}

/// The first of them, and how many more there are.
fn shortened(topics: &[String]) -> String {
    const SHOWN: usize = 5;
    let more = topics.len().saturating_sub(SHOWN);
    let shown = topics[..topics.len() - more].join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

/// Probes all brokers by connections of its own, under the names that the agent has there: only where no agent runs.
pub async fn probe_directly(config: &Config) -> Vec<(String, Probed)> {
    let mut probed = Vec::new();
    for (name, broker) in &config.brokers {
        let sources = config.sources.iter().filter(|source| source.reads(name));
        let filters: Vec<String> = sources.flat_map(|source| source.filters()).map(|f| f.mqtt().to_owned()).collect();
        let uplink = *name == config.uplink.broker;
        let topic = uplink.then(|| Topics::new(&config.uplink.prefix, &config.gateway.id).probe());
        let spoken = direct::speak(broker, topic.clone(), &filters, PATIENCE).await;
        let found = match (spoken, topic) {
            (Spoken::Away(why), _) => Probed::Away(why),
            (Spoken::Heard { refused, .. }, _) if !refused.is_empty() => Probed::Refuses(refused),
            (Spoken::Heard { seen, .. }, Some(topic)) => Probed::Uplink(topic, seen),
            (Spoken::Heard { .. }, None) => Probed::Reached,
        };
        probed.push((name.to_string(), found));
    }
    probed
}
