"""Pretrained weights: real ones of ImageNet from a package, read into a network of timm with their preprocessing."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lookalike.errors import InputError
from lookalike.models import importing, locate, serialization
from lookalike.models.importing import import_model
from lookalike.models.pretrained import ImageModel, load
from lookalike.models.registry import create_model
from lookalike.models.runtime import OnnxRuntime, TorchRuntime
from lookalike.models.serialization import ModelConfig
from lookalike.models.timm import TimmNetwork, import_timm
from lookalike.models.timm_weights import Changes, from_file, from_timm

timm = import_timm("resnet18")  # torchvision may not be importable without it
LITE = "tf_efficientnet_lite0"
SMALL = "vit_tiny_patch16_224"
MEAN, STD = (0.498, 0.498, 0.498), (0.502, 0.502, 0.502)


def timm_vector(model: ImageModel, path: Path) -> torch.Tensor:
    """The unit vector of an image as timm computes it: its transforms, and the features before its classifier."""
    config = model.config
    cfg = {**timm.get_pretrained_cfg(LITE).to_dict(), "mean": config.mean, "std": config.std}
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=cfg), is_training=False)
    network = model.network.network
    with torch.no_grad():
        features = network.forward_features(transform(Image.open(path).convert("RGB"))[None])
        return torch.nn.functional.normalize(network.forward_head(features, pre_logits=True), dim=1)[0]


# Real weights


def test_a_photograph_of_a_daisy_is_a_daisy(effnet: Path, flower: Path) -> None:
    prediction = load(effnet).predict(flower)
    assert (prediction.label, prediction[0].class_id, prediction[0].index) == ("daisy", "n11939491", 985)
    assert prediction.probability > 0.3


def test_vectors_are_those_of_timm(effnet: Path, flower: Path) -> None:
    model = load(effnet)
    assert np.abs(model.embed(flower) - timm_vector(model, flower).numpy()).max() < 1e-4
    assert model.embedding_dim == 1280


def test_the_preprocessing_and_the_origin_travel_with_the_weights(effnet: Path, lite0_file: Path) -> None:
    config = load(effnet).config
    assert (config.image_size, config.mean, config.std) == (224, MEAN, STD)
    assert (config.crop_mode.share, config.crop_mode.interpolation) == (0.875, "bicubic")  # type: ignore[union-attr]
    assert (config.num_classes, config.dataset, config.license) == (1000, "ImageNet-1k", "apache-2.0")
    assert config.source.startswith(lite0_file.name)
    card = (effnet / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert config.source in card
    assert "resized to 256 (bicubic)" in card
    assert "random at the start" not in card


def test_the_mapping_by_order_is_said(lite0_file: Path) -> None:
    imported = from_file(lite0_file, LITE)
    assert any("other names" in remark and "order" in remark for remark in imported.remarks)
    assert any("--license" in remark for remark in imported.remarks)  # that of timm's weights may not be theirs
    assert imported.config.mean == (0.5, 0.5, 0.5)  # timm's, if no other is given


@pytest.mark.slow
def test_both_runtimes_agree_with_the_model(effnet: Path, flower: Path, china: Path, tmp_path: Path) -> None:
    model = load(effnet)
    pixels = np.stack([model._prepared(path) for path in (flower, china)])
    expected = model.embed(pixels)
    onnx = OnnxRuntime(effnet, cache=tmp_path)
    for runtime in (onnx, TorchRuntime(model)):
        outputs = runtime.run(pixels)
        assert (outputs.vectors * expected).sum(1).min() > 0.9999
        assert outputs.logits is not None
        np.testing.assert_allclose(outputs.logits, model.logits(pixels), atol=1e-2)


# Files of other shapes


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """A state dict of a small network of timm."""
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=3).state_dict()  # type: ignore[no-any-return]


def same(imported: Any, state: dict[str, torch.Tensor]) -> bool:
    own = imported.network.network.state_dict()
    return all(torch.equal(own[key], tensor) for key, tensor in state.items() if "num_batches" not in key)


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_are_tolerated(prefix: str, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({f"{prefix}{key}": tensor for key, tensor in state.items()}, path)
    assert same(from_file(path, "test_resnet"), state)


def test_the_order_of_keys_does_not_matter(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(dict(sorted(state.items(), reverse=True)), path)
    assert same(from_file(path, "test_resnet"), state)


@pytest.mark.parametrize("key", ["state_dict", "model", "state_dict_ema"])
def test_a_checkpoint_of_a_training_script_is_read(key: str, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "last.pth.tar"
    torch.save({"epoch": 3, "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {}}, key: state}, path)
    assert same(from_file(path, "test_resnet"), state)


def test_safetensors_without_counters_of_batch_norm(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({key: tensor for key, tensor in state.items() if "num_batches" not in key}, path)
    imported = from_file(path, "test_resnet", Changes(class_names=("cat", "dog", "emu")))
    assert same(imported, state)
    assert imported.config.class_names == ("cat", "dog", "emu")
    assert imported.config.num_classes == imported.network.num_classes == 3


def test_weights_without_a_classifier_make_a_model_without_classes(
    state: dict[str, torch.Tensor], tmp_path: Path, flower: Path
) -> None:
    path = tmp_path / "backbone.pth"
    torch.save({key: tensor for key, tensor in state.items() if not key.startswith("fc.")}, path)
    made = import_model(path, tmp_path / "bare", architecture="timm/test_resnet")
    assert made.config.class_names == ()
    model = load(made.folder)
    with pytest.raises(InputError, match="no classes"):
        model.predict(flower)
    vector = model.embed(flower)
    pixels = model._prepared(flower)[None]
    onnx = OnnxRuntime(made.folder, cache=tmp_path).run(pixels)
    assert onnx.logits is None
    assert float(onnx.vectors[0] @ vector) > 0.9999
    assert "It has no classes" in (made.folder / "README.md").read_text()


def test_classes_without_names_are_numbered_and_said(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "weights.pth")
    imported = from_file(tmp_path / "weights.pth", "test_resnet")
    assert imported.config.class_names == ("class 0", "class 1", "class 2")
    assert any("--classes" in remark for remark in imported.remarks)
    with pytest.raises(InputError, match=r"2 class names .* 3 classes"):
        from_file(tmp_path / "weights.pth", "test_resnet", Changes(class_names=("cat", "dog")))


def test_position_embeddings_are_interpolated_for_another_size(tmp_path: Path, flower: Path) -> None:
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "weights.pth")
    made = import_model(tmp_path / "weights.pth", tmp_path / "vit", architecture="timm/test_vit", size=96)
    assert any("conversion" in remark for remark in made.remarks)
    model = load(made.folder)
    assert (model.config.image_size, model.config.options) == (96, {"img_size": 96})
    assert np.isfinite(model.embed(flower)).all()


# Folders and the Hub


def hub_folder(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    """A folder as timm writes it for the Hub."""
    folder.mkdir(parents=True)
    about = {
        "architecture": "test_resnet",
        "num_classes": 3,
        "pretrained_cfg": {
            "input_size": [3, 96, 96], "interpolation": "bilinear", "crop_pct": 0.75, "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6], "num_classes": 3, "label_names": ["n1", "n2", "n3"],
            "label_descriptions": {"n1": "cat", "n2": "dog", "n3": "emu"},
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    save_file(state, folder / "model.safetensors")
    return folder


def check_hub_folder(config: ModelConfig) -> None:
    assert (config.name, config.image_size, config.mean, config.std) == (
        "timm/test_resnet", 96, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6),
    )  # fmt: skip
    assert str(config.crop_mode) == "0.75 of the shorter side, bilinear"
    assert (config.class_names, config.class_ids) == (("cat", "dog", "emu"), ("n1", "n2", "n3"))
    assert config.license == "mit"


def test_a_folder_in_timms_format(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "hub", state)
    made = import_model(folder, tmp_path / "model")
    check_hub_folder(load(made.folder).config)
    with pytest.raises(InputError, match="format of timm") as caught:
        load(folder)
    assert f"lookalike models import {folder}" in caught.value.remedy


def test_a_long_description_is_recognised(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = hub_folder(tmp_path / "hub", state) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "remark": "x" * 2_000_000}))
    assert locate.is_of_timm(path)


def hub_cache(home: Path, repository: str, fill: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the Hub that holds one repository, without a network."""
    place = home / f"models--{repository.replace('/', '--')}"
    fill(place / "snapshots" / ("0" * 40))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_hub_id_in_timms_format(
    state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_cache(tmp_path / "hub", "owner/birds", lambda folder: hub_folder(folder, state), monkeypatch)
    made = import_model("owner/birds", tmp_path / "model")
    check_hub_folder(made.config)
    assert made.config.source == "https://huggingface.co/owner/birds"
    with pytest.raises(InputError, match="models import"):
        load("owner/birds")


def test_weights_of_timm_by_name(small_timm: str, flower: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet.r160_in1k")
    model = load(small_timm)
    cfg = timm.get_pretrained_cfg("test_resnet.r160_in1k")
    assert (model.config.image_size, model.config.crop_mode.share) == (cfg.input_size[1], cfg.crop_pct)  # type: ignore[union-attr]
    assert (model.config.mean, model.config.license) == (cfg.mean, cfg.license)
    assert model.config.source == "https://huggingface.co/timm/test_resnet.r160_in1k"
    assert model.config.class_names[985] == "daisy"
    config, fingerprint = locate.describe(small_timm)  # from the folder that was made
    assert (config, fingerprint) == (model.config, model.fingerprint)
    transform = timm.data.create_transform(
        **timm.data.resolve_data_config(pretrained_cfg=cfg.to_dict()), is_training=False
    )
    with torch.no_grad():
        logits = network.eval()(transform(Image.open(flower))[None])
    np.testing.assert_allclose(model.logits([flower]), logits.numpy(), atol=1e-4)


CLIP_TOWER = "vit_base_patch32_clip_224.openai"  # 512 outputs


def test_a_tower_of_clip_has_no_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookalike.models.timm_weights._download", lambda *given: None)
    made = timm.create_model
    small = {"embed_dim": 64, "depth": 1, "num_heads": 1}
    monkeypatch.setattr("timm.create_model", lambda name, pretrained, **how: made(name, **how, **small))
    named = from_timm(CLIP_TOWER)
    assert (named.network.num_classes, named.config.class_names) == (0, ())
    assert any("512" in remark for remark in named.remarks)
    names = tuple(map(str, range(512)))
    assert from_timm(CLIP_TOWER, Changes(class_names=names)).config.class_names == names

    torch.save(made(CLIP_TOWER, **small).state_dict(), tmp_path / "tower.pth")
    read = from_file(tmp_path / "tower.pth", CLIP_TOWER)
    assert (read.network.num_classes, read.config.class_names) == (0, ())
    torch.save(made(CLIP_TOWER, num_classes=3, **small).state_dict(), tmp_path / "tuned.pth")
    assert from_file(tmp_path / "tuned.pth", CLIP_TOWER).config.num_classes == 3


def test_a_folder_of_timms_weights_is_the_same_model_as_their_name(small_timm: str, tmp_path: Path) -> None:
    name = small_timm.removeprefix("timm/")
    cfg = timm.get_pretrained_cfg(name).to_dict(remove_source=True, remove_null=True)
    weights = next((tmp_path / "hub").glob("*/snapshots/*/model.safetensors"))
    shutil.copytree(weights.parent, tmp_path / "downloaded")
    about = {"architecture": name.partition(".")[0], "num_classes": cfg["num_classes"], "pretrained_cfg": cfg}
    (tmp_path / "downloaded" / "config.json").write_text(json.dumps(about))
    made = import_model(tmp_path / "downloaded", tmp_path / "model")
    assert made.config.name == small_timm
    assert load(made.folder).fingerprint == load(small_timm).fingerprint


# What cannot be used


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("timm/resnt50", "Did you mean 'resnet50'"),
        ("timm/resnet50.a1_in2k", "Did you mean 'resnet50.a1_in1k'"),
        ("timm/no_such_thing_at_all", "timm has no model"),
    ],
)
def test_an_unknown_name_names_the_nearest(name: str, nearest: str) -> None:
    for use in (load, locate.describe):
        with pytest.raises(InputError) as caught:
            use(name)
        assert name in caught.value.message
        assert nearest in caught.value.message


