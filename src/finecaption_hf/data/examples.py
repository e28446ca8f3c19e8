"""The one example type: an image, its regions, and the branches of each region.

A branch is a question about a region and its answer. The package's own file format, one JSON object per line and image,
is `Example.to_json` and `Example.from_json`; docs/data.md describes it.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from ..masks_finecaption import REGION_KEYS, MaskError, as_mask, read_region
from .columns import is_picture
from .encoding import encode_rle
from .errors import DataError
from .images import ImageStore, MaskContent, MaskFile, to_rgb
from .mask_rules import STRICT, MaskRules
from .orientation import turned_region


@dataclass(frozen=True)
class Branch:
    """A question about a region, and its answer.

    Attributes:
        answer (`str`): not empty; white space around it is no part of it.
        name (`str`, *optional*): the task or attribute that is asked for, in any spelling that the processor knows. It
            is kept as given: the list of attributes is open.
        question (`str`, *optional*): the question in own words. Where there is none, the processor has it by name.

    Raises:
        DataError: If the answer is empty, there is neither name nor question, or text is no valid Unicode.
    """

    answer: str
    name: str | None = None
    question: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "answer", _text(self.answer, "answer").strip())
        for label in ("name", "question"):
            text = getattr(self, label)
            object.__setattr__(self, label, None if text is None else _text(text, label).strip())
        if not self.answer:
            raise DataError("answer", "it is empty. Give the text that the model is to learn, or leave the branch out.")
        if not self.name and not self.question:
            raise DataError("question", "neither a name nor a question was given. Give one of them, such as 'region'.")
        if self.name == "" or self.question == "":
            raise DataError("question", "name or question is empty. Leave out the one that is not there.")


@dataclass(frozen=True)
class Region:
    """A region of an image and what is known about it.

    Attributes:
        mask: a region reference as `as_mask` takes it, such as a `MaskFile`; `None` is the whole image.
        branches (`tuple[Branch, ...]`): at least one.
        id (`str` or `int`, *optional*): its name in the data.
    """

    mask: Any
    branches: tuple[Branch, ...]
    id: str | int | None = None

    def __post_init__(self) -> None:
        if not self.branches:
            raise DataError("branches", "the region has none. Give at least one question with its answer.")


@dataclass(frozen=True)
class Example:
    """An image and its regions.

    Attributes:
        image: the name of the image in `store`, or a picture in memory.
        regions (`tuple[Region, ...]`): at least one.
        id (`str` or `int`, *optional*): its name in the data.
        where (`str`): where it was read, for messages: `"file:line"` or `"file[index]"`.
        store (`ImageStore`, *optional*): where the image lies, see `load`; no part of the example's value.
        stored_orientation (`bool`): whether regions are in the pixels of the picture as it is stored, before its EXIF
            orientation.
    """

    image: str | Image.Image
    regions: tuple[Region, ...]
    id: str | int | None = None
    where: str = field(default="", compare=False)
    store: ImageStore | None = field(default=None, compare=False, repr=False)
    stored_orientation: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.image, Image.Image) and not _text(self.image, "image"):
            raise DataError("image", "its name is empty.")
        if not self.regions:
            raise DataError("regions", "the image has none. Give at least one; a region without a mask is the image.")

    def with_store(
        self, store: ImageStore | None, stored_orientation: bool = False, rules: MaskRules = STRICT
    ) -> "Example":
        """The same example, whose picture and mask files lie in `store`; see `stored_orientation`.

        Args:
            rules: how mask files are read.

        Raises:
            DataError: If a mask is the content of a file that holds none.
        """
        regions = tuple(replace(region, mask=_placed(region.mask, store, rules)) for region in self.regions)
        return replace(self, regions=regions, store=store, stored_orientation=stored_orientation)

    def reference(self, region: Region, picture: Any) -> Any:
        """The reference of one of the regions for `as_mask`, in the pixels of the picture as `load` gave it."""
        return turned_region(region.mask, picture, self.stored_orientation)

    def load(self) -> Image.Image:
        """The picture in RGB, turned by its EXIF orientation.

        Raises:
            DataError: If it is missing or damaged, or the example knows its name but no store.
        """
        try:
            if isinstance(self.image, Image.Image):
                return to_rgb(self.image)
            if self.store is None:
                raise DataError(
                    self.image, "the example has no image store. Read it with read_examples or open_dataset."
                )
            return self.store.read(self.image)
        except DataError as error:
            raise error.at(self.where or "example") from error

    def to_json(self) -> dict[str, Any]:
        """The example as a row of the package's JSONL. Masks in memory become COCO RLE; so do regions whose pixels
        follow from the size of their picture, for which it is opened.

        Raises:
            DataError: If the image is a picture in memory, which has to be saved under a name first, or is needed and
                cannot be read.
            MaskError: If a mask is none.
        """
        if not isinstance(self.image, str):
            raise DataError(self.where or "example", "the image is in memory. Save it, and give the example its name.")
        row: dict[str, Any] = {"image": self.image}
        if self.id is not None:
            row["id"] = self.id
        row["regions"] = [_region_row(region, self._plain(region)) for region in self.regions]
        return row

    def _plain(self, region: Region) -> Any:
        """The reference of a region, of one that depends on its picture's size its mask."""
        if isinstance(region.mask, MaskFile) or not hasattr(region.mask, "__region_mask__"):
            return region.mask
        picture = self.load()
        return as_mask(self.reference(region, picture), picture.height, picture.width)

    @classmethod
    def from_json(
        cls, row: Any, where: str, *, store: ImageStore | None = None, stored_orientation: bool = False
    ) -> "Example":
        """Read a row of the package's JSONL. Keys that are not of the format are left alone, see `read_region`.

        Args:
            row: the parsed line.
            where: its place, for messages.
            store: where the picture and masks lie.
            stored_orientation: see the class.

        Raises:
            DataError: If the row is not what the format asks for; it names the part that is wrong.
        """
        try:
            row = as_object(row, "row")
            no_region_beside(row)
            regions = [
                _part(f"regions[{index}]", _read_region, entry)
                for index, entry in enumerate(as_list(row.get("regions"), "regions"))
            ]
            found = cls(row.get("image", ""), tuple(regions), as_id(row.get("id")), where)
            return found.with_store(store, stored_orientation)
        except DataError as error:
            raise error.at(where) from error


