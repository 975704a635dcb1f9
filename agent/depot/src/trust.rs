//! What a gateway trusts: the metadata of [The Update Framework](https://theupdateframework.io), from the root that its
//! owner installed down to who gets which version.
//!
//! [`tough`] does what TUF's detailed client workflow says. Around it stands what a depot needs: its messages in the
//! place of files, the whole chain of roots in one message (so that its end is known and not concluded from absence),
//! one file for all that is trusted, replaced at once or not at all, and expiry that is judged by a [clock](crate::clock)
//! a gateway can have. Whatever fails changes nothing, and nothing that fails stops what runs.

mod error;
mod fetch;
mod file;
mod scratch;
mod set;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use limpet_wire::depot::{Described, Name, Rollout, Sha256};
use tough::schema::{RoleType, Root, Signed, Targets};
use tough::{ExpirationEnforcement, Limits, RepositoryLoader};
use url::Url;

pub use self::error::TrustError;
use self::fetch::Files;
use self::file::{Found, Kept, Known};
use self::scratch::Scratch;
use self::set::{Contents, Fault, Set, chain, digest_of, fault, read_root, same_keys};
use crate::clock::{By, Clock, Judged};
use crate::package::Digest;
use crate::remote::{Remote, object};

/// Largest objects, in bytes: what is larger is an attack, or a depot that should be split.
const ROOTS_MAX: u64 = 1 << 20;
const TIMESTAMP_MAX: u64 = 64 << 10;
const SNAPSHOT_MAX: u64 = 256 << 10;
const TARGETS_MAX: u64 = 10 << 20;
const ROLLOUT_MAX: u64 = 1 << 20;
const STATE_MAX: u64 = 4 << 20;
/// Largest version of any metadata: one a second for a thousand years. A larger one would leave no room to go on.
const VERSION_MAX: u64 = 1 << 35;
/// How far the time of signing may be ahead of a clock that is right.
const AHEAD: SignedDuration = SignedDuration::from_hours(24);
/// Folder beside what is trusted, for the time of an update.
const SCRATCH: &str = "scratch";
/// The one target that is delegated.
const STATE: &str = "rollout/state.json";

/// What is trusted.
#[derive(Debug, Clone, PartialEq)]
pub struct Trusted {
    /// Versions of the metadata.
    pub versions: Versions,
    /// When the first of it expires.
    pub expires: Timestamp,
    /// When it was signed, as its publisher says.
    pub issued: Option<Timestamp>,
    /// Indexes and signed configurations, by name.
    pub targets: BTreeMap<String, TargetInfo>,
    /// Who gets what.
    pub rollout: Rollout,
    /// Where chunks are to be had by HTTPS instead, if they are.
    pub chunks: Option<Url>,
}

/// Versions of metadata, by role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are called as their roles")]
pub struct Versions {
    pub root: u64,
    pub timestamp: u64,
    pub snapshot: u64,
    pub targets: u64,
    pub rollout: u64,
}

/// A target, as signed metadata lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetInfo {
    /// Digest of its content.
    pub sha256: Sha256,
    /// Its length in bytes.
    pub length: u64,
    /// What the publisher says of it.
    pub described: Described,
}

/// What an update brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update {
    /// Nothing new.
    Same,
    /// Newer metadata.
    New,
}

/// The metadata that is trusted, on disk and in memory.
#[derive(Debug)]
pub struct Trust {
    /// `<state>/depot`.
    folder: PathBuf,
    /// Where files may be for the time of an update.
    scratch: PathBuf,
    /// The root that the chain goes on from.
    root: String,
    kept: Kept,
    /// What of it is on disk.
    known: Known,
    contents: Option<Contents>,
    built: Timestamp,
    warnings: Vec<String>,
}

