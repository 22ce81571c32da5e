"""Reader for Stanford Online Products in its official layout, as a folder or a zip.

    Stanford_Online_Products/Ebay_train.txt   a header, then lines of image_id class_id super_class_id path
                             Ebay_test.txt    the same
                             bicycle_final/*.JPG, cabinet_final/, ...    120,053 images of 22,634 products

The two lists share no class and form the zero-shot split. Labels are the official class ids minus 1.
Source: Oh Song et al., Deep Metric Learning via Lifted Structured Feature Embedding, 2016.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NoReturn

from lookalike.data.catalog import Catalog, Row, Split
from lookalike.data.image_folder import Tree, is_image
from lookalike.data.spec import DatasetSpec, ZeroShot
from lookalike.errors import InputError

NAME = "stanford-products"
CLASSES = 22_634
COUNTS: dict[Split, int] = {"train": 59_551, "test": 60_502}
TOTAL = sum(COUNTS.values())
LISTS: dict[Split, str] = {"train": "Ebay_train.txt", "test": "Ebay_test.txt"}
HEADER = ["image_id", "class_id", "super_class_id", "path"]


def read_stanford_products(path: str | Path) -> Catalog:
    """Read Stanford Online Products.

    Args:
        path: the folder `Stanford_Online_Products`, its parent folder, or a zip of it.

    Returns:
        The catalog, in the order of the lists. It has the official splits "train" and "test", one class per product,
        named by its kind and number, for example "bicycle 1", and the official paths as ids. Listed images that are
        missing are skipped; `remark` says what is missing, or is "".

    Raises:
        InputError: a list is missing or malformed, a class is in both lists, or no listed image exists.
    """
    tree = Tree.open(Path(path))
    top = top_of(tree)
    here = set(tree.files)
    names: dict[int, str] = {}
    rows: list[Row] = []
    seen: dict[int, Split] = {}
    for split, file in LISTS.items():
        if top + file not in here:
            _refuse(tree, f"{top}{file} is missing", "Unpack the whole Stanford_Online_Products.zip.")
        for number, place in _lines(tree, top + file):
            if seen.setdefault(number, split) != split:
                _refuse(tree, f"class {number} is in both lists", "Restore them.")
            names[number] = f"{place.partition('/')[0].removesuffix('_final')} {number}"
            if top + place in here:
                rows.append(Row(top + place, number - 1, split, None, place))
    count = max(names, default=0)
    if sorted(names) != list(range(1, count + 1)):
        _refuse(tree, "the lists do not count their classes from 1", "Restore them.")
    return Catalog.from_rows(
        rows,
        root=tree.root,
        class_names=[names[number] for number in range(1, count + 1)],
        class_ids=[str(number) for number in range(1, count + 1)],
        name=NAME,
        container=tree.container,
        remark=_remark(rows),
    )


def is_stanford_products(path: Path) -> bool:
    """Return whether this is a complete or partial copy of Stanford Online Products; fast for a folder."""
    if path.is_dir():
        return is_home(path) or is_home(path / "Stanford_Online_Products")
    return any(name.rpartition("/")[2] in LISTS.values() for name in Tree.open(path).files)


def is_home(folder: Path) -> bool:
    """Return whether this is the top folder of the data set."""
    return any((folder / file).is_file() for file in LISTS.values())


def is_part(name: str) -> bool:
    """Return whether a file belongs to the data set: an image, or one of the two lists."""
    return is_image(name) or name.rpartition("/")[2] in LISTS.values()


def top_of(tree: Tree) -> str:
    """Return the prefix of the file names before the lists.

    Raises:
        InputError: there are no lists, or they are in different folders.
    """
    tops = {name.rpartition("/")[0] for name in tree.files if name.rpartition("/")[2] in LISTS.values()}
    if len(tops) != 1:
        what = "neither Ebay_train.txt nor Ebay_test.txt" if not tops else "lists in more than one folder"
        _refuse(tree, f"{what} in it", "Use the folder Stanford_Online_Products.")
    top = tops.pop()
    return f"{top}/" if top else ""


def _lines(tree: Tree, name: str) -> list[tuple[int, str]]:
    """Read the class id and the path from each line of a list."""
    header, *lines = tree.read_text(name).splitlines() or [""]
    if header.split() != HEADER:
        _refuse(tree, f"{name} does not begin with '{' '.join(HEADER)}'", "Restore this file.")
    found = []
    for place, line in enumerate(lines, start=2):
        parts = line.split(maxsplit=3)
        if not parts:
            continue
        if len(parts) != 4 or not all(part.isdecimal() for part in parts[:3]) or int(parts[1]) < 1:
            _refuse(tree, f"{name}, line {place} is not '{' '.join(HEADER)}'", "Restore this file.")
        found.append((int(parts[1]), parts[3].strip()))
    return found


def _remark(rows: list[Row]) -> str:
    counts = Counter(row.split for row in rows)
    kinds = len({row.label for row in rows})
    if kinds == CLASSES and dict(counts) == COUNTS:
        return ""
    return f"part: {len(rows):,} of the {TOTAL:,} images, {kinds:,} of the {CLASSES:,} products"


def _refuse(tree: Tree, what: str, remedy: str) -> NoReturn:
    raise InputError(f"{tree.root}: {what}.", remedy)


SPEC = DatasetSpec(
    name=NAME,
    title="Stanford Online Products",
    about="products from eBay, two to twelve photographs each",
    url="https://cvgl.stanford.edu/projects/lifted_struct/",
    licence="not stated",
    citation="Oh Song et al., Deep Metric Learning via Lifted Structured Feature Embedding, 2016",
    classes=CLASSES,
    counts=COUNTS,
    matches=is_stanford_products,
    is_home=is_home,
    read=read_stanford_products,
    top_of=top_of,
    is_part=is_part,
    by_hand="Get Stanford_Online_Products.zip from https://cvgl.stanford.edu/projects/lifted_struct/, and run: "
    "lookalike data import Stanford_Online_Products.zip --name stanford-products",
    zero_shot=ZeroShot("sop-zero-shot", 11_318, COUNTS["train"], COUNTS["test"]),
)
