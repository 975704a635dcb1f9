"""How right and how fast the engines are on the five MLPerf Tiny models, beside ONNX Runtime and LiteRT."""

import json
import subprocess
import sys
from pathlib import Path

from report import table

MODELS = ["keyword-spotting", "image-classification", "visual-wake-words", "streaming-wakeword", "anomaly-detection"]
# file, its engine, its golden vectors
GRAPHS = [
    ("int8.tflite", "tflite", "int8.golden.safetensors"),
    ("int8-qdq.onnx", "tract", "int8.golden.safetensors"),
    ("f32.tflite", "tflite", "f32.golden.safetensors"),
    ("f32.onnx", "tract", "f32.golden.safetensors"),
]
PEERS = Path(__file__).with_name("peers.py")


def last_json(command, codes=(0,)):
    """The JSON object that a program prints last."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in codes:
        sys.exit(f"bench: {' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def nmae_target(model, graph):
    if graph.startswith("f32"):
        return 0.05 if model == "keyword-spotting" else 0.001
    if model == "anomaly-detection":
        return 0.01
    return 0.093 if graph.endswith(".tflite") else 0.12


def run(report, limpet, shared):
    folder = shared / "models" / "mlperf-tiny"
    rows, figures = [], {}
    for model in MODELS:
        for graph, engine, golden in GRAPHS:
            path, golden_path = folder / model / graph, folder / model / golden
            if not path.exists():
                continue
            # Exit code 1 is a verdict: no engine passed. The rows say why.
            proof = last_json([limpet, "prove", path, "--golden", golden_path, "--json"], codes=(0, 1))
            ours = next((row for row in proof["rows"] if row["engine"] == engine), None)
            peer = last_json([sys.executable, PEERS, path, golden_path])
            figures[f"{model}/{graph}"] = {"limpet": proof, "peer": peer}
            if ours is None or ours["verdict"] == "refused":
                reason = ours["reason"] if ours else "no row for it"
                rows.append((f"{model} {graph}", engine, f"refused: {reason}", None, None, None,
                             peer["peer"], peer["top1_agreement"], peer["nmae"], peer["p50_us"], None))
                report.at_most(f"{model} {graph}: nmae on {engine}", None, nmae_target(model, graph))
                continue
            ratio = ours["p50_us"] / peer["p50_us"]
            rows.append((f"{model} {graph}", engine, ours["top1_agreement"], ours["nmae"], ours["p50_us"], ours["p99_us"],
                         peer["peer"], peer["top1_agreement"], peer["nmae"], peer["p50_us"], ratio))
            if model != "anomaly-detection":
                report.at_least(f"{model} {graph}: top-1 on {engine}", ours["top1_agreement"], 1.0,
                                note=f"{peer['peer']} {peer['top1_agreement']:.3f}")
            report.at_most(f"{model} {graph}: nmae on {engine}", ours["nmae"], nmae_target(model, graph),
                           note=f"{peer['peer']} {peer['nmae']:.4f}")
    table("Models: Limpet's engines beside their peers, one thread, same golden vectors, µs a run",
          ["graph", "engine", "top-1", "nmae", "p50", "p99", "peer", "top-1", "nmae", "p50", "p50 ours ÷ peer"], rows)
    report.figures["models"] = figures
