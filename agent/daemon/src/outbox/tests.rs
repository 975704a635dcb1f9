//! The ring, the database and the book together: what outlives a kill, the power, and a disk that fails.

use std::fs;

use limpet_wire::binary::{self, Item};
use limpet_wire::result::Verdict;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::book::{Batch, Boot};
use super::*;
use crate::config::DropPolicy;

mod power;

const ROOM: Room = Room { in_flight: 0, places: 8, bytes: 100_000, largest: 1 << 20, hurry: false };
/// Longer than any test waits.
const LIMIT: Duration = Duration::from_secs(20);

fn record(seq: u64) -> ResultRecord {
    item::fixture::record("p", "s", seq, Verdict::Regression { values: vec![0.5; 20] })
}

/// A gateway's folders.
struct Gateway {
    folder: tempfile::TempDir,
    rules: Rules,
}

/// An outbox that runs. What it keeps is as after a kill when it is dropped.
struct Running {
    outbox: Arc<Outbox>,
    notices: UnboundedReceiver<Notice>,
}

impl Gateway {
    /// Nothing is committed unless it is asked for.
    fn new() -> Self {
        let rules = Rules { ring: 1 << 20, ..Rules::for_test() };
        Self { folder: tempfile::tempdir().unwrap(), rules }
    }

    fn start(&self) -> Running {
        let (sender, notices) = unbounded_channel();
        let ids = Arc::new(EventIds::new("g".into()));
        let (database, ring) = (self.database(), self.folder.path().join(RING));
        let outbox = Outbox::start(self.rules.clone(), database, &ring, ids, Arc::default(), sender).unwrap();
        Running { outbox, notices }
    }

    fn database(&self) -> PathBuf {
        self.folder.path().join("state").join(DATABASE)
    }

    fn with_disk(self) -> Self {
        fs::create_dir(self.folder.path().join("state")).unwrap();
        self
    }

    fn cut_the_power(&self) {
        fs::remove_dir_all(self.folder.path().join(RING)).unwrap();
    }

    /// What the ring holds is of another boot.
    fn reboot_with_its_ring(&self) {
        let this = fs::read("/proc/sys/kernel/random/boot_id").unwrap().trim_ascii().to_vec();
        let other = b"11111111-2222-3333-4444-555555555555";
        for segment in fs::read_dir(self.folder.path().join(RING)).unwrap() {
            let path = segment.unwrap().path();
            let mut bytes = fs::read(&path).unwrap();
            let at = bytes.windows(this.len()).position(|window| window == this).unwrap();
            bytes[at..at + other.len()].copy_from_slice(other);
            fs::write(&path, bytes).unwrap();
        }
    }

    /// The disk cannot be reached, or can again.
    fn take_the_disk(&self, away: bool) {
        let [there, gone] = ["state", "elsewhere"].map(|name| self.folder.path().join(name));
        let (from, to) = if away { (there, gone) } else { (gone, there) };
        fs::rename(from, to).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.outbox.close(Instant::now() + LIMIT);
    }
}

impl Running {
    fn offer(&self, numbers: std::ops::RangeInclusive<u64>) {
        numbers.for_each(|seq| self.outbox.offer_result(&record(seq)));
    }

    /// Takes the next message, when there is one.
    fn take(&self) -> Batch {
        let end = Instant::now() + LIMIT;
        loop {
            if let Take::Batch(batch) = self.outbox.take(Instant::now(), ROOM) {
                return batch;
            }
            assert!(Instant::now() < end, "nothing comes");
            std::thread::yield_now();
        }
    }

    /// Delivers everything: the numbers of results, and of those in range records.
    fn deliver(&self) -> (Vec<u64>, Vec<u64>) {
        let (mut results, mut dropped) = (Vec::new(), Vec::new());
        while self.outbox.waiting() > 0 {
            let batch = self.take();
            for item in &batch.items {
                match binary::read(&item.payload).unwrap() {
                    Item::Result(record) => results.push(record.serial.unwrap().seq),
                    Item::Dropped(range) => dropped.extend(range.first..=range.last),
                }
            }
            self.outbox.settle(&batch.custody, true);
        }
        (results, dropped)
    }

