"""Examples by number, and mixes of datasets."""

import json
import os
import pickle
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finecaption_hf.data import Branch, DataError, Example, MixedDataset, open_dataset, read_examples


def own_row(number: int, regions: int = 1) -> dict:
    branches = [{"name": "Color", "answer": f"answer {number}"}]
    return {"image": f"{number}.png", "regions": [{"id": str(i), "branches": branches} for i in range(regions)]}


def write_lines(path: Path, rows: list) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture
def own(tmp_path: Path) -> Path:
    for number in range(5):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    rows = [own_row(0), own_row(1, 3), "", "broken", own_row(2), {"image": "x"}, own_row(3, 4), own_row(4)]
    return write_lines(tmp_path / "own.jsonl", rows)


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a cup"}]
    rows = [{"id": n, "image": f"{n}.png", "conversations": turns} for n in range(4)] + [{"id": 9, "image": "9.png"}]
    path = tmp_path / "llava.json"
    path.write_text(json.dumps(rows))
    return path


def records_of(dataset) -> list[Example]:
    return [dataset[index] for index in range(len(dataset))]


def test_items_are_the_records_that_reading_gives(own: Path) -> None:
    with pytest.warns(UserWarning, match="2 of 7 examples"):
        dataset = open_dataset(own, on_error="skip")
    with pytest.warns(UserWarning, match="2 of 7 examples"):
        expected = list(read_examples(own, on_error="skip"))
    assert (len(dataset), dataset.num_examples, dataset.num_rejected) == (5, 5, 2)
    assert records_of(dataset) == expected
    assert [example.where for example in records_of(dataset)] == [example.where for example in expected]
    assert dataset[-1] == expected[-1]
    assert np.asarray(dataset.load(dataset[3]))[0, 0].tolist() == [3, 0, 0]
    assert len(dataset.rejects_path.read_text().splitlines()) == 2
    with pytest.raises(IndexError):
        dataset[5]
    with pytest.raises(DataError, match=rf"{own.name}:4: the line is no JSON"):
        open_dataset(own)


def test_max_regions_splits_records_and_loses_no_region(own: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole, split = open_dataset(own, on_error="skip"), open_dataset(own, on_error="skip", max_regions=2)
    assert [len(example.regions) for example in records_of(split)] == [1, 2, 1, 1, 2, 2, 1]
    parts: dict[str, tuple] = {}
    for example in records_of(split):
        parts[example.image] = parts.get(example.image, ()) + example.regions
    assert parts == {example.image: example.regions for example in records_of(whole)}
    with pytest.raises(ValueError, match="max_regions is 0"):
        open_dataset(own, max_regions=0)


def test_converted_dataset_is_cached_until_something_changes(llava: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    def opened(**settings):
        with pytest.warns(UserWarning, match=r"1 of \d examples of .*llava\.json are rejected"):
            return open_dataset(llava, cache=cache, on_error="skip", **settings)

    first = opened()
    (folder,) = cache.iterdir()
    changed = os.stat(folder / "records.jsonl").st_mtime_ns
    again = opened(rejects=tmp_path / "mine.jsonl")
    assert os.stat(folder / "records.jsonl").st_mtime_ns == changed and len(list(cache.iterdir())) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = list(read_examples(llava, on_error="skip"))
    for dataset in (first, again):
        assert records_of(dataset) == expected
        assert dataset[2].where == f"{llava}[2]"
        assert (len(dataset), dataset.num_rejected) == (4, 1)
        assert json.loads(dataset.rejects_path.read_text())["where"] == f"{llava}[4]"
    assert again.rejects_path == tmp_path / "mine.jsonl"
    opened(mapping={"id": "image"})
    assert len(list(cache.iterdir())) == 2
    llava.write_text(llava.read_text().replace("a cup", "a plate"))
    assert opened()[0].regions[0].branches[0] == Branch("a plate", "global", "What?")
    assert len(list(cache.iterdir())) == 3
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]
    with pytest.raises(DataError, match=r"llava\.json\[4\]"):
        open_dataset(llava, cache=cache)
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]


def test_number_that_is_no_json_is_rejected_on_conversion(tmp_path: Path) -> None:
    row = {"image": "a.png", "mask_rle": [0, 0, 1], "caption": "a cup"}
    path = write_lines(tmp_path / "x.jsonl", [row, json.dumps(row).replace("[0, 0, 1]", "[0, 0, 1e999]")])
    with pytest.warns(UserWarning, match="1 of 2 examples"):
        dataset = open_dataset(path, "osprey", cache=tmp_path / "cache", on_error="skip")
    assert len(dataset) == 1 and "a mask of it is no JSON" in dataset.rejects_path.read_text()


