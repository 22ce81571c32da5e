"""Export a model for use without Lookalike: as ONNX, or as an exported program of PyTorch.

The input of both is `images`, (N, size, size, 3) uint8, RGB; normalisation is part of the file. The outputs are
`embedding`, (N, D) float32 of unit length, and for a classifier also `logits`, (N, C) float32. Names of classes, steps
of preprocessing, temperature, thresholds and fingerprint are stored as JSON: in an ONNX file under the metadata key
"lookalike", in a PyTorch file as its extra file `lookalike.json`.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lookalike.errors import InputError
from lookalike.extras import missing
from lookalike.files import atomic_file
from lookalike.image import ResizeCrop, resized_side
from lookalike.models.inference import Normalize, logits_and_vectors
from lookalike.models.onnx_runtime import METADATA_KEY, OnnxModel, read_about
from lookalike.models.pretrained import ImageModel

Format = Literal["onnx", "torch"]
Precision = Literal["float32", "int8"]

ENDINGS: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2"}
OPSET = 18  # of ONNX
PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # needed to write and to check an ONNX file
CALIBRATION_IMAGES = 256  # that int8 is fitted to, at most
BATCH_SIZE = 64
NEIGHBOURS = 10  # compared by `compare`


class ExportedNetwork(nn.Module):
    """A network with its normalisation and both outputs, as one module: what is exported.

    Args:
        model: is copied to the CPU.
    """

    def __init__(self, model: ImageModel) -> None:
        super().__init__()
        self.network = copy.deepcopy(model.network).cpu().eval().requires_grad_(False)
        self.normalize = Normalize(model.config.mean, model.config.std)
        self.outputs = ("logits", "embedding") if model.config.has_logits else ("embedding",)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (N, size, size, 3) uint8 to the outputs that `outputs` names."""
        logits, vectors = logits_and_vectors(self.network, self.normalize(images))
        return (vectors,) if logits is None else (logits, vectors)


def about(model: ImageModel) -> dict[str, Any]:
    """The description of a model that is stored in an exported file, as plain values."""
    config = model.config
    return {
        "fingerprint": model.fingerprint,
        "name": config.name,
        "image_size": config.image_size,
        "crop_mode": config.model_dump(mode="json")["crop_mode"],
        "dim": model.embedding_dim,
        "class_names": list(config.class_names) if config.has_logits else [],
        "class_ids": list(config.class_ids) if config.has_logits else [],
        "temperature": config.temperature,
        "unknown_threshold": config.unknown_threshold,
        "match_threshold": config.match_threshold,
        "preprocessing": preprocessing(model),
    }


def preprocessing(model: ImageModel) -> dict[str, Any]:
    """The steps from an image file to the input, as plain values; the last one is part of the exported file."""
    config = model.config
    crop = config.crop_mode
    exact = isinstance(crop, ResizeCrop)
    stretched = crop.squash if isinstance(crop, ResizeCrop) else crop == "squash"
    cut_off = isinstance(crop, ResizeCrop) or not stretched
    return {
        "orientation": "as EXIF says (tag 0x0112), before all else",
        "frame": "the first, of an animation",
        "transparency": "on white",
        "background": [255, 255, 255],
        "color_space": "sRGB, converted by the embedded ICC profile",
        "channels": "RGB",
        "resize": "to exactly resize_to x resize_to, without regard to proportions"
        if stretched
        else "so that the shorter side is resize_to, proportions kept",
        "resize_to": resized_side(config.image_size, crop),
        "crop": "center: what sticks out is cut off evenly on both sides" if cut_off else "none",
        "order": "resize to whole pixels, then crop" if exact else "crop, then resize",
        "resampling": crop.interpolation if isinstance(crop, ResizeCrop) else "bicubic",
        "antialias": True,
        "size": [config.image_size, config.image_size],
        "crop_mode": config.model_dump(mode="json")["crop_mode"],
        "layout": "NHWC",
        "dtype": "uint8",
        "normalization": {"where": "inside the file", "scale": 1 / 255, "mean": config.mean, "std": config.std},
    }


