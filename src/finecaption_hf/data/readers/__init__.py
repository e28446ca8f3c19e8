"""Files of datasets -> examples, one at a time. docs/data.md describes the formats.

`read_examples` opens any of them:

>>> from finecaption_hf.data import read_examples
>>> for example in read_examples("annotations.json", images="images.zip", on_error="skip"):
...     picture = example.load()
"""

import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO, TypeVar, get_args

from ...prompts_finecaption import no_such
from ..annotations import ANNOTATION_FORMATS, AnnotationFile, ReadOptions, is_pattern, open_annotations, recognise
from ..columns import Columns, declared_formats, is_picture
from ..examples import DataError, Example
from ..images import ImageStore, open_images
from ..json_stream import JsonStream, is_packed, json_lines, open_json
from . import described
from .annotated import WITHOUT_CAPTION, NotDescribedError, annotated, is_record, recorded
from .coco import refcoco
from .detection import Format, detect_format, has_elements, has_image_captions, is_saved_dataset
from .keys import COMPOSITIONCAP, DATASETS, OSPREY, Keys

FORMATS: tuple[str, ...] = get_args(Format)

_ANNOTATIONS = {each.format: each for each in ANNOTATION_FORMATS}
_RAW_LENGTH = 2000
_KEYS = {"compositioncap": COMPOSITIONCAP, "llava": Keys(), "osprey": OSPREY}
# Tables, whose rows have columns.
_KEYS |= dict.fromkeys(["datasets", *(each.format for each in ANNOTATION_FORMATS if each.has_own_rows)], DATASETS)

# Number of the line (from 1) or row (from 0); offset and length of a line in bytes.
Place = tuple[int, int, int]
# Where a part stands; the example or why there is none; what was read; the place of a line or row.
Item = tuple[str, "Example | DataError", Any, Place | None]
Used = TypeVar("Used")


