//! An MQTT client that waits for what it is told to wait for.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rumqttc::NetworkOptions;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Filter, Packet, PubAckReason, Publish, RetainForwardRule, SubscribeReasonCode};
use rumqttc::v5::{Client as Mqtt, Event, MqttOptions};
use serde_json::Value;

use crate::{Broker, LIMIT};

/// A message that came in.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its topic.
    pub topic: String,
    /// What it holds.
    pub payload: Vec<u8>,
    /// Whether the broker had kept it.
    pub retained: bool,
    /// Its QoS, 0 to 2.
    pub qos: u8,
    /// Its content type.
    pub content_type: Option<String>,
    /// Its user property `id`.
    pub id: Option<String>,
    /// Seconds after which it is no longer wanted.
    pub expiry_s: Option<u32>,
}

impl Message {
    fn new(publish: &Publish) -> Self {
        let properties = publish.properties.clone().unwrap_or_default();
        Self {
            topic: String::from_utf8_lossy(&publish.topic).into_owned(),
            payload: publish.payload.to_vec(),
            retained: publish.retain,
            qos: publish.qos as u8,
            content_type: properties.content_type,
            id: properties.user_properties.into_iter().find(|(key, _)| key == "id").map(|(_, id)| id),
            expiry_s: properties.message_expiry_interval,
        }
    }

    /// The id in it, if it is an event.
    fn event_id(&self) -> Option<String> {
        let event: Value = serde_json::from_slice(&self.payload).ok().filter(|_| self.topic.ends_with("/event"))?;
        event["id"].as_str().map(str::to_owned)
    }

    /// The payload as one JSON object.
    ///
    /// # Panics
    /// If it is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        let parsed = serde_json::from_slice(&self.payload);
        parsed.unwrap_or_else(|error| {
            panic!("{} is no JSON: {error}: {}", self.topic, String::from_utf8_lossy(&self.payload))
        })
    }

    /// The payload as JSON objects, one a line; a single object is one line.
    ///
    /// # Panics
    /// If it is something else.
    #[track_caller]
    pub fn json_lines(&self) -> Vec<Value> {
        let lines = self.payload.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).expect("every line is a JSON object")).collect()
    }
}

enum Note {
    Connected,
    Subscribed(Vec<SubscribeReasonCode>),
    Numbered(u16),
    Acknowledged(u16, PubAckReason),
    Message(Message),
    Ended(String),
}

/// A connected client.
pub struct Client {
    mqtt: Mqtt,
    notes: Receiver<Note>,
    /// Messages that came and that nobody has waited for yet.
    messages: VecDeque<Message>,
    /// Acknowledgements that nobody has waited for yet.
    acknowledged: HashMap<u16, PubAckReason>,
    /// Ids of the events that came.
    events: HashSet<String>,
}

impl Client {
    /// Connects to a broker.
    ///
    /// # Panics
    /// If that fails.
    pub fn connect(broker: &Broker) -> Self {
        Self::connect_as(broker, None).expect("the broker lets everybody in")
    }

    /// Connects to a broker with user name and password.
    ///
    /// # Errors
    /// What the broker says to it.
    pub fn connect_as(broker: &Broker, credentials: Option<(&str, &str)>) -> Result<Self, String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let id = format!("test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut options = MqttOptions::new(id, "127.0.0.1", broker.port());
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        options.set_network_options(network).set_max_packet_size(Some(1 << 20)).set_keep_alive(Duration::from_secs(30));
        if let Some((user, password)) = credentials {
            options.set_credentials(user, password);
        }
        let (mqtt, mut connection) = Mqtt::new(options, 64);
        let (sender, notes) = channel();
        thread::spawn(move || {
            for event in connection.iter() {
                let note = match event {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => Note::Connected,
                    Ok(Event::Incoming(Packet::SubAck(ack))) => Note::Subscribed(ack.return_codes),
                    Ok(Event::Incoming(Packet::PubAck(ack))) => Note::Acknowledged(ack.pkid, ack.reason),
                    Ok(Event::Incoming(Packet::Publish(publish))) => Note::Message(Message::new(&publish)),
                    Ok(Event::Outgoing(rumqttc::Outgoing::Publish(id))) if id != 0 => Note::Numbered(id),
                    Ok(_) => continue,
                    Err(error) => {
                        // Whoever waits hears of it; if nobody does, the test is over.
                        let _ = sender.send(Note::Ended(error.to_string()));
                        return;
                    }
                };
                if sender.send(note).is_err() {
                    return;
                }
            }
        });
        let mut client =
            Self { mqtt, notes, messages: VecDeque::new(), acknowledged: HashMap::new(), events: HashSet::new() };
        client.until("the connection", |note| matches!(note, Note::Connected).then_some(()))?;
        Ok(client)
    }

