//! Trials: versions that are watched, and what their judges say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use limpet_depot::store::{Installed, Record};
use limpet_depot::trial::{Mode, Progress, Rules, Trial, Verdict};
use limpet_wire::message::ModelPhase;

use super::super::PipelineState;
use super::super::loader::Loader;
use super::{Because, Delivered, Grounds, NotReady, Ready};
use crate::admission::Candidate;
use crate::config;
use crate::pipeline::shadow::{Companion, Watch};
use crate::pipeline::stream::Serve;
use crate::pipeline::worker::Sink;

/// How often what a restart goes on with is written: a power cut takes that much of a trial, and flash wears.
const KEEP_EVERY: Duration = Duration::from_secs(60);

/// A version on trial, and the one that it is compared with.
pub(super) struct Watched {
    pub(super) mode: Mode,
    /// The version on trial.
    pub(super) own: Ready,
    /// The other one: what served before, or still does in shadow.
    pub(super) other: Option<Ready>,
    /// By pipeline, until each is judged…
    pub(super) open: BTreeMap<usize, Arc<Watch>>,
    /// …and those on which it passed.
    pub(super) done: BTreeMap<usize, Arc<Watch>>,
    /// When its progress was written last.
    pub(super) kept: Instant,
}

impl Watched {
    pub(super) fn pipelines(&self) -> Vec<usize> {
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
pub(super) struct Begun {
    pub(super) progress: Progress,
    pub(super) by_pipeline: BTreeMap<String, Progress>,
}

impl Begun {
    /// The one that is on record for this package, if one is.
    pub(super) fn of(record: Record, mode: Mode, installed: &Installed) -> Option<Self> {
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

impl<S: Sink + 'static> Loader<S> {
    /// What a version has to do, by pipeline.
    pub(super) fn rules(&self, ready: &Ready) -> BTreeMap<usize, Rules> {
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
    pub(super) fn watch(&mut self, mode: Mode, own: Ready, other: Option<Ready>, begun: &Begun, serves: &[Arc<Serve>]) {
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
    pub(super) fn stop_watching(&mut self, name: &str) -> Option<Watched> {
        let watched = self.take_watched(name)?;
        self.unwatch(&watched.pipelines());
        Some(watched)
    }

    /// What is watched of a model, which nobody judges any more. The version beside it stays loaded until
    /// [`Loader::unwatch`], or another watch: it may be about to serve.
    pub(super) fn take_watched(&mut self, name: &str) -> Option<Watched> {
        self.delivered.get_mut(name)?.watched.take()
    }

    /// Workers let go of what runs beside the version that serves.
    pub(super) fn unwatch(&self, pipelines: &[usize]) {
        for pipeline in pipelines.iter().copied() {
            for worker in self.places_of(pipeline) {
                self.workers[worker].change(move |worker, context| worker.stop_watching(pipeline, context));
            }
        }
    }

    /// What is watched on a pipeline was judged. A verdict may have been on its way while another version took over:
    /// it is of no account then.
    pub(in super::super) fn judged(&mut self, pipeline: usize, watch: &Arc<Watch>, verdict: Verdict) {
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
            Mode::Shadow => match self.switch(watched.own.clone()) {
                Ok(()) => {
                    tracing::info!("{story}; it takes over");
                    self.reporter.event("shadow-passed", &story, &[("model", name), ("version", version)]);
                }
                Err(NotReady { why, because: Because::Unfit }) => {
                    self.reject_ready(&watched.own, Grounds::Configuration, &why);
                }
                Err(NotReady { why, .. }) => {
                    tracing::error!(model = name, why, "what passed in shadow does not take over yet");
                    self.again_of(&watched.own, &why);
                }
            },
        }
        if self.delivered.get(name).is_none_or(|delivered| delivered.watched.is_none()) {
            self.unwatch(&watched.pipelines());
        }
        self.tidy();
        self.trial_ended();
        self.done(watched.own.model_version());
    }

    /// A version did what it must not.
    fn breached(&mut self, name: &str, pipeline: usize, why: &str) {
        let why = format!("pipeline {}: {why}", self.plan.pipelines[pipeline].name);
        let Some(watched) = self.take_watched(name) else { return };
        let (pipelines, of) = (watched.pipelines(), watched.own.model_version());
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
        self.trial_ended();
        self.done(of);
    }

    /// Whether a model runs beside what serves, or may have to take over from it.
    pub(in super::super) fn is_beside(&self, number: u32) -> bool {
        let watched = self.delivered.values().filter_map(|delivered| delivered.watched.as_ref());
        watched.flat_map(|watched| std::iter::once(&watched.own).chain(&watched.other)).any(|ready| ready.uses(number))
    }

    /// What runs beside the versions that these pipelines serve.
    pub(in super::super) fn companions_of(&self, pipelines: &[usize]) -> BTreeSet<u32> {
        let watched = self.delivered.values().filter_map(|delivered| delivered.watched.as_ref());
        let theirs = watched.filter(|watched| pipelines.iter().any(|p| watched.own.candidates.contains_key(p)));
        theirs.filter_map(Watched::companion).flat_map(Ready::numbers).collect()
    }

    /// Whether any version is watched.
    pub(in super::super) fn watches(&self) -> bool {
        self.delivered.values().any(|delivered| delivered.watched.is_some())
    }

    /// Shows how far trials are, and writes it now and then.
    pub(in super::super) fn look_after_trials(&mut self) {
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
    pub(in super::super) fn keep_progress(&mut self) {
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
}
