//! Models: proved, admitted, loaded, and moved to the workers that run them.
//!
//! A model serves only with a valid proof: it gave its golden outputs on this device, with this engine and this agent.
//! What has one serves at once; what lacks one is proved first, in a process of its own, and is refused if it fails.
//! The others do not wait for it. Then the arithmetic of [`admission`](crate::admission) decides whether it fits beside
//! what runs already.
//!
//! All of that is the work of one thread, the [`loader`], which lives as long as the agent: it hears of packages that
//! changed ([`swap`]), of windows that wait for a model that is not loaded ([`memory`]), of models that nobody needs any
//! more, and of sources that turned out otherwise than declared. It alone loads and drops sessions ([`open`]), so no worker
//! ever waits for that. Proofs, which take minutes, run on a thread of their own.
//!
//! What others may see of it is here: the [`Board`], the [`Places`] for streams, and what the loader can be asked.

mod delivered;
mod loader;
mod memory;
pub mod open;
mod swap;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use limpet_depot::Manifest;
use limpet_depot::trial::Verdict;
use limpet_wire::message::{ConfigurationState, Message, ModelPhase, ModelState, Models};

use crate::library::Opened;
use crate::link::outgoing::Outgoing;
use crate::pipeline::model::{Facts, Model};
use crate::pipeline::observe::Observation;
use crate::pipeline::shadow::Watch;
use crate::wall::Wall;

pub use delivered::{Fault, NotProved, Stops};
pub use limpet_depot::Proved;
pub use loader::{Loader, Tools};

/// What a pipeline is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PipelineState {
    /// Its model is being proved or loaded.
    Loading,
    /// It serves.
    Serving,
    /// It does not run: why.
    Refused(String),
}

/// What models and pipelines are doing, for everybody to see.
pub struct Board {
    labels: BTreeMap<String, String>,
    topic: String,
    uplink: Arc<Outgoing>,
    models: Mutex<BTreeMap<String, ModelState>>,
    configuration: Mutex<Option<ConfigurationState>>,
    pipelines: Mutex<Vec<PipelineState>>,
    tally: Mutex<Arc<Tally>>,
}

/// What was admitted, and what is loaded.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    /// Σ mean C ÷ T.
    pub load: f64,
    /// Σ C99 ÷ T of each worker.
    pub density: Vec<f64>,
    /// Measured memory of what was admitted, and the outbox's ring, in bytes.
    pub admitted: u64,
    /// Measured memory of what is loaded, and the ring.
    pub loaded: u64,
    /// Every variant that may run.
    pub models: Vec<Listed>,
}

/// A variant that may run.
#[derive(Debug, Clone)]
pub struct Listed {
    /// What it is.
    pub facts: Arc<Facts>,
    /// Version of its package.
    pub version: Arc<str>,
    /// Whether it is the one for times of pressure.
    pub reduced: bool,
    /// Workers on which it is loaded.
    pub loaded: BTreeSet<usize>,
    /// Workers on which a pipeline serves it.
    pub served: BTreeSet<usize>,
}

