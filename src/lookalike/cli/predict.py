"""`lookalike predict`: classify images, or write the predictions file of the Tiny ImageNet challenge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lookalike.cli import completion
from lookalike.cli.console import can_show, echo, print_json, progress_bar
from lookalike.errors import InputError, counted
from lookalike.files import atomic_write

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lookalike.data.catalog import Catalog
    from lookalike.gallery.vote import Vote
    from lookalike.models.prediction import Prediction
    from lookalike.models.pretrained import ImageModel
    from lookalike.models.serialization import ModelConfig

BAR_WIDTH = 20  # characters of a bar for probability 1
MAX_NAMED = 5  # unreadable images that an error names
BATCH_SIZE = 256


def predict(
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="Images, or folders of images; DATA with --submission."),
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help=completion.MODEL_HELP,
            autocompletion=completion.models,
        ),
    ] = "default",
    k: Annotated[int, typer.Option("-k", min=1, help="Classes or labels for each image.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    flip: Annotated[bool, typer.Option("--flip", help="Average with the mirrored image.")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    gallery: Annotated[
        str | None,
        typer.Option(
            "--gallery",
            "-g",
            metavar="GALLERY",
            help="Vote among the nearest labelled items of this gallery, in place of the model's classes.",
            autocompletion=completion.galleries,
        ),
    ] = None,
    neighbours: Annotated[
        int | None,
        typer.Option("--neighbours", min=1, metavar="N", help="Items that vote, with --gallery.", show_default="20"),
    ] = None,
    threshold: Annotated[
        str | None,
        typer.Option(
            metavar="SCORE", help="Lowest score of an item that votes, with --gallery: a number or 'calibrated'."
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="LABEL,...",
            help="Choose among these labels, in place of the model's classes; for models with a text tower.",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", metavar="TEXT", help="Text for a label.", show_default="a photo of a {}"),
    ] = None,
    submission: Annotated[
        Path | None,
        typer.Option("--submission", metavar="FILE", help="Write the challenge's file for DATA's test set."),
    ] = None,
) -> None:
    """Classify images. Nothing is printed until all images are read; the error names those that cannot be read."""
    from lookalike.data.scan import sentence
    from lookalike.models.pretrained import load
    from lookalike.models.text import PROMPT, prompts_of

    if labels is not None and (gallery is not None or submission is not None):
        raise InputError(
            f"--labels and {'--gallery' if gallery is not None else '--submission'} together.", "Leave one out."
        )
    if prompt is not None and labels is None:
        raise InputError("--prompt without --labels.", "Give the labels, or leave it out.")
    if gallery is not None:
        if flip or submission is not None:
            raise InputError(
                f"--gallery and {'--flip' if flip else '--submission'} together.",
                "The vote has neither; leave one out.",
            )
        _vote(images, gallery, None if model == "default" else model, device, k, neighbours, threshold, as_json)
        return
    if neighbours is not None or threshold is not None:
        option = "--neighbours" if neighbours is not None else "--threshold"
        raise InputError(f"{option} without --gallery.", "Give the gallery whose items vote, or leave it out.")
    if submission is not None:
        _check_submission(images, submission, as_json)
        _submit(load(model, device), str(images[0]), submission, flip)
        return
    passed_over: Counter[str] = Counter()
    paths = list(_expanded(images, passed_over))
    loaded = load(model, device)
    names = None if labels is None else [label.strip() for label in labels.split(",")]
    if names is None:
        loaded.check_has_classes()
    else:  # its errors come before those of images
        loaded.embed_text(prompts_of(names, prompt or PROMPT))

    def answers_of(batch: list[NDArray[np.uint8]]) -> list[Prediction]:
        if names is None:
            return loaded.predict(batch, k, flip=flip)
        return loaded.predict_labels(batch, names, k, prompt=prompt or PROMPT, flip=flip)

    answers: list[Prediction] = []
    faults: list[InputError] = []
    with progress_bar("predicting") as progress:
        for start in range(0, len(paths), BATCH_SIZE):
            batch = _decoded(paths[start : start + BATCH_SIZE], loaded.config, faults)
            if not faults:
                answers += answers_of(batch)
            progress(min(start + BATCH_SIZE, len(paths)), len(paths))
    _check_readable(faults, len(paths))
    if as_json:
        print_json({**_as_tree(model, loaded, flip, paths, answers), "passed_over": dict(passed_over)})
        return
    for path, predictions in zip(paths, answers, strict=True):
        echo(_as_text(path, predictions, flip, loaded.config))
    if passed_over:
        echo(sentence(passed_over), err=True)


def _vote(
    images: list[Path],
    location: str,
    model: str | None,
    device: str,
    k: int,
    neighbours: int | None,
    threshold: str | None,
    as_json: bool,
) -> None:
    """Label images by the votes of a gallery's items."""
    from lookalike.data.scan import sentence
    from lookalike.gallery.gallery import Gallery
    from lookalike.gallery.query import parse_threshold
    from lookalike.gallery.vote import NEIGHBOURS
    from lookalike.models.pretrained import load

    if device != "auto" and model is None:
        with Gallery.open(location) as opened:
            model = opened.about.model or None
    passed_over: Counter[str] = Counter()
    paths = list(_expanded(images, passed_over))
    limit = None if threshold is None else parse_threshold(threshold)
    voters = NEIGHBOURS if neighbours is None else neighbours
    with Gallery.open(location, None if model is None else load(model, device)) as opened:
        votes: list[Vote] = []
        with progress_bar("predicting") as progress:
            for start in range(0, len(paths), BATCH_SIZE):
                some = paths[start : start + BATCH_SIZE]
                votes += opened.predict(some, k, neighbours=voters, threshold=limit)
                progress(len(votes), len(paths))
        about, shown = opened.about, str(opened.location)
    if as_json:
        tree = {"gallery": shown, "fingerprint": about.fingerprint, "neighbours": voters, "threshold": threshold}
        print_json({**tree, "images": list(map(_vote_as_tree, paths, votes)), "passed_over": dict(passed_over)})
        return
    for path, vote in zip(paths, votes, strict=True):
        echo(_vote_as_text(path, vote))
    if passed_over:
        echo(sentence(passed_over), err=True)


