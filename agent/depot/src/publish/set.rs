//! A set: all signed metadata that belongs together, with the content of its targets.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;

use bytes::Bytes;
use jiff::Timestamp as Moment;
use limpet_wire::depot::{Described, Hex, Index, Name, Rollout, Sha256, index_name};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tough::schema::{
    Hashes, Metafile, Role as TufRole, RoleType, Root, Signature, Signed, Snapshot, Target, Targets, Timestamp,
};

use super::keys::SigningKey;
use super::{PublishError, home::Home};
use crate::package::Digest;
use crate::remote::{Remote, object};

/// TUF path of the target that says who gets which version.
pub const ROLLOUT_PATH: &str = "rollout/state.json";
/// Name of that target's object.
pub const ROLLOUT_OBJECT: &str = "rollout.json";
/// What the delegated role may sign.
pub const ROLLOUT_PATTERN: &str = "rollout/*";
/// Key of what the publisher signs beside TUF's own fields.
pub const EXTRA: &str = "limpet";

/// Largest objects that are read from a depot, in bytes: metadata, and a target.
const METADATA_MAX: usize = 16 << 20;
const TARGET_MAX: usize = 64 << 20;

/// Who signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Says which keys the others have; offline.
    Root,
    /// Says which packages and configurations there are; offline.
    Targets,
    /// Says which metadata belongs together; online.
    Snapshot,
    /// Says which snapshot is the newest; online.
    Timestamp,
    /// Says who gets which version; online.
    Rollout,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Root, Self::Targets, Self::Rollout, Self::Snapshot, Self::Timestamp];

    /// Its name in metadata, files and arguments.
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Targets => "targets",
            Self::Snapshot => "snapshot",
            Self::Timestamp => "timestamp",
            Self::Rollout => "rollout",
        }
    }

    /// The role of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    /// Whether its keys may be kept away from the machine that publishes every day.
    pub fn is_offline(self) -> bool {
        matches!(self, Self::Root | Self::Targets)
    }

    fn in_root(self) -> Option<RoleType> {
        match self {
            Self::Root => Some(RoleType::Root),
            Self::Targets => Some(RoleType::Targets),
            Self::Snapshot => Some(RoleType::Snapshot),
            Self::Timestamp => Some(RoleType::Timestamp),
            Self::Rollout => None,
        }
    }
}

/// Signed metadata and the bytes that it travels as.
#[derive(Debug, Clone)]
pub struct Document<T> {
    /// What is signed, and by whom.
    pub signed: Signed<T>,
    /// As it travels; digests are taken of these.
    pub bytes: Bytes,
}

impl<T: TufRole + Serialize + DeserializeOwned> Document<T> {
    /// Signs.
    pub(super) fn sign<'a>(role: T, keys: impl IntoIterator<Item = &'a SigningKey>) -> Self {
        let message = role.canonical_form().expect("metadata of plain values serializes");
        let mut signatures: BTreeMap<Sha256, Signature> = BTreeMap::new();
        // A key that is both an old and a new one signs once: a repeated id makes the document invalid.
        for key in keys {
            let signature = || Signature { keyid: key.id().to_vec().into(), sig: key.sign(&message).into() };
            signatures.entry(key.id()).or_insert_with(signature);
        }
        Self::new(Signed { signed: role, signatures: signatures.into_values().collect() })
    }

    fn new(signed: Signed<T>) -> Self {
        // Through a value, whose maps are sorted: the same metadata always gives the same bytes.
        let value = serde_json::to_value(&signed).expect("metadata of plain values serializes");
        let bytes = serde_json::to_vec(&value).expect("a value serializes").into();
        Self { signed, bytes }
    }

    pub(super) fn parse(place: &str, what: &str, bytes: Bytes) -> Result<Self, PublishError> {
        let signed = serde_json::from_slice(&bytes)
            .map_err(|error| PublishError::metadata(place, format!("{what} is damaged: {error}")))?;
        Ok(Self { signed, bytes })
    }

    /// How other metadata refers to it.
    pub(super) fn metafile(&self) -> Metafile {
        Metafile {
            length: Some(self.bytes.len() as u64),
            hashes: Some(hashes(&self.bytes)),
            version: self.signed.signed.version(),
            _extra: Default::default(),
        }
    }

    fn version(&self) -> u64 {
        self.signed.signed.version().get()
    }
}

/// Digests as metadata has them.
pub(super) fn hashes(bytes: &[u8]) -> Hashes {
    Hashes { sha256: Digest::of(bytes).0.to_vec().into(), _extra: Default::default() }
}

