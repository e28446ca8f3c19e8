"""Rendered scenes on disk: what is written is what was drawn, whoever drew it, and never half of it."""

import json
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finecaption_hf.data import open_dataset
from finecaption_hf.masks_finecaption import as_mask
from finecaption_hf.scenes import (
    QUESTIONS,
    accepted,
    answers,
    describe_scene,
    known_answers,
    render_scene,
    scene_example,
    write_scenes,
)


def rows(records: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_written_rows_hold_the_scenes_and_the_data_room_reads_them(tmp_path: Path) -> None:
    done: list[int] = []
    records = write_scenes(tmp_path / "new" / "set", 4, seed=20, split="test", on_scene=done.append)
    assert records == tmp_path / "new" / "set" / "records.jsonl"
    assert done == [1, 2, 3, 4]
    assert not list(tmp_path.rglob("*.partial"))
    dataset = open_dataset(records)
    assert len(dataset) == 4
    for number, row in enumerate(rows(records)):
        scene = render_scene(20 + number, split="test")
        assert set(row) == {"image", "id", "regions"} and row["id"] == f"test-{20 + number}"
        *regions, whole = row["regions"]
        assert len(regions) == len(scene.regions)
        for index, region in enumerate(regions):
            told = {branch["name"]: branch["answer"] for branch in region["branches"]}
            expected = answers(scene, index)
            assert told == {name: text for name, text in expected.items() if name != "global"}
            assert all(
                set(branch) == {"name", "answer"} and branch["name"] in QUESTIONS for branch in region["branches"]
            )
        (branch,) = whole["branches"]
        assert branch["name"] == "global" and branch["answer"] in describe_scene(scene)
        assert whole["mask"] is None and len({region["id"] for region in row["regions"]}) == len(row["regions"])
        record = dataset[number]
        np.testing.assert_array_equal(dataset.load(record), scene.image)
        assert len(record.regions) == len(row["regions"])
        for region, mask in zip(record.regions, scene.masks):
            np.testing.assert_array_equal(as_mask(region.mask, 256, 256), mask)


def test_without_masks_only_whole_pictures_are_asked_about(tmp_path: Path) -> None:
    (row,) = rows(write_scenes(tmp_path / "two", 1, with_masks=False, num_regions=2))
    (region,) = row["regions"]
    assert region["mask"] is None and [branch["name"] for branch in region["branches"]] == ["global"]
    (row,) = rows(write_scenes(tmp_path / "one", 1, with_masks=False, num_regions=1))
    (region,) = row["regions"]
    told = {branch["name"]: branch["answer"] for branch in region["branches"]}
    assert region["mask"] is None and told == answers(render_scene(0, num_regions=1), 0)


def test_number_of_regions_and_size_are_passed_on(tmp_path: Path) -> None:
    (row,) = rows(write_scenes(tmp_path, 1, size=320, num_regions=1))
    assert Image.open(tmp_path / row["image"]).size == (320, 320)
    assert row == scene_example(render_scene(0, size=320, num_regions=1), row["image"])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_several_processes_write_the_same_bytes_as_one(method: str, tmp_path: Path) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    code = (
        "import multiprocessing, sys\n"
        "from finecaption_hf.scenes import write_scenes\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method(sys.argv[1])\n"
        "    write_scenes(sys.argv[2], 20, seed=3, size=192, processes=2)\n"
    )
    script = tmp_path / "render.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run(
        [sys.executable, str(script), method, str(tmp_path / "two")], check=True, env=environment, timeout=120
    )
    write_scenes(tmp_path / "one", 20, seed=3, size=192, processes=1)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupted_write_leaves_no_records_and_can_be_repeated(processes: int, tmp_path: Path) -> None:
    def stop(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path, 400, size=192, processes=processes, on_scene=stop)
    assert not (tmp_path / "records.jsonl").exists()
    # Who stops does not wait for the scenes that are left.
    assert len(list((tmp_path / "images").iterdir())) < 300
    assert multiprocessing.active_children() == []
    assert len(rows(write_scenes(tmp_path, 5, size=192, processes=processes))) == 5


def test_a_process_that_dies_ends_the_write(tmp_path: Path) -> None:
    def kill(done: int) -> None:
        for process in multiprocessing.active_children():
            process.kill()

    with pytest.raises(BrokenProcessPool):
        write_scenes(tmp_path, 400, size=192, processes=2, on_scene=kill)
    assert not (tmp_path / "records.jsonl").exists()


def test_a_folder_that_holds_records_is_left_alone(tmp_path: Path) -> None:
    write_scenes(tmp_path, 1)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="Choose another folder"):
        write_scenes(tmp_path, 2, seed=9)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n is 0. Render at least one scene"),
        ({"n": 1, "size": 3}, "Give 192 to 1024 px"),  # as every other argument of `render_scene`
        ({"n": 1, "processes": 0}, "processes is 0"),
    ],
)
def test_impossible_sets_raise_before_anything_is_written(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        write_scenes(tmp_path / "set", **arguments)
    assert not (tmp_path / "set").exists()


# --- the truth about a record, from its ids --------------------------------------------------------------------------


@pytest.mark.parametrize("num_regions", [None, 1, 3])
@pytest.mark.parametrize("size", [192, 256])
def test_known_answers_are_those_of_the_scene(num_regions: int | None, size: int) -> None:
    for seed in (5, 6):
        scene = render_scene(seed, size=size, split="test", num_regions=num_regions)
        row = scene_example(scene, "a.png")
        for index, region in enumerate(row["regions"][:-1]):
            references = {branch["name"]: branch["answer"] for branch in region["branches"]}
            assert known_answers(row["id"], region["id"], (size, size), references) == accepted(scene, index)
        references = {branch["name"]: branch["answer"] for branch in row["regions"][-1]["branches"]}
        known = known_answers(row["id"], "image", (size, size), references)
        assert known["global"] == accepted(scene, 0)["global"]
        assert len(known) == 1 or len(scene.regions) == 1


@pytest.mark.parametrize(
    ("record_id", "region_id", "size", "answer"),
    [
        ("test-5", "0", (256, 256), "a lie"),
        ("test-5", "9", (256, 256), None),
        ("test-5", "left", (256, 256), None),
        ("other-5", "0", (256, 256), None),
        ("test-5", "0", (256, 200), None),
        ("test-5", "0", (64, 64), None),
        (None, "0", (256, 256), None),
        ("test-5", None, (256, 256), None),
    ],
)
def test_nothing_is_known_about_what_is_no_scene(
    record_id: str | None, region_id: str | None, size: tuple[int, int], answer: str | None
) -> None:
    references = {} if answer is None else {"Category Name": answer}
    assert known_answers(record_id, region_id, size, references) == {}
