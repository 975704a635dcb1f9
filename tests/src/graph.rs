//! ONNX graphs small enough to be written by hand: y = x · W + b, in the protocol buffers' wire format.
//!
//! With them a test dictates what a model says, and needs no file from outside. Field numbers are those of onnx.proto.

/// A graph `input [1, rows] → Gemm → output [1, columns]` in f32, opset 13. `weights` is row by row.
///
/// # Panics
/// If `weights` has not `rows × columns` elements, or `bias` not `columns`.
pub fn gemm(rows: usize, columns: usize, weights: &[f32], bias: &[f32]) -> Vec<u8> {
    assert_eq!((weights.len(), bias.len()), (rows * columns, columns));
    let node =
        [text(1, "input"), text(1, "weights"), text(1, "bias"), text(2, "output"), text(3, "gemm"), text(4, "Gemm")];
    let graph = [
        bytes(1, &node.concat()),
        text(2, "graph"),
        bytes(5, &tensor("weights", &[rows, columns], weights)),
        bytes(5, &tensor("bias", &[columns], bias)),
        bytes(11, &value("input", &[1, rows])),
        bytes(12, &value("output", &[1, columns])),
    ];
    let opset = [text(1, ""), number(2, 13)];
    [number(1, 8), text(2, "limpet-tests"), bytes(7, &graph.concat()), bytes(8, &opset.concat())].concat()
}

/// ModelProto's and all others' element type for f32.
const FLOAT: u64 = 1;

fn tensor(name: &str, shape: &[usize], values: &[f32]) -> Vec<u8> {
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let dims: Vec<u8> = shape.iter().flat_map(|dim| number(1, *dim as u64)).collect();
    [dims, number(2, FLOAT), text(8, name), bytes(9, &raw)].concat()
}

fn value(name: &str, shape: &[usize]) -> Vec<u8> {
    let dims: Vec<u8> = shape.iter().flat_map(|dim| bytes(1, &number(1, *dim as u64))).collect();
    let tensor_type = [number(1, FLOAT), bytes(2, &dims)].concat();
    [text(1, name), bytes(2, &bytes(1, &tensor_type))].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

fn bytes(field: u64, content: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(content.len() as u64), content.to_vec()].concat()
}

fn text(field: u64, content: &str) -> Vec<u8> {
    bytes(field, content.as_bytes())
}
