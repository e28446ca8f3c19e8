"""LabelMe: JSON files beside pictures, compared with what labelme draws."""

import base64
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotation_files import (
    HEIGHT,
    WIDTH,
    base64_png,
    captions_of,
    masks_of,
    messages,
    photo,
    png,
    rows_of,
)
from typer.testing import CliRunner

from finecaption_hf.cli import app
from finecaption_hf.data import open_regions

SQUARE = [[10, 5], [20, 5], [20, 15], [10, 15]]


def shape(points: Any, shape_type: Any = "polygon", label: str = "cat", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": shape_type, "flags": {}, **more}


def document(*shapes: Any, **more: Any) -> dict[str, Any]:
    size = {"imageHeight": HEIGHT, "imageWidth": WIDTH}
    top = {"version": "6.3.1", "flags": {}, "shapes": list(shapes), "imagePath": "a.png", "imageData": None}
    return top | size | more


def written(folder: Path, value: Any, name: str = "a.json", picture: str | None = "a.png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if picture:
        photo(folder / picture)
    (folder / name).write_text(json.dumps(value), encoding="utf-8")
    return folder / name


def only_mask(path: Path) -> Any:
    (mask,) = masks_of(open_regions(path))
    return mask


# --- pixels ----------------------------------------------------------------------------------------------------------


def test_polygon_has_its_outline(tmp_path: Path) -> None:
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[5:16, 10:21] = True
    assert (only_mask(written(tmp_path, document(shape(SQUARE)))) == expected).all()


@pytest.mark.parametrize(
    "points", [[[10, 5], [20, 15]], [[20, 15], [10, 5]], [[10, 15], [20, 5]], SQUARE], ids=["", "back", "up", "four"]
)
def test_rectangle_has_corners_in_any_order(tmp_path: Path, points: Any) -> None:
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[5:16, 10:21] = True
    assert (only_mask(written(tmp_path, document(shape(points, "rectangle")))) == expected).all()


def test_mask_lies_between_its_corners_both_included(tmp_path: Path) -> None:
    crop = np.zeros((4, 6), bool)
    crop[1:3, 2] = True
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[11:13, 22] = True
    given = shape([[20, 10], [25, 13]], "mask", mask=base64_png(crop))
    assert (only_mask(written(tmp_path, document(given))) == expected).all()


def test_shapes_of_one_group_and_label_are_one_region(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        document(
            shape([[0, 0], [3, 3]], "rectangle", group_id=1),
            shape([[0, 0], [3, 3]], "rectangle", group_id=1, label="dog"),
            shape([[10, 10], [13, 13]], "rectangle", group_id=1, description="a cat"),
            shape([[1, 1], [9, 9]], "rectangle"),
            shape([[1, 1], [9, 9]], "rectangle"),
        ),
    )
    inputs = open_regions(path)
    (row,) = rows_of(inputs)
    assert [(each["label"], each.get("group_id"), each.get("caption")) for each in row["regions"]] == [
        ("cat", 1, "a cat"),
        ("dog", 1, None),
        ("cat", None, None),
        ("cat", None, None),
    ]
    assert [mask.sum() for mask in masks_of(inputs)] == [32, 16, 81, 81]  # type: ignore[union-attr]


def test_every_shape_equals_labelmes_drawing(tmp_path: Path) -> None:
    reference = pytest.importorskip("labelme.utils", reason="labelme is not installed: pip install .[annotation-tools]")
    rng = np.random.default_rng(7)
    shapes = []
    for _ in range(12):
        for kind, number in (("polygon", 7), ("rectangle", 2), ("circle", 2), ("oriented_rectangle", 4)):
            points = rng.uniform(-5, 55, (number, 2)).tolist()
            shapes.append(shape(points, kind))
        top, left = rng.integers(0, 30, 2).tolist()
        crop = rng.random((8, 9)) > 0.5
        shapes.append(shape([[left, top], [left + 8, top + 7]], "mask", mask=base64_png(crop)))
    masks = masks_of(open_regions(written(tmp_path, document(*shapes))))
    compared = 0
    for given, mask in zip(shapes, masks, strict=True):
        if given["shape_type"] == "mask":
            expected = np.zeros((HEIGHT, WIDTH), bool)
            (left, top), (right, bottom) = given["points"]
            expected[top : bottom + 1, left : right + 1] = reference.img_b64_to_arr(given["mask"]).astype(bool)
        else:
            expected = reference.shape_to_mask((HEIGHT, WIDTH), given["points"], given["shape_type"])
        if expected.any():
            assert (mask == expected).all(), given
            compared += 1
    assert compared > 50


def test_groups_equal_labelmes_labels_of_instances(tmp_path: Path) -> None:
    reference = pytest.importorskip("labelme.utils", reason="labelme is not installed: pip install .[annotation-tools]")
    shapes = [shape([[x, 4], [x + 6, 20], [x - 3, 30]], group_id=x // 20) for x in (5, 15, 25, 35, 45)]
    _, expected = reference.shapes_to_label((HEIGHT, WIDTH), shapes, {"cat": 1})
    masks = masks_of(open_regions(written(tmp_path, document(*shapes))))
    assert len(masks) == 3
    for number, mask in enumerate(masks, start=1):
        assert (mask == (expected == number)).all()


# --- what is not a region --------------------------------------------------------------------------------------------


def test_lines_and_points_are_counted(tmp_path: Path) -> None:
    line, point = shape([[1, 1], [5, 5]], "line"), shape([[1, 1]], "point")
    inputs = open_regions(written(tmp_path, document(line, shape(SQUARE), line, point)))
    assert inputs.num_regions == 1
    assert inputs.notes == [
        "2 shapes of type line have no area: left out.",
        "1 shapes of type point have no area: left out.",
    ]


def test_picture_of_another_size_is_refused(tmp_path: Path) -> None:
    inputs = open_regions(written(tmp_path, document(shape(SQUARE))))
    (mask,) = masks_of(inputs, HEIGHT * 2, WIDTH * 2)
    assert "picture of 40x60" in str(mask) and "the picture is 80x120" in str(mask)
    (mask,) = masks_of(inputs, WIDTH, HEIGHT)
    assert "--stored-orientation" in str(mask)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (7, "shapes[0]: a number arrived"),
        (shape(SQUARE, "cuboid"), "type 'cuboid'"),
        (shape(SQUARE, ["polygon"]), "type 'a list'"),
        (shape([[1, 1], [2, 2]]), "There are 2 points"),
        (shape([[1, 1], [2, "3"], [4, 4]]), "of type str"),
        (shape([[1, 1], [2, 1e9], [4, 4]]), "beyond 1e+06"),
        (shape([[1, 1], [2, 3, 4], [4, 4]]), "arrived as points"),
        (shape(None), "The value None arrived as points"),
        (shape([[1, 1], [9e5, 1]], "circle"), "radius"),
        (shape([[1, 1], [2, 2]], "mask"), "no intact base64"),
        (shape([[1, 1], [2, 2]], "mask", mask="iVBORw0KGgo"), "no intact base64"),
        (shape([[1, 1], [2, 2]], "mask", mask=base64.b64encode(b"no picture").decode()), "cannot be decoded"),
        (shape([[1, 1], [2, 2]], "mask", mask=base64_png(np.ones((3, 3), bool))), "there are 2x2 pixels"),
        (shape([[0, 0], [63, 63]], "mask", mask=base64_png(np.ones((64, 64), bool))), "larger than the picture"),
        (shape([[0, 0], [3, 3]], "mask", mask=base64_png(np.ones((4, 4, 3), np.uint8))), "colours"),
        (shape([[0, 0], [3, 3]], "mask", mask=base64_png(np.zeros((4, 4), bool))), "empty"),
    ],
)
def test_broken_shape_is_an_error_in_its_place(tmp_path: Path, given: Any, message: str) -> None:
    path = written(tmp_path, document(given, shape(SQUARE)))
    first, second = masks_of(open_regions(path))
    assert message in str(first)
    assert not isinstance(second, str)


def test_truncated_mask_is_an_error(tmp_path: Path) -> None:
    crop = np.random.default_rng(0).random((30, 30)) > 0.5
    data = base64.b64encode(png(crop)[:90]).decode()
    assert "cannot be decoded" in only_mask(written(tmp_path, document(shape([[0, 0], [29, 29]], "mask", mask=data))))


def test_deep_nesting_and_broken_files_are_errors_in_their_places(tmp_path: Path) -> None:
    written(tmp_path, document(shape(SQUARE)))
    (tmp_path / "b.json").write_text('{"shapes": ' + "[" * 100_000, encoding="utf-8")
    (tmp_path / "c.json").write_text('{"shapes": [', encoding="utf-8")
    (tmp_path / "d.json").write_text('{"shapes": 7, "imagePath": "a.png"}', encoding="utf-8")
    (tmp_path / "e.json").write_text('{"images": []}', encoding="utf-8")
    inputs = open_regions(tmp_path)
    masks = masks_of(inputs)
    assert [isinstance(mask, str) for mask in masks] == [False, True, True, True]
    assert "nested too deeply" in str(masks[1]) and "b.json" in str(masks[1])
    assert inputs.notes == ["1 JSON files of the folder are not of LabelMe: left out."]


def test_hostile_shapes_end_soon(tmp_path: Path) -> None:
    zigzag = [[x % 2 * 60, x % 3 * 20] for x in range(300_000)]
    path = written(tmp_path, document(shape(zigzag), shape([[0, 0], [1e6, 1e6]], "circle"), imageHeight=None))
    start = time.monotonic()
    assert len(messages(path)) == 2
    assert time.monotonic() - start < 120


# --- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["..\\pictures\\a.png", "../pictures/a.png"])
@pytest.mark.parametrize("whole", [True, False], ids=["folder", "file"])
def test_picture_in_a_folder_beside_is_found(tmp_path: Path, name: str, whole: bool) -> None:
    photo(tmp_path / "pictures" / "a.png")
    path = written(tmp_path / "labels", document(shape(SQUARE), imagePath=name), picture=None)
    inputs = open_regions(path.parent if whole else path)
    assert inputs[0].name == "pictures/a.png"
    assert inputs[0].load().size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("name", ["D:\\photos\\of\\me\\a.png", "/photos/of/me/a.png", "../../x/a.png"])
def test_picture_is_found_by_its_last_part_in_the_folder_of_images(tmp_path: Path, name: str) -> None:
    photo(tmp_path / "all" / "a.png")
    path = written(tmp_path / "labels", document(shape(SQUARE), imagePath=name), picture=None)
    inputs = open_regions(path, images=tmp_path / "all")
    assert inputs[0].name == "a.png"
    assert inputs[0].load().size == (WIDTH, HEIGHT)


def test_pictures_in_folders_below_are_named_from_the_top(tmp_path: Path) -> None:
    written(tmp_path / "one", document(shape(SQUARE)))
    written(tmp_path / "two", document(shape(SQUARE)))
    inputs = open_regions(tmp_path)
    assert [inputs[number].name for number in range(2)] == ["one/a.png", "two/a.png"]
    assert all(inputs[number].load() for number in range(2))


def test_embedded_picture_is_used_where_there_is_no_file(tmp_path: Path) -> None:
    embedded = base64_png(np.full((HEIGHT, WIDTH, 3), 9, np.uint8))
    path = written(tmp_path, document(shape(SQUARE), imageData=embedded), picture=None)
    inputs = open_regions(path)
    assert np.asarray(inputs[0].load()).max() == 9
    assert inputs[0].name == "a.png"
    photo(tmp_path / "a.png")
    assert np.asarray(open_regions(path)[0].load()).max() > 9


def test_broken_embedded_picture_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, document(shape(SQUARE), imageData="!"), picture=None)
    assert "imageData is no intact base64" in messages(path)[0]


def test_missing_picture_is_named(tmp_path: Path) -> None:
    inputs = open_regions(written(tmp_path, document(shape(SQUARE), imagePath="dir\\b.png")))
    with pytest.raises(ValueError, match=r"dir/b\.png.*not there"):
        inputs[0].load()


# --- texts -----------------------------------------------------------------------------------------------------------


def test_attributes_of_picture_and_shape_are_carried(tmp_path: Path) -> None:
    given = shape(SQUARE, description="a cat", flags={"occluded": True}, group_id=4, difficult=False)
    inputs = open_regions(written(tmp_path, document(given, flags={"checked": True}, owner="me")))
    assert inputs[0].regions[0].carried == {
        "flags": {"occluded": True},
        "owner": "me",
        "label": "cat",
        "caption": "a cat",
        "group_id": 4,
        "difficult": False,
    }


def test_texts_go_into_description_and_all_else_stays(tmp_path: Path) -> None:
    line = shape([[1, 1], [5, 5]], "line", description="kept")
    grouped = [shape(SQUARE, group_id=3), shape([[1, 1], [2, 2]], "rectangle", group_id=3)]
    given = document(line, *grouped, shape(SQUARE, description="old"), shape(SQUARE), owner="me", imageData=None)
    path = written(tmp_path / "in", given)
    before = path.read_bytes()
    inputs = open_regions(path)
    assert inputs.annotations
    inputs.annotations.write_back(
        iter([{"q": "a Katze 🐈"}, {"colour": "red", "shape": "round"}, None]), tmp_path / "b.json"
    )
    assert path.read_bytes() == before
    made = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    texts = [each.pop("description", None) for each in made["shapes"]]
    assert texts == ["kept", "a Katze 🐈", "a Katze 🐈", "colour: red\nshape: round", None]
    for each in given["shapes"]:
        each.pop("description", None)
    assert made == given
    assert captions_of(open_regions(tmp_path / "b.json")) == ["a Katze 🐈", "colour: red\nshape: round", None]


def test_folder_gives_a_folder_that_labelme_loads(tmp_path: Path) -> None:
    files = pytest.importorskip(
        "labelme", reason="labelme is not installed: pip install .[annotation-tools]"
    )._label_file
    for name in ("x/a", "x/b"):
        photo(tmp_path / f"in/{name}.png")
        crop = base64_png(np.ones((3, 4), bool))
        files.LabelFile().save(
            filename=str(tmp_path / f"in/{name}.json"),
            shapes=[shape(SQUARE, description=""), shape([[2, 3], [5, 5]], "mask", mask=crop, description="")],
            image_path=f"{name[-1]}.png",
            image_height=HEIGHT,
            image_width=WIDTH,
            image_data=(tmp_path / f"in/{name}.png").read_bytes(),
        )
    inputs = open_regions(tmp_path / "in")
    assert inputs.annotations
    inputs.annotations.write_back(({"q": f"text {number}"} for number in range(4)), tmp_path / "out")
    texts = []
    for name in ("x/a", "x/b"):
        before, after = (files.LabelFile(str(tmp_path / f"{place}/{name}.json")) for place in ("in", "out"))
        for old, new in zip(before.shapes, after.shapes, strict=True):
            texts.append(new.pop("description"))
            old.pop("description")
            assert (old.pop("mask") is None) == (new.pop("mask") is None)
            assert old == new
        assert before.image_data == after.image_data and before.image_path == after.image_path
    assert texts == ["text 0", "text 1", "text 2", "text 3"]


def test_texts_are_not_written_into_the_original(tmp_path: Path) -> None:
    path = written(tmp_path / "in", document(shape(SQUARE)))
    for source, target in ((path, path), (path.parent, path.parent), (path.parent, path.parent / "out")):
        annotations = open_regions(source).annotations
        assert annotations
        with pytest.raises(ValueError, match="into the original"):
            annotations.write_back(iter([{"q": "text"}]), target)
    assert sorted(each.name for each in path.parent.iterdir()) == ["a.json", "a.png"]


def test_command_describes_a_folder_of_labelme(tmp_path: Path) -> None:
    written(tmp_path / "in", document(shape(SQUARE, description="old"), shape([[30, 5]], "point")))
    output = tmp_path / "out.jsonl"
    given = ["describe", str(tmp_path / "in"), "--output", str(output), "--max-new-tokens", "3", "--device", "cpu"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    assert "read as LabelMe, 1 regions" in result.output and "type point have no area" in result.output
    (record,) = map(json.loads, output.read_text(encoding="utf-8").splitlines())
    assert record["box_xyxy"] == [10, 5, 21, 16] and record["label"] == "cat"
