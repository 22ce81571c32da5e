"""Pictures in any form become the same pixels, and those of `image.decode`."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lookalike.errors import InputError
from lookalike.image import CropMode, decode
from lookalike.models.prepare import prepare

ORIENTATION = 0x0112
CROP_MODES: tuple[CropMode, ...] = ("center", "squash")


def scene(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A picture with slopes, edges and noise."""
    rng = np.random.default_rng(width * height)
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    values = np.stack([x, y, (x + y) / 2], axis=2) + rng.normal(0, 12, (height, width, 3))
    image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    ImageDraw.Draw(image).ellipse((width // 5, height // 4, width // 2, height // 2), fill=(220, 30, 60))
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode in {"RGBA", "LA"}:
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image.convert(mode)


def encoded(image: Image.Image, kind: str, orientation: int | None = None) -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    image.save(file, kind, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("RGB", "JPEG"),
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
        ("RGB", "PNG"),
        ("RGBA", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("1", "PNG"),
        ("I;16", "PNG"),
        ("RGB", "WEBP"),
        ("RGBA", "WEBP"),
        ("P", "GIF"),
        ("RGB", "BMP"),
        ("RGB", "TIFF"),
        ("RGB", "PPM"),
    ],
)
@pytest.mark.parametrize("shape", [(64, 64), (96, 64), (50, 131), (30, 20), (700, 301)])
def test_the_pixels_are_those_of_the_training_data(mode: str, kind: str, shape: tuple[int, int]) -> None:
    data = encoded(scene(*shape, mode), kind)
    for size in (64, 33):
        assert np.array_equal(prepare(data, size), decode(data, size))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_turned_pictures_are_set_upright_as_in_the_training_data(kind: str, orientation: int) -> None:
    data = encoded(scene(90, 70), kind, orientation)
    assert np.array_equal(prepare(data, 32), decode(data, 32))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_turned_picture_is_upright(kind: str) -> None:
    image = scene(40, 40)
    data = encoded(image.rotate(90), kind, 6)  # 6: turn by 90 degrees clockwise to see it upright
    assert np.array_equal(prepare(data, 40), np.asarray(image))


def test_every_form_gives_the_same(tmp_path: Path) -> None:
    image = scene(90, 70)
    path = tmp_path / "picture.png"
    image.save(path)
    for crop_mode in CROP_MODES:
        expected = prepare(image, 32, crop_mode=crop_mode)
        assert expected.shape == (32, 32, 3)
        assert expected.dtype == np.uint8
        for picture in (path, str(path), path.read_bytes(), np.asarray(image), Image.open(path)):
            assert np.array_equal(prepare(picture, 32, crop_mode=crop_mode), expected)
    assert not np.array_equal(prepare(image, 32), expected)


def test_a_picture_of_the_size_stays_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    assert np.array_equal(prepare(pixels, 24), pixels)
    wide = np.concatenate([pixels[:, :5], pixels, pixels[:, :6]], axis=1)  # (24, 35, 3)
    assert np.array_equal(prepare(wide, 24), wide[:, 5:29])


def test_the_picture_given_is_not_changed() -> None:
    image = scene(90, 70)
    before = image.tobytes()
    prepare(image, 16)
    assert image.size == (90, 70)
    assert image.tobytes() == before


@pytest.mark.parametrize(
    ("picture", "word"),
    [
        (b"", "image 3: empty"),
        (b"GIF but not really", "image 3: not an image"),
        (np.zeros((8, 8), np.uint8), r"image 3: an array of uint8 \(8, 8\)"),
        (np.zeros((8, 8, 3), np.float32), "image 3: an array of float32"),
        (np.zeros((0, 8, 3), np.uint8), "image 3: an array"),
        (Image.new("F", (8, 8)), "image 3: pixels of more than 16 bits"),
        (7, "image 3: a int is not a picture"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(picture: object, word: str) -> None:
    with pytest.raises(InputError, match=word):
        prepare(picture, 16, "image 3")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.jpg: cannot be read"):
        prepare(tmp_path / "gone.jpg", 16)
    short = tmp_path / "short.jpg"
    short.write_bytes(encoded(scene(90, 70), "JPEG")[:900])
    with pytest.raises(InputError, match=r"short\.jpg: damaged image"):
        prepare(short, 16)
    huge = tmp_path / "huge.png"
    Image.new("1", (20_000, 6_000)).save(huge)
    with pytest.raises(InputError, match=r"huge\.png: 20000 × 6000 pixels are too many"):
        prepare(huge, 16)