def _placed(mask: Any, store: ImageStore | None, rules: MaskRules) -> Any:
    if isinstance(mask, MaskFile):
        return replace(mask, store=mask.store or store, rules=rules.over(mask.rules))
    if is_picture(mask) and isinstance(mask, dict) and mask["bytes"] is not None:
        content = MaskContent(mask["bytes"], os.path.basename(mask["path"] or "") or "mask")
        return content.mask("mask", content.parts[0], rules)
    return mask


def _region_row(region: Region, mask: Any) -> dict[str, Any]:
    row: dict[str, Any] = {} if region.id is None else {"id": region.id}
    if isinstance(mask, MaskFile):
        row["mask_file"] = mask.name
    elif mask is not None:
        is_json = isinstance(mask, (dict, list, tuple, str))
        row["mask"] = mask if is_json else encode_rle(mask)
    row["branches"] = [
        {key: text for key in ("name", "question", "answer") if (text := getattr(branch, key)) is not None}
        for branch in region.branches
    ]
    return row


def _read_region(row: Any) -> Region:
    row = as_object(row, "region")
    branches = [
        _part(f"branches[{index}]", _read_branch, entry)
        for index, entry in enumerate(as_list(row.get("branches"), "branches"))
    ]
    _, mask = region_of(row, ("id", "branches"))
    return Region(mask, tuple(branches), as_id(row.get("id")))


