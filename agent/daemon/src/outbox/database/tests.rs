//! What is on the disk, and what is left of it when it is damaged.

use std::collections::BTreeMap;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::sync::Arc;

use limpet_wire::dropped::Reason;
use limpet_wire::result::{Captured, Clock, ResultRecord, Verdict};
use proptest::prelude::*;

use super::*;
use crate::outbox::keeper::{self, Opened};
use crate::outbox::{EventIds, item};

fn key(stream: &str) -> LaneKey {
    LaneKey::Results("p".into(), stream.into())
}

fn payload(stream: &str, seq: u64) -> Arc<[u8]> {
    let record = item::fixture::record("p", stream, seq, Verdict::Regression { values: vec![0.5; 40] });
    item::of_result(&ResultRecord { captured: Captured::Boottime(5_000), clock: Clock::Unsynced, ..record })
}

/// Lane 1 is stream `a`, lane 2 is `b`.
fn row(number: Number, lane: LaneId, seq: u64) -> Row {
    let stream = if lane == 1 { "a" } else { "b" };
    Row { number, lane, at: number * 1_000_000_000, payload: payload(stream, seq) }
}

fn placed(row: &Row) -> Placed {
    Placed { number: row.number, lane: row.lane, bytes: row.payload.len() as u64 + ROW }
}

/// A database in a folder of its own.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("outbox.db")
    }

    fn open(&self) -> (Database, Vec<LaneRows>, Number) {
        Database::open(&self.path()).unwrap()
    }

    /// A new one beside it.
    fn open_another(&self) -> (Database, Vec<LaneRows>, Number) {
        Database::open(&self.0.path().join("another.db")).unwrap()
    }

    /// One with `count` rows of lane 1, numbered from 1, all of them in the main file.
    fn with_rows(count: u64) -> Self {
        let disk = Self::new();
        let rows: Vec<Row> = (1..=count).map(|number| row(number, 1, number)).collect();
        disk.open().0.write(&rows, &[], &[], Offset::default()).unwrap();
        disk
    }

    /// Overwrites a page of the main file.
    fn damage(&self, page: u64) {
        let mut file = fs::OpenOptions::new().write(true).open(self.path()).unwrap();
        file.seek(SeekFrom::Start(page * 4096)).unwrap();
        file.write_all(&[0xa5; 4096]).unwrap();
    }

    fn pages(&self) -> u64 {
        fs::metadata(self.path()).unwrap().len() / 4096
    }
}

fn all(database: &mut Database) -> Vec<Number> {
    let (rows, _) = database.read(0, &[1, 2].into(), u64::MAX).unwrap();
    rows.iter().map(|row| row.number).collect()
}

#[test]
fn rows_are_there_after_a_restart_and_lanes_know_how_many() {
    let disk = Disk::new();
    let rows = [row(1, 1, 1), row(2, 2, 1), row(3, 1, 2)];
    let (mut database, lanes, last) = disk.open();
    assert_eq!((lanes.len(), last), (0, 0));
    database.write(&rows, &[], &[], Offset::default()).unwrap();
    database.write(&[], &[placed(&rows[0])], &[], Offset::default()).unwrap();
    // What is not there is not counted.
    database.write(&[], &[placed(&rows[0])], &[], Offset::default()).unwrap();
    drop(database);
    let (mut database, mut lanes, last) = disk.open();
    lanes.sort_by_key(|lane| lane.id);
    let found: Vec<_> = lanes.iter().map(|lane| (lane.id, lane.key.clone(), lane.rows, lane.bytes)).collect();
    let bytes = placed(&rows[1]).bytes;
    assert_eq!(found, [(1, key("a"), 1, bytes), (2, key("b"), 1, bytes)]);
    assert_eq!((last, all(&mut database)), (3, vec![2, 3]));
    assert_eq!(database.placed(&[1, 3, 9]).unwrap(), [placed(&rows[2])]);
}

#[test]
fn a_read_ends_where_it_has_enough_and_passes_other_lanes() {
    let disk = Disk::new();
    let (mut database, ..) = disk.open();
    let rows: Vec<Row> = (1..=10).map(|number| row(number, 1 + number as LaneId % 2, number)).collect();
    database.write(&rows, &[], &[], Offset::default()).unwrap();
    let (found, upto) = database.read(2, &[1].into(), 2 * rows[0].payload.len() as u64).unwrap();
    assert_eq!((found.iter().map(|row| row.number).collect::<Vec<_>>(), upto), (vec![2, 4], Some(4)));
    let (found, upto) = database.read(5, &[1].into(), u64::MAX).unwrap();
    assert_eq!((found.iter().map(|row| row.number).collect::<Vec<_>>(), upto), (vec![6, 8, 10], None));
}

