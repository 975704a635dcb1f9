//! The publisher's own copy of what it signed, beside its keys, and what it knows of each place that it sent it to.
//!
//! Under `<keys>/metadata/`:
//! - `set.json`: the signed documents, `{"v":1,"roots":[…],"timestamp":…,"snapshot":…,"targets":…,"rollout":…}`, each as
//!   the text that was signed. Its rename is the moment at which a new set holds.
//! - `target/<sha256>.<name>`: the content of targets.
//! - `places/<id>.log`: the journal of one place, one JSON object a line; the last line about a name holds, and a last
//!   line that was cut off is as if it had not been written.
//! - `lock`: one publisher at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use jiff::Timestamp as Moment;
use limpet_wire::depot::{Hex, Name, Parts, Sha256};
use serde::{Deserialize, Serialize};

use super::set::Set;
use super::{PublishError, keys};
use crate::package::Digest;

/// Version of `set.json`.
const VERSION: u32 = 1;
/// A journal is written anew when it has so many more lines than names.
const COMPACT_LINES: usize = 1000;

/// The publisher's own copy.
#[derive(Debug)]
pub struct Home {
    folder: PathBuf,
    /// Held as long as this is.
    lock: File,
}

/// The documents of `set.json`.
#[derive(Serialize, Deserialize)]
pub(super) struct Documents {
    v: u32,
    pub(super) roots: Vec<String>,
    pub(super) timestamp: String,
    pub(super) snapshot: String,
    pub(super) targets: String,
    pub(super) rollout: String,
}

impl Drop for Home {
    fn drop(&mut self) {
        // Closing is not enough: a child that another thread has just forked holds the file too, until it is another program.
        // What cannot be unlocked goes with the last of them.
        let _ = self.lock.unlock();
    }
}

impl Home {
    /// Opens the copy beside the keys in `keys`, and keeps other publishers out of it.
    ///
    /// # Errors
    /// [`PublishError`], also if another publisher is at work.
    pub fn open(keys: &Path) -> Result<Self, PublishError> {
        if !keys.is_dir() {
            return Err(PublishError::Refused(format!(
                "{}: there is no such folder; expected the one with the keys: name it with --keys, or make a new depot with \
                 `limpet-lab depot init`",
                keys.display()
            )));
        }
        let folder = keys.join("metadata");
        for folder in [&folder, &folder.join("target"), &folder.join("places")] {
            keys::make_folder(folder)?;
        }
        let path = folder.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(PublishError::io(&path, "opened"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { folder, lock }),
            Err(TryLockError::WouldBlock) => Err(PublishError::Busy(path)),
            Err(TryLockError::Error(error)) => Err(PublishError::io(&path, "locked")(error)),
        }
    }

    /// Where the signed documents are.
    pub fn set_path(&self) -> PathBuf {
        self.folder.join("set.json")
    }

    /// Whether there is a set.
    pub fn has_set(&self) -> bool {
        self.set_path().exists()
    }

