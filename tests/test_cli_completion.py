"""What the shell offers at the tab key: asked as bash, zsh and fish ask, and once through a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lookalike import recipe
from lookalike.cli.main import app


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for run in ("pets", "cars"):
        (tmp_path / "runs" / run / "model").mkdir(parents=True)
        (tmp_path / "runs" / run / "model" / "config.json").touch()
    for gallery in ("photos.gallery", "phones", "runs/pets/pictures.gallery"):
        (tmp_path / gallery).mkdir()
        (tmp_path / gallery / "gallery.db").touch()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "data" / "pets").mkdir(parents=True)
    monkeypatch.setenv("LOOKALIKE_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def offered(*words: str) -> list[str]:
    """What bash gets for the last of these words."""
    asked = {"COMP_WORDS": " ".join(("lookalike", *words)).rstrip(" "), "COMP_CWORD": str(len(words))}
    done = CliRunner().invoke(app, [], prog_name="lookalike", env={**asked, "_LOOKALIKE_COMPLETE": "complete_bash"})
    assert done.exit_code == 0, done.output
    return done.output.split()


def test_recipes_are_offered_by_name() -> None:
    for verb in ("train", "recipes"):
        assert offered(verb, "") == recipe.shipped()
        assert offered(verb, "qu") == ["quickstart"]
    assert offered("train", "mine.y") == []  # then the shell offers files
    assert offered("reproduce", "--recipe", "tiny_imagenet/30m/w") == ["tiny_imagenet/30m/weave"]


@pytest.mark.parametrize("before", [("train", "quickstart"), ("recipes", "quickstart"), ("reproduce", "cars196")])
def test_keys_are_offered(before: tuple[str, ...]) -> None:
    assert offered(*before, "training.ch") == ["training.checkpoint_seconds=", "training.channels_last="]
    assert "data.augment.crop=" in offered(*before, "data.")
    assert offered(*before, "training.epochs=1", "optimizer.lr=0.1", "evaluation.f")[:1] == ["evaluation.flip="]
    assert offered(*before, "nothing.like.it") == []


def test_every_key_that_is_offered_is_one() -> None:
    whole = recipe.Recipe()
    for word in offered("train", "quickstart", ""):
        value = whole
        for part in word.removesuffix("=").split("."):
            value = getattr(value, part)
    assert len(offered("train", "quickstart", "")) > 50


def test_values_are_offered_where_they_are_few_else_the_recipes_own() -> None:
    assert offered("train", "quickstart", "optimizer.name=") == ["optimizer.name=sgd", "optimizer.name=adamw"]
    assert offered("train", "quickstart", "training.compile=f") == ["training.compile=false"]
    epochs = recipe.load("quickstart").training.epochs
    assert offered("train", "quickstart", "training.epo") == ["training.epochs=", f"training.epochs={epochs}"]
    assert offered("train", "quickstart", "model.init=") == []


def test_bash_takes_the_sign_for_a_word_of_its_own() -> None:
    assert offered("train", "quickstart", "optimizer.name", "=") == ["sgd", "adamw"]
    assert offered("train", "quickstart", "optimizer.name", "=", "ad") == ["adamw"]
    assert offered("train", "quickstart", "training.epochs", "=", "3", "optimizer.name", "=", "s") == ["sgd"]


def test_a_recipe_that_cannot_be_read_offers_the_keys_all_the_same(here: Path) -> None:
    (here / "bad.yaml").write_text("training: {epoch: 3}")
    for name in ("bad.yaml", "nothing.yaml"):
        assert "training.epochs=" in offered("train", name, "training.")


def test_data_sets_studies_models_and_galleries_are_offered() -> None:
    assert offered("data", "check", "") == ["builtin", "pets"]
    assert offered("train", "quickstart", "--data", "pe") == ["pets"]
    assert offered("data", "download", "t") == ["tiny-imagenet"]
    assert offered("reproduce", "cars") == ["cars196", "cars196-losses", "cars196-seeds"]
    assert offered("evaluate", "") == ["default", "runs/cars/model", "runs/pets/model"]
    assert offered("predict", "--model", "runs/p") == ["runs/pets/model"]
    assert offered("serve", "ph") == ["phones", "photos.gallery"]
    assert offered("gallery", "info", "runs/") == ["runs/pets/pictures.gallery"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_told_what_a_key_is_now(shell: str) -> None:
    asked = {
        "_TYPER_COMPLETE_ARGS": "lookalike train quickstart optimizer.l",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    environment = {**asked, "_LOOKALIKE_COMPLETE": f"complete_{shell}"}
    done = CliRunner().invoke(app, [], prog_name="lookalike", env=environment)
    assert "optimizer.lr=" in done.output
    assert f"now {recipe.load('quickstart').optimizer.lr}" in done.output


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_a_real_bash_completes(here: Path) -> None:
    program = here / "lookalike"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nfrom lookalike.cli.main import run\nsys.argv[0] = 'lookalike'\nrun()\n"
    )
    program.chmod(0o755)
    script = f"""
eval "$(_LOOKALIKE_COMPLETE=source_bash {program})"
COMP_WORDS=(lookalike train quickstart optimizer.name = ad) COMP_CWORD=5
_lookalike_completion lookalike; printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    environment = {**os.environ, "PATH": f"{here}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.split() == ["adamw"], done.stderr
