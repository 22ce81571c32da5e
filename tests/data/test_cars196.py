"""Cars196: every layout gives the official labels, a copy that is not whole says so, and what is wrong is named."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat
from typer.testing import CliRunner

from faulty_server import Page, Site, serving
from image_factory import encoded, noise
from lookalike.cli.main import app
from lookalike.data import cars196, check
from lookalike.data.cars196 import classes, is_cars196, label_of, read_cars196
from lookalike.data.catalog import Row
from lookalike.data.import_dataset import import_dataset
from lookalike.data.pack import pack
from lookalike.data.registry import DATASETS, load_dataset, zero_shot_counts
from lookalike.data.spec import HUB
from lookalike.errors import DownloadError, InputError
from lookalike.image import decode
from small_sets import hugging_face, zip_of

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "cars196-mini.tar"
VAN = label_of("Ram C/V Cargo Van Minivan 2012")
LABELS = (0, 5, VAN, 195)  # AM General, then one that sorting would move, the one with a slash, the last
BOX = (3, 2, 12, 9)  # as the devkit counts: from 1, the last pixel included
FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class")


def jpeg(seed: int, width: int = 16, height: int = 12) -> bytes:
    return encoded(noise(height, width, seed), "JPEG")


def write(place: Path, data: bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)


def annos(path: Path, names: list[str], labels: list[int | None], extra: dict[str, list[int]] | None = None) -> None:
    """A struct array as the devkit has it: boxes, the class where there is one, further fields, the file name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    further = extra or {}
    name = "relative_im_path" if further else "fname"
    fields = [*(FIELDS if None not in labels else FIELDS[:4]), *further, name]
    rows = np.zeros((1, len(names)), [(field, "O") for field in fields])
    for place, (file, label) in enumerate(zip(names, labels, strict=True)):
        values = [*BOX, *([label + 1] if label is not None else []), *(further[key][place] for key in further), file]
        rows[0, place] = tuple(values)
    savemat(path, {"annotations": rows, **({"class_names": cell(classes())} if further else {})})


def cell(names: tuple[str, ...] | list[str]) -> np.ndarray:
    return np.array(list(names), dtype=object)[None]


def halves(home: Path, size: tuple[int, int] = (16, 12)) -> Path:
    """`cars_train/`, `cars_test/` and the devkit: two training and one test image of each of four classes."""
    training = [label for label in LABELS for _ in range(2)]
    for half, labels in (("train", training), ("test", list(LABELS))):
        names = [f"{number:05d}.jpg" for number in range(1, len(labels) + 1)]
        for seed, name in enumerate(names):
            write(home / f"cars_{half}" / name, jpeg(seed + 50 * (half == "test"), *size))
        labelled = "cars_train_annos" if half == "train" else "cars_test_annos_withlabels"
        annos(home / "devkit" / f"{labelled}.mat", names, list(labels))
    annos(home / "devkit" / "cars_test_annos.mat", names, [None] * len(LABELS))
    savemat(home / "devkit" / "cars_meta.mat", {"class_names": cell(classes())})
    return home


def one_folder(home: Path) -> Path:
    """`car_ims/` and `cars_annos.mat`: the same twelve images."""
    labels = [*(label for label in LABELS for _ in range(2)), *LABELS]
    names = [f"car_ims/{number:06d}.jpg" for number in range(1, 13)]
    for seed, name in enumerate(names):
        write(home / name, jpeg(seed if seed < 8 else seed - 8 + 50))
    annos(home / "cars_annos.mat", names, list(labels), {"test": [0] * 8 + [1] * 4})
    return home


def folders(home: Path, spell: Callable[[str], str], split: bool = True) -> Path:
    """Class folders of the same images, under their devkit names where there are splits."""
    for half, each in (("train", 2), ("test", 1)):
        for place, label in enumerate(LABELS):
            for number in range(each):
                name = f"{each * place + number + 1:05d}.jpg"
                above = home / half if split else home
                file = name if split else f"{half}-{name}"
                seed = each * place + number + 50 * (half == "test")
                write(above / spell(classes()[label]) / file, jpeg(seed))
    return home


