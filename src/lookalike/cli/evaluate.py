"""`lookalike evaluate`: evaluate a model by classification, or by a retrieval protocol."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lookalike.cli import completion
from lookalike.cli.console import TOP, ProgressBars, echo, not_fitted, print_json, recalls

if TYPE_CHECKING:
    from lookalike.evaluation.evaluate import ClassificationResult, RetrievalResult
    from lookalike.models.serialization import ModelConfig


class SplitName(StrEnum):
    """The splits of a catalog."""

    train = "train"
    val = "val"
    test = "test"


def evaluate(
    model: Annotated[
        str,
        typer.Argument(help=completion.MODEL_HELP, autocompletion=completion.models),
    ],
    data: Annotated[
        str,
        typer.Argument(
            help="The name of a data set, or a folder, zip, CSV or Parquet file.", autocompletion=completion.data
        ),
    ],
    split: Annotated[
        SplitName | None, typer.Option("--split", help="Images to evaluate on.", show_default="val")
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Average with the mirrored image; the result says so.")] = False,
    val_fraction: Annotated[
        float | None,
        typer.Option(
            "--val-fraction",
            help="Share of each class to evaluate on, if DATA has no val split; default: as in training.",
        ),
    ] = None,
    split_seed: Annotated[
        int | None, typer.Option("--split-seed", help="Which images these are; default: as in training.")
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            help="Evaluate retrieval: cars196-zero-shot, half-zero-shot, ...; default of an embedding model: its own.",
        ),
    ] = None,
    with_duplicates: Annotated[
        bool, typer.Option("--with-duplicates", help="Retrieval: also with near-duplicates of the query excluded.")
    ] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print all metrics as JSON.")] = False,
    report: Annotated[Path | None, typer.Option("--report", metavar="FILE", help="Write an HTML report.")] = None,
) -> None:
    """Evaluate a model on labelled images: accuracy, log-likelihood and calibration; or retrieval, by a protocol."""
    import lookalike
    from lookalike.evaluation import evaluate as evaluation

    loaded = lookalike.load(model, device=device)
    with ProgressBars() as bars:
        result = evaluation.evaluate(
            loaded,
            data,
            split=split.value if split else None,
            protocol=protocol,
            flip=flip,
            with_duplicates=with_duplicates,
            val_fraction=val_fraction,
            split_seed=split_seed,
            decoding=bars.bar("decoding"),
            progress=bars.bar("evaluating"),
        )
    if report is not None:
        _write_report(report, f"{model} on {result.data['name']}", result, loaded.config)
    if as_json:
        about = {"model": model, "fingerprint": loaded.fingerprint, "data": result.data["name"]}
        print_json({**about, **result.metrics}, indent=None)
        return
    if isinstance(result, evaluation.RetrievalResult):
        lines = _retrieval_lines(result.metrics)
    else:
        lines = _classification_lines(result, loaded.config)
    echo("\n".join([*lines, *([f"report {report}"] if report is not None else [])]))


def _write_report(path: Path, title: str, result: ClassificationResult | RetrievalResult, config: ModelConfig) -> None:
    from lookalike.evaluation.evaluate import ClassificationResult
    from lookalike.reports.classification import write_report
    from lookalike.reports.retrieval import write_retrieval_report

    remark = result.data["remark"] or None
    receipt = {"results": result.metrics, "data": result.data}
    if isinstance(result, ClassificationResult):
        write_report(
            path,
            title=title,
            recipe_yaml="",
            receipt=receipt,
            history=[],
            logits=result.logits,
            labels=result.labels,
            images=result.images,
            class_names=config.class_names,
            remark=remark,
            paths=result.paths,
        )
        return
    write_retrieval_report(
        path,
        title=title,
        recipe_yaml="",
        receipt=receipt,
        history=[],
        embeddings=result.embeddings,
        labels=result.labels,
        images=result.images,
        class_names=result.class_names,
        card=result.metrics["card"],
        remark=remark,
    )


def _classification_lines(result: ClassificationResult, config: ModelConfig) -> list[str]:
    from lookalike.data.scan import sentence

    catalog, metrics = result.catalog, result.metrics
    how = f"{metrics['split']}, single crop{', flip averaged' if metrics['flip'] else ''}, {metrics['image_size']} px"
    lines = [f"{catalog.name}: {metrics['n']:,} images ({how})", f"top-1 {metrics['top1']:.2%}"]
    if config.num_classes > TOP:
        lines.append(f"top-5 {metrics['top5']:.2%}")
    lines.append(f"negative log-likelihood {metrics['nll']:.4f} nats")
    lines.append(f"calibration error {metrics['ece']:.4f}")
    if config.temperature != 1:
        lines.append(f"temperature {config.temperature:.3f}: with it, calibration error {metrics['ece_scaled']:.4f}")
    elif config.temperature_remark:
        lines.append(not_fitted(config.temperature_remark))
    return lines + [text for text in (catalog.remark, sentence(catalog.passed_over)) if text]


def _retrieval_lines(metrics: dict[str, Any]) -> list[str]:
    card = metrics["card"]
    crop = {"boxes": "cut to boxes", "whole": "whole images"}.get(card["crop"], card["crop"])
    how = f"{crop}{', flip averaged' if metrics['flip'] else ''}, {metrics['image_size']} px, {metrics['dim']} numbers"
    queries = f"{metrics['queries']:,} queries of {card['test']['classes']} classes"
    lines = [
        f"{card['data']} by {card['protocol']}: {queries} ({how})",
        recalls(metrics["view"], metrics),
    ]
    lines += [recalls(view, numbers) for view, numbers in metrics["views"].items()]
    if apart := metrics.get("without_duplicates"):
        lines.append(recalls(f"without {card['near_duplicates']} pairs of near-duplicates", apart))
    low, high = metrics["intervals"]["recall_at_1"]
    lines.append(f"Recall@1 lies between {low:.2%} and {high:.2%} (95 %, bootstrap over the queries)")
    lines.append(f"MAP@R {metrics['map_at_r']:.2%}  R-precision {metrics['r_precision']:.2%}  NMI {metrics['nmi']:.3f}")
    if metrics["excluded"]:
        lines.append(f"{metrics['excluded']} images have no other of their class: they were not queries")
    return lines + ([card["remark"]] if card["remark"] else [])
