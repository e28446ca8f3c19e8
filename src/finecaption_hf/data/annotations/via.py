"""VGG Image Annotator (VIA) 1 and 2: its JSON, its projects and its CSV."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...mask_codecs_finecaption import BoolArray, MaskError
from ...masks_finecaption import as_mask
from ..errors import DataError
from ..examples import kind
from ..images import ImageStore, open_images
from ..json_stream import parse
from .base import AnnotationFile, ReadOptions, Seen
from .files import new_file, own_keys, picture_name, plain_name, read_file
from .shapes import Ellipse, as_number, turned_box

_PROJECT = "_via_img_metadata"
_WITHOUT_AREA = ("point", "polyline", "line")
_CAPTIONS = ("caption", "description", "text")
_LABELS = ("label", "class", "category", "name", "type")
_COLUMNS = ("filename", "region_shape_attributes", "region_attributes")


class Via(AnnotationFile):
    """Annotations exported as JSON or CSV, or a project.

    A caption is the attribute of a region called `caption`, `description` or `text`, its label the one called `label`,
    `class`, `category`, `name` or `type`. Texts go back as attributes: one answer as `caption`, several under their
    questions. VIA shows the attributes that its project has.
    """

    format = "via"
    title = "VGG Image Annotator (VIA)"

    def __init__(self, path: Path, options: ReadOptions) -> None:
        super().__init__(path, options)
        self._document: Any = None
        self._pictures: list[tuple[str, _Picture]] = []

    @classmethod
    def recognises(cls, seen: Seen) -> bool:
        if isinstance(seen.json, dict):
            if _PROJECT in seen.json:
                return True
            first = next(iter(seen.json.values()), None)
            return isinstance(first, dict) and "filename" in first and "regions" in first
        first_line = seen.head.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0].decode("utf-8", "replace")
        return set(_COLUMNS) <= {name.strip().strip('"#') for name in first_line.split(",")}

    def where_images_lie(self) -> Path:
        return self.path.parent

    @cached_property
    def _images(self) -> ImageStore:
        return open_images(self.where_images_lie() if self.options.images is None else self.options.images)

    def scan(self) -> Iterator[tuple[str, Any]]:
        self._document, self._pictures = self._read(self.path)
        left_out: Counter[str] = Counter()
        for number in range(len(self._pictures)):
            yield self.read(number)
            left_out.update(region.type for region in self._pictures[number][1].regions if region.type in _WITHOUT_AREA)
        self.notes = [f"{number} shapes of type {name} have no area: left out." for name, number in left_out.items()]

    def read(self, index: int) -> tuple[str, Any]:
        key, picture = self._pictures[index]
        where = f"{self.name}: {key[:200]}"
        if isinstance(picture.filename, str) and plain_name(picture.filename):
            name, _ = picture_name(self._images, [plain_name(picture.filename)])
            regions = [_row(region) for region in picture.regions if region.type not in _WITHOUT_AREA]
            return where, {
                **own_keys(picture.attributes, {"image", "regions", "picture"}),
                "image": name,
                "regions": regions,
            }
        return where, DataError(where, f"filename: {kind(picture.filename)} arrived, the name of a picture is needed.")

    def _read(self, path: Path) -> "tuple[Any, list[tuple[str, _Picture]]]":
        data = read_file(path, self.name)
        try:
            text = data.decode("utf-8-sig")
            if not text.lstrip().startswith("{"):
                return _of_table(text)
            document = parse(text)
        except (ValueError, csv.Error) as error:
            raise DataError(self.name, f"it is neither JSON nor CSV of VIA ({error}).") from error
        entries = document.get(_PROJECT, document) if isinstance(document, dict) else None
        if not isinstance(entries, dict):
            raise DataError(self.name, "an object with an entry for each picture is needed.")
        return document, [(key, _of_entry(entry)) for key, entry in entries.items()]

    def write_back(self, answers: Iterator[Mapping[str, str] | None], target: Path) -> None:
        document, pictures = self._read(self.path)
        for number, (_, picture) in enumerate(pictures):
            if isinstance(self.read(number)[1], DataError):
                next(answers, None)
                continue
            for region in picture.regions:
                if region.type not in _WITHOUT_AREA and (found := next(answers, None)):
                    texts = {"caption": next(iter(found.values()))} if len(found) == 1 else dict(found)
                    region.put(texts)
        with new_file(self.path, target) as file:
            if isinstance(document, list):
                table = io.StringIO()
                csv.writer(table, lineterminator="\n").writerows(document)
                file.write(table.getvalue().encode("utf-8", "surrogatepass"))
            else:
                file.write(json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass"))


@dataclass(frozen=True)
class _Region:
    """Attributes: type of shape, shape and attributes as the file has them, and what puts texts into these."""

    type: str
    shape: Any
    attributes: Any
    put: Callable[[dict[str, str]], None]


@dataclass(frozen=True)
class _Picture:
    filename: Any
    attributes: dict[str, Any]
    regions: list[_Region]


def _of_entry(entry: Any) -> _Picture:
    if not isinstance(entry, dict):
        return _Picture(None, {}, [])
    given = entry.get("regions")
    regions = list(given.values()) if isinstance(given, dict) else given if isinstance(given, list) else []
    attributes = entry.get("file_attributes")
    return _Picture(
        entry.get("filename"), attributes if isinstance(attributes, dict) else {}, list(map(_of_region, regions))
    )


def _of_region(region: Any) -> _Region:
    holder = region if isinstance(region, dict) else {}
    shape, attributes = holder.get("shape_attributes"), holder.get("region_attributes")

    def put(texts: dict[str, str]) -> None:
        holder["region_attributes"] = {**(attributes if isinstance(attributes, dict) else {}), **texts}

    return _Region(_type(shape), shape, attributes, put)


def _of_table(text: str) -> "tuple[Any, list[tuple[str, _Picture]]]":
    """The rows of a table, and its pictures in the order of their first row."""
    rows = list(csv.reader(io.StringIO(text)))
    names = [name.strip().lstrip("#") for name in rows[0]] if rows else []
    at = {name: names.index(name) for name in (*_COLUMNS, "file_attributes") if name in names}
    if not at.keys() >= set(_COLUMNS):
        raise ValueError(f"the columns {', '.join(_COLUMNS)} are needed")
    pictures: dict[str, _Picture] = {}
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        if len(row) != len(names):
            raise ValueError(f"row {number} has {len(row)} cells, not {len(names)}")
        filename = row[at["filename"]]
        said = _cell(row, at.get("file_attributes"))
        picture = pictures.setdefault(filename, _Picture(filename, said if isinstance(said, dict) else {}, []))
        shape = _cell(row, at["region_shape_attributes"])
        if shape != {}:  # a picture without regions has a row with an empty shape
            picture.regions.append(_of_row(row, at["region_attributes"], shape))
    return rows, list(pictures.items())


def _of_row(row: list[str], column: int, shape: Any) -> _Region:
    attributes = _cell(row, column)

    def put(texts: dict[str, str]) -> None:
        row[column] = json.dumps({**(attributes if isinstance(attributes, dict) else {}), **texts}, ensure_ascii=False)

    return _Region(_type(shape), shape, attributes, put)


def _cell(row: list[str], column: int | None) -> Any:
    try:
        return {} if column is None else parse(row[column])
    except ValueError:
        return None


def _type(shape: Any) -> str:
    given = shape.get("name") if isinstance(shape, dict) else shape
    return given if isinstance(given, str) else kind(given)


def _row(region: _Region) -> dict[str, Any]:
    said = region.attributes if isinstance(region.attributes, dict) else {}
    row = own_keys(said, {"mask", "caption", "label"})
    for key, names in (("caption", _CAPTIONS), ("label", _LABELS)):
        text = next((said[name] for name in names if isinstance(said.get(name), str) and said[name]), None)
        if text is not None:
            row[key] = text
    return {**row, "mask": ViaRegion(region.type, region.shape if isinstance(region.shape, dict) else {})}


@dataclass(frozen=True)
class ViaRegion:
    """A shape in pixels. Files of VIA do not state the sizes of pictures.

    Attributes:
        type: rect, polygon, circle or ellipse.
        shape: as the file has it.
    """

    type: str
    shape: dict[str, Any]

    def __region_mask__(self, height: int, width: int) -> BoolArray:
        if self.type == "polygon":
            x, y = self.shape.get("all_points_x"), self.shape.get("all_points_y")
            if not isinstance(x, list) or not isinstance(y, list) or len(x) != len(y):
                raise MaskError("all_points_x and all_points_y of a polygon have to be lists of one length.")
            return as_mask({"polygon": [number for point in zip(x, y) for number in point]}, height, width)
        if self.type == "rect":
            left, top, across, down = self._numbers("x", "y", "width", "height")
            return as_mask(turned_box(left, top, across, down, 0, (left, top)), height, width)
        if self.type == "circle":
            x, y, radius = self._numbers("cx", "cy", "r")
            return Ellipse((x, y), (radius, radius)).__region_mask__(height, width)
        if self.type == "ellipse":
            x, y, radius_x, radius_y, theta = self._numbers("cx", "cy", "rx", "ry", "theta")
            return Ellipse((x, y), (radius_x, radius_y), np.degrees(theta)).__region_mask__(height, width)
        raise MaskError(f"The shape {self.type[:32]!a} is none of VIA's: rect, polygon, circle, ellipse. Draw it anew.")

    def _numbers(self, *keys: str) -> list[float]:
        return [as_number(self.shape.get(key, 0 if key == "theta" else None), key) for key in keys]
