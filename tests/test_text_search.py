"""Searching a gallery with words, in Python and on the command line; both towers of a pair as ONNX."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import lookalike
from lookalike.cli.main import app
from lookalike.errors import InputError
from lookalike.gallery.gallery import Gallery
from lookalike.models.export_text import export_text, text_agreement
from lookalike.models.onnx_text import OnnxTextTower
from lookalike.models.pretrained import load
from lookalike.models.runtime import OnnxRuntime, TorchRuntime
from lookalike.models.text import NoTextError
from small_gallery import album, model_folder

WORDS = "a dog on a beach"


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return album(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def gallery_of_words(tmp_path_factory: pytest.TempPathFactory, clip: Path, photos: Path) -> Path:
    """Twelve images, with vectors of a pair."""
    place = tmp_path_factory.mktemp("words") / "photos.gallery"
    with Gallery.create(place, clip) as gallery:
        gallery.add(photos)
    return place


@pytest.fixture(scope="session")
def gallery_without_words(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    with Gallery.create(folder / "photos.gallery", model_folder(folder / "model")) as gallery:
        gallery.add(photos)
    return folder / "photos.gallery"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_hits_of_words_are_nearest_to_their_vector(gallery_of_words: Path, clip: Path) -> None:
    with Gallery.open(gallery_of_words) as gallery:
        found = gallery.search(lookalike.Text(WORDS), k=12)
        vectors = gallery.store.vectors([hit.id for hit in found])
    cosines = vectors @ load(clip).embed_text(WORDS)
    assert len(found) == 12
    assert np.allclose([hit.score for hit in found], cosines, atol=1e-3)
    assert list(cosines) == sorted(cosines, reverse=True)


def test_words_are_a_part_of_a_query(gallery_of_words: Path, photos: Path, clip: Path) -> None:
    image = sorted(photos.glob("*/*"))[0]
    with Gallery.open(gallery_of_words) as gallery:
        query = lookalike.Query(like=[image, lookalike.Text(WORDS)], unlike=lookalike.Text("a cat"))
        found = gallery.search([query, lookalike.Text(WORDS)], k=3, exact=True)
        best = gallery.store.vectors([found[0][0].id])[0]
    model = load(clip)
    like = (model.embed(image) + model.embed_text(WORDS)) / 2 - 0.5 * model.embed_text("a cat")
    assert found[0][0].score == pytest.approx(float(best @ like / np.linalg.norm(like)), abs=1e-3)
    assert len(found) == 2


def test_what_names_no_file_is_words(gallery_of_words: Path, photos: Path) -> None:
    answer = run("gallery", "search", gallery_of_words, WORDS, "--json")
    assert answer.exit_code == 0, answer.output
    first = json.loads(answer.stdout)["queries"][0]
    same = json.loads(run("gallery", "search", gallery_of_words, "--text", WORDS, "--json").stdout)["queries"][0]
    assert first["query"] == {"text": WORDS}
    assert first == same
    mixed = run("gallery", "search", gallery_of_words, sorted(photos.glob("*/*"))[0], WORDS, "--together")
    assert mixed.exit_code == 0
    assert f'+ "{WORDS}"' in mixed.stdout


def test_what_is_named_like_an_image_is_no_words(gallery_of_words: Path) -> None:
    answer = run("gallery", "search", gallery_of_words, "missing.jpg")
    assert isinstance(answer.exception, InputError)
    assert "missing.jpg" in answer.exception.message


def test_words_without_a_text_tower_are_refused(gallery_without_words: Path) -> None:
    answer = run("gallery", "search", gallery_without_words, WORDS)
    assert isinstance(answer.exception, InputError)
    assert "no such file" in answer.exception.message
    assert "text tower" in answer.exception.message
    assert isinstance(run("gallery", "search", gallery_without_words, "--text", WORDS).exception, NoTextError)
    with Gallery.open(gallery_without_words) as gallery, pytest.raises(NoTextError):
        gallery.search(lookalike.Text(WORDS))


def test_the_results_page_shows_the_words(gallery_of_words: Path, tmp_path: Path) -> None:
    page = tmp_path / "hits.html"
    assert run("gallery", "search", gallery_of_words, "--text", "a <b> dog", "--html", page).exit_code == 0
    assert "a &lt;b&gt; dog" in page.read_text()


def test_runtimes_agree_on_images_and_words(clip: Path, clip_onnx: Path, photos: Path) -> None:
    from lookalike.image import decode

    model = load(clip)
    images = [decode(path, model.config.image_size, crop_mode=model.config.crop_mode) for path in photos.glob("*/*")]
    onnx, torch = OnnxRuntime(clip, cache=clip_onnx), TorchRuntime(model)
    for ours, theirs in [
        (model.embed(np.stack(images)), onnx.embed(np.stack(images))),
        (model.embed(np.stack(images)), torch.embed(np.stack(images))),
        (model.embed_text([WORDS, "a cat"]), onnx.embed_text([WORDS, "a cat"])),
        (model.embed_text([WORDS, "a cat"]), torch.embed_text([WORDS, "a cat"])),
    ]:
        assert (ours * theirs).sum(1).min() > 0.9999
    assert onnx.has_text
    assert torch.has_text


def test_the_file_of_a_text_tower_holds_its_tokenizer(clip: Path, clip_onnx: Path, tmp_path: Path) -> None:
    (path,) = clip_onnx.glob("*-text.onnx")
    tower = OnnxTextTower(path)
    assert text_agreement(load(clip), tower) > 0.9999
    assert tower.embed([]).shape == (0, load(clip).embedding_dim)
    with pytest.raises(InputError):
        tower.embed([" "])
    with pytest.raises(NoTextError):
        export_text(load("default"), tmp_path / "default-text.onnx")


def test_export_writes_both_towers(clip: Path, tmp_path: Path) -> None:
    answer = run("export", clip, "-o", tmp_path / "clip.onnx", "--json")
    assert answer.exit_code == 0, answer.output
    said = json.loads(answer.stdout)
    assert said["agreement"]["cosine"] > 0.9999
    assert said["text"]["cosine"] > 0.9999
    assert Path(said["text"]["file"]) == tmp_path / "clip-text.onnx"


def test_labels_are_chosen_by_the_cosines_of_their_prompts(clip: Path, photos: Path) -> None:
    image = sorted(photos.glob("*/*"))[0]
    model, labels = load(clip), ["cat", "dog", "a red car"]
    answer = run("predict", image, "--model", clip, "--labels", "cat, dog,a red car", "--json")
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.stdout)["images"][0]["predictions"]
    texts = model.embed_text(["a photo of a cat", "a photo of a dog", "a photo of a red car"])
    logits = texts @ model.embed(image) / 0.07
    expected = np.exp(logits) / np.exp(logits).sum()
    assert [each["label"] for each in found] == [labels[i] for i in np.argsort(-expected)]
    assert np.allclose([each["probability"] for each in found], np.sort(expected)[::-1], atol=1e-4)
    drawn = model.predict_labels([image], labels, k=1, prompt="a drawing of the {}")[0]
    assert len(drawn) == 1


@pytest.mark.parametrize(
    "given", [["--labels", "cat,,dog"], ["--labels", "cat,cat"], ["--labels", "cat", "--prompt", "a"]]
)
def test_labels_that_are_none_are_refused(clip: Path, photos: Path, given: list[str]) -> None:
    image = sorted(photos.glob("*/*"))[0]
    assert isinstance(run("predict", image, "--model", clip, *given).exception, InputError)


def test_labels_need_a_text_tower(photos: Path) -> None:
    image = sorted(photos.glob("*/*"))[0]
    assert isinstance(run("predict", image, "--labels", "cat,dog").exception, NoTextError)
