"""Label maps: pictures whose values say which region each pixel belongs to. One region per value.

Palette PNG (Pascal VOC, DAVIS, what SAM 2 writes for videos), grey ones of 8 and 16 bits (Cityscapes, MOTS, Mapillary,
microscopes), colours (panoptic maps, ADE20K), and numpy's arrays.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...mask_codecs_finecaption import BoolArray, MaskError
from ...prompts_finecaption import no_such
from ..errors import DataError
from ..folder import PICTURES, PictureShelf, forms_of, natural
from ..images import MAX_PIXELS, open_images, open_picture
from ..looking import voc_colours, what_it_looks_like
from ..mask_rules import ARRAYS, MaskArrays, nearest
from ..names import MASK_FOLDERS, folder_word
from ..walking import folders_below
from .base import AnnotationFile, ReadOptions, Seen
from .files import some_folders

MAX_LABELS = 4096
"""A map of more values is none of things that a picture shows: noise, a depth map, or an identity for each pixel."""

_MAPS = (".bmp", ".gif", ".png", ".tif", ".tiff", *ARRAYS)
_PER_FOLDER = 8


class _Rule(NamedTuple):
    """How a value is read.

    Attributes:
        says: in words, for the user.
        ignored: values that are no region, unless the user says which.
        parts: what goes into the record of a region, from its value.
    """

    says: str
    ignored: tuple[int, ...]
    parts: Callable[[int], dict[str, int]]


def _no_parts(value: int) -> dict[str, int]:
    return {}


_RULES: dict[str, _Rule] = {
    "index": _Rule("each value is a region", (0, 255), _no_parts),
    # Cityscapes: below 1000 there are no instances, and 0 to 3 are outside of the scene; MOTS: 10000 is not labelled.
    "instance-1000": _Rule(
        "each value is a region; category = value // 1000, instance = value % 1000, and below 1000 the value is the "
        "category",
        (0, 1, 2, 3, 10000),
        lambda value: (
            {"category_id": value // 1000, "instance": value % 1000} if value >= 1000 else {"category_id": value}
        ),
    ),
    "instance-256": _Rule(
        "each value is a region; category = value >> 8, instance = value & 255",
        (),
        lambda value: {"category_id": value >> 8, "instance": value & 255},
    ),
    "rgb": _Rule("each colour is a region, whose id is R + 256 G + 65536 B", (0,), _no_parts),
    "ade20k": _Rule("each value of the blue channel is a region", (0,), _no_parts),
}
LABEL_MAPS = tuple(_RULES)
"""Rules by which values are read."""


@dataclass(frozen=True, eq=False)
class LabelRegion:
    """The pixels of a value. A region reference.

    Attributes:
        name (`str`): of the map, for messages.
        values: of all pixels, (H, W), shared by the regions of the map.
        value (`int`): of this region.
        resize (`bool`): whether a map of another size is brought to that of the picture.
    """

    name: str
    values: NDArray[Any] = field(repr=False)
    value: int
    resize: bool = False

    def __region_mask__(self, height: int, width: int) -> BoolArray:
        """The region, of shape (H, W).

        Raises:
            MaskError: If the picture has another size.
        """
        if self.values.shape != (height, width) and not self.resize:
            own = "x".join(map(str, self.values.shape))
            raise MaskError(
                f"The label map {self.name[:200]!r} is {own} but the image is {height}x{width} (height x width). Give "
                "maps at the pictures' size, or --resize-masks."
            )
        mask = self.values == self.value
        if not mask.any():
            raise MaskError(f"The label map {self.name[:200]!r} has no pixel of the value {self.value}.")
        return mask if mask.shape == (height, width) else nearest(mask, height, width)


class LabelMaps(AnnotationFile):
    """A folder of label maps and their pictures, or one map. Texts cannot be put back.

    Pictures lie beside the maps, in a folder beside theirs, or where `images` says; a map and its picture have the same
    name but for the ending and what data sets add to it. In `SegmentationObject` (VOC), `*_instanceIds.png`
    (Cityscapes) and `instances` (Mapillary) lie the maps that tell things of a kind apart: those are taken.
    """

    format = "label-map"
    title = "label maps"

    def __init__(self, path: Path, options: ReadOptions) -> None:
        super().__init__(path, options)
        if options.label_map is not None and options.label_map not in _RULES:
            raise DataError("--label-map", no_such("rule", options.label_map, LABEL_MAPS))
        self._folder = path if path.is_dir() else path.parent
        self._pairs = self._paired()
        self._notes_of_names = tuple(self.notes)

    @classmethod
    def recognises(cls, seen: Seen) -> bool:
        if not seen.path.is_dir():
            looks = what_it_looks_like(seen.path)
            return looks is not None and looks.startswith("a label map")
        return _has_maps(seen.path)

    def where_images_lie(self) -> Path:
        return self._folder

    def files(self) -> Iterator[Path]:
        yield from (self._folder / name for name, _ in self._pairs)

    def scan(self) -> Iterator[tuple[str, Any]]:
        told: Counter[tuple[str, tuple[int, ...]]] = Counter()
        for index in range(len(self._pairs)):
            yield self._row(index, told)
        rules = [_in_words(rule, ignored, number) for (rule, ignored), number in told.items()]
        self.notes[:] = [*self._notes_of_names, *rules]

    def read(self, index: int) -> tuple[str, Any]:
        return self._row(index, Counter())

    def _row(self, index: int, told: Counter[tuple[str, tuple[int, ...]]]) -> tuple[str, Any]:
        name, picture = self._pairs[index]
        where = f"label map {name[:200]!r}"
        if isinstance(picture, DataError):
            return where, picture
        try:
            map_ = read_map((self._folder / name).read_bytes(), name, self.options)
        except DataError as error:
            return where, DataError(where, error.reason)
        except OSError as error:
            return where, DataError(where, f"it cannot be read ({error.strerror}).")
        told[map_.rule, map_.ignored] += 1
        parts, resize = _RULES[map_.rule].parts, self.options.resize_masks
        regions = [
            {"mask": LabelRegion(name, map_.values, value, resize), "id": value, **parts(value)}
            for value in map_.labels
        ]
        return where, {"image": picture, "label_map": name, "regions": regions}

    def _paired(self) -> list[tuple[str, str | DataError]]:
        if not self.path.is_dir():
            maps, pictures = [self.path.name], [each.name for each in self._folder.iterdir() if _is_picture(each.name)]
            pictures = [name for name in pictures if name != self.path.name]
        else:
            names = sorted(_files(self.path), key=natural)
            maps, pictures = self._told_apart(names)
        if self.options.images is not None:
            store = open_images(self.options.images)
            pictures = sorted((name for name in store.names() if _is_picture(name)), key=natural)
        if not maps:
            raise DataError(str(self.path), f"there are no label maps in it ({', '.join(_MAPS)}).")
        if not pictures:
            raise DataError(
                str(self.path),
                "these are label maps, and their pictures are not beside them. Give --images, their folder.",
            )
        shelf = PictureShelf(pictures)
        found: list[tuple[str, str | DataError]] = []
        for name in maps:
            path = PurePosixPath(name)
            try:
                owner = shelf.by_tail(name, _forms(path))
            except DataError as error:
                found.append((name, DataError(f"label map {name[:200]!r}", error.reason)))
                continue
            missing = DataError(f"label map {name[:200]!r}", "there is no picture that this is a map of.")
            found.append((name, owner or missing))
        used = {owner for _, owner in found if isinstance(owner, str)}
        if len(used) < len(pictures):
            self.notes.append(f"{len(pictures) - len(used)} pictures have no label map and are left out.")
        return found

    def _told_apart(self, names: list[str]) -> tuple[list[str], list[str]]:
        """Which files of a folder are maps, and which are pictures."""
        if self.options.images is not None:
            # Then all of it is maps, unless the pictures lie in it.
            inside = _inside(self.path, self.options.images)
            names = [name for name in names if inside is None or not f"{name}/".startswith(f"{inside}/")]
        kinds = [name for name in names if re.search(r"_instanceIds\.png$", name)]
        if kinds:
            self.notes.append("Of the maps of each picture, *_instanceIds.png are taken.")
            return kinds, [name for name in names if _is_picture(name) and not re.search(_CITYSCAPES, name)]
        for folder in ("segmentationobject", "instance"):
            if chosen := [name for name in names if _is_map(name) and folder in map(folder_word, _folders(name))]:
                others = {name for name in names if any(folder_word(each) in MASK_FOLDERS for each in _folders(name))}
                return chosen, [name for name in names if _is_picture(name) and name not in others]
        if chosen := [name for name in names if re.search(r"_seg\.png$", name)]:
            kept = [name for name in names if _is_picture(name) and not re.search(r"_(seg|parts_\d+)\.png$", name)]
            return chosen, kept
        if chosen := [name for name in names if _is_map(name) and any(map(_is_mask_folder, _folders(name)))]:
            return chosen, [name for name in names if _is_picture(name) and name not in set(chosen)]
        stems = Counter(os.path.splitext(name)[0] for name in names)
        if chosen := [name for name in names if _is_map(name) and stems[os.path.splitext(name)[0]] > 1]:
            return chosen, [name for name in names if _is_picture(name) and name not in set(chosen)]
        return [name for name in names if _is_map(name)], []


_ADE20K = ("_atr.txt", ".json")
_CITYSCAPES = r"_gt(Fine|Coarse)_|_(instanceIds|labelIds|labelTrainIds|color)\.png$"


def _forms(path: PurePosixPath) -> list[tuple[Sequence[str], str]]:
    folders = path.parts[:-1]
    bare = re.sub(r"_gt(Fine|Coarse)_\w+$", "", path.stem)
    if bare != path.stem:
        return [(folders, f"{bare}_leftImg8bit"), (folders, bare)]
    return forms_of(folders, path.stem)


def _is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURES)


def _is_map(name: str) -> bool:
    return name.lower().endswith(_MAPS)


def _is_mask_folder(name: str) -> bool:
    return folder_word(name) in MASK_FOLDERS


def _folders(name: str) -> Sequence[str]:
    return name.split("/")[:-1]


def _inside(folder: Path, images: Any) -> str | None:
    """The part of a folder in which pictures lie."""
    place = Path(os.fspath(images)) if isinstance(images, (str, os.PathLike)) else Path(images.path)
    try:
        relative = place.resolve().relative_to(folder.resolve())
    except ValueError:
        return None
    return relative.as_posix() if relative.parts else None


def _files(folder: Path) -> Iterator[str]:
    for place, _, files in folders_below(folder):
        base = os.path.relpath(place, folder).replace(os.sep, "/")
        for name in files:
            if name.lower().endswith((*PICTURES, *ARRAYS)) and not name.startswith("."):
                yield name if base == "." else f"{base}/{name}"


def _has_maps(folder: Path) -> bool:
    """Whether some files at the place of label maps are such, or all files are; a few of each folder are opened."""
    all_looks: list[bool] = []
    for place, files in some_folders(folder):
        pictures = [name for name in files if _is_picture(name)]
        others = set(files)
        if any(re.sub(r"_seg\.png$", ending, name) in others - {name} for name in files for ending in _ADE20K):
            return False  # it has a reader of its own
        stems = Counter(os.path.splitext(name)[0] for name in pictures)
        at_place = any(map(_is_mask_folder, place.split("/")))
        few = pictures[:: max(1, len(pictures) // _PER_FOLDER)]
        if not at_place:  # pairs of one name come first: a.jpg and a.png
            few = [name for name in pictures if stems[os.path.splitext(name)[0]] > 1][: 2 * _PER_FOLDER] or few
        for name in few:
            looks = (what_it_looks_like(Path(folder, place, name), at_place) or "").startswith("a label map")
            is_paired = stems[os.path.splitext(name)[0]] > 1
            if looks and (at_place or is_paired or re.search(r"_(instanceIds|seg)\.png$", name)):
                return True
            all_looks.append(looks)
    return bool(all_looks) and all(all_looks)


# --- one map ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A map that was read.

    Attributes:
        rule (`str`): by which.
        ignored (`tuple[int, ...]`): values that are no region.
        values: of all pixels, (H, W), of an unsigned type.
        labels (`list[int]`): values that are regions, rising.
    """

    rule: str
    ignored: tuple[int, ...]
    values: NDArray[Any]
    labels: list[int]