def _vote_as_tree(path: Path, vote: Vote) -> dict[str, Any]:
    from dataclasses import asdict

    neighbours = [
        {"id": hit.id, "score": round(hit.score, 6), "label": hit.label, "path": hit.path} for hit in vote.neighbours
    ]
    labels = [asdict(each) for each in vote]
    return {"image": str(path), "unknown": vote.unknown, "labels": labels, "neighbours": neighbours}


def _vote_as_text(path: Path, vote: Vote) -> str:
    lines = [f"{path}  (vote of {counted(len(vote.neighbours), 'neighbour')})"]
    if vote.unknown:
        lines.append("  unknown: no neighbour reaches the threshold")
    lines += [f"  {each.share:7.2%}  {_bar(each.share)}  {each.label} ({each.count})" for each in vote]
    return "\n".join(lines)


def _bar(share: float) -> str:
    sign = "█" if can_show("█") else "#"
    return f"{sign * round(share * BAR_WIDTH):<{BAR_WIDTH}}"


def _expanded(paths: Iterable[Path], passed_over: Counter[str]) -> Iterator[Path]:
    """The files among `paths`, and the images below the folders, sorted; other files in folders are counted."""
    from lookalike.data.scan import Scan, sentence

    for path in paths:
        if not path.is_dir():
            yield path
            continue
        scan = Scan(str(path))
        found = sorted(Path(file) for file in scan.files())
        passed_over.update(scan.passed_over)
        for folder, reason in scan.faults:
            raise InputError(f"{folder}: {reason}.", "Check its rights.")
        if not found:
            remedy = "Give images or a folder of images."
            if (path / "model.safetensors").is_file():
                remedy = f"It is a model: lookalike predict IMAGE --model {path}"
            if said := sentence(scan.passed_over):
                raise InputError(f"{path}: no readable images in this folder ({said}).", remedy)
            raise InputError(f"{path}: no images in this folder.", remedy)
        yield from found


