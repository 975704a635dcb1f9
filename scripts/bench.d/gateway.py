"""What an agent costs a gateway that is there for other things too: room on the disk, memory, time to be ready, and what it
does while nothing happens. Meant for what ships (scripts/bench --dist); the everyday build is larger.
"""

import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import wire
from report import table

MODEL = "keyword-spotting"
STARTS = 11
LONG = 60  # times as long as the measurements through the broker: ten minutes by default
SETTLED = 5  # seconds after which a start is over


class Gateway:
    def __init__(self, report, binaries, shared, folder, seconds):
        self.report, self.binaries, self.folder, self.seconds = report, binaries, folder, seconds * LONG
        self.run = tempfile.TemporaryDirectory(dir="/dev/shm")
        self.package = wire.package(folder, shared, MODEL)
        self.payloads, self.size = wire.payloads(folder, shared, MODEL)

    def configuration(self, broker):
        path = wire.configuration(self.folder, broker.port, MODEL, self.package, self.size, "uplink")
        # The ring is in memory, as under /run: an event of an idle agent is written there.
        text = path.read_text().replace(str(self.folder / "run"), self.run.name)
        path.write_text(text)
        return path

    def limpet(self, config):
        return [self.binaries / "limpet", "run", "--config", config]

    def proved(self, config):
        """So that no start proves anything."""
        subprocess.run([self.binaries / "limpet", "check", "--prove", "--config", config], check=True, stdout=subprocess.DEVNULL)

    def ready(self):
        """From starting the process to READY=1, as the service manager hears it."""
        broker = wire.Broker(self.folder)
        path, times = self.folder / "notify", []
        try:
            config = self.configuration(broker)
            self.proved(config)
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.bind(str(path))
                manager.settimeout(30)
                for _ in range(STARTS):
                    os.environ["NOTIFY_SOCKET"] = str(path)
                    begun = time.perf_counter()
                    with wire.running(self.limpet(config), self.folder / "ready.log"):
                        while b"READY=1" not in manager.recv(4096):
                            pass
                        times.append((time.perf_counter() - begun) * 1e3)
                        del os.environ["NOTIFY_SOCKET"]
                    while b"STOPPING=1" not in manager.recv(4096):
                        pass
        finally:
            broker.stop()
        times.sort()
        self.report.at_most(f"start to READY with one proved model, median of {STARTS}", statistics.median(times), 150, "ms",
                            f"slowest {times[-1]:.0f}")
        self.report.figures["ready_ms"] = times

    def idle(self):
        """A model is loaded and the broker is connected, and nothing comes."""
        broker = wire.Broker(self.folder)
        try:
            config = self.configuration(broker)
            self.proved(config)
            with wire.running(self.limpet(config), Path(self.run.name) / "idle.log") as process:
                broker.wait_for("bench/+/in", 0)
                time.sleep(SETTLED)
                before, wrote = used(process.pid), written(process.pid)
                begun = time.monotonic()
                time.sleep(self.seconds)
                lasted = time.monotonic() - begun
                alive(process)
                share = (used(process.pid) - before) / lasted * 100
                wrote = written(process.pid) - wrote
        finally:
            broker.stop()
        self.report.at_most("processor time while idle", share, 0.2, "%", f"of one core, over {lasted:.0f} s")
        self.report.at_most("written to the disk meanwhile", wrote, 0, "bytes", f"in {lasted:.0f} s")
        self.report.figures["idle"] = {"cpu_percent": share, "written_bytes": wrote, "seconds": lasted}

    def memory(self):
        """One model and one pipeline at 10 windows/s."""
        broker = wire.Broker(self.folder)
        try:
            config = self.configuration(broker)
            self.proved(config)
            with wire.running(self.limpet(config), self.folder / "memory.log") as process:
                broker.wait_for("bench/+/in", 0)
                load = subprocess.Popen(
                    [self.binaries / "limpet-lab", "load", "--publish-only", "--broker", f"mqtt://127.0.0.1:{broker.port}",
                     "--topic", "bench/a/in", "--payload", self.payloads, "--size", str(self.size), "--rate", "10",
                     "--seconds", str(self.seconds), "--json"], stdout=subprocess.DEVNULL)
                try:
                    if load.wait(self.seconds + 60) != 0:
                        sys.exit("bench: the load generator failed")
                finally:
                    load.kill()
                alive(process)
                parts = proportional(process.pid)
        finally:
            broker.stop()
        total = sum(parts.values())
        note = ", ".join(f"{what} {bytes / 1e6:.1f}" for what, bytes in parts.most_common(5))
        self.report.at_most(f"proportional memory with one int8 model at 10 windows/s, after {self.seconds:.0f} s",
                            total / 1e6, 12, "MB", note)
        self.report.figures["proportional_bytes"] = dict(parts)


