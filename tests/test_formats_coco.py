"""COCO's family of files: pixels as pycocotools has them, joins in any order, texts put back with all else equal."""

import functools
import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_files import CATEGORIES, SQUARE, STAR, H, W, annotation, disc, image, opened, pixels, rle, runs, write
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from typer.testing import CliRunner

from finecaption_hf import MaskError, as_mask
from finecaption_hf.cli import app
from finecaption_hf.data import DataError, ReadOptions, open_regions
from finecaption_hf.data.annotations import elements, open_annotations, recognise, see, seeing
from finecaption_hf.data.annotations.coco_pixels import CocoRegion, coco_polygons
from finecaption_hf.data.annotations.coco_writing import write_coco
from finecaption_hf.data.annotations.writing import texts_of
from finecaption_hf.data.json_stream import JsonStream
from finecaption_hf.data.readers.detection import detect_format

# --- pixels ----------------------------------------------------------------------------------------------------------

_fifths = st.integers(-40, 400).map(lambda n: n / 5)
_coordinate = st.floats(-10, 75) | _fifths | _fifths.map(lambda x: x + 0.1) | st.integers(-3, 70).map(float)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(_coordinate, min_size=6, max_size=24).map(lambda p: p[: len(p) // 2 * 2]), min_size=1, max_size=3)
)
def test_polygons_have_the_pixels_that_pycocotools_gives_them(parts: list[list[float]]) -> None:
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, H, W))).astype(bool)
    assert np.array_equal(coco_polygons(parts, H, W), expected)


def test_long_edges_far_outside_have_the_pixels_that_pycocotools_gives_them() -> None:
    draw = random.Random(0)
    for _ in range(40):
        part = [round(draw.uniform(-3000, 5000), draw.choice((0, 1, 2))) for _ in range(2 * draw.randint(3, 9))]
        expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([part], 300, 500))).astype(bool)
        assert np.array_equal(coco_polygons([part], 300, 500), expected)


def test_every_form_of_a_segmentation_decodes_as_pycocotools_decodes_it(tmp_path: Path) -> None:
    crowd = runs(disc(10, 12, 30) & ~disc())
    given_ones = [
        annotation(1, 7, [STAR]),
        annotation(2, 7, [STAR, SQUARE]),
        annotation(3, 7, crowd, iscrowd=1),
        annotation(4, 7, rle(disc()), iscrowd=0),
        annotation(5, 7, rle(disc()), iscrowd=1),
    ]
    path = write(tmp_path / "instances.json", [image(7)], given_ones)
    tool = COCO(str(path))
    _, (row,) = opened(path)
    assert row["image"] == "7.jpg" and row["id"] == 7 and len(row["regions"]) == 5
    for region in row["regions"]:
        entry = tool.anns[region["id"]]
        assert np.array_equal(pixels(region), tool.annToMask(entry).astype(bool))
        assert region["label"] == "cat" and region["iscrowd"] == entry["iscrowd"] and region["category_id"] == 3
        assert "segmentation" not in region


def test_slivers_that_pycocotools_draws_nothing_of_still_mark_a_pixel_and_no_area_is_an_error() -> None:
    sliver = [3.1, 3.1, 3.2, 3.1, 3.2, 3.2]
    assert not coco_polygons([sliver], H, W).any()
    assert as_mask(CocoRegion((H, W), (sliver,)), H, W).sum() == 1
    with pytest.raises(MaskError):
        as_mask(CocoRegion((H, W), ([1.0, 1.0, 9.0, 9.0, 5.0, 5.0],)), H, W)


