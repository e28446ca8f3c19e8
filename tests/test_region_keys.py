"""The same keys mean the same region at every door, and nothing is about the whole picture unless it was said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from mask_forms import run_lengths
from PIL import Image

from finecaption_hf.data import DataError, open_dataset, open_regions, read_examples
from finecaption_hf.data.check import check_dataset
from finecaption_hf.data.encoding import encode_mask, encode_rle
from finecaption_hf.masks_finecaption import MaskError, as_mask
from finecaption_hf.processing_finecaption import _with_regions

H, W = 6, 8
MASK = np.zeros((H, W), dtype=bool)
MASK[1:4, 2:6] = True
RING = [2, 1, 6, 1, 6, 4, 2, 4]
BRANCHES = [{"name": "Color", "answer": "red"}]
RLE = encode_rle(MASK)
FORMS: dict[str, dict[str, Any]] = {
    "mask RLE": {"mask": RLE},
    "mask blob": {"mask": encode_mask(MASK)},
    "mask box": {"mask": [2, 1, 6, 4]},
    "mask dict": {"mask": {"box_xyxy": [2, 1, 6, 4]}},
    "COCO annotation": {"segmentation": [RING], "bbox": [2, 1, 4, 3], "area": 12, "iscrowd": 0, "category_id": 3},
    "COCO annotation in mask": {"mask": {"segmentation": RLE, "bbox": [2, 1, 4, 3]}},
    "DAM": {"mask_rle": RLE},
    "polygon": {"polygon": RING},
    "box": {"box_xyxy": [2, 1, 6, 4], "points": [[3, 2]]},
    "RLE": {"size": [H, W], "counts": run_lengths(MASK)},
    "Arrow": {"mask": None, "polygon": None, "box_xyxy": [2, 1, 6, 4], "counts": None},
}
# Of files only: what travels with weights opens none, and a part of a chat has a type of its own.
IN_FILES = FORMS | {
    "file": {"mask_file": "masks/a.png"},
    "GeoJSON": {"type": "Polygon", "coordinates": [[[2, 1], [6, 1], [6, 4], [2, 4]]]},
}

Door = Callable[[Path, dict[str, Any]], "np.ndarray | None"]
"""The mask of a row, at a door; `None` for the whole picture."""


def python(folder: Path, row: dict[str, Any]) -> np.ndarray | None:
    return as_mask(row, H, W)


def chat(folder: Path, row: dict[str, Any]) -> np.ndarray | None:
    own = {"area", "iscrowd", "category_id"}
    if row.keys() & {"segmentation", "box_xyxy"}:
        own |= {"bbox", "points"}  # left alone elsewhere, where there is a region
    part = {"type": "image", "image": folder / "a.png", **{key: row[key] for key in row.keys() - own}}
    region = _with_regions({"role": "user", "content": [part]})["content"][0]["image"].mask
    return None if region is None else as_mask(region, H, W)


def caption_lines(folder: Path, row: dict[str, Any]) -> np.ndarray | None:
    return described(folder, {"image": "a.png", "id": 7, **row})


def caption_regions(folder: Path, row: dict[str, Any]) -> np.ndarray | None:
    return described(folder, {"image": "a.png", "regions": [{"id": 7, "branches": BRANCHES, **row}]})


def described(folder: Path, row: dict[str, Any]) -> np.ndarray | None:
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    inputs = open_regions(folder / "rows.jsonl")
    (region,) = inputs[0].regions
    reference = inputs[0].reference(region)
    assert inputs.num_whole_images == (reference is None)
    return None if reference is None else as_mask(reference, H, W)


def training(folder: Path, row: dict[str, Any]) -> np.ndarray | None:
    row = {"image": "a.png", "regions": [{"id": 7, "branches": BRANCHES, **row}]}
    (folder / "records.jsonl").write_text(json.dumps(row) + "\n")
    report = check_dataset(read_examples(folder / "records.jsonl"))
    dataset = open_dataset(folder / "records.jsonl")
    (region,) = dataset[0].regions
    assert region.id == 7 and report.num_whole_images == dataset.num_whole_images == (region.mask is None)
    assert json.loads(json.dumps(dataset[0].to_json()))["regions"][0].keys() <= {"id", "mask", "mask_file", "branches"}
    return None if region.mask is None else as_mask(region.mask, H, W)


def dataset_rows(folder: Path, row: dict[str, Any]) -> np.ndarray | None:
    rows = datasets.Dataset.from_list([{"image": "a.png", "caption": "a cup", **row}])
    (record,) = read_examples(rows, images=folder)
    mask = record.regions[0].mask
    return None if mask is None else as_mask(mask, H, W)


def other_formats(folder: Path, row: dict[str, Any]) -> np.ndarray | None:
    """Osprey and DAM."""
    (folder / "dam.jsonl").write_text(json.dumps({"image": "a.png", "caption": "a cup", **row}) + "\n")
    (record,) = read_examples(folder / "dam.jsonl", "osprey", images=folder)
    return as_mask(record.regions[0].mask, H, W)


LINES: list[Door] = [caption_lines, caption_regions, training, dataset_rows]
DOORS: list[Door] = [python, chat, *LINES, other_formats]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (W, H)).save(tmp_path / "a.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(MASK).save(tmp_path / "masks" / "a.png")
    return tmp_path


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("form", IN_FILES)
def test_every_key_means_the_same_at_every_door(folder: Path, door: Door, form: str) -> None:
    if (form == "file" and door in (python, chat)) or (form == "GeoJSON" and door is chat):
        row = IN_FILES[form] if form == "file" else {**IN_FILES[form], "type": "image"}
        with pytest.raises(MaskError, match=r"'masks/a.png' under 'mask_file' names a file|'image' is no GeoJSON type"):
            door(folder, row)
    else:
        np.testing.assert_array_equal(door(folder, IN_FILES[form]), MASK)


UNKNOWN = "(holds a list or an object, and there is no region|means nothing here)"
NO_REGION: list[tuple[dict[str, Any], str]] = [
    ({"Mask": RLE}, "'Mask' is none of a region's; probably meant is mask"),
    ({"masks": [RLE]}, "'masks' .*; probably meant is mask"),
    ({"Box-XYXY": [2, 1, 6, 4]}, "probably meant is box_xyxy"),
    ({"polygons": [RING]}, "probably meant is polygon"),
    ({"mask_path": "masks/a.png"}, "probably meant is mask_file, the name of a mask picture"),
    (
        {"bbox": [2, 1, 4, 3]},
        r"'bbox' holds \[2, 1, 4, 3\]. They may be x, y, width, height, which is box_xyxy \[2, 1, 6, 4\], or "
        r"corners, which is box_xyxy \[2, 1, 4, 3\]. Say which: --box-format",
    ),
    ({"box": [20, 10, 4, 3.5]}, r"which is box_xyxy \[20, 10, 24, 13.5\], or corners, which is no box here"),
    ({"bbox": [2, 1, 4]}, "since a bbox is"),
    ({"xywh": [2, 1, 4, 3]}, "since a bbox is"),
    ({"mask": None, "bbox": [2, 1, 4, 3]}, "Say which"),
    ({"region": [2, 1, 6, 4]}, "'region' .*; probably meant is mask"),
    ({"points": [[2, 1], [6, 4]]}, "probably meant is polygon, an outline in pixels"),
    ({"shapes": [{"points": [[2, 1], [6, 4]]}]}, "'shapes' .*regions"),
    (
        {"thing": {"where": [2, 1, 6, 4]}},
        f"'thing' {UNKNOWN}",
    ),
    ({"marks": [2, 1, 6, 4]}, f"'marks' {UNKNOWN}"),
    ({"box_xyxy": [2, 1, 6, 4], "polygon": RING}, "more than one region: polygon, box_xyxy. Give one"),
    ({"box_xyxy": [2, 1, 6, 4], "Mask": RLE}, "'Mask' is none of a region's"),
]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(("row", "message"), NO_REGION, ids=[str(list(row)) for row, _ in NO_REGION])
def test_what_may_be_meant_as_a_region_is_never_the_whole_picture(
    folder: Path, door: Door, row: dict[str, Any], message: str
) -> None:
    with pytest.raises((MaskError, DataError), match=message):
        door(folder, row)


@pytest.mark.parametrize("door", [python, chat, training, other_formats])
@pytest.mark.parametrize("key", ["annotations", "objects"])
def test_lists_of_objects_are_named_where_one_region_is_needed(folder: Path, door: Door, key: str) -> None:
    with pytest.raises((MaskError, DataError), match=f"'{key}' .*; probably meant is regions, a list of such rows"):
        door(folder, {key: [{"segmentation": [RING]}]})


@pytest.mark.parametrize("door", [caption_lines, dataset_rows])
@pytest.mark.parametrize(
    "row",
    [
        {"annotations": [{"segmentation": [RING]}]},
        {"objects": {"bbox_xywh": [[2, 1, 4, 3]], "category": ["cup"]}},
        {"objects": [{"box": {"xmin": 2, "ymin": 1, "xmax": 6, "ymax": 4}, "label": "cup", "score": 0.9}]},
        {"bbox": [2, 1, 4, 3], "area": 12},
        {"xyxy": [2, 1, 6, 4]},
        {"bboxes_xyxy": [[2, 1, 6, 4]], "labels": ["cup"]},
    ],
    ids=lambda row: " ".join(row),
)
def test_rows_of_other_tools_are_regions_where_nothing_is_left_open(
    folder: Path, door: Door, row: dict[str, Any]
) -> None:
    np.testing.assert_array_equal(door(folder, row), as_mask({"box_xyxy": [2, 1, 6, 4]}, H, W))


@pytest.mark.parametrize("door", [chat, *LINES])
@pytest.mark.parametrize("row", [{}, {"mask": None}, {"polygon": None, "box_xyxy": None}])
def test_the_whole_picture_is_meant_where_nothing_else_can_be(folder: Path, door: Door, row: dict[str, Any]) -> None:
    assert door(folder, row) is None


@pytest.mark.parametrize("door", LINES)
def test_own_keys_are_left_alone(folder: Path, door: Door) -> None:
    assert door(folder, {"license": 4, "source": "mask of a camera", "shape": "round", "score": 0.5}) is None
    assert np.array_equal(door(folder, {**FORMS["box"], "tags": ["a"], "meta": {"b": [1]}}), MASK)
    assert door(folder, {"mask": None, "tags": ["a"], "meta": {"b": [1]}}) is None


def test_nulls_that_arrow_fills_in_are_absent(folder: Path) -> None:
    regions = [{"box_xyxy": [2, 1, 6, 4], "id": 1}, {"polygon": RING, "tags": ["a"]}, {"segmentation": [RING]}]
    inputs = open_regions(datasets.Dataset.from_list([{"image": "a.png", "regions": regions}]), images=folder)
    assert [region.carried for region in inputs[0].regions] == [{"id": 1}, {"tags": ["a"]}, {}]
    for region in inputs[0].regions:
        np.testing.assert_array_equal(as_mask(region.reference, H, W), MASK)


@pytest.mark.parametrize("door", [python, other_formats])
def test_where_a_region_is_needed_null_is_none(folder: Path, door: Door) -> None:
    with pytest.raises((MaskError, DataError), match=r"no region|no mask"):
        door(folder, {"mask": None})


def test_an_own_key_may_be_declared_for_other_formats(folder: Path) -> None:
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "a cup"}]
    row = {"image": "a.png", "conversations": turns, "meta": {"a": 1}}
    (folder / "x.json").write_text(json.dumps([row]))
    with pytest.raises(DataError, match=r"x\.json\[0\]: region: The key 'meta' holds a list or an object"):
        list(read_examples(folder / "x.json"))
    (record,) = read_examples(folder / "x.json", mapping={"own": "meta"})
    assert record.regions[0].mask is None
    (folder / "x.json").write_text(json.dumps([{**row, "box_xyxy": [2, 1, 6, 4]}]))
    with pytest.raises(DataError, match="about whole images"):
        list(read_examples(folder / "x.json", "llava", mapping={"own": "meta"}))


def test_a_region_beside_regions_is_an_error(folder: Path) -> None:
    row = {"image": "a.png", "mask": RLE, "regions": [{"branches": BRANCHES}]}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    for read in (lambda path: list(read_examples(path)), open_regions):
        with pytest.raises(DataError, match=r"rows\.jsonl:1: mask: it stands beside regions"):
            read(folder / "rows.jsonl")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"image": "a.png", "mask": RLE, "detail": "low"}, "'detail' means nothing here"),
        ({"image": "a.png", "mask": RLE, "bbox": [2, 1, 4, 3]}, "Say which"),
        ({"mask": RLE}, "'mask' stands in a part of a chat without an image"),
        ({"bbox": [2, 1, 4, 3]}, "Say which"),
    ],
)
def test_every_unknown_key_of_an_image_in_a_chat_is_an_error(part: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _with_regions({"role": "user", "content": [{"type": "image", **part}]})


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "text", "text": "What is it?", "mask": RLE}]},
        {"role": "user", "content": "What is it?", "box_xyxy": [2, 1, 6, 4]},
    ],
)
def test_a_region_beside_the_text_of_a_chat_is_an_error(message: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="stands in a part of a chat without an image, so it would be lost"):
        _with_regions(message)


def test_mask_file_that_is_not_there_or_no_mask_says_so_when_it_is_needed(folder: Path) -> None:
    Image.new("RGB", (W, H), "red").save(folder / "red.png")
    rows = [{"image": "a.png", "regions": [{"mask_file": name, "branches": BRANCHES}]} for name in ("b.png", "red.png")]
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = open_dataset(folder / "records.jsonl")
    for index, message in enumerate(("mask 'b.png': it is not there", "'red.png': The PIL image .* is coloured")):
        with pytest.raises(MaskError, match=message):
            as_mask(dataset[index].regions[0].mask, H, W)
