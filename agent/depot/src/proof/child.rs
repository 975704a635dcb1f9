//! The process that proves one variant on one engine: it loads, runs, judges, and ends.
//!
//! It is the running program again, started with one argument that nothing else uses. Standard input: a
//! `Job` as JSON after its length (`u32`, little-endian), the graph, the golden vectors. Standard output: one
//! `Message` a line, so the parent knows how far it came if it ends early. What the libraries print goes to standard
//! error, wherever they meant it to go.
//!
//! Memory is measured before the golden vectors are read and before anything is judged, so that it is the session's.
//!
//! What was found is told before batches are tried, so one that crashes or hangs the engine costs only what larger
//! batches would have gained.
//!
//! A panic ends the process, after it has said why: the programs that ship do not unwind. While a graph is loaded that is a
//! refusal by the engine, as tract's panics are about graphs that make no sense.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use limpet_engine::{Engine, Format, LoadOptions, Session, TensorMut};
use rustix::process::{Resource, Rlimit, Signal};
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};

use super::judge::{Case, Judged};
use super::{BatchCost, IngestCost, batch, measure};
use crate::golden::Golden;
use crate::manifest::{self, Limits, Manifest};

/// The argument that makes a program a proof child.
pub(super) const MARKER: &str = "--limpet-proof-child";
/// Runs before memory is read and time is taken.
const WARM_UP_RUNS: usize = 3;
/// The front end is timed for this fraction of the time for runs.
const INGEST_SHARE: u32 = 4;
/// How far a child steps back behind everything else.
const NICE: i32 = 19;
/// Exit code of a child that panicked, as of any Rust program.
const PANICKED: i32 = 101;
/// Largest job that a child takes; its graph and golden vectors come after it.
const JOB_MAX: u32 = 64 << 20;

/// What a child is to do.
#[derive(Serialize, Deserialize)]
pub(super) struct Job {
    pub engine: String,
    pub onnx: bool,
    /// The manifest's text and the labels; none for a bare graph.
    pub package: Option<(String, Vec<String>)>,
    pub golden_file: String,
    pub limits: Limits,
    pub graph_bytes: u64,
    pub golden_bytes: u64,
    pub timing: Duration,
    /// When the parent will end it.
    pub wall: Duration,
    /// Whether batches are to be tried.
    pub batches: bool,
    pub data_bytes: u64,
    pub cpu_seconds: u64,
    /// Where to write what the graph gave.
    pub outputs: Option<PathBuf>,
}

/// What a child says.
#[derive(Serialize, Deserialize)]
pub(super) enum Message {
    /// What it does from here on, for the reason if it does not get any further.
    Doing(Doing),
    /// The variant cannot be judged: the engine does not take it, or the vectors do not fit it or prove nothing.
    Refused { load_ms: Option<f64>, reason: String },
    /// What was found without batches: the last message, unless they are to be tried.
    Done(Measured),
    /// A size that is right and worth it.
    Batch(BatchCost),
    /// Why there are no more: the last message.
    BatchesEnd(String),
}

#[derive(Serialize, Deserialize, Clone, Copy)]
pub(super) enum Doing {
    Loading,
    Running,
    /// A batch of this size.
    Batch(usize),
}

impl Doing {
    pub fn word(self) -> String {
        match self {
            Self::Loading => "loading".to_owned(),
            Self::Running => "running".to_owned(),
            Self::Batch(size) => format!("trying a batch of {size}"),
        }
    }
}

/// What was measured.
#[derive(Serialize, Deserialize)]
pub(super) struct Measured {
    pub load_ms: f64,
    pub memory_bytes: Option<u64>,
    pub p50_us: f64,
    pub mean_us: f64,
    pub p99_us: f64,
    pub runs: usize,
    pub ingest: Option<IngestCost>,
    pub top1_agreement: Option<f64>,
    // Text, because JSON has no infinity.
    pub mean_abs_error: String,
    pub nmae: String,
    pub faults: Vec<String>,
    pub detail: Option<String>,
}

/// Does a proof's work and ends the process, if it was started as a proof child; else returns at once. Every program
/// that proves packages calls this first thing in `main`.
pub fn run_if_proof_child() {
    run_if_proof_child_with(limpet_engine::engines);
}

