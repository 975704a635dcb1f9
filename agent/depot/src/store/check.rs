//! What can be dropped, and what is no longer as it was written.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use limpet_wire::depot::{Hex, Index, MESSAGE_MAX, Sha256, index_name, parse_hex};

use super::files::{self, Lock};
use super::kept::read as read_kept;
use super::{Configured, Record, Store, recorded_model};
use crate::DepotError;
use crate::package::Digest;

/// What a collection dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Files.
    pub files: u64,
    /// Bytes that they took on the disk.
    pub bytes: u64,
    /// Whether nothing was looked at, because a delivery is going on.
    pub held: bool,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// Chunks that were read.
    pub chunks: u64,
    /// Bytes that they have.
    pub bytes: u64,
    /// Files that are not what was written.
    pub damaged: Vec<Damaged>,
    /// Versions that are not all there.
    pub missing: Vec<Missing>,
    /// Files that nothing names.
    pub stray: Vec<PathBuf>,
    /// Whether damaged and stray files are gone now, and records put right from their copies.
    pub repaired: bool,
}

impl Checked {
    /// Whether all is as it was written.
    pub fn is_whole(&self) -> bool {
        self.damaged.is_empty() && self.missing.is_empty() && self.stray.is_empty()
    }
}

/// A file that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// The file.
    pub path: PathBuf,
    /// A sentence that names the file, what was found and what was expected.
    pub reason: String,
}

/// A version that is not all there: it is being fetched, or something was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Name of the model.
    pub model: String,
    /// Its version.
    pub version: String,
    /// How many of its chunks are not there; none if its index is not there, so that nobody knows.
    pub chunks: Option<usize>,
}

impl Store {
    /// Drops the chunks and indexes that no record needs (for what serves, may serve again, is on trial, or comes and goes
    /// with a configuration) and that `wanted` does not name, by model and version. Drops nothing while somebody holds the
    /// depot ([`Store::hold`]).
    ///
    /// # Errors
    /// [`DepotError`] if a record, or an index that is needed, cannot be read: then it is not known what may go, and
    /// nothing goes.
    pub fn collect(&self, wanted: &[(String, String)]) -> Result<Collected, DepotError> {
        let _lock = Lock::exclusive(&self.lock_path())?;
        let Some(_hold) = Lock::try_exclusive(&self.hold_path())? else {
            return Ok(Collected { held: true, ..Collected::default() });
        };
        self.remove_temporary()?;
        let records: Vec<(String, Record)> = self
            .recorded()?
            .into_iter()
            .map(|model| self.record_locked(&model).map(|record| (model, record)))
            .collect::<Result<_, _>>()?;
        for (model, record) in &records {
            // Without its index the chunks of what serves would look like nobody's. Of an older one they are of no use.
            if let Some(active) = &record.active
                && self.index(model, &active.version)?.is_none()
            {
                let path = self.indexes().join(index_name(model, &active.version));
                let reason = "is not there, though this version serves; nothing is dropped before it is fetched again";
                return Err(DepotError::store(&path, reason));
            }
        }
        let configured: Configured = self.kept_locked(&self.configured_paths())?;
        let with_it = configured.records().map(|(model, record)| (model.to_owned(), record.clone()));
        let records: Vec<(String, Record)> = records.into_iter().chain(with_it).collect();
        let needed = |index: &Index| {
            let package = Hex(&index.package).to_string();
            wanted.iter().any(|(model, version)| (model, version) == (&index.model, &index.version))
                || records.iter().any(|(model, record)| *model == index.model && record.names(&index.version, &package))
        };
        let mut kept: HashSet<Sha256> = HashSet::new();
        let mut dropped = Vec::new();
        for path in files::list(&self.indexes())? {
            match self.read_index(&path) {
                Ok(Some(index)) if needed(&index) => kept.extend(index.chunks.iter().map(|chunk| chunk.stored)),
                Ok(Some(_)) => dropped.push(path),
                Ok(None) => {}
                Err(error) => {
                    let named = |model: &str, version: &str| files::name(&path) == index_name(model, version);
                    let in_record = |(model, record): &(String, Record)| {
                        record.installed().any(|one| named(model, &one.version))
                            || record.trial.is_some() && files::name(&path).starts_with(&format!("{model}-"))
                    };
                    if records.iter().any(in_record) || wanted.iter().any(|(model, version)| named(model, version)) {
                        return Err(error);
                    }
                    dropped.push(path);
                }
            }
        }
        for (path, digest) in self.stored()? {
            if digest.is_some_and(|digest| !kept.contains(&digest)) {
                dropped.push(path);
            }
        }
        // Indexes come first: none names a chunk that was dropped.
        let mut collected = Collected::default();
        for path in dropped {
            if let Some(bytes) = files::remove(&path)? {
                collected.files += 1;
                collected.bytes += bytes;
            }
        }
        Ok(collected)
    }