    fn commit_all(&self) -> bool {
        self.outbox.commit_all(Instant::now() + LIMIT)
    }
}

#[test]
fn what_was_stored_outlives_a_kill_and_what_was_acknowledged_does_not_come_again() {
    let gateway = Gateway::new().with_disk();
    let running = gateway.start();
    running.offer(1..=3);
    let first = running.take();
    assert_eq!(first.items.len(), 1);
    running.outbox.settle(&first.custody, true);
    let second = running.take();
    drop(running);
    _ = second.custody;
    let running = gateway.start();
    assert_eq!(running.deliver(), (vec![2, 3], vec![]));
}

#[test]
fn what_a_ring_on_a_disk_holds_of_another_boot_keeps_the_time_of_that_boot() {
    let gateway = Gateway::new().with_disk();
    let running = gateway.start();
    running.offer(1..=2);
    assert!(running.commit_all());
    running.offer(3..=4);
    drop(running);
    gateway.reboot_with_its_ring();
    let running = gateway.start();
    assert!(running.commit_all());
    let mut boots = Vec::new();
    while running.outbox.waiting() > 0 {
        let batch = running.take();
        boots.extend(batch.items.iter().map(|item| item.boot));
        running.outbox.settle(&batch.custody, true);
    }
    assert_eq!(boots, [Boot::This, Boot::This, Boot::Unknown, Boot::Unknown]);
}

#[test]
fn what_was_committed_outlives_the_power() {
    let gateway = Gateway::new().with_disk();
    let running = gateway.start();
    running.offer(1..=100);
    assert!(running.commit_all());
    assert_eq!(running.outbox.figures().depth.live, 0);
    running.offer(101..=102);
    drop(running);
    gateway.cut_the_power();
    let running = gateway.start();
    assert!(running.deliver().0.into_iter().eq(1..=100));
    assert!(running.commit_all());
    drop(running);
    // And what was delivered is gone from the disk, whatever the ring says.
    gateway.cut_the_power();
    assert_eq!(gateway.start().deliver().0, Vec::<u64>::new());
}

#[test]
fn what_was_acknowledged_and_not_deleted_yet_does_not_come_again_after_a_kill() {
    let gateway = Gateway::new().with_disk();
    let running = gateway.start();
    running.offer(1..=10);
    assert!(running.commit_all());
    let batch = running.take();
    assert_eq!(batch.items.len(), 10);
    running.outbox.settle(&batch.custody, true);
    assert_eq!(running.outbox.figures().depth.stored, 10, "it is deleted when the interval is over");
    running.offer(11..=11);
    drop(running);
    assert_eq!(gateway.start().deliver().0, [11]);
}

#[test]
fn where_each_is_durable_nothing_is_sent_before_it_is_on_the_disk() {
    let mut gateway = Gateway::new().with_disk();
    gateway.rules.each = true;
    let running = gateway.start();
    for seq in 1..=20 {
        running.offer(seq..=seq);
        let batch = running.take();
        assert!(batch.custody.backlog);
        let copy = tempfile::tempdir().unwrap();
        // What has been written at this moment.
        for end in ["", "-wal"] {
            let from = format!("{}{end}", gateway.database().display());
            fs::copy(from, copy.path().join(format!("{DATABASE}{end}"))).unwrap();
        }
        let (mut found, lanes, _) = database::Database::open(&copy.path().join(DATABASE)).unwrap();
        let lanes = lanes.iter().map(|lane| lane.id).collect();
        let numbers = found.read(0, &lanes, u64::MAX).unwrap().0.into_iter().map(|row| row.number).collect::<Vec<_>>();
        assert!(batch.custody.numbers.iter().all(|number| numbers.contains(number)), "{seq}: {numbers:?}");
        running.outbox.settle(&batch.custody, true);
    }
}

