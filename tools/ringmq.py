"""A RingMQ client in one file, with nothing but the standard library. Copy it beside your program.

    client = ringmq.Client("127.0.0.1:7766")
    client.publish("jobs", b"Hello, world")
    for message in client.pull("jobs", wait=10):
        print(message.body)
        client.ack(message)

It is blocking and pipelined and hides restarts of the broker: what has no receipt is sent again over the
next connection and stored once (`once=`, so the queue's `dedup` window must be longer than the outage),
subscriptions are renewed, and a message whose ack was lost is acked again and not shown, as long as this
client lives. One client is one connection and belongs to one thread. Times are seconds."""
import random
import selectors
import socket
import time
from collections import OrderedDict, deque, namedtuple
from urllib.parse import quote, unquote_to_bytes

BACKOFF = (0.01, 1.0)  # First and longest wait between two attempts to connect.
TICK = 0.5  # Longest single wait for bytes.
IDLE = 10.0  # Longest silence: a longer pull is several, and a subscription asks whether the broker is there.
FLUSH_BYTES = 16 << 10  # Output is sent when it has so many bytes, or when an answer is waited for.
KINDS = {"OK", "ERR", "MSG", "END", "PONG", "DATA", "LAG", "EXPIRED"}

Receipt = namedtuple("Receipt", "id count level duplicate")
Flushed = namedtuple("Flushed", "confirmed duplicates refused")
_Reply = namedtuple("_Reply", "kind tag words options rest body")
_LOST = _Reply("LOST", None, [], {}, "", b"")

class Error(Exception): """Anything that goes wrong here."""
class Unreachable(Error): """No connection, or none that lasted. What has no receipt is sent by a later call."""
class Lost(Error): """The connection broke before the answer: whether the command was run is unknown."""
class Refused(Error):
    """The broker answered ERR. `code` is for programs; `retry` says in how many seconds it may be better."""
    def __init__(self, reply):
        self.code, self.text = reply.words[0] if reply.words else reply.kind, reply.rest.partition(" :")[2]
        self.retry = int(reply.options["retry"]) / 1000 if "retry" in reply.options else None
        super().__init__(f"{self.text} ({self.code})")

class NoConsumer(Refused): """Nobody could answer a request."""
class NoAnswer(Refused): """Nobody answered a request in time; it may have been worked on."""

class Message:
    """One delivery: `body` (bytes), `source`, `id` in its queue, `handle` (None: nothing to settle), `tries`
    (1 at first), `published_ms`, and every option of its line in `fields` (bytes), as `fields["h.name"]`."""
    def __init__(self, reply):
        self.source, self.handle, self.body = reply.words[0], reply.words[1].strip("-") or None, reply.body
        self.fields = {key: unquote_to_bytes(value) for key, value in reply.options.items()}
        self.id = int(self.handle.split(".")[1]) if self.handle else int(self.fields.get("id", 0))
        self.tries, self.published_ms = int(self.fields.get("try", 1)), int(self.fields.get("ts", 0))
        # The time of its publish tells it from one with the same id in a queue that was made anew.
        self._key = (self.source, self.id, self.published_ms)

def _name(name):
    """A queue's name as the protocol types it: odd octets become %XX, so does a leading : or @."""
    return {":": "%3A", "@": "%40"}.get(name[:1], quote(name[:1], safe="+")) + quote(name[1:], safe=":@+")

def _sources(sources):
    return ",".join("/".join(map(_name, source.split("/", 1))) for source in sources.split(","))

def _value(value):
    return quote(value if isinstance(value, bytes) else str(value), safe="!\"#$&'()*+,/:;<=>?@[\\]^`{|}~")

def _options(durations=("delay", "ttl", "lease", "wait", "timeout"), **options):
    """Options of a command; those that are None are left out."""
    def typed(key, value):
        return f"{round(value * 1_000_000)}us" if key in durations else _value(value)
    return "".join(f" {key}={typed(key, value)}" for key, value in options.items() if value is not None)

