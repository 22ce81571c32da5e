"""A loss on pairs in two processes has the gradients of one process with the whole batch.

Real `torchrun`, on the CPU with gloo; a linear network without norms, so that nothing else depends on the share.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookalike.losses.registry import create_loss
from lookalike.training.distributed import all_gather

LOSSES = ("multi_similarity", "proxy_anchor", "pml/TripletMarginLoss")
STEPS = 3

# Each process has its half of each batch; the loss, and its memory, see all of it.
LAUNCHED = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, sys.argv[1])
from test_gather import LOSSES, STEPS, batch, make
from lookalike.training.distributed import all_gather

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
found = {}
for name in (*LOSSES, "memory"):
    network, loss = make(name)
    model = DistributedDataParallel(network)
    for step in range(STEPS):
        images, labels = (whole.chunk(size)[rank] for whole in batch(step))
        network.zero_grad()
        loss.zero_grad()
        value = loss(all_gather(model(images)), all_gather(labels))
        value.backward()
        tensors = {"loss": value.detach()}
        tensors |= {f"network.{key}": p.grad.clone() for key, p in network.named_parameters()}
        tensors |= {f"loss.{key}": p.grad.clone() for key, p in loss.named_parameters()}
        found |= {f"{name}/{step}/{key}": tensor for key, tensor in tensors.items()}

rows = torch.arange(6.0).reshape(3, 2).T.bfloat16() + 10 * rank  # not contiguous
rows.requires_grad_()
gathered = all_gather(rows)
(gathered * torch.arange(4.0).bfloat16()[:, None] * (rank + 1)).sum().backward()
found |= {"rows": rows.detach(), "gathered": gathered.detach(), "gradient": rows.grad}
torch.save(found, Path(sys.argv[2], f"{rank}.pt"))
dist.destroy_process_group()
"""


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Sixteen images of 12 numbers, four of each of four classes, so that pairs reach across the processes."""
    generator = torch.Generator().manual_seed(step)
    labels = torch.arange(16) % 4
    return torch.randn(4, 12, generator=generator)[labels] + torch.randn(16, 12, generator=generator), labels


def make(name: str) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 6))
    if name == "memory":
        return network, create_loss("multi_similarity", num_classes=4, dim=6, memory=40)
    return network, create_loss(name, num_classes=4, dim=6)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("gather")
    (folder / "launched.py").write_text(LAUNCHED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, str(folder / "launched.py"), str(Path(__file__).parent), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", [*LOSSES, "memory"])
def test_gradients_are_those_of_one_process_with_the_whole_batch(found: list[dict[str, Tensor]], name: str) -> None:
    network, loss = make(name)
    for step in range(STEPS):
        images, labels = batch(step)
        network.zero_grad()
        loss.zero_grad()
        value = loss(network(images), labels)
        value.backward()
        expected = {"loss": value.detach()}
        expected |= {f"network.{key}": p.grad for key, p in network.named_parameters()}
        expected |= {f"loss.{key}": p.grad for key, p in loss.named_parameters()}
        assert all(tensor.abs().max() > 1e-3 for tensor in expected.values())
        for of_rank in found:
            for key, tensor in expected.items():
                torch.testing.assert_close(of_rank[f"{name}/{step}/{key}"], tensor, rtol=1e-4, atol=1e-6)


def test_halves_on_their_own_would_not_do() -> None:
    """What the gathering is for: the mean of the halves' gradients is another gradient."""
    network, loss = make("multi_similarity")
    images, labels = batch(0)

    def gradient(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, network[0].weight)[0]

    whole = gradient(loss(network(images), labels))
    halves = [gradient(loss(network(x), y)) for x, y in zip(images.chunk(2), labels.chunk(2), strict=True)]
    assert F.cosine_similarity(whole.flatten(), sum(halves).flatten(), dim=0) < 0.98


def test_rows_come_in_the_order_of_the_ranks_and_gradients_are_summed(found: list[dict[str, Tensor]]) -> None:
    whole = torch.cat([of_rank["rows"] for of_rank in found])
    for rank, of_rank in enumerate(found):
        assert torch.equal(of_rank["gathered"], whole)
        assert of_rank["gathered"].dtype == torch.bfloat16
        # process r weighs row i by i (r + 1): three times i in all
        expected = 3 * torch.arange(4.0)[2 * rank : 2 * rank + 2, None].expand(2, 3)
        assert torch.equal(of_rank["gradient"].float(), expected)


def test_alone_there_is_nothing_to_gather() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert all_gather(x) is x
