"""What would keep a decoder busy is refused by a look at its structure; what cameras and editors write is not."""

from __future__ import annotations

import io
import time
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from hostile import KINDS, jpeg_of_scans, jpeg_of_segments, png_of_chunks
from lookalike.errors import InputError
from lookalike.image import decode
from lookalike.image.limits import check_limits


@pytest.mark.parametrize("kind", KINDS)
def test_refused_before_it_is_decoded_and_soon(kind: str) -> None:
    make, _, too_many = KINDS[kind]
    data = make(too_many)
    start = time.thread_time()
    with pytest.raises(InputError, match=r"^evil\.x: [\d,]+ ") as caught:
        decode(data, name="evil.x")
    assert caught.value.remedy
    assert time.thread_time() - start < 2  # of a million segments; it would take minutes


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_just_within_the_bounds_passes_them(kind: str) -> None:
    make, most, _ = KINDS[kind]
    check_limits(make(most))


def test_the_message_says_how_many_of_what() -> None:
    with pytest.raises(InputError, match=r"^a\.jpg: 1,0\d\d segments of a JPEG are more than"):
        check_limits(jpeg_of_segments(1000), "a.jpg")
    with pytest.raises(InputError, match=r"^a\.jpg: 101 scans of a JPEG are more than"):
        check_limits(jpeg_of_scans(101), "a.jpg")


def test_the_scans_of_a_large_jpeg_count_more() -> None:
    data = bytearray(jpeg_of_scans(20))
    frame = data.index(b"\xff\xc2")
    data[frame + 5 : frame + 9] = (12_000).to_bytes(2) + (12_000).to_bytes(2)
    with pytest.raises(InputError, match="20 scans of a JPEG of 144 million pixels"):
        check_limits(bytes(data))


def test_a_long_comment_before_the_size_is_soon_read() -> None:
    start = time.thread_time()
    check_limits(b"P5\n" + b"#" * 60_000 + b"\n8 8\n255\n" + bytes(64))
    with pytest.raises(InputError, match="without its size in the first 65,536 bytes"):
        check_limits(b"P5\n" + b"#" * 70_000 + b"\n8 8\n255\n" + bytes(64))
    assert time.thread_time() - start < 1


def test_scans_are_not_looked_for_in_metadata_or_behind_the_end() -> None:
    data = jpeg_of_scans(10)
    inside = b"\xff\xec" + (60_000).to_bytes(2) + b"\xff\xda" * 29_999
    check_limits(data[:2] + inside + data[2:] + b"\xff\xda\x00\x02" * 5000)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("size", [(1, 1), (640, 480)])
def test_ordinary_images_pass(kind: str, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "a description", 6
    options = {"exif": exif} if kind in {"JPEG", "PNG", "WEBP", "TIFF"} else {}
    Image.fromarray(pixels).save(file, kind, **options)
    check_limits(file.getvalue())
    assert decode(file.getvalue()).size == pixels.size


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_cut_short_passes_or_is_refused_and_nothing_else(kind: str) -> None:
    make, _, _ = KINDS[kind]
    data = make(3)
    for length in range(min(len(data), 600)):
        check_limits(data[:length]) if not data.startswith(b"P") else None
        for place in (length, -1 - length):
            changed = bytearray(data)
            changed[place % len(data)] ^= 0xFF
            with suppress(InputError):
                check_limits(bytes(changed))


def test_a_chain_of_directories_that_is_a_ring_has_an_end() -> None:
    ring = b"II*\0\x08\0\0\0" + b"\0\0" + (8).to_bytes(4, "little")
    check_limits(ring)


def test_an_animation_of_many_pictures_is_read() -> None:
    frames = [Image.new("L", (4, 4), value % 256) for value in range(9000)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert decode(file.getvalue()).shape == (4, 4, 3)


def test_chunks_of_a_png_are_counted_up_to_its_end() -> None:
    data = png_of_chunks(2)
    check_limits(data + data[8:] * 10 + b"x" * 10)
