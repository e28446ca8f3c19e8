"""Pictures by name, from a folder, a zip or a tar.

Names come from data files, so they are not trusted: whatever they say, they mean a file of the store or none. Archives
are read in place; nothing is unpacked to disk.
"""

import base64
import binascii
import logging
import os
import posixpath
import re
import tarfile
import warnings
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from ..mask_codecs_finecaption import BoolArray, MaskError
from .errors import DataError
from .heif import enable_heif, is_heif
from .mask_rules import ARRAYS, STRICT, MaskArrays, MaskRules, OpenedMask, Part, picture_parts
from .names import ALIASES, NameIndex, is_foreign, read_aliases
from .orientation import note_orientation, orientation_of
from .walking import folders_below

logger = logging.getLogger(__name__)

MAX_PIXELS = 178_956_970
"""Pictures with more pixels are refused; the size from which PIL takes a picture for an attack."""

# The file of a picture of MAX_PIXELS without compression; archives may claim any size for a member.
_MAX_BYTES = 4 * MAX_PIXELS


class ImageStore(ABC):
    """Pictures by name. May be pickled, and be used in processes that were forked.

    Args:
        path: the folder or archive.
        max_pixels (`int`): pictures with more are refused.
    """

    def __init__(self, path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> None:
        self.path = os.fspath(path)
        self.max_pixels = max_pixels
        self._index: NameIndex | None = None
        self._aliases: dict[str, str] = {}
        self._has_told = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_index": None}

    def read(self, name: str) -> Image.Image:
        """The picture in RGB, turned by its EXIF orientation; what is transparent lies on white.

        Args:
            name (`str`): relative to the folder or the root of the archive, with `/` between folders. Where no file is
                called so, the only one counts that differs in folders or in what tools put around names, too; see
                `NameIndex`.

        Raises:
            DataError: If the name leads out of the store, there is no such file or there are several that may be meant,
                it is no picture or truncated, or it has too many pixels.
        """
        return decode_image(self.read_bytes(name, loosely=True), _where(name), self.max_pixels)

    def read_bytes(self, name: str, *, loosely: bool = False) -> bytes:
        """The file as it is, of a picture or of what lies beside pictures, such as a mask.

        Args:
            name: as for `read`.
            loosely: whether folders and prefixes may differ; if not, only Unicode form, slashes and capitals may.

        Raises:
            DataError: If the name leads out of the store, there is no such file, or it is too large for any picture.
        """
        where = _where(name)
        try:
            checked = _checked(self._inside(name))
            if checked is not None:
                try:
                    return self._bytes(checked)
                except (FileNotFoundError, NotADirectoryError):
                    if (other := self._meant(name, loosely)) is None:
                        raise
            elif not loosely or (other := self._meant(name, loosely)) is None:
                raise DataError(
                    "image", "its name is no relative path. Names are relative to the folder or archive of images."
                )
            return self._bytes(other)
        except (
            *(OSError, RuntimeError, EOFError, UnicodeError),
            *(zipfile.BadZipFile, zlib.error, NotImplementedError),
        ) as error:
            # RuntimeError: an encrypted member; NotImplementedError: a compression that zipfile does not know;
            # UnicodeError: a name with half of a surrogate pair
            reason = "it is not there" if isinstance(error, (FileNotFoundError, NotADirectoryError)) else str(error)
            raise DataError(where, f"{reason} (in {self.path}).") from error
        except DataError as error:
            raise DataError(where, error.reason) from error

    def __contains__(self, name: str) -> bool:
        """Whether there is a file of that name; not of one that leads out of the store."""
        try:
            checked = _checked(self._inside(name))
            return checked is not None and self._has(checked)
        except (DataError, OSError, ValueError):  # OSError: too long; ValueError: half of a surrogate pair
            return False

    def take_aliases(self, folder: Path) -> None:
        """Take pictures under their other name, if CompositionCap's file with the names of Open Images is in a folder.

        Raises:
            DataError: If it is broken.
        """
        if (folder / ALIASES).is_file():
            pairs = read_aliases(folder / ALIASES).items()
            self._aliases = {
                **{f"{other}.jpg": name for name, other in pairs},
                **dict((n, f"{o}.jpg") for n, o in pairs),
            }

    def _inside(self, name: str) -> str:
        """A name that is an absolute path below this store as the relative one that it means; others as they are."""
        return name

    def _meant(self, name: str, loosely: bool) -> str | None:
        """The only file that a name may mean that none has exactly."""
        if self._index is None:
            self._index = NameIndex(self.names())
        other = self._index.same(name)
        if other is None and (alias := self._aliases.get(posixpath.basename(name))) is not None:
            name = alias
            other = self._index.same(name)
        if other is None and loosely and (other := self._index.find(name)) is not None and not self._has_told:
            self._has_told = True
            logger.warning("Pictures in %s have other names: %r is taken to be %r, and so on.", self.path, name, other)
        return other

    @abstractmethod
    def names(self) -> Iterator[str]:
        """The names of all files that are not hidden, in any order, with `/` between folders."""

    @abstractmethod
    def _bytes(self, name: str) -> bytes: ...

    @abstractmethod
    def _has(self, name: str) -> bool: ...

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r})"


