//! A depot behind a broker, as this program sees it: read through [`limpet_depot::ask`], written as retained messages.
//!
//! Every message goes out at QoS 1 and counts as put when the broker has acknowledged it without a refusal. Up to
//! [`IN_FLIGHT`] wait for that at a time, so [`Shelf::put`] may be called many times at once. A connection that is lost is
//! made anew from nothing, client library included: what was not acknowledged is sent again, what is waited for is asked
//! for again. Sending a retained message twice changes nothing.
//!
//! Simulated gateways use it too: they follow the timestamp, and say on topics beside the depot what they have.

use std::collections::{HashMap, VecDeque};
use std::io::Read as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use limpet_depot::ask::{Action, Fetcher, Missing, Pump, desk};
use limpet_depot::remote::{Bytes, Remote, RemoteError, Shelf, async_trait};
use limpet_wire::depot::Name;
use rumqttc::Outgoing as Sent;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectReturnCode, Filter, Packet, PubAckReason, PublishProperties, RetainForwardRule, SubscribeReasonCode,
};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, MqttOptions, StateError};
use tokio::sync::{Notify, oneshot};

use crate::mqtt::broker::Broker;

/// Messages that wait for their acknowledgement at a time, where the broker allows as many.
const IN_FLIGHT: u16 = 64;
/// Requests that the client takes at once: more than are ever handed over.
const CLIENT_QUEUE: usize = 256;
/// What a first connection may take, tries included.
const FIRST_CONNECTION: Duration = Duration::from_secs(20);
/// Without a connection for so long, what is to be put is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Shortest and longest wait before the next try to connect.
const WAITS: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(30)];
/// A connection that held this long was a good one.
const GOOD: Duration = Duration::from_secs(30);
/// A connection on which nothing moved for this long, pings included, is dead.
const DEAD: Duration = Duration::from_secs(30);

/// So many connections in a row that end with messages on the way, and with none acknowledged, are no accident: the broker
/// does not take them. Some say so by closing the connection, without a word.
const BARREN: u32 = 5;

/// A depot behind a broker. Its connection ends with it.
pub struct MqttDepot {
    fetcher: Fetcher,
    puts: Arc<Puts>,
    /// What stands before the names of objects.
    topics: String,
    traffic: Arc<Traffic>,
    connection: tokio::task::JoinHandle<()>,
}

/// What came over a connection, whether it was asked for or not.
#[derive(Debug, Default)]
pub struct Traffic {
    messages: AtomicU64,
    bytes: AtomicU64,
}

impl Traffic {
    fn count(&self, bytes: usize) {
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Messages.
    pub fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    /// Bytes of their topics and payloads.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl MqttDepot {
    /// Connects to the depot under `<prefix>/depot/` and waits until the broker has said yes. What it does not send is
    /// told nobody; [`MqttDepot::connect_telling`] does.
    ///
    /// # Errors
    /// Unavailable, with the reason, if there is no connection after some tries.
    pub async fn connect(broker: Broker, prefix: &str, client_id: &str) -> anyhow::Result<Self> {
        Self::connect_telling(broker, prefix, client_id, |_| {}).await
    }

    /// [`MqttDepot::connect`], with somebody who is told what the broker does not send.
    ///
    /// # Errors
    /// As [`MqttDepot::connect`].
    pub async fn connect_telling(
        broker: Broker,
        prefix: &str,
        client_id: &str,
        tell: impl Fn(&Missing) + Send + 'static,
    ) -> anyhow::Result<Self> {
        let place = format!("{prefix}/depot at {broker}");
        let at = broker.to_string();
        let (fetcher, pump) = desk(place.clone(), random());
        let puts = Arc::new(Puts { place, waiting: Mutex::default(), bell: Notify::new() });
        let (connected, first) = oneshot::channel();
        let topics = format!("{prefix}/depot/");
        let traffic = Arc::new(Traffic::default());
        let link = Link {
            broker,
            topics: topics.clone(),
            traffic: Arc::clone(&traffic),
            client_id: client_id.to_owned(),
            pump,
            puts: Arc::clone(&puts),
            tell: Box::new(tell),
            connected: Some(connected),
            lost: Instant::now(),
            barren: 0,
        };
        let depot = Self { fetcher, puts, topics, traffic, connection: tokio::spawn(link.run()) };
        match first.await {
            Ok(Ok(())) => Ok(depot),
            Ok(Err(why)) => Err(crate::unavailable(format!("no depot at {at}: {why}"))),
            Err(_) => Err(crate::unavailable(format!("no depot at {at}: the connection's task ended"))),
        }
    }

    /// For following a message, as [`Fetcher::follow`].
    pub fn fetcher(&self) -> &Fetcher {
        &self.fetcher
    }

    /// What came so far, on all connections that this one was made of.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Puts a retained message on any topic, such as one beside the depot. It has its turn from this call on, as long as
    /// somebody waits for the end.
    ///
    /// # Errors
    /// Why the broker did not take it.
    pub fn say(&self, topic: String, message: Bytes) -> impl Future<Output = Result<(), NotTaken>> + Send + use<> {
        let (answer, answered) = oneshot::channel();
        self.puts.waiting().push_back(Put { topic, message, answer });
        self.puts.bell.notify_one();
        async { answered.await.unwrap_or_else(|_| Err(NotTaken::Failed("the connection's task ended".to_owned()))) }
    }

    async fn publish(&self, name: &Name, message: Bytes) -> Result<(), RemoteError> {
        let place = || self.puts.place.clone();
        self.say(format!("{}{name}", self.topics), message).await.map_err(|error| match error {
            NotTaken::TooLarge { found, most } => {
                RemoteError::TooLarge { place: place(), name: name.clone(), found, most }
            }
            NotTaken::Failed(reason) => RemoteError::Failed { place: place(), name: name.clone(), reason },
        })
    }
}

impl Drop for MqttDepot {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

#[async_trait]
impl Remote for MqttDepot {
    async fn message(&self, name: &Name, most: usize) -> Result<Bytes, RemoteError> {
        self.fetcher.message(name, most).await
    }

