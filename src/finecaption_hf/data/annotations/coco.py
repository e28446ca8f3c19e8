"""COCO instances and what is written like them: LVIS, Roboflow, DLC-Bench, RefCOCO, GLaMM, and detectors' results."""

import mmap
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from ..errors import DataError
from ..examples import as_id, keys_of, kind
from ..json_stream import JsonStream, parse
from .base import AnnotationFile, ReadOptions, Seen
from .coco_pixels import CocoRegion
from .elements import WHOLE_FILE, dumped, group, index_lists, spliced
from .files import new_file
from .seeing import see
from .writing import with_texts

_Size = tuple[int, int]
_OwnedRow = tuple[str, Any, list[int]]

# Where a long list of images comes first, the annotations are looked for within so many bytes.
_MAX_SEARCHED_BYTES = 2**30
_ANNOTATIONS = re.compile(rb'"annotations"\s*:\s*\[\s*')


class CocoInstances(AnnotationFile):
    """A file with lists of images, annotations and categories, in any order.

    Each entry of `images` is a row, with its annotations in their order; an annotation of an image that is not there is
    a row with an error, at the end. A caption in `images` is that of its only annotation, as in RefCOCO, or else stays
    with the image. Answers go back into an annotation's `caption` and `attributes`, see `texts_of`; all else stays byte
    for byte.
    """

    format: ClassVar[str] = "coco"
    title: ClassVar[str] = "COCO instances"

    def __init__(self, path: Path, options: ReadOptions) -> None:
        super().__init__(path, options)
        lists, others = index_lists(path, {"images": "id", "annotations": "image_id"}, ("categories",))
        for name in ("images", "annotations"):
            if name not in lists:
                raise DataError(self.name, f"there is no list {name!r}. Is this {self.title}?")
        self._images, self._annotations = lists["images"], lists["annotations"]
        self._categories = by_id(others.get("categories"))
        self._image_path = path
        self._groups = group(self._annotations.codes, self._images.codes)

    @classmethod
    def recognises(cls, seen: Seen) -> bool:
        first = first_annotation(seen)
        if not first and isinstance(seen.json, dict) and seen.json.get("annotations") == []:
            return "file_name" in seen.element("images") and "id" in seen.element("images")
        is_about_pixels = not first.keys().isdisjoint(_REGION_KEYS)
        # Captions alone are of whole pictures; the error of an annotation says so.
        return "image_id" in first and "segments_info" not in first and (is_about_pixels or "caption" in first)

    def scan(self) -> Iterator[tuple[str, Any]]:
        counts: Counter[str] = Counter()
        for where, row, _ in self._rows(counts):
            yield where, row
        self.notes[:] = self._notes(counts)

    def read(self, index: int) -> tuple[str, Any]:
        with self._open() as (images, annotations):
            where, row, _ = self._row(index, images, annotations, Counter())
            return where, row

    def where_images_lie(self) -> Path:
        """The folder of the file; of COCO's own `annotations/`, the one around it, in which `val2017/` lies."""
        folder = super().where_images_lie()
        return folder.parent if folder.name == "annotations" else folder

    def write_back(self, answers: Iterator[Mapping[str, str] | None], target: Path) -> None:
        number_of = len(self._annotations)
        starts, lengths = np.zeros(number_of, np.int64), np.zeros(number_of, np.int64)
        # Answers come in the order of images and go in the order of the file, so they wait on disk.
        with tempfile.TemporaryFile() as waiting, open(self.path, "rb", buffering=0) as source:
            for _, _, owners in self._rows(Counter()):
                for number, pairs in groupby(zip(owners, answers), key=itemgetter(0)):
                    given = [answer for _, answer in pairs]
                    if not any(given):
                        continue
                    annotation = parse(self._annotations.text(source, number).decode("utf-8"))
                    starts[number] = waiting.tell()
                    lengths[number] = waiting.write(dumped(self._with_answers(annotation, given)))
            changed = np.flatnonzero(lengths)
            in_file = changed[np.argsort(self._annotations.offsets[changed])]

            def changes() -> Iterator[tuple[int, int, bytes]]:
                for number in in_file.tolist():
                    waiting.seek(starts[number])
                    place = int(self._annotations.offsets[number]), int(self._annotations.lengths[number])
                    yield *place, waiting.read(lengths[number])

            with new_file(self.path, target) as written:
                spliced(source, written, changes())

    # --- rows --------------------------------------------------------------------------------------------------------

    @contextmanager
    def _open(self) -> Iterator[tuple[BinaryIO, BinaryIO]]:
        """The files of images and of annotations; without buffers, since each read is at another place."""
        with open(self._image_path, "rb", buffering=0) as images, open(self.path, "rb", buffering=0) as annotations:
            yield images, annotations

    def _rows(self, counts: Counter[str]) -> Iterator[_OwnedRow]:
        with self._open() as files:
            for index in range(len(self._images) + len(self._groups.orphans)):
                yield self._row(index, *files, counts)

    def _row(self, index: int, images: BinaryIO, annotations: BinaryIO, counts: Counter[str]) -> _OwnedRow:
        """Place, row, and for each of its regions the number of its annotation."""
        if index >= len(self._images):
            number = int(self._groups.orphans[index - len(self._images)])
            where = f"{self.name}: annotations[{number}]"
            return where, DataError(where, "it belongs to no image: there is none with its id."), []
        where = f"{self._image_path.name}: images[{index}]"
        try:
            image = self._images.read(images, index, where)
            row = self._image_row(image)
            if self._groups.is_repeated[index]:
                raise DataError("id", "an image before it has the same one, and all of its annotations.")
        except DataError as error:
            return where, error if error.where == where else error.at(where), []
        numbers = self._groups.of(index)
        size = size_of(image)
        regions: list[dict[str, Any]] = []
        owners: list[int] = []
        for number in numbers:
            place = f"{where}: annotations[{number}]"
            try:
                found = self._regions(self._annotations.read(annotations, number, place), image, size, place, counts)
            except DataError as error:
                found = [{"mask": error}]
            regions += found
            owners += [number] * len(found)
        if isinstance(image.get("caption"), str):
            # RefCOCO's files have an entry of images for each caption of a region.
            (regions[0] if len(numbers) == len(regions) == 1 else row).setdefault("caption", image["caption"])
        row["regions"] = regions
        return where, row, owners

    def _image_row(self, image: dict[str, Any]) -> dict[str, Any]:
        own = {key: value for key, value in image.items() if key not in _NOT_OF_A_ROW}
        return {**own, "image": name_of(image), "id": id_of(image)}

    def _regions(
        self, annotation: dict[str, Any], image: dict[str, Any], size: _Size | None, where: str, counts: Counter[str]
    ) -> list[dict[str, Any]]:
        """The regions of an annotation; a `DataError` is that of its only one."""
        own = {key: value for key, value in annotation.items() if key not in _NOT_OF_A_REGION}
        region = {**own, "mask": reference_of(annotation, size, where, counts)}
        try:
            region["id"] = id_of(annotation)
        except DataError as error:
            region["mask"] = error.at(where)
        if (label := self._label(annotation)) is not None:
            region["label"] = label
        return [region]

    def _label(self, annotation: dict[str, Any]) -> str | None:
        name = self._categories.get(str(annotation.get("category_id")), {}).get("name")
        return name if isinstance(name, str) else None

    def _notes(self, counts: Counter[str]) -> list[str]:
        return [text.format(counts[key]) for key, text in _NOTES.items() if counts[key]]

    def _with_answers(self, annotation: dict[str, Any], answers: list[Mapping[str, str] | None]) -> dict[str, Any]:
        """An annotation with the answers for its regions."""
        return with_texts(annotation, answers[0] or {})


