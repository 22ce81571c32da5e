"""Five hundred connections that send nothing, or too slowly: the others are served, and those are closed."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from lookalike.serve.senders import timely

SECONDS = 0.6


@contextmanager
def server_of(app: ASGIApp) -> Iterator[int]:
    """The port of a server that gives a head so many seconds."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    config = uvicorn.Config(app, http=timely(SECONDS), ws="none", log_config=None, lifespan="off", timeout_keep_alive=1)
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
def test_who_sends_nothing_is_cut_off_and_others_are_served(port: int, sent: bytes) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(500)]
        for connection in slow:
            connection.sendall(sent)
        start = time.monotonic()
        assert httpx.get(f"http://127.0.0.1:{port}/").text == "hello"
        assert time.monotonic() - start < 2
        assert all(ended(connection) for connection in slow)


def test_a_byte_now_and_then_gives_no_more_time(port: int) -> None:
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


def test_a_second_request_on_a_connection_has_its_own_time(port: int) -> None:
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


def test_a_connection_is_good_after_an_answer_that_did_not_wait_for_the_body() -> None:
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
