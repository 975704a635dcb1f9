"""The ONNX half of the zoo: what onnxruntime's quantizer writes, and what other tools write."""

import os
import tempfile

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static)

import data
import golden
import onnx_graphs as graphs

SOURCE = f"ONNX Runtime {onnxruntime.__version__}, graph optimizations off"
TYPES = {"s8": QuantType.QInt8, "u8": QuantType.QUInt8, "s16": QuantType.QInt16, "u16": QuantType.QUInt16,
         "s4": QuantType.QInt4}
LONG = {"s8": "int8", "u8": "uint8", "s16": "int16", "u16": "uint16", "s4": "int4",
        "f32": "float32", "f16": "float16"}


class Reader(CalibrationDataReader):
    """Calibration vectors for onnxruntime's quantizer."""

    def __init__(self, model, arrays):
        self.feeds = graphs.feed(model, arrays)

    def get_next(self):
        return next(self.feeds, None)


class Problem:
    """A network's data, its solved last layers, and its float models by opset."""

    def __init__(self, name, body, make, layout, ends=(("probabilities", "softmax"),), task="classification",
                 targets=None, batch=1):
        self.name, self.body, self.ends, self.task = name, body, list(ends), task
        self.layout, self.make, self.batch = layout, make, batch
        self.train, label = self.draw(480, "train")
        self.calibration = [a[:64] for a in self.draw(64, "calibration")[0]]
        self.candidates, self.label = self.draw(120, "golden")
        self.targets = targets(self.train, label) if targets else [data.logits(label, label.max() + 1)]
        self.heads, self.answers = {}, {}

    def draw(self, count, split):
        arrays, label = self.make(count, split)
        return [layout(a) for layout, a in zip(self.layout, arrays)], label

    def exact(self, opset):
        """The float network's outputs for the candidates."""
        if opset not in self.answers:
            self.answers[opset] = graphs.run(self.model(opset, gemm=self.batch is not None), self.candidates)[0]
        return self.answers[opset]

    def model(self, opset=13, batch=None, gemm=True, per_channel=None):
        """In float; or quantized by hand if `per_channel` is True or False."""
        if opset not in self.heads:
            self.heads[opset] = graphs.solve(self.body, self.name, opset, self.train, self.targets, self.batch)
        hand = None if per_channel is None else (self.calibration, per_channel)
        return graphs.build(self.body, self.name, opset, self.heads[opset], self.ends, batch or self.batch, hand, gemm)


def image(array):
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2))


def axes_first(array):
    return np.ascontiguousarray(array.transpose(0, 2, 1))


def as_is(array):
    return array


def one(make):
    """A problem with one input."""
    def draw(count, split):
        array, label = make(count, split)
        return [array], label
    return draw


def both(count, split):
    """An image and a series, with labels that go through all combinations; the image's label leads."""
    images, label = data.gratings(count, split)
    return [images, data.bumps(count, split)[0]], label


def dual_body(g):
    """Two inputs, joined late."""
    x = g.input("image", [1, 12, 12])
    x = g.op("Relu", g.conv(x, graphs.edges(16), kernel_shape=[5, 5], pads=[2] * 4, strides=[2, 2]))
    x = g.op("Flatten", g.op("GlobalAveragePool", x), axis=1)
    y = g.input("series", [32])
    y = g.op("Relu", g.dense(y, g.normal(32, 48, fan=32), g.random.normal(0, 0.2, 48).astype(np.float32)))
    return g.op("Concat", x, y, axis=1)


def vector_body(g):
    """No batch axis anywhere: MatMul of a vector."""
    x = g.input("series", [32])
    x = g.op("Add", g.op("MatMul", x, g.weight(g.normal(32, 48, fan=32), 1)),
             g.const(g.random.normal(0, 0.2, 48).astype(np.float32)))
    return g.op("Relu", x)