class CocoResults(CocoInstances):
    """What detectors write: a list of `{image_id, category_id, segmentation or bbox, score}`.

    Pictures have only ids in it, so the file with their names is needed: `ReadOptions.image_list`, or the only COCO
    file that lies beside it. Answers go back as into `CocoInstances`.
    """

    format: ClassVar[str] = "coco-results"
    title: ClassVar[str] = "results in COCO's form"

    def __init__(self, path: Path, options: ReadOptions) -> None:
        AnnotationFile.__init__(self, path, options)
        given = options.image_list
        self._image_path = self._beside() if given is None else Path(given)
        if not self._image_path.is_file():
            raise DataError(str(self._image_path), "there is no such file. --image-list is COCO's file with images.")
        lists, others = index_lists(self._image_path, {"images": "id"}, ("categories",))
        if "images" not in lists:
            raise DataError(
                self._image_path.name, "there is no list 'images'. --image-list is COCO's file with images."
            )
        self._images = lists["images"]
        self._annotations = index_lists(path, {WHOLE_FILE: "image_id"})[0][WHOLE_FILE]
        self._categories = by_id(others.get("categories"))
        self._groups = group(self._annotations.codes, self._images.codes)

    @classmethod
    def recognises(cls, seen: Seen) -> bool:
        return {"image_id", "category_id"} <= seen.first.keys() and not seen.first.keys().isdisjoint(_REGION_KEYS)

    def files(self) -> Iterator[Path]:
        yield from (self._image_path, self.path)

    def _beside(self) -> Path:
        files = [path for path in sorted(self.path.parent.glob("*.json")) if path != self.path and has_images(path)]
        if len(files) == 1:
            return files[0]
        listed = f" It may be {', '.join(path.name for path in files[:5])}." if files else ""
        raise DataError(
            self.name,
            "these are results, which know pictures by their ids only. Give the COCO file that they are of: "
            f"--image-list FILE.{listed}",
        )

    def _notes(self, counts: Counter[str]) -> list[str]:
        return [f"Names of pictures and categories are those of {self._image_path}.", *super()._notes(counts)]


