"""What Segment Anything's data set and its script write: masks of everything in a picture, without categories."""

import csv
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ...mask_codecs_finecaption import BoolArray, MaskError, array_mask
from ..errors import DataError
from ..examples import as_id, kind
from ..images import MAX_PIXELS, open_picture
from ..json_stream import MAX_ELEMENT_BYTES, parse
from .base import AnnotationFile, ReadOptions, Seen
from .coco import reference_of, size_of
from .elements import dumped, parse_element
from .files import new_file
from .seeing import see
from .writing import with_texts

_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_SCORES = ("predicted_iou", "stability_score")
_CSV_START = b"id,area,bbox_x0,bbox_y0,bbox_w,bbox_h"


class SamImages(AnnotationFile):
    """SA-1B: `sa_1.json` beside `sa_1.jpg`, one such file or a folder of them.

    Answers go into `caption` and `attributes` of annotations, in a new file or folder.
    """

    format: ClassVar[str] = "sa-1b"
    title: ClassVar[str] = "SA-1B"

    def __init__(self, path: Path, options: ReadOptions) -> None:
        super().__init__(path, options)
        self._paths = sorted(path.glob("*.json"), key=_natural) if path.is_dir() else [path]
        if not self._paths:
            raise DataError(self.name, "there is no .json file in this folder.")

    @classmethod
    def recognises(cls, seen: Seen) -> bool:
        if seen.is_folder:
            first = next((name for name in seen.names if re.fullmatch(r"[^/]+\.json", name)), None)
            return first is not None and cls.recognises(see(seen.path / first))
        return (
            isinstance(seen.json, dict)
            and isinstance(seen.json.get("image"), dict)
            and "image_id" in seen.json["image"]
            and ("annotations" not in seen.json or not seen.element("annotations").keys().isdisjoint(_SCORES))
        )

    def files(self) -> Iterator[Path]:
        yield from self._paths

    def scan(self) -> Iterator[tuple[str, Any]]:
        for index in range(len(self._paths)):
            yield self.read(index)

    def read(self, index: int) -> tuple[str, Any]:
        path = self._paths[index]
        try:
            content = _content(path)
            if not isinstance(content, dict) or not isinstance(content.get("image"), dict):
                raise DataError(path.name, "this is no file of SA-1B: there is no object 'image'.")
            image, annotations = content["image"], content.get("annotations")
            if not isinstance(annotations, list):
                raise DataError(path.name, f"annotations: {kind(annotations)} arrived, a list is needed.")
            name = image.get("file_name")
            if not isinstance(name, str) or not name:
                raise DataError(path.name, f"image.file_name: {kind(name)} arrived, the name of a picture is needed.")
            row = {key: value for key, value in image.items() if key not in _NOT_OF_A_ROW}
            row |= {"image": name, "id": as_id(image.get("image_id"))}
        except DataError as error:
            return path.name, error if error.where == path.name else error.at(path.name)
        size = size_of(image)
        row["regions"] = [_region(entry, size, f"{path.name}: annotations[{n}]") for n, entry in enumerate(annotations)]
        return path.name, row

    def write_back(self, answers: Iterator[Mapping[str, str] | None], target: Path) -> None:
        for index, path in enumerate(self._paths):
            _, row = self.read(index)
            given = [] if isinstance(row, DataError) else [next(answers, None) for _ in row["regions"]]
            data = path.read_bytes()
            if any(given):
                content = parse(data.decode("utf-8-sig"))
                content["annotations"] = [
                    with_texts(entry, texts) if texts else entry for entry, texts in zip(content["annotations"], given)
                ]
                data = dumped(content)
            with new_file(self.path, target / path.name if self.path.is_dir() else target) as file:
                file.write(data)


class SamMasks(AnnotationFile):
    """What SAM's script `amg.py` writes for a picture: a folder with `metadata.csv` and masks, or a list of RLE.

    One of them, or a folder of them. The picture is the only one of that name in the folder of pictures.
    """

    format: ClassVar[str] = "sam-masks"
    title: ClassVar[str] = "masks by SAM's amg.py"

    def __init__(self, path: Path, options: ReadOptions) -> None:
        super().__init__(path, options)
        if path.is_dir() and not (path / "metadata.csv").is_file():
            found = [*path.glob("*/metadata.csv"), *path.glob("*.json")]
            self._paths = sorted(found, key=lambda each: _natural(_of_picture(each)))
        else:
            self._paths = [path.resolve() / "metadata.csv" if path.is_dir() else path]
        if not self._paths:
            raise DataError(self.name, "there is neither a metadata.csv nor a .json file in this folder.")
        self._pictures = self._named_pictures()

    @classmethod
    def recognises(cls, seen: Seen) -> bool:
        if not seen.is_folder:
            return {"segmentation", *_SCORES} <= seen.first.keys() and "image_id" not in seen.first
        table = next((name for name in seen.names if re.fullmatch(r"([^/]+/)?metadata\.csv", name)), None)
        if table is not None:
            return see(seen.path / table).head.startswith(_CSV_START)
        first = next((name for name in seen.names if re.fullmatch(r"[^/]+\.json", name)), None)
        return first is not None and cls.recognises(see(seen.path / first))

    def files(self) -> Iterator[Path]:
        yield from self._paths

    def where_images_lie(self) -> Path:
        """Beside what is read, or a folder above it: where a picture of the first name is."""
        places = [self.path, *self.path.resolve().parents[:2]]
        stem = _of_picture(self._paths[0])
        found = [place for place in places if stem in _stems(place)]
        return found[0] if found else super().where_images_lie()

    def scan(self) -> Iterator[tuple[str, Any]]:
        for index in range(len(self._paths)):
            yield self.read(index)

    def read(self, index: int) -> tuple[str, Any]:
        path = self._paths[index]
        where = f"{path.parent.name}/{path.name}" if path.suffix == ".csv" else path.name
        try:
            name = self._picture(_of_picture(path))
            regions = _rows_of_table(path) if path.suffix == ".csv" else _rows_of_list(path, where)
        except (DataError, OSError, ValueError) as error:
            reason = error.reason if isinstance(error, DataError) else str(error)
            return where, DataError(where, reason)
        return where, {"image": name, "regions": regions}

    def _named_pictures(self) -> dict[str, list[str]] | None:
        """File names of pictures by their stems; `None` where they are in an archive."""
        given = self.options.images
        if given is None:
            return _stems(self.where_images_lie())
        return _stems(Path(given)) if isinstance(given, (str, os.PathLike)) and Path(given).is_dir() else None

    def _picture(self, stem: str) -> str:
        if self._pictures is None:
            return f"{stem}.jpg"
        names = self._pictures.get(stem, [])
        if len(names) != 1:
            found = f"there are {', '.join(names)}" if names else "there is no picture of that name"
            raise DataError(stem, f"the masks are of the picture {stem!r}, but {found}. Give --images.")
        return names[0]