class ExampleReader:
    """The examples of one file, folder or dataset. Iterating again reads again; `read_examples` makes readers.

    Attributes:
        images (`ImageStore`, *optional*): where its pictures lie. None for datasets that hold them.
        num_examples, num_rejected (`int`): counts of the last iteration, so far.
        num_regions, num_whole_images (`int`): regions of the examples so far, and those of them without a mask.
        rejects_path (`Path`): where rejected examples are written, if there are any and `on_error` is "skip".
        on_reject (*optional*): is called with where and reason of each rejected example.
        left_out (`Counter[str]`): what the rules of the format leave out (reason -> number), such as objects without
            any text. They are no errors, but nothing is left out without being counted here.
        annotations (`AnnotationFile`, *optional*): the file of an annotation tool, as the last iteration opened it.
        options (`ReadOptions`): how regions are read.
        reads_pictures (`bool`): if not, rows of tables come without the pictures in them, which is faster.
    """

    def __init__(
        self,
        source: Any,
        format: str,
        *,
        images: ImageStore | None,
        on_error: str,
        rejects: Path,
        keys: Keys,
        keep_entity_references: bool,
        options: ReadOptions,
    ) -> None:
        self.source = source
        self.format = format
        self.images = images
        self.on_error = on_error
        self.rejects_path = rejects
        self.keys = keys
        self.keep_entity_references = keep_entity_references
        self.options = options
        self.annotations: AnnotationFile | None = None
        self.reads_pictures = True
        self._columns = Columns(box_format=options.box_format)
        self.on_reject: Callable[[str, str], None] | None = None
        self._reset()

    def _reset(self) -> None:
        self.num_examples = self.num_rejected = self.num_regions = self.num_whole_images = 0
        self.left_out: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Example]:
        """Read the examples in their order.

        Raises:
            DataError: If something cannot be used and `on_error` is "raise"; and in any case where the file is broken
                so that what follows cannot be told apart, since an unknown number of examples would be lost.
            NotDescribedError: If there are regions, but no text about any of them.
        """
        return self.each(lambda example, place: example)

    def each(self, use: Callable[[Example, Place | None], Used]) -> Iterator[Used]:
        """What `use` makes of each example and its place; a `DataError` that it raises rejects the example."""
        self._reset()
        rejects: TextIO | None = None
        try:
            for where, found, raw, place in self._items():
                if isinstance(found, NotDescribedError):  # it is counted
                    continue
                error = found
                if isinstance(found, Example):
                    try:
                        used = use(found, place)
                    except DataError as raised:
                        error = raised
                    else:
                        self.num_examples += 1
                        self.num_regions += len(found.regions)
                        self.num_whole_images += sum(region.mask is None for region in found.regions)
                        yield used
                        continue
                assert isinstance(error, DataError)
                if self.on_error == "raise":
                    raise error
                reason = _below(where, error)
                if rejects is None:
                    rejects = self.rejects_path.open("w", encoding="utf-8")
                self.num_rejected += 1
                if self.on_reject is not None:
                    self.on_reject(where, reason)
                reject = {"where": where, "reason": reason, "raw": _shown(raw)}
                rejects.write(json.dumps(reject) + "\n")
        finally:
            if rejects is not None:
                rejects.close()
        if not self.num_examples and not self.num_rejected and self.left_out[WITHOUT_CAPTION]:
            raise NotDescribedError(
                self.name,
                f"it has {self.left_out[WITHOUT_CAPTION]} regions but no text about any of them, so there is nothing "
                "to learn from or to compare with. Its regions can be described: finecaption describe.",
            )
        self._tell()

    def _tell(self) -> None:
        if self.num_rejected:
            warnings.warn(
                f"{self.num_rejected} of {self.num_rejected + self.num_examples} examples of {self.name} are rejected; "
                f"they are in {self.rejects_path} with their reasons.",
                stacklevel=3,
            )
        if left_out := +self.left_out:
            counts = ", ".join(f"{number} {reason}" for reason, number in sorted(left_out.items()))
            warnings.warn(f"{self.name}: left out were {counts}.", stacklevel=3)
        for note in self.annotations.notes if self.annotations else ():
            warnings.warn(f"{self.name}: {note}", stacklevel=3)

    @property
    def name(self) -> str:
        return os.fspath(self.source) if isinstance(self.source, (str, os.PathLike)) else type(self.source).__name__

    # --- elements of each kind of file -------------------------------------------------------------------------------

    def _items(self) -> Iterator[Item]:
        if self.format == "datasets":
            yield from self._rows()
        elif self.format == "refcoco":
            for where, found in refcoco(self.source, self.left_out):
                yield where, self._placed(found) if isinstance(found, Example) else found, None, None
        elif self.format == "grand":
            yield from self._grand()
        elif self.format == "jsonl":
            yield from self._lines()
        elif self.format in _ANNOTATIONS:
            yield from self._annotations()
        else:
            with open_json(self.source) as file:
                first = JsonStream(file, self.name).peek()
            if first == "[":
                yield from self._array()
            elif self.format == "compositioncap" and not has_elements(self.source, self.keys):
                yield from self._object(Path(self.source))
            else:
                yield from self._lines()

    def _lines(self) -> Iterator[Item]:
        for number, offset, length, value in json_lines(self.source):
            where = f"{self.name}:{number}"
            place = (number, offset, length)
            if isinstance(value, DataError):
                yield where, value, self._raw_line(offset, length), place
            else:
                yield where, self._parse(value, where), value, place

    def _raw_line(self, offset: int, length: int) -> str:
        with open_json(self.source) as file:
            file.seek(offset)
            return file.read(min(length, 4 * _RAW_LENGTH)).decode("utf-8", "replace").rstrip("\n")

    def _array(self) -> Iterator[Item]:
        with open_json(self.source) as file:
            stream = JsonStream(file, self.name)
            for index, value in enumerate(stream.elements()):
                where = f"{self.name}[{index}]"
                yield where, self._parse(value, where), value, None
            stream.end()

    def _object(self, path: Path) -> Iterator[Item]:
        """A file with an object of images by name."""
        with open_json(path) as file:
            stream = JsonStream(file, str(path))
            for image in stream.names():
                where = f"{path}[{image[:100]!a}]"
                value = stream.value()
                yield where, self._parse(value, where, image), value, None
            stream.end()

    def _grand(self) -> Iterator[Item]:
        source = Path(self.source)
        if not source.is_dir():
            yield from self._object(source)
            return
        # A million names fit into memory; a million parsed files would not.
        with os.scandir(source) as entries:
            names = sorted(entry.name for entry in entries if entry.name.endswith(".json"))
        for name in names:
            try:
                yield from self._object(source / name)
            except DataError as error:  # a broken file does not touch the others
                yield error.where, error, None, None

    def _rows(self) -> Iterator[Item]:
        dataset = load_rows(self.source)
        schema = dataset.data.schema if hasattr(dataset, "data") else ()
        self._columns = Columns(
            getattr(dataset, "features", None), self.options.box_format, dict(declared_formats(schema))
        )
        for index, row in enumerate(_whole_rows(dataset)):
            where = f"{self.name}[{index}]"
            yield where, self._parse(row, where), row, (index, 0, 0)

    def _annotations(self) -> Iterator[Item]:
        self.annotations = opened = open_annotations(Path(self.source), replace(self.options, format=self.format))
        for index, (where, row) in enumerate(opened.scan()):
            if opened.has_own_rows and self.reads_pictures:
                where, row = opened.read(index)
            elif opened.has_own_rows and isinstance(row, dict) and is_picture(row.get("image")):
                row = {**row, "image": "(not read)"}
            yield where, self._parse(row, where), row, (index, 0, 0)

    def _parse(self, value: Any, where: str, image: str | None = None) -> Example | DataError:
        try:
            return self.parse(value, where, image)
        except DataError as error:
            return error

    def parse(self, value: Any, where: str, image: str | None = None) -> Example:
        """One element of the file as an example.

        Raises:
            DataError: If it cannot be used.
        """
        try:
            return self._placed(self._example(value, where, image))
        except DataError as error:
            raise error if error.where == where else error.at(where) from error

    def _placed(self, example: Example) -> Example:
        return example.with_store(self.images, self.options.stored_orientation, self.options.mask_rules)

    def _example(self, value: Any, where: str, image: str | None) -> Example:
        if isinstance(value, DataError):
            raise value
        if self.format == "jsonl":
            return recorded(value, where, self.left_out) if is_record(value) else Example.from_json(value, where)
        if self.format in _ANNOTATIONS and not _ANNOTATIONS[self.format].has_own_rows:
            return annotated(value, where, self.left_out)
        if self.format == "grand":
            return described.grand(image or "", value, where, self.left_out)
        if self.format == "compositioncap":
            if image is not None and isinstance(value, dict):
                value = {self.keys.image[0]: image, **value}
            return described.compositioncap(value, where, self.keys, self.keep_entity_references, self.left_out)
        if self.format == "llava":
            return described.llava(value, where, self.keys, self.left_out)
        if self.format == "datasets" or self.format in _ANNOTATIONS:
            from .rows import row_example

            return row_example(value, where, self.keys, self.left_out, self._columns)
        return described.osprey(value, where, self.keys, self.left_out)


