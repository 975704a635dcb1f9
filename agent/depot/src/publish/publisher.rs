//! What a publisher does to a depot.

mod upkeep;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp as Moment;
use limpet_wire::depot::{Described, Hex, Index, Name, Release, Sha256, index_name};
use tough::async_trait;
use tough::schema::{Signed, Timestamp};

use super::PublishError;
use super::config::Addressee;
use super::editor::{Editor, Keys, Signers, first, is_half_over};
use super::home::{Home, Journal, write};
use super::keys::{KeyRing, Secret, SigningKey, make_folder};
use super::set::{Role, Set, short};
use crate::Package;
use crate::chunk::{Cut, cut};
use crate::remote::{Remote, RemoteError, Shelf, object, put_object_beside};

pub use upkeep::{Checked, Problem, Removed, Repaired};

/// Chunks that are on the way at once.
const AT_ONCE: usize = 8;
/// Largest timestamp that is read, in bytes.
const TIMESTAMP_MAX: usize = 64 * 1024;
/// Name of the file that a gateway starts to trust with.
pub const ROOT_FILE: &str = "root.json";

/// Somebody who is told how far it is.
pub trait Watch: Send + Sync {
    /// Something begins that moves so many bytes.
    fn begin(&self, what: &str, bytes: u64);
    /// So many bytes were moved.
    fn moved(&self, bytes: u64);
    /// It is done.
    fn end(&self);
}

/// Nobody.
impl Watch for () {
    fn begin(&self, _: &str, _: u64) {}
    fn moved(&self, _: u64) {}
    fn end(&self) {}
}

/// How many keys a role has, and how many of them must sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoleKeys {
    /// How many there are.
    pub count: u64,
    /// How many must sign.
    pub threshold: u64,
}

impl Default for RoleKeys {
    fn default() -> Self {
        Self { count: 1, threshold: 1 }
    }
}

impl RoleKeys {
    fn checked(self, role: Role) -> Result<NonZeroU64, PublishError> {
        match NonZeroU64::new(self.threshold) {
            Some(threshold) if self.threshold <= self.count && self.count <= 32 => Ok(threshold),
            _ => Err(PublishError::Refused(format!(
                "{}: {} of {} keys cannot be what must sign; expected 1 up to the number of keys, 32 at most",
                role.name(),
                self.threshold,
                self.count
            ))),
        }
    }
}

/// Changes of who gets a version; what is none stays.
#[derive(Debug, Clone, Default)]
pub struct ReleaseChange {
    /// Channels that carry it.
    pub channels: Option<Vec<String>>,
    /// Share of the gateways, 0 to 100.
    pub percent: Option<f64>,
    /// Labels that a gateway must have.
    pub labels: Option<BTreeMap<String, String>>,
    /// Nobody takes it before; an inner none clears it.
    pub not_before: Option<Option<Moment>>,
    /// Nobody takes it after; an inner none clears it.
    pub not_after: Option<Option<Moment>>,
    /// Whether nobody takes it any more.
    pub halted: Option<bool>,
}

impl ReleaseChange {
    fn check(&self) -> Result<(), PublishError> {
        let refuse = |reason: String| Err(PublishError::Refused(reason));
        if let Some(percent) = self.percent
            && !(0.0..=100.0).contains(&percent)
        {
            return refuse(format!("{percent} % of the gateways makes no sense; expected 0 to 100"));
        }
        if self.channels.as_ref().is_some_and(Vec::is_empty) {
            return refuse("a version without a channel reaches nobody; expected one at least".to_owned());
        }
        for channel in self.channels.iter().flatten() {
            limpet_wire::name::check_name(channel)
                .map_err(|error| PublishError::Refused(format!("channel: {error}")))?;
        }
        if let (Some(Some(before)), Some(Some(after))) = (self.not_before, self.not_after)
            && before >= after
        {
            return refuse(format!("not before {before} and not after {after}: nobody would ever take it"));
        }
        Ok(())
    }