def seen(catalog: cars196.Catalog) -> list[tuple[str, int, bytes]]:
    """What a catalog says, whatever its files are called."""
    rows = range(len(catalog))
    return sorted((str(catalog.splits[row]), int(catalog.labels[row]), catalog.read_bytes(row)) for row in rows)


SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is, with the slash as a folder": str,
    "C-V": lambda name: name.replace("/", "-"),
    "CV, lower case": lambda name: name.replace("/", "").lower(),
    "underscores": lambda name: name.replace("/", "_").replace(" ", "_"),
}


def test_the_halves_with_their_devkit(tmp_path: Path) -> None:
    catalog = read_cars196(halves(tmp_path / "cars"))
    assert catalog.name == "cars196"
    assert catalog.class_names == classes()
    assert len(catalog.rows_of("train")) == 8
    assert catalog.labels.tolist() == [label for label in LABELS for _ in range(2)] + list(LABELS)
    assert catalog.ids[0] == "cars_train/00001.jpg"
    assert set(catalog.boxes) == {(2, 1, 12, 9)}, "from 0, and the right edge is where the box ends"
    assert catalog.remark == "part: 12 of the 16,185 images, 4 of the 196 classes"


def test_one_folder_gives_the_same(tmp_path: Path) -> None:
    catalog = read_cars196(one_folder(tmp_path / "one"))
    assert seen(catalog) == seen(read_cars196(halves(tmp_path / "cars")))
    assert catalog.ids[0] == "car_ims/000001.jpg"
    assert set(catalog.boxes) == {(2, 1, 12, 9)}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_class_folders_give_the_official_labels(spelling: str, tmp_path: Path) -> None:
    home = folders(tmp_path / "kaggle", SPELLINGS[spelling])
    catalog = read_cars196(home)
    assert is_cars196(home)
    assert seen(catalog) == seen(read_cars196(halves(tmp_path / "cars")))
    assert "test/Ram C-V Cargo Van Minivan 2012/00003.jpg" in catalog.ids


def test_class_folders_without_halves(tmp_path: Path) -> None:
    catalog = read_cars196(folders(tmp_path / "flat", SPELLINGS["C-V"], split=False))
    assert sorted(set(catalog.labels.tolist())) == list(LABELS)
    assert catalog.remark == "part: 12 of the 16,185 images, 4 of the 196 classes, without the official split"


@pytest.mark.parametrize("kind", ["devkit", "tables"])
def test_class_folders_take_their_boxes_from_lists_that_lie_beside(kind: str, tmp_path: Path) -> None:
    home = folders(tmp_path / "kaggle" / "car_data" / "car_data", SPELLINGS["C-V"]).parents[1]
    if kind == "devkit":
        shutil.copytree(halves(tmp_path / "cars") / "devkit", home / "devkit")
    else:
        (home / "names.csv").write_text("".join(f"{name}\n" for name in classes()))
        for half, each in (("train", 2), ("test", 1)):
            labels = [label for label in LABELS for _ in range(each)]
            corners = ",".join(map(str, BOX))
            lines = [f"{number:05d}.jpg,{corners},{label + 1}\n" for number, label in enumerate(labels, start=1)]
            (home / f"anno_{half}.csv").write_text("".join(lines))
    catalog = read_cars196(home)
    assert set(catalog.boxes) == {(2, 1, 12, 9)}
    assert len(catalog.rows_of("test")) == 4


def test_a_box_of_another_image_is_not_taken(tmp_path: Path) -> None:
    home = folders(tmp_path / "kaggle", SPELLINGS["C-V"])
    shutil.copytree(halves(tmp_path / "cars") / "devkit", home / "devkit")
    (home / "train" / classes()[5] / "00003.jpg").rename(home / "train" / classes()[5] / "00001.jpg")
    assert [box is None for box in read_cars196(home).boxes] == [False, False, True, *[False] * 9]


