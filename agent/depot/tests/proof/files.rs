//! Packages, golden vectors and a graph, made for the tests.

use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// Scores of six vectors, each class twice.
pub const SCORES: [[f32; 3]; 6] =
    [[0.9, 0.06, 0.04], [0.1, 0.8, 0.1], [0.02, 0.08, 0.9], [0.7, 0.2, 0.1], [0.05, 0.85, 0.1], [0.1, 0.2, 0.7]];

pub fn flat(vectors: &[[f32; 3]]) -> Vec<f32> {
    vectors.iter().flatten().copied().collect()
}

/// Writes a safetensors file of `f32` tensors with three elements a vector.
pub fn write_golden(path: &Path, tensors: &[(&str, Vec<f32>)]) {
    write_vectors(path, tensors, None);
}

/// Writes a safetensors file of `f32` tensors with so many vectors, or with three elements in each.
pub fn write_vectors(path: &Path, tensors: &[(&str, Vec<f32>)], vectors: Option<usize>) {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, values)| values.iter().flat_map(|value| value.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, values), bytes)| {
        let vectors = vectors.unwrap_or(values.len() / 3);
        let shape = vec![vectors, values.len() / vectors];
        (*name, TensorView::new(Dtype::F32, shape, bytes).expect("the shape fits"))
    });
    let file = safetensors::serialize(views, None).expect("plain tensors");
    std::fs::write(path, file).expect("the folder is ours");
}

/// A package in a folder of its own.
pub struct Folder(pub tempfile::TempDir);

impl Folder {
    /// A classification of three classes whose graph gives its input back, in the named variants (file, content).
    pub fn echo(variants: &[(&str, &[u8])]) -> Self {
        let folder = Self(tempfile::tempdir().expect("a folder for temporary files"));
        let mut manifest = "format = 1\n[model]\nname = \"echo\"\nversion = \"1.0.0\"\ntask = \"classification\"\n\
                            [[input]]\nkind = \"features\"\n"
            .to_owned();
        for (file, graph) in variants {
            manifest.push_str(&format!("[[variant]]\nfile = \"{file}\"\n"));
            folder.write(file, graph);
        }
        folder.write("model.toml", manifest.as_bytes());
        folder.write("labels.txt", b"a\nb\nc\n");
        folder.golden(&[("input", flat(&SCORES)), ("output", flat(&SCORES))]);
        folder
    }

    /// As [`Folder::echo`], from samples: the front end doubles them.
    pub fn doubled(graph: &[u8]) -> Self {
        let folder = Self::echo(&[("a.onnx", graph)]);
        folder.edit("model.toml", |manifest| {
            manifest.replace(
                "kind = \"features\"",
                "kind = \"series\"\nrate_hz = 100\nchannels = [{ name = \"x\" }]\nwindow = { frames = 3, hop = 1 }\n\
                 front_end = [{ scale_offset = { scale = 2.0 } }]",
            )
        });
        let half: Vec<f32> = flat(&SCORES).iter().map(|value| value / 2.0).collect();
        folder.golden(&[("samples", half), ("features", flat(&SCORES)), ("output", flat(&SCORES))]);
        folder
    }

    /// An anomaly model that is scored by its reconstruction, which is half of what goes in.
    pub fn anomaly(graph: &[u8], decision: &str) -> Self {
        let folder = Self::echo(&[("a.onnx", graph)]);
        folder.edit("model.toml", |manifest| {
            manifest.replace("\"classification\"", "\"anomaly\"")
                + &format!("[decision]\nscore = \"reconstruction_mse\"\n{decision}\n")
        });
        let halves: Vec<f32> = flat(&SCORES).iter().map(|value| value / 2.0).collect();
        folder.golden(&[("input", flat(&SCORES)), ("output", halves)]);
        folder
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path().join(name), bytes).expect("the folder is ours");
    }

    pub fn golden(&self, tensors: &[(&str, Vec<f32>)]) {
        write_golden(&self.path().join("golden.safetensors"), tensors);
    }

    pub fn edit(&self, name: &str, edit: impl FnOnce(String) -> String) {
        let text = std::fs::read_to_string(self.path().join(name)).expect("the file is there");
        self.write(name, edit(text).as_bytes());
    }
}

/// The shared reference material, if it is there.
pub fn shared() -> Option<PathBuf> {
    let folder = std::env::var_os("LIMPET_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"), PathBuf::from);
    let found = folder.join("models/mlperf-tiny").is_dir();
    if !found {
        println!("skipped: needs ../shared/models");
    }
    found.then_some(folder)
}

/// An ONNX model with one `MatMul` of `x` \[1, 3\] with a constant \[3, 3\], written as protocol buffers by hand.
pub fn matmul_onnx(weights: [[f32; 3]; 3]) -> Vec<u8> {
    let raw: Vec<u8> = weights.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
    let value = |name: &str| {
        let dims = [number(1, 1), number(1, 3)].map(|dim| bytes(1, &dim)).concat();
        let tensor = [number(1, 1), bytes(2, &dims)].concat();
        [bytes(1, name.as_bytes()), bytes(2, &bytes(1, &tensor))].concat()
    };
    let node = [bytes(1, b"x"), bytes(1, b"w"), bytes(2, b"y"), bytes(4, b"MatMul")].concat();
    let constant = [number(1, 3), number(1, 3), number(2, 1), bytes(8, b"w"), bytes(9, &raw)].concat();
    let graph =
        [bytes(1, &node), bytes(2, b"g"), bytes(5, &constant), bytes(11, &value("x")), bytes(12, &value("y"))].concat();
    [number(1, 8), bytes(8, &number(2, 13)), bytes(7, &graph)].concat()
}

fn varint(mut value: usize) -> Vec<u8> {
    let mut out = Vec::new();
    while value > 127 {
        out.push((value & 127) as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn number(field: usize, value: usize) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

fn bytes(field: usize, value: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(value.len()), value.to_vec()].concat()
}
