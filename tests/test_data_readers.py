"""Readers of all formats, on small files that the tests write from the formats' descriptions."""

import base64
import gzip
import io
import json
import random
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RealRegion
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from finecaption_hf.data import FORMATS, Branch, DataError, Example, Region, open_dataset, read_examples
from finecaption_hf.data.encoding import encode_rle
from finecaption_hf.data.json_stream import JsonStream
from finecaption_hf.data.readers.texts import without_entities
from finecaption_hf.masks_finecaption import as_mask

H, W = 6, 8
MASK = np.zeros((H, W), dtype=bool)
MASK[1:4, 2:6] = True
BLOB = base64.b64encode(gzip.compress(MASK.astype(np.uint8).tobytes())).decode()
RLE = encode_rle(MASK)
POLYGON = [[2, 1, 6, 1, 6, 4, 2, 4]]
NAMES = ["compositioncap", "refcoco", "grand", "llava", "osprey", "dam", "jsonl"]


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]


COMPOSITIONCAP = [
    {
        "image": "a.jpg",
        "image_id": 5,
        "global_caption": "A man (entity_id_1) and a dog (entity_id_2).",
        "entities": [
            {
                "entity_id": "entity_id_1",
                "mask": BLOB,
                "dense_caption": "The man (entity_id_1) walks the dog (entity_id_2) , slowly.",
                "attributes": {"Color": "blue", "Hair": ["short", "grey"]},
            },
            {"entity_id": 2, "mask": BLOB, "attributes": [{"name": "Shape", "description": "round"}]},
            {"entity_id": 3, "mask": BLOB, "attributes": {}},
        ],
    }
]
REFCOCO = {
    "info": {"nested": [1, {"a": "]}"}]},
    "images": [
        {"id": 1, "file_name": "a.jpg", "height": H, "width": W, "original_id": 9, "caption": "the left cup"},
        {"id": 2, "file_name": "b.jpg", "height": H, "width": W, "original_id": 8, "caption": "a cat"},
        {"id": 3, "file_name": "a.jpg", "height": H, "width": W, "original_id": 9, "caption": "a red cup"},
        {"id": 4, "file_name": "a.jpg", "height": H, "width": W, "original_id": 9, "caption": "a table"},
    ],
    "annotations": [
        {"id": 13, "image_id": 3, "segmentation": POLYGON, "bbox": [2, 1, 4, 3], "iscrowd": 0},
        {"id": 11, "image_id": 1, "segmentation": POLYGON, "bbox": [2, 1, 4, 3], "iscrowd": 0},
        {"id": 12, "image_id": 2, "segmentation": RLE},
        {"id": 14, "image_id": 4, "segmentation": [[0, 0, 4, 0, 4, 4]]},
    ],
    "categories": [],
}
GRAND = {
    "sa_1.jpg": {
        "objects": [
            {
                "id": 0,
                "bbox": [2, 1, 6, 4],
                "segmentation": RLE,
                "labels": ["fire_truck", "truck"],
                "attributes": ["a red truck"],
            },
            {"id": 1, "bbox": [0, 0, 4, 2], "labels": ["sky"], "attributes": None},
            {"id": 2, "bbox": [0, 0, 4, 2], "labels": [], "attributes": []},
        ],
        "dense_caption": {"caption": "A truck below the sky.", "details": []},
    }
}
LLAVA = [
    {"id": "x1", "image": "00/1.jpg", "conversations": turns("Describe it.\n<image>", "a cup")},
    {"id": "x2", "image": "00/2.jpg", "conversations": turns("<image>\nWhat is it?", "a dog", "What color?", "brown")},
]
OSPREY = [
    {
        "file_name": "a.jpg",
        "height": H,
        "width": W,
        "annotation": [{"bbox": [2, 1, 4, 3], "segmentation": POLYGON}, {"bbox": [0, 0, 4, 4], "segmentation": RLE}],
        "conversations": turns(
            "What is <region2> made of?",
            "region2 is made of wood.",
            "And its color?",
            "Brown.",
            "Who stands near <region1>?",
            "Nobody.",
            "What do <region1> and <region2> have in common?",
            "Nothing.",
        ),
    },
    {
        "file_name": "b.jpg",
        "height": H,
        "width": W,
        "annotation": [{"segmentation": POLYGON}, {"segmentation": RLE}],
        "description": ["<region1>: A cup with a handle.", "<region2>: A plate."],
    },
]
DAM = [
    {"image": "a.jpg", "mask_rle": RLE, "conversations": turns("<image>\nDescribe <mask> in detail.", "A cup.")},
    {"image": "b.jpg", "mask_rle": [RLE, RLE], "conversations": turns("Is <mask><pos> red?", "Yes.", "<mask>?", "No.")},
    {"image": "c.jpg", "segmentation": RLE, "caption": "A small cup."},
]
OWN = [
    {"image": "a.jpg", "regions": [{"mask": RLE, "branches": [{"name": "Color", "answer": "red"}]}]},
    {"image": "b.jpg", "regions": [{"branches": [{"question": "What is it?", "answer": "a cup"}]}]},
]


