"""How near masks come to true ones, from a tight box and from one point: mean intersection over union.

    python benchmarks/segmentation.py regions.jsonl [ID_OR_FOLDER]

Lines of the file: {"image": path beside the file, "segmentation": region reference}. Without a model, the classical
segmenter is measured.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from finecaption_hf.masks_finecaption import as_mask, mask_to_box
from finecaption_hf.segmentation import EncodedImage, open_segmenter


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def middle(mask: np.ndarray) -> tuple[int, int]:
    """The (x, y) of the region that is nearest to its centre of mass."""
    ys, xs = np.nonzero(mask)
    nearest = int(np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2))
    return int(xs[nearest]), int(ys[nearest])


def main(file: str, model: str | None = None) -> None:
    segmenter = open_segmenter(model)
    encoded: dict[str, EncodedImage] = {}
    rows = []
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        name = record["image"]
        if name not in encoded:
            encoded[name] = segmenter.encode(Image.open(Path(file).parent / name))
        picture = encoded[name]
        true = as_mask(record["segmentation"], picture.height, picture.width)
        box = mask_to_box(true)
        plain = as_mask({"box_xyxy": list(box)}, picture.height, picture.width)
        by_box = [iou(it.mask, true) for it in picture.masks(box_xyxy=box)]
        by_point = [iou(it.mask, true) for it in picture.masks(points=[middle(true)])]
        # A segmenter that finds nothing has overlap 0.
        rows.append([iou(plain, true), *(by_box or [0.0])[:1], max(by_box, default=0.0)])
        rows[-1] += [*(by_point or [0.0])[:1], max(by_point, default=0.0)]
    print(f"{segmenter.name}: {len(rows)} regions")
    names = ("plain box", "box, first", "box, best of 3", "point, first", "point, best of 3")
    for name, value in zip(names, np.mean(rows, axis=0), strict=True):
        print(f"{name:18} {value:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