    /// Reads everything and tells what is not as it was written. `repair` removes what is damaged or stray, so that it is
    /// fetched again, and puts records right from their copies; a record that is lost twice goes too, and its model is
    /// fetched and proved as if it was new (that of configurations is put aside, see [`Store::configured`]).
    ///
    /// # Errors
    /// [`DepotError`] if a folder cannot be read or a file not be removed, and if something cannot be read for a reason
    /// that says nothing of the file: what is whole is never removed for that.
    pub fn check(&self, repair: bool) -> Result<Checked, DepotError> {
        // What is collected while it is looked at would look as if it was missing. Who may not write finds the same without.
        let hold = self.hold().ok();
        let mut checked = Checked::default();
        let mut named: HashSet<Sha256> = HashSet::new();
        let mut indexed: HashSet<(String, String)> = HashSet::new();
        for path in files::list(&self.indexes())? {
            match self.read_index(&path) {
                Ok(Some(index)) if files::name(&path) == index_name(&index.model, &index.version) => {
                    named.extend(index.chunks.iter().map(|chunk| chunk.stored));
                    let chunks = self.missing(&index).len();
                    let (model, version) = (index.model, index.version);
                    if chunks > 0 {
                        let (model, version) = (model.clone(), version.clone());
                        checked.missing.push(Missing { model, version, chunks: Some(chunks) });
                    }
                    indexed.insert((model, version));
                }
                Ok(Some(_)) => checked.stray.push(path),
                Ok(None) => {}
                Err(error) => checked.damaged.push(damaged(path, error)?),
            }
        }
        for path in files::list(&self.models())? {
            if recorded_model(&path).is_none() {
                checked.stray.push(path);
            } else if let Err(error) = read_kept::<Record>(&path) {
                checked.damaged.push(damaged(path, error)?);
            }
        }
        let mut needed = BTreeSet::new();
        for path in self.configured_paths() {
            match read_kept::<Configured>(&path) {
                Ok(configured) => {
                    let configured = configured.unwrap_or_default();
                    needed.extend(configured.needs().map(|(model, one)| (model.to_owned(), one.version.clone())));
                }
                Err(error) => checked.damaged.push(damaged(path, error)?),
            }
        }
        for model in self.recorded()? {
            let [main, copy] = self.record_paths(&model)?;
            let read = |path: &Path| read_kept::<Record>(path).ok().flatten();
            let record = read(&main).or_else(|| read(&copy)).unwrap_or_default();
            needed.extend(record.installed().map(|one| (model.clone(), one.version.clone())));
        }
        for (model, version) in needed.into_iter().filter(|one| !indexed.contains(one)) {
            checked.missing.push(Missing { model, version, chunks: None });
        }
        for (path, digest) in self.stored()? {
            match digest {
                Some(digest) if named.contains(&digest) => match whole(&path, &digest) {
                    Ok(bytes) => {
                        checked.chunks += u64::from(bytes.is_some());
                        checked.bytes += bytes.unwrap_or(0);
                    }
                    Err(error) => checked.damaged.push(damaged(path, error)?),
                },
                _ => checked.stray.push(path),
            }
        }
        drop(hold);
        if repair {
            self.repair(&checked)?;
            checked.repaired = true;
        }
        Ok(checked)
    }

