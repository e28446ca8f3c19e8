"""Masks in the frames of videos: YouTube-VIS and SA-V. A frame is a picture; videos themselves are not decoded."""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np

from ...mask_codecs_finecaption import BoolArray, MaskError, array_mask
from ..errors import DataError
from ..examples import kind
from ..images import MAX_PIXELS, open_picture
from .base import AnnotationFile, ReadOptions, Seen
from .coco import by_id, id_of, is_box, reference_of, size_of
from .elements import MAX_IN_MEMORY, group, index_lists, parse_element
from .sam import file_names, folder_names

# SA-V has masks for every fourth frame of its videos.
_SAV_STEP = 4
# Videos whose annotations are kept parsed, since their frames are read one after the other.
_VIDEOS_KEPT = 4
_FRAMES, _MASKS = "JPEGImages_24fps", "Annotations_6fps"


class YouTubeVis(AnnotationFile):
    """Lists of videos, annotations with a segmentation per frame, and categories; the same for OVIS and the like.

    Each frame is a row, with the objects that are in it.
    """

    format: ClassVar[str] = "youtube-vis"
    title: ClassVar[str] = "YouTube-VIS"

    def __init__(self, path: Path, options: ReadOptions) -> None:
        super().__init__(path, options)
        lists, others = index_lists(path, {"videos": "id", "annotations": "video_id"}, ("categories",))
        for name in ("videos", "annotations"):
            if name not in lists:
                raise DataError(self.name, f"there is no list {name!r}. Is this {self.title}?")
        self._videos, self._annotations = lists["videos"], lists["annotations"]
        self._categories = by_id(others.get("categories"))
        self._groups = group(self._annotations.codes, self._videos.codes)
        # Read again for each frame otherwise.
        self._video = lru_cache(_VIDEOS_KEPT)(self._parsed_video)
        # Rows before each video; one that cannot be used is a row with its error.
        counts = [len(frames) if frames else 1 for frames in map(self._frames_of, range(len(self._videos)))]
        self._starts: list[int] = np.cumsum([0, *counts]).tolist()

    @classmethod
    def recognises(cls, seen: Seen) -> bool:
        return isinstance(seen.element("videos").get("file_names"), list)

    def scan(self) -> Iterator[tuple[str, Any]]:
        for index in range(self._starts[-1] + len(self._groups.orphans)):
            yield self.read(index)

    def read(self, index: int) -> tuple[str, Any]:
        if index >= self._starts[-1]:
            where = f"{self.name}: annotations[{int(self._groups.orphans[index - self._starts[-1]])}]"
            return where, DataError(where, "it belongs to no video: there is none with its id.")
        number = bisect_right(self._starts, index) - 1
        frame = index - self._starts[number]
        video, annotations = self._video(number)
        if isinstance(video, DataError):
            return video.where, video
        where = f"{self.name}: videos[{number}], frame {frame}"
        name = video["file_names"][frame]
        if not isinstance(name, str) or not name:
            return where, DataError(where, f"file_names: {kind(name)} arrived, the name of a picture is needed.")
        regions = [region for place, entry in annotations if (region := self._region(place, entry, video, frame))]
        return where, {"image": name, "video_id": id_of(video), "frame": frame, "regions": regions}

    def _frames_of(self, number: int) -> list[Any]:
        with open(self.path, "rb", buffering=0) as file:
            return self._checked(file, number).get("file_names", [])

    def _checked(self, file: Any, number: int) -> dict[str, Any]:
        """A video, or what the error of one is: an object without frames."""
        where = f"{self.name}: videos[{number}]"
        try:
            video = self._videos.read(file, number, where)
            names = video.get("file_names")
            if not isinstance(names, list) or not names:
                raise DataError(where, f"file_names: {kind(names)} arrived, the names of its frames are needed.")
            if self._groups.is_repeated[number]:
                raise DataError(where, "a video before it has the same id, and all of its annotations.")
            id_of(video)
        except DataError as error:
            return {"error": error if error.where == where else error.at(where)}
        return video

    def _parsed_video(self, number: int) -> tuple[Any, list[tuple[str, Any]]]:
        """A video, or its error, and its annotations, or their errors, with their places."""
        with open(self.path, "rb", buffering=0) as file:
            video = self._checked(file, number)
            if "file_names" not in video:
                return video["error"], []
            annotations: list[tuple[str, Any]] = []
            for at in self._groups.of(number):
                place = f"{self.name}: annotations[{at}]"
                try:
                    entry: Any = self._annotations.read(file, at, place)
                    masks = entry.get("segmentations")
                    if not isinstance(masks, list) or len(masks) != len(video["file_names"]):
                        frames = f"{len(masks)} arrived" if isinstance(masks, list) else f"{kind(masks)} arrived"
                        raise DataError(place, f"segmentations: {frames}, one per frame is needed (null where unseen).")
                except DataError as error:
                    entry = error
                annotations.append((place, entry))
        return video, annotations

    def _region(self, place: str, entry: Any, video: dict[str, Any], frame: int) -> dict[str, Any] | None:
        if isinstance(entry, DataError):
            # In the first frame only: it is one error, whatever the number of frames.
            return {"mask": entry} if frame == 0 else None
        outline = entry["segmentations"][frame]
        if _is_nowhere(outline):
            return None
        region = {key: value for key, value in entry.items() if key not in _NOT_CARRIED and not isinstance(value, list)}
        boxes = entry.get("bboxes")
        if isinstance(boxes, list) and len(boxes) == len(entry["segmentations"]) and is_box(boxes[frame]):
            region["bbox"] = boxes[frame]
        try:
            region["id"] = id_of(entry)
            region["mask"] = reference_of({"segmentation": outline}, size_of(video), place, Counter())
        except DataError as error:
            region["mask"] = error.at(place)
        name = self._categories.get(str(entry.get("category_id")), {}).get("name")
        return {**region, "label": name} if isinstance(name, str) else region


