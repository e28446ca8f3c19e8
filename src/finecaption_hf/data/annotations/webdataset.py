"""Shards of WebDataset: tar files in which the parts of a sample have one name and different endings."""

import hashlib
import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..columns import Columns, without_none_below
from ..errors import DataError
from ..json_stream import MAX_ELEMENT_BYTES, parse
from .base import AnnotationFile, ReadOptions, Seen
from .patterns import matching

_PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "avif", "heic", "jp2", "jfif", "ppm")
_MASK_WORDS = ("mask", "seg", "label", "alpha", "matte", "annotation", "instance")
_TEXTS = ("txt", "text", "caption")
_MAX_BYTES = 2**30
# Beside shards in a folder.
_BESIDE = (".tar", ".md", ".txt", ".yaml", ".yml", ".idx", "sizes.json", "info.json", "stats.json")

# Of a part of a sample: its ending, and where its content lies in the shard.
_Part = tuple[str, int, int]


class WebDataset(AnnotationFile):
    """A .tar file of samples, a folder or a pattern of them: `key.jpg` with `key.json`, `key.mask.png`, `key.txt`, ..

    Of each sample, what is in its .json are columns as those of a `datasets` split (`objects`, `annotations`,
    `regions`, ..); pictures whose ending has "mask", "seg" or the like before that of the picture (`key.mask.png`,
    `key.mask2.png`) are regions; the text is a caption of the picture. Parts are read by their places in the shards,
    nothing is unpacked. Texts cannot be put back; records name the sample's picture.
    """

    format = "webdataset"
    title = "WebDataset"
    has_own_rows = True
    takes_patterns = True

    def __init__(self, path: Path, options: ReadOptions) -> None:
        super().__init__(path, options)
        self._paths = matching(path, ".tar")
        self._columns = Columns(box_format=options.box_format)
        self._samples: list[tuple[int, str, tuple[_Part, ...]] | DataError] | None = None
        self._digest = ""

    @classmethod
    def recognises(cls, seen: Seen) -> bool:
        if seen.is_folder:
            return any(name.endswith(".tar") for name in seen.names) and all(
                name.endswith(_BESIDE) for name in seen.names
            )
        return seen.head[257:262] == b"ustar"

    def files(self) -> Iterator[Path]:
        yield from self._paths

    def where_images_lie(self) -> Path:
        return self._paths[0].parent

    def fingerprint(self) -> str:
        """Of names and sizes of all parts, and of the content of those that are no pictures."""
        self._index()
        return self._digest

    def _index(self) -> list[tuple[int, str, tuple[_Part, ...]] | DataError]:
        if self._samples is not None:
            return self._samples
        samples: list[tuple[int, str, tuple[_Part, ...]] | DataError] = []
        digest = hashlib.sha256(self.format.encode())
        endings: dict[str, str] = {}
        for number, path in enumerate(self._paths):
            key, parts = "", list[_Part]()
            try:
                with tarfile.open(path, "r:") as archive, open(path, "rb") as file:
                    for member in archive:
                        archive.members = []  # type: ignore[attr-defined]  # tarfile would keep all of them
                        name = posixpath.normpath(member.name)
                        folder, base = posixpath.split(name)
                        if not member.isreg() or base.startswith(".") or "." not in base:
                            continue
                        stem, _, ending = base.partition(".")
                        if (own := posixpath.join(folder, stem)) != key:
                            if parts:
                                samples.append((number, key, tuple(parts)))
                            key, parts = own, []
                        ending = endings.setdefault(ending.lower(), ending.lower())
                        parts.append((ending, member.offset_data, member.size))
                        digest.update(f"{path.name} {name} {member.size}".encode("utf-8", "surrogateescape"))
                        if not _is_picture(ending):
                            file.seek(member.offset_data)
                            digest.update(file.read(min(member.size, MAX_ELEMENT_BYTES)))
                if parts:
                    samples.append((number, key, tuple(parts)))
            except (OSError, tarfile.TarError) as error:  # samples of other shards are not touched
                samples.append(
                    DataError(str(path), f"{_why(path, error)} Samples after {key or 'its start'} are lost.")
                )
        self._samples, self._digest = samples, digest.hexdigest()
        return samples

    def scan(self) -> Iterator[tuple[str, Any]]:
        for index in range(len(self._index())):
            yield self._row(index, with_pictures=False)

    def read(self, index: int) -> tuple[str, Any]:
        return self._row(index, with_pictures=True)

    def _row(self, index: int, with_pictures: bool) -> tuple[str, Any]:
        sample = self._index()[index]
        if isinstance(sample, DataError):
            return sample.where, sample
        number, key, parts = sample
        path = self._paths[number]
        where = f"{path.name}/{key}"
        row: dict[str, Any] = {}
        pictures: list[Any] = []
        masks: list[Any] = []
        try:
            with open(path, "rb") as file:
                for ending, offset, size in parts:
                    if _is_picture(ending):
                        data = _read(file, offset, size, ending) if with_pictures else None
                        found = {"bytes": data, "path": f"{posixpath.basename(key)}.{ending}"}
                        (masks if _is_mask(ending) else pictures).append(found)
                    else:
                        row |= _columns_of(ending, _read(file, offset, size, ending))
            if len(pictures) != 1:
                endings = ", ".join(ending for ending, _, _ in parts)
                raise DataError("sample", f"it has {len(pictures)} pictures, one is needed; there are {endings}.")
            row["image"] = pictures[0]
            if masks:
                row["masks" if "mask" in row else "mask"] = masks
            return where, self._columns.row(without_none_below(row))
        except DataError as error:
            return where, error.at(where)
        except OSError as error:
            return where, DataError(where, f"it cannot be read ({error}).")


def _is_picture(ending: str) -> bool:
    return ending.rpartition(".")[2] in _PICTURES


def _is_mask(ending: str) -> bool:
    return any(word in ending.rpartition(".")[0] for word in _MASK_WORDS)


def _columns_of(ending: str, data: bytes) -> dict[str, Any]:
    """What a part says that is no picture; of an ending that is not known, its text if it is one."""
    try:
        text = data.decode("utf-8-sig")
        if ending.rpartition(".")[2] == "json":
            value = parse(text)
            if isinstance(value, dict):
                return value
            return {"objects": value} if isinstance(value, list) else {ending.removesuffix(".json"): value}
    except UnicodeDecodeError as error:
        if ending.rpartition(".")[2] != "json":
            return {}
        raise DataError(ending, f"it is no UTF-8 ({error.reason}).") from error
    except ValueError as error:
        raise DataError(ending, f"it is no JSON ({error}).") from error
    return {"global_caption" if ending in _TEXTS else ending: text.strip()}


def _read(file: Any, offset: int, size: int, ending: str) -> bytes:
    most = _MAX_BYTES if _is_picture(ending) else MAX_ELEMENT_BYTES
    if size > most:
        raise DataError(ending, f"it has {size} bytes, more than the {most} that are read.")
    file.seek(offset)
    data: bytes = file.read(size)
    if len(data) < size:
        raise DataError(ending, "the shard ends before it does.")
    return data


def _why(path: Path, error: Exception) -> str:
    try:
        with open(path, "rb") as file:
            packed = file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
    except OSError:
        packed = False
    if packed:
        return "a compressed .tar cannot be read by place: unpack it (gunzip, unxz), or pack it anew as .tar."
    return f"this shard is broken ({error})."