def as_jsonl(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def content(name: str) -> str:
    own = {"compositioncap": COMPOSITIONCAP, "refcoco": REFCOCO, "grand": GRAND, "llava": LLAVA, "osprey": OSPREY}
    return json.dumps(own[name]) if name in own else as_jsonl({"dam": DAM, "jsonl": OWN}[name])


def write(folder: Path, name: str, text: str | None = None) -> Path:
    path = folder / f"{name}.json"
    path.write_text(content(name) if text is None else text, encoding="utf-8")
    return path


def read(path: Any, **settings: Any) -> list[Example]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(read_examples(path, **settings))


def whole(*branches: Branch, id: str | None = None) -> Region:
    return Region(None, branches, id)


# --- formats ---------------------------------------------------------------------------------------------------------


def test_compositioncap_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, "compositioncap")
    with pytest.warns(UserWarning, match="left out were 1 entities without texts"):
        (example,) = list(read_examples(path))
    man = Region(
        BLOB,
        (
            Branch("The man walks the dog, slowly.", "dense"),
            Branch("blue", "Color"),
            Branch("short", "Hair"),
            Branch("grey", "Hair"),
        ),
        "entity_id_1",
    )
    other = Region(BLOB, (Branch("round", "Shape"),), 2)
    assert example == Example("a.jpg", (whole(Branch("A man and a dog.", "global"), id="global"), man, other), 5)
    assert np.array_equal(as_mask(example.regions[1].mask, H, W), MASK)
    assert example.where == f"{path}[0]"
    (kept,) = read(path, keep_entity_references=True)
    assert kept.regions[0].branches[0].answer == COMPOSITIONCAP[0]["global_caption"]


