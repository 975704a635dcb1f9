//! The next set: versions, lengths and digests, ends, and signatures.
//!
//! Root and targets live [`ROOT_DAYS`] and [`TARGETS_DAYS`], because the keys that sign them are away; rollout and
//! snapshot [`ROLLOUT_DAYS`] and [`SNAPSHOT_DAYS`]; the timestamp [`TIMESTAMP_DAYS`]. Whatever is signed anew lives so
//! long from then on. `refresh` signs a new timestamp each time, and rollout and snapshot once half of their life is
//! over, so a depot whose timer runs never ends before its offline metadata does; those are asked for by name.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU64;

use bytes::Bytes;
use jiff::Timestamp as Moment;
use limpet_wire::depot::{Described, Name, Rollout, Sha256, Signed as Extra};
use limpet_wire::message::Message as _;
use tough::TargetName;
use tough::schema::key::Key;
use tough::schema::{
    DelegatedRole, Delegations, PathPattern, PathSet, RoleKeys as TufKeys, RoleType, Root, Signature, Snapshot,
    Targets, Timestamp,
};

use super::PublishError;
use super::keys::{KeyRing, SigningKey};
use super::set::{Document, EXTRA, ROLLOUT_PATH, ROLLOUT_PATTERN, Role, Set, object_of, target};
use crate::package::Digest;

/// Life of root metadata, in days.
pub const ROOT_DAYS: i64 = 365;
/// Life of targets metadata, in days.
pub const TARGETS_DAYS: i64 = 365;
/// Life of the rollout's metadata, in days.
pub const ROLLOUT_DAYS: i64 = 90;
/// Life of snapshot metadata, in days.
pub const SNAPSHOT_DAYS: i64 = 30;
/// Life of a timestamp, in days.
pub const TIMESTAMP_DAYS: i64 = 14;

/// Version of the specification that the metadata follows.
const SPEC: &str = "1.0.0";
const DAY: i64 = 24 * 60 * 60;

/// Life of a role's metadata, in days.
pub fn days(role: Role) -> i64 {
    match role {
        Role::Root => ROOT_DAYS,
        Role::Targets => TARGETS_DAYS,
        Role::Rollout => ROLLOUT_DAYS,
        Role::Snapshot => SNAPSHOT_DAYS,
        Role::Timestamp => TIMESTAMP_DAYS,
    }
}

/// The end of metadata that is signed now; in whole seconds, as metadata has it.
fn end(now: Moment, role: Role) -> Moment {
    Moment::from_second(now.as_second() + days(role) * DAY).expect("a year from now is a time")
}

/// Whether half of the life of a role's metadata is over.
pub fn is_half_over(set: &Set, role: Role, now: Moment) -> bool {
    set.expires(role).as_second() - now.as_second() < days(role) * DAY / 2
}

fn next(version: NonZeroU64) -> NonZeroU64 {
    version.checked_add(1).expect("nobody publishes so often")
}

/// The keys that sign, by role.
#[derive(Debug, Default)]
pub struct Signers(BTreeMap<Role, Vec<SigningKey>>);

impl Signers {
    /// Reads the keys of some roles, so that what is missing is known before anything is done.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn read(ring: &KeyRing, set: &Set, roles: &[Role]) -> Result<Self, PublishError> {
        let mut signers = Self::default();
        for role in roles {
            let (ids, threshold) = set.keys_of(*role);
            signers.0.insert(*role, ring.signers(role.name(), &ids, threshold)?);
        }
        Ok(signers)
    }

    /// Adds keys of a role.
    pub(super) fn add(&mut self, role: Role, keys: Vec<SigningKey>) {
        self.0.entry(role).or_default().extend(keys);
    }

    /// Only those of a role's keys that metadata names; more signatures would only make it longer.
    fn of<'a>(&'a self, role: Role, ids: &'a [Sha256]) -> impl Iterator<Item = &'a SigningKey> {
        self.0.get(&role).into_iter().flatten().filter(move |key| ids.contains(&key.id()))
    }

    /// All of a role's keys, old and new.
    fn all(&self, role: Role) -> impl Iterator<Item = &SigningKey> {
        self.0.get(&role).into_iter().flatten()
    }
}

