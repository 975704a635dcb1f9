//! The thread that does all that touches the disk: it asks the book what is to be done, does it, and tells the book.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use limpet_runtime::Moment;
use limpet_wire::dropped::Reason;
use limpet_wire::message::DroppedRange;
use tokio::sync::mpsc::UnboundedSender;

use super::book::{LaneId, LaneRows, Number, Placed, Row, Work};
use super::database::{Contents, Database, DatabaseError, Offset, Salvaged, Victim};
use super::item::{self, LaneKey};
use super::ranges::{self, Held, Range};
use super::ring::{FoundItem, Ring};
use super::runs::{Remembered, Runs};
use super::{EventIds, Notice, Outbox};
use crate::marks;

/// Where numbers start if nobody knows which ones the database holds: above them all.
pub const UNKNOWN: Number = 1 << 48;
/// A database that is damaged again within this time is left alone for a while.
const BETWEEN_RENEWALS: Duration = Duration::from_secs(10);
/// Numbers that are left to the range records of a renewal, while workers go on storing results: more than there can be lanes
/// and runs in a database.
const RECORDS: u64 = 1 << 24;
/// A new database that is whole, until the damaged one is set aside and it has its place.
const SALVAGED: &str = "outbox-salvaged.db";
/// How often the disk is asked again that said no when the database was to be opened.
const AGAIN: Duration = Duration::from_millis(if cfg!(test) { 200 } else { 5000 });

/// The keeper of an outbox's database.
pub struct Keeper {
    /// None while it cannot be opened.
    database: Option<Database>,
    path: PathBuf,
    outbox: Arc<Outbox>,
    again: Instant,
    /// When it was damaged last, and made anew.
    renewed: Option<Instant>,
    /// Whether it was told that nothing can be written.
    failing: bool,
}

/// What failed.
enum Attempt {
    /// To commit, and to delete these.
    Write(Vec<Placed>),
    /// To read.
    Read,
    /// To make room.
    Drop,
}

/// A database that was opened.
pub struct Opened {
    /// It.
    pub database: Database,
    /// What each lane holds.
    pub lanes: Vec<LaneRows>,
    /// The highest number.
    pub last: Number,
    /// The runs that it remembers.
    pub runs: Vec<Remembered>,
}

/// The numbers of a database's lanes.
struct Lanes(BTreeMap<LaneKey, LaneId>);

impl Lanes {
    fn of(stored: &[LaneRows]) -> Self {
        Self(stored.iter().map(|lane| (lane.key.clone(), lane.id)).collect())
    }

    /// The number of a lane; of one that the database has not, the one that is `known`, or else the next.
    fn number(&mut self, key: &LaneKey, known: impl Fn(&LaneKey) -> Option<LaneId>) -> LaneId {
        let next = self.0.values().max().map_or(1, |id| id + 1);
        *self.0.entry(key.clone()).or_insert_with(|| known(key).unwrap_or(next))
    }
}

impl Opened {
    /// Takes over what the ring holds of other boots, whose times only the database can put right. There is such where the
    /// ring is not on tmpfs.
    ///
    /// # Errors
    /// What the system says.
    pub fn take_over(&mut self, foreign: &[FoundItem]) -> Result<(), String> {
        let mut lanes = Lanes::of(&self.lanes);
        let mut of_boot: BTreeMap<&str, Vec<Row>> = BTreeMap::new();
        for FoundItem { number, at, payload, boot } in foreign {
            let Some(boot) = boot.as_deref() else { continue };
            // One that is none is thrown away with the others.
            let Ok(label) = item::label(payload) else { continue };
            let lane = lanes.number(&label.lane, |_| None);
            of_boot.entry(boot).or_default().push(Row { number: *number, lane, at: *at, payload: payload[..].into() });
        }
        if of_boot.is_empty() {
            return Ok(());
        }
        let mut take = || {
            for (boot, rows) in &of_boot {
                self.database.take_over(boot, rows)?;
            }
            (self.lanes, self.last) = (self.database.lanes()?, self.database.last()?);
            Ok(())
        };
        take().map_err(|error: DatabaseError| error.to_string())
    }
}

