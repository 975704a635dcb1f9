//! Whatever happens on the way, nothing is forgotten.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::keep::{PROBE, RETRY};
use super::*;
use crate::link::outgoing::Room;

const INTERVAL: Duration = Duration::from_secs(1);
const ROOM: Room = Room { in_flight: 0, places: 8, bytes: 2000, largest: 1 << 20, hurry: false };

fn rules(order: OutboxOrder, each: bool, max_bytes: u64) -> Rules {
    Rules { commit_interval: INTERVAL, ring: 1 << 20, order, each, max_bytes, ..Rules::for_test() }
}

fn key(lane: u8) -> LaneKey {
    LaneKey::Results("p".into(), format!("s{lane}").into())
}

/// What an item says: the place in the list of all that were stored, or a range of them that was dropped.
fn payload(first: u64, last: u64) -> Payload {
    let mut bytes = vec![0; 100];
    bytes[..8].copy_from_slice(&first.to_le_bytes());
    bytes[8..16].copy_from_slice(&last.to_le_bytes());
    bytes.into()
}

fn said(payload: &[u8]) -> std::ops::RangeInclusive<u64> {
    let word = |at: usize| u64::from_le_bytes(payload[at..at + 8].try_into().unwrap());
    word(0)..=word(8)
}

/// What the keeper is in the middle of: the disk has done it, and the book does not know yet.
enum Pending {
    Written(Vec<Row>, Vec<Placed>),
    Read(BTreeSet<LaneId>, Vec<ReadRow>, Number, Option<Number>),
    Dropped(Vec<Placed>, Vec<Row>),
}

/// A book with a ring, a database, a link and a clock that are simulated.
struct World {
    rules: Rules,
    book: Book,
    now: Instant,
    ring: BTreeMap<Number, (LaneKey, Payload)>,
    database: BTreeMap<Number, (LaneId, Payload)>,
    lanes: BTreeMap<LaneId, LaneKey>,
    pending: Option<Pending>,
    flights: Vec<Batch>,
    connected: bool,
    /// When each item was stored, and whether it is accounted for.
    stored: Vec<(Instant, LaneKey)>,
    accounted: BTreeSet<u64>,
    dropped: BTreeSet<u64>,
    /// The last item that was sent of each lane for the first time.
    first_sent: BTreeMap<LaneKey, u64>,
    sent: BTreeSet<u64>,
    /// Those of them that went while the disk said no.
    sent_without: BTreeSet<u64>,
    /// When the disk said no last.
    refused: Option<Instant>,
}

impl World {
    fn new(rules: Rules) -> Self {
        Self {
            book: Book::new(rules.clone(), Vec::new(), 0, 1),
            rules,
            now: Instant::now(),
            ring: BTreeMap::new(),
            database: BTreeMap::new(),
            lanes: BTreeMap::new(),
            pending: None,
            flights: Vec::new(),
            connected: true,
            stored: Vec::new(),
            accounted: BTreeSet::new(),
            dropped: BTreeSet::new(),
            first_sent: BTreeMap::new(),
            sent: BTreeSet::new(),
            sent_without: BTreeSet::new(),
            refused: None,
        }
    }

    fn store(&mut self, lane: u8) {
        let index = self.stored.len() as u64;
        self.stored.push((self.now, key(lane)));
        self.put(key(lane), payload(index, index));
    }

    fn put(&mut self, key: LaneKey, payload: Payload) {
        let (number, lane) = (self.book.number(), self.book.lane(&key));
        self.lanes.insert(lane, key.clone());
        self.ring.insert(number, (key, Arc::clone(&payload)));
        self.book.store(lane, number, 0, payload, self.now);
    }

    /// Sends one message, if there is one.
    fn send(&mut self) -> bool {
        let room = Room { in_flight: self.flights.len(), ..ROOM };
        if !self.connected {
            return false;
        }
        let Take::Batch(batch) = self.book.take(self.now, room) else { return false };
        assert!(!batch.items.is_empty());
        assert!(batch.items.is_sorted_by_key(|item| item.number));
        for item in &batch.items {
            let range = said(&item.payload);
            if self.book.retry.is_some() {
                self.sent_without.extend(range.clone());
            }
            if range.start() == range.end() && self.sent.insert(*range.start()) && !self.dropped.contains(range.start())
            {
                let before = self.first_sent.insert(batch.key.clone(), *range.start());
                if self.rules.order == OutboxOrder::BacklogFirst {
                    assert!(before.is_none_or(|before| before < *range.start()), "{before:?} and then {range:?}");
                }
            }
        }
        self.flights.push(batch);
        true
    }