def read_map(data: bytes, name: str, options: ReadOptions) -> LabelMap:
    """Read a label map.

    Args:
        data (`bytes`): its file.
        name (`str`): its name, which may tell the rule.
        options: `label_map` and `ignore` count.

    Raises:
        DataError: If it is damaged or too large, the rule does not go with its pixels, or it has too many values.
    """
    where = f"label map {name[:200]!r}"
    if name.lower().endswith(ARRAYS):
        arrays = MaskArrays(data, where, 8 * MAX_PIXELS)
        if len(arrays.parts) != 1:
            raise DataError(where, f"it holds {len(arrays.parts)} arrays, one is needed.")
        pixels = arrays.mask(arrays.parts[0])
        mode = "array"
    else:
        picture = open_picture(data, where)
        if getattr(picture, "n_frames", 1) > 1:
            raise DataError(where, f"it has {picture.n_frames} pages, one is needed.")  # type: ignore[attr-defined]
        mode = picture.mode
        try:
            pixels = np.asarray(picture.convert("RGBA") if mode in ("PA", "LA") else picture)
        except Exception as error:  # decoders of damaged files raise nearly anything
            raise DataError(where, f"it cannot be decoded ({error}).") from error
    if pixels.dtype.kind not in "bui" or (pixels.size and pixels.min() < 0):
        raise DataError(where, f"its values are of type {pixels.dtype}; labels are whole numbers from 0 on.")
    if options.label_map is None and pixels.ndim == 3 and not name.endswith("_seg.png"):
        pixels = _of_voc_colours(pixels)
    rule = options.label_map or _rule_of(name, pixels)
    values = _values(pixels, rule, mode, where)
    labels = _labels(values)
    if len(labels) > MAX_LABELS:
        raise DataError(
            where,
            f"it has {len(labels)} values, more than the {MAX_LABELS} regions that are taken. Is it a label map?",
        )
    ignored = options.ignore or _RULES[rule].ignored
    if not options.ignore and rule == "index" and values.dtype.itemsize > 1:
        ignored = (0,)  # 255 is a value like others where there are 16 bits
    found = [value for value in labels if value not in ignored]
    if not found and not options.ignore and labels[-1:] == [255]:
        found, ignored = [255], (0,)  # a mask in black and white among maps, such as DAVIS 2016 has
    return LabelMap(rule, ignored, values, found)


