"""Image files that are made to keep a decoder busy, or that just may not: of each kind, by a number."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

from PIL import Image


def jpeg(width: int, height: int, *, progressive: bool = False) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "gray").save(file, "JPEG", progressive=progressive)
    return file.getvalue()


def jpeg_of_segments(count: int) -> bytes:
    data = jpeg(16, 16)
    return data[:2] + b"\xff\xec\x00\x03x" * count + data[2:]


def jpeg_of_comments(count: int) -> bytes:
    data = jpeg(16, 16)
    return data[:2] + b"\xff\xfe\x00\x03x" * count + data[2:]


def jpeg_of_exif_blocks(count: int) -> bytes:
    data = jpeg(16, 16)
    block = b"Exif\0\0" + b"MM\0*" + bytes(1000)
    return data[:2] + (b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block) * count + data[2:]


def jpeg_of_scans(count: int, width: int = 64, height: int = 64) -> bytes:
    """A progressive JPEG whose first scans are there and are followed by empty ones, of refinement."""
    data = jpeg(width, height, progressive=True)
    empty = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00"
    return data[:-2] + empty * max(0, count - data.count(b"\xff\xda")) + data[-2:]


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(*more: bytes, width: int = 8, height: int = 8) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = zlib.compress(bytes((1 + 3 * width) * height))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def png_of_chunks(count: int) -> bytes:
    return png_of(chunk(b"prVt", b"") * count)


def png_of_texts(count: int) -> bytes:
    return png_of(chunk(b"tEXt", b"k\0v") * count)


def png_of_profiles(count: int) -> bytes:
    return png_of(chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(1_000_000), 9)) * count)


def webp_of_chunks(count: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", (8, 8), "gray").save(file, "WEBP", lossless=True)
    image = file.getvalue()[12:]
    body = b"VP8X\x0a\0\0\0" + bytes(4) + struct.pack("<I", 7)[:3] * 2 + image + b"JUNK\0\0\0\0" * count
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def gif_of(before: bytes) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), 7).save(file, "GIF")
    data = file.getvalue()
    start = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    return data[:start] + before + data[start:]


def gif_of_blocks(count: int) -> bytes:
    return gif_of(b"!\xfe\x01x\x00" * count)


def gif_of_one_long_comment(count: int) -> bytes:
    return gif_of(b"!\xfe" + b"\x01x" * count + b"\x00")


def tiff_of(fields: list[tuple[int, int, int, int]], tail: bytes = b"", following: int = 0) -> bytes:
    """Little-endian, fields (tag, type, count, value) and what they refer to, which begins at 8 + 2 + 12 N + 4."""
    entries = b"".join(struct.pack("<HHII", *field) for field in sorted(fields))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(fields)) + entries + struct.pack("<I", following) + tail


def gray_tiff(width: int, height: int, more: int = 0) -> tuple[list[tuple[int, int, int, int]], int]:
    """The fields of an uncompressed gray one, and where its pixels begin; `more` fields will be added."""
    start = 8 + 2 + 12 * (9 + more) + 4
    fields = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    return [*fields, (273, 4, 1, start), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, width * height)], start


def tiff_of_fields(count: int) -> bytes:
    fields, _ = gray_tiff(8, 8, count)
    return tiff_of([*fields, *((40000 + number, 3, 1, 0) for number in range(count))], bytes(64))


def tiff_of_values(count: int) -> bytes:
    fields, start = gray_tiff(8, 8, 1)
    return tiff_of([*fields, (40000, 3, count, start)], bytes(max(64, 2 * count)))


def tiff_of_directories(count: int) -> bytes:
    fields, start = gray_tiff(8, 8)
    chain = b"".join(b"\0\0" + struct.pack("<I", start + 64 + 6 * (number + 1)) for number in range(count))
    return tiff_of(fields, bytes(64) + chain[:-4] + bytes(4), start + 64)


def tiff_of_wide_directories(count: int) -> bytes:
    """`count` directories of 100 fields."""
    fields, start = gray_tiff(8, 8)
    places = [start + 64 + 1206 * number for number in range(count)]
    chain = b"".join(struct.pack("<H1200xI", 100, place) for place in [*places[1:], 0])
    return tiff_of(fields, bytes(64) + chain, places[0])


def tiff_of_strips(count: int) -> bytes:
    """One row of a pixel in each."""
    fields, start = gray_tiff(1, count)
    kept = [field for field in fields if field[0] not in {273, 278, 279}]
    offsets = struct.pack(f"<{count}I", *[start] * count)
    sizes = struct.pack(f"<{count}I", *[1] * count)
    more = [(273, 4, count, start), (278, 4, 1, 1), (279, 4, count, start + 4 * count)]
    return tiff_of([*kept, *more], offsets + sizes)


def ppm_of_text(count: int) -> bytes:
    return b"P2\n%d 1\n255\n" % count + b"1 " * count


def ppm_of_odd_white(count: int) -> bytes:
    return b"P5\n%d 1\n254\n" % count + bytes(count)


def ppm_of_odd_white_of_16_bits(count: int) -> bytes:
    return b"P5\n%d 1\n65534\n" % count + bytes(2 * count)


def ppm_of_comments(count: int) -> bytes:
    return b"P2\n2 1\n255\n" + b"#\n" * count + b"1 1 "


def bmp_of_run_lengths(count: int) -> bytes:
    """`count` runs of one pixel."""
    return bmp_of_runs(b"\x01\x07" * count, count)


def bmp_of_empty_run_lengths(count: int) -> bytes:
    """A pixel, and `count` runs that find no room in its row."""
    return bmp_of_runs(b"\x01\x07" * count, 1, 2)


def bmp_of_runs(data: bytes, width: int, height: int = 1) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(data), 0, 0, 54 + 1024) + head + bytes(1024) + data


KINDS: dict[str, tuple[Callable[[int], bytes], int, int]] = {  # what makes it; a number that passes, one that does not
    "JPEG, segments": (jpeg_of_segments, 980, 1_000_000),
    "JPEG, comments": (jpeg_of_comments, 980, 1_000_000),
    "JPEG, EXIF blocks": (jpeg_of_exif_blocks, 16, 900),
    "JPEG, scans": (jpeg_of_scans, 100, 5000),
    "PNG, chunks": (png_of_chunks, 99_997, 1_000_000),
    "PNG, texts": (png_of_texts, 99_997, 1_000_000),
    "PNG, profiles": (png_of_profiles, 4, 1000),
    "WebP, chunks": (webp_of_chunks, 4990, 1_000_000),
    "GIF, blocks": (gif_of_blocks, 3999, 1_000_000),
    "GIF, one long comment": (gif_of_one_long_comment, 7990, 1_000_000),
    "TIFF, fields": (tiff_of_fields, 990, 20_000),
    "TIFF, wide directories": (tiff_of_wide_directories, 990, 2000),
    "TIFF, values": (tiff_of_values, 1_999_000, 3_000_000),
    "TIFF, directories": (tiff_of_directories, 9990, 1_000_000),
    "TIFF, strips": (tiff_of_strips, 200_000, 400_000),
    "PPM, text": (ppm_of_text, 3_000_000, 3_100_000),
    "PPM, odd white": (ppm_of_odd_white, 3_000_000, 3_100_000),
    "PPM, odd white of 16 bits": (ppm_of_odd_white_of_16_bits, 3_000_000, 3_100_000),
    "PPM, comments": (ppm_of_comments, 1000, 8_000_000),
    "BMP, run lengths": (bmp_of_run_lengths, 2_999_000, 3_100_000),
    "BMP, empty run lengths": (bmp_of_empty_run_lengths, 2_999_000, 8_000_000),
}