    fn acknowledge(&mut self, at: usize) {
        if self.flights.is_empty() {
            return;
        }
        let Batch { custody, items, .. } = self.flights.remove(at % self.flights.len());
        for item in items {
            self.accounted.extend(said(&item.payload));
        }
        for number in &custody.numbers {
            self.ring.remove(number);
        }
        self.book.settle(&custody, self.now);
    }

    fn refuse(&mut self, at: usize) {
        if !self.flights.is_empty() {
            let Batch { custody, .. } = self.flights.remove(at % self.flights.len());
            let lane = custody.lane;
            self.book.give_back(custody);
            self.book.park(lane, self.now + Duration::from_secs(5));
        }
    }

    fn disconnect(&mut self) {
        self.connected = false;
        for batch in std::mem::take(&mut self.flights) {
            self.book.give_back(batch.custody);
        }
    }

    /// The keeper begins something: the disk does it, or says no.
    fn begin(&mut self, fails: bool) -> bool {
        if self.pending.is_some() {
            return false;
        }
        match self.book.work(self.now) {
            Work::Rest(_) => return false,
            Work::Write { gone, .. } if fails => {
                self.book.not_written(gone, self.now);
                self.refused = Some(self.now);
            }
            Work::Write { rows, gone } => {
                for row in &rows {
                    assert!(self.database.insert(row.number, (row.lane, Arc::clone(&row.payload))).is_none());
                }
                for row in &gone {
                    assert!(self.database.remove(&row.number).is_some());
                }
                self.pending = Some(Pending::Written(rows, gone));
            }
            Work::Read { .. } if fails => {
                self.book.not_read(self.now);
                self.refused = Some(self.now);
            }
            Work::Read { from, lanes, bytes } => {
                let (mut rows, mut taken, mut upto) = (Vec::new(), 0, None);
                for (number, (lane, payload)) in self.database.range(from..) {
                    if lanes.contains(lane) {
                        taken += payload.len() as u64;
                        rows.push(ReadRow {
                            number: *number,
                            lane: *lane,
                            payload: Arc::clone(payload),
                            boot: Boot::This,
                        });
                    }
                    // Less than is asked for, so that there is more than one read.
                    if taken >= bytes.min(700) {
                        upto = Some(*number);
                        break;
                    }
                }
                self.pending = Some(Pending::Read(lanes, rows, from, upto));
            }
            Work::Drop { lanes, bytes, .. } => self.drop_rows(&lanes, bytes),
            Work::DropOld => {}
        }
        true
    }

    fn drop_rows(&mut self, lanes: &BTreeSet<LaneId>, bytes: u64) {
        let (mut rows, mut records, mut freed) = (Vec::new(), Vec::new(), 0);
        for (number, (lane, payload)) in &self.database {
            let range = said(payload);
            if freed < bytes && lanes.contains(lane) && self.book.is_free(*number) && range.start() == range.end() {
                let stored = payload.len() as u64 + ROW;
                freed += stored;
                rows.push(Placed { number: *number, lane: *lane, bytes: stored });
                records.push(Row { number: 0, lane: *lane, at: 0, payload: payload_of_range(&range) });
                self.dropped.extend(range);
            }
        }
        for record in &mut records {
            record.number = self.book.number();
            self.database.insert(record.number, (record.lane, Arc::clone(&record.payload)));
        }
        rows.iter().for_each(|row| assert!(self.database.remove(&row.number).is_some()));
        self.pending = Some(Pending::Dropped(rows, records));
    }

    /// It ends what it began.
    fn end(&mut self) {
        match self.pending.take() {
            Some(Pending::Written(rows, gone)) => {
                for number in self.book.written(&rows, &gone, self.now) {
                    self.ring.remove(&number);
                }
            }
            Some(Pending::Read(lanes, rows, from, upto)) => {
                assert_eq!(self.book.read(&lanes, rows, from, upto), 0, "rows are missing");
            }
            Some(Pending::Dropped(rows, records)) => self.book.dropped(&rows, &records, self.now),
            None => {}
        }
    }

    fn lane_rows(&self) -> Vec<LaneRows> {
        let mut lanes: BTreeMap<LaneId, LaneRows> = BTreeMap::new();
        for (lane, payload) in self.database.values() {
            let new = || LaneRows { id: *lane, key: self.lanes[lane].clone(), rows: 0, bytes: 0 };
            let lane = lanes.entry(*lane).or_insert_with(new);
            lane.rows += 1;
            lane.bytes += payload.len() as u64 + ROW;
        }
        lanes.into_values().collect()
    }

