"""Supervisely: a JSON file of each picture, in the folders `ann` of data sets and projects."""

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...mask_codecs_finecaption import BoolArray, MaskError
from ..errors import DataError
from ..examples import kind
from ..images import ImageStore, open_images
from .files import one_text, own_keys, picture_name
from .per_picture import PerPicture
from .shapes import Size, as_points, as_size, check_picture, from_base64, open_crop, paste, pixel_polygons, pixels_of

_WITH_AREA = ("polygon", "rectangle", "bitmap", "alpha_mask", "multipolygon")
_WITHOUT_AREA = ("point", "line", "graph", "cuboid", "cuboid_2d", "cuboid_3d", "point_3d", "polyline_3d")
_OF_OBJECT = {
    *("points", "bitmap", "parts", "geometryType", "shape", "classTitle", "classId", "description", "tags", "id"),
    *("nnCreated", "nnUpdated", "labelerLogin", "createdAt", "updatedAt"),
}


class Supervisely(PerPicture):
    """The file of a picture, a folder `ann`, a data set (`ann` beside `img`) or a project of several.

    Polygons are filled as Supervisely does, with their outlines and without the outlines of their holes; rectangles
    hold both corners. A caption is the `description` of an object, and texts go back there.
    """

    format = "supervisely"
    title = "Supervisely"
    indent = 4

    @staticmethod
    def is_own(document: Any) -> bool:
        if not isinstance(document, dict) or not isinstance(document.get("objects"), list):
            return False
        size = document.get("size")
        return isinstance(size, dict) and {"height", "width"} <= size.keys()

    def where_images_lie(self) -> Path:
        folder = self.path if self.path.is_dir() else self.path.parent
        return folder.resolve().parent if folder.resolve().name == "ann" else folder

    @cached_property
    def _images(self) -> ImageStore:
        return open_images(self.where_images_lie() if self.options.images is None else self.options.images)

    def row(self, path: Path, where: str, document: dict[str, Any]) -> Any:
        folder = path.parent.resolve().relative_to(self.where_images_lie().resolve())
        beside = folder.parent / "img" if folder.name == "ann" else folder
        name, _ = picture_name(self._images, [(beside / path.stem).as_posix()])
        size = as_size(document["size"]["height"], document["size"]["width"])
        regions = [
            _region(entry, number, size)
            for number, entry in enumerate(document["objects"])
            if _type(entry) not in _WITHOUT_AREA
        ]
        own = {"tags": _tags(document), "description": document.get("description"), "id": document.get("imageId")}
        return {**own_keys(own, ()), "image": name, "regions": regions}

    def without_area(self, document: dict[str, Any]) -> Iterable[str]:
        return (_type(entry) for entry in document["objects"] if _type(entry) in _WITHOUT_AREA)

    def put(self, document: dict[str, Any], answers: Iterator[Mapping[str, str] | None]) -> None:
        for entry in document["objects"]:
            if _type(entry) not in _WITHOUT_AREA and (found := next(answers, None)):
                entry["description"] = one_text(found)


def _type(entry: Any) -> str:
    given = entry.get("geometryType", entry.get("shape")) if isinstance(entry, dict) else entry
    return given if isinstance(given, str) else kind(given)


def _tags(holder: dict[str, Any]) -> dict[str, Any]:
    """Tags by name; those without a value are true."""
    given = holder.get("tags")
    tags = [tag for tag in given if isinstance(tag, dict)] if isinstance(given, list) else []
    return {str(tag.get("name")): True if tag.get("value") is None else tag["value"] for tag in tags}