#[test]
fn without_a_disk_it_runs_and_says_so_and_drops_with_records_when_memory_is_full() {
    let mut gateway = Gateway::new();
    // A disk that is not there stops no link that works.
    gateway.rules.each = true;
    gateway.rules.ring = 256 << 10;
    let mut running = gateway.start();
    assert!(matches!(running.notices.try_recv(), Ok(Notice::Failing(why)) if why.contains("outbox.db")));
    running.offer(1..=10_000);
    let figures = running.outbox.figures();
    assert!(figures.dropped > 1000 && figures.depth.live < 5000, "{figures:?}");
    let (results, dropped) = running.deliver();
    let mut all: Vec<u64> = results.iter().chain(&dropped).copied().collect();
    all.sort_unstable();
    assert_eq!(all, (1..=10_000).collect::<Vec<_>>());
    assert!(results.contains(&10_000) && dropped.contains(&1), "the oldest went");
    let told: Vec<Notice> = std::iter::from_fn(|| running.notices.try_recv().ok()).collect();
    assert!(matches!(told.as_slice(), [Notice::RingFull]), "told once: {told:?}");
}

#[test]
fn a_disk_that_comes_back_takes_what_waits() {
    let gateway = Gateway::new();
    let mut running = gateway.start();
    running.offer(1..=10);
    assert!(!running.outbox.commit_all(Instant::now() + Duration::from_millis(50)));
    fs::create_dir(gateway.folder.path().join("state")).unwrap();
    assert!(running.commit_all());
    let told: Vec<Notice> = std::iter::from_fn(|| running.notices.try_recv().ok()).collect();
    assert!(matches!(told.as_slice(), [Notice::Failing(_), Notice::Works]), "{told:?}");
    drop(running);
    gateway.cut_the_power();
    assert_eq!(gateway.start().deliver().0, (1..=10).collect::<Vec<_>>());
}

#[test]
fn what_the_ring_says_to_a_database_waits_for_a_disk_that_is_not_there_at_the_start() {
    let gateway = Gateway::new().with_disk();
    let running = gateway.start();
    running.offer(1..=10);
    assert!(running.commit_all());
    let batch = running.take();
    running.outbox.settle(&batch.custody, true);
    running.offer(11..=12);
    drop(running);
    gateway.take_the_disk(true);
    let running = gateway.start();
    // Segments of the process before have nothing open any more, and are needed all the same.
    let batch = running.take();
    running.outbox.settle(&batch.custody, true);
    running.offer(13..=13);
    gateway.take_the_disk(false);
    assert!(running.commit_all());
    let (delivered, _) = running.deliver();
    assert!(delivered.iter().all(|seq| *seq > 10) && delivered.contains(&13), "{delivered:?}");
    assert!(running.commit_all());
    drop(running);
    gateway.cut_the_power();
    assert_eq!(gateway.start().deliver().0, [0; 0]);
}

#[test]
fn what_is_of_another_boot_waits_for_a_disk_that_is_not_there_at_the_start() {
    let gateway = Gateway::new().with_disk();
    let running = gateway.start();
    running.offer(1..=3);
    drop(running);
    gateway.reboot_with_its_ring();
    gateway.take_the_disk(true);
    let running = gateway.start();
    running.offer(4..=4);
    assert_eq!(running.outbox.figures().depth.live, 1, "who sent them now would put their time right by this boot");
    gateway.take_the_disk(false);
    assert!(running.commit_all());
    let boots = [(1, Boot::Unknown), (4, Boot::This)];
    let mut found = Vec::new();
    while running.outbox.waiting() > 0 {
        let batch = running.take();
        found.extend(batch.items.iter().map(|item| match binary::read(&item.payload).unwrap() {
            Item::Result(record) => (record.serial.unwrap().seq, item.boot),
            Item::Dropped(_) => panic!("nothing was dropped"),
        }));
        running.outbox.settle(&batch.custody, true);
    }
    found.sort_by_key(|(seq, _)| *seq);
    assert_eq!(found.len(), 4);
    assert!(boots.iter().all(|boot| found.contains(boot)), "{found:?}");
}

