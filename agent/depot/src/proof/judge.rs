//! Judging one session: golden vectors in, from samples to outputs, and what came out compared with what should have.

use std::borrow::Cow;
use std::sync::Arc;

use limpet_engine::golden::{best, is_judgeable, mean_abs_error, nmae, top1_agreement};
use limpet_engine::{ElementType, Quantization, Session, TensorMut, TensorRef, TensorSpec, write_real};
use limpet_signal::FrontEnd;

use crate::decision::Decider;
use crate::golden::{Classes, Golden, Values, passes, proves_nothing};
use crate::manifest::{Input, InputKind, Limits, Manifest, Series, Task};

/// Error of an anomaly's score that a proof allows, as a share of the spread of the golden scores.
const SCORE_ERROR: f64 = 0.01;

/// What was found.
#[derive(Debug, Default)]
pub struct Judged {
    /// Share of the vectors with the golden best class, where there are classes.
    pub top1_agreement: Option<f64>,
    /// Mean absolute error of the output with the largest NMAE.
    pub mean_abs_error: f64,
    /// Largest NMAE of any output.
    pub nmae: f64,
    /// Each a sentence; none if it passed.
    pub faults: Vec<String>,
    /// What the graph gave for each output: name in the golden file, shape with the vectors first, elements.
    pub outputs: Vec<(String, Vec<usize>, Values)>,
}

/// Golden vectors that fit a session, ready to run.
pub struct Case<'a> {
    golden: &'a Golden,
    limits: Limits,
    feeds: Vec<Feed>,
    outputs: Vec<Expected<'a>>,
    decision: Option<(Decider, Task)>,
    /// What goes into the first input as real numbers, where a score is computed from it.
    features: Vec<f32>,
    /// Largest error of the front end on any input, where features are recorded.
    features_nmae: Option<f64>,
    /// Front ends with the golden samples, vector after vector.
    sampled: Vec<(FrontEnd, Vec<f32>)>,
}

/// What goes into one input.
struct Feed {
    per_vector: usize,
    values: FeedValues,
    /// The stored value that stands for zero, where the input takes integers.
    zero: i32,
    /// Elements in another order: the same for every vector, and on every machine.
    shuffle: Vec<usize>,
}

enum FeedValues {
    /// As the graph takes them.
    Stored(Values),
    /// Real numbers, to be quantized by the session.
    Real(Vec<f32>),
}

/// What must come out of one output.
struct Expected<'a> {
    name: &'a str,
    shape: Vec<usize>,
    /// For what the session gives, if that is integers.
    quantization: Option<Quantization>,
    real: Vec<f32>,
    classes: Classes,
}

/// What is done to an input before it goes in.
#[derive(Clone, Copy, PartialEq)]
enum Disguise {
    None,
    Zeroed,
    Shuffled,
}

