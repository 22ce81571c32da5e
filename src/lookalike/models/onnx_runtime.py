"""A model in an ONNX file that `export` wrote, in ONNX Runtime; needs no PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.extras import missing

KEY = "lookalike"  # under which the file says what is to be known of the model, as JSON
VERSION = 1  # of what such a file takes and gives


class OnnxModel:
    """An ONNX file, in ONNX Runtime on the CPU.

    Args:
        path: of the file.
        threads: that one batch is computed with; None: as many as there are cores.

    Raises:
        InputError: no such file, not one of ours, or onnxruntime is not installed.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise missing("the package onnxruntime is not installed.", "serve") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        options.add_session_config_entry(
            "session.intra_op.allow_spinning", "0"
        )  # waiting threads leave the cores alone
        if not path.is_file():
            raise InputError(f"{path}: no such file.", "Make one: lookalike export MODEL")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            self.about = about_of(self._session.get_modelmeta().custom_metadata_map[KEY])
        except Exception as error:  # onnxruntime's own errors have no common base
            first = str(error).partition("\n")[0]
            raise InputError(f"{path}: not a model that Lookalike exported ({first}).", "Export it again.") from None
        self.outputs = tuple(one.name for one in self._session.get_outputs())

    def run(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Images (N, size, size, 3) uint8 to the outputs by name, N of each."""
        return dict(zip(self.outputs, self._session.run(None, {"images": images}), strict=True))


def about_of(text: str) -> dict[str, Any]:
    """What an exported file says of its model.

    Raises:
        ValueError: not what `export` writes.
    """
    about = json.loads(text)
    kinds = {"fingerprint": str, "dim": int, "class_names": list}
    if not isinstance(about, dict) or any(not isinstance(about.get(key), kind) for key, kind in kinds.items()):
        raise ValueError("it does not say which model it is")
    return about
