//! Small files that must neither be half of anything nor lost to a flipped bit, kept twice.
//!
//! Each is one JSON object, `{"sha256": …, "v": 1, …}`: the first key is the SHA-256 of the object without that key. Its
//! copy is the same file again, written after the first whenever more than progress has changed, and read where the first
//! is not whole.
//!
//! The first is what counts: once it has its name, the change stands. What fails after that is told of, not refused, and a
//! copy that is behind or not whole is written again whenever somebody reads or writes.

use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::files::{self, Lock};
use super::record::{REJECTED_MAX, Rejection};
use super::{Store, shown};
use crate::DepotError;
use crate::package::Digest;

/// Longest reason that is kept, in bytes.
pub(super) const REASON_MAX: usize = 1000;

/// What such a file holds.
pub(super) trait Kept: Clone + Default + PartialEq + Serialize + DeserializeOwned {
    /// What it is called in messages.
    const WHAT: &'static str;
    /// Newest version of the file.
    const VERSION: u64;
    /// Largest file, in bytes.
    const BYTES_MAX: usize;
    /// What it means, and what to do, where the file and its copy are both lost.
    const LOST: &'static str;
    /// Whether nothing takes its place then, and the agent goes on; else that is an error until a person comes.
    const BEGINS_ANEW: bool;

    /// Whether everything in it can be so; else what was found and expected.
    fn check(&self) -> Result<(), String>;
    /// What may not grow for ever, made short.
    fn bound(&mut self);
    /// Whether the copy may stay as it is, since what changed is no loss.
    fn differs_by_progress_alone(&self, other: &Self) -> bool;

    /// As the file holds it, bounded.
    fn to_text(&self) -> String {
        let mut bounded = self.clone();
        bounded.bound();
        let json = serde_json::to_string(&bounded).expect("plain values are always JSON");
        let json = format!("{{\"v\":{},{}", Self::VERSION, &json[1..]);
        format!("{{\"sha256\":\"{}\",{}\n", Digest::of(json.as_bytes()), &json[1..])
    }

    /// Reads the file; the error says what was found and expected.
    fn from_text(bytes: &[u8]) -> Result<Self, String> {
        let none = || format!("is no {}", Self::WHAT);
        let text = std::str::from_utf8(bytes).map_err(|_| none())?;
        let rest = text.strip_prefix("{\"sha256\":\"").ok_or_else(none)?;
        let (sha256, rest) = rest.split_once("\",").ok_or_else(none)?;
        let json = format!("{{{}", rest.trim_end());
        let found = Digest::of(json.as_bytes()).to_string();
        if found != sha256 {
            let expected = shown(sha256);
            return Err(format!("is damaged, or was changed by hand: its SHA-256 is {found}; expected {expected}"));
        }
        #[derive(Deserialize)]
        struct Version {
            v: u64,
        }
        // The version before the rest, which may look different in another.
        let Version { v } = serde_json::from_str(&json).map_err(|error| format!("{}: {error}", none()))?;
        if v > Self::VERSION {
            return Err(format!("has version {v}; the newest that this program knows is {}", Self::VERSION));
        }
        let kept: Self = serde_json::from_str(&json).map_err(|error| format!("{}: {error}", none()))?;
        kept.check()?;
        Ok(kept)
    }
}

/// Of too many rejections the oldest go, and too long reasons are cut.
pub(super) fn bound_rejections(rejected: &mut std::collections::BTreeMap<String, Rejection>) {
    while rejected.len() > REJECTED_MAX {
        let oldest = rejected.iter().min_by_key(|(_, rejection)| rejection.at).map(|(key, _)| key.clone());
        rejected.remove(&oldest.expect("there are more than none"));
    }
    for rejection in rejected.values_mut() {
        let end = rejection.reason.floor_char_boundary(REASON_MAX);
        rejection.reason.truncate(end);
    }
}

/// The file, or none if it is not there.
pub(super) fn read<K: Kept>(path: &Path) -> Result<Option<K>, DepotError> {
    let Some(bytes) = files::read(path, K::BYTES_MAX)? else { return Ok(None) };
    K::from_text(&bytes).map(Some).map_err(|reason| DepotError::store(path, reason))
}

/// Whether a copy is not whole, or lacks more than progress.
fn is_behind<K: Kept>(copy: &Path, kept: &K) -> bool {
    let copied: Option<K> = read(copy).ok().flatten();
    copied.is_none_or(|copied| !copied.differs_by_progress_alone(kept))
}

impl Store {
    /// What the file or its copy holds; nothing, if neither was ever written. What is not whole is put right, and told of
    /// in [`Store::notices`].
    pub(super) fn kept<K: Kept>(&self, paths: &[PathBuf; 2]) -> Result<K, DepotError> {
        let [main, copy] = paths;
        let whole = match read(main) {
            Ok(Some(kept)) if !is_behind(copy, &kept) => return Ok(kept),
            Ok(None) if !copy.exists() => return Ok(K::default()),
            Ok(whole) => whole,
            // Good enough for whoever only reads.
            Err(error) if !error.is_damage() => return read(copy).ok().flatten().ok_or(error),
            Err(_) => None,
        };
        // The copy is behind for a moment whenever somebody writes; under the lock it shows whether it stayed so.
        let locked = Lock::exclusive(&self.lock_path()).and_then(|_lock| self.kept_locked(paths));
        match whole {
            Some(whole) => Ok(locked.unwrap_or(whole)),
            None => locked,
        }
    }

