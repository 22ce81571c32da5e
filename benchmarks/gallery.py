"""Compare the store in a folder with FAISS, usearch and LanceDB on the same vectors: building, searching, filtering.

    python benchmarks/gallery.py [--rows 100000] [--dim 512] [--queries 300] [--threads 2] [--folder DIR]

The vectors are random, in float16 precision: a hundred around each centre, with a variance that falls from dimension
to dimension, as in embeddings. Queries come from the same distribution. The libraries run one after the other, each in
its own processes, and return ten hits for one query at a time. The gallery returns whole items (path, label, metadata)
from its folder; its build time includes writing the items to disk and the index. The other libraries return positions
from an index in memory. Graphs are searched with the smallest ef of a list that reaches a recall@10 of 0.99. Memory is
the maximum of a process, including mapped files (Linux). Libraries that are not installed are skipped.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.run import hardware

K = 10
CHUNK = 10_000
A_CLASS = 100  # vectors around a centre
SHELVES = 100  # labels, independent of the centres: each filters to 1 %
EF_VALUES = (32, 48, 64, 96, 128, 192, 256, 384, 512)
MIN_RECALL = 0.99
BATCH = 1000  # rows added to the gallery at a time
PACKAGES = ("lookalike", "numpy", "usearch", "numkong", "faiss-cpu", "lancedb")

Vectors = NDArray[np.float32]
Line = dict[str, Any]


def parts(count: int, dim: int, rows: int, seed: int) -> Iterator[Vectors]:
    """Yield (CHUNK, dim) float32 of length 1, `count` in all; the centres depend on `rows`."""
    spectrum = np.arange(1, dim + 1, dtype=np.float32) ** -0.5
    fixed = np.random.default_rng(0)
    turn = np.linalg.qr(fixed.standard_normal((dim, dim)))[0].astype(np.float32)
    centres = fixed.standard_normal((max(rows // A_CLASS, 1), dim), dtype=np.float32)
    random = np.random.default_rng(seed)
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        own = random.standard_normal((size, dim), dtype=np.float32)
        vectors = ((centres[random.integers(0, len(centres), size)] + own) * spectrum) @ turn
        yield vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make(folder: Path, rows: int, dim: int, queries: int) -> None:
    """Write vectors, shelves, queries and the expected hits, with and without a filter."""
    vectors = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float16, (rows, dim))
    asked = next(parts(queries, dim, rows, seed=2))
    shelves = np.random.default_rng(3).integers(0, SHELVES, rows)
    products = np.empty((queries, rows), np.float32)
    for number, part in enumerate(parts(rows, dim, rows, seed=1)):
        place = slice(number * CHUNK, number * CHUNK + len(part))
        vectors[place] = part
        kept = vectors[place].astype(np.float32)
        products[:, place] = asked @ (kept / np.linalg.norm(kept, axis=1, keepdims=True)).T
    vectors.flush()
    right = np.argpartition(-products, K, axis=1)[:, :K]
    one = [np.flatnonzero(shelves == query % SHELVES) for query in range(queries)]
    filtered = [among[np.argsort(-products[query, among])[:K]] for query, among in enumerate(one)]
    np.savez(folder / "rest.npz", queries=asked, shelves=shelves, right=right, filtered=np.array(filtered))


def held() -> float:
    """Return the maximum memory of this process in megabytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


class Data:
    """What `make` wrote."""

    def __init__(self, folder: Path) -> None:
        self.vectors: NDArray[np.float16] = np.load(folder / "vectors.npy", mmap_mode="r")
        rest = np.load(folder / "rest.npz")
        self.queries, self.shelves = rest["queries"], rest["shelves"]
        self.right, self.filtered = rest["right"], rest["filtered"]

    def all(self) -> Vectors:
        """Return (N, D) float32 in memory, for the libraries that need it."""
        return np.asarray(self.vectors, np.float32)

    def measured(self, what: str, ask: Callable[[int], Any], numbers: Callable[[Any], Any], right: Any = None) -> Line:
        """Search one query at a time, first to warm up, then to measure recall and times in milliseconds."""
        right = self.right if right is None else right
        for query in range(min(20, len(self.queries))):
            ask(query)
        times, shares = [], []
        for query in range(len(self.queries)):
            start = time.perf_counter()
            answer = ask(query)
            times.append(1000 * (time.perf_counter() - start))
            shares.append(len(np.intersect1d(numbers(answer), right[query])) / len(right[query]))
        p50, p95 = np.quantile(times, (0.5, 0.95))
        return {"what": what, "recall": statistics.fmean(shares), "p50": float(p50), "p95": float(p95)}

    def least_effort(self, what: str, set_effort: Callable[[int], None], ask: Callable[[int], Any]) -> Line:
        """Measure with the first of `EF_VALUES` that reaches `MIN_RECALL`, or the last."""
        for effort in EF_VALUES:
            set_effort(effort)
            line = self.measured(f"{what}, ef {effort}", ask, lambda answer: answer)
            if line["recall"] >= MIN_RECALL:
                break
        return line


