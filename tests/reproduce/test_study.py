"""Studies: what is shipped can be trained, what is asked for is what is planned, what is finished is kept."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lookalike import recipe as recipes
from lookalike.errors import InputError
from lookalike.reproduce import study
from lookalike.reproduce.study import Planned, Study, StudyRow
from lookalike.run import Run
from lookalike.training.objective import create_objective
from lookalike.training.run import Callbacks

SHIPPED = [(name, budget) for name in study.names() for budget in study.load(name).budgets]
TINY = study.load("tiny-imagenet")
STUDIES = [
    "cars196",
    "cars196-losses",
    "cars196-seeds",
    "demo",
    "tiny-imagenet",
    "tiny-imagenet-record",
    "tiny-imagenet-seeds",
]


def test_the_studies_of_the_package_are_there() -> None:
    assert study.names() == STUDIES
    assert list(TINY.budgets) == ["30m", "2h", "full"]
    assert list(study.load("demo").budgets) == ["demo"]


@pytest.mark.parametrize(("name", "budget"), SHIPPED)
def test_every_budget_has_a_recipe_for_every_network(name: str, budget: str) -> None:
    planned = study.plan(study.load(name), budget)
    assert len(planned) == len(study.load(name).rows)
    assert len({p.name for p in planned}) == len(planned)  # each has a folder of its own
    for p in planned:
        create_objective(p.recipe, 200)  # network and loss can be built
        last = max((pixels for _, pixels in p.recipe.training.resolution), default=p.recipe.data.image_size)
        assert last <= p.recipe.data.image_size
        assert p.recipe.data.source == ("builtin" if name == "demo" else re.sub("-(losses|seeds|record)$", "", name))
        if p.start:
            assert p.start.recipe.model.name == p.recipe.model.name
            assert p.start.recipe.model.options == p.recipe.model.options


def test_no_recipe_of_a_study_is_forgotten() -> None:
    studies = [study.load(name) for name in study.names()]
    used = {row.recipe.format(budget=budget) for its in studies for budget in its.budgets for row in its.rows}
    assert used | {"own"} == set(recipes.shipped())  # which is for people's own images


def test_the_published_numbers_are_those_of_the_brief() -> None:
    published = {p.recipe.model.name: (p.row.task, p.row.published) for p in study.plan(TINY, "30m")}
    assert published == {
        "simple_cnn": ("1", 36.67),
        "weave": ("1", 36.67),
        "resnet18": ("2", 44.27),
        "cubs_resnet_1": ("3", 38.26),
        "cubs_resnet_2": ("3", 44.03),
        "cubs_resnet_3": ("3", 43.62),
    }


def test_an_unknown_study_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="'tiny-imagenet'") as caught:
        study.load("tiny_imagenet")
    assert all(name in caught.value.remedy for name in STUDIES)


@pytest.mark.parametrize("name", ["", "../studies/demo", "demo.yaml", "/etc/passwd"])
def test_a_study_is_a_name_and_no_path(name: str) -> None:
    with pytest.raises(InputError, match="tiny-imagenet"):
        study.load(name)


def test_the_plan_is_the_rows_in_order_under_names_of_their_own() -> None:
    assert [p.name for p in study.plan(TINY, "30m")] == [
        "tiny_imagenet-30m-simple_cnn",
        "tiny_imagenet-30m-weave",
        "tiny_imagenet-30m-resnet18",
        "tiny_imagenet-30m-cubs_resnet_1",
        "tiny_imagenet-30m-cubs_resnet_2",
        "tiny_imagenet-30m-cubs_resnet_3",
    ]
    assert [p.name for p in study.plan(study.load("demo"), "demo")] == [
        "demo-weave",
        "demo-resnet18",
        "demo-cubs_resnet_2",
        "demo-task4_classifier",
        "demo-task4_embedding",
    ]


def test_only_keeps_these_in_the_order_of_the_study() -> None:
    planned = study.plan(TINY, "30m", only=["cubs_resnet_2", "simple_cnn", "simple_cnn"])
    assert [p.recipe.model.name for p in planned] == ["simple_cnn", "cubs_resnet_2"]
    assert planned == [p for p in study.plan(TINY, "30m") if p in planned]


def test_overrides_change_every_recipe_and_come_after_the_rows_own() -> None:
    changed = StudyRow(task="1", network="a", recipe="quickstart", overrides=("training.seed=5", "training.epochs=9"))
    plain = StudyRow(task="2", network="b", recipe="quickstart")
    made = Study(title="Two Words", about="", budgets={"b": "one"}, rows=(changed, plain))
    first, second = study.plan(made, "b", ["training.seed=7"])
    assert (first.recipe.training.seed, first.recipe.training.epochs) == (7, 9)
    assert (second.recipe.training.seed, second.recipe.training.epochs) == (
        7,
        recipes.load("quickstart").training.epochs,
    )
    assert first.changed
    assert second.changed


def test_a_changed_recipe_has_a_name_of_its_own_that_the_same_changes_find_again() -> None:
    (plain,) = study.plan(TINY, "30m", only=["resnet18"])
    (same,) = study.plan(TINY, "30m", [f"training.epochs={plain.recipe.training.epochs}"], ["resnet18"])
    assert same == plain
    assert not plain.changed
    names = []
    for changes in (["training.seed=1"], ["training.seed=1", "training.device=auto"], ["training.seed=2"]):
        (changed,) = study.plan(TINY, "30m", changes, ["resnet18"])
        assert changed.changed
        assert re.fullmatch(r"tiny_imagenet-30m-resnet18-changed-[0-9a-f]{8}", changed.name)
        names.append(changed.name)
    assert names[0] == names[1] != names[2]
    made = Study(
        title="Two Words", about="", budgets={"b": "one"}, rows=(StudyRow(task="", network="a", recipe="quickstart"),)
    )
    assert [p.name for p in study.plan(made, "b")] == ["two_words-resnet18"]


@pytest.mark.parametrize(
    ("budget", "overrides", "only", "message"),
    [
        ("30min", [], [], "'Tiny ImageNet' has no budget '30min'. Did you mean '30m'?"),
        ("", [], [], "'Tiny ImageNet' has no budget ''."),
        ("30m", [], ["resnet-18"], "this study has no network 'resnet-18'. Did you mean 'resnet18'?"),
        ("30m", [], ["weave", "zzz"], "this study has no network 'zzz'."),
        ("30m", ["training.epoch=3"], [], "unknown key 'training.epoch'. Did you mean 'epochs'?"),
        ("30m", ["training.epochs=0"], [], "'training.epochs'"),
        ("30m", ["epochs"], [], "'epochs' is not an override."),
    ],
)
def test_what_cannot_be_planned(budget: str, overrides: list[str], only: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        study.plan(TINY, budget, overrides, only)
    assert message in caught.value.message
    assert caught.value.remedy


def test_a_recipe_is_found_in_its_studies() -> None:
    record = study.plan(study.load("tiny-imagenet-record"), "20m", only=["weave"])
    assert study.plan_recipe("tiny_imagenet/record/20m/weave") == record
    seeds = study.plan_recipe("tiny_imagenet/10m/resnet18", ["training.epochs=1"])
    assert [(p.recipe.training.seed, p.recipe.training.epochs, p.changed) for p in seeds] == [
        (seed, 1, True) for seed in (0, 1, 2)
    ]
    assert {p.name.split("-")[0] for p in study.plan_recipe("cars196/5m/resnet18")} == {
        "cars196_losses",
        "cars196_seeds",
    }
    with pytest.raises(InputError, match=r"tiny_imagenet/20m/weave"):
        study.plan_recipe("tiny_imagenet/20m/weave")


# training what is planned

SMALL = ["training.epochs=1", "training.batch_size=16", "data.image_size=32", "training.device=cpu"]


def planned_for(album: Path, *overrides: str) -> list[Planned]:
    own = (*SMALL, "model.options={stem: patch, width: 8}", f"data.source={album}", *overrides)
    rows = (
        StudyRow(task="2", network="ResNet", recipe="quickstart", overrides=own, published=10.0),
        StudyRow(
            task="3", network="CUBS", recipe="quickstart", overrides=(*own, "model.name=cubs_resnet_2"), published=100.0
        ),
    )
    return study.plan(Study(title="Small", about="", budgets={"only": "seconds"}, rows=rows), "only")


def test_runs_are_trained_in_order_and_kept_when_they_are_finished(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "cache"))
    planned, root = planned_for(album), tmp_path / "runs"
    said: list[str] = []
    done: list[tuple[str, bool]] = []
    callbacks = Callbacks(on_message=said.append)

    def finished(p: Planned, run: Run) -> None:
        done.append((p.name, run.receipt_path.is_file()))

    runs = study.reproduce(planned, out=root, callbacks=callbacks, finished=finished)
    assert [run.path for run in runs] == [root / "small-resnet18", root / "small-cubs_resnet_2"]
    assert done == [("small-resnet18", True), ("small-cubs_resnet_2", True)]
    assert [line for line in said if " of 2: " in line] == ["1 of 2: ResNet", "2 of 2: CUBS"]
    dates = [run.receipt_path.stat().st_mtime_ns for run in runs]

    runs[1].receipt_path.unlink()  # as if it had been stopped while it was measured
    said.clear()
    again = study.reproduce(planned, out=root, callbacks=callbacks, finished=finished)
    assert f"{runs[0].path} is finished and kept" in said
    assert f"{runs[1].path} is finished and kept" not in said
    assert again[0].receipt_path.stat().st_mtime_ns == dates[0]
    assert again[1].receipt_path.stat().st_mtime_ns > dates[1]
    assert len(done) == 4

    with pytest.raises(InputError, match=r"small-resnet18.*training\.seed=0.*--out"):
        study.reproduce(planned_for(album, "training.seed=1"), out=root)
    assert again[0].receipt_path.stat().st_mtime_ns == dates[0]

    study.keep_receipt(runs[0], tmp_path / "docs" / "receipts")
    (kept,) = (tmp_path / "docs" / "receipts").iterdir()
    assert kept.name == "small-resnet18.json"
    assert json.loads(kept.read_text()) == runs[0].receipt()


def test_a_folder_that_is_no_run_is_left_alone(album: Path, tmp_path: Path) -> None:
    (tmp_path / "small-resnet18").mkdir()
    note = tmp_path / "small-resnet18" / "note.txt"
    note.write_text("mine")
    with pytest.raises(InputError, match="small-resnet18"):
        study.reproduce(planned_for(album), out=tmp_path)
    assert [*tmp_path.rglob("*.*")] == [note]


def test_what_a_table_says_is_what_the_receipt_says() -> None:
    receipt: dict[str, Any] = {
        "results": {"top1": 0.4427, "top5": 0.7},
        "seconds": 90.0,
        "cpu_seconds": 180.0,
        "parameters": 11,
        "seed": 3,
        "epochs": 8,
    }
    row = StudyRow(task="2", network="ResNet-18", recipe="quickstart", published=44.27)
    assert study.measured(row, receipt) == {
        "task": "2",
        "network": "ResNet-18",
        "published": 44.27,
        "top1": pytest.approx(44.27),
        "top5": pytest.approx(70.0),
        "minutes": 1.5,
        "cpu_minutes": 3.0,
        "parameters": 11,
        "seed": 3,
        "epochs": 8,
    }


def test_a_study_with_a_misspelt_key_is_refused() -> None:
    row = {"task": "1", "network": "a", "recipe": "quickstart", "publishd": 44.27}
    tree = {"title": "x", "about": "", "budgets": {}, "rows": [row]}
    with pytest.raises(InputError, match=r"unknown key 'rows\.0\.publishd'"):
        recipes.validate(Study, tree, "x")