/// [`run_if_proof_child`] with other engines.
pub fn run_if_proof_child_with(engines: impl FnOnce() -> Vec<Box<dyn Engine>>) {
    if std::env::args_os().nth(1).is_none_or(|argument| argument != MARKER) {
        return;
    }
    let code = match serve(engines) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}");
            1
        }
    };
    std::process::exit(code);
}

fn serve(engines: impl FnOnce() -> Vec<Box<dyn Engine>>) -> io::Result<()> {
    let begun = Instant::now();
    // A sandbox may forbid any of these. Without them a proof is only less well contained.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    // What serves meanwhile goes first. Times are CPU time, so they do not change for it.
    let _ = rustix::process::nice(NICE);
    let mut out = Lines(File::from(take_stdout()?));
    let mut stdin = io::stdin().lock();
    let job = read_job(&mut stdin)?;
    limit(Resource::Core, 0, 0);
    limit(Resource::Data, job.data_bytes, 0);
    // At the hard limit the kernel kills, as somebody else would.
    limit(Resource::Cpu, job.cpu_seconds, 5);
    let graph = read_exactly(&mut stdin, job.graph_bytes)?;
    let loaded = answer_panics(&out, job.engine.clone())?;
    out.send(&Message::Doing(Doing::Loading))?;
    let Some(engine) = engines().into_iter().find(|engine| engine.name() == job.engine) else {
        return Err(io::Error::other(format!("this program has no engine {}", job.engine)));
    };
    let before = measure::memory();
    let start = Instant::now();
    let format = if job.onnx { Format::Onnx } else { Format::Tflite };
    let opened = engine.open(format, &graph).and_then(|graph| {
        let session = graph.session(LoadOptions::default())?;
        Ok((graph, session))
    });
    let (graph, mut session) = match opened {
        Ok(opened) => opened,
        Err(error) => return out.send(&Message::Refused { load_ms: None, reason: error.to_string() }),
    };
    let load_ms = start.elapsed().as_secs_f64() * 1000.0;
    loaded.store(true, Ordering::Relaxed);
    out.send(&Message::Doing(Doing::Running))?;
    let refused = |reason: String| Message::Refused { load_ms: Some(load_ms), reason };
    if let Err(reason) = warm_up(session.as_mut()) {
        return out.send(&refused(reason));
    }
    let memory_bytes = before.zip(measure::memory()).map(|(before, after)| after.saturating_sub(before));
    let golden = read_exactly(&mut stdin, job.golden_bytes)?;
    let (golden, manifest) = match read_golden(&job, &golden) {
        Ok(read) => read,
        Err(reason) => return out.send(&refused(reason)),
    };
    let manifest = manifest.as_ref().map(|(manifest, labels)| (manifest, labels));
    let judged = Case::new(session.as_ref(), &golden, manifest, job.limits)
        .and_then(|case| judge(session.as_mut(), &case, &job).map(|(judged, latency)| (case, judged, latency)));
    let (case, judged, latency) = match judged {
        Ok(judged) => judged,
        Err(reason) => return out.send(&refused(reason)),
    };
    let right = judged.faults.is_empty();
    out.send(&Message::Done(Measured {
        load_ms,
        memory_bytes,
        p50_us: latency.p50_us,
        mean_us: latency.mean_us,
        p99_us: latency.p99_us,
        runs: latency.runs,
        ingest: measure::ingest(case.sampled(), job.timing / INGEST_SHARE),
        top1_agreement: judged.top1_agreement,
        mean_abs_error: judged.mean_abs_error.to_string(),
        nmae: judged.nmae.to_string(),
        faults: judged.faults,
        detail: session.detail().map(str::to_owned),
    }))?;
    match job.batches && right {
        true => batch::prove(graph.as_ref(), session.as_mut(), &case, &job, begun, &mut out),
        false => Ok(()),
    }
}

/// Has a panic end the process with what it said. What is given back says whether the graph was loaded before.
fn answer_panics(out: &Lines, engine: String) -> io::Result<Arc<AtomicBool>> {
    let (out, loaded) = (out.0.try_clone()?, Arc::new(AtomicBool::new(false)));
    let is_loaded = Arc::clone(&loaded);
    std::panic::set_hook(Box::new(move |panic| {
        let said = panic.payload_as_str().unwrap_or("it panicked without a message");
        let place = panic.location().map(|place| format!(" ({place})")).unwrap_or_default();
        if !is_loaded.load(Ordering::Relaxed) {
            let refused = Message::Refused { load_ms: None, reason: format!("{engine} gave up on it: {said}{place}") };
            if out.try_clone().and_then(|out| Lines(out).send(&refused)).is_ok() {
                std::process::exit(0);
            }
        }
        eprintln!("{said}{place}");
        std::process::exit(PANICKED);
    }));
    Ok(loaded)
}

