"""Augmentation of whole batches, on the CPU or a GPU.

Random numbers are drawn per image from a generator that is passed in, on the CPU and for the whole batch. The same seed
therefore gives the same crops on every device, and a process that holds a part of a batch draws for all of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lookalike.recipe import Augment

YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))  # rows: luma, two differences
REFERENCE_SIZE = 64  # image size that `Augment.pad` refers to


@dataclass(frozen=True)
class Draw:
    """The random numbers of a batch of B images; every tensor has length B, and is float32 if not stated otherwise.

    Args:
        top, left: of the crop, as a share of the possible range, 0..1.
        scale: area of the crop over that of the image ("resized" crops).
        ratio: width over height of the crop ("resized" crops).
        flip: bool, whether to mirror.
        cut_y, cut_x: centre of the erased square, 0..1.
        brightness, contrast, saturation: factors around 1.
        hue: turn of the colours, in radians around 0.
        mix: share of the image itself in a mix, 0..1; 1 leaves it unchanged.
        mix_y, mix_x: centre of CutMix's box, 0..1.
        paste: bool, mix by pasting a box (CutMix) instead of blending (mixup).
    """

    top: Tensor
    left: Tensor
    scale: Tensor
    ratio: Tensor
    flip: Tensor
    cut_y: Tensor
    cut_x: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    mix: Tensor
    mix_y: Tensor
    mix_x: Tensor
    paste: Tensor

    def part(self, start: int, stop: int) -> Draw:
        """Return the numbers of images `start` to `stop`."""
        return replace(self, **{f.name: getattr(self, f.name)[start:stop] for f in fields(self)})

    def to(self, device: torch.device) -> Draw:
        """Copy the numbers to a device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def draw(settings: Augment, count: int, generator: torch.Generator) -> Draw:
    """Draw the random numbers of `count` images.

    Args:
        settings: strengths and probabilities.
        count: images in the whole batch.
        generator: a CPU generator; it is advanced.
    """
    u = torch.rand(13, count, generator=generator)  # always all 13: one setting does not change the numbers of another
    low, high = settings.scale
    log_ratio = math.log(settings.ratio[0]), math.log(settings.ratio[1])
    mix, paste = _draw_mix(settings, count, generator)
    return Draw(
        top=u[0],
        left=u[1],
        scale=low + (high - low) * u[2],
        ratio=torch.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * u[3]),
        flip=u[4] < settings.flip,
        cut_y=u[5],
        cut_x=u[6],
        brightness=1 + settings.brightness * (2 * u[7] - 1),
        contrast=1 + settings.contrast * (2 * u[8] - 1),
        saturation=1 + settings.saturation * (2 * u[9] - 1),
        hue=math.pi * settings.hue * (2 * u[12] - 1),
        mix=mix,
        mix_y=u[10],
        mix_x=u[11],
        paste=paste,
    )


