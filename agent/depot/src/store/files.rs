//! Files that are whole or not there, and the lock over them.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::DepotError;
use crate::replace::fault;

/// What the names of files begin with that are not whole yet.
const TEMPORARY: &str = ".part-";
/// What a file takes on a disk is a multiple of this, in bytes.
const BLOCK: u64 = 4096;

/// Bytes that a file of this length takes on a disk.
pub(super) fn on_disk(length: u64) -> u64 {
    length.div_ceil(BLOCK) * BLOCK
}

/// Writes a file under its name at once or not at all ([`crate::replace`]). Gives the bytes that the disk wrote.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<u64> {
    crate::replace::replace(path, TEMPORARY, bytes)?;
    Ok(on_disk(bytes.len() as u64))
}

/// Puts a damaged file aside, for whoever wants to know what happened. Gives where; none if there is no such file.
pub(super) fn put_aside(path: &Path) -> Result<Option<PathBuf>, DepotError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    match fault::step().and_then(|()| fs::rename(path, &aside)) {
        Ok(()) => Ok(Some(aside.into())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(DepotError::io(path, "put aside")(error)),
    }
}

/// Makes what was renamed, made or removed in a folder last.
pub(super) fn sync_folder(folder: &Path) -> Result<(), DepotError> {
    let sync = || fault::step().and_then(|()| File::open(folder)?.sync_all());
    sync().map_err(|error| writing(folder, error))
}

/// Makes a folder for this user alone. Gives whether it was made; no other may lie over it.
pub(super) fn make_folder(folder: &Path) -> Result<bool, DepotError> {
    match fault::step().and_then(|()| fs::DirBuilder::new().mode(0o700).create(folder)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists && folder.is_dir() => Ok(false),
        Err(error) => Err(writing(folder, error)),
    }
}

/// A full disk is an answer, not a failure: nothing was kept of what did not fit.
pub(super) fn writing(path: &Path, error: io::Error) -> DepotError {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => DepotError::Full {
            path: path.to_owned(),
            reason: format!(
                "the disk is full, so this file was not written and the old one stands: {error}; make room"
            ),
        },
        _ => DepotError::io(path, "written")(error),
    }
}

/// The content of a file of at most `most` bytes, or none if there is no such file. Anything else under its name, and
/// any more in it, is an error.
pub(super) fn read(path: &Path, most: usize) -> Result<Option<Vec<u8>>, DepotError> {
    let failed = || DepotError::io(path, "read");
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed())?,
    };
    let mut bytes = Vec::new();
    file.take(most as u64 + 1).read_to_end(&mut bytes).map_err(failed())?;
    if bytes.len() > most {
        return Err(DepotError::store(path, format!("has more than {most} bytes, the most that it may have")));
    }
    Ok(Some(bytes))
}

/// Removes a file. Gives what it took on the disk, or nothing if it was gone.
pub(super) fn remove(path: &Path) -> Result<Option<u64>, DepotError> {
    let length = fs::symlink_metadata(path).map_or(0, |metadata| metadata.len());
    match fault::step().and_then(|()| fs::remove_file(path)) {
        Ok(()) => Ok(Some(on_disk(length))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(DepotError::io(path, "removed")(error)),
    }
}

/// What lies in a folder, sorted by name, so that a report has the same order twice; temporary files are left out.
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>, DepotError> {
    Ok(entries(folder)?.into_iter().filter(|path| !is_temporary(path)).collect())
}

/// Temporary files in a folder.
pub(super) fn temporary(folder: &Path) -> Result<Vec<PathBuf>, DepotError> {
    Ok(entries(folder)?.into_iter().filter(|path| is_temporary(path)).collect())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, DepotError> {
    let failed = || DepotError::io(folder, "read");
    let entries = match fs::read_dir(folder) {
        // A folder may be missing where it could not be made.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed())?,
    };
    let mut paths =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>().map_err(failed())?;
    paths.sort();
    Ok(paths)
}

fn is_temporary(path: &Path) -> bool {
    name(path).starts_with(TEMPORARY)
}

/// The name of a file; empty if it is no text, which no name in the store is.
pub(super) fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// A lock between threads and processes, held until it is dropped. A process that dies lets go of it.
///
/// Every lock opens the file anew, since the kernel knows a lock by the open file: threads that shared one would share
/// its locks.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Waits until nobody holds it exclusively.
    pub(super) fn shared(path: &Path) -> Result<Self, DepotError> {
        Self::wait(path, File::lock_shared)
    }

    /// Waits until nobody holds it.
    pub(super) fn exclusive(path: &Path) -> Result<Self, DepotError> {
        Self::wait(path, File::lock)
    }

    /// Takes it if nobody holds it.
    pub(super) fn try_exclusive(path: &Path) -> Result<Option<Self>, DepotError> {
        let file = Self::open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(DepotError::io(path, "locked")(error)),
        }
    }

    fn wait(path: &Path, take: fn(&File) -> io::Result<()>) -> Result<Self, DepotError> {
        let file = Self::open(path)?;
        loop {
            match take(&file) {
                Ok(()) => return Ok(Self { _file: file }),
                // A signal; the lock was not taken.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(DepotError::io(path, "locked")(error)),
            }
        }
    }

    fn open(path: &Path) -> Result<File, DepotError> {
        let open = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
        open.map_err(|error| writing(path, error))
    }
}
