//! A connection of the doctor's own, where no agent runs.

use std::collections::VecDeque;
use std::time::Duration;

use super::client::{self, Events, Happened, Kept};
use super::probe::{Prober, Seen};
use super::{FILTERS, Received, explain, options};
use crate::config::{Broker, BrokerUrl};

/// What a broker said.
#[derive(Debug)]
pub enum Spoken {
    /// There is no connection, for this reason.
    Away(String),
    /// There was one.
    Heard {
        /// What became of the probe.
        seen: Seen,
        /// Filters that the broker does not grant.
        refused: Vec<String>,
    },
}

/// Connects to the first address of a broker that answers, subscribes to these filters, and sends a probe to `topic` if there
/// is one.
pub async fn speak(broker: &Broker, topic: Option<String>, filters: &[String], patience: Duration) -> Spoken {
    let mut why = "it has no address".to_owned();
    for url in &broker.url {
        match speak_to(broker, url, topic.as_deref(), filters, patience).await {
            Ok((seen, refused)) => return Spoken::Heard { seen, refused },
            Err(error) => why = format!("{url}: {error}"),
        }
    }
    Spoken::Away(why)
}

async fn speak_to(
    broker: &Broker,
    url: &BrokerUrl,
    topic: Option<&str>,
    filters: &[String],
    patience: Duration,
) -> Result<(Seen, Vec<String>), String> {
    let (client, mut events) = client::new(options(broker, url, None)?, 64);
    let prober = topic.map(|topic| Prober::new(topic.to_owned()));
    let mut refused = Vec::new();
    let outcome = tokio::time::timeout(patience, async {
        connect(&mut events, broker, url).await?;
        let mut asked: VecDeque<Vec<String>> = VecDeque::new();
        for some in filters.chunks(FILTERS) {
            client.subscribe(some.iter().map(|path| (path.as_str(), Kept::Unwanted)))?;
            asked.push_back(some.to_vec());
        }
        let mut answers = asked.len();
        let mut told: VecDeque<Vec<String>> = VecDeque::new();
        let probing = async {
            match &prober {
                Some(prober) => prober.probe(patience / 2).await,
                None => Seen { connected: true, ..Seen::default() },
            }
        };
        let mut probing = std::pin::pin!(probing);
        let mut seen = None;
        while answers > 0 || seen.is_none() {
            let wanted = async {
                match &prober {
                    Some(prober) => prober.wanted().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                found = &mut probing, if seen.is_none() => seen = Some(found),
                () = wanted => {
                    let begun = prober.as_ref().is_some_and(|prober| prober.begin(&client, &mut asked));
                    answers += usize::from(begun);
                }
                happened = events.poll() => match happened.map_err(|lost| explain(&lost, broker, url, true).text)? {
                    Happened::SentSubscribe(_) => told.extend(asked.pop_front()),
                    // In the order in which they were asked: nothing else subscribes here.
                    Happened::Subscribed { refused: reasons, .. } => {
                        answers = answers.saturating_sub(1);
                        for (filter, reason) in told.pop_front().unwrap_or_default().into_iter().zip(reasons) {
                            let probes =
                                prober.as_ref().is_some_and(|prober| prober.subscribed(&filter, reason.as_deref()));
                            refused.extend(reason.filter(|_| !probes).map(|reason| format!("{filter} ({reason})")));
                        }
                    }
                    Happened::Acknowledged { verdict, .. } => {
                        // Nothing else is published here.
                        prober.iter().for_each(|prober| _ = prober.acknowledged(prober.topic(), &verdict));
                    }
                    Happened::Arrived { topic, payload, retained, .. } => {
                        let topic = String::from_utf8_lossy(&topic);
                        let message = Received { topic: &topic, payload, retained, reply: None };
                        prober.iter().for_each(|prober| _ = prober.takes(&message));
                    }
                    _ => {}
                },
            }
        }
        Ok::<_, String>(seen.unwrap_or_default())
    });
    match outcome.await {
        Ok(Ok(seen)) => Ok((seen, refused)),
        Ok(Err(why)) => Err(why),
        Err(_) => Err(format!("it does not answer within {} s", patience.as_secs())),
    }
}

async fn connect(events: &mut Events, broker: &Broker, url: &BrokerUrl) -> Result<(), String> {
    loop {
        match events.poll().await {
            Ok(Happened::Connected { .. }) => return Ok(()),
            Ok(_) => {}
            Err(lost) => return Err(explain(&lost, broker, url, false).text),
        }
    }
}
