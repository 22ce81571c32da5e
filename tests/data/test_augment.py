"""Augmentation of whole batches against slow, obvious twins that treat one image at a time."""

from __future__ import annotations

import cmath
import math
import random
from dataclasses import fields, replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from lookalike.data import augment
from lookalike.data.augment import Draw, draw
from lookalike.data.synthetic import CLASS_NAMES, render
from lookalike.recipe import Augment

OFF = Augment(crop="none", flip=0)
ALL = Augment(
    crop="resized",
    cutout=0.4,
    brightness=0.4,
    contrast=0.5,
    saturation=0.6,
    hue=0.3,
    mixup=0.3,
    cutmix=1,
    mix_probability=0.7,
)
MEAN, STD = (0.48, 0.45, 0.4), (0.28, 0.27, 0.29)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 6, size: int = 16) -> Tensor:
    """(count, size, size, 3) uint8, each of another class."""
    drawn = [render(CLASS_NAMES[4 * i % 23], np.random.default_rng(i), 16) for i in range(count)]
    return torch.from_numpy(np.stack([np.array(Image.fromarray(one).resize((size, size))) for one in drawn]))


def normalised(count: int = 6, size: int = 16) -> Tensor:
    return augment.normalise(pictures(count, size), MEAN, STD)


# twins: one image, plain loops


def cropped(image: np.ndarray, pad: int, drawn: Draw, i: int) -> np.ndarray:
    size = len(image)
    top, left = (min(int(share[i].item() * (2 * pad + 1)), 2 * pad) for share in (drawn.top, drawn.left))
    out = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")[top : top + size, left : left + size]
    return out[:, ::-1] if drawn.flip[i] else out


def resized_crop(image: np.ndarray, drawn: Draw, i: int) -> np.ndarray:
    size = len(image)
    height = min(1.0, math.sqrt(drawn.scale[i].item() / drawn.ratio[i].item()))
    width = min(1.0, math.sqrt(drawn.scale[i].item() * drawn.ratio[i].item()))
    top, left = drawn.top[i].item() * (1 - height) * size, drawn.left[i].item() * (1 - width) * size
    out = np.zeros(image.shape)
    for y, x in product(range(size), range(size)):
        at_y = top + (y + 0.5) * height - 0.5  # the pixel's centre in the image, whose pixels are points
        at_x = left + (x + 0.5) * width - 0.5
        for row, column in product((math.floor(at_y), math.floor(at_y) + 1), (math.floor(at_x), math.floor(at_x) + 1)):
            weight = (1 - abs(at_y - row)) * (1 - abs(at_x - column))
            out[y, x] += weight * image[min(max(row, 0), size - 1), min(max(column, 0), size - 1)]
    return out[:, ::-1] if drawn.flip[i] else out


def coloured(image: np.ndarray, drawn: Draw, i: int) -> np.ndarray:
    size = len(image)
    bright, contrast, saturation = (f[i].item() for f in (drawn.brightness, drawn.contrast, drawn.saturation))

    def luma(pixel: np.ndarray) -> float:
        return float(0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2])

    out = image.astype(float) * bright
    mean = sum(luma(out[y, x]) for y, x in product(range(size), range(size))) / size**2
    for y, x in product(range(size), range(size)):
        pixel = mean + (out[y, x] - mean) * contrast
        out[y, x] = turned(luma(pixel) + (pixel - luma(pixel)) * saturation, drawn.hue[i].item())
    return out.clip(0, 255)


def turned(pixel: np.ndarray, angle: float) -> np.ndarray:
    """RGB with its colour, as a complex number of YIQ's I and Q, turned by an angle."""
    y, i, q = np.array(augment.YIQ) @ pixel
    colour = complex(i, q) * cmath.exp(1j * angle)
    return np.linalg.solve(np.array(augment.YIQ), [y, colour.real, colour.imag])


def in_square(y: int, x: int, centre: tuple[float, float], side: float, size: int) -> bool:
    """Whether the centre of pixel (y, x) lies in a square; centre and side in shares of the image's."""
    return all(abs((at + 0.5) / size - middle) < side / 2 for at, middle in zip((y, x), centre, strict=True))


