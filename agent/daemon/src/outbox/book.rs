//! Where every item of the outbox is, and what is to be done with it next: no input or output, no clock of its own.
//!
//! An item is stored under a number that only grows. It is then in one of these places:
//!
//! ```text
//!            store            take               settle
//!   (ring) ────────▶ live ──────────▶ in hand ──────────▶ done with
//!                     │ ▲                │ ▲                  ▲
//!            committed│ └── give_back ───┘ │take              │deleted
//!                     ▼                    │                  │
//!   (database)     unread ──── read ────▶ back ─── … ──▶ gone ┘
//! ```
//!
//! - *live*: in memory and in the ring, waiting; *in hand*: with the link, until it is settled or given back;
//! - *unread*: in the database alone; memory knows how many there are in a lane, and from which number on;
//! - *back*: read from the database, waiting. What is in hand and committed meanwhile comes back as unread;
//! - *gone*: acknowledged, and still to be deleted from the database.
//!
//! What is live for a whole commit interval is committed. An item that is settled while its commit is under way is an
//! *orphan* until the commit has ended, and gone then.
//!
//! A lane holds the items of one topic. Within a lane live items leave in the order of their numbers, and so do those of
//! the backlog (unread, back); which of the two goes first is configured.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::item::LaneKey;
use crate::config::{DropPolicy, OutboxOrder};
use crate::link::outgoing::{Packing, Room};

/// What an item is stored under: unique in an outbox, and greater than all before it.
pub type Number = u64;
/// A stored item ([`super::item`]).
pub type Payload = Arc<[u8]>;
/// A lane, as the database numbers it.
pub type LaneId = u32;

/// What is read ahead of the link, in stored bytes: some batches of [`crate::link::outgoing::BATCH_BYTES`].
const WINDOW: u64 = 256 << 10;
/// Rows that wait to be deleted before they are deleted without waiting for the interval to pass.
const GONE: usize = 4096;
/// Rows that wait to be deleted beyond which no more are read: the disk does not take the deletion.
const GONE_MOST: usize = 8 * GONE;
/// Bytes of a row in the database beside its payload: number, lane, times, and its share of page headers.
pub const ROW: u64 = 32;
/// A message of JSON is about so many times as long as what is stored, until a lane has shown it.
const RATIO: f32 = 3.0;
/// How often rows are looked at that may have waited too long.
const LOOK_AT_AGE: Duration = Duration::from_secs(60);
/// How long writing to the database is left alone after it failed: twice as long each time, up to [`RETRY_MOST`].
const RETRY: Duration = Duration::from_secs(1);
/// See [`RETRY`].
const RETRY_MOST: Duration = Duration::from_secs(30);
/// Stored bytes of one transaction, at least one row: a disk that is slow delays nothing else for long.
const TRANSACTION: u64 = 4 << 20;
/// The same, and how many rows are deleted, after a transaction failed: a disk that is full wears out by what is written to
/// it in vain.
const PROBE: u64 = 16 << 10;
/// See [`PROBE`].
const PROBE_GONE: usize = 64;
/// How long dropping is left alone after it made no room.
const DROP_AGAIN: Duration = Duration::from_secs(10);
/// Dropping makes room for more than the one item that found none: this share of all.
const SLACK: u64 = 32;

/// The rules of an outbox.
#[derive(Debug, Clone)]
pub struct Rules {
    /// How long an item is unacknowledged before it is committed.
    pub commit_interval: Duration,
    /// Whether every item is committed before it is sent.
    pub each: bool,
    /// Bytes of live items, and of the ring.
    pub ring: u64,
    /// Bytes in the database.
    pub max_bytes: u64,
    /// How long an item may wait.
    pub max_age: Duration,
    /// What goes first.
    pub order: OutboxOrder,
    /// Bytes a second of the backlog, as sent.
    pub drain_rate: u64,
    /// Results of each pipeline that are kept for whoever asks, and whether on the disk too.
    pub history: u32,
    /// See [`Rules::history`].
    pub history_on_disk: bool,
    /// What holds for the results of each pipeline.
    pub pipelines: HashMap<Arc<str>, PipelineRules>,
}

#[cfg(test)]
impl Rules {
    /// Rules by which nothing is committed or dropped while a test lasts.
    pub fn for_test() -> Self {
        Self {
            commit_interval: Duration::from_secs(3600),
            each: false,
            ring: 8 << 20,
            max_bytes: 1 << 30,
            max_age: Duration::from_secs(3600),
            order: OutboxOrder::LiveFirst,
            drain_rate: 1 << 30,
            history: 10,
            history_on_disk: false,
            pipelines: HashMap::new(),
        }
    }
}

/// What holds for the results of a pipeline.
#[derive(Debug, Clone, Copy)]
pub struct PipelineRules {
    /// How they become messages.
    pub packing: Packing,
    /// What is dropped of them when there is no room.
    pub policy: DropPolicy,
}

/// Items handed to the link, as one message.
#[derive(Debug)]
pub struct Batch {
    /// What it is settled by, or given back.
    pub custody: Custody,
    /// The items in order.
    pub items: Vec<Taken>,
    /// Their lane.
    pub key: LaneKey,
    /// How they are packed; none for events.
    pub packing: Option<Packing>,
}

/// What is known of the boot under which an item was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    /// It is this one, and the clock says what time it was.
    This,
    /// An earlier one, of which UTC minus boot time is known, in nanoseconds.
    Known(i64),
    /// An earlier one that never knew the time.
    Unknown,
}

/// An item handed to the link.
#[derive(Debug)]
pub struct Taken {
    /// Its number.
    pub number: Number,
    /// What it says.
    pub payload: Payload,
    /// When it was stored.
    pub boot: Boot,
}

/// Items in hand. Whoever holds it settles it or gives it back.
#[derive(Debug, Default)]
#[must_use = "what is in hand must be settled or given back"]
pub struct Custody {
    /// Their lane.
    pub lane: LaneId,
    /// Whether they are of the backlog.
    pub backlog: bool,
    /// Their numbers.
    pub numbers: Vec<Number>,
}

/// What there is to take.
#[derive(Debug)]
pub enum Take {
    /// This.
    Batch(Batch),
    /// Nothing now; at that moment there will be something, if nothing comes before.
    Wait(Option<Instant>),
}

/// An item to be written to the database.
#[derive(Debug, Clone)]
pub struct Row {
    /// Its number.
    pub number: Number,
    /// Its lane.
    pub lane: LaneId,
    /// The boot time at which it was stored, in nanoseconds.
    pub at: u64,
    /// What it says.
    pub payload: Payload,
}

