"""Runs the points: every server in turn, round after round, so that what the machine does meanwhile
meets all of them alike."""

import json
import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request

import machine
import peers

# A run whose machine was too loaded is tried again so many times, each when others are quiet or this time is over.
TRIES = 3
PATIENCE_S = 8
# After so many tries without a single good one the comparison ends.
HOPELESS = 9
SYNCS = ("fsync", "fdatasync", "sync_file_range", "msync", "syncfs", "sync")


class Refused(Exception):
    """A run that cannot be reported, and why."""


class TooLoaded(Exception):
    """The machine is so busy that nothing could be measured."""


class Progress:
    """A bar on stderr when somebody looks, else one line for each point."""

    def __init__(self, total_s):
        self.total_s, self.done_s, self.began, self.text = max(total_s, 0.1), 0.0, time.monotonic(), ""
        self.is_terminal = sys.stderr.isatty()

    def show(self, point, text):
        if not self.is_terminal:
            if point != self.text:
                self.text = point
                print(f"compare: {point}", file=sys.stderr, flush=True)
            return
        part = min(self.done_s / self.total_s, 1.0)
        left = (time.monotonic() - self.began) * (1 / part - 1) if part > 0.02 else self.total_s
        bar = "=" * int(part * 16)
        line = f"[{bar:<16}] {part * 100:3.0f} %, {max(left, 0) / 60:.0f} min  {point}: {text}"
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{line[:width]:<{width}}", end="", file=sys.stderr, flush=True)

    def finish(self):
        if self.is_terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{'':<{width}}\r", end="", file=sys.stderr, flush=True)


