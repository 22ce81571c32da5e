"""Run the tests with the lowest versions of our dependencies that `pyproject.toml` allows.

    python benchmarks/lowest_versions.py [--folder FOLDER] [--keep torch==2.13.0] [--extra dev] [PYTEST_ARGUMENT ...]

Makes a virtual environment in FOLDER (default: a temporary folder), installs the project there with
`uv pip install --resolution lowest-direct`, and runs the tests; without arguments, all of them. uv then installs the
lowest allowed version of each direct dependency and the newest of all others. `--keep` names versions to install
instead, such as a build of PyTorch that is smaller than the one with CUDA. Needs uv (`pip install uv`).

Prints the tested versions first. The exit code is that of the tests.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Install, print the versions, and run the tests."""
    parser = argparse.ArgumentParser(description="Run the tests with the lowest versions that are allowed.")
    parser.add_argument("--folder", type=Path, help="of the environment; what is there is used again")
    parser.add_argument("--keep", action="append", default=[], metavar="REQUIREMENT", help="taken as it is; repeatable")
    parser.add_argument("--extra", action="append", default=[], help="of the project; repeatable; usually dev")
    given, tests = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        python = folder / "venv" / "bin" / "python"
        if not python.exists():
            uv("venv", "--python", sys.executable, str(folder / "venv"))
        kept = folder / "keep.txt"
        kept.write_text("".join(f"{one}\n" for one in given.keep))
        extras = ",".join(given.extra or ["dev"])
        where = ("--python", str(python))
        uv("pip", "install", "-q", *where, "--resolution", "lowest-direct", "--override", str(kept),
           "--editable", f"{ROOT}[{extras}]")  # fmt: skip
        direct = {name_of(one) for one in requirements(given.extra or ["dev"])}
        for line in uv("pip", "freeze", *where).splitlines():
            if name_of(line) in direct:
                print(line, flush=True)
        return subprocess.run([python, "-m", "pytest", "-q", *tests], cwd=ROOT, check=False).returncode


def requirements(extras: list[str]) -> list[str]:
    """Return the direct dependencies of the project, as written in `pyproject.toml`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]


def name_of(requirement: str) -> str:
    """Return the package name of a requirement in lower case: `psycopg` of `psycopg[binary]>=3.2`."""
    for place, letter in enumerate(requirement):
        if not (letter.isalnum() or letter in "-_."):
            return requirement[:place].lower().replace("_", "-")
    return requirement.lower().replace("_", "-")


def uv(*arguments: str) -> str:
    """Run uv and return its output."""
    found = shutil.which("uv")
    command = [found] if found else [sys.executable, "-m", "uv"]
    result = subprocess.run([*command, *arguments], check=False, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        sys.exit("uv failed; if it is not installed: pip install uv")
    return result.stdout


if __name__ == "__main__":
    sys.exit(main())
