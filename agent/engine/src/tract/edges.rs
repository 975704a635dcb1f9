//! Scale and zero point of a graph's integer inputs and outputs.
//!
//! ONNX gives them to operators, not to tensors: an integer input is what its first reader takes it for
//! (DequantizeLinear, or an operator of the QLinear family), an integer output what its writer makes of it. Operators
//! that only move elements around are looked through. Readers that disagree, values by channel, and scales that are
//! not stored in the file give no answer, and then the edge has no quantization.

use std::collections::HashSet;

use tract_onnx::pb::{GraphProto, NodeProto};

use crate::Quantization;

/// Operators whose output holds elements of their first input as they are.
const MOVERS: [&str; 13] = [
    "Identity",
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Slice",
    "Gather",
    "MaxPool",
    "Expand",
    "Tile",
    "DepthToSpace",
    "SpaceToDepth",
];

/// The graph's inputs proper, in its order (older files list constants among them), with what their readers take
/// their stored values for.
pub(super) fn inputs(graph: &GraphProto) -> Vec<(String, Option<Quantization>)> {
    let constants: HashSet<&str> = graph.initializer.iter().map(|tensor| &*tensor.name).collect();
    let names = graph.input.iter().map(|input| &input.name).filter(|name| !constants.contains(&***name));
    names.map(|name| (name.clone(), input_quantization(graph, name))).collect()
}

/// The graph's outputs, in its order, with what their writers make of their values.
pub(super) fn outputs(graph: &GraphProto) -> Vec<(String, Option<Quantization>)> {
    graph.output.iter().map(|output| (output.name.clone(), output_quantization(graph, &output.name))).collect()
}

fn input_quantization(graph: &GraphProto, name: &str) -> Option<Quantization> {
    let mut found = None;
    let mut tensors = vec![name];
    let mut seen = HashSet::new();
    while let Some(tensor) = tensors.pop() {
        if !seen.insert(tensor) {
            continue;
        }
        for node in graph.node.iter().filter(|node| node.input.iter().any(|input| input == tensor)) {
            if moves(node, tensor) {
                tensors.extend(node.output.first().map(|output| &**output));
                continue;
            }
            let (scale, zero_point) = reading(node, tensor)?;
            let quantization = constants(graph, scale, zero_point)?;
            if found.is_some_and(|before| before != quantization) {
                return None;
            }
            found = Some(quantization);
        }
    }
    found
}

fn output_quantization(graph: &GraphProto, name: &str) -> Option<Quantization> {
    let mut tensor = name;
    // A file's nodes are in order of computation, so each step goes to an earlier one; the bound is for files that
    // break that rule in a circle.
    for _ in 0..=graph.node.len() {
        let node = graph.node.iter().find(|node| node.output.iter().any(|output| output == tensor))?;
        if let Some((scale, zero_point)) = writing(node) {
            return constants(graph, scale, zero_point);
        }
        if !MOVERS.contains(&&*node.op_type) {
            return None;
        }
        tensor = node.input.first()?;
    }
    None
}

fn moves(node: &NodeProto, tensor: &str) -> bool {
    MOVERS.contains(&&*node.op_type) && node.input.first().is_some_and(|input| input == tensor)
}

/// Names of scale and zero point (empty: none) by which `node` reads `tensor`.
fn reading<'a>(node: &'a NodeProto, tensor: &str) -> Option<(&'a str, &'a str)> {
    let at = |index: usize| node.input.get(index).map_or("", |name| &**name);
    let starts: &[usize] = match &*node.op_type {
        "DequantizeLinear"
        | "QLinearConv"
        | "QLinearSigmoid"
        | "QLinearLeakyRelu"
        | "QLinearSoftmax"
        | "QLinearGlobalAveragePool"
        | "QLinearAveragePool"
        | "QLinearReduceMean" => &[0],
        "QLinearMatMul" | "QLinearAdd" | "QLinearMul" | "QGemm" => &[0, 3],
        "QLinearConcat" => {
            // Output scale and zero point, then threes.
            let index = (2..node.input.len()).step_by(3).find(|index| at(*index) == tensor)?;
            return Some((at(index + 1), at(index + 2)));
        }
        _ => return None,
    };
    let start = starts.iter().copied().find(|start| at(*start) == tensor)?;
    Some((at(start + 1), at(start + 2)))
}

/// Names of scale and zero point (empty: none) by which `node` writes its output.
fn writing(node: &NodeProto) -> Option<(&str, &str)> {
    let at = |index: usize| node.input.get(index).map_or("", |name| &**name);
    let scale = match &*node.op_type {
        "QuantizeLinear" => 1,
        "QLinearConv" | "QLinearMatMul" | "QLinearAdd" | "QLinearMul" => 6,
        "QGemm" => 7,
        "QLinearSigmoid"
        | "QLinearLeakyRelu"
        | "QLinearSoftmax"
        | "QLinearGlobalAveragePool"
        | "QLinearAveragePool"
        | "QLinearReduceMean" => 3,
        "QLinearConcat" => 0,
        _ => return None,
    };
    Some((at(scale), at(scale + 1)))
}

fn constants(graph: &GraphProto, scale: &str, zero_point: &str) -> Option<Quantization> {
    let scale = scalar(graph, scale)?;
    let zero_point = if zero_point.is_empty() { 0.0 } else { scalar(graph, zero_point)? };
    let sound = scale.is_finite() && scale > 0.0;
    sound.then_some(Quantization { scale: scale as f32, zero_point: zero_point as i32 })
}

/// The one element of a constant of the graph.
fn scalar(graph: &GraphProto, name: &str) -> Option<f64> {
    match constant(graph, name)?[..] {
        [value] => Some(value),
        _ => None,
    }
}

/// The elements of a constant of the graph, or none if there is no such constant inside the file.
pub(super) fn constant(graph: &GraphProto, name: &str) -> Option<Vec<f64>> {
    let stored = graph.initializer.iter().find(|tensor| tensor.name == name).or_else(|| {
        let node =
            graph.node.iter().find(|node| node.op_type == "Constant" && node.output.iter().any(|o| o == name))?;
        node.attribute.iter().find(|attribute| attribute.name == "value")?.t.as_ref()
    })?;
    let files = tract_onnx::Onnx::default().provider;
    let tensor = tract_onnx::tensor::load_tensor(&*files, stored, None).ok()?;
    let values = tensor.cast_to::<f64>().ok()?;
    let view = values.try_as_plain_ram().ok()?;
    Some(view.as_slice::<f64>().ok()?.to_vec())
}
