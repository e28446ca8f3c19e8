"""YOLO's labels: a text file for each picture, a line for each thing, all numbers shares of the picture's sides."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...mask_codecs_finecaption import BoolArray
from ...polygons_finecaption import polygon_mask
from ...prompts_finecaption import no_such
from ..boxes import ShareBox
from ..errors import DataError
from ..folder import PICTURES, PictureShelf, natural
from ..images import open_images
from ..walking import folders_below
from .base import AnnotationFile, ReadOptions, Seen
from .files import MAX_FILE_BYTES, some_folders

_MAX_YAML_BYTES = 2**20
_SPLITS = ("train", "val", "valid", "test")
# Labels may reach a little over the border; what is farther out is in pixels.
_FARTHEST = 2.0
_NUMBER = rb"-?\d*\.?\d+(?:[eE][-+]?\d+)?"
_LINE = re.compile(rb"\s*\d+(?:\.0*)?(?:\s+" + _NUMBER + rb"){4,}\s*(?:\n|\r|$)")
_NO_LABELS = re.compile(r"(^|/)(classes|labels|names|obj|train|val|test|readme.*)\.txt$", re.IGNORECASE)
_MAX_LOOKS = 8


@dataclass(frozen=True)
class SharePolygon:
    """An outline whose points are shares of the picture's width and height."""

    points: tuple[float, ...]

    def __region_mask__(self, height: int, width: int) -> BoolArray:
        """The region, of shape (H, W).

        Raises:
            MaskError: If it has no pixel in the picture.
        """
        pixels: NDArray[np.float64] = np.array(self.points).reshape(-1, 2) * (width, height)
        return polygon_mask(pixels.reshape(-1).tolist(), height, width)


