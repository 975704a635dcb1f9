//! The outbox: results and events that the uplink's broker has not acknowledged.
//!
//! What it promises: whatever was stored is delivered at least once, or a policy dropped it and a range record says so,
//! or it was stored within the last commit interval (and a quarter of one) before the power went.
//!
//! Two stores keep that promise, and memory holds what is about to be sent:
//!
//! - the [`ring`] on tmpfs: every item, before it can be sent; it outlives the process;
//! - the [`database`]: what stays unacknowledged for a whole commit interval; it outlives the power. On a healthy link
//!   nearly nothing is written to it;
//! - the [`book`] knows where each item is, and decides what is to be done next. It does no input or output.
//!
//! Three kinds of thread use an outbox: workers and the agent itself store items, the uplink's task takes, settles and
//! gives back, and the [`keeper`], a thread of its own, does all that touches the disk. They meet in one lock, which is
//! held for some microseconds at a time: no disk is touched under it, and no message is written.

pub mod book;
mod database;
pub mod history;
pub mod item;
mod keeper;
pub mod ranges;
pub mod ring;
mod runs;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use limpet_runtime::Moment;
use limpet_wire::dropped::Reason;
use limpet_wire::id::Serial;
use limpet_wire::message::{OutboxFigures, StreamDelivery};
use limpet_wire::result::ResultRecord;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

use self::book::{Book, Custody, Depth, LaneId, Number, Payload, PipelineRules, Rules, Take};
pub use self::database::{ASIDE, examine};
use self::history::disk::Disk;
use self::history::{History, Wanted};
use self::item::LaneKey;
use self::keeper::{Keeper, Opened};
use self::ranges::{Held, Range};
use self::ring::{FoundItem, NoRoom, Ring};
use self::runs::Runs;
use crate::config::{Config, Durability, HistoryPlace};
use crate::link::outgoing::{Packing, Room};
use crate::marks;

/// Name of the database under the state folder.
pub const DATABASE: &str = "outbox.db";
/// Name of the ring's folder under the run folder.
const RING: &str = "outbox";
/// How often it is told that the ring does not take everything.
const BETWEEN_RINGS: Duration = Duration::from_secs(600);

/// Ids of what the gateway says of itself: events and range records, `<gateway>/event/<run>-<seq>`.
#[derive(Debug)]
pub struct EventIds {
    gateway: Arc<str>,
    run: u64,
    seq: AtomicU64,
}

impl EventIds {
    /// Ids of this process, from number 1.
    pub fn new(gateway: Arc<str>) -> Self {
        Self { gateway, run: crate::link::random_run(), seq: AtomicU64::new(0) }
    }

    /// The next one.
    pub fn next(&self) -> String {
        let serial = Serial { run: self.run, seq: self.seq.fetch_add(1, Ordering::Relaxed) + 1 };
        format!("{}/event/{serial}", self.gateway)
    }

    /// The gateway's name.
    pub fn gateway(&self) -> &Arc<str> {
        &self.gateway
    }
}

/// What an outbox has to tell a person.
#[derive(Debug, PartialEq, Eq)]
pub enum Notice {
    /// The database was damaged; it was set aside, and a new one started.
    Damaged {
        /// What is wrong with it.
        why: String,
        /// Where it is now.
        aside: PathBuf,
        /// Items that could be read and are in the new one.
        salvaged: u64,
        /// Items that could not; none if nobody knows how many there were.
        lost: Option<u64>,
    },
    /// Items cannot be written to the disk.
    Failing(String),
    /// They can again.
    Works,
    /// The ring is full: what it did not take does not outlive the process until it is committed.
    RingFull,
    /// The run folder takes no ring, or the ring cannot be written, for this reason; of what it did not take the same holds.
    RingFailing(String),
}

/// Figures of an outbox since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    /// What it holds.
    pub depth: Depth,
    /// Bytes of the ring.
    pub ring_bytes: u64,
    /// Items that the broker acknowledged.
    pub delivered: u64,
    /// Those of them that nobody had subscribed to.
    pub unheard: u64,
    /// Items that a policy dropped, or that no message could hold.
    pub dropped: u64,
    /// Items that were written to the disk.
    pub committed: u64,
}