def fixed_reshape_body(g):
    """Reshape to a shape that names a batch of 1: no other batch is possible."""
    x = g.input("series", [32])
    x = g.op("Reshape", x, g.const(np.array([1, 1, 32], np.int64)))
    x = g.op("Relu", g.conv(x, 0.4 * g.normal(8, 1, 5, fan=2), kernel_shape=[5], pads=[2, 2]))
    return g.op("Reshape", x, g.const(np.array([1, 256], np.int64)))


def problems():
    classify = lambda name, body, make, layout: Problem(name, body, one(make), [layout])
    hand = {name: classify(name, body, data.gratings, image) for name, body in {
        "softmax-middle": graphs.softmax_middle, "softmax-axis-1": graphs.softmax_axis_1,
        "softmax-in-chain": graphs.softmax_in_chain, "log-softmax": graphs.log_softmax,
        "layer-norm": graphs.layer_norm, "reduce-mean": graphs.reduce_mean,
        "normalize-by-mean": graphs.normalize_by_mean, "elementwise": graphs.elementwise,
        "hard-swish-parts": graphs.hard_swish_parts, "channel-constants": graphs.channel_constants,
        "batch-norm": graphs.batch_norm, "mixed-types": graphs.mixed_types, "mixed-16-8": graphs.mixed_16_8,
        "shape-chain": graphs.shape_chain, "pad-slice": graphs.pad_slice, "two-readers": graphs.two_readers,
    }.items()}
    return hand | {
        "cnn": classify("cnn", graphs.cnn, data.gratings, image),
        "mlp": classify("mlp", graphs.mlp(), data.bumps, as_is),
        "mlp-matmul": classify("mlp-matmul", graphs.mlp(False), data.bumps, as_is),
        "autoencoder": Problem("autoencoder", graphs.autoencoder, one(data.bumps), [as_is], [("rebuilt", "none")],
                               "regression", lambda arrays, _: [arrays[0]]),
        "dual": Problem("dual", dual_body, both, [image, as_is], [("angle", "softmax"), ("place", "none")],
                        "classification",
                        lambda _, label: [data.logits(label, 4), data.logits(data.labels(480, 5), 5)]),
        "residual": classify("residual", graphs.residual, data.gratings, image),
        "series": classify("series", graphs.series, data.chirps, axes_first),
        "lstm": classify("lstm", graphs.recurrent("LSTM", 4), data.chirps, as_is),
        "gru": classify("gru", graphs.recurrent("GRU", 3), data.chirps, as_is),
        "no-batch": Problem("no-batch", vector_body, one(data.bumps), [as_is], batch=None),
        "fixed-reshape": classify("fixed-reshape", fixed_reshape_body, data.bumps, as_is),
    }


# --- Changes to a model -----------------------------------------------------------------------------------------


def value_of(model, name):
    return next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)


def integer_edges(model):
    """Take away the QuantizeLinear at each input and the DequantizeLinear at each output."""
    quantization = {}
    for value in model.graph.input:
        node = next(n for n in model.graph.node if value.name in n.input)
        assert node.op_type == "QuantizeLinear", f"{value.name} goes into a {node.op_type}"
        quantization[value.name] = strip(model, value, node, node.output[0], node.input[1:3])
    for value in model.graph.output:
        node = next(n for n in model.graph.node if value.name in n.output)
        assert node.op_type == "DequantizeLinear", f"{value.name} comes from a {node.op_type}"
        quantization[value.name] = strip(model, value, node, node.input[0], node.input[1:3])
    return quantization


def strip(model, value, node, inner, parameters):
    scale, zero_point = (value_of(model, p) for p in parameters)
    model.graph.node.remove(node)
    for other in model.graph.node:
        other.input[:] = [value.name if name == inner else name for name in other.input]
        other.output[:] = [value.name if name == inner else name for name in other.output]
    value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(zero_point.dtype)
    return float(scale), int(zero_point)


def cast(source, target, kind):
    return helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=kind)


