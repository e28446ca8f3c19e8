"""Label Studio: exports in JSON and JSON-MIN, and texts as predictions that can be imported."""

import json
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from ...mask_codecs_finecaption import BoolArray, MaskError
from ..errors import DataError
from ..examples import keys_of, kind
from ..images import ImageStore, open_images
from .base import AnnotationFile, ReadOptions, Seen
from .brushes import Brush
from .files import ElementsByNumber, new_file, one_text, own_keys, picture_name, plain_name
from .shapes import (
    Ellipse,
    OfPicture,
    Size,
    as_number,
    as_points,
    as_size,
    check_picture,
    from_base64,
    open_crop,
    pixels_of,
    turned_box,
)

_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".jfif", ".jp2", ".heic", ".avif")
_USUAL_KEYS = ("image", "img", "ocr", "captioning", "picture", "photo", "url")
_CAPTIONS = ("caption", "description", "text")
_WITHOUT_AREA = {"keypoint", "vector", "relation"}
_OF_RESULT = {
    *("id", "type", "value", "from_name", "to_name", "original_width", "original_height", "image_rotation"),
    *("item_index", "origin", "readonly", "hidden"),
}
# What a text about a region repeats of its shape, as Label Studio itself writes it.
_OF_PICTURE = ("original_width", "original_height", "image_rotation", "item_index")
_OF_PLACE = ("x", "y", "width", "height", "rotation", "radiusX", "radiusY", "points", "closed")
_MODEL = "finecaption-hf"


class LabelStudio(AnnotationFile):
    """A list of tasks, or one task, as "JSON" or "JSON-MIN".

    Regions are those of annotations that were not cancelled; of a task without annotations, those of its predictions.
    Coordinates are percent of the picture as it lies in its file: `image_rotation` says only how it was shown. Captions
    come from the text area that belongs to the region. A picture is looked for by its path and by its last part, with
    and without the eight characters that uploads begin with.

    Texts go back as a prediction of each annotation: the regions, and to each a text area called `caption` with the
    same id; the answers to several questions are its lines. The file can be imported; the labelling configuration needs
    the tag that is named in `notes`.
    """

    format = "labelstudio"
    title = "Label Studio"

    def __init__(self, path: Path, options: ReadOptions) -> None:
        super().__init__(path, options)
        self._tasks = ElementsByNumber(path, self.name)
        # Of each row its task, and which of the task's pictures it is.
        self._places: tuple[array[int], array[int]] = (array("q"), array("q"))

    @classmethod
    def recognises(cls, seen: Seen) -> bool:
        task = seen.first or (seen.json if isinstance(seen.json, dict) else {})
        lists = ("annotations", "completions", "predictions")
        is_task = isinstance(task.get("data"), dict) and any(isinstance(task.get(key), list) for key in lists)
        return is_task or _is_min(task)

    def scan(self) -> Iterator[tuple[str, Any]]:
        self._places = (array("q"), array("q"))
        left_out: Counter[str] = Counter()
        objects: dict[str, None] = {}
        for number, value in enumerate(self._tasks.scan()):
            task = self._task(value, number)
            left_out.update(task.left_out)
            objects.update(dict.fromkeys(task.objects))
            for part, row in enumerate(task.rows):
                self._places[0].append(number)
                self._places[1].append(part)
                yield task.where, row
        self.notes = [f"{number} {what}: left out." for what, number in left_out.items()]
        if objects:
            tag = f'<TextArea name="caption" toName="{",".join(objects)}" perRegion="true" editable="true"/>'
            self.notes.append(f"Texts can be put back into a project whose labelling configuration has {tag}.")

    def read(self, index: int) -> tuple[str, Any]:
        number, part = (places[index] for places in self._places)
        task = self._task(self._tasks.read(number), number)
        return task.where, task.rows[part]

    @cached_property
    def _images(self) -> ImageStore:
        return open_images(self.where_images_lie() if self.options.images is None else self.options.images)

    def _task(self, value: Any, number: int) -> "_Task":
        where = f"{self.name}[{number}]"
        try:
            if isinstance(value, DataError):
                raise value
            if not isinstance(value, dict):
                raise DataError(where, f"{kind(value)} arrived, a task is needed.")
            return (_min_task if _is_min(value) else _full_task)(value, where, self._images)
        except DataError as error:
            return _Task(where, [error if error.where == where else error.at(where)])

    def write_back(self, answers: Iterator[Mapping[str, str] | None], target: Path) -> None:
        with new_file(self.path, target) as file:
            self._tasks.replaced(self._answered(answers), file)

    def _answered(self, answers: Iterator[Mapping[str, str] | None]) -> Iterator[bytes | None]:
        """Each task with its predictions, `None` where it has none."""
        for number in range(len(self._tasks)):
            value = self._tasks.read(number)
            if isinstance(value, dict) and _is_min(value):
                raise DataError(self.name, "JSON-MIN cannot be imported by Label Studio. Export JSON instead.")
            task = self._task(value, number)
            results: dict[int, list[Any]] = {}
            for row in task.rows:
                if isinstance(row, DataError):
                    next(answers, None)
                    continue
                for holder, region in task.regions.get(row["image"], []):
                    if found := next(answers, None):
                        results.setdefault(holder, []).extend(region.with_text(one_text(found)))
            if not results:
                yield None
                continue
            made = [{"model_version": _MODEL, "result": result} for result in results.values()]
            predictions = value.get("predictions")
            kept = predictions if isinstance(predictions, list) else []
            yield json.dumps({**value, "predictions": [*kept, *made]}).encode()