#[test]
fn what_was_stored_before_the_clock_was_set_gets_its_time_even_under_another_boot() {
    let disk = Disk::new();
    let (mut database, ..) = disk.open();
    database.write(&[row(1, 1, 1)], &[], &[], Offset::default()).unwrap();
    // The clock is set, and says so with a later commit of the same boot.
    database.write(&[row(2, 1, 2)], &[], &[], Offset { utc: Some(1_000), right: true }).unwrap();
    let offsets = |database: &mut Database| {
        let (rows, _) = database.read(0, &[1].into(), u64::MAX).unwrap();
        rows.iter().map(|row| row.boot).collect::<Vec<_>>()
    };
    assert_eq!(offsets(&mut database), [Boot::This, Boot::This], "under this boot the clock itself says it");
    database.connection.execute("UPDATE boot SET kernel = 'an earlier one'", []).unwrap();
    drop(database);
    let (mut database, ..) = disk.open();
    assert_eq!(offsets(&mut database), [Boot::Known(1_000), Boot::Known(1_000)]);
    database.write(&[row(3, 1, 3)], &[], &[], Offset::default()).unwrap();
    assert_eq!(offsets(&mut database), [Boot::Known(1_000), Boot::Known(1_000), Boot::This]);
}

#[test]
fn each_policy_drops_what_it_says() {
    let disk = Disk::new();
    let (mut database, ..) = disk.open();
    let mut rows: Vec<Row> = (1..=40).map(|number| row(number, 1, number)).collect();
    rows.push(row(41, 2, 1));
    database.write(&rows, &[], &[], Offset::default()).unwrap();
    let size = placed(&rows[0]).bytes;
    let drop = |policy, rows: u64| {
        let (victims, every) = database.victims(&[1].into(), policy, rows * size, |number| number != 2).unwrap();
        (victims.iter().map(|victim| victim.placed.number).collect::<Vec<_>>(), every)
    };
    assert_eq!(drop(DropPolicy::DropOldest, 3), (vec![1, 3, 4], 1), "2 is in hand");
    assert_eq!(drop(DropPolicy::DropNewest, 3), (vec![40, 39, 38], 1));
    let kept = |every: u64| (1..=40).filter(|n| *n != 2 && n % every != 0).collect::<Vec<_>>();
    assert_eq!(drop(DropPolicy::Thin(4), 10), (kept(4)[..10].to_vec(), 4));
    assert_eq!(drop(DropPolicy::Thin(4), 33), (kept(16)[..33].to_vec(), 16), "thinned out by the square");
    assert_eq!(drop(DropPolicy::Thin(4), 39), (kept(64), 64), "and by the next power");
}

#[test]
fn what_has_waited_too_long_is_found_and_what_nobody_knows_the_age_of_is_not() {
    let second = 1_000_000_000;
    let disk = Disk::new();
    let (mut database, ..) = disk.open();
    // Stored 1, 2, 3 seconds after boot.
    database.write(&[row(1, 1, 1), row(2, 1, 2), row(3, 1, 3)], &[], &[], Offset::default()).unwrap();
    let old = |database: &mut Database, utc: Option<i64>, right| {
        let offset = Offset { utc: utc.map(|utc| utc - 12 * second - 1), right };
        let victims = database.old(10 * second as u64, 12 * second as u64 + 1, offset, |_| true).unwrap();
        victims.iter().map(|victim| victim.placed.number).collect::<Vec<_>>()
    };
    assert_eq!(old(&mut database, None, false), [1, 2], "under this boot no clock is needed");
    let another_boot = |mut database: Database, before: Offset| {
        database.write(&[], &[], &[], before).unwrap();
        database.connection.execute("UPDATE boot SET kernel = 'an earlier one'", []).unwrap();
        drop(database);
        disk.open().0
    };
    // A clock that was restored at the start may have been weeks behind.
    let mut database = another_boot(database, Offset { utc: Some(1000 * second), right: false });
    assert_eq!(old(&mut database, Some(9000 * second), true), [0; 0]);
    database.connection.execute("UPDATE boot SET offset = ?1, right = 1", [1000 * second]).unwrap();
    drop(database);
    let mut database = disk.open().0;
    assert_eq!(old(&mut database, Some(1012 * second + 1), true), [1, 2]);
    assert_eq!(old(&mut database, Some(1012 * second + 1), false), [0; 0], "nor is this one known to be right");
    assert_eq!(old(&mut database, Some(1012 * second + 1), true), [1, 2], "and it may be later");
}

