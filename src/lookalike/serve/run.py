"""The service as a process: a socket, the server on it, and a good end.

On SIGTERM or Ctrl-C nothing new is accepted, what was accepted is finished for `drain_seconds` at most, threads get a
few seconds more, and the process leaves with 143 or 130, as every command of Lookalike does.
"""

from __future__ import annotations

import logging
import math
import socket
import sys
from collections.abc import Callable

import uvicorn

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

from lookalike.errors import InputError
from lookalike.serve.app import application
from lookalike.serve.refusals import RefusedError
from lookalike.serve.senders import Crowd, timely
from lookalike.serve.service import Service
from lookalike.serve.settings import Settings

BACKLOG = 2048  # connections that the system holds before they are accepted
KEEP_ALIVE = 5  # seconds that an idle connection is kept
HEADERS = 16 * 1024  # bytes of a request's line and headers, at most
OTHER_FILES = 256  # that the process may have open beside its connections

log = logging.getLogger(__name__)


def run(settings: Settings, listening: Callable[[str], None] = lambda url: None) -> None:
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
