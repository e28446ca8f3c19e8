"""How near masks come to true ones, from a tight box and from one point, and how often a click chooses a speck.

    python benchmarks/segmentation.py [--photographs NAME=FILE|FOLDER ..] [--scenes NUMBER] [--model ID_OR_FOLDER]
                                      [--clicks NUMBER] [--seeds N N ..] [--workers NUMBER] [--json FILE]
    python benchmarks/segmentation.py --show FILE                 # tables of an earlier run

Photographs are a folder of them, or a file of lines {"image": path beside the file, "segmentation": region reference};
`--scenes` are rendered, of seeds by which nothing was chosen. Where there are true masks, means of intersection over
union are told: points lie in a region's middle, and at three places anywhere in it.

Clicks lie anywhere in photographs, so many for every seed and all of a folder together. The classical segmenter answers
each by its rule on specks and, for comparison, as it would without that rule; both see the same cuts. A model ranks by
itself: with one there is nothing to compare.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finecaption_hf.masks_finecaption import as_mask, box_around
from finecaption_hf.scenes import render_scene
from finecaption_hf.segmentation import open_segmenter
from finecaption_hf.segmentation.classical import ClassicalEncodedImage

Masked = tuple[str, Image.Image, list[np.ndarray]]  # name, picture, true masks bool (H, W), perhaps none

_FIRST_SEED = 1000  # the classical segmenter's rules were chosen with scenes of the first dozens
_SPECK, _USABLE = 0.0005, 0.5  # shares of the picture: below the first is a speck, from there to the second usable
_RULES = {"without": 0.0, "with": ClassicalEncodedImage.min_area}
_SUFFIXES = (".jpg", ".jpeg", ".png")
REGIONS = ("plain box", "box, first", "box, best of 3", "middle, first", "middle, best of 3")
REGIONS += ("anywhere, first", "anywhere, best of 3", "best of 20 of everything")


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


def photographs(source: Path) -> Iterator[Masked]:
    if source.is_dir():
        for file in sorted(file for file in source.iterdir() if file.suffix in _SUFFIXES):
            yield file.name, Image.open(file), []
        return
    masks: dict[str, list[Any]] = defaultdict(list)
    for line in source.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        masks[record["image"]].append(record["segmentation"])
    for name, references in masks.items():
        image = Image.open(source.parent / name)
        yield Path(name).name, image, [as_mask(reference, image.height, image.width) for reference in references]


def scenes(number: int) -> Iterator[Masked]:
    for seed in range(_FIRST_SEED, _FIRST_SEED + number):
        scene = render_scene(seed, split="test", size=384)
        yield str(seed), Image.fromarray(scene.image), [mask > 0 for mask in scene.masks]


def regions(model: str | None, pictures: Sequence[Masked]) -> dict[str, float]:
    """Means over all true masks, and how many there are."""
    segmenter = open_segmenter(model)
    rows = []
    for _, image, masks in pictures:
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
            rows[-1] += [float(np.mean([values[0] if values else 0.0 for values in clicked]))]
            rows[-1] += [float(np.mean([max(values, default=0.0) for values in clicked]))]
            rows[-1].append(max((iou(mask, true) for mask in found), default=0.0))
    return {"regions": len(rows), **dict(zip(REGIONS, np.mean(rows, axis=0).tolist(), strict=True))}


def clicks(pictures: Sequence[Masked], number: int, seed: int) -> dict[str, Any]:
    """What is chosen at `number` places anywhere in pictures; each picture is as likely as another.

    Returns:
        By rule: `specks` chosen, those `missed` although a usable candidate was there, those `large` that are more
        than usable, the least and the median share of the picture; and of clicks in true masks, of which the smallest
        around each counts, how many there are and the mean `iou`.
    """
    segmenter = open_segmenter(None)
    generator = np.random.default_rng(seed)
    chosen = generator.integers(len(pictures), size=number)
    places = generator.random((number, 2))
    shares: dict[str, list[list[float]]] = {rule: [] for rule in _RULES}
    overlaps: dict[str, list[float]] = {rule: [] for rule in _RULES}
    for index, (_, image, masks) in enumerate(pictures):
        picture = segmenter.encode(image)
        for x, y in (places[chosen == index] * [picture.width, picture.height]).tolist():
            around = [true for true in masks if true[int(y), int(x)]]
            for rule, least in _RULES.items():
                picture.min_area = least  # type: ignore[attr-defined]
                found = [it.mask for it in picture.masks(points=[(x, y)], num_candidates=9)]
                shares[rule].append([float(mask.mean()) for mask in found])
                if around:
                    overlaps[rule].append(iou(found[0], min(around, key=lambda true: int(true.sum()))))
    figures: dict[str, Any] = {}
    for rule, of_clicks in shares.items():
        firsts = np.array([first for first, *_ in of_clicks])
        specks = [others for first, *others in of_clicks if first < _SPECK]
        figures[rule] = {
            "specks": len(specks),
            "missed": sum(any(_SPECK <= share <= _USABLE for share in others) for others in specks),
            "large": int((firsts > _USABLE).sum()),
            "least": float(firsts.min()),
            "median": float(np.median(firsts)),
            "in_masks": len(overlaps[rule]),
            "iou": float(np.mean(overlaps[rule])) if overlaps[rule] else None,
        }
    return figures


def remember_cuts() -> None:
    """Make OpenCV's cuts, which take nearly all of the time, once where both rules ask for the same."""
    import cv2

    cut, made = cv2.grabCut, {}

    def grab_cut(pixels: np.ndarray, trimap: np.ndarray, *rest: Any) -> None:
        key = pixels.tobytes() + trimap.tobytes()
        if key not in made:
            cut(pixels, trimap, *rest)
            while len(made) > 16:
                del made[next(iter(made))]
            made[key] = trimap.copy()
        trimap[:] = made[key]

    cv2.grabCut = grab_cut


