//! The MQTT client library behind one face, whichever version of the protocol the broker speaks.
//!
//! MQTT 3.1.1 says less than MQTT 5: no reasons for what is refused but that a subscription is, no properties of a message
//! (content type, id, expiry, where an answer goes), no Receive Maximum, and a broker that ends a connection does not say
//! why. What is missing is left out; nothing here takes the place of it.

use std::error::Error;
use std::io;

use bytes::Bytes;
use rumqttc::v5::mqttbytes::v5 as five;
use rumqttc::v5::{self, mqttbytes as five_bytes};
use rumqttc::{self as v4, NetworkOptions, Outgoing, Proxy, Transport};

/// How long a session is kept that is to be resumed, in seconds.
const RESUMED_S: u32 = 3600;

/// Which version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// MQTT 3.1.1.
    V4,
    /// MQTT 5.
    V5,
}

/// A connection to be made: a clean start, and no session that outlives it, unless it is to be resumed.
pub struct Options {
    /// The version of the protocol.
    pub protocol: Protocol,
    /// Who the client is.
    pub client_id: String,
    /// Host, or the whole address over WebSocket.
    pub host: String,
    /// Port.
    pub port: u16,
    /// TCP, TLS, WebSocket.
    pub transport: Transport,
    /// What it goes through.
    pub proxy: Option<Proxy>,
    /// User name and password.
    pub credentials: Option<(String, String)>,
    /// Keep-alive.
    pub keep_alive: std::time::Duration,
    /// Largest packet in either direction.
    pub packet_bytes: u32,
    /// Messages without acknowledgement at most.
    pub in_flight: u16,
    /// Whether the broker is to keep the session, and what comes for it.
    pub resume: bool,
    /// What the broker says when the connection is lost: topic and JSON, retained.
    pub will: Option<(String, Vec<u8>)>,
}

/// What a message says beside its payload.
#[derive(Debug, Default)]
pub struct Properties {
    /// Its content type.
    pub content_type: Option<String>,
    /// The id of the one result in it.
    pub id: Option<String>,
    /// Seconds after which nobody wants it any more.
    pub expiry_s: Option<u32>,
    /// What it is the answer to.
    pub correlation: Option<Bytes>,
}

/// Which messages that the broker had kept are wanted of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// None: what is not fresh is not wanted.
    Unwanted,
    /// All, each time.
    Wanted,
    /// None; and those that are published to be kept say so, even when they come at once.
    Told,
}

/// Where an answer to a message goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The topic.
    pub topic: String,
    /// What the answer carries to say what it answers; empty if there is nothing.
    pub correlation: Bytes,
}

/// Hands requests to the library.
#[derive(Clone)]
pub enum Client {
    /// MQTT 3.1.1.
    V4(v4::AsyncClient),
    /// MQTT 5.
    V5(v5::AsyncClient),
}

/// Polls the connection.
pub enum Events {
    /// MQTT 3.1.1.
    V4(Box<v4::EventLoop>),
    /// MQTT 5.
    V5(Box<v5::EventLoop>),
}

/// What happened on a connection.
pub enum Happened {
    /// The broker takes the connection, with so many messages without acknowledgement and packets of so many bytes.
    Connected {
        /// Receive Maximum.
        places: u16,
        /// Maximum Packet Size.
        largest: usize,
        /// The keep-alive that it asks for in place of ours, if it does.
        keep_alive: Option<std::time::Duration>,
    },
    /// A message came in.
    Arrived {
        /// Its topic, which need not be UTF-8.
        topic: Bytes,
        /// Its payload.
        payload: Bytes,
        /// Whether the broker had kept it.
        retained: bool,
        /// Where an answer goes, if one is wanted.
        reply: Option<Reply>,
    },
    /// The broker has answered a SUBSCRIBE: for each filter nothing, or why it is refused.
    Subscribed {
        /// The id of the packet.
        packet: u16,
        /// By filter, in its order.
        refused: Vec<Option<String>>,
    },
    /// The broker has answered a PUBLISH.
    Acknowledged {
        /// The id of the packet.
        packet: u16,
        /// What it says.
        verdict: Verdict,
    },
    /// A PUBLISH went out with this id.
    SentPublish(u16),
    /// A SUBSCRIBE went out with this id.
    SentSubscribe(u16),
    /// The goodbye went out.
    SentDisconnect,
    /// Nothing that anybody asks for.
    Other,
}