def half_weights(model):
    """Weights stored as float16, cast to float32 before use."""
    casts = []
    for tensor in list(model.graph.initializer):
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size > 8:
            model.graph.initializer.remove(tensor)
            model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), tensor.name + "_half"))
            casts.append(cast(tensor.name + "_half", tensor.name, TensorProto.FLOAT))
    nodes = casts + list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def half_everything(model, edges):
    """Everything in float16; with casts at the edges unless the edges are float16 too."""
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name))
    if edges == "f16":
        for value in [*model.graph.input, *model.graph.output]:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
        return
    nodes = list(model.graph.node)
    for value in model.graph.input:
        for node in nodes:
            node.input[:] = [f"{value.name}_half" if n == value.name else n for n in node.input]
        nodes.insert(0, cast(value.name, f"{value.name}_half", TensorProto.FLOAT16))
    for value in model.graph.output:
        for node in nodes:
            node.output[:] = [f"{value.name}_half" if n == value.name else n for n in node.output]
        nodes.append(cast(f"{value.name}_half", value.name, TensorProto.FLOAT))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def also_give(model, kind, rename):
    """Make the float tensor between the last DequantizeLinear and `kind` and its QuantizeLinear an output as well."""
    readers = lambda name: [n.op_type for n in model.graph.node if name in n.input]
    node = [n for n in model.graph.node if n.op_type == kind and readers(n.output[0]) == ["QuantizeLinear"]][-1]
    inner = node.output[0]
    for other in model.graph.node:
        other.input[:] = [rename if n == inner else n for n in other.input]
        other.output[:] = [rename if n == inner else n for n in other.output]
    shapes = onnx.shape_inference.infer_shapes(model)
    value = next(v for v in shapes.graph.value_info if v.name == rename)
    model.graph.output.append(value)


def canonical(model):
    """The same graph in an order of its own and with names of its own, but for those of inputs and outputs.

    tf2onnx walks sets of objects: its order, its numbers, and which of two equal tensors gives its name to both change
    from run to run with the addresses of memory.
    """
    makers = {output: node for node in model.graph.node for output in node.output}
    initial = {tensor.name: tensor for tensor in model.graph.initializer}
    edges = {value.name for value in [*model.graph.input, *model.graph.output]}
    nodes, constants, names = [], [], {"": ""}

    def visit(tensor):
        if tensor in names:
            return
        node = makers.get(tensor)
        if node:
            for name in node.input:
                visit(name)
            nodes.append(node)
        elif tensor in initial:
            constants.append(initial[tensor])
        for name in node.output if node else [tensor]:
            names[name] = name if name in edges else f"{node.op_type if node else 'const'}__{len(names)}"

    for value in model.graph.output:
        visit(value.name)
    for node in nodes:
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
        node.name = node.output[0]
        if not node.domain:
            node.ClearField("domain")  # the default domain, whether it was written out or not
    for tensor in constants:
        tensor.name = names[tensor.name]
    for field, values in ((model.graph.node, nodes), (model.graph.initializer, constants)):
        values = list(map(type(values[0]).FromString, [v.SerializeToString() for v in values]))
        del field[:]
        field.extend(values)
    del model.graph.value_info[:]


# --- Quantizers ------------------------------------------------------------------------------------------------


def static(problem, model, activations, weights, form, per_channel, reduce_range=False, kinds=None, **extra):
    """Scales fixed by calibration; `kinds` limits it to these operators."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = os.path.join(folder, "float.onnx"), os.path.join(folder, "quantized.onnx")
        onnx.save(onnx.shape_inference.infer_shapes(model), source)
        quantize_static(source, target, Reader(model, problem.calibration), quant_format=form, per_channel=per_channel,
                        reduce_range=reduce_range, activation_type=TYPES[activations], weight_type=TYPES[weights],
                        op_types_to_quantize=kinds and list(kinds), extra_options=extra)
        return onnx.load(target)


def dynamic(model, weights, per_channel=False):
    """Scales computed at run time; 7-bit weights, as in `cases`."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = os.path.join(folder, "float.onnx"), os.path.join(folder, "quantized.onnx")
        onnx.save(onnx.shape_inference.infer_shapes(model), source)
        quantize_dynamic(source, target, weight_type=TYPES[weights], per_channel=per_channel, reduce_range=True)
        return onnx.load(target)


