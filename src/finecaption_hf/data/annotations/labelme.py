"""LabelMe (labelme.io): a JSON file beside each picture."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ...mask_codecs_finecaption import BoolArray, MaskError
from ..errors import DataError
from ..examples import kind
from ..images import ImageStore, open_images
from .files import one_text, own_keys, picture_name, plain_name
from .per_picture import PerPicture
from .shapes import FloatArray, Size, as_points, as_size, check_picture, from_base64, open_crop, paste, pixels_of

# By type, how many points a shape has. "rotation" is the oriented rectangle of X-AnyLabeling, whose newer releases
# write four corners of a rectangle, too.
_NUM_POINTS = {"rectangle": (2, 4), "circle": (2, 2), "mask": (2, 2), "oriented_rectangle": (4, 4), "rotation": (4, 4)}
_WITHOUT_AREA = ("line", "linestrip", "point", "points")
_OF_FILE = {"version", "imageData", "imagePath", "imageHeight", "imageWidth", "shapes", "image", "regions", "picture"}
_OF_SHAPE = {"label", "points", "shape_type", "mask", "description", "caption"}

# What drawing one region may cost. PIL looks at each edge in each row, walks along edges outside of the picture, too,
# and takes minutes for circles whose radius is beyond any picture's.
_MAX_EDGE_ROWS = 2**31
_MAX_LENGTH = 2**24
_MAX_RADIUS = 2**16


class LabelMe(PerPicture):
    """A JSON file of a picture, or a folder with some at any depth.

    Shapes with one label and one `group_id` are one region. Captions come from `description`, and texts go back there,
    into each shape of the region: a folder gives a folder of JSON files, a file a file. The picture is `imagePath`;
    where it is not there, the one that is embedded as `imageData`.
    """

    format = "labelme"
    title = "LabelMe"

    @staticmethod
    def is_own(document: Any) -> bool:
        if not isinstance(document, dict) or "shapes" not in document:
            return False
        # Of a long list of shapes only the first is seen, and nothing after it.
        shapes = document["shapes"]
        first = shapes[0] if isinstance(shapes, list) and shapes else None
        return "imagePath" in document or (
            isinstance(first, dict) and {"label", "points", "shape_type"} <= first.keys()
        )

    def without_area(self, document: dict[str, Any]) -> Iterator[str]:
        return (_type(shape) for shape in document["shapes"] if _type(shape) in _WITHOUT_AREA)

    def where_images_lie(self) -> Path:
        return self._root

    @cached_property
    def _root(self) -> Path:
        """The folder of the file, or above it, where the first one says that pictures lie beside it ("..\\images")."""
        folder = self.path if self.path.is_dir() else self.path.parent
        first = next(self.files(), None)
        document = self.document(first)[1] if first else None
        name = document.get("imagePath") if isinstance(document, dict) else None
        if first and isinstance(name, str):
            up, *rest = _joined(first.parent.relative_to(folder), name).split("/")
            if up == ".." and rest and rest[0] != "..":
                return folder.resolve().parent
        return folder

    @cached_property
    def _images(self) -> ImageStore:
        return open_images(self._root if self.options.images is None else self.options.images)

    def row(self, path: Path, where: str, document: dict[str, Any]) -> Any:
        shapes = document["shapes"]
        if not isinstance(shapes, list):
            raise DataError(where, f"shapes: {kind(shapes)} arrived, a list is needed.")
        name, picture = self._picture(path, where, document)
        size = as_size(document.get("imageHeight"), document.get("imageWidth"))
        regions = [_region([shapes[number] for number in group], group[0], size) for group in _groups(shapes)]
        embedded = {} if picture == name else {"picture": picture}
        return {**own_keys(document, _OF_FILE), "image": name, **embedded, "regions": regions}

    def put(self, document: dict[str, Any], answers: Iterator[Mapping[str, str] | None]) -> None:
        for group in _groups(document["shapes"]):
            if found := next(answers, None):
                for number in group:
                    document["shapes"][number]["description"] = one_text(found)

    def _picture(self, path: Path, where: str, document: dict[str, Any]) -> tuple[str, Any]:
        """The name of the picture, and what it is read from."""
        name = document.get("imagePath")
        if not isinstance(name, str):
            return where, DataError(where, f"imagePath: {kind(name)} arrived, the name of a picture is needed.")
        folder = path.parent.resolve().relative_to(self._root.resolve())
        named, is_there = picture_name(self._images, [_joined(folder, name), plain_name(name)])
        embedded = document.get("imageData")
        if is_there or embedded is None:
            return named, named
        try:
            return named, {"bytes": from_base64(embedded, "imageData"), "path": named}
        except MaskError as error:
            return named, DataError(where, str(error))


def _joined(folder: Path, name: str) -> str:
    return os.path.normpath(os.path.join(folder, name.replace("\\", "/"))).replace(os.sep, "/")


def _type(shape: Any) -> str:
    given = (shape.get("shape_type") or "polygon") if isinstance(shape, dict) else shape
    return given if isinstance(given, str) else kind(given)


def _groups(shapes: list[Any]) -> list[list[int]]:
    """The numbers of the shapes of each region, in the order of their first one."""
    groups: dict[Any, list[int]] = {}
    for number, shape in enumerate(shapes):
        if _type(shape) in _WITHOUT_AREA:
            continue
        group = shape.get("group_id") if isinstance(shape, dict) else None
        key = number if group is None else (str(shape.get("label")), str(group))
        groups.setdefault(key, []).append(number)
    return list(groups.values())


def _region(shapes: list[Any], number: int, size: Size | None) -> dict[str, Any]:
    first = shapes[0]
    if not isinstance(first, dict):
        return {"mask": DataError(f"shapes[{number}]", f"{kind(first)} arrived, an object is needed.")}
    texts = (shape.get("description") for shape in shapes)
    caption = next((text for text in texts if isinstance(text, str) and text.strip()), None)
    region = {"mask": LabelMeRegion(tuple(map(_Shape.of, shapes)), size), **own_keys(first, _OF_SHAPE)}
    named = {"label": first.get("label"), "caption": caption}
    return region | {key: value for key, value in named.items() if value is not None}


@dataclass(frozen=True)
class _Shape:
    type: str
    points: Any
    mask: Any

    @classmethod
    def of(cls, shape: dict[str, Any]) -> "_Shape":
        return cls(_type(shape), shape.get("points"), shape.get("mask"))


@dataclass(frozen=True)
class LabelMeRegion:
    """The union of shapes, drawn as LabelMe draws: by PIL, the pixels of outlines included.

    Attributes:
        shapes: type, points and mask of each as the file has them.
        size (`tuple[int, int]`, *optional*): (H, W) of the picture in the file.
    """

    shapes: tuple[_Shape, ...]
    size: Size | None

    def __region_mask__(self, height: int, width: int) -> BoolArray:
        check_picture(self.size, height, width)
        canvas = Image.new("1", (width, height))
        crops = []
        draw = ImageDraw.Draw(canvas)
        work = _Work(height)
        for shape in self.shapes:
            points = _points(shape)
            if shape.type == "mask":
                crops.append((_crop(shape.mask, points, height, width), points[0].astype(int).tolist()))
            elif shape.type == "circle":
                (x, y), radius = points[0].tolist(), float(np.linalg.norm(points[1] - points[0]))
                work.add_circle(radius)
                draw.ellipse(((x - radius, y - radius), (x + radius, y + radius)), outline=1, fill=1)
            elif shape.type == "rectangle":
                draw.rectangle((*points.min(axis=0).tolist(), *points.max(axis=0).tolist()), outline=1, fill=1)
            else:
                work.add_polygon(points)
                draw.polygon(list(map(tuple, points.tolist())), outline=1, fill=1)
        region = np.array(canvas)
        for crop, (left, top) in crops:
            paste(region, crop, top, left)
        return region


def _points(shape: _Shape) -> FloatArray:
    what = f"a shape of type {shape.type[:32]!a}"
    if shape.type != "polygon" and shape.type not in _NUM_POINTS:
        raise MaskError(
            f"There is {what}, which is none of LabelMe's: polygon, {', '.join(_NUM_POINTS)}. Draw it anew."
        )
    points = as_points(shape.points, what)
    least, most = _NUM_POINTS.get(shape.type, (3, len(points)))
    if not least <= len(points) <= max(least, most):
        raise MaskError(f"There are {len(points)} points in {what}, which has at least {least}. Draw it anew.")
    return points


def _crop(mask: Any, points: FloatArray, height: int, width: int) -> BoolArray:
    """The mask between two corners, the pixels of both included."""
    crop = open_crop(from_base64(mask, "The mask"), height, width, "The mask")
    (left, top), (right, bottom) = points.astype(int).tolist()
    if (crop.height, crop.width) != (bottom - top + 1, right - left + 1):
        raise MaskError(
            f"The mask is {crop.height}x{crop.width} (height x width), but from ({left}, {top}) to ({right}, {bottom}) "
            f"there are {bottom - top + 1}x{right - left + 1} pixels. Save it anew in LabelMe."
        )
    pixels = pixels_of(crop, "The mask")
    if pixels.ndim != 2:
        raise MaskError("The mask has colours, so it does not say which pixels are in the region. Save it anew.")
    return pixels != 0


class _Work:
    """What drawing costs, refused before it is done."""

    def __init__(self, height: int) -> None:
        self._height = height
        self._rows, self._length = 0.0, 0.0

    def add_polygon(self, points: FloatArray) -> None:
        y = np.clip(points[:, 1], 0, self._height)
        self._rows += len(points) * float(np.ptp(y))
        self._length += float(np.abs(points - np.roll(points, -1, axis=0)).sum())
        if self._rows > _MAX_EDGE_ROWS or self._length > _MAX_LENGTH:
            raise MaskError("The polygons are too complex for their picture. Simplify them, or draw a mask.")

    def add_circle(self, radius: float) -> None:
        if radius > _MAX_RADIUS:
            raise MaskError(f"A circle has a radius of {radius:g} pixels, more than {_MAX_RADIUS}. Draw it anew.")
        self._length += radius
