"""Names of pictures as annotations have them, and the files that they may mean where none is called exactly so."""

import json
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .errors import DataError

# What tools put before and behind the name of a picture: COCO, Label Studio, Roboflow.
_PREFIX = re.compile(r"coco_(?:train|val|test)\d{4}_|[0-9a-f]{8}-(?=.)", re.IGNORECASE)
_HASH = re.compile(r"(.+)_(jpe?g|png|bmp|webp|tiff?)\.rf\.[0-9a-z]{8,}\.\w+", re.IGNORECASE)
_MAX_LISTED = 5

ALIASES = "filename2oiid.json"
"""The file by which CompositionCap says which picture of Open Images each of its own is."""
_MAX_ALIAS_BYTES = 2**26


def folder_word(name: str) -> str:
    """The name of a folder in small letters, without marks and plural."""
    return "".join(filter(str.isalnum, name.lower())).removesuffix("s")


MASK_FOLDERS = frozenset(
    map(
        folder_word,
        [
            *("mask", "label", "annotation", "gt", "groundtruth", "matte", "alpha", "instance"),
            *("seg", "segmentation", "segmentationobject", "segmentationclass", "segmentationmask"),
        ],
    )
)
"""What folders of masks are called, as `folder_word` has it."""


def is_foreign(name: str) -> bool:
    """Whether a name is an address or a path of some machine, rather than relative to pictures."""
    return name.startswith(("/", "\\", "~")) or re.match(r"[A-Za-z]:[\\/]|[A-Za-z][A-Za-z0-9+.-]*://", name) is not None


def tail_of(name: str) -> str:
    """What an address or a path of some machine may have in common with a relative name."""
    if "://" in name:
        name = unquote(urlsplit(name).path)
    elif name.startswith("/data/local-files/?d="):  # how Label Studio names files beside it
        name = unquote(name.partition("?d=")[2])
    return re.sub(r"^[A-Za-z]:", "", name.replace("\\", "/")).lstrip("/~")


def read_aliases(path: Path) -> dict[str, str]:
    """The names of pictures in CompositionCap and what they are called in Open Images.

    Raises:
        DataError: If the file is no object of texts.
    """
    try:
        if path.stat().st_size > _MAX_ALIAS_BYTES:
            raise ValueError(f"it has more than {_MAX_ALIAS_BYTES} bytes")
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
            raise ValueError("an object of texts is needed")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(str(path), f"it cannot be read ({str(error)[:200]}).") from error
    return found


class NameIndex:
    """The files of a store, found by names that are not exactly theirs.

    Args:
        names: relative ones, with `/` between folders; what leads out of the store is left out.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._by_base: dict[str, list[str]] = defaultdict(list)
        self._by_bare: dict[str, list[str]] | None = None
        for name in names:
            if not is_foreign(name) and ".." not in name.split("/"):
                self._by_base[posixpath.basename(_plain(name))].append(name)

    def same(self, name: str) -> str | None:
        """The only file whose name differs in its Unicode form, in the kind of slash or in capital letters alone.

        Raises:
            DataError: If there are several.
        """
        wanted = _plain(name)
        return _only([each for each in self._by_base.get(posixpath.basename(wanted), ()) if _plain(each) == wanted])

    def find(self, name: str) -> str | None:
        """The only file that a name may mean: one whose folders or prefix differ, too.

        Of files that are called alike, the one counts that shares most folders, from the last on. Folders of masks
        hold no pictures.

        Raises:
            DataError: If there are several.
        """
        wanted = _plain(tail_of(name))
        base = posixpath.basename(wanted)
        found = self._by_base.get(base, [])
        if not found:
            if self._by_bare is None:
                by_bare: dict[str, list[str]] = defaultdict(list)
                for key, names in self._by_base.items():
                    by_bare[_bare(key)] += names
                self._by_bare = by_bare
            found = self._by_bare.get(_bare(base), [])
            if not _is_bare(base):  # then the other one is: two different additions make two pictures
                found = [each for each in found if _is_bare(posixpath.basename(_plain(each)))]
        folders = wanted.split("/")[:-1]
        is_mask = any(folder_word(each) in MASK_FOLDERS for each in folders)
        by_shared: dict[int, list[str]] = defaultdict(list)
        for each in found:
            own = _plain(each).split("/")[:-1]
            if is_mask or not any(folder_word(part) in MASK_FOLDERS for part in own):
                pairs = zip(reversed(folders), reversed(own))
                by_shared[sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))].append(each)
        return _only(by_shared[max(by_shared)]) if by_shared else None


def _only(found: Sequence[str]) -> str | None:
    if len(found) > 1:
        listed = ", ".join(repr(each) for each in sorted(found)[:_MAX_LISTED])
        more = f" and {len(found) - _MAX_LISTED} more" if len(found) > _MAX_LISTED else ""
        raise DataError("image", f"no file is called exactly so, and it may be {listed}{more}. Give the name of one")
    return found[0] if found else None


def _plain(name: str) -> str:
    return posixpath.normpath(unicodedata.normalize("NFC", name).replace("\\", "/")).casefold()


def _bare(base: str) -> str:
    """The name of a picture without what tools put around it."""
    hashed = _HASH.fullmatch(base)
    return _without_e(_PREFIX.sub("", f"{hashed[1]}.{hashed[2]}" if hashed else base, count=1))


def _is_bare(base: str) -> bool:
    return _bare(base) == _without_e(base)


def _without_e(base: str) -> str:
    return base.removesuffix(".jpeg") + ".jpg" if base.endswith(".jpeg") else base