/// What a broker says to a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It has it.
    Taken,
    /// It has it, and nobody who wants it.
    Unheard,
    /// It does not take it, for this reason.
    Refused(String),
}

/// Why a connection ended or was not made.
#[derive(Debug)]
pub struct Lost {
    /// What is known of it.
    pub cause: Cause,
    /// What the library says; TLS errors are somewhere in it.
    pub error: Box<dyn Error>,
}

/// What is known of why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The broker does not take user name, password or client.
    NotAuthorized(String),
    /// The broker does not speak this version.
    Protocol,
    /// The broker refuses the connection for another reason.
    Refused(String),
    /// Another client has the same id.
    TakenOver,
    /// The broker ended it, for this reason.
    Ended(String),
    /// The broker does not answer pings.
    Silent,
    /// The broker closed it.
    Closed,
    /// Nobody answers.
    Timeout,
    /// Nobody listens.
    NobodyThere,
    /// In the middle of TLS.
    Tls,
    /// A message is too large.
    TooLarge {
        /// Its bytes.
        bytes: usize,
    },
    /// The proxy lets nothing through.
    Proxy,
    /// It is no WebSocket.
    WebSocket,
    /// What answers is no broker.
    Strange,
    /// Nobody knows the name.
    Unresolved,
    /// Something else.
    Other,
}

/// Makes a client. Nothing is connected until it is polled.
pub fn new(options: Options, queue: usize) -> (Client, Events) {
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    match options.protocol {
        Protocol::V4 => {
            let (client, mut events) = v4::AsyncClient::new(of_v4(options), queue);
            events.set_network_options(network);
            (Client::V4(client), Events::V4(Box::new(events)))
        }
        Protocol::V5 => {
            let mut options = of_v5(options);
            options.set_network_options(network);
            let (client, events) = v5::AsyncClient::new(options, queue);
            (Client::V5(client), Events::V5(Box::new(events)))
        }
    }
}

fn of_v4(options: Options) -> v4::MqttOptions {
    let mut made = v4::MqttOptions::new(options.client_id, options.host, options.port);
    made.set_transport(options.transport);
    made.set_clean_session(!options.resume);
    made.set_keep_alive(options.keep_alive);
    made.set_max_packet_size(options.packet_bytes as usize, options.packet_bytes as usize);
    made.set_inflight(options.in_flight);
    if let Some(proxy) = options.proxy {
        made.set_proxy(proxy);
    }
    if let Some((user, password)) = options.credentials {
        made.set_credentials(user, password);
    }
    if let Some((topic, payload)) = options.will {
        made.set_last_will(v4::LastWill::new(topic, payload, v4::QoS::AtLeastOnce, true));
    }
    made
}

fn of_v5(options: Options) -> v5::MqttOptions {
    let mut made = v5::MqttOptions::new(options.client_id, options.host, options.port);
    made.set_transport(options.transport);
    made.set_clean_start(!options.resume);
    made.set_session_expiry_interval(Some(if options.resume { RESUMED_S } else { 0 }));
    made.set_keep_alive(options.keep_alive);
    made.set_max_packet_size(Some(options.packet_bytes));
    made.set_outgoing_inflight_upper_limit(options.in_flight);
    if let Some(proxy) = options.proxy {
        made.set_proxy(proxy);
    }
    if let Some((user, password)) = options.credentials {
        made.set_credentials(user, password);
    }
    if let Some((topic, payload)) = options.will {
        let properties = five::LastWillProperties {
            delay_interval: None,
            payload_format_indicator: None,
            message_expiry_interval: None,
            content_type: Some(limpet_wire::content_type::JSON.to_owned()),
            response_topic: None,
            correlation_data: None,
            user_properties: Vec::new(),
        };
        let at_least_once = five_bytes::QoS::AtLeastOnce;
        made.set_last_will(five::LastWill::new(topic, payload, at_least_once, true, Some(properties)));
    }
    made
}

