"""Makes every file of this package that is not written by hand: both graphs, both sets of golden vectors, the card's figures.

    scripts/setup --train && .limpet/train/bin/python models/motor-health/train.py

Simulates training, validation and held-out motors (simulate.py), trains a small convolutional network on the features of
front_end.py, quantizes it to int8 for TensorFlow Lite and as an ONNX graph with QuantizeLinear/DequantizeLinear pairs,
judges both on the held-out motors beside a decision tree on RMS and kurtosis, and picks golden vectors. It fails, and
writes nothing, if a graph or a set of golden vectors is not good enough.
"""

import json
import os
import struct
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import keras
import numpy as np
import onnx
import onnxruntime
import tensorflow as tf
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from safetensors.numpy import load

import front_end
import simulate

HERE = Path(__file__).resolve().parent
LABELS = simulate.CONDITIONS
CLASSES = len(LABELS)
ROWS = front_end.FRAMES * 3  # frame and axis
SEED = 20
EPOCHS, BATCH = 30, 128
# Filters, size and strides over rows (frame and axis) and bands: the three axes of one frame at once, then bands alone.
CONVOLUTIONS = ((16, (3, 7), (3, 2)), (24, (1, 5), (1, 2)), (32, (1, 13), (1, 1)))
# Seeds of motors. Training and validation motors come from the training side of the parameter table, the rest from the
# held-out side. Those for golden vectors and for streams are apart, so that nothing is chosen on what is judged.
TRAINING_MOTORS = range(0, 3000)
VALIDATION_MOTORS = range(10_000_000, 10_000_400)
HELD_OUT_MOTORS = range(30_000_000, 30_000_500)
GOLDEN_MOTORS = range(40_000_000, 40_000_040)
STREAM_MOTORS = range(50_000_000, 50_000_100)
STREAM_SECONDS = 20
# The trigger of model.toml.
ABOVE, CONSECUTIVE = 0.8, 3
GOLDEN_PER_CLASS = 4

lines = []


def say(text=""):
    """Prints a line that also goes into the card."""
    print(text, flush=True)
    lines.append(text)


def windows_of(motors, held_out, windows, keep_samples=False):
    """Every motor in every condition: features [window, ROWS, BANDS, 1], statistics, labels, and samples if wanted."""
    features, statistics, labels, samples = [], [], [], []
    motors = np.asarray(motors, np.uint64)
    for start in range(0, len(motors), 500):  # bounds memory
        part = motors[start : start + 500]
        conditions = np.tile(np.arange(CLASSES), len(part))
        recording = simulate.record(
            np.repeat(part, CLASSES), held_out, conditions, windows, front_end.WINDOW_SAMPLES, gap=simulate.RATE_HZ)
        recording = recording.reshape(-1, front_end.WINDOW_SAMPLES, 3)
        features.append(front_end.features(recording))
        statistics.append(rms_and_kurtosis(recording))
        labels.append(np.repeat(conditions, windows))
        if keep_samples:
            samples.append(recording)
    features = np.concatenate(features).reshape(-1, ROWS, front_end.BANDS, 1)
    return features, np.concatenate(statistics), np.concatenate(labels), np.concatenate(samples) if samples else None


# --- The simple alternative: a decision tree on RMS and kurtosis -------------------------------------------------------


def rms_and_kurtosis(samples):
    """[window, sample, axis] -> [window, 6]: RMS and kurtosis of each axis, gravity removed."""
    centered = samples.astype(float) - samples.mean(1, keepdims=True, dtype=float)
    second = (centered**2).mean(1)
    return np.concatenate([np.sqrt(second), (centered**4).mean(1) / second**2], -1)


