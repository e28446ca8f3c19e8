"""The segmenter without weights: colours and edges alone, by OpenCV. It refines a box or scribble; it knows no objects.

Legend: H W height and width of the picture in pixels, h w those of a smaller working copy, n number of masks.
"""

from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from .. import install_hint
from ..data.images import to_rgb
from ..masks_finecaption import box_around
from .clicks import Clicks
from .segmenter import Candidate, EncodedImage, Proposals, Segmenter

_WORKING_SIDE = 256  # pixels of the longer side on which GrabCut works: a fifth of a second, and less noise
_MARGIN = 0.2  # of the box's sides: what lies around it shows what the background looks like
_ITERATIONS = 3
_STARTS = (None, 1.0, 1.2)  # the region at first: the whole box, or an ellipse of this share of its sides
_PLAIN_BOX_SCORE = 0.5  # a refined mask that fills less of its box than this is believed less than the box itself
_FEWEST, _GRAIN = 32, 2  # pixels on either side of a cut; colour steps
_SMALL = 24  # pixels of the working copy
_LARGE = 0.02  # of the picture: among all regions, smaller ones come later
_SPECK = 0.1  # pieces below this share of the largest piece are noise
_HOLE = 0.002  # of the picture: larger ones may be things
_SMOOTHING = 1.5  # standard deviation in pixels of the working copy
_TOLERANCES = (4, 8, 14, 22, 32)  # colour differences from a point, of 255, within which a region grows from it
_WIDER_TOLERANCES = (48, 72, 108, 162)  # where all of these leave a speck
_DISCS = (0.03, 0.06, 0.12, 0.24)  # radii around points, as shares of the square root of the picture's area
_REACH = 2.2  # how far from a point a region may go, in these radii
_GROWN_TRUST = 0.6  # of a region of one colour beside cuts, which may have several
_STRIP = 15  # pixels of the working copy, twice the width of what is compared with a region's inside
_POINT_RADIUS = 2  # pixels of the working copy that a click fixes around itself


class ClassicalSegmenter(Segmenter):
    """GrabCut within a box or around points; regions of like colour for everything.

    Raises:
        ImportError: If OpenCV is not installed.
    """

    def __init__(self) -> None:
        try:
            import cv2
        except ImportError as error:
            raise ImportError(
                "Without a segmentation model, masks are made with OpenCV, which is not installed. "
                f"{install_hint('segmentation')}, or name a model such as facebook/sam2.1-hiera-tiny."
            ) from error
        self.name = f"classical (GrabCut and region growing of OpenCV {cv2.__version__}, by colour, without a model)"

    def encode(self, image: Image.Image) -> "ClassicalEncodedImage":
        return ClassicalEncodedImage(np.asarray(to_rgb(image)))