impl<'a> Case<'a> {
    /// Fits golden vectors to a session. `manifest` is none for a bare graph.
    ///
    /// # Errors
    /// A sentence with what does not fit: the variant is refused.
    pub fn new(
        session: &dyn Session,
        golden: &'a Golden,
        manifest: Option<(&Manifest, &Arc<[String]>)>,
        limits: Limits,
    ) -> Result<Self, String> {
        let specs = session.inputs();
        let only = specs.len() == 1;
        let mut worst_features: Option<f64> = None;
        let mut feeds = Vec::with_capacity(specs.len());
        let mut all_sampled = Vec::new();
        if let Some((manifest, _)) = manifest {
            check_names(&manifest.inputs, specs)?;
        }
        for spec in specs {
            let input = manifest.map(|(manifest, _)| input_of(&manifest.inputs, spec, only)).transpose()?;
            let series = input.and_then(|input| match &input.kind {
                InputKind::Series(series) => Some(series),
                _ => None,
            });
            let sampled = series
                .filter(|series| !series.steps.is_empty() || golden.find("samples", Some(&spec.name), only).is_some());
            let (values, error) = match sampled {
                Some(series) => {
                    let (front_end, samples) = samples_of(golden, spec, series, only)?;
                    let found = from_samples(golden, spec, &front_end, &samples, only)?;
                    all_sampled.push((front_end, samples));
                    found
                }
                None => (from_input(golden, spec, only)?, None),
            };
            if let Some(error) = error {
                worst_features = Some(worst_features.map_or(error, |worst| worst.max(error)));
            }
            let zero = spec.quantization.map_or(0, |quantization| quantization.zero_point);
            let per_vector = spec.elements();
            feeds.push(Feed { per_vector, values, zero, shuffle: shuffled(per_vector) });
        }
        let decision = match manifest {
            None => None,
            Some((manifest, labels)) => {
                let given = specs.first().map_or(0, TensorSpec::elements);
                let decider = Decider::new(manifest, labels, session.outputs(), given).map_err(|e| e.to_string())?;
                Some((decider, manifest.task))
            }
        };
        let outputs = session.outputs();
        let mut expected = Vec::with_capacity(outputs.len());
        for (index, spec) in outputs.iter().enumerate() {
            let single = outputs.len() == 1;
            let tensor = golden.need("output", Some(&spec.name), single).map_err(|error| error.to_string())?;
            fits(golden, &tensor.name, &tensor.shape, tensor.per_vector(), "output", spec)?;
            let same = tensor.values.element() == spec.element;
            let real = tensor.values.real(spec.quantization.filter(|_| same).or(tensor.quantization));
            let real = real.ok_or_else(|| unscaled(golden, &tensor.name, "output"))?;
            let classes = match &decision {
                Some((decider, Task::Classification)) if decider.output() == index => Classes::Declared,
                None if single && is_judgeable(&real, golden.vectors()) => Classes::Guessed,
                _ => Classes::None,
            };
            let quantization = spec.quantization.or(tensor.quantization);
            if spec.element != ElementType::F32 && quantization.is_none() {
                return Err(unscaled(golden, &tensor.name, "output"));
            }
            let mut shape = spec.shape.clone();
            match shape.first_mut() {
                Some(batch) if *batch == 1 => *batch = golden.vectors(),
                _ => shape.insert(0, golden.vectors()),
            }
            expected.push(Expected { name: &tensor.name, shape, quantization, real, classes });
        }
        let doubts: Vec<Option<String>> = expected
            .iter()
            .map(|output| {
                let reason = proves_nothing(&output.real, golden.vectors(), output.classes, limits)?;
                Some(format!("{}: \"{}\" proves nothing: {reason}", golden.file(), output.name))
            })
            .collect();
        // The output that is decided on has to prove something; of a bare graph's, any.
        let doubted = match &decision {
            Some((decider, _)) => doubts.into_iter().nth(decider.output()).flatten(),
            None => doubts.into_iter().reduce(|first, other| first.and_then(|first| other.map(|_| first))).flatten(),
        };
        if let Some(reason) = doubted {
            return Err(reason);
        }
        let features = match (&decision, feeds.first()) {
            (Some((decider, _)), Some(feed)) if decider.needs_features() => match &feed.values {
                FeedValues::Real(real) => real.clone(),
                FeedValues::Stored(values) => {
                    values.real(specs[0].quantization).ok_or_else(|| unscaled(golden, "input", "input"))?
                }
            },
            _ => Vec::new(),
        };
        Ok(Self {
            golden,
            limits,
            feeds,
            outputs: expected,
            decision,
            features,
            features_nmae: worst_features,
            sampled: all_sampled,
        })
    }

    /// The front ends, each with the golden samples that it takes, vector after vector. None of inputs that come as
    /// features.
    pub fn sampled(&self) -> &[(FrontEnd, Vec<f32>)] {
        &self.sampled
    }

    /// Checks that a session has the edges of one that was judged, `times` as large.
    ///
    /// # Errors
    /// A sentence with what it has instead.
    pub fn check_batch(session: &dyn Session, judged: &dyn Session, times: usize) -> Result<(), String> {
        let edges = [("inputs", session.inputs(), judged.inputs()), ("outputs", session.outputs(), judged.outputs())];
        for (edge, found, known) in edges {
            let fits = |(found, known): (&TensorSpec, &TensorSpec)| {
                found.elements() == times * known.elements()
                    && (found.element, found.quantization) == (known.element, known.quantization)
            };
            if found.len() != known.len() || !found.iter().zip(known).all(fits) {
                let shapes = |specs: &[TensorSpec]| {
                    specs.iter().map(|spec| format!("{:?}", spec.shape)).collect::<Vec<_>>().join(", ")
                };
                return Err(format!(
                    "its {edge} become {}, which is not {times} times {}",
                    shapes(found),
                    shapes(known)
                ));
            }
        }
        Ok(())
    }

