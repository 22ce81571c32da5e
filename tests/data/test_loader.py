"""The loader: any step's batch at any time, every image once an epoch, parts that make up the whole."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lookalike.data import augment
from lookalike.data.loader import AUGMENT, Loader, seeded
from lookalike.data.pack import pack
from lookalike.data.tiny_imagenet import read_tiny_imagenet
from lookalike.recipe import Augment, Data

PLAIN = Augment(crop="none", flip=0)
STRONG = Augment(pad=16, cutout=0.4, brightness=0.4, contrast=0.3, saturation=0.3)
MIXED = Augment(mixup=0.4, cutmix=1.0, mix_probability=0.8)
MEAN, STD = (0.48, 0.45, 0.4), (0.28, 0.27, 0.29)
CLASSES = 5


def images(count: int, size: int = 8) -> np.ndarray:
    """(count, size, size, 3) uint8; image i is full of noise, but for its first pixel, whose red is i."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    pixels[:, 0, 0, 0] = np.arange(count)
    return pixels


def labels(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int64) * 7 % CLASSES


def loader(
    count: int = 23, batch_size: int = 6, settings: Augment = PLAIN, seed: int = 0, device: str = "cpu"
) -> Loader:
    return Loader(
        images(count),
        labels(count),
        CLASSES,
        batch_size=batch_size,
        settings=settings,
        mean=MEAN,
        std=STD,
        seed=seed,
        device=torch.device(device),
    )