impl From<Figures> for OutboxFigures {
    fn from(figures: Figures) -> Self {
        Self {
            live: figures.depth.live,
            stored: figures.depth.stored,
            stored_bytes: figures.depth.stored_bytes,
            ring_bytes: figures.ring_bytes,
            committed: figures.committed,
            delivered: figures.delivered,
            unheard: figures.unheard,
            dropped: figures.dropped,
        }
    }
}

/// The outbox of a gateway.
#[derive(Debug)]
pub struct Outbox {
    state: Mutex<State>,
    /// Rung when everything is committed, for those who wait for it.
    settled: Condvar,
    history: Mutex<History>,
    keeper: OnceLock<Thread>,
    /// What the last `delivery` message said, uncut, and how long it could be.
    told: Mutex<Option<(usize, Vec<StreamDelivery>)>>,
    /// Rung when there may be something to send.
    bell: Arc<Notify>,
    ids: Arc<EventIds>,
    notices: UnboundedSender<Notice>,
}

/// What became of an item.
#[derive(Debug)]
struct Stored {
    /// Whether the keeper is to be woken.
    wake: bool,
    /// Whether the ring has it.
    ringed: bool,
    /// Why a ring that is there has it not.
    refused: Option<NoRoom>,
}

#[derive(Debug)]
struct State {
    book: Book,
    ring: Option<Ring>,
    /// Live items that the ring did not take.
    unringed: HashSet<Number>,
    /// When it was told last that the ring is full, and that it cannot be written.
    ring_told: [Option<Instant>; 2],
    runs: Runs,
    /// What segments before this one settled has left the database.
    absorbed: u64,
    /// What the last process had settled, until a database was asked which of it it has.
    settled_before: Vec<Number>,
    /// Items of another boot in the ring, whose time only a database can put right, until there is one.
    foreign: Vec<FoundItem>,
    figures: Figures,
    /// Nothing is kept any more: the process is about to end.
    closed: bool,
    /// The keeper has ended, and the database is closed.
    ended: bool,
}

/// The kernel's id of this boot.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// The rules that a configuration gives.
fn rules(config: &Config) -> Rules {
    let outbox = &config.outbox;
    let pipeline = |pipeline: &crate::config::Pipeline| {
        let batch = pipeline.message_batch;
        let packing = Packing { encoding: pipeline.encoding, max: batch.max as usize, delay: batch.delay.0 };
        (pipeline.name.shared(), PipelineRules { packing, policy: pipeline.outbox_policy })
    };
    Rules {
        commit_interval: outbox.commit_interval.0,
        each: outbox.durability == Durability::Each,
        ring: outbox.ring.0,
        max_bytes: outbox.max_bytes.0,
        max_age: outbox.max_age.0,
        order: outbox.order,
        drain_rate: outbox.drain_rate.0,
        history: outbox.history_results,
        history_on_disk: outbox.history == HistoryPlace::Disk,
        pipelines: config.pipelines.iter().map(pipeline).collect::<HashMap<_, _>>(),
    }
}

