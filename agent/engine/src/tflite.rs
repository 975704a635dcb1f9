//! Engine `tflite`: TensorFlow Lite flatbuffers through the library's C API (crate `tflitec`).
//!
//! **Kernels.** XNNPACK runs what it can (feature `xnnpack`); the library's own kernels run the rest. A graph that
//! cannot be built with XNNPACK is built without it, and [`Session::detail`] says which it was. The C library prints
//! `INFO: Created TensorFlow Lite XNNPACK delegate for CPU.` and its own complaints on standard error; the C API that
//! would redirect them is not bound by `tflitec`.
//!
//! **Buffers.** Inputs are staged in buffers of the session and copied by [`Session::run`], because the library may
//! use an input's memory for other tensors during a run. Outputs are read in place: `tflitec` would allocate a name
//! and a shape at every look, so their addresses are kept. TFLite plans its arena when tensors are allocated and moves
//! it afterwards only for graphs with tensors of dynamic size (control flow, shapes computed from data). Such a graph
//! has outputs without memory before its first run, which is how it is known here; its addresses are read again after
//! every run, at the price of that allocation.
//!
//! **What sessions share.** The flatbuffer: one copy for a graph and all of its sessions, in which the built-in kernels
//! read their weights. XNNPACK packs a copy of them for every interpreter, which the C API gives no way to share: on the
//! int8 models of MLPerf Tiny a second session takes as much as the first, 130 to 550 kB beside flatbuffers of 52 to
//! 325 kB (anomaly-detection: 352 of 270, visual-wake-words: 548 of 325), and one for a batch of 8 takes 280 to 1,700 kB.
//!
//! **What is refused**, with the reason: edges that are neither f32, i8 nor u8 (the binding tells no scale for 16-bit
//! ones), graphs that cannot be resized to the batch that is asked for, operators that the library lacks, and graphs
//! that keep state between runs (see `warm.rs`): a Keras LSTM is converted into one unless it is unrolled.
//!
//! **Damaged files.** The library verifies the flatbuffer before it uses it, so that a truncated file is refused. A
//! graph that is well formed and yet wrong (an index out of range) can still end the process, which is why a proof
//! runs in a child process.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};

use self_cell::self_cell;
use tflitec::interpreter::{Interpreter, Options};
use tflitec::model::Model;
use tflitec::tensor::{DataType, Shape, Tensor};

use crate::warm::warm;
use crate::{
    ElementType, Engine, EngineError, Format, Graph, Library, LoadOptions, Quantization, Session, TensorMut, TensorRef,
    TensorSpec,
};

const NAME: &str = "tflite";

/// What every TFLite flatbuffer has in its bytes 4 to 7.
const IDENTIFIER: &[u8; 4] = b"TFL3";

/// XNNPACK reads weights in place, by vectors, out of a flatbuffer that its writer aligned to 16 bytes.
const ALIGNMENT: usize = 64;

/// TensorFlow Lite.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tflite;

impl Engine for Tflite {
    fn name(&self) -> &'static str {
        NAME
    }

    fn reads(&self, format: Format) -> bool {
        format == Format::Tflite
    }

    fn library(&self) -> Library {
        static LIBRARY: OnceLock<Library> = OnceLock::new();
        LIBRARY
            .get_or_init(|| {
                let version = tflitec::tf_lite_version();
                Library { version: version.to_owned(), sha256: sha256_of_object_at(version.as_ptr() as usize) }
            })
            .clone()
    }

    fn open(&self, format: Format, graph: &[u8]) -> Result<Box<dyn Graph>, EngineError> {
        if !self.reads(format) {
            return Err(refused(format!("it reads TensorFlow Lite flatbuffers, not {format:?}")));
        }
        let identifier = graph.get(4..8);
        if identifier != Some(IDENTIFIER) {
            return Err(refused(format!(
                "it is no TensorFlow Lite flatbuffer: bytes 4 to 7 must be \"TFL3\" and the file has {}",
                match identifier {
                    Some(found) => format!("\"{}\"", found.escape_ascii()),
                    None => format!("{} bytes in all", graph.len()),
                }
            )));
        }
        let model =
            OwnedModel::try_new(AlignedBytes::copy(graph), |bytes| Model::from_bytes(bytes.bytes())).map_err(|_| {
                refused("the flatbuffer is damaged or truncated: the library's verifier rejects it".to_owned())
            })?;
        Ok(Box::new(TfliteGraph(Arc::new(model))))
    }
}

