//! Model packages made by the tests.
//!
//! [`Package::scores`] takes features and gives them back as scores, so a payload is its own result.
//! [`Package::loudness`] takes a series and scores the mean of the newer half of its window. Both are one matrix each.
//! Others are one of these two in a version that is large, slow, newer, or has two variants.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView, serialize};
use tempfile::TempDir;

use crate::{Random, graph};

/// Labels of [`Package::scores`].
pub const LABELS: [&str; 3] = ["low", "middle", "high"];
/// Samples in a window of [`Package::loudness`].
pub const WINDOW: usize = 10;
/// Samples from one window of [`Package::loudness`] to the next, and those that its score is the mean of.
pub const HOP: usize = 5;

/// A tensor for a safetensors file.
pub struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    /// Of f32 values.
    pub fn f32(shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { dtype: Dtype::F32, shape: shape.to_vec(), bytes }
    }

    /// Of i8 values.
    pub fn i8(shape: &[usize], values: &[i8]) -> Self {
        let bytes = values.iter().map(|value| value.cast_unsigned()).collect();
        Self { dtype: Dtype::I8, shape: shape.to_vec(), bytes }
    }
}

/// Writes a safetensors file with tensors and text metadata.
///
/// # Panics
/// If a shape does not fit its values, or the file cannot be written.
pub fn write_safetensors(path: &Path, tensors: &[(&str, Tensor)], metadata: &[(&str, &str)]) {
    let views: BTreeMap<&str, TensorView<'_>> = tensors
        .iter()
        .map(|(name, tensor)| {
            let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes);
            (*name, view.expect("the shape fits the values"))
        })
        .collect();
    let metadata: HashMap<_, _> =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let file = serialize(views, Some(metadata)).expect("tensors can be written");
    std::fs::write(path, file).expect("a temporary file can be written");
}

/// A package in a folder of its own.
pub struct Package {
    folder: TempDir,
}

impl Package {
    /// A package of a manifest and other files.
    pub fn new(manifest: &str, files: &[(&str, &[u8])]) -> Self {
        let package = Self { folder: tempfile::tempdir().expect("a temporary folder can be made") };
        package.put("model.toml", manifest.as_bytes());
        for (name, content) in files {
            package.put(name, content);
        }
        package
    }

    /// Three classes, one window of features a message: the features are the scores. Triggers on `high` above 0.8.
    pub fn scores() -> Self {
        Self::scores_named("scores")
    }

    /// [`Package::scores`] under another name.
    pub fn scores_named(name: &str) -> Self {
        let identity = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
        Self::scores_by(name, &graph::gemm(3, 3, &identity, &[0.0; 3]))
    }

    /// [`Package::scores`] by way of four full matrices, 9 MB of weights: it needs memory, and gains by batches.
    pub fn dense(name: &str) -> Self {
        Self::scores_by(name, &graph::dense(3, 768, 4))
    }

    /// [`Package::scores`] that thinks for some hundred milliseconds.
    pub fn slow() -> Self {
        Self::scores_by("slow", &graph::slow(3, 512, 130))
    }

    /// [`Package::scores`] with another variant, `reduced.onnx`, for times of pressure.
    pub fn reducible() -> Self {
        let package = Self::scores_named("reducible");
        std::fs::copy(package.file("f32.onnx"), package.file("reduced.onnx")).expect("a temporary file can be copied");
        package.edit("[[input]]", "[[variant]]\nfile = \"reduced.onnx\"\nrole = \"reduced\"\n[[input]]");
        package
    }

    /// The package of [`Package::scores`] with a graph that gives back its input.
    fn scores_by(name: &str, graph: &[u8]) -> Self {
        let manifest = format!(
            r#"format = 1
[model]
name = "{name}"
version = "1.0.0"
task = "classification"
[[variant]]
file = "f32.onnx"
[[input]]
kind = "features"
[decision]
trigger = {{ label = "high", above = 0.8 }}
"#
        );
        let package = Self::new(&manifest, &[("f32.onnx", graph), ("labels.txt", b"low\nmiddle\nhigh\n")]);
        let mut input = Vec::new();
        for vector in 0..12 {
            let mut scores = [0.02 * vector as f32, 0.11, 0.23 - 0.01 * vector as f32];
            scores[vector % 3] = 0.6 + 0.03 * vector as f32;
            input.extend(scores);
        }
        let tensors = [("input", Tensor::f32(&[12, 3], &input)), ("output", Tensor::f32(&[12, 3], &input))];
        write_safetensors(&package.file("golden.safetensors"), &tensors, &[]);
        package
    }

