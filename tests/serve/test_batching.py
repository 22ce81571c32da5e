"""The batcher: batches, order, cancelled requests, limits, failures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from plain_runtime import Outputs, PlainRuntime

from lookalike.models.pretrained import ImageModel
from lookalike.serve.batching import Batcher
from lookalike.serve.errors import RefusedError

SIZE = 32


def pictures(count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8))


class Held(PlainRuntime):
    """The runtime, but a turn waits until it is let go."""

    def __init__(self, model: ImageModel) -> None:
        super().__init__(model)
        self.gate, self.entered = threading.Event(), threading.Event()
        self.error: Exception | None = None

    def run(self, pictures: NDArray[np.uint8]) -> Outputs:
        self.entered.set()
        assert self.gate.wait(20)
        if self.error is not None:
            raise self.error
        return super().run(pictures)


def with_batcher(
    runtime: PlainRuntime, work: Callable[[Batcher], Coroutine[Any, Any, None]], *, batch: int = 8, most: int = 64
) -> None:
    """Do some work with a batcher, which is closed in the end."""
    batcher = Batcher(runtime, batch, most)
    try:
        asyncio.run(asyncio.wait_for(work(batcher), 20))
    finally:
        if isinstance(runtime, Held):
            runtime.gate.set()
        batcher.close()
    assert runtime.closed


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.005)


def test_every_request_gets_its_own_outputs(model: ImageModel) -> None:
    runtime = PlainRuntime(model)
    counts = [1, 3, 2, 20, 1, 5, 8, 1]
    asked = [pictures(count, seed) for seed, count in enumerate(counts)]

    async def work(batcher: Batcher) -> None:
        answers = await asyncio.gather(*(batcher.run(some) for some in asked))
        for some, answer in zip(asked, answers, strict=True):
            expected = np.stack(some)
            np.testing.assert_allclose(answer.vectors, model.embed(expected), atol=1e-5)
            np.testing.assert_allclose(answer.logits, model.logits(expected), atol=1e-5)

    with_batcher(runtime, work)
    assert sum(runtime.batches) == sum(counts)
    assert max(runtime.batches) <= 8


def test_waiting_images_go_through_together(model: ImageModel) -> None:
    runtime = Held(model)

    async def work(batcher: Batcher) -> None:
        first = asyncio.ensure_future(batcher.run(pictures(1)))
        await until(runtime.entered.is_set)
        others = [asyncio.ensure_future(batcher.run(pictures(1, seed))) for seed in range(11)]
        await asyncio.sleep(0.05)
        runtime.gate.set()
        await asyncio.gather(first, *others)

    with_batcher(runtime, work)
    assert runtime.batches == [1, 8, 3]


def test_a_single_request_does_not_wait(model: ImageModel) -> None:
    runtime = PlainRuntime(model)

    async def work(batcher: Batcher) -> None:
        for seed in range(5):
            await batcher.run(pictures(1, seed))

    with_batcher(runtime, work)
    assert runtime.batches == [1] * 5


def test_jobs_of_cancelled_requests_are_dropped(model: ImageModel) -> None:
    runtime = Held(model)

    async def work(batcher: Batcher) -> None:
        first = asyncio.ensure_future(batcher.run(pictures(1)))
        await until(runtime.entered.is_set)
        given_up = [asyncio.ensure_future(batcher.run(pictures(2, seed))) for seed in range(3)]
        last = asyncio.ensure_future(batcher.run(pictures(3)))
        await asyncio.sleep(0.05)
        for one in given_up:
            one.cancel()
        runtime.gate.set()
        await asyncio.gather(first, last)

    with_batcher(runtime, work)
    assert runtime.batches == [1, 3]


def test_reserve_refuses_images_beyond_the_limit(model: ImageModel) -> None:
    async def work(batcher: Batcher) -> None:
        with batcher.reserve(6):
            with batcher.reserve(4):
                assert batcher.waiting == 10
                with pytest.raises(RefusedError) as caught, batcher.reserve(1):
                    pass
            with batcher.reserve(4):
                pass
        assert batcher.waiting == 0
        assert caught.value.status == 503
        assert caught.value.headers == {"Retry-After": "1"}
        assert caught.value.body["error"]["limit"] == {"name": "max_waiting", "value": 10}

    with_batcher(PlainRuntime(model), work, most=10)


@pytest.mark.parametrize(
    ("error", "said"),
    [(RuntimeError("/secret/place: no"), "inference failed."), (MemoryError(), "not enough memory for inference.")],
)
def test_a_failed_batch_does_not_stop_the_batcher(model: ImageModel, error: Exception, said: str) -> None:
    runtime = Held(model)
    runtime.error = error
    runtime.gate.set()

    async def work(batcher: Batcher) -> None:
        answers = await asyncio.gather(*(batcher.run(pictures(1)) for _ in range(3)), return_exceptions=True)
        for answer in answers:
            assert isinstance(answer, RefusedError)
            assert (answer.status, str(answer)) == (503, said)
        assert batcher.failure
        runtime.error = None
        assert (await batcher.run(pictures(2))).vectors.shape == (2, model.embedding_dim)
        assert not batcher.failure

    with_batcher(runtime, work)


def test_close_finishes_waiting_jobs(model: ImageModel) -> None:
    runtime = Held(model)
    batcher = Batcher(runtime, 8, 64)

    async def work() -> None:
        jobs = [asyncio.ensure_future(batcher.run(pictures(1, seed))) for seed in range(5)]
        await until(runtime.entered.is_set)
        closing = asyncio.ensure_future(asyncio.to_thread(batcher.close))
        await asyncio.sleep(0.05)
        with pytest.raises(RefusedError):
            await batcher.run(pictures(1))
        runtime.gate.set()
        assert len(await asyncio.gather(*jobs)) == 5
        await closing

    asyncio.run(asyncio.wait_for(work(), 20))
    assert runtime.closed
