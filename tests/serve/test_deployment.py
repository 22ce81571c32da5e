"""The container's files, read and held against the code: no runtime runs them here, but what they say must be so."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from plain_runtime import PlainRuntime
from serve_client import client_of
from typer.main import get_command

from lookalike.cli.main import app
from lookalike.gallery.store.location import PostgresLocation, parse_location
from lookalike.serve.settings import READ_KEY, WRITE_KEY, Settings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
PAGE = (ROOT / "docs" / "how-to" / "serve.md").read_text()
SERVE, DATABASE = COMPOSE["services"]["serve"], COMPOSE["services"]["database"]


def instructions() -> list[tuple[str, str]]:
    """Each instruction of the Containerfile with its text, its lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Containerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def of(word: str) -> list[str]:
    return [rest for name, rest in instructions() if name == word]


def serve_options(arguments: list[str]) -> dict[str, Any]:
    """What `lookalike serve` makes of its arguments."""
    command = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    values: dict[str, Any] = command.make_context("serve", arguments).params
    return values


def seconds(text: str) -> int:
    assert text.endswith("s")
    return int(text[:-1])


def test_every_instruction_is_known() -> None:
    known = {"FROM", "ARG", "WORKDIR", "RUN", "COPY", "ENV", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK"}
    assert {word for word, _ in instructions()} == known | {"ENTRYPOINT", "CMD"}


def test_copied_files_exist_and_are_not_ignored() -> None:
    sources = [word for line in of("COPY") if not line.startswith("--from") for word in line.split()[:-1]]
    let_in = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert set(sources) == let_in
    for source in sources:
        assert (ROOT / source).exists(), source
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {build["readme"], *build["license-files"], "pyproject.toml"} <= set(sources)


def test_installed_extras_and_constraints_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (install,) = [line for line in of("RUN") if "pip install" in line]
    (extras,) = re.findall(r"'\.\[(.*)\]'", install)
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    version = [int(part) for part in re.findall(r"\d+", project["requires-python"])]
    images = [line.split()[0] for line in of("FROM")]
    assert len(set(images)) == 1  # a virtual environment moves only to the same Python
    assert [int(part) for part in re.findall(r"python:(\d+)\.(\d+)", images[0])[0]] >= version
    (constraints,) = re.findall(r"-c (\S+)", install)
    assert (ROOT / constraints).exists()


def test_the_container_runs_unprivileged_and_stops_on_sigterm() -> None:
    (user,) = of("USER")
    assert any(re.search(rf"useradd .*--system .*{user}", line) for line in of("RUN"))
    words = [word for word, _ in instructions()]
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert of("STOPSIGNAL") == ["SIGTERM"]
    assert all(line.startswith("[") for line in of("ENTRYPOINT") + of("CMD"))  # no shell between it and the signal


def test_the_container_serves_on_its_port(runtime: PlainRuntime) -> None:
    entry, command = yaml.safe_load(of("ENTRYPOINT")[0]), yaml.safe_load(of("CMD")[0])
    assert entry == ["lookalike"]
    options = serve_options(command[1:])
    assert command[0] == "serve"
    assert of("EXPOSE") == [str(options["port"])]
    ((host, port, path),) = re.findall(r"http://([\d.]+):(\d+)(/\w+)", of("HEALTHCHECK")[0])
    assert (host, int(port)) == ("127.0.0.1", options["port"])
    with client_of(Settings(), runtime) as client:
        assert client.get(path).status_code == 200
    assert "LOOKALIKE_CACHE=/cache" in of("ENV")[0]
    assert of("VOLUME") == ["/cache"]


def test_compose_starts_what_the_command_line_takes() -> None:
    options = serve_options(SERVE["command"][1:])
    place = parse_location(options["gallery"])
    assert isinstance(place, PostgresLocation)
    ((user, host, name),) = re.findall(r"//(\w+)@(\w+)/(\w+)$", place.url)
    assert host in COMPOSE["services"]
    assert user == DATABASE["environment"]["POSTGRES_USER"]
    assert name == DATABASE["environment"]["POSTGRES_DB"]
    assert SERVE["environment"]["PGPASSWORD"] == DATABASE["environment"]["POSTGRES_PASSWORD"]
    assert SERVE["build"]["dockerfile"] == "Containerfile"
    assert set(SERVE["build"]["args"]) == {line.partition("=")[0] for line in of("ARG")}
    (published,) = SERVE["ports"]
    address, _, inside = published.split(":")
    assert (address, int(inside)) == ("127.0.0.1", options["port"])
    assert seconds(SERVE["stop_grace_period"]) > options["drain"]


def test_compose_gives_both_keys_and_no_secret_of_its_own() -> None:
    assert {READ_KEY, WRITE_KEY} <= SERVE["environment"].keys()
    for service in (SERVE, DATABASE):
        for name, value in service["environment"].items():
            if "KEY" in name or "PASSWORD" in name:
                assert re.fullmatch(r"\$\{\w+:\?set it in \.env\}", value), name
    (made,) = re.findall(r"^for name in (.*); do$", PAGE, flags=re.MULTILINE)
    asked = re.findall(r"\$\{(\w+):\?", (ROOT / "compose.yaml").read_text())
    assert set(made.split()) == set(asked)


def test_compose_exposes_no_more_than_it_must() -> None:
    assert "ports" not in DATABASE
    assert SERVE["read_only"] is True
    assert SERVE["cap_drop"] == ["ALL"]
    named = {mount.partition(":")[0] for one in (SERVE, DATABASE) for mount in one["volumes"] if mount[0] != "."}
    assert named == COMPOSE["volumes"].keys()
    assert {one["source"] for one in DATABASE["configs"]} == COMPOSE["configs"].keys()
    assert "CREATE EXTENSION" in COMPOSE["configs"]["extension"]["content"]


@pytest.mark.parametrize(
    "line", re.findall(r"^docker compose run .*$", (ROOT / "docs/how-to/serve.md").read_text(), re.M)
)
def test_container_commands_of_the_how_to_parse(line: str) -> None:
    words = shlex.split(line)
    words = words[words.index("serve") + 1 :]
    group = get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    command = group.commands[words[1]]
    assert command.make_context(words[1], words[2:]).params["location"] == SERVE["command"][1]
