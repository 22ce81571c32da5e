"""Keep a gallery and search it by visual similarity, in Python.

    python examples/search_by_look.py [MODEL FOLDER]

MODEL is a model folder, FOLDER has images. Without them, the example draws a small data set and trains a small model,
which takes about half a minute.
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
        model, images = Path(sys.argv[1]), Path(sys.argv[2])
    else:
        drawn = synthetic.catalog(size=48, train_per_class=60, val_per_class=10, test_per_class=0, cache=work / "drawn")
        changes = {"data__image_size": 48, "training__epochs": 4}
        model = lookalike.train("quickstart", data=drawn.root, out=work / "runs" / "drawn", **changes).model_dir
        images = drawn.root / "train"

    # A gallery has the vectors of one model, and remembers where that model is.
    with lookalike.Gallery.create(work / "images.gallery", model) as gallery:
        report = gallery.add(images)
        print(f"{report.added} images added, {report.failed} failed")
        threshold = gallery.calibrate().threshold  # uses the labels: the names of the folders

    # Later, in another program. The model is loaded when an image has to be embedded.
    with lookalike.Gallery.open(work / "images.gallery") as gallery:
        query = next(gallery.store.rows())
        found = gallery.search(query.path, k=5)
        print(f"\n{query.path}  ({'exact' if found.exact else 'approximate'} search)")
        for hit in found:
            print(f"  {hit.score:.3f}  {hit.path}")

        # Search with an item, and only for scores that 1 % of the pairs with different labels reach.
        similar = gallery.search(query.id, k=50, threshold="calibrated")
        print(f"{len(similar)} items reach the calibrated threshold {threshold:.3f}")

        gallery.write_results_page(work / "results.html", query.path, found)
        print(f"see {work / 'wall.html'}")
        print(f"{gallery.export(work / 'images.parquet')} items written to {work / 'images.parquet'}")
        assert not gallery.check().problems


if __name__ == "__main__":
    main()
