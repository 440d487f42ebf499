"""Drives a Celery worker: results, remote control, events, ETA, retries, a worker that is killed, a restart; and the
delays that Celery has where queues are quorum queues."""

import os
import signal
import subprocess
import sys
import time

from kombu import Exchange, Producer, Queue
from kombu.transport import native_delayed_delivery
from tasks import add, app, flaky, slow

HERE = os.path.dirname(os.path.abspath(__file__))
FOLDER = sys.argv[1]


def worker(name):
    with open(os.path.join(FOLDER, name), "w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-l", "INFO", "-E", "-c", "2", "-n", f"{name}@%h"],
            cwd=HERE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def begun(path):
    end = time.monotonic() + 30
    while not os.path.exists(path):
        assert time.monotonic() < end, "the task does not begin"
        time.sleep(0.05)


def delayed_natively():
    """What Celery does about ETAs where queues are quorum queues: 28 queues, each with a time to live, which dead
    letters go down."""
    with app.connection_for_write() as connection:
        native_delayed_delivery.declare_native_delayed_delivery_exchanges_and_queues(connection, "quorum")
        exchange = Exchange("later", type="topic")
        queue = Queue("later", exchange, routing_key="later", queue_arguments={"x-queue-type": "quorum"})
        bound = queue(connection.channel())
        bound.declare()
        native_delayed_delivery.bind_queue_to_native_delayed_delivery_exchange(connection, queue)
        producer = Producer(connection.channel())
        began, level = time.monotonic(), native_delayed_delivery.level_name(27)
        for seconds in (3, 1, 2):
            key = native_delayed_delivery.calculate_routing_key(seconds, "later")
            producer.publish({"seconds": seconds}, exchange=level, routing_key=key, delivery_mode=2)
        for seconds in (1, 2, 3):
            while (message := bound.get()) is None:
                assert time.monotonic() - began < 30
                time.sleep(0.02)
            assert message.payload == {"seconds": seconds}, message.payload
            assert time.monotonic() - began >= seconds - 0.05
            message.ack()


def main():
    delayed_natively()
    process = worker("first")
    try:
        assert add.delay(2, 3).get(timeout=60) == 5
        results = [add.delay(nth, nth) for nth in range(200)]
        assert [result.get(timeout=60) for result in results] == [2 * nth for nth in range(200)]
        # Remote control over the pidbox exchanges.
        assert len(app.control.ping(timeout=3)) == 1
        inspect = app.control.inspect(timeout=3)
        queues = list(inspect.active_queues().values())[0]
        assert [queue["name"] for queue in queues] == ["celery", "prio"]
        # An ETA holds the message at the worker.
        began = time.monotonic()
        assert add.apply_async((1, 1), countdown=2).get(timeout=60) == 2
        assert time.monotonic() - began >= 1.9
        waiting = [add.apply_async((nth, 0), countdown=3) for nth in range(300)]
        assert [result.get(timeout=60) for result in waiting] == list(range(300))
        assert flaky.delay().get(timeout=60) == 2
        assert add.apply_async((5, 5), queue="prio", priority=7).get(timeout=60) == 10
        events = []
        with app.connection_for_read() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": lambda event: events.append(event["type"])})
            receiver.capture(limit=2, timeout=20, wakeup=True)
        assert any(event.startswith("worker-") for event in events), events
        # Killed in the middle of a task: it is done by the next worker.
        path = os.path.join(FOLDER, "killed")
        result = slow.delay(path)
        begun(path)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process = worker("second")
        assert result.get(timeout=60) == path
        # Told to stop: it ends its task first.
        path = os.path.join(FOLDER, "stopped")
        result = slow.delay(path)
        begun(path)
        process.terminate()
        process.wait(timeout=60)
        process = worker("third")
        assert result.get(timeout=60) == path
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


main()
