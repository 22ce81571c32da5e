"""A protocol card as a table of descriptions, for readers who do not know the protocol."""

from __future__ import annotations

from typing import Any

from lookalike.errors import counted
from lookalike.reports import charts

CROPS = {
    "boxes": "images cut to the boxes around their objects",
    "whole": "whole images",
    "already cropped": "images that were already cropped in this copy of the data",
}
SQUARES = {"center": "", "squash": ", the whole image squashed to a square"}
COMPLETE = {
    True: "as many classes and images as the full set has",
    False: "not the full set: numbers are not those of papers that use it",
}


def protocol_words(card: dict[str, Any], results: dict[str, Any]) -> list[tuple[str, str]]:
    """Describe a protocol card as (heading, text) rows; missing facts are omitted.

    Args:
        card: a card of `protocols.card`.
        results: results of the receipt, used for the row on near-duplicates.
    """
    resolution, dim = card.get("resolution"), card.get("dim")
    found: list[tuple[str, str | None]] = [
        ("Protocol", _joined(card.get("protocol"), card.get("about"))),
        ("Data", card.get("data")),
        ("Trained on", card.get("trained") or _side(card.get("train"))),
        ("Tested on", _side(card.get("test"))),
        ("Completeness", COMPLETE.get(card["complete"]) if card.get("complete") is not None else None),
        ("Query, gallery", _sentence(card.get("rule"))),
        ("Left out", _left_out(card.get("excluded"))),
        ("Crop", CROPS.get(card.get("crop", ""), card.get("crop"))),
        (
            "Resolution",
            f"{resolution} × {resolution} pixels{_square(card.get('crop_mode', 'center'))}" if resolution else None,
        ),
        ("Dimension", f"{dim:,} numbers an image" if dim else None),
        ("Near-duplicates", _duplicates(card, results) if "near_duplicates" in card else None),
        ("Remark", card.get("remark")),
    ]
    return [(what, words) for what, words in found if words]


def _square(crop_mode: str) -> str:
    return SQUARES.get(crop_mode, f", {crop_mode}")


def _joined(*words: str | None) -> str:
    return ": ".join(word for word in words if word)


def _sentence(words: str | None) -> str | None:
    return None if words is None else f"{words[:1].upper()}{words[1:]}."


def _side(side: dict[str, int] | None) -> str | None:
    if not side:
        return None
    words = [counted(side[key], noun) for key, noun in (("classes", "class"), ("images", "image")) if key in side]
    if alone := side.get("classes_of_one_image"):
        words.append(f"{counted(alone, 'class')} of a single image")
    return ", ".join(words)


def _left_out(excluded: dict[str, Any] | None) -> str | None:
    if excluded is None:
        return None
    words = ["each query, from what it finds"] if excluded.get("self") else []
    if alone := excluded.get("queries_without_positive"):
        words.append(f"{counted(alone, 'query')} without another image of the class")
    if unlabelled := excluded.get("unlabelled"):
        words.append(f"{counted(unlabelled, 'image')} without a label")
    if undecodable := excluded.get("undecodable"):
        words.append(f"{counted(undecodable, 'image')} that cannot be decoded")
    return "; ".join(words) or None


def _duplicates(card: dict[str, Any], results: dict[str, Any]) -> str:
    pairs = card["near_duplicates"]
    if pairs is None:
        return "nobody looked for them"
    words = f"{counted(pairs, 'pair')} among the test images" if pairs else "none among the test images"
    if pairs and (apart := results.get("without_duplicates")):
        recall = charts.percent(apart["recall_at_1"], 1)
        words += f"; Recall@1 is {recall} when those of a query are left out of what it finds"
    return words
