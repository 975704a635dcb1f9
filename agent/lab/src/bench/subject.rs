//! What is measured: a package or a bare graph, proved, with inputs and the answers that must come out.
//!
//! The inputs are those of the golden vectors, translated beforehand into the element types of the graph; a run copies
//! them into the session's buffers, which counts as part of it. A graph without golden vectors is fed noise, and then
//! nothing says whether its answers are right.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use limpet_depot::golden::{Golden, Values};
use limpet_depot::manifest::{InputKind, Limits, Manifest, Task};
use limpet_depot::proof::{Choice, Verdict};
use limpet_depot::{Options, Package, Report, Subject as Provable};
use limpet_engine::golden::{is_judgeable, nmae, top1_agreement};
use limpet_engine::{
    Engine, EngineError, Format, Graph, LoadOptions, Quantization, Session, TensorMut, TensorRef, TensorSpec,
};
use serde::Serialize;

use super::arrivals::{Random, vector_of};
use super::scenario::Station;
use crate::usage;

/// Vectors of noise.
const NOISE_VECTORS: usize = 16;
/// How long a proof times runs; what counts here is whether the answers are right.
const PROOF_TIMING: Duration = Duration::from_millis(500);
/// The last part of a wait is spent spinning, since a sleeping thread wakes up later than it asked for.
const SPIN: Duration = Duration::from_micros(150);

/// What is to be measured, before it is proved.
pub enum Subject {
    /// A package.
    Package(Box<Package>),
    /// A bare graph.
    Graph {
        /// Its file.
        path: PathBuf,
        /// How it is stored.
        format: Format,
        /// Its content.
        bytes: Vec<u8>,
        /// Its golden vectors, if it has any: file and content.
        golden: Option<(PathBuf, Golden)>,
    },
}

/// Which of a subject's variants and engines are to be measured.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Only this engine; `all` for every one. Without it, and without a variant, what the proof chooses.
    pub engine: Option<String>,
    /// Only this variant.
    pub variant: Option<String>,
}

/// Where inputs come from, which says whether answers are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Inputs {
    /// Golden vectors: each session that is timed has given their outputs.
    Golden,
    /// Noise: nobody knows whether the answers are right.
    Noise,
}

/// A variant on an engine that may not be timed, and why.
#[derive(Debug, Clone, Serialize)]
pub struct NotTimed {
    /// Name of the engine.
    pub engine: String,
    /// The variant's file.
    pub variant: String,
    /// Whether its answers were wrong or it broke; else the engine does not take it.
    pub failed: bool,
    /// Why, in a sentence.
    pub reason: String,
}

/// A variant on an engine that may be timed.
pub struct Contender<'a> {
    engine: &'a dyn Engine,
    /// The variant's file.
    pub variant: String,
    graph: Box<dyn Graph>,
    vectors: Arc<Vectors>,
    answers: Option<Answers>,
    /// What the engine says of its kernels.
    pub detail: Option<String>,
}

/// What goes in: every vector of every input, as the graph stores them.
struct Vectors {
    count: usize,
    inputs: Vec<Values>,
}

/// What must come out.
struct Answers {
    limits: Limits,
    outputs: Vec<Answer>,
}

struct Answer {
    name: String,
    real: Vec<f32>,
    /// For what the session gives, if that is integers.
    quantization: Option<Quantization>,
    classes: bool,
}

impl Subject {
    /// Opens a package, or a bare graph and its golden vectors.
    ///
    /// # Errors
    /// What is wrong with the files, or with their being given together.
    pub fn open(path: &Path, golden: Option<&Path>) -> anyhow::Result<Self> {
        let Some(format) = Format::of(path).filter(|_| !path.is_dir()) else {
            if golden.is_some() {
                return Err(usage(format!(
                    "{}: --golden goes with a graph (.onnx or .tflite); a package has its own golden vectors",
                    path.display()
                )));
            }
            return Ok(Self::Package(Box::new(Package::open(path)?)));
        };
        let read = |path: &Path| std::fs::read(path).with_context(|| format!("reading {}", path.display()));
        let golden = match golden {
            Some(path) => Some((path.to_owned(), Golden::read(&path.display().to_string(), &read(path)?)?)),
            None => None,
        };
        Ok(Self::Graph { path: path.to_owned(), format, bytes: read(path)?, golden })
    }