impl Outbox {
    /// Opens the outbox of a gateway with what the last process left, and starts its keeper. A disk that fails is no error:
    /// a gateway runs without one as well as it can, and `notices` tell what is missing.
    ///
    /// `bell` is rung when there may be something to send.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub(crate) fn open(
        config: &Config,
        ids: Arc<EventIds>,
        bell: Arc<Notify>,
        notices: UnboundedSender<Notice>,
    ) -> io::Result<Arc<Self>> {
        let (rules, path) = (rules(config), config.gateway.state.join(DATABASE));
        Self::start(rules, path, &config.gateway.run.join(RING), ids, bell, notices)
    }

    /// The same with everything named: rules, the database's file, the ring's folder.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(
        rules: Rules,
        path: PathBuf,
        ring: &Path,
        ids: Arc<EventIds>,
        bell: Arc<Notify>,
        notices: UnboundedSender<Notice>,
    ) -> io::Result<Arc<Self>> {
        let mut history = History::new(rules.history as usize);
        if let Some(state) = path.parent().filter(|_| rules.history_on_disk && rules.history > 0) {
            match Disk::open(state, rules.history, rules.commit_interval) {
                Ok((disk, found)) => history = history.on(disk, found),
                Err(why) => tracing::error!(why, "results are not kept on the disk after delivery"),
            }
        }
        let (mut ring, mut found) = match Ring::open(ring, rules.ring) {
            Ok((ring, found)) => (Some(ring), found),
            Err(error) => {
                let why = format!("{}: {error}", ring.display());
                _ = notices.send(Notice::RingFailing(why));
                (None, ring::Found::default())
            }
        };
        for damaged in &found.damaged {
            tracing::info!(
                segment = damaged,
                "a segment of the ring ends early, as after a kill in the middle of a write"
            );
        }
        let (mut foreign, items): (Vec<_>, Vec<_>) = found.items.into_iter().partition(|item| item.boot.is_some());
        found.items = items;
        let opened = keeper::open(&path, found.last, &ids, &notices, |_| None).and_then(|mut opened| {
            opened.take_over(&foreign)?;
            Ok(opened)
        });
        let mut runs = Runs::default();
        let (database, lanes, last) = match opened {
            Ok(Opened { database, lanes, last, runs: known }) => {
                runs.restore(known);
                let taken = foreign.drain(..).map(|item| item.number);
                taken.for_each(|number| ring.iter_mut().for_each(|ring| ring.close(number)));
                (Some(database), lanes, last)
            }
            Err(why) => {
                _ = notices.send(Notice::Failing(why));
                (None, Vec::new(), keeper::UNKNOWN)
            }
        };
        let (mut last, lane) = match &database {
            Some(_) => (last.max(found.last), 1),
            // Beside whatever the database may hold, should it open later.
            None => (
                last.max(found.last) + (crate::link::random() >> 18),
                (1 << 31) + (crate::link::random() >> 34) as LaneId,
            ),
        };
        if ring.is_none() {
            // What the ring says of numbers that it holds, should it be read later, is not said of these.
            last += 1 << 40;
        }
        let book = Book::new(rules, lanes, last, lane);
        let state = State {
            book,
            ring,
            unringed: HashSet::new(),
            ring_told: [None; 2],
            runs,
            absorbed: 0,
            settled_before: std::mem::take(&mut found.settled),
            foreign,
            figures: Figures::default(),
            closed: false,
            ended: false,
        };
        let outbox = Arc::new(Self {
            state: Mutex::new(state),
            settled: Condvar::new(),
            history: Mutex::new(history),
            keeper: OnceLock::new(),
            told: Mutex::default(),
            bell,
            ids,
            notices,
        });
        outbox.lock().book.has_disk(database.is_some());
        let mut keeper = Keeper::new(Arc::clone(&outbox), path, database);
        outbox.recover(&mut keeper, found);
        let thread = std::thread::Builder::new().name("outbox".into()).spawn(move || keeper.run())?;
        _ = outbox.keeper.set(thread.thread().clone());
        Ok(outbox)
    }

    /// Takes up what the ring of the last process held: what was settled is not read from the database again, and what is
    /// not in the database is live again.
    fn recover(&self, keeper: &mut Keeper, found: ring::Found) {
        keeper.take_settled();
        let stored = keeper.which_are_stored(found.items.iter().map(|item| item.number));
        let (mut state, now) = (self.lock(), Instant::now());
        let State { book, ring, runs, .. } = &mut *state;
        let mut labeled = |payload: &[u8]| {
            let label = item::label(payload).ok()?;
            label.serial.into_iter().for_each(|serial| runs.stored(&label.lane, serial));
            Some(label)
        };
        found.done.iter().for_each(|item| _ = labeled(&item.payload));
        for FoundItem { number, at, payload, .. } in found.items {
            match labeled(&payload) {
                Some(label) if !stored.contains(&number) => {
                    let lane = book.lane(&label.lane);
                    book.take_up(lane, number, at, payload.into(), now);
                }
                // It is in the database, or it is none: the checksum was right, so another version wrote it.
                _ => ring.iter_mut().for_each(|ring| ring.close(number)),
            }
        }
        state.trim_ring();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_keeper(&self) {
        if let Some(thread) = self.keeper.get() {
            thread.unpark();
        }
    }

    /// Stores a result that was selected for publication.
    pub fn offer_result(&self, record: &ResultRecord) {
        let key = LaneKey::of(record);
        marks::decided(&key, record.serial);
        let payload = item::of_result(record);
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.keep(record, Arc::clone(&payload), history::now());
        drop(history);
        if self.offer(&key, payload, record.serial) {
            marks::stored(&key, record.serial);
        }
    }

    /// Stores an event, as JSON.
    pub fn offer_event(&self, json: Vec<u8>) {
        self.offer(&LaneKey::Events, json.into(), None);
    }

    /// Says whether it outlives the process from now on: if not, it does when the keeper has written it.
    fn offer(&self, key: &LaneKey, payload: Payload, serial: Option<Serial>) -> bool {
        let mut state = self.lock();
        let mut wake = false;
        while !state.book.has_room(payload.len() as u64) {
            wake = true;
            if !state.drop_live(&self.ids) {
                break;
            }
        }
        let stored = state.store(key, payload, false);
        wake |= stored.wake;
        _ = serial.map(|serial| state.runs.stored(key, serial));
        let notice = stored.refused.and_then(|why| state.tell_of_ring(why));
        drop(state);
        _ = notice.map(|notice| self.notices.send(notice));
        if wake {
            self.wake_keeper();
        }
        self.bell.notify_one();
        stored.ringed
    }

    /// What to send next.
    pub fn take(&self, now: Instant, room: Room) -> Take {
        self.lock().book.take(now, room)
    }

    /// The broker has these; `heard` if it had anybody to give them to.
    pub fn settle(&self, custody: &Custody, heard: bool) {
        let mut state = self.lock();
        let count = custody.numbers.len() as u64;
        state.figures.delivered += count;
        state.figures.unheard += if heard { 0 } else { count };
        let parked = state.book.unpark(custody.lane);
        let wake = state.settle(custody) || parked;
        drop(state);
        if wake {
            self.wake_keeper();
        }
    }

    /// These come back to where they stood.
    pub fn give_back(&self, custody: Custody) {
        self.lock().book.give_back(custody);
    }

    /// All but the first `keep` come back to where they stood: they did not fit into one message.
    pub fn give_back_some(&self, custody: &mut Custody, keep: usize) {
        self.lock().book.give_back_some(custody, keep);
    }

    /// The broker refused these: they come back, and their lane is left alone until then.
    pub fn refuse(&self, custody: Custody, until: Instant) {
        let mut state = self.lock();
        let lane = custody.lane;
        state.book.give_back(custody);
        state.book.park(lane, until);
        drop(state);
        self.wake_keeper();
    }

    /// These are given up, because no message can hold them; range records say so, as far as what they are can be read.
    pub fn give_up<'a>(&self, custody: &Custody, payloads: impl IntoIterator<Item = &'a [u8]>, reason: Reason) {
        let mut state = self.lock();
        state.figures.dropped += custody.numbers.len() as u64;
        for payload in payloads {
            if let Ok(item::Label { lane, serial: Some(serial) }) = item::label(payload) {
                let range = Range { key: lane, run: serial.run, first: serial.seq, last: serial.seq, every: 1 };
                state.record(&range, reason, &self.ids);
            }
        }
        // Only now: after a kill in between, it would be there, and the record too.
        state.settle(custody);
        drop(state);
        self.wake_keeper();
    }

    /// A message of a lane had so many bytes for so many stored.
    pub fn learn_ratio(&self, lane: LaneId, sent: usize, stored: usize) {
        self.lock().book.learn_ratio(lane, sent, stored);
    }

    /// The link is up.
    pub fn connected(&self) {
        self.lock().book.connected();
        self.wake_keeper();
    }

    /// Items that wait or are in hand.
    pub fn waiting(&self) -> u64 {
        self.lock().book.waiting()
    }

    /// How many events have not been acknowledged.
    pub fn events_waiting(&self) -> u64 {
        self.lock().book.waiting_by_key().get(&LaneKey::Events).copied().unwrap_or(0)
    }

    /// The `delivery` message, as of now and at most so long, unless it says what the last one said.
    pub fn delivery(&self, most: usize) -> Option<Vec<u8>> {
        let mut state = self.lock();
        let State { book, runs, .. } = &mut *state;
        let waiting = book.waiting_by_key();
        let streams = runs.streams(|key| waiting.get(key).copied().unwrap_or(0));
        drop(state);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let new = (most, streams);
        if told.as_ref() == Some(&new) {
            return None;
        }
        let message = runs::message(self.ids.gateway(), crate::wall::now_text(), new.1.clone(), most);
        *told = Some(new);
        Some(message)
    }

    /// The last results of a pipeline, each as one JSON object, the oldest first.
    pub fn results(&self, pipeline: &str, wanted: &Wanted) -> Vec<Vec<u8>> {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let found = history.of(pipeline, wanted, history::now());
        drop(history);
        let offset = crate::wall::Wall::now().offset();
        let json = |payload: Payload| {
            let mut json = Vec::with_capacity(512);
            item::write(&payload, crate::config::Encoding::Json, offset, &mut json).ok().map(|_| json)
        };
        found.into_iter().filter_map(json).collect()
    }

    /// Figures since the start.
    pub fn figures(&self) -> Figures {
        let state = self.lock();
        let ring_bytes = state.ring.as_ref().map_or(0, Ring::bytes);
        Figures { depth: state.book.depth(), ring_bytes, ..state.figures }
    }

    /// Forgets what it knows of streams of which nothing waits.
    pub fn forget_empty(&self) {
        self.lock().book.forget_empty();
    }

    /// Commits everything that is not acknowledged, and what was acknowledged leaves the database. Waits for it until
    /// then; says whether all of it is on the disk.
    pub fn commit_all(&self, until: Instant) -> bool {
        let mut state = self.lock();
        state.book.flush_now();
        loop {
            if state.book.depth().live == 0 && state.is_absorbed() {
                state.book.flushed();
                return true;
            }
            let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                return false;
            };
            state.book.flush();
            self.wake_keeper();
            // The keeper rings when it has written; what came meanwhile is asked for again.
            let patience = left.min(Duration::from_millis(100));
            state = self.settled.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends the keeper and closes the database; what is not committed then is in the ring alone. A disk that does not answer
    /// until then is left to itself. Says whether the database is closed.
    pub fn close(&self, until: Instant) -> bool {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).close(until);
        let mut state = self.lock();
        state.closed = true;
        self.wake_keeper();
        let left = until.saturating_duration_since(Instant::now());
        let ended = self.settled.wait_timeout_while(state, left, |state| !state.ended);
        ended.unwrap_or_else(PoisonError::into_inner).0.ended
    }
}

