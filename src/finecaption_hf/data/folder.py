"""A folder of pictures with masks beside them -> rows with a picture and its regions."""

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import DataError
from .images import ImageStore, MaskContent, MaskFile, open_images
from .looking import what_it_looks_like
from .mask_rules import ARRAYS
from .names import MASK_FOLDERS, folder_word
from .walking import folders_below

PICTURES = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".j2k", ".jfif", ".jp2", ".jpeg", ".jpg"),
    *(".png", ".tif", ".tiff", ".webp"),
)
_WITHOUT_LOSS = (".bmp", ".gif", ".png", ".tif", ".tiff")
# What may hold several masks.
_STACKS = (".gif", ".tif", ".tiff", *ARRAYS)

# Names of folders for pictures, in small letters without marks and plural.
_PICTURE_FOLDERS = frozenset(["image", "img", "picture", "photo", "pic", "jpegimage", "rgb", "leftimg8bit", "input"])
_MASK_WORDS = "mask|label|annotation|gt|groundtruth|ground_truth|segmentation|seg|matte|alpha|instance"
_MAX_NAMED = 3


def pictures_with_masks(
    folder: Path, images: ImageStore | None = None, soft: bool = False
) -> tuple[list[tuple[str, Any]], list[tuple[str, int]]]:
    """Find pictures and their masks, at any depth; docs/captioning.md says how they belong together.

    Args:
        folder: of both, or of masks.
        images: of pictures that lie elsewhere; those without a mask have no regions then.
        soft: whether masks may have been saved with losses, so that a JPEG may be one.

    Returns:
        (name, row) of each picture, `{"image"}` or `{"image", "regions": [{"mask", "id"}, ..]}`, and after them
        (name, `DataError`) of each mask without its picture; and (name, size in bytes) of every file that counts.

    Raises:
        DataError: If there is no picture, a mask may be of two, or what lies among the pictures is none.
    """
    names = sorted(_files(folder), key=natural)
    if images is None:
        found = pair(names, soft)
        check_pictures(folder, [name for name in found.pictures if name not in found.masks])
    else:
        found = pair_apart(names, sorted((name for name in images.names() if _is_picture(name)), key=natural))
    if not found.pictures:
        place = str(folder) if images is None else images.path
        raise DataError(place, f"there are no pictures in this folder ({', '.join(PICTURES)}).")
    rows: list[tuple[str, Any]] = []
    store = None if images is None else open_images(folder)
    for name in found.pictures:
        regions = [region for mask in found.masks.get(name, ()) for region in _regions(folder, mask, store)]
        is_whole = not regions and images is None
        rows.append((name, {"image": name} if is_whole else {"image": name, "regions": regions}))
    rows += [(name, DataError(name, "there is no picture that this is a mask of.")) for name in found.orphans]
    return rows, [(name, (folder / name).stat().st_size) for name in names]


def _files(folder: Path) -> Iterator[str]:
    for place, _, files in folders_below(folder):
        base = os.path.relpath(place, folder)
        for name in files:
            if name.lower().endswith((*PICTURES, *ARRAYS)) and not name.startswith("."):
                yield name if base == "." else f"{base}/{name}".replace(os.sep, "/")


def _is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURES)


def _regions(folder: Path, name: str, store: ImageStore | None) -> list[dict[str, Any]]:
    """The masks of a file, of which a picture with pages and numpy's arrays hold several."""
    if not name.lower().endswith(_STACKS):
        return [{"mask": MaskFile(name, store), "id": name}]
    try:
        parts = MaskContent((folder / name).read_bytes(), name).parts
    except (OSError, DataError) as error:
        reason = error.reason if isinstance(error, DataError) else str(error)
        return [{"mask": DataError(f"mask {name[:200]!r}", reason), "id": name}]
    numbered = [(part, f"{name}#{'/'.join(map(str, part))}" if part else name) for part in parts]
    return [{"mask": MaskFile(name, store, part=part), "id": own} for part, own in numbered]


def check_pictures(folder: Path, pictures: Sequence[str]) -> None:
    """Refuse what is no picture among those that would be described.

    Raises:
        DataError: If label maps or masks are among them: it names some.
    """
    odd: list[tuple[str, str]] = []
    number = 0
    for name in pictures:
        if (looks := what_it_looks_like(folder / name)) is not None:
            number += 1
            odd = [*odd, (name, looks)][:_MAX_NAMED]
    if odd:
        listed = ", ".join(f"{name} looks like {looks}" for name, looks in odd)
        more = f", and so do {number - len(odd)} more" if number > len(odd) else ""
        raise DataError(
            str(folder),
            f"not all of this is pictures: {listed}{more}. Lay masks into a folder masks beside the pictures; for "
            "maps in which each value is a region, give --format label-map, and --images where pictures lie elsewhere. "
            "Pictures that are so plain are taken from JSON Lines that name them.",
        )


