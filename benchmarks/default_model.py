"""Make the packaged model from a run on Tiny ImageNet, and evaluate it with the help of a twin.

    python benchmarks/default_model.py twin tiny-imagenet FOLDER
    lookalike train RECIPE --data FOLDER --out runs/twin
    python benchmarks/default_model.py make runs/RUN/model --twin runs/twin/model --cars cars196

`twin` links the images of 180 of the 200 classes, leaving out every tenth class. A network trained on these classes
shows how well such a network works on unseen classes: whether it finds similar images, and whether it calls the images
unknown. `make` writes src/lookalike/models/default/ with float16 weights, and docs/default-model.json, the source of
the numbers in the model card.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lookalike
from lookalike.data.catalog import Catalog
from lookalike.data.pack import Pack, pack
from lookalike.data.registry import load_dataset
from lookalike.evaluation.calibration import fit_temperature, log_softmax, unknown_threshold
from lookalike.evaluation.classification import summary
from lookalike.evaluation.evaluate import evaluate_retrieval
from lookalike.evaluation.pair_similarity import match_threshold
from lookalike.evaluation.protocols import named
from lookalike.evaluation.retrieval import recall_at_k
from lookalike.models.pretrained import ImageModel
from lookalike.models.serialization import CARD, DEFAULT_FOLDER
from lookalike.run import current_commit, hardware

TENTH = 10
KS = (1, 2, 4, 8)
RECEIPT = Path(__file__).parents[1] / "docs" / "default-model.json"


def held_out(class_ids: tuple[str, ...]) -> set[str]:
    """Return every tenth class, in the order of the ids."""
    return set(sorted(class_ids)[TENTH - 1 :: TENTH])


def lay_out_twin(catalog: Catalog, folder: Path) -> None:
    """Link the training and validation images of the classes that are not held out, as SPLIT/CLASS/FILE."""
    left_out = held_out(catalog.class_ids)
    for split in ("train", "val"):
        for row in catalog.rows_of(split):
            mark = catalog.class_ids[catalog.labels[row]]
            if mark not in left_out:
                source = Path(catalog.root, catalog.paths[row]).resolve()
                link = folder / split / mark / source.name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(source)


def likeliest(model: ImageModel, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return (N,) the probability of the most probable class."""
    logits = model.logits(images, batch_size=256).astype(np.float64)
    return np.asarray(np.exp(log_softmax(logits / model.config.temperature)).max(1))


def measure_twin(twin: ImageModel, catalog: Catalog) -> dict[str, Any]:
    """Evaluate the twin on the validation images of its unseen classes."""
    val = pack(catalog.select(catalog.rows_of("val")), twin.config.image_size)
    left_out = held_out(catalog.class_ids)
    unseen = np.array([catalog.class_ids[label] in left_out for label in val.labels])
    if known := {*twin.config.class_ids} & left_out:
        sys.exit(f"the twin was trained on {sorted(known)[0]}, which is held out")
    assert twin.config.unknown_threshold is not None
    sure = likeliest(twin, np.asarray(val.images))
    below = sure < twin.config.unknown_threshold
    ranks = np.argsort(np.argsort(sure)) + 1.0
    n, m = int((~unseen).sum()), int(unseen.sum())
    return {
        "classes": twin.config.num_classes,
        "held_out_classes": len(left_out),
        "held_out_images": m,
        "recall": recall_at_k(twin.embed(np.asarray(val.images)[unseen], batch_size=256), val.labels[unseen], KS),
        "unknown_among_seen": float(below[~unseen].mean()),
        "unknown_among_unseen": float(below[unseen].mean()),
        "auroc": float((ranks[~unseen].sum() - n * (n + 1) / 2) / (n * m)),  # P(confidence of a seen class > unseen)
    }


def measure_cars(model: ImageModel, source: str) -> dict[str, Any]:
    """Return the recall on Cars196, which the model was not trained on."""
    divided = named("cars196-zero-shot").divide(load_dataset(source))
    test: Pack = pack(divided.test, model.config.image_size, crop_mode=model.config.crop_mode)
    results = evaluate_retrieval(model, divided, test).metrics
    return {"remark": divided.remark, "recall": {k: results[f"recall_at_{k}"] for k in KS}}


