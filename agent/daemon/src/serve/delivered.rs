//! Versions that the depot delivered: taken up, watched, and taken back.
//!
//! The gate before this is the same as for every package: the proof, then admission. What passes becomes what serves by
//! one write of the model's [record](limpet_depot::store::Record), before the workers hear of it, so that whatever
//! happens in between, the next start finds a proved version. What fails is put on record too, and not tried again
//! until it, or what it failed under, changes.
//!
//! From there on the version is on [trial](limpet_depot::trial): the one before it stays loaded, if memory allows, runs
//! in shadow, and takes over again the moment the judge says so. With `shadow = true` it is the other way round first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use limpet_depot::store::{Installed, Record, Rejection};
use limpet_depot::trial::{Before, Mode, Progress, Rules, Trial, Verdict, golden_noise};
use limpet_depot::{DepotError, Manifest};
use limpet_wire::message::ModelPhase;

use super::loader::{Loader, Prepared};
use super::{PipelineState, Proved, Request, Settled};
use crate::admission::Candidate;
use crate::config::{self, ModelRef};
use crate::fit;
use crate::library::{Opened, Place};
use crate::pipeline::shadow::{Companion, Watch, before};
use crate::pipeline::stream::Serve;
use crate::pipeline::worker::Sink;

/// How often what a restart goes on with is written: a power cut takes that much of a trial, and flash wears.
const KEEP_EVERY: Duration = Duration::from_secs(60);
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

/// A version that served before and takes over again when it is proved.
struct ComingBack {
    installed: Installed,
    /// The version that is to go, why, and whether that is a breach; else it was withdrawn.
    left: String,
    why: String,
    breach: bool,
}

/// How far going back to a version is.
enum Back {
    /// It serves.
    Serves,
    /// It is proved first.
    Proving,
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

    fn numbers(&self) -> BTreeSet<u32> {
        self.candidates.values().flat_map(Candidate::numbers).collect()
    }

    fn uses(&self, number: u32) -> bool {
        self.candidates.values().any(|candidate| candidate.uses(number))
    }
}

/// A version on trial, and the one that it is compared with.
struct Watched {
    mode: Mode,
    /// The version on trial.
    own: Ready,
    /// The other one: what served before, or still does in shadow.
    other: Option<Ready>,
    /// By pipeline, until each is judged…
    open: BTreeMap<usize, Arc<Watch>>,
    /// …and those on which it passed.
    done: BTreeMap<usize, Arc<Watch>>,
    /// When its progress was written last.
    kept: Instant,
}

impl Watched {
    fn pipelines(&self) -> Vec<usize> {
        self.own.candidates.keys().copied().collect()
    }

    /// A pipeline on which the version was on trial and is not compared with the other one.
    fn uncompared(&self) -> Option<usize> {
        let watches = self.open.iter().chain(&self.done).filter(|_| self.mode == Mode::Trial);
        watches.into_iter().find(|(_, watch)| !watch.progress().is_compared()).map(|(pipeline, _)| *pipeline)
    }

    /// What runs beside the version that serves.
    fn companion(&self) -> Option<&Ready> {
        match self.mode {
            Mode::Trial => self.other.as_ref(),
            Mode::Shadow => Some(&self.own),
        }
    }
}

/// How far a trial is that begins, or goes on.
#[derive(Clone)]
struct Begun {
    progress: Progress,
    by_pipeline: BTreeMap<String, Progress>,
}

impl Begun {
    /// The one that is on record for this package, if one is.
    fn of(record: Record, mode: Mode, installed: &Installed) -> Option<Self> {
        let is_of = |progress: &Progress| progress.mode == mode && progress.package == installed.package;
        let progress = record.trial.filter(is_of)?;
        let by_pipeline = record.trials.into_iter().filter(|(_, progress)| is_of(progress)).collect();
        Some(Self { progress, by_pipeline })
    }

    /// How far it is on a pipeline.
    fn on(&self, pipeline: &str) -> Progress {
        let Progress { package, mode, before, .. } = &self.progress;
        match self.by_pipeline.get(pipeline) {
            Some(progress) => progress.clone(),
            None if self.by_pipeline.is_empty() => self.progress.clone(),
            // It was not there when the others began.
            None => Progress::new(package.clone(), *mode, *before),
        }
    }
}

