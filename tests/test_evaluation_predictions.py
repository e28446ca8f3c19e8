"""Predictions on disk, and runs that go on where they were ended."""

import copy
import json
import os
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from describers import StubDescriber
from evaluation_data import box, prediction, record, region, write_data

from finecaption_hf.asking import FineCaptionDescriber, ask
from finecaption_hf.data import DataError, open_dataset
from finecaption_hf.evaluation import (
    Header,
    Prediction,
    PredictionWriter,
    read_predictions,
)
from finecaption_hf.evaluation.errors import EvaluationError
from finecaption_hf.evaluation.predicting import run_predictions, walk
from finecaption_hf.resuming import ResumeError

HEADER = Header("a model", {"seed": 1, "size": (2, 3)}, {"name": "data", "branches": 2}, {"command": "x"})
FULL = Prediction(
    "a|b.png|0|0",
    "a|b.png",
    0,
    "What?",
    ("red", "dark\u2028red"),
    'a "red"\ncup\r',
    name="Color",
    image_id="1",
    region_id="2",
    area=6,
    image_size=(20, 30),
    box_xyxy=(1, 2, 3, 5),
    log_prob=-1.5,
)


# --- the file --------------------------------------------------------------------------------------------------------


def test_predictions_come_back_as_they_were_and_a_torn_one_is_made_again(tmp_path: Path) -> None:
    path, failed, told = tmp_path / "p.jsonl", prediction("b|3|1", None), []
    with PredictionWriter(path, HEADER) as writer:
        writer.write(FULL)
        writer.write(failed)
        with pytest.raises(ResumeError, match="Another run is writing"):
            PredictionWriter(path, HEADER)
    header, found = read_predictions(path)
    assert found == [FULL, failed]
    assert found[0].area_share == 6 / 600
    assert found[1].area_share is None
    assert (header.model, header.settings["size"], header.made_with) == ("a model", [2, 3], {"command": "x"})
    whole = path.read_bytes()
    os.truncate(path, len(whole) - 20)
    with pytest.raises(ResumeError, match=r":3 cannot be used.*not written to its end"):
        read_predictions(path)
    with PredictionWriter(path, HEADER, tell=told.append) as writer:
        assert writer.done == {FULL.key}
        writer.write(failed)
    assert path.read_bytes() == whole
    assert len(told) == 1 and told[0].endswith("that prediction is made again.")


def test_a_file_of_other_settings_or_data_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    PredictionWriter(path, HEADER).close()
    PredictionWriter(path, replace(HEADER, made_with={"command": "y"})).close()
    with pytest.raises(ResumeError, match=r"settings: seed was 1, now it is 2.*--overwrite"):
        PredictionWriter(path, replace(HEADER, settings={**HEADER.settings, "seed": 2}))
    with pytest.raises(ResumeError, match='data: name was "data", now it is "other"'):
        PredictionWriter(path, replace(HEADER, data={**HEADER.data, "name": "other"}))
    with PredictionWriter(path, replace(HEADER, settings={}), overwrite=True) as writer:
        assert not writer.done
    assert read_predictions(path)[0].settings == {}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "is empty"),
        (["not json"], ":1 cannot be used: the line is no JSON"),
        (['{"key": "a"}'], ":1 cannot be used: it does not begin with a header"),
        (['{"finecaption_predictions": 2, "model": "m"}'], "it is of format 2, this version reads 1"),
        ([None, "[]"], ":2 cannot be used: list arrived"),
        ([None, {"references": []}], "there is no reference"),
        ([None, {"references": ["a", 1]}], "'references' is"),
        ([None, {"prediction": 7}], "'prediction' is 7; str is needed"),
        ([None, {"prediction": None}], "either a text or an error"),
        ([None, {"error": {"type": "x", "message": "y"}}], "either a text or an error"),
        ([None, {"region_index": True}], "'region_index' is true"),
        ([None, {"image_size": [1, 2, 3]}], "'image_size' is"),
        ([None, {"log_prob": float("nan")}], "a finite number is needed"),
        ([None, {}, {}], ":3 has the key .* of line 2 again"),
    ],
)
def test_a_damaged_file_is_refused_with_the_line(tmp_path: Path, lines: list[Any], message: str) -> None:
    texts = []
    for line in lines:
        line = HEADER.to_json() if line is None else line
        if isinstance(line, dict) and "model" not in line:
            line = {**FULL.to_json(), **line}
        texts.append(line if isinstance(line, str) else json.dumps(line))
    path = tmp_path / "p.jsonl"
    path.write_text("".join(text + "\n" for text in texts))
    with pytest.raises(ResumeError, match=message):
        read_predictions(path)


# --- runs ------------------------------------------------------------------------------------------------------------

