//! One MQTT connection, and what becomes of it.
//!
//! Each broker has a link of its own: its own connection, back-off and queue ([`outgoing`]); the loss of one never stops
//! another. A link that is lost is made anew from nothing, client library included: rumqttc keeps what it has not sent
//! and, on a reconnect to a broker without the session, throws it away without an error, so nothing that it holds counts
//! as stored.
//!
//! - Clean start, no session: a broker that keeps one replays hours-old samples as if they were new. Where all samples have
//!   their own time, that may be what is wanted (`resume`).
//! - Subscriptions are made on every connection, at most eight filters in one packet, without retained messages.
//! - A subscription or publication that the broker refuses is an error that names the topic.
//! - Nothing blocks the task that polls: a second task hands messages to the client, never more than there are places
//!   in flight, so the client's own queue is never full.

pub mod backoff;
pub mod client;
pub mod depot;
pub mod direct;
pub mod expiry;
mod flight;
pub mod outgoing;
pub mod probe;
pub mod tls;

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io::Read;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use limpet_wire::message::{Message, Presence, Status};
use limpet_wire::topic::Topics;
use rumqttc::{Proxy, ProxyAuth, ProxyType, TlsConfiguration, Transport};
use tokio::sync::watch;

use self::backoff::Backoff;
use self::client::{Cause, Client, Happened, Kept, Lost, Options, Properties, Protocol, Reply, Verdict};
use self::flight::{Flight, Flying};
use self::outgoing::{BATCH_BYTES, Next, OVERHEAD, Outgoing, Ready, Room};
use self::probe::Prober;
use crate::commands::Commands;
use crate::config::{Broker, BrokerUrl, ProxyUrl, Scheme};
use crate::report::Reporter;
use crate::service::Pulse;
use crate::wall;

/// Messages in flight, where the broker allows as many.
const IN_FLIGHT: u16 = 64;
/// Requests that the client takes at once: more than there are places in flight, so that it never refuses one.
const CLIENT_QUEUE: usize = 256;
/// A connection that ends sooner than this was hardly worth making…
const SHORT_LIVED: Duration = Duration::from_secs(30);
/// …and so many in a row are probably two clients with one id that throw each other off: mosquitto 2.0.11 closes the
/// loser's connection without a DISCONNECT that would say so.
const RIVALS: u32 = 3;
/// Messages that the client may hold without having sent them: fewer than it takes.
const HANDED: usize = CLIENT_QUEUE / 2;
/// Keep-alive periods without anything from the broker after which the line is dead.
const KEEP_ALIVES: f64 = 2.5;
/// How long a broker may acknowledge nothing at least, though something waits for it.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a goodbye may take beyond the time for sending what waits.
const GOODBYE: Duration = Duration::from_secs(1);
/// Filters in one SUBSCRIBE.
const FILTERS: usize = 8;
/// Largest packet in either direction: the client's own limit of 10 KiB would end the connection.
const PACKET_BYTES: u32 = 1024 * 1024;

/// A sample or another message that came in.
pub struct Received<'a> {
    /// Its topic.
    pub topic: &'a str,
    /// Its payload.
    pub payload: bytes::Bytes,
    /// Whether the broker had kept it.
    pub retained: bool,
    /// Where an answer goes, if one is wanted.
    pub reply: Option<Reply>,
}

/// What a link is for.
pub struct Role {
    /// The broker's name in the configuration.
    pub name: Arc<str>,
    /// How to reach it.
    pub broker: Broker,
    /// Filters to subscribe to, each with whether retained messages are wanted.
    pub filters: Vec<(String, bool)>,
    /// Where status goes, if this is the uplink.
    pub status: Option<Topics>,
    /// The depot behind it, if it is the uplink and there is one.
    pub depot: Option<depot::Depot>,
    /// What probes it, if it is the uplink.
    pub prober: Option<Arc<Prober>>,
    /// What takes commands, if it is the uplink and any are enabled.
    pub commands: Option<Commands>,
    /// What waits to be sent.
    pub outgoing: Arc<Outgoing>,
    /// What asks whether its loop goes round.
    pub pulse: Pulse,
}

