//! Where a running agent's results go: local outputs first, then the uplink.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::link::outgoing::{Body, Fleeting, Outgoing};
use crate::pipeline::worker::{Decided, Sink};
use crate::report::Reporter;

/// Hands results to the links. One a worker; cheap to clone.
#[derive(Clone)]
pub struct LinkSink {
    uplink: Arc<Outgoing>,
    links: Arc<BTreeMap<Arc<str>, Arc<Outgoing>>>,
    reporter: Arc<Reporter>,
}

impl LinkSink {
    /// A sink over the links by broker; `uplink` is the one that carries results.
    pub fn new(uplink: Arc<Outgoing>, links: Arc<BTreeMap<Arc<str>, Arc<Outgoing>>>, reporter: Arc<Reporter>) -> Self {
        Self { uplink, links, reporter }
    }
}

impl Sink for LinkSink {
    fn decided(&mut self, decided: Decided<'_>) {
        let Decided { pipeline, record, published, locals, deadline, now } = decided;
        for (local, _) in pipeline.locals.iter().zip(locals).filter(|(_, wants)| **wants) {
            let Some(link) = self.links.get(&local.broker) else { continue };
            // What is left of the deadline, at least a second: nobody acts on it after that.
            let left = deadline.since(now).as_secs_f64().ceil().max(1.0);
            link.offer_fleeting(Fleeting {
                topic: local.topic.topic(&record.stream),
                body: Body::Record(Arc::clone(&record), pipeline.packing.encoding),
                at_least_once: local.at_least_once,
                expiry_s: Some(left as u32),
            });
        }
        if published {
            self.uplink.offer_result(Arc::clone(&record), pipeline.packing);
        }
        self.uplink.offer_latest(&record);
    }

    fn event(&mut self, kind: &'static str, message: String, source: &str, stream: &str) {
        tracing::warn!(source, stream, "{message}");
        self.reporter.event(kind, &message, &[("source", source), ("stream", stream)]);
    }
}
