"""Datumaro's own JSON: a file for each subset, beside the folder `images`."""

import json
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
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
from .base import AnnotationFile, ReadOptions, Seen
from .coco_pixels import coco_polygons
from .files import ElementsByNumber, files_below, looks, new_file, own_keys, picture_name, plain_name
from .shapes import Ellipse, Size, as_number, as_size, check_picture, turned_box

_SHAPES = ("mask", "polygon", "bbox", "ellipse")
_WITHOUT_AREA = ("points", "polyline", "cuboid_2d", "cuboid_3d")
_CAPTIONS = ("caption", "description", "text")
_OF_ANNOTATION = {
    *("id", "type", "attributes", "group", "label_id", "z_order", "object_id", "caption"),
    *("rle", "points", "bbox", "visibility"),
}


class Datumaro(AnnotationFile):
    """The file of a subset, the folder `annotations`, or the data set with it.

    Shapes of one group and label are one region, and a caption of the group is the region's; captions without a group
    come with the picture. Texts go back as attributes of each annotation of the region: one answer as `caption`,
    several under their questions.
    """

    format = "datumaro"
    title = "Datumaro"

    def __init__(self, path: Path, options: ReadOptions) -> None:
        super().__init__(path, options)
        paths = [path]
        if path.is_dir():
            paths = [
                each for each in files_below(path, ".json") if each.parent.name == "annotations" or each.parent == path
            ]
        self._subsets = [(each, ElementsByNumber(each, each.name, "items", ("categories",))) for each in paths]
        self._places: tuple[array[int], array[int]] = (array("q"), array("q"))

    @classmethod
    def recognises(cls, seen: Seen) -> bool:
        for each in looks(seen, ".json"):
            item = each.element("items")
            if "dm_format_version" in (each.json or {}) or {"id", "annotations", "attr"} <= item.keys():
                return True
        return False

    def files(self) -> Iterator[Path]:
        for path, _ in self._subsets:
            yield path

    def where_images_lie(self) -> Path:
        folder = self.path if self.path.is_dir() else self.path.parent
        return folder.resolve().parent if folder.resolve().name == "annotations" else folder

    @cached_property
    def _images(self) -> ImageStore:
        return open_images(self.where_images_lie() if self.options.images is None else self.options.images)

    def scan(self) -> Iterator[tuple[str, Any]]:
        self._places = (array("q"), array("q"))
        left_out: Counter[str] = Counter()
        for number, (_, items) in enumerate(self._subsets):
            for _ in items.scan():  # the labels may stand behind the items
                pass
            for part in range(len(items)):
                self._places[0].append(number)
                self._places[1].append(part)
                where, row, item = self._row(number, part)
                left_out.update(_type(each) for each in _annotations(item) if _type(each) in _WITHOUT_AREA)
                yield where, row
        self.notes = [
            f"{number} annotations of type {name} have no area: left out." for name, number in left_out.items()
        ]

    def read(self, index: int) -> tuple[str, Any]:
        return self._row(self._places[0][index], self._places[1][index])[:2]

    def _row(self, number: int, part: int) -> tuple[str, Any, Any]:
        path, items = self._subsets[number]
        where = f"{path.name}: items[{part}]"
        item = items.read(part)
        if isinstance(item, DataError):
            return where, item.at(where), {}
        image = item.get("image") if isinstance(item, dict) else None
        if not isinstance(image, dict) or not isinstance(image.get("path"), str):
            return where, DataError(where, f"image: {kind(image)} arrived, a picture with its path is needed."), {}
        named = plain_name(image["path"] or str(item.get("id")))
        name, _ = picture_name(self._images, [f"images/{path.stem}/{named}", f"images/{named}", named])
        size = image.get("size")
        stated = as_size(*size) if isinstance(size, list) and len(size) == 2 else None
        labels = self._labels(items.others)
        annotations = _annotations(item)
        said = {_group(each): each["caption"] for each in annotations if _type(each) == "caption" and "caption" in each}
        regions = [_region(group, labels, said.get(_group(group[0])), stated) for group in _groups(annotations)]
        own = {**_attributes(item, "attr"), "id": item.get("id"), "caption": said.get(None)}
        names = [labels.get(each.get("label_id")) for each in annotations if _type(each) == "label"]
        return where, {**own_keys({**own, "tags": names}, ()), "image": name, "regions": regions}, item

    def _labels(self, others: Mapping[str, Any]) -> dict[Any, Any]:
        categories = others.get("categories")
        label = categories.get("label") if isinstance(categories, dict) else None
        names = label.get("labels") if isinstance(label, dict) else None
        known = enumerate(names if isinstance(names, list) else [])
        return {number: each.get("name") for number, each in known if isinstance(each, dict)}

    def write_back(self, answers: Iterator[Mapping[str, str] | None], target: Path) -> None:
        for number, (path, items) in enumerate(self._subsets):
            place = target / path.relative_to(self.path) if self.path.is_dir() else target
            with new_file(self.path, place) as file:
                items.replaced((self._answered(number, part, answers) for part in range(len(items))), file)

    def _answered(self, number: int, part: int, answers: Iterator[Mapping[str, str] | None]) -> bytes | None:
        _, row, item = self._row(number, part)
        if isinstance(row, DataError):
            next(answers, None)
            return None
        changed = False
        for group in _groups(_annotations(item)):
            if found := next(answers, None):
                changed = True
                for annotation in group:
                    texts = {"caption": next(iter(found.values()))} if len(found) == 1 else found
                    annotation["attributes"] = {**_attributes(annotation, "attributes"), **texts}
        return json.dumps(item).encode() if changed else None


