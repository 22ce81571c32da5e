"""`lookalike train`, `evaluate`, `reproduce` and `demo`: real runs of a few steps, and every mistake in two lines."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lookalike import Gallery
from lookalike import recipe as recipes
from lookalike.cli import main
from lookalike.data import synthetic
from lookalike.models.pretrained import ImageModel
from lookalike.models.registry import create_model
from lookalike.models.serialization import ModelConfig
from lookalike.recipe import Recipe
from lookalike.reproduce import results_page, study
from lookalike.run import Run
from small_gallery import model_folder

RECIPE = """
data: {image_size: 32, augment: {crop: none, flip: 0.5}}
model: {name: resnet18, options: {stem: patch, width: 8}}
training: {epochs: 1, batch_size: 16, device: cpu, precision: float32}
"""
TINY = ["training.epochs=1", "training.batch_size=16", "training.resolution=[]", "data.image_size=32"]
NARROW = ["model.options={stem: patch, width: 8}", "training.device=cpu"]


class Said(NamedTuple):
    """What a command left behind: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def lookalike(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """The console script, from `sys.argv` to the exit code."""
    former = signal.getsignal(signal.SIGTERM)

    def call(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["lookalike", *map(str, arguments)])
        capfd.readouterr()
        try:
            main.run()
            code = 0
        except SystemExit as left:
            code = int(left.code or 0)
        return Said(code, *capfd.readouterr())

    yield call
    signal.signal(signal.SIGTERM, former)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOOKALIKE_CACHE", str(folder))
        patch.setenv("LOOKALIKE_DATA", str(folder / "data"))
        yield folder


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A person's own pictures: eight of each of four classes, in one folder for each, 32 pixels."""
    folder = tmp_path_factory.mktemp("own") / "my pictures"
    for label, name in enumerate(synthetic.CLASS_NAMES[:4]):
        (folder / name).mkdir(parents=True)
        for i in range(8):
            picture = synthetic.render(name, np.random.default_rng([label, i]), 32)
            Image.fromarray(picture).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that one stands in, but for a recipe."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(RECIPE)
    return tmp_path


@pytest.fixture(scope="module")
def trained(album: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run, and what was said of it in `said.json`."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "small.yaml").write_text(RECIPE)
    command = [sys.executable, "-m", "lookalike.cli.main", "train", "small.yaml", "--data", str(album)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    (folder / "said.json").write_text(json.dumps([done.returncode, done.stdout, done.stderr]))
    return Run(folder / "runs" / "small")


def test_training_says_what_came_out_and_where_to_look(trained: Run, album: Path) -> None:
    code, out, err = json.loads((trained.path.parent.parent / "said.json").read_text())
    assert code == 0, err
    said = trained.receipt()["results"]
    first, *middle, second, report, model = out.splitlines()
    assert first.startswith(f"top-1 {said['top1']:.2%}  (")  # the top 5 of four classes say nothing
    assert "(my pictures val, single crop, 32 px)" in first
    assert "temperature 1, not fitted: 4 images are too few, it takes 100" in middle
    assert second.startswith("trained ")
    assert second.endswith(" min on cpu, seed 0")
    assert (report, model) == ("report  runs/small/report.html", "model   runs/small/model")
    assert err.splitlines()[:2] == [
        "train: 28 images of my pictures at 32 pixels",
        "val: 4 images of my pictures at 32 pixels",
    ]
    assert "\r" not in err  # no bars where there is no terminal
    assert "\x1b" not in err
    assert shlex.split(trained.receipt()["command"]) == ["lookalike", "train", "small.yaml", "--data", str(album)]


def test_a_shipped_recipe_trains_on_ones_own_pictures(lookalike: Command, album: Path, here: Path) -> None:
    said = lookalike("train", "quickstart", *TINY, *NARROW, "--data", album, "-o", "other/place/mine", "--tensorboard")
    assert said.code == 0, said.err
    run = Run.open(here / "other" / "place" / "mine")
    assert run.recipe == recipes.load("quickstart", [*TINY, *NARROW, f"data.source={album}"])
    assert "report  other/place/mine/report.html" in said.out
    assert list((run.path / "events").iterdir())
    assert not (here / "runs").exists()


def test_a_second_run_of_the_name_is_refused_and_resumed_when_asked(
    lookalike: Command, album: Path, here: Path
) -> None:
    command = ("train", "small.yaml", "--data", album)
    assert lookalike(*command).code == 0
    receipt = Run(here / "runs" / "small").receipt()
    taken = lookalike(*command)
    assert taken.code == 2
    error, remedy = taken.err.splitlines()
    assert "runs/small" in error
    assert "--resume" in remedy
    assert "--out" in remedy
    assert Run(here / "runs" / "small").receipt() == receipt
    assert lookalike(*command, "--resume").code == 0
    changed = lookalike(*command, "--resume", "training.epochs=2")
    assert changed.code == 2
    assert "runs/small" in changed.err
    assert "training.epochs=1" in changed.err


# evaluate


def test_evaluate_prints_what_the_receipt_says(lookalike: Command, trained: Run, album: Path) -> None:
    said = lookalike("evaluate", trained.model_dir, album)
    assert said.code == 0, said.err
    expected = trained.receipt()["results"]
    assert said.out.splitlines() == [
        "my pictures: 4 images (val, single crop, 32 px)",
        f"top-1 {expected['top1']:.2%}",  # and no top-5: there are four classes
        f"negative log-likelihood {expected['nll']:.4f} nats",
        f"calibration error {expected['ece']:.4f}",
        "temperature 1, not fitted: 4 images are too few, it takes 100",
    ]
    assert said.err == ""  # no bars where there is no terminal


def test_evaluate_shows_its_progress_on_a_terminal(
    lookalike: Command, trained: Run, album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, as far as the bars are concerned
    monkeypatch.setenv("LOOKALIKE_CACHE", str(trained.path / "cache"))
    said = lookalike("evaluate", trained.model_dir, album, "--json")
    assert "decoding" in said.err
    assert "evaluating" in said.err
    assert "4/4" in said.err
    assert json.loads(said.out)["n"] == 4


def test_evaluate_measures_on_images_that_the_model_was_not_trained_on(
    lookalike: Command, album: Path, here: Path
) -> None:
    split = ("data.val_fraction=0.5", "data.split_seed=3")
    assert lookalike("train", "small.yaml", *split, "--data", album).code == 0
    run = Run(here / "runs" / "small")

    def measured(*options: object) -> dict[str, Any]:
        return dict(json.loads(lookalike("evaluate", run.model_dir, album, "--json", *options).out))

    as_trained, expected = measured(), run.receipt()["results"]
    assert as_trained["n"] == expected["n"] == 16
    assert as_trained["nll"] == pytest.approx(expected["nll"], abs=1e-6)
    assert measured("--val-fraction", 0.25)["n"] == 8
    assert measured("--split-seed", 0)["nll"] != pytest.approx(expected["nll"], abs=1e-6)
    refused(lookalike("evaluate", run.model_dir, album, "--val-fraction", 1), "val_fraction is 1.0", "below 1")
    config_path = run.model_dir / "config.json"
    config = json.loads(config_path.read_text())
    assert (config.pop("val_fraction"), config.pop("split_seed")) == (0.5, 3)
    config_path.write_text(json.dumps(config))  # as older ones are
    assert measured()["n"] == 4


def test_top_5_and_temperature_are_said_where_they_say_something(lookalike: Command, album: Path, here: Path) -> None:
    config = ModelConfig(
        name="weave",
        options={"widths": [16, 32], "pairs": [1, 1]},
        image_size=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        class_names=synthetic.CLASS_NAMES,
        class_ids=synthetic.CLASS_NAMES,
    )
    ImageModel(create_model(config.name, config.num_classes, config.options), config).save_pretrained(here / "model")
    said = lookalike("evaluate", here / "model", album)
    assert said.code == 0, said.err
    assert [line.split()[0] for line in said.out.splitlines()] == [
        "my", "top-1", "top-5", "negative", "calibration",
    ]  # fmt: skip


def test_evaluate_as_json_names_how_it_was_measured(lookalike: Command, trained: Run, album: Path) -> None:
    said = lookalike("evaluate", trained.model_dir, album, "--json", "--flip", "--split", "train", "--device", "cpu")
    assert said.code == 0, said.err
    numbers = json.loads(said.out)
    assert (numbers["split"], numbers["flip"], numbers["crop"], numbers["n"]) == ("train", True, "single", 28)
    assert numbers["model"] == str(trained.model_dir)
    assert numbers["fingerprint"] == json.loads((trained.model_dir / "config.json").read_text())["fingerprint"]
    assert 0 <= numbers["top1"] <= numbers["top5"] == 1
    plain = json.loads(lookalike("evaluate", trained.model_dir, album, "--json").out)
    assert plain["flip"] is False
    assert plain["nll"] == pytest.approx(trained.receipt()["results"]["nll"], abs=1e-6)
    assert plain["per_class"] == trained.receipt()["results"]["per_class"]


def test_evaluate_names_the_flip_and_writes_a_report(lookalike: Command, trained: Run, album: Path, here: Path) -> None:
    said = lookalike("evaluate", trained.model_dir, album, "--flip", "--report", "report.html")
    assert said.code == 0, said.err
    assert "(val, single crop, flip averaged, 32 px)" in said.out
    assert said.out.splitlines()[-1] == "report report.html"
    assert "my pictures" in (here / "report.html").read_text()
    assert [path.name for path in here.iterdir() if path.name != "small.yaml"] == ["report.html"]


# reproduce and demo


@pytest.fixture
def studies(album: Path, here: Path) -> Path:
    """A folder with the study `small`, two networks of which are trained in seconds."""
    own = [f"data.source={album}"]
    rows = [
        {"task": "2", "network": "ResNet-18", "recipe": str(here / "small.yaml"), "published": 44.27},
        {"task": "3", "network": "CUBS-ResNet-2", "recipe": str(here / "small.yaml"), "published": 44.03},
    ]
    rows[0]["overrides"], rows[1]["overrides"] = own, [*own, "model.name=cubs_resnet_2"]
    budgets = {"30m": "seconds", "2h": "seconds"}
    folder = here / "studies"
    folder.mkdir()
    (folder / "small.yaml").write_text(
        yaml.safe_dump({"title": "Small", "about": "", "budgets": budgets, "rows": rows}, sort_keys=False)
    )
    return folder


def test_reproduce_trains_prints_the_table_and_writes_the_page(
    lookalike: Command, studies: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "STUDIES", studies)
    command = ("reproduce", "small")
    said = lookalike(*command)
    assert said.code == 0, said.err
    assert "top-5" not in said.out  # there are four classes
    for words in ("ResNet-18", "44.27 %", "CUBS-ResNet-2", "44.03 %"):
        assert words in said.out
    assert said.out.splitlines()[-1].split() == ["written", "runs/results.md"]
    assert not (here / "docs").exists()
    runs = [Run(here / "runs" / f"small-30m-{name}") for name in ("resnet18", "cubs_resnet_2")]
    receipts = {run.path.name: run.receipt() for run in runs}
    assert (here / "runs" / "results.md").read_text() == results_page.page("small", receipts)
    assert sorted(path.stem for path in (here / "runs" / "receipts").iterdir()) == sorted(receipts)
    assert f"{100 * receipts['small-30m-resnet18']['results']['top1']:.2f} %" in said.out

    again = lookalike(*command, "--only", "resnet18")
    assert "is finished and kept" in again.err
    assert runs[0].receipt() == receipts[runs[0].path.name]
    assert "CUBS-ResNet-2" not in again.out  # not asked for
    page = (here / "runs" / "results.md").read_text()
    assert "CUBS-ResNet-2" in page  # but still on the page

    said = lookalike(*command, "--only", "resnet18", "training.seed=1", "--page", "docs/results.md")
    assert said.code == 0, said.err
    (changed,) = (here / "runs").glob("*-changed-*")
    assert changed.name.startswith("small-30m-resnet18-changed-")
    assert Run(changed).recipe.training.seed == 1
    assert "ResNet-18" in said.out
    assert "written" not in said.out
    assert "docs/results.md" in said.out.splitlines()[-1]
    assert f"runs/{changed.name}" in said.out.splitlines()[-1]
    assert not (here / "docs").exists()
    assert runs[0].receipt() == receipts[runs[0].path.name]


def untrained(recipe: Recipe, *, out: Path, **_: Any) -> Run:
    """A run with a receipt, as if it had been trained."""
    run = Run.create(out, recipe)
    more = {"cpu_seconds": 1.0, "parameters": 1, "epochs": 1, "threads": 1, "processes": 1}
    data = {"classes": 4, "remark": ""}
    results = {"top1": 0.5, "top5": 1.0}
    run.write_receipt(results, seconds=1, data=data, seed=0, device="cpu", command="lookalike", **more)
    return run


def test_reproduce_trains_all_rows_of_a_recipe(
    lookalike: Command, studies: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "STUDIES", studies)
    monkeypatch.setattr(study, "train", untrained)
    said = lookalike("reproduce", "--recipe", str(here / "small.yaml"), "--page", "page.md")
    assert said.code == 0, said.err
    budgets = list(study.load("small").budgets)
    names = {f"small-{budget}-{network}" for budget in budgets for network in ("resnet18", "cubs_resnet_2")}
    assert {path.name for path in (here / "runs").iterdir()} == names
    assert {path.stem for path in (here / "receipts").iterdir()} == names
    said = lookalike("reproduce", "training.seed=1", "--recipe", str(here / "small.yaml"), "--page", "page.md")
    assert said.code == 0, said.err
    assert len(list((here / "runs").glob("*-changed-*"))) == len(names)


LAUNCHED = """
import os, sys
from pathlib import Path
from lookalike.cli.main import run
from lookalike.recipe import Recipe
from lookalike.reproduce import results_page, study
study.STUDIES = Path(sys.argv.pop(1))
write = results_page.write_page
def told(*arguments):
    print("page by process", os.environ["RANK"], flush=True)
    write(*arguments)
results_page.write_page = told
run()
"""


def test_of_several_processes_one_prints_the_table_and_writes_the_page(studies: Path, here: Path) -> None:
    (here / "launched.py").write_text(LAUNCHED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "launched.py", str(studies), "reproduce", "small", "--page", "page.md", "--only", "resnet18"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("page by process 0") == done.stdout.count("page by process") == 1
    assert done.stdout.count("ResNet-18") == 1
    assert done.stdout.count("written  page.md") == 1
    assert done.stderr.count("1 of 1: ResNet-18") == 1
    assert Run(here / "runs" / "small-30m-resnet18").receipt()["processes"] == 2


def test_demo_shows_finished_runs_and_what_to_try_next(
    lookalike: Command, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = partial(synthetic.catalog, train_per_class=1, val_per_class=1, test_per_class=1)
    monkeypatch.setattr(synthetic, "catalog", few)
    for number, p in enumerate(study.plan(study.load("demo"), "demo")):  # as if they had been trained: minutes
        run = Run.create(here / "runs" / p.name, p.recipe)
        measured: dict[str, object] = {"top1": 0.5 + 0.1 * (number == 1), "top5": 0.9}
        if p.recipe.data.protocol:
            recalls = {f"recall_at_{k}": 0.25 for k in (1, 2, 4, 8)}
            measured = {**recalls, "view": "features", "views": {"softmax": recalls}}
        extra = {"cpu_seconds": 100.0, "parameters": 2_000_000, "epochs": 15}
        run.write_receipt(
            measured, seconds=50, data={"classes": 24}, seed=0, device="cpu", command="lookalike demo", **extra
        )
        model_folder(run.model_dir)
    said = lookalike("demo")
    assert said.code == 0, said.err
    assert said.err.count("is finished and kept") == 5
    for words in ("WeaveNet", "ResNet-18", "CUBS-ResNet-2", "60.00 %", "50.00 %", "top-5", "90.00 %"):
        assert words in said.out
    for words in ("vectors", "softmax", "25.0"):
        assert words in said.out
    assert "published" not in said.out
    assert "runs/demo-resnet18/report.html" in said.out  # the best of them
    commands = [line.split() for line in said.out.partition("Next:")[2].splitlines() if "lookalike" in line]
    assert [words[1] for words in commands] == ["serve", "predict", "train", "data"]
    assert commands[0][2] == "runs/demo-resnet18/pictures.gallery"
    assert commands[1][2:5] == ["photo.jpg", "--model", "runs/demo-resnet18/model"]
    assert lookalike("demo").out == said.out  # nothing is added twice
    with Gallery.open(commands[0][2]) as gallery:
        assert len(gallery) == 48
        assert gallery.about.model == str((here / "runs/demo-resnet18/model").resolve())
    assert len(list((here / "runs").iterdir())) == 5


# every mistake


def refused(said: Said, what: str, remedy: str = "") -> None:
    """Exit code 2, and two lines at the end that say what is wrong and what to do."""
    assert said.code == 2, said
    assert said.out == ""
    assert "Traceback" not in said.err
    *_, error, way_out = said.err.splitlines()
    assert error.startswith("error: ")
    assert said.err.count("error: ") == 1
    assert what in error, error
    assert way_out.startswith("  ")
    assert remedy in way_out, way_out


def _remove(folder: Path) -> None:
    shutil.rmtree(folder)


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _one_level_too_high(folder: Path) -> None:
    for path in list(folder.rglob("*.png")):
        path.rename(folder / f"{path.parent.name}-{path.name}")


def _one_class(folder: Path) -> None:
    for name in synthetic.CLASS_NAMES[1:4]:
        shutil.rmtree(folder / name)


def _empty_class(folder: Path) -> None:
    (folder / "unicorn").mkdir()


def _foreign_label(folder: Path) -> None:
    for name in synthetic.CLASS_NAMES[:4]:
        (folder / "train").mkdir(exist_ok=True)
        (folder / name).rename(folder / "train" / name)
    (folder / "val" / "unicorn").mkdir(parents=True)
    shutil.copy(next(folder.rglob("*.png")), folder / "val" / "unicorn")


def _undecodable(folder: Path) -> None:
    path = folder / synthetic.CLASS_NAMES[2] / "3.png"
    path.write_bytes(path.read_bytes()[:150])


@pytest.mark.parametrize(
    ("spoil", "what", "remedy"),
    [
        (_remove, "no data set of this name, and no such file or folder", "Names: builtin, tiny-imagenet"),
        (_empty, "no images in it", "one folder of images for each class"),
        (_one_level_too_high, "lies in no class's folder", "Move it"),
        (_one_class, f"one class only, '{synthetic.CLASS_NAMES[0]}'", "Add a folder for each other class"),
        (_empty_class, "class 'unicorn' has no images", "Put some into its folder"),
        (_foreign_label, "is of class 'unicorn', which train/ does not have", "Add it"),
        (_undecodable, f"{synthetic.CLASS_NAMES[2]}/3.png", "data.skip_undecodable=true"),
    ],
)
def test_a_folder_that_is_wrong(
    spoil: Callable[[Path], None], what: str, remedy: str, lookalike: Command, album: Path, here: Path, cache: Path
) -> None:
    folder = Path(shutil.copytree(album, here / "pictures"))
    spoil(folder)
    refused(lookalike("train", "small.yaml", "--data", "pictures"), what, remedy)
    assert not list(here.glob("runs/*"))
    assert not [*cache.rglob("*.partial")]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (lambda whole: whole[: len(whole) // 2], "pictures.zip: this zip ends early or is damaged"),
        (lambda whole: whole[:-1], "pictures.zip: this zip ends early or is damaged"),
        (lambda whole: b"", "pictures.zip: neither a folder nor a zip"),
        (lambda whole: b"<!doctype html>", "pictures.zip: neither a folder nor a zip"),
    ],
    ids=["half", "all but one byte", "nothing", "an error page"],
)
def test_a_zip_that_is_not_whole(
    content: Callable[[bytes], bytes], what: str, lookalike: Command, album: Path, here: Path
) -> None:
    path = Path(shutil.make_archive(str(here / "pictures"), "zip", album))
    path.write_bytes(content(path.read_bytes()))
    refused(lookalike("train", "small.yaml", "--data", "pictures.zip"), what)
    assert not (here / "runs").exists()


def test_a_table_with_an_image_that_is_not_there(lookalike: Command, album: Path, here: Path) -> None:
    names = [str(path.relative_to(album)) for path in sorted(album.rglob("*.png"))]
    table = Path(shutil.copytree(album, here / "pictures")) / "table.csv"
    table.write_text("path,label\n" + "".join(f"{name},{name.partition('/')[0]}\n" for name in names) + "gone.png,x\n")
    refused(lookalike("train", "small.yaml", "--data", table), "gone.png")
    table.write_text("path,label\n" + "".join(f"{name},same\n" for name in names))
    refused(lookalike("train", "small.yaml", "--data", table), "1 different labels")
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "what", "remedy"),
    [
        (["training.epochs=0"], "'training.epochs' input should be greater than or equal to 1 (given: 0)", ""),
        (["training.epochs=many"], "'training.epochs'", ""),
        (["optimizer.lr=.inf"], "'optimizer.lr'", ""),
        (["training.epoch=3"], "unknown key 'training.epoch'. Did you mean 'epochs'?", "Keys in 'training': epochs"),
        (["trainig.epochs=3"], "unknown key 'trainig'. Did you mean 'training'?", "Keys: name, about, data"),
        (["epochs"], "'epochs' is not an override", "Write key=value"),
        (["training.grad_accum_steps=3"], "grad_accum_steps=3 does not divide batch_size=16", ""),
        (["training.resolution=[[0.5, 32]]"], "must start at 0", ""),
        (["training.device=cuda:99"], "there is no device 'cuda:99' here", "Use auto, cpu"),
        (["model.name=resnet"], "no network named 'resnet'. Did you mean 'resnet", "timm/NAME"),
        (["model.options={stm: patch}"], "'resnet18' has no option 'stm'. Did you mean 'stem'?", "It has stem"),
        (["model.options={stem: round}"], "'resnet18' refuses stem='round'", ""),
        (["data.image_size=8"], "8 pixels are too small for resnet18", "Use larger ones"),
        (["--out", "n" * 300], "n" * 300, "--out"),
        (["model.name=simple_cnn"], "'simple_cnn' has no option 'stem'", "model.options={} takes away"),
        (["--out", "small.yaml/small"], "small.yaml/small", "--out"),
    ],
)
def test_a_value_that_is_wrong(
    arguments: list[str], what: str, remedy: str, lookalike: Command, album: Path, here: Path
) -> None:
    refused(lookalike("train", "small.yaml", "--data", album, *arguments), what, remedy)
    assert not list(here.glob("runs/*"))


@pytest.mark.parametrize(
    ("recipe", "what"),
    [
        ("nowhere.yaml", "nowhere.yaml: no such recipe file"),
        ("quickstar", "no recipe named 'quickstar'. Did you mean 'quickstart'?"),
        ("bad.yaml", "bad.yaml: not valid YAML"),
        ("list.yaml", "list.yaml: expected 'key: value' lines, found a list"),
        ("unknown.yaml", "unknown.yaml: unknown key 'modle'. Did you mean 'model'?"),
    ],
)
def test_a_recipe_that_is_none(recipe: str, what: str, lookalike: Command, here: Path) -> None:
    (here / "bad.yaml").write_text("model: {name: [\n")
    (here / "list.yaml").write_text("- model\n")
    (here / "unknown.yaml").write_text("modle: {name: resnet18}\n")
    said = lookalike("train", recipe)
    assert said.code == 2
    assert said.err.startswith(f"error: {what}")
    assert len(said.err.splitlines()) <= 2
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["nowhere", "ALBUM"], "nowhere: no such folder"),
        (["ALBUM", "ALBUM"], "my pictures"),
        (["MODEL", "nowhere"], "'nowhere': no data set of this name"),
        (["MODEL", "ALBUM", "--split", "test"], "the test split has no images"),
        (["MODEL", "ALBUM", "--device", "cuda:99"], "there is no device 'cuda:99' here"),
        (["MODEL", "OTHER"], "the model does not know the class 'unicorn'"),
    ],
)
def test_evaluate_refuses(
    arguments: list[str],
    what: str,
    lookalike: Command,
    trained: Run,
    album: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    other = Path(shutil.copytree(album, here / "other"))
    (other / synthetic.CLASS_NAMES[0]).rename(other / "unicorn")
    places = {"ALBUM": album, "MODEL": trained.model_dir, "OTHER": other}
    said = lookalike("evaluate", *(places.get(argument, argument) for argument in arguments), "--report", "r.html")
    refused(said, what)
    assert not (here / "r.html").exists()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["tiny_imagenet"], "no study named 'tiny_imagenet'. Did you mean 'tiny-imagenet'?"),
        (["tiny-imagenet", "--budget", "3h"], "has no budget '3h'"),
        (["tiny-imagenet", "--only", "resnet19"], "this study has no network 'resnet19'. Did you mean 'resnet18'?"),
        (["tiny-imagenet", "training.epoch=1"], "unknown key 'training.epoch'. Did you mean 'epochs'?"),
        (["tiny-imagenet"], "tiny-imagenet is not on this machine"),
        ([], "no study is given"),
        (
            ["--recipe", "tiny_imagenet/30m/resnet19"],
            "no study has a recipe 'tiny_imagenet/30m/resnet19'. Did you mean",
        ),
        (["demo", "--recipe", "quickstart"], "'demo'"),
        (["--recipe", "quickstart", "--budget", "2h"], "'--budget'"),
        (["--recipe", "quickstart", "--only", "weave"], "'--only'"),
        (["--recipe", "quickstart", "training.epoch=1"], "unknown key 'training.epoch'. Did you mean 'epochs'?"),
    ],
)
def test_reproduce_refuses(arguments: list[str], what: str, lookalike: Command, here: Path) -> None:
    refused(lookalike("reproduce", *arguments), what)
    assert not list(here.glob("runs/*"))
    assert not (here / "docs").exists()