def _expect(reply, *kinds):
    """The reply, which is to be of one of these kinds."""
    if reply.kind in kinds:
        return reply
    if reply is _LOST:
        raise Lost("the connection broke before the answer")
    raise {"NOCONSUMER": NoConsumer, "TIMEOUT": NoAnswer}.get("".join(reply.words[:1]), Refused)(reply)

def _receipt(reply):
    first, *count, level = _expect(reply, "OK").words
    return Receipt(int(first), int(*count or (1,)), level, "dup" in reply.options)

class Client:
    """A connection that comes back by itself. Raises Unreachable at once if nobody listens when it is made.
    `window`, `window_bytes`: most publishes without a receipt. `answer_timeout`: longest silence that is owed an
    answer. `give_up_after`: longest look for a broker that has gone. `remembered`: how many settled messages."""
    def __init__(self, addr="127.0.0.1:7766", *, name=None, window=1000, window_bytes=8 << 20,
                 answer_timeout=30.0, give_up_after=60.0, remembered=65536):
        self.addr, self.name, self.remembered, self.window, self.window_bytes = addr, name, remembered, window, window_bytes
        self.answer_timeout, self.give_up_after = answer_timeout, give_up_after
        self.hidden = 0  # Redeliveries that were acked again and not shown.
        self._id = f"p{random.SystemRandom().getrandbits(64):016x}"  # No other client or run uses the same ids.
        self._numbers = iter(range(1, 1 << 62))  # Of commands.
        self._sock = self._limits = self._awaited = self._answer = None
        self._outage = (float("-inf"), 0, 0)  # Since when, failures, when to try again.
        self._unconfirmed, self._unconfirmed_bytes = OrderedDict(), 0  # Number to command, in order.
        self._pending = deque()  # What the next answers belong to: number, kind, wait.
        self._subscriptions, self._flushed = {}, Flushed(0, 0, [])  # Tag to command.
        self._arrived, self._pulled, self._ended, self._settled = deque(), [], deque(), OrderedDict()
        while self._limits is None:  # The first failure is one failure too many.
            self._step(TICK)
        self._outage = None

    def publish(self, queue, body, wait=True, headers={}, **options):
        """Publishes; a list of bodies is a batch, stored as a whole or not at all. Waits for its Receipt; with
        wait=False only until the window has room, and returns its number: it leaves at the latest with the next
        call that waits, or `send`, and `flush` waits for the receipt. Options: delay, ttl (seconds), pri, key,
        reply, sync, at, once (an id of yours), headers (a dict). Raises Refused, Unreachable, ValueError."""
        if len(self._flushed.refused) >= self.window:
            raise self._flushed.refused[0][1]
        number, part = next(self._numbers), 1
        options = {"once": f"{self._id}-{number}", **options, **{f"h.{key}": headers[key] for key in headers}}
        verb = "MPUB" if isinstance(body, list) else "PUB"
        command = self._counted(f"{verb} {_name(queue)}{_options(**options)}", body)
        while self._unconfirmed and (len(self._unconfirmed) * part >= self.window or part *
                                     (self._unconfirmed_bytes + len(command)) > self.window_bytes):
            self._step(TICK)
            part = 2  # Until half of it is free, so that many leave at once.
        self._unconfirmed[number] = command
        self._unconfirmed_bytes += len(command)
        if self._sock:
            self._issue(number, "publish", command)
            if len(self._output) >= FLUSH_BYTES:
                self.send()
        return _receipt(self._wait_for(number)) if wait else number

    def flush(self):
        """Waits for all receipts and answers: Flushed, its `refused` pairs of number and Refused. Raises Unreachable."""
        while self._unconfirmed or any(kind == "command" for _, kind, _ in self._pending):
            self._step(TICK)
        flushed, self._flushed = self._flushed, Flushed(0, 0, [])
        return flushed

    def send(self):
        """Sends what was collected, as far as the broker takes it at once."""
        try:
            return self._sock and self._pump(0)
        except OSError:
            self._broke()

    def pull(self, source, count=1, wait=0.0, lease=None, ack=None, start=None):
        """Takes up to `count` messages of a queue (or several, `"urgent,jobs"`); `ack="auto"`: nothing to
        settle. Takes longer than `wait` while the broker is away. Raises Refused, Unreachable."""
        end = time.monotonic() + wait
        command = f"PULL {_sources(source)} {count} ts=1" + _options(lease=lease, ack=ack, **{"from": start})
        while True:
            left = max(0.0, end - time.monotonic())
            step = min(left, IDLE)
            reply = self._ask(command + _options(wait=step), step)
            if reply.words[:1] == ["DRAINING"]:
                time.sleep(TICK)
                continue
            messages, self._pulled = list(filter(self._is_new, self._pulled)), []
            if messages or (_expect(reply, "END", "LOST").words == ["0"] and step == left):
                return messages

    def subscribe(self, source, credit=None, lease=None, ack=None, start=None):
        """Has messages sent as they come, at most `credit` unacked; `receive` gives them. Raises as `pull`."""
        number = next(self._numbers)
        options = _options(credit=credit, lease=lease, ack=ack, **{"from": start})
        self._subscriptions[f"s{number}"] = f"@s{number} SUB {_sources(source)} ts=1{options}\n".encode()
        self._output += self._subscriptions[f"s{number}"]  # Without a connection it is said by the next.
        try:
            _expect(self._wait_for(number), "OK")
        except Error:
            del self._subscriptions[f"s{number}"]
            raise

    def receive(self, wait):
        """The next message of the subscriptions, None when none has come for so long. Raises Unreachable,
        and Error when a subscription has ended by itself, or there is none."""
        end, happened = time.monotonic() + wait, True
        while happened or time.monotonic() < end:
            while self._arrived:
                if self._is_new(message := self._arrived.popleft()):
                    return message
            if self._ended or not self._subscriptions:
                raise self._ended.popleft() if self._ended else Error("nothing is subscribed to")
            happened = self._step(max(0.0, end - time.monotonic()))
        return None

    def ack(self, message, wait=True):
        """Is done with a message: True when the broker has confirmed it. False: the lease had ended or the
        connection broke; should it come again it is acked and not shown. wait=False only sends the ack."""
        self._settled[message._key] = None
        if len(self._settled) > self.remembered:
            self._settled.popitem(last=False)
        if wait:
            return self._settle("ACK", message)
        if self._sock and message.handle:
            self._issue(next(self._numbers), "command", f"ACK {message.handle}\n".encode())
            self.send()
        return False

    def nack(self, message, delay=None, dead=None, why=None):
        """Gives a message back: True when the broker has confirmed it. `dead=1`: to the dead letters."""
        return self._settle("NACK", message, delay=delay, dead=dead, why=why)

    def touch(self, message, lease=None):
        """Makes the lease begin anew: True when the broker has confirmed it."""
        return self._settle("TOUCH", message, lease=lease)

    def _settle(self, verb, message, **options):
        if not message.handle or not self._sock:
            return not message.handle
        reply = self._ask(f"{verb} {message.handle}{_options(**options)}")
        if reply.kind == "ERR" and reply.words[0] != "UNKNOWNRESULT":
            raise Refused(reply)
        return reply.kind == "OK" and "stale" not in reply.options

    def ask(self, line):
        """Any other command of one line and one answer, as in "QSET jobs maxlen=1000": what follows OK or PONG,
        or the bytes of DATA. It is sent once. Raises Refused, Lost, Unreachable."""
        verb = line.split(" ")[0].upper()
        if "\n" in line or not verb.isalpha() or verb in ("SUB", "PULL", "POP", "PEEK", "REQ"):
            raise ValueError(f"{line!r} is not one command with one answer")
        reply = _expect(self._ask(line), "OK", "PONG", "DATA")
        return reply.body if reply.kind == "DATA" else reply.rest

    def request(self, queue, body, timeout=2.0):
        """Asks the consumers of a queue and waits for one answer, a Message. Sent once, as asking again may do
        harm. Raises NoConsumer, NoAnswer, Refused, Lost, Unreachable, ValueError."""
        _expect(self._ask(f"REQ {_name(queue)}{_options(timeout=timeout)}", timeout, body), "END")
        return self._pulled.pop()

    def reply(self, request, body):
        """Answers a message that asks, which has `fields["reply"]`; ack it too. Raises Refused (code STALE when
        nobody waits for the answer any more), Lost, Unreachable, ValueError."""
        _expect(self._ask(f"REP {_value(request.fields['reply'])}", body=body), "OK")

    def forget_settled(self):
        """Has messages that come again shown, to be said before a SEEK that goes back."""
        self._settled.clear()

    def close(self):
        """Ends the connection. What is leased comes back; what has no receipt is unknown."""
        if self._sock:
            self._selector.close()
            self._sock = self._sock.close()

    def _counted(self, line, body):
        is_batch = isinstance(body, list)
        bodies = [one.encode() if isinstance(one, str) else one for one in (body if is_batch else [body])]
        body = b"".join(b"%d\n%s\n" % (len(one), one) for one in bodies) if is_batch else bodies[0]
        line, most = f"{line} ${len(body)}\n", "max_batch_bytes" if is_batch else "max_body"
        # What a broker closes the connection for would be sent again for ever.
        if len(body) > int(self._limits[most]) or len(line) > int(self._limits["max_line"]) or "\n" in line[:-1]:
            raise ValueError(f"more than the {most} or max_line of {self._limits}")
        return line.encode() + body + b"\n"

    def _is_new(self, message):
        if message._key not in self._settled:
            return True
        self.hidden += 1
        return self.ack(message, wait=False)

    def _ask(self, line, wait=0.0, body=None):
        while not self._sock:
            self._step(TICK)
        command = line.encode() + b"\n" if body is None else self._counted(line, body)
        return self._wait_for(self._issue(next(self._numbers), "command", command, wait))

    def _wait_for(self, number):
        self._awaited = number
        while self._answer is None:
            self._step(TICK)
        answer, self._answer, self._awaited = self._answer, None, None
        return answer

    def _issue(self, number, kind, command, wait=0.0):
        self._output += command
        if not self._pending:
            self._heard = time.monotonic()
        self._pending.append((number, kind, wait))
        return number

    def _connect(self):
        host, _, port = self.addr.rpartition(":")
        sock = socket.create_connection((host.strip("[]"), int(port)), timeout=5)
        # While nobody listens on a port, a socket can meet itself there.
        if sock.getsockname() == sock.getpeername():
            sock.close()
            raise ConnectionRefusedError(f"nobody listens at {self.addr}")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(sock, selectors.EVENT_READ)
        self._sock, self._output, self._input, self._start = sock, bytearray(), bytearray(), 0
        self._issue(0, "hello", f"HELLO 1{_options(name=self.name)}\n".encode())
        self._output += b"".join(self._subscriptions.values())
        for number, command in self._unconfirmed.items():
            self._issue(number, "publish", command)

    def _broke(self):
        """What was waited for is lost, but for publishes and subscriptions, which are said again."""
        self.close()
        # The leases ended with the connection; what has no handle was settled before it was sent.
        self._pulled, self._arrived = [], deque(message for message in self._arrived if not message.handle)
        if any(kind == "command" and number == self._awaited for number, kind, _ in self._pending):
            self._answer = _LOST
        self._pending.clear()
        now = time.monotonic()
        since, failures, _ = self._outage or (now, 0, now)
        wait = min(BACKOFF[0] * 2 ** min(failures - 1, 16), BACKOFF[1]) if failures else 0
        self._outage = (since, failures + 1, now + wait * random.uniform(0.5, 1))

    def _step(self, wait):
        """Takes a reply, or moves bytes, or connects; waits at most so long. True if something happened."""
        try:
            now = time.monotonic()
            if not self._sock:
                left = max(0.0, self._outage[2] - now) if self._outage else 0.0
                time.sleep(min(left, wait))
                return left <= wait and not self._connect()
            if reply := self._parse():
                self._take(reply)
                return True
            if not self._pending and self._subscriptions and now - self._heard > IDLE:
                self._issue(0, "ping", b"PING\n")
            happened = self._pump(min(wait, TICK))
            if not happened and self._pending and now - self._heard > self.answer_timeout + self._pending[0][2]:
                raise TimeoutError("it owes an answer and says nothing")
            return happened
        except (OSError, Error, LookupError, ValueError) as error:
            self._broke()
            if time.monotonic() - self._outage[0] <= self.give_up_after:
                return True
            self._outage = self._awaited = self._answer = None  # The next call begins anew.
            raise Unreachable(f"the broker at {self.addr} is away: {error}") from error

    def _pump(self, wait):
        """Moves what can be moved, in both directions: a broker whose output nobody reads takes nothing."""
        write = selectors.EVENT_WRITE if self._output else 0
        self._selector.modify(self._sock, selectors.EVENT_READ | write)
        events = sum(mask for _, mask in self._selector.select(wait))
        if events & selectors.EVENT_WRITE:
            del self._output[:self._sock.send(self._output)]
        if events & selectors.EVENT_READ:
            read = self._sock.recv(1 << 16)
            if not read:
                raise ConnectionError("the broker closed the connection")
            self._input = self._input[self._start:] + read
            self._start, self._heard = 0, time.monotonic()
        return events != 0

    def _parse(self):
        end = self._input.find(b"\n", self._start)
        if end < 0:
            return None
        line = self._input[self._start:end].decode("utf-8", "replace")
        kind, _, rest = line.partition(" ")
        if kind not in KINDS:
            raise Error(f"{self.addr} is not a RingMQ broker: it said {line[:80]!r}")
        words = rest.partition(" :")[0].split(" ")
        tag = words.pop(0)[1:] if words[0].startswith("@") else None
        options = dict(word.split("=", 1) for word in words if "=" in word)
        words = [word for word in words if "=" not in word]
        size = int(words[-1][1:]) + 1 if kind in ("MSG", "DATA") else 0
        if len(self._input) <= end + size:
            return None
        self._start = end + 1 + size
        return _Reply(kind, tag, words, options, rest, bytes(self._input[end + 1:end + size]))

    def _take(self, reply):
        if reply.tag is not None:
            self._take_tagged(reply)
        elif reply.kind == "MSG":
            self._pulled.append(Message(reply))
        elif reply.kind not in ("LAG", "EXPIRED"):
            number, kind, _ = self._pending.popleft()
            if kind == "hello":
                self._limits = _expect(reply, "OK").options
                return  # An outage ends with an answer to something else.
            if kind == "publish":
                self._take_receipt(number, reply)
            if number == self._awaited:
                self._answer = reply
        self._outage = None

    def _take_tagged(self, reply):
        if reply.kind == "MSG":
            self._arrived.append(Message(reply))
        elif reply.words[:1] == ["DRAINING"]:
            raise ConnectionError("the broker goes down")  # It will be back.
        elif reply.tag == f"s{self._awaited}":
            self._answer = reply
        elif reply.kind != "OK" and reply.options.get("gone") != "drain":  # A drained one is renewed.
            self._subscriptions.pop(reply.tag, None)
            self._ended.append(Error(f"a subscription has ended: {reply.rest}"))

    def _take_receipt(self, number, reply):
        confirmed, duplicates, refused = self._flushed
        if reply.kind == "OK":
            self._flushed = Flushed(confirmed + 1, duplicates + _receipt(reply).duplicate, refused)
        elif reply.words[0] in ("UNKNOWNRESULT", "DRAINING"):
            raise Refused(reply)  # It is sent again over the next connection.
        elif number != self._awaited:
            refused.append((number, Refused(reply)))
        self._unconfirmed_bytes -= len(self._unconfirmed.pop(number))
