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
use super::super::runs::Remembered;
use super::{Database, DatabaseError, checksum, insert, lane_key, number, read_runs, signed};

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
    /// The runs that it remembered, if that could be read.
    pub runs: Vec<Remembered>,
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
                let Ok(label) = item::label(&row.payload) else {
                    witness.damaged();
                    continue;
                };
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
        let mut runs = readable_runs(&old);
        let stored: Vec<(LaneKey, Serial)> =
            runs.iter().map(|run| (run.key.clone(), Serial { run: run.run, seq: run.last })).collect();
        // Of a run that is not on record any more it is on record from now on what was seen of it.
        for (key, Serial { run, seq: last }) in witness.runs() {
            match runs.iter_mut().find(|known| known.run == run && known.key == key) {
                Some(known) => known.last = known.last.max(last),
                None => runs.push(Remembered { key, run, last, dropped: Some(Vec::new()) }),
            }
        }
        Ok(Salvaged { rows, lost: witness.lost(lanes_of(&old).as_ref(), &stored), runs })
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
    first: Option<Serial>,
    /// The last result, and how often there had been damage when it was seen.
    last: Option<Serial>,
    damages: u32,
    holes: Vec<Hole>,
    /// Where numbers are left out, though nothing was found to be damaged there.
    gaps: Vec<Hole>,
    /// The last number of each run, in their order.
    runs: Vec<Serial>,
}

/// A place in a lane where there was damage: between these results, if there are any before and after it.
#[derive(Debug, Clone, Copy)]
struct Hole {
    before: Option<Serial>,
    after: Option<Serial>,
}

impl Witness {
    fn see(&mut self, lane: LaneId, label: item::Label) {
        let new = || Seen {
            key: label.lane,
            rows: 0,
            first: None,
            last: None,
            damages: 0,
            holes: Vec::new(),
            gaps: Vec::new(),
            runs: Vec::new(),
        };
        let seen = self.lanes.entry(lane).or_insert_with(new);
        seen.rows += 1;
        let Some(serial) = label.serial else { return };
        let between = Hole { before: seen.last, after: Some(serial) };
        if seen.damages < self.damages {
            seen.holes.push(between);
        } else if seen.last.is_some_and(|last| last.run != serial.run || last.seq + 1 < serial.seq) {
            seen.gaps.push(between);
        }
        match seen.runs.last_mut().filter(|last| last.run == serial.run) {
            Some(last) => last.seq = last.seq.max(serial.seq),
            None => seen.runs.push(serial),
        }
        seen.first.get_or_insert(serial);
        (seen.last, seen.damages) = (Some(serial), self.damages);
    }

    /// The runs that were seen, and the last number of each.
    fn runs(&self) -> Vec<(LaneKey, Serial)> {
        self.lanes.values().flat_map(|seen| seen.runs.iter().map(|run| (seen.key.clone(), *run))).collect()
    }

    /// What comes next comes after damage.
    fn damaged(&mut self) {
        self.damages += 1;
    }

    fn key(&self, lane: LaneId) -> Option<LaneKey> {
        self.lanes.get(&lane).map(|seen| seen.key.clone())
    }

