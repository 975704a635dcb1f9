//! Models: proved, loaded, and moved to the workers that run them.
//!
//! A model serves only with a valid proof: it gave its golden outputs on this device, with this engine and this agent.
//! What has one serves at once; what lacks one is proved first, in a process of its own, and is refused if it fails.
//! The others do not wait for it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use limpet_depot::manifest::InputKind;
use limpet_depot::{Decider, Options, Package, ProofStore, Report, Subject};
use limpet_engine::{Engine, LoadOptions, Session};
use limpet_runtime::Worker as Thread;
use limpet_wire::message::{Message, ModelPhase, ModelState, Models};

use crate::link::outgoing::Outgoing;
use crate::pipeline::input::WindowReader;
use crate::pipeline::plan::{Packages, PipelinePlan, Plan};
use crate::pipeline::worker::{Serving, Sink, Worker};
use crate::report::Reporter;
use crate::wall::Wall;
use crate::{CliError, console};

pub use limpet_depot::Proved;

/// A session that fits its package, ready to serve.
pub struct Served {
    session: Box<dyn Session>,
    decider: Decider,
    proved: Proved,
}

impl Served {
    /// For a worker.
    pub fn into_serving(self) -> Serving {
        Serving {
            session: self.session,
            decider: self.decider,
            engine: self.proved.choice.engine.as_str().into(),
            variant: self.proved.choice.variant.as_str().into(),
            cost: Duration::from_secs_f64(self.proved.p50_us / 1e6),
        }
    }
}

/// Loads what was proved and checks that it fits the package.
///
/// # Errors
/// One sentence: the package, what was found and what to do.
pub fn open(package: &Package, proved: &Proved, engines: &[Box<dyn Engine>]) -> Result<Served, CliError> {
    let refuse = |why: String| CliError::configuration(vec![format!("{}: {why}", package.path().display())]);
    let session =
        proved.open_session(package, engines, LoadOptions::default()).map_err(|error| refuse(error.to_string()))?;
    let input = &session.inputs()[0];
    if let InputKind::Series(series) = &package.manifest().inputs[0].kind {
        let front_end = series.front_end().map_err(|error| refuse(error.to_string()))?;
        if front_end.features_len() != input.elements() {
            return Err(refuse(format!(
                "[[input]] window: the front end gives {:?} = {} values, but the graph's input {} takes {:?} = {}; change window or front_end",
                front_end.feature_shape(),
                front_end.features_len(),
                input.name,
                input.shape,
                input.elements()
            )));
        }
    }
    let decider = Decider::new(package.manifest(), package.labels(), session.outputs(), input.elements())
        .map_err(|error| refuse(error.to_string()))?;
    Ok(Served { session, decider, proved: proved.clone() })
}

/// Proves a package without keeping the proof.
///
/// # Errors
/// If no engine passes: why.
pub fn prove_for_now(package: &Package, engines: &[Box<dyn Engine>]) -> Result<Proved, CliError> {
    let report: Report = limpet_depot::prove(Subject::Package(package), engines, &Options::default())
        .map_err(|error| CliError::configuration(vec![error.to_string()]))?;
    let table = report.table();
    Proved::of(report).ok_or_else(|| {
        let path = package.path().display();
        console::tell(format_args!("{path}: no engine gives the golden outputs; it is not run\n{table}"));
        CliError::No
    })
}

/// What the models are doing, for everybody to see.
pub struct Board {
    labels: BTreeMap<String, String>,
    topic: String,
    uplink: Arc<Outgoing>,
    models: Mutex<BTreeMap<String, ModelState>>,
}

impl Board {
    /// An empty board, shown on `topic`.
    pub fn new(labels: BTreeMap<String, String>, topic: String, uplink: Arc<Outgoing>) -> Self {
        let board = Self { labels, topic, uplink, models: Mutex::default() };
        board.change(|_| {});
        board
    }

    /// Changes the board and shows it.
    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, ModelState>)) {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut models);
        let message = Models {
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            labels: self.labels.clone(),
            clock: Wall::now().state(),
            models: models.values().cloned().collect(),
        };
        drop(models);
        self.uplink.offer_retained(self.topic.clone(), message.to_json());
    }

    fn set(&self, package: &Package, state: ModelPhase, proved: Option<&Proved>, failure: Option<String>) {
        let manifest = package.manifest();
        let entry = ModelState {
            name: manifest.name.clone(),
            version: manifest.version.to_string(),
            state,
            engine: proved.map(|proved| proved.choice.engine.clone()),
            variant: proved.map(|proved| proved.choice.variant.clone()),
            progress: None,
            failure,
        };
        self.change(|models| {
            models.insert(format!("{}@{}", entry.name, entry.version), entry);
        });
    }
}

