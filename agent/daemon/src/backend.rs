//! What the local API asks, answered by the running agent.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use limpet_engine::ElementType;
use limpet_runtime::{Ledger, Moment, Outcome, Worker as Thread};
use limpet_wire::message::ModelState;
use tokio::sync::oneshot;

use crate::api::infer::{
    InferError, InferOutput, InferRequest, InferResponse, ModelMetadata, TensorData, TensorMetadata,
};
use crate::api::report::{
    BudgetStatus, LinkState, LinkStatus, ModelStatus, PipelineState as Shown, PipelineStatus, StatusReport,
    StreamStatus, WorkerStatus,
};
use crate::api::{Backend, Inference};
use crate::config::{self, Config};
use crate::doctor::{self, Diagnosis, Patient, Probed};
use crate::fit::Waiting;
use crate::link::outgoing::Outgoing;
use crate::link::probe::Prober;
use crate::outbox::Outbox;
use crate::outbox::history::Wanted;
use crate::pipeline::input::WindowInput;
use crate::pipeline::model::Stored;
use crate::pipeline::plan::{PipelinePlan, Plan};
use crate::pipeline::worker::{Answer, Worker};
use crate::report::figures;
use crate::serve::{Board, Listed, PipelineState, Tally};
use crate::sink::{LinkSink, Running};
use crate::wall::Wall;

/// The agent, as whoever asks at the socket sees it.
pub struct LocalBackend {
    /// What was configured.
    pub config: Config,
    /// What runs.
    pub plan: Arc<Plan>,
    /// What waits for its model, with its part of the configuration.
    pub waiting: Vec<(Waiting, config::Pipeline)>,
    /// What models and pipelines are doing.
    pub board: Arc<Board>,
    /// The workers.
    pub workers: Vec<Thread<Worker<LinkSink>>>,
    /// What each worker runs.
    pub running: Vec<Arc<Running>>,
    /// Links by broker.
    pub links: Arc<BTreeMap<Arc<str>, Arc<Outgoing>>>,
    /// What waits for the uplink.
    pub outbox: Arc<Outbox>,
    /// What the machine suffers from.
    pub suffering: Arc<Mutex<Option<String>>>,
    /// What probes the uplink.
    pub prober: Arc<Prober>,
    /// Held by whoever examines the agent.
    pub examining: tokio::sync::Mutex<()>,
    /// What looks for packages that changed.
    pub reload: Box<dyn Fn() + Send + Sync>,
    /// When the agent started.
    pub started: Instant,
}

impl LocalBackend {
    /// What is being done, and what is missing, in a sentence or two.
    pub fn summary(&self) -> String {
        let states = self.board.pipelines();
        let all = states.len() + self.waiting.len();
        let serving = states.iter().filter(|state| **state == PipelineState::Serving).count();
        let plural = if all == 1 { "" } else { "s" };
        let mut text = if serving == all {
            format!("serving {all} pipeline{plural}")
        } else {
            format!("serving {serving} of {all} pipeline{plural}")
        };
        for (plan, state) in self.plan.pipelines.iter().zip(&states) {
            match state {
                PipelineState::Serving => {}
                PipelineState::Loading => text += &format!("; {}: its model is being proved or loaded", plan.name),
                PipelineState::Refused(why) => text += &format!("; {}: {why}", plan.name),
            }
        }
        for (waiting, _) in &self.waiting {
            text += &format!("; {}: {}", waiting.pipeline, waiting.why);
        }
        for (broker, link) in self.links.iter().filter(|(_, link)| !link.is_connected()) {
            let why = link.why().unwrap_or_else(|| "being connected".to_owned());
            text += &format!("; broker {broker}: {why}");
        }
        text
    }

