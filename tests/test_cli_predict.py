"""`lookalike predict`: pictures, folders, and the challenge's file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from lookalike import Gallery, image
from lookalike.cli.predict import predict
from lookalike.errors import InputError
from lookalike.models.pretrained import ImageModel, load
from lookalike.models.registry import create_model
from lookalike.models.serialization import ModelConfig
from small_gallery import album

app = typer.Typer()
app.command()(predict)

SIZE = 32
IDS = ("n01443537", "n01629819", "n01641577")
NAMES = ("goldfish", "European fire salamander", "bullfrog")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ModelConfig(
        name="weave",
        options={"widths": [16, 32], "pairs": [1, 1]},
        image_size=SIZE,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        class_names=NAMES,
        class_ids=IDS,
    )
    torch.manual_seed(0)
    network = create_model(config.name, config.num_classes, config.options)
    with torch.no_grad():
        network.head.weight *= 200
    folder = tmp_path_factory.mktemp("runs") / "model"
    ImageModel(network, config).save_pretrained(folder)
    return folder


def picture(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(colours).resize((90, 64), Image.Resampling.BICUBIC).save(path)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refusal(*arguments: object) -> InputError:
    result = run(*arguments)
    assert isinstance(result.exception, InputError), result.output
    assert result.exception.remedy
    return result.exception


def test_a_picture_gets_its_answers_with_bars(model: Path, tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 0)
    (expected,) = load(model).predict([path], k=2)
    result = run("-m", model, path, "-k", 2)
    assert result.exit_code == 0
    header, *lines = result.stdout.splitlines()
    assert header == str(path)
    assert len(lines) == 2
    for line, answer in zip(lines, expected, strict=True):
        assert line.endswith(f"  {answer.label}")
        assert f"{answer.probability:.2%}" in line
        assert line.count("█") == round(20 * answer.probability)
    assert result.stderr == ""  # no progress where there is no terminal


@pytest.mark.parametrize("flip", [False, True])
def test_json_holds_what_the_model_says(model: Path, tmp_path: Path, flip: bool) -> None:
    paths = [picture(tmp_path / f"{i}.jpg", i) for i in range(3)]
    tree = json.loads(run("-m", model, *paths, "--json", *(["--flip"] if flip else [])).stdout)
    loaded = load(model)
    assert tree["flip"] is flip
    assert tree["fingerprint"] == loaded.fingerprint
    for each, path, expected in zip(tree["images"], paths, loaded.predict(paths, flip=flip), strict=True):
        assert each["image"] == str(path)
        assert [p["class_id"] for p in each["predictions"]] == [p.class_id for p in expected]
        assert [p["probability"] for p in each["predictions"]] == pytest.approx(
            [p.probability for p in expected], abs=1e-5
        )


@pytest.mark.parametrize(("limit", "unknown"), [(None, False), (0.0, False), (1.0, True)])
def test_what_no_class_reaches_is_unknown(model: Path, tmp_path: Path, limit: float | None, unknown: bool) -> None:
    loaded = load(model)
    config = loaded.config.model_copy(update={"unknown_threshold": limit})
    ImageModel(loaded.network, config).save_pretrained(tmp_path / "model")
    path = picture(tmp_path / "a.png", 0)
    header, *lines = run("-m", tmp_path / "model", path, "-k", 2).stdout.splitlines()
    assert header == str(path)
    assert [line.startswith("  unknown: ") and "100%" in line for line in lines] == [True] * unknown + [False] * 2
    assert json.loads(run("-m", tmp_path / "model", path, "--json").stdout)["images"][0]["unknown"] is unknown


def test_flip_is_named(model: Path, tmp_path: Path) -> None:
    assert "(flip averaged)" in run("-m", model, picture(tmp_path / "a.png", 0), "--flip").stdout


def test_folders_are_looked_through(model: Path, tmp_path: Path) -> None:
    picture(tmp_path / "pets" / "b.png", 0)
    picture(tmp_path / "pets" / "deep" / "a.JPG", 1)
    (tmp_path / "pets" / "notes.txt").write_text("no picture")
    one = picture(tmp_path / "one.png", 2)
    tree = json.loads(run("-m", model, tmp_path / "pets", one, "--json").stdout)
    expected = [tmp_path / "pets" / "b.png", tmp_path / "pets" / "deep" / "a.JPG", one]
    assert [each["image"] for each in tree["images"]] == [str(path) for path in expected]


def test_images_are_read_a_batch_at_a_time(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        picture(tmp_path / f"{number}.png", seed=number)
    events: list[str] = []
    decoded, predicted = image.decode, ImageModel.predict
    monkeypatch.setattr("lookalike.cli.predict.BATCH_SIZE", 2)
    monkeypatch.setattr(image, "decode", lambda *given, **how: events.append("read") or decoded(*given, **how))
    monkeypatch.setattr(ImageModel, "predict", lambda *given, **how: events.append("run") or predicted(*given, **how))
    result = run(tmp_path, "--model", model, "--json")
    assert events == ["read", "read", "run", "read", "read", "run", "read", "run"]
    assert [Path(each["image"]).name for each in json.loads(result.stdout)["images"]] == [f"{n}.png" for n in range(5)]


def test_every_bad_picture_is_named_and_none_answered(model: Path, tmp_path: Path) -> None:
    good = picture(tmp_path / "good.png", 0)
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    result = run("-m", model, good, text, tmp_path / "gone.png")
    assert isinstance(result.exception, InputError)
    assert result.stdout == ""
    message = result.exception.message
    assert "2 of 3" in message
    assert f"{text}: not an image" in message
    assert f"{tmp_path / 'gone.png'}: cannot be read (No such file or directory)" in message
    assert str(good) not in message


def test_one_bad_picture_is_its_own_error_and_many_are_not_all_listed(model: Path, tmp_path: Path) -> None:
    bad = [tmp_path / f"{i}.png" for i in range(8)]
    for path in bad:
        path.write_bytes(b"")
    assert refusal("-m", model, bad[0]).message == f"{bad[0]}: empty."
    message = refusal("-m", model, *bad).message
    assert str(bad[4]) in message
    assert str(bad[5]) not in message
    assert message.endswith("And 3 more.")


def test_a_gallery_votes(model: Path, tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "photos.gallery", model) as gallery:
        gallery.add(album(tmp_path / "photos"))
        path = picture(tmp_path / "new.png", 4711)
        expected = gallery.predict(path, k=2, neighbours=5)
    arguments = [str(path), "--gallery", str(tmp_path / "photos.gallery"), "-k", "2", "--neighbours", "5"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.exception
    first, *lines = result.stdout.splitlines()
    assert first == f"{path}  (vote of 5 neighbours)"
    assert len(lines) == len(expected)
    for line, each in zip(lines, expected, strict=True):
        assert line.split()[0] == f"{each.share:.2%}"
        assert line.endswith(f"{each.label} ({each.count})")
    tree = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    (said,) = tree["images"]
    assert [each["label"] for each in said["labels"]] == [each.label for each in expected]
    assert len(said["neighbours"]) == tree["neighbours"] == 5
    unknown = CliRunner().invoke(app, [*arguments, "--threshold", "1"])
    assert "unknown" in unknown.stdout
    for wrong, named in (
        ([*arguments, "--flip"], "--flip"),
        ([str(path), "--neighbours", "3"], "--neighbours"),
        ([str(path), "--threshold", "0.5"], "--threshold"),
        ([*arguments, "--threshold", "high"], "high"),
        ([str(path), "--gallery", str(tmp_path / "none.gallery")], "none.gallery"),
    ):
        error = CliRunner().invoke(app, wrong).exception
        assert isinstance(error, InputError)
        assert named in error.message


def test_an_empty_folder_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refusal("-m", model, tmp_path / "empty").message
    fault = refusal(model, picture(tmp_path / "a.png", 0))  # the order of other programs
    assert fault.remedy == f"It is a model: lookalike predict IMAGE --model {model}"


def test_a_wrong_model_is_refused(tmp_path: Path) -> None:
    assert "no such folder" in refusal("-m", tmp_path / "model", picture(tmp_path / "a.png", 0)).message


# The challenge


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny ImageNet in its official layout, tinier."""
    root = tmp_path_factory.mktemp("data") / "tiny-imagenet-200"
    root.mkdir()
    (root / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in IDS))
    (root / "words.txt").write_text("".join(f"{wnid}\t{name}\n" for wnid, name in zip(IDS, NAMES, strict=True)))
    for label, wnid in enumerate(IDS):
        for i in range(2):
            picture(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", 10 * label + i)
    picture(root / "val" / "images" / "val_0.JPEG", 40)
    (root / "val" / "val_annotations.txt").write_text(f"val_0.JPEG\t{IDS[0]}\t0\t0\t10\t10\n")
    for i in (0, 1, 2, 10, 11):
        picture(root / "test" / "images" / f"test_{i}.JPEG", 50 + i)
    return root


@pytest.mark.parametrize("flip", [False, True])
def test_a_submission_is_as_the_challenge_wants_it(model: Path, tiny: Path, tmp_path: Path, flip: bool) -> None:
    file = tmp_path / "predictions.txt"
    result = run("-m", model, tiny, "--submission", file, *(["--flip"] if flip else []))
    assert result.exit_code == 0, result.exception
    names = [f"test_{i}.JPEG" for i in (0, 1, 2, 10, 11)]
    answers = load(model).predict([tiny / "test" / "images" / name for name in names], k=1, flip=flip)
    assert len({answer.class_id for (answer,) in answers}) > 1
    assert file.read_text() == "".join(
        f"{name} {answer.class_id}\n" for name, (answer,) in zip(names, answers, strict=True)
    )
    assert ("flip averaged" in result.stdout) is flip
    assert list(tmp_path.iterdir()) == [file]


def test_a_damaged_test_picture_leaves_no_file(model: Path, tiny: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "tiny-imagenet-200"
    shutil.copytree(tiny, copy)
    (copy / "test" / "images" / "test_2.JPEG").write_bytes(b"\xff\xd8\xff")
    assert "test_2.JPEG" in refusal("-m", model, copy, "--submission", tmp_path / "out.txt").message
    assert list(tmp_path.iterdir()) == [copy]


def test_a_model_of_other_classes_cannot_take_part(tiny: Path, tmp_path: Path, model: Path) -> None:
    loaded = load(model)
    config = loaded.config.model_copy(update={"class_ids": ("cat", "dog", "emu")})
    ImageModel(loaded.network, config).save_pretrained(tmp_path / "pets")
    fault = refusal("-m", tmp_path / "pets", tiny, "--submission", tmp_path / "out.txt")
    assert "the model knows a class 'cat'" in fault.message


def test_data_without_a_test_split_is_refused(model: Path, tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        for i in range(4):
            picture(tmp_path / "pets" / label / f"{i}.png", i)
    fault = refusal("-m", model, tmp_path / "pets", "--submission", tmp_path / "out.txt")
    assert "no test split" in fault.message


def test_a_submission_is_asked_for_rightly(model: Path, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    assert "not 2 paths" in refusal("-m", model, tiny, tiny, "--submission", out).message
    assert "--json and --submission" in refusal("-m", model, tiny, "--json", "--submission", out).message
    assert "cannot write a file here" in refusal("-m", model, tiny, "--submission", tmp_path).message
    assert "cannot write a file here" in refusal("-m", model, tiny, "--submission", tmp_path / "no" / "out.txt").message
