"""The regions of `finecaption caption` on one picture: what the options stand for, read before a model is loaded.

Legend: H W height and width of the picture in pixels.
"""

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .common import parse_json

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from ..segmentation import EncodedImage


@dataclass
class GivenRegion:
    """A region of the command line: a mask, or points and a box by which a segmenter finds one.

    Attributes:
        where (`str`): for messages, such as "region 2 (--box)".
        mask (`np.ndarray`, *optional*): bool (H, W); the box as it was drawn, where one is to be refined.
        points (`list[tuple[float, float]]`): (x, y) in pixels.
        labels (`list[int]`): one per point, 1 in the region and 0 outside of it.
        box_xyxy (`list[int]`, *optional*): to be refined, in pixels, ends exclusive.
    """

    where: str
    mask: "np.ndarray | None" = None
    points: list[tuple[float, float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    box_xyxy: list[int] | None = None

    @property
    def needs_segmenter(self) -> bool:
        return bool(self.points) or self.box_xyxy is not None

    def find(self, encoded: "EncodedImage", name: str) -> "np.ndarray":
        """The mask bool (H, W); `name` says who finds it.

        Raises:
            SegmentationError: If nothing is found.
        """
        from ..segmentation import SegmentationError

        if not self.needs_segmenter:
            assert self.mask is not None
            return self.mask
        found = encoded.masks(self.points, self.labels, self.box_xyxy, num_candidates=1)
        if not found:
            raise SegmentationError(f"{self.where}: nothing was found there by {name}. Give other points, or a box.")
        return found[0].mask


def read_regions(given: Sequence[tuple[str, str]], picture: "Image.Image", refine: bool) -> list[GivenRegion]:
    """(option, value) as they stand on the command line -> regions, numbered in that order.

    Args:
        given: options with the underscores of their parameters.
        picture: of (H, W).
        refine: whether boxes stand for what is in them.

    Raises:
        ValueError: If a value is no region of the picture, or `--not-point` has no region before it that it goes with.
    """
    from ..masks_finecaption import mask_to_box
    from ..segmentation.prompts import SegmentationError, checked_prompt

    regions: list[GivenRegion] = []
    kinds: list[str] = []
    for kind, text in given:
        if kind == "not_point":
            if not regions or kinds[-1] not in ("point", "box"):
                raise ValueError(
                    f"--not-point {text[:60]}: it says what is not part of the region before it, which has to be a "
                    "--point or a --box."
                )
            regions[-1].points += _points(kind, text)
            regions[-1].labels += [0] * (len(regions[-1].points) - len(regions[-1].labels))
            continue
        region = GivenRegion(f"region {len(regions) + 1} (--{kind})")
        if kind == "point":
            region.points = _points(kind, text)
            region.labels = [1] * len(region.points)
        else:
            region.mask = _mask(region.where, _reference(kind, text), picture)
        regions.append(region)
        kinds.append(kind)
    for region, kind in zip(regions, kinds, strict=True):
        if kind == "box" and region.mask is not None and (refine or region.points):
            region.box_xyxy = list(mask_to_box(region.mask))
        if region.needs_segmenter:
            try:
                checked_prompt(region.points, region.labels, region.box_xyxy, picture.height, picture.width)
            except SegmentationError as error:
                raise SegmentationError(f"{region.where}: {error}") from error
    return regions


def _mask(where: str, reference: Any, picture: "Image.Image") -> "np.ndarray":
    from ..masks_finecaption import MaskError, as_mask

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            region = as_mask(reference, picture.height, picture.width)
    except MaskError as error:
        raise MaskError(f"{where}: {error}") from error
    for warning in caught:
        typer.echo(f"Warning: {where}: {warning.message}", err=True)
    return region


def _reference(kind: str, text: str) -> Any:
    """The region reference that an option's value stands for: a file's content, JSON, numbers or a blob."""
    if os.path.isfile(text):  # unlike Path.is_file, False for a blob that is too long for a file name
        value = _read_reference(Path(text))
    elif text.lstrip().startswith(("{", "[")):
        value = parse_json(text, f"--{kind}")
    elif kind in ("box", "polygon"):
        value = _numbers(kind, text)
    elif kind == "mask" and text.startswith("H4sI"):  # how base64 of a gzip stream begins
        value = text
    else:
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        meant = {"mask": "a mask blob (base64 of gzip, beginning with H4sI)", "rle": "JSON"}[kind]
        raise ValueError(f"--{kind} {shown}: neither an existing file nor {meant}. Paths are relative to {Path.cwd()}.")
    if isinstance(value, list):
        return {"box_xyxy" if kind == "box" else "polygon": value}
    return value


def _read_reference(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix in (".json", ".geojson"):
        return parse_json(path.read_text(encoding="utf-8"), str(path))
    if suffix in (".txt", ".b64"):
        return path.read_text(encoding="utf-8").strip()
    if suffix == ".npy":
        import numpy as np

        return np.load(path, allow_pickle=False)
    from PIL import Image

    try:
        return Image.open(path)
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path} cannot be read as a mask. Give a picture file such as PNG, .npy, .json with COCO RLE or GeoJSON, "
            "or .txt with a blob."
        ) from error


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
