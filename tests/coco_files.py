"""Small files of COCO's family for tests, with masks of a known form."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from finecaption_hf import as_mask
from finecaption_hf.data import ReadOptions
from finecaption_hf.data.annotations import AnnotationFile, open_annotations

H, W = 40, 60
STAR = [10.2, 3.7, 30.9, 8.1, 25.5, 33.3, 12.0, 20.0, 4.4, 30.6]
SQUARE = [5.0, 5.0, 15.0, 5.0, 15.0, 15.0, 5.0, 15.0]


def disc(y: int = 20, x: int = 30, r: int = 9) -> np.ndarray:
    rows, columns = np.ogrid[:H, :W]
    return (rows - y) ** 2 + (columns - x) ** 2 <= r * r


def rle(mask: np.ndarray) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def runs(mask: np.ndarray) -> dict[str, Any]:
    flat = mask.T.ravel().astype(int)
    borders = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    counts = [stop - start for start, stop in itertools.pairwise(borders)]
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def image(number: Any, name: str = "", **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": name or f"{number}.jpg", "height": H, "width": W, **more}


def annotation(number: Any, owner: Any, segmentation: Any = None, **more: Any) -> dict[str, Any]:
    outline = [STAR] if segmentation is None else segmentation
    return {"id": number, "image_id": owner, "category_id": 3, "segmentation": outline, "iscrowd": 0, **more}


CATEGORIES = [{"id": 3, "name": "cat", "supercategory": "animal"}, {"id": 90, "name": "toothbrush"}]


def write(path: Path, images: list[Any], annotations: list[Any], **more: Any) -> Path:
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES, **more}))
    return path


def opened(path: Path, **options: Any) -> tuple[AnnotationFile, list[Any]]:
    """A file and its rows, which are the same one by one."""
    file = open_annotations(path, ReadOptions(**options))
    found = list(file.scan())
    for index, (where, row) in enumerate(found):
        again_where, again = file.read(index)
        assert where == again_where and repr(row) == repr(again)
    return file, [row for _, row in found]


def pixels(region: dict[str, Any], height: int = H, width: int = W) -> np.ndarray:
    return as_mask(region["mask"], height, width)
