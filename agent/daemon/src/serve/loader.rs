//! The thread that brings models up, and does what it is asked from then on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use limpet_depot::{Digest, Package, ProofStore, ProvedVariant};
use limpet_engine::{Engine, Graph};
use limpet_runtime::Worker as Thread;
use limpet_runtime::admission::{Admitted, Refusal};
use limpet_wire::message::ModelPhase;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::delivered::{Delivered, Fault, Grounds, NotProved, Owed, Stops};
use super::{Board, Listed, ModelVersion, PipelineState, Places, Proved, Request, Requests, Settled, open};
use crate::CliError;
use crate::admission::{Candidate, Estimate, Seen, Trial, introduce, streams_of};
use crate::config::{Config, Loaded, ModelRef};
use crate::library::{Library, Opened, Place};
use crate::pipeline::model::Facts;
use crate::pipeline::observe::Observation;
use crate::pipeline::plan::{Packages, Plan, Version};
use crate::pipeline::stream::Serve;
use crate::pipeline::worker::{Sink, Worker};
use crate::report::Reporter;
use crate::threads;

/// A variant that may run.
pub(super) struct Known {
    pub facts: Arc<Facts>,
    pub version: Arc<Version>,
    pub place: Place,
    pub proved: Proved,
    pub reduced: bool,
    /// The package, while it is being brought up. Afterwards it is read again for each load: it holds golden vectors,
    /// which may be larger than the model.
    pub package: Option<Arc<Package>>,
    /// The graph, while it is loaded anywhere: its sessions share what the engine can share.
    pub graph: Option<Arc<dyn Graph>>,
    /// Workers on which it is loaded, and since when.
    pub loaded: BTreeMap<usize, Instant>,
}

impl Known {
    pub(super) fn which(&self) -> &ProvedVariant {
        match &self.proved.reduced {
            Some(reduced) if self.reduced => reduced,
            _ => &self.proved.serving,
        }
    }
}

/// A package that was proved and looked at, on its way to the workers.
pub(super) struct Prepared {
    pub opened: Opened,
    pub proved: Proved,
    pub versions: BTreeMap<usize, Arc<Version>>,
    pub full: Arc<Facts>,
    pub reduced: Option<Arc<Facts>>,
}

impl Prepared {
    pub(super) fn candidate(&self, pipeline: usize) -> Candidate {
        Candidate {
            version: Arc::clone(&self.versions[&pipeline]),
            full: Arc::clone(&self.full),
            reduced: self.reduced.clone(),
            ingest: self.proved.serving.ingest.map(Estimate::from),
        }
    }

    /// What these pipelines would serve.
    pub(super) fn candidates(&self, pipelines: &[usize]) -> BTreeMap<usize, Candidate> {
        pipelines.iter().map(|pipeline| (*pipeline, self.candidate(*pipeline))).collect()
    }
}