fn refused(reason: String) -> EngineError {
    EngineError::Refused { engine: NAME, reason }
}

/// A flatbuffer that the library's verifier takes. The library only reads it, from as many interpreters as there are.
struct TfliteGraph(Arc<OwnedModel>);

impl Graph for TfliteGraph {
    fn session(&self, options: LoadOptions) -> Result<Box<dyn Session>, EngineError> {
        if options.batch == 0 {
            return Err(refused("the batch must be at least 1".to_owned()));
        }
        // tflitec unwraps names that are not UTF-8.
        let built = std::panic::catch_unwind(AssertUnwindSafe(|| with_best_kernels(&self.0, options)))
            .unwrap_or_else(|_| Err("the library's binding gave up on it (a tensor's name is not UTF-8?)".to_owned()));
        Ok(Box::new(built.map_err(refused)?))
    }
}

/// XNNPACK first; the library's own kernels where that fails for a reason that they may not share.
fn with_best_kernels(model: &Arc<OwnedModel>, options: LoadOptions) -> Result<TfliteSession, String> {
    if cfg!(feature = "xnnpack") {
        match TfliteSession::new(model, options, true) {
            Ok(session) => return Ok(session),
            Err(Failure::Graph(reason)) => return Err(reason),
            Err(Failure::Library(with)) => {
                return match TfliteSession::new(model, options, false) {
                    Ok(mut session) => {
                        session.detail = format!("built-in kernels ({with} with XNNPACK)");
                        Ok(session)
                    }
                    Err(Failure::Graph(reason) | Failure::Library(reason)) => Err(reason),
                };
            }
        }
    }
    TfliteSession::new(model, options, false).map_err(|(Failure::Graph(reason) | Failure::Library(reason))| reason)
}

/// Why a session could not be made.
enum Failure {
    /// The graph is at fault, whatever runs it.
    Graph(String),
    /// The library gave up; with other kernels it might not.
    Library(String),
}

/// A graph's bytes at an aligned address.
struct AlignedBytes {
    storage: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBytes {
    fn copy(bytes: &[u8]) -> Self {
        let mut storage: Vec<u8> = Vec::with_capacity(bytes.len() + ALIGNMENT);
        let start = storage.as_ptr().align_offset(ALIGNMENT);
        storage.resize(start, 0);
        // Within the capacity, so the storage stays where it was aligned.
        storage.extend_from_slice(bytes);
        Self { storage, start, length: bytes.len() }
    }

    fn bytes(&self) -> &[u8] {
        &self.storage[self.start..][..self.length]
    }
}

self_cell!(
    /// A parsed flatbuffer with the bytes that it points into.
    struct OwnedModel {
        owner: AlignedBytes,
        #[covariant]
        dependent: Model,
    }
);

self_cell!(
    /// An interpreter with the model that it runs.
    struct OwnedInterpreter {
        owner: Arc<OwnedModel>,
        #[covariant]
        dependent: Interpreter,
    }
);

/// A staged input.
enum Staged {
    F32(Vec<f32>),
    I8(Vec<i8>),
    U8(Vec<u8>),
}

/// An output's memory inside the interpreter. Valid for as long as the interpreter lives and neither runs a graph
/// with dynamic tensors nor allocates anew; both happen only inside methods of the session that then look again.
#[derive(Clone, Copy)]
struct Output {
    address: *const u8,
    element: ElementType,
    elements: usize,
}

struct TfliteSession {
    interpreter: OwnedInterpreter,
    staged: Vec<Staged>,
    outputs: Vec<Output>,
    /// Whether output addresses must be read again after each run.
    dynamic: bool,
    input_specs: Vec<TensorSpec>,
    output_specs: Vec<TensorSpec>,
    detail: String,
}

// SAFETY: `OwnedInterpreter` is Send (tflitec declares it so, and an interpreter is bound to no thread). The pointers
// in `outputs` point into memory that this interpreter owns and that moves with the session; they are read only
// through `&self` and change only through `&mut self`.
unsafe impl Send for TfliteSession {}

impl TfliteSession {
    fn new(model: &Arc<OwnedModel>, options: LoadOptions, xnnpack: bool) -> Result<Self, Failure> {
        use Failure::{Graph, Library};
        let interpreter = OwnedInterpreter::try_new(model.clone(), |model| {
            Interpreter::new(model.borrow_dependent(), Some(interpreter_options(options, xnnpack)))
        })
        .map_err(|_| {
            Library("no interpreter can be made: the graph has an operator or version that the library lacks".into())
        })?;

        let view = interpreter.borrow_dependent();
        if view.input_tensor_count() == 0 || view.output_tensor_count() == 0 {
            return Err(Graph("it has no input or no output".into()));
        }
        let shapes = batched_shapes(model, options.batch)?;
        for (index, shape) in &shapes {
            view.resize_input(*index, Shape::new(shape.clone())).map_err(|_| {
                Graph(format!("it cannot run with a batch of {}: input {index} cannot be resized", options.batch))
            })?;
        }
        view.allocate_tensors().map_err(|_| {
            Library(if shapes.is_empty() {
                "its tensors cannot be allocated: an operator refuses its inputs' types or shapes".to_owned()
            } else {
                format!(
                    "it cannot run with a batch of {}: an operator insists on the shape that was exported",
                    options.batch
                )
            })
        })?;

        let mut input_specs = Vec::new();
        let mut staged = Vec::new();
        for index in 0..view.input_tensor_count() {
            let tensor = view.input(index).map_err(|error| Library(format!("input {index}: {error}")))?;
            let spec = spec("input", &tensor).map_err(Graph)?;
            staged.push(match spec.element {
                ElementType::F32 => Staged::F32(vec![0.0; spec.elements()]),
                ElementType::I8 => Staged::I8(vec![0; spec.elements()]),
                ElementType::U8 => Staged::U8(vec![0; spec.elements()]),
            });
            input_specs.push(spec);
        }
        // Memory that is planned before the first run stays; see the module's words on buffers.
        let dynamic = (0..view.output_tensor_count()).any(|index| view.output(index).is_err());

        let mut session = Self {
            staged,
            outputs: Vec::new(),
            dynamic,
            input_specs,
            output_specs: Vec::new(),
            detail: if xnnpack { "XNNPACK" } else { "built-in kernels" }.to_owned(),
            interpreter,
        };
        // The shapes of dynamic outputs are known after a run only.
        session.invoke().map_err(|reason| Library(format!("its first run failed: {reason}")))?;
        session.describe_outputs(options.batch)?;
        warm(&mut session).map_err(Graph)?;
        // A dynamic tensor behind the last output leaves that output planned, and yet moves it when the arena grows.
        let before: Vec<*const u8> = session.outputs.iter().map(|output| output.address).collect();
        session.find_outputs().map_err(Graph)?;
        session.dynamic |= !session.outputs.iter().map(|output| output.address).eq(before);
        Ok(session)
    }

