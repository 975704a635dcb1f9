//! QuantizeLinear and DequantizeLinear of our own, in place of tract's.
//!
//! # Why
//! tract-core 0.23.9 rewrites graphs in `DequantizeLinearF32::declutter` (`src/ops/quant.rs`): it walks from a
//! DequantizeLinear through every operator whose axes map one to one, up to a QuantizeLinear, evaluates the chain on
//! the 256 stored values as *one* vector, and puts the results into a table. Three things there are wrong:
//!
//! - Axes that map one to one do not make an operator element-wise. Softmax maps so and needs its whole axis: over
//!   the vector of all 256 stored values nearly every result rounds to the lowest step (or the one next to it), so
//!   a graph that ends in `DequantizeLinear → Softmax → QuantizeLinear` answers the same for every class.
//!   LogSoftmax, LpNormalization and cumulative sums are of the same kind.
//! - The vector is typed by the chain's *output*, so a chain that reads u8 and gives i8 (or the reverse) is evaluated
//!   on values that its input never holds.
//! - Operators with a constant per channel are element-wise along the 256 values only if that constant is one number.
//!
//! Besides, `quantize_linear_f32_{u8,i8}` convert to i32 before they add the zero point, and the sum can overflow: a
//! value of 2³¹ steps or more with a positive zero point comes out at the *lowest* stored value.
//!
//! # At which depth
//! The table is built only by that one method of that one operator, and nothing else in tract looks for the two
//! operators by type. So it is enough that no graph contains them: [`register`] replaces the two builders in the ONNX
//! reader, which covers the bodies of loops and branches too, and nothing of tract's is copied or patched. A pass over
//! the typed model would come late for bodies, and rewriting the file would not help, because there is no other
//! standard operator to rewrite to.
//!
//! A DequantizeLinear that follows a QuantizeLinear, as it does before nearly every operator of a QDQ graph, is joined
//! with it into one pass in place ([`RoundTrip`]), bit for bit the same. It halves what the two cost.
//!
//! What we give up is the table for chains that really are element-wise (a Sigmoid between two quantized layers): they
//! run in f32 like the convolutions around them.
//!
//! Our operators also know 16-bit stored values and the `output_dtype` attribute of opset 21, which tract's reader
//! ignores (it would take the output for u8). Scales must be constant and positive; blocks are refused.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::cast::cast;
use tract_onnx::tract_core::ops::math;
use tract_onnx::tract_hir::internal::*;

use crate::{Quantization, Stored};

/// Puts our builders in the place of tract's.
pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("QuantizeLinear", quantize_linear);
    operators.insert("DequantizeLinear", dequantize_linear);
}

/// What the two ONNX operators say alike.
#[derive(Debug, Clone)]
struct Parameters {
    /// Whether there is a third input.
    zero_point: bool,
    /// The axis along which scales are, if there are several.
    axis: i64,
}

impl Parameters {
    fn of(node: &NodeProto) -> TractResult<Self> {
        let block = node.get_attr_opt::<i64>("block_size")?.unwrap_or(0);
        ensure!(block == 0, "{} '{}': scales by block are not supported", node.op_type, node.name);
        Ok(Self {
            zero_point: node.input.get(2).is_some_and(|name| !name.is_empty()),
            axis: node.get_attr_opt("axis")?.unwrap_or(1),
        })
    }

    /// Scales and zero points of a wired node, as constants of equal length (one value: for the whole tensor).
    fn constants(&self, prefix: &str, model: &TypedModel, inputs: &[OutletId]) -> TractResult<Constants> {
        let constant = |input: usize, what: &str| {
            let fact = model.outlet_fact(inputs[input])?;
            fact.konst.clone().with_context(|| format!("'{prefix}': the {what} is computed by the graph, not constant"))
        };
        let scale = constant(1, "scale")?;
        let scales: Vec<f32> = scale.cast_to::<f32>()?.try_as_plain_ram()?.as_slice::<f32>()?.to_vec();
        ensure!(
            !scales.is_empty() && scales.iter().all(|scale| scale.is_finite() && *scale > 0.0),
            "'{prefix}': a scale is not a positive number"
        );
        let (stored, mut zero_points) = if self.zero_point {
            let zero_point = constant(2, "zero point")?;
            let values = zero_point.cast_to::<i32>()?.try_as_plain_ram()?.as_slice::<i32>()?.to_vec();
            (Some(zero_point.datum_type()), values)
        } else {
            (None, vec![0])
        };
        if zero_points.len() == 1 {
            zero_points = vec![zero_points[0]; scales.len()];
        }
        ensure!(
            zero_points.len() == scales.len(),
            "'{prefix}': {} scales and {} zero points",
            scales.len(),
            zero_points.len()
        );
        Ok(Constants { scales, zero_points, stored })
    }

