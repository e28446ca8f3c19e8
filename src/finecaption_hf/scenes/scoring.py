"""How often a model answers right on rendered scenes whose combinations it has never seen, by free generation."""

import math
from collections.abc import Callable
from itertools import combinations
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..captioning import caption_regions
from .language import ATTRIBUTE_NAMES, QUESTIONS, answers, exact_match
from .rendering import Split, render_scene

if TYPE_CHECKING:
    from ..modeling_finecaption import FineCaptionForConditionalGeneration
    from ..processing_finecaption import FineCaptionProcessor


def score_scenes(
    model: "FineCaptionForConditionalGeneration",
    processor: "FineCaptionProcessor",
    n: int,
    *,
    seed: int = 0,
    size: int = 256,
    split: Split = "test",
    names: tuple[str, ...] = ATTRIBUTE_NAMES,
    batch_size: int = 32,
    on_scene: Callable[[int], Any] | None = None,
) -> dict[str, Any]:
    """Ask a model about every region of `n` scenes and compare its answers with the truth, word for word.

    Args:
        model, processor: a FineCaption checkpoint.
        n: scenes; each has two to four regions.
        seed: the first scene's seed; the others follow.
        size: pixels a side of the rendered pictures.
        split: "test" shows only combinations of color, shape and texture that training holds out.
        names: the questions, of `QUESTIONS`. "global" is asked once per scene, about the whole picture.
        batch_size: region-question pairs that are decoded together.
        on_scene: called with the number of scenes done, for a progress bar.

    Returns:
        `accuracy` by question; `intervals_95` by question (Wilson); `both_of_a_pair`: over all pairs of regions of one
        picture whose true answers differ, how often both answers are right, which is 0 for a model that does not use
        the mask; the numbers of scenes and regions, the seed, the size and the split.

    Raises:
        ValueError: If there is no scene, or a question is unknown.
    """
    if n < 1:
        raise ValueError(f"n is {n}. Score at least one scene.")
    unknown = [name for name in names if name not in QUESTIONS]
    if unknown or not names:
        raise ValueError(f"Unknown questions: {unknown}. Choose from: {', '.join(QUESTIONS)}.")
    regional = [name for name in names if name != "global"]
    right: dict[str, list[bool]] = {name: [] for name in names}
    pairs: dict[str, list[bool]] = {name: [] for name in names}
    num_regions = 0
    for done in range(1, n + 1):
        scene = render_scene(seed + done - 1, size=size, split=split)
        image = Image.fromarray(scene.image)
        truths = [answers(scene.objects, index) for index in range(len(scene.objects))]

        def ask(masks: list[Any], asked: list[str], image: Image.Image = image) -> list[list[str]]:
            questions = [QUESTIONS[name] for name in asked]
            return caption_regions(model, processor, image, masks, questions, max_new_tokens=48, batch_size=batch_size)

        if "global" in names:
            ((given_caption,),) = ask([None], ["global"])
            right["global"].append(exact_match("global", given_caption, truths[0]["global"]))
        captions = ask(list(scene.masks), regional) if regional else []
        for column, name in enumerate(regional):
            given = [exact_match(name, row[column], truth[name]) for row, truth in zip(captions, truths)]
            right[name] += given
            pairs[name] += [
                given[a] and given[b]
                for a, b in combinations(range(len(truths)), 2)
                if truths[a][name] != truths[b][name]
            ]
        num_regions += len(truths)
        if on_scene is not None:
            on_scene(done)
    return {
        "accuracy": {name: round(_mean(values), 4) for name, values in right.items()},
        "intervals_95": {name: [round(bound, 4) for bound in wilson(values)] for name, values in right.items()},
        "both_of_a_pair": {name: round(_mean(values), 4) for name, values in pairs.items() if values},
        "scenes": n,
        "regions": num_regions,
        "seed": seed,
        "size": size,
        "split": split,
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