def show(figures: dict[str, Any]) -> None:
    """The tables of docs/segmentation.md."""
    print(figures["segmenter"])
    if found := figures["regions"]:
        print("\n| mask |", " | ".join(f"{name} ({of['regions']} regions)" for name, of in found.items()), "|")
        print("|---|" + "---|" * len(found))
        for row in REGIONS:
            print(f"| {row} |", " | ".join(f"{of[row]:.3f}" for of in found.values()), "|")
    if figures["clicks"]:
        print("\n| clicks | seed | rule | specks | of them beside a usable one | too large | median | IoU in masks |")
        print("|---|---|---|---|---|---|---|---|")
    for name, of in figures["clicks"].items():
        for seed, by_rule in of["seeds"].items():
            for rule, row in by_rule.items():
                overlap = "" if row["iou"] is None else f"{row['iou']:.3f} ({row['in_masks']})"
                cells = (row["specks"], row["missed"], row["large"], f"{row['median']:.3f}", overlap)
                print(f"| {of['clicks']} in {name} | {seed} | {rule} |", " | ".join(map(str, cells)), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", nargs="+", default=[], metavar="NAME=FILE|FOLDER")
    parser.add_argument("--scenes", type=int, default=0, metavar="NUMBER")
    parser.add_argument("--model", metavar="ID_OR_FOLDER")
    parser.add_argument("--clicks", type=int, default=150, metavar="NUMBER", help="for each of the seeds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--workers", type=int, default=1, metavar="NUMBER", help="processes that share the work")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--show", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if arguments.show:
        show(json.loads(arguments.show.read_text(encoding="utf-8")))
        return
    model = arguments.model
    sets = {
        name: list(photographs(Path(path))) for name, _, path in (it.partition("=") for it in arguments.photographs)
    }
    with ProcessPoolExecutor(arguments.workers, get_context("spawn"), remember_cuts) as pool:
        measured = {
            name: pool.submit(regions, model, pictures)
            for name, pictures in sets.items()
            if any(it[2] for it in pictures)
        }
        if arguments.scenes:
            measured["scenes"] = pool.submit(regions, model, list(scenes(arguments.scenes)))
        clicked = {
            name: {str(seed): pool.submit(clicks, pictures, arguments.clicks, seed) for seed in arguments.seeds}
            for name, pictures in sets.items()
            if model is None
        }
    # The pool has ended, so that all results are there.
    figures: dict[str, Any] = {
        "segmenter": open_segmenter(model).name,
        "photographs": {name: [it[0] for it in pictures] for name, pictures in sets.items()},
        "regions": {name: job.result(0) for name, job in measured.items()},
        "clicks": {
            name: {"clicks": arguments.clicks, "seeds": {seed: job.result(0) for seed, job in jobs.items()}}
            for name, jobs in clicked.items()
        },
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    show(figures)


if __name__ == "__main__":
    main()