def _is_min(task: Any) -> bool:
    return isinstance(task, dict) and "annotation_id" in task and "annotator" in task and "data" not in task


@dataclass
class _Region:
    """What is said of one region under one id.

    Attributes:
        id: as in the file.
        results: those that the region is made of, shape and labels.
        texts: of each text area or other control, what it says of the region.
    """

    id: Any
    results: list[dict[str, Any]] = field(default_factory=list)
    texts: dict[str, Any] = field(default_factory=dict)

    def as_row(self, **more: Any) -> dict[str, Any]:
        shape = next(result for result in self.results if _shape_of(result))
        row = own_keys({**more, **self.texts, **shape, "id": self.id}, _OF_RESULT - {"id"})
        labels = list(dict.fromkeys(label for result in self.results for label in _labels(result)))
        if labels:
            row |= {"label": labels[0]} if len(labels) == 1 else {"label": labels[0], "labels": labels}
        caption = next(
            (self.texts[name] for name in (*_CAPTIONS, *self.texts) if isinstance(self.texts.get(name), str)), None
        )
        if caption is not None:
            row["caption"] = caption
        return {**row, "mask": _reference(shape)}

    def with_text(self, text: str) -> list[dict[str, Any]]:
        """The results of a prediction that has the region and a text about it."""
        shape = next(result for result in self.results if _shape_of(result))
        value = _value(shape)
        said = {"id": self.id, "type": "textarea", "from_name": "caption", "to_name": shape.get("to_name")}
        said |= {key: shape[key] for key in _OF_PICTURE if key in shape}
        said["value"] = {**{key: value[key] for key in _OF_PLACE if key in value}, "text": [text]}
        return [*({**result, "id": self.id} for result in self.results), said]