    /// A value per channel in the shape that broadcasts along the axis of a tensor of this rank.
    fn along_axis(&self, prefix: &str, values: Vec<f32>, rank: usize, extent: &TDim) -> TractResult<Tensor> {
        let axis = self.axis_of(prefix, rank)?;
        ensure!(
            *extent == values.len().to_dim(),
            "'{prefix}': {} scales along an axis of {extent} elements",
            values.len()
        );
        let mut shape = vec![1; rank];
        shape[axis] = values.len();
        tensor1(&values).into_shape(&shape)
    }

    fn axis_of(&self, prefix: &str, rank: usize) -> TractResult<usize> {
        let axis = if self.axis < 0 { self.axis + rank as i64 } else { self.axis };
        ensure!((0..rank as i64).contains(&axis), "'{prefix}': axis {} of a tensor of rank {rank}", self.axis);
        Ok(axis as usize)
    }
}

struct Constants {
    scales: Vec<f32>,
    zero_points: Vec<i32>,
    /// Type of the zero points, where there are any.
    stored: Option<DatumType>,
}

fn quantize_linear(_: &ParsingContext, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let output = match node.get_attr_opt::<i64>("output_dtype")?.unwrap_or(0) {
        0 => None,
        _ => node.get_attr_opt::<DatumType>("output_dtype")?,
    };
    Ok((expand(QuantizeLinear { parameters: Parameters::of(node)?, output }), vec![]))
}

fn dequantize_linear(_: &ParsingContext, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    Ok((expand(DequantizeLinear { parameters: Parameters::of(node)? }), vec![]))
}

/// ONNX's QuantizeLinear as read.
#[derive(Debug, Clone)]
struct QuantizeLinear {
    parameters: Parameters,
    /// The type that the node asks for by attribute.
    output: Option<DatumType>,
}

impl Expansion for QuantizeLinear {
    fn name(&self) -> StaticName {
        "QuantizeLinear".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 2 + usize::from(self.parameters.zero_point))?;
        check_output_arity(outputs, 1)?;
        if self.parameters.zero_point {
            solver.equals(&outputs[0].datum_type, &inputs[2].datum_type)?;
        } else {
            solver.equals(&outputs[0].datum_type, self.output.unwrap_or(DatumType::U8))?;
        }
        solver.equals(&inputs[0].shape, &outputs[0].shape)
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let Constants { scales, zero_points, stored } = self.parameters.constants(prefix, model, inputs)?;
        let stored = stored.or(self.output).unwrap_or(DatumType::U8);
        ensure!(
            self.output.is_none_or(|output| output == stored),
            "'{prefix}': output_dtype and zero point differ in type"
        );
        let (lowest, highest) = match stored {
            DatumType::I8 => (i8::LOWEST, i8::HIGHEST),
            DatumType::U8 => (u8::LOWEST, u8::HIGHEST),
            DatumType::I16 => (i16::LOWEST, i16::HIGHEST),
            DatumType::U16 => (u16::LOWEST, u16::HIGHEST),
            other => bail!("'{prefix}': stored values of type {other:?} are not supported"),
        };
        let mut real = inputs[0];
        if model.outlet_fact(real)?.datum_type != DatumType::F32 {
            real = model.wire_node(format!("{prefix}.to_f32"), cast(DatumType::F32), &[real])?[0];
        }
        if let ([scale], [zero_point]) = (&*scales, &*zero_points) {
            let operator = Quantize { quantization: Quantization { scale: *scale, zero_point: *zero_point }, stored };
            return model.wire_node(prefix, operator, &[real]);
        }
        let fact = model.outlet_fact(real)?;
        let rank = fact.rank();
        let extent = fact.shape[self.parameters.axis_of(prefix, rank)?].clone();
        let zeros = zero_points.iter().map(|zero| *zero as f32).collect();
        let scale = self.parameters.along_axis(prefix, scales, rank, &extent)?;
        let zero = self.parameters.along_axis(prefix, zeros, rank, &extent)?;
        let mut value = real;
        for (step, operator, operand) in [
            ("steps", math::div(), Some(scale)),
            ("offset", math::add(), Some(zero)),
            ("low", math::max(), Some(tensor0(lowest as f32).broadcast_into_rank(rank)?)),
            ("high", math::min(), Some(tensor0(highest as f32).broadcast_into_rank(rank)?)),
        ] {
            if step == "offset" {
                // Rounded before the zero point is added, half to even, as the standard says.
                value = model.wire_node(format!("{prefix}.rounded"), math::round_half_to_even(), &[value])?[0];
            }
            let operand = operand.expect("every step has an operand");
            let operand = model.add_const(format!("{prefix}.{step}.operand"), operand)?;
            value = model.wire_node(format!("{prefix}.{step}"), operator, &[value, operand])?[0];
        }
        model.wire_node(prefix, cast(stored), &[value])
    }
}

