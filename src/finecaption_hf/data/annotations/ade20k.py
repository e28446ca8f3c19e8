"""ADE20K: pictures with all their things, of 2017 (`*_seg.png` and `*_atr.txt`) and of 2021 (`*.json`)."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...mask_codecs_finecaption import MaskError
from ..errors import DataError
from ..folder import natural
from ..images import MaskFile, open_images
from ..mask_rules import MaskRules
from ..walking import folders_below
from .base import AnnotationFile, ReadOptions, Seen
from .files import some_folders
from .label_maps import LabelRegion, read_map

# In masks of 2021, 255 is what can be seen of a thing and 128 what lies behind others.
_VISIBLE = MaskRules(threshold=0.6)
_MAX_BYTES = 2**26


class Ade20k(AnnotationFile):
    """A folder of ADE20K, at any depth: one region for each thing; parts of things are left out, with their number.

    The label of a region is the name of its thing; class and attributes are kept as the file has them. Texts cannot be
    put back.
    """

    format = "ade20k"
    title = "ADE20K"

    def __init__(self, path: Path, options: ReadOptions) -> None:
        super().__init__(path, options)
        self._stems: list[str] = []
        for place, _, files in folders_below(path):
            names = set(files)
            base = os.path.relpath(place, path).replace(os.sep, "/")
            for name in names:
                stem, _, ending = name.rpartition(".")
                stem = stem.removesuffix("_atr")
                is_told = ending == "json" or name.endswith("_atr.txt")
                if is_told and f"{stem}_seg.png" in names:
                    self._stems.append(stem if base == "." else f"{base}/{stem}")
        self._stems.sort(key=natural)
        if not self._stems:
            raise DataError(str(path), "there is no picture of ADE20K in it: x.jpg, x_seg.png and x_atr.txt or x.json.")

    @classmethod
    def recognises(cls, seen: Seen) -> bool:
        if not seen.path.is_dir():
            return False
        for _, names in some_folders(seen.path):
            known = set(names)
            told = (re.sub(r"_atr\.txt$|\.json$", "", name) for name in names if re.search(r"_atr\.txt$|\.json$", name))
            if any(f"{stem}_seg.png" in known for stem in told):
                return True
        return False

    def files(self) -> Iterator[Path]:
        for stem in self._stems:
            yield self._told_in(stem)
            yield self.path / f"{stem}_seg.png"

    def scan(self) -> Iterator[tuple[str, Any]]:
        parts = 0
        for index in range(len(self._stems)):
            where, row, number = self._row(index)
            parts += number
            yield where, row
        self.notes[:] = [f"{parts} parts of things are left out."] if parts else []

    def read(self, index: int) -> tuple[str, Any]:
        return self._row(index)[:2]

    def _told_in(self, stem: str) -> Path:
        found = self.path / f"{stem}.json"
        return found if found.is_file() else self.path / f"{stem}_atr.txt"

    def _row(self, index: int) -> tuple[str, Any, int]:
        """The place, the row, and how many parts it leaves out."""
        stem = self._stems[index]
        told = self._told_in(stem)
        where = f"{self.name}: {stem}"
        try:
            if told.stat().st_size > _MAX_BYTES:
                raise DataError(told.name, f"it has more than {_MAX_BYTES} bytes.")
            text = told.read_bytes().decode("utf-8", "replace")
            regions, parts = self._of_2021(text, stem) if told.suffix == ".json" else self._of_2017(text, stem)
            return where, {"image": f"{stem}.jpg", "regions": regions}, parts
        except OSError as error:
            return where, DataError(where, f"{told.name} cannot be read ({error.strerror})."), 0
        except DataError as error:
            return where, error.at(where), 0

    def _of_2017(self, text: str, stem: str) -> tuple[list[dict[str, Any]], int]:
        """Lines `number # level of parts # is occluded # classes # name # "attributes"`.

        A thing's pixels are those of the value of that number among all values of the blue channel, in their order.
        """
        regions, parts = [], 0
        values: _Values | None = None
        for number, line in enumerate(text.splitlines(), start=1):
            cells = [cell.strip() for cell in line.split("#")]
            if len(cells) != 6 or not cells[0].isdecimal() or not cells[1].isdecimal():
                if line.strip():
                    raise DataError(f"line {number}", "six cells between # are needed, the first two whole numbers.")
                continue
            if int(cells[1]) > 0:
                parts += 1
                continue
            values = values or _Values(self.path / f"{stem}_seg.png", self.options)
            region = {"mask": _Thing(values, int(cells[0])), "id": int(cells[0]), "label": cells[4] or cells[3]}
            attributes = cells[5].strip('"').strip()
            regions.append({**region, **({"attributes": attributes} if attributes else {})})
        return regions, parts

    def _of_2021(self, text: str, stem: str) -> tuple[list[dict[str, Any]], int]:
        try:
            things = json.loads(text)["annotation"]["object"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{stem}.json", "there is no list of things under annotation.object.") from error
        regions, parts = [], 0
        store = open_images(self.path)
        folder = f"{stem.rpartition('/')[0]}/" if "/" in stem else ""
        for number, thing in enumerate(things if isinstance(things, list) else [things]):
            if not isinstance(thing, dict):
                raise DataError(f"{stem}.json", f"annotation.object[{number}] is no object.")
            level = thing.get("parts", {}).get("part_level", 0) if isinstance(thing.get("parts"), dict) else 0
            if level:
                parts += 1
                continue
            name = thing.get("instance_mask")
            mask: Any = (
                MaskFile(f"{folder}{name}", store, _VISIBLE)
                if isinstance(name, str) and name
                else DataError(f"annotation.object[{number}]", "it names no instance_mask.")
            )
            region = {"mask": mask, "id": thing.get("id"), "label": thing.get("raw_name") or thing.get("name")}
            own = {key: thing[key] for key in ("name", "name_ndx", "attributes", "occluded", "crop") if thing.get(key)}
            regions.append({**region, **own})
        return regions, parts


class _Values:
    """The blue channel of a picture of 2017, read when the first of its things is asked for."""

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self._path = path
        self._options = options
        self._kept: Any = None

    def region(self, number: int) -> LabelRegion:
        if self._kept is None:
            try:
                rule = ReadOptions(label_map="ade20k", ignore=(-1,))
                self._kept = read_map(self._path.read_bytes(), self._path.name, rule)
            except DataError as error:
                raise MaskError(str(error)) from error
            except OSError as error:
                raise MaskError(f"{self._path.name} cannot be read ({error.strerror}).") from error
        if number >= len(self._kept.labels):
            raise MaskError(f"{self._path.name} has {len(self._kept.labels)} values, so there is no thing {number}.")
        return LabelRegion(self._path.name, self._kept.values, self._kept.labels[number], self._options.resize_masks)


class _Thing:
    """A thing of 2017, by its number. A region reference."""

    def __init__(self, values: _Values, number: int) -> None:
        self._values, self._number = values, number

    def __region_mask__(self, height: int, width: int) -> Any:
        """The region, of shape (H, W).

        Raises:
            MaskError: If the map cannot be read, is of another size, or has no such thing.
        """
        return self._values.region(self._number).__region_mask__(height, width)