    fn place(&self) -> &str {
        self.fetcher.place()
    }
}

#[async_trait]
impl Shelf for MqttDepot {
    async fn put(&self, name: &Name, message: Bytes) -> Result<(), RemoteError> {
        if message.is_empty() {
            let (place, reason) = (self.puts.place.clone(), "an empty message would take it away".to_owned());
            return Err(RemoteError::Failed { place, name: name.clone(), reason });
        }
        self.publish(name, message).await
    }

    async fn remove(&self, name: &Name) -> Result<(), RemoteError> {
        // A broker forgets what it keeps when an empty message comes.
        self.publish(name, Bytes::new()).await
    }
}

/// A message that somebody waits for to be acknowledged.
struct Put {
    topic: String,
    message: Bytes,
    answer: oneshot::Sender<Result<(), NotTaken>>,
}

/// Why a broker did not take a message.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// It takes none that large.
    #[error("it has {found} bytes, and the broker takes at most {most}")]
    TooLarge {
        /// Bytes of the message.
        found: u64,
        /// The most.
        most: u64,
    },
    /// For another reason.
    #[error("{0}")]
    Failed(String),
}

/// What is to be put, first come first served.
struct Puts {
    place: String,
    waiting: Mutex<VecDeque<Put>>,
    /// Rings when something is added.
    bell: Notify,
}

impl Puts {
    fn waiting(&self) -> std::sync::MutexGuard<'_, VecDeque<Put>> {
        // Nothing panics while it is locked.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connection, whatever becomes of it.
struct Link {
    broker: Broker,
    /// What stands before the names of objects.
    topics: String,
    traffic: Arc<Traffic>,
    client_id: String,
    pump: Pump,
    puts: Arc<Puts>,
    tell: Box<dyn Fn(&Missing) + Send>,
    /// Whom to tell of the first connection.
    connected: Option<oneshot::Sender<Result<(), String>>>,
    /// Since when there is no connection.
    lost: Instant,
    /// Connections in a row that ended with messages on the way and none acknowledged.
    barren: u32,
}

/// Why a connection ended.
struct Lost {
    why: String,
    /// Trying again is of no use.
    for_good: bool,
}

impl Link {
    async fn run(mut self) {
        let [mut wait, longest] = WAITS;
        loop {
            let started = Instant::now();
            let lost = self.connection().await;
            self.pump.disconnected();
            if started.elapsed() >= GOOD {
                wait = WAITS[0];
            }
            if let Some(connected) = self.connected.take_if(|_| lost.for_good || self.lost.elapsed() > FIRST_CONNECTION)
            {
                // Whoever waited for it may have gone.
                let _ = connected.send(Err(lost.why));
                return;
            }
            if lost.for_good || self.lost.elapsed() > PATIENCE {
                let why = format!("no connection for {} s: {}", self.lost.elapsed().as_secs(), lost.why);
                for put in std::mem::take(&mut *self.puts.waiting()) {
                    // As above.
                    let _ = put.answer.send(Err(NotTaken::Failed(why.clone())));
                }
            }
            // Between half of it and all of it, so that many publishers, or simulated gateways, do not come in step.
            let share = 0.5 + 0.5 * (random() as f64 / u64::MAX as f64);
            tokio::time::sleep(wait.mul_f64(share)).await;
            wait = (wait * 2).min(longest);
        }
    }

