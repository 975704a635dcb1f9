//! Which signed configuration this device runs with.
//!
//! `configuration.json` and its copy ([`super::kept`]) hold the very texts: replacing the file is what activates one, and
//! no other file must agree with it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::kept::{Kept, REASON_MAX, bound_rejections};
use super::record::{Installed, Record, Rejection};
use crate::package::Digest;
use crate::trial::ConfigurationTrial;

/// Largest signed configuration, in bytes.
pub const CONFIGURATION_MAX: usize = 256 << 10;

/// A signed configuration: tables that take the place of those of the gateway's own file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// The target that it is, such as `config.press-07` or `config.line=3`.
    pub target: String,
    /// Its text.
    pub text: String,
}

impl Configuration {
    /// SHA-256 of its text.
    pub fn digest(&self) -> Digest {
        Digest::of(self.text.as_bytes())
    }
}

/// What a gateway is configured by, beside its own file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Configured {
    /// What takes the place of tables of the file; the file alone where there is none.
    #[serde(default)]
    pub active: Option<Configuration>,
    /// Records of models that come with what is in effect, or come back with it: the next start puts them in place.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub models: BTreeMap<String, Record>,
    /// The trial that is going on, with what to go back to.
    #[serde(default)]
    pub trial: Option<ConfigurationTrial>,
    /// What was fetched and verified, and is not taken up yet.
    #[serde(default)]
    pub staged: Option<Configuration>,
    /// What is not tried again, by the digest of its text; the file alone is [`Configured::FILE`].
    #[serde(default)]
    pub rejected: BTreeMap<String, Rejection>,
    /// How often the agent began to examine what is staged, and did not come to an end with it.
    #[serde(default)]
    pub attempts: u32,
    /// What was rejected or taken back since the last one took effect, and why.
    #[serde(default)]
    pub failure: Option<String>,
}

impl Configured {
    /// What the file alone is called among the rejected.
    pub const FILE: &'static str = "file";

    /// What a configuration, or the file alone, is called among the rejected.
    pub fn key(configuration: Option<&Configuration>) -> String {
        configuration.map_or_else(|| Self::FILE.to_owned(), |configuration| configuration.digest().to_string())
    }

    /// Keeps what was fetched and verified, until it is taken up or rejected.
    pub fn stage(&mut self, configuration: Configuration) {
        (self.staged, self.attempts) = (Some(configuration), 0);
    }

    /// Lets a configuration, or the file alone, take effect. With a trial, what was in effect can come back; what was still
    /// on trial itself never showed that one can go back to it, so what was before that can.
    /// For the same reason it is compared with what was done under that.
    pub fn activate(&mut self, configuration: Option<Configuration>, trial: Option<ConfigurationTrial>) {
        self.rejected.remove(&Self::key(configuration.as_ref()));
        // The file alone was rejected beside something that is not in effect any more.
        self.rejected.remove(Self::FILE);
        let replaced = std::mem::replace(&mut self.active, configuration);
        let before = match self.trial.take() {
            Some(on_trial) => on_trial,
            None => ConfigurationTrial { previous: replaced, ..trial.clone().unwrap_or_default() },
        };
        self.trial = None;
        match trial {
            // What one would go back to needs no trial.
            Some(_) if before.previous == self.active => {}
            Some(trial) => {
                self.trial = Some(ConfigurationTrial { starts: trial.starts, served: trial.served, ..before })
            }
            None => {}
        }
        (self.staged, self.failure, self.attempts) = (None, None, 0);
    }

    /// Records of models come with what has just taken effect; `now` gives those that are in place. What served under another
    /// configuration takes no place of a version that is brought: it may want other samples.
    pub fn bring(&mut self, models: BTreeMap<String, Record>, now: impl Fn(&str) -> Record) {
        for model in models.keys() {
            if let Some(trial) = &mut self.trial {
                let before = || Record { rejected: BTreeMap::new(), ..now(model) };
                trial.models.entry(model.clone()).or_insert_with(before);
            }
        }
        self.models = models;
    }

    /// The records that come with what is in effect, and those that it may go back to, by model.
    pub fn records(&self) -> impl Iterator<Item = (&str, &Record)> {
        let before = self.trial.iter().flat_map(|trial| &trial.models);
        self.models.iter().chain(before).map(|(model, record)| (model.as_str(), record))
    }

    /// The versions that these records name.
    pub fn needs(&self) -> impl Iterator<Item = (&str, &Installed)> {
        self.records().flat_map(|(model, record)| record.installed().map(move |version| (model, version)))
    }

    /// Rejects what is not in effect, by its [`Configured::key`].
    pub fn reject(&mut self, key: String, rejection: Rejection) {
        self.failure = Some(format!("{}: {}", rejection.version, rejection.reason));
        self.rejected.insert(key, rejection);
        (self.staged, self.attempts) = (None, 0);
    }

