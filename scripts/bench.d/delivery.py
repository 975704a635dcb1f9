"""Whether deliveries keep their promises: time to active, bytes moved and written, swaps without a lost window, a fleet.

Real programs throughout: `limpet-lab depot` publishes, mosquitto with its default limits keeps the depot, the agent
fetches, proves and serves. Moments are those at which a client of the same broker heard what publisher and agent said.

What is delivered alone is the int8 autoencoder of MLPerf Tiny (dense layers, a graph of 277 KB) with 57 golden vectors: a
package of 350 KB in three files; where one layer changes, also its image classifier (a graph of 333 KB, of which one layer of
convolution is a tenth) with eight pictures, for an autoencoder's golden outputs are as large as its inputs and change with
every weight. Further versions of it are graphs that prove, too: the lowest bit of weights is turned, and
the golden outputs are computed anew by LiteRT.

What is swapped under load is the project's motor-health with its front end, in windows of 0.36 s that lie 10 ms apart: its
LiteRT graph, with other weights each time, takes turns with its ONNX graph.
"""

import http.client
import itertools
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import paho.mqtt.client as mqtt
from safetensors import safe_open
from safetensors.numpy import save_file

import budget
import wire
from report import table

MODEL = "anomaly-detection"
VECTORS = 57  # golden ones: the 40 of the reference, and some of them mirrored, so that the package has 350 KB
PACKAGE = 350_000  # bytes that it must have at least
LAYER, CHANGED = "functional_1/dense/MatMul", 0.1  # in this layer of it a tenth of the package's bytes changes
PICTURES = "visual-wake-words"
PICTURE_VECTORS = 8  # four of each class
TENTH, LARGER = "model/conv2d_12/Conv2D", "model/conv2d_13/Conv2D"  # 9.8 % of the graph's bytes, and 11.8 % of the package's
JITTER = "0s"  # before a fetch; a gateway waits up to 30 s by default
DELIVERIES = 6
SLOW_RATE = 10  # windows a second while a version comes
TARGET_S = 3.0
MOVED = 0.35
WRITTEN = 2.5
RATE = 100  # windows a second
SWAPPED = 5  # models that are swapped side by side
SWAPS = 1000
SWAP_SECONDS = 280
FIFO = 40  # priority of the workers whose latency is promised
MOTOR = "motor-health"
SAMPLES = 32  # of a message, and from one frame and one window to the next: 100 windows a second at the 3200 Hz of the model
MOTOR_SCALE = 2048  # of a sample in g
FILLS_S = 0.36  # a window of 1,152 samples
QUIET_SECONDS = 20
PROCESSES = 4
GATEWAYS = 125  # in each
BLOCK = 4096
WEAR_TRIAL_S = 5  # a trial by default takes 600 s
KEPT_EVERY_S = 60  # how often a trial's progress is written
ROOM = 1 << 30  # bytes in memory that the stores of a fleet may take


class Ear:
    """A client that hears what the gateway says and when the depot's timestamp changes, and when."""

    def __init__(self, port, topics):
        self.heard, self.news = [], threading.Condition()
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        ready = threading.Event()
        self.client.on_message = self._take
        self.client.on_subscribe = lambda *_: ready.set()
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        self.client.subscribe([(topic, 1) for topic in topics])
        if not ready.wait(10):
            sys.exit("bench: mosquitto does not answer a subscription")

    def _take(self, _client, _data, message):
        with self.news:
            self.heard.append((time.monotonic(), message.topic, message.payload))
            self.news.notify_all()

    def wait_for(self, what, wanted, start=0, limit=60):
        """The moment and the payload of the first message from `start` on that `wanted(topic, payload)` accepts."""
        end, at = time.monotonic() + limit, start
        with self.news:
            while True:
                for when, topic, payload in itertools.islice(self.heard, at, None):
                    if wanted(topic, payload):
                        return when, payload
                at, left = len(self.heard), end - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"{what} did not come within {limit} s")
                self.news.wait(left)

    def event(self, kind, version, start=0, limit=60, model=None):
        def wanted(topic, payload):
            if not topic.endswith("/event"):
                return False
            event = json.loads(payload)
            return (event["kind"] == kind and (version is None or event.get("version") == version)
                    and (model is None or event.get("model") == model))
        return self.wait_for(f"{kind} {version}", wanted, start, limit)[0]

    def stop(self):
        self.client.disconnect()
        self.client.loop_stop()


class Counting:
    """Passes bytes between clients and a broker, and counts those towards the clients."""

    def __init__(self, port):
        self.target, self.down, self.lock = port, 0, threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            broker = socket.create_connection(("127.0.0.1", self.target))
            for end in (client, broker):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._pass, args=(client, broker, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(broker, client, True), daemon=True).start()

    def _pass(self, source, sink, down):
        try:
            while data := source.recv(65536):
                if down:
                    with self.lock:
                        self.down += len(data)
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def stop(self):
        self.listener.close()