    /// One connection from its beginning to its end.
    async fn connection(&mut self) -> Lost {
        let (client, mut events) = AsyncClient::new(self.options(), CLIENT_QUEUE);
        let mut flight = Flight::default();
        let mut last_event = Instant::now();
        let mut rules: Option<Rules> = None;
        let lost = loop {
            let event = {
                // Polled to its end except when the connection is given up: a poll that is dropped may lose what it read.
                let mut polling = std::pin::pin!(events.poll());
                loop {
                    let now = Instant::now();
                    let mut wake = last_event + DEAD;
                    if let Some(rules) = rules {
                        self.hand_over(&client, &mut flight, rules, now);
                        wake = self.pump.next_wake(now).map_or(wake, |other| wake.min(other));
                    }
                    tokio::select! {
                        biased;
                        event = &mut polling => break Some(event),
                        () = self.puts.bell.notified(), if rules.is_some() => {}
                        () = self.pump.rung(), if rules.is_some() => {}
                        () = tokio::time::sleep_until(wake.into()) => {
                            if last_event.elapsed() >= DEAD {
                                break None;
                            }
                        }
                    }
                }
            };
            last_event = Instant::now();
            match event {
                Some(Ok(Event::Incoming(Packet::ConnAck(ack)))) => match Rules::of(&ack) {
                    Ok(found) => {
                        rules = Some(found);
                        self.pump.connected(last_event);
                        if let Some(connected) = self.connected.take() {
                            let _ = connected.send(Ok(()));
                        }
                    }
                    Err(why) => break Lost { why, for_good: true },
                },
                Some(Ok(event)) => self.take(event, &mut flight, last_event),
                Some(Err(error)) => break self.explain(&error),
                None => {
                    let why = format!("nothing moved for {} s; the line is dead or the broker hangs", DEAD.as_secs());
                    break Lost { why, for_good: false };
                }
            }
        };
        if rules.is_some() {
            self.lost = Instant::now();
            self.barren = if flight.acknowledged || flight.len() == 0 { 0 } else { self.barren + 1 };
        }
        if self.barren == BARREN {
            self.barren = 0;
            for put in flight.ground() {
                let why = format!(
                    "the connection ended {BARREN} times in a row while this message of {} bytes was on its way, and no \
                     other came through ({}); perhaps it is too large for the broker: see its message_size_limit",
                    put.message.len(),
                    lost.why
                );
                // Whoever waited may have gone.
                let _ = put.answer.send(Err(NotTaken::Failed(why)));
            }
            return lost;
        }
        // In the order in which they were handed over, before what waits.
        let mut waiting = self.puts.waiting();
        for put in flight.ground().into_iter().rev() {
            waiting.push_front(put);
        }
        drop(waiting);
        lost
    }

    fn options(&self) -> MqttOptions {
        let mut options = self.broker.options(self.client_id.clone());
        options.set_session_expiry_interval(Some(0));
        // One place stays free, because the client reads no request at all when all are taken.
        options.set_outgoing_inflight_upper_limit(IN_FLIGHT + 1);
        options
    }