/// Brings models up, swaps them, and keeps them within the memory budget.
pub struct Loader<S: Sink + 'static> {
    pub(super) config: Config,
    pub(super) plan: Arc<Plan>,
    pub(super) workers: Vec<Thread<Worker<S>>>,
    pub(super) engines: Arc<Vec<Box<dyn Engine>>>,
    pub(super) store: Option<Arc<ProofStore>>,
    pub(super) library: Library,
    pub(super) board: Arc<Board>,
    pub(super) places: Arc<Places>,
    pub(super) reporter: Arc<Reporter>,
    blamed: Blamed,
    pub(super) requests: Receiver<Request>,
    /// How proofs come back.
    answers: Requests,
    /// Who waits until what is proved serves.
    up: Option<oneshot::Sender<()>>,
    /// Requests that came while another was worked on.
    pub(super) later: VecDeque<Request>,
    pub(super) known: BTreeMap<u32, Known>,
    next_number: u32,
    /// What each pipeline serves, and how the workers see it.
    pub(super) serving: Vec<Option<Candidate>>,
    serves: Vec<Option<Arc<Serve>>>,
    /// What pipelines served that were taken down for another version, until that serves: else it comes back.
    pub(super) taken_down: BTreeMap<usize, Candidate>,
    pub(super) seen: Vec<Seen>,
    /// Digest of the package that was tried last, by path.
    pub(super) tried: BTreeMap<ModelRef, Digest>,
    /// Models that are wanted and find no room, with the worker.
    pub(super) waiting: BTreeSet<(usize, u32)>,
    /// Models of the depot that serve or are about to, by name.
    pub(super) delivered: BTreeMap<String, Delivered>,
    /// What is offered to this gateway, by model; none before anything was trusted.
    pub(super) offered: BTreeMap<String, BTreeSet<String>>,
    /// How often proofs were stopped from outside.
    pub(super) stops: Stops,
    /// Versions that are taken up later.
    pub(super) owed: BTreeMap<ModelVersion, Owed>,
    /// What is to be proved…
    to_prove: VecDeque<Opened>,
    /// …one after the other here: two at once would slow each other down, and each is timed.
    proving: Option<Digest>,
    /// Versions that are proved only so that a model can go back to them.
    pub(super) spare: BTreeSet<Digest>,
    /// The whole configuration, with what waits.
    pub(super) loaded: Loaded,
    /// Who hears when a delivered version has been dealt with.
    pub(super) settled: UnboundedSender<Settled>,
    /// What was said of them, and of sources that ask for more than was admitted, so that it is said once.
    pub(super) told: BTreeSet<u32>,
    over_budget: BTreeSet<usize>,
}

/// Why a package may not run, though its proof is good: it ended the process too often.
pub type Blamed = Box<dyn Fn(&Package) -> Option<String> + Send>;

/// What a loader works with.
pub struct Tools<S: Sink + 'static> {
    /// What is to run.
    pub plan: Arc<Plan>,
    /// The whole configuration, with what waits.
    pub loaded: Loaded,
    /// Who hears when a delivered version has been dealt with.
    pub settled: UnboundedSender<Settled>,
    /// Where packages are.
    pub library: Library,
    /// The workers.
    pub workers: Vec<Thread<Worker<S>>>,
    /// Where states are shown.
    pub board: Arc<Board>,
    /// Where places are told.
    pub places: Arc<Places>,
    /// Where refusals are told.
    pub reporter: Arc<Reporter>,
    /// What may not run.
    pub blamed: Blamed,
    /// What it is asked to do, and how to ask.
    pub requests: (Requests, Receiver<Request>),
    /// Who waits until what has a valid proof serves; or cannot, which has been said then.
    pub up: oneshot::Sender<()>,
}

