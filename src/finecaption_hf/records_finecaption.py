"""Records of regions: what is asked about the regions of an image, and where the answers, or errors, are written.

A record is `{"region_index", "box_xyxy", "area", "answers": {name: text}}`, or `{"region_index", "error": {..}}`. The
global caption is about the whole image whatever the regions: it is asked once and stands in the record of every region
that asks for it.

Dimension letters: R regions of one image, B regions of several, H W pixels of an image as displayed.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .engine_finecaption import BranchAnswer, BranchRequest
from .image_processing_finecaption import join_vision
from .masks_finecaption import MaskError, as_mask, mask_to_box
from .prompts_finecaption import normalise_name


class AskedBranch(NamedTuple):
    """A question: the image's place among several, the region's in the image (`None`: the whole image), its name."""

    image: int
    region: int | None
    name: str


@dataclass
class RegionRecords:
    """The records of an image's R regions, and what has to be asked for them.

    Args:
        records: one for each region, so far with box and area, or with an error.
        names: of the questions about each region, in the order of its answers.
        branches: for each region that the engine gets, (index of the region or `None` for the whole image, name).
        vision: what the image processor makes of these regions; `None` where there are none.
    """

    records: list[dict[str, Any]]
    names: list[tuple[str, ...]]
    branches: list[list[tuple[int | None, str]]]
    vision: Mapping[str, Any] | None = None

    @classmethod
    def prepare(
        cls,
        image_processor: Any,
        picture: Any,
        size: tuple[int, int],
        references: Sequence[Any],
        names: Sequence[Sequence[str]],
        heads: Sequence[Mapping[str, Any]] | None = None,
        high_res_features: Any = None,
        **kwargs: Any,
    ) -> "RegionRecords":
        """Read the regions of an image; what cannot be one ends in its record.

        Args:
            image_processor (`FineCaptionImageProcessor`): the checkpoint's.
            picture: as it takes it; not used where no region is good.
            size: (H, W) of the picture.
            references: R of them, as `as_mask` takes them, or errors that stand for a region that could not be read.
            names: of the questions about each region.
            heads (*optional*): what each record begins with; by default its `region_index`.
            high_res_features (*optional*): (1, C, h, w), of the picture; it is then prepared without its
                high-resolution form.
            **kwargs: for the image processor.
        """
        heads = heads or [{"region_index": index} for index in range(len(references))]
        found = cls([dict(head) for head in heads], [tuple(asked) for asked in names], [])
        masks: list[Any] = []
        for index, reference in enumerate(references):
            if isinstance(reference, Exception):
                found.fail(index, reference)
                continue
            try:
                mask = as_mask(reference, *size)
            except MaskError as error:
                found.fail(index, error)
                continue
            found.records[index].update(box_xyxy=list(mask_to_box(mask)), area=int(mask.sum()))
            regional = [(index, name) for name in found.names[index] if not is_global(name)]
            if regional:
                masks.append(mask)
                found.branches.append(list(regional))
        asked = (name for index in found.good for name in found.names[index] if is_global(name))
        whole: list[tuple[int | None, str]] = [(None, name) for name in dict.fromkeys(asked)]
        # Where the whole image is a region anyway, they share its prefix.
        same = [of_region for of_region in found.branches if references[of_region[0][0] or 0] is None]
        if whole and same:
            same[0] += whole
        elif whole:
            masks.append(None)
            found.branches.append(whole)
        if masks and high_res_features is None:
            found.vision = image_processor(picture, masks=masks, return_tensors="pt", **kwargs)
        elif masks:
            vision = image_processor(picture, masks=masks, return_tensors="pt", high_res_size=None, **kwargs)
            found.vision = {**vision, "high_res_features": high_res_features}
        return found

    @property
    def good(self) -> list[int]:
        """The regions without an error."""
        return [index for index, record in enumerate(self.records) if "error" not in record]

    def fail(self, index: int, error: Exception) -> None:
        """Write into a region's record why it cannot be described."""
        for key in ("box_xyxy", "area"):
            self.records[index].pop(key, None)
        self.records[index]["error"] = {"type": type(error).__name__, "message": str(error)}

    def asks(self, index: int | None, name: str) -> bool:
        """Whether an answer is still needed: by that region, or for the whole image (`None`) by any."""
        return any(name in self.names[of] for of in self.good if index in (of, None))


def ask(
    images: Sequence[RegionRecords], request: Callable[[AskedBranch], BranchRequest]
) -> tuple[dict[str, Any] | None, list[list[AskedBranch]], list[list[BranchRequest]]]:
    """What the engine gets for several images.

    Args:
        images: prepared ones.
        request: says how a branch is to be answered.

    Returns:
        The vision inputs of all B regions, `None` where B is 0; for each region its branches, and their requests.
    """
    branches = [
        [AskedBranch(number, index, name) for index, name in of_region if image.asks(index, name)]
        for number, image in enumerate(images)
        for of_region in image.branches
    ]
    parts = [image.vision for image in images if image.vision is not None]
    requests = [[request(branch) for branch in of_region] for of_region in branches]
    return join_vision(parts) if parts else None, branches, requests


def write_answers(images: Sequence[RegionRecords], told: Mapping[AskedBranch, BranchAnswer], log_probs: bool) -> None:
    """Complete the records with the answers to all branches."""
    for number, image in enumerate(images):
        for index in image.good:
            answers = {
                name: told[AskedBranch(number, None if is_global(name) else index, name)] for name in image.names[index]
            }
            image.records[index]["answers"] = {name: answer.text for name, answer in answers.items()}
            if log_probs:
                image.records[index]["log_probs"] = {
                    name: list(answer.log_probs or ()) for name, answer in answers.items()
                }


def derived_seed(seed: int, *place: int | str | None) -> int:
    """A seed of its own for every branch, the same in every batch: equal ones would make like draws."""
    text = json.dumps([seed, *place])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def is_global(name: str) -> bool:
    """Whether a question is the one about the whole image."""
    return normalise_name(name) == "global"


__all__ = ["AskedBranch", "RegionRecords", "ask", "derived_seed", "is_global", "write_answers"]
