//! The record of a model: which versions of it this device has, and which one serves.
//!
//! Replacing `models/<model>.json` is what activates a version, so it must never be half of anything; and since no version
//! serves without it, a flipped bit must neither go unnoticed nor leave the model without a version. So it is kept twice
//! ([`super::kept`]).

use std::collections::BTreeMap;

use jiff::Timestamp;
use limpet_wire::depot::parse_hex;
use semver::VersionReq;
use serde::{Deserialize, Serialize};

use super::check_version;
use super::kept::{Kept, bound_rejections};
use crate::package::Package;
use crate::select;
use crate::trial::Progress;

/// Most versions that are remembered as rejected; the oldest are forgotten.
pub const REJECTED_MAX: usize = 64;

/// Which versions of a model this device has, and which one serves.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What serves.
    #[serde(default)]
    pub active: Option<Installed>,
    /// What served before and may serve again, newest first.
    #[serde(default)]
    pub previous: Vec<Installed>,
    /// What a configuration brings that is to take effect: it serves then, if what is active does not lie in the range that
    /// the configuration names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coming: Option<Installed>,
    /// The trial that is going on.
    #[serde(default)]
    pub trial: Option<Progress>,
    /// How far it is on each pipeline, by name: what one has seen is nothing that another gets credit for. Records of
    /// agents before this one have none, and there the trial is as far everywhere.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub trials: BTreeMap<String, Progress>,
    /// Packages that are not tried again, by digest in hexadecimal digits.
    #[serde(default)]
    pub rejected: BTreeMap<String, Rejection>,
    /// Whether what serves was withdrawn and serves only because there is nothing else.
    #[serde(default)]
    pub withdrawn: bool,
}

/// One version of a model on this device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// The version.
    pub version: String,
    /// Digest of the package in hexadecimal digits.
    pub package: String,
}

/// Why a package is not tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// Its version.
    pub version: String,
    /// What was wrong with it.
    pub reason: String,
    /// When, if the time was known.
    #[serde(default)]
    pub at: Option<Timestamp>,
    /// What it was judged under, where that may change: the agent's version, and the configuration. Once that is another,
    /// the package is tried again.
    #[serde(default)]
    pub under: Option<String>,
}

impl Installed {
    /// A package, as records name it.
    pub fn of(package: &Package) -> Self {
        Self { version: package.manifest().version.to_string(), package: package.digest().to_string() }
    }
}

impl Record {
    /// What is on record as installed: what serves, what is to come with a configuration, and what served before.
    pub fn installed(&self) -> impl Iterator<Item = &Installed> {
        self.active.iter().chain(&self.coming).chain(&self.previous)
    }

    /// What serves where pipelines ask for `range`: what is active, if it lies in there and was not withdrawn; else what a
    /// configuration brought with that range, or what served before and lies in it; else what is active all the same.
    pub fn serves(&self, range: &VersionReq) -> Option<&Installed> {
        let lies_there = |one: &&Installed| select::in_range(range, &one.version);
        let active = self.active.as_ref().filter(lies_there).filter(|_| !self.withdrawn);
        active.or_else(|| self.instead(range).next()).or(self.active.as_ref())
    }

    /// What may serve where what is active cannot, the best first: what a configuration brought, which was looked at under
    /// that, and what served before and was not rejected since, if it lies in the range that pipelines ask for.
    pub fn instead<'a>(&'a self, range: &VersionReq) -> impl Iterator<Item = &'a Installed> {
        let before = self.previous.iter().filter(|one| !self.rejected.contains_key(&one.package));
        self.coming.iter().chain(before).filter(|one| select::in_range(range, &one.version))
    }

    /// Lets the version before serve again, and remembers what served, if it was `rejected`. Gives the one that serves now;
    /// none if there is none to go back to, and then nothing changes.
    pub fn go_back(&mut self, rejected: Option<Rejection>) -> Option<Installed> {
        let back = self.previous.first().cloned()?;
        self.previous.retain(|version| *version != back);
        let left = self.active.replace(back.clone());
        self.end_trial();
        self.withdrawn = false;
        if let (Some(left), Some(rejected)) = (left, rejected) {
            self.rejected.insert(left.package, rejected);
        }
        Some(back)
    }

    /// Lets a version serve, and keeps what served before it: the newest `keep` versions.
    pub fn activate(&mut self, version: Installed, keep: usize) {
        self.previous.retain(|previous| *previous != version);
        self.coming.take_if(|coming| *coming == version);
        if let Some(active) = self.active.replace(version.clone()).filter(|active| *active != version) {
            self.previous.insert(0, active);
        }
        self.previous.truncate(keep);
        self.withdrawn = false;
    }

    /// Takes a version back that serves though it is not the active one: it stands in for that, or came with a
    /// configuration.
    pub fn reject_other(&mut self, package: &str, rejection: Rejection) {
        self.previous.retain(|previous| previous.package != package);
        self.coming.take_if(|coming| coming.package == package);
        self.rejected.insert(package.to_owned(), rejection);
    }

    /// A trial begins, or is so far.
    pub fn set_trial(&mut self, progress: Progress, by_pipeline: BTreeMap<String, Progress>) {
        (self.trial, self.trials) = (Some(progress), by_pipeline);
    }

    /// There is no trial any more.
    pub fn end_trial(&mut self) {
        self.trial = None;
        self.trials.clear();
    }

    /// Whether the record needs this version: it serves, may serve again, or is on trial.
    pub(super) fn names(&self, version: &str, package: &str) -> bool {
        let installed = self.installed().any(|installed| installed.version == version);
        installed || self.trial.as_ref().is_some_and(|trial| trial.package == package)
    }
}

impl Kept for Record {
    const WHAT: &'static str = "record of a model";
    const VERSION: u64 = 1;
    const BYTES_MAX: usize = 1 << 20;
    const LOST: &'static str = "which version served is not known: put the files back from a backup, or remove both, and the \
                                model is fetched and proved again";
    // An empty one would let the model serve nothing without a word.
    const BEGINS_ANEW: bool = false;

    /// Versions become parts of paths.
    fn check(&self) -> Result<(), String> {
        for installed in self.installed() {
            check_version(&installed.version)?;
            if parse_hex(&installed.package).is_none() {
                let found = installed.package.escape_debug();
                return Err(format!("names the package \"{found}\"; expected 64 hexadecimal digits"));
            }
        }
        Ok(())
    }

    fn bound(&mut self) {
        bound_rejections(&mut self.rejected);
    }

    /// A trial that begins a little earlier again is no loss, a version is.
    fn differs_by_progress_alone(&self, other: &Self) -> bool {
        let without = |record: &Self| Self { trial: None, trials: BTreeMap::new(), ..record.clone() };
        let trial = |record: &Self| record.trial.as_ref().map(|trial| trial.package.clone());
        without(self) == without(other) && self.trial.is_some() == other.trial.is_some() && trial(self) == trial(other)
    }
}