# --- which mask is of which picture -----------------------------------------------------------------------------------


class Pairs:
    """Pictures, and the masks that belong to them.

    Attributes:
        pictures (`list[str]`): names, in natural order.
        masks (`dict[str, list[str]]`): by picture, in natural order.
        orphans (`list[str]`): masks without a picture.
    """

    def __init__(self) -> None:
        self.pictures: list[str] = []
        self.masks: dict[str, list[str]] = {}
        self.orphans: list[str] = []


def pair(names: Sequence[str], soft: bool = False) -> Pairs:
    """Find out what is a picture and what is a mask of it, by names.

    Args:
        names: relative ones, in natural order.
        soft: whether a JPEG beside a picture may be its mask.

    Raises:
        DataError: If a mask may be of two pictures.
    """
    folders = {str(parent) for path in map(PurePosixPath, names) for parent in path.parents}
    roots: dict[str, list[str]] = defaultdict(list)
    plain: list[str] = []
    for name in names:
        root = _mask_root(PurePosixPath(name).parts[:-1], folders)
        if root is not None:
            roots[root].append(name)
        elif _is_picture(name) or _beside(PurePosixPath(name), soft):
            plain.append(name)
    shelf = PictureShelf(filter(_is_picture, plain))
    owners: dict[str, str] = {}
    orphans: list[str] = []
    pictures = set(filter(_is_picture, plain))
    # First those beside plain pictures; of the others, the outer ones may be pictures of the inner ones.
    waiting = []
    for root in sorted(roots, key=lambda root: root.count("/")):
        if not _settle(root, roots[root], shelf, owners, orphans):
            waiting.append(root)
    for root in waiting:
        if not _settle(root, roots[root], shelf, owners, orphans):
            if PurePosixPath(root).name.lower() == "masks":
                orphans += roots[root]
                continue
            inner = [name for name in roots[root] if _is_picture(name)]
            pictures.update(inner)
            shelf.add(inner)
    for name in plain:
        if (stem := _beside(PurePosixPath(name), soft)) and (
            owner := shelf.only(name, str(PurePosixPath(name).parent), stem)
        ):
            owners[name] = owner
        elif not _is_picture(name):
            orphans.append(name)
    found = Pairs()
    found.pictures = [name for name in names if name in pictures and name not in owners]
    found.orphans = sorted(orphans, key=natural)
    for name in names:
        if name in owners:
            found.masks.setdefault(owners[name], []).append(name)
    return found


def pair_apart(names: Sequence[str], pictures: Sequence[str]) -> Pairs:
    """The same for masks in one place and pictures in another.

    Raises:
        DataError: If a mask may be of two pictures.
    """
    shelf = PictureShelf(pictures)
    found = Pairs()
    found.pictures = list(pictures)
    for name in names:
        path = PurePosixPath(name)
        owner = shelf.by_tail(name, forms_of(path.parts[:-1], path.stem))
        if owner is None:
            found.orphans.append(name)
        else:
            found.masks.setdefault(owner, []).append(name)
    return found


class PictureShelf:
    """Pictures by folder and name without ending."""

    def __init__(self, names: Iterator[str] | Sequence[str]) -> None:
        self._by_stem: dict[tuple[str, str], list[str]] = defaultdict(list)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self.below: dict[str, set[str]] = defaultdict(set)
        self.add(names)

    def add(self, names: Iterator[str] | Sequence[str]) -> None:
        for name in names:
            path = PurePosixPath(name)
            self._by_stem[str(path.parent), path.stem].append(name)
            self._by_name[path.stem].append(name)
            for depth, part in enumerate(path.parts[:-1]):
                self.below["/".join(path.parts[:depth]) or "."].add(part)

    def only(self, mask: str, folder: str, stem: str) -> str | None:
        """The picture of that name; another file than the mask.

        Raises:
            DataError: If there are two.
        """
        found = [name for name in self._by_stem.get((folder, stem), ()) if name != mask]
        if len(found) > 1:
            raise DataError(mask, f"it may be a mask of {' and of '.join(sorted(found))}. Rename one.")
        return found[0] if found else None

    def by_tail(self, mask: str, forms: Sequence[tuple[Sequence[str], str]]) -> str | None:
        """The picture whose folders end as those of a mask do, the farther the better; or the only one of that name.

        Raises:
            DataError: If several fit alike.
        """
        alike: list[str] = []
        for folders, stem in forms:
            found: dict[int, list[str]] = defaultdict(list)
            for name in self._by_name.get(stem, ()):
                pairs = zip(reversed(folders), reversed(PurePosixPath(name).parts[:-1]))
                found[sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))].append(name)
            if found and len(best := found[max(found)]) == 1:
                return best[0]
            alike = alike or (best if found else [])
        if alike:
            raise DataError(mask, f"it may be a mask of {' and of '.join(sorted(alike)[:3])}. Rename one.")
        return None