    /// What may be missing, if the lanes held so many rows, and so much of each run was stored, by the order of runs. It
    /// is all that cannot be shown to have been delivered, and thus often too much: a result that is gone and told of by
    /// nobody is worse than one that is told of and was delivered. `held`: none if that cannot be read.
    fn lost(mut self, held: Option<&HashMap<LaneId, (LaneKey, u64)>>, runs: &[(LaneKey, Serial)]) -> Vec<Range> {
        let mut lost = Vec::new();
        let mut tell = |key: &LaneKey, holes: Vec<Hole>, missing: u64| {
            let of_lane: Vec<Serial> = runs.iter().filter(|(of, _)| of == key).map(|(_, serial)| *serial).collect();
            let ranges = holes.into_iter().flat_map(|hole| hole.ranges(&of_lane, missing));
            lost.extend(ranges.map(|(run, first, last)| range(key, run, first, last)));
        };
        let all = || vec![Hole { before: None, after: None }];
        let unseen: Vec<(LaneKey, u64)> = match held {
            Some(held) => {
                held.iter().filter(|(id, _)| !self.lanes.contains_key(id)).map(|(_, lane)| lane.clone()).collect()
            }
            // Any stream that had a run may have had rows, too.
            None if self.damages > 0 => {
                let seen: BTreeSet<&LaneKey> = self.lanes.values().map(|seen| &seen.key).collect();
                let keys: BTreeSet<&LaneKey> =
                    runs.iter().map(|(key, _)| key).filter(|key| !seen.contains(key)).collect();
                keys.into_iter().map(|key| (key.clone(), 1)).collect()
            }
            None => Vec::new(),
        };
        for (key, rows) in unseen.iter().filter(|(_, rows)| *rows > 0) {
            tell(key, all(), *rows);
        }
        for (id, mut seen) in std::mem::take(&mut self.lanes) {
            let missing = held.and_then(|held| Some(held.get(&id)?.1.saturating_sub(seen.rows)));
            if missing == Some(0) {
                continue;
            }
            if seen.damages < self.damages {
                seen.holes.push(Hole { before: seen.last, after: None });
            }
            if seen.holes.is_empty() && missing.is_some() {
                // It is not known where: wherever numbers are left out, and before and after them all.
                seen.holes = seen.gaps;
                seen.holes.extend([Hole { before: None, after: seen.first }, Hole { before: seen.last, after: None }]);
            }
            tell(&seen.key, seen.holes, missing.unwrap_or(0));
        }
        lost
    }
}

impl Hole {
    /// What may have been in it, as runs with a first and a last number, if so much of each run of the lane was stored, in
    /// their order. Of a run that is not on record no end is known, other than that so many rows are missing.
    fn ranges(self, runs: &[Serial], missing: u64) -> Vec<(u64, u64, u64)> {
        let place = |run: u64| runs.iter().position(|known| known.run == run);
        let mut ranges = Vec::new();
        match (self.before, self.after) {
            (Some(before), Some(after)) if before.run == after.run => {
                ranges.push((before.run, before.seq + 1, after.seq.saturating_sub(1)));
            }
            (before, after) => {
                let from = before.and_then(|serial| place(serial.run));
                ranges.extend(before.map(|Serial { run, seq }| {
                    let last = from.map_or(seq.saturating_add(missing), |place| runs[place].seq);
                    (run, seq + 1, last)
                }));
                let upto = after.and_then(|serial| place(serial.run)).unwrap_or(runs.len());
                let between = runs.get(from.map_or(0, |place| place + 1)..upto).unwrap_or_default();
                ranges.extend(between.iter().map(|run| (run.run, 1, run.seq)));
                ranges.extend(after.map(|Serial { run, seq }| (run, 1, seq.saturating_sub(1))));
            }
        }
        ranges.retain(|(_, first, last)| first <= last);
        ranges
    }
}

fn range(key: &LaneKey, run: u64, first: u64, last: u64) -> Range {
    Range { key: key.clone(), run, first, last, every: 1 }
}

/// What each lane is, and how many rows it is on record with, if that can be read.
fn lanes_of(old: &Connection) -> Option<HashMap<LaneId, (LaneKey, u64)>> {
    let read = || -> Result<HashMap<LaneId, (LaneKey, u64)>, rusqlite::Error> {
        let mut statement = old.prepare("SELECT id, pipeline, stream, rows FROM lane")?;
        let lane =
            |row: &rusqlite::Row<'_>| Ok((row.get(0)?, (lane_key(row.get(1)?, row.get(2)?), number(row.get(3)?))));
        statement.query_map([], lane)?.collect()
    };
    read().ok()
}

/// The runs that a damaged database remembers, as far as they can be read.
fn readable_runs(old: &Connection) -> Vec<Remembered> {
    let mut runs = Vec::new();
    // What was read before it ends is taken.
    _ = read_runs(old, |run| {
        runs.push(run.unwrap_or_else(|(run, _)| run));
        Ok(())
    });
    runs
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
