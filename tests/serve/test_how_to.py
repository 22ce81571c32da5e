"""The commands and the program of `docs/how-to/serve.md` work."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_process import Running, serving

from lookalike import Gallery
from small_gallery import picture

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("curl") is None, reason="needs the program curl"),
]
PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "serve.md").read_text()


def lines(start: str) -> list[str]:
    """Commands of the page that start so."""
    blocks = re.findall(r"^```console\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line.startswith(start)]


@pytest.fixture
def home(tmp_path: Path, gallery_place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the page speaks of."""
    assert gallery_place == tmp_path / "photos.gallery"
    picture(tmp_path / "photo.jpg", 1000)
    picture(tmp_path / "another.jpg", 1001)
    (tmp_path / "write.key").write_text("a-key-for-the-tests\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def service(home: Path) -> Iterator[Running]:
    """The service as the page starts it first."""
    first, *_ = lines("lookalike serve")
    with serving(*shlex.split(first)[2:]) as running:
        yield running


def run(command: str, service: Running, environ: dict[str, str] | None = None) -> str:
    """What a curl command says, which must not fail."""
    at = service.url.removeprefix("http://").rstrip("/")
    command = command.replace("localhost:8000", at).replace("curl ", "curl --silent --show-error --fail-with-body ", 1)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def test_the_commands_of_the_how_to_work(service: Running, home: Path) -> None:
    said = {command: run(command, service) for command in lines("curl") if "Authorization" not in command}
    assert len(said) == 15
    trees = {command: json.loads(text) for command, text in said.items() if text}
    assert len(trees) == 13
    first = trees["curl -F image=@photo.jpg 'localhost:8000/v1/predict?k=3'"]
    assert len(first["predictions"][0]["classes"]) == 3
    assert len(trees["curl -X POST 'localhost:8000/v1/search?id=1&exact=true'"]["hits"]) == 10
    assert trees["curl -F image=@photo.jpg 'localhost:8000/v1/items?label=cat'"]["items"][0]["added"] is True
    assert (home / "small.jpg").read_bytes()[:2] == b"\xff\xd8"
    with Gallery.open("photos.gallery") as gallery:
        assert len(gallery) == 12  # one more, and one less


def test_the_program_of_the_how_to_runs(service: Running, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    program = program.replace("http://localhost:8000", service.url.rstrip("/"))
    exec(compile(program, "serve.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    assert all(re.match(r"-?\d\.\d{3} (cat|dog|emu) \d+$", line) for line in printed)


def test_the_how_tos_commands_with_keys_work(home: Path) -> None:
    (command,) = [line for line in lines("lookalike serve") if "--host" in line]
    (asked,) = [line for line in lines("curl") if "Authorization" in line]
    keys = {"LOOKALIKE_READ_KEY": "a-read-key-of-the-tests"}
    arguments = [word for word in shlex.split(command)[2:] if word not in {"--host", "0.0.0.0"}]
    with serving(*arguments, environ=keys) as service:  # on loopback: the tests open nothing to others
        assert json.loads(run(asked, service, keys))["hits"]
        assert json.loads(run(asked.replace("-F", "-s -F"), service, keys))["hits"]


def test_the_how_to_lists_every_route(service: Running) -> None:
    tree = json.loads(run("curl localhost:8000/openapi.json", service))
    for path in tree["paths"]:
        assert path.replace("{id}", "ID") in PAGE, path
