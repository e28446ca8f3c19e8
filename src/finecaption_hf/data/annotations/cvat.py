"""CVAT (cvat.ai): "CVAT for images 1.1" and "CVAT for video 1.1", XML both.

Only the places of pictures and shapes in the file are kept; what lies there is parsed when its turn comes. All parsing
is defusedxml's, which refuses entities.
"""

import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree.ElementTree import Element, SubElement, TreeBuilder

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser, ParseError, tostring

from ...mask_codecs_finecaption import BoolArray, MaskError
from ...masks_finecaption import as_mask
from ..errors import DataError
from ..images import ImageStore, open_images
from .base import AnnotationFile, ReadOptions, Seen
from .files import copy_until, files_below, looks, new_file, own_keys, picture_name, plain_name
from .shapes import Ellipse, Size, as_number, as_size, check_crop, check_picture, paste, turned_box

_SHAPES = ("box", "polygon", "ellipse", "mask")
_WITHOUT_AREA = ("polyline", "points", "cuboid", "skeleton")
_CAPTIONS = ("caption", "description", "text")
_OF_SHAPE = {
    *(
        "xtl",
        "ytl",
        "xbr",
        "ybr",
        "rotation",
        "points",
        "cx",
        "cy",
        "rx",
        "ry",
        "rle",
        "left",
        "top",
        "width",
        "height",
    ),
    *("frame", "outside", "keyframe", "id", "label"),
}
_OF_IMAGE = {"name", "width", "height", "image", "regions", "picture", "id"}
_FRAME_SUFFIXES = (".PNG", ".png", ".jpg", ".JPG", ".jpeg")
_CHUNK_BYTES = 2**18
# What XML cannot hold: control characters, halves of surrogate pairs.
_NO_XML = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


