"""Connections that are slow, do not read, or are too many are closed; the others are served."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from lookalike.serve.server import ConnectionLimits, timely_protocol

SECONDS = 0.6


@contextmanager
def server_of(app: ASGIApp, send_seconds: float = 30, limits: ConnectionLimits | None = None) -> Iterator[int]:
    """The port of a server that gives a head so many seconds."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    http = timely_protocol(SECONDS, send_seconds, limits or ConnectionLimits(limit_per_address=1000))
    config = uvicorn.Config(app, http=http, ws="none", log_config=None, lifespan="off", timeout_keep_alive=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(10)
    listener.close()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server that says hello."""
    with server_of(PlainTextResponse("hello")) as port:
        yield port


def ended(connection: socket.socket) -> bool:
    """Whether the server has closed it."""
    connection.settimeout(5)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
def test_idle_connections_are_closed_and_others_served(port: int, sent: bytes) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(500)]
        for connection in slow:
            connection.sendall(sent)
        start = time.monotonic()
        assert httpx.get(f"http://127.0.0.1:{port}/").text == "hello"
        assert time.monotonic() - start < 2
        assert all(ended(connection) for connection in slow)


def test_sending_a_byte_now_and_then_does_not_extend_the_time(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        start = time.monotonic()
        try:
            for letter in b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa":
                connection.sendall(bytes([letter]))
                time.sleep(0.05)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert ended(connection)
        assert time.monotonic() - start < SECONDS + 1.5


def test_each_request_of_a_connection_has_its_own_time(port: int) -> None:
    ask = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(3):
            connection.sendall(ask)
            answer = b""
            while not answer.endswith(b"hello"):
                answer += connection.recv(4096)
            time.sleep(SECONDS / 2)  # idle, which is another matter
        connection.sendall(ask[:20])
        start = time.monotonic()
        assert ended(connection)
        assert time.monotonic() - start > SECONDS / 2


def test_a_connection_stays_usable_after_an_early_answer() -> None:
    async def hasty(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("no", 503)(scope, receive, send)

    with server_of(hasty) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(3):
            connection.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n\r\n")
            answer = b""
            while not answer.endswith(b"no"):
                answer += connection.recv(4096)
            assert answer.startswith(b"HTTP/1.1 503 ")
            connection.sendall(bytes(200_000))
        connection.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n\r\n" + bytes(100_000))
        start = time.monotonic()
        while connection.recv(4096):
            pass
        assert time.monotonic() - start < SECONDS + 1.5  # the rest of the body does not come: as an idle connection


ASK = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
LARGE = 20 * 2**20  # bytes: more than the system holds of what is not read


def unread(port: int, source: str = "127.0.0.1", asked: bytes = ASK) -> socket.socket:
    """A connection that asks and does not read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.bind((source, 0))
    connection.connect(("127.0.0.1", port))
    connection.sendall(asked)
    return connection


def drained(connection: socket.socket) -> int:
    """Bytes that still come until it is closed or cut off."""
    connection.settimeout(10)
    total = 0
    with suppress(ConnectionResetError):
        while data := connection.recv(2**20):
            total += len(data)
    return total


@pytest.mark.parametrize("asked", [ASK, ASK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), ASK * 20])
def test_an_unread_answer_is_cut_off(asked: bytes) -> None:
    limits = ConnectionLimits()
    with server_of(PlainTextResponse(bytes(LARGE)), SECONDS, limits) as port, ExitStack() as stack:
        slow = [stack.enter_context(unread(port, asked=asked)) for _ in range(20)]
        eventually(lambda: len(limits._by_sender) == 1)
        eventually(lambda: not limits._by_sender)
        assert not limits._unread
        assert all(drained(connection) < LARGE for connection in slow)