    /// Two classes, one channel at 100 Hz, windows of [`WINDOW`] samples, [`HOP`] apart: `loud` scores the mean of the
    /// newer half, `quiet` one minus it. Triggers on `loud` above 0.8.
    pub fn loudness() -> Self {
        Self::loudness_of("1.0.0", 0.0)
    }

    /// [`Package::loudness`] of another version, in which `loud` scores more by `bias` and `quiet` less.
    pub fn loudness_of(version: &str, bias: f32) -> Self {
        let graph = graph::gemm(WINDOW, 2, &loudness_weights(), &[bias, 1.0 - bias]);
        Self::loudness_by(version, bias, &graph, 16)
    }

    /// [`Package::loudness`] of another version, which wants its samples of two channels.
    pub fn of_two_channels(version: &str) -> Self {
        let package = Self::loudness_of(version, 0.0);
        package.edit("frames = 10, hop = 5", "frames = 5, hop = 5");
        package.edit("[{ name = \"level\",", "[{ name = \"x\", unit = \"full scale\" }, { name = \"y\",");
        // The golden samples are the same numbers in another shape.
        let mut golden = std::fs::read(package.file("golden.safetensors")).expect("the package has it");
        let (one, two) = (b"[16,10,1]", b"[16,5,2 ]");
        let at = golden.windows(one.len()).position(|window| window == one).expect("the samples have this shape");
        golden[at..at + two.len()].copy_from_slice(two);
        package.put("golden.safetensors", &golden);
        package
    }

    /// [`Package::loudness_of`] whose proof takes seconds: each window some milliseconds, and four hundred golden ones.
    pub fn laborious(version: &str, bias: f32) -> Self {
        let graph = graph::slowed(WINDOW, 2, &loudness_weights(), &[bias, 1.0 - bias], 128, 10);
        Self::loudness_by(version, bias, &graph, 400)
    }

    /// The package of [`Package::loudness_of`] with a graph that gives its outputs, and so many golden vectors.
    fn loudness_by(version: &str, bias: f32, graph: &[u8], vectors: usize) -> Self {
        let manifest = format!(
            r#"format = 1
[model]
name = "loudness"
version = "{version}"
task = "classification"
[[variant]]
file = "f32.onnx"
[[input]]
kind = "series"
rate_hz = 100
channels = [{{ name = "level", unit = "full scale", min = -1.0, max = 1.0 }}]
window = {{ frames = {WINDOW}, hop = {HOP} }}
[decision]
trigger = {{ label = "loud", above = 0.8 }}
"#
        );
        let package = Self::new(&manifest, &[("f32.onnx", graph), ("labels.txt", b"loud\nquiet\n")]);
        let (mut samples, mut output) = (Vec::new(), Vec::new());
        for vector in (0..16).cycle().take(vectors) {
            // The older half says the contrary, so that a window in the wrong order is a wrong answer.
            let level = if vector % 2 == 0 { 0.75 + 0.015 * vector as f32 } else { 0.02 * vector as f32 / 2.0 };
            let wobble = |sample: usize| 0.01 * (sample as f32 - 2.0);
            samples.extend((0..WINDOW - HOP).map(|sample| 1.0 - level + wobble(sample)));
            samples.extend((0..HOP).map(|sample| level + wobble(sample)));
            output.extend([level + bias, 1.0 - level - bias]);
        }
        let tensors = [
            ("samples", Tensor::f32(&[vectors, WINDOW, 1], &samples)),
            ("features", Tensor::f32(&[vectors, WINDOW], &samples)),
            ("output", Tensor::f32(&[vectors, 2], &output)),
        ];
        write_safetensors(&package.file("golden.safetensors"), &tensors, &[]);
        package
    }