def _region(entry: Any, number: int, size: Size | None) -> dict[str, Any]:
    where = f"objects[{number}]"
    if not isinstance(entry, dict):
        return {"mask": DataError(where, f"{kind(entry)} arrived, an object is needed.")}
    tags = _tags(entry)
    said = entry.get("description") or tags.get("caption") or tags.get("description")
    named = {
        "id": entry.get("id"),
        "label": entry.get("classTitle"),
        "caption": said if isinstance(said, str) else None,
    }
    region = own_keys({**entry, **tags}, _OF_OBJECT - tags.keys()) | own_keys(named, ())
    if _type(entry) not in _WITH_AREA:
        return {
            **region,
            "mask": DataError(where, f"its type {_type(entry)[:32]!a} is none of {', '.join(_WITH_AREA)}."),
        }
    return {**region, "mask": SuperviselyRegion(_type(entry), entry, size)}


@dataclass(frozen=True)
class SuperviselyRegion:
    """A figure as the file has it, with the pixels that Supervisely's SDK gives it.

    Attributes:
        type: polygon, multipolygon, rectangle, bitmap or alpha_mask.
        figure: the object of the file.
        size (`tuple[int, int]`, *optional*): (H, W) of the picture in the file.
    """

    type: str
    figure: dict[str, Any]
    size: Size | None

    def __region_mask__(self, height: int, width: int) -> BoolArray:
        check_picture(self.size, height, width)
        region = np.zeros((height, width), dtype=np.bool_)
        if self.type in ("bitmap", "alpha_mask"):
            bitmap = _part(self.figure, "bitmap")
            origin = bitmap.get("origin")
            ((left, top),) = np.floor(as_points([origin], "a bitmap")).astype(int).tolist()
            paste(region, _decoded(bitmap.get("data"), height, width), top, left)
        elif self.type == "rectangle":
            corners = _corners(_part(self.figure, "points"), "exterior")
            left, top = np.maximum(corners.min(axis=0), 0).tolist()
            right, bottom = np.maximum(corners.max(axis=0) + 1, 0).tolist()
            region[top:bottom, left:right] = True
        else:
            parts = self.figure.get("parts") if self.type == "multipolygon" else [self.figure.get("points")]
            for part in parts if isinstance(parts, list) else [None]:
                rings = part if isinstance(part, dict) else {}
                filled = pixel_polygons([_corners(rings, "exterior")], height, width)
                holes = rings.get("interior")
                for hole in holes if isinstance(holes, list) else []:
                    filled &= ~pixel_polygons([_corners({"interior": hole}, "interior")], height, width)
                region |= filled
        return region


def _part(figure: dict[str, Any], key: str) -> dict[str, Any]:
    part = figure.get(key)
    if not isinstance(part, dict):
        raise MaskError(f"{key}: {kind(part)} arrived, an object is needed. Export it anew.")
    return part


def _corners(rings: Mapping[str, Any], key: str) -> Any:
    corners = np.floor(as_points(rings.get(key), f"the {key}")).astype(np.int64)
    if not len(corners):
        raise MaskError(f"The {key} has no point. Export it anew.")
    return corners


def _decoded(text: Any, height: int, width: int) -> BoolArray:
    """The part of a bitmap: base64 of a PNG, packed by zlib or bare."""
    data = from_base64(text, "The bitmap")
    if not data.startswith(b"\x89PNG"):
        inflate = zlib.decompressobj()
        # No PNG of a part of the picture has more, eight bytes a pixel without compression.
        limit = 8 * height * width + height + 2**16
        try:
            data = inflate.decompress(data, limit)
        except zlib.error as error:
            raise MaskError(f"The bitmap is no intact zlib stream ({error}). Export it anew.") from error
        if not inflate.eof:
            raise MaskError(f"The bitmap is truncated, or has more than the {limit} bytes of any in this picture.")
    crop = open_crop(data, height, width, "The bitmap")
    pixels_of(crop, "The bitmap")
    if crop.mode in ("P", "RGBA", "LA", "PA"):
        # Supervisely writes a palette whose first colour is transparent.
        return pixels_of(crop.convert("RGBA"), "The bitmap")[..., 3] > 0
    pixels = pixels_of(crop, "The bitmap") != 0
    return pixels if pixels.ndim == 2 else pixels.any(axis=2)