def test_a_zip_and_doubled_folders_are_read_alike(tmp_path: Path) -> None:
    home = halves(tmp_path / "cars")
    zipped = zip_of(home, tmp_path / "cars.zip", "archive/")
    assert seen(read_cars196(zipped)) == seen(read_cars196(home))
    doubled = tmp_path / "doubled"
    for half in ("cars_train", "cars_test"):
        shutil.copytree(home / half, doubled / half / half)
    shutil.copytree(home / "devkit", doubled / "car_devkit" / "devkit")
    named = doubled / "car_devkit" / "devkit" / "cars_test_annos_withlabels.mat"
    named.rename(doubled / "cars_test_annos_withlabels (1).mat")
    assert read_cars196(doubled).ids == read_cars196(home).ids
    assert seen(read_cars196(doubled)) == seen(read_cars196(home))


def test_without_its_labels_the_test_half_is_left_out_and_that_is_said(tmp_path: Path) -> None:
    home = halves(tmp_path / "cars")
    (home / "devkit" / "cars_test_annos_withlabels.mat").unlink()
    catalog = read_cars196(home)
    assert set(catalog.splits) == {"train"}
    assert catalog.remark.endswith(", 4 test images left out for want of cars_test_annos_withlabels.mat")
    shutil.rmtree(home / "cars_train")
    with pytest.raises(InputError, match=r"cars_test/ have no labels: cars_test_annos_withlabels\.mat is missing"):
        read_cars196(home)


@pytest.mark.parametrize("size", [(9, 7), (10, 8)])
def test_a_set_that_is_cropped_already_has_no_boxes_and_says_so(size: tuple[int, int], tmp_path: Path) -> None:
    catalog = read_cars196(halves(tmp_path / "cars", size))
    assert set(catalog.boxes) == {None}
    assert catalog.remark == (
        "cropped part: 12 of the 16,185 images, 4 of the 196 classes, already cropped to their boxes"
    )


def test_one_half_cropped(tmp_path: Path) -> None:
    home = halves(tmp_path / "cars")
    for number, path in enumerate(sorted((home / "cars_train").iterdir())):
        path.write_bytes(jpeg(number, 10, 8))
    catalog = read_cars196(home)
    assert "those of train already cropped to their boxes" in catalog.remark
    assert [box is None for box in catalog.boxes] == [True] * 8 + [False] * 4


def remark_of(counts: dict[str, int], cropped: set[str]) -> str:
    """The remark of a set of this many images of all classes, by the reader's own words."""
    reader = object.__new__(cars196._Reader)
    reader.is_split, reader.unlabelled = True, 0
    rows = [Row(f"{split}/{number}", number % 196, split) for split, count in counts.items() for number in range(count)]
    return reader._remark(rows, cropped)


@pytest.mark.parametrize(
    ("counts", "cropped", "remark"),
    [
        ({"train": 8144, "test": 8041}, set(), ""),
        ({"train": 8144}, {"train"}, "cropped half: 8,144 of the 16,185 images, already cropped to their boxes"),
        ({"train": 8144}, set(), "half: 8,144 of the 16,185 images"),
        ({"test": 8041}, set(), "test half: 8,041 of the 16,185 images"),
        (
            {"train": 8144, "test": 8041},
            {"train", "test"},
            "cropped: all 16,185 images, already cropped to their boxes",
        ),
        ({"train": 8143, "test": 8041}, set(), "part: 16,184 of the 16,185 images"),
        ({"train": 12185, "test": 4000}, set(), "another split: 12,185 train, 0 val, 4,000 test images"),
    ],
)
def test_what_is_said_of_a_set_by_its_counts(counts: dict[str, int], cropped: set[str], remark: str) -> None:
    assert remark_of(counts, cropped) == remark


