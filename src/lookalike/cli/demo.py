"""`lookalike demo`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from lookalike.cli.console import echo, is_main_process
from lookalike.cli.reproduce import Out, show, train
from lookalike.cli.serve import absent_packages

if TYPE_CHECKING:
    from lookalike.run import Run

GALLERY = "pictures.gallery"
UNSEEN_SPLITS = ("val", "test")


def demo(out: Out = Path("runs")) -> None:
    """Train on built-in images and make a gallery of others: a tour of 5 to 20 minutes on two cores, without data."""
    from lookalike.extras import install_command
    from lookalike.reproduce import study

    planned = study.plan(study.load("demo"), "demo")
    runs = train(planned, out)
    if not is_main_process():
        return
    show(planned, runs)
    best = max(runs, key=lambda run: float(run.receipt()["results"].get("top1", 0)))
    location, count = _make_gallery(best)
    absent = f" ({install_command('serve')})" if absent_packages() else ""
    shown, model = shlex.quote(str(location)), shlex.quote(str(best.model_dir))
    echo(
        f"""
Report    {best.report_path}
Gallery   {location}   {count:,} images that the model was not trained on

Next:
  lookalike serve {shown}    a web page that predicts and searches{absent}
  lookalike predict photo.jpg --model {model}    the classes of an image
  lookalike train quickstart --data my-photos --out runs/mine    your own photos, one folder per class
  lookalike data download tiny-imagenet                          200 classes of photographs"""
    )


def _make_gallery(run: Run) -> tuple[Path, int]:
    """Make or update a gallery of built-in images in the run folder; return its location and number of items."""
    from lookalike import Gallery
    from lookalike.data import synthetic

    location = run.path / GALLERY
    images = synthetic.catalog().root
    exists = location.exists()
    with Gallery.open(location, write=True) if exists else Gallery.create(location, run.model_dir) as gallery:
        for split in UNSEEN_SPLITS:
            gallery.add(images / split)
        return location, len(gallery)