/// Runs a link until `stop` turns true and everything that can be sent was, or `stop`'s grace has passed.
///
/// `receive` is called with every message, on the task that polls: it must not block.
pub async fn run(role: Role, reporter: Arc<Reporter>, receive: impl Fn(Received<'_>), mut stop: watch::Receiver<Stop>) {
    let mut backoff = Backoff::default();
    let mut url_index = 0;
    let mut short_lived = 0;
    loop {
        let url = &role.broker.url[url_index % role.broker.url.len()];
        let started = Instant::now();
        let end = connection(&role, url, &reporter, &receive, &stop).await;
        let held = match end {
            End::Stopped => return,
            End::Lost { why, connected } => {
                reporter.link_lost(&role.name, url, &why, connected);
                role.outgoing.lost(url, &why.text);
                let held = if connected { started.elapsed() } else { Duration::ZERO };
                short_lived = if connected && held < SHORT_LIVED { short_lived + 1 } else { 0 };
                if short_lived == RIVALS {
                    reporter.rival(&role.name, &role.broker.client_id, RIVALS);
                }
                if short_lived >= RIVALS {
                    role.outgoing.short_lived(short_lived);
                }
                held
            }
        };
        url_index += 1;
        let wait = backoff.next(held, random());
        tracing::debug!(broker = %role.name, wait_ms = wait.as_millis() as u64, "next try to connect");
        tokio::select! {
            () = role.pulse.through(tokio::time::sleep(wait)) => {}
            () = stopped(&mut stop) => return,
        }
    }
}

/// Whether links go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// They do.
    Run,
    /// They send what waits and say goodbye, until that moment.
    Drain(Instant),
}

/// Until the depot has something to do; for ever if there is none.
async fn depot_wakes(depot: Option<&depot::Depot>) {
    match depot {
        Some(depot) => depot.wake().await,
        None => std::future::pending().await,
    }
}

/// Until somebody wants to know whether messages come and go.
async fn probe_wanted(prober: Option<&Prober>) {
    match prober {
        Some(prober) => prober.wanted().await,
        None => std::future::pending().await,
    }
}

/// Until the time for saying goodbye is over.
async fn overdue(stop: &watch::Receiver<Stop>) {
    let mut stop = stop.clone();
    stopped(&mut stop).await;
    let until = match *stop.borrow() {
        Stop::Drain(until) => until + GOODBYE,
        Stop::Run => Instant::now(),
    };
    tokio::time::sleep_until(until.into()).await;
}

async fn stopped(stop: &mut watch::Receiver<Stop>) {
    // An error means that the sender is gone, which is a stop too.
    let _ = stop.wait_for(|stop| *stop != Stop::Run).await;
}

enum End {
    Stopped,
    Lost { why: Why, connected: bool },
}