class ClassicalEncodedImage(EncodedImage):
    """A picture and its smoothed working copy.

    Args:
        pixels: uint8 (H, W, 3), RGB.
    """

    # What shares colour and place with a region is that region again, at another tolerance.
    min_score, min_stability, max_inside = 0.3, 0.6, 0.5
    min_area = 0.0005
    """Share of the picture: what points find below it comes after all that is larger. People rarely mark less."""

    def __init__(self, pixels: np.ndarray):
        import cv2

        super().__init__(*pixels.shape[:2])
        self._cv2, self.pixels = cv2, np.ascontiguousarray(pixels)
        self._smooth = cv2.bilateralFilter(_resized(cv2, self.pixels, _WORKING_SIDE), 7, 30, 5)

    def _segment(self, clicks: Clicks, num_candidates: int) -> list[Candidate]:
        return self._in_box(clicks) if clicks.box_xyxy is not None else self._around_points(clicks)

    # --- a box -------------------------------------------------------------------------------------------------------

    def _in_box(self, clicks: Clicks) -> list[Candidate]:
        """GrabCut from several starts. The score is how well the mask's own box agrees with the one that was drawn.

        A box is drawn around a region so that it touches all four sides (Lempitsky et al., ICCV 2009); a cut that
        shrinks away from them went wrong, and then the box as it is is the better answer.
        """
        assert clicks.box_xyxy is not None
        x0, y0, x1, y1 = _pixel_box(clicks.box_xyxy, self.height, self.width)
        box = np.zeros((self.height, self.width), dtype=bool)
        box[y0:y1, x0:x1] = True
        # Points have the last word; a positive one outside of the box widens what may be in the region.
        reach = box.copy()
        for x, y in clicks.points[clicks.labels == 1].astype(int).tolist():
            reach[min(y, y0) : max(y + 1, y1), min(x, x0) : max(x + 1, x1)] = True
        plain = self._with_points(box, clicks)
        found = [Candidate(plain, _PLAIN_BOX_SCORE)]
        for start in _STARTS:
            likely = box if start is None else box & _ellipse(x0, y0, x1, y1, start, box.shape)
            mask = self._grab_cut(reach, likely, clicks)
            found.append(Candidate(mask, _box_agreement(mask, plain)))
        return found

    def _grab_cut(self, reach: np.ndarray, likely: np.ndarray, clicks: Clicks) -> np.ndarray:
        """Cut the region out of `reach` bool (H, W), outside of which nothing is, beginning with `likely`."""
        cv2 = self._cv2
        left, top, right, bottom = box_around(reach)
        around_y, around_x = (max(8, round(_MARGIN * side)) for side in (bottom - top, right - left))
        window = np.s_[
            max(0, top - around_y) : min(self.height, bottom + around_y),
            max(0, left - around_x) : min(self.width, right + around_x),
        ]
        crop = _resized(cv2, self.pixels[window], _WORKING_SIDE)
        scale_y, scale_x = crop.shape[0] / reach[window].shape[0], crop.shape[1] / reach[window].shape[1]
        trimap = np.full(crop.shape[:2], cv2.GC_BGD, dtype=np.uint8)
        trimap[_resized_mask(cv2, reach[window], trimap.shape)] = cv2.GC_PR_BGD
        trimap[_resized_mask(cv2, likely[window], trimap.shape)] = cv2.GC_PR_FGD
        for (x, y), label in zip(clicks.points, clicks.labels, strict=True):
            place = (int((x - window[1].start) * scale_x), int((y - window[0].start) * scale_y))
            cv2.circle(trimap, place, _POINT_RADIUS, int(cv2.GC_FGD if label else cv2.GC_BGD), thickness=-1)
        inside = (trimap == cv2.GC_FGD) | (trimap == cv2.GC_PR_FGD)
        # A few pixels, or one colour only, are nothing to compare; on those GrabCut would also not come to an end.
        if min(inside.sum(), (~inside).sum()) >= _FEWEST and (np.ptp(crop, axis=(0, 1)) > 2 * _GRAIN).any():
            # Flat colours have no variance to model, so that the cut may never end: a little grain keeps it sound.
            grain = np.random.default_rng(0).integers(-_GRAIN, _GRAIN + 1, crop.shape)
            crop = np.clip(crop.astype(np.int16) + grain, 0, 255).astype(np.uint8)
            cv2.setRNGSeed(0)  # the same mask for the same clicks
            cv2.grabCut(crop, trimap, None, None, None, _ITERATIONS, cv2.GC_INIT_WITH_MASK)
            inside = (trimap == cv2.GC_FGD) | (trimap == cv2.GC_PR_FGD)
        mask = np.zeros_like(reach)
        mask[window] = _resized_mask(cv2, inside, reach[window].shape) & reach[window]
        return self._with_points(_without_holes(cv2, _without_specks(cv2, mask)), clicks)

    # --- points ------------------------------------------------------------------------------------------------------

    def _around_points(self, clicks: Clicks) -> list[Candidate]:
        """Cuts that begin with discs of several sizes around the positive points, and the best region of like colour.

        How large the thing is that was meant cannot be known. A mask is believed the more, the more the others agree
        with it, and the less its colours are those of the strip around it. In texture a cut may keep a few pixels that
        look like nothing around them: such specks come last, with a score below 0.5, and all others have more.
        """
        positive = clicks.points[clicks.labels == 1]
        ys, xs = np.ogrid[: self.height, : self.width]
        nearest = np.full((self.height, self.width), np.inf)  # squared distance to a positive point
        for x, y in positive:
            nearest = np.minimum(nearest, (xs + 0.5 - x) ** 2 + (ys + 0.5 - y) ** 2)
        radii = [share * float(np.sqrt(self.height * self.width)) for share in _DISCS]
        masks = [self._cut_from_discs(clicks, positive, nearest, radius) for radius in radii]
        masks.append(self._with_points(self._to_picture(self._grown(positive)), clicks))
        found = []
        for index, mask in enumerate(masks):
            agreement = float(np.mean([_overlap(mask, other) for place, other in enumerate(masks) if place != index]))
            trust = _GROWN_TRUST if index == len(_DISCS) else 1.0
            score = trust * (0.5 + agreement) / 1.5 * self._contrast(mask)
            found.append(Candidate(mask, (score + bool(mask.mean() >= self.min_area)) / 2))
        return found

    def _grown(self, positive: np.ndarray) -> np.ndarray:
        """Bool (h, w): the region of like colour around points that stays most alike at other tolerances, but a speck.

        Where the usual tolerances leave specks only, the least wider one that does not.
        """

        def at(tolerance: int) -> np.ndarray:
            return np.logical_or.reduce([self._grow(x, y, tolerance) for x, y in positive])

        grown = [at(tolerance) for tolerance in _TOLERANCES]
        for index in np.argsort([-score for score in _stabilities(grown)], kind="stable").tolist():
            if grown[index].mean() >= self.min_area:
                return grown[index]
        wider = (at(tolerance) for tolerance in _WIDER_TOLERANCES)
        return next((mask for mask in wider if mask.mean() >= self.min_area), grown[-1])

    def _cut_from_discs(self, clicks: Clicks, positive: np.ndarray, nearest: np.ndarray, radius: float) -> np.ndarray:
        """What GrabCut makes of discs around the positive points, as far as it hangs together with one of them."""
        cv2 = self._cv2
        between = np.zeros((self.height, self.width), dtype=np.uint8)
        cv2.fillConvexPoly(between, cv2.convexHull(positive.astype(np.int32)), 1)
        reach = (nearest <= (_REACH * radius) ** 2) | (between > 0)
        mask = self._grab_cut(reach, nearest <= radius**2, clicks)
        _, pieces = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        touched = {int(pieces[int(y), int(x)]) for x, y in positive} - {0}
        return self._with_points(np.isin(pieces, list(touched)), clicks)

    def _contrast(self, mask: np.ndarray) -> float:
        """From 0 to 1: how different the colours inside are from those in a strip around, by their histograms."""
        cv2 = self._cv2
        inside = _resized_mask(cv2, mask, self._smooth.shape[:2])
        around = cv2.dilate(inside.astype(np.uint8), np.ones((_STRIP, _STRIP), dtype=np.uint8)) > 0
        around &= ~inside
        if not inside.any() or not around.any():
            return 0.0
        bins = self._smooth.astype(np.int64) // 32 @ np.array([64, 8, 1])
        of_mask, of_strip = (np.bincount(bins[part], minlength=512) / part.sum() for part in (inside, around))
        return 1.0 - float(np.minimum(of_mask, of_strip).sum())

    def _grow(self, x: float, y: float, tolerance: int) -> np.ndarray:
        """Bool (h, w): what is connected with a point by steps of at most `tolerance` in every colour channel."""
        cv2, (height, width) = self._cv2, self._smooth.shape[:2]
        seed = (min(width - 1, int(x * width / self.width)), min(height - 1, int(y * height / self.height)))
        filled = np.zeros((height + 2, width + 2), dtype=np.uint8)
        flags = 4 | cv2.FLOODFILL_MASK_ONLY | cv2.FLOODFILL_FIXED_RANGE | (1 << 8)
        cv2.floodFill(self._smooth, filled, seed, (0, 0, 0), (tolerance,) * 3, (tolerance,) * 3, flags)
        return filled[1:-1, 1:-1] > 0

    def _propose(self, points: np.ndarray) -> Proposals:
        masks: list[np.ndarray] = []
        scores: list[float] = []
        for x, y in points:
            grown = [self._grow(x, y, tolerance) for tolerance in _TOLERANCES]
            masks += grown
            scores += _stabilities(grown)
        stabilities, coarse = np.array(scores), np.stack(masks)
        sizes = coarse.reshape(len(coarse), -1).mean(axis=1)
        return Proposals(coarse, stabilities * np.sqrt(np.minimum(1.0, sizes / _LARGE)), stabilities, masks)

    def _finish(self, source: Any) -> np.ndarray:
        """With small holes filled, and the outline smoothed where that leaves anything."""
        cv2 = self._cv2
        whole = _without_holes(cv2, _without_specks(cv2, source))
        soft = cv2.GaussianBlur(whole.astype(np.float32), (0, 0), _SMOOTHING, borderType=cv2.BORDER_REPLICATE)
        mask = cv2.resize(soft, (self.width, self.height), interpolation=cv2.INTER_LINEAR) >= 0.5
        return _without_specks(cv2, mask) if mask.any() else self._to_picture(whole)

    def _to_picture(self, mask: np.ndarray) -> np.ndarray:
        closed = self._cv2.morphologyEx(mask.astype(np.uint8), self._cv2.MORPH_CLOSE, np.ones((3, 3), dtype=np.uint8))
        return _resized_mask(self._cv2, closed > 0, (self.height, self.width))

    def _with_points(self, mask: np.ndarray, clicks: Clicks) -> np.ndarray:
        """The mask with every positive point in it and no negative one, whatever the cut said."""
        mask = mask.copy()
        for label in (1, 0):  # where both are on one pixel, it is outside
            for x, y in clicks.points[clicks.labels == label].astype(int).tolist():
                mask[y, x] = bool(label)
        return mask


