//! Files that are there whole or not at all.

use std::fs::File;
use std::io;
use std::path::Path;

use tempfile::Builder;

/// Writes a file under its name at once or not at all, for this user alone, and returns when it is safe from a power cut.
///
/// A rename is atomic only within a folder's file system, so the temporary file, whose name begins with `prefix`, lies
/// beside the file. It is synced before it gets its name, for a name must never stand over bytes that a power cut can take
/// away; and the folder after, for the name is in there.
pub(crate) fn replace(path: &Path, prefix: &str, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().expect("a file lies in a folder");
    let mut temporary = Builder::new().prefix(prefix).tempfile_in(folder)?;
    io::Write::write_all(&mut temporary, bytes)?;
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}