/// One connection from its beginning to its end.
async fn connection(
    role: &Role,
    url: &BrokerUrl,
    reporter: &Arc<Reporter>,
    receive: &impl Fn(Received<'_>),
    stop: &watch::Receiver<Stop>,
) -> End {
    let session = format!("{:016x}", random());
    let will = role.status.as_ref().map(|topics| (topics.status(), status(Presence::Offline, &session)));
    let options = match options(&role.broker, url, will) {
        Ok(options) => options,
        Err(why) => return End::Lost { why: Why::lasting(why), connected: false },
    };
    let (client, mut events) = client::new(options, CLIENT_QUEUE);
    let flight = Rc::new(RefCell::new(Flight::default()));
    let mut sender: Option<tokio::task::JoinHandle<()>> = None;
    // Filters of each SUBSCRIBE, in the order in which they were handed over; then by packet id.
    let mut asked: VecDeque<Vec<String>> = VecDeque::new();
    let mut asking: HashMap<u16, Vec<String>> = HashMap::new();
    // Whether a probe waits for room, and how many places there are.
    let (mut probing, mut all) = (false, 1);
    // A healthy connection has an event at least once in a keep-alive period, when the client pings. The client's own
    // check of that stands still while it waits for a socket that takes no more.
    let mut longest = role.broker.keep_alive.0.mul_f64(KEEP_ALIVES);
    let mut guard = std::pin::pin!(tokio::time::sleep(longest));
    let mut last_event = Instant::now();
    // Pings tell nothing of acknowledgements, which a bridge or a proxy may swallow.
    let patience = longest.max(PATIENCE);
    let mut unanswered = std::pin::pin!(tokio::time::sleep(patience));
    // Made once, not for every event: each holds a place in the queue of those who wait for the stop.
    let mut waiting = stop.clone();
    let mut stopped = std::pin::pin!(stopped(&mut waiting));
    let mut overdue = std::pin::pin!(overdue(stop));
    let end = loop {
        let event = {
            // Polled to its end except when the connection is given up: a poll that is dropped may lose what it read.
            let mut polling = std::pin::pin!(events.poll());
            loop {
                tokio::select! {
                    // In this order, so that the others cost nothing while there are events.
                    biased;
                    event = &mut polling => break Ok(event),
                    () = &mut stopped, if sender.is_none() => break Err(End::Stopped),
                    () = &mut overdue, if sender.is_some() => break Err(End::Stopped),
                    () = depot_wakes(role.depot.as_ref()), if sender.is_some() => {
                        role.depot.iter().for_each(|depot| depot.act(&client, &mut asked));
                    }
                    () = probe_wanted(role.prober.as_deref()), if sender.is_some() => {
                        probing = !begin_probe(role, &client, &flight, all, &mut asked);
                    }
                    () = role.pulse.wanted() => role.pulse.answer(),
                    () = &mut guard => {
                        if last_event.elapsed() >= longest {
                            let why = Why::passing(format!("nothing moved for {} s; the line is dead or the broker hangs", longest.as_secs()));
                            break Err(End::Lost { why, connected: sender.is_some() });
                        }
                        guard.as_mut().reset((last_event + longest).into());
                    }
                    () = &mut unanswered => {
                        let (now, due) = (Instant::now(), flight.borrow().due(patience));
                        if due.is_some_and(|due| due <= now) {
                            let (count, seconds) = (flight.borrow().len(), patience.as_secs());
                            let why = Why::passing(format!("the broker answers, but has acknowledged none of {count} messages for {seconds} s; something between takes its acknowledgements away, or it hangs"));
                            break Err(End::Lost { why, connected: sender.is_some() });
                        }
                        unanswered.as_mut().reset(due.unwrap_or(now + patience).into());
                    }
                }
            }
        };
        let event = match event {
            Ok(event) => event,
            Err(end) => break end,
        };
        last_event = Instant::now();
        role.pulse.answer();
        match event {
            Ok(Happened::Connected { .. }) if sender.is_some() => {
                // A second task that sends would outlive this connection.
                let why = Why::passing("the broker took the connection twice, which no broker that is in order does");
                break End::Lost { why, connected: true };
            }
            Ok(Happened::Connected { places, largest, keep_alive }) => {
                // The client goes by what the broker says.
                longest = keep_alive.unwrap_or(role.broker.keep_alive.0).mul_f64(KEEP_ALIVES);
                let largest = largest.min(PACKET_BYTES as usize);
                // One place stays free, because the client reads no request, not even a fleeting one, when all are taken.
                let room = RoomRule {
                    places: usize::from(places.saturating_sub(1).clamp(1, IN_FLIGHT)),
                    bytes: BATCH_BYTES.min(largest.saturating_sub(OVERHEAD).max(1)),
                    largest,
                };
                all = room.places;
                if let Some(topics) = &role.status {
                    announce(&client, &flight, topics, Presence::Online, &session);
                }
                asked = subscribe(&client, &role.filters);
                if let Some(commands) = &role.commands {
                    let filters = commands.filters();
                    if let Err(error) = client.subscribe(filters.iter().map(|path| (path.as_str(), Kept::Told))) {
                        tracing::error!(%error, "the MQTT client took no subscription to commands");
                    }
                    asked.push_back(filters);
                }
                role.depot.iter().for_each(depot::Depot::connected);
                reporter.link_made(&role.name, url);
                role.outgoing.connected(largest);
                sender = Some(tokio::task::spawn_local(send(
                    Arc::clone(&role.name),
                    Arc::clone(reporter),
                    client.clone(),
                    Arc::clone(&role.outgoing),
                    Rc::clone(&flight),
                    room,
                    role.status.clone().map(|topics| (topics, session.clone())),
                    stop.clone(),
                )));
            }
            Ok(Happened::Arrived { topic, payload, retained, reply }) => match std::str::from_utf8(&topic) {
                Ok(topic) => {
                    let message = Received { topic, payload, retained, reply };
                    let taken = role.depot.as_ref().is_some_and(|depot| depot.takes(&message))
                        || role.commands.as_ref().is_some_and(|commands| commands.takes(&message, &session))
                        || role.prober.as_ref().is_some_and(|prober| prober.takes(&message));
                    if !taken {
                        receive(message);
                    }
                }
                Err(_) => tracing::debug!(broker = %role.name, "a message on a topic that is not UTF-8 was ignored"),
            },
            Ok(Happened::Subscribed { packet, refused }) => {
                let filters = asking.remove(&packet).unwrap_or_default();
                for (reason, filter) in refused.into_iter().zip(&filters) {
                    if role.prober.as_ref().is_some_and(|prober| prober.subscribed(filter, reason.as_deref())) {
                        continue;
                    }
                    let Some(reason) = reason else {
                        tracing::debug!(broker = %role.name, filter, "subscribed");
                        continue;
                    };
                    if !role.depot.as_ref().is_some_and(|depot| depot.refused(filter, &reason)) {
                        role.outgoing.refused_filter(filter, &reason);
                        reporter.subscription_refused(&role.name, filter, &reason);
                    }
                }
            }
            Ok(Happened::Acknowledged { packet, verdict }) => {
                let message = flight.borrow_mut().answered(packet, last_event);
                let message = message
                    .filter(|m| !role.prober.as_ref().is_some_and(|prober| prober.acknowledged(&m.topic, &verdict)));
                if let Some(message) = message {
                    match verdict {
                        Verdict::Taken | Verdict::Unheard => {
                            let heard = verdict == Verdict::Taken;
                            role.outgoing.settle(&message.topic, message.kept.as_ref(), heard);
                        }
                        Verdict::Refused(reason) => {
                            if role.outgoing.refuse(&message.topic, &reason, message.kept) {
                                reporter.publish_refused(&role.name, &message.topic, &reason);
                            }
                        }
                    }
                }
                if probing {
                    probing = !begin_probe(role, &client, &flight, all, &mut asked);
                }
                role.outgoing.bell.notify_one();
            }
            Ok(Happened::SentPublish(id)) => {
                let mut flight = flight.borrow_mut();
                if flight.handed() >= HANDED {
                    role.outgoing.bell.notify_one();
                }
                flight.went_out(id, last_event);
            }
            Ok(Happened::SentSubscribe(id)) => {
                if let Some(filters) = asked.pop_front() {
                    asking.insert(id, filters);
                }
            }
            // It is on its way: the client flushes before it tells.
            Ok(Happened::SentDisconnect) => break End::Stopped,
            Ok(Happened::Other) => {}
            Err(lost) => {
                let connected = sender.is_some();
                break End::Lost { why: explain(&lost, &role.broker, url, connected), connected };
            }
        }
    };
    if let Some(sender) = sender {
        sender.abort();
    }
    role.depot.iter().for_each(|depot| depot.pump.disconnected());
    let unsettled = flight.borrow_mut().ground();
    role.outgoing.put_back(unsettled);
    end
}

/// Sends a probe, if there is one and there are packet ids to spare for its subscription and its message: the client draws
/// all of them from as many as there are places. Says whether nothing of it waits any more.
fn begin_probe(
    role: &Role,
    client: &Client,
    flight: &RefCell<Flight>,
    places: usize,
    asked: &mut VecDeque<Vec<String>>,
) -> bool {
    let Some(prober) = &role.prober else { return true };
    let in_flight = flight.borrow().len();
    if in_flight > 0 && in_flight + 3 > places {
        return false;
    }
    if prober.begin(client, asked) {
        let topic = prober.topic().to_owned();
        flight.borrow_mut().hand(Flying { topic, acknowledged: true, kept: None });
    }
    true
}

/// What a connection has room for.
#[derive(Debug, Clone, Copy)]
struct RoomRule {
    places: usize,
    bytes: usize,
    largest: usize,
}

/// Hands messages to the client as long as there is room, and says goodbye when it is time.
#[expect(clippy::too_many_arguments, reason = "a task that is given what it owns")]
async fn send(
    name: Arc<str>,
    reporter: Arc<Reporter>,
    client: Client,
    outgoing: Arc<Outgoing>,
    flight: Rc<RefCell<Flight>>,
    rule: RoomRule,
    status: Option<(Topics, String)>,
    mut stop: watch::Receiver<Stop>,
) {
    loop {
        let deadline = match *stop.borrow() {
            Stop::Run => None,
            Stop::Drain(until) => Some(until),
        };
        if flight.borrow().handed() >= HANDED {
            outgoing.bell.notified().await;
            continue;
        }
        let in_flight = flight.borrow().len();
        let RoomRule { places, bytes, largest } = rule;
        let room = Room { in_flight, places, bytes, largest, hurry: deadline.is_some() };
        let wake = match outgoing.next(Instant::now(), room) {
            Next::Send(ready) => {
                if let Err(ready) = hand_over(&client, &flight, *ready) {
                    // Never by construction; if it were, the bell would ring when the client has sent something.
                    outgoing.not_taken(*ready);
                    outgoing.bell.notified().await;
                }
                continue;
            }
            Next::TooLarge { topic, bytes } => {
                reporter.too_large(&name, &topic, bytes, largest);
                continue;
            }
            Next::Again => continue,
            Next::Wait(wake) => wake,
        };
        if let Some(until) = deadline
            && (outgoing.is_empty() || Instant::now() >= until)
        {
            // Once more, now that nothing waits.
            outgoing.offer_delivery();
            if outgoing.is_empty() || Instant::now() >= until {
                break;
            }
            continue;
        }
        let wake = [wake, deadline].into_iter().flatten().min();
        tokio::select! {
            () = outgoing.bell.notified() => {}
            () = sleep_until(wake) => {}
            () = stopped(&mut stop), if deadline.is_none() => {}
        }
    }
    let until = match *stop.borrow() {
        Stop::Drain(until) => until,
        Stop::Run => Instant::now(),
    };
    if let Some((topics, session)) = &status {
        announce(&client, &flight, topics, Presence::Offline, session);
    }
    while flight.borrow().len() > 0 && Instant::now() < until {
        tokio::select! {
            () = outgoing.bell.notified() => {}
            () = sleep_until(Some(until)) => {}
        }
    }
    // The client's queue has room for it by construction; if it were full, the connection would be closed without a word.
    let _ = client.disconnect();
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Hands one message to the client, or gives it back.
fn hand_over(client: &Client, flight: &RefCell<Flight>, mut ready: Ready) -> Result<(), Box<Ready>> {
    let properties = Properties {
        content_type: Some(ready.content_type.to_owned()),
        expiry_s: ready.expiry_s,
        id: ready.id.take(),
        correlation: ready.correlation.take(),
    };
    // What comes back is written again from what was kept.
    let payload = std::mem::take(&mut ready.payload);
    match client.publish(&ready.topic, ready.at_least_once, ready.retain, payload, properties) {
        Ok(()) => {
            let flying = Flying { topic: ready.topic, acknowledged: ready.at_least_once, kept: ready.kept };
            flight.borrow_mut().hand(flying);
            Ok(())
        }
        Err(error) => {
            tracing::warn!(topic = ready.topic, %error, "the MQTT client took no message");
            Err(Box::new(ready))
        }
    }
}

fn announce(client: &Client, flight: &RefCell<Flight>, topics: &Topics, state: Presence, session: &str) {
    let ready = Ready {
        topic: topics.status(),
        payload: status(state, session),
        content_type: limpet_wire::content_type::JSON,
        id: None,
        at_least_once: true,
        retain: true,
        expiry_s: None,
        correlation: None,
        kept: None,
    };
    // The client has room: this is its first message, or its last after the others were sent.
    drop(hand_over(client, flight, ready));
}

fn status(state: Presence, session: &str) -> Vec<u8> {
    Status { state, session: session.to_owned(), connected_at: wall::now_text() }.to_json()
}

/// Asks for the filters, and gives them in the order of the packets.
fn subscribe(client: &Client, filters: &[(String, bool)]) -> VecDeque<Vec<String>> {
    let packet = |some: &[(String, bool)]| {
        let wanted =
            some.iter().map(|(path, retained)| (path.as_str(), if *retained { Kept::Wanted } else { Kept::Unwanted }));
        if let Err(error) = client.subscribe(wanted) {
            tracing::error!(%error, "the MQTT client took no subscription");
        }
        some.iter().map(|(path, _)| path.clone()).collect()
    };
    filters.chunks(FILTERS).map(packet).collect()
}

/// How to connect.
///
/// # Errors
/// A sentence, if a file that it takes cannot be used.
fn options(broker: &Broker, url: &BrokerUrl, will: Option<(String, Vec<u8>)>) -> Result<Options, String> {
    let transport = match url.scheme {
        Scheme::Mqtt => Transport::Tcp,
        Scheme::Mqtts => Transport::Tls(TlsConfiguration::Rustls(tls::client(broker)?)),
        Scheme::Ws => Transport::Ws,
        Scheme::Wss => Transport::Wss(TlsConfiguration::Rustls(tls::client(broker)?)),
    };
    let proxy = broker.proxy.as_ref().map(|ProxyUrl { host, port }| Proxy {
        ty: ProxyType::Http,
        auth: ProxyAuth::None,
        addr: host.clone(),
        port: *port,
    });
    let credentials = match &broker.username {
        None => None,
        Some(username) => {
            let password = broker.password().map_err(|error| {
                let path = broker.password_file.as_deref().unwrap_or(Path::new(""));
                format!("password_file {} cannot be read: {error}", path.display())
            })?;
            Some((username.clone(), password.unwrap_or_default()))
        }
    };
    Ok(Options {
        protocol: if broker.mqtt == 4 { Protocol::V4 } else { Protocol::V5 },
        client_id: broker.client_id.clone(),
        // Over WebSocket the client takes the whole address in the place of the host.
        host: if url.scheme.is_web() { url.address() } else { url.host.clone() },
        port: url.port,
        transport,
        proxy,
        credentials,
        keep_alive: broker.keep_alive.0,
        packet_bytes: PACKET_BYTES,
        in_flight: IN_FLIGHT + 1,
        resume: broker.resume,
        will,
    })
}

/// Why a connection ended or was not made, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Why {
    /// A sentence.
    pub text: String,
    /// Whether it goes away only if somebody changes something.
    pub needs_a_person: bool,
}

impl Why {
    /// Something that may go away by itself.
    pub fn passing(text: impl Into<String>) -> Self {
        Self { text: text.into(), needs_a_person: false }
    }

    /// Something that stays wrong until somebody puts it right.
    pub fn lasting(text: impl Into<String>) -> Self {
        Self { text: text.into(), needs_a_person: true }
    }
}

fn explain(lost: &Lost, broker: &Broker, url: &BrokerUrl, connected: bool) -> Why {
    let Lost { cause, error } = lost;
    if let Some(why) = tls::explain(error.as_ref(), broker, url) {
        return Why::lasting(why);
    }
    match cause {
        Cause::Closed if !connected => {
            let (other, tls) = (
                if broker.mqtt == 4 { "only MQTT 5 (mqtt = 5)" } else { "only MQTT 3.1.1 (mqtt = 4)" },
                if url.scheme.is_secure() { "" } else { "does it want TLS (mqtts://, wss://), or " },
            );
            Why::passing(format!(
                "the broker closed the connection before it had accepted it; {tls}does it speak {other}?"
            ))
        }
        Cause::Closed => Why::passing("the broker closed the connection"),
        Cause::NotAuthorized(code) => {
            let user = match &broker.username {
                Some(user) => format!("user '{user}'"),
                None => "a client without username".into(),
            };
            Why::lasting(format!(
                "the broker refuses {user} with client id '{}' ({code}); check username and password_file",
                broker.client_id
            ))
        }
        Cause::Protocol => {
            let (has, other) = if broker.mqtt == 4 { ("3.1.1", "mqtt = 5") } else { ("5", "mqtt = 4") };
            Why::lasting(format!("the broker does not speak MQTT {has}; try {other}"))
        }
        Cause::Refused(code) => {
            let todo = match code.as_str() {
                "Banned" => "it has this client on a list; have it taken off",
                "ClientIdentifierNotValid" | "BadClientId" => "give the broker a client_id that it takes",
                "ServerBusy"
                | "ServerUnavailable"
                | "ServiceUnavailable"
                | "ConnectionRateExceeded"
                | "QuotaExceeded" => "it is busy, or allows no more clients",
                _ => "its log says more",
            };
            Why::passing(format!("the broker refuses the connection ({code}); {todo}"))
        }
        Cause::TakenOver => Why::lasting(format!(
            "another client connected with the client id '{}'; give each gateway an id of its own",
            broker.client_id
        )),
        Cause::Ended(code) => Why::passing(format!("the broker ended the connection: {code}")),
        Cause::Silent => Why::passing("the broker does not answer pings any more"),
        Cause::Tls => Why::passing(format!(
            "the broker ended the connection in the middle of TLS ({error}); does it speak TLS at {url}? Give its port for TLS, or a scheme without it"
        )),
        Cause::TooLarge { bytes } => Why::lasting(format!(
            "a message of {bytes} bytes came in, {PACKET_BYTES} are taken at most; make the sender split it"
        )),
        Cause::Timeout => {
            let by = broker.proxy.as_ref().map_or_else(String::new, |proxy| format!(" by the proxy {proxy}"));
            Why::passing(format!("no answer{by} within 5 s; is the address right, and does a firewall let it through?"))
        }
        Cause::NobodyThere => Why::passing("connection refused; does a broker listen there?"),
        Cause::Proxy => {
            let proxy = broker.proxy.as_ref().map_or_else(String::new, ToString::to_string);
            let (error, to) = (error.to_string(), url.authority());
            let error = error.trim_end_matches('.');
            if error.contains("Connection refused") {
                return Why::passing(format!("nothing listens at the proxy {proxy}; is it up, and is its port right?"));
            }
            Why::lasting(format!(
                "the proxy {proxy} does not let it through: {error}; does it allow CONNECT to {to}, without a password?"
            ))
        }
        Cause::WebSocket => Why::lasting(format!("no WebSocket at {url}: {error}; are port and path right?")),
        Cause::Strange => Why::lasting(format!(
            "what answers at {url} does not speak MQTT ({error}); give the broker's port for MQTT, or the scheme of this one (ws://, mqtts://)"
        )),
        Cause::Unresolved => Why::passing(format!(
            "the name '{}' cannot be looked up ({error}); is it right in url, and does this gateway have a name server?",
            broker.proxy.as_ref().map_or(&url.host, |proxy| &proxy.host)
        )),
        Cause::Other => Why::passing(error.to_string()),
    }
}

/// A run of ids: random, and never 0, by which the wire format tells an item from a length (`limpet_wire::binary`).
pub fn random_run() -> u64 {
    random().max(1)
}

/// 64 random bits from the kernel.
pub fn random() -> u64 {
    let mut bytes = [0; 8];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    // Without it, two runs could share an id and a consumer would take the second for a repeat.
    read.expect("every Linux system has /dev/urandom");
    u64::from_ne_bytes(bytes)
}
