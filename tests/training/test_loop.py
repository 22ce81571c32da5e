"""The loop: it learns, it stops and goes on to the same bits, it does not go on from nonsense."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lookalike.data.pack import Pack
from lookalike.errors import InputError, TrainingError
from lookalike.recipe import Recipe
from lookalike.run import Run
from lookalike.training import checkpoint, loop
from lookalike.training.distributed import init_distributed
from lookalike.training.loop import Trained, resolution, train
from lookalike.training.precision import PrecisionProbe

RECIPE = """
data:
  image_size: 32
  augment: {crop: pad, cutout: 0.2, cutmix: 1.0, mix_probability: 0.5}
model: {name: cubs_resnet_2, options: {stem: patch, width: 8, features: 32, tokens: 8, dropout: 0.1}}
optimizer: {lr: 0.05, clip_norm: 5}
training: {epochs: 2, batch_size: 48, ema_decay: 0.9, resolution: [[0, 24], [0.5, 32]], checkpoint_seconds: 1000,
  precision: bf16}
"""
STEPS = 10  # 2 epochs of 240 pictures


def a_run(root: Path, name: str, *overrides: str) -> Run:
    return Run.create(root / name, Recipe.from_yaml(RECIPE, overrides=overrides))


def go(run: Run, packs: tuple[Pack, Pack], on_record: Any = None) -> Trained:
    return train(run, init_distributed("cpu"), *packs, on_record=on_record)


def bits(trained: Trained) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in trained.network.state_dict().items()}


def records(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k != "images_per_second"} for r in run.history()]


@pytest.fixture(scope="module")
def unbroken(packs: tuple[Pack, Pack], tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Trained]:
    run = a_run(tmp_path_factory.mktemp("unbroken"), "whole")
    return run, go(run, packs)


def stop_after(step: int) -> Any:
    def on_record(record: dict[str, Any], total: int) -> None:
        assert total == STEPS
        assert record["kind"] in ("train", "eval") or record == {"kind": "stopped", "step": step}
        if record["kind"] == "train" and record["step"] == step:
            os.kill(os.getpid(), signal.SIGINT)

    return on_record


@pytest.mark.parametrize("step", [1, 5, STEPS])
def test_stopped_and_resumed_is_bit_identical(
    step: int, packs: tuple[Pack, Pack], unbroken: tuple[Run, Trained], root: Path
) -> None:
    run = a_run(root, "broken")
    with pytest.raises(KeyboardInterrupt):
        go(run, packs, stop_after(step))
    last = torch.load(run.checkpoint_dir / "last.pt", weights_only=True)
    assert last["state"]["step"] == step
    resumed = go(run, packs)
    whole_run, whole = unbroken
    assert bits(resumed) == bits(whole)
    assert records(run) == records(whole_run)
    for field in ("step", "best_score", "best_step", "stale"):
        assert getattr(resumed.state, field) == getattr(whole.state, field)
    best = [checkpoint.load_best(r.checkpoint_dir) for r in (run, whole_run)]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[1])


def test_stopped_twice_is_still_bit_identical(
    packs: tuple[Pack, Pack], unbroken: tuple[Run, Trained], root: Path
) -> None:
    run = a_run(root, "twice")
    for step in (3, 6):
        with pytest.raises(KeyboardInterrupt):
            go(run, packs, stop_after(step))
    assert bits(go(run, packs)) == bits(unbroken[1])


def test_a_second_resume_of_a_finished_run_changes_nothing(
    packs: tuple[Pack, Pack], unbroken: tuple[Run, Trained]
) -> None:
    run, whole = unbroken
    before = records(run)
    assert bits(go(run, packs)) == bits(whole)
    assert records(run) == before


def test_a_resumed_run_keeps_the_precision_that_was_measured(
    packs: tuple[Pack, Pack], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []

    def on_record(record: dict[str, Any], total: int) -> None:
        told.append(record)
        if record["kind"] == "train":
            os.kill(os.getpid(), signal.SIGINT)

    run = a_run(root, "auto", "training.precision=auto", "training.epochs=1")
    monkeypatch.setattr(loop, "choose_precision", lambda *_: PrecisionProbe("bf16", {"bf16": 1.0, "float32": 2.0}))
    with pytest.raises(KeyboardInterrupt):
        go(run, packs, on_record)
    assert told[0] == {"kind": "precision", "step": 0, "precision": "bf16", "ms": {"bf16": 1.0, "float32": 2.0}}
    monkeypatch.delattr(loop, "choose_precision")
    assert go(run, packs).state.precision == "bf16"


PROCESS = """
import os, sys, time
from pathlib import Path
from lookalike.cli import main
from lookalike.data.catalog import Catalog
from lookalike.data.pack import pack
from lookalike.run import Run
from lookalike.training import loop
from lookalike.training.distributed import init_distributed
import torch