    /// The process is killed and starts again; the ring is there still, or the power went and it is not.
    fn restart(&mut self, power: bool) {
        self.flights.clear();
        self.pending = None;
        if power {
            self.ring.clear();
            // What was not committed in time is at risk, and nothing else is; but for what the disk refused.
            let risk = INTERVAL + INTERVAL / 4;
            let refused = self.refused.filter(|at| *at + RETRY + INTERVAL / 4 > self.now);
            let held: BTreeSet<u64> = self.database.values().flat_map(|(_, payload)| said(payload)).collect();
            for (index, (at, _)) in self.stored.iter().enumerate() {
                let index = index as u64;
                // Where each is on the disk before it is sent, only what was not sent is, or while the disk said no.
                let kept = self.rules.each && self.sent.contains(&index) && !self.sent_without.contains(&index);
                let at_risk = *at + risk > self.now && !kept;
                if !held.contains(&index) && (at_risk || refused.is_some_and(|refused| *at <= refused)) {
                    self.accounted.insert(index);
                }
            }
        }
        let last = self.ring.keys().chain(self.database.keys()).max().copied().unwrap_or(0);
        self.book = Book::new(self.rules.clone(), self.lane_rows(), last, 1);
        let ring = std::mem::take(&mut self.ring);
        for (number, (key, payload)) in ring {
            if !self.database.contains_key(&number) {
                let lane = self.book.lane(&key);
                self.lanes.insert(lane, key.clone());
                self.ring.insert(number, (key, Arc::clone(&payload)));
                self.book.take_up(lane, number, 0, payload, self.now);
            }
        }
        self.connected = true;
    }

    fn check(&self) {
        assert_eq!(self.book.live_bytes, self.live().map(|live| live.payload.len() as u64).sum::<u64>());
        assert_eq!(self.book.live, self.live().count() as u64);
        let loaded: u64 =
            self.book.lanes.values().flat_map(|lane| &lane.back).map(|back| back.payload.len() as u64).sum();
        assert_eq!(self.book.back_bytes, loaded);
        for (id, lane) in &self.book.lanes {
            let live = lane.live.front().map(|live| (live.number, *id));
            assert!(live.is_none_or(|head| self.book.live_heads.contains(&head)));
            let back = lane.back.front().map(|back| (back.number, *id));
            assert!(back.is_none_or(|head| self.book.back_heads.contains(&head)));
            assert!(lane.back.iter().map(|back| back.number).is_sorted());
        }
        assert_eq!(self.book.live_heads.len(), self.book.lanes.values().filter(|lane| !lane.live.is_empty()).count());
        assert_eq!(self.book.back_heads.len(), self.book.lanes.values().filter(|lane| !lane.back.is_empty()).count());
        assert_eq!(self.book.back_messages, self.flights.iter().filter(|batch| batch.custody.backlog).count());
        if self.pending.is_none() {
            assert_eq!(self.book.stored, self.database.len() as u64);
        }
    }

    fn live(&self) -> impl Iterator<Item = &Live> {
        let held = self.book.hand.values().filter_map(|(_, held)| match held {
            Held::Live(live) => Some(live),
            Held::Back(_) => None,
        });
        self.book.lanes.values().flat_map(|lane| &lane.live).chain(held)
    }

    /// The link is up and the disk works: everything goes out.
    fn drain(&mut self) {
        if !self.connected {
            self.connected = true;
            self.book.connected();
        }
        for _ in 0..10_000 {
            self.now += Duration::from_millis(250);
            self.end();
            let worked = self.begin(false);
            self.end();
            let sent = self.send();
            while !self.flights.is_empty() {
                self.acknowledge(0);
            }
            self.check();
            if !worked && !sent && self.book.waiting() == 0 && self.database.is_empty() {
                break;
            }
        }
        assert_eq!(self.book.waiting(), 0, "something never goes out");
        assert!(self.ring.is_empty(), "the ring keeps {:?}", self.ring.keys());
        assert!(self.database.is_empty(), "the database keeps {:?}", self.database.keys());
        let all: BTreeSet<u64> = (0..self.stored.len() as u64).collect();
        assert_eq!(all.difference(&self.accounted).collect::<Vec<_>>(), Vec::<&u64>::new(), "forgotten");
    }
}