def _read_branch(row: Any) -> Branch:
    row = as_object(row, "branch")
    if row.get("answer") is None:
        raise DataError("answer", f"it is missing; there are {keys_of(row)}.")
    return Branch(row["answer"], row.get("name"), row.get("question"))


def _part(name: str, read: Any, entry: Any) -> Any:
    try:
        return read(entry)
    except DataError as error:
        raise DataError(f"{name}.{error.where}", error.reason) from error


# --- checks of parsed JSON, for all readers --------------------------------------------------------------------------


def as_object(value: Any, what: str) -> dict[str, Any]:
    """`value`, which has to be a JSON object."""
    if not isinstance(value, dict):
        raise DataError(what, f"{kind(value)} arrived, an object is needed.")
    return value


def as_list(value: Any, what: str) -> list[Any]:
    """`value`, which has to be a JSON array."""
    if not isinstance(value, (list, tuple)):
        raise DataError(what, f"{kind(value)} arrived, a list is needed.")
    return list(value)


def as_text(value: Any, what: str) -> str:
    """`value`, which has to be text that is not blank; without white space around it."""
    text = _text(value, what).strip()
    if not text:
        raise DataError(what, "it is empty.")
    return text


def as_id(value: Any) -> str | int | None:
    """An id: text or a whole number, as it is in the data, so that answers can be joined with it."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63):
        return value
    if isinstance(value, str):
        return _text(value, "id")
    raise DataError("id", f"{kind(value)} arrived, text or a whole number is needed.")


def region_of(row: dict[str, Any], own: Collection[str] = ()) -> tuple[str | None, Any]:
    """The key of a row's region and the reference, by the one reader for all doors; `(None, None)` is the whole image.

    Args:
        row: with the keys of a region beside others.
        own: keys that are known not to be a region.

    Raises:
        DataError: See `read_region`, and if what stands under the key cannot be a region whatever its image.
    """
    try:
        key, reference = read_region(row, own)
    except MaskError as error:
        raise DataError("region", str(error)) from error
    if key == "mask_file":
        return key, MaskFile(as_text(reference[key], key))
    return key, as_reference(reference, key or "mask")


def no_region_beside(row: dict[str, Any]) -> None:
    """Refuse a row with a list of regions that has a region of its own, too: it would be lost.

    Raises:
        DataError: If it has.
    """
    if own := next((key for key in REGION_KEYS[:6] if row.get(key) is not None), None):
        raise DataError(own, "it stands beside regions. Put it into the region that it belongs to.")


def as_reference(value: Any, what: str) -> Any:
    """A region reference as far as can be told without its image; `as_mask` judges it later.

    Raises:
        DataError: If it cannot be one, or an error stands in its place.
    """
    if isinstance(value, DataError):
        raise value
    if isinstance(value, (bool, int, float)):
        raise DataError(
            what, f"{kind(value)} arrived, a region reference is needed: COCO RLE, polygons, a box, a blob."
        )
    if isinstance(value, (str, list, tuple, dict)) and not value:
        raise DataError(what, "it is empty. Give a region reference, or null for the whole image.")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise DataError(what, f"{kind(value)} arrived, text is needed.")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(what, "it is no valid Unicode (half of a surrogate pair).") from error
    return value


def kind(value: Any) -> str:
    """What arrived, in words, for messages; never its content, which may be of any length."""
    if value is None:
        return "nothing"
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def keys_of(row: dict[str, Any]) -> str:
    """The first keys of an object, for messages."""
    names = [ascii(str(key)[:32]) for key in list(row)[:8]]
    return f"the keys {', '.join(names)}{' ...' if len(row) > 8 else ''}" if names else "no keys"


__all__ = [
    "Branch",
    "DataError",
    "Example",
    "Region",
    "as_id",
    "as_list",
    "as_object",
    "as_reference",
    "as_text",
    "keys_of",
    "kind",
    "no_region_beside",
    "region_of",
]