def test_regions_for_a_picture_of_another_size_are_refused_with_both_sizes() -> None:
    region = CocoRegion((H, W), (STAR,))
    with pytest.raises(MaskError, match=r"of 40x60 \(height x width\), but the picture is 80x120\. Give the pictures"):
        as_mask(region, 2 * H, 2 * W)
    with pytest.raises(MaskError, match=r"sides are swapped.*--stored-orientation"):
        as_mask(region, W, H)
    assert as_mask(CocoRegion(None, (STAR,)), 2 * H, 2 * W).any()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([[0, 0, float("nan"), 5, 5, 5]], "no position"),
        ([[0, 0, 1e12, 5, 5, 5]], "no position"),
        ([[0, 0, "a", 5, 5, 5]], "of type str"),
        ([SQUARE] * 10_001, "10001 polygons"),
        ([[0, 0, 4000, 3000] * 100_000], "too complex"),
        ([[0, 0, 4000, 0, 4000, 3000, 0, 3000]] * 9_000, "too complex"),
    ],
)
def test_hostile_polygons_end_in_an_error(parts: Any, message: str) -> None:
    with pytest.raises(MaskError, match=message):
        coco_polygons(parts, 300, 400)


# --- instances and what is written like them -------------------------------------------------------------------------


def _everything() -> tuple[list[Any], list[Any]]:
    images = [image(5), image("a", "sub/a.jpg"), image(12, license=2), image("-3"), image(5, "twice.jpg"), "odd"]
    annotations = [
        annotation(1, 12, caption="An old text."),
        annotation("x", "5", rle(disc())),
        annotation(2, 99),
        annotation(3, "a", [], bbox=[1.0, 2.0, 3.0, 4.0]),
        annotation(4, -3),
        "odd",
        annotation(6, 12.0),
        annotation(7, None),
        annotation(8, 5, [], bbox=[1, 2, 0, 4]),
    ]
    return images, annotations


def test_annotations_find_their_image_in_any_order_and_nothing_is_lost(tmp_path: Path) -> None:
    images, annotations = _everything()
    file, rows = opened(write(tmp_path / "a.json", images, annotations))
    assert [row["id"] if isinstance(row, dict) else str(row) for row in rows] == [
        *(5, "a", 12, "-3"),
        "a.json: images[4]: id: an image before it has the same one, and all of its annotations.",
        "a.json: images[5]: an object is needed.",
        "a.json: annotations[2]: it belongs to no image: there is none with its id.",
        "a.json: annotations[5]: it belongs to no image: there is none with its id.",
        "a.json: annotations[7]: it belongs to no image: there is none with its id.",
    ]
    assert [[region["id"] for region in row["regions"]] for row in rows[:4]] == [["x", 8], [3], [1, 6], [4]]
    assert isinstance(rows[0]["regions"][1]["mask"], DataError)
    assert rows[2]["license"] == 2 and rows[2]["regions"][0]["caption"] == "An old text."
    assert file.notes == ["1 annotations have no outline: their boxes are the regions."]
    inputs = open_regions(tmp_path / "a.json")
    assert inputs.title == "COCO instances" and inputs.num_regions == 11
    # A box becomes [x, y, x + width, y + height].
    expected = np.zeros((H, W), bool)
    expected[2:6, 1:4] = True
    assert np.array_equal(pixels(rows[1]["regions"][0]), expected)


def test_files_larger_than_the_limit_are_read_in_turn_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, annotations = _everything()
    annotations[0]["caption"] = "Ein Kätzchen \U0001f408, \ud83d und ]},{"
    texts = []
    for indent, ascii_only in ((None, True), (2, False)):
        text = json.dumps(
            {"annotations": annotations[:5], "info": {"images": [1]}, "images": images[:4]},
            indent=indent,
            ensure_ascii=ascii_only,
        )
        texts.append(text.replace("\ud83d", "").encode())
    texts.append(b"\xef\xbb\xbf" + texts[1])
    for number, text in enumerate(texts):
        path = tmp_path / f"{number}.json"
        path.write_bytes(text)
        lists = {"images": "id", "annotations": "image_id"}
        with monkeypatch.context() as patched:
            at_once, _ = elements.index_lists(path, lists)
            patched.setattr(elements, "MAX_IN_MEMORY", 0)
            patched.setattr(elements, "JsonStream", functools.partial(JsonStream, chunk_bytes=64))
            in_turn, _ = elements.index_lists(path, lists)
            _, rows = opened(path)
        for name in lists:
            for attribute in ("offsets", "lengths", "codes"):
                assert np.array_equal(getattr(at_once[name], attribute), getattr(in_turn[name], attribute))
            for offset, length in zip(in_turn[name].offsets, in_turn[name].lengths):
                assert isinstance(json.loads(text[offset : offset + length]), dict)
        assert repr(rows) == repr(opened(path)[1])


