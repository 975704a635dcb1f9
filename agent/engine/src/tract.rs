//! Engine `tract`: ONNX graphs in pure Rust (crate `tract-onnx`).
//!
//! **Right on quantized graphs.** `linear.rs` replaces the operators through which tract 0.23.9 gives wrong answers,
//! and says how.
//!
//! **What is refused**, with the reason (`checks.rs`): operators that tract does not know, or would take for others,
//! edges that are neither f32, i8 nor u8, dimensions other than the first that are not fixed, a batch that the graph
//! does not carry through, and graphs that give the same input another answer (see `warm.rs`).
//!
//! **What sessions share.** A file is parsed once per graph. Sessions of one batch size share one optimized plan with all
//! of its weights, for as long as one of them lives. Plans of different sizes are optimized apart, from clones of the
//! parsed model, whose constants they share until a product's weights are packed, which is most of them. Measured on the
//! int8 models of MLPerf Tiny: a second session takes 0 to 32 kB, the first 250 to 1,600 kB, one for a batch of 8 another
//! 160 to 2,500 kB, and the graph itself 160 to 690 kB for as long as it is held.
//!
//! **Recurrent layers.** An ONNX LSTM, GRU, RNN or Scan starts every run from its initial state. tract 0.23.9 keeps
//! the state of the last run in the plan's state instead (its streaming use wants that), so the second run of a
//! session is wrong. A session with such operators gets a new plan state after every run.
//!
//! **Threads that a session leaves.** tract keeps a matrix product's scratch memory by session in each thread that ran
//! it, and frees it in the thread alone that drops the session. Sessions are made on one thread and run on another, so
//! every load would leave some 6 kB behind (measured on the int8 models of MLPerf Tiny). Each run therefore frees what
//! it left in its thread; the buffer itself stays for the thread's next run, of whatever session.
//!
//! **Allocation.** Inputs live in tensors of the session that each run shares with tract, uncopied. tract itself
//! allocates the result of every operator, on every run, and frees each when its last reader is done; the results of
//! the last run are kept until the next one.
//!
//! **Threads.** One. tract can share a matrix product between threads with its feature `multithread-mm`, which costs
//! a thread pool for products that are too small on a gateway to gain from it; [`LoadOptions::threads`] is ignored.

use std::any::Any;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tract_onnx::pb;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::SessionId;
use tract_onnx::tract_core::plan::eval;
use tract_onnx::tract_hir::internal::{
    DimFact, DimLike, GenericFactoid, ShapeFactoid, Symbol, TDim, ToDim, bail, ensure,
};

use crate::warm::warm;
use crate::{
    ElementType, Engine, EngineError, Format, Graph, Library, LoadOptions, Quantization, Session, TensorMut, TensorRef,
    TensorSpec,
};

mod checks;
mod edges;
mod linear;
mod qoperator;

const NAME: &str = "tract";

/// tract.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tract;

impl Engine for Tract {
    fn name(&self) -> &'static str {
        NAME
    }

    fn reads(&self, format: Format) -> bool {
        format == Format::Onnx
    }

    fn library(&self) -> Library {
        // Linked in: the digest of the agent itself stands for it. tract tells no version at run time; this one is
        // compared with Cargo.lock by a test.
        Library { version: VERSION.to_owned(), sha256: None }
    }

    fn open(&self, format: Format, graph: &[u8]) -> Result<Box<dyn Graph>, EngineError> {
        if !self.reads(format) {
            return Err(refused(format!("it reads ONNX, not {format:?}")));
        }
        let graph = without_panic(|| {
            let reader = reader();
            let model = reader
                .proto_model_for_read(&mut &*graph)
                .map_err(|error| format!("it is no ONNX model, or a damaged one: {error:#}"))?;
            TractGraph::parse(&reader, model)
        })?;
        Ok(Box::new(graph))
    }
}

fn refused(reason: String) -> EngineError {
    EngineError::Refused { engine: NAME, reason }
}

/// tract panics on some graphs that make no sense (a tensor of strings, an output that nothing gives).
fn without_panic<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, EngineError> {
    std::panic::catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(format!("tract gave up on it: {}", panic_message(&*panic))))
        .map_err(refused)
}

/// The version of tract that this build is linked with.
const VERSION: &str = "0.23.9";