def _draw_mix(settings: Augment, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the shares, (B,) float32, and whether to paste, (B,) bool (with probability 1/2 if mixup is on too)."""
    u = torch.rand(3, count, generator=generator)
    paste = torch.full((count,), settings.cutmix > 0)
    if settings.cutmix and settings.mixup:
        paste = u[0] < 0.5
    if not settings.cutmix and not settings.mixup:
        return torch.ones(count), paste
    share = torch.where(
        paste, _beta(settings.cutmix or 1.0, count, generator), _beta(settings.mixup or 1.0, count, generator)
    )
    return torch.where(u[1] < settings.mix_probability, share, torch.ones(count)), paste


def _beta(alpha: float, count: int, generator: torch.Generator) -> Tensor:
    """Beta(alpha, alpha), (count,) float32, as a ratio of two gamma draws."""
    concentration = torch.full((2, count), alpha, dtype=torch.float64)
    gamma = torch._standard_gamma(concentration, generator=generator).clamp_min(1e-30)
    return (gamma[0] / gamma.sum(0)).float()


def crop_and_flip(images: Tensor, settings: Augment, drawn: Draw) -> Tensor:
    """Crop and mirror: (B, H, W, 3) uint8 to the same shape and type.

    "pad" takes pixels over unchanged; "resized" samples them bilinearly.
    """
    size = images.shape[1]
    if settings.crop == "resized":
        return _resized_crop(images, drawn)
    pad = round(settings.pad * size / REFERENCE_SIZE) if settings.crop == "pad" else 0
    at = torch.arange(size, device=images.device)
    rows = _reflect(at + _offset(drawn.top, pad)[:, None], size)  # (B, H)
    columns = _reflect(at + _offset(drawn.left, pad)[:, None], size)  # (B, W)
    columns = torch.where(drawn.flip[:, None], columns.flip(1), columns)
    which = torch.arange(len(images), device=images.device)[:, None, None]
    return images[which, rows[:, :, None], columns[:, None, :]]


def _offset(share: Tensor, pad: int) -> Tensor:
    """Where a padded crop starts, -pad..pad, each as likely: (B,) int64."""
    return (share * (2 * pad + 1)).long().clamp_max(2 * pad) - pad


def _reflect(index: Tensor, size: int) -> Tensor:
    """Indices that leave 0..size-1 by less than `size`, reflected at the border pixels."""
    return (size - 1) - ((size - 1) - index.abs()).abs()


def _resized_crop(images: Tensor, drawn: Draw) -> Tensor:
    """A crop of random area and aspect ratio at a random place, resized back, mirrored: (B, H, W, 3) uint8 to same."""
    height = (drawn.scale / drawn.ratio).sqrt().clamp_max(1)  # (B,) shares of the side
    width = (drawn.scale * drawn.ratio).sqrt().clamp_max(1)
    middle_y = (1 - height) * (2 * drawn.top - 1)  # in -1..1, as grid_sample counts
    middle_x = (1 - width) * (2 * drawn.left - 1)
    zero = torch.zeros_like(height)
    mirror = torch.where(drawn.flip, -1.0, 1.0)
    theta = torch.stack(
        [torch.stack([width * mirror, zero, middle_x], 1), torch.stack([zero, height, middle_y], 1)], 1
    )  # (B, 2, 3)
    x = images.permute(0, 3, 1, 2).float()  # (B, 3, H, W)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return x.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def resize(images: Tensor, size: int) -> Tensor:
    """Antialiased bilinear resizing: (B, H, W, 3) uint8 to (B, size, size, 3) uint8."""
    if images.shape[1] == size:
        return images
    x = images.permute(0, 3, 1, 2)
    if images.device.type != "cpu":  # only the CPU filters bytes
        x = F.interpolate(x.float(), (size, size), mode="bilinear", antialias=True).round_().to(torch.uint8)
    else:
        x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
    return x.permute(0, 2, 3, 1)


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float32 in channels_last memory: (x / 255 - mean) / std, per channel."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device)
    return (images * scale).add_(shift).permute(0, 3, 1, 2)


def colour(x: Tensor, settings: Augment, drawn: Draw) -> Tensor:
    """Brightness, then contrast around the image's mean, then saturation, then hue: (B, H, W, 3) uint8 to same.

    Hue is a turn of the two colour-difference axes of YIQ around the luma, which stays as it is.
    """
    if not (settings.brightness or settings.contrast or settings.saturation or settings.hue):
        return x
    y = x * drawn.brightness[:, None, None, None]
    weights = torch.tensor([0.299, 0.587, 0.114], device=x.device)  # ITU-R BT.601 luma
    mean = (y @ weights).mean((1, 2))[:, None, None, None]
    y = mean + (y - mean) * drawn.contrast[:, None, None, None]
    gray = (y @ weights)[..., None]
    y = gray + (y - gray) * drawn.saturation[:, None, None, None]
    if settings.hue:
        y = torch.einsum("bhwc,bdc->bhwd", y, _turns(drawn.hue))
    return y.round_().clamp_(0, 255).to(torch.uint8)


def _turns(hue: Tensor) -> Tensor:
    """Matrices (B, 3, 3) that turn the colours of RGB by angles (B,)."""
    to_yiq = torch.tensor(YIQ, device=hue.device)
    cos, sin, one, zero = hue.cos(), hue.sin(), torch.ones_like(hue), torch.zeros_like(hue)
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], 1).view(-1, 3, 3)
    back: Tensor = torch.linalg.inv(to_yiq)
    return back @ turn @ to_yiq


def cutout(x: Tensor, share: float, drawn: Draw) -> Tensor:
    """A square of side `share` x image set to zero (the mean colour) around a random centre, cut at the border.

    x is (B, 3, H, W), normalised; it is changed in place (DeVries & Taylor, 2017, arXiv:1708.04552).
    """
    if not share:
        return x
    half = torch.full_like(drawn.cut_y, share / 2)
    return x.masked_fill_(_box(drawn.cut_y, drawn.cut_x, half, x.shape[2]), 0)


def _box(y: Tensor, x: Tensor, half: Tensor, size: int) -> Tensor:
    """Pixels whose centres lie within `half` of (y, x), all in shares of the side: (B, 1, size, size) bool."""
    at = (torch.arange(size, device=y.device) + 0.5) / size
    rows = (at - y[:, None]).abs() < half[:, None]
    columns = (at - x[:, None]).abs() < half[:, None]
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def mix(x: Tensor, labels: Tensor, num_classes: int, drawn: Draw) -> tuple[Tensor, Tensor]:
    """Mix each image with the next one of the batch, by blending (mixup, Zhang et al., arXiv:1710.09412) or by pasting
    a box (CutMix, Yun et al., arXiv:1905.04899).

    Args:
        x: (B, 3, H, W) float32, normalised.
        labels: (B,) int64.
        num_classes: C.
        drawn: `mix`, `mix_y`, `mix_x` and `paste` are used.

    Returns:
        Images like `x` and targets (B, C) float32, each row summing to 1. With CutMix, an image's share is the area
        that is really left of it.
    """
    other = x.roll(-1, 0)
    half = (1 - drawn.mix).sqrt() / 2
    box = _box(drawn.mix_y, drawn.mix_x, half, x.shape[2]) & drawn.paste[:, None, None, None]
    blend = torch.where(drawn.paste, torch.ones_like(drawn.mix), drawn.mix)[:, None, None, None]
    x = torch.where(box, other, blend * x + (1 - blend) * other).contiguous(memory_format=torch.channels_last)
    share = torch.where(drawn.paste, 1 - box.float().mean((1, 2, 3)), drawn.mix)[:, None]
    hot = F.one_hot(labels, num_classes).float()
    return x, share * hot + (1 - share) * hot.roll(-1, 0)
