//! What waits for a link.
//!
//! Three kinds of message leave through a link, and each has its own promise:
//!
//! - *fleeting* ones (local outputs, telemetry) go out now or not at all; they never wait for the uplink's results;
//! - *kept* ones (results, events, range records) wait in the [`Outbox`] until the broker has acknowledged them. What the
//!   client library holds does not count: an item leaves the outbox by [`Outgoing::settle`] alone, and comes back by
//!   [`Outgoing::put_back`] if the connection ends first. Only the uplink has an outbox;
//! - *retained* ones (models, the latest decision of each stream) are replaced by newer ones until they are sent.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use limpet_wire::dropped::Reason;
use limpet_wire::message::LinkFigures;
use limpet_wire::result::ResultRecord;
use limpet_wire::topic::Topics;
use limpet_wire::{WireError, binary, content_type};
use tokio::sync::Notify;

use crate::config::{BrokerUrl, Encoding};
use crate::outbox::book::{Batch, Boot, Custody, Take};
use crate::outbox::{Outbox, item};
use crate::wall::Wall;

/// Fleeting messages that may wait for the link's task.
const FLEETING: usize = 1024;
/// Largest batch, in bytes, where the broker takes it.
pub const BATCH_BYTES: usize = 100 * 1024;
/// What a packet has beside its payload, its topic and what it says of itself, at most: fixed header, lengths, ids.
pub const OVERHEAD: usize = 1024;
/// The latest decision of a stream goes out at most this often.
const LATEST_EVERY: Duration = Duration::from_secs(1);
/// How long it is of interest that connections did not last.
const RECENT: Duration = Duration::from_secs(300);
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

impl Packing {
    /// Each result by itself, as JSON.
    pub const SINGLE: Self = Self { encoding: Encoding::Json, max: 1, delay: Duration::ZERO };
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
    /// What it is the answer to.
    pub correlation: Option<Bytes>,
}

/// What a message says.
#[derive(Debug, Clone)]
pub enum Body {
    /// JSON that is written already.
    Json(Vec<u8>),
    /// A result, still to be written.
    Record(Arc<ResultRecord>, Encoding),
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
    /// What it is the answer to.
    pub correlation: Option<Bytes>,
    /// What is settled when the broker acknowledges it.
    pub kept: Option<Custody>,
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
    /// Ask again: what was next could not be sent.
    Again,
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
    /// Bytes of a batch.
    pub bytes: usize,
    /// Largest packet that the broker takes.
    pub largest: usize,
    /// Whether nothing may wait for company any more, because the link is about to be closed.
    pub hurry: bool,
}

/// Topics that the broker refused: until when they are left alone, for how long that was, and why.
type Parked = HashMap<String, (Instant, Duration, String)>;

#[derive(Debug, Default)]
struct State {
    connected: bool,
    fleeting: VecDeque<Fleeting>,
    parked: Parked,
    latest: HashMap<(Arc<str>, Arc<str>), Latest>,
    retained: BTreeMap<String, (Vec<u8>, bool)>,
    /// Connections that were made, and fleeting messages that found no link or no place.
    connections: u64,
    unsent: u64,
    /// Why there is no link, by address, as far as that was said.
    why: BTreeMap<String, String>,
    /// When the last of several connections ended that were hardly worth making, and how many those were.
    short_lived: Option<(Instant, u32)>,
    /// Filters that the broker has refused.
    refused: BTreeSet<String>,
    /// Largest packet that the broker took last, if there was a connection.
    largest: Option<usize>,
    /// Topics of which a message that the broker would keep is too large, since it was connected: told of once.
    oversize: BTreeSet<String>,
}

#[derive(Debug)]
struct Latest {
    record: Arc<ResultRecord>,
    dirty: bool,
    sent: Option<Instant>,
}

/// The messages of one link, shared between workers that fill it and the link's task that empties it.
#[derive(Debug)]
pub struct Outgoing {
    topics: Topics,
    state: Mutex<State>,
    /// What is kept, on the uplink.
    outbox: Option<Arc<Outbox>>,
    /// Rung when there may be something to send.
    pub bell: Arc<Notify>,
}

impl Outgoing {
    /// A link that keeps nothing.
    pub fn new(topics: Topics) -> Self {
        Self { topics, state: Mutex::default(), outbox: None, bell: Arc::default() }
    }

    /// The uplink. `topics` is where results go, and `bell` the one that the outbox rings.
    pub fn uplink(topics: Topics, outbox: Arc<Outbox>, bell: Arc<Notify>) -> Self {
        Self { topics, state: Mutex::default(), outbox: Some(outbox), bell }
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
            state.unsent += 1;
        }
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