class Yolo(AnnotationFile):
    """YOLO's labels of boxes, turned boxes and outlines: a `data.yaml`, or a folder, with or without one.

    `labels/train/a.txt` belongs to `images/train/a.jpg`, as does `a.txt` to `a.jpg` beside it. A line is the number of
    a class and a box (middle, size), or the points of an outline; the four corners of a turned box are such. What
    follows a box is a confidence, the number of a track or, where `data.yaml` has `kpt_shape`, keypoints, which are
    left out. With `split`, only the pictures of that part of `data.yaml`. Texts cannot be put back: there is no place.
    """

    format = "yolo"
    title = "YOLO labels"
    has_splits = True

    def __init__(self, path: Path, options: ReadOptions) -> None:
        super().__init__(path, options)
        self._folder = path if path.is_dir() else path.parent
        self._settings = _settings(path) or {}
        self._names = _class_names(self._settings, self._folder)
        self._keypoints = "kpt_shape" in self._settings
        self._root, self._part = self._rooted()
        self._pairs = self._paired()
        self._notes_of_names = tuple(self.notes)

    @classmethod
    def recognises(cls, seen: Seen) -> bool:
        if not seen.path.is_dir():
            is_yaml = seen.path.suffix.lower() in (".yaml", ".yml")
            return is_yaml and _is_settings(seen.head)
        found: list[bytes] = []
        is_all_text = True
        alone: list[Path] = []
        for place, names in some_folders(seen.path):
            texts = [name for name in names if name.lower().endswith(".txt") and not _NO_LABELS.search(name)]
            stems = {os.path.splitext(name)[0] for name in names if name.lower().endswith(PICTURES)}
            told = [name for name in texts if "labels" in place.split("/") or os.path.splitext(name)[0] in stems]
            found += filter(None, (_first_line(seen.path / place / name) for name in told[:_MAX_LOOKS]))
            is_all_text = is_all_text and all(name.lower().endswith((".txt", ".yaml")) for name in names)
            alone = [*alone, *(seen.path / place / name for name in texts[:_MAX_LOOKS])][:_MAX_LOOKS]
        if not found and is_all_text:  # labels alone, with their pictures elsewhere
            found = list(filter(None, map(_first_line, alone)))
        return bool(found) and all(map(_LINE.match, found))

    def where_images_lie(self) -> Path:
        return self._root

    def files(self) -> Iterator[Path]:
        if self.path.is_file():
            yield self.path
        yield from (self._root / name for name, _ in self._pairs)

    def scan(self) -> Iterator[tuple[str, Any]]:
        told: Counter[str] = Counter()
        for index in range(len(self._pairs)):
            yield self._row(index, told)
        self.notes[:] = [*self._notes_of_names, *(f"{number} {what}" for what, number in told.items())]

    def read(self, index: int) -> tuple[str, Any]:
        return self._row(index, Counter())

    def _row(self, index: int, told: Counter[str]) -> tuple[str, Any]:
        name, picture = self._pairs[index]
        where = f"{self.name}: {name}"
        if isinstance(picture, DataError):
            return where, picture
        try:
            with open(self._root / name, "rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            return where, DataError(where, f"it cannot be read ({error.strerror}).")
        if len(data) > MAX_FILE_BYTES:
            return where, DataError(where, f"it has more than {MAX_FILE_BYTES} bytes, too many for one picture.")
        regions = []
        for number, line in enumerate(data.decode("utf-8-sig", "replace").splitlines(), start=1):
            if line.strip():
                try:
                    regions.append({"id": number, **self._region(line.split(), told)})
                except DataError as error:
                    regions.append({"id": number, "mask": error.at(f"{where}:{number}")})
        return where, {"image": picture, "regions": regions}

    def _region(self, cells: list[str], told: Counter[str]) -> dict[str, Any]:
        """A line: the region and what is said of it."""
        try:
            kind, *values = (float(cell) for cell in cells)
        except ValueError as error:
            raise DataError("line", "numbers are needed: the class, then shares of the picture's sides.") from error
        if not kind.is_integer() or kind < 0:
            raise DataError("line", f"{cells[0][:20]} is no number of a class.")
        own: dict[str, Any] = {"class_id": int(kind)}
        if (label := self._names.get(int(kind))) is not None:
            own["label"] = label
        number = len(values)
        if self._keypoints and number > 5:
            told["boxes have keypoints, which are left out."] += 1
            values = values[:4]
        elif number == 5 or (number == 6 and values[5] > 1 and values[5].is_integer()):
            rest = values[4:]
            values = values[:4]
            own |= {"track_id" if each > 1 and each.is_integer() else "confidence": each for each in rest}
        elif number > 6 and number % 2:
            if all(value in (0, 1, 2) for value in values[6::3]) and number % 3 == 1:
                raise DataError(
                    "line",
                    f"these {number} numbers may be a box with keypoints, or an outline with a confidence. Read the "
                    "data.yaml beside, with kpt_shape for keypoints, or leave the last number of outlines out.",
                )
            own["confidence"] = values.pop()
        if len(values) < 4 or not all(abs(value) <= _FARTHEST for value in values):
            state = f"{len(values)} numbers" if len(values) < 4 else "numbers that are no shares of the picture"
            raise DataError(
                "line",
                f"there are {state}; needed are shares of its sides: four of a box, or six or more of an outline.",
            )
        if len(values) == 4:
            x, y, width, height = values
            if min(width, height) <= 0:
                raise DataError("line", f"the box is {width:g} wide and {height:g} high: both have to be above 0.")
            return {"mask": ShareBox(x - width / 2, y - height / 2, x + width / 2, y + height / 2), **own}
        return {"mask": SharePolygon(tuple(values)), **own}

    # --- where labels and pictures lie ---

    def _rooted(self) -> tuple[Path, str]:
        """The folder that labels and pictures lie below, and the part of it that was asked for."""
        if self.path.is_dir() and "labels" in (parts := self.path.resolve().parts):
            depth = len(parts) - 1 - parts[::-1].index("labels")
            return Path(*parts[:depth]), "/".join((*parts[depth:], ""))
        given = self._settings.get("path")
        if isinstance(given, str) and given:
            entries = [self._settings.get(name) for name in _SPLITS]
            for place in (self._folder / given, self._folder / Path(given).name):  # an absolute one stays one
                if any(isinstance(entry, str) and (place / entry).exists() for entry in entries):
                    return place.resolve(), ""
        # Roboflow's parts are ../train/images, as seen from a folder that is not there.
        return self._folder, ""

    def _paired(self) -> list[tuple[str, str | DataError]]:
        texts: list[str] = []
        pictures: list[str] = []
        for place, _, files in folders_below(self._root):
            base = os.path.relpath(place, self._root).replace(os.sep, "/")
            for each in files:
                name = each if base == "." else f"{base}/{each}"
                if name.lower().endswith(PICTURES):
                    pictures.append(name)
                elif name.lower().endswith(".txt"):
                    texts.append(name)
        beside = {os.path.splitext(name)[0] for name in pictures}
        in_labels = [name for name in texts if "labels" in name.split("/")[:-1]]
        labels = in_labels or [name for name in texts if os.path.splitext(name)[0] in beside] or texts
        labels = [name for name in labels if not _NO_LABELS.search(name) and name.startswith(self._part)]
        labels.sort(key=natural)
        if self.options.images is not None:
            pictures = [name for name in open_images(self.options.images).names() if name.lower().endswith(PICTURES)]
        labels, pictures = self._of_split(labels, pictures)
        if not labels:
            raise DataError(str(self.path), "there are no labels in it: labels/a.txt beside images/a.jpg.")
        shelf = PictureShelf(sorted(pictures, key=natural))
        found: list[tuple[str, str | DataError]] = []
        for name in labels:
            path = PurePosixPath(name)
            folders = ["images" if part == "labels" else part for part in path.parts[:-1]]
            owner: str | DataError | None
            try:
                owner = shelf.by_tail(name, [(folders, path.stem)])
            except DataError as error:
                owner = error
            missing = DataError(f"{self.name}: {name}", "there is no picture that these labels are of.")
            found.append((name, owner.at(f"{self.name}: {name}") if isinstance(owner, DataError) else owner or missing))
        without = len(pictures) - len({owner for _, owner in found if isinstance(owner, str)})
        if without > 0:
            self.notes.append(f"{without} pictures have no file of labels, so nothing of them is described.")
        return found

    def _of_split(self, labels: list[str], pictures: list[str]) -> tuple[list[str], list[str]]:
        """The labels and pictures of the part that was asked for."""
        split = self.options.split
        if split is None:
            return labels, pictures
        names = {"val": ("val", "valid"), "valid": ("valid", "val")}.get(split, (split,))
        given = next((self._settings[name] for name in names if self._settings.get(name)), None)
        entries = [given] if isinstance(given, str) else given
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            known = [name for name in _SPLITS if self._settings.get(name)]
            raise DataError(str(self.path), no_such("part", split, known or ["all of it, without --split"]))
        stems: set[str] = set()
        prefixes: list[str] = []
        for entry in entries:
            place = _relative(entry)
            listed = self._root / place
            if place.endswith(".txt") and listed.is_file():
                lines = listed.read_text(encoding="utf-8", errors="replace").splitlines()
                stems.update(os.path.splitext(PurePosixPath(line.strip()).name)[0] for line in lines if line.strip())
            else:
                prefixes.append(place.rstrip("/"))

        def is_in(name: str) -> bool:
            as_picture = "/".join("images" if part == "labels" else part for part in name.split("/"))
            is_below = any(prefix in ("", ".") or f"{as_picture}/".startswith(f"{prefix}/") for prefix in prefixes)
            return is_below or os.path.splitext(PurePosixPath(name).name)[0] in stems

        kept = [name for name in labels if is_in(name)]
        return kept, pictures if self.options.images is not None else [name for name in pictures if is_in(name)]


def _relative(entry: str) -> str:
    """A part of the data as its settings name it -> from their root."""
    parts = [part for part in entry.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return "/".join(parts)


def _settings(path: Path) -> dict[str, Any] | None:
    """The settings of a data set, from the file or from the only one in a folder or above its labels."""
    if path.is_file():
        return _read_settings(path)
    for folder in (path, path.parent, path.parent.parent):
        found = sorted(each for each in folder.glob("*.y*ml") if each.is_file() and _is_settings(_head(each)))
        if len(found) == 1:
            return _read_settings(found[0])
        if found:
            named = next((each for each in found if each.stem == "data"), None)
            if named is None:
                raise DataError(
                    str(path), f"there are {' and '.join(each.name for each in found[:3])}. Name one of them."
                )
            return _read_settings(named)
    return None


def _read_settings(path: Path) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]

    try:
        if path.stat().st_size > _MAX_YAML_BYTES:
            raise DataError(str(path), f"it has more than {_MAX_YAML_BYTES} bytes, too many for settings.")
        found = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(str(path), f"it cannot be read as YAML ({' '.join(str(error).split())[:200]}).") from error
    if not isinstance(found, dict):
        raise DataError(str(path), "it holds no settings: train, val and names are needed.")
    return found


def _class_names(settings: dict[str, Any], folder: Path) -> dict[int, str]:
    """The names of classes by their numbers, as far as they are there."""
    names = settings.get("names")
    if names is None:
        listed = next((each for each in (folder / "classes.txt", folder / "obj.names") if each.is_file()), None)
        if listed is not None and listed.stat().st_size <= _MAX_YAML_BYTES:
            names = listed.read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = names.items() if isinstance(names, dict) else enumerate(names) if isinstance(names, list) else ()
    return {int(key): str(name) for key, name in pairs if str(key).isdecimal() and isinstance(name, (str, int, float))}


def _is_settings(head: bytes) -> bool:
    return all(re.search(rb"^" + key, head, re.MULTILINE) for key in (rb"names\s*:", rb"(train|val|test|path)\s*:"))


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(2**16)
    except OSError:
        return b""


def _first_line(path: Path) -> bytes:
    return next((line for line in _head(path).splitlines(keepends=True) if line.strip()), b"")
