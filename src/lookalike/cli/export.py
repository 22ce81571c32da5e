"""`lookalike export`: write a model as one file for other programs, and check the file against the model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lookalike.cli import completion
from lookalike.cli.console import echo, print_json
from lookalike.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lookalike.models.export import Agreement
    from lookalike.models.pretrained import ImageModel

COMPARED_IMAGES = 256
MIN_TEXT_COSINE = 0.9999  # of the embeddings of one text, from the model and from its exported text tower


class Format(StrEnum):
    """The kind of file."""

    onnx = "onnx"
    torch = "torch"


class Precision(StrEnum):
    """The type of the weights."""

    float32 = "float32"
    int8 = "int8"


def export(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help=completion.MODEL_HELP, autocompletion=completion.models),
    ],
    format: Annotated[Format, typer.Option("--format", help="ONNX, or an exported program of PyTorch.")] = Format.onnx,
    precision: Annotated[Precision, typer.Option("--precision", help="int8 only for ONNX.")] = Precision.float32,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Default: model.onnx or model.pt2.")
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            "--images",
            metavar="DATA",
            help="Images to compare with, and to fit int8 to.",
            autocompletion=completion.data,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a model as one file, and compare its logits, embeddings and nearest neighbours with the model's.

    A file that differs too much is not kept. Without --images the built-in images are used.
    """
    from lookalike.models.export import ENDINGS, check_target, compare, read_exported
    from lookalike.models.export import export as write
    from lookalike.models.pretrained import load

    path = out or Path(f"model{ENDINGS[format.value]}")
    check_target(path, format.value, precision.value)
    loaded = load(model)
    pictures = _pictures(images, loaded)
    half = len(pictures) // 2 if precision is Precision.int8 else 0
    agreements: list[Agreement] = []

    def accept(written: Path) -> None:
        found = compare(loaded, read_exported(written), pictures[half:])
        if problems := found.problems(exact=precision is Precision.float32):
            raise InputError(
                f"{path}: not kept, it is too far from the model: {'; '.join(problems)}.", _remedy(precision)
            )
        agreements.append(found)

    write(loaded, path, format.value, precision.value, pictures[:half], accept)
    words = _export_text(loaded, path) if loaded.config.text is not None and format is Format.onnx else None
    _say(path, agreements[0], words, as_json)
    if loaded.config.text is not None and words is None:
        echo("The text tower is exported with --format onnx only.", err=True)


def _export_text(model: ImageModel, path: Path) -> tuple[Path, float]:
    """Write the text tower in float32; its file, and the smallest cosine of its embeddings with the model's."""
    from lookalike.models.export_text import export_text, text_agreement, text_path
    from lookalike.models.onnx_text import OnnxTextTower

    written = text_path(path)
    export_text(model, written)
    cosine = text_agreement(model, OnnxTextTower(written))
    if cosine < MIN_TEXT_COSINE:
        written.unlink()
        raise InputError(
            f"{written}: not kept, it is too far from the model: embeddings of one text have a cosine of {cosine:.4f}.",
            "Report this as a bug.",
        )
    return written, cosine


def _pictures(source: str | None, model: ImageModel) -> NDArray[np.uint8]:
    """(N, size, size, 3): images drawn from a data set."""
    import numpy as np

    from lookalike.data.pack import pack
    from lookalike.data.registry import load_dataset

    catalog = load_dataset(source or "builtin")
    rows = np.random.default_rng(0).permutation(len(catalog))[: 2 * COMPARED_IMAGES]
    chosen = catalog.select(np.sort(rows))
    return np.array(pack(chosen, model.config.image_size, crop_mode=model.config.crop_mode).images)


def _remedy(precision: Precision) -> str:
    if precision is Precision.int8:
        return "Give images like those that it will get, --images DATA, or use float32."
    return "Report this as a bug."


def _say(path: Path, found: Agreement, words: tuple[Path, float] | None, as_json: bool) -> None:
    size = path.stat().st_size
    if as_json:
        from dataclasses import asdict

        tree: dict[str, Any] = {"file": str(path), "bytes": size, "agreement": asdict(found)}
        if words is not None:
            tree["text"] = {"file": str(words[0]), "bytes": words[0].stat().st_size, "cosine": words[1]}
        print_json(tree)
        return
    echo(f"{path}: {size / 1e6:,.1f} MB; compared with the model on {found.images} images:")
    if found.logits is not None:
        echo(f"  logits      differ by at most {found.logits:.2g}; the same most probable class for {found.top1:.2%}")
    echo(f"  embeddings  cosine at least {found.cosine:.6f}")
    echo(f"  neighbours  {found.neighbours:.2%} of the ten nearest are the same")
    if words is not None:
        written, cosine = words
        echo(f"{written}: {written.stat().st_size / 1e6:,.1f} MB; the text tower, compared with the model:")
        echo(f"  embeddings  cosine at least {cosine:.6f}")