def mixed(x: np.ndarray, labels: list[int], classes: int, drawn: Draw, i: int) -> tuple[np.ndarray, np.ndarray]:
    """The mixture of image i with the next one, and its target; x is (B, 3, S, S)."""
    size, other = x.shape[2], (i + 1) % len(x)
    out, share = x[i].copy(), drawn.mix[i].item()
    if drawn.paste[i]:
        side, centre = math.sqrt(1 - share), (drawn.mix_y[i].item(), drawn.mix_x[i].item())
        box = [(r, c) for r, c in product(range(size), range(size)) if in_square(r, c, centre, side, size)]
        for row, column in box:
            out[:, row, column] = x[other, :, row, column]
        share = 1 - len(box) / size**2
    else:
        out = share * x[i] + (1 - share) * x[other]
    target = np.zeros(classes)
    target[labels[i]] += share
    target[labels[other]] += 1 - share
    return out, target


# crops


@given(
    seed=st.integers(0, 2**32),
    size=st.integers(2, 20),
    pad=st.integers(0, 32),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_padded_crops_and_flips_are_the_twin_s(seed: int, size: int, pad: int, flip: float) -> None:
    settings = Augment(crop="pad", pad=pad, flip=flip)
    images, drawn = pictures(4, size), draw(settings, 4, seeded(seed))
    out = augment.crop_and_flip(images, settings, drawn)
    assert out.dtype == torch.uint8
    here = round(pad * size / 64)  # the pad is given for 64 pixels
    for i in range(4):
        assert np.array_equal(out[i].numpy(), cropped(images[i].numpy(), here, drawn, i))


def test_a_padded_crop_starts_anywhere_within_the_pad_equally_often() -> None:
    at = torch.arange(64, dtype=torch.uint8)
    image = torch.stack([at[:, None].expand(64, 64), at[None].expand(64, 64), at[:, None].expand(64, 64)], 2)
    settings = Augment(crop="pad", pad=2, flip=0)
    drawn = draw(settings, 5000, seeded())
    out = augment.crop_and_flip(image.expand(5000, 64, 64, 3), settings, drawn)
    for channel in (0, 1):
        starts, counts = (out[:, 30, 30, channel].int() - 30).unique(return_counts=True)
        assert starts.tolist() == [-2, -1, 0, 1, 2]
        assert (counts - 1000).abs().max() < 5 * math.sqrt(1000 * 0.8)


@pytest.mark.parametrize("share", [0.0, 1 - 2**-24])
def test_a_crop_at_the_end_of_its_room_stays_inside(share: float) -> None:
    images = pictures(2)
    drawn = replace(draw(OFF, 2, seeded()), top=torch.full((2,), share), left=torch.full((2,), share))
    settings = Augment(crop="pad", pad=8, flip=0)
    out = augment.crop_and_flip(images, settings, drawn)
    offset = -2 if share == 0 else 2
    assert out[0, 8, 8].tolist() == images[0, 8 + offset, 8 + offset].tolist()


@given(seed=st.integers(0, 2**32), low=st.floats(0.05, 1), ratio=st.floats(0.3, 1))
def test_resized_crops_are_the_twin_s_within_rounding(seed: int, low: float, ratio: float) -> None:
    settings = Augment(crop="resized", scale=(low, 1.0), ratio=(ratio, 1 / ratio))
    images, drawn = pictures(2, 9), draw(settings, 2, seeded(seed))
    out = augment.crop_and_flip(images, settings, drawn)
    assert out.dtype == torch.uint8
    for i in range(2):
        assert np.abs(out[i].numpy() - resized_crop(images[i].numpy(), drawn, i)).max() < 0.51


def test_a_resized_crop_of_everything_is_the_image() -> None:
    images = pictures()
    settings = Augment(crop="resized", scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0)
    assert torch.equal(augment.crop_and_flip(images, settings, draw(settings, 6, seeded())), images)
    settings = Augment(crop="resized", scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=1)
    assert torch.equal(augment.crop_and_flip(images, settings, draw(settings, 6, seeded())), images.flip(2))


def test_nothing_asked_nothing_done() -> None:
    images = pictures()
    drawn = draw(OFF, 6, seeded())
    assert torch.equal(augment.crop_and_flip(images, OFF, drawn), images)
    assert augment.colour(images, OFF, drawn) is images
    x = normalised()
    assert torch.equal(augment.cutout(x.clone(), 0, drawn), x)
    assert torch.equal(drawn.mix, torch.ones(6))


# size, mean, colour


@pytest.mark.parametrize("size", [5, 8, 11, 16, 24])
def test_resizing_is_pillow_s_antialiased_bilinear(size: int) -> None:
    images = pictures()
    out = augment.resize(images, size)
    assert out.dtype == torch.uint8
    for i in range(6):
        ours = out[i].numpy().astype(int)
        theirs = np.asarray(Image.fromarray(images[i].numpy()).resize((size, size), Image.Resampling.BILINEAR))
        assert np.abs(ours - theirs).max() <= 1
    if size == 16:
        assert torch.equal(out, images)


def test_normalising_is_a_mean_and_a_std_per_channel() -> None:
    images = pictures(2)
    x = augment.normalise(images, MEAN, STD)
    assert x.shape == (2, 3, 16, 16)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    for i, row, column, c in product(range(2), range(16), range(16), range(3)):
        expected = (images[i, row, column, c].item() / 255 - MEAN[c]) / STD[c]
        assert x[i, c, row, column].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "strengths", [(0.4, 0, 0, 0), (0, 0.7, 0, 0), (0, 0, 1.0, 0), (0, 0, 0, 1.0), (0.9, 0.9, 0.9, 0.9)]
)
def test_colours_are_the_twin_s_within_rounding(strengths: tuple[float, float, float, float]) -> None:
    brightness, contrast, saturation, hue = strengths
    settings = Augment(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
    images, drawn = pictures(), draw(settings, 6, seeded())
    before = images.clone()
    out = augment.colour(images, settings, drawn)
    assert out.dtype == torch.uint8
    assert torch.equal(images, before), "the images that came in stay as they were"
    assert not torch.equal(out, images)
    for i in range(6):
        assert np.abs(out[i].numpy() - coloured(images[i].numpy(), drawn, i)).max() < 0.51


def test_without_saturation_a_picture_is_gray_and_without_contrast_it_is_plain() -> None:
    images, none = pictures(), torch.zeros(6)
    drawn = draw(OFF, 6, seeded())
    settings = Augment(saturation=1.0)
    gray = augment.colour(images, settings, replace(drawn, saturation=none)).int()
    assert (gray.amax(3) - gray.amin(3)).max() == 0
    plain = augment.colour(images, settings, replace(drawn, contrast=none, saturation=none))
    assert all(len(one.unique()) == 1 for one in plain)


def test_hue_turns_colours_and_leaves_gray_and_luma() -> None:
    gray = torch.full((1, 2, 2, 3), 120, dtype=torch.uint8)
    red = torch.tensor([150, 60, 60], dtype=torch.uint8).expand(1, 2, 2, 3)
    drawn = replace(draw(OFF, 1, seeded()), hue=torch.tensor([math.pi]))
    settings = Augment(hue=1.0)
    assert torch.equal(augment.colour(gray, settings, drawn), gray)
    opposite = augment.colour(red, settings, drawn).float()[0, 0, 0]
    assert opposite[0] < opposite[1]
    weights = torch.tensor([0.299, 0.587, 0.114])
    assert opposite @ weights == pytest.approx((red[0, 0, 0].float() @ weights).item(), abs=1)


# what is cut out and what is mixed


@pytest.mark.parametrize("size", [16, 15])
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_cutout_is_a_square_of_zeros_cut_at_the_border(size: int, share: float) -> None:
    x, drawn = normalised(6, size), draw(OFF, 6, seeded(4))
    before = x.clone()
    out = augment.cutout(x, share, drawn)
    assert out is x, "in place"
    for i, row, column in product(range(6), range(size), range(size)):
        centre = drawn.cut_y[i].item(), drawn.cut_x[i].item()
        expected = torch.zeros(3) if in_square(row, column, centre, share, size) else before[i, :, row, column]
        assert torch.equal(out[i, :, row, column], expected)


def test_a_square_in_the_middle_has_the_side_that_was_asked_for() -> None:
    half = torch.full((1,), 0.5)
    drawn = replace(draw(OFF, 1, seeded()), cut_y=half, cut_x=half)
    x = augment.cutout(torch.ones(1, 3, 16, 16), 0.25, drawn)
    assert (x == 0).sum() == 3 * 4 * 4
    assert x[:, :, 6:10, 6:10].sum() == 0


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0), (0, 1.0), (0.4, 1.0)])
@pytest.mark.parametrize("seed", range(3))
def test_mixtures_and_their_targets_are_the_twin_s(mixup: float, cutmix: float, seed: int) -> None:
    settings = Augment(mixup=mixup, cutmix=cutmix, mix_probability=0.8)
    x, labels = normalised(), torch.tensor([0, 2, 2, 4, 1, 0])
    drawn = draw(settings, 6, seeded(seed))
    before = x.clone()
    out, targets = augment.mix(x, labels, 5, drawn)
    assert torch.equal(x, before), "the images that came in stay as they were"
    assert targets.shape == (6, 5)
    assert targets.dtype == out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(targets.sum(1), torch.ones(6))
    for i in range(6):
        image, target = mixed(before.numpy(), labels.tolist(), 5, drawn, i)
        np.testing.assert_allclose(out[i].numpy(), image, atol=1e-5)
        np.testing.assert_allclose(targets[i].numpy(), target, atol=1e-6)
        if drawn.mix[i] == 1:
            assert torch.equal(out[i], before[i])