_NOT_CARRIED = frozenset({"id", "video_id", "mask", "segmentations"})


class SavMasklets(AnnotationFile):
    """SA-V's training set: `sav_000001_manual.json` or `_auto.json`, with masks for every fourth frame of a video.

    The frames have to be there as pictures, `sav_000001/00000.jpg` and so on, all of them or every fourth one, in the
    folder of pictures.
    """

    format: ClassVar[str] = "sa-v"
    title: ClassVar[str] = "SA-V"

    def __init__(self, path: Path, options: ReadOptions) -> None:
        super().__init__(path, options)
        if (size := path.stat().st_size) > MAX_IN_MEMORY:
            raise DataError(self.name, f"the file has {size} bytes, more than the masks of a video need.")
        try:
            content = msgspec.json.decode(path.read_bytes(), type=_Sav)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise DataError(self.name, f"this is no file of SA-V ({error}).") from error
        self._video, self._frames, self._ids = content.video_id, content.masklet, content.masklet_id
        if not re.fullmatch(r"[\w-]+", self._video):
            raise DataError(self.name, "video_id: a name of letters, digits, - and _ is needed.")
        self._size = size_of({"height": content.video_height, "width": content.video_width})
        self._names = self._pictures()

    @classmethod
    def recognises(cls, seen: Seen) -> bool:
        return isinstance(seen.json, dict) and {"video_id", "masklet"} <= seen.json.keys()

    def scan(self) -> Iterator[tuple[str, Any]]:
        for index in range(len(self._frames)):
            yield self.read(index)

    def read(self, index: int) -> tuple[str, Any]:
        where = f"{self.name}: masklet[{index}]"
        try:
            masks = parse_element(bytes(self._frames[index]), where)
            if not isinstance(masks, list) or len(masks) != len(self._ids):
                raise DataError(where, f"a list of {len(self._ids)} masks is needed, as there are ids.")
        except DataError as error:
            return where, error
        regions = [
            {"id": number, "mask": reference_of({"segmentation": mask}, self._size, where, Counter())}
            for number, mask in zip(self._ids, masks)
            if not _is_nowhere(mask)
        ]
        return where, {"image": self._names[index], "video_id": self._video, "frame": index, "regions": regions}

    def _pictures(self) -> list[str]:
        folder = Path(self.where_images_lie() if self.options.images is None else str(self.options.images))
        given = self.options.images
        if given is not None and not isinstance(given, (str, Path)):
            names: list[str] = []
        else:
            names = file_names(folder / self._video)
        count = len(self._frames)
        if count and len(names) == count:
            return [f"{self._video}/{name}" for name in names]
        if count and _SAV_STEP * (count - 1) < len(names):
            return [f"{self._video}/{names[_SAV_STEP * index]}" for index in range(count)]
        raise DataError(
            self.name,
            f"its masks are for {count} frames, every fourth of the video, but there are {len(names)} pictures in "
            f"{str(folder / self._video)!r}. Write all frames there (ffmpeg -i {self._video}.mp4 -q:v 2 "
            f"-start_number 0 {self._video}/%05d.jpg), and give the folder above it: --images.",
        )