#[cfg(test)]
impl Outbox {
    /// An outbox in a folder that commits nothing while a test lasts, and packs results of the pipeline `p` so.
    pub fn for_test(folder: &Path, packing: Packing, bell: &Arc<Notify>) -> Arc<Self> {
        let pipeline = PipelineRules { packing, policy: crate::config::DropPolicy::DropOldest };
        let rules = Rules { pipelines: [("p".into(), pipeline)].into(), ..Rules::for_test() };
        let (notices, _) = tokio::sync::mpsc::unbounded_channel();
        let ids = Arc::new(EventIds::new("g".into()));
        Self::start(rules, folder.join(DATABASE), &folder.join(RING), ids, Arc::clone(bell), notices)
            .expect("a thread can be had")
    }
}

impl State {
    /// Stores an item, in the ring first.
    fn store(&mut self, key: &LaneKey, payload: Payload, urgent: bool) -> Stored {
        let (at, now) = (Moment::now().0, Instant::now());
        let (number, lane) = (self.book.number(), self.book.lane(key));
        let append = |state: &mut Self| {
            let ring = state.ring.as_mut()?;
            Some(if urgent { ring.append_urgent(number, at, &payload) } else { ring.append(number, at, &payload) })
        };
        let mut appended = append(self);
        if matches!(appended, Some(Err(NoRoom::Full))) {
            self.rewrite_ring();
            appended = append(self);
        }
        let ringed = matches!(appended, Some(Ok(())));
        let refused = appended.and_then(Result::err);
        if refused.is_some() {
            // It goes to the database as soon as that takes it.
            self.unringed.insert(number);
            self.book.flush();
        }
        let wake = self.book.store(lane, number, at, payload, now) || refused.is_some();
        Stored { wake, ringed, refused }
    }