#[test]
fn a_database_that_is_damaged_is_set_aside_and_range_records_say_what_is_lost() {
    let gateway = Gateway::new().with_disk();
    let running = gateway.start();
    running.offer(1..=500);
    assert!(running.commit_all());
    drop(running);
    // The last close has copied the log into the main file; page 10 is one of results.
    let mut bytes = fs::read(gateway.database()).unwrap();
    bytes[10 * 4096..11 * 4096].fill(0xa5);
    fs::write(gateway.database(), bytes).unwrap();
    gateway.cut_the_power();
    let mut running = gateway.start();
    let (results, dropped) = running.deliver();
    let mut all: Vec<u64> = results.iter().chain(&dropped).copied().collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all, (1..=500).collect::<Vec<_>>());
    assert!((1..=40).contains(&dropped.len()), "{dropped:?}");
    let told: Vec<Notice> = std::iter::from_fn(|| running.notices.try_recv().ok()).collect();
    let [Notice::Damaged { aside, salvaged, lost: Some(lost), .. }] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((salvaged + lost, *lost), (500, dropped.len() as u64));
    assert!(aside.exists() && aside != &gateway.database());
}

#[test]
fn what_was_settled_does_not_come_again_though_the_database_is_found_damaged_at_the_start() {
    let gateway = Gateway::new().with_disk();
    let running = gateway.start();
    running.offer(1..=500);
    assert!(running.commit_all());
    let mut settled = Vec::new();
    while settled.len() < 200 {
        let batch = running.take();
        let numbers = batch.items.iter().map(|item| match binary::read(&item.payload).unwrap() {
            Item::Result(record) => record.serial.unwrap().seq,
            Item::Dropped(_) => panic!("nothing was dropped"),
        });
        settled.extend(numbers);
        running.outbox.settle(&batch.custody, true);
    }
    drop(running);
    let mut bytes = fs::read(gateway.database()).unwrap();
    // A page of what was settled, which is looked for first of all.
    bytes[10 * 4096..11 * 4096].fill(0xa5);
    fs::write(gateway.database(), bytes).unwrap();
    let running = gateway.start();
    let (results, dropped) = running.deliver();
    assert!(results.iter().all(|seq| !settled.contains(seq)), "{results:?}");
    let mut all: Vec<u64> = results.iter().chain(&dropped).chain(&settled).copied().collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all, (1..=500).collect::<Vec<_>>());
    assert!(running.commit_all(), "the ring says nothing more to a database");
}

#[test]
fn what_is_too_much_for_the_disk_is_dropped_with_records() {
    let mut gateway = Gateway::new().with_disk();
    gateway.rules.max_bytes = 100_000;
    for (policy, first, last) in [(DropPolicy::DropOldest, 1, 3000), (DropPolicy::DropNewest, 1, 3000)] {
        let pipeline = PipelineRules { packing: Packing::SINGLE, policy };
        gateway.rules.pipelines = [("p".into(), pipeline)].into();
        let running = gateway.start();
        for seq in first..=last {
            running.offer(seq..=seq);
            if seq % 100 == 0 {
                assert!(running.commit_all());
            }
        }
        let end = Instant::now() + LIMIT;
        while running.outbox.figures().depth.stored_bytes > 100_000 {
            assert!(Instant::now() < end, "{:?}", running.outbox.figures());
            std::thread::yield_now();
        }
        let (results, dropped) = running.deliver();
        let mut all: Vec<u64> = results.iter().chain(&dropped).copied().collect();
        all.sort_unstable();
        assert_eq!(all, (first..=last).collect::<Vec<_>>());
        let kept = if policy == DropPolicy::DropOldest { results.contains(&last) } else { results.contains(&first) };
        assert!(kept && dropped.len() > 2000, "{policy:?}: {} dropped", dropped.len());
    }
}
