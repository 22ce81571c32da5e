"""Run the service as a process: open a socket, serve, and stop cleanly.

On SIGTERM or Ctrl-C the service accepts nothing new, finishes accepted requests within `drain_seconds`, gives threads a
few seconds more, and exits with 143 or 130, as every command of Lookalike does.

`TimelyProtocol` closes connections that are slow or idle in the middle of a request, and refuses too many of them.
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
from lookalike.serve.app import create_service_app
from lookalike.serve.errors import RefusedError
from lookalike.serve.service import Service
from lookalike.serve.settings import Settings

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

BACKLOG = 2048  # connections that the system holds until they are accepted
KEEP_ALIVE_SECONDS = 5  # for which an idle connection stays open
MAX_HEAD_BYTES = 16 * 1024  # of a request: its first line and headers
OTHER_FILES = 256  # file descriptors that the process needs besides its connections
LINGER_SECONDS = 1.0  # in which a refused client may read why
MAX_LINGERING = 64  # refused connections that linger at once
IPV6_NETWORK_BITS = 64  # one sender has all addresses of such a network

log = logging.getLogger(__name__)


def run_server(settings: Settings, on_listening: Callable[[str], None] = lambda url: None) -> None:
    """Serve until a signal arrives.

    Args:
        settings: what to serve.
        on_listening: called with the URL once the socket is open. The model may still be loading then.

    Raises:
        InputError: the port cannot be used, or the model or the gallery cannot be loaded.
    """
    _log_to_stderr()
    service = Service(settings)
    listener = _listen(settings)
    server: uvicorn.Server

    def stop() -> None:
        server.should_exit = True

    config = uvicorn.Config(
        create_service_app(service, on_load_failure=stop),
        http=timely_protocol(settings.receive_seconds, settings.send_seconds, _connection_limits(settings)),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,  # it would hold paths and queries
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(settings.drain_seconds),
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )
    server = uvicorn.Server(config)
    host, port = listener.getsockname()[:2]
    on_listening(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
    with listener:
        server.run(sockets=[listener])
    if service.load_error is not None:
        raise service.load_error


def _connection_limits(settings: Settings) -> ConnectionLimits:
    """The connections that the settings and the system's limit of open files allow."""
    limit = settings.max_connections
    if resource is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = limit + OTHER_FILES
        if soft != resource.RLIM_INFINITY and soft < needed:
            soft = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            if soft < needed:
                limit = max(1, soft - OTHER_FILES)
                log.warning("the system allows %d open files (ulimit -n): at most %d connections.", soft, limit)
    return ConnectionLimits(limit, settings.max_connections_per_address, settings.max_unread_bytes)


def _listen(settings: Settings) -> socket.socket:
    """Open the socket. Clients that connect while the service starts are answered as soon as it can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host.strip("[]"), settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise InputError(f"{settings.host}: unknown host.", "Give an address of this machine: --host") from None
    listener = socket.socket(family, kind, protocol)  # without a named protocol asyncio keeps Nagle's delay
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise InputError(
            f"{settings.host}:{settings.port}: cannot listen on this address ({error.strerror}).",
            "Choose another --port or --host.",
        ) from None
    return listener


def _log_to_stderr() -> None:
    """Log warnings of all packages, and everything of the service, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("lookalike").setLevel(logging.INFO)


class ConnectionLimits:
    """Counts the connections of a service, and the bytes of answers that its clients have not read yet.

    Args:
        limit: connections at once.
        limit_per_address: connections at once from one IPv4 address or one IPv6 network.
        max_unread_bytes: of all connections together.
    """

    def __init__(self, limit: int = 1000, limit_per_address: int = 256, max_unread_bytes: int = 256 * 2**20) -> None:
        self.limit, self.limit_per_address, self.max_unread_bytes = limit, limit_per_address, max_unread_bytes
        self.lingering = 0
        self._by_sender: Counter[str] = Counter()
        self._unread: dict[TimelyProtocol, int] = {}  # bytes, those that wait longest first

    def add(self, sender: str) -> None:
        """Count a connection.

        Raises:
            RefusedError: 503, there are too many. This one is not counted.
        """
        if self._by_sender.total() >= self.limit:
            raise _too_many("too many connections.", "max_connections", self.limit)
        if self._by_sender[sender] >= self.limit_per_address:
            message = "too many connections from one address."
            raise _too_many(message, "max_connections_per_address", self.limit_per_address)
        self._by_sender[sender] += 1

    def remove(self, sender: str) -> None:
        """A connection has ended."""
        self._by_sender[sender] -= 1
        if not self._by_sender[sender]:
            del self._by_sender[sender]

    def add_unread(self, connection: TimelyProtocol, size: int) -> None:
        """An answer waits to be read. Beyond `max_unread_bytes`, close the connections that wait longest."""
        self._unread[connection] = size
        while sum(self._unread.values()) > self.max_unread_bytes:
            longest = next(iter(self._unread))
            del self._unread[longest]
            longest.transport.abort()

    def remove_unread(self, connection: TimelyProtocol) -> None:
        """The answer has been read, or its connection has ended."""
        self._unread.pop(connection, None)


