//! Upkeep of a depot: reading everything back, putting back what is missing, taking over what another publisher did, and
//! removing what nobody names any more.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use futures_util::StreamExt as _;
use jiff::SignedDuration;
use limpet_wire::depot::{Name, Sha256};

use super::{AT_ONCE, Journaled, Publisher, TIMESTAMP_MAX, save_root};
use crate::Package;
use crate::chunk::{cut, expand};
use crate::publish::PublishError;
use crate::publish::set::{Role, Set};
use crate::remote::{RemoteError, Shelf as _, put_object};

/// What reading everything back found.
#[derive(Debug, Default)]
pub struct Checked {
    /// Objects that were read.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
    /// What is missing or damaged.
    pub problems: Vec<Problem>,
}

/// An object that is not there or not right.
#[derive(Debug)]
pub struct Problem {
    /// The object.
    pub name: Name,
    /// What it belongs to: `motor-health 1.2.0`, or none for metadata.
    pub of: Option<String>,
    /// What is wrong.
    pub reason: String,
}

/// What was put back.
#[derive(Debug, Default)]
pub struct Repaired {
    /// Objects that were sent.
    pub sent: usize,
    /// Their bytes.
    pub bytes: u64,
    /// What could not be put back, because its package was not given.
    pub left: Vec<Problem>,
}

/// What was removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Objects that were removed.
    pub objects: usize,
    /// Objects that nobody names, and that wait for the end of their grace time.
    pub waiting: usize,
}