def operators(model):
    """Kinds of operator, with the domain in front where it is not ONNX's own."""
    return sorted({n.op_type if n.domain in ("", "ai.onnx") else f"{n.domain}:{n.op_type}" for n in model.graph.node})


# --- Cases -----------------------------------------------------------------------------------------------------


def cases():
    """Each case: what zoo.json says of it, and how its model is made from its problem."""
    table = []

    def add(name, problem, build, form, activations, weights, per_channel, edges="float32", opset=13, note="",
            tool="onnxruntime", **more):
        table.append(({"name": name, "format": "onnx", "tool_chain": tool, "form": form,
                       "activations": LONG[activations], "weights": LONG[weights], "per_channel": per_channel,
                       "edges": edges, "opset": opset, "note": note, **more}, problem, build))

    def qdq(problem, a, w, per_channel, edges="float", opset=13, note="", suffix="", gemm=True, batch=None,
            **extra):
        name = f"{problem}-qdq-{a}{w}" + ("-pc" if per_channel else "-pt") + (f"-opset{opset}" if opset != 13 else "")
        name += ("-int-edges" if edges == "int" else "") + suffix
        add(name, problem,
            lambda p: static(p, p.model(opset, batch, gemm), a, w, QuantFormat.QDQ, per_channel, **extra),
            "qdq", a, w, per_channel, LONG[a] if edges == "int" else "float32", opset, note)

    def qoperator(problem, a, w, per_channel, edges="float", note="", opset=13, gemm=True):
        name = f"{problem}-qoperator-{a}{w}" + ("-pc" if per_channel else "-pt")
        name += "-int-edges" if edges == "int" else ""
        # 7-bit weights for uint8 activations: processors without VNNI saturate pairs of products of 8-bit ones.
        add(name, problem,
            lambda p: static(p, p.model(opset, None, gemm), a, w, QuantFormat.QOperator, per_channel, a == "u8"),
            "qoperator", a, w, per_channel, LONG[a] if edges == "int" else "float32", opset, note)

    def by_hand(problem, per_channel=True, opset=17, note=""):
        add(f"{problem}-hand-qdq", problem, lambda p: p.model(opset, per_channel=per_channel),
            "qdq", "s8", "s8", per_channel, "float32", opset, note, tool="by hand")

    # QDQ as onnxruntime's quantizer writes it.
    qdq("cnn", "s8", "s8", True)
    qdq("cnn", "s8", "s8", False)
    qdq("cnn", "u8", "s8", True)
    qdq("cnn", "u8", "u8", False)
    qdq("cnn", "s8", "s8", True, opset=17)
    qdq("cnn", "u8", "u8", False, opset=21)
    qdq("cnn", "s8", "s8", True, opset=21)
    qdq("cnn", "s8", "s8", True, "int")
    qdq("cnn", "u8", "s8", True, "int")
    qdq("cnn", "u8", "u8", False, "int", opset=17)
    qdq("cnn", "s8", "s8", True, suffix="-float-weights", AddQDQPairToWeight=True,
        note="weights are float behind a QuantizeLinear and DequantizeLinear each, as training tools export")
    qdq("cnn", "s8", "s8", True, suffix="-dedicated", DedicatedQDQPair=True, note="a pair for each reader")
    qdq("cnn", "s8", "s8", True, suffix="-symmetric", ActivationSymmetric=True, note="activations have zero point 0")
    qdq("cnn", "s8", "s8", True, suffix="-batch-n", batch="n", note="the batch is a free dimension")
    qdq("cnn", "s16", "s8", True, opset=21, note="16-bit types of the ONNX domain, from opset 21")
    qdq("cnn", "u16", "s8", True, opset=21)
    qdq("cnn", "u16", "u8", False, opset=17, suffix="-msft", UseQDQContribOps=True,
        note="16-bit types of com.microsoft")
    qdq("cnn", "s8", "s4", True, opset=21, note="4-bit weights")
    qdq("mlp", "s8", "s8", True)
    qdq("mlp", "u8", "u8", False)
    qdq("mlp", "s8", "s8", False, "int")
    qdq("mlp-matmul", "s8", "s8", False, gemm=False, note="MatMul and Add rather than Gemm")
    qdq("mlp-matmul", "u8", "s8", True, gemm=False, opset=17)
    qdq("autoencoder", "s8", "s8", True, note="no Softmax")
    qdq("autoencoder", "s8", "s8", False, "int", note="no Softmax")
    qdq("autoencoder", "u8", "u8", False, "int")
    qdq("dual", "s8", "s8", True, note="two inputs, two outputs")
    qdq("dual", "u8", "s8", True, "int", note="two inputs, two outputs")
    qdq("residual", "s8", "s8", True, opset=17)
    qdq("residual", "u8", "u8", False, opset=17)
    qdq("series", "s8", "s8", True)
    qdq("series", "u8", "s8", True, "int")
    qdq("no-batch", "s8", "s8", False, gemm=False, note="no batch axis")
    qdq("fixed-reshape", "s8", "s8", True, note="a Reshape names the batch of 1")

    # Other tools' forms.
    by_hand("softmax-middle")
    by_hand("softmax-axis-1")
    by_hand("softmax-in-chain")
    by_hand("log-softmax")
    by_hand("layer-norm")
    by_hand("reduce-mean")
    by_hand("normalize-by-mean")
    by_hand("elementwise", opset=13)
    by_hand("hard-swish-parts")
    by_hand("channel-constants", per_channel=False)
    by_hand("batch-norm")
    by_hand("mixed-types")
    by_hand("mixed-16-8", opset=21)
    by_hand("shape-chain")
    by_hand("pad-slice")
    by_hand("two-readers")

    def with_middle(p):
        model = p.model(17, per_channel=True)
        also_give(model, "Relu", "middle")
        return model
    add("intermediate-output-hand-qdq", "reduce-mean", with_middle, "qdq", "s8", "s8", True, "float32", 17,
        "a tensor between a DequantizeLinear and a QuantizeLinear is an output too", tool="by hand", margin=[0.2, 0.0])

    # QOperator.
    microsoft = "holds operators of com.microsoft"
    qoperator("cnn", "u8", "s8", True, note=microsoft)
    qoperator("cnn", "s8", "s8", True, note=microsoft)
    qoperator("cnn", "u8", "u8", False, note=microsoft)
    qoperator("cnn", "s8", "s8", False, "int", note=microsoft)
    qoperator("mlp", "u8", "u8", False, note=microsoft)
    qoperator("mlp", "s8", "s8", True, note=microsoft)
    qoperator("mlp-matmul", "u8", "s8", False, gemm=False, note=microsoft)
    qoperator("autoencoder", "s8", "s8", False, note=microsoft)
    qoperator("dual", "u8", "s8", False, note=microsoft)
    qoperator("residual", "s8", "s8", True, opset=17, note=microsoft)
    qoperator("series", "u8", "s8", True, note=microsoft)

    def only(*kinds):
        return lambda p: static(p, p.model(gemm=False), "u8", "s8", QuantFormat.QOperator, True, True, kinds)
    add("cnn-qoperator-standard", "cnn", only("Conv", "MaxPool", "Relu"), "qoperator", "u8", "s8", True, "float32", 13,
        "only operators of the ONNX domain: QLinearConv")
    add("mlp-qoperator-standard", "mlp-matmul", only("MatMul"), "qoperator", "u8", "s8", True, "float32", 13,
        "only operators of the ONNX domain: QLinearMatMul")

    # Dynamic.
    def by_run(problem, weights, per_channel, gemm=True):
        add(f"{problem}-dynamic-{weights}" + ("-pc" if per_channel else "-pt"), problem,
            lambda p: dynamic(p.model(gemm=gemm), weights, per_channel),
            "dynamic", "u8", weights, per_channel, note="scales are computed at run time")

    by_run("cnn", "u8", False)
    by_run("cnn", "s8", True)
    by_run("mlp", "s8", False)
    by_run("mlp-matmul", "u8", True, gemm=False)
    by_run("autoencoder", "s8", True)
    by_run("series", "u8", False)
    add("lstm-dynamic-s8", "lstm", lambda p: dynamic(p.model(13), "s8"), "dynamic", "f32", "s8", False, "float32", 13,
        "DynamicQuantizeLSTM of com.microsoft")

    # Float.
    def plain(problem, opset=13, suffix="", note="", batch=None, gemm=True):
        add(f"{problem}-f32{suffix}", problem, lambda p: p.model(opset, batch, gemm),
            "float32", "f32", "f32", False, opset=opset, note=note)

    for problem in ("cnn", "mlp", "autoencoder", "dual", "series", "lstm", "gru"):
        plain(problem)
    plain("cnn", 21, "-opset21")
    plain("residual", 17)
    plain("no-batch", gemm=False, note="no batch axis")
    plain("mlp", suffix="-batch-n", batch="n", note="the batch is a free dimension")

    def halves(change, *arguments):
        def make(p):
            model = p.model(13)
            change(model, *arguments)
            return model
        return make
    for problem in ("cnn", "mlp"):
        add(f"{problem}-f16-weights", problem, halves(half_weights), "float16", "f32", "f16", False,
            note="weights are float16 and cast to float32")
    add("cnn-f16", "cnn", halves(half_everything, "f32"), "float16", "f16", "f16", False,
        note="float16 inside, float32 edges")
    add("cnn-f16-edges", "cnn", halves(half_everything, "f16"), "float16", "f16", "f16", False, "float16",
        note="float16 throughout")
    return table


