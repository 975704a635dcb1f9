//! Where a depot is read from, and written to: a broker, a folder, a web server.
//!
//! [`object`] and [`put_object`] read and write whole objects, which may be larger than a message; [`Folder`] is a depot
//! in a folder. [`crate::ask`] is one behind a broker, [`crate::web`] one behind a web server.

mod watched;

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use bytes::Bytes;
use fastcdc::v2020::FastCDC;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use limpet_wire::depot::{Hex, MESSAGE_MAX, Name, Parts, Sha256};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, renameat, unlinkat};
use rustix::io::Errno;
pub use tough::async_trait;

use crate::package::Digest;

pub use watched::{Stalled, Watched};

/// Parts of one object that are fetched, or put, at a time.
const AT_A_TIME: usize = 8;
/// Bytes of a part at least, on average and at most: small enough that a list that grew by a line re-sends little.
const PART_BYTES: [usize; 3] = [4 * 1024, 16 * 1024, MESSAGE_MAX];

/// Somewhere objects can be had by name.
#[async_trait]
pub trait Remote: Send + Sync {
    /// The message under a name, of at most `most` bytes.
    ///
    /// Nothing is concluded from absence: a broker that sends nothing may be slow, full or wrong, so its implementation
    /// asks again, with back-off, and tells somebody, until it comes. Whoever cannot wait drops the future.
    ///
    /// # Errors
    /// [`RemoteError`]; [`RemoteError::Absent`] only where absence is certain, as in a folder.
    async fn message(&self, name: &Name, most: usize) -> Result<Bytes, RemoteError>;

    /// Where that is, for people: `limpet/1/depot at uplink`, `/media/usb`.
    fn place(&self) -> &str;
}

/// Somewhere objects can be put.
#[async_trait]
pub trait Shelf: Remote {
    /// Puts a message there; returns once it is acknowledged, or safe on disk.
    ///
    /// # Errors
    /// [`RemoteError`].
    async fn put(&self, name: &Name, message: Bytes) -> Result<(), RemoteError>;

    /// Takes a message away; it need not be there.
    ///
    /// # Errors
    /// [`RemoteError`].
    async fn remove(&self, name: &Name) -> Result<(), RemoteError>;
}

/// Why something cannot be had, or put.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// It is not there, for certain.
    #[error("{place}: there is no {name}")]
    Absent {
        /// Where.
        place: String,
        /// What.
        name: Name,
    },
    /// More than may be.
    #[error("{place}: {name} has {found} bytes; expected at most {most}")]
    TooLarge {
        /// Where.
        place: String,
        /// What.
        name: Name,
        /// Its size.
        found: u64,
        /// The most.
        most: u64,
    },
    /// Not what its name, or who lists it, says.
    #[error("{place}: {name} is damaged: {reason}")]
    Damaged {
        /// Where.
        place: String,
        /// What.
        name: Name,
        /// What was found and what was expected.
        reason: String,
    },
    /// The transport failed.
    #[error("{place}: {name}: {reason}")]
    Failed {
        /// Where.
        place: String,
        /// What.
        name: Name,
        /// Why, and what to do.
        reason: String,
    },
}

impl RemoteError {
    fn damaged(remote: &(impl Remote + ?Sized), name: &Name, reason: String) -> Self {
        Self::Damaged { place: remote.place().to_owned(), name: name.clone(), reason }
    }

    fn too_large(remote: &(impl Remote + ?Sized), name: &Name, found: u64, most: u64) -> Self {
        Self::TooLarge { place: remote.place().to_owned(), name: name.clone(), found, most }
    }
}