/// A row that is in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Its number.
    pub number: Number,
    /// Its lane.
    pub lane: LaneId,
    /// Bytes of its payload, and [`ROW`].
    pub bytes: u64,
}

/// A row read from the database.
#[derive(Debug)]
pub struct ReadRow {
    /// Its number.
    pub number: Number,
    /// Its lane.
    pub lane: LaneId,
    /// What it says.
    pub payload: Payload,
    /// When it was stored.
    pub boot: Boot,
}

/// What the keeper of the database is to do.
#[derive(Debug)]
pub enum Work {
    /// Commit rows and delete others, in one transaction.
    Write {
        /// What is new.
        rows: Vec<Row>,
        /// What is acknowledged.
        gone: Vec<Placed>,
    },
    /// Read rows of these lanes on from a number, as many as fit.
    Read {
        /// The first number.
        from: Number,
        /// Which lanes.
        lanes: BTreeSet<LaneId>,
        /// About so many bytes.
        bytes: u64,
    },
    /// Drop rows, because they are too many.
    Drop {
        /// Of these lanes.
        lanes: BTreeSet<LaneId>,
        /// Which of them.
        policy: DropPolicy,
        /// At least so many bytes, if there are.
        bytes: u64,
    },
    /// Drop the rows that have waited longer than they may.
    DropOld,
    /// Nothing before that moment, if nothing happens.
    Rest(Option<Instant>),
}

/// A lane as the database knows it.
#[derive(Debug, Clone)]
pub struct LaneRows {
    /// Its number.
    pub id: LaneId,
    /// What it holds.
    pub key: LaneKey,
    /// Rows.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// How much there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Depth {
    /// Items in memory and in the ring alone, waiting or in hand.
    pub live: u64,
    /// Items in the database.
    pub stored: u64,
    /// Their bytes.
    pub stored_bytes: u64,
}

/// An item that is in memory and not in the database.
#[derive(Debug, Clone)]
struct Live {
    number: Number,
    since: Instant,
    at: u64,
    payload: Payload,
    committing: bool,
}

/// An item that was read from the database.
#[derive(Debug)]
struct Back {
    number: Number,
    payload: Payload,
    boot: Boot,
}

#[derive(Debug)]
enum Held {
    Live(Live),
    /// In the database; with its bytes there.
    Back(u64),
}

#[derive(Debug)]
struct Lane {
    key: LaneKey,
    live: VecDeque<Live>,
    back: VecDeque<Back>,
    /// Rows that are not in memory, not in hand and not gone…
    unread: u64,
    /// …none of which has a number below this one.
    unread_from: Number,
    /// Items of the backlog in hand.
    back_in_hand: usize,
    rows: u64,
    row_bytes: u64,
    /// Bytes sent for a byte stored.
    ratio: f32,
    packing: Option<Packing>,
    policy: DropPolicy,
}

impl Lane {
    fn has_backlog(&self) -> bool {
        self.unread > 0 || !self.back.is_empty() || self.back_in_hand > 0
    }

    fn is_empty(&self) -> bool {
        self.live.is_empty() && self.rows == 0 && !self.has_backlog()
    }
}

/// Takes note that the first item of a lane is another one.
fn move_head(heads: &mut BTreeSet<(Number, LaneId)>, id: LaneId, before: Option<Number>, after: Option<Number>) {
    if before != after {
        before.map(|number| heads.remove(&(number, id)));
        after.map(|number| heads.insert((number, id)));
    }
}

/// The state of an outbox.
#[derive(Debug)]
pub struct Book {
    rules: Rules,
    next_number: Number,
    next_lane: LaneId,
    lanes: BTreeMap<LaneId, Lane>,
    by_key: HashMap<LaneKey, LaneId>,
    /// First live item of each lane that has one, and the same of what was read.
    live_heads: BTreeSet<(Number, LaneId)>,
    back_heads: BTreeSet<(Number, LaneId)>,
    hand: HashMap<Number, (LaneId, Held)>,
    /// Messages of the backlog in hand.
    back_messages: usize,
    /// Whether the last message was of the backlog.
    last_was_back: bool,
    gone: HashMap<Number, Placed>,
    gone_since: Option<Instant>,
    deleting: HashSet<Number>,
    /// Settled while their commit was under way, with their lanes.
    orphans: HashMap<Number, LaneId>,
    /// Live items, waiting or in hand, and their bytes.
    live: u64,
    live_bytes: u64,
    stored: u64,
    stored_bytes: u64,
    back_bytes: u64,
    reading: bool,
    /// Whether live results wait while every place is taken.
    congested: bool,
    /// Whether all that is live is to be committed at once.
    flush: bool,
    /// Whether there is a database that anything can be written to.
    has_disk: bool,
    /// When writing may be tried again, and whether it failed last.
    retry: Option<Instant>,
    /// How often it failed since it worked last.
    failures: u32,
    /// The same of reading.
    read_retry: Option<Instant>,
    /// Whether the keeper wrote last.
    wrote_last: bool,
    /// Lanes that the link leaves alone.
    parked: HashMap<LaneId, Instant>,
    /// When the backlog may go on, by its rate.
    drain_from: Option<Instant>,
    /// When rows are looked at that may have waited too long.
    look_at_age: Option<Instant>,
    /// When dropping may be tried again that made no room.
    drop_from: Option<Instant>,
}

impl Book {
    /// An outbox in whose database these lanes have rows. Numbers go on after `last`, lanes with `lane`.
    pub fn new(rules: Rules, stored: Vec<LaneRows>, last: Number, lane: LaneId) -> Self {
        let mut book = Self {
            rules,
            next_number: 1,
            next_lane: lane,
            lanes: BTreeMap::new(),
            by_key: HashMap::new(),
            live_heads: BTreeSet::new(),
            back_heads: BTreeSet::new(),
            hand: HashMap::new(),
            back_messages: 0,
            last_was_back: false,
            gone: HashMap::new(),
            gone_since: None,
            deleting: HashSet::new(),
            orphans: HashMap::new(),
            live: 0,
            live_bytes: 0,
            stored: 0,
            stored_bytes: 0,
            back_bytes: 0,
            reading: false,
            congested: false,
            flush: false,
            has_disk: true,
            retry: None,
            failures: 0,
            read_retry: None,
            wrote_last: false,
            parked: HashMap::new(),
            drain_from: None,
            look_at_age: None,
            drop_from: None,
        };
        book.adopt(stored, last);
        book
    }