    /// Figures since the start.
    pub fn figures(&self) -> LinkFigures {
        let State { connected, connections, unsent, .. } = *self.lock();
        LinkFigures { connected, connections, unsent }
    }

    /// Whether the link is up.
    pub fn is_connected(&self) -> bool {
        self.lock().connected
    }

    /// The link is up: everything retained goes out again, since the broker may have forgotten it.
    /// `largest` is the largest packet that the broker takes.
    pub fn connected(&self, largest: usize) {
        let mut state = self.lock();
        (state.connected, state.largest) = (true, Some(largest));
        state.why.clear();
        state.connections += 1;
        state.oversize.clear();
        state.refused.clear();
        state.parked.clear();
        state.latest.values_mut().for_each(|latest| latest.dirty = true);
        state.retained.values_mut().for_each(|(_, dirty)| *dirty = true);
        let told = state.retained.contains_key(&self.topics.delivery());
        drop(state);
        self.outbox.iter().for_each(|outbox| outbox.connected());
        if told {
            // What the last broker took may be too much for this one.
            self.offer_delivery();
        }
        self.bell.notify_one();
    }

    /// There is no link to this address, and this is why.
    pub fn lost(&self, url: &BrokerUrl, why: &str) {
        self.lock().why.insert(url.to_string(), why.to_owned());
    }

    /// So many connections in a row ended soon after they were made, the last one now.
    pub fn short_lived(&self, times: u32) {
        self.lock().short_lived = Some((Instant::now(), times));
    }

    /// How many connections in a row ended soon after they were made, if that was a moment ago and none has held since.
    pub fn throws_off(&self) -> Option<u32> {
        let state = self.lock();
        let recent = if state.connected { super::SHORT_LIVED } else { RECENT };
        state.short_lived.filter(|(at, _)| at.elapsed() < recent).map(|(_, times)| times)
    }

    /// Topics that the broker does not let this gateway publish on, each with its reason.
    pub fn refused_topics(&self) -> Vec<String> {
        let state = self.lock();
        let mut topics: Vec<String> =
            state.parked.iter().map(|(topic, (.., why))| format!("{topic} ({why})")).collect();
        topics.sort_unstable();
        topics
    }

    /// The broker does not grant this subscription.
    pub fn refused_filter(&self, filter: &str, reason: &str) {
        self.lock().refused.insert(format!("{filter} ({reason})"));
    }

    /// Subscriptions that the broker does not grant, each with its reason.
    pub fn refused_filters(&self) -> Vec<String> {
        self.lock().refused.iter().cloned().collect()
    }

    /// Why there is no link, if that is known.
    pub fn why(&self) -> Option<String> {
        let state = self.lock();
        let said: Vec<String> = state.why.iter().map(|(url, why)| format!("{url}: {why}")).collect();
        (!said.is_empty()).then(|| said.join("; "))
    }

    /// The link is down: fleeting messages are lost, and what was handed out comes back to where it stood.
    pub fn put_back(&self, unsettled: Vec<Custody>) {
        let mut state = self.lock();
        state.connected = false;
        state.unsent += state.fleeting.len() as u64;
        state.fleeting.clear();
        drop(state);
        if let Some(outbox) = &self.outbox {
            unsettled.into_iter().for_each(|custody| outbox.give_back(custody));
        }
    }

    /// The client library did not take a message: what was kept comes back to where it stood.
    pub fn not_taken(&self, ready: Ready) {
        match (ready.kept, &self.outbox) {
            (Some(custody), Some(outbox)) => outbox.give_back(custody),
            _ => {
                let mut state = self.lock();
                if !state.make_dirty(&ready.topic, &self.topics) {
                    state.unsent += 1;
                }
            }
        }
    }

    /// The broker acknowledged a message; `heard` if it had anybody to give it to.
    pub fn settle(&self, topic: &str, kept: Option<&Custody>, heard: bool) {
        self.lock().parked.remove(topic);
        if let (Some(custody), Some(outbox)) = (kept, &self.outbox) {
            outbox.settle(custody, heard);
        }
    }

    /// The broker refused a message: what it held waits again, and its topic is left alone for a while, twice as long as
    /// the last time. Says whether this is news: messages of that topic that were in flight already are refused too.
    pub fn refuse(&self, topic: &str, why: &str, kept: Option<Custody>) -> bool {
        let mut state = self.lock();
        let now = Instant::now();
        let (until, news) = match state.parked.get_mut(topic) {
            Some((until, ..)) if *until > now => (*until, false),
            Some((until, wait, _)) => {
                *wait = (*wait * 2).min(PARKED_LONGEST);
                *until = now + *wait;
                (*until, true)
            }
            None => {
                state.parked.insert(topic.to_owned(), (now + PARKED, PARKED, why.to_owned()));
                (now + PARKED, true)
            }
        };
        state.make_dirty(topic, &self.topics);
        drop(state);
        if let (Some(custody), Some(outbox)) = (kept, &self.outbox) {
            outbox.refuse(custody, until);
        }
        news
    }