    /// For headings: name and version, or the file.
    pub fn title(&self) -> String {
        match self {
            Self::Package(package) => format!("{} {}", package.manifest().name, package.manifest().version),
            Self::Graph { path, .. } => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        }
    }

    /// Where its inputs come from.
    pub fn inputs(&self) -> Inputs {
        match self {
            Self::Graph { golden: None, .. } => Inputs::Noise,
            _ => Inputs::Golden,
        }
    }

    /// The names of its variants.
    pub fn variants(&self) -> Vec<String> {
        match self {
            Self::Package(package) => package.manifest().variants.iter().map(|variant| variant.file.clone()).collect(),
            Self::Graph { .. } => vec![self.title()],
        }
    }

    /// Proves the subject, each variant on each engine in a process of its own. None for a graph without golden vectors.
    ///
    /// # Errors
    /// If the proof cannot be carried out.
    pub fn prove(&self, engines: &[Box<dyn Engine>]) -> anyhow::Result<Option<Report>> {
        let options = Options { timing: PROOF_TIMING, ..Options::default() };
        let provable = match self {
            Self::Package(package) => Provable::Package(package),
            Self::Graph { path, golden: Some((golden, _)), .. } => {
                Provable::Graph { path, golden, limits: Limits::GRAPH }
            }
            Self::Graph { golden: None, .. } => return Ok(None),
        };
        Ok(Some(limpet_depot::prove(provable, engines, &options)?))
    }

    /// What a selection of the proof's rows has earned: those that may be timed, and the others with the reason.
    ///
    /// # Errors
    /// If a proved graph cannot be loaded here.
    pub fn contenders<'a>(
        &self,
        engines: &'a [Box<dyn Engine>],
        report: Option<&Report>,
        selection: &Selection,
    ) -> anyhow::Result<(Vec<Contender<'a>>, Vec<NotTimed>)> {
        let wanted = |engine: &str, variant: &str| {
            selection.engine.as_ref().is_none_or(|name| name == "all" || name == engine)
                && selection.variant.as_ref().is_none_or(|name| name == variant)
        };
        let chosen_alone = selection.engine.is_none() && selection.variant.is_none();
        let mut contenders = Vec::new();
        let mut others = Vec::new();
        match report {
            Some(report) => {
                for row in report.rows.iter().filter(|row| wanted(&row.engine, &row.variant)) {
                    let this = Choice { engine: row.engine.clone(), variant: row.variant.clone() };
                    if row.verdict != Verdict::Passed {
                        let failed = row.verdict == Verdict::Failed;
                        others.push(NotTimed {
                            engine: this.engine,
                            variant: this.variant,
                            failed,
                            reason: row.reason.clone(),
                        });
                    } else if !chosen_alone || report.chosen.as_ref() == Some(&this) {
                        contenders.push(self.contender(engines, &this)?);
                    }
                }
                // Whoever asked for nothing special gets what would serve; what else there is does not concern it.
                if chosen_alone && !contenders.is_empty() {
                    others.clear();
                }
            }
            None => {
                let variant = self.title();
                for engine in engines.iter().filter(|engine| wanted(engine.name(), &variant)) {
                    let this = Choice { engine: engine.name().to_owned(), variant: variant.clone() };
                    let Self::Graph { format, .. } = self else { bail!("a package is measured by its proof") };
                    if !engine.reads(*format) {
                        continue;
                    }
                    match self.contender(engines, &this) {
                        Ok(contender) => contenders.push(contender),
                        Err(error) => {
                            let reason = format!("{error:#}");
                            others.push(NotTimed { engine: this.engine, variant: this.variant, failed: false, reason });
                        }
                    }
                }
                if contenders.is_empty() && others.is_empty() {
                    let engine = selection.engine.clone().unwrap_or_else(|| "none".to_owned());
                    let reason = "no engine that was asked for reads this file".to_owned();
                    others.push(NotTimed { engine, variant, failed: false, reason });
                }
            }
        }
        Ok((contenders, others))
    }

    fn contender<'a>(&self, engines: &'a [Box<dyn Engine>], choice: &Choice) -> anyhow::Result<Contender<'a>> {
        let Choice { engine, variant } = choice;
        let engine = engines.iter().find(|known| known.name() == engine).context("the proof was of these engines")?;
        let (format, bytes, golden, manifest, limits) = match self {
            Self::Package(package) => {
                let manifest = package.manifest();
                let known = manifest.variants.iter().find(|known| known.file == *variant);
                let known = known.context("the proof was of this package")?;
                let (file, bytes) = package.golden(variant);
                let golden = Golden::read(&file, bytes)?;
                (known.format, package.graph(variant), Some(golden), Some(manifest), known.limits)
            }
            Self::Graph { format, bytes, golden, .. } => {
                let golden = golden.as_ref().map(|(_, golden)| golden.clone());
                (*format, bytes.as_slice(), golden, None, Limits::GRAPH)
            }
        };
        let graph = engine.open(format, bytes)?;
        let session = graph.session(LoadOptions::default())?;
        let (vectors, answers) = match golden {
            Some(golden) => (
                vectors(&golden, manifest, session.inputs())?,
                Some(answers(&golden, manifest, session.outputs(), limits)?),
            ),
            None => (noise(session.inputs()), None),
        };
        let detail = session.detail().map(str::to_owned);
        let (variant, vectors) = (variant.clone(), Arc::new(vectors));
        Ok(Contender { engine: engine.as_ref(), variant, graph, vectors, answers, detail })
    }
}