/// Public keys of a role, and how many of them must sign.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    pub(super) public: Vec<(Sha256, Key)>,
    pub(super) threshold: NonZeroU64,
}

/// A change of a set.
#[derive(Debug)]
pub struct Editor<'a> {
    old: &'a Set,
    now: Moment,
    root: Option<Root>,
    targets: Option<Targets>,
    state: Option<Rollout>,
    renew_rollout: bool,
    renew_snapshot: bool,
    contents: BTreeMap<String, Bytes>,
}

impl<'a> Editor<'a> {
    /// Begins with a set as it is.
    pub fn new(old: &'a Set, now: Moment) -> Self {
        Self {
            old,
            now,
            root: None,
            targets: None,
            state: None,
            renew_rollout: false,
            renew_snapshot: false,
            contents: old.contents.clone(),
        }
    }

    /// Whether anything was changed.
    pub fn is_changed(&self) -> bool {
        let state = self.state.as_ref().is_some_and(|state| *state != self.old.state());
        self.root.is_some() || self.targets.is_some() || state || self.renew_rollout || self.renew_snapshot
    }

    /// Signs a role's metadata anew, changed or not.
    pub fn renew(&mut self, role: Role) {
        match role {
            Role::Root => drop(self.root()),
            Role::Targets => drop(self.targets().version),
            Role::Rollout => self.renew_rollout = true,
            Role::Snapshot => self.renew_snapshot = true,
            // It always is.
            Role::Timestamp => {}
        }
    }

    fn root(&mut self) -> &mut Root {
        self.root.get_or_insert_with(|| {
            let mut root = self.old.root().clone();
            root.version = next(root.version);
            root
        })
    }

    fn targets(&mut self) -> &mut Targets {
        self.targets.get_or_insert_with(|| {
            let mut targets = self.old.targets.signed.signed.clone();
            targets.version = next(targets.version);
            targets
        })
    }

    /// Adds a target, or replaces it; nothing changes if it is there.
    ///
    /// # Errors
    /// [`PublishError::Refused`] if it cannot be called so.
    pub fn put(&mut self, path: &str, bytes: Bytes, described: &Described) -> Result<(), PublishError> {
        if self.contents.get(path) == Some(&bytes) {
            return Ok(());
        }
        let wrong = || {
            PublishError::Refused(format!(
                "\"{path}\" cannot be the name of an object; expected letters, digits, '.', '_', '-' and '=', 200 at most"
            ))
        };
        Name::target(Digest::of(&bytes).0, object_of(path)).ok_or_else(wrong)?;
        let name = TargetName::new(path).map_err(|_| wrong())?;
        self.targets().targets.insert(name, target(&bytes, described));
        self.contents.insert(path.to_owned(), bytes);
        Ok(())
    }

    /// Takes a target away. Tells whether it was there.
    pub fn remove(&mut self, path: &str) -> bool {
        let there = self.contents.remove(path).is_some();
        if there {
            self.targets().targets.retain(|name, _| name.raw() != path);
        }
        there
    }

    /// Sets or clears the URL that chunks may be had from.
    pub fn chunks(&mut self, url: Option<&str>) {
        let now = extra_of(&self.old.targets.signed.signed._extra);
        if now.chunks.as_deref() != url {
            set_extra(&mut self.targets()._extra, &Extra { issued: None, chunks: url.map(str::to_owned) });
        }
    }

    /// Who gets which version, to be changed.
    pub fn state(&mut self) -> &mut Rollout {
        self.state.get_or_insert_with(|| self.old.state())
    }

    /// Gives a role other keys.
    pub(super) fn replace_keys(&mut self, role: Role, keys: Keys) {
        match kind(role) {
            Some(kind) => replace_in_root(self.root(), kind, keys),
            None => {
                let targets = self.targets();
                targets.delegations = Some(delegations(&keys));
            }
        }
    }

    /// The roles that must sign the change: to read their keys before anything is done.
    pub fn signing(&self) -> Vec<Role> {
        let mut roles = vec![Role::Snapshot, Role::Timestamp];
        if self.root.is_some() {
            roles.push(Role::Root);
        }
        if self.targets.is_some() {
            roles.push(Role::Targets);
        }
        if self.state.is_some() || self.renew_rollout {
            roles.push(Role::Rollout);
        }
        roles
    }

