"""Packages that only some features need: the error for one that is missing, with the command that installs it here."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lookalike.errors import InputError

PACKAGE = Path(__file__).parent


def missing(what: str, extra: str) -> InputError:
    """The error for a package that cannot be imported.

    Args:
        what: the sentence that says so, such as "the package ray is not installed."
        extra: the optional dependencies that bring it, such as "ray".
    """
    return InputError(what, f"Install it: {install_command(extra)}")


def install_command(*extras: str) -> str:
    """The command that adds these optional dependencies to the installation that is running.

    Lookalike is on no package index, so it names where this copy came from: the folder of the sources, or the address
    it was installed from. Where neither is known it is the command to run in the folder of the sources.
    """
    where, is_editable = _origin()
    wanted = f"[{','.join(extras)}]"
    requirement = shlex.quote(f"lookalike{wanted} @ {where}" if "+" in where.partition(":")[0] else f"{where}{wanted}")
    pip = "pip" if _is_own(shutil.which("pip")) else shlex.join([sys.executable, "-m", "pip"])
    return f"{pip} install {'-e ' if is_editable else ''}{requirement}"


def _is_own(program: str | None) -> bool:
    """Whether a program lies beside the Python that is running."""
    return program is not None and Path(program).parent == Path(sys.executable).parent


def _origin() -> tuple[str, bool]:
    """What pip is to be given for this copy of Lookalike, and whether it is installed as editable."""
    sources = PACKAGE.parents[1]
    if sources / "src" / "lookalike" == PACKAGE and (sources / "pyproject.toml").is_file():
        return ("." if sources == Path.cwd() else str(sources)), True
    try:
        said = importlib.metadata.distribution("lookalike").read_text("direct_url.json")
        origin = json.loads(said or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        origin = {}
    url = str(origin.get("url", ""))
    if url.startswith("file:"):
        folder = unquote(urlsplit(url).path)
        return (folder if Path(folder).exists() else "."), False
    if version_control := origin.get("vcs_info"):
        return f"{version_control['vcs']}+{url}@{version_control['commit_id']}", False
    return ".", False