    /// The same under the exclusive lock, which putting it right needs.
    pub(super) fn kept_locked<K: Kept>(&self, paths: &[PathBuf; 2]) -> Result<K, DepotError> {
        let [main, copy] = paths;
        let damage = match (read(main), copy.exists()) {
            (Ok(Some(kept)), _) => {
                self.copy_locked(paths, &kept);
                return Ok(kept);
            }
            (Ok(None), false) => return Ok(K::default()),
            (Ok(None), true) => DepotError::store(main, "is not there, but its copy is"),
            (Err(error), _) => error,
        };
        // What the system does not give today may be whole, and newer than the copy, tomorrow: nothing is done by the copy.
        if !damage.is_damage() {
            return Err(damage);
        }
        let kept = match read::<K>(copy) {
            Ok(Some(kept)) => kept,
            copied => return self.lost(paths, damage, copied.err()),
        };
        // A disk that is full keeps nobody from reading.
        match self.try_replace(main, kept.to_text().as_bytes()) {
            Ok(()) => self.notice(format!("{damage}; its copy took its place")),
            Err(error) => {
                self.notice(format!("{damage}; its copy stands in for it, and did not take its place: {error}"))
            }
        }
        Ok(kept)
    }

    /// Neither the file nor its copy is of any help.
    fn lost<K: Kept>(
        &self,
        [main, copy]: &[PathBuf; 2],
        damage: DepotError,
        of_copy: Option<DepotError>,
    ) -> Result<K, DepotError> {
        // What the system does not give today may be whole tomorrow.
        if !damage.is_damage() {
            return Err(damage);
        }
        if let Some(error) = of_copy.filter(|error| !error.is_damage()) {
            return Err(error);
        }
        if !K::BEGINS_ANEW {
            let reason = format!("{damage}; its copy {} does not help; {}", copy.display(), K::LOST);
            return Err(DepotError::store(main, reason));
        }
        let mut aside = Vec::new();
        for path in [main, copy] {
            aside.extend(files::put_aside(path)?.map(|path| path.display().to_string()));
        }
        let (copy, aside) = (copy.display(), aside.join(" and "));
        self.notice(format!("{damage}; its copy {copy} does not help; put aside as {aside}; {}", K::LOST));
        Ok(K::default())
    }

    /// Writes both. The old ones stand where that fails; what goes wrong after the change stands is told of in
    /// [`Store::notices`].
    pub(super) fn set_kept_locked<K: Kept>(&self, paths: &[PathBuf; 2], kept: &K) -> Result<(), DepotError> {
        let [main, _] = paths;
        let refuse = |reason: String| DepotError::store(main, format!("is not written: {reason}"));
        kept.check().map_err(refuse)?;
        let text = kept.to_text();
        if text.len() > K::BYTES_MAX {
            return Err(refuse(format!("it would have {} bytes; expected at most {}", text.len(), K::BYTES_MAX)));
        }
        if let Err(error) = self.try_replace(main, text.as_bytes()) {
            // The last step syncs the folder; the file has its name by then, and every reader finds it.
            if !files::read(main, K::BYTES_MAX).is_ok_and(|found| found.is_some_and(|found| found == text.as_bytes())) {
                return Err(files::writing(main, error));
            }
            let main = main.display();
            self.notice(format!("{main}: is written, but a power cut may bring back the one before: {error}"));
        }
        self.copy_locked(paths, kept);
        Ok(())
    }

    /// Writes the copy if it is behind. Where that fails it is tried again by whoever comes next, and told of once.
    fn copy_locked<K: Kept>(&self, [main, copy]: &[PathBuf; 2], kept: &K) {
        let copied = match is_behind(copy, kept) {
            true => self.try_replace(copy, kept.to_text().as_bytes()),
            false => Ok(()),
        };
        let mut behind = self.inner.behind.lock().unwrap_or_else(PoisonError::into_inner);
        match copied {
            Ok(()) => _ = behind.remove(copy),
            Err(error) if behind.insert(copy.clone()) => self.notice(format!(
                "{}: this copy of {} could not be written: {error}; it is tried again",
                copy.display(),
                main.display()
            )),
            Err(_) => {}
        }
    }

    /// Changes it while no other process can. Nothing is written if `change` changes nothing.
    pub(super) fn update_kept<K: Kept>(
        &self,
        paths: &[PathBuf; 2],
        change: impl FnOnce(&mut K),
    ) -> Result<K, DepotError> {
        let _lock = Lock::exclusive(&self.lock_path())?;
        let before: K = self.kept_locked(paths)?;
        let mut kept = before.clone();
        change(&mut kept);
        if kept != before {
            self.set_kept_locked(paths, &kept)?;
        }
        Ok(kept)
    }
}
