"""Regions that are to be described: of a JSONL file, a folder of pictures with masks, or a `datasets` split.

All of it is read once, to know how much there is and where it lies; pictures and masks are opened when their turn
comes. docs/captioning.md describes the forms.
"""

import hashlib
import json
import os
import re
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from PIL import Image

from ..data.images import MAX_PIXELS, ImageStore, decode_image, open_images, to_rgb
from ..data.readers.detection import is_saved_dataset
from ..data.readers.json_stream import MAX_ELEMENT_BYTES, json_lines, parse_line
from ..data.readers.rows import load, without_none
from ..data.records import DataError, as_id, as_list, as_object, as_reference, as_text, keys_of, kind

MAX_REGIONS = 64
"""Regions of an image that are prepared at once; of an image with more, each such part is encoded by itself."""

_IMAGE_KEYS = ("image", "image_path", "file_name")
# The first that is there counts: the more exact ones before the less exact.
_REGION_KEYS = ("mask", "segmentation", "mask_rle", "mask_file", "polygon", "box_xyxy")
# Without one of the above, a region is the whole image. That must not happen because of a name that is not known.
_LOOK_ALIKES = ("bbox", "box", "boxes", "masks", "rle", "polygons", "points")
_PICTURES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class MaskFile:
    """A mask that lies beside the pictures, by its name there."""

    name: str


@dataclass(frozen=True)
class RegionInput:
    """A region that is to be described.

    Attributes:
        position (`int`): its line in the output, from 0.
        region_index (`int`): its number among the regions of its image, from 0.
        reference: for `as_mask`, or a `MaskFile`; `None` is the whole image.
        questions (`tuple[str, ...]`, *optional*): its own ones, instead of those for all regions.
        ids (`dict[str, str]`): `id` and `image_id`, where the input has them.
        error (`DataError`, *optional*): why it cannot be described.
    """

    position: int
    region_index: int
    reference: Any = None
    questions: tuple[str, ...] | None = None
    ids: Mapping[str, str] | None = None
    error: DataError | None = None


@dataclass(frozen=True)
class ImageInput:
    """An image, or `MAX_REGIONS` regions of one that has more.

    Attributes:
        name (`str`, *optional*): how the input names it.
        regions (`tuple[RegionInput, ...]`): at least one.
        picture: a name in `store`, or what a `datasets` split holds.
        store (`ImageStore`, *optional*): where pictures and masks lie.
    """

    name: str | None
    regions: tuple[RegionInput, ...]
    picture: Any
    store: ImageStore | None

    def load(self) -> Image.Image:
        """The picture in RGB, upright.

        Raises:
            DataError: If it is missing or damaged.
        """
        if isinstance(self.picture, str):
            if self.store is None:
                raise DataError(f"image {self.picture!r}", "it is not known where pictures lie. Give --images.")
            return self.store.read(self.picture)
        if isinstance(self.picture, DataError):
            raise self.picture
        where = f"image {str(self.name)[:200]!r}"
        if isinstance(self.picture, Image.Image):
            return to_rgb(self.picture, where)
        return decode_image(_content(self.picture, where), where, MAX_PIXELS)

    def reference(self, region: RegionInput) -> Any:
        """The reference of one of the regions, for `as_mask`; mask files are opened.

        Raises:
            DataError: If the file of the mask is missing or no picture.
        """
        found = region.reference
        where = "mask"
        if isinstance(found, MaskFile):
            where = f"mask {found.name[:200]!r}"
            if self.store is None:
                raise DataError(where, "it is not known where masks lie. Give --images.")
            data = self.store.read_bytes(found.name)
        elif _is_undecoded(found):
            data = _content(found, where)
        else:
            return found
        try:
            return Image.open(BytesIO(data))
        except Exception as error:  # decoders of damaged files raise nearly anything
            raise DataError(where, f"it cannot be read as a picture ({error}).") from error


