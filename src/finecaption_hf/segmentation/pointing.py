"""Regions as they are named on a command line: masks, boxes and outlines, or clicks, by which a segmenter finds them.

Legend: H W height and width of the picture in pixels.
"""

import glob
import json
import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.errors import DataError
from ..data.folder import natural
from ..data.images import MaskContent
from ..data.mask_rules import STRICT, MaskRules
from ..data.orientation import TurnedRegion, turned_point
from ..masks_finecaption import MaskError, RegionMask
from .clicks import Clicks, SegmentationError, checked_clicks
from .segmenter import Segmenter

MAX_REGIONS = 20
"""Of those that are found without clicks, so many of the best."""

_TEXTS = (".json", ".geojson", ".txt", ".b64")

Pointed = tuple[str, RegionMask | Clicks]
"""(what to call it in messages, such as "region 2 (--box)"; the region, or by what it is to be found)"""


def read_regions(
    given: Sequence[tuple[str, str]],
    height: int,
    width: int,
    refine: bool = False,
    *,
    rules: MaskRules = STRICT,
    orientation: int = 1,
    stored: bool = False,
) -> list[Pointed]:
    """Read the regions of a picture.

    Args:
        given: (kind, text) in their order: kind is mask, box, polygon, rle, point, or not_point, which goes with the
            point or box before it; text is the name of a file, JSON, numbers between commas, or a blob. A mask may also
            be a file with several, or a pattern of names such as `masks/*.png`.
        height, width (`int`): of the picture as it is displayed, (H, W) in pixels.
        refine: whether boxes stand for what is in them.
        rules: how mask files are read.
        orientation (`int`): the picture's, by EXIF.
        stored: whether regions are in the pixels as they are stored, before that orientation.

    Raises:
        ValueError: If a text is no region of the picture, or a `not_point` has no region before it. `MaskError` and
            `SegmentationError` are such.

    Warns:
        UserWarning: Where coordinates look like shares of the picture.
    """
    size = (height, width)
    regions: list[Pointed] = []
    points: list[tuple[float, float]] = []
    labels: list[int] = []
    box: Any = None
    points_in = orientation if stored else 1
    given = [each for kind, text in given for each in _named(kind, text)]
    for number, (kind, text) in enumerate(given):
        where = f"region {len(regions) + 1} (--{kind})"
        if kind == "not_point":
            if not regions or given[number - 1][0] not in ("point", "box", "not_point"):
                raise ValueError(
                    f"--not-point {text[:60]}: it says what is not part of the region before it, which has to be a "
                    "--point or a --box."
                )
            where, region = regions.pop()
            if isinstance(region, RegionMask):
                points, labels, box = [], [], region.box_xyxy
            more = [turned_point(x, y, points_in, *size) for x, y in _points(kind, text)]
            points, labels = points + more, labels + [0] * len(more)
        elif kind == "point":
            points = [turned_point(x, y, points_in, *size) for x, y in _points(kind, text)]
            labels, box = [1] * len(points), None
        else:
            references = _references(kind, text, rules)
            for reference in references:
                where = f"region {len(regions) + 1} (--{kind})"
                turned = reference if orientation == 1 else TurnedRegion(reference, orientation, stored)
                mask = _mask(where, turned, *size)
                regions.append((where, mask))
            points, labels, box = [], [], mask.box_xyxy
            if not (kind == "box" and refine):
                continue
            regions.pop()
        try:
            regions.append((where, checked_clicks(points, labels, box, *size)))
        except SegmentationError as error:
            raise SegmentationError(f"{where}: {error}") from error
    return regions


def find_regions(
    picture: Image.Image,
    regions: Sequence[Pointed],
    open_segmenter: Callable[[], Segmenter],
    *,
    everything: bool = False,
    max_regions: int | None = None,
) -> tuple[list[RegionMask], tuple[str, int] | None, Any]:
    """Find what is only pointed at, by a segmenter, which is opened where it is needed.

    Args:
        picture: RGB, upright, (H, W).
        regions: as `read_regions` gives them.
        open_segmenter: gives what finds them.
        everything: find regions instead, `max_regions` of the best.
        max_regions: `None` means `MAX_REGIONS`.

    Returns:
        The regions in their order; who found how many of them, `None` where there was nothing to find; and the
        picture's `high_res_features`, where the segmenter shares a model's encoding.

    Raises:
        SegmentationError: If nothing is found where something was pointed at, or nothing at all.
    """
    to_find = sum(isinstance(region, Clicks) for _, region in regions)
    if not to_find and not everything:
        return [region for _, region in regions if isinstance(region, RegionMask)], None, None
    segmenter = open_segmenter()
    encoded = segmenter.encode(picture)
    masks: list[RegionMask] = []
    if everything:
        for each in encoded.everything(max_regions=max_regions or MAX_REGIONS):
            masks.append(RegionMask(each.mask, picture.height, picture.width))
        if not masks:
            raise SegmentationError(
                "No region was found in the picture. Name some with --mask, --box, --polygon or --point."
            )
    for where, region in regions:
        if isinstance(region, Clicks):
            candidates = encoded.candidates(region, num_candidates=1)
            if not candidates:
                raise SegmentationError(
                    f"{where}: nothing was found there by {segmenter.name}. Give other points, or a box."
                )
            region = RegionMask(candidates[0].mask, picture.height, picture.width)
        masks.append(region)
    return masks, (segmenter.name, to_find or len(masks)), encoded.high_res_features


