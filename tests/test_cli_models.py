"""`lookalike models`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lookalike.cli.models import app
from lookalike.errors import InputError
from lookalike.models.pretrained import load
from lookalike.models.profile import profile_of
from lookalike.models.registry import NETWORKS, options_of


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_every_network_is_listed_with_its_size() -> None:
    result = run()
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    assert lines.keys() >= NETWORKS.keys()
    expected = profile_of("resnet18", size=64, num_classes=200)
    assert f"{expected.parameters:,}" in lines["resnet18"]
    assert f"{expected.flops / 1e9:.3f}" in lines["resnet18"]
    assert "64 × 64 pixels, 200 classes" in result.stdout
    assert "timm/NAME" in result.stdout


def test_json_holds_the_numbers_for_the_size_asked_for() -> None:
    tree = json.loads(run("--json", "--size", "32", "--classes", "10").stdout)
    assert (tree["size"], tree["classes"]) == (32, 10)
    assert [each["name"] for each in tree["networks"]] == list(NETWORKS)
    for each in tree["networks"]:
        assert each["options"].keys() == options_of(each["name"]).keys()
    expected = profile_of(tree["networks"][0]["name"], size=32, num_classes=10)
    assert (tree["networks"][0]["parameters"], tree["networks"][0]["flops"]) == (expected.parameters, expected.flops)


@pytest.mark.parametrize("name", ["weave", "cubs_resnet_3"])
def test_one_network_shows_its_options_as_a_recipe_would_write_them(name: str) -> None:
    from lookalike.models.registry import create_model
    from lookalike.recipe import Recipe

    result = run(name)
    assert result.exit_code == 0
    shown = [line.strip() for line in result.stdout.splitlines() if "model.options." in line]
    recipe = Recipe.from_yaml(f"model:\n  name: {name}\n", overrides=shown)
    assert recipe.model.options.keys() == options_of(name).keys()
    create_model(name, 5, recipe.model.options)


def test_an_unknown_network_names_the_nearest() -> None:
    result = run("wave")
    assert isinstance(result.exception, InputError)
    assert "Did you mean 'weave'" in result.exception.message


# lookalike models import


def test_imported_weights_have_a_name_for_model(
    lite0_file: Path, flower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOKALIKE_MODELS", str(tmp_path / "models"))
    architecture = ["--as", "timm/tf_efficientnet_lite0"]
    result = run("import", str(lite0_file), *architecture, "--name", "effnet", "--mean", "0.498", "--std", "0.502")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "models" / "effnet"
    assert str(folder) in result.stdout
    assert "1,000 classes of ImageNet-1k" in result.stdout
    assert "other names" in result.stderr
    model = load("effnet")
    assert (model.config.mean, model.config.std) == ((0.498,) * 3, (0.502,) * 3)
    assert model.predict(flower).label == "daisy"
    assert "for --model: effnet" in run().stdout
    with pytest.raises(InputError, match="Did you mean 'effnet'"):
        load("efnet")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ([], "--name and --out"),
        (["--name", "a", "--out", "b"], "--name and --out"),
        (["--name", "a", "--mean", "0.5,0.5"], "--mean 0.5,0.5"),
        (["--name", "a", "--std", "wide"], "--std wide"),
        (["--name", "a", "--classes", "gone.txt"], "gone.txt"),
    ],
)
def test_options_of_an_import_that_cannot_be_used(
    options: list[str], word: str, lite0_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOKALIKE_MODELS", str(tmp_path / "models"))
    result = run("import", str(lite0_file), "--as", "timm/tf_efficientnet_lite0", *options)
    assert isinstance(result.exception, InputError)
    assert word in result.exception.message
    assert not (tmp_path / "models").exists()