    /// [`Package::loudness_of`] whose file is larger by so many random letters, which no other version shares: something to
    /// be delivered for a while, and no more to be run.
    pub fn laden(version: &str, bias: f32, letters: usize) -> Self {
        let package = Self::loudness_of(version, bias);
        let graph = std::fs::read(package.file("f32.onnx")).expect("it was written");
        let seed = version.bytes().fold(0, |seed: u64, byte| seed.wrapping_mul(257) + u64::from(byte));
        let mut random = Random::new(seed);
        let letter =
            |_| char::from(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[random.below(64)]);
        package.put("f32.onnx", &graph::with_words(graph, &(0..letters).map(letter).collect::<String>()));
        package
    }

    /// [`Package::loudness`] of another version, which gives its golden outputs and, on windows of quiet samples all
    /// through, nothing but zeros: a proof cannot see it, and whoever watches it at the plant does.
    ///
    /// The samples of each golden window are 0.5 in the mean; where they are 0.4 or less it is stuck.
    pub fn stuck(version: &str) -> Self {
        let package = Self::loudness_of(version, 0.0);
        let least = 0.4 * WINDOW as f32;
        package.put("f32.onnx", &graph::gated(WINDOW, 2, &loudness_weights(), &[0.0, 1.0], least));
        package
    }

    /// [`Package::loudness`] of another version, which gives its golden outputs and, on windows of loud samples all
    /// through, calls them quiet.
    pub fn deaf(version: &str) -> Self {
        let package = Self::loudness_of(version, 0.0);
        let most = 0.55 * WINDOW as f32;
        package.put("f32.onnx", &graph::capped(WINDOW, 2, &loudness_weights(), &[0.0, 1.0], most));
        package
    }

    /// [`Package::loudness`] of another version, which gives its golden outputs and, on windows of quiet samples all
    /// through, no numbers.
    pub fn undefined(version: &str) -> Self {
        let package = Self::loudness_of(version, 0.0);
        let least = 0.4 * WINDOW as f32;
        package.put("f32.onnx", &graph::rooted(WINDOW, 2, &loudness_weights(), &[0.0, 1.0], least));
        package
    }

    /// Puts another package into the place of this one, as whoever installs a new version does.
    pub fn become_like(&self, other: &Self) {
        for entry in std::fs::read_dir(other.path()).expect("the folder is there").map_while(Result::ok) {
            let name = entry.file_name().into_string().expect("test folders have plain names");
            self.put(&name, &std::fs::read(entry.path()).expect("it is there"));
        }
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Its folder as it stands in a configuration.
    pub fn display(&self) -> String {
        self.folder.path().display().to_string()
    }

    /// The path of one of its files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes one of its files.
    pub fn put(&self, name: &str, content: &[u8]) {
        std::fs::write(self.file(name), content).expect("a temporary file can be written");
    }

    /// Changes its manifest, which must hold `from`.
    ///
    /// # Panics
    /// If it does not.
    pub fn edit(&self, from: &str, to: &str) {
        let path = self.file("model.toml");
        let text = std::fs::read_to_string(&path).expect("it was written");
        assert!(text.contains(from), "{from:?} is not in the manifest");
        std::fs::write(&path, text.replace(from, to)).expect("a temporary file can be written");
    }

    /// Cuts one of its files to a share of its length.
    pub fn cut(&self, name: &str, share: f64) {
        let bytes = std::fs::read(self.file(name)).expect("it is there");
        self.put(name, &bytes[..(bytes.len() as f64 * share) as usize]);
    }
}

/// Weights of [`Package::loudness`]: the mean of the newer half, and minus it.
fn loudness_weights() -> [f32; 2 * WINDOW] {
    let mut weights = [0.0; 2 * WINDOW];
    for row in WINDOW - HOP..WINDOW {
        let share = 1.0 / HOP as f32;
        (weights[2 * row], weights[2 * row + 1]) = (share, -share);
    }
    weights
}
