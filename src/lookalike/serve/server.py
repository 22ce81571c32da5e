"""The service as a process: a socket, the server on it, and a good end.

On SIGTERM or Ctrl-C nothing new is accepted, what was accepted is finished for `drain_seconds` at most, threads get a
few seconds more, and the process leaves with 143 or 130, as every command of Lookalike does.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import math
import socket
import sys
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from lookalike.errors import InputError
from lookalike.serve.app import application
from lookalike.serve.errors import RefusedError
from lookalike.serve.service import Service
from lookalike.serve.settings import Settings

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]


BACKLOG = 2048  # connections that the system holds before they are accepted


KEEP_ALIVE = 5  # seconds that an idle connection is kept


HEADERS = 16 * 1024  # bytes of a request's line and headers, at most


OTHER_FILES = 256  # that the process may have open beside its connections


log = logging.getLogger(__name__)


def run_server(settings: Settings, listening: Callable[[str], None] = lambda url: None) -> None:
    """Serve until a signal comes.

    Args:
        settings: what to serve.
        listening: called with the URL once the socket is open; the model may still be being read.

    Raises:
        InputError: the port is taken or may not be used; no such model or gallery, or a damaged one.
    """
    _log_to_stderr()
    service = Service(settings)
    listener = _listen(settings)
    server: uvicorn.Server

    def failed() -> None:
        server.should_exit = True

    config = uvicorn.Config(
        application(service, failed),
        http=timely(settings.receive_seconds, settings.send_seconds, _crowd(settings)),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,  # it would hold paths and queries
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(settings.drain_seconds),
        h11_max_incomplete_event_size=HEADERS,
    )
    server = uvicorn.Server(config)
    host, port = listener.getsockname()[:2]
    listening(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
    with listener:
        server.run(sockets=[listener])
    if service.fault is not None:
        raise service.fault if not isinstance(service.fault, RefusedError) else InputError(str(service.fault))


def _crowd(settings: Settings) -> Crowd:
    """How many connections there may be: what is set, or what the system's limit of open files leaves."""
    most = settings.max_connections
    if resource is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = most + OTHER_FILES
        if soft != resource.RLIM_INFINITY and soft < wanted:
            soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            if soft < wanted:
                most = max(1, soft - OTHER_FILES)
                log.warning("%d connections at most: the system allows %d open files (ulimit -n).", most, soft)
    return Crowd(most, settings.max_connections_per_address, settings.max_leaving_bytes)


def _listen(settings: Settings) -> socket.socket:
    """A socket that is bound and listens: whoever connects while the service starts is answered as soon as it can."""
    where = f"{settings.host}:{settings.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host.strip("[]"), settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise InputError(
            f"{settings.host}: there is no such host.", "Give an address of this machine: --host."
        ) from None
    listener = socket.socket(family, kind, protocol)  # asyncio turns Nagle's delay off only for a named protocol
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise InputError(
            f"{where}: cannot listen there ({error.strerror}).", "Choose another --port or --host."
        ) from None
    return listener


