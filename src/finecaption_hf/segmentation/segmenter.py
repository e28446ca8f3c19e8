"""What every segmenter can do, and how "everything" becomes a set of masks without duplicates.

Legend: H W height and width of the picture in pixels, h w those of a segmenter's own coarser masks, n number of masks.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..masks_finecaption import box_around
from .clicks import Clicks, SegmentationError, checked_clicks


class Candidate(NamedTuple):
    """A mask, bool (H, W), True in the region, and a score: the higher, the likelier it is what was meant."""

    mask: np.ndarray
    score: float


class Proposals(NamedTuple):
    """Masks at many points, for `everything`.

    Args:
        coarse: bool (n, h, w), of the picture alone without padding.
        scores: (n,), as of a `Candidate`.
        stabilities: (n,), from 0 to 1: how little the mask changes when its threshold does.
        sources: n of whatever `finish` makes a mask of (H, W) from.
    """

    coarse: np.ndarray
    scores: np.ndarray
    stabilities: np.ndarray
    sources: Sequence[Any]


class EncodedImage(ABC):
    """A picture that went through the image encoder; masks come from here, in any number."""

    min_score = 0.0
    """Below it, `everything` leaves a mask out; each segmenter has its own scale."""
    min_stability = 0.0
    max_inside = 1.0
    """Where more than this share of the smaller of two masks is in the other, `everything` leaves the worse one out."""
    points_at_once = 64
    high_res_features: Any = None
    """Of a `SharedSegmenter`: (1, C, h, w), what the captioning model's high-resolution towers say of the picture."""

    def __init__(self, height: int, width: int):
        self.height, self.width = height, width

    def masks(
        self,
        points: Sequence[tuple[float, float]] | None = None,
        labels: Sequence[int] | None = None,
        box_xyxy: Sequence[float] | None = None,
        num_candidates: int = 3,
    ) -> list[Candidate]:
        """Masks of the region that points and a box mean.

        Args:
            points: (x, y) in the picture's pixels.
            labels: one per point, 1 in the region or 0 outside of it; `None` means that all are in it.
            box_xyxy: around the region, in pixels, ends exclusive; what lies outside of the picture is cut off.
            num_candidates: the most masks to return.

        Returns:
            Different masks, none of them empty, best first; none where the segmenter finds nothing.

        Raises:
            SegmentationError: If there is neither a box nor a positive point, or one of them cannot be.
        """
        if num_candidates < 1:
            raise SegmentationError(f"num_candidates is {num_candidates}; at least one is needed.")
        return self.candidates(checked_clicks(points, labels, box_xyxy, self.height, self.width), num_candidates)

    def candidates(self, clicks: Clicks, num_candidates: int = 3) -> list[Candidate]:
        """See `masks`, for clicks in this picture that were checked."""
        found = [candidate for candidate in self._segment(clicks, num_candidates) if candidate.mask.any()]
        found.sort(key=lambda candidate: -candidate.score)
        different: list[Candidate] = []
        for candidate in found:
            if not any(np.array_equal(candidate.mask, other.mask) for other in different):
                different.append(candidate)
        return different[:num_candidates]

    def everything(
        self,
        *,
        points_per_side: int = 32,
        min_score: float | None = None,
        min_stability: float | None = None,
        max_overlap: float = 0.7,
        min_area: float = 0.001,
        max_regions: int | None = None,
    ) -> list[Candidate]:
        """Masks of all that a grid of points finds, without duplicates.

        Args:
            points_per_side: points along the longer side; along the shorter one as many as its share of the longer.
            min_score, min_stability: masks below either are left out; `None` means the segmenter's own limits.
            max_overlap: of two masks whose intersection over union is above it, the one with the lower score goes (as
                it does where the segmenter's own `max_inside` says so).
            min_area: smallest share of the picture.
            max_regions: the most masks to return; `None` means all.

        Returns:
            Masks that overlap by at most `max_overlap`, best first.

        Raises:
            SegmentationError: If a number is out of its range.
        """
        if not 1 <= points_per_side <= 256:
            raise SegmentationError(f"points_per_side is {points_per_side}; give 1 to 256.")
        if not (0 <= max_overlap <= 1 and 0 <= min_area <= 1):
            raise SegmentationError(f"max_overlap is {max_overlap} and min_area {min_area}; both are shares, 0 to 1.")
        if max_regions is not None and max_regions < 1:
            raise SegmentationError(f"max_regions is {max_regions}; give at least one, or None for all.")
        least_score = self.min_score if min_score is None else min_score
        least_stability = self.min_stability if min_stability is None else min_stability
        grid = point_grid(self.height, self.width, points_per_side)
        coarse: list[np.ndarray] = []
        scores: list[float] = []
        sources: list[Any] = []
        places: dict[bytes, int] = {}
        for start in range(0, len(grid), self.points_at_once):
            found = self._propose(grid[start : start + self.points_at_once])
            areas = found.coarse.reshape(len(found.coarse), -1).mean(axis=1)
            good = (found.scores >= least_score) & (found.stabilities >= least_stability)
            for index in np.flatnonzero(good & (areas > 0) & (areas >= min_area)).tolist():
                mask, score = found.coarse[index], float(found.scores[index])
                # Many points find the very same mask; to keep it once costs less memory and time.
                place = places.setdefault(np.packbits(mask).tobytes(), len(coarse))
                if place == len(coarse):
                    coarse.append(mask)
                    scores.append(score)
                    sources.append(found.sources[index])
                elif score > scores[place]:
                    scores[place], sources[place] = score, found.sources[index]
        kept = without_duplicates(coarse, scores, max_overlap, self.max_inside)
        # Coarse masks that differ may still overlap by a little more on the picture, so the limit is applied there too.
        masks = [self._finish(sources[index]) for index in kept]
        found_scores = [scores[index] for index in kept]
        final = without_duplicates(masks, found_scores, max_overlap, self.max_inside)
        found_masks = [Candidate(masks[index], found_scores[index]) for index in final if masks[index].any()]
        return found_masks[:max_regions]

    @abstractmethod
    def _segment(self, clicks: Clicks, num_candidates: int) -> list[Candidate]:
        """Candidates in any order; empty and equal ones may be among them."""

    @abstractmethod
    def _propose(self, points: np.ndarray) -> Proposals:
        """Masks at each of the points (P, 2)."""

    @abstractmethod
    def _finish(self, source: Any) -> np.ndarray:
        """The mask bool (H, W) of one of the proposals' sources."""