def _decoded(paths: list[Path], config: ModelConfig, faults: list[InputError]) -> list[NDArray[np.uint8]]:
    """The images that can be read, each (size, size, 3); the errors of the others are added to `faults`."""
    from lookalike.image import decode

    pictures = []
    for path in paths:
        try:
            pictures.append(decode(path, config.image_size, crop_mode=config.crop_mode))
        except InputError as fault:
            faults.append(fault)
    return pictures


def _check_readable(faults: list[InputError], count: int) -> None:
    """Refuse to answer for some of the images only.

    Args:
        faults: of the images that cannot be read.
        count: of all images.

    Raises:
        InputError: there are some; it names them.
    """
    if len(faults) == 1:
        raise faults[0]
    if faults:
        named = " ".join(fault.message for fault in faults[:MAX_NAMED])
        more = f" And {len(faults) - MAX_NAMED} more." if len(faults) > MAX_NAMED else ""
        raise InputError(
            f"{len(faults)} of {count} images cannot be used. {named}{more}", "Replace them or leave them out."
        )


def _as_tree(name: str, model: ImageModel, flip: bool, paths: list[Path], answers: list[Prediction]) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "model": name,
        "fingerprint": model.fingerprint,
        "flip": flip,
        "images": [
            {
                "image": str(path),
                "unknown": predictions.unknown,
                "predictions": [asdict(each) for each in predictions],
            }
            for path, predictions in zip(paths, answers, strict=True)
        ],
    }


def _as_text(path: Path, predictions: Prediction, flip: bool, config: ModelConfig) -> str:
    lines = [f"{path}{'  (flip averaged)' if flip else ''}"]
    if predictions.unknown:
        lines.append(f"  unknown: no class reaches {config.unknown_threshold:.0%}; the most probable are")
    for each in predictions:
        lines.append(f"  {each.probability:7.2%}  {_bar(each.probability)}  {each.label}")
    return "\n".join(lines)


def _check_submission(images: list[Path], submission: Path, as_json: bool) -> None:
    if as_json:
        raise InputError("--json and --submission together.", "--submission writes a file of its own; leave one out.")
    if len(images) != 1:
        raise InputError(
            f"--submission is for one data set, not {len(images)} paths.", "Give a data set's name, its folder or zip."
        )
    if submission.is_dir() or not submission.absolute().parent.is_dir():
        raise InputError(f"{submission}: cannot write a file here.", "Name a file in a folder that exists.")


def _submit(model: ImageModel, source: str, submission: Path, flip: bool) -> None:
    """Write `test_0.JPEG n01443537` for each test image: its file name and the id of the most probable class."""
    from lookalike.data.registry import load_dataset

    catalog = load_dataset(source)
    rows = catalog.rows_of("test")
    if not len(rows):
        raise InputError(f"{source}: no test split.", "Point at a data set that has one, such as tiny-imagenet.")
    if unknown := sorted(set(model.config.class_ids) - set(catalog.class_ids)):
        raise InputError(
            f"the model knows a class '{unknown[0]}', which {source} does not have.",
            "Use a model trained on this data.",
        )
    answers = _likeliest(model, catalog.select(rows), flip)
    names = [Path(path).name for path in catalog.select(rows).paths]
    ranked = sorted(zip(names, answers, strict=True), key=lambda line: (len(line[0]), line[0]))  # test_2 before test_10
    atomic_write(submission, "".join(f"{name} {answer}\n" for name, answer in ranked))
    echo(f"{len(ranked):,} predictions{', flip averaged' if flip else ''}: {submission}")


def _likeliest(model: ImageModel, catalog: Catalog, flip: bool) -> list[str]:
    """The id of the most probable class of each image of the catalog, in its order."""
    import numpy as np

    from lookalike.image import decode

    prepared = partial(decode, size=model.config.image_size, crop_mode=model.config.crop_mode)
    answers: list[str] = []
    with progress_bar("predicting") as progress:
        for start in range(0, len(catalog), BATCH_SIZE):
            rows = range(start, min(start + BATCH_SIZE, len(catalog)))
            batch = np.stack([prepared(catalog.read_bytes(row), name=catalog.paths[row]) for row in rows])
            answers += [
                model.config.class_ids[i] for i in model.logits(batch, flip=flip, batch_size=BATCH_SIZE).argmax(1)
            ]
            progress(len(answers), len(catalog))
    return answers