def _annotations(item: Any) -> list[dict[str, Any]]:
    found = item.get("annotations") if isinstance(item, dict) else None
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _type(annotation: dict[str, Any]) -> str:
    given = annotation.get("type")
    return given if isinstance(given, str) else kind(given)


def _group(annotation: dict[str, Any]) -> Any:
    group = annotation.get("group")
    return group if isinstance(group, int) and group else None


def _attributes(holder: dict[str, Any], key: str) -> dict[str, Any]:
    found = holder.get(key)
    return found if isinstance(found, dict) else {}


def _groups(annotations: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The annotations of each region, in the order of their first one; of an unknown type, too."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for number, each in enumerate(annotations):
        if _type(each) not in (*_WITHOUT_AREA, "caption", "label"):
            group = _group(each)
            groups.setdefault(("alone", number) if group is None else (group, str(each.get("label_id"))), []).append(
                each
            )
    return list(groups.values())


def _region(group: list[dict[str, Any]], labels: Mapping[Any, Any], said: Any, size: Size | None) -> dict[str, Any]:
    first = group[0]
    attributes = _attributes(first, "attributes")
    caption = next((text for text in (said, *map(attributes.get, _CAPTIONS)) if isinstance(text, str) and text), None)
    label = first.get("label_id")
    # The id is 0 where none was given.
    named = {
        "id": first.get("id") or None,
        "label": labels.get(label) if isinstance(label, int) else None,
        "caption": caption,
    }
    row = own_keys({**first, **attributes, **named}, _OF_ANNOTATION - {"id", "caption"})
    unknown = next((_type(each) for each in group if _type(each) not in _SHAPES), None)
    if unknown is not None:
        return {**row, "mask": DataError("annotations", f"the type {unknown[:32]!a} is none of {', '.join(_SHAPES)}.")}
    # Where an object has a mask or outlines as well as a box, the box says less.
    outlines = [each for each in group if _type(each) != "bbox"]
    return {**row, "mask": DatumaroRegion(tuple(outlines or group), size)}


@dataclass(frozen=True)
class DatumaroRegion:
    """The union of annotations.

    Attributes:
        annotations: as the file has them.
        size (`tuple[int, int]`, *optional*): (H, W) of the picture in the file.
    """

    annotations: tuple[dict[str, Any], ...]
    size: Size | None

    def __region_mask__(self, height: int, width: int) -> BoolArray:
        check_picture(self.size, height, width)
        region = np.zeros((height, width), dtype=np.bool_)
        outlines = [_held(each, "points", list) for each in self.annotations if _type(each) == "polygon"]
        if outlines:
            region |= coco_polygons(outlines, height, width)  # as Datumaro draws them
        for each in self.annotations:
            if _type(each) != "polygon":
                region |= as_mask(_reference(each), height, width)
        return region


def _reference(annotation: dict[str, Any]) -> Any:
    if _type(annotation) == "mask":
        return _held(annotation, "rle", dict)
    if _type(annotation) == "ellipse":
        left, top, right, bottom = _numbers(annotation, "points", 4)
        return Ellipse(((left + right) / 2, (top + bottom) / 2), ((right - left) / 2, (bottom - top) / 2))
    left, top, across, down = _numbers(annotation, "bbox", 4)
    return turned_box(left, top, across, down, 0, (left, top))


def _held(annotation: dict[str, Any], key: str, needed: type) -> Any:
    value = annotation.get(key)
    if not isinstance(value, needed):
        raise MaskError(f"{key} of a {_type(annotation)}: {kind(value)} arrived. Export it anew.")
    return value


def _numbers(annotation: dict[str, Any], key: str, number: int) -> list[float]:
    values = _held(annotation, key, list)
    if len(values) != number:
        raise MaskError(f"{key}: {number} numbers are needed, not {len(values)}. Export it anew.")
    return [as_number(value, key) for value in values]
