"""Measure the speed while other programs use the processor cores, for several settings of how threads wait.

    python benchmarks/shared_machine.py [--settings lookalike passive spin-10000] [--tasks train-bf16 embed]

A setting is a set of environment variables for OpenMP: `lookalike` is what our commands set, `default` is OpenMP
without any. Each setting gets a new process per round. The processes of a round take turns of a few seconds, in a
rotating order, so that all run under the same conditions. 0, 1, ... busy loops run at the same time, as separate
processes that are not bound to a core. Tasks:

    train-bf16, train-float32   a training step of WeaveNet, batch 64, 64 pixels: forward, backward, optimizer
    embed                       256 images to vectors with the default model, one thread per core, as a gallery does
    serve                       one prediction request after the other to `lookalike serve`

The script prints the rate of `default` without loops, and for each setting the ratio to this rate in the same round,
as the median of the rounds. Beside N loops, the fair share of work on all C cores is C / (C + N) of its speed without
loops: what remains if the scheduler treats all alike. `--out` writes every measurement as JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from lookalike.hardware import cores, set_short_waits

SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "lookalike": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin-100": {"GOMP_SPINCOUNT": "100"},
    "spin-300": {"GOMP_SPINCOUNT": "300"},
    "spin-1000": {"GOMP_SPINCOUNT": "1000"},
    "spin-3000": {"GOMP_SPINCOUNT": "3000"},
    "spin-10000": {"GOMP_SPINCOUNT": "10000"},
    "spin-30000": {"GOMP_SPINCOUNT": "30000"},
    "spin-100000": {"GOMP_SPINCOUNT": "100000"},
}
TASKS = ("train-bf16", "train-float32", "embed", "serve")
OURS = ("OMP_", "GOMP_", "KMP_", "MKL_")  # variables that configure threads: workers inherit none of them
SETTING = "LOOKALIKE_SHARED_MACHINE_SETTING"  # names the setting of a worker
PIXELS = 64


def training(precision: str, batch: int) -> Callable[[], int]:
    """Return a function that does one training step and returns 1."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    from lookalike.recipe import Recipe
    from lookalike.training import optim
    from lookalike.training.objective import create_objective

    recipe = Recipe.from_yaml(f"model: {{name: weave}}\ntraining: {{batch_size: {batch}, precision: {precision}}}\n")
    network = create_objective(recipe, 200).network.to(memory_format=torch.channels_last).train()
    optimizer = optim.make_optimizer(network, nn.Identity(), recipe.optimizer)
    x = torch.randn(batch, 3, PIXELS, PIXELS).to(memory_format=torch.channels_last)
    y = torch.randint(0, 200, (batch,))

    def step() -> int:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = network(x)
        F.cross_entropy(logits.float(), y).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return 1

    return step


def embedding() -> Callable[[], int]:
    """Return a function that embeds 256 images, in batches of 32, one thread per core, and returns their number."""
    import numpy as np

    import lookalike
    from lookalike.models.inference import single_threaded_workers
    from lookalike.models.runtime import TorchRuntime

    embedder = TorchRuntime(lookalike.load())
    batches = np.random.default_rng(0).integers(0, 256, (8, 32, embedder.size, embedder.size, 3), np.uint8)

    def step() -> int:
        with single_threaded_workers(cores()) as threads:
            return sum(len(vectors) for vectors in threads.map(embedder.embed, batches))

    return step


@contextmanager
def serving() -> Iterator[Callable[[], int]]:
    """Start a service; return a function that sends one request, reads the answer and returns 1."""
    import numpy as np
    from PIL import Image

    photograph = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(noise).resize((640, 480)).save(photograph, "JPEG", quality=85)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "service.log")
        with log.open("wb") as file:
            code = "import lookalike.cli.main as main\n"
            if os.environ[SETTING] != "lookalike":
                code += "main.set_short_waits = lambda: False\n"
            code += "main.run()"
            command = [sys.executable, "-c", code, "serve", "--port", "0"]
            service = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            while not (found := re.search(r"http://([\d.]+):(\d+)", log.read_text())):
                if service.poll() is not None:
                    raise RuntimeError(log.read_text())
                time.sleep(0.02)
            host, port = found[1], int(found[2])
            while ask(host, port, "GET", "/ready") != 200:
                time.sleep(0.05)

            def step() -> int:
                if (status := ask(host, port, "POST", "/v1/predict", photograph.getvalue())) != 200:
                    raise RuntimeError(f"the service answered {status}")
                return 1

            yield step
        finally:
            service.terminate()
            service.wait(60)