def _is_undecoded(value: Any) -> bool:
    """Whether this is what `datasets` has of a picture before it decodes it."""
    return isinstance(value, Mapping) and set(value) == {"bytes", "path"}


def _content(value: Mapping[str, Any], where: str) -> bytes:
    if value["bytes"] is not None:
        return bytes(value["bytes"])
    try:
        return Path(value["path"] or "").read_bytes()
    except OSError as error:
        raise DataError(where, f"the dataset does not hold it, only a path that cannot be read ({error}).") from error


class _Rows(Protocol):
    """Rows by number, each with its place and what stands there, or a `DataError` instead."""

    def scan(self) -> Iterator[tuple[str, Any]]: ...

    def read(self, index: int) -> tuple[str, Any]: ...


class RegionInputs:
    """The images of an input in its order, each with its regions. `open_inputs` makes them.

    Consecutive rows of the same image are one image.

    Attributes:
        name (`str`): of the file, folder or dataset.
        fingerprint (`str`): changes where the input does. Pictures count by their names only (and by their sizes, in a
            folder of pictures).
        num_regions (`int`): lines of the output.
        notes (`list[str]`): what may be worth a look.
    """

    def __init__(self, name: str, rows: _Rows, images: ImageStore | None, fingerprint: str) -> None:
        self.name = name
        self.images = images
        self.fingerprint = fingerprint
        self.notes: list[str] = []
        self.num_regions = 0
        self._rows = rows
        # Of each item: first row, regions of that row that come before, number of regions, position and region_index
        # of the first.
        self._first_row, self._skipped, self._count = array("q"), array("q"), array("q")
        self._position, self._region_index = array("q"), array("q")
        first_error: DataError | None = None
        usable = False
        previous: str | None = None
        for row, (where, value) in enumerate(rows.scan()):
            found = _parse(value, where)
            errors = [region.error for region in found.regions if region.error is not None]
            if isinstance(found.picture, DataError):
                first_error = first_error or found.picture
            else:
                usable = usable or len(errors) < len(found.regions)
                first_error = first_error or next(iter(errors), None)
            self._add(row, found, joins=found.key is not None and found.key == previous)
            previous = found.key
        if not usable:
            raise first_error or DataError(name, "it holds no region.")

    def _add(self, row: int, found: "_Row", joins: bool) -> None:
        left, total = len(found.regions), len(found.regions)
        region_index = self._region_index[-1] + self._count[-1] if joins else 0
        if joins and (taken := min(left, MAX_REGIONS - self._count[-1])):
            self._count[-1] += taken
            left -= taken
            region_index += taken
        while left:
            taken = min(left, MAX_REGIONS)
            self._first_row.append(row)
            self._skipped.append(total - left)
            self._count.append(taken)
            self._position.append(self.num_regions + total - left)
            self._region_index.append(region_index)
            left -= taken
            region_index += taken
        self.num_regions += total

    def __len__(self) -> int:
        return len(self._count)

    def region_counts(self) -> Sequence[int]:
        """The number of regions of each item."""
        return self._count

    def __getitem__(self, index: int) -> ImageInput:
        """Item `index`.

        Raises:
            DataError: If the input is not any more what it was when it was opened.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"There is no item {index} among {len(self)}.")
        row, skipped, count = self._first_row[index], self._skipped[index], self._count[index]
        position, region_index = self._position[index], self._region_index[index]
        name: str | None = None
        picture: Any = None
        regions: list[RegionInput] = []
        while len(regions) < count:
            where, value = self._rows.read(row)
            found = _parse(value, where)
            name, picture = found.name, found.picture
            if len(found.regions) <= skipped:
                raise DataError(where, "it changed since the input was opened.")
            for region in found.regions[skipped : skipped + count - len(regions)]:
                number = len(regions)
                regions.append(
                    RegionInput(
                        position + number,
                        region_index + number,
                        region.reference,
                        region.questions,
                        region.ids,
                        region.error,
                    )
                )
            row, skipped = row + 1, 0
        return ImageInput(name, tuple(regions), picture, self.images)


def open_inputs(
    source: Any, *, images: str | os.PathLike[str] | ImageStore | None = None, split: str | None = None
) -> RegionInputs:
    """Open what is to be described.

    Args:
        source: a JSONL file; a folder of pictures with masks, or with a `records.jsonl`; a `datasets.Dataset` in
            memory, or the folder or the id on the Hub of a saved one.
        images: folder, .zip or .tar of the pictures; `None` means the folder of the file.
        split: of a dataset.

    Raises:
        DataError: If there is no such input, or nothing in it can be used.
    """
    if not isinstance(source, (str, os.PathLike)):
        return _of_dataset(source, split, images)
    path = Path(source)
    if path.is_dir() and split is None and not is_saved_dataset(path):
        if not (path / "records.jsonl").is_file():
            if images is not None:
                raise DataError(str(path), "in a folder of pictures they lie in it. Leave --images out.")
            return _of_folder(path)
        path = path / "records.jsonl"
    if path.is_file():
        if split is not None:
            raise DataError(str(path), "a file has no splits. Leave --split out.")
        return _of_lines(path, open_images(path.parent if images is None else images))
    if split is None and not path.is_dir():
        raise DataError(str(source), "there is no such file or folder. Of a dataset on the Hub, give --split, too.")
    return _of_dataset(source, split, images)


# --- one row ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """An image and its regions; with the same `key`, the next row is about the same image."""

    name: str | None
    picture: Any
    regions: list[RegionInput]
    key: str | None


def _parse(value: Any, where: str) -> _Row:
    """A row; what is wrong with all of it is the error of its only region, or its picture is an error."""
    name: str | None = None
    picture: Any = None
    key: str | None = None
    try:
        if isinstance(value, DataError):
            raise value
        row = as_object(value, "row")
        picture = next((row[each] for each in _IMAGE_KEYS if row.get(each) is not None), None)
        if isinstance(picture, str) and picture:
            name = key = picture
        elif _is_undecoded(picture) and (picture["path"] or picture["bytes"] is not None):
            name = os.path.basename(picture["path"] or "") or where
        elif isinstance(picture, Image.Image):
            name = where
        elif not _is_undecoded(picture):
            state = f"{kind(picture)} arrived, the name of a picture is needed; there are {keys_of(row)}"
            picture = DataError(where, f"image: {state}.")
        questions = _questions(row)
        if row.get("regions") is None:
            return _Row(name, picture, [_region(row, questions, where, {})], key)
        image_id = as_id(row.get("id"))
        ids = {} if image_id is None else {"image_id": image_id}
        entries = as_list(row["regions"], "regions")
        if not entries:
            raise DataError("regions", "there is none. Leave the key out to have the whole image described.")
        regions = [_region(entry, questions, f"{where}: regions[{n}]", ids) for n, entry in enumerate(entries)]
        return _Row(name, picture, regions, key)
    except DataError as error:
        error = error if error.where == where else error.at(where)
        return _Row(name, error if picture is None else picture, [RegionInput(0, 0, error=error)], key)


def _region(entry: Any, questions: tuple[str, ...] | None, where: str, ids: dict[str, str]) -> RegionInput:
    try:
        if not isinstance(entry, dict) or "counts" in entry or "coordinates" in entry:
            return RegionInput(0, 0, as_reference(entry, "region"), questions, ids)
        region_id = as_id(entry.get("id"))
        if region_id is not None:
            ids = {**ids, "id": region_id}
        reference = None
        given = next((name for name in _REGION_KEYS if entry.get(name) is not None), None)
        if given is not None:
            reference = as_reference(entry[given], given)
            if given == "mask_file":
                reference = MaskFile(as_text(reference, given))
            elif given in ("box_xyxy", "polygon"):
                reference = {given: reference}
        elif others := [name for name in _LOOK_ALIKES if entry.get(name) is not None]:
            raise DataError(
                others[0], f"it is no key of a region. Name it after what it holds: {', '.join(_REGION_KEYS)}."
            )
        return RegionInput(0, 0, reference, _questions(entry) or questions, ids)
    except DataError as error:
        return RegionInput(0, 0, ids=ids, error=error.at(where))


def _questions(row: dict[str, Any]) -> tuple[str, ...] | None:
    given = row.get("questions")
    if given is None:
        return None
    texts = [given] if isinstance(given, str) else as_list(given, "questions")
    if not texts:
        raise DataError("questions", "there is none. Leave the key out to ask those for all regions.")
    return tuple(as_text(text, f"questions[{number}]") for number, text in enumerate(texts))


# --- kinds of input --------------------------------------------------------------------------------------------------


class _Lines:
    """A JSONL file, of which only the places of lines are kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.numbers, self.offsets, self.lengths = array("q"), array("q"), array("q")

    def scan(self) -> Iterator[tuple[str, Any]]:
        for number, offset, length, value in json_lines(self.path):
            self.numbers.append(number)
            self.offsets.append(offset)
            self.lengths.append(length)
            yield self._place(number, value)

    def read(self, index: int) -> tuple[str, Any]:
        number, length = self.numbers[index], self.lengths[index]
        if length > MAX_ELEMENT_BYTES:
            return self._place(number, DataError("", f"the line has {length} bytes, too many."))
        with open(self.path, "rb") as file:
            file.seek(self.offsets[index])
            return self._place(number, parse_line(file.read(length), "", first=number == 1))

    def _place(self, number: int, value: Any) -> tuple[str, Any]:
        where = f"{self.path.name}:{number}"
        return where, DataError(where, value.reason) if isinstance(value, DataError) else value