def test_compositioncap_is_read_by_image_name_as_lines_and_with_other_keys(tmp_path: Path) -> None:
    (expected,) = read(write(tmp_path, "compositioncap"))
    row = {key: value for key, value in COMPOSITIONCAP[0].items() if key != "image"}
    by_name = write(tmp_path, "by-name", json.dumps({"a.jpg": row}, indent=1))
    assert read(by_name) == read(by_name, format="compositioncap") == [expected]
    assert read(write(tmp_path, "lines", as_jsonl(COMPOSITIONCAP * 2))) == [expected] * 2
    renamed = json.dumps(COMPOSITIONCAP).replace('"entities"', '"objs"').replace('"mask"', '"m"')
    path = write(tmp_path, "renamed", renamed)
    with pytest.raises(DataError, match=r"its format cannot be told.*Give format"):
        read_examples(path)
    (tmp_path / "keys.yaml").write_text("regions: objs\nmask: [m, mask]\n")
    (tmp_path / "keys.json").write_text('{"regions": "objs", "mask": "m"}')
    for mapping in ({"regions": "objs", "mask": "m"}, tmp_path / "keys.yaml", str(tmp_path / "keys.json")):
        assert read(path, format="compositioncap", mapping=mapping) == [expected]
    with pytest.raises(DataError, match=r"describes no region; there are the keys .*'objs'.*mapping"):
        read(write(tmp_path, "x", json.dumps([{"image": "a", "objs": []}])), format="compositioncap")
    with pytest.raises(DataError, match=r"There is no field 'entity'\. .*There are: answer,"):
        read_examples(path, "compositioncap", mapping={"entity": "x"})
    with pytest.raises(DataError, match="keys of the format grand are fixed"):
        read_examples(path, "grand", mapping={"image": "x"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man (entity_id_3) runs.", "A man runs."),
        ("A man (entity_id_3).", "A man."),
        ("(entity_id_3) runs (entity_id_12), fast", "runs, fast"),
        ("two (entity_id_1, entity_id_2) dogs", "two dogs"),
        ("no (entity) here (3)", "no (entity) here (3)"),
    ],
)
def test_entity_references_go_without_a_trace(text: str, expected: str) -> None:
    assert without_entities(text).replace(",,", ",").replace(" ,", ",") == expected.replace(
        "runs, , fast", "runs, fast"
    )


def test_refcoco_joins_captions_of_one_mask(tmp_path: Path) -> None:
    path = write(tmp_path, "refcoco")
    cup = Region(POLYGON, (Branch("the left cup", "region"), Branch("a red cup", "region")), 11)
    table = Region([[0, 0, 4, 0, 4, 4]], (Branch("a table", "region"),), 14)
    assert read(path) == [
        Example("a.jpg", (cup, table)),
        Example("b.jpg", (Region(RLE, (Branch("a cat", "region"),), 12),)),
    ]
    turned = {key: REFCOCO[key] for key in reversed(REFCOCO)}
    assert read(write(tmp_path, "turned", json.dumps(turned, indent=2))) == read(path)


def test_refcoco_tells_what_does_not_belong_together(tmp_path: Path) -> None:
    wrong = {
        "images": [
            *REFCOCO["images"],
            {"id": 5, "file_name": "c.jpg", "caption": "lonely"},
            {"id": 5, "file_name": "c.jpg", "caption": "again"},
            {"id": 6, "file_name": "c.jpg"},
            {"id": 7, "file_name": "c.jpg", "caption": "two"},
        ],
        "annotations": [
            *REFCOCO["annotations"],
            {"id": 1, "image_id": 77, "segmentation": POLYGON},
            {"id": 2, "image_id": 7, "segmentation": POLYGON},
            {"id": 3, "image_id": 7, "segmentation": RLE},
            {"id": 3, "image_id": 7, "segmentation": []},
        ],
    }
    path = write(tmp_path, "wrong", json.dumps(wrong))
    reader = read_examples(path, on_error="skip", rejects=tmp_path / "rejects.jsonl")
    with pytest.warns(UserWarning, match="6 of 8 examples"):
        assert len(list(reader)) == 2
    rejects = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    told = {reject["where"].rpartition(": ")[2]: reject["reason"] for reject in rejects}
    assert set(told) == {"images[4]", "images[5]", "images[6]", "images[7]", "annotations[4]", "annotations[7]"}
    assert "no annotation" in told["images[4]"] and "UNIQUE" in told["images[5]"]
    assert "caption: nothing arrived" in told["images[6]"] and "several annotations" in told["images[7]"]
    assert "no image with the id 77" in told["annotations[4]"] and "empty" in told["annotations[7]"]


