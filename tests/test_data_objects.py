"""Regions as other libraries hold them -> references for `as_mask`."""

import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from describers import StubDescriber
from PIL import Image

from finecaption_hf import as_mask
from finecaption_hf.asking import ask
from finecaption_hf.data import DataError, as_regions
from finecaption_hf.data.objects import is_foreign

HEIGHT, WIDTH = 40, 60
BOXES = [[4, 6, 14, 16], [20, 1, 44, 30], [0, 0, 60, 40]]
MISSING = "{} is not installed: pip install .[annotation-tools]"


def boxes() -> np.ndarray:
    masks = np.zeros((len(BOXES), HEIGHT, WIDTH), dtype=bool)
    for mask, (x0, y0, x1, y1) in zip(masks, BOXES):
        mask[y0:y1, x0:x1] = True
    return masks


def discs() -> np.ndarray:
    """(N, H, W), with a hole in the first."""
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    masks = np.stack([(xs - 20) ** 2 + (ys - 20) ** 2 < 150, (xs - 45) ** 2 + (ys - 10) ** 2 < 40])
    masks[0] &= (xs - 20) ** 2 + (ys - 20) ** 2 > 30
    return masks


def decoded(objects: Any, **options: Any) -> np.ndarray:
    return np.stack([as_mask(each, HEIGHT, WIDTH) for each in as_regions(objects, **options)])


def rle(mask: np.ndarray) -> dict[str, Any]:
    flat = mask.ravel(order="F").astype(int)
    starts = np.flatnonzero(np.diff(flat, prepend=0, append=0))
    runs = np.diff([0, *starts, flat.size])
    return {"size": list(mask.shape), "counts": runs.tolist()}


CORNERS = [{"xmin": a, "ymin": b, "xmax": c, "ymax": d} for a, b, c, d in BOXES]
XYWH = [[a, b, c - a, d - b] for a, b, c, d in BOXES]
LABELS = np.where(discs()[1], 7, np.where(discs()[0], 3, -1))
FORMS: dict[str, tuple[Any, Any]] = {
    "array of boxes": (np.array(BOXES, dtype=np.float32), boxes),
    "tensor of boxes": (torch.tensor(BOXES, dtype=torch.bfloat16), boxes),
    "list of boxes": (BOXES, boxes),
    "masks": (discs(), discs),
    "tensor of masks": (torch.from_numpy(discs()), discs),
    "masks with a channel": (torch.from_numpy(discs())[:, None], discs),
    "pictures": ([Image.fromarray(mask) for mask in discs()], discs),
    "segmentation pipeline": (
        [{"mask": Image.fromarray(mask), "label": "cup", "score": None} for mask in discs()],
        discs,
    ),
    "mask generation pipeline": ({"masks": list(discs()), "scores": torch.ones(2)}, discs),
    "detection pipeline": ([{"box": box, "label": "cup", "score": 0.9} for box in CORNERS], boxes),
    "post_process_object_detection": (
        {"boxes": torch.tensor(BOXES), "labels": torch.zeros(3), "scores": torch.ones(3)},
        boxes,
    ),
    "mask r-cnn": (
        {"boxes": torch.zeros(2, 4), "masks": torch.from_numpy(discs())[:, None] * 0.4 + 0.3, "labels": torch.ones(2)},
        discs,
    ),
    "post_process_panoptic_segmentation": (
        {
            "segmentation": torch.from_numpy(LABELS),
            "segments_info": [{"id": 3, "label_id": 1}, {"id": 7, "label_id": 1}],
        },
        discs,
    ),
    "binary maps": ({"segmentation": torch.from_numpy(discs()), "segments_info": [{"id": 0}, {"id": 1}]}, discs),
    "sam": ([{"segmentation": mask, "bbox": [0, 0, 1, 1], "predicted_iou": 1.0} for mask in discs()], discs),
    "sam, encoded": ([{"segmentation": rle(mask), "bbox": [0, 0, 1, 1], "area": 5} for mask in discs()], discs),
    "coco with empty segmentations": ([{"segmentation": [], "bbox": box, "category_id": 1} for box in XYWH], boxes),
    "coco polygons": (
        [{"segmentation": [[a, b, c, b, c, d, a, d]], "bbox": [0, 0, 1, 1], "iscrowd": 0} for a, b, c, d in BOXES],
        boxes,
    ),
    "references": ([{"box_xyxy": box} for box in BOXES], boxes),
}


