"""Files of known tools that are not read, told by signs that no other file has, and what to export instead."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from .base import Seen

_COCO = "Export it as COCO"


def refusal(seen: Seen) -> str | None:
    """Why a file that no format recognises is not read; `None` of a folder, and of what is no known tool's."""
    if seen.is_folder or not seen.head:
        return None
    for name, (sign, route) in REFUSED.items():
        if sign(seen):
            return f"this is a file of {name}, which is not read. {route}."
    return None


def _top(seen: Seen) -> Mapping[str, Any]:
    """The object that a JSON file is, or the first of its list, or of its lines."""
    if isinstance(seen.json, dict) and len(seen.json) > 0 and not _is_lines(seen):
        return seen.json
    if seen.first:
        return seen.first
    if not _is_lines(seen):
        return {}
    try:
        value = json.loads(seen.head.split(b"\n", 1)[0])
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_lines(seen: Seen) -> bool:
    line = seen.head.split(b"\n", 1)[0].strip()
    return line.startswith(b"{") and line.endswith(b"}")


def _has(*keys: str, **inner: str) -> Callable[[Seen], bool]:
    """Whether the first object has keys, and under some of them an object, or a list of them, that has a key."""

    def sign(seen: Seen) -> bool:
        top = _top(seen)
        return {*keys, *inner} <= top.keys() and all(key in _inner(top[name]) for name, key in inner.items())

    return sign


def _inner(value: Any) -> Mapping[str, Any]:
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, dict) else {}


def _starts(*heads: bytes, at: int = 0) -> Callable[[Seen], bool]:
    return lambda seen: seen.head[at:].startswith(heads)


def _named(*endings: str) -> Callable[[Seen], bool]:
    return lambda seen: seen.path.name.lower().endswith(endings)


def _line(pattern: str) -> Callable[[Seen], bool]:
    """Whether the first line is of a pattern."""
    compiled = re.compile(pattern.encode())
    return lambda seen: (
        compiled.fullmatch(seen.head.split(b"\n", 1)[0].strip().removeprefix(b"\xef\xbb\xbf")) is not None
    )


def _any(*signs: Callable[[Seen], bool]) -> Callable[[Seen], bool]:
    return lambda seen: any(sign(seen) for sign in signs)


_NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
REFUSED: Mapping[str, tuple[Callable[[Seen], bool], str]] = {
    "VoTT": (_any(_has("regions", asset="path"), _has("assets", "tags", "videoSettings")), _COCO),
    "Labelbox": (
        _any(_has("data_row", "projects"), _has("Labeled Data", "Label")),
        f"{_COCO} with Labelbox' converter",
    ),
    "Create ML (RectLabel)": (
        _any(_has("image", annotations="coordinates"), _has("imagefilename", "annotation")),
        _COCO,
    ),
    "V7 Darwin": (
        _any(_has("item", "annotations", "schema_ref"), _has("annotations", image="original_filename")),
        _COCO,
    ),
    "Encord": (_has("data_units", "label_hash"), _COCO),
    "Segments.ai": (_has(dataset="samples"), f"{_COCO} (panoptic or instance)"),
    "Prodigy": (_has("spans", "_task_hash"), f"{_COCO}, or write its spans as JSON Lines"),
    "Hasty": (_has("export_format_version", "label_classes", "images"), _COCO),
    "Scale AI": (_has("task_id", "params", "response"), _COCO),
    "SuperAnnotate": (_has("instances", metadata="name"), _COCO),
    "Kili": (_has("externalId", labels="jsonResponse"), _COCO),
    "BDD100K": (_any(_has("name", labels="box2d"), _has("name", labels="poly2d")), f"{_COCO} with its own converter"),
    "VIA 3": (_has("file", "metadata", "view", project="pid"), f"{_COCO}, or annotate frames in VIA 2"),
    "Supervisely for video": (_has("framesCount", "frames", "objects"), "Export its frames as a project of images"),
    "SageMaker Ground Truth": (_has("source-ref"), f"{_COCO}, or write its regions as JSON Lines"),
    "Vertex AI": (_has("imageGcsUri"), _COCO),
    "Roboflow for language models (PaliGemma, Florence-2)": (_has("image", "prefix", "suffix"), "Export it as COCO"),
    "Label Studio in CSV": (_line(r".*\bannotation_id\b.*\bannotator\b.*"), "Export it as JSON"),
    "TensorFlow's detection in CSV": (_line(r"filename,width,height,class,xmin,ymin,xmax,ymax"), _COCO),
    "TensorFlow records": (_named(".tfrecord", ".tfrecords", ".record"), _COCO),
    "MATLAB": (_any(_starts(b"MATLAB 5.0 MAT-file"), _named(".mat")), "Write its masks as PNG beside the pictures"),
    "NIfTI": (_named(".nii", ".nii.gz"), "Write its slices and their label maps as PNG"),
    "DICOM": (_starts(b"DICM", at=128), "Write its pictures and label maps as PNG"),
    "NRRD": (_starts(b"NRRD0"), "Write its slices and their label maps as PNG"),
    "ImageJ's regions": (_starts(b"Iout"), "Write its regions as masks in PNG"),
    "shapes (.shp)": (_starts(b"\x00\x00\x27\x0a"), "Export it as GeoJSON in pixels"),
    "MOT": (_line(rf"\d+,-?\d+(?:,{_NUMBER}){{5,8}}"), f"{_COCO}, a picture for each frame"),
    "KITTI": (_line(rf"[A-Za-z_]+ (?:{_NUMBER} ){{13,14}}{_NUMBER}"), _COCO),
}
"""By name: how a file is recognised, and what to do."""