@dataclass
class _Task:
    """A task, taken apart.

    Attributes:
        where: its place.
        rows: what it gives, by picture.
        regions: of each picture, by name, its regions with the number of the annotation that they are in.
        left_out: what was left out, in words.
        objects: names of the tags that show pictures.
    """

    where: str
    rows: list[Any]
    regions: dict[str, list[tuple[int, _Region]]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    objects: list[str] = field(default_factory=list)


def _full_task(task: dict[str, Any], where: str, images: ImageStore) -> _Task:
    data = task.get("data")
    if not isinstance(data, dict):
        raise DataError(where, f"data: {kind(data)} arrived, an object with the address of a picture is needed.")
    left_out: Counter[str] = Counter()
    annotations = _list(task, "annotations") or _list(task, "completions")
    kept = [each for each in annotations if not (each.get("was_cancelled") or each.get("skipped"))]
    left_out["annotations that were cancelled"] += len(annotations) - len(kept)
    predictions = _list(task, "predictions")
    holders: list[dict[str, Any]] = [{}]
    if annotations:
        parts = [_regions(_list(each, "result"), left_out) for each in kept]
        predicted = _regions([each for part in predictions for each in _list(part, "result")], Counter()).regions
        said = {region.id: region.texts for region in predicted}
        for part in parts:
            for region in part.regions:
                region.texts = {**said.get(region.id, {}), **region.texts}
        known = {region.id for part in parts for region in part.regions}
        others = [
            each
            for each in predictions
            if any(region.id not in known for region in _regions(_list(each, "result"), Counter()).regions)
        ]
        left_out["predictions beside annotations"] += len(others)
        holders = [{"annotation_id": each.get("id")} for each in kept]
    else:
        parts = [_regions([each for part in predictions for each in _list(part, "result")], left_out)]
    pictures = _Pictures(data, where, images)
    regions: dict[str, list[tuple[int, _Region]]] = {}
    rows: dict[str, list[Any]] = {}
    of_task: dict[str, Any] = {}
    for number, part in enumerate(parts):
        of_task |= part.texts
        for region in part.regions:
            shape = region.results[0]
            name = pictures.name_of(shape)
            regions.setdefault(name, []).append((number, region))
            rows.setdefault(name, []).append(region.as_row(**holders[number]))
    if not rows:
        rows[pictures.name_of({})] = []
    carried = own_keys({**of_task, **pictures.others, "id": task.get("id")}, {"image", "regions", "picture"})
    found = [{**carried, "image": name, **pictures.embedded(name), "regions": each} for name, each in rows.items()]
    objects = [
        str(result["to_name"])
        for part in parts
        for region in part.regions
        for result in region.results
        if "to_name" in result
    ]
    return _Task(where, found, regions, +left_out, list(dict.fromkeys(objects)))


def _min_task(task: dict[str, Any], where: str, images: ImageStore) -> _Task:
    """Values of one control are a list without ids: those of one place are one region."""
    regions: dict[str, _Region] = {}
    left_out: Counter[str] = Counter()
    for name, values in task.items():
        for value in values if isinstance(values, list) else []:
            if not isinstance(value, dict):
                continue
            size = {key: value[key] for key in ("original_width", "original_height") if key in value}
            result = {"value": value, "from_name": name, **size}
            shape = _shape_of(result)
            if shape in _WITHOUT_AREA:
                left_out[f"results of type {shape}, which has no area"] += 1
            elif shape:
                place = json.dumps([value[key] for key in sorted(value) if not key.endswith("labels")])
                regions.setdefault(place, _Region(None)).results.append(result)
    pictures = _Pictures({key: value for key, value in task.items() if isinstance(value, str)}, where, images)
    name = pictures.name_of({})
    carried = own_keys({**pictures.others, "id": task.get("id")}, {"image", "regions", "picture"})
    row = {**carried, "image": name, **pictures.embedded(name), "regions": [each.as_row() for each in regions.values()]}
    return _Task(where, [row], left_out=+left_out)


@dataclass
class _Results:
    """The results of an annotation: its regions, and what is said of the whole task."""

    regions: list[_Region]
    texts: dict[str, Any]


def _regions(results: list[dict[str, Any]], left_out: Counter[str]) -> _Results:
    found: dict[Any, _Region] = {}
    texts: dict[str, Any] = {}
    for number, result in enumerate(results):
        given = result.get("id")
        key = given if isinstance(given, str | int) else ("result", number)
        shape = _shape_of(result)
        if shape in _WITHOUT_AREA:
            left_out[f"results of type {shape}, which has no area"] += 1
        elif shape or _type(result) == "labels":
            region = found.setdefault(key, _Region(given if key == given else f"region-{number}"))
            # A prediction repeats the region of its annotation.
            if all(_type(each) != _type(result) for each in region.results):
                region.results.append(result)
    lost = [region for region in found.values() if not any(map(_shape_of, region.results))]
    left_out["labels without a shape"] += len(lost)
    for result in results:
        if _shape_of(result) or _type(result) == "labels":
            continue
        said = _said(result)
        if said is None:
            left_out[f"results of type {_type(result)[:32]!a}"] += 1
            continue
        given = result.get("id")
        of_region = found.get(given) if isinstance(given, str | int) else None
        (of_region.texts if of_region else texts)[str(result.get("from_name"))] = said
    return _Results([region for region in found.values() if region not in lost], texts)


def _said(result: dict[str, Any]) -> Any:
    """What a text area, a choice or another control says, `None` if that is not known."""
    is_text = _type(result) == "textarea"
    said = _value(result).get("text" if is_text else _type(result))
    if is_text and isinstance(said, list):
        return "\n".join(each for each in said if isinstance(each, str))
    return said


# --- results ---------------------------------------------------------------------------------------------------------


def _list(holder: Any, key: str) -> list[dict[str, Any]]:
    values = holder.get(key) if isinstance(holder, dict) else None
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _type(result: dict[str, Any]) -> str:
    given = result.get("type")
    return given.lower() if isinstance(given, str) else ""


def _value(result: dict[str, Any]) -> dict[str, Any]:
    value = result.get("value")
    return value if isinstance(value, dict) else {}


def _shape_of(result: dict[str, Any]) -> str | None:
    """Which shape a result has, by its type; where it has none (JSON-MIN), or it is of labels, by its value."""
    named = _type(result)
    value = _value(result)
    if named == "labels" or (not named and value.get("text") is not None):
        return None
    if named:
        shape = named.removesuffix("labels")
        return shape if shape in _REFERENCES or shape in _WITHOUT_AREA else None
    if "rle" in value:
        return "brush"
    if "imageDataURL" in value:
        return "bitmask"
    if "points" in value:
        return "polygon"
    if "vertices" in value:
        return "vector"
    if "radiusX" in value:
        return "ellipse"
    if {"x", "y", "width"} <= value.keys():
        return "rectangle" if "height" in value else "keypoint"
    return None


def _labels(result: dict[str, Any]) -> list[str]:
    value = _value(result)
    found = (value[key] for key in value if key.endswith("labels"))
    return [label for each in found if isinstance(each, list) for label in each if isinstance(label, str)]


def _reference(result: dict[str, Any]) -> Any:
    size = as_size(result.get("original_height"), result.get("original_width"))
    return LabelStudioRegion(str(_shape_of(result)), _value(result), size)


@dataclass(frozen=True)
class LabelStudioRegion:
    """A region in percent of its picture.

    Attributes:
        shape: rectangle, polygon, ellipse, brush or bitmask.
        value: as the file has it.
        size (`tuple[int, int]`, *optional*): (H, W) of the picture in the file.
    """

    shape: str
    value: dict[str, Any]
    size: Size | None

    def __region_mask__(self, height: int, width: int) -> BoolArray:
        check_picture(self.size, height, width)
        reference = _REFERENCES[self.shape](self.value, height, width)
        return OfPicture(reference, (height, width)).__region_mask__(height, width)


def _rectangle(value: dict[str, Any], height: int, width: int) -> Any:
    x, y, right, down, degrees = _numbers(value, "x", "y", "width", "height", "rotation")
    x, y = x * width / 100, y * height / 100
    return turned_box(x, y, right * width / 100, down * height / 100, degrees, (x, y))


def _polygon(value: dict[str, Any], height: int, width: int) -> Any:
    return {"polygon": as_points(value.get("points"), "a polygon") * (width / 100, height / 100)}


def _ellipse(value: dict[str, Any], height: int, width: int) -> Any:
    x, y, radius_x, radius_y, degrees = _numbers(value, "x", "y", "radiusX", "radiusY", "rotation")
    middle, radii = (x * width / 100, y * height / 100), (radius_x * width / 100, radius_y * height / 100)
    return Ellipse(middle, radii, degrees)


def _brush(value: dict[str, Any], height: int, width: int) -> Any:
    return Brush(value.get("rle"))


def _bitmask(value: dict[str, Any], height: int, width: int) -> Any:
    """A PNG of the picture's size, whose opaque pixels are the region."""
    address = value.get("imageDataURL")
    data = from_base64(address.partition(",")[2] if isinstance(address, str) else address, "The bitmask")
    mask = open_crop(data, height, width, "The bitmask")
    if (mask.height, mask.width) != (height, width):
        check_picture((mask.height, mask.width), height, width)
    pixels_of(mask, "The bitmask")
    return pixels_of(mask.convert("RGBA").getchannel("A"), "The bitmask") > 0


_REFERENCES = {
    "rectangle": _rectangle,
    "polygon": _polygon,
    "ellipse": _ellipse,
    "brush": _brush,
    "bitmask": _bitmask,
}


def _numbers(value: dict[str, Any], *keys: str) -> list[float]:
    return [as_number(value.get(key, 0 if key == "rotation" else None), f"{key!r} of the region") for key in keys]


# --- pictures --------------------------------------------------------------------------------------------------------


class _Pictures:
    """The pictures that the data of a task names.

    Attributes:
        others: what else is in the data.
    """

    def __init__(self, data: dict[str, Any], where: str, images: ImageStore) -> None:
        self._where, self._images, self._data = where, images, data
        self._names: dict[tuple[str, int | None], str] = {}
        key = _picture_key(data)
        if key is None:
            raise DataError(where, f"data: no value is the address of a picture; there are {keys_of(data)}.")
        self._key = key
        self.others = {key: value for key, value in data.items() if not _is_picture(value) and key != self._key}

    def name_of(self, result: dict[str, Any]) -> str:
        """The name of the picture that a result is about."""
        own, number = result.get("to_name"), result.get("item_index")
        key = str(own), number if isinstance(number, int) else None
        if key not in self._names:  # looking for files is what most of the time goes into
            self._names[key] = self._name_of(*key)
        return self._names[key]

    def _name_of(self, own: str, number: int | None) -> str:
        value = self._data[own] if _is_picture(self._data.get(own)) else self._data[self._key]
        if isinstance(value, list):
            value = value[number] if number is not None and 0 <= number < len(value) else value[0]
        if value.startswith("data:"):
            return self._where
        return picture_name(self._images, _candidates(value))[0]

    def embedded(self, name: str) -> dict[str, Any]:
        """The picture itself, where the data has it instead of an address."""
        address = self._data[self._key]
        if name != self._where or not isinstance(address, str):
            return {}
        try:
            return {"picture": {"bytes": from_base64(address.partition(",")[2], "The picture"), "path": None}}
        except MaskError as error:
            return {"picture": DataError(self._where, str(error))}


def _picture_key(data: dict[str, Any]) -> str | None:
    """Which value is the picture: one under a usual name, one that ends as pictures do, or any address."""
    usual = [key for key in _USUAL_KEYS if _is_address(data.get(key))]
    ending = [key for key, value in data.items() if _is_picture(value)]
    return next(iter([*usual, *ending, *(key for key, value in data.items() if _is_address(value))]), None)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value and all(isinstance(each, str) for each in value) else value


def _is_picture(value: Any) -> bool:
    value = _first(value)
    return isinstance(value, str) and (
        value.startswith("data:image/") or any(name.lower().endswith(_PICTURES) for name in _candidates(value)[:1])
    )


def _is_address(value: Any) -> bool:
    value = _first(value)
    return _is_picture(value) or (isinstance(value, str) and value.startswith(("/", "http:", "https:", "s3:", "gs:")))


def _candidates(address: str) -> list[str]:
    """Names that a picture may have beside the export, by its address in Label Studio."""
    try:
        parts = urlsplit(address[:4096])
    except ValueError:  # such as brackets that look like an IPv6 address
        return [plain_name(address)]
    path = next(iter(parse_qs(parts.query).get("d", [])), parts.path)
    names = list(dict.fromkeys(map(plain_name, (path, unquote(path)))))
    for name in tuple(names):
        folder, _, last = name.rpartition("/")
        if "upload" in folder and last[8:9] == "-":
            names.append(last[9:])
    return names