/// ONNX's DequantizeLinear as read.
#[derive(Debug, Clone)]
struct DequantizeLinear {
    parameters: Parameters,
}

impl Expansion for DequantizeLinear {
    fn name(&self) -> StaticName {
        "DequantizeLinear".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 2 + usize::from(self.parameters.zero_point))?;
        check_output_arity(outputs, 1)?;
        if self.parameters.zero_point {
            solver.equals(&inputs[0].datum_type, &inputs[2].datum_type)?;
        }
        solver.equals(&outputs[0].datum_type, &inputs[1].datum_type)?;
        solver.equals(&inputs[0].shape, &outputs[0].shape)
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let real = model.outlet_fact(inputs[1])?.datum_type;
        ensure!(real == DatumType::F32, "'{prefix}': scales of type {real:?} are not supported, only F32");
        let Constants { scales, zero_points, .. } = self.parameters.constants(prefix, model, inputs)?;
        let fact = model.outlet_fact(inputs[0])?;
        ensure!(
            matches!(fact.datum_type, DatumType::I8 | DatumType::U8 | DatumType::I16 | DatumType::U16 | DatumType::I32),
            "'{prefix}': stored values of type {:?} are not supported",
            fact.datum_type
        );
        ensure!(
            fact.datum_type != DatumType::I32 || zero_points.iter().all(|zero| *zero == 0),
            "'{prefix}': 32-bit stored values with a zero point"
        );
        if let ([scale], [zero_point]) = (&*scales, &*zero_points) {
            let operator = Dequantize { quantization: Quantization { scale: *scale, zero_point: *zero_point } };
            return model.wire_node(prefix, operator, &[inputs[0]]);
        }
        let rank = fact.rank();
        let extent = fact.shape[self.parameters.axis_of(prefix, rank)?].clone();
        let zeros = zero_points.iter().map(|zero| *zero as f32).collect();
        let scale = self.parameters.along_axis(prefix, scales, rank, &extent)?;
        let zero = self.parameters.along_axis(prefix, zeros, rank, &extent)?;
        let scale = model.add_const(format!("{prefix}.scale"), scale)?;
        let zero = model.add_const(format!("{prefix}.zero_point"), zero)?;
        let value = model.wire_node(format!("{prefix}.to_f32"), cast(DatumType::F32), &[inputs[0]])?;
        let value = model.wire_node(format!("{prefix}.offset"), math::sub(), &[value[0], zero])?;
        model.wire_node(prefix, math::mul(), &[value[0], scale])
    }
}

/// f32 → stored values, one scale for the whole tensor.
#[derive(Debug, Clone, PartialEq)]
struct Quantize {
    quantization: Quantization,
    stored: DatumType,
}

impl Eq for Quantize {}

impl Quantize {
    fn fill<T: Stored + Datum>(&self, real: &[f32], output: &mut Tensor) -> TractResult<()> {
        self.quantization.quantize(real, output.try_as_plain_ram_mut()?.as_slice_mut::<T>()?);
        Ok(())
    }
}

impl Op for Quantize {
    fn name(&self) -> StaticName {
        "LimpetQuantize".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![format!("{:?} {:?}", self.stored, self.quantization)])
    }

    op_as_typed_op!();
}

impl EvalOp for Quantize {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let mut output = Tensor::zero_dt(self.stored, inputs[0].shape())?;
        let view = inputs[0].try_as_plain_ram()?;
        let real = view.as_slice::<f32>()?;
        match self.stored {
            DatumType::I8 => self.fill::<i8>(real, &mut output)?,
            DatumType::U8 => self.fill::<u8>(real, &mut output)?,
            DatumType::I16 => self.fill::<i16>(real, &mut output)?,
            DatumType::U16 => self.fill::<u16>(real, &mut output)?,
            other => bail!("stored values of type {other:?} are not supported"),
        }
        Ok(tvec!(output.into_tvalue()))
    }
}

impl TypedOp for Quantize {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(self.stored.fact(inputs[0].shape.clone())))
    }

    fn axes_mapping(&self, inputs: &[&TypedFact], outputs: &[&TypedFact]) -> TractResult<AxesMapping> {
        AxesMapping::natural(inputs, outputs)
    }

    fn change_axes(
        &self,
        model: &TypedModel,
        node: &TypedNode,
        _: InOut,
        change: &AxisOp,
    ) -> TractResult<Option<AxisChangeConsequence>> {
        Ok(Some(AxisChangeConsequence::new(model, node, None, change)))
    }
}

