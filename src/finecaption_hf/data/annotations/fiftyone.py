"""FiftyOne (voxel51.com): the `samples.json` of an exported data set ("FiftyOneDataset")."""

import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...mask_codecs_finecaption import BoolArray, MaskError
from ...masks_finecaption import as_mask
from ..errors import DataError
from ..examples import kind
from ..images import ImageStore, open_images
from .base import AnnotationFile, ReadOptions, Seen
from .files import ElementsByNumber, looks, new_file, own_keys, picture_name, plain_name
from .shapes import (
    Size,
    as_number,
    as_points,
    as_size,
    check_picture,
    from_base64,
    open_crop,
    paste,
    pixel_polygons,
    pixels_of,
)

_FILE = "samples.json"
_LISTS = {"Detections": "detections", "Polylines": "polylines"}
_KINDS = ("Detection", "Polyline")
_WORDS = ("Classification", "Classifications")
_CAPTIONS = ("caption", "description", "text")
_OF_LABEL = {
    *("_cls", "_id", "label", "bounding_box", "mask", "mask_path", "points", "closed", "filled", "attributes", "tags"),
}


class FiftyOne(AnnotationFile):
    """The folder of an exported data set, or its `samples.json`.

    Detections and polylines of all label fields are regions, each with the name of its `field`; classifications come
    with the picture. Boxes and points are shares of width and height. A mask lies in its box, and is brought to the
    box's pixels by nearest neighbour where it has others; FiftyOne itself interpolates there, by up to a pixel.

    Captions come from the attribute `caption`, `description` or `text` of a region. Texts go back as attributes: one
    answer as `caption`, several under their questions.
    """

    format = "fiftyone"
    title = "FiftyOne"

    def __init__(self, path: Path, options: ReadOptions) -> None:
        super().__init__(path, options)
        self._file = path / _FILE if path.is_dir() else path
        self._samples = ElementsByNumber(self._file, self.name, "samples")

    @classmethod
    def recognises(cls, seen: Seen) -> bool:
        if seen.is_folder and _FILE not in seen.names:
            return False
        return any({"filepath"} <= each.element("samples").keys() for each in looks(seen, _FILE))

    def files(self) -> Iterator[Path]:
        yield self._file

    def where_images_lie(self) -> Path:
        return self._file.parent

    @cached_property
    def _images(self) -> ImageStore:
        return open_images(self.where_images_lie() if self.options.images is None else self.options.images)

    @cached_property
    def _beside(self) -> ImageStore:
        """Where files of masks lie, whatever the folder of pictures."""
        return open_images(self._file.parent)

    def scan(self) -> Iterator[tuple[str, Any]]:
        left_out: Counter[str] = Counter()
        for number, sample in enumerate(self._samples.scan()):
            left_out.update(_left_out(sample))
            yield self._row(number, sample)
        self.notes = [f"{number} {name}: left out." for name, number in left_out.items()]

    def read(self, index: int) -> tuple[str, Any]:
        return self._row(index, self._samples.read(index))

    def _row(self, number: int, sample: Any) -> tuple[str, Any]:
        where = f"{self.name}: samples[{number}]"
        if isinstance(sample, DataError):
            return where, sample.at(where)
        named = sample.get("filepath") if isinstance(sample, dict) else None
        if not isinstance(named, str) or not plain_name(named):
            return where, DataError(where, f"filepath: {kind(named)} arrived, the name of a picture is needed.")
        name, _ = picture_name(self._images, [plain_name(named), f"data/{plain_name(named).rpartition('/')[2]}"])
        metadata = sample.get("metadata")
        size = as_size(metadata.get("height"), metadata.get("width")) if isinstance(metadata, dict) else None
        regions = [self._region(key, label, size) for key, label in _labels(sample)]
        own = {key: words for key, value in sample.items() if (words := _words(value)) is not None}
        return where, {
            **own_keys({**own, "tags": sample.get("tags"), "id": _id(sample)}, ()),
            "image": name,
            "regions": regions,
        }

    def _region(self, key: str, label: dict[str, Any], size: Size | None) -> dict[str, Any]:
        given = label.get("attributes")
        attributes = (
            {name: each.get("value") for name, each in given.items() if isinstance(each, dict)}
            if isinstance(given, dict)
            else {}
        )
        said = {**label, **attributes}
        caption = next((said[name] for name in _CAPTIONS if isinstance(said.get(name), str) and said[name]), None)
        named = {
            "id": _id(label),
            "label": label.get("label"),
            "caption": caption,
            "tags": label.get("tags"),
            "field": key,
        }
        row = own_keys(said, _OF_LABEL | {"id"} | {name for name in said if name.startswith("_")}) | own_keys(named, ())
        return {**row, "mask": FiftyOneRegion(label, size, self._beside)}

    def write_back(self, answers: Iterator[Mapping[str, str] | None], target: Path) -> None:
        place = target / _FILE if self.path.is_dir() else target
        with new_file(self.path, place) as file:
            self._samples.replaced((self._answered(number, answers) for number in range(len(self._samples))), file)

    def _answered(self, number: int, answers: Iterator[Mapping[str, str] | None]) -> bytes | None:
        sample = self._samples.read(number)
        if isinstance(self._row(number, sample)[1], DataError):
            next(answers, None)
            return None
        changed = False
        for _, label in _labels(sample):
            if found := next(answers, None):
                changed = True
                label.update({"caption": next(iter(found.values()))} if len(found) == 1 else found)
        return json.dumps(sample).encode() if changed else None


