"""A whole run in one call: what lies in its folder afterwards, and what is refused before anything lies there."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import lookalike
from lookalike.data.catalog import Catalog, Row, Split
from lookalike.data.registry import load_dataset
from lookalike.errors import InputError, TrainingError
from lookalike.evaluation.evaluate import evaluate_classification
from lookalike.recipe import Recipe
from lookalike.run import Run
from lookalike.training import checkpoint
from lookalike.training.run import Callbacks, advice, check_trainable, difference, machine_problem, train

RECIPE = """
data: {image_size: 32, augment: {crop: none, flip: 0.5}}
model: {name: resnet18, options: {stem: patch, width: 8}}
training: {epochs: 2, batch_size: 16, device: cpu, label_smoothing: 0.0, precision: float32}
"""
STEPS = 4  # 2 epochs of 32 pictures


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOOKALIKE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def recipe_for(source: Path, *overrides: str) -> Recipe:
    return Recipe.from_yaml(RECIPE, overrides=[f"data.source={source}", *overrides])


def refusal(recipe: Recipe, root: Path, name: str = "run", *, resume: bool = False) -> InputError:
    with pytest.raises(InputError) as caught:
        train(recipe, out=root / name, resume=resume)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    return caught.value


def tree(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def told() -> dict[str, list[Any]]:
    return {"decode": [], "record": [], "message": []}


@pytest.fixture(scope="module")
def finished(album: Path, told: dict[str, list[Any]], tmp_path_factory: pytest.TempPathFactory) -> Run:
    callbacks = Callbacks(
        on_decode=lambda done, total: told["decode"].append((done, total)),
        on_record=lambda record, total: told["record"].append((record, total)),
        on_message=told["message"].append,
    )
    root = tmp_path_factory.mktemp("finished") / "a" / "new" / "root"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOOKALIKE_CACHE", str(tmp_path_factory.mktemp("fresh")))
        return train(recipe_for(album), out=root / "whole", callbacks=callbacks)


def test_the_folder_holds_what_is_promised_and_nothing_half_written(finished: Run) -> None:
    names = {str(p.relative_to(finished.path)) for p in finished.path.rglob("*") if p.is_file()}
    assert names == {
        "recipe.yaml", "metrics.jsonl", "receipt.json", "report.html", "model/model.safetensors",
        "model/config.json", "model/README.md",
    }  # fmt: skip


def test_the_model_knows_which_images_it_was_not_trained_on(finished: Run) -> None:
    config = lookalike.load(finished.model_dir).config
    assert (config.val_fraction, config.split_seed) == (0.1, 0)


def test_the_recipe_in_it_is_the_whole_recipe(finished: Run, album: Path) -> None:
    assert Run.open(finished.path).recipe == recipe_for(album)
    assert "label_smoothing: 0.0" in finished.recipe_path.read_text()
    assert "patience: 0" in finished.recipe_path.read_text()  # also what was not said


def test_the_metrics_hold_every_step_and_every_evaluation(finished: Run) -> None:
    records = finished.history()
    assert [r["step"] for r in records if r["kind"] == "train"] == [1, 2, 3, 4]
    assert [r["step"] for r in records if r["kind"] == "eval"] == [2, 4]
    assert all(r["epoch"] == r["step"] / 2 for r in records)
    for record in records:
        expected = {"loss", "lr", "size", "images_per_second"} if record["kind"] == "train" else {"top1", "top5", "nll"}
        assert record.keys() == {"kind", "step", "epoch"} | expected


def test_the_receipt_says_how_the_results_came_about(finished: Run, album: Path) -> None:
    receipt = finished.receipt()
    assert receipt.keys() >= {
        "name", "results", "data", "seed", "seconds", "cpu_seconds", "steps", "epochs", "batch_size", "processes",
        "threads", "parameters", "model", "device", "hardware", "versions", "commit", "command", "date",
    }  # fmt: skip
    catalog = load_dataset(album)
    assert receipt["data"] == {
        "name": "album", "fingerprint": catalog.fingerprint, "content": receipt["data"]["content"],
        "train": 32, "val": 12, "classes": 4, "skipped": 0,
        "copies": None, "remark": "",
    }  # fmt: skip
    assert (receipt["name"], receipt["model"], receipt["device"]) == ("whole", "resnet18", "cpu")
    assert (receipt["steps"], receipt["epochs"], receipt["batch_size"], receipt["seed"]) == (STEPS, 2, 16, 0)
    assert (receipt["processes"], receipt["threads"]) == (1, torch.get_num_threads())
    weights = load_file(finished.model_dir / "model.safetensors")
    trained = [t.numel() for name, t in weights.items() if "running" not in name and "tracked" not in name]
    assert receipt["parameters"] == sum(trained)
    results = receipt["results"]
    assert (results["split"], results["crop"], results["flip"], results["n"]) == ("val", "single", False, 12)
    assert (results["image_size"], results["weights"]) == (32, "last")
    assert results["per_class"].keys() == set(catalog.class_names)
    assert 0 < receipt["seconds"] < 300
    assert receipt["command"] == shlex.join(["lookalike", *sys.argv[1:]])


def test_the_model_in_it_measures_as_the_receipt_says(finished: Run, album: Path) -> None:
    model = lookalike.load(finished.model_dir)
    results = evaluate_classification(model, load_dataset(album)).metrics
    said = finished.receipt()["results"]
    for key in ("top1", "top5", "nll", "per_class", "n"):
        assert results[key] == pytest.approx(said[key], abs=1e-6), key
    assert model.config.class_names == load_dataset(album).class_names
    assert model.config.dataset == "album"
    assert model.config.temperature == said["temperature"] == 1.0  # 12 images cannot tell it
    assert model.config.temperature_remark == said["temperature_remark"] == "12 images are too few, it takes 100"


def test_copies_on_both_sides_are_told(album: Path, tmp_path: Path) -> None:
    home = tmp_path / "album"
    shutil.copytree(album, home)
    first = next(path for path in sorted((home / "train").rglob("*")) if path.is_file())
    shutil.copy(first, next((home / "val").iterdir()) / "again.png")
    said: list[str] = []
    run = train(
        recipe_for(home, "training.epochs=1"), out=tmp_path / "run", callbacks=Callbacks(on_message=said.append)
    )
    copies = run.receipt()["data"]["copies"]
    assert copies["count"] == 1
    assert "1 of 13 images is a copy" in copies["sentence"]
    assert f"again.png = {first.relative_to(home)}" in copies["sentence"]
    assert f"val: {copies['sentence']}" in said
    assert "is a copy of a training image" in run.report_path.read_text()


def test_the_report_shows_the_run(finished: Run) -> None:
    text = finished.report_path.read_text()
    assert "whole" in text
    for name in finished.receipt()["results"]["per_class"]:
        assert name in text
    assert "label_smoothing: 0.0" in text


def test_callbacks_are_told(finished: Run, album: Path, told: dict[str, list[Any]]) -> None:
    assert told["decode"] == [(32, 32), (12, 12)]
    assert told["record"] == [(record, STEPS) for record in finished.history()]
    *first, hint, last = told["message"]
    assert first == [
        "train: 32 images of album at 32 pixels",
        "val: 12 images of album at 32 pixels",
        advice(recipe_for(album), 32),
    ]
    assert f"lookalike fit {album}" in hint
    assert last == "measuring and writing the report"


def test_the_same_recipe_gives_the_same_model(finished: Run, album: Path, root: Path) -> None:
    again = train(recipe_for(album), out=root / "again")
    assert tree(again.model_dir) == tree(finished.model_dir)
    other = train(recipe_for(album, "training.seed=1"), out=root / "other")
    assert tree(other.model_dir) != tree(finished.model_dir)


def test_what_a_recipe_says_of_itself_may_change(finished: Run, album: Path) -> None:
    recipe = recipe_for(album, "about=told better")
    assert recipe != finished.recipe
    again = train(recipe, out=finished.path.parent / "whole", resume=True)
    assert again.recipe == finished.recipe
    both = Recipe(about="a", training={"seed": 1}), Recipe(about="b", training={"seed": 2})
    assert "training.seed=1, not 2" in difference(*both)


def test_resuming_a_finished_run_keeps_its_results(finished: Run, album: Path) -> None:
    before, receipt = tree(finished.path), finished.receipt()
    train(recipe_for(album), out=finished.path.parent / "whole", resume=True)
    after = tree(finished.path)
    for file in ("metrics.jsonl", "recipe.yaml", "model/model.safetensors", "model/config.json"):
        assert after[file] == before[file], file
    assert finished.receipt()["results"] == receipt["results"]


@pytest.mark.parametrize(
    ("epochs", "batch_size", "words"),
    [
        (25, 16, ""),  # 50 steps
        (24, 16, "48 steps in all"),
        (1000, 32, ""),
        (1000, 33, "training.batch_size=33 is more than the 32"),
    ],
)
def test_a_run_of_too_few_steps_is_advised(epochs: int, batch_size: int, words: str) -> None:
    said = advice(Recipe(training={"epochs": epochs, "batch_size": batch_size}), 32)
    assert said.startswith(words)
    assert bool(said) == bool(words)
    assert ("training.batch_size" in said and "training.epochs" in said) == bool(words)


@pytest.mark.parametrize(
    "model", [{"init": "default"}, {"name": "timm/resnet18", "init": "timm/resnet18"}], ids=["init", "timm"]
)
def test_few_steps_are_enough_where_the_start_is_trained(model: dict[str, Any]) -> None:
    few = {"epochs": 1, "batch_size": 32}
    assert advice(Recipe(training=few), 320)
    assert not advice(Recipe(training=few, model=model), 320)
    assert advice(Recipe(training=few, model=model), 16)  # a batch of more than all


@pytest.mark.parametrize(
    ("loss", "sampler", "words"),
    [
        ("multi_similarity", {}, "loss.name=multi_similarity learns from pairs"),
        ("multi_similarity", {"classes": 8, "images": 4}, ""),
        ("proxy_anchor", {}, ""),
    ],
)
def test_a_loss_on_pairs_is_advised_to_have_some(loss: str, sampler: dict[str, int], words: str) -> None:
    data = {"protocol": "half-zero-shot", "sampler": sampler}
    recipe = Recipe(data=data, model={"head": {}}, loss={"name": loss}, training={"epochs": 100, "batch_size": 32})
    said = advice(recipe, 320)
    assert said.startswith(words)
    assert ("data.sampler" in said) == bool(words)


# what is refused


def catalog_of(*rows: tuple[int, Split], classes: int = 2) -> Catalog:
    made = [Row(f"{i}.png", label, split) for i, (label, split) in enumerate(rows)]
    return Catalog.from_rows(made, root=Path("pictures"), class_names=[f"class-{i}" for i in range(classes)], name="x")


WHOLE: list[tuple[int, Split]] = [(0, "train"), (1, "train"), (0, "val"), (1, "val")]


def test_a_catalog_that_can_be_trained_on_is_not_refused() -> None:
    check_trainable(catalog_of(*WHOLE))
    check_trainable(catalog_of(*WHOLE, (-1, "test")))  # test images have no labels, and are not asked for
    check_trainable(catalog_of(*WHOLE[:3]))  # a class without validation images can be learnt, if not measured


@pytest.mark.parametrize(
    ("rows", "classes", "message"),
    [
        ([(0, "train"), (0, "val")], 1, "one class"),
        ([(0, "val"), (1, "val")], 2, "train split"),
        ([(0, "train"), (1, "train"), (0, "test")], 2, "val split"),
        ([*WHOLE, (-1, "train")], 2, "train split"),
        ([*WHOLE, (-1, "val")], 2, "val split"),
        (WHOLE, 3, "'class-2'"),
        ([(0, "train"), (0, "val"), (1, "val")], 2, "'class-1'"),
    ],
)
def test_a_catalog_that_cannot_be_trained_on(rows: list[tuple[int, Split]], classes: int, message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_trainable(catalog_of(*rows, classes=classes))
    assert caught.value.message.startswith("pictures: ")
    assert message in caught.value.message
    assert caught.value.remedy


@pytest.fixture
def copy(album: Path, tmp_path: Path) -> Path:
    """A folder to spoil."""
    return Path(shutil.copytree(album, tmp_path / "copy"))


def test_data_that_cannot_be_trained_on_leave_no_run(copy: Path, root: Path) -> None:
    shutil.rmtree(copy / "val")
    assert "val split" in refusal(recipe_for(copy, "data.val_fraction=0"), root).message
    classes = sorted(path.name for path in (copy / "train").iterdir())
    for name in classes[1:]:
        shutil.rmtree(copy / "train" / name)
    assert f"'{classes[0]}'" in refusal(recipe_for(copy), root).message
    assert not root.exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.device=cuda:77", "'cuda:77'"),
        ("training.device=gpu", "'gpu'"),
        ("data.source=nowhere", "'nowhere'"),
        ("model.name=resnet81", "'resnet81'"),
        ("model.options={stm: patch}", "'stm'"),
        ("training.resolution=[[0, 8], [0.5, 32]]", "8 pixels"),
        ("training.resolution=[[0, 32], [0.5, 16000000]]", "memory"),  # petabytes
        ("model.options.width=0", "width=0"),
    ],
)
def test_what_cannot_work_leaves_the_name_free(override: str, message: str, album: Path, root: Path) -> None:
    assert message in refusal(recipe_for(album, override), root).message
    assert not list(root.glob("*"))


def test_only_what_the_machine_lacks_is_said_to_be_lacking() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    lack = machine_problem(caught.value, torch.device("cpu"))
    assert lack is not None
    assert "training.batch_size" in lack.remedy
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2, 3) @ torch.empty(2, 3)
    assert machine_problem(caught.value, torch.device("cpu")) is None


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with inductor.patch({"cpp.cxx": (None, "no-compiler")}), pytest.raises(RuntimeError) as caught:
        torch.compile(torch.nn.ReLU())(torch.ones(2))
    problem = machine_problem(caught.value, torch.device("cpu"))
    assert problem is not None
    assert "training.compile=true" in problem.message


def test_a_name_that_is_too_long_is_refused(album: Path, root: Path) -> None:
    for resume in (False, True):
        assert "n" * 300 in refusal(recipe_for(album), root, "n" * 300, resume=resume).message
    assert not list(root.glob("*"))


def test_an_image_that_cannot_be_decoded_is_named_and_can_be_left_out(copy: Path, root: Path) -> None:
    victim = sorted((copy / "train").rglob("*.png"))[5]
    victim.write_bytes(victim.read_bytes()[:100])
    error = refusal(recipe_for(copy), root)
    assert "1 of 32" in error.message
    assert str(victim.relative_to(copy)) in error.message
    assert not list(root.glob("*"))
    said: list[str] = []
    run = train(
        recipe_for(copy, "data.skip_undecodable=true"), out=root / "run", callbacks=Callbacks(on_message=said.append)
    )
    assert run.receipt()["data"]["skipped"] == 1
    assert run.receipt()["data"]["train"] == 31
    assert any(f"{victim.relative_to(copy)}" in line for line in said)


def test_a_name_that_is_taken_keeps_what_is_there(finished: Run, album: Path) -> None:
    before = tree(finished.path)
    error = refusal(recipe_for(album), finished.path.parent, "whole")
    assert str(finished.path) in error.message
    assert "--resume" in error.remedy
    assert "--out" in error.remedy
    assert tree(finished.path) == before


def test_a_folder_that_is_no_run_is_left_alone(album: Path, root: Path) -> None:
    (root / "holiday").mkdir(parents=True)
    (root / "holiday" / "beach.jpg").write_bytes(b"photo")
    for resume in (False, True):
        assert "holiday" in refusal(recipe_for(album), root, "holiday", resume=resume).message
    assert (root / "holiday" / "beach.jpg").read_bytes() == b"photo"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.epochs=3", "training.epochs=2, not 3"),
        ("data.augment.flip=0", "data.augment.flip=0.5, not 0.0"),
        ("model.options.width=16", "model.options.width=8, not 16"),
        ("training.checkpoint_seconds=1", "training.checkpoint_seconds=120.0, not 1.0"),
    ],
)
def test_resuming_with_another_recipe_names_the_difference(
    override: str, words: str, finished: Run, album: Path
) -> None:
    before = tree(finished.path)
    error = refusal(recipe_for(album, override), finished.path.parent, "whole", resume=True)
    assert str(finished.path) in error.message
    assert words in error.message
    assert "--out" in error.remedy
    assert tree(finished.path) == before


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("{}", "{width: 8}", "model.options.width=None, not 8"),
        ("{width: 8}", "{}", "model.options.width=8, not None"),
        ("{}", "{pool: null}", "model.options.pool=None, not None"),
    ],
)
def test_options_that_only_one_of_two_recipes_has_differ(old: str, new: str, words: str) -> None:
    one, other = (Recipe.from_yaml(f"model: {{options: {options}}}") for options in (old, new))
    assert words in difference(one, other)


# what goes wrong on the way


EXPLOSION = ("optimizer.lr=1e30", "schedule.warmup=1", "schedule.start=1e-32", "training.checkpoint_seconds=0")


@pytest.mark.parametrize("seen_in", ["training", "evaluation"])
def test_numbers_that_are_not_finite_end_it_with_a_clear_word(seen_in: str, album: Path, root: Path) -> None:
    often = 1 if seen_in == "evaluation" else 20
    recipe = recipe_for(album, *EXPLOSION, "training.epochs=20", f"training.evaluate_every={often}")
    for resume in (False, True):  # the second time from the last good checkpoint: it fails again, and says so again
        with pytest.raises(TrainingError) as caught:
            train(recipe, out=root / "run", resume=resume)
        words, remedy = caught.value.message, caught.value.remedy
        assert "not finite at step" in words
        assert "optimizer.lr" in remedy
        run = Run.open(root / "run")
        last = torch.load(run.checkpoint_dir / "last.pt", weights_only=True)
        assert 1 <= last["state"]["step"] < int(words.partition("at step ")[2].partition(";")[0])
        assert all(torch.isfinite(tensor).all() for tensor in last["network"].values())
        assert not run.receipt_path.exists()
        assert not run.model_dir.exists()
        assert all(r["loss"] < float("inf") for r in run.history() if r["kind"] == "train")


def test_a_run_that_stops_early_ends_with_its_best_weights(album: Path, root: Path) -> None:
    still = ("optimizer.lr=1e-9", "optimizer.weight_decay=0", "training.precision=float32", "training.ema_decay=0.5")
    recipe = recipe_for(album, *still, "training.patience=2", "training.epochs=50")
    run = train(recipe, out=root / "early", keep_checkpoint=True)
    evaluations = [r for r in run.history() if r["kind"] == "eval"]
    receipt = run.receipt()
    assert len(evaluations) < 50
    assert receipt["steps"] == evaluations[-1]["step"] < 100
    assert receipt["results"]["weights"] == "best of the evaluations"
    assert receipt["results"]["top1"] == max(r["top1"] for r in evaluations)
    best, saved = checkpoint.load_best(run.checkpoint_dir), load_file(run.model_dir / "model.safetensors")
    assert best.keys() == saved.keys()
    assert all(torch.equal(best[name].float(), saved[name].float()) for name in best)


def copy_of(album: Path, folder: Path) -> Path:
    """The same files under another name, with other times."""
    shutil.copytree(album, folder, copy_function=shutil.copyfile)
    for path in folder.rglob("*.*"):
        os.utime(path, (1e9, 1e9))
    return folder


def stopped(recipe: Recipe, root: Path, name: str = "run") -> Run:
    """A run that was stopped after its third step."""

    def stop(record: dict[str, Any], total: int) -> None:
        if record["kind"] == "train" and record["step"] == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(recipe, out=root / name, callbacks=Callbacks(on_record=stop))
    return Run.open(root / name)


def test_the_checkpoint_of_a_finished_run_is_kept_when_asked(album: Path, root: Path, finished: Run) -> None:
    run = train(recipe_for(album), out=root / "whole", keep_checkpoint=True)
    assert {path.name for path in run.checkpoint_dir.iterdir()} == {"last.pt", "best.safetensors"}
    assert tree(run.model_dir) == tree(finished.model_dir)
    assert not finished.checkpoint_dir.exists()


def test_what_else_lies_beside_a_checkpoint_stays(begun: Run, album: Path, root: Path) -> None:
    run = Run(Path(shutil.copytree(begun.path, root / "run")))
    (run.checkpoint_dir / "mine.txt").touch()
    train(recipe_for(album), out=root / "run", resume=True)
    assert [path.name for path in run.checkpoint_dir.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("place", ["where it was", "elsewhere", "gone"])
def test_a_finished_run_is_said_to_be_finished_and_left_alone(
    place: str, finished: Run, album: Path, root: Path, tmp_path: Path
) -> None:
    source = copy_of(album, tmp_path / "pictures")
    run = Run(Path(shutil.copytree(finished.path, root / "run")))
    run.keep_recipe(recipe_for(source))
    before, told = tree(run.path), list[str]()
    if place == "gone":
        shutil.rmtree(source)
    if place == "elsewhere":
        source = source.rename(tmp_path / "others")
    again = train(recipe_for(source), out=root / "run", resume=True, callbacks=Callbacks(on_message=told.append))
    assert told[-1] == f"{run.path} is finished"
    assert again.receipt() == run.receipt()
    assert {name for name, digest in tree(run.path).items() if before.get(name) != digest} <= {"recipe.yaml"}
    assert Run.open(run.path).recipe.data.source == str(source)


def test_the_same_bytes_elsewhere_go_on_to_the_same_bits(
    begun: Run, album: Path, tmp_path: Path, finished: Run
) -> None:
    elsewhere = copy_of(album, tmp_path / "pictures")
    moved = Path(shutil.copytree(begun.path, tmp_path / "moved"))
    again = train(recipe_for(elsewhere), out=tmp_path / "moved", resume=True)
    assert again.path == moved
    assert Run.open(moved).recipe.data.source == str(elsewhere)
    assert f"source: {elsewhere}" in again.report_path.read_text()
    ours, theirs = (load_file(r.model_dir / "model.safetensors") for r in (again, finished))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert again.receipt()["results"] == finished.receipt()["results"]
    assert again.receipt()["data"]["content"] == finished.receipt()["data"]["content"]


def test_a_zip_of_the_same_pictures_goes_on(begun: Run, album: Path, root: Path, tmp_path: Path) -> None:
    shutil.copytree(begun.path, root / "run")
    archive = shutil.make_archive(str(tmp_path / "album"), "zip", album)
    assert train(recipe_for(Path(archive)), out=root / "run", resume=True).is_finished


@pytest.fixture(scope="module")
def begun(album: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was stopped after its third step; tests work on copies."""
    return stopped(recipe_for(album), tmp_path_factory.mktemp("begun"))


