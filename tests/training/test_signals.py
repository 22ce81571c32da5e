"""Ctrl-C and SIGTERM: the first is noted, the second acts."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

import pytest

from lookalike.training.signals import SIGNALS, SignalHandler, exit_by_signal


@pytest.fixture
def deliveries() -> list[int]:
    return []


@pytest.fixture(autouse=True)
def handlers(deliveries: list[int]) -> object:
    """Handlers of our own, so that a signal that gets through is seen and ends nothing."""

    def deliver(number: int, frame: FrameType | None) -> None:
        deliveries.append(number)

    former = {number: signal.signal(number, deliver) for number in SIGNALS}
    yield deliver
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_is_noted_and_the_second_acts_as_it_used_to(number: int, deliveries: list[int]) -> None:
    with SignalHandler() as signals:
        assert not signals.received
        os.kill(os.getpid(), number)
        assert (signals.received, deliveries) == (number, [])
        os.kill(os.getpid(), number)
        assert deliveries == [number]


def test_another_signal_than_the_first_acts_too(deliveries: list[int]) -> None:
    with SignalHandler() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    assert signals.received == signal.SIGTERM
    assert deliveries == [signal.SIGINT]


def test_afterwards_everything_is_as_it_was(handlers: object, deliveries: list[int]) -> None:
    with pytest.raises(ZeroDivisionError), SignalHandler():
        1 / 0  # noqa: B018
    assert [signal.getsignal(number) for number in SIGNALS] == [handlers, handlers]
    with SignalHandler() as signals:
        pass
    os.kill(os.getpid(), signal.SIGINT)
    assert (signals.received, deliveries) == (0, [signal.SIGINT])


def test_in_another_thread_it_does_nothing(handlers: object) -> None:
    seen: list[object] = []

    def work() -> None:
        with SignalHandler():
            seen.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [handlers, handlers]


def test_leaving_looks_as_if_the_signal_had_ended_us() -> None:
    with pytest.raises(KeyboardInterrupt):
        exit_by_signal(signal.SIGINT)
    with pytest.raises(SystemExit) as left:
        exit_by_signal(signal.SIGTERM)
    assert left.value.code == 143