    /// Signs the change.
    ///
    /// # Errors
    /// [`PublishError::Metadata`] if the keys are too few: what is made is verified like anything else.
    pub fn finish(mut self, signers: &Signers) -> Result<Set, PublishError> {
        let now = self.now;
        let mut set = self.old.clone();
        if let Some(mut root) = self.root.take() {
            root.expires = end(now, Role::Root);
            // Whoever trusts the old root must see its keys agree, and the new ones must show that they are at hand.
            set.roots.push(Document::sign(root, signers.all(Role::Root)));
        }
        // What keys signed that no longer do is signed again, though nothing in it changed.
        let stale = |ids: &[Sha256], signatures: &[Signature]| {
            signatures.iter().any(|signature| !ids.iter().any(|id| signature.keyid[..] == id[..]))
        };
        let (targets_ids, _) = set.keys_of(Role::Targets);
        if stale(&targets_ids, &set.targets.signed.signatures) {
            self.targets();
        }
        if let Some(mut targets) = self.targets.take() {
            targets.expires = end(now, Role::Targets);
            set.targets = Document::sign(targets, signers.of(Role::Targets, &targets_ids));
        }
        let (rollout_ids, _) = set.keys_of(Role::Rollout);
        let changed = self.state.take().filter(|state| *state != self.old.state());
        if changed.is_some() || self.renew_rollout || stale(&rollout_ids, &set.rollout.signed.signatures) {
            let mut rollout = set.rollout.signed.signed.clone();
            rollout.version = next(rollout.version);
            rollout.expires = end(now, Role::Rollout);
            if let Some(state) = changed {
                let bytes = Bytes::from(state.to_json());
                rollout.targets = rollout_target(&bytes);
                self.contents.insert(ROLLOUT_PATH.to_owned(), bytes);
            }
            set.rollout = Document::sign(rollout, signers.of(Role::Rollout, &rollout_ids));
        }
        let (snapshot_ids, _) = set.keys_of(Role::Snapshot);
        let meta = snapshot_meta(&set);
        let replaced = stale(&snapshot_ids, &set.snapshot.signed.signatures);
        if meta != set.snapshot.signed.signed.meta || self.renew_snapshot || replaced {
            let mut snapshot = set.snapshot.signed.signed.clone();
            snapshot.version = next(snapshot.version);
            snapshot.expires = end(now, Role::Snapshot);
            snapshot.meta = meta;
            set.snapshot = Document::sign(snapshot, signers.of(Role::Snapshot, &snapshot_ids));
        }
        let mut timestamp = set.timestamp.signed.signed.clone();
        timestamp.version = next(timestamp.version);
        set.timestamp = sign_timestamp(timestamp, &set.snapshot, now, signers, &set.keys_of(Role::Timestamp).0);
        set.contents = self.contents;
        set.verify("the new metadata")?;
        Ok(set)
    }
}

/// The first set of a depot.
pub(super) fn first(
    keys: &BTreeMap<Role, Keys>,
    signers: &Signers,
    chunks: Option<&str>,
    now: Moment,
) -> Result<Set, PublishError> {
    let one = NonZeroU64::MIN;
    let mut root = Root {
        spec_version: SPEC.to_owned(),
        consistent_snapshot: true,
        version: one,
        expires: end(now, Role::Root),
        keys: HashMap::new(),
        roles: HashMap::new(),
        _extra: HashMap::new(),
    };
    for (role, keys) in keys {
        if let Some(kind) = kind(*role) {
            replace_in_root(&mut root, kind, keys.clone());
        }
    }
    let mut targets = Targets::new(SPEC.to_owned(), one, end(now, Role::Targets));
    targets.delegations = Some(delegations(&keys[&Role::Rollout]));
    set_extra(&mut targets._extra, &Extra { issued: None, chunks: chunks.map(str::to_owned) });
    let state = Bytes::from(Rollout::default().to_json());
    let mut rollout = Targets::new(SPEC.to_owned(), one, end(now, Role::Rollout));
    rollout.delegations = None;
    rollout.targets = rollout_target(&state);
    let targets = Document::sign(targets, signers.all(Role::Targets));
    let rollout = Document::sign(rollout, signers.all(Role::Rollout));
    let mut snapshot = Snapshot::new(SPEC.to_owned(), one, end(now, Role::Snapshot));
    snapshot.meta = HashMap::from([
        ("targets.json".to_owned(), targets.metafile()),
        ("rollout.json".to_owned(), rollout.metafile()),
    ]);
    let snapshot = Document::sign(snapshot, signers.all(Role::Snapshot));
    let timestamp = Timestamp::new(SPEC.to_owned(), one, end(now, Role::Timestamp));
    let ids: Vec<Sha256> = keys[&Role::Timestamp].public.iter().map(|(id, _)| *id).collect();
    let timestamp = sign_timestamp(timestamp, &snapshot, now, signers, &ids);
    let root = Document::sign(root, signers.all(Role::Root));
    let contents = BTreeMap::from([(ROLLOUT_PATH.to_owned(), state)]);
    let set = Set { roots: vec![root], timestamp, snapshot, targets, rollout, contents };
    set.verify("the new metadata")?;
    Ok(set)
}

