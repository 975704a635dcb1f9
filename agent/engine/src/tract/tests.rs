//! Graphs built by hand, one for each answer that was once wrong or could be.

use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, type_proto,
};

use super::*;

/// A graph under construction.
struct Build {
    graph: GraphProto,
    opset: i64,
}

impl Build {
    fn new() -> Self {
        Self { graph: GraphProto::default(), opset: 13 }
    }

    fn edge(name: &str, kind: DataType, shape: &[i64]) -> ValueInfoProto {
        // A negative dimension is an open one, named after the batch.
        let dim = |size: &i64| Dimension {
            value: Some(if *size < 0 {
                dimension::Value::DimParam("N".to_owned())
            } else {
                dimension::Value::DimValue(*size)
            }),
            ..Default::default()
        };
        ValueInfoProto {
            name: name.to_owned(),
            r#type: Some(TypeProto {
                value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                    elem_type: kind as i32,
                    shape: Some(TensorShapeProto { dim: shape.iter().map(dim).collect() }),
                })),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn input(mut self, name: &str, kind: DataType, shape: &[i64]) -> Self {
        self.graph.input.push(Self::edge(name, kind, shape));
        self
    }

    fn output(mut self, name: &str, kind: DataType, shape: &[i64]) -> Self {
        self.graph.output.push(Self::edge(name, kind, shape));
        self
    }

    fn f32(mut self, name: &str, shape: &[i64], values: &[f32]) -> Self {
        self.graph.initializer.push(TensorProto {
            name: name.to_owned(),
            data_type: DataType::Float as i32,
            dims: shape.to_vec(),
            float_data: values.to_vec(),
            ..Default::default()
        });
        self
    }

    fn integers(mut self, name: &str, kind: DataType, shape: &[i64], values: &[i32]) -> Self {
        self.graph.initializer.push(TensorProto {
            name: name.to_owned(),
            data_type: kind as i32,
            dims: shape.to_vec(),
            int32_data: values.to_vec(),
            ..Default::default()
        });
        self
    }

    /// Constants `<name>_s` and `<name>_z`.
    fn scale(self, name: &str, scale: f32, kind: DataType, zero: i32) -> Self {
        self.f32(&format!("{name}_s"), &[], &[scale]).integers(&format!("{name}_z"), kind, &[], &[zero])
    }

    fn node(self, operator: &str, inputs: &[&str], output: &str) -> Self {
        self.node_with(operator, inputs, output, &[])
    }

    fn node_with(mut self, operator: &str, inputs: &[&str], output: &str, attributes: &[(&str, i64)]) -> Self {
        self.graph.node.push(NodeProto {
            name: format!("node_{output}"),
            op_type: operator.to_owned(),
            domain: if operator.starts_with('Q') && operator != "QuantizeLinear" { "com.microsoft" } else { "" }
                .to_owned(),
            input: inputs.iter().map(|input| (*input).to_owned()).collect(),
            output: vec![output.to_owned()],
            attribute: attributes
                .iter()
                .map(|(name, value)| AttributeProto {
                    name: (*name).to_owned(),
                    r#type: AttributeType::Int as i32,
                    i: *value,
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        });
        self
    }

    fn model(self) -> ModelProto {
        ModelProto {
            ir_version: 8,
            opset_import: vec![OperatorSetIdProto { version: self.opset, ..Default::default() }],
            graph: Some(self.graph),
            ..Default::default()
        }
    }

    fn load(self) -> Result<TractSession, String> {
        TractGraph::parse(&reader(), self.model())?.new_session(1)
    }

    fn refusal(self) -> String {
        self.load().err().expect("the engine refuses it")
    }
}

fn set_i8(session: &mut TractSession, values: &[i8]) {
    match session.input_mut(0) {
        TensorMut::I8(buffer) => buffer.copy_from_slice(values),
        other => panic!("{other:?}"),
    }
}

fn set_u8(session: &mut TractSession, values: &[u8]) {
    match session.input_mut(0) {
        TensorMut::U8(buffer) => buffer.copy_from_slice(values),
        other => panic!("{other:?}"),
    }
}

fn set_f32(session: &mut TractSession, input: usize, values: &[f32]) {
    match session.input_mut(input) {
        TensorMut::F32(buffer) => buffer.copy_from_slice(values),
        other => panic!("{other:?}"),
    }
}

fn integers(session: &TractSession) -> Vec<i32> {
    match session.output(0) {
        TensorRef::I8(values) => values.iter().map(|&v| i32::from(v)).collect(),
        TensorRef::U8(values) => values.iter().map(|&v| i32::from(v)).collect(),
        other => panic!("{other:?}"),
    }
}

fn floats(session: &TractSession, output: usize) -> Vec<f32> {
    match session.output(output) {
        TensorRef::F32(values) => values.to_vec(),
        other => panic!("{other:?}"),
    }
}

/// i8 → DequantizeLinear → `operator` → QuantizeLinear → i8, over [1, 4].
fn chain(operator: &str, scale: f32, zero: i32) -> Build {
    Build::new()
        .input("x", DataType::Int8, &[1, 4])
        .output("y", DataType::Int8, &[1, 4])
        .scale("x", 0.1, DataType::Int8, -3)
        .scale("y", scale, DataType::Int8, zero)
        .node("DequantizeLinear", &["x", "x_s", "x_z"], "real")
        .node(operator, &["real"], "result")
        .node("QuantizeLinear", &["result", "y_s", "y_z"], "y")
}

/// Within one step of the real value: where rounding falls is the engine's own.
fn assert_close(found: &[i32], real: &[f64], scale: f64, zero: i32, lowest: f64, highest: f64) {
    for (found, real) in found.iter().zip(real) {
        let want = (real / scale + f64::from(zero)).clamp(lowest, highest);
        assert!((f64::from(*found) - want).abs() <= 0.51, "{found} instead of {want}");
    }
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
    logits.iter().map(|logit| logit.exp() / sum).collect()
}

#[test]
fn a_softmax_between_quantized_tensors_is_a_softmax() {
    let mut session = chain("Softmax", 1.0 / 256.0, -128).load().unwrap();
    for stored in [[10, 20, -5, 0], [-128, 127, 3, 4], [0, 0, 0, 0], [120, 110, 100, 90]] {
        set_i8(&mut session, &stored);
        session.run().unwrap();
        let logits: Vec<f64> = stored.iter().map(|&v| (f64::from(v) + 3.0) * 0.1).collect();
        assert_close(&integers(&session), &softmax(&logits), 1.0 / 256.0, -128, -128.0, 127.0);
    }
}

/// The reason for `linear.rs`. When this fails, tract is cured and so may be our operators.
#[test]
fn tracts_own_operators_still_take_softmax_for_element_wise() {
    let model = chain("Softmax", 1.0 / 256.0, -128).model();
    let state = TractGraph::parse(&tract_onnx::onnx(), model)
        .unwrap()
        .typed(1)
        .and_then(|model| model.into_optimized())
        .and_then(|model| model.into_runnable());
    let input = Tensor::from_shape(&[1, 4], &[10_i8, 20, -5, 0]).unwrap();
    let output = state.unwrap().run(tvec![input.into()]).unwrap();
    let stored = output[0].try_as_plain_ram().unwrap().as_slice::<i8>().unwrap().to_vec();
    assert_ne!(stored, [-73, 80, -115, -101], "stock tract answers as it should");
    assert!(stored.iter().all(|value| *value == stored[0]), "{stored:?}");
}

#[test]
fn operators_that_need_their_whole_axis_are_not_folded() {
    let mut session = chain("LogSoftmax", 0.05, 127).load().unwrap();
    let stored = [10, 20, -5, 0];
    set_i8(&mut session, &stored);
    session.run().unwrap();
    let logits: Vec<f64> = stored.iter().map(|&v| (f64::from(v) + 3.0) * 0.1).collect();
    let logs: Vec<f64> = softmax(&logits).iter().map(|p| p.ln()).collect();
    assert_close(&integers(&session), &logs, 0.05, 127, -128.0, 127.0);
}

#[test]
fn a_chain_from_u8_to_i8_reads_u8() {
    let mut session = Build::new()
        .input("x", DataType::Uint8, &[1, 4])
        .output("y", DataType::Int8, &[1, 4])
        .scale("x", 0.05, DataType::Uint8, 100)
        .scale("y", 0.01, DataType::Int8, -10)
        .node("DequantizeLinear", &["x", "x_s", "x_z"], "real")
        .node("Tanh", &["real"], "result")
        .node("QuantizeLinear", &["result", "y_s", "y_z"], "y")
        .load()
        .unwrap();
    let stored = [0_u8, 90, 130, 255];
    set_u8(&mut session, &stored);
    session.run().unwrap();
    let real: Vec<f64> = stored.iter().map(|&v| ((f64::from(v) - 100.0) * 0.05).tanh()).collect();
    assert_close(&integers(&session), &real, 0.01, -10, -128.0, 127.0);
}

#[test]
fn a_chain_with_a_constant_per_channel_keeps_it_per_channel() {
    let mut session = Build::new()
        .input("x", DataType::Int8, &[1, 4])
        .output("y", DataType::Int8, &[1, 4])
        .scale("x", 0.1, DataType::Int8, 0)
        .scale("y", 0.1, DataType::Int8, 0)
        .f32("gain", &[4], &[1.0, -2.0, 0.5, 0.0])
        .node("DequantizeLinear", &["x", "x_s", "x_z"], "real")
        .node("Mul", &["real", "gain"], "result")
        .node("QuantizeLinear", &["result", "y_s", "y_z"], "y")
        .load()
        .unwrap();
    set_i8(&mut session, &[10, 20, 30, 40]);
    session.run().unwrap();
    assert_eq!(integers(&session), [10, -40, 15, 0]);
}

#[test]
fn a_value_of_billions_of_steps_saturates_at_its_own_end() {
    let mut session = Build::new()
        .input("x", DataType::Float, &[1, 4])
        .output("y", DataType::Int8, &[1, 4])
        .scale("y", 1.0, DataType::Int8, 100)
        .node("QuantizeLinear", &["x", "y_s", "y_z"], "y")
        .load()
        .unwrap();
    set_f32(&mut session, 0, &[3e9, -3e9, 1e30, 27.5]);
    session.run().unwrap();
    assert_eq!(integers(&session), [127, -128, 127, 127]);
}

#[test]
fn scales_by_channel_run_along_their_axis() {
    let mut session = Build::new()
        .input("x", DataType::Int8, &[1, 2, 2])
        .output("y", DataType::Uint8, &[1, 2, 2])
        .f32("s", &[2], &[0.5, 2.0])
        .integers("z", DataType::Int8, &[2], &[0, 10])
        .f32("t", &[2], &[1.0, 4.0])
        .integers("w", DataType::Uint8, &[2], &[128, 0])
        .node_with("DequantizeLinear", &["x", "s", "z"], "real", &[("axis", 1)])
        .node_with("QuantizeLinear", &["real", "t", "w"], "y", &[("axis", -1)])
        .load()
        .unwrap();
    set_i8(&mut session, &[10, 7, 12, 30]);
    session.run().unwrap();
    // Real: 5, 3.5, 4, 40. Stored: 5 + 128; 3.5 ÷ 4 ≈ 1; 4 + 128; 40 ÷ 4.
    assert_eq!(integers(&session), [133, 1, 132, 10]);
}

#[test]
fn sixteen_bit_stored_values_pass_through() {
    for (kind, zero, low, high) in
        [(DataType::Int16, 1000, -32_768.0, 32_767.0), (DataType::Uint16, 30_000, 0.0, 65_535.0)]
    {
        let mut session = Build::new()
            .input("x", DataType::Float, &[1, 4])
            .output("y", DataType::Float, &[1, 4])
            .scale("q", 0.001, kind, zero)
            .node("QuantizeLinear", &["x", "q_s", "q_z"], "stored")
            .node("DequantizeLinear", &["stored", "q_s", "q_z"], "y")
            .load()
            .unwrap();
        set_f32(&mut session, 0, &[0.1234, -20.0, 1000.0, -1000.0]);
        session.run().unwrap();
        let (low, high) = ((low - f64::from(zero)) * 0.001, (high - f64::from(zero)) * 0.001);
        for (found, want) in floats(&session, 0).iter().zip([0.123_f64, -20.0, 1000.0, -1000.0]) {
            assert!((f64::from(*found) - want.clamp(low, high)).abs() < 1e-3, "{found} for {want}");
        }
    }
}

#[test]
fn output_dtype_decides_where_there_is_no_zero_point() {
    let mut build = Build::new()
        .input("x", DataType::Float, &[1, 2])
        .output("y", DataType::Int8, &[1, 2])
        .f32("s", &[], &[1.0])
        .node_with("QuantizeLinear", &["x", "s"], "y", &[("output_dtype", DataType::Int8 as i64)]);
    build.opset = 21;
    let mut session = build.load().unwrap();
    set_f32(&mut session, 0, &[-5.0, 7.0]);
    session.run().unwrap();
    assert_eq!(integers(&session), [-5, 7]);
}

#[test]
fn quantized_operators_of_onnx_runtimes_domain_compute_what_they_stand_for() {
    let mut session = Build::new()
        .input("x", DataType::Uint8, &[1, 2])
        .output("y", DataType::Uint8, &[1, 3])
        .scale("x", 0.5, DataType::Uint8, 10)
        .f32("w_s", &[3], &[0.1, 0.2, 0.5])
        .integers("w_z", DataType::Int8, &[3], &[0, 0, 0])
        .integers("w", DataType::Int8, &[3, 2], &[10, 20, -5, 5, 2, 4])
        .integers("b", DataType::Int32, &[3], &[10, -20, 4])
        .scale("g", 0.25, DataType::Uint8, 100)
        .scale("y", 0.5, DataType::Uint8, 100)
        .node_with("QGemm", &["x", "x_s", "x_z", "w", "w_s", "w_z", "b", "g_s", "g_z"], "g", &[("transB", 1)])
        .node("QLinearAdd", &["g", "g_s", "g_z", "g", "g_s", "g_z", "y_s", "y_z"], "y")
        .load()
        .unwrap();
    assert_eq!(session.inputs()[0].quantization, Some(Quantization { scale: 0.5, zero_point: 10 }));
    assert_eq!(session.outputs()[0].quantization, Some(Quantization { scale: 0.5, zero_point: 100 }));
    set_u8(&mut session, &[12, 16]);
    session.run().unwrap();
    // x = 1, 3. W = 1 2 | −1 1 | 1 2. Bias scales 0.05, 0.1, 0.25: 0.5, −2, 1. Product 7.5, 0, 8. Twice that: 15, 0, 16.
    assert_eq!(integers(&session), [130, 100, 132]);
}

#[test]
fn integer_edges_are_scaled_by_their_first_reader_and_last_writer() {
    let session = Build::new()
        .input("x", DataType::Int8, &[1, 4])
        .output("y", DataType::Uint8, &[1, 4])
        .integers("flat", DataType::Int64, &[2], &[])
        .scale("x", 0.25, DataType::Int8, -7)
        .scale("y", 0.5, DataType::Uint8, 9)
        .node("Identity", &["x"], "same")
        .node("DequantizeLinear", &["same", "x_s", "x_z"], "real")
        .node("QuantizeLinear", &["real", "y_s", "y_z"], "stored")
        .node("Identity", &["stored"], "y");
    // An int64 constant of two elements, in the field that int64 has.
    let mut session = session;
    session.graph.initializer[0].int64_data = vec![1, 4];
    let session = session.load().unwrap();
    assert_eq!(session.inputs()[0].quantization, Some(Quantization { scale: 0.25, zero_point: -7 }));
    assert_eq!(session.outputs()[0].quantization, Some(Quantization { scale: 0.5, zero_point: 9 }));
}

#[test]
fn readers_that_disagree_leave_an_edge_without_scale() {
    let session = Build::new()
        .input("x", DataType::Int8, &[1, 4])
        .output("y", DataType::Float, &[1, 4])
        .scale("a", 0.25, DataType::Int8, 0)
        .scale("b", 0.5, DataType::Int8, 0)
        .node("DequantizeLinear", &["x", "a_s", "a_z"], "left")
        .node("DequantizeLinear", &["x", "b_s", "b_z"], "right")
        .node("Add", &["left", "right"], "y")
        .load()
        .unwrap();
    assert_eq!(session.inputs()[0].quantization, None);
    let mut boxed: Box<dyn Session> = Box::new(session);
    let error = crate::write_real(&mut *boxed, 0, &[0.0; 4]).unwrap_err();
    assert!(error.to_string().contains("'x' holds i8 integers"), "{error}");
}

/// An RNN of one cell, h = tanh(x + h before), over three steps.
fn recurrent(attributes: Vec<AttributeProto>) -> Build {
    let mut build = Build::new()
        .input("x", DataType::Float, &[3, 1, 1])
        .output("last", DataType::Float, &[1, 1, 1])
        .f32("w", &[1, 1, 1], &[1.0])
        .f32("r", &[1, 1, 1], &[1.0])
        .node_with("RNN", &["x", "w", "r"], "all", &[("hidden_size", 1)]);
    let node = build.graph.node.last_mut().unwrap();
    node.output.push("last".to_owned());
    node.attribute.extend(attributes);
    build
}

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto { name: name.to_owned(), r#type: kind as i32, ..Default::default() }
}

#[test]
fn a_recurrent_layer_starts_every_run_from_rest() {
    let mut session = recurrent(vec![]).load().unwrap();
    let steps = [0.1_f32, -0.4, 0.3];
    let want = steps.iter().fold(0.0_f32, |h, x| (x + h).tanh());
    for _ in 0..3 {
        set_f32(&mut session, 0, &steps);
        session.run().unwrap();
        assert!((floats(&session, 0)[0] - want).abs() < 1e-5, "{:?} instead of {want}", floats(&session, 0));
    }
}

#[test]
fn a_recurrent_layer_that_tract_would_take_for_another_is_refused() {
    let relu = AttributeProto { strings: vec![b"Relu".to_vec()], ..attribute("activations", AttributeType::Strings) };
    let refusal = recurrent(vec![relu]).refusal();
    assert!(refusal.contains("RNN ('all') has the activations Relu"), "{refusal}");

    let tanh = AttributeProto { strings: vec![b"Tanh".to_vec()], ..attribute("activations", AttributeType::Strings) };
    recurrent(vec![tanh]).load().expect("the default activation may be named");

    let reverse = AttributeProto { s: b"reverse".to_vec(), ..attribute("direction", AttributeType::String) };
    let refusal = recurrent(vec![reverse]).refusal();
    assert!(refusal.contains("runs in reverse alone"), "{refusal}");

    let clip = AttributeProto { f: 0.5, ..attribute("clip", AttributeType::Float) };
    let refusal = recurrent(vec![clip]).refusal();
    assert!(refusal.contains("clips its sums at 0.5"), "{refusal}");
}

#[test]
fn a_random_graph_is_refused() {
    let mut build = Build::new()
        .input("x", DataType::Float, &[1, 2])
        .output("y", DataType::Float, &[1, 2])
        .node("RandomNormal", &[], "noise")
        .node("Add", &["x", "noise"], "y");
    let shape = AttributeProto { ints: vec![1, 2], ..attribute("shape", AttributeType::Ints) };
    build.graph.node[0].attribute.push(shape);
    let refusal = build.refusal();
    assert!(refusal.contains("changes when the same input comes again"), "{refusal}");
}

#[test]
fn a_graph_that_hands_its_input_through_does_not_share_it() {
    let mut session = Build::new()
        .input("x", DataType::Float, &[1, 2])
        .output("y", DataType::Float, &[1, 2])
        .node("Identity", &["x"], "y")
        .load()
        .unwrap();
    set_f32(&mut session, 0, &[1.0, 2.0]);
    session.run().unwrap();
    set_f32(&mut session, 0, &[3.0, 4.0]);
    assert_eq!(floats(&session, 0), [1.0, 2.0]);
    session.run().unwrap();
    assert_eq!(floats(&session, 0), [3.0, 4.0]);
}

#[test]
fn several_inputs_and_outputs_keep_the_files_order() {
    let mut session = Build::new()
        .input("b", DataType::Float, &[1, 2])
        .input("a", DataType::Float, &[1, 2])
        .f32("one", &[], &[1.0])
        .output("sum", DataType::Float, &[1, 2])
        .output("difference", DataType::Float, &[1, 2])
        .node("Sub", &["b", "a"], "difference")
        .node("Add", &["b", "a"], "plain")
        .node("Add", &["plain", "one"], "sum")
        .load()
        .unwrap();
    let names = |specs: &[TensorSpec]| specs.iter().map(|spec| spec.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(session.inputs()), ["b", "a"]);
    assert_eq!(names(session.outputs()), ["sum", "difference"]);
    set_f32(&mut session, 0, &[10.0, 20.0]);
    set_f32(&mut session, 1, &[1.0, 2.0]);
    session.run().unwrap();
    assert_eq!(floats(&session, 0), [12.0, 23.0]);
    assert_eq!(floats(&session, 1), [9.0, 18.0]);
}

fn twice(shape: &[i64]) -> Build {
    Build::new().input("x", DataType::Float, shape).output("y", DataType::Float, shape).f32("two", &[], &[2.0]).node(
        "Mul",
        &["x", "two"],
        "y",
    )
}

fn batched(build: Build, batch: usize) -> Result<TractSession, String> {
    TractGraph::parse(&reader(), build.model())?.new_session(batch)
}

#[test]
fn an_open_or_single_first_dimension_takes_the_batch() {
    for first in [-1, 1] {
        for batch in [1, 3] {
            let mut session = batched(twice(&[first, 2]), batch).unwrap();
            assert_eq!(session.inputs()[0].shape, [batch, 2]);
            assert_eq!(session.outputs()[0].shape, [batch, 2]);
            let values: Vec<f32> = (0..batch * 2).map(|v| v as f32).collect();
            set_f32(&mut session, 0, &values);
            session.run().unwrap();
            assert_eq!(floats(&session, 0), values.iter().map(|v| v * 2.0).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_batch_that_the_graph_does_not_carry_is_refused() {
    let refusal = batched(twice(&[2, 2]), 3).err().unwrap();
    assert!(refusal.contains("fixed at 2"), "{refusal}");

    // A Reshape to a fixed shape of one vector would fold the batch into it.
    let mut merged = Build::new()
        .input("x", DataType::Float, &[1, 4])
        .output("y", DataType::Float, &[1, 4])
        .integers("shape", DataType::Int64, &[2], &[])
        .node("Reshape", &["x", "shape"], "y");
    merged.graph.initializer[0].int64_data = vec![1, -1];
    let refusal = batched(merged, 3).err().unwrap();
    assert!(refusal.contains("output 'y' stays [1, 12]"), "{refusal}");
}

#[test]
fn what_cannot_be_run_is_refused_with_its_name() {
    let unknown = twice(&[1, 2]).node("Frobnicate", &["y"], "z").refusal();
    assert!(unknown.contains("does not know operator Frobnicate of ONNX ('z')"), "{unknown}");

    let mut foreign = twice(&[1, 2]);
    foreign.graph.node[0].domain = "example.org".to_owned();
    let foreign = foreign.refusal();
    assert!(foreign.contains("operator Mul ('y') is of the domain 'example.org'"), "{foreign}");

    let open = twice(&[1, -1]).refusal();
    assert!(open.contains("dimension 1 of input 'x' is not fixed"), "{open}");

    let missing = twice(&[1, 2]).output("nowhere", DataType::Float, &[1]).refusal();
    assert!(missing.contains("nothing in it computes its output 'nowhere'"), "{missing}");

    let wide = Build::new()
        .input("x", DataType::Int64, &[1, 2])
        .output("y", DataType::Int64, &[1, 2])
        .node("Identity", &["x"], "y")
        .refusal();
    assert!(wide.contains("input 'x' holds elements of type I64"), "{wide}");

    let computed = Build::new()
        .input("x", DataType::Float, &[1, 2])
        .input("s", DataType::Float, &[])
        .output("y", DataType::Uint8, &[1, 2])
        .node("QuantizeLinear", &["x", "s"], "y")
        .refusal();
    assert!(computed.contains("the scale is computed by the graph"), "{computed}");

    let blocks = Build::new()
        .input("x", DataType::Float, &[1, 2])
        .output("y", DataType::Uint8, &[1, 2])
        .scale("y", 1.0, DataType::Uint8, 0)
        .node_with("QuantizeLinear", &["x", "y_s", "y_z"], "y", &[("block_size", 2)])
        .refusal();
    assert!(blocks.contains("scales by block are not supported"), "{blocks}");

    let negative = chain("Relu", -1.0, 0).refusal();
    assert!(negative.contains("a scale is not a positive number"), "{negative}");
}

#[test]
fn what_is_no_onnx_model_is_refused() {
    for bytes in [&b""[..], b"\xff\xff\xff\xff", b"not an onnx model at all"] {
        let error = Tract.load(Format::Onnx, bytes, LoadOptions::default()).err().expect("refused");
        assert!(error.to_string().contains("no ONNX model, or a damaged one"), "{error}");
    }
    let error = Tract.load(Format::Tflite, b"", LoadOptions::default()).err().expect("refused");
    assert!(error.to_string().contains("reads ONNX"), "{error}");
}

#[test]
fn the_version_is_that_of_the_lock_file() {
    let lock = include_str!("../../../../Cargo.lock");
    let entry = lock.split("[[package]]").find(|entry| entry.contains("name = \"tract-onnx\"\n")).unwrap();
    assert!(entry.contains(&format!("version = \"{VERSION}\"")), "{entry}");
}