def gallery_build(data: Data, folder: Path) -> list[Line]:
    """Build the gallery: from vectors to items on disk and the index."""
    from lookalike.gallery.store.base import GalleryInfo, NewItem
    from lookalike.gallery.store.sqlite import SqliteStore

    start = time.perf_counter()
    with SqliteStore.create(folder / "b.gallery", GalleryInfo("0" * 64, data.vectors.shape[1])) as store:
        for first in range(0, len(data.vectors), BATCH):
            vectors = data.vectors[first : first + BATCH].astype(np.float32)
            store.add(
                [
                    NewItem(f"images/{n:09}.jpg", b"%032d" % n, vector, label=f"shelf {data.shelves[n]}")
                    for n, vector in enumerate(vectors, first)
                ]
            )
    seconds = time.perf_counter() - start
    size = sum(path.stat().st_size for path in (folder / "b.gallery").iterdir()) / 1e6
    return [{"what": "lookalike gallery, building", "build": seconds, "disk": size, "memory": held()}]


def gallery_search(data: Data, folder: Path) -> list[Line]:
    """Search approximately, exactly, and with a filter that passes 1 %."""
    from lookalike.gallery.store.sqlite import SqliteStore

    def ask(query: int, **how: Any) -> Any:
        return store.search(data.queries[query], K, **how)[0]

    def numbers(found: Any) -> list[int]:
        return [int(hit.digest) for hit in found.hits]

    def on_one_shelf(query: int) -> Any:
        return ask(query, filter={"label": f"shelf {query % SHELVES}"})

    start = time.perf_counter()
    with SqliteStore.open(folder / "b.gallery") as store:
        ask(0)
        ready = time.perf_counter() - start
        kind = "exact" if ask(0).exact else "approximate"
        lines = [data.measured(f"lookalike gallery, {kind}", ask, numbers)]
        lines[0] |= {"ready": ready, "memory": held()}
        lines.append(data.measured("lookalike gallery, exact", lambda query: ask(query, exact=True), numbers))
        lines.append(data.measured("lookalike gallery, 1 % by label", on_one_shelf, numbers, data.filtered))
    return lines


