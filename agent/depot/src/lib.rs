//! Model packages: what a model needs to run and to be trusted.
//!
//! A [`Package`] is a folder or a `.limpet` file with a [`Manifest`], one graph file per variant, labels, and golden
//! vectors: recorded samples, features and outputs that the model must reproduce. [`prove`] runs every variant on
//! every engine that reads it, each in a process of its own, from samples to outputs, and says which pass. A
//! [`ProofStore`] keeps the answers, so a package is proved once per device, agent and engine library, and a model that
//! did not pass never serves. What a session gives becomes a verdict in [`Decider`].
//!
//! Both binaries call [`run_if_proof_child`] first thing in `main`.
//!
//! Nothing here prints, logs or knows MQTT.

#![forbid(unsafe_code)]

pub mod ask;
pub mod chunk;
pub mod clock;
pub mod decision;
mod error;
pub mod fetch;
pub mod golden;
pub mod manifest;
pub mod package;
pub mod proof;
#[cfg(feature = "publish")]
pub mod publish;
pub mod remote;
mod replace;
pub mod select;
pub mod store;
pub mod toml_error;
pub mod trial;
pub mod trust;
pub mod units;
pub mod web;

pub use decision::{Decider, NotFinite};
pub use error::DepotError;
pub use manifest::Manifest;
pub use package::{Digest, Package};
pub use proof::child::{run_if_proof_child, run_if_proof_child_with};
pub use proof::store::{ProofStore, Proved, ProvedVariant, Tuning};
pub use proof::{BatchCost, Batches, Choice, IngestCost, Options, Ran, Report, Row, Subject, prove, run_graphs};
pub use store::Store;
