//! What can be read of a damaged database.
//!
//! Rows are read in the order of their numbers. Where that fails, ever higher numbers are asked for until rows come again:
//! a page that is damaged costs what is in it. What it was can be told from the numbers of the results around it, and from
//! how many rows the lane is known to have held.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use limpet_wire::id::Serial;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::super::book::{LaneId, Number, Row};
use super::super::item::{self, LaneKey};
use super::super::ranges::Range;
use super::{Database, DatabaseError, checksum, insert, lane_key, number, signed};

/// A boot of which nothing is known.
const NO_BOOT: i64 = 0;
/// Rows of one transaction.
const ROWS: usize = 5_000;

/// What came of a salvage.
#[derive(Debug, Default)]
pub struct Salvaged {
    /// Rows that are in the new database.
    pub rows: u64,
    /// What could not be read. Some of it may have been delivered before.
    pub lost: Vec<Range>,
}

impl Database {
    /// Reads what can be read of a damaged database into this one, which is new; of it what is `wanted`.
    ///
    /// # Errors
    /// What the new one says. What the old one says ends the salvage.
    pub fn salvage(&mut self, aside: &Path, wanted: impl Fn(Number) -> bool) -> Result<Salvaged, DatabaseError> {
        let mut rows = 0;
        let Ok(old) = Connection::open(aside) else { return Ok(Salvaged::default()) };
        let boots = self.adopt_boots(&old)?;
        let mut witness = Witness::default();
        let mut from = 0;
        loop {
            let (found, end) = readable(&old, from);
            if let Some((last, ..)) = found.last() {
                from = last.number + 1;
            }
            let mut kept = Vec::with_capacity(found.len());
            for (row, boot, sound) in found {
                if !sound {
                    witness.damaged();
                    continue;
                }
                // Its page was read, so another version wrote it.
                let Ok(label) = item::label(&row.payload) else { continue };
                witness.see(row.lane, label);
                if wanted(row.number) {
                    kept.push((row, boots.get(&boot).copied().unwrap_or(NO_BOOT)));
                }
            }
            rows += kept.len() as u64;
            let transaction = self.connection.transaction()?;
            insert(&transaction, kept.iter().map(|(row, boot)| (row, *boot)), &|lane| witness.key(lane))?;
            transaction.commit()?;
            match end {
                End::Last => break,
                End::More => {}
                End::Damage => {
                    witness.damaged();
                    let Some(next) = next_readable(&old, from) else { break };
                    from = next;
                }
            }
        }
        Ok(Salvaged { rows, lost: witness.lost(&lanes_of(&old), &last_of_runs(&old)) })
    }

    /// Takes over what a damaged database knows of boots, and gives the ids here of the ids there. A boot of which it
    /// does not say anything any more is one that never knew the time.
    fn adopt_boots(&mut self, old: &Connection) -> Result<HashMap<i64, i64>, DatabaseError> {
        let read = || -> Result<Vec<(i64, String, Option<i64>)>, rusqlite::Error> {
            let mut statement = old.prepare("SELECT id, kernel, offset FROM boot")?;
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
        };
        let mut boots = HashMap::new();
        for (id, kernel, offset) in read().unwrap_or_default() {
            self.connection.execute(
                "INSERT INTO boot (kernel, offset) VALUES (?1, ?2) ON CONFLICT (kernel) DO UPDATE SET offset = coalesce(offset, ?2)",
                params![kernel, offset],
            )?;
            let new = self.connection.query_row("SELECT id FROM boot WHERE kernel = ?1", [kernel], |row| row.get(0))?;
            boots.insert(id, new);
        }
        Ok(boots)
    }
}

/// Works out from the rows that could be read which ones could not.
#[derive(Debug, Default)]
struct Witness {
    /// How often there was damage so far.
    damages: u32,
    lanes: HashMap<LaneId, Seen>,
}

/// What was seen of a lane.
#[derive(Debug)]
struct Seen {
    key: LaneKey,
    rows: u64,
    /// The last number of each run, and how often there had been damage when it was seen.
    runs: HashMap<u64, (u64, u32)>,
    last: Option<Serial>,
    gaps: Vec<Range>,
    /// Runs whose first number comes after damage.
    begun: Vec<Serial>,
}

