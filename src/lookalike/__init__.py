"""Lookalike: train image recognition, measure it, and search images by what they look like.

    import lookalike

    model = lookalike.load("runs/pets/model")
    model.predict("photo.jpg")

Importing the package loads nothing heavy and changes nothing in the process: each public name is imported when it is
first used. If that imports PyTorch, the environment variables of `lookalike.hardware.SHORT_WAITS` are set during the
import, unless the user sets one of them: its idle threads then sleep instead of keeping their cores busy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lookalike.data.registry import load_dataset as load_dataset
    from lookalike.evaluation.evaluate import evaluate as evaluate
    from lookalike.gallery.gallery import Gallery as Gallery
    from lookalike.gallery.query import Query as Query
    from lookalike.gallery.query import Text as Text
    from lookalike.models.pretrained import load as load
    from lookalike.training.fit import fit as fit
    from lookalike.training.run import train as train

__version__ = "0.1.0"
__all__ = ["Gallery", "Query", "Text", "__version__", "evaluate", "fit", "load", "load_dataset", "train"]

_MODULES = {
    "Gallery": "lookalike.gallery.gallery",
    "Query": "lookalike.gallery.query",
    "Text": "lookalike.gallery.query",
    "evaluate": "lookalike.evaluation.evaluate",
    "fit": "lookalike.training.fit",
    "load": "lookalike.models.pretrained",
    "load_dataset": "lookalike.data.registry",
    "train": "lookalike.training.run",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'lookalike' has no attribute '{name}'")
    from lookalike.hardware import short_waits

    with short_waits():
        value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value  # so that later uses do not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
