"""Label Studio: exports in JSON and JSON-MIN, and predictions with texts that its own SDK takes."""

import base64
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotation_files import HEIGHT, WIDTH, captions_of, masks_of, messages, photo, png, rows_of
from numpy.typing import NDArray
from typer.testing import CliRunner

from finecaption_hf import MaskError, as_mask
from finecaption_hf.cli import app
from finecaption_hf.data import open_regions
from finecaption_hf.data.annotations.brushes import decode_brush

MISSING = "label-studio-sdk is not installed: pip install .[annotation-tools]"
SIZES = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
CONFIG = """<View><Image name="image" value="$image"/>
  <RectangleLabels name="box" toName="image"><Label value="cat"/></RectangleLabels>
  <PolygonLabels name="outline" toName="image"><Label value="cat"/></PolygonLabels>
  <EllipseLabels name="round" toName="image"><Label value="cat"/></EllipseLabels>
  <BrushLabels name="brush" toName="image"><Label value="cat"/></BrushLabels>
  <Choices name="colour" toName="image" perRegion="true"><Choice value="red"/></Choices>
  {caption}</View>"""


def result(kind: str, value: dict[str, Any], id: Any = "r1", **more: Any) -> dict[str, Any]:
    named = {"id": id, "type": kind, "from_name": {"rectanglelabels": "box"}.get(kind, kind), "to_name": "image"}
    return named | SIZES | more | {"value": value}


def box(x: float = 10, y: float = 20, width: float = 30, height: float = 40, **more: Any) -> dict[str, Any]:
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": more.pop("rotation", 0)}
    return result("rectanglelabels", {**value, "rectanglelabels": ["cat"]}, **more)


def says(text: Any, id: Any = "r1", name: str = "caption") -> dict[str, Any]:
    return result("textarea", {"text": text}, id=id, from_name=name)


def task(*results: Any, image: Any = "a.png", **more: Any) -> dict[str, Any]:
    return {"id": 7, "data": {"image": image}, "annotations": [{"id": 3, "result": list(results)}]} | more


def written(folder: Path, *tasks: Any, picture: str | None = "a.png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if picture:
        photo(folder / picture)
    (folder / "tasks.json").write_text(json.dumps(list(tasks)), encoding="utf-8")
    return folder / "tasks.json"


def rectangle(top: int, bottom: int, left: int, right: int) -> NDArray[Any]:
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[top:bottom, left:right] = True
    return expected


def pack(values: NDArray[Any], sizes: tuple[int, ...] = (3, 4, 8, 16), seed: int = 0) -> list[int]:
    """Values as a brush, in runs of all kinds; by another way than the SDK's, which never writes a longer literal."""
    rng = np.random.default_rng(seed)
    flat = values.ravel().tolist()
    bits = f"{len(flat):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    at = 0
    while at < len(flat):
        which = int(rng.integers(0, 4))
        most = min(2 ** sizes[which], len(flat) - at)
        same = next((n for n in range(1, most) if flat[at + n] != flat[at]), most)
        is_run = same > 2 or rng.random() < 0.3
        number = same if is_run else int(rng.integers(1, most + 1))
        bits += f"{int(is_run)}{which:02b}{number - 1:0{sizes[which]}b}"
        bits += "".join(f"{value:08b}" for value in flat[at : at + (1 if is_run else number)])
        at += number
    bits += "0" * (-len(bits) % 8)
    return [int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)]


# --- shapes ----------------------------------------------------------------------------------------------------------


def test_rectangle_is_in_percent(tmp_path: Path) -> None:
    (mask,) = masks_of(open_regions(written(tmp_path, task(box()))))
    assert (mask == rectangle(8, 24, 6, 24)).all()


def test_rectangle_turns_about_its_corner(tmp_path: Path) -> None:
    # 30 % of 60 wide and 25 % of 40 high, a quarter turned clockwise about (30, 10): down along y, left along x.
    (mask,) = masks_of(open_regions(written(tmp_path, task(box(50, 25, 30, 25, rotation=90)))))
    assert (mask == rectangle(10, 28, 20, 30)).all()