@pytest.mark.parametrize(
    ("change", "place"),
    [
        *((change, "where it was") for change in ("a pixel", "a label", "one more", "one less", "of the validation")),
        ("a pixel", "elsewhere"),
        ("one less", "elsewhere"),
    ],
)
def test_other_data_are_refused_with_a_word(
    change: str, place: str, begun: Run, album: Path, root: Path, tmp_path: Path
) -> None:
    source = copy_of(album, tmp_path / "pictures")
    run = Run(Path(shutil.copytree(begun.path, root / "run")))
    if place == "where it was":
        run.keep_recipe(recipe_for(source))
    first, second, *_ = sorted((source / ("val" if change == "of the validation" else "train")).rglob("*.png"))
    if change in ("a pixel", "of the validation"):
        with Image.open(first) as opened:
            picture = opened.convert("RGB")
        picture.paste((1, 2, 3), (10, 10, 20, 20))
        picture.save(first)
    elif change == "a label":
        other = next(p for p in first.parent.parent.iterdir() if p != first.parent)
        first.rename(other / "moved-here.png")
    elif change == "one more":
        shutil.copyfile(second, first.with_name("zzz.png"))
    else:
        first.unlink()
    before = tree(root / "run")
    error = refusal(recipe_for(source), root, resume=True)
    assert "--data" in error.remedy
    assert tree(root / "run").items() >= {k: v for k, v in before.items() if k != "metrics.jsonl"}.items()


