//! The database: what stays unacknowledged for longer than a moment, so that it outlives the power.
//!
//! SQLite with a write-ahead log and `synchronous=FULL`: a transaction that has ended is on the disk. (`NORMAL` syncs at
//! checkpoints only and does not keep that promise.) It is opened exclusively, so that the index of the log is in memory
//! and not in a mapped file.
//!
//! - `item`: number, lane, boot, boot time at which it was stored, checksum, and the item itself ([`super::item`]). It has no
//!   index beside its number: items are appended, and a commit touches as few pages as it has items for, however many
//!   lanes there are. (With an index by lane, a commit of one result from each of a hundred streams wrote a hundred pages
//!   more.) Who reads a lane scans, and what was delivered is not there any more.
//! - `lane`: how many items each lane has, and their bytes, changed in the same transaction as the items: a start need not
//!   count a million rows.
//! - `boot`: UTC minus boot time of each boot, as far as it was ever known, and whether a time server had set it, so that an
//!   item that was stored before the clock was set still gets its time.
//!
//! - `run`: the last number and the dropped ranges of each run, as of the last commit of its stream ([`super::runs`]), and
//!   which of its numbers are here ([`contents`]).
//!
//! A database that is damaged is set aside under another name, and what can be read of it goes into a new one
//! ([`salvage`]).

mod contents;
mod salvage;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

pub use contents::Contents;
pub use salvage::Salvaged;

use limpet_wire::id::Serial;
use limpet_wire::message::DroppedRange;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, Transaction, ffi, params};

use self::contents::Numbers;
use super::book::{Boot, LaneId, LaneRows, Number, Placed, ROW, ReadRow, Row};
use super::boot_id;
use super::item::{self, LaneKey};
use super::ranges::Held;
use super::runs::Remembered;
use crate::config::DropPolicy;
use crate::wall::{self, Wall};

/// What the name of a database that was set aside starts with.
pub const ASIDE: &str = "outbox-damaged-";
/// Version of the tables.
const VERSION: i64 = 1;
/// Tells that a file is an outbox: `lmpt`.
const APPLICATION: i64 = 0x6c6d_7074;
/// Pages of the log, of 4 KiB each, after which they are copied into the database.
const CHECKPOINT: i64 = if cfg!(test) { 50 } else { 2000 };
/// Memory for pages, in KiB.
const CACHE_KIB: i64 = 512;
/// Rows that one read passes at most, so that commits need not wait for it.
const SCAN: usize = 50_000;
/// Runs that are remembered though nothing of them is here: more than a message of them holds.
const RUNS: i64 = 2_000;
/// What SQLite says where a page cannot be read.
const UNREADABLE: [i32; 4] =
    [ffi::SQLITE_IOERR_READ, ffi::SQLITE_IOERR_SHORT_READ, ffi::SQLITE_IOERR_DATA, ffi::SQLITE_IOERR_CORRUPTFS];
/// Rows that one look for old ones gives at most.
const OLD: usize = 5_000;

/// Why the database did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// What it holds is not what was written, or a place of it cannot be read, as where a card wears out.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// The system or the disk says no, for now.
    #[error("{0}")]
    Refused(String),
    /// It is of a newer version.
    #[error("it is of version {0}, which is newer than this program")]
    Newer(i64),
}

impl From<rusqlite::Error> for DatabaseError {
    fn from(error: rusqlite::Error) -> Self {
        let damaged = [ErrorCode::DatabaseCorrupt, ErrorCode::NotADatabase];
        match error.sqlite_error_code() {
            Some(code) if damaged.contains(&code) => Self::Damaged(error.to_string()),
            // Tables or columns that are not there, or hold what they cannot hold.
            Some(ErrorCode::Unknown | ErrorCode::TypeMismatch) => Self::Damaged(error.to_string()),
            // A sector that is gone says so each time; whoever waits for it to come back waits for ever.
            Some(ErrorCode::SystemIoFailure)
                if extended_code(&error).is_some_and(|code| UNREADABLE.contains(&code)) =>
            {
                Self::Damaged(error.to_string())
            }
            None => Self::Damaged(error.to_string()),
            Some(_) => Self::Refused(error.to_string()),
        }
    }
}