    fn pipeline(&self, plan: &PipelinePlan, state: &PipelineState, pipeline: usize) -> PipelineStatus {
        let (state, refusal) = match state {
            PipelineState::Loading => (Shown::Loading, None),
            PipelineState::Serving => (Shown::Serving, None),
            PipelineState::Refused(why) => (Shown::Refused, Some(why.clone())),
        };
        let streams = plan.streams.lock().unwrap_or_else(PoisonError::into_inner);
        PipelineStatus {
            name: plan.name.to_string(),
            class: self.config.pipelines[pipeline].class,
            deadline_ms: plan.deadline.as_secs_f64() * 1e3,
            state,
            refusal,
            figures: figures(&plan.ledger, plan.ledger.quantiles()),
            streams: streams
                .iter()
                .map(|(name, ledger)| StreamStatus {
                    name: name.to_string(),
                    figures: figures(ledger, ledger.quantiles()),
                })
                .collect(),
        }
    }
}

/// A pipeline that has done nothing yet.
fn waits(waiting: &Waiting, pipeline: &config::Pipeline) -> PipelineStatus {
    let ledger = Ledger::default();
    PipelineStatus {
        name: pipeline.name.to_string(),
        class: pipeline.class,
        deadline_ms: pipeline.deadline.0.as_secs_f64() * 1e3,
        state: Shown::Waiting,
        refusal: Some(waiting.why.clone()),
        figures: figures(&ledger, ledger.quantiles()),
        streams: Vec::new(),
    }
}

impl Backend for LocalBackend {
    fn diagnose(self: Arc<Self>) -> Pin<Box<dyn Future<Output = Diagnosis> + Send>> {
        Box::pin(async move {
            // One after the other: each reads the whole store.
            let _turn = self.examining.lock().await;
            let mut probed = Vec::new();
            for (name, link) in self.links.iter() {
                let (refused, topics) = (link.refused_filters(), link.refused_topics());
                if let Some(times) = link.throws_off() {
                    probed.push((name.to_string(), Probed::ThrownOff(times)));
                }
                if !topics.is_empty() {
                    probed.push((name.to_string(), Probed::TakesNot(topics)));
                }
                let found = match link.is_connected() {
                    false => Probed::Away(link.why().unwrap_or_else(|| "it is being connected to".to_owned())),
                    true if !refused.is_empty() => Probed::Refuses(refused),
                    true if **name == *self.config.uplink.broker => {
                        Probed::Uplink(self.prober.topic().to_owned(), self.prober.probe(doctor::PROBE).await)
                    }
                    true => Probed::Reached,
                };
                probed.push((name.to_string(), found));
            }
            let this = Arc::clone(&self);
            let examined = tokio::task::spawn_blocking(move || {
                let status = this.status();
                let findings = doctor::examine(&Patient { config: &this.config, status: Some(&status), probed });
                Diagnosis { gateway: status.gateway.clone(), running: true, findings }
            });
            // A check that panicked has ended the process.
            examined.await.unwrap_or_else(|_| Diagnosis { gateway: String::new(), running: true, findings: Vec::new() })
        })
    }

    fn results(&self, pipeline: &str, wanted: &Wanted) -> Result<Vec<Vec<u8>>, Vec<String>> {
        let mut names = self.config.pipelines.iter().map(|pipeline| &*pipeline.name);
        if names.clone().any(|name| name == pipeline) {
            Ok(self.outbox.results(pipeline, wanted))
        } else {
            Err(names.by_ref().map(str::to_owned).collect())
        }
    }

    fn reload(&self) {
        (self.reload)();
    }

