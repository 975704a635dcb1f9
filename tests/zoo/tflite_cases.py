"""The TensorFlow Lite half of the zoo: what TensorFlow's converter writes, and tf2onnx's reading of it."""

import os

import numpy as np
import tensorflow as tf

import data
import golden
import onnx_graphs

REFERENCE = tf.lite.experimental.OpResolverType.BUILTIN_REF
OPTIMIZED = tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
SOURCE = f"TensorFlow Lite of TensorFlow {tf.__version__}, reference kernels"
LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767)}


class Network(tf.Module):
    """A function from inputs to outputs: a body with fixed weights, and last layers solved by least squares.

    `body` takes the network and its inputs, the batch first, and gives features [batch, n].
    """

    def __init__(self, name, body, inputs, make, ends=("softmax",), targets=None, task="classification", batch=1):
        super().__init__(name=name.replace("-", "_"))
        self.case, self.body, self.inputs, self.ends, self.task, self.batch = name, body, inputs, ends, task, batch
        self.heads = None
        train, label = make(480, "train")
        self.calibration = [a[:64] for a in make(64, "calibration")[0]]
        self.candidates, self.label = make(120, "golden")
        # A body may be bound to a batch of one, so features are taken one vector at a time.
        step = tf.function(self.features, input_signature=self.signature())
        features = np.concatenate([step(*row).numpy() for row in self.rows(train)])
        targets = targets(train, label) if targets else [data.logits(label, label.max() + 1)]
        self.heads = [data.ridge(features, target) for target in targets]
        whole = tf.function(self.__call__, input_signature=self.signature(), autograph=False)
        answers = [whole(*row) for row in self.rows(self.candidates)]
        answers = [row if isinstance(row, tuple) else (row,) for row in answers]
        stack = np.stack if batch is None else np.concatenate
        self.exact = [stack([y.numpy() for y in column]) for column in zip(*answers)]

    def signature(self):
        lead = {1: [1], "n": [None], None: []}[self.batch]
        return [tf.TensorSpec([*lead, *dims], tf.float32, name) for name, dims in self.inputs]

    def rows(self, arrays):
        for k in range(len(arrays[0])):
            yield [tf.constant(a[k] if self.batch is None else a[k:k + 1]) for a in arrays]

    def features(self, *inputs):
        self.random = data.rng("network", self.case)  # the same weights however often it is traced
        return self.body(self, *inputs)

    def __call__(self, *inputs):
        features, outputs = self.features(*inputs), []
        for (weights, bias), end in zip(self.heads, self.ends):
            x = tf.matmul(features, tf.constant(weights)) + tf.constant(bias)
            outputs.append({"softmax": tf.nn.softmax, "none": tf.identity}[end](x))
        if self.batch is None:
            outputs = [tf.reshape(x, [-1]) for x in outputs]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def normal(self, *shape, fan):
        return tf.constant((self.random.normal(0, 1, shape) * np.sqrt(2 / fan)).astype(np.float32))

    def bias(self, count):
        return tf.constant(self.random.normal(0, 0.2, count).astype(np.float32))

    def dense(self, x, size):
        count = x.shape[-1]
        return tf.matmul(x, self.normal(count, size, fan=count)) + self.bias(size)


# --- Bodies --------------------------------------------------------------------------------------------------------


def edges():
    """The striped filters of the ONNX half, in TensorFlow's order: rows, columns, in, out."""
    return tf.constant(onnx_graphs.edges(16).transpose(2, 3, 1, 0))


def cnn(net, x):
    x = tf.nn.relu(tf.nn.conv2d(x, edges(), 1, "SAME"))
    x = tf.nn.max_pool2d(x, 2, 2, "VALID")
    x = tf.nn.relu(tf.nn.depthwise_conv2d(x, 0.2 + 0.1 * net.normal(3, 3, 16, 1, fan=2), [1, 1, 1, 1], "SAME"))
    x = tf.nn.relu(tf.nn.conv2d(x, net.normal(1, 1, 16, 72, fan=16), 1, "SAME") + net.bias(72))
    return tf.reduce_mean(tf.nn.avg_pool2d(x, 3, 3, "VALID"), [1, 2])


def mlp(net, x):
    return tf.nn.relu(net.dense(tf.nn.relu(net.dense(x, 48)), 32))


def autoencoder(net, x):
    x = 0.5 * net.dense(tf.nn.relu(net.dense(x, 64)), 16)
    return tf.nn.relu(net.dense(x, 64))