def _stabilities(grown: list[np.ndarray]) -> list[float]:
    """Of masks at rising tolerances, how much each is like its neighbours, 0 to 1: a region with an edge stays.

    A mask of half the picture or more is rather what lies behind, one of a few pixels a speck around the point: their
    scores are lowered in proportion.
    """
    overlaps = [_overlap(a, b) for a, b in pairwise(grown)]
    around = [overlaps[0], *(min(pair) for pair in pairwise(overlaps)), overlaps[-1]]
    return [
        score * min(1.0, 2 * (1 - float(mask.mean()))) * min(1.0, float(mask.sum()) / _SMALL)
        for score, mask in zip(around, grown, strict=True)
    ]


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def _box_agreement(mask: np.ndarray, wanted: np.ndarray) -> float:
    """Intersection over union of the boxes around two masks."""
    if not mask.any():
        return 0.0
    a, b = box_around(mask), box_around(wanted)
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def _pixel_box(box: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """A box of positive size within the picture -> whole pixels, one at least."""
    x0, y0 = min(int(box[0]), width - 1), min(int(box[1]), height - 1)
    return x0, y0, max(x0 + 1, int(np.ceil(box[2]))), max(y0 + 1, int(np.ceil(box[3])))


def _ellipse(x0: int, y0: int, x1: int, y1: int, share: float, shape: tuple[int, ...]) -> np.ndarray:
    ys, xs = np.ogrid[: shape[0], : shape[1]]
    across = (xs + 0.5 - (x0 + x1) / 2) / ((x1 - x0) / 2 * share)
    down = (ys + 0.5 - (y0 + y1) / 2) / ((y1 - y0) / 2 * share)
    return across**2 + down**2 <= 1


def _resized(cv2: Any, pixels: np.ndarray, side: int) -> np.ndarray:
    """uint8 (H, W, 3) -> the same with `side` pixels along the longer side."""
    factor = side / max(pixels.shape[:2])
    size = (max(1, round(pixels.shape[1] * factor)), max(1, round(pixels.shape[0] * factor)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)


def _resized_mask(cv2: Any, mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Bool to bool of another shape (height, width), by the share of each pixel that is covered."""
    smaller = shape[0] * shape[1] < mask.size
    kind = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return cv2.resize(mask.astype(np.float32), (shape[1], shape[0]), interpolation=kind) >= 0.5


def _without_specks(cv2: Any, mask: np.ndarray) -> np.ndarray:
    number, pieces, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if number <= 2:
        return mask
    areas = statistics[1:, cv2.CC_STAT_AREA]
    return np.isin(pieces, 1 + np.flatnonzero(areas >= _SPECK * areas.max()))


def _without_holes(cv2: Any, mask: np.ndarray) -> np.ndarray:
    """Holes of the size of specks are filled; what touches the picture's border is no hole."""
    outside = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
    _, pieces, statistics, _ = cv2.connectedComponentsWithStats(outside, connectivity=4)
    limit = min(_SPECK * float(mask.sum()), _HOLE * mask.size)
    small = 1 + np.flatnonzero(statistics[1:, cv2.CC_STAT_AREA] < limit)
    small = small[small != pieces[0, 0]]
    return mask | np.isin(pieces[1:-1, 1:-1], small)
