//! One set of metadata that belongs together: from the root down to who gets what.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use limpet_wire::depot::{Described, Name, Rollout, Sha256, Signed as Extra, index_name};
use limpet_wire::message::Message as _;
use limpet_wire::name::check_name;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tough::schema::decoded::Decoded;
use tough::schema::{Metafile, PathSet, Role, RoleType, Root, Signed, Snapshot, Targets, Timestamp as TimestampRole};

use super::{STATE, TargetInfo, Trusted, VERSION_MAX, Versions};
use crate::package::Digest;

/// The documents of a set, exactly as they were signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Set {
    pub root: String,
    pub timestamp: String,
    pub snapshot: String,
    pub targets: String,
    pub rollout: String,
    /// The target `rollout/state.json`.
    pub state: String,
}

/// What a set says.
#[derive(Debug, Clone)]
pub(super) struct Contents {
    pub trusted: Trusted,
    /// When each role expires: root, timestamp, snapshot, targets, rollout.
    pub ends: [(&'static str, Timestamp); 5],
}

/// What is wrong with a set.
#[derive(Debug)]
pub(super) struct Fault {
    pub object: &'static str,
    pub reason: String,
    /// Whether a signature is missing.
    pub unsigned: bool,
}

pub(super) fn fault(object: &'static str, reason: impl Into<String>) -> Fault {
    Fault { object, reason: reason.into(), unsigned: false }
}

fn unsigned(object: &'static str) -> impl FnOnce(tough::schema::Error) -> Fault {
    move |error| Fault { object, reason: error.to_string(), unsigned: true }
}

impl Set {
    /// Verifies the documents against each other and reads them.
    ///
    /// `tough` has verified all of this for a set that was just fetched. Doing it again costs five signatures, serves
    /// for what comes back from disk as well, and is what decides should the two ever disagree. Root metadata is taken
    /// as trusted here: the chain that leads to it is not part of the set.
    pub(super) fn read(&self) -> Result<Contents, Fault> {
        let root = read_root(&self.root)?;
        let timestamp: Signed<TimestampRole> = parse("timestamp", &self.timestamp)?;
        root.verify_role(&timestamp).map_err(unsigned("timestamp"))?;
        let snapshot: Signed<Snapshot> = parse("snapshot", &self.snapshot)?;
        root.verify_role(&snapshot).map_err(unsigned("snapshot"))?;
        listed("snapshot", &timestamp.signed.meta, &self.snapshot, snapshot.signed.version.get())?;
        let targets: Signed<Targets> = parse("targets", &self.targets)?;
        root.verify_role(&targets).map_err(unsigned("targets"))?;
        listed("targets", &snapshot.signed.meta, &self.targets, targets.signed.version.get())?;
        let rollout = self.read_rollout(&targets.signed)?;
        listed("rollout", &snapshot.signed.meta, &self.rollout, rollout.signed.version.get())?;
        let state = rollout.signed.targets.iter().find(|(name, _)| name.raw() == STATE).map(|(_, target)| target);
        let state = state.ok_or_else(|| fault("rollout", format!("it does not name {STATE}")))?;
        if state.length != self.state.len() as u64
            || state.hashes.sha256.as_ref() != Digest::of(self.state.as_bytes()).0
        {
            return Err(fault("rollout.json", "its digest or length is not what rollout metadata names"));
        }

        let signed = &targets.signed;
        let versions = Versions {
            root: root.version.get(),
            timestamp: timestamp.signed.version.get(),
            snapshot: snapshot.signed.version.get(),
            targets: signed.version.get(),
            rollout: rollout.signed.version.get(),
        };
        for (role, version) in [
            ("timestamp", versions.timestamp),
            ("snapshot", versions.snapshot),
            ("targets", versions.targets),
            ("rollout", versions.rollout),
        ] {
            bounded(role, version)?;
        }
        let issued = extra("timestamp", &timestamp.signed._extra)?.issued;
        let time = |text: String| {
            let none = |error| fault("timestamp", format!("`issued` is {text:?}, which is no RFC 3339 time: {error}"));
            text.parse::<Timestamp>().map_err(none)
        };
        let ends = [
            ("root", root.expires),
            ("timestamp", timestamp.signed.expires),
            ("snapshot", snapshot.signed.expires),
            ("targets", signed.expires),
            ("rollout", rollout.signed.expires),
        ];
        let trusted = Trusted {
            versions,
            expires: ends.iter().map(|(_, end)| *end).min().expect("there are five"),
            issued: issued.map(time).transpose()?,
            targets: signed.targets.iter().map(|(name, target)| info(name.raw(), target)).collect::<Result<_, _>>()?,
            rollout: parse_state(&self.state)?,
            chunks: extra("targets", &signed._extra)?.chunks.map(|url| base_url(&url)).transpose()?,
        };
        Ok(Contents { trusted, ends })
    }

    /// Metadata of the one role that targets metadata may delegate to, for the one path.
    fn read_rollout(&self, targets: &Targets) -> Result<Signed<Targets>, Fault> {
        let delegations = targets.delegations.as_ref().map(|found| (found, found.roles.as_slice()));
        let Some((delegations, [role])) = delegations else {
            let found: Vec<&str> =
                delegations.map_or(&[][..], |(_, roles)| roles).iter().map(|r| r.name.as_str()).collect();
            return Err(fault("targets", format!("it delegates to {found:?}; expected `rollout` alone")));
        };
        let only = matches!(&role.paths, PathSet::Paths(paths) if paths.len() == 1 && paths[0].value() == "rollout/*");
        if role.name != "rollout" || !only {
            let reason = format!("it delegates {:?} to `{}`; expected rollout/* to `rollout`", role.paths, role.name);
            return Err(fault("targets", reason));
        }
        let rollout: Signed<Targets> = parse("rollout", &self.rollout)?;
        delegations.verify_role(&rollout, "rollout").map_err(unsigned("rollout"))?;
        if let Some(name) =
            rollout.signed.targets.keys().map(|name| name.raw()).find(|name| !name.starts_with("rollout/"))
        {
            return Err(fault("rollout", format!("it names {name:?}; it may name rollout/* only")));
        }
        // Who signs rollouts is online and the likeliest to be broken into: it may not bring in others.
        if rollout.signed.delegations.as_ref().is_some_and(|found| !found.roles.is_empty()) {
            return Err(fault("rollout", "it delegates further, which it may not"));
        }
        Ok(rollout)
    }
}

/// Reads root metadata that is signed by a threshold of its own keys.
pub(super) fn read_root(text: &str) -> Result<Root, Fault> {
    let root: Signed<Root> = parse("root", text)?;
    root.signed.verify_role(&root).map_err(unsigned("root"))?;
    let root = root.signed;
    bounded("root", root.version.get())?;
    if !root.consistent_snapshot {
        return Err(fault("root", "`consistent_snapshot` is false; a depot names its metadata by version"));
    }
    let missing = [RoleType::Root, RoleType::Timestamp, RoleType::Snapshot, RoleType::Targets]
        .into_iter()
        .find(|role| !root.roles.contains_key(role));
    match missing {
        Some(role) => Err(fault("root", format!("it names no keys for {role}"))),
        None => Ok(root),
    }
}

/// A version that leaves room to go on.
fn bounded(object: &'static str, version: u64) -> Result<(), Fault> {
    match version {
        ..=VERSION_MAX => Ok(()),
        _ => Err(fault(object, format!("it has version {version}; expected at most {VERSION_MAX}"))),
    }
}

/// Whether two roots give a role the same keys.
pub(super) fn same_keys(a: &Root, b: &Root, role: RoleType) -> bool {
    let keys = |root: &Root| {
        let mut ids: Vec<Vec<u8>> = root
            .roles
            .get(&role)
            .map_or(&[][..], |r| r.keyids.as_slice())
            .iter()
            .map(|id| id.as_ref().to_vec())
            .collect();
        ids.sort();
        ids.dedup();
        ids
    };
    keys(a) == keys(b)
}

fn parse<T: Role + DeserializeOwned>(object: &'static str, text: &str) -> Result<Signed<T>, Fault> {
    serde_json::from_str(text).map_err(|error| fault(object, format!("it is no {object} metadata: {error}")))
}

/// Compares a document with what lists it.
fn listed(object: &'static str, meta: &HashMap<String, Metafile>, text: &str, version: u64) -> Result<(), Fault> {
    let file = format!("{object}.json");
    let listed = meta.get(&file).ok_or_else(|| fault(object, "the metadata above does not list it"))?;
    if listed.version.get() != version {
        return Err(fault(object, format!("it has version {version}; the metadata above lists {}", listed.version)));
    }
    if listed.length.is_some_and(|length| length < text.len() as u64) {
        return Err(fault(object, format!("it has {} bytes; the metadata above lists less", text.len())));
    }
    match &listed.hashes {
        Some(hashes) if hashes.sha256.as_ref() != Digest::of(text.as_bytes()).0 => {
            Err(fault(object, "its digest is not the one that the metadata above lists"))
        }
        _ => Ok(()),
    }
}

/// What stands beside TUF's own fields.
fn extra(object: &'static str, fields: &HashMap<String, Value>) -> Result<Extra, Fault> {
    let Some(found) = fields.get("limpet") else { return Ok(Extra::default()) };
    Extra::deserialize(found).map_err(|error| fault(object, format!("its key `limpet` does not read: {error}")))
}

fn base_url(text: &str) -> Result<url::Url, Fault> {
    let wrong = |reason: &str| fault("targets", format!("chunks are said to be at {text:?}: {reason}"));
    let url = url::Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
    if url.scheme() != "https" || url.host_str().is_none() {
        return Err(wrong("expected an https URL with a host"));
    }
    Ok(url)
}

/// Reads a target. Its name becomes a topic and a path, and so do model and version, so they are checked here.
fn info(name: &str, target: &tough::schema::Target) -> Result<(String, TargetInfo), Fault> {
    let wrong = |reason: String| fault("targets", format!("target {name:?}: {reason}"));
    let sha256: Sha256 = digest_of(&target.hashes.sha256).ok_or_else(|| wrong("its digest is no SHA-256".into()))?;
    if Name::target(sha256, name).is_none() {
        return Err(wrong("the name cannot stand in a topic and in a path".into()));
    }
    let custom = Value::Object(target.custom.clone().into_iter().collect());
    let described: Described =
        serde_json::from_value(custom).map_err(|error| wrong(format!("`custom` does not read: {error}")))?;
    match (&described.model, &described.version) {
        (None, None) => {}
        (Some(model), Some(version)) => {
            let fits = check_name(model).is_ok();
            let semver = semver::Version::parse(version).is_ok_and(|parsed| parsed.build.is_empty());
            let expected = index_name(model, version);
            if !fits || !semver || name != expected {
                let found = format!("it is said to be model {model:?}, version {version:?}");
                return Err(wrong(format!(
                    "{found}; expected a name, a version without `+`, and the target {expected:?}"
                )));
            }
        }
        (model, version) => {
            return Err(wrong(format!("model {model:?} and version {version:?}; expected both or none")));
        }
    }
    Ok((name.to_owned(), TargetInfo { sha256, length: target.length, described }))
}

pub(super) fn digest_of(bytes: &Decoded<tough::schema::decoded::Hex>) -> Option<Sha256> {
    let bytes: &[u8] = bytes.as_ref();
    bytes.try_into().ok()
}

/// Newest version of the rollout's state that is understood.
const STATE_VERSION: u64 = 1;

fn parse_state(text: &str) -> Result<Rollout, Fault> {
    let wrong = |reason: String| fault("rollout.json", reason);
    let value: Value = serde_json::from_str(text).map_err(|error| wrong(format!("it is no JSON: {error}")))?;
    match value["v"].as_u64() {
        Some(STATE_VERSION) => {}
        Some(newer) if newer > STATE_VERSION => {
            return Err(wrong(format!(
                "it is of version {newer}, newer than this agent, which reads {STATE_VERSION}; update the agent"
            )));
        }
        _ => return Err(wrong(format!("its `v` is {}; expected {STATE_VERSION}", value["v"]))),
    }
    if value["type"] != Rollout::TYPE {
        return Err(wrong(format!("its `type` is {}; expected {:?}", value["type"], Rollout::TYPE)));
    }
    serde_json::from_value(value).map_err(|error| wrong(format!("it does not read: {error}")))
}

/// Documents by version, out of the chain of root metadata.
pub(super) fn chain(bytes: &[u8], from: u64) -> Result<BTreeMap<u64, Vec<u8>>, Fault> {
    let wrong = |reason: String| fault("meta/roots", reason);
    let documents: Vec<Value> =
        serde_json::from_slice(bytes).map_err(|error| wrong(format!("it is no array of root metadata: {error}")))?;
    let mut roots = BTreeMap::new();
    let mut expected: Option<u64> = None;
    for document in documents {
        let version = document["signed"]["version"].as_u64().filter(|version| *version <= VERSION_MAX);
        let version = version.ok_or_else(|| wrong("one of its documents has no version".into()))?;
        if expected.is_some_and(|expected| expected != version) {
            return Err(wrong(format!("version {version} follows {}; the chain is broken", expected.unwrap_or(1) - 1)));
        }
        expected = Some(version + 1);
        roots.insert(version, document.to_string().into_bytes());
    }
    let (first, last) = (roots.keys().next().copied(), roots.keys().last().copied());
    match (first, last) {
        (Some(first), _) if first > from + 1 => {
            Err(wrong(format!("it begins at version {first}; version {from} is trusted, so {} is missing", from + 1)))
        }
        (_, last) if last.unwrap_or(0) < from => {
            let last = last.map_or_else(|| "nothing".to_owned(), |last| format!("version {last}"));
            Err(wrong(format!("it ends with {last}; version {from} is trusted")))
        }
        _ => Ok(roots),
    }
}
