"""Optional packages: the error for a missing one, with the command that installs it."""

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
    """Return the error for a package that cannot be imported.

    Args:
        what: the message, such as "the package ray is not installed."
        extra: the name of the optional dependencies that contain it, such as "ray".
    """
    return InputError(what, f"Install it: {install_command(extra)}")


def install_command(*extras: str) -> str:
    """Return the command that adds optional dependencies to this installation.

    Lookalike is not on a package index, so the command names the source of this copy: the folder of the sources, or the
    URL it was installed from. If neither is known, the command is for the folder of the sources.
    """
    where, is_editable = _origin()
    wanted = f"[{','.join(extras)}]"
    requirement = shlex.quote(f"lookalike{wanted} @ {where}" if "+" in where.partition(":")[0] else f"{where}{wanted}")
    pip = "pip" if _is_own(shutil.which("pip")) else shlex.join([sys.executable, "-m", "pip"])
    return f"{pip} install {'-e ' if is_editable else ''}{requirement}"


def _is_own(program: str | None) -> bool:
    """Whether a program is in the folder of the running Python."""
    return program is not None and Path(program).parent == Path(sys.executable).parent


def _origin() -> tuple[str, bool]:
    """Return what pip must be given for this copy of Lookalike, and whether it is an editable installation."""
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
