//! Files that are there whole or not at all.

use std::fs::File;
use std::io;
use std::path::Path;

use tempfile::{Builder, NamedTempFile};

/// Writes a file under its name at once or not at all, for this user alone, and returns when it is safe from a power cut.
///
/// A rename is atomic only within a folder's file system, so the temporary file, whose name begins with `prefix`, lies
/// beside the file. It is synced before it gets its name, for a name must never stand over bytes that a power cut can take
/// away; and the folder after, for the name is in there.
pub(crate) fn replace(path: &Path, prefix: &str, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().expect("a file lies in a folder");
    fault::step()?;
    let mut temporary = Builder::new().prefix(prefix).tempfile_in(folder)?;
    if let Err(error) = fill(&mut temporary, bytes) {
        fault::leave(temporary);
        return Err(error);
    }
    temporary.persist(path).map_err(|error| error.error)?;
    fault::step()?;
    File::open(folder)?.sync_all()
}

/// Everything before the rename.
fn fill(temporary: &mut NamedTempFile, bytes: &[u8]) -> io::Result<()> {
    let (first, rest) = bytes.split_at(bytes.len() / 2);
    for half in [first, rest] {
        fault::step()?;
        io::Write::write_all(temporary, half)?;
    }
    fault::step()?;
    temporary.as_file().sync_all()?;
    fault::step()
}

#[cfg(not(test))]
pub(crate) mod fault {
    use std::io;

    use tempfile::NamedTempFile;

    /// Nothing fails by itself.
    pub(crate) fn step() -> io::Result<()> {
        Ok(())
    }

    /// Whatever was not renamed is removed.
    pub(crate) fn leave(temporary: NamedTempFile) {
        drop(temporary);
    }
}

/// Faults for tests: every step that changes a disk asks here first.
#[cfg(test)]
pub(crate) mod fault {
    use std::cell::Cell;
    use std::io;

    use tempfile::NamedTempFile;

    /// What happens at the step that is chosen.
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub(crate) enum Fault {
        /// It fails as on a broken disk, and later ones do not.
        Fails,
        /// The process ends: nothing is done any more, and nothing cleared away.
        Ends,
    }

    thread_local! {
        static NEXT: Cell<Option<(usize, Fault)>> = const { Cell::new(None) };
        static HIT: Cell<bool> = const { Cell::new(false) };
    }

    /// Does something, with a fault at its step `at`. Gives what it gave, and whether it came so far.
    pub(crate) fn with<T>(at: usize, fault: Fault, work: impl FnOnce() -> T) -> (T, bool) {
        HIT.set(false);
        NEXT.set(Some((at, fault)));
        let done = work();
        NEXT.set(None);
        (done, HIT.get())
    }

    pub(crate) fn step() -> io::Result<()> {
        let error = || Err(io::Error::other("a fault of the test"));
        match NEXT.get() {
            None => Ok(()),
            Some((0, fault)) => {
                NEXT.set((fault == Fault::Ends).then_some((0, fault)));
                HIT.set(true);
                error()
            }
            Some((left, fault)) => {
                NEXT.set(Some((left - 1, fault)));
                Ok(())
            }
        }
    }

    /// Who has ended removes nothing.
    pub(crate) fn leave(temporary: NamedTempFile) {
        if matches!(NEXT.get(), Some((0, Fault::Ends))) && HIT.get() {
            let _ = temporary.keep().unwrap();
        }
    }
}
