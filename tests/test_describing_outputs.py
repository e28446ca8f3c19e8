"""What comes out of `describe`: JSON Lines that are input again, tables, pages, and texts put back into files."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from describers import StubDescriber
from PIL import Image

from finecaption_hf.data import open_regions
from finecaption_hf.data.encoding import encode_rle
from finecaption_hf.data.images import MaskFile
from finecaption_hf.describing import Options, Result, describe_dataset
from finecaption_hf.masks_finecaption import as_mask

SIZE = (40, 30)  # width, height


def pixels(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8))


def mask(number: int = 0) -> np.ndarray:
    made = np.zeros(SIZE[::-1], dtype=bool)
    made[number : number + 9, 3 : 12 + number] = True
    made[number + 2, 5] = False
    return made


def write(folder: Path, *rows: Any) -> Path:
    """A JSONL file with small pictures a.png to c.png; text stands for a line as it is."""
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate("abc"):
        pixels(seed).save(folder / f"{name}.png")
    path = folder / "rows.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def describe(source: Any, output: Path, questions: Any = "color", **options: Any) -> Result:
    describer = options.pop("describer", None) or StubDescriber()
    reading = {name: options.pop(name) for name in ("images", "format") if name in options}
    inputs = open_regions(source, **reading)
    return describe_dataset(lambda: describer, inputs, output, questions, Options(batch_size=2), **options)


def records(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


# --- JSON Lines -------------------------------------------------------------------------------------------------------

EVERYTHING = (
    {"image": "a.png", "id": 7, "mask": encode_rle(mask()), "label": "a dog", "own": {"bbox": [1, 2]}, "bbox": None},
    {"image": "a.png", "id": "7", "box_xyxy": [1, 2, 9.5, 8], "questions": ["shape", "Is it new?"]},
    {"image": "a.png", "image_id": 12, "polygon": [1, 1, 20, 1, 20, 20], "bbox": [1, 1, 19, 19]},
    {"image": "b.png", "id": 5, "source": "x", "regions": [{"id": 1, "mask_file": "m.png"}, encode_rle(mask(2))]},
    {"image": "c.png"},
    {"image": "c.png", "mask": None, "notes": [[1, 2]]},
)
FAILING = (
    {"image": "a.png", "id": 1, "box_xyxy": [900, 900, 950, 950]},
    {"image": "a.png", "mask_file": "gone.png"},
    {"image": "gone.png", "mask": encode_rle(mask()), "label": "a dog"},
    {"image": "gone.png", "mask": None},
    {"image": "a.png", "mask": encode_rle(mask()), "polygon": [1, 1, 20, 1, 20, 20]},
    {"image": "a.png", "mask": encode_rle(mask()), "questions": 5},
    {"image": "b.png", "bbox": [1, 2, 3, 4], "id": 3},
    {"image": "b.png", "counts": "x", "size": [3, 4]},
    {"mask": encode_rle(mask())},
    '{"image": "a.png", "box_',
)


def test_records_have_mask_size_ids_and_own_keys(tmp_path: Path) -> None:
    source = write(tmp_path, *EVERYTHING)
    Image.fromarray(mask(1)).save(tmp_path / "m.png")
    describe(source, tmp_path / "out.jsonl")
    found = records(tmp_path / "out.jsonl")
    assert [as_mask(record["mask"], *SIZE[::-1]).sum() for record in found] == [record["area"] for record in found]
    assert [record["mask"] for record in found[3:5]] == [encode_rle(mask(1)), encode_rle(mask(2))]
    assert [record["mask"] for record in found[5:]] == [None, None]
    assert found[5]["box_xyxy"] == [0, 0, *SIZE]
    assert all(record["mask"]["size"] == list(SIZE[::-1]) for record in found[:5])
    assert [record.get("id") for record in found] == [7, "7", None, 1, None, None, None]
    assert [record.get("image_id") for record in found] == [None, None, 12, 5, 5, None, None]
    assert (found[0]["label"], found[0]["own"], found[3]["source"]) == ("a dog", {"bbox": [1, 2]}, "x")
    assert found[1]["questions"] == ["shape", "Is it new?"]


def test_records_are_input_that_gives_the_same_regions(tmp_path: Path) -> None:
    source = write(tmp_path, *EVERYTHING)
    Image.fromarray(mask(1)).save(tmp_path / "m.png")
    describe(source, tmp_path / "out.jsonl")
    again = open_regions(tmp_path / "out.jsonl")
    first = open_regions(source)
    assert (again.num_regions, again.num_whole_images) == (first.num_regions, first.num_whole_images) == (7, 2)
    describe(tmp_path / "out.jsonl", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()
    # The mask counts, not the box around it; and of the records that a pipeline gives, the box.
    item = again[0]
    picture = item.load()
    assert np.array_equal(as_mask(item.reference(item.regions[0]), picture.height, picture.width), mask())
    row = {"image": "a.png", "region_index": 0, "box_xyxy": [1, 2, 5, 6], "area": 16, "answers": {"Color": "red"}}
    item = open_regions(write(tmp_path, row))[0]
    assert item.regions[0].reference == {"box_xyxy": [1, 2, 5, 6]}


def test_failed_regions_keep_what_they_were(tmp_path: Path) -> None:
    source = write(tmp_path, *FAILING, EVERYTHING[0])
    assert describe(source, tmp_path / "out.jsonl").failed == len(FAILING)
    found = records(tmp_path / "out.jsonl")
    kept = [{key: record.get(key, "absent") for key in ("mask", "mask_file")} for record in found[: len(FAILING)]]
    rle = encode_rle(mask())
    assert [each["mask"] for each in kept] == [
        {"box_xyxy": [900, 900, 950, 950]},
        "absent",
        rle,
        None,
        {"mask": rle, "polygon": [1, 1, 20, 1, 20, 20]},
        rle,
        "absent",
        {"counts": "x", "size": [3, 4]},
        rle,
        "absent",
    ]
    assert [each["mask_file"] for each in kept if each["mask_file"] != "absent"] == ["gone.png"]
    assert found[2]["label"] == "a dog" and found[0]["id"] == 1 and found[6]["id"] == 3
    # Read again they fail again, for the same reasons; but for the question that was none, which is not kept.
    again = open_regions(tmp_path / "out.jsonl")
    assert [region.as_given().get("mask") for region in again[0].regions[:1]] == [kept[0]["mask"]]
    assert again.num_whole_images == 1
    describe(tmp_path / "out.jsonl", tmp_path / "again.jsonl")
    found_again = records(tmp_path / "again.jsonl")
    assert [number for number, record in enumerate(found_again) if "error" not in record] == [5, len(FAILING)]
    for number in (0, 1, 2, 3, 6, 7, 9, 10):
        assert found_again[number] == found[number]
    # Once the cause is mended they are described.
    pixels(9).save(tmp_path / "gone.png")
    Image.fromarray(mask(3)).save(tmp_path / "mask.png")
    describe(tmp_path / "out.jsonl", tmp_path / "mended.jsonl")
    mended = records(tmp_path / "mended.jsonl")
    assert (mended[2]["mask"], mended[3]["mask"], mended[3]["area"]) == (rle, None, SIZE[0] * SIZE[1])


def test_failed_regions_of_a_data_set_do_not_become_whole_pictures(tmp_path: Path) -> None:
    source = write(tmp_path, EVERYTHING[0], FAILING[6])
    describe(source, tmp_path / "out.jsonl")
    found = records(tmp_path / "out.jsonl")
    columns = dict.fromkeys(key for record in found for key in record)
    rows = datasets.Dataset.from_dict({key: [record.get(key) for record in found] for key in columns})
    inputs = open_regions(rows, images=tmp_path)
    assert (inputs.num_regions, inputs.num_whole_images) == (2, 0)
    assert str(inputs[1].regions[0].error) == found[1]["error"]["message"]


def test_mask_files_of_failed_regions_are_mask_files_again(tmp_path: Path) -> None:
    describe(write(tmp_path, FAILING[1], EVERYTHING[0]), tmp_path / "out.jsonl")
    assert open_regions(tmp_path / "out.jsonl")[0].regions[0].reference == MaskFile("gone.png")
