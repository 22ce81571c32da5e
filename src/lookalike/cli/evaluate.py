"""`lookalike evaluate`: a saved model, measured."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class SplitName(StrEnum):
    """The splits of a catalog."""

    train = "train"
    val = "val"
    test = "test"


def evaluate(
    model: Annotated[str, typer.Argument(help="A model folder, such as runs/NAME/model, or a Hub id.")],
    data: Annotated[str, typer.Argument(help="A data set's name, a folder, zip, CSV or Parquet file.")],
    split: Annotated[SplitName, typer.Option("--split", help="Which images.")] = SplitName.val,
    flip: Annotated[bool, typer.Option("--flip", help="Average with the mirrored image; named in the result.")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print all numbers as JSON.")] = False,
    report: Annotated[Path | None, typer.Option("--report", help="Write an HTML report here.")] = None,
) -> None:
    """Measure a model on labelled images: top-1, top-5, log-likelihood, calibration."""
    import json

    import lookalike
    from lookalike.data.read import read
    from lookalike.evaluation.measure import measure

    loaded = lookalike.load(model, device=device)
    catalog = read(data)
    measured = measure(loaded, catalog, split.value, flip=flip)
    results = measured.results
    if report is not None:
        from lookalike.evaluation.report import write_report

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
        )
    if as_json:
        typer.echo(json.dumps({"model": model, "fingerprint": loaded.fingerprint, "data": catalog.name, **results}))
        return
    how = f"{results['split']}, single crop{', flip averaged' if flip else ''}, {results['image_size']} px"
    typer.echo(f"{catalog.name}: {results['n']:,} images ({how})")
    typer.echo(f"top-1 {results['top1']:.2%}\ntop-5 {results['top5']:.2%}")
    typer.echo(f"negative log-likelihood {results['nll']:.4f} nats\ncalibration error {results['ece']:.4f}")
    if catalog.remark:
        typer.echo(catalog.remark)
    if report is not None:
        typer.echo(f"report {report}")