def alive(process):
    """What has ended uses nothing."""
    if process.poll() is not None:
        sys.exit(f"bench: the agent ended with {process.returncode}")


def used(pid):
    """Processor time of a process in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def written(pid):
    """Bytes that a process has had written to disks."""
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["write_bytes"]) - int(fields["cancelled_write_bytes"])


def proportional(pid):
    """The proportional set size of a process in bytes, by what is mapped."""
    parts, of = Counter(), None
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if head := re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+\s*(.*)", line):
            of = Path(head[1]).name if head[1].startswith("/") else "own memory"
        elif line.startswith("Pss:"):
            parts[of] += int(line.split()[1]) * 1024
    return parts


def sizes(report, root):
    """Programs that scripts/cross made, each beside its target."""
    built = lambda path: path.stat().st_size / 1e6 if (path := root / path).exists() else None
    for name, what in [("aarch64", "both engines, the TensorFlow Lite library apart"), ("aarch64-musl", "static, tract alone")]:
        size = built(f"cross/{name}/bin/limpet")
        if size is None:
            print(f"skipped: the size of {name}; scripts/cross {name} makes it")
            continue
        report.at_most(f"limpet for {name}", size, 15, "MB", what)
        if (symbols := root / f"cross/{name}/symbols/limpet").exists():
            crates = by_crate(symbols)
            report.figures[f"crates_{name}"] = dict(crates)
            code = sum(crates.values())
            rows = [(crate, bytes / 1e6) for crate, bytes in crates.most_common(20)]
            rows.append((f"{len(crates) - len(rows)} more", (code - sum(bytes for _, bytes in crates.most_common(20))) / 1e6))
            table(f"Code in limpet for {name} by crate, MB of {code / 1e6:.1f}; the rest is data and relocations",
                  ["crate", "MB"], rows)
    rows = [(path.parent.parent.name, path.name, path.stat().st_size / 1e6) for path in sorted(root.glob("cross/*/*/limpet*"))
            if path.parent.name == "bin"]
    if rows:
        table("What was built, MB", ["target", "program", "MB"], rows)


def by_crate(path):
    """Bytes of code by the crate that a function is of, or that an instance of the standard library's code was made for."""
    lines = subprocess.run(["nm", "--print-size", "--demangle", path], capture_output=True, text=True, check=True).stdout
    crates = Counter()
    for line in lines.splitlines():
        fields = line.split(None, 3)
        if len(fields) == 4 and fields[2].lower() in "tw":
            names = re.findall(r"(?<![\w:])([a-z_]\w*)(?:\[[0-9a-f]+\])?::", fields[3])
            own = [name for name in names if name not in ("core", "alloc", "std")]
            crates[own[0] if own else "std" if names else "C libraries"] += int(fields[1], 16)
    return crates


PARTS = ["ready", "idle", "memory"]


def run(report, binaries, shared, seconds, parts):
    for part in parts:
        with tempfile.TemporaryDirectory() as folder:
            getattr(Gateway(report, binaries, shared, Path(folder), seconds), part)()
