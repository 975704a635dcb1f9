"""ONNX Runtime and LiteRT on one model and its golden vectors: how close, and how fast, on one thread.

    peers.py MODEL.onnx|MODEL.tflite GOLDEN.safetensors

prints one line of JSON: peer, top1_agreement (null where classes make no sense), nmae, p50_us, p99_us.
The figures mean what `limpet prove` means by them: see `nmae` and `top1` below.
"""

import json
import sys
import time

import numpy as np
from safetensors import safe_open

WARM_UP, RUNS = 50, 1000


def litert(path):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path, num_threads=1)
    interpreter.allocate_tensors()
    source, sink = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def run(window):
        interpreter.set_tensor(source["index"], window)
        interpreter.invoke()
        return interpreter.get_tensor(sink["index"])

    return "litert", run, tuple(source["shape"]), source["dtype"]


def onnxruntime(path):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0]
    shape = tuple(axis if isinstance(axis, int) else 1 for axis in source.shape)
    dtype = {"tensor(int8)": np.int8, "tensor(uint8)": np.uint8, "tensor(float)": np.float32}[source.type]
    return "onnxruntime", lambda window: session.run(None, {source.name: window})[0], shape, dtype


def top1(output, golden):
    """Share of vectors with the same best class; None where golden outputs are no classes or have ties."""
    if not 2 <= golden.shape[1] <= 256 or any((row == row.max()).sum() > 1 for row in golden):
        return None
    best = output.argmax(1)
    tied = np.array([(row == row.max()).sum() > 1 for row in output])
    return float(((best == golden.argmax(1)) & ~tied).mean())


def nmae(output, golden):
    """mean |out - golden| / mean |golden - its median over the vectors, per element|, both dequantized."""
    spread = np.abs(golden - np.median(golden, 0)).mean()
    return float(np.abs(output - golden).mean() / spread)


def main():
    path, golden_path = sys.argv[1:]
    peer, run, shape, dtype = (litert if path.endswith(".tflite") else onnxruntime)(path)
    with safe_open(golden_path, "np") as file:
        inputs, golden = file.get_tensor("input"), file.get_tensor("output")
    inputs = [np.ascontiguousarray(row.reshape(shape).astype(dtype)) for row in inputs]
    # A copy: the output is a view of the interpreter's memory.
    output = np.stack([np.array(run(window)).reshape(-1) for window in inputs])
    golden = golden.reshape(len(golden), -1).astype(np.float64)
    output = output.astype(np.float64)
    # Quantized outputs share one scale, so neither figure depends on it: dequantizing would change nothing.
    for index in range(WARM_UP):
        run(inputs[index % len(inputs)])
    times = []
    for index in range(RUNS):
        start = time.perf_counter()
        run(inputs[index % len(inputs)])
        times.append(time.perf_counter() - start)
    p50, p99 = np.percentile(times, [50, 99]) * 1e6
    print(json.dumps({
        "peer": peer, "top1_agreement": top1(output, golden), "nmae": nmae(output, golden),
        "p50_us": p50, "p99_us": p99,
    }))


main()
