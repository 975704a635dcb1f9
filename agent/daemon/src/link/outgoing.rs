//! What waits for a link.
//!
//! Three kinds of message leave through a link, and each has its own promise:
//!
//! - *fleeting* ones (local outputs, telemetry) go out now or not at all; they never wait for the uplink's results;
//! - *kept* ones (results, events) wait, bounded and in order, until the broker has acknowledged them. What the client
//!   library holds does not count: an item leaves this queue's custody by [`Outgoing::settle`] alone, and comes back by
//!   [`Outgoing::put_back`] if the connection ends first;
//! - *retained* ones (models, the latest decision of each stream) are replaced by newer ones until they are sent.
//!
//! A backlog (items that waited for the link, or for a place in flight) goes out in batches, several results of one topic
//! in one message.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use limpet_wire::result::ResultRecord;
use limpet_wire::topic::Topics;
use limpet_wire::{binary, content_type};
use tokio::sync::Notify;

use crate::config::Encoding;

/// Fleeting messages that may wait for the link's task.
const FLEETING: usize = 1024;
/// Results and events that may wait for an acknowledgement, in memory.
pub const KEPT: usize = 10_000;
/// Largest batch, in bytes, where the broker takes it.
pub const BATCH_BYTES: usize = 100 * 1024;
/// The latest decision of a stream goes out at most this often.
const LATEST_EVERY: Duration = Duration::from_secs(1);
/// First time that a topic which the broker refused is left alone; doubles up to ten minutes.
const PARKED: Duration = Duration::from_secs(5);
const PARKED_LONGEST: Duration = Duration::from_secs(600);

/// How results of a pipeline become messages.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Packing {
    /// JSON or postcard.
    pub encoding: Encoding,
    /// Results in one message, where there is no backlog.
    pub max: usize,
    /// How long the first of them may wait for others.
    pub delay: Duration,
}

/// A message that goes out now or not at all.
#[derive(Debug)]
pub struct Fleeting {
    /// Its topic.
    pub topic: String,
    /// What it says.
    pub body: Body,
    /// QoS 0 or 1; either way it is not sent twice.
    pub at_least_once: bool,
    /// After how many seconds the broker need not deliver it any more.
    pub expiry_s: Option<u32>,
}

/// What a message says.
#[derive(Debug, Clone)]
pub enum Body {
    /// JSON that is written already.
    Json(Vec<u8>),
    /// A result, still to be written.
    Record(Arc<ResultRecord>, Encoding),
}

/// Something kept until it is acknowledged.
#[derive(Debug)]
pub struct Kept {
    number: u64,
    since: Instant,
    item: Item,
}

#[derive(Debug)]
enum Item {
    Result { record: Arc<ResultRecord>, packing: Packing },
    Event { json: Vec<u8> },
}

impl Item {
    fn lane(&self) -> LaneKey {
        match self {
            Self::Event { .. } => LaneKey::Events,
            Self::Result { record, .. } => LaneKey::Results(Arc::clone(&record.pipeline), Arc::clone(&record.stream)),
        }
    }
}

/// Items of one topic, which keep their order; topics do not wait for each other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum LaneKey {
    Events,
    Results(Arc<str>, Arc<str>),
}

impl LaneKey {
    fn topic(&self, topics: &Topics) -> String {
        match self {
            Self::Events => topics.event(),
            Self::Results(pipeline, stream) => topics.result(pipeline, stream),
        }
    }
}

/// A message ready for the client library.
#[derive(Debug)]
pub struct Ready {
    /// Its topic.
    pub topic: String,
    /// Its payload.
    pub payload: Vec<u8>,
    /// Its MQTT content type.
    pub content_type: &'static str,
    /// The id of the one result in it.
    pub id: Option<String>,
    /// QoS 1 rather than 0.
    pub at_least_once: bool,
    /// Whether the broker keeps it for those who come later.
    pub retain: bool,
    /// Message expiry in seconds.
    pub expiry_s: Option<u32>,
    /// What is settled when the broker acknowledges it.
    pub kept: Vec<Kept>,
}