class Cvat(AnnotationFile):
    """The `annotations.xml` of an export, or the folder with it, with pictures beside it or in `images`.

    Frames of a video are pictures where the export has them ("save images"). A caption is the attribute of a shape
    called `caption`, `description` or `text`; other attributes come with the region.

    Texts go back as attributes of each shape: one answer as `caption`, several under their questions. All else in the
    file stays as it is. CVAT shows attributes that its labels have; where they have no `caption`, `notes` say so.
    """

    format = "cvat"
    title = "CVAT"

    def __init__(self, path: Path, options: ReadOptions) -> None:
        super().__init__(path, options)
        self._file = path
        if path.is_dir():
            found = [each for each in files_below(path, ".xml") if _is_cvat(each)]
            if len(found) != 1:
                raise DataError(str(path), f"{len(found)} files of CVAT lie in it. Give one, such as annotations.xml.")
            (self._file,) = found
        self._index = _Index()
        self._frames: list[tuple[int, list[int]]] = []
        self._suffix = ""

    @classmethod
    def recognises(cls, seen: Seen) -> bool:
        return any(_is_head(each.head) for each in looks(seen, ".xml"))

    def files(self) -> Iterator[Path]:
        yield self._file

    def where_images_lie(self) -> Path:
        return self._file.parent

    @cached_property
    def _images(self) -> ImageStore:
        return open_images(self.where_images_lie() if self.options.images is None else self.options.images)

    def scan(self) -> Iterator[tuple[str, Any]]:
        self._index = index = _indexed(self._file, self.name)
        order = np.argsort(np.array(index.shape_frames), kind="stable").tolist()
        frames: dict[int, list[int]] = {}
        for number in order:
            frames.setdefault(index.shape_frames[number], []).append(number)
        self._frames = list(frames.items())
        if self._frames:
            self._suffix = self._frame_suffix(self._frames[0][0])
        left_out = Counter(index.left_out)
        for number in range(len(index.image_starts) + len(self._frames)):
            where, row, found = self._row(number)
            left_out.update(found)
            yield where, row
        self.notes = [f"{number} shapes of type {name} have no area: left out." for name, number in left_out.items()]
        if "caption" not in index.declared:
            self.notes.append("Texts can be put back into a project whose labels have a text attribute called caption.")

    def read(self, index: int) -> tuple[str, Any]:
        return self._row(index)[:2]

    def _row(self, number: int) -> tuple[str, Any, Counter[str]]:
        """Place and content of a row, and how many shapes without area there are by type."""
        if number >= len(self._index.image_starts):
            return (*self._frame(*self._frames[number - len(self._index.image_starts)]), Counter())
        where = f"{self.name}: image {number}"
        with open(self._file, "rb") as file:
            image = _parsed(file, self._index.image_starts[number], self._index.image_stops[number], where)
        if isinstance(image, DataError):
            return where, image, Counter()
        image = image[0]
        named = plain_name(image.get("name", ""))
        if not named:
            return where, DataError(where, "the image has no name."), Counter()
        subset = image.get("subset", "")
        name, _ = picture_name(self._images, [named, f"images/{named}", f"images/{subset}/{named}"])
        size = as_size(_as_count(image.get("height")), _as_count(image.get("width")))
        own = own_keys({key: value for key, value in image.attrib.items()}, _OF_IMAGE)
        tags = [each.get("label", "") for each in image if each.tag == "tag"]
        row = {**own, **({"tags": tags} if tags else {}), "image": name}
        if (given := image.get("id")) is not None:
            row["id"] = given if _as_count(given) is None else _as_count(given)
        row["regions"] = [_region(each, {"label": each.get("label")}, size) for each in image if each.tag in _SHAPES]
        return where, row, Counter(each.tag for each in image if each.tag in _WITHOUT_AREA)

    def _frame(self, frame: int, shapes: list[int]) -> tuple[str, Any]:
        where = f"{self.name}: frame {frame}"
        regions = []
        with open(self._file, "rb") as file:
            for number in shapes:
                shape = _parsed(file, self._index.shape_starts[number], self._index.shape_stops[number], where)
                if isinstance(shape, DataError):
                    return where, shape
                track = self._index.tracks[self._index.shape_tracks[number]]
                regions.append(_region(shape[0], track, self._index.size))
        name, _ = picture_name(self._images, _frame_names(frame, self._suffix))
        return where, {"image": name, "frame": frame, "regions": regions}

    def _frame_suffix(self, frame: int) -> str:
        for suffix in _FRAME_SUFFIXES:
            if picture_name(self._images, _frame_names(frame, suffix))[1]:
                return suffix
        name = _frame_names(frame, ".png")[0]
        raise DataError(
            self.name,
            f"this is an export of a video by CVAT, and its frames ({name} ..) are not in {self._images.path}. Export "
            'it anew with "Save images", or as "CVAT for images 1.1", or give the folder of its frames (--images).',
        )

    def write_back(self, answers: Iterator[Mapping[str, str] | None], target: Path) -> None:
        index = self._index
        changes: list[tuple[int, int, dict[int, Mapping[str, str]]]] = []
        for number in range(len(index.image_starts)):
            row = self._row(number)[1]
            regions = [None] if isinstance(row, DataError) else row["regions"]
            texts = {place: found for place in range(len(regions)) if (found := next(answers, None))}
            if texts and not isinstance(row, DataError):
                changes.append((index.image_starts[number], index.image_stops[number], texts))
        for frame, shapes in self._frames:
            if isinstance(self._frame(frame, shapes)[1], DataError):
                next(answers, None)
                continue
            for number in shapes:
                if found := next(answers, None):
                    changes.append((index.shape_starts[number], index.shape_stops[number], {0: found}))
        place = target / self._file.relative_to(self.path) if self.path.is_dir() else target
        with open(self._file, "rb") as original, new_file(self.path, place) as file:
            for start, stop, texts in sorted(changes, key=lambda change: change[0]):
                copy_until(original, file, start)
                file.write(_with_texts(original, start, stop, texts, self.name))
            copy_until(original, file, None)


def _is_head(head: bytes) -> bool:
    return (
        re.search(rb"<annotations[\s>]", head) is not None
        and re.search(rb"<(version|meta|image|track)\b", head) is not None
    )


