from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike import recipe
from lookalike.errors import InputError
from lookalike.recipe import Augment, Data, Head, Model, Optimizer, Recipe, Schedule, Section, Training

SHIPPED = recipe.shipped()


def test_there_are_recipes_for_the_demo_and_for_tiny_imagenet() -> None:
    assert "quickstart" in {name.split("/")[0] for name in SHIPPED}
    assert any(name.startswith("tiny_imagenet/") for name in SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_valid_says_what_it_is_and_reads_back_equal(name: str) -> None:
    shipped = recipe.load(name)
    assert shipped.about
    assert Recipe.from_yaml(shipped.to_yaml()) == shipped


def test_a_recipe_is_found_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("training: {epochs: 3}\n")
    assert recipe.load(str(path)).training.epochs == 3


def test_an_empty_file_is_the_default_recipe(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert recipe.load(str(path)) == Recipe()


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        recipe.load("nowhere.yaml")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_misspelt_name_is_answered_with_the_nearest(name: str) -> None:
    with pytest.raises(InputError, match=r"Did you mean '.+'\?"):
        recipe.load(name[:-1] + "xy")


@pytest.mark.parametrize(
    ("override", "message", "keys"),
    [
        ("trainin.epochs=3", "unknown key 'trainin'. Did you mean 'training'?", "Keys: name, about, data"),
        ("training.epoch=3", "unknown key 'training.epoch'. Did you mean 'epochs'?", "Keys in 'training': epochs"),
        (
            "data.augment.flips=0",
            "unknown key 'data.augment.flips'. Did you mean 'flip'?",
            "Keys in 'data.augment': crop",
        ),
        ("optimizer.zzz=1", "unknown key 'optimizer.zzz'.", "Keys in 'optimizer': name, lr"),
    ],
)
def test_a_misspelt_key_is_answered_with_the_nearest(override: str, message: str, keys: str) -> None:
    with pytest.raises(InputError) as caught:
        Recipe.from_yaml("", "mine.yaml", overrides=[override])
    assert caught.value.message == f"mine.yaml: {message}"
    assert caught.value.remedy.startswith(keys)


def test_a_misspelt_key_is_named_before_the_one_that_is_missing_for_it() -> None:
    class Row(Section):
        network: str
        published: float = 0.0

    with pytest.raises(InputError) as caught:
        recipe.validate(Row, {"published": "many", "netwrok": "resnet18"}, "study")
    assert caught.value.message == "study: unknown key 'netwrok'. Did you mean 'network'?"
    with pytest.raises(InputError, match=r"^study: 'network' field required\.") as caught:
        recipe.validate(Row, {}, "study")


def test_overrides_are_applied_in_order_with_yaml_values() -> None:
    made = Recipe.from_yaml(
        "training: {epochs: 1, seed: 4}",
        overrides=[
            "training.epochs=2",
            "training.epochs=3",
            "optimizer.lr=1e-3",
            "data.source=/pictures/of cats",
            "data.augment.scale=[0.2, 0.8]",
            "model.options.stem=patch",
            "training.compile=true",
            "training.resolution=[[0, 32], [0.5, 64]]",
        ],
    )
    assert made.training == Training(epochs=3, seed=4, compile=True, resolution=((0.0, 32), (0.5, 64)))
    assert made.optimizer.lr == 0.001
    assert made.data.source == "/pictures/of cats"
    assert made.data.augment.scale == (0.2, 0.8)
    assert made.model.options == {"stem": "patch"}


@pytest.mark.parametrize("override", ["epochs", "=3", "training.epochs", ""])
def test_what_is_not_key_equals_value_is_refused(override: str) -> None:
    with pytest.raises(InputError, match="key=value"):
        Recipe.from_yaml("", overrides=[override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs=0", r"'training.epochs' .*greater than or equal to 1 \(given: 0\)"),
        ("training.epochs=many", r"'training.epochs' .*integer.*'many'"),
        ("training.batch_size=1", "'training.batch_size'"),
        ("training.grad_accum_steps=3", "grad_accum_steps=3 does not divide batch_size=256"),
        ("training.precision=fp16", "'auto', 'bf16' or 'float32'"),
        ("training.resolution=[[0.5, 64]]", "training.resolution.*start at 0"),
        ("training.resolution=[[0, 32], [0, 64]]", "training.resolution.*ascending"),
        ("training.resolution=[[0, 4]]", "training.resolution.*8"),
        ("training.ema_decay=1.0", "training.ema_decay"),
        ("optimizer.lr=0", "greater than 0"),
        ("optimizer.lr=.inf", "finite"),
        ("optimizer.lr=nan", "'optimizer.lr'"),
        ("optimizer.name=adma", "'sgd' or 'adamw'"),
        ("data.augment.scale=[0.8, 0.2]", "data.augment.scale"),
        ("data.augment.flip=1.5", "less than or equal to 1"),
        ("data.std=[0.2, 0.2, 0]", "greater than 0"),
        ("data=here", "'data'"),
    ],
)
def test_a_bad_value_is_refused_by_key(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Recipe.from_yaml("", "mine.yaml", overrides=[override])
    assert caught.value.message.startswith("mine.yaml: ")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("key", ["model.init", "model.head", "model.options", "loss.miner", "training.resolution"])
@pytest.mark.parametrize("value", ["", " ", "null"])
def test_an_empty_value_takes_away_what_may_be_absent(key: str, value: str) -> None:
    text = "model: {init: there, head: {dim: 4}, options: {width: 8}}\ndata: {protocol: half-zero-shot}\n"
    text += "loss: {name: pml/TripletMarginLoss, miner: pml/HDCMiner}\ntraining: {resolution: [[0, 32]]}"
    overrides = [f"{key}={value}", *(["loss={name: cross_entropy}"] if key == "model.head" else [])]
    section, name = key.split(".")
    assert getattr(getattr(Recipe.from_yaml(text), section), name)
    recipe = Recipe.from_yaml(text, overrides=overrides)
    assert getattr(getattr(recipe, section), name) == getattr(getattr(Recipe(), section), name)
    assert recipe == Recipe.from_yaml(recipe.to_yaml())


def test_an_empty_line_of_a_recipe_is_nothing() -> None:
    assert Recipe.from_yaml("model:\n  init:\n  head:\n").model == Recipe().model
    assert Recipe.from_yaml("training:\n", overrides=["training.epochs=3"]).training.epochs == 3


@pytest.mark.parametrize("key", ["training.epochs", "optimizer.name", "model.name", "data.source"])
def test_what_must_have_a_value_cannot_be_taken_away(key: str) -> None:
    with pytest.raises(InputError, match="given: nothing") as caught:
        Recipe.from_yaml("", overrides=[f"{key}="])
    assert f"'{key}'" in caught.value.message


def test_a_value_cannot_hold_a_key() -> None:
    with pytest.raises(InputError, match="'epochs'"):
        Recipe.from_yaml("training: {epochs: 3}", overrides=["training.epochs.first=3"])


@pytest.mark.parametrize("text", ["training: [", "\ttraining: 1", "a: b: c"])
def test_what_is_not_yaml_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^mine.yaml: "):
        Recipe.from_yaml(text, "mine.yaml")


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words"])
def test_what_is_not_a_mapping_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="key: value"):
        Recipe.from_yaml(text)


def test_a_recipe_cannot_be_changed_once_read() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().training.epochs = 3


fractions = st.floats(0, 1)
positive = st.floats(1e-6, 1e6)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = st.one_of(st.none(), st.booleans(), st.integers(-1000, 1000), st.floats(-1e6, 1e6), words)
recipes = st.builds(
    Recipe,
    name=words,
    about=words,
    data=st.builds(
        Data,
        source=words,
        image_size=st.integers(8, 1024),
        std=st.tuples(positive, positive, positive),
        augment=st.builds(
            Augment,
            crop=st.sampled_from(get_args(Augment.model_fields["crop"].annotation)),
            scale=st.tuples(st.floats(0.01, 0.5), st.floats(0.5, 1)),
            flip=fractions,
            mixup=positive,
        ),
    ),
    model=st.builds(Model, name=words, options=st.dictionaries(words, scalars | st.lists(scalars, max_size=3))),
    optimizer=st.builds(Optimizer, name=st.sampled_from(["sgd", "adamw"]), lr=positive),
    schedule=st.builds(Schedule, warmup=fractions, end=fractions),
    training=st.builds(
        Training,
        epochs=st.integers(1, 1000),
        ema_decay=st.floats(0, 0.9999),
        resolution=st.just(()) | st.just(((0.0, 32), (0.5, 64))),
        seed=st.integers(),
    ),
)


@given(recipes)
def test_any_recipe_reads_back_equal(made: Recipe) -> None:
    assert Recipe.from_yaml(made.to_yaml()) == made


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.yaml").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(InputError, match=r"photo\.yaml"):
        recipe.load(str(tmp_path / "photo.yaml"))


EMBEDDING = ["model.head.dim=64", "loss.name=multi_similarity", "data.protocol=half-zero-shot"]


def test_an_embedding_is_a_head_a_loss_and_a_protocol() -> None:
    recipe = Recipe.from_yaml("", overrides=EMBEDDING)
    assert recipe.model.head == Head(dim=64)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (EMBEDDING[1:], "model.head.dim"),
        (EMBEDDING[:1], "loss.name=multi_similarity"),
        (EMBEDDING[:2], "data.protocol"),
        ([*EMBEDDING, "training.grad_accum_steps=2"], "training.grad_accum_steps"),
        ([*EMBEDDING, "data.augment.mixup=0.2"], "data.augment.mixup"),
        (["data.protocol=half-zero-shot", "training.patience=2"], "training.patience"),
        (["loss.memory=100"], "loss.name=cross_entropy"),
        (["data.sampler.classes=4"], "classes=4 and images=0"),
        (["data.sampler={classes: 4, images: 4}"], "4 x 4"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Recipe.from_yaml("", overrides=overrides)