    fn status(&self) -> StatusReport {
        let (tally, states) = (self.board.tally(), self.board.pipelines());
        let pressed = self.suffering.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let models = self.board.models().into_iter().map(|model| {
            let of = |listed: &&Listed| *listed.facts.name == *model.name && *listed.version == *model.version;
            let mut variants: Vec<&Listed> = tally.models.iter().filter(of).collect();
            variants.sort_by_key(|listed| listed.reduced != pressed.is_some());
            let runs = variants.first().filter(|_| model.state.serves());
            let pinned = self.plan.pipelines.iter().any(|plan| *plan.version.model == *model.name && plan.stays());
            let cost = runs.and_then(|listed| listed.facts.costs.first());
            ModelStatus {
                engine: runs.map(|listed| listed.facts.engine.to_string()).or(model.engine),
                variant: runs.map(|listed| listed.facts.variant.to_string()).or(model.variant),
                reduced: runs.is_some_and(|listed| listed.reduced),
                memory_bytes: (!variants.is_empty()).then(|| variants.iter().map(|listed| listed.facts.memory).sum()),
                loaded: variants.iter().any(|listed| !listed.loaded.is_empty()),
                pinned,
                p50_us: cost.map(|cost| cost.typical.as_micros() as u64),
                p99_us: cost.map(|cost| cost.worst.as_micros() as u64),
                failure: model.failure,
                name: model.name,
                version: model.version,
                state: model.state,
            }
        });
        StatusReport {
            gateway: self.config.gateway.id.to_string(),
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: self.started.elapsed().as_secs(),
            clock: Wall::now().state(),
            budget: BudgetStatus {
                cpu: self.config.budget.cpu,
                cpu_admitted: tally.load,
                memory_bytes: self.config.budget.memory.0,
                memory_admitted_bytes: tally.admitted,
                memory_loaded_bytes: tally.loaded,
            },
            workers: self
                .workers
                .iter()
                .zip(&self.running)
                .enumerate()
                .map(|(number, (worker, running))| WorkerStatus {
                    number,
                    cpu_share_admitted: tally.density.get(number).copied().unwrap_or(0.0),
                    queued: worker.waiting() as u64,
                    running: running.read().map(|run| match run.pipeline {
                        Some(plan) => plan.name.to_string(),
                        None => run.facts.name.to_string(),
                    }),
                })
                .collect(),
            models: models.collect(),
            configuration: self.board.configuration(),
            sources: self.plan.sources.iter().map(|s| (s.name().to_owned(), s.ledger.figures())).collect(),
            pipelines: self
                .plan
                .pipelines
                .iter()
                .zip(&states)
                .enumerate()
                .map(|(index, (plan, state))| self.pipeline(plan, state, index))
                .chain(self.waiting.iter().map(|(waiting, pipeline)| waits(waiting, pipeline)))
                .collect(),
            pressure: pressed.clone(),
            links: self
                .links
                .iter()
                .map(|(broker, link)| LinkStatus {
                    broker: broker.to_string(),
                    state: if link.is_connected() { LinkState::Up } else { LinkState::Down },
                    why: link.why(),
                })
                .collect(),
            outbox: self.outbox.figures().into(),
        }
    }

    fn models(&self) -> Vec<Arc<ModelMetadata>> {
        let tally = self.board.tally();
        let mut models: BTreeMap<String, ModelMetadata> = BTreeMap::new();
        for model in self.board.models() {
            let metadata = metadata(&tally, model);
            // While a version takes over there are two of a name: the newest that serves answers.
            match models.get(&metadata.name) {
                Some(other) if (other.phase.serves(), other.number) > (metadata.phase.serves(), metadata.number) => {}
                _ => _ = models.insert(metadata.name.clone(), metadata),
            }
        }
        models.into_values().map(Arc::new).collect()
    }

    fn infer(&self, request: InferRequest) -> Inference {
        let tally = self.board.tally();
        let not_ready = |reason: &str| -> Inference {
            let error = InferError::NotReady { model: request.model.clone(), reason: reason.to_owned() };
            Box::pin(async move { Err(error) })
        };
        // The very one that the request was read for.
        let Some(listed) = tally.models.iter().find(|listed| listed.facts.number == request.number) else {
            return not_ready("another version has just taken its place; ask again");
        };
        // Where it is loaded and least waits; one that is not loaded is loaded where it is first wanted.
        let places = if listed.loaded.is_empty() { &listed.served } else { &listed.loaded };
        let Some(worker) = places.iter().copied().min_by_key(|worker| self.workers[*worker].waiting()) else {
            return not_ready("no pipeline serves it");
        };
        let (facts, version) = (Arc::clone(&listed.facts), Arc::clone(&listed.version));
        let Some((_, data)) = request.inputs.into_iter().next() else {
            return Box::pin(async { Err(InferError::Bad("no input was given".to_owned())) });
        };
        let rows = rows(data, request.rows);
        let (senders, answers): (Vec<_>, Vec<_>) = rows.iter().map(|_| oneshot::channel::<Answer>()).unzip();
        let deadline = Moment::now().after(request.deadline);
        let (asked, jobs) = (Arc::clone(&facts), rows.into_iter().zip(senders).collect());
        self.workers[worker].change(move |worker, context| worker.request(&asked, jobs, deadline, context));
        Box::pin(async move {
            let mut outputs: Vec<InferOutput> = Vec::new();
            for answer in answers {
                // A worker that ends answers nothing more.
                let given = answer.await.unwrap_or(Err(Outcome::Rejected));
                let row = given.map_err(|outcome| refusal(outcome, &facts.name))?;
                gather(&mut outputs, row, &facts.outputs);
            }
            Ok(InferResponse { model: facts.name.to_string(), version: version.to_string(), outputs })
        })
    }
}