/// The object under a name, of at most `most` bytes: the message there, or what its parts make up.
///
/// Parts are checked against the list, and whatever names its own digest (a target, a chunk) against that. Memory is
/// bounded by `most` and by what [`AT_A_TIME`] messages need.
///
/// # Errors
/// [`RemoteError`]: of the remote, or if something is larger than `most` or not what its digest says.
pub async fn object(remote: &dyn Remote, name: &Name, most: u64) -> Result<Vec<u8>, RemoteError> {
    let message = remote.message(name, MESSAGE_MAX).await?;
    // A chunk is whatever it is: its first byte says nothing.
    let whole = if Parts::is(&message) && !matches!(name, Name::Chunk(_)) {
        let parts = Parts::from_bytes(&message).map_err(|e| RemoteError::damaged(remote, name, e.to_string()))?;
        if parts.bytes() > most {
            return Err(RemoteError::too_large(remote, name, parts.bytes(), most));
        }
        if let Some((_, length)) = parts.parts.iter().find(|(_, length)| !(1..=MESSAGE_MAX as u32).contains(length)) {
            let reason = format!("it lists a part of {length} bytes; expected 1 to {MESSAGE_MAX}");
            return Err(RemoteError::damaged(remote, name, reason));
        }
        let mut whole = Vec::with_capacity(usize::try_from(parts.bytes()).unwrap_or(0));
        // By value: a future that borrowed an element could not be sent between threads by those who wait for this one.
        let fetches = parts.parts.into_iter().map(|(sha256, length)| part(remote, sha256, length));
        let mut fetched = stream::iter(fetches).buffered(AT_A_TIME);
        while let Some(bytes) = fetched.try_next().await? {
            whole.extend_from_slice(&bytes);
        }
        whole
    } else if message.len() as u64 > most {
        return Err(RemoteError::too_large(remote, name, message.len() as u64, most));
    } else {
        message.into()
    };
    match name {
        Name::Target { sha256, .. } | Name::Chunk(sha256) => check_digest(remote, name, sha256, &whole)?,
        Name::Roots | Name::Timestamp | Name::Metadata { .. } => {}
    }
    Ok(whole)
}

async fn part(remote: &dyn Remote, sha256: Sha256, length: u32) -> Result<Bytes, RemoteError> {
    let name = Name::Chunk(sha256);
    let bytes = remote.message(&name, length as usize).await?;
    check_digest(remote, &name, &sha256, &bytes)?;
    if bytes.len() != length as usize {
        let reason = format!("{} bytes; the list says {length}", bytes.len());
        return Err(RemoteError::damaged(remote, &name, reason));
    }
    Ok(bytes)
}

fn check_digest(remote: &dyn Remote, name: &Name, expected: &Sha256, bytes: &[u8]) -> Result<(), RemoteError> {
    let found = Digest::of(bytes);
    if found.0 == *expected {
        return Ok(());
    }
    let reason = format!("{} bytes with SHA-256 {found}, not {}", bytes.len(), Hex(expected));
    Err(RemoteError::damaged(remote, name, reason))
}

/// Puts an object there: as one message, or as parts, which go before their list. Gives the chunks that it now consists
/// of, none if it is one message; they are part of what the depot needs.
///
/// # Errors
/// [`RemoteError`] of the shelf, or [`RemoteError::TooLarge`] if even the list of the parts is larger than a message.
pub async fn put_object(shelf: &dyn Shelf, name: &Name, bytes: Vec<u8>) -> Result<Vec<Sha256>, RemoteError> {
    put_object_beside(shelf, name, bytes, &|_| false).await
}

/// [`put_object`], without sending the parts that are `there` already.
///
/// # Errors
/// As [`put_object`].
pub async fn put_object_beside(
    shelf: &dyn Shelf,
    name: &Name,
    bytes: Vec<u8>,
    there: &(dyn Fn(&Sha256) -> bool + Send + Sync),
) -> Result<Vec<Sha256>, RemoteError> {
    if bytes.len() <= MESSAGE_MAX {
        shelf.put(name, bytes.into()).await?;
        return Ok(Vec::new());
    }
    let (list, pieces) = cut(bytes.into());
    let message = list.to_bytes();
    if message.len() > MESSAGE_MAX {
        return Err(RemoteError::too_large(shelf, name, message.len() as u64, MESSAGE_MAX as u64));
    }
    let new = pieces.into_iter().filter(|(sha256, _)| !there(sha256));
    stream::iter(new.map(|(sha256, piece)| async move { shelf.put(&Name::Chunk(sha256), piece).await }))
        .buffer_unordered(AT_A_TIME)
        .try_collect::<()>()
        .await?;
    shelf.put(name, message.into()).await?;
    Ok(list.parts.into_iter().map(|(sha256, _)| sha256).collect())
}

/// Cuts an object by its content; gives each different piece once.
fn cut(object: Bytes) -> (Parts, Vec<(Sha256, Bytes)>) {
    let [least, average, most] = PART_BYTES;
    let mut list = Parts { parts: Vec::new() };
    let mut pieces = std::collections::BTreeMap::new();
    for piece in FastCDC::new(&object, least, average, most) {
        let bytes = object.slice(piece.offset..piece.offset + piece.length);
        let sha256 = Digest::of(&bytes).0;
        list.parts.push((sha256, piece.length as u32));
        pieces.insert(sha256, bytes);
    }
    (list, pieces.into_iter().collect())
}