def open_images(path: "str | os.PathLike[str] | ImageStore", max_pixels: int = MAX_PIXELS) -> ImageStore:
    """Open pictures for reading by name.

    Args:
        path: a folder, a .zip, or a .tar without compression (a compressed one would have to be read from its start for
            every picture). In a folder, links are followed: whoever made the folder set them.
        max_pixels (`int`): pictures with more are refused.

    Returns:
        `ImageStore`.

    Raises:
        DataError: If there is no such folder or archive, or it is damaged.
    """
    if isinstance(path, ImageStore):
        return path
    given = Path(path)
    try:
        if given.is_dir():
            return FolderImages(given, max_pixels)
        if not given.is_file():
            raise DataError(str(given), "there is no such folder, .zip or .tar.")
        if zipfile.is_zipfile(given):
            return ZipImages(given, max_pixels)
        return TarImages(given, max_pixels)
    except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise DataError(str(given), f"this is neither a folder nor a readable .zip or .tar ({error}).") from error


class FolderImages(ImageStore):
    def _inside(self, name: str) -> str:
        root = os.path.join(os.path.abspath(self.path), "")
        return name[len(root) :] if isinstance(name, str) and name.startswith(root) else name

    def names(self) -> Iterator[str]:
        for place, _, files in folders_below(self.path):
            base = os.path.relpath(place, self.path).replace(os.sep, "/")
            yield from (f"{base}/{name}" if base != "." else name for name in files if not name.startswith("."))

    def _bytes(self, name: str) -> bytes:
        with open(os.path.join(self.path, name), "rb") as file:
            _check_size(os.fstat(file.fileno()).st_size)
            return file.read()

    def _has(self, name: str) -> bool:
        return os.path.isfile(os.path.join(self.path, name))


