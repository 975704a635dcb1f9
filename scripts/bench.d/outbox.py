"""The outbox: how fast it stores and drains, what a large backlog costs, and what a healthy link writes to the disk.

The gateway is the real agent, the broker a mosquitto with its default limits (20 in flight, a Receive Maximum of 20). A round
trip is made by a wire that holds every byte back for half of it in each direction. Whether everything arrived, once and in
order, `limpet-lab audit` says, which is there before the gateway.
"""

import asyncio
import atexit
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import delivery
import wire

MODEL = "anomaly-detection"
BACKLOG = 1_000_000
STORED = 200_000  # results of one measurement of storing
ROUNDS = 3
SLOW_BACKLOG = 20_000


class Wire:
    """TCP to a port, with a round trip of so many seconds."""

    def __init__(self, port, round_trip):
        self.target, self.delay = port, round_trip / 2
        self.loop, ready = asyncio.new_event_loop(), threading.Event()

        self.is_down, self.writers = False, set()
        # Connections that are cut end with an error, which is what they are for.
        self.loop.set_exception_handler(lambda loop, context: None)

        async def serve():
            server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()

        def work():
            self.loop.create_task(serve())
            self.loop.run_forever()

        threading.Thread(target=work, daemon=True).start()
        ready.wait(10)

    def set_down(self, is_down):
        """Cuts every connection and takes none, or takes them again."""
        def change():
            self.is_down = is_down
            if is_down:
                [writer.close() for writer in self.writers]
        self.loop.call_soon_threadsafe(change)

    async def _accept(self, reader, writer):
        if self.is_down:
            return writer.close()
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        if self.is_down:
            far_writer.close()
            return writer.close()
        self.writers |= {writer, far_writer}
        await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer), return_exceptions=True)
        self.writers -= {writer, far_writer}

    async def _pass(self, source, sink):
        while chunk := await source.read(1 << 16):
            self.loop.call_later(self.delay, sink.write, chunk)
        await asyncio.sleep(self.delay)
        sink.close()

    def stop(self):
        async def end():
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            [task.cancel() for task in tasks]
            await asyncio.gather(*tasks, return_exceptions=True)
            self.loop.stop()

        asyncio.run_coroutine_threadsafe(end(), self.loop)


