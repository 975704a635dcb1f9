"""Parts of the agent measured by themselves: the front end, what a session adds, and how large the binaries are."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from models import last_json
from report import table


def run(report, binaries, shared):
    front_end = last_json([binaries / "examples" / "front_end_speed", "--json"])
    report.at_most("front end, 1024-sample frame, 40 mel bands", front_end["median_us"], 15, "µs")
    report.figures["front_end"] = front_end

    overhead = binaries / "examples" / "session_overhead"
    model = shared / "models" / "mlperf-tiny" / "keyword-spotting" / "int8.tflite"
    if overhead.exists() and model.exists():
        figures = last_json([overhead, "--json", model], codes=(0, 1))
        report.at_most("a session's own time over the bare C calls", figures["overhead_p50_us"], 2, "µs")
        report.figures["session_overhead"] = figures

    rows = []
    for name in ("limpet", "limpet-lab"):
        shipped = binaries.parent / "dist" / name
        if shipped.exists():
            rows.append((name, "as shipped", shipped.stat().st_size / 1e6))
        with tempfile.TemporaryDirectory() as scratch:
            stripped = Path(scratch) / name
            shutil.copy(binaries / name, stripped)
            subprocess.run(["strip", stripped], check=True)
            rows.append((name, "everyday profile, stripped", stripped.stat().st_size / 1e6))
    table("Binary size, MB (libtensorflowlite_c.so not included)", ["binary", "build", "MB"], rows)
    report.figures["binary_mb"] = [dict(zip(("binary", "build", "mb"), row)) for row in rows]
