"""Decoding: the same upright RGB picture whatever the file, or a refusal that names it."""

from __future__ import annotations

import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from image_factory import encoded
from lookalike.errors import InputError
from lookalike.image import decode
from lookalike.image import decoding as image_module

rng = np.random.default_rng(0)
NOISE = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    """A picture without detail: red grows downwards, green to the right."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([y * 255 / (height - 1), x * 255 / (width - 1), np.full_like(y, 64)], axis=-1).astype(np.uint8)


def test_a_picture_of_the_right_size_is_not_touched() -> None:
    for size in (None, (24, 32)):
        decoded = decode(encoded(NOISE), size)
        assert decoded.dtype == np.uint8
        assert decoded.flags.writeable
        np.testing.assert_array_equal(decoded, NOISE)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF", "JPEG"])
def test_every_format_is_read(kind: str) -> None:
    flat = np.full((16, 16, 3), (200, 100, 50), dtype=np.uint8)
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode(encoded(flat, kind, **options))
    np.testing.assert_allclose(decoded.astype(int), flat.astype(int), atol=4)  # GIF and JPEG round colours


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :16] = (255, 0, 0)  # top left
    upright[:8, 16:] = (0, 255, 0)
    upright[8:, :16] = (0, 0, 255)
    stored = upright  # by the definition of the tag, which says where the stored row 0 and column 0 belong
    if orientation in (5, 6, 7, 8):  # row 0 is a side
        stored = stored.transpose(1, 0, 2)
    if orientation in (3, 4, 6, 7):  # row 0 is the bottom or the right side
        stored = stored[::-1]
    if orientation in (2, 3, 7, 8):  # column 0 is the right side or the bottom
        stored = stored[:, ::-1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    decoded = decode(encoded(np.ascontiguousarray(stored), kind, exif=exif, **options))
    assert decoded.shape == upright.shape
    np.testing.assert_allclose(decoded[4::8, 8::16].astype(int), upright[4::8, 8::16].astype(int), atol=24)


def test_a_broken_exif_block_says_nothing_about_the_picture() -> None:
    decoded = decode(encoded(NOISE, "PNG", exif=b"Exif\0\0not a tiff header at all"))
    np.testing.assert_array_equal(decoded, NOISE)


def test_gray_becomes_rgb() -> None:
    gray = NOISE[..., 0]
    np.testing.assert_array_equal(decode(encoded(gray)), np.stack([gray] * 3, axis=-1))


def test_black_and_white_becomes_rgb() -> None:
    decoded = decode(encoded(Image.fromarray(NOISE[..., 0] > 127)))
    assert set(np.unique(decoded)) == {0, 255}


def test_palette_becomes_rgb() -> None:
    palette = Image.fromarray(NOISE).quantize(16)
    np.testing.assert_array_equal(decode(encoded(palette)), np.asarray(palette.convert("RGB")))


def test_cmyk_becomes_rgb() -> None:
    flat = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    for kind in ("JPEG", "TIFF"):
        np.testing.assert_allclose(decode(encoded(flat, kind))[8, 8].astype(int), (255, 0, 0), atol=4)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_becomes_white(mode: str) -> None:
    picture = Image.new(mode, (4, 4), (0, 0, 0, 0) if mode == "RGBA" else (0, 0))
    picture.putpixel((1, 1), (0, 0, 0, 128) if mode == "RGBA" else (0, 128))
    decoded = decode(encoded(picture))
    assert decoded[0, 0].tolist() == [255, 255, 255]
    assert decoded[1, 1].tolist() == [127, 127, 127]


def test_a_transparent_colour_becomes_white() -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((0, 0), 0)
    rgb = Image.new("RGB", (4, 4), (10, 20, 30))
    rgb.putpixel((0, 0), (1, 2, 3))
    for data in (encoded(palette, transparency=0), encoded(rgb, transparency=(1, 2, 3))):
        decoded = decode(data)
        assert decoded[0, 0].tolist() == [255, 255, 255]
        assert decoded[3, 3].tolist() == [10, 20, 30]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_become_eight(kind: str) -> None:
    deep = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    assert decode(encoded(deep, kind))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_sixteen_bit_colour_becomes_eight() -> None:
    rows = b"\0" + np.array([0, 32896, 65535], ">u2").tobytes()  # one pixel: black red, half green, full blue
    header = b"IHDR" + (1).to_bytes(4) + (1).to_bytes(4) + bytes([16, 2, 0, 0, 0])
    chunks = [header, b"IDAT" + zlib.compress(rows), b"IEND"]
    png = b"\x89PNG\r\n\x1a\n" + b"".join((len(c) - 4).to_bytes(4) + c + zlib.crc32(c).to_bytes(4) for c in chunks)
    assert decode(png)[0, 0].tolist() == [0, 128, 255]


def test_the_first_picture_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(decode(data)[0, 0].astype(int), (255, 0, 0), atol=2)


def test_the_box_is_cut_out_before_resizing() -> None:
    np.testing.assert_array_equal(decode(encoded(NOISE), box=(4, 6, 20, 22)), NOISE[6:22, 4:20])
    np.testing.assert_array_equal(decode(encoded(NOISE), 16, box=(4, 6, 20, 22)), NOISE[6:22, 4:20])


def test_a_box_over_the_edge_is_clipped_and_one_beside_the_picture_refused() -> None:
    np.testing.assert_array_equal(decode(encoded(NOISE), box=(-5, 20, 40, 99)), NOISE[20:])
    with pytest.raises(InputError, match=r"a\.png: the box .* 32 × 24"):
        decode(encoded(NOISE), box=(32, 0, 40, 24), name="a.png")


@given(st.integers(4, 24), st.integers(4, 24), st.integers(1, 4), st.integers(0, 6), st.booleans())
def test_resizing_covers_and_cuts_the_middle(height: int, width: int, times: int, margin: int, upright: bool) -> None:
    """Against the obvious twin, where that is exact: resize the whole picture to cover, then cut whole pixels off."""
    tall, wide = (height + 2 * margin, width) if upright else (height, width + 2 * margin)
    picture = smooth(tall * times, wide * times)
    whole = np.asarray(Image.fromarray(picture).resize((wide, tall), Image.Resampling.BICUBIC))
    slow = whole[margin : margin + height] if upright else whole[:, margin : margin + width]
    fast = decode(encoded(picture), (height, width))
    step = 255 / (min(picture.shape[:2]) - 1)  # between two pixels of the source: at the cut, the filter sees one side
    np.testing.assert_allclose(fast.astype(int), slow.astype(int), atol=step / 2 + 2)


@given(st.integers(8, 90), st.integers(8, 90), st.integers(8, 60), st.integers(8, 60))
def test_any_size_becomes_any_other_without_distortion(height: int, width: int, to_height: int, to_width: int) -> None:
    fast = decode(encoded(smooth(height, width)), (to_height, to_width)).astype(int)
    assert fast.shape == (to_height, to_width, 3)
    scale = max(to_height / height, to_width / width)
    red, green = (abs(fast[-1, -1, channel] - fast[0, 0, channel]) for channel in (0, 1))  # what the view spans
    spans = sorted((red, green))
    expected = sorted(
        255 * (to / scale - 1 / scale) / (side - 1) for to, side in ((to_height, height), (to_width, width))
    )
    np.testing.assert_allclose(spans, expected, atol=0.05 * 255 + 255 / (min(height, width) - 1))


@given(st.integers(8, 90), st.integers(8, 90), st.integers(8, 60), st.integers(8, 60))
def test_squashed_nothing_is_cut_off(height: int, width: int, to_height: int, to_width: int) -> None:
    squashed = decode(encoded(smooth(height, width)), (to_height, to_width), crop_mode="squash").astype(int)
    assert squashed.shape == (to_height, to_width, 3)
    pixel = 255 / (min(height, width, to_height, to_width) - 1)
    np.testing.assert_allclose(squashed[0, 0, :2], 0, atol=2 * pixel)
    np.testing.assert_allclose(squashed[-1, -1, :2], 255, atol=2 * pixel)


def test_shrinking_is_antialiased() -> None:
    checks = np.zeros((256, 256, 3), dtype=np.uint8)
    checks[::2, ::2] = checks[1::2, 1::2] = 255
    np.testing.assert_allclose(decode(encoded(checks), 32).astype(int), 127, atol=2)


def test_a_large_jpeg_decoded_at_a_fraction_looks_the_same() -> None:
    big = smooth(1200, 1600)
    whole = Image.fromarray(decode(encoded(big, "JPEG", quality=95)))
    middle = whole.crop((200, 0, 1400, 1200))
    expected = np.asarray(middle.resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
    np.testing.assert_allclose(decode(encoded(big, "JPEG", quality=95), 64).astype(int), expected, atol=3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_a_file_cut_short_is_refused(kind: str) -> None:
    data = encoded(NOISE, kind)
    for part in (0.3, 0.6, 0.9):
        with pytest.raises(InputError, match=r"^cut\.x: "):
            decode(data[: int(len(data) * part)], name="cut.x")


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff\xd8\xff", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\0" * 100])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match=r"^notes\.jpg: ") as caught:
        decode(data, name="notes.jpg")
    assert caught.value.remedy


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@given(st.data())
def test_damaged_bytes_give_a_picture_or_a_refusal_and_nothing_else(draw: st.DataObject) -> None:
    kind = draw.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]))
    data = bytearray(encoded(NOISE, kind))
    for _ in range(draw.draw(st.integers(1, 8))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        assert decode(bytes(data), 16).shape == (16, 16, 3)
    except InputError as error:
        refusal = error.message
    else:
        return
    assert refusal.startswith("image: ")


def test_importing_and_decoding_change_nothing_in_the_process() -> None:
    script = (
        "import warnings; import numpy, PIL.Image; before = list(warnings.filters), PIL.Image.MAX_IMAGE_PIXELS\n"
        "import io, lookalike.image; file = io.BytesIO(); PIL.Image.new('RGB', (8, 8)).save(file, 'PNG')\n"
        "lookalike.image.decode(file.getvalue(), 4)\n"
        "assert before == (list(warnings.filters), PIL.Image.MAX_IMAGE_PIXELS)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_module, "MAX_PIXELS", 24 * 32 - 1)
    with pytest.raises(InputError, match="32 × 24 pixels are too many"):
        decode(encoded(NOISE))


@pytest.mark.parametrize("size", [(8192, 6144), (12000, 9000)])
def test_the_largest_photos_of_phones_are_decoded(size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("L", size, 100), "JPEG", exif=exif)
    picture = image_module.load_image(data, 64)
    assert picture.height > picture.width  # upright
    assert picture.width * picture.height < size[0] * size[1] / 60  # decoded small
    np.testing.assert_array_equal(decode(data, 64), np.full((64, 64, 3), 100))


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    header = b"IHDR" + (60_000).to_bytes(4) * 2 + bytes([8, 2, 0, 0, 0])
    chunks = [header, b"IDAT" + zlib.compress(bytes(1000)), b"IEND"]
    png = b"\x89PNG\r\n\x1a\n" + b"".join((len(c) - 4).to_bytes(4) + c + zlib.crc32(c).to_bytes(4) for c in chunks)
    with pytest.raises(InputError, match="bomb"):
        decode(png, name="bomb")
