"""The example type and the package's JSONL."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from finecaption_hf.data import Branch, DataError, Example, Region
from finecaption_hf.masks_finecaption import as_mask

ROW = {
    "image": "images/0001.png",
    "id": "7",
    "regions": [
        {"id": "a", "mask": {"box_xyxy": [1, 2, 3, 4]}, "branches": [{"name": "Color", "answer": "red"}]},
        {"branches": [{"question": "What is it?", "answer": "a cup"}]},
    ],
}


def test_record_reads_the_documented_row() -> None:
    example = Example.from_json(ROW, "file:1")
    assert example == Example(
        "images/0001.png",
        (
            Region({"box_xyxy": [1, 2, 3, 4]}, (Branch("red", "Color"),), "a"),
            Region(None, (Branch("a cup", question="What is it?"),)),
        ),
        "7",
    )
    assert example.where == "file:1"
    assert example.to_json() == ROW


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
branches = st.one_of(
    st.builds(Branch, texts, texts), st.builds(Branch, texts, st.none(), texts), st.builds(Branch, texts, texts, texts)
)
masks = st.none() | st.fixed_dictionaries({"box_xyxy": st.lists(st.integers(0, 9), min_size=4, max_size=4)})
regions = st.builds(Region, masks, st.lists(branches, min_size=1, max_size=3).map(tuple), st.none() | texts)
examples = st.builds(Example, texts, st.lists(regions, min_size=1, max_size=3).map(tuple), st.none() | texts)


@settings(deadline=None, derandomize=True)
@given(examples)
def test_record_survives_the_way_through_a_file(example: Example) -> None:
    assert Example.from_json(json.loads(json.dumps(example.to_json())), "x") == example


def test_mask_in_memory_is_written_as_rle() -> None:
    mask = np.zeros((4, 6), dtype=bool)
    mask[1:3, 2:5] = True
    row = Example("a.png", (Region(mask, (Branch("red", "Color"),)),)).to_json()
    assert np.array_equal(as_mask(json.loads(json.dumps(row))["regions"][0]["mask"], 4, 6), mask)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": 3}, "image: a number arrived"),
        ({"image": ""}, "image: its name is empty"),
        ({"id": [1]}, "id: a list arrived"),
        ({"regions": None}, "regions: nothing arrived"),
        ({"regions": []}, "regions: the image has none"),
        ({"regions": [3]}, r"regions\[0\].region: a number arrived"),
        ({"regions": [{"mask": [], "branches": ROW["regions"][1]["branches"]}]}, r"regions\[0\].mask: it is empty"),
        ({"regions": [{"mask": 1.5, "branches": ROW["regions"][1]["branches"]}]}, r"regions\[0\].mask: a number"),
        ({"regions": [{"branches": []}]}, r"regions\[0\].branches: the region has none"),
        ({"regions": [{"branches": [{"name": "Color"}]}]}, r"branches\[0\].answer: it is missing.*'name'"),
        ({"regions": [{"branches": [{"answer": "red"}]}]}, "neither a name nor a question"),
        ({"regions": [{"branches": [{"name": "Color", "answer": " "}]}]}, r"answer: it is empty"),
        ({"regions": [{"branches": [{"name": "Color", "answer": "\ud800"}]}]}, "no valid Unicode"),
        ({"regions": [{"branches": [{"name": 3, "answer": "red"}]}]}, "name: a number arrived"),
    ],
)
def test_wrong_row_is_told_with_its_place(change: dict, message: str) -> None:
    with pytest.raises(DataError, match=rf"^file:9: .*{message}") as caught:
        Example.from_json({**ROW, **change}, "file:9")
    assert caught.value.where == "file:9"


def test_picture_in_memory_cannot_be_written() -> None:
    example = Example(Image.new("RGB", (4, 4)), (Region(None, (Branch("red", "Color"),)),))
    with pytest.raises(DataError, match="Save it"):
        example.to_json()
    assert example.load().size == (4, 4)


def test_error_survives_pickling_and_rebuilding_from_its_text() -> None:
    error = DataError("file:3", "bad")
    assert str(error) == "file:3: bad"
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.where, copy.reason) == ("file:3: bad", "file:3", "bad")
    assert str(DataError("Caught DataError in worker")) == "Caught DataError in worker"  # as torch does
