"""Pushing a model and loading it again, with the real client, against a Hugging Face Hub of our own on this machine.

The server speaks as much of the Hub's HTTP interface as that needs, and keeps one repository.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from lookalike.models.pretrained import ImageModel
from lookalike.models.registry import create_model
from lookalike.models.serialization import ModelConfig

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Keeps the files of one repository."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            name = json.loads(body)["name"]
            self.answer({"url": f"{self.server.url}/owner/{name}", "id": f"owner/{name}", "name": f"owner/{name}"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self.server.url}/owner/name/commit/{COMMIT}"
            self.answer({"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})
        else:
            self.send_error(404)

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        if "/resolve/" in self.path and name in self.server.files:
            content = self.server.files[name]
            self.answer(content, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})
        elif self.path.startswith("/owner/pets/resolve/"):
            self.answer({"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, 404)
        else:
            self.answer({"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}, 404)

    do_HEAD = do_GET  # noqa: N815

    def answer(
        self, content: bytes | dict[str, object], headers: dict[str, str] | None = None, status: int = 200
    ) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {
            "Content-Length": str(len(data)),
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        print(format % args)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def with_hub(hub: Hub, home: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run this in a fresh interpreter: the client reads where the Hub is when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": "hf_of_nobody"}
    environment.pop("HF_HUB_OFFLINE", None)
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_a_model_goes_to_the_hub_and_comes_back(hub: Hub, tmp_path: Path) -> None:
    config = ModelConfig(
        name="weave",
        options={"widths": [16, 32], "pairs": [1, 1]},
        image_size=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        class_names=("cat", "dog"),
        class_ids=("cat", "dog"),
    )
    torch.manual_seed(0)
    model = ImageModel(create_model(config.name, 2, config.options), config)
    model.save_pretrained(tmp_path / "model")
    pushed = with_hub(
        hub, tmp_path / "a", f"import lookalike; lookalike.load({str(tmp_path / 'model')!r}).push_to_hub('owner/pets')"
    )
    assert pushed.returncode == 0, pushed.stderr
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    loaded = with_hub(hub, tmp_path / "b", "import lookalike; print(lookalike.load('owner/pets').fingerprint)")
    assert loaded.stdout.strip() == model.fingerprint, loaded.stderr


def test_what_the_hub_does_not_have_is_refused(hub: Hub, tmp_path: Path) -> None:
    code = """
import lookalike
from lookalike.errors import InputError
for name in ("owner/pets", "owner/none"):
    try:
        lookalike.load(name)
    except InputError as error:
        print(error.message)
"""
    done = with_hub(hub, tmp_path, code)
    assert done.stdout.splitlines() == [
        "owner/pets: no such folder, and not a model from the Hub: it is on the Hub but holds no config.json and "
        "model.safetensors.",
        "owner/none: no such folder, and not a model from the Hub: there is none of this name, or it is private or "
        "gated and needs 'hf auth login'.",
    ], done.stderr
