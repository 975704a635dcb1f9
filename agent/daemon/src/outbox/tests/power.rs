//! `durability = "each"`, and the power that is cut at any write.
//!
//! A child process stores results one by one, delivers some, and says of each when it was stored and when it was settled.
//! What it does to its files is written down (`power.c`). Then the power is cut at every write: a disk is made up that holds
//! what was synced by then, and of the rest nothing, everything, or what chance kept of it, the last write torn. On every
//! such disk the outbox must find all that was stored and not settled.
//!
//! The disk is a strict one: a name of a file is there once its folder was synced, and only then.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::env;
use std::path::Path;
use std::process::Command;

use fastrand::Rng;

use super::super::keeper::{self, Opened};
use super::*;
use crate::config::OutboxOrder;

const CHILD: &str = "LIMPET_TEST_POWER";
/// What the child says, beside its state.
const SAID: &str = "said";
/// Results of each of two starts.
const RESULTS: u64 = 40;
/// A write is torn at these.
const SECTOR: usize = 512;

/// Stores, and delivers every third.
fn child(folder: &Path) {
    let said = fs::File::create(folder.join(SAID)).unwrap();
    let say = |what: &str, seq: u64| {
        use std::io::Write as _;
        (&said).write_all(format!("{what} {seq}\n").as_bytes()).unwrap();
    };
    for round in 0..2 {
        let rules = Rules { each: true, ring: 1 << 20, order: OutboxOrder::BacklogFirst, ..Rules::for_test() };
        let (sender, _notices) = unbounded_channel();
        let ids = Arc::new(EventIds::new("g".into()));
        let database = folder.join("state").join(DATABASE);
        let outbox = Outbox::start(rules, database, &folder.join(RING), ids, Arc::default(), sender).unwrap();
        let running = Running { outbox, notices: unbounded_channel().1 };
        for index in 1..=RESULTS {
            running.offer(round * RESULTS + index..=round * RESULTS + index);
            let end = Instant::now() + LIMIT;
            while running.outbox.figures().committed < index {
                assert!(Instant::now() < end, "result {index} is not committed");
                std::thread::yield_now();
            }
            say("stored", round * RESULTS + index);
            if index % 3 == 0 {
                let batch = running.take();
                for item in &batch.items {
                    let Item::Result(record) = binary::read(&item.payload).unwrap() else { panic!("a record") };
                    say("settled", record.serial.unwrap().seq);
                }
                running.outbox.settle(&batch.custody, true);
            }
            if index % 10 == 0 {
                // Deletes what was settled.
                assert!(running.commit_all());
            }
        }
    }
}

/// What was done to the files.
#[derive(Debug)]
struct Operation {
    what: u8,
    path: String,
    at: usize,
    data: Vec<u8>,
}

fn read_trace(path: &Path) -> Vec<Operation> {
    let bytes = fs::read(path).unwrap();
    let mut rest = &bytes[..];
    let mut operations = Vec::new();
    while !rest.is_empty() {
        let mut take = |count: usize| rest.split_off(..count).unwrap();
        let what = take(1)[0];
        let at = u64::from_le_bytes(take(8).try_into().unwrap()) as usize;
        let [path, data] = [(); 2].map(|()| u32::from_le_bytes(take(4).try_into().unwrap()) as usize);
        let path = String::from_utf8(take(path).to_vec()).unwrap();
        operations.push(Operation { what, path, at, data: take(data).to_vec() });
    }
    operations
}

/// A disk that forgets what was not synced.
#[derive(Debug, Default)]
struct Disk {
    /// Names as the process sees them, and as they are on the disk.
    seen: HashMap<String, usize>,
    kept: BTreeMap<String, usize>,
    /// Changes of names that their folder was not synced after: a name, and what it stands for from then on.
    names: Vec<(String, Option<usize>)>,
    files: Vec<Content>,
}

#[derive(Debug, Default, Clone)]
struct Content {
    synced: Vec<u8>,
    since: Vec<Change>,
}

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(at, data) => {
                let end = at + data.len();
                bytes.resize(bytes.len().max(end), 0);
                bytes[*at..end].copy_from_slice(data);
            }
            Self::Length(length) => bytes.resize(*length, 0),
        }
    }
}

impl Disk {
    fn apply(&mut self, operation: &Operation) {
        let Operation { what, path, at, data } = operation;
        let known = self.seen.get(path).copied();
        match what {
            b'c' => {
                self.files.push(Content::default());
                self.name(path, Some(self.files.len() - 1));
            }
            b'w' => self.files[known.unwrap()].since.push(Change::Write(*at, data.clone())),
            b't' => self.files[known.unwrap()].since.push(Change::Length(*at)),
            b'u' => self.name(path, None),
            b'r' => {
                self.name(std::str::from_utf8(data).unwrap(), known);
                self.name(path, None);
            }
            b's' => match known {
                Some(file) => {
                    let content = &mut self.files[file];
                    content.since.drain(..).for_each(|change| change.apply(&mut content.synced));
                }
                None => {
                    let folder = format!("{path}/");
                    let (of_it, rest) = std::mem::take(&mut self.names)
                        .into_iter()
                        .partition(|(name, _)| name.strip_prefix(&folder).is_some_and(|rest| !rest.contains('/')));
                    self.names = rest;
                    rename(&mut self.kept, of_it);
                }
            },
            other => panic!("operation {other}"),
        }
    }

    fn name(&mut self, path: &str, file: Option<usize>) {
        match file {
            Some(file) => _ = self.seen.insert(path.to_owned(), file),
            None => _ = self.seen.remove(path),
        }
        self.names.push((path.to_owned(), file));
    }