impl Publisher<'_> {
    /// Removes what no current metadata has named for `grace`: whoever is reading an older set still finds it till then.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn collect(&mut self, grace: SignedDuration) -> Result<Removed, PublishError> {
        self.settle().await?;
        self.journal().mark(&self.set, self.now)?;
        let until = self.now.checked_sub(grace).map_err(|_| {
            PublishError::Refused(format!("a grace time of {grace:#} makes no sense; expected hours or days"))
        })?;
        let idle = self.journal().idle(until);
        let mut removed = Removed::default();
        for name in idle {
            self.shelf.remove(&name).await?;
            self.journal().removed(&name)?;
            removed.objects += 1;
        }
        self.home.tidy(&self.set)?;
        removed.waiting = self.journal().idle_count();
        Ok(removed)
    }

    /// Reads everything back and compares it.
    ///
    /// # Errors
    /// [`PublishError::Conflict`] if somebody else published.
    pub async fn verify(&self) -> Result<Checked, PublishError> {
        match self.standing().await {
            Ok(_) | Err(PublishError::Metadata { .. }) => {}
            Err(PublishError::Remote(RemoteError::Damaged { .. } | RemoteError::TooLarge { .. })) => {}
            Err(error) => return Err(error),
        }
        let objects = self.set.objects();
        let mut chunks: BTreeMap<Sha256, (u32, String)> = BTreeMap::new();
        let mut references = BTreeMap::new();
        for index in self.set.indexes().values() {
            for chunk in &index.chunks {
                let of = || (chunk.stored_len, format!("{} {}", index.model, index.version));
                chunks.entry(chunk.stored).or_insert_with(of);
                references.entry(chunk.stored).or_insert(*chunk);
            }
        }
        let all: u64 = objects.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>()
            + chunks.values().map(|(length, _)| u64::from(*length)).sum::<u64>();
        self.watch.begin("reading everything back", all);
        let mut checked = Checked::default();
        let mut see = |name: Name, of: Option<String>, length: u64, found: Result<(), String>| {
            checked.objects += 1;
            match found {
                Ok(()) => checked.bytes += length,
                Err(reason) => checked.problems.push(Problem { name, of, reason }),
            }
            self.watch.moved(length);
        };
        let read = |name: Name, most: usize| async move {
            match self.ask(&name, most).await {
                Ok(Some(bytes)) => Ok(bytes),
                Ok(None) => Err("it is not there".to_owned()),
                Err(PublishError::Silent { limit, .. }) => Err(format!("it did not come within {} s", limit.as_secs())),
                Err(PublishError::Remote(RemoteError::Damaged { reason, .. })) => Err(reason),
                Err(error) => Err(error.to_string()),
            }
        };
        let mut answers = futures_util::stream::iter(objects)
            .map(|(name, bytes)| async move {
                let found = match read(name.clone(), bytes.len().max(TIMESTAMP_MAX)).await {
                    Ok(found) if found == bytes => Ok(()),
                    Ok(found) => Err(format!("its {} bytes are not what was signed", found.len())),
                    Err(reason) => Err(reason),
                };
                (name, bytes.len() as u64, found)
            })
            .buffer_unordered(AT_ONCE);
        while let Some((name, length, found)) = answers.next().await {
            see(name, None, length, found);
        }
        let mut answers = futures_util::stream::iter(chunks)
            .map(|(digest, (length, of))| {
                let reference = references[&digest];
                async move {
                    let name = Name::Chunk(digest);
                    let found = match read(name.clone(), length as usize).await {
                        Ok(found) => expand(&reference, &found).map(|_| ()),
                        Err(reason) => Err(reason),
                    };
                    (name, of, u64::from(length), found)
                }
            })
            .buffer_unordered(AT_ONCE);
        while let Some((name, of, length, found)) = answers.next().await {
            see(name, Some(of), length, found);
        }
        self.watch.end();
        checked.problems.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(checked)
    }

    /// Puts back what is missing or damaged: metadata and targets from our own copy, chunks from `packages`.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn repair(&mut self, packages: &[Package]) -> Result<Repaired, PublishError> {
        let checked = self.verify().await?;
        let mut repaired = Repaired::default();
        let shelf = Journaled(self);
        let mut chunks: HashMap<Sha256, Bytes> = HashMap::new();
        if checked.problems.iter().any(|problem| matches!(problem.name, Name::Chunk(_))) {
            for package in packages {
                let (_, cuts) = cut(package, &HashMap::new())?;
                chunks.extend(cuts.into_iter().map(|cut| (cut.reference.stored, Bytes::from(cut.stored))));
            }
        }
        // Chunks first, and whatever is built on them after.
        let (broken, rest): (Vec<Problem>, Vec<Problem>) =
            checked.problems.into_iter().partition(|problem| matches!(problem.name, Name::Chunk(_)));
        for problem in broken {
            let Name::Chunk(digest) = problem.name else { continue };
            match chunks.get(&digest) {
                Some(bytes) => {
                    shelf.put(&problem.name, bytes.clone()).await?;
                    repaired.sent += 1;
                    repaired.bytes += bytes.len() as u64;
                }
                None => repaired.left.push(problem),
            }
        }
        let names: BTreeSet<Name> = rest.into_iter().map(|problem| problem.name).collect();
        for (name, bytes) in self.set.objects() {
            // Whatever waits for the chunks that nobody has would be told to gateways by a new timestamp only to fail.
            let held_back = name == Name::Timestamp && !repaired.left.is_empty();
            if !names.contains(&name) {
                continue;
            }
            if held_back {
                repaired.left.push(Problem {
                    name,
                    of: None,
                    reason: "it is held back until the chunks are there".to_owned(),
                });
                continue;
            }
            put_object(&shelf, &name, bytes.to_vec()).await?;
            self.journal().holds(&name, &bytes)?;
            repaired.sent += 1;
            repaired.bytes += bytes.len() as u64;
        }
        if repaired.left.is_empty() {
            self.journal().mark(&self.set, self.now)?;
        }
        Ok(repaired)
    }

    /// Takes over what the depot has, if it is newer than our own copy and signed by keys that follow from ours. Tells
    /// whether it was.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn adopt(&mut self) -> Result<bool, PublishError> {
        let limit = self.patience * 4;
        let found = tokio::time::timeout(limit, Set::fetch(self.shelf, &self.set));
        let found = match found.await {
            Ok(found) => found?,
            Err(_) => {
                return Err(PublishError::Silent {
                    place: self.shelf.place().to_owned(),
                    name: Name::Timestamp,
                    limit,
                });
            }
        };
        let older = Role::ALL.into_iter().find(|role| found.version(*role) < self.set.version(*role));
        if let Some(role) = older {
            return Err(PublishError::Conflict {
                place: self.shelf.place().to_owned(),
                reason: format!(
                    "its {} has version {}, and our copy {}: what is there is older, and is not taken over",
                    role.name(),
                    found.version(role),
                    self.set.version(role)
                ),
            });
        }
        if found.timestamp.bytes == self.set.timestamp.bytes {
            return Ok(false);
        }
        self.home.save(&found)?;
        save_root(self.ring, &found)?;
        self.set = found;
        self.settle().await?;
        Ok(true)
    }
}