    /// Writes the inputs of `batch` vectors from `vector` on, which is taken modulo their number: after the last comes
    /// the first again.
    ///
    /// # Errors
    /// A sentence, if an input cannot be translated.
    pub fn feed(&self, session: &mut dyn Session, vector: usize, batch: usize) -> Result<(), String> {
        self.feed_disguised(session, vector, batch, Disguise::None)
    }

    fn feed_disguised(
        &self,
        session: &mut dyn Session,
        vector: usize,
        batch: usize,
        disguise: Disguise,
    ) -> Result<(), String> {
        for (index, feed) in self.feeds.iter().enumerate() {
            let places = (vector..vector + batch).map(|vector| {
                let vector = vector % self.golden.vectors();
                vector * feed.per_vector..(vector + 1) * feed.per_vector
            });
            match &feed.values {
                FeedValues::Real(values) => {
                    let mut real = Vec::with_capacity(batch * feed.per_vector);
                    for at in places {
                        real.extend_from_slice(&disguised(&values[at], 0.0, disguise, &feed.shuffle));
                    }
                    write_real(session, index, &real).map_err(|error| error.to_string())?;
                }
                FeedValues::Stored(values) => match (session.input_mut(index), values) {
                    (TensorMut::F32(buffer), Values::F32(values)) => {
                        for (slot, at) in buffer.chunks_exact_mut(feed.per_vector).zip(places) {
                            slot.copy_from_slice(&disguised(&values[at], 0.0, disguise, &feed.shuffle));
                        }
                    }
                    (TensorMut::I8(buffer), Values::I8(values)) => {
                        for (slot, at) in buffer.chunks_exact_mut(feed.per_vector).zip(places) {
                            slot.copy_from_slice(&disguised(&values[at], feed.zero as i8, disguise, &feed.shuffle));
                        }
                    }
                    (TensorMut::U8(buffer), Values::U8(values)) => {
                        for (slot, at) in buffer.chunks_exact_mut(feed.per_vector).zip(places) {
                            slot.copy_from_slice(&disguised(&values[at], feed.zero as u8, disguise, &feed.shuffle));
                        }
                    }
                    _ => unreachable!("values are stored as they are only where the input is of their type"),
                },
            }
        }
        Ok(())
    }

    /// Runs every vector, in batches; what the graph gave, per output. What fills up the last batch is left out.
    fn run(&self, session: &mut dyn Session, batch: usize, disguise: Disguise) -> Result<Vec<Values>, String> {
        let vectors = self.golden.vectors();
        let mut given: Vec<Values> = session.outputs().iter().map(|spec| Values::empty(spec.element)).collect();
        for vector in (0..vectors).step_by(batch) {
            self.feed_disguised(session, vector, batch, disguise)?;
            session.run().map_err(|error| error.to_string())?;
            for (index, values) in given.iter_mut().enumerate() {
                let output = session.output(index);
                values.extend(first_of(output, output.len() / batch * batch.min(vectors - vector)));
            }
        }
        Ok(given)
    }

    /// Runs the golden vectors and compares; then runs them with zeroed and with shuffled inputs, which must not pass.
    ///
    /// # Errors
    /// A sentence, if the session cannot run or the vectors prove nothing: the variant is refused.
    pub fn judge(&self, session: &mut dyn Session) -> Result<Judged, String> {
        let judged = self.judge_batch(session, 1)?;
        // Only of what passed: a wrong answer needs no second reason.
        if judged.faults.is_empty() {
            for (disguise, what) in [(Disguise::Zeroed, "zeros"), (Disguise::Shuffled, "shuffled values")] {
                self.refuse_disguised(session, disguise, what)?;
            }
        }
        Ok(judged)
    }

    /// Runs the golden vectors in batches and compares.
    ///
    /// # Errors
    /// A sentence, if the session cannot run.
    pub fn judge_batch(&self, session: &mut dyn Session, batch: usize) -> Result<Judged, String> {
        let given = self.run(session, batch, Disguise::None)?;
        let mut judged = Judged::default();
        let mut reals = Vec::with_capacity(given.len());
        for (expected, values) in self.outputs.iter().zip(&given) {
            let real = values.real(expected.quantization).expect("a scale was found for every output of integers");
            self.compare(expected, &real, &mut judged);
            reals.push(real);
        }
        if let Some(error) = self.features_nmae.filter(|error| *error > self.limits.features_nmae) {
            judged.faults.push(format!(
                "the front end's features differ from the golden ones: NMAE {error:.2e} is above {}",
                self.limits.features_nmae
            ));
        }
        if judged.faults.is_empty() {
            self.compare_scores(&reals, &mut judged)?;
        }
        judged.outputs = self
            .outputs
            .iter()
            .zip(given)
            .map(|(expected, values)| (expected.name.to_owned(), expected.shape.clone(), values))
            .collect();
        Ok(judged)
    }

