"""Regions of any input: JSON Lines, files of annotation tools, folders of pictures with masks, `datasets` splits.

All of it is read once, to know how much there is and where it lies; pictures and masks are opened when their turn
comes. docs/captioning.md and docs/formats.md describe the forms.
"""

import hashlib
import json
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ..masks_finecaption import REGION_KEYS
from ..prompts_finecaption import no_such
from .annotations import (
    ANNOTATION_FORMATS,
    AnnotationFile,
    ReadOptions,
    has_splits,
    is_pattern,
    open_annotations,
    recognise,
)
from .columns import Columns
from .examples import (
    DataError,
    as_id,
    as_list,
    as_object,
    as_reference,
    as_text,
    keys_of,
    kind,
    no_region_beside,
    region_of,
)
from .folder import pictures_with_masks
from .images import MAX_PIXELS, ImageStore, MaskContent, MaskFile, decode_image, open_images, to_rgb
from .json_stream import LinesByNumber, is_packed, json_lines
from .mask_rules import STRICT, MaskRules
from .orientation import turned_region
from .readers.detection import is_saved_dataset
from .readers.rows import DatasetRows, StreamRows, is_stream, open_split

MAX_REGIONS = 64
"""Regions of an image that are prepared at once; of an image with more, each such part is encoded by itself."""

_OWN_FORMATS = ("jsonl", "folder", "datasets")
_IMAGE_KEYS = ("image", "image_path", "file_name")
_KNOWN = {*_IMAGE_KEYS, "id", "regions", "questions", "branches"}
# Beside what was read, what a record says itself.
_NOT_CARRIED = _KNOWN | {*REGION_KEYS, "region_index", "area", "answers", "log_probs", "error", "errors"}


@dataclass(frozen=True)
class RegionInput:
    """A region that is to be described.

    Attributes:
        position (`int`): its line in the output, from 0.
        region_index (`int`): its number among the regions of its image, from 0.
        reference: for `as_mask`; `None` is the whole image. With an error: what stands there, `None` if that is not
            known.
        questions (`tuple[str, ...]`, *optional*): its own ones, instead of those for all regions.
        carried (`dict[str, Any]`): what goes into its record as it is: ids and the user's own keys, as JSON.
        error (`DataError`, *optional*): why it cannot be described.
    """

    position: int = 0
    region_index: int = 0
    reference: Any = None
    questions: tuple[str, ...] | None = None
    carried: Mapping[str, Any] = field(default_factory=dict)
    error: DataError | None = None

    def as_given(self) -> dict[str, Any]:
        """The region as the record of one that failed keeps it; empty where it is no JSON, or unknown."""
        if isinstance(self.reference, MaskFile):
            return {} if self.reference.part else {"mask_file": self.reference.name}
        if (self.reference is None and self.error is not None) or _is_undecoded(self.reference):
            return {}
        return {"mask": self.reference} if _is_json(self.reference) else {}


@dataclass(frozen=True)
class ImageInput:
    """An image, or `MAX_REGIONS` regions of one that has more.

    Attributes:
        name (`str`, *optional*): how the input names it.
        regions (`tuple[RegionInput, ...]`): at least one.
        picture: a name in `store`, or what a `datasets` split holds.
        store (`ImageStore`, *optional*): where pictures and masks lie.
        rules (`MaskRules`): how mask files are read.
        stored_orientation (`bool`): whether regions are in the pixels as they are stored, before the EXIF orientation.
    """

    name: str | None
    regions: tuple[RegionInput, ...]
    picture: Any
    store: ImageStore | None
    rules: MaskRules = STRICT
    stored_orientation: bool = False
    _contents: dict[str, MaskContent] = field(default_factory=dict, compare=False, repr=False)

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

    def reference(self, region: RegionInput, picture: Any = None) -> Any:
        """The reference of one of the regions, for `as_mask`; mask files are opened.

        Args:
            region: one of `regions`.
            picture: as `load` gave it: an EXIF orientation of it is one of its regions, too.

        Raises:
            DataError: If the file of the mask is missing or no picture.
        """
        reference = region.reference
        if isinstance(reference, MaskFile):
            reference = self._opened(reference)
        elif _is_undecoded(reference):
            content = MaskContent(_content(reference, "mask"), os.path.basename(reference["path"] or "") or "mask")
            reference = content.mask("mask", content.parts[0], self.rules)
        return turned_region(reference, picture, self.stored_orientation)

    def _opened(self, file: MaskFile) -> Any:
        file = replace(file, store=file.store or self.store, rules=self.rules.over(file.rules))
        if not file.part:
            return file.open()
        if file.name not in self._contents:  # of a file with several masks, which is read once
            self._contents[file.name] = file.content()
        return file.open(self._contents[file.name])


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