class TimelyProtocol(H11Protocol):
    """uvicorn's HTTP protocol with time limits for request heads and answers, and a limit of connections.

    The time of a head starts with the connection, and with the first byte of each further request. The time of an
    answer starts when it first has to wait for its reader, and ends when all of it has left, however much the client
    reads in between. Bodies are timed in `admission.py`, idle connections by uvicorn.
    """

    head_seconds = 10.0
    send_seconds = 30.0
    connection_limits = ConnectionLimits()
    _sender: str | None = None
    _is_refused = False
    _head_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None
    _answer: RequestResponseCycle | None = None  # that is being sent

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, or refuse it."""
        sender = sender_of(transport.get_extra_info("peername"))
        try:
            self.connection_limits.add(sender)
        except RefusedError as error:
            self._refuse(transport, error)
            return
        self._sender = sender
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # so that resume_writing is called when the last byte has left
        self._start_head_timer()

    def data_received(self, data: bytes) -> None:
        """Receive bytes: of a head or of a body."""
        if self._is_refused:
            return
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:  # a head is complete
            self._stop_head_timer()
        elif self._is_between_requests():
            self._start_head_timer()

    def pause_writing(self) -> None:
        """Part of an answer could not be sent at once."""
        if self._is_refused:
            return
        super().pause_writing()
        self._answer = self.cycle
        if self._send_timer is None:
            self._send_timer = self.loop.call_later(self.send_seconds, self.transport.abort)
        self.connection_limits.add_unread(self, self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """All that was written has been sent."""
        if self._is_refused:
            return
        super().resume_writing()
        self.connection_limits.remove_unread(self)
        if self._answer is None or self._answer.response_complete:
            self._stop_send_timer()

    def on_response_complete(self) -> None:
        """All of an answer has been written."""
        if not self.flow.write_paused:
            self._stop_send_timer()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        if self._is_refused:
            self.connection_limits.lingering -= 1
            return
        self._stop_head_timer()
        self._stop_send_timer()
        self.connection_limits.remove_unread(self)
        super().connection_lost(exc)
        if self._sender is not None:
            self.connection_limits.remove(self._sender)
            self._sender = None

    def _refuse(self, transport: asyncio.Transport, error: RefusedError) -> None:
        """Send the error and close. Linger, since closing with unread data would discard the error, too."""
        self.transport = transport
        self._is_refused = True
        self.connection_limits.lingering += 1
        transport.write(http_bytes(error))
        if self.connection_limits.lingering > MAX_LINGERING or not transport.can_write_eof():
            transport.close()
            return
        transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, transport.abort)

    def _start_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self._close_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_send_timer(self) -> None:
        self._answer = None
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _close_late(self) -> None:
        self._head_timer = None
        if self._is_between_requests():
            self.transport.close()

    def _is_between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete


def timely_protocol(
    head_seconds: float, send_seconds: float = 30.0, connection_limits: ConnectionLimits | None = None
) -> type[TimelyProtocol]:
    """The protocol class for one server.

    Args:
        head_seconds: time for a request's head to arrive.
        send_seconds: time for an answer to be read.
        connection_limits: counts the server's connections.
    """
    attributes = {
        "head_seconds": head_seconds,
        "send_seconds": send_seconds,
        "connection_limits": connection_limits or ConnectionLimits(),
    }
    return type("TimelyProtocol", (TimelyProtocol,), attributes)


def sender_of(peer: object) -> str:
    """The sender that a connection is counted for: its IPv4 address, or its IPv6 network.

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
    return str(ipaddress.ip_network((int(address), IPV6_NETWORK_BITS), strict=False).network_address)


def http_bytes(error: RefusedError) -> bytes:
    """An error as the bytes of an HTTP response, for a connection that has sent no request yet."""
    body = json.dumps(error.body, separators=(",", ":")).encode()
    headers = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Connection": "close",
        **error.headers,
    }
    head = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
    head += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*head, "", ""]).encode() + body


def _too_many(message: str, limit: str, value: int) -> RefusedError:
    remedy = "Close some, or try again a little later."
    return RefusedError(503, message, remedy, limit=limit, value=value, retry_after=1)