class Outbox:
    def __init__(self, report, binaries, shared, folder, seconds, plot):
        self.report, self.binaries, self.shared, self.folder, self.seconds = report, binaries, shared, folder, seconds
        self.plot = plot
        self.package = wire.package(folder, shared, MODEL)
        self.payloads, self.size = wire.payloads(folder, shared, MODEL)

    def stored(self, home, results, *arguments):
        """A backlog under `home`, and what storing it took."""
        command = [self.binaries / "examples" / "outbox_store", home, str(results), *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"bench: {' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr}")
        return json.loads(done.stdout)

    def configuration(self, home, near, far, outbox="", run=None, deadline="2s", more=""):
        path = home / "limpet.toml"
        # One broker where samples and results go to the same address, as on most gateways.
        beside = f'[broker.near]\nurl = "mqtt://127.0.0.1:{near}"' if near != far else ""
        path.write_text(f"""format = 1
[gateway]
id = "press-07"
state = {json.dumps(str(home / "state"))}
run = {json.dumps(str(run or home / "run"))}
{beside}
[broker.far]
url = "mqtt://127.0.0.1:{far}"
[uplink]
broker = "far"
[outbox]
max_bytes = "1GiB"
{outbox}
[[source]]
name = "load"
broker = "{"near" if beside else "far"}"
topic = "bench/{{stream}}/in"
codec = {{ raw = {{ type = "i8", channels = {self.size}, header = [{{ tag = "u64le" }}] }} }}
[[pipeline]]
name = "bench"
source = "load"
model = {json.dumps(str(self.package))}
class = "realtime"
deadline = "{deadline}"
queue = {{ depth = 64, policy = "drop_oldest" }} # so that a pause of a shared machine sheds nothing
publish = "every"
{more}""")
        return path

    @contextmanager
    def gateway(self, home, config):
        with wire.running([self.binaries / "limpet", "run", "--config", config], home / "limpet.log") as process:
            yield process

    def status(self, home):
        # Where the run folder is, the configuration says.
        done = subprocess.run([self.binaries / "limpet", "status", "--json", "--config", home / "limpet.toml"],
                              capture_output=True, text=True)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def wait_for(self, home, wanted, limit=300):
        end = time.monotonic() + limit
        while time.monotonic() < end:
            status = self.status(home)
            if status and wanted(status):
                return status
            time.sleep(0.02)
        sys.exit(f"bench: the agent did not come so far within {limit} s; its log:\n" +
                 (home / "limpet.log").read_text()[-2000:])

    @contextmanager
    def audit(self, broker):
        """Yields a function that ends the audit and gives its report."""
        start = len(broker.lines)
        command = [self.binaries / "limpet-lab", "audit", "--broker", f"mqtt://127.0.0.1:{broker.port}", "--from-start", "--json"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        broker.wait_for("limpet/1/+/result/#", start)

        def end():
            process.send_signal(signal.SIGTERM)
            return json.loads(process.communicate(timeout=120)[0])

        try:
            yield end
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def load(self, broker, seconds, rate=100, topic="bench/a/in", payloads=None, size=None, *arguments):
        """Publishes samples, by default right ones; gives the process."""
        command = [self.binaries / "limpet-lab", "load", "--publish-only", "--broker", f"mqtt://127.0.0.1:{broker.port}",
                   "--topic", topic, "--payload", payloads or self.payloads, "--size", str(size or self.size),
                   "--rate", str(rate), "--seconds", str(seconds), "--json", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        # None stays behind, however the bench ends.
        atexit.register(lambda: process.poll() is None and process.kill())
        return process

    def home(self, part):
        home = self.folder / part
        home.mkdir()
        return home

    def store(self):
        rows = []
        for round in range(ROUNDS):
            home = self.home(f"store-{round}")
            rows.append(self.stored(home, STORED))
        self.report.at_least("results stored in SQLite with synchronous=FULL, link down, median of 3",
                             statistics.median(row["per_second"] for row in rows), 20_000, "/s",
                             f"{rows[0]['streams']} streams; {rows[0]['written_bytes'] / STORED:.0f} bytes written for each")
        self.report.figures["outbox_store"] = rows

    def backlog(self):
        home = self.home("backlog")
        made = self.stored(home, BACKLOG)
        # Only the disk has it, as after a power cut.
        subprocess.run(["rm", "-rf", home / "run"], check=True)
        broker = wire.Broker(home)
        try:
            with self.audit(broker) as ended:
                config = self.configuration(home, broker.port, broker.port)
                begin = time.monotonic()
                with self.gateway(home, config) as process:
                    started = self.wait_for(home, lambda status: status["outbox"]["stored"] > 0, 30)
                    start = time.monotonic() - begin
                    memory, own, waiting = [], [], started["outbox"]["stored"]
                    self.wait_for(home, lambda status: status["pipelines"][0]["state"] == "serving")
                    while waiting:
                        memory.append(resident(process.pid))
                        own.append(resident(process.pid, "RssAnon"))
                        status = self.wait_for(home, lambda status: True)
                        waiting = status["outbox"]["stored"] + status["outbox"]["live"]
                        time.sleep(0.1)
                report = ended()
                # The same agent again, with nothing left.
                with self.gateway(home, config) as process:
                    self.wait_for(home, lambda status: status["pipelines"][0]["state"] == "serving")
                    time.sleep(1)
                    idle = resident(process.pid)
        finally:
            broker.stop()
        rows = report["streams"]
        total = lambda key: sum(row[key] for row in rows)
        size = f"{made['database_bytes'] / 1e6:.0f} MB on the disk"
        self.report.at_least("backlog drained to mosquitto, every message acknowledged", total("received") / report["seconds"],
                             10_000, "/s", f"{total('received'):,} results, {size}")
        self.report.at_most("of it lost, repeated or out of order", total("lost") + total("repeated") + total("out_of_order"), 0)
        self.report.at_most("memory of the agent with that backlog, the most", max(memory) / 1e6, 30, "MB",
                            f"resident set, the model and both engines in it, of which {max(own) / 1e6:.1f} are no "
                            f"file's; without a backlog {idle / 1e6:.1f}")
        self.report.at_most("start with that backlog, until the agent answers", start, 1, "s")
        self.report.figures["outbox_backlog"] = {"made": made, "audit": report, "memory": memory, "start": start}

    def slow(self):
        home = self.home("slow")
        self.stored(home, SLOW_BACKLOG)
        subprocess.run(["rm", "-rf", home / "run"], check=True)
        broker = wire.Broker(home)
        far = Wire(broker.port, 0.5)
        try:
            with self.audit(broker) as ended:
                with self.gateway(home, self.configuration(home, broker.port, far.port)):
                    broker.wait_for("bench/+/in", 0)
                    seconds = self.seconds * 2
                    load = self.load(broker, seconds + 5)
                    # Once results come: the model was proved meanwhile.
                    self.wait_for(home, lambda status: status["pipelines"][0]["outcomes"].get("result", 0) > 50)
                    waiting = lambda status: status["outbox"]["live"] + status["outbox"]["stored"]
                    first, begin = self.status(home), time.monotonic()
                    while time.monotonic() - begin < seconds and waiting(self.status(home)) > 100:
                        time.sleep(0.2)
                    last, took = self.status(home), time.monotonic() - begin
                    load.wait()
                    self.wait_for(home, lambda status: waiting(status) == 0)
                report = ended()
        finally:
            far.stop()
            broker.stop()
        came = last["pipelines"][0]["outcomes"]["result"] - first["pipelines"][0]["outcomes"]["result"]
        self.report.at_least("backlog shrinks at a round trip of 500 ms and Receive Maximum 20",
                             (waiting(first) - waiting(last)) / took, 1, "/s",
                             f"from {waiting(first):,} to {waiting(last):,} in {took:.1f} s while {came / took:.0f} results/s came in")
        self.report.at_most("of all that lost", sum(row["lost"] for row in report["streams"]), 0)
        self.report.figures["outbox_slow"] = {"first": first, "last": last, "seconds": took, "audit": report}

    def dead(self):
        home = self.home("dead")
        near, far = wire.Broker(home), wire.Broker(self.home("dead-far"))
        link = Wire(far.port, 0.01)
        seconds = self.seconds * 60
        try:
            with self.audit(far) as ended:
                with self.gateway(home, self.configuration(home, near.port, link.port)):
                    near.wait_for("bench/+/in", 0)
                    self.wait_for(home, lambda status: status["pipelines"][0]["state"] == "serving")
                    load = self.load(near, seconds + 10)
                    self.wait_for(home, lambda status: status["pipelines"][0]["outcomes"]["result"] > 100)
                    link.set_down(True)
                    begin, before = time.monotonic(), self.status(home)
                    time.sleep(seconds)
                    during, dead = self.status(home), time.monotonic() - begin
                    link.set_down(False)
                    back = time.monotonic()
                    sent = json.loads(load.communicate()[0])["sent"]
                    self.wait_for(home, lambda status: status["outbox"]["live"] + status["outbox"]["stored"] == 0)
                    drained, last = time.monotonic() - back, self.status(home)
                report = ended()
        finally:
            link.stop()
            near.stop()
            far.stop()
        results = last["pipelines"][0]["outcomes"]["result"]
        received, lost = (sum(row[key] for row in report["streams"]) for key in ("received", "lost"))
        while_dead = during["pipelines"][0]["outcomes"]["result"] - before["pipelines"][0]["outcomes"]["result"]
        # The load warms up for a second with messages that it does not count.
        sent += 100
        waited = during["outbox"]["live"] + during["outbox"]["stored"]
        self.report.at_most("windows that were not inferred, the uplink dead and the local broker alive", max(0, sent - results), 0,
                            note=f"of {sent:,} messages sent; {while_dead:,} results in {dead:.0f} s without an uplink, {waited:,} "
                                 "waited in the end")
        self.report.at_most("of the results lost on the way", max(0, results - received) + lost, 0,
                            note=f"{received:,} received; all within {drained:.1f} s after the link was back")
        self.report.figures["outbox_dead"] = {"seconds": dead, "sent": sent, "last": last, "audit": report, "drained": drained}

    def garbage(self):
        home = self.home("garbage")
        broker = wire.Broker(home)
        seconds, deadline = self.seconds * 6, "50ms"
        chance = random.Random(7)
        # Beside the realtime pipeline one that gives throughput up last, and one whose messages never can be read.
        more = "".join(f"""[[source]]
name = "{name}"
broker = "far"
topic = "{name}/{{stream}}/in"
codec = {codec}
[[pipeline]]
name = "{name}"
source = "{name}"
model = {json.dumps(str(self.package))}
class = "analytic"
publish = "triggers"
""" for name, codec in (("noise", f'{{ raw = {{ type = "i8", channels = {self.size}, header = [{{ tag = "u64le" }}] }} }}'),
                        ("json", "{ json = {} }")))

        def bytes_of(size):
            path = home / f"noise-{size}"
            path.write_bytes(chance.randbytes(256 * size))
            return path

        # An array that is read to its end and has none, and one in another without end.
        broken = home / "broken"
        broken.write_bytes(("[" + "-12," * 512)[:2048].encode() + b"[" * 2048)
        # What, messages a second, topic, payloads, bytes of one, and how else they are published.
        kinds = [
            ("short", 2100, "bench/short/in", bytes_of(32), 32),
            ("long", 2000, "bench/long/in", bytes_of(2048), 2048),
            # On the very stream whose deadlines count, a byte too short: so it is refused, and none of its windows.
            ("same topic", 2000, "bench/a/in", bytes_of(self.size - 1), self.size - 1),
            ("right length", 1000, "noise/a/in", bytes_of(self.size), self.size),
            # More names than a source may have streams, of the source whose deadlines count.
            ("new names", 1600, "bench/x{tag}/in", bytes_of(64), 64),
            ("broken JSON", 1500, "json/a/in", broken, 2048, "--untagged"),
        ]
        try:
            with self.gateway(home, self.configuration(home, broker.port, broker.port, deadline=deadline, more=more)) as process:
                for topic in ("bench/+/in", "noise/+/in", "json/+/in"):
                    broker.wait_for(topic, 0)
                self.wait_for(home, lambda status: all(one["state"] == "serving" for one in status["pipelines"]))
                # Without a warm-up, of which it would not tell how many messages it sent.
                load = self.load(broker, seconds + 15, 100, "bench/a/in", None, None, "--warm-up", "0")
                # What inferring batches takes for itself is no growth.
                self.load(broker, 2, 1000, "noise/a/in", bytes_of(self.size), self.size).communicate()
                time.sleep(3)
                calm, start = resident(process.pid), self.status(home)
                garbage = {what: self.load(broker, seconds, *how) for what, *how in kinds}
                memory, begin = [], time.monotonic()
                while any(process.poll() is None for process in garbage.values()):
                    memory.append((time.monotonic() - begin, resident(process.pid)))
                    time.sleep(0.2)
                took = time.monotonic() - begin
                sent = {what: json.loads(process.communicate()[0]) for what, process in garbage.items()}
                right = json.loads(load.communicate()[0])["sent"]
                time.sleep(0.5)
                last = self.status(home)
        finally:
            broker.stop()
        delta = lambda read: read(last) - read(start)
        refused = delta(lambda status: sum(sum(source["refused"].values()) for source in status["sources"].values()))
        # What the realtime pipeline's source took is right; of the others, what was taken was inferred or shed.
        taken = delta(lambda status: sum(status["sources"][name]["messages"] for name in ("noise", "json")))
        reasons = Counter()
        for source in last["sources"].values():
            reasons.update(source["refused"])
        pipeline = lambda status, name="bench": next(one for one in status["pipelines"] if one["name"] == name)
        results = pipeline(last)["outcomes"]["result"]
        # A message that was refused among so many that are makes no window, and is missed all the same.
        missed = max(0, right - results) + delta(lambda status: pipeline(status)["late"])
        inferred = delta(lambda status: pipeline(status, "noise")["outcomes"]["result"])
        total = pipeline(last)["latency_us"]["total"]
        self.report.at_least("garbage on subscribed topics, refused or taken, and counted", (refused + taken) / took, 10_000, "/s",
                             f"{refused:,} and {taken:,} in {took:.1f} s; {inferred:,} random ones of the right length inferred; refused: " +
                             ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items())))
        self.report.at_most(f"deadlines of {deadline} that a realtime pipeline missed beside it", missed, 0,
                            note=f"of {right:,} right messages, {max(0, right - results):,} without a result; a fifth of the garbage on their "
                                 f"topic; slowest since the start {total['max'] / 1e3:.1f} ms")
        grown, said = growth(memory, took)
        self.report.at_most("growth of its memory meanwhile, after a sixth of the time", grown, 2, "%", said)
        most = max(bytes for _, bytes in memory)
        self.report.at_most("and by the garbage at all", (most - calm) / 1e6, 2, "MB", f"{calm / 1e6:.1f} MB before")
        self.report.figures["outbox_garbage"] = {"sent": sent, "right": right, "memory": memory, "start": start, "last": last}

    def soak(self):
        home = self.home("soak")
        broker = wire.Broker(home)
        far = Wire(broker.port, 0.1)
        seconds = self.seconds * 360
        try:
            # The run folder is in memory, as systemd makes it.
            with tempfile.TemporaryDirectory(prefix="limpet-bench-", dir="/dev/shm") as run, self.audit(broker) as ended:
                config = self.configuration(home, broker.port, far.port, run=run)
                with self.gateway(home, config) as process:
                    broker.wait_for("bench/+/in", 0)
                    load = self.load(broker, seconds + 30)
                    # Its first results: the proof is on the disk, which is no part of this.
                    first = self.wait_for(home, lambda status: status["pipelines"][0]["outcomes"].get("result", 0) > 500)
                    written, begin = delivery.written(process.pid), time.monotonic()
                    memory = []
                    while (now := time.monotonic() - begin) < seconds:
                        memory.append((now, resident(process.pid)))
                        time.sleep(min(10, seconds / 100))
                    written, took = delivery.written(process.pid) - written, time.monotonic() - begin
                    last = self.status(home)
                    load.wait()
                report = ended()
        finally:
            far.stop()
            broker.stop()
        results = last["pipelines"][0]["outcomes"]["result"] - first["pipelines"][0]["outcomes"]["result"]
        lost = sum(row["lost"] for row in report["streams"])
        self.report.at_most("written to the disk on a healthy link, round trip 100 ms, in an hour", written / took * 3600 / 1e6, 5,
                            "MB", f"measured for {took:.0f} s, {last['outbox']['committed']} committed")
        self.report.at_least("results meanwhile", results / took, 99, "/s")
        received = sum(row["received"] for row in report["streams"])
        self.report.at_most("of all results lost", lost, 0, note=f"{received:,} received")
        grown, said = growth(memory, took)
        self.report.at_most(f"growth of its memory after the first {min(600, took / 6):.0f} s", grown, 2, "%", said)
        self.report.figures["outbox_soak"] = {"seconds": took, "written": written, "results": results, "lost": lost,
                                              "last": last["outbox"], "memory": memory}
        if self.plot:
            self._plot(memory, results / took)

    def _plot(self, memory, rate):
        import matplotlib
        matplotlib.use("svg")
        # The same figures, the same file.
        matplotlib.rcParams["svg.hashsalt"] = "limpet"
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(8, 3))
        axes.plot([when / 60 for when, _ in memory], [bytes / 1e6 for _, bytes in memory], drawstyle="steps-post")
        axes.set(xlabel="minutes", ylabel="resident set, MB", xlim=(0, None), ylim=(0, max(bytes for _, bytes in memory) / 1e6 * 1.2),
                 title=f"limpet at {rate:.0f} results/s, round trip 100 ms")
        axes.axvline(10, linestyle=":", color="grey")
        axes.grid(alpha=0.3)
        figure.savefig(self.plot, bbox_inches="tight", metadata={"Date": None})


