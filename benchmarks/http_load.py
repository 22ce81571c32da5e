"""Put load on an HTTP service with POST requests, and count and time the answers.

    python benchmarks/http_load.py URL FOLDER --clients 32 --seconds 10      each client waits for its answer
    python benchmarks/http_load.py URL FOLDER --rate 100 --seconds 10        a fixed number of requests per second

FOLDER contains JPEG files, which are sent in turn. With --rate, the time of a request counts from the moment at which
it was due (in equal steps), not from when a connection was free; otherwise a service that stalls would look too good.
A request that is due while LIMIT requests are in progress is not sent and counts as "unsent". Prints a line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

LIMIT = 2000  # requests in progress
PATIENCE = 30.0  # seconds to wait for one answer
IDLE = 2.0  # seconds after which a free connection is not used again: the service may be about to close it


@dataclass
class Seen:
    """Statuses, seconds by status ("0": no answer), and the time of each 200 in seconds since the start."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    good: list[float] = field(default_factory=list)
    unsent: int = 0

    def add(self, status: int, seconds: float, since_start: float) -> None:
        self.statuses[str(status)] += 1
        self.seconds.setdefault(str(status), []).append(seconds)
        if status == 200:
            self.good.append(since_start)

    def report(self, seconds: float) -> dict[str, Any]:
        """Return counts, answers with 200 per second, and milliseconds by status."""
        return {
            "seconds": round(seconds, 2),
            "statuses": dict(self.statuses),
            "unsent": self.unsent,
            "per_second": round(sum(moment <= seconds for moment in self.good) / seconds, 2),
            "ms": {
                status: {
                    name: round(1000 * float(np.quantile(values, share)), 1)
                    for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("most", 1.0))
                }
                for status, values in self.seconds.items()
            },
        }


class Connection(asyncio.Protocol):
    """One connection that is reused: a request, then its answer."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[int] | None = None
        self._held = b""
        self.usable = True
        self.free_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    async def ask(self, request: bytes) -> int:
        """Return the status of the answer; 0 if there was none."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._answer
        except TimeoutError:
            self.close()
            return 0

    def data_received(self, data: bytes) -> None:
        self._held += data
        head, end, rest = self._held.partition(b"\r\n\r\n")
        if not end:
            return
        lines = head.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
        if len(rest) < length:
            return
        if b"connection: close" in lines:
            self.close()
        self._held = b""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(int(lines[0].split()[1]))

    def connection_lost(self, error: Exception | None) -> None:
        self.usable = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(0)

    def close(self) -> None:
        self.usable = False
        if self._transport is not None:
            self._transport.close()


class Load:
    """Clients of one service.

    Args:
        url: URL of the route.
        bodies: JPEG files, sent in turn.
    """

    def __init__(self, url: str, bodies: list[bytes]) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._address = (parts.hostname, parts.port)
        head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: image/jpeg\r\nContent-Length: "
        self._requests = [head.encode() + f"{len(body)}\r\n\r\n".encode() + body for body in bodies]
        self._free: list[Connection] = []
        self._turn = 0
        self.seen = Seen()
        self._start = time.perf_counter()

    async def one(self, due: float) -> None:
        """Send one request; its time counts from `due`."""
        status = 0
        try:
            connection = await self._connection()
            self._turn += 1
            status = await connection.ask(self._requests[self._turn % len(self._requests)])
            if connection.usable:
                connection.free_since = time.perf_counter()
                self._free.append(connection)
        except OSError:
            pass
        now = time.perf_counter()
        self.seen.add(status, now - due, now - self._start)

    async def _connection(self) -> Connection:
        while self._free:
            connection = self._free.pop()
            if connection.usable and time.perf_counter() - connection.free_since < IDLE:
                return connection
            connection.close()
        _, connection = await asyncio.get_running_loop().create_connection(Connection, *self._address)
        return connection

    async def closed(self, clients: int, seconds: float) -> dict[str, Any]:
        """Run clients that each send the next request once the last one is answered."""

        async def client() -> None:
            while time.perf_counter() - self._start < seconds:
                await self.one(time.perf_counter())

        self._start = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return self.seen.report(seconds)

    async def open(self, rate: float, seconds: float) -> dict[str, Any]:
        """Send a fixed number of requests per second, in equal steps."""
        under_way: set[asyncio.Task[None]] = set()
        self._start = time.perf_counter()
        for number in range(int(rate * seconds)):
            due = self._start + number / rate
            if (ahead := due - time.perf_counter()) > 0:
                await asyncio.sleep(ahead)
            elif number % 16 == 0:
                await asyncio.sleep(0)
            if len(under_way) >= LIMIT:
                self.seen.unsent += 1
                continue
            task = asyncio.create_task(self.one(due))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        passed = time.perf_counter() - self._start
        if under_way:
            await asyncio.wait(under_way)
        return self.seen.report(passed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--clients", type=int)
    how.add_argument("--rate", type=float)
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    load = Load(given.url, [path.read_bytes() for path in sorted(given.folder.glob("*.jpg"))])
    work = load.closed(given.clients, given.seconds) if given.clients else load.open(given.rate, given.seconds)
    print(json.dumps(asyncio.run(work)))


if __name__ == "__main__":
    main()
