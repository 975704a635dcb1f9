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
    /// Another broker, which refuses these subscriptions.
    Refuses(Vec<String>),
}

/// What an agent's probes found.
pub fn check(patient: &Patient<'_>) -> Vec<Finding> {
    let finding = |(name, probed): &(String, Probed)| match probed {
        Probed::Uplink(topic, seen) => match seen.sentence(topic) {
            Ok(found) => Finding::ok(CHECK, format!("{name}: {found}")),
            Err(found) => Finding::error(
                CHECK,
                format!("{name}: {found}"),
                "docs/outbox.md and config/mosquitto.conf show what a broker must allow",
            ),
        },
        Probed::Away(why) => Finding::error(
            CHECK,
            format!("{name}: {why}"),
            "see that the broker runs and can be reached, and that url, user and certificates are right",
        ),
        Probed::Reached => Finding::ok(CHECK, format!("{name}: connected, and it has refused no subscription")),
        Probed::Refuses(filters) => Finding::error(
            CHECK,
            format!("{name}: it refuses to let this gateway read {}", filters.join(", ")),
            "allow it in the broker's access list",
        ),
    };
    patient.probed.iter().map(finding).collect()
}

/// Probes all brokers by connections of its own, under the names that the agent has there: only where no agent runs.
pub async fn probe_directly(config: &Config) -> Vec<(String, Probed)> {
    let mut probed = Vec::new();
    for (name, broker) in &config.brokers {
        let sources = config.sources.iter().filter(|source| *source.broker == **name);
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
