//! The local depot: the chunks, indexes and records of the models on this device.
//!
//! Under `<state>/depot/`, for this user alone:
//! ```text
//! chunks/<digit>/<sha256>           one chunk as stored, by the SHA-256 of these bytes
//! indexes/<model>-<version>.index   the index of a package, followed by its own SHA-256
//! models/<model>.json, <model>.copy the record of a model, twice
//! configuration.json, .copy         the signed configuration in effect, twice
//! lock, hold                        locked while something changes; while a delivery goes on
//! ```
//! Promises, at every point where power or a process may end:
//! - What stands under a name is whole and was verified: it is written to a temporary file in the same folder, synced,
//!   renamed, and the folder synced. A power cut leaves temporary files at most, which [`Store::open`] removes.
//! - Replacing a record is what activates a version, and nothing else is.
//! - What does not fit the disk is refused, and leaves nothing.
//! - What is damaged later is noticed when it is read: chunks, indexes and records carry their digests.
//!
//! A package is never unpacked here. It is read from its chunks into memory, which spares the flash a second copy.
//!
//! Several processes may use one depot: changes of records and [`Store::collect`] exclude all others, puts of chunks and
//! indexes exclude only those, since the same name always means the same bytes. Nothing from the network names a path:
//! model and version are checked before they become part of one, and digests are digits.

mod check;
mod configured;
mod files;
mod kept;
mod record;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use limpet_wire::depot::{ChunkRef, Hex, Index, MESSAGE_MAX, Name, Sha256, index_name};
use limpet_wire::name::check_name;
use semver::Version;

pub use self::check::{Checked, Collected, Damaged, Missing};
pub use self::configured::{CONFIGURATION_MAX, Configuration, Configured};
use self::files::Lock;
pub use self::record::{Installed, REJECTED_MAX, Record, Rejection};
use crate::package::{Digest, archive};
use crate::{DepotError, Package, chunk};

/// Most chunks of a package: they are at least [`chunk::RAW_MIN`] bytes, but for the last.
const CHUNKS_MAX: usize = archive::RAW_MAX as usize / chunk::RAW_MIN + 1;
/// Largest file of an index, in bytes: every chunk takes two digests and two lengths of at most three bytes.
const INDEX_MAX: usize = 1024 + CHUNKS_MAX * 72;
/// What stays free on the disk for results and logs: a twentieth of it, and at most this many bytes.
const RESERVE_MAX: u64 = 64 << 20;
/// What to do about a damaged file.
const ADVICE: &str = "`limpet store check` finds all such files and has them fetched again";

/// The local depot. A clone is the same one.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    written: AtomicU64,
    notices: Mutex<Vec<String>>,
    /// Copies that could not be written, and that was told.
    behind: Mutex<BTreeSet<PathBuf>>,
}

/// While it lives, no process collects anything: what is being fetched is not named by a record yet.
#[derive(Debug)]
pub struct Hold {
    _lock: Lock,
}

impl Store {
    /// Opens the depot under a state directory and makes it if there is none. Removes what a power cut left half
    /// written, unless another process is writing at this moment.
    ///
    /// # Errors
    /// [`DepotError`] if its folders cannot be made or read.
    pub fn open(state: &Path) -> Result<Self, DepotError> {
        let folder = state.join("depot");
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(state);
        made.map_err(DepotError::io(state, "made"))?;
        let inner = Inner { folder, written: AtomicU64::new(0), notices: Mutex::default(), behind: Mutex::default() };
        let store = Self { inner: Arc::new(inner) };
        for folder in [store.folder().to_owned(), store.chunks(), store.indexes(), store.models()] {
            files::make_folder(&folder)?;
        }
        // Sixteen folders that stay: made and removed with each version they would cost a disk as much as a third of a
        // chunk each (measured).
        for digit in "0123456789abcdef".chars() {
            // A disk that is full keeps nobody from starting; whoever puts a chunk makes what is missing.
            let _ = files::make_folder(&store.chunks().join(digit.to_string()));
        }
        if let Some(_lock) = Lock::try_exclusive(&store.lock_path())? {
            store.remove_temporary()?;
        }
        // A process that was killed between a rename and the sync of its folder left names that a power cut would take;
        // from here on they count as kept.
        let failed = || DepotError::io(store.folder(), "synced");
        let opened = fs::File::open(store.folder()).map_err(failed())?;
        rustix::fs::syncfs(opened).map_err(|error| failed()(error.into()))?;
        Ok(store)
    }

