//! What can be read of a damaged database.
//!
//! Rows are read in the order of their numbers. Where that fails, ever higher numbers are asked for until rows come again:
//! a page that is damaged costs what is in it. What that was is what the database is on record to hold ([`Contents`]) and
//! cannot be read.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use limpet_wire::id::Serial;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::super::book::{LaneId, Number, Row};
use super::super::item::{self, LaneKey};
use super::super::ranges::Range;
use super::super::runs::Remembered;
use super::{Contents, Database, DatabaseError, RunRow, checksum, number, read_runs, signed};

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
    /// The runs of results that it remembered, as far as that could be read, or that were found.
    pub runs: Vec<Remembered>,
}

impl Database {
    /// Reads what can be read of a damaged database into this one, which is new; of it what is `wanted`. `known`: what it
    /// held, by somebody who knows that better than the record in it, which may be damaged, too.
    ///
    /// # Errors
    /// What the new one says. What the old one says ends the salvage.
    pub fn salvage(
        &mut self,
        aside: &Path,
        wanted: impl Fn(Number) -> bool,
        known: Option<Contents>,
    ) -> Result<Salvaged, DatabaseError> {
        let mut rows = 0;
        let Ok(old) = Connection::open(aside) else { return Ok(Salvaged::default()) };
        let boots = self.adopt_boots(&old)?;
        let mut seen = Seen::default();
        let mut from = 0;
        loop {
            let (found, end) = readable(&old, from);
            if let Some((last, ..)) = found.last() {
                from = last.number + 1;
            }
            let mut kept = Vec::with_capacity(found.len());
            for (row, boot, sound) in found {
                // One whose page was read and that is none was written by another version.
                let Some(label) = item::label(&row.payload).ok().filter(|_| sound) else { continue };
                seen.note(row.lane, label);
                if wanted(row.number) {
                    kept.push((row, boots.get(&boot).copied().unwrap_or(NO_BOOT)));
                }
            }
            rows += kept.len() as u64;
            let mut change = self.change()?;
            change.insert(kept.iter().map(|(row, boot)| (row, *boot)))?;
            change.commit()?;
            match end {
                End::Last => break,
                End::More => {}
                End::Damage => match next_readable(from, |from| first_item(&old, from)) {
                    Some(next) => from = next,
                    None => break,
                },
            }
        }
        let on_record = readable_runs(&old);
        let held = known.unwrap_or_else(|| held_on_record(&on_record, &seen, lane_rows(&old).as_ref()));
        let mut runs: Vec<Remembered> = on_record
            .into_iter()
            .map(|row| Remembered { dropped: Some(row.dropped.unwrap_or_default()), ..row.remembered })
            .filter(|run| run.key != LaneKey::Events)
            .collect();
        // Of a run whose record could not be read it is on record from now on what was seen of it.
        let known: HashSet<(LaneKey, u64)> = runs.iter().map(|run| (run.key.clone(), run.run)).collect();
        let found = seen.contents.iter().filter(|(key, run, _)| !known.contains(&((*key).clone(), *run)));
        let found = found.filter(|(key, ..)| **key != LaneKey::Events);
        runs.extend(found.map(|(key, run, numbers)| {
            let last = numbers.last().map_or(0, |range| *range.end());
            Remembered { key: key.clone(), run, last, dropped: Some(Vec::new()) }
        }));
        Ok(Salvaged { rows, lost: seen.missing(&held), runs })
    }

    /// Takes over what a damaged database knows of boots, and gives the ids here of the ids there. A boot of which it
    /// does not say anything any more is one that never knew the time.
    fn adopt_boots(&mut self, old: &Connection) -> Result<HashMap<i64, i64>, DatabaseError> {
        type Boot = (i64, String, Option<i64>, bool);
        let read = || -> Result<Vec<Boot>, rusqlite::Error> {
            let mut statement = old.prepare("SELECT id, kernel, offset, right FROM boot")?;
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?.collect()
        };
        let mut boots = HashMap::new();
        for (id, kernel, offset, right) in read().unwrap_or_default() {
            self.connection.execute(
                "INSERT INTO boot (kernel, offset, right) VALUES (?1, ?2, ?3)
                 ON CONFLICT (kernel) DO UPDATE SET offset = coalesce(offset, ?2), right = max(right, ?3)",
                params![kernel, offset, right],
            )?;
            let new = self.connection.query_row("SELECT id FROM boot WHERE kernel = ?1", [kernel], |row| row.get(0))?;
            boots.insert(id, new);
        }
        Ok(boots)
    }
}

/// The rows that could be read.
#[derive(Debug, Default)]
struct Seen {
    contents: Contents,
    /// Rows of each lane, and the last result or event among them.
    lanes: HashMap<LaneId, (u64, Option<(LaneKey, Serial)>)>,
}

