"""Supervisely: files of pictures in folders `ann`, compared with what its SDK draws."""

import base64
import json
import time
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from annotation_files import HEIGHT, WIDTH, captions_of, masks_of, photo, png, rows_of
from numpy.typing import NDArray

from finecaption_hf.data import open_regions
from finecaption_hf.data.annotations.shapes import pixel_polygons

MISSING = "supervisely is not installed: pip install .[annotation-tools]"
SQUARE = [[6, 8], [23, 8], [23, 23], [6, 23]]


def figure(kind: str = "polygon", label: str = "cat", **more: Any) -> dict[str, Any]:
    points = {"points": {"exterior": SQUARE, "interior": []}} if kind in ("polygon", "line") else {}
    return {"id": 5, "classTitle": label, "description": "", "geometryType": kind, "tags": [], **points, **more}


def bitmap(data: Any, origin: Any = (4, 3)) -> dict[str, Any]:
    text = base64.b64encode(data).decode() if isinstance(data, bytes) else data
    return figure("bitmap", bitmap={"data": text, "origin": list(origin)})


def written(
    folder: Path, *figures: Any, name: str = "ds/ann/a.png.json", picture: str = "ds/img/a.png", **more: Any
) -> Path:
    photo(folder / picture)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    size = {"height": HEIGHT, "width": WIDTH}
    path.write_text(json.dumps({"description": "", "tags": [], "size": size, "objects": list(figures), **more}))
    return path


def rectangle(top: int, bottom: int, left: int, right: int) -> NDArray[Any]:
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[top:bottom, left:right] = True
    return expected


def only_mask(path: Path) -> Any:
    (mask,) = masks_of(open_regions(path))
    return mask


def test_polygon_has_its_outline_and_holes_take_theirs(tmp_path: Path) -> None:
    points = {"exterior": SQUARE, "interior": [[[10, 12], [14, 12], [14, 16], [10, 16]]]}
    expected = rectangle(8, 24, 6, 24) & ~rectangle(12, 17, 10, 15)
    assert (only_mask(written(tmp_path, figure(points=points))) == expected).all()


def test_rectangle_holds_both_corners(tmp_path: Path) -> None:
    points = {"exterior": [[23, 23], [6, 8]], "interior": []}
    assert (only_mask(written(tmp_path, figure("rectangle", points=points))) == rectangle(8, 24, 6, 24)).all()


@pytest.mark.parametrize("form", ["zlib", "bare", "alpha"])
def test_bitmap_lies_at_its_origin(tmp_path: Path, form: str) -> None:
    crop = np.random.default_rng(0).random((9, 14)) > 0.5
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[3:12, 4:18] = crop
    data = (
        png(np.dstack([np.full((9, 14, 3), 255, np.uint8), crop.astype(np.uint8) * 255]))
        if form == "alpha"
        else png(crop)
    )
    given = bitmap(data if form == "bare" else zlib.compress(data))
    assert (only_mask(written(tmp_path, given)) == expected).all()