    fn new_lane(&self, key: LaneKey) -> Lane {
        let rules = key.pipeline().map(|pipeline| {
            // Of a pipeline that is configured no more.
            let none = PipelineRules { packing: Packing::SINGLE, policy: DropPolicy::DropOldest };
            self.rules.pipelines.get(pipeline).copied().unwrap_or(none)
        });
        Lane {
            key,
            live: VecDeque::new(),
            back: VecDeque::new(),
            unread: 0,
            unread_from: 0,
            back_in_hand: 0,
            rows: 0,
            row_bytes: 0,
            ratio: RATIO,
            packing: rules.map(|rules| rules.packing),
            policy: rules.map_or(DropPolicy::DropOldest, |rules| rules.policy),
        }
    }

    /// The lane of these items.
    pub fn lane(&mut self, key: &LaneKey) -> LaneId {
        if let Some(id) = self.by_key.get(key) {
            return *id;
        }
        let id = self.next_lane;
        self.open_lane(id, key);
        id
    }

    /// The lane of this number, made if there is none.
    fn open_lane(&mut self, id: LaneId, key: &LaneKey) -> &mut Lane {
        self.next_lane = self.next_lane.max(id + 1);
        if !self.lanes.contains_key(&id) {
            self.lanes.insert(id, self.new_lane(key.clone()));
            self.by_key.entry(key.clone()).or_insert(id);
        }
        self.lanes.get_mut(&id).expect("it is there now")
    }

    /// A lane without rows gets another number: the one under which the database knows it, or its stream would have two,
    /// and lose its order.
    fn renumber_lane(&mut self, from: LaneId, to: LaneId) {
        if self.lanes.contains_key(&to) {
            return;
        }
        let Some(lane) = self.lanes.remove(&from) else { return };
        let head = lane.live.front().map(|live| live.number);
        move_head(&mut self.live_heads, from, head, None);
        move_head(&mut self.live_heads, to, None, head);
        self.by_key.insert(lane.key.clone(), to);
        self.lanes.insert(to, lane);
        self.next_lane = self.next_lane.max(to + 1);
        self.hand.values_mut().filter(|(id, _)| *id == from).for_each(|(id, _)| *id = to);
        if let Some(until) = self.parked.remove(&from) {
            self.parked.insert(to, until);
        }
    }

    /// Changes what is live in a lane, and with it the place of the lane among those that have something.
    fn edit_live<T>(&mut self, id: LaneId, edit: impl FnOnce(&mut VecDeque<Live>) -> T) -> T {
        let live = &mut self.lanes.get_mut(&id).expect("lanes with live items stay").live;
        let before = live.front().map(|live| live.number);
        let outcome = edit(live);
        let after = live.front().map(|live| live.number);
        move_head(&mut self.live_heads, id, before, after);
        outcome
    }

    /// The same of what was read.
    fn edit_back<T>(&mut self, id: LaneId, edit: impl FnOnce(&mut VecDeque<Back>) -> T) -> T {
        let back = &mut self.lanes.get_mut(&id).expect("lanes with rows stay").back;
        let before = back.front().map(|back| back.number);
        let outcome = edit(back);
        let after = back.front().map(|back| back.number);
        move_head(&mut self.back_heads, id, before, after);
        outcome
    }

    /// What a lane holds.
    pub fn key(&self, lane: LaneId) -> Option<&LaneKey> {
        self.lanes.get(&lane).map(|lane| &lane.key)
    }

    /// Forgets lanes that hold nothing, such as those of streams that went.
    pub fn forget_empty(&mut self) {
        let held = self.hand.values().map(|(lane, _)| *lane);
        let gone = self.gone.values().map(|row| row.lane);
        let busy: HashSet<LaneId> = held.chain(gone).chain(self.orphans.values().copied()).collect();
        let empty: Vec<LaneId> =
            self.lanes.iter().filter(|(id, lane)| lane.is_empty() && !busy.contains(id)).map(|(id, _)| *id).collect();
        for id in empty {
            if let Some(lane) = self.lanes.remove(&id)
                && self.by_key.get(&lane.key) == Some(&id)
            {
                self.by_key.remove(&lane.key);
            }
            self.parked.remove(&id);
        }
    }

    /// Leaves so many numbers to somebody else, and gives the one before the first of them.
    pub fn leave_numbers(&mut self, count: u64) -> Number {
        let before = self.next_number - 1;
        self.next_number += count;
        before
    }

    /// The next number.
    pub fn number(&mut self) -> Number {
        let number = self.next_number;
        self.next_number += 1;
        number
    }

    /// Whether there is room for so many bytes more that are live: without a database that takes them there is a limit.
    pub fn has_room(&self, bytes: u64) -> bool {
        self.live_bytes + bytes <= 2 * self.rules.ring
    }

    /// Stores an item, of which `at` is the boot time in nanoseconds. Says whether the keeper is to be woken.
    pub fn store(&mut self, lane: LaneId, number: Number, at: u64, payload: Payload, now: Instant) -> bool {
        self.live += 1;
        self.live_bytes += payload.len() as u64;
        let first = self.live == 1;
        self.edit_live(lane, |live| live.push_back(Live { number, since: now, at, payload, committing: false }));
        first || self.rules.each || self.is_pressed()
    }

    /// Takes up an item that the last process had stored. Nobody knows for how long it was not acknowledged, so it is
    /// committed at once.
    pub fn take_up(&mut self, lane: LaneId, number: Number, at: u64, payload: Payload, now: Instant) {
        let since = now.checked_sub(self.rules.commit_interval).unwrap_or(now);
        self.store(lane, number, at, payload, since);
    }

    /// Whether so much is live that it is committed without waiting for its time.
    fn is_pressed(&self) -> bool {
        self.live_bytes > self.rules.ring / 2
    }

    /// Bytes of live items, waiting or in hand.
    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// Everything is to be committed now.
    pub fn flush(&mut self) {
        self.flush = true;
    }

    /// The same, and what failed is tried again at once: there may be no other time.
    pub fn flush_now(&mut self) {
        self.flush = true;
        self.retry = None;
    }

    /// What was asked for by [`Book::flush`] is done: what comes now has its time again.
    pub fn flushed(&mut self) {
        self.flush = false;
    }

    /// How much there is.
    pub fn depth(&self) -> Depth {
        Depth { live: self.live, stored: self.stored, stored_bytes: self.stored_bytes }
    }

    /// Items that wait or are in hand.
    pub fn waiting(&self) -> u64 {
        (self.live + self.stored).saturating_sub(self.gone.len() as u64 + self.deleting.len() as u64)
    }

