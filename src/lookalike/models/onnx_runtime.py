"""Read a model from an ONNX file that `export` wrote, and run it in ONNX Runtime; needs no PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.extras import missing

METADATA_KEY = "lookalike"  # of an ONNX file's metadata: JSON that describes the model
FILE_VERSION = 1  # of the inputs and outputs of cached files; part of their names


class OnnxModel:
    """A file that `export` wrote, in ONNX Runtime on the CPU.

    Args:
        path: of the file.
        threads: that compute one batch; None: one for each core.

    Attributes:
        about: the description of the model, as `export.about` made it.
        outputs: names of the outputs.

    Raises:
        InputError: no such file, not one that Lookalike exported, or onnxruntime is not installed.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise missing("the package onnxruntime is not installed.", "serve") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads free their cores
        if not path.is_file():
            raise InputError(f"{path}: no such file.", "Make one: lookalike export MODEL")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            self.about = read_about(self._session.get_modelmeta().custom_metadata_map[METADATA_KEY])
        except Exception as error:  # onnxruntime's own errors have no common base
            reason = str(error).partition("\n")[0]
            raise InputError(f"{path}: not a model that Lookalike exported ({reason}).", "Export it again.") from None
        self.outputs = tuple(output.name for output in self._session.get_outputs())
        self._input = str(self._session.get_inputs()[0].name)

    def run(self, inputs: NDArray[np.uint8] | NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
        """The outputs by name for images (N, size, size, 3) uint8; of a text tower, for tokens (N, L) int64."""
        return dict(zip(self.outputs, self._session.run(None, {self._input: inputs}), strict=True))


def read_about(text: str) -> dict[str, Any]:
    """Parse the description of the model in an exported file.

    Raises:
        ValueError: not what `export` writes.
    """
    about = json.loads(text)
    types = {"fingerprint": str, "dim": int, "class_names": list}
    if not isinstance(about, dict) or any(not isinstance(about.get(key), type_) for key, type_ in types.items()):
        raise ValueError("it has no description of its model")
    return about
