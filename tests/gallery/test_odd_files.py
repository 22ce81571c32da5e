"""Two thousand files as they lie about on disks: none brings the work down, and each is accounted for."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ingesting import about, encoded, numbers, rows_of
from PIL import Image

from lookalike.gallery.ingest import ingest
from lookalike.gallery.store.sqlite import SqliteStore
from lookalike.models.pretrained import load
from lookalike.models.runtime import TorchRuntime
from small_gallery import model_folder

EACH = 80


def png(width: int, height: int, *more: tuple[bytes, bytes], depth: int = 8, color: int = 2) -> bytes:
    """A PNG file of any chunks, for what Pillow would not write."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)), *more, (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def sixteen_bits(i: int) -> bytes:
    gray = np.random.default_rng(i).integers(0, 65536, (20, 20), dtype=np.uint16)
    file = io.BytesIO()
    Image.fromarray(gray).save(file, "TIFF" if i % 2 else "PNG")
    return file.getvalue()


def floats(i: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((9, 9), i + 0.5, np.float32)).save(file, "TIFF")
    return file.getvalue()


def animated(i: int) -> bytes:
    frames = [Image.open(io.BytesIO(encoded(3 * i + k))) for k in range(3)]
    file = io.BytesIO()
    kind = "WEBP" if i % 4 == 0 else "GIF"
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


