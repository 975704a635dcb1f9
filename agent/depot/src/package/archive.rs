//! The canonical tar: the one byte sequence that a set of files has.
//!
//! Format: POSIX ustar; one regular file after another, sorted by name; mode 0644, owner and group 0 without names,
//! time 0; two zero blocks at the end and nothing after them. A reader accepts nothing else, so two archives with the
//! same files are the same bytes, and a package's digest is the SHA-256 of this.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use sha2::{Digest as _, Sha256};
use tar::{Archive, Builder, EntryType, Header};

use super::Digest;
use crate::manifest::check_file_name;

/// Most bytes that a package's files may have together, uncompressed.
pub const RAW_MAX: u64 = 256 << 20;
/// Most files in a package.
const FILES_MAX: usize = 64;

/// The files of a package by name.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Writes the canonical tar of `files`.
pub fn write(files: &Files, out: impl Write) -> io::Result<()> {
    let mut tar = Builder::new(out);
    for (name, bytes) in files {
        let mut header = Header::new_ustar();
        header.set_path(name)?;
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_entry_type(EntryType::Regular);
        header.set_cksum();
        tar.append(&header, bytes.as_slice())?;
    }
    tar.into_inner()?.flush()
}

/// SHA-256 of the canonical tar of `files`.
pub fn digest(files: &Files) -> Digest {
    let mut hash = Hashing(Sha256::new());
    write(files, &mut hash).expect("names were checked to fit a header, and hashing cannot fail");
    Digest(hash.0.finalize().into())
}

/// Reads an uncompressed tar and refuses all but the canonical one.
///
/// # Errors
/// What was found in it and what was expected.
pub fn read(tar: impl Read) -> Result<(Files, Digest), String> {
    let damaged = |error: io::Error| format!("is damaged or no package: {error}");
    let mut reader = Tee { inner: tar, hash: Sha256::new(), left: RAW_MAX };
    let mut files = Files::new();
    let mut archive = Archive::new(&mut reader);
    // Raw entries: extensions for long names and the like arrive as entries of their own kind, and are refused.
    for entry in archive.entries().map_err(damaged)?.raw(true) {
        let mut entry = entry.map_err(damaged)?;
        let path = entry.path_bytes();
        let name = String::from_utf8_lossy(&path).into_owned();
        let kind = entry.header().entry_type();
        if kind != EntryType::Regular {
            return Err(format!("\"{}\" is a {kind:?}, and a package holds plain files only", name.escape_default()));
        }
        check_file_name(&name)?;
        if files.len() == FILES_MAX {
            return Err(format!("holds more than {FILES_MAX} files"));
        }
        // Not `with_capacity(size)`: the size is what the archive claims.
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(damaged)?;
        if files.insert(name.clone(), bytes).is_some() {
            return Err(format!("holds \"{name}\" twice"));
        }
    }
    io::copy(&mut reader, &mut io::sink()).map_err(damaged)?;
    let found = Digest(reader.hash.finalize().into());
    if found != digest(&files) {
        return Err("is not in canonical form (sorted, without times and owners): pack its folder again".to_owned());
    }
    Ok((files, found))
}

struct Hashing(Sha256);

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hashes what is read through it, and ends with an error at the bound.
struct Tee<R> {
    inner: R,
    hash: Sha256,
    left: u64,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            io::Error::other(format!("it unpacks to more than {} MiB, the most that a package may have", RAW_MAX >> 20))
        })?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Files {
        [("a.onnx", &b"graph"[..]), ("model.toml", b"format = 1")]
            .into_iter()
            .map(|(name, bytes)| (name.to_owned(), bytes.to_vec()))
            .collect()
    }

    fn tar_with(edit: impl FnOnce(&mut Header)) -> Vec<u8> {
        let mut header = Header::new_ustar();
        header.set_path("a.onnx").unwrap();
        header.set_size(5);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_entry_type(EntryType::Regular);
        edit(&mut header);
        header.set_cksum();
        let mut tar = Builder::new(Vec::new());
        tar.append(&header, &b"graph"[..]).unwrap();
        tar.into_inner().unwrap()
    }

    #[test]
    fn what_is_written_reads_back_with_the_same_digest() {
        let mut tar = Vec::new();
        write(&example(), &mut tar).unwrap();
        assert_eq!(read(tar.as_slice()), Ok((example(), digest(&example()))));
    }

    #[test]
    fn only_the_canonical_form_is_read() {
        assert!(read(tar_with(|_| ()).as_slice()).is_ok());
        for (what, edit) in [
            ("time", (|header: &mut Header| header.set_mtime(1)) as fn(&mut Header)),
            ("owner", |header| header.set_uid(1000)),
            ("mode", |header| header.set_mode(0o755)),
        ] {
            let error = read(tar_with(edit).as_slice()).unwrap_err();
            assert!(error.contains("canonical"), "{what}: {error}");
        }
        let mut trailing = tar_with(|_| ());
        trailing.extend([0; 512]);
        assert!(read(trailing.as_slice()).unwrap_err().contains("canonical"));
    }

    #[test]
    fn links_devices_and_paths_that_lead_out_are_refused() {
        for kind in [EntryType::Symlink, EntryType::Link, EntryType::Char, EntryType::Fifo, EntryType::Directory] {
            let error = read(tar_with(|header| header.set_entry_type(kind)).as_slice()).unwrap_err();
            assert!(error.contains("plain files only"), "{error}");
        }
        for path in ["../a.onnx", "/a.onnx", "x/a.onnx", "..", ".hidden", ""] {
            let set = |header: &mut Header| {
                let field = &mut header.as_old_mut().name;
                field.fill(0);
                field[..path.len()].copy_from_slice(path.as_bytes());
            };
            assert!(read(tar_with(set).as_slice()).is_err(), "{path}");
        }
    }

    #[test]
    fn an_archive_that_unpacks_to_too_much_is_refused() {
        let tar = tar_with(|header| header.set_size(RAW_MAX + 1));
        let error = read(tar.as_slice().chain(io::repeat(0))).unwrap_err();
        assert!(error.contains("more than 256 MiB"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn noise_is_refused_without_a_panic(mut noise: Vec<u8>, at in 0usize..1536, byte: u8) {
            let _ = read(noise.as_slice());
            noise = tar_with(|_| ());
            noise[at] = byte;
            let _ = read(noise.as_slice());
        }
    }
}