/// A package's manifest and labels.
type Described = (Manifest, Arc<[String]>);

fn read_golden(job: &Job, golden: &[u8]) -> Result<(Golden, Option<Described>), String> {
    let golden = Golden::read(&job.golden_file, golden).map_err(|error| error.to_string())?;
    let manifest = match &job.package {
        None => None,
        Some((text, labels)) => {
            let manifest = Manifest::parse(Path::new(manifest::FILE_NAME), text).map_err(|error| error.to_string())?;
            Some((manifest, Arc::from(labels.as_slice())))
        }
    };
    Ok((golden, manifest))
}

fn judge(session: &mut dyn Session, case: &Case<'_>, job: &Job) -> Result<(Judged, measure::Latency), String> {
    let judged = case.judge(session)?;
    if let Some(path) = &job.outputs {
        write_outputs(path, &judged).map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
    }
    let latency = measure::latency(session, job.timing, &|session, run| case.feed(session, run, 1))?;
    Ok((judged, latency))
}

/// Runs on zeros, so that what is made at the first run is there.
pub(super) fn warm_up(session: &mut dyn Session) -> Result<(), String> {
    for index in 0..session.inputs().len() {
        let zero = session.inputs()[index].quantization.map_or(0, |quantization| quantization.zero_point);
        match session.input_mut(index) {
            TensorMut::F32(buffer) => buffer.fill(0.0),
            TensorMut::I8(buffer) => buffer.fill(zero as i8),
            TensorMut::U8(buffer) => buffer.fill(zero as u8),
        }
    }
    (0..WARM_UP_RUNS).try_for_each(|_| session.run()).map_err(|error| error.to_string())
}

fn write_outputs(path: &Path, judged: &Judged) -> io::Result<()> {
    let bytes: Vec<Vec<u8>> = judged.outputs.iter().map(|(_, _, values)| values.bytes()).collect();
    let mut views = Vec::with_capacity(bytes.len());
    for ((name, shape, values), bytes) in judged.outputs.iter().zip(&bytes) {
        let view = TensorView::new(values.dtype(), shape.clone(), bytes).map_err(io::Error::other)?;
        views.push((name.as_str(), view));
    }
    std::fs::write(path, safetensors::serialize(views, None).map_err(io::Error::other)?)
}

/// Standard output for messages alone; from here on, whatever a library prints goes to standard error.
fn take_stdout() -> io::Result<OwnedFd> {
    let own = rustix::io::dup(io::stdout())?;
    rustix::stdio::dup2_stdout(io::stderr())?;
    Ok(own)
}

/// Lowers a limit as far as that is allowed; it is never raised. `grace`: how far above it the hard one is.
fn limit(resource: Resource, most: u64, grace: u64) {
    let hard = rustix::process::getrlimit(resource).maximum;
    let least = |most: u64| Some(hard.map_or(most, |hard| hard.min(most)));
    let _ = rustix::process::setrlimit(resource, Rlimit { current: least(most), maximum: least(most + grace) });
}

fn read_job(input: &mut impl Read) -> io::Result<Job> {
    let mut length = [0; 4];
    input.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > JOB_MAX {
        return Err(io::Error::other(format!("a job of {length} bytes")));
    }
    Ok(serde_json::from_slice(&read_exactly(input, u64::from(length))?)?)
}

pub(super) fn write_job(out: impl Write, job: &Job, graph: &[u8], golden: &[u8]) -> io::Result<()> {
    let text = serde_json::to_vec(job)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    let mut out = BufWriter::new(out);
    out.write_all(&length.to_le_bytes())?;
    out.write_all(&text)?;
    out.write_all(graph)?;
    out.write_all(golden)?;
    out.flush()
}

fn read_exactly(input: &mut impl Read, length: u64) -> io::Result<Vec<u8>> {
    let length = usize::try_from(length).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Messages, one a line.
pub(super) struct Lines(File);

impl Lines {
    pub(super) fn send(&mut self, message: &Message) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.0.write_all(&line)
    }
}
