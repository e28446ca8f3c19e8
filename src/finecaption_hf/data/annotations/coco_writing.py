"""Records of regions -> a new file of COCO instances with captions."""

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...mask_codecs_finecaption import decode_rle
from ...masks_finecaption import box_around
from ..encoding import encode_rle
from .files import new_file
from .writing import with_texts

# What a record says in the package's words, or about its picture; all else goes into the annotation as it is.
_NOT_OWN = frozenset(
    {
        *("image", "image_id", "id", "region_index", "label", "category_id", "mask", "box_xyxy", "bbox", "area"),
        *("answers", "error", "errors", "log_probs", "iscrowd", "width", "height", "size"),
    }
)
_UNNAMED = "region"


def write_coco(records: Iterable[Mapping[str, Any]], target: Path) -> int:
    """Write records of described regions as COCO instances.

    Annotations have the mask as RLE, its box and area, answers under `caption` and `attributes` (see `texts_of`), and
    the record's own keys. Images, annotations and categories keep their ids where records have them and they are free;
    otherwise they are numbered from 1. A region without a label is of the category `region`.

    Args:
        records: with `image`, `mask` (RLE: `{"size": [H, W], "counts": str}`) and perhaps `answers`, `image_id`, `id`,
            `label`, `category_id`, `iscrowd`; where `mask` is `None`, `box_xyxy` is the whole picture. Those without
            either have no place in COCO and are left out.
        target: file to make.

    Returns:
        `int`: how many records were left out.

    Memory grows with the number of pictures and ids, not with what regions hold.
    """
    images: dict[str, dict[str, Any]] = {}
    image_ids, region_ids, categories = _Ids(), _Ids(), _Categories()
    left_out = written = 0
    # Annotations come before the last image is known, so they wait on disk.
    with tempfile.TemporaryFile("w+", encoding="ascii") as waiting:
        for record in records:
            mask = _mask_of(record)
            if mask is None:
                left_out += 1
                continue
            name, (height, width) = record["image"], mask["size"]
            if name not in images:
                number = image_ids.of(record.get("image_id"))
                images[name] = {"id": number, "file_name": name, "width": width, "height": height}
            annotation: dict[str, Any] = {
                **{key: value for key, value in record.items() if key not in _NOT_OWN},
                "id": region_ids.of(record.get("id")),
                "image_id": images[name]["id"],
                "category_id": categories.of(record.get("label"), record.get("category_id")),
                **_shape(record, mask),
                "iscrowd": record.get("iscrowd", 0),
            }
            if answers := record.get("answers"):
                annotation = with_texts(annotation, answers)
            waiting.write(",\n" if written else "")
            json.dump(annotation, waiting)
            written += 1
        waiting.seek(0)
        with new_file(None, target) as file:
            file.write(b'{"images": [\n')
            file.write(",\n".join(map(json.dumps, images.values())).encode("ascii"))
            file.write(b'\n], "annotations": [\n')
            while text := waiting.read(2**20):
                file.write(text.encode("ascii"))
            file.write(f'\n], "categories": {json.dumps(categories.listed())}}}\n'.encode("ascii"))
    return left_out


def _mask_of(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """RLE; of a whole picture, which has a box and no mask, one run."""
    mask, box = record.get("mask"), record.get("box_xyxy")
    if isinstance(mask, Mapping) and "counts" in mask:
        return dict(mask)
    if mask is None and box is not None:
        return encode_rle(np.ones((box[3], box[2]), np.bool_))
    return None


def _shape(record: Mapping[str, Any], mask: dict[str, Any]) -> dict[str, Any]:
    box, area = record.get("box_xyxy"), record.get("area")
    if box is None or area is None:
        pixels = decode_rle(mask, *mask["size"])
        box, area = box_around(pixels), int(pixels.sum())
    x0, y0, x1, y1 = box
    return {"segmentation": mask, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": area}


class _Ids:
    """Ids that are given once each; where one is missing or taken, the next free number."""

    def __init__(self) -> None:
        self._taken: set[Any] = set()
        self._next = 1

    def of(self, given: Any) -> Any:
        if given is None or given in self._taken:
            while self._next in self._taken:
                self._next += 1
            given = self._next
        self._taken.add(given)
        return given


class _Categories:
    """Categories by their labels."""

    def __init__(self) -> None:
        self._ids: dict[tuple[str, Any], Any] = {}
        self._free = _Ids()

    def of(self, label: str | None, given: Any) -> Any:
        key = (_UNNAMED if label is None else label), given
        if key not in self._ids:
            self._ids[key] = self._free.of(given)
        return self._ids[key]

    def listed(self) -> list[dict[str, Any]]:
        return [{"id": number, "name": name} for (name, _), number in self._ids.items()]
