//! What is on the disk, and what is left of it when it is damaged.

use std::io::{Seek as _, SeekFrom, Write as _};
use std::sync::Arc;

use limpet_wire::result::{Captured, Clock, ResultRecord, Verdict};

use super::*;
use crate::outbox::{EventIds, item};

fn key(stream: &str) -> LaneKey {
    LaneKey::Results("p".into(), stream.into())
}

fn payload(stream: &str, seq: u64) -> Arc<[u8]> {
    let record = item::fixture::record("p", stream, seq, Verdict::Regression { values: vec![0.5; 40] });
    item::of_result(&ResultRecord { captured: Captured::Boottime(5_000), clock: Clock::Unsynced, ..record })
}

/// Lane 1 is stream `a`, lane 2 is `b`.
fn lane(id: LaneId) -> Option<LaneKey> {
    Some(key(if id == 1 { "a" } else { "b" }))
}

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

    /// One with `count` rows of lane 1, numbered from 1, all of them in the main file.
    fn with_rows(count: u64) -> Self {
        let disk = Self::new();
        let rows: Vec<Row> = (1..=count).map(|number| row(number, 1, number)).collect();
        disk.open().0.write(&rows, &[], &[], lane, Offset(None)).unwrap();
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
    database.write(&rows, &[], &[], lane, Offset(None)).unwrap();
    database.write(&[], &[placed(&rows[0])], &[], lane, Offset(None)).unwrap();
    // What is not there is not counted.
    database.write(&[], &[placed(&rows[0])], &[], lane, Offset(None)).unwrap();
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
    database.write(&rows, &[], &[], lane, Offset(None)).unwrap();
    let (found, upto) = database.read(2, &[1].into(), 2 * rows[0].payload.len() as u64).unwrap();
    assert_eq!((found.iter().map(|row| row.number).collect::<Vec<_>>(), upto), (vec![2, 4], Some(4)));
    let (found, upto) = database.read(5, &[1].into(), u64::MAX).unwrap();
    assert_eq!((found.iter().map(|row| row.number).collect::<Vec<_>>(), upto), (vec![6, 8, 10], None));
}

#[test]
fn what_was_stored_before_the_clock_was_set_gets_its_time_even_under_another_boot() {
    let disk = Disk::new();
    let (mut database, ..) = disk.open();
    database.write(&[row(1, 1, 1)], &[], &[], lane, Offset(None)).unwrap();
    // The clock is set, and says so with a later commit of the same boot.
    database.write(&[row(2, 1, 2)], &[], &[], lane, Offset(Some(1_000))).unwrap();
    let offsets = |database: &mut Database| {
        let (rows, _) = database.read(0, &[1].into(), u64::MAX).unwrap();
        rows.iter().map(|row| row.boot).collect::<Vec<_>>()
    };
    assert_eq!(offsets(&mut database), [Boot::This, Boot::This], "under this boot the clock itself says it");
    database.connection.execute("UPDATE boot SET kernel = 'an earlier one'", []).unwrap();
    drop(database);
    let (mut database, ..) = disk.open();
    assert_eq!(offsets(&mut database), [Boot::Known(1_000), Boot::Known(1_000)]);
    database.write(&[row(3, 1, 3)], &[], &[], lane, Offset(None)).unwrap();
    assert_eq!(offsets(&mut database), [Boot::Known(1_000), Boot::Known(1_000), Boot::This]);
}

#[test]
fn each_policy_drops_what_it_says() {
    let disk = Disk::new();
    let (mut database, ..) = disk.open();
    let mut rows: Vec<Row> = (1..=40).map(|number| row(number, 1, number)).collect();
    rows.push(row(41, 2, 1));
    database.write(&rows, &[], &[], lane, Offset(None)).unwrap();
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
    let disk = Disk::new();
    let (mut database, ..) = disk.open();
    // Stored 1, 2, 3 seconds after boot.
    database.write(&[row(1, 1, 1), row(2, 1, 2), row(3, 1, 3)], &[], &[], lane, Offset(None)).unwrap();
    let second = 1_000_000_000;
    let old = |database: &Database, offset| {
        let victims =
            database.old(10 * second as u64, 1000 * second + 12 * second + 1, Offset(offset), |_| true).unwrap();
        victims.iter().map(|victim| victim.placed.number).collect::<Vec<_>>()
    };
    assert_eq!(old(&database, Some(1000 * second)), [1, 2]);
    assert_eq!(old(&database, None), Vec::<Number>::new());
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
        let opened = crate::outbox::keeper::open(&disk.path(), 0, &ids, &notices, |_| None);
        let crate::outbox::keeper::Opened { mut database, .. } =
            opened.unwrap_or_else(|why| panic!("page {page}: {why}"));
        // Damage that shows only when rows are read shows then.
        let read = database.read(0, &[1].into(), u64::MAX);
        let rows = match read {
            Ok((rows, None)) => rows,
            Ok((_, Some(_))) => panic!("page {page}: more than all"),
            Err(DatabaseError::Damaged(_)) => {
                drop(database);
                let aside = Database::set_aside(&disk.path(), "test").unwrap();
                let (mut new, ..) = disk.open();
                let salvaged = new.salvage(&aside, |_| true).unwrap();
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
    let salvaged = new.salvage(&aside, |_| true).unwrap();
    let lost: Vec<_> = salvaged.lost.iter().map(|range| (range.first, range.last)).collect();
    assert_eq!((salvaged.rows, lost), (39, vec![(20, 20)]));
}
