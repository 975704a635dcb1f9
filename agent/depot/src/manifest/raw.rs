//! The manifest as it is written: serde structs with every key of the format, and nothing that judges them.
//!
//! Unknown keys are errors here. Keys that are known but do not belong where they stand (a `resize` on a series) are
//! found by the validation in the parent module.

use std::collections::BTreeMap;

use limpet_signal::Step;
use serde::Deserialize;

use super::{Activation, Channel, Constant, ImageFormat, Layout, Order, Role, ScoreOf, Size, Window};
use crate::units::{ByteSize, Duration};

/// The one key that is read before all others, so that a newer file is refused for what it is.
#[derive(Deserialize)]
pub(super) struct Head {
    pub format: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[expect(dead_code, reason = "read by Head; named here so that it is a known key")]
    pub format: i64,
    pub requires: Option<String>,
    pub model: Model,
    #[serde(default)]
    pub variant: Vec<Variant>,
    #[serde(default)]
    pub input: Vec<Input>,
    #[serde(default)]
    pub decision: Decision,
    #[serde(default)]
    pub proof: Proof,
    #[serde(default)]
    pub budget: Budget,
    #[serde(default)]
    pub calibration: BTreeMap<String, Constant>,
    /// Reserved.
    pub state: Option<toml::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Model {
    pub name: String,
    pub version: String,
    pub task: String,
    pub summary: Option<String>,
    pub license: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Variant {
    pub file: String,
    #[serde(default)]
    pub role: Role,
    #[serde(default)]
    pub proof: Proof,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    pub kind: String,
    pub tensor: Option<String>,
    // series
    pub rate_hz: Option<f64>,
    pub channels: Option<Vec<Channel>>,
    pub window: Option<Window>,
    pub front_end: Option<Vec<Step>>,
    // image
    pub format: Option<ImageFormat>,
    pub resize: Option<Size>,
    pub crop: Option<Size>,
    pub order: Option<Order>,
    pub layout: Option<Layout>,
    pub mean: Option<Vec<f32>>,
    pub std: Option<Vec<f32>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Decision {
    pub output: Option<String>,
    #[serde(default)]
    pub activation: Activation,
    #[serde(default)]
    pub score: ScoreOf,
    pub threshold: Option<f32>,
    pub trigger: Option<Trigger>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Trigger {
    pub label: Option<String>,
    pub above: f32,
    #[serde(default = "one")]
    pub r#for: u32,
    #[serde(default)]
    pub quiet: Duration,
}

fn one() -> u32 {
    1
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Proof {
    pub top1_agreement: Option<f64>,
    pub nmae: Option<f64>,
    pub features_nmae: Option<f64>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Budget {
    pub latency_p99: Option<Duration>,
    pub memory: Option<ByteSize>,
}
