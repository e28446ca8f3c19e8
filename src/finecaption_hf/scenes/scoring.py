"""How often a model answers right on rendered scenes whose combinations it has never seen, by free generation."""

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

from PIL import Image

from ..asking import Describer
from ..pipeline_finecaption import AskedImage, AskedRegion, answer_all, requests_about
from ..prompts_finecaption import find_question, no_such
from .attributes import Split
from .language import ATTRIBUTE_NAMES, QUESTIONS, accepted, is_right
from .rendering import Scene, render_scene

_SCENES_AT_ONCE = 8

Key = tuple[int, int | None, str]
"""(scene, region or `None` for the whole picture, question)"""


def score_scenes(
    describer: Describer,
    n: int,
    *,
    seed: int = 0,
    size: int = 256,
    split: Split = "test",
    names: tuple[str, ...] = ATTRIBUTE_NAMES,
    num_regions: int | None = None,
    use_mask: bool = True,
    on_scene: Callable[[int], Any] | None = None,
) -> dict[str, Any]:
    """Ask a model about every region of `n` scenes and compare its answers with the truth, word for word.

    An answer is right if it is one of the wordings of the truth. A question is asked where it applies.

    Args:
        describer: the model; what it does not answer is wrong.
        n: scenes; each has two or three regions.
        seed: the first scene's seed; the others follow.
        size: pixels a side of the rendered pictures.
        split: "test" shows only combinations that training holds out.
        names: the questions, of `QUESTIONS`. "global" is asked once per scene, about the whole picture.
        num_regions: as for `render_scene`.
        use_mask: False asks every question with the whole image as region, for comparison.
        on_scene: called with the number of scenes done, for a progress bar.

    Returns:
        `accuracy` by question; `intervals_95` by question (Wilson); `counts`, how often each was asked;
        `both_of_a_pair`: over all pairs of regions of one picture whose true answers share no wording, how often both
        answers are right, which is 0 for a model that does not use the mask; `differing`: over the same pairs, how
        often the two answers differ at all; the numbers of scenes and regions, the seed, the size and the split.

    Raises:
        ValueError: If there is no scene, or a question is unknown.
    """
    if n < 1:
        raise ValueError(f"n is {n}. Score at least one scene.")
    if not names:
        raise ValueError(f"No question was given. Give at least one of {', '.join(QUESTIONS)}.")
    if unknown := [name for name in names if name not in QUESTIONS]:
        raise ValueError(no_such("question", unknown[0], QUESTIONS))
    right: dict[str, list[bool]] = {name: [] for name in names}
    pairs: dict[str, list[bool]] = {name: [] for name in names}
    differing: dict[str, list[bool]] = {name: [] for name in names}
    regions = 0
    for start in range(0, n, _SCENES_AT_ONCE):
        seeds = range(seed + start, seed + min(start + _SCENES_AT_ONCE, n))
        scenes = [render_scene(number, size=size, split=split, num_regions=num_regions) for number in seeds]
        truths = [[accepted(scene, index) for index in range(len(scene.regions))] for scene in scenes]
        captions = _ask(describer, scenes, truths, names, use_mask)
        results = {key: is_right(caption, truths[key[0]][key[1] or 0][key[2]]) for key, caption in captions.items()}
        for (_, _, name), result in results.items():
            right[name].append(result)
        for number, truth in enumerate(truths):
            for first, second in combinations(range(len(truth)), 2):
                for name in names:
                    a, b = (number, first, name), (number, second, name)
                    if a in results and b in results and not set(truth[first][name]) & set(truth[second][name]):
                        pairs[name].append(results[a] and results[b])
                        differing[name].append(captions[a] != captions[b])
        regions += sum(len(truth) for truth in truths)
        if on_scene is not None:
            on_scene(start + len(scenes))
    return {
        "accuracy": {name: round(_mean(values), 4) for name, values in right.items() if values},
        "intervals_95": {
            name: [round(bound, 4) for bound in wilson(values)] for name, values in right.items() if values
        },
        "counts": {name: len(values) for name, values in right.items()},
        "both_of_a_pair": {name: round(_mean(values), 4) for name, values in pairs.items() if values},
        "differing": {name: round(_mean(values), 4) for name, values in differing.items() if values},
        "scenes": n,
        "regions": regions,
        "seed": seed,
        "size": size,
        "split": split,
    }


def _ask(
    describer: Describer,
    scenes: Sequence[Scene],
    truths: Sequence[Sequence[dict[str, tuple[str, ...]]]],
    names: Sequence[str],
    use_mask: bool,
) -> dict[Key, str]:
    """What the model says to all that applies to some scenes."""
    images = []
    keys: list[list[list[Key]]] = []
    for number, (scene, of_scene) in enumerate(zip(scenes, truths, strict=True)):
        rows: list[list[Key]] = [
            [(number, index, name) for name in names if name in truth and name != "global"]
            for index, truth in enumerate(of_scene)
        ]
        if "global" in names:
            rows[0].insert(0, (number, None, "global"))
        keys.append(rows)
        texts = [[(name, find_question(name, describer.questions) or name) for *_, name in row] for row in rows]
        regions = [AskedRegion(requests_about(row, (), ())) for row in texts]
        references = [mask if use_mask else None for mask in scene.masks]
        images.append(AskedImage.prepare(describer.prepare, Image.fromarray(scene.image), references, regions))
    answer_all(describer, images)
    return {
        key: image.regions[index].text(place) or ""
        for image, of_image in zip(images, keys, strict=True)
        for index, row in enumerate(of_image)
        for place, key in enumerate(row)
    }


def wilson(values: list[bool], z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval of a share (Wilson 1927), 95 % by default."""
    count = len(values)
    share = _mean(values)
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def _mean(values: list[bool]) -> float:
    return sum(values) / len(values)
