"""Rendered scenes as a data set on disk, in the package's JSONL."""

import json
import os
import re
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.encoding import encode_rle
from ..data.examples import DataError, Example
from .attributes import SPLITS, Split, check_split
from .language import accepted, answers, is_right
from .rendering import REFERENCE_SIZE, Scene, check_arguments, render_scene

RECORDS_FILE = "records.jsonl"
_MANY = 256  # scenes that pay for starting processes
_CHUNK = 8  # scenes that a process draws before it hands back their rows


def scene_example(scene: Scene, image: str, *, with_masks: bool = True) -> dict[str, Any]:
    """A scene as one row: its regions with masks (COCO RLE) and a branch per question, then the whole picture.

    Args:
        image: the picture's name in the data set.
        with_masks: False makes the whole picture the only region. Where it shows one object or person, all questions
            are asked about it, else only for its caption.
    """
    regions: list[dict[str, Any]] = []
    if not with_masks:
        texts = answers(scene, 0)
        asked = texts if len(scene.regions) == 1 else {"global": texts["global"]}
        branches = [{"name": name, "answer": answer} for name, answer in asked.items()]
        regions = [{"id": "image", "mask": None, "branches": branches}]
        return {"image": image, "id": f"{scene.split}-{scene.seed}", "regions": regions}
    for index, mask in enumerate(scene.masks):
        texts = answers(scene, index)
        whole = texts.pop("global")
        branches = [{"name": name, "answer": answer} for name, answer in texts.items()]
        regions.append({"id": str(index), "mask": encode_rle(mask), "branches": branches})
    regions.append({"id": "image", "mask": None, "branches": [{"name": "global", "answer": whole}]})
    return {"image": image, "id": f"{scene.split}-{scene.seed}", "regions": regions}


def known_answers(
    record_id: str | int | None,
    region_id: str | int | None,
    image_size: tuple[int, int],
    references: Mapping[str, str],
) -> dict[str, tuple[str, ...]]:
    """All right answers about a region of an example that `scene_example` made, from its ids: the scene is drawn again.

    Args:
        record_id: "test-9000000": split and seed.
        region_id: "0", "1", .., or "image", whose only known answer is the caption of the whole picture.
        image_size: (H, W) of the picture.
        references: answers by name that belong to the region. The scene has to agree with all of them; this tells apart
            other data with such ids, and in how many regions the scene was drawn.

    Returns:
        For each question that applies all wordings of the right answer; empty where nothing is known.
    """
    match = re.fullmatch(rf"({'|'.join(SPLITS)})-(\d{{1,18}})", str(record_id))
    number = re.fullmatch(r"image|\d", str(region_id))
    if match is None or number is None or image_size[0] != image_size[1]:
        return {}
    split, seed = check_split(match[1]), int(match[2])
    for num_regions in (None, 1, 2, 3):
        try:
            truth = _truth(seed, image_size[0], split, num_regions)
        except ValueError:  # a size or seed of which there are no scenes
            return {}
        index = 0 if number[0] == "image" else int(number[0])
        if index >= len(truth):
            continue
        known = truth[index]
        if all(name in known and is_right(answer, known[name]) for name, answer in references.items()):
            return {"global": known["global"]} if number[0] == "image" and len(truth) > 1 else known
    return {}


def shows_scene(example: Example) -> bool:
    """Whether an example is a rendered scene, of which the right answers are known."""
    region = example.regions[0]
    references = {branch.name: branch.answer for branch in region.branches if branch.name is not None}
    try:
        picture = example.load()
    except DataError:
        return False
    return bool(known_answers(example.id, region.id, (picture.height, picture.width), references))


@lru_cache(maxsize=16)
def _truth(seed: int, size: int, split: Split, num_regions: int | None) -> list[dict[str, tuple[str, ...]]]:
    scene = render_scene(seed, size=size, split=split, num_regions=num_regions)
    return [accepted(scene, index) for index in range(len(scene.regions))]


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
        with_masks: as for `scene_example`.
        processes: how many render at once; by default one for each core, and none besides this one for few scenes.
        on_scene: called with the number of scenes done, for a progress bar.

    Returns:
        The path of the examples.

    Raises:
        ValueError: If n or processes is less than 1, or `render_scene` refuses an argument.
        FileExistsError: If the folder holds examples already.
    """
    if n < 1:
        raise ValueError(f"n is {n}. Render at least one scene.")
    if processes is None:
        processes = os.cpu_count() or 1 if n >= _MANY else 1
    if processes < 1:
        raise ValueError(f"processes is {processes}. Give at least 1.")
    check_arguments(seed, size, split, num_regions)
    folder = Path(out)
    examples = folder / RECORDS_FILE
    if examples.exists():
        raise FileExistsError(f"{examples} exists. Choose another folder, or delete it first.")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    render = partial(_write_scene, folder, with_masks, size=size, split=split, num_regions=num_regions)
    partial_file = examples.with_suffix(".partial")
    rendered = _rendered(render, range(seed, seed + n), processes)
    # Closed at once when the caller's function raises, not when the generator happens to be collected.
    with partial_file.open("w", encoding="utf-8") as file, closing(rendered):
        for done, row in enumerate(rendered, start=1):
            file.write(json.dumps(row) + "\n")
            if on_scene is not None:
                on_scene(done)
    partial_file.replace(examples)
    return examples


def _rendered(
    render: Callable[[int], dict[str, Any]], seeds: range, processes: int
) -> Generator[dict[str, Any], None, None]:
    if processes == 1:
        yield from map(render, seeds)
        return
    pool = ProcessPoolExecutor(processes)
    try:
        # A bounded number of results in flight, so that memory does not grow with n; the next ones are under way while
        # these are written.
        chunks = (seeds[start : start + _CHUNK] for start in range(0, len(seeds), _CHUNK))
        waiting = deque(pool.submit(_render_all, render, chunk) for chunk in islice(chunks, 4 * processes))
        while waiting:
            rows = waiting.popleft().result()
            waiting.extend(pool.submit(_render_all, render, chunk) for chunk in islice(chunks, 1))
            yield from rows
    finally:
        # Who stops early does not wait for what is in flight but for the chunk that each process is drawing.
        pool.shutdown(cancel_futures=True)


def _render_all(render: Callable[[int], dict[str, Any]], seeds: range) -> list[dict[str, Any]]:
    return [render(seed) for seed in seeds]


def _write_scene(folder: Path, with_masks: bool, seed: int, **kwargs: Any) -> dict[str, Any]:
    scene = render_scene(seed, **kwargs)
    name = f"images/{scene.split}-{seed:07d}.png"
    Image.fromarray(scene.image).save(folder / name, compress_level=1)
    return scene_example(scene, name, with_masks=with_masks)