impl Contender<'_> {
    /// Name of the engine.
    pub fn engine(&self) -> &'static str {
        self.engine.name()
    }

    /// Whether the engine makes use of several threads in one run: tract runs on one.
    pub fn threads_in_a_run(&self) -> bool {
        self.engine.name() == "tflite"
    }

    /// Makes `count` sessions and checks the answers of the first.
    ///
    /// # Errors
    /// [`EngineError::Refused`] if the engine does not take the graph with these options, or if its answers with
    /// them are not the golden ones.
    pub fn stations(&self, count: usize, options: LoadOptions) -> Result<Vec<Loaded>, EngineError> {
        let origin = Instant::now();
        let mut stations = Vec::with_capacity(count);
        for _ in 0..count {
            let session = self.graph.session(options)?;
            stations.push(Loaded { session, vectors: Arc::clone(&self.vectors), batch: options.batch, origin });
        }
        if let (Some(answers), Some(first)) = (&self.answers, stations.first_mut()) {
            answers.check(first).map_err(|reason| EngineError::Refused { engine: self.engine.name(), reason })?;
        }
        Ok(stations)
    }
}

/// A loaded session with its inputs, on the machine's clock.
pub struct Loaded {
    session: Box<dyn Session>,
    vectors: Arc<Vectors>,
    batch: usize,
    origin: Instant,
}

impl Loaded {
    /// Writes one vector to each place of the batch.
    fn feed(&mut self, vector_at: impl Fn(usize) -> usize) {
        for (index, values) in self.vectors.inputs.iter().enumerate() {
            let length = values.len() / self.vectors.count;
            match (self.session.input_mut(index), values) {
                (TensorMut::F32(to), Values::F32(from)) => place(to, from, length, &vector_at),
                (TensorMut::I8(to), Values::I8(from)) => place(to, from, length, &vector_at),
                (TensorMut::U8(to), Values::U8(from)) => place(to, from, length, &vector_at),
                _ => unreachable!("vectors are stored in the type of their input"),
            }
        }
    }
}

fn place<T: Copy>(to: &mut [T], from: &[T], length: usize, vector_at: impl Fn(usize) -> usize) {
    for (slot, to) in to.chunks_exact_mut(length).enumerate() {
        let vector = vector_at(slot);
        to.copy_from_slice(&from[vector * length..(vector + 1) * length]);
    }
}