def test_without_a_network_the_error_says_what_to_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"timm/resnet50\.a1_in1k") as caught:
        from_timm("resnet50.a1_in1k")
    for said in ("https://huggingface.co/timm/resnet50.a1_in1k", "model.safetensors", "lookalike models import"):
        assert said in caught.value.remedy


def test_weights_of_another_architecture(lite0_file: Path, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        from_file(lite0_file, "resnet18")
    for said in (str(lite0_file), "timm/resnet18", "'conv1.weight' is missing", "'_conv_stem.weight' is none"):
        assert said in caught.value.message
    path = tmp_path / "wide.pth"
    torch.save({**state, "layer1.0.conv1.weight": torch.zeros(1, 2, 3, 4)}, path)
    with pytest.raises(InputError, match=r"'layer1.0.conv1.weight' is \(1, 2, 3, 4\), but"):
        from_file(path, "test_resnet")


@pytest.mark.parametrize(
    "change",
    [
        {"num_classes": "x"}, {"input_size": 3}, {"input_size": [3, 96]}, {"crop_pct": 9.0}, {"crop_pct": "x"},
        {"label_names": 3}, {"classifier": 3}, {"interpolation": 3},
    ],
    ids=str,
)  # fmt: skip
def test_a_description_of_wrong_types(change: dict[str, Any], state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "hub", state)
    about = json.loads((folder / "config.json").read_text())
    about.pop("num_classes")
    about["pretrained_cfg"] |= change
    (folder / "config.json").write_text(json.dumps(about))
    with pytest.raises(InputError):
        import_model(folder, tmp_path / "model")


@pytest.mark.parametrize("change", [{"architecture": 3}, {"model_args": 3}, {"pretrained_cfg": []}], ids=str)
def test_a_description_that_is_none(change: dict[str, Any], state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "hub", state)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=r"config\.json"):
        import_model(folder, tmp_path / "model")