/// What only makes room: a disk that takes nothing at the moment can be read all the same.
fn tidy(outcome: Result<usize, rusqlite::Error>) -> Result<(), DatabaseError> {
    match outcome.map_err(DatabaseError::from) {
        Ok(_) | Err(DatabaseError::Refused(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

fn extended_code(error: &rusqlite::Error) -> Option<i32> {
    match error {
        rusqlite::Error::SqliteFailure(error, _) => Some(error.extended_code),
        _ => None,
    }
}

/// The relation of boot time to UTC under a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offset {
    /// UTC minus boot time, in nanoseconds, if it is known.
    pub utc: Option<i64>,
    /// Whether a time server had set the clock: good enough to judge how old something is, and not only to label it. A
    /// clock that was merely restored at the start may be weeks behind.
    pub right: bool,
}

impl Offset {
    /// As of now.
    pub fn now() -> Self {
        Self { utc: Wall::now().offset(), right: wall::is_right() }
    }

    /// Whether this says more than what is on record.
    fn is_news(self, recorded: Self) -> bool {
        // A clock that is set anew differs by more than what it drifts between two commits.
        let differs = self.utc.is_some_and(|now| recorded.utc.is_none_or(|then| now.abs_diff(then) > 100_000_000));
        (differs && (self.right || !recorded.right)) || (self.right && self.utc.is_some() && !recorded.right)
    }
}

/// The database of an outbox.
#[derive(Debug)]
pub struct Database {
    connection: Connection,
    /// The kernel's id of this boot; its row, which comes with the first commit; and what is on record of it.
    kernel: String,
    boot: Option<i64>,
    recorded: Offset,
    /// What of each run is here.
    contents: Contents,
    /// Rows before this one are of boots of which nobody will ever know how long ago they were.
    timed_from: Number,
}

/// Looks through the database of an agent that does not run, and changes nothing: how many items wait in it; none if there is
/// none.
///
/// # Errors
/// What is wrong with it, or what the system says.
pub fn examine(path: &Path) -> Result<Option<u64>, DatabaseError> {
    if !path.exists() {
        return Ok(None);
    }
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let said: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if said != "ok" {
        return Err(DatabaseError::Damaged(said.replace('\n', " ")));
    }
    let mut statement = connection.prepare("SELECT number, payload, sum FROM item")?;
    let (mut rows, mut count) = (statement.query([])?, 0);
    while let Some(row) = rows.next()? {
        sound(number(row.get(0)?), row.get_ref(1)?, row.get(2)?)?;
        count += 1;
    }
    Ok(Some(count))
}

/// A row that may be dropped.
#[derive(Debug)]
pub struct Victim {
    /// The row.
    pub placed: Placed,
    /// What it holds.
    pub what: Held,
}

impl Database {
    /// Opens it, or makes a new one. Gives what each lane holds, and the highest number.
    ///
    /// # Errors
    /// If it is damaged, newer, or the system says no.
    pub fn open(path: &Path) -> Result<(Self, Vec<LaneRows>, Number), DatabaseError> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT)?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        match version {
            0 => connection.execute_batch(&format!(
                "BEGIN;
                 CREATE TABLE lane (id INTEGER PRIMARY KEY, pipeline TEXT NOT NULL, stream TEXT NOT NULL, rows INTEGER NOT NULL, bytes INTEGER NOT NULL) STRICT;
                 CREATE TABLE boot (id INTEGER PRIMARY KEY, kernel TEXT UNIQUE NOT NULL, offset INTEGER, right INTEGER NOT NULL DEFAULT 0) STRICT;
                 CREATE TABLE run (id INTEGER PRIMARY KEY, pipeline TEXT NOT NULL, stream TEXT NOT NULL, run INTEGER NOT NULL, last INTEGER NOT NULL, dropped TEXT NOT NULL DEFAULT '[]', held TEXT NOT NULL DEFAULT '[]') STRICT;
                 CREATE UNIQUE INDEX run_of ON run (pipeline, stream, run);
                 CREATE TABLE item (number INTEGER PRIMARY KEY, lane INTEGER NOT NULL, boot INTEGER NOT NULL, at INTEGER NOT NULL, sum INTEGER NOT NULL, payload BLOB NOT NULL) STRICT;
                 PRAGMA application_id = {APPLICATION};
                 PRAGMA user_version = {VERSION};
                 COMMIT;"
            ))?,
            VERSION => {}
            newer => return Err(DatabaseError::Newer(newer)),
        }
        let kernel = boot_id();
        let find = "SELECT id, offset, right FROM boot WHERE kernel = ?1";
        let known = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, Offset { utc: row.get(1)?, right: row.get(2)? }));
        let known = connection.query_row(find, [&kernel], known).optional()?;
        let (boot, recorded) = known.map_or((None, Offset::default()), |(boot, offset)| (Some(boot), offset));
        tidy(connection.execute("DELETE FROM lane WHERE rows = 0", []))?;
        let mut contents = Contents::default();
        read_runs(&connection, 0, |run| {
            let RunRow { remembered: Remembered { key, run, .. }, held, .. } = run?;
            let held = held.map_err(DatabaseError::Damaged)?;
            if !held.is_empty() {
                *contents.run(&key, run) = held;
            }
            Ok(())
        })?;
        let database = Self { connection, kernel, boot, recorded, contents, timed_from: 0 };
        let (lanes, last) = (database.lanes()?, database.last()?);
        Ok((database, lanes, last))
    }

    /// What each lane holds.
    ///
    /// # Errors
    /// If it is damaged, or the system says no.
    pub fn lanes(&self) -> Result<Vec<LaneRows>, DatabaseError> {
        let mut statement =
            self.connection.prepare("SELECT id, pipeline, stream, rows, bytes FROM lane WHERE rows > 0")?;
        let lanes = statement.query_map([], |row| {
            let key = lane_key(row.get(1)?, row.get(2)?);
            let (rows, bytes): (i64, i64) = (row.get(3)?, row.get(4)?);
            Ok(LaneRows { id: row.get(0)?, key, rows: rows.unsigned_abs(), bytes: bytes.unsigned_abs() })
        });
        Ok(lanes?.collect::<Result<Vec<_>, _>>()?)
    }

    /// The highest number.
    ///
    /// # Errors
    /// If it is damaged, or the system says no.
    pub fn last(&self) -> Result<Number, DatabaseError> {
        let last: Option<i64> = self.connection.query_row("SELECT max(number) FROM item", [], |row| row.get(0))?;
        Ok(number(last.unwrap_or(0)))
    }

    /// The runs of results that it remembers, the oldest first. Those that are too many are forgotten.
    ///
    /// # Errors
    /// If it is damaged, or the system says no.
    pub fn runs(&self) -> Result<Vec<Remembered>, DatabaseError> {
        let forget = "DELETE FROM run WHERE held = '[]' AND id <= (SELECT max(id) FROM run) - ?1";
        tidy(self.connection.execute(forget, [RUNS]))?;
        let mut runs = Vec::new();
        read_runs(&self.connection, 0, |run| {
            let RunRow { remembered, dropped, .. } = run?;
            let dropped = Some(dropped.map_err(DatabaseError::Damaged)?);
            if remembered.key != LaneKey::Events {
                runs.push(Remembered { dropped, ..remembered });
            }
            Ok(())
        })?;
        Ok(runs)
    }

    /// Gives up the database for what it holds.
    pub fn into_contents(self) -> Contents {
        self.contents
    }

    /// Which of these numbers are here, and where.
    ///
    /// # Errors
    /// If it is damaged, or the system says no.
    pub fn placed(&self, numbers: &[Number]) -> Result<Vec<Placed>, DatabaseError> {
        let mut statement =
            self.connection.prepare_cached("SELECT lane, length(payload) FROM item WHERE number = ?1")?;
        let mut found = Vec::new();
        for number in numbers {
            let row =
                statement.query_row([signed(*number)], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?))).optional()?;
            found.extend(row.map(|(lane, length)| Placed {
                number: *number,
                lane,
                bytes: length.unsigned_abs() + ROW,
            }));
        }
        Ok(found)
    }

    /// Commits rows and deletes others, in one transaction that is on the disk when this returns.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub fn write(
        &mut self,
        rows: &[Row],
        gone: &[Placed],
        runs: &[Remembered],
        offset: Offset,
    ) -> Result<(), DatabaseError> {
        let news = offset.is_news(self.recorded);
        let (known, kernel) = (self.boot, self.kernel.clone());
        let mut change = self.change()?;
        let boot = match known {
            Some(boot) => boot,
            None => {
                // Those of boots of which nothing is left are forgotten.
                change.transaction.execute("DELETE FROM boot WHERE NOT EXISTS (SELECT 1 FROM item LIMIT 1)", [])?;
                change.boot(&kernel)?
            }
        };
        change.insert(rows.iter().map(|row| (row, boot)))?;
        change.delete(gone)?;
        change.remember(runs)?;
        if news {
            let update = "UPDATE boot SET offset = ?1, right = ?2 WHERE id = ?3";
            change.transaction.execute(update, params![offset.utc, offset.right, boot])?;
        }
        change.commit()?;
        self.boot = Some(boot);
        if news {
            self.recorded = offset;
        }
        Ok(())
    }

    /// Commits those of these rows that are not here yet, which were stored under another boot.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub fn take_over(&mut self, kernel: &str, rows: &[Row]) -> Result<(), DatabaseError> {
        let numbers: Vec<Number> = rows.iter().map(|row| row.number).collect();
        let there: HashSet<Number> = self.placed(&numbers)?.iter().map(|row| row.number).collect();
        let mut change = self.change()?;
        let boot = change.boot(kernel)?;
        change.insert(rows.iter().filter(|row| !there.contains(&row.number)).map(|row| (row, boot)))?;
        change.commit()
    }

    fn change(&mut self) -> Result<Change<'_>, DatabaseError> {
        let Self { connection, contents, .. } = self;
        Ok(Change { transaction: connection.transaction()?, contents, changed: Contents::default() })
    }

    /// Reads rows of these lanes from a number on, as many as fit into so many bytes, at least one if there is one. Gives
    /// up to which number it has looked, or none if that was the last.
    ///
    /// # Errors
    /// If it is damaged, or the system says no.
    pub fn read(
        &mut self,
        from: Number,
        lanes: &BTreeSet<LaneId>,
        bytes: u64,
    ) -> Result<(Vec<ReadRow>, Option<Number>), DatabaseError> {
        let mut offsets: HashMap<i64, Option<i64>> = HashMap::new();
        let mut boots = self.connection.prepare_cached("SELECT id, offset FROM boot")?;
        for boot in boots.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))? {
            let (boot, offset) = boot?;
            offsets.insert(boot, offset);
        }
        let mut statement = self
            .connection
            .prepare_cached("SELECT number, lane, boot, payload, sum FROM item WHERE number >= ?1 ORDER BY number")?;
        let mut cursor = statement.query([signed(from)])?;
        let (mut found, mut taken, mut scanned) = (Vec::new(), 0, 0);
        while let Some(row) = cursor.next()? {
            let at = number(row.get(0)?);
            let lane: LaneId = row.get(1)?;
            scanned += 1;
            if lanes.contains(&lane) {
                let payload = sound(at, row.get_ref(3)?, row.get(4)?)?;
                taken += payload.len() as u64;
                let boot: i64 = row.get(2)?;
                let boot = match offsets.get(&boot).copied().flatten() {
                    _ if Some(boot) == self.boot => Boot::This,
                    Some(offset) => Boot::Known(offset),
                    None => Boot::Unknown,
                };
                found.push(ReadRow { number: at, lane, payload: payload.into(), boot });
            }
            if taken >= bytes || scanned >= SCAN {
                return Ok((found, Some(at)));
            }
        }
        Ok((found, None))
    }

    /// Rows of these lanes by a policy that together have so many bytes, if there are, and of which `may` says that they
    /// can be dropped; and which numbers of runs are kept among them (1: none).
    ///
    /// # Errors
    /// If it is damaged, or the system says no.
    pub fn victims(
        &self,
        lanes: &BTreeSet<LaneId>,
        policy: DropPolicy,
        bytes: u64,
        may: impl Fn(Number) -> bool,
    ) -> Result<(Vec<Victim>, u64), DatabaseError> {
        let mut every: u64 = 1;
        if let DropPolicy::Thin(n) = policy {
            // What was thinned out before is thinned out again, by the square, and so on.
            while let Some(more) = every.checked_mul(n).filter(|more| *more <= 1_000_000_000) {
                every = more;
                let found = self.choose(lanes, false, every, bytes, &may)?;
                if found.iter().map(|victim| victim.placed.bytes).sum::<u64>() >= bytes {
                    return Ok((found, every));
                }
            }
        }
        Ok((self.choose(lanes, policy == DropPolicy::DropNewest, 1, bytes, &may)?, 1))
    }

    fn choose(
        &self,
        lanes: &BTreeSet<LaneId>,
        newest: bool,
        every: u64,
        bytes: u64,
        may: &impl Fn(Number) -> bool,
    ) -> Result<Vec<Victim>, DatabaseError> {
        let order = if newest { "DESC" } else { "ASC" };
        let mut statement = self
            .connection
            .prepare_cached(&format!("SELECT number, lane, payload, sum FROM item ORDER BY number {order}"))?;
        let mut rows = statement.query([])?;
        let (mut found, mut freed) = (Vec::new(), 0);
        while freed < bytes
            && let Some(row) = rows.next()?
        {
            let (at, lane) = (number(row.get(0)?), row.get(1)?);
            if !lanes.contains(&lane) || !may(at) {
                continue;
            }
            let victim = victim(at, lane, sound(at, row.get_ref(2)?, row.get(3)?)?)?;
            let goes = match &victim.what {
                Held::Serial(_, serial) => every == 1 || !serial.seq.is_multiple_of(every),
                // Those that stand for what is thinned out further, or for a part of what all goes.
                Held::Range(range, _) => every == 1 || range.every > 1 && every.is_multiple_of(range.every),
            };
            if goes {
                freed += victim.placed.bytes;
                found.push(victim);
            }
        }
        Ok(found)
    }

    /// The oldest rows, as far as they were stored more than `age` ns ago: under this boot by the boot time `now`, and under
    /// an earlier one by UTC, if both clocks were right. Of what was stored under a boot that never knew the time, nobody
    /// can say how old it is.
    ///
    /// # Errors
    /// If it is damaged, or the system says no.
    pub fn old(
        &mut self,
        age: u64,
        now: u64,
        offset: Offset,
        may: impl Fn(Number) -> bool,
    ) -> Result<Vec<Victim>, DatabaseError> {
        let utc = offset.utc.filter(|_| offset.right).map(|offset| offset.saturating_add_unsigned(now));
        let mut statement = self.connection.prepare_cached(
            "SELECT number, lane, at, item.boot, boot.offset, payload, sum
             FROM item LEFT JOIN boot ON boot.id = item.boot AND boot.right WHERE number >= ?1 ORDER BY number",
        )?;
        let mut rows = statement.query([signed(self.timed_from)])?;
        let mut found = Vec::new();
        // Whether all that was passed so far is of boots that will never be known.
        let mut timeless = true;
        while found.len() < OLD
            && let Some(row) = rows.next()?
        {
            let (at, boot): (i64, i64) = (row.get(2)?, row.get(3)?);
            let known: Option<i64> = row.get(4)?;
            let waited = if Some(boot) == self.boot {
                Some(i128::from(now) - i128::from(at))
            } else {
                timeless &= known.is_none();
                known.zip(utc).map(|(offset, utc)| i128::from(utc) - (i128::from(offset) + i128::from(at)))
            };
            let number = number(row.get(0)?);
            let Some(waited) = waited else {
                if timeless {
                    self.timed_from = number + 1;
                }
                continue;
            };
            timeless = false;
            if waited <= i128::from(age) {
                break;
            }
            if may(number) {
                found.push(victim(number, row.get(1)?, sound(number, row.get_ref(5)?, row.get(6)?)?)?);
            }
        }
        Ok(found)
    }

    /// Sets a damaged database aside, under a name with this mark, and makes a new one. One that was set aside before is
    /// removed: a disk holds only so many.
    ///
    /// # Errors
    /// What the system says; there is no database then.
    pub fn set_aside(path: &Path, mark: &str) -> std::io::Result<PathBuf> {
        let aside = path.with_file_name(format!("{ASIDE}{mark}.db"));
        if let Some(folder) = path.parent() {
            for entry in fs::read_dir(folder)?.flatten() {
                if entry.file_name().to_string_lossy().starts_with(ASIDE) {
                    fs::remove_file(entry.path())?;
                }
            }
        }
        let beside = |path: &Path, end: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(end);
            PathBuf::from(name)
        };
        fs::rename(path, &aside)?;
        for end in ["-wal", "-shm"] {
            match fs::rename(beside(path, end), beside(&aside, end)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(aside)
    }
}

