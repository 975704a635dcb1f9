//! ONNX graphs simple enough to be written by hand, all of opset 13, in the protocol buffers' wire format.
//!
//! With them a test dictates what a model says, and needs no file from outside. Field numbers are those of onnx.proto.

/// A graph `input [1, rows] → Gemm → output [1, columns]` in f32. `weights` is row by row.
///
/// # Panics
/// If `weights` has not `rows × columns` elements, or `bias` not `columns`.
pub fn gemm(rows: usize, columns: usize, weights: &[f32], bias: &[f32]) -> Vec<u8> {
    assert_eq!((weights.len(), bias.len()), (rows * columns, columns));
    let node = node("Gemm", &["input", "weights", "bias"], "output");
    model(&[node], &[tensor("weights", &[rows, columns], weights), tensor("bias", &[columns], bias)], rows, columns)
}

/// A graph `input [1, columns] → Reshape → output [1, columns]` in f32 whose Reshape insists on one row: it takes no
/// batch.
pub fn reshape(columns: usize) -> Vec<u8> {
    let shape = [1, columns as i64].into_iter().flat_map(i64::to_le_bytes).collect::<Vec<u8>>();
    let shape = [number(1, 2), number(2, INT64), text(8, "shape"), bytes(9, &shape)].concat();
    model(&[node("Reshape", &["input", "shape"], "output")], &[shape], columns, columns)
}

/// A graph `input [1, columns] → output [1, columns]` in f32 that gives its input back by way of `layers` full matrices
/// of `width × width`, each with weights of its own: it holds memory, and a batch reads the weights once for all rows.
///
/// # Panics
/// If `width` is less than `columns`.
pub fn dense(columns: usize, width: usize, layers: usize) -> Vec<u8> {
    assert!(width >= columns);
    let names: Vec<String> = (0..=layers).map(|layer| format!("hidden{layer}")).collect();
    let weights: Vec<String> = (0..layers).map(|layer| format!("weights{layer}")).collect();
    let mut nodes = vec![node("MatMul", &["input", "first"], &names[0])];
    nodes.extend((0..layers).map(|layer| node("MatMul", &[&names[layer], &weights[layer]], &names[layer + 1])));
    nodes.push(node("MatMul", &[&names[layers], "last"], "output"));
    let times = |factor: f32, rows: usize, columns: usize| -> Vec<f32> {
        (0..rows * columns).map(|at| if at / columns == at % columns { factor } else { 0.0 }).collect()
    };
    // An engine may keep equal tensors once, so no two layers have the same factor. Powers of two take nothing from the
    // numbers, and the last matrix takes back what they do.
    let factors: Vec<f32> =
        (1..=layers as i32).map(|layer| if layer % 2 == 0 { 2_f32 } else { 0.5 }.powi(layer)).collect();
    let mut tensors = vec![tensor("first", &[columns, width], &times(1.0, columns, width))];
    let layers = weights.iter().zip(&factors);
    tensors.extend(layers.map(|(name, factor)| tensor(name, &[width, width], &times(*factor, width, width))));
    tensors.push(tensor("last", &[width, columns], &times(1.0 / factors.iter().product::<f32>(), width, columns)));
    model(&nodes, &tensors, columns, columns)
}

/// A graph `input [1, columns] → output [1, columns]` in f32 that gives its input back, to a millionth, after `products`
/// of matrices of `size × size` which all depend on the input. It takes long, holds little, and takes no batch.
pub fn slow(columns: usize, size: usize, products: usize) -> Vec<u8> {
    let (nodes, tensors) = toil(columns, size, products, "output");
    model(&nodes, &tensors, columns, columns)
}

/// [`gemm`] after the products of [`slow`]: its own outputs, to a millionth, only later.
///
/// # Panics
/// As [`gemm`].
pub fn slowed(rows: usize, columns: usize, weights: &[f32], bias: &[f32], size: usize, products: usize) -> Vec<u8> {
    assert_eq!((weights.len(), bias.len()), (rows * columns, columns));
    let (mut nodes, mut tensors) = toil(rows, size, products, "same");
    nodes.push(node("Gemm", &["same", "weights", "bias"], "output"));
    tensors.extend([tensor("weights", &[rows, columns], weights), tensor("bias", &[columns], bias)]);
    model(&nodes, &tensors, rows, columns)
}

/// Nodes and tensors of a graph.
type Parts = (Vec<Vec<u8>>, Vec<Vec<u8>>);

/// Nodes and tensors that give `input [1, columns]` back as `output` after `products` of matrices.
fn toil(columns: usize, size: usize, products: usize, output: &str) -> Parts {
    // u = 1 + x ÷ 100, repeated; c = 1 ÷ size; A = c · u; A · A = (u · c) A, and u · c is about 1: the numbers keep their size for as
    // many products as one likes.
    let spread: Vec<f32> =
        (0..columns * size).map(|at| if at / size == at % size % columns { 0.01 } else { 0.0 }).collect();
    let powers: Vec<String> = (0..=products).map(|power| format!("power{power}")).collect();
    let mut nodes =
        vec![node("Gemm", &["input", "spread", "ones"], "row"), node("MatMul", &["column", "row"], &powers[0])];
    nodes.extend((0..products).map(|power| node("MatMul", &[&powers[power], &powers[0]], &powers[power + 1])));
    nodes.push(node("MatMul", &["sum", &powers[products]], "sums"));
    nodes.push(node("MatMul", &["sums", "trace"], "hint"));
    nodes.push(node("Add", &["input", "hint"], output));
    let tensors = vec![
        tensor("spread", &[columns, size], &spread),
        tensor("ones", &[size], &vec![1.0; size]),
        tensor("column", &[size, 1], &vec![1.0 / size as f32; size]),
        tensor("sum", &[1, size], &vec![1.0; size]),
        tensor("trace", &[size, columns], &vec![1e-9; size * columns]),
    ];
    (nodes, tensors)
}

