"""`decode` gives the same pixels for a path, bytes, an opened image and an array."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from image_factory import encoded
from lookalike.errors import InputError
from lookalike.image import CropMode, decode
from lookalike.image.decoding import UPRIGHT

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
        assert np.array_equal(decode(Image.open(io.BytesIO(data)), size), decode(data, size))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_turned_pictures_are_set_upright_as_in_the_training_data(kind: str, orientation: int) -> None:
    data = encoded(scene(90, 70), kind, orientation=orientation)
    assert np.array_equal(decode(Image.open(io.BytesIO(data)), 32), decode(data, 32))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_turned_picture_is_upright(kind: str) -> None:
    image = scene(40, 40)
    data = encoded(image.rotate(90), kind, orientation=6)  # 6: turn by 90 degrees clockwise to see it upright
    assert np.array_equal(decode(data, 40), np.asarray(image))


def test_every_form_gives_the_same(tmp_path: Path) -> None:
    image = scene(90, 70)
    path = tmp_path / "picture.png"
    image.save(path)
    for crop_mode in CROP_MODES:
        expected = decode(image, 32, crop_mode=crop_mode)
        assert expected.shape == (32, 32, 3)
        assert expected.dtype == np.uint8
        for picture in (path, str(path), path.read_bytes(), np.asarray(image), Image.open(path)):
            assert np.array_equal(decode(picture, 32, crop_mode=crop_mode), expected)
    assert not np.array_equal(decode(image, 32), expected)


def test_a_picture_of_the_size_stays_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    assert np.array_equal(decode(pixels, 24), pixels)
    wide = np.concatenate([pixels[:, :5], pixels, pixels[:, :6]], axis=1)  # (24, 35, 3)
    assert np.array_equal(decode(wide, 24), wide[:, 5:29])


def test_the_picture_given_is_not_changed() -> None:
    image = scene(90, 70)
    before = image.tobytes()
    decode(image, 16)
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
        (7, "image 3: a int"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(picture: object, word: str) -> None:
    with pytest.raises(InputError, match=word):
        decode(picture, 16, name="image 3")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.jpg: cannot be read"):
        decode(tmp_path / "gone.jpg", 16)
    short = tmp_path / "short.jpg"
    short.write_bytes(encoded(scene(90, 70), "JPEG")[:900])
    with pytest.raises(InputError, match=r"short\.jpg: damaged image"):
        decode(short, 16)
    huge = tmp_path / "huge.png"
    Image.new("1", (20_000, 8_000)).save(huge)
    with pytest.raises(InputError, match=r"huge\.png: 20000 × 8000 pixels are too many"):
        decode(huge, 16)


@pytest.mark.parametrize("size", [(400, 300), (1600, 1203), (3000, 2000)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_path_bytes_and_what_is_opened_of_them_are_one(tmp_path: Path, kind: str, size: tuple[int, int]) -> None:
    path = tmp_path / f"photo.{kind.lower()}"
    path.write_bytes(encoded(scene(*size), kind, orientation=6))
    data = path.read_bytes()
    expected = decode(path, 64)
    opened, of_bytes = Image.open(path), Image.open(io.BytesIO(data))
    assert np.array_equal(decode(data, 64), expected)
    for image in (opened, of_bytes):
        assert np.array_equal(decode(image, 64), expected)
        assert np.array_equal(decode(image, 64), expected)  # a second time
        image.load()  # it can still be used by whoever opened it
        assert image.getpixel((5, 5)) is not None


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "RGB", "I;16"])
def test_turned_tiffs_are_upright_in_every_form(tmp_path: Path, mode: str, orientation: int) -> None:
    """Pillow maps some of them into memory, and then does not turn them."""
    path = tmp_path / "scan.tif"
    path.write_bytes(encoded(scene(60, 40, mode), "TIFF", orientation=orientation))
    expected = decode(path.read_bytes(), 32)
    upright = decode(encoded(scene(60, 40, mode).transpose(UPRIGHT[orientation]), "TIFF") if orientation > 1
                      else path, 32)  # fmt: skip
    assert np.array_equal(expected, upright)
    loaded = Image.open(path)
    loaded.load()
    for picture in (path, Image.open(path), Image.open(io.BytesIO(path.read_bytes())), loaded):
        assert np.array_equal(decode(picture, 32), expected)


def test_12_bits_in_16_are_as_light_from_a_path_as_from_an_opened_picture(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    ramp = np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(path)
    for picture in (path, Image.open(path), Image.fromarray(ramp)):
        assert decode(picture, 64)[-1, -1].tolist() == [255, 255, 255]


def test_a_file_larger_than_any_picture_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    with path.open("wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    with pytest.raises(InputError, match=r"large\.jpg: .*512 MiB"):
        decode(path, 16)
