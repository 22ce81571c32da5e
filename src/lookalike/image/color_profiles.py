"""Convert colours with an embedded ICC profile to sRGB. LittleCMS is loaded for the first such image."""

from __future__ import annotations

import io
import struct
from functools import lru_cache
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from PIL.ImageCms import ImageCmsTransform

MAX_PROFILE_BYTES = 4 << 20  # those of printing presses have 1 to 3 MB
MAX_TAGS = 100
SRGB = "srgb"  # profiles whose description begins with this need no conversion
CACHED_TRANSFORMS = 16  # the photographs of a collection come from a few cameras


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert a loaded image to sRGB, as RGB or RGBA.

    The image is returned unchanged if it has no profile, an sRGB profile, a broken one, or one for another colour
    model.
    """
    if image.mode == "LAB":
        return _transform(b"", "LAB").apply(image)  # type: ignore[union-attr]
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not 128 < len(profile) <= MAX_PROFILE_BYTES:
        return image
    space, name = _about(profile)
    if name.lower().startswith(SRGB):
        return image
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    if space == "GRAY" and image.mode in {"1", "L", "LA", "RGBA"}:
        image = image.convert("L")
    elif space == "RGB" and image.mode != "CMYK":
        image = image.convert("RGB")
    elif (space, image.mode) != ("CMYK", "CMYK"):
        return image
    transform = _transform(profile, image.mode)
    if transform is None:
        return image
    made = transform.apply(image)
    if alpha is not None:
        made.putalpha(alpha)
    return made


@lru_cache(CACHED_TRANSFORMS)
def _transform(profile: bytes, mode: str) -> ImageCmsTransform | None:
    """Return the transform of a profile, None if it cannot be used. NOCACHE makes it safe to share among threads."""
    from PIL import ImageCms

    try:
        return ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)) if profile else ImageCms.createProfile("LAB"),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            flags=ImageCms.Flags.NOCACHE,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _about(profile: bytes) -> tuple[str, str]:
    """Return the colour model of a profile and its name; empty strings if they cannot be read."""
    space = profile[16:20].decode("latin-1").strip()
    try:
        (count,) = struct.unpack_from(">I", profile, 128)
        tags = [struct.unpack_from(">4sII", profile, 132 + 12 * place) for place in range(min(count, MAX_TAGS + 1))]
        if count > MAX_TAGS or any(profile[at : at + 4] == b"mpet" for _, at, _ in tags):
            return "", ""  # chains of functions of any length, which no camera writes
        at = next(at for name, at, _ in tags if name == b"desc")
        (length,) = struct.unpack_from(">I", profile, at + 8)
        if profile[at : at + 4] == b"desc":
            return space, profile[at + 12 : at + 12 + length].rstrip(b"\0").decode("latin-1")
        size, start = struct.unpack_from(">II", profile, at + 20)  # "mluc": the first of its languages
        return space, profile[at + start : at + start + size].decode("utf-16-be", "replace")
    except (struct.error, StopIteration):
        return space, ""