    /// The same by what they are, without what was acknowledged and is not deleted yet.
    pub fn waiting_by_key(&self) -> HashMap<LaneKey, u64> {
        let mut counts: HashMap<LaneId, i64> = HashMap::new();
        for (id, lane) in &self.lanes {
            *counts.entry(*id).or_default() += lane.live.len() as i64 + lane.rows as i64;
        }
        for (id, held) in self.hand.values() {
            *counts.entry(*id).or_default() += i64::from(matches!(held, Held::Live(_)));
        }
        for row in self.gone.values() {
            *counts.entry(row.lane).or_default() -= 1;
        }
        let mut by_key = HashMap::new();
        for (id, count) in counts {
            if let Some(lane) = self.lanes.get(&id) {
                *by_key.entry(lane.key.clone()).or_default() += u64::try_from(count).unwrap_or(0);
            }
        }
        by_key
    }

    /// The link is up.
    pub fn connected(&mut self) {
        self.parked.clear();
        self.congested |= !self.live_heads.is_empty();
    }

    /// A lane is left alone until then. What was read of it makes room for others.
    pub fn park(&mut self, lane: LaneId, until: Instant) {
        self.parked.insert(lane, until);
        self.unload(lane);
    }

    /// The broker takes what is in this lane. Says whether it had been left alone.
    pub fn unpark(&mut self, lane: LaneId) -> bool {
        self.parked.remove(&lane).is_some()
    }

    /// A row of a lane is in the database and not in memory.
    fn add_unread(&mut self, id: LaneId, number: Number) {
        // What was read after it would pass it.
        if self.lanes[&id].back.back().is_some_and(|back| back.number > number) {
            self.unload(id);
        }
        let lane = self.lanes.get_mut(&id).expect("a lane with rows stays");
        lane.unread_from = if lane.unread == 0 { number } else { lane.unread_from.min(number) };
        lane.unread += 1;
    }

    /// What was read of a lane is unread again.
    fn unload(&mut self, id: LaneId) {
        if self.lanes.get(&id).is_none_or(|lane| lane.back.is_empty()) {
            return;
        }
        let unloaded = self.edit_back(id, std::mem::take);
        self.back_bytes -= unloaded.iter().map(|back| back.payload.len() as u64).sum::<u64>();
        let lane = self.lanes.get_mut(&id).expect("it was just there");
        lane.unread_from = unloaded[0].number;
        lane.unread += unloaded.len() as u64;
    }

    fn is_parked(&self, lane: LaneId, now: Instant) -> Option<Instant> {
        self.parked.get(&lane).copied().filter(|until| *until > now)
    }

    /// What to send next.
    pub fn take(&mut self, now: Instant, room: Room) -> Take {
        self.judge_congestion(room);
        if room.in_flight >= room.places {
            return Take::Wait(None);
        }
        let mut wake: Option<Instant> = None;
        let mut earlier = |at: Instant| wake = Some(wake.map_or(at, |w| w.min(at)));
        let back = self.next_back(now, &mut earlier);
        let backlog = self.lanes_with_unread(now).next().is_some() || !self.back_heads.is_empty();
        // A quarter of the places is for the backlog, or live results that come as fast as places get free would keep it
        // waiting for ever. Where there are too few for that, the two take turns.
        let kept_free = match self.rules.order {
            OutboxOrder::LiveFirst if !backlog => 0,
            OutboxOrder::LiveFirst if room.places >= 4 => (room.places / 4).saturating_sub(self.back_messages),
            OutboxOrder::LiveFirst => usize::from(!self.last_was_back && back.is_some()),
            OutboxOrder::BacklogFirst => 0,
        };
        let live = match (self.rules.order, back) {
            (OutboxOrder::BacklogFirst, Some(_)) => None,
            _ if room.in_flight + kept_free >= room.places => None,
            _ => self.next_live(now, room, &mut earlier),
        };
        self.last_was_back = live.is_none();
        match (live, back) {
            (Some(lane), _) => Take::Batch(self.take_live(lane, room)),
            (None, Some(lane)) => Take::Batch(self.take_back(lane, now, room)),
            (None, None) => Take::Wait(wake),
        }
    }

    /// Live results are congested while they wait and every place is taken. It is over when none waits and most places
    /// are free again; without that distance a busy link would go back and forth between single results, which fill the
    /// places, and batches.
    fn judge_congestion(&mut self, room: Room) {
        if self.live_heads.is_empty() {
            self.congested &= room.in_flight * 4 >= room.places;
        } else {
            self.congested |= room.in_flight >= room.places;
        }
    }

    fn lanes_with_unread(&self, now: Instant) -> impl Iterator<Item = (LaneId, &Lane)> {
        let lanes = self.lanes.iter().filter(|(_, lane)| lane.unread > 0).map(|(id, lane)| (*id, lane));
        lanes.filter(move |(id, _)| self.is_parked(*id, now).is_none())
    }

    /// The lane whose backlog goes next.
    fn next_back(&self, now: Instant, earlier: &mut impl FnMut(Instant)) -> Option<LaneId> {
        if self.back_heads.is_empty() {
            return None;
        }
        if let Some(from) = self.drain_from.filter(|from| *from > now) {
            earlier(from);
            return None;
        }
        self.back_heads.iter().map(|(_, lane)| *lane).find(|lane| match self.is_parked(*lane, now) {
            Some(until) => {
                earlier(until);
                false
            }
            None => true,
        })
    }

    /// The lane whose live items go next.
    fn next_live(&self, now: Instant, room: Room, earlier: &mut impl FnMut(Instant)) -> Option<LaneId> {
        let mut heads = self.live_heads.iter().map(|(_, lane)| *lane);
        heads.find(|id| {
            let lane = &self.lanes[id];
            if let Some(until) = self.is_parked(*id, now) {
                earlier(until);
                return false;
            }
            // Where the disk takes no deletion, nothing more is read, and what is new waits for nothing.
            let reads = self.gone.len() < GONE_MOST;
            if self.rules.order == OutboxOrder::BacklogFirst && lane.has_backlog() && reads {
                return false;
            }
            // Not before the disk has it; but a disk that says no stops no link that works.
            if self.rules.each && self.retry.is_none() && self.has_disk {
                return false;
            }
            let (max, delay) = self.company(lane, room);
            let due = lane.live.front().map_or(now, |front| front.since + delay);
            if lane.live.len() < max && due > now {
                earlier(due);
                return false;
            }
            true
        })
    }

    /// How many live items of a lane make a message, and how long the first waits for the others.
    fn company(&self, lane: &Lane, room: Room) -> (usize, Duration) {
        match lane.packing {
            None => (1, Duration::ZERO),
            Some(_) if self.congested || room.hurry => (usize::MAX, Duration::ZERO),
            Some(packing) => (packing.max.max(1), packing.delay),
        }
    }

