"""COCO panoptic: every pixel of a picture belongs to one segment, whose id is the colour of a PNG."""

import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...mask_codecs_finecaption import BoolArray, MaskError
from ..errors import DataError
from ..examples import kind
from ..images import ImageStore, open_images, open_picture
from .base import ReadOptions, Seen
from .coco import CocoInstances, first_annotation, id_of, name_of
from .shapes import check_picture
from .writing import with_texts


class CocoPanoptic(CocoInstances):
    """A JSON file with an annotation per picture, which lists its segments, and PNG files with their pixels.

    The PNG files lie in a folder, or a .zip, that is named like the JSON file and lies beside it, or else beside the
    JSON file itself. Answers go into `caption` and `attributes` of segments; the PNG files stay as they are.
    """

    format: ClassVar[str] = "coco-panoptic"
    title: ClassVar[str] = "COCO panoptic"

    def __init__(self, path: Path, options: ReadOptions) -> None:
        super().__init__(path, options)
        places = (path.with_suffix(""), path.with_suffix(".zip"), path.parent)
        folder = next(place for place in places if place.is_dir() or zipfile.is_zipfile(place))
        self._pngs = open_images(folder)
        within = PurePosixPath(path.stem)
        # The .zip of COCO itself holds the folder of the same name.
        self._prefix = f"{within}/" if folder.suffix == ".zip" and _is_within(folder, str(within)) else ""

    @classmethod
    def recognises(cls, seen: Seen) -> bool:
        first = first_annotation(seen)
        return "image_id" in first and isinstance(first.get("segments_info"), list)

    def _regions(
        self,
        annotation: dict[str, Any],
        image: dict[str, Any],
        size: tuple[int, int] | None,
        where: str,
        counts: Counter[str],
    ) -> list[dict[str, Any]]:
        segments = annotation.get("segments_info")
        if not isinstance(segments, list):
            raise DataError(where, f"segments_info: {kind(segments)} arrived, a list of segments is needed.")
        name = annotation.get("file_name")
        if not isinstance(name, str) or not name:
            name = PurePosixPath(name_of(image)).with_suffix(".png").name
        png = SegmentPng(self._pngs, self._prefix + name)
        return [self._segment(segment, png, size, f"{where}: segments_info[{n}]") for n, segment in enumerate(segments)]

    def _segment(self, segment: Any, png: "SegmentPng", size: tuple[int, int] | None, where: str) -> dict[str, Any]:
        if not isinstance(segment, dict):
            return {"mask": DataError(where, f"{kind(segment)} arrived, an object is needed.")}
        region = {key: value for key, value in segment.items() if key not in ("id", "mask")}
        number = segment.get("id")
        if isinstance(number, bool) or not isinstance(number, int) or not 0 < number < 2**24:
            return {
                **region,
                "mask": DataError(where, "id: a whole number is needed, from 1 to 16777215, as colours are."),
            }
        region |= {"id": id_of(segment), "mask": PanopticSegment(png, number, size)}
        category = self._categories.get(str(segment.get("category_id")), {})
        if isinstance(category.get("name"), str):
            region["label"] = category["name"]
        if "isthing" in category:
            region["isthing"] = category["isthing"]
        return region

    def _with_answers(self, annotation: dict[str, Any], answers: list[Mapping[str, str] | None]) -> dict[str, Any]:
        segments = [
            with_texts(entry, given) if given else entry for entry, given in zip(annotation["segments_info"], answers)
        ]
        return {**annotation, "segments_info": segments}


@dataclass(frozen=True)
class SegmentPng:
    """The PNG file of a picture; shared by its segments, so that it is decoded once for all of them."""

    store: ImageStore
    name: str

    @cached_property
    def picture(self) -> Any:
        try:
            return open_picture(
                self.store.read_bytes(self.name), f"segments {self.name[:200]!r}", self.store.max_pixels
            )
        except DataError as error:
            raise MaskError(f"The file of the segments, {self.name[:200]!r}: {error.reason}") from error

    @cached_property
    def ids(self) -> NDArray[np.uint32]:
        """The segment of each pixel, of shape (H, W); 0 is none."""
        if self.picture.mode != "RGB":
            raise MaskError(
                f"The file of the segments, {self.name[:200]!r}, is of mode {self.picture.mode!r}, but ids are colours "
                "of RGB (red + 256 green + 65536 blue). Convert it, or give it as a label map."
            )
        try:
            colours = np.asarray(self.picture)
        except Exception as error:  # decoders of damaged files raise nearly anything
            raise MaskError(f"The file of the segments, {self.name[:200]!r}, is damaged ({error}).") from error
        ids = colours[..., 2].astype(np.uint32)
        for channel in (1, 0):
            ids <<= 8
            ids |= colours[..., channel]
        return ids


@dataclass(frozen=True)
class PanopticSegment:
    """The pixels of one segment: a `SizedRegion`."""

    png: SegmentPng
    number: int
    size: tuple[int, int] | None

    def __region_mask__(self, height: int, width: int) -> BoolArray:
        """As `SizedRegion` says.

        Raises:
            MaskError: If the file is missing, damaged or of another size, or has no pixel of the segment.
        """
        check_picture(self.size, height, width)
        check_picture((self.png.picture.height, self.png.picture.width), height, width)
        region: BoolArray = self.png.ids == self.number
        if not region.any():
            raise MaskError(
                f"No pixel of {self.png.name[:200]!r} is of segment {self.number} (red + 256 green + 65536 blue). Give "
                "the PNG files that belong to this file."
            )
        return region


def _is_within(archive: Path, folder: str) -> bool:
    with zipfile.ZipFile(archive) as opened:
        return any(name.startswith(f"{folder}/") for name in opened.namelist())
