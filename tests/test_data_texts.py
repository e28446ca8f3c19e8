"""Training and evaluation read the files that regions are described from: annotation files, tables, our own records."""

import json
import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from describers import StubDescriber
from PIL import Image
from typer.testing import CliRunner

from finecaption_hf import as_mask
from finecaption_hf.cli import app
from finecaption_hf.cli.train import OnError, with_options
from finecaption_hf.data import DataError, Example, open_dataset, open_regions, read_examples
from finecaption_hf.data.check import check_dataset
from finecaption_hf.data.readers import NotDescribedError
from finecaption_hf.describing import describe_dataset

HEIGHT, WIDTH = 24, 32
BOXES = [[4, 6, 14, 16], [20, 1, 31, 9], [0, 0, 3, 3]]


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def feature(x0: int, y0: int, x1: int, y1: int, **properties: Any) -> dict[str, Any]:
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": properties,
    }


def geojson(folder: Path, *features: Any) -> Path:
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        picture(number).save(folder / name)
    path = folder / "regions.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def texts(example: Example) -> list[list[tuple[str | None, str | None, str]]]:
    return [[(branch.name, branch.question, branch.answer) for branch in region.branches] for region in example.regions]


def masks(example: Example) -> list[np.ndarray]:
    loaded = example.load()
    references = [example.reference(region, loaded) for region in example.regions]
    return [as_mask(reference, loaded.height, loaded.width) for reference in references]


def test_captions_in_annotation_files_are_examples(tmp_path: Path) -> None:
    answers = {"Color": "red", "Is it new?": "no", "Describe how it is lit": "from above", "shape": " "}
    path = geojson(
        tmp_path,
        feature(*BOXES[0], image="a.png", caption="a cup", id=7),
        feature(*BOXES[1], image="a.png", caption="lost", answers=answers | {"Region": "a dog"}),
        feature(*BOXES[2], image="a.png", caption=""),
        feature(*BOXES[2], image="b.png"),
        feature(*BOXES[1], image="c.png", answers={"Color": "blue"}),
    )
    reader = read_examples(path)
    with pytest.warns(UserWarning, match="left out were 2 regions without a caption"):
        found = list(reader)
    assert [example.image for example in found] == ["a.png", "c.png"] and reader.left_out.total() == 2
    assert texts(found[0]) == [
        [("region", None, "a cup")],
        [
            ("Color", None, "red"),
            (None, "Is it new?", "no"),
            (None, "Describe how it is lit", "from above"),
            ("Region", None, "a dog"),
        ],
    ]
    assert texts(found[1]) == [[("Color", None, "blue")]] and found[0].regions[0].id == 7
    assert all(np.array_equal(mask, box(*own)) for mask, own in zip(masks(found[0]), BOXES[:2], strict=True))
    with pytest.warns(UserWarning, match="left out"):
        dataset = open_dataset(path, max_regions=1, cache=tmp_path / "cache")
    assert len(dataset) == 3 and dataset[2].image == "c.png" and not (tmp_path / "cache").exists()
    assert [dataset[number].regions[0] for number in range(2)] == list(found[0].regions)


def test_examples_of_annotation_files_are_lines_of_the_own_format(tmp_path: Path) -> None:
    path = geojson(tmp_path, feature(*BOXES[0], image="a.png", caption="a cup"))
    (example,) = read_examples(path)
    (tmp_path / "own.jsonl").write_text(json.dumps(example.to_json()))
    (own,) = read_examples(tmp_path / "own.jsonl")
    assert texts(own) == texts(example) and np.array_equal(masks(own), masks(example))