def test_memory_does_not_grow_with_files_that_are_read_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    annotations = [annotation(n, n % 50, [[float(k) for k in range(400)]]) for n in range(1000)]
    path = write(tmp_path / "large.json", [image(n) for n in range(50)], annotations)
    monkeypatch.setattr(elements, "MAX_IN_MEMORY", 0)
    monkeypatch.setattr(elements, "JsonStream", functools.partial(JsonStream, chunk_bytes=2**14))
    monkeypatch.setattr(seeing, "JsonStream", functools.partial(JsonStream, chunk_bytes=2**14))
    tracemalloc.start()
    file = open_annotations(path, ReadOptions())
    assert sum(len(row["regions"]) for _, row in file.scan()) == 1000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 2.3e6 and peak < 1e6


def test_degenerate_parts_are_left_out_with_a_note_and_without_any_other_part_it_is_an_error(tmp_path: Path) -> None:
    annotations = [annotation(1, 5, [[1, 1, 9, 9], STAR]), annotation(2, 5, [[1, 1, 9, 9]]), annotation(3, 5, STAR)]
    annotations += [annotation(4, 5, []), annotation(5, 5, "abc"), annotation(6, 5, [STAR, 7]), annotation(True, 5)]
    file, (row,) = opened(write(tmp_path / "a.json", [image(5)], annotations))
    first, *bad = row["regions"]
    assert np.array_equal(pixels(first), coco_polygons([STAR], H, W))
    assert np.array_equal(pixels(bad.pop(1)), coco_polygons([STAR], H, W))
    messages = [str(region["mask"]) for region in bad]
    for message, part in zip(
        messages,
        (
            "fewer than three points",
            "neither a segmentation nor a bbox",
            "text arrived",
            "a number arrived among",
            "id:",
        ),
    ):
        assert part in message
    assert file.notes == ["1 polygons of fewer than three points were left out of their regions."]


def test_captions_of_images_belong_to_their_only_annotation_as_in_refcoco(tmp_path: Path) -> None:
    images = [image(n, "same.jpg", caption=f"text {n}") for n in (1, 2)]
    images += [image(3, caption="a picture with two")]
    annotations = [annotation(11, 1), annotation(12, 2), annotation(13, 3), annotation(14, 3)]
    path = write(tmp_path / "refcoco.json", images, annotations)
    _, rows = opened(path)
    assert [row["regions"][0].get("caption") for row in rows] == ["text 1", "text 2", None]
    assert rows[2]["caption"] == "a picture with two"
    assert detect_format(path) == "refcoco"  # its texts are for training as they are
    item = open_regions(path)[0]
    assert [region.carried["caption"] for region in item.regions] == ["text 1", "text 2"]


def test_lvis_names_pictures_by_the_end_of_their_address(tmp_path: Path) -> None:
    lvis = pytest.importorskip("lvis", reason="lvis is not installed: pip install .[annotation-tools]")
    entry = {
        "id": 391895,
        "height": H,
        "width": W,
        "coco_url": "http://images.cocodataset.org/train2017/000000391895.jpg",
    }
    entry |= {"neg_category_ids": [1], "not_exhaustive_category_ids": []}
    path = write(tmp_path / "lvis_v1_val.json", [entry], [annotation(1, 391895, [STAR, SQUARE])])
    tool = lvis.LVIS(str(path))
    _, (row,) = opened(path)
    assert row["image"] == "train2017/000000391895.jpg" and row["neg_category_ids"] == [1]
    assert np.array_equal(pixels(row["regions"][0]), tool.ann_to_mask(tool.anns[1]).astype(bool))