impl Board {
    /// An empty board, shown on `topic`.
    pub fn new(labels: BTreeMap<String, String>, topic: String, uplink: Arc<Outgoing>, pipelines: usize) -> Self {
        let board = Self {
            labels,
            topic,
            uplink,
            models: Mutex::default(),
            configuration: Mutex::default(),
            pipelines: Mutex::new(vec![PipelineState::Loading; pipelines]),
            tally: Mutex::default(),
        };
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
            configuration: self.configuration(),
        };
        drop(models);
        self.uplink.offer_retained(self.topic.clone(), message.to_json());
    }

    fn set(&self, manifest: &Manifest, state: ModelPhase, proved: Option<&Proved>, failure: Option<String>) {
        let entry = ModelState {
            name: manifest.name.clone(),
            version: manifest.version.to_string(),
            state,
            engine: proved.map(|proved| proved.serving.choice.engine.clone()),
            variant: proved.map(|proved| proved.serving.choice.variant.clone()),
            progress: None,
            agreement: None,
            failure,
        };
        self.change(|models| {
            models.insert(format!("{}@{}", entry.name, entry.version), entry);
        });
    }

    /// A version is on its way: `progress` is the share of it that is there, or `failure` why it is not coming.
    pub fn set_fetching(&self, model: &str, version: &str, progress: Option<f32>, failure: Option<String>) {
        self.set_coming(model, version, ModelPhase::Fetching, progress, failure);
    }

    /// The state of a version that is not proved.
    fn set_coming(
        &self,
        model: &str,
        version: &str,
        state: ModelPhase,
        progress: Option<f32>,
        failure: Option<String>,
    ) {
        let entry = ModelState {
            name: model.to_owned(),
            version: version.to_owned(),
            state,
            engine: None,
            variant: None,
            progress,
            agreement: None,
            failure,
        };
        self.change(|models| {
            let key = format!("{model}@{version}");
            // What is proved or serves already is further on its way.
            if models.get(&key).is_none_or(|there| matches!(there.state, ModelPhase::Fetching | ModelPhase::Failed)) {
                models.insert(key, entry);
            }
        });
    }

    /// A version was rejected before, and is not taken: why.
    pub fn set_rejected(&self, model: &str, version: &str, why: String) {
        self.set_coming(model, version, ModelPhase::Failed, None, Some(why));
    }

    /// The state of a version of a model that is shown already.
    fn set_state(&self, model: &str, version: &str, state: ModelPhase, failure: Option<String>) {
        self.change(|models| {
            if let Some(shown) = models.get_mut(&format!("{model}@{version}")) {
                (shown.state, shown.failure) = (state, failure);
            }
        });
    }

    /// How far a version on trial is, and how often it agreed with the other one.
    fn set_progress(&self, model: &str, version: &str, progress: f32, agreement: Option<f32>) {
        self.change(|models| {
            if let Some(shown) = models.get_mut(&format!("{model}@{version}")) {
                (shown.progress, shown.agreement) = (Some(progress), agreement);
            }
        });
    }

    /// Whether this version of a model serves.
    fn is_active(&self, manifest: &Manifest) -> bool {
        self.serves(&manifest.name, &manifest.version.to_string())
    }

    /// Whether a model of this name and version serves.
    fn serves(&self, model: &str, version: &str) -> bool {
        let models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        models.get(&format!("{model}@{version}")).is_some_and(|model| model.state.serves())
    }

    /// Whether a version of a model serves, or runs beside what does.
    fn runs(&self, model: &str, version: &str) -> bool {
        let models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        let runs = |model: &ModelState| model.state.serves() || model.state == ModelPhase::Shadow;
        models.get(&format!("{model}@{version}")).is_some_and(runs)
    }

    /// A version does not come any more. One that runs is not meant.
    pub fn set_not_coming(&self, model: &str, version: &str) {
        let key = format!("{model}@{version}");
        let coming = |shown: &ModelState| matches!(shown.state, ModelPhase::Fetching | ModelPhase::Proving);
        let models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        let is_coming = models.get(&key).is_some_and(coming);
        drop(models);
        if is_coming {
            self.remove(model, version);
        }
    }

    /// A version is not there any more.
    pub fn remove(&self, model: &str, version: &str) {
        self.change(|models| _ = models.remove(&format!("{model}@{version}")));
    }

    fn set_pipeline(&self, pipeline: usize, state: PipelineState) {
        self.pipelines.lock().unwrap_or_else(PoisonError::into_inner)[pipeline] = state;
    }

    /// Shows what became of a signed configuration.
    pub fn set_configuration(&self, state: ConfigurationState) {
        let shown = Some(state);
        {
            let mut configuration = self.configuration.lock().unwrap_or_else(PoisonError::into_inner);
            if *configuration == shown {
                return;
            }
            *configuration = shown;
        }
        self.change(|_| {});
    }

    /// What became of the signed configuration, if there ever was one.
    pub fn configuration(&self) -> Option<ConfigurationState> {
        self.configuration.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the models are doing, ordered by name and version.
    pub fn models(&self) -> Vec<ModelState> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// What the pipelines are doing, in the order of the plan.
    pub fn pipelines(&self) -> Vec<PipelineState> {
        self.pipelines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was admitted, and what is loaded.
    pub fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.tally.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set_tally(&self, change: impl FnOnce(&mut Tally)) {
        change(Arc::make_mut(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner)));
    }
}

