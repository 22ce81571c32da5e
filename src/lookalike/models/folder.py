"""The files of a model folder: found, read with suspicion, written whole. What they mean is in
`config.py` and `weights.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lookalike.errors import InputError
from lookalike.files import sync
from lookalike.recipe import Section, validate

if TYPE_CHECKING:
    from lookalike.models.config import ModelConfig

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
DEFAULT, DEFAULT_FOLDER = "default", Path(__file__).parent / "default"  # the model in the package
HEADER_KEY = "lookalike"
LONGEST_CONFIG = 64 << 20  # bytes of config.json: a million classes
WHOLE = "Get a whole copy of the model folder."
PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
SectionT = TypeVar("SectionT", bound=Section)


def find(name: str | Path, **hub: Any) -> tuple[Path, Path]:
    """Paths of config.json and model.safetensors in a folder, else in the Hub's cache, downloaded when new.

    Args:
        name: a folder, a Hub id, or "default": the model in the package (a folder of that name is ./default).
        hub: keyword arguments of `huggingface_hub.hf_hub_download`.

    Raises:
        InputError: neither, with what is there instead.
    """
    path = DEFAULT_FOLDER if name == DEFAULT else Path(name).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        raise _not_a_folder(path)
    if HUB_ID.fullmatch(str(name)) and not path.parent.is_dir():  # runs/typo is no Hub id where there is a runs/
        return _on_hub(str(name), **hub)
    raise InputError(f"{name}: no such folder.", "Point at a model folder, such as runs/NAME/model, or a Hub id.")


def _in_folder(path: Path) -> tuple[Path, Path]:
    config, weights = path / CONFIG, path / WEIGHTS
    if config.is_file() and weights.is_file():
        return config, weights
    if (path / "recipe.yaml").is_file():
        if (path / "model" / CONFIG).is_file():
            raise InputError(f"{path}: this is a run folder.", f"Its model is in {path / 'model'}.")
        raise InputError(f"{path}: this run has no model yet.", "Finish it with 'lookalike train --resume'.")
    pickles = sorted(p for p in path.iterdir() if p.suffix in PICKLES)
    if pickles and not weights.exists():
        raise _not_a_folder(pickles[0])
    missing = " and ".join(p.name for p in (config, weights) if not p.is_file())
    raise InputError(f"{path}: not a model folder: no {missing}.", "Point at a folder that save_pretrained wrote.")


def _not_a_folder(path: Path) -> InputError:
    if path.suffix in PICKLES:
        return InputError(
            f"{path}: a pickle can run any code when it is opened, so it is not.",
            f"Use a model folder, with its weights in {WEIGHTS}.",
        )
    if path.name in {WEIGHTS, CONFIG}:
        return InputError(f"{path}: one file of a model folder.", f"Point at the folder, {path.parent}.")
    return InputError(f"{path}: a file, not a model folder.", "Point at a folder that save_pretrained wrote.")


def _on_hub(name: str, **hub: Any) -> tuple[Path, Path]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined, unused-ignore]
        EntryNotFoundError,
        HFValidationError,
        HTTPError,  # of whichever HTTP library it uses
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        config, weights = (Path(hf_hub_download(name, file, **hub)) for file in (CONFIG, WEIGHTS))
    except LocalEntryNotFoundError:
        reason = "it is not in the cache, and the Hub cannot be reached"
    except EntryNotFoundError:
        reason = f"it is on the Hub but holds no {CONFIG} and {WEIGHTS}"
    except RepositoryNotFoundError:
        reason = "there is none of this name, or it is private or gated and needs 'hf auth login'"
    except (HTTPError, HFValidationError) as error:
        reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
    else:
        return config, weights
    raise InputError(f"{name}: no such folder, and not a model from the Hub: {reason}.", "Check the name.")


def read_config(cls: type[SectionT], path: Path) -> tuple[SectionT, str]:
    """The configuration in config.json, and the fingerprint that the weights must have.

    Raises:
        InputError: not JSON, another format version, or a key or value that does not fit.
    """
    try:
        if (size := path.stat().st_size) > LONGEST_CONFIG:
            raise InputError(f"{path}: {size:,} bytes are too many for the configuration of a model.", WHOLE)
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}).", WHOLE) from None
    if not isinstance(tree, dict) or "format" not in tree or "name" not in tree:
        raise InputError(f"{path}: not the configuration of a Lookalike model.", "Point at another folder.")
    if tree["format"] != 1:
        raise InputError(
            f"{path}: format {tree['format']!r}; this version of Lookalike reads 1.",
            "Update Lookalike.",
        )
    fingerprint = tree.pop("fingerprint", None)
    if not isinstance(fingerprint, str):
        raise InputError(f"{path}: no fingerprint.", WHOLE)
    return validate(cls, tree, str(path)), fingerprint


def read_bytes(path: Path) -> bytes:
    """A file of weights, whole.

    Raises:
        InputError: it cannot be read, or the network would not fit into the memory of this machine.
    """
    try:
        needed, memory = 2 * path.stat().st_size, _memory()  # the file and the network
        if needed <= memory:
            return path.read_bytes()
    except OSError as error:
        raise damaged(path, error) from None
    except MemoryError:
        pass
    raise InputError(
        f"{path}: takes {needed / 2**30:,.1f} GiB of memory, more than there is.",
        "Use a machine with more, or a smaller model.",
    )


def _memory() -> float:
    """Bytes of memory of this machine; infinity where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return float("inf")