def _log_to_stderr() -> None:
    """Warnings of everything, and the service's own lines, on standard error, as they are."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("lookalike").setLevel(logging.INFO)


# Connections that hold on, by heads too slow or answers that are not read, and too many at once: they are closed.

LINGER = 1.0  # seconds in which one that is turned away may read why


LINGERING = 64  # of those at once


NETWORK = 64  # bits of an IPv6 address that name a network: one sender has all of its addresses


class Crowd:
    """The connections of a service, and the answers that wait in its memory to be read.

    Args:
        most: connections at once.
        most_of_one: connections of one address (of IPv6: of one network) at once.
        most_bytes: of answers that wait to be read, of all connections together.
    """

    def __init__(self, most: int = 1000, most_of_one: int = 256, most_bytes: int = 256 * 2**20) -> None:
        self.most, self.most_of_one, self.most_bytes = most, most_of_one, most_bytes
        self.lingering = 0
        self._of_one: Counter[str] = Counter()
        self._waiting: dict[TimelyProtocol, int] = {}  # bytes, those that wait longest first

    def enter(self, sender: str) -> None:
        """A connection has come.

        Raises:
            RefusedError: 503, there are too many; it must not `leave`.
        """
        if self._of_one.total() >= self.most:
            raise _too_many("too many connections.", "max_connections", self.most)
        if self._of_one[sender] >= self.most_of_one:
            raise _too_many("too many connections of one address.", "max_connections_per_address", self.most_of_one)
        self._of_one[sender] += 1

    def leave(self, sender: str) -> None:
        """One that had entered is gone."""
        self._of_one[sender] -= 1
        if not self._of_one[sender]:
            del self._of_one[sender]

    def wait(self, connection: TimelyProtocol, size: int) -> None:
        """An answer waits to be read. Where that is too much for memory, those that wait longest are cut off."""
        self._waiting[connection] = size
        while sum(self._waiting.values()) > self.most_bytes:
            longest = next(iter(self._waiting))
            del self._waiting[longest]
            longest.transport.abort()

    def read(self, connection: TimelyProtocol) -> None:
        """It was read, or its connection is gone."""
        self._waiting.pop(connection, None)


class TimelyProtocol(H11Protocol):
    """uvicorn's HTTP protocol, which closes a connection on which no whole request head arrives in time, or whose
    answer is not read in time, and turns away what would be too many.

    The time of a head runs from the connection's beginning, and from the first byte of each further request. That of an
    answer runs from when it first has to wait for its reader until all of it has left, however much of it is read in
    between. Bodies have a time of their own, in `limits.py`, and idle connections one in uvicorn.
    """

    seconds = 10.0
    send_seconds = 30.0
    crowd = Crowd()
    _sender: str | None = None
    _turned_away = False
    _late: asyncio.TimerHandle | None = None
    _leaving: asyncio.TimerHandle | None = None
    _answer: RequestResponseCycle | None = None  # that is leaving

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The connection is there."""
        sender = sender_of(transport.get_extra_info("peername"))
        try:
            self.crowd.enter(sender)
        except RefusedError as refused:
            self._turn_away(transport, refused)
            return
        self._sender = sender
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # so that it is told when the last byte has left
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Bytes have come: of a head, the end of one, or of a body."""
        if self._turned_away:
            return
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop_waiting()
        elif self._is_between_requests():
            self._wait()

    def pause_writing(self) -> None:
        """Not all of an answer has left at once."""
        if self._turned_away:
            return
        super().pause_writing()
        self._answer = self.cycle
        if self._leaving is None:
            self._leaving = self.loop.call_later(self.send_seconds, self.transport.abort)
        self.crowd.wait(self, self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """All that was written has left."""
        if self._turned_away:
            return
        super().resume_writing()
        self.crowd.read(self)
        if self._answer is None or self._answer.response_complete:
            self._stop_leaving()

    def on_response_complete(self) -> None:
        """All of an answer is written."""
        if not self.flow.write_paused:
            self._stop_leaving()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        if self._turned_away:
            self.crowd.lingering -= 1
            return
        self._stop_waiting()
        self._stop_leaving()
        self.crowd.read(self)
        super().connection_lost(exc)
        if self._sender is not None:
            self.crowd.leave(self._sender)
            self._sender = None

    def _turn_away(self, transport: asyncio.Transport, refused: RefusedError) -> None:
        """Say why, and close. What the client sends meanwhile is dropped: unread, it would take the answer with it."""
        self.transport = transport
        self._turned_away = True
        self.crowd.lingering += 1
        transport.write(plain(refused))
        if self.crowd.lingering > LINGERING or not transport.can_write_eof():
            transport.close()
            return
        transport.write_eof()
        self.loop.call_later(LINGER, transport.abort)

    def _wait(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(self.seconds, self._cut_off)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _stop_leaving(self) -> None:
        self._answer = None
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None

    def _cut_off(self) -> None:
        self._late = None
        if self._is_between_requests():
            self.transport.close()

    def _is_between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete


def timely(seconds: float, send_seconds: float = 30.0, crowd: Crowd | None = None) -> type[TimelyProtocol]:
    """The protocol for one server.

    Args:
        seconds: that it gives a request's head.
        send_seconds: that it gives an answer to leave.
        crowd: how many connections it has, at most.
    """
    how = {"seconds": seconds, "send_seconds": send_seconds, "crowd": crowd or Crowd()}
    return type("TimelyProtocol", (TimelyProtocol,), how)


def sender_of(peer: object) -> str:
    """Whom a connection is counted for: the address it comes from, or its network where that is of IPv6.

    >>> sender_of(("10.0.0.7", 50000)), sender_of(("2001:db8::1:2:3:4", 50000, 0, 0)), sender_of(("::ffff:10.0.0.7", 1))
    ('10.0.0.7', '2001:db8::', '10.0.0.7')
    """
    host = str(peer[0]) if isinstance(peer, tuple) and peer else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), NETWORK), strict=False).network_address)


def plain(refused: RefusedError) -> bytes:
    """A refusal as bytes of HTTP, where there is no request yet that it could answer."""
    body = json.dumps(refused.body, separators=(",", ":")).encode()
    headers = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Connection": "close",
        **refused.headers,
    }
    head = [f"HTTP/1.1 {refused.status} {HTTPStatus(refused.status).phrase}"]
    head += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*head, "", ""]).encode() + body


def _too_many(message: str, limit: str, value: int) -> RefusedError:
    return RefusedError(
        503, message, "Close some, or try again a little later.", limit=limit, value=value, retry_after=1
    )
