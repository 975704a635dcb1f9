//! What tract would get wrong, or would fail at without saying where, found in the file before tract reads it.

use std::collections::HashSet;

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{GraphProto, NodeProto};
use tract_onnx::prelude::*;

/// Operator domains whose operators tract implements. It looks operators up by name alone, so one of another domain
/// would be taken for the standard operator of that name.
const DOMAINS: [&str; 4] = ["", "ai.onnx", "ai.onnx.ml", "com.microsoft"];

/// Names every operator and constant that cannot be used, in this graph and in the bodies of its loops and branches.
pub(super) fn operators(reader: &tract_onnx::Onnx, graph: &GraphProto) -> Result<(), String> {
    for tensor in &graph.initializer {
        let known = DataType::try_from(tensor.data_type);
        if known.ok().is_none_or(|known| DatumType::try_from(known).is_err()) {
            let found = known.map_or_else(|_| tensor.data_type.to_string(), |known| known.as_str_name().to_owned());
            return Err(format!("constant '{}' is of type {found}, which it does not know", tensor.name));
        }
    }
    for node in &graph.node {
        let name = node.output.first().map_or(&*node.name, |output| &**output);
        if !DOMAINS.contains(&&*node.domain) {
            return Err(format!("operator {} ('{name}') is of the domain '{}'", node.op_type, node.domain));
        }
        if !reader.op_register.0.contains_key(&node.op_type) {
            let domain = if node.domain.is_empty() { "ONNX" } else { &node.domain };
            return Err(format!("it does not know operator {} of {domain} ('{name}')", node.op_type));
        }
        recurrent(node)?;
        half_gemm(graph, node)?;
        for body in node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs)) {
            operators(reader, body)?;
        }
    }
    Ok(())
}

/// Every output must come from somewhere; tract does not look.
pub(super) fn outputs(graph: &GraphProto) -> Result<(), String> {
    let given: HashSet<&str> = (graph.input.iter().map(|input| &*input.name))
        .chain(graph.initializer.iter().map(|tensor| &*tensor.name))
        .chain(graph.node.iter().flat_map(|node| node.output.iter().map(|output| &**output)))
        .collect();
    match graph.output.iter().find(|output| !given.contains(&*output.name)) {
        Some(output) => Err(format!("nothing in it computes its output '{}'", output.name)),
        None => Ok(()),
    }
}

/// Recurrent layers whose attributes tract 0.23.9 does not look at: it takes every layer for one that runs forward (or
/// both ways) with the standard's default activations, no clipping and separate input and forget gates.
fn recurrent(node: &NodeProto) -> Result<(), String> {
    let default: &[&str] = match &*node.op_type {
        "RNN" => &["Tanh"],
        "GRU" => &["Sigmoid", "Tanh"],
        "LSTM" => &["Sigmoid", "Tanh", "Tanh"],
        _ => return Ok(()),
    };
    let refuse = |what: String| {
        let name = node.output.iter().find(|output| !output.is_empty()).map_or(&*node.name, |output| &**output);
        Err(format!("{} ('{name}') {what}, which it would not do", node.op_type))
    };
    for attribute in &node.attribute {
        match &*attribute.name {
            "direction" if attribute.s.eq_ignore_ascii_case(b"reverse") => {
                return refuse("runs in reverse alone".to_owned());
            }
            "activations" => {
                let names: Vec<_> = attribute.strings.iter().map(|name| String::from_utf8_lossy(name)).collect();
                let default = default.iter().cycle().take(names.len());
                if !names.iter().zip(default).all(|(name, default)| name.eq_ignore_ascii_case(default)) {
                    return refuse(format!("has the activations {}", names.join(", ")));
                }
            }
            "clip" => return refuse(format!("clips its sums at {}", attribute.f)),
            "input_forget" if attribute.i != 0 => return refuse("couples input and forget gate".to_owned()),
            _ => {}
        }
    }
    Ok(())
}

/// tract 0.23.9 multiplies the bias of a Gemm by a 32-bit 1, and then cannot add it to 16-bit floats.
fn half_gemm(graph: &GraphProto, node: &NodeProto) -> Result<(), String> {
    let half = |name: &String| {
        graph.initializer.iter().any(|tensor| tensor.name == *name && tensor.data_type == DataType::Float16 as i32)
    };
    if node.op_type == "Gemm" && node.input.get(2).is_some_and(half) {
        return Err(format!(
            "Gemm ('{}') adds its bias in 16-bit floats, which it cannot; keep the weights in 16 bits and the \
             arithmetic in 32 (a Cast after each constant), or leave Gemm in f32",
            node.output.first().map_or(&*node.name, |output| &**output)
        ));
    }
    Ok(())
}