    /// What the uplink has stored and dropped, if there is news of it; it goes out like everything retained.
    pub fn offer_delivery(&self) {
        let most = self.lock().largest.map_or(usize::MAX, |largest| largest.saturating_sub(OVERHEAD));
        if let Some(json) = self.outbox.as_ref().and_then(|outbox| outbox.delivery(most)) {
            self.offer_retained(self.topics.delivery(), json);
        }
    }

    /// Whether anything that can be sent has not been.
    pub fn is_empty(&self) -> bool {
        let state = self.lock();
        state.fleeting.is_empty()
            && !state.latest.values().any(|latest| latest.dirty)
            && !state.retained.values().any(|(_, dirty)| *dirty)
            && self.outbox.as_ref().is_none_or(|outbox| outbox.waiting() == 0)
    }

    /// What to send next. Kept items in it are in the caller's custody until they are settled, refused or put back.
    pub fn next(&self, now: Instant, room: Room) -> Next {
        let mut state = self.lock();
        let full = room.in_flight >= room.places;
        // A fleeting message that wants an acknowledgement needs a place as well: without one the client library would
        // hold everything behind it back.
        let first = state.fleeting.iter().position(|message| !full || !message.at_least_once);
        if let Some(message) = first.and_then(|at| state.fleeting.remove(at)) {
            drop(state);
            let ready = fleeting(message);
            if ready.packet_bytes() > room.largest {
                // The broker would end the connection over it.
                self.lock().unsent += 1;
                return ready.too_large();
            }
            return Next::Send(Box::new(ready));
        }
        let mut wake: Option<Instant> = None;
        let mut earlier = |at: Instant| wake = Some(wake.map_or(at, |w| w.min(at)));
        if !full && let Some(ready) = state.next_retained(now, &mut earlier) {
            return state.send_if_it_fits(ready, room);
        }
        drop(state);
        // It is asked even if there is no place: that is how it learns of it.
        match self.outbox.as_ref().map(|outbox| (outbox, outbox.take(now, room))) {
            // Written without any lock: a worker that stores a result does not wait for it.
            Some((outbox, Take::Batch(batch))) => return pack(outbox, batch, &self.topics, room),
            Some((_, Take::Wait(Some(at)))) => earlier(at),
            Some((_, Take::Wait(None))) | None => {}
        }
        if full {
            return Next::Wait(None);
        }
        let mut state = self.lock();
        match state.next_latest(&self.topics, now, room, &mut earlier) {
            Some(ready) => state.send_if_it_fits(ready, room),
            None => Next::Wait(wake),
        }
    }
}

impl Ready {
    /// Bytes of its packet, or a little more.
    fn packet_bytes(&self) -> usize {
        let beside = [self.id.as_ref().map(String::len), self.correlation.as_ref().map(Bytes::len)];
        // Fixed header, packet id, lengths and marks of all properties.
        const FRAME: usize = 64;
        let beside: usize = beside.into_iter().flatten().sum();
        FRAME + self.topic.len() + self.content_type.len() + beside + self.payload.len()
    }

    fn too_large(self) -> Next {
        Next::TooLarge { bytes: self.packet_bytes(), topic: self.topic }
    }
}

