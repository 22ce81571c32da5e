"""The walk through a folder: each real folder once, no pipes, other kinds counted, names that are UTF-8."""

from __future__ import annotations

import os
import unicodedata
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from lookalike.data import check
from lookalike.data.image_folder import read_folder
from lookalike.data.registry import load_dataset
from lookalike.data.scan import NO_FILE, Scan, has_image, in_words, modified_ns, read_regular, sentence
from lookalike.errors import InputError
from small_sets import class_folders, jpeg


def names(root: Path) -> list[str]:
    return [Path(path).relative_to(root).as_posix() for path in Scan(str(root)).files()]


def test_links_that_loop_end_and_real_folders_come_before_links(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pets", images=3)
    (root / "cat" / "again").symlink_to(root)
    (root / "cat" / "dogs").symlink_to(root / "dog")  # met before dog/ itself
    (root / "zebra").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.jpg").write_bytes(jpeg(99))
    assert names(root) == [f"{c}/{n}.jpg" for c in ("cat", "dog", "owl") for n in range(3)] + ["zebra/1.jpg"]
    catalog = load_dataset(root)
    assert Counter(catalog.class_names[label] for label in catalog.labels) == {"cat": 3, "dog": 3, "owl": 3, "zebra": 1}


def test_pipes_and_hidden_files_are_left_out_and_other_kinds_are_counted(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pets")
    os.mkfifo(root / "cat" / "pipe.jpg")
    (root / "dog" / "zero.png").symlink_to("/dev/zero")
    for name in (
        "cat/._0.jpg",
        "__MACOSX/cat/._0.jpg",
        ".cache/1.jpg",
        "cat/x.HEIC",
        "dog/y.heic",
        "owl/z",
        "owl/a.txt",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    (root / "owl" / "w.jfif").write_bytes(jpeg(5))
    (root / "owl" / "gone.png").symlink_to(root / "nowhere.png")
    report = check.check(load_dataset(root))
    assert report.passed_over == {".heic": 2, "(none)": 1, ".txt": 1, NO_FILE: 2}
    assert report.to_json()["passed_over"] == report.passed_over
    assert sum(report.counts["train"].values()) + sum(report.counts["val"].values()) == 12 + 2
    assert [path for path, _ in report.undecodable] == ["owl/gone.png"]
    assert "2 .heic, 2 pipe or device" in str(report)


def test_kinds_in_a_zip_are_counted(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for name in ("cat/1.jpg", "dog/1.jpe", "dog/film.mov", "__MACOSX/cat/._1.jpg", "cat/._1.jpg"):
            archive.writestr(name, jpeg(1))
    catalog = load_dataset(tmp_path / "pets.zip")
    assert (catalog.paths, dict(catalog.passed_over)) == (["cat/1.jpg", "dog/1.jpe"], {".mov": 1})


def test_a_folder_of_other_kinds_says_so(tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / "cat").mkdir(exist_ok=True)
        (tmp_path / "cat" / f"{n}.heic").write_bytes(b"")
    with pytest.raises(InputError, match=r"no image that can be read in it \(3 \.heic files were left alone") as caught:
        read_folder(tmp_path)
    assert "Convert" in caught.value.remedy
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "1.jpg").write_bytes(jpeg(1))
    with pytest.raises(InputError, match=r"class 'cat' has no images \(3 \.heic files were left alone"):
        read_folder(tmp_path)


def test_sentences() -> None:
    assert in_words({}) == sentence({}) == ""
    assert in_words({".txt": 1}) == "1 .txt file was left alone"
    assert sentence({".txt": 7, ".mov": 1}) == (
        "1 .mov and 7 .txt files were left alone: only JPEG, PNG, WebP, BMP, GIF, TIFF and PPM are read"
    )
    assert in_words({f".{n:02}": 1 for n in range(12)}).endswith(".07 and 4 other files were left alone")


def test_names_that_are_not_utf8_are_named_with_their_bytes(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pets")
    (root / "owl").rename(Path(os.fsdecode(os.fsencode(root) + b"/ow\xeb")))
    with pytest.raises(InputError, match=r"'ow\\xeb/0.jpg' is not UTF-8, nor are 3 others") as caught:
        load_dataset(root)
    assert caught.value.remedy == "Rename it."
    caught.value.message.encode()
    bad = Path(os.fsdecode(os.fsencode(tmp_path) + b"/p\xe9ts"))
    class_folders(bad)
    with pytest.raises(InputError, match=r"'p\\xe9ts' is not UTF-8"):
        load_dataset(bad)


@pytest.mark.parametrize("below", ["", "train/"])
def test_class_names_that_look_the_same_are_one_class(tmp_path: Path, below: str) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    other = unicodedata.normalize("NFD", "thé")
    for name in (composed, decomposed, other):
        (tmp_path / "d" / below / name).mkdir(parents=True)
        (tmp_path / "d" / below / name / "1.jpg").write_bytes(jpeg(1))
    catalog = read_folder(tmp_path / "d")
    assert catalog.class_names == (composed, other)
    assert sorted(catalog.labels.tolist()) == [0, 0, 1]
    table = tmp_path / "list.csv"
    rows = [f"d/{below}{name}/1.jpg,{name}\n" for name in (composed, decomposed, other)]
    table.write_text("path,label\n" + "".join(rows))
    assert load_dataset(table).class_names == (composed, other)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "1.jpg").write_bytes(b"abc")
    assert (read_regular(tmp_path / "1.jpg"), read_regular(tmp_path / "1.jpg", 2)) == (b"abc", b"ab")
    for name in ("pipe.jpg", "nowhere.jpg", "."):
        with pytest.raises(OSError, match=r"not a regular file|No such file"):
            read_regular(tmp_path / name)
    assert has_image(str(tmp_path))
    assert not has_image(str(tmp_path / "nowhere"))


def test_a_time_beyond_64_bits_is_the_last_one(tmp_path: Path) -> None:
    class Far:
        st_mtime_ns = 10**20

    assert modified_ns(Far()) == 2**63 - 1  # type: ignore[arg-type]
    (tmp_path / "1.jpg").write_bytes(b"")
    assert modified_ns((tmp_path / "1.jpg").stat()) == (tmp_path / "1.jpg").stat().st_mtime_ns
