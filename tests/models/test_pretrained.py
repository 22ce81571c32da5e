"""A model and its folder: what it answers, that it comes back the same, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image

import lookalike
from lookalike.errors import InputError
from lookalike.models.locate import describe
from lookalike.models.prediction import Prediction
from lookalike.models.pretrained import ImageModel, load
from lookalike.models.registry import create_model
from lookalike.models.serialization import ModelConfig

NAMES = ("goldfish", "lemon", "bell pepper", "sea slug", "teapot", "wok")
SIZE = 32


def make(seed: int = 0, **changes: Any) -> ImageModel:
    """A small network with random weights; `changes` to its configuration."""
    about: dict[str, Any] = {
        "name": "weave",
        "options": {"widths": [16, 32], "pairs": [1, 1]},
        "image_size": SIZE,
        "mean": (0.48, 0.45, 0.40),
        "std": (0.28, 0.27, 0.25),
        "class_names": NAMES,
        "class_ids": tuple(f"n{i}" for i in range(len(NAMES))),
        **changes,
    }
    config = ModelConfig(**about)
    torch.manual_seed(seed)
    network = create_model(config.name, config.num_classes, config.options)
    with torch.no_grad():
        network.head.weight *= 100  # away from "all classes alike"
    network.train()(torch.randn(8, 3, SIZE, SIZE))  # batch-norm statistics of their own
    return ImageModel(network, config)


@pytest.fixture(scope="module")
def model() -> ImageModel:
    return make()


@pytest.fixture
def folder(model: ImageModel, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)


def by_hand(model: ImageModel, images: np.ndarray) -> torch.Tensor:
    """Normalised input, (N, 3, H, W)."""
    scaled = (images / 255.0 - np.array(model.config.mean)) / np.array(model.config.std)
    return torch.from_numpy(scaled.astype(np.float32)).permute(0, 3, 1, 2)


# What it answers


def test_logits_are_the_network_on_the_normalised_picture(model: ImageModel, images: np.ndarray) -> None:
    logits = model.logits(images)
    assert logits.dtype == np.float32
    assert logits.shape == (5, 6)
    with torch.no_grad():
        expected = model.network.eval()(by_hand(model, images)).numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_the_batch_size_changes_nothing(model: ImageModel, images: np.ndarray) -> None:
    np.testing.assert_allclose(model.logits(images, batch_size=2), model.logits(images), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.embed(images, batch_size=2), model.embed(images), atol=1e-5)


def test_flip_averages_with_the_mirrored_picture(model: ImageModel, images: np.ndarray) -> None:
    mirrored = np.ascontiguousarray(images[:, :, ::-1])
    expected = (model.logits(images) + model.logits(mirrored)) / 2
    np.testing.assert_allclose(model.logits(images, flip=True), expected, rtol=1e-4, atol=1e-4)
    vectors = model.embed(images) + model.embed(mirrored)
    expected = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(model.embed(images, flip=True), expected, atol=1e-5)


def test_vectors_are_pooled_features_of_unit_length(model: ImageModel, images: np.ndarray) -> None:
    vectors = model.embed(images)
    assert vectors.dtype == np.float32
    assert vectors.shape == (5, 32) == (5, model.embedding_dim)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    with torch.no_grad():
        pooled = model.network.eval().forward_features(by_hand(model, images)).mean((2, 3))
    np.testing.assert_allclose(vectors, torch.nn.functional.normalize(pooled).numpy(), atol=1e-5)


def test_predictions_are_the_likeliest_classes_with_calibrated_probabilities(images: np.ndarray) -> None:
    model = make(temperature=2.5)
    logits = model.logits(images) / 2.5
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for row, predictions in zip(probabilities, model.predict(images, k=4), strict=True):
        order = np.argsort(-row)[:4]
        assert [p.index for p in predictions] == order.tolist()
        assert [p.label for p in predictions] == [NAMES[i] for i in order]
        assert [p.class_id for p in predictions] == [f"n{i}" for i in order]
        assert [p.probability for p in predictions] == pytest.approx(row[order], abs=1e-5)


def test_more_answers_than_classes_are_all_of_them(model: ImageModel, images: np.ndarray) -> None:
    (prediction,) = model.predict(images[:1], k=50)
    assert len(prediction) == 6
    assert sum(p.probability for p in prediction) == pytest.approx(1)
    assert (prediction.label, prediction.probability) == (prediction[0].label, prediction[0].probability)
    assert [p.index for p in prediction[:2]] == [p.index for p in prediction][:2]


def test_one_image_gives_one_answer(model: ImageModel, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    image.save(path)
    (expected,) = model.predict([path], k=2)
    (vector,) = model.embed([path])
    for one in (path, str(path), path.read_bytes(), Image.open(path), image, np.asarray(image)):
        prediction = model.predict(one, k=2)
        assert isinstance(prediction, Prediction)
        assert prediction == expected
        assert np.array_equal(model.embed(one), vector)
    assert len(model.predict(each for each in (path, path))) == 2  # any iterable


def test_a_notebook_shows_a_prediction_with_its_image(model: ImageModel) -> None:
    shown = model.predict(Image.new("RGB", (8, 8)), k=2)._repr_html_()
    assert "data:image/jpeg;base64," in shown
    assert shown.count("<tr>") == 2
    several = model.predict([Image.new("RGB", (8, 8))])[0]
    assert "<img" not in several._repr_html_()


def test_a_notebook_shows_what_a_model_is() -> None:
    shown = make(dataset="pets & <co>")._repr_html_()
    assert "pets &amp; &lt;co&gt;" in shown
    assert all(fact in shown for fact in ("weave", "32 × 32", make(dataset="pets & <co>").fingerprint))


def test_pictures_come_in_any_form_and_size(model: ImageModel, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    path = tmp_path / "picture.png"
    image = Image.fromarray(rng.integers(0, 256, (50, 80, 3), dtype=np.uint8))
    image.save(path)
    logits = model.logits([image, path, str(path), path.read_bytes(), np.asarray(image)])
    assert (logits == logits[0]).all()
    assert not np.allclose(logits[0], model.logits([image.transpose(Image.Transpose.ROTATE_180)]))


def test_no_pictures_give_no_answers(model: ImageModel) -> None:
    assert model.predict([]) == []
    assert model.logits([]).shape == (0, 6)
    assert model.embed([]).shape == (0, 32)


def test_a_network_that_was_training_answers_as_in_evaluation(images: np.ndarray) -> None:
    model = make()
    expected = model.logits(images)
    statistics = {key: value.clone() for key, value in model.network.state_dict().items()}
    model.train()
    np.testing.assert_array_equal(model.logits(images), expected)
    assert all(torch.equal(value, statistics[key]) for key, value in model.network.state_dict().items())


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda m: m.predict("no-such-photo.jpg"), "no-such-photo.jpg"),
        (lambda m: m.embed(Path("no-such-photo.jpg")), "no-such-photo.jpg"),
        (lambda m: m.logits(Image.new("RGB", (8, 8))), "Image"),
        (lambda m: m.predict([Image.new("RGB", (8, 8)), b"?"]), "image 1"),
        (lambda m: m.predict(np.zeros((32, 32), np.uint8)), r"image 0.*\(32,\)"),
        (lambda m: m.predict(7), "int"),
        (lambda m: m.predict(np.zeros((1, 8, 8, 3), np.uint8), k=0), "k"),
        (lambda m: m.logits(np.zeros((1, 8, 8, 3), np.uint8), batch_size=0), "batch_size"),
    ],
)
def test_bad_calls_are_refused(model: ImageModel, call: Callable[[ImageModel], object], word: str) -> None:
    with pytest.raises(InputError, match=word):
        call(model)


@pytest.mark.parametrize(
    "changes",
    [
        {"class_ids": ("n1",)},
        {"class_names": (), "class_ids": ()},
        {"temperature": 0.0},
        {"std": (0.1, 0.0, 0.1)},
        {"image_size": 0},
        {"precision": "int8"},
        {"nme": "weave"},
    ],
)
def test_a_configuration_must_make_sense(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="1 validation error"):
        make(**changes)


# That it comes back the same


def test_a_folder_comes_back_the_same(model: ImageModel, folder: Path, images: np.ndarray) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    loaded = lookalike.load(folder)
    assert loaded.config == model.config
    assert not loaded.training
    assert loaded.device == torch.device("cpu")
    assert loaded.network.state_dict().keys() == model.network.state_dict().keys()
    assert all(torch.equal(value, model.network.state_dict()[k]) for k, value in loaded.network.state_dict().items())
    np.testing.assert_allclose(loaded.logits(images), model.logits(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["simple_cnn", "resnet18", "cubs_resnet_1"])
def test_other_networks_come_back_too(name: str, tmp_path: Path, images: np.ndarray) -> None:
    options = {"resnet18": {"width": 8, "blur": True}, "cubs_resnet_1": {"width": 8, "placement": "stage"}}
    model = make(name=name, options=options.get(name, {}))
    model.save_pretrained(tmp_path)
    np.testing.assert_allclose(load(str(tmp_path)).logits(images), model.logits(images), rtol=1e-4, atol=1e-4)


def test_the_fingerprint_is_that_of_the_file(model: ImageModel, folder: Path) -> None:
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert model.fingerprint == load(folder).fingerprint == found
    assert json.loads((folder / "config.json").read_text())["fingerprint"] == found
    assert found in (folder / "README.md").read_text()


def test_the_fingerprint_says_whether_vectors_can_be_compared() -> None:
    same = make().fingerprint
    assert make(dataset="else", temperature=2.0, val_fraction=0.3, split_seed=5).fingerprint == same
    assert make(seed=1).fingerprint != same
    assert make(image_size=48).fingerprint != same
    assert make(crop_mode="squash").fingerprint != same
    assert make(mean=(0.5, 0.5, 0.5)).fingerprint != same


def edit_in_place(network: torch.nn.Module) -> None:
    with torch.no_grad():
        network.head.weight[0, 0] += 1


def edit_data(network: torch.nn.Module) -> None:
    network.head.weight.data[0, 0] += 1  # PyTorch does not count this change in `_version`


def replace_parameter(network: torch.nn.Module) -> None:
    network.head.weight = torch.nn.Parameter(network.head.weight.detach() * 2)


def change_statistics(network: torch.nn.Module) -> None:
    network.train()(torch.randn(4, 3, SIZE, SIZE))


@pytest.mark.parametrize("edit", [edit_in_place, edit_data, replace_parameter, change_statistics])
def test_the_fingerprint_follows_the_weights_in_memory(
    edit: Callable[[torch.nn.Module], None], folder: Path, tmp_path: Path
) -> None:
    loaded = load(folder)
    before = loaded.fingerprint
    edit(loaded.network)
    assert loaded.fingerprint != before
    loaded.save_pretrained(tmp_path / "edited")
    assert load(tmp_path / "edited").fingerprint == loaded.fingerprint


def test_the_fingerprint_follows_the_configuration(folder: Path) -> None:
    loaded = load(folder)
    before = loaded.fingerprint
    loaded.config = loaded.config.model_copy(update={"crop_mode": "squash"})
    assert loaded.fingerprint != before
    loaded.config = loaded.config.model_copy(update={"crop_mode": "center", "dataset": "else"})
    assert loaded.fingerprint == before


def test_the_fingerprint_of_an_unchanged_model_is_that_of_its_file_whatever_wrote_it(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip(b" ") + b" " * 16  # another version may align differently
    raw(folder, len(header).to_bytes(8, "little") + header + data[8 + length :])
    assert load(folder).fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()


def test_float16_is_half_the_size_and_nearly_the_same(model: ImageModel, folder: Path, images: np.ndarray) -> None:
    half = folder.with_name("half")
    model.save_pretrained(half, precision="float16")
    sizes = [(path / "model.safetensors").stat().st_size for path in (folder, half)]
    assert sizes[1] < 0.6 * sizes[0]
    loaded = load(half)
    assert loaded.config.precision == "float16"
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    np.testing.assert_allclose(loaded.embed(images), model.embed(images), atol=5e-3)
    loaded.save_pretrained(folder)  # keeps its precision
    assert load(folder).fingerprint == loaded.fingerprint


def test_what_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    model = make()
    with torch.no_grad():
        model.network.head.bias[0] = 1e6
    with pytest.raises(InputError, match=r"'head.bias' holds numbers that are not finite"):
        model.save_pretrained(tmp_path / "model", precision="float16")
    assert not (tmp_path / "model").exists()


def test_saving_again_replaces_the_model_and_nothing_else(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    other = make(seed=3)
    other.save_pretrained(folder)
    assert load(folder).fingerprint == other.fingerprint
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_full_disk_leaves_the_old_model_whole(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(InputError, match="File too large"):
            make(seed=3).save_pretrained(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_predictions_say_whether_the_picture_is_unknown(images: np.ndarray) -> None:
    sure = [each[0].probability for each in make().predict(images)]
    limit = (min(sure) + max(sure)) / 2
    found = make(unknown_threshold=limit).predict(images)
    assert [each.unknown for each in found] == [probability < limit for probability in sure]
    assert {each.unknown for each in found} == {True, False}
    assert not any(each.unknown for each in make().predict(images)), "without a threshold nothing is"
    assert [repr(each).startswith("<Prediction: unknown") for each in found] == [each.unknown for each in found]


def test_a_place_that_is_no_folder_is_refused(model: ImageModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: "):
        model.save_pretrained(tmp_path / "file")


def test_the_card_says_what_one_must_know(tmp_path: Path) -> None:
    make(dataset="tiny-imagenet", remark="A reduced copy.", temperature=1.5).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "lookalike"
    assert front["license"] == "other"
    for words in ("non-commercial research", "A reduced copy.", "temperature of 1.5", "32 × 32", "bell pepper"):
        assert words in card


def test_the_card_claims_no_terms_for_pictures_of_ones_own(tmp_path: Path) -> None:
    make(dataset="my pets").save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "Trained on my pets." in card
    assert "non-commercial" not in card
    assert "not calibrated" in card
    make(temperature_remark="12 images are too few, it takes 100").save_pretrained(tmp_path)
    assert "not calibrated (to fit a temperature, 12 images are too few" in (tmp_path / "README.md").read_text()


# What is refused


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    tree = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in tree.items() if value is not None}))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors, with a fingerprint and header that fit."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])["__metadata__"]
    tensors = safetensors.torch.load(data)
    change(tensors)
    data = safetensors.torch.save(tensors, header)
    path.write_bytes(data)
    edit(folder, fingerprint=hashlib.sha256(data).hexdigest())


def bomb(folder: Path, **changes: Any) -> None:
    """Name another network, with weights that say the same of it."""
    edit(folder, **changes)
    tree = json.loads((folder / "config.json").read_text())
    tree.pop("fingerprint")
    path = folder / "model.safetensors"
    data = safetensors.torch.save(
        safetensors.torch.load(path.read_bytes()), {"lookalike": ModelConfig(**tree).of_vectors()}
    )
    raw(folder, data)


def raw(folder: Path, data: bytes) -> None:
    """Other bytes of weights, with a fingerprint that fits."""
    (folder / "model.safetensors").write_bytes(data)
    edit(folder, fingerprint=hashlib.sha256(data).hexdigest())


def header_of(tree: dict[str, Any]) -> bytes:
    """A safetensors file with this header and four bytes of numbers."""
    text = json.dumps(tree).encode()
    return len(text).to_bytes(8, "little") + text + (bytes(4) if "a" in tree else b"")


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)


def exchange(folder: Path) -> None:
    make(seed=9).save_pretrained(folder.with_name("other"))
    shutil.copy(folder.with_name("other") / "model.safetensors", folder)


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (cut, "model.safetensors: damaged, cut short or not safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "damaged, cut short"),
        (lambda f: (f / "model.safetensors").write_bytes(b"PK\x03\x04 a pickle in a zip"), "damaged, cut short"),
        (flip_a_bit, "SHA-256 is .* but config.json says"),
        (exchange, "SHA-256 is .* but config.json says"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: not JSON"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json: not JSON"),
        (lambda f: (f / "config.json").write_text("[1]"), "not the configuration of a Lookalike model"),
        (
            lambda f: (f / "config.json").write_text('{"model_type": "vit"}'),
            "not the configuration of a Lookalike model",
        ),
        (lambda f: edit(f, format=2), "format 2; this version of Lookalike reads 1"),
        (lambda f: edit(f, fingerprint=None), "config.json: no fingerprint"),
        (lambda f: edit(f, image_size="big"), "'image_size' input should be a valid integer"),
        (lambda f: edit(f, imagesize=3), "unknown key 'imagesize'. Did you mean 'image_size'"),
        (lambda f: edit(f, class_ids=["n0"]), "6 class_names but 1 class_ids"),
        (lambda f: edit(f, image_size=64), "names another network or preprocessing"),
        (lambda f: edit(f, mean=[0.5, 0.5, 0.5]), "names another network or preprocessing"),
        (lambda f: edit(f, name="resnet18", options={}), "names another network or preprocessing"),
        (
            lambda f: edit(f, class_names=["a", "b"], class_ids=["a", "b"]),
            "'head.bias' is .6,., but the network's is .2,.",
        ),
        (lambda f: rewrite(f, lambda t: t.pop("head.bias")), "does not fit the network: 'head.bias' is missing"),
        (lambda f: rewrite(f, lambda t: t.update(extra=torch.zeros(1))), "'extra' is none of the network's"),
        (
            lambda f: rewrite(f, lambda t: t.update({"head.bias": torch.zeros(6, dtype=torch.int64)})),
            "'head.bias' is torch.int64, but the network's is torch.float32",
        ),
        (
            lambda f: rewrite(f, lambda t: t["head.bias"].fill_(torch.nan)),
            "'head.bias' holds numbers that are not finite",
        ),
        (
            lambda f: rewrite(f, lambda t: t.update({"head.bias": torch.full((6,), 1e300, dtype=torch.float64)})),
            "'head.bias' holds numbers that are not finite",
        ),
        (lambda f: bomb(f, options={"widths": [16, 10**5], "pairs": [1, 1]}), "far more weights than"),
        (lambda f: bomb(f, options={"widths": [16, 10**9], "pairs": [1, 1]}), "there is not so much memory"),
        (lambda f: bomb(f, options={"widths": [16, 10**30], "pairs": [1, 1]}), "refuses widths="),
        (lambda f: bomb(f, options={"widths": [16, 32], "pairs": [1, 10**12]}), "far more weights than"),
        (lambda f: bomb(f, options={"widths": [1], "pairs": [10**12]}), "far more weights than"),
        (lambda f: bomb(f, options={"widths": ["x"], "pairs": [1]}), "refuses widths="),
        (lambda f: bomb(f, options={"pairs": None}), "refuses pairs="),
        (lambda f: bomb(f, name="resnet50", options={"width": 1 << 15}), "far more weights than"),
        (lambda f: bomb(f, head={"dim": 10**7}), "head: cannot be made .far more weights than"),
        (lambda f: bomb(f, head={"kind": "mlp", "hidden": 1 << 40}), "head: cannot be made"),
        (lambda f: edit(f, image_size=10**9), "'image_size' input should be less than"),
        (lambda f: edit(f, std=[1e400, 1, 1]), "'std"),
        (lambda f: (f / "config.json").write_text('{"a":' * 100_000), "config.json: not JSON"),
        (lambda f: os.truncate(f / "config.json", 1 << 30), "are too many for the configuration"),
        (lambda f: os.truncate(f / "model.safetensors", 1 << 43), "GiB of memory, more than there is"),
        (lambda f: raw(f, (1 << 60).to_bytes(8, "little") + b"{}"), "damaged, cut short"),
        (lambda f: raw(f, header_of({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}})), "damaged"),
        (lambda f: raw(f, header_of({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}})), "damaged"),
        (lambda f: raw(f, header_of({"__metadata__": [1]})), "damaged"),
        (lambda f: raw(f, header_of({})), "names another network"),
        (lambda f: (f / "config.json").unlink(), "not a model folder: no config.json"),
        (lambda f: (f / "model.safetensors").unlink(), "not a model folder: no model.safetensors"),
    ],
)
def test_a_wrong_or_damaged_folder_is_refused(folder: Path, damage: Callable[[Path], object], word: str) -> None:
    damage(folder)
    with pytest.raises(InputError, match=word) as caught:
        load(folder)
    assert str(folder) in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(
    "damage", [cut, lambda f: raw(f, b"\xff" * 64), lambda f: raw(f, header_of({"__metadata__": 5}))]
)
def test_what_is_read_without_the_network_is_looked_at_as_well(folder: Path, damage: Callable[[Path], object]) -> None:
    damage(folder)
    with pytest.raises(InputError, match=r"model\.safetensors|config\.json"):
        describe(folder)


def test_a_network_that_answers_with_no_numbers_is_named(folder: Path, images: np.ndarray) -> None:
    rewrite(folder, lambda t: [t[name].fill_(3e38) for name in t if name.endswith("weight") and "stem" in name])
    loaded = load(folder)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        loaded.predict(images)


def test_networks_are_built_in_several_threads_at_once(folder: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        assert len({one.fingerprint for one in threads.map(load, [folder] * 8)}) == 1


def test_an_unknown_network_names_the_nearest(tmp_path: Path) -> None:
    model = make()
    model.config = model.config.model_copy(update={"name": "wave"})
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"config.json: model.name: no network named 'wave'. Did you mean 'weave'"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "last.pth", "epoch.ckpt", "model.pkl"])
def test_a_pickle_is_never_opened(name: str, tmp_path: Path) -> None:
    torch.save({}, tmp_path / name)
    for given in (tmp_path / name, tmp_path):
        with pytest.raises(InputError, match=f"{name}: a pickle can run any code"):
            load(given)


def test_a_run_folder_points_at_its_model(model: ImageModel, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: run\n")
    with pytest.raises(InputError, match="this run has no model yet") as caught:
        load(tmp_path)
    assert "--resume" in caught.value.remedy
    model.save_pretrained(tmp_path / "model")
    assert load(tmp_path).fingerprint == model.fingerprint


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_of_the_folder_points_at_the_folder(folder: Path, name: str) -> None:
    with pytest.raises(InputError, match="one file of a model folder") as caught:
        load(folder / name)
    assert caught.value.remedy == f"Point at the folder, {folder}."


@pytest.mark.parametrize("name", ["nowhere", "/no/such/folder", "runs/none/model"])
def test_a_folder_that_is_not_there(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}: no such folder"):
        load(name)


def test_a_mistyped_folder_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"runs/typo: no such folder\."):
        load("runs/typo")


def test_a_device_that_is_not_there(folder: Path) -> None:
    with pytest.raises(InputError, match="cuda:99"):
        load(folder, device="cuda:99")
    assert load(folder, device="auto").embed(np.zeros((1, 8, 8, 3), np.uint8)).shape == (1, 32)


# The Hub


def test_a_hub_id_loads_from_the_cache(model: ImageModel, tmp_path: Path, images: np.ndarray) -> None:
    repository = tmp_path / "models--owner--fishes"
    model.save_pretrained(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    loaded = ImageModel.from_pretrained("owner/fishes", cache_dir=tmp_path, local_files_only=True)
    assert loaded.fingerprint == model.fingerprint
    with pytest.raises(InputError, match="owner/birds: no such folder, and not a model from the Hub: it is not in the"):
        ImageModel.from_pretrained("owner/birds", cache_dir=tmp_path, local_files_only=True)
