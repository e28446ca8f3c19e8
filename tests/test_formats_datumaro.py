"""Datumaro's JSON, written and read by its own library where it is there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotation_files import HEIGHT, WIDTH, captions_of, masks_of, messages, photo, rows_of
from numpy.typing import NDArray

from finecaption_hf import as_mask
from finecaption_hf.data import open_regions
from finecaption_hf.data.encoding import encode_rle

MISSING = "datumaro is not installed: pip install .[annotation-tools]"
CATEGORIES = {"label": {"labels": [{"name": "cat", "parent": ""}, {"name": "dog", "parent": ""}]}}


def annotation(kind: str, group: int = 0, label: int | None = 1, **more: Any) -> dict[str, Any]:
    return {"id": 0, "type": kind, "attributes": {}, "group": group, "label_id": label, "z_order": 0, **more}


def box(x: float = 6, y: float = 8, width: float = 18, height: float = 16, **more: Any) -> dict[str, Any]:
    return annotation("bbox", bbox=[x, y, width, height], **more)


def item(*annotations: Any, path: str = "a.png", size: Any = (HEIGHT, WIDTH)) -> dict[str, Any]:
    return {
        "id": "a",
        "annotations": list(annotations),
        "attr": {"frame": 3},
        "image": {"path": path, "size": list(size)},
    }


def written(folder: Path, *items: Any, last: bool = False) -> Path:
    photo(folder / "images" / "train" / "a.png")
    path = folder / "annotations" / "train.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [("dm_format_version", "1.0"), ("categories", CATEGORIES), ("items", list(items))]
    path.write_text(json.dumps(dict(reversed(parts) if last else parts)), encoding="utf-8")
    return path


def rectangle(top: int, bottom: int, left: int, right: int) -> NDArray[Any]:
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[top:bottom, left:right] = True
    return expected


@pytest.mark.parametrize("last", [False, True], ids=["categories first", "categories last"])
@pytest.mark.parametrize("part", ["", "annotations", "annotations/train.json"])
def test_subset_is_read_from_each_level(tmp_path: Path, part: str, last: bool) -> None:
    written(tmp_path, item(box()), last=last)
    inputs = open_regions(tmp_path / part)
    assert inputs[0].load().size == (WIDTH, HEIGHT)
    assert inputs[0].regions[0].carried == {"image_id": "a", "frame": 3, "label": "dog"}
    (mask,) = masks_of(inputs)
    assert (mask == rectangle(8, 24, 6, 24)).all()


def test_shapes_of_one_group_are_one_region(tmp_path: Path) -> None:
    polygon = annotation("polygon", group=4, points=[6, 8, 24, 8, 24, 24, 6, 24])
    mask = annotation("mask", group=4, rle=encode_rle(rectangle(30, 35, 40, 50)))
    others = (
        annotation("caption", group=4, caption="a dog"),
        annotation("caption", caption="a park"),
        annotation("label", label=0),
    )
    inputs = open_regions(
        written(tmp_path, item(polygon, box(0, 0, 60, 40, group=4), mask, box(group=4, label=0), *others))
    )
    first, second = masks_of(inputs)
    assert (first == (rectangle(8, 24, 6, 24) | rectangle(30, 35, 40, 50))).all()
    assert (second == rectangle(8, 24, 6, 24)).all()
    assert captions_of(inputs) == ["a dog", "a dog"]
    assert (rows_of(inputs)[0]["caption"], rows_of(inputs)[0]["tags"]) == ("a park", ["cat"])


def test_ellipse_lies_between_its_corners(tmp_path: Path) -> None:
    (mask,) = masks_of(open_regions(written(tmp_path, item(annotation("ellipse", points=[10, 5, 40, 25])))))
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    assert (mask == (((columns - 25) / 15) ** 2 + ((rows - 15) / 10) ** 2 <= 1)).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (annotation("cuboid"), "the type 'cuboid'"),
        (annotation("mask"), "rle of a mask: nothing arrived"),
        (annotation("mask", rle={"counts": "0", "size": [10**6, 10**6]}), "but the image is"),
        (annotation("polygon", points=[1, 1, 2]), "empty"),
        (annotation("polygon"), "points of a polygon: nothing arrived"),
        (box(width=-1), "above 0"),
        (annotation("bbox", bbox=[1, 2]), "4 numbers are needed"),
        (annotation("ellipse", points=[9, 9, 1, 1]), "above 0"),
    ],
)
def test_broken_annotation_is_an_error_in_its_place(tmp_path: Path, given: Any, message: str) -> None:
    first, second = masks_of(open_regions(written(tmp_path, item(given, box()))))
    assert message in str(first)
    assert not isinstance(second, str)


def test_points_and_broken_items_are_told(tmp_path: Path) -> None:
    inputs = open_regions(
        written(tmp_path, item(annotation("points", points=[1, 1]), box()), 7, {"id": "b", "annotations": []})
    )
    assert [isinstance(mask, str) for mask in masks_of(inputs)] == [False, True, True]
    assert inputs.notes == ["1 annotations of type points have no area: left out."]
    assert "picture of 80x60" in messages(written(tmp_path, item(box(), size=(80, 60))))[0]


def test_texts_become_attributes_and_all_else_stays(tmp_path: Path) -> None:
    path = written(tmp_path, item(box(group=2), box(group=2), annotation("points", points=[1, 1])), item(box()), item())
    annotations = open_regions(path).annotations
    assert annotations
    annotations.write_back(iter([{"q": "a Katze 🐈"}, None]), tmp_path / "out.json")
    made, before = (json.loads(each.read_text(encoding="utf-8")) for each in (tmp_path / "out.json", path))
    assert [each["attributes"] for each in made["items"][0]["annotations"]] == [{"caption": "a Katze 🐈"}] * 2 + [{}]
    for each in made["items"][0]["annotations"]:
        each["attributes"] = {}
    assert made == before
    assert captions_of(open_regions(tmp_path / "out.json", images=tmp_path)) == ["a Katze 🐈", None]


def test_what_datumaro_writes_has_its_pixels_and_takes_texts(tmp_path: Path) -> None:
    pytest.importorskip("datumaro", reason=MISSING)
    from datumaro.components.annotation import Bbox, Caption, Mask, Polygon
    from datumaro.components.dataset import Dataset
    from datumaro.components.dataset_base import DatasetItem
    from datumaro.components.media import Image
    from datumaro.plugins.transforms import PolygonsToMasks

    rng = np.random.default_rng(0)
    drawn = [rng.random((HEIGHT, WIDTH)) > 0.7 for _ in range(3)]
    masks = [Mask(each, label=0, group=number + 1) for number, each in enumerate(drawn)]
    outlines = [Polygon(rng.uniform(0, 40, 10).round(2).tolist(), label=1) for _ in range(9)]
    drawn += [PolygonsToMasks.convert_polygon(each, HEIGHT, WIDTH).image.astype(bool) for each in outlines]
    picture = Image.from_numpy(rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8))
    given = DatasetItem(
        "a", subset="train", media=picture, annotations=[*masks, *outlines, Bbox(6, 8, 18, 16, label=1), Caption("all")]
    )
    Dataset.from_iterable([given], categories=["cat", "dog"]).export(str(tmp_path / "in"), "datumaro", save_media=True)
    inputs = open_regions(tmp_path / "in")
    *found, last = masks_of(inputs)
    assert inputs[0].load().size == (WIDTH, HEIGHT)
    assert all((mask == expected).all() for mask, expected in zip(found, drawn, strict=True))
    assert (last == as_mask({"box_xyxy": [6, 8, 24, 24]}, HEIGHT, WIDTH)).all()
    assert inputs.annotations
    inputs.annotations.write_back(({"q": f"text {number}"} for number in range(13)), tmp_path / "out")
    (before,), (after,) = (Dataset.import_from(str(tmp_path / place), "datumaro") for place in ("in", "out"))
    texts = [each.attributes.pop("caption", None) for each in after.annotations]
    assert texts == [*(f"text {number}" for number in range(13)), None]
    assert after.annotations == before.annotations