def test_a_pasted_box_at_the_border_counts_for_what_is_seen_of_it() -> None:
    drawn = replace(
        draw(OFF, 2, seeded()),
        mix=torch.tensor([0.75, 0.75]),  # a box of half the side
        mix_y=torch.tensor([0.5, 0.0]),
        mix_x=torch.tensor([0.5, 0.0]),
        paste=torch.tensor([True, True]),
    )
    _, targets = augment.mix(normalised(2), torch.tensor([0, 1]), 2, drawn)
    assert targets.tolist() == [[0.75, 0.25], [0.0625, 0.9375]]


# draws


def test_the_same_seed_draws_the_same_and_no_global_state_is_touched() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first, second, other = (draw(ALL, 32, seeded(seed)) for seed in (7, 7, 8))
    x = augment.crop_and_flip(pictures(32), ALL, first)
    x = augment.cutout(augment.normalise(augment.colour(x, ALL, first), MEAN, STD), 0.3, first)
    augment.mix(x, torch.arange(32), 32, first)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]
    for field in fields(Draw):
        assert torch.equal(getattr(first, field.name), getattr(second, field.name))
        assert not torch.equal(getattr(first, field.name), getattr(other, field.name)), field.name


def test_the_generator_is_advanced() -> None:
    generator = seeded()
    assert not torch.equal(draw(ALL, 8, generator).top, draw(ALL, 8, generator).top)