def test_a_finished_run_is_not_taken_for_one_of_other_data(
    finished: Run, album: Path, root: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished.path, root / "run")
    others = copy_of(album, tmp_path / "others")
    next(iter(sorted((others / "train").rglob("*.png")))).unlink()
    assert "--data" in refusal(recipe_for(others), root, resume=True).remedy
    assert Run.open(root / "run").recipe == recipe_for(album)


def test_the_start_may_have_moved_and_must_be_the_same(album: Path, root: Path, tmp_path: Path, finished: Run) -> None:
    first = shutil.copytree(finished.model_dir, tmp_path / "first")
    stopped(recipe_for(album, f"model.init={first}"), root)
    with pytest.raises(InputError, match=r"model\.init"):
        train(recipe_for(album), out=root / "run", resume=True)
    with pytest.raises(InputError, match="no"):
        train(recipe_for(album, f"model.init={tmp_path / 'nowhere'}"), out=root / "run", resume=True)
    other = train(recipe_for(album, "training.seed=1"), out=root / "other").model_dir
    assert "another model" in refusal(recipe_for(album, f"model.init={other}"), root, resume=True).message
    moved = shutil.move(first, tmp_path / "moved")
    run = train(recipe_for(album, f"model.init={moved}"), out=root / "run", resume=True)
    assert run.recipe.model.init == str(moved)
    assert run.receipt()["start"]["model"] == str(first)