impl Witness {
    fn see(&mut self, lane: LaneId, label: item::Label) {
        let new =
            || Seen { key: label.lane, rows: 0, runs: HashMap::new(), last: None, gaps: Vec::new(), begun: Vec::new() };
        let seen = self.lanes.entry(lane).or_insert_with(new);
        seen.rows += 1;
        let Some(serial) = label.serial else { return };
        match seen.runs.insert(serial.run, (serial.seq, self.damages)) {
            Some((before, damages)) if damages < self.damages && before + 1 < serial.seq => {
                seen.gaps.push(range(&seen.key, serial.run, before + 1, serial.seq - 1));
            }
            None if self.damages > 0 => seen.begun.push(serial),
            _ => {}
        }
        seen.last = Some(serial);
    }

    /// What comes next comes after damage.
    fn damaged(&mut self) {
        self.damages += 1;
    }

    fn key(&self, lane: LaneId) -> Option<LaneKey> {
        self.lanes.get(&lane).map(|seen| seen.key.clone())
    }

    /// What is missing, if the lanes held so many rows, and so much of each run was stored, by the order of runs. Beyond the
    /// gaps between rows it is what comes after the last row of a run that damage follows, then what comes before the first
    /// row of a run, and then what comes after the last row of the lane. Where the pages are damaged that would bound it, it
    /// is rather too much: what was delivered of it is not lost for that.
    fn lost(mut self, held: &HashMap<LaneId, (LaneKey, u64)>, runs: &[(LaneKey, Serial)]) -> Vec<Range> {
        let mut lost = Vec::new();
        if self.damages == 0 {
            return lost;
        }
        let ids: BTreeSet<LaneId> = held.keys().chain(self.lanes.keys()).copied().collect();
        for id in ids {
            let on_record = held.get(&id);
            let Some(seen) = self.lanes.remove(&id) else {
                lost.extend(on_record.into_iter().flat_map(|(key, rows)| unseen(key, *rows, runs)));
                continue;
            };
            let in_gaps: u64 = seen.gaps.iter().map(|gap| gap.last - gap.first + 1).sum();
            // As far as that is known.
            let mut missing = on_record.map(|(_, rows)| rows.saturating_sub(seen.rows + in_gaps));
            let mut take = |most: u64| {
                let taken = missing.map_or(most, |missing| missing.min(most));
                missing = missing.map(|missing| missing - taken);
                taken
            };
            let of_lane = || runs.iter().filter(|(key, _)| *key == seen.key).map(|(_, serial)| *serial);
            let stored = |run: u64| of_lane().find(|serial| serial.run == run).map(|serial| serial.seq);
            let newest = seen.last.map(|serial| serial.run);
            let mut older: Vec<(u64, u64)> = Vec::new();
            for (run, (last, damages)) in seen.runs.iter().filter(|(run, _)| Some(**run) != newest) {
                if *damages < self.damages {
                    older.push((*run, *last));
                }
            }
            // In the order of runs, as far as it is known.
            older.sort_by_key(|(run, _)| of_lane().position(|serial| serial.run == *run));
            for (run, last) in older {
                let more = take(stored(run).map_or(0, |end| end.saturating_sub(last)));
                lost.extend((more > 0).then(|| range(&seen.key, run, last + 1, last + more)));
            }
            for Serial { run, seq } in &seen.begun {
                let before = take(seq - 1);
                lost.extend((before > 0).then(|| range(&seen.key, *run, seq - before, seq - 1)));
            }
            if let Some(Serial { run, seq }) = seen.last {
                let most =
                    stored(run).map_or(if on_record.is_some() { u64::MAX } else { 0 }, |end| end.saturating_sub(seq));
                let more = take(most);
                lost.extend((more > 0).then(|| range(&seen.key, run, seq + 1, seq + more)));
            }
            lost.extend(seen.gaps);
        }
        lost
    }
}

/// What is missing of a lane of which no row could be read: so many of the last that its runs had stored.
fn unseen(key: &LaneKey, rows: u64, runs: &[(LaneKey, Serial)]) -> Vec<Range> {
    let (mut lost, mut missing) = (Vec::new(), rows);
    for (_, Serial { run, seq }) in runs.iter().rev().filter(|(of, _)| of == key) {
        let more = missing.min(*seq);
        if more > 0 {
            lost.push(range(key, *run, seq - more + 1, *seq));
            missing -= more;
        }
    }
    lost
}