/// All signed metadata of one moment, and the targets that it names.
#[derive(Debug, Clone)]
pub struct Set {
    /// From version 1 on.
    pub roots: Vec<Document<Root>>,
    /// Says which snapshot is the newest.
    pub timestamp: Document<Timestamp>,
    /// Says which metadata belongs together.
    pub snapshot: Document<Snapshot>,
    /// Says which packages and configurations there are.
    pub targets: Document<Targets>,
    /// Says where the state of the rollout is.
    pub rollout: Document<Targets>,
    /// The content of every target, by its path.
    pub contents: BTreeMap<String, Bytes>,
}

impl Set {
    /// The newest root.
    pub fn root(&self) -> &Root {
        &self.roots.last().expect("a set has a root").signed.signed
    }

    /// Ids of a role's keys, and how many of them must sign.
    pub fn keys_of(&self, role: Role) -> (Vec<Sha256>, u64) {
        let (ids, threshold) = match role.in_root() {
            Some(kind) => self
                .root()
                .roles
                .get(&kind)
                .map(|keys| (&keys.keyids[..], keys.threshold))
                .unwrap_or((&[], NonZeroU64::MIN)),
            None => self
                .delegation()
                .map(|delegated| (&delegated.keyids[..], delegated.threshold))
                .unwrap_or((&[], NonZeroU64::MIN)),
        };
        // An id that is no SHA-256 belongs to no key that could sign.
        (ids.iter().filter_map(|id| Sha256::try_from(&**id).ok()).collect(), threshold.get())
    }

    fn delegation(&self) -> Option<&tough::schema::DelegatedRole> {
        self.targets.signed.signed.delegations.as_ref()?.roles.iter().find(|role| role.name == Role::Rollout.name())
    }

    /// Version of a role's metadata.
    pub fn version(&self, role: Role) -> u64 {
        match role {
            Role::Root => self.root().version.get(),
            Role::Targets => self.targets.version(),
            Role::Snapshot => self.snapshot.version(),
            Role::Timestamp => self.timestamp.version(),
            Role::Rollout => self.rollout.version(),
        }
    }

    /// When a role's metadata ends.
    pub fn expires(&self, role: Role) -> Moment {
        match role {
            Role::Root => self.root().expires,
            Role::Targets => self.targets.signed.signed.expires,
            Role::Snapshot => self.snapshot.signed.signed.expires,
            Role::Timestamp => self.timestamp.signed.signed.expires,
            Role::Rollout => self.rollout.signed.signed.expires,
        }
    }

    /// Who gets which version.
    pub fn state(&self) -> Rollout {
        // It was read when the set was verified.
        self.contents.get(ROLLOUT_PATH).and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default()
    }

    /// The indexes, by the name of their target.
    pub fn indexes(&self) -> BTreeMap<&str, Index> {
        let indexes = self.contents.iter().filter(|(path, _)| path.ends_with(".index"));
        indexes.filter_map(|(path, bytes)| Some((path.as_str(), Index::from_bytes(bytes).ok()?))).collect()
    }

    /// The signed configurations: what they are for, and their text.
    pub fn configurations(&self) -> BTreeMap<&str, &Bytes> {
        self.contents.iter().filter_map(|(path, bytes)| Some((path.strip_prefix("config.")?, bytes))).collect()
    }

    /// Every chunk that the indexes name, with its stored length.
    pub fn chunks(&self) -> BTreeMap<Sha256, u32> {
        self.indexes().values().flat_map(|index| index.chunks.iter().map(|c| (c.stored, c.stored_len))).collect()
    }

    /// All objects but the chunks of packages, in the order in which they are put.
    pub fn objects(&self) -> Vec<(Name, Bytes)> {
        let target = |(path, bytes): (&String, &Bytes)| (target_name(path, bytes), bytes.clone());
        let metadata = |role: Role, version, bytes: &Bytes| {
            (Name::Metadata { version, role: role.name().to_owned() }, bytes.clone())
        };
        let mut objects: Vec<(Name, Bytes)> = self.contents.iter().map(target).collect();
        objects.push(metadata(Role::Targets, self.targets.version(), &self.targets.bytes));
        objects.push(metadata(Role::Rollout, self.rollout.version(), &self.rollout.bytes));
        objects.push(metadata(Role::Snapshot, self.snapshot.version(), &self.snapshot.bytes));
        objects.push((Name::Roots, self.chain()));
        objects.push((Name::Timestamp, self.timestamp.bytes.clone()));
        objects
    }

    /// Everything that it needs, by name.
    pub fn names(&self) -> BTreeSet<Name> {
        let objects = self.objects().into_iter().map(|(name, _)| name);
        objects.chain(self.chunks().into_keys().map(Name::Chunk)).collect()
    }

    /// The chain of roots as it travels.
    pub fn chain(&self) -> Bytes {
        let documents: Vec<&[u8]> = self.roots.iter().map(|root| &root.bytes[..]).collect();
        [b"[".as_slice(), &documents.join(b",".as_slice()), b"]"].concat().into()
    }

