"""Labels by a vote among the neighbours in a gallery."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from stores import ABOUT, new_row, units

from lookalike import Query
from lookalike.errors import InputError
from lookalike.gallery.gallery import Gallery
from lookalike.gallery.store.sqlite import SqliteStore
from lookalike.gallery.vote import TEMPERATURE, labelled_only, vote
from small_gallery import album, model_folder, picture


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("runs") / "model")


@pytest.fixture
def gallery(model: Path, tmp_path: Path) -> Gallery:
    with Gallery.create(tmp_path / "photos.gallery", model) as gallery:
        gallery.add(album(tmp_path / "photos"))
    return Gallery.open(tmp_path / "photos.gallery", write=True)


def slow_shares(labels: list[str | None], scores: list[float]) -> dict[str | None, float]:
    """The share of each label: its weights among all."""
    weights = [math.exp(score / TEMPERATURE) for score in scores]
    return {
        label: sum(weight for weight, own in zip(weights, labels, strict=True) if own == label) / sum(weights)
        for label in set(labels)
    }


def test_shares_are_the_weights_of_the_neighbours(gallery: Gallery, tmp_path: Path) -> None:
    path = picture(tmp_path / "new.png", 4711)
    vote = gallery.predict(path, neighbours=7)
    found = gallery.search(path, k=7)
    shares = slow_shares([hit.label for hit in found], [hit.score for hit in found])
    assert {each.label: each.share for each in vote} == pytest.approx(shares)
    assert [each.share for each in vote] == sorted((each.share for each in vote), reverse=True)
    assert sum(each.count for each in vote) == 7
    assert list(vote.neighbours) == found.hits
    assert (vote.label, vote.share, vote.unknown) == (vote[0].label, vote[0].share, False)
    first, second = gallery.predict([path, Query(like=[1, 2])], k=1, neighbours=3)
    assert (len(first), len(second)) == (1, 1)
    assert vote.label in repr(vote)
    assert vote.label in vote._repr_html_()


def test_only_labelled_items_vote_and_not_the_image_itself(gallery: Gallery, tmp_path: Path) -> None:
    near = [picture(tmp_path / "more" / f"{i}.png", 4711) for i in range(3)]  # copies of one image, without a label
    gallery.add(*near, folder_labels=False)
    vote = gallery.predict(picture(tmp_path / "new.png", 4711), neighbours=5)
    assert len(vote.neighbours) == 5
    assert all(hit.label is not None for hit in vote.neighbours)
    own = tmp_path / "photos" / "cat" / "0.png"
    for query in (own, own.read_bytes(), 1):
        assert str(own) not in {hit.path for hit in gallery.predict(query, neighbours=50).neighbours}
    assert len(gallery.predict(own, neighbours=50).neighbours) == 11


def test_any_number_of_labels_can_vote(tmp_path: Path) -> None:
    labels = [f"{'x' * 100} {i}" for i in range(10_001)]  # more than a filter takes, in number and in bytes
    with SqliteStore.create(tmp_path / "labels.gallery", ABOUT) as store:
        rows = zip([None, *labels], units(len(labels) + 1), strict=True)
        store.add([new_row(label or "bare", vector, label=label) for label, vector in rows])
        labelled = labelled_only(store, "labels.gallery")
        nearest, passing = (store.search(units(1), 20, filter=filter)[0].hits for filter in (None, labelled))
    assert nearest[0].path == "bare"
    assert [hit.id for hit in passing[:19]] == [hit.id for hit in nearest[1:]]


def test_items_without_a_label_have_no_vote(gallery: Gallery) -> None:
    first, second = gallery.search(1, 2).hits
    counted = vote([replace(first, label=None), second], 5)
    assert (counted.label, counted.share, counted.neighbours) == (second.label, 1.0, (second,))


def test_without_a_neighbour_above_the_threshold_an_image_is_unknown(gallery: Gallery) -> None:
    vote = gallery.predict(1, threshold=1.0)
    assert vote.unknown
    assert (vote.label, vote.share, len(vote)) == (None, 0.0, 0)
    gallery.store.calibrated(replace(gallery.about, own_threshold=-1.0, own_rows=12, own_labels=3))
    assert len(gallery.predict(1, threshold="calibrated").neighbours) == 11


def test_what_cannot_vote_is_refused(gallery: Gallery, model: Path, tmp_path: Path) -> None:
    for options in ({"k": 0}, {"neighbours": 0}):
        with pytest.raises(InputError, match="at least 1"):
            gallery.predict(1, **options)  # type: ignore[arg-type]
    with Gallery.create(tmp_path / "bare.gallery", model) as bare:
        bare.add(tmp_path / "photos", folder_labels=False)
        with pytest.raises(InputError, match="label") as caught:
            bare.predict(1)
    assert "bare.gallery" in caught.value.message