def test_options_that_another_network_does_not_have_can_be_taken_away() -> None:
    model = recipes.load("quickstart", ["model.name=simple_cnn", "model.options={}"]).model
    with torch.device("meta"):
        assert create_model(model.name, 4, model.options).head.out_features == 4


def test_a_run_that_diverges_is_a_failure_and_no_bad_input(lookalike: Command, album: Path, here: Path) -> None:
    values = ["optimizer.lr=1e38", "training.epochs=20"]
    said = lookalike("train", "small.yaml", *values, "--data", album)
    assert said.code == 1
    assert said.out == ""
    *_, error, remedy = said.err.splitlines()
    assert error.startswith("error: the ")
    assert "not finite at step" in error
    assert remedy.startswith("  Lower optimizer.lr")
    assert not (here / "runs" / "small" / "receipt.json").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, a disk that is always full")
def test_no_space_left_is_said_and_the_run_goes_on_when_there_is(lookalike: Command, album: Path, here: Path) -> None:
    changes = [f"data.source={album}"]
    run = Run.create(here / "runs" / "small", recipes.load(str(here / "small.yaml"), changes))
    run.checkpoint_dir.mkdir()
    beside = run.checkpoint_dir / "last.pt.partial"
    beside.symlink_to("/dev/full")
    command = ["train", "small.yaml", *changes, "--resume"]
    refused(lookalike(*command), "last.pt", "Free some")
    left = {path.name for path in run.checkpoint_dir.iterdir()}
    assert left <= {"best.safetensors"}, "nothing half-written, and no link to what is full"
    assert not run.receipt_path.exists()
    assert lookalike(*command).code == 0
    assert run.receipt()["steps"] == 2