/// A depot in a folder: one file for each object, under its name.
///
/// Files are opened below the folder without following links, and written under another name first, so that a file
/// under an object's name is whole, also after a power cut. Reading and writing happen on tokio's threads for blocking
/// work: a memory stick may take its time.
#[derive(Debug, Clone)]
pub struct Folder {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    place: String,
}

/// Differs between writers of one process.
static WRITERS: AtomicU64 = AtomicU64::new(0);

impl Folder {
    /// A depot in the folder at `path`, which need not be there before something is put.
    pub fn new(path: &Path) -> Self {
        Self { inner: Arc::new(Inner { path: path.to_owned(), place: path.display().to_string() }) }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        name: &Name,
        work: impl FnOnce(&Inner, &Name) -> Result<T, RemoteError> + Send + 'static,
    ) -> Result<T, RemoteError> {
        let (inner, owned) = (Arc::clone(&self.inner), name.clone());
        match tokio::task::spawn_blocking(move || work(&inner, &owned)).await {
            Ok(done) => done,
            // The runtime ends, or the work panicked.
            Err(error) => Err(self.inner.failed(name, error.to_string())),
        }
    }
}

#[async_trait]
impl Remote for Folder {
    async fn message(&self, name: &Name, most: usize) -> Result<Bytes, RemoteError> {
        self.blocking(name, move |inner, name| inner.read(name, most)).await
    }

    fn place(&self) -> &str {
        &self.inner.place
    }
}

#[async_trait]
impl Shelf for Folder {
    async fn put(&self, name: &Name, message: Bytes) -> Result<(), RemoteError> {
        self.blocking(name, move |inner, name| inner.write(name, &message)).await
    }

    async fn remove(&self, name: &Name) -> Result<(), RemoteError> {
        self.blocking(name, |inner, name| inner.remove(name)).await
    }
}