/// Under what a version was rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grounds {
    /// It will always be as bad.
    Version,
    /// This agent with its engines.
    Agent,
    /// This configuration.
    Configuration,
}

/// Why there is no proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotProved {
    /// In a sentence.
    pub why: String,
    /// Whether that is the package's fault, and not that of a process that could not be started or a full disk.
    pub its_fault: bool,
}

impl NotProved {
    /// Of what the proof said.
    pub fn of(error: &DepotError) -> Self {
        let its_fault = !matches!(error, DepotError::Io { .. } | DepotError::Proof { .. } | DepotError::Full { .. });
        Self { why: error.to_string(), its_fault }
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

/// How going back from a version of a model to the one before it came out.
fn returned(name: &str, left: &str, back: &str, why: &str, restored: Result<(), &str>) -> String {
    match restored {
        Ok(()) => format!("{name} {left} was taken back, {back} serves again: {why}"),
        Err(error) => format!("{name} {left} should be taken back, but {back} cannot serve ({error}): {why}"),
    }
}

/// What a version is called that served and was taken back.
fn left_as(breach: bool) -> ModelPhase {
    if breach { ModelPhase::Failed } else { ModelPhase::Withdrawn }
}

impl<S: Sink + 'static> Loader<S> {
    /// A version was delivered.
    pub(super) fn arrived(&mut self, opened: Opened) {
        let (name, digest) = (opened.package.manifest().name.clone(), opened.package.digest().to_string());
        let there = |delivered: &Delivered| {
            let watched = delivered.watched.as_ref().map(|watched| &watched.own);
            delivered.serving.iter().chain(watched).any(|ready| ready.installed.package == digest)
        };
        if self.delivered.get(&name).is_some_and(there) {
            return self.tell(Settled::Model(name));
        }
        self.tried.insert(opened.model.clone(), opened.package.digest());
        self.change(opened);
    }

    /// The first version of a model whose pipelines wait, proved. They cannot run without another plan.
    pub(super) fn take_up_later(&mut self, opened: &Opened) {
        let manifest = opened.package.manifest();
        if let Err(why) = fit::would_run(&self.loaded, &self.library, opened) {
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
            Err(why) => {
                self.refuse(opened, &why);
                self.not_now(opened);
            }
        }
    }

    /// A version passed its proof: it takes the place of what its pipelines serve, or shows beside it what it can.
    pub(super) fn take_up(&mut self, prepared: Prepared, served: &[usize]) {
        let opened = prepared.opened.clone();
        let name = opened.package.manifest().name.clone();
        let coming = self.take_coming_back(&opened);
        let serving = self.delivered.get(&name).and_then(|delivered| delivered.serving.as_ref());
        let serves = serving.is_some_and(|ready| ready.installed == Installed::of(&opened.package));
        if served.is_empty() {
            self.introduce(&[prepared]);
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
                return self.hold(opened, "the version that serves is on trial");
            }
            let outcome = if shadow { self.begin_shadow(ready) } else { self.switch(ready) };
            match outcome {
                Ok(()) => {}
                Err(NotReady { why, because: Because::Room }) => return self.hold(opened, &why),
                Err(NotReady { why, because }) => {
                    self.refuse(&opened, &why);
                    if because == Because::Unfit {
                        self.reject(&opened, Grounds::Configuration, &why);
                    } else {
                        self.brought_up();
                        return self.not_now(&opened);
                    }
                }
            }
            self.brought_up();
        }
        self.tell(Settled::Model(name));
    }

    /// The return that waits for this very package to be proved, if one does. It does no longer.
    fn take_coming_back(&mut self, opened: &Opened) -> Option<ComingBack> {
        let delivered = self.delivered.get_mut(&opened.package.manifest().name)?;
        delivered.coming_back.take_if(|coming| coming.installed == Installed::of(&opened.package))
    }