    fn describe_outputs(&mut self, batch: usize) -> Result<(), Failure> {
        let view = self.interpreter.borrow_dependent();
        for index in 0..view.output_tensor_count() {
            let tensor = view
                .output(index)
                .map_err(|_| Failure::Graph(format!("output {index} has no memory even after a run: it is empty")))?;
            let spec = spec("output", &tensor).map_err(Failure::Graph)?;
            if batch > 1 && spec.shape.first() != Some(&batch) {
                return Err(Failure::Graph(format!(
                    "it cannot run with a batch of {batch}: output '{}' stays {:?}, without a batch dimension",
                    spec.name, spec.shape
                )));
            }
            self.outputs.push(output(&tensor, &spec));
            self.output_specs.push(spec);
        }
        Ok(())
    }

    /// Copies the inputs and runs the graph.
    fn invoke(&mut self) -> Result<(), String> {
        let view = self.interpreter.borrow_dependent();
        for (index, staged) in self.staged.iter().enumerate() {
            match staged {
                Staged::F32(values) => view.copy(values, index),
                Staged::I8(values) => view.copy(values, index),
                Staged::U8(values) => view.copy(values, index),
            }
            .map_err(|error| format!("input '{}': {error}", self.input_specs[index].name))?;
        }
        view.invoke().map_err(|_| "an operator failed; the library named it on standard error".to_owned())
    }

    /// Looks where a dynamic graph's outputs are now.
    fn find_outputs(&mut self) -> Result<(), String> {
        let view = self.interpreter.borrow_dependent();
        for (index, (place, spec)) in self.outputs.iter_mut().zip(&self.output_specs).enumerate() {
            let tensor = view.output(index).map_err(|error| format!("output '{}': {error}", spec.name))?;
            if *tensor.shape().dimensions() != spec.shape {
                // The old address may be gone, and a session's specs do not change: show an empty tensor.
                place.elements = 0;
                return Err(format!(
                    "output '{}' changed its shape from {:?} to {:?}",
                    spec.name,
                    spec.shape,
                    tensor.shape().dimensions()
                ));
            }
            *place = output(&tensor, spec);
        }
        Ok(())
    }
}

impl Session for TfliteSession {
    fn inputs(&self) -> &[TensorSpec] {
        &self.input_specs
    }

