"""From publish to result through a real broker: Limpet beside the Python script that a user would write.

One mosquitto on a free port with `set_tcp_nodelay true`, the same load generator and the same payloads for all. Every
measurement of an agent stands between two of the broker's own echo, and is held against their mean, because the speed
of a small virtual machine wanders.
"""

import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors import safe_open

from report import table

AGENT = Path(__file__).with_name("python_agent.py")
STARTS = 5  # starts to subscribed that are measured
KEYWORDS = "down go left no off on right stop up yes silence unknown".split()

def manifest(task, summary, decision, rest=""):
    """What follows the version in a manifest of a reference model, whose input is the graph's own integers."""
    return f"""
task = "{task}"
summary = "{summary}"
license = "Apache-2.0"

[[variant]]
file = "int8.tflite"

[[input]]
kind = "quantized"

[decision]
{decision}
{rest}"""


# Triggers that never come: so that `local` leaves the uplink silent.
MANIFEST = {
    "keyword-spotting": manifest(
        "classification", "One of ten words, silence or something else",
        'trigger = { label = "yes", above = 0.999, for = 1000, quiet = "1h" }', "\n[proof]\ntop1_agreement = 0.93\n"),
    "visual-wake-words": manifest(
        "classification", "Whether somebody is in a picture",
        'trigger = { label = "person", above = 0.999, for = 1000, quiet = "1h" }'),
    "anomaly-detection": manifest(
        "anomaly", "How unusual a machine sounds",
        'score = "reconstruction_mse"\ntrigger = { above = 1e9, for = 1000, quiet = "1h" }'),
}


def package(folder, shared, model):
    """A package of one reference model whose input is the graph's own integers."""
    source = shared / "models" / "mlperf-tiny" / model
    target = folder / model
    target.mkdir()
    (target / "int8.tflite").write_bytes((source / "int8.tflite").read_bytes())
    (target / "golden.safetensors").write_bytes((source / "int8.golden.safetensors").read_bytes())
    (target / "model.toml").write_text(f'format = 1\n\n[model]\nname = "{model}"\nversion = "1.0.0"{MANIFEST[model]}')
    if model == "keyword-spotting":
        (target / "labels.txt").write_text("\n".join(KEYWORDS) + "\n")
    return target


def payloads(folder, shared, model):
    """The golden inputs as payloads: a file and the length of one."""
    with safe_open(shared / "models" / "mlperf-tiny" / model / "int8.golden.safetensors", "np") as file:
        inputs = file.get_tensor("input")
    path = folder / f"{model}.payloads"
    path.write_bytes(np.ascontiguousarray(inputs, np.int8).tobytes())
    return path, inputs[0].size


# For throughput: results share messages, at the price of the delay.
BATCHED = 'message_batch = { max = 16, delay = "2ms" }'


def configuration(folder, port, model, package_path, size, output):
    """limpet.toml with one pipeline, whose results go to the uplink, one or several a message, or to a local output."""
    local = output == "local"
    publish = "triggers" if local else "every"
    batch = BATCHED if output == "batched" else ""
    outputs = '[{ broker = "bench", topic = "bench/{stream}/local", on = "every", qos = 0 }]' if local else "[]"
    path = folder / f"{model}-{output}.toml"
    path.write_text(f"""format = 1

[gateway]
id = "bench"
state = {json.dumps(str(folder / "state"))}
run = {json.dumps(str(folder / "run"))}

[broker.bench]
url = "mqtt://127.0.0.1:{port}"

[[source]]
name = "load"
broker = "bench"
topic = "bench/{{stream}}/in"
codec = {{ raw = {{ type = "i8", channels = {size}, header = [{{ tag = "u64le" }}] }} }}

[[pipeline]]
name = "bench"
source = "load"
model = {json.dumps(str(package_path))}
deadline = "2s"
queue = {{ depth = 128, policy = "reject" }} # the load generator keeps 64 unanswered; none may be shed
publish = "{publish}"
local = {outputs}
{batch}
""")
    return path


def interpreter(graph):
    """LiteRT over the bytes of a graph."""
    from ai_edge_litert.interpreter import Interpreter
    made = Interpreter(model_content=graph, num_threads=1)
    made.allocate_tensors()
    return made


