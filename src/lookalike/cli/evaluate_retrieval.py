"""`lookalike evaluate --protocol`: a saved model, measured by what it finds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookalike.cli.results import recalls

if TYPE_CHECKING:
    from lookalike.models.pretrained import Pretrained

Bar = Callable[[str], Callable[[int, int], None]]


def evaluate_retrieval(
    name: str,
    model: Pretrained,
    data: str,
    protocol: str,
    *,
    flip: bool,
    with_duplicates: bool,
    as_json: bool,
    report: Path | None,
    bar: Bar,
) -> list[str]:
    """Measure, write the report where one is wanted, and say the numbers: lines of text, or one of JSON."""
    from lookalike.data.pack import pack
    from lookalike.data.read import read
    from lookalike.evaluation.measure_retrieval import measure_retrieval
    from lookalike.evaluation.protocols import named

    by = named(protocol)
    divided = by.divide(read(data))
    config = model.config
    test = pack(
        divided.test,
        config.image_size,
        crop_boxes=config.crop_boxes,
        crop_mode=config.crop_mode,
        progress=bar("decoding"),
    )
    measured = measure_retrieval(
        model,
        divided,
        test,
        crop_boxes=config.crop_boxes,
        flip=flip,
        with_duplicates=with_duplicates,
        progress=bar("measuring"),
    )
    if report is not None:
        from lookalike.evaluation.retrieval_report import write_retrieval_report

        write_retrieval_report(
            report,
            title=f"{name} on {divided.source.name}",
            recipe_yaml="",
            receipt={"results": measured.results, "data": {"name": divided.source.name, "remark": divided.remark}},
            history=[],
            embeddings=measured.embeddings,
            labels=measured.labels,
            images=measured.images,
            class_names=test.catalog.class_names,
            card=measured.results["card"],
            remark=divided.remark or None,
        )
    if as_json:
        about = {"model": name, "fingerprint": model.fingerprint, "data": divided.source.name}
        return [json.dumps({**about, **measured.results})]
    return [*_lines(measured.results), *([f"report {report}"] if report is not None else [])]


def _lines(results: dict[str, Any]) -> list[str]:
    card = results["card"]
    crop = {"boxes": "cut to boxes", "whole": "whole images"}.get(card["crop"], card["crop"])
    how = f"{crop}{', flip averaged' if results['flip'] else ''}, {results['image_size']} px, {results['dim']} numbers"
    queries = f"{results['queries']:,} queries of {card['test']['classes']} classes"
    lines = [
        f"{card['data']} by {card['protocol']}: {queries} ({how})",
        recalls(results["view"], results),
    ]
    lines += [recalls(view, numbers) for view, numbers in results["views"].items()]
    if apart := results.get("without_duplicates"):
        lines.append(recalls(f"without {card['near_duplicates']} pairs of near-duplicates", apart))
    low, high = results["intervals"]["recall_at_1"]
    lines.append(f"Recall@1 lies between {low:.2%} and {high:.2%} (95 %, bootstrap over the queries)")
    lines.append(f"MAP@R {results['map_at_r']:.2%}  R-precision {results['r_precision']:.2%}  NMI {results['nmi']:.3f}")
    if results["excluded"]:
        lines.append(f"{results['excluded']} images have no other of their class: they were no queries")
    return lines + ([card["remark"]] if card["remark"] else [])