fn reader() -> tract_onnx::Onnx {
    let mut reader = tract_onnx::onnx();
    linear::register(&mut reader.op_register);
    reader
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("it panicked without a message")
}

/// A file that was parsed, with the plans that sessions run.
struct TractGraph {
    model: InferenceModel,
    /// Tensors inside the graph whose shape the file declares, which is that of the batch that was exported.
    declared: Vec<OutletId>,
    inputs: Vec<Edge>,
    outputs: Vec<Edge>,
    /// By batch size.
    plans: Mutex<BTreeMap<usize, Weak<Plan>>>,
}

/// Name of an input or output, with its scale and zero point where the file tells them.
type Edge = (String, Option<Quantization>);

/// What was optimized for one batch size.
struct Plan {
    plan: Arc<TypedSimplePlan>,
    input_specs: Vec<TensorSpec>,
    output_specs: Vec<TensorSpec>,
}

impl TractGraph {
    fn parse(reader: &tract_onnx::Onnx, mut model: pb::ModelProto) -> Result<Self, String> {
        let opset = opset(&model);
        let graph = model.graph.as_mut().ok_or("it is no ONNX model, or a damaged one: it holds no graph")?;
        let inputs = edges::inputs(graph);
        let outputs = edges::outputs(graph);
        qoperator::rewrite(graph, opset);
        checks::operators(reader, graph)?;
        checks::outputs(graph)?;
        let given: HashSet<&str> = graph
            .input
            .iter()
            .map(|input| &*input.name)
            .chain(graph.initializer.iter().map(|constant| &*constant.name))
            .collect();
        let computed: Vec<String> =
            graph.value_info.iter().map(|info| &info.name).filter(|name| !given.contains(&***name)).cloned().collect();
        let parsed = reader.parse(&model, None).map_err(|error| reason(&error))?;
        if !parsed.unresolved_inputs.is_empty() {
            return Err(format!("nothing in it computes the tensors {:?}", parsed.unresolved_inputs));
        }
        let declared = computed.iter().filter_map(|name| parsed.outlets_by_name.get(name).copied()).collect();
        Ok(Self { model: parsed.model, declared, inputs, outputs, plans: Mutex::default() })
    }

    /// The plan for this batch, which may have been made for another session.
    fn plan(&self, batch: usize) -> Result<Arc<Plan>, String> {
        // Whoever comes second wants what the first one is making. A panic inside left the map as it was.
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = plans.get(&batch).and_then(Weak::upgrade) {
            return Ok(plan);
        }
        let plan = Arc::new(self.optimize(batch)?);
        plans.insert(batch, Arc::downgrade(&plan));
        Ok(plan)
    }

    fn optimize(&self, batch: usize) -> Result<Plan, String> {
        let typed = self.typed(batch).map_err(|error| reason(&error))?;
        let mut input_specs = Vec::new();
        for (index, (name, quantization)) in self.inputs.iter().enumerate() {
            let fact = typed.input_fact(index).map_err(|error| reason(&error))?;
            input_specs.push(spec("input", name.clone(), fact, *quantization)?);
        }
        let mut output_specs = Vec::new();
        for (index, (name, quantization)) in self.outputs.iter().enumerate() {
            let fact = typed.output_fact(index).map_err(|error| reason(&error))?;
            let spec = spec("output", name.clone(), fact, *quantization)?;
            if batch > 1 && spec.shape.first() != Some(&batch) {
                return Err(format!(
                    "it cannot run with a batch of {batch}: output '{}' stays {:?}, without a batch dimension",
                    spec.name, spec.shape
                ));
            }
            output_specs.push(spec);
        }
        if input_specs.is_empty() || output_specs.is_empty() {
            return Err("it has no input or no output".to_owned());
        }
        let plan =
            typed.into_optimized().and_then(|optimized| optimized.into_runnable()).map_err(|error| reason(&error))?;
        Ok(Plan { plan, input_specs, output_specs })
    }