def faiss_hnsw(data: Data, folder: Path) -> list[Line]:
    """FAISS HNSW with 32 links, in float32."""
    import faiss

    index = faiss.IndexHNSWFlat(data.vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 128
    vectors = data.all()
    start = time.perf_counter()
    index.add(vectors)
    seconds = time.perf_counter() - start

    def set_effort(effort: int) -> None:
        index.hnsw.efSearch = effort

    def ask(query: int) -> Any:
        return index.search(data.queries[query : query + 1], K)[1]

    line = data.least_effort("FAISS HNSW", set_effort, ask)
    return [line | {"build": seconds, "memory": held()}]


def faiss_flat(data: Data, folder: Path) -> list[Line]:
    """FAISS flat index, which compares all vectors."""
    import faiss

    index = faiss.IndexFlatIP(data.vectors.shape[1])
    start = time.perf_counter()
    index.add(data.all())
    seconds = time.perf_counter() - start

    def ask(query: int) -> Any:
        return index.search(data.queries[query : query + 1], K)[1]

    return [data.measured("FAISS flat, exact", ask, lambda answer: answer) | {"build": seconds, "memory": held()}]


def usearch(data: Data, folder: Path) -> list[Line]:
    """HNSW of usearch with its default settings, in float16."""
    from usearch.index import Index

    index = Index(ndim=data.vectors.shape[1], metric="ip", dtype="f16")
    start = time.perf_counter()
    for first in range(0, len(data.vectors), CHUNK):
        part = np.asarray(data.vectors[first : first + CHUNK])
        index.add(np.arange(first, first + len(part), dtype=np.uint64), part, threads=len(os.sched_getaffinity(0)))
    seconds = time.perf_counter() - start

    def set_effort(effort: int) -> None:
        index.expansion_search = effort

    def ask(query: int, exact: bool = False) -> Any:
        return index.search(data.queries[query].astype(np.float16), K, exact=exact).keys

    line = data.least_effort("usearch HNSW", set_effort, ask) | {"build": seconds, "memory": held()}
    return [line, data.measured("usearch, exact", lambda query: ask(query, exact=True), lambda answer: answer)]


def lance(data: Data, folder: Path) -> list[Line]:
    """LanceDB with IVF, HNSW and scalar quantization, and without an index; returns row data, as the gallery does."""
    import lancedb
    import pyarrow as pa

    def batches() -> Iterator[Any]:
        for first in range(0, len(data.vectors), CHUNK):
            part = data.vectors[first : first + CHUNK].astype(np.float32)
            column = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), part.shape[1])
            numbers = np.arange(first, first + len(part))
            names = pa.array([f"images/{n:09}.jpg" for n in numbers])
            yield pa.record_batch([pa.array(numbers), names, column], names=["id", "path", "vector"])

    start = time.perf_counter()
    made = list(batches())
    table = lancedb.connect(folder / "lance").create_table("images", pa.Table.from_batches(made))

    def ask(query: int) -> Any:
        return table.search(data.queries[query]).distance_type("dot").limit(K).to_arrow()["id"].to_numpy()

    flat = data.measured("LanceDB, exact", ask, lambda answer: answer)
    start_index = time.perf_counter()
    table.create_index(metric="dot", vector_column_name="vector", index_type="IVF_HNSW_SQ")
    seconds = time.perf_counter() - start_index
    line = data.measured("LanceDB IVF-HNSW-SQ", ask, lambda answer: answer)
    return [line | {"build": seconds, "memory": held()}, flat | {"build": start_index - start}]


CONTESTANTS: dict[str, tuple[str, Callable[[Data, Path], list[Line]]]] = {
    "gallery-build": ("lookalike", gallery_build),
    "gallery": ("lookalike", gallery_search),
    "faiss-hnsw": ("faiss", faiss_hnsw),
    "faiss-flat": ("faiss", faiss_flat),
    "usearch": ("usearch", usearch),
    "lance": ("lancedb", lance),
}


def in_a_process(name: str, folder: Path) -> list[Line]:
    """Return the rows of one library."""
    command = [sys.executable, __file__, "--contestant", name, "--folder", folder]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def table(lines: list[Line]) -> str:
    """Return a Markdown table; values that were not measured are empty."""
    columns = {
        "recall": ("recall@10", "{:.4f}"),
        "p50": ("p50 ms", "{:.2f}"),
        "p95": ("p95 ms", "{:.2f}"),
        "build": ("build s", "{:.1f}"),
        "ready": ("ready s", "{:.2f}"),
        "disk": ("disk MB", "{:,.0f}"),
        "memory": ("memory MB", "{:,.0f}"),
    }
    rows = [f"| | {' | '.join(name for name, _ in columns.values())} |", "|---" + "|--:" * len(columns) + "|"]
    for line in lines:
        cells = [form.format(line[key]) if key in line else "" for key, (_, form) in columns.items()]
        rows.append(f"| {line['what']} | {' | '.join(cells)} |")
    return "\n".join(rows)


def versions() -> str:
    """Return the versions of the measured packages."""
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="vectors")
    parser.add_argument("--dim", type=int, default=512, help="numbers of a vector")
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2, help="of each process, by the cores that it may use")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--folder", type=Path, help="where the vectors and the gallery are made, and removed again")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        lines = CONTESTANTS[arguments.contestant][1](Data(arguments.folder), arguments.folder)
        print(json.dumps(lines))
        return
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    lines = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        make(Path(folder), arguments.rows, arguments.dim, arguments.queries)
        for name in arguments.only:
            module, _ = CONTESTANTS[name]
            if importlib.util.find_spec(module) is None:
                print(f"{name}: not measured, for want of {module}", file=sys.stderr)
                continue
            lines += in_a_process(name, Path(folder))
            print(f"{name} done", file=sys.stderr)
    machine = hardware()
    print(f"{arguments.rows:,} × {arguments.dim}, {arguments.queries} queries, each alone, {K} answers\n")
    print(table(lines))
    print(f"\n{date.today()}, {machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, {versions()}")


if __name__ == "__main__":
    main()