fn range(key: &LaneKey, run: u64, first: u64, last: u64) -> Range {
    Range { key: key.clone(), run, first, last, every: 1 }
}

/// What each lane is, and how many rows it is on record with, if that can be read.
fn lanes_of(old: &Connection) -> HashMap<LaneId, (LaneKey, u64)> {
    let read = || -> Result<HashMap<LaneId, (LaneKey, u64)>, rusqlite::Error> {
        let mut statement = old.prepare("SELECT id, pipeline, stream, rows FROM lane")?;
        let lane =
            |row: &rusqlite::Row<'_>| Ok((row.get(0)?, (lane_key(row.get(1)?, row.get(2)?), number(row.get(3)?))));
        statement.query_map([], lane)?.collect()
    };
    read().unwrap_or_default()
}

/// The last number that was stored of each run, in the order of runs, if that can be read.
fn last_of_runs(old: &Connection) -> Vec<(LaneKey, Serial)> {
    let read = || -> Result<Vec<(LaneKey, Serial)>, rusqlite::Error> {
        let mut statement = old.prepare("SELECT pipeline, stream, run, last FROM run ORDER BY id")?;
        let run = |row: &rusqlite::Row<'_>| {
            let run: i64 = row.get(2)?;
            Ok((lane_key(row.get(0)?, row.get(1)?), Serial { run: run.cast_unsigned(), seq: number(row.get(3)?) }))
        };
        statement.query_map([], run)?.collect()
    };
    read().unwrap_or_default()
}

/// How a pass over a damaged database ended.
enum End {
    /// There are no rows after these.
    Last,
    /// There may be more.
    More,
    /// What follows cannot be read.
    Damage,
}

/// Rows from a number on, as far as they can be read, with their boot and whether they are what was written.
fn readable(old: &Connection, from: Number) -> (Vec<(Row, i64, bool)>, End) {
    let mut found = Vec::new();
    let mut pass = || -> Result<End, rusqlite::Error> {
        let mut statement = old.prepare_cached(
            "SELECT number, lane, boot, at, payload, sum FROM item WHERE number >= ?1 ORDER BY number",
        )?;
        let mut rows = statement.query([signed(from)])?;
        while let Some(row) = rows.next()? {
            let at: i64 = row.get(3)?;
            let payload = row.get_ref(4)?.as_blob()?;
            let boot: i64 = row.get(2)?;
            found.push((
                Row { number: number(row.get(0)?), lane: row.get(1)?, at: at.unsigned_abs(), payload: payload.into() },
                boot,
                row.get::<_, i64>(5)? == checksum(payload),
            ));
            if found.len() >= ROWS {
                return Ok(End::More);
            }
        }
        Ok(End::Last)
    };
    let end = pass().unwrap_or(End::Damage);
    (found, end)
}

/// The lowest number from which rows can be read again, beyond what is damaged from `from` on.
fn next_readable(old: &Connection, from: Number) -> Option<Number> {
    // All that is read of a row, or it would be found here and not be readable there.
    let first = |from: Number| -> Result<Option<Number>, rusqlite::Error> {
        let mut statement = old.prepare_cached(
            "SELECT number, lane, boot, at, payload, sum FROM item WHERE number >= ?1 ORDER BY number LIMIT 1",
        )?;
        let row = statement.query_row([signed(from)], |row| {
            let _: (LaneId, i64, i64, i64) = (row.get(1)?, row.get(2)?, row.get(3)?, row.get(5)?);
            row.get_ref(4)?.as_blob()?;
            row.get::<_, i64>(0)
        });
        Ok(row.optional()?.map(number))
    };
    let (mut step, mut bad) = (1_u64, from);
    let mut good = loop {
        let at = from.checked_add(step).filter(|at| i64::try_from(*at).is_ok())?;
        match first(at) {
            Ok(_) => break at,
            Err(_) => (bad, step) = (at, step.checked_mul(2)?),
        }
    };
    // Between the last that could not be read and the first that could; there may be rows even if none come after that.
    while good - bad > 1 {
        let middle = bad + (good - bad) / 2;
        match first(middle) {
            Ok(_) => good = middle,
            Err(_) => bad = middle,
        }
    }
    first(good).ok().flatten()
}
