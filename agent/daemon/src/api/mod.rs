//! The local API: HTTP over a UNIX socket in the run directory, for whoever works at the gateway itself.
//!
//! `GET /v1/status` gives what the agent is doing as one JSON object ([`report`]), which `limpet status` prints as
//! tables ([`client`], `table`). `GET /v1/results/PIPELINE` gives its last results, for `limpet results` ([`results`]). `/v2` is the JSON part of the Open Inference Protocol ([`infer`]): anybody in the
//! socket's group may ask a model, as analytic work. Access is a matter of the file: mode 0660, group `limpet`
//! ([`socket`]).
//!
//! The server ([`server`]) knows nothing of schedulers and sessions; it asks a [`Backend`].

use std::pin::Pin;
use std::sync::Arc;

pub mod client;
pub mod infer;
mod refusal;
pub mod report;
pub mod results;
pub mod server;
pub mod socket;
mod table;

#[cfg(test)]
mod tests;

use infer::{InferError, InferRequest, InferResponse, ModelMetadata};
use report::StatusReport;

use crate::doctor::Diagnosis;
use crate::outbox::history::Wanted;

/// An inference on its way. Dropped when nobody waits for the answer any more, such as a client that went away.
pub type Inference = Pin<Box<dyn Future<Output = Result<InferResponse, InferError>> + Send>>;

/// What the server asks. Called on the thread of all input and output: nothing here may block.
pub trait Backend: Send + Sync + 'static {
    /// What the agent is doing now.
    fn status(&self) -> StatusReport;

    /// The models that there are, whatever they are doing.
    fn models(&self) -> Vec<Arc<ModelMetadata>>;

    /// Runs a model as analytic work. The request fits the model's metadata: every input is there, in the model's
    /// order, with `rows` times the elements of one row.
    ///
    /// Keeping the deadline is up to the backend: the server waits for as long as the client does.
    fn infer(&self, request: InferRequest) -> Inference;

    /// Looks for packages that changed, at paths and in the store.
    fn reload(&self);

    /// Examines the agent and what it needs, as `limpet doctor` prints it.
    fn diagnose(self: Arc<Self>) -> Pin<Box<dyn Future<Output = Diagnosis> + Send>>;

    /// The last results of a pipeline, each as one JSON object, the oldest first; or the names of those that there are.
    ///
    /// # Errors
    /// If there is no such pipeline.
    fn results(&self, pipeline: &str, wanted: &Wanted) -> Result<Vec<Vec<u8>>, Vec<String>>;
}
