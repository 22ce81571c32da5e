from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.data import synthetic
from lookalike.data.catalog import Catalog
from lookalike.data.synthetic import CLASS_NAMES, catalog, families, render
from lookalike.data.synthetic_scene import Scene
from lookalike.data.synthetic_shapes import FAMILIES
from lookalike.errors import InputError

SMALL = {"size": 16, "train_per_class": 2, "val_per_class": 1, "test_per_class": 1, "workers": 1}

# fmt: off
GOLDEN = [  # mean of four pictures of each class
    103.21, 102.85, 102.82, 102.86,  # beetle
    103.20, 105.22, 105.44, 103.37,  # butterfly
    103.96, 103.84, 104.48, 104.64,  # fish
    106.31, 105.77, 104.44, 105.51,  # flower
    102.34, 102.77, 105.76, 102.04,  # pot
    106.41, 105.62, 104.30, 103.92,  # robot
]
# fmt: on


def picture(name: str, seed: int, size: int = 64) -> np.ndarray:
    return render(name, np.random.default_rng(seed), size)


def files_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*.png"))}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return catalog(**SMALL, cache=tmp_path_factory.mktemp("cache"))


def test_there_are_six_families_of_four() -> None:
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 24
    assert sorted(CLASS_NAMES) == list(CLASS_NAMES)  # the labels that a reader of class folders would give
    assert [len(names) for names in families().values()] == [4] * 6
    assert all(name.startswith(f"{family}-") for family, names in families().items() for name in names)


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_every_class_is_drawn_at_any_size(name: str) -> None:
    for size in (16, 37, 64):
        pixels = picture(name, 3, size)
        assert pixels.shape == (size, size, 3)
        assert pixels.dtype == np.uint8
        assert pixels.std() > 5


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_drawing_stays_in_single_precision(name: str) -> None:
    family, member = name.split("-")
    generator = np.random.default_rng(0)
    scene = Scene(generator, 32)
    FAMILIES[family][0](scene.canvas, generator, member)
    canvas = scene.canvas
    arrays = (scene.background, canvas.x, canvas.y, canvas.colour, canvas.cover, canvas.height)
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}
    assert all(np.isfinite(array).all() for array in arrays)


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_the_object_is_in_the_picture_and_does_not_fill_it(name: str) -> None:
    family, member = name.split("-")
    shares = []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        scene = Scene(generator, 32)
        FAMILIES[family][0](scene.canvas, generator, member)
        shares.append(float(scene.canvas.cover.mean()))
    assert min(shares) > 0.05
    assert max(shares) < 0.6


def test_the_same_generator_draws_the_same_pixels_and_another_does_not() -> None:
    for names in families().values():
        assert (picture(names[0], 5) == picture(names[0], 5)).all()
        assert (picture(names[0], 5) != picture(names[0], 6)).mean() > 0.5


@pytest.mark.parametrize("family", families())
def test_members_of_a_family_differ_when_all_else_is_equal(family: str) -> None:
    for seed in range(5):
        pixels = [picture(name, seed) for name in families()[family]]
        for one in range(4):
            for other in range(one):
                assert (np.abs(pixels[one].astype(int) - pixels[other]).max(axis=2) > 20).sum() > 10


def test_background_light_lens_and_pose_are_drawn_before_the_class_is_known() -> None:
    scenes = []
    for name in CLASS_NAMES:
        family, member = name.split("-")
        generator = np.random.default_rng(8)
        scene = Scene(generator, 32)
        FAMILIES[family][0](scene.canvas, generator, member)
        scenes.append(scene)
    first = scenes[0]
    for scene in scenes[1:]:
        assert (scene.background == first.background).all()
        assert (scene.noise == first.noise).all()
        assert (scene.canvas.x == first.canvas.x).all()
        assert scene.light == first.light
        assert scene.palette.body.tolist() == first.palette.body.tolist()


def test_pixels_change_only_with_the_version() -> None:
    """If this fails after a change to the drawings, raise VERSION and write the new means down."""
    means = [float(np.mean([picture(name, seed, 32) for seed in range(4)])) for name in CLASS_NAMES]
    assert synthetic.VERSION == 1
    np.testing.assert_allclose(means, GOLDEN, atol=0.02)  # other machines round the last bit of a sine differently