    /// The documents, and how to read the content of a target.
    #[expect(clippy::type_complexity, reason = "a reader and what it reads belong together, for one caller")]
    pub(super) fn read(
        &self,
    ) -> Result<(Documents, impl Fn(&Sha256, &str) -> Result<Bytes, PublishError> + '_), PublishError> {
        let path = self.set_path();
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(PublishError::Refused(format!(
                    "{}: nothing was signed with these keys yet; begin with `limpet-lab depot init`",
                    path.display()
                )));
            }
            other => other.map_err(PublishError::io(&path, "read"))?,
        };
        let wrong = |reason: String| PublishError::metadata(path.display().to_string(), reason);
        let documents: Documents = serde_json::from_slice(&text)
            .map_err(|error| wrong(format!("is damaged: {error}; copy it from a backup of this folder")))?;
        if documents.v > VERSION {
            return Err(wrong(format!("is of version {}; this program knows {VERSION} at most", documents.v)));
        }
        let read_target = |digest: &Sha256, name: &str| {
            let path = self.target_path(digest, name);
            std::fs::read(&path).map(Bytes::from).map_err(PublishError::io(&path, "read"))
        };
        Ok((documents, read_target))
    }

    fn target_path(&self, digest: &Sha256, name: &str) -> PathBuf {
        self.folder.join("target").join(format!("{}.{name}", Hex(digest)))
    }

    /// Saves a set: from then on it is the one that holds.
    ///
    /// # Errors
    /// [`PublishError::Io`].
    pub fn save(&self, set: &Set) -> Result<(), PublishError> {
        for (path, bytes) in &set.contents {
            let path = self.target_path(&Digest::of(bytes).0, super::set::object_of(path));
            if !path.exists() {
                write(&path, bytes)?;
            }
        }
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).expect("JSON is UTF-8");
        let documents = Documents {
            v: VERSION,
            roots: set.roots.iter().map(|root| text(&root.bytes)).collect(),
            timestamp: text(&set.timestamp.bytes),
            snapshot: text(&set.snapshot.bytes),
            targets: text(&set.targets.bytes),
            rollout: text(&set.rollout.bytes),
        };
        write(&self.set_path(), &serde_json::to_vec(&documents).expect("texts serialize"))
    }

    /// Removes the content of targets that a set does not name.
    ///
    /// # Errors
    /// [`PublishError::Io`].
    pub fn tidy(&self, set: &Set) -> Result<(), PublishError> {
        let objects = set.contents.iter().map(|(path, bytes)| (Digest::of(bytes).0, super::set::object_of(path)));
        let wanted: BTreeSet<PathBuf> = objects.map(|(digest, name)| self.target_path(&digest, name)).collect();
        let folder = self.folder.join("target");
        for entry in std::fs::read_dir(&folder).map_err(PublishError::io(&folder, "read"))? {
            let path = entry.map_err(PublishError::io(&folder, "read"))?.path();
            if !wanted.contains(&path) {
                std::fs::remove_file(&path).map_err(PublishError::io(&path, "removed"))?;
            }
        }
        Ok(())
    }

    /// The journal of a place.
    ///
    /// # Errors
    /// [`PublishError::Io`].
    pub fn journal(&self, place: &str) -> Result<Journal, PublishError> {
        let id = Digest::of(place.as_bytes()).to_string();
        Journal::open(self.folder.join("places").join(format!("{}.log", &id[..16])))
    }
}

/// Writes a file so that it is there whole or not at all, also after a power cut.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), PublishError> {
    crate::replace::replace(path, ".tmp", bytes).map_err(PublishError::io(path, "written"))
}

/// What was sent to one place.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    entries: BTreeMap<String, Entry>,
}

/// What is known of one object at one place.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Entry {
    /// Whether it was acknowledged; if not, it may be there.
    there: bool,
    /// The chunks that hold it, if it was too large for one message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pieces: Vec<String>,
    /// Digest of the object, where the name does not tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    /// Since when nobody names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    idle: Option<Moment>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    name: String,
    #[serde(flatten)]
    entry: Option<Entry>,
}

