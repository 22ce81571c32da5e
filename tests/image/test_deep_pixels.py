"""Images of more than 8 bits are as light as they look, whatever their container says."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lookalike.image import decode

RAMP = np.linspace(0, 1, 32 * 24).reshape(24, 32)  # black to white
WHITES = (255, 1023, 4095, 16383, 65535)
GRAY, RGB = 0, 2  # colour types of a PNG
GRAY_ALPHA, RGBA = 4, 6


def saved(values: NDArray[Any], kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind, **options)
    return file.getvalue()


def png16(values: NDArray[np.uint16], colours: int, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG of 16 bits a channel, of values (H, W, C)."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colours, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
             for name, data in chunks]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(values: NDArray[Any], order: str = "<", *, packed: bool = False, white_is_zero: bool = False) -> bytes:
    """A TIFF of unsigned values (H, W) or (H, W, C), in one strip."""
    height, width = values.shape[:2]
    channels, bits = values[0, 0].size, values.dtype.itemsize * 8
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if packed else data
    photometric = 2 if channels > 1 else 1 - white_is_zero
    fields = [
        *[(256, [width]), (257, [height]), (258, [bits] * channels), (259, [8 if packed else 1]), (262, [photometric])],
        *[(273, [8]), (277, [channels]), (278, [height]), (279, [len(data)])],
        *([(338, [2])] if channels == 4 else []),
    ]
    start = 8 + len(data) + len(data) % 2
    after = start + 2 + 12 * len(fields) + 4
    entries, held = b"", b""
    for tag, numbers in fields:
        code = "I" if tag in {273, 279} else "H"
        value = struct.pack(f"{order}{len(numbers)}{code}", *numbers)
        if len(value) > 4:
            held, value = held + value, struct.pack(f"{order}I", after + len(held))
        entries += struct.pack(f"{order}HHI", tag, 4 if code == "I" else 3, len(numbers)) + value.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    count = struct.pack(f"{order}H", len(fields))
    return head + data + bytes(len(data) % 2) + count + entries + bytes(4) + held


def expected(white: float) -> NDArray[np.float64]:
    return 255 * np.floor(RAMP * white) / white


@pytest.mark.parametrize("white", WHITES)
@pytest.mark.parametrize("form", ["png", "tiff", "big-endian", "packed", "int32", "white-is-zero"])
def test_gray_of_so_many_bits_in_more(white: int, form: str) -> None:
    values = np.floor(RAMP * white).astype(np.uint16)
    data = {
        "png": lambda: saved(values, "PNG"),
        "tiff": lambda: saved(values, "TIFF"),
        "big-endian": lambda: tiff(values, ">"),
        "packed": lambda: tiff(values, packed=True),
        "int32": lambda: saved(values.astype(np.int32), "TIFF"),
        "white-is-zero": lambda: tiff((white - values).astype(np.uint16), white_is_zero=True),
    }[form]()
    decoded = decode(data)
    np.testing.assert_array_equal(decoded[..., 0], decoded[..., 2])
    np.testing.assert_allclose(decoded[..., 0], expected(white), atol=0.51)


@pytest.mark.parametrize("white", WHITES[1:])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("form", ["png", "tiff", "big-endian", "packed", "packed-big-endian"])
def test_colours_of_so_many_bits_in_16(white: int, channels: int, form: str) -> None:
    """Pillow keeps the upper byte alone, which of 12 bits in 16 is nearly nothing."""
    colour = np.stack([RAMP * white, RAMP[::-1] * white, RAMP * white / 2, np.full_like(RAMP, white)], axis=2)
    values = np.floor(colour[:, :, :channels]).astype(np.uint16)
    data = {
        "png": lambda: png16(values, RGBA if channels == 4 else RGB),
        "tiff": lambda: tiff(values),
        "big-endian": lambda: tiff(values, ">"),
        "packed": lambda: tiff(values, packed=True),
        "packed-big-endian": lambda: tiff(values, ">", packed=True),
    }[form]()
    np.testing.assert_allclose(decode(data), 255.0 * values[:, :, :3] / white, atol=1.01)


@pytest.mark.parametrize("white", [4095, 65535])
def test_gray_with_transparency_of_16_bits(white: int) -> None:
    values = np.stack([RAMP * white, np.full_like(RAMP, white)], axis=2).astype(np.uint16)
    values[:2, :, 1] = 0
    decoded = decode(png16(values, GRAY_ALPHA))
    np.testing.assert_allclose(decoded[2:, :, 1], expected(white)[2:], atol=1.01)
    assert (decoded[:2] == 255).all()


def test_a_transparent_gray_of_16_bits_becomes_white() -> None:
    values = np.floor(RAMP * 4095).astype(np.uint16)[:, :, None]
    decoded = decode(png16(values, GRAY, (b"tRNS", struct.pack(">H", int(values[3, 3, 0])))))
    assert decoded[3, 3].tolist() == [255, 255, 255]
    assert decoded[0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("white", [1, 0.02, 1.2, 7, 255, 4095, 65535, 1e9])
def test_floating_point_values(white: float) -> None:
    values = (RAMP * white).astype(np.float32)
    np.testing.assert_allclose(decode(saved(values, "TIFF"))[..., 1], RAMP * 255, atol=0.6)


def test_floating_point_values_below_zero_and_not_finite() -> None:
    values = (RAMP * 4 - 2).astype(np.float32)
    np.testing.assert_allclose(decode(saved(values, "TIFF"))[..., 1], RAMP * 255, atol=0.6)
    values[5, :3] = np.nan, np.inf, -np.inf
    decoded = decode(saved(values, "TIFF"))[..., 1]
    assert decoded[5, :3].tolist() == [0, 255, 0]
    np.testing.assert_allclose(decoded[6:], RAMP[6:] * 255, atol=0.6)


def test_integers_of_32_bits() -> None:
    for values in (RAMP * 2**31, RAMP * (2**32 - 1)):
        np.testing.assert_allclose(decode(tiff(values.astype(np.uint32)))[..., 0], RAMP * 255, atol=0.6)
    signed = (RAMP * 3000 - 1000).astype(np.int32)
    np.testing.assert_allclose(decode(saved(signed, "TIFF"))[..., 0], RAMP * 255, atol=0.7)


def test_all_black_stays_black() -> None:
    for kind in (np.uint16, np.int32, np.float32):
        assert not decode(saved(np.zeros((4, 4), kind), "TIFF")).any()
    assert not decode(png16(np.zeros((4, 4, 3), np.uint16), RGB)).any()


def test_a_dark_ppm_stays_dark_as_it_says_its_white() -> None:
    head = b"P5 32 24 65535\n"
    assert decode(head + np.full((24, 32), 2000, ">u2").tobytes()).max() == 8
    assert decode(b"P5 32 24 4095\n" + np.full((24, 32), 4095, ">u2").tobytes()).min() == 255
