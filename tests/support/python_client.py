"""What tests/python_client.rs runs with tools/ringmq.py: `tour ADDR`, and `load ADDR` until stdin says stop."""

import sys
import threading
import time
from collections import Counter
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import ringmq


def raised(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def tour(addr):
    """Every call, against a new broker that keeps its data on disk."""
    client = ringmq.Client(addr)
    client.publish("q 1", b"one\n\0two", pri=3, key="user 7", ttl=60, headers={"kind": "ä b"}, reply="inbox")
    assert client.publish("q 1", ["x", b"", "z\n"])[:3] == (2, 3, "disk")
    assert client.publish("q 1", "late", delay=3600).id == 5
    assert client.publish("q 1", "x", once="mine").duplicate is False
    assert client.publish("q 1", "x", once="mine").duplicate is True
    messages = client.pull("q 1", count=9, wait=5)
    assert [message.body for message in messages] == [b"one\n\0two", b"x", b"", b"z\n", b"x"], messages
    first = messages[0]
    assert (first.source, first.id, first.tries) == ("q%201", 1, 1)
    assert first.fields["key"] == b"user 7" and first.fields["h.kind"] == "ä b".encode()
    assert first.fields["reply"] == b"inbox" and abs(first.published_ms / 1000 - time.time()) < 3600
    assert client.touch(first, lease=60) is True
    assert client.ack(first) is True and client.ack(first) is False
    assert client.nack(messages[1], dead=1, why="no paper") is True
    assert client.nack(messages[2], delay=0) is True
    again = client.pull("q 1", wait=5)[0]
    assert (again.id, again.tries, again.body) == (3, 2, b"")
    for message in [again, *messages[3:]]:
        client.ack(message, wait=False)
    dead = client.pull("nothing,q 1.dead", wait=5, lease=60)[0]
    assert dead.fields["h.dead-why"] == b"no paper"
    assert client.pull("q 1", ack="auto") == [] and client.flush().refused == []
    assert client.ask("PING :x y") == ":x y" and b"set.lease=" in client.ask("QGET q%201")
    assert client.publish(":q", "x").id == 1 and client.pull(":q", ack="auto")[0].id == 1

    assert client.ask("QSET small maxlen=1") == "created"
    for body in ("a", "b", "c"):
        client.publish("small", body, wait=False)
    flushed = client.flush()
    assert flushed.confirmed == 2 and [refused.code for _, refused in flushed.refused] == ["FULL", "FULL"]
    refused = raised(ringmq.Refused, lambda: client.publish("small", "d"))
    assert refused.code == "FULL" and refused.retry > 0 and "FULL" in str(refused)
    assert raised(ringmq.Refused, lambda: client.ask("QGET nowhere")).code == "NOQUEUE"
    raised(ValueError, lambda: client.ask("PULL small"))
    raised(ValueError, lambda: client.publish("small", bytes((1 << 20) + 1)))
    raised(ringmq.Error, lambda: client.receive(0))
    raised(ringmq.Refused, lambda: client.subscribe("small", credit="x"))

    requests(client, addr)
    assert client.ask("QSET again retain=1h") == "created" and client.publish("again", "x").id == 1
    assert client.ack(client.pull("again", wait=5, start="first")[0]) is True
    assert client.ask("SEEK again to=first") == "" and client.pull("again") == [] and client.hidden == 1
    client.forget_settled()
    assert client.ask("SEEK again to=first") == "" and client.pull("again")[0].body == b"x"

    client.subscribe("pushed", credit=2)
    assert client.receive(0) is None
    for number in range(5):
        client.publish("pushed", str(number), wait=False)
    for number in range(5):
        message = client.receive(10)
        assert message.body == b"%d" % number
        client.ack(message, wait=False)
    began = time.monotonic()
    assert client.receive(0.1) is None and time.monotonic() - began >= 0.1
    client.close()
    raised(ringmq.Unreachable, lambda: ringmq.Client("127.0.0.1:1"))


def requests(client, addr):
    """Requests and their answers; another client, on a thread of its own, is who answers."""
    assert client.ask("QSET sums") == "created"
    refused = raised(ringmq.NoConsumer, lambda: client.request("sums", "1+1"))
    assert refused.code == "NOCONSUMER" and isinstance(refused, ringmq.Refused)
    assert raised(ringmq.Refused, lambda: client.request("nowhere", "x")).code == "NOQUEUE"
    raised(ValueError, lambda: client.request("sums", bytes((1 << 20) + 1)))
    raised(ValueError, lambda: client.ask("REQ sums :x"))

    consumer, late = ringmq.Client(addr), []
    consumer.subscribe("sums")
    began = time.monotonic()
    refused = raised(ringmq.NoAnswer, lambda: client.request("sums", "slow", timeout=0.2))
    assert refused.code == "TIMEOUT" and time.monotonic() - began >= 0.2

    def answer():
        while (message := consumer.receive(10)).body != b"end":
            consumer.reply(message, b"the answer to\0\n" + message.body)
            assert consumer.ack(message) is True
            late.append(raised(ringmq.Refused, lambda: consumer.reply(message, "again")).code)
        consumer.reply(message, "")
        consumer.close()

    # Nobody waits for the answer to the one whose time was up; it went with its time.
    assert consumer.receive(10).body == b"slow"
    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    for number in range(20):
        client.publish("beside", str(number), wait=False)
        answered = client.request("sums", f"{number} ä", timeout=30)
        assert answered.body == b"the answer to\0\n" + f"{number} ä".encode(), answered.body
        assert answered.handle is None and client.ack(answered) is True
    assert client.request("sums", b"end", timeout=30).body == b""
    thread.join(10)
    assert late == ["STALE"] * 20 and client.flush().refused == []
    raised(ringmq.NoConsumer, lambda: client.request("sums", "x"))


def load(addr):
    """Publishes numbers and consumes them, each with a client of its own, and tells how far it is. At the end it
    compares: nothing lost, nothing twice."""
    at, told_to_stop, seen, ids, results = {"published": 0, "seen": 0}, threading.Event(), Counter(), {}, {}

    def publish():
        with_window = ringmq.Client(addr, window=32)
        count = 0
        while not told_to_stop.is_set():
            for _ in range(25):
                with_window.publish("load", str(count), wait=False)
                count += 1
            flushed = with_window.flush()
            assert flushed.confirmed == 25 and not flushed.refused, flushed
            results["duplicates"] = results.get("duplicates", 0) + flushed.duplicates
            at["published"] = count
            # A backlog would only make the end longer.
            while count > at["seen"] + 500 and not told_to_stop.is_set():
                time.sleep(0.001)
        with_window.publish("load", "end")

    def consume():
        client = ringmq.Client(addr)
        client.subscribe("load", credit=50)
        is_end = False
        while (message := client.receive(0.5 if is_end else 30)) is not None:
            seen[message.body] += 1
            ids.setdefault(message.body, set()).add(message.id)
            is_end = is_end or message.body == b"end"
            at["seen"] += 1
            client.ack(message, wait=at["seen"] % 8 == 0)
        client.flush()
        assert client.ask("QGET load").startswith(b"ready=0\nleased=0\n"), client.ask("QGET load")
        results["hidden"] = client.hidden

    def guarded(work):
        def run():
            try:
                work()
            except BaseException as error:
                print(f"failed: {work.__name__}: {error!r}", flush=True)
                raise
        return threading.Thread(target=run, daemon=True)

    threads = [guarded(publish), guarded(consume)]
    for thread in threads:
        thread.start()
    threading.Thread(target=lambda: (sys.stdin.readline(), told_to_stop.set()), daemon=True).start()
    while any(thread.is_alive() for thread in threads):
        print("at", at["published"], at["seen"], flush=True)
        time.sleep(0.005)
    lost = [number for number in range(at["published"]) if str(number).encode() not in seen]
    stored_twice = [body for body, known in ids.items() if len(known) > 1]
    shown_twice = [body for body, count in seen.items() if count > 1]
    print("end", at["published"], len(seen) - 1, results.get("duplicates"), results.get("hidden"), flush=True)
    assert not lost, f"lost: {lost}"
    assert not stored_twice, f"stored twice: {stored_twice}"
    assert not shown_twice, f"shown twice: {shown_twice}"


{"tour": tour, "load": load}[sys.argv[1]](sys.argv[2])