    fn compare(&self, expected: &Expected<'_>, real: &[f32], judged: &mut Judged) {
        let (vectors, before) = (self.golden.vectors(), judged.faults.len());
        if let Some(at) = real.iter().position(|value| !value.is_finite()) {
            let vector = at / (real.len() / vectors);
            judged.faults.push(format!("\"{}\" is {} in vector {vector}: not finite", expected.name, real[at]));
        }
        let error = nmae(real, &expected.real, vectors);
        if error >= judged.nmae {
            judged.nmae = error;
            judged.mean_abs_error = mean_abs_error(real, &expected.real);
        }
        if expected.classes.any() {
            let agreement = top1_agreement(real, &expected.real, vectors);
            judged.top1_agreement = Some(agreement);
            if agreement < self.limits.top1_agreement {
                judged.faults.push(format!("top-1 agreement {agreement:.3} is below {}", self.limits.top1_agreement));
            }
        }
        if error > self.limits.nmae {
            let name = if self.outputs.len() == 1 { String::new() } else { format!(" of \"{}\"", expected.name) };
            judged.faults.push(format!("NMAE {error:.3}{name} is above {}", self.limits.nmae));
        }
        if judged.faults.len() > before {
            judged.faults.extend(example(expected, real, vectors));
        }
    }

    /// Judges an anomaly's scores: their mean error, and on which side of the threshold each lies.
    fn compare_scores(&self, reals: &[Vec<f32>], judged: &mut Judged) -> Result<(), String> {
        let Some((decider, Task::Anomaly)) = &self.decision else { return Ok(()) };
        let elements = decider.elements();
        let scores = |outputs: &[f32]| -> Result<Vec<f32>, String> {
            outputs
                .chunks_exact(elements)
                .enumerate()
                .map(|(vector, output)| {
                    let features = match decider.needs_features() {
                        true => &self.features[vector * elements..(vector + 1) * elements],
                        false => &[],
                    };
                    let verdict = decider.decide(output, features).map_err(|error| error.to_string())?;
                    Ok(verdict.score().expect("an anomaly has a score"))
                })
                .collect()
        };
        let golden = scores(&self.outputs[decider.output()].real)?;
        let found = scores(&reals[decider.output()])?;
        let (low, high) = golden
            .iter()
            .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), score| (low.min(*score), high.max(*score)));
        let spread = f64::from(high) - f64::from(low);
        if spread <= 0.0 {
            return Err(format!("{} proves nothing: its anomaly scores are all {low}", self.golden.file()));
        }
        let error = mean_abs_error(&found, &golden);
        if error > SCORE_ERROR * spread {
            judged.faults.push(format!(
                "the anomaly scores differ by {:.1} % of their spread, which is above {} %",
                error / spread * 100.0,
                SCORE_ERROR * 100.0
            ));
        }
        if let Some(threshold) = decider.threshold() {
            let crossed = golden.iter().zip(&found).position(|(g, f)| (*g > threshold) != (*f > threshold));
            if let Some(vector) = crossed {
                judged.faults.push(format!(
                    "vector {vector} scores {} and should score {}: on the other side of the threshold {threshold}",
                    found[vector], golden[vector]
                ));
            }
        }
        Ok(())
    }

    fn refuse_disguised(&self, session: &mut dyn Session, disguise: Disguise, what: &str) -> Result<(), String> {
        if disguise == Disguise::Shuffled && self.feeds.iter().all(|feed| feed.per_vector < 2) {
            return Ok(());
        }
        let given = self.run(session, 1, disguise)?;
        let all_pass = self.outputs.iter().zip(&given).all(|(expected, values)| {
            let real = values.real(expected.quantization).expect("a scale was found for every output of integers");
            passes(&real, &expected.real, self.golden.vectors(), expected.classes, self.limits)
        });
        match all_pass {
            true => Err(format!(
                "{} proves nothing: an input of {what} would pass too; record vectors whose outputs depend on the input",
                self.golden.file()
            )),
            false => Ok(()),
        }
    }
}

