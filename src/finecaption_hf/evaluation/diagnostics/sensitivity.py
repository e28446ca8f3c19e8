"""Is the mask used at all? How the likelihood of answers changes when the region is swapped.

Under the region's own mask and under others, the same answers are scored. Each image goes through the high-resolution
towers once, and each distinct mask has one prefix, which the answers of all regions share.

Dimension letters: H W picture in pixels, h w low-resolution input in pixels, p patch of the mask-aware tower in pixels,
R regions of a picture.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...asking import FineCaptionDescriber
from ...data.examples import DataError, Example
from ...masks_finecaption import MaskError, RegionMask
from ...pipeline_finecaption import AskedImage, AskedRegion, answer_all, requests_about
from ...prompts_finecaption import find_question
from ..predicting import walk
from ..predictions import Prediction
from .likelihood import AnswerScorer, Branch, same_tokens
from .tables import Truth, as_json, cell, diagnostic, mean_interval, plain_text, told

SWAPS: Mapping[str, str] = {
    "other_region": "other region",
    "other_answer": "other region with another answer",
    "complement": "complement",
    "whole_image": "whole image",
    "shuffled": "shuffled mask",
}
"""What takes the place of the region's mask, with its name in the table."""

_BEST = {
    "best": ("own mask is best", "among the own mask and those of the other regions"),
    "best_of_differing": ("own is best, answers differ", "among the own mask and those of regions with another answer"),
}


@dataclass
class _Score:
    """A branch with what was measured: for each of `SWAPS` and `_BEST` a number, or why there is none."""

    image: str
    label: str
    own: float
    found: dict[str, float | str] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)


@dataclass
class _Asked:
    """A branch that is scored.

    Attributes:
        region: its place in the example.
        answer: that is scored.
        wordings: all that count as the same answer; where there is none, the answer itself.
        asked, number: where the model's own answer will be.
        branch, same: once the answer is settled: its tokens, and the wordings in one form.
    """

    region: int
    label: str
    question: str
    answer: str
    wordings: Sequence[str]
    asked: AskedRegion
    number: int
    branch: Branch = ((), ())
    same: frozenset[str] = frozenset()