def make(run: Path, twin: Path, data: str, cars: str) -> None:
    """Write the model folder and its receipt."""
    commit = current_commit()  # before the model's own files change
    found = lookalike.load(run)
    catalog = load_dataset(data)
    val = pack(catalog.select(catalog.rows_of("val")), found.config.image_size)
    images = np.asarray(val.images)
    found.save_pretrained(DEFAULT_FOLDER, precision="float16")
    model = lookalike.load()
    logits = model.logits(images, batch_size=256)
    temperature = fit_temperature(logits, val.labels)
    measures = {
        "temperature": temperature,
        "match_threshold": match_threshold(model.embed(images, batch_size=256), val.labels),
        "unknown_threshold": unknown_threshold(logits, temperature),
    }
    ImageModel(model.network, model.config.model_copy(update=measures)).save_pretrained(DEFAULT_FOLDER)
    model = lookalike.load()
    numbers = summary(logits, val.labels, class_names=catalog.class_names, temperature=temperature)
    receipt = {
        "name": "default-model",
        "date": date.today().isoformat(),
        "commit": commit,
        "hardware": hardware(),
        "command": f"python benchmarks/default_model.py make {_short(run)} --twin {_short(twin)}",
        "fingerprint": model.fingerprint,
        "bytes": sum(file.stat().st_size for file in DEFAULT_FOLDER.iterdir()),
        "run": json.loads((run.parent / "receipt.json").read_text())["name"],
        "recognition": {key: numbers[key] for key in ("n", "top1", "top5", "ece_cross_fitted")} | measures,
        "twin": measure_twin(lookalike.load(twin), catalog)
        | {"run": json.loads((twin.parent / "receipt.json").read_text())["name"]},
        "cars196": measure_cars(model, cars),
    }
    RECEIPT.write_text(json.dumps(receipt, indent=2) + "\n")
    with (DEFAULT_FOLDER / CARD).open("a") as card:
        card.write(measured_section(receipt))
    print((DEFAULT_FOLDER / CARD).read_text())


def _short(model: Path) -> str:
    """Return the model folder of a run as a path that is the same on every machine."""
    return f"runs/{model.resolve().parent.name}/model"


def measured_section(receipt: dict[str, Any]) -> str:
    """Return the last section of the model card."""
    seen, twin, cars = receipt["recognition"], receipt["twin"], receipt["cars196"]
    return f"""

## Measured

On {receipt["date"]}, in docs/default-model.json. One view, no test-time augmentation.

- Recognition: {seen["top1"]:.2%} top-1, {seen["top5"]:.2%} top-5 on the {seen["n"]:,} validation images of Tiny
  ImageNet; calibration error {seen["ece_cross_fitted"]:.4f}. Temperature and thresholds were fitted on the same images.
- Classes never seen: a twin, the same network trained for a shorter time on {twin["classes"]} of the classes, was shown
  the {twin["held_out_images"]:,} validation images of the other {twin["held_out_classes"]}, each searched among the
  others: Recall@1 {twin["recall"][1]:.2%}, Recall@8 {twin["recall"][8]:.2%}. It called
  {twin["unknown_among_unseen"]:.0%} of them unknown, and {twin["unknown_among_seen"]:.0%} of the images of the classes
  that it knows (AUROC {twin["auroc"]:.3f}).
- Cars196, of which it saw nothing ({cars["remark"]}), protocol cars196-zero-shot: Recall@1 {cars["recall"][1]:.2%},
  Recall@8 {cars["recall"][8]:.2%}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    lay = verbs.add_parser("twin")
    lay.add_argument("data")
    lay.add_argument("folder", type=Path)
    making = verbs.add_parser("make")
    making.add_argument("run", type=Path, help="the model folder of a run")
    making.add_argument("--twin", type=Path, required=True, help="the model folder of its twin")
    making.add_argument("--data", default="tiny-imagenet")
    making.add_argument("--cars", default="cars196")
    given = parser.parse_args()
    if given.verb == "twin":
        lay_out_twin(load_dataset(given.data), given.folder)
    else:
        make(given.run, given.twin, given.data, given.cars)


if __name__ == "__main__":
    main()
