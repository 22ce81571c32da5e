"""A query of several images, "less like" others, or of a part of an image; and k-reciprocal re-ranking."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lookalike
from lookalike import Query
from lookalike.errors import InputError
from lookalike.gallery.gallery import Gallery
from lookalike.gallery.query import QueryVector, UnknownItemError, parse_box
from lookalike.gallery.reranking import K1, K2, MAX_RERANKED, ORIGINAL_SHARE, k_reciprocal_order
from small_gallery import album, model_folder, picture


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return album(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("runs") / "model")


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


def slow_vector(likes: list[np.ndarray], unlikes: list[np.ndarray], weight: float) -> np.ndarray:
    """The vector of a query, number by number."""
    dim = len(likes[0])
    vector = []
    for axis in range(dim):
        number = sum(float(like[axis]) / np.sqrt(sum(float(x) ** 2 for x in like)) for like in likes) / len(likes)
        for unlike in unlikes:
            length = np.sqrt(sum(float(x) ** 2 for x in unlike))
            number -= weight * float(unlike[axis]) / length / len(unlikes)
        vector.append(number)
    total = np.sqrt(sum(number**2 for number in vector))
    return np.array([number / total for number in vector])


# Several images


@pytest.mark.parametrize(("unlike", "weight"), [(0, 0.5), (1, 0.5), (2, 1.25), (2, 0.0)])
def test_the_vector_of_a_query_is_the_mean_of_likes_minus_the_weighted_mean_of_unlikes(
    gallery: Gallery, photos: Path, model: Path, unlike: int, weight: float
) -> None:
    like_file, unlike_file = photos / "cat" / "0.png", photos / "emu" / "3.png"
    long = 7.5 * gallery.vectors([6])[0]  # a part of any length counts once
    query = Query(like=[like_file, 2, long], unlike=[unlike_file, 9][:unlike], unlike_weight=weight)
    of_files = lookalike.load(model).embed([like_file, unlike_file])
    of_items = gallery.vectors([2, 6, 9])
    expected = slow_vector([of_files[0], of_items[0], of_items[1]], [of_files[1], of_items[2]][:unlike], weight)
    found = gallery.search(query, k=100)
    assert [hit.score for hit in found] == pytest.approx(
        (gallery.vectors([hit.id for hit in found]) @ expected).tolist(), abs=2e-3
    )
    assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)


def test_items_and_files_of_a_query_are_no_hits(gallery: Gallery, photos: Path) -> None:
    (one,) = gallery.store.by_path([str(photos / "cat" / "0.png")]).values()
    (other,) = gallery.store.by_path([str(photos / "emu" / "3.png")]).values()
    found = gallery.search(Query(like=[Path(one.path), 2], unlike=[other.path, 9]), k=100)
    assert len(found) == 8
    assert {one.id, other.id, 2, 9}.isdisjoint(hit.id for hit in found)
    assert not found.same


def test_copies_of_likes_are_the_same_and_copies_of_unlikes_are_left_out(gallery: Gallery, photos: Path) -> None:
    like, unlike = photos / "cat" / "0.png", photos / "emu" / "3.png"
    found = gallery.search(Query(like=[like.read_bytes(), 2], unlike=unlike.read_bytes()), k=100)
    assert [hit.path for hit in found.same] == [str(like)]
    assert {str(like), str(unlike)}.isdisjoint(hit.path for hit in found)
    assert len(found) == 9


def test_a_query_of_one_image_is_that_image(gallery: Gallery, photos: Path) -> None:
    path = photos / "dog" / "1.png"
    plain, single, listed = gallery.search(path), gallery.search(Query(path)), gallery.search(Query(like=[path]))
    assert plain == single == listed
    several = gallery.search([path, Query(like=[1, 2]), 3], k=3)
    assert [one.hits for one in several] == [
        gallery.search(one, k=3).hits
        for one in (path, Query(like=[1, 2]), 3)  # type: ignore[call-overload]
    ]


def test_a_list_is_still_several_queries(gallery: Gallery) -> None:
    assert len(gallery.search([1, 2])) == 2
    assert gallery.search(Query(like=[1, 2])).hits != gallery.search(1).hits


def test_opposite_parts_have_no_direction(gallery: Gallery) -> None:
    vector = gallery.vectors([1])[0]
    with pytest.raises(InputError, match="no direction"):
        gallery.search(Query(like=vector, unlike=QueryVector(vector), unlike_weight=1))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"like": []}, "like"),
        ({"like": 1, "unlike_weight": -1.0}, "unlike_weight"),
        ({"like": 1, "unlike_weight": float("nan")}, "unlike_weight"),
        ({"like": 1, "box": (0, 0, 1, 1)}, "no images"),
        ({"like": ["a.jpg", "b.jpg"], "box": (0, 0, 1, 1)}, "2 images"),
        ({"like": "a.jpg", "box": (4, 0, 4, 1)}, "4,0,4,1"),
        ({"like": "a.jpg", "box": (-1, 0, 4, 1)}, "-1,0,4,1"),
        ({"like": "a.jpg", "box": (0, 0, 4)}, "0,0,4"),
        ({"like": "a.jpg", "box": (0, 0, 4.5, 1)}, "4.5"),
    ],
)
def test_queries_that_cannot_be(options: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        Query(**options)  # type: ignore[arg-type]
    assert caught.value.remedy


def test_unknown_parts_are_refused(gallery: Gallery, tmp_path: Path) -> None:
    with pytest.raises(UnknownItemError, match="99"):
        gallery.search(Query(like=1, unlike=99))
    with pytest.raises(InputError, match=r"gone\.png"):
        gallery.search(Query(like=1, unlike=tmp_path / "gone.png"))
    with pytest.raises(InputError, match="2 numbers"):
        gallery.search(Query(like=[1, np.ones(2)]))


# A part of an image


def two_halves(photos: Path, folder: Path) -> Path:
    """An image with one of the photos on its left and another one on its right."""
    wide = Image.new("RGB", (128, 64))
    wide.paste(Image.open(photos / "cat" / "0.png"), (0, 0))
    wide.paste(Image.open(photos / "dog" / "2.png"), (64, 0))
    wide.save(folder / "wide.png")
    return folder / "wide.png"


def test_a_box_searches_with_that_part_only(gallery: Gallery, photos: Path, tmp_path: Path) -> None:
    wide = two_halves(photos, tmp_path)
    for form in (wide, str(wide), wide.read_bytes(), Image.open(wide), np.array(Image.open(wide))):
        for box, path in (((0, 0, 64, 64), "cat/0.png"), ((64, 0, 128, 64), "dog/2.png")):
            best = gallery.search(Query(form, box=box))[0]  # type: ignore[arg-type]
            assert best.path.endswith(path)
            assert best.score == pytest.approx(1, abs=1e-3)
    with_item = gallery.search(Query([wide, 5], box=(0, 0, 64, 64)), k=3)
    (own,) = gallery.store.by_path([str(photos / "cat" / "0.png")]).values()
    assert with_item[0].score == pytest.approx(gallery.search(Query([own.id, 5, own.id, 5]), k=3)[0].score, abs=0.5)


def test_a_box_counts_in_pixels_of_the_upright_image(gallery: Gallery, photos: Path, tmp_path: Path) -> None:
    lying = Image.open(two_halves(photos, tmp_path)).transpose(Image.Transpose.ROTATE_90)  # 64 wide, 128 high
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise to see it upright
    lying.save(tmp_path / "lying.png", exif=exif)
    found = gallery.search(Query(tmp_path / "lying.png", box=(64, 0, 128, 64)))
    assert found[0].path.endswith("dog/2.png")


def test_a_box_beyond_the_image_is_refused(gallery: Gallery, tmp_path: Path) -> None:
    path = picture(tmp_path / "p.png", 3)
    with pytest.raises(InputError, match=r"p\.png.*10,10,65,20.*64 × 64"):
        gallery.search(Query(path, box=(10, 10, 65, 20)))


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,5", "a,0,1,1", "--1,0,4,4", "0,0,1e3,4", "0;0;1;1", "²,0,4,4"])
def test_texts_that_are_no_box(text: str) -> None:
    with pytest.raises(InputError, match="box"):
        parse_box(text)


def test_a_box_as_text() -> None:
    assert parse_box(" 1, 2,30,40") == (1, 2, 30, 40)


# Re-ranking


def slow_order(query: np.ndarray, candidates: np.ndarray) -> list[int]:
    """The definitions of `k_reciprocal_order`, set by set."""
    vectors = [np.asarray(one, float) / np.linalg.norm(one) for one in (query, *candidates)]
    count = len(vectors)
    distance = [[0.0 if p == g else max(1 - float(vectors[p] @ vectors[g]), 0.0) for g in range(count)]
                for p in range(count)]  # fmt: skip
    largest = max(map(max, distance))
    distance = [[one / largest for one in row] for row in distance]

    def near(p: int, k: int) -> list[int]:
        others = sorted((g for g in range(count) if g != p), key=lambda g: (distance[p][g], g))
        return [p, *others[:k]]

    def reciprocal(p: int, k: int) -> set[int]:
        return {g for g in near(p, k) if p in near(g, k)}

    encoded = []
    for p in range(count):
        own = reciprocal(p, K1)
        whole = set(own)
        for g in own:
            theirs = reciprocal(g, K1 // 2)
            if len(theirs & own) >= 2 / 3 * len(theirs) - 1e-9:
                whole |= theirs
        weights = {g: np.exp(-distance[p][g]) for g in whole}
        encoded.append({g: weight / sum(weights.values()) for g, weight in weights.items()})
    averaged = [
        {g: sum(encoded[one].get(g, 0.0) for one in near(p, K2 - 1)) / len(near(p, K2 - 1)) for g in range(count)}
        for p in range(count)
    ]
    final = []
    for p in range(1, count):
        low = sum(min(averaged[0][g], averaged[p][g]) for g in range(count))
        high = sum(max(averaged[0][g], averaged[p][g]) for g in range(count))
        final.append((1 - ORIGINAL_SHARE) * (1 - low / high) + ORIGINAL_SHARE * distance[0][p])
    return sorted(range(count - 1), key=lambda index: final[index])


@pytest.mark.parametrize(("count", "seed"), [(2, 0), (5, 1), (40, 2), (70, 3)])
def test_re_ranking_is_what_its_definition_says(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(4, 16))
    vectors = centres[random.integers(0, 4, count + 1)] + 0.7 * random.normal(size=(count + 1, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    candidates = vectors[1:][np.argsort(-vectors[1:] @ vectors[0], kind="stable")]
    assert k_reciprocal_order(vectors[0], candidates) == slow_order(vectors[0], candidates)


def test_re_ranking_lifts_the_neighbours_of_good_candidates() -> None:
    """A query between its own dense group and strays: the strays are nearer than half of the group, but alone."""
    random = np.random.default_rng(0)
    group = np.array([1.0, 0.5, 0, 0]) + 0.02 * random.normal(size=(12, 4))
    strays = np.array([[1.0, -0.3, 0.35, 0], [1.0, -0.3, 0, 0.35], [1.0, -0.3, -0.35, 0], [1.0, -0.3, 0, -0.35]])
    query = np.array([1.0, 0.0, 0, 0])
    vectors = np.concatenate([group, strays])
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    nearest = np.argsort(-vectors @ query, kind="stable")
    order = nearest[k_reciprocal_order(query.astype(np.float32), vectors[nearest])]
    mean_place = {name: np.mean([list(places).index(i) for i in range(12, 16)])
                  for name, places in (("before", nearest), ("after", order))}  # fmt: skip
    assert mean_place["after"] >= mean_place["before"]


def test_a_search_that_is_re_ranked(gallery: Gallery) -> None:
    plain = gallery.search(3, k=11)
    ranked = gallery.search(3, k=4, rerank=11)
    vectors = gallery.vectors([hit.id for hit in plain])
    order = slow_order(gallery.vectors([3])[0], vectors)
    assert [hit.id for hit in ranked] == [plain[index].id for index in order[:4]]
    scores = {hit.id: hit.score for hit in plain}
    assert {hit.id: hit.score for hit in ranked} == {hit.id: scores[hit.id] for hit in ranked}
    several = gallery.search([3, Query(like=[1, 2])], k=2, rerank=6, exact=True, threshold=-1.0)
    assert [len(one) for one in several] == [2, 2]
    assert gallery.search(3, k=1, rerank=1).hits == plain.hits[:1]


@pytest.mark.parametrize("rerank", [0, 3, MAX_RERANKED + 1])
def test_too_few_or_too_many_candidates_are_refused(gallery: Gallery, rerank: int) -> None:
    with pytest.raises(InputError, match=str(rerank)):
        gallery.search(3, k=4, rerank=rerank)


def test_the_page_of_results_shows_what_a_query_is_made_of(gallery: Gallery, photos: Path, tmp_path: Path) -> None:
    query = Query(like=[photos / "cat" / "0.png", 2], unlike=9, box=(0, 0, 32, 32))
    gallery.write_results_page(tmp_path / "page.html", query, gallery.search(query, k=3))
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count('alt="the query') == 2
    assert text.count('alt="less like: item 9"') == 1