@pytest.mark.parametrize("form", FORMS)
def test_regions_of_other_libraries_keep_every_pixel(form: str) -> None:
    objects, expected = FORMS[form]
    assert np.array_equal(decoded(objects), expected())


def test_boxes_may_have_another_order() -> None:
    assert np.array_equal(decoded(np.array(XYWH), box_format="xywh"), boxes())
    centres = np.array(
        [[(a + c) / 2 / WIDTH, (b + d) / 2 / HEIGHT, (c - a) / WIDTH, (d - b) / HEIGHT] for a, b, c, d in BOXES]
    )
    assert np.array_equal(decoded(centres, box_format="cxcywhn"), boxes())


def test_an_array_of_four_columns_is_a_mask_where_it_is_binary() -> None:
    mask = np.eye(40, 4, dtype=np.uint8)
    assert np.array_equal(as_mask(*as_regions(mask), 40, 4), mask.astype(bool))


def test_supervision_detections_are_regions() -> None:
    supervision = pytest.importorskip("supervision", reason=MISSING.format("supervision"))
    xyxy = np.array(BOXES, dtype=float)
    assert np.array_equal(decoded(supervision.Detections(xyxy)), boxes())
    assert np.array_equal(decoded(supervision.Detections(xyxy[:2], mask=discs())), discs())
    compact = supervision.Detections(xyxy[2:].repeat(2, axis=0), mask=discs())
    if hasattr(supervision, "CompactMask"):
        compact.mask = supervision.CompactMask.from_dense(discs(), compact.xyxy, (HEIGHT, WIDTH))
        assert np.array_equal(decoded(compact), discs())
    corners = np.array([[[a, b], [c, b], [c, d], [a, d]] for a, b, c, d in BOXES], dtype=float)
    turned = supervision.Detections(np.zeros((3, 4)), data={"xyxyxyxy": corners})
    assert np.array_equal(decoded(turned), boxes())


def results(**held: Any) -> Any:
    """What an Ultralytics model gives for a picture, as far as it is looked at."""
    return types.SimpleNamespace(**{"orig_shape": (HEIGHT, WIDTH), "boxes": None, "masks": None, "obb": None, **held})


def test_results_of_ultralytics_are_regions() -> None:
    found = results(boxes=types.SimpleNamespace(xyxy=torch.tensor(BOXES)))
    assert np.array_equal(decoded(found), boxes()) and np.array_equal(decoded([found]), boxes())
    found = results(masks=types.SimpleNamespace(data=torch.from_numpy(discs()).to(torch.uint8)))
    assert np.array_equal(decoded(found), discs())
    corners = torch.tensor([[[a, b], [c, b], [c, d], [a, d]] for a, b, c, d in BOXES])
    assert np.array_equal(decoded(results(obb=types.SimpleNamespace(xyxyxyxy=corners))), boxes())
    with pytest.raises(DataError, match="neither masks nor boxes"):
        as_regions(results())
    with pytest.raises(DataError, match="of one picture at a time"):
        as_regions([found, found])


# In a process of its own, since importing Ultralytics changes PIL.Image.open and torch.save for all.
ULTRALYTICS = """
import sys

import numpy as np
import torch
from ultralytics.engine.results import Results
from ultralytics.utils import ops

from finecaption_hf import as_mask
from finecaption_hf.data import as_regions

masks = torch.from_numpy(np.load(sys.argv[1]))[None].float()
height, width = masks.shape[2:]
boxes = torch.tensor([[0, 0, 9, 9, 0.9, 0], [0, 0, 9, 9, 0.9, 0]])
for shape in [(64, 64), (48, 64), (24, 32), (33, 65), (40, 60)]:
    data = torch.nn.functional.interpolate(masks, shape)[0].round()
    found = Results(np.zeros((height, width, 3), np.uint8), "a.jpg", {0: "disc"}, boxes=boxes, masks=data)
    expected = (ops.scale_masks(data[None], (height, width))[0] > 0.5).numpy()
    assert np.array_equal(np.stack([as_mask(each, height, width) for each in as_regions([found])]), expected), shape
"""