def test_every_image_draws_its_own_numbers() -> None:
    drawn = draw(ALL, 64, seeded())
    for field in fields(Draw):
        values = getattr(drawn, field.name)
        assert values.shape == (64,)
        different = len(values.unique())
        if values.dtype == torch.bool:
            assert different == 2, field.name
        elif field.name == "mix":  # about 0.3 of them are left alone
            assert 40 < different < 64
        else:
            assert values.dtype == torch.float32
            assert different == 64, field.name


def test_one_setting_does_not_move_another_s_numbers() -> None:
    changed = {
        "crop": "none",
        "pad": 9,
        "scale": (0.2, 0.3),
        "ratio": (1.0, 1.0),
        "flip": 0.0,
        "cutout": 0.0,
        "brightness": 0.0,
        "contrast": 0.0,
        "saturation": 0.0,
        "hue": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "mix_probability": 0.1,
    }
    assert changed.keys() == Augment.model_fields.keys()
    moved_by = {"mixup": {"mix", "paste"}, "cutmix": {"mix", "paste"}, "mix_probability": {"mix"}}
    whole = draw(ALL, 32, seeded())
    for name, value in changed.items():
        other = draw(ALL.model_copy(update={name: value}), 32, seeded())
        moved = {f.name for f in fields(Draw) if not torch.equal(getattr(whole, f.name), getattr(other, f.name))}
        assert moved <= moved_by.get(name, {name}), name