class ZipImages(ImageStore):
    def __init__(self, path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> None:
        super().__init__(path, max_pixels)
        self._opened: tuple[int, Any] = os.getpid(), zipfile.ZipFile(path)

    def _open(self) -> zipfile.ZipFile:
        # After a fork the file's position is shared with the parent, so each process opens the archive itself; without
        # a lock, which would stay locked in a process that is forked while another thread holds it.
        owner, archive = self._opened
        if owner != os.getpid():
            archive = zipfile.ZipFile(self.path)
            self._opened = os.getpid(), archive
        return archive

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_opened": (0, None)}

    def names(self) -> Iterator[str]:
        yield from (name for name in self._open().namelist() if not name.endswith("/"))

    def _bytes(self, name: str) -> bytes:
        archive = self._open()
        try:
            member = archive.getinfo(name)
        except KeyError as error:
            raise FileNotFoundError(name) from error
        _check_size(member.file_size)
        with archive.open(member) as file:  # gives no more than the size that it states
            return file.read()

    def _has(self, name: str) -> bool:
        return name in self._open().NameToInfo


class TarImages(ImageStore):
    def __init__(self, path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> None:
        super().__init__(path, max_pixels)
        self._members: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if member.isreg():
                        self._members[posixpath.normpath(member.name)] = (member.offset_data, member.size)
                    archive.members = []  # type: ignore[attr-defined]  # tarfile would keep all of them
        except tarfile.ReadError as error:
            with open(path, "rb") as file:
                packed = file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
            if packed:
                raise DataError(
                    str(path), "a compressed .tar cannot be read by name. Unpack it, or pack it anew as .tar or .zip."
                ) from error
            raise

    def names(self) -> Iterator[str]:
        yield from self._members

    def _bytes(self, name: str) -> bytes:
        if name not in self._members:
            raise FileNotFoundError(name)
        offset, size = self._members[name]
        _check_size(size)
        with open(self.path, "rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) < size:
            raise EOFError("the archive ends before the picture does")
        return data

    def _has(self, name: str) -> bool:
        return name in self._members


def _where(name: Any) -> str:
    return f"image {name[:200]!r}" if isinstance(name, str) else "image"


def _checked(name: Any) -> str | None:
    """A relative name, normalised; `None` of what is an address or a path of some machine."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise DataError("image", "its name has to be text that is not empty.")
    if ".." in re.split(r"[/\\]", name):
        raise DataError("image", "its name leads out of the folder or archive of images ('..').")
    return None if is_foreign(name) else posixpath.normpath(name)


def _check_size(size: int) -> None:
    if size > _MAX_BYTES:
        raise DataError("image", f"its file has {size} bytes, more than any picture that is accepted ({_MAX_BYTES}).")


def decode_image(data: bytes, where: str = "image", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture of a file's content, in RGB, upright, what is transparent on white.

    Raises:
        DataError: If it is no picture, truncated or too large.
    """
    picture = open_picture(data, where, max_pixels)
    try:
        picture.load()
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise DataError(where, f"it cannot be decoded ({error}).") from error
    return to_rgb(picture, where)


def read_data_url(url: str, where: str = "image") -> bytes:
    """The content of a file that travels in a text, `data:image/..;base64,..`.

    Raises:
        DataError: If this is no such text; nothing else is opened.
    """
    head, comma, text = url.partition(",")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        raise DataError(where, f"it begins with {url[:40]!r}. Send data:image/png;base64,..")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise DataError(where, f"it is no base64 ({error}).") from error


def open_picture(data: bytes, where: str = "image", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture of a file's content, as it is stored and not decoded yet.

    Raises:
        DataError: If it is no picture or too large.
    """
    if is_heif(data):
        enable_heif(where)
    try:
        with warnings.catch_warnings():
            # PIL warns from half of its limit on; the limit here is ours.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(BytesIO(data))
    except Exception as error:  # see decode_image
        reason = "no format of pictures that PIL knows" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(where, f"it cannot be decoded ({reason}).") from error
    if picture.width * picture.height > max_pixels:
        raise DataError(
            where, f"it has {picture.width} x {picture.height} pixels, more than {max_pixels}. Make it smaller."
        )
    return picture


def to_rgb(picture: Image.Image, where: str = "image") -> Image.Image:
    """A picture in RGB, turned by its EXIF orientation, which it notes for regions; what is transparent lies on white.

    Raises:
        DataError: If its data is damaged.
    """
    from ..image_processing_finecaption import upright_rgb  # one rule for training and for inference

    try:
        return note_orientation(upright_rgb(picture), orientation_of(picture))
    except Exception as error:  # see decode_image; EXIF data may be damaged, too
        raise DataError(where, f"it cannot be decoded ({error}).") from error


@dataclass(frozen=True)
class MaskFile:
    """A mask that lies beside the pictures. A region reference: the file is read when `as_mask` asks for its pixels.

    Attributes:
        name (`str`): as names of pictures.
        store (`ImageStore`, *optional*): where it lies.
        rules (`MaskRules`): how it is read.
        part (`Part`): which of the masks in the file, where it holds several.
    """

    name: str
    store: ImageStore | None = field(default=None, compare=False, repr=False)
    rules: MaskRules = field(default=STRICT, compare=False, repr=False)
    part: Part = ()

    def open(self, content: "MaskContent | None" = None) -> OpenedMask:
        """The mask, not decoded yet.

        Args:
            content: the file, where it was read already for another of its masks.

        Raises:
            DataError: If it is not there, no picture or array, or holds several masks and `part` does not say which.
        """
        found = self.content() if content is None else content
        if self.part not in found.parts:
            raise DataError(
                self._where,
                f"it holds {len(found.parts)} masks, and one is needed. Lay it into a folder of masks, where each is a "
                "region, or save them as files of their own.",
            )
        return found.mask(self.name, self.part, self.rules)

    def content(self) -> "MaskContent":
        """What the file holds, not decoded yet.

        Raises:
            DataError: If it is not there, or neither a picture nor an array.
        """
        if self.store is None:
            raise DataError(
                self._where, "it is not known where masks lie. Give images (--images), their folder or archive."
            )
        try:
            return MaskContent(self.store.read_bytes(self.name), self.name, self.store.max_pixels)
        except DataError as error:
            raise DataError(self._where, error.reason) from error

    @property
    def _where(self) -> str:
        return f"mask {self.name[:200]!r}"

    def __region_mask__(self, height: int, width: int) -> BoolArray:
        """The region, of shape (H, W).

        Raises:
            MaskError: If the file cannot be read, or is none of a picture of this size.
        """
        try:
            opened = self.open()
        except DataError as error:
            raise MaskError(str(error)) from error
        return opened.__region_mask__(height, width)


class MaskContent:
    """A file of one or several masks: a picture, perhaps with pages, or numpy's arrays.

    Args:
        data (`bytes`): the file.
        name (`str`): its name, whose ending tells arrays from pictures.
        max_pixels (`int`): more are refused.

    Attributes:
        parts (`list[Part]`): its masks.

    Raises:
        DataError: If it is no such file.
    """

    def __init__(self, data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> None:
        where = f"mask {name[:200]!r}"
        self._held: Any
        if name.lower().endswith(ARRAYS):
            self._held = MaskArrays(data, where, _MAX_BYTES)
            self.parts = self._held.parts
        else:
            self._held = open_picture(data, where, max_pixels)
            self.parts = picture_parts(self._held, where)

    def mask(self, name: str, part: Part, rules: MaskRules) -> OpenedMask:
        """One of `parts`.

        Raises:
            DataError: If its array is damaged.
        """
        if isinstance(self._held, MaskArrays):
            return OpenedMask(name, self._held.mask(part), rules)
        return OpenedMask(name, self._held, rules, int(part[0]) if part else None)