def read_examples(
    path: Any,
    format: str | None = None,
    *,
    images: str | os.PathLike[str] | ImageStore | None = None,
    on_error: str = "raise",
    rejects: str | os.PathLike[str] | None = None,
    mapping: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    keep_entity_references: bool = False,
    **reading: Any,
) -> ExampleReader:
    """Open the annotations of a dataset.

    Args:
        path: a file, also packed with gzip or alone in a .zip; a folder of GranD's files, of a saved
            `datasets.Dataset`, or with a `records.jsonl`; a file or folder of an annotation tool (docs/formats.md), of
            which each region with a caption counts; what `describe` wrote; or a `datasets.Dataset` in memory.
        format: one of `FORMATS`, or of `ANNOTATION_FORMATS`; `None` means that the content decides.
        images: folder, .zip or .tar of the pictures; `None` means the folder in which the annotations lie.
        on_error: what to do with an example that cannot be used: "raise", or "skip": count it, write it to `rejects` as
            a JSON line {where, reason, raw}, and warn with the count at the end. Nothing takes its place.
        rejects: file for rejected examples; `None` means the file's own name with `.rejects.jsonl`.
        mapping: changes to the names of keys, see `Keys`: a mapping, or a YAML or JSON file with one.
        keep_entity_references: keep references such as "(entity_id_3)" in the texts of CompositionCap.
        **reading: how regions are read where files do not say it, see `ReadOptions`: `box_format`, `label_map`, ..

    Returns:
        `ExampleReader`.

    Raises:
        DataError: If there is no such file, its format is unknown, or a setting does not fit the format.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(no_such("on_error", on_error, ("raise", "skip")))
    if format is not None and format not in (*FORMATS, *_ANNOTATIONS):
        raise ValueError(no_such("format", format, (*FORMATS, *_ANNOTATIONS)))
    options = ReadOptions(images=images, **reading)
    store: str | os.PathLike[str] | ImageStore | None
    if isinstance(path, (str, os.PathLike)):
        given = Path(path)
        if not (given.exists() or is_pattern(given)):
            raise DataError(str(given), "there is no such file or folder.")
        if given.is_dir() and (given / "records.jsonl").is_file() and format in (None, "jsonl"):
            given, format = given / "records.jsonl", "jsonl"
        format = format or _format_of(given, options)
        takes_folder, takes_file = format in ("grand", "datasets"), format != "datasets"
        if format not in _ANNOTATIONS and not (takes_folder if given.is_dir() else takes_file):
            raise DataError(str(given), f"this is no {'file' if given.is_dir() else 'folder'} of the format {format}.")
        source: Any = given
        beside = given.with_name(given.name + ".rejects.jsonl")
        store = images if images is not None else given if given.is_dir() else given.parent
        if format in _ANNOTATIONS and images is None:
            store = open_annotations(given, replace(options, format=format)).where_images_lie()
    else:
        format = format or "datasets"
        source, beside = path, Path("dataset.rejects.jsonl")
        store = images
    if mapping is not None and format not in _KEYS:
        raise DataError(str(path), f"the keys of the format {format} are fixed; leave out the mapping.")
    if keep_entity_references and format != "compositioncap":
        warnings.warn(f"keep_entity_references has no effect on the format {format}.", stacklevel=2)
    opened = None if store is None else open_images(store)
    if opened is not None and isinstance(path, (str, os.PathLike)):
        opened.take_aliases(Path(path).parent)
    return ExampleReader(
        source,
        format,
        images=opened,
        on_error=on_error,
        rejects=Path(rejects) if rejects is not None else beside,
        keys=_KEYS.get(format, Keys()).changed(mapping),
        keep_entity_references=keep_entity_references,
        options=options,
    )


def _format_of(path: Path, options: ReadOptions) -> str:
    """The format of a file or folder: one of described regions where it says so, else one of an annotation tool.

    Raises:
        DataError: If it is none that is known, or may be one of several.
    """
    if path.is_dir() and is_saved_dataset(path):
        return "datasets"
    unknown: DataError | None = None
    if path.is_file() and is_packed(path):  # through which files of annotation tools are not read
        return detect_format(path)
    if not path.is_dir() and not is_pattern(path):
        try:
            described = detect_format(path)
        except DataError as error:
            unknown = error
        else:
            # The lists of COCO and objects with objects in them are in files of several tools.
            if described not in ("refcoco", "grand") or (described == "refcoco" and has_image_captions(path)):
                return described
    if found := recognise(path):
        return found[0].format if len(found) == 1 else open_annotations(path, options).format
    try:
        if unknown is not None:
            raise unknown
        return detect_format(path)
    except DataError as error:
        raise NotDescribedError(error.where, error.reason) from error


def load_rows(source: Any) -> Any:
    """A `datasets.Dataset`, from memory or from where it was saved."""
    from .rows import load

    return load(source)


def _whole_rows(dataset: Any) -> Iterator[Any]:
    """The rows of a dataset; of one that streams all of them, also in a worker of a DataLoader, which gets a part."""
    if hasattr(dataset, "__len__"):
        yield from dataset
    else:
        for batch in dataset.iter(batch_size=1):
            yield {key: value for key, (value,) in batch.items()}


def _below(where: str, error: DataError) -> str:
    return error.reason if error.where == where else str(error)


def _shown(raw: Any) -> str | None:
    """What was read, cut to a length that can be looked at."""
    if raw is None or isinstance(raw, str):
        return raw if raw is None else raw[:_RAW_LENGTH]
    try:
        return json.dumps(raw, default=lambda value: f"<{type(value).__name__}>")[:_RAW_LENGTH]
    except (ValueError, RecursionError, TypeError):
        return f"<{type(raw).__name__}>"


__all__ = ["FORMATS", "ExampleReader", "Keys", "NotDescribedError", "read_examples"]