def _fields(sample: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, class and content of the label fields of a sample."""
    for key, value in sample.items() if isinstance(sample, dict) else []:
        if isinstance(value, dict) and isinstance(value.get("_cls"), str):
            yield key, value["_cls"], value


def _labels(sample: Any) -> list[tuple[str, dict[str, Any]]]:
    """The labels of a sample that are regions, each with the name of its field."""
    found = []
    for key, name, value in _fields(sample):
        listed = value.get(_LISTS[name]) if name in _LISTS else [value] if name in _KINDS else []
        found += [(key, each) for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    return [(key, each) for key, each in found if not _is_line(each)]


def _is_line(label: dict[str, Any]) -> bool:
    return label.get("_cls") == "Polyline" and not label.get("filled") and not label.get("closed")


def _left_out(sample: Any) -> Iterator[str]:
    for _, name, value in _fields(sample):
        listed = value.get("polylines")
        lines = listed if isinstance(listed, list) else [value]
        yield from ("open polylines, which have no area" for each in lines if isinstance(each, dict) and _is_line(each))
        if name not in {*_LISTS, *_KINDS, *_WORDS} and not name.endswith("Metadata"):
            yield f"fields of {name}"


def _words(value: Any) -> Any:
    """What classifications of a picture say."""
    if not isinstance(value, dict) or value.get("_cls") not in _WORDS:
        return None
    listed = value.get("classifications")
    return (
        [each.get("label") for each in listed if isinstance(each, dict)]
        if isinstance(listed, list)
        else value.get("label")
    )


def _id(holder: dict[str, Any]) -> str | None:
    given = holder.get("_id")
    found = given.get("$oid") if isinstance(given, dict) else given
    return found if isinstance(found, str) else None


@dataclass(frozen=True)
class FiftyOneRegion:
    """A detection or a polyline.

    Attributes:
        label: as the file has it.
        size (`tuple[int, int]`, *optional*): (H, W) of the picture in the file.
        store: where files of masks lie.
    """

    label: dict[str, Any]
    size: Size | None
    store: ImageStore = field(repr=False, compare=False)

    def __region_mask__(self, height: int, width: int) -> BoolArray:
        check_picture(self.size, height, width)
        if "points" in self.label:
            rings = self.label["points"]
            if not isinstance(rings, list):
                raise MaskError(f"points: {kind(rings)} arrived, a list of outlines is needed. Export it anew.")
            return pixel_polygons(
                [(as_points(ring, "a polyline") * (width, height)).astype(np.int64) for ring in rings], height, width
            )
        box = self.label.get("bounding_box")
        if not isinstance(box, list) or len(box) != 4:
            raise MaskError(f"bounding_box: {kind(box)} arrived, [x, y, width, height] in shares is needed.")
        left, top, across, down = (as_number(value, "bounding_box") for value in box)
        corners = left * width, top * height, (left + across) * width, (top + down) * height
        crop = self._crop(height, width)
        if crop is None:
            return as_mask({"box_xyxy": list(corners)}, height, width)
        x0, y0, x1, y1 = map(int, corners)
        if not 0 < x1 - x0 <= 2 * width or not 0 < y1 - y0 <= 2 * height:
            raise MaskError(f"The box of a mask is {y1 - y0}x{x1 - x0} pixels (height x width). Export it anew.")
        rows = (np.arange(y1 - y0) + 0.5) * crop.shape[0] / (y1 - y0)
        columns = (np.arange(x1 - x0) + 0.5) * crop.shape[1] / (x1 - x0)
        region = np.zeros((height, width), dtype=np.bool_)
        paste(region, crop[rows.astype(int)[:, None], columns.astype(int)], y0, x0)
        return region

    def _crop(self, height: int, width: int) -> BoolArray | None:
        """The mask inside of the box; `None` where there is none."""
        given, path = self.label.get("mask"), self.label.get("mask_path")
        if given is not None:
            return _unpacked(given, height, width) != 0
        if path is None:
            return None
        try:
            name, _ = picture_name(self.store, [plain_name(path) if isinstance(path, str) else ""])
            crop = open_crop(self.store.read_bytes(name), height, width, "The mask")
        except DataError as error:
            raise MaskError(f"mask_path: {error}") from error
        pixels = pixels_of(crop, "The mask") != 0
        return pixels if pixels.ndim == 2 else pixels.any(axis=2)


def _unpacked(given: Any, height: int, width: int) -> NDArray[Any]:
    """base64(zlib(npy)), as it is or in MongoDB's form; its claims are checked before anything is allocated."""
    for key in ("$binary", "base64"):
        given = given.get(key) if isinstance(given, dict) else given
    limit = 8 * height * width + 2**12
    inflate = zlib.decompressobj()
    try:
        data = inflate.decompress(from_base64(given, "The mask"), limit)
    except zlib.error as error:
        raise MaskError(f"The mask is no intact zlib stream ({error}). Export it anew.") from error
    if not inflate.eof:
        raise MaskError(f"The mask is truncated, or has more than the {limit} bytes of any in this picture.")
    file = BytesIO(data)
    try:
        read_header = (
            np.lib.format.read_array_header_1_0
            if np.lib.format.read_magic(file) == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read_header(file)
        if (
            len(shape) != 2
            or min(shape) < 1
            or dtype.hasobject
            or shape[0] * shape[1] * dtype.itemsize != len(data) - file.tell()
        ):
            raise ValueError(f"shape {shape}, {dtype} in {len(data)} bytes")
        found: NDArray[Any] = np.load(BytesIO(data), allow_pickle=False)
        return found
    except (ValueError, EOFError, OSError) as error:
        raise MaskError(
            f"The mask is no array of numpy with two dimensions ({str(error)[:100]}). Export it anew."
        ) from error