    /// Whether the version of a model that serves is on trial.
    fn is_on_trial(&self, name: &str) -> bool {
        let watched = self.delivered.get(name).and_then(|delivered| delivered.watched.as_ref());
        watched.is_some_and(|watched| watched.mode == Mode::Trial)
    }

    /// Takes a version up when a trial has ended, and not before. Until then it is not dealt with, and so nobody clears
    /// it out of the store.
    fn hold(&mut self, opened: Opened, why: &str) {
        let manifest = opened.package.manifest();
        tracing::info!(model = manifest.name, version = %manifest.version, why, "waits for the end of a trial");
        let waits = format!("it waits for the end of a trial: {why}");
        if !self.board.is_active(manifest) {
            self.board.set(manifest, ModelPhase::Proving, None, Some(waits));
        }
        self.held.insert(manifest.name.clone(), opened);
        self.brought_up();
    }

    /// A trial has ended: what waited for that is looked at again.
    fn release_held(&mut self) {
        let held = std::mem::take(&mut self.held).into_values();
        self.later.extend(held.map(Request::Arrived));
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
            let record = self.on_record(&name, |record| {
                if record.active.as_ref() != Some(&installed) {
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
        let place = Place::Stored { model: name.to_owned(), version: previous.version };
        let package = Arc::new(self.library.open(&place).ok()?);
        Some(Opened { model: model.clone(), place, package })
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
        let kept = progress.clone();
        let pipelines: Vec<usize> = ready.candidates.keys().copied().collect();
        let recorded = self.on_record(&name, |record| {
            if on_trial {
                record.active = record.previous.first().cloned();
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
                self.release_held();
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
        self.stop_watching(&name);
        if !self.load_beside(&ready) {
            // What ran beside until now may be on its way out still.
            self.await_leaving(&ready.numbers());
        }
        if !self.load_beside(&ready) {
            self.unload_unserved(&ready.numbers());
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

    /// What a version has to do, by pipeline.
    fn rules(&self, ready: &Ready) -> BTreeMap<usize, Rules> {
        let p99 = ready.manifest.budget.latency_p99;
        let rules = |trial: &config::Trial| Rules {
            windows: trial.windows,
            time: trial.time.0,
            agreement: trial.agreement,
            p99,
            ..Rules::default()
        };
        let pipelines = ready.candidates.keys();
        pipelines.map(|pipeline| (*pipeline, rules(&self.config.pipelines[*pipeline].trial))).collect()
    }

    /// Watches a version on all of its pipelines. `serves`: what their workers do not serve yet, and do from then on.
    fn watch(&mut self, mode: Mode, own: Ready, other: Option<Ready>, begun: &Begun, serves: &[Arc<Serve>]) {
        let mut open = BTreeMap::new();
        for (pipeline, rules) in self.rules(&own) {
            let new = serves.iter().find(|serve| serve.pipeline == pipeline);
            if rules.windows == 0 {
                if let Some(serve) = new {
                    self.hand_over(serve);
                    self.unwatch(&[pipeline]);
                }
                continue;
            }
            let beside = match mode {
                Mode::Trial => other.as_ref(),
                Mode::Shadow => Some(&own),
            };
            let share = self.config.pipelines[pipeline].trial.shadow_cpu;
            let companion =
                beside.filter(|_| share > 0.0).and_then(|ready| ready.candidates.get(&pipeline)).map(|beside| {
                    let period = self.trial().period(pipeline, beside);
                    let Candidate { version, full, reduced, .. } = beside.clone();
                    Companion { serve: Arc::new(Serve::new(pipeline, version, full, reduced, period)), share }
                });
            let Some(serving) = self.serves(pipeline) else { continue };
            let progress = begun.on(&self.plan.pipelines[pipeline].name);
            let trial = Trial::new(Rules { beside: companion.is_some(), ..rules }, progress);
            let watch = Arc::new(Watch::new(trial, &serving, own.noise, companion));
            for worker in self.places_of(pipeline) {
                let watch = Arc::clone(&watch);
                match new.cloned() {
                    Some(serve) => {
                        self.workers[worker].change(move |worker, context| worker.serve_watched(serve, watch, context))
                    }
                    None => self.workers[worker].change(move |worker, context| worker.watch(pipeline, watch, context)),
                }
            }
            if new.is_some() {
                self.board.set_pipeline(pipeline, PipelineState::Serving);
            }
            open.insert(pipeline, watch);
        }
        let name = own.name().to_owned();
        let phase = match mode {
            Mode::Trial => ModelPhase::Trial,
            Mode::Shadow => ModelPhase::Shadow,
        };
        self.board.set(&own.manifest, phase, Some(&own.proved), None);
        if let (Mode::Trial, Some(other)) = (mode, &other) {
            self.board.set(&other.manifest, ModelPhase::Shadow, Some(&other.proved), None);
        }
        let over = open.is_empty();
        let watched = Watched { mode, own, other, open, done: BTreeMap::new(), kept: Instant::now() };
        self.delivered.entry(name.clone()).or_default().watched = Some(watched);
        if over {
            self.passed(&name);
        }
    }

    /// Ends the watch over a model, and gives what was watched.
    fn stop_watching(&mut self, name: &str) -> Option<Watched> {
        let watched = self.take_watched(name)?;
        self.unwatch(&watched.pipelines());
        Some(watched)
    }

    /// What is watched of a model, which nobody judges any more. The version beside it stays loaded until
    /// [`Loader::unwatch`], or another watch: it may be about to serve.
    fn take_watched(&mut self, name: &str) -> Option<Watched> {
        self.delivered.get_mut(name)?.watched.take()
    }

    /// Workers let go of what runs beside the version that serves.
    fn unwatch(&self, pipelines: &[usize]) {
        for pipeline in pipelines.iter().copied() {
            for worker in self.places_of(pipeline) {
                self.workers[worker].change(move |worker, context| worker.stop_watching(pipeline, context));
            }
        }
    }

    /// What is watched on a pipeline was judged. A verdict may have been on its way while another version took over:
    /// it is of no account then.
    pub(super) fn judged(&mut self, pipeline: usize, watch: &Arc<Watch>, verdict: Verdict) {
        let watches = |delivered: &Delivered| {
            let open = delivered.watched.as_ref().and_then(|watched| watched.open.get(&pipeline));
            open.is_some_and(|open| Arc::ptr_eq(open, watch))
        };
        let Some(name) = self.delivered.iter().find(|(_, d)| watches(d)).map(|(name, _)| name.clone()) else { return };
        match verdict {
            Verdict::Going => {}
            Verdict::Passed => {
                let Some(watched) = self.delivered.get_mut(&name).and_then(|d| d.watched.as_mut()) else { return };
                // Its progress is that of the pipeline that was judged last.
                if watched.open.len() > 1 {
                    watched.done.extend(watched.open.remove_entry(&pipeline));
                } else {
                    self.passed(&name);
                }
            }
            Verdict::Breach(why) => self.breached(&name, pipeline, &why),
        }
    }

    /// A version did what it had to do.
    fn passed(&mut self, name: &str) {
        let Some(watched) = self.take_watched(name) else { return };
        let progress = watched.open.values().next().map(|watch| watch.progress()).unwrap_or_default();
        let version = &watched.own.installed.version;
        let agreed = progress.agreement().map(|share| {
            format!(", {:.1} % of {} compared ones as the other version", share * 100.0, progress.compared)
        });
        let uncompared = watched.uncompared().map(|pipeline| {
            let pipeline = &self.plan.pipelines[pipeline].name;
            format!("not compared with the version before: too few windows of pipeline {pipeline} ran on both")
        });
        let caveat = uncompared.as_ref().map(|why| format!("; {why}")).unwrap_or_default();
        let beside = watched.open.values().next().map(|watch| watch.figures()).unwrap_or_default();
        let story = format!(
            "{name} {version} passed: {} windows, {} errors, {} misses{}{caveat}; the version beside it ran on {} windows and took {} ms",
            progress.windows,
            progress.errors,
            progress.misses.count,
            agreed.unwrap_or_default(),
            beside.ran,
            beside.spent.as_millis()
        );
        match watched.mode {
            Mode::Trial => {
                if let Err(why) = self.on_record(name, |record| record.end_trial()) {
                    tracing::error!(
                        model = name,
                        why,
                        "the end of a trial could not be put on record; it begins again"
                    );
                }
                self.board.set(&watched.own.manifest, ModelPhase::Active, Some(&watched.own.proved), uncompared);
                tracing::info!("{story}");
                self.reporter.event("trial-passed", &story, &[("model", name), ("version", version)]);
            }
            Mode::Shadow => {
                tracing::info!("{story}; it takes over");
                self.reporter.event("shadow-passed", &story, &[("model", name), ("version", version)]);
                match self.switch(watched.own.clone()) {
                    Ok(()) => {}
                    Err(NotReady { why, because: Because::Unfit }) => {
                        self.reject_ready(&watched.own, Grounds::Configuration, &why);
                    }
                    Err(NotReady { why, .. }) => {
                        tracing::error!(model = name, why, "what passed in shadow does not take over yet");
                    }
                }
            }
        }
        if self.delivered.get(name).is_none_or(|delivered| delivered.watched.is_none()) {
            self.unwatch(&watched.pipelines());
        }
        self.tidy();
        self.release_held();
        self.tell(Settled::Model(name.to_owned()));
    }

    /// A version did what it must not.
    fn breached(&mut self, name: &str, pipeline: usize, why: &str) {
        let why = format!("pipeline {}: {why}", self.plan.pipelines[pipeline].name);
        let Some(watched) = self.take_watched(name) else { return };
        let pipelines = watched.pipelines();
        match watched.mode {
            Mode::Shadow => {
                if let Err(why) = self.on_record(name, |record| record.end_trial()) {
                    tracing::error!(model = name, why, "the end of a trial could not be put on record");
                }
                self.reject_ready(&watched.own, Grounds::Version, &why);
            }
            Mode::Trial => self.go_back(name, watched, Some(&why)),
        }
        self.unwatch(&pipelines);
        self.tidy();
        self.release_held();
        self.tell(Settled::Model(name.to_owned()));
    }

    /// The version before takes over again. `breach`: what the one that served did; none if it was withdrawn.
    fn go_back(&mut self, name: &str, watched: Watched, breach: Option<&str>) {
        let Watched { own, other, .. } = watched;
        let Some(previous) = self.record(name).previous.into_iter().next() else {
            let why = breach.unwrap_or_default();
            let story = format!("{name} {} stays, there is no version to go back to: {why}", own.installed.version);
            self.tell_of_return(name, &own.installed.version, true, &story);
            let _ = self.on_record(name, |record| record.end_trial());
            return self.board.set(&own.manifest, ModelPhase::Active, Some(&own.proved), Some(why.to_owned()));
        };
        let rejection = breach.map(|why| self.rejection(&own.installed.version, Grounds::Version, why));
        if let Err(why) = self.on_record(name, |record| _ = record.go_back(rejection)) {
            // It serves all the same; the next start tries the other one again, and is watched again.
            tracing::error!(model = name, why, "going back could not be put on record");
        }
        // What runs beside it takes over at once; what does not has to be loaded first.
        let beside = other.filter(|other| other.installed == previous);
        let switched = match beside {
            Some(ready) => self.restore(ready).map(|()| Back::Serves),
            None => self.bring_back(name, &previous, &own),
        };
        let (left, back) = (&own.installed.version, &previous.version);
        let why = breach.map_or_else(|| "it was withdrawn".to_owned(), str::to_owned);
        let story = match &switched {
            Ok(Back::Serves) => returned(name, left, back, &why, Ok(())),
            Ok(Back::Proving) => format!(
                "{name} {left} is to be taken back, and serves until then: {back} has no proof that is valid here, is \
                 being proved, and takes over when it passes: {why}"
            ),
            Err(error) => returned(name, left, back, &why, Err(error)),
        };
        self.tell_of_return(name, left, breach.is_some(), &story);
        match switched {
            Ok(Back::Serves) => {
                self.board.set_state(name, left, left_as(breach.is_some()), Some(why));
            }
            Ok(Back::Proving) => {
                let shown = format!("it is to be taken back when {back} is proved: {why}");
                self.board.set_state(name, left, ModelPhase::Active, Some(shown));
                let (left, breach) = (left.clone(), breach.is_some());
                let coming = ComingBack { installed: previous, left, why, breach };
                self.delivered.entry(name.to_owned()).or_default().coming_back = Some(coming);
            }
            Err(_) => {}
        }
    }

    fn tell_of_return(&self, name: &str, version: &str, breach: bool, story: &str) {
        tracing::error!("{story}");
        let kind = if breach { "rolled-back" } else { "model-withdrawn" };
        self.reporter.event(kind, story, &[("model", name), ("version", version)]);
    }

    /// The version to go back to was proved: it takes over.
    fn came_back(&mut self, coming: &ComingBack, ready: Ready) {
        let ComingBack { installed, left, why, breach } = coming;
        let (name, back) = (ready.name().to_owned(), &installed.version);
        let restored = self.restore(ready);
        let story = returned(&name, left, back, why, restored.as_ref().copied().map_err(String::as_str));
        self.tell_of_return(&name, left, *breach, &story);
        if restored.is_ok() {
            self.board.set_state(&name, left, left_as(*breach), Some(why.clone()));
        }
        self.brought_up();
    }

    /// The version to go back to did not pass its proof: what serves stays, and the record says so, or the next start
    /// would have none that serves.
    fn stays_after_all(&mut self, name: &str, coming: &ComingBack, not_proved: &NotProved) {
        let ComingBack { installed, left, why, breach } = coming;
        let back = &installed.version;
        let serving = self.delivered.get(name).and_then(|delivered| delivered.serving.as_ref());
        let serving = serving.map(|ready| ready.installed.clone());
        let keep = self.keep();
        if let Some(serving) = serving.filter(|_| not_proved.its_fault) {
            let kept = self.on_record(name, |record| {
                record.activate(serving, keep);
                record.previous.retain(|previous| previous != installed);
            });
            if let Err(why) = kept {
                tracing::error!(model = name, why, "what serves could not be put on record");
            }
        }
        let story = format!(
            "{name} {left} stays, though it should be taken back ({why}): {back} was not proved: {}",
            not_proved.why
        );
        self.tell_of_return(name, left, *breach, &story);
        self.board.set_state(name, left, ModelPhase::Active, Some(why.clone()));
    }

    /// A version that is not loaded serves again.
    fn bring_back(&mut self, name: &str, previous: &Installed, own: &Ready) -> Result<Back, String> {
        let pipeline = own.candidates.keys().next().ok_or("no pipeline names it")?;
        let model = self.plan.pipelines[*pipeline].package.clone();
        let place = Place::Stored { model: name.to_owned(), version: previous.version.clone() };
        let package = Arc::new(self.library.open(&place).map_err(|error| error.to_string())?);
        let opened = Opened { model, place, package };
        self.tried.insert(opened.model.clone(), opened.package.digest());
        let Some(proved) = self.proof_of(&opened) else {
            // It passed under another agent: it is proved again, and takes over then.
            self.board.set(opened.package.manifest(), ModelPhase::Proving, None, None);
            if !self.spare.contains(&opened.package.digest()) {
                self.prove(vec![opened]);
            }
            return Ok(Back::Proving);
        };
        let prepared = self.prepare(&opened, proved)?;
        let pipelines: Vec<usize> = own.candidates.keys().copied().collect();
        let restored = self.restore(Ready::of(&prepared, &pipelines));
        self.brought_up();
        restored.map(|()| Back::Serves)
    }

    /// Lets a version serve that served before. It was admitted then; what its sources did since does not keep it from
    /// taking over.
    fn restore(&mut self, ready: Ready) -> Result<(), String> {
        match self.make_ready(&ready.candidates) {
            Ok((with, admitted)) => self.settle(with, &admitted),
            Err(NotReady { why, .. }) => {
                tracing::warn!(why, "the version before is not admitted any more; it serves all the same");
                for (pipeline, candidate) in &ready.candidates {
                    self.load_all(*pipeline, candidate)?;
                    self.serving[*pipeline] = Some(candidate.clone());
                }
            }
        }
        ready.candidates.keys().for_each(|pipeline| self.serve(*pipeline));
        self.board.set(&ready.manifest, ModelPhase::Active, Some(&ready.proved), None);
        let name = ready.name().to_owned();
        self.delivered.entry(name).or_default().serving = Some(ready);
        Ok(())
    }

    /// What serves was withdrawn: the newest version before it that was not takes over, or it stays, and says so.
    pub(super) fn withdrawn(&mut self, name: &str, withdrawn: &[String]) {
        let Some(serving) = self.delivered.get(name).and_then(|delivered| delivered.serving.clone()) else { return };
        let watched = self.take_watched(name);
        let pipelines = serving.candidates.keys().copied().collect::<Vec<_>>();
        let kept = self.on_record(name, |record| record.previous.retain(|p| !withdrawn.contains(&p.version)));
        if let Err(why) = kept {
            tracing::error!(model = name, why, "what may serve could not be put on record");
        }
        if self.record(name).previous.is_empty() {
            let story = format!(
                "{name} {} was withdrawn; it stays, since there is no other version",
                serving.installed.version
            );
            let stays = self.on_record(name, |record| {
                record.withdrawn = true;
                record.end_trial();
            });
            match stays {
                Ok(_) => tracing::warn!("{story}"),
                Err(why) => tracing::error!(why, "{story}"),
            }
            self.reporter.event("model-withdrawn", &story, &[("model", name), ("version", &serving.installed.version)]);
            self.board.set_state(name, &serving.installed.version, ModelPhase::Withdrawn, None);
        } else {
            let other = watched.and_then(|watched| watched.other);
            let watched = Watched {
                mode: Mode::Trial,
                own: serving,
                other,
                open: BTreeMap::new(),
                done: BTreeMap::new(),
                kept: Instant::now(),
            };
            self.go_back(name, watched, None);
        }
        self.unwatch(&pipelines);
        self.tidy();
        self.release_held();
        self.tell(Settled::Model(name.to_owned()));
    }

    /// Whether a model runs beside what serves, or may have to take over from it.
    pub(super) fn is_beside(&self, number: u32) -> bool {
        let watched = self.delivered.values().filter_map(|delivered| delivered.watched.as_ref());
        watched.flat_map(|watched| std::iter::once(&watched.own).chain(&watched.other)).any(|ready| ready.uses(number))
    }

    /// What runs beside the versions that these pipelines serve.
    pub(super) fn companions_of(&self, pipelines: &[usize]) -> BTreeSet<u32> {
        let watched = self.delivered.values().filter_map(|delivered| delivered.watched.as_ref());
        let theirs = watched.filter(|watched| pipelines.iter().any(|p| watched.own.candidates.contains_key(p)));
        theirs.filter_map(Watched::companion).flat_map(Ready::numbers).collect()
    }

    /// Whether any version is watched.
    pub(super) fn watches(&self) -> bool {
        self.delivered.values().any(|delivered| delivered.watched.is_some())
    }

    /// Shows how far trials are, and writes it now and then.
    pub(super) fn look_after_trials(&mut self) {
        let due = |watched: &Watched| watched.kept.elapsed() >= KEEP_EVERY;
        if self.delivered.values().filter_map(|delivered| delivered.watched.as_ref()).any(due) {
            self.keep_progress();
        }
        self.load_companions();
        for (name, delivered) in &self.delivered {
            let Some(watched) = &delivered.watched else { continue };
            let Some((pipeline, watch)) = watched.open.iter().next() else { continue };
            let (progress, trial) = (watch.progress(), &self.config.pipelines[*pipeline].trial);
            let seen = if watched.mode == Mode::Shadow { progress.compared } else { progress.windows };
            let windows = seen as f64 / trial.windows.max(1) as f64;
            let time = progress.served.as_secs_f64() / trial.time.0.as_secs_f64().max(f64::MIN_POSITIVE);
            let share = windows.min(time).min(1.0) as f32;
            let agreement = progress.agreement().map(|share| share as f32);
            self.board.set_progress(name, &watched.own.installed.version, share, agreement);
        }
    }

    /// Loads what is to run beside a version on trial and is not loaded, where there is room by now.
    fn load_companions(&mut self) {
        if !self.waiting.is_empty() {
            return;
        }
        let watched = self.delivered.values().filter_map(|delivered| delivered.watched.as_ref());
        let companions: Vec<Ready> = watched.filter_map(Watched::companion).cloned().collect();
        for companion in companions {
            self.load_beside(&companion);
        }
    }

    /// Writes how far trials are.
    pub(super) fn keep_progress(&mut self) {
        let mut going = Vec::new();
        for (name, delivered) in &mut self.delivered {
            let Some(watched) = &mut delivered.watched else { continue };
            watched.kept = Instant::now();
            let Some(first) = watched.open.values().next().map(|watch| watch.progress()) else { continue };
            let on = |(pipeline, watch): (&usize, &Arc<Watch>)| {
                (self.plan.pipelines[*pipeline].name.to_string(), watch.progress())
            };
            going.push((name.clone(), first, watched.open.iter().chain(&watched.done).map(on).collect()));
        }
        for (name, progress, by_pipeline) in going {
            if let Err(why) = self.on_record(&name, |record| record.set_trial(progress, by_pipeline)) {
                tracing::warn!(model = name, why, "the progress of a trial could not be kept");
            }
        }
    }

    /// A proof failed.
    pub(super) fn not_proved(&mut self, opened: &Opened, not_proved: &NotProved) {
        if let Some(coming) = self.take_coming_back(opened) {
            self.stays_after_all(&opened.package.manifest().name, &coming, not_proved);
        }
        if !not_proved.its_fault {
            return self.not_now(opened);
        }
        self.reject(opened, Grounds::Agent, &not_proved.why);
        self.dealt_with(opened);
    }

    /// A version could not be taken up, through no fault of its own: it is to be handed over again.
    fn not_now(&self, opened: &Opened) {
        if opened.model.depot().is_some() {
            self.tell(Settled::NotNow(opened.package.manifest().name.clone()));
        }
    }

    /// Nothing more is done about a version: the next one may be handed over.
    pub(super) fn dealt_with(&self, opened: &Opened) {
        if opened.model.depot().is_some() {
            self.tell(Settled::Model(opened.package.manifest().name.clone()));
        }
    }

    fn reject_unless_active(&mut self, opened: &Opened, why: &str) {
        let digest = opened.package.digest().to_string();
        let active = self.record(&opened.package.manifest().name).active;
        if active.is_none_or(|active| active.package != digest) {
            self.reject(opened, Grounds::Configuration, why);
        }
    }

    /// Puts a delivered version on record as one that is not tried again.
    pub(super) fn reject(&mut self, opened: &Opened, grounds: Grounds, why: &str) {
        if opened.model.depot().is_none() {
            return;
        }
        let installed = Installed::of(&opened.package);
        self.put_on_record_as_rejected(&opened.package.manifest().name, &installed, grounds, why);
    }

    fn reject_ready(&mut self, ready: &Ready, grounds: Grounds, why: &str) {
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

    fn rejection(&self, version: &str, grounds: Grounds, why: &str) -> Rejection {
        let under = match grounds {
            Grounds::Version => None,
            Grounds::Agent => Some(crate::library::this_agent()),
            Grounds::Configuration => Some(crate::library::this_configuration(&self.loaded.config)),
        };
        Rejection { version: version.to_owned(), reason: why.to_owned(), at: Some(Timestamp::now()), under }
    }

    /// The record of a model; an empty one where it cannot be read, which was said when it was written.
    fn record(&self, name: &str) -> Record {
        self.library.store().and_then(|store| store.record(name).ok()).unwrap_or_default()
    }

    /// Changes the record of a model, and gives what it is then.
    fn on_record(&self, name: &str, change: impl FnOnce(&mut Record)) -> Result<Record, String> {
        let store = self.library.store().ok_or("there is no store of delivered models")?;
        store.update_record(name, change).map_err(|error| error.to_string())
    }

    fn keep(&self) -> usize {
        self.config.depot.as_ref().map_or(1, |depot| depot.keep)
    }

    fn tell(&self, settled: Settled) {
        // Nobody listens where there is no depot.
        let _ = self.settled.send(settled);
    }
}
