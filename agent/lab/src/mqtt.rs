//! How this program connects to brokers: MQTT 5 over TCP, clean start, and no Nagle; also over TLS, and as somebody
//! ([`broker`]).
//!
//! Nagle's algorithm and delayed acknowledgements together hold a small message back for up to 40 ms; every latency
//! measured without TCP_NODELAY is a measurement of them.

pub mod broker;

use std::fmt;
use std::time::Duration;

use rumqttc::NetworkOptions;
use rumqttc::v5::{ConnectionError, Event, EventLoop, MqttOptions};
use tokio::sync::mpsc;

/// Longest packet that is accepted: a batch of results has at most 100 KiB, a model's metadata less than 128 KB.
const MAX_PACKET: u32 = 1 << 20;

/// Where a broker listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// A broker on this machine.
    pub fn local(port: u16) -> Self {
        Self { host: "127.0.0.1".to_owned(), port }
    }

    /// At `HOST[:PORT]`.
    fn at(address: &str, port: u16) -> Option<Self> {
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().ok()?),
            None => (address, port),
        };
        let is_host = !host.is_empty() && !host.contains(['/', '@', ':']);
        is_host.then(|| Self { host: host.to_owned(), port })
    }

    /// Options for one client, in clear and as nobody.
    pub fn options(&self, client_id: impl Into<String>) -> MqttOptions {
        let mut options = MqttOptions::new(client_id, &self.host, self.port);
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        options
            .set_network_options(network)
            .set_keep_alive(Duration::from_secs(12))
            .set_clean_start(true)
            .set_max_packet_size(Some(MAX_PACKET));
        options
    }
}

/// What a connection says, polled in a task of its own: a poll that is dropped half-way may lose what it read. After an
/// error it waits for `again` before it tries to connect anew. The task ends when nobody listens any more.
pub fn events(
    mut events: EventLoop,
    capacity: usize,
    again: Duration,
) -> mpsc::Receiver<Result<Event, ConnectionError>> {
    let (tell, told) = mpsc::channel(capacity);
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                event = events.poll() => event,
                () = tell.closed() => return,
            };
            let failed = event.is_err();
            if tell.send(event).await.is_err() {
                return;
            }
            if failed {
                tokio::time::sleep(again).await;
            }
        }
    });
    told
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mqtt://{}:{}", self.host, self.port)
    }
}
