"""`lookalike evaluate`: a saved model, measured."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lookalike.cli import completion
from lookalike.cli.console import TOP, ProgressBars, echo, not_fitted, print_json, recalls
from lookalike.errors import InputError

if TYPE_CHECKING:
    from lookalike.models.pretrained import ImageModel


class SplitName(StrEnum):
    """The splits of a catalog."""

    train = "train"
    val = "val"
    test = "test"


def evaluate(
    model: Annotated[
        str,
        typer.Argument(help="A model folder, such as runs/NAME/model, or a Hub id.", autocompletion=completion.models),
    ],
    data: Annotated[
        str,
        typer.Argument(help="A data set's name, a folder, zip, CSV or Parquet file.", autocompletion=completion.data),
    ],
    split: Annotated[SplitName, typer.Option("--split", help="Which images.")] = SplitName.val,
    flip: Annotated[bool, typer.Option("--flip", help="Average with the mirrored image; named in the result.")] = False,
    val_fraction: Annotated[
        float | None,
        typer.Option(
            "--val-fraction",
            help="Share of each class to measure on, where DATA names no val split; default: as trained.",
        ),
    ] = None,
    split_seed: Annotated[
        int | None, typer.Option("--split-seed", help="Which images these are; default: as trained.")
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            help="Measure retrieval by this: cars196-zero-shot, half-zero-shot, ...; an embedding by its own.",
        ),
    ] = None,
    with_duplicates: Annotated[
        bool, typer.Option("--with-duplicates", help="Retrieval: also with near-duplicates of the query left out.")
    ] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print all numbers as JSON.")] = False,
    report: Annotated[Path | None, typer.Option("--report", help="Write an HTML report here.")] = None,
) -> None:
    """Measure a model on labelled images: top-1, top-5, log-likelihood, calibration; or retrieval, by a protocol."""
    import lookalike
    from lookalike.data.scan import sentence
    from lookalike.evaluation.evaluate import measure, read_as_trained

    loaded = lookalike.load(model, device=device)
    if by := protocol or (loaded.config.protocol if loaded.config.head else ""):
        if (split, val_fraction, split_seed) != (SplitName.val, None, None):
            raise InputError(
                f"the protocol {by} says itself which images are measured.",
                "Leave out --split, --val-fraction and --split-seed.",
            )

        with ProgressBars() as bars:
            lines = evaluate_retrieval(
                model,
                loaded,
                data,
                by,
                flip=flip,
                with_duplicates=with_duplicates,
                as_json=as_json,
                report=report,
                bars=bars,
            )
        echo("\n".join(lines))
        return
    if with_duplicates:
        raise InputError("--with-duplicates is about retrieval, and this is recognition.", "Give a --protocol too.")
    catalog = read_as_trained(data, loaded.config, val_fraction=val_fraction, split_seed=split_seed)
    with ProgressBars() as bars:
        decoding, measuring = bars.bar("decoding"), bars.bar("measuring")
        measured = measure(loaded, catalog, split.value, flip=flip, packing=decoding, progress=measuring)
    results = measured.results
    if report is not None:
        from lookalike.reports.classification import write_report

        write_report(
            report,
            title=f"{model} on {catalog.name}",
            recipe_yaml="",
            receipt={"results": results, "data": {"name": catalog.name, "remark": catalog.remark}},
            history=[],
            logits=measured.logits,
            labels=measured.labels,
            images=measured.images,
            class_names=loaded.config.class_names,
            remark=catalog.remark or None,
            paths=measured.paths,
        )
    if as_json:
        print_json({"model": model, "fingerprint": loaded.fingerprint, "data": catalog.name, **results}, indent=None)
        return
    how = f"{results['split']}, single crop{', flip averaged' if flip else ''}, {results['image_size']} px"
    echo(f"{catalog.name}: {results['n']:,} images ({how})")
    echo(f"top-1 {results['top1']:.2%}")
    if loaded.config.num_classes > TOP:
        echo(f"top-5 {results['top5']:.2%}")
    echo(f"negative log-likelihood {results['nll']:.4f} nats\ncalibration error {results['ece']:.4f}")
    if (temperature := loaded.config.temperature) != 1:
        echo(f"temperature {temperature:.3f}: with it, calibration error {results['ece_scaled']:.4f}")
    elif loaded.config.temperature_remark:
        echo(not_fitted(loaded.config.temperature_remark))
    for words in filter(None, (catalog.remark, sentence(catalog.passed_over))):
        echo(words)
    if report is not None:
        echo(f"report {report}")


# `lookalike evaluate --protocol`: a saved model, measured by what it finds.


def evaluate_retrieval(
    name: str,
    model: ImageModel,
    data: str,
    protocol: str,
    *,
    flip: bool,
    with_duplicates: bool,
    as_json: bool,
    report: Path | None,
    bars: ProgressBars,
) -> list[str]:
    """Measure, write the report where one is wanted, and say the numbers: lines of text, or one of JSON."""
    from lookalike.data.pack import pack
    from lookalike.data.registry import load_dataset
    from lookalike.evaluation.evaluate import measure_retrieval
    from lookalike.evaluation.protocols import named

    by = named(protocol)
    divided = by.divide(load_dataset(data))
    config = model.config
    test = pack(
        divided.test,
        config.image_size,
        crop_boxes=config.crop_boxes,
        crop_mode=config.crop_mode,
        progress=bars.bar("decoding"),
    )
    measured = measure_retrieval(
        model,
        divided,
        test,
        crop_boxes=config.crop_boxes,
        flip=flip,
        with_duplicates=with_duplicates,
        progress=bars.bar("measuring"),
    )
    if report is not None:
        from lookalike.reports.retrieval import write_retrieval_report

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