def dual(net, image, series):
    x = tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(image, edges(), 2, "SAME")), [1, 2])
    return tf.concat([x, tf.nn.relu(net.dense(series, 48))], 1)


def residual(net, x):
    x = tf.nn.relu(tf.nn.conv2d(x, edges(), 2, "SAME"))
    side = tf.nn.depthwise_conv2d(x, 0.2 + 0.1 * net.normal(3, 3, 16, 1, fan=2), [1, 1, 1, 1], "SAME")
    total = x + side * tf.nn.relu6(side + 3) * (1 / 6)
    mixed = tf.nn.relu6(tf.nn.conv2d(total, net.normal(1, 1, 16, 16, fan=16), 1, "SAME"))
    joined = tf.concat([total, mixed], 3)
    gate = tf.sigmoid(net.dense(tf.reduce_mean(joined, [1, 2]), 32))
    return tf.reduce_mean(joined * gate[:, None, None, :], [1, 2])


def softmax_middle(net, x):
    x = tf.nn.softmax(6 * tf.nn.conv2d(x, edges(), 2, "SAME"))
    return tf.reduce_mean(x, [1, 2])


def layer_norm(net, x):
    """Mean, squared difference and reciprocal root."""
    x = tf.nn.conv2d(x, edges(), 2, "SAME")
    mean = tf.reduce_mean(x, -1, keepdims=True)
    spread = tf.reduce_mean(tf.math.squared_difference(x, mean), -1, keepdims=True)
    return tf.reduce_mean(tf.nn.relu((x - mean) * tf.math.rsqrt(spread + 0.02)), [1, 2])


def series(net, x):
    x = tf.nn.relu(tf.nn.conv1d(x, tf.constant(onnx_graphs.tones(16).transpose(2, 1, 0)), 1, "SAME"))
    x = tf.nn.relu(tf.nn.conv1d(x, net.normal(5, 16, 24, fan=80), 2, "SAME") + net.bias(24))
    return tf.reduce_mean(x, 1)


def fixed_reshape(net, x):
    x = tf.reshape(x, [1, 32, 1])
    x = tf.nn.relu(tf.nn.conv1d(x, 0.4 * net.normal(5, 1, 8, fan=2), 1, "SAME"))
    return tf.reshape(x, [1, 256])


def no_batch(net, x):
    return tf.nn.relu(net.dense(tf.reshape(x, [1, 32]), 48))


HIDDEN = 36


def lstm_weights(net, count=3):
    return (net.normal(count, 4 * HIDDEN, fan=count + 1), 0.4 * net.normal(HIDDEN, 4 * HIDDEN, fan=2 * HIDDEN),
            net.bias(4 * HIDDEN))


def lstm_cell(x, h, c, kernel, recurrent, bias):
    i, f, g, o = tf.split(tf.matmul(x, kernel) + tf.matmul(h, recurrent) + bias, 4, axis=1)
    c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
    return tf.sigmoid(o) * tf.tanh(c), c


def lstm_unrolled(net, x):
    """Sixteen steps, every third sample, written out."""
    weights = lstm_weights(net)
    # A first cell state of zero would leave one output of the first SPLIT unread, and whether the converter's
    # quantizer then skips that SPLIT is a matter of chance.
    h, c = tf.zeros([1, HIDDEN]), tf.fill([1, HIDDEN], 0.1)
    total = []
    for t in range(0, 48, 3):
        h, c = lstm_cell(x[:, t, :], h, c, *weights)
        total.append(h)
    return tf.reduce_mean(tf.stack(total, 1), 1)


def lstm_loop(net, x):
    """A loop in the graph: WHILE, with two more subgraphs."""
    weights = lstm_weights(net)
    h = c = total = tf.zeros([1, HIDDEN])
    t = tf.constant(0)
    def step(t, h, c, total):
        h, c = lstm_cell(x[:, t, :], h, c, *weights)
        return t + 1, h, c, total + h
    _, _, _, total = tf.while_loop(lambda t, *_: t < 48, step, (t, h, c, total))
    return total * (1 / 48)