    /// That the ring did not take an item, unless it was just said. It may take the next and again not the one after that,
    /// many times a second.
    fn tell_of_ring(&mut self, why: NoRoom) -> Option<Notice> {
        let now = Instant::now();
        let (told, notice) = match why {
            NoRoom::Full => (&mut self.ring_told[0], Notice::RingFull),
            NoRoom::System(error) => (&mut self.ring_told[1], Notice::RingFailing(error.to_string())),
        };
        let due = told.is_none_or(|told| now.duration_since(told) >= BETWEEN_RINGS);
        due.then(|| {
            *told = Some(now);
            notice
        })
    }

    /// Says whether the keeper is to be woken.
    fn settle(&mut self, custody: &Custody) -> bool {
        let closed = self.book.settle(custody, Instant::now());
        self.settle_in_ring(&custody.numbers);
        self.close_in_ring(&closed);
        !self.is_absorbed()
    }

    /// What is settled is not sent again after a kill.
    fn settle_in_ring(&mut self, numbers: &[Number]) {
        if self.ring.as_ref().is_some_and(Ring::is_overfull) {
            self.rewrite_ring();
        }
        let Some(ring) = &mut self.ring else { return };
        // Of what is neither in the ring nor in the database nothing needs to be said, and it would fill the ring.
        let known: Vec<Number> = numbers.iter().copied().filter(|number| !self.unringed.contains(number)).collect();
        if let Err(error) = ring.settle(&known) {
            tracing::debug!(%error, "the ring does not take that items are settled; after a kill they are sent again");
        }
    }