def test_dataset_without_a_usable_record_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", [{"image": "a"}])
    with pytest.raises(DataError, match="no example that can be used"), pytest.warns(UserWarning, match="1 of 1"):
        open_dataset(path, "jsonl", on_error="skip")


def test_changed_file_is_told(own: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = open_dataset(own, on_error="skip")
    own.write_text("x" * 5000)
    with pytest.raises(DataError, match=rf"{own.name}:2: .*Did the file change"):
        dataset[1]


def _images(examples: list[Example]) -> list[tuple[str, int]]:
    return [(example.image, int(np.asarray(example.load())[0, 0, 0])) for example in examples]


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_items_are_the_same_in_workers(own: Path, context: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = open_dataset(own, on_error="skip")
    assert records_of(pickle.loads(pickle.dumps(dataset))) == records_of(dataset)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=2, num_workers=2, collate_fn=_images, multiprocessing_context=context
    )
    assert [entry for batch in loader for entry in batch] == [(f"{number}.png", number) for number in range(5)]


def test_datasets_dataset_is_read_in_place(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [
        {"image": Image.new("RGB", (4, 4), (n, 0, 0)), "caption": f"text {n}" if n != 1 else None} for n in range(3)
    ]
    dataset = datasets.Dataset.from_list(rows)
    rejects = tmp_path / "rejects.jsonl"
    with pytest.warns(UserWarning, match="1 of 3 examples"):
        opened = open_dataset(dataset, on_error="skip", rejects=rejects)
    assert [example.regions[0].branches[0].answer for example in records_of(opened)] == ["text 0", "text 2"]
    assert np.asarray(opened.load(opened[1]))[0, 0].tolist() == [2, 0, 0]
    assert opened[1].where == "Dataset[2]" and json.loads(rejects.read_text())["where"] == "Dataset[1]"


# --- mixing ----------------------------------------------------------------------------------------------------------


class Numbers:
    def __init__(self, name: str, size: int) -> None:
        self.items = [f"{name}{number}" for number in range(size)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> str:
        return self.items[index]


def test_mix_without_weights_has_every_item_once() -> None:
    mix = MixedDataset({"a": Numbers("a", 5), "b": Numbers("b", 3)})
    items = records_of(mix)
    assert sorted(items) == sorted([*Numbers("a", 5).items, *Numbers("b", 3).items])
    assert [mix.source(index) for index in range(8)] == [item[0] for item in items]


@pytest.mark.parametrize("weights", [{"a": 1, "b": 1}, {"a": 0.2, "b": 0.8}, {"a": 30, "b": 1}])
def test_mix_keeps_the_weights_and_every_item(weights: dict[str, float]) -> None:
    sizes = {"a": 50, "b": 13}
    mix = MixedDataset({name: Numbers(name, size) for name, size in sizes.items()}, weights, seed=3)
    counts = Counter(records_of(mix))
    drawn = {name: sum(count for item, count in counts.items() if item[0] == name) for name in sizes}
    assert drawn == mix.num_draws and len(mix) == sum(drawn.values())
    # Rounding moves a share by at most one draw.
    share = weights["a"] / sum(weights.values())
    assert abs(drawn["a"] - share * len(mix)) <= 1
    for name, size in sizes.items():
        of_one = [counts[f"{name}{number}"] for number in range(size)]
        assert min(of_one) >= 1 and max(of_one) - min(of_one) <= 1
    assert min(drawn["a"] - 50, drawn["b"] - 13) == 0  # no longer than it must be


def test_mix_is_the_same_for_a_seed_and_another_for_another() -> None:
    parts = {"a": Numbers("a", 50), "b": Numbers("b", 13)}
    first, same, other = (records_of(MixedDataset(parts, {"a": 1, "b": 2}, seed)) for seed in (1, 1, 2))
    assert first == same != other
    half = Counter(item[0] for item in first[: len(first) // 2])
    assert 0.5 < half["b"] / sum(half.values()) < 0.85  # 2/3, give or take five standard deviations


def test_wrong_mix_is_told() -> None:
    parts = {"a": Numbers("a", 5), "b": Numbers("b", 3)}
    with pytest.raises(ValueError, match="nothing to mix"):
        MixedDataset({})
    with pytest.raises(ValueError, match="'c' is empty"):
        MixedDataset({**parts, "c": Numbers("c", 0)})
    for weights in ({"a": 1}, {"a": 1, "b": 0}, {"a": 1, "b": float("nan")}, {"a": 1, "b": 1, "c": 1}):
        with pytest.raises(ValueError, match="one positive weight for each"):
            MixedDataset(parts, weights)
