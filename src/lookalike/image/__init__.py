"""Images: decoding files to pixels, and the perceptual hash.

`decode` is the only way from an image to pixels. Training, evaluation, prediction, galleries and the server all use
it, so an image has the same pixels everywhere.
"""

from lookalike.image.decoding import (
    EXTENSIONS,
    FORMATS,
    MAX_BYTES,
    MAX_PIXELS,
    CropMode,
    ImageLike,
    ResizeCrop,
    TooManyPixelsError,
    UnknownFormatError,
    decode,
    decode_part,
    load_image,
    open_image,
    read_image_file,
    resize,
    resized_side,
)
from lookalike.image.limits import check_limits
from lookalike.image.perceptual_hash import dhash

__all__ = [
    "EXTENSIONS",
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "CropMode",
    "ImageLike",
    "ResizeCrop",
    "TooManyPixelsError",
    "UnknownFormatError",
    "check_limits",
    "decode",
    "decode_part",
    "dhash",
    "load_image",
    "open_image",
    "read_image_file",
    "resize",
    "resized_side",
]