    fn outputs(&self) -> &[TensorSpec] {
        &self.output_specs
    }

    fn input_mut(&mut self, index: usize) -> TensorMut<'_> {
        match &mut self.staged[index] {
            Staged::F32(values) => TensorMut::F32(values),
            Staged::I8(values) => TensorMut::I8(values),
            Staged::U8(values) => TensorMut::U8(values),
        }
    }

    fn run(&mut self) -> Result<(), EngineError> {
        let result = self.invoke();
        // After a failed run too: it may have moved the arena.
        let found = if self.dynamic { self.find_outputs() } else { Ok(()) };
        result.and(found).map_err(|reason| EngineError::Run { engine: NAME, reason })
    }

    fn output(&self, index: usize) -> TensorRef<'_> {
        let Output { address, element, elements } = self.outputs[index];
        if elements == 0 {
            return match element {
                ElementType::F32 => TensorRef::F32(&[]),
                ElementType::I8 => TensorRef::I8(&[]),
                ElementType::U8 => TensorRef::U8(&[]),
            };
        }
        // SAFETY: `address` is that of `elements` initialised elements of this type inside the interpreter (see
        // `Output` for how long; `output` for the length). The library writes them only while it runs, which takes
        // `&mut self`, and the slice borrows `self`.
        unsafe {
            match element {
                ElementType::F32 => TensorRef::F32(std::slice::from_raw_parts(address.cast(), elements)),
                ElementType::I8 => TensorRef::I8(std::slice::from_raw_parts(address.cast(), elements)),
                ElementType::U8 => TensorRef::U8(std::slice::from_raw_parts(address, elements)),
            }
        }
    }

    fn detail(&self) -> Option<&str> {
        Some(&self.detail)
    }
}

fn interpreter_options(options: LoadOptions, xnnpack: bool) -> Options {
    #[cfg(not(feature = "xnnpack"))]
    let _ = xnnpack;
    Options {
        thread_count: i32::try_from(options.threads.max(1)).unwrap_or(i32::MAX),
        #[cfg(feature = "xnnpack")]
        is_xnnpack_enabled: xnnpack,
    }
}

/// The inputs whose shape must change for this batch, with their new shapes.
///
/// Shapes can be asked for only of tensors that are allocated, and an interpreter with XNNPACK must not be resized
/// once it is (seen in 2.17.1: keyword-spotting int8 writes through a null pointer at its next run). So they are asked
/// of an interpreter of its own, with the built-in kernels.
fn batched_shapes(model: &OwnedModel, batch: usize) -> Result<Vec<(usize, Vec<usize>)>, Failure> {
    if batch == 1 {
        return Ok(Vec::new());
    }
    let library = |_| Failure::Library("its shapes cannot be told with the built-in kernels".to_owned());
    let options = interpreter_options(LoadOptions::default(), false);
    let view = Interpreter::new(model.borrow_dependent(), Some(options)).map_err(library)?;
    view.allocate_tensors().map_err(library)?;
    let mut changed = Vec::new();
    for index in 0..view.input_tensor_count() {
        let tensor = view.input(index).map_err(library)?;
        let shape = tensor.shape().dimensions();
        match shape.first() {
            Some(&first) if first == batch => {}
            Some(1) => {
                let mut shape = shape.clone();
                shape[0] = batch;
                changed.push((index, shape));
            }
            _ => {
                return Err(Failure::Graph(format!(
                    "it cannot run with a batch of {batch}: input '{}' is {shape:?}, whose first dimension is no \
                     batch of 1",
                    tensor.name()
                )));
            }
        }
    }
    Ok(changed)
}

fn spec(edge: &str, tensor: &Tensor<'_>) -> Result<TensorSpec, String> {
    let name = tensor.name().to_owned();
    let element = match tensor.data_type() {
        DataType::Float32 => ElementType::F32,
        DataType::Int8 => ElementType::I8,
        DataType::UInt8 => ElementType::U8,
        DataType::Int16 => {
            return Err(format!(
                "{edge} '{name}' holds 16-bit integers, and the library's binding tells no scale for them; export the \
                 graph with f32, i8 or u8 edges"
            ));
        }
        other => {
            return Err(format!("{edge} '{name}' holds elements of type {other:?}; f32, i8 and u8 are supported"));
        }
    };
    let quantization = tensor.quantization_parameters().and_then(|found| match element {
        ElementType::F32 => None,
        ElementType::I8 => Quantization::checked::<i8>(found.scale, found.zero_point),
        ElementType::U8 => Quantization::checked::<u8>(found.scale, found.zero_point),
    });
    Ok(TensorSpec { name, element, shape: tensor.shape().dimensions().clone(), quantization })
}

