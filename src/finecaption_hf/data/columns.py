"""Columns of tables as people and tools name them -> rows of the package's own form.

Of a table of any origin (`datasets`, parquet, shards of WebDataset), this finds the picture, and the regions where they
are not under a key of the package: pictures of masks, lists of them, lists of objects with boxes or outlines.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import Image

from ..masks_finecaption import REGION_KEYS, MaskError, read_region
from .boxes import as_box_format, box_region, four_numbers, named_box
from .errors import DataError

STAND_IN = {"bytes": None, "path": None}
"""In the place of a picture that is not read yet."""

IMAGE_COLUMNS = ("image", "image_path", "file_name", "img", "picture", "photo", "pixel_values")
"""Columns of the picture; the first three may also hold its name."""

# Columns of pictures that are masks, where no key of the package is one, and lists of objects.
_MASKS = (
    *("masks", "segmentations", "segmentation_mask", "segmentation_masks", "segmentation_map", "seg", "seg_mask"),
    *("label", "labels", "label_map", "annotation", "annotations", "mask_image", "mask_images", "binary_mask"),
    *("instance_mask", "instance_masks", "object_mask", "ground_truth", "gt", "alpha", "matte"),
)
PICTURE_COLUMNS = {*IMAGE_COLUMNS, "mask", "segmentation", *_MASKS}
_OBJECTS = ("objects", "annotations", "annotation", "instances", "detections", "entities")
_BOXES = ("bbox", "bboxes", "box", "boxes", "bounding_box", "bounding_boxes")
_FORMAT_IN_NAME = re.compile(r"(?:^|.*_)(xyxyn?|cxcywhn?)$|.+_(xywhn?)$")
_LABELS = (
    "label",
    "labels",
    "category",
    "categories",
    "class",
    "classes",
    "category_name",
    "class_name",
    "class_label",
)
# Beside the objects of a row, lists of the same length with something about each.
_PARALLEL = (*_LABELS, "category_id", "category_ids", "class_id", "class_ids", "ids", "scores", "areas")


class Columns:
    """How the rows of one table become rows of the package's own form.

    Args:
        features: `datasets.Features` of the table; without it, the values tell.
        box_format: of boxes of which nothing else says it, one of `BOX_FORMATS`.
        box_formats: the same by the name of column or key, as the table's metadata says.
    """

    def __init__(
        self, features: Any = None, box_format: str | None = None, box_formats: Mapping[str, str] | None = None
    ) -> None:
        self.features = features
        self.box_format = None if box_format is None else as_box_format(box_format)
        self.box_formats = dict(box_formats or {})
        self._has_classes = _any_below(features, lambda feature: hasattr(feature, "int2str"))

    def row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row of the package's own form; what it does not have to change stays.

        Args:
            row: by column; pictures decoded, as `{"bytes", "path"}`, or as stand-ins of that form.

        Raises:
            DataError: If two columns hold regions, or lists about them have different lengths.
        """
        found = dict(_named(row, self.features)) if self._has_classes else dict(row)
        if isinstance(found.get("region_index"), int):  # a record of what was described
            return found
        self._find_picture(found)
        if isinstance(found.get("regions"), list):
            found["regions"] = [self.entry(entry) for entry in found["regions"]]
            return found
        own = next((key for key in REGION_KEYS if found.get(key) is not None), None)
        if own is not None:
            return self._as_regions(found, own, _parts(found[own])) if _are_several(found[own]) else found
        sources = self._sources(found)
        sources = {column: parts for column, parts in sources.items() if parts} or dict([*sources.items()][:1])
        if len(sources) > 1:
            raise DataError(
                "row",
                f"the columns {' and '.join(map(repr, sorted(sources)))} hold regions. Leave those of one of them.",
            )
        for column, parts in sources.items():
            return self._as_regions(found, column, parts)
        return self.entry(found)

    def entry(self, entry: Any) -> Any:
        """A region, or a row that is one; where only a box of another form is in it, that becomes its mask."""
        if not isinstance(entry, dict):
            return entry
        if any(entry.get(key) is not None for key in REGION_KEYS if not _is_empty_outline(key, entry.get(key))):
            return entry
        if (box := self._box(entry)) is None:
            return entry
        return {**{key: value for key, value in entry.items() if key not in REGION_KEYS}, "mask": box}

    # --- pictures ----------------------------------------------------------------------------------------------------

    def _find_picture(self, row: dict[str, Any]) -> None:
        if any(row.get(key) is not None for key in IMAGE_COLUMNS[:3]):
            return
        pictures = [key for key, value in row.items() if is_picture(value)]
        named = [key for key in IMAGE_COLUMNS if key in pictures]
        others = [key for key in pictures if key not in (*REGION_KEYS, *_MASKS)]
        if named or len(others) == 1:
            row["image"] = row.pop((named or others)[0])

    # --- regions -----------------------------------------------------------------------------------------------------

    def _sources(self, row: dict[str, Any]) -> dict[str, list[Any]]:
        """The columns with regions, and these."""
        found: dict[str, list[Any]] = {}
        for key, value in row.items():
            if key in _MASKS and (is_picture(value) or _are_pictures(value)):
                found[key] = _parts(value)
            elif key in _OBJECTS and (isinstance(value, Mapping) or _are_objects(value)) and not is_picture(value):
                found[key] = _objects(value, key)
            elif self._is_box_key(key) and isinstance(value, list) and all(map(_is_box_of_list, value)):
                found[key] = [{key: each} for each in value]
        return found

    def _as_regions(self, row: dict[str, Any], column: str, parts: list[Any]) -> dict[str, Any]:
        rest = {key: value for key, value in row.items() if key != column}
        parallel = {key: rest.pop(key) for key in _PARALLEL if _is_list_of(rest.get(key), len(parts))}
        regions = []
        for number, part in enumerate(parts):
            entry = dict(part) if isinstance(part, Mapping) and not is_picture(part) else {"mask": part}
            entry |= {key: values[number] for key, values in parallel.items() if key not in entry}
            named = next((key for key in _LABELS if isinstance(entry.get(key), str) and entry[key]), None)
            entry = self.entry(entry if named is None else {**entry, "label": entry.pop(named)})
            regions.append(entry if _may_be_region(entry) else {**entry, "mask": _no_region(column, number, entry)})
        return {**rest, "regions": regions}

    # --- boxes -------------------------------------------------------------------------------------------------------

    def _is_box_key(self, key: str) -> bool:
        return key in _BOXES or key in self.box_formats or _FORMAT_IN_NAME.match(key) is not None

    def _box(self, entry: Mapping[str, Any]) -> Any:
        """The region reference of an entry with a box; `None` where there is none, or its format is not known."""
        for key, value in entry.items():
            if not isinstance(key, str) or not self._is_box_key(key):
                continue
            if (named := named_box(value)) is not None:
                return named
            if _is_box(value):
                found = _FORMAT_IN_NAME.match(key)
                box_format = (found[1] or found[2]) if found else self.box_formats.get(key, self.box_format)
                box_format = box_format or _by_area(value, entry.get("area"))
                # Of one that nobody names, whoever reads the region tells both readings.
                return None if box_format is None else box_region(value, box_format, key)
        return named_box(entry)