def lstm_fused(net, x):
    """The converter's own operator, UNIDIRECTIONAL_SEQUENCE_LSTM, which it makes of Keras' LSTM function."""
    @tf.function(experimental_attributes={"api_implements": "lstm_zoo", "api_preferred_device": "CPU",
                                           "go_backwards": False, "time_major": False}, autograph=False)
    def standard_lstm(inputs, h, c, kernel, recurrent, bias):
        steps = []
        for t in range(48):
            h, c = lstm_cell(inputs[:, t, :], h, c, kernel, recurrent, bias)
            steps.append(h)
        return h, tf.stack(steps, 1), h, c, tf.constant(1.0)
    # 32 channels: the converter leaves weights of less than 1024 elements in float.
    x = tf.tanh(tf.nn.conv1d(x, net.normal(1, 3, 32, fan=4), 1, "SAME"))
    zero = tf.zeros([1, HIDDEN])
    _, every, _, _, _ = standard_lstm(x, zero, zero, *lstm_weights(net, 32))
    return tf.reduce_mean(every, 1)


def one(make):
    def draw(count, split):
        array, label = make(count, split)
        return [array], label
    return draw


def both(count, split):
    images, label = data.gratings(count, split)
    return [images, data.bumps(count, split)[0]], label


def networks():
    """Networks by name, made when first asked for."""
    image, vector, axes = [("image", [12, 12, 1])], [("series", [32])], [("axes", [48, 3])]
    gratings, bumps, chirps = one(data.gratings), one(data.bumps), one(data.chirps)
    return {
        "cnn": lambda: Network("cnn", cnn, image, gratings),
        "cnn-batch-n": lambda: Network("cnn", cnn, image, gratings, batch="n"),
        "mlp": lambda: Network("mlp", mlp, vector, bumps),
        "mlp-batch-n": lambda: Network("mlp", mlp, vector, bumps, batch="n"),
        "autoencoder": lambda: Network("autoencoder", autoencoder, vector, bumps, ("none",), lambda a, _: [a[0]],
                                       "regression"),
        "dual": lambda: Network("dual", dual, image + vector, both, ("softmax", "none"),
                                lambda _, label: [data.logits(label, 4), data.logits(data.labels(480, 5), 5)]),
        "residual": lambda: Network("residual", residual, image, gratings),
        "softmax-middle": lambda: Network("softmax-middle", softmax_middle, image, gratings),
        "layer-norm": lambda: Network("layer-norm", layer_norm, image, gratings),
        "series": lambda: Network("series", series, axes, chirps),
        "fixed-reshape": lambda: Network("fixed-reshape", fixed_reshape, vector, bumps),
        "no-batch": lambda: Network("no-batch", no_batch, vector, bumps, batch=None),
        "lstm-unrolled": lambda: Network("lstm", lstm_unrolled, axes, chirps),
        "lstm-loop": lambda: Network("lstm", lstm_loop, axes, chirps),
        "lstm-fused": lambda: Network("lstm", lstm_fused, axes, chirps),
    }


# --- Conversion ----------------------------------------------------------------------------------------------------


def convert(net, form, edges, **flags):
    function = tf.function(net.__call__, input_signature=net.signature(), autograph=False).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], net)
    sets = tf.lite.OpsSet
    if form != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if form == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if form in ("int8", "int16x8"):
        names = [name for name, _ in net.inputs]  # by name: the converter may reorder inputs
        converter.representative_dataset = lambda: (dict(zip(names, row)) for row in net.rows(net.calibration))
        wanted = {"int8": sets.TFLITE_BUILTINS_INT8,
                  "int16x8": sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8}[form]
        converter.target_spec.supported_ops = [wanted]
        converter.inference_input_type = converter.inference_output_type = tf.as_dtype(edges)
    for name, value in flags.items():
        assert hasattr(converter, name), f"the converter has no {name}"
        setattr(converter, name, value)
    return converter.convert()


class Runner:
    """A TensorFlow Lite interpreter with inputs in the network's order and outputs by name."""

    def __init__(self, blob, order, **options):
        self.interpreter = tf.lite.Interpreter(model_content=blob, num_threads=1, **options)
        inputs = self.interpreter.get_input_details()
        # The converter wraps names: serving_default_image:0.
        self.inputs = [next(d for d in inputs if name in d["name"]) for name in order]
        self.outputs = sorted(self.interpreter.get_output_details(), key=lambda d: d["name"])
        self.interpreter.allocate_tensors()

    def edges(self):
        known = lambda d: d["quantization"] if d["quantization"][0] else None
        return [[(d["name"], known(d)) for d in details] for details in (self.inputs, self.outputs)]

    def run(self, arrays):
        rows = []
        for k in range(len(arrays[0])):
            for detail, array in zip(self.inputs, arrays):
                self.interpreter.set_tensor(detail["index"], array[k].reshape(detail["shape"]))
            self.interpreter.reset_all_variables()  # a fused LSTM keeps its state: every vector starts from rest
            self.interpreter.invoke()
            rows.append([self.interpreter.get_tensor(d["index"]) for d in self.outputs])
        stack = np.stack if len(self.inputs[0]["shape"]) < arrays[0].ndim else np.concatenate
        return [stack(row) for row in zip(*rows)]

    def operators(self):
        return sorted({d["op_name"] for d in self.interpreter._get_ops_details()})


