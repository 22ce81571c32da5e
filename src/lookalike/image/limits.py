"""Refuse images whose structure would keep a decoder busy.

The time to decode an image is not bounded by its bytes or pixels: each scan of a progressive JPEG covers the whole
image again, and readers handle each segment, chunk or directory on its own, some in quadratic time. No camera or editor
writes what is refused here. Each check is linear in the bytes; `benchmarks/hostile_images.py` measures the worst images
that pass.
"""

from __future__ import annotations

import re
import struct

from lookalike.errors import InputError

JPEG_SEGMENTS = 1000
JPEG_SCANS = 100
JPEG_WORK = 2_500_000_000  # scans × pixels
JPEG_EXIF_BLOCKS = 16
PNG_CHUNKS = 100_000
PNG_PROFILES = 4
WEBP_CHUNKS = 5000
GIF_BLOCKS = 8000  # before the first frame, with sub-blocks
TIFF_DIRECTORIES = 10_000
TIFF_FIELDS = 1000  # of one directory
TIFF_ALL_FIELDS = 100_000  # of all directories
TIFF_VALUES = 2_000_000  # of all fields that are not plain bytes
TIFF_STRIPS = 200_000
SLOW_BYTES = 16 << 20  # of a format that Pillow decodes byte by byte in Python
SLOW_VALUES = 3_000_000  # pixels, values or runs of such a format, which take up to 2.3 µs each
PPM_COMMENTS = 1000  # Pillow copies up to 1 MiB for each

MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # of a JPEG; not stuffing, padding or restarts
FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # the markers that give height and width
PNM_HEAD = 1 << 16  # bytes
PNM_NUMBERS = {b"P1": 2, b"P4": 2, b"P2": 3, b"P3": 3, b"P5": 3, b"P6": 3, b"Pf": 2,
               b"P0CMYK": 3, b"PyP": 3, b"PyRGBA": 3, b"PyCMYK": 3}  # of the header  # fmt: skip
TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
PLAIN = frozenset({1, 2, 7})  # types of TIFF fields that stay bytes
WIDTH, HEIGHT, COMPRESSION, STRIP_OFFSETS, TILE_OFFSETS = 256, 257, 259, 273, 324
SUBDIRECTORIES = frozenset({330, 34665, 34853, 40965})
TIFF_JPEG = frozenset({6, 7})
REMEDY = "Save it anew in an image editor, or remove it."


def check_limits(data: bytes, name: str = "image") -> None:
    """Refuse an image whose structure would keep a decoder busy. Damaged files pass; decoding reports them.

    Args:
        data: the bytes of an image file.
        name: what errors call the image.

    Raises:
        InputError: more segments, scans, chunks, blocks, directories, fields or values than any camera writes.
    """
    try:
        if data.startswith(b"\xff\xd8\xff"):
            _jpeg(data, name)
        elif data.startswith(b"\x89PNG\r\n\x1a\n"):
            _png(data, name)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            _webp(data, name)
        elif data.startswith((b"GIF87a", b"GIF89a")):
            _gif(data, name)
        elif data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
            _tiff(data, name)
        elif data.startswith(b"BM"):
            _bmp(data, name)
        elif data[:1] == b"P":
            _pnm(data, name)
    except (struct.error, IndexError):
        return  # cut short


def _refuse(name: str, number: int, what: str) -> InputError:
    return InputError(f"{name}: {number:,} {what} are more than an image has; it is not decoded.", REMEDY)


def _jpeg(data: bytes, name: str) -> None:
    """Follow the markers to the end of the first image, as libjpeg does."""
    segments = scans = exif = pixels = 0
    place = 2
    while (found := MARKER.search(data, place)) is not None:
        marker, place = data[found.end() - 1], found.end()
        if marker == 0xD9:  # end of image
            break
        segments += 1
        if segments > JPEG_SEGMENTS:
            segments += sum(1 for _ in MARKER.finditer(data, place))
            raise _refuse(name, segments, "segments of a JPEG")
        if marker in {0x01, 0xD8}:  # have no length
            continue
        (length,) = struct.unpack_from(">H", data, place)
        if marker in FRAMES:
            height, width = struct.unpack_from(">HH", data, place + 3)
            pixels = max(pixels, height * width)
        elif marker == 0xE1 and data[place + 2 : place + 6] == b"Exif":
            exif += 1
        elif marker == 0xDA:
            scans += 1
        place += max(length, 2)
    if scans > JPEG_SCANS:
        raise _refuse(name, scans, "scans of a JPEG")
    if scans > 1 and scans * pixels > JPEG_WORK:
        raise _refuse(name, scans, f"scans of a JPEG of {pixels / 1e6:,.0f} million pixels")
    if exif > JPEG_EXIF_BLOCKS:
        raise _refuse(name, exif, "EXIF blocks")


def _png(data: bytes, name: str) -> None:
    chunks = profiles = 0
    place = 8
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        chunks += 1
        profiles += kind == b"iCCP"
        if chunks > PNG_CHUNKS:
            raise _refuse(name, chunks, "chunks of a PNG, or more,")
        if profiles > PNG_PROFILES:
            raise _refuse(name, profiles, "colour profiles, or more,")
        if kind == b"IEND":
            break
        place += 12 + length


def _webp(data: bytes, name: str) -> None:
    chunks = 0
    place = 12
    while place + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, place + 4)
        chunks += 1
        if chunks > WEBP_CHUNKS:
            raise _refuse(name, chunks, "chunks of a WebP, or more,")
        place += 8 + length + length % 2


