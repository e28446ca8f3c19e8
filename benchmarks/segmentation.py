"""How near masks come to true ones, from a tight box and from one point: mean intersection over union.

    python benchmarks/segmentation.py regions.jsonl|NUMBER [ID_OR_FOLDER]
    python benchmarks/segmentation.py FOLDER [SEED [CLICKS_IN_EACH_PICTURE]]

Lines of the file: {"image": path beside the file, "segmentation": region reference}; a number means so many rendered
scenes, of seeds by which nothing was chosen. Points lie in the region's middle, and at three places anywhere in it.
Without a model, the classical segmenter is measured. The last line is the best of what `everything` finds.

The second form clicks anywhere in a folder's pictures, with the classical segmenter: how often it chooses a speck,
and how often one beside a candidate of usable size, by its rule and by scores alone as before it.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finecaption_hf.masks_finecaption import as_mask, box_around
from finecaption_hf.scenes import render_scene
from finecaption_hf.segmentation import open_segmenter
from finecaption_hf.segmentation.classical import ClassicalEncodedImage, ClassicalSegmenter

Masked = tuple[Image.Image, list[np.ndarray]]

_SPECK, _USABLE = 0.0005, 0.5  # shares of the picture: below the first is a speck, from there to the second usable
_FIRST_SEED = 1000  # the classical segmenter's rules were chosen with scenes of the first dozens


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def middle(mask: np.ndarray) -> tuple[int, int]:
    """The (x, y) of the region that is nearest to its centre of mass."""
    ys, xs = np.nonzero(mask)
    nearest = int(np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2))
    return int(xs[nearest]), int(ys[nearest])


def anywhere(mask: np.ndarray, number: int = 3) -> list[tuple[int, int]]:
    """Pixels (x, y) of a region, drawn evenly; the same ones for the same region."""
    ys, xs = np.nonzero(mask)
    drawn = np.random.default_rng(len(xs)).integers(len(xs), size=number)
    return [(int(xs[index]), int(ys[index])) for index in drawn]


def photographs(file: str) -> Iterator[Masked]:
    """Pictures with their true masks bool (H, W)."""
    masks: dict[str, list[Any]] = {}
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        masks.setdefault(record["image"], []).append(record["segmentation"])
    for name, references in masks.items():
        image = Image.open(Path(file).parent / name)
        yield image, [as_mask(reference, image.height, image.width) for reference in references]


def scenes(number: int) -> Iterator[Masked]:
    for seed in range(_FIRST_SEED, _FIRST_SEED + number):
        scene = render_scene(seed, split="test", size=384)
        yield Image.fromarray(scene.image), [mask > 0 for mask in scene.masks]


def clicks(folder: Path, seed: int = 0, number_each: int = 25) -> None:
    """Print how large what is chosen at random clicks is, with and without the rule on specks."""
    segmenter = ClassicalSegmenter()
    shares: dict[str, list[list[float]]] = {"before": [], "after": []}
    for number, file in enumerate(sorted(file for file in folder.iterdir() if file.suffix in (".jpg", ".png"))):
        picture = segmenter.encode(Image.open(file))
        places = np.random.default_rng([seed, number]).random((number_each, 2)) * [picture.width, picture.height]
        for ranking, least in (("before", 0.0), ("after", ClassicalEncodedImage.min_area)):
            picture.min_area = least
            for x, y in places.tolist():
                found = picture.masks(points=[(x, y)], num_candidates=9)
                shares[ranking].append([float(it.mask.mean()) for it in found])
    print(f"{segmenter.name}: {len(shares['after'])} clicks")
    for ranking, of_clicks in shares.items():
        specks = [others for first, *others in of_clicks if first < _SPECK]
        missed = sum(any(_SPECK <= share <= _USABLE for share in others) for others in specks)
        smallest, median = (how([first for first, *_ in of_clicks]) for how in (min, np.median))
        print(f"{ranking:6} {len(specks)} specks, {missed} of them beside a usable candidate; ", end="")
        print(f"chosen: {smallest:.5f} of the picture at least, {median:.3f} in the median")


def main(source: str, model: str | None = None) -> None:
    segmenter = open_segmenter(model)
    rows = []
    for image, masks in scenes(int(source)) if source.isdigit() else photographs(source):
        picture = segmenter.encode(image)
        found = [it.mask for it in picture.everything(max_regions=20)]
        for true in masks:
            box = box_around(true)
            plain = as_mask({"box_xyxy": list(box)}, picture.height, picture.width)
            by_box = [iou(it.mask, true) for it in picture.masks(box_xyxy=box)]
            by_point = [iou(it.mask, true) for it in picture.masks(points=[middle(true)])]
            # A segmenter that finds nothing has overlap 0.
            rows.append([iou(plain, true), *(by_box or [0.0])[:1], max(by_box, default=0.0)])
            rows[-1] += [*(by_point or [0.0])[:1], max(by_point, default=0.0)]
            clicked = [[iou(it.mask, true) for it in picture.masks(points=[point])] for point in anywhere(true)]
            rows[-1] += [np.mean([values[0] if values else 0.0 for values in clicked])]
            rows[-1] += [np.mean([max(values, default=0.0) for values in clicked])]
            rows[-1].append(max((iou(mask, true) for mask in found), default=0.0))
    print(f"{segmenter.name}: {len(rows)} regions")
    names = ["plain box", "box, first", "box, best of 3", "middle, first", "middle, best of 3"]
    names += ["anywhere, first", "anywhere, best of 3", "best of everything"]
    for name, value in zip(names, np.mean(rows, axis=0), strict=True):
        print(f"{name:19} {value:.3f}")


if __name__ == "__main__":
    if Path(sys.argv[1]).is_dir():
        clicks(Path(sys.argv[1]), *map(int, sys.argv[2:]))
    else:
        main(*sys.argv[1:])