def _rule_of(name: str, pixels: NDArray[Any]) -> str:
    if pixels.ndim == 3:
        return "ade20k" if name.endswith("_seg.png") else "rgb"
    if name.endswith("_instanceIds.png"):
        return "instance-1000"
    if pixels.dtype.itemsize > 1 and "instances" in _folders(name):
        return "instance-256"
    return "index"


def _of_voc_colours(pixels: NDArray[Any]) -> NDArray[Any]:
    """The labels that colours of Pascal VOC show; other pixels as they are."""
    codes = _colour_codes(pixels)
    known = _colour_codes(voc_colours())
    if not np.isin(_labels(codes), known).all():
        return pixels
    by_code = np.zeros(2**24, dtype=np.uint8)
    by_code[known] = np.arange(256)
    return by_code[codes]


def _colour_codes(pixels: NDArray[Any]) -> NDArray[Any]:
    """R + 256 G + 65536 B; 0 where a pixel is transparent."""
    wide = pixels.astype(np.uint32)
    codes = wide[..., 0] | wide[..., 1] << 8 | wide[..., 2] << 16
    return codes if pixels.shape[-1] == 3 else np.where(pixels[..., 3] > 0, codes, np.uint32(0))


def _values(pixels: NDArray[Any], rule: str, mode: str, where: str) -> NDArray[Any]:
    """The value of each pixel, (H, W)."""
    if pixels.dtype.kind == "b":
        pixels = pixels.astype(np.uint8)
    if rule in ("rgb", "ade20k"):
        if pixels.ndim != 3:
            raise DataError(where, f"it has no colours (it is of mode {mode}), which the rule {rule} reads.")
        if rule == "ade20k":
            return np.ascontiguousarray(pixels[..., 2])
        return _colour_codes(pixels)
    if pixels.ndim == 3:
        if not (np.ptp(pixels[..., :3], axis=2) == 0).all():
            raise DataError(
                where,
                f"it has colours, and the rule {rule} reads numbers. Give --label-map rgb: each colour is a region.",
            )
        return np.ascontiguousarray(pixels[..., 0])
    if pixels.dtype.itemsize > 4:
        if pixels.size and int(pixels.max()) >= 2**32:
            raise DataError(where, "it has values beyond 32 bits.")
        return pixels.astype(np.uint32)
    return pixels.astype(f"u{pixels.dtype.itemsize}", copy=False)


def _labels(values: NDArray[Any]) -> list[int]:
    """The values that there are, rising. Only where they change is looked at: label maps are plains."""
    flat = values.reshape(-1)
    found: list[int] = np.unique(np.append(flat[:1], flat[1:][flat[1:] != flat[:-1]])).tolist()
    return found


def _in_words(rule: str, ignored: tuple[int, ...], number: int) -> str:
    maps = f"{number} label maps are" if number != 1 else "1 label map is"
    without = (
        f"; {', '.join(map(str, ignored))} {'is' if len(ignored) == 1 else 'are'} none (--ignore)" if ignored else ""
    )
    return f"{maps} read by the rule {rule} (--label-map): {_RULES[rule].says}{without}."