def check_weights(data: bytes, path: Path, expected: str, header: str) -> None:
    """See that a safetensors file is the one that config.json was written with.

    Args:
        data: the file.
        path: where it is, for messages.
        expected: its SHA-256 by config.json.
        header: what config.json says of network and preprocessing; the file must say the same.

    Raises:
        InputError: it is not, or damaged.
    """
    if (found := fingerprint(data)) != expected:
        raise InputError(f"{path}: SHA-256 is {found[:12]}…, but {CONFIG} says {expected[:12]}….", WHOLE)
    if _header(data) != header:
        raise InputError(
            f"{path.with_name(CONFIG)}: names another network or preprocessing than the weights were saved with.",
            "Undo the change, or get a whole copy of the model folder.",
        )


def damaged(path: Path, error: Exception) -> InputError:
    """What is said of weights that cannot be read."""
    if isinstance(error, OSError) and error.errno:
        return InputError(f"{path}: cannot be read ({error.strerror}).", "Check its rights and the disk.")
    return InputError(f"{path}: damaged, cut short or not safetensors ({error}).", WHOLE)


def _header(data: bytes) -> str | None:
    """What `serialise` was given as `header`, or None. The layout is 8 bytes of length, then that much JSON."""
    length = int.from_bytes(data[:8], "little")
    try:
        about = json.loads(data[8 : 8 + length])["__metadata__"][HEADER_KEY]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return about if isinstance(about, str) else None


def fingerprint(weights: bytes) -> str:
    """SHA-256, hex."""
    return hashlib.sha256(weights).hexdigest()


def write(path: Path, *, weights: bytes, config: str, card: str) -> None:
    """Write the three files beside their places, then rename them, config.json last.

    Renaming takes an instant; whoever reads in between finds a fingerprint that does not match, and not another model.

    Raises:
        InputError: the folder cannot be made or written to.
    """
    contents = {WEIGHTS: weights, CARD: card.encode(), CONFIG: (config + "\n").encode()}
    beside = {name: path / f"{name}.partial" for name in contents}
    try:
        path.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            beside[name].write_bytes(content)
            sync(beside[name])
        for name in contents:
            beside[name].replace(path / name)
        sync(path)
    except (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise InputError(f"{path}: cannot write a model here ({error.strerror}).", "Choose another folder.") from None
    finally:
        if path.is_dir():
            for partial in beside.values():
                partial.unlink(missing_ok=True)


def card(config: ModelConfig, parameters: int, dim: int, fingerprint: str) -> str:
    """The model card, Markdown with the Hub's front matter; `dim` numbers has a vector of the model."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = f"{config.dataset} {config.start}".lower().replace(" ", "-").replace("_", "-")
    return templates.get_template("card.md.j2").render(
        config=config,
        parameters=parameters,
        dim=dim,
        fingerprint=fingerprint,
        noncommercial="tiny-imagenet" in names,
        cars="cars196" in names,
        shown_names=config.class_names[:20],
    )
