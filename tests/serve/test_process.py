"""The service as a process: start, signals, exit codes; nothing acknowledged is lost."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from serve_client import encoded, form
from serve_process import PATIENCE, serving, start

from lookalike import Gallery
from lookalike.image import decode
from small_gallery import model_folder, picture

pytestmark = pytest.mark.slow


def ends_with(*arguments: str | Path, environ: dict[str, str] | None = None) -> tuple[int, str]:
    """The exit code, and what was said."""
    process = start(*arguments, environ=environ)
    _, said = process.communicate(timeout=PATIENCE)
    return process.returncode, said.decode()


def test_a_service_takes_over_the_new_model_of_its_gallery(gallery_place: Path, tmp_path: Path) -> None:
    with serving(gallery_place) as service:
        before = httpx.get(f"{service.url}v1/about").json()["model"]["fingerprint"]
        with Gallery.open(gallery_place, write=True) as gallery:
            gallery.reembed(model_folder(tmp_path / "other", seed=1))
            expected = gallery.about.fingerprint
        assert before != expected
        first = httpx.post(f"{service.url}v1/search?id=1")
        assert first.status_code == 503
        assert "another model" in first.json()["error"]["message"]
        service.until_ready()
        assert httpx.get(f"{service.url}v1/about").json()["model"]["fingerprint"] == expected
        image = picture(tmp_path / "new.png", 4711).read_bytes()
        answer = httpx.post(f"{service.url}v1/search?k=3", content=image, headers={"Content-Type": "image/png"})
        assert answer.status_code == 200
        with Gallery.open(gallery_place) as gallery:
            found = gallery.search(image, k=3)
        assert [hit["id"] for hit in answer.json()["hits"]] == [hit.id for hit in found]
        added = httpx.post(f"{service.url}v1/items", content=image, headers={"Content-Type": "image/png"})
        assert added.json()["items"][0]["added"]


def test_sigterm_stops_the_service_cleanly(gallery_place: Path) -> None:
    with serving(gallery_place) as service:
        answer = httpx.post(f"{service.url}v1/predict", files=form(encoded(1)))
        assert answer.status_code == 200
        assert {one["label"] for one in answer.json()["predictions"][0]["classes"]} == {"cat", "dog", "emu"}
        assert httpx.post(f"{service.url}v1/search?id=1").status_code == 200
        assert "server" not in answer.headers
        began = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(PATIENCE) == 143
        assert time.monotonic() - began < 10
        assert "Traceback" not in service.log()
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{service.url}live")


def test_answers_are_sent_without_delay(gallery_place: Path) -> None:
    """With Nagle's delay on the server's side, and a client that acknowledges late, each would take 40 ms more."""
    seconds = []
    with serving(gallery_place) as service, httpx.Client() as client:
        for _ in range(40):
            began = time.monotonic()
            assert client.get(f"{service.url}v1/items/1").status_code == 200
            seconds.append(time.monotonic() - began)
    assert sorted(seconds)[10] < 0.03


def test_runtime_auto_is_onnx_on_a_cpu(gallery_place: Path, tmp_path: Path) -> None:
    cache = {"LOOKALIKE_CACHE": str(tmp_path / "cache")}
    with serving(gallery_place, "--runtime", "auto", environ=cache) as service:
        model = httpx.get(f"{service.url}v1/about").json()["model"]
        assert "ONNX Runtime" in model["name"] or "cuda" in model["name"]
        files = form(encoded(1), encoded(2))
        vectors = httpx.post(f"{service.url}v1/embed", files=files).json()["vectors"]
        hits = httpx.post(f"{service.url}v1/search?k=12", files=files[:1]).json()["hits"]
    with Gallery.open(gallery_place) as gallery:  # whose vectors are PyTorch's
        own = gallery.embedder.embed(np.stack([decode(encoded(seed), 32) for seed in (1, 2)]))
        found = gallery.search(encoded(1), k=12).hits
    assert (np.array(vectors) * own).sum(1) == pytest.approx(1, abs=1e-3)
    assert hits[0]["id"] == found[0].id
    assert len(hits) == 12


def test_accepted_requests_are_finished_after_sigterm(gallery_place: Path) -> None:
    codes: list[int] = []
    bodies = [form(*(encoded(100 * seed + n, size=(1600, 1200)) for n in range(16))) for seed in range(4)]

    def ask(url: str, files: list[tuple[str, tuple[str, bytes, str]]]) -> None:
        codes.append(httpx.post(f"{url}v1/items", files=files, timeout=PATIENCE).status_code)

    with serving(gallery_place) as service:
        askers = [threading.Thread(target=ask, args=(service.url, files)) for files in bodies]
        for asker in askers:
            asker.start()
        while "lookalike_waiting_images 0.0" in httpx.get(f"{service.url}metrics").text:
            assert any(asker.is_alive() for asker in askers), "nothing was on its way when the signal came"
        service.process.send_signal(signal.SIGTERM)
        for asker in askers:
            asker.join()
        assert service.process.wait(PATIENCE) == 143
    assert 200 in codes
    with Gallery.open(gallery_place) as gallery:
        assert len(gallery) - 12 == 16 * codes.count(200)


def test_ctrl_c_ends_it_with_130(gallery_place: Path) -> None:
    with serving(gallery_place) as service:
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(PATIENCE) == 130
        assert "Traceback" not in service.log()


STUCK = (
    "import sys, time\nfrom lookalike.serve import app, decoding\napp.CLOSE_SECONDS = 0.5\n"
    "def decode(*given, **how):\n    print('stuck', file=sys.stderr, flush=True)\n    time.sleep(600)\n"
    "decoding.decode = decode\nfrom lookalike.cli.main import run\nrun()"
)


def test_a_slow_decode_does_not_delay_the_shutdown(gallery_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_process.COMMAND", [sys.executable, "-c", STUCK, "serve"])

    def ask(url: str) -> None:
        with suppress(httpx.TransportError):
            httpx.post(f"{url}v1/predict", files=form(encoded(1)), timeout=PATIENCE)

    with serving(gallery_place, "--drain", "0.5") as service:
        asker = threading.Thread(target=ask, args=(service.url,))
        asker.start()
        while "stuck\n" not in service.log():
            assert asker.is_alive(), service.log()
            time.sleep(0.02)
        service.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert service.process.wait(PATIENCE) == 143
        assert time.monotonic() - began < 20
        asker.join()
        assert "Traceback" not in service.log()


def test_a_signal_during_startup_stops_the_service(gallery_place: Path) -> None:
    with serving(gallery_place, ready=False) as service:
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(PATIENCE) == 143


def test_kill_9_loses_nothing_that_was_acknowledged(gallery_place: Path) -> None:
    acknowledged: dict[str, int] = {}
    seed = 0
    for life in range(3):
        with serving(gallery_place) as service:
            stop = threading.Event()

            def add(first: int, service: object = service, stop: threading.Event = stop) -> None:
                with httpx.Client(timeout=PATIENCE) as client:
                    for number in range(first, first + 10_000, 3):
                        if stop.is_set():
                            return
                        label = f"label {number}"
                        try:
                            url = f"{service.url}v1/items"  # type: ignore[attr-defined]
                            answer = client.post(url, params={"label": label}, files=form(encoded(number)))
                        except httpx.TransportError:
                            return
                        if answer.status_code == 200:
                            acknowledged[label] = answer.json()["items"][0]["id"]

            adders = [threading.Thread(target=add, args=(seed + n,)) for n in range(3)]
            for adder in adders:
                adder.start()
            before, deadline = len(acknowledged), time.monotonic() + PATIENCE
            while len(acknowledged) < before + 15 + 7 * life:
                assert time.monotonic() < deadline, service.log()
                time.sleep(0.001)
            service.process.kill()
            stop.set()
            for adder in adders:
                adder.join()
        seed += 20_000
        with Gallery.open(gallery_place) as gallery:
            rows = {row.label: row.id for row in gallery.store.rows()}
            assert acknowledged.items() <= rows.items()
            assert not gallery.check().problems
    assert len(acknowledged) >= 60


def test_a_port_in_use_exits_with_2(gallery_place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, said = ends_with(gallery_place, "--port", str(taken.getsockname()[1]))
    assert code == 2
    assert "Address already in use" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "no-such-model"], "no-such-model"),
        (["none.gallery"], "none.gallery"),
        (
            ["--model", "no-such-model", "--host", "0.0.0.0"],
            "LOOKALIKE_READ_KEY",
        ),
        (["--model", "x", "--host", "no-such-host.invalid", "--read-key-file", "KEY"], "no-such-host.invalid"),
        (["--model", "x", "--read-key-file", "none"], "none: "),
    ],
)
def test_invalid_arguments_exit_with_2(tmp_path: Path, arguments: list[str], said: str) -> None:
    key = tmp_path / "key"
    key.write_text("0123456789abcdef\n")
    code, printed = ends_with(*(str(key) if one == "KEY" else one for one in arguments), "--port", "0")
    assert code == 2, printed
    assert "error: " in printed
    assert said in printed
    assert "Traceback" not in printed


def test_a_model_that_does_not_fit_the_gallery_exits_with_2(gallery_place: Path, tmp_path: Path) -> None:
    from small_gallery import model_folder

    other = model_folder(tmp_path / "other", seed=1)
    code, said = ends_with(gallery_place, "--model", other, "--port", "0")
    assert code == 2
    assert str(gallery_place) in said
    assert "Traceback" not in said


def test_help_loads_no_heavy_packages() -> None:
    code = (
        "import sys\nsys.argv = ['lookalike', 'serve', '--help']\nfrom lookalike.cli.main import run\n"
        "try:\n    run()\nexcept SystemExit:\n    pass\n"
        "assert not {'fastapi', 'uvicorn', 'torch', 'numpy'} & set(sys.modules)"
    )
    from serve_process import COMMAND

    subprocess.run([COMMAND[0], "-c", code], check=True, stdout=subprocess.DEVNULL)
