//! Versions that the depot delivered: taken up, watched, and taken back.
//!
//! The gate before this is the same as for every package: the proof, then admission. What passes becomes what serves by
//! one write of the model's [record](limpet_depot::store::Record), before the workers hear of it, so that whatever
//! happens in between, the next start finds a proved version. What fails is put on record too, and not tried again
//! until it, or what it failed under, changes.
//!
//! From there on the version is on [trial](limpet_depot::trial): the one before it stays loaded, if memory allows, runs
//! in shadow, and takes over again the moment the judge says so. With `shadow = true` it is the other way round first.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use limpet_depot::store::{Installed, Record, Rejection};
use limpet_depot::trial::{Before, Mode, Progress, Rules, Trial, Verdict, golden_noise};
use limpet_depot::{DepotError, Manifest};
use limpet_wire::message::ModelPhase;

use super::loader::{Loader, Prepared};
use super::{PipelineState, Proved, Settled};
use crate::admission::Candidate;
use crate::config;
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
    /// By pipeline, until each is judged.
    open: BTreeMap<usize, Arc<Watch>>,
    /// When its progress was written last.
    kept: Instant,
}

impl Watched {
    fn pipelines(&self) -> Vec<usize> {
        self.own.candidates.keys().copied().collect()
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

/// Why there is no proof, or why what was proved does not serve.
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

    /// It does not fit what it would serve in.
    fn unfit(why: String) -> Self {
        Self { why, its_fault: true }
    }

    /// It could not be put on record, perhaps for want of room; another time it may be.
    fn not_on_record(why: String) -> Self {
        Self { why, its_fault: false }
    }
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
        if served.is_empty() {
            self.introduce(&[prepared]);
        } else {
            let ready = Ready::of(&prepared, served);
            let shadow = served.iter().any(|pipeline| self.config.pipelines[*pipeline].trial.shadow);
            let outcome = if shadow { self.begin_shadow(ready) } else { self.switch(ready) };
            if let Err(NotProved { why, its_fault }) = outcome {
                self.refuse(&opened, &why);
                if its_fault {
                    self.reject(&opened, Grounds::Configuration, &why);
                } else {
                    self.brought_up();
                    return self.not_now(&opened);
                }
            }
            self.brought_up();
        }
        self.tell(Settled::Model(name));
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
            let progress =
                record.trial.filter(|trial| trial.mode == Mode::Trial && trial.package == ready.installed.package);
            self.delivered.entry(name.clone()).or_default().serving = Some(ready.clone());
            if let Some(progress) = progress {
                let other = self.previous_ready(&name, &made.opened, &serving);
                self.watch(Mode::Trial, ready, other, &progress, &[]);
            }
        }
    }

    /// The version before the one that serves, loaded beside it if there is room.
    fn previous_ready(&mut self, name: &str, opened: &Opened, pipelines: &[usize]) -> Option<Ready> {
        let previous = self.record(name).previous.into_iter().next()?;
        let place = Place::Stored { model: name.to_owned(), version: previous.version };
        let package = Arc::new(self.library.open(&place).ok()?);
        let opened = Opened { model: opened.model.clone(), place, package };
        let proved = self.proof_of(&opened)?;
        let prepared = self.prepare(&opened, proved).ok()?;
        let ready = Ready::of(&prepared, pipelines);
        self.load_beside(&ready).then_some(ready)
    }

    /// Puts a version in the place of what serves, and watches it.
    ///
    /// # Errors
    /// Why it does not serve; the old one does.
    fn switch(&mut self, ready: Ready) -> Result<(), NotProved> {
        let name = ready.name().to_owned();
        let delivered = self.delivered.entry(name.clone()).or_default();
        let old = delivered.serving.clone();
        let on_trial = delivered.watched.as_ref().is_some_and(|watched| watched.mode == Mode::Trial);
        let before: BTreeMap<usize, Before> =
            ready.candidates.keys().map(|p| (*p, before(&self.plan.pipelines[*p].ledger))).collect();
        let (with, admitted) = self.make_ready(&ready.candidates).map_err(NotProved::unfit)?;
        // What was on trial and is replaced never showed that one can go back to it: the one before it did.
        let old = match self.take_watched(&name) {
            Some(watched) if on_trial => watched.other,
            _ => old,
        };
        // Where a publisher went back, it is what takes over.
        let old = old.filter(|old| old.installed != ready.installed);
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
            record.trial = kept;
        });
        if let Err(why) = recorded {
            self.unwatch(&pipelines);
            return Err(NotProved::not_on_record(why));
        }
        self.settle(with, &admitted);
        let serves: Vec<_> = pipelines.iter().filter_map(|pipeline| self.about_to_serve(*pipeline)).collect();
        self.delivered.entry(name.clone()).or_default().serving = Some(ready.clone());
        let phase = if trial { ModelPhase::Trial } else { ModelPhase::Active };
        self.board.set(&ready.manifest, phase, Some(&ready.proved), None);
        let (manifest, proved) = (Arc::clone(&ready.manifest), Arc::clone(&ready.proved));
        match progress {
            Some(progress) => self.watch(Mode::Trial, ready, old, &progress, &serves),
            None => {
                serves.iter().for_each(|serve| self.hand_over(serve));
                self.unwatch(&pipelines);
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
    fn begin_shadow(&mut self, ready: Ready) -> Result<(), NotProved> {
        let name = ready.name().to_owned();
        let Some(serving) = self.delivered.get(&name).and_then(|delivered| delivered.serving.clone()) else {
            return self.switch(ready);
        };
        self.stop_watching(&name);
        if !self.load_beside(&ready) {
            return Err(NotProved::unfit(format!(
                "old and new version do not fit together into budget.memory = {}, and `shadow = true` runs both; raise the budget, or leave shadow out",
                limpet_runtime::admission::Mebibytes(self.config.budget.memory.0)
            )));
        }
        let went_on = self
            .record(&name)
            .trial
            .filter(|trial| trial.mode == Mode::Shadow && trial.package == ready.installed.package);
        let progress = went_on.unwrap_or_else(|| {
            let before = ready.candidates.keys().map(|p| before(&self.plan.pipelines[*p].ledger)).next();
            Progress::new(ready.installed.package.clone(), Mode::Shadow, before.unwrap_or_default())
        });
        let kept = progress.clone();
        self.on_record(&name, |record| record.trial = Some(kept)).map_err(NotProved::not_on_record)?;
        self.watch(Mode::Shadow, ready, Some(serving), &progress, &[]);
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
    fn watch(&mut self, mode: Mode, own: Ready, other: Option<Ready>, progress: &Progress, serves: &[Arc<Serve>]) {
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
            let trial = Trial::new(rules, progress.clone());
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
        let watched = Watched { mode, own, other, open, kept: Instant::now() };
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

    /// What is watched on a pipeline was judged.
    pub(super) fn judged(&mut self, pipeline: usize, verdict: Verdict) {
        let watches = |delivered: &Delivered| {
            delivered.watched.as_ref().is_some_and(|watched| watched.open.contains_key(&pipeline))
        };
        let Some(name) = self.delivered.iter().find(|(_, d)| watches(d)).map(|(name, _)| name.clone()) else { return };
        match verdict {
            Verdict::Going => {}
            Verdict::Passed => {
                let Some(watched) = self.delivered.get_mut(&name).and_then(|d| d.watched.as_mut()) else { return };
                // Its progress is that of the pipeline that was judged last.
                if watched.open.len() > 1 {
                    watched.open.remove(&pipeline);
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
        let beside = watched.open.values().next().map(|watch| watch.figures()).unwrap_or_default();
        let story = format!(
            "{name} {version} passed: {} windows, {} errors, {} misses{}; the version beside it ran on {} windows and took {} ms",
            progress.windows,
            progress.errors,
            progress.misses.count,
            agreed.unwrap_or_default(),
            beside.ran,
            beside.spent.as_millis()
        );
        match watched.mode {
            Mode::Trial => {
                if let Err(why) = self.on_record(name, |record| record.trial = None) {
                    tracing::error!(
                        model = name,
                        why,
                        "the end of a trial could not be put on record; it begins again"
                    );
                }
                self.board.set(&watched.own.manifest, ModelPhase::Active, Some(&watched.own.proved), None);
                tracing::info!("{story}");
                self.reporter.event("trial-passed", &story, &[("model", name), ("version", version)]);
            }
            Mode::Shadow => {
                tracing::info!("{story}; it takes over");
                self.reporter.event("shadow-passed", &story, &[("model", name), ("version", version)]);
                match self.switch(watched.own.clone()) {
                    Ok(()) => {}
                    Err(NotProved { why, its_fault: true }) => {
                        self.reject_ready(&watched.own, Grounds::Configuration, &why);
                    }
                    Err(NotProved { why, .. }) => {
                        tracing::error!(model = name, why, "what passed in shadow does not take over yet");
                    }
                }
            }
        }
        if self.delivered.get(name).is_none_or(|delivered| delivered.watched.is_none()) {
            self.unwatch(&watched.pipelines());
        }
        self.tidy();
        self.tell(Settled::Model(name.to_owned()));
    }

    /// A version did what it must not.
    fn breached(&mut self, name: &str, pipeline: usize, why: &str) {
        let why = format!("pipeline {}: {why}", self.plan.pipelines[pipeline].name);
        let Some(watched) = self.take_watched(name) else { return };
        let pipelines = watched.pipelines();
        match watched.mode {
            Mode::Shadow => {
                if let Err(why) = self.on_record(name, |record| record.trial = None) {
                    tracing::error!(model = name, why, "the end of a trial could not be put on record");
                }
                self.reject_ready(&watched.own, Grounds::Version, &why);
            }
            Mode::Trial => self.go_back(name, watched, Some(&why)),
        }
        self.unwatch(&pipelines);
        self.tidy();
        self.tell(Settled::Model(name.to_owned()));
    }

    /// The version before takes over again. `breach`: what the one that served did; none if it was withdrawn.
    fn go_back(&mut self, name: &str, watched: Watched, breach: Option<&str>) {
        let Watched { own, other, .. } = watched;
        let Some(previous) = self.record(name).previous.into_iter().next() else {
            let why = breach.unwrap_or_default();
            let story = format!("{name} {} stays, there is no version to go back to: {why}", own.installed.version);
            tracing::error!("{story}");
            self.reporter.event("rolled-back", &story, &[("model", name), ("version", &own.installed.version)]);
            let _ = self.on_record(name, |record| record.trial = None);
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
            Some(ready) => self.restore(ready),
            None => self.bring_back(name, &previous, &own),
        };
        let why = breach.map_or_else(|| "it was withdrawn".to_owned(), str::to_owned);
        let story = match &switched {
            Ok(()) => {
                format!("{name} {} was taken back, {} serves again: {why}", own.installed.version, previous.version)
            }
            Err(error) => format!(
                "{name} {} should be taken back, but {} cannot serve ({error}): {why}",
                own.installed.version, previous.version
            ),
        };
        tracing::error!("{story}");
        let kind = if breach.is_some() { "rolled-back" } else { "model-withdrawn" };
        self.reporter.event(kind, &story, &[("model", name), ("version", &own.installed.version)]);
        if switched.is_ok() {
            let phase = if breach.is_some() { ModelPhase::Failed } else { ModelPhase::Withdrawn };
            self.board.set_state(name, &own.installed.version, phase, Some(why));
        }
    }

    /// A version that is not loaded serves again.
    fn bring_back(&mut self, name: &str, previous: &Installed, own: &Ready) -> Result<(), String> {
        let pipeline = own.candidates.keys().next().ok_or("no pipeline names it")?;
        let model = self.plan.pipelines[*pipeline].package.clone();
        let place = Place::Stored { model: name.to_owned(), version: previous.version.clone() };
        let package = Arc::new(self.library.open(&place).map_err(|error| error.to_string())?);
        let opened = Opened { model, place, package };
        self.tried.insert(opened.model.clone(), opened.package.digest());
        let Some(proved) = self.proof_of(&opened) else {
            // It passed under another agent: it is proved again, and takes over then.
            self.prove(vec![opened]);
            return Ok(());
        };
        let prepared = self.prepare(&opened, proved)?;
        let pipelines: Vec<usize> = own.candidates.keys().copied().collect();
        let restored = self.restore(Ready::of(&prepared, &pipelines));
        self.brought_up();
        restored
    }

    /// Lets a version serve that served before. It was admitted then; what its sources did since does not keep it from
    /// taking over.
    fn restore(&mut self, ready: Ready) -> Result<(), String> {
        match self.make_ready(&ready.candidates) {
            Ok((with, admitted)) => self.settle(with, &admitted),
            Err(why) => {
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
            match self.on_record(name, |record| (record.withdrawn, record.trial) = (true, None)) {
                Ok(_) => tracing::warn!("{story}"),
                Err(why) => tracing::error!(why, "{story}"),
            }
            self.reporter.event("model-withdrawn", &story, &[("model", name), ("version", &serving.installed.version)]);
            self.board.set_state(name, &serving.installed.version, ModelPhase::Withdrawn, None);
        } else {
            let other = watched.and_then(|watched| watched.other);
            let watched =
                Watched { mode: Mode::Trial, own: serving, other, open: BTreeMap::new(), kept: Instant::now() };
            self.go_back(name, watched, None);
        }
        self.unwatch(&pipelines);
        self.tidy();
        self.tell(Settled::Model(name.to_owned()));
    }

    /// Whether a model runs beside what serves, or may have to take over from it.
    pub(super) fn is_beside(&self, number: u32) -> bool {
        let watched = self.delivered.values().filter_map(|delivered| delivered.watched.as_ref());
        watched.flat_map(|watched| std::iter::once(&watched.own).chain(&watched.other)).any(|ready| ready.uses(number))
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

    /// Writes how far trials are.
    pub(super) fn keep_progress(&mut self) {
        let mut going: Vec<(String, Progress)> = Vec::new();
        for (name, delivered) in &mut self.delivered {
            let Some(watched) = &mut delivered.watched else { continue };
            watched.kept = Instant::now();
            going.extend(watched.open.values().next().map(|watch| (name.clone(), watch.progress())));
        }
        for (name, progress) in going {
            if let Err(why) = self.on_record(&name, |record| record.trial = Some(progress)) {
                tracing::warn!(model = name, why, "the progress of a trial could not be kept");
            }
        }
    }

    /// A proof failed.
    pub(super) fn not_proved(&mut self, opened: &Opened, not_proved: &NotProved) {
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
