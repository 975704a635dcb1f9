//! Quantized operators of ONNX Runtime's own domain, rewritten in terms of the standard's.
//!
//! ONNX Runtime's quantizer writes, in its QOperator form, operators of the domain `com.microsoft` that tract does not
//! know: `y = QLinearX(a, a_scale, a_zero_point, …, y_scale, y_zero_point)` is defined as X on the dequantized inputs,
//! quantized. So each becomes DequantizeLinear → X → QuantizeLinear in the file's graph before tract reads it. The
//! standard's own QLinearConv, QLinearMatMul, ConvInteger and MatMulInteger stay: tract runs them on integers, and
//! right (the zoo has them in every mixture of u8 and i8, per tensor and per channel).
//!
//! What is not rewritten (another operator, an attribute without a counterpart) stays as it is and is then refused by
//! name, as every unknown operator is.

use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto, TensorProto};

use super::edges::constant;

const DOMAIN: &str = "com.microsoft";

/// The first version of the standard in which Softmax works along one axis instead of flattening around it.
const SOFTMAX_BY_AXIS: i64 = 13;

/// Rewrites the operators of `graph`, a graph of a file that imports version `opset` of the standard.
pub(super) fn rewrite(graph: &mut GraphProto, opset: i64) {
    if graph.node.iter().all(|node| node.domain != DOMAIN) {
        return;
    }
    let mut nodes = Vec::with_capacity(graph.node.len());
    let mut made = Vec::new();
    for node in &graph.node {
        let rewritten = (node.domain == DOMAIN).then(|| expand(graph, node, opset)).flatten();
        match rewritten {
            Some(expanded) => {
                nodes.extend(expanded.nodes);
                made.extend(expanded.constants);
            }
            None => nodes.push(node.clone()),
        }
    }
    graph.node = nodes;
    graph.initializer.extend(made);
}

/// What a node becomes, under construction.
struct Expanded<'a> {
    original: &'a NodeProto,
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
}

fn expand<'a>(graph: &GraphProto, node: &'a NodeProto, opset: i64) -> Option<Expanded<'a>> {
    let mut made = Expanded { original: node, nodes: Vec::new(), constants: Vec::new() };
    // Attributes that the standard operator has too go over; the others must have the value that means nothing.
    let (operator, standard): (&str, &[&str]) = match &*node.op_type {
        "QLinearAdd" => ("Add", &[]),
        "QLinearMul" => ("Mul", &[]),
        "QLinearSigmoid" => ("Sigmoid", &[]),
        "QLinearLeakyRelu" => ("LeakyRelu", &["alpha"]),
        "QLinearConcat" => ("Concat", &["axis"]),
        "QLinearGlobalAveragePool" => ("GlobalAveragePool", &[]),
        "QLinearAveragePool" => (
            "AveragePool",
            &["auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides", "dilations"],
        ),
        "QLinearSoftmax" => ("Softmax", &["axis"]),
        "QGemm" => ("Gemm", &["alpha", "transA", "transB"]),
        _ => return None,
    };
    let mut attributes = Vec::new();
    for attribute in &node.attribute {
        match &*attribute.name {
            name if standard.contains(&name) => attributes.push(attribute.clone()),
            // Channels last would need transpositions.
            "channels_last" if attribute.i == 0 => {}
            "opset" if (attribute.i >= SOFTMAX_BY_AXIS) == (opset >= SOFTMAX_BY_AXIS) => {}
            _ => return None,
        }
    }

    let inputs = match &*node.op_type {
        "QLinearAdd" | "QLinearMul" => vec![made.dequantized(0, None)?, made.dequantized(3, None)?],
        "QLinearConcat" => {
            (2..node.input.len()).step_by(3).map(|index| made.dequantized(index, None)).collect::<Option<_>>()?
        }
        "QGemm" => made.gemm_inputs(graph)?,
        _ => vec![made.dequantized(0, None)?],
    };
    let output_scale = match &*node.op_type {
        "QLinearAdd" | "QLinearMul" => 6,
        "QLinearConcat" => 0,
        "QGemm" => 7,
        _ => 3,
    };
    let output = node.output.first()?.clone();
    let Some(scale) = made.input(output_scale).map(str::to_owned) else {
        // QGemm may leave its result in floats. Nothing else may.
        if node.op_type != "QGemm" {
            return None;
        }
        made.push(operator, inputs, output, attributes);
        return Some(made);
    };
    let real = made.name("real");
    made.push(operator, inputs, real.clone(), attributes);
    let mut quantize = vec![real, scale];
    quantize.extend(made.input(output_scale + 1).map(str::to_owned));
    made.push("QuantizeLinear", quantize, output, Vec::new());
    Some(made)
}

impl Expanded<'_> {
    /// Input `index` of the original, or none if it has none.
    fn input(&self, index: usize) -> Option<&str> {
        self.original.input.get(index).map(|name| &**name).filter(|name| !name.is_empty())
    }

    /// A tensor name that no other tensor of the file has: it starts with the original's output.
    fn name(&self, part: &str) -> String {
        let output = self.original.output.first().map_or("", |name| &**name);
        format!("{output}:limpet:{part}")
    }

    fn push(&mut self, operator: &str, input: Vec<String>, output: String, attribute: Vec<AttributeProto>) {
        self.nodes.push(NodeProto {
            name: output.clone(),
            op_type: operator.to_owned(),
            input,
            output: vec![output],
            attribute,
            ..Default::default()
        });
    }

    /// The real values of input `index`, whose scale and zero point are the two inputs after it; `axis` is that of
    /// the scales, if there are several.
    fn dequantized(&mut self, index: usize, axis: Option<i64>) -> Option<String> {
        let mut inputs = vec![self.input(index)?.to_owned(), self.input(index + 1)?.to_owned()];
        inputs.extend(self.input(index + 2).map(str::to_owned));
        let output = self.name(&format!("input{index}"));
        self.push(
            "DequantizeLinear",
            inputs,
            output.clone(),
            axis.map(|axis| integer("axis", axis)).into_iter().collect(),
        );
        Some(output)
    }

    /// A, B and, if there is one, C, whose scale is the product of the others' and of alpha.
    fn gemm_inputs(&mut self, graph: &GraphProto) -> Option<Vec<String>> {
        let attribute = |name: &str| self.original.attribute.iter().find(|attribute| attribute.name == name);
        let transposed = attribute("transB").is_some_and(|attribute| attribute.i != 0);
        let alpha = attribute("alpha").map_or(1.0, |attribute| attribute.f);
        let mut inputs = vec![self.dequantized(0, None)?, self.dequantized(3, Some(i64::from(!transposed)))?];
        if let Some(bias) = self.input(6).map(str::to_owned) {
            let [a] = constant(graph, self.input(1)?)?[..] else { return None };
            let scales: Vec<f32> =
                constant(graph, self.input(4)?)?.iter().map(|b| (f64::from(alpha) * a * b) as f32).collect();
            let scale = self.name("bias_scale");
            self.constants.push(TensorProto {
                name: scale.clone(),
                data_type: DataType::Float as i32,
                dims: if scales.len() == 1 { Vec::new() } else { vec![scales.len() as i64] },
                float_data: scales,
                ..Default::default()
            });
            let output = self.name("bias");
            self.push("DequantizeLinear", vec![bias, scale], output.clone(), vec![integer("axis", 0)]);
            inputs.push(output);
        }
        Some(inputs)
    }
}

fn integer(name: &str, value: i64) -> AttributeProto {
    AttributeProto { name: name.to_owned(), r#type: AttributeType::Int as i32, i: value, ..Default::default() }
}