impl Client {
    /// Hands over a message.
    ///
    /// # Errors
    /// If the library takes no more requests.
    pub fn publish(
        &self,
        topic: &str,
        at_least_once: bool,
        retain: bool,
        payload: Vec<u8>,
        properties: Properties,
    ) -> Result<(), String> {
        match self {
            Self::V4(client) => {
                let qos = if at_least_once { v4::QoS::AtLeastOnce } else { v4::QoS::AtMostOnce };
                client.try_publish(topic, qos, retain, payload).map_err(|error| error.to_string())
            }
            Self::V5(client) => {
                let qos = if at_least_once { five_bytes::QoS::AtLeastOnce } else { five_bytes::QoS::AtMostOnce };
                let properties = five::PublishProperties {
                    content_type: properties.content_type,
                    message_expiry_interval: properties.expiry_s,
                    correlation_data: properties.correlation,
                    user_properties: properties.id.map(|id| ("id".to_owned(), id)).into_iter().collect(),
                    ..five::PublishProperties::default()
                };
                let taken = client.try_publish_with_properties(topic, qos, retain, payload, properties);
                taken.map_err(|error| error.to_string())
            }
        }
    }

    /// Asks for filters at QoS 1, each with what of the broker's kept messages is wanted. MQTT 3.1.1 sends them in any case,
    /// and says so of each.
    ///
    /// # Errors
    /// If the library takes no more requests.
    pub fn subscribe<'a>(&self, filters: impl IntoIterator<Item = (&'a str, Kept)>) -> Result<(), String> {
        match self {
            Self::V4(client) => {
                let filter = |(path, _): (&str, Kept)| v4::SubscribeFilter::new(path.to_owned(), v4::QoS::AtLeastOnce);
                client.try_subscribe_many(filters.into_iter().map(filter)).map_err(|error| error.to_string())
            }
            Self::V5(client) => {
                let filter = |(path, kept): (&str, Kept)| five::Filter {
                    path: path.to_owned(),
                    // Samples are wanted now or not at all, but a command or a chunk must come.
                    qos: five_bytes::QoS::AtLeastOnce,
                    nolocal: false,
                    // A sensor that publishes with retain sends fresh samples all the same; only what the broker kept from
                    // before is not fresh, and that is not asked for.
                    preserve_retain: kept == Kept::Told,
                    retain_forward_rule: match kept {
                        Kept::Wanted => five::RetainForwardRule::OnEverySubscribe,
                        Kept::Unwanted | Kept::Told => five::RetainForwardRule::Never,
                    },
                };
                client.try_subscribe_many(filters.into_iter().map(filter)).map_err(|error| error.to_string())
            }
        }
    }

    /// Ends a subscription.
    ///
    /// # Errors
    /// If the library takes no more requests.
    pub fn unsubscribe(&self, filter: String) -> Result<(), String> {
        match self {
            Self::V4(client) => client.try_unsubscribe(filter).map_err(|error| error.to_string()),
            Self::V5(client) => client.try_unsubscribe(filter).map_err(|error| error.to_string()),
        }
    }

    /// Says goodbye.
    ///
    /// # Errors
    /// If the library takes no more requests.
    pub fn disconnect(&self) -> Result<(), String> {
        match self {
            Self::V4(client) => client.try_disconnect().map_err(|error| error.to_string()),
            Self::V5(client) => client.try_disconnect().map_err(|error| error.to_string()),
        }
    }
}

impl Events {
    /// What happens next. One that is dropped half-way may lose what it has read.
    ///
    /// # Errors
    /// If the connection has ended.
    pub async fn poll(&mut self) -> Result<Happened, Lost> {
        match self {
            Self::V4(events) => Ok(from_v4(events.poll().await?)),
            Self::V5(events) => Ok(from_v5(events.poll().await?)),
        }
    }
}