    /// Makes the ring smaller, if that is worth while: what is still needed of it is written once more, all in one place,
    /// and what was before goes. It is full of what is needed no more where the database takes no deletion, or a single
    /// item that nobody takes holds the segments after it back.
    fn rewrite_ring(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        if self.book.live_bytes() > ring.capacity() / 4 || !self.foreign.is_empty() {
            return;
        }
        let mut settled: Vec<Number> =
            self.book.gone().into_iter().chain(self.settled_before.iter().copied()).collect();
        settled.sort_unstable();
        let mut items = self.book.live_items();
        items.retain(|(number, ..)| !self.unringed.contains(number));
        match ring.rewrite(&items, &settled) {
            Ok(begun) => self.absorbed = begun,
            Err(error) => tracing::debug!(%error, "the ring cannot be made smaller"),
        }
    }

    /// The ring need not hold these any more.
    fn close_in_ring(&mut self, numbers: &[Number]) {
        let Some(ring) = &mut self.ring else { return };
        for number in numbers {
            if !self.unringed.remove(number) {
                ring.close(*number);
            }
        }
        self.trim_ring();
    }

    /// Whether the database holds nothing that was settled: what the ring says of that is needed no more.
    fn is_absorbed(&self) -> bool {
        self.settled_before.is_empty() && self.book.is_absorbed()
    }

    fn trim_ring(&mut self) {
        let absorbed = if self.is_absorbed() { u64::MAX } else { self.absorbed };
        self.ring.iter_mut().for_each(|ring| ring.trim(absorbed));
    }

    /// Stores a range record.
    fn record(&mut self, range: &Range, reason: Reason, ids: &EventIds) {
        let payload = ranges::record(range, reason, ids);
        self.runs.dropped(range, reason);
        self.store(&range.key, payload, true);
    }

    /// Drops live items, because neither the ring nor the database take more. Says whether that made room.
    fn drop_live(&mut self, ids: &EventIds) -> bool {
        let before = self.book.live_bytes();
        let dropped = self.book.drop_live();
        let held: Vec<Held> = dropped.iter().filter_map(|(_, payload)| Held::of(payload).ok()).collect();
        self.figures.dropped += held.iter().filter(|held| matches!(held, Held::Serial(..))).count() as u64;
        for (range, reason) in ranges::fold(held, 1, Reason::Disk) {
            self.record(&range, reason, ids);
        }
        // Only now: after a kill in between, they would be there, and the record too.
        let numbers: Vec<Number> = dropped.iter().map(|(number, _)| *number).collect();
        self.settle_in_ring(&numbers);
        self.close_in_ring(&numbers);
        // Range records alone make no room for anything.
        self.book.live_bytes() < before
    }
}

#[cfg(test)]
mod tests;