const READ_FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Inner {
    fn failed(&self, name: &Name, reason: impl Into<String>) -> RemoteError {
        RemoteError::Failed { place: self.place.clone(), name: name.clone(), reason: reason.into() }
    }

    fn errno(&self, name: &Name, doing: &str, error: impl Into<std::io::Error>) -> RemoteError {
        self.failed(name, format!("{doing}: {}", error.into()))
    }

    /// The depot's folder.
    fn root(&self, name: &Name) -> Result<File, RemoteError> {
        let root = openat(CWD, &self.path, READ_FOLDER, Mode::empty());
        root.map(File::from).map_err(|e| self.errno(name, "the depot's folder cannot be opened", e))
    }

    /// The folder that an object's file is in, if it is there.
    fn folder(&self, name: &Name, root: &File, kind: &str) -> Result<Option<File>, RemoteError> {
        match openat(root, kind, READ_FOLDER | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(folder) => Ok(Some(folder.into())),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::LOOP | Errno::NOTDIR) => {
                Err(self.failed(name, format!("{kind} is not a folder; a depot has no links and no files there")))
            }
            Err(error) => Err(self.errno(name, &format!("{kind} cannot be opened"), error)),
        }
    }

    fn read(&self, name: &Name, most: usize) -> Result<Bytes, RemoteError> {
        let text = name.to_string();
        let (kind, file_name) = text.split_once('/').expect("every name has a kind");
        let absent = || RemoteError::Absent { place: self.place.clone(), name: name.clone() };
        let root = self.root(name)?;
        let folder = self.folder(name, &root, kind)?.ok_or_else(absent)?;
        // Without waiting for somebody who writes to a named pipe.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut file: File = match openat(&folder, file_name, flags, Mode::empty()) {
            Ok(file) => file.into(),
            Err(Errno::NOENT) => return Err(absent()),
            Err(Errno::LOOP) => return Err(self.failed(name, "it is a symbolic link; a depot has only plain files")),
            Err(error) => return Err(self.errno(name, "it cannot be opened", error)),
        };
        let metadata = file.metadata().map_err(|e| self.errno(name, "it cannot be read", e))?;
        if !metadata.is_file() {
            return Err(self.failed(name, "it is no plain file; a depot has only those"));
        }
        let too_large =
            |found| RemoteError::TooLarge { place: self.place.clone(), name: name.clone(), found, most: most as u64 };
        if metadata.len() > most as u64 {
            return Err(too_large(metadata.len()));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
        // It may grow meanwhile.
        let mut bounded = (&mut file).take(most as u64 + 1);
        bounded.read_to_end(&mut bytes).map_err(|e| self.errno(name, "it cannot be read", e))?;
        if bytes.len() > most {
            return Err(too_large(bytes.len() as u64));
        }
        Ok(bytes.into())
    }

    fn write(&self, name: &Name, bytes: &[u8]) -> Result<(), RemoteError> {
        let text = name.to_string();
        let (kind, file_name) = text.split_once('/').expect("every name has a kind");
        let doing = "it cannot be written";
        std::fs::create_dir_all(&self.path).map_err(|e| self.errno(name, "the depot's folder cannot be made", e))?;
        let root = self.root(name)?;
        let folder = match self.folder(name, &root, kind)? {
            Some(folder) => folder,
            None => {
                match mkdirat(&root, kind, Mode::from_raw_mode(0o755)) {
                    // Another writer was faster.
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(self.errno(name, &format!("{kind} cannot be made"), error)),
                }
                root.sync_all().map_err(|e| self.errno(name, doing, e))?;
                let gone = || self.failed(name, format!("{kind} was taken away while it was written to"));
                self.folder(name, &root, kind)?.ok_or_else(gone)?
            }
        };
        // No object's name starts with a dot.
        let writer = WRITERS.fetch_add(1, Ordering::Relaxed);
        let temporary = format!(".new-{}-{writer}", std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || openat(&folder, &*temporary, flags, Mode::from_raw_mode(0o644)).map(File::from);
        let mut file = match open() {
            // Left by a process that had this id and ended while it wrote.
            Err(Errno::EXIST) => unlinkat(&folder, &*temporary, AtFlags::empty()).and_then(|()| open()),
            opened => opened,
        }
        .map_err(|e| self.errno(name, doing, e))?;
        let written = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| {
            renameat(&folder, &*temporary, &folder, file_name)?;
            folder.sync_all()
        });
        written.map_err(|error| {
            // What is left of it is no object; if it cannot be removed, that is not what went wrong.
            let _ = unlinkat(&folder, &*temporary, AtFlags::empty());
            self.errno(name, doing, error)
        })
    }

    fn remove(&self, name: &Name) -> Result<(), RemoteError> {
        let text = name.to_string();
        let (kind, file_name) = text.split_once('/').expect("every name has a kind");
        let root = self.root(name)?;
        let Some(folder) = self.folder(name, &root, kind)? else { return Ok(()) };
        let doing = "it cannot be removed";
        match unlinkat(&folder, file_name, AtFlags::empty()) {
            Ok(()) => folder.sync_all().map_err(|e| self.errno(name, doing, e)),
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(self.errno(name, doing, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    use super::*;

    /// A depot in memory, which counts what is put and how much is fetched at a time.
    #[derive(Default)]
    struct Memory {
        messages: Mutex<std::collections::BTreeMap<Name, Bytes>>,
        put: Mutex<Vec<Name>>,
        fetching: AtomicU64,
        most_fetching: AtomicU64,
    }

    #[async_trait]
    impl Remote for Memory {
        async fn message(&self, name: &Name, most: usize) -> Result<Bytes, RemoteError> {
            let fetching = self.fetching.fetch_add(1, Ordering::Relaxed) + 1;
            self.most_fetching.fetch_max(fetching, Ordering::Relaxed);
            tokio::task::yield_now().await;
            self.fetching.fetch_sub(1, Ordering::Relaxed);
            let found = self.messages.lock().unwrap().get(name).cloned();
            let message = found.ok_or_else(|| RemoteError::Absent { place: "memory".into(), name: name.clone() })?;
            if message.len() > most {
                return Err(RemoteError::too_large(self, name, message.len() as u64, most as u64));
            }
            Ok(message)
        }

        fn place(&self) -> &str {
            "memory"
        }
    }

    #[async_trait]
    impl Shelf for Memory {
        async fn put(&self, name: &Name, message: Bytes) -> Result<(), RemoteError> {
            assert!(message.len() <= MESSAGE_MAX);
            self.put.lock().unwrap().push(name.clone());
            self.messages.lock().unwrap().insert(name.clone(), message);
            Ok(())
        }

        async fn remove(&self, name: &Name) -> Result<(), RemoteError> {
            self.messages.lock().unwrap().remove(name);
            Ok(())
        }
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    /// Text that does not repeat.
    fn targets(lines: std::ops::Range<u64>) -> Vec<u8> {
        let digest = |number: u64| -> Sha256 { Digest::of(&number.to_le_bytes()).0 };
        let line = |number: u64| format!("{{ {}: {number} }}\n", Hex(&digest(number)));
        lines.map(line).collect::<String>().into_bytes()
    }

    fn metadata(version: u64) -> Name {
        Name::Metadata { version, role: "targets".to_owned() }
    }

    #[test]
    fn an_object_larger_than_a_message_goes_as_parts_and_comes_back_several_at_a_time() {
        let memory = Memory::default();
        let bytes = targets(0..10_000);
        run(async {
            let chunks = put_object(&memory, &metadata(1), bytes.clone()).await.unwrap();
            assert!(chunks.len() > 12, "{}", chunks.len());
            assert_eq!(memory.put.lock().unwrap().last(), Some(&metadata(1)), "the list goes last");
            assert_eq!(object(&memory, &metadata(1), bytes.len() as u64).await.unwrap(), bytes);
            let most = bytes.len() as u64 - 1;
            let error = object(&memory, &metadata(1), most).await.unwrap_err();
            assert!(matches!(error, RemoteError::TooLarge { found, .. } if found == most + 1), "{error}");
        });
        assert_eq!(memory.most_fetching.into_inner(), AT_A_TIME as u64);
    }

    #[test]
    fn a_targets_file_that_grew_in_the_middle_sends_little_again() {
        let memory = Memory::default();
        run(async {
            let old = put_object(&memory, &metadata(1), targets(0..10_000)).await.unwrap();
            memory.put.lock().unwrap().clear();
            let grown = [targets(0..5000), targets(20_000..20_001), targets(5000..10_000)].concat();
            let there: BTreeSet<Sha256> = old.into_iter().collect();
            put_object_beside(&memory, &metadata(2), grown.clone(), &|sha256| there.contains(sha256)).await.unwrap();
            let sent = memory.put.lock().unwrap().len();
            assert!(sent <= 4, "{sent} messages");
            assert_eq!(object(&memory, &metadata(2), 1 << 20).await.unwrap(), grown);
        });
    }

    #[test]
    fn a_small_object_is_one_message() {
        let memory = Memory::default();
        run(async {
            assert!(put_object(&memory, &Name::Timestamp, vec![b'{'; 100]).await.unwrap().is_empty());
            assert_eq!(object(&memory, &Name::Timestamp, 100).await.unwrap(), [b'{'; 100]);
            let error = object(&memory, &Name::Timestamp, 99).await.unwrap_err();
            assert!(matches!(error, RemoteError::TooLarge { .. }), "{error}");
        });
    }

    #[test]
    fn parts_that_are_not_what_the_list_says_are_refused() {
        let memory = Memory::default();
        let bytes = targets(0..2000);
        run(async {
            let chunks = put_object(&memory, &metadata(1), bytes.clone()).await.unwrap();
            let good = memory.messages.lock().unwrap().clone();
            let list = Parts::from_bytes(&good[&metadata(1)]).unwrap();
            // A flipped bit.
            let name = Name::Chunk(chunks[1]);
            let mut flipped = good[&name].to_vec();
            flipped[7] ^= 1;
            memory.put(&name, flipped.into()).await.unwrap();
            let error = object(&memory, &metadata(1), 1 << 20).await.unwrap_err();
            assert!(matches!(&error, RemoteError::Damaged { name: found, .. } if *found == name), "{error}");
            memory.put(&name, good[&name].clone()).await.unwrap();
            // Lengths that lie.
            for lie in [0, 5, MESSAGE_MAX as u32, MESSAGE_MAX as u32 + 1, u32::MAX] {
                let mut list = list.clone();
                list.parts[1].1 = lie;
                memory.put(&metadata(1), list.to_bytes().into()).await.unwrap();
                object(&memory, &metadata(1), u64::MAX).await.unwrap_err();
            }
            // A list that goes on and on.
            let endless = Parts { parts: vec![(chunks[0], MESSAGE_MAX as u32); 1500] };
            memory.put(&metadata(1), endless.to_bytes().into()).await.unwrap();
            let error = object(&memory, &metadata(1), 1 << 20).await.unwrap_err();
            assert!(matches!(error, RemoteError::TooLarge { .. }), "{error}");
            // A list cut short.
            let short = good[&metadata(1)].slice(..good[&metadata(1)].len() - 1);
            memory.put(&metadata(1), short).await.unwrap();
            let error = object(&memory, &metadata(1), 1 << 20).await.unwrap_err();
            assert!(matches!(error, RemoteError::Damaged { .. }), "{error}");
        });
    }

    #[test]
    fn a_target_must_have_the_digest_in_its_name_also_when_it_comes_in_parts() {
        let memory = Memory::default();
        run(async {
            for bytes in [targets(0..10), targets(0..2000)] {
                let right = Name::target(Digest::of(&bytes).0, "a-1.0.0.index").unwrap();
                let wrong = Name::target([1; 32], "a-1.0.0.index").unwrap();
                put_object(&memory, &right, bytes.clone()).await.unwrap();
                put_object(&memory, &wrong, bytes.clone()).await.unwrap();
                assert_eq!(object(&memory, &right, 1 << 20).await.unwrap(), bytes);
                let error = object(&memory, &wrong, 1 << 20).await.unwrap_err();
                assert!(matches!(error, RemoteError::Damaged { .. }), "{error}");
            }
        });
    }

    #[test]
    fn a_chunk_that_looks_like_a_list_of_parts_is_a_chunk() {
        let memory = Memory::default();
        let bytes = Parts { parts: vec![([1; 32], 5)] }.to_bytes();
        let name = Name::Chunk(Digest::of(&bytes).0);
        run(async {
            memory.put(&name, bytes.clone().into()).await.unwrap();
            assert_eq!(object(&memory, &name, 1000).await.unwrap(), bytes);
        });
    }

    #[test]
    fn a_folder_keeps_objects_under_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("depot");
        let depot = Folder::new(&path);
        run(async {
            let error = depot.message(&Name::Roots, 10).await.unwrap_err();
            assert!(matches!(error, RemoteError::Failed { .. }), "without a folder nothing is certain: {error}");
            depot.put(&Name::Timestamp, Bytes::from_static(b"{1}")).await.unwrap();
            depot.put(&Name::Timestamp, Bytes::from_static(b"{22}")).await.unwrap();
            assert_eq!(depot.message(&Name::Timestamp, 4).await.unwrap(), &b"{22}"[..]);
            assert_eq!(std::fs::read(path.join("meta/timestamp")).unwrap(), b"{22}");
            assert_eq!(std::fs::read_dir(path.join("meta")).unwrap().count(), 1, "nothing else is left there");
            let error = depot.message(&Name::Timestamp, 3).await.unwrap_err();
            assert!(matches!(error, RemoteError::TooLarge { found: 4, most: 3, .. }), "{error}");
            for name in [Name::Roots, Name::Chunk([1; 32])] {
                assert!(matches!(depot.message(&name, 10).await, Err(RemoteError::Absent { .. })));
                depot.remove(&name).await.unwrap();
            }
            depot.remove(&Name::Timestamp).await.unwrap();
            assert!(matches!(depot.message(&Name::Timestamp, 10).await, Err(RemoteError::Absent { .. })));
        });
    }

    #[test]
    fn a_folder_follows_no_links_and_waits_for_no_pipes() {
        let folder = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("timestamp"), "secret").unwrap();
        let depot = Folder::new(folder.path());
        std::os::unix::fs::symlink(outside.path(), folder.path().join("chunk")).unwrap();
        std::fs::create_dir_all(folder.path().join("meta/roots")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("timestamp"), folder.path().join("meta/timestamp")).unwrap();
        let fifo = "1.targets";
        let meta = File::open(folder.path().join("meta")).unwrap();
        rustix::fs::mknodat(&meta, fifo, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        run(async {
            for name in [Name::Timestamp, Name::Chunk([1; 32]), metadata(1), Name::Roots] {
                let error = depot.message(&name, 10).await.unwrap_err();
                assert!(matches!(error, RemoteError::Failed { .. }), "{error}");
            }
            depot.put(&Name::Chunk([1; 32]), Bytes::new()).await.unwrap_err();
            assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
            // A link is replaced, not written through.
            depot.put(&Name::Timestamp, Bytes::from_static(b"{}")).await.unwrap();
            assert_eq!(depot.message(&Name::Timestamp, 10).await.unwrap(), &b"{}"[..]);
            assert_eq!(std::fs::read(outside.path().join("timestamp")).unwrap(), b"secret");
        });
    }
}
