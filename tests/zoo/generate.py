#!/usr/bin/env python3
"""Writes the zoo: small quantized models from many tool chains, each with golden vectors.

    generate.py OUT [--only WORD]    write models, golden vectors and zoo.json into the folder OUT
    generate.py --key                print what the output depends on, as one hash: a name for a cache folder

See README.md beside this file. Needs the packages of scripts/requirements-train.txt. Two processes work at the same
time, one for ONNX and one for TensorFlow Lite. Exit 1 if any case could not be made.
"""

import argparse
import concurrent.futures
import hashlib
import importlib.metadata
import multiprocessing
import os
import pathlib
import platform
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
PACKAGES = [
    "flatbuffers", "keras", "ml_dtypes", "numpy", "onnx", "onnxruntime", "protobuf", "tensorflow-cpu", "tf2onnx",
]
HALVES = ["onnx_cases", "tflite_cases"]
# Read when an interpreter or a library starts, so they are set before the two processes exist. Without a fixed hash
# seed tf2onnx orders nodes and names differently in every run.
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONHASHSEED": "0",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
}


def versions():
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def key():
    digest = hashlib.sha256()
    for path in sorted(HERE.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(repr(sorted(versions().items())).encode())
    return digest.hexdigest()


def half(module, out, wanted, log):
    """One half of the zoo, in a process of its own, with the libraries' chatter in the file `log`."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    started = time.monotonic()
    entries, failures = importlib.import_module(module).generate(out, wanted)
    return entries, failures, time.monotonic() - started


def generate(out, wanted):
    """Writes everything, zoo.json last; returns the exit code."""
    os.makedirs(out, exist_ok=True)
    os.environ.update(ENVIRONMENT)
    sys.path.insert(0, str(HERE))
    import golden

    logs = tempfile.mkdtemp(prefix="zoo-log-")
    entries, failed = [], False
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(len(HALVES), mp_context=spawn) as pool:
        started = {m: pool.submit(half, m, out, wanted, os.path.join(logs, m)) for m in HALVES}
        for module, future in started.items():
            made, failures, seconds = future.result()
            entries += made
            failed |= bool(failures)
            print(f"{module}: {len(made)} cases in {seconds:.0f} s")
            for name, reason in failures:
                print(f"{name}: {reason}", file=sys.stderr)
    if not entries:
        print(f"no case has '{wanted}' in its name", file=sys.stderr)
        failed = True
    if failed:
        print(f"what the libraries said: {logs}", file=sys.stderr)
        return 1
    for module in HALVES:
        os.remove(os.path.join(logs, module))
    os.rmdir(logs)
    golden.write_index(out, entries, versions())
    return 0


def main():
    parser = argparse.ArgumentParser(description="Write the zoo of small quantized models.")
    parser.add_argument("out", nargs="?", help="folder to write into; made if missing")
    parser.add_argument("--key", action="store_true", help="print a hash of the scripts and the installed versions")
    parser.add_argument("--only", default="", metavar="WORD", help="only cases with WORD in their name")
    options = parser.parse_args()
    if options.key:
        print(key())
        return 0
    if not options.out:
        parser.error("OUT is missing")
    return generate(options.out, options.only)


if __name__ == "__main__":
    sys.exit(main())
