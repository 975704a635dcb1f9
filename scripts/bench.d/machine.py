"""What a figure depends on besides the code: the machine."""

import os
import platform
from pathlib import Path

# As Linux names them, in the order in which they matter to int8 inference.
INSTRUCTION_SETS = ["sse4_1", "avx", "fma", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "neon", "asimd", "asimddp"]


def describe():
    fields = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    board = Path("/proc/device-tree/model")
    model = fields.get("model name") or (board.read_text().rstrip("\0") if board.exists() else platform.machine())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return {
        "cpu": model,
        "family": fields.get("cpu family"),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()}",
    }