fn sent(outgoing: &Outgoing) -> Happened {
    match outgoing {
        Outgoing::Publish(packet) => Happened::SentPublish(*packet),
        Outgoing::Subscribe(packet) => Happened::SentSubscribe(*packet),
        Outgoing::Disconnect => Happened::SentDisconnect,
        _ => Happened::Other,
    }
}

fn from_v4(event: v4::Event) -> Happened {
    match event {
        v4::Event::Incoming(v4::Packet::ConnAck(_)) => {
            Happened::Connected { places: u16::MAX, largest: usize::MAX, keep_alive: None }
        }
        v4::Event::Incoming(v4::Packet::Publish(v4::Publish { topic, payload, retain, .. })) => {
            Happened::Arrived { topic: topic.into(), payload, retained: retain, reply: None }
        }
        v4::Event::Incoming(v4::Packet::SubAck(ack)) => Happened::Subscribed {
            packet: ack.pkid,
            refused: ack
                .return_codes
                .iter()
                .map(|code| (*code == v4::SubscribeReasonCode::Failure).then(|| "Failure".to_owned()))
                .collect(),
        },
        v4::Event::Incoming(v4::Packet::PubAck(ack)) => {
            Happened::Acknowledged { packet: ack.pkid, verdict: Verdict::Taken }
        }
        v4::Event::Outgoing(outgoing) => sent(&outgoing),
        v4::Event::Incoming(_) => Happened::Other,
    }
}

fn from_v5(event: v5::Event) -> Happened {
    match event {
        v5::Event::Incoming(five::Packet::ConnAck(ack)) => {
            let properties = ack.properties.as_ref();
            Happened::Connected {
                places: properties.and_then(|p| p.receive_max).unwrap_or(u16::MAX),
                largest: properties.and_then(|p| p.max_packet_size).map_or(usize::MAX, |bytes| bytes as usize),
                // 0 is none at all.
                keep_alive: properties
                    .and_then(|p| p.server_keep_alive)
                    .filter(|seconds| *seconds > 0)
                    .map(|seconds| std::time::Duration::from_secs(seconds.into())),
            }
        }
        v5::Event::Incoming(five::Packet::Publish(five::Publish { topic, payload, retain, properties, .. })) => {
            let reply = properties.and_then(|properties| {
                let correlation = properties.correlation_data.unwrap_or_default();
                Some(Reply { topic: properties.response_topic?, correlation })
            });
            Happened::Arrived { topic, payload, retained: retain, reply }
        }
        v5::Event::Incoming(five::Packet::SubAck(ack)) => Happened::Subscribed {
            packet: ack.pkid,
            refused: ack
                .return_codes
                .iter()
                .map(|code| match code {
                    five::SubscribeReasonCode::Success(_) => None,
                    code => Some(format!("{code:?}")),
                })
                .collect(),
        },
        v5::Event::Incoming(five::Packet::PubAck(ack)) => Happened::Acknowledged {
            packet: ack.pkid,
            verdict: match ack.reason {
                five::PubAckReason::Success => Verdict::Taken,
                five::PubAckReason::NoMatchingSubscribers => Verdict::Unheard,
                reason => Verdict::Refused(format!("{reason:?}")),
            },
        },
        v5::Event::Outgoing(outgoing) => sent(&outgoing),
        v5::Event::Incoming(_) => Happened::Other,
    }
}

fn of_io(error: &io::Error) -> Cause {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, UnexpectedEof};
    match error.kind() {
        ConnectionRefused => Cause::NobodyThere,
        ConnectionAborted | ConnectionReset | UnexpectedEof => Cause::Closed,
        // The standard library has no kind for it.
        _ if error.to_string().contains("failed to lookup address") => Cause::Unresolved,
        _ => Cause::Other,
    }
}

