"""`ResizeCrop`: the pixels are those of the transforms of timm, with which pretrained weights were made."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lookalike.image import ResizeCrop, decode, decoding, resized_side
from lookalike.models.timm import import_timm


def photo(width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(width).integers(0, 256, (9, 7, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(300, 200), (201, 333), (97, 96), (40, 61), (500, 131)])
@pytest.mark.parametrize(
    "crop",
    [
        ResizeCrop(0.875),
        ResizeCrop(1.0, "bilinear"),
        ResizeCrop(0.95, "lanczos"),
        ResizeCrop(0.9, squash=True),
        ResizeCrop(1.0, squash=True),
    ],
    ids=str,
)
def test_pixels_are_those_of_timm(size: tuple[int, int], crop: ResizeCrop) -> None:
    transform = import_timm("x").data.create_transform(
        (3, 96, 96),
        interpolation=crop.interpolation,
        crop_pct=crop.share,
        crop_mode="squash" if crop.squash else "center",
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )
    image = photo(*size)
    expected = (transform(image).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    np.testing.assert_array_equal(decode(image, 96, crop_mode=crop), expected)


@pytest.mark.parametrize("size", [(300, 200), (201, 333), (40, 61), (500, 131)])
@pytest.mark.parametrize(
    "crop", [ResizeCrop(0.875), ResizeCrop(0.95, "lanczos"), ResizeCrop(1.0, squash=True)], ids=str
)
def test_the_part_that_is_kept_alone_has_the_same_pixels(
    size: tuple[int, int], crop: ResizeCrop, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = decode(photo(*size), 96, crop_mode=crop).astype(int)
    monkeypatch.setattr(decoding, "MAX_RESIZED_PIXELS", 0)
    assert np.abs(decode(photo(*size), 96, crop_mode=crop) - whole).max() <= 1


@pytest.mark.parametrize("size", [(1, 65_000), (65_000, 1)])
def test_a_thin_image_is_not_resized_whole(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray((np.arange(65_000).reshape(size[::-1]) % 2 * 255).astype(np.uint8)).convert("RGB")
    made: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def watched(image: Image.Image, size: tuple[int, int], *args: Any, **kwargs: Any) -> Image.Image:
        made.append(size)
        assert size[0] * size[1] < 1e8  # before it takes the memory
        return resize(image, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", watched)
    assert decode(image, 224, crop_mode=ResizeCrop(0.875)).shape == (224, 224, 3)
    assert made == [(224, 224)]


def test_an_image_of_the_size_is_not_touched() -> None:
    pixels = np.asarray(photo(96, 96))
    np.testing.assert_array_equal(decode(pixels, 96, crop_mode=ResizeCrop(0.5)), pixels)


def test_a_large_jpeg_is_reduced_only_as_far_as_the_crop_allows() -> None:
    file = io.BytesIO()
    photo(1600, 1200).save(file, "JPEG", quality=95)
    crop = ResizeCrop(0.5)
    assert resized_side(96, crop) == 192
    reduced = decode(file.getvalue(), 96, crop_mode=crop).astype(int)
    whole = decode(Image.open(file).convert("RGB"), 96, crop_mode=crop).astype(int)
    assert np.abs(reduced - whole).mean() < 2


@pytest.mark.parametrize(("share", "interpolation"), [(0.1, "bicubic"), (1.5, "bicubic"), (0.9, "random")])
def test_values_that_cannot_be(share: float, interpolation: str) -> None:
    with pytest.raises(ValueError, match=r"crop share|interpolation"):
        ResizeCrop(share, interpolation)  # type: ignore[arg-type]
