"""Keep a gallery and search it by what pictures look like: the whole way in Python.

    python examples/search_by_look.py [MODEL FOLDER]

MODEL is a model folder, FOLDER holds pictures. Without them, a small set is drawn and a small model trained on it, so
that the example runs anywhere in about half a minute.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import lookalike
from lookalike.data import synthetic


def main() -> None:
    """Run the example."""
    work = Path(tempfile.mkdtemp(prefix="lookalike-"))
    if len(sys.argv) > 2:
        model, pictures = Path(sys.argv[1]), Path(sys.argv[2])
    else:
        drawn = synthetic.catalog(size=48, train_per_class=60, val_per_class=10, test_per_class=0, cache=work / "drawn")
        changes = {"data__image_size": 48, "training__epochs": 4, "training__precision": "float32"}
        model = lookalike.train("quickstart", data=drawn.root, out=work / "runs" / "drawn", **changes).model_dir
        pictures = drawn.root / "train"

    # A gallery takes vectors of one model only, and remembers where it is.
    with lookalike.Gallery.create(work / "pictures.gallery", model) as gallery:
        report = gallery.add(pictures)
        print(f"{report.added} images added, {report.failed} failed")
        threshold = gallery.calibrate().threshold  # by the labels, which are the names of the folders

    # Later, in another program: the model is loaded once a picture is to be understood.
    with lookalike.Gallery.open(work / "pictures.gallery") as gallery:
        query = next(gallery.store.rows())
        found = gallery.search(query.path, k=5)
        print(f"\n{query.path}  ({'exact' if found.exact else 'approximate'} search)")
        for hit in found:
            print(f"  {hit.score:.3f}  {hit.path}")

        # By the id of a row; only as much alike as pairs of different labels are once in a hundred times.
        alike = gallery.search(query.id, k=50, threshold="calibrated")
        print(f"{len(alike)} others reach {threshold:.3f}, which 1 % of the pairs of different labels do")

        gallery.write_results_page(work / "wall.html", query.path, found)
        print(f"look at {work / 'wall.html'}")
        print(f"{gallery.export(work / 'pictures.parquet')} rows written to {work / 'pictures.parquet'}")
        assert not gallery.check().problems


if __name__ == "__main__":
    main()