class Depot:
    """A publisher with keys of its own."""

    def __init__(self, lab, port, folder):
        self.lab, self.port, self.keys = lab, port, folder / "keys"
        self.run("init", "--no-passphrase", "--patience", "1")

    def run(self, command, *arguments):
        place = ["--broker", f"mqtt://127.0.0.1:{self.port}", "--keys", self.keys]
        done = subprocess.run([self.lab, "depot", command, *map(str, arguments), *place], capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"bench: depot {command} ended with {done.returncode}:\n{done.stderr}")
        return done.stdout

    def publish(self, *packages, prove=True):
        return json.loads(self.run("publish", *packages, "--json", *([] if prove else ["--no-prove"])))

    def stored_bytes(self, model, version):
        listed = json.loads(self.run("list", "--json"))["models"]
        return next(one["stored_bytes"] for one in listed if (one["model"], one["version"]) == (model, version))

    @property
    def root(self):
        return self.keys / "root.json"


class Subject:
    """A model of MLPerf Tiny, of which versions are made."""

    def __init__(self, shared, model, vectors):
        self.model = model
        source = shared / "models" / "mlperf-tiny" / model
        self.graph = (source / "int8.tflite").read_bytes()
        with safe_open(source / "int8.golden.safetensors", "np") as file:
            self.metadata, reference, output = file.metadata(), file.get_tensor("input"), file.get_tensor("output")
        if output[0].size == 2:
            # As many of each class, since golden vectors must tell them apart.
            classes = np.argmax(output.reshape(len(output), -1), 1)
            chosen = np.concatenate([np.flatnonzero(classes == each)[:vectors // 2] for each in (0, 1)])
            self.input = np.ascontiguousarray(reference[chosen])
        else:
            mirrored = np.flip(reference.reshape(len(reference), -1), 1).reshape(reference.shape)
            self.input = np.ascontiguousarray(np.concatenate([reference, mirrored])[:vectors])
        self.weights = self.layers()

    def layers(self):
        """Where in the graph's file the weights of each layer lie, by name."""
        interpreter = wire.interpreter(self.graph)
        found = {}
        for tensor in interpreter.get_tensor_details():
            if tensor["dtype"] == np.int8 and tensor["name"].endswith(("MatMul", "Conv2D")) and len(tensor["shape"]) in (2, 4):
                try:
                    content = interpreter.get_tensor(tensor["index"]).tobytes()
                except ValueError:  # what a run works out has no content before it
                    continue
                if self.graph.count(content) == 1:
                    found[tensor["name"]] = slice(self.graph.index(content), self.graph.index(content) + len(content))
        return found

    def package(self, folder, name, version, layers=(), seed=0):
        """A version whose weights in these layers have their lowest bits turned, all (seed 0) or some, and its golden
        outputs. `layers`: names, or where in the graph weights lie."""
        graph = np.frombuffer(self.graph, np.uint8).copy()
        rng = np.random.default_rng(seed)
        for layer in layers:
            where = layer if isinstance(layer, slice) else self.weights[layer]
            graph[where] ^= rng.integers(0, 2, where.stop - where.start, np.uint8) if seed else np.uint8(1)
        folder = folder / f"{name}-{version}"
        folder.mkdir(parents=True)
        (folder / "int8.tflite").write_bytes(graph.tobytes())
        outputs = wire.outputs(graph.tobytes(), self.input)
        save_file({"input": self.input, "output": outputs}, folder / "golden.safetensors", self.metadata)
        (folder / "model.toml").write_text(
            f'format = 1\n\n[model]\nname = "{name}"\nversion = "{version}"{wire.MANIFEST[self.model]}')
        if self.model == PICTURES:
            (folder / "labels.txt").write_text("nobody\nperson\n")
        return folder


class Delivery(budget.Budget):
    """One broker, one publisher and one state directory a part."""

    def __init__(self, report, binaries, shared, folder, disk, seconds):
        super().__init__(report, binaries, shared, folder, seconds)
        self.disk = disk
        self.subject = Subject(shared, MODEL, VECTORS)

    def package(self, name, version, layers=(), seed=0):
        """A version of the autoencoder: see [`Subject`]."""
        folder = self.subject.package(self.run_folder.parent / "packages", name, version, layers, seed)
        if (size := size_of(folder)) < PACKAGE:
            sys.exit(f"bench: the package has {size:,} bytes and should have {PACKAGE:,}")
        return folder

    def fresh(self, part):
        """A broker, a publisher and an empty state directory for a part."""
        self.broker.stop()
        folder = self.folder / part
        self.run_folder = folder / "run"
        self.run_folder.mkdir(parents=True)
        self.state = self.disk / part
        self.state.mkdir()
        self.broker = wire.Broker(folder, "sys_interval 1\n")
        self.port = self.broker.port
        self.depot = Depot(self.lab, self.broker.port, folder)

    def delivered(self, names, keys="", source=None):
        """The configuration of pipelines over models of the depot."""
        body = f'\n[depot]\nroot = {json.dumps(str(self.depot.root))}\njitter = "{JITTER}"\n'
        for name in names:
            body += source(name) if source else self.source(MODEL, RATE, name)
            body += f'\n[[pipeline]]\nname = "{name}"\nsource = "{name}"\nmodel = "{name}@*"\n{keys}\n'
        return body

    @contextmanager
    def gateway(self, part, body):
        """The agent, once it runs and looks at the depot, and a client that hears what it says."""
        ear = Ear(self.broker.port, ["limpet/1/bench/event", f"limpet/1/bench/result/{MODEL}/a", "limpet/1/bench/models",
                                     "limpet/1/depot/meta/timestamp"])
        try:
            with self.agent(part, body, states=("serving", "waiting")) as process:
                yield process, ear
        finally:
            ear.stop()

    def deliver(self, ear, package, model, version, result=False):
        """Publishes a version, waits until it serves, or with `result` until it answered, and gives the moments, in seconds
        from the start of `publish`."""
        start, begun = len(ear.heard), time.monotonic()
        sent = self.depot.publish(package)
        ended = time.monotonic()

        def fetching(topic, payload):
            return topic.endswith("/models") and any(
                (m["name"], m["version"]) == (model, version) for m in json.loads(payload)["models"])
        moments = {
            "out": ear.wait_for("the timestamp", lambda topic, _: topic.endswith("/timestamp"), start)[0],
            "notice": ear.wait_for("a gateway that fetches", fetching, start)[0],
            "fetched": ear.event("model-staged", version, start),
            "proved": ear.event("model-proved", None, start, model=model),
            "active": ear.event("model-activated", version, start),
        }
        if result:
            def answers(topic, payload):
                return "/result/" in topic and f'"{version}"' in payload.decode()
            moments["result"] = ear.wait_for(f"a result of {version}", answers, start)[0]
        return sent, {"ended": ended - begun, **{name: when - begun for name, when in moments.items()}}

    # 1

    def time(self):
        """A whole package each time: from the start of `publish` until the new version serves."""
        self.fresh("time")
        rows, totals, after, answered = [], [], [], []
        load = None
        with self.gateway("time", self.delivered([MODEL], 'publish = "every"')) as (_, ear):
            # Nobody hears the windows before a first version serves.
            load = self.load(MODEL, 120, "--rate", SLOW_RATE, answers=False)
            for number in range(DELIVERIES):
                version = f"1.{number}.0"
                package = self.package(MODEL, version, self.subject.weights, number)
                sent, at = self.deliver(ear, package, MODEL, version, result=True)
                answered.append(at["result"])
                steps = [at[a] - at[b] for a, b in itertools.pairwise(("active", "proved", "fetched", "notice", "out"))]
                rows.append((version, sent["sent_bytes"], at["out"] * 1e3, *[step * 1e3 for step in reversed(steps)],
                             at["active"] * 1e3, (at["active"] - at["ended"]) * 1e3, at["result"] * 1e3))
                totals.append(at["active"])
                after.append(at["active"] - at["ended"])
            wire.stop(load)
        size = size_of(package)
        middle = [statistics.median(column) for column in list(zip(*rows))[2:7]]
        note = ("publisher {:,.0f}, trust and index {:,.0f}, chunks at 256 KiB/s {:,.0f}, proof {:,.0f}, "
                "activation {:,.0f} ms; load average {:.1f}").format(*middle, os.getloadavg()[0])
        files = len(list(package.iterdir()))
        graph = (package / "int8.tflite").stat().st_size
        table(f"A package of {size:,} bytes in {files} files, its graph {graph:,}, delivered to a gateway with the default "
              f"rate and a jitter of {JITTER} (by default up to 30 s), {SLOW_RATE} windows/s meanwhile, ms",
              ["version", "bytes sent", "publisher", "trust, index", "chunks", "proof", "activation", "from start",
               "from end", "first result"], rows)
        self.report.at_most(f"start of publish to active, median of {DELIVERIES}", statistics.median(totals), TARGET_S,
                            "s", note)
        self.report.at_most("end of publish to active, median", statistics.median(after), TARGET_S, "s",
                            f"slowest {max(after):.2f} s; the first also restarts the pipelines")
        self.report.at_most(f"start of publish to the first result at {SLOW_RATE} windows/s, median",
                            statistics.median(answered), TARGET_S, "s",
                            f"jitter {JITTER}; slowest {max(answered):.2f} s; the windows are {1000 // SLOW_RATE} ms apart")
        columns = ("version", "bytes", "publisher_ms", "trust_ms", "chunks_ms", "proof_ms", "activation_ms", "total_ms",
                   "from_end_ms", "first_result_ms")
        self.report.figures["delivery_time"] = [dict(zip(columns, row)) for row in rows]

    # 2

    def change(self):
        """Versions with one layer changed, and the same one again, through a proxy that counts."""
        first = {"1.0.0": ()}
        pictures = Subject(self.shared, PICTURES, PICTURE_VECTORS)
        # Each over the one before it, which the gateway has.
        self.changed("pictures", pictures, {**first, "1.1.0": (TENTH,), "1.2.0": (TENTH, LARGER)}, (
            ("1.1.0", "one layer changed, a tenth of the graph", TENTH),
            ("1.2.0", "one layer changed, over a tenth of the package", LARGER)))
        where = self.subject.weights[LAYER]
        tenth = slice(where.start, where.start + int(np.ceil(PACKAGE * CHANGED)))
        if tenth.stop > where.stop:
            sys.exit(f"bench: the layer {LAYER} is less than {CHANGED:.0%} of the package")
        self.changed("autoencoder", self.subject, {**first, "1.1.0": (tenth,)}, (
            ("1.1.0", "a tenth of the package changed in one layer, and all golden outputs with it", LAYER),))

    def changed(self, part, subject, changes, claims):
        """Versions of a subject with these layers changed, and the last one again, through a proxy that counts."""
        self.fresh(f"change-{part}")
        counting = Counting(self.broker.port)
        self.port, model = counting.port, subject.model
        folder = self.run_folder.parent / "packages"
        versions = {version: subject.package(folder, model, version, layers) for version, layers in changes.items()}
        size, last = size_of(versions["1.0.0"]), list(versions)[-1]
        differ = {version: {file.name: differing(before / file.name, file) for file in sorted(package.iterdir())}
                  for (_, before), (version, package) in itertools.pairwise(versions.items())}
        versions["again"] = versions[last]
        rows, moved = [], {}
        try:
            with self.gateway(f"change-{part}", self.delivered([model])) as (_, ear):
                self.quiet(counting)
                for version, package in versions.items():
                    before, heard = counting.down, len(ear.heard)
                    if version == "again":
                        sent = self.depot.publish(package)
                    else:
                        sent, _ = self.deliver(ear, package, model, version)
                    self.quiet(counting)
                    staged = [json.loads(payload)["message"] for _, topic, payload in ear.heard[heard:]
                              if topic.endswith("/event") and json.loads(payload)["kind"] == "model-staged"]
                    chunks, fetched = self.fetched(staged)
                    moved[version] = {"sent": sent, "wire": counting.down - before, "chunks": chunks, "chunk_bytes": fetched}
        finally:
            counting.stop()
        stored = {version: self.depot.stored_bytes(model, version) for version in versions if version != "again"}
        stored["again"] = stored[last]
        for version, of in moved.items():
            rows.append((version, stored[version], of["sent"]["sent_chunks"], of["sent"]["sent_bytes"],
                         of["sent"]["metadata_bytes"], of["chunks"], of["chunk_bytes"], of["wire"],
                         of["wire"] / stored[version]))
        graph = len(subject.graph)
        table(f"What moves of {model}, bytes: a graph of {graph:,} in a package of {size:,}; packages as stored, what the publisher "
              "sent, what the gateway fetched, and all that came over its connection",
              ["version", "package", "chunks sent", "bytes", "metadata", "chunks fetched", "bytes", "on the wire", "share"],
              rows)
        for version, what, layer in claims:
            files, where = differ[version], subject.weights[layer]
            chunks, of_graph = moved[version]["chunk_bytes"] / stored[version], files["int8.tflite"]
            self.report.at_most(f"{what}: share that moves", moved[version]["wire"] / stored[version], MOVED, "",
                                f"{model}: {sum(files.values()):,} of {size:,} bytes differ ({sum(files.values()) / size:.1%}): "
                                f"{of_graph:,} of the graph ({of_graph / graph:.1%} of it, {of_graph / size:.1%} of the package), of "
                                f"the {where.stop - where.start:,} weights of {layer}, "
                                f"{files['golden.safetensors']:,} of the golden file and {files['model.toml']:,} of the manifest; "
                                f"chunks alone {chunks:.3f}, the rest is metadata, index and MQTT")
        again = moved["again"]
        self.report.at_most(f"{model}, the same published again: chunk bytes sent and fetched",
                            again["sent"]["sent_bytes"] + again["chunk_bytes"], 0, "",
                            f"{again['wire']:,} bytes of metadata came over the gateway's connection")
        figures = self.report.figures.setdefault("delivery_change", {})
        figures[model] = {"stored": stored, "moved": moved, "differ": differ, "bytes": size}

    def quiet(self, counting, seconds=0.7):
        """Waits until nothing has come over the gateway's connection for a while."""
        last, since = counting.down, time.monotonic()
        while time.monotonic() - since < seconds:
            time.sleep(0.05)
            if counting.down != last:
                last, since = counting.down, time.monotonic()

    def fetched(self, staged):
        """Chunks and bytes that the gateway says it fetched: `… is here: 3 of 21 chunks were fetched, 4 of 5 bytes`."""
        words = [message.rsplit("is here: ", 1)[1].split() for message in staged]
        return sum(int(w[0]) for w in words), sum(int(w[6]) for w in words)

    # 3

    def swaps(self):
        """Deliveries one after the other while windows come: each round brings a new version of every model."""
        self.fresh("swaps")
        names = [f"swapped-{letter}" for letter in "abcde"[:SWAPPED]]
        motor = Motor(self.folder / "swaps")
        packages = {name: motor.folder / name for name in names}
        self.payloads[MOTOR] = motor.payloads()
        # The queue holds what comes in a second of standstill: what is lost is then a swap's doing.
        keys = ('class = "realtime"\ndeadline = "2s"\npublish = "every"\nqueue = { depth = 128, policy = "drop_oldest" }\n'
                'trial = { windows = 20, time = "100ms" }')

        def loads(seconds, **more):
            return [self.load(MOTOR, seconds, "--rate", RATE, "--warm-up", 0, source=name, **more) for name in names]

        moments, quiet, rounds = [], {"LiteRT": [], "ONNX": []}, SWAPS // SWAPPED
        versions = itertools.count()

        def kind(version):
            return list(quiet)[int(version.split(".")[1]) % 2]

        def write():
            """Writes the next version of every model."""
            number = next(versions)
            for name in names:
                motor.write(packages[name], name, number)
            return f"1.{number}.0"

        def without_swaps(version):
            for load in loads(2):  # the first window of a stream is another matter, and so is a trial
                self.end(load)
            quiet[kind(version)].append([self.end(load) for load in loads(QUIET_SECONDS)])
        # The ordinary scheduler lets a publisher that compresses go before a window now and then, on the same two cores.
        fifo = shutil.which("chrt") and subprocess.run(["chrt", "-f", str(FIFO + 1), "true"], capture_output=True).returncode == 0
        scheduler = f"SCHED_FIFO {FIFO}" if fifo else "the ordinary scheduler (SCHED_FIFO is not allowed here)"
        runtime = f"\n[runtime]\nfifo_priority = {FIFO}\n" if fifo else ""
        body = runtime + self.delivered(names, keys, motor.source)
        with self.gateway("swaps", body) as (process, ear):
            version = write()
            self.depot.publish(*packages.values())
            self.serve_all()
            without_swaps(version)
            self.round(ear, packages, names, [], version := write())
            without_swaps(version)
            watching = self.stalls(SWAP_SECONDS + 4, FIFO + 1 if fifo else None)
            going, end = loads(SWAP_SECONDS), time.monotonic() + SWAP_SECONDS - 5
            time.sleep(1)
            begun, first = time.monotonic(), budget.boottime()

            def swap():
                # Publishing happens elsewhere. Here it would keep broker and load from their cores, and what comes late
                # comes several at a time: a wait that no gateway is to blame for. What this thread starts has its priority.
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
                version, done = None, 0
                while done < rounds and time.monotonic() < end:
                    done += 1
                    self.round(ear, packages, names, moments, version := write())
                return version, done
            with ThreadPoolExecutor(1) as behind:
                version, done = behind.submit(swap).result()
            took, span = time.monotonic() - begun, (first * 1e9, budget.boottime() * 1e9)
            swapped = [self.end(load) for load in going]
            stalls = budget.Stalls(self.end(watching))
            without_swaps(version)
            self.round(ear, packages, names, [], version := write())
            without_swaps(version)
            after = self.settled()
            if process.poll() is not None:
                sys.exit("bench: the agent ended during the swaps")
        figures = [budget.swap_figures(name, {kind: [load[at] for load in of_kind] for kind, of_kind in quiet.items()},
                                       swapped[at], moments, stalls, after, kind, span) for at, name in enumerate(names)]
        budget.swap_table(f"{done * SWAPPED:,} versions delivered in {took:.0f} s and swapped in under load, {RATE} "
                          f"windows/s of each model, workers at {scheduler}, total latency in the agent in µs", figures)
        total = {key: sum(found[key] for found in figures) for key in
                 ("windows", "versions", "missing", "repeated", "errors", "quiet_windows", "quiet_slow", "slow", "in_a_swap",
                  "machine")}
        # One version served when the load began.
        self.report.at_least("swaps of delivered versions under load", total["versions"] - SWAPPED, SWAPS, "",
                             f"{SWAPPED} models with a front end, {done} versions of each, LiteRT and ONNX in turns, "
                             f"published, fetched, proved and on trial, {took:.0f} s")
        # A window without result is a missing one, unless it came before or after the load.
        self.report.at_most("windows missing, repeated or without result",
                            max(total["missing"], total["errors"]) + total["repeated"], 0, "", f"of {total['windows']:,}")
        worst = max(figures, key=lambda found: found["max"])
        self.report.at_most("windows above 5 × the p99 without swaps, beyond the machine's",
                            total["slow"] - total["machine"], 0, "",
                            f"workers at {scheduler}; of {total['slow']} among some {RATE * SWAPPED * took:,.0f} windows from the first to the "
                            f"last swap, {total['in_a_swap']} of them in one; {total['quiet_slow']} of "
                            f"{total['quiet_windows']:,} above it without swaps; longest {worst['max']:,.0f} µs, without "
                            f"swaps {worst['quiet_max']:,.0f}; {stalls.longest()}")
        share = min(covered(moments) / took, 1)
        self.report.at_most("of the slow ones in a swap, with nothing taken off for the machine", total["in_a_swap"], 0, "",
                            f"from the arrival of any version until {FILLS_S} s, a window, after its start, which is "
                            f"{share:.0%} of the time and has {total['in_a_swap'] / max(total['slow'], 1):.0%} of the slow ones")
        self.report.figures["delivery_swaps"] = {"swaps": done * SWAPPED, "seconds": took, "pipelines": figures}

    def serve_all(self, patience=60):
        """Waits until no pipeline waits for its model any more."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            try:
                if all(pipeline["state"] == "serving" for pipeline in self.status()["pipelines"]):
                    return
            except (OSError, http.client.HTTPException):
                pass  # it begins again
            time.sleep(0.1)
        sys.exit(f"bench: the models that were published are not served after {patience} s")

    def round(self, ear, packages, names, moments, version):
        """Publishes a version of every model, waits until all serve, and notes when each was swapped in."""
        start, offset = len(ear.heard), budget.boottime() - time.monotonic()
        # A publisher has a machine of its own; here it would take the cores of the gateway, which proves anyway.
        self.depot.publish(*packages.values(), prove=False)
        for name in names:
            begin = ear.event("model-staged", version, start, model=name)
            end = ear.event("model-activated", version, start, model=name)
            moments.append(((begin + offset) * 1e9, (end + offset + FILLS_S) * 1e9))

    # 4

    def wear(self):
        """What a delivery writes to the disk, as the kernel counts it for the agent and the proofs that it waited for."""
        self.fresh("wear")
        kind = file_system(self.state)
        if kind in ("tmpfs", "ramfs"):
            sys.exit(f"bench: {self.state} is {kind}: what is written there wears no disk; set TMPDIR to a folder on one")
        rows, shares = [], []
        keys = f'publish = "every"\ntrial = {{ windows = 100, time = "{WEAR_TRIAL_S}s" }}'
        with self.gateway("wear", self.delivered([MODEL], keys)) as (process, ear):
            for number in range(3):
                version = f"1.{number}.0"
                package = self.package(MODEL, version, self.subject.weights, 100 + number)
                before, files, start = written(process.pid), self.files(), len(ear.heard)
                load = self.load(MODEL, 60, "--rate", RATE, answers=False)
                self.deliver(ear, package, MODEL, version)
                if number:
                    ear.event("trial-passed", version, start)
                else:  # on trial only beside one to go back to
                    time.sleep(WEAR_TRIAL_S)
                wire.stop(load)
                self.still(process.pid)  # what the trial's end and the collection write
                bytes_written, now = written(process.pid) - before, self.files()
                fresh = {path: stat for path, stat in now.items() if files.get(path) != stat}
                stored = self.depot.stored_bytes(MODEL, version)
                parts = [sum(blocks for path, (_, _, blocks) in fresh.items() if path.startswith(part))
                         for part in PARTS_ON_DISK]
                rest = sum(blocks for _, _, blocks in fresh.values()) - sum(parts)
                shares.append(bytes_written / stored)
                rows.append((version, stored, bytes_written, shares[-1], *parts, rest, bytes_written - sum(parts) - rest))
            before = written(process.pid)
            load = self.load(MODEL, 60, "--rate", RATE, answers=False)
            time.sleep(2 * WEAR_TRIAL_S)
            wire.stop(load)
            self.still(process.pid)
            idle = written(process.pid) - before
        table(f"Bytes written for a delivery until its trial of {WEAR_TRIAL_S} s at {RATE} windows/s was passed and what it "
              f"replaced was collected, on {kind}: by the kernel's count, what of it stands in files, in whole blocks, "
              "and the rest: files that were replaced, folders and inodes",
              ["version", "package", "written", "÷ package", "chunks", "index", "records", "trust", "proofs", "other", "rest"],
              rows)
        self.report.at_most("bytes written to disk ÷ package, the most of 3", max(shares), WRITTEN, "×",
                            f"on {kind}, agent and proof; {idle:,} bytes in {2 * WEAR_TRIAL_S} s of the same load without a "
                            f"delivery are not taken off; a journal of the file system is not in it, nor that a longer "
                            f"trial writes its record (a block, and what the file system adds) every {KEPT_EVERY_S} s: 10 times "
                            "in one as by default")
        self.report.figures["delivery_wear"] = {"file_system": kind, "rows": rows}

    def still(self, pid, seconds=2):
        """Waits until a process has written nothing for a while."""
        last, since = written(pid), time.monotonic()
        while time.monotonic() - since < seconds:
            time.sleep(0.1)
            if (now := written(pid)) != last:
                last, since = now, time.monotonic()

    def files(self):
        """Files of the state directory: what changes when one is written, and what it takes."""
        found = {}
        for path in self.state.rglob("*"):
            if path.is_file():
                stat = path.stat()
                found[str(path.relative_to(self.state))] = (stat.st_ino, stat.st_mtime_ns, -(-stat.st_size // BLOCK) * BLOCK)
        return found

    # 5

    def fleet(self):
        """Simulated gateways that all hear of a new version at the same moment."""
        self.fresh("fleet")
        broker = self.broker.process.pid
        empty = budget.resident(broker)
        ear = Ear(self.broker.port, ["$SYS/broker/bytes/sent", "$SYS/broker/messages/sent"])
        # As many gateways have as many disks, and here is one.
        memory = Path("/dev/shm")
        memory = memory if memory.is_dir() and shutil.disk_usage(memory).free > ROOM else self.disk
        processes = []
        with tempfile.TemporaryDirectory(prefix="limpet-bench-", dir=memory) as stores:
            try:
                for number in range(PROCESSES):
                    processes.append(self.start(
                        "depot", "swarm", "--gateways", GATEWAYS, "--broker", f"mqtt://127.0.0.1:{self.broker.port}",
                        "--root", self.depot.root, "--id-prefix", f"hall{number}-", "--model", f"{MODEL}@*", "--state", stores,
                        "--timeout", "150s", "--json"))
                for process in processes:
                    line = process.stderr.readline()
                    if "have looked" not in line:
                        sys.exit(f"bench: the swarm does not start: {line}{process.communicate()[1]}")
                connected, cpu = budget.resident(broker), budget.cpu_seconds(broker)
                before = self.sent(ear)
                package, begun = self.package(MODEL, "1.0.0"), time.time()
                self.depot.publish(package)
                published = time.time() - begun
                found = [self.swarmed(process) for process in processes]
            finally:
                for process in processes:
                    if process.poll() is None:
                        wire.stop(process)
            after, cpu = self.sent(ear), budget.cpu_seconds(broker) - cpu
            ear.stop()
        stored = self.depot.stored_bytes(MODEL, "1.0.0")
        peak = budget.resident(broker, "VmHWM")
        rows = []
        for number, one in enumerate(found):
            shift = one["started_unix_s"] - begun
            times = [one[key] + shift if one[key] else None for key in ("first_s", "median_s", "last_s")]
            rows.append((f"{number + 1}", one["gateways"], one["active"], len(one["failed"]) + len(one["waiting"]), *times,
                         one["messages"], one["bytes"] / 1e6, one["chunk_bytes"] / 1e6))
        active, of = sum(one["active"] for one in found), PROCESSES * GATEWAYS
        bytes_sent, messages = after[0] - before[0], after[1] - before[1]
        first = min((row[4] for row in rows if row[4]), default=None)
        last = max((row[6] for row in rows if row[6]), default=None)
        rows.append(("all", of, active, sum(row[3] for row in rows), first, None, last,
                     *[sum(row[at] for row in rows) for at in (7, 8, 9)]))
        table(f"{of} simulated gateways in {PROCESSES} processes, one mosquitto, {stored:,} bytes each, no jitter; seconds after "
              "the start of publish",
              ["process", "gateways", "active", "not", "first", "median", "last", "messages", "MB received", "MB of chunks"],
              rows)
        complaints = [complaint["why"] for one in found for complaint in one["failed"] + one["waiting"]]
        said = (f"the last {last:.1f} s after the start of publish, which took {published:.1f} s; " if active else "")
        self.report.at_least(f"simulated gateways that have the version, of {of}", active, of, "",
                             complaints[0] if complaints else said + found[0]["not_done"])
        table("The broker: resident MB, and what it sent from the start of publish on, by its own count",
              ["empty", "connected", "peak", "KB a connection", "MB sent", "bytes a gateway", "÷ package",
               "packets a gateway", "CPU s"],
              [(empty / 1e6, connected / 1e6, peak / 1e6, (connected - empty) / of / 1e3, bytes_sent / 1e6, bytes_sent / of,
                bytes_sent / of / stored, messages / of, cpu)])
        self.report.figures["delivery_fleet"] = {
            "processes": found, "stored": stored, "published_s": published, "bytes_sent": bytes_sent, "messages_sent": messages,
            "broker_cpu_s": cpu, "broker_empty_bytes": empty, "broker_connected_bytes": connected, "broker_peak_bytes": peak,
            "last_s": last}

    def swarmed(self, process):
        """What a process of the swarm says at its end, whether or not all of its gateways made it."""
        out, errors = process.communicate()
        if process.returncode not in (0, 1) or not out:
            sys.exit(f"bench: the swarm ended with {process.returncode}:\n{errors}")
        return json.loads(out)

    def sent(self, ear):
        """Bytes and messages that the broker has sent, by its own count, which it makes once a second."""
        start = len(ear.heard) + 2  # both counts once more, so that nothing from before is missing
        return [int(ear.wait_for(what, lambda topic, _, what=what: topic.endswith(what), start)[1])
                for what in ("bytes/sent", "messages/sent")]


class Motor:
    """The project's motor-health as versions that differ: graphs of two kinds, weights of their own, windows 10 ms apart."""

    def __init__(self, folder):
        source = Path(__file__).resolve().parents[2] / "models" / MOTOR
        sys.path.append(str(source))
        import front_end
        front_end.HOP = SAMPLES
        self.folder = folder / "packages"
        self.labels, self.manifest = ((source / name).read_text() for name in ("labels.txt", "model.toml"))
        for old, new in (("hop = 512", f"hop = {SAMPLES}"), ("frames = 5, hop = 2", "frames = 5, hop = 1")):
            if old not in self.manifest:
                sys.exit(f"bench: the manifest of {MOTOR} has no {old!r}")
            self.manifest = self.manifest.replace(old, new)
        self.lite, self.onnx = ((source / name).read_bytes() for name in ("int8.tflite", "int8-qdq.onnx"))
        with safe_open(source / "golden.int8.safetensors", "np") as file:
            self.metadata, samples = file.metadata(), file.get_tensor("samples")
        self.all_samples = samples
        length = front_end.LENGTH + (front_end.FRAMES - 1) * SAMPLES
        self.samples = np.ascontiguousarray(samples[:, :length])
        self.features = front_end.features(self.samples)
        made = wire.interpreter(self.lite)
        scale, zero = made.get_input_details()[0]["quantization"]
        self.quantized = np.clip(np.round(self.features / scale) + zero, -128, 127).astype(np.int8)
        self.weights = max((content for content in map(self.content(made), made.get_tensor_details())
                            if content and self.lite.count(content) == 1), key=len)

    @staticmethod
    def content(made):
        def of(tensor):
            try:
                return made.get_tensor(tensor["index"]).tobytes() if tensor["dtype"] == np.int8 else None
            except ValueError:  # of a step between, which is nowhere yet
                return None
        return of

    def write(self, folder, name, number):
        """Version 1.NUMBER.0: the LiteRT graph with weights of its own, or the ONNX graph."""
        folder.mkdir(parents=True, exist_ok=True)
        keep, drop = ("int8-qdq.onnx", "int8.tflite") if number % 2 else ("int8.tflite", "int8-qdq.onnx")
        if number % 2:
            session = onnxruntime.InferenceSession(self.onnx, providers=["CPUExecutionProvider"])
            graph, inputs = self.onnx, self.features.reshape(len(self.features), 1, -1, self.features.shape[-1])
            outputs, metadata = session.run(None, {session.get_inputs()[0].name: inputs})[0], None
        else:
            graph, at = np.frombuffer(self.lite, np.uint8).copy(), self.lite.index(self.weights)
            graph[at:at + len(self.weights)] ^= np.random.default_rng(number).integers(0, 2, len(self.weights), np.uint8)
            graph, metadata = graph.tobytes(), self.metadata
            outputs = wire.outputs(graph, self.quantized)
        (folder / drop).unlink(missing_ok=True)
        (folder / keep).write_bytes(graph)
        save_file({"samples": self.samples, "features": self.features, "output": outputs}, folder / "golden.safetensors",
                  metadata)
        text = self.manifest.replace(f'name = "{MOTOR}"', f'name = "{name}"').replace('"1.0.0"', f'"1.{number}.0"')
        (folder / "model.toml").write_text(text.replace(f'[[variant]]\nfile = "{drop}"\n', ""))
        (folder / "labels.txt").write_text(self.labels)

    def payloads(self):
        """The samples of the golden windows as messages: a file and the length of one."""
        path = self.folder.parent / "motor.payloads"
        values = np.round(self.all_samples.reshape(-1, 3) * MOTOR_SCALE)
        path.write_bytes(np.clip(values, -32768, 32767).astype("<i2").tobytes())
        return path, SAMPLES * 3 * 2

    @staticmethod
    def source(name):
        return f"""
[[source]]
name = "{name}"
broker = "bench"
topic = "in/{{stream}}/{name}"
scale = {json.dumps([f"1/{MOTOR_SCALE}"] * 3)}
max_streams = 1
max_gap = "2s" # messages that a busy machine brings late are no gap: every window that is missing is a swap's doing
codec = {{ raw = {{ type = "i16", channels = 3, header = [{{ tag = "u64le" }}] }} }}
"""


def size_of(folder):
    return sum(file.stat().st_size for file in folder.iterdir())


def differing(one, other):
    """Bytes that differ between two files of a length."""
    one, other = (np.frombuffer(file.read_bytes(), np.uint8) for file in (one, other))
    return int((one != other).sum()) if len(one) == len(other) else max(len(one), len(other))


def covered(intervals):
    """Seconds in any of these intervals of nanoseconds."""
    total, until = 0, 0
    for begin, end in sorted(intervals):
        total, until = total + max(0, end - max(begin, until)), max(end, until)
    return total / 1e9


PARTS_ON_DISK = ("depot/chunks", "depot/indexes", "depot/models", "depot/trust", "proofs")


def written(pid):
    """Bytes that a process and the children that it waited for have written, whether or not they are on the disk yet."""
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["write_bytes"])


PARTS = ("time", "change", "swaps", "wear", "fleet")


def disk():
    """A folder on a disk, since what is written to memory wears nothing: that of temporary files, or else the checkout's."""
    here = file_system(tempfile.gettempdir()) != "tmpfs"
    return None if here else str(Path(__file__).resolve().parents[2] / ".limpet")


def file_system(folder):
    done = subprocess.run(["df", "--output=fstype", folder], capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


def run(report, binaries, shared, seconds, parts=PARTS):
    with tempfile.TemporaryDirectory(prefix="limpet-bench-") as scratch, \
            tempfile.TemporaryDirectory(prefix="limpet-bench-", dir=disk()) as state:
        bench = Delivery(report, binaries, shared, Path(scratch), Path(state), seconds)
        try:
            for part in parts:
                getattr(bench, part)()
        finally:
            bench.broker.stop()