impl Journal {
    fn open(path: PathBuf) -> Result<Self, PublishError> {
        let mut entries = BTreeMap::new();
        let mut lines = 0;
        let mut whole = true;
        match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(PublishError::io(&path, "read")(error)),
            Ok(text) => {
                whole = text.is_empty() || text.ends_with('\n');
                for line in text.lines() {
                    lines += 1;
                    let Ok(line) = serde_json::from_str::<Line>(line) else {
                        whole = false;
                        continue;
                    };
                    match line.entry {
                        Some(entry) => entries.insert(line.name, entry),
                        None => entries.remove(&line.name),
                    };
                }
            }
        }
        if !whole || lines > entries.len() + COMPACT_LINES {
            let mut text = Vec::new();
            for (name, entry) in &entries {
                text.extend(line(name, Some(entry)));
            }
            write(&path, &text)?;
        }
        let file =
            OpenOptions::new().create(true).append(true).open(&path).map_err(PublishError::io(&path, "opened"))?;
        Ok(Self { path, file, entries })
    }

    fn set(&mut self, name: String, entry: Option<Entry>) -> Result<(), PublishError> {
        if self.entries.get(&name) == entry.as_ref() {
            return Ok(());
        }
        let text = line(&name, entry.as_ref());
        self.file.write_all(&text).map_err(PublishError::io(&self.path, "written"))?;
        match entry {
            Some(entry) => self.entries.insert(name, entry),
            None => self.entries.remove(&name),
        };
        Ok(())
    }

    /// A message is about to go out.
    pub(super) fn sending(&mut self, name: &Name, message: &[u8]) -> Result<(), PublishError> {
        let parts = if Parts::is(message) { Parts::from_bytes(message).ok() } else { None };
        let pieces = parts.map_or(Vec::new(), |parts| {
            parts.parts.iter().map(|(digest, _)| Name::Chunk(*digest).to_string()).collect()
        });
        let idle = self.entries.get(&name.to_string()).and_then(|entry| entry.idle);
        self.set(name.to_string(), Some(Entry { there: false, pieces, content: None, idle }))
    }

    /// It was acknowledged.
    pub(super) fn sent(&mut self, name: &Name) -> Result<(), PublishError> {
        let entry = self.entries.get(&name.to_string()).cloned().unwrap_or_default();
        self.set(name.to_string(), Some(Entry { there: true, ..entry }))
    }

    /// The whole object of this content is there under that name.
    pub(super) fn holds(&mut self, name: &Name, content: &[u8]) -> Result<(), PublishError> {
        let entry = self.entries.get(&name.to_string()).cloned().unwrap_or_default();
        let content = Some(Digest::of(content).to_string());
        self.set(name.to_string(), Some(Entry { there: true, content, ..entry }))
    }

    /// It is there, says a signed set that was read back.
    pub(super) fn found(&mut self, name: &Name) -> Result<(), PublishError> {
        self.sent(name)
    }

    /// It was removed.
    pub(super) fn removed(&mut self, name: &Name) -> Result<(), PublishError> {
        self.set(name.to_string(), None)
    }

    /// Whether it is there for all that is known.
    pub(super) fn there(&self, name: &Name) -> bool {
        self.entries.get(&name.to_string()).is_some_and(|entry| entry.there)
    }

    /// Whether the object of this content is there under that name.
    pub(super) fn has_content(&self, name: &Name, content: &[u8]) -> bool {
        let digest = Digest::of(content).to_string();
        self.entries.get(&name.to_string()).is_some_and(|entry| entry.there && entry.content.as_ref() == Some(&digest))
    }

    /// Notes since when what `set` does not name is named by nobody.
    pub(super) fn mark(&mut self, set: &Set, now: Moment) -> Result<(), PublishError> {
        let mut wanted: BTreeSet<String> = set.names().iter().map(Name::to_string).collect();
        let pieces: Vec<String> =
            wanted.iter().filter_map(|name| self.entries.get(name)).flat_map(|entry| entry.pieces.clone()).collect();
        wanted.extend(pieces);
        let changed: Vec<(String, Entry)> = self
            .entries
            .iter()
            .filter(|(name, entry)| wanted.contains(*name) == entry.idle.is_some())
            .map(|(name, entry)| {
                let idle = if wanted.contains(name) { None } else { Some(now) };
                (name.clone(), Entry { idle, ..entry.clone() })
            })
            .collect();
        for (name, entry) in changed {
            self.set(name, Some(entry))?;
        }
        Ok(())
    }

    /// What nobody has named since `until` or longer, in the order in which it is to be removed: the reverse of that in
    /// which it was put.
    pub(super) fn idle(&self, until: Moment) -> Vec<Name> {
        let order = |name: &Name| match name {
            Name::Timestamp | Name::Roots => 0,
            Name::Metadata { role, .. } if role == "snapshot" => 1,
            Name::Metadata { .. } => 2,
            Name::Target { .. } => 3,
            Name::Chunk(_) => 4,
        };
        let idle = self.entries.iter().filter(|(_, entry)| entry.idle.is_some_and(|since| since <= until));
        let mut names: Vec<Name> = idle.filter_map(|(name, _)| name.parse().ok()).collect();
        names.sort_by_key(order);
        names
    }

    /// How many objects nobody names, though they wait for their grace time to end.
    pub(super) fn idle_count(&self) -> usize {
        self.entries.values().filter(|entry| entry.idle.is_some()).count()
    }
}

fn line(name: &str, entry: Option<&Entry>) -> Vec<u8> {
    let mut text = serde_json::to_vec(&Line { name: name.to_owned(), entry: entry.cloned() }).expect("texts serialize");
    text.push(b'\n');
    text
}