def test_a_broken_region_with_a_caption_is_rejected_and_one_without_is_not(tmp_path: Path) -> None:
    circle = {"type": "Circle", "coordinates": [1, 2]}
    path = geojson(
        tmp_path,
        {**feature(*BOXES[0], image="a.png"), "geometry": circle},
        feature(*BOXES[0], image="a.png", caption="a cup"),
        {**feature(*BOXES[0], image="b.png", caption="a dog"), "geometry": circle},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = read_examples(path, on_error="skip")
        assert [example.image for example in reader] == ["a.png"] and reader.num_rejected == 1
        with pytest.raises(DataError, match=r"b.png: regions\[0\]: geometry: its type is 'Circle'"):
            open_dataset(path)


def test_a_file_without_texts_says_what_it_is_good_for(tmp_path: Path) -> None:
    path = geojson(tmp_path, *(feature(*own, image="a.png") for own in BOXES))
    message = "it has 3 regions but no text about any of them, .* can be described: finecaption describe"
    for read in (lambda: list(read_examples(path, on_error="skip")), lambda: open_dataset(path)):
        with pytest.raises(NotDescribedError, match=message):
            read()


def test_tables_with_objects_are_examples(tmp_path: Path) -> None:
    rows = [
        {
            "image": picture(number),
            "objects": {"bbox": BOXES[:2], "caption": ["a cup", None], "category": [1, 0]},
            "note": "x",
        }
        for number in range(3)
    ]
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "a.parquet", batch_size=2)
    for source in (table, tmp_path / "a.parquet", table.to_iterable_dataset()):
        with pytest.warns(UserWarning, match="3 regions without a caption"):
            found = list(read_examples(source, box_format="xyxy"))
        assert [texts(example) for example in found] == [[[("region", None, "a cup")]]] * 3
        assert all(np.array_equal(masks(example)[0], box(*BOXES[0])) for example in found)
        assert np.array_equal(np.asarray(found[2].load()), np.asarray(picture(2)))
    for source in (table, tmp_path / "a.parquet"):
        with pytest.warns(UserWarning, match="3 regions without a caption"):
            dataset = open_dataset(source, box_format="xyxy")
        assert np.array_equal(np.asarray(dataset[2].load()), np.asarray(picture(2)))
        assert np.array_equal(masks(dataset[1])[0], box(*BOXES[0]))


def test_masks_in_parquet_are_decoded_by_the_rules_of_mask_files(tmp_path: Path) -> None:
    soft = Image.fromarray(box(*BOXES[0]).astype(np.uint8) * 200)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Image(), "caption": datasets.Value("string")}
    )
    rows = [{"image": picture(), "label": soft, "caption": "a cup"}]
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "a.parquet")
    (example,) = read_examples(tmp_path / "a.parquet", threshold=0.5)
    assert np.array_equal(masks(example)[0], box(*BOXES[0])) and texts(example) == [[("region", None, "a cup")]]


def test_records_of_describe_are_examples(tmp_path: Path) -> None:
    path = geojson(tmp_path, *(feature(*own, image="a.png") for own in BOXES[:2]), feature(*BOXES[2], image="b.png"))
    (tmp_path / "b.png").write_bytes(b"broken")
    output = tmp_path / "out.jsonl"
    describe_dataset(StubDescriber, open_regions(path), output, ["color", "Is it new?", "global"])
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    for line, own in zip(lines, BOXES):  # as the records have it
        line["mask"] = {"polygon": [[own[0], own[1]], [own[2], own[1]], [own[2], own[3]], [own[0], own[3]]]}
    output.write_text("".join(json.dumps(line) + "\n" for line in lines))
    reader = read_examples(output)
    with pytest.warns(UserWarning, match="1 regions that could not be described"):
        found = list(reader)
    assert reader.format == "jsonl" and [len(example.regions) for example in found] == [2, 1]
    answers = lines[0]["answers"]
    assert texts(found[0]) == [
        [("Color", None, answers["Color"]), (None, "Is it new?", answers["Is it new?"])],
        [("global", None, answers["global"])],
    ]
    assert np.array_equal(masks(found[1])[0], box(*BOXES[1])) and found[0].regions[1].mask is None
    with pytest.warns(UserWarning, match="1 regions that could not be described"):
        dataset = open_dataset(output)
    assert list(dataset) == found


# --- finecaption data check ------------------------------------------------------------------------------------------


