//! A model on a worker: its sessions, one for each batch size, and the decision behind them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use limpet_depot::{Decider, Digest};
use limpet_engine::{ElementType, Session, TensorMut, TensorRef, TensorSpec};
use limpet_runtime::{BatchCost, Moment, Outcome};
use limpet_wire::result::Verdict;

use super::input::WindowInput;

/// What everybody may know of a model that serves: one variant of one package on one engine.
#[derive(Debug)]
pub struct Facts {
    /// Its number, different from that of every other of this process.
    pub number: u32,
    /// Digest of the package.
    pub digest: Digest,
    /// The model's name.
    pub name: Arc<str>,
    /// The engine's name.
    pub engine: Arc<str>,
    /// The variant's file.
    pub variant: Arc<str>,
    /// What its batches cost on this device, by its proof: ascending sizes, the first of them 1.
    pub costs: Vec<BatchCost>,
    /// Thread CPU time of one run, on average.
    pub mean: Duration,
    /// Measured memory of all its sessions on one worker, in bytes.
    pub memory: u64,
    /// The graph's input, for a batch of one.
    pub input: TensorSpec,
    /// The graph's outputs, for a batch of one.
    pub outputs: Vec<TensorSpec>,
    /// Who uses it.
    pub usage: Usage,
}

impl Facts {
    /// The costs of batches up to `max` jobs, none of which runs longer than `longest`; that of one job always.
    pub fn costs_up_to(&self, max: usize, longest: Duration) -> &[BatchCost] {
        let fits = |cost: &&BatchCost| cost.size == 1 || cost.size <= max && cost.worst <= longest;
        &self.costs[..self.costs.iter().take_while(fits).count()]
    }
}

/// How a model is used, so that an idle one can give its place to another.
#[derive(Debug, Default)]
pub struct Usage {
    in_flight: AtomicU32,
    last: AtomicU64,
}

impl Usage {
    /// When a job for it came or ended last, and whether any is under way.
    pub fn read(&self) -> (Moment, bool) {
        (Moment(self.last.load(Ordering::Relaxed)), self.in_flight.load(Ordering::Acquire) > 0)
    }
}

/// Holds a model in use for as long as it lives.
#[derive(Debug)]
pub struct InFlight(Arc<Facts>);

impl InFlight {
    /// One job more for this model, from `now` on.
    pub fn new(facts: &Arc<Facts>, now: Moment) -> Self {
        facts.usage.in_flight.fetch_add(1, Ordering::AcqRel);
        facts.usage.last.fetch_max(now.0, Ordering::Relaxed);
        Self(Arc::clone(facts))
    }

    /// The model.
    pub fn facts(&self) -> &Arc<Facts> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.usage.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Why a model gave no verdict: how the window ends, a word for counters, and a sentence.
#[derive(Debug, Clone)]
pub struct Failure {
    /// `failed` or `invalid`.
    pub outcome: Outcome,
    /// For the counter.
    pub reason: &'static str,
    /// For people.
    pub sentence: String,
}

impl Failure {
    fn session(error: &dyn std::fmt::Display) -> Self {
        Self { outcome: Outcome::Failed, reason: "session_failed", sentence: error.to_string() }
    }
}

/// A model, owned by one worker.
pub struct Model {
    facts: Arc<Facts>,
    /// One for each of the facts' batch sizes, in that order.
    sessions: Vec<Box<dyn Session>>,
    decider: Decider,
    /// The session that ran last, and what it gave as real numbers.
    ran: usize,
    output: Vec<f32>,
    /// What quantized features stand for, where the decision needs it.
    features: Vec<f32>,
}

impl Model {
    /// A model with a session for each batch size of its facts, in that order.
    pub fn new(facts: Arc<Facts>, sessions: Vec<Box<dyn Session>>, decider: Decider) -> Self {
        debug_assert_eq!(facts.costs.len(), sessions.len());
        Self { facts, sessions, decider, ran: 0, output: Vec::new(), features: Vec::new() }
    }

    /// What everybody may know of it.
    pub fn facts(&self) -> &Arc<Facts> {
        &self.facts
    }

    /// Runs a batch: as many inputs as one of the proven sizes.
    ///
    /// # Errors
    /// The failure of the whole batch.
    pub fn run<'a>(&mut self, inputs: impl ExactSizeIterator<Item = &'a WindowInput>) -> Result<(), Failure> {
        let size = inputs.len();
        let index = self.facts.costs.iter().position(|cost| cost.size == size);
        let index = index.ok_or_else(|| Failure::session(&format_args!("no batch of {size} was proved")))?;
        let session = self.sessions[index].as_mut();
        let each = self.facts.input.elements();
        for (row, input) in inputs.enumerate() {
            if input.len() != each {
                let found = input.len();
                return Err(Failure::session(&format_args!("a window of {found} values; the graph takes {each}")));
            }
            match input {
                WindowInput::Real(features) => {
                    limpet_engine::write_real_at(session, 0, row * each, features)
                        .map_err(|error| Failure::session(&error))?;
                }
                WindowInput::Integers(bytes) => {
                    write_integers(session.input_mut(0), row, bytes).map_err(|error| Failure::session(&error))?;
                }
            }
        }
        session.run().map_err(|error| Failure::session(&error))?;
        self.ran = index;
        limpet_engine::read_real(session, self.decider.output(), &mut self.output)
            .map_err(|error| Failure::session(&error))
    }

