//! The last results of each pipeline on the disk, so that they can still be asked for after a restart or a power cut.
//!
//! A database of its own, `history.db`, written by a thread of its own, once in a commit interval. It promises less than the
//! outbox: what comes faster than the disk takes it is left out, the log is synced at checkpoints only, and a file that is
//! damaged is removed. Nothing waits for it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension as _, params};

use super::super::boot_id;
use super::super::database::DatabaseError;
use super::Kept;
use crate::wall::Wall;

/// Name of the database under the state folder.
pub const DATABASE: &str = "history.db";
/// Results that wait for the disk at most.
const QUEUE: usize = 4096;
/// Version of the tables.
const VERSION: i64 = 1;
/// Memory for pages, in KiB.
const CACHE_KIB: i64 = 256;
/// So many more than are to be kept are there before the oldest go, in eighths: one deletion for many.
const SLACK: u32 = 8;

/// The disk's side of a history.
#[derive(Debug)]
pub struct Disk {
    results: SyncSender<Kept>,
    ended: Receiver<()>,
}

impl Disk {
    /// Opens the history of a state folder and starts its thread. Gives what is on the disk, the oldest first.
    ///
    /// # Errors
    /// If there is no thread to be had, or the disk says no.
    pub fn open(state: &Path, most: u32, interval: Duration) -> Result<(Self, Vec<Kept>), String> {
        let path = state.join(DATABASE);
        let shown = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let (file, found) = match File::open(&path, most) {
            Err(DatabaseError::Damaged(why)) => {
                tracing::warn!(path = %path.display(), why, "the history is damaged, and begins anew");
                remove(&path).map_err(|error| shown(&error))?;
                File::open(&path, most)
            }
            opened => opened,
        }
        .map_err(|error| shown(&error))?;
        let (results, taken) = mpsc::sync_channel(QUEUE);
        let (end, ended) = mpsc::channel();
        let at = path.clone();
        let keep = move || {
            keep(file, at, &taken, interval);
            // Whoever waits for it may be gone.
            _ = end.send(());
        };
        std::thread::Builder::new().name("history".into()).spawn(keep).map_err(|error| shown(&error))?;
        Ok((Self { results, ended }, found))
    }

    /// Hands over a result. One for which there is no room is left out.
    pub fn keep(&self, kept: Kept) {
        _ = self.results.try_send(kept);
    }