/// What is added to the outputs of a [`gemm`]: `spread` times what `operator` makes of Σ x · `sum` + `level`.
struct Branch<'a> {
    sum: f32,
    level: f32,
    operator: &'a str,
    /// By output.
    spread: &'a [f32],
}

/// [`gemm`] with a branch beside it; what it gives is called `output`.
fn branched(rows: usize, columns: usize, weights: &[f32], bias: &[f32], branch: &Branch<'_>, output: &str) -> Parts {
    assert_eq!((weights.len(), bias.len()), (rows * columns, columns));
    let nodes = vec![
        node("Gemm", &["input", "sum", "level"], "apart"),
        node(branch.operator, &["apart"], "made"),
        node("MatMul", &["made", "spread"], "beside"),
        node("Gemm", &["input", "weights", "bias"], "open"),
        node("Add", &["open", "beside"], output),
    ];
    let tensors = vec![
        tensor("sum", &[rows, 1], &vec![branch.sum; rows]),
        tensor("level", &[1], &[branch.level]),
        tensor("spread", &[1, columns], branch.spread),
        tensor("weights", &[rows, columns], weights),
        tensor("bias", &[columns], bias),
    ];
    (nodes, tensors)
}

/// [`gemm`] whose outputs are all zero, whatever the input, where the sum of the input is `least` or smaller, and right
/// where it is larger by a hundredth and the outputs are not negative.
///
/// # Panics
/// As [`gemm`].
pub fn gated(rows: usize, columns: usize, weights: &[f32], bias: &[f32], least: f32) -> Vec<u8> {
    // Relu(x · W + b − 1000 · Relu(least + 0.01 − Σ x))
    let steep = 1000.0;
    let spread = vec![-1.0; columns];
    let branch = Branch { sum: -steep, level: steep * (least + 0.01), operator: "Relu", spread: &spread };
    let (mut nodes, tensors) = branched(rows, columns, weights, bias, &branch, "sum_of_both");
    nodes.push(node("Relu", &["sum_of_both"], "output"));
    model(&nodes, &tensors, rows, columns)
}

/// [`gemm`] whose first output falls by 100 for each unit by which the sum of the input is above `most`.
///
/// # Panics
/// As [`gemm`].
pub fn capped(rows: usize, columns: usize, weights: &[f32], bias: &[f32], most: f32) -> Vec<u8> {
    // x · W + b − 100 · Relu(Σ x − most), the last term in the first column alone
    let mut spread = vec![0.0; columns];
    spread[0] = -100.0;
    let branch = Branch { sum: 1.0, level: -most, operator: "Relu", spread: &spread };
    let (nodes, tensors) = branched(rows, columns, weights, bias, &branch, "output");
    model(&nodes, &tensors, rows, columns)
}

/// [`gemm`], to a millionth, whose outputs are no numbers where the sum of the input is below `least`.
///
/// # Panics
/// As [`gemm`].
pub fn rooted(rows: usize, columns: usize, weights: &[f32], bias: &[f32], least: f32) -> Vec<u8> {
    // x · W + b + √(Σ x − least) ÷ 10⁹
    let spread = vec![1e-9; columns];
    let branch = Branch { sum: 1.0, level: -least, operator: "Sqrt", spread: &spread };
    let (nodes, tensors) = branched(rows, columns, weights, bias, &branch, "output");
    model(&nodes, &tensors, rows, columns)
}

/// A model of opset 13 from `input [1, rows]` to `output [1, columns]`.
fn model(nodes: &[Vec<u8>], tensors: &[Vec<u8>], rows: usize, columns: usize) -> Vec<u8> {
    let mut graph: Vec<u8> = nodes.iter().flat_map(|node| bytes(1, node)).collect();
    graph.extend(text(2, "graph"));
    graph.extend(tensors.iter().flat_map(|tensor| bytes(5, tensor)));
    graph.extend(bytes(11, &value("input", &[1, rows])));
    graph.extend(bytes(12, &value("output", &[1, columns])));
    let opset = [text(1, ""), number(2, 13)];
    [number(1, 8), text(2, "limpet-tests"), bytes(7, &graph), bytes(8, &opset.concat())].concat()
}

/// A graph with some words for people in it, which change nothing.
pub fn with_words(graph: Vec<u8>, words: &str) -> Vec<u8> {
    // A message may go on with further fields.
    [graph, text(6, words)].concat()
}

fn node(operator: &str, inputs: &[&str], output: &str) -> Vec<u8> {
    let mut node: Vec<u8> = inputs.iter().flat_map(|input| text(1, input)).collect();
    node.extend([text(2, output), text(3, output), text(4, operator)].concat());
    node
}

/// ModelProto's and all others' element type for f32, and for the shapes.
const FLOAT: u64 = 1;
const INT64: u64 = 7;

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