fn payload_of_range(range: &std::ops::RangeInclusive<u64>) -> Payload {
    // Marked as a range by an end that lies beyond, so that it is not dropped in its turn.
    let mut bytes = payload(*range.start(), *range.end()).to_vec();
    bytes.truncate(20);
    bytes.into()
}

#[derive(Debug, Clone)]
enum Step {
    Store(u8),
    Send,
    Acknowledge(usize),
    Refuse(usize),
    Disconnect,
    Connect,
    Begin { fails: bool },
    End,
    Wait(u64),
    Kill,
    PowerCut,
    ForgetEmpty,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0u8..3).prop_map(Step::Store),
        10 => Just(Step::Send),
        8 => (0usize..8).prop_map(Step::Acknowledge),
        1 => (0usize..8).prop_map(Step::Refuse),
        1 => Just(Step::Disconnect),
        2 => Just(Step::Connect),
        8 => prop::bool::weighted(0.1).prop_map(|fails| Step::Begin { fails }),
        8 => Just(Step::End),
        4 => (1u64..2000).prop_map(Step::Wait),
        1 => Just(Step::Kill),
        1 => Just(Step::PowerCut),
        1 => Just(Step::ForgetEmpty),
    ]
}

fn play(rules: Rules, steps: Vec<Step>) {
    let mut world = World::new(rules);
    for step in steps {
        match step {
            Step::Store(lane) => world.store(lane),
            Step::Send => _ = world.send(),
            Step::Acknowledge(at) => world.acknowledge(at),
            Step::Refuse(at) => world.refuse(at),
            Step::Disconnect => world.disconnect(),
            Step::Connect if !world.connected => {
                world.connected = true;
                world.book.connected();
            }
            Step::Connect => {}
            Step::Begin { fails } => _ = world.begin(fails),
            Step::End => world.end(),
            Step::Wait(ms) => {
                // The keeper is awake: it does what is due, four times in an interval.
                let until = world.now + Duration::from_millis(ms);
                while world.now < until {
                    world.now = until.min(world.now + Duration::from_millis(250));
                    world.end();
                    while world.begin(false) {
                        world.end();
                    }
                }
            }
            Step::Kill => world.restart(false),
            Step::PowerCut => world.restart(true),
            Step::ForgetEmpty => world.book.forget_empty(),
        }
        world.check();
    }
    world.drain();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Any interleaving of storing, sending, acknowledging, refusing, losing the link, failing of the disk, killing and
    /// power cuts ends with every item delivered, dropped with a record, or stored within the interval that is at risk.
    #[test]
    fn nothing_is_forgotten(steps in prop::collection::vec(step(), 1..150)) {
        play(rules(OutboxOrder::LiveFirst, false, 1 << 30), steps);
    }

    #[test]
    fn nothing_is_forgotten_where_the_oldest_goes_first(steps in prop::collection::vec(step(), 1..150)) {
        play(rules(OutboxOrder::BacklogFirst, false, 1 << 30), steps);
    }

    #[test]
    fn nothing_is_forgotten_where_each_is_committed_first(steps in prop::collection::vec(step(), 1..150)) {
        play(rules(OutboxOrder::LiveFirst, true, 1 << 30), steps);
    }

    /// A database that is too small drops, with records.
    #[test]
    fn nothing_is_forgotten_where_there_is_no_room(steps in prop::collection::vec(step(), 1..150)) {
        play(rules(OutboxOrder::LiveFirst, false, 1000), steps);
    }
}

fn book(order: OutboxOrder) -> World {
    World::new(rules(order, false, 1 << 30))
}

/// How many of `messages` were of the backlog, each acknowledged when `window` others are in flight.
fn backlog_of(world: &mut World, messages: usize) -> usize {
    let mut backlog = 0;
    for _ in 0..messages {
        while world.begin(false) {
            world.end();
        }
        if world.flights.len() == ROOM.places {
            world.acknowledge(0);
        }
        if world.send() {
            backlog += usize::from(world.flights.last().unwrap().custody.backlog);
        }
    }
    backlog
}

/// A world in whose database many items of a lane wait, while others come in all the time.
fn with_backlog(order: OutboxOrder) -> World {
    let mut world = book(order);
    (0..2000).for_each(|_| world.store(0));
    world.now += 2 * INTERVAL;
    while world.begin(false) {
        world.end();
    }
    (0..200).for_each(|lane| world.store(100 + (lane % 100) as u8));
    world
}