def test_draws_have_the_ranges_and_frequencies_of_the_settings() -> None:
    count = 20_000
    settings = ALL.model_copy(update={"flip": 0.3, "scale": (0.2, 0.8), "ratio": (0.5, 2.0)})
    drawn = draw(settings, count, seeded())

    def about(values: Tensor, mean: float, spread: float) -> None:
        assert abs(values.double().mean().item() - mean) < 5 * spread / math.sqrt(count)

    about(drawn.flip, 0.3, 0.46)
    about(drawn.paste, 0.5, 0.5)
    about(drawn.mix < 1, 0.7, 0.46)
    about(drawn.scale, 0.5, 0.18)
    about(drawn.ratio.log(), 0, 0.41)
    for values, low, high in (
        (drawn.top, 0, 1),
        (drawn.left, 0, 1),
        (drawn.cut_y, 0, 1),
        (drawn.cut_x, 0, 1),
        (drawn.mix_y, 0, 1),
        (drawn.mix_x, 0, 1),
        (drawn.scale, 0.2, 0.8),
        (drawn.ratio, 0.5, 2),
        (drawn.brightness, 0.6, 1.4),
        (drawn.contrast, 0.5, 1.5),
        (drawn.saturation, 0.4, 1.6),
        (drawn.hue, -0.3 * math.pi, 0.3 * math.pi),
    ):
        room = 0.01 * (high - low)
        assert low - 1e-6 <= values.min() < low + room
        assert high - room < values.max() <= high + 1e-6


def test_draws_do_not_depend_on_each_other() -> None:
    drawn = draw(ALL, 20_000, seeded())
    values = torch.stack([getattr(drawn, field.name).double() for field in fields(Draw)])
    correlation = torch.corrcoef(values) - torch.eye(len(values))
    names = [field.name for field in fields(Draw)]
    mix, paste = names.index("mix"), names.index("paste")
    correlation[mix, paste] = correlation[paste, mix] = 0  # each kind has a distribution of its own
    assert correlation.abs().max() < 5 / math.sqrt(20_000)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_shares_follow_a_beta_distribution(kind: str, alpha: float) -> None:
    drawn = draw(Augment(**{kind: alpha}), 20_000, seeded())
    share = drawn.mix.double()
    assert drawn.paste.all() if kind == "cutmix" else not drawn.paste.any()
    variance = 1 / (4 * (2 * alpha + 1))
    assert share.mean().item() == pytest.approx(0.5, abs=5 * math.sqrt(variance / 20_000))
    assert share.var().item() == pytest.approx(variance, rel=0.05)
    assert share.min() >= 0
    assert share.max() <= 1


def test_the_smallest_shares_are_still_numbers() -> None:
    drawn = draw(Augment(mixup=1e-3, cutmix=1e-3), 1000, seeded())
    assert torch.isfinite(drawn.mix).all()


@pytest.mark.parametrize("settings", [ALL, Augment(pad=20, cutout=0.4, brightness=0.3)], ids=["resized", "pad"])
def test_parts_of_a_batch_are_the_whole(settings: Augment) -> None:
    images, drawn = pictures(12), draw(settings, 12, seeded())

    def chain(images: Tensor, drawn: Draw) -> Tensor:
        x = augment.colour(augment.resize(augment.crop_and_flip(images, settings, drawn), 12), settings, drawn)
        return augment.cutout(augment.normalise(x, MEAN, STD), settings.cutout, drawn)

    parts = [chain(images[a:b], drawn.part(a, b)) for a, b in ((0, 5), (5, 6), (6, 12))]
    torch.testing.assert_close(torch.cat(parts), chain(images, drawn), rtol=0, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_makes_the_same_batch() -> None:
    images, labels = pictures(), torch.tensor([0, 2, 2, 4, 1, 0])
    there = torch.device("cuda")
    for settings in (ALL, ALL.model_copy(update={"crop": "pad", "pad": 20})):
        drawn = draw(settings, 6, seeded())
        results = []
        for device, numbers in ((torch.device("cpu"), drawn), (there, drawn.to(there))):
            crops = augment.crop_and_flip(images.to(device), settings, numbers)
            x = augment.colour(augment.resize(crops, 12), settings, numbers)
            x = augment.cutout(augment.normalise(x, MEAN, STD), settings.cutout, numbers)
            results.append([one.cpu() for one in (crops, *augment.mix(x, labels.to(device), 5, numbers))])
        (crops_cpu, x_cpu, targets_cpu), (crops_gpu, x_gpu, targets_gpu) = results
        if settings.crop == "pad":
            assert torch.equal(crops_cpu, crops_gpu)
        assert (x_cpu - x_gpu).abs().mean() < 1 / 255 / min(STD), "less than a level of brightness"
        torch.testing.assert_close(targets_cpu, targets_gpu)