fn sign_timestamp(
    mut timestamp: Timestamp,
    snapshot: &Document<Snapshot>,
    now: Moment,
    signers: &Signers,
    ids: &[Sha256],
) -> Document<Timestamp> {
    timestamp.expires = end(now, Role::Timestamp);
    timestamp.meta = HashMap::from([("snapshot.json".to_owned(), snapshot.metafile())]);
    let issued = Moment::from_second(now.as_second()).expect("it is a time");
    set_extra(&mut timestamp._extra, &Extra { issued: Some(issued.to_string()), chunks: None });
    Document::sign(timestamp, signers.of(Role::Timestamp, ids))
}

fn snapshot_meta(set: &Set) -> HashMap<String, tough::schema::Metafile> {
    HashMap::from([
        ("targets.json".to_owned(), set.targets.metafile()),
        ("rollout.json".to_owned(), set.rollout.metafile()),
    ])
}

fn rollout_target(state: &[u8]) -> HashMap<TargetName, tough::schema::Target> {
    let name = TargetName::new(ROLLOUT_PATH).expect("the path is a good one");
    HashMap::from([(name, target(state, &Described::default()))])
}

fn delegations(keys: &Keys) -> Delegations {
    let pattern = PathPattern::new(ROLLOUT_PATTERN).expect("the pattern is valid");
    Delegations {
        keys: keys.public.iter().map(|(id, key)| (id.to_vec().into(), key.clone())).collect(),
        roles: vec![DelegatedRole {
            name: Role::Rollout.name().to_owned(),
            keyids: keys.public.iter().map(|(id, _)| id.to_vec().into()).collect(),
            threshold: keys.threshold,
            paths: PathSet::Paths(vec![pattern]),
            terminating: true,
            targets: None,
        }],
    }
}

fn kind(role: Role) -> Option<RoleType> {
    match role {
        Role::Root => Some(RoleType::Root),
        Role::Targets => Some(RoleType::Targets),
        Role::Snapshot => Some(RoleType::Snapshot),
        Role::Timestamp => Some(RoleType::Timestamp),
        Role::Rollout => None,
    }
}

/// Gives a role other keys in root metadata, which then holds no key that no role has.
fn replace_in_root(root: &mut Root, kind: RoleType, keys: Keys) {
    let ids = keys.public.iter().map(|(id, _)| id.to_vec().into()).collect();
    root.roles.insert(kind, TufKeys { keyids: ids, threshold: keys.threshold, _extra: HashMap::new() });
    root.keys.extend(keys.public.into_iter().map(|(id, key)| (id.to_vec().into(), key)));
    let roles = &root.roles;
    root.keys.retain(|id, _| roles.values().any(|keys| keys.keyids.contains(id)));
}

/// What the publisher signed beside TUF's own fields.
pub(super) fn extra_of(extra: &HashMap<String, serde_json::Value>) -> Extra {
    extra.get(EXTRA).and_then(|value| serde_json::from_value(value.clone()).ok()).unwrap_or_default()
}

fn set_extra(extra: &mut HashMap<String, serde_json::Value>, signed: &Extra) {
    if *signed == Extra::default() {
        extra.remove(EXTRA);
    } else {
        extra.insert(EXTRA.to_owned(), serde_json::to_value(signed).expect("texts serialize"));
    }
}