    /// The folder: `<state>/depot`.
    pub fn folder(&self) -> &Path {
        &self.inner.folder
    }

    /// Keeps every process from collecting until it is dropped. Take it before the first [`Store::put`] of a delivery and
    /// drop it when a record names what came.
    ///
    /// # Errors
    /// [`DepotError::Io`].
    pub fn hold(&self) -> Result<Hold, DepotError> {
        Ok(Hold { _lock: Lock::shared(&self.hold_path())? })
    }

    /// Whether a chunk is there, by the digest of what is stored. It was whole when it was put; [`Store::chunk`] tells
    /// whether it still is.
    pub fn has(&self, stored: &Sha256) -> bool {
        self.length(stored).is_some()
    }

    fn length(&self, stored: &Sha256) -> Option<u64> {
        let metadata = fs::symlink_metadata(self.chunk_path(stored)).ok()?;
        metadata.is_file().then_some(metadata.len())
    }

    /// The chunks of an index that are not there, or not as long as they should be: each once, in the order of the tar.
    pub fn missing(&self, index: &Index) -> Vec<ChunkRef> {
        let mut seen = HashSet::new();
        let chunks = index.chunks.iter().filter(|chunk| seen.insert(chunk.stored));
        chunks.filter(|chunk| self.length(&chunk.stored) != Some(u64::from(chunk.stored_len))).copied().collect()
    }

    /// What a chunk holds of the tar, verified.
    ///
    /// # Errors
    /// [`DepotError::Store`] with the file if it is not there or damaged, [`DepotError::Io`] if it cannot be read.
    pub fn chunk(&self, reference: &ChunkRef) -> Result<Vec<u8>, DepotError> {
        let path = self.chunk_path(&reference.stored);
        let stored = files::read(&path, MESSAGE_MAX)?
            .ok_or_else(|| DepotError::store(&path, format!("this chunk is not there; {ADVICE}")))?;
        chunk::expand(reference, &stored).map_err(|reason| DepotError::store(&path, format!("{reason}; {ADVICE}")))
    }

    /// Keeps a chunk; returns when it is safe from a power cut. A chunk that is there and whole is not written again.
    ///
    /// # Errors
    /// [`DepotError::Chunk`] if it is not what the reference says, [`DepotError::Full`] or [`DepotError::Io`] if it
    /// cannot be written; nothing of it is kept then.
    pub fn put(&self, reference: &ChunkRef, stored: &[u8]) -> Result<(), DepotError> {
        chunk::expand(reference, stored)
            .map_err(|reason| DepotError::Chunk { chunk: Hex(&reference.stored).to_string(), reason })?;
        let path = self.chunk_path(&reference.stored);
        let _lock = Lock::shared(&self.lock_path())?;
        // What stands there may be damaged, and then this is the repair.
        if files::read(&path, MESSAGE_MAX).is_ok_and(|found| found.as_deref() == Some(stored)) {
            return Ok(());
        }
        let folder = path.parent().expect("a chunk lies in a folder");
        if files::make_folder(folder)? {
            // It could not be made when the store was opened, or somebody removed it.
            files::sync_folder(&self.chunks())?;
        }
        self.replace(&path, stored)
    }

    /// Keeps an index; returns when it is safe from a power cut. Put it before its chunks, so that a collection knows
    /// what they are for.
    ///
    /// # Errors
    /// [`DepotError::Index`] if no package can come from it, [`DepotError::Full`] or [`DepotError::Io`] if it cannot be
    /// written.
    pub fn put_index(&self, index: &Index) -> Result<(), DepotError> {
        check_index(index)?;
        let path = self.index_path(&index.model, &index.version)?;
        let mut bytes = index.to_bytes();
        bytes.extend(Digest::of(&bytes).0);
        let _lock = Lock::shared(&self.lock_path())?;
        if files::read(&path, INDEX_MAX).is_ok_and(|found| found.as_deref() == Some(&bytes)) {
            return Ok(());
        }
        self.replace(&path, &bytes)
    }

