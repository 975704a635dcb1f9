//! Versions that the depot delivered: taken up, watched, and taken back.
//!
//! The gate before this is the same as for every package: the proof, then admission. What passes becomes what serves by
//! one write of the model's [record](limpet_depot::store::Record), before the workers hear of it, so that whatever
//! happens in between, the next start finds a proved version. What fails is put on record too, and not tried again
//! until it, or what it failed under, changes.
//!
//! From there on the version is on [trial](limpet_depot::trial): the one before it stays loaded, if memory allows, runs
//! in shadow, and takes over again the moment the judge says so. With `shadow = true` it is the other way round first.

mod back;
mod owed;
mod records;
mod trials;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use limpet_depot::store::Installed;
use limpet_depot::trial::{Before, Mode, Progress, golden_noise};
use limpet_depot::{DepotError, Manifest};
use limpet_wire::message::ModelPhase;

use super::loader::{Loader, Prepared};
use super::{ModelVersion, Proved, Request, Settled};
use crate::admission::Candidate;
use crate::config::ModelRef;
use crate::fit;
use crate::library::Opened;
use crate::pipeline::shadow::before;
use crate::pipeline::worker::Sink;

use back::ComingBack;
pub(super) use owed::Owed;
pub(super) use records::Grounds;
use trials::{Begun, Watched};

/// How often the progress of a trial is shown.
pub(super) const SHOW_EVERY: Duration = Duration::from_secs(5);

/// A model of the depot that serves, or is about to.
#[derive(Default)]
pub(super) struct Delivered {
    /// What serves.
    serving: Option<Ready>,
    /// What is watched.
    watched: Option<Watched>,
    /// What takes the place of what serves once it is proved: the version to go back to had no valid proof.
    coming_back: Option<ComingBack>,
}

/// A version that passed the gate.
#[derive(Clone)]
pub(super) struct Ready {
    manifest: Arc<Manifest>,
    installed: Installed,
    proved: Arc<Proved>,
    /// How far its features may move while its answer rightly stays.
    noise: f64,
    candidates: BTreeMap<usize, Candidate>,
}

impl Ready {
    fn of(prepared: &Prepared, pipelines: &[usize]) -> Self {
        let package = &prepared.opened.package;
        let full = &prepared.full;
        Self {
            manifest: Arc::new(package.manifest().clone()),
            installed: Installed::of(package),
            proved: Arc::new(prepared.proved.clone()),
            noise: golden_noise(package, &full.variant, &full.input, &full.outputs),
            candidates: prepared.candidates(pipelines),
        }
    }

    fn name(&self) -> &str {
        &self.manifest.name
    }

    fn model_version(&self) -> ModelVersion {
        ModelVersion { model: self.manifest.name.clone(), version: self.installed.version.clone() }
    }

    fn numbers(&self) -> BTreeSet<u32> {
        self.candidates.values().flat_map(Candidate::numbers).collect()
    }

    fn uses(&self, number: u32) -> bool {
        self.candidates.values().any(|candidate| candidate.uses(number))
    }
}

/// Which version a package is.
fn version_of(opened: &Opened) -> ModelVersion {
    let manifest = opened.package.manifest();
    ModelVersion { model: manifest.name.clone(), version: manifest.version.to_string() }
}

/// Why there is no proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotProved {
    /// In a sentence.
    pub why: String,
    /// Whose fault that is.
    pub fault: Fault,
}

/// Whose fault it is that there is no proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The package's.
    Package,
    /// Somebody stopped it. That may be a system short of memory, whose fault the package is if it is always so.
    Stopped,
    /// The device's: a process that could not be started, a full disk.
    Device,
}

/// How often in a row the proof of a package may be stopped from outside before that is its own fault: a graph that takes more
/// memory than the device has is killed each time.
const STOPS_MAX: u32 = 3;

/// How often the proofs of packages were stopped from outside, by digest.
#[derive(Debug, Default)]
pub struct Stops(BTreeMap<String, u32>);

impl Stops {
    /// One was, once more. Whether that is its own fault by now.
    pub fn once_more(&mut self, package: &str) -> bool {
        let stops = self.0.entry(package.to_owned()).or_default();
        *stops += 1;
        *stops >= STOPS_MAX
    }
}