/// The vector that is furthest from what it should give, with the element of it that is: where to begin to look. Of
/// vectors that give another class, if there are any, for people look at those first.
fn example(expected: &Expected<'_>, real: &[f32], vectors: usize) -> Option<String> {
    let per_vector = real.len().checked_div(vectors).filter(|elements| *elements > 0)?;
    let pairs = || real.chunks_exact(per_vector).zip(expected.real.chunks_exact(per_vector));
    let other_class = |(found, golden): &(&[f32], &[f32])| expected.classes.any() && best(found) != best(golden);
    let some_other = pairs().any(|pair| other_class(&pair));
    // What is not a number is further away than anything.
    let off = |found: f32, golden: f32| if found.is_finite() { (found - golden).abs() } else { f32::INFINITY };
    let distance = |(found, golden): (&[f32], &[f32])| -> f32 {
        found.iter().zip(golden).map(|(found, golden)| off(*found, *golden)).sum()
    };
    let candidates = pairs().enumerate().filter(|(_, pair)| !some_other || other_class(pair));
    let (vector, (found, golden)) = candidates.max_by(|a, b| distance(a.1).total_cmp(&distance(b.1)))?;
    let element = (0..per_vector).max_by(|a, b| off(found[*a], golden[*a]).total_cmp(&off(found[*b], golden[*b])))?;
    let name = expected.name;
    let (is, should) = (found[element], golden[element]);
    let class =
        |values: &[f32]| best(values).map_or_else(|| "no one class".to_owned(), |class| format!("class {class}"));
    let classes = some_other.then(|| format!("gives {} where {} is expected: ", class(found), class(golden)));
    Some(format!(
        "vector {vector} {}element {element} of \"{name}\" is {is} and should be {should}",
        classes.unwrap_or_else(|| "is the furthest: ".to_owned())
    ))
}

/// The first elements of a tensor.
fn first_of(tensor: TensorRef<'_>, elements: usize) -> TensorRef<'_> {
    match tensor {
        TensorRef::F32(values) => TensorRef::F32(&values[..elements]),
        TensorRef::I8(values) => TensorRef::I8(&values[..elements]),
        TensorRef::U8(values) => TensorRef::U8(&values[..elements]),
    }
}

/// Checks that every input that the manifest names is there, and none is left out.
fn check_names(inputs: &[Input], specs: &[TensorSpec]) -> Result<(), String> {
    if inputs.len() != specs.len() {
        let names: Vec<String> = specs.iter().map(|spec| format!("\"{}\"", spec.name)).collect();
        return Err(format!(
            "the manifest has {} [[input]] and the graph {} inputs: {}",
            inputs.len(),
            specs.len(),
            names.join(", ")
        ));
    }
    Ok(())
}

fn input_of<'m>(inputs: &'m [Input], spec: &TensorSpec, only: bool) -> Result<&'m Input, String> {
    let named = inputs.iter().find(|input| input.tensor.as_deref() == Some(spec.name.as_str()));
    named.or_else(|| inputs.first().filter(|input| only && input.tensor.is_none())).ok_or_else(|| {
        format!(
            "no [[input]] of the manifest has `tensor = \"{}\"`, which the graph has{}",
            spec.name,
            if only { "; leave `tensor` out, since there is only one" } else { "" }
        )
    })
}

/// The front end of an input and the samples that it takes, checked against the graph.
fn samples_of(golden: &Golden, spec: &TensorSpec, series: &Series, only: bool) -> Result<(FrontEnd, Vec<f32>), String> {
    let samples = golden.need("samples", Some(&spec.name), only).map_err(|error| error.to_string())?;
    let front_end = series.front_end().map_err(|error| error.to_string())?;
    let [frames, channels, elements] = front_end.feature_shape();
    if front_end.features_len() != spec.elements() {
        return Err(format!(
            "the front end gives {frames} × {channels} × {elements} = {} features a window, but the graph's input \"{}\" \
             takes {} ({:?}): change `window` or `front_end`",
            front_end.features_len(),
            spec.name,
            spec.elements(),
            spec.shape
        ));
    }
    let per_vector = samples.per_vector();
    let expected = front_end.samples_per_window() * front_end.channels();
    if per_vector != expected {
        return Err(format!(
            "{}: \"{}\" has {per_vector} values a vector; one window needs {} samples of {channels} channels, so {expected}",
            golden.file(),
            samples.name,
            front_end.samples_per_window(),
        ));
    }
    let real = samples.values.real(samples.quantization).ok_or_else(|| unscaled(golden, &samples.name, "samples"))?;
    Ok((front_end, real))
}

