"""One broker that listens where each kind of client looks for it: programs for RabbitMQ, Redis and HTTP on one queue.

four_doors.py LINE AMQP RESP HTTP: the ports. A program that finds its own default port is given none.
"""

import asyncio
import os
import socket
import struct
import sys

import pika
import redis
import redis.asyncio
from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler


LINE, AMQP, RESP, HTTP = (int(port) for port in sys.argv[1:5])
AT = f"http://localhost:{HTTP}"
BODIES = [b"", b"\n", b"\r\n\r\n", b"$12\r\nEND 1\r\n", bytes(range(256)), os.urandom(150000), "ä".encode()]
BODIES += [f"message {nth}".encode() for nth in range(20)]


def unless(port, default):
    return {} if port == default else {"port": port}


def amqp():
    return pika.BlockingConnection(pika.ConnectionParameters("localhost", **unless(AMQP, 5672)))


def resp(**more):
    return redis.Redis("localhost", **unless(RESP, 6379), **more)


class Line:
    """The line protocol over a socket."""

    def __init__(self):
        self.socket = socket.create_connection(("localhost", LINE))
        self.file = self.socket.makefile("rb")

    def say(self, command, body=None):
        more = b"" if body is None else b" $%d\n%s" % (len(body), body)
        self.socket.sendall(command.encode() + more + b"\n")
        return self.file.readline().rstrip(b"\r\n").decode()

    def pull(self, queue):
        """The handle, what else is said of it, and the body."""
        words = self.say(f"PULL {queue}").split()
        assert words[0] == "MSG", words
        body = self.file.read(int(words[-1][1:]))
        assert self.file.readline().strip() == b"" and self.file.readline().strip() == b"END 1"
        return words[2], words[3:-1], body


async def http(method, path, body=None):
    request = HTTPRequest(AT + path, method, body=body, allow_nonstandard_methods=True)
    return await AsyncHTTPClient().fetch(request)


async def publish_all(door, queue):
    if door == "line":
        line = Line()
        for body in BODIES:
            assert line.say(f"PUB {queue}", body).startswith("OK ")
    elif door == "resp":
        assert resp().rpush(queue, *BODIES) == len(BODIES)
    elif door == "http":
        for body in BODIES:
            await http("POST", f"/queue/{queue}", body)
    else:
        connection = amqp()
        channel = connection.channel()
        channel.confirm_delivery()
        for body in BODIES:
            channel.basic_publish("", queue, body)
        connection.close()


async def take_all(door, queue):
    taken = []
    if door == "line":
        line = Line()
        while len(taken) < len(BODIES):
            handle, _, body = line.pull(queue)
            assert line.say(f"ACK {handle}") == "OK 1"
            taken.append(body)
    elif door == "resp":
        client = resp()
        while len(taken) < len(BODIES):
            taken.append(client.blpop(queue, 5)[1])
        assert client.lpop(queue) is None
    elif door == "http":
        while len(taken) < len(BODIES):
            answer = await http("GET", f"/queue/{queue}?wait=5s")
            taken.append(answer.body)
            await http("POST", "/ack", answer.headers["X-RingMQ-Handle"])
    else:
        connection = amqp()
        channel = connection.channel()
        channel.basic_qos(prefetch_count=1)
        for method, _, body in channel.consume(queue):
            taken.append(body)
            channel.basic_ack(method.delivery_tag)
            if len(taken) == len(BODIES):
                break
        connection.close()
    return taken


async def same_everywhere():
    """What goes in by one door comes out by every other, octet by octet and in its order."""
    doors = ["line", "amqp", "resp", "http"]
    connection = amqp()
    channel = connection.channel()
    for into in doors:
        for out in doors:
            queue = f"{into}-{out}"
            channel.queue_declare(queue, durable=True)
            await publish_all(into, queue)
            assert await take_all(out, queue) == BODIES, queue
            assert channel.queue_declare(queue, passive=True).method.message_count == 0, queue
    connection.close()


async def counts_go_through():
    """Each door counts on where another has given back."""
    connection = amqp()
    channel = connection.channel()
    channel.queue_declare("counted", durable=True)
    channel.confirm_delivery()
    channel.basic_publish("", "counted", b"again and again")
    method, properties, _ = channel.basic_get("counted")
    assert not method.redelivered and not (properties.headers or {}).get("x-delivery-count")
    channel.basic_nack(method.delivery_tag)
    # Answered when the nack has been done.
    channel.queue_declare("counted", passive=True)

    # A client of Redis that is reset before it says anything more.
    popped = resp(single_connection_client=True)
    assert popped.lpop("counted") == b"again and again"
    raw = popped.connection._sock
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()

    answer = await http("GET", "/queue/counted?wait=5s")
    assert answer.headers["X-RingMQ-Try"] == "3", answer.headers
    await http("POST", "/nack?delay=0", answer.headers["X-RingMQ-Handle"])

    line = Line()
    handle, options, _ = line.pull("counted")
    assert "try=4" in options, options
    assert line.say(f"NACK {handle} delay=0") == "OK 1"

    method, properties, body = channel.basic_get("counted")
    assert method.redelivered and properties.headers["x-delivery-count"] == 4 and body == b"again and again"
    channel.basic_ack(method.delivery_tag)
    connection.close()


async def front_of_a_web_site():
    """Tornado takes orders from browsers, and hands them to what it believes is Redis; workers speak AMQP."""
    behind = redis.asyncio.Redis(host="localhost", **unless(RESP, 6379))

    class Orders(RequestHandler):
        async def post(self):
            self.write(str(await behind.rpush("orders", self.request.body)))

        async def get(self):
            self.write(await behind.lpop("orders") or "")

    sockets = bind_sockets(0, "127.0.0.1")
    server = HTTPServer(Application([("/orders", Orders)]))
    server.add_sockets(sockets)
    at = f"http://127.0.0.1:{sockets[0].getsockname()[1]}/orders"
    client = AsyncHTTPClient()
    sent = {f"order {nth}" for nth in range(300)}
    await asyncio.gather(*(client.fetch(at, method="POST", body=order) for order in sent))
    first = (await client.fetch(at)).body.decode()
    # The pop is settled by the next command of its connection; the pool may use another one for that.
    await behind.aclose()
    found = {first}

    def work():
        connection = amqp()
        channel = connection.channel()
        channel.basic_qos(prefetch_count=1)
        while len(found) < len(sent):
            for method, _, body in channel.consume("orders", inactivity_timeout=10):
                assert method is not None, len(found)
                found.add(body.decode())
                channel.basic_ack(method.delivery_tag)
                if len(found) == len(sent):
                    break
        connection.close()

    await asyncio.get_running_loop().run_in_executor(None, work)
    assert found == sent
    server.stop()


async def main():
    # The producer of the example: the queue `queue`, and its words.
    answer = await http("POST", "/queue", b"hello")
    assert answer.body == b"Message received successfully", answer.body
    assert resp().lpop("queue") == b"hello"
    await same_everywhere()
    await counts_go_through()
    await front_of_a_web_site()


AsyncHTTPClient.configure(None, max_clients=50)
asyncio.run(main())