/// A model for whoever wants to ask it.
fn metadata(tally: &Tally, model: ModelState) -> ModelMetadata {
    let of = |listed: &&Listed| *listed.facts.name == *model.name && *listed.version == *model.version;
    let facts = tally.models.iter().filter(of).find(|listed| !listed.reduced).map(|listed| &listed.facts);
    let onnx = model.variant.as_deref().is_some_and(|variant| variant.ends_with(".onnx"));
    ModelMetadata {
        number: facts.map_or(0, |facts| facts.number),
        name: model.name,
        versions: vec![model.version],
        platform: if onnx { "onnx_onnxv1" } else { "tensorflow_tflite" }.to_owned(),
        inputs: facts.map(|facts| TensorMetadata::of(&facts.input)).into_iter().collect(),
        outputs: facts.map(|facts| facts.outputs.iter().map(TensorMetadata::of).collect()).unwrap_or_default(),
        phase: model.state,
    }
}

/// An input cut into rows, as the worker takes them.
fn rows(data: TensorData, rows: usize) -> Vec<WindowInput> {
    let each = data.len() / rows.max(1);
    match data {
        TensorData::F32(values) => values.chunks_exact(each).map(|row| WindowInput::Real(row.to_vec())).collect(),
        TensorData::U8(values) => values.chunks_exact(each).map(|row| WindowInput::Integers(row.to_vec())).collect(),
        TensorData::I8(values) => values
            .chunks_exact(each)
            .map(|row| WindowInput::Integers(row.iter().map(|value| value.cast_unsigned()).collect()))
            .collect(),
    }
}

/// Adds a row to what was gathered.
fn gather(outputs: &mut Vec<InferOutput>, row: Vec<Stored>, specs: &[limpet_engine::TensorSpec]) {
    if outputs.is_empty() {
        outputs.extend(specs.iter().map(|spec| InferOutput {
            name: spec.name.clone(),
            shape: std::iter::once(0).chain(spec.shape.iter().skip(1).copied()).collect(),
            data: match spec.element {
                ElementType::F32 => TensorData::F32(Vec::new()),
                ElementType::I8 => TensorData::I8(Vec::new()),
                ElementType::U8 => TensorData::U8(Vec::new()),
            },
        }));
    }
    for (output, stored) in outputs.iter_mut().zip(row) {
        output.shape[0] += 1;
        match (&mut output.data, stored) {
            (TensorData::F32(all), Stored::F32(row)) => all.extend(row),
            (TensorData::I8(all), Stored::I8(row)) => all.extend(row),
            (TensorData::U8(all), Stored::U8(row)) => all.extend(row),
            _ => unreachable!("a session's outputs keep their types"),
        }
    }
}

fn refusal(outcome: Outcome, model: &str) -> InferError {
    match outcome {
        Outcome::Expired => InferError::Expired(model.to_owned()),
        Outcome::Replaced | Outcome::Rejected => InferError::QueueFull(model.to_owned()),
        Outcome::Failed | Outcome::Invalid | Outcome::Result => {
            InferError::Failed(format!("model '{model}' failed to run; the log says why"))
        }
    }
}