def test_a_long_list_of_images_before_the_annotations_does_not_hide_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeing, "_MAX_SKIPPED_BYTES", 0)
    monkeypatch.setattr(seeing, "JsonStream", functools.partial(JsonStream, chunk_bytes=64))
    images = [image(n) for n in range(50)]
    segments = {"image_id": 1, "file_name": "1.png", "segments_info": []}
    for name, first in (("coco", annotation(1, 1)), ("coco-panoptic", segments)):
        path = write(tmp_path / "a.json", images, [first])
        assert "annotations" not in see(path).json
        assert [each.format for each in recognise(path)] == [name]


@pytest.mark.parametrize(
    "text",
    [
        b'{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}',
        b'{"annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4], "x": NaN}], "images": []}',
        b'{"annotations": [{"image_id": 1, "bbox": ' + b"[" * 100_000 + b'}], "images": []}',
        b'{"annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}], "images": 5}',
        b'{"annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}]}',
    ],
)
def test_broken_files_are_an_error_that_names_the_file(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(text)
    with pytest.raises(DataError, match=r"broken\.json"):
        open_annotations(path, ReadOptions(format="coco"))


def test_an_element_that_is_no_text_is_an_error_in_its_place(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [image(5)], [annotation(1, 5, note="?"), annotation(2, 5)])
    path.write_bytes(path.read_bytes().replace(b"?", b"\xff"))
    _, (row,) = opened(path, format="coco")
    assert "no JSON" in str(row["regions"][0]["mask"]) and pixels(row["regions"][1]).any()


def test_captions_of_whole_pictures_are_an_error_that_names_what_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "captions_val.json", [image(5)], [{"id": 1, "image_id": 5, "caption": "A cat."}])
    with pytest.raises(DataError, match="neither a segmentation nor a bbox"):
        open_regions(path)


def test_an_annotation_that_is_too_long_is_an_error_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elements, "MAX_ELEMENT_BYTES", 2000)
    path = write(tmp_path / "a.json", [image(5)], [annotation(1, 5, [[0.5] * 1000]), annotation(2, 5)])
    _, (row,) = opened(path)
    assert "more than 2000" in str(row["regions"][0]["mask"]) and pixels(row["regions"][1]).any()


def test_hostile_numbers_and_sizes_end_in_an_error(tmp_path: Path) -> None:
    huge = {"size": [10**9, 10**9], "counts": "abc"}
    annotations = [annotation(1, 10**40, huge), annotation(2, 5, huge), annotation(3, 5, [], bbox=[1, 2, 1e999, 4])]
    text = json.dumps({"images": [image(5), image(10**40)], "annotations": annotations})
    (tmp_path / "a.json").write_text(text.replace("Infinity", "1e999"))
    _, (row, refused) = opened(tmp_path / "a.json")
    assert isinstance(refused, DataError)
    for region in row["regions"]:
        with pytest.raises((MaskError, DataError)):
            if isinstance(region["mask"], DataError):
                raise region["mask"]
            pixels(region)


# --- results ---------------------------------------------------------------------------------------------------------


def _results() -> list[dict[str, Any]]:
    return [
        {"image_id": 5, "category_id": 3, "segmentation": rle(disc()), "score": 0.9},
        {"image_id": 5, "category_id": 90, "bbox": [1.3, 2.55, 30.1, 4.4], "score": 0.5},
    ]


def test_results_find_names_in_the_only_coco_file_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "coco_instances_results.json"
    path.write_text(json.dumps(_results()))
    with pytest.raises(DataError, match=r"know pictures by their ids only.*--image-list FILE\.$"):
        open_regions(path)
    source = write(tmp_path / "val.json", [image(5), image(6)], [])
    file, (row, empty) = opened(path)
    assert file.format == "coco-results" and empty["regions"] == []
    assert [region["label"] for region in row["regions"]] == ["cat", "toothbrush"]
    assert [region["score"] for region in row["regions"]] == [0.9, 0.5]
    for region, result in zip(row["regions"], _results()):
        tool = COCO(str(source)).loadRes([result])
        assert np.array_equal(pixels(region), tool.annToMask(tool.anns[1]).astype(bool))
    assert str(source) in file.notes[0]
    write(tmp_path / "train.json", [image(5)], [])
    with pytest.raises(DataError, match=r"It may be train\.json, val\.json"):
        open_regions(path)
    assert open_regions(path, image_list=source).num_regions == 2