impl Trust {
    /// Reads the root metadata that the owner installed, and what was trusted before.
    ///
    /// A root file that was replaced starts a new chain; what was trusted stays so if the new root's keys signed it too.
    /// State that is damaged is put aside, with a warning, and trust starts at the installed root again: a gateway that
    /// nobody visits must not be deaf for ever. Until its first update it can then be shown older metadata, as long as
    /// that is not expired.
    ///
    /// # Errors
    /// [`TrustError::Root`] if the root metadata is not there or is none, [`TrustError::Io`] if the state cannot be read.
    pub fn open(state: &Path, root: &Path, built: Timestamp) -> Result<Self, TrustError> {
        let installed = read_installed(root)?;
        let refuse = |fault: Fault| TrustError::Root { path: root.to_owned(), reason: fault.reason };
        read_root(&installed).map_err(refuse)?;
        let of_installed = Digest::of(installed.as_bytes()).to_string();
        let folder = state.join("depot");
        let fresh = || Kept { installed: of_installed.clone(), root: None, issued: None, disowned: false, set: None };
        let mut warnings = Vec::new();
        let mut known = Known::default();
        let mut kept = match file::read(&folder)? {
            Found::Nothing => fresh(),
            Found::Kept(kept) => {
                known = Known::of(&kept);
                *kept
            }
            Found::Damaged(reason) => {
                let aside = file::put_aside(&folder)?;
                warnings.push(format!(
                    "what was trusted is damaged ({reason}); it was put aside as {}, and trust starts at the installed root again",
                    aside.display()
                ));
                fresh()
            }
        };
        let mut start = kept.root.clone().or_else(|| kept.set.as_ref().map(|set| set.root.clone()));
        if kept.installed != of_installed {
            kept.installed = of_installed;
            kept.root = None;
            start = None;
            if let Some(set) = &mut kept.set {
                // Where the new root's keys did not sign it, it stays as it was, to guard against going back.
                let under_new = Set { root: installed.clone(), ..set.clone() };
                kept.disowned = under_new.read().is_err();
                if !kept.disowned {
                    *set = under_new;
                }
            }
        }
        let contents = match kept.set.as_ref().filter(|_| !kept.disowned).map(Set::read) {
            Some(Ok(contents)) => Some(contents),
            Some(Err(fault)) => {
                warnings.push(format!("what was trusted does not verify any more: {}: {}", fault.object, fault.reason));
                kept.disowned = true;
                None
            }
            None => None,
        };
        let scratch = folder.join(SCRATCH);
        scratch::sweep(&scratch);
        Ok(Self { folder, scratch, root: start.unwrap_or(installed), kept, known, contents, built, warnings })
    }

    /// Puts the files that an update needs for its own time into a folder, such as one in memory: nothing in them is worth
    /// writing to flash. It is emptied now of what a process that was killed left there. Where no such folder can be
    /// made, they are beside what is trusted, as they are without this.
    pub fn with_scratch(mut self, folder: PathBuf) -> Self {
        scratch::sweep(&folder);
        self.scratch = folder;
        self
    }

    /// What is trusted, if anything is yet. It may have expired since: that stops what is new, not what runs.
    pub fn trusted(&self) -> Option<&Trusted> {
        self.contents.as_ref().map(|contents| &contents.trusted)
    }

    /// What was found on opening that a person should know.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// No time that is right is before this.
    pub fn floor(&self) -> Timestamp {
        self.kept.issued.map_or(self.built, |issued| issued.max(self.built))
    }

    /// The time that things are judged by.
    pub fn judge(&self, clock: Clock) -> Judged {
        clock.judge(self.floor())
    }

    /// Takes over newer metadata. `clock` is asked when something is judged by it, since what comes may take days.
    ///
    /// # Errors
    /// [`TrustError`]: why it is not trusted. What was trusted before still is.
    pub async fn update(&mut self, remote: Arc<dyn Remote>, clock: impl Fn() -> Clock) -> Result<Update, TrustError> {
        let place = remote.place().to_owned();
        let (root, roots) = self.newest_root(remote.as_ref(), &place).await?;
        if let Some((_, text)) = roots.last_key_value() {
            // Before anything else (TUF 5.3.8): whoever was dismissed by it has no say any more, whatever follows.
            let kept = Kept { root: Some(text.clone()), ..self.kept.clone() };
            self.known = file::write(&self.folder, &kept, &self.known)?;
            (self.root, self.kept) = (text.clone(), kept);
        }
        let timestamp = object(remote.as_ref(), &Name::Timestamp, TIMESTAMP_MAX).await?;
        // Only under the very root that it was verified by: another may have dismissed who signed it.
        if let (Some(contents), Some(set)) = (&self.contents, &self.kept.set)
            && set.root == self.root
            && set.timestamp.as_bytes() == timestamp
        {
            expire(&place, contents, self.judge(clock()))?;
            return Ok(Update::Same);
        }
        let (set, contents, issued) = self.load(remote, &place, &root, timestamp, &clock).await?;
        let before = self.contents.as_ref().filter(|_| self.kept.set.as_ref().is_some_and(|set| set.root == self.root));
        if before.is_some_and(|before| before.trusted.versions.timestamp == contents.trusted.versions.timestamp) {
            // The same version with another content: what came first stays (TUF 5.4.3).
            return Ok(Update::Same);
        }
        let installed = self.kept.installed.clone();
        let kept = Kept { installed, root: None, issued, disowned: false, set: Some(set) };
        self.known = file::write(&self.folder, &kept, &self.known)?;
        (self.kept, self.contents) = (kept, Some(contents));
        Ok(Update::New)
    }