def test_networks_far_larger_than_the_weights_are_not_built(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "hub", state)
    path = folder / "config.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "model_args": {"channels": [32, 48, 48, 300_000]}}))
    with pytest.raises(InputError, match="far more weights"):
        import_model(folder, tmp_path / "model")
    path.write_text(json.dumps({**about, "num_classes": 2_000_000_000}))  # more than any tensor has rows
    save_file({key: tensor for key, tensor in state.items() if not key.startswith("fc.")}, folder / "model.safetensors")
    assert import_model(folder, tmp_path / "model").config.num_classes == 0
    path.write_text(json.dumps({**about, "model_args": {"pretrained": True}}))
    with pytest.raises(InputError, match="'pretrained'"):
        import_model(folder, tmp_path / "other")


def test_files_larger_than_memory(
    state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(state, tmp_path / "weights.pth")
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10**7))
    folder = hub_folder(tmp_path / "hub", state)
    monkeypatch.setattr(serialization, "_memory", lambda: 500_000)
    for name in ("weights.pth", "bomb.pth"):
        with pytest.raises(InputError, match="GiB of memory"):
            from_file(tmp_path / name, "test_resnet")
    monkeypatch.setattr(serialization, "MAX_CONFIG_BYTES", 100)
    with pytest.raises(InputError, match=r"config\.json: .* bytes are too many"):
        import_model(folder, tmp_path / "model")


