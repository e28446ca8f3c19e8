"""Pictures of examples: the region outlined on its image."""

import io
from collections.abc import Collection, Iterable
from contextlib import suppress

import numpy as np
from PIL import Image

from ...data.examples import DataError, Example
from ...drawing import COLORS, draw_regions
from ...masks_finecaption import MaskError, as_mask
from ..predicting import walk

_LONGER_SIDE = 640  # pixels; enough to see a region, and some 60 kB
_QUALITY = 85


def example_pictures(dataset: Iterable[Example], wanted: Collection[tuple[str, int]]) -> dict[tuple[str, int], bytes]:
    """JPEG pictures of regions, by image and index of the region; those that cannot be read are left out.

    Args:
        dataset: where the regions come from.
        wanted: (image, region_index) as predictions have them.
    """
    left = set(wanted)
    drawn: dict[tuple[str, int], bytes] = {}
    examples = walk(dataset)
    while left and (each := next(examples, None)) is not None:
        example, rows = each
        keys = [(row[0].image, row[0].region_index) for row in rows]
        if not left.intersection(keys):
            continue
        chosen = [(key, region) for key, region in zip(keys, example.regions, strict=True) if key in left]
        left.difference_update(keys)
        try:
            picture = example.load()
        except (DataError, OSError):
            continue
        for key, region in chosen:
            reference = example.reference(region, picture)
            with suppress(MaskError):
                drawn[key] = _drawn(picture, as_mask(reference, picture.height, picture.width))
    return drawn


def _drawn(picture: Image.Image, mask: np.ndarray) -> bytes:
    # A red outline on a red sign shows nothing: the colour that differs most from the region.
    inside = np.asarray(picture)[mask].mean(axis=0)
    color = max(COLORS, key=lambda color: float(np.abs(inside - color).sum()))
    # Several stand side by side, at half of their width or less.
    sheet = draw_regions(picture, [mask], colors=[color], line_width=2)
    sheet.thumbnail((_LONGER_SIDE, _LONGER_SIDE), Image.Resampling.LANCZOS)
    target = io.BytesIO()
    sheet.save(target, "JPEG", quality=_QUALITY)
    return target.getvalue()