@dataclass(frozen=True)
class SamMaskPng:
    """A mask of `amg.py` in a file of its own: a `SizedRegion`."""

    path: Path

    def __region_mask__(self, height: int, width: int) -> BoolArray:
        """As `SizedRegion` says.

        Raises:
            MaskError: If the file is missing, no picture, of another size, or not black and white.
        """
        try:
            picture = open_picture(self.path.read_bytes(), f"mask {self.path.name!r}", MAX_PIXELS)
        except (OSError, DataError) as error:
            reason = error.reason if isinstance(error, DataError) else error.strerror
            raise MaskError(f"The file {str(self.path)!r}: {reason}") from error
        return array_mask(picture, (height, width))


# --- one picture -----------------------------------------------------------------------------------------------------

_NOT_OF_A_ROW = frozenset({"file_name", "image_id", "image", "width", "height", "regions"})
_NOT_OF_A_REGION = frozenset({"segmentation", "id", "mask"})


def _region(entry: Any, size: tuple[int, int] | None, where: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        return {"mask": DataError(where, f"{kind(entry)} arrived, an object is needed.")}
    region = {key: value for key, value in entry.items() if key not in _NOT_OF_A_REGION}
    try:
        region |= {"id": as_id(entry.get("id")), "mask": reference_of(entry, size, where, Counter())}
    except DataError as error:
        region["mask"] = error.at(where)
    return region


def _rows_of_list(path: Path, where: str) -> list[dict[str, Any]]:
    content = _content(path)
    if not isinstance(content, list):
        raise DataError(where, f"{kind(content)} arrived, a list of masks is needed.")
    return [_region(entry, None, f"{where}[{n}]") for n, entry in enumerate(content)]


def _rows_of_table(path: Path) -> list[dict[str, Any]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        return [_row_of_table(row, path.parent) for row in csv.DictReader(file)]


def _row_of_table(row: dict[str, str], folder: Path) -> dict[str, Any]:
    """A line of `metadata.csv`, under the names that the script gives the same values in JSON."""

    def values(*names: str) -> list[float]:
        return [float(row[name]) for name in names]

    number = row.get("id") or ""
    try:
        region: dict[str, Any] = {
            "bbox": values("bbox_x0", "bbox_y0", "bbox_w", "bbox_h"),
            "point_coords": [values("point_input_x", "point_input_y")],
            "crop_box": values("crop_box_x0", "crop_box_y0", "crop_box_w", "crop_box_h"),
            **{name: float(row[name]) for name in _SCORES},
        }
    except (KeyError, TypeError, ValueError):
        return {"mask": DataError(f"id {number[:20]}", "its line in metadata.csv is broken.")}
    if not number.isascii() or not number.isdecimal():
        return {"mask": DataError("metadata.csv", f"id {number[:20]!r}: a whole number is needed.")}
    return {**region, "id": int(number), "mask": SamMaskPng(folder / f"{number}.png")}


def _content(path: Path) -> Any:
    if (size := path.stat().st_size) > MAX_ELEMENT_BYTES:
        raise DataError(path.name, f"the file has {size} bytes, more than the masks of a picture need.")
    return parse_element(path.read_bytes(), path.name)


def _of_picture(path: Path) -> str:
    return path.parent.name if path.name == "metadata.csv" else path.stem


def file_names(folder: Path) -> list[str]:
    """The pictures in a folder, sorted; none where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted((path.name for path in folder.iterdir() if path.suffix.lower() in _PICTURES), key=_natural)


def folder_names(folder: Path) -> list[str]:
    """The folders in a folder, sorted."""
    return sorted((path.name for path in folder.iterdir() if path.is_dir()), key=_natural)


def _stems(folder: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in file_names(folder):
        found.setdefault(Path(name).stem, []).append(name)
    return found


def _natural(name: Any) -> list[tuple[int, Any]]:
    """Sorts sa_2 before sa_10."""
    parts = re.split(r"([0-9]+)", name.name if isinstance(name, Path) else name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]