#[test]
fn a_quarter_of_the_link_is_left_to_the_backlog() {
    let mut world = with_backlog(OutboxOrder::LiveFirst);
    let backlog = backlog_of(&mut world, 80);
    assert!((18..=24).contains(&backlog), "{backlog} of 80");
}

#[test]
fn the_backlog_goes_first_where_that_is_configured() {
    let mut world = with_backlog(OutboxOrder::BacklogFirst);
    assert_eq!(backlog_of(&mut world, 80), 80);
}

#[test]
fn what_is_acknowledged_in_time_never_touches_the_disk() {
    let mut world = book(OutboxOrder::LiveFirst);
    for _ in 0..1000 {
        world.store(0);
        assert!(world.send());
        world.now += Duration::from_millis(10);
        assert!(!world.begin(false));
        if world.flights.len() > 5 {
            world.acknowledge(0);
        }
    }
    assert!(world.database.is_empty());
}

#[test]
fn what_waits_for_an_interval_is_committed_within_a_quarter_of_one() {
    let mut world = book(OutboxOrder::LiveFirst);
    world.store(0);
    let start = world.now;
    let mut wakes = 0;
    loop {
        match world.book.work(world.now) {
            Work::Rest(Some(at)) => {
                wakes += 1;
                world.now = at;
            }
            Work::Write { rows, .. } => break assert_eq!(rows.len(), 1),
            work => panic!("{work:?}"),
        }
        assert!(world.now <= start + INTERVAL + INTERVAL / 4);
    }
    assert!(wakes <= 5, "{wakes} looks");
}

#[test]
fn the_backlog_keeps_to_its_rate() {
    let mut world = World::new(Rules { drain_rate: 10_000, ..rules(OutboxOrder::LiveFirst, false, 1 << 30) });
    (0..1000).for_each(|_| world.store(0));
    world.now += 2 * INTERVAL;
    let start = world.now;
    let mut bytes = 0.0;
    while world.now < start + Duration::from_secs(10) {
        while world.begin(false) {
            world.end();
        }
        while world.send() {
            bytes += world.flights.last().unwrap().items.len() as f32 * 100.0 * RATIO;
            world.acknowledge(0);
        }
        world.now += Duration::from_millis(10);
    }
    assert!((90_000.0..=115_000.0).contains(&bytes), "{bytes} bytes in 10 s");
}

#[test]
fn where_nothing_takes_it_room_is_made_of_the_pipeline_that_holds_most() {
    let small = Rules { ring: 3200, ..rules(OutboxOrder::LiveFirst, false, 1 << 30) };
    let mut world = World::new(small);
    let other = LaneKey::Results("q".into(), "s".into());
    world.put(other, payload(900, 900));
    let mut stored = 0;
    while world.book.has_room(100) {
        world.store(0);
        stored += 1;
    }
    assert_eq!(stored, 63);
    let dropped = world.book.drop_live();
    assert_eq!(dropped.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [2], "a 32nd, the oldest of p");
    assert!(world.book.has_room(100));
}

#[test]
fn a_disk_that_says_no_is_asked_less_and_less_often_and_for_little() {
    let now = Instant::now();
    let mut book = Book::new(rules(OutboxOrder::LiveFirst, false, 1 << 30), Vec::new(), 0, 1);
    let lane = book.lane(&key(0));
    for number in 1..=1000 {
        let number = book.number().max(number);
        book.store(lane, number, 0, payload(number, number), now);
    }
    let (mut at, mut waits, mut asked) = (now + INTERVAL, Vec::new(), Vec::new());
    for _ in 0..8 {
        let Work::Write { rows, gone } = book.work(at) else { panic!("there is something to write") };
        asked.push(rows.len());
        book.not_written(gone, at);
        let Work::Rest(Some(next)) = book.work(at) else { panic!("it is left alone") };
        waits.push(next.duration_since(at).as_secs());
        at = next;
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30, 30]);
    assert_eq!(asked[0], 1000);
    assert!(asked[1..].iter().all(|rows| *rows == PROBE as usize / 100), "{asked:?}");
    // Once it works again, all of it goes.
    let Work::Write { rows, gone } = book.work(at) else { panic!("there is something to write") };
    book.written(&rows, &gone, at);
    // Something is read in between.
    let rest = (0..4).find_map(|_| match book.work(at) {
        Work::Write { rows, .. } => Some(rows.len()),
        _ => None,
    });
    assert_eq!(rest, Some(1000 - PROBE as usize / 100));
}