class Runner:
    """All runs of a comparison. `results` has one dictionary for each run."""

    def __init__(self, options, ringmq, scratch):
        self.options, self.ringmq, self.scratch = options, ringmq, scratch
        self.results = []
        self.versions, self.flags = {}, {}
        self.long_lived = {}
        self.running = None
        self.generator = None
        # Tries so far, as long as none was good.
        self.tries_in_vain = 0
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def all(self, points, kinds, variants):
        """Runs everything."""
        plan = []
        for point in points:
            those = [k for k in kinds if k.does(point)]
            those += [v for v in variants if v.name in point.variants and any(v.name.startswith(k.name) for k in kinds)]
            plan.append((point, those))
        progress = Progress(sum(self.seconds(point) * len(those) for point, those in plan))
        try:
            for point, those in plan:
                rounds = 1 if point.work in ("depth", "idle") else self.options.rounds
                for number in range(1, rounds + 1):
                    if point.work == "durable":
                        self.ceiling(point, number)
                    # Another order each time: whoever follows a heavy neighbour is not always the same.
                    for peer in those[number % len(those):] + those[:number % len(those)]:
                        progress.show(point.name, f"{peer.name} {number}/{rounds}")
                        self.try_run(point, peer, number)
                        progress.done_s += self.seconds(point) / rounds
                if point.calls and not self.options.no_strace:
                    for peer in those:
                        progress.show(point.name, f"{peer.name}, system calls")
                        self.count_calls(point, peer)
        finally:
            progress.finish()
            self.stop()

    def seconds(self, point):
        """About how long a point takes for one server."""
        timed = self.options.rounds * (self.options.duration + self.options.warmup + 0.5)
        return {"depth": 20, "idle": 4, "start": 1}.get(point.work, timed) + (3 if point.calls else 0)

    def stop(self):
        """Ends what runs; another Ctrl-C does not stop that."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self.generator and self.generator.poll() is None:
            self.generator.terminate()
            self.generator.wait()
        for running in [self.running, *self.long_lived.values()]:
            if running:
                running.stop()
        self.running, self.long_lived = None, {}

    def server(self, peer, durable):
        """A server for one run; those that take long to start stay."""
        if peer.lives_long:
            if peer.name not in self.long_lived:
                self.long_lived[peer.name] = peer.start(self.scratch)
            running = self.long_lived[peer.name]
            running.resume()
        else:
            self.running = running = peer.start(self.scratch, durable)
        self.versions.setdefault(peer.name.split(" ")[0], peer.version())
        words = " ".join([os.path.basename(running.argv[0]), *(word or "''" for word in running.argv[1:])])
        words = words.replace(str(running.data), "DATA").replace(str(running.port), "PORT")
        words = words.replace(str(getattr(peer, "monitor", "PORT")), "PORT")
        known = self.flags.setdefault(peer.name.split(" ")[0], [])
        if words not in known:
            known.append(words)
        return running

    def release(self):
        """Stops the server of a run, or lets it rest."""
        for running in self.long_lived.values():
            running.pause()
        if self.running:
            self.running.stop()
            self.running = None

    def try_run(self, point, peer, number):
        """One run, tried again when the machine was too loaded. Its result says what was wrong with it."""
        for attempt in range(1, TRIES + 1):
            self.await_quiet()
            record = {"point": point.id, "peer": peer.name, "round": number, "load1": machine.load1()}
            try:
                record.update(self.run(point, peer))
                record["why_not"] = ""
            except (Refused, peers.CannotStart) as why:
                record["why_not"] = str(why)
            finally:
                self.release()
            others = record.get("others_cores", 0)
            record["is_loaded"] = others > self.options.load_max
            if record["is_loaded"] and not record["why_not"] and not self.options.force:
                record["why_not"] = f"the machine was too loaded: others used {others:.2f} of its CPUs"
            record["attempt"] = attempt
            self.results.append(record)
            if not (record["is_loaded"] and record["why_not"]):
                self.tries_in_vain = None
                return
            if self.tries_in_vain is not None:
                self.tries_in_vain += 1
                if self.tries_in_vain >= HOPELESS:
                    raise TooLoaded(f"{HOPELESS} runs, and during each others used more than {self.options.load_max:g} CPUs, "
                                    f"at last {others:.2f}: nothing is reported; come back later, or see it anyway with --force")

    def await_quiet(self):
        """Until others use little, for a while."""
        until = time.monotonic() + PATIENCE_S
        while not self.options.force and time.monotonic() < until:
            others = machine.Others(0)
            time.sleep(0.25)
            if others.cores() <= self.options.load_max:
                return

    def run(self, point, peer):
        if point.work == "start":
            return self.starts(point, peer)
        durable = point.work == "durable"
        if point.work in ("depth", "idle") and peer.name in self.long_lived:
            # Memory is compared with that of a server that has done nothing.
            self.long_lived.pop(peer.name).stop()
        running = self.server(peer, durable)
        if point.work == "depth":
            return self.depth(point, peer, running)
        if point.work == "idle":
            words = ["idle", "--consumers", str(point.count), "--duration", "2s"]
            return self.bench(point, peer, running, words)
        read_before = self.read_by_nats(peer)
        result = self.bench(point, peer, running, self.words(point, peer, durable))
        self.prove_nats(peer, point, result, read_before)
        return result

    def words(self, point, peer, durable, duration=None):
        """The generator's arguments."""
        mode = {"drain": "pull", "rate": "e2e", "durable": "publish"}.get(point.work, point.work)
        words = [mode, "--size", str(point.size), "--window", str(point.window), *peer.bench(point, durable)]
        if mode != "pull":
            words += ["--producers", str(point.producers)]
        if mode != "publish":
            words += ["--consumers", str(point.consumers)]
        if point.work == "drain":
            return words + ["--count", str(point.count)]
        if point.work == "rate":
            words += ["--rate", str(point.rate)]
        elif mode in ("e2e", "fanout"):
            # In flight is what is published and has not arrived.
            words += ["--backlog", str(point.window * point.producers)]
        seconds = duration or self.options.duration
        # Logs begin with files to be laid out; what is measured is what comes after.
        warmup = self.options.warmup * (3 if durable else 1)
        return words + ["--duration", f"{int(seconds * 1000)}ms", "--warmup", f"{int(warmup * 1000)}ms"]

    def bench(self, point, peer, running, words, label="", check=True):
        """One run of the generator; its result with what others did meanwhile."""
        argv = [self.ringmq, "bench", *words, peer.option, running.addr,
                "--server-pid", str(running.pid), "--stall", "20s", "--json"]
        if label:
            argv += ["--label", label]
        others = machine.Others(running.pid)
        self.generator = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                          stderr=subprocess.PIPE, text=True, start_new_session=True)
        try:
            out, err = self.generator.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            raise Refused("the generator did not end") from None
        cores = others.cores()
        command = " ".join(["ringmq", "bench", *words, peer.option, "HOST:PORT", "--server-pid", "PID"])
        try:
            result = json.loads(out)
        except ValueError:
            raise Refused(f"the run was cut short: {last_line(err)}") from None
        if check and (result.get("faults") or self.generator.returncode != 0):
            raise Refused(f"the run failed its proof: {result.get('faults') or last_line(err)}")
        if "--duration" in words and result.get("measured_s", seconds_of(words)) < 0.9 * seconds_of(words):
            raise Refused(f"the run was cut short: it measured {result['measured_s']:.2f} s")
        return {**result, "others_cores": cores, "command": command, "durable": running.durable,
                "server_resident_bytes": machine.resident(running.pid)}

    def read_by_nats(self, peer):
        """How many messages a NATS server has read; nothing else can be asked of it."""
        if not isinstance(peer, peers.Nats):
            return 0
        with urllib.request.urlopen(f"http://{peers.HOST}:{peer.monitor}/varz", timeout=10) as varz:
            return json.load(varz)["in_msgs"]

    def prove_nats(self, peer, point, result, before):
        if isinstance(peer, peers.Nats):
            read, published = self.read_by_nats(peer) - before, result["total_confirmed"]
            if read != published:
                raise Refused(f"the run failed its proof: {published} published, {read} read by the server")
            if point.work == "publish":
                result["proof"] = "the server has counted every one (in_msgs); nothing is stored"

    def depth(self, point, peer, running):
        """Memory for each of many queued messages, and what is left of it after the drain."""
        empty = machine.resident(running.pid)
        queue = ["--queue", "depth", "--count", str(point.count), "--size", str(point.size), *peer.bench(point, False)]
        mode = ["publish", "--window", "1000"]
        if isinstance(peer, peers.Forwarder):
            # It keeps frames only for a drain, and forgets them with their consumer.
            result = self.bench(point, peer, running, ["pull", "--window", "1000", *queue[2:]])
            return {**result, "messages": point.count, "bytes_per_message": None, "drained_part": None}
        filled = self.bench(point, peer, running, [*mode, *queue])
        time.sleep(0.5)
        full = machine.resident(running.pid)
        drain = ["pull", "--filled", "--window", "1000", *queue]
        if isinstance(peer, peers.Ringmq):
            drain += ["--consume", "sub"]
        result = self.bench(point, peer, running, drain)
        time.sleep(2)
        drained = machine.resident(running.pid)
        if filled["total_confirmed"] != point.count:
            raise Refused("the run was cut short: not every message was published")
        return {**result, "messages": point.count, "bytes_per_message": (full - empty) / point.count,
                "drained_part": drained / full, "resident_empty_bytes": empty, "resident_full_bytes": full,
                "resident_drained_bytes": drained}

    def starts(self, point, peer):
        """Milliseconds until a connection was there, and until it was answered, an empty directory each time."""
        count = 1 if peer.lives_long else point.count
        if peer.lives_long and peer.name in self.long_lived:
            self.long_lived.pop(peer.name).stop()
        connected, answered = [], []
        others = machine.Others(0)
        for _ in range(count):
            running = peer.start(self.scratch)
            connected.append(running.connected_ms)
            answered.append(running.start_ms)
            running.stop()
        self.versions.setdefault(peer.name, peer.version())
        # The servers are this process's ended children: their time is not others'.
        return {"connected_ms": statistics.median(connected), "start_ms": statistics.median(answered),
                "others_cores": others.cores(), "starts": count, "command": "start, connect, one answer"}

    def ceiling(self, point, number):
        """The bare loop of write and fdatasync with as many messages a write as are in flight."""
        batch = point.producers * point.window
        argv = [self.ringmq, "bench", "floor", "--data", str(self.scratch), "--size", str(point.size), "--batch", str(batch),
                "--window", str(max(batch, 1000)), "--duration", f"{int(self.options.duration * 1000)}ms", "--json"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            result = json.loads(done.stdout)
            self.results.append({**result, "point": point.id, "peer": "write + fdatasync", "round": number,
                                 "why_not": "", "is_loaded": False, "load1": machine.load1(),
                                 "messages_per_s": batch * 1e6 / result["sync_us"]["mean"]})

    def count_calls(self, point, peer):
        """System calls, and syncs, of a short run of their own: counting slows a server down."""
        record = {"point": point.id, "peer": peer.name, "calls": None, "why_not": "not counted: no strace"}
        self.results.append(record)
        if not shutil.which("strace"):
            return
        out = os.path.join(self.scratch, "strace")
        tracer = None
        try:
            running = self.server(peer, point.work == "durable")
            tracer = subprocess.Popen(["strace", "-f", "-c", "-q", "-o", out, "-p", str(running.pid)],
                                      stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                      text=True, start_new_session=True)
            time.sleep(0.7)
            if tracer.poll() is not None:
                record["why_not"] = f"not counted: {last_line(tracer.stderr.read())}"
                return
            words = self.words(point, peer, point.work == "durable", duration=1.0)
            result = self.bench(point, peer, running, words)
            tracer.send_signal(signal.SIGINT)
            tracer.wait(20)
            calls = parse_strace(open(out).read())
            messages = result["total_confirmed"]
            syncs = sum(calls.get(name, 0) for name in SYNCS)
            record.update(calls=sum(calls.values()) / messages, syncs=syncs, messages=messages, why_not="",
                          syncs_per_message=syncs / messages, by_name=calls)
        except (Refused, peers.CannotStart, OSError, subprocess.TimeoutExpired) as why:
            record["why_not"] = f"not counted: {why}"
        finally:
            if tracer and tracer.poll() is None:
                tracer.kill()
                tracer.wait()
            self.release()


def parse_strace(text):
    """Calls by name of the table that `strace -c` writes."""
    calls = {}
    for line in text.splitlines():
        found = re.match(r"\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", line)
        if found and found[2] != "total":
            calls[found[2]] = calls.get(found[2], 0) + int(found[1])
    return calls


def seconds_of(words):
    """The duration among a generator's arguments."""
    text = words[words.index("--duration") + 1]
    return float(text[:-2]) / 1000 if text.endswith("ms") else float(text[:-1])


def last_line(text):
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def install_signals():
    """SIGTERM ends the comparison as Ctrl-C does: everything that was started is stopped."""
    assert threading.current_thread() is threading.main_thread()

    def interrupted(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupted)
    signal.signal(signal.SIGHUP, interrupted)
