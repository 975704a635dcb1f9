//! The manifest, `model.toml`: what a package says about its model.
//!
//! [`Manifest::parse`] reads and judges it in one go, so a `Manifest` that exists is one that makes sense by itself:
//! every key known and in its place, every number in its range, every front end one that can be built. Whether it fits
//! the graphs is for the proof to say.

mod check;
mod raw;

use std::collections::BTreeMap;
use std::path::Path;

use limpet_engine::Format;
use limpet_signal::{FrontEnd, FrontEndError, Step};
use semver::{Version, VersionReq};
use serde::{Deserialize, Serialize};

use crate::DepotError;
use crate::toml_error;

pub(crate) use check::file_name as check_file_name;

/// Name of the manifest in a package.
pub const FILE_NAME: &str = "model.toml";
/// The newest manifest format that this version reads.
pub const FORMAT: i64 = 1;

/// What a package says about its model, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// The agents that can run it, from `requires = "limpet >= 0.1"`.
    pub requires: Option<VersionReq>,
    /// Name of the model.
    pub name: String,
    /// Its version, without build metadata.
    pub version: Version,
    /// What its outputs mean.
    pub task: Task,
    /// One line for people.
    pub summary: Option<String>,
    /// The license of the model, as its author writes it.
    pub license: Option<String>,
    /// The graph files, at least one, in the order written.
    pub variants: Vec<Variant>,
    /// The graph's inputs, at least one. Where there are several, each names its tensor.
    pub inputs: Vec<Input>,
    /// How an output becomes a verdict.
    pub decision: Decision,
    /// What a proof must reach; a variant's own limits are in [`Variant::limits`].
    pub limits: Limits,
    /// What the session may cost on the device that runs it.
    pub budget: Budget,
    /// Constants that belong to one installation, by name.
    pub calibration: BTreeMap<String, Constant>,
}

/// What a model's outputs mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Task {
    /// One score a label.
    Classification,
    /// One score: how unusual the window is.
    Anomaly,
    /// Values.
    Regression,
}

impl Task {
    /// The word in the manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::Classification => "classification",
            Self::Anomaly => "anomaly",
            Self::Regression => "regression",
        }
    }
}

/// One graph file.
#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    /// Its name in the package.
    pub file: String,
    /// How the graph is stored, by the file's extension.
    pub format: Format,
    /// When it may be chosen.
    pub role: Role,
    /// What its proof must reach: its own `[variant.proof]`, and the package's for what that leaves out.
    pub limits: Limits,
}

/// When a variant may be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Always.
    #[default]
    Full,
    /// Only under thermal or CPU pressure.
    Reduced,
}

/// One input of the graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// Name of the tensor; none only where the graph has a single input.
    pub tensor: Option<String>,
    /// What comes in there, and how.
    pub kind: InputKind,
}

/// What comes in.
#[derive(Debug, Clone, PartialEq)]
pub enum InputKind {
    /// Samples over time, cut into windows.
    Series(Series),
    /// One message is one window of `f32` features in the graph's order.
    Features,
    /// One message is one window in the graph's own integer type.
    Quantized,
    /// One message is one picture.
    Image(Image),
}

impl InputKind {
    /// The word in the manifest.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Series(_) => "series",
            Self::Features => "features",
            Self::Quantized => "quantized",
            Self::Image(_) => "image",
        }
    }
}

/// Samples over time.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Samples per second.
    pub rate_hz: f64,
    /// The channels of one sample, in order; at least one.
    pub channels: Vec<Channel>,
    /// How features are cut into windows.
    pub window: Window,
    /// From samples to features, in order; may be empty.
    pub steps: Vec<Step>,
}

impl Series {
    /// The front end that the steps describe.
    ///
    /// # Errors
    /// Never for a series from [`Manifest::parse`], which has built it once.
    pub fn front_end(&self) -> Result<FrontEnd, FrontEndError> {
        FrontEnd::new(&self.steps, self.rate_hz, self.channels.len(), self.window.frames, self.window.hop)
    }
}

/// One channel of a series.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Channel {
    /// What it is called.
    pub name: String,
    /// The unit that the model wants.
    #[serde(default)]
    pub unit: String,
    /// Smallest value that is normal, in that unit.
    pub min: Option<f64>,
    /// Largest value that is normal, in that unit.
    pub max: Option<f64>,
}

/// How many frames make a window, and how far apart windows are. Without `frame` in the front end: samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Frames in a window.
    pub frames: usize,
    /// Frames from one window to the next.
    pub hop: usize,
}