# --- what stands in an element ---------------------------------------------------------------------------------------

_REGION_KEYS = ("segmentation", "bbox")
# What a row or a region says itself, in the package's words.
_NOT_OF_A_ROW = frozenset({"file_name", "id", "image", "width", "height", "regions", "caption"})
_NOT_OF_A_REGION = frozenset({"segmentation", "id", "image_id", "mask"})
_NOTES = {
    "boxes": "{} annotations have no outline: their boxes are the regions.",
    "parts": "{} polygons of fewer than three points were left out of their regions.",
}


def by_id(categories: Any) -> dict[str, dict[str, Any]]:
    """Categories by id, whether it is a number or text; the first of several."""
    found: dict[str, dict[str, Any]] = {}
    for category in categories if isinstance(categories, list) else []:
        if isinstance(category, dict):
            found.setdefault(str(category.get("id")), category)
    return found


def id_of(entry: dict[str, Any]) -> str | int | None:
    """The id of an image or annotation; a whole number that was written with a point is one.

    Raises:
        DataError: If it is something else.
    """
    value = entry.get("id")
    return as_id(int(value) if isinstance(value, float) and value.is_integer() else value)


def name_of(image: dict[str, Any]) -> str:
    """The name of an image's file; of LVIS, which has only an address, folder and file at its end.

    Raises:
        DataError: If it has none.
    """
    name, address = image.get("file_name"), image.get("coco_url")
    if isinstance(name, str) and name:
        return name
    if isinstance(address, str) and address.strip("/"):
        return "/".join(address.rstrip("/").split("/")[-2:])
    raise DataError("file_name", f"{kind(name)} arrived, the name of a picture is needed; there are {keys_of(image)}.")


def size_of(image: dict[str, Any]) -> _Size | None:
    """(H, W) that a file states for a picture, if it does."""
    height, width = (
        int(side) if isinstance(side, float) and side.is_integer() else side
        for side in (image.get("height"), image.get("width"))
    )
    if type(height) is int and type(width) is int and height > 0 and width > 0:
        return height, width
    return None


def reference_of(annotation: dict[str, Any], size: _Size | None, where: str, counts: Counter[str]) -> Any:
    """The region reference of an annotation: RLE, polygons, or, where it has no outline, its box."""
    outline, box = annotation.get("segmentation"), annotation.get("bbox")
    if isinstance(outline, dict) and outline:
        return outline
    if isinstance(outline, list) and outline:
        parts = outline if isinstance(outline[0], list) else [outline]
        if odd := next((part for part in parts if not isinstance(part, list)), None):
            return DataError(where, f"segmentation: {kind(odd)} arrived among its polygons, which have to be lists.")
        # Two points are no outline; as four numbers they would even read as a box.
        kept = [part for part in parts if len(part) >= 6]
        counts["parts"] += len(parts) - len(kept) if kept else 0
        if not kept:
            return DataError(where, "each of its polygons has fewer than three points, so it has no area.")
        return CocoRegion(size, tuple(kept))
    if outline:
        return DataError(where, f"segmentation: {kind(outline)} arrived, polygons or RLE are needed.")
    if box is None:
        return DataError(where, f"it has neither a segmentation nor a bbox; there are {keys_of(annotation)}.")
    if not is_box(box):
        return DataError(where, "bbox: [x, y, width, height] is needed, in pixels, with a width and height above 0.")
    counts["boxes"] += 1
    x, y, width, height = box
    return CocoRegion(size, ((x, y, x, y + height, x + width, y + height, x + width, y),))


def is_box(value: Any) -> bool:
    """Whether this is `[x, y, width, height]` with an area."""
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in value)
        and value[2] > 0
        and value[3] > 0
    )


# --- recognition -----------------------------------------------------------------------------------------------------


def first_annotation(seen: Seen) -> dict[str, Any]:
    """The first entry of `annotations`, also where a list of images before it is too long to be passed over."""
    if not isinstance(seen.json, dict) or "annotations" in seen.json or not seen.element("images"):
        return seen.element("annotations")
    with open(seen.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = _ANNOTATIONS.search(content, 0, _MAX_SEARCHED_BYTES)
        if place is None:
            return {}
        file.seek(place.end())
        try:
            first = JsonStream(file, str(seen.path)).value()
        except DataError:
            return {}
    return first if isinstance(first, dict) else {}


def has_images(path: Path) -> bool:
    """Whether a file has a list of images with ids and names."""
    try:
        image = see(path).element("images")
    except DataError:
        return False
    return "id" in image and not image.keys().isdisjoint(("file_name", "coco_url"))
