//! One graph, run correctly.
//!
//! An [`Engine`] is a library that runs graphs (tract, TensorFlow Lite). It reads a file into a [`Graph`], once, and a
//! graph makes any number of [`Session`]s: optimised for a batch size and warmed, owned by one thread at a time. Values
//! go in and out through the session's own buffers in the graph's element types;
//! [`quantize`](Quantization::quantize) and [`dequantize`](Quantization::dequantize) translate by each tensor's scale
//! and zero point.
//!
//! Nothing here knows packages, proofs, threads or time. `tract.rs` and `tflite.rs` are the only files that name
//! those libraries.

use std::path::Path;

pub mod golden;
mod memory;
mod quantization;
#[cfg(feature = "tflite")]
mod tflite;
mod tract;
mod warm;

pub use memory::give_back_memory;
pub use quantization::{EdgeError, Stored, read_real, write_real, write_real_at};
#[cfg(feature = "tflite")]
pub use tflite::Tflite;
pub use tract::Tract;

/// How a graph is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// An ONNX model (`.onnx`).
    Onnx,
    /// A TensorFlow Lite flatbuffer (`.tflite`).
    Tflite,
}

impl Format {
    /// The format that a file's extension names, or none.
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "onnx" => Some(Self::Onnx),
            "tflite" => Some(Self::Tflite),
            _ => None,
        }
    }
}

/// The type of a tensor's elements, at the edges of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// 32-bit float.
    F32,
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 8-bit integer.
    U8,
}

impl std::fmt::Display for ElementType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::I8 => "i8",
            Self::U8 => "u8",
        })
    }
}

/// `real = (stored − zero_point) · scale`, for a whole tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantization {
    /// Step between two neighbouring stored values, in real units; positive and finite.
    pub scale: f32,
    /// The stored value that stands for zero.
    pub zero_point: i32,
}

/// One input or output of a graph, as loaded: every dimension is known, the batch among them.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// The name that the graph gives it.
    pub name: String,
    /// Type of the elements.
    pub element: ElementType,
    /// Dimensions, the batch first.
    pub shape: Vec<usize>,
    /// Scale and zero point of an integer tensor, where the graph tells them.
    pub quantization: Option<Quantization>,
}

impl TensorSpec {
    /// Number of elements, the whole batch counted.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Elements of a tensor, borrowed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TensorRef<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// Signed 8-bit integers.
    I8(&'a [i8]),
    /// Unsigned 8-bit integers.
    U8(&'a [u8]),
}

impl TensorRef<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::I8(values) => values.len(),
            Self::U8(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Elements of a tensor, to be written.
#[derive(Debug, PartialEq)]
pub enum TensorMut<'a> {
    /// 32-bit floats.
    F32(&'a mut [f32]),
    /// Signed 8-bit integers.
    I8(&'a mut [i8]),
    /// Unsigned 8-bit integers.
    U8(&'a mut [u8]),
}

/// What a session is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadOptions {
    /// Value of the batch dimension, at least 1.
    pub batch: usize,
    /// Threads that one run may use inside the library.
    pub threads: usize,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { batch: 1, threads: 1 }
    }
}

/// What went wrong in an engine: one sentence, with the tensor, operator or file in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The engine cannot run this graph, and says why.
    #[error("{engine} cannot load this graph: {reason}")]
    Refused {
        /// Name of the engine.
        engine: &'static str,
        /// What it met, and where.
        reason: String,
    },
    /// A run of a loaded graph failed.
    #[error("{engine} failed to run: {reason}")]
    Run {
        /// Name of the engine.
        engine: &'static str,
        /// What it met.
        reason: String,
    },
}

/// The library behind an engine, as far as a proof depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Library {
    /// Its version, as it says.
    pub version: String,
    /// SHA-256 in hex of the shared object, or none where it is linked into this binary.
    pub sha256: Option<String>,
}

/// A library that runs graphs.
pub trait Engine: Send + Sync {
    /// `tflite` or `tract`: the word in configurations, results and tables.
    fn name(&self) -> &'static str;

    /// Whether it reads this format at all.
    fn reads(&self, format: Format) -> bool;

    /// The library that does the work.
    fn library(&self) -> Library;

    /// Reads a graph, for sessions to be made of it. The bytes are not needed afterwards.
    ///
    /// # Errors
    /// [`EngineError::Refused`] if it is damaged or holds what the engine cannot do.
    fn open(&self, format: Format, graph: &[u8]) -> Result<Box<dyn Graph>, EngineError>;

    /// Opens a graph of which one session is all that is wanted.
    ///
    /// # Errors
    /// Those of [`Engine::open`] and [`Graph::session`].
    fn load(&self, format: Format, graph: &[u8], options: LoadOptions) -> Result<Box<dyn Session>, EngineError> {
        self.open(format, graph)?.session(options)
    }
}

/// A graph that was read once. Its sessions share with it and with each other what the library lets them share, and
/// live on without it.
pub trait Graph: Send + Sync {
    /// Makes a session: optimised and warmed.
    ///
    /// # Errors
    /// [`EngineError::Refused`] with what the engine cannot do, such as this batch; never a session that gives wrong
    /// answers knowingly.
    fn session(&self, options: LoadOptions) -> Result<Box<dyn Session>, EngineError>;
}

/// One graph ready to run on one engine. It moves between threads and is used by one at a time.
pub trait Session: Send {
    /// Inputs, in the graph's order.
    fn inputs(&self) -> &[TensorSpec];

    /// Outputs, in the graph's order.
    fn outputs(&self) -> &[TensorSpec];

    /// The buffer of input `index`, kept between runs; write all of it before [`Session::run`].
    ///
    /// # Panics
    /// If there is no such input.
    fn input_mut(&mut self, index: usize) -> TensorMut<'_>;

    /// Runs the graph once on what the input buffers hold. Allocates nothing that the library does not itself allocate.
    ///
    /// # Errors
    /// [`EngineError::Run`]; the session stays usable.
    fn run(&mut self) -> Result<(), EngineError>;

    /// What the last run gave for output `index`.
    ///
    /// # Panics
    /// If there is no such output.
    fn output(&self, index: usize) -> TensorRef<'_>;

    /// What a table of proofs should say beside the engine's name, such as which of the library's kernels run this
    /// graph, or none where there is nothing to tell.
    fn detail(&self) -> Option<&str> {
        None
    }
}

/// The engines of this build, the usually faster one first.
pub fn engines() -> Vec<Box<dyn Engine>> {
    vec![
        #[cfg(feature = "tflite")]
        Box::new(Tflite),
        Box::new(Tract),
    ]
}
