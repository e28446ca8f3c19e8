"""Regions as other libraries hold them -> references for `as_mask`. Told by their form; no library is imported."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..mask_codecs_finecaption import is_tensor
from ..masks_finecaption import REGION_KEYS, MaskError, is_region_reference, read_region
from .boxes import box_region, four_numbers, named_box
from .errors import DataError

TAKEN = (
    "Taken are region references of as_mask; supervision.Detections; Results of Ultralytics; what transformers' "
    "segmentation and detection pipelines and post_process_.. functions give; boxes, labels and masks of torchvision; "
    "SAM's list of dicts; annotations of COCO; shapely geometries, whatever has .geometry, and GeoJSON; arrays of "
    "boxes (N, 4) and of masks (N, H, W)"
)
# Beside these, a bbox is COCO's: x, y, width, height.
_OF_COCO = {"category_id", "image_id", "iscrowd", "predicted_iou", "stability_score"}


class _Segment:
    """One label of a map (H, W), which becomes a mask only when that is asked for."""

    def __init__(self, labels: Any, value: int) -> None:
        self.labels, self.value = labels, value
        self.shape = tuple(labels.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(_plain(self.labels) == self.value)


class _Letterboxed:
    """A mask (h, w) at a model's size, with a border where the picture has another shape; made when asked for.

    The picture, (H, W), lies in its middle; an odd pixel of the border is below or right. Bilinear, inside above 0.5.
    """

    def __init__(self, mask: Any, shape: tuple[int, int]) -> None:
        self.mask, self.shape = mask, shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        import torch
        from torch.nn import functional

        given = self.mask.shape
        gain = min(size / wanted for size, wanted in zip(given, self.shape))
        inside = [max(round(size * gain), 1) for size in self.shape]
        top, left = ((size - part) // 2 for size, part in zip(given, inside))
        content = torch.as_tensor(self.mask)[top : top + inside[0], left : left + inside[1]]
        scaled = functional.interpolate(content[None, None].float(), self.shape, mode="bilinear")
        return (scaled[0, 0] > 0.5).cpu().numpy()


def as_regions(objects: Any, *, box_format: str = "xyxy") -> list[Any]:
    """Turn the regions of one picture, as another library holds them, into references for `as_mask`.

    Args:
        objects: one of

            - `supervision.Detections`: its masks, else its turned boxes (`data["xyxyxyxy"]`), else its boxes.
            - Ultralytics `Results`, or a list with one: the masks, brought from the model's size to the picture's as
              its `ops.scale_masks` does; without masks turned boxes or boxes.
            - transformers' segmentation pipelines, `[{"mask", "label", "score"}]` and `{"masks", "scores"}`, and
              detection pipelines, `[{"box": {"xmin", "ymin", "xmax", "ymax"}, "label", "score"}]`.
            - `post_process_instance_segmentation` and `post_process_panoptic_segmentation`: `{"segmentation",
              "segments_info"}`, one region for each of `segments_info`.
            - `post_process_object_detection` and torchvision's detectors: `{"boxes", "labels", "scores"}`, perhaps with
              `"masks"`, (N, H, W) or (N, 1, H, W), of which what is above 0.5 is inside.
            - SAM's list of dicts, and annotations of COCO: `segmentation`, or where that is empty `bbox` as x, y,
              width, height.
            - shapely's Polygon and MultiPolygon (holes are kept), a list of them, whatever has them under `.geometry`
              (a GeoDataFrame), and GeoJSON.
            - arrays or tensors: boxes of shape (N, 4), masks of shape (N, H, W), (N, 1, H, W) or (H, W).
            - a region reference of `as_mask`, or a list of any of these that are one region.
        box_format: of boxes as bare numbers, one of `BOX_FORMATS`.

    Returns:
        One reference per region, in their order.

    Raises:
        DataError: If it is none of these.
    """
    if _is_boxes(objects):
        return [box_region(box, box_format, f"boxes[{n}]") for n, box in enumerate(_plain(objects).tolist())]
    if isinstance(objects, Mapping):
        return _of_mapping(objects, box_format)
    if isinstance(geometries := getattr(objects, "geometry", None), Iterable):
        return [_one(each, box_format, f"geometry[{number}]") for number, each in enumerate(geometries)]
    if is_region_reference(objects):
        return [objects]
    if isinstance(objects, (list, tuple)):
        return _of_list(objects, box_format)
    if _has(objects, "xyxy", "mask"):
        oriented = getattr(objects, "data", {}).get("xyxyxyxy") if objects.mask is None else None
        masks = _polygons(oriented) if objects.mask is None else list(objects.mask)
        return _boxes(objects.xyxy) if masks is None else masks
    if _has(objects, "orig_shape", "boxes"):
        return _of_results(objects)
    if isinstance(getattr(objects, "geom_type", None), str) and _has(objects, "__geo_interface__"):
        return [_geometry(objects.__geo_interface__)]
    if getattr(objects, "ndim", 0) in (3, 4):
        return _masks(objects)
    raise _unknown(objects)


def is_foreign(objects: Any) -> bool:
    """Whether `as_regions` has to turn these into references: the pipeline would not take them as they are."""
    return any(map(_is_foreign, objects if isinstance(objects, (list, tuple)) else [objects]))


def _is_foreign(value: Any) -> bool:
    if isinstance(value, Mapping):
        if any(value.get(key) is not None for key in REGION_KEYS):
            return "segments_info" in value or _is_empty(value.get("segmentation"))
        is_coco_box = "bbox" in value and bool(_OF_COCO & value.keys())
        forms = ("features", "geometry", "geometries", "masks", "boxes")
        return is_coco_box or named_box(value.get("box")) is not None or any(key in value for key in forms)
    if isinstance(value, (list, tuple, str, int, float)):
        return False
    if _is_boxes(value) or hasattr(value, "geometry"):  # a table of geometries has __array__, too
        return True
    return not (is_region_reference(value) or getattr(value, "ndim", 0) == 3)


def _of_list(objects: Any, box_format: str) -> list[Any]:
    if len(objects) == 1 and _has(objects[0], "orig_shape", "boxes"):  # what an Ultralytics model gives for one picture
        return _of_results(objects[0])
    if four_numbers(objects) is not None:
        return [box_region(objects, box_format, "the box")]
    return [_one(each, box_format, f"[{number}]") for number, each in enumerate(objects)]


def _one(entry: Any, box_format: str, where: str) -> Any:
    """The reference of what has to be one region."""
    if four_numbers(entry) is not None:
        return box_region(entry, box_format, where)
    if isinstance(entry, (list, tuple)):
        raise _unknown(entry, where)
    found = [entry] if entry is None else as_regions(entry, box_format=box_format)
    if len(found) != 1:
        raise DataError(
            where, f"it holds {len(found)} regions, where one is needed. Give those of one picture at a time."
        )
    return found[0]


def _of_mapping(objects: Mapping[Any, Any], box_format: str) -> list[Any]:
    if "segments_info" in objects:
        labels = objects["segmentation"]
        if getattr(labels, "ndim", 2) == 3:  # return_binary_maps=True
            return _masks(labels)
        return [_Segment(labels, segment["id"]) for segment in objects["segments_info"]]
    kind = objects.get("type")
    if kind == "FeatureCollection" and isinstance(objects.get("features"), (list, tuple)):
        return [_geometry(each.get("geometry")) for each in objects["features"]]
    if kind in ("Feature", "GeometryCollection"):
        return [_geometry(objects.get("geometry", objects))]
    if objects.get("masks") is not None:
        return _masks(objects["masks"])
    if "boxes" in objects:
        return _boxes(objects["boxes"])
    given = [key for key in REGION_KEYS if objects.get(key) is not None]
    if given and not (given[0] == "segmentation" and _is_empty(objects["segmentation"])):
        return [dict(objects)]
    if (box := named_box(objects.get("box"))) is not None:
        return [box]
    if four_numbers(objects.get("bbox")) is not None:
        if _OF_COCO & objects.keys():
            return [box_region(objects["bbox"], "xywh", "bbox")]
        try:
            read_region({"bbox": list(objects["bbox"])})
        except MaskError as error:  # it tells both readings
            raise DataError("regions", str(error)) from error
    raise _unknown(objects)


def _of_results(results: Any) -> list[Any]:
    """Of one picture, by Ultralytics."""
    masks, turned = results.masks, getattr(results, "obb", None)
    if masks is not None:
        shape = (int(results.orig_shape[0]), int(results.orig_shape[1]))
        return [mask if tuple(mask.shape) == shape else _Letterboxed(mask, shape) for mask in masks.data]
    if turned is not None:
        return _polygons(turned.xyxyxyxy) or []
    if results.boxes is None:
        raise DataError("regions", f"these Results hold neither masks nor boxes. {TAKEN}.")
    return _boxes(results.boxes.xyxy)


def _polygons(corners: Any) -> list[Any] | None:
    return None if corners is None else [{"polygon": outline} for outline in _plain(corners)]


def _boxes(values: Any) -> list[Any]:
    return [{"box_xyxy": box} for box in _plain(values).tolist()]


def _masks(values: Any) -> list[Any]:
    """(N, H, W) or (N, 1, H, W), or a list of (H, W); shares are inside above one half."""
    if isinstance(values, (list, tuple)):
        return list(values)
    if values.ndim == 4 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 3:
        raise DataError("masks", f"their shape is {tuple(values.shape)}, needed is (N, H, W) or (N, 1, H, W).")
    if "float" in str(values.dtype):
        values = values > 0.5
    return list(values)


def _geometry(value: Any) -> Any:
    """A GeoJSON geometry without heights; parts of a collection that have no area are left out."""
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "GeometryCollection":
        parts = [each for each in value["geometries"] if each.get("type") in ("Polygon", "MultiPolygon")]
        polygons = [one for each in map(_geometry, parts) for one in each["coordinates"]]
    elif kind in ("Polygon", "MultiPolygon"):
        polygons = [value["coordinates"]] if kind == "Polygon" else value["coordinates"]
    else:
        raise DataError("regions", f"a geometry of the type {str(kind)[:32]!r} has no area. Needed are polygons.")
    rings = [[[list(point[:2]) for point in ring] for ring in polygon] for polygon in polygons]
    return {"type": "MultiPolygon", "coordinates": rings}


def _is_boxes(objects: Any) -> bool:
    """Whether this is an array (N, 4) rather than a mask that is 4 pixels wide."""
    shape = getattr(objects, "shape", None)
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[1] != 4 or not hasattr(objects, "dtype"):
        return False
    return "bool" not in str(objects.dtype) and not set(np.unique(_plain(objects)).tolist()) <= {0, 1, 255}


def _is_empty(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and not value


def _plain(values: Any) -> np.ndarray:
    """A tensor of any device, an array, or what becomes one."""
    if is_tensor(values):
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
    return np.asarray(values)


def _has(value: Any, *names: str) -> bool:
    return all(hasattr(value, name) for name in names)


def _unknown(value: Any, where: str = "regions") -> DataError:
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    shown = kind
    if isinstance(value, Mapping):
        shown += f" with the keys {', '.join(ascii(str(key)[:32]) for key in list(value)[:8])}"
    elif isinstance(shape := getattr(value, "shape", None), tuple):
        shown += f" of shape {tuple(shape)}"
    elif isinstance(value, (list, tuple)):
        shown += f" of {len(value)} entries"
    return DataError(where, f"{shown} arrived. {TAKEN}.")
