"""redis-py against a broker: a queue class, a consumer that waits, and consumers that are killed."""

import os
import signal
import subprocess
import sys
import threading
import time

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

PORT, PROTOCOL = int(sys.argv[1]), int(sys.argv[2])


def connect(**more):
    return redis.Redis(host="127.0.0.1", port=PORT, protocol=PROTOCOL, **more)


class Queue:
    """What programs that use Redis as a queue look like."""

    def __init__(self, name):
        self.name, self.client = name, connect()

    def put(self, *items):
        return self.client.rpush(self.name, *items)

    def get(self):
        return self.client.lpop(self.name)


def wait_for(length, name):
    client = connect()
    began = time.time()
    while client.llen(name) != length:
        assert time.time() - began < 10, (name, client.llen(name), length)
        time.sleep(0.02)


def consumer(script):
    """A consumer in a process of its own, which prints a line when it is ready to be killed."""
    head = f"import redis, socket, sys, time\nr = redis.Redis(host='127.0.0.1', port={PORT}, protocol={PROTOCOL})\n"
    process = subprocess.Popen([sys.executable, "-c", head + script], stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def main():
    r = connect()
    r.delete("jobs", "other", "wait", "kill", "head")
    queue = Queue("jobs")
    assert [queue.put(b"a"), queue.put("b", "c", "d")] == [1, 4]
    assert [queue.get(), queue.get()] == [b"a", b"b"]
    assert r.lpop("jobs", 5) == [b"c", b"d"]
    assert queue.get() is None and r.lpop("jobs", 2) is None
    assert r.rpushx("jobs", "x") == 0
    assert r.rpush("jobs", "1", "2", "3") == 3 and r.rpushx("jobs", "4") == 4
    assert r.lrange("jobs", 0, -1) == [b"1", b"2", b"3", b"4"]
    assert r.lrange("jobs", -2, -1) == [b"3", b"4"] and r.lindex("jobs", 0) == b"1"
    assert r.llen("jobs") == 4 and r.exists("jobs") == 1 and r.type("jobs") == b"list"
    assert r.keys("jo*") == [b"jobs"] and list(r.scan_iter("jo*")) == [b"jobs"]
    assert r.delete("jobs") == 1 and r.exists("jobs") == 0

    # The common job queue: in at the left, out at the right.
    for item in "abc":
        r.lpush("head", item)
    assert [r.brpop("head", timeout=1)[1] for _ in "abc"] == [b"a", b"b", b"c"]

    # A consumer that waits for ever; the client's own timeout may end its connection now and then.
    found = []

    def consume():
        waiting = connect()
        while len(found) < 5:
            try:
                item = waiting.blpop(["wait", "other"], timeout=0)
            except redis.exceptions.TimeoutError:
                continue
            found.append(tuple(item))

    thread = threading.Thread(target=consume)
    thread.start()
    for number in range(5):
        time.sleep(0.05)
        r.rpush("other" if number == 3 else "wait", number)
    thread.join(20)
    assert found == [(b"other" if n == 3 else b"wait", str(n).encode()) for n in range(5)], found
    # Later versions would ask again three times, and wait for seconds between.
    short = connect(socket_timeout=0.3, retry=Retry(NoBackoff(), 0))
    try:
        short.blpop("wait", timeout=0)
        raise AssertionError("nothing is there")
    except redis.exceptions.TimeoutError:
        pass
    r.rpush("wait", "kept")
    assert tuple(r.blpop("wait", timeout=5)) == (b"wait", b"kept")

    # Killed while it waits; nothing that comes then is lost.
    process = consumer("print('ready', flush=True)\nr.blpop('kill', timeout=0)\n")
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    r.rpush("kill", "one")
    assert tuple(r.blpop("kill", timeout=5)) == (b"kill", b"one")
    # Killed before it has read the reply: the message comes again.
    r.rpush("kill", "two")
    process = consumer(
        f"s = socket.create_connection(('127.0.0.1', {PORT}))\n"
        "s.sendall(b'*2\\r\\n$4\\r\\nLPOP\\r\\n$4\\r\\nkill\\r\\n')\n"
        "time.sleep(0.3)\nprint('ready', flush=True)\ntime.sleep(60)\n"
    )
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(1, "kill")
    assert r.lpop("kill") == b"two"
    # Ended in order with the reply read: it was done.
    r.rpush("kill", "three")
    process = consumer("assert r.lpop('kill') == b'three'\nr.close()\nprint('ready', flush=True)\n")
    assert process.wait() == 0
    time.sleep(0.2)
    assert r.llen("kill") == 0

    # Pipelines, with and without MULTI.
    for transaction in (False, True):
        pipe = r.pipeline(transaction=transaction)
        pipe.rpush("jobs", "a", "b").lpop("jobs").llen("jobs").lpop("jobs", 3)
        assert pipe.execute() == [2, b"a", 1, [b"b"]]

    # Publish and subscribe.
    subscriber = connect().pubsub(ignore_subscribe_messages=True)
    subscriber.subscribe("news.eu")
    subscriber.psubscribe("news.*")
    began = time.time()
    while r.publish("news.eu", "hello") == 0:
        assert time.time() - began < 10
        subscriber.get_message(timeout=0.05)
    got = []
    while len(got) < 2:
        assert time.time() - began < 10
        message = subscriber.get_message(timeout=1)
        if message:
            got.append((message["type"], message["data"]))
    assert got == [("message", b"hello"), ("pmessage", b"hello")], got
    subscriber.close()

    # A stream that a group reads.
    r.delete("stream")
    ids = [r.xadd("stream", {"n": n, "body": f"entry {n}"}, maxlen=1000) for n in range(3)]
    assert r.xgroup_create("stream", "group", id="0") and r.xlen("stream") == 3

    def read(consumer, after=">", **more):
        found = r.xreadgroup("group", consumer, {"stream": after}, **more)
        streams = list(found.values()) if isinstance(found, dict) else [s[1] for s in found]
        entries = streams[0] if streams else []
        # Version 3 may bring the entries of a stream in a list of their own.
        return entries[0] if entries and isinstance(entries[0][0], (list, tuple)) else entries

    first = read("one", count=2)
    assert [entry[0] for entry in first] == ids[:2], (first, ids)
    assert dict(first[0][1]) == {b"n": b"0", b"body": b"entry 0"}, first
    assert [entry[0] for entry in read("two", block=100)] == ids[2:]
    assert not read("two", block=10)
    assert r.xack("stream", "group", ids[0]) == 1
    assert r.xpending("stream", "group")["pending"] == 2
    assert [entry[0] for entry in read("one", after="0")] == ids[1:2]
    claimed = r.xautoclaim("stream", "group", "two", min_idle_time=0, start_id="0-0")
    assert [entry[0] for entry in claimed[1]] == ids[1:], claimed
    listed = r.xpending_range("stream", "group", min="-", max="+", count=10)
    assert {entry["consumer"] for entry in listed} == {b"two"}, listed
    assert r.xack("stream", "group", *ids) == 2 and r.xdel("stream", ids[0]) == 1
    assert [entry[0] for entry in r.xrange("stream")] == ids[1:]
    assert r.xgroup_destroy("stream", "group") and r.delete("stream") == 1

    # Several streams that a group reads at once, and a reader that waits for any of them.
    streams = ["first", "second", "third"]
    for name in streams:
        r.delete(name)
        r.xgroup_create(name, "group", id="$", mkstream=True)

    def read_all(consumer, after=">", **more):
        found = r.xreadgroup("group", consumer, {name: after for name in streams}, **more)
        found = found.items() if isinstance(found, dict) else found
        read = {}
        for name, entries in found:
            if entries and isinstance(entries[0], list):
                entries = entries[0]
            read[name.decode()] = [fields[b"n"] for _, fields in entries]
        return read

    for n in range(3):
        r.xadd("third", {"n": n}), r.xadd("first", {"n": n})
    assert read_all("one", count=2) == {"first": [b"0", b"1"], "third": [b"0", b"1"]}
    assert read_all("two") == {"first": [b"2"], "third": [b"2"]} and read_all("two") == {}
    pending = read_all("one", after="0")
    assert pending["first"] == pending["third"] == [b"0", b"1"] and not pending.get("second")
    waited = []
    waiting = threading.Thread(target=lambda: waited.append(read_all("one", block=20000)))
    waiting.start()
    time.sleep(0.1)
    r.xadd("second", {"n": 7})
    waiting.join()
    assert waited == [{"second": [b"7"]}], waited
    assert r.xpending("second", "group")["consumers"] == [{"name": b"one", "pending": 1}]
    r.delete(*streams)

    # What a client looks at.
    assert r.ping() and r.echo("hi") == b"hi" and r.client_id() > 0
    assert r.client_setname("me") and r.client_getname() in (b"me", "me")
    assert r.info()["redis_mode"] == "standalone" and "save" in r.config_get("save")
    assert any(client["name"] == "me" for client in r.client_list())
    try:
        r.set("a", "b")
        raise AssertionError("there is no SET")
    except redis.exceptions.ResponseError as error:
        assert "unknown command" in str(error), error


main()