def ask(host: str, port: int, method: str, path: str, body: bytes | None = None) -> int:
    """Return the status of a request on a new connection; an idle one would be closed between turns."""
    connection = HTTPConnection(host, port, timeout=60)
    connection.request(method, path, body, {"Content-Type": "image/jpeg"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def work(batch: int) -> None:
    """Run a worker: read lines `TASK SECONDS` and answer each with the rate per second."""
    if os.environ[SETTING] == "lookalike":
        set_short_waits()
    import torch

    from lookalike.training.malloc import keep_freed_memory

    made: dict[str, Callable[[], int]] = {}
    services = serving()
    try:
        with keep_freed_memory(torch.device("cpu")):  # as training does
            for line in sys.stdin:
                task, seconds = line.split()
                if task not in made:
                    if task == "serve":
                        made[task] = services.__enter__()
                    else:
                        made[task] = embedding() if task == "embed" else training(task.partition("-")[2], batch)
                    made[task]()
                done, start = 0, time.perf_counter()
                while done == 0 or time.perf_counter() - start < float(seconds):
                    done += made[task]()
                print(done / (time.perf_counter() - start), flush=True)
    finally:
        if "serve" in made:
            services.__exit__(None, None, None)


class Worker:
    """A new process with one setting."""

    def __init__(self, name: str, batch: int) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(OURS)}
        environment |= SETTINGS.get(name, {}) | {SETTING: name}
        command = [sys.executable, __file__, "--worker", "--batch", str(batch)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def measure(self, task: str, seconds: float) -> float:
        """Return steps, images or requests per second."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{task} {seconds}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError("a worker ended; what it said is above")
        return float(answer)

    def end(self) -> None:
        """Stop the process and wait for its end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(90)


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Run busy loops that need a core each."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.3 if loops else 0)  # until they are running
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=["default", "lookalike", "passive"])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--loops", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3, help="each with fresh processes")
    parser.add_argument("--batch", type=int, default=64, help="images in a training step")
    parser.add_argument("--seconds", type=float, default=3, help="of one measurement")
    parser.add_argument("--out", type=Path, help="a JSON file for every measurement; more are added to what it holds")
    given = parser.parse_args()
    if given.worker:
        work(given.batch)
        return
    names = [*given.settings] if "default" in given.settings else ["default", *given.settings]
    records: list[dict[str, Any]] = json.loads(given.out.read_text()) if given.out and given.out.exists() else []
    for number in range(given.rounds):
        workers = {name: Worker(name, given.batch) for name in names}
        for task in given.tasks:
            for worker in workers.values():
                worker.measure(task, 0.1)  # creates the network
            for loops in given.loops:
                shift = (number + loops) % len(names)
                with busy(loops):
                    for name in names[shift:] + names[:shift]:
                        rate = workers[name].measure(task, given.seconds)
                        records.append({"round": number, "setting": name, "task": task, "loops": loops, "rate": rate})
                if given.out:
                    given.out.write_text(json.dumps(records, indent=1))
        for worker in workers.values():
            worker.end()
    report(records)


def report(records: list[dict[str, Any]]) -> None:
    """Print the rate of `default` without loops, and the median ratio of each setting to it, by loops."""
    import torch

    from lookalike.run import hardware

    rates: dict[tuple[str, str, int], list[float]] = defaultdict(list)  # in the order of the rounds
    for one in records:
        rates[one["task"], one["setting"], one["loops"]].append(one["rate"])
    loops = sorted({key[2] for key in rates})
    rounds = max(len(values) for values in rates.values())
    machine = hardware()
    print(f"{date.today()}, {machine['cores']} cores of {machine['cpu']}, PyTorch {torch.__version__}, {rounds} rounds")
    print("fair share: " + ", ".join(f"{cores() / (cores() + n):.2f} beside {n}" for n in loops))
    print(f"{'task':14} {'setting':12}" + "".join(f"{f'beside {n}':>10} {'(rounds)':>13}" for n in loops))
    for task, setting in dict.fromkeys((key[0], key[1]) for key in rates):
        base = rates[task, "default", loops[0]]
        cells = []
        for n in loops:
            ratios = [rate / quiet for rate, quiet in zip(rates[task, setting, n], base, strict=False)]
            cells.append(f"{statistics.median(ratios):10.2f} {f'{min(ratios):.2f}-{max(ratios):.2f}':>13}")
        end = f"   1.00 = {statistics.median(base):.2f}/s" if setting == "default" else ""
        print(f"{task:14} {setting:12}" + "".join(cells) + end)


if __name__ == "__main__":
    main()