class _Sav(msgspec.Struct):
    video_id: str
    masklet: list[msgspec.Raw]
    masklet_id: list[int]
    video_height: float | None = None
    video_width: float | None = None


class SavFrames(AnnotationFile):
    """SA-V's sets for validation and test: a folder with frames, and a mask per object in every fourth frame.

    `JPEGImages_24fps/<video>/00000.jpg` and `Annotations_6fps/<video>/<object>/00000.png`, in which all but 0 is the
    object.
    """

    format: ClassVar[str] = "sa-v-frames"
    title: ClassVar[str] = "SA-V frames"

    def __init__(self, path: Path, options: ReadOptions) -> None:
        super().__init__(path, options)
        masks: dict[tuple[str, str], list[str]] = {}
        for video in folder_names(path / _MASKS):
            for thing in folder_names(path / _MASKS / video):
                for name in file_names(path / _MASKS / video / thing):
                    masks.setdefault((video, Path(name).stem), []).append(thing)
        self._rows = sorted(masks.items())
        if not self._rows:
            raise DataError(self.name, f"there are no masks in {_MASKS}/<video>/<object>/.")

    @classmethod
    def recognises(cls, seen: Seen) -> bool:
        return seen.is_folder and all((seen.path / name).is_dir() for name in (_FRAMES, _MASKS))

    def files(self) -> Iterator[Path]:
        for (video, frame), things in self._rows:
            for thing in things:
                yield self._mask(video, thing, frame)

    def scan(self) -> Iterator[tuple[str, Any]]:
        for index in range(len(self._rows)):
            yield self.read(index)

    def read(self, index: int) -> tuple[str, Any]:
        (video, frame), things = self._rows[index]
        regions = [{"id": thing, "mask": SavMask(self._mask(video, thing, frame))} for thing in things]
        row = {
            "image": f"{_FRAMES}/{video}/{frame}.jpg",
            "video_id": video,
            "frame": int(frame) if frame.isdecimal() else frame,
        }
        return f"{_MASKS}/{video}, frame {frame}", {**row, "regions": regions}

    def _mask(self, video: str, thing: str, frame: str) -> Path:
        return self.path / _MASKS / video / thing / f"{frame}.png"


@dataclass(frozen=True)
class SavMask:
    """A file in which every value but 0 is the object: a `SizedRegion`."""

    path: Path

    def __region_mask__(self, height: int, width: int) -> BoolArray:
        """As `SizedRegion` says.

        Raises:
            MaskError: If the file is no picture with one channel, of another size, or the object is not in it.
        """
        try:
            picture = open_picture(self.path.read_bytes(), f"mask {self.path.name!r}", MAX_PIXELS)
        except (OSError, DataError) as error:
            reason = error.reason if isinstance(error, DataError) else error.strerror
            raise MaskError(f"The file {str(self.path)!r}: {reason}") from error
        if (picture.height, picture.width) != (height, width) or len(picture.getbands()) != 1:
            raise MaskError(
                f"The file {str(self.path)!r} is {picture.height}x{picture.width} of mode {picture.mode!r}; needed is "
                f"one channel of the frame's size, {height}x{width} (height x width)."
            )
        try:
            values = np.asarray(picture)
        except Exception as error:  # decoders of damaged files raise nearly anything
            raise MaskError(f"The file {str(self.path)!r} is damaged ({error}).") from error
        return array_mask(values != 0)


def _is_nowhere(mask: Any) -> bool:
    """Whether an object is not seen in a frame: no mask, or one of a single run, which is background."""
    counts = mask.get("counts") if isinstance(mask, dict) else None
    if isinstance(counts, str) and len(counts) <= 16:
        # In COCO's text the sixth bit says that a number goes on.
        return sum(not (ord(character) - 48) & 0x20 for character in counts) == 1
    return mask is None or (isinstance(counts, list) and len(counts) == 1)