    /// The files after a power cut, as far as they lie below a folder; what was not synced is kept as chance has it.
    fn after_a_cut(&self, chance: &mut Chance) -> Vec<(String, Vec<u8>)> {
        let mut names = self.kept.clone();
        // Changes of names are kept in their order.
        rename(&mut names, self.names[..chance.up_to(self.names.len())].to_vec());
        let content = |file: usize, chance: &mut Chance| {
            let Content { synced, since } = &self.files[file];
            let mut bytes = synced.clone();
            for change in since {
                match (chance.keeps(), change) {
                    (Kept::No, _) => {}
                    (Kept::Torn, Change::Write(at, data)) => {
                        // Each sector for itself, where the disk has them.
                        let mut rest = (*at, &data[..]);
                        while !rest.1.is_empty() {
                            let (sector, more) = rest.1.split_at(rest.1.len().min(SECTOR - rest.0 % SECTOR));
                            if chance.up_to(1) == 1 {
                                Change::Write(rest.0, sector.to_vec()).apply(&mut bytes);
                            }
                            rest = (rest.0 + sector.len(), more);
                        }
                    }
                    _ => change.apply(&mut bytes),
                }
            }
            bytes
        };
        names.into_iter().map(|(name, file)| (name, content(file, chance))).collect()
    }
}

fn rename(names: &mut BTreeMap<String, usize>, changes: Vec<(String, Option<usize>)>) {
    for (name, file) in changes {
        match file {
            Some(file) => _ = names.insert(name, file),
            None => _ = names.remove(&name),
        }
    }
}

/// What becomes of a write that was not synced.
enum Kept {
    No,
    Torn,
    Yes,
}

/// What a power cut leaves of what was not synced.
enum Chance {
    Nothing,
    Everything,
    Some(Rng),
}

impl Chance {
    fn up_to(&mut self, most: usize) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Everything => most,
            Self::Some(random) => random.usize(0..=most),
        }
    }

    fn keeps(&mut self) -> Kept {
        match self {
            Self::Nothing => Kept::No,
            Self::Everything => Kept::Yes,
            Self::Some(random) => match random.u8(0..3) {
                0 => Kept::No,
                1 => Kept::Torn,
                _ => Kept::Yes,
            },
        }
    }
}

/// What an outbox finds in a state folder: the numbers of results.
fn found(state: &Path) -> Result<BTreeSet<u64>, String> {
    let (sender, mut notices) = unbounded_channel();
    let ids = EventIds::new("g".into());
    let Opened { mut database, lanes, .. } = keeper::open(&state.join(DATABASE), 0, &ids, &sender, |_| None)?;
    if let Ok(notice) = notices.try_recv() {
        return Err(format!("{notice:?}"));
    }
    let lanes = lanes.iter().map(|lane| lane.id).collect();
    let (rows, _) = database.read(0, &lanes, u64::MAX).map_err(|error| error.to_string())?;
    Ok(rows.iter().filter_map(|row| item::label(&row.payload).ok()?.serial).map(|serial| serial.seq).collect())
}

#[test]
fn nothing_that_was_stored_is_lost_by_a_power_cut_at_any_write() {
    if let Some(folder) = env::var_os(CHILD) {
        return child(Path::new(&folder));
    }
    let scratch = tempfile::tempdir().unwrap();
    let (library, trace, root) =
        (scratch.path().join("power.so"), scratch.path().join("trace"), scratch.path().join("gateway"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/outbox/tests/power.c");
    let compiled =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl").status();
    assert!(compiled.is_ok_and(|status| status.success()), "cc compiles power.c: run scripts/setup");
    fs::create_dir_all(root.join("state")).unwrap();
    let child = Command::new(env::current_exe().unwrap())
        .args(["outbox::tests::power::nothing_that_was_stored_is_lost_by_a_power_cut_at_any_write", "--exact"])
        .envs([("LD_PRELOAD", &library), ("POWER_TRACE", &trace)])
        .env("POWER_ROOT", format!("{}/", root.display()))
        .env(CHILD, &root)
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));

    let operations = read_trace(&trace);
    let (state, said) = (format!("{}/state/", root.display()), format!("{}/{SAID}", root.display()));
    let (mut disk, mut wanted, mut cuts) = (Disk::default(), BTreeSet::new(), 0);
    for (index, operation) in operations.iter().enumerate() {
        if operation.path == said {
            for line in std::str::from_utf8(&operation.data).unwrap().lines() {
                match line.split_once(' ').unwrap() {
                    ("stored", seq) => _ = wanted.insert(seq.parse::<u64>().unwrap()),
                    (_, seq) => _ = wanted.remove(&seq.parse().unwrap()),
                }
            }
        } else {
            disk.apply(operation);
        }
        // A write of the child about itself comes after what it says, so that the disk is looked at then, too.
        let random = Rng::with_seed(index as u64);
        for (kind, mut chance) in
            [("nothing", Chance::Nothing), ("everything", Chance::Everything), ("some", Chance::Some(random))]
        {
            let after = tempfile::tempdir_in(scratch.path()).unwrap();
            for (name, bytes) in disk.after_a_cut(&mut chance) {
                if let Some(name) = name.strip_prefix(&state) {
                    fs::write(after.path().join(name), bytes).unwrap();
                }
            }
            let there = found(after.path())
                .unwrap_or_else(|why| panic!("operation {index} ({operation:?}), {kind} kept: {why}"));
            let lost: Vec<_> = wanted.difference(&there).collect();
            assert!(lost.is_empty(), "operation {index}, {kind} of what was not synced kept: {lost:?} are lost");
            cuts += 1;
        }
    }
    let syncs = operations.iter().filter(|operation| operation.what == b's').count() as u64;
    assert!(syncs >= 2 * RESULTS && cuts > 1000, "{syncs} syncs, {cuts} cuts: what the child did was not seen");
}