def test_boxes_are_cropped_when_a_pack_is_to_have_them(tmp_path: Path) -> None:
    catalog = read_cars196(halves(tmp_path / "cars"))
    cut = pack(catalog, 8, cache=tmp_path / "packs", crop_boxes=True)
    whole = pack(catalog, 8, cache=tmp_path / "packs")
    assert cut.folder != whole.folder
    with Image.open(tmp_path / "cars" / "cars_train" / "00001.jpg") as image:
        file = io.BytesIO()
        image.crop((2, 1, 12, 9)).save(file, "PNG")
    assert np.array_equal(cut.images[0], decode(file.getvalue(), 8))


def test_the_official_list() -> None:
    assert len(classes()) == len({label_of(name) for name in classes()}) == 196
    assert [label_of(name) for name in classes()] == list(range(196))
    assert classes() != tuple(sorted(classes())), "sorted folders are in another order"
    assert (classes()[97], classes()[98]) == ("Eagle Talon Hatchback 1998", "FIAT 500 Abarth 2012")
    assert label_of("cat") is None


def test_a_devkit_with_its_classes_in_another_order_still_gives_the_official_labels(tmp_path: Path) -> None:
    home = halves(tmp_path / "cars")
    expected = read_cars196(home).labels.tolist()
    order = sorted(classes())
    savemat(home / "devkit" / "cars_meta.mat", {"class_names": cell(order)})
    for file, each in (("cars_train_annos", 2), ("cars_test_annos_withlabels", 1)):
        labels = [order.index(classes()[label]) for label in LABELS for _ in range(each)]
        annos(home / "devkit" / f"{file}.mat", [f"{n:05d}.jpg" for n in range(1, len(labels) + 1)], list(labels))
    assert read_cars196(home).labels.tolist() == expected


