"""`finecaption data check` and what it counts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RealRegion
from PIL import Image
from typer.testing import CliRunner

from finecaption_hf.cli import app
from finecaption_hf.data import DataError, read_examples
from finecaption_hf.data.check import OWN_WORDS, Lengths, check_dataset
from finecaption_hf.data.encoding import encode_rle


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["data", "check", *map(str, arguments)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (10, 10)).save(tmp_path / "a.png")
    Image.new("RGB", (20, 10)).save(tmp_path / "b.png")
    noise = np.random.default_rng(0).integers(0, 256, (10, 10, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    (tmp_path / "short.png").write_bytes((tmp_path / "noise.png").read_bytes()[:150])
    mask = np.zeros((10, 10), dtype=bool)
    mask[:2, :4] = True  # 8 %
    color, own = {"name": "color", "answer": "red"}, {"question": "Why?", "answer": "no idea"}
    good = [{"mask": encode_rle(mask), "branches": [color, own]}, {"branches": [{"name": "global", "answer": "a cup"}]}]
    rows = [
        {"image": "a.png", "regions": good},
        {
            "image": "b.png",
            "regions": [{"mask": [0.1, 0.1, 0.9, 0.9], "branches": [{"name": "Vibe", "answer": "calm"}]}],
        },
        {"image": "b.png", "regions": good[:1] * 2},  # a mask of another size, twice
        {"image": "short.png", "regions": good},
        {"image": "absent.png", "regions": good},
        {"image": "../a.png", "regions": good},
        {"image": "a.png", "regions": []},
    ]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    return tmp_path


def test_check_counts_and_tells_every_problem(folder: Path) -> None:
    result = run(folder, "--json")
    assert result.exit_code == 1, result.output
    report = json.loads(result.stdout)
    counts = ("num_examples", "num_rejected", "num_regions", "num_whole_images", "num_branches")
    assert [report[name] for name in counts] == [2, 6, 3, 1, 4]
    assert report["names"] == {"global": 1, "Color": 1, "Vibe": 1, OWN_WORDS: 1}
    assert report["unknown_names"] == ["Vibe"]
    # [0.1, 0.1, 0.9, 0.9] marks one pixel of 20 x 10.
    areas = {name: number for name, number in report["areas"].items() if number}
    assert areas == {"0.1 % to 1 %": 1, "3 % to 10 %": 1}
    assert report["image_sizes"] == {"10 x 10": 1, "20 x 10": 1}
    assert report["answer_tokens"]["number"] == 4 and report["question_tokens"]["number"] == 3
    assert any("UserWarning" in note for note in report["notes"])
    problems = {where.rpartition(":")[2]: reason for where, reason in report["problems"]}
    assert list(problems) == ["3", "4", "5", "6", "7", "8"]
    assert "regions[0].mask" in problems["3"] and "regions[1].mask" in problems["3"] and "10x10" in problems["3"]
    assert "cannot be decoded" in problems["4"] and "not there" in problems["5"] and "leads out" in problems["6"]
    assert "has none" in problems["7"] and "no JSON" in problems["8"]
    rejects = [json.loads(line) for line in (folder / "records.jsonl.rejects.jsonl").read_text().splitlines()]
    assert [(reject["where"], reject["reason"]) for reject in rejects] == [tuple(each) for each in report["problems"]]


def test_check_prints_tables(folder: Path) -> None:
    result = run(folder, "--rejects", folder / "mine.jsonl", "--limit", 2)
    assert result.exit_code == 0, result.output
    assert "Vibe" in result.stdout and "no question of that name" in result.stdout
    assert "Not all of the dataset was read" in result.stdout
    assert not (folder / "mine.jsonl").exists()
    result = run(folder, "--rejects", folder / "mine.jsonl")
    assert result.exit_code == 1 and "Wrote 6 rejected examples" in result.output
    assert "it is not there" in " ".join(result.stdout.split())


def test_check_of_texts_opens_no_picture(folder: Path) -> None:
    report = json.loads(run(folder, "--texts-only", "--json").stdout)
    assert (report["num_examples"], report["num_rejected"], report["areas"]) == (6, 2, {})


def test_check_stops_at_the_first_problem_on_demand(folder: Path) -> None:
    result = run(folder, "--on-error", "raise")
    assert result.exit_code == 2 and "records.jsonl:3" in result.output
    with pytest.raises(DataError, match=r"records\.jsonl:3: regions\[0\]\.mask"):
        check_dataset(read_examples(folder))


def test_check_of_a_broken_file_tells_what_was_read(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "a cup"}]
    (tmp_path / "x.json").write_text(json.dumps([{"image": "a.png", "conversations": turns}] * 3)[:-9])
    result = run(tmp_path / "x.json", "--texts-only", "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 1 and report["num_examples"] == 2 and not report["complete"]
    assert "nothing after it can be read" in report["problems"][0][1]


def test_check_of_real_regions(real_regions: list[RealRegion], tmp_path: Path) -> None:
    source = real_regions[0].image.parents[1]
    result = run(source / "regions.jsonl", "--json", "--rejects", tmp_path / "rejects.jsonl")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["names"] == {"dense": len(real_regions)} and report["problems"] == []
    shares = [region.mask.mean() for region in real_regions]
    assert report["areas"]["0.1 % to 1 %"] == sum(0.001 < share <= 0.01 for share in shares)


def test_wrong_arguments_end_in_one_line(tmp_path: Path) -> None:
    result = run(tmp_path / "absent.json")
    assert result.exit_code == 2 and "there is no such file" in result.output


def test_lengths_are_summed_up() -> None:
    lengths = Lengths()
    values = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    for value in values:
        lengths.add(value)
    assert lengths.summary() == {
        "number": 11,
        "mean": round(sum(values) / 11, 2),
        "median": int(np.median(values)),
        "p95": 9,
        "max": 9,
    }
    assert Lengths().summary() == {"number": 0}