def _of_lines(path: Path, images: ImageStore) -> RegionInputs:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            raise DataError(str(path), "this file is packed with gzip. Unpack it first.")
        file.seek(0)
        if file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            raise DataError(str(path), "this is one JSON array. Write its elements as JSON Lines, one object per line.")
        file.seek(0)
        while block := file.read(2**20):
            digest.update(block)
    return RegionInputs(path.name, _Lines(path), images, digest.hexdigest())


class _Listed:
    """Rows in memory."""

    def __init__(self, rows: Sequence[tuple[str, Any]]) -> None:
        self.rows = rows

    def scan(self) -> Iterator[tuple[str, Any]]:
        yield from self.rows

    def read(self, index: int) -> tuple[str, Any]:
        return self.rows[index]


def _of_folder(folder: Path) -> RegionInputs:
    names: list[str] = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        base = os.path.relpath(place, folder)
        names += [
            name if base == "." else f"{base}/{name}".replace(os.sep, "/")
            for name in files
            if name.lower().endswith(_PICTURES) and not name.startswith(".")
        ]
    names.sort(key=_natural)
    found = {name for name in names if "masks" not in PurePosixPath(name).parts[:-1]}
    by_stem: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in found:
        path = PurePosixPath(name)
        by_stem[str(path.parent), path.stem].append(name)

    masks: dict[str, list[str]] = defaultdict(list)
    orphans: list[str] = []
    for name in names:
        stems = _stems_of_mask(PurePosixPath(name), in_masks=name not in found)
        owner = next((stem for stem in stems if stem in by_stem), None)
        if owner is None:
            if name not in found:
                orphans.append(name)
            continue
        if len(pictures := by_stem[owner]) > 1:
            raise DataError(str(folder / name), f"it may be a mask of {' and of '.join(sorted(pictures))}. Rename one.")
        masks[pictures[0]].append(name)
    taken = {name for listed in masks.values() for name in listed}
    pictures = [name for name in names if name in found and name not in taken]
    rows: list[tuple[str, Any]] = []
    for name in pictures:
        regions = [{"mask_file": mask, "id": mask} for mask in masks[name]]
        rows.append((name, {"image": name, "regions": regions} if regions else {"image": name}))
    rows += [(name, DataError(name, "there is no picture that this is a mask of.")) for name in orphans]
    if not pictures:
        raise DataError(str(folder), f"there are no pictures in this folder ({', '.join(_PICTURES)}).")
    sizes = [(name, (folder / name).stat().st_size) for name in names]
    fingerprint = hashlib.sha256(json.dumps(sizes).encode()).hexdigest()
    inputs = RegionInputs(folder.resolve().name, _Listed(rows), open_images(folder), fingerprint)
    if bare := sum(not masks[name] for name in pictures):
        inputs.notes.append(f"{bare} of {len(pictures)} pictures have no mask and are described as a whole.")
    return inputs