def test_masks_of_ultralytics_are_brought_to_the_picture_as_it_does(tmp_path: Path) -> None:
    if importlib.util.find_spec("ultralytics") is None:
        pytest.skip(MISSING.format("ultralytics"))
    np.save(tmp_path / "masks.npy", discs())
    environment = {**os.environ, "YOLO_OFFLINE": "1", "YOLO_CONFIG_DIR": str(tmp_path)}
    command = [sys.executable, "-c", ULTRALYTICS, str(tmp_path / "masks.npy")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr


def test_geometries_of_shapely_keep_their_holes() -> None:
    shapely = pytest.importorskip("shapely", reason=MISSING.format("shapely"))
    ring = shapely.Polygon(shapely.box(5, 5, 30, 30).exterior, [shapely.box(10, 10, 20, 20).exterior])
    shapes = [
        ring,
        shapely.MultiPolygon([ring, shapely.box(40, 3, 50, 9)]),
        shapely.Polygon([(1, 1, 9), (9, 1, 9), (9, 9, 9)]),
    ]
    ys, xs = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    expected = np.stack([shapely.contains_xy(shape, xs, ys) for shape in shapes[:2]])
    assert np.array_equal(decoded(shapes[:2]), expected)
    assert np.array_equal(decoded(shapes[1]), expected[1:])
    frame = types.SimpleNamespace(geometry=iter(shapes[:2]))
    assert np.array_equal(decoded(frame), expected)
    assert decoded(shapes[2]).sum() > 20
    features = {"type": "FeatureCollection", "features": [{"geometry": shapely.geometry.mapping(ring)}]}
    assert np.array_equal(decoded(features), expected[:1])
    assert np.array_equal(decoded(features["features"][0] | {"type": "Feature"}), expected[:1])
    with pytest.raises(DataError, match="'Point' has no area"):
        as_regions([shapely.Point(3, 3)])


def test_a_geodataframe_is_regions() -> None:
    geopandas = pytest.importorskip("geopandas", reason=MISSING.format("geopandas"))
    shapely = pytest.importorskip("shapely", reason=MISSING.format("shapely"))
    frame = geopandas.GeoDataFrame({"n": [1, 2, 3]}, geometry=[shapely.box(*box) for box in BOXES])
    assert is_foreign(frame)
    assert np.array_equal(decoded(frame), boxes()) and np.array_equal(decoded(frame.geometry), boxes())


@pytest.mark.parametrize(
    ("objects", "arrived"),
    [
        (object(), "regions: object arrived"),
        (7, "regions: int arrived"),
        ({"color": "red"}, "regions: dict with the keys 'color' arrived"),
        ([{"bbox": [1, 2, 3, 4]}], r"which is box_xyxy \[1, 2, 4, 6\], or corners, which is box_xyxy \[1, 2, 3, 4\]"),
        ([[1, 2, 3, 4, 5, 6]], "list of 6 entries arrived"),
        (np.zeros((2, 3, 4, 5)), "their shape is \\(2, 3, 4, 5\\), needed is"),
        (np.zeros(4), "numpy.ndarray of shape \\(4,\\) arrived"),
    ],
)
def test_what_is_no_region_is_refused_with_what_arrived_and_what_is_taken(objects: Any, arrived: str) -> None:
    with pytest.raises(DataError, match=arrived):
        as_regions(objects)


@pytest.mark.parametrize(
    "objects", [None, "blob", BOXES, [None], [[[1, 2], [3, 4], [5, 6]]], discs(), {"polygon": [1]}, []]
)
def test_references_are_not_touched(objects: Any) -> None:
    assert not is_foreign(objects)


def test_regions_of_other_libraries_are_asked_about() -> None:
    found = [{"box": box, "label": "cup", "score": 0.9} for box in CORNERS]
    image = Image.new("RGB", (WIDTH, HEIGHT))
    records = ask(StubDescriber(), image, found)
    assert [record["box_xyxy"] for record in records] == BOXES
    several = ask(StubDescriber(), [image, image], [np.array(BOXES), {"box_xyxy": BOXES[0]}])
    assert [[record["box_xyxy"] for record in of_image] for of_image in several] == [BOXES, BOXES[:1]]
    assert [record["box_xyxy"] for record in ask(StubDescriber(), {"image": image, "regions": found})] == BOXES
    with pytest.raises(ValueError, match="object arrived"):
        ask(StubDescriber(), image, object())
    (record,) = ask(StubDescriber(), image, {"bbox": [1, 2, 3, 4]})
    assert record["error"]["type"] == "MaskError"