@pytest.mark.parametrize("rotation", [0, 17, 90, 200.5])
def test_turned_rectangle_equals_the_sdks_corners(tmp_path: Path, rotation: float) -> None:
    utils = pytest.importorskip("label_studio_sdk.converter.utils", reason=MISSING)
    given = box(40, 30, 25, 35, rotation=rotation)
    corners = utils.convert_annotation_to_yolo_obb({**given["value"], **SIZES}, normalize=False)
    (mask,) = masks_of(open_regions(written(tmp_path, task(given))))
    assert (mask == as_mask({"polygon": [list(corner) for corner in corners]}, HEIGHT, WIDTH)).all()


def test_polygon_is_in_percent(tmp_path: Path) -> None:
    points = [[10, 20], [40, 20], [40, 60], [10, 60]]
    given = result("polygonlabels", {"points": points, "closed": True, "polygonlabels": ["cat"]})
    (mask,) = masks_of(open_regions(written(tmp_path, task(given))))
    assert (mask == rectangle(8, 24, 6, 24)).all()


def test_ellipse_turns_about_its_middle(tmp_path: Path) -> None:
    value = {"x": 50, "y": 50, "radiusX": 25, "radiusY": 10, "rotation": 90}
    (mask,) = masks_of(open_regions(written(tmp_path, task(result("ellipselabels", value)))))
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    assert (mask == (((columns - 30) / 4) ** 2 + ((rows - 20) / 15) ** 2 <= 1)).all()


def test_bitmask_is_what_is_opaque(tmp_path: Path) -> None:
    pixels = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    pixels[4:9, 5:7, 3] = 255
    address = "data:image/png;base64," + base64.b64encode(png(pixels)).decode()
    (mask,) = masks_of(open_regions(written(tmp_path, task(result("bitmasklabels", {"imageDataURL": address})))))
    assert (mask == rectangle(4, 9, 5, 7)).all()


def test_brush_is_every_pixel_that_is_not_transparent(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    values = rng.integers(0, 256, (HEIGHT, WIDTH, 4)) * (rng.random((HEIGHT, WIDTH, 1)) < 0.3)
    given = result("brushlabels", {"format": "rle", "rle": pack(values), "brushlabels": ["cat"]})
    (mask,) = masks_of(open_regions(written(tmp_path, task(given))))
    assert (mask == (values[:, :, 3] > 0)).all()


@pytest.mark.parametrize("seed", range(24))
def test_brush_of_any_runs_is_decoded(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 40, 2).tolist()
    values = rng.integers(1, 256, (height, width, 4)) * (
        rng.random((height, width, 1 if seed % 2 else 4)) < rng.random()
    )
    sizes = (3, 4, 8, 16) if seed % 3 else tuple(rng.integers(1, 17, 4).tolist())
    packed = pack(values, sizes, seed)
    assert (decode_brush(packed, height, width) == (values[:, :, 3] > 0)).all()
    if (brush := _sdk_brush()) is not None:
        assert (brush.decode_rle(packed) == values.ravel()).all()


def _sdk_brush() -> Any:
    try:
        from label_studio_sdk.converter import brush
    except ImportError:
        return None
    return brush


def test_brush_of_the_sdk_is_decoded_at_ten_times_its_speed() -> None:
    brush = pytest.importorskip("label_studio_sdk.converter.brush", reason=MISSING)
    rows, columns = np.mgrid[:1000, :1000]
    pixels = (((rows - 500) ** 2 + (columns - 480) ** 2 < 300**2) & (rows % 40 > 3)).astype(np.uint8) * 255
    packed = brush.mask2rle(pixels)

    def seconds(decode: Any) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            decode()
            times.append(time.perf_counter() - start)
        return min(times)

    assert (decode_brush(packed, 1000, 1000) == (brush.decode_rle(packed).reshape(1000, 1000, 4)[:, :, 3] > 0)).all()
    assert seconds(lambda: brush.decode_rle(packed)) > 10 * seconds(lambda: decode_brush(packed, 1000, 1000))


# --- hostile ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ([*(10**9).to_bytes(4, "big"), *[0x3A, 0x5E, 0x7F, 0x80] * 4], "1000000000 values"),
        ([*(4 * HEIGHT * WIDTH).to_bytes(4, "big"), 0x3A, 0x5E, 0x7F, 0x80], "ends before value"),
        ([*(4 * HEIGHT * WIDTH).to_bytes(4, "big"), 0xFA, 0x5E, 0x7F, 0x80], "words of 32 bits"),
        ([1, 2, 3], "arrived as a brush"),
        ([1, 2, 300, 4, 5, 6, 7, 8, 9], "arrived as a brush"),
        ([1.5] * 20, "arrived as a brush"),
        ("text", "arrived as a brush"),
        (None, "arrived as a brush"),
    ],
)
def test_broken_brush_is_an_error_at_once(tmp_path: Path, rle: Any, message: str) -> None:
    start = time.monotonic()
    with pytest.raises(MaskError, match=message):
        decode_brush(rle, HEIGHT, WIDTH)
    assert time.monotonic() - start < 1
    assert message in messages(written(tmp_path, task(result("brushlabels", {"rle": rle}))))[0]