ROWS = [
    record(
        "a.png", region(box(0, 0, 2, 3), ("Color", "red"), ("Shape", "round"), ("color", "dark red"), ("Color", "red"))
    ),
    record("b.png", region(None, ("global", "a cup")), region(box(5, 5, 6, 7), ("Color", "blue"))),
    record("a.png", region(box(1, 1, 5, 5), ("Shape", "square"))),
    record("c.png", region(box(1, 1, 2, 2), ("Color", "green"), ("Logo", "none"))),
    record("d.png", region(box(1, 1, 9, 9), ("Color", "white"))),
]


def test_branches_that_ask_the_same_are_one_with_several_references(tmp_path: Path) -> None:
    asked = [rows for _, rows in walk(open_dataset(write_data(tmp_path, ROWS)))]
    assert [(it.key, it.name, it.references) for it in asked[0][0]] == [
        ("a.png|0|0", "Color", ("red", "dark red")),
        ("a.png|0|1", "Shape", ("round",)),
    ]
    # The same image again: its regions are counted on, so keys stay apart.
    assert asked[2][0][0].key == "a.png|1|0"
    keys = [branch.key for rows in asked for row in rows for branch in row]
    assert len(set(keys)) == len(keys)


def run(path: Path, dataset: Any, describer: Any = None, **options: Any) -> list[Prediction]:
    run_predictions(describer or StubDescriber(), dataset, path, **{"batch_size": 2, **options})
    return read_predictions(path)[1]


def test_predictions_say_what_was_asked_about_what(tmp_path: Path) -> None:
    dataset = open_dataset(write_data(tmp_path, ROWS))
    questions = {"Color": "Which color?", "Shape": "Which shape?", "global": "All?"}
    found = {it.key: it for it in run(tmp_path / "p.jsonl", dataset, StubDescriber(questions=questions))}
    first = found["a.png|0|0"]
    assert (first.prediction, first.question, first.image_id, first.region_id) == (
        "Which color? 6",
        "Which color?",
        "id of a.png",
        "r",
    )
    assert (first.area, first.image_size, first.box_xyxy, first.log_prob) == (6, (20, 30), (0, 0, 2, 3), -1.0)
    whole = found["b.png|0|0"]
    assert (whole.prediction, whole.area, whole.box_xyxy) == ("All? all", 600, (0, 0, 30, 20))
    header, _ = read_predictions(tmp_path / "p.jsonl")
    assert (header.data["records"], header.data["regions"], header.data["branches"]) == (5, 6, 8)
    assert header.settings["questions"] == questions


def test_what_cannot_be_described_is_a_line_with_the_reason(tmp_path: Path) -> None:
    rows = [*ROWS, record("e.png", region(box(90, 90, 99, 99), ("Color", "red")), region(None, ("refuse", "no")))]
    dataset = open_dataset(write_data(tmp_path, rows))
    (tmp_path / "d.png").unlink()
    describer = StubDescriber(questions={"Color": "C?", "Shape": "S?", "refuse": "refuse"})
    found = run(tmp_path / "p.jsonl", dataset, describer)
    failed = {it.key: it.error for it in found if it.error is not None}
    assert len(found) == read_predictions(tmp_path / "p.jsonl")[0].data["branches"] == 10
    assert {key: error["type"] for key, error in failed.items()} == {
        "b.png|0|0": "NotAnswered",
        "c.png|0|1": "NotAnswered",
        "d.png|0|0": "DataError",
        "e.png|0|0": "MaskError",
        "e.png|1|0": "NotAnswered",
    }
    assert "no question of the name 'Logo'" in failed["c.png|0|1"]["message"]
    assert "it is not there" in failed["d.png|0|0"]["message"]
    # What can be asked about the same region still is.
    assert next(it for it in found if it.key == "c.png|0|0").prediction == "C? 1"
    with pytest.raises(EvaluationError, match=r"b.png\|0\|0: NotAnswered: .*kept"):
        run(
            tmp_path / "q.jsonl",
            dataset,
            StubDescriber(questions={"Color": "C?", "Shape": "S?"}),
            on_error="raise",
        )
    assert [it.key for it in read_predictions(tmp_path / "q.jsonl")[1]] == ["a.png|0|0", "a.png|0|1", "b.png|1|0"]


def seeds(describer: StubDescriber) -> list[list[int]]:
    """Of each call; every question about every region has a seed of its own."""
    return [[request.seed for _, request in call] for call in describer.calls]


