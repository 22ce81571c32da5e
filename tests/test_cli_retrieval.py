"""Retrieval from the command line: trained on some classes, measured on others, by name and by file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from lookalike.cli.main import app
from lookalike.data import synthetic
from lookalike.errors import InputError
from lookalike.evaluation.evaluate import RetrievalResult, evaluate
from lookalike.models.pretrained import load
from lookalike.reproduce import results_page, study
from lookalike.run import Run

RECIPE = """
data: {image_size: 32, protocol: half-zero-shot, sampler: {classes: 3, images: 4}, augment: {crop: pad}}
model: {name: cubs_resnet_2, options: {stem: patch, width: 8, features: 32, tokens: 8}, head: {dim: 16}}
loss: {name: multi_similarity}
training: {epochs: 2, batch_size: 12, device: cpu}
"""
CLASSIFIER = ["model.head=null", "loss.name=cross_entropy"]


def lookalike(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def refusal(*arguments: object) -> InputError:
    error = lookalike(*arguments).exception
    assert isinstance(error, InputError), error
    return error


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOOKALIKE_CACHE", str(folder))
        patch.setenv("LOOKALIKE_DATA", str(folder / "data"))
        yield folder


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of each of six classes, and one of a seventh; the last picture is there twice."""
    folder = tmp_path_factory.mktemp("own") / "album"
    for label, name in enumerate(synthetic.CLASS_NAMES[:7]):
        (folder / name).mkdir(parents=True)
        for i in range(6 if label < 6 else 1):
            picture = synthetic.render(name, np.random.default_rng([label, i]), 32)
            Image.fromarray(picture).save(folder / name / f"{i}.png")
    twice = folder / synthetic.CLASS_NAMES[5]
    (twice / "again.png").write_bytes((twice / "5.png").read_bytes())
    return folder


@pytest.fixture(scope="module")
def trained(album: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "cars.yaml").write_text(RECIPE)
    said = lookalike("train", folder / "cars.yaml", "--data", album, "--out", folder / "runs" / "cars")
    assert said.exit_code == 0, said.exception
    return Run.open(folder / "runs" / "cars")


def test_a_run_is_measured_on_the_classes_it_never_saw(trained: Run) -> None:
    receipt = trained.receipt()
    measured = receipt["results"]
    assert receipt["data"] | {"fingerprint": "", "content": ""} == {
        "name": "album", "fingerprint": "", "content": "", "train": 18, "test": 20, "classes": 3,
        "skipped": 0, "remark": "", "copies": None,
    }  # fmt: skip
    assert (receipt["loss"], receipt["start"]) == ("multi_similarity", None)
    assert (measured["queries"], measured["excluded"], measured["dim"]) == (19, 1, 16)
    card = measured["card"]
    assert (card["protocol"], card["crop"], card["resolution"], card["near_duplicates"]) == (
        "half-zero-shot", "whole", 32, 1,
    )  # fmt: skip
    low, high = measured["intervals"]["recall_at_1"]
    assert low <= measured["recall_at_1"] <= high
    assert set(measured["views"]) == {"features", "embedding, flip averaged"}
    assert measured["without_duplicates"]["recall_at_8"] <= measured["recall_at_8"]
    recalls = [record["recall_at_1"] for record in trained.history() if record["kind"] == "eval"]
    assert len(recalls) == 2
    assert "half-zero-shot" in trained.report_path.read_text()