impl<S: Sink + 'static> Loader<S> {
    /// A loader that has done nothing yet.
    pub fn new(config: &Config, tools: Tools<S>) -> Self {
        let Tools {
            plan,
            loaded,
            settled,
            library,
            workers,
            board,
            places,
            reporter,
            blamed,
            requests: (answers, requests),
            up,
        } = tools;
        Self {
            config: config.clone(),
            serving: plan.pipelines.iter().map(|_| None).collect(),
            serves: plan.pipelines.iter().map(|_| None).collect(),
            seen: vec![Seen::default(); plan.sources.len()],
            plan,
            library,
            workers,
            engines: Arc::new(limpet_engine::engines()),
            store: None,
            board,
            places,
            reporter,
            blamed,
            requests,
            answers,
            up: Some(up),
            later: VecDeque::new(),
            taken_down: BTreeMap::new(),
            offered: BTreeMap::new(),
            owed: BTreeMap::new(),
            stops: Stops::default(),
            to_prove: VecDeque::new(),
            proving: None,
            spare: BTreeSet::new(),
            known: BTreeMap::new(),
            next_number: 0,
            tried: BTreeMap::new(),
            waiting: BTreeSet::new(),
            delivered: BTreeMap::new(),
            loaded,
            settled,
            told: BTreeSet::new(),
            over_budget: BTreeSet::new(),
        }
    }

    /// Brings every model up, then does what it is asked, until the process ends.
    pub fn run(mut self, packages: Packages) {
        // Workers go first.
        threads::step_back();
        // The ring is there without any model.
        let ring = self.config.outbox.ring.0;
        self.board.set_tally(|tally| (tally.admitted, tally.loaded) = (ring, ring));
        match ProofStore::new(&self.config.gateway.state, &self.engines) {
            Ok(store) => {
                self.store = Some(Arc::new(store));
                self.start(packages);
            }
            Err(error) => {
                packages.values().for_each(|opened| self.refuse(opened, &error.to_string()));
                self.is_up();
            }
        }
        loop {
            self.look_again_at_due();
            let request = match self.later.pop_front() {
                Some(request) => request,
                None => match self.requests.recv_timeout(self.next_turn()) {
                    Ok(request) => request,
                    Err(RecvTimeoutError::Timeout) => {
                        self.retry();
                        self.look_after_trials();
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                },
            };
            match request {
                Request::Reload => self.reload(),
                Request::Wanted(worker, number) => self.wanted(worker, number),
                Request::Released(worker, model) => self.released(worker, model),
                Request::Observed(observation) => self.observed(&observation),
                Request::Proved(opened, proved) => {
                    self.proving = None;
                    self.proved(opened, proved);
                    self.prove_next();
                }
                Request::Arrived(opened) => self.arrived(opened),
                Request::Offered(offered) => self.offer(offered),
                Request::Withdrawn { model, withdrawn } => self.withdrawn(&model, &withdrawn),
                Request::Judged(pipeline, watch, verdict) => self.judged(pipeline, &watch, verdict),
                Request::Keep(done) => {
                    self.keep_progress();
                    // Whoever waits for it may have given up.
                    let _ = done.send(());
                }
            }
        }
    }

    /// The proof of a package, if it has one that is valid.
    pub(super) fn proof_of(&self, opened: &Opened) -> Option<Proved> {
        let options = self.plan.proof_options(&opened.model);
        self.store.as_ref().and_then(|store| store.choice(&opened.package, &self.engines, &options))
    }

    fn start(&mut self, packages: Packages) {
        let (mut ready, mut unproved) = (Vec::new(), Vec::new());
        for opened in packages.into_values() {
            self.tried.insert(opened.model.clone(), opened.package.digest());
            match self.proof_of(&opened) {
                Some(proved) => ready.push((opened, proved)),
                None => {
                    self.board.set(opened.package.manifest(), ModelPhase::Proving, None, None);
                    unproved.push(opened);
                }
            }
        }
        let prepared: Vec<Prepared> =
            ready.into_iter().filter_map(|(opened, proved)| self.prepare_or_refuse(&opened, proved)).collect();
        self.introduce(&prepared);
        drop(prepared);
        self.is_up();
        self.prove(unproved);
        limpet_engine::give_back_memory();
    }

    fn is_up(&mut self) {
        // Whoever waited may have been told to stop.
        _ = self.up.take().map(|up| up.send(()));
    }

    /// Proves packages, one after the other, on threads of their own: what serves does not wait for that.
    pub(super) fn prove(&mut self, packages: Vec<Opened>) {
        self.to_prove.extend(packages);
        self.prove_next();
    }

    /// Proves a package before the others that wait for that, unless that goes on already.
    pub(super) fn prove_first(&mut self, package: Opened) {
        let digest = package.package.digest();
        self.to_prove.retain(|other| other.package.digest() != digest);
        if self.proving != Some(digest) {
            self.to_prove.push_front(package);
        }
        self.prove_next();
    }

    fn prove_next(&mut self) {
        if self.proving.is_some() {
            return;
        }
        let opened = loop {
            let Some(opened) = self.to_prove.pop_front() else { return };
            if self.is_wanted(&opened) || self.spare.contains(&opened.package.digest()) {
                break opened;
            }
            self.superseded(&opened);
        };
        self.proving = Some(opened.package.digest());
        let not_proved =
            |opened: Opened, why: String| Request::Proved(opened, Err(NotProved { why, fault: Fault::Device }));
        let Some(store) = self.store.clone() else {
            let why = "proofs cannot be kept in gateway.state; see the log".to_owned();
            return self.later.push_back(not_proved(opened, why));
        };
        let (engines, answers) = (Arc::clone(&self.engines), self.answers.clone());
        let (options, package) = (self.plan.proof_options(&opened.model), opened.clone());
        let prove = move || {
            threads::step_back();
            let manifest = package.package.manifest();
            tracing::info!(model = manifest.name, version = %manifest.version, "proving");
            let proved = store.get_or_prove(&package.package, &engines, &options);
            let proved = proved.map(Box::new).map_err(|error| NotProved::of(&error));
            // The loader ends with the process only.
            let _ = answers.send(Request::Proved(package, proved));
        };
        if let Err(error) = std::thread::Builder::new().name("prover".into()).spawn(prove) {
            let why = format!("the system gives no thread for proofs: {error}");
            self.later.push_back(not_proved(opened, why));
        }
    }

    /// A package was proved, or not.
    fn proved(&mut self, opened: Opened, proved: Result<Box<Proved>, NotProved>) {
        let manifest = opened.package.manifest();
        let wanted = self.is_wanted(&opened);
        if self.spare.remove(&opened.package.digest()) && !wanted {
            let (name, version) = (&manifest.name, &manifest.version);
            return match proved {
                Ok(_) => tracing::info!(model = name, %version, "proved: this version can serve again"),
                Err(NotProved { why, .. }) => {
                    tracing::warn!(model = name, %version, why, "this version has no proof, and serves again only with one");
                }
            };
        }
        let proved = match proved {
            Ok(proved) => proved,
            Err(not_proved) => {
                if self.is_tried(&opened) {
                    self.tried.remove(&opened.model);
                }
                return self.not_proved(&opened, &not_proved);
            }
        };
        let choice = &proved.serving.choice;
        let (engine, variant) = (&choice.engine, &choice.variant);
        tracing::info!(model = manifest.name, version = %manifest.version, engine, variant, "proved");
        let message =
            format!("model {} {} gives its golden outputs: {variant} on {engine}", manifest.name, manifest.version);
        self.reporter.event(
            "model-proved",
            &message,
            &[("model", &manifest.name), ("version", &manifest.version.to_string())],
        );
        if wanted {
            self.put_in_place(&opened, *proved);
            limpet_engine::give_back_memory();
        } else {
            // A package at a path that changed once more meanwhile has a proof of its own on the way.
            self.superseded(&opened);
        }
    }

    /// Whether a package is to be served once it is proved, and no other one came meanwhile.
    fn is_wanted(&self, opened: &Opened) -> bool {
        self.is_tried(opened) || self.is_coming_back(opened) || self.should_serve(opened)
    }

    /// Whether this is the package that was tried last.
    fn is_tried(&self, opened: &Opened) -> bool {
        self.tried.get(&opened.model) == Some(&opened.package.digest())
    }

    pub(super) fn prepare_or_refuse(&mut self, opened: &Opened, proved: Proved) -> Option<Prepared> {
        let prepared = match (self.blamed)(&opened.package) {
            Some(why) => Err(why),
            None => self.prepare(opened, proved),
        };
        match prepared {
            Ok(prepared) => Some(prepared),
            Err(why) => {
                self.refuse(opened, &why);
                self.reject(opened, Grounds::Configuration, &why);
                None
            }
        }
    }

    /// Looks at what was proved, and checks it against its pipelines.
    pub(super) fn prepare(&mut self, opened: &Opened, proved: Proved) -> Result<Prepared, String> {
        let Opened { model, place, package } = opened;
        let batch = self.plan.batch_of(model);
        let facts = open::look_at_all(package, &proved, batch, &self.engines, &mut self.next_number);
        let facts = facts.map_err(|error| said(&error))?;
        let versions = open::versions(&self.config, &self.plan, model, package, &facts)?;
        let version = versions.values().next().ok_or("no pipeline names it")?;
        for (index, facts) in facts.iter().enumerate() {
            let known = Known {
                facts: Arc::clone(facts),
                version: Arc::clone(version),
                place: place.clone(),
                proved: proved.clone(),
                reduced: index == 1,
                package: Some(Arc::clone(package)),
                graph: None,
                loaded: BTreeMap::new(),
            };
            self.known.insert(facts.number, known);
        }
        let mut facts = facts.into_iter();
        let (full, reduced) = (facts.next().ok_or("it has no variant")?, facts.next());
        Ok(Prepared { opened: opened.clone(), proved, versions, full, reduced })
    }

    /// What is tested, with the places that are given already.
    pub(super) fn trial(&self) -> Trial<'_> {
        let placed = (0..self.plan.sources.len()).map(|source| self.places.of(source)).collect();
        Trial { config: &self.config, plan: &self.plan, seen: &self.seen, placed }
    }

    /// Admits packages and serves them: all together if they fit, else one pipeline after the other in the order of the
    /// configuration, each beside what was admitted before it.
    pub(super) fn introduce(&mut self, prepared: &[Prepared]) {
        let mut wanted = BTreeMap::new();
        for made in prepared {
            wanted.extend(made.versions.keys().map(|pipeline| (*pipeline, made)));
        }
        let candidates = wanted.iter().map(|(pipeline, made)| (*pipeline, made.candidate(*pipeline))).collect();
        let (serving, admitted, refused) = introduce(self.trial(), &self.serving, candidates);
        if let Some(admitted) = admitted {
            self.settle(serving, &admitted);
        }
        for (pipeline, refusal) in refused {
            self.refuse_pipeline(pipeline, &wanted[&pipeline].opened.package, &refusal);
        }
        for (pipeline, made) in &wanted {
            let Some(candidate) = self.serving[*pipeline].clone() else { continue };
            match self.load_all(*pipeline, &candidate) {
                Ok(()) => self.serve(*pipeline),
                Err(why) => {
                    self.serving[*pipeline] = None;
                    self.reporter.model_refused(
                        &self.plan.pipelines[*pipeline].name,
                        &made.opened.package.manifest().name,
                        &why,
                    );
                    self.board.set_pipeline(*pipeline, PipelineState::Refused(why.clone()));
                    self.set_failed(&made.opened.package, &why);
                }
            }
        }
        for made in prepared.iter() {
            if made.versions.keys().any(|pipeline| self.serving[*pipeline].is_some()) {
                self.board.set(made.opened.package.manifest(), ModelPhase::Active, Some(&made.proved), None);
                self.reporter.model_activated(made.opened.package.manifest(), &made.proved);
            }
        }
        self.brought_up_delivered(prepared);
        self.brought_up();
    }

    /// What the workers serve for a pipeline.
    pub(super) fn serves(&self, pipeline: usize) -> Option<Arc<Serve>> {
        self.serves[pipeline].clone()
    }

    /// Nothing is on its way any more.
    pub(super) fn brought_up(&mut self) {
        self.known.values_mut().for_each(|known| known.package = None);
        self.tidy();
    }

    /// Takes an admitted set over: places, periods, and room for analytic jobs.
    pub(super) fn settle(&mut self, serving: Vec<Option<Candidate>>, admitted: &Admitted) {
        for source in 0..self.plan.sources.len() {
            if let Some(streams) = streams_of(admitted, source) {
                self.places.set(source, streams);
            }
        }
        for (thread, worker) in self.workers.iter().zip(&admitted.workers) {
            let longest = worker.longest_job.unwrap_or(Duration::MAX);
            thread.change(move |worker, context| worker.set_longest(longest, context));
        }
        let trial = self.trial();
        let (memory, _) = trial.memory(&serving, admitted).unwrap_or_default();
        for source in 0..self.plan.sources.len() {
            self.places.set_messages(source, trial.message_deadline(source, &serving), trial.message_period(source));
        }
        for (serve, candidate) in self.serves.iter().zip(&serving) {
            if let (Some(serve), Some(candidate)) = (serve, candidate) {
                serve.set_period(trial.period(serve.pipeline, candidate));
            }
        }
        self.serving = serving;
        self.taken_down.clear();
        let density = admitted.workers.iter().map(|worker| worker.density).collect();
        self.board.set_tally(|tally| (tally.load, tally.density, tally.admitted) = (admitted.load, density, memory));
    }

    /// Workers that have streams of a pipeline's source.
    pub(super) fn places_of(&self, pipeline: usize) -> BTreeSet<usize> {
        let streams = self.places.of(self.plan.pipelines[pipeline].source).unwrap_or_default();
        streams.iter().enumerate().filter(|(_, streams)| **streams > 0).map(|(worker, _)| worker).collect()
    }

    /// Loads what a pipeline needs on all of its workers, except models that may be unloaded and find no room now:
    /// they come when the first window wants them.
    ///
    /// # Errors
    /// Why one cannot be loaded. None of them stays then.
    pub(super) fn load_all(&mut self, pipeline: usize, candidate: &Candidate) -> Result<(), String> {
        let stays = self.plan.pipelines[pipeline].stays();
        let keep: BTreeSet<u32> = candidate.numbers().collect();
        for worker in self.places_of(pipeline) {
            for facts in candidate.facts() {
                let loaded = self.known.get(&facts.number).is_some_and(|known| known.loaded.contains_key(&worker));
                let fits = self.loaded_bytes() + facts.memory <= self.config.budget.memory.0;
                if loaded || !fits && !stays {
                    continue;
                }
                let made_room = self.make_room(facts.memory, &keep, true);
                let outcome = if made_room { self.load(worker, facts.number) } else { Err(self.no_room(facts)) };
                if let Err(why) = outcome {
                    self.unload_unserved(&keep);
                    return Err(why);
                }
            }
        }
        Ok(())
    }

    /// Whether a pipeline serves this model.
    pub(super) fn is_served(&self, number: u32) -> bool {
        self.serving.iter().flatten().any(|candidate| candidate.uses(number))
    }

    /// Unloads what no pipeline serves.
    pub(super) fn unload_unserved(&mut self, numbers: &BTreeSet<u32>) {
        for number in numbers
            .iter()
            .copied()
            .filter(|number| !self.serves.iter().flatten().any(|s| s.uses(*number)) && !self.is_beside(*number))
        {
            for worker in self.known.get(&number).map(|known| known.loaded.clone()).unwrap_or_default().into_keys() {
                self.workers[worker].change(move |worker, context| worker.unload(number, context));
            }
        }
    }

    /// Serves a pipeline on its workers.
    pub(super) fn serve(&mut self, pipeline: usize) {
        if let Some(serve) = self.about_to_serve(pipeline) {
            self.hand_over(&serve);
        }
    }

    /// What a pipeline is to serve from now on; its workers do not know of it yet.
    pub(super) fn about_to_serve(&mut self, pipeline: usize) -> Option<Arc<Serve>> {
        let candidate = self.serving[pipeline].clone()?;
        let period = self.trial().period(pipeline, &candidate);
        let Candidate { version, full, reduced, .. } = candidate;
        let serve = Arc::new(Serve::new(pipeline, version, full, reduced, period));
        self.serves[pipeline] = Some(Arc::clone(&serve));
        Some(serve)
    }

    /// Tells the workers of a pipeline what they serve from now on.
    pub(super) fn hand_over(&mut self, serve: &Arc<Serve>) {
        for worker in self.places_of(serve.pipeline) {
            let serve = Arc::clone(serve);
            self.workers[worker].change(move |worker, context| worker.serve(serve, context));
        }
        self.board.set_pipeline(serve.pipeline, PipelineState::Serving);
    }

    /// A stream was measured: its source is admitted again with that.
    fn observed(&mut self, observation: &Observation) {
        let Some(source) = self.plan.sources.iter().position(|source| Arc::ptr_eq(source, &observation.source)) else {
            return;
        };
        let before = self.seen[source];
        self.seen[source] = before.with(observation.figures);
        match self.trial().test(&self.serving) {
            Ok(admitted) => self.settle(self.serving.clone(), &admitted),
            Err(refusal) => {
                // What runs goes on; what comes faster than was admitted is shed first.
                self.seen[source] = before.exceeded(observation.figures);
                let trial = self.trial();
                let deadline = trial.message_deadline(source, &self.serving);
                self.places.set_messages(source, deadline, trial.message_period(source));
                if self.over_budget.insert(source) {
                    self.reporter.over_budget(observation.source.name(), &refusal.to_string());
                }
            }
        }
    }

    pub(super) fn refuse(&self, opened: &Opened, why: &str) {
        let Opened { model, package, .. } = opened;
        // Whoever hears of it finds it on the board.
        self.set_failed(package, why);
        for index in self.plan.uses_of(model) {
            // What serves goes on.
            if self.serving[index].is_none() {
                self.board.set_pipeline(index, PipelineState::Refused(why.to_owned()));
            } else if model.depot().is_some() {
                // That it is rejected is an event of its own.
                continue;
            }
            self.reporter.model_refused(&self.plan.pipelines[index].name, &package.manifest().name, why);
        }
    }

    /// Shows that a package does not serve, unless one of the same name and version does.
    pub(super) fn set_failed(&self, package: &Package, why: &str) {
        if !self.board.is_active(package.manifest()) {
            self.board.set(package.manifest(), ModelPhase::Failed, None, Some(why.to_owned()));
        }
    }

    fn refuse_pipeline(&mut self, pipeline: usize, package: &Package, refusal: &Refusal) {
        let why = refusal.to_string();
        self.board.set_pipeline(pipeline, PipelineState::Refused(why.clone()));
        self.set_failed(package, &why);
        self.reporter.pipeline_refused(&self.plan.pipelines[pipeline].name, &why);
    }

    /// Forgets variants that nobody serves and that are loaded nowhere, and brings the tally up to date.
    pub(super) fn tidy(&mut self) {
        let comes_back = |number: u32| self.taken_down.values().any(|candidate| candidate.uses(number));
        let used = |number: u32| self.is_served(number) || self.is_beside(number) || comes_back(number);
        let gone: Vec<u32> = self
            .known
            .iter()
            .filter(|(number, known)| known.loaded.is_empty() && known.package.is_none() && !used(**number))
            .map(|(number, _)| *number)
            .collect();
        for number in gone {
            let Some(Known { version, .. }) = self.known.remove(&number) else { continue };
            let same = |known: &Known| known.version.model == version.model && known.version.version == version.version;
            // One that failed stays to be read; one that served and was replaced is gone.
            if !self.known.values().any(same) && self.board.runs(&version.model, &version.version) {
                self.board.remove(&version.model, &version.version);
            }
        }
        let served = |number: u32| -> BTreeSet<usize> {
            let uses = self.serving.iter().enumerate().filter(|(_, c)| c.as_ref().is_some_and(|c| c.uses(number)));
            uses.flat_map(|(pipeline, _)| self.places_of(pipeline)).collect()
        };
        let shown = |known: &Known| Listed {
            facts: Arc::clone(&known.facts),
            version: Arc::clone(&known.version.version),
            reduced: known.reduced,
            loaded: known.loaded.keys().copied().collect(),
            served: served(known.facts.number),
        };
        let (loaded, models) = (self.loaded_bytes(), self.known.values().map(shown).collect());
        self.board.set_tally(|tally| (tally.loaded, tally.models) = (loaded, models));
    }
}

/// What is wrong, in one line.
pub(super) fn said(error: &CliError) -> String {
    match error {
        CliError::Configuration(problems) => problems.join("; "),
        other => format!("{other:?}"),
    }
}
