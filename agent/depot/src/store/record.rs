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
use crate::trial::{Mode, Progress};

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

    /// Versions become parts of paths.
    pub(super) fn check(&self) -> Result<(), String> {
        check_version(&self.version)?;
        match parse_hex(&self.package) {
            Some(_) => Ok(()),
            None => {
                Err(format!("names the package \"{}\"; expected 64 hexadecimal digits", self.package.escape_debug()))
            }
        }
    }
}

impl Record {
    /// What serves, and what served before.
    pub fn installed(&self) -> impl Iterator<Item = &Installed> {
        self.active.iter().chain(&self.previous)
    }

    /// What may serve where what is active cannot, the newest first: it served before, lies in the range that pipelines ask
    /// for, and was not rejected.
    pub fn instead<'a>(&'a self, range: &VersionReq) -> impl Iterator<Item = &'a Installed> {
        let may = |one: &&Installed| select::in_range(range, &one.version) && !self.rejected.contains_key(&one.package);
        self.previous.iter().filter(may)
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
        if let Some(active) = self.active.replace(version.clone()).filter(|active| *active != version) {
            self.previous.insert(0, active);
        }
        self.previous.truncate(keep);
        self.withdrawn = false;
        if self.trial.as_ref().is_some_and(|trial| trial.mode == Mode::Trial && trial.package != version.package) {
            self.end_trial();
        }
    }

    /// Puts the record in place that comes with a configuration, or comes back with one. What is rejected stays so.
    pub fn replace(&mut self, with: &Self) {
        if self.active != with.active {
            *self = Self { rejected: std::mem::take(&mut self.rejected), ..with.clone() };
        }
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

    fn check(&self) -> Result<(), String> {
        self.installed().try_for_each(Installed::check)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn installed(version: &str) -> Installed {
        Installed { version: version.to_owned(), package: version.replace('.', "") }
    }

    fn record(active: &str, previous: &[&str]) -> Record {
        let previous = previous.iter().map(|version| installed(version)).collect();
        Record { active: Some(installed(active)), previous, ..Record::default() }
    }

    fn rejection() -> Rejection {
        Rejection { version: "1.1.0".into(), reason: "it is too slow".into(), at: None, under: None }
    }

    #[test]
    fn what_may_serve_instead_lies_in_the_range_and_was_not_rejected() {
        let mut record = record("1.2.0", &["1.1.0", "0.9.0", "1.0.0"]);
        let instead = |record: &Record, range: &str| {
            let range = VersionReq::parse(range).unwrap();
            record.instead(&range).map(|one| one.version.clone()).collect::<Vec<_>>()
        };
        assert_eq!(instead(&record, "^1"), ["1.1.0", "1.0.0"]);
        record.rejected.insert(installed("1.1.0").package, rejection());
        assert_eq!(instead(&record, "*"), ["0.9.0", "1.0.0"]);
    }

    #[test]
    fn what_comes_with_a_configuration_leaves_nothing_of_before_but_what_was_rejected() {
        let mut now = record("1.2.0", &["1.1.0"]);
        now.withdrawn = true;
        now.rejected.insert(installed("1.1.0").package, rejection());
        let before = now.clone();
        now.replace(&record("1.2.0", &[]));
        assert_eq!(now, before, "it serves already");
        now.replace(&record("2.0.0", &["0.9.0"]));
        assert_eq!(now, Record { rejected: before.rejected.clone(), ..record("2.0.0", &["0.9.0"]) });
        now.replace(&Record::default());
        assert_eq!(now.installed().count(), 0);
    }

    #[test]
    fn another_version_ends_a_trial_and_the_same_one_does_not() {
        let mut record = record("1.2.0", &[]);
        let progress = Progress { package: installed("1.2.0").package, ..Progress::default() };
        record.set_trial(progress, BTreeMap::new());
        record.activate(installed("1.2.0"), 1);
        assert!(record.trial.is_some());
        record.activate(installed("1.3.0"), 1);
        assert_eq!(record.trial, None);
    }
}