def spoil(home: Path, how: str) -> None:
    devkit = home / "devkit"
    train = devkit / "cars_train_annos.mat"
    names = [f"{number:05d}.jpg" for number in range(1, 9)]
    if how == "no training labels":
        train.unlink()
    elif how == "no devkit":
        shutil.rmtree(devkit)
    elif how == "cut short":
        train.write_bytes(train.read_bytes()[:-40])
    elif how == "a web page":
        train.write_text("<html>404</html>")
    elif how == "empty":
        train.write_bytes(b"")
    elif how == "another file":
        savemat(train, {"weights": np.ones(3)})
    elif how == "the unlabelled one under its name":
        shutil.copy(devkit / "cars_test_annos.mat", train)
    elif how == "class 197":
        annos(train, names, [196] * 8)
    elif how == "class 0":
        annos(train, names, [-1] * 8)
    elif how == "foreign classes":
        savemat(devkit / "cars_meta.mat", {"class_names": cell(["cat", "dog"])})
    elif how == "image that is not listed":
        write(home / "cars_train" / "00099.jpg", jpeg(0))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no training labels", r"cars_train/ have no labels: cars_train_annos\.mat is missing"),
        ("no devkit", r"cars_train/ have no labels: cars_train_annos\.mat is missing"),
        ("cut short", r"'devkit/cars_train_annos\.mat' is no MATLAB file, or damaged"),
        ("a web page", r"'devkit/cars_train_annos\.mat' is no MATLAB file, or damaged"),
        ("empty", r"'devkit/cars_train_annos\.mat' is no MATLAB file, or damaged"),
        ("another file", r"cars_train_annos\.mat' has no 'annotations' with the field 'fname'"),
        ("the unlabelled one under its name", r"cars_train_annos\.mat' has no 'annotations' with the field 'class'"),
        ("class 197", r"gives 00001\.jpg the class 197; classes run from 1 to 196"),
        ("class 0", r"gives 00001\.jpg the class 0"),
        ("foreign classes", "names the class 'cat', which Cars196 does not have"),
        ("image that is not listed", r"'cars_train/00099\.jpg' is in no list of the devkit"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_what_is_wrong_is_named(how: str, message: str, zipped: bool, tmp_path: Path) -> None:
    home = halves(tmp_path / "cars")
    spoil(home, how)
    path = zip_of(home, tmp_path / "cars.zip") if zipped else home
    assert is_cars196(path)
    with pytest.raises(InputError, match=message) as caught:
        read_cars196(path)
    assert str(path) in caught.value.message
    assert caught.value.remedy


def test_an_image_among_the_class_folders_that_is_of_no_class(tmp_path: Path) -> None:
    home = folders(tmp_path / "kaggle", SPELLINGS["C-V"])
    write(home / "train" / "a bicycle" / "1.jpg", jpeg(1))
    assert is_cars196(home)
    with pytest.raises(InputError, match=r"'train/a bicycle/1\.jpg' lies in the folder of no class"):
        read_cars196(home)
    shutil.rmtree(home / "train" / "a bicycle")
    write(home / classes()[3] / "1.jpg", jpeg(1))
    with pytest.raises(InputError, match="lies in neither train/ nor test/"):
        read_cars196(home)


@pytest.mark.parametrize("inside", ["cars_train", "cars_test", "devkit"])
def test_a_folder_inside_it_is_recognised_and_the_right_one_named(inside: str, tmp_path: Path) -> None:
    home = halves(tmp_path / "cars")
    assert is_cars196(home / inside)
    with pytest.raises(InputError, match="only a part of Cars196") as caught:
        load_dataset(home / inside)
    assert caught.value.remedy == f"Use {home}"


def test_other_pictures_are_not_mistaken_for_it(tmp_path: Path) -> None:
    for name in ("Tesla Model S Sedan 2012", "cat", "dog"):
        write(tmp_path / "own" / name / "1.jpg", jpeg(1))
    assert not is_cars196(tmp_path / "own")
    (tmp_path / "empty").mkdir()
    assert not is_cars196(tmp_path / "empty")


@pytest.mark.parametrize("layout", ["halves", "halves in a zip", "one folder", "class folders", "parquet"])
def test_every_layout_can_be_imported_and_is_known_by_its_name(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOKALIKE_DATA", str(tmp_path / "sets"))
    expected = halves(tmp_path / "cars")
    if layout == "one folder":
        source = one_folder(tmp_path / "one")
    elif layout == "class folders":
        source = folders(tmp_path / "kaggle" / "car_data", SPELLINGS["as it is, with the slash as a folder"]).parent
    elif layout == "parquet":
        source = hugging_face(tmp_path / "hub", tuple(classes()[label] for label in LABELS))
    else:
        source = zip_of(expected, tmp_path / "cars.zip", "x/") if "zip" in layout else expected
    import_dataset(source, "cars196", tmp_path / "sets")
    catalog = load_dataset("cars196")
    assert catalog.name == "cars196"
    assert catalog.root == tmp_path / "sets" / "cars196"
    if layout == "parquet":
        assert catalog.labels[catalog.rows_of("train")].tolist() == sorted(LABELS * 3)
    else:
        assert seen(catalog) == seen(read_cars196(expected))


def test_what_is_not_cars196_is_not_imported_under_its_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this is not Cars196"):
        import_dataset(hugging_face(tmp_path / "hub"), "cars196", tmp_path / "sets")
    assert list((tmp_path / "sets").iterdir()) == []


def test_the_doctor_counts_it_against_the_official_set(tmp_path: Path) -> None:
    report = check.check(read_cars196(halves(tmp_path / "cars")), workers=1)
    assert report.usable
    assert report.zero_shot == (6, 6)
    assert report.differences == [
        "4 classes with images, not 196",
        "train: 8 images, not 8,144",
        "test: 4 images, not 8,041",
        "12 images in all, not 16,185",
        "zero-shot, first 98 classes: 6 images, not 8,054",
        "zero-shot, last 98 classes: 6 images, not 8,131",
    ]
    assert "zero-shot: 6 images of the classes trained on, 6 of those tested on" in str(report)
    assert report.to_json()["zero_shot"] == (6, 6)
    assert "Cars196 in a folder" in str(report)


def test_the_official_counts_add_up() -> None:
    assert sum(cars196.COUNTS.values()) == cars196.SPEC.images == 16_185


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The Hub on this machine, without pages; sets lie in the temporary folder."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "LOOKALIKE_MIRROR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("LOOKALIKE_DATA", str(tmp_path / "sets"))
    with serving() as site:
        monkeypatch.setenv("HF_ENDPOINT", site.address)
        yield site


def test_get_tries_the_mirrors_in_turn(hub: Site, tmp_path: Path) -> None:
    copy = hugging_face(tmp_path / "made", tuple(classes()[label] for label in LABELS))
    made = {"train": "train-00000-of-00001.parquet", "test": "valid-00000-of-00001.parquet"}
    for file in DATASETS["cars196"].mirrors[1].files:  # the first has nothing
        body = (copy / made[file.name.split("-")[0]]).read_bytes()
        headers = {"X-Linked-Etag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Linked-Size": str(len(body))}
        hub.pages[file.url.removeprefix(HUB)] = Page(redirect=f"/storage/{file.name}", headers=headers)
        hub.pages[f"/storage/{file.name}"] = Page(body)
    result = CliRunner().invoke(app, ["data", "download", "cars196"])
    assert result.exit_code == 0, result.exception
    assert "This copy has no boxes. The official server is gone since 2023." in result.stdout
    catalog = load_dataset("cars196")
    assert [len(catalog.rows_of(split)) for split in ("train", "test")] == [24, 16]
    assert sorted(set(catalog.labels.tolist())) == list(LABELS)


def test_get_says_what_to_put_where_when_no_mirror_answers(hub: Site, tmp_path: Path) -> None:
    error = CliRunner().invoke(app, ["data", "download", "cars196"]).exception
    assert isinstance(error, DownloadError)
    assert error.message.count("404 Not Found") == len(DATASETS["cars196"].mirrors) == 2
    for file in ("cars_train/", "cars_test/", "cars_meta.mat", "cars_train_annos.mat", "car_ims/", "cars_annos.mat"):
        assert file in error.remedy
    assert "cars_test_annos_withlabels.mat" in error.remedy
    assert "lookalike data import THAT_FOLDER --name cars196" in error.remedy
    assert list((tmp_path / "sets").iterdir()) == []


def test_list_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKALIKE_DATA", str(tmp_path))
    result = CliRunner().invoke(app, ["data", "list"])
    assert "8,144 train, 8,041 test images" in result.stdout
    assert "lookalike data download cars196" in result.stdout


@pytest.mark.real_data
def test_real_images(tmp_path: Path) -> None:
    if not SAMPLE.is_file():
        pytest.skip(f"needs real images: there is no {SAMPLE.name} in shared/data beside the checkout")
    subprocess.run(["tar", "-xf", SAMPLE, "--no-same-owner", "-C", tmp_path], check=True)
    meta = loadmat(tmp_path / "cars196" / "devkit" / "cars_meta.mat", squeeze_me=True)
    assert tuple(meta["class_names"].tolist()) == classes(), "the official list is the devkit's"
    catalog = load_dataset(tmp_path / "cars196")
    assert catalog.name == "cars196"
    assert catalog.remark == (
        "cropped part: 480 of the 16,185 images, 24 of the 196 classes, already cropped to their boxes"
    )
    assert zero_shot_counts(catalog) == (240, 240)
    assert set(catalog.boxes) == {None}
    images = pack(catalog.select(np.arange(0, 480, 48)), 32, cache=tmp_path / "packs").images
    assert images.shape == (10, 32, 32, 3)
    assert images.std() > 10
