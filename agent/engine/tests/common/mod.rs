//! What the engine's integration tests share: finding material, reading golden vectors, running them.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use limpet_engine::{Engine, EngineError, Format, LoadOptions, Session, TensorMut, TensorRef, engines};
use safetensors::{Dtype, SafeTensors};

/// The repository.
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// A folder of the reference material beside the repository, or none, with a word on standard output.
pub fn shared(folder: &str) -> Option<PathBuf> {
    let base = std::env::var_os("LIMPET_SHARED").map_or_else(|| root().join("../shared"), PathBuf::from);
    let path = base.join(folder);
    if path.is_dir() {
        return Some(path);
    }
    println!("skipped: needs ../shared/{folder}");
    None
}

/// Elements of a stored tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    F32(Vec<f32>),
    I8(Vec<i8>),
    U8(Vec<u8>),
}

impl Values {
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::I8(v) => v.len(),
            Self::U8(v) => v.len(),
        }
    }

    pub fn empty_like(&self) -> Self {
        match self {
            Self::F32(_) => Self::F32(Vec::new()),
            Self::I8(_) => Self::I8(Vec::new()),
            Self::U8(_) => Self::U8(Vec::new()),
        }
    }

    /// As numbers. Errors relative to a spread do not depend on the scale, so an integer stands for itself.
    pub fn numbers(&self) -> Vec<f32> {
        match self {
            Self::F32(v) => v.clone(),
            Self::I8(v) => v.iter().map(|&x| f32::from(x)).collect(),
            Self::U8(v) => v.iter().map(|&x| f32::from(x)).collect(),
        }
    }

    fn extend(&mut self, from: TensorRef<'_>) -> Result<(), String> {
        match (self, from) {
            (Self::F32(to), TensorRef::F32(from)) => to.extend_from_slice(from),
            (Self::I8(to), TensorRef::I8(from)) => to.extend_from_slice(from),
            (Self::U8(to), TensorRef::U8(from)) => to.extend_from_slice(from),
            (to, _) => return Err(format!("the output's type is not the golden one ({to:?})")),
        }
        Ok(())
    }

    fn copy(&self, from: usize, to: TensorMut<'_>) -> Result<(), String> {
        match (self, to) {
            (Self::F32(v), TensorMut::F32(to)) => to.copy_from_slice(&v[from..][..to.len()]),
            (Self::I8(v), TensorMut::I8(to)) => to.copy_from_slice(&v[from..][..to.len()]),
            (Self::U8(v), TensorMut::U8(to)) => to.copy_from_slice(&v[from..][..to.len()]),
            (_, to) => return Err(format!("the input's type is not the golden one ({to:?})")),
        }
        Ok(())
    }
}

/// Golden vectors: tensors by name, the first axis of each the vectors.
pub struct Golden {
    pub vectors: usize,
    pub tensors: BTreeMap<String, Values>,
}

impl Golden {
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut vectors = 0;
        let tensors = file
            .tensors()
            .into_iter()
            .map(|(name, view)| {
                vectors = view.shape()[0];
                let data = view.data();
                let values = match view.dtype() {
                    Dtype::F32 => {
                        Values::F32(data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect())
                    }
                    Dtype::I8 => Values::I8(data.iter().map(|&b| b as i8).collect()),
                    Dtype::U8 => Values::U8(data.to_vec()),
                    // Edges that no engine takes: their element count is all that matters.
                    _ => Values::U8(vec![0; data.len() * 8 / view.dtype().bitsize()]),
                };
                (name, values)
            })
            .collect();
        Self { vectors, tensors }
    }

    /// The tensor for an edge: `input`, or `input.<tensor>` where there are several.
    pub fn of(&self, kind: &str, tensor: &str) -> Option<&Values> {
        self.tensors.get(&format!("{kind}.{tensor}")).or_else(|| self.tensors.get(kind))
    }
}

/// Loads a file by its extension.
pub fn load(engine: &dyn Engine, path: &Path, batch: usize) -> Result<Box<dyn Session>, EngineError> {
    let format = Format::of(path).expect("a graph's extension");
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    engine.load(format, &bytes, LoadOptions { batch, threads: 1 })
}