#[test]
fn every_page_may_be_damaged_and_what_is_lost_is_what_was_in_it() {
    let count = 300;
    let pages = Disk::with_rows(count).pages();
    assert!(pages > 20, "{pages} pages");
    for page in 0..pages {
        let disk = Disk::with_rows(count);
        disk.damage(page);
        let ids = EventIds::new("g".into());
        let (notices, _noticed) = tokio::sync::mpsc::unbounded_channel();
        let opened = keeper::open(&disk.path(), 0, &ids, &notices, |_| None);
        let Opened { mut database, .. } = opened.unwrap_or_else(|why| panic!("page {page}: {why}"));
        // Damage that shows only when rows are read shows then.
        let read = database.read(0, &[1].into(), u64::MAX);
        let rows = match read {
            Ok((rows, None)) => rows,
            Ok((_, Some(_))) => panic!("page {page}: more than all"),
            Err(DatabaseError::Damaged(_)) => {
                drop(database);
                let aside = Database::set_aside(&disk.path(), "test").unwrap();
                let (mut new, ..) = disk.open();
                let salvaged = new.salvage(&aside, |_| true, None).unwrap();
                let (rows, _) = new.read(0, &[1].into(), u64::MAX).unwrap();
                assert_eq!(salvaged.rows, rows.len() as u64);
                let there: BTreeSet<u64> = rows.iter().map(|row| row.number).collect();
                let told: BTreeSet<u64> = salvaged.lost.iter().flat_map(|range| range.first..=range.last).collect();
                let lost: BTreeSet<u64> = (1..=count).filter(|number| !there.contains(number)).collect();
                if rows.is_empty() {
                    // Without the schema nothing is known.
                    assert!(page == 0 || lost.is_subset(&told), "page {page}");
                } else {
                    assert_eq!(told, lost, "page {page}");
                }
                rows
            }
            Err(error) => panic!("page {page}: {error}"),
        };
        let lost = count - rows.iter().filter(|row| item::label(&row.payload).unwrap().serial.is_some()).count() as u64;
        // The first page is the schema, and one is the root of all rows: without it nothing is found.
        assert!(lost <= 25 || lost == count && page < 8, "page {page}: {lost} lost");
    }
}

#[test]
fn a_place_that_cannot_be_read_is_damage_and_a_disk_that_is_full_is_not() {
    let error = |code| DatabaseError::from(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None));
    for code in UNREADABLE.into_iter().chain([ffi::SQLITE_CORRUPT, ffi::SQLITE_NOTADB, ffi::SQLITE_ERROR]) {
        assert!(matches!(error(code), DatabaseError::Damaged(_)), "{code}");
    }
    for code in [ffi::SQLITE_FULL, ffi::SQLITE_READONLY, ffi::SQLITE_IOERR_WRITE, ffi::SQLITE_IOERR_FSYNC] {
        assert!(matches!(error(code), DatabaseError::Refused(_)), "{code}");
    }
}

#[test]
fn a_newer_database_is_not_touched() {
    let disk = Disk::with_rows(3);
    let (database, ..) = disk.open();
    database.connection.pragma_update(None, "user_version", 99).unwrap();
    drop(database);
    assert!(matches!(Database::open(&disk.path()), Err(DatabaseError::Newer(99))));
}

#[test]
fn an_item_that_the_disk_has_changed_is_no_result_any_more() {
    let disk = Disk::with_rows(40);
    let mut bytes = fs::read(disk.path()).unwrap();
    // Its stream's name: SQLite has no checksum, and the item would still be a result.
    let (_, held) = (disk.open(), &row(20, 1, 20).payload);
    let at = bytes.windows(held.len()).position(|window| window == &held[..]).expect("it is in a page");
    let changed = at + held.len() - 3;
    bytes[changed] ^= 1;
    fs::write(disk.path(), &bytes).unwrap();
    let (mut database, ..) = disk.open();
    let read = database.read(0, &[1].into(), u64::MAX);
    assert!(matches!(&read, Err(DatabaseError::Damaged(why)) if why.contains("item 20")), "{read:?}");
    drop(database);
    let aside = Database::set_aside(&disk.path(), "test").unwrap();
    let (mut new, ..) = disk.open();
    let salvaged = new.salvage(&aside, |_| true, None).unwrap();
    let lost: Vec<_> = salvaged.lost.iter().map(|range| (range.first, range.last)).collect();
    assert_eq!((salvaged.rows, lost), (39, vec![(20, 20)]));
}

