//! Versions that are taken up later: they have to wait for the end of a trial, or something kept them that is no fault of
//! theirs.
//!
//! What is owed is in the store, and is read again when its time has come: it takes no memory meanwhile. It is let go when it
//! is no longer offered, when a newer version takes over or waits in its place, or when it is damaged, so that it is
//! fetched again.

use std::time::{Duration, Instant};

use limpet_depot::store::Installed;
use limpet_wire::message::ModelPhase;

use super::super::loader::Loader;
use super::super::{ModelVersion, Request};
use super::{Ready, version_of};
use crate::config::ModelRef;
use crate::library::Opened;
use crate::pipeline::worker::Sink;

/// First wait of a version that something kept; doubles up to [`AGAIN_MAX`].
const AGAIN: Duration = Duration::from_secs(15);
/// Longest wait of one: what keeps it may be a full disk, which nobody tells of when it no longer is.
const AGAIN_MAX: Duration = Duration::from_secs(3600);

/// A version that is taken up later.
pub(in super::super) struct Owed {
    model: ModelRef,
    installed: Installed,
    until: Until,
    /// How long it waits when something keeps it the next time.
    wait: Duration,
    /// Why it could not be taken up, as it was told.
    why: String,
}

/// What a version waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    /// The end of a trial.
    TrialEnds,
    /// A moment.
    At(Instant),
    /// Nothing: it is being taken up.
    Now,
}

impl<S: Sink + 'static> Loader<S> {
    /// Takes a version up when a trial has ended, and not before.
    pub(super) fn postpone(&mut self, opened: &Opened, why: &str) {
        let manifest = opened.package.manifest();
        tracing::info!(model = manifest.name, version = %manifest.version, why, "waits for the end of a trial");
        self.overtake(&version_of(opened));
        let waits = format!("it waits for the end of a trial: {why}");
        if !self.board.is_active(manifest) {
            self.board.set(manifest, ModelPhase::Proving, None, Some(waits));
        }
        let installed = Installed::of(&opened.package);
        self.owe(version_of(opened), opened.model.clone(), installed, Until::TrialEnds, String::new());
        self.brought_up();
    }

    /// A version could not be taken up, through no fault of its own: that is tried again.
    pub(in super::super) fn not_now(&mut self, opened: &Opened, why: &str) {
        if opened.model.depot().is_none() {
            return;
        }
        let manifest = opened.package.manifest();
        if !self.board.is_active(manifest) {
            self.board.set(manifest, ModelPhase::Proving, None, Some(format!("{why}; it is tried again")));
        }
        self.again(version_of(opened), opened.model.clone(), Installed::of(&opened.package), why);
    }

    /// The same, of a version that passed its gate.
    pub(super) fn again_of(&mut self, ready: &Ready, why: &str) {
        let pipeline = ready.candidates.keys().next();
        let model = pipeline.map(|pipeline| self.plan.pipelines[*pipeline].package.clone());
        if let Some(model) = model {
            self.again(ready.model_version(), model, ready.installed.clone(), why);
        }
    }

    fn again(&mut self, of: ModelVersion, model: ModelRef, installed: Installed, why: &str) {
        tracing::warn!(model = of.model, version = of.version, why, "not taken up now, and tried again");
        let before = self.owed.get(&of);
        if before.is_none_or(|before| before.why != why) {
            let message = format!("{} {} is not taken up yet, what runs goes on: {why}", of.model, of.version);
            self.reporter.event("depot-refused", &message, &[("about", &of.model)]);
        }
        let wait = before.map_or(AGAIN, |before| before.wait);
        self.owe(of, model, installed, Until::At(Instant::now() + wait), why.to_owned());
    }

    fn owe(&mut self, of: ModelVersion, model: ModelRef, installed: Installed, until: Until, why: String) {
        let before = self.owed.get(&of).map_or(AGAIN, |before| before.wait);
        let wait = if matches!(until, Until::At(_)) { (before * 2).min(AGAIN_MAX) } else { before };
        self.owed.insert(of, Owed { model, installed, until, wait, why });
    }

    /// What waits and is not offered any more is let go.
    pub(super) fn let_go_of_what_is_not_offered(&mut self) {
        let gone: Vec<ModelVersion> = self
            .owed
            .iter()
            .filter(|(of, owed)| !self.is_offered(&of.model, &owed.installed))
            .map(|(of, _)| of.clone())
            .collect();
        gone.iter().for_each(|of| self.let_go(of));
    }

    /// A version takes over, shows beside what serves, or waits for that: older ones that wait have nothing to wait for any
    /// more, unless they are on record.
    pub(super) fn overtake(&mut self, by: &ModelVersion) {
        let parse = |of: &ModelVersion| semver::Version::parse(&of.version).ok();
        let record = self.record(&by.model);
        let older = |(of, owed): &(&ModelVersion, &Owed)| {
            of.model == by.model && parse(of) < parse(by) && !record.installed().any(|one| *one == owed.installed)
        };
        let older: Vec<ModelVersion> = self.owed.iter().filter(older).map(|(of, _)| of.clone()).collect();
        older.iter().for_each(|of| self.let_go(of));
    }

    /// A trial has ended: what waited for that is looked at again.
    pub(super) fn trial_ended(&mut self) {
        self.look_again(|until| until == Until::TrialEnds);
    }

    /// Looks again at what something kept, whenever that may be another.
    pub(in super::super) fn look_again_at_all(&mut self) {
        self.look_again(|until| matches!(until, Until::At(_)));
    }

    /// Looks again at what something kept, once its time has come.
    pub(in super::super) fn look_again_at_due(&mut self) {
        let now = Instant::now();
        self.look_again(|until| matches!(until, Until::At(at) if at <= now));
    }

    fn look_again(&mut self, is_due: impl Fn(Until) -> bool) {
        let due: Vec<ModelVersion> =
            self.owed.iter().filter(|(_, owed)| is_due(owed.until)).map(|(of, _)| of.clone()).collect();
        for of in due {
            let Some(owed) = self.owed.get_mut(&of) else { continue };
            owed.until = Until::Now;
            let (model, installed) = (owed.model.clone(), owed.installed.clone());
            match self.library.stored(&model, &of.model, &of.version) {
                Ok(opened) => self.later.push_back(Request::Arrived(opened)),
                Err(error) if error.is_damage() => {
                    tracing::warn!(model = of.model, version = of.version, %error, "is damaged, and fetched again");
                    self.let_go(&of);
                }
                Err(error) => self.again(of, model, installed, &error.to_string()),
            }
        }
    }

    /// How long until the next one's time has come.
    pub(in super::super) fn until_due(&self) -> Option<Duration> {
        let moment = |owed: &Owed| match owed.until {
            Until::At(at) => Some(at),
            Until::TrialEnds | Until::Now => None,
        };
        let first = self.owed.values().filter_map(moment).min()?;
        Some(first.saturating_duration_since(Instant::now()))
    }
}