@given(
    count=st.integers(1, 30),
    batch_size=st.integers(1, 70),
    epochs=st.integers(1, 4),
    seed=st.integers(0, 2**63),
)
def test_every_epoch_has_every_image_once_whatever_the_batch_size(
    count: int, batch_size: int, epochs: int, seed: int
) -> None:
    made = loader(count, batch_size, seed=seed)
    assert len(made) == count
    steps = -(-count * epochs // batch_size)
    batches = [made.rows(step) for step in range(steps)]
    assert {len(rows) for rows in batches} == {batch_size}
    stream = np.concatenate(batches)
    for epoch in range(epochs):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [tuple(loader(50, 50, seed=seed).rows(epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    assert tuple(range(50)) not in orders


def test_epochs_are_counted_in_images() -> None:
    made = loader(20, 5)
    assert [made.epoch_of(step) for step in (0, 1, 4, 10)] == [0.0, 0.25, 1.0, 2.5]


@pytest.mark.parametrize("settings", [PLAIN, STRONG, MIXED], ids=["plain", "strong", "mixed"])
def test_a_batch_is_a_function_of_its_step(settings: Augment) -> None:
    asked = loader(settings=settings)
    forwards = [asked.batch(step, 8) for step in range(9)]
    torch.manual_seed(5)
    for step in (8, 0, 3, 7, 3):
        for again in (asked.batch(step, 8), loader(settings=settings).batch(step, 8)):
            assert torch.equal(again.images, forwards[step].images)
            assert torch.equal(again.targets, forwards[step].targets)
    other_seed = loader(settings=settings, seed=1).batch(0, 8)
    assert not torch.equal(other_seed.images, forwards[0].images)


def test_each_step_draws_its_own_augmentation() -> None:
    made = loader(1, 1, settings=Augment(crop="none", brightness=0.5, flip=0))
    first, second = made.batch(0, 8), made.batch(1, 8)
    assert not torch.equal(first.images, second.images), "the same image looks different in each epoch"


def test_no_global_random_state_is_touched() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    loader(settings=MIXED).batch(3, 8)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


def test_a_plain_batch_is_the_images_and_labels_of_its_rows() -> None:
    made = loader()
    batch = made.batch(3, 8)  # reaches from the first epoch into the second
    rows = made.rows(3)
    expected = (images(23)[rows] / 255 - MEAN) / STD
    assert batch.images.shape == (6, 3, 8, 8)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(batch.images.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)
    assert batch.targets.dtype == torch.int64
    assert batch.targets.tolist() == labels(23)[rows].tolist()


def test_an_augmented_batch_is_the_chain_of_augmentations() -> None:
    settings = STRONG.model_copy(update={"mixup": 0.4, "cutmix": 1.0})
    made = loader(settings=settings)
    batch = made.batch(5, 12)
    drawn = augment.draw(settings, 6, torch.Generator().manual_seed(seeded(0, AUGMENT, 5)))
    x = augment.crop_and_flip(torch.from_numpy(images(23)[made.rows(5)]), settings, drawn)
    x = augment.colour(augment.resize(x, 12), settings, drawn)
    x = augment.cutout(augment.normalise(x, MEAN, STD), settings.cutout, drawn)
    x, targets = augment.mix(x, torch.from_numpy(labels(23)[made.rows(5)]), CLASSES, drawn)
    assert torch.equal(batch.images, x)
    assert torch.equal(batch.targets, targets)


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
@pytest.mark.parametrize("settings", [PLAIN, STRONG, Augment(crop="resized", cutout=0.3)], ids=["plain", "pad", "area"])
def test_parts_put_together_are_the_whole(settings: Augment, parts: int) -> None:
    whole = loader(settings=settings).batch(3, 6)
    shares = [loader(settings=settings).batch(3, 6, part, parts) for part in range(parts)]
    assert {len(share.images) for share in shares} == {6 // parts}
    torch.testing.assert_close(torch.cat([share.images for share in shares]), whole.images, rtol=0, atol=1e-6)
    assert torch.equal(torch.cat([share.targets for share in shares]), whole.targets)


def test_mixing_looks_no_further_than_the_part() -> None:
    settings = Augment(crop="none", flip=0, mixup=1.0)
    made = loader(24, 6, settings)
    rows, whole = made.rows(2), made.batch(2, 8)
    for part in range(2):
        share = made.batch(2, 8, part, 2)
        of_part = labels(24)[rows[3 * part : 3 * part + 3]]
        for i in range(3):
            present = set(np.flatnonzero(share.targets[i].numpy()).tolist())
            assert present <= {of_part[i], of_part[(i + 1) % 3]}
        both = slice(3 * part, 3 * part + 2)  # these have their neighbour in the part
        torch.testing.assert_close(share.images[:2], whole.images[both], rtol=0, atol=1e-6)
        torch.testing.assert_close(share.targets[:2], whole.targets[both], rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", [Augment(mixup=0.4), Augment(cutmix=1.0), MIXED])
def test_mixed_targets_are_shares_of_the_classes(settings: Augment) -> None:
    batch = loader(settings=settings).batch(0, 8)
    assert batch.targets.shape == (6, CLASSES)
    assert batch.targets.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(batch.targets.sum(1), torch.ones(6))


@pytest.mark.parametrize("size", [4, 8, 12])
def test_a_batch_comes_at_the_resolution_that_is_asked_for(size: int) -> None:
    made = loader()
    batch = made.batch(1, size)
    assert batch.images.shape == (6, 3, size, size)
    small = augment.resize(torch.from_numpy(images(23)[made.rows(1)]), size)
    assert torch.equal(batch.images, augment.normalise(small, MEAN, STD))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_the_resolution_moves_no_draw() -> None:
    """Crops and colours are the same at half the size, up to what resizing rounds."""
    settings = Augment(pad=8, brightness=0.5, cutout=0.0)
    smooth = np.repeat(np.arange(8, dtype=np.uint8)[:, None] * 16, 8, 1)
    pixels = np.repeat(np.broadcast_to(smooth, (12, 8, 8))[..., None], 3, 3)
    made = Loader(
        pixels,
        labels(12),
        CLASSES,
        batch_size=12,
        settings=settings,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        seed=0,
        device=torch.device("cpu"),
    )
    large, half = made.batch(0, 8).images, made.batch(0, 4).images
    pooled = torch.nn.functional.avg_pool2d(large, 2)
    assert (pooled[:, :, 1:3] - half[:, :, 1:3]).abs().max() < 4 / 255


def test_seeds_are_well_mixed() -> None:
    seeds = Counter(seeded(a, b, c) for a in range(8) for b in range(8) for c in range(8))
    assert max(seeds.values()) == 1
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeded(1, 2) != seeded(2, 1)
    bits = np.array([[seed >> bit & 1 for bit in range(63)] for seed in seeds])
    assert np.abs(bits.mean(0) - 0.5).max() < 0.15


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_keeps_the_images_and_makes_the_same_batches() -> None:
    there, here = loader(settings=STRONG, device="cuda"), loader(settings=STRONG)
    assert there.resident is not None
    assert there.resident.device.type == "cuda"
    for step in (0, 3, 7):
        gpu, cpu = there.batch(step, 8), here.batch(step, 8)
        assert gpu.images.device.type == gpu.targets.device.type == "cuda"
        assert torch.equal(gpu.targets.cpu(), cpu.targets)
        assert (gpu.images.cpu() - cpu.images).abs().mean() < 1 / 255 / min(STD), "less than a level of brightness"


def test_the_cpu_reads_from_the_pack_as_it_goes() -> None:
    assert loader().resident is None


@pytest.mark.real_data
def test_an_epoch_of_real_images(real_data: Path, tmp_path: Path) -> None:
    catalog = read_tiny_imagenet(real_data / "tiny-imagenet-200")
    made = pack(catalog.select(catalog.rows_of("train")[:300]), 32, cache=tmp_path)
    data = Data()
    stream = Loader(
        made.images,
        made.labels,
        len(catalog.class_ids),
        batch_size=64,
        settings=PLAIN,
        mean=data.mean,
        std=data.std,
        seed=0,
        device=torch.device("cpu"),
    )
    whole = torch.cat([stream.batch(step, 32).images for step in range(5)])[:300]
    seen = Counter(torch.cat([stream.batch(step, 32).targets for step in range(5)])[:300].tolist())
    assert seen == Counter(made.labels.tolist())
    assert whole.mean((0, 2, 3)).abs().max() < 0.4, "near the mean that the recipe takes off"
    assert (whole.std((0, 2, 3)) - 1).abs().max() < 0.3
