"""`lookalike data`: the data sets there are, getting them, checking them, looking at them."""

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

app = typer.Typer(name="data", help="Data sets: list, get, check, import, show.", no_args_is_help=True)


def get(
    name: Annotated[
        str,
        typer.Argument(
            help="A data set that 'lookalike data list' knows, such as tiny-imagenet.",
            autocompletion=completion.data_to_get,
        ),
    ],
    into: Annotated[Path | None, typer.Option(help="The folder of all data sets, when not the usual one.")] = None,
) -> None:
    """Download a data set, check it and unpack it; it is complete or absent.

    It can be stopped at any moment; the next call goes on where this one was.
    """
    import shutil

    from lookalike.data.download import SOURCES, data_home, download, hold, installed
    from lookalike.data.import_dataset import import_dataset

    home = into.expanduser() if into is not None else data_home()
    if name == "builtin":
        echo("builtin is drawn when it is first used: there is nothing to get.")
        return
    if (there := installed(name, home)) is not None:
        echo(f"{name} is there already, in {there}")
        return
    if name not in SOURCES:
        known = ["builtin", *SOURCES]
        raise InputError(
            f"no data set named '{name}' can be got.{nearest(name, known)}", "'lookalike data list' lists them."
        )
    if (home / name).exists():
        raise InputError(f"{home / name}: this is something else than {name}.", "Move it away, or choose --into DIR.")
    arriving = home / f".{name}.download"
    with hold(arriving):
        with progress_bar("downloading", unit="bytes") as progress:
            try:
                mirror, folder = download(name, SOURCES[name], arriving, progress=progress)
            except (KeyboardInterrupt, SystemExit):
                echo("Stopped; what has arrived is kept. The same command goes on with it.", err=True)
                raise
            except DownloadError as error:
                if not SOURCES[name].by_hand:
                    raise
                raise DownloadError(error.message, SOURCES[name].by_hand) from None
        source = folder / mirror.files[0].name if len(mirror.files) == 1 else folder
        with progress_bar("unpacking") as progress:
            done = import_dataset(source, name, home, progress=progress)
        shutil.rmtree(arriving, ignore_errors=True)
    echo(f"{name} is in {done}")
    if mirror.remark:
        echo(mirror.remark)
    echo(f"Next: lookalike data check {shlex.quote(str(name if into is None else done))}")


app.command("get")(get)


Source = Annotated[
    str,
    typer.Argument(
        help="A name such as builtin, or a folder, zip, CSV or Parquet file.", autocompletion=completion.data
    ),
]


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_data(as_json: AsJson = False) -> None:
    """List the data sets that are known by name, and where they lie."""
    found = _known()
    if as_json:
        print_json(found)
        return
    width = max(len(one["name"]) for one in found)
    for one in found:
        echo(f"{one['name']:<{width}}  {one['title']}")
        echo(f"{'':<{width}}  {', '.join(filter(None, [one['counts'], _size(one['size_bytes'])]))}")
        echo(f"{'':<{width}}  {one['path'] or _how_to_get(one['name'])}\n")
    echo("Your own pictures: give the path of a folder, zip, CSV or Parquet file.")


@app.command("check")
def check(source: Source, as_json: AsJson = False) -> None:
    """Read every image: counts, images that cannot be decoded, duplicates across splits, wrong labels.

    Ends with exit code 2 when the data set cannot be used as it is.
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
        raise InputError(f"{source}: {report.verdict}", "The report names what is to be mended.")


@app.command("import")
def import_data(
    source: Annotated[Path, typer.Argument(help="A folder, a zip, or a Hugging Face Parquet copy.")],
    name: Annotated[str, typer.Option(help="What to call it, such as pets or tiny-imagenet.")],
    into: Annotated[Path | None, typer.Option(help="The folder of all data sets, when not the usual one.")] = None,
) -> None:
    """Make a data set with a name of its own out of what you have; it is complete or absent."""
    from lookalike.data.download import data_home
    from lookalike.data.import_dataset import import_dataset
    from lookalike.data.scan import MEDIA, sentence

    with progress_bar("importing") as progress:
        folder = import_dataset(source, name, into or data_home(), progress=progress)
    known_as = name if into is None else shlex.quote(str(folder))
    echo(f"{name} is in {folder}")
    if said := sentence({kind: count for kind, count in _passed_over(source).items() if kind in MEDIA}):
        echo(said)
    echo(f"Next: lookalike data check {known_as}")


def _passed_over(source: Path) -> Mapping[str, int]:
    """How many files of each kind a folder or zip has that are no images by name."""
    from lookalike.data.image_folder import Tree

    return Tree.open(source).passed_over if source.is_dir() or source.suffix.lower() == ".zip" else {}


@app.command("show")
def show(
    source: Source,
    out: Annotated[Path, typer.Option(help="The page to write: .png, .jpg or .webp.")] = Path("contact-sheet.png"),
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="A class to show; repeat it for more. By default all.")
    ] = None,
    per_class: Annotated[int, typer.Option(min=1, help="Pictures of each class.")] = 8,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "train",
    seed: Annotated[int, typer.Option(min=0, help="Which pictures.")] = 0,
) -> None:
    """Write a contact sheet: some pictures of each class on one page."""
    from lookalike.data.contact_sheet import contact_sheet
    from lookalike.data.registry import load_dataset
    from lookalike.data.scan import sentence

    catalog = load_dataset(source)
    page = contact_sheet(catalog, out, classes=classes, per_class=per_class, split=_split(split), seed=seed)
    echo(page)
    if catalog.passed_over:
        echo(sentence(catalog.passed_over), err=True)


def _split(text: str) -> Split:
    from lookalike.data.catalog import SPLITS

    for split in SPLITS:
        if text == split:
            return split
    raise InputError(f"No split is called '{text}'.{nearest(text, SPLITS)}", "Use train, val or test.")


def _known() -> list[dict[str, Any]]:
    """What `list` shows: the built-in set, those that can be downloaded, and those that were imported."""
    from lookalike.data.download import SOURCES, data_home, installed

    known: list[dict[str, Any]] = [
        {
            "name": "builtin",
            "title": "Drawn here: 24 classes of shapes in six families",
            "counts": "3,600 training, 600 validation, 600 test images",
            "size_bytes": None,
            "path": None,
        }
    ]
    for name, one in SOURCES.items():
        path = installed(name)
        known.append(
            {
                "name": name,
                "title": one.title,
                "counts": one.counts,
                "size_bytes": one.size_bytes,
                "path": str(path) if path is not None else None,
            }
        )
    for folder in sorted(data_home().glob("*/")):
        if folder.name not in SOURCES and not folder.name.startswith(".") and folder.is_dir():
            imported = {"name": folder.name, "title": "imported", "counts": "", "size_bytes": None, "path": str(folder)}
            known.append(imported)
    return known


def _how_to_get(name: str) -> str:
    return "nothing to get: drawn when it is first used" if name == "builtin" else f"get it: lookalike data get {name}"


def _size(size_bytes: int | None) -> str:
    return "" if not size_bytes else f"{size_bytes / 2**20:,.0f} MiB to download"