def grow_tree(values, labels, depth, smallest_leaf=20):
    """A classification tree by Gini impurity (Breiman et al. 1984): every threshold of every feature is tried."""
    counts = np.bincount(labels, minlength=CLASSES)
    leaf = {"answer": counts.argmax()}
    size = len(labels)
    if depth == 0 or size < 2 * smallest_leaf or counts.max() == size:
        return leaf
    best = np.inf, None, None
    for feature in range(values.shape[1]):
        order = np.argsort(values[:, feature], kind="stable")
        value = values[order, feature]
        left = np.eye(CLASSES)[labels[order]].cumsum(0)[:-1]
        left_size = np.arange(1, size)
        right_size = size - left_size
        impurity = size - (left**2).sum(1) / left_size - ((counts - left) ** 2).sum(1) / right_size
        impurity[(value[1:] == value[:-1]) | (left_size < smallest_leaf) | (right_size < smallest_leaf)] = np.inf
        at = impurity.argmin()
        if impurity[at] < best[0]:
            best = impurity[at], feature, (value[at] + value[at + 1]) / 2
    if best[1] is None:
        return leaf
    below = values[:, best[1]] <= best[2]
    return {**leaf, "feature": best[1], "threshold": best[2],
            "below": grow_tree(values[below], labels[below], depth - 1, smallest_leaf),
            "above": grow_tree(values[~below], labels[~below], depth - 1, smallest_leaf)}


def ask_tree(tree, values, depth):
    """Answers of the tree cut off at `depth`."""
    if depth == 0 or "feature" not in tree:
        return np.full(len(values), tree["answer"])
    below = values[:, tree["feature"]] <= tree["threshold"]
    answers = np.empty(len(values), int)
    answers[below] = ask_tree(tree["below"], values[below], depth - 1)
    answers[~below] = ask_tree(tree["above"], values[~below], depth - 1)
    return answers


# --- The network ------------------------------------------------------------------------------------------------------


def train(features, labels, validation):
    """Convolutions over bands within one frame, all axes at once; the mean over frames; a softmax."""
    layers = keras.layers
    stack = [keras.Input((ROWS, front_end.BANDS, 1))]
    for filters, size, strides in CONVOLUTIONS:
        stack += [layers.Conv2D(filters, size, strides, use_bias=False), layers.BatchNormalization(momentum=0.9),
                  layers.ReLU()]
    stack += [layers.GlobalAveragePooling2D(), layers.Dropout(0.2), layers.Dense(CLASSES, activation="softmax")]
    model = keras.Sequential(stack)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, EPOCHS * (len(labels) // BATCH))
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(features, labels, batch_size=BATCH, epochs=EPOCHS, validation_data=validation, verbose=2)
    return model


def fold(model):
    """The convolutions with their batch normalization folded in, and the last layer: [(kernel, bias), ...]."""
    folded = []
    kernel = None
    for layer in model.layers:
        weights = layer.get_weights()
        if isinstance(layer, keras.layers.Conv2D):
            (kernel,) = weights
        elif isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = weights
            gain = gamma / np.sqrt(variance + layer.epsilon)
            folded.append((kernel * gain, beta - mean * gain))
        elif isinstance(layer, keras.layers.Dense):
            folded.append(tuple(weights))
    return folded


def to_tflite(folded, representative):
    """Full integer TensorFlow Lite: int8 in, int8 out."""
    layers = keras.layers
    convolutions = [
        layers.Conv2D(filters, size, strides, activation="relu") for filters, size, strides in CONVOLUTIONS]
    model = keras.Sequential([keras.Input((ROWS, front_end.BANDS, 1), name="features"), *convolutions,
                              layers.GlobalAveragePooling2D(), layers.Dense(CLASSES, activation="softmax")])
    model.set_weights([array for pair in folded for array in pair])
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([one[None]] for one in representative)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return model, converter.convert()


def to_onnx(folded):
    """The same network in f32 as ONNX. One channel, so [batch, 1, ROWS, BANDS] has the order of the features."""
    nodes, weights = [], []
    last = "features"
    for at, ((kernel, bias), (_, size, strides)) in enumerate(zip(folded, CONVOLUTIONS)):
        weights += [numpy_helper.from_array(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)), f"kernel{at}"),
                    numpy_helper.from_array(bias, f"bias{at}")]
        nodes += [helper.make_node("Conv", [last, f"kernel{at}", f"bias{at}"], [f"conv{at}"], f"conv{at}",
                                   kernel_shape=size, strides=strides),
                  helper.make_node("Relu", [f"conv{at}"], [f"relu{at}"], f"relu{at}")]
        last = f"relu{at}"
    kernel, bias = folded[-1]
    weights += [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(bias, "bias")]
    nodes += [helper.make_node("GlobalAveragePool", [last], ["mean"], "mean"),
              helper.make_node("Flatten", ["mean"], ["flat"], "flat"),
              helper.make_node("Gemm", ["flat", "kernel", "bias"], ["logits"], "logits"),
              helper.make_node("Softmax", ["logits"], ["scores"], "scores", axis=-1)]
    graph = helper.make_graph(
        nodes, "motor-health",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 1, ROWS, front_end.BANDS])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="limpet")
    onnx.checker.check_model(model, full_check=True)
    return model