def rotated(i: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 1 + i % 8
    return encoded(i, "JPEG", exif=exif)


def bad_exif(i: int) -> bytes:
    return encoded(i, "JPEG", exif=b"Exif\0\0MM\0*" + bytes(np.random.default_rng(i).integers(0, 256, 60, np.uint8)))


def flipped(i: int) -> bytes:
    """A few bytes of it changed: whole or not, it must not bring the work down."""
    data = bytearray(encoded(i, ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")[i % 6]))
    rng = np.random.default_rng(i)
    for place in rng.integers(0, len(data), 4).tolist():
        data[place] ^= 1 << int(rng.integers(8))
    return bytes(data)


# What makes the bytes of the i-th file of a kind, and its extension
GOOD: dict[str, tuple[Callable[[int], bytes], str]] = {
    "cmyk": (lambda i: encoded(i, "JPEG", mode="CMYK"), "jpg"),
    "gray": (lambda i: encoded(i, "JPEG", mode="L"), "JPEG"),
    "palette": (lambda i: encoded(i, "PNG", mode="P"), "png"),
    "bilevel": (lambda i: encoded(i, "TIFF", mode="1"), "tif"),
    "see-through": (lambda i: encoded(i, "PNG", mode="RGBA"), "PNG"),
    "16-bit": (sixteen_bits, "png"),
    "float": (floats, "tiff"),
    "animated": (animated, "gif"),
    "rotated": (rotated, "jpg"),
    "bad-exif": (bad_exif, "jpg"),
    "renamed-png": (lambda i: encoded(i, "PNG"), "jpg"),
    "one-pixel": (lambda i: encoded(i, "PNG", (1, 1)), "png"),
    "thin": (lambda i: encoded(i, "PNG", (1, 900 + i)), "png"),
    "newline\nin its name": (lambda i: encoded(i, "BMP"), "bmp"),
    "ünï-写真-🙂": (lambda i: encoded(i, "WEBP"), "webp"),
}
BAD: dict[str, tuple[Callable[[int], bytes], str]] = {
    "empty": (lambda i: b"", "jpg"),
    "text": (lambda i: f"not a picture, number {i}".encode(), "png"),
    "html": (lambda i: b"<html><img src='1.jpg'></html>" + bytes([i]), "jpeg"),
    "cut": (lambda i: encoded(i, "JPEG", (64, 64))[: 150 + i], "jpg"),
    "cut-png": (lambda i: encoded(i, "PNG", (64, 64))[: -40 - i], "png"),
    "bomb": (lambda i: png(16_000 * (1 + 4 * (i % 2)), 10_000 + i, (b"IDAT", zlib.compress(bytes(1000)))), "png"),
    "bomb-in-text": (lambda i: png(8, 8, (b"zTXt", b"k\0\0" + zlib.compress(bytes(70_000_000 + i), 1))), "png"),
    "only-a-header": (lambda i: png(10, 10 + i), "png"),
}
BOMBS = 3  # of the kind that takes a while to make


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> TorchRuntime:
    return TorchRuntime(load(model_folder(tmp_path_factory.mktemp("runs") / "model")))


def write(folder: Path, kinds: dict[str, tuple[Callable[[int], bytes], str]]) -> list[str]:
    names = []
    for kind, (make, extension) in kinds.items():
        inside = folder / kind.split("\n")[0]
        inside.mkdir(parents=True)
        for i in range(BOMBS if kind == "bomb-in-text" else EACH):
            path = inside / f"{kind}-{i}.{extension}"
            path.write_bytes(make(i))
            names.append(str(path))
    return names


def write_what_is_no_plain_file(folder: Path) -> tuple[list[str], int]:
    """Things with a picture's name; those that must be rejected, and how many good pictures lie in between."""
    folder.mkdir()
    bad: list[str] = []
    for i in range(20):
        (folder / f"directory-{i}.jpg").mkdir()
        (folder / f"directory-{i}.jpg" / "inside.png").write_bytes(encoded(i))
        (folder / f"broken-{i}.jpg").symlink_to(folder / "nowhere.jpg")
        (folder / f"loop-{i}").symlink_to(folder)
        (folder / f"self-{i}.png").symlink_to(f"self-{i}.png")
        os.mkfifo(folder / f"pipe-{i}.jpg")
        (folder / f".hidden-{i}.jpg").write_bytes(b"not looked at")
        (folder / f"notes-{i}.txt").write_text("not looked at")
        (folder / f"no-utf8-{i}-\udcff.png").write_bytes(encoded(i))
        (folder / f"memory-{i}.jpg").symlink_to("/proc/self/mem")
        for kind in ("broken-{}.jpg", "self-{}.png", "pipe-{}.jpg", "no-utf8-{}-\\xff.png", "memory-{}.jpg"):
            bad.append(str(folder / kind.format(i)))
    locked = folder / "locked.jpg"
    locked.write_bytes(encoded(1))
    locked.chmod(0)
    closed = folder / "closed"
    closed.mkdir()
    (closed / "1.jpg").write_bytes(encoded(1))
    closed.chmod(0)
    if os.access(locked, os.R_OK):  # root may do everything
        return bad, 22
    return [*bad, str(locked), str(closed)], 20


@pytest.mark.filterwarnings("ignore:::PIL")
def test_two_thousand_odd_files_are_all_accounted_for(embedder: TorchRuntime, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    good, bad = write(folder, GOOD), write(folder, BAD)
    changed = write(folder, {"flipped": (flipped, "jpg")})
    special, more_good = write_what_is_no_plain_file(folder / "special")
    total = len(good) + len(bad) + len(changed) + len(special) + more_good
    assert total >= 1900
    with SqliteStore.create(tmp_path / "g", about(embedder)) as store:
        report = ingest(store, embedder, folder)
        rows, rejected = rows_of(store), {one.path: one for one in store.rejected()}
        assert report.total == total
        assert len(rows) == report.added
        assert len(rejected) == report.failed
        assert len(rows) + len(rejected) == total
        assert set(good) <= rows.keys()
        assert {*bad, *special} <= rejected.keys()
        assert set(changed) <= rows.keys() | rejected.keys()
        assert not rows.keys() & rejected.keys()
        for one in rejected.values():
            assert one.reason, one.path
            assert "\n" not in one.reason
            assert one.path not in one.reason
        assert rejected[str(folder / "bomb" / "bomb-0.png")].reason == "16000 × 10000 pixels are too many"
        assert rejected[str(folder / "bomb" / "bomb-1.png")].reason == "its pixels are too many"
        assert rejected[str(folder / "empty" / "empty-1.jpg")].reason == "empty"
        vectors = store.vectors([row.id for row in rows.values()])
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=2e-3)
        assert all(store.thumbnail(row.id) for row in rows.values())
        assert store.check() == []
        again = ingest(store, embedder, folder)
        no_file = sum(one.modified == 0 for one in rejected.values())
        assert numbers(again) == {
            "skipped": len(rows),
            "failed": len(rejected),
            "failed_before": len(rejected) - no_file,
        }
    (folder / "special" / "closed").chmod(0o700)


def test_a_picture_turned_by_its_exif_is_found_by_its_upright_twin(embedder: TorchRuntime, tmp_path: Path) -> None:
    upright = Image.open(io.BytesIO(encoded(1, "PNG")))
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    lying.save(tmp_path / "lying.jpg", quality=95, exif=exif)
    upright.save(tmp_path / "upright.png")
    with SqliteStore.create(tmp_path / "g", about(embedder)) as store:
        ingest(store, embedder, [tmp_path / "lying.jpg", tmp_path / "upright.png"])
        one, other = store.rows()
        assert store.vectors([one.id])[0] @ store.vectors([other.id])[0] > 0.999
        assert (one.dhash ^ other.dhash).bit_count() <= 3


def test_a_file_larger_than_any_picture_is_not_read(
    embedder: TorchRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = tmp_path / "large.tif"
    with large.open("wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    with SqliteStore.create(tmp_path / "g", about(embedder)) as store:
        assert numbers(ingest(store, embedder, large)) == {"failed": 1}
        assert "1,048,576 MiB are too many" in store.rejected()[0].reason


def test_the_largest_photos_of_phones_are_added(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for size in ((8192, 6144), (12000, 9000)):
        Image.new("L", size, 100).save(tmp_path / "photos" / f"{size[0]}.jpg")
    embedder = TorchRuntime(load(model_folder(tmp_path / "model")))
    with SqliteStore.create(tmp_path / "g", about(embedder)) as store:
        assert numbers(ingest(store, embedder, tmp_path / "photos")) == {"added": 2}