    /// Takes notes in until `wanted` gives something.
    fn until<T>(&mut self, what: &str, wanted: impl FnMut(&Note) -> Option<T>) -> Result<T, String> {
        self.within(LIMIT, what, wanted)
    }

    fn within<T>(
        &mut self,
        limit: Duration,
        what: &str,
        mut wanted: impl FnMut(&Note) -> Option<T>,
    ) -> Result<T, String> {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let note = match self.notes.recv_timeout(left) {
                Ok(Note::Ended(why)) => return Err(format!("{what}: the connection ended: {why}")),
                Ok(note) => note,
                Err(RecvTimeoutError::Timeout) => return Err(format!("{what}: it did not come within {limit:?}")),
                Err(RecvTimeoutError::Disconnected) => return Err(format!("{what}: the connection is gone")),
            };
            // An agent that was killed tells what was not acknowledged once more.
            if let Note::Message(message) = &note
                && message.event_id().is_some_and(|id| !self.events.insert(id))
            {
                continue;
            }
            let found = wanted(&note);
            match note {
                Note::Message(message) => self.messages.push_back(message),
                Note::Acknowledged(id, reason) => {
                    self.acknowledged.insert(id, reason);
                }
                _ => {}
            }
            if let Some(found) = found {
                return Ok(found);
            }
        }
    }

    /// Subscribes, retained messages as such, and waits until the broker has granted it.
    ///
    /// # Panics
    /// If it refuses.
    #[track_caller]
    pub fn subscribe(&mut self, filters: &[&str]) {
        let filters = filters.iter().map(|filter| Filter {
            path: (*filter).to_owned(),
            qos: QoS::AtLeastOnce,
            nolocal: false,
            preserve_retain: true,
            retain_forward_rule: RetainForwardRule::OnEverySubscribe,
        });
        self.mqtt.subscribe_many(filters).expect("the client takes requests");
        let codes = self.until("the subscription", |note| match note {
            Note::Subscribed(codes) => Some(codes.clone()),
            _ => None,
        });
        let codes = codes.unwrap_or_else(|why| panic!("{why}"));
        assert!(codes.iter().all(|code| matches!(code, SubscribeReasonCode::Success(_))), "refused: {codes:?}");
    }

    /// Publishes with QoS 1 and waits until the broker has it.
    ///
    /// # Panics
    /// If it refuses.
    #[track_caller]
    pub fn publish(&mut self, topic: &str, payload: impl Into<Vec<u8>>) {
        let reason = self.publish_with(topic, false, payload);
        assert!(
            matches!(reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers),
            "{topic} was refused: {reason:?}"
        );
    }

    /// Publishes with QoS 1, retained or not, and gives the broker's answer.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn publish_with(&mut self, topic: &str, retain: bool, payload: impl Into<Vec<u8>>) -> PubAckReason {
        self.mqtt.publish(topic, QoS::AtLeastOnce, retain, payload.into()).expect("the client takes requests");
        let id = self.until(topic, |note| match note {
            Note::Numbered(id) => Some(*id),
            _ => None,
        });
        let id = id.unwrap_or_else(|why| panic!("{why}"));
        if let Some(reason) = self.acknowledged.remove(&id) {
            return reason;
        }
        let reason = self.until(topic, |note| match note {
            Note::Acknowledged(acknowledged, reason) if *acknowledged == id => Some(*reason),
            _ => None,
        });
        self.acknowledged.remove(&id);
        reason.unwrap_or_else(|why| panic!("{why}"))
    }

    /// Publishes with QoS 0, waiting for nothing.
    ///
    /// # Panics
    /// If the connection is gone.
    pub fn send(&self, topic: &str, payload: impl Into<Vec<u8>>) {
        self.mqtt.publish(topic, QoS::AtMostOnce, false, payload.into()).expect("the client takes requests");
    }

    /// Waits for a message that `wanted` accepts, among those that came before and those to come, and takes it.
    ///
    /// # Panics
    /// If none comes.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, wanted: impl Fn(&Message) -> bool) -> Message {
        if let Some(at) = self.messages.iter().position(&wanted) {
            return self.messages.remove(at).expect("it was found there");
        }
        let found = self.until(what, |note| match note {
            Note::Message(message) if wanted(message) => Some(()),
            _ => None,
        });
        if let Err(why) = found {
            let came: Vec<String> = self.messages.iter().map(told).collect();
            panic!("{why}; what came instead: {came:?}");
        }
        self.messages.pop_back().expect("it came last")
    }

    /// Waits for a message as [`Client::wait_for`], and gives none if none comes in time.
    pub fn try_wait_for(&mut self, limit: Duration, wanted: impl Fn(&Message) -> bool) -> Option<Message> {
        if let Some(at) = self.messages.iter().position(&wanted) {
            return self.messages.remove(at);
        }
        let came = |note: &Note| matches!(note, Note::Message(message) if wanted(message)).then_some(());
        self.within(limit, "a message", came).ok()?;
        self.messages.pop_back()
    }

    /// Waits for the next message on a topic, among those that came before and those to come, and takes it.
    ///
    /// # Panics
    /// If none comes.
    #[track_caller]
    pub fn wait_on(&mut self, topic: &str) -> Message {
        self.wait_for(topic, |message| message.topic == topic)
    }

    /// Waits for the results on a topic, one after the other: those that had to wait for the link come in one message.
    ///
    /// # Panics
    /// If the next does not come.
    pub fn results(&mut self, topic: String) -> impl Iterator<Item = Value> + '_ {
        std::iter::repeat_with(move || self.wait_on(&topic).json_lines()).flatten()
    }

    /// Publishes the same again and again until something comes on another topic, and gives that: for a moment from
    /// which on samples are heard and that nobody announces.
    ///
    /// # Panics
    /// If nothing comes.
    #[track_caller]
    pub fn knock(&mut self, topic: &str, payload: &str, answer: &str) -> Message {
        let until = Instant::now() + LIMIT;
        while Instant::now() < until {
            self.publish(topic, payload);
            if let Some(message) = self.came_on(answer).into_iter().next() {
                return message;
            }
            let came = |note: &Note| matches!(note, Note::Message(message) if message.topic == answer).then_some(());
            // If it does not come, it is asked for again.
            let _ = self.within(Duration::from_millis(50), answer, came);
        }
        panic!("{answer}: nothing came, however often {topic} was published")
    }

    /// Messages on a topic that have come by now and nobody has waited for; they are taken.
    pub fn came_on(&mut self, topic: &str) -> Vec<Message> {
        while let Ok(note) = self.notes.try_recv() {
            if let Note::Message(message) = note {
                self.messages.push_back(message);
            }
        }
        let (came, rest) = self.messages.drain(..).partition(|message| message.topic == topic);
        self.messages = rest;
        Vec::from(came)
    }
}

/// The topic of a message, and of an event what it says.
fn told(message: &Message) -> String {
    let said = message.topic.ends_with("/event").then(|| message.json()["message"].to_string());
    format!("{}{}", message.topic, said.map(|said| format!(" {said}")).unwrap_or_default())
}

impl Drop for Client {
    fn drop(&mut self) {
        // The broker may be gone.
        let _ = self.mqtt.disconnect();
    }
}