class Segmenter(ABC):
    """Makes `EncodedImage`s; `name` says for people what does the work."""

    name: str

    @abstractmethod
    def encode(self, image: Image.Image) -> EncodedImage:
        """Encode a picture of any mode; its EXIF orientation is applied, and masks have its size as displayed."""


def point_grid(height: int, width: int, points_per_side: int) -> np.ndarray:
    """Points (P, 2) as (x, y), evenly over a picture, in the middles of cells that are about square."""
    longer = max(height, width)
    rows, columns = (max(1, round(points_per_side * side / longer)) for side in (height, width))
    ys, xs = (np.arange(rows) + 0.5) * height / rows, (np.arange(columns) + 0.5) * width / columns
    return np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)


def without_duplicates(
    masks: Sequence[np.ndarray], scores: Sequence[float], max_overlap: float, max_inside: float = 1.0
) -> list[int]:
    """Non-maximum suppression by the masks themselves.

    Args:
        masks: n arrays bool (h, w).
        scores: n numbers.
        max_overlap: the largest intersection over union that two masks may have to be both kept.
        max_inside: the largest intersection over the area of the smaller one.

    Returns:
        Indices of the masks that are kept, by falling score; among equal scores the earlier mask counts as better.
    """
    if not len(masks):
        return []
    areas = np.array([int(mask.sum()) for mask in masks])
    left = np.array(sorted(range(len(masks)), key=lambda index: -scores[index]))
    kept: list[int] = []
    while len(left):
        best, left = int(left[0]), left[1:]
        kept.append(best)
        # The intersection over union is at most the ratio of the areas.
        alike = np.minimum(areas[left], areas[best]) > max_overlap * np.maximum(areas[left], areas[best])
        alike |= max_inside < 1
        if not areas[best]:
            continue
        x0, y0, x1, y1 = box_around(masks[best])
        around = np.s_[y0:y1, x0:x1]
        inside = masks[best][around]
        for place in np.flatnonzero(alike).tolist():
            shared = int((masks[left[place]][around] & inside).sum())
            smaller = min(areas[best], areas[left[place]])
            is_like = shared > max_overlap * (areas[best] + areas[left[place]] - shared)
            alike[place] = is_like or shared > max_inside * smaller
        left = left[~alike]
    return kept