    fn apply(&self, release: &mut Release) {
        if let Some(channels) = &self.channels {
            let channels: BTreeSet<&String> = channels.iter().collect();
            release.channels = channels.into_iter().cloned().collect();
        }
        if let Some(percent) = self.percent {
            release.percent = percent;
        }
        if let Some(labels) = &self.labels {
            release.labels.clone_from(labels);
        }
        if let Some(moment) = self.not_before {
            release.not_before = moment.map(|moment| moment.to_string());
        }
        if let Some(moment) = self.not_after {
            release.not_after = moment.map(|moment| moment.to_string());
        }
        if let Some(halted) = self.halted {
            release.halted = halted;
        }
    }
}

/// What publishing did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Published {
    /// What was published, as `<model> <version>`, and whether it was new.
    pub packages: Vec<(String, bool)>,
    /// Chunks that were sent.
    pub chunks_sent: usize,
    /// Chunks that the depot had.
    pub chunks_known: usize,
    /// Bytes of all chunks of the packages, as stored.
    pub bytes_all: u64,
    /// Bytes of the chunks that were sent.
    pub bytes_sent: u64,
    /// Bytes of indexes and metadata that were sent.
    pub bytes_beside: u64,
    /// Version of the newest timestamp.
    pub timestamp: u64,
}

/// One version of a model in a depot.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// The model.
    pub model: String,
    /// Its version.
    pub version: String,
    /// Digest of its package.
    pub package: Sha256,
    /// Bytes of the package.
    pub raw_bytes: u64,
    /// Bytes of its chunks as stored.
    pub stored_bytes: u64,
    /// Who gets it; nobody if there is none.
    pub release: Option<Release>,
}

/// How the depot stands to the publisher's own copy.
enum Standing {
    /// It has just that.
    Same,
    /// It has an older set.
    Behind,
    /// It gave no timestamp.
    Nothing,
}

/// Makes the keys and the first set of a depot; does nothing if there is one beside the keys. Tells whether it did.
///
/// # Errors
/// [`PublishError`].
pub fn init(
    ring: &KeyRing,
    roles: &BTreeMap<Role, RoleKeys>,
    chunks: Option<&str>,
    passphrase: Option<&Secret>,
    now: Moment,
) -> Result<bool, PublishError> {
    make_folder(ring.folder())?;
    let home = Home::open(ring.folder())?;
    if home.has_set() {
        return Ok(false);
    }
    if let Some(chunks) = chunks {
        check_chunks_url(chunks)?;
    }
    let mut signers = Signers::default();
    let mut keys = BTreeMap::new();
    for role in Role::ALL {
        let wanted = roles.get(&role).copied().unwrap_or_default();
        keys.insert(role, make_keys(ring, role, wanted, passphrase, &mut signers)?);
    }
    let set = first(&keys, &signers, chunks, now)?;
    home.save(&set)?;
    save_root(ring, &set)?;
    Ok(true)
}

/// Makes the keys of a role and writes them.
fn make_keys(
    ring: &KeyRing,
    role: Role,
    wanted: RoleKeys,
    passphrase: Option<&Secret>,
    signers: &mut Signers,
) -> Result<Keys, PublishError> {
    let threshold = wanted.checked(role)?;
    let folder = ring.folder_for(role);
    make_folder(folder)?;
    let mut made = Vec::new();
    for _ in 0..wanted.count {
        let key = SigningKey::generate()?;
        key.write(folder, role.name(), passphrase)?;
        made.push(key);
    }
    let public = made.iter().map(|key| (key.id(), key.public())).collect();
    signers.add(role, made);
    Ok(Keys { public, threshold })
}

/// Writes the root that a gateway's owner installs.
fn save_root(ring: &KeyRing, set: &Set) -> Result<(), PublishError> {
    let newest = set.roots.last().expect("a set has a root");
    write(&ring.folder().join(ROOT_FILE), &newest.bytes)
}

fn check_chunks_url(text: &str) -> Result<(), PublishError> {
    let good = url::Url::parse(text).is_ok_and(|url| url.scheme() == "https" && url.has_host());
    if good {
        return Ok(());
    }
    Err(PublishError::Refused(format!("'{text}' is no URL for chunks; expected https://HOST/PATH")))
}