def test_the_model_of_a_run_gives_the_numbers_of_its_receipt(trained: Run, album: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    said = lookalike("evaluate", trained.model_dir, album, "--with-duplicates", "--json", "--report", report)
    assert said.exit_code == 0, said.exception
    told, receipt = json.loads(said.stdout), trained.receipt()["results"]
    for key in ("recall_at_1", "recall_at_8", "map_at_r", "nmi", "card", "views", "without_duplicates"):
        assert told[key] == receipt[key], key
    assert told["fingerprint"] == load(trained.model_dir).fingerprint
    result = evaluate(trained.model_dir, album)
    assert isinstance(result, RetrievalResult)
    assert repr(result).startswith("<RetrievalResult: album by half-zero-shot, 19 queries")
    assert result.metrics["recall_at_1"] == receipt["recall_at_1"]
    assert "half-zero-shot" in report.read_text()
    flipped = json.loads(lookalike("evaluate", trained.model_dir, album, "--flip", "--json").stdout)
    averaged = receipt["views"]["embedding, flip averaged"]
    assert {key: flipped[key] for key in averaged} == averaged
    assert list(flipped["views"]) == ["features"]


def test_the_numbers_are_said_with_what_they_are_of(trained: Run, album: Path) -> None:
    said = lookalike("evaluate", trained.model_dir, album, "--protocol", "half-zero-shot", "--with-duplicates")
    assert said.exit_code == 0, said.exception
    measured = trained.receipt()["results"]
    lines = said.stdout.splitlines()
    assert lines[0] == "album by half-zero-shot: 19 queries of 4 classes (whole images, 32 px, 16 numbers)"
    assert lines[1].startswith(f"embedding: Recall@1 {measured['recall_at_1']:.2%}")
    assert lines[2].startswith("features: Recall@1 ")
    assert lines[3].startswith("embedding, flip averaged: Recall@1 ")
    assert lines[4].startswith("without 1 pairs of near-duplicates: Recall@1 ")
    assert any(line.startswith("1 images have no other of their class") for line in lines)


def test_a_model_of_embeddings_names_no_classes(trained: Run, album: Path) -> None:
    picture = next(album.rglob("*.png"))
    assert "embedding head" in refusal("predict", picture, "--model", trained.model_dir).message


def test_a_protocol_that_there_is_not_or_that_does_not_fit_is_refused(trained: Run, album: Path) -> None:
    error = refusal("evaluate", trained.model_dir, album, "--protocol", "half-zero-shots")
    assert "did you mean 'half-zero-shot'?" in error.message.lower()
    error = refusal("evaluate", trained.model_dir, album, "--protocol", "cars196-zero-shot")
    assert "7 classes, and this protocol is for the set of 196" in error.message


@pytest.mark.parametrize("option", [["--split", "test"], ["--val-fraction", "0.5"], ["--split-seed", "1"]])
def test_a_protocol_says_itself_what_is_measured(trained: Run, album: Path, option: list[str]) -> None:
    error = refusal("evaluate", trained.model_dir, album, "--protocol", "half-zero-shot", *option)
    assert "half-zero-shot" in error.message
    assert option[0] in error.remedy


def test_a_study_trains_first_what_its_runs_start_from(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cars.yaml").write_text(RECIPE)
    plain = yaml.safe_load(RECIPE)
    some = tmp_path / "some"
    some.mkdir()
    for name in synthetic.CLASS_NAMES[:3]:  # those that train by the protocol
        (some / name).symlink_to(album / name)
    plain["data"] = {"image_size": 32, "source": str(some)}
    del plain["model"]["head"], plain["loss"]
    plain["data"]["val_fraction"] = 0.2
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(plain))
    studies = tmp_path / "studies"
    studies.mkdir()
    base = [{"task": "3", "network": "CUBS-ResNet-2", "recipe": str(tmp_path / "plain.yaml")}]
    own = {"recipe": str(tmp_path / "cars.yaml"), "start": "base/short/cubs_resnet_2"}
    source = f"data.source={album}"
    rows = [
        {"task": "4", "network": "embedding", **own, "overrides": [source]},
        {"task": "4", "network": "classifier", "key": "softmax", **own, "overrides": [source, *CLASSIFIER]},
    ]
    for name, lines in {"base": base, "cars": rows}.items():
        about = {"title": name.title(), "about": "", "budgets": {"short": "seconds", "long": "more"}, "rows": lines}
        (studies / f"{name}.yaml").write_text(yaml.safe_dump(about, sort_keys=False))
    monkeypatch.setattr(study, "STUDIES", studies)

    said = lookalike("reproduce", "cars")
    assert said.exit_code == 0, said.exception
    first, embedding, softmax = (
        Run.open(tmp_path / "runs" / name)
        for name in ("base-short-cubs_resnet_2", "cars-short-cubs_resnet_2", "cars-short-softmax")
    )
    start = embedding.receipt()["start"]
    assert start == {
        "model": "runs/base-short-cubs_resnet_2/model",
        "fingerprint": load(first.model_dir).fingerprint,
        "dataset": "some",
    }
    assert softmax.receipt()["start"] == start
    found = softmax.receipt()["results"]
    assert (found["view"], list(found["views"])) == (
        "features",
        ["softmax", "features, flip averaged"],
    )
    for words in ("embedding", "features", "softmax", "Recall@1"):
        assert words in said.stdout
    page = (tmp_path / "runs" / "results.md").read_text()
    receipts = results_page.read_receipts(tmp_path / "runs" / "receipts")
    assert receipts.keys() == {"base-short-cubs_resnet_2", "cars-short-cubs_resnet_2", "cars-short-softmax"}
    assert page == results_page.whole_page(receipts)
    recall = found["views"]["softmax"]["recall_at_1"]
    assert f"| 4 | classifier | cross_entropy | softmax | {100 * recall:.2f} |" in page

    (tmp_path / "runs").rename(tmp_path / "moved")  # and what they started from is not needed any more
    (tmp_path / "moved" / "base-short-cubs_resnet_2").rename(tmp_path / "gone")
    again = lookalike("reproduce", "cars", "--out", "moved")
    assert again.exit_code == 0, again.exception
    assert again.output.count("is finished and kept") == 2
    assert "first the run" not in again.output


def test_one_row_of_a_study_can_be_asked_for_by_its_key_and_all_of_a_network_by_its_name() -> None:
    cars = study.load("cars196")
    assert [p.key for p in study.plan(cars, "1h", only=["cubs_resnet_2"])] == ["cubs_resnet_2"]
    losses = study.load("cars196-losses")
    assert len(study.plan(losses, "5m", only=["resnet18"])) == len(losses.rows)


def test_a_start_that_has_seen_the_test_classes_is_refused(album: Path, tmp_path: Path) -> None:
    changes = ["data.protocol=''", "data.sampler={classes: 0, images: 0}", *CLASSIFIER, "data.val_fraction=0.2"]
    (tmp_path / "cars.yaml").write_text(RECIPE)
    (tmp_path / "some").mkdir()
    for name in synthetic.CLASS_NAMES[:6]:  # the seventh has one picture only
        (tmp_path / "some" / name).symlink_to(album / name)
    command = ["train", tmp_path / "cars.yaml", "--out"]
    said = lookalike(*command, tmp_path / "runs" / "all", "--data", tmp_path / "some", *changes)
    assert said.exit_code == 0, said.exception
    model = tmp_path / "runs" / "all" / "model"
    error = refusal(*command, tmp_path / "runs" / "leaky", "--data", album, f"model.init={model}")
    assert "was trained on 3 of the test classes, such as 'beetle-striped'" in error.message
    assert not (tmp_path / "runs" / "leaky").exists()

    said = lookalike("evaluate", model, album, "--protocol", "half-zero-shot")
    assert said.exit_code == 0, said.exception
    assert "NOT zero-shot: the model was trained on 3 of the test classes" in said.stdout


def test_a_run_goes_on_without_the_model_it_started_from(
    album: Path, trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = tmp_path / "start"
    shutil.copytree(trained.model_dir, start)
    (tmp_path / "cars.yaml").write_text(RECIPE)
    command = ["train", tmp_path / "cars.yaml", "--data", album, "--out", tmp_path / "runs" / "goes-on"]
    changes = [f"model.init={start}", "training.checkpoint_seconds=0"]

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lookalike.training.run.finalize", stop)
        assert lookalike(*command, *changes).exit_code != 0
    shutil.rmtree(start)
    said = lookalike(*command, *changes, "--resume")
    assert said.exit_code == 0, said.exception
    receipt = Run.open(tmp_path / "runs" / "goes-on").receipt()
    assert receipt["start"]["model"] == str(start)
    assert receipt["start"]["dataset"] == "album"
