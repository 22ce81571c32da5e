"""`lookalike demo`: the whole thing on built-in pictures, and a gallery of them to ask afterwards."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from lookalike.cli.console import echo, is_main_process
from lookalike.cli.reproduce import Root, show, train
from lookalike.cli.serve import absent_packages

if TYPE_CHECKING:
    from lookalike.run import Run

GALLERY = "pictures.gallery"
UNSEEN = ("val", "test")  # splits that nothing was trained on


def demo(root: Root = Path("runs")) -> None:
    """See the whole thing work on built-in pictures: recognition, retrieval, a gallery; a few minutes on two cores."""
    from lookalike.extras import install_command
    from lookalike.reproduce import study

    planned = study.plan(study.load("demo"), "demo")
    runs = train(planned, root, None)
    if not is_main_process():
        return
    show(planned, runs)
    best = max(runs, key=lambda run: float(run.receipt()["results"].get("top1", 0)))
    place, pictures = _collect(best)
    absent = f" ({install_command('serve')})" if absent_packages() else ""
    shown, model = shlex.quote(str(place)), shlex.quote(str(best.model_dir))
    echo(
        f"""
Look at   {best.report_path}
Gallery   {place}   {pictures:,} pictures that it was not trained on

Next:
  lookalike serve {shown}    what is this, and what looks like it: a page{absent}
  lookalike predict picture.png --model {model}    what is this?
  lookalike train quickstart --data my-pictures --name mine     your own pictures, one folder per class
  lookalike data download tiny-imagenet                   200 classes of photographs"""
    )


def _collect(run: Run) -> tuple[Path, int]:
    """A gallery of the built-in pictures beside the run's model; those that are there already are skipped."""
    from lookalike import Gallery
    from lookalike.data import synthetic

    place = run.path / GALLERY
    pictures = synthetic.catalog().root
    is_there = place.exists()
    with Gallery.open(place, write=True) if is_there else Gallery.create(place, run.model_dir) as gallery:
        for split in UNSEEN:
            gallery.add(pictures / split)
        return place, len(gallery)