def _mask(where: str, reference: Any, height: int, width: int) -> RegionMask:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            region = RegionMask(reference, height, width)
        except MaskError as error:
            raise MaskError(f"{where}: {error}") from error
    for warning in caught:
        warnings.warn(f"{where}: {warning.message}", stacklevel=3)
    return region


def _named(kind: str, text: str) -> list[tuple[str, str]]:
    """Itself, or one for each file of a pattern, mask2 before mask10."""
    if kind != "mask" or os.path.exists(text) or not re.search(r"[*?\[]", text) or text.lstrip().startswith(("{", "[")):
        return [(kind, text)]
    names = sorted(glob.glob(text), key=natural)
    if not names:
        raise ValueError(f"--mask {text[:60]}: no file is called so. Patterns are relative to {Path.cwd()}.")
    return [(kind, name) for name in names]


def _references(kind: str, text: str, rules: MaskRules) -> list[Any]:
    """The region references that a text stands for: a file's content, JSON, numbers or a blob."""
    if os.path.isfile(text):  # unlike Path.is_file, False for a blob that is too long for a file name
        path = Path(text)
        if path.suffix.lower() not in _TEXTS:
            return _masks_in(path, rules)
        value = _read_reference(path)
    elif text.lstrip().startswith(("{", "[")):
        value = _json(text, f"--{kind}")
    elif kind in ("box", "polygon"):
        value = _numbers(kind, text)
    elif kind == "mask" and text.startswith("H4sI"):  # how base64 of a gzip stream begins
        value = text
    elif os.path.isdir(text):
        raise ValueError(f"--{kind} {text}: this is a folder. Name a file; {text}/*.png, in quotes, are all in it.")
    else:
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        meant = {"mask": "a mask blob (base64 of gzip, beginning with H4sI)", "rle": "JSON"}[kind]
        raise ValueError(f"--{kind} {shown}: neither an existing file nor {meant}. Paths are relative to {Path.cwd()}.")
    if isinstance(value, list):
        if kind != "box" and value and all(isinstance(each, dict) for each in value):
            return value  # several regions, as the demo saves them
        return [{"box_xyxy" if kind == "box" else "polygon": value}]
    return [value]


def _read_reference(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    return text.strip() if path.suffix.lower() in (".txt", ".b64") else _json(text, str(path))


def _masks_in(path: Path, rules: MaskRules) -> list[Any]:
    """The masks of a picture file, perhaps one for each page, or of numpy's arrays."""
    try:
        content = MaskContent(path.read_bytes(), path.name)
        return [content.mask(str(path), part, rules) for part in content.parts]
    except DataError as error:
        raise ValueError(
            f"{path} cannot be read as a mask: {error.reason} Give a picture file such as PNG, .npy, .npz, .json with "
            "COCO RLE or GeoJSON, or .txt with a blob."
        ) from error


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: this is no JSON ({error}).") from error


def _points(kind: str, text: str) -> list[tuple[float, float]]:
    numbers = _split(text)
    if not numbers or len(numbers) % 2:
        option = f"--{kind.replace('_', '-')}"
        raise ValueError(f"{option} {text[:60]}: these are no points. Give X,Y or X,Y,X,Y,... in pixels.")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _numbers(kind: str, text: str) -> list[float]:
    numbers = _split(text)
    if numbers is None:
        form = "X0,Y0,X1,Y1" if kind == "box" else "X,Y,X,Y,..."
        raise ValueError(f"--{kind} {text[:60]}: neither an existing file nor numbers. Give {form} in pixels.")
    return numbers


def _split(text: str) -> list[float] | None:
    """`None` where they are no numbers."""
    try:
        return [float(number) for number in re.split(r"[,\s]+", text.strip(" \t,()"))]
    except ValueError:
        return None
