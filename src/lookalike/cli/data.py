"""`lookalike data`: list, download, check, preview and import data sets."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lookalike.cli import completion
from lookalike.cli.console import echo, print_json, progress_bar
from lookalike.errors import DownloadError, InputError, nearest

if TYPE_CHECKING:
    from lookalike.data.catalog import Split

app = typer.Typer(name="data", help="List, download, check, preview and import data sets.", no_args_is_help=True)

Source = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Name of a data set, such as builtin; or path of a folder, zip, CSV or Parquet file.",
        autocompletion=completion.data,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Into = Annotated[Path | None, typer.Option(help="Folder of all data sets. Default: $LOOKALIKE_DATA.")]


@app.command("list")
def list_data(as_json: AsJson = False) -> None:
    """List the data sets that have names: the public ones, and those that were imported."""
    found = _known()
    if as_json:
        print_json(found)
        return
    width = max(len(one["name"]) for one in found)
    for one in found:
        echo(f"{one['name']:<{width}}  {one['title']}")
        echo(f"{'':<{width}}  {', '.join(filter(None, [one['summary'], _size(one['size_bytes'])]))}")
        if one["licence"]:
            echo(f"{'':<{width}}  licence: {one['licence']}")
        echo(f"{'':<{width}}  {one['path'] or _how_to_get(one['name'])}\n")
    echo("For your own images, give the path of a folder, zip, CSV or Parquet file.")


@app.command("download")
def download_data(
    name: Annotated[
        str,
        typer.Argument(
            help="A data set of 'lookalike data list', such as tiny-imagenet.", autocompletion=completion.data_to_get
        ),
    ],
    into: Into = None,
) -> None:
    """Download a data set, verify its checksum and unpack it.

    A download that was stopped continues where it was. The data set is complete or absent.
    """
    import shutil

    from lookalike.data.download import download, hold
    from lookalike.data.import_dataset import import_dataset
    from lookalike.data.registry import DATASETS, data_home, installed

    home = into.expanduser() if into is not None else data_home()
    if name == "builtin":
        echo("builtin needs no download: its images are drawn when they are first used.")
        return
    if (there := installed(name, home)) is not None:
        echo(f"{name} is already in {there}")
        return
    if name not in DATASETS:
        known = ["builtin", *DATASETS]
        raise InputError(f"no data set is named '{name}'.{nearest(name, known)}", "'lookalike data list' lists them.")
    spec = DATASETS[name]
    if not spec.mirrors:
        raise InputError(f"{name} cannot be downloaded by a program.", spec.by_hand)
    if (home / name).exists():
        raise InputError(f"{home / name}: exists, and is not {name}.", "Move it away, or choose --into DIR.")
    partial = home / f".{name}.download"
    with hold(partial):
        with progress_bar("downloading", unit="bytes") as progress:
            try:
                mirror, folder = download(name, spec.mirrors, partial, progress=progress)
            except (KeyboardInterrupt, SystemExit):
                echo("Stopped. The part that arrived is kept; the same command continues with it.", err=True)
                raise
            except DownloadError as error:
                raise DownloadError(error.message, spec.by_hand or error.remedy) from None
        source = folder / mirror.files[0].name if len(mirror.files) == 1 else folder
        with progress_bar("unpacking") as progress:
            done = import_dataset(source, name, home, progress=progress)
        shutil.rmtree(partial, ignore_errors=True)
    echo(f"{name} is in {done}")
    if mirror.remark:
        echo(mirror.remark)
    echo(f"Next: lookalike data check {shlex.quote(str(name if into is None else done))}")


@app.command("check")
def check_data(source: Source, as_json: AsJson = False) -> None:
    """Read every image: count them, and find damaged images, duplicates across splits and wrong labels.

    Exit code 2 if the data set cannot be used as it is.
    """
    from lookalike.data.check import check
    from lookalike.data.registry import load_dataset

    catalog = load_dataset(source)
    with progress_bar("checking") as progress:
        report = check(catalog, progress=progress)
    if as_json:
        print_json(report.to_json())
    else:
        echo(report)
    if not report.usable:
        raise InputError(f"{source}: {report.verdict}", "Mend what the report names.")


@app.command("preview")
def preview_data(
    source: Source,
    out: Annotated[Path, typer.Option("--out", "-o", help="Image to write: .png, .jpg or .webp.")] = Path(
        "contact-sheet.png"
    ),
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Show this class; repeat for more. Default: all classes.")
    ] = None,
    per_class: Annotated[int, typer.Option(min=1, help="Images of each class.")] = 8,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "train",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random choice of images.")] = 0,
) -> None:
    """Write a contact sheet: an image with some images of each class."""
    from lookalike.data.contact_sheet import contact_sheet
    from lookalike.data.registry import load_dataset
    from lookalike.data.scan import sentence

    catalog = load_dataset(source)
    page = contact_sheet(catalog, out, classes=classes, per_class=per_class, split=_split(split), seed=seed)
    echo(page)
    if catalog.passed_over:
        echo(sentence(catalog.passed_over), err=True)


@app.command("import")
def import_data(
    source: Annotated[Path, typer.Argument(help="A folder, a zip, or a Hugging Face Parquet copy.")],
    name: Annotated[str, typer.Option(help="Name of the new data set, such as pets.")],
    into: Into = None,
) -> None:
    """Copy images into a data set with a name. The data set is complete or absent."""
    from lookalike.data.import_dataset import import_dataset
    from lookalike.data.registry import data_home
    from lookalike.data.scan import MEDIA, sentence

    with progress_bar("importing") as progress:
        folder = import_dataset(source, name, into or data_home(), progress=progress)
    known_as = name if into is None else shlex.quote(str(folder))
    echo(f"{name} is in {folder}")
    if said := sentence({kind: count for kind, count in _passed_over(source).items() if kind in MEDIA}):
        echo(said)
    echo(f"Next: lookalike data check {known_as}")


def _passed_over(source: Path) -> Mapping[str, int]:
    """Count the files of a folder or zip that have no name of an image, by their extensions."""
    from lookalike.data.image_folder import Tree

    return Tree.open(source).passed_over if source.is_dir() or source.suffix.lower() == ".zip" else {}


def _split(text: str) -> Split:
    from lookalike.data.catalog import SPLITS

    for split in SPLITS:
        if text == split:
            return split
    raise InputError(f"no split is named '{text}'.{nearest(text, SPLITS)}", "Use train, val or test.")


def _known() -> list[dict[str, Any]]:
    """Describe the built-in data set, the public ones and those that were imported."""
    from lookalike.data.registry import BUILTIN, DATASETS, data_home, installed

    known: list[dict[str, Any]] = [
        _described(BUILTIN, "Drawn here: shapes in six families", "24 classes; 3,600 train, 600 val, 600 test images")
    ]
    for spec in DATASETS.values():
        title, path = f"{spec.title}: {spec.about}", installed(spec.name)
        known.append(_described(spec.name, title, spec.summary, spec.size_bytes, spec.licence, path))
    known += [
        _described(folder.name, "imported", path=folder)
        for folder in sorted(data_home().glob("*/"))
        if folder.name not in DATASETS and not folder.name.startswith(".") and folder.is_dir()
    ]
    return known


def _described(
    name: str, title: str, summary: str = "", size_bytes: int | None = None, licence: str = "", path: Path | None = None
) -> dict[str, Any]:
    return {
        "name": name,
        "title": title,
        "summary": summary,
        "size_bytes": size_bytes,
        "licence": licence,
        "path": str(path) if path is not None else None,
    }


def _how_to_get(name: str) -> str:
    from lookalike.data.registry import DATASETS, how_to_get

    return how_to_get(DATASETS[name]) if name in DATASETS else "drawn when it is first used"


def _size(size_bytes: int | None) -> str:
    return "" if not size_bytes else f"{size_bytes / 2**20:,.0f} MiB to download"