/// A run as it is on record. What of it cannot be read is the reason.
struct RunRow {
    /// Where it stands.
    id: u64,
    /// It, without what was dropped.
    remembered: Remembered,
    dropped: Result<Vec<DroppedRange>, String>,
    /// Which of its numbers the database holds.
    held: Result<Numbers, String>,
}

/// Gives each run from a place on, the oldest first.
fn read_runs(
    connection: &Connection,
    from: u64,
    mut each: impl FnMut(Result<RunRow, DatabaseError>) -> Result<(), DatabaseError>,
) -> Result<(), DatabaseError> {
    let mut statement = connection
        .prepare("SELECT id, pipeline, stream, run, last, dropped, held FROM run WHERE id >= ?1 ORDER BY id")?;
    let mut rows = statement.query([signed(from)])?;
    let read = |row: &rusqlite::Row<'_>| -> Result<RunRow, DatabaseError> {
        let (run, last): (i64, i64) = (row.get(3)?, row.get(4)?);
        let key = lane_key(row.get(1)?, row.get(2)?);
        let text = |column| row.get_ref(column)?.as_bytes().map_err(rusqlite::Error::from);
        Ok(RunRow {
            id: number(row.get(0)?),
            remembered: Remembered { key, run: run.cast_unsigned(), last: number(last), dropped: None },
            dropped: serde_json::from_slice(text(5)?).map_err(|error| error.to_string()),
            held: contents::of_text(text(6)?),
        })
    };
    while let Some(row) = rows.next()? {
        each(read(row))?;
    }
    Ok(())
}