    fn take_live(&mut self, id: LaneId, room: Room) -> Batch {
        let lane = &self.lanes[&id];
        let (max, ratio) = (self.company(lane, room).0, lane.ratio);
        let taken = self.edit_live(id, |live| {
            let sizes = live.iter().map(|live| live.payload.len());
            let (count, _) = fitting(sizes.take(max), ratio, room.bytes);
            live.drain(..count).collect::<Vec<_>>()
        });
        let item = |live: &Live| Taken { number: live.number, payload: Arc::clone(&live.payload), boot: Boot::This };
        let items: Vec<Taken> = taken.iter().map(item).collect();
        self.hand.extend(taken.into_iter().map(|live| (live.number, (id, Held::Live(live)))));
        self.batch(id, items, false)
    }

    fn take_back(&mut self, id: LaneId, now: Instant, room: Room) -> Batch {
        let lane = &self.lanes[&id];
        // Events go one by one: each has its id as a property, and a reader of events expects one in a message.
        let (max, ratio) = (if lane.packing.is_none() { 1 } else { usize::MAX }, lane.ratio);
        let (items, bytes) = self.edit_back(id, |back| {
            let sizes = back.iter().map(|back| back.payload.len());
            let (count, bytes) = fitting(sizes.take(max), ratio, room.bytes);
            let item = |Back { number, payload, boot }| Taken { number, payload, boot };
            (back.drain(..count).map(item).collect::<Vec<_>>(), bytes)
        });
        for item in &items {
            let stored = item.payload.len() as u64;
            self.back_bytes -= stored;
            self.hand.insert(item.number, (id, Held::Back(stored + ROW)));
        }
        self.lanes.get_mut(&id).expect("it had items").back_in_hand += items.len();
        self.back_messages += 1;
        // At most a second is saved up, so that a pause is not followed by a flood.
        let pause = Duration::from_secs_f32(bytes / self.rules.drain_rate.max(1) as f32);
        let earliest = now.checked_sub(Duration::from_secs(1)).unwrap_or(now);
        let from = self.drain_from.unwrap_or(earliest).max(earliest);
        self.drain_from = Some(from + pause);
        self.batch(id, items, true)
    }

    fn batch(&self, id: LaneId, items: Vec<Taken>, backlog: bool) -> Batch {
        let lane = &self.lanes[&id];
        let numbers = items.iter().map(|item| item.number).collect();
        let custody = Custody { lane: id, backlog, numbers };
        Batch { custody, items, key: lane.key.clone(), packing: lane.packing }
    }

    /// A message of a lane had so many bytes for so many stored.
    pub fn learn_ratio(&mut self, lane: LaneId, sent: usize, stored: usize) {
        if let Some(lane) = self.lanes.get_mut(&lane)
            && stored > 0
        {
            // Rather above than below: what does not fit has to go back.
            lane.ratio = (sent as f32 / stored as f32 * 1.02).max(lane.ratio * 0.9);
        }
    }

    /// These items are done with: the broker has them, or they were given up. Gives those that were not in the database
    /// nor on their way there.
    pub fn settle(&mut self, custody: &Custody, now: Instant) -> Vec<Number> {
        self.back_messages -= usize::from(custody.backlog && !custody.numbers.is_empty());
        let mut closed = Vec::new();
        for number in &custody.numbers {
            let Some((id, held)) = self.hand.remove(number) else { continue };
            match held {
                Held::Live(live) => {
                    self.forget_live(&live.payload);
                    if live.committing {
                        self.orphans.insert(*number, id);
                    }
                    closed.push(*number);
                }
                Held::Back(bytes) => {
                    if let Some(lane) = self.lanes.get_mut(&id) {
                        lane.back_in_hand -= 1;
                    }
                    self.gone.insert(*number, Placed { number: *number, lane: id, bytes });
                    self.gone_since.get_or_insert(now);
                }
            }
        }
        closed
    }

    /// Items come back to where they stood: the link is gone, or the broker refused them.
    pub fn give_back(&mut self, custody: Custody) {
        self.back_messages -= usize::from(custody.backlog && !custody.numbers.is_empty());
        self.return_items(&custody.numbers);
    }

    /// The last items of a message did not fit into it.
    pub fn give_back_some(&mut self, custody: &mut Custody, keep: usize) {
        let back = custody.numbers.split_off(keep.min(custody.numbers.len()));
        if keep == 0 {
            self.back_messages -= usize::from(custody.backlog && !back.is_empty());
        }
        self.return_items(&back);
    }

    fn return_items(&mut self, numbers: &[Number]) {
        for number in numbers.iter().rev() {
            let Some((id, held)) = self.hand.remove(number) else { continue };
            match held {
                Held::Live(item) => {
                    self.edit_live(id, |live| {
                        let at = live.partition_point(|other| other.number < item.number);
                        live.insert(at, item);
                    });
                    self.congested = true;
                }
                Held::Back(_) => {
                    self.lanes.get_mut(&id).expect("lanes with items in hand stay").back_in_hand -= 1;
                    self.add_unread(id, *number);
                }
            }
        }
    }

    /// What the keeper is to do now. Between two commits there is time for something else, however much is stored.
    pub fn work(&mut self, now: Instant) -> Work {
        let mut wake: Option<Instant> = None;
        let mut earlier = |at: Instant| wake = Some(wake.map_or(at, |w| w.min(at)));
        let mut work = None;
        if std::mem::take(&mut self.wrote_last) {
            work = self.dropping(now, &mut earlier).or_else(|| self.reading(now, &mut earlier));
        }
        work = work
            .or_else(|| self.writing(now, &mut earlier))
            .or_else(|| self.dropping(now, &mut earlier))
            .or_else(|| self.reading(now, &mut earlier));
        self.wrote_last = matches!(work, Some(Work::Write { .. }));
        work.unwrap_or(Work::Rest(wake))
    }

    /// Rows that are due to be committed or deleted.
    fn writing(&mut self, now: Instant, earlier: &mut impl FnMut(Instant)) -> Option<Work> {
        if let Some(retry) = self.retry.filter(|retry| *retry > now) {
            earlier(retry);
            return None;
        }
        let patience = self.rules.commit_interval;
        let all = self.flush || self.rules.each || self.is_pressed();
        let oldest = self.oldest_live();
        let due = oldest.is_some_and(|since| all || since + patience <= now);
        let until = if all { None } else { now.checked_sub(patience) };
        let rows = if due { self.rows_to_commit(until) } else { Vec::new() };
        let gone_due = self.gone_since.map(|since| since + patience);
        let delete = self.gone.len() >= GONE || self.flush || gone_due.is_some_and(|due| due <= now);
        if !rows.is_empty() || delete && !self.gone.is_empty() {
            let most = if self.failures > 0 { PROBE_GONE } else { usize::MAX };
            let numbers: Vec<Number> = self.gone.keys().take(most).copied().collect();
            let gone: Vec<Placed> = numbers.iter().filter_map(|number| self.gone.remove(number)).collect();
            self.gone_since = self.gone_since.filter(|_| !self.gone.is_empty());
            self.deleting = gone.iter().map(|row| row.number).collect();
            return Some(Work::Write { rows, gone });
        }
        self.flush = false;
        if let Some(since) = oldest {
            // Looked at four times in an interval, so that one commit takes what came within a quarter of it.
            earlier((since + patience).max(now + patience / 4));
        }
        gone_due.into_iter().for_each(earlier);
        None
    }