def test_a_checkpoint_of_an_older_version_goes_on(begun: Run, album: Path, root: Path) -> None:
    """It knows its data by the names, sizes and times of their files."""
    run = Run(Path(shutil.copytree(begun.path, root / "run")))
    catalog = load_dataset(album)
    sides = [catalog.select(catalog.rows_of(side)) for side in ("train", "val")]
    content = torch.load(run.checkpoint_dir / "last.pt", weights_only=True)
    torch.save({**content, "data": " ".join(side.fingerprint for side in sides)}, run.checkpoint_dir / "last.pt")
    assert train(recipe_for(album), out=root / "run", resume=True).is_finished


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, a disk that is always full")
@pytest.mark.parametrize(
    "file",
    ["checkpoint/best.safetensors", "checkpoint/last.pt", "model/model.safetensors", "receipt.json"],
)
def test_a_full_disk_leaves_nothing_half_written_and_the_run_goes_on_later(
    file: str, album: Path, root: Path, finished: Run
) -> None:
    recipe = recipe_for(album)
    run = Run.create(root / "run", recipe)
    beside = run.path / f"{file}.partial"
    beside.parent.mkdir(exist_ok=True)
    beside.symlink_to("/dev/full")
    with pytest.raises(InputError, match=file):
        train(recipe, out=root / "run", resume=True)
    assert not (run.path / file).exists()
    beside.unlink(missing_ok=True)
    again = train(recipe, out=root / "run", resume=True)
    assert tree(again.model_dir) == tree(finished.model_dir)