def child():
    torch.set_num_threads(1)
    catalog = Catalog.from_parquet(Path(sys.argv[1]))
    packs = [pack(catalog.select(catalog.rows_of(s)), 32, cache=Path(sys.argv[2])) for s in ("train", "val")]
    def on_record(record, total):
        print(record["kind"], record["step"], flush=True)
        if record["kind"] == "train":
            time.sleep(0.15)
    loop.train(Run.open(Path(sys.argv[3])), init_distributed("cpu"), *packs, on_record=on_record)

sys.modules["lookalike.cli.main"].app.command("child")(child)
argv, sys.argv[1:] = sys.argv[1:], ["child"]
sys.argv = [sys.argv[0], *argv]
import signal
signal.signal(signal.SIGTERM, main._terminated)
child()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_resumes_to_the_same_bits(
    number: signal.Signals, packs: tuple[Pack, Pack], unbroken: tuple[Run, Trained], tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    run = a_run(tmp_path, "killed", "training.checkpoint_seconds=0")
    reference = a_run(tmp_path, "reference", "training.checkpoint_seconds=0")
    catalog = packs[0].catalog
    whole = tmp_path / "catalog.parquet"
    _both(packs).to_parquet(whole)
    command = [sys.executable, "-c", PROCESS, str(whole), str(packs[0].folder.parent), str(run.path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.split() == ["train", "6"]:
            process.send_signal(number)
            break
    code = process.wait(60)
    process.stdout.close()
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 128 + signal.SIGTERM)
    assert 5 <= torch.load(run.checkpoint_dir / "last.pt", weights_only=True)["state"]["step"] < STEPS
    assert not list(run.checkpoint_dir.glob("*.partial")) or number == signal.SIGKILL
    assert catalog.name == "builtin"
    try:
        torch.set_num_threads(1)
        assert bits(go(run, packs)) == bits(go(reference, packs))
    finally:
        torch.set_num_threads(threads)


def _both(packs: tuple[Pack, Pack]) -> Any:
    import pyarrow as pa

    from lookalike.data.catalog import Catalog

    first, second = (p.catalog for p in packs)
    table = pa.concat_tables([first.table, second.table])
    return Catalog(table, first.root, first.class_names, first.class_ids, first.name, first.container, first.remark)


EASY = ("training.epochs=12", "training.evaluate_every=4", "training.ema_decay=0", "training.label_smoothing=0")


def test_it_learns(packs: tuple[Pack, Pack], root: Path) -> None:
    plain = ("model.name=resnet18", "model.options={stem: patch, width: 8}", "training.resolution=[]")
    run = a_run(root, "learns", *plain, *EASY, "data.augment={crop: none}", "optimizer={name: adamw, lr: 0.005}")
    trained = go(run, (packs[0], packs[0]))  # ten images a class are enough to know these, not to know others
    losses = [r["loss"] for r in run.history() if r["kind"] == "train"]
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])
    assert trained.state.best_score > 3 / 24  # three times chance


def test_accumulated_batches_move_like_whole_ones(packs: tuple[Pack, Pack], root: Path) -> None:
    plain = ("model.name=resnet18", "model.options={stem: patch, width: 8}", "training.precision=float32")
    plain = (*plain, "data.augment={crop: pad}", "training.ema_decay=0", "training.epochs=1", "optimizer.lr=0.001")
    whole = go(a_run(root, "whole", *plain), packs)
    halves = go(a_run(root, "halves", *plain, "training.grad_accum_steps=2"), packs)
    # batch norm sees halves, so not equal; but far closer than an untrained network is
    new = torch.cat([p.flatten() for p in whole.network.parameters()])
    old = torch.cat([p.flatten() for p in halves.network.parameters()])
    assert (new - old).norm() < 0.02 * new.norm()