/// Features of every vector by the front end, and how far they are from the recorded ones.
fn from_samples(
    golden: &Golden,
    spec: &TensorSpec,
    front_end: &FrontEnd,
    samples: &[f32],
    only: bool,
) -> Result<(FeedValues, Option<f64>), String> {
    let mut features = Vec::with_capacity(golden.vectors() * front_end.features_len());
    for vector in samples.chunks_exact(samples.len() / golden.vectors()) {
        let mut stream = front_end.stream();
        let whole = stream.push(vector, |window| features.extend_from_slice(window.features));
        whole.map_err(|error| error.to_string())?;
    }
    let Some(recorded) = golden.find("features", Some(&spec.name), only) else {
        return Ok((FeedValues::Real(features), None));
    };
    fits(golden, &recorded.name, &recorded.shape, recorded.per_vector(), "input", spec)?;
    let expected =
        recorded.values.real(recorded.quantization).ok_or_else(|| unscaled(golden, &recorded.name, "features"))?;
    let error = nmae(&features, &expected, golden.vectors());
    Ok((FeedValues::Real(features), Some(error)))
}

/// What is recorded of an input: as it is where the graph takes that type, else as real numbers.
fn from_input(golden: &Golden, spec: &TensorSpec, only: bool) -> Result<FeedValues, String> {
    let input = golden.need("input", Some(&spec.name), only).map_err(|error| error.to_string())?;
    fits(golden, &input.name, &input.shape, input.per_vector(), "input", spec)?;
    if input.values.element() == spec.element {
        return Ok(FeedValues::Stored(input.values.clone()));
    }
    if spec.element != ElementType::F32 && spec.quantization.is_none() {
        return Err(format!(
            "{}: \"{}\" holds {}, and the graph's input \"{}\" takes {} and tells no scale for them: record them as {}",
            golden.file(),
            input.name,
            input.values.element(),
            spec.name,
            spec.element,
            spec.element
        ));
    }
    let real = input.values.real(input.quantization).ok_or_else(|| unscaled(golden, &input.name, "input"))?;
    Ok(FeedValues::Real(real))
}

fn fits(
    golden: &Golden,
    name: &str,
    shape: &[usize],
    per_vector: usize,
    edge: &str,
    spec: &TensorSpec,
) -> Result<(), String> {
    match per_vector == spec.elements() {
        true => Ok(()),
        false => Err(format!(
            "{}: \"{name}\" has the shape {shape:?}, so {per_vector} values a vector, but the graph's {edge} \"{}\" has \
             {} ({:?})",
            golden.file(),
            spec.name,
            spec.elements(),
            spec.shape
        )),
    }
}

fn unscaled(golden: &Golden, name: &str, kind: &str) -> String {
    format!(
        "{}: \"{name}\" holds integers, and neither the graph nor the file tells their scale: add {kind}_scale and \
         {kind}_zero_point to the file's metadata",
        golden.file()
    )
}

/// Positions in an order that leaves none in its place (but a single one): the same on every machine, so that a proof
/// is repeatable.
fn shuffled(elements: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..elements).collect();
    // Sattolo's variant of Knuth's shuffle, with the linear congruential generator of his MMIX.
    let mut state = 1u64;
    for last in (1..elements).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(last, ((state >> 33) % last as u64) as usize);
    }
    order
}

fn disguised<'v, T: Copy>(values: &'v [T], zero: T, disguise: Disguise, order: &[usize]) -> Cow<'v, [T]> {
    match disguise {
        Disguise::None => Cow::Borrowed(values),
        Disguise::Zeroed => Cow::Owned(vec![zero; values.len()]),
        Disguise::Shuffled => Cow::Owned(order.iter().map(|&from| values[from]).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shuffle_leaves_nothing_in_its_place() {
        for elements in [2, 3, 40, 1200] {
            let mut order = shuffled(elements);
            assert!(order.iter().enumerate().all(|(at, from)| at != *from), "{elements}");
            order.sort_unstable();
            assert!(order.iter().enumerate().all(|(at, from)| at == *from), "{elements}");
        }
        assert_eq!(shuffled(1), [0]);
    }
}
