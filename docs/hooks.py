"""Fills the reference when the site is built, from the code itself, so that no page of it can be stale.

`<!-- commands -->` becomes the reference of the commands, `<!-- modules lookalike.data -->` that of a room's modules.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[1] / "src"


def on_page_markdown(markdown: str, **_: Any) -> str:
    if "<!-- commands -->" in markdown:
        markdown = markdown.replace("<!-- commands -->", _commands())
    return re.sub(r"<!-- modules ([\w.]+) -->", lambda mark: _modules(mark.group(1)), markdown)


def _commands() -> str:
    command = [sys.executable, "-m", "typer", "lookalike.cli.main", "utils", "docs", "--name", "lookalike"]
    written = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return ("\n" + written).replace("\n#", "\n##")


def _modules(package: str) -> str:
    files = sorted((SOURCE / package.replace(".", "/")).glob("[!_]*.py"))
    if not files:
        raise FileNotFoundError(f"no modules in {package}: take its mark out of docs/reference")
    return "\n\n".join(f"::: {package}.{file.stem}" for file in files)