    /// The newest root that the one which is trusted leads to, and the documents on the way, by version.
    async fn newest_root(&self, remote: &dyn Remote, place: &str) -> Result<(Root, BTreeMap<u64, String>), TrustError> {
        let faulty = |fault: Fault| said(place, fault);
        let mut root = read_root(&self.root).map_err(faulty)?;
        let from = root.version.get();
        let mut newer = BTreeMap::new();
        let bytes = object(remote, &Name::Roots, ROOTS_MAX).await?;
        for (version, document) in chain(&bytes, from).map_err(faulty)? {
            if version <= from {
                continue;
            }
            let text = String::from_utf8(document).map_err(|_| faulty(fault("meta/roots", "it is no UTF-8")))?;
            // Signed by the keys of the one before and by its own (TUF 5.3.4).
            let next = read_root(&text).map_err(faulty)?;
            let signed: Signed<Root> =
                serde_json::from_str(&text).map_err(|error| faulty(fault("root", error.to_string())))?;
            root.verify_role(&signed).map_err(|error| TrustError::Signature {
                place: place.to_owned(),
                object: format!("root {version}"),
                reason: error.to_string(),
            })?;
            root = next;
            newer.insert(version, text);
        }
        Ok((root, newer))
    }

    /// Whether what is trusted, which came from `place`, may still tell of anything new.
    ///
    /// # Errors
    /// [`TrustError::Expired`].
    pub fn current(&self, place: &str, clock: Clock) -> Result<(), TrustError> {
        let Some(contents) = &self.contents else { return Ok(()) };
        expire(place, contents, self.judge(clock))
    }

    async fn load(
        &self,
        remote: Arc<dyn Remote>,
        place: &str,
        root: &Root,
        timestamp: Vec<u8>,
        clock: impl Fn() -> Clock,
    ) -> Result<(Set, Contents, Option<Timestamp>), TrustError> {
        let scratch = Scratch::new([&self.scratch, &self.folder.join(SCRATCH)])
            .map_err(|(path, source)| TrustError::Io { path, doing: "used as a scratch folder", source })?;
        self.seed(scratch.path(), root)?;
        let known = self.kept.set.iter().flat_map(|set| {
            [&set.snapshot, &set.targets, &set.rollout, &set.state].map(|text| Bytes::from(text.clone().into_bytes()))
        });
        let files = Files::new(Arc::clone(&remote), timestamp.clone().into(), known);
        let base = Url::parse("depot://depot/").expect("it is one");
        let loader = RepositoryLoader::new(&self.root, base.clone(), base)
            .transport(files.clone())
            .datastore(scratch.path())
            .limits(Limits {
                max_root_size: ROOTS_MAX,
                max_targets_size: TARGETS_MAX,
                max_timestamp_size: TIMESTAMP_MAX,
                max_snapshot_size: SNAPSHOT_MAX,
                max_root_updates: 2,
            })
            .expiration_enforcement(ExpirationEnforcement::Unsafe);
        loader.load().await.map_err(|error| match files.failure() {
            Some(failure) => failure.into(),
            None => explain(place, &error),
        })?;
        let text = |role: &str| {
            let bytes = files.got(role).ok_or_else(|| fault("targets", format!("it delegates nothing to {role}")))?;
            String::from_utf8(bytes.to_vec()).map_err(|_| fault("targets", format!("{role} is no UTF-8")))
        };
        let faulty = |fault: Fault| said(place, fault);
        let rollout = text("rollout").map_err(faulty)?;
        let set = Set {
            root: self.root.clone(),
            timestamp: String::from_utf8(timestamp).map_err(|_| faulty(fault("timestamp", "it is no UTF-8")))?,
            snapshot: text("snapshot").map_err(faulty)?,
            targets: text("targets").map_err(faulty)?,
            state: state(remote.as_ref(), place, &files, &rollout).await?,
            rollout,
        };
        let contents = set.read().map_err(faulty)?;
        let said = contents.trusted.issued;
        // Other keys, another clock: a publisher whose clock was wrong must not lock its gateways out for ever.
        let before = if self.same_signer(root, RoleType::Timestamp) { self.kept.issued } else { None };
        let floor = |issued: Option<Timestamp>| issued.map_or(self.built, |issued| issued.max(self.built));
        // Only a clock that is believed can say that something is from the future: one that shows less than what is known
        // to be past says nothing.
        let clock = clock();
        let known = clock.judge(floor(before));
        let ahead = |issued: Timestamp| known.by == By::Clock && issued.duration_since(known.time) > AHEAD;
        let [_, (_, end), ..] = contents.ends;
        if let Some(issued) = said.filter(|issued| *issued > end) {
            let reason = format!(
                "it says that it was issued at {issued}, after its end at {end}; is its publisher's clock right?"
            );
            return Err(faulty(fault("timestamp", reason)));
        }
        if let Some(issued) = said.filter(|issued| ahead(*issued)) {
            let reason = format!(
                "it says that it was issued at {issued}, more than a day from now, {known}; is its publisher's clock right, \
                 and this one?"
            );
            return Err(faulty(fault("timestamp", reason)));
        }
        let issued = said.into_iter().chain(before).max();
        expire(place, &contents, clock.judge(floor(issued)))?;
        Ok((set, contents, issued))
    }

