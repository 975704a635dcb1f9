"""Small ONNX networks: hand-placed first layers, random middle layers, a last layer solved by least squares.

That gives networks with real answers in milliseconds and without a training loop. The builder writes a network in
float, or quantized by hand with QuantizeLinear/DequantizeLinear pairs at the marked places: the forms that
onnxruntime's quantizer does not write, but other tools do.
"""

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

import data

LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}


def session(model, optimized=False):
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class Net:
    """A graph under construction. `mark` and `weight` quantize by hand when `ranges` are given."""

    def __init__(self, name, opset, batch=1, ranges=None, per_channel=False):
        self.name, self.opset, self.batch, self.ranges, self.per_channel = name, opset, batch, ranges, per_channel
        self.random = data.rng("net", name)
        self.nodes, self.constants, self.inputs, self.outputs, self.marked = [], [], [], [], []

    def shape(self, dims):
        return list(dims) if self.batch is None else [self.batch, *dims]  # a batch of "n" is a free dimension

    def input(self, name, dims):
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, self.shape(dims)))
        return name

    def output(self, tensor, name, dims):
        for node in self.nodes:  # the producer and all other readers take the public name
            node.output[:] = [name if o == tensor else o for o in node.output]
            node.input[:] = [name if i == tensor else i for i in node.input]
        self.marked = [name if m == tensor else m for m in self.marked]
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, self.shape(dims)))
        return name

    def const(self, array):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def op(self, kind, *inputs, domain="", **attributes):
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [f"{name}_out"], name=name, domain=domain, **attributes))
        return f"{name}_out"

    def pair(self, tensor, scale, zero_point, back=True):
        scale, zero_point = self.const(np.float32(scale)), self.const(zero_point)
        stored = self.op("QuantizeLinear", tensor, scale, zero_point)
        return self.op("DequantizeLinear", stored, scale, zero_point) if back else stored

    def mark(self, tensor, kind="int8", span=None):
        """Quantize here: range measured in the float network, or `span` if given."""
        self.marked.append(tensor)
        if self.ranges is None:
            return tensor
        low, high = span or self.ranges[len(self.marked) - 1]
        least, most = LIMITS[kind]
        low, high = min(low, 0.0), max(high, 0.0)
        scale = np.float32(max(high - low, 1e-6) / (most - least))
        zero_point = np.clip(round(least - low / scale), least, most).astype(kind)
        return self.pair(tensor, scale, zero_point)

    def weight(self, array, axis):
        """A weight tensor; quantized to int8, symmetric, per channel along `axis` if the net says so."""
        array = np.asarray(array, np.float32)
        if self.ranges is None:
            return self.const(array)
        if self.per_channel:
            others = tuple(i for i in range(array.ndim) if i != axis)
            scale = (np.abs(array).max(others) / 127).astype(np.float32)
            broad = scale.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
            stored = np.clip(np.round(array / broad), -127, 127).astype(np.int8)
            return self.op("DequantizeLinear", self.const(stored), self.const(scale),
                           self.const(np.zeros(len(scale), np.int8)), axis=axis)
        scale = np.float32(np.abs(array).max() / 127)
        stored = np.clip(np.round(array / scale), -127, 127).astype(np.int8)
        return self.op("DequantizeLinear", self.const(stored), self.const(scale), self.const(np.int8(0)))

    def model(self, extra_outputs=()):
        graph = helper.make_graph(
            self.nodes, self.name, self.inputs,
            self.outputs + [helper.make_tensor_value_info(t, TensorProto.FLOAT, None) for t in extra_outputs],
            self.constants)
        imports = [helper.make_opsetid("", self.opset)]
        ir = 10 if self.opset >= 21 else 8
        return helper.make_model(graph, opset_imports=imports, ir_version=ir, producer_name="limpet-zoo")

    # --- Layers ------------------------------------------------------------------------------------------------

    def normal(self, *shape, fan):
        return (self.random.normal(0, 1, shape) * np.sqrt(2 / fan)).astype(np.float32)

    def conv(self, x, weights, bias=None, **attributes):
        bias = np.zeros(len(weights), np.float32) if bias is None else bias
        return self.op("Conv", x, self.weight(weights, 0), self.const(bias.astype(np.float32)), **attributes)

    def dense(self, x, weights, bias, gemm=True):
        """x · weights + bias, weights [in, out]; as Gemm with transposed weights, or MatMul and Add."""
        if gemm:
            return self.op("Gemm", x, self.weight(weights.T, 0), self.const(bias), transB=1)
        return self.op("Add", self.op("MatMul", x, self.weight(weights, 1)), self.const(bias))