impl Seen {
    fn note(&mut self, lane: LaneId, label: item::Label) {
        let (rows, last) = self.lanes.entry(lane).or_default();
        *rows += 1;
        if let Some(serial) = label.serial {
            self.contents.add(&label.lane, serial);
            *last = Some((label.lane, serial));
        }
    }

    /// What of this was not seen.
    fn missing(&self, held: &Contents) -> Vec<Range> {
        let mut missing = Vec::new();
        for (key, run, numbers) in held.iter() {
            let seen = self.contents.get(key, run).cloned().unwrap_or_default();
            let gaps = numbers.iter().flat_map(|range| seen.gaps(range));
            let range = |gap: std::ops::RangeInclusive<u64>| Range {
                key: key.clone(),
                run,
                first: *gap.start(),
                last: *gap.end(),
                every: 1,
            };
            missing.extend(gaps.map(range));
        }
        missing
    }
}

/// What a damaged database held by its own record. A run whose record cannot be read held at most all that came before
/// what was seen of it, and of the last of a lane so much more as rows are missing; so much is told rather than too little.
fn held_on_record(on_record: &[RunRow], seen: &Seen, lanes: Option<&HashMap<LaneId, u64>>) -> Contents {
    let mut held = Contents::default();
    for RunRow { remembered: Remembered { key, run, last, .. }, held: numbers, .. } in on_record {
        *held.run(key, *run) = match numbers {
            Ok(numbers) => numbers.clone(),
            Err(_) => std::iter::once(1..=*last).filter(|range| range.start() <= range.end()).collect(),
        };
    }
    let read: HashSet<(&LaneKey, u64)> =
        on_record.iter().map(|RunRow { remembered, .. }| (&remembered.key, remembered.run)).collect();
    for (key, run, numbers) in seen.contents.iter().filter(|(key, run, _)| !read.contains(&(*key, *run))) {
        let last = numbers.last().map_or(0, |range| *range.end());
        held.run(key, run).insert(1..=last);
    }
    for (lane, (rows, last)) in &seen.lanes {
        let missing = lanes.and_then(|lanes| lanes.get(lane)).map_or(0, |all| all.saturating_sub(*rows));
        if let Some((key, Serial { run, seq })) = last
            && missing > 0
            && !read.contains(&(key, *run))
        {
            held.run(key, *run).insert(*seq..=seq.saturating_add(missing));
        }
    }
    held
}

/// How many rows each lane is on record with, if that can be read.
fn lane_rows(old: &Connection) -> Option<HashMap<LaneId, u64>> {
    let read = || -> Result<HashMap<LaneId, u64>, rusqlite::Error> {
        let mut statement = old.prepare("SELECT id, rows FROM lane")?;
        statement.query_map([], |row| Ok((row.get(0)?, number(row.get(1)?))))?.collect()
    };
    read().ok()
}

/// The runs that a damaged database remembers, as far as they can be read.
fn readable_runs(old: &Connection) -> Vec<RunRow> {
    let (mut runs, mut from) = (Vec::<RunRow>::new(), 0);
    loop {
        let pass = read_runs(old, from, |run| {
            runs.extend(run.ok());
            Ok(())
        });
        from = from.max(runs.last().map_or(0, |run| run.id + 1));
        match pass.is_err().then(|| next_readable(from, |from| first_run(old, from))).flatten() {
            Some(next) => from = next,
            None => return runs,
        }
    }
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

/// The first item from a number on, if it can be read.
fn first_item(old: &Connection, from: Number) -> Result<Option<Number>, rusqlite::Error> {
    // All that is read of a row, or it would be found here and not be readable there.
    let mut statement = old.prepare_cached(
        "SELECT number, lane, boot, at, payload, sum FROM item WHERE number >= ?1 ORDER BY number LIMIT 1",
    )?;
    let row = statement.query_row([signed(from)], |row| {
        let _: (LaneId, i64, i64, i64) = (row.get(1)?, row.get(2)?, row.get(3)?, row.get(5)?);
        row.get_ref(4)?.as_blob()?;
        row.get::<_, i64>(0)
    });
    Ok(row.optional()?.map(number))
}

/// The same of runs, by the place where they stand.
fn first_run(old: &Connection, from: u64) -> Result<Option<u64>, rusqlite::Error> {
    let mut statement = old.prepare_cached(
        "SELECT id, pipeline, stream, run, last, dropped, held FROM run WHERE id >= ?1 ORDER BY id LIMIT 1",
    )?;
    let row = statement.query_row([signed(from)], |row| {
        let _: (String, String, i64, i64) = (row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?);
        let _: (String, String) = (row.get(5)?, row.get(6)?);
        row.get::<_, i64>(0)
    });
    Ok(row.optional()?.map(number))
}

/// The lowest number from which rows can be read again, beyond what is damaged from `from` on, if there are any. `first`
/// gives the first row from a number on.
fn next_readable(from: u64, first: impl Fn(u64) -> Result<Option<u64>, rusqlite::Error>) -> Option<u64> {
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
