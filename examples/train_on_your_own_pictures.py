"""Train on a folder of pictures, look at the numbers, and ask the model: the whole way in Python.

    python examples/train_on_your_own_pictures.py [FOLDER]

FOLDER holds one folder of pictures for each class. Without it, a small one is drawn, so that the example runs anywhere
in about half a minute.
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
    if len(sys.argv) > 1:
        pictures = Path(sys.argv[1])
    else:
        drawn = synthetic.catalog(size=48, train_per_class=60, val_per_class=10, test_per_class=0, cache=work / "drawn")
        pictures = drawn.root

    # A shipped recipe with changes; the result is a folder with model, report and receipt.
    changes = {"data__image_size": 48, "training__epochs": 8}
    run = lookalike.train("quickstart", data=pictures, out=work / "runs" / "mine", **changes)
    results = run.receipt()["results"]
    print(f"top-1 {results['top1']:.1%} on {results['n']} pictures that it has not seen")
    print(f"chance is {1 / len(results['per_class']):.1%}")
    print(f"look at {run.report_path}")

    # The model folder is all that one needs to use it.
    model = lookalike.load(run.model_dir)
    picture = sorted(path for path in pictures.rglob("*") if path.suffix in {".png", ".jpg"})[0]
    print(f"\n{picture}")
    for answer in model.predict(picture, k=3):
        print(f"  {answer.probability:6.1%}  {answer.label}")
    print(f"a vector for looking alike: {model.embed([picture]).shape}")


if __name__ == "__main__":
    main()
