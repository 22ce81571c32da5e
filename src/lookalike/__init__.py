"""Lookalike: image recognition and look-alike search, trained from scratch and measured honestly.

    import lookalike

    model = lookalike.load("runs/pets/model")
    model.predict(images)

Importing the package loads nothing heavy and changes nothing in the process; each public name is imported when it is
first used. If that loads PyTorch, its OpenMP threads are told to wait asleep, unless the environment says how they wait
(`lookalike.hardware`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lookalike.gallery.gallery import Gallery as Gallery
    from lookalike.models.pretrained import load as load

__version__ = "0.1.0"
__all__ = ["Gallery", "__version__", "data", "load"]

_LAZY = {
    "Gallery": ("lookalike.gallery.gallery", "Gallery"),
    "data": ("lookalike.data", ""),
    "load": ("lookalike.models.pretrained", "load"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'lookalike' has no attribute '{name}'")
    from lookalike.hardware import short_waits

    module_name, attribute = _LAZY[name]
    with short_waits():
        module = importlib.import_module(module_name)
    value = getattr(module, attribute) if attribute else module
    globals()[name] = value  # the next look-up is a plain one
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