def edges(channels, size=5):
    """[channels, 1, size, size]: striped filters at evenly spread angles, two phases each."""
    y, x = np.mgrid[0:size, 0:size] - size // 2
    window = np.exp(-(x**2 + y**2) / 4.5)
    bank = []
    for k in range(channels):
        angle, phase = np.pi * (k // 2) / (channels // 2), np.pi / 2 * (k % 2)
        stripe = np.cos(1.3 * (np.cos(angle) * x + np.sin(angle) * y) + phase) * window
        bank.append((stripe - stripe.mean())[None] / np.abs(stripe).sum() * 2)
    return np.array(bank, np.float32)


def tones(channels, axes=3, size=9):
    """[channels, axes, size]: short tones of rising pitch."""
    time = np.arange(size) - size // 2
    bank = [[np.cos(p * time + 0.9 * a + np.pi / 2 * (k % 2)) * np.hanning(size + 2)[1:-1] / 5 for a in range(axes)]
            for k, p in enumerate(np.repeat(np.linspace(0.2, 1.7, channels // 2), 2))]
    return np.array(bank, np.float32)


# --- Bodies: from inputs to features [batch, n] ------------------------------------------------------------------


def cnn(g):
    """Conv, depthwise Conv, pointwise Conv, Relu, MaxPool, AveragePool."""
    x = g.input("image", [1, 12, 12])
    x = g.op("Relu", g.conv(x, edges(16), kernel_shape=[5, 5], pads=[2] * 4))
    x = g.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    depthwise = 0.2 + 0.1 * g.normal(16, 1, 3, 3, fan=2)
    x = g.op("Relu", g.conv(x, depthwise, kernel_shape=[3, 3], pads=[1] * 4, group=16))
    mix = g.normal(24, 16, 1, 1, fan=16)
    x = g.op("Relu", g.conv(x, mix, g.random.normal(0, 0.2, 24), kernel_shape=[1, 1]))
    x = g.op("AveragePool", x, kernel_shape=[3, 3], strides=[3, 3])
    x = g.op("GlobalAveragePool", x)
    return g.op("Flatten", x, axis=1)


def mlp(gemm=True):
    def body(g):
        x = g.input("series", [32])
        x = g.op("Relu", g.dense(x, g.normal(32, 48, fan=32), g.random.normal(0, 0.2, 48).astype(np.float32), gemm))
        return g.op("Relu", g.dense(x, g.normal(48, 32, fan=48), g.random.normal(0, 0.2, 32).astype(np.float32), gemm))
    return body


def autoencoder(g):
    x = g.input("features", [32])
    x = g.op("Relu", g.dense(x, g.normal(32, 64, fan=32), g.random.normal(0, 0.2, 64).astype(np.float32)))
    x = g.dense(x, g.normal(64, 16, fan=128), g.random.normal(0, 0.1, 16).astype(np.float32))
    return g.op("Relu", g.dense(x, g.normal(16, 64, fan=16), g.random.normal(0, 0.2, 64).astype(np.float32)))


def residual(g):
    """Add, Concat, Clip to 6, HardSwish, and a Sigmoid gate (squeeze and excite)."""
    x = g.input("image", [1, 12, 12])
    x = g.op("Relu", g.conv(x, edges(16), kernel_shape=[5, 5], pads=[2] * 4, strides=[2, 2]))
    side = g.conv(x, 0.2 + 0.1 * g.normal(16, 1, 3, 3, fan=2), kernel_shape=[3, 3], pads=[1] * 4, group=16)
    side = g.op("HardSwish", side)
    total = g.op("Add", x, side)
    mixed = g.conv(total, g.normal(16, 16, 1, 1, fan=16), kernel_shape=[1, 1])
    mixed = g.op("Clip", mixed, g.const(np.float32(0)), g.const(np.float32(6)))
    joined = g.op("Concat", total, mixed, axis=1)
    gate = g.op("GlobalAveragePool", joined)
    gate = g.op("Sigmoid", g.conv(gate, g.normal(32, 32, 1, 1, fan=16), kernel_shape=[1, 1]))
    x = g.op("GlobalAveragePool", g.op("Mul", joined, gate))
    return g.op("Flatten", x, axis=1)


def series(g):
    """Conv in one dimension, strided, Relu, MaxPool, GlobalAveragePool."""
    x = g.input("axes", [3, 48])
    x = g.op("Relu", g.conv(x, tones(16), kernel_shape=[9], pads=[4, 4]))
    x = g.op("MaxPool", x, kernel_shape=[2], strides=[2])
    x = g.op("Relu", g.conv(x, g.normal(24, 16, 5, fan=80), kernel_shape=[5], pads=[2, 2], strides=[2]))
    return g.op("Flatten", g.op("GlobalAveragePool", x), axis=1)


def recurrent(kind, gates):
    def body(g):
        hidden = 24
        x = g.input("axes", [48, 3])
        x = g.op("Transpose", x, perm=[1, 0, 2])
        w = g.const(g.normal(1, gates * hidden, 3, fan=4))
        r = g.const(0.6 * g.normal(1, gates * hidden, hidden, fan=2 * hidden))
        b = g.const(g.random.normal(0, 0.3, (1, 2 * gates * hidden)).astype(np.float32))
        name = f"{kind.lower()}_{len(g.nodes)}"
        g.nodes.append(helper.make_node(kind, [x, w, r, b], [f"{name}_all"], name=name, hidden_size=hidden))
        # Mean over time of all hidden states, [time, 1, batch, hidden] to [batch, hidden].
        x = g.op("Squeeze", f"{name}_all", g.const(np.array([1], np.int64)))
        return g.op("ReduceMean", x, axes=[0], keepdims=0)
    return body


# --- Hand-quantized graphs: each puts something between a DequantizeLinear and a QuantizeLinear -------------------


def start(g, kind="int8"):
    """Image to 16 maps of 6 × 6, quantized before and after."""
    x = g.mark(g.input("image", [1, 12, 12]), kind)
    return g.mark(g.conv(x, edges(16), kernel_shape=[5, 5], pads=[2] * 4, strides=[2, 2]), kind)


def finish(g, x):
    return g.op("Flatten", g.op("GlobalAveragePool", x), axis=1)


def softmax_middle(g):
    """Softmax over 16 channels, in the last axis, in the middle."""
    x = g.op("Transpose", start(g), perm=[0, 2, 3, 1])
    x = g.op("Mul", x, g.const(np.float32(6.0)))
    x = g.mark(g.op("Softmax", g.mark(x), axis=-1), span=(0.0, 1.0))
    return finish(g, g.op("Transpose", x, perm=[0, 3, 1, 2]))


def softmax_axis_1(g):
    """Softmax over axis 1 of four: the channels of an image in the order that ONNX uses."""
    x = g.mark(g.op("Mul", start(g), g.const(np.float32(6.0))))
    return finish(g, g.mark(g.op("Softmax", x, axis=1), span=(0.0, 1.0)))


def softmax_in_chain(g):
    """Relu, Softmax and Sqrt between one DequantizeLinear and one QuantizeLinear."""
    x = g.op("Relu", g.mark(g.op("Mul", start(g), g.const(np.float32(6.0)))))
    return finish(g, g.mark(g.op("Sqrt", g.op("Softmax", x, axis=1))))


def log_softmax(g):
    """LogSoftmax between a pair; its output is negative everywhere."""
    x = g.mark(g.op("Mul", start(g), g.const(np.float32(6.0))))
    x = g.mark(g.op("LogSoftmax", x, axis=1))
    return finish(g, g.mark(g.op("Relu", g.op("Add", x, g.const(np.float32(2.5))))))


def layer_norm(g):
    """LayerNormalization over the channels, then a quantized Relu."""
    x = g.op("Transpose", start(g), perm=[0, 2, 3, 1])
    scale, bias = g.const(np.linspace(0.5, 1.5, 16, dtype=np.float32)), g.const(np.zeros(16, np.float32))
    x = g.mark(g.op("LayerNormalization", g.mark(x), scale, bias, axis=-1, epsilon=1e-3))
    x = g.mark(g.op("Relu", x))
    return finish(g, g.op("Transpose", x, perm=[0, 3, 1, 2]))


def reduce_mean(g):
    """ReduceMean over rows and columns, one DequantizeLinear and one QuantizeLinear around each."""
    x = g.mark(g.op("Relu", start(g)))
    x = g.mark(g.op("ReduceMean", x, axes=[3], keepdims=1))
    return g.op("Flatten", g.mark(g.op("ReduceMean", x, axes=[2], keepdims=1)), axis=1)


def normalize_by_mean(g):
    """x minus its own mean: elementwise operators and a reduction between the same pair."""
    x = g.mark(g.op("Relu", start(g)))
    x = g.op("Sub", x, g.op("ReduceMean", x, axes=[1], keepdims=1))
    return finish(g, g.mark(g.op("Relu", g.mark(x))))


def elementwise(g):
    """Truly elementwise chains: Relu and Clip; Sigmoid; scalar Mul and Add then Tanh."""
    x = g.op("Clip", g.op("Relu", start(g)), g.const(np.float32(0)), g.const(np.float32(1.5)))
    x = g.mark(x)
    x = g.mark(g.op("Sigmoid", g.op("Mul", x, g.const(np.float32(2)))))
    x = g.op("Tanh", g.op("Add", x, g.const(np.float32(-0.5))))
    return finish(g, g.mark(x))


def hard_swish_parts(g):
    """x · Clip(x + 3, 0, 6) / 6: a diamond of elementwise operators between one pair."""
    x = g.mark(g.op("Mul", start(g), g.const(np.float32(2))))
    six = g.op("Clip", g.op("Add", x, g.const(np.float32(3))), g.const(np.float32(0)), g.const(np.float32(6)))
    return finish(g, g.mark(g.op("Div", g.op("Mul", x, six), g.const(np.float32(6)))))


def channel_constants(g):
    """Mul and Add by a constant per channel, and PRelu with a slope per channel: looks elementwise, is not."""
    x = start(g)
    gain = np.linspace(0.3, 2.0, 16, dtype=np.float32).reshape(16, 1, 1)
    x = g.mark(g.op("Mul", x, g.const(gain)))
    x = g.mark(g.op("Add", x, g.const(gain[::-1].copy() - 1)))
    return finish(g, g.mark(g.op("PRelu", x, g.const(np.linspace(-0.6, 0.4, 16, dtype=np.float32).reshape(16, 1, 1)))))


def batch_norm(g):
    """BatchNormalization that nobody folded, between a pair."""
    x = start(g)
    gain, shift = np.linspace(0.5, 1.5, 16, dtype=np.float32), np.linspace(-0.2, 0.2, 16, dtype=np.float32)
    x = g.op("BatchNormalization", x, g.const(gain), g.const(shift), g.const(shift * 0.5), g.const(gain * 0.3))
    return finish(g, g.mark(g.op("Relu", g.mark(x))))


def mixed_types(g):
    """uint8 in, int8 out, with Sigmoid between; then int8 to uint8 with nothing between."""
    x = start(g, "uint8")
    x = g.mark(g.op("Sigmoid", g.op("Mul", x, g.const(np.float32(3)))), "int8")
    x = g.mark(x, "uint8")
    return finish(g, g.mark(g.op("Relu", g.op("Add", x, g.const(np.float32(-0.4)))), "int8"))


def mixed_16_8(g):
    """int16 activations around one Sigmoid, int8 elsewhere."""
    x = g.mark(g.op("Sigmoid", g.mark(g.op("Mul", start(g), g.const(np.float32(6))), "int16")), "int16")
    return finish(g, g.mark(g.op("Relu", g.op("Add", x, g.const(np.float32(-0.4)))), "int8"))


def shape_chain(g):
    """DequantizeLinear, Transpose, Reshape, Relu, QuantizeLinear."""
    x = g.op("Transpose", start(g), perm=[0, 2, 3, 1])
    x = g.op("Reshape", x, g.const(np.array([-1, 36, 16], np.int64)))
    x = g.mark(g.op("Relu", x))
    return g.op("ReduceMean", x, axes=[1], keepdims=0)


def pad_slice(g):
    """Pad with a value that is not zero, Slice, Concat, and MaxPool between pairs."""
    x = g.mark(g.op("Relu", start(g)))
    pads = g.const(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
    x = g.mark(g.op("Pad", x, pads, g.const(np.float32(0.3)), mode="constant"))
    i64 = lambda *values: g.const(np.array(values, np.int64))
    left = g.op("Slice", x, i64(0), i64(4), i64(3))
    right = g.op("Slice", x, i64(4), i64(8), i64(3))
    x = g.mark(g.op("Concat", left, right, axis=1))
    return finish(g, g.mark(g.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])))


def two_readers(g):
    """One DequantizeLinear with two readers, one with a Softmax and one with a Relu."""
    x = g.mark(g.op("Mul", start(g), g.const(np.float32(2))))
    soft = g.mark(g.op("Softmax", x, axis=1), span=(0.0, 1.0))
    return finish(g, g.mark(g.op("Concat", soft, g.mark(g.op("Relu", x)), axis=1)))


# --- From a body to a model ---------------------------------------------------------------------------------------


def feed(model, arrays):
    """One list of arrays, first axis = vectors, as feeds for each vector; graphs without a batch axis get none."""
    ranks = {i.name: len(i.type.tensor_type.shape.dim) for i in model.graph.input}
    for k in range(len(arrays[0])):
        yield {i.name: a[k:k + 1] if ranks[i.name] == a.ndim else a[k] for i, a in zip(model.graph.input, arrays)}


def run(model, arrays, optimized=False, outputs=None):
    """Outputs for each vector, stacked along the first axis."""
    with_batch = {o.name: len(o.type.tensor_type.shape.dim) for o in model.graph.output}
    runner = session(model.SerializeToString(), optimized)
    rows = [runner.run(outputs, feeds) for feeds in feed(model, arrays)]
    names = outputs or list(with_batch)
    bare = [len(i.type.tensor_type.shape.dim) for i in model.graph.input][0] < arrays[0].ndim
    return [np.stack(r) if bare else np.concatenate(r) for r in zip(*rows)], names


def solve(body, name, opset, arrays, targets, batch=1, strength=1e-2):
    """The last layer: from the body's features to each of the targets."""
    g = Net(name, opset, batch)
    features = body(g)
    g.outputs.append(helper.make_tensor_value_info(features, TensorProto.FLOAT, None))
    model = g.model()
    runner = session(model.SerializeToString())
    rows = np.stack([runner.run(None, feeds)[0].ravel() for feeds in feed(model, arrays)])
    return [data.ridge(rows, target, strength) for target in targets]


def build(body, name, opset, heads, ends, batch=1, hand=None, gemm=True):
    """The whole network in float, or by hand in QDQ.

    `ends` is one (tensor name, "softmax" | "none") for each head. `hand` is (calibration arrays, per channel) for a
    network that is quantized by hand at its marks.
    """
    def whole(ranges):
        g = Net(name, opset, batch, ranges, bool(hand and hand[1]))
        features = body(g)
        if hand:
            features = g.mark(features)
        for (weights, bias), (end, activation) in zip(heads, ends):
            x = g.dense(features, weights, bias, gemm)
            if hand:
                x = g.mark(x)
            if activation == "softmax":
                x = g.op("Softmax", x, axis=-1)
                if hand:
                    x = g.mark(x, span=(0.0, 1.0))
            g.output(x, end, [weights.shape[1]])
        return g

    if not hand:
        return whole(None).model()
    g = whole(None)
    edge = {value.name for value in g.inputs + g.outputs}
    model = g.model(dict.fromkeys(t for t in g.marked if t not in edge))
    runner, names = session(model.SerializeToString()), [o.name for o in model.graph.output]
    low, high = dict.fromkeys(g.marked, 0.0), dict.fromkeys(g.marked, 0.0)
    for feeds in feed(model, hand[0]):
        values = feeds | dict(zip(names, runner.run(None, feeds)))
        for t in g.marked:
            low[t], high[t] = min(low[t], float(values[t].min())), max(high[t], float(values[t].max()))
    return whole([(low[t], high[t]) for t in g.marked]).model()