class Calibration(CalibrationDataReader):
    def __init__(self, features):
        self.batches = iter([{"features": features.reshape(-1, 1, ROWS, front_end.BANDS)}])

    def get_next(self):
        return next(self.batches, None)


def to_qdq(model, representative):
    """int8 activations, int8 symmetric weights per channel; the softmax stays in f32, so no precision is lost at the edge."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "f32.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, source)
        quantize_static(
            source, target, Calibration(representative), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"],
            extra_options={"WeightSymmetric": True, "ActivationSymmetric": False})
        return target.read_bytes()


class Tflite:
    """The .tflite graph on one of TensorFlow Lite's sets of kernels; `run` takes and gives what the graph takes and gives."""

    def __init__(self, graph, reference):
        resolver = tf.lite.experimental.OpResolverType
        self.interpreter = tf.lite.Interpreter(
            model_content=graph, num_threads=1,
            experimental_op_resolver_type=resolver.BUILTIN_REF if reference else resolver.AUTO)
        self.interpreter.allocate_tensors()
        self.input, self.output = self.interpreter.get_input_details()[0], self.interpreter.get_output_details()[0]

    def quantize(self, features):
        scale, zero_point = self.input["quantization"]
        return np.clip(np.round(features / scale + zero_point), -128, 127).astype(np.int8)

    def dequantize(self, output):
        scale, zero_point = self.output["quantization"]
        return (output.astype(np.float32) - zero_point) * np.float32(scale)

    def run(self, features):
        inputs = self.quantize(features)
        outputs = []
        for one in inputs:
            self.interpreter.set_tensor(self.input["index"], one[None])
            self.interpreter.invoke()
            outputs.append(self.interpreter.get_tensor(self.output["index"])[0])
        return np.stack(outputs)

    def scores(self, features):
        return self.dequantize(self.run(features))


class Onnx:
    """The ONNX graph on ONNX Runtime, one thread."""

    def __init__(self, graph):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def run(self, features):
        return self.session.run(None, {"features": features.reshape(-1, 1, ROWS, front_end.BANDS)})[0]

    scores = run


# --- Golden vectors ---------------------------------------------------------------------------------------------------


def nmae(output, golden):
    """Mean |output - golden| over mean |golden - its median over the vectors, per element|."""
    return np.abs(output - golden).mean() / np.abs(golden - np.median(golden, 0)).mean()


def top1(output, golden):
    """Agreement of the best class; a tie for the best is a disagreement."""
    tied = (output == output.max(-1, keepdims=True)).sum(-1) > 1
    return ((output.argmax(-1) == golden.argmax(-1)) & ~tied).mean()