    /// The index of a version, or none if there is none.
    ///
    /// # Errors
    /// [`DepotError::Index`] if model or version cannot be such, [`DepotError::Store`] with the file if it is damaged or
    /// another version's, [`DepotError::Io`] if it cannot be read.
    pub fn index(&self, model: &str, version: &str) -> Result<Option<Index>, DepotError> {
        let path = self.index_path(model, version)?;
        let Some(index) = self.read_index(&path)? else { return Ok(None) };
        if (index.model.as_str(), index.version.as_str()) != (model, version) {
            let reason = format!("holds the index of {} {}; {ADVICE}", index.model, index.version);
            return Err(DepotError::store(&path, reason));
        }
        Ok(Some(index))
    }

    fn read_index(&self, path: &Path) -> Result<Option<Index>, DepotError> {
        let refuse = |reason: String| DepotError::store(path, format!("{reason}; {ADVICE}"));
        let Some(bytes) = files::read(path, INDEX_MAX)? else { return Ok(None) };
        let (bytes, digest) = bytes.split_last_chunk::<32>().ok_or_else(|| refuse("is cut short".to_owned()))?;
        let found = Digest::of(bytes);
        if found.0 != *digest {
            return Err(refuse(format!("is damaged: its SHA-256 is {found}; expected {}", Hex(digest))));
        }
        let index = Index::from_bytes(bytes).map_err(|error| refuse(format!("is no index: {error}")))?;
        check_index(&index)?;
        Ok(Some(index))
    }

    /// Removes a chunk that is not what its name says, or that the disk cannot give any more, so that [`Store::missing`]
    /// names it and it is fetched again. What somebody put right meanwhile stays.
    fn remove_if_damaged(&self, stored: &Sha256) -> Result<(), DepotError> {
        let path = self.chunk_path(stored);
        let _lock = Lock::exclusive(&self.lock_path())?;
        let damaged = match files::read(&path, MESSAGE_MAX) {
            Ok(bytes) => bytes.is_some_and(|bytes| Digest::of(&bytes).0 != *stored),
            Err(error) if error.is_damage() => true,
            Err(error) => return Err(error),
        };
        if damaged {
            files::remove(&path)?;
        }
        Ok(())
    }

    /// A package, read from its chunks into memory. [`Package::path`] is then its name and version.
    ///
    /// A chunk that turns out to be damaged is removed: its length alone would not tell [`Store::missing`].
    ///
    /// # Errors
    /// What [`Store::chunk`] gives for a chunk; [`DepotError::Index`] if the chunks make up another package than the
    /// index says; what [`Package::from_tar`] gives.
    pub fn package(&self, index: &Index) -> Result<Package, DepotError> {
        check_index(index)?;
        let origin = PathBuf::from(format!("{} {}", index.model, index.version));
        let mut tar = Tar { store: self, rest: index.chunks.iter(), chunk: io::Cursor::default(), failed: None };
        let package = Package::from_tar(&origin, &mut tar);
        if let Some(error) = tar.failed {
            return Err(error);
        }
        let package = package?;
        if package.digest().0 != index.package {
            let reason = format!("its chunks make up the package {}, not {}", package.digest(), Hex(&index.package));
            return Err(refuse_index(index, reason));
        }
        let (name, version) = (&package.manifest().name, package.manifest().version.to_string());
        if (name, &version) != (&index.model, &index.version) {
            return Err(refuse_index(index, format!("its chunks make up {name} {version}")));
        }
        Ok(package)
    }

    /// The record of a model; an empty one if there was none.
    ///
    /// A record that is not whole is read from its copy, put right, and told of in [`Store::notices`]; a copy that is not
    /// whole, or was left behind, is written again.
    ///
    /// # Errors
    /// [`DepotError::Store`] if it cannot be a model's name, or with the file if both are damaged; [`DepotError::Io`] if
    /// they cannot be read. It is never taken for an empty one then.
    pub fn record(&self, model: &str) -> Result<Record, DepotError> {
        self.kept(&self.record_paths(model)?)
    }