def export(
    model: ImageModel,
    path: Path,
    format: Format = "onnx",
    precision: Precision = "float32",
    images: NDArray[np.uint8] | None = None,
    accept: Callable[[Path], None] | None = None,
) -> None:
    """Write a model as one file, complete or not at all. An existing file is replaced.

    Args:
        model: with any network.
        path: of the file; it ends in .onnx or .pt2.
        format: "onnx", or "torch" for a program that `torch.export.load` reads.
        precision: "int8" (ONNX only): weights and activations of 8 bits, fitted to `images`.
        images: (N, size, size, 3) uint8, like those that the network will get.
        accept: called with the complete file before it is renamed to `path`; if it raises, no file is left.

    Raises:
        InputError: a package is not installed, a wrong ending, int8 without images, or the folder is not writable.
    """
    check_target(path, format, precision)
    with atomic_file(path, shared=True) as beside:
        if format == "torch":
            with _quiet():
                torch.export.save(_traced(model), beside, extra_files={"lookalike.json": json.dumps(about(model))})
        else:
            network, size = ExportedNetwork(model), model.config.image_size
            example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
            write_onnx(network, example, ("images", network.outputs), about(model), beside)
            if precision == "int8":
                if images is None or not len(images):
                    raise InputError("int8 has nothing to be fitted to.", "Give images: --images DATA.")
                _quantise(beside, images[:CALIBRATION_IMAGES])
        if accept is not None:
            accept(beside)


def check_target(path: Path, format: Format = "onnx", precision: Precision = "float32") -> None:
    """Check the target of an export before any work is done.

    Args:
        path: see `export`.
        format: see `export`.
        precision: see `export`.

    Raises:
        InputError: a wrong ending, int8 for PyTorch, a folder that is not writable, or a package is not installed.
    """
    if path.suffix != ENDINGS[format]:
        raise InputError(f"{path}: not the ending of the format {format}.", f"End the name in {ENDINGS[format]}.")
    if precision == "int8" and format != "onnx":
        raise InputError("int8 is there for ONNX only.", "Use --format onnx, or --precision float32.")
    try:
        is_folder, has_folder = path.is_dir(), path.absolute().parent.is_dir()
    except OSError as error:  # a name that is too long
        raise InputError(f"{path}: cannot be written ({error.strerror or error}).", "Choose another place.") from None
    if is_folder:
        raise InputError(f"{path}: a folder.", "Give the name of a file.")
    if not has_folder:
        raise InputError(f"{path}: no such folder.", "Name a file in a folder that exists.")
    if not os.access(path.absolute().parent, os.W_OK):
        raise InputError(f"{path}: its folder cannot be written to.", "Choose another place.")
    for name in PACKAGES if format == "onnx" else ():
        if importlib.util.find_spec(name) is None:
            raise missing(f"the package {name} is not installed.", "export")


