"""The model that a gallery was made with: found again, and told from any other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lookalike.errors import InputError
from lookalike.search.store.base import About

if TYPE_CHECKING:
    from lookalike.models.pretrained import Pretrained
    from lookalike.search.embedder import Embedder


def wanted(about: About) -> str:
    """The model that a gallery wants, in words."""
    return f"the model {about.fingerprint[:12]}…{f' ({about.model})' if about.model else ''}"


def load_model(model: Pretrained | str | Path) -> tuple[Pretrained, str]:
    """A model, and where it is as far as that is known: the whole path of a folder, a Hub id, or "default".

    Raises:
        InputError: no such model.
    """
    if not isinstance(model, str | Path):
        return model, ""
    from lookalike.models.folder import DEFAULT
    from lookalike.models.pretrained import load

    folder = Path(model).expanduser()
    return load(model), str(folder.resolve()) if folder.is_dir() and model != DEFAULT else str(model)


def check_model(model: Pretrained, about: About, what: str) -> None:
    """Refuse a model that is not the one wanted.

    Raises:
        InputError: it has another fingerprint; `what` is called by its name, and the model that it wants.
    """
    if model.fingerprint != about.fingerprint:
        raise InputError(
            f"{what}: made by another model than {model.config.name} {model.fingerprint[:12]}….",
            f"It wants {wanted(about)}.",
        )


def check_fingerprint(fingerprint: str, about: About, what: str) -> None:
    """Refuse a query of another model.

    Raises:
        InputError: it is of one.
    """
    if fingerprint != about.fingerprint:
        raise InputError(f"the query is of the model {fingerprint[:12]}….", f"{what} wants {wanted(about)}.")


def checked_embedder(model: Pretrained | str | Path, about: About, what: str) -> Embedder:
    """What turns pictures into vectors with this model.

    Raises:
        InputError: no such model, or not the one wanted.
    """
    loaded, _ = load_model(model)
    check_model(loaded, about, what)
    from lookalike.search.embedder import Embedder

    return Embedder(loaded)


def remembered_embedder(about: About, what: str) -> Embedder:
    """Likewise, with the model that the gallery remembers.

    Raises:
        InputError: it remembers none, or that one is gone, or another now.
    """
    if not about.model:
        raise InputError(f"{what}: no model is given, and it remembers none.", f"Give {wanted(about)}.")
    try:
        return checked_embedder(about.model, about, what)
    except InputError as error:
        raise InputError(f"{what}: wants {wanted(about)}, but: {error.message}", "Give that model's folder.") from None
