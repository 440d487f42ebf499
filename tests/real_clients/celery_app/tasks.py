"""A Celery application over AMQP, with late acks, a queue with priorities, and answers by rpc."""

import os
import time

from celery import Celery
from kombu import Exchange, Queue

app = Celery("tasks", broker=f"amqp://guest:guest@127.0.0.1:{os.environ['RINGMQ_PORT']}//", backend="rpc://")
app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=4,
    worker_send_task_events=True,
    task_queues=[
        Queue("celery", Exchange("celery"), routing_key="celery"),
        Queue("prio", Exchange("prio"), routing_key="prio", queue_arguments={"x-max-priority": 10}),
    ],
)


@app.task
def add(one, other):
    return one + other


@app.task(bind=True, max_retries=3)
def flaky(self):
    if self.request.retries < 2:
        raise self.retry(countdown=0.5)
    return self.request.retries


@app.task(reject_on_worker_lost=True)
def slow(path):
    with open(path, "a") as out:
        out.write("begin\n")
    time.sleep(2)
    return path