    /// Gives the client what there is room for. It never blocks: the client's queue takes more than that.
    fn hand_over(&self, client: &AsyncClient, flight: &mut Flight, rules: Rules, now: Instant) {
        let topic = |name: &Name| format!("{}{name}", self.topics);
        for action in self.pump.next_actions(now) {
            let taken = match action {
                Action::Subscribe(names) => {
                    let filter = |name: &Name| Filter {
                        path: topic(name),
                        qos: QoS::AtLeastOnce,
                        nolocal: false,
                        preserve_retain: true,
                        retain_forward_rule: RetainForwardRule::OnEverySubscribe,
                    };
                    let taken = client.try_subscribe_many(names.iter().map(filter)).is_ok();
                    if taken {
                        flight.asked.push_back(names);
                    }
                    taken
                }
                // The client's packet has room for one topic.
                Action::Unsubscribe(names) => names.iter().all(|name| client.try_unsubscribe(topic(name)).is_ok()),
                Action::Missing(missing) => {
                    (self.tell)(&missing);
                    true
                }
            };
            // Never by construction; what was not asked for is asked for again.
            debug_assert!(taken, "the MQTT client took no request");
        }
        while flight.len() < rules.places {
            let Some(put) = self.puts.waiting().pop_front() else { break };
            if put.answer.is_closed() {
                continue;
            }
            // The head of a PUBLISH is at most so much longer than its topic.
            let largest = rules.largest.saturating_sub(put.topic.len() + 32);
            if put.message.len() > largest {
                let (found, most) = (put.message.len() as u64, largest as u64);
                // Whoever waited may have gone a moment ago.
                let _ = put.answer.send(Err(NotTaken::TooLarge { found, most }));
                continue;
            }
            let taken = client.try_publish_with_properties(
                put.topic.clone(),
                QoS::AtLeastOnce,
                true,
                put.message.to_vec(),
                PublishProperties::default(),
            );
            if taken.is_err() {
                // Never by construction; if it were, it would go with the next event.
                self.puts.waiting().push_front(put);
                break;
            }
            flight.handed.push_back(put);
        }
    }

    /// Takes what happened on the connection.
    fn take(&self, event: Event, flight: &mut Flight, now: Instant) {
        match event {
            Event::Incoming(Packet::Publish(publish)) => {
                self.traffic.count(publish.topic.len() + publish.payload.len());
                let topic = std::str::from_utf8(&publish.topic).unwrap_or_default();
                if let Some(name) = topic.strip_prefix(&self.topics) {
                    self.pump.arrived(name, &publish.payload, now);
                }
            }
            Event::Incoming(Packet::SubAck(ack)) => {
                let names = flight.asking.remove(&ack.pkid).unwrap_or_default();
                for (reason, name) in ack.return_codes.iter().zip(&names) {
                    if !matches!(reason, SubscribeReasonCode::Success(_)) {
                        self.pump.refused(std::slice::from_ref(name), &format!("{reason:?}"), now);
                    }
                }
            }
            Event::Incoming(Packet::PubAck(ack)) => {
                flight.acknowledged = true;
                if let Some(put) = flight.numbered.remove(&ack.pkid).map(|(_, put)| put) {
                    let answer = match ack.reason {
                        // Nobody reads it now; it is kept all the same.
                        PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Ok(()),
                        reason => Err(NotTaken::Failed(self.refusal(&put.topic, reason))),
                    };
                    // Whoever waited may have gone.
                    let _ = put.answer.send(answer);
                }
            }
            Event::Outgoing(Sent::Publish(id)) => {
                if let Some(put) = flight.handed.pop_front() {
                    flight.order += 1;
                    flight.numbered.insert(id, (flight.order, put));
                }
            }
            Event::Outgoing(Sent::Subscribe(id)) => {
                if let Some(names) = flight.asked.pop_front() {
                    flight.asking.insert(id, names);
                }
            }
            _ => {}
        }
    }

    fn refusal(&self, topic: &str, reason: PubAckReason) -> String {
        match reason {
            PubAckReason::NotAuthorized => {
                let user = self.broker.user();
                let of_depot = topic.starts_with(&self.topics);
                let rule = format!("topic write {}", if of_depot { format!("{}#", self.topics) } else { topic.into() });
                format!("the broker does not let {user} publish on {topic}; its access list needs '{rule}'")
            }
            reason => format!("the broker refuses the message on {topic}: {reason:?}"),
        }
    }