/// A publisher at one depot.
pub struct Publisher<'a> {
    shelf: &'a dyn Shelf,
    ring: &'a KeyRing,
    home: Home,
    set: Set,
    journal: Mutex<Journal>,
    now: Moment,
    patience: Duration,
    watch: &'a dyn Watch,
    moved: AtomicU64,
}

impl<'a> Publisher<'a> {
    /// Opens the copy beside the keys, and the journal of the place. Nothing is asked of the depot yet.
    ///
    /// `patience` is how long an answer may take before it counts as none.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn open(
        shelf: &'a dyn Shelf,
        ring: &'a KeyRing,
        now: Moment,
        patience: Duration,
        watch: &'a dyn Watch,
    ) -> Result<Self, PublishError> {
        let home = Home::open(ring.folder())?;
        let set = Set::load(&home)?;
        let journal = Mutex::new(home.journal(shelf.place())?);
        Ok(Self { shelf, ring, home, set, journal, now, patience, watch, moved: AtomicU64::new(0) })
    }

    /// The set that holds.
    pub fn set(&self) -> &Set {
        &self.set
    }

    /// Bytes that were sent so far.
    pub fn bytes_sent(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        // A journal is whole after each of its operations, so a panic elsewhere leaves it usable.
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gets an object, or none if it is not there for certain.
    async fn ask(&self, name: &Name, most: usize) -> Result<Option<Bytes>, PublishError> {
        match tokio::time::timeout(self.patience, object(self.shelf, name, most as u64)).await {
            Ok(Ok(bytes)) => Ok(Some(bytes.into())),
            Ok(Err(RemoteError::Absent { .. })) => Ok(None),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(self.silent(name)),
        }
    }

    fn silent(&self, name: &Name) -> PublishError {
        PublishError::Silent { place: self.shelf.place().to_owned(), name: name.clone(), limit: self.patience }
    }

    async fn standing(&self) -> Result<Standing, PublishError> {
        let place = self.shelf.place();
        let ours = &self.set.timestamp;
        let found = match self.ask(&Name::Timestamp, TIMESTAMP_MAX).await {
            Ok(Some(found)) => found,
            Ok(None) | Err(PublishError::Silent { .. }) => return Ok(Standing::Nothing),
            Err(error) => return Err(error),
        };
        if found == ours.bytes {
            return Ok(Standing::Same);
        }
        let conflict = |reason: String| PublishError::Conflict { place: place.to_owned(), reason };
        let theirs: Signed<Timestamp> = serde_json::from_slice(&found).map_err(|error| {
            PublishError::metadata(
                place,
                format!("meta/timestamp is damaged: {error}; `limpet-lab depot repair` puts it back"),
            )
        })?;
        if !self.set.roots.iter().rev().any(|root| root.signed.signed.verify_role(&theirs).is_ok()) {
            return Err(conflict(
                "its timestamp is signed by none of our keys: it is another depot, or somebody who has newer keys \
                 published there. Check --keys and the place; nothing was changed"
                    .to_owned(),
            ));
        }
        let (theirs, ours) = (theirs.signed.version, ours.signed.signed.version);
        if theirs < ours {
            return Ok(Standing::Behind);
        }
        Err(conflict(format!(
            "it has version {theirs} of the timestamp, and our copy has {ours}{}: somebody else publishes with the same \
             keys. Nothing was changed, because a gateway refuses what goes backwards. Take over what is there with \
             `limpet-lab depot adopt`, repeat the command, and publish from one place only",
            if theirs == ours { " with another content" } else { "" }
        )))
    }

    /// Brings the depot to the set that holds, if a command before this one did not get so far.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn settle(&mut self) -> Result<(), PublishError> {
        match self.standing().await? {
            Standing::Same => {
                let mut journal = self.journal();
                for (name, bytes) in self.set.objects() {
                    if !journal.has_content(&name, &bytes) {
                        journal.holds(&name, &bytes)?;
                    }
                }
                for chunk in self.set.chunks().into_keys().map(Name::Chunk) {
                    if !journal.there(&chunk) {
                        journal.found(&chunk)?;
                    }
                }
                journal.mark(&self.set, self.now)
            }
            Standing::Nothing if self.journal().there(&Name::Timestamp) => Err(self.silent(&Name::Timestamp)),
            Standing::Behind | Standing::Nothing => {
                let lacking = self.chunks_not_there();
                if !lacking.is_empty() {
                    let packages: Vec<String> = lacking.into_iter().collect();
                    return Err(PublishError::Refused(format!(
                        "{}: chunks of {} were never sent there; send them first with `limpet-lab depot repair FILE…`, \
                         with these packages as files",
                        self.shelf.place(),
                        packages.join(", ")
                    )));
                }
                self.send().await
            }
        }
    }

    /// Packages with chunks that were never sent to this place.
    fn chunks_not_there(&self) -> BTreeSet<String> {
        let journal = self.journal();
        let indexes = self.set.indexes();
        let lacking = indexes
            .values()
            .filter(|index| index.chunks.iter().any(|chunk| !journal.there(&Name::Chunk(chunk.stored))));
        lacking.map(|index| format!("{} {}", index.model, index.version)).collect()
    }

    /// Sends what the set has and the place lacks, the timestamp last.
    async fn send(&self) -> Result<(), PublishError> {
        let shelf = Journaled(self);
        let mut objects = self.set.objects();
        objects.retain(|(name, bytes)| !self.journal().has_content(name, bytes));
        self.watch.begin("index and metadata", objects.iter().map(|(_, bytes)| bytes.len() as u64).sum());
        let there = |piece: &Sha256| self.journal().there(&Name::Chunk(*piece));
        let sent: Result<(), PublishError> = async {
            for (name, bytes) in objects {
                put_object_beside(&shelf, &name, bytes.to_vec(), &there).await?;
                self.journal().holds(&name, &bytes)?;
                self.watch.moved(bytes.len() as u64);
            }
            Ok(())
        }
        .await;
        self.watch.end();
        sent?;
        self.journal().mark(&self.set, self.now)
    }

    /// Makes a set the one that holds, and sends it.
    async fn commit(&mut self, set: Set) -> Result<(), PublishError> {
        self.home.save(&set)?;
        if set.roots.len() != self.set.roots.len() {
            save_root(self.ring, &set)?;
        }
        self.set = set;
        self.send().await
    }

    /// Signs a change and sends it, if there is one. Tells whether there was.
    async fn apply(
        &mut self,
        change: impl FnOnce(&mut Editor<'_>) -> Result<(), PublishError>,
    ) -> Result<bool, PublishError> {
        let old = self.set.clone();
        let mut editor = Editor::new(&old, self.now);
        change(&mut editor)?;
        if !editor.is_changed() {
            return Ok(false);
        }
        let signers = Signers::read(self.ring, &old, &editor.signing())?;
        self.commit(editor.finish(&signers)?).await?;
        Ok(true)
    }

    /// Whether the depot has just the set that holds.
    ///
    /// # Errors
    /// [`PublishError`] as for [`Publisher::settle`].
    pub async fn is_settled(&self) -> Result<bool, PublishError> {
        Ok(matches!(self.standing().await?, Standing::Same))
    }

    /// Publishes packages. A package that is there already stays as it is; `change` holds for all of them, and for new
    /// ones on top of the channel `stable` and all gateways.
    ///
    /// # Errors
    /// [`PublishError`], also if a version is there with another content.
    pub async fn publish(&mut self, packages: &[Package], change: &ReleaseChange) -> Result<Published, PublishError> {
        change.check()?;
        let mut indexes: BTreeMap<String, Index> =
            self.set.indexes().into_iter().map(|(path, index)| (path.to_owned(), index)).collect();
        for package in packages {
            let (model, version) = named(package);
            if let Some(index) = indexes.get(&index_name(&model, &version))
                && index.package != package.digest().0
            {
                return Err(PublishError::Refused(format!(
                    "{}: {model} {version} was published with another content (package {}, and this is {}); a version is \
                     published once: give it a higher one in model.toml",
                    package.path().display(),
                    short(&index.package),
                    short(&package.digest().0)
                )));
            }
        }
        // Keys first: nothing is sent for somebody who cannot sign it.
        let new = packages.iter().any(|package| {
            let (model, version) = named(package);
            !indexes.contains_key(&index_name(&model, &version))
        });
        let mut roles = vec![Role::Snapshot, Role::Timestamp, Role::Rollout];
        if new {
            roles.push(Role::Targets);
        }
        Signers::read(self.ring, &self.set, &roles)?;
        self.settle().await?;

        // What a command before this one owed is not counted as this one's.
        let settled = self.bytes_sent();
        let mut done = Published::default();
        let mut fresh = Vec::new();
        for package in packages {
            let (model, version) = named(package);
            let path = index_name(&model, &version);
            let is_new = !indexes.contains_key(&path);
            done.packages.push((format!("{model} {version}"), is_new));
            let index = match indexes.get(&path) {
                Some(index) => {
                    done.chunks_known += distinct(index).len();
                    index.clone()
                }
                None => {
                    let known: HashMap<Sha256, (Sha256, u32)> = indexes
                        .values()
                        .flat_map(|index| index.chunks.iter().map(|c| (c.raw, (c.stored, c.stored_len))))
                        .collect();
                    let (index, cuts) = cut(package, &known)?;
                    let sent = self.send_chunks(&format!("{model} {version}"), cuts).await?;
                    done.chunks_sent += sent;
                    done.chunks_known += distinct(&index).len() - sent;
                    fresh.push((path.clone(), index.clone()));
                    index
                }
            };
            done.bytes_all += index.stored_bytes();
            indexes.insert(path, index);
        }
        done.bytes_sent = self.bytes_sent() - settled;
        let names: Vec<(String, String)> = packages.iter().map(named).collect();
        self.apply(|editor| {
            for (path, index) in fresh {
                let described = Described {
                    model: Some(index.model.clone()),
                    version: Some(index.version.clone()),
                    bytes: Some(index.stored_bytes()),
                };
                editor.put(&path, index.to_bytes().into(), &described)?;
            }
            for (model, version) in names {
                let salt = random_salt()?;
                let versions = editor.state().models.entry(model).or_default();
                let release = versions.entry(version).or_insert_with(|| Release {
                    channels: vec!["stable".to_owned()],
                    percent: 100.0,
                    salt,
                    labels: BTreeMap::new(),
                    not_before: None,
                    not_after: None,
                    halted: false,
                    withdrawn: false,
                });
                change.apply(release);
            }
            Ok(())
        })
        .await?;
        done.bytes_beside = self.bytes_sent() - settled - done.bytes_sent;
        done.timestamp = self.set.version(Role::Timestamp);
        Ok(done)
    }

    /// Sends chunks that are not there. Gives how many were sent.
    async fn send_chunks(&self, what: &str, cuts: Vec<Cut>) -> Result<usize, PublishError> {
        let mut waiting: BTreeMap<Sha256, Bytes> = cuts
            .into_iter()
            .filter(|cut| !cut.stored.is_empty())
            .map(|cut| (cut.reference.stored, Bytes::from(cut.stored)))
            .collect();
        {
            let journal = self.journal();
            waiting.retain(|digest, _| !journal.there(&Name::Chunk(*digest)));
        }
        let sent = waiting.len();
        self.watch.begin(what, waiting.values().map(|bytes| bytes.len() as u64).sum());
        let shelf = &Journaled(self);
        let all_sent = futures_util::stream::iter(waiting)
            .map(|(digest, bytes)| async move {
                let length = bytes.len() as u64;
                shelf.put(&Name::Chunk(digest), bytes).await?;
                self.watch.moved(length);
                Ok::<_, PublishError>(())
            })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await;
        self.watch.end();
        all_sent?;
        Ok(sent)
    }

    /// What the depot has, by our own copy.
    pub fn list(&self) -> Vec<Listed> {
        list(&self.set)
    }

    /// Takes a version back: nobody takes it any more, and who has it goes back to an older one. With `remove` its index
    /// goes too, which needs the keys of the targets.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn withdraw(&mut self, model: &str, version: &str, remove: bool) -> Result<bool, PublishError> {
        self.release_of(model, version)?;
        self.settle().await?;
        self.apply(|editor| {
            if let Some(release) = editor.state().models.get_mut(model).and_then(|versions| versions.get_mut(version)) {
                release.withdrawn = true;
            }
            if remove {
                editor.remove(&index_name(model, version));
            }
            Ok(())
        })
        .await
    }

    /// Changes who gets a version.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn rollout(&mut self, model: &str, version: &str, change: &ReleaseChange) -> Result<bool, PublishError> {
        change.check()?;
        let release = self.release_of(model, version)?;
        if release.withdrawn {
            return Err(PublishError::Refused(format!(
                "{model} {version} was withdrawn; publish it again as a higher version"
            )));
        }
        self.settle().await?;
        self.apply(|editor| {
            if let Some(release) = editor.state().models.get_mut(model).and_then(|versions| versions.get_mut(version)) {
                change.apply(release);
            }
            Ok(())
        })
        .await
    }

    /// Who gets a version.
    ///
    /// # Errors
    /// [`PublishError::Refused`] with what there is instead.
    pub fn release_of(&self, model: &str, version: &str) -> Result<Release, PublishError> {
        let state = self.set.state();
        state.models.get(model).and_then(|versions| versions.get(version)).cloned().ok_or_else(|| {
            let known: Vec<String> = state
                .models
                .iter()
                .flat_map(|(model, versions)| versions.keys().map(move |version| format!("{model} {version}")))
                .collect();
            let known = if known.is_empty() { "nothing was published yet".to_owned() } else { known.join(", ") };
            PublishError::Refused(format!("there is no {model} {version} in the depot; there is: {known}"))
        })
    }

    /// Signs a configuration, or takes one away where `text` is none. Tells whether anything changed.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn configure(&mut self, addressee: &Addressee, text: Option<&str>) -> Result<bool, PublishError> {
        let path = addressee.path();
        if text.is_none() && !self.set.contents.contains_key(&path) {
            let known: Vec<&str> = self.set.configurations().into_keys().collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(PublishError::Refused(format!("there is no {path} in the depot; there is: {known}")));
        }
        self.settle().await?;
        self.apply(|editor| match text {
            Some(text) => editor.put(&path, Bytes::from(text.to_owned()), &Described::default()),
            None => {
                editor.remove(&path);
                Ok(())
            }
        })
        .await
    }

    /// Sets or clears the URL that chunks may be had from. Tells whether anything changed.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn set_chunks_url(&mut self, url: Option<&str>) -> Result<bool, PublishError> {
        url.map_or(Ok(()), check_chunks_url)?;
        self.settle().await?;
        self.apply(|editor| {
            editor.chunks(url);
            Ok(())
        })
        .await
    }

    /// Signs a new timestamp, and snapshot and rollout once half of their life is over; with `offline` root and targets
    /// too. Gives the roles that were signed.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn refresh(&mut self, offline: bool) -> Result<Vec<Role>, PublishError> {
        self.settle().await?;
        let old = self.set.clone();
        let mut editor = Editor::new(&old, self.now);
        for role in [Role::Rollout, Role::Snapshot] {
            if is_half_over(&old, role, self.now) {
                editor.renew(role);
            }
        }
        if offline {
            editor.renew(Role::Root);
            editor.renew(Role::Targets);
        }
        let signers = Signers::read(self.ring, &old, &editor.signing())?;
        self.commit(editor.finish(&signers)?).await?;
        Ok(Role::ALL.into_iter().filter(|role| self.set.version(*role) != old.version(*role)).collect())
    }

    /// Gives roles new keys, and signs a new root with the old and the new ones. `wanted` says how many, where that
    /// changes. Gives the names of the files of keys that no longer sign.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn rotate(
        &mut self,
        roles: &BTreeSet<Role>,
        wanted: &BTreeMap<Role, RoleKeys>,
        passphrase: Option<&Secret>,
    ) -> Result<Vec<String>, PublishError> {
        let mut signing = BTreeSet::from([Role::Snapshot, Role::Timestamp]);
        if roles.iter().any(|role| *role != Role::Rollout) {
            signing.insert(Role::Root);
        }
        if roles.contains(&Role::Rollout) {
            signing.insert(Role::Targets);
        }
        // What gets new keys is signed by those; only root must be signed by the old ones too.
        let old_keys: Vec<Role> =
            signing.into_iter().filter(|role| *role == Role::Root || !roles.contains(role)).collect();
        let mut signers = Signers::read(self.ring, &self.set, &old_keys)?;
        self.settle().await?;
        let old = self.set.clone();
        let mut editor = Editor::new(&old, self.now);
        let mut retired = Vec::new();
        for role in roles {
            let (ids, threshold) = old.keys_of(*role);
            let same = RoleKeys { count: ids.len() as u64, threshold };
            let wanted = wanted.get(role).copied().unwrap_or(same);
            let keys = make_keys(self.ring, *role, wanted, passphrase, &mut signers)?;
            editor.replace_keys(*role, keys);
            retired.extend(ids.iter().map(|id| super::keys::file_name(role.name(), id)));
        }
        self.commit(editor.finish(&signers)?).await?;
        Ok(retired)
    }
}