def check(*arguments: Any) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(app, ["data", "check", *map(str, arguments), "--json"])
    assert result.exit_code < 2 and not isinstance(result.exception, ValueError), result.output
    return result.exit_code, json.loads(result.stdout)


def test_check_counts_texts_of_annotation_files(tmp_path: Path) -> None:
    line = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}, "properties": {}}
    path = geojson(
        tmp_path, feature(*BOXES[0], image="a.png", caption="a cup"), feature(*BOXES[1], image="a.png"), line
    )
    report = check_dataset(read_examples(path))
    assert (report.format, report.num_examples, report.names) == ("geojson", 1, {"region": 1})
    assert report.left_out == {"regions without a caption": 1} and not report.problems
    assert report.notes == {"1 points and lines have no area: left out.": 1}


def test_check_looks_at_regions_where_there_are_no_texts(tmp_path: Path) -> None:
    path = geojson(
        tmp_path,
        feature(*BOXES[0], image="a.png"),
        feature(400, 400, 410, 410, image="a.png"),
        feature(*BOXES[1], image="missing.png"),
    )
    code, report = check(path)
    assert code == 1 and (report["format"], report["num_regions"], report["num_branches"]) == ("geojson", 3, 0)
    assert [problem[0] for problem in report["problems"]] == ["a.png: region 2", "image 'missing.png'"]
    assert sum(report["areas"].values()) == 1 and report["image_sizes"] == {f"{WIDTH} x {HEIGHT}": 1}
    assert report["notes"] == {"regions without a text: finecaption describe makes them": 3}


@pytest.mark.parametrize("form", ["lines", "folder"])
def test_check_takes_every_input_of_describe(form: str, tmp_path: Path) -> None:
    picture().save(tmp_path / "a.jpg")
    Image.fromarray(box(*BOXES[0]).astype(np.uint8) * 255).save(tmp_path / "a-mask.png")
    path = tmp_path
    options: list[str] = []
    if form == "lines":
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps({"image": "a.jpg", "bbox": [4, 6, 10, 10]}) + "\n")
        options = ["--box-format", "xywh"]
    code, report = check(path, *options)
    assert code == 0 and report["num_regions"] == 1 and report["areas"]["10 % to 30 %"] == 1


def test_check_names_what_is_no_data_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"title": "x"}]')
    result = CliRunner().invoke(app, ["data", "check", str(tmp_path / "a.json")])
    assert result.exit_code == 2 and "its format cannot be told" in result.output


def test_reading_options_of_train_are_those_of_the_data() -> None:
    given = {"ignore": (0, 255), "box_format": "xywh"}
    assert with_options({"a": "a.json"}, None, OnError.stop, given) == {"a": {"path": "a.json", **given}}


def coco(folder: Path, *, in_images: bool) -> Path:
    picture().save(folder / "a.png")
    xywh = [[a, b, c - a, d - b] for a, b, c, d in BOXES]
    captions = ["a cup", "a dog", None]
    numbers = range(3)
    images: list[dict[str, Any]] = [{"id": n, "file_name": "a.png", "width": WIDTH, "height": HEIGHT} for n in numbers]
    annotations: list[dict[str, Any]] = [
        {"id": n, "image_id": n, "category_id": 1, "bbox": xywh[n], "segmentation": [], "area": 9} for n in numbers
    ]
    for entry, caption in zip(images if in_images else annotations, captions, strict=True):
        entry |= {} if caption is None else {"caption": caption}
    path = folder / "coco.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]})
    )
    return path


def test_captions_of_coco_annotations_are_examples_and_refcoco_is_read_as_before(tmp_path: Path) -> None:
    reader = read_examples(coco(tmp_path, in_images=False))
    with pytest.warns(UserWarning, match="1 regions without a caption"):
        found = list(reader)
    assert reader.format == "coco" and [region for example in found for region in texts(example)] == [
        [("region", None, "a cup")],
        [("region", None, "a dog")],
    ]
    assert np.array_equal(masks(found[0])[0], box(*BOXES[0]))
    assert read_examples(coco(tmp_path, in_images=True)).format == "refcoco"