/// Stored values → f32, one scale for the whole tensor.
#[derive(Debug, Clone, PartialEq)]
struct Dequantize {
    quantization: Quantization,
}

impl Eq for Dequantize {}

impl Op for Dequantize {
    fn name(&self) -> StaticName {
        "LimpetDequantize".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![format!("{:?}", self.quantization)])
    }

    op_as_typed_op!();
}

impl EvalOp for Dequantize {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let mut output = Tensor::zero::<f32>(inputs[0].shape())?;
        let stored = inputs[0].try_as_plain_ram()?;
        {
            let mut view = output.try_as_plain_ram_mut()?;
            let real = view.as_slice_mut::<f32>()?;
            match inputs[0].datum_type().unquantized() {
                DatumType::I8 => self.quantization.dequantize(stored.as_slice::<i8>()?, real),
                DatumType::U8 => self.quantization.dequantize(stored.as_slice::<u8>()?, real),
                DatumType::I16 => self.quantization.dequantize(stored.as_slice::<i16>()?, real),
                DatumType::U16 => self.quantization.dequantize(stored.as_slice::<u16>()?, real),
                // Biases and accumulators; the reader let no zero point pass for them.
                DatumType::I32 => {
                    for (to, &from) in real.iter_mut().zip(stored.as_slice::<i32>()?) {
                        *to = from as f32 * self.quantization.scale;
                    }
                }
                other => bail!("stored values of type {other:?} are not supported"),
            }
        }
        Ok(tvec!(output.into_tvalue()))
    }
}

impl TypedOp for Dequantize {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(DatumType::F32.fact(inputs[0].shape.clone())))
    }

    fn axes_mapping(&self, inputs: &[&TypedFact], outputs: &[&TypedFact]) -> TractResult<AxesMapping> {
        AxesMapping::natural(inputs, outputs)
    }

    fn change_axes(
        &self,
        model: &TypedModel,
        node: &TypedNode,
        _: InOut,
        change: &AxisOp,
    ) -> TractResult<Option<AxisChangeConsequence>> {
        Ok(Some(AxisChangeConsequence::new(model, node, None, change)))
    }

    fn declutter(&self, model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
        let writer = model.node(node.inputs[0].node);
        let Some(there) = writer.op_as::<Quantize>() else { return Ok(None) };
        let operator = RoundTrip { there: there.clone(), back: self.quantization };
        TypedModelPatch::replace_single_op(model, node, &writer.inputs, operator).map(Some)
    }
}

/// f32 → what quantizing and dequantizing leaves of it.
#[derive(Debug, Clone, PartialEq)]
struct RoundTrip {
    there: Quantize,
    back: Quantization,
}

impl Eq for RoundTrip {}

impl Op for RoundTrip {
    fn name(&self) -> StaticName {
        "LimpetRoundTrip".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![format!("{:?} {:?} {:?}", self.there.stored, self.there.quantization, self.back)])
    }

    op_as_typed_op!();
}

impl EvalOp for RoundTrip {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        // In place where nobody else reads the input, which is the rule; a copy otherwise.
        let mut tensor = args_1!(inputs).into_tensor();
        let there = self.there.quantization;
        {
            let mut view = tensor.try_as_plain_ram_mut()?;
            let values = view.as_slice_mut::<f32>()?;
            match self.there.stored {
                DatumType::I8 => there.round_trip::<i8>(self.back, values),
                DatumType::U8 => there.round_trip::<u8>(self.back, values),
                DatumType::I16 => there.round_trip::<i16>(self.back, values),
                DatumType::U16 => there.round_trip::<u16>(self.back, values),
                other => bail!("stored values of type {other:?} are not supported"),
            }
        }
        Ok(tvec!(tensor.into_tvalue()))
    }
}

impl TypedOp for RoundTrip {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(DatumType::F32.fact(inputs[0].shape.clone())))
    }

    fn axes_mapping(&self, inputs: &[&TypedFact], outputs: &[&TypedFact]) -> TractResult<AxesMapping> {
        AxesMapping::natural(inputs, outputs)
    }

    fn change_axes(
        &self,
        model: &TypedModel,
        node: &TypedNode,
        _: InOut,
        change: &AxisOp,
    ) -> TractResult<Option<AxisChangeConsequence>> {
        Ok(Some(AxisChangeConsequence::new(model, node, None, change)))
    }
}