/// Where an output's elements are. Their number is what the library says that the memory holds, which is what the
/// specification says too, or the shorter of both.
fn output(tensor: &Tensor<'_>, spec: &TensorSpec) -> Output {
    let (address, held) = match spec.element {
        ElementType::F32 => (tensor.data::<f32>().as_ptr().cast(), tensor.data::<f32>().len()),
        ElementType::I8 => (tensor.data::<i8>().as_ptr().cast(), tensor.data::<i8>().len()),
        ElementType::U8 => (tensor.data::<u8>().as_ptr(), tensor.data::<u8>().len()),
    };
    Output { address, element: spec.element, elements: held.min(spec.elements()) }
}

/// SHA-256 in hex of the shared object that is mapped at `address`, or none if that is no file of its own (the
/// library is linked into the program, or its file was replaced since).
fn sha256_of_object_at(address: usize) -> Option<String> {
    use sha2::{Digest, Sha256};
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let path = mapped_file(&maps, address)?;
    if std::fs::canonicalize(path).ok() == std::env::current_exe().ok() {
        return None;
    }
    let bytes = std::fs::read(path).ok()?;
    Some(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The file that `maps`, in the format of `/proc/self/maps`, names for the mapping with `address` in it.
fn mapped_file(maps: &str, address: usize) -> Option<&str> {
    maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (from, to) = range.split_once('-')?;
        let range = usize::from_str_radix(from, 16).ok()?..usize::from_str_radix(to, 16).ok()?;
        let path = &rest[rest.find('/')?..];
        (range.contains(&address) && !path.ends_with(" (deleted)")).then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mapping_that_holds_an_address_names_its_file() {
        let maps = "\
7f0000000000-7f0000001000 r--p 00000000 fe:00 12 /usr/lib/libc.so.6\n\
7f0000001000-7f0000003000 r-xp 00001000 fe:00 13 /opt/my libs/libtensorflowlite_c.so\n\
7f0000003000-7f0000004000 rw-p 00000000 00:00 0 \n\
7f0000004000-7f0000005000 r-xp 00001000 fe:00 14 /opt/old.so (deleted)\n\
7ffc00000000-7ffc00001000 rw-p 00000000 00:00 0 [stack]\n";
        assert_eq!(mapped_file(maps, 0x7f00_0000_2fff), Some("/opt/my libs/libtensorflowlite_c.so"));
        assert_eq!(mapped_file(maps, 0x7f00_0000_0000), Some("/usr/lib/libc.so.6"));
        assert_eq!(mapped_file(maps, 0x7f00_0000_3000), None);
        assert_eq!(mapped_file(maps, 0x7f00_0000_4000), None);
        assert_eq!(mapped_file(maps, 1), None);
    }

    #[test]
    fn the_library_tells_its_version_and_digest() {
        let library = Tflite.library();
        assert!(library.version.split('.').count() >= 3, "{}", library.version);
        let digest = library.sha256.expect("the library is a shared object");
        assert!(digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()), "{digest}");
    }

    #[test]
    fn aligned_bytes_are_the_bytes_at_an_aligned_address() {
        for length in [0, 1, 63, 4096] {
            let bytes: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let aligned = AlignedBytes::copy(&bytes);
            assert_eq!(aligned.bytes(), bytes);
            assert_eq!(aligned.bytes().as_ptr() as usize % ALIGNMENT, 0);
        }
    }

    #[test]
    fn what_is_no_flatbuffer_is_refused_with_what_was_found() {
        for (bytes, says) in [(&b"short"[..], "5 bytes in all"), (b"\x08\0\0\0ONNXwhatever", "\"ONNX\"")] {
            let error = Tflite.load(Format::Tflite, bytes, LoadOptions::default()).err().expect("refused");
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn a_flatbuffer_of_rubbish_is_refused() {
        let mut rubbish = vec![0xA5; 256];
        rubbish[..8].copy_from_slice(b"\x10\0\0\0TFL3");
        let error = Tflite.load(Format::Tflite, &rubbish, LoadOptions::default()).err().expect("refused");
        assert!(error.to_string().contains("damaged"), "{error}");
    }
}