def outputs(graph, inputs):
    """What LiteRT answers to each input."""
    made = interpreter(graph)
    source, sink = made.get_input_details()[0], made.get_output_details()[0]
    found = []
    for one in inputs:
        made.set_tensor(source["index"], one.reshape(source["shape"]))
        made.invoke()
        found.append(made.get_tensor(sink["index"]).reshape(-1).copy())
    return np.stack(found)


class Broker:
    """mosquitto on a free port, with its default limits. `wait_for(text)` gives the moment at which a line of its log with
    `text` was seen."""

    def __init__(self, folder, more=""):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        config = folder / "mosquitto.conf"
        config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\npersistence false\n"
            "log_dest stderr\nlog_type error\nlog_type warning\nlog_type notice\nlog_type information\nlog_type subscribe\n"
            + more)
        self.lines, self.news = [], threading.Condition()
        self.process = subprocess.Popen(
            ["mosquitto", "-c", config], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self.wait_for("running", 0, limit=10)
        except SystemExit:
            self.stop()
            raise

    def _read(self):
        for line in self.process.stderr:
            with self.news:
                self.lines.append((time.perf_counter(), line))
                self.news.notify_all()

    def wait_for(self, text, start, limit=90):
        """`start`: index of the first line that counts."""
        with self.news:
            found = lambda: next((when for when, line in self.lines[start:] if text in line), None)
            if not self.news.wait_for(lambda: found() is not None, limit):
                sys.exit(f"bench: mosquitto did not log '{text}' within {limit} s; its last lines:\n" +
                         "".join(line for _, line in self.lines[-5:]))
            return found()

    def stop(self):
        stop(self.process)


def stop(process):
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


@contextmanager
def running(command, log):
    with open(log, "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        stop(process)


class Bench:
    def __init__(self, report, binaries, shared, folder, seconds):
        self.report, self.binaries, self.shared, self.folder = report, binaries, shared, folder
        self.seconds = seconds
        self.broker = Broker(folder)
        self.rows = []

    def load(self, *arguments, seconds=None):
        command = [self.binaries / "limpet-lab", "load", "--json", "--broker", f"mqtt://127.0.0.1:{self.broker.port}",
                   "--seconds", str(seconds or self.seconds), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"bench: {' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr}")
        return json.loads(done.stdout)

    def echo(self, size):
        return self.load("--echo", "--topic", "bench/echo", "--size", size)

    def agent(self, command, ready, name):
        """Starts an agent and waits until it has subscribed; gives a context."""
        start = len(self.broker.lines)
        context = running(command, self.folder / f"{name}.log")
        process = context.__enter__()
        try:
            self.broker.wait_for(ready, start)
        except BaseException:
            context.__exit__(*sys.exc_info())
            print((self.folder / f"{name}.log").read_text()[-2000:], file=sys.stderr)
            raise
        return context, process

    def measure(self, model, name, command, answers, flat_out=True):
        """Latency at 100 messages a second between two echoes, then flat out."""
        payload, size = payloads(self.folder, self.shared, model)
        traffic = ["--topic", "bench/a/in", "--answers", answers, "--payload", payload, "--size", size]
        context, process = self.agent(command, "bench/+/in", f"{model}-{name}")
        try:
            self.await_answers(traffic)
            before = self.echo(size)
            paced = self.load(*traffic, "--pid", process.pid)
            after = self.echo(size)
            flat = self.load(*traffic, "--flat-out", "--unanswered", 64, "--pid", process.pid) if flat_out else None
        finally:
            context.__exit__(None, None, None)
        if paced["lost"] or flat and flat["lost"]:
            print(f"bench: {model}, {name}: {paced['lost']} answers lost at 100/s" +
                  (f", {flat['lost']} flat out" if flat else ""), file=sys.stderr)
        echo = {q: (before["trip_us"][q] + after["trip_us"][q]) / 2 for q in ("p50", "p99")}
        parts = paced["latency_us"]
        self.rows.append((
            model, name, echo["p50"], paced["trip_us"]["p50"], echo["p99"], paced["trip_us"]["p99"],
            parts and parts["compute"]["p50"], flat and flat["per_second"], flat and flat["process"]["cpu_us_per_answer"],
            flat and flat["process"]["cpu_us_beyond_session"], paced["process"]["rss_bytes"] / 1e6,
        ))
        return echo, paced, flat

    def await_answers(self, traffic):
        """An agent that has subscribed may still be proving its model: wait for its first answers."""
        for _ in range(60):
            command = [self.binaries / "limpet-lab", "load", "--json", "--seconds", "0.5", "--warm-up", "0",
                       "--broker", f"mqtt://127.0.0.1:{self.broker.port}", *map(str, traffic)]
            if subprocess.run(command, capture_output=True).returncode == 0:
                return
        sys.exit("bench: the agent gave no answer within a minute")

    def limpet(self, config):
        return [self.binaries / "limpet", "run", "--config", config]

    def compare(self, model, target_ratio):
        """Limpet on the uplink and on a local output, and the Python script, on one model."""
        package_path = package(self.folder, self.shared, model)
        _, size = payloads(self.folder, self.shared, model)
        measured = {}
        for output in ("uplink", "batched", "local"):
            config = configuration(self.folder, self.broker.port, model, package_path, size, output)
            answers = "bench/a/local" if output == "local" else "limpet/1/bench/result/bench/a"
            found = self.measure(model, f"limpet, {output}", self.limpet(config), answers, output != "local")
            measured[output] = found
            if model == "keyword-spotting" and output != "batched":
                self.judge_latency(output, *found[:2])
        task = "anomaly" if model == "anomaly-detection" else "classification"
        script = [sys.executable, AGENT, str(self.broker.port),
                  self.shared / "models" / "mlperf-tiny" / model / "int8.tflite", "bench/+/in", "bench/out", task]
        measured["python"] = self.measure(model, "Python script", script, "bench/out")
        ours, theirs = measured["uplink"][2], measured["python"][2]
        for output, how in (("uplink", "a message each"), ("batched", "up to 16 a message")):
            rates = measured[output][2]["per_second"], theirs["per_second"]
            self.report.at_least(f"{model} flat out, {how}, Limpet ÷ Python", rates[0] / rates[1], target_ratio, "×",
                                 "{:,.0f} against {:,.0f} results/s".format(*rates))
        beyond = ours["process"]["cpu_us_beyond_session"]
        self.report.at_most(f"{model}: CPU a message beyond the session's", beyond, 40, "µs",
                            f"Python, session included: {theirs['process']['cpu_us_per_answer']:.0f} µs")
        if model == "keyword-spotting":
            self.report.at_most("resident memory with one model", measured["uplink"][1]["process"]["rss_bytes"] / 1e6, 20,
                                "MB", f"Python {measured['python'][1]['process']['rss_bytes'] / 1e6:.0f} MB")
        self.report.figures[model] = {
            name: dict(zip(("echo_us", "paced", "flat_out"), found)) for name, found in measured.items()
        }

    def judge_latency(self, output, echo, paced):
        compute, trip = paced["latency_us"]["compute"], paced["trip_us"]
        note = "2 × echo {:.0f} + compute {:.0f} + {}"
        self.report.at_most(f"publish to result, {output}, p50", trip["p50"], 2 * echo["p50"] + compute["p50"] + 200, "µs",
                            note.format(echo["p50"], compute["p50"], "200"))
        self.report.at_most(f"publish to result, {output}, p99", trip["p99"], 2 * echo["p99"] + compute["p50"] + 2000, "µs",
                            note.format(echo["p99"], compute["p50"], "2,000"))

    def starts(self):
        """From starting the process to the broker's log of its subscription, the proof being stored."""
        config = self.folder / "keyword-spotting-uplink.toml"
        times = []
        for _ in range(STARTS):
            first = len(self.broker.lines)
            begun = time.perf_counter()
            with running(self.limpet(config), self.folder / "start.log"):
                times.append((self.broker.wait_for("bench/+/in", first) - begun) * 1e3)
        times.sort()
        self.report.at_most(f"start to subscribed, median of {STARTS}", times[STARTS // 2], 300, "ms",
                            f"slowest {times[-1]:.0f}")
        self.report.figures["start_ms"] = times


def run(report, binaries, shared, seconds):
    with tempfile.TemporaryDirectory(prefix="limpet-bench-") as scratch:
        folder = Path(scratch)
        for name in ("state", "run"):
            (folder / name).mkdir()
        bench = Bench(report, binaries, shared, folder, seconds)
        try:
            bench.compare("keyword-spotting", 2.0)
            bench.compare("anomaly-detection", 2.5)
            bench.starts()
        finally:
            bench.broker.stop()
    table("Through mosquitto: publish to result at 100 messages/s in µs, and flat out with 64 unanswered",
          ["model", "agent", "echo p50", "p50", "echo p99", "p99", "compute", "results/s", "CPU µs", "beyond session",
           "MB resident"], bench.rows)