    /// Rows that are too many, or too old.
    fn dropping(&mut self, now: Instant, earlier: &mut impl FnMut(Instant)) -> Option<Work> {
        if self.retry.is_some_and(|retry| retry > now) {
            return None;
        }
        if self.stored_bytes > self.rules.max_bytes
            && self.drop_from.is_none_or(|from| from <= now)
            && let Some((lanes, policy)) = self.greediest()
        {
            lanes.iter().for_each(|lane| self.unload(*lane));
            let over = self.stored_bytes - self.rules.max_bytes;
            return Some(Work::Drop { lanes, policy, bytes: over + self.rules.max_bytes / SLACK });
        }
        if self.stored > 0 {
            let due = *self.look_at_age.get_or_insert(now);
            if due <= now {
                self.look_at_age = Some(now + LOOK_AT_AGE);
                let lanes: Vec<LaneId> = self.lanes.keys().copied().collect();
                lanes.into_iter().for_each(|lane| self.unload(lane));
                return Some(Work::DropOld);
            }
            earlier(due);
        }
        None
    }

    /// Old rows were dropped, and there may be more.
    pub fn look_at_age_again(&mut self) {
        self.look_at_age = None;
    }

    /// Rows that are to be at hand.
    fn reading(&mut self, now: Instant, earlier: &mut impl FnMut(Instant)) -> Option<Work> {
        // What is acknowledged and cannot be deleted is remembered, and there is a limit to that.
        if self.reading || self.back_bytes >= WINDOW / 2 || self.gone.len() >= GONE_MOST {
            return None;
        }
        if let Some(retry) = self.read_retry.filter(|retry| *retry > now) {
            earlier(retry);
            return None;
        }
        let lanes: BTreeSet<LaneId> = self.lanes_with_unread(now).map(|(id, _)| id).collect();
        if let Some(from) = lanes.iter().map(|id| self.lanes[id].unread_from).min() {
            self.reading = true;
            return Some(Work::Read { from, lanes, bytes: WINDOW - self.back_bytes });
        }
        // A lane that is left alone is read when its time has come.
        let unread = |id: &LaneId| self.lanes.get(id).is_some_and(|lane| lane.unread > 0);
        let parked = self.parked.iter().filter(|(id, until)| **until > now && unread(id));
        parked.for_each(|(_, until)| earlier(*until));
        None
    }

    /// Since when the oldest live item waits that is not about to be committed.
    fn oldest_live(&self) -> Option<Instant> {
        let waiting = self
            .live_heads
            .iter()
            .filter_map(|(_, id)| self.lanes[id].live.iter().find(|live| !live.committing).map(|live| live.since));
        let held = self.hand.values().filter_map(|(_, held)| match held {
            Held::Live(live) if !live.committing => Some(live.since),
            _ => None,
        });
        waiting.chain(held).min()
    }

    /// Every live item, waiting or in hand, with its lane.
    fn every_live(&mut self) -> impl Iterator<Item = (LaneId, &mut Live)> {
        let waiting = self.lanes.iter_mut().flat_map(|(id, lane)| lane.live.iter_mut().map(|live| (*id, live)));
        let held = self.hand.values_mut().filter_map(|(id, held)| match held {
            Held::Live(live) => Some((*id, live)),
            Held::Back(_) => None,
        });
        waiting.chain(held)
    }

    /// Live items that wait since before `until`, or all, as rows: the first of them, as many as one transaction holds. They
    /// are being committed from now on.
    fn rows_to_commit(&mut self, until: Option<Instant>) -> Vec<Row> {
        let most = if self.failures > 0 { PROBE } else { TRANSACTION };
        let mut due: Vec<(LaneId, &mut Live)> = self
            .every_live()
            .filter(|(_, live)| !live.committing && until.is_none_or(|until| live.since <= until))
            .collect();
        due.sort_unstable_by_key(|(_, live)| live.number);
        let mut bytes = 0;
        let fits = |(_, live): &(LaneId, &mut Live)| {
            let first = bytes == 0;
            bytes += live.payload.len() as u64;
            first || bytes <= most
        };
        let row = |(lane, live): (LaneId, &mut Live)| {
            live.committing = true;
            Row { number: live.number, lane, at: live.at, payload: Arc::clone(&live.payload) }
        };
        due.into_iter().take_while(fits).map(row).collect()
    }

    /// The rows are in the database, and those that were gone are not. Gives those that the ring need not hold any more.
    pub fn written(&mut self, rows: &[Row], gone: &[Placed], now: Instant) -> Vec<Number> {
        (self.retry, self.failures) = (None, 0);
        for row in gone {
            self.deleting.remove(&row.number);
            self.forget_row(*row);
        }
        let mut closed = Vec::with_capacity(rows.len());
        let mut waited = BTreeSet::new();
        for row in rows {
            let placed = self.count_row(row);
            if self.orphans.remove(&row.number).is_some() {
                self.gone.insert(row.number, placed);
                self.gone_since.get_or_insert(now);
                continue;
            }
            closed.push(row.number);
            self.forget_live(&row.payload);
            match self.hand.get_mut(&row.number) {
                Some((_, held)) => {
                    *held = Held::Back(placed.bytes);
                    self.lanes.get_mut(&row.lane).expect("it has the row").back_in_hand += 1;
                }
                None => {
                    waited.insert(row.lane);
                    let lane = &self.lanes[&row.lane];
                    let last = lane.back.back().map(|back| back.number);
                    if lane.unread == 0 && self.back_bytes < WINDOW && last.is_none_or(|last| last < row.number) {
                        // It need not be read to be at hand.
                        self.back_bytes += row.payload.len() as u64;
                        let (number, payload) = (row.number, Arc::clone(&row.payload));
                        self.edit_back(row.lane, |back| back.push_back(Back { number, payload, boot: Boot::This }));
                    } else {
                        self.add_unread(row.lane, row.number);
                    }
                }
            }
        }
        for id in waited {
            self.edit_live(id, |live| live.retain(|live| !live.committing));
        }
        closed
    }