    /// Decides on one row of what was run last, from this input.
    ///
    /// # Errors
    /// If the output is not finite.
    pub fn verdict(&mut self, row: usize, input: &WindowInput) -> Result<Verdict, Failure> {
        let features = match input {
            WindowInput::Real(features) => features.as_slice(),
            WindowInput::Integers(bytes) => {
                if self.decider.needs_features() {
                    dequantize(&self.facts.input, bytes, &mut self.features);
                }
                &self.features
            }
        };
        let elements = self.decider.elements();
        self.decider.decide(&self.output[row * elements..][..elements], features).map_err(|error| Failure {
            outcome: Outcome::Invalid,
            reason: "output_not_finite",
            sentence: error.to_string(),
        })
    }

    /// A hash of one row of every output of what was run last, in the graph's own types: equal where they are to a bit.
    pub fn fingerprint(&self, row: usize) -> u64 {
        let session = &self.sessions[self.ran];
        let rows = self.facts.costs[self.ran].size;
        let hash = |hash, output| match session.output(output) {
            TensorRef::F32(values) => fnv(hash, of_row(values, row, rows).iter().map(|value| value.to_bits())),
            TensorRef::I8(values) => fnv(hash, of_row(values, row, rows).iter().map(|value| *value as u32)),
            TensorRef::U8(values) => fnv(hash, of_row(values, row, rows).iter().map(|value| u32::from(*value))),
        };
        (0..session.outputs().len()).fold(FNV_OFFSET, hash)
    }

    /// One row of every output of what was run last, in the graph's own types.
    pub fn outputs(&self, row: usize) -> Vec<Stored> {
        let session = &self.sessions[self.ran];
        let rows = self.facts.costs[self.ran].size;
        (0..session.outputs().len()).map(|output| Stored::row(session.output(output), row, rows)).collect()
    }
}

/// Offset basis and prime of FNV-1a for 64 bits (draft-eastlake-fnv), here over whole elements.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

fn fnv(hash: u64, elements: impl Iterator<Item = u32>) -> u64 {
    elements.fold(hash, |hash, element| (hash ^ u64::from(element)).wrapping_mul(FNV_PRIME))
}

/// One row of a batch's elements.
fn of_row<T>(values: &[T], row: usize, rows: usize) -> &[T] {
    let each = values.len() / rows;
    &values[row * each..][..each]
}

/// Elements of a tensor, owned.
#[derive(Debug, Clone, PartialEq)]
pub enum Stored {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// Signed 8-bit integers.
    I8(Vec<i8>),
    /// Unsigned 8-bit integers.
    U8(Vec<u8>),
}

impl Stored {
    fn row(tensor: TensorRef<'_>, row: usize, rows: usize) -> Self {
        match tensor {
            TensorRef::F32(values) => Self::F32(of_row(values, row, rows).to_vec()),
            TensorRef::I8(values) => Self::I8(of_row(values, row, rows).to_vec()),
            TensorRef::U8(values) => Self::U8(of_row(values, row, rows).to_vec()),
        }
    }
}

fn write_integers(input: TensorMut<'_>, row: usize, bytes: &[u8]) -> Result<(), &'static str> {
    let start = row * bytes.len();
    match input {
        TensorMut::U8(values) => values[start..][..bytes.len()].copy_from_slice(bytes),
        TensorMut::I8(values) => {
            values[start..].iter_mut().zip(bytes).for_each(|(value, byte)| *value = *byte as i8);
        }
        TensorMut::F32(_) => return Err("integers for a graph that takes floats"),
    }
    Ok(())
}

/// What integers stand for, where the decision compares the output with it.
fn dequantize(input: &TensorSpec, bytes: &[u8], real: &mut Vec<f32>) {
    real.clear();
    real.resize(bytes.len(), 0.0);
    let Some(quantization) = input.quantization else { return };
    let signed = input.element == ElementType::I8;
    for (real, byte) in real.iter_mut().zip(bytes) {
        let stored = if signed { i32::from(*byte as i8) } else { i32::from(*byte) };
        *real = (stored - quantization.zero_point) as f32 * quantization.scale;
    }
}