def _traced(model: ImageModel) -> torch.export.ExportedProgram:
    size = model.config.image_size
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    return torch.export.export(
        ExportedNetwork(model), (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
    )


def write_onnx(
    network: nn.Module, example: Tensor, names: tuple[str, Sequence[str]], description: dict[str, Any], path: Path
) -> None:
    """Write a network as an ONNX file.

    Args:
        network: of one input and several outputs, as a tuple.
        example: an input of two rows.
        names: of the input, and of the outputs.
        description: stored in the file, as JSON.
        path: of the file.

    Raises:
        InputError: a package is not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  (what PyTorch's exporter is written with)
    except ImportError as error:
        raise _missing(error) from None
    with _quiet():
        program = torch.onnx.export(
            network,
            (example,),
            input_names=[names[0]],
            output_names=list(names[1]),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    written = program.model_proto
    onnx.helper.set_model_props(written, {METADATA_KEY: json.dumps(description)})
    onnx.save_model(written, str(path))


def _quantise(path: Path, images: NDArray[np.uint8]) -> None:
    """Quantise weights and activations to 8 bits, in place; the weights of each channel have their own scale."""
    try:
        import onnx
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise _missing(error) from None
    batches = iter([{"images": images[low : low + BATCH_SIZE]} for low in range(0, len(images), BATCH_SIZE)])

    class Images(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            return next(batches, None)

    props = onnx.load(str(path), load_external_data=False).metadata_props
    said = {prop.key: prop.value for prop in props}
    prepared = path.with_name(f"{path.name}.prepared")
    try:
        with _quiet():
            quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(str(prepared), str(path), Images(), per_channel=True)
        quantised = onnx.load(str(path))
        onnx.helper.set_model_props(quantised, said)
        onnx.save_model(quantised, str(path))
    finally:
        prepared.unlink(missing_ok=True)


def _missing(error: ImportError) -> InputError:
    return missing(f"the package {error.name} is not installed.", "export")


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the advice of exporters to authors of networks; compute without gradients."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# Checks of an exported file


class TorchProgram:
    """A .pt2 file, in PyTorch; see `OnnxModel`."""

    def __init__(self, path: Path) -> None:
        extra = {"lookalike.json": ""}
        try:
            self._module = torch.export.load(path, extra_files=extra).module()
            self.about = read_about(extra["lookalike.json"])
        except Exception as error:  # torch's own errors on a damaged file have no common base
            first = str(error).partition("\n")[0]
            raise InputError(f"{path}: not a model that Lookalike exported ({first}).", "Export it again.") from None
        self.outputs = ("logits", "embedding") if self.about["class_names"] else ("embedding",)

    @torch.inference_mode()
    def run(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """As `OnnxModel.run`."""
        found = self._module(torch.from_numpy(images))
        return {name: one.numpy() for name, one in zip(self.outputs, found, strict=True)}


def read_exported(path: Path, threads: int | None = None) -> OnnxModel | TorchProgram:
    """Open an exported file. For errors see `TorchProgram` and `OnnxModel`."""
    return TorchProgram(path) if path.suffix == ".pt2" else OnnxModel(path, threads)


@dataclass(frozen=True)
class Agreement:
    """The agreement of an exported file with its model on some images.

    Args:
        images: their number.
        logits: the largest difference of two logits; None without a classifier.
        top1: the share of images with the same most probable class; None without a classifier.
        cosine: the smallest cosine of the two embeddings of an image.
        neighbours: the share of the ten nearest neighbours of an image that are the same, mean over the images.
    """

    images: int
    logits: float | None
    top1: float | None
    cosine: float
    neighbours: float

    def problems(self, exact: bool) -> list[str]:
        """Descriptions of differences that are too large: strict limits for float32 (`exact`), loose ones for int8."""
        top1, neighbours, cosine = (0.9999, 0.999, 0.9999) if exact else (0.9, 0.7, 0.9)
        said = []
        if exact and self.logits is not None and self.logits > 1e-2:
            said.append(f"logits differ by up to {self.logits:.4f}")
        if self.top1 is not None and self.top1 < top1:
            said.append(f"only {self.top1:.1%} of the images have the same likeliest class")
        if self.cosine < cosine:
            said.append(f"embeddings of one image have a cosine of {self.cosine:.4f}")
        if self.neighbours < neighbours:
            said.append(f"only {self.neighbours:.1%} of the nearest neighbours are the same")
        return said


def compare(model: ImageModel, exported: OnnxModel | TorchProgram, images: NDArray[np.uint8]) -> Agreement:
    """Compare an exported file with its model on the same images.

    Args:
        model: that was exported.
        exported: the file.
        images: (N, size, size, 3) uint8, at least twelve.

    Raises:
        InputError: fewer images, or the file of another model.
    """
    if len(images) < NEIGHBOURS + 2:
        raise InputError(f"{len(images)} images are too few to compare by.", f"Give {NEIGHBOURS + 2} at least.")
    if exported.about["fingerprint"] != model.fingerprint:
        raise InputError("the exported file is of another model.", "Export this one again.")
    parts = [exported.run(images[low : low + BATCH_SIZE]) for low in range(0, len(images), BATCH_SIZE)]
    theirs = {name: np.concatenate([part[name] for part in parts]) for name in exported.outputs}
    logits = top1 = None
    if "logits" in theirs:
        ours = model.logits(images)
        logits = float(np.abs(ours - theirs["logits"]).max())
        top1 = float((ours.argmax(1) == theirs["logits"].argmax(1)).mean())
    vectors = model.embed(images)
    cosines = (vectors * theirs["embedding"]).sum(1)
    same = _same_neighbours(vectors, theirs["embedding"])
    return Agreement(len(images), logits, top1, float(cosines.min()), same)


def _same_neighbours(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    nearest = []
    for vectors in (one, other):
        likeness = vectors @ vectors.T
        np.fill_diagonal(likeness, -2)
        nearest.append(np.argpartition(-likeness, NEIGHBOURS, axis=1)[:, :NEIGHBOURS])
    both = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(*nearest, strict=True)]
    return float(np.mean(both)) / NEIGHBOURS
