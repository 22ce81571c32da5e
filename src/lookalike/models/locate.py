"""Where a model is: the folder that a name means, imported or downloaded when it is first used.

A name is "default", a model folder, the short name of an imported model, "timm/" and a name of timm, or a Hub id.
Importing this module loads no PyTorch.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from lookalike.errors import InputError, nearest
from lookalike.files import cannot_write
from lookalike.models.serialization import (
    CONFIG,
    DEFAULT,
    DEFAULT_FOLDER,
    PICKLES,
    TIMM,
    TOKENIZER,
    WEIGHTS,
    ModelConfig,
    check_weights,
    read_bytes,
    read_config,
    read_json,
)

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
OPEN_CLIP_CONFIG = "open_clip_config.json"  # of a folder in the format of open_clip
SHORT_NAME = re.compile(r"[\w-][\w.-]{0,99}")


def find(name: str | Path, **hub: Any) -> tuple[Path, Path]:
    """Find config.json and model.safetensors of a model. Downloads them if they are not on this machine.

    Args:
        name: a model folder, or a run folder with one in it; "default" (the model in the package; a folder of that name
            is ./default), the name of an imported model, "timm/" and the name of weights of timm, or a Hub id.
        hub: keyword arguments of `huggingface_hub.hf_hub_download`.

    Raises:
        InputError: none of these; the message names what is there instead.
    """
    path = DEFAULT_FOLDER if name == DEFAULT else Path(name).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        raise _not_a_folder(path)
    text = str(name)
    if text.startswith(TIMM) and HUB_ID.fullmatch(text):
        return _in_folder(_pretrained(text.removeprefix(TIMM), bool(hub.get("local_files_only"))))
    if HUB_ID.fullmatch(text) and not path.parent.is_dir():  # runs/typo is no Hub id where there is a runs/
        return _on_hub(text, **hub)
    if SHORT_NAME.fullmatch(text) and (imported_folder(text) / CONFIG).is_file():
        return _in_folder(imported_folder(text))
    raise InputError(
        f"{name}: no such folder.{nearest(text, imported())}",
        "Point at a model folder, such as runs/NAME/model; or name an imported model, timm/NAME, or a Hub id.",
    )


def describe(name: str | Path) -> tuple[ModelConfig, str]:
    """Read the configuration and fingerprint of a model without loading its network; the weights are checked.

    Raises:
        InputError: as `ImageModel.from_pretrained`, as far as it can be seen without loading the network.
    """
    config_path, weights_path = find(name)
    config, fingerprint = read_config(ModelConfig, config_path)
    check_weights(read_bytes(weights_path), weights_path, fingerprint, config.of_vectors())
    return config, fingerprint


# Imported models


def imported() -> list[str]:
    """The names of the models that `lookalike models import` made, sorted."""
    folder = _imports()
    there = folder.iterdir() if folder.is_dir() else ()
    return sorted(each.name for each in there if (each / CONFIG).is_file())


def imported_folder(name: str) -> Path:
    """The folder of an imported model, whether or not it exists.

    Raises:
        InputError: not a name: letters, digits, "-", "_" and ".".
    """
    if not SHORT_NAME.fullmatch(name) or name == DEFAULT:
        raise InputError(f"'{name}' cannot be the name of a model.", "Use letters, digits, '-', '_' and '.'.")
    return _imports() / name


def _imports() -> Path:
    """The folder of imported models: $LOOKALIKE_MODELS, or `models` in the user's data folder."""
    given = os.environ.get("LOOKALIKE_MODELS")
    return Path(given).expanduser() if given else Path(platformdirs.user_data_dir("lookalike")) / "models"


def _pretrained(name: str, local_files_only: bool) -> Path:
    """The model folder of weights of timm, which is made when they are first used.

    Raises:
        InputError: no such weights, they cannot be downloaded, or the cache cannot be written.
    """
    cache = Path(os.environ.get("LOOKALIKE_CACHE") or platformdirs.user_cache_dir("lookalike")).expanduser()
    folder = cache / "models" / "timm" / name
    if not (folder / CONFIG).is_file():
        from lookalike.models import timm_weights

        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error, "Set LOOKALIKE_CACHE to a writable folder.") from None
        with FileLock(folder.parent / f".{name}.lock"):
            if not (folder / CONFIG).is_file():  # otherwise another process made it in the meantime
                timm_weights.save(timm_weights.from_timm(name, local_files_only=local_files_only), folder)
    return folder