@pytest.mark.parametrize("independent", [False, True])
def test_a_run_that_was_ended_anywhere_ends_as_one_in_one_go(tmp_path: Path, independent: bool) -> None:
    dataset = open_dataset(write_data(tmp_path, ROWS))
    whole = tmp_path / "whole.jsonl"
    reference = StubDescriber(independent=independent)
    run(whole, dataset, reference)
    asked = seeds(reference)
    assert len({seed for call in asked for seed in call}) == 7
    for stop in range(7):
        path = tmp_path / f"{stop}.jsonl"
        with pytest.raises(KeyboardInterrupt):
            run(path, dataset, StubDescriber(independent=independent, stop_after=stop))
        describer = StubDescriber(independent=independent)
        run(path, dataset, describer)
        assert path.read_bytes() == whole.read_bytes()
        if independent:
            # Nothing is paid for twice.
            assert [*chain(*seeds(describer))] == [*chain(*asked)][stop:]
        else:
            # Whole batches, at their places, so that a model gives the same texts.
            assert all(call in asked for call in seeds(describer))
    describer = StubDescriber(independent=independent)
    run(whole, dataset, describer)
    assert not describer.calls


def test_failed_predictions_are_tried_again_on_request_and_stand_in_their_place(tmp_path: Path) -> None:
    dataset = open_dataset(write_data(tmp_path, ROWS))
    whole = run(tmp_path / "whole.jsonl", dataset)
    (tmp_path / "b.png").rename(tmp_path / "away.png")
    path = tmp_path / "p.jsonl"
    assert [it.key for it in run(path, dataset) if it.error] == ["b.png|0|0", "b.png|1|0", "c.png|0|1"]
    (tmp_path / "away.png").rename(tmp_path / "b.png")
    assert sum(it.error is not None for it in run(path, dataset)) == 3
    assert run(path, dataset, retry_failed=True) == whole


def test_other_data_is_not_gone_on_with_and_a_limit_keeps_the_keys(tmp_path: Path) -> None:
    path, dataset = tmp_path / "p.jsonl", open_dataset(write_data(tmp_path / "one", ROWS))
    everything = run(path, dataset)
    changed = json.loads(json.dumps(ROWS))
    changed[4]["regions"][0]["mask"]["box_xyxy"][0] = 2
    with pytest.raises(ResumeError, match="data: fingerprint was"):
        run(path, open_dataset(write_data(tmp_path / "two", changed)))
    with pytest.raises(ResumeError, match="data: records was 5, now it is 3"):
        run(path, dataset, limit=3)
    assert run(tmp_path / "some.jsonl", dataset, limit=3) == everything[:5]
    with pytest.raises(DataError, match="holds no example"):
        run(tmp_path / "q.jsonl", [])


# --- FineCaption -----------------------------------------------------------------------------------------------------


@pytest.fixture
def scenes(tmp_path: Path) -> Any:
    from finecaption_hf.scenes import write_scenes

    return open_dataset(write_scenes(tmp_path / "scenes", 3, seed=77, size=192, split="test"))


def test_finecaption_says_what_it_says_without_a_runner(tmp_path: Path, embedded: Any, scenes: Any) -> None:
    model, processor = embedded
    describer = FineCaptionDescriber(model, processor, max_new_tokens=6)
    found = {it.key: it for it in run(tmp_path / "p.jsonl", scenes, describer)}
    record, rows = next(walk(scenes))
    for part, row in zip(record.regions, rows, strict=True):
        names = [asked.name for asked in row]
        (alone,) = ask(describer, record.load(), [part.mask], names)
        assert [found[asked.key].prediction for asked in row] == list(alone["answers"].values())
    assert all(it.log_prob is not None and it.log_prob <= 0 for it in found.values())


def test_drawn_answers_do_not_depend_on_where_a_run_was_ended(tmp_path: Path, embedded: Any, scenes: Any) -> None:
    model, processor = embedded

    def drawn(path: Path, seed: int = 3, **options: Any) -> list[Prediction]:
        describer = FineCaptionDescriber(model, processor, max_new_tokens=4)
        decoding = {"temperature": 1.5, "seed": seed}
        return run(path, scenes, describer, batch_size=1, decoding=decoding, **options)

    whole = drawn(tmp_path / "whole.jsonl")
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "part.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]))
    assert drawn(tmp_path / "part.jsonl") == whole
    header, _ = read_predictions(tmp_path / "whole.jsonl")
    assert header.settings["decoding"] == {"max_new_tokens": 4, "temperature": 1.5, "seed": 3}
    other = drawn(tmp_path / "other.jsonl", seed=4)
    assert [it.prediction for it in other] != [it.prediction for it in whole]
    with pytest.raises(ResumeError, match="decoding: seed was 3, now it is 4"):
        drawn(tmp_path / "whole.jsonl", seed=4)


def test_a_question_that_cannot_be_asked_fails_alone(tmp_path: Path, embedded: Any, scenes: Any) -> None:
    model, processor = embedded
    processor = copy.copy(processor)
    processor.questions = {**processor.questions, "Color": f"Which {processor.image_token}?"}
    describer = FineCaptionDescriber(model, processor, max_new_tokens=4)
    found = run(tmp_path / "p.jsonl", scenes, describer)
    failed = {it.name for it in found if it.error is not None}
    assert failed == {"Color"}
    assert all("special token" in it.error["message"] for it in found if it.error is not None)