def is_picture(value: Any) -> bool:
    """A picture, or what `datasets` has of one before it is decoded."""
    return isinstance(value, Image.Image) or (isinstance(value, Mapping) and value.keys() == {"bytes", "path"})


def without_none_below(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose objects are without what Arrow filled in for keys that they do not have; columns keep their None."""
    return {key: _without_none(value) for key, value in row.items()}


def _without_none(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_none(entry) for entry in value]
    if not isinstance(value, dict) or is_picture(value):
        return value
    return {key: _without_none(entry) for key, entry in value.items() if entry is not None}


def _is_box(value: Any) -> bool:
    return four_numbers(value) is not None


def _are_pictures(value: Any) -> bool:
    """A list of pictures, some of which may be missing."""
    return (
        isinstance(value, list)
        and any(map(is_picture, value))
        and all(each is None or is_picture(each) for each in value)
    )


def _is_box_of_list(value: Any) -> bool:
    return isinstance(value, (list, Mapping))


def _may_be_region(entry: Mapping[str, Any]) -> bool:
    """Whether something in it is a region, or looks so much like one that its reader says what is wrong with it."""
    try:
        return read_region(entry)[0] is not None
    except MaskError:
        return True


def _no_region(column: str, number: int, entry: Mapping[str, Any]) -> DataError:
    names = ", ".join(ascii(str(key)[:32]) for key in list(entry)[:8])
    return DataError(f"{column}[{number}]", f"there is no region in it, only {names or 'nothing'}.")


def _are_several(value: Any) -> bool:
    """A list of masks, rather than one outline or box."""
    if not isinstance(value, list) or not value:
        return False
    return _are_pictures(value) or all(isinstance(each, (Mapping, str)) for each in value)


def _parts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, Mapping) and not is_picture(each) for each in value)


def _is_list_of(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length


def _objects(value: Any, column: str) -> list[Any]:
    """A list of objects; of an object of lists, as Arrow has it, its rows.

    Raises:
        DataError: If its lists have different lengths.
    """
    if isinstance(value, list):
        return [{key: own for key, own in each.items() if own is not None} for each in value]
    if any(_is_box(value.get(key)) for key in _BOXES):
        return [value]  # one object
    lengths = {key: len(each) for key, each in value.items() if isinstance(each, list)}
    if len(set(lengths.values())) > 1:
        raise DataError(column, f"its lists have {', '.join(f'{number} {key}' for key, number in lengths.items())}.")
    number = max(lengths.values(), default=0)
    return [{key: value[key][n] for key in lengths if value[key][n] is not None} for n in range(number)]


def _is_empty_outline(key: str, value: Any) -> bool:
    """COCO's form of an object that has a box only."""
    return key == "segmentation" and isinstance(value, list) and not value


def _by_area(box: Any, area: Any) -> str | None:
    """The format of a box that its object's area tells: the box has that area in one reading and not in the other."""
    if not isinstance(area, (int, float)) or isinstance(area, bool) or not area > 0:
        return None
    x, y, c, d = four_numbers(box) or (0, 0, 0, 0)
    fits = {"xywh": c * d, "xyxy": (c - x) * (d - y) if c > x and d > y else 0}
    found = [name for name, own in fits.items() if abs(own - area) <= 1e-3 * area]
    return found[0] if len(found) == 1 else None


# --- what the types of columns say -----------------------------------------------------------------------------------


def _inner(feature: Any) -> Any:
    """The type of a list's elements."""
    return feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)


