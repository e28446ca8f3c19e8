"""Open Images: a table of masks, each a picture file of its own, not always at the picture's size."""

import csv
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..images import ImageStore, MaskFile, open_images
from ..mask_rules import MaskRules
from ..names import ALIASES, read_aliases
from .base import AnnotationFile, ReadOptions, Seen
from .files import looks

_COLUMNS = ("MaskPath", "ImageID", "LabelName")
_RESIZED = MaskRules(resize=True)
_MAX_LINE_BYTES = 2**20


class OpenImages(AnnotationFile):
    """A `*-annotations-object-segmentation.csv`, or a folder with such.

    Masks lie in folders or .zip files at any depth beside or below the table (`masks/train`, `train-masks`); they are
    brought to the picture's size, nearest neighbour, as the data set asks for. Labels have their names where a
    `class-descriptions*.csv` lies beside. Pictures are called `<ImageID>.jpg`, or as a `filename2oiid.json` says, which
    CompositionCap comes with. Texts cannot be put back.
    """

    format = "openimages"
    title = "Open Images masks"

    def __init__(self, path: Path, options: ReadOptions) -> None:
        super().__init__(path, options)
        self._folder = path if path.is_dir() else path.parent
        self._tables = sorted(filter(_is_table, path.rglob("*.csv"))) if path.is_dir() else [path]
        if not self._tables:
            raise DataError(str(path), f"there is no table of masks in it, with the columns {', '.join(_COLUMNS)}.")
        self._labels = self._named_labels()
        self._places: dict[str, tuple[ImageStore, str]] | None = None
        self._file_names = {oiid: name for name, oiid in self._aliases().items()}
        self._images = open_images(self.where_images_lie() if options.images is None else options.images)
        self._rows: list[tuple[str, int, array[int]]] = []  # image, table, places of its lines

    @classmethod
    def recognises(cls, seen: Seen) -> bool:
        return any(_has_columns(each.head) for each in looks(seen, ".csv"))

    def files(self) -> Iterator[Path]:
        yield from self._tables

    def where_images_lie(self) -> Path:
        for place in (self._folder, self._folder.parent):
            if (place / "images").is_dir():
                return place / "images"
        return self._folder

    def scan(self) -> Iterator[tuple[str, Any]]:
        self._rows = []
        for number, table in enumerate(self._tables):
            lines: dict[str, array[int]] = {}
            with open(table, "rb") as file:
                columns = _cells(file.readline(_MAX_LINE_BYTES), table.name)
                at = file.tell()
                while line := file.readline(_MAX_LINE_BYTES):
                    if line.strip():
                        image = _row(columns, line, table.name).get("ImageID", "")
                        lines.setdefault(image, array("q")).append(at)
                    at = file.tell()
            self._rows += [(image, number, places) for image, places in lines.items()]
        for index in range(len(self._rows)):
            yield self.read(index)

    def read(self, index: int) -> tuple[str, Any]:
        image, number, places = self._rows[index]
        table = self._tables[number]
        where = f"{table.name}: {image}"
        regions = []
        try:
            with open(table, "rb") as file:
                columns = _cells(file.readline(_MAX_LINE_BYTES), table.name)
                for place in places:
                    file.seek(place)
                    regions.append(self._region(_row(columns, file.readline(_MAX_LINE_BYTES), table.name)))
        except DataError as error:
            return where, error.at(where)
        except OSError as error:
            return where, DataError(where, f"it cannot be read ({error.strerror}).")
        if not re.fullmatch(r"[0-9A-Za-z_.-]+", image):
            return where, DataError(where, "ImageID is no id of a picture.")
        return where, {"image": self._picture(image), "image_id": image, "regions": regions}

    def _picture(self, image: str) -> str:
        own = f"{image}.jpg"
        other = self._file_names.get(image)
        return other if other is not None and own not in self._images else own

    def _region(self, row: dict[str, str]) -> dict[str, Any]:
        name, label = row.get("MaskPath", ""), row.get("LabelName", "")
        if not name or "/" in name or "\\" in name:
            mask: Any = DataError("MaskPath", "it has to be the name of a file.")
        else:
            if self._places is None:
                self._places = self._masks()
            store, inside = self._places.get(name, (None, name))
            mask = MaskFile(inside, store, _RESIZED) if store else DataError(f"mask {name[:200]!r}", "it is not there.")
        own = {"label_name": label} if label in self._labels else {}
        if row.get("PredictedIoU"):
            own["predicted_iou"] = row["PredictedIoU"]
        region_id = row.get("BoxID") or name.rpartition(".")[0]
        return {"mask": mask, "id": region_id, "label": self._labels.get(label, label), **own}

    def _masks(self) -> dict[str, tuple[ImageStore, str]]:
        """Where each file of a mask lies, by its name."""
        top = self._folder.parent if self._folder.name == "annotations" else self._folder
        found: dict[str, tuple[ImageStore, str]] = {}
        stores = [open_images(top), *(open_images(each) for each in sorted(top.rglob("*.zip")))]
        for store in stores:
            for name in store.names():
                if name.endswith(".png"):
                    found.setdefault(name.rpartition("/")[2], (store, name))
        return found

    def _named_labels(self) -> dict[str, str]:
        names: dict[str, str] = {}
        for path in sorted(self._folder.rglob("*class-descriptions*.csv")):
            with open(path, encoding="utf-8", errors="replace", newline="") as file:
                names.update((row[0], row[1]) for row in csv.reader(file) if len(row) > 1)
        return names

    def _aliases(self) -> dict[str, str]:
        for folder in (self._folder, self._folder.parent):
            if (folder / ALIASES).is_file():
                return read_aliases(folder / ALIASES)
        return {}


def _is_table(path: Path) -> bool:
    with open(path, "rb") as file:
        return _has_columns(file.read(4096))


def _has_columns(head: bytes) -> bool:
    first = head.removeprefix(b"\xef\xbb\xbf").partition(b"\n")[0].decode("ascii", "replace").strip().split(",")
    return set(_COLUMNS) <= set(first)


def _cells(line: bytes, where: str) -> list[str]:
    try:
        return next(csv.reader([line.decode("utf-8-sig", "replace").rstrip("\r\n")], strict=True), [])
    except csv.Error as error:
        raise DataError(where, f"a line of the table is broken ({error}).") from error


def _row(columns: list[str], line: bytes, where: str) -> dict[str, str]:
    return dict(zip(columns, _cells(line, where)))