impl From<v4::ConnectionError> for Lost {
    fn from(error: v4::ConnectionError) -> Self {
        use v4::{ConnectReturnCode, ConnectionError, StateError};
        let cause = match &error {
            ConnectionError::ConnectionRefused(code) => match code {
                ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized => {
                    Cause::NotAuthorized(format!("{code:?}"))
                }
                ConnectReturnCode::RefusedProtocolVersion => Cause::Protocol,
                code => Cause::Refused(format!("{code:?}")),
            },
            ConnectionError::MqttState(StateError::AwaitPingResp) => Cause::Silent,
            ConnectionError::MqttState(StateError::ConnectionAborted) => Cause::Closed,
            ConnectionError::MqttState(
                StateError::Io(error) | StateError::Deserialization(v4::mqttbytes::Error::Io(error)),
            )
            | ConnectionError::Io(error) => of_io(error),
            ConnectionError::MqttState(StateError::Deserialization(
                v4::mqttbytes::Error::PayloadSizeLimitExceeded(bytes),
            )) => Cause::TooLarge { bytes: *bytes },
            ConnectionError::MqttState(StateError::Deserialization(_)) | ConnectionError::NotConnAck(_) => {
                Cause::Strange
            }
            ConnectionError::NetworkTimeout | ConnectionError::FlushTimeout => Cause::Timeout,
            ConnectionError::Tls(v4::TlsError::Io(_)) => Cause::Tls,
            ConnectionError::Proxy(_) => Cause::Proxy,
            ConnectionError::Websocket(_) => Cause::WebSocket,
            _ => Cause::Other,
        };
        let error: Box<dyn Error> = match error {
            ConnectionError::MqttState(StateError::Deserialization(v4::mqttbytes::Error::Io(error))) => Box::new(error),
            ConnectionError::Tls(v4::TlsError::Io(error)) => Box::new(error),
            ConnectionError::Proxy(error) => Box::new(error),
            ConnectionError::Websocket(error) => Box::new(error),
            other => Box::new(other),
        };
        Self { cause, error }
    }
}

impl From<v5::ConnectionError> for Lost {
    fn from(error: v5::ConnectionError) -> Self {
        use five::{ConnectReturnCode, DisconnectReasonCode};
        use v5::{ConnectionError, StateError};
        let refused = |code: &ConnectReturnCode| match code {
            ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized => {
                Cause::NotAuthorized(format!("{code:?}"))
            }
            ConnectReturnCode::UnsupportedProtocolVersion => Cause::Protocol,
            code => Cause::Refused(format!("{code:?}")),
        };
        let cause = match &error {
            ConnectionError::ConnectionRefused(code) => refused(code),
            ConnectionError::MqttState(StateError::ConnFail { reason }) => refused(reason),
            ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => match reason_code {
                DisconnectReasonCode::SessionTakenOver => Cause::TakenOver,
                code => Cause::Ended(format!("{code:?}")),
            },
            ConnectionError::MqttState(StateError::AwaitPingResp) => Cause::Silent,
            ConnectionError::MqttState(StateError::ConnectionAborted) => Cause::Closed,
            ConnectionError::MqttState(StateError::IncomingPacketTooLarge { pkt_size, .. }) => {
                Cause::TooLarge { bytes: *pkt_size }
            }
            ConnectionError::MqttState(
                StateError::Io(error) | StateError::Deserialization(five_bytes::Error::Io(error)),
            )
            | ConnectionError::Io(error) => of_io(error),
            ConnectionError::MqttState(StateError::Deserialization(_)) | ConnectionError::NotConnAck(_) => {
                Cause::Strange
            }
            ConnectionError::Timeout(_) => Cause::Timeout,
            ConnectionError::Tls(v4::TlsError::Io(_)) => Cause::Tls,
            ConnectionError::Proxy(_) => Cause::Proxy,
            ConnectionError::Websocket(_) => Cause::WebSocket,
            _ => Cause::Other,
        };
        let error: Box<dyn Error> = match error {
            // A TLS alert that comes with the first packets hides here, and is not among the sources of the whole.
            ConnectionError::MqttState(StateError::Deserialization(five_bytes::Error::Io(error))) => Box::new(error),
            ConnectionError::Tls(v4::TlsError::Io(error)) => Box::new(error),
            ConnectionError::Proxy(error) => Box::new(error),
            ConnectionError::Websocket(error) => Box::new(error),
            other => Box::new(other),
        };
        Self { cause, error }
    }
}
