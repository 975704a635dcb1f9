//! Where a running agent's results go: local outputs first, then the uplink.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use limpet_depot::trial::Verdict;

use crate::crash::Marker;
use crate::link::outgoing::{Body, Fleeting, Outgoing};
use crate::outbox::Outbox;
use crate::pipeline::model::{Facts, Model};
use crate::pipeline::observe::Observation;
use crate::pipeline::plan::PipelinePlan;
use crate::pipeline::shadow::Watch;
use crate::pipeline::worker::{Decided, Sink};
use crate::report::Reporter;
use crate::serve::{Request, Requests};

/// What a worker runs at the moment.
#[derive(Debug, Default)]
pub struct Running(Mutex<Option<Run>>);

/// A run of a session.
#[derive(Debug, Clone)]
pub struct Run {
    /// The model.
    pub facts: Arc<Facts>,
    /// The pipeline; none for a request.
    pub pipeline: Option<Arc<PipelinePlan>>,
}

impl Running {
    /// What runs, if anything does.
    pub fn read(&self) -> Option<Run> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, run: Option<Run>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = run;
    }
}

/// Hands results to the links, and tells what its worker runs.
pub struct LinkSink {
    worker: usize,
    running: Arc<Running>,
    /// What stands in the run directory while a session runs, should it end the process.
    marker: Option<Marker>,
    loader: Requests,
    outputs: Outputs,
}

/// Where results go; cheap to clone.
#[derive(Clone)]
pub struct Outputs {
    uplink: Arc<Outgoing>,
    outbox: Arc<Outbox>,
    links: Arc<BTreeMap<Arc<str>, Arc<Outgoing>>>,
    reporter: Arc<Reporter>,
}

impl LinkSink {
    /// The sink of a worker.
    pub fn new(
        worker: usize,
        running: Arc<Running>,
        marker: Option<Marker>,
        loader: Requests,
        outputs: Outputs,
    ) -> Self {
        Self { worker, running, marker, loader, outputs }
    }

    fn ask(&self, request: Request) {
        // The loader outlives the workers, unless it panicked, and then the process ends.
        let _ = self.loader.send(request);
    }
}

impl Outputs {
    /// The links by broker; `uplink` is the one that carries results, out of `outbox`.
    pub fn new(
        uplink: Arc<Outgoing>,
        outbox: Arc<Outbox>,
        links: Arc<BTreeMap<Arc<str>, Arc<Outgoing>>>,
        reporter: Arc<Reporter>,
    ) -> Self {
        Self { uplink, outbox, links, reporter }
    }
}

impl Sink for LinkSink {
    fn decided(&mut self, decided: Decided<'_>) {
        let Decided { pipeline, record, published, locals, deadline, now } = decided;
        let Outputs { uplink, outbox, links, .. } = &self.outputs;
        for (local, _) in pipeline.locals.iter().zip(locals).filter(|(_, wants)| **wants) {
            let Some(link) = links.get(&local.broker) else { continue };
            // What is left of the deadline, at least a second: nobody acts on it after that.
            let left = deadline.since(now).as_secs_f64().ceil().max(1.0);
            link.offer_fleeting(Fleeting {
                topic: local.topic.topic(&record.stream),
                body: Body::Record(Arc::clone(&record), pipeline.packing.encoding),
                at_least_once: local.at_least_once,
                expiry_s: Some(left as u32),
                correlation: None,
            });
        }
        if published {
            outbox.offer_result(&record);
        }
        uplink.offer_latest(&record);
    }

    fn event(&mut self, kind: &'static str, message: String, source: &str, stream: &str) {
        tracing::warn!(source, stream, "{message}");
        self.outputs.reporter.event(kind, &message, &[("source", source), ("stream", stream)]);
    }

    fn observed(&mut self, observation: Observation) {
        self.ask(Request::Observed(observation));
    }

    fn wanted(&mut self, facts: &Arc<Facts>) {
        self.ask(Request::Wanted(self.worker, facts.number));
    }

    fn begins(&mut self, facts: &Arc<Facts>, pipeline: Option<&Arc<PipelinePlan>>) {
        if let Some(marker) = &self.marker {
            marker.set(&facts.digest);
        }
        let (facts, pipeline) = (Arc::clone(facts), pipeline.cloned());
        self.running.set(Some(Run { facts, pipeline }));
    }

    fn ends(&mut self) {
        if let Some(marker) = &self.marker {
            marker.clear();
        }
        self.running.set(None);
    }

    fn judged(&mut self, pipeline: usize, watch: &Arc<Watch>, verdict: Verdict) {
        self.ask(Request::Judged(pipeline, Arc::clone(watch), verdict));
    }

    fn released(&mut self, model: Model) {
        self.ask(Request::Released(self.worker, model));
    }
}