/// Places for streams: how many of each source each worker has room for, and what was admitted of their messages.
#[derive(Debug, Default)]
pub struct Places {
    streams: Mutex<Vec<Option<Vec<u32>>>>,
    messages: Vec<Messages>,
}

/// What was admitted of a source's messages, in nanoseconds.
#[derive(Debug, Default)]
struct Messages {
    /// D′.
    deadline: AtomicU64,
    /// Shortest time between two of a stream; 0 where it is not known.
    period: AtomicU64,
}

impl Places {
    /// None, for so many sources.
    pub fn new(sources: usize) -> Self {
        let messages = (0..sources).map(|_| Messages::default()).collect();
        Self { streams: Mutex::new(vec![None; sources]), messages }
    }

    /// D′ of a source's messages: from their arrival.
    pub fn deadline(&self, source: usize) -> Duration {
        Duration::from_nanos(self.messages[source].deadline.load(Ordering::Relaxed))
    }

    /// T of a stream's messages, where it is known.
    pub fn period(&self, source: usize) -> Option<Duration> {
        Some(self.messages[source].period.load(Ordering::Relaxed))
            .filter(|period| *period > 0)
            .map(Duration::from_nanos)
    }

    fn set_messages(&self, source: usize, deadline: Duration, period: Option<Duration>) {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.messages[source].deadline.store(nanos(deadline), Ordering::Relaxed);
        self.messages[source].period.store(period.map_or(0, nanos), Ordering::Relaxed);
    }

    /// The streams that a source may have on each worker; none while no pipeline of it was admitted.
    pub fn of(&self, source: usize) -> Option<Vec<u32>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)[source].clone()
    }

    fn set(&self, source: usize, streams: Vec<u32>) {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)[source] = Some(streams);
    }
}

/// A version of a model.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ModelVersion {
    /// The model.
    pub model: String,
    /// Its version.
    pub version: String,
}

/// What became of a delivered version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// Nothing more is done about it: it serves, runs beside, or was rejected. The record of its model may have changed.
    Done(ModelVersion),
    /// It was let go. If it is the one to be taken up after all, it is to be handed over again.
    LetGo(ModelVersion),
    /// Another plan is to run, because a pipeline that waited can, or by another configuration: the agent has to begin
    /// again.
    Again(String),
}

/// What the loader is asked to do.
pub enum Request {
    /// Look for packages that changed.
    Reload,
    /// Windows on this worker wait for this model.
    Wanted(usize, u32),
    /// This worker needs this model no more.
    Released(usize, Model),
    /// A stream was measured.
    Observed(Observation),
    /// A package was proved, or why not.
    Proved(Opened, Result<Box<Proved>, NotProved>),
    /// A version is to be taken up; it is complete in the store.
    Arrived(Opened),
    /// What is offered to this gateway now, by model: nothing else takes over that is not on record already.
    Offered(BTreeMap<String, BTreeSet<String>>),
    /// What serves of this model was withdrawn, with these versions of it.
    Withdrawn {
        /// Name of the model.
        model: String,
        /// Versions.
        withdrawn: Vec<String>,
    },
    /// The version that a pipeline watches was judged, by this watch.
    Judged(usize, Arc<Watch>, Verdict),
    /// Keep what a restart goes on with, and say when that is done.
    Keep(Sender<()>),
}

/// How requests reach the loader; cheap to clone.
pub type Requests = Sender<Request>;