class Harmful:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_a_pickle_with_code_is_refused_and_never_run(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    for name, old in (("new.pth", True), ("old.pth", False)):
        path = tmp_path / name
        torch.save({"state_dict": state, "extra": Harmful(tmp_path / "ran")}, path, _use_new_zipfile_serialization=old)
        with pytest.raises(InputError, match=f"{name}: a pickle with more than weights") as caught:
            import_model(path, tmp_path / "model", architecture="timm/test_resnet")
        assert "mkdir" in caught.value.message
        assert not (tmp_path / "ran").exists()
        assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_damaged_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"no weights at all")
    with pytest.raises(InputError, match=f"{name}: damaged"):
        from_file(tmp_path / name, "test_resnet")


def test_a_file_without_tensors(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "last.pth")
    with pytest.raises(InputError, match=r"last\.pth: holds no state dict"):
        from_file(tmp_path / "last.pth", "test_resnet")


def test_numbers_that_are_not_finite(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({**state, "fc.bias": torch.full((3,), torch.inf)}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"'fc\.bias' holds numbers that are not finite"):
        from_file(tmp_path / "weights.pth", "test_resnet")


def test_weights_alone_are_not_a_model(lite0_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.pth: a pickle can run any code") as caught:
        load(lite0_file)
    assert f"lookalike models import {lite0_file} --as timm/NAME" in caught.value.remedy
    with pytest.raises(InputError, match="which network") as caught:
        import_model(lite0_file, tmp_path / "model")
    assert "--as" in caught.value.remedy


def test_a_name_that_exists_is_not_replaced(effnet: Path, lite0_file: Path) -> None:
    with pytest.raises(InputError, match="exists already"):
        import_model(lite0_file, effnet, architecture=f"timm/{LITE}")


@pytest.mark.parametrize("name", ["default", "../up", "a/b", ".hidden", ""])
def test_what_cannot_be_a_name(name: str, lite0_file: Path) -> None:
    with pytest.raises(InputError, match="cannot be the name of a model"):
        import_model(lite0_file, name, architecture=f"timm/{LITE}")


@pytest.mark.parametrize("source", ["nowhere.pth", "/no/such/folder"])
def test_weights_that_are_not_there(source: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{source}: no such file"):
        importing.import_model(source, tmp_path / "model")
    with pytest.raises(InputError, match=f"{source}: no such file"):
        importing.import_model(source, tmp_path / "model", architecture=f"timm/{LITE}")


# Pooling


def test_a_transformer_pools_as_timm_does_and_old_folders_as_before(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = create_model(f"timm/{SMALL}", 3, {"img_size": 64}).eval()
    assert isinstance(network, TimmNetwork)
    config = ModelConfig(
        name=f"timm/{SMALL}", options={"img_size": 64}, image_size=64, mean=MEAN, std=STD, pooling="own",
        class_names=("cat", "dog", "emu"), class_ids=("cat", "dog", "emu"),
    )  # fmt: skip
    ImageModel(network, config).save_pretrained(tmp_path / "new")
    old = config.model_copy(update={"pooling": "mean"})
    assert "pooling" not in old.of_vectors()  # as in the header of folders from before
    ImageModel(network, old).save_pretrained(tmp_path / "old")
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        tokens = network.network.forward_features(x)
        expected = {
            "new": network.network.forward_head(tokens, pre_logits=True),  # the class token
            "old": tokens[:, 1:].mean(1),
        }
    for name, vectors in expected.items():
        loaded = load(tmp_path / name)
        unit = torch.nn.functional.normalize(vectors, dim=1).numpy()
        np.testing.assert_allclose(loaded.embed(images), unit, atol=1e-5)
        np.testing.assert_allclose(TorchRuntime(loaded).embed(images), unit, atol=1e-5)
    assert load(tmp_path / "new").fingerprint != load(tmp_path / "old").fingerprint