def test_grand_is_read_from_a_file_and_from_a_folder(tmp_path: Path) -> None:
    expected = Example(
        "sa_1.jpg",
        (
            Region(RLE, (Branch("fire truck, truck", "Category Name"), Branch("a red truck", "region")), 0),
            Region({"box_xyxy": [0, 0, 4, 2]}, (Branch("sky", "Category Name"),), 1),
            whole(Branch("A truck below the sky.", "global"), id="global"),
        ),
    )
    assert read(write(tmp_path, "grand")) == [expected]
    folder = tmp_path / "many"
    folder.mkdir()
    for number in (2, 1):
        write(folder, f"sa_{number}", json.dumps({f"sa_{number}.jpg": GRAND["sa_1.jpg"]}))
    (folder / "sa_3.json").write_text('{"sa_3.jpg": {"objects": [')
    with pytest.raises(DataError, match=r"sa_3\.json: the JSON is broken"):
        read(folder)
    reader = read_examples(folder, on_error="skip")
    with pytest.warns(UserWarning, match="1 of 3 examples"), pytest.warns(UserWarning, match="left out were 2 objects"):
        found = list(reader)
    assert [example.image for example in found] == ["sa_1.jpg", "sa_2.jpg"]
    assert reader.left_out == {"objects without labels and attributes": 2, "repeated attributes of an object": 0}
    assert (
        read(write(tmp_path, "plain", json.dumps({"sa_1.jpg": GRAND["sa_1.jpg"]["objects"]})))[0].regions
        == (expected.regions[:2])
    )


def test_llava_is_about_the_whole_image(tmp_path: Path) -> None:
    assert read(write(tmp_path, "llava")) == [
        Example("00/1.jpg", (whole(Branch("a cup", "global", "Describe it.")),), "x1"),
        Example(
            "00/2.jpg",
            (whole(Branch("a dog", question="What is it?"), Branch("brown", question="What color?")),),
            "x2",
        ),
    ]


def test_osprey_gives_turns_to_the_regions_they_name(tmp_path: Path) -> None:
    path = write(tmp_path, "osprey")
    with pytest.warns(UserWarning, match="1 turns about several regions at once"):
        first, second = list(read_examples(path))
    assert first == Example(
        "a.jpg",
        (
            Region(POLYGON, (Branch("Nobody.", question="Who stands near the marked region?"),)),
            Region(
                RLE,
                (
                    Branch("The marked region is made of wood.", question="What is the marked region made of?"),
                    Branch("Brown.", question="And its color?"),
                ),
            ),
        ),
    )
    assert [region.branches for region in second.regions] == [
        (Branch("A cup with a handle.", "dense"),),
        (Branch("A plate.", "dense"),),
    ]


