"""Connections that send their headers too slowly are closed: the server itself waits for them without an end."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol


class TimelyProtocol(H11Protocol):
    """uvicorn's HTTP protocol, which closes a connection on which no whole request head arrives in time.

    The time runs from the connection's beginning, and from the first byte of each further request. Bodies have a time
    of their own, in `limits.py`, and idle connections one in uvicorn.
    """

    seconds = 10.0
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The connection is there."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Bytes have come: of a head, the end of one, or of a body."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop_waiting()
        elif self._is_between_requests():
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(self.seconds, self._cut_off)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _cut_off(self) -> None:
        self._late = None
        if self._is_between_requests():
            self.transport.close()

    def _is_between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete


def timely(seconds: float) -> type[TimelyProtocol]:
    """The protocol for a server that gives so many seconds."""
    return type("TimelyProtocol", (TimelyProtocol,), {"seconds": seconds})