/// What a database went through, in one of three lanes: two streams and the events.
#[derive(Debug, Clone)]
enum Step {
    /// So many items were committed.
    Commit(usize, usize),
    /// The process began anew, and with it every run.
    Restart,
    /// Of the items of a lane the oldest that are there were delivered, or each so many.
    Deliver { lane: usize, count: usize, every: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..3_usize, 1..60_usize).prop_map(|(lane, count)| Step::Commit(lane, count)),
        1 => Just(Step::Restart),
        2 => (0..3_usize, 1..40_usize, 1..4_usize)
            .prop_map(|(lane, count, every)| Step::Deliver { lane, count, every }),
    ];
    prop::collection::vec(step, 1..25)
}

/// The same, and what is in it then.
#[derive(Default)]
struct History {
    rows: BTreeMap<Number, (Placed, LaneKey, Serial)>,
    numbers: Number,
    run: u64,
    seqs: [u64; 3],
}

impl History {
    fn take(&mut self, step: &Step, database: &mut Database) {
        match *step {
            Step::Restart => (self.run, self.seqs) = (self.run + 1, [0; 3]),
            Step::Commit(lane, count) => {
                let rows: Vec<Row> = (0..count).map(|_| self.row(lane)).collect();
                database.write(&rows, &[], &[], Offset::default()).unwrap();
                self.rows.extend(rows.iter().map(|row| {
                    let label = item::label(&row.payload).unwrap();
                    (row.number, (placed(row), label.lane, label.serial.unwrap()))
                }));
            }
            Step::Deliver { lane, count, every } => {
                let of_lane = self.rows.values().filter(|(row, ..)| row.lane as usize == lane + 1);
                let gone: Vec<Placed> = of_lane.step_by(every).take(count).map(|(row, ..)| *row).collect();
                database.write(&[], &gone, &[], Offset::default()).unwrap();
                gone.iter().for_each(|row| _ = self.rows.remove(&row.number));
            }
        }
    }

