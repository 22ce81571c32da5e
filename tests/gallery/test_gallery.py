"""The gallery as a person holds it: made, filled, asked in every way, changed, and refused what is not its own."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lookalike
from lookalike.errors import InputError
from lookalike.gallery.gallery import Gallery
from lookalike.gallery.query import QueryVector
from lookalike.gallery.store.base import Hit, SearchResult
from small_gallery import album, model_folder, picture, rows

DIM = 32


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("runs") / "model", threshold=0.95)


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("others") / "model", seed=1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return album(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def filled(model: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("filled") / "photos.gallery"
    with Gallery.create(place, model) as gallery:
        assert gallery.add(photos).added == 12
    return place


@pytest.fixture
def gallery(filled: Path) -> Iterator[Gallery]:
    with Gallery.open(filled) as opened:
        yield opened


@pytest.fixture
def own(filled: Path, tmp_path: Path) -> Iterator[Gallery]:
    """A gallery to change."""
    shutil.copytree(filled, tmp_path / "own")
    with Gallery.open(tmp_path / "own", write=True) as opened:
        yield opened


def names(found: SearchResult) -> list[str]:
    return ["/".join(Path(hit.path).parts[-2:]) for hit in found]


def refusal(*arguments: object, **options: object) -> InputError:
    with pytest.raises(InputError) as caught:
        Gallery.open(*arguments, **options)  # type: ignore[arg-type]
    assert caught.value.remedy
    return caught.value


# Asking


def test_a_picture_finds_what_is_most_like_it_and_not_itself(gallery: Gallery, photos: Path, model: Path) -> None:
    found = gallery.search(photos / "dog" / "2.png")
    assert found.exact
    assert len(found) == 10
    assert "dog/2.png" not in names(found)
    assert found.same == []
    paths = [hit.path for hit in found]
    vectors = lookalike.load(model).embed([photos / "dog" / "2.png", *paths])
    assert [hit.score for hit in found] == pytest.approx((vectors[1:] @ vectors[0]).tolist(), abs=5e-3)


def test_a_picture_may_come_in_any_form(gallery: Gallery, photos: Path) -> None:
    path = photos / "cat" / "0.png"
    image = Image.open(path)
    forms = [path, str(path), path.read_bytes(), image, np.array(image)]
    answers = gallery.search(forms)
    assert len(answers) == len(forms)
    for form, answer in zip(forms, answers, strict=True):
        own = [] if answer in answers[:3] else ["cat/0.png"]  # of pixels it is not known which file they are of
        assert names(answer) == [*own, *names(answers[0])][:10]
        assert names(gallery.search(form)) == names(answer)  # type: ignore[call-overload]
    assert [[hit.path for hit in answer.same] for answer in answers] == [[], [], [str(path)], [], []]


def test_copies_of_the_file_that_is_asked_with_are_told_apart(filled: Path, photos: Path, tmp_path: Path) -> None:
    original = photos / "cat" / "0.png"
    copies = [Path(shutil.copy(original, tmp_path / f"{place}.png")) for place in range(40)]
    with Gallery.open(shutil.copytree(filled, tmp_path / "own.gallery"), write=True) as gallery:
        gallery.add(*copies[1:])
        (row,) = gallery.store.by_path([str(original)]).values()
        others = [hit.id for hit in gallery.search(row.id, k=11)]
        assert len(others) == 11
        for query, own in (
            (row.id, str(original)),
            (original, str(original)),
            (os.path.relpath(original), str(original)),
            (copies[0], ""),  # no row
            (copies[1], str(copies[1])),
            (original.read_bytes(), ""),
        ):
            every = {str(original), *map(str, copies[1:])}
            found = gallery.search(query, k=45)
            assert [hit.id for hit in found] == others
            assert {hit.path for hit in found.same} == every - {own}
            found = gallery.search(query, k=3)
            assert [hit.id for hit in found] == others[:3]
            assert len({hit.path for hit in found.same} & (every - {own})) == 3, "at most k"
        several = gallery.search([original, photos / "emu" / "1.png", row.id], k=11)
        assert [[hit.id for hit in each] for each in (several[0], several[2])] == [others] * 2
        assert (len(several[1]), several[1].same) == (11, [])
        (vector,) = gallery.store.vectors([row.id])
        found = gallery.search(QueryVector(vector, digest=row.digest), k=11)
        assert ([hit.id for hit in found], len(found.same)) == (others, 11)
        labelled = gallery.search(original, k=3, filter={"label": "dog"})
        assert (len(labelled), labelled.same) == (3, [])


def test_a_pipe_is_read_once(gallery: Gallery, photos: Path, tmp_path: Path) -> None:
    data, pipe = (photos / "cat" / "0.png").read_bytes(), tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=[data], daemon=True)
    writer.start()
    found = gallery.search(pipe)
    assert found == gallery.search(data)
    writer.join()


def test_a_row_is_asked_by_its_id_and_is_not_its_own_answer(gallery: Gallery) -> None:
    (first, *_) = gallery.store.rows()
    found = gallery.search(first.id, k=3)
    assert len(found) == 3
    assert first.id not in [hit.id for hit in found]
    by_vector = gallery.search(gallery.store.vectors([first.id])[0], k=4)
    assert [hit.id for hit in by_vector] == [first.id, *(hit.id for hit in found)]
    assert gallery.search(np.int64(first.id), k=3) == found  # type: ignore[call-overload]


def test_several_of_several_kinds_are_answered_in_order(gallery: Gallery, photos: Path) -> None:
    ids = [row.id for row in gallery.store.rows()]
    vector = gallery.store.vectors([ids[5]])[0]
    answers = gallery.search([ids[3], photos / "emu" / "1.png", vector], k=2)
    assert [len(each) for each in answers] == [2, 2, 2]
    assert "emu/1.png" not in names(answers[1])
    assert answers[2][0].id == ids[5]
    assert ids[3] not in [hit.id for hit in answers[0]]
    assert gallery.search([]) == []
    many = gallery.search(gallery.store.vectors(ids), k=1)
    assert [each[0].id for each in many] == ids


def test_a_vector_of_any_length_and_float_is_taken_for_its_direction(gallery: Gallery) -> None:
    (row, *_) = gallery.store.rows()
    vector = gallery.store.vectors([row.id])[0]
    for given in (vector * 7, vector.astype(np.float16), vector.astype(np.float64) * 1e-9):
        hit = gallery.search(given, k=1)[0]
        assert (hit.id, hit.score) == (row.id, pytest.approx(1, abs=1e-3))


def test_filters_hold(gallery: Gallery, photos: Path) -> None:
    found = gallery.search(photos / "dog" / "0.png", filter={"label": ["cat", "emu"]})
    assert {hit.label for hit in found} == {"cat", "emu"}
    assert len(found) == 8


def test_a_threshold_is_used_only_if_it_is_asked_for(gallery: Gallery, photos: Path, tmp_path: Path) -> None:
    query = Image.open(photos / "dog" / "0.png")
    every = gallery.search(query, k=12)
    assert (len(every), every.threshold) == (12, None), "the model's own threshold is not used"
    scores = [hit.score for hit in every]
    assert 0 < sum(score >= 0.95 for score in scores) < 12
    with Gallery.open(shutil.copytree(str(gallery.location), tmp_path / "own"), write=True) as own:
        own.store.calibrated(replace(own.about, own_threshold=0.95))
        for threshold, least in ((None, -1), ("calibrated", 0.95), (scores[3] - 1e-4, scores[3] - 1e-4)):
            found = own.search(query, k=12, threshold=threshold)  # type: ignore[call-overload]
            assert found.threshold == (None if threshold is None else least)
            assert [hit.score for hit in found] == [score for score in scores if score >= least]


def test_a_threshold_that_is_not_known_is_missed_only_by_name(other_model: Path, tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "g", other_model) as gallery:
        gallery.store.add(rows(5, DIM))
        vector = gallery.store.vectors([1])[0]
        assert len(gallery.search(vector)) == 5
        with pytest.raises(InputError, match=str(tmp_path / "g")):
            gallery.search(vector, threshold="calibrated")
        for wrong in (1.5, float("nan"), "high"):
            with pytest.raises(InputError, match=str(wrong)):
                gallery.search(vector, threshold=wrong)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (np.zeros(DIM), "vector 0 has no direction"),
        (np.full(DIM, np.nan), "vector 0 has no direction"),
        (np.ones(DIM + 1), f"vector 0 has {DIM + 1} numbers, the vectors of this gallery have {DIM}"),
        (np.ones((2, 3, 4)), "vector 0 has 2 × 3 × 4 numbers"),
        (np.ones((2, DIM - 1)), f"vector 0 has {DIM - 1} numbers"),
        (10_000, "no item 10000"),
        ([3.5], "a float"),
        ([True], "a bool"),
        (b"no picture", "not an image"),
        ("gone.png", "cannot be read"),
        (np.ones((4, 4), np.int32), "is not an image"),
    ],
)
def test_what_cannot_be_asked_is_refused(query: object, words: str, gallery: Gallery) -> None:
    with pytest.raises(InputError, match=words):
        gallery.search(query)  # type: ignore[call-overload]


def test_k_below_one_is_refused(gallery: Gallery) -> None:
    with pytest.raises(InputError, match=r"k .* 0"):
        gallery.search(1, k=0)


# Its model and no other


def test_the_model_is_remembered_and_loaded_when_a_picture_is_to_be_understood(filled: Path, model: Path) -> None:
    code = (
        "import sys, lookalike\n"
        f"gallery = lookalike.Gallery.open({str(filled)!r})\n"
        "assert len(gallery.search(1, k=3)) == 3\n"
        "assert not gallery.check().problems and gallery.info()['items'] == 12\n"
        "assert 'torch' not in sys.modules, 'torch was loaded'\n"
        "picture = gallery.store.get([1])[0].path\n"
        "assert sorted(hit.id for hit in gallery.search(picture, k=12)) == [*range(2, 13)]\n"
        "assert 'torch' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with Gallery.open(filled) as gallery:
        assert gallery.info()["model"]["location"] == str(model.resolve())


def test_a_model_that_is_gone_or_another_now_is_named(
    photos: Path, model: Path, other_model: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(model, tmp_path / "model")
    with Gallery.create(tmp_path / "g", moved) as gallery:
        gallery.add(photos / "cat")
        mark = gallery.about.fingerprint
    other = lookalike.load(other_model).fingerprint
    moved.rename(tmp_path / "elsewhere")
    with Gallery.open(tmp_path / "g") as gallery:
        assert gallery.search(1, k=1).hits
        with pytest.raises(InputError, match=rf"{mark[:12]}.*no such folder"):
            gallery.search(photos / "cat" / "0.png")
    shutil.copytree(other_model, moved)
    with (
        Gallery.open(tmp_path / "g") as gallery,
        pytest.raises(InputError, match=rf"needs the model {mark[:12]}.*{other[:12]}"),
    ):
        gallery.search(photos / "cat" / "0.png")
    with Gallery.open(tmp_path / "g", tmp_path / "elsewhere") as gallery:
        assert len(gallery.search(photos / "cat" / "0.png")) == 3


def test_another_model_is_refused_by_name(filled: Path, other_model: Path, model: Path) -> None:
    mark, other = lookalike.load(model).fingerprint, lookalike.load(other_model).fingerprint
    for given in (other_model, lookalike.load(other_model)):
        fault = refusal(filled, given)
        assert other[:12] in fault.message
        assert mark[:12] in fault.remedy
        assert str(model) in fault.remedy


def test_a_vector_declared_to_be_of_another_model_is_refused_by_name(gallery: Gallery, other_model: Path) -> None:
    vector = gallery.store.vectors([1])[0]
    assert len(gallery.search(QueryVector(vector, fingerprint=gallery.about.fingerprint))) == 10
    other = lookalike.load(other_model).fingerprint
    with pytest.raises(InputError, match=other[:12]) as caught:
        gallery.search(QueryVector(vector, fingerprint=other))
    assert gallery.about.fingerprint[:12] in caught.value.remedy


def test_a_model_in_memory_is_taken_but_its_place_is_not_known(model: Path, photos: Path, tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "g", lookalike.load(model)) as gallery:
        gallery.add(photos / "emu")
    with Gallery.open(tmp_path / "g") as gallery, pytest.raises(InputError, match=str(tmp_path / "g")):
        gallery.search(photos / "emu" / "0.png")


def test_what_is_there_already_or_not_there_is_refused(filled: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        Gallery.create(filled, model)
    with pytest.raises(InputError, match="no such folder"):
        Gallery.create(tmp_path / "new", tmp_path / "no" / "model")
    assert list(tmp_path.iterdir()) == []
    refusal(tmp_path / "nowhere")


# Changing


def test_removing_by_id_path_and_filter(own: Gallery, photos: Path) -> None:
    ids = [row.id for row in own.store.rows()]
    assert own.remove([ids[0], ids[0], 10_000]) == 1
    kept = [row.path for row in own.store.rows(filter={"label": "emu"})]
    assert own.remove(paths=[kept[0], "/no/such.png"]) == 1
    assert own.remove(filter={"label": "dog"}) == 4
    assert own.remove() == 0
    assert len(own) == 6
    assert {row.label for row in own.store.rows()} == {"cat", "emu"}
    with pytest.raises(InputError, match="empty filter"):
        own.remove(filter={})
    assert len(own) == 6
    assert own.add(photos).added == 6


def test_labels_are_changed(own: Gallery) -> None:
    assert own.update(filter={"label": "cat"}, label="kitten") == 4
    assert own.update([1], metadata={"seen": True}) == 1
    row = own.store.get([1])[0]
    assert row is not None
    assert (row.label, dict(row.metadata)) == ("kitten", {"seen": True})
    assert own.store.count({"label": "cat"}) == 0
    with pytest.raises(InputError, match="empty filter"):
        own.update(filter={}, label="all")


def test_a_gallery_opened_to_read_is_not_changed(gallery: Gallery) -> None:
    for change in (lambda: gallery.remove([1]), lambda: gallery.update([1], label="x"), gallery.compact):
        with pytest.raises(InputError):
            change()
    assert len(gallery) == 12


def test_the_same_pictures_are_not_added_twice(own: Gallery, photos: Path, tmp_path: Path) -> None:
    report = own.add(photos)
    assert (report.added, report.skipped) == (0, 12)
    assert own.add(picture(tmp_path / "new.png", 999)).added == 1
    own.compact()
    assert len(own) == 13
    assert own.check().problems == []


# Telling


def test_info_says_what_it_is(gallery: Gallery, filled: Path, model: Path) -> None:
    tree = gallery.info()
    assert (tree["gallery"], tree["items"], tree["failed"]) == (str(filled), 12, 0)
    assert tree["model"] == {
        "location": str(model.resolve()),
        "fingerprint": lookalike.load(model).fingerprint,
        "dim": DIM,
        "image_size": 32,
        "threshold": 0.95,
        "calibrated_on": "images like those that the model was trained on",
    }
    assert (tree["threshold"], tree["calibrated_on"]) == (None, None)
    assert tree["store"]["bytes"] > 0


def test_verify_measures_recall_where_it_is_asked(gallery: Gallery) -> None:
    assert (gallery.check().problems, gallery.check().recall) == ([], None)
    assert gallery.check(recall=True, sample=5).recall == 1.0


def test_the_gallery_is_a_public_name() -> None:
    assert lookalike.Gallery is Gallery


def test_a_picture_that_has_no_file_is_found_as_well(gallery: Gallery, photos: Path) -> None:
    file = io.BytesIO()
    Image.open(photos / "emu" / "3.png").save(file, "BMP")
    assert names(gallery.search(file.getvalue(), k=1)) == ["emu/3.png"]


# Results in a program and in a notebook


def test_a_result_is_a_sequence_of_hits(gallery: Gallery) -> None:
    result = gallery.search(1, k=3)
    assert [result[0], *result[1:]] == list(result) == result.hits
    assert (len(result), result[0] in result, result.threshold) == (3, True, None)
    first = result[0]
    assert first == Hit.of(gallery.store.get([first.id])[0], first.score)  # type: ignore[arg-type]
    assert first.path in repr(result)


def test_a_notebook_shows_hits_with_thumbnails(filled: Path) -> None:
    with Gallery.open(filled) as gallery:
        result = gallery.search(1, k=3)
        shown = result._repr_html_()
        assert str(filled) in gallery._repr_html_()
    assert shown.count("<img") == 3
    assert all(f"{hit.score:.3f}" in shown and f"<b>{hit.label}</b>" in shown for hit in result)
    assert result._repr_html_().count("<img") == 0, "the gallery is closed"
    odd = SearchResult([replace(result[0], label="<b>", path='a"<i>.png')], True)._repr_html_()
    assert "<i>" not in odd
    assert "<b><b>" not in odd


def test_vectors_are_given_by_id(gallery: Gallery) -> None:
    vectors = gallery.vectors([3, 1])
    assert (vectors.shape, vectors.dtype) == ((2, DIM), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    np.testing.assert_array_equal(vectors[1], gallery.vectors([1])[0])
    with pytest.raises(InputError, match="99"):
        gallery.vectors([99])


def test_items_as_a_pandas_table(own: Gallery) -> None:
    pytest.importorskip("pandas")
    own.update([1], metadata={"year": 2012})
    table = own.to_pandas()
    assert list(table.index) == [item.id for item in own.store.rows()]
    assert table.loc[1, "path"] == own.store.get([1])[0].path  # type: ignore[union-attr]
    assert (table.loc[1, "metadata.year"], table["label"].nunique()) == (2012, 3)
    own.remove(list(table.index))
    assert len(own.to_pandas()) == 0


def test_without_pandas_its_name_is_said(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match="pandas") as refused:
        gallery.to_pandas()
    assert "[pandas]" in refused.value.remedy
