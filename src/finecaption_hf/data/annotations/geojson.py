"""GeoJSON in pixels of a picture, as QuPath and tools for maps of tiles write it."""

import json
import os
import shutil
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from ..errors import DataError
from ..json_stream import JsonStream, parse_line
from .base import AnnotationFile, ReadOptions, Seen

_IMAGE_KEYS = ("image", "file_name", "imagePath")
_LABEL_KEYS = ("label", "name", "class", "category")
_FLAT = ("Point", "MultiPoint", "LineString", "MultiLineString")


@dataclass
class _Features:
    """The features of one picture: where they stand in their file, and the box around them."""

    file: int
    name: str | None
    offsets: "array[int]" = field(default_factory=lambda: array("q"))
    lengths: "array[int]" = field(default_factory=lambda: array("q"))
    box: tuple[float, float, float, float] = (np.inf, np.inf, -np.inf, -np.inf)
    largest: float = 0.0


class GeoJson(AnnotationFile):
    """A Feature, a FeatureCollection or a list of features, or a folder of such files; coordinates are pixels.

    The picture is named by a property (`image`, `file_name`, `imagePath`), or it has the name of the file. The label is
    QuPath's classification, or the property `label`, `name`, `class` or `category`.

    Texts go to the property `caption`; those of several questions one below the other, and each by its question in the
    object `answers`.
    """

    format = "geojson"
    title = "GeoJSON"

    def __init__(self, path: Path, options: ReadOptions) -> None:
        super().__init__(path, options)
        self._paths = sorted(each for each in path.rglob("*") if _is_geojson(each.name)) if path.is_dir() else [path]
        self._rows: list[_Features | DataError] = []

    @classmethod
    def recognises(cls, seen: Seen) -> bool:
        if seen.is_folder:
            return any(map(_is_geojson, seen.names))
        kind = seen.json.get("type") if isinstance(seen.json, dict) else None
        return kind in ("Feature", "FeatureCollection") or "Feature" in (
            seen.first.get("type"),
            seen.element("features").get("type"),
        )

    def files(self) -> Iterator[Path]:
        yield from self._paths

    def scan(self) -> Iterator[tuple[str, Any]]:
        self._rows = []
        left_out: Counter[str] = Counter()
        for number, path in enumerate(self._paths):
            try:
                found = self._index(number, path, left_out)
            except (DataError, OSError) as error:  # a broken file does not touch the others
                if path == self.path:
                    raise
                found = [error if isinstance(error, DataError) else DataError(str(path), str(error))]
            for row in found:
                self._rows.append(row)
                yield self.read(len(self._rows) - 1)
        self.notes = [f"{number} {what}: left out." for what, number in sorted((+left_out).items())]

    def _index(self, number: int, path: Path, left_out: Counter[str]) -> list[_Features | DataError]:
        rows: dict[str | None, _Features] = {}
        has_crs = False
        for offset, length, feature in _features(path):
            if offset is None:
                has_crs = True
                continue
            geometry = feature.get("geometry") if isinstance(feature, dict) else None
            if isinstance(feature, dict) and (geometry is None or _kind(geometry) in _FLAT):
                left_out["features without a geometry" if geometry is None else "points and lines have no area"] += 1
                continue
            left_out["second outlines (nucleusGeometry)"] += isinstance(feature, dict) and "nucleusGeometry" in feature
            named = _picture_named(feature)
            row = rows.setdefault(named, _Features(number, named))
            row.offsets.append(offset)
            row.lengths.append(length)
            _widen(row, geometry)
        return [_geographic(row, str(path), has_crs) or self._with_picture(row) for row in rows.values()]

    def _with_picture(self, row: _Features) -> _Features | DataError:
        try:
            row.name = row.name or self._beside(self._paths[row.file])
        except DataError as error:
            return error
        return row

    def read(self, index: int) -> tuple[str, Any]:
        row = self._rows[index]
        if isinstance(row, DataError):
            return row.where, row
        path = self._paths[row.file]
        where = f"{self.name if path == self.path else path.relative_to(self.path)}: {row.name}"
        with open(path, "rb") as file:
            regions = [_region(_read(file, *place, where)) for place in zip(row.offsets, row.lengths)]
        return where, {"image": row.name, "regions": regions}

    def _beside(self, path: Path) -> str:
        """The name of the picture that has the name of a file, relative to where pictures lie.

        Raises:
            DataError: If there is none, or there are several.
        """
        folder = path.parent.relative_to(self.where_images_lie())
        images = self.options.images
        root = Path(images) if isinstance(images, (str, os.PathLike)) else self.where_images_lie()
        opened = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
        for place in dict.fromkeys((root / folder, root)):
            inside = sorted(each.name for each in place.iterdir()) if place.is_dir() else []
            named = [
                name for name in inside if Path(name).suffix.lower() in opened and path.stem in (name, Path(name).stem)
            ]
            if len(named) > 1:
                raise DataError(path.name, f"it may be about {' or '.join(named)}. Name it in the property 'image'.")
            if named:
                return (place / named[0]).relative_to(root).as_posix()
        raise DataError(
            path.name,
            f"no picture is named by its properties ({', '.join(_IMAGE_KEYS)}), and none called {path.stem}.* lies in "
            f"{root}. Give the folder of the pictures (--images), or the property 'image' to each feature.",
        )

    def write_back(self, answers: Iterator[Mapping[str, str] | None], target: Path) -> None:
        texts: list[list[tuple[int, int, Mapping[str, str]]]] = [[] for _ in self._paths]
        for row in self._rows:
            if isinstance(row, DataError):
                next(answers, None)  # it had one line in the place of its regions
                continue
            for offset, length in zip(row.offsets, row.lengths):
                if given := next(answers, None):
                    texts[row.file].append((offset, length, given))
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            for number, path in enumerate(self._paths):
                made = work / (path.relative_to(self.path) if path != self.path else path.name)
                made.parent.mkdir(parents=True, exist_ok=True)
                _write(path, made, sorted(texts[number], key=lambda each: each[0]))
            os.replace(work if self.path.is_dir() else work / self.path.name, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _is_geojson(name: str) -> bool:
    return name.lower().endswith(".geojson")


def _features(path: Path) -> Iterator[tuple[int | None, int, Any]]:
    """Offset, length in bytes and value of each feature of a file; `(None, 0, crs)` if it has a reference system."""
    with open(path, "rb") as file:
        stream = JsonStream(file, str(path))

        def placed() -> tuple[int, int, Any]:
            stream.peek()
            start = stream.position()
            value = stream.value()
            return start, stream.position() - start, value

        if stream.peek() == "[":
            yield from stream.elements(placed)
            stream.end()
            return
        has_features = False
        for key in stream.names():
            if key == "features" and stream.peek() == "[":
                has_features = True
                yield from stream.elements(placed)
            elif key == "crs":
                if (crs := stream.value()) is not None:
                    yield None, 0, crs
            else:
                stream.skip()
        stream.end()
        if has_features:
            return
        file.seek(0)
        stream = JsonStream(file, str(path))
        yield placed()


def _read(file: BinaryIO, offset: int, length: int, where: str) -> Any:
    file.seek(offset)
    return parse_line(file.read(length), where, first=offset == 0)


def _kind(geometry: Any) -> Any:
    return geometry.get("type") if isinstance(geometry, dict) else None


def _properties(feature: Any) -> dict[str, Any]:
    found = feature.get("properties") if isinstance(feature, dict) else None
    return found if isinstance(found, dict) else {}


def _picture_named(feature: Any) -> str | None:
    properties = _properties(feature)
    return next((name for key in _IMAGE_KEYS if isinstance(name := properties.get(key), str) and name), None)


def _polygons(geometry: Any) -> list[Any]:
    """The polygons of a geometry, each a list of rings; of a collection, those that are in it.

    Raises:
        DataError: If it is none that has an area.
    """
    kind, coordinates = _kind(geometry), geometry.get("coordinates") if isinstance(geometry, dict) else None
    if kind == "GeometryCollection" and isinstance(parts := geometry.get("geometries"), list):
        if any(_kind(part) == "GeometryCollection" for part in parts):
            raise DataError("geometry", "it is a collection within a collection. Give one list of geometries.")
        return [each for part in parts if _kind(part) not in _FLAT for each in _polygons(part)]
    if kind not in ("Polygon", "MultiPolygon") or not isinstance(coordinates, list):
        shown = ascii(kind[:32]) if isinstance(kind, str) else "nothing that is known"
        raise DataError(
            "geometry", f"its type is {shown}. Needed is a Polygon, a MultiPolygon or a collection of them."
        )
    return [coordinates] if kind == "Polygon" else coordinates


def _flat(ring: Any) -> Any:
    """Points without their heights."""
    has_heights = isinstance(ring, list) and ring and isinstance(ring[0], list) and len(ring[0]) > 2
    if not has_heights:
        return ring
    return [point[:2] if isinstance(point, list) and len(point) > 2 else point for point in ring]


def _region(feature: Any) -> dict[str, Any]:
    if isinstance(feature, DataError):
        return {"mask": feature}
    properties = _properties(feature)
    region = {key: value for key, value in properties.items() if key not in _IMAGE_KEYS}
    ids = (feature.get("id"), properties.get("id")) if isinstance(feature, dict) else ()
    region["id"] = next((each for each in ids if isinstance(each, str) or type(each) is int), None)
    classification = properties.get("classification")
    names = [classification.get("name") if isinstance(classification, dict) else classification]
    names += [properties.get(key) for key in _LABEL_KEYS]
    region["label"] = next((name for name in names if isinstance(name, str) and name), None)
    try:
        polygons = _polygons(feature.get("geometry")) if isinstance(feature, dict) else _polygons(None)
        rings = [[_flat(ring) for ring in polygon] if isinstance(polygon, list) else polygon for polygon in polygons]
        region["mask"] = {"type": "MultiPolygon", "coordinates": rings}
    except DataError as error:
        region["mask"] = error
    return region


# --- coordinates that are none of a picture ---------------------------------------------------------------------------


def _widen(row: _Features, geometry: Any) -> None:
    try:
        outlines = [np.asarray(_flat(polygon[0]), dtype=np.float64) for polygon in _polygons(geometry)]
    except (DataError, TypeError, ValueError, IndexError, KeyError, OverflowError):
        return  # told when its mask is made
    for points in outlines:
        if points.ndim == 2 and points.shape[1:] == (2,) and len(points):
            low, high = points.min(axis=0), points.max(axis=0)
            row.box = (
                *(min(row.box[0], float(low[0])), min(row.box[1], float(low[1]))),
                *(max(row.box[2], float(high[0])), max(row.box[3], float(high[1]))),
            )
            row.largest = max(row.largest, float((high - low).max()))


def _geographic(row: _Features, where: str, has_crs: bool) -> DataError | None:
    """An error if the coordinates are degrees: within their range, and with a reference system or all below a pixel."""
    x0, y0, x1, y1 = row.box
    if not (-180 <= x0 <= x1 <= 180 and -90 <= y0 <= y1 <= 90 and (has_crs or row.largest < 1)):
        return None
    why = "the file names a coordinate reference system" if has_crs else "no feature is as wide or as high as a pixel"
    return DataError(
        where,
        f"its coordinates are from [{x0:g}, {y0:g}] to [{x1:g}, {y1:g}] and {why}: these are degrees. Needed are "
        "pixels of the picture, x before y: convert them by the picture's own transform first.",
    )


# --- texts back into features ----------------------------------------------------------------------------------------


def _write(path: Path, made: Path, texts: list[tuple[int, int, Mapping[str, str]]]) -> None:
    """Copy a file, byte by byte but for the features that get texts: (offset, length, answers), in their order."""
    with open(path, "rb") as file, open(made, "wb") as out:
        for offset, length, answers in texts:
            _copy(file, out, offset - file.tell())
            feature = _read(file, offset, length, path.name)
            if isinstance(feature, DataError):
                raise DataError(str(path), "it changed while it was described.")
            properties = {**_properties(feature), "caption": _joined(answers)}
            if len(answers) > 1:
                properties["answers"] = dict(answers)
            out.write(json.dumps({**feature, "properties": properties}, ensure_ascii=False).encode())
        shutil.copyfileobj(file, out)


def _copy(file: BinaryIO, out: BinaryIO, number: int) -> None:
    while number > 0 and (block := file.read(min(number, 2**20))):
        out.write(block)
        number -= len(block)


def _joined(answers: Mapping[str, str]) -> str:
    if len(answers) == 1:
        return next(iter(answers.values()))
    return "\n".join(f"{name}: {text}" for name, text in answers.items())