def pick_golden(judges, features, labels):
    """For each class two clear windows and two less clear ones, of different motors, right and clear for every judge."""
    scores = np.stack([judge.scores(features) for judge in judges])
    ordered = np.sort(scores, -1)
    margin = (ordered[..., -1] - ordered[..., -2]).min(0)
    right = (scores.argmax(-1) == labels).all(0)
    chosen = []
    for label in range(CLASSES):
        mine = np.flatnonzero(right & (labels == label) & (margin >= 0.6))
        # Saturated outputs alone would forgive an engine that is slightly wrong everywhere.
        soft = mine[margin[mine] < 0.97][: GOLDEN_PER_CLASS // 2]
        clear = mine[margin[mine] >= 0.97][: GOLDEN_PER_CLASS - len(soft)]
        if len(soft) + len(clear) != GOLDEN_PER_CLASS:
            sys.exit(f"train: only {len(soft) + len(clear)} windows of {LABELS[label]} are fit to be golden")
        chosen += [*soft, *clear]
    return np.asarray(chosen), margin


def check_golden(name, judge, features, golden, others):
    """The golden vectors have to pass what is right and fail what is wrong."""
    say(f"\n{name}, limits top-1 = 1.0 and NMAE <= 0.25:\n")
    say("| what | top-1 | NMAE | |")
    say("|---|---|---|---|")

    def row(what, output, expected):
        agreement, error = top1(output, golden), nmae(output, golden)
        passes = agreement >= 1.0 and error <= 0.25
        say(f"| {what} | {agreement:.3f} | {error:.4f} | {'passes' if passes else 'fails'} |")
        if passes != expected:
            sys.exit(f"train: {name}: {what} should {'pass' if expected else 'fail'}")

    for what, other in others:
        row(what, other.scores(features), True)
    row("best constant answer", np.broadcast_to(np.median(golden, 0), golden.shape), False)
    row("classes permuted", np.roll(golden, 1, -1), False)
    row("inputs zeroed", judge.scores(np.zeros_like(features)), False)
    row("inputs in another order", judge.scores(np.roll(features, GOLDEN_PER_CLASS, 0)), False)
    shuffled = features.reshape(len(features), -1).copy()
    random = np.random.default_rng(SEED)
    shuffled = shuffled[:, random.permutation(shuffled.shape[1])].reshape(features.shape)
    row("inputs shuffled within", judge.scores(shuffled), False)
    swapped = features.reshape(-1, front_end.FRAMES, 3, front_end.BANDS)[:, :, :, ::-1].reshape(features.shape)
    row("bands reversed", judge.scores(np.ascontiguousarray(swapped)), False)


def save(tensors, metadata):
    """A safetensors file. The library's own `save` puts metadata in a new order each time, so no file would be reproduced."""
    header, offset = {"__metadata__": dict(sorted(metadata.items()))}, 0
    for name, tensor in tensors.items():
        kind = {"float32": "F32", "int8": "I8"}[tensor.dtype.name]
        header[name] = {"dtype": kind, "shape": tensor.shape, "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    content = b"".join([struct.pack("<Q", len(text)), text, *(tensor.tobytes() for tensor in tensors.values())])
    for name, tensor in load(content).items():
        assert np.array_equal(tensor, tensors[name]), f"{name} does not come back from its safetensors file"
    return content


# --- The card's figures -----------------------------------------------------------------------------------------------


def confusion(name, answers, labels):
    say(f"\n{name}: **{100 * (answers == labels).mean():.2f} %** of {len(labels)} windows\n")
    say("| is \\ said | " + " | ".join(LABELS) + " | right |")
    say("|---" * (CLASSES + 2) + "|")
    for label in range(CLASSES):
        row = np.bincount(answers[labels == label], minlength=CLASSES)
        say(f"| {LABELS[label]} | " + " | ".join(map(str, row)) + f" | {100 * row[label] / row.sum():.1f} % |")
    return (answers == labels).mean()


def streams(judge):
    """Motors that run on, judged as the agent does: a result each second frame, a trigger after three above 0.8."""
    hop = 2 * front_end.HOP
    results = (STREAM_SECONDS * simulate.RATE_HZ - front_end.WINDOW_SAMPLES) // hop + 1
    motors = np.asarray(STREAM_MOTORS, np.uint64)
    conditions = np.tile(np.arange(CLASSES), len(motors))
    length = front_end.WINDOW_SAMPLES + (results - 1) * hop
    recording = simulate.record(np.repeat(motors, CLASSES), True, conditions, 1, length, gap=0)[:, 0]
    scores = np.stack([
        judge.scores(front_end.features(recording[:, at * hop : at * hop + front_end.WINDOW_SAMPLES])
                     .reshape(-1, ROWS, front_end.BANDS, 1))
        for at in range(results)], 1)
    say(f"\n{len(motors)} more held-out motors in each condition for {STREAM_SECONDS} s, a result every "
        f"{hop / simulate.RATE_HZ:.2f} s, \"seen\" after {CONSECUTIVE} results in a row above {ABOVE}:\n")
    say("| condition | " + " | ".join(f"{label} seen" for label in LABELS) + " | median time to the right one |")
    say("|---" * (CLASSES + 2) + "|")
    for label in range(CLASSES):
        above = scores[conditions == label] > ABOVE
        run = np.stack([above[:, at : results - CONSECUTIVE + 1 + at] for at in range(CONSECUTIVE)]).all(0)
        seen = run.any(1)
        first = run[:, :, label].argmax(1)[seen[:, label]] + CONSECUTIVE - 1
        seconds = np.median((first * hop + front_end.WINDOW_SAMPLES) / simulate.RATE_HZ)
        say(f"| {LABELS[label]} | " + " | ".join(f"{count}" for count in seen.sum(0)) + f" | {seconds:.2f} s |")


def median_us(run, repeats=2000):
    times = []
    for _ in range(repeats):
        start = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - start)
    return np.median(times) / 1e3


def write_card():
    """Puts the figures between the card's two markers."""
    card = HERE / "README.md"
    begin, end = "<!-- figures: written by train.py -->\n", "<!-- end of figures -->\n"
    head, rest = card.read_text().split(begin)
    card.write_text(head + begin + "\n" + "\n".join(lines).strip() + "\n\n" + rest[rest.index(end) :])


def main():
    keras.utils.set_random_seed(SEED)
    tf.config.experimental.enable_op_determinism()
    expected = tf.signal.linear_to_mel_weight_matrix(
        front_end.BANDS, front_end.LENGTH // 2 + 1, front_end.RATE_HZ, front_end.LOW_HZ, front_end.HIGH_HZ, tf.float64)
    assert np.abs(front_end.mel_matrix() - expected.numpy()).max() < 1e-9, "the mel bands are not TensorFlow's"

    start = time.time()
    features, statistics, labels, _ = windows_of(TRAINING_MOTORS, False, 2)
    validation = windows_of(VALIDATION_MOTORS, False, 2)
    held_out = windows_of(HELD_OUT_MOTORS, True, 2)
    golden = windows_of(GOLDEN_MOTORS, True, 1, keep_samples=True)
    print(f"simulated in {time.time() - start:.0f} s", flush=True)

    start = time.time()
    model = train(features, labels, (validation[0], validation[2]))
    print(f"trained in {time.time() - start:.0f} s", flush=True)
    folded = fold(model)
    representative = features[np.random.default_rng(SEED).choice(len(features), 500, replace=False)]
    deployed, int8_tflite = to_tflite(folded, representative)
    f32_onnx = to_onnx(folded)
    int8_qdq = to_qdq(f32_onnx, representative)

    reference, fast, qdq = Tflite(int8_tflite, True), Tflite(int8_tflite, False), Onnx(int8_qdq)
    f32 = Onnx(f32_onnx.SerializeToString())
    trained = model.predict(held_out[0], verbose=0)
    for name, scores in (("folded", deployed.predict(held_out[0], verbose=0)), ("ONNX f32", f32.scores(held_out[0]))):
        assert np.abs(scores - trained).max() < 1e-4, f"the {name} graph is not the trained one"

    say(f"Trained on {len(labels)} windows of {len(TRAINING_MOTORS)} motors. Held out: {len(held_out[2])} windows of "
        f"{len(HELD_OUT_MOTORS)} motors. Validation motors (training ranges, other seeds): "
        f"{100 * (f32.scores(validation[0]).argmax(-1) == validation[2]).mean():.2f} % in f32.")
    f32_accuracy = (trained.argmax(-1) == held_out[2]).mean()
    say(f"Held-out motors: f32 {100 * f32_accuracy:.2f} %, and in int8:")
    accuracies = [confusion("`int8.tflite`, reference kernels", reference.scores(held_out[0]).argmax(-1), held_out[2]),
                  confusion("`int8.tflite`, XNNPACK", fast.scores(held_out[0]).argmax(-1), held_out[2]),
                  confusion("`int8-qdq.onnx`, ONNX Runtime", qdq.scores(held_out[0]).argmax(-1), held_out[2])]

    depths = range(1, 21)
    tree = grow_tree(statistics, labels, max(depths))
    on_validation = [(ask_tree(tree, validation[1], depth) == validation[2]).mean() for depth in depths]
    on_held_out = [(ask_tree(tree, held_out[1], depth) == held_out[2]).mean() for depth in depths]
    depth = depths[int(np.argmax(on_validation))]
    baseline = confusion(f"Decision tree on RMS and kurtosis of each axis, depth {depth} (best on validation motors)",
                         ask_tree(tree, held_out[1], depth), held_out[2])
    say(f"\nThe best depth in hindsight, {depths[int(np.argmax(on_held_out))]}, gives {100 * max(on_held_out):.2f} %.")
    streams(fast)

    chosen, margin = pick_golden([reference, fast, qdq, f32], golden[0], golden[2])
    vectors = golden[0][chosen]
    say(f"\n{len(chosen)} golden vectors, {GOLDEN_PER_CLASS} a class, of held-out motors that are in none of the figures "
        f"above; least margin between best and second class in any engine {margin[chosen].min():.2f}.")
    check_golden("`int8.tflite` against the reference kernels", reference, vectors, reference.scores(vectors),
                 [("TensorFlow Lite, XNNPACK", fast), ("`int8-qdq.onnx`, ONNX Runtime", qdq)])
    check_golden("`int8-qdq.onnx` against ONNX Runtime", qdq, vectors, qdq.scores(vectors),
                 [("the same graph in f32", f32), ("`int8.tflite`, XNNPACK", fast)])

    one = fast.quantize(vectors[:1])
    def invoke():
        fast.interpreter.set_tensor(fast.input["index"], one)
        fast.interpreter.invoke()
    say(f"\nSize: `int8.tflite` {len(int8_tflite)} bytes, `int8-qdq.onnx` {len(int8_qdq)} bytes. Median time for one window "
        f"from Python, one thread of the machine that trained it: TensorFlow Lite with XNNPACK {median_us(invoke):.0f} us, "
        f"ONNX Runtime {median_us(lambda: qdq.run(vectors[:1])):.0f} us.")

    if min(accuracies) < 0.95 or baseline > 0.85 or max(on_held_out) > 0.85:
        sys.exit("train: the model has to reach 95 % in int8, and the decision tree must not pass 85 %")

    shape = (len(chosen), front_end.FRAMES, 3, front_end.BANDS)
    common = {"features": vectors.reshape(shape), "samples": golden[3][chosen]}
    metadata = {"input_scale": reference.input["quantization"][0], "input_zero_point": reference.input["quantization"][1],
                "output_scale": reference.output["quantization"][0],
                "output_zero_point": reference.output["quantization"][1]}
    files = {
        "int8.tflite": int8_tflite,
        "int8-qdq.onnx": int8_qdq,
        "golden.int8.safetensors": save({**common, "output": reference.run(vectors)}, {
            "source": f"TensorFlow Lite {tf.__version__} reference kernels", **{k: str(v) for k, v in metadata.items()}}),
        "golden.int8-qdq.safetensors": save({**common, "output": qdq.run(vectors)}, {
            "source": f"ONNX Runtime {onnxruntime.__version__}"}),
        "labels.txt": ("\n".join(LABELS) + "\n").encode(),
    }
    for name, content in files.items():
        (HERE / name).write_bytes(content)
    write_card()


if __name__ == "__main__":
    main()