/// What to do next.
#[derive(Debug)]
pub enum Next {
    /// Send this.
    Send(Box<Ready>),
    /// This was given up: the broker takes no message as large.
    TooLarge {
        /// Its topic.
        topic: String,
        /// Its size.
        bytes: usize,
    },
    /// Nothing now; at that moment there will be something, if nothing comes before.
    Wait(Option<Instant>),
}

/// What the link can take at the moment.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// Messages that wait for their acknowledgement.
    pub in_flight: usize,
    /// How many may.
    pub places: usize,
    /// Largest payload the broker takes.
    pub bytes: usize,
    /// Whether nothing may wait for company any more, because the link is about to be closed.
    pub hurry: bool,
}

/// Topics that the broker refused: until when they are left alone, and for how long that was.
type Parked = HashMap<String, (Instant, Duration)>;

#[derive(Debug, Default)]
struct State {
    connected: bool,
    fleeting: VecDeque<Fleeting>,
    kept: HashMap<LaneKey, VecDeque<Kept>>,
    /// Items in `kept`.
    waiting: usize,
    /// Items handed out and not settled; they count towards the bound.
    handed_out: usize,
    next_number: u64,
    backlog: bool,
    parked: Parked,
    latest: HashMap<(Arc<str>, Arc<str>), Latest>,
    retained: BTreeMap<String, (Vec<u8>, bool)>,
    counts: Counts,
}

#[derive(Debug)]
struct Latest {
    record: Arc<ResultRecord>,
    dirty: bool,
    sent: Option<Instant>,
}

/// What did not reach the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Kept items given up because too many waited.
    pub dropped: u64,
    /// Fleeting messages that found no link or no place.
    pub unsent: u64,
    /// Items that the broker acknowledged.
    pub delivered: u64,
    /// Those of them that nobody had subscribed to.
    pub unheard: u64,
}

/// The messages of one link, shared between workers that fill it and the link's task that empties it.
#[derive(Debug)]
pub struct Outgoing {
    topics: Topics,
    state: Mutex<State>,
    /// Rung when there may be something to send.
    pub bell: Notify,
}