    fn row(&mut self, lane: usize) -> Row {
        self.numbers += 1;
        self.seqs[lane] += 1;
        let serial = Serial { run: self.run + 1, seq: self.seqs[lane] };
        let payload = if lane == 2 {
            format!(r#"{{"v":1,"type":"event","id":"g/event/{serial}","text":"{}"}}"#, "x".repeat(150))
                .into_bytes()
                .into()
        } else {
            let verdict = Verdict::Regression { values: vec![0.5; 40] };
            let record = item::fixture::record("p", ["a", "b"][lane], serial.seq, verdict);
            item::of_result(&ResultRecord { serial: Some(serial), ..record })
        };
        Row { number: self.numbers, lane: lane as LaneId + 1, at: self.numbers, payload }
    }

    fn stored(&self) -> BTreeSet<(LaneKey, u64, u64)> {
        self.rows.values().map(|(_, key, serial)| (key.clone(), serial.run, serial.seq)).collect()
    }
}

/// All that a database says: items, and what is told of damage.
fn said(database: &mut Database, lanes: &[LaneRows]) -> [BTreeSet<(LaneKey, u64, u64)>; 2] {
    let (rows, _) = database.read(0, &lanes.iter().map(|lane| lane.id).collect(), u64::MAX).unwrap();
    let [mut items, mut told] = [BTreeSet::new(), BTreeSet::new()];
    for row in rows {
        match Held::of(&row.payload).unwrap() {
            Held::Serial(key, Serial { run, seq }) => _ = items.insert((key, run, seq)),
            Held::Range(range, reason) => {
                assert_eq!(reason, Reason::Damaged);
                told.extend((range.first..=range.last).map(|seq| (range.key.clone(), range.run, seq)));
            }
        }
    }
    [items, told]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Whatever was stored and delivered in however many streams and runs, and however many pages are damaged at once:
    /// what cannot be read is told of, all of it and nothing else, as long as the run's record can be read, or the
    /// database was open.
    #[test]
    fn what_cannot_be_read_is_told_of_and_nothing_else(
        steps in steps(),
        pages in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
    ) {
        let disk = Disk::new();
        let (mut database, ..) = disk.open();
        let mut history = History::default();
        steps.iter().for_each(|step| history.take(step, &mut database));
        let known = database.into_contents();
        // The first page says what the others are.
        for page in pages.iter().filter(|_| disk.pages() > 1) {
            disk.damage(1 + page.index(disk.pages() as usize - 1) as u64);
        }
        // What is known is what is there; on record it is a little more where that is in many pieces.
        let stored = history.stored();
        let held: BTreeSet<_> = known.iter()
            .flat_map(|(key, run, numbers)| numbers.iter().cloned().flatten().map(move |seq| (key.clone(), run, seq)))
            .collect();
        let in_pieces = steps.iter().any(|step| matches!(step, Step::Deliver { every: 2.., .. }));
        prop_assert_eq!(&held, &stored);
        let copy = Disk::new();
        fs::copy(disk.path(), copy.path()).unwrap();
        let readable: BTreeSet<(LaneKey, u64)> = {
            let old = Connection::open(copy.path()).unwrap();
            let run = |id: i64| {
                let all = "SELECT pipeline, stream, run, last, dropped, held FROM run WHERE id = ?1";
                old.query_row(all, [id], |row| Ok((lane_key(row.get(0)?, row.get(1)?), row.get::<_, i64>(2)?)))
            };
            (1..100).filter_map(|id| run(id).ok()).map(|(key, run)| (key, run.cast_unsigned())).collect()
        };

        // It was open when it was found to be damaged.
        let (mut new, ..) = copy.open_another();
        let salvaged = new.salvage(&copy.path(), |_| true, Some(known)).unwrap();
        let lanes = new.lanes().unwrap();
        let [items, _] = said(&mut new, &lanes);
        let told: BTreeSet<_> = salvaged.lost.iter()
            .flat_map(|range| (range.first..=range.last).map(|seq| (range.key.clone(), range.run, seq)))
            .collect();
        prop_assert_eq!(&told, &held.difference(&items).cloned().collect());

        // It is opened; or it can be, and what it is asked for first is damaged.
        let ids = EventIds::new("g".into());
        let (notices, _noticed) = tokio::sync::mpsc::unbounded_channel();
        let open = || keeper::open(&disk.path(), 0, &ids, &notices, |_| None).unwrap();
        let Opened { mut database, mut lanes, .. } = open();
        let all = lanes.iter().map(|lane| lane.id).collect();
        if database.read(0, &all, u64::MAX).is_err() {
            drop(database);
            let damaged = DatabaseError::Damaged("it was read".into());
            let renewed = keeper::renew(&disk.path(), &damaged, keeper::Known::default(), 0, &ids, |_| true, |_| None);
            (Opened { database, lanes, .. }, _) = renewed.unwrap();
        }
        let [items, told] = said(&mut database, &lanes);
        prop_assert!(items.is_subset(&stored));
        let on_record = |(key, run, _): &&(LaneKey, u64, u64)| readable.contains(&(key.clone(), *run));
        let told: BTreeSet<_> = told.iter().filter(on_record).cloned().collect();
        let missing: BTreeSet<_> = stored.difference(&items).filter(on_record).cloned().collect();
        // Damage where nothing is needs no telling.
        prop_assert!(told.is_superset(&missing), "{told:?}, and missing are {missing:?}");
        prop_assert!(in_pieces || told.is_subset(&missing), "{told:?}, and missing are {missing:?}");
    }
}

#[test]
fn what_was_thinned_out_and_delivered_is_on_record_no_more() {
    let disk = Disk::new();
    let (mut database, ..) = disk.open();
    let rows: Vec<Row> = (1..=2000).map(|number| row(number, 1, number)).collect();
    database.write(&rows, &[], &[], Offset::default()).unwrap();
    let (kept, dropped): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| row.number % 10 == 0);
    let placed = |rows: &[&Row]| rows.iter().map(|row| placed(row)).collect::<Vec<_>>();
    database.write(&[], &placed(&dropped), &[], Offset::default()).unwrap();
    drop(database);
    // Read again it is what is on record: in fewer pieces than it was.
    let (mut database, ..) = disk.open();
    for some in kept.chunks(20) {
        database.write(&[], &placed(some), &[], Offset::default()).unwrap();
    }
    assert_eq!(database.contents, Contents::default());
    drop(database);
    assert_eq!(disk.open().0.contents, Contents::default());
}

#[test]
fn a_lane_that_was_empty_and_takes_another_stream_is_that_stream() {
    let disk = Disk::new();
    let (mut database, ..) = disk.open();
    let first = row(1, 1, 1);
    database.write(std::slice::from_ref(&first), &[], &[], Offset::default()).unwrap();
    database.write(&[], &[placed(&first)], &[], Offset::default()).unwrap();
    // Its row is there still, as after a start on a full disk.
    database.write(&[Row { lane: 1, ..row(2, 2, 1) }], &[], &[], Offset::default()).unwrap();
    let lanes = database.lanes().unwrap();
    assert_eq!(lanes.iter().map(|lane| (lane.id, lane.key.clone(), lane.rows)).collect::<Vec<_>>(), [(1, key("b"), 1)]);
}
