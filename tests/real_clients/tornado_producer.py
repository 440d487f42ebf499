"""A Tornado program that posts to the queue and reads back what it posted."""

import asyncio
import sys

from tornado.httpclient import AsyncHTTPClient
from tornado.simple_httpclient import SimpleAsyncHTTPClient

AT = f"http://127.0.0.1:{sys.argv[1]}"


async def main():
    AsyncHTTPClient.configure(SimpleAsyncHTTPClient, max_clients=50)
    client = AsyncHTTPClient()

    async def post(number):
        response = await client.fetch(f"{AT}/queue", method="POST", body=f"message {number}")
        assert response.code == 200
        assert response.body == b"Message received successfully", response.body

    await asyncio.gather(*(post(number) for number in range(200)))
    found = set()
    for _ in range(200):
        response = await client.fetch(f"{AT}/queue/queue?wait=5s")
        found.add(response.body.decode())
        handle = response.headers["X-RingMQ-Handle"]
        acked = await client.fetch(f"{AT}/ack", method="POST", body=handle)
        assert acked.body == b'{"count":1,"stale":[]}\n', acked.body
    assert found == {f"message {number}" for number in range(200)}

    async def body(write):
        for piece in (b"in ", b"chunks"):
            await write(piece)

    await client.fetch(f"{AT}/queue/chunked", method="POST", body_producer=body)
    response = await client.fetch(f"{AT}/queue/chunked")
    assert response.body == b"in chunks", response.body


asyncio.run(main())
