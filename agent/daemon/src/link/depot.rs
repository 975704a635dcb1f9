//! The depot's messages on the uplink's connection: what is wanted is subscribed to, and what comes is handed over.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::Received;
use super::client::{Client, Kept};
use limpet_depot::ask::{Action, Missing, Pump};
use limpet_wire::depot::Name;

/// What a link does for the depot.
pub struct Depot {
    /// What all of its topics start with: `limpet/1/depot/`.
    pub prefix: String,
    /// What is wanted.
    pub pump: Pump,
    /// Who hears of what does not come.
    pub missing: Arc<dyn Fn(&Missing) + Send + Sync>,
}

impl Depot {
    /// There is a connection.
    pub(super) fn connected(&self) {
        self.pump.connected(Instant::now());
    }

    /// Until there is something to do.
    pub(super) async fn wake(&self) {
        match self.pump.next_wake(Instant::now()) {
            Some(at) => tokio::select! {
                () = self.pump.rung() => {}
                () = tokio::time::sleep_until(at.into()) => {}
            },
            None => self.pump.rung().await,
        }
    }

    /// Does what is to be done now. `asked` takes the filters of each SUBSCRIBE that was handed over.
    pub(super) fn act(&self, client: &Client, asked: &mut VecDeque<Vec<String>>) {
        for action in self.pump.next_actions(Instant::now()) {
            match action {
                Action::Subscribe(names) => {
                    let topics: Vec<String> = names.iter().map(|name| self.topic(name)).collect();
                    match client.subscribe(topics.iter().map(|topic| (topic.as_str(), Kept::Wanted))) {
                        Ok(()) => asked.push_back(topics),
                        // What is not asked for now is asked for again.
                        Err(error) => tracing::debug!(%error, "the MQTT client took no subscription to the depot"),
                    }
                }
                Action::Unsubscribe(names) => {
                    for name in names {
                        if let Err(error) = client.unsubscribe(self.topic(&name)) {
                            tracing::debug!(%error, "the MQTT client did not end a subscription to the depot");
                        }
                    }
                }
                Action::Missing(missing) => (self.missing)(&missing),
            }
        }
    }

    /// Takes a message, if it is one of the depot's.
    pub(super) fn takes(&self, message: &Received<'_>) -> bool {
        let Some(suffix) = message.topic.strip_prefix(&self.prefix) else { return false };
        self.pump.arrived(suffix, &message.payload, Instant::now());
        true
    }

    /// Takes the refusal of a subscription, if it is one of the depot's.
    pub(super) fn refused(&self, filter: &str, reason: &str) -> bool {
        let Some(name) = filter.strip_prefix(&self.prefix).and_then(|suffix| suffix.parse().ok()) else { return false };
        self.pump.refused(&[name], reason, Instant::now());
        true
    }

    fn topic(&self, name: &Name) -> String {
        format!("{}{name}", self.prefix)
    }
}