def _settle(root: str, names: Sequence[str], shelf: PictureShelf, owners: dict[str, str], orphans: list[str]) -> bool:
    """Find the pictures of all masks below a folder; whether there is any."""
    top = PurePosixPath(root)
    of_name = re.fullmatch(rf"(.+?)[-_ .](?:{_MASK_WORDS})s?", top.name, re.IGNORECASE)
    parent = "" if str(top.parent) == "." else f"{top.parent}/"
    beside = shelf.below.get(str(top.parent), set())
    if of_name and of_name[1] in beside:
        bases = [[f"{parent}{of_name[1]}"]]
    else:
        named = sorted(name for name in beside if folder_word(name) in _PICTURE_FOLDERS)
        bases = [[parent.rstrip("/")], [parent + name for name in named], [parent + name for name in sorted(beside)]]
    found: dict[str, str] = {}
    for name in names:
        path = PurePosixPath(name)
        inside = path.parts[len(top.parts) : -1]
        for tier in bases:
            if owner := _owner(name, inside, path.stem, tier, shelf):
                found[name] = owner
                break
    if found:
        owners.update(found)
        orphans += [name for name in names if name not in found]
    return bool(found)


def _owner(mask: str, inside: Sequence[str], stem: str, bases: Collection[str], shelf: PictureShelf) -> str | None:
    """The picture of a mask, in one of several folders.

    Raises:
        DataError: If there are two.
    """
    for folders, name in forms_of(inside, stem):
        found = {
            owner
            for base in bases
            if (owner := shelf.only(mask, "/".join([*filter(None, [base]), *folders]) or ".", name))
        }
        if len(found) > 1:
            raise DataError(mask, f"it may be a mask of {' and of '.join(sorted(found))}. Rename one.")
        if found:
            return found.pop()
    return None


def forms_of(inside: Sequence[str], stem: str) -> list[tuple[Sequence[str], str]]:
    """How the picture of a mask may be called, as (folders, name without ending), the likeliest first."""
    forms: list[tuple[Sequence[str], str]] = [(inside, stem)]  # masks/a.png
    if inside:
        forms.append((inside[:-1], inside[-1]))  # masks/a/anything.png
    forms += [(inside, bare) for bare in _bare(stem)]  # masks/a_gt.png, masks/a_0.png
    if inside:
        forms.append((inside[:-1], stem))  # masks/object/a.png
    return forms


def _bare(stem: str) -> Iterator[str]:
    """What may be the name of the picture in that of a mask in a folder of masks, the longest first."""
    numbered = re.fullmatch(r"(.+?)[-_. ]\d+", stem)
    worded = re.fullmatch(rf"(.+?)[-_. ](?:{_MASK_WORDS})s?(?:[-_. ]?\d+)?", stem, re.IGNORECASE)
    yield from sorted({match[1] for match in (numbered, worded) if match}, key=len, reverse=True)


def _beside(path: PurePosixPath, soft: bool) -> str | None:
    """The name without ending of the picture that a file beside it may be a mask of: a-mask.png, a_mask2.png."""
    match = re.fullmatch(r"(.+)[-_]mask[^/]*?", path.stem)
    endings = (*PICTURES, *ARRAYS) if soft else (".png", *ARRAYS)  # JPEG blurs the edges of a mask
    return match[1] if match and path.suffix.lower() in endings else None


def _mask_root(folders: Sequence[str], known: Collection[str]) -> str | None:
    """The innermost folder of a file that is for masks by its name."""
    for depth in range(len(folders), 0, -1):
        name = folders[depth - 1]
        of_name = re.fullmatch(rf"(.+?)[-_ .](?:{_MASK_WORDS})s?", name, re.IGNORECASE)
        parent = "/".join(folders[: depth - 1])
        beside = f"{parent}/{of_name[1]}" if of_name and parent else of_name[1] if of_name else None
        if folder_word(name) in MASK_FOLDERS or beside in known:
            return "/".join(folders[:depth])
    return None


def natural(name: str) -> list[tuple[int, Any]]:
    """Sorts mask2 before mask10."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"([0-9]+)", name)]
