"""The contact sheet: some images of each class of a data set on one page."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lookalike.data.catalog import UNLABELLED, Catalog, Split
from lookalike.errors import InputError, nearest
from lookalike.files import atomic_file, cannot_write
from lookalike.image import decode

TILE = 96  # pixels of an image
GAP = 6
MARGIN = 36
LINE = 24  # height of the name of a class
HEADER = 84
MAX_TILES = 4000  # viewers do not open larger pages
MAX_SIDE = {".png": 2**31 - 1, ".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}  # pixels, by file type

PAPER, INK, FAINT = "#ffffff", "#1f2328", "#6e7781"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(
    catalog: Catalog,
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    per_class: int = 8,
    split: Split = "train",
    seed: int = 0,
) -> Path:
    """Write a page with the name and some images of each class, in two columns.

    Args:
        catalog: the data set.
        path: a `.png`, `.jpg` or `.webp` file; its folder is made if missing.
        classes: names or ids of classes, in order; by default all classes of the split.
        per_class: images of each class, drawn without repetition.
        split: of the images. Unlabelled images form one group.
        seed: of the choice of images.

    Returns:
        The path.

    Raises:
        InputError: an unknown class or file type, a split without images, too many images, one that cannot be
            decoded, a page that cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in MAX_SIDE:
        raise InputError(f"{path}: cannot write this type of file.", "Give it a name that ends in .png or .jpg.")
    rows_of = _rows_by_label(catalog, split, classes)
    if per_class < 1 or len(rows_of) * per_class > MAX_TILES:
        raise InputError(
            f"{per_class} images of {len(rows_of)} classes do not fit on a page.",
            f"Choose 1 to {max(1, MAX_TILES // len(rows_of))} a class, or fewer classes.",
        )
    generator = np.random.default_rng(seed)
    groups = [
        (_name(catalog, label), [int(row) for row in generator.permutation(rows)[:per_class]])
        for label, rows in rows_of.items()
    ]
    page = _page(catalog, groups, _title(catalog, split, sum(label != UNLABELLED for label in rows_of)))
    if max(page.size) > MAX_SIDE[suffix]:
        raise InputError(
            f"{path}: a page of {page.width} × {page.height} pixels is too large for this type of file.",
            "Give it a name that ends in .png, or show fewer images.",
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from None
    with atomic_file(path) as partial:
        if suffix == ".png":
            page.save(partial, "PNG", optimize=True)
        else:
            page.save(partial, "WEBP" if suffix == ".webp" else "JPEG", quality=92)
    return path


def _rows_by_label(catalog: Catalog, split: Split, classes: Sequence[str] | None) -> dict[int, np.ndarray]:
    """Row numbers of each label that is wanted, in the order they are shown."""
    rows = catalog.rows_of(split)
    labels = catalog.labels[rows]
    if not len(rows):
        there = ", ".join(sorted(set(catalog.splits.tolist())))
        raise InputError(f"{catalog.root}: no images in {split}.", f"Choose another split; there are: {there}.")
    wanted = [_label(catalog, name) for name in classes] if classes else sorted(set(labels.tolist()))
    found = {label: rows[labels == label] for label in wanted}
    for label, rows_of_label in found.items():
        if not len(rows_of_label):
            raise InputError(f"{split} has no images of '{_name(catalog, label)}'.", "Choose other classes.")
    return found


def _label(catalog: Catalog, name: str) -> int:
    for names in (catalog.class_ids, catalog.class_names):
        if name in names:
            return names.index(name)
    known = [*catalog.class_names, *catalog.class_ids]
    some = ", ".join(catalog.class_names[:8])
    raise InputError(f"No class is called '{name}'.{nearest(name, known)}", f"There are: {some}, ...")


def _name(catalog: Catalog, label: int) -> str:
    return "without labels" if label == UNLABELLED else catalog.class_names[label]


def _title(catalog: Catalog, split: Split, shown: int) -> tuple[str, str]:
    words = f"{split}: {len(catalog.rows_of(split)):,} images"
    if shown:
        words += f", {shown} of {len(catalog.class_names)} classes shown"
    return catalog.name, f"{words}; {catalog.remark}" if catalog.remark else words


def _page(catalog: Catalog, groups: list[tuple[str, list[int]]], title: tuple[str, str]) -> Image.Image:
    across = max(len(rows) for _, rows in groups)
    columns = 2 if len(groups) > 3 and across <= 10 else 1
    column_width = across * (TILE + GAP) - GAP
    step = (column_width + MARGIN, LINE + TILE + 3 * GAP)
    down = ceil(len(groups) / columns)
    width = max(columns * step[0] + MARGIN, 480)
    corners = _rounded()
    page = Image.new("RGB", (width, HEADER + down * step[1] + MARGIN - 2 * GAP), PAPER)
    draw = ImageDraw.Draw(page)
    _write(draw, (MARGIN, 22), title[0], 26, INK, width - 2 * MARGIN)
    _write(draw, (MARGIN, 60), title[1], 14, FAINT, width - 2 * MARGIN)
    for number, (name, rows) in enumerate(groups):
        column, line = divmod(number, down)
        left, top = MARGIN + column * step[0], HEADER + line * step[1] + GAP
        _write(draw, (left, top), name, 15, INK, max(column_width, 160))
        for place, row in enumerate(rows):
            tile = decode(catalog.read_bytes(row), TILE, box=catalog.boxes[row], name=catalog.paths[row])
            page.paste(Image.fromarray(tile), (left + place * (TILE + GAP), top + LINE), corners)
    return page


def _rounded() -> Image.Image:
    """A mask with slightly rounded corners, drawn four times as large for smooth edges."""
    mask = Image.new("L", (4 * TILE, 4 * TILE), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * TILE - 1, 4 * TILE - 1), radius=20, fill=255)
    return mask.resize((TILE, TILE), Image.Resampling.BOX)


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: str, room: int) -> None:
    """A line of text, cut with an ellipsis where it would be wider than `room` pixels."""
    font: Font = ImageFont.load_default(size)
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    if draw.textlength(text, font) > room:
        while text and draw.textlength(f"{text}…", font) > room:
            text = text[:-1]
        text = f"{text.rstrip()}…"
    draw.text(at, text, fill=colour, font=font)