def test_early_stopping_keeps_the_best(packs: tuple[Pack, Pack], root: Path) -> None:
    run = a_run(root, "early", "training.epochs=12", "training.patience=2", "optimizer.lr=1e-9", "training.ema_decay=0")
    trained = go(run, packs)
    assert trained.state.stopped_early
    assert trained.state.step < 60
    best = checkpoint.load_best(run.checkpoint_dir)
    assert all(torch.equal(tensor, best[name]) for name, tensor in trained.network.state_dict().items())
    again = go(run, packs)
    assert bits(again) == bits(trained)
    assert again.state.step == trained.state.step


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    packs: tuple[Pack, Pack], root: Path
) -> None:
    run = a_run(root, "diverges", "optimizer.clip_norm=0", "training.checkpoint_seconds=0", "optimizer.lr=1e38")
    with pytest.raises(TrainingError, match=r"step \d+.*optimizer\.lr"):
        go(run, packs)
    last = run.checkpoint_dir / "last.pt"
    if last.is_file():
        weights = torch.load(last, weights_only=True)["network"]
        assert all(torch.isfinite(tensor).all() for tensor in weights.values())


@pytest.fixture(scope="module")
def stopped(packs: tuple[Pack, Pack], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was stopped after its second step; tests work on copies."""
    run = a_run(tmp_path_factory.mktemp("stopped"), "run")
    with pytest.raises(KeyboardInterrupt):
        go(run, packs, stop_after(2))
    return run


def test_another_state_of_the_data_is_refused(packs: tuple[Pack, Pack], stopped: Run) -> None:
    with pytest.raises(InputError, match=r"last\.pt.*--data"):
        train(stopped, init_distributed("cpu"), packs[1], packs[1])


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "other network"])
def test_a_damaged_checkpoint_is_named(damage: str, packs: tuple[Pack, Pack], stopped: Run, root: Path) -> None:
    run = Run(Path(shutil.copytree(stopped.path, root / "damaged")))
    path = run.checkpoint_dir / "last.pt"
    content = path.read_bytes()
    if damage == "other network":
        run.recipe_path.write_text(run.recipe_path.read_text().replace("width: 8", "width: 16"))
        run = Run.open(run.path)
    else:
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "garbage": b"hello" * 100}[damage])
    with pytest.raises(InputError, match=r"last\.pt"):
        go(run, packs)


def test_a_batch_that_cannot_be_shared_is_refused(packs: tuple[Pack, Pack], root: Path) -> None:
    with pytest.raises(InputError, match="grad_accum_steps=5"):
        a_run(root, "uneven", "training.grad_accum_steps=5")


def test_images_that_vanish_on_the_way_are_refused(packs: tuple[Pack, Pack], root: Path) -> None:
    with pytest.raises(InputError, match=r"16 pixels.*cubs_resnet_2"):
        go(a_run(root, "tiny", "training.resolution=[[0, 16], [0.5, 32]]"), packs)


def test_resolution_follows_the_recipe() -> None:
    settings = Recipe.from_yaml("training: {resolution: [[0, 32], [0.5, 48], [0.75, 64]]}").training
    assert [resolution(settings, done, 64) for done in (0, 0.49, 0.5, 0.74, 0.75, 0.99)] == [32, 32, 48, 48, 64, 64]
    assert resolution(Recipe().training, 0.3, 96) == 96


def test_the_generator_of_pytorch_does_not_matter_for_the_start(packs: tuple[Pack, Pack], root: Path) -> None:
    from lookalike.training.objective import create_objective

    recipe = Recipe.from_yaml(RECIPE)
    first = create_objective(recipe, 24).network
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    second = create_objective(recipe, 24).network
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_times_add_up_over_sessions(packs: tuple[Pack, Pack], stopped: Run, root: Path) -> None:
    run = Run(Path(shutil.copytree(stopped.path, root / "times")))
    first = torch.load(run.checkpoint_dir / "last.pt", weights_only=True)["state"]["seconds"]
    start = time.perf_counter()
    trained = go(run, packs)
    assert first < trained.state.seconds <= first + time.perf_counter() - start + 0.1