def stored(array, dtype, quantization):
    """Real inputs in the graph's own type."""
    if np.dtype(dtype) == np.float32:
        return array
    scale, zero_point = quantization
    least, most = LIMITS[np.dtype(dtype).name]
    return np.clip(np.round(array / scale) + zero_point, least, most).astype(dtype)


def cases():
    table = []

    def add(network, form, edges="float32", note="", suffix="", per_channel=None, **flags):
        words = {"int8": ("int8", "int8"), "int16x8": ("int16", "int8"), "float16": ("float32", "float16"),
                 "dynamic": ("float32", "int8"), "float32": ("float32", "float32")}[form]
        name = f"{network}-tflite-{form}" + (f"-{edges}-edges" if form in ("int8", "int16x8") else "") + suffix
        table.append(({"name": name, "format": "tflite", "tool_chain": "TensorFlow converter", "form": form,
                       "activations": words[0], "weights": words[1],
                       "per_channel": form in ("int8", "int16x8", "dynamic") if per_channel is None else per_channel,
                       "edges": edges, "note": note}, network, form, edges, flags))

    for edges in ("int8", "uint8", "float32"):
        add("cnn", "int8", edges)
        add("mlp", "int8", edges)
    add("cnn", "int8", "int8", "one scale a tensor, convolutions too", "-pt", False,
        _experimental_disable_per_channel=True)
    add("mlp", "int8", "int8", "dense layers with one scale a tensor", "-dense-pt", False,
        _experimental_disable_per_channel_quantization_for_dense_layers=True)
    add("cnn", "int8", "int8", "the old quantizer", "-old", True, experimental_new_quantizer=False)
    add("mlp", "int8", "uint8", "the old quantizer", "-old", False, experimental_new_quantizer=False)
    add("cnn-batch-n", "int8", "int8", "the batch is a free dimension")
    for form in ("float32", "float16", "dynamic"):
        add("cnn", form)
        add("mlp", form)
    add("mlp-batch-n", "float32", note="the batch is a free dimension")
    for edges in ("int16", "float32"):
        add("cnn", "int16x8", edges)
        add("mlp", "int16x8", edges)
    add("autoencoder", "float32")
    add("autoencoder", "int8", "int8", "no Softmax")
    add("autoencoder", "int8", "float32", "no Softmax")
    add("autoencoder", "dynamic", note="dense layers with one scale a channel")
    add("autoencoder", "dynamic", note="dense layers with one scale a tensor", suffix="-dense-pt", per_channel=False,
        _experimental_disable_per_channel_quantization_for_dense_layers=True)
    add("dual", "float32", note="two inputs, two outputs")
    add("dual", "int8", "int8", "two inputs, two outputs")
    add("dual", "int8", "uint8", "two inputs, two outputs")
    add("residual", "float32")
    add("residual", "int8", "int8")
    add("series", "int16x8", "float32")
    add("softmax-middle", "int16x8", "float32")
    add("softmax-middle", "int8", "int8")
    add("layer-norm", "int8", "int8")
    add("series", "float32")
    add("series", "int8", "int8")
    add("series", "dynamic")
    add("fixed-reshape", "int8", "int8", "a Reshape names the batch of 1")
    add("no-batch", "int8", "int8", "no batch axis")
    fused = "UNIDIRECTIONAL_SEQUENCE_LSTM, whose state outlives a run: golden outputs are from rest"
    add("lstm-loop", "float32", note="a loop: WHILE with subgraphs")
    add("lstm-unrolled", "int8", "int8", "sixteen steps written out")
    add("lstm-fused", "float32", note=fused)
    add("lstm-fused", "dynamic", note=fused + ", hybrid", per_channel=False)
    add("lstm-fused", "int8", "int8", fused)
    return table