class Recorder:
    """A tracker that keeps what it gets."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.times_closed = 0

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        assert all(isinstance(value, int | float) for value in metrics.values())
        self.steps.append(step)

    def close(self) -> None:
        self.times_closed += 1


def test_a_recipe_is_given_by_name_with_overrides_and_trackers(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(RECIPE)
    tracker = Recorder()
    run = lookalike.train(
        "small.yaml", data=album, trackers=[tracker], training__epochs=1, optimizer={"name": "adamw", "lr": 0.001}
    )
    assert run.path == Path("runs/small")
    assert run.is_finished
    assert run.recipe.data.source == str(album)
    assert (run.recipe.training.epochs, run.recipe.training.batch_size) == (1, 16)
    assert (run.recipe.optimizer.name, run.recipe.optimizer.lr) == ("adamw", 0.001)
    assert tracker.steps == [record["step"] for record in run.history()]
    assert tracker.times_closed == 1


@pytest.mark.parametrize("overrides", [{"training__epoch": 1}, {"training__epochs": 0}, {"data__source__x": 1}])
def test_a_bad_override_is_refused_and_the_trackers_are_closed(overrides: dict[str, Any], root: Path) -> None:
    tracker = Recorder()
    with pytest.raises(InputError, match=next(iter(overrides)).split("__")[1]):
        lookalike.train("quickstart", out=root / "run", trackers=[tracker], **overrides)
    assert tracker.times_closed == 1
    assert not root.exists()
