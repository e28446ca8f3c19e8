"""Pascal VOC: an XML file with boxes for each picture."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..folder import natural
from ..images import open_images
from .base import AnnotationFile, ReadOptions, Seen
from .files import files_below, looks, picture_name, plain_name, read_file
from .shapes import OfPicture, as_size

_ENDINGS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG", ".bmp", ".webp", ".tif")
_FOLDERS = ("JPEGImages", "images", "Images", "imgs")
# A first column or row of 0 is none that counts from 1.
_ZERO = re.compile(rb"<[xy]min>\s*0+(\.0*)?\s*<")
_OWN = ("pose", "truncated", "difficult", "occluded")


class PascalVoc(AnnotationFile):
    """An XML file of Pascal VOC, or a folder of them, such as `Annotations` or the one around it; boxes are regions.

    Boxes count pixels from 1, the last one included. Where any file has a 0 for the first pixel, its tool counted from
    0, and the last pixel is taken for the end. Parts (a head, a hand) are left out, with their number. Texts cannot be
    put back: there is no place for them.
    """

    format = "voc"
    title = "Pascal VOC"

    def __init__(self, path: Path, options: ReadOptions) -> None:
        super().__init__(path, options)
        self._paths = (
            sorted(files_below(path, ".xml"), key=lambda each: natural(str(each))) if path.is_dir() else [path]
        )
        if not self._paths:
            raise DataError(str(path), "there is no XML file in it.")
        self._images = open_images(self.where_images_lie() if options.images is None else options.images)
        zeros = sum(_ZERO.search(read_file(each, each.name)) is not None for each in self._paths)
        self._first = 0 if zeros else 1
        self._notes_of_files: list[str] = []
        if zeros:
            files = f"{zeros} files have" if zeros > 1 else "1 file has"
            self._notes_of_files.append(
                f"Pixels of boxes are counted from 0, not from 1 as in VOC: {files} a first pixel 0."
            )

    @classmethod
    def recognises(cls, seen: Seen) -> bool:
        return any(b"<annotation" in each.head and b"<bndbox" in _more(each) for each in looks(seen, ".xml"))

    def files(self) -> Iterator[Path]:
        yield from self._paths

    def where_images_lie(self) -> Path:
        """The folder of pictures beside the one of XML files, as VOC has it, or the folder itself."""
        folder = self.path if self.path.is_dir() else self.path.parent
        for place in (folder, folder.parent):
            for name in _FOLDERS:
                if (place / name).is_dir():
                    return place / name
        return folder

    def scan(self) -> Iterator[tuple[str, Any]]:
        parts = 0
        for index in range(len(self._paths)):
            where, row, number = self._row(index)
            parts += number
            yield where, row
        self.notes[:] = [*self._notes_of_files, *([f"{parts} parts of things are left out."] if parts else [])]

    def read(self, index: int) -> tuple[str, Any]:
        return self._row(index)[:2]

    def _row(self, index: int) -> tuple[str, Any, int]:
        """The place, the row, and how many parts it leaves out."""
        path = self._paths[index]
        where = f"{self.name}: {path.name}" if self.path.is_dir() else self.name
        try:
            root = parsed(read_file(path, where), where)
            if root.tag != "annotation":
                raise DataError(where, f"its first element is <{root.tag[:40]}>, <annotation> is needed.")
            size = as_size(_number(root.findtext("size/height")), _number(root.findtext("size/width")))
            regions, parts = [], 0
            for number, thing in enumerate(root.iterfind("object")):
                parts += len(thing.findall("part"))
                mask = self._box(thing)
                if isinstance(mask, DataError):
                    mask = mask.at(f"{where}: object {number + 1}")
                elif size is not None:
                    mask = OfPicture(mask, size)
                own = {key: text.strip() for key in _OWN if (text := thing.findtext(key)) and text.strip()}
                name = (thing.findtext("name") or "").strip()
                regions.append({"mask": mask, **({"label": name} if name else {}), **own})
            return where, {"image": self._picture(root, path), "regions": regions}, parts
        except DataError as error:
            return where, error if error.where == where else error.at(where), 0

    def _picture(self, root: Any, path: Path) -> str:
        """The name of the picture: as the file has it, or its own."""
        given = plain_name((root.findtext("filename") or "").strip())
        # Where XML files lie in folders of their own, pictures may do so as well.
        inside = os.path.relpath(path.parent, self.path).replace(os.sep, "/") if self.path.is_dir() else "."
        folders = ["", *([f"{inside}/"] if inside != "." else [])]
        names = [given, *(f"{stem}{ending}" for stem in (given, path.stem) if stem for ending in _ENDINGS)]
        found, is_there = picture_name(self._images, [folder + name for folder in folders for name in names if name])
        return found if is_there or given else f"{path.stem}.jpg"

    def _box(self, thing: Any) -> Any:
        box = thing.find("bndbox")
        if box is None:
            kind = next((each.tag for each in thing if each.tag in ("robndbox", "polygon")), None)
            return DataError("bndbox", f"it is missing{f'; there is a {kind}, which is not read' if kind else ''}.")
        sides = [_number(box.findtext(name)) for name in ("xmin", "ymin", "xmax", "ymax")]
        if any(side is None for side in sides):
            return DataError("bndbox", "xmin, ymin, xmax and ymax are needed, each a number.")
        left, top, right, bottom = (side for side in sides if side is not None)
        return {"box_xyxy": [left - self._first, top - self._first, right, bottom]}


def parsed(data: bytes, where: str) -> Any:
    """The first element of an XML file, without entities, which may grow without bound, and without files of others.

    Raises:
        DataError: If it is no XML, or asks for such.
    """
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring

    try:
        return fromstring(data, forbid_dtd=True)
    except DefusedXmlException as error:
        raise DataError(
            where, f"it declares types or entities, which are not read ({type(error).__name__})."
        ) from error
    except (ParseError, ValueError, LookupError) as error:
        raise DataError(where, f"it is no XML ({str(error)[:200]}).") from error


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text else None
    except ValueError:
        return None
    return number if number is not None and abs(number) < 1e9 else None


def _more(seen: Seen) -> bytes:
    with open(seen.path, "rb") as file:
        return file.read(2**16)
