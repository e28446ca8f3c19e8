"""A folder of pictures with masks beside them -> rows with a picture and its regions."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import DataError

_PICTURES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def pictures_with_masks(folder: Path) -> tuple[list[tuple[str, Any]], list[tuple[str, int]]]:
    """Find pictures and their masks, at any depth; docs/captioning.md says how they belong together.

    Returns:
        (name, row) of each picture, `{"image"}` or `{"image", "regions": [{"mask_file", "id"}, ..]}`, and after them
        (name, `DataError`) of each mask without its picture; and (name, size in bytes) of every file that counts.

    Raises:
        DataError: If there is no picture, or a mask may be of two.
    """
    names: list[str] = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        base = os.path.relpath(place, folder)
        names += [
            name if base == "." else f"{base}/{name}".replace(os.sep, "/")
            for name in files
            if name.lower().endswith(_PICTURES) and not name.startswith(".")
        ]
    names.sort(key=_natural)
    found = {name for name in names if "masks" not in PurePosixPath(name).parts[:-1]}
    by_stem: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in found:
        path = PurePosixPath(name)
        by_stem[str(path.parent), path.stem].append(name)

    masks: dict[str, list[str]] = defaultdict(list)
    orphans: list[str] = []
    for name in names:
        stems = _stems_of_mask(PurePosixPath(name), in_masks=name not in found)
        owner = next((stem for stem in stems if stem in by_stem), None)
        if owner is None:
            if name not in found:
                orphans.append(name)
            continue
        if len(pictures := by_stem[owner]) > 1:
            raise DataError(str(folder / name), f"it may be a mask of {' and of '.join(sorted(pictures))}. Rename one.")
        masks[pictures[0]].append(name)
    taken = {name for listed in masks.values() for name in listed}
    pictures = [name for name in names if name in found and name not in taken]
    rows: list[tuple[str, Any]] = []
    for name in pictures:
        regions = [{"mask_file": mask, "id": mask} for mask in masks[name]]
        rows.append((name, {"image": name, "regions": regions} if regions else {"image": name}))
    rows += [(name, DataError(name, "there is no picture that this is a mask of.")) for name in orphans]
    if not pictures:
        raise DataError(str(folder), f"there are no pictures in this folder ({', '.join(_PICTURES)}).")
    return rows, [(name, (folder / name).stat().st_size) for name in names]


def _stems_of_mask(path: PurePosixPath, in_masks: bool) -> Iterator[tuple[str, str]]:
    """The pictures, as (folder, stem), that a file may be a mask of."""
    if not in_masks:  # a-mask.png, a_mask2.png beside a.jpg; only PNG, since JPEG blurs the edges of a mask
        match = re.fullmatch(r"(.+)[-_]mask[^/]*?", path.stem)
        if match and path.suffix.lower() == ".png":
            yield str(path.parent), match[1]
        return
    parts = path.parts[:-1]
    depth = len(parts) - 1 - parts[::-1].index("masks")
    parent, inside = PurePosixPath(*parts[:depth]), parts[depth + 1 :]
    for beside in (parent, parent / "images"):
        yield str(beside.joinpath(*inside)), path.stem  # masks/a.png
        if inside:  # masks/a/anything.png
            yield str(beside.joinpath(*inside[:-1])), inside[-1]


def _natural(name: str) -> list[tuple[int, Any]]:
    """Sorts mask2 before mask10."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"([0-9]+)", name)]