impl Outgoing {
    /// Nothing waits. `topics` is where results go, on the link that is the uplink.
    pub fn new(topics: Topics) -> Self {
        Self { topics, state: Mutex::default(), bell: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands in a message that goes out now or not at all.
    pub fn offer_fleeting(&self, message: Fleeting) {
        let mut state = self.lock();
        if state.connected && state.fleeting.len() < FLEETING {
            state.fleeting.push_back(message);
            drop(state);
            self.bell.notify_one();
        } else {
            state.counts.unsent += 1;
        }
    }

    /// Hands in a result that was selected for publication.
    pub fn offer_result(&self, record: Arc<ResultRecord>, packing: Packing) {
        self.keep(Item::Result { record, packing });
    }

    /// Hands in an event.
    pub fn offer_event(&self, json: Vec<u8>) {
        self.keep(Item::Event { json });
    }

    fn keep(&self, item: Item) {
        let mut state = self.lock();
        if state.waiting + state.handed_out >= KEPT {
            state.drop_oldest();
        }
        let number = state.next_number;
        state.next_number += 1;
        state.kept.entry(item.lane()).or_default().push_back(Kept { number, since: Instant::now(), item });
        state.waiting += 1;
        if !state.connected {
            state.backlog = true;
        }
        drop(state);
        self.bell.notify_one();
    }

    /// Hands in the newest decision of a stream.
    pub fn offer_latest(&self, record: &Arc<ResultRecord>) {
        let mut state = self.lock();
        let key = (Arc::clone(&record.pipeline), Arc::clone(&record.stream));
        let latest =
            state.latest.entry(key).or_insert_with(|| Latest { record: Arc::clone(record), dirty: false, sent: None });
        latest.record = Arc::clone(record);
        let ring = !latest.dirty;
        latest.dirty = true;
        drop(state);
        if ring {
            self.bell.notify_one();
        }
    }

    /// Forgets the latest decision of a stream that is gone.
    pub fn forget_latest(&self, pipeline: &Arc<str>, stream: &Arc<str>) {
        self.lock().latest.remove(&(Arc::clone(pipeline), Arc::clone(stream)));
    }

    /// Hands in a message that the broker keeps, in place of the one before on that topic.
    pub fn offer_retained(&self, topic: String, json: Vec<u8>) {
        self.lock().retained.insert(topic, (json, true));
        self.bell.notify_one();
    }

    /// Whether the link is up.
    pub fn is_connected(&self) -> bool {
        self.lock().connected
    }

    /// The link is up: everything retained goes out again, since the broker may have forgotten it.
    pub fn connected(&self) {
        let mut state = self.lock();
        state.connected = true;
        state.backlog |= state.waiting > 0;
        state.parked.clear();
        state.latest.values_mut().for_each(|latest| latest.dirty = true);
        state.retained.values_mut().for_each(|(_, dirty)| *dirty = true);
        drop(state);
        self.bell.notify_one();
    }

    /// The link is down: fleeting messages are lost, and what was handed out comes back to where it stood.
    pub fn put_back(&self, unsettled: Vec<Kept>) {
        let mut state = self.lock();
        state.connected = false;
        state.counts.unsent += state.fleeting.len() as u64;
        state.fleeting.clear();
        state.restore(unsettled);
    }

    /// The client library did not take a message: what was kept comes back to where it stood.
    pub fn not_taken(&self, ready: Ready) {
        let mut state = self.lock();
        if ready.kept.is_empty() && !state.make_dirty(&ready.topic, &self.topics) {
            state.counts.unsent += 1;
        }
        state.restore(ready.kept);
    }

    /// The broker acknowledged a message; `heard` if it had anybody to give it to.
    pub fn settle(&self, topic: &str, kept: &[Kept], heard: bool) {
        let mut state = self.lock();
        state.parked.remove(topic);
        state.handed_out -= kept.len();
        state.counts.delivered += kept.len() as u64;
        state.counts.unheard += if heard { 0 } else { kept.len() as u64 };
    }

    /// The broker refused a message: what it held waits again, and its topic is left alone for a while, twice as long as
    /// the last time. Says whether this is news: messages of that topic that were in flight already are refused too.
    pub fn refuse(&self, topic: &str, kept: Vec<Kept>) -> bool {
        let mut state = self.lock();
        let now = Instant::now();
        let news = match state.parked.get_mut(topic) {
            Some((until, _)) if *until > now => false,
            Some((until, wait)) => {
                *wait = (*wait * 2).min(PARKED_LONGEST);
                *until = now + *wait;
                true
            }
            None => {
                state.parked.insert(topic.to_owned(), (now + PARKED, PARKED));
                true
            }
        };
        state.make_dirty(topic, &self.topics);
        state.restore(kept);
        news
    }

    /// Items that wait or are in flight.
    pub fn waiting(&self) -> usize {
        let state = self.lock();
        state.waiting + state.handed_out
    }

    /// Whether anything that can be sent has not been.
    pub fn is_empty(&self) -> bool {
        let state = self.lock();
        state.waiting == 0
            && state.handed_out == 0
            && state.fleeting.is_empty()
            && !state.latest.values().any(|latest| latest.dirty)
            && !state.retained.values().any(|(_, dirty)| *dirty)
    }

    /// What did not reach the broker, and what did.
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// What to send next. Kept items in it are in the caller's custody until they are settled, refused or put back.
    pub fn next(&self, now: Instant, room: Room) -> Next {
        let mut state = self.lock();
        state.judge_backlog(room);
        let full = room.in_flight >= room.places;
        // A fleeting message that wants an acknowledgement needs a place as well: without one the client library would
        // hold everything behind it back.
        let first = state.fleeting.iter().position(|message| !full || !message.at_least_once);
        if let Some(message) = first.and_then(|at| state.fleeting.remove(at)) {
            return Next::Send(Box::new(fleeting(message)));
        }
        if full {
            return Next::Wait(None);
        }
        let mut wake: Option<Instant> = None;
        let mut earlier = |at: Instant| wake = Some(wake.map_or(at, |w| w.min(at)));
        if let Some(ready) = state.next_retained(now, &mut earlier) {
            return Next::Send(Box::new(ready));
        }
        if let Some(next) = state.next_kept(&self.topics, now, room, &mut earlier) {
            return next;
        }
        match state.next_latest(&self.topics, now, room, &mut earlier) {
            Some(ready) => Next::Send(Box::new(ready)),
            None => Next::Wait(wake),
        }
    }
}

impl State {
    /// Whether there is a backlog: results wait while every place is taken. It is over when nothing waits and most places
    /// are free again; without that distance a busy link would go back and forth between single results, which fill the
    /// places, and batches.
    fn judge_backlog(&mut self, room: Room) {
        if self.waiting == 0 {
            self.backlog &= room.in_flight * 4 >= room.places;
        } else {
            self.backlog |= room.in_flight >= room.places;
        }
    }

    /// Lanes by the age of their first item.
    fn lanes(&self) -> Vec<(u64, LaneKey)> {
        let first = |(key, lane): (&LaneKey, &VecDeque<Kept>)| Some((lane.front()?.number, key.clone()));
        let mut lanes: Vec<_> = self.kept.iter().filter_map(first).collect();
        lanes.sort_unstable_by_key(|(number, _)| *number);
        lanes
    }

    fn drop_oldest(&mut self) {
        let oldest = self.kept.values_mut().filter(|lane| !lane.is_empty()).min_by_key(|lane| lane[0].number);
        if oldest.and_then(VecDeque::pop_front).is_some() {
            self.waiting -= 1;
            self.counts.dropped += 1;
        }
    }

    /// Puts items that were handed out back in the order in which they first came.
    fn restore(&mut self, items: Vec<Kept>) {
        self.handed_out -= items.len();
        self.waiting += items.len();
        self.backlog |= !items.is_empty();
        let mut touched = Vec::new();
        for item in items {
            let key = item.item.lane();
            self.kept.entry(key.clone()).or_default().push_front(item);
            if !touched.contains(&key) {
                touched.push(key);
            }
        }
        for key in touched {
            let lane = self.kept.entry(key).or_default();
            lane.make_contiguous().sort_by_key(|kept| kept.number);
        }
    }

    /// Has the retained message of a topic sent again. Says whether the topic has one.
    fn make_dirty(&mut self, topic: &str, topics: &Topics) -> bool {
        if let Some((_, dirty)) = self.retained.get_mut(topic) {
            *dirty = true;
            return true;
        }
        let latest = self.latest.iter_mut().find(|((pipeline, stream), _)| topics.latest(pipeline, stream) == topic);
        latest.map(|(_, latest)| latest.dirty = true).is_some()
    }

    fn next_retained(&mut self, now: Instant, earlier: &mut impl FnMut(Instant)) -> Option<Ready> {
        for (topic, (json, dirty)) in &mut self.retained {
            if !*dirty {
                continue;
            }
            if let Some(until) = parked(&self.parked, topic, now) {
                earlier(until);
                continue;
            }
            *dirty = false;
            return Some(retained(topic.clone(), json.clone()));
        }
        None
    }

    fn next_latest(
        &mut self,
        topics: &Topics,
        now: Instant,
        room: Room,
        earlier: &mut impl FnMut(Instant),
    ) -> Option<Ready> {
        for latest in self.latest.values_mut().filter(|latest| latest.dirty) {
            let topic = topics.latest(&latest.record.pipeline, &latest.record.stream);
            let parked = parked(&self.parked, &topic, now);
            let due = latest.sent.map(|sent| sent + LATEST_EVERY).filter(|due| *due > now && !room.hurry);
            if let Some(later) = parked.max(due) {
                earlier(later);
                continue;
            }
            latest.dirty = false;
            latest.sent = Some(now);
            let mut payload = Vec::with_capacity(512);
            latest.record.to_json(&mut payload);
            return Some(retained(topic, payload));
        }
        None
    }

    fn next_kept(
        &mut self,
        topics: &Topics,
        now: Instant,
        room: Room,
        earlier: &mut impl FnMut(Instant),
    ) -> Option<Next> {
        for (_, key) in self.lanes() {
            let topic = key.topic(topics);
            if let Some(until) = parked(&self.parked, &topic, now) {
                earlier(until);
                continue;
            }
            let lane = self.kept.get_mut(&key)?;
            let front = lane.front()?;
            let packing = match &front.item {
                Item::Event { .. } => None,
                Item::Result { packing, .. } => Some(*packing),
            };
            let (max, delay) = match packing {
                None => (1, Duration::ZERO),
                Some(_) if self.backlog || room.hurry => (usize::MAX, Duration::ZERO),
                Some(packing) => (packing.max.max(1), packing.delay),
            };
            let due = front.since + delay;
            if lane.len() < max && due > now {
                earlier(due);
                continue;
            }
            let ready = pack(lane, topic, max, packing, room.bytes);
            if lane.is_empty() {
                self.kept.remove(&key);
            }
            self.waiting -= ready.kept.len();
            if ready.payload.len() > room.bytes && ready.kept.len() == 1 && room.bytes < BATCH_BYTES {
                self.counts.dropped += 1;
                return Some(Next::TooLarge { topic: ready.topic, bytes: ready.payload.len() });
            }
            self.handed_out += ready.kept.len();
            return Some(Next::Send(Box::new(ready)));
        }
        None
    }
}

/// Until when a topic is left alone, if it is.
fn parked(parked: &Parked, topic: &str, now: Instant) -> Option<Instant> {
    parked.get(topic).map(|(until, _)| *until).filter(|until| *until > now)
}

/// Takes items off the front of a lane and makes one message of them: as many as `max` and `bytes` allow, at least one.
fn pack(lane: &mut VecDeque<Kept>, topic: String, max: usize, packing: Option<Packing>, bytes: usize) -> Ready {
    let encoding = packing.map_or(Encoding::Json, |packing| packing.encoding);
    let (mut items, mut kept, mut total) = (Vec::<Vec<u8>>::new(), Vec::new(), 0);
    while kept.len() < max
        && let Some(front) = lane.front()
    {
        let mut item = Vec::new();
        match &front.item {
            Item::Event { json } => item.extend_from_slice(json),
            Item::Result { record, .. } => encode(record, encoding, &mut item),
        }
        total += item.len() + 4;
        if !kept.is_empty() && total > bytes {
            break;
        }
        items.push(item);
        kept.extend(lane.pop_front());
    }
    let id = match kept.as_slice() {
        [Kept { item: Item::Result { record, .. }, .. }] => record.id().map(|id| id.to_string()),
        _ => None,
    };
    let content_type = match (encoding, items.len()) {
        (Encoding::Json, 1) => content_type::JSON,
        (Encoding::Json, _) => content_type::NDJSON,
        (Encoding::Postcard, _) => content_type::POSTCARD,
    };
    let payload = match (encoding, items.len()) {
        (_, 1) => items.swap_remove(0),
        (Encoding::Json, _) => items.into_iter().flat_map(|item| item.into_iter().chain([b'\n'])).collect(),
        (Encoding::Postcard, _) => {
            let mut payload = Vec::with_capacity(total);
            items.iter().for_each(|item| binary::push_framed(item, &mut payload));
            payload
        }
    };
    Ready { topic, payload, content_type, id, at_least_once: true, retain: false, expiry_s: None, kept }
}

fn retained(topic: String, payload: Vec<u8>) -> Ready {
    Ready {
        topic,
        payload,
        content_type: content_type::JSON,
        id: None,
        at_least_once: true,
        retain: true,
        expiry_s: None,
        kept: Vec::new(),
    }
}

fn encode(record: &ResultRecord, encoding: Encoding, out: &mut Vec<u8>) {
    match encoding {
        Encoding::Json => record.to_json(out),
        Encoding::Postcard => binary::write_result(record, out),
    }
}

fn fleeting(message: Fleeting) -> Ready {
    let (payload, content_type, id) = match message.body {
        Body::Json(json) => (json, content_type::JSON, None),
        Body::Record(record, encoding) => {
            let mut payload = Vec::with_capacity(512);
            encode(&record, encoding, &mut payload);
            let content_type = match encoding {
                Encoding::Json => content_type::JSON,
                Encoding::Postcard => content_type::POSTCARD,
            };
            (payload, content_type, record.id().map(|id| id.to_string()))
        }
    };
    Ready {
        topic: message.topic,
        payload,
        content_type,
        id,
        at_least_once: message.at_least_once,
        retain: false,
        expiry_s: message.expiry_s,
        kept: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