/// The versions of a set, models by name and versions newest first.
pub fn list(set: &Set) -> Vec<Listed> {
    let state = set.state();
    let mut listed: Vec<Listed> = set
        .indexes()
        .into_values()
        .map(|index| Listed {
            release: state.models.get(&index.model).and_then(|versions| versions.get(&index.version)).cloned(),
            package: index.package,
            raw_bytes: index.raw_bytes(),
            stored_bytes: index.stored_bytes(),
            model: index.model,
            version: index.version,
        })
        .collect();
    let version = |text: &str| semver::Version::parse(text).ok();
    listed.sort_by(|a, b| a.model.cmp(&b.model).then_with(|| version(&b.version).cmp(&version(&a.version))));
    listed
}

/// Name and version of a package's model.
fn named(package: &Package) -> (String, String) {
    (package.manifest().name.clone(), package.manifest().version.to_string())
}

fn distinct(index: &Index) -> BTreeSet<Sha256> {
    index.chunks.iter().map(|chunk| chunk.stored).collect()
}

/// What decides, with a gateway's id, whether it is among the first.
fn random_salt() -> Result<String, PublishError> {
    let mut salt = [0; 32];
    aws_lc_rs::rand::fill(&mut salt[..8])
        .map_err(|_| PublishError::Refused("the system gave no random numbers".to_owned()))?;
    Ok(Hex(&salt).to_string()[..16].to_owned())
}

/// A shelf whose journal is kept: before a message goes out, and when it is acknowledged.
struct Journaled<'p, 'a>(&'p Publisher<'a>);

impl Journaled<'_, '_> {
    fn failed(&self, name: &Name) -> impl FnOnce(PublishError) -> RemoteError {
        let (place, name) = (self.0.shelf.place().to_owned(), name.clone());
        move |error| RemoteError::Failed { place, name, reason: error.to_string() }
    }
}

#[async_trait]
impl Remote for Journaled<'_, '_> {
    async fn message(&self, name: &Name, most: usize) -> Result<Bytes, RemoteError> {
        self.0.shelf.message(name, most).await
    }

    fn place(&self) -> &str {
        self.0.shelf.place()
    }
}

#[async_trait]
impl Shelf for Journaled<'_, '_> {
    async fn put(&self, name: &Name, message: Bytes) -> Result<(), RemoteError> {
        let length = message.len() as u64;
        self.0.journal().sending(name, &message).map_err(self.failed(name))?;
        self.0.shelf.put(name, message).await?;
        self.0.journal().sent(name).map_err(self.failed(name))?;
        self.0.moved.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    async fn remove(&self, name: &Name) -> Result<(), RemoteError> {
        self.0.shelf.remove(name).await
    }
}
