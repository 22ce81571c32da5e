"""Pairs of an image and a text tower, imported from the format of open_clip, with vectors as open_clip has them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lookalike.errors import InputError
from lookalike.models import inference, locate
from lookalike.models.importing import import_model
from lookalike.models.open_clip import flat, import_open_clip, nested
from lookalike.models.open_clip_weights import clip_tokenizer
from lookalike.models.pretrained import load
from lookalike.models.registry import create_model
from lookalike.models.serialization import TextSettings
from lookalike.models.text import NoTextError, TextTokenizer, fingerprint_of
from pair_factory import CLIP, SIGLIP, write_clip, write_siglip

open_clip = import_open_clip()
TEXTS = [
    "a dog on a beach",
    "It's a Dog's life, isn't it? 123 4",
    "naïve café – 東京 😀 straße İstanbul",
    "don't  stop\n\nnow we'll I'd",
    "&lt;b&gt; hello &amp; bye",
    "a_b-c.d/e 1234 ½ Ⅷ “quoted” e\u0301",
    "مرحبا नमस्ते zażółć",
    "word " * 100,
    "<end_of_text> hi",
]


def test_tokens_are_those_of_open_clip() -> None:
    source = clip_tokenizer()
    ours = TextTokenizer(source, TextSettings(context_length=77, tokenizer=fingerprint_of(source)), "tokenizer.json")
    theirs = open_clip.get_tokenizer("ViT-B-32")(TEXTS)
    assert np.array_equal(ours(TEXTS), theirs.numpy())


@pytest.mark.parametrize("pickle", [False, True])
def test_vectors_are_those_of_open_clip(tmp_path: Path, flower: Path, pickle: bool) -> None:
    folder = write_clip(tmp_path / "clip", pickle=pickle)
    pair, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    pair.eval()
    with torch.no_grad():
        image = pair.encode_image(preprocess(Image.open(flower))[None], normalize=True)[0].numpy()
        texts = pair.encode_text(tokenizer(TEXTS), normalize=True).numpy()
    model = load(import_model(folder, tmp_path / "model").folder)
    assert np.abs(model.embed(flower) - image).max() < 1e-5
    assert np.abs(model.embed_text(TEXTS) - texts).max() < 1e-5
    assert np.allclose(model.embed_text(TEXTS[0]), model.embed_text(iter(TEXTS))[0], atol=1e-6)
    assert model.embed_text([]).shape == (0, model.embedding_dim)
    assert model.config.temperature == pytest.approx(0.07)
    assert (model.config.mean, model.config.std) == ((0.5,) * 3, (0.25,) * 3)


def test_a_pair_like_siglip_has_its_own_tokenizer_and_preprocessing(tmp_path: Path, flower: Path) -> None:
    folder = write_siglip(tmp_path / "siglip")
    pair, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    pair.eval()
    tokens = torch.tensor([[3, 4, 5, 1, 1, 1, 1, 1]])  # padded with the end
    with torch.no_grad():
        image = pair.encode_image(preprocess(Image.open(flower))[None], normalize=True)[0].numpy()
        text = pair.encode_text(tokens, normalize=True)[0].numpy()
    model = load(import_model(folder, tmp_path / "model").folder)
    assert model.config.image_size == 160
    assert np.abs(model.embed(flower) - image).max() < 1e-5
    assert np.abs(model.embed_text("A red, DOG!") - text).max() < 1e-5
    assert (tmp_path / "model" / "tokenizer.json").read_text() == (folder / "tokenizer.json").read_text()


def test_a_saved_pair_is_the_same_pair(clip: Path, tmp_path: Path) -> None:
    model = load(clip)
    model.save_pretrained(tmp_path / "copy")
    again = load(tmp_path / "copy")
    assert again.fingerprint == model.fingerprint
    assert np.array_equal(again.embed_text(TEXTS), model.embed_text(TEXTS))
    assert sorted(path.name for path in clip.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert "embed_text" in (clip / "README.md").read_text()


def test_a_short_name_finds_the_pair(clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKALIKE_MODELS", str(tmp_path))
    import_model(clip_folder, "words", architecture="open_clip", license="mit")
    assert load("words").config.license == "mit"
    with pytest.raises(InputError, match="format of open_clip"):
        locate.find(clip_folder)


def test_an_exchanged_tokenizer_is_refused(clip: Path, tmp_path: Path) -> None:
    shutil.copytree(clip, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    path.write_text(path.read_text().replace("dog</w>", "god</w>"))
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        load(tmp_path / "model")
    path.unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json: cannot be read"):
        load(tmp_path / "model")


def test_a_model_without_words_says_which_have_them() -> None:
    with pytest.raises(NoTextError) as caught:
        load("default").embed_text("a dog")
    assert "open_clip" in caught.value.remedy


@pytest.mark.parametrize("text", ["", "  ", "x" * 10_001])
def test_a_text_must_have_words(clip: Path, text: str) -> None:
    with pytest.raises(InputError):
        load(clip).embed_text(["a dog", text])


def test_a_pair_does_not_predict_by_itself(clip: Path, flower: Path) -> None:
    with pytest.raises(InputError):
        load(clip).predict(flower)
    with pytest.raises(InputError, match="no classifier"):
        create_model("open_clip", 5, flat(CLIP))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"model_cfg": {**CLIP, "embed_dim": 8}}, "text_projection"),
        ({"model_cfg": {**CLIP, "text_cfg": {"hf_model_name": "roberta-base"}}}, "hf_model_name"),
        ({"model_cfg": {**CLIP, "text_cfg": {**CLIP["text_cfg"], "hf_tokenizer_name": "a/b"}}}, r"tokenizer\.json"),
        ({"model_cfg": CLIP, "preprocess_cfg": {"resize_mode": "longest"}}, "longest"),
        ({"model_cfg": {"embed_dim": 8}}, r"open_clip_config\.json"),
        ({"model_cfg": {**CLIP, "unknown": 3}}, "unknown"),
        ({"model_cfg": {**CLIP, "embed_dim": 200_000}}, "far more weights"),
        ({"model_cfg": CLIP, "preprocess_cfg": 3}, r"open_clip_config\.json"),
        ({"model_cfg": CLIP, "preprocess_cfg": {"interpolation": "random"}}, r"open_clip_config\.json"),
        ({"model_cfg": {**CLIP, "text_cfg": {**CLIP["text_cfg"], "tokenizer_kwargs": 3}}}, r"open_clip_config\.json"),
        ({"model_cfg": {**CLIP, "text_cfg": {**CLIP["text_cfg"], "hf_tokenizer_name": 3}}}, "hf_tokenizer_name"),
    ],
)
def test_a_folder_that_does_not_fit_says_where(
    clip_folder: Path, tmp_path: Path, change: dict[str, object], fault: str
) -> None:
    shutil.copytree(clip_folder, tmp_path / "clip")
    (tmp_path / "clip" / "open_clip_config.json").write_text(json.dumps(change))
    with pytest.raises(InputError, match=fault):
        import_model(tmp_path / "clip", tmp_path / "model")


@pytest.mark.parametrize("name", ["hf-hub:stranger/repo", "local-dir:/tmp", "no_such_network", 3])
def test_an_image_tower_that_timm_would_fetch_is_refused(name: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm.create_model", lambda *given, **options: pytest.fail("timm was asked to make it"))
    with pytest.raises(InputError):
        create_model("open_clip", 0, {**flat(SIGLIP), "vision_cfg.timm_model_name": name})


@pytest.mark.parametrize(
    "change",
    [{"vision_cfg": 3}, {"text_cfg": "a"}, {"text_cfg.context_length": 10**6}, {"text_cfg.context_length": "x"}],
)
def test_options_of_wrong_types_or_sizes(change: dict[str, object]) -> None:
    options = {
        key: value for key, value in flat(CLIP).items() if not key.startswith(tuple(f"{one}." for one in change))
    }
    with pytest.raises(InputError, match="open_clip"):
        create_model("open_clip", 0, options | change)


def test_a_pair_is_not_run_in_bfloat16_unasked(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "has_bfloat16", lambda: True)
    monkeypatch.setattr(inference, "is_faster_in_bfloat16", lambda *given: True)
    model = load(clip)
    assert not inference.PreparedNetwork(model.network, model.config, "auto").bfloat16


def test_options_of_sections_are_joined_by_dots() -> None:
    assert nested(flat(SIGLIP)) == SIGLIP
    assert flat(CLIP)["vision_cfg.image_size"] == 32