    /// Rejects what is in effect, and goes back to what was before, or, where no trial is going on, to the file alone.
    pub fn go_back(&mut self, rejection: Rejection) {
        self.reject(Self::key(self.active.as_ref()), rejection);
        let before = self.trial.take().unwrap_or_default();
        (self.active, self.models) = (before.previous, before.models);
    }
}

impl Kept for Configured {
    const WHAT: &'static str = "record of signed configurations";
    const VERSION: u64 = 1;
    // Three texts, which JSON makes twice as long at most, but for control characters, and the rejections.
    const BYTES_MAX: usize = 8 * CONFIGURATION_MAX;
    const LOST: &'static str = "which signed configuration was in effect is not known: the file of this gateway takes \
                                effect until it is fetched again";
    // A gateway that nobody visits must not be deaf for ever.
    const BEGINS_ANEW: bool = true;

    fn check(&self) -> Result<(), String> {
        let previous = self.trial.iter().filter_map(|trial| trial.previous.as_ref());
        for one in self.active.iter().chain(&self.staged).chain(previous) {
            if one.text.len() > CONFIGURATION_MAX {
                let length = one.text.len();
                return Err(format!("holds a configuration of {length} bytes; expected at most {CONFIGURATION_MAX}"));
            }
        }
        self.records().try_for_each(|(_, record)| record.check())?;
        Ok(())
    }

    fn bound(&mut self) {
        bound_rejections(&mut self.rejected);
        if let Some(failure) = &mut self.failure {
            failure.truncate(failure.floor_char_boundary(REASON_MAX));
        }
    }