def settle(case, net, blob, path, out):
    with open(path, "wb") as file:
        file.write(blob)
    order = [name for name, _ in net.inputs]
    source = SOURCE
    try:
        reference = Runner(blob, order, experimental_op_resolver_type=REFERENCE)
    except ValueError as error:  # no reference kernel for this version of an operator
        source = f"TensorFlow Lite of TensorFlow {tf.__version__}, optimized kernels"
        case["note"] += f"; {str(error).split('. ')[0]} among the reference kernels"
        reference = Runner(blob, order, experimental_op_resolver_type=OPTIMIZED)
    peer = Runner(blob, order)
    candidates = [stored(array, detail["dtype"], detail["quantization"])
                  for array, detail in zip(net.candidates, reference.inputs)]
    case |= {"ops": reference.operators(), "task": net.task, "batch": {1: "1", "n": "free", None: "none"}[net.batch]}
    return golden.make(case, blob, path, out, candidates, net.label, reference.run, peer.run, reference.edges(), source,
                       net.exact)


# --- tf2onnx -------------------------------------------------------------------------------------------------------

BY_TF2ONNX = ["cnn-tflite-int8-int8-edges", "mlp-tflite-int8-int8-edges", "residual-tflite-int8-int8-edges",
              "series-tflite-int8-int8-edges", "autoencoder-tflite-int8-int8-edges", "cnn-tflite-int8-uint8-edges",
              "cnn-tflite-int8-float32-edges", "softmax-middle-tflite-int8-int8-edges", "dual-tflite-int8-int8-edges",
              "cnn-tflite-float32", "mlp-tflite-float16"]


def by_tf2onnx(case, net, blob, out, opset=17):
    """The same model in ONNX, as the shared MLPerf Tiny models were made."""
    import onnx
    from tf2onnx import convert
    import onnx_cases

    name = case["name"].replace("-tflite-", "-tf2onnx-")
    source, path = os.path.join(out, case["file"]), os.path.join(out, name + ".onnx")
    model, _ = convert.from_tflite(source, opset=opset)
    onnx_cases.canonical(model)
    onnx.checker.check_model(model)
    converted = model.SerializeToString(deterministic=True)
    with open(path, "wb") as file:
        file.write(converted)
    runner = Runner(blob, [n for n, _ in net.inputs])
    quantization = dict(sum(runner.edges(), []))
    given = [v.name for v in model.graph.input]
    arrays = {d["name"]: stored(a, d["dtype"], d["quantization"]) for d, a in zip(runner.inputs, net.candidates)}
    known = lambda n: quantization.get(n)
    entry = {**case, "name": name, "format": "onnx", "tool_chain": "TensorFlow converter, tf2onnx", "opset": opset,
             "form": "qdq" if case["form"] == "int8" else case["form"], "ops": onnx_cases.operators(model)}
    ends = sorted((v.name for v in model.graph.output))
    def run(optimized):
        def go(inputs):
            values, names = onnx_graphs.run(model, inputs, optimized)
            return [values[names.index(n)] for n in ends]
        return go
    inputs = [arrays[n] for n in given]
    return golden.make(entry, converted, path, out, inputs, net.label, run(False), run(True),
                       ([(n, known(n)) for n in given], [(n, known(n)) for n in ends]), onnx_cases.SOURCE, net.exact)


def generate(out, wanted):
    """All cases whose name holds `wanted`: the entries of zoo.json, and the failures as (name, reason)."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    makers, made, entries, failures = networks(), {}, [], []
    for case, network, form, edges, flags in cases():
        converted = case["name"].replace("-tflite-", "-tf2onnx-") if case["name"] in BY_TF2ONNX else ""
        if wanted not in case["name"] and wanted not in converted:
            continue
        try:
            net = made.setdefault(network, None) or makers[network]()
            made[network] = net
            blob = convert(net, form, edges, **flags)
            entry = settle(case, net, blob, os.path.join(out, case["name"] + ".tflite"), out)
            entries.append(entry)
        except Exception as error:  # every case is tried, the caller fails for all of them at once
            failures.append((case["name"], f"{type(error).__name__}: {error}"))
            continue
        if converted:
            try:
                entries.append(by_tf2onnx(entry, net, blob, out))
            except Exception as error:
                failures.append((case["name"] + " by tf2onnx", f"{type(error).__name__}: {error}"))
    return entries, failures