def mask_sensitivity(
    describer: FineCaptionDescriber,
    dataset: Iterable[Example],
    *,
    answers: str = "reference",
    truth: Truth | None = None,
    limit: int | None = None,
    max_others: int = 8,
    seed: int = 0,
    on_example: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """How much the mean log-likelihood per token of each region's answers falls when its mask is swapped.

    Five swaps: the mask of another region of the same example (the mean over them); of one to which the right answer is
    another (to "Which viewpoint?" all regions of a picture have the same one, and no mask should matter); the
    complement; the whole image; and a shuffled mask. For the latter the patches of the mask-aware tower are permuted,
    among those that lie wholly in the picture: the alpha convolution then gives the same contributions in other places,
    so the area stays, and nothing but where the region lies is lost. Permuted pixels would be an even grey to it.

    A model that does not use the mask has a change of exactly 0 everywhere, as regions whose image tokens are the same
    bit by bit are scored once.

    Args:
        describer: the model.
        dataset: examples; their answers are scored, the first reference of each branch.
        answers: "reference", or "own" for the greedy answer that the model itself gives under the region's own mask.
        truth: where it knows right answers, all wordings decide whether two regions have different ones; elsewhere the
            references, or the model's own answers, do.
        limit: only so many examples, the first.
        max_others: of more other regions, so many are drawn.
        seed: of the shuffled masks, of drawn regions (together with image and region) and of the intervals.
        on_example: called with the number of examples done.

    Returns:
        `title`, `table`, `notes` and `values`; positive changes mean that the own mask makes the answer likelier.
        What a swap does not apply to is counted in `values`, and told in `notes`.

    Raises:
        ValueError: If an option makes no sense, or nothing could be scored.
    """
    if answers not in ("reference", "own"):
        raise ValueError(f"answers is {answers!r}. Give 'reference' or 'own'.")
    if max_others < 1:
        raise ValueError(f"max_others is {max_others}. Give at least 1.")
    probe = _Probe(describer, answers, truth, max_others, seed)
    rows: list[_Score] = []
    for done, (example, asked) in enumerate(walk(dataset, limit), start=1):
        rows += probe.measure(example, asked)
        on_example(done)
    if not rows:
        raise ValueError(f"No answer could be scored ({told(probe.left_out) or 'there is no example'}).")
    return _result(rows, probe.left_out, answers, max_others, seed)


class _Probe:
    """Measures examples one by one; counts what is left out."""

    def __init__(
        self, describer: FineCaptionDescriber, answers: str, truth: Truth | None, max_others: int, seed: int
    ) -> None:
        self.describer = describer
        self.own_answers = answers == "own"
        self.truth = truth
        self.max_others = max_others
        self.seed = seed
        self.scorer = AnswerScorer(describer.model, describer.processor)
        self.patch: int = describer.model.config.vision_config.patch_size
        self.left_out: Counter[str] = Counter()

    def measure(self, example: Example, asked: list[list[Prediction]]) -> list[_Score]:
        try:
            picture = example.load()
        except (DataError, OSError) as error:
            self.left_out[f"the picture cannot be read ({type(error).__name__})"] += sum(map(len, asked))
            return []
        size = (picture.height, picture.width)
        masks: dict[int, RegionMask] = {}
        for place, (region, row) in enumerate(zip(example.regions, asked, strict=True)):
            try:
                mask = RegionMask(example.reference(region, picture), *size)
            except MaskError as error:
                self.left_out[f"the mask cannot be used ({type(error).__name__})"] += len(row)
                continue
            if mask.area == size[0] * size[1]:
                self.left_out["the region is the whole image"] += len(row)
            else:
                masks[place] = mask
        return self._measure(asked, picture, masks) if masks else []

    def _measure(
        self, asked: list[list[Prediction]], picture: Image.Image, masks: dict[int, RegionMask]
    ) -> list[_Score]:
        # Masks in one row: each region's own, each region's complement, the whole image, then the shuffled ones.
        places = list(masks)
        size = (picture.height, picture.width)
        own = {place: number for number, place in enumerate(places)}
        complement = {place: len(places) + number for number, place in enumerate(places)}
        whole_at = 2 * len(places)
        complements = [RegionMask(~mask.pixels, *size) for mask in masks.values()]
        vision = dict(self.describer.prepare(picture, [*masks.values(), *complements, RegionMask(None, *size)]))
        shuffled = self._add_shuffled(asked, vision, own, whole_at)
        branches = self._branches(asked, picture, masks)
        tokens = self.scorer.image_tokens(vision)
        same = same_tokens(tokens)
        others = {place: self._others(asked, masks, place) for place in places}
        swaps: dict[int, list[int]] = {
            place: [
                own[place],
                *(own[other] for other in others[place]),
                complement[place],
                whole_at,
                *(it for it in [shuffled[place]] if isinstance(it, int)),
            ]
            for place in places
        }
        needed: dict[int, list[int]] = {}
        for number, it in enumerate(branches):
            for group in dict.fromkeys(same[mask] for mask in swaps[it.region]):
                needed.setdefault(group, []).append(number)
        groups = list(needed)
        scores = self.scorer.score(
            tokens[groups], [[branches[number].branch for number in needed[group]] for group in groups]
        )
        by_group = {
            (group, number): score.per_token
            for group, row in zip(groups, scores)
            for number, score in zip(needed[group], row, strict=True)
        }

        wordings = {(it.region, it.label): it.same for it in branches}
        rows = []
        for number, it in enumerate(branches):
            by_mask = {mask: by_group[same[mask], number] for mask in swaps[it.region]}
            row = _Score(asked[it.region][0].image, it.label, by_mask[own[it.region]])
            differing = [
                other
                for other in others[it.region]
                if (other, it.label) in wordings and not wordings[other, it.label] & it.same
            ]
            for swap, best, regions, reason in (
                ("other_region", "best", others[it.region], "there is no other region in the example"),
                ("other_answer", "best_of_differing", differing, "no other region has another answer to it"),
            ):
                _compare(row, swap, best, [by_mask[own[other]] for other in regions], reason)
            row.found["complement"] = row.own - by_mask[complement[it.region]]
            row.found["whole_image"] = row.own - by_mask[whole_at]
            moved_to = shuffled[it.region]
            row.found["shuffled"] = moved_to if isinstance(moved_to, str) else row.own - by_mask[moved_to]
            rows.append(row)
        return rows

    def _add_shuffled(
        self, asked: list[list[Prediction]], vision: dict[str, Any], own: dict[int, int], whole_at: int
    ) -> dict[int, int | str]:
        """Put shuffled masks behind the others; says for each region which it is, or why there is none."""
        values = vision.get("mask_values")
        if values is None:  # the model has no mask input
            return {**own}
        found: dict[int, int | str] = {}
        added: list[torch.Tensor] = []
        for place, number in own.items():
            generator = np.random.default_rng([self.seed, _number(_place(asked[place]))])
            moved = shuffle_patches(values[number], values[whole_at], self.patch, generator)
            if moved is None:
                found[place] = "the order of its patches makes no difference"
            else:
                found[place] = len(values) + len(added)
                added.append(moved)
        vision["mask_values"] = torch.stack([*values, *added])
        vision["image_indices"] = torch.zeros(len(vision["mask_values"]), dtype=torch.long)
        return found

    def _branches(
        self, asked: list[list[Prediction]], picture: Image.Image, masks: Mapping[int, RegionMask]
    ) -> list[_Asked]:
        """What can be scored: the branches of regions that have a mask of their own."""
        found: list[_Asked] = []
        regions: list[AskedRegion] = []
        for place in masks:
            row = asked[place]
            known: Mapping[str, Any] = {}
            if self.truth is not None:
                references = {it.name: it.references[0] for it in row if it.name is not None}
                size = (picture.height, picture.width)
                known = self.truth(row[0].image_id, row[0].region_id, size, references)
            planned: list[tuple[Prediction, str]] = []
            for branch in row:
                question = branch.question or find_question(branch.name or "", self.describer.questions)
                if question is None:
                    self.left_out["the model knows no question of that name"] += 1
                elif self.describer.refusal(question) is not None:
                    self.left_out["the question holds a special token"] += 1
                else:
                    planned.append((branch, question))
            regions.append(AskedRegion(requests_about(((None, question) for _, question in planned), (), ())))
            for number, (branch, question) in enumerate(planned):
                wordings = known.get(branch.name or "") or (() if self.own_answers else branch.references)
                found.append(
                    _Asked(
                        place, branch.name or question, question, branch.references[0], wordings, regions[-1], number
                    )
                )
        if self.own_answers:
            answer_all(
                self.describer,
                [AskedImage.prepare(self.describer.prepare, picture, list(masks.values()), regions)],
            )
        return [it for it in found if self._encode(it)]

    def _encode(self, asked: _Asked) -> bool:
        """Settle what is scored."""
        if self.own_answers:
            asked.answer = asked.asked.text(asked.number) or ""
        try:
            asked.branch = self.scorer.encode(asked.question, asked.answer)
        except ValueError:
            self.left_out["the answer is empty or holds a special token"] += 1
            return False
        asked.same = frozenset(map(plain_text, asked.wordings or (asked.answer,)))
        return True

    def _others(self, asked: list[list[Prediction]], masks: dict[int, RegionMask], place: int) -> list[int]:
        """The regions whose masks are put in the place of one's own."""
        own = masks[place].pixels
        others = [it for it, mask in masks.items() if it != place and not np.array_equal(mask.pixels, own)]
        if len(others) > self.max_others:
            generator = np.random.default_rng([self.seed, _number(f"{_place(asked[place])}|others")])
            others = sorted(generator.choice(others, self.max_others, replace=False).tolist())
        return others


def shuffle_patches(
    region: torch.Tensor, whole: torch.Tensor, patch: int, generator: np.random.Generator
) -> torch.Tensor | None:
    """A region mask with its patches in another order.

    Args:
        region (`torch.Tensor` of shape `(1, h, w)`): normalised mask values of the region.
        whole (`torch.Tensor` of shape `(1, h, w)`): those of the whole picture, which is less than the input where that
            is padded. Only patches that lie wholly in the picture are moved.
        patch: p, side of a patch in pixels.
        generator: draws the order.

    Returns:
        `torch.Tensor` of shape `(1, h, w)`, `None` where no order of the patches makes a difference.
    """
    rows, columns = region.shape[1] // patch, region.shape[2] // patch

    def patches(values: torch.Tensor) -> torch.Tensor:
        cut = values[0, : rows * patch, : columns * patch]
        return cut.reshape(rows, patch, columns, patch).transpose(1, 2).reshape(rows * columns, patch, patch)

    movable = (patches(whole) == whole.max()).all(dim=(1, 2)).nonzero()[:, 0].numpy()
    content = patches(region)
    if len(movable) < 2 or bool((content[movable] == content[movable[0]]).all()):
        return None
    while True:
        moved = content.clone()
        moved[movable] = content[generator.permutation(movable)]
        if not torch.equal(moved, content):
            break
    result = region.clone()
    result[0, : rows * patch, : columns * patch] = (
        moved.reshape(rows, columns, patch, patch).transpose(1, 2).reshape(rows * patch, columns * patch)
    )
    return result


def _place(row: Sequence[Prediction]) -> str:
    return f"{row[0].image}|{row[0].region_index}"


def _number(text: str) -> int:
    return zlib.crc32(text.encode())


def _compare(row: _Score, swap: str, best: str, likelihoods: list[float], reason: str) -> None:
    """Note the mean change over other regions, and whether the own mask is the best; a tie counts in parts."""
    if not likelihoods:
        row.found[swap] = row.found[best] = reason
        return
    # Differences first: the mean of equal numbers need not be that number.
    row.found[swap] = sum(row.own - value for value in likelihoods) / len(likelihoods)
    tied = 1 + sum(value == row.own for value in likelihoods)
    row.found[best] = 1 / tied if row.own >= max(likelihoods) else 0.0
    row.chance[best] = 1 / (1 + len(likelihoods))


# --- the result -------------------------------------------------------------------------------------------------------


def _result(
    rows: list[_Score], left_out: Mapping[str, int], answers: str, max_others: int, seed: int
) -> dict[str, Any]:
    labels = list(dict.fromkeys(row.label for row in rows))
    values: dict[str, Any] = {
        "answers": answers,
        "seed": seed,
        "max_others": max_others,
        "images": len({row.image for row in rows}),
        "left_out": dict(left_out),
        "by_question": {},
    }
    lines = []
    for label in [None, *labels]:
        chosen = [row for row in rows if label in (None, row.label)]
        found: dict[str, Any] = {"branches": len(chosen), "log_likelihood_per_token": _mean(chosen, "own", seed)}
        for name in (*SWAPS, *_BEST):
            found[name] = _mean(chosen, name, seed)
        line = ["all" if label is None else label, str(len(chosen))]
        line += [cell(found[name]) for name in (*SWAPS, *_BEST)]
        example = {name: as_json(value) if name != "branches" else value for name, value in found.items()}
        for name in (*SWAPS, *_BEST):
            reasons = Counter(value for row in chosen if isinstance(value := row.found[name], str))
            example[f"{name}_not_applicable"] = dict(reasons)
        for name in _BEST:
            chances = [row.chance[name] for row in chosen if name in row.chance]
            example[f"{name}_by_chance"] = round(sum(chances) / len(chances), 4) if chances else None
        lines.append(line)
        if label is None:
            values["all"] = example
        else:
            values["by_question"][label] = example
    whose = "the references" if answers == "reference" else "the model's own greedy answers"
    notes = [
        f"Mean log-likelihood per token (natural logarithm; the token that ends the answer counts) of {whose} under "
        "the region's own mask, minus that under the swapped mask. 0 means that the mask does not matter. 95 % "
        "intervals, resampled by image.",
        "Shuffled mask: the mask-aware tower's patches permuted among those that lie in the picture, "
        f"seed {seed} with image and region; the area stays the same.",
    ]
    for name, (_, among) in _BEST.items():
        chance = values["all"][f"{name}_by_chance"]
        if chance is not None:
            notes.append(
                f"{_BEST[name][0].capitalize()}: share of answers that are likeliest under the own mask, {among}; a "
                f"tie counts in parts. By chance it would be {chance:.3f}."
            )
    for name, title in SWAPS.items():
        reasons = values["all"][f"{name}_not_applicable"]
        if reasons:
            notes.append(f"Not applicable, {title}: {told(reasons)}.")
    if left_out:
        notes.append(f"Not scored: {told(left_out)}.")
    columns = ["question", "answers", *SWAPS.values(), *(title for title, _ in _BEST.values())]
    title = "Is the mask used?" + ("" if answers == "reference" else " (the model's own answers)")
    return diagnostic(title, columns, lines, notes, values)


def _mean(rows: list[_Score], name: str, seed: int) -> Any:
    pairs = [(row.own if name == "own" else row.found[name], row.image) for row in rows]
    numbers = [(value, image) for value, image in pairs if not isinstance(value, str)]
    return mean_interval([value for value, _ in numbers], [image for _, image in numbers], seed)