def test_dam_is_read(tmp_path: Path) -> None:
    single, several, caption = read(write(tmp_path, "dam"))
    assert single.regions == (Region(RLE, (Branch("A cup.", question="Describe the marked region in detail."),)),)
    assert [region.branches[0].answer for region in several.regions] == ["Yes.", "No."]
    assert several.regions[0].branches[0].question == "Is the marked region red?"
    assert caption.regions[0].branches == (Branch("A small cup.", "dense"),)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"conversations": turns("<region3>?", "no")}, "region 3 is mentioned, but there are 2 masks"),
        ({"conversations": turns("What is it?", "no")}, "does not say which of 2 regions"),
        ({"conversations": turns("<region1>?")}, "the last question has no answer"),
        ({"conversations": []}, "there is no turn"),
        ({"conversations": turns("<region1>?", "a")[::-1]}, "the role is 'gpt'; needed are human"),
        ({"conversations": turns("<region1> and <region2>?", "a")}, "nothing can be told about a single region"),
        ({"caption": ["a"]}, "there are 1 texts for 2 masks"),
        ({"caption": ["a", 3]}, r"caption\[1\]: a number arrived"),
    ],
)
def test_osprey_refuses_what_belongs_to_no_region(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write(tmp_path, "x", as_jsonl([{"image": "a.jpg", "mask_rle": [RLE, RLE], **row}]))
    with pytest.raises(DataError, match=rf"x\.json:1: .*{message}"):
        read(path, format="osprey")


def test_own_jsonl_is_read_from_the_file_and_its_folder(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text("\ufeff" + as_jsonl(OWN).replace("\n", "\r\n\r\n"), encoding="utf-8")
    examples = read(tmp_path / "records.jsonl")
    assert [example.to_json() for example in examples] == OWN
    assert [example.where.rpartition(":")[2] for example in examples] == ["1", "3"]
    assert read(tmp_path) == examples


def test_datasets_are_read_from_memory_and_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    pictures = [Image.fromarray(np.full((H, W, 3), value, dtype=np.uint8)) for value in (0, 99)]
    masks = [Image.fromarray(MASK.astype(np.uint8) * 255)] * 2
    table = {"image": pictures, "mask": masks, "question": ["What is <mask>?", None], "answer": ["a cup", "a cat"]}
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "mask": datasets.Image(),
            "question": datasets.Value("string"),
            "answer": datasets.Value("string"),
        }
    )
    dataset = datasets.Dataset.from_dict(table, features)
    dataset.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": dataset}).save_to_disk(tmp_path / "split")
    for source in (dataset, tmp_path / "saved", tmp_path / "split"):
        first, second = read(source)
        assert first.regions[0].branches == (Branch("a cup", question="What is the marked region?"),)
        assert second.regions[0].branches == (Branch("a cat", "region"),)
        assert np.array_equal(as_mask(first.regions[0].mask, H, W), MASK)
        assert np.asarray(second.load()).max() == np.asarray(second.load()).min() == 99
    with pytest.raises(DataError, match="there are the splits a, b"):
        read(datasets.DatasetDict({"a": dataset, "b": dataset}))

    nested = datasets.Dataset.from_list([{"image": row["image"], "regions": row["regions"]} for row in OWN])
    assert [example.to_json()["regions"] for example in read(nested)] == [row["regions"] for row in OWN]
    talks = datasets.Dataset.from_list(LLAVA)
    assert [example.regions for example in read(talks)] == [
        example.regions for example in read(write(tmp_path, "llava"))
    ]
    captions = datasets.Dataset.from_list([{"file": "a.jpg", "text": "a cup", "rle": RLE}])
    (example,) = read(captions, mapping={"image": "file", "caption": "text", "mask": "rle", "caption_name": "dense"})
    assert example == Example("a.jpg", (Region(RLE, (Branch("a cup", "dense"),)),))
    with pytest.raises(DataError, match=r"Dataset\[0\]: image: there is no image"):
        read(captions)


def test_real_regions_are_read(real_regions: list[RealRegion]) -> None:
    source = real_regions[0].image.parents[1] / "regions.jsonl"
    examples = read(source)
    assert len(examples) == len(real_regions)
    for example, real in zip(examples, real_regions):
        picture = example.load()
        assert np.array_equal(as_mask(example.regions[0].mask, picture.height, picture.width), real.mask)
        assert example.regions[0].branches == (Branch(real.caption, "dense"),)
    with_mapping = read(source, format="osprey", mapping={"caption_name": "region", "mask": "segmentation"})
    assert with_mapping[0].regions[0].branches[0].name == "region"


