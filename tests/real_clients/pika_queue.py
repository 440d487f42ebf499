"""Producers and consumers with pika, as a work queue has them: durable, persistent, one message at a time.

pika_queue.py PORT [BROKER_PID RESTART...]: with a broker's pid it is killed in the middle, and the rest of the
arguments is the command that starts it again on the same port and data.
"""

import os
import signal
import subprocess
import sys
import threading
import time

import pika

PORT = int(sys.argv[1])
PERSISTENT = pika.BasicProperties(delivery_mode=2)


def connect(port=PORT):
    for _ in range(100):
        try:
            return pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", port))
        except pika.exceptions.AMQPConnectionError:
            time.sleep(0.1)
    raise SystemExit("the broker cannot be reached")


def publish(bodies):
    connection = connect()
    channel = connection.channel()
    channel.queue_declare("task_queue", durable=True)
    for body in bodies:
        channel.basic_publish("", "task_queue", body.encode(), PERSISTENT)
    connection.close()


def worker(port, name, seconds, log):
    """A process of its own: works on each message for so long, and writes what it does."""
    connection = connect(port)
    channel = connection.channel()
    channel.queue_declare("task_queue", durable=True)

    def work(channel, method, properties, body):
        with open(log, "a") as out:
            out.write(f"begin {name} {body.decode()} {int(method.redelivered)}\n")
        time.sleep(seconds)
        with open(log, "a") as out:
            out.write(f"end {name} {body.decode()}\n")
        channel.basic_ack(method.delivery_tag)

    channel.basic_qos(prefetch_count=1)
    channel.basic_consume("task_queue", work)
    channel.start_consuming()


def start_worker(name, seconds, log):
    return subprocess.Popen([sys.executable, __file__, str(PORT), "worker", name, str(seconds), log])


def lines(log):
    try:
        with open(log) as read:
            return [line.split() for line in read]
    except FileNotFoundError:
        return []


def wait_for(what, done, seconds=30):
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise SystemExit(f"waited for {what} in vain")
        time.sleep(0.02)


def ended(log):
    return {line[2] for line in lines(log) if line[0] == "end"}


def two_speeds(folder):
    log = os.path.join(folder, "speeds")
    slow, quick = start_worker("slow", 1.0, log), start_worker("quick", 0.01, log)
    try:
        wait_for("two consumers", lambda: consumers() == 2)
        publish(str(nth) for nth in range(30))
        wait_for("all messages", lambda: len(ended(log)) == 30)
        held = 0
        for line in lines(log):
            if line[1] == "slow":
                held += 1 if line[0] == "begin" else -1
                assert held <= 1, "the slow one never holds a second message"
        by_slow = [line for line in lines(log) if line[:2] == ["end", "slow"]]
        assert 1 <= len(by_slow) <= 5, by_slow
        # Killed in the middle of a message: the other gets it.
        before = len(lines(log))
        publish(["killed-1", "killed-2"])
        wait_for("a message of the slow one", lambda: any(
            line[0] == "begin" and line[1] == "slow" for line in lines(log)[before:]))
        slow.kill()
        wait_for("what it held", lambda: {"killed-1", "killed-2"} <= ended(log))
        again = [line for line in lines(log) if line[0] == "begin" and line[3] == "1"]
        assert len(again) == 1 and again[0][1] == "quick", again
    finally:
        slow.kill()
        quick.kill()
        slow.wait()
        quick.wait()


def consumers():
    connection = connect()
    channel = connection.channel()
    found = channel.queue_declare("task_queue", durable=True).method.consumer_count
    connection.close()
    return found


def take_all():
    connection = connect()
    channel = connection.channel()
    channel.queue_declare("task_queue", durable=True)
    taken = []
    for method, _, body in channel.consume("task_queue", inactivity_timeout=0.5):
        if method is None:
            break
        taken.append(body.decode())
        channel.basic_ack(method.delivery_tag)
    connection.close()
    return taken


def killed(pid, restart):
    """Whatever was confirmed, or published before an answer that was read, is there after a kill."""
    safe = []
    publish(f"closed-{nth}" for nth in range(200))
    safe += [f"closed-{nth}" for nth in range(200)]
    stop = threading.Event()

    def confirm():
        try:
            connection = connect()
            channel = connection.channel()
            channel.confirm_delivery()
            nth = 0
            while not stop.is_set():
                channel.basic_publish("", "task_queue", f"confirmed-{nth}".encode(), PERSISTENT)
                safe.append(f"confirmed-{nth}")
                nth += 1
        except pika.exceptions.AMQPError:
            pass

    thread = threading.Thread(target=confirm)
    thread.start()
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)
    thread.join()
    stop.set()
    broker = subprocess.Popen(restart, stdout=subprocess.DEVNULL)
    try:
        taken = take_all()
        missing = set(safe) - set(taken)
        assert not missing, f"{len(missing)} of {len(safe)} are lost"
        assert len(taken) - len(safe) <= 1, "only the last one is in doubt"
        assert len(safe) > 200, "some were confirmed"
    finally:
        broker.terminate()
        broker.wait()


def main():
    if len(sys.argv) > 2 and sys.argv[2] == "worker":
        return worker(PORT, sys.argv[3], float(sys.argv[4]), sys.argv[5])
    folder = sys.argv[2]
    two_speeds(folder)
    if len(sys.argv) > 3:
        killed(int(sys.argv[3]), sys.argv[4:])


if __name__ == "__main__":
    main()