def _gif(data: bytes, name: str) -> None:
    """Follow the blocks up to the first frame; nothing else of an animation is decoded."""
    flags = data[10]
    place = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    blocks = 0
    while (kind := data[place]) not in b",;":
        place += 1  # over a byte of no block, as Pillow does
        blocks += 1
        if kind == 0x21:  # an extension: its label, and sub-blocks up to an empty one
            place += 1
            while (length := data[place]) and blocks <= GIF_BLOCKS:
                place += 1 + length
                blocks += 1
            place += 1
        if blocks > GIF_BLOCKS:
            raise _refuse(name, blocks, "blocks of a GIF, or more,")


def _tiff(data: bytes, name: str) -> None:
    order = "<" if data[:2] == b"II" else ">"
    large = data[2:4] in {b"+\0", b"\0+"}
    count_of, entry, offset = ("Q", f"{order}HHQ8s", f"{order}Q") if large else ("H", f"{order}HHI4s", f"{order}I")
    inline = struct.calcsize(offset)
    todo = [struct.unpack_from(offset, data, 8 if large else 4)[0]]
    seen: set[int] = set()
    values = plain = total = 0
    while todo:
        place = todo.pop()
        if not place or place in seen or place >= len(data):
            continue
        seen.add(place)
        if len(seen) > TIFF_DIRECTORIES:
            raise _refuse(name, len(seen), "directories of a TIFF, or more,")
        (fields,) = struct.unpack_from(order + count_of, data, place)
        if fields > TIFF_FIELDS:
            raise _refuse(name, fields, "fields of a TIFF's directory")
        total += fields
        if total > TIFF_ALL_FIELDS:
            raise _refuse(name, total, "fields of a TIFF, or more,")
        place += struct.calcsize(count_of)
        found: dict[int, int] = {}
        strips = 0
        for _ in range(fields):
            if place + struct.calcsize(entry) > len(data):
                break
            tag, kind, count, held = struct.unpack_from(entry, data, place)
            place += struct.calcsize(entry)
            size = count * TIFF_SIZES.get(kind, 0)
            if size > inline:
                (at,) = struct.unpack(offset, held)
                if at + size > len(data):
                    continue  # Pillow passes over it
            if kind in PLAIN:
                plain += size
            else:
                values += count
            if kind in {3, 4, 13, 16, 18} and count == 1:
                found[tag] = int.from_bytes(held[: TIFF_SIZES[kind]], "little" if order == "<" else "big")
            if tag in {STRIP_OFFSETS, TILE_OFFSETS}:
                strips = max(strips, count)
        if values > TIFF_VALUES:
            raise _refuse(name, values, "values in the fields of a TIFF")
        if plain > 2 * len(data):
            raise _refuse(name, plain, f"bytes in the fields of a TIFF of {len(data):,} bytes")
        if strips > TIFF_STRIPS:
            raise _refuse(name, strips, "strips or tiles of a TIFF")
        pixels = found.get(WIDTH, 0) * found.get(HEIGHT, 0)
        if found.get(COMPRESSION) in TIFF_JPEG and strips:
            scans = data.count(b"\xff\xda") / strips  # at most, and of all that one strip could have
            if scans > 2 and (scans > JPEG_SCANS or scans * pixels > JPEG_WORK):
                raise _refuse(name, round(scans * strips), "scans of the JPEGs in a TIFF")
        todo += [found[tag] for tag in SUBDIRECTORIES & found.keys()]
        if place + inline <= len(data):
            todo.append(struct.unpack_from(offset, data, place)[0])


def _bmp(data: bytes, name: str) -> None:
    (header,) = struct.unpack_from("<I", data, 14)
    if header < 40:
        return
    width, height = struct.unpack_from("<ii", data, 18)
    (compression,) = struct.unpack_from("<I", data, 30)
    if compression in {1, 2}:  # run lengths
        _check_slow(name, len(data), max(abs(width * height), len(data) // 2), "a BMP of run lengths")


def _pnm(data: bytes, name: str) -> None:
    head = data[:PNM_HEAD]
    kind = head[:6].split(maxsplit=1)[0]
    wanted = PNM_NUMBERS.get(kind)
    if wanted is None:
        return
    text = re.sub(rb"#[^\r\n]*[\r\n]?", b"", head[len(kind) + 1 :])  # Pillow knows comments within a number
    numbers = [int(one) if one.isdigit() and len(one) <= 10 else -1 for one in text.split(maxsplit=wanted)[:wanted]]
    if len(numbers) < wanted or -1 in numbers:
        raise InputError(f"{name}: a PPM file without its size in the first {PNM_HEAD:,} bytes.", REMEDY)
    values = numbers[0] * numbers[1] * (3 if kind in {b"P3", b"P6"} else 1)
    if kind in {b"P1", b"P2", b"P3"}:
        if (comments := data.count(b"#")) > PPM_COMMENTS:
            raise _refuse(name, comments, "comments of a PPM")
        _check_slow(name, len(data), values, "a PPM of text")
    elif kind == b"P6" or kind == b"P5":
        most = numbers[2]
        if most != 255 and (kind, most) != (b"P5", 65535):
            _check_slow(name, len(data), values, f"a PPM whose white is {most}")


def _check_slow(name: str, size: int, values: int, what: str) -> None:
    """Check a format that is decoded slowly."""
    if size > SLOW_BYTES or values > SLOW_VALUES:
        raise InputError(
            f"{name}: {values:,} values in {size / 2**20:,.0f} MiB are too many for {what}.", "Save it as PNG."
        )
