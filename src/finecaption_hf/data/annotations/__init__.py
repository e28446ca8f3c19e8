"""Files of annotation tools -> pictures with regions, and captions back into the same kind of file: docs/formats.md.

Each format is an `AnnotationFile` in a module of its own; this one tells which format a file has.
"""

from pathlib import Path

from ...prompts_finecaption import no_such
from ..errors import DataError
from .ade20k import Ade20k
from .base import AnnotationFile, ReadOptions, Seen, SizedRegion
from .coco import CocoInstances, CocoResults
from .coco_writing import write_coco
from .cvat import Cvat
from .datumaro import Datumaro
from .fiftyone import FiftyOne
from .geojson import GeoJson
from .label_maps import LabelMaps
from .labelme import LabelMe
from .labelstudio import LabelStudio
from .openimages import OpenImages
from .panoptic import CocoPanoptic
from .patterns import is_pattern, matching
from .refused import refusal
from .sam import SamImages, SamMasks
from .seeing import see
from .supervisely import Supervisely
from .tables import Parquet
from .via import Via
from .videos import SavFrames, SavMasklets, YouTubeVis
from .voc import PascalVoc
from .webdataset import WebDataset
from .yolo import Yolo

ANNOTATION_FORMATS: tuple[type[AnnotationFile], ...] = (
    CocoInstances,
    CocoResults,
    CocoPanoptic,
    SamImages,
    SamMasks,
    YouTubeVis,
    SavMasklets,
    SavFrames,
    LabelMe,
    LabelStudio,
    Cvat,
    Supervisely,
    Datumaro,
    Via,
    FiftyOne,
    LabelMaps,
    Ade20k,
    Yolo,
    PascalVoc,
    OpenImages,
    Parquet,
    WebDataset,
    GeoJson,
)
"""All formats, by the order in which they are named."""


def recognise(path: Path) -> list[type[AnnotationFile]]:
    """The formats that a file or folder may have, told by its content; an export without a reader raises its own error.

    Raises:
        DataError: If it is of a known tool, but not read: it says what to export instead.
    """
    if is_pattern(path):
        seen = see(matching(path, "")[0])
        return [each for each in ANNOTATION_FORMATS if each.takes_patterns and each.recognises(seen)]
    seen = see(path)
    found = [each for each in ANNOTATION_FORMATS if each.recognises(seen)]
    if not found and (reason := refusal(seen)) is not None:
        raise DataError(str(path), reason)
    return found


def shards_of(path: Path) -> list[Path]:
    """The files of a pattern, or of a folder of parquet files or of WebDataset, each of which can be read alone."""
    if is_pattern(path):
        return matching(path, "")
    formats = {each.format for each in recognise(path)} if path.is_dir() else set()
    suffix = ".parquet" if Parquet.format in formats else ".tar" if WebDataset.format in formats else None
    return [path] if suffix is None else matching(path, suffix)


def has_splits(format: str | None) -> bool:
    """Whether a format knows parts of a data set by name."""
    return any(each.format == format and each.has_splits for each in ANNOTATION_FORMATS)


def open_annotations(path: Path, options: ReadOptions) -> AnnotationFile:
    """Open a file or folder of an annotation tool.

    Raises:
        DataError: If its format is unknown, or may be one of several and no format was given.
    """
    known = {each.format: each for each in ANNOTATION_FORMATS}
    if options.format is not None:
        if options.format not in known:
            raise DataError(str(path), no_such("format", options.format, known))
        return known[options.format](path, options)
    found = recognise(path)
    if len(found) > 1:
        names = ", ".join(f"{each.title} (--format {each.format})" for each in found)
        raise DataError(str(path), f"this may be {names}. Give the one that it is.")
    if not found:
        raise DataError(str(path), f"its format cannot be told. Give --format: {', '.join(known)}.")
    return found[0](path, options)


__all__ = [
    "ANNOTATION_FORMATS",
    "AnnotationFile",
    "ReadOptions",
    "Seen",
    "SizedRegion",
    "has_splits",
    "is_pattern",
    "open_annotations",
    "recognise",
    "see",
    "shards_of",
    "write_coco",
]