    /// The same under the exclusive lock, which putting it right needs.
    fn record_locked(&self, model: &str) -> Result<Record, DepotError> {
        self.kept_locked(&self.record_paths(model)?)
    }

    fn notice(&self, notice: String) {
        self.inner.notices.lock().unwrap_or_else(PoisonError::into_inner).push(notice);
    }

    /// What was put right, and what went wrong that is no error, since this was last asked: sentences for an event each.
    pub fn notices(&self) -> Vec<String> {
        std::mem::take(&mut *self.inner.notices.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the record of a model at once; returns when it is safe from a power cut. Once it stands for every reader,
    /// nothing that goes wrong is an error any more: that its copy could not be written, which is tried again, or that the
    /// disk does not say whether it would survive a power cut, which then may bring back the old one, is told of in
    /// [`Store::notices`].
    ///
    /// # Errors
    /// The old record stands then. [`DepotError::Store`] if a name, version or digest in it cannot be one, or if it is too
    /// large to be read again; [`DepotError::Full`] or [`DepotError::Io`] if it cannot be written.
    pub fn set_record(&self, model: &str, record: &Record) -> Result<(), DepotError> {
        let _lock = Lock::exclusive(&self.lock_path())?;
        self.set_record_locked(model, record)
    }

    fn set_record_locked(&self, model: &str, record: &Record) -> Result<(), DepotError> {
        self.set_kept_locked(&self.record_paths(model)?, record)
    }

    /// Changes the record of a model while no other process can. Nothing is written if `change` changes nothing.
    ///
    /// # Errors
    /// As for [`Store::record`] and [`Store::set_record`].
    pub fn update_record(&self, model: &str, change: impl FnOnce(&mut Record)) -> Result<Record, DepotError> {
        self.update_kept(&self.record_paths(model)?, change)
    }

    /// What this gateway is configured by, beside its own file.
    ///
    /// If the record and its copy are both damaged, they are put aside as `*.damaged`, and there is nothing beside the file;
    /// [`Store::notices`] tells of it. A gateway that nobody visits must not be deaf for ever.
    ///
    /// # Errors
    /// [`DepotError::Store`] or [`DepotError::Io`] if they cannot be read or put aside.
    pub fn configured(&self) -> Result<Configured, DepotError> {
        self.kept(&self.configured_paths())
    }

    /// Changes that while no other process can; returns when it is safe from a power cut, or with what
    /// [`Store::set_record`] says of notices.
    ///
    /// # Errors
    /// As for [`Store::configured`]; [`DepotError::Store`] if a text in it or all of it is too long, [`DepotError::Full`]
    /// or [`DepotError::Io`] if it cannot be written: the old one stands then.
    pub fn update_configured(&self, change: impl FnOnce(&mut Configured)) -> Result<Configured, DepotError> {
        self.update_kept(&self.configured_paths(), change)
    }

    /// The records of all models by name. One that cannot be read keeps no other from serving.
    ///
    /// # Errors
    /// [`DepotError::Io`] if the folder cannot be read.
    pub fn records(&self) -> Result<BTreeMap<String, Result<Record, DepotError>>, DepotError> {
        Ok(self.recorded()?.into_iter().map(|model| (model.clone(), self.record(&model))).collect())
    }

    /// Names of models that have a record.
    fn recorded(&self) -> Result<Vec<String>, DepotError> {
        let mut models: Vec<String> =
            files::list(&self.models())?.iter().filter_map(|path| recorded_model(path).map(str::to_owned)).collect();
        models.dedup();
        Ok(models)
    }

    /// Refuses what would fill the disk, before it is fetched: `bytes` more on it (see [`Store::cost`]), with the depot
    /// at most `limit` bytes large.
    ///
    /// # Errors
    /// [`DepotError::Full`] with the arithmetic, [`DepotError::Io`] if the disk does not tell.
    pub fn room_for(&self, bytes: u64, limit: u64) -> Result<(), DepotError> {
        let stat = rustix::fs::statvfs(self.folder())
            .map_err(|error| DepotError::io(self.folder(), "asked for its free space")(error.into()))?;
        let disk = Disk {
            used: self.usage()?,
            limit,
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
            reserve: (stat.f_blocks.saturating_mul(stat.f_frsize) / 20).min(RESERVE_MAX),
        };
        disk.room_for(bytes).map_err(|reason| DepotError::Full { path: self.folder().to_owned(), reason })
    }

    /// What chunks will take on the disk, in bytes: whole blocks, so more than they have.
    pub fn cost(chunks: &[ChunkRef]) -> u64 {
        chunks.iter().map(|chunk| files::on_disk(u64::from(chunk.stored_len))).sum()
    }

    /// What the depot takes on the disk, in bytes.
    ///
    /// # Errors
    /// [`DepotError::Io`].
    pub fn usage(&self) -> Result<u64, DepotError> {
        let mut bytes = 0;
        for folder in self.folders()?.iter().map(PathBuf::as_path).chain([self.folder()]) {
            for path in files::list(folder)? {
                bytes += fs::symlink_metadata(&path).map_or(0, |metadata| match metadata.is_file() {
                    true => files::on_disk(metadata.len()),
                    false => 0,
                });
            }
        }
        Ok(bytes)
    }

    /// Bytes that this depot and its clones wrote to the disk since it was opened: files in whole blocks. What the file
    /// system writes for itself is not among them.
    pub fn bytes_written(&self) -> u64 {
        self.inner.written.load(Ordering::Relaxed)
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), DepotError> {
        self.try_replace(path, bytes).map_err(|error| files::writing(path, error))
    }

    /// The same, for whoever finds out what stands after an error.
    fn try_replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let written = files::replace(path, bytes)?;
        self.inner.written.fetch_add(written, Ordering::Relaxed);
        Ok(())
    }

    /// Every folder that files are kept in.
    fn folders(&self) -> Result<Vec<PathBuf>, DepotError> {
        let mut folders = vec![self.indexes(), self.models(), self.chunks()];
        folders.extend(files::list(&self.chunks())?.into_iter().filter(|path| path.is_dir()));
        Ok(folders)
    }

    /// Needs the exclusive lock: a file that somebody is writing has a temporary name too.
    fn remove_temporary(&self) -> Result<(), DepotError> {
        for folder in self.folders()?.iter().map(PathBuf::as_path).chain([self.folder()]) {
            for path in files::temporary(folder)? {
                files::remove(&path)?;
            }
        }
        Ok(())
    }

    fn chunks(&self) -> PathBuf {
        self.folder().join("chunks")
    }

    fn indexes(&self) -> PathBuf {
        self.folder().join("indexes")
    }

    fn models(&self) -> PathBuf {
        self.folder().join("models")
    }

    fn lock_path(&self) -> PathBuf {
        self.folder().join("lock")
    }

    fn hold_path(&self) -> PathBuf {
        self.folder().join("hold")
    }

    fn chunk_path(&self, stored: &Sha256) -> PathBuf {
        let name = Hex(stored).to_string();
        self.chunks().join(&name[..1]).join(name)
    }

    fn index_path(&self, model: &str, version: &str) -> Result<PathBuf, DepotError> {
        let refuse = |reason| DepotError::Index { model: shown(model), version: shown(version), reason };
        check_name(model).map_err(|error| refuse(error.to_string()))?;
        check_version(version).map_err(refuse)?;
        Ok(self.indexes().join(index_name(model, version)))
    }

    fn configured_paths(&self) -> [PathBuf; 2] {
        ["configuration.json", "configuration.copy"].map(|name| self.folder().join(name))
    }

    /// The record and its copy.
    fn record_paths(&self, model: &str) -> Result<[PathBuf; 2], DepotError> {
        check_name(model)
            .map_err(|error| DepotError::store(&self.models(), format!("cannot hold a record: {error}")))?;
        Ok(["json", "copy"].map(|extension| self.models().join(format!("{model}.{extension}"))))
    }
}

/// The model whose record a file is, by its name.
fn recorded_model(path: &Path) -> Option<&str> {
    let (model, extension) = files::name(path).split_once('.')?;
    (matches!(extension, "json" | "copy") && check_name(model).is_ok()).then_some(model)
}

/// What came from elsewhere, fit for a sentence.
fn shown(text: &str) -> String {
    text.chars().take(100).flat_map(char::escape_debug).collect()
}

/// Checks that a version can stand in topics and paths: semantic, without build metadata, not endless.
fn check_version(version: &str) -> Result<(), String> {
    let parsed = Version::parse(version).map_err(|error| format!("\"{}\" is no version: {error}", shown(version)))?;
    if !parsed.build.is_empty() {
        return Err(format!("the version \"{}\" has build metadata, which has no place in a topic", shown(version)));
    }
    // With the longest name of a model.
    if Name::target([0; 32], &index_name(&"m".repeat(limpet_wire::name::NAME_MAX), version)).is_none() {
        return Err(format!("the version \"{}…\" is too long", shown(version)));
    }
    Ok(())
}

fn refuse_index(index: &Index, reason: impl Into<String>) -> DepotError {
    DepotError::Index { model: shown(&index.model), version: shown(&index.version), reason: reason.into() }
}

/// Checks that a package can come from an index: names that can stand in a path, lengths within what a package may have,
/// and one meaning for each stored digest.
///
/// # Errors
/// [`DepotError::Index`].
pub fn check_index(index: &Index) -> Result<(), DepotError> {
    let refuse = |reason: String| refuse_index(index, reason);
    check_name(&index.model).map_err(|error| refuse(error.to_string()))?;
    check_version(&index.version).map_err(refuse)?;
    if !(1..=CHUNKS_MAX).contains(&index.chunks.len()) {
        return Err(refuse(format!("it names {} chunks; expected 1 to {CHUNKS_MAX}", index.chunks.len())));
    }
    if index.raw_bytes() > archive::RAW_MAX {
        let (found, most) = (index.raw_bytes(), archive::RAW_MAX);
        return Err(refuse(format!("its chunks make up {found} bytes; a package has at most {most}")));
    }
    let mut meanings: HashMap<&Sha256, &ChunkRef> = HashMap::new();
    for chunk in &index.chunks {
        let named = Hex(&chunk.stored);
        chunk::check_lengths(chunk).map_err(|reason| refuse(format!("its chunk {named} {reason}")))?;
        if *meanings.entry(&chunk.stored).or_insert(chunk) != chunk {
            return Err(refuse(format!("it names the chunk {named} twice, with different content")));
        }
    }
    Ok(())
}

/// What decides whether something fits, in bytes.
#[derive(Debug, Clone, Copy)]
struct Disk {
    used: u64,
    limit: u64,
    free: u64,
    reserve: u64,
}

impl Disk {
    fn room_for(self, bytes: u64) -> Result<(), String> {
        let Self { used, limit, free, reserve } = self;
        if used.saturating_add(bytes) > limit {
            return Err(format!(
                "has no room for {bytes} more bytes: it takes {used}, and `[depot] disk` allows {limit}; raise that, or \
                 lower `[depot] keep`"
            ));
        }
        if bytes.saturating_add(reserve) > free {
            return Err(format!(
                "has no room for {bytes} more bytes: its disk has {free} left, of which {reserve} stay free for results \
                 and logs; make room on it"
            ));
        }
        Ok(())
    }
}

/// The tar of a package, chunk by chunk.
struct Tar<'a> {
    store: &'a Store,
    rest: std::slice::Iter<'a, ChunkRef>,
    chunk: io::Cursor<Vec<u8>>,
    /// What went wrong, since a reader's error has no place for it.
    failed: Option<DepotError>,
}

impl Read for Tar<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.chunk.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            let Some(next) = self.rest.next() else { return Ok(0) };
            match self.store.chunk(next) {
                Ok(bytes) => self.chunk = io::Cursor::new(bytes),
                Err(error) => {
                    // What is damaged is told below. Where it cannot be removed, whoever checks the store finds it.
                    let _ = self.store.remove_if_damaged(&next.stored);
                    self.failed = Some(error);
                    return Err(io::Error::other("a chunk could not be read"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
