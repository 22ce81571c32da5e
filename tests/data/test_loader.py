"""The loader: any step's batch at any time, the images that its sampler says, parts that make up the whole."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from lookalike.data import augment
from lookalike.data.loader import AUGMENT, Loader
from lookalike.data.pack import pack
from lookalike.data.sampler import BatchSampler, PKSampler, ShuffledSampler, seeded
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
    count: int = 23,
    batch_size: int = 6,
    settings: Augment = PLAIN,
    seed: int = 0,
    device: str = "cpu",
    sampler: BatchSampler | None = None,
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
        sampler=sampler,
    )


GOLDEN = {
    (23, 6, 0): [[2, 6, 15, 3, 4, 20], [1, 11, 9, 0, 7, 14], [14, 1, 15, 16, 17, 0]],
    (5, 12, 7): [
        [3, 0, 4, 1, 2, 3, 2, 4, 0, 1, 3, 1],
        [3, 4, 0, 2, 4, 0, 2, 1, 3, 0, 3, 1],
        [2, 0, 3, 1, 4, 4, 3, 2, 1, 0, 2, 4],
    ],
    (100, 8, 3): [[46, 61, 72, 37, 74, 16, 98, 76], [12, 20, 17, 75, 11, 71, 94, 53], [13, 82, 90, 9, 30, 27, 51, 40]],
}


@pytest.mark.parametrize(("count", "batch_size", "seed"), GOLDEN)
def test_golden_batches(count: int, batch_size: int, seed: int) -> None:
    """What a seed means must not change: the runs of the results were made with it, and can be made again."""
    made = loader(count, batch_size, seed=seed)
    assert [made.rows(step).tolist() for step in (0, 3, 40)] == GOLDEN[count, batch_size, seed]


def test_without_a_sampler_every_image_comes_once_an_epoch() -> None:
    made = loader(20, 5)
    assert isinstance(made.sampler, ShuffledSampler)
    assert len(made) == 20
    assert [made.epoch_of(step) for step in (0, 1, 4, 10)] == [0.0, 0.25, 1.0, 2.5]
    assert sorted(np.concatenate([made.rows(step) for step in range(4)])) == list(range(20))


def test_a_sampler_says_which_images_a_batch_has() -> None:
    sampler = PKSampler(labels(23), 3, 2, 4)
    made = loader(sampler=sampler)
    for step in (0, 7):
        batch = made.batch(step, 8)
        assert batch.targets.tolist() == labels(23)[sampler.rows(step)].tolist()
        assert (batch.targets[::2] == batch.targets[1::2]).all()
    assert made.epoch_of(23) == 6.0
    with pytest.raises(ValueError, match="the sampler's batches have 6 images, not 5"):
        loader(batch_size=5, sampler=sampler)


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