    fn explain(&self, error: &ConnectionError) -> Lost {
        let refused = |code: &ConnectReturnCode| {
            let user = self.broker.user();
            let why = match code {
                ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized => format!(
                    "the broker refuses {user} with client id '{}' ({code:?}); check name and password",
                    self.client_id
                ),
                code => format!("the broker refuses the connection: {code:?}"),
            };
            // A broker that is busy has room later.
            let for_good = !matches!(code, ConnectReturnCode::ServerBusy | ConnectReturnCode::ServerUnavailable);
            Lost { why, for_good }
        };
        let why = match error {
            ConnectionError::ConnectionRefused(code) => return refused(code),
            ConnectionError::MqttState(StateError::ConnFail { reason }) => return refused(reason),
            ConnectionError::Timeout(_) => "no answer within 5 s".to_owned(),
            ConnectionError::Io(error) | ConnectionError::MqttState(StateError::Io(error)) => error.to_string(),
            other => self.broker.why(other),
        };
        // A certificate that was never believed is not believed the next time either.
        Lost { why, for_good: self.connected.is_some() && Broker::stays_so(error) }
    }
}

/// What the broker allows.
#[derive(Debug, Clone, Copy)]
struct Rules {
    /// Messages in flight.
    places: usize,
    /// Bytes of a packet.
    largest: usize,
}

impl Rules {
    fn of(ack: &ConnAck) -> Result<Self, String> {
        let properties = ack.properties.as_ref();
        if properties.and_then(|p| p.retain_available) == Some(0) {
            return Err("the broker keeps no retained messages, of which a depot is made; allow them".to_owned());
        }
        let places = properties.and_then(|p| p.receive_max).unwrap_or(u16::MAX);
        let largest = properties.and_then(|p| p.max_packet_size).unwrap_or(u32::MAX) as usize;
        Ok(Self { places: usize::from(places.saturating_sub(1).clamp(1, IN_FLIGHT)), largest })
    }
}

/// What was handed to the client and not answered.
#[derive(Default)]
struct Flight {
    /// Messages in the order of handing over; the client gives them their ids in this order.
    handed: VecDeque<Put>,
    /// With their ids, and the order in which they went out.
    numbered: HashMap<u16, (u64, Put)>,
    order: u64,
    /// Whether the broker has answered any of them.
    acknowledged: bool,
    /// Names of each SUBSCRIBE, in the order of handing over; then by packet id.
    asked: VecDeque<Vec<Name>>,
    asking: HashMap<u16, Vec<Name>>,
}

impl Flight {
    fn len(&self) -> usize {
        self.handed.len() + self.numbered.len()
    }