def test_pictures_of_the_folder_beside_annotations_are_found(tmp_path: Path) -> None:
    """As COCO is unpacked: annotations/instances_val2017.json, val2017/000000000005.jpg."""
    for name in ("annotations", "val2017", "train2017"):
        (tmp_path / name).mkdir()
    shown = image(5)
    Image.new("RGB", (shown["width"], shown["height"]), "red").save(tmp_path / "val2017" / shown["file_name"])
    Image.new("RGB", (8, 8)).save(tmp_path / "train2017" / "other.jpg")
    region = {"id": 1, "image_id": 5, "category_id": 1, "segmentation": [], "bbox": [1, 1, 4, 4]}
    path = write(tmp_path / "annotations" / "instances_val2017.json", [shown], [region])
    assert open_regions(path)[0].load().size == (shown["width"], shown["height"])


# --- texts back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 2**29])
@pytest.mark.parametrize("indent", [None, 1])
def test_captions_go_back_into_annotations_and_all_else_is_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, indent: int | None
) -> None:
    monkeypatch.setattr(elements, "MAX_IN_MEMORY", limit)
    images = [image(5), image(6, "größe.jpg")]
    annotations = [annotation(1, 6, bbox=[1.50, 2, 3, 4], area=1e22), annotation(2, 5, caption="old"), annotation(3, 6)]
    annotations += [annotation(4, 77), annotation(5, 6, attributes={"occluded": True})]
    content = {"annotations": annotations, "images": images, "categories": CATEGORIES, "info": {"a": [1.0]}}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=False), encoding="utf-8")
    before = path.read_bytes()
    file, _ = opened(path)
    # In the order of rows: annotation 2; 1, 3 and 5.
    answers = [{"region": "new"}, {"region": "één"}, None, {"Color": "red", "Shape": "round"}]
    with pytest.raises(DataError, match="into the original"):
        file.write_back(iter(answers), path)
    file.write_back(iter(answers), tmp_path / "out.json")
    assert path.read_bytes() == before and not [*tmp_path.glob("*.partial")]
    expected = json.loads(json.dumps(content))
    expected["annotations"][0]["caption"], expected["annotations"][1]["caption"] = "één", "new"
    expected["annotations"][4]["caption"] = "Color: red\nShape: round"
    expected["annotations"][4]["attributes"] |= {"Color": "red", "Shape": "round"}
    tool, written = COCO(str(path)), COCO(str(tmp_path / "out.json"))
    assert written.dataset == expected
    for number in (1, 2, 3, 5):
        assert np.array_equal(written.annToMask(written.anns[number]), tool.annToMask(tool.anns[number]))


