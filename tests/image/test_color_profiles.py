"""Embedded ICC profiles: colours are those that the profile says, in sRGB."""

from __future__ import annotations

import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageCms

from image_factory import encoded, noise
from lookalike.image import decode
from lookalike.image.color_profiles import to_srgb

XYZ = {"R": (0.61, 0.31, 0.02), "G": (0.2, 0.63, 0.07), "B": (0.15, 0.06, 0.74)}  # of Adobe RGB (1998), adapted to D50
NOISE = noise(24, 32)


def tag_xyz(values: tuple[float, float, float]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def profile(name: str = "Wide", gamma: float = 2.2, space: bytes = b"RGB ") -> bytes:
    """An ICC profile of version 2: three primaries (or gray), and a gamma."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = name.encode() + b"\0"
    described = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(79)
    tags = {b"desc": described, b"cprt": b"text\0\0\0\0none\0", b"wtpt": tag_xyz((0.9642, 1.0, 0.8249))}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        tags |= {f"{one}XYZ".lower().encode()[:1] + b"XYZ": tag_xyz(XYZ[one]) for one in "RGB"}
        tags |= {one + b"TRC": curve for one in (b"r", b"g", b"b")}
    table, data = b"", b""
    for key, value in tags.items():
        table += key + struct.pack(">II", 132 + 12 * len(tags) + len(data), len(value))
        data += value.ljust(-(-len(value) // 4) * 4, b"\0")
    body = struct.pack(">I", len(tags)) + table + data
    head = struct.pack(">I4sI4s4s4s", 128 + len(body), b"\0\0\0\0", 0x02400000, b"mntr", space, b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + body


def with_profile(image: Image.Image, kind: str, icc: bytes | None) -> bytes:
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    return encoded(image, kind, icc_profile=icc, **options)


def by_hand(pixels: np.ndarray, gamma: float = 2.2) -> np.ndarray:
    """What LittleCMS should do, from the definitions: gamma, primaries, those of sRGB (adapted to D50), its curve."""
    linear = (pixels / 255.0) ** gamma @ np.array([XYZ[one] for one in "RGB"])
    srgb = np.array([[0.43607, 0.22249, 0.01392], [0.38515, 0.71687, 0.09708], [0.14307, 0.06061, 0.71410]])
    values = (linear @ np.linalg.inv(srgb)).clip(0, 1)
    return 255 * np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_colours_with_a_profile_become_srgb(kind: str) -> None:
    plain = decode(with_profile(Image.fromarray(NOISE), kind, None))
    converted = decode(with_profile(Image.fromarray(NOISE), kind, profile()))
    assert np.abs(converted.astype(int) - plain.astype(int)).max() > 20
    np.testing.assert_allclose(converted, by_hand(plain), atol=3)


def test_the_profile_of_srgb_changes_nothing() -> None:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for one in (icc, profile("sRGB IEC61966-2.1", 1.0)):
        np.testing.assert_array_equal(decode(with_profile(Image.fromarray(NOISE), "PNG", one)), NOISE)


def test_gray_with_a_profile() -> None:
    gray = Image.fromarray(NOISE[:, :, 0])
    decoded = decode(with_profile(gray, "PNG", profile("Dot gain", 1.0, b"GRAY")))
    np.testing.assert_array_equal(decoded[..., 0], decoded[..., 2])
    linear = NOISE[:, :, 0] / 255
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(decoded[..., 0], 255 * curve, atol=10)  # LittleCMS is rough near black
    of_colours = decode(with_profile(gray, "PNG", profile()))  # of gray pixels with a profile of RGB
    np.testing.assert_allclose(of_colours, by_hand(np.stack([NOISE[:, :, 0]] * 3, axis=2)), atol=3)


def test_transparency_and_palettes_keep_their_profile() -> None:
    image = Image.fromarray(NOISE).convert("RGBA")
    image.putalpha(Image.fromarray(np.where(np.arange(24 * 32).reshape(24, 32) < 64, 0, 255).astype(np.uint8)))
    decoded = decode(with_profile(image, "PNG", profile()))
    assert (decoded[:2] == 255).all()
    np.testing.assert_allclose(decoded[2:], by_hand(NOISE)[2:], atol=3)
    palette = Image.fromarray(NOISE).quantize(16)
    expected = by_hand(np.asarray(palette.convert("RGB")))
    np.testing.assert_allclose(decode(with_profile(palette, "PNG", profile())), expected, atol=3)


def test_a_broken_profile_says_nothing_about_the_picture() -> None:
    whole = profile()
    for icc in (b"no profile", whole[:200], whole[:132] + b"\xff" * 300, whole.replace(b"RGB ", b"CMYK", 1)):
        np.testing.assert_array_equal(decode(with_profile(Image.fromarray(NOISE), "PNG", icc)), NOISE)


def test_a_profile_of_cmyk_is_used() -> None:
    """Of a printer whose only ink is black; without its profile, cyan would be cyan."""
    inks = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    icc = cmyk_profile()
    inks.info["icc_profile"] = icc
    made = to_srgb(inks)
    assert made.mode == "RGB"
    for kind in ("JPEG", "TIFF"):
        pixel = decode(with_profile(inks, kind, icc))[4, 4].astype(int)
        np.testing.assert_allclose(pixel, made.getpixel((4, 4)), atol=3)
        np.testing.assert_allclose(pixel, (255, 255, 255), atol=3)


def cmyk_profile() -> bytes:
    """A printer's profile of version 2 whose table knows black (the last ink) only."""
    white, black = (struct.pack(">3H", light, 0x8000, 0x8000) for light in (0xFF00, 0))  # L*, a*, b*
    straight = struct.pack(">2H", 0, 65535)
    unit = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table = b"mft2\0\0\0\0" + bytes([4, 3, 2, 0]) + unit + struct.pack(">2H", 2, 2)
    table += straight * 4 + (white + black) * 8 + straight * 3
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"Inks\0" + bytes(79),
            b"cprt": b"text\0\0\0\0none\0", b"wtpt": tag_xyz((0.9642, 1.0, 0.8249)), b"A2B0": table}  # fmt: skip
    entries, data = b"", b""
    for key, value in tags.items():
        entries += key + struct.pack(">II", 132 + 12 * len(tags) + len(data), len(value))
        data += value.ljust(-(-len(value) // 4) * 4, b"\0")
    body = struct.pack(">I", len(tags)) + entries + data
    head = struct.pack(">I4sI4s4s4s", 128 + len(body), b"\0\0\0\0", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + body


def test_deep_gray_keeps_its_profile() -> None:
    deep = Image.fromarray(NOISE[:, :, 0].astype(np.uint16) * 257)
    icc = profile("Linear", 1.0, b"GRAY")
    shallow = decode(with_profile(Image.fromarray(NOISE[:, :, 0]), "TIFF", icc))
    np.testing.assert_array_equal(decode(with_profile(deep, "TIFF", icc)), shallow)


def test_lab_becomes_srgb() -> None:
    gray = Image.new("LAB", (8, 8), (128, 128, 128))
    np.testing.assert_allclose(decode(with_profile(gray, "TIFF", None))[4, 4], (119, 119, 119), atol=3)


def test_what_converts_colours_is_loaded_when_it_is_needed() -> None:
    script = "import sys, lookalike.image; sys.exit('PIL.ImageCms' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
