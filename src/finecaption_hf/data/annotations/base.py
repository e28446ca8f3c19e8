"""What every format of annotation files is to the package: rows of pictures with their regions, and texts put back."""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from ...mask_codecs_finecaption import BoolArray
from ..errors import DataError
from ..images import ImageStore
from ..mask_rules import MaskRules


@dataclass(frozen=True)
class ReadOptions:
    """How annotations are read where their files do not say it. The options of the command line have the same names.

    Attributes:
        images: folder, .zip or .tar of the pictures; `None` means where the format has them.
        format (`str`, *optional*): name of the format; `None` means that the content decides.
        split (`str`, *optional*): of a data set that has several.
        image_list: the COCO file with the names of pictures, of results that know them by their ids only.
        ignore (`tuple[int, ...]`): values of label maps that are no region; none given, those of the rule.
        label_map (`str`, *optional*): how the values of label maps are read, one of `LABEL_MAPS`.
        box_format (`str`, *optional*): of boxes whose columns or keys do not say it: "xyxy" or "xywh" in pixels,
            "cxcywh" and "xywhn" ("n": as shares of width and height).
        threshold (`float`, *optional*): mask files with soft edges: pixels above this share of white (0 to 1) are in.
        alpha (`bool`): of pictures that are cut out, what is not transparent is the region.
        resize_masks (`bool`): mask files of another size than the picture are brought to it, by nearest neighbour.
        stored_orientation (`bool`): regions are in the pixels as they are stored, before the EXIF orientation.
    """

    images: str | os.PathLike[str] | ImageStore | None = None
    format: str | None = None
    split: str | None = None
    image_list: str | os.PathLike[str] | None = None
    ignore: tuple[int, ...] = ()
    label_map: str | None = None
    box_format: str | None = None
    threshold: float | None = None
    alpha: bool = False
    resize_masks: bool = False
    stored_orientation: bool = False

    @property
    def mask_rules(self) -> MaskRules:
        """How mask files are read."""
        return MaskRules(self.threshold, self.alpha, self.resize_masks)

    def fingerprint(self, content: str) -> str:
        """Of an input, from that of its content: what is read otherwise is another input."""
        given = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in _WHERE}
        changed = {name: value for name, value in given.items() if value != getattr(_DEFAULTS, name)}
        return f"{content}-{json.dumps(changed, sort_keys=True, default=str)}" if changed else content


# Options that say where things lie, or what the content says as well: they make no other input.
_WHERE = ("images", "format", "split", "image_list")
_DEFAULTS = ReadOptions()


@runtime_checkable
class SizedRegion(Protocol):
    """A region reference whose pixels can be made only when the size of its picture is known, or only when asked for.

    `as_mask` takes it: shares of width and height, values of a label map, masks inside of boxes, circles.
    """

    def __region_mask__(self, height: int, width: int) -> BoolArray:
        """The region of a picture.

        Returns:
            bool, of shape (H, W), with at least one True.

        Raises:
            MaskError: If it is none of a picture of this size.
        """
        ...


@dataclass(frozen=True)
class Seen:
    """What can be seen of a file or folder without reading all of it; formats are recognised by it.

    Attributes:
        path: the file or folder.
        names (`tuple[str, ...]`): of a folder, the relative names of files in it, three levels deep, the first 2,000.
        head (`bytes`): of a file, its first 4 KiB.
        json: of a JSON file, what it begins with: an object's first keys, each list in it cut to its first element, or
            a list of the first element; `None` of anything else.
    """

    path: Path
    names: tuple[str, ...] = ()
    head: bytes = b""
    json: Any = None

    @property
    def is_folder(self) -> bool:
        return bool(self.names)

    def element(self, key: str) -> dict[str, Any]:
        """The first element of the list under a key of the top object; empty where there is none."""
        value = self.json.get(key) if isinstance(self.json, dict) else None
        first = value[0] if isinstance(value, list) and value else None
        return first if isinstance(first, dict) else {}

    @property
    def first(self) -> dict[str, Any]:
        """The first element of a top list; empty where there is none."""
        first = self.json[0] if isinstance(self.json, list) and self.json else None
        return first if isinstance(first, dict) else {}


class AnnotationFile(ABC):
    """Annotations of one format, opened. Rows are pictures in the order of the file.

    A row is an object with the name of the picture under `image`, perhaps its `id`, and a list of `regions`, which may
    be empty; other keys are passed on to records. A picture that is in the file itself stands under `picture`, as
    {"bytes", "path"}, or a `DataError` where it is broken. A region is an object with a region reference under `mask`
    (any that `as_mask` takes, a `MaskFile`, or a `SizedRegion`; `None` is the whole picture), and, where the file has
    them, its `id`, its `label` (the name of its category), its `caption`, and the file's own attributes under their own
    names.
    Where something cannot be used, a `DataError` stands in the place of the row or, under `mask`, of the region:
    nothing that a file claims to hold is left out without a word.

    Args:
        path: file or folder.
        options: see `ReadOptions`.

    Attributes:
        format (`str`): its name on the command line.
        title (`str`): what people call it.
        has_splits (`bool`): whether it knows what `ReadOptions.split` names.
        has_own_rows (`bool`): rows are as those of the package's JSON Lines instead, checked by whoever reads them.
        takes_patterns (`bool`): the path may be a pattern for several files.
        notes (`list[str]`): lines about how the file was read, such as the rule of a label map, for the user.
    """

    format: ClassVar[str]
    title: ClassVar[str]
    has_splits: ClassVar[bool] = False
    has_own_rows: ClassVar[bool] = False
    takes_patterns: ClassVar[bool] = False

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self.path = path
        self.options = options
        self.name = path.name or path.resolve().name
        self.notes: list[str] = []

    @classmethod
    @abstractmethod
    def recognises(cls, seen: Seen) -> bool:
        """Whether this is the format of a file or folder, by its content. Cheap, and without an error."""

    @abstractmethod
    def scan(self) -> Iterator[tuple[str, Any]]:
        """All rows in their order, each with its place for messages: `"file: annotations of image 5"`.

        Raises:
            DataError: If the file is broken, so that what follows cannot be told apart.
        """

    @abstractmethod
    def read(self, index: int) -> tuple[str, Any]:
        """Row `index` of what `scan` gave. Safe in threads and in processes that were forked."""

    def files(self) -> Iterator[Path]:
        """The files that annotations are in: when they change, it is another input."""
        yield self.path

    def where_images_lie(self) -> Path:
        """The folder that names of pictures are relative to, unless the user gives another."""
        return self.path if self.path.is_dir() else self.path.parent

    def fingerprint(self) -> str:
        """Changes where the annotations do."""
        digest = hashlib.sha256(self.format.encode())
        for path in self.files():
            digest.update(path.name.encode() + b"\0")
            with open(path, "rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
        return digest.hexdigest()

    @property
    def takes_texts(self) -> bool:
        """Whether `write_back` can put texts into this file; known before anything is described."""
        return type(self).write_back is not AnnotationFile.write_back

    def write_back(self, answers: Iterator[Mapping[str, str] | None], target: Path) -> None:
        """Write the annotations once more, everything as it was, with answers in the place of the format for texts.

        Args:
            answers: for each region, in the order of `scan`: its answers by question, or `None` where there is none.
                A row that is an error has no region here.
            target: file or folder to make; a folder where `path` is one. The original stays as it is.

        Raises:
            DataError: If texts cannot be put back into this format.
        """
        raise DataError(
            self.name, f"texts cannot be put back into {self.title}. Give --output-format jsonl, coco or csv."
        )
