//! Whether messages really come and go: a probe to the gateway's own topic and back.
//!
//! A broker may grant a subscription and then send nothing (mosquitto answers so to what its access list denies), and by
//! MQTT 3.1.1 it may throw a message away that it has acknowledged. So the only proof is a message that comes back.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::client::{Client, Kept, Properties, Verdict};
use super::{Received, random};

/// What became of a probe.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// Whether there is a connection.
    pub connected: bool,
    /// What the broker said to the subscription: nothing, or why it is refused.
    pub subscription: Option<Result<(), String>>,
    /// What it said to the message.
    pub acknowledgement: Option<Result<(), String>>,
    /// Whether the message came back.
    pub arrived: bool,
}

impl Seen {
    /// Nothing more will be seen.
    fn is_over(&self) -> bool {
        let refused = |said: &Option<Result<(), String>>| matches!(said, Some(Err(_)));
        self.arrived && self.acknowledgement.is_some() || refused(&self.subscription) || refused(&self.acknowledgement)
    }

    /// One sentence for people, and whether all is well: `topic` is that of the probe.
    pub fn sentence(&self, topic: &str) -> Result<String, String> {
        if !self.connected {
            return Err("there is no connection".to_owned());
        }
        match self {
            Self { subscription: Some(Err(why)), .. } => Err(format!(
                "the broker refuses to let this gateway read {topic} ({why}); allow it in the broker's access list"
            )),
            Self { acknowledgement: Some(Err(why)), .. } => Err(format!(
                "the broker refuses what this gateway publishes on {topic} ({why}); allow it in the broker's access list"
            )),
            Self { arrived: true, .. } => Ok(format!("a message to {topic} came back")),
            Self { acknowledgement: None, .. } => {
                Err(format!("the broker did not acknowledge a message to {topic}; is it overloaded, or the link slow?"))
            }
            Self { .. } => Err(format!(
                "a message to {topic} was acknowledged and did not come back: the broker's access list denies writing or reading it without saying so; allow both"
            )),
        }
    }
}

/// Probes one link.
#[derive(Debug)]
pub struct Prober {
    topic: String,
    asked: Notify,
    changed: Notify,
    /// One probe at a time.
    turn: tokio::sync::Mutex<()>,
    probe: Mutex<Option<(String, Seen)>>,
}

impl Prober {
    /// Probes by this topic.
    pub fn new(topic: String) -> Self {
        Self {
            topic,
            asked: Notify::new(),
            changed: Notify::new(),
            turn: tokio::sync::Mutex::default(),
            probe: Mutex::default(),
        }
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    fn lock(&self) -> MutexGuard<'_, Option<(String, Seen)>> {
        self.probe.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a message to the broker and waits until it comes back, or something speaks against that, or it takes too long.
    pub async fn probe(&self, patience: Duration) -> Seen {
        let _turn = self.turn.lock().await;
        *self.lock() = Some((format!("{:016x}", random()), Seen::default()));
        self.asked.notify_one();
        let over = async {
            loop {
                self.changed.notified().await;
                if self.lock().as_ref().is_none_or(|(_, seen)| seen.is_over()) {
                    return;
                }
            }
        };
        // Whatever was seen until then is the answer.
        let _ = tokio::time::timeout(patience, over).await;
        self.lock().take().map(|(_, seen)| seen).unwrap_or_default()
    }

    /// Until a probe is wanted.
    pub(super) async fn wanted(&self) {
        self.asked.notified().await;
    }

    /// Sends the message. Says whether it is on its way: then an acknowledgement comes for it. `asked` takes the filters of
    /// each SUBSCRIBE that was handed over.
    pub(super) fn begin(&self, client: &Client, asked: &mut VecDeque<Vec<String>>) -> bool {
        let Some(nonce) = self.lock().as_mut().map(|(nonce, seen)| {
            seen.connected = true;
            nonce.clone()
        }) else {
            return false;
        };
        if client.subscribe([(self.topic.as_str(), Kept::Unwanted)]).is_err() {
            return false;
        }
        asked.push_back(vec![self.topic.clone()]);
        client.publish(&self.topic, true, false, nonce.into_bytes(), Properties::default()).is_ok()
    }

    fn see(&self, what: impl FnOnce(&mut Seen)) {
        if let Some((_, seen)) = &mut *self.lock() {
            what(seen);
        }
        self.changed.notify_one();
    }

    /// Takes the answer to a subscription, if it is one of the probe's.
    pub(super) fn subscribed(&self, filter: &str, refused: Option<&str>) -> bool {
        if filter != self.topic {
            return false;
        }
        self.see(|seen| seen.subscription = Some(refused.map_or(Ok(()), |why| Err(why.to_owned()))));
        true
    }

    /// Takes an acknowledgement, if it is that of the probe.
    pub(super) fn acknowledged(&self, topic: &str, verdict: &Verdict) -> bool {
        if topic != self.topic {
            return false;
        }
        self.see(|seen| {
            seen.acknowledgement = Some(match verdict {
                Verdict::Refused(why) => Err(why.clone()),
                Verdict::Taken | Verdict::Unheard => Ok(()),
            });
        });
        true
    }

    /// Takes a message, if it is a probe.
    pub(super) fn takes(&self, message: &Received<'_>) -> bool {
        if message.topic != self.topic {
            return false;
        }
        let own = self.lock().as_ref().is_some_and(|(nonce, _)| nonce.as_bytes() == &message.payload[..]);
        // The subscription stays: it costs nothing but the next probe's message.
        if own {
            self.see(|seen| seen.arrived = true);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_is_a_sentence_that_names_the_topic() {
        let good = Seen { connected: true, subscription: Some(Ok(())), acknowledgement: Some(Ok(())), arrived: true };
        assert_eq!(good.sentence("t/probe"), Ok("a message to t/probe came back".to_owned()));
        for (seen, words) in [
            (Seen { connected: false, ..good.clone() }, "no connection"),
            (
                Seen { subscription: Some(Err("NotAuthorized".into())), ..good.clone() },
                "refuses to let this gateway read t/probe",
            ),
            (
                Seen { acknowledgement: Some(Err("QuotaExceeded".into())), ..good.clone() },
                "publishes on t/probe (QuotaExceeded)",
            ),
            (Seen { acknowledgement: None, arrived: false, ..good.clone() }, "did not acknowledge"),
            (Seen { arrived: false, ..good.clone() }, "without saying so"),
        ] {
            let why = seen.sentence("t/probe").unwrap_err();
            assert!(why.contains(words), "{why}");
        }
    }
}