def settle(case, model, path, out, problem):
    """Integer edges, file, golden vectors."""
    quantization = {}
    if case["edges"] in ("int8", "uint8"):
        quantization = integer_edges(model)
    onnx.checker.check_model(model, full_check=False)
    blob = model.SerializeToString(deterministic=True)
    with open(path, "wb") as file:
        file.write(blob)
    candidates = []
    for value, array in zip(model.graph.input, problem.candidates):
        if value.name in quantization:
            scale, zero_point = quantization[value.name]
            least, most = graphs.LIMITS[case["edges"]]
            array = np.clip(np.round(array / scale) + zero_point, least, most).astype(case["edges"])
        elif case["edges"] == "float16":
            array = array.astype(np.float16)
        candidates.append(array)
    case["ops"], case["task"] = operators(model), problem.task
    first = model.graph.input[0].type.tensor_type.shape.dim
    case["batch"] = ("none" if len(first) < candidates[0].ndim else "free" if first[0].dim_param else "1")
    edges = ([(v.name, quantization.get(v.name)) for v in model.graph.input],
             [(v.name, quantization.get(v.name)) for v in model.graph.output])
    return golden.make(case, blob, path, out, candidates, problem.label,
                       lambda arrays: graphs.run(model, arrays)[0],
                       lambda arrays: graphs.run(model, arrays, optimized=True)[0], edges, SOURCE,
                       problem.exact(case["opset"]))


def generate(out, wanted):
    """All cases whose name holds `wanted`: the entries of zoo.json, and the failures as (name, reason)."""
    known, entries, failures = problems(), [], []
    for case, problem, build in cases():
        if wanted not in case["name"]:
            continue
        try:
            path = os.path.join(out, case["name"] + ".onnx")
            entries.append(settle(case, build(known[problem]), path, out, known[problem]))
        except Exception as error:  # every case is tried, the caller fails for all of them at once
            failures.append((case["name"], f"{type(error).__name__}: {error}"))
    return entries, failures