def _is_cvat(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return _is_head(file.read(4096))
    except OSError:
        return False


def _frame_names(frame: int, suffix: str) -> list[str]:
    return [f"frame_{frame:06d}{suffix}", f"images/frame_{frame:06d}{suffix}"]


# --- the file --------------------------------------------------------------------------------------------------------


@dataclass
class _Index:
    """Where things lie in a file. A stop is where the next element begins, or the end of what they lie in.

    Attributes:
        image_starts, image_stops: of images.
        shape_starts, shape_stops, shape_frames, shape_tracks: of the shapes with area that tracks have in frames.
        tracks: what is said of each track.
        size: (H, W) of the frames.
        declared: names of attributes that labels have.
        left_out: shapes of tracks without area, by type.
    """

    image_starts: "array[int]" = field(default_factory=lambda: array("q"))
    image_stops: "array[int]" = field(default_factory=lambda: array("q"))
    shape_starts: "array[int]" = field(default_factory=lambda: array("q"))
    shape_stops: "array[int]" = field(default_factory=lambda: array("q"))
    shape_frames: "array[int]" = field(default_factory=lambda: array("q"))
    shape_tracks: "array[int]" = field(default_factory=lambda: array("q"))
    tracks: list[dict[str, str | None]] = field(default_factory=list)
    size: Size | None = None
    declared: set[str] = field(default_factory=set)
    left_out: Counter[str] = field(default_factory=Counter)


class _Walker:
    """What the parser of a whole file tells its beginnings and ends of elements to."""

    def __init__(self, name: str) -> None:
        self.index = _Index()
        self.expat: Any = None
        self._name = name
        self._path: list[str] = []
        self._open: array[int] | None = None  # takes the end of the element whose start came last
        self._text: list[str] = []
        self._size: dict[str, str] = {}

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        depth, here, index = len(self._path), self.expat.CurrentByteIndex, self.index
        if depth == 0 and tag != "annotations":
            raise DataError(self._name, "the root of CVAT's XML is <annotations>.")
        if depth == 1:
            self._close(here)
            if tag == "image":
                index.image_starts.append(here)
                self._open = index.image_stops
            elif tag == "track":
                index.tracks.append({"track_id": attributes.get("id"), "label": attributes.get("label")})
        elif depth == 2 and self._path[1] == "track":
            self._close(here)
            frame = _as_count(attributes.get("frame"))
            if tag in _SHAPES and attributes.get("outside") != "1":
                if frame is None:
                    raise DataError(self._name, f"a {tag} of a track has no number of its frame.")
                index.shape_starts.append(here)
                index.shape_frames.append(frame)
                index.shape_tracks.append(len(index.tracks) - 1)
                self._open = index.shape_stops
            elif tag in _WITHOUT_AREA:
                index.left_out[tag] += 1
        self._path.append(tag)
        self._text = []

    def data(self, text: str) -> None:
        if self._path[1:2] == ["meta"]:
            self._text.append(text)

    def end(self, tag: str) -> None:
        if self._path[1:2] == ["meta"]:
            text = "".join(self._text).strip()
            if self._path[-2:] == ["attribute", "name"]:
                self.index.declared.add(text)
            elif self._path[-2:-1] == ["original_size"]:
                self._size[tag] = text
                self.index.size = as_size(_as_count(self._size.get("height")), _as_count(self._size.get("width")))
        self._path.pop()
        if len(self._path) == 0 or (len(self._path) == 1 and tag == "track"):
            self._close(self.expat.CurrentByteIndex)

    def close(self) -> _Index:
        return self.index

    def _close(self, here: int) -> None:
        if self._open is not None:
            self._open.append(here)
            self._open = None


def _indexed(path: Path, name: str) -> _Index:
    walker = _Walker(name)
    parser = DefusedXMLParser(target=walker, forbid_dtd=True)
    walker.expat = parser.parser
    with open(path, "rb") as file:
        head = file.read(_CHUNK_BYTES)
        declared = re.match(rb"""(?:\xef\xbb\xbf)?<\?xml[^>]*encoding=["']([^"']*)""", head)
        if head.startswith((b"\xff\xfe", b"\xfe\xff")) or (
            declared and declared[1].lower() not in (b"utf-8", b"us-ascii")
        ):
            raise DataError(name, "it is not in UTF-8. Save it anew in UTF-8, as CVAT does.")
        try:
            while head:
                parser.feed(head)
                head = file.read(_CHUNK_BYTES)
            return parser.close()  # type: ignore[no-any-return]
        except (ParseError, DefusedXmlException, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(name, f"the XML is broken or unsafe ({error}). Export it anew.") from error


def _parsed(file: BinaryIO, start: int, stop: int, where: str) -> Any:
    """An element that holds what lies between two places of the file, or a `DataError` in its place."""
    file.seek(start)
    parser = DefusedXMLParser(target=TreeBuilder(insert_comments=True, insert_pis=True), forbid_dtd=True)
    try:
        for part in (b"<part>", file.read(stop - start), b"</part>"):
            parser.feed(part)
        return parser.close()
    except (ParseError, DefusedXmlException) as error:
        return DataError(where, f"the XML is broken ({error}). Did the file change?")


def _with_texts(file: BinaryIO, start: int, stop: int, texts: Mapping[int, Mapping[str, str]], where: str) -> bytes:
    """The same part of the file with texts in its shapes, which are the part's children or its grandchildren."""
    part = _parsed(file, start, stop, where)
    if isinstance(part, DataError):
        raise part
    file.seek(stop)
    shapes = [part[0]] if part[0].tag in _SHAPES else [each for each in part[0] if each.tag in _SHAPES]
    for number, answers in texts.items():
        named = answers if len(answers) > 1 else {"caption": next(iter(answers.values()))}
        for name, text in named.items():
            _set_attribute(shapes[number], _as_xml(name), _as_xml(text))
    found: bytes = tostring(part, encoding="utf-8")
    return found.removeprefix(b"<part>").removesuffix(b"</part>")


def _as_xml(text: str) -> str:
    return _NO_XML.sub(" ", text.replace("\r\n", "\n").replace("\r", "\n"))


def _set_attribute(shape: Element, name: str, text: str) -> None:
    found = next((each for each in shape if each.tag == "attribute" and each.get("name") == name), None)
    if found is None:
        found = SubElement(shape, "attribute", {"name": name})
    found.text = text


# --- shapes ----------------------------------------------------------------------------------------------------------


def _region(shape: Element, said: Mapping[str, Any], size: Size | None) -> dict[str, Any]:
    attributes = {str(each.get("name")): each.text or "" for each in shape if each.tag == "attribute"}
    region = own_keys({**shape.attrib, **attributes}, _OF_SHAPE - set(attributes))
    region |= {key: value for key, value in said.items() if value is not None}
    caption = next((attributes[name] for name in _CAPTIONS if attributes.get(name)), None)
    if caption is not None:
        region["caption"] = caption
    return {**region, "mask": CvatRegion(shape.tag, dict(shape.attrib), size)}


@dataclass(frozen=True)
class CvatRegion:
    """A shape as the file has it.

    Attributes:
        tag: box, polygon, ellipse or mask.
        values: its attributes in XML.
        size (`tuple[int, int]`, *optional*): (H, W) of the picture in the file.
    """

    tag: str
    values: dict[str, str]
    size: Size | None

    def __region_mask__(self, height: int, width: int) -> BoolArray:
        check_picture(self.size, height, width)
        if self.tag == "mask":
            return self._mask(height, width)
        if self.tag == "polygon":
            return as_mask({"polygon": _numbers(self.values.get("points", ""), "[,;]", "points")}, height, width)
        if self.tag == "ellipse":
            x, y, radius_x, radius_y, degrees = self._numbers("cx", "cy", "rx", "ry", "rotation")
            return Ellipse((x, y), (radius_x, radius_y), degrees).__region_mask__(height, width)
        left, top, right, bottom, degrees = self._numbers("xtl", "ytl", "xbr", "ybr", "rotation")
        middle = (left + right) / 2, (top + bottom) / 2
        return as_mask(turned_box(left, top, right - left, bottom - top, degrees, middle), height, width)

    def _mask(self, height: int, width: int) -> BoolArray:
        """Runs along the rows of a part of the picture, the first of them outside."""
        left, top, across, down = map(int, self._numbers("left", "top", "width", "height"))
        check_crop(down, across, height, width, "The mask")
        runs = np.array(_numbers(self.values.get("rle", ""), ",", "rle"))
        is_good = np.isfinite(runs).all() and (runs >= 0).all() and (runs == np.floor(runs)).all()
        if not is_good or min(down, across) < 1 or runs.sum() != down * across:
            raise MaskError(
                f"The runs of the mask have a sum of {runs.sum():g}, not the {down * across} pixels of its "
                f"{down}x{across}. Export it anew."
            )
        region = np.zeros((height, width), dtype=np.bool_)
        crop = np.repeat(np.arange(len(runs)) % 2 == 1, runs.astype(np.int64)).reshape(down, across)
        paste(region, crop, top, left)
        return region

    def _numbers(self, *keys: str) -> list[float]:
        texts = [self.values.get(key, "0" if key == "rotation" else "") for key in keys]
        return [as_number(_numbers(text, ",", key)[0], key) for text, key in zip(texts, keys)]


def _numbers(text: str, between: str, what: str) -> list[float]:
    try:
        return [float(each) for each in re.split(between, text)]
    except ValueError as error:
        raise MaskError(f"{what} of a shape is {text[:32]!a}, which is no list of numbers. Export it anew.") from error


def _as_count(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 18 else None