    /// Whether a root gives a role the keys that it had when something was trusted last.
    fn same_signer(&self, root: &Root, role: RoleType) -> bool {
        let before = self.kept.set.as_ref().and_then(|set| read_root(&set.root).ok());
        before.is_none_or(|before| same_keys(&before, root, role))
    }

    /// Puts what was trusted where `tough` compares with it. Where the keys of timestamp or snapshot were replaced, their
    /// old versions count no more: whoever had the old keys may have driven them up (TUF 5.3.11).
    fn seed(&self, scratch: &Path, root: &Root) -> Result<(), TrustError> {
        let Some(set) = &self.kept.set else { return Ok(()) };
        if !self.same_signer(root, RoleType::Timestamp) || !self.same_signer(root, RoleType::Snapshot) {
            return Ok(());
        }
        for (name, text) in [("timestamp.json", &set.timestamp), ("snapshot.json", &set.snapshot)] {
            let path = scratch.join(name);
            fs::write(&path, text).map_err(|source| TrustError::Io { path, doing: "written", source })?;
        }
        Ok(())
    }
}

/// The root metadata that the owner installed.
fn read_installed(path: &Path) -> Result<String, TrustError> {
    let refuse = |reason: String| TrustError::Root { path: path.to_owned(), reason };
    let file = File::open(path).map_err(|error| {
        refuse(format!("cannot be read: {error}; put the root.json there that `limpet-lab depot init` made"))
    })?;
    let mut text = String::new();
    file.take(ROOTS_MAX + 1).read_to_string(&mut text).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    if text.len() as u64 > ROOTS_MAX {
        return Err(refuse(format!("has more than {ROOTS_MAX} bytes; no root metadata has")));
    }
    Ok(text)
}

/// The target `rollout/state.json`, by the digest that rollout metadata names; known already, or fetched.
async fn state(remote: &dyn Remote, place: &str, files: &Files, rollout: &str) -> Result<String, TrustError> {
    let faulty = |reason: String| said(place, fault("rollout", reason));
    let rollout: Signed<Targets> = serde_json::from_str(rollout).map_err(|error| faulty(error.to_string()))?;
    let target = rollout.signed.targets.iter().find(|(name, _)| name.raw() == STATE).map(|(_, target)| target);
    let target = target.ok_or_else(|| faulty(format!("it does not name {STATE}")))?;
    let sha256 = digest_of(&target.hashes.sha256).ok_or_else(|| faulty("a digest in it is no SHA-256".into()))?;
    let bytes = match files.known(&sha256) {
        Some(bytes) => bytes.to_vec(),
        None => {
            let name = Name::target(sha256, "rollout.json").expect("a short name of letters and a dot");
            object(remote, &name, target.length.min(STATE_MAX)).await?
        }
    };
    String::from_utf8(bytes).map_err(|_| said(place, fault("rollout.json", "it is no UTF-8")))
}

fn expire(place: &str, contents: &Contents, judged: Judged) -> Result<(), TrustError> {
    match contents.ends.iter().find(|(_, end)| *end <= judged.time) {
        Some((role, expired)) => Err(TrustError::Expired { place: place.to_owned(), role, expired: *expired, judged }),
        None => Ok(()),
    }
}

fn said(place: &str, fault: Fault) -> TrustError {
    let (place, object, reason) = (place.to_owned(), fault.object.to_owned(), fault.reason);
    if fault.unsigned {
        TrustError::Signature { place, object, reason }
    } else {
        TrustError::Refused { place, object, reason }
    }
}

/// What `tough` says, in the words of this module.
fn explain(place: &str, error: &tough::error::Error) -> TrustError {
    use tough::error::Error;
    let (place, reason) = (place.to_owned(), error.to_string());
    match error {
        Error::OlderMetadata { role, .. } => TrustError::Rollback { place, object: role.to_string(), reason },
        Error::OlderSnapshotInTimestamp { .. } => TrustError::Rollback { place, object: "snapshot".into(), reason },
        Error::SnapshotRoleRollback { .. } | Error::SnapshotRoleMissing { .. } => {
            TrustError::Rollback { place, object: "snapshot".into(), reason }
        }
        Error::VerifyMetadata { role, source, .. } => {
            TrustError::Signature { place, object: role.to_string(), reason: source.to_string() }
        }
        _ => {
            let mut reason = reason;
            let mut source = std::error::Error::source(error);
            while let Some(inner) = source {
                reason = format!("{reason}: {inner}");
                source = inner.source();
            }
            TrustError::Refused { place, object: "metadata".into(), reason }
        }
    }
}

#[cfg(all(test, feature = "publish"))]
mod tests;