/// Opens the database; one that is damaged is set aside, and what can be read of it goes into a new one. No record of what
/// cannot has a number up to `floor`: the ring may know those.
///
/// # Errors
/// What the system says.
pub fn open(
    path: &Path,
    floor: Number,
    ids: &EventIds,
    notices: &UnboundedSender<Notice>,
    lane: impl Fn(&LaneKey) -> Option<LaneId>,
) -> Result<Opened, String> {
    // What a renewal had made whole when it was cut short.
    let salvaged = path.with_file_name(SALVAGED);
    if !path.exists() && salvaged.exists() {
        put_in_place(&salvaged, path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let opened = Database::open(path).and_then(|(database, lanes, last)| {
        let runs = database.runs()?;
        Ok(Opened { database, lanes, last, runs })
    });
    match opened {
        Ok(opened) => Ok(opened),
        Err(DatabaseError::Refused(why)) => Err(format!("{}: {why}", path.display())),
        Err(error) => {
            let (opened, notice) = renew(path, &error, Known::default(), floor, ids, |_| true, lane)?;
            _ = notices.send(notice);
            Ok(opened)
        }
    }
}

/// Gives a new database its name, for good.
fn put_in_place(new: &Path, path: &Path) -> std::io::Result<()> {
    std::fs::rename(new, path)?;
    path.parent().map_or(Ok(()), |folder| std::fs::File::open(folder)?.sync_all())
}

/// What is known of a damaged database by who had it open.
#[derive(Debug, Default)]
pub struct Known {
    /// How many items it held.
    pub items: Option<u64>,
    /// Which results and events.
    pub contents: Option<Contents>,
}

/// Sets a database aside and starts a new one with what can be read of it: of it what is `wanted`. `lane` says by which
/// number a stream is known that has no row any more.
///
/// # Errors
/// What the system says.
pub fn renew(
    path: &Path,
    error: &DatabaseError,
    known: Known,
    floor: Number,
    ids: &EventIds,
    wanted: impl Fn(Number) -> bool,
    lane: impl Fn(&LaneKey) -> Option<LaneId>,
) -> Result<(Opened, Notice), String> {
    let refused = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    // What its lanes say, if they can be read, is how many there were.
    let held = known.items.or_else(|| {
        let lanes = Database::open(path).ok()?.1;
        Some(lanes.iter().map(|lane| lane.rows).sum())
    });
    // Made beside it and renamed when it is whole: a salvage that is cut short begins again with the next start.
    let beside = path.with_file_name("outbox-salvage.db");
    for end in ["", "-wal", "-shm"] {
        _ = std::fs::remove_file(format!("{}{end}", beside.display()));
    }
    let (mut database, ..) = Database::open(&beside).map_err(|error| refused(&error))?;
    let salvaged = match error {
        DatabaseError::Newer(_) => Salvaged::default(),
        _ => database.salvage(path, wanted, known.contents).map_err(|error| refused(&error))?,
    };
    let lanes = database.lanes().map_err(|error| refused(&error))?;
    let mut runs = Runs::default();
    // Above all that was ever given: what the ring says of a number is not to be said of a record.
    let (mut records, mut last) = (Vec::new(), floor.max(database.last().map_err(|error| refused(&error))?));
    let mut lanes = Lanes::of(&lanes);
    // What was dropped before is told of once more: its record may have stood in what is damaged.
    let told_before = salvaged.runs.iter().flat_map(|run| {
        let range = |told: &DroppedRange| {
            let DroppedRange { first, last, every, reason } = *told;
            (Range { key: run.key.clone(), run: run.run, first, last, every }, reason)
        };
        run.dropped.iter().flatten().map(range).collect::<Vec<_>>()
    });
    let lost = salvaged.lost.iter().map(|range| (range.clone(), Reason::Damaged));
    let told: Vec<(Range, Reason)> = told_before.chain(lost).collect();
    runs.restore(salvaged.runs);
    for (range, reason) in &told {
        // A lane of which nothing could be read has its record all the same.
        let lane = lanes.number(&range.key, &lane);
        last += 1;
        let payload = ranges::record(range, *reason, ids);
        records.push(Row { number: last, lane, at: Moment::now().0, payload });
        runs.dropped(range, *reason);
    }
    runs.all_dirty();
    let runs = runs.take_dirty(&runs.keys());
    database.write(&records, &[], &runs, Offset::default()).map_err(|error| refused(&error))?;
    // Closed, it is one file.
    drop(database);
    let mark = crate::wall::now_text()
        .map_or_else(|| format!("boot-{}", Moment::now().0 / 1_000_000_000), |text| text.replace(':', ""));
    let salvaged_as = path.with_file_name(SALVAGED);
    put_in_place(&beside, &salvaged_as).map_err(|error| refused(&error))?;
    let aside = Database::set_aside(path, &mark).map_err(|error| refused(&error))?;
    put_in_place(&salvaged_as, path).map_err(|error| refused(&error))?;
    let (database, lanes, last) = Database::open(path).map_err(|error| refused(&error))?;
    let notice = Notice::Damaged {
        why: error.to_string(),
        aside,
        salvaged: salvaged.rows,
        lost: held.map(|held| held.saturating_sub(salvaged.rows)),
    };
    Ok((Opened { database, lanes, last, runs }, notice))
}

impl Keeper {
    /// The keeper of this database, if it could be opened.
    pub fn new(outbox: Arc<Outbox>, path: PathBuf, database: Option<Database>) -> Self {
        let failing = database.is_none();
        Self { outbox, path, database, again: Instant::now() + AGAIN, renewed: None, failing }
    }

    /// What the last process had settled and could not delete any more is not read again, and goes with the next commit.
    pub fn take_settled(&mut self) {
        let Some(database) = &mut self.database else { return };
        let settled = self.outbox.lock().settled_before.clone();
        match database.placed(&settled) {
            Ok(rows) => {
                let mut state = self.outbox.lock();
                state.settled_before.clear();
                state.book.settled_before(&rows, Instant::now());
            }
            Err(error) => self.failed(error, Attempt::Read),
        }
    }

    /// Which of these numbers are in the database.
    pub fn which_are_stored(&mut self, numbers: impl Iterator<Item = Number>) -> HashSet<Number> {
        let numbers: Vec<Number> = numbers.collect();
        let Some(database) = &mut self.database else { return HashSet::new() };
        match database.placed(&numbers) {
            Ok(rows) => rows.into_iter().map(|row| row.number).collect(),
            Err(error) => {
                self.failed(error, Attempt::Read);
                // There may be a new one by now, which holds what could be read.
                match self.database.as_ref().map(|database| database.placed(&numbers)) {
                    Some(Ok(rows)) => return rows.into_iter().map(|row| row.number).collect(),
                    // What is taken for live and is there too would be refused again and again.
                    Some(Err(_)) => self.give_up_database(),
                    None => {}
                }
                HashSet::new()
            }
        }
    }

    /// Does without a database until it can be opened again.
    fn give_up_database(&mut self) {
        self.database = None;
        self.again = Instant::now() + AGAIN;
        let mut state = self.outbox.lock();
        // Whichever opens next is asked whether it has what was settled.
        let gone = state.book.gone();
        state.settled_before.extend(gone);
        state.book.restart_database(Vec::new(), 0);
        state.book.has_disk(false);
    }

    /// Works until the outbox is closed.
    pub fn run(mut self) {
        loop {
            let mut state = self.outbox.lock();
            if state.closed {
                drop(state);
                let Self { database, outbox, .. } = self;
                drop(database);
                outbox.lock().ended = true;
                outbox.settled.notify_all();
                return;
            }
            if self.database.is_none() {
                drop(state);
                self.open_again();
                continue;
            }
            if !state.settled_before.is_empty() {
                drop(state);
                // It failed at the start.
                self.take_settled();
                if self.database.is_none() {
                    continue;
                }
                state = self.outbox.lock();
            }
            let now = Instant::now();
            let work = state.book.work(now);
            // Whatever was settled so far stands in segments up to this one, and leaves the database with this work.
            // After a failure only some of it does: then what the ring says is needed still.
            let all = state.settled_before.is_empty() && state.book.deletes_all();
            let mark = if all { state.ring.as_ref().map_or(0, Ring::current) } else { state.absorbed };
            drop(state);
            match work {
                Work::Rest(until) => {
                    self.outbox.settled.notify_all();
                    match until {
                        Some(until) => std::thread::park_timeout(until.saturating_duration_since(now)),
                        None => std::thread::park(),
                    }
                }
                Work::Write { rows, gone } => self.write(rows, gone, mark),
                Work::Read { from, lanes, bytes } => {
                    let Some(database) = &mut self.database else { continue };
                    match database.read(from, &lanes, bytes) {
                        Ok((rows, upto)) => {
                            let missing = self.outbox.lock().book.read(&lanes, rows, from, upto);
                            if missing > 0 {
                                let why = format!("{missing} items that it should hold are not there");
                                self.failed(DatabaseError::Damaged(why), Attempt::Read);
                            }
                            self.outbox.bell.notify_one();
                        }
                        Err(error) => self.failed(error, Attempt::Read),
                    }
                }
                Work::Drop { lanes, policy, bytes } => {
                    let Some(database) = &self.database else { continue };
                    let outbox = &self.outbox;
                    let victims = database.victims(&lanes, policy, bytes, |number| outbox.lock().book.is_free(number));
                    match victims {
                        Ok((victims, every)) => self.drop_rows(victims, every, Reason::Full),
                        Err(error) => self.failed(error, Attempt::Drop),
                    }
                }
                Work::DropOld => self.drop_old(),
            }
        }
    }

    fn write(&mut self, rows: Vec<Row>, gone: Vec<Placed>, mark: u64) {
        let Some(database) = &mut self.database else { return };
        let outbox = &self.outbox;
        let lanes: BTreeSet<LaneId> = rows.iter().map(|row| row.lane).collect();
        let runs = {
            let mut state = outbox.lock();
            let keys = lanes.iter().filter_map(|lane| state.book.key(*lane).cloned()).collect();
            state.runs.take_dirty(&keys)
        };
        match database.write(&rows, &gone, &runs, Offset::now()) {
            Ok(()) => {
                let mut state = outbox.lock();
                let closed = state.book.written(&rows, &gone, Instant::now());
                state.figures.committed += rows.len() as u64;
                state.absorbed = mark;
                state.close_in_ring(&closed);
                drop(state);
                outbox.settled.notify_all();
                outbox.bell.notify_one();
                if marks::are_wanted() {
                    let labels = rows.iter().filter_map(|row| item::label(&row.payload).ok());
                    labels.for_each(|label| marks::stored(&label.lane, label.serial));
                }
                self.works();
            }
            Err(error) => {
                outbox.lock().runs.still_dirty(&runs);
                self.failed(error, Attempt::Write(gone));
            }
        }
    }

    fn drop_old(&mut self) {
        let Some(database) = &mut self.database else { return };
        let outbox = &self.outbox;
        let age = u64::try_from(outbox.lock().book.max_age().as_nanos()).unwrap_or(u64::MAX);
        let may = |number| outbox.lock().book.is_free(number);
        match database.old(age, Moment::now().0, Offset::now(), may) {
            Ok(victims) if victims.is_empty() => {}
            Ok(victims) => {
                self.drop_rows(victims, 1, Reason::Age);
                self.outbox.lock().book.look_at_age_again();
            }
            Err(error) => self.failed(error, Attempt::Drop),
        }
    }

    /// Drops rows and commits the range records of them, together.
    fn drop_rows(&mut self, victims: Vec<Victim>, every: u64, reason: Reason) {
        let Some(database) = &mut self.database else { return };
        let placed: Vec<Placed> = victims.iter().map(|victim| victim.placed).collect();
        let items = victims.iter().filter(|victim| matches!(victim.what, Held::Serial(..))).count() as u64;
        let mut state = self.outbox.lock();
        let mut records = Vec::new();
        let held = victims.into_iter().map(|victim| victim.what);
        let told = ranges::fold(held, every, reason);
        let keys: BTreeSet<LaneKey> = told.iter().map(|(range, _)| range.key.clone()).collect();
        let before = state.runs.dropped_of(&keys);
        for (range, reason) in &told {
            let (number, lane) = (state.book.number(), state.book.lane(&range.key));
            let payload = ranges::record(range, *reason, &self.outbox.ids);
            records.push(Row { number, lane, at: Moment::now().0, payload });
            state.runs.dropped(range, *reason);
        }
        // On record with the rows: a record may be lost by damage, and is told again then.
        let runs = state.runs.take_dirty(&keys);
        drop(state);
        let outbox = &self.outbox;
        match database.write(&records, &placed, &runs, Offset::default()) {
            Ok(()) => {
                let mut state = outbox.lock();
                state.book.dropped(&placed, &records, Instant::now());
                state.figures.dropped += items;
            }
            Err(error) => {
                let mut state = outbox.lock();
                state.runs.still_dirty(&runs);
                // They are there still.
                state.runs.not_dropped(&told, before);
                drop(state);
                self.failed(error, Attempt::Drop);
            }
        }
    }

    /// Something could not be done: by the disk, and it is tried again, or since the database is damaged, and there will be
    /// a new one.
    fn failed(&mut self, error: DatabaseError, attempt: Attempt) {
        let now = Instant::now();
        match attempt {
            Attempt::Write(gone) => self.outbox.lock().book.not_written(gone, now),
            Attempt::Read => self.outbox.lock().book.not_read(now),
            Attempt::Drop => self.outbox.lock().book.not_dropped(now),
        }
        self.outbox.settled.notify_all();
        if let DatabaseError::Refused(why) = &error {
            tracing::debug!(why, "the outbox cannot be written to the disk");
            if !std::mem::replace(&mut self.failing, true) {
                _ = self.outbox.notices.send(Notice::Failing(format!("{}: {why}", self.path.display())));
            }
            return;
        }
        let contents = self.database.take().map(Database::into_contents);
        let (items, gone) = {
            let state = self.outbox.lock();
            let mut gone = state.book.gone();
            gone.extend(&state.settled_before);
            (state.book.waiting().saturating_sub(state.book.depth().live), gone)
        };
        let soon = self.renewed.is_some_and(|renewed| now.duration_since(renewed) < BETWEEN_RENEWALS);
        self.renewed = Some(now);
        let renewed = if soon {
            // A disk on which nothing stays whole is not written full of copies.
            Err(format!("{}: {error}, and so soon after it was made anew", self.path.display()))
        } else {
            let floor = self.outbox.lock().book.leave_numbers(RECORDS);
            let lane = |key: &LaneKey| Some(self.outbox.lock().book.lane(key));
            let known = Known { items: Some(items), contents };
            renew(&self.path, &error, known, floor, &self.outbox.ids, |number| !gone.contains(&number), lane)
        };
        match renewed {
            Ok((opened, notice)) => {
                let mut state = self.outbox.lock();
                state.book.restart_database(opened.lanes, opened.last);
                state.runs.restore(opened.runs);
                state.runs.all_dirty();
                // What was settled before is not in the new one.
                state.settled_before.clear();
                state.absorbed = state.ring.as_ref().map_or(0, Ring::current);
                drop(state);
                self.database = Some(opened.database);
                _ = self.outbox.notices.send(notice);
            }
            Err(why) => {
                self.give_up_database();
                if !std::mem::replace(&mut self.failing, true) {
                    _ = self.outbox.notices.send(Notice::Failing(why));
                }
            }
        }
        self.outbox.bell.notify_one();
    }

    fn works(&mut self) {
        if std::mem::take(&mut self.failing) {
            _ = self.outbox.notices.send(Notice::Works);
        }
    }

    /// Opens the database that could not be opened so far, when its time has come.
    fn open_again(&mut self) {
        let left = self.again.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            // A flush that waits for the disk waits in vain.
            self.outbox.settled.notify_all();
            std::thread::park_timeout(left);
            return;
        }
        let floor = self.outbox.lock().book.leave_numbers(RECORDS);
        let lane = |key: &LaneKey| Some(self.outbox.lock().book.lane(key));
        let foreign = self.outbox.lock().foreign.clone();
        let live: Vec<Number> = self.outbox.lock().book.live_items().iter().map(|(number, ..)| *number).collect();
        let opened = open(&self.path, floor, &self.outbox.ids, &self.outbox.notices, lane).and_then(|mut opened| {
            opened.take_over(&foreign)?;
            let stored = opened.database.placed(&live).map_err(|error| error.to_string())?;
            Ok((opened, stored))
        });
        match opened {
            Ok((Opened { database, lanes, last, runs }, stored)) => {
                let mut state = self.outbox.lock();
                state.book.adopt(lanes, last);
                state.book.has_disk(true);
                let mut numbers = state.book.already_stored(&stored, Instant::now());
                numbers.extend(state.foreign.drain(..).map(|item| item.number));
                state.close_in_ring(&numbers);
                state.runs.restore(runs);
                state.runs.all_dirty();
                drop(state);
                self.database = Some(database);
                self.take_settled();
                self.works();
            }
            Err(why) => {
                tracing::debug!(why, "the outbox has no database yet");
                self.again = Instant::now() + AGAIN;
            }
        }
    }
}
