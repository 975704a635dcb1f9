"""Whether the budget keeps its promises: deadlines beside overload, overhead, batches, swaps, idle pipelines.

Everything runs through the real agent and a real broker, except where a part is measured alone (`runtime_overhead`,
`limpet-lab bench`). Load comes from limpet-lab, since Python is too slow and too unsteady for that; this file starts
things, reads the agent's counters over its local socket, and does the arithmetic.

`limpet-lab stalls` runs beside everything that has a bound on the slowest: a window counts as the machine's doing only
if a stall long enough to cause it, as long as the deadline less the 99th percentile of the undisturbed ones, overlaps
the time in which it should have been answered.
"""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import wire
from models import last_json
from report import table

DEADLINE_MS = 20
RATE = 100  # realtime windows a second of each pipeline
CPU = 1.0  # budget.cpu
SWAPS = 5
IDLE = (0, 9, 99, 999)  # pipelines beside the busy one when cost is measured
RUNS_FOR_P99 = 662  # MLPerf's early stopping; with fewer the longest counts
MANY = 1000  # how many more when memory is
ROUNDS = 3  # of runs whose lowest counts
TOLD = 1000  # the longest windows that a load tells of
LONGEST_STALLS = 5
# The scheduler may make a thread wait so long for a CPU that others use, a proof in a process of its own for example: a
# stall below it may be the agent's own doing and excuses nothing.
WAITS_US = 5000

ANALYTIC = """
task = "classification"
summary = "What a picture of 32 × 32 pixels shows"
license = "Apache-2.0"

[[variant]]
file = "int8-qdq.onnx"

[[input]]
kind = "quantized"

[decision]
trigger = { label = "ship", above = 0.999, for = 1000, quiet = "1h" } # never: nobody listens
"""
PICTURES = "airplane automobile bird cat deer dog frog horse ship truck".split()

SOURCE = """
[[source]]
name = "{name}"
broker = "bench"
topic = "{topic}"
rate_hz = {rate}
max_streams = 1
codec = {{ raw = {{ type = "i8", header = [{{ tag = "u64le" }}] }} }}
"""


class Socket(http.client.HTTPConnection):
    """HTTP over the agent's local socket."""

    def __init__(self, path):
        super().__init__("limpet")
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


def boottime():
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Stalls:
    """What `limpet-lab stalls` saw."""

    def __init__(self, report):
        self.stalls = [(s["from_ns"], s["from_ns"] + s["us"] * 1e3, s["us"]) for s in report["stalls"]]

    def explain(self, from_ns, to_ns, needed_us):
        """Whether one of at least this length overlaps this time."""
        return any(us >= needed_us and begin < to_ns and end > from_ns for begin, end, us in self.stalls)

    def longest(self):
        found = [f"{us / 1e3:.1f}" for _, _, us in self.stalls[:LONGEST_STALLS]]
        return "machine's longest stalls " + (", ".join(found) + " ms" if found else "below 0.3 ms")