/// The checksum of an item: SQLite has none of its pages, and an item that a disk has changed is not to be told as a result.
fn checksum(payload: &[u8]) -> i64 {
    crc32fast::hash(payload).into()
}

/// The item of a row, if it is what was written.
fn sound(number: Number, payload: ValueRef<'_>, sum: i64) -> Result<&[u8], DatabaseError> {
    let payload = payload.as_blob().map_err(rusqlite::Error::from)?;
    if checksum(payload) == sum {
        Ok(payload)
    } else {
        Err(DatabaseError::Damaged(format!("item {number} is not what was written")))
    }
}

fn victim(number: Number, lane: LaneId, payload: &[u8]) -> Result<Victim, DatabaseError> {
    let what = Held::of(payload).map_err(|error| DatabaseError::Damaged(format!("item {number}: {error}")))?;
    Ok(Victim { placed: Placed { number, lane, bytes: payload.len() as u64 + ROW }, what })
}

/// What is to be changed in one transaction, and what of each run is here after it.
struct Change<'a> {
    transaction: Transaction<'a>,
    contents: &'a mut Contents,
    changed: Contents,
}

impl Change<'_> {
    /// The row of a boot.
    fn boot(&self, kernel: &str) -> Result<i64, DatabaseError> {
        let new = "INSERT INTO boot (kernel) VALUES (?1) ON CONFLICT (kernel) DO NOTHING";
        self.transaction.execute(new, [kernel])?;
        let find = "SELECT id FROM boot WHERE kernel = ?1";
        Ok(self.transaction.query_row(find, [kernel], |row| row.get(0))?)
    }

    /// Adds rows, each with its boot.
    fn insert<'a>(&mut self, rows: impl Iterator<Item = (&'a Row, i64)>) -> Result<(), DatabaseError> {
        let Self { transaction, contents, changed } = self;
        let mut statement = transaction.prepare_cached(
            "INSERT INTO item (number, lane, boot, at, sum, payload) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?;
        let mut more: HashMap<LaneId, (LaneKey, i64, i64)> = HashMap::new();
        for (row, boot) in rows {
            // What is none is thrown away before it comes here.
            let label = item::label(&row.payload).map_err(|error| DatabaseError::Refused(error.to_string()))?;
            let sum = checksum(&row.payload);
            statement.execute(params![signed(row.number), row.lane, boot, signed(row.at), sum, &*row.payload])?;
            if let Some(Serial { run, seq }) = label.serial {
                changed.run_as_in(contents, &label.lane, run).insert(seq..=seq);
            }
            let (_, rows, bytes) = more.entry(row.lane).or_insert((label.lane, 0, 0));
            *rows += 1;
            *bytes += signed(row.payload.len() as u64 + ROW);
        }
        let mut statement = transaction.prepare_cached(
            "INSERT INTO lane (id, pipeline, stream, rows, bytes) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (id) DO UPDATE SET pipeline = ?2, stream = ?3, rows = rows + ?4, bytes = bytes + ?5",
        )?;
        for (id, (key, rows, bytes)) in more {
            let (pipeline, stream) = names(&key);
            statement.execute(params![id, pipeline, stream, rows, bytes])?;
        }
        Ok(())
    }

    fn delete(&mut self, gone: &[Placed]) -> Result<(), DatabaseError> {
        let Self { transaction, contents, changed } = self;
        let mut statement = transaction.prepare_cached("DELETE FROM item WHERE number = ?1 RETURNING payload")?;
        let mut less: HashMap<LaneId, (i64, i64)> = HashMap::new();
        let mut keys: HashMap<LaneId, LaneKey> = HashMap::new();
        for row in gone {
            let deleted = |row: &rusqlite::Row<'_>| Ok(item::label(row.get_ref(0)?.as_blob()?));
            // One that a salvage did not find is not counted either.
            let Some(label) = statement.query_row([signed(row.number)], deleted).optional()? else { continue };
            if let Ok(item::Label { lane, serial }) = label {
                if let Some(Serial { run, seq }) = serial {
                    changed.run_as_in(contents, &lane, run).remove(seq..=seq);
                }
                keys.entry(row.lane).or_insert(lane);
            }
            let (rows, bytes) = less.entry(row.lane).or_default();
            *rows += 1;
            *bytes += signed(row.bytes);
        }
        let mut statement = transaction
            .prepare_cached("UPDATE lane SET rows = rows - ?2, bytes = bytes - ?3 WHERE id = ?1 RETURNING rows")?;
        for (lane, (rows, bytes)) in less {
            let left: Option<i64> = statement.query_row(params![lane, rows, bytes], |row| row.get(0)).optional()?;
            // What was on record in too many pieces said a little too much.
            if let Some(key) = keys.get(&lane).filter(|_| left == Some(0)) {
                let runs: Vec<u64> = contents.runs(key).chain(changed.runs(key)).collect();
                runs.into_iter().for_each(|run| changed.run(key, run).clear());
            }
        }
        Ok(())
    }

    fn remember(&self, runs: &[Remembered]) -> Result<(), DatabaseError> {
        let mut statement = self.transaction.prepare_cached(
            "INSERT INTO run (pipeline, stream, run, last, dropped) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (pipeline, stream, run) DO UPDATE SET last = max(last, ?4), dropped = ?5",
        )?;
        let mut goes_on = self
            .transaction
            .prepare_cached("UPDATE run SET last = max(last, ?4) WHERE pipeline = ?1 AND stream = ?2 AND run = ?3")?;
        for Remembered { key, run, last, dropped } in runs.iter().filter(|run| run.key != LaneKey::Events) {
            let (pipeline, stream) = names(key);
            let Some(dropped) = dropped else {
                goes_on.execute(params![pipeline, stream, run.cast_signed(), signed(*last)])?;
                continue;
            };
            let dropped = serde_json::to_string(dropped).expect("writing plain values into memory cannot fail");
            statement.execute(params![pipeline, stream, run.cast_signed(), signed(*last), dropped])?;
        }
        Ok(())
    }

    fn commit(mut self) -> Result<(), DatabaseError> {
        let mut statement = self.transaction.prepare_cached(
            "INSERT INTO run (pipeline, stream, run, last, held) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (pipeline, stream, run) DO UPDATE SET last = max(last, ?4), held = ?5",
        )?;
        for (key, run, numbers) in self.changed.iter_mut() {
            contents::coalesce(numbers, contents::IN_MEMORY);
            let ((pipeline, stream), last) = (names(key), numbers.last().map_or(0, |range| *range.end()));
            statement.execute(params![
                pipeline,
                stream,
                run.cast_signed(),
                signed(last),
                contents::to_text(numbers)
            ])?;
        }
        drop(statement);
        self.transaction.commit()?;
        self.contents.replace(self.changed);
        Ok(())
    }
}

/// A lane as it is written down; events have no names.
fn names(key: &LaneKey) -> (&str, &str) {
    match key {
        LaneKey::Results(pipeline, stream) => (pipeline, stream),
        LaneKey::Events => ("", ""),
    }
}

fn lane_key(pipeline: String, stream: String) -> LaneKey {
    if pipeline.is_empty() { LaneKey::Events } else { LaneKey::Results(pipeline.into(), stream.into()) }
}

/// SQLite's integers are signed; no number comes near the end of them.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn number(signed: i64) -> u64 {
    signed.unsigned_abs()
}

#[cfg(test)]
mod tests;
