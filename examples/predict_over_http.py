"""Classify images and search a gallery over HTTP.

    python examples/predict_over_http.py [IMAGE...]

The example starts a service on a gallery of a few synthetic images, with the model in the package, and stops it at the
end. For a running service you only need `ask` and its URL. Without IMAGE, a synthetic image is used.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

import lookalike
from lookalike.data import synthetic

COMMAND = [sys.executable, "-c", "from lookalike.cli.main import run; run()", "serve"]  # as `lookalike serve`
PATIENCE = 120.0  # seconds; a model that is served for the first time is exported to ONNX first


@contextmanager
def service(gallery: Path, work: Path) -> Iterator[str]:
    """Run a service and yield its URL once it is ready."""
    log = work / "service.log"
    with log.open("wb") as file:
        process = subprocess.Popen([*COMMAND, str(gallery), "--port", "0"], stderr=file)
    try:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and process.poll() is None:
            found = re.search(r"http://\S+", log.read_text())
            if found and httpx.get(f"{found.group()}ready").status_code == 200:
                yield found.group()
                return
            time.sleep(0.1)
        raise SystemExit(log.read_text())
    finally:
        process.terminate()
        process.wait()


def ask(client: httpx.Client, path: Path) -> None:
    """Print the prediction for an image and the most similar items."""
    image = {"image": path.read_bytes()}
    predicted = client.post("/v1/predict", params={"k": 3}, files=image).raise_for_status().json()
    (prediction,) = predicted["predictions"]
    print(f"{path.name}: {'unknown; the best guesses are' if prediction['unknown'] else 'prediction'}")
    for one in prediction["classes"]:
        print(f"  {one['probability']:6.1%}  {one['label']}")
    found = client.post("/v1/search", params={"k": 3}, files=image).raise_for_status().json()
    print(f"most similar items ({found['took_ms']:.1f} ms):")
    for hit in found["hits"]:
        print(f"  {hit['score']:.3f}  {hit['label']}, item {hit['id']}")


def main() -> None:
    """Run the example."""
    work = Path(tempfile.mkdtemp(prefix="lookalike-"))
    drawn = synthetic.catalog(train_per_class=4, val_per_class=1, test_per_class=0, cache=work / "drawn").root
    images = [Path(name) for name in sys.argv[1:]] or sorted((drawn / "val").rglob("*.png"))[:1]
    with lookalike.Gallery.create(work / "images.gallery") as gallery:
        gallery.add(drawn / "train")
    with service(work / "images.gallery", work) as url, httpx.Client(base_url=url) as client:
        for path in images:
            ask(client, path)
        # Items can be added over HTTP. They are on the disk when the response arrives.
        (item,) = client.post("/v1/items", files={"image": images[0].read_bytes()}).raise_for_status().json()["items"]
        again = client.post("/v1/search", params={"id": item["id"], "k": 1}).json()
        print(f"added as item {item['id']}; the nearest other is item {again['hits'][0]['id']}")


if __name__ == "__main__":
    main()