class _InputRows(Protocol):
    """Rows by number, each with its place and what stands there, or a `DataError` instead."""

    def scan(self) -> Iterator[tuple[str, Any]]: ...

    def read(self, index: int) -> tuple[str, Any]: ...


class RegionInputs:
    """The images of an input in its order, each with its regions. `open_regions` makes them.

    Consecutive rows of the same image are one image.

    Attributes:
        name (`str`): of the file, folder or dataset.
        title (`str`): what it was recognised as, for the user.
        notes (`list[str]`): lines for the user on how it was read.
        annotations (`AnnotationFile`, *optional*): the file of a tool, which texts can be put back into.
        fingerprint (`str`): changes where the input does. Pictures count by their names only (and by their sizes, in a
            folder of pictures).
        num_regions (`int`): lines of the output.
        num_whole_images (`int`): regions that are the whole picture.
        num_without_regions (`int`): pictures in which the input has no region; they give no record.
        path (`Path`, *optional*): the file or folder that was opened.
    """

    def __init__(
        self,
        name: str,
        rows: _InputRows,
        images: ImageStore | None,
        fingerprint: str,
        title: str,
        options: ReadOptions | None = None,
        path: Path | None = None,
    ) -> None:
        self.name = name
        self.path = path
        self.images = images
        self.options = options or ReadOptions()
        self.fingerprint = self.options.fingerprint(fingerprint)
        self.title = title
        self.annotations = rows if isinstance(rows, AnnotationFile) else None
        self.num_regions = self.num_whole_images = self.num_without_regions = 0
        self._rows = rows
        self._held: tuple[int, tuple[str, _ImageRow]] | None = None
        # Positions, in the output, of the first region of each row, of each item, and of the image of each item.
        self._row_starts, self._starts, self._image_starts = array("q"), array("q"), array("q")
        first_error: DataError | None = None
        num_good = image_start = 0
        previous: str | None = None
        self._parse = _parse_annotated if self.annotations and not self.annotations.has_own_rows else _parse
        for where, value in rows.scan():
            row = self._parse(value, where)
            self.num_without_regions += not row.regions
            good = [region for region in row.regions if region.error is None]
            errors = [region.error for region in row.regions if region.error is not None]
            if isinstance(row.picture, DataError):
                first_error = first_error or row.picture
            else:
                num_good += len(good)
                first_error = first_error or next(iter(errors), None)
            self.num_whole_images += sum(region.reference is None for region in good)
            self._row_starts.append(self.num_regions)
            if row.key is None or row.key != previous:
                image_start = self.num_regions
            for position in range(self.num_regions, self.num_regions + len(row.regions)):
                if position == image_start or position - self._starts[-1] == MAX_REGIONS:
                    self._starts.append(position)
                    self._image_starts.append(image_start)
            self.num_regions += len(row.regions)
            previous = row.key
        if not num_good:
            raise first_error or DataError(name, "it holds no region.")

    @property
    def notes(self) -> list[str]:
        return self.annotations.notes if self.annotations else []

    def __len__(self) -> int:
        return len(self._starts)

    def region_counts(self) -> Sequence[int]:
        """The number of regions of each item."""
        return [stop - start for start, stop in zip(self._starts, [*self._starts[1:], self.num_regions])]

    def __getitem__(self, index: int) -> ImageInput:
        """Item `index`.

        Raises:
            DataError: If the input is not any more what it was when it was opened.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"There is no item {index} among {len(self)}.")
        position = self._starts[index]
        stop = self._starts[index + 1] if index + 1 < len(self) else self.num_regions
        number = bisect_right(self._row_starts, position) - 1
        regions: list[RegionInput] = []
        while position < stop:
            where, row = self._row(number)
            if not row.regions:
                number += 1
                continue
            skipped = position - self._row_starts[number]
            if not 0 <= skipped < len(row.regions):
                raise DataError(where, "it changed since the input was opened.")
            for region in row.regions[skipped : skipped + stop - position]:
                regions.append(replace(region, position=position, region_index=position - self._image_starts[index]))
                position += 1
            number += 1
        rules, stored = self.options.mask_rules, self.options.stored_orientation
        return ImageInput(row.name, tuple(regions), row.picture, self.images, rules, stored)

    def _row(self, number: int) -> "tuple[str, _ImageRow]":
        """A row and its place; the last one that is several items is kept for them."""
        held = self._held  # replaced as a whole, by whichever thread
        if held is not None and held[0] == number:
            return held[1]
        where, value = self._rows.read(number)
        found = where, self._parse(value, where)
        if len(found[1].regions) > MAX_REGIONS:
            self._held = number, found
        return found


def open_regions(source: Any, options: ReadOptions | None = None, /, **changes: Any) -> RegionInputs:
    """Open regions, of whatever form.

    Args:
        source: JSON Lines; a file or folder of an annotation tool (docs/formats.md), or a pattern of parquet files or
            shards; a folder of pictures with masks, or with a `records.jsonl`; a `datasets.Dataset` in memory, or the
            folder or the id on the Hub of a saved one; a `datasets.IterableDataset`, see `StreamRows`.
        options, **changes: see `ReadOptions`; `open_regions("instances.json", images="photos")`.

    Raises:
        DataError: If there is no such input, its format cannot be told, or nothing in it can be used.
    """
    options = replace(options or ReadOptions(), **changes)
    images, split, format = options.images, options.split, options.format
    path = Path(source) if isinstance(source, (str, os.PathLike)) else None
    is_own = format in _OWN_FORMATS
    if format is not None and not is_own and format not in {each.format for each in ANNOTATION_FORMATS}:
        names = [*_OWN_FORMATS, *(each.format for each in ANNOTATION_FORMATS)]
        raise DataError(str(source), no_such("format", format, names))
    is_there = path is not None and (path.exists() or is_pattern(path))
    known = recognise(path) if path is not None and is_there and format is None else []
    if split is not None:
        is_own = is_own or not (any(each.has_splits for each in known) or has_splits(format))
    if path is not None and is_there and not is_own and (format is not None or known):
        annotations = open_annotations(path, options)
        store = open_images(annotations.where_images_lie() if images is None else images)
        return RegionInputs(
            annotations.name,
            annotations,
            store,
            annotations.fingerprint(),
            annotations.title,
            options=options,
            path=path,
        )
    if path is not None and path.is_dir() and split is None and not is_saved_dataset(path):
        if not (path / "records.jsonl").is_file():
            apart = None if images is None else open_images(images)
            rows, sizes = pictures_with_masks(path, apart, soft=options.threshold is not None)
            fingerprint = hashlib.sha256(json.dumps(sizes).encode()).hexdigest()
            title = "a folder of pictures with masks" if apart is None else "a folder of masks"
            store = apart or open_images(path)
            return RegionInputs(
                path.resolve().name, _ListedRows(rows), store, fingerprint, title, options=options, path=path
            )
        path = path / "records.jsonl"
    if path is not None and path.is_file():
        if split is not None:
            raise DataError(str(path), "a file has no splits. Leave --split out.")
        store = open_images(path.parent if images is None else images)
        store.take_aliases(path.parent)
        lines, title = _FileRows(path, options.box_format), "JSON Lines"
        return RegionInputs(path.name, lines, store, _digest_of_lines(path), title, options=options, path=path)
    if path is not None and split is None and not path.is_dir():
        raise DataError(str(source), "there is no such file or folder. Of a dataset on the Hub, give --split, too.")
    dataset, name = open_split(source, split)
    opened = None if images is None else open_images(images)
    if is_stream(dataset):
        stream = StreamRows(dataset, name, options.box_format)
        return RegionInputs(name, stream, opened, stream.fingerprint, "a data set that streams", options=options)
    table, fingerprint = DatasetRows(dataset, name, options.box_format), f"{dataset._fingerprint}-{len(dataset)}"
    return RegionInputs(name, table, opened, fingerprint, "a data set", options=options, path=path)


class _FileRows:
    """A JSONL file."""

    def __init__(self, path: Path, box_format: str | None = None) -> None:
        self.name = path.name
        self.lines = LinesByNumber(path)
        self.columns = Columns(box_format=box_format)

    def scan(self) -> Iterator[tuple[str, Any]]:
        for number, offset, length, value in json_lines(self.lines.path):
            self.lines.add(number, offset, length)
            yield self._place(number, value)

    def read(self, index: int) -> tuple[str, Any]:
        return self._place(*self.lines.read(index))

    def _place(self, number: int, value: Any) -> tuple[str, Any]:
        where = f"{self.name}:{number}"
        if isinstance(value, DataError):
            return where, DataError(where, value.reason)
        return where, self.columns.row(value) if isinstance(value, dict) else value


class _ListedRows:
    """Rows in memory."""

    def __init__(self, rows: Sequence[tuple[str, Any]]) -> None:
        self.rows = rows

    def scan(self) -> Iterator[tuple[str, Any]]:
        yield from self.rows

    def read(self, index: int) -> tuple[str, Any]:
        return self.rows[index]


def _digest_of_lines(path: Path) -> str:
    digest = hashlib.sha256()
    if is_packed(path):
        raise DataError(str(path), "this file is packed. Unpack it first.")
    with open(path, "rb") as file:
        if file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            raise DataError(str(path), "this is one JSON array. Write its elements as JSON Lines, one object per line.")
        file.seek(0)
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


# --- one row ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ImageRow:
    """An image and its regions; with the same `key`, the next row is about the same image."""

    name: str | None
    picture: Any
    regions: list[RegionInput]
    key: str | None


def _parse(value: Any, where: str) -> _ImageRow:
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
        if _is_record(row):
            return _ImageRow(name, picture, [_recorded(row)], key)
        if row.get("regions") is None:
            return _ImageRow(name, picture, [_region(row, None, where, {})], key)
        questions = _questions(row)
        no_region_beside(row)
        carried = _carried(row, "image_id")
        entries = as_list(row["regions"], "regions")
        regions = [_region(entry, questions, f"{where}: regions[{n}]", carried) for n, entry in enumerate(entries)]
        return _ImageRow(name, picture, regions, key)
    except DataError as error:
        error = error if error.where == where else error.at(where)
        return _ImageRow(name, error if picture is None else picture, [RegionInput(error=error)], key)


def _is_record(row: dict[str, Any]) -> bool:
    """Whether `describe` wrote this line: then `box_xyxy` is that of the region under `mask` or `mask_file`.

    Records of the pipeline have no mask: their box is all that is known of their region.
    """
    if not isinstance(row.get("region_index"), int):
        return False
    has_region = "mask" in row or row.get("mask_file") is not None
    if row.get("error") is not None:
        return has_region or not any(row.get(key) is not None for key in REGION_KEYS)
    return has_region and row.get("answers") is not None


def _recorded(row: dict[str, Any]) -> RegionInput:
    """The region of a line that `describe` wrote; one that failed, and of which no more is known, fails again."""
    own = {key: value for key, value in row.items() if key == "id" or key not in _NOT_CARRIED}
    carried = {key: value for key, value in own.items() if value is not None and _is_json(value)}
    reference, error = row.get("mask"), None
    if row.get("mask_file") is not None:
        reference = MaskFile(as_text(row["mask_file"], "mask_file"))
    elif "mask" not in row:
        given = row["error"]
        error = DataError(str(given.get("message") if isinstance(given, dict) else given))
    return RegionInput(reference=reference, questions=_questions(row), carried=carried, error=error)


def _parse_annotated(value: Any, where: str) -> _ImageRow:
    """A row of an `AnnotationFile`, which is what its description says."""
    if isinstance(value, DataError):
        return _ImageRow(None, value, [RegionInput(error=value)], None)
    picture = value.get("picture", value["image"])
    carried = _carried({key: own for key, own in value.items() if key != "picture"}, "image_id")
    regions = []
    for number, entry in enumerate(value["regions"]):
        reference, own = entry["mask"], carried | _carried(entry, "id")
        if isinstance(reference, DataError):
            error = reference if reference.where.startswith(where) else reference.at(f"{where}: regions[{number}]")
            regions.append(RegionInput(carried=own, error=error))
        else:
            regions.append(RegionInput(reference=reference, carried=own))
    return _ImageRow(value["image"], picture, regions, value["image"])


def _region(entry: Any, questions: tuple[str, ...] | None, where: str, carried: dict[str, Any]) -> RegionInput:
    try:
        if not isinstance(entry, dict):
            return RegionInput(reference=as_reference(entry, "region"), questions=questions, carried=carried)
        carried = carried | _carried(entry, "id")
        reference = region_of(entry, _KNOWN)[1]
        if isinstance(reference, DataError):  # of a file that cannot hold masks
            raise reference
        return RegionInput(reference=reference, questions=_questions(entry) or questions, carried=carried)
    except DataError as error:
        return RegionInput(reference=_given(entry), carried=carried, error=error.at(where))


def _given(entry: Any) -> Any:
    """The reference of an entry in which something is wrong: itself, or, if that is what is wrong, all keys of one."""
    if not isinstance(entry, dict):
        return entry
    with suppress(DataError):
        return region_of(entry, _KNOWN)[1]
    return {key: entry[key] for key in (*REGION_KEYS, "size", "type") if entry.get(key) is not None} or None


def _carried(row: dict[str, Any], id_name: str) -> dict[str, Any]:
    """What goes from a row into its records: its id, and the user's own keys."""
    given = as_id(row.get("id"))
    own = {
        key: value for key, value in row.items() if value is not None and key not in _NOT_CARRIED and _is_json(value)
    }
    return own if given is None else {id_name: given, **own}


# json.dumps would make one for each value.
_ENCODER = json.JSONEncoder(allow_nan=False)


def _is_json(value: Any) -> bool:
    """What comes from a dataset need not be."""
    if type(value) in (str, bool, int):
        return True
    try:
        _ENCODER.encode(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _questions(row: dict[str, Any]) -> tuple[str, ...] | None:
    given = row.get("questions")
    if given is None:
        return None
    texts = [given] if isinstance(given, str) else as_list(given, "questions")
    if not texts:
        raise DataError("questions", "there is none. Leave the key out to ask those for all regions.")
    return tuple(as_text(text, f"questions[{number}]") for number, text in enumerate(texts))