class Budget:
    def __init__(self, report, binaries, shared, folder, seconds):
        self.report, self.binaries, self.shared, self.folder, self.seconds = report, binaries, shared, folder, seconds
        self.lab = binaries / "limpet-lab"
        self.broker = wire.Broker(folder)
        self.port = self.broker.port  # where agents connect
        self.state = folder / "state"
        self.run_folder = folder / "run"
        self.state.mkdir()
        self.run_folder.mkdir()
        self.packages = {name: wire.package(folder, shared, name) for name in wire.MANIFEST}
        self.packages["image-classification"] = self.pictures()
        self.proofs = {}
        self.payloads = {name: wire.payloads(folder, shared, name) for name in self.packages}

    def pictures(self):
        """Heavy enough that twice what one core can do still passes through a broker on the other one."""
        source = self.shared / "models" / "mlperf-tiny" / "image-classification"
        target = self.folder / "image-classification"
        target.mkdir()
        shutil.copy(source / "int8-qdq.onnx", target)
        shutil.copy(source / "int8.golden.safetensors", target / "golden.safetensors")
        (target / "model.toml").write_text(
            f'format = 1\n\n[model]\nname = "image-classification"\nversion = "1.0.0"{ANALYTIC}')
        (target / "labels.txt").write_text("\n".join(PICTURES) + "\n")
        return target

    def config(self, name, body, state=None):
        path = self.folder / f"{name}.toml"
        path.write_text(f"""format = 1

[gateway]
id = "bench"
state = {json.dumps(str(state or self.state))}
run = {json.dumps(str(self.run_folder))}

[budget]
cpu = {CPU}

[broker.bench]
url = "mqtt://127.0.0.1:{self.port}"
{body}""")
        return path

    def source(self, model, rate, name=None):
        name = name or model
        return SOURCE.format(name=name, topic=f"in/{{stream}}/{name}", rate=rate)

    def pipeline(self, model, keys, name=None, source=None):
        name = name or model
        return (f'\n[[pipeline]]\nname = "{name}"\nsource = "{source or name}"\n'
                f"model = {json.dumps(str(self.packages[model]))}\n{keys}\n")

    @contextmanager
    def agent(self, name, body, patience=120, states=("serving",)):
        """The agent, once every pipeline of it serves, or is in another of these states."""
        log = self.folder / f"{name}.log"
        with wire.running([self.binaries / "limpet", "run", "--config", self.config(name, body)], log) as process:
            end = time.monotonic() + patience
            while True:
                if process.poll() is not None or time.monotonic() > end:
                    sys.exit(f"bench: {name}: the agent does not serve:\n{log.read_text()[-3000:]}")
                try:
                    pipelines = self.status()["pipelines"]
                except (OSError, http.client.HTTPException):
                    pipelines = [{"state": "loading"}]
                refused = [pipeline["refusal"] for pipeline in pipelines if pipeline["state"] == "refused"]
                if refused:
                    sys.exit(f"bench: {name}: a pipeline is refused: {refused[0]}")
                if all(pipeline["state"] in states for pipeline in pipelines):
                    break
                time.sleep(0.1)
            try:
                yield process
            except BaseException:
                print(log.read_text()[-3000:], file=sys.stderr)
                raise

    def status(self):
        connection = Socket(self.run_folder / "limpet.sock")
        try:
            connection.request("GET", "/v1/status")
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def start(self, *arguments, before=()):
        command = [*before, self.lab, *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def end(self, process):
        out, errors = process.communicate()
        if process.returncode != 0:
            sys.exit(f"bench: {' '.join(map(str, process.args))} ended with {process.returncode}:\n{errors}")
        return json.loads(out)

    def load(self, model, seconds, *arguments, source=None, answers=True):
        """`limpet-lab load` on the stream `a` of a source and the pipeline of the same name."""
        payload, size = self.payloads[model]
        name = source or model
        heard = ["--answers", f"limpet/1/bench/result/{name}/a"] if answers else ["--publish-only"]
        return self.start("load", "--json", "--broker", f"mqtt://127.0.0.1:{self.broker.port}", "--topic",
                          f"in/a/{name}", *heard, "--payload", payload, "--size", size, "--seconds", seconds, *arguments)

    def stalls(self, seconds, priority=None):
        """Watches what the machine withholds. Where workers run at SCHED_FIFO, the watch needs a higher `priority`: else it
        would take a worker's own work for the machine's."""
        before = ["chrt", "-f", str(priority)] if priority else []
        return self.start("stalls", "--json", "--seconds", seconds, "--least-us", 300, before=before)

    def costs(self, model):
        """What the proof on this device says: CPU time of a run in µs by size of batch, and why it stopped there.

        The proof is made apart, so that it is known whose it is, and then lies where the agent looks for it.
        """
        if model not in self.proofs:
            state = self.folder / f"state-{model}"
            state.mkdir()
            body = self.source(model, 1) + self.pipeline(model, 'class = "analytic"')
            config = self.config(f"prove-{model}", body, state)
            done = subprocess.run([self.binaries / "limpet", "check", "--prove", "--config", config],
                                  capture_output=True, text=True)
            kept = [json.loads(path.read_text()) for path in (state / "proofs").glob("*.json")]
            rows = [file["row"] for file in kept if file.get("row", {}).get("verdict") == "passed"]
            if done.returncode != 0 or not rows:
                sys.exit(f"bench: {model} is not proved:\n{done.stdout}{done.stderr}")
            shutil.copytree(state / "proofs", self.state / "proofs", dirs_exist_ok=True)
            batches = rows[0].get("batches") or {"sizes": [{"size": 1, "mean_us": rows[0]["mean_us"]}], "stopped": ""}
            self.proofs[model] = {cost["size"]: cost["mean_us"] for cost in batches["sizes"]}, batches["stopped"]
        return self.proofs[model]

    # 1

    def deadlines(self):
        ic_rate_declared = 200  # what admission is told; what is sent is twice what a core can do
        realtime = f'class = "realtime"\ndeadline = "{DEADLINE_MS}ms"\npublish = "every"'
        models = ("keyword-spotting", "anomaly-detection")
        body = "".join(self.source(model, RATE) + self.pipeline(model, realtime) for model in models)
        body += self.source("image-classification", ic_rate_declared) + self.pipeline(
            "image-classification",
            'class = "analytic"\ninference_batch = { max = 64, delay = "10ms" }\npublish = "triggers"\nheartbeat = "0s"')
        seconds = self.seconds
        (costs, _), *_ = [self.costs(model) for model in ("image-classification", *models)]
        with self.agent("deadlines", body) as process:
            cheapest = min(cost / size for size, cost in costs.items())
            feed = 2 * CPU / (cheapest / 1e6)
            for model in models:  # the first window of a stream is another matter
                self.end(self.load(model, 2, "--warm-up", 0))
            before = self.settled()
            watching = self.stalls(seconds + 4)
            flood = self.load("image-classification", seconds + 3, "--warm-up", 0, "--rate", f"{feed:.0f}", answers=False)
            time.sleep(1.5)
            loads = {model: self.load(model, seconds, "--warm-up", 0, "--rate", RATE) for model in models}
            begin, cpu_before = (boottime(), self.status()), cpu_seconds(process.pid)
            time.sleep(seconds)
            end, cpu_after = (boottime(), self.status()), cpu_seconds(process.pid)
            loads = {model: self.end(load) for model, load in loads.items()}
            flood, stalls = self.end(flood), Stalls(self.end(watching))
            after = self.settled()
        self.judge_deadlines(loads, before, after, stalls)
        self.judge_throughput(begin, end, costs, feed, (cpu_after - cpu_before) / (end[0] - begin[0]))
        self.judge_counts(before, after, {**{m: load["sent"] for m, load in loads.items()},
                                          "image-classification": flood["sent"]})
        self.report.figures["deadlines"] = {"loads": {m: brief(load) for m, load in loads.items()},
                                            "stalls_ms": [us / 1e3 for *_, us in stalls.stalls[:20]]}

    def settled(self):
        """The status once nothing moves any more."""
        last = None
        while True:
            status = self.status()
            counts = [pipeline["windows"] for pipeline in status["pipelines"]], status["sources"]
            if counts == last and not any(worker["queued"] for worker in status["workers"]):
                return status
            last = counts
            time.sleep(0.5)

    def judge_deadlines(self, loads, before, after, stalls):
        rows = []
        for model, load in loads.items():
            outcomes = delta(before, after, model)
            missed = load["sent"] - outcomes["result"] + outcomes["late"]
            needed = max(DEADLINE_MS * 1e3 - load["latency_us"]["total"]["p99"], WAITS_US)
            machine = sum(
                stalls.explain(miss["sent_ns"], miss["sent_ns"] + DEADLINE_MS * 1e6, needed) for miss in load["missed"])
            total = load["latency_us"]["total"]
            rows.append((model, load["sent"], outcomes["result"], outcomes["late"], outcomes["expired"],
                         outcomes["replaced"], outcomes["rejected"], machine, total["p50"], total["p99"], total["max"]))
            self.report.at_most(f"{model}: deadlines of {DEADLINE_MS} ms missed, beyond the machine's", missed - machine, 0,
                                note=f"of {load['sent']:,}, {machine} the machine's; {stalls.longest()}")
            # The agent counts from when it read the message; whoever waits for the answer counts from when it was sent.
            trip = load["trip_us"]
            self.report.at_most(f"{model}: publish to result, through the broker twice, p99", trip["p99"] / 1e3, DEADLINE_MS,
                                "ms", f"slowest {trip['max'] / 1e3:.1f} ms; {stalls.longest()}")
        table(f"Realtime at {RATE}/s beside an analytic pipeline fed at twice what a core can do, µs in the agent",
              ["pipeline", "sent", "results", "late", "expired", "replaced", "rejected", "machine's", "p50", "p99", "max"],
              rows)

    def judge_throughput(self, begin, end, costs, feed, cores):
        seconds = end[0] - begin[0]
        done = delta(begin[1], end[1], "image-classification")
        rate = done["result"] / seconds
        # By the cheapest batch there is: windows that ran alone where batches would have been cheaper do not count in full.
        spent = rate * min(cost / size for size, cost in costs.items()) / 1e6
        realtime = sum(RATE * self.costs(model)[0][1] / 1e6 for model in ("keyword-spotting", "anomaly-detection"))
        left = CPU - realtime
        batch = done["result"] / max(1e-9, sum(windows / int(size) for size, windows in done["batches"].items()))
        self.report.at_least(
            "analytic sessions, of what is left of the budget", spent / left, 0.8, "",
            f"{rate:,.0f} windows/s of {feed:,.0f} sent, in batches of {batch:.1f}, × the cheapest proved cost = {spent:.3f} of "
            f"{left:.3f} cores; the process used {cores:.2f}")
        self.report.figures["throughput"] = {
            "windows_per_second": rate, "sent_per_second": feed, "session_cores": spent, "left_cores": left,
            "process_cores": cores, "batches": done["batches"], "proved_us": costs}

    def judge_counts(self, before, after, sent):
        lost, shed, open_windows = 0, {}, 0
        for model, messages in sent.items():
            done = delta(before, after, model)
            was, now = (status["sources"][model] for status in (before, after))
            refused = sum(now["refused"].values()) - sum(was["refused"].values())
            taken = now["messages"] - was["messages"]
            lost += abs(messages - taken - refused)
            open_windows += abs(taken - done["windows"]) + abs(done["windows"] - sum(done[o] for o in OUTCOMES))
            shed[model] = refused + sum(done[o] for o in OUTCOMES if o != "result")
        total = sum(sent.values())
        self.report.at_most("messages that neither became a window nor were counted as refused", lost, 0,
                            note=f"of {total:,}; {sum(shed.values()):,} were shed and counted")
        self.report.at_most("windows without exactly one outcome", open_windows, 0)
        self.report.figures["shed"] = shed

    # 2

    def overhead(self):
        model = self.shared / "models" / "mlperf-tiny" / "keyword-spotting" / "int8.tflite"
        busy = os.getloadavg()[0]  # the promise is for an idle machine
        alone = last_json([self.binaries / "examples" / "runtime_overhead", "--json", model])
        rows = []
        for name, measured in alone.items():
            rows.append((name.replace("_", " "), *(measured[part][q] for part in ("bare", "result", "asker", "thread")
                                                    for q in ("p50_us", "p99_us"))))
            for quantile, bound in (("p50_us", 15), ("p99_us", 200)):
                over = measured["result"][quantile] - measured["bare"][quantile]
                self.report.at_most(f"push to result less bare session, {name.replace('_', ' ')}, {quantile[:3]}", over,
                                    bound, "µs", f"a thread that only waits for messages {measured['thread'][quantile] - measured['bare'][quantile]:.1f}; "
                                    f"load average before {busy:.1f}")
        table("A job through the pool beside the bare session, and in a thread that only waits for messages, keyword-spotting int8, µs",
              ["", "bare p50", "p99", "result p50", "p99", "asker p50", "p99", "thread p50", "p99"], rows)

        body = self.source("keyword-spotting", RATE) + self.pipeline(
            "keyword-spotting", f'class = "realtime"\ndeadline = "{DEADLINE_MS}ms"\npublish = "every"')
        with self.agent("overhead", body):
            self.end(self.load("keyword-spotting", 1))
            paced = self.end(self.load("keyword-spotting", min(self.seconds, 20), "--rate", RATE))
            parts = paced["latency_us"]
            for quantile, bound in (("p50", 15), ("p99", 200)):
                note = " + ".join(f"{part} {parts[part][quantile]:.0f}" for part in ("wait", "features", "queue", "decide"))
                self.report.at_most(f"queue and decide of a result at {RATE}/s, {quantile}", paced["around_us"][quantile], bound,
                                    "µs", note)
            # Priorities: a realtime stream goes first. Bounded queue: that of requests. Deadlines: each request's.
            seconds = min(self.seconds, 20)
            watching = self.stalls(seconds + 2)
            beside = self.load("keyword-spotting", seconds + 1, "--rate", RATE, "--warm-up", 0)
            asked = self.end(self.start(
                "ask", "--json", "--socket", self.run_folder / "limpet.sock", "--model", "keyword-spotting", "--payload",
                self.payloads["keyword-spotting"][0], "--clients", 8, "--timeout-us", 400_000, "--seconds", seconds))
            beside, stalls = self.end(beside), Stalls(self.end(watching))
        trip = asked["trip_us"]
        refused = sum(asked["refused"].values())
        note = f"p50 {trip['p50']:.0f}, p99 {trip['p99']:.0f}, max {trip['max']:.0f} µs; {asked['per_second']:,.0f}/s"
        self.report.at_most("8 clients of the local socket, p99 ÷ p50", trip["p99"] / trip["p50"], 5, "", note)
        self.report.at_most("8 clients, the longest answer (a stall of Triton's is 500 ms)", trip["max"] / 1e3, 50, "ms",
                            stalls.longest())
        self.report.at_most("8 clients, refused requests", refused, 0, note=f"of {asked['answered'] + refused:,}")
        missed = beside["lost"] + beside["late"]
        self.report.at_most("deadlines missed by the realtime stream beside them", missed, 0,
                            note=f"of {beside['sent']:,}; p99 {beside['latency_us']['total']['p99']:.0f} µs")
        self.report.figures["overhead"] = {"alone": alone, "paced": brief(paced), "clients": asked}

    # 3

    def batches(self):
        model = "anomaly-detection"
        costs, stopped = self.costs(model)
        chosen = max(costs)
        sizes = [1 << power for power in range(7)]
        each = max(1.0, min(self.seconds / 10, 5.0))
        found = last_json([self.lab, "bench", self.packages[model], "--json", "--engine", "tflite", "--scenario",
                           "single-stream,offline", "--threads", "1", "--batch", ",".join(map(str, sizes)), "--seconds",
                           str(each)])
        single = next(row for row in found["rows"] if row["scenario"] == "single-stream")
        offline = {row["batch"]: row["per_second"] for row in found["rows"] if row["scenario"] == "offline"}
        best = max(offline, key=offline.get)
        if chosen not in offline:
            sys.exit(f"bench: the proof chose a batch of {chosen}, which was not measured: {sorted(offline)}")
        rows = [(size, rate, rate / single["per_second"], "chosen" if size == chosen else "") for size, rate in
                sorted(offline.items())]
        table(f"{model} int8 on tflite, offline, one thread; single-stream {single['per_second']:,.0f} samples/s",
              ["batch", "samples/s", "÷ single-stream", ""], rows)
        self.report.at_least(f"{model} offline in batches of {chosen} ÷ single-stream", offline[chosen] / single["per_second"],
                             1.3, "×", f"best batch {best}: {offline[best] / single['per_second']:.2f}")
        # Before the knee a doubling would gain 5 % or more, and so would the best of all over what was chosen.
        larger = [rate for size, rate in offline.items() if size > chosen]
        gain = max(larger, default=0) / offline[chosen] - 1
        self.report.at_most(f"what a batch larger than the chosen {chosen} gains", max(gain, 0.0) * 100, 5, "%",
                            stopped)
        smaller = [rate for size, rate in offline.items() if size < chosen]
        if smaller:
            self.report.at_least(f"what the chosen {chosen} gains over the best smaller one",
                                 (offline[chosen] / max(smaller) - 1) * 100, 5, "%")
        self.report.figures["batches"] = {"chosen": chosen, "stopped": stopped, "single": single, "offline": offline}

    # 4

    def swaps(self):
        """Both kinds of window: a message that is one, and one cut from a front end that has to fill up first."""
        quantized, motor = "keyword-spotting", "motor-health"
        rate, samples = 200, 64
        source = Path(__file__).resolve().parents[2] / "models" / motor
        package = self.folder / motor
        shutil.copytree(source, package)
        self.packages[motor] = package
        payload = self.folder / "motor.payloads"
        payload.write_bytes(bytes((i * 197 % 251) - 125 & 0xFF if i % 2 == 0 else 0 for i in range(samples * 3 * 2 * 50)))
        self.payloads[motor] = (payload, samples * 3 * 2)
        keys = 'class = "realtime"\ndeadline = "2s"\npublish = "every"\nqueue = { depth = 16, policy = "drop_oldest" }'
        body = self.source(quantized, rate) + self.pipeline(quantized, keys) + f"""
[[source]]
name = "{motor}"
broker = "bench"
topic = "in/{{stream}}/{motor}"
scale = ["1/2048", "1/2048", "1/2048"]
max_streams = 1
codec = {{ raw = {{ type = "i16", channels = 3, header = [{{ tag = "u64le" }}] }} }}
""" + self.pipeline(motor, keys)
        seconds = max(self.seconds / 2, 10)
        log = self.folder / "swaps.log"
        with self.agent("swaps", body) as process:
            def stream(seconds):
                # One run of each load for both halves, so that the windows of the whole time are in one row.
                return (self.load(quantized, seconds, "--rate", rate),
                        self.load(motor, seconds, "--rate", 3200 / samples, "--warm-up", 0))
            quiet, quiet_motor = map(self.end, stream(seconds / 2))
            watching = self.stalls(seconds + SWAPS * 6 + 4)
            loads = stream(seconds + SWAPS * 6)
            time.sleep(2)
            moments = []
            for swap in range(1, SWAPS + 1):
                for model in (quantized, motor):
                    self.replace(model, f"1.0.{swap}")
                asked = boottime()
                process.send_signal(signal.SIGHUP)
                self.await_versions({quantized, motor}, f"1.0.{swap}", log)
                moments.append((asked * 1e9, boottime() * 1e9))
                time.sleep(seconds / SWAPS - 0.5)
            swapped, swapped_motor = map(self.end, loads)
            stalls = Stalls(self.end(watching))
            later, later_motor = map(self.end, stream(seconds / 2))
            after = self.settled()
            if process.poll() is not None:
                sys.exit("bench: the agent ended during the swaps")
        figures = []
        for model, quiet, during in ((quantized, (quiet, later), swapped), (motor, (quiet_motor, later_motor), swapped_motor)):
            found = swap_figures(model, {"without": quiet}, during, moments, stalls, after)
            figures.append(found)
            self.report.at_least(f"{model}: versions that answered in {SWAPS} swaps", found["versions"], SWAPS + 1)
            self.report.at_most(f"{model}: windows missing, repeated or without result", found["missing"]
                                + found["repeated"] + found["errors"], 0, note=f"of {found['windows']:,}")
            name = "p99" if found["tail"] == "p99" else "longest (too few for a p99)"
            self.report.at_most(f"{model}: windows above 5 × the {name} without swaps, beyond the machine's",
                                found["slow"] - found["machine"], 0,
                                note=f"5 × {found['tails']['without']:.0f} µs; {found['quiet_slow']} above it without swaps; longest "
                                     f"{found['max']:.0f} µs, without swaps {found['quiet_max']:.0f}; {stalls.longest()}")
        swap_table(f"{SWAPS} swaps under load, total latency in the agent in µs", figures)
        self.report.figures["swaps"] = figures

    def replace(self, model, version):
        """Puts a package with another version in the place of one, at once as `mv` would."""
        package = self.packages[model]
        fresh, old = package.with_name(f"{model}.new"), package.with_name(f"{model}.old")
        shutil.copytree(package, fresh)
        manifest = fresh / "model.toml"
        lines = [f'version = "{version}"' if line.startswith("version = ") else line
                 for line in manifest.read_text().splitlines()]
        manifest.write_text("\n".join(lines) + "\n")
        package.rename(old)
        fresh.rename(package)
        shutil.rmtree(old)

    def await_versions(self, models, version, log):
        end = time.monotonic() + 60
        while time.monotonic() < end:
            active = {m["name"] for m in self.status()["models"] if m["version"] == version and m["state"] == "active"}
            if active >= models:
                return
            time.sleep(0.2)
        sys.exit(f"bench: version {version} is not active after a minute:\n{log.read_text()[-3000:]}")

    # 5

    def idle(self):
        """The idle pipelines stand before the busy one in the configuration and have another model: whoever looks
        through them all for each message is found out."""
        busy, other, rate = "anomaly-detection", "keyword-spotting", 2000

        def body(count):
            idle = (self.source(other, 0.1, f"idle-{n}") + self.pipeline(
                other, 'class = "realtime"\ndeadline = "10s"', f"idle-{n}") for n in range(count))
            return "".join(idle) + self.source(busy, rate) + self.pipeline(
                busy, 'class = "realtime"\ndeadline = "2s"\npublish = "every"\n'
                      'queue = { depth = 128, policy = "reject" }')

        # In turns, and the lowest of each: what else the machine does only ever adds.
        runs = {count: [] for count in IDLE}
        seconds = max(2, min(self.seconds / ROUNDS, 5))
        for _ in range(ROUNDS):
            for count in IDLE:
                begun = time.monotonic()
                with self.agent(f"idle-{count}", body(count)) as process:
                    started = time.monotonic() - begun
                    self.end(self.load(busy, 1, "--rate", rate))
                    run = self.end(self.load(busy, seconds, "--rate", rate, "--pid", process.pid))
                runs[count].append((run["process"]["cpu_us_per_answer"], run, started))
        best = {count: min(found, key=lambda found: found[0]) for count, found in runs.items()}
        memory = {}
        for count in (1, 1 + MANY):
            with self.agent(f"memory-{count}", body(count)) as process:
                # What proving and loading used for a moment is given back by then.
                self.end(self.load(busy, 2, "--rate", RATE))
                memory[count] = resident(process.pid)
                if count > 1:
                    self.hear_each(other, count)
                    heard = resident(process.pid)
        rows = [(count + 1, cpu, run["latency_us"]["total"]["p50"], run["latency_us"]["total"]["p99"], run["lost"], started)
                for count, (cpu, run, started) in best.items()]
        table(f"One busy pipeline behind idle ones, {busy} at {rate:,}/s",
              ["pipelines", "CPU µs a message", "p50 µs", "p99 µs", "lost", "s to serving"], rows)
        cost = {count: cpu for count, (cpu, *_) in best.items()}
        first, last = IDLE[0], IDLE[-1]
        self.report.at_most(
            f"CPU a message with {last + 1:,} pipelines ÷ with 1", cost[last] / cost[first], 1.3, "×",
            "a tenth for each tenfold; " + ", ".join(f"{count + 1}: {us:.1f} µs" for count, us in cost.items()))
        each = (memory[1 + MANY] - memory[1]) / MANY / 1024
        self.report.at_most("memory of an idle pipeline", each, 16, "KB",
                            f"resident {memory[1] / 1e6:.1f} MB with 1, {memory[1 + MANY] / 1e6:.1f} MB with {MANY + 1:,}")
        once = (heard - memory[1 + MANY]) / MANY / 1024
        self.report.at_most("what a pipeline holds besides once it has heard a stream", once, 16 - each, "KB",
                            f"window buffers and this minute's histograms included; resident {heard / 1e6:.1f} MB")
        self.report.figures["idle"] = {"cpu_us": {count: [cpu for cpu, *_ in found] for count, found in runs.items()},
                                       "resident_bytes": memory}


    def hear_each(self, model, count):
        """One message to every idle source, and its result."""
        import paho.mqtt.client as mqtt
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        client.connect("127.0.0.1", self.broker.port)
        client.loop_start()
        path, size = wire.payloads(self.folder, self.shared, model)
        payload = bytes(8) + Path(path).read_bytes()[:size]
        for n in range(count):
            client.publish(f"in/a/idle-{n}", payload, qos=1).wait_for_publish(10)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            idle = [p for p in self.status()["pipelines"] if p["name"].startswith("idle-")]
            if all(p["outcomes"].get("result", 0) > 0 for p in idle):
                break
            time.sleep(0.2)
        else:
            sys.exit("bench: not every idle pipeline gave a result")
        client.loop_stop()
        client.disconnect()


OUTCOMES = ("result", "expired", "replaced", "rejected", "invalid", "failed")


def delta(before, after, name):
    """What a pipeline counted between two reports."""
    one, two = (next(p for p in status["pipelines"] if p["name"] == name) for status in (before, after))
    counts = {outcome: two["outcomes"].get(outcome, 0) - one["outcomes"].get(outcome, 0) for outcome in OUTCOMES}
    batches = {size: count - one["batches"].get(size, 0) for size, count in two["batches"].items()}
    return {"windows": two["windows"] - one["windows"], "late": two["late"] - one["late"], **counts,
            "batches": {size: count for size, count in batches.items() if count}}


def swap_figures(pipeline, quiet, during, moments, stalls, after, kind=lambda version: "without", span=None):
    """What became of the windows of one pipeline whose versions were swapped: `quiet` are loads without swaps by what they
    were served by, which `kind` says of a version, `moments` the times of the swaps, `after` the agent's status at the
    end; `span`, where the load went on for longer, the nanoseconds from the first to the last swap. A window is held against those that the same served without swaps."""
    windows, totals = during["windows"], during["latency_us"]["total"]
    # Without swaps several times; the lowest counts, lest somebody else's work raises the bound.
    loads = [load for of_kind in quiet.values() for load in of_kind]
    tail = "p99" if min(load["windows"]["count"] for load in loads) >= RUNS_FOR_P99 else "max"
    tails = {name: min(load["latency_us"]["total"][tail] for load in of_kind) for name, of_kind in quiet.items()}

    def limit(long):
        return 5 * tails[kind(long["version"])]
    told = during["longest"]
    if len(told) >= TOLD and told[-1]["total_us"] > 5 * min(tails.values()):
        sys.exit(f"bench: more than {TOLD} windows took long, and the load tells of no more")
    slow = [long for long in told if long["total_us"] > limit(long) and (span is None or span[0] <= long["sent_ns"] <= span[1])]
    return {
        "model": pipeline, "windows": windows["count"], "versions": len(during["versions"]), "missing": windows["missing"],
        "repeated": windows["repeated"],
        "errors": sum(other["outcomes"].get(outcome, 0) for other in after["pipelines"]
                      if other["name"] == pipeline for outcome in OUTCOMES if outcome != "result"),
        "tail": tail, "tails": tails, "quiet_max": max(load["latency_us"]["total"]["max"] for load in loads),
        "quiet_windows": sum(load["windows"]["count"] for load in loads),
        "quiet_slow": sum(long["total_us"] > limit(long) for load in loads for long in load["longest"]),
        "p99": totals["p99"], "max": totals["max"], "slow": len(slow), "longest": slow,
        "in_a_swap": sum(any(begin < long["sent_ns"] + long["total_us"] * 1e3 and end > long["sent_ns"] for begin, end in moments)
                         for long in slow),
        "machine": sum(stalls.explain(long["sent_ns"], long["sent_ns"] + long["total_us"] * 1e3,
                                      max(long["total_us"] - limit(long), WAITS_US)) for long in slow),
    }


def swap_table(title, figures):
    columns = {"model": "model", "windows": "windows", "versions": "versions", "missing": "missing", "repeated": "repeated",
               "errors": "errors", "quiet_max": "max without", "quiet_slow": "slow without",
               "p99": "p99", "max": "max", "slow": "slow", "in_a_swap": "in a swap", "machine": "machine's"}
    kinds = list(figures[0]["tails"])
    table(title, [*list(columns.values())[:6], *[f"{figures[0]['tail']} {name}" for name in kinds], *list(columns.values())[6:]],
          [[*[found[column] for column in list(columns)[:6]], *[found["tails"][name] for name in kinds],
            *[found[column] for column in list(columns)[6:]]] for found in figures])
    slow = sorted((long for found in figures for long in found["longest"]), key=lambda long: -long["total_us"])
    if slow:
        rows = [("the longest", slow[0]["total_us"], *slow[0]["parts"].values())]
        sums = [(long["total_us"], *long["parts"].values()) for long in slow]
        rows.append((f"mean of {len(slow)}", *[sum(column) / len(slow) for column in zip(*sums)]))
        table("Where the slow windows were, µs", ["", "total", *slow[0]["parts"]], rows)


def brief(load):
    return {key: load[key] for key in ("sent", "received", "lost", "late", "trip_us", "latency_us", "missed")}


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid, field="VmRSS"):
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


PARTS = ("deadlines", "overhead", "batches", "swaps", "idle")


def run(report, binaries, shared, seconds, parts=PARTS):
    with tempfile.TemporaryDirectory(prefix="limpet-bench-") as scratch:
        bench = Budget(report, binaries, shared, Path(scratch), seconds)
        try:
            for part in parts:
                getattr(bench, part)()
        finally:
            bench.broker.stop()
