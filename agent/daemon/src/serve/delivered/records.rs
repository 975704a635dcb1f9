//! What is on record of delivered versions: what serves, what did before, and what was rejected.

use jiff::Timestamp;
use limpet_depot::store::{Installed, Record, Rejection};
use limpet_wire::message::ModelPhase;

use super::super::loader::Loader;
use super::Ready;
use crate::library::Opened;
use crate::pipeline::worker::Sink;

/// Under what a version was rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Grounds {
    /// It will always be as bad.
    Version,
    /// This agent with its engines.
    Agent,
    /// This configuration.
    Configuration,
}

impl<S: Sink + 'static> Loader<S> {
    pub(super) fn reject_unless_active(&mut self, opened: &Opened, why: &str) {
        let digest = opened.package.digest().to_string();
        let active = self.record(&opened.package.manifest().name).active;
        if active.is_none_or(|active| active.package != digest) {
            self.reject(opened, Grounds::Configuration, why);
        }
    }

    /// Puts a delivered version on record as one that is not tried again.
    pub(in super::super) fn reject(&mut self, opened: &Opened, grounds: Grounds, why: &str) {
        if opened.model.depot().is_none() {
            return;
        }
        let installed = Installed::of(&opened.package);
        self.put_on_record_as_rejected(&opened.package.manifest().name, &installed, grounds, why);
    }

    pub(super) fn reject_ready(&mut self, ready: &Ready, grounds: Grounds, why: &str) {
        self.put_on_record_as_rejected(ready.name(), &ready.installed, grounds, why);
        self.board.set_state(ready.name(), &ready.installed.version, ModelPhase::Failed, Some(why.to_owned()));
    }

    fn put_on_record_as_rejected(&mut self, name: &str, installed: &Installed, grounds: Grounds, why: &str) {
        let rejection = self.rejection(&installed.version, grounds, why);
        let digest = installed.package.clone();
        if let Err(error) = self.on_record(name, |record| _ = record.rejected.insert(digest, rejection)) {
            tracing::error!(model = name, error, "a rejection could not be put on record");
        }
        let runs = self.delivered.get(name).and_then(|delivered| delivered.serving.as_ref());
        let runs = match runs {
            Some(ready) => format!("{} goes on", ready.installed.version),
            None => "no version of it runs".to_owned(),
        };
        let story = format!("{name} {} is rejected, {runs}: {why}", installed.version);
        tracing::error!("{story}");
        self.reporter.event("model-rejected", &story, &[("model", name), ("version", &installed.version)]);
    }

    pub(super) fn rejection(&self, version: &str, grounds: Grounds, why: &str) -> Rejection {
        let under = match grounds {
            Grounds::Version => None,
            Grounds::Agent => Some(crate::library::this_agent()),
            Grounds::Configuration => Some(crate::library::this_configuration(&self.loaded.config)),
        };
        Rejection { version: version.to_owned(), reason: why.to_owned(), at: Some(Timestamp::now()), under }
    }

    /// The record of a model; an empty one where it cannot be read, which was said when it was written.
    pub(super) fn record(&self, name: &str) -> Record {
        self.library.store().and_then(|store| store.record(name).ok()).unwrap_or_default()
    }

    /// Changes the record of a model, and gives what it is then.
    pub(super) fn on_record(&self, name: &str, change: impl FnOnce(&mut Record)) -> Result<Record, String> {
        let store = self.library.store().ok_or("there is no store of delivered models")?;
        store.update_record(name, change).map_err(|error| error.to_string())
    }
}