    /// The graph with every dimension known: the first of each input is the batch where the file leaves it open, or
    /// where it is 1 and another batch is asked for.
    fn typed(&self, batch: usize) -> TractResult<TypedModel> {
        let mut model = self.model.clone();
        if batch > 1 {
            for &outlet in &self.declared {
                model.set_outlet_fact(outlet, InferenceFact::default())?;
            }
        }
        let mut symbols: HashMap<Symbol, TDim> = HashMap::new();
        for outlet in model.input_outlets()?.to_vec() {
            let name = model.node(outlet.node).name.clone();
            let mut fact = model.outlet_fact(outlet)?.clone();
            let dimensions: Vec<DimFact> = fact.shape.dims().cloned().collect();
            let Some(first) = dimensions.first() else {
                ensure!(batch == 1, "it cannot run with a batch of {batch}: input '{name}' is a single number");
                continue;
            };
            for (axis, dimension) in dimensions.iter().enumerate().skip(1) {
                ensure!(
                    matches!(dimension, GenericFactoid::Only(size) if size.to_usize().is_ok()),
                    "dimension {axis} of input '{name}' is not fixed in the file ({dimension:?}); only the first, the \
                     batch, may be left open"
                );
            }
            let fixed = match first {
                GenericFactoid::Only(size) => size.to_usize().ok(),
                GenericFactoid::Any => None,
            };
            match (first, fixed) {
                (GenericFactoid::Only(TDim::Sym(symbol)), _) => {
                    symbols.insert(symbol.clone(), batch.to_dim());
                }
                (_, Some(size)) if size == batch || batch == 1 => continue,
                (_, Some(1) | None) => {}
                (_, Some(size)) => {
                    bail!(
                        "it cannot run with a batch of {batch}: the first dimension of input '{name}' is fixed at {size}"
                    )
                }
            }
            let mut shape: Vec<DimFact> = dimensions;
            shape[0] = batch.to_dim().into();
            fact.shape = ShapeFactoid::closed(shape.into_iter().collect());
            model.set_outlet_fact(outlet, fact)?;
        }
        model.set_symbols(&symbols)?;
        model.into_typed()
    }

    fn new_session(&self, batch: usize) -> Result<TractSession, String> {
        let plan = self.plan(batch)?;
        let state = plan.plan.spawn().map_err(|error| reason(&error))?;
        let inputs = plan
            .input_specs
            .iter()
            .map(|spec| Tensor::zero_dt(datum_type(spec.element), &spec.shape).map(Arc::new))
            .collect::<TractResult<Vec<_>>>()
            .map_err(|error| reason(&error))?;
        let remembers = state.op_states.iter().any(Option::is_some);
        let mut session = TractSession { plan, state, remembers, inputs, outputs: tvec![] };
        warm(&mut session)?;
        Ok(session)
    }
}

impl Graph for TractGraph {
    fn session(&self, options: LoadOptions) -> Result<Box<dyn Session>, EngineError> {
        if options.batch == 0 {
            return Err(refused("the batch must be at least 1".to_owned()));
        }
        Ok(Box::new(without_panic(|| self.new_session(options.batch))?))
    }
}

struct TractSession {
    plan: Arc<Plan>,
    state: TypedSimpleState,
    /// Whether an operator of the plan remembers, so that each run needs a new state.
    remembers: bool,
    /// Shared with tract during a run, ours alone between runs.
    inputs: Vec<Arc<Tensor>>,
    outputs: TVec<TValue>,
}

impl TractSession {
    /// Runs the plan, and leaves nothing of this session in the thread and nothing for operators to remember.
    fn run_plan(&mut self, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let mut session = SessionId::NONE;
        let outputs = self.state.run_plan_with_eval(inputs, |context, op_state, node, inputs| {
            session = context.session;
            eval(context, op_state, node, inputs)
        })?;
        if self.remembers {
            // Bodies of loops have sessions of their own, which go with the state.
            self.renew_state()?;
        } else {
            for (index, node) in self.plan.plan.model().nodes().iter().enumerate() {
                node.op().drop_session(session, index);
            }
        }
        Ok(outputs)
    }

    fn renew_state(&mut self) -> TractResult<()> {
        self.state = self.plan.plan.spawn()?;
        Ok(())
    }
}

impl Session for TractSession {
    fn inputs(&self) -> &[TensorSpec] {
        &self.plan.input_specs
    }

    fn outputs(&self) -> &[TensorSpec] {
        &self.plan.output_specs
    }