    fn differs_by_progress_alone(&self, other: &Self) -> bool {
        let without = |record: &Self| Self { trial: None, staged: None, attempts: 0, ..record.clone() };
        let back = |record: &Self| record.trial.as_ref().map(|trial| (trial.previous.clone(), trial.models.clone()));
        without(self) == without(other) && back(self) == back(other)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::home;
    use super::*;
    use crate::trial::Progress;

    fn one(text: &str) -> Configuration {
        Configuration { target: "config.press-07".into(), text: text.into() }
    }

    fn rejection() -> Rejection {
        Rejection { version: "config.press-07".into(), reason: "wrong".into(), at: None, under: None }
    }

    #[test]
    fn what_is_taken_back_gives_way_to_what_was_before_and_is_remembered() {
        let mut configured = Configured::default();
        configured.activate(Some(one("a")), None);
        configured.activate(Some(one("b")), Some(ConfigurationTrial::default()));
        configured.go_back(rejection());
        assert_eq!((configured.active.as_ref(), configured.trial.as_ref()), (Some(&one("a")), None));
        assert!(configured.rejected.contains_key(&one("b").digest().to_string()));
        // Without a trial, the file alone is what is left.
        configured.go_back(rejection());
        assert_eq!(configured.active, None);
        assert_eq!(configured.failure.as_deref(), Some("config.press-07: wrong"));
        configured.activate(Some(one("b")), None);
        assert_eq!(configured.failure, None);
        assert!(!configured.rejected.contains_key(&one("b").digest().to_string()), "it was put in effect after all");
    }

    #[test]
    fn one_that_was_still_on_trial_is_nothing_to_go_back_to() {
        let mut configured = Configured::default();
        configured.activate(Some(one("a")), None);
        configured.activate(Some(one("b")), Some(ConfigurationTrial::default()));
        configured.activate(Some(one("c")), Some(ConfigurationTrial::default()));
        configured.go_back(rejection());
        assert_eq!(configured.active, Some(one("a")));
        // And what one would go back to is on no trial against itself.
        configured.activate(Some(one("b")), Some(ConfigurationTrial::default()));
        configured.activate(Some(one("a")), Some(ConfigurationTrial::default()));
        assert_eq!((configured.active, configured.trial), (Some(one("a")), None));
    }

    #[test]
    fn the_versions_that_one_brings_go_with_it() {
        let version = |version: &str| Installed { version: version.into(), package: "0".repeat(64) };
        let only = |text: &str| Record { active: Some(version(text)), ..Record::default() };
        let on_trial = Record { previous: vec![version("0.9.0")], trial: Some(Progress::default()), ..only("1.0.0") };
        let mut configured = Configured::default();
        configured.activate(Some(one("a")), Some(ConfigurationTrial::default()));
        let both = BTreeMap::from([("m".to_owned(), only("2.0.0")), ("n".to_owned(), only("1.0.0"))]);
        let before = BTreeMap::from([("m".to_owned(), on_trial), ("n".to_owned(), Record::default())]);
        configured.bring(both.clone(), |model| before[model].clone());
        assert_eq!(configured.models, both);
        let mut needs: Vec<_> = configured.needs().map(|(model, one)| format!("{model} {}", one.version)).collect();
        needs.sort();
        assert_eq!(needs, ["m 0.9.0", "m 1.0.0", "m 2.0.0", "n 1.0.0"]);
        // The next start has put them in place.
        configured.models.clear();
        // One that takes the place of one on trial goes back to what was before both.
        configured.activate(Some(one("b")), Some(ConfigurationTrial::default()));
        configured.bring(BTreeMap::from([("m".to_owned(), only("3.0.0"))]), |model| both[model].clone());
        configured.go_back(rejection());
        assert_eq!((configured.active, configured.models), (None, before));
    }

    #[test]
    fn the_record_survives_a_flipped_bit_in_either_file() {
        let home = home();
        let set = |configured: &mut Configured| configured.activate(Some(one("[budget]\n")), None);
        let configured = home.store.update_configured(set).unwrap();
        let [main, copy] = home.store.configured_paths();
        for path in [&main, &copy] {
            let mut bytes = std::fs::read(path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(path, bytes).unwrap();
            assert_eq!(home.store.check(false).unwrap().damaged.len(), 1);
            assert_eq!(home.store.configured().unwrap(), configured);
            home.store.check(true).unwrap();
            assert!(home.store.check(false).unwrap().is_whole(), "{}", path.display());
        }
        std::fs::remove_file(&main).unwrap();
        assert_eq!(home.store.configured().unwrap(), configured, "absence proves nothing");
    }

    #[test]
    fn a_record_that_is_lost_twice_is_put_aside_and_told_of_and_the_file_alone_is_in_effect() {
        let repair = |store: &crate::Store| _ = store.check(true).unwrap();
        let change = |store: &crate::Store| _ = store.update_configured(|configured| configured.staged = None).unwrap();
        let read = |store: &crate::Store| _ = store.configured().unwrap();
        for find in [&read as &dyn Fn(&crate::Store), &repair, &change] {
            let home = home();
            home.store.update_configured(|configured| configured.activate(Some(one("a")), None)).unwrap();
            let [main, copy] = home.store.configured_paths();
            std::fs::write(&main, "{").unwrap();
            std::fs::write(&copy, "[").unwrap();
            find(&home.store);
            let notices = home.store.notices();
            let [notice] = &notices[..] else { panic!("{notices:?}") };
            for part in ["configuration.json: is no record", "configuration.copy.damaged", "the file of this gateway"] {
                assert!(notice.contains(part), "{notice}");
            }
            assert_eq!(home.store.configured().unwrap(), Configured::default());
            assert_eq!(std::fs::read(main.with_file_name("configuration.json.damaged")).unwrap(), b"{");
            assert_eq!(std::fs::read(copy.with_file_name("configuration.copy.damaged")).unwrap(), b"[");
            assert!(home.store.check(false).unwrap().is_whole());
            // And it goes on.
            home.store.update_configured(|configured| configured.activate(Some(one("b")), None)).unwrap();
            assert_eq!(home.store.configured().unwrap().active, Some(one("b")));
        }
    }

    #[test]
    fn a_record_that_the_system_does_not_give_is_an_error_and_stays_where_it_is() {
        let home = home();
        let [main, copy] = home.store.configured_paths();
        // A folder is opened and not read.
        std::fs::create_dir(&main).unwrap();
        std::fs::write(&copy, "{").unwrap();
        let error = home.store.configured().unwrap_err().to_string();
        assert!(error.contains("configuration.json: cannot be read"), "{error}");
        assert!(main.is_dir() && copy.is_file());
    }

    #[test]
    fn what_would_be_too_large_to_be_read_again_is_not_written() {
        let home = home();
        home.store.update_configured(|configured| configured.activate(Some(one("a")), None)).unwrap();
        let files = || home.store.configured_paths().map(|path| std::fs::read(path).unwrap());
        let (before, written) = (files(), home.store.bytes_written());
        // As JSON, each of these is six bytes.
        let control = one(&"\u{1}".repeat(CONFIGURATION_MAX));
        let set = |configured: &mut Configured| {
            configured.activate(Some(control.clone()), Some(ConfigurationTrial::default()));
            configured.staged = Some(control.clone());
        };
        let error = home.store.update_configured(set).unwrap_err().to_string();
        assert!(error.contains("is not written: it would have") && error.contains("at most 2097152"), "{error}");
        assert_eq!((files(), home.store.bytes_written()), (before, written));
        assert_eq!(home.store.configured().unwrap().active, Some(one("a")));
    }

    #[test]
    fn a_text_that_is_too_long_is_not_kept() {
        let home = home();
        let long = one(&"#".repeat(CONFIGURATION_MAX + 1));
        let error = home.store.update_configured(|configured| configured.staged = Some(long)).unwrap_err().to_string();
        assert!(error.contains("expected at most 262144"), "{error}");
        let longest = one(&"\n".repeat(CONFIGURATION_MAX));
        let set = |configured: &mut Configured| {
            configured.activate(Some(longest.clone()), None);
            configured.staged = Some(longest.clone());
        };
        let configured = home.store.update_configured(set).unwrap();
        assert_eq!(home.store.configured().unwrap(), configured);
    }
}