# Folders and files


def _in_folder(path: Path) -> tuple[Path, Path]:
    config, weights = path / CONFIG, path / WEIGHTS
    ours = config.is_file() and not is_of_timm(config)
    if not ours and (config.is_file() or (path / OPEN_CLIP_CONFIG).is_file()):
        raise InputError(
            f"{path}: a model in the format of {'timm' if config.is_file() else 'open_clip'}, which is to be imported.",
            f"Import it: lookalike models import {path} --name NAME",
        )
    if ours and weights.is_file():
        return config, weights
    if (path / "recipe.yaml").is_file():
        if (path / "model" / CONFIG).is_file():
            return _in_folder(path / "model")
        raise InputError(f"{path}: this run has no model yet.", "Finish it with 'lookalike train --resume'.")
    pickles = sorted(p for p in path.iterdir() if p.suffix in PICKLES)
    if pickles and not weights.exists():
        raise _not_a_folder(pickles[0])
    missing = " and ".join(p.name for p in (config, weights) if not p.is_file())
    raise InputError(f"{path}: not a model folder: no {missing}.", "Point at a folder that save_pretrained wrote.")


def is_of_timm(config: Path) -> bool:
    """Whether a config.json is of timm: it names an architecture, and no format of ours."""
    try:
        tree = read_json(config)
    except InputError:
        return False
    return isinstance(tree, dict) and "architecture" in tree and "format" not in tree


def _not_a_folder(path: Path) -> InputError:
    if path.name == CONFIG or (path.name == WEIGHTS and path.with_name(CONFIG).is_file()):
        return InputError(f"{path}: one file of a model folder.", f"Point at the folder, {path.parent}.")
    how_to = f"lookalike models import {path} --as timm/NAME --name SHORT; then use --model SHORT."
    if path.suffix in PICKLES:
        return InputError(
            f"{path}: a pickle can run any code when it is opened, so it is not.",
            f"If it holds weights for a network of timm, import them, which runs none: {how_to}",
        )
    if path.suffix == ".safetensors":
        return InputError(f"{path}: weights without a network and preprocessing.", f"Import them: {how_to}")
    return InputError(f"{path}: a file, not a model folder.", "Point at a folder that save_pretrained wrote.")


# The Hub


def _on_hub(name: str, **hub: Any) -> tuple[Path, Path]:
    wanted = f"{CONFIG} and {WEIGHTS}"
    config = download(name, CONFIG, wanted, **hub)
    if is_of_timm(config):
        raise InputError(
            f"{name}: a model in timm's format, which is to be imported.",
            f"Import it: lookalike models import {name} --name NAME",
        )
    if read_config(ModelConfig, config)[0].text is not None:
        download(name, TOKENIZER, **hub)
    return config, download(name, WEIGHTS, wanted, **hub)


def download(name: str, file: str, wanted: str = "", **hub: Any) -> Path:
    """Get a file of a Hub repository into the cache, and return its path there.

    Args:
        name: of the repository, "owner/name".
        file: in it.
        wanted: all that is looked for there, for the message if the file is missing.
        hub: keyword arguments of `huggingface_hub.hf_hub_download`.

    Raises:
        InputError: no such repository or file, or no network.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined, unused-ignore]
        EntryNotFoundError,
        HFValidationError,
        HTTPError,  # of whichever HTTP library it uses
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(hf_hub_download(name, file, **hub))
    except LocalEntryNotFoundError:
        reason = "it is not in the cache, and the Hub cannot be reached"
    except EntryNotFoundError:
        reason = f"it is on the Hub but holds no {wanted or file}"
    except RepositoryNotFoundError:
        reason = "there is none of this name, or it is private or gated and needs 'hf auth login'"
    except (HTTPError, HFValidationError) as error:
        reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
    raise InputError(f"{name}: no such folder, and not a model from the Hub: {reason}.", "Check the name.")