    fn input_mut(&mut self, index: usize) -> TensorMut<'_> {
        let element = self.plan.input_specs[index].element;
        // A copy only if the last outputs are the input itself (a graph that hands it through) and still held.
        let tensor = Arc::make_mut(&mut self.inputs[index]);
        match element {
            ElementType::F32 => TensorMut::F32(slice_mut(tensor)),
            ElementType::I8 => TensorMut::I8(slice_mut(tensor)),
            ElementType::U8 => TensorMut::U8(slice_mut(tensor)),
        }
    }

    fn run(&mut self) -> Result<(), EngineError> {
        self.outputs.clear();
        let inputs = self.inputs.iter().map(|input| TValue::from_const(input.clone())).collect();
        let result = self.run_plan(inputs).and_then(|outputs| {
            // The slices of `output` rely on what was promised when the graph was loaded.
            for (output, spec) in outputs.iter().zip(&self.plan.output_specs) {
                if output.shape() != &*spec.shape || output.datum_type().unquantized() != datum_type(spec.element) {
                    bail!(
                        "output '{}' came as {:?} {:?} instead of {} {:?}",
                        spec.name,
                        output.datum_type(),
                        output.shape(),
                        spec.element,
                        spec.shape
                    );
                }
            }
            self.outputs = outputs;
            Ok(())
        });
        result.map_err(|error| {
            // What a failed turn left behind must not meet the next one.
            let reason = match self.renew_state() {
                Ok(()) => reason(&error),
                Err(also) => format!("{}; and then: {}", reason(&error), reason(&also)),
            };
            EngineError::Run { engine: NAME, reason }
        })
    }

    fn output(&self, index: usize) -> TensorRef<'_> {
        let element = self.plan.output_specs[index].element;
        let Some(value) = self.outputs.get(index) else {
            // Nothing was run, or the last run failed.
            return match element {
                ElementType::F32 => TensorRef::F32(&[]),
                ElementType::I8 => TensorRef::I8(&[]),
                ElementType::U8 => TensorRef::U8(&[]),
            };
        };
        const WHY: &str = "type and density were checked when the run ended";
        let view = value.try_as_plain_ram().expect(WHY);
        match element {
            ElementType::F32 => TensorRef::F32(view.as_slice().expect(WHY)),
            ElementType::I8 => TensorRef::I8(view.as_slice().expect(WHY)),
            ElementType::U8 => TensorRef::U8(view.as_slice().expect(WHY)),
        }
    }
}

fn slice_mut<T: Datum>(tensor: &mut Tensor) -> &mut [T] {
    tensor
        .to_plain_array_view_mut::<T>()
        .ok()
        .and_then(|view| view.into_slice())
        .expect("input tensors are made here, dense and of the specification's type")
}

fn datum_type(element: ElementType) -> DatumType {
    match element {
        ElementType::F32 => DatumType::F32,
        ElementType::I8 => DatumType::I8,
        ElementType::U8 => DatumType::U8,
    }
}

/// An error of tract's with what caused it, in one line.
fn reason(error: &TractError) -> String {
    let mut text = format!("{error:#}").replace('\n', " ");
    // tract's errors may carry whole tensors and graphs.
    const LONGEST: usize = 600;
    if let Some((end, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// The version of the standard that the file's operators are of.
fn opset(model: &pb::ModelProto) -> i64 {
    let standard = |domain: &str| domain.is_empty() || domain == "ai.onnx";
    model.opset_import.iter().find(|import| standard(&import.domain)).map_or(0, |import| import.version)
}

fn spec(edge: &str, name: String, fact: &TypedFact, quantization: Option<Quantization>) -> Result<TensorSpec, String> {
    let element = match fact.datum_type.unquantized() {
        DatumType::F32 => ElementType::F32,
        DatumType::I8 => ElementType::I8,
        DatumType::U8 => ElementType::U8,
        other => {
            return Err(format!("{edge} '{name}' holds elements of type {other:?}; F32, I8 and U8 are supported"));
        }
    };
    let shape = fact
        .shape
        .as_concrete()
        .ok_or_else(|| format!("{edge} '{name}' has dimensions that depend on data: {:?}", fact.shape))?
        .to_vec();
    let quantization = quantization.and_then(|found| match element {
        ElementType::F32 => None,
        ElementType::I8 => Quantization::checked::<i8>(found.scale, found.zero_point),
        ElementType::U8 => Quantization::checked::<u8>(found.scale, found.zero_point),
    });
    Ok(TensorSpec { name, element, shape, quantization })
}

#[cfg(test)]
mod tests;