impl State {
    /// A message that the broker would keep goes out, unless it is so large that the broker would end the connection over it.
    fn send_if_it_fits(&mut self, ready: Ready, room: Room) -> Next {
        if ready.packet_bytes() <= room.largest {
            return Next::Send(Box::new(ready));
        }
        self.unsent += 1;
        // The next one, in a second, is as large.
        if self.oversize.insert(ready.topic.clone()) { ready.too_large() } else { Next::Again }
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
}

/// Until when a topic is left alone, if it is.
fn parked(parked: &Parked, topic: &str, now: Instant) -> Option<Instant> {
    parked.get(topic).map(|(until, ..)| *until).filter(|until| *until > now)
}

/// Makes one message of a batch: as many items as fit, at least one; the others go back.
fn pack(outbox: &Outbox, batch: Batch, topics: &Topics, room: Room) -> Next {
    let Batch { mut custody, items, key, packing } = batch;
    let topic = key.topic(topics);
    // What was stored before the clock was set, under this boot.
    let offset = Wall::now().offset();
    let mut parcel = Parcel::new(packing.map_or(Encoding::Json, |packing| packing.encoding));
    let (mut taken, mut odd) = (0, Vec::new());
    for item in &items {
        let known = match item.boot {
            Boot::This => offset,
            Boot::Known(offset) => Some(offset),
            Boot::Unknown => None,
        };
        match parcel.push(&item.payload, known, room.bytes) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                tracing::error!(number = item.number, %error, "a stored item cannot be read and is dropped");
                odd.push(item);
            }
        }
        taken += 1;
    }
    outbox.give_back_some(&mut custody, taken);
    let stored = items[..taken].iter().map(|item| item.payload.len()).sum();
    let parcel = parcel.close();
    if !odd.is_empty() {
        let numbers = odd.iter().map(|item| item.number).collect();
        // The message, if there is one, stays one of the backlog.
        let lost = Custody { lane: custody.lane, backlog: custody.backlog && parcel.is_none(), numbers };
        custody.numbers.retain(|number| !lost.numbers.contains(number));
        outbox.give_up(&lost, odd.iter().map(|item| &*item.payload), Reason::Damaged);
    }
    let Some((payload, content_type, id)) = parcel else { return Next::Again };
    outbox.learn_ratio(custody.lane, payload.len(), stored);
    let mut ready = Ready {
        topic,
        payload,
        content_type,
        id,
        at_least_once: true,
        retain: false,
        expiry_s: None,
        correlation: None,
        kept: Some(custody),
    };
    if ready.packet_bytes() > room.largest {
        // It holds one item: several are no longer than a batch, which fits.
        if let Some(custody) = ready.kept.take() {
            let item = items[..taken].iter().find(|item| custody.numbers.first() == Some(&item.number));
            outbox.give_up(&custody, item.map(|item| &*item.payload), Reason::TooLarge);
        }
        return ready.too_large();
    }
    Next::Send(Box::new(ready))
}

/// Stored items on their way into one message.
struct Parcel {
    encoding: Encoding,
    /// The items, each with what several need: a line break behind it, or its length in front.
    payload: Vec<u8>,
    items: usize,
    /// The id of the last one, if it is a result.
    id: Option<String>,
}

/// Bytes of the length in front of a postcard item.
const LENGTH: usize = 4;

impl Parcel {
    fn new(encoding: Encoding) -> Self {
        Self { encoding, payload: Vec::with_capacity(512), items: 0, id: None }
    }

    /// Adds an item, unless the message then has more than so many bytes; the first one always fits.
    ///
    /// # Errors
    /// If it is none; then nothing has changed.
    fn push(&mut self, stored: &[u8], offset: Option<i64>, most: usize) -> Result<bool, WireError> {
        let start = self.payload.len();
        if self.encoding == Encoding::Postcard {
            self.payload.extend_from_slice(&[0; LENGTH]);
        }
        let id = match item::write(stored, self.encoding, offset, &mut self.payload) {
            Ok(id) => id,
            Err(error) => {
                self.payload.truncate(start);
                return Err(error);
            }
        };
        match self.encoding {
            Encoding::Json => self.payload.push(b'\n'),
            Encoding::Postcard => {
                let length = self.payload.len() - start - LENGTH;
                let length = u32::try_from(length).expect("an item is far below 4 GiB");
                self.payload[start..start + LENGTH].copy_from_slice(&length.to_le_bytes());
            }
        }
        if self.items > 0 && self.payload.len() > most {
            self.payload.truncate(start);
            return Ok(false);
        }
        self.items += 1;
        self.id = id;
        Ok(true)
    }

    /// The message: its payload, its content type, and the id where it holds one result alone. None if it is empty.
    fn close(mut self) -> Option<(Vec<u8>, &'static str, Option<String>)> {
        let content_type = match (self.encoding, self.items) {
            (_, 0) => return None,
            (Encoding::Json, 1) => content_type::JSON,
            (Encoding::Json, _) => content_type::NDJSON,
            (Encoding::Postcard, _) => content_type::POSTCARD,
        };
        match (self.encoding, self.items) {
            (Encoding::Json, 1) => _ = self.payload.pop(),
            (Encoding::Postcard, 1) => _ = self.payload.drain(..LENGTH),
            _ => {}
        }
        Some((self.payload, content_type, self.id.filter(|_| self.items == 1)))
    }
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
        correlation: None,
        kept: None,
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
        correlation: message.correlation,
        kept: None,
    }
}

#[cfg(test)]
mod tests;
