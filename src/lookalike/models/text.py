"""Texts as the input of a text tower: cleaned, then tokenized by the tokenizer.json of the model folder.

The file is in the format of the library `tokenizers`, so that neither open_clip nor PyTorch is needed here.
"""

from __future__ import annotations

import hashlib
import html
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.extras import missing
from lookalike.models.serialization import TOKENIZER, WHOLE, ModelConfig, TextSettings

MAX_TEXT = 10_000  # characters of a text; text towers see far fewer
TEXT_MODELS = "CLIP and SigLIP models in the format of open_clip"
PROMPT = "a photo of a {}"
ARTICLES = ("a ", "an ", "the ")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class NoTextError(InputError):
    """A text is given to a model that has no text tower."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}: this model has no text tower, so it cannot compare words with images.",
            f"{TEXT_MODELS} have one: lookalike models import hf-hub:timm/ViT-B-16-SigLIP --name siglip",
        )


class TextTokenizer:
    """Turns texts into tokens.

    Args:
        source: the content of tokenizer.json.
        settings: of the model.
        name: of the file, for messages.

    Raises:
        InputError: the packages of the extra `clip` are not installed, or this is not the model's tokenizer.
    """

    def __init__(self, source: str, settings: TextSettings, name: str) -> None:
        try:
            import ftfy
            from tokenizers import Tokenizer
        except ImportError as error:
            raise missing(f"{name}: texts need the package {error.name}, which is not installed.", "clip") from None
        if fingerprint_of(source) != settings.tokenizer:
            raise InputError(f"{name}: not the tokenizer that this model was saved with.", WHOLE)
        try:
            tokenizer: Any = Tokenizer.from_str(source)
        except Exception as error:  # the library raises no other class
            raise InputError(f"{name}: not a file of the library tokenizers ({error}).", WHOLE) from None
        tokenizer.enable_truncation(settings.context_length)
        tokenizer.enable_padding(length=settings.context_length, pad_id=settings.pad_id, pad_token="")
        self.source = source
        self.settings = settings
        self._fix_text = ftfy.fix_text
        self._tokenizer = tokenizer

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Tokens (N, context_length) of texts. What is beyond the context length is cut off.

        Raises:
            InputError: a text that is empty, longer than `MAX_TEXT`, or no text.
        """
        for text in texts:
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"{text!r} is no text.", "Give words, such as 'a dog on a beach'.")
            if len(text) > MAX_TEXT:
                raise InputError(f"a text of {len(text):,} characters.", f"At most {MAX_TEXT:,} are taken.")
        encoded = self._tokenizer.encode_batch([self._clean(text) for text in texts])
        tokens = np.array([one.ids for one in encoded], np.int64).reshape(len(texts), self.settings.context_length)
        if self.settings.blank_id is not None:
            tokens[tokens == self.settings.blank_id] = 0
        return tokens

    def _clean(self, text: str) -> str:
        """The text as the tokenizer expects it: see `TextSettings.clean`."""
        text = html.unescape(html.unescape(self._fix_text(text)))
        if self.settings.clean == "canonicalize":
            text = text.replace("_", " ").translate(NO_PUNCTUATION)
        text = " ".join(text.split())
        return text if self.settings.clean == "whitespace" else text.lower()


def prompts_of(labels: Sequence[str], prompt: str = PROMPT) -> list[str]:
    """The text for each label: the prompt with the label in place of {}.

    An article before {} is left out if the label begins with one.

    >>> prompts_of(["cat", "a red car"])
    ['a photo of a cat', 'a photo of a red car']

    Raises:
        InputError: no labels, two that are the same, an empty one, or a prompt without {}.
    """
    if prompt.count("{}") != 1:
        raise InputError(f"prompt '{prompt}': it does not have {{}} once.", f"Write it like '{PROMPT}'.")
    if not labels or not all(label.strip() for label in labels):
        raise InputError("no labels, or an empty one.", "Give at least one, such as cat.")
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise InputError(f"the label '{twice}' is there twice.", "Give each label once.")
    bare = re.sub(r"\b(an?|the) \{\}", "{}", prompt)
    return [(bare if label.lower().startswith(ARTICLES) else prompt).replace("{}", label) for label in labels]


def fingerprint_of(source: str) -> str:
    """SHA-256 (hex) of the content of tokenizer.json."""
    return hashlib.sha256(source.encode()).hexdigest()


def settings_of(config: ModelConfig, what: str) -> TextSettings:
    """The settings of a model's text tower.

    Raises:
        NoTextError: it has none.
    """
    if config.text is None:
        raise NoTextError(what)
    return config.text


def load_tokenizer(config: ModelConfig, folder: Path) -> TextTokenizer | None:
    """Read the tokenizer of a model folder; None for a model without a text tower.

    Raises:
        InputError: it is missing, or not the one that the model was saved with.
    """
    if config.text is None:
        return None
    path = folder / TOKENIZER
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}).", WHOLE) from None
    return TextTokenizer(source, config.text, str(path))