    /// All that was not acknowledged, in the order in which it was handed over.
    fn ground(self) -> Vec<Put> {
        let mut numbered: Vec<_> = self.numbered.into_values().collect();
        numbered.sort_by_key(|(order, _)| *order);
        numbered.into_iter().map(|(_, put)| put).chain(self.handed).collect()
    }
}

/// 64 random bits from the kernel.
pub fn random() -> u64 {
    let mut bytes = [0; 8];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.expect("every Linux system has /dev/urandom");
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::path::Path;
    use std::process::{Child, Command, Stdio};

    use limpet_depot::ask::Why;
    use limpet_depot::remote::{object, put_object};
    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::mqtt::broker::{BrokerUrl, LoginArgs};

    /// No test waits longer for anything.
    const LIMIT: Duration = Duration::from_secs(60);

    /// A mosquitto on a free port of the loopback interface; it ends with this value.
    pub struct Mosquitto {
        folder: tempfile::TempDir,
        port: u16,
        running: Option<Child>,
    }

    impl Mosquitto {
        /// One that lets everybody in and keeps its default limits, with further lines in its configuration.
        pub fn start(lines: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let mut broker = Self { folder, port: 0, running: None };
            // A port that is taken between the choice and the start is another test's; there are others.
            for _ in 0..20 {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                broker.port = listener.local_addr().unwrap().port();
                drop(listener);
                let user = if rustix::process::geteuid().is_root() { "user root\n" } else { "" };
                let port = broker.port;
                let text = format!(
                    "listener {port} 127.0.0.1\nset_tcp_nodelay true\npersistence false\nallow_anonymous true\n{user}{lines}\n"
                );
                std::fs::write(broker.folder.path().join("conf"), text).unwrap();
                if broker.run() {
                    return broker;
                }
            }
            panic!("mosquitto does not start: install it with scripts/setup --tests")
        }

        fn run(&mut self) -> bool {
            let known = "/usr/sbin/mosquitto";
            let program = if Path::new(known).exists() { known } else { "mosquitto" };
            let mut child = Command::new(program)
                .args(["-c", "conf"])
                .current_dir(self.folder.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("mosquitto is not installed: run scripts/setup --tests");
            let until = Instant::now() + LIMIT;
            while Instant::now() < until {
                if child.try_wait().unwrap().is_some() {
                    return false;
                }
                if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
                    self.running = Some(child);
                    return true;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = child.kill();
            let _ = child.wait();
            false
        }

        fn kill(&mut self) {
            if let Some(mut child) = self.running.take() {
                child.kill().unwrap();
                child.wait().unwrap();
            }
        }

        pub fn url(&self) -> BrokerUrl {
            crate::mqtt::Address::local(self.port).into()
        }
    }

    impl Drop for Mosquitto {
        fn drop(&mut self) {
            self.kill();
        }
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(LIMIT, future).await.expect("it takes too long") })
    }

    fn nobody(url: &BrokerUrl) -> Broker {
        Broker::new(url, &LoginArgs::default()).unwrap()
    }

    async fn connect(url: &BrokerUrl, id: &str) -> Arc<MqttDepot> {
        Arc::new(MqttDepot::connect(nobody(url), "limpet/1", id).await.unwrap())
    }

    /// Chunks that all differ, of 16 KiB each.
    fn chunks(count: u32) -> Vec<(Name, Bytes)> {
        let chunk = |index: u32| {
            let bytes: Vec<u8> = (0..4096_u32).flat_map(|word| (word ^ (index << 16)).to_le_bytes()).collect();
            (Name::Chunk(Sha256::digest(&bytes).into()), bytes.into())
        };
        (0..count).map(chunk).collect()
    }

    /// Puts all of them at once.
    async fn put_all(depot: &Arc<MqttDepot>, chunks: &[(Name, Bytes)]) {
        let mut puts = tokio::task::JoinSet::new();
        for (name, bytes) in chunks {
            let (depot, name, bytes) = (Arc::clone(depot), name.clone(), bytes.clone());
            puts.spawn(async move { depot.put(&name, bytes).await.unwrap() });
        }
        puts.join_all().await;
    }

    /// Fetches all of them at once.
    async fn fetch_all(depot: &Arc<MqttDepot>, chunks: &[(Name, Bytes)]) {
        let mut fetches = tokio::task::JoinSet::new();
        for (name, bytes) in chunks {
            let (depot, name, bytes) = (Arc::clone(depot), name.clone(), bytes.clone());
            fetches.spawn(async move { assert_eq!(depot.message(&name, 1 << 16).await.unwrap(), bytes) });
        }
        fetches.join_all().await;
    }

    /// What a depot must do on every broker.
    async fn keeps_a_depot(url: &BrokerUrl) {
        let publisher = connect(url, "publisher").await;
        let chunks = chunks(200);
        put_all(&publisher, &chunks).await;
        let large: Vec<u8> = (0..60_000_u32).flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        put_object(&*publisher, &Name::Roots, large.clone()).await.unwrap();
        publisher.put(&Name::Timestamp, Bytes::from_static(b"{1}")).await.unwrap();

        let reader = connect(url, "reader").await;
        fetch_all(&reader, &chunks).await;
        assert_eq!(object(&*reader, &Name::Roots, 1 << 20).await.unwrap(), large);
        // The same again: it is asked for anew each time.
        for _ in 0..2 {
            assert_eq!(reader.message(&Name::Timestamp, 10).await.unwrap(), &b"{1}"[..]);
        }
        let error = reader.message(&Name::Timestamp, 2).await.unwrap_err();
        assert!(matches!(error, RemoteError::TooLarge { found: 3, most: 2, .. }), "{error}");

        let mut following = reader.fetcher().follow(&Name::Timestamp, 10);
        assert_eq!(following.next().await, &b"{1}"[..]);
        publisher.put(&Name::Timestamp, Bytes::from_static(b"{2}")).await.unwrap();
        assert_eq!(following.next().await, &b"{2}"[..]);

        // What is removed is not there, of which nothing is concluded: it comes when it is put again.
        let (name, bytes) = &chunks[0];
        publisher.remove(name).await.unwrap();
        let waiting = {
            let (reader, name) = (Arc::clone(&reader), name.clone());
            tokio::spawn(async move { reader.message(&name, 1 << 16).await })
        };
        // This one is asked for after it.
        reader.message(&chunks[1].0, 1 << 16).await.unwrap();
        assert!(!waiting.is_finished());
        publisher.put(name, bytes.clone()).await.unwrap();
        assert_eq!(waiting.await.unwrap().unwrap(), bytes);
        publisher.put(name, Bytes::new()).await.unwrap_err();
    }

    #[test]
    fn mosquitto_keeps_a_depot() {
        let broker = Mosquitto::start("");
        run(keeps_a_depot(&broker.url()));
    }

    #[test]
    fn the_embedded_broker_keeps_a_depot() {
        let url = crate::broker::start_on_free_port().unwrap();
        run(keeps_a_depot(&url.into()));
    }

    #[test]
    fn a_broker_that_comes_back_empty_gets_what_was_not_acknowledged_and_is_asked_anew() {
        let mut broker = Mosquitto::start("");
        let chunks = chunks(30);
        run(async {
            let publisher = connect(&broker.url(), "publisher").await;
            put_all(&publisher, &chunks).await;
            let (told, mut telling) = tokio::sync::mpsc::unbounded_channel();
            let tell = move |missing: &Missing| drop(told.send(missing.clone()));
            let reader = MqttDepot::connect_telling(nobody(&broker.url()), "limpet/1", "reader", tell).await.unwrap();
            let reader = Arc::new(reader);
            fetch_all(&reader, &chunks).await;
            broker.kill();
            // Both are asked for while there is no broker.
            let (putting, fetching) = {
                let (publisher, reader, chunks) = (Arc::clone(&publisher), Arc::clone(&reader), chunks.clone());
                let lost = chunks[7].0.clone();
                let most = tokio::spawn(async move { put_all(&publisher, &chunks[8..]).await });
                (most, tokio::spawn(async move { reader.message(&lost, 1 << 16).await }))
            };
            assert!(broker.run());
            putting.await.unwrap();
            fetch_all(&reader, &chunks[8..]).await;
            // The broker has lost the first ones.
            let missing = telling.recv().await.unwrap();
            assert_eq!((missing.name, missing.why), (chunks[7].0.clone(), Why::Silent));
            put_all(&publisher, &chunks[7..8]).await;
            assert_eq!(fetching.await.unwrap().unwrap(), chunks[7].1);
        });
    }

    #[test]
    fn what_the_access_list_forbids_is_an_error_that_names_the_topic_and_the_rule() {
        let folder = tempfile::tempdir().unwrap();
        let acl = folder.path().join("acl");
        std::fs::write(&acl, "topic read limpet/1/depot/#\n").unwrap();
        let broker = Mosquitto::start(&format!("acl_file {}", acl.display()));
        run(async {
            let depot = connect(&broker.url(), "publisher").await;
            let error = depot.put(&Name::Roots, Bytes::from_static(b"[]")).await.unwrap_err().to_string();
            assert!(error.contains("limpet/1/depot/meta/roots"), "{error}");
            assert!(error.contains("topic write limpet/1/depot/#"), "{error}");
        });
    }

    #[test]
    fn a_first_connection_that_is_refused_says_why() {
        let broker = Mosquitto::start("");
        let folder = tempfile::tempdir().unwrap();
        let passwords = folder.path().join("passwords");
        std::fs::write(&passwords, "").unwrap();
        let password_file = folder.path().join("password");
        std::fs::write(&password_file, "secret\n").unwrap();
        let who =
            LoginArgs { username: Some("who".to_owned()), password_file: Some(password_file), ..LoginArgs::default() };
        let locked = Mosquitto::start(&format!("password_file {}", passwords.display()));
        run(async {
            connect(&broker.url(), "publisher").await;
            let locked = Broker::new(&locked.url(), &who).unwrap();
            let refused = MqttDepot::connect(locked, "limpet/1", "publisher").await;
            let error = refused.err().expect("nobody is let in").to_string();
            assert!(error.contains("user 'who'") && !error.contains("secret"), "{error}");
        });
    }

    #[test]
    fn a_message_that_the_broker_does_not_take_is_not_sent() {
        let broker = Mosquitto::start("max_packet_size 10000");
        let (name, bytes) = chunks(1).remove(0);
        run(async {
            let depot = connect(&broker.url(), "publisher").await;
            let error = depot.put(&name, bytes).await.unwrap_err();
            assert!(matches!(error, RemoteError::TooLarge { found: 16384, .. }), "{error}");
            depot.put(&Name::Timestamp, Bytes::from_static(b"{}")).await.unwrap();
        });
    }
}