# --- detection -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("indent", [None, 2])
def test_format_is_told_by_the_content(tmp_path: Path, name: str, indent: int | None) -> None:
    text = content(name)
    if indent and name not in ("dam", "jsonl"):
        text = "\n " + json.dumps(json.loads(text), indent=indent)
    reader = read_examples(write(tmp_path, name, text))
    assert reader.format == {"dam": "osprey"}.get(name, name)
    assert set(FORMATS) >= {reader.format}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "neither"),
        ("hello", "neither"),
        ("[]", "the list is empty"),
        ("[3]", "no objects"),
        ('{"a": 1}', "there are the keys 'a'"),
        ('{"images": [1], "x": 2}', "cannot be told"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("\x1f\x8b", "packed, and damaged"),
        ("PK\x03\x04", "zip cannot be read"),
    ],
)
def test_unknown_format_is_told(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        read_examples(tmp_path / "x")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["gz", "zip"])
def test_packed_files_are_read_as_they_are(tmp_path: Path, name: str, kind: str) -> None:
    plain = write(tmp_path, name)
    path = tmp_path / f"{name}.json.{kind}"
    if kind == "gz":
        path.write_bytes(gzip.compress(plain.read_bytes()))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.write(plain, f"Data/{plain.name}")
            packed.writestr(f"__MACOSX/Data/._{plain.name}", b"\0\1")
            packed.writestr("README.md", "text")
    assert read(path) == read(plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = open_dataset(path, cache=tmp_path / "cache")
        expected = open_dataset(plain, cache=tmp_path / "cache")
    assert list(dataset) == list(expected)
    assert not [name for name in tmp_path.iterdir() if name.name not in (plain.name, path.name, "cache")]


def test_packed_files_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    plain = write(tmp_path, "jsonl").read_bytes()
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as packed:
        packed.writestr("a.json", plain)
        packed.writestr("b.jsonl", plain)
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as packed:
        packed.writestr("a.jpg", plain)
    many = gzip.compress(plain * 20_000, 1)
    (tmp_path / "half.gz").write_bytes(many[: len(many) // 2])
    for name, message in (
        ("two.zip", "holds 2 JSON files"),
        ("none.zip", "holds 0"),
        ("half.gz", "packed, and damaged"),
    ):
        with pytest.raises(DataError, match=message):
            read(tmp_path / name)


def test_wrong_settings_are_told(tmp_path: Path) -> None:
    path = write(tmp_path, "llava")
    with pytest.raises(DataError, match="no such file"):
        read_examples(tmp_path / "absent")
    with pytest.raises(DataError, match="this is no file of the format llava"):
        read_examples(tmp_path, "llava")
    with pytest.raises(
        ValueError, match=r"no format 'cocoa'\. Did you mean 'coco'\? There are: compositioncap.*geojson"
    ):
        read_examples(path, "cocoa")
    with pytest.raises(ValueError, match="no on_error 'ignore'"):
        read_examples(path, on_error="ignore")
    with pytest.warns(UserWarning, match="keep_entity_references has no effect"):
        read_examples(path, keep_entity_references=True)


# --- errors ----------------------------------------------------------------------------------------------------------

BAD_LINES = [
    ('{"image": "a.jpg", ', "the line is no JSON"),
    ('{"image": "a.jpg", "regions": [{"branches": [{"answer": NaN}]}]}', "NaN is no JSON"),
    ("[" * 100_000, "nested too deeply"),
    ('{"image": ' + "9" * 5000 + "}", "no JSON"),
    ('{"image": "a.jpg"}', "regions: nothing arrived"),
    ("3", "row: a number arrived"),
]


def test_bad_lines_raise_with_file_line_and_reason(tmp_path: Path) -> None:
    for number, (line, message) in enumerate(BAD_LINES):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(as_jsonl(OWN) + line + "\n")
        with pytest.raises(DataError, match=message) as caught:
            read(path)
        assert caught.value.where == f"{path}:3"
    (tmp_path / "latin.jsonl").write_bytes(as_jsonl(OWN).encode() + b'{"image": "\xe9"}\n')
    with pytest.raises(DataError, match="no UTF-8"):
        read(tmp_path / "latin.jsonl")


def test_skipped_lines_are_counted_and_written_with_reasons(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    first, second = as_jsonl(OWN).splitlines(keepends=True)
    path.write_text(first + "".join(line + "\n" for line, _ in BAD_LINES) + second)
    reader = read_examples(path, on_error="skip")
    for _ in range(2):  # again: the counts and the file start anew
        with pytest.warns(UserWarning, match=r"6 of 8 examples of .* are rejected; they are in .*x\.jsonl\.rejects"):
            assert [example.to_json() for example in reader] == OWN
        assert (reader.num_examples, reader.num_rejected) == (2, 6)
        rejects = [json.loads(line) for line in reader.rejects_path.read_text().splitlines()]
        assert [reject["where"] for reject in rejects] == [f"{path}:{line}" for line in range(2, 8)]
        for reject, (line, message) in zip(rejects, BAD_LINES, strict=True):
            assert set(reject) == {"where", "reason", "raw"} and message in reject["reason"]
            assert reject["raw"] == line[:2000] and path.name not in reject["reason"]


def test_clean_file_leaves_no_rejects(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reader = read_examples(path, on_error="skip")
        assert len(list(reader)) == 2
    assert not reader.rejects_path.exists()


def test_broken_array_raises_even_when_skipping(tmp_path: Path) -> None:
    path = write(tmp_path, "x", json.dumps(LLAVA)[:-40])
    reader = read_examples(path, on_error="skip")
    with pytest.raises(DataError, match=r"the JSON is broken .*nothing after it can be read"):
        list(reader)
    assert reader.num_examples == 1


def test_too_long_line_is_rejected_and_the_next_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finecaption_hf.data import json_stream

    path = tmp_path / "x.jsonl"
    path.write_text('{"image": "' + "a" * 300_000 + '"}\n' + as_jsonl(OWN))
    places = list(json_stream.json_lines(path, max_bytes=1000))
    assert isinstance(places[0][3], DataError) and [value for *_, value in places[1:]] == OWN
    for _, offset, length, value in places[1:]:
        assert json.loads(path.read_bytes()[offset : offset + length]) == value


# --- JSON in pieces --------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(), values, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, derandomize=True)
@given(st.lists(json_values), st.integers(1, 40), st.sampled_from([None, 1]), st.booleans())
def test_array_in_pieces_equals_the_whole(values: list[Any], chunk: int, indent: int | None, ascii_only: bool) -> None:
    try:
        data = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:
        return
    stream = JsonStream(io.BytesIO(data), "x", chunk_bytes=chunk)
    assert list(stream.elements()) == values
    stream.end()


def test_long_strings_may_be_cut_anywhere() -> None:
    value = ['\\"' * 20, "\\" * 41, {"a" * 50 + '"': "é" * 30}]
    data = json.dumps(value).encode()
    for chunk in range(1, len(data) + 1):
        assert list(JsonStream(io.BytesIO(data), "x", chunk_bytes=chunk).elements()) == value


@settings(deadline=None, derandomize=True)
@given(st.dictionaries(st.text(), json_values, max_size=4), st.integers(1, 40), st.integers(0, 15))
def test_object_in_pieces_equals_the_whole(values: dict[str, Any], chunk: int, skipped: int) -> None:
    stream = JsonStream(io.BytesIO(json.dumps(values).encode()), "x", chunk_bytes=chunk)
    for number, name in enumerate(stream.names()):
        if skipped >> number & 1:
            stream.skip()
        else:
            assert stream.value() == values[name]
    stream.end()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(json_values, st.integers(1, 60), st.integers(0, 200), st.sampled_from([*'[]{},:"0 -tnX.eE\\', "", "\ud7ff"]))
def test_broken_array_is_never_taken_for_another(value: Any, chunk: int, at: int, put: str) -> None:
    text = json.dumps([value, 1])
    text = text[: at % len(text)] + put + text[at % len(text) + 1 :]
    try:
        expected = json.loads(text)
    except ValueError:
        expected = None
    stream = JsonStream(io.BytesIO(text.encode()), "x", chunk_bytes=chunk)
    try:
        found: Any = list(stream.elements())
        stream.end()
    except DataError:
        found = None
    assert found == (expected if isinstance(expected, list) else None)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(NAMES), st.randoms(use_true_random=False), st.sampled_from(["skip", "raise"]))
def test_mutated_files_give_records_or_data_errors(
    tmp_path: Path, name: str, random: random.Random, on_error: str
) -> None:
    text = content(name)
    for _ in range(random.randint(1, 3)):
        start = random.randrange(len(text))
        stop = min(len(text), start + random.choice([0, 1, 1, 2, 9]))
        put = random.choice(
            ["", "]", "}", "[", "{", "null", "1e999", "-3", '"', ",", "true", "\\ud800", "é", "[[]]", '"x"']
        )
        text = text[:start] + put + text[stop:]
    path = write(tmp_path, "mutated", text)
    for format in (None, {"dam": "osprey"}.get(name, name)):
        try:
            for example in read(path, format=format, on_error=on_error):
                assert isinstance(example, Example)
                json.dumps(example.to_json()).encode()
        except DataError as error:
            assert error.where and error.reason


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(NAMES), st.data())
def test_exchanged_values_give_records_or_data_errors(tmp_path: Path, name: str, data: Any) -> None:
    parsed = (
        [json.loads(line) for line in content(name).splitlines()]
        if name in ("dam", "jsonl")
        else json.loads(content(name))
    )
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in range(len(value)) if isinstance(value, list) else list(value) if isinstance(value, dict) else ():
            places.append((value, key))
            walk(value[key])

    walk(parsed)
    for _ in range(data.draw(st.integers(1, 3))):
        holder, key = data.draw(st.sampled_from(places))
        holder[key] = data.draw(json_values)
    text = as_jsonl(parsed) if name in ("dam", "jsonl") else json.dumps(parsed)
    path = write(tmp_path, "exchanged", text)
    try:
        for example in read(path, format={"dam": "osprey"}.get(name, name), on_error="skip"):
            json.dumps(example.to_json()).encode()
    except DataError as error:
        assert error.where and error.reason


# --- size ------------------------------------------------------------------------------------------------------------


def write_many(path: Path, format: str, number: int) -> None:
    with path.open("w") as file:
        if format == "jsonl":
            rest = '","regions":[{"branches":[{"name":"a","answer":"b"}]}]}\n'
            file.writelines(f'{{"image":"{index}{rest}' for index in range(number))
        else:
            rest = '","conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}]}'
            file.writelines(("," if index else "[") + f'{{"image":"{index}{rest}' for index in range(number))
            file.write("]")


def peak_bytes(path: Path, number: int) -> int:
    """Most memory that Python held while a file was read."""
    reader = read_examples(path)
    tracemalloc.start()
    try:
        assert sum(1 for _ in reader) == number
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("format", ["jsonl", "array"])
@pytest.mark.parametrize("number", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, format: str, number: int) -> None:
    peaks = {}
    for count in (5_000, number):
        write_many(tmp_path / f"{count}", format, count)
        peaks[count] = peak_bytes(tmp_path / f"{count}", count)
    # One buffer of 256 KiB, its text, and one example.
    assert peaks[number] < peaks[5_000] + 2**18
    assert peaks[number] < 2**22


def test_join_does_not_hold_the_file_in_memory(tmp_path: Path) -> None:
    peaks = {}
    for count in (1_000, 6_000):
        path = tmp_path / f"{count}.json"
        images = [{"id": index, "file_name": f"{index // 3}", "caption": f"{index}"} for index in range(count)]
        annotations = [{"id": index, "image_id": index, "segmentation": POLYGON * 3} for index in range(count)]
        path.write_text(json.dumps({"images": images, "annotations": annotations}))
        peaks[count] = peak_bytes(path, -(-count // 3))
    # The larger file fills the buffer of 256 KiB and its text.
    assert peaks[6_000] < peaks[1_000] + 2**20
