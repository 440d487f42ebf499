"""The servers: how each is found, started on loopback with its data in a scratch folder, reached by
the generator, and what it promises for the work."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

STARTED_WITHIN_S = 60
STOPPED_WITHIN_S = 10
HOST = "127.0.0.1"


class CannotStart(Exception):
    """A server did not come up; the text has its last words."""


def free_port():
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


class Peer:
    """One kind of server. `start` gives a running one."""

    name = ""
    program = ""  # looked for on PATH
    option = ""  # of `ringmq bench`, followed by the address
    durable = None  # how it syncs every publish; None = it cannot
    takes_fanout = stores = True
    lives_long = False  # too slow a start to be started for each run

    def __init__(self, ringmq):
        self.ringmq = ringmq

    def path(self):
        """The program, or None when it is not installed."""
        return shutil.which(self.program)

    def argv(self, port, data, durable):
        """The command line."""
        raise NotImplementedError

    def environment(self, port, data):
        """What is added to the environment."""
        return {}

    def hello(self):
        """What is sent to a new connection so that it answers; empty when it speaks first."""
        return b""

    def bench(self, point, durable):
        """Arguments of `ringmq bench` that only this server needs."""
        return []

    def weaker(self, work):
        """What its promise lacks for this work against: receipt, stored until acked, ack."""
        return ""

    def does(self, point):
        """Whether it can do this work at all."""
        if point.only and self.name.split(" ")[0] not in point.only:
            return False
        return not (
            (point.work == "fanout" and not self.takes_fanout)
            or (point.work in ("drain", "depth") and not self.stores)
            or (point.work == "durable" and self.durable is None)
        )

    def start(self, scratch, durable=False):
        """A running server that has answered once."""
        return Running(self, scratch, durable)


class Running:
    """A server that runs, by pid. Use as a context."""

    def __init__(self, peer, scratch, durable):
        self.peer, self.durable = peer, durable
        self.data = Path(scratch) / f"{peer.name.split(' ')[0]}-{time.monotonic_ns()}"
        self.data.mkdir(parents=True)
        self.port = free_port()
        self.processes = []
        self.argv = peer.argv(self.port, self.data, durable)
        environment = {**os.environ, **peer.environment(self.port, self.data)}
        self.log = self.data.with_suffix(".log")
        began = time.perf_counter()
        try:
            self.helpers(environment)
            self.main = self.spawn(self.argv, environment)
            self.await_answer(began)
        except BaseException:
            self.stop()
            raise
        self.pid = self.main.pid
        self.start_ms = (time.perf_counter() - began) * 1e3

    def helpers(self, environment):
        for argv in getattr(self.peer, "helpers", lambda _: [])(environment):
            self.spawn(argv, environment)

    def spawn(self, argv, environment):
        with open(self.log, "ab") as log:
            # A session of its own: Ctrl-C is ours to act on.
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                       env=environment, cwd=self.data, start_new_session=True)
        self.processes.append(process)
        return process

    def await_answer(self, began):
        """Until a connection was accepted and answered. Which is first accepted may be ended by a server that is not ready."""
        self.connected_ms = None
        while True:
            try:
                with socket.create_connection((HOST, self.port), timeout=20) as stream:
                    self.connected_ms = self.connected_ms or (time.perf_counter() - began) * 1e3
                    hello = self.peer.hello()
                    if hello:
                        stream.sendall(hello)
                    if stream.recv(1):
                        return
            except OSError:
                pass
            if self.main.poll() is not None or time.perf_counter() - began > STARTED_WITHIN_S:
                last = self.log.read_text(errors="replace")[-2000:]
                raise CannotStart(f"{self.peer.name} does not start: {' '.join(self.argv)}\n{last}")
            time.sleep(0.0002 if time.perf_counter() - began < 0.2 else 0.02)

    @property
    def addr(self):
        return f"{HOST}:{self.port}"

    def pause(self):
        """Takes no CPU until `resume`, while others are measured."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self):
        """Goes on."""
        if self.main.poll() is None:
            os.kill(self.pid, signal.SIGCONT)

    def stop(self):
        """Ends every process that was started, by pid, and removes the data."""
        if self.peer.lives_long and hasattr(self, "pid"):
            self.resume()
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(STOPPED_WITHIN_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        shutil.rmtree(self.data, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Forwarder(Peer):
    name, option = "forwarder", "--frames"
    durable = "nothing is written: the way there and back alone"

    def path(self):
        return self.ringmq

    def argv(self, port, data, durable):
        return [self.ringmq, "bench", "forwarder", "--addr", f"{HOST}:{port}"]

    def hello(self):
        return b"RQFRAMESp\0\0\0\x10\0\0\0"

    def version(self):
        return version_of([self.ringmq, "--version"]) + " (bench forwarder)"

    def weaker(self, work):
        return "no broker: passes bytes on, stores and checks nothing"


class Ringmq(Peer):
    name, option = "ringmq", "--addr"
    durable = "durable=disk: fdatasync before the receipt"

    def path(self):
        return self.ringmq

    def argv(self, port, data, durable):
        return [self.ringmq, "serve", "--listen", f"{HOST}:{port}", "--data", str(data / "data"), "--log-level", "warn"]

    def hello(self):
        return b"PING\n"

    def bench(self, point, durable):
        words = ["--durable", "disk" if durable else "none"]
        return (words if point.work != "fanout" else []) + (["--consume", "sub"] if point.work == "drain" else [])

    def version(self):
        return version_of([self.ringmq, "--version"])

    def weaker(self, work):
        return "at most once: live copies, nothing stored" if work == "fanout" else ""


class RingmqPull(Ringmq):
    name = "ringmq PULL"

    def bench(self, point, durable):
        return ["--durable", "none", "--consume", "pull", "--pull-batch", str(min(100, point.window))]


class RingmqQuiet(Ringmq):
    name = "ringmq ACK!"

    def bench(self, point, durable):
        return [*super().bench(point, durable), "--quiet-acks"]

    def weaker(self, work):
        return "acks are answered only when they fail"


class Redis(Peer):
    name, program, option = "redis", "redis-server", "--redis"
    durable = "appendfsync always: fdatasync once a turn, before the replies"

    def argv(self, port, data, durable):
        save = ["--appendonly", "yes", "--appendfsync", "always"] if durable else ["--appendonly", "no"]
        return [self.path(), "--port", str(port), "--bind", HOST, "--save", "", "--daemonize", "no",
                "--maxclients", "15000", "--dir", str(data), *save]

    def hello(self):
        return b"PING\r\n"

    def version(self):
        return version_of([self.path(), "--version"])

    def weaker(self, work):
        return {
            "fanout": "at most once: pub/sub, nothing stored",
            "publish": "", "durable": "", "idle": "", "start": "", "depth": "",
        }.get(work, "no ack: what is popped is gone, also if the consumer fails")


class RedisPopMany(Redis):
    name = "redis pop n"

    def bench(self, point, durable):
        return ["--pull-batch", str(min(100, point.window))]


class RedisStreams(Redis):
    name, option = "redis streams", "--redis-streams"

    def bench(self, point, durable):
        return ["--pull-batch", str(min(100, point.window))] if point.work in ("e2e", "rate", "drain") else []

    def weaker(self, work):
        return "what was acked stays in the stream, and in memory" if work in ("e2e", "rate", "drain") else ""


class Nats(Peer):
    name, program, option = "nats", "nats-server", "--nats"
    stores = False

    def argv(self, port, data, durable):
        self.monitor = free_port()
        return [self.path(), "-a", HOST, "-p", str(port), "-m", str(self.monitor)]

    def version(self):
        return version_of([self.path(), "--version"])

    def weaker(self, work):
        if work == "publish":
            return "no receipt, nothing stored: a PING after those that left together shows they were read"
        return "no receipt, no ack, nothing stored: at most once" if work not in ("idle", "start") else ""


class Beanstalkd(Peer):
    name, program, option = "beanstalkd", "beanstalkd", "--beanstalkd"
    takes_fanout = False
    durable = "-b -f0: fsync for every write"

    def argv(self, port, data, durable):
        log = ["-b", str(data), "-f0"] if durable else []
        return [self.path(), "-l", HOST, "-p", str(port), "-z", str(4 << 20), *log]

    def hello(self):
        return b"list-tube-used\r\n"

    def version(self):
        return version_of([self.path(), "-v"])


class Rabbitmq(Peer):
    name, program, option = "rabbitmq", "rabbitmq-server", "--amqp"
    durable = "durable queue, persistent messages: written, and synced at intervals, before the confirm"
    lives_long = True

    def path(self):
        # The wrapper on PATH insists on its own user and folders.
        found = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
        return str(found) if shutil.which("rabbitmq-server") and found.exists() and shutil.which("epmd") else None

    def argv(self, port, data, durable):
        return [self.path()]

    def environment(self, port, data):
        self.epmd_port = free_port()
        folders = {"BASE": "", "MNESIA_BASE": "mnesia", "LOG_BASE": "log", "PID_FILE": "pid", "CONFIG_FILE": "none",
                   "GENERATED_CONFIG_DIR": "conf", "ENABLED_PLUGINS_FILE": "plugins"}
        return {
            "HOME": str(data), "ERL_EPMD_PORT": str(self.epmd_port), "ERL_EPMD_ADDRESS": HOST,
            "RABBITMQ_NODENAME": "compare@localhost", "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_NODE_IP_ADDRESS": HOST, "RABBITMQ_DIST_PORT": str(free_port()),
            **{f"RABBITMQ_{key}": str(data / value) for key, value in folders.items()},
        }

    def helpers(self, environment):
        return [[shutil.which("epmd"), "-port", str(self.epmd_port), "-address", HOST]]

    def hello(self):
        return b"AMQP\0\0\x09\x01"

    def start(self, scratch, durable=False):
        running = Running(self, scratch, durable)
        # The shell script has become the virtual machine; its own word is the safe one.
        running.pid = int((running.data / "pid").read_text())
        return running

    def bench(self, point, durable):
        return ["--durable", "disk"] if durable else []

    def version(self):
        for folder in Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*"):
            return f"rabbitmq-server {folder.name.split('-', 1)[1]}"
        return "rabbitmq-server"

    def weaker(self, work):
        if work == "fanout":
            return "at most once: no acks, queues of the connections"
        return "acks are not answered" if work in ("e2e", "rate", "drain") else ""


def version_of(argv):
    """The first line that a program says of itself."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0] if lines else "unknown"


KINDS = [Forwarder, Ringmq, Redis, Nats, Beanstalkd, Rabbitmq]
VARIANTS = [RingmqPull, RingmqQuiet, RedisPopMany, RedisStreams]