impl NotProved {
    /// Of what the proof said.
    pub fn of(error: &DepotError) -> Self {
        let fault = match error {
            DepotError::Io { .. } | DepotError::Proof { .. } | DepotError::Full { .. } => Fault::Device,
            DepotError::Stopped { .. } => Fault::Stopped,
            _ => Fault::Package,
        };
        Self { why: error.to_string(), fault }
    }
}

/// Why what was proved does not serve.
pub(super) struct NotReady {
    /// In a sentence.
    pub why: String,
    pub because: Because,
}

/// What keeps a version from serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Because {
    /// It does not fit what it would serve in.
    Unfit,
    /// There is no room beside what is loaded while a version is on trial.
    Room,
    /// It could not be put on record, perhaps for want of room on the disk; another time it may be.
    Record,
}

impl NotReady {
    pub(super) fn unfit(why: String) -> Self {
        Self { why, because: Because::Unfit }
    }

    fn not_on_record(why: String) -> Self {
        Self { why, because: Because::Record }
    }
}

impl<S: Sink + 'static> Loader<S> {
    /// A version is here to be taken up.
    pub(super) fn arrived(&mut self, opened: Opened) {
        let (name, digest) = (opened.package.manifest().name.clone(), opened.package.digest().to_string());
        let there = |delivered: &Delivered| {
            let watched = delivered.watched.as_ref().map(|watched| &watched.own);
            delivered.serving.iter().chain(watched).any(|ready| ready.installed.package == digest)
        };
        let Some(delivered) = self.delivered.get(&name).filter(|delivered| there(delivered)) else {
            self.tried.insert(opened.model.clone(), opened.package.digest());
            return self.change(opened);
        };
        // It serves, perhaps since it could not be put on record that it does.
        let installed = Installed::of(&opened.package);
        let serves = delivered.serving.as_ref().is_some_and(|ready| ready.installed == installed);
        if serves && self.record(&name).active.as_ref() != Some(&installed) {
            let keep = self.keep();
            if let Err(why) = self.on_record(&name, |record| record.activate(installed, keep)) {
                return self.not_now(&opened, &why);
            }
        }
        self.dealt_with(&opened);
    }

    /// What is offered is another. What waits, or runs in shadow, and is not offered any more is let go.
    pub(super) fn offer(&mut self, offered: BTreeMap<String, BTreeSet<String>>) {
        self.offered = offered;
        self.let_go_of_what_is_not_offered();
        let in_shadow = self.delivered.iter().filter_map(|(name, delivered)| {
            let watched = delivered.watched.as_ref().filter(|watched| watched.mode == Mode::Shadow)?;
            let offered = self.offered.get(name)?;
            (!offered.contains(&watched.own.installed.version)).then(|| name.clone())
        });
        for name in in_shadow.collect::<Vec<_>>() {
            let Some(watched) = self.stop_watching(&name) else { continue };
            if let Err(why) = self.on_record(&name, |record| record.end_trial()) {
                tracing::error!(model = name, why, "the end of a trial could not be put on record");
            }
            self.tidy();
            self.let_go(&watched.own.model_version());
            self.trial_ended();
        }
    }

    /// Whether a version may take over: it is offered, or on record as one that serves or did.
    fn is_offered(&self, name: &str, installed: &Installed) -> bool {
        self.offered.get(name).is_none_or(|offered| offered.contains(&installed.version))
            || self.record(name).installed().any(|known| known == installed)
    }

    /// A version is not taken up, since it is not offered any more, another one came, or it is damaged. Whether it is to be,
    /// after all, is for whoever brought it.
    fn let_go(&mut self, of: &ModelVersion) {
        tracing::info!(model = of.model, version = of.version, "is let go: it is not the one to be taken up now");
        self.board.set_not_coming(&of.model, &of.version);
        self.owed.remove(of);
        self.tell(Settled::LetGo(of.clone()));
    }

    /// A version was proved, and another one of its model was handed over meanwhile, or the model goes back to one.
    pub(super) fn superseded(&mut self, opened: &Opened) {
        if opened.model.depot().is_some() {
            self.let_go(&version_of(opened));
        }
    }

    /// Whether a version is on record as the one that serves, and none does.
    pub(super) fn should_serve(&self, opened: &Opened) -> bool {
        let name = &opened.package.manifest().name;
        let serves = self.delivered.get(name).is_some_and(|delivered| delivered.serving.is_some());
        opened.model.depot().is_some() && !serves && self.record(name).active == Some(Installed::of(&opened.package))
    }

    /// The first version of a model whose pipelines wait, proved. They cannot run without another plan.
    pub(super) fn take_up_later(&mut self, opened: &Opened) {
        let manifest = opened.package.manifest();
        if !self.is_offered(&manifest.name, &Installed::of(&opened.package)) {
            return self.let_go(&version_of(opened));
        }
        if let Err(why) = fit::would_run(&self.loaded, &self.library, std::slice::from_ref(opened), &BTreeSet::new()) {
            self.refuse(opened, &why);
            self.reject(opened, Grounds::Configuration, &why);
            return self.dealt_with(opened);
        }
        let installed = Installed::of(&opened.package);
        let keep = self.keep();
        match self.on_record(&manifest.name, |record| record.activate(installed, keep)) {
            Ok(_) => {
                let why = format!("{} {} was delivered and proved", manifest.name, manifest.version);
                self.tell(Settled::Again(why));
            }
            Err(why) => self.not_now(opened, &why),
        }
    }

    /// A version passed its proof: it takes the place of what its pipelines serve, or shows beside it what it can.
    pub(super) fn take_up(&mut self, prepared: Prepared, served: &[usize]) {
        let opened = prepared.opened.clone();
        let name = opened.package.manifest().name.clone();
        if !self.is_offered(&name, &Installed::of(&opened.package)) {
            self.let_go(&version_of(&opened));
            return self.brought_up();
        }
        let coming = self.take_coming_back(&opened);
        let serving = self.delivered.get(&name).and_then(|delivered| delivered.serving.as_ref());
        let serves = serving.is_some_and(|ready| ready.installed == Installed::of(&opened.package));
        if served.is_empty() {
            self.introduce(&[prepared]);
            let installed = Installed::of(&opened.package);
            let serves = self.delivered.get(&name).and_then(|delivered| delivered.serving.as_ref());
            if serves.is_some_and(|ready| ready.installed == installed)
                && self.record(&name).active.as_ref() != Some(&installed)
            {
                return self.not_now(&opened, "it serves, and could not be put on record");
            }
        } else if serves {
            // It was proved twice, for two reasons.
            self.brought_up();
        } else if let Some(coming) = coming {
            self.came_back(&coming, Ready::of(&prepared, served));
        } else {
            let ready = Ready::of(&prepared, served);
            let shadow = served.iter().any(|pipeline| self.config.pipelines[*pipeline].trial.shadow);
            if shadow && self.is_on_trial(&name) {
                // It would take the place of a judge that has not said its word yet.
                return self.postpone(&opened, "the version that serves is on trial");
            }
            let outcome = if shadow { self.begin_shadow(ready) } else { self.switch(ready) };
            match outcome {
                Ok(()) => {}
                Err(NotReady { why, because: Because::Room }) => return self.postpone(&opened, &why),
                Err(NotReady { why, because: Because::Record }) => {
                    self.brought_up();
                    return self.not_now(&opened, &why);
                }
                Err(NotReady { why, because: Because::Unfit }) => {
                    self.refuse(&opened, &why);
                    self.reject(&opened, Grounds::Configuration, &why);
                }
            }
            self.brought_up();
        }
        self.dealt_with(&opened);
    }

    /// The return that waits for this very package to be proved, if one does. It does no longer.
    fn take_coming_back(&mut self, opened: &Opened) -> Option<ComingBack> {
        let delivered = self.delivered.get_mut(&opened.package.manifest().name)?;
        delivered.coming_back.take_if(|coming| coming.installed == Installed::of(&opened.package))
    }

    /// Whether a model waits for this very package to be proved, to go back to it.
    pub(super) fn is_coming_back(&self, opened: &Opened) -> bool {
        let delivered = self.delivered.get(&opened.package.manifest().name);
        let coming = delivered.and_then(|delivered| delivered.coming_back.as_ref());
        coming.is_some_and(|coming| coming.installed == Installed::of(&opened.package))
    }

    /// Whether the version of a model that serves is on trial.
    fn is_on_trial(&self, name: &str) -> bool {
        let watched = self.delivered.get(name).and_then(|delivered| delivered.watched.as_ref());
        watched.is_some_and(|watched| watched.mode == Mode::Trial)
    }

    /// Notes what was brought up of the depot: what serves, and the trials that go on.
    pub(super) fn brought_up_delivered(&mut self, prepared: &[Prepared]) {
        for made in prepared.iter().filter(|made| made.opened.model.depot().is_some()) {
            let serving: Vec<usize> =
                made.versions.keys().copied().filter(|pipeline| self.serving[*pipeline].is_some()).collect();
            let name = made.opened.package.manifest().name.clone();
            if serving.is_empty() {
                let why = "no pipeline that names it is admitted; see the refusals of its pipelines";
                self.reject_unless_active(&made.opened, why);
                continue;
            }
            let ready = Ready::of(made, &serving);
            let keep = self.keep();
            let installed = ready.installed.clone();
            // One that stands in for what is damaged gives way to that when it is whole.
            let stands_in = self.library.stood_in().into_iter().find(|one| one.model == name);
            let record = self.on_record(&name, |record| {
                let damaged = |active: &Installed| stands_in.is_some_and(|of| of.version == active.version);
                let stands_in = record.previous.contains(&installed) && record.active.as_ref().is_some_and(damaged);
                if record.active.as_ref() != Some(&installed) && !stands_in {
                    record.activate(installed, keep);
                }
            });
            let record = record.unwrap_or_else(|why| {
                tracing::error!(model = name, why, "what serves could not be put on record");
                self.record(&name)
            });
            let begun = Begun::of(record, Mode::Trial, &ready.installed);
            self.delivered.entry(name.clone()).or_default().serving = Some(ready.clone());
            if let Some(begun) = begun {
                let other = self.previous_ready(&name, &made.opened, &serving);
                self.watch(Mode::Trial, ready, other, &begun, &[]);
            }
            self.prove_previous(&name, &made.opened.model);
        }
    }

    /// The version that served before the one that serves.
    fn previous(&self, name: &str, model: &ModelRef) -> Option<Opened> {
        let previous = self.record(name).previous.into_iter().next()?;
        self.library.stored(model, name, &previous.version).ok()
    }

    /// Proves the version before the one that serves, if it has no proof that is valid: going back to it cannot wait for
    /// that.
    fn prove_previous(&mut self, name: &str, model: &ModelRef) {
        let Some(opened) = self.previous(name, model) else { return };
        if self.proof_of(&opened).is_none() && self.spare.insert(opened.package.digest()) {
            self.prove(vec![opened]);
        }
    }

    /// The version before the one that serves, loaded beside it if there is room.
    fn previous_ready(&mut self, name: &str, opened: &Opened, pipelines: &[usize]) -> Option<Ready> {
        let opened = self.previous(name, &opened.model)?;
        let proved = self.proof_of(&opened)?;
        let prepared = self.prepare(&opened, proved).ok()?;
        let ready = Ready::of(&prepared, pipelines);
        self.load_beside(&ready).then_some(ready)
    }

    /// Puts a version in the place of what serves, and watches it.
    ///
    /// # Errors
    /// Why it does not serve; the old one does.
    fn switch(&mut self, ready: Ready) -> Result<(), NotReady> {
        let name = ready.name().to_owned();
        let on_trial = self.is_on_trial(&name);
        let delivered = self.delivered.entry(name.clone()).or_default();
        let old = match &delivered.watched {
            // What was on trial and is replaced never showed that one can go back to it: the one before it did.
            Some(watched) if on_trial => watched.other.clone(),
            _ if delivered.coming_back.is_some() => None,
            _ => delivered.serving.clone(),
        };
        // Where a publisher went back, it is what takes over.
        let old = old.filter(|old| old.installed != ready.installed);
        let before: BTreeMap<usize, Before> =
            ready.candidates.keys().map(|p| (*p, before(&self.plan.pipelines[*p].ledger))).collect();
        let (with, admitted) = self.make_ready(&ready.candidates)?;
        let rules = self.rules(&ready);
        let trial = rules.values().any(|rules| rules.windows > 0);
        let progress = trial.then(|| {
            let all = before.values().fold(Before::default(), |sum, one| Before {
                windows: sum.windows + one.windows,
                errors: sum.errors + one.errors,
                misses: sum.misses + one.misses,
            });
            Progress::new(ready.installed.package.clone(), Mode::Trial, all)
        });
        let (keep, installed) = (self.keep(), ready.installed.clone());
        let serves = old.as_ref().map(|old| old.installed.clone());
        let kept = progress.clone();
        let pipelines: Vec<usize> = ready.candidates.keys().copied().collect();
        let recorded = self.on_record(&name, |record| {
            if on_trial {
                record.active = record.previous.first().cloned();
            } else if let Some(serves) = serves {
                // It may have stood in for what is damaged. That is no way back; this is.
                record.activate(serves, keep);
            }
            record.activate(installed, keep);
            match kept {
                Some(progress) => record.set_trial(progress, BTreeMap::new()),
                None => record.end_trial(),
            }
        });
        if let Err(why) = recorded {
            // What serves goes on, and so does its trial.
            self.call_off(&ready.numbers());
            return Err(NotReady::not_on_record(why));
        }
        self.overtake(&ready.model_version());
        self.take_watched(&name);
        self.settle(with, &admitted);
        let serves: Vec<_> = pipelines.iter().filter_map(|pipeline| self.about_to_serve(*pipeline)).collect();
        let delivered = self.delivered.entry(name.clone()).or_default();
        (delivered.serving, delivered.coming_back) = (Some(ready.clone()), None);
        let phase = if trial { ModelPhase::Trial } else { ModelPhase::Active };
        self.board.set(&ready.manifest, phase, Some(&ready.proved), None);
        let (manifest, proved) = (Arc::clone(&ready.manifest), Arc::clone(&ready.proved));
        match progress {
            Some(progress) => {
                let begun = Begun { progress, by_pipeline: BTreeMap::new() };
                self.watch(Mode::Trial, ready, old, &begun, &serves);
            }
            None => {
                serves.iter().for_each(|serve| self.hand_over(serve));
                self.unwatch(&pipelines);
                self.trial_ended();
            }
        }
        self.reporter.model_activated(&manifest, &proved);
        self.tidy();
        Ok(())
    }

    /// Runs a version beside what serves.
    ///
    /// # Errors
    /// Why it cannot.
    fn begin_shadow(&mut self, ready: Ready) -> Result<(), NotReady> {
        let name = ready.name().to_owned();
        let Some(serving) = self.delivered.get(&name).and_then(|delivered| delivered.serving.clone()) else {
            return self.switch(ready);
        };
        let stopped = self.stop_watching(&name).is_some();
        if !self.load_beside(&ready) {
            // What ran beside until now may be on its way out still.
            self.await_leaving(&ready.numbers());
        }
        if !self.load_beside(&ready) {
            self.unload_unserved(&ready.numbers());
            if stopped {
                self.trial_ended();
            }
            return Err(self.no_room_now(format!(
                "old and new version do not fit together into budget.memory = {}, and `shadow = true` runs both; raise the budget, or leave shadow out",
                limpet_runtime::admission::Mebibytes(self.config.budget.memory.0)
            )));
        }
        let begun = Begun::of(self.record(&name), Mode::Shadow, &ready.installed).unwrap_or_else(|| {
            let before = ready.candidates.keys().map(|p| before(&self.plan.pipelines[*p].ledger)).next();
            let progress = Progress::new(ready.installed.package.clone(), Mode::Shadow, before.unwrap_or_default());
            Begun { progress, by_pipeline: BTreeMap::new() }
        });
        let Begun { progress, by_pipeline } = begun.clone();
        self.on_record(&name, |record| record.set_trial(progress, by_pipeline)).map_err(NotReady::not_on_record)?;
        self.overtake(&ready.model_version());
        self.watch(Mode::Shadow, ready, Some(serving), &begun, &[]);
        Ok(())
    }

    /// Loads a version on the workers of its pipelines, beside what serves there. Says whether there was room.
    fn load_beside(&mut self, ready: &Ready) -> bool {
        for (pipeline, candidate) in &ready.candidates {
            for worker in self.places_of(*pipeline) {
                for facts in candidate.facts() {
                    let loaded = self.known.get(&facts.number).is_some_and(|known| known.loaded.contains_key(&worker));
                    let fits = self.loaded_bytes() + facts.memory <= self.config.budget.memory.0;
                    if !(loaded || fits && self.load(worker, facts.number).is_ok()) {
                        return false;
                    }
                }
            }
        }
        true
    }

    /// A proof failed.
    pub(super) fn not_proved(&mut self, opened: &Opened, not_proved: &NotProved) {
        let NotProved { why, fault } = not_proved;
        let its_fault = match fault {
            Fault::Package => true,
            // Where nothing else can serve, it is tried again and again.
            Fault::Stopped => {
                let name = &opened.package.manifest().name;
                let serves = self.delivered.get(name).is_some_and(|delivered| delivered.serving.is_some());
                serves && !self.is_coming_back(opened) && self.stops.once_more(&opened.package.digest().to_string())
            }
            Fault::Device => false,
        };
        if let Some(coming) = self.take_coming_back(opened) {
            let name = &opened.package.manifest().name;
            if its_fault {
                self.stays_after_all(name, &coming, why);
            } else {
                // What is to go serves until that works.
                self.delivered.entry(name.clone()).or_default().coming_back = Some(coming);
            }
        }
        if its_fault || opened.model.depot().is_none() {
            self.refuse(opened, why);
        }
        if !its_fault {
            return self.not_now(opened, why);
        }
        self.reject(opened, Grounds::Agent, why);
        self.fall_back(opened, why);
        self.dealt_with(opened);
    }

    /// What should serve has no proof here any more, as after an update of the agent: the version before it is looked at.
    fn fall_back(&mut self, opened: &Opened, why: &str) {
        if !self.should_serve(opened) {
            return;
        }
        let (name, installed) = (opened.package.manifest().name.clone(), Installed::of(&opened.package));
        let record = self.record(&name);
        let Some(reference) = opened.model.depot() else { return };
        let mut candidates = record.instead(&reference.range);
        let open = |previous: &Installed| {
            let opened = self.library.stored(&opened.model, &name, &previous.version).ok()?;
            fit::would_run(&self.loaded, &self.library, std::slice::from_ref(&opened), &BTreeSet::new()).ok()?;
            Some((previous.clone(), opened))
        };
        let Some((back, previous)) = candidates.find_map(open) else { return };
        let (rejection, keep) = (self.rejection(&installed.version, Grounds::Agent, why), self.keep());
        let (version, digest) = (back.version.clone(), installed.package.clone());
        let changed = self.on_record(&name, |record| {
            record.activate(back, keep);
            record.previous.retain(|previous| previous.package != digest);
            record.rejected.insert(digest, rejection);
        });
        if let Err(error) = changed {
            tracing::error!(model = name, error, "going back could not be put on record");
        }
        let story = format!("{name} {} was taken back, {version} is proved and serves then: {why}", installed.version);
        tracing::error!("{story}");
        self.reporter.event("rolled-back", &story, &[("model", &name), ("version", &installed.version)]);
        self.later.push_back(Request::Arrived(previous));
    }

    /// Nothing more is done about a version: the next one may be handed over.
    pub(super) fn dealt_with(&mut self, opened: &Opened) {
        if opened.model.depot().is_some() {
            let of = version_of(opened);
            self.owed.remove(&of);
            self.done(of);
        }
    }

    /// Tells that the record of a version's model may have changed, and that nothing more is done about the version, unless
    /// it is owed.
    fn done(&self, of: ModelVersion) {
        if !self.owed.contains_key(&of) {
            self.tell(Settled::Done(of));
        }
    }

    fn keep(&self) -> usize {
        self.config.depot.as_ref().map_or(1, |depot| depot.keep)
    }

    fn tell(&self, settled: Settled) {
        // Nobody listens where there is no depot.
        let _ = self.settled.send(settled);
    }
}