def test_brush_that_ends_early_is_an_error_wherever_it_ends() -> None:
    values = np.random.default_rng(1).integers(0, 2, (20, 20, 4)) * 255
    packed = pack(values)
    for length in range(8, len(packed) - 1, 7):
        with pytest.raises(MaskError, match="ends before value"):
            decode_brush(packed[:length], 20, 20)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (box(width=0), "both have to be above 0"),
        (box(x="1"), "of type str"),
        (box(x=None), "of type NoneType"),
        (box(x=1e300), "no measure"),
        (result("polygonlabels", {"points": [[1, 1], [2, 2]]}), "covers no pixel"),
        (result("polygonlabels", {"points": "1,1"}), "arrived as points"),
        (result("ellipselabels", {"x": 1, "y": 1, "radiusX": -1, "radiusY": 1}), "above 0"),
        (result("bitmasklabels", {"imageDataURL": "data:image/png;base64,AAAA"}), "cannot be decoded"),
        (result("bitmasklabels", {"imageDataURL": 7}), "no intact base64"),
        (result("rectanglelabels", []), "of type NoneType"),
    ],
)
def test_broken_shape_is_an_error_in_its_place(tmp_path: Path, given: Any, message: str) -> None:
    first, second = masks_of(open_regions(written(tmp_path, task(given, box(id="r2")))))
    assert message in str(first)
    assert not isinstance(second, str)


def test_broken_tasks_are_errors_in_their_places(tmp_path: Path) -> None:
    path = written(
        tmp_path, task(box()), 7, {"data": 7}, {"data": {"n": 1}}, {"data": {"image": "b.png"}, "annotations": 7}
    )
    inputs = open_regions(path)
    first, *others = masks_of(inputs)
    assert not isinstance(first, str)
    assert [str(each).split(":")[0] for each in others] == [f"tasks.json[{number}]" for number in (1, 2, 3)]
    assert inputs.num_without_regions == 1


def test_picture_of_another_size_is_refused(tmp_path: Path) -> None:
    inputs = open_regions(written(tmp_path, task(box())))
    assert "picture of 40x60" in str(masks_of(inputs, 20, 30)[0])


# --- what belongs together -------------------------------------------------------------------------------------------


def test_labels_and_shape_of_one_id_are_one_region(tmp_path: Path) -> None:
    geometry = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0}
    both = result("labels", {**geometry, "labels": ["dog"]}), result("rectangle", geometry, meta={"text": ["note"]})
    choice = result("choices", {**geometry, "choices": ["red"]}, from_name="colour")
    inputs = open_regions(written(tmp_path, task(*both, choice, says(["a dog", "asleep"]))))
    (mask,) = masks_of(inputs)
    assert (mask == rectangle(8, 24, 6, 24)).all()
    assert inputs[0].regions[0].carried == {
        "image_id": 7,
        "id": "r1",
        "annotation_id": 3,
        "label": "dog",
        "colour": ["red"],
        "meta": {"text": ["note"]},
        "caption": "a dog\nasleep",
    }