def test_reading_a_byte_now_and_then_does_not_extend_the_time() -> None:
    limits = ConnectionLimits()
    with server_of(PlainTextResponse(bytes(LARGE)), SECONDS, limits) as port, unread(port) as connection:
        start, total = time.monotonic(), len(connection.recv(4096))
        while limits._by_sender:
            assert time.monotonic() - start < SECONDS + 5
            total += len(connection.recv(4096))
            time.sleep(0.02)
        assert total + drained(connection) < LARGE


def test_a_connection_stays_open_if_its_answer_is_read_in_time() -> None:
    app, seconds = PlainTextResponse(bytes(LARGE)), 3 * SECONDS
    with server_of(app, seconds) as port, socket.create_connection(("127.0.0.1", port), 20) as connection:
        start = time.monotonic()
        while time.monotonic() - start < 1.5 * seconds:  # of the first one's time nothing is left
            connection.sendall(ASK)
            time.sleep(SECONDS / 3)  # in which it waits
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += connection.recv(4096)
            left = LARGE - len(answer.partition(b"\r\n\r\n")[2])
            while left:
                data = connection.recv(min(left, 2**20))
                assert data, "it was cut off"
                left -= len(data)
            time.sleep(SECONDS / 3)


def test_unread_answers_have_a_common_limit() -> None:
    limits = ConnectionLimits(max_unread_bytes=3 * LARGE)
    with server_of(PlainTextResponse(bytes(LARGE)), 30, limits) as port, ExitStack() as stack:
        slow = []
        for count in range(1, 6):
            slow.append(stack.enter_context(unread(port)))
            eventually(lambda count=count: limits._by_sender["127.0.0.1"] == min(count, 3) == len(limits._unread))
        assert drained(slow[0]) < LARGE  # those that waited longest
        assert drained(slow[1]) < LARGE
        assert httpx.get(f"http://127.0.0.1:{port}/").content == bytes(LARGE)


def refused(port: int, source: str = "127.0.0.1") -> dict[str, Any]:
    """What a connection that is turned away is told."""
    with unread(port, source) as connection:
        head, _, body = received(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"Retry-After: 1" in head
    told: dict[str, Any] = json.loads(body)["error"]
    return told


def received(connection: socket.socket) -> bytes:
    """All that comes."""
    connection.settimeout(10)
    answer = b""
    while data := connection.recv(4096):
        answer += data
    return answer


def test_connections_per_address_are_limited() -> None:
    limits = ConnectionLimits(limit=50, limit_per_address=5)
    with server_of(PlainTextResponse("hello"), limits=limits) as port, ExitStack() as stack:
        own = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(5)]
        eventually(lambda: limits._by_sender["127.0.0.1"] == 5)
        for _ in range(3):
            told = refused(port)
            assert told["limit"] == {"name": "max_connections_per_address", "value": 5}
        with unread(port, "127.0.0.2", ASK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) as other:
            assert received(other).endswith(b"hello")
        own[0].close()
        eventually(lambda: limits._by_sender["127.0.0.1"] == 4)
        assert httpx.get(f"http://127.0.0.1:{port}/").text == "hello"


def test_connections_are_limited_in_total() -> None:
    limits = ConnectionLimits(limit=10, limit_per_address=4)
    with server_of(PlainTextResponse("hello"), limits=limits) as port, ExitStack() as stack:
        for place in range(10):
            stack.enter_context(unread(port, f"127.0.0.{2 + place // 4}", b""))
        eventually(lambda: limits._by_sender.total() == 10)
        assert refused(port)["limit"] == {"name": "max_connections", "value": 10}
        eventually(lambda: not limits._by_sender)  # they send nothing
        assert httpx.get(f"http://127.0.0.1:{port}/").text == "hello"
    assert limits.lingering == 0


def test_a_flood_of_connections_is_refused() -> None:
    limits = ConnectionLimits(limit=20, limit_per_address=20)
    with server_of(PlainTextResponse("hello"), limits=limits) as port, ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        eventually(lambda: not limits._by_sender and not limits.lingering)
        assert httpx.get(f"http://127.0.0.1:{port}/").text == "hello"


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until it does."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