/// Runs all golden inputs, a batch at a time, and gives every output whole.
pub fn run(session: &mut dyn Session, golden: &Golden) -> Result<Vec<Values>, String> {
    let inputs = session.inputs().to_vec();
    let outputs = session.outputs().to_vec();
    let find =
        |kind: &str, name: &str| golden.of(kind, name).ok_or_else(|| format!("golden vectors hold no {kind} '{name}'"));
    let mut given: Vec<Values> =
        outputs.iter().map(|o| find("output", &o.name).map(Values::empty_like)).collect::<Result<_, _>>()?;
    let first = find("input", &inputs[0].name)?;
    let per_vector = first.len() / golden.vectors;
    let batch = inputs[0].elements() / per_vector;
    if batch == 0 || batch * per_vector != inputs[0].elements() {
        return Err(format!("input '{}' takes {:?}, not whole vectors", inputs[0].name, inputs[0].shape));
    }
    for start in (0..golden.vectors - golden.vectors % batch).step_by(batch) {
        for (index, input) in inputs.iter().enumerate() {
            let values = find("input", &input.name)?;
            values.copy(start * values.len() / golden.vectors, session.input_mut(index))?;
        }
        session.run().map_err(|e| e.to_string())?;
        for (index, values) in given.iter_mut().enumerate() {
            values.extend(session.output(index))?;
        }
    }
    Ok(given)
}

/// The engines that read a file.
pub fn readers(path: &Path) -> Vec<Box<dyn Engine>> {
    let format = Format::of(path).expect("a graph's extension");
    engines().into_iter().filter(|engine| engine.reads(format)).collect()
}

/// The int8 graphs of MLPerf Tiny with this extension, or the repository's own where they are not at hand.
pub fn int8_graphs(file: &str) -> Vec<PathBuf> {
    match shared("models/mlperf-tiny") {
        Some(folder) => {
            let tasks = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path().join(file));
            let mut files: Vec<PathBuf> = tasks.filter(|file| file.is_file()).collect();
            files.sort();
            assert_eq!(files.len(), 5);
            files
        }
        None => vec![root().join("models/motor-health").join(file)],
    }
}

/// Loads, runs and unloads graphs a thousand times in all, and asserts that resident memory is then at most a tenth above
/// what it was after the first fifty; or else, that another thousand add no tenth to it. It may be below: the kernel takes
/// pages of the program's file back when it likes.
///
/// Sessions are made on this thread and run and dropped on another, as in a daemon: glibc has an arena for each.
pub fn a_thousand_loads_leave_memory_as_it_was(engine: &dyn Engine, files: &[PathBuf]) {
    const FIRST: usize = 50;
    const LOADS: usize = 1000;
    let graphs: Vec<(Format, Vec<u8>)> = files
        .iter()
        .map(|file| (Format::of(file).expect("a graph's extension"), std::fs::read(file).expect("it was found")))
        .collect();
    let (hand_over, taken) = mpsc::channel::<Box<dyn Session>>();
    let (done, dropped) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            for mut session in taken {
                session.run().expect("a warmed session runs");
                drop(session);
                done.send(()).expect("the other thread waits");
            }
        });
        let loads = |range: std::ops::RangeInclusive<usize>| {
            for load in range {
                let (format, bytes) = &graphs[load % graphs.len()];
                let graph = engine.open(*format, bytes).expect("an int8 graph");
                // Now and then a plan for a batch too, of another graph each time.
                for batch in if load % 7 == 0 { &[1, 2][..] } else { &[1] } {
                    let session =
                        graph.session(LoadOptions { batch: *batch, threads: 1 }).expect("these graphs take a batch");
                    hand_over.send(session).expect("the other thread lives");
                    dropped.recv().expect("the other thread lives");
                }
            }
            at_rest()
        };
        let mut memory = vec![loads(1..=FIRST), loads(FIRST + 1..=LOADS)];
        let grows = |memory: &[usize]| memory[memory.len() - 1] * 10 > memory[memory.len() - 2] * 11;
        if grows(&memory) {
            // A leak goes on at the same pace. The allocator's arenas, one a thread, settle once (seen: 2 MB in one run
            // of many).
            memory.push(loads(1..=LOADS));
        }
        println!("{}: {memory:?} kB after {FIRST} loads, and each {LOADS} more", engine.name());
        assert!(!grows(&memory), "{memory:?} kB after {FIRST} loads, and each {LOADS} more");
        drop(hand_over);
    });
}

/// Resident memory of this process once freed memory was given back, in kB.
pub fn at_rest() -> usize {
    limpet_engine::give_back_memory();
    resident()
}

/// Resident memory of this process, in kB.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("a Linux system");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("every process has it");
    line.trim().trim_end_matches("kB").trim().parse().expect("a number of kB")
}