def test_cancelled_annotations_points_and_unknown_results_are_counted(tmp_path: Path) -> None:
    cancelled = {"result": [box()], "was_cancelled": True}
    point = result("keypointlabels", {"x": 1, "y": 1, "width": 1})
    given = task(box(), point, result("relation", {}), result("videorectangle", {"sequence": []}, id="v"))
    given["annotations"].append(cancelled)
    inputs = open_regions(written(tmp_path, given))
    assert inputs.num_regions == 1
    assert inputs.notes[:-1] == [
        "1 annotations that were cancelled: left out.",
        "1 results of type keypoint, which has no area: left out.",
        "1 results of type relation, which has no area: left out.",
        "1 results of type 'videorectangle': left out.",
    ]
    assert '<TextArea name="caption" toName="image" perRegion="true"' in inputs.notes[-1]


def test_predictions_are_read_where_there_is_no_annotation(tmp_path: Path) -> None:
    predictions = [{"result": [box()]}, {"result": [box(), says(["a cat"])]}]
    only = {"data": {"image": "a.png"}, "predictions": predictions}
    beside = task(box(id="other"), predictions=predictions)
    inputs = open_regions(written(tmp_path, only, beside))
    assert captions_of(inputs) == ["a cat", None]
    assert inputs.notes[0] == "2 predictions beside annotations: left out."


def test_text_about_the_whole_task_is_carried_by_its_regions(tmp_path: Path) -> None:
    given = task(box(), result("textarea", {"text": ["a park"]}, id="whole", from_name="scene"))
    inputs = open_regions(written(tmp_path, given))
    assert inputs[0].regions[0].carried["scene"] == "a park"


def test_json_min_joins_values_of_one_place(tmp_path: Path) -> None:
    place = {
        "x": 10,
        "y": 20,
        "width": 30,
        "height": 40,
        "rotation": 0,
        "original_width": WIDTH,
        "original_height": HEIGHT,
    }
    given = {
        **{"image": "/data/upload/1/0a1b2c3d-a.png", "id": 5, "annotator": 1, "annotation_id": 2},
        "label": [{**place, "labels": ["cat"]}, {**place, "x": 50, "labels": ["dog"]}],
        "box": [place, {**place, "x": 50}],
        "scene": "a park",
    }
    inputs = open_regions(written(tmp_path, given))
    first, second = masks_of(inputs)
    assert (first == rectangle(8, 24, 6, 24)).all() and (second == rectangle(8, 24, 30, 48)).all()
    assert [region["label"] for region in rows_of(inputs)[0]["regions"]] == ["cat", "dog"]
    assert inputs[0].regions[0].carried["scene"] == "a park"
    assert inputs.annotations
    with pytest.raises(ValueError, match="JSON-MIN cannot be imported"):
        inputs.annotations.write_back(iter([{"q": "x"}] * 2), tmp_path / "out.json")
    assert not list(tmp_path.glob("out.json*"))


# --- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("/data/upload/3/0a1b2c3d-a%20b.png", "a b.png"),
        ("/data/upload/3/0a1b2c3d-a_b.png", "0a1b2c3d-a_b.png"),
        ("/data/local-files/?d=photos/day%201/a.png", "day 1/a.png"),
        ("s3://bucket/day/a.png", "a.png"),
        ("https://host/x/a.png?sig=1%2F2", "x/a.png"),
        ("C:\\photos\\a.png", "a.png"),
    ],
)
def test_picture_is_found_by_its_address(tmp_path: Path, address: str, name: str) -> None:
    photo(tmp_path / "photos" / name)
    path = written(tmp_path, task(box(), image=address), picture=None)
    inputs = open_regions(path, images=tmp_path / "photos")
    assert inputs[0].name == name
    assert inputs[0].load().size == (WIDTH, HEIGHT)


def test_picture_in_the_data_is_decoded(tmp_path: Path) -> None:
    address = "data:image/png;base64," + base64.b64encode(png(np.zeros((HEIGHT, WIDTH, 3), np.uint8))).decode()
    inputs = open_regions(written(tmp_path, task(box(), image=address), picture=None))
    assert inputs[0].load().size == (WIDTH, HEIGHT)