    /// Writes what was handed over, until then at the latest.
    pub fn close(self, until: Instant) {
        let Self { results, ended } = self;
        drop(results);
        _ = ended.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

/// Writes what comes, an interval's worth at a time, until nobody hands over anything any more.
fn keep(mut file: File, path: PathBuf, taken: &Receiver<Kept>, interval: Duration) {
    let mut failing = false;
    let mut open = true;
    while open {
        let Ok(first) = taken.recv() else { return };
        let (mut batch, end) = (vec![first], Instant::now() + interval);
        while batch.len() < QUEUE {
            match taken.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(kept) => batch.push(kept),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => {
                    open = false;
                    break;
                }
            }
        }
        let mut outcome = file.write(&batch);
        if matches!(outcome, Err(DatabaseError::Damaged(_))) {
            tracing::warn!(path = %path.display(), "the history is damaged, and begins anew");
            outcome = match remove(&path).map(|()| File::open(&path, file.most)) {
                Ok(Ok((new, _))) => {
                    file = new;
                    file.write(&batch)
                }
                Ok(Err(error)) => Err(error),
                Err(error) => Err(DatabaseError::Refused(error.to_string())),
            };
        }
        match outcome {
            Ok(()) => failing = false,
            Err(error) if !std::mem::replace(&mut failing, true) => {
                tracing::warn!(%error, "results cannot be written to the history");
            }
            Err(_) => {}
        }
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    for end in ["", "-wal", "-shm"] {
        match std::fs::remove_file(PathBuf::from(format!("{}{end}", path.display()))) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The database.
#[derive(Debug)]
struct File {
    connection: Connection,
    most: u32,
    /// The row of this boot, once there is one, and how many results there are of each pipeline.
    boot: Option<i64>,
    counts: HashMap<String, u64>,
}

impl File {
    fn open(path: &Path, most: u32) -> Result<(Self, Vec<Kept>), DatabaseError> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version == 0 {
            connection.execute_batch(&format!(
                "BEGIN;
                 CREATE TABLE boot (id INTEGER PRIMARY KEY, kernel TEXT UNIQUE NOT NULL, offset INTEGER) STRICT;
                 CREATE TABLE result (id INTEGER PRIMARY KEY, pipeline TEXT NOT NULL, stream TEXT NOT NULL, boot INTEGER NOT NULL, at INTEGER NOT NULL, payload BLOB NOT NULL) STRICT;
                 CREATE INDEX result_of ON result (pipeline, id);
                 PRAGMA user_version = {VERSION};
                 COMMIT;"
            ))?;
        } else if version != VERSION {
            return Err(DatabaseError::Damaged(format!("it is of version {version}")));
        }
        let mut file = Self { connection, most, boot: None, counts: HashMap::new() };
        let find = "SELECT id FROM boot WHERE kernel = ?1";
        file.boot = file.connection.query_row(find, [boot_id()], |row| row.get(0)).optional()?;
        let found = file.read()?;
        Ok((file, found))
    }

    /// What is there, the oldest first, as seen from this boot.
    fn read(&mut self) -> Result<Vec<Kept>, DatabaseError> {
        let now = Wall::now().offset();
        let mut statement = self.connection.prepare(
            "SELECT pipeline, stream, result.boot, at, boot.offset, payload
             FROM result LEFT JOIN boot ON boot.id = result.boot ORDER BY result.id",
        )?;
        let mut rows = statement.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let (pipeline, stream): (String, String) = (row.get(0)?, row.get(1)?);
            let (boot, at, then): (i64, i64, Option<i64>) = (row.get(2)?, row.get(3)?, row.get(4)?);
            *self.counts.entry(pipeline.clone()).or_default() += 1;
            // Of a boot that never knew the time, or if this one does not, nobody knows how long ago it was.
            let shifted = then.zip(now).map(|(then, now)| at.saturating_add(then).saturating_sub(now));
            let at = if Some(boot) == self.boot { Some(at) } else { shifted };
            let payload = row.get_ref(5)?.as_blob().map_err(rusqlite::Error::from)?;
            found.push(Kept { pipeline: pipeline.into(), stream: stream.into(), at, payload: payload.into() });
        }
        Ok(found)
    }

    fn write(&mut self, batch: &[Kept]) -> Result<(), DatabaseError> {
        let transaction = self.connection.transaction()?;
        let known = "INSERT INTO boot (kernel, offset) VALUES (?1, ?2)
             ON CONFLICT (kernel) DO UPDATE SET offset = coalesce(?2, offset) RETURNING id";
        let offset = Wall::now().offset();
        let boot: i64 = transaction.query_row(known, params![boot_id(), offset], |row| row.get(0))?;
        let mut counts = self.counts.clone();
        {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO result (pipeline, stream, boot, at, payload) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?;
            for Kept { pipeline, stream, at, payload } in batch {
                insert.execute(params![&**pipeline, &**stream, boot, at.unwrap_or(0), &**payload])?;
                *counts.entry(pipeline.to_string()).or_default() += 1;
            }
            let mut delete = transaction.prepare_cached(
                "DELETE FROM result WHERE pipeline = ?1 AND id <=
                 (SELECT id FROM result WHERE pipeline = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
            )?;
            let over = u64::from(self.most + self.most / SLACK);
            for (pipeline, count) in counts.iter_mut().filter(|(_, count)| **count > over) {
                *count -= delete.execute(params![pipeline, self.most])? as u64;
            }
        }
        transaction.commit()?;
        (self.boot, self.counts) = (Some(boot), counts);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::now;
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn kept(pipeline: &str, number: u8) -> Kept {
        let at = Some(now());
        Kept { pipeline: pipeline.into(), stream: "s".into(), at, payload: [number].into() }
    }

    fn open(folder: &Path) -> (Disk, Vec<(String, u8)>) {
        let (disk, found) = Disk::open(folder, 8, Duration::from_millis(1)).unwrap();
        (disk, found.iter().map(|kept| (kept.pipeline.to_string(), kept.payload[0])).collect())
    }

    #[test]
    fn the_last_of_each_pipeline_are_there_after_a_restart_and_their_age_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let (disk, found) = open(folder.path());
        assert!(found.is_empty());
        (1..=100).for_each(|number| disk.keep(kept("p", number)));
        disk.keep(kept("q", 1));
        disk.close(Instant::now() + LIMIT);
        let (disk, found) = open(folder.path());
        let of_p: Vec<u8> = found.iter().filter(|(pipeline, _)| pipeline == "p").map(|(_, number)| *number).collect();
        assert!((8..=9).contains(&of_p.len()) && of_p.iter().copied().eq(101 - of_p.len() as u8..=100), "{of_p:?}");
        assert!(found.contains(&("q".into(), 1)));
        disk.close(Instant::now() + LIMIT);
    }

    #[test]
    fn of_another_boot_the_time_is_shifted_and_of_one_that_never_knew_it_unknown() {
        let folder = tempfile::tempdir().unwrap();
        let ten_seconds = 10_000_000_000;
        let shift = |offset: Option<i64>| {
            let (disk, _) = open(folder.path());
            disk.keep(Kept { at: Some(ten_seconds), ..kept("p", 1) });
            disk.close(Instant::now() + LIMIT);
            let connection = Connection::open(folder.path().join(DATABASE)).unwrap();
            connection.execute("UPDATE boot SET kernel = 'another', offset = ?1", [offset]).unwrap();
            drop(connection);
            let (_, found) = File::open(&folder.path().join(DATABASE), 8).unwrap();
            remove(&folder.path().join(DATABASE)).unwrap();
            found[0].at
        };
        // That boot began an hour before this one.
        let hour = 3_600_000_000_000;
        let now = Wall::now().offset().expect("this machine knows the time");
        let at = shift(Some(now - hour)).unwrap();
        assert!((at - (ten_seconds - hour)).abs() < 1_000_000_000, "{at}");
        assert_eq!(shift(None), None);
    }

    #[test]
    fn one_that_is_damaged_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(DATABASE), [0xa5; 8192]).unwrap();
        let (disk, found) = open(folder.path());
        assert!(found.is_empty());
        disk.keep(kept("p", 7));
        disk.close(Instant::now() + LIMIT);
        assert_eq!(open(folder.path()).1, [("p".to_owned(), 7)]);
    }
}
