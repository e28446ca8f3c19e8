"""Rendered scenes as a data set on disk, in the package's JSONL."""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from ..masks_finecaption import encode_rle
from .attributes import Split
from .language import answers
from .rendering import REFERENCE_SIZE, Scene, render_scene

RECORDS_FILE = "records.jsonl"


def scene_record(scene: Scene, image: str, *, with_masks: bool = True) -> dict[str, Any]:
    """A scene as one row: its regions with masks (COCO RLE) and a branch per question, then the whole picture.

    Args:
        image: the picture's name in the data set.
        with_masks: False makes the whole picture the only region. Where it shows one object or person, all questions
            are asked about it, else only for its caption.
    """
    if not with_masks:
        texts = answers(scene, 0)
        asked = texts if len(scene.regions) == 1 else {"global": texts["global"]}
        branches = [{"name": name, "answer": answer} for name, answer in asked.items()]
        regions = [{"id": "image", "mask": None, "branches": branches}]
        return {"image": image, "id": f"{scene.split}-{scene.seed}", "regions": regions}
    regions = []
    for index, mask in enumerate(scene.masks):
        texts = answers(scene, index)
        whole = texts.pop("global")
        branches = [{"name": name, "answer": answer} for name, answer in texts.items()]
        regions.append({"id": str(index), "mask": encode_rle(mask), "branches": branches})
    regions.append({"id": "image", "mask": None, "branches": [{"name": "global", "answer": whole}]})
    return {"image": image, "id": f"{scene.split}-{scene.seed}", "regions": regions}


def write_scenes(
    out: str | os.PathLike[str],
    n: int,
    *,
    seed: int = 0,
    size: int = REFERENCE_SIZE,
    split: Split = "train",
    num_regions: int | None = None,
    with_masks: bool = True,
    processes: int | None = None,
    on_scene: Callable[[int], Any] | None = None,
) -> Path:
    """Render scenes into a folder: PNG pictures under `images`, and `records.jsonl`, which is written last.

    Args:
        n: scenes; the first has `seed`, the others follow.
        size, split, num_regions: as for `render_scene`.
        with_masks: as for `scene_record`.
        processes: how many render at once; by default one for each core, and none besides this one for few scenes.
        on_scene: called with the number of scenes done, for a progress bar.

    Returns:
        The path of the records.

    Raises:
        ValueError: If n is less than 1.
        FileExistsError: If the folder holds records already.
    """
    if n < 1:
        raise ValueError(f"n is {n}. Render at least one scene.")
    folder = Path(out)
    records = folder / RECORDS_FILE
    if records.exists():
        raise FileExistsError(f"{records} exists. Choose another folder, or delete it first.")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    render = partial(_write_scene, folder, with_masks, size=size, split=split, num_regions=num_regions)
    processes = processes or (os.cpu_count() or 1 if n >= 256 else 1)
    partial_file = records.with_suffix(".partial")
    with partial_file.open("w", encoding="utf-8") as file:
        for done, row in enumerate(_rendered(render, range(seed, seed + n), processes), start=1):
            file.write(json.dumps(row) + "\n")
            if on_scene is not None:
                on_scene(done)
    partial_file.replace(records)
    return records


def _rendered(render: Callable[[int], dict[str, Any]], seeds: range, processes: int) -> Iterator[dict[str, Any]]:
    if processes == 1:
        yield from map(render, seeds)
        return
    with ProcessPoolExecutor(processes) as pool:
        waiting = iter(seeds)
        # A bounded number of results in flight, so that memory does not grow with n.
        while chunk := list(islice(waiting, 64 * processes)):
            yield from pool.map(render, chunk, chunksize=8)


def _write_scene(folder: Path, with_masks: bool, seed: int, **kwargs: Any) -> dict[str, Any]:
    scene = render_scene(seed, **kwargs)
    name = f"images/{scene.split}-{seed:07d}.png"
    Image.fromarray(scene.image).save(folder / name, compress_level=1)
    return scene_record(scene, name, with_masks=with_masks)