def test_pictures_of_one_task_are_rows(tmp_path: Path) -> None:
    given = task(box(item_index=1), box(id="r2", item_index=0), image=["a.png", "b.png"])
    inputs = open_regions(written(tmp_path, given))
    assert [(inputs[number].name, len(inputs[number].regions)) for number in range(2)] == [("b.png", 1), ("a.png", 1)]


# --- texts back ------------------------------------------------------------------------------------------------------


def test_texts_become_predictions_and_all_else_stays(tmp_path: Path) -> None:
    brush = result(
        "brushlabels", {"format": "rle", "rle": pack(np.full((HEIGHT, WIDTH, 4), 255)), "brushlabels": ["cat"]}, id="b"
    )
    first = task(box(), says(["old"], name="note"), brush, predictions=[{"model_version": "x", "result": []}])
    second = task(box(id="r9"), image="ü.png")
    path = written(tmp_path, first, second, {"data": {"image": "c.png"}, "annotations": []})
    before = path.read_bytes()
    inputs = open_regions(path)
    assert inputs.annotations
    inputs.annotations.write_back(
        iter([{"q": "a cat"}, {"colour": "red", "shape": "round"}, None]), tmp_path / "out.json"
    )
    assert path.read_bytes() == before
    made = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert captions_of(open_regions(tmp_path / "out.json")) == ["a cat", "colour: red\nshape: round", None]
    kept, added = made[0]["predictions"]
    made[0]["predictions"] = [kept]
    assert made == json.loads(before)
    assert [each["type"] for each in added["result"]] == ["rectanglelabels", "textarea", "brushlabels", "textarea"]
    assert [each["id"] for each in added["result"]] == ["r1", "r1", "b", "b"]


def test_sdk_takes_the_predictions(tmp_path: Path) -> None:
    pytest.importorskip("label_studio_sdk.label_interface", reason=MISSING)
    from label_studio_sdk.label_interface import LabelInterface
    from label_studio_sdk.label_interface.objects import PredictionValue

    given = [
        box(),
        result("polygonlabels", {"points": [[1, 1], [9, 1], [9, 9]], "closed": True, "polygonlabels": ["cat"]}, id="p"),
        result(
            "ellipselabels",
            {"x": 9, "y": 9, "radiusX": 5, "radiusY": 5, "rotation": 0, "ellipselabels": ["cat"]},
            id="e",
        ),
        result(
            "brushlabels",
            {"format": "rle", "rle": pack(np.full((HEIGHT, WIDTH, 4), 9)), "brushlabels": ["cat"]},
            id="b",
        ),
    ]
    for each, name in zip(given, ("box", "outline", "round", "brush")):
        each["from_name"] = name
    inputs = open_regions(written(tmp_path, task(*given)))
    assert inputs.annotations
    inputs.annotations.write_back(({"q": f"text {number}"} for number in range(4)), tmp_path / "out.json")
    (made,) = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    (tag,) = [note[note.index("<") : note.rindex(">") + 1] for note in inputs.notes if "<TextArea" in note]
    interface = LabelInterface(CONFIG.replace("{caption}", tag))
    (prediction,) = made["predictions"]
    assert interface.validate_prediction(prediction, return_errors=True) == []
    assert len(PredictionValue(**prediction).result) == 8
    without = LabelInterface(CONFIG.replace("{caption}", ""))
    assert without.validate_prediction(prediction, return_errors=True)


def test_command_describes_an_export(tmp_path: Path) -> None:
    path = written(tmp_path, task(box()), {"data": {"image": "a.png"}, "annotations": []})
    output = tmp_path / "out.jsonl"
    given = ["describe", str(path), "--output", str(output), "--max-new-tokens", "3", "--device", "cpu"]
    outcome = CliRunner().invoke(app, given)
    assert outcome.exit_code == 0, outcome.output
    assert "read as Label Studio, 1 regions" in outcome.output
    (record,) = map(json.loads, output.read_text(encoding="utf-8").splitlines())
    assert (record["id"], record["image_id"], record["box_xyxy"]) == ("r1", 7, [6, 8, 24, 24])