def _stems_of_mask(path: PurePosixPath, in_masks: bool) -> Iterator[tuple[str, str]]:
    """The pictures, as (folder, stem), that a file may be a mask of."""
    if not in_masks:  # a-mask.png, a_mask2.png beside a.jpg; only PNG, since JPEG blurs the edges of a mask
        match = re.fullmatch(r"(.+)[-_]mask[^/]*?", path.stem)
        if match and path.suffix.lower() == ".png":
            yield str(path.parent), match[1]
        return
    parts = path.parts[:-1]
    depth = len(parts) - 1 - parts[::-1].index("masks")
    parent, inside = PurePosixPath(*parts[:depth]), parts[depth + 1 :]
    for beside in (parent, parent / "images"):
        yield str(beside.joinpath(*inside)), path.stem  # masks/a.png
        if inside:  # masks/a/anything.png
            yield str(beside.joinpath(*inside[:-1])), inside[-1]


def _natural(name: str) -> list[tuple[int, Any]]:
    """Sorts mask2 before mask10."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"([0-9]+)", name)]


class _DatasetRows:
    """Rows of a `datasets.Dataset`, pictures undecoded."""

    def __init__(self, dataset: Any, name: str) -> None:
        import datasets

        self.name = name
        pictures = [each for each, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
        for each in pictures:
            dataset = dataset.cast_column(each, datasets.Image(decode=False))
        self.dataset = dataset
        self.pictures = pictures

    def scan(self) -> Iterator[tuple[str, Any]]:
        """Without the pictures, which would all have to be read: each row that holds one is an image of its own."""
        rest = self.dataset.remove_columns(self.pictures)
        stand_in = {each: {"bytes": None, "path": None} for each in self.pictures}
        for index in range(len(self.dataset)):
            row = rest[index] if rest.column_names else {}
            yield f"{self.name}[{index}]", without_none(row) | stand_in

    def read(self, index: int) -> tuple[str, Any]:
        row = self.dataset[index]
        kept = {each: row.pop(each) for each in self.pictures}
        return f"{self.name}[{index}]", without_none(row) | kept


def _of_dataset(source: Any, split: str | None, images: Any) -> RegionInputs:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            str(source), "it is read with the library datasets. Install it: pip install datasets"
        ) from error
    name = type(source).__name__
    if isinstance(source, (str, os.PathLike)):
        name = Path(source).name
        try:
            if is_saved_dataset(Path(source)):
                source = datasets.load_from_disk(os.fspath(source))
            else:
                source = datasets.load_dataset(os.fspath(source), split=split)
        except Exception as error:  # the library raises many kinds, for what is damaged and what is not there
            raise DataError(str(source), f"the dataset cannot be loaded ({error}).") from error
    if isinstance(source, datasets.DatasetDict) and split is not None:
        if split not in source:
            raise DataError(name, f"there is no split {split!r}, only {', '.join(source)}.")
        source, name = source[split], f"{name}/{split}"
    dataset = load(source)
    store = None if images is None else open_images(images)
    return RegionInputs(name, _DatasetRows(dataset, name), store, f"{dataset._fingerprint}-{len(dataset)}")