@pytest.mark.parametrize("seed", range(40))
def test_polygons_of_pixels_are_filled_as_by_opencv(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(5, 70, 2).tolist()
    rings = []
    for _ in range(1 + seed % 3):
        number = int(rng.integers(1, 9))
        rings.append(np.stack([rng.integers(0, width, number), rng.integers(0, height, number)], axis=1))
    expected = np.zeros((height, width), np.uint8)
    cv2.fillPoly(expected, [ring.astype(np.int32) for ring in rings], 1)
    assert (pixel_polygons(rings, height, width) == expected.astype(bool)).all()


def test_every_figure_equals_the_sdks(tmp_path: Path) -> None:
    sly = pytest.importorskip("supervisely", reason=MISSING)
    rng = np.random.default_rng(4)
    figures = []
    for _ in range(15):
        outline, hole = rng.uniform(0, 39, (6, 2)), rng.uniform(10, 30, (3, 2))
        figures.append(
            sly.Polygon([sly.PointLocation(*each) for each in outline], [[sly.PointLocation(*each) for each in hole]])
        )
        figures.append(
            sly.Bitmap(rng.random((11, 13)) > 0.6, origin=sly.PointLocation(*rng.integers(0, 28, 2).tolist()))
        )
        top, left = rng.integers(0, 20, 2).tolist()
        figures.append(sly.Rectangle(top, left, top + 7, left + 12))
    of_class = sly.ObjClass("cat", sly.AnyGeometry)
    annotation = sly.Annotation((HEIGHT, WIDTH), [sly.Label(each, of_class, description="x") for each in figures])
    path = written(tmp_path)
    path.write_text(json.dumps(annotation.to_json()))
    inputs = open_regions(path)
    for mask, reference in zip(masks_of(inputs), figures, strict=True):
        assert (mask == reference.get_mask((HEIGHT, WIDTH))).all()
    assert inputs.annotations
    inputs.annotations.write_back(({"q": f"text {number}"} for number in range(45)), tmp_path / "out.json")
    made = sly.Annotation.from_json(json.loads((tmp_path / "out.json").read_text()), sly.ProjectMeta([of_class]))
    assert [label.description for label in made.labels] == [f"text {number}" for number in range(45)]
    for label, reference in zip(made.labels, annotation.labels, strict=True):
        assert label.clone(description="x").to_json() == reference.to_json()


def test_project_is_read_with_captions_and_tags(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text('{"classes": []}')
    tags = [{"name": "colour", "value": "red"}, {"name": "truncated", "value": None}]
    written(tmp_path, figure(description="a cat", tags=tags), figure("line"), tags=[{"name": "park", "value": None}])
    written(tmp_path, name="other/ann/b.png.json", picture="other/img/b.png")
    inputs = open_regions(tmp_path)
    assert [row["image"] for row in rows_of(inputs)] == ["ds/img/a.png", "other/img/b.png"]
    assert inputs[0].load().size == (WIDTH, HEIGHT)
    assert inputs[0].regions[0].carried == {
        **{"tags": {"park": True}, "id": 5, "label": "cat", "caption": "a cat"},
        **{"colour": "red", "truncated": True},
    }
    assert inputs.notes == [
        "1 shapes of type line have no area: left out.",
        "1 JSON files of the folder are not of Supervisely: left out.",
    ]


@pytest.mark.parametrize("part", ["", "ds", "ds/ann", "ds/ann/a.png.json"])
def test_picture_is_found_from_each_level(tmp_path: Path, part: str) -> None:
    written(tmp_path, figure())
    assert open_regions(tmp_path / part)[0].load().size == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (7, "a number arrived"),
        (figure("mesh"), "type 'mesh'"),
        (figure(points=7), "arrived as points"),
        (figure(points={"exterior": []}), "has no point"),
        (figure(points={"exterior": [[1, 1], [1e99, 2]]}), "beyond"),
        (bitmap("AAA"), "no intact base64"),
        (bitmap(b"no stream"), "no intact zlib"),
        (bitmap(zlib.compress(png(np.ones((5, 5), bool)))[:-9]), "truncated"),
        (bitmap(zlib.compress(bytes(10**8))), "more than the"),
        (bitmap(zlib.compress(png(np.ones((64, 64), bool)))), "larger than the picture"),
        (bitmap(zlib.compress(png(np.ones((3, 3), bool))), origin=(1,)), "arrived as points"),
        (bitmap(zlib.compress(png(np.ones((3, 3), bool))), origin=(900, 900)), "empty"),
        (figure("bitmap"), "bitmap: nothing arrived"),
        (figure(points={"exterior": [[0, x % 2 * 900_000] for x in range(3000)]}), "too complex"),
    ],
)
def test_broken_figure_is_an_error_in_its_place(tmp_path: Path, given: Any, message: str) -> None:
    start = time.monotonic()
    first, second = masks_of(open_regions(written(tmp_path, given, figure())))
    assert message in str(first)
    assert not isinstance(second, str)
    assert time.monotonic() - start < 10


def test_picture_of_another_size_is_refused(tmp_path: Path) -> None:
    inputs = open_regions(written(tmp_path, figure(), size={"height": 80, "width": 120}))
    assert "picture of 80x120" in str(masks_of(inputs)[0])


def test_texts_go_into_descriptions_and_all_else_stays(tmp_path: Path) -> None:
    line = figure("line", description="kept")
    path = written(tmp_path, line, figure(), figure(description="old"))
    annotations = open_regions(tmp_path).annotations
    assert annotations
    annotations.write_back(iter([{"a": "x", "b": "y"}, None]), tmp_path.parent / f"{tmp_path.name}-out")
    made = tmp_path.parent / f"{tmp_path.name}-out" / "ds/ann/a.png.json"
    before, after = json.loads(path.read_text()), json.loads(made.read_text())
    assert [each.pop("description") for each in after["objects"]] == ["kept", "a: x\nb: y", "old"]
    for each in before["objects"]:
        each.pop("description")
    assert after == before
    assert captions_of(open_regions(made, images=tmp_path)) == ["a: x\nb: y", "old"]
