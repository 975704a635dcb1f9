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
//!
//! What the link does with items is in [`link`], what the keeper of the database does in [`keep`].

mod keep;
mod link;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::item::LaneKey;
use crate::config::{DropPolicy, OutboxOrder};
use crate::link::outgoing::Packing;

/// What an item is stored under: unique in an outbox, and greater than all before it.
pub type Number = u64;
/// A stored item ([`super::item`]).
pub type Payload = Arc<[u8]>;
/// A lane, as the database numbers it.
pub type LaneId = u32;

/// Bytes of a row in the database beside its payload: number, lane, times, and its share of page headers.
pub const ROW: u64 = 32;
/// A message of JSON is about so many times as long as what is stored, until a lane has shown it.
const RATIO: f32 = 3.0;

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

    /// An item is not live any more.
    fn forget_live(&mut self, payload: &Payload) {
        self.live -= 1;
        self.live_bytes -= payload.len() as u64;
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

    fn lanes_with_unread(&self, now: Instant) -> impl Iterator<Item = (LaneId, &Lane)> {
        let lanes = self.lanes.iter().filter(|(_, lane)| lane.unread > 0).map(|(id, lane)| (*id, lane));
        lanes.filter(move |(id, _)| self.is_parked(*id, now).is_none())
    }
}

#[cfg(test)]
mod tests;