def test_captions_go_back_into_results(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    results.write_text(json.dumps(_results()))
    source = write(tmp_path / "val.json", [image(5)], [])
    file, _ = opened(results, image_list=source)
    file.write_back(iter([{"region": "a"}, None]), tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == [_results()[0] | {"caption": "a"}, _results()[1]]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    file, _ = opened(write(tmp_path / "a.json", [image(5)], [annotation(1, 5)]))

    def answers() -> Any:
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        file.write_back(answers(), tmp_path / "out.json")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_the_caption_is_the_answer_to_region_or_dense_where_one_was_asked() -> None:
    assert texts_of({"Color": "red"}) == ("red", {})
    assert texts_of({"Color": "red", "Dense": "long"}) == ("long", {"Color": "red", "Dense": "long"})
    assert texts_of({"Color": "red", "Why?": "so"})[0] == "Color: red\nWhy?: so"


# --- new files -------------------------------------------------------------------------------------------------------


def test_records_become_a_coco_file_that_pycocotools_loads(tmp_path: Path) -> None:
    first = {"image": "a.jpg", "region_index": 0, "mask": rle(disc()), "answers": {"region": "A disc."}, "score": 0.5}
    box = {"box_xyxy": [21, 11, 40, 30], "area": int(disc().sum())}
    records = [
        {**first, **box, "id": 12, "label": "plate", "image_id": 9, "category_id": 51, "iscrowd": 1},
        {
            **first,
            "region_index": 1,
            "mask": rle(disc(r=3)),
            "answers": {"dense": "Small.", "Color": "red"},
            "image_id": 9,
        },
        {"image": "b.jpg", "region_index": 0, "mask": rle(disc(r=4)), "id": 12, "image_id": "b", "errors": {}},
        {"image": "c.jpg", "region_index": 0, "error": {"type": "MaskError", "message": "empty"}},
        {"image": "d.jpg", "region_index": 0, "mask": None, "box_xyxy": [0, 0, W, H], "area": H * W, "answers": {}},
    ]
    target = tmp_path / "captions.json"
    assert write_coco(records, target) == 1
    tool = COCO(str(target))
    assert {number: entry["file_name"] for number, entry in tool.imgs.items()} == {9: "a.jpg", "b": "b.jpg", 1: "d.jpg"}
    one, two, three, whole = tool.dataset["annotations"]
    assert [entry["id"] for entry in (one, two, three)] == [12, 1, 2]
    assert one["caption"] == "A disc." and one["score"] == 0.5 and one["iscrowd"] == 1 and "attributes" not in one
    assert two["caption"] == "Small." and two["attributes"] == {"dense": "Small.", "Color": "red"}
    assert "caption" not in three and "errors" not in three
    assert [tool.cats[entry["category_id"]]["name"] for entry in (one, two, three)] == ["plate", "region", "region"]
    assert one["category_id"] == 51 and tool.annToMask(whole).all()
    for entry, expected in ((one, disc()), (two, disc(r=3)), (three, disc(r=4))):
        assert np.array_equal(tool.annToMask(entry).astype(bool), expected)
        assert entry["area"] == expected.sum()
        assert entry["bbox"] == coco_mask.toBbox(entry["segmentation"]).tolist()
    # It is read as regions again, with the same pixels, labels and texts.
    _, rows = opened(target)
    assert [region["caption"] for region in rows[0]["regions"]] == ["A disc.", "Small."]
    assert np.array_equal(pixels(rows[1]["regions"][0]), disc(r=4))


def test_no_records_become_a_coco_file_without_annotations(tmp_path: Path) -> None:
    assert write_coco([], tmp_path / "out.json") == 0
    assert COCO(str(tmp_path / "out.json")).dataset == {"images": [], "annotations": [], "categories": []}


# --- the command line ------------------------------------------------------------------------------------------------


def test_describe_takes_results_with_the_file_of_their_images(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "photos").mkdir()
    results, records = tmp_path / "results" / "results.json", tmp_path / "captions.jsonl"
    results.write_text(json.dumps(_results()))
    source = write(tmp_path / "val.json", [image(5), image(6)], [])
    Image.new("RGB", (W, H), "red").save(tmp_path / "photos" / "5.jpg")
    command = ["describe", str(results), "--output", str(records), "--images", str(tmp_path / "photos")]
    command += ["--max-new-tokens", "3", "--device", "cpu"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2 and "--image-list FILE" in done.output
    done = CliRunner().invoke(app, [*command, "--image-list", str(source)])
    assert done.exit_code == 0, done.output
    assert "read as results in COCO's form, 2 regions." in done.output
    assert "1 pictures have no region" in done.output
    first, second = map(json.loads, records.read_text(encoding="utf-8").splitlines())
    assert (first["image"], first["image_id"], first["label"], first["score"]) == ("5.jpg", 5, "cat", 0.9)
    assert first["area"] == disc().sum() and second["label"] == "toothbrush"
