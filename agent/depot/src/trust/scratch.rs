//! Where `tough` keeps its files for the time of one update.
//!
//! Each update has a folder of its own below one that is named for this, and holds a lock on it. Whoever ends in the
//! middle of an update leaves a folder that nobody holds: the next one takes it away.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// A folder for one update, which is gone when this is dropped.
#[derive(Debug)]
pub(super) struct Scratch {
    folder: tempfile::TempDir,
    /// Says that somebody is at work here.
    _held: File,
}

impl Scratch {
    /// A folder below the first of these that takes one.
    ///
    /// # Errors
    /// The last of them, and why it does not.
    pub(super) fn new(places: [&Path; 2]) -> Result<Self, (PathBuf, io::Error)> {
        let [first, second] = places;
        Self::below(first).or_else(|_| Self::below(second)).map_err(|error| (second.to_owned(), error))
    }

    fn below(place: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(place)?;
        // Between making a folder and holding it, nobody may sweep.
        let sweeping = File::open(place)?;
        sweeping.lock()?;
        let folder = tempfile::Builder::new().prefix("update-").tempdir_in(place)?;
        let held = File::open(folder.path())?;
        held.lock()?;
        Ok(Self { folder, _held: held })
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Takes away what others that have ended left behind. What cannot be taken away stays: it is in nobody's way.
pub(super) fn sweep(place: &Path) {
    let Ok(sweeping) = File::open(place) else { return };
    let (Ok(()), Ok(entries)) = (sweeping.lock(), fs::read_dir(place)) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let free = File::open(&path).is_ok_and(|left| left.try_lock().is_ok());
        if free {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_left_is_swept_away_and_what_is_in_use_is_not() {
        let place = tempfile::tempdir().unwrap();
        let used = Scratch::below(place.path()).unwrap();
        fs::write(used.path().join("timestamp.json"), "{}").unwrap();
        let left = place.path().join("update-left");
        fs::create_dir(&left).unwrap();
        fs::write(left.join("timestamp.json"), "{}").unwrap();
        sweep(place.path());
        assert!(used.path().join("timestamp.json").exists() && !left.exists());
        drop(used);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }

    #[test]
    fn where_the_first_place_takes_nothing_the_second_does() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let second = folder.path().join("second");
        let scratch = Scratch::new([&file.join("first"), &second]).unwrap();
        assert!(scratch.path().starts_with(&second));
        let (path, _) = Scratch::new([&file.join("first"), &file.join("second")]).unwrap_err();
        assert_eq!(path, file.join("second"));
    }
}