/// How a picture becomes an input.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// How the payload is coded.
    pub format: ImageFormat,
    /// Scaled to this first, if given.
    pub resize: Option<Size>,
    /// Then the middle of this size is cut out, if given.
    pub crop: Option<Size>,
    /// Order of the colors.
    pub order: Order,
    /// Order of the axes.
    pub layout: Layout,
    /// Subtracted from each color (0 to 255): one for all, or one a color.
    pub mean: Vec<f32>,
    /// What remains is divided by this: one for all, or one a color.
    pub std: Vec<f32>,
}

/// How a picture's payload is coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageFormat {
    /// JPEG.
    Jpeg,
    /// PNG.
    Png,
    /// Raw, three bytes a pixel.
    Rgb8,
    /// Raw, one byte a pixel.
    Gray8,
}

/// Width and height in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
}

/// Order of the colors of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Red first.
    #[default]
    Rgb,
    /// Blue first.
    Bgr,
}

/// Order of a picture's axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// Row, column, color: TensorFlow's.
    #[default]
    Nhwc,
    /// Color, row, column: PyTorch's.
    Nchw,
}

/// How an output becomes a verdict.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The output that is decided on; none only where the graph has a single output.
    pub output: Option<String>,
    /// What is done to it first.
    pub activation: Activation,
    /// Where an anomaly's score comes from.
    pub score: ScoreOf,
    /// The score above which a window is an anomaly.
    pub threshold: Option<f32>,
    /// When a result pulls the trigger.
    pub trigger: Option<Trigger>,
}

/// What is done to an output before it is read as scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// Nothing: the graph gives scores.
    #[default]
    None,
    /// `exp(x) / Σ exp(x)`.
    Softmax,
    /// `1 / (1 + exp(−x))`, each by itself.
    Sigmoid,
}

/// Where an anomaly's score comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScoreOf {
    /// The output is the score.
    #[default]
    Value,
    /// Mean squared difference between the output and the features.
    ReconstructionMse,
}

/// When a result pulls the trigger: the score is above `above` in `windows` consecutive results, and after that not
/// again until it was at or below `above` once and `quiet` has passed in capture time.
#[derive(Debug, Clone, PartialEq)]
pub struct Trigger {
    /// The label whose score counts; none for an anomaly.
    pub label: Option<String>,
    /// The score must be above this.
    pub above: f32,
    /// In so many consecutive results; at least 1. The key is `for`.
    pub windows: u32,
    /// Shortest time between two triggers.
    pub quiet: std::time::Duration,
}

/// What a proof must reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Smallest share of vectors whose best class is the golden one, where there are classes.
    pub top1_agreement: f64,
    /// Largest normalized mean absolute error of each output.
    pub nmae: f64,
    /// Largest normalized mean absolute error of the features.
    pub features_nmae: f64,
}

impl Limits {
    /// Of a package that says nothing else.
    pub const PACKAGE: Self = Self { top1_agreement: 1.0, nmae: 0.25, features_nmae: 0.001 };
    /// Of a bare graph, whose golden vectors may have been recorded by anything.
    pub const GRAPH: Self = Self { top1_agreement: 0.93, nmae: 0.25, features_nmae: 0.001 };
}

/// What a session may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Budget {
    /// 99th percentile of one run.
    pub latency_p99: Option<std::time::Duration>,
    /// Growth of the memory of a process that loads and runs it, in bytes.
    pub memory: Option<u64>,
}

/// A constant that belongs to one installation.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constant {
    /// Its value until it is calibrated.
    pub default: f64,
    /// The smallest and the largest value that calibration may give.
    pub range: [f64; 2],
}

impl Manifest {
    /// Reads the text of a manifest; `path` is only for messages.
    ///
    /// # Errors
    /// [`DepotError::Manifest`] with file, key, what was found and what was expected.
    pub fn parse(path: &Path, text: &str) -> Result<Self, DepotError> {
        let reader = |error: toml::de::Error| DepotError::Manifest(toml_error::describe(path, text, &error));
        let fault = |check::Fault(fault)| DepotError::Manifest(format!("{}: {fault}", path.display()));
        let head: raw::Head = toml::from_str(text).map_err(reader)?;
        check::format(head.format).map_err(fault)?;
        let file: raw::File = toml::from_str(text).map_err(reader)?;
        check::manifest(file).map_err(fault)
    }
}

#[cfg(test)]
mod tests;