/// Brings every model up, then ends.
pub struct Loader<S: Sink + 'static> {
    /// What is to run.
    pub plan: Arc<Plan>,
    /// The packages.
    pub packages: Packages,
    /// The state folder.
    pub state: PathBuf,
    /// The workers; each gets a session of its own.
    pub workers: Vec<Thread<Worker<S>>>,
    /// Where states are shown.
    pub board: Arc<Board>,
    /// Where refusals are told.
    pub reporter: Arc<Reporter>,
}

impl<S: Sink + 'static> Loader<S> {
    /// Does it.
    pub fn load(self) {
        let engines = limpet_engine::engines();
        let store = match ProofStore::new(&self.state, &engines) {
            Ok(store) => store,
            Err(error) => {
                self.packages.values().for_each(|package| self.refuse(package, &error.to_string()));
                return;
            }
        };
        let mut unproved = Vec::new();
        for package in self.packages.values() {
            match store.choice(package, &engines) {
                Some(proved) => self.bring_up(package, &proved, &engines),
                None => {
                    self.board.set(package, ModelPhase::Proving, None, None);
                    unproved.push(package);
                }
            }
        }
        for package in unproved {
            let manifest = package.manifest();
            tracing::info!(model = manifest.name, version = %manifest.version, "proving");
            match store.get_or_prove(package, &engines, &Options::default()) {
                Ok(proved) => {
                    tracing::info!(
                        model = manifest.name,
                        version = %manifest.version,
                        engine = proved.choice.engine,
                        variant = proved.choice.variant,
                        "proved"
                    );
                    let message = format!(
                        "model {} {} gives its golden outputs: {} on {}",
                        manifest.name, manifest.version, proved.choice.variant, proved.choice.engine
                    );
                    self.reporter.event("model-proved", &message, &[("model", &manifest.name)]);
                    self.bring_up(package, &proved, &engines);
                }
                Err(error) => self.refuse(package, &error.to_string()),
            }
        }
    }

    fn pipelines(&self, package: &Arc<Package>) -> impl Iterator<Item = usize> {
        let path = self.packages.iter().find(|(_, opened)| Arc::ptr_eq(opened, package)).map(|(path, _)| path);
        let uses = move |(_, plan): &(usize, &Arc<PipelinePlan>)| Some(&plan.package) == path;
        self.plan.pipelines.iter().enumerate().filter(uses).map(|(index, _)| index)
    }

    /// Serves a package everywhere or nowhere: no session is handed over before all of them are made.
    fn bring_up(&self, package: &Arc<Package>, proved: &Proved, engines: &[Box<dyn Engine>]) {
        let places = self.pipelines(package).flat_map(|index| self.workers.iter().map(move |worker| (index, worker)));
        let fitted: Result<Vec<_>, CliError> = places
            .map(|(index, worker)| Ok((index, worker, self.fit(index, package, proved, engines)?.into_serving())))
            .collect();
        let fitted = match fitted {
            Ok(fitted) => fitted,
            Err(CliError::Configuration(problems)) => return self.refuse(package, &problems.join("; ")),
            Err(other) => return self.refuse(package, &format!("{other:?}")),
        };
        for (index, worker, serving) in fitted {
            worker.change(move |worker, context| worker.serve(index, serving, context));
        }
        self.board.set(package, ModelPhase::Active, Some(proved), None);
        self.reporter.model_activated(package.manifest(), proved);
    }

    /// A session that fits the package and the source of a pipeline.
    fn fit(
        &self,
        pipeline: usize,
        package: &Package,
        proved: &Proved,
        engines: &[Box<dyn Engine>],
    ) -> Result<Served, CliError> {
        let served = open(package, proved, engines)?;
        let source = &self.plan.sources[self.plan.pipelines[pipeline].source];
        let kind = &self.plan.pipelines[pipeline].input;
        WindowReader::new(&source.config, kind, &served.session.inputs()[0])
            .map_err(|why| CliError::configuration(vec![format!("source {}: {why}", source.name())]))?;
        Ok(served)
    }

    fn refuse(&self, package: &Arc<Package>, why: &str) {
        let manifest = package.manifest();
        for index in self.pipelines(package) {
            self.reporter.model_refused(&self.plan.pipelines[index].name, &manifest.name, why);
        }
        self.board.set(package, ModelPhase::Failed, None, Some(why.to_owned()));
    }
}