def sample(split: int, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    seeds = [np.random.SeedSequence([split, label, index]) for label in range(24) for index in range(count)]
    labels = np.repeat(np.arange(24), count)
    images = [
        render(CLASS_NAMES[label], np.random.default_rng(seed), size) for label, seed in zip(labels, seeds, strict=True)
    ]
    return np.stack(images), labels


def histograms(images: np.ndarray) -> np.ndarray:
    """Square roots of 4 × 4 × 4 colour histograms: their dot product is the Bhattacharyya coefficient."""
    bins = (images // 64).reshape(len(images), -1, 3).astype(np.int64) @ np.array([16, 4, 1])
    return np.sqrt(np.stack([np.bincount(row, minlength=64) for row in bins]) / bins.shape[1])


def test_neither_colours_nor_single_pixels_tell_the_class() -> None:
    (train, train_labels), (val, val_labels) = sample(0, 40, 32), sample(1, 20, 32)
    nearest = (histograms(val) @ histograms(train).T).argmax(axis=1)
    assert (train_labels[nearest] == val_labels).mean() < 0.10  # chance is 0.042
    x, y = (
        images.reshape(len(images), 16, 2, 16, 2, 3).mean(axis=(2, 4)).reshape(len(images), -1) / 255 - 0.45
        for images in (train, val)
    )
    targets = np.eye(24)[train_labels] - 1 / 24
    dual = np.linalg.solve(x @ x.T + 100 * np.eye(len(x)), targets)  # ridge regression
    assert ((y @ (x.T @ dual)).argmax(axis=1) == val_labels).mean() < 0.25
    assert ((x @ (x.T @ dual)).argmax(axis=1) == train_labels).mean() > 0.25  # it did learn what it saw


def test_the_catalog_has_its_counts_labels_and_files(small: Catalog) -> None:
    assert small.name == "builtin"
    assert small.class_names == small.class_ids == CLASS_NAMES
    assert [len(small.rows_of(split)) for split in ("train", "val", "test")] == [48, 24, 24]
    assert np.bincount(small.labels).tolist() == [4] * 24
    assert sorted(files_of(small.root)) == sorted(small.paths)
    for row, path in enumerate(small.paths):
        assert path.split("/")[:2] == [small.splits[row], CLASS_NAMES[small.labels[row]]]
        with Image.open(small.root / path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (16, 16))


def test_splits_may_be_left_out(tmp_path: Path) -> None:
    made = catalog(**{**SMALL, "train_per_class": 1, "val_per_class": 0, "test_per_class": 0}, cache=tmp_path)
    assert set(made.splits) == {"train"}
    assert len(made) == 24


def test_no_picture_comes_twice(small: Catalog) -> None:
    pixels = [hashlib.sha256(np.asarray(Image.open(small.root / path)).tobytes()).digest() for path in small.paths]
    assert len(set(pixels)) == len(small)


def test_the_number_of_workers_changes_nothing(small: Catalog, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    shared = catalog(**{**SMALL, "workers": 3}, cache=tmp_path, progress=lambda *done: seen.append(done))
    assert files_of(shared.root) == files_of(small.root)
    assert shared.fingerprint == small.fingerprint  # nor does the time of drawing
    assert seen == [(done, 96) for done in range(1, 97)]


def test_another_seed_gives_other_pictures(small: Catalog, tmp_path: Path) -> None:
    other = files_of(catalog(**SMALL, seed=1, cache=tmp_path).root)
    assert other.keys() == files_of(small.root).keys()
    assert not set(other.values()) & set(files_of(small.root).values())


def test_more_pictures_leave_the_first_as_they_are(small: Catalog, tmp_path: Path) -> None:
    more = files_of(catalog(**{**SMALL, "train_per_class": 3}, cache=tmp_path).root)
    assert len(more) == len(small) + 24
    assert files_of(small.root).items() <= more.items()


def test_what_is_whole_is_used_again(small: Catalog) -> None:
    before = {path: (small.root / path).stat() for path in small.paths}
    again = catalog(**SMALL, cache=small.root.parent, progress=lambda *_: pytest.fail("drawn again"))
    assert again == small
    assert {path: (again.root / path).stat().st_ctime_ns for path in again.paths} == {
        path: stat.st_ctime_ns for path, stat in before.items()
    }


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "not" / "there yet"))
    made = catalog(**SMALL)
    assert made.root.parent == tmp_path / "not" / "there yet"
    assert [path.name for path in made.root.parent.iterdir()] == [made.root.name]


@pytest.mark.parametrize("harm", ["missing", "empty", "no folder"])
def test_a_damaged_cache_is_drawn_again(small: Catalog, tmp_path: Path, harm: str) -> None:
    root = catalog(**SMALL, cache=tmp_path).root
    victim = root / small.paths[5]
    if harm == "missing":
        victim.unlink()
    elif harm == "empty":
        victim.write_bytes(b"")
    else:
        root.rename(tmp_path / "elsewhere")
        root.write_bytes(b"a file in its place")
    again = catalog(**SMALL, cache=tmp_path)
    assert files_of(again.root) == files_of(small.root)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_drawing_leaves_nothing(tmp_path: Path, workers: int) -> None:
    def stop(done: int, _: int) -> None:
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        catalog(**{**SMALL, "workers": workers}, cache=tmp_path, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_drawing_is_not_taken_for_whole(small: Catalog, tmp_path: Path) -> None:
    code = (
        "from lookalike.data.synthetic import catalog; from pathlib import Path; import os, signal, sys\n"
        "stop = lambda done, total: done == 50 and os.kill(os.getpid(), signal.SIGKILL)\n"
        f"catalog(**{SMALL!r}, cache=Path(sys.argv[1]), progress=stop)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".partial"
    assert files_of(catalog(**SMALL, cache=tmp_path).root) == files_of(small.root)
    assert not left.exists()


def test_whoever_is_faster_keeps_its_pictures(small: Catalog, tmp_path: Path) -> None:
    def overtake(done: int, total: int) -> None:
        if done == total:
            catalog(**SMALL, cache=tmp_path)

    made = catalog(**SMALL, cache=tmp_path, progress=overtake)
    assert files_of(made.root) == files_of(small.root)
    assert list(tmp_path.iterdir()) == [made.root]


def test_a_script_without_a_main_guard_may_ask_for_workers(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom lookalike.data.synthetic import catalog\n"
        f"print(len(catalog(**{ {**SMALL, 'workers': 2}!r}, cache=Path({str(tmp_path)!r}))))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout == "96\n"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": 15}, "of 15 pixels cannot be drawn.*16 to 1024"),
        ({"size": 1025}, "of 1025 pixels cannot be drawn"),
        ({"seed": -1}, "seed is -1.*0 or more"),
        ({"train_per_class": 0}, "train_per_class is 0.*1 or more"),
        ({"val_per_class": -1}, "val_per_class is -1"),
        ({"test_per_class": -1}, "test_per_class is -1"),
        ({"workers": 0}, "workers is 0.*1 or more"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, changed: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        catalog(**{**SMALL, **changed}, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_class_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'beetle-stripy' is not a built-in class\. Did you mean 'beetle-striped'\?"):
        picture("beetle-stripy", 0)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"file/cache/builtin-v1.*cannot be written.*LOOKALIKE_CACHE"):
        catalog(**SMALL, cache=tmp_path / "file" / "cache")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_a_word_and_nothing_stays(tmp_path: Path, workers: int) -> None:
    """A limit on the size of files stands in for the disk: writing fails inside the worker either way."""
    code = (
        "import resource, signal, sys; from pathlib import Path; from lookalike.data.synthetic import catalog\n"
        "from lookalike.errors import InputError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))\n"
        f"try:\n    catalog(**{ {**SMALL, 'workers': workers}!r}, cache=Path(sys.argv[1]))\n"
        "except InputError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-B", "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "cannot be written" in done.stdout
    assert "File too large" in done.stdout
    assert list(tmp_path.iterdir()) == []
