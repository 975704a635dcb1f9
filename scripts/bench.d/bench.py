"""The driver of scripts/bench: runs the sections and prints figures beside targets."""

import argparse
import json
import os
from pathlib import Path

import budget
import delivery
import gateway
import machine
import models
import outbox
import parts
import wire
from report import Report

SECTIONS = ["models", "parts", "wire", "budget", "delivery", "outbox", "gateway"]
BUDGET = 6  # times as long as the measurements through the broker: a rare miss needs time to happen


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench")
    parser.add_argument("--bin", type=Path, required=True, help=argparse.SUPPRESS)
    parts_of = {"budget": budget.PARTS, "delivery": delivery.PARTS, "outbox": outbox.PARTS, "gateway": gateway.PARTS}
    choices = SECTIONS + [f"{section}-{part}" for section, parts in parts_of.items() for part in parts]
    parser.add_argument("--only", action="append", choices=choices)
    parser.add_argument("--dist", action="store_true")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()

    binaries = options.bin.resolve()
    # The binaries find the TFLite library beside themselves; examples lie one folder deeper.
    os.environ["LD_LIBRARY_PATH"] = str(binaries)
    shared = Path(os.environ.get("LIMPET_SHARED", "../shared")).resolve()
    sections = options.only or (["gateway"] if options.dist else SECTIONS)
    if not (shared / "models" / "mlperf-tiny").is_dir():
        print(f"skipped: models, wire, budget, delivery, outbox and gateway need {shared}/models/mlperf-tiny")
        sections = [section for section in sections if section == "parts"]

    report = Report()
    report.figures["machine"] = about = machine.describe()
    print(f"{about['cpu']} (family {about['family']}), {about['cores']} cores, {about['system']}, "
          f"instruction sets {' '.join(about['instruction_sets'])}, load average {about['load_average']:.1f}")
    if "models" in sections:
        models.run(report, binaries / "limpet", shared)
    if "parts" in sections:
        parts.run(report, binaries, shared)
    if "wire" in sections:
        wire.run(report, binaries, shared, options.seconds)
    wanted = {section: [part for part in parts if section in sections or f"{section}-{part}" in sections]
              for section, parts in parts_of.items()}
    # Twice ten minutes, which only what ships is worth.
    if not options.dist:
        wanted["gateway"] = [part for part in wanted["gateway"]
                             if part not in ("idle", "memory") or f"gateway-{part}" in sections]
    # They take ten minutes and an hour.
    wanted["outbox"] = [part for part in wanted["outbox"]
                        if part not in ("dead", "soak") or f"outbox-{part}" in sections]
    if wanted["budget"]:
        budget.run(report, binaries, shared, options.seconds * BUDGET, wanted["budget"])
    if wanted["delivery"]:
        delivery.run(report, binaries, shared, options.seconds, wanted["delivery"])
    if wanted["outbox"]:
        outbox.run(report, binaries, shared, options.seconds, wanted["outbox"], options.plot)
    if wanted["gateway"]:
        gateway.run(report, binaries, shared, options.seconds, wanted["gateway"])
    if options.dist:
        gateway.sizes(report, Path(".limpet"))
    report.print()
    if options.json:
        options.json.write_text(json.dumps({**report.figures, "targets": report.claims}, indent=1) + "\n")

main()