    /// An item is not live any more.
    fn forget_live(&mut self, payload: &Payload) {
        self.live -= 1;
        self.live_bytes -= payload.len() as u64;
    }

    /// A row is in the database.
    fn count_row(&mut self, row: &Row) -> Placed {
        let bytes = row.payload.len() as u64 + ROW;
        let lane = self.lanes.get_mut(&row.lane).expect("lanes of rows that are written stay");
        lane.rows += 1;
        lane.row_bytes += bytes;
        self.stored += 1;
        self.stored_bytes += bytes;
        Placed { number: row.number, lane: row.lane, bytes }
    }

    /// A row that was not in memory is not in the database any more.
    fn forget_unread(&mut self, row: Placed) {
        self.forget_row(row);
        if let Some(lane) = self.lanes.get_mut(&row.lane) {
            lane.unread = lane.unread.saturating_sub(1);
        }
    }

    fn forget_row(&mut self, row: Placed) {
        // What the database says of its lanes may be damaged, so nothing here is trusted to be exact.
        if let Some(lane) = self.lanes.get_mut(&row.lane) {
            lane.rows = lane.rows.saturating_sub(1);
            lane.row_bytes = lane.row_bytes.saturating_sub(row.bytes);
        }
        self.stored = self.stored.saturating_sub(1);
        self.stored_bytes = self.stored_bytes.saturating_sub(row.bytes);
    }

    /// The write failed: what was to be committed is live as before, and what was to be deleted still is to be.
    pub fn not_written(&mut self, gone: Vec<Placed>, now: Instant) {
        self.retry = Some(now + (RETRY * (1 << self.failures.min(5))).min(RETRY_MOST));
        self.failures += 1;
        self.flush = false;
        self.deleting.clear();
        self.gone.extend(gone.into_iter().map(|row| (row.number, row)));
        self.gone_since = self.gone_since.or(Some(now)).filter(|_| !self.gone.is_empty());
        // They were settled, and never came into the database.
        self.orphans.clear();
        self.every_live().for_each(|(_, live)| live.committing = false);
    }

    /// Rows were read: all of `lanes` from where it was asked up to `upto`, or to the end. Gives how many rows should be
    /// there and are not.
    pub fn read(&mut self, lanes: &BTreeSet<LaneId>, rows: Vec<ReadRow>, from: Number, upto: Option<Number>) -> u64 {
        (self.reading, self.read_retry) = (false, None);
        let mut missing = 0;
        for row in rows {
            let free = self.is_free(row.number);
            let Some(lane) = self.lanes.get_mut(&row.lane).filter(|lane| free && lane.unread > 0) else { continue };
            // Something came back to before where this read began: that is read first.
            if lane.unread_from < from || row.number < lane.unread_from {
                continue;
            }
            lane.unread -= 1;
            lane.unread_from = row.number + 1;
            self.back_bytes += row.payload.len() as u64;
            let ReadRow { number, lane, payload, boot } = row;
            self.edit_back(lane, |back| back.push_back(Back { number, payload, boot }));
        }
        for id in lanes {
            let Some(lane) = self.lanes.get_mut(id) else { continue };
            if lane.unread_from < from {
                continue;
            }
            match upto {
                Some(upto) => lane.unread_from = lane.unread_from.max(upto + 1),
                // Or it would be asked for again and again.
                None => missing += std::mem::take(&mut lane.unread),
            }
        }
        missing
    }

    /// Making room failed.
    pub fn not_dropped(&mut self, now: Instant) {
        self.drop_from = Some(now + DROP_AGAIN);
    }

    /// Reading failed.
    pub fn not_read(&mut self, now: Instant) {
        self.reading = false;
        self.read_retry = Some(now + RETRY);
    }

    /// The lanes of the pipeline that holds the most, and its policy: of it is dropped when the database holds too much, so
    /// that one that floods does not push out what others have to say.
    fn greediest(&self) -> Option<(BTreeSet<LaneId>, DropPolicy)> {
        let mut held: HashMap<Option<&str>, (u64, DropPolicy, BTreeSet<LaneId>)> = HashMap::new();
        for (id, lane) in &self.lanes {
            let entry = held.entry(lane.key.pipeline()).or_insert((0, lane.policy, BTreeSet::new()));
            entry.0 += lane.row_bytes;
            entry.2.insert(*id);
        }
        let (_, policy, lanes) = held.into_values().max_by_key(|(bytes, ..)| *bytes)?;
        Some((lanes, policy))
    }

    /// Whether a row is nobody's yet: not in hand, and not gone anyway.
    pub fn is_free(&self, number: Number) -> bool {
        !(self.hand.contains_key(&number) || self.gone.contains_key(&number) || self.deleting.contains(&number))
    }

    /// Rows were dropped from the database. Range records of them were committed in the same transaction.
    pub fn dropped(&mut self, rows: &[Placed], records: &[Row], now: Instant) {
        let before = self.stored_bytes;
        rows.iter().for_each(|row| self.forget_unread(*row));
        for record in records {
            if !self.lanes.contains_key(&record.lane) {
                // It was empty, and forgotten meanwhile.
                let Ok(label) = super::item::label(&record.payload) else { continue };
                self.open_lane(record.lane, &label.lane);
            }
            self.count_row(record);
            self.add_unread(record.lane, record.number);
        }
        if self.stored_bytes >= before {
            // What is left is in hand, or says what was dropped.
            self.drop_from = Some(now + DROP_AGAIN);
        }
    }

    /// Drops live items that wait, so that there is room where neither ring nor database take more: of the pipeline that
    /// holds the most, by its policy. Gives what was dropped.
    pub fn drop_live(&mut self) -> Vec<(Number, Payload)> {
        let mut held: HashMap<Option<Arc<str>>, (u64, DropPolicy, Vec<LaneId>)> = HashMap::new();
        for (_, id) in &self.live_heads {
            let lane = &self.lanes[id];
            let bytes: u64 =
                lane.live.iter().filter(|live| !live.committing).map(|live| live.payload.len() as u64).sum();
            let entry = held.entry(lane.key.pipeline().map(Into::into)).or_insert((0, lane.policy, Vec::new()));
            entry.0 += bytes;
            entry.2.push(*id);
        }
        let Some((bytes, policy, lanes)) = held.into_values().max_by_key(|(bytes, ..)| *bytes) else {
            return Vec::new();
        };
        let enough = (self.rules.ring / SLACK).min(bytes);
        let mut candidates: Vec<(Number, LaneId, u64)> = Vec::new();
        for id in &lanes {
            let live = self.lanes[id].live.iter().filter(|live| !live.committing);
            candidates.extend(live.map(|live| (live.number, *id, live.payload.len() as u64)));
        }
        candidates.sort_unstable();
        if policy == DropPolicy::DropNewest {
            candidates.reverse();
        }
        let (mut freed, mut chosen) = (0, HashSet::new());
        for (number, _, bytes) in &candidates {
            if freed >= enough {
                break;
            }
            freed += bytes;
            chosen.insert(*number);
        }
        lanes.into_iter().flat_map(|id| self.remove_live(id, &chosen)).map(|live| (live.number, live.payload)).collect()
    }