def _any_below(feature: Any, is_it: Any) -> bool:
    if feature is None:
        return False
    if isinstance(feature, Mapping):
        return any(_any_below(each, is_it) for each in feature.values())
    return bool(is_it(feature)) or _any_below(_inner(feature), is_it)


def declared_formats(fields: Any) -> Iterator[tuple[str, str]]:
    """(name of column or key, box format) of those fields of an Arrow schema whose metadata name one."""
    for field in fields:
        for key, value in (field.metadata or {}).items():
            known = as_box_format(value.decode("utf-8", "replace"), strict=False)
            if key in (b"box_format", b"bbox_format", b"format") and known is not None:
                yield field.name, known
        below = field.type
        while hasattr(below, "value_type"):
            below = below.value_type
        if hasattr(below, "fields"):
            yield from declared_formats(below.fields)


def _named(value: Any, feature: Any) -> Any:
    """A value with the names of classes in the place of their numbers."""
    if hasattr(feature, "int2str"):
        is_class = type(value) is int and 0 <= value < (feature.num_classes or 0)
        return feature.int2str(value) if is_class else value
    if isinstance(value, Mapping):
        return {
            key: _named(own, feature.get(key) if isinstance(feature, Mapping) else None) for key, own in value.items()
        }
    inner = _inner(feature)
    return [_named(each, inner) for each in value] if inner is not None and isinstance(value, list) else value


def picture_columns(features: Mapping[str, Any], is_image: Any) -> tuple[list[str], list[str]]:
    """The columns of pictures and of lists of pictures; `is_image` tells the type of a picture."""
    single = [name for name, feature in features.items() if is_image(feature)]
    lists = [name for name, feature in features.items() if _inner(feature) is not None and is_image(_inner(feature))]
    return single, lists


__all__ = [
    "IMAGE_COLUMNS",
    "PICTURE_COLUMNS",
    "STAND_IN",
    "Columns",
    "declared_formats",
    "is_picture",
    "picture_columns",
    "without_none_below",
]