impl Station for Loaded {
    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn wait_until(&mut self, at: u64) {
        let left = Duration::from_nanos(at.saturating_sub(self.now()));
        if left > SPIN {
            std::thread::sleep(left - SPIN);
        }
        while self.now() < at {
            std::hint::spin_loop();
        }
    }

    fn run(&mut self, first: u64) -> Result<(), EngineError> {
        let count = self.vectors.count;
        self.feed(|slot| vector_of(first + slot as u64, count));
        self.session.run()
    }

    fn batch(&self) -> usize {
        self.batch
    }
}

impl Answers {
    /// Runs every golden vector and compares. A batch at the end is filled up with the first vectors.
    fn check(&self, station: &mut Loaded) -> Result<(), String> {
        let (count, batch) = (station.vectors.count, station.batch);
        let mut given: Vec<Values> = station.session.outputs().iter().map(|spec| Values::empty(spec.element)).collect();
        for first in (0..count).step_by(batch) {
            station.feed(|slot| (first + slot) % count);
            station.session.run().map_err(|error| error.to_string())?;
            let real = batch.min(count - first);
            for (index, values) in given.iter_mut().enumerate() {
                let output = station.session.output(index);
                values.extend(part(output, output.len() / batch * real));
            }
        }
        for (answer, values) in self.outputs.iter().zip(&given) {
            let real = values.real(answer.quantization).ok_or("an output of integers tells no scale")?;
            let error = nmae(&real, &answer.real, count);
            if error > self.limits.nmae {
                let (name, most) = (&answer.name, self.limits.nmae);
                return Err(format!(
                    "wrong answers with a batch of {batch}: NMAE {error:.3} of {name} is above {most}"
                ));
            }
            if answer.classes {
                let agreement = top1_agreement(&real, &answer.real, count);
                let least = self.limits.top1_agreement;
                if agreement < least {
                    return Err(format!(
                        "wrong answers with a batch of {batch}: top-1 agreement {agreement:.3} is below {least}"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// The first `length` elements.
fn part(tensor: TensorRef<'_>, length: usize) -> TensorRef<'_> {
    match tensor {
        TensorRef::F32(values) => TensorRef::F32(&values[..length]),
        TensorRef::I8(values) => TensorRef::I8(&values[..length]),
        TensorRef::U8(values) => TensorRef::U8(&values[..length]),
    }
}

/// The inputs of golden vectors, as these tensors take them. That they fit, the proof has shown.
fn vectors(golden: &Golden, manifest: Option<&Manifest>, specs: &[TensorSpec]) -> anyhow::Result<Vectors> {
    let only = specs.len() == 1;
    let mut inputs = Vec::with_capacity(specs.len());
    for spec in specs {
        let input = manifest.and_then(|manifest| {
            let named = |name: &Option<String>| name.as_ref().is_none_or(|name| *name == spec.name);
            manifest.inputs.iter().find(|input| named(&input.tensor))
        });
        let series = input.and_then(|input| match &input.kind {
            InputKind::Series(series) => Some(series),
            _ => None,
        });
        let sampled = golden.find("samples", Some(&spec.name), only);
        let (tensor, real) = match (series, sampled) {
            (Some(series), Some(samples)) => {
                let front_end = series.front_end()?;
                let real = samples.values.real(samples.quantization).context("samples of integers have no scale")?;
                let mut features = Vec::new();
                for vector in real.chunks_exact(samples.per_vector()) {
                    front_end.stream().push(vector, |window| features.extend_from_slice(window.features))?;
                }
                (samples, Some(features))
            }
            _ => (golden.need("input", Some(&spec.name), only)?, None),
        };
        inputs.push(match real {
            None if tensor.values.element() == spec.element => tensor.values.clone(),
            None => {
                let real = tensor.values.real(tensor.quantization).context("an input of integers has no scale")?;
                stored(&real, spec)?
            }
            Some(real) => stored(&real, spec)?,
        });
        let found = inputs.last().map_or(0, Values::len);
        if found != golden.vectors() * spec.elements() {
            bail!("{}: {found} values for {} vectors of {}", golden.file(), golden.vectors(), spec.name);
        }
    }
    Ok(Vectors { count: golden.vectors(), inputs })
}

/// Real values in the element type of a tensor.
fn stored(real: &[f32], spec: &TensorSpec) -> anyhow::Result<Values> {
    let quantization = || spec.quantization.with_context(|| format!("input {} tells no scale", spec.name));
    Ok(match Values::empty(spec.element) {
        Values::F32(_) => Values::F32(real.to_vec()),
        Values::I8(_) => {
            let mut values = vec![0; real.len()];
            quantization()?.quantize(real, &mut values);
            Values::I8(values)
        }
        Values::U8(_) => {
            let mut values = vec![0; real.len()];
            quantization()?.quantize(real, &mut values);
            Values::U8(values)
        }
    })
}

/// The outputs of golden vectors, and what is judged of each.
fn answers(
    golden: &Golden,
    manifest: Option<&Manifest>,
    specs: &[TensorSpec],
    limits: Limits,
) -> anyhow::Result<Answers> {
    let single = specs.len() == 1;
    let mut outputs = Vec::with_capacity(specs.len());
    for spec in specs {
        let tensor = golden.need("output", Some(&spec.name), single)?;
        let same = tensor.values.element() == spec.element;
        let real = tensor.values.real(spec.quantization.filter(|_| same).or(tensor.quantization));
        let real = real.context("an output of integers has no scale")?;
        let classes = match manifest {
            Some(manifest) => {
                let decided = manifest.decision.output.as_ref().is_none_or(|name| *name == spec.name);
                decided && manifest.task == Task::Classification
            }
            None => single && is_judgeable(&real, golden.vectors()),
        };
        let quantization = spec.quantization.or(tensor.quantization);
        outputs.push(Answer { name: spec.name.clone(), real, quantization, classes });
    }
    Ok(Answers { limits, outputs })
}

/// Noise for these tensors: floats in (−1, 1], all values of integers; the same in every run.
fn noise(specs: &[TensorSpec]) -> Vectors {
    let mut random = Random::new(1);
    let inputs = specs
        .iter()
        .map(|spec| {
            let length = NOISE_VECTORS * spec.elements();
            match Values::empty(spec.element) {
                Values::F32(_) => Values::F32((0..length).map(|_| (2.0 * random.unit() - 1.0) as f32).collect()),
                Values::I8(_) => Values::I8((0..length).map(|_| random.bits() as i8).collect()),
                Values::U8(_) => Values::U8((0..length).map(|_| random.bits() as u8).collect()),
            }
        })
        .collect();
    Vectors { count: NOISE_VECTORS, inputs }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn motor_health() -> Subject {
        Subject::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/motor-health"), None).unwrap()
    }

    #[test]
    fn golden_vectors_are_answered_in_every_batch_and_wrong_answers_are_refused() {
        let (subject, engines) = (motor_health(), limpet_engine::engines());
        let choice = Choice { engine: "tract".into(), variant: "int8-qdq.onnx".into() };
        let mut contender = subject.contender(&engines, &choice).unwrap();
        for batch in [1, 3, 8] {
            let options = LoadOptions { batch, threads: 1 };
            assert_eq!(contender.stations(2, options).unwrap().len(), 2, "batch {batch}");
        }
        let answers = contender.answers.as_mut().unwrap();
        let classes = answers.outputs[0].real.len() / contender.vectors.count;
        answers.outputs[0].real.chunks_exact_mut(classes).for_each(|vector| vector.rotate_left(1));
        let error = contender.stations(1, LoadOptions::default()).err().unwrap().to_string();
        assert!(error.contains("wrong answers"), "{error}");
    }

    #[test]
    fn what_is_no_package_and_golden_vectors_of_a_package_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = Subject::open(folder.path(), None).err().unwrap().to_string();
        assert!(error.contains("model.toml"), "{error}");
        let error = Subject::open(folder.path(), Some(folder.path())).err().unwrap().to_string();
        assert!(error.contains("--golden goes with a graph"), "{error}");
    }
}