    /// Takes waiting items out of what is live in a lane.
    fn remove_live(&mut self, id: LaneId, numbers: &HashSet<Number>) -> Vec<Live> {
        let removed: Vec<Live> = self.edit_live(id, |live| {
            let (removed, kept) = std::mem::take(live).into_iter().partition(|live| numbers.contains(&live.number));
            *live = kept;
            Vec::from_iter::<VecDeque<Live>>(removed)
        });
        removed.iter().for_each(|live| self.forget_live(&live.payload));
        removed
    }

    /// Whether all that was acknowledged when the last write began has left the database with it.
    pub fn deletes_all(&self) -> bool {
        self.gone.is_empty()
    }

    /// Whether the database holds nothing that was acknowledged: what the ring says of that is needed no more.
    pub fn is_absorbed(&self) -> bool {
        self.gone.is_empty() && self.deleting.is_empty() && self.orphans.is_empty()
    }

    /// Live items, waiting or in hand, by their numbers: each with the boot time at which it was stored, and what it says.
    pub fn live_items(&self) -> Vec<(Number, u64, Payload)> {
        let waiting = self.lanes.values().flat_map(|lane| &lane.live);
        let held = self.hand.values().filter_map(|(_, held)| match held {
            Held::Live(live) => Some(live),
            Held::Back(_) => None,
        });
        let item = |live: &Live| (live.number, live.at, Arc::clone(&live.payload));
        let mut items: Vec<_> = waiting.chain(held).map(item).collect();
        items.sort_unstable_by_key(|(number, ..)| *number);
        items
    }

    /// These items, which were live a moment ago, turn out to be in the database that was adopted just now, as the last
    /// process had committed them: they are there, and not live. Gives those that the ring need not hold any more.
    pub fn already_stored(&mut self, rows: &[Placed], now: Instant) -> Vec<Number> {
        let numbers: HashSet<Number> = rows.iter().map(|row| row.number).collect();
        let lanes: Vec<LaneId> = self.live_heads.iter().map(|(_, id)| *id).collect();
        let waited = lanes.into_iter().flat_map(|id| self.remove_live(id, &numbers)).map(|live| live.number);
        let mut moved: HashSet<Number> = waited.collect();
        for row in rows.iter().filter(|row| !moved.contains(&row.number)).copied().collect::<Vec<_>>() {
            if let Some((id, held)) = self.hand.get_mut(&row.number) {
                let Held::Live(live) = held else { continue };
                let payload = Arc::clone(&live.payload);
                // From now on it is the row's lane that it belongs to, and it is not unread there.
                (*id, *held) = (row.lane, Held::Back(row.bytes));
                self.forget_live(&payload);
                if let Some(lane) = self.lanes.get_mut(&row.lane) {
                    lane.back_in_hand += 1;
                    lane.unread = lane.unread.saturating_sub(1);
                }
                moved.insert(row.number);
            } else {
                // It was settled meanwhile.
                self.settled_before(&[row], now);
            }
        }
        moved.into_iter().collect()
    }

    /// Whether there is a database now.
    pub fn has_disk(&mut self, has: bool) {
        self.has_disk = has;
    }

    /// How long an item may wait.
    pub fn max_age(&self) -> Duration {
        self.rules.max_age
    }

    /// What was acknowledged and is still to be deleted.
    pub fn gone(&self) -> HashSet<Number> {
        self.gone.keys().chain(&self.deleting).chain(self.orphans.keys()).copied().collect()
    }

    /// The last process had settled these rows, and could not delete them any more. Nothing was read of them yet.
    pub fn settled_before(&mut self, rows: &[Placed], now: Instant) {
        for row in rows {
            if let Some(lane) = self.lanes.get_mut(&row.lane) {
                lane.unread = lane.unread.saturating_sub(1);
            }
            self.gone.insert(row.number, *row);
            self.gone_since.get_or_insert(now);
        }
    }

    /// The database was damaged, and a new one holds these lanes, with numbers up to `last`. What was in the old one is
    /// gone from here too, in hand or not; what is in hand of it may be sent twice.
    pub fn restart_database(&mut self, stored: Vec<LaneRows>, last: Number) {
        self.gone.clear();
        self.gone_since = None;
        self.reading = false;
        (self.retry, self.failures) = (None, 0);
        self.back_heads.clear();
        self.back_bytes = 0;
        self.hand.retain(|_, (_, held)| matches!(held, Held::Live(_)));
        for lane in self.lanes.values_mut() {
            lane.back.clear();
            (lane.unread, lane.back_in_hand, lane.rows, lane.row_bytes) = (0, 0, 0, 0);
        }
        (self.stored, self.stored_bytes) = (0, 0);
        self.adopt(stored, last);
    }

    /// There is a database with these lanes, and numbers up to `last`.
    pub fn adopt(&mut self, stored: Vec<LaneRows>, last: Number) {
        self.next_number = self.next_number.max(last + 1);
        for LaneRows { id, key, rows, bytes } in stored {
            if let Some(other) =
                self.by_key.get(&key).copied().filter(|other| *other != id && self.lanes[other].rows == 0)
            {
                self.renumber_lane(other, id);
            }
            let lane = self.open_lane(id, &key);
            (lane.rows, lane.row_bytes) = (rows, bytes);
            (lane.unread, lane.unread_from) = (rows, 0);
            self.stored += rows;
            self.stored_bytes += bytes;
        }
    }
}

/// How many of these stored items, of so many bytes each, fit into a message, at least one; and about how many bytes it
/// then has.
fn fitting(sizes: impl Iterator<Item = usize>, ratio: f32, most: usize) -> (usize, f32) {
    let (mut count, mut bytes) = (0, 0.0);
    for size in sizes {
        let more = size as f32 * ratio;
        if count > 0 && bytes + more > most as f32 {
            break;
        }
        bytes += more;
        count += 1;
    }
    (count, bytes)
}

#[cfg(test)]
mod tests;