    /// Reads the set that a depot has, and verifies it from the roots of `own` on.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn fetch(remote: &dyn Remote, own: &Self) -> Result<Self, PublishError> {
        let place = remote.place();
        let read = |name: Name, most| async move {
            object(remote, &name, most as u64).await.map(Bytes::from).map_err(PublishError::from)
        };
        let chain = read(Name::Roots, METADATA_MAX).await?;
        let chain: Vec<Signed<Root>> = serde_json::from_slice(&chain)
            .map_err(|error| PublishError::metadata(place, format!("meta/roots is damaged: {error}")))?;
        let roots: Vec<Document<Root>> = chain.into_iter().map(Document::new).collect();
        if let Some((own, _)) =
            own.roots.iter().zip(&roots).find(|(own, other)| own.signed.signed != other.signed.signed)
        {
            return Err(PublishError::Conflict {
                place: place.to_owned(),
                reason: format!("its root {} is not ours: it is another depot", own.version()),
            });
        }
        let timestamp: Document<Timestamp> =
            Document::parse(place, "meta/timestamp", read(Name::Timestamp, METADATA_MAX).await?)?;
        let metadata = |role: Role, file: Option<&Metafile>| {
            let name =
                Name::Metadata { version: file.map_or(0, |file| file.version.get()), role: role.name().to_owned() };
            async move { Ok::<_, PublishError>((name.to_string(), read(name, METADATA_MAX).await?)) }
        };
        let (what, bytes) = metadata(Role::Snapshot, timestamp.signed.signed.meta.get("snapshot.json")).await?;
        let snapshot: Document<Snapshot> = Document::parse(place, &what, bytes)?;
        let (what, bytes) = metadata(Role::Targets, snapshot.signed.signed.meta.get("targets.json")).await?;
        let targets: Document<Targets> = Document::parse(place, &what, bytes)?;
        let (what, bytes) = metadata(Role::Rollout, snapshot.signed.signed.meta.get("rollout.json")).await?;
        let rollout: Document<Targets> = Document::parse(place, &what, bytes)?;
        let mut set = Self { roots, timestamp, snapshot, targets, rollout, contents: BTreeMap::new() };
        // Nothing of it is followed further before the signatures are right.
        set.verify_metadata(place)?;
        for (path, target) in set.listed() {
            let digest = Sha256::try_from(&*target.hashes.sha256)
                .map_err(|_| PublishError::metadata(place, format!("{path}: its digest is no SHA-256")))?;
            let name = Name::target(digest, object_of(&path))
                .ok_or_else(|| PublishError::metadata(place, format!("{path}: no target is called so")))?;
            let most = usize::try_from(target.length).unwrap_or(usize::MAX).min(TARGET_MAX);
            set.contents.insert(path, read(name, most).await?);
        }
        set.verify(place)?;
        Ok(set)
    }

    /// Every target with its path.
    fn listed(&self) -> Vec<(String, Target)> {
        let all = self.targets.signed.signed.targets.iter().chain(&self.rollout.signed.signed.targets);
        all.map(|(name, target)| (name.raw().to_owned(), target.clone())).collect()
    }

    /// Checks signatures, thresholds, versions, digests and the content of the targets; not when it ends.
    ///
    /// # Errors
    /// [`PublishError::Metadata`] with what is wrong.
    pub fn verify(&self, place: &str) -> Result<(), PublishError> {
        self.verify_metadata(place)?;
        let wrong = |reason: String| Err(PublishError::metadata(place, reason));
        let listed = self.listed();
        for (path, target) in &listed {
            let Some(bytes) = self.contents.get(path) else { return wrong(format!("there is no {path}")) };
            if target.hashes.sha256 != hashes(bytes).sha256 || target.length != bytes.len() as u64 {
                return wrong(format!("{path} is not what the metadata says: it is damaged"));
            }
        }
        if let Some(path) = self.contents.keys().find(|path| !listed.iter().any(|(listed, _)| listed == *path)) {
            return wrong(format!("{path} is in no metadata"));
        }
        for (path, bytes) in self.contents.iter().filter(|(path, _)| path.ends_with(".index")) {
            let index =
                Index::from_bytes(bytes).map_err(|error| PublishError::metadata(place, format!("{path}: {error}")))?;
            if *path != index_name(&index.model, &index.version) {
                return wrong(format!("{path} is the index of {} {}", index.model, index.version));
            }
        }
        match self.contents.get(ROLLOUT_PATH) {
            Some(bytes) => serde_json::from_slice::<Rollout>(bytes)
                .map(|_| ())
                .map_err(|error| PublishError::metadata(place, format!("{ROLLOUT_PATH}: {error}"))),
            None => wrong(format!("there is no {ROLLOUT_PATH}")),
        }
    }

    fn verify_metadata(&self, place: &str) -> Result<(), PublishError> {
        let wrong = |reason: String| PublishError::metadata(place, reason);
        let invalid = |what: &str| {
            let what = what.to_owned();
            move |error| PublishError::metadata(place, format!("{what} does not verify: {error}"))
        };
        if self.roots.is_empty() {
            return Err(wrong("the chain of roots is empty".to_owned()));
        }
        for (index, root) in self.roots.iter().enumerate() {
            if root.version() != index as u64 + 1 {
                return Err(wrong(format!("root {} stands in the place of root {}", root.version(), index + 1)));
            }
            let what = format!("root {}", root.version());
            if let Some(before) = index.checked_sub(1) {
                self.roots[before].signed.signed.verify_role(&root.signed).map_err(invalid(&what))?;
            }
            root.signed.signed.verify_role(&root.signed).map_err(invalid(&what))?;
        }
        let root = self.root();
        root.verify_role(&self.timestamp.signed).map_err(invalid("the timestamp"))?;
        root.verify_role(&self.snapshot.signed).map_err(invalid("the snapshot"))?;
        root.verify_role(&self.targets.signed).map_err(invalid("the targets"))?;
        let delegations = self.targets.signed.signed.delegations.as_ref();
        delegations
            .ok_or_else(|| wrong("the targets delegate nothing; expected the role rollout".to_owned()))?
            .verify_role(&self.rollout.signed, Role::Rollout.name())
            .map_err(invalid("the rollout"))?;
        let refers = |by: &str, file: Option<&Metafile>, found: Metafile, what: &str| match file {
            Some(file) if *file == found => Ok(()),
            _ => Err(wrong(format!("the {what} is not the one that the {by} names"))),
        };
        let meta = &self.snapshot.signed.signed.meta;
        refers(
            "timestamp",
            self.timestamp.signed.signed.meta.get("snapshot.json"),
            self.snapshot.metafile(),
            "snapshot",
        )?;
        refers("snapshot", meta.get("targets.json"), self.targets.metafile(), "targets metadata")?;
        refers("snapshot", meta.get("rollout.json"), self.rollout.metafile(), "rollout metadata")
    }

    /// Reads the publisher's own copy.
    ///
    /// # Errors
    /// [`PublishError`]; [`PublishError::Refused`] if there is none.
    pub fn load(home: &Home) -> Result<Self, PublishError> {
        let place = home.set_path().display().to_string();
        let (documents, read_target) = home.read()?;
        let parse = |what: &str, text: String| (what.to_owned(), Bytes::from(text));
        let mut roots = Vec::new();
        for text in documents.roots {
            roots.push(Document::parse(&place, "a root", text.into())?);
        }
        let (what, bytes) = parse("the timestamp", documents.timestamp);
        let timestamp = Document::parse(&place, &what, bytes)?;
        let (what, bytes) = parse("the snapshot", documents.snapshot);
        let snapshot = Document::parse(&place, &what, bytes)?;
        let (what, bytes) = parse("the targets", documents.targets);
        let targets = Document::parse(&place, &what, bytes)?;
        let (what, bytes) = parse("the rollout", documents.rollout);
        let rollout = Document::parse(&place, &what, bytes)?;
        let mut set = Self { roots, timestamp, snapshot, targets, rollout, contents: BTreeMap::new() };
        for (path, target) in set.listed() {
            let digest = Sha256::try_from(&*target.hashes.sha256)
                .map_err(|_| PublishError::metadata(&place, format!("{path}: its digest is no SHA-256")))?;
            let bytes = read_target(&digest, object_of(&path))?;
            set.contents.insert(path, bytes);
        }
        set.verify(&place)?;
        Ok(set)
    }
}

/// What a target's path is called in its object's name.
pub(super) fn object_of(path: &str) -> &str {
    if path == ROLLOUT_PATH { ROLLOUT_OBJECT } else { path }
}

/// The object that holds a target.
fn target_name(path: &str, bytes: &[u8]) -> Name {
    Name::target(Digest::of(bytes).0, object_of(path)).expect("a name was checked before it became a target")
}

/// What metadata says of a target.
pub(super) fn target(bytes: &[u8], described: &Described) -> Target {
    let custom = serde_json::to_value(described).expect("plain values serialize");
    let custom = match custom {
        serde_json::Value::Object(map) => map.into_iter().collect(),
        _ => unreachable!("a struct is an object"),
    };
    Target { length: bytes.len() as u64, hashes: hashes(bytes), custom, _extra: Default::default() }
}

/// Shows a digest's first digits.
pub(super) fn short(digest: &Sha256) -> String {
    Hex(digest).to_string()[..12].to_owned()
}