    /// Under the lock, and only what is still damaged: somebody may have put it right in the meantime.
    fn repair(&self, checked: &Checked) -> Result<(), DepotError> {
        let _lock = Lock::exclusive(&self.lock_path())?;
        self.remove_temporary()?;
        for Damaged { path, .. } in &checked.damaged {
            if self.configured_paths().contains(path) {
                self.repair_configured(path)?;
            } else if let Some(model) = recorded_model(path) {
                match self.record_locked(model) {
                    Ok(record) => {
                        self.set_record_locked(model, &record)?;
                        // A copy that could not be written is no error there.
                        read_kept::<Record>(path)?;
                    }
                    Err(error) if !error.is_damage() => return Err(error),
                    Err(_) => {
                        for path in self.record_paths(model)? {
                            files::remove(&path)?;
                        }
                    }
                }
            } else if let Some(digest) = digest_of_name(path) {
                remove_if(path, whole(path, &digest).map(|_| ()))?;
            } else {
                remove_if(path, self.read_index(path).map(|_| ()))?;
            }
        }
        // What is stray may be on its way to a record, unless nobody is fetching.
        if let Some(_hold) = Lock::try_exclusive(&self.hold_path())? {
            let is_file = |path: &&PathBuf| fs::symlink_metadata(path).is_ok_and(|found| !found.is_dir());
            for path in checked.stray.iter().filter(is_file) {
                files::remove(path)?;
            }
        }
        Ok(())
    }

    /// From the copy; where both are lost they are put aside, or go, and the gateway's own file takes effect.
    fn repair_configured(&self, damaged: &Path) -> Result<(), DepotError> {
        let paths = self.configured_paths();
        match self.kept_locked::<Configured>(&paths) {
            Ok(configured) => {
                self.set_kept_locked(&paths, &configured)?;
                read_kept::<Configured>(damaged).map(|_| ())
            }
            Err(error) if !error.is_damage() => Err(error),
            Err(_) => paths.iter().try_for_each(|path| files::remove(path).map(|_| ())),
        }
    }

    /// Every file under `chunks/`, with the digest that it should have; none if its name is no digest or its folder is
    /// not the one where it would be looked for.
    fn stored(&self) -> Result<Vec<(PathBuf, Option<Sha256>)>, DepotError> {
        let mut found = Vec::new();
        for folder in files::list(&self.chunks())? {
            if !folder.is_dir() {
                found.push((folder, None));
                continue;
            }
            for path in files::list(&folder)? {
                let digest = digest_of_name(&path).filter(|digest| self.chunk_path(digest) == path);
                found.push((path, digest));
            }
        }
        Ok(found)
    }
}

fn digest_of_name(path: &Path) -> Option<Sha256> {
    parse_hex(files::name(path))
}

/// What is told of a file that is not what was written; what could not be read for another reason ends the check, lest
/// a repair throws away what is whole.
fn damaged(path: PathBuf, error: DepotError) -> Result<Damaged, DepotError> {
    if error.is_damage() { Ok(Damaged { path, reason: error.to_string() }) } else { Err(error) }
}

/// Removes a file that turned out damaged.
fn remove_if(path: &Path, found: Result<(), DepotError>) -> Result<(), DepotError> {
    match found {
        Ok(()) => Ok(()),
        Err(error) if error.is_damage() => files::remove(path).map(|_| ()),
        Err(error) => Err(error),
    }
}

/// The length of a chunk whose content is what its name says; none if it is gone.
fn whole(path: &Path, digest: &Sha256) -> Result<Option<u64>, DepotError> {
    let Some(bytes) = files::read(path, MESSAGE_MAX)? else { return Ok(None) };
    let found = Digest::of(&bytes);
    match found.0 == *digest {
        true => Ok(Some(bytes.len() as u64)),
        false => Err(DepotError::store(path, format!("is damaged: its SHA-256 is {found}; expected that of its name"))),
    }
}