def resident(pid, field="VmRSS"):
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields[field].split()[0]) * 1024


def growth(memory, seconds):
    """By how many percent memory grew from the tenth minute to the last ten, or the same shares of less than an hour, and what
    that is made of. `memory`: pairs of seconds since the start and bytes. Medians, since a start takes more than what follows
    and its peak would hide growth."""
    ten = min(600, seconds / 6)
    median = lambda low, high: statistics.median(bytes for when, bytes in memory if low <= when <= high)
    before, after = median(0.9 * ten, 1.1 * ten), median(seconds - ten, seconds)
    first, then = (max(bytes for when, bytes in memory if (when > ten) == is_later) for is_later in (False, True))
    return (after / before - 1) * 100, (
        f"resident set, medians: {before / 1e6:.2f} MB from {0.9 * ten:.0f} to {1.1 * ten:.0f} s, {after / 1e6:.2f} in the last "
        f"{ten:.0f}; at most {first / 1e6:.2f} in the first {ten:.0f} s and {then / 1e6:.2f} after")


PARTS = ("store", "backlog", "slow", "garbage", "dead", "soak")


def run(report, binaries, shared, seconds, wanted, plot=None):
    with tempfile.TemporaryDirectory(prefix="limpet-bench-", dir=delivery.disk()) as folder:
        bench = Outbox(report, binaries, shared, Path(folder), seconds, plot)
        for part in wanted:
            getattr(bench, part)()
