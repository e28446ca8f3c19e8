"""Captioning of whole datasets: the texts, interruptions at any point, several processes, and the command."""

import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RealRegion, free_port
from killing import kill_after
from PIL import Image
from typer.testing import CliRunner
from waiting import exit_code

from finecaption_hf.asking import FineCaptionDescriber, load, load_describer
from finecaption_hf.cli import app, progress
from finecaption_hf.data import open_regions
from finecaption_hf.describing import (
    DescribeOptions,
    Processes,
    ProcessLostError,
    Result,
    ResumeError,
    UnfinishedError,
    dataset,
    describe_dataset,
)
from finecaption_hf.resuming import model_fingerprint

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["finecaption_hf.describing", "finecaption_hf.asking"])
OPTIONS = {"max_new_tokens": 5, "batch_size": 1}
LOST, UNFINISHED, REFUSED = 7, 8, 9


def write_rows(folder: Path, num_images: int, regions: int = 1) -> Path:
    """A JSONL file with small pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    rows = []
    for number in range(num_images):
        pixels = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        for index in range(regions):
            low = int(generator.integers(0, 30))
            box = [low, index, low + 10 + index, 40]
            rows.append({"image": f"{number}.png", "id": f"{number}.{index}", "box_xyxy": box})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def describe(checkpoint: Any, source: Any, output: Path, questions: Any = "color", **options: Any) -> Result:
    max_batch_tokens = options.pop("max_batch_tokens", None)
    describer = FineCaptionDescriber(*checkpoint, max_batch_tokens=max_batch_tokens)
    return describe_dataset(
        lambda: describer, open_regions(source), output, questions, DescribeOptions(**OPTIONS | options)
    )


def records(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def answer_alone(checkpoint: Any, picture: Image.Image, question: str, mask: Any) -> str:
    """By the library's own `generate`, six tokens."""
    model, processor = checkpoint
    chat = processor.conversation(picture, question, mask)
    inputs = processor.apply_chat_template(
        [chat], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    output = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    (text,) = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text.strip()


def command(*arguments: object) -> Any:
    result = CliRunner().invoke(app, ["describe", "--device", "cpu", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


# --- what is written --------------------------------------------------------------------------------------------------


def test_real_regions_get_the_answers_of_single_questions(
    embedded: Any, real_regions: list[RealRegion], tmp_path: Path
) -> None:
    source = real_regions[0].image.parents[1] / "regions.jsonl"
    output = tmp_path / "captions.jsonl"
    names = ["--attribute", "color", "--question", "What is it?", "--task", "global"]
    result = command(source, "--output", output, *names, "--max-new-tokens", 6, "--batch-size", 3)
    assert result.exit_code == 0, result.output
    assert "0 of 27 regions are whole pictures." in result.stderr
    found = records(output)
    assert [record["caption"] for record in found] == [region.caption for region in real_regions]  # keys of one's own
    for number in (0, 5, 20, 26):
        region, record = real_regions[number], found[number]
        picture = Image.open(region.image)
        assert record["answers"] == {
            "Color": answer_alone(embedded, picture, "color", region.mask),
            "What is it?": answer_alone(embedded, picture, "What is it?", region.mask),
            "global": answer_alone(embedded, picture, "global", None),
        }
        assert record["area"] == region.mask.sum()
        rows, columns = np.nonzero(region.mask)
        assert record["box_xyxy"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert [record["image"] for record in found] == [f"images/{region.image.name}" for region in real_regions]
    assert [record["region_index"] for record in found[:5]] == [0, 1, 2, 0, 1]
    manifest = json.loads(Path(f"{output}.manifest.json").read_text())
    assert set(manifest["questions"]) == {"Color", "What is it?", "global"}
    assert manifest["result"]["regions"] == 27
    again = command(source, "--output", output, *names, "--max-new-tokens", 6, "--batch-size", 3)
    assert again.exit_code == 0
    assert "finished before; nothing is left to do" in again.stderr


def test_regions_have_their_own_questions_and_the_whole_image_is_asked_about_once(
    embedded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    stream = FineCaptionDescriber.stream

    def noting(self: Any, prepared: Any, requests: Any, **options: Any) -> Any:
        asked.extend(request.name for of_region in requests for request in of_region)
        return stream(self, prepared, requests, **options)

    monkeypatch.setattr(FineCaptionDescriber, "stream", noting)
    rows = [json.loads(line) for line in write_rows(tmp_path, 2, 3).read_text().splitlines()]
    rows[1]["questions"] = ["shape", "Is it new?"]
    rows[4]["questions"] = "global"
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    describe(embedded, tmp_path / "own.jsonl", tmp_path / "out.jsonl", ["global", "color"], batch_size=2)
    found = [record["answers"] for record in records(tmp_path / "out.jsonl")]
    usual, own = ["global", "Color"], ["Shape", "Is it new?"]
    assert [list(answers) for answers in found] == [usual, own, usual, usual, ["global"], usual]
    assert sorted(asked) == sorted(["global"] * 2 + ["Color"] * 4 + own)
    assert found[0]["global"] == found[2]["global"]


def test_all_asks_every_attribute_and_log_probabilities_come_with_every_token(embedded: Any, tmp_path: Path) -> None:
    describe(embedded, write_rows(tmp_path, 1), tmp_path / "out.jsonl", "all", log_probs=True)
    (record,) = records(tmp_path / "out.jsonl")
    assert len(record["answers"]) == 16
    assert record["log_probs"].keys() == record["answers"].keys()
    for values in record["log_probs"].values():
        assert 1 <= len(values) <= 5
        assert all(value <= 0 for value in values)


def test_draws_follow_from_seed_and_position_only(embedded: Any, tmp_path: Path) -> None:
    rows = [{"image": "0.png", "box_xyxy": [0, 0, 20, 20]}] * 8
    write_rows(tmp_path, 1)
    source = tmp_path / "same.jsonl"
    source.write_text("\n".join(map(json.dumps, [*rows, {"image": "0.png", "box_xyxy": [0, 0, 9, 9]}])))
    texts = {}
    for name, options in {"a": {}, "b": {"batch_size": 4, "max_batch_tokens": 100}, "c": {"seed": 2}}.items():
        describe(embedded, source, tmp_path / name, "region", temperature=2.0, **options)
        texts[name] = [record["answers"]["region"] for record in records(tmp_path / name)]
    assert texts["a"] == texts["b"]
    assert texts["a"] != texts["c"]
    assert len(set(texts["a"][:8])) > 1


def test_what_fails_has_a_line_and_the_rest_is_described(embedded: Any, tmp_path: Path) -> None:
    source = write_rows(tmp_path, 4, 2)
    lines = source.read_text().splitlines()
    lines[3] = '{"image": "1.png", "box_xyxy": [900, 900, 950, 950]}'
    lines[5] = '{"image": "2.png", "box_'
    lines[0] = lines[0].replace("}", ', "questions": ["What is <image>?", "color"]}')
    source.write_text("\n".join(lines))
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:200])
    result = command(source, "--output", tmp_path / "out.jsonl", "--attribute", "color", "--batch-size", 4)
    assert result.exit_code == 1, result.output
    found = records(tmp_path / "out.jsonl")
    assert ["error" in record for record in found] == [False, False, False, True, False, True, True, True]
    errors = {number: found[number]["error"] for number in (3, 5, 6, 7)}
    types = ["MaskError", "DataError", "DataError", "DataError"]
    assert [error["type"] for error in errors.values()] == types
    # Of a region whose question cannot be asked, the others are.
    (why,) = found[0]["errors"].values()
    assert why["type"] == "NotAnswered" and "<image>" in why["message"] and list(found[0]["answers"]) == ["Color"]
    assert "rows.jsonl:6: the line is no JSON" in errors[5]["message"]
    assert "image '3.png'" in errors[6]["message"]
    assert all("answers" not in found[number] and "box_xyxy" not in found[number] for number in errors)
    assert (found[5]["image"], found[3]["image"]) == (None, "1.png")
    assert "5 of 8 regions could not be described:" in result.stderr
    assert "out.jsonl:4 (1.png, region 2): MaskError" in result.stderr
    # What could be answered is what it would be alone.
    alone = write_rows(tmp_path / "alone", 4, 2)
    describe(embedded, alone, tmp_path / "alone.jsonl", max_new_tokens=128)
    expected = records(tmp_path / "alone.jsonl")
    assert [found[number]["answers"] for number in (1, 2, 4)] == [expected[n]["answers"] for n in (1, 2, 4)]


def test_failed_regions_are_described_once_their_cause_is_mended(
    embedded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = write_rows(tmp_path, 5), tmp_path / "out.jsonl"
    describe(embedded, source, tmp_path / "expected.jsonl")
    (tmp_path / "3.png").rename(tmp_path / "gone")
    assert describe(embedded, source, output).failed == 1
    (tmp_path / "gone").rename(tmp_path / "3.png")
    assert describe(embedded, source, output).failed == 1
    prepared = []
    prepare = dataset._Worker.prepare
    monkeypatch.setattr(
        dataset._Worker, "prepare", lambda self, item: prepared.append(item.name) or prepare(self, item)
    )
    inputs, options = open_regions(source), DescribeOptions(**OPTIONS)
    describer = FineCaptionDescriber(*embedded)
    result = describe_dataset(lambda: describer, inputs, output, "color", options, retry_failed=True)
    assert (result.failed, prepared) == (0, ["3.png"])
    assert output.read_bytes() == (tmp_path / "expected.jsonl").read_bytes()


def test_pictures_are_read_ahead_of_the_model(embedded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    load_picture, answer = dataset.ImageInput.load, dataset._Worker.answer

    def noting_load(self: Any) -> Any:
        events.append(f"read {self.name}")
        return load_picture(self)

    def noting_answer(self: Any, images: Any) -> Any:
        deadline = time.monotonic() + 20
        # The model is slow: the threads have to get to the images of later batches before it is done with this one.
        while not events.count("answered") and "read 2.png" not in events and time.monotonic() < deadline:
            time.sleep(0.01)
        found = answer(self, images)
        events.append("answered")
        return found

    monkeypatch.setattr(dataset.ImageInput, "load", noting_load)
    monkeypatch.setattr(dataset._Worker, "answer", noting_answer)
    describe(embedded, write_rows(tmp_path, 12), tmp_path / "out.jsonl")
    assert events.index("read 2.png") < events.index("answered")
    # But not all of them: memory is bounded.
    assert events.index("read 11.png") > events.index("answered")


def test_a_thread_that_dies_while_it_reads_ahead_ends_the_run(
    embedded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset._Worker, "prepare", lambda self, item: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        describe(embedded, write_rows(tmp_path, 3), tmp_path / "out.jsonl")


@pytest.mark.parametrize(
    ("died_of", "error", "message"),
    [
        (MemoryError("no room for what the others sent"), MemoryError, "no room"),
        (RuntimeError("Connection closed by peer"), ProcessLostError, "ended early; it says why"),
    ],
)
def test_a_thread_that_dies_while_it_waits_for_the_others_is_no_answer_of_theirs(
    monkeypatch: pytest.MonkeyPatch, died_of: Exception, error: type[Exception], message: str
) -> None:
    def die(*arguments: Any, **options: Any) -> None:
        raise died_of

    monkeypatch.setattr(torch.distributed, "all_gather_object", die)
    with pytest.raises(error, match=message):
        Processes(0, 2).gather("mine", lambda: None)


def test_a_model_that_differs_in_one_tower_is_another_one(embedded: Any, tmp_path: Path) -> None:
    source, output = write_rows(tmp_path, 1), tmp_path / "out.jsonl"
    describe(embedded, source, output)
    before = model_fingerprint(*embedded)
    assert model_fingerprint(*load(device="cpu")) == before
    model, processor = load(device="cpu")
    with torch.no_grad():
        model.model.vision_tower.embeddings.alpha_embedding.weight.mul_(1.01)
    with pytest.raises(ResumeError, match="model: fingerprint was"):
        describe((model, processor), source, output)
    assert describe(embedded, source, output).regions == 1
    assert len(records(output)) == 1


def test_wrong_settings_are_refused_before_anything_is_written(embedded: Any, tmp_path: Path) -> None:
    source = write_rows(tmp_path, 1)
    before = sorted(tmp_path.iterdir())
    for options in ({"temperature": -1.0}, {"top_p": 0.0}, {"batch_size": 0}, {"max_new_tokens": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            describe(embedded, source, tmp_path / "out.jsonl", **options)
    with pytest.raises(ValueError, match="special token"):
        describe(embedded, source, tmp_path / "out.jsonl", "What is <image>?")
    assert sorted(tmp_path.iterdir()) == before


# --- interruptions ----------------------------------------------------------------------------------------------------


class Nursery:
    """A process with a model in memory. Runs are forked from it, so that one that is killed costs no new start."""

    def __init__(self) -> None:
        self.connection, other = PROCESSES.Pipe()
        self.process = PROCESSES.Process(target=_serve, args=(other,))
        self.process.start()

    def __call__(
        self, source: Path, output: Path, *, kill: Any = None, victim: int | None = None, **job: Any
    ) -> list[int]:
        """Exit codes of a run's processes; negative numbers are signals.

        Args:
            kill: after so many steps, if it is a whole number, or seconds, if it is a fraction.
            victim: the process to kill; `None` means all of them.
            job: `count` of processes, `room` for files in bytes, process `without_weights`.
        """
        self.connection.send({"source": source, "output": output, "kill": kill, "victim": victim, **job})
        assert self.connection.poll(90), "the run hangs"
        return self.connection.recv()

    def close(self) -> None:
        self.connection.send(None)
        try:
            exit_code(self.process, 20)
        finally:  # runs that hang
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


def _serve(connection: Any) -> None:
    os.setpgrp()
    describer = load_describer(device="cpu")
    while (job := connection.recv()) is not None:
        count, victim = job.get("count", 1), job["victim"]
        port = str(free_port())
        children = []
        for rank in range(count):
            children.append(os.fork())
            if not children[-1]:
                os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
                os.environ["MASTER_PORT"] = port
                os._exit(_run(describer, job, victim in (None, rank)))
        if isinstance(job["kill"], float):
            time.sleep(job["kill"])
            for child in children if victim is None else [children[victim]]:
                os.kill(child, signal.SIGKILL)
        connection.send([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])


def _run(describer: Any, job: dict[str, Any], is_victim: bool) -> int:
    # After a fork torch makes its pool anew at the first use, which must not be by two threads at once.
    torch.set_num_threads(1)
    if isinstance(job["kill"], int) and is_victim:
        kill_after(job["kill"])
    if "room" in job:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["room"], resource.RLIM_INFINITY))

    def load_here() -> Any:
        if job.get("without_weights") == int(os.environ["RANK"]):
            raise OSError("the weights are not here")
        return describer

    counted: list[int] = []
    try:
        result = describe_dataset(
            load_here,
            open_regions(job["source"]),
            job["output"],
            "color",
            DescribeOptions(**OPTIONS, temperature=1.0),
            processes=Processes.launched(),
            on_progress=lambda done, total: counted.append(done),
        )
        # The main process counts what all of them do.
        assert counted == sorted(counted)
        assert not counted or counted[-1] == result.regions
    except ProcessLostError:
        return LOST
    except UnfinishedError:
        return UNFINISHED
    except (OSError, ValueError):
        return REFUSED
    except BaseException:  # the process was forked: it must not go on as its parent would
        traceback.print_exc()
        return 1
    return 0


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    started = Nursery()
    yield started
    started.close()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"), 40)


@pytest.fixture(scope="module")
def uninterrupted(nursery: Nursery, source: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    output = tmp_path_factory.mktemp("expected") / "out.jsonl"
    assert nursery(source, output) == [0]
    found = records(output)
    assert [record["id"] for record in found] == [f"{number}.0" for number in range(40)]
    assert len({record["answers"]["Color"] for record in found}) > 5  # or a mix-up would not show
    return output.read_bytes()


def assert_finished(output: Path, expected: bytes) -> None:
    assert output.read_bytes() == expected
    assert sorted(path.name for path in output.parent.iterdir()) == [output.name, f"{output.name}.manifest.json"]


def test_twenty_kills_change_nothing(nursery: Nursery, source: Path, uninterrupted: bytes, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    draw = random.Random(5)
    for number in range(20):
        # Few enough steps that 20 of them do not finish the file; and now and then by the clock.
        kill = draw.uniform(0.005, 0.05) if number % 4 == 3 else draw.randint(1, 8)
        assert nursery(source, output, kill=kill) == [-signal.SIGKILL]
        assert not output.exists()
    lines = (output.parent / "out.jsonl.parts" / "part-0.jsonl").read_bytes().count(b"\n")
    assert 5 < lines < 40
    assert nursery(source, output) == [0]
    assert_finished(output, uninterrupted)


@pytest.mark.parametrize("start", [3, *(pytest.param(start, marks=pytest.mark.slow) for start in (1, 2))])
def test_a_kill_at_any_step_on_disk_changes_nothing(nursery: Nursery, tmp_path: Path, start: int) -> None:
    source = write_rows(tmp_path / "rows", 2)
    (tmp_path / "expected").mkdir()
    assert nursery(source, tmp_path / "expected" / "out.jsonl") == [0]
    expected = (tmp_path / "expected" / "out.jsonl").read_bytes()
    steps = start
    while True:
        output = tmp_path / str(steps) / "out.jsonl"
        output.parent.mkdir()
        if nursery(source, output, kill=steps) == [0]:
            break
        assert output.read_bytes() == expected if output.exists() else True
        assert nursery(source, output) == [0]
        assert_finished(output, expected)
        steps += 3
    assert steps > 20  # manifest, two lines, the merged file, its manifest, and the folder that goes


def test_a_full_disk_keeps_what_is_finished(
    nursery: Nursery, source: Path, uninterrupted: bytes, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    assert nursery(source, output, room=3000) == [UNFINISHED]
    part = (tmp_path / "out.jsonl.parts" / "part-0.jsonl").read_bytes()
    assert part.endswith(b"}\n")
    assert 5 < part.count(b"\n") < 30
    assert nursery(source, output, room=3000) == [UNFINISHED]
    assert nursery(source, output) == [0]
    assert_finished(output, uninterrupted)


# --- several processes ------------------------------------------------------------------------------------------------


def test_two_processes_write_the_file_of_one(
    nursery: Nursery, source: Path, uninterrupted: bytes, tmp_path: Path
) -> None:
    assert nursery(source, tmp_path / "out.jsonl", count=2) == [0, 0]
    assert_finished(tmp_path / "out.jsonl", uninterrupted)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_lost_ends_the_others_and_its_work_is_kept(
    nursery: Nursery, source: Path, uninterrupted: bytes, tmp_path: Path, victim: int
) -> None:
    output = tmp_path / "out.jsonl"
    codes = nursery(source, output, count=2, kill=12, victim=victim)
    assert codes == [LOST if rank != victim else -signal.SIGKILL for rank in range(2)]
    parts = sorted((tmp_path / "out.jsonl.parts").glob("part-*.jsonl"))
    assert all(part.read_bytes().count(b"\n") >= 2 for part in parts)
    assert len(parts) == 2
    # Another number of processes may go on.
    codes = nursery(source, output, count=3, kill=0.3)
    assert set(codes) <= {-signal.SIGKILL, 0}
    assert nursery(source, output) == [0]
    assert_finished(output, uninterrupted)


def test_a_full_disk_of_one_process_is_told_by_all(nursery: Nursery, source: Path, tmp_path: Path) -> None:
    assert nursery(source, tmp_path / "out.jsonl", count=2, room=1500) == [UNFINISHED, LOST]


def test_a_process_that_cannot_start_ends_all(nursery: Nursery, source: Path, tmp_path: Path) -> None:
    assert nursery(source, tmp_path / "out.jsonl", count=2, without_weights=1) == [REFUSED, REFUSED]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_accelerate_launch_spreads_a_dataset_over_two_processes(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows", 5)
    arguments = ["describe", source, "--device", "cpu", "--batch-size", "1", "--output"]
    port = str(free_port())
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port]
    for name, started in {"one.jsonl": [], "two.jsonl": launcher}.items():
        line = [sys.executable, *started, "-m", "finecaption_hf.cli", *map(str, arguments), str(tmp_path / name)]
        result = subprocess.run(line, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        assert result.stderr.count("Wrote ") == 1
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


# --- the command ------------------------------------------------------------------------------------------------------


def test_ctrl_c_says_how_to_go_on(embedded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [write_rows(tmp_path, 4), "--output", tmp_path / "out.jsonl", "--batch-size", 1]
    answer, calls = dataset._Worker.answer, [0]

    def interrupted(self: Any, images: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return answer(self, images)

    monkeypatch.setattr(dataset._Worker, "answer", interrupted)
    result = command(*arguments)
    assert result.exit_code == 130
    expected = "2 of 4 regions are finished. What was finished is kept; the same command goes on from there."
    assert f"Stopped. {expected}" in result.stderr
    again = command(*arguments, "--json")
    assert again.exit_code == 0
    assert "2 of 4 regions were described before; going on." in again.stderr
    assert json.loads(again.stdout) == {
        "output": str(tmp_path / "out.jsonl"),
        "regions": 4,
        "whole_pictures": 0,
        "pictures_without_regions": 0,
        "failed": 0,
        "failures": [],
    }


def test_a_full_disk_ends_in_one_line_and_exit_code_1(tmp_path: Path) -> None:
    arguments = [write_rows(tmp_path, 30), "--output", tmp_path / "out.jsonl", "--batch-size", 1]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, limits[1]))
    try:
        result = command(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.exit_code == 1, result.output
    assert "Error: Nothing more can be written to" in result.stderr
    assert "of 30 regions are finished. What was finished is kept; the same command goes on" in result.stderr
    assert command(*arguments).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rows.jsonl", "--output", "gone/out.jsonl"], "does not exist. Make it first"),
        (["gone.jsonl", "--output", "out.jsonl"], "there is no such file or folder"),
        (["rows.jsonl", "--output", "out.jsonl", "--temperature", "-1"], "temperature is -1"),
        (["rows.jsonl", "--output", "out.jsonl", "--split", "test"], "a file has no splits"),
        (["rows.jsonl", "--output", "rows.jsonl"], "is, or holds, the input"),
        (["rows.jsonl", "--output", "rows.txt"], "its suffix tells no format. Give --output-format: jsonl, csv"),
        (["rows.jsonl", "--output", "out", "--output-format", "cvs"], "There is no output format 'cvs'"),
        (["rows.jsonl", "--output", "out", "--output-format", "same"], "was read as JSON Lines; texts are put back"),
    ],
)
def test_wrong_use_ends_in_one_line_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    write_rows(tmp_path, 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "finecaption_hf.asking.load_describer", lambda *args, **kwargs: pytest.fail("a model was loaded")
    )
    before = sorted(tmp_path.iterdir())
    result = command(*arguments)
    assert result.exit_code == 2, result.output
    *told, error = result.stderr.splitlines()
    assert message in error
    assert told in ([], ["rows.jsonl: read as JSON Lines, 1 regions."])
    assert sorted(tmp_path.iterdir()) == before


def test_an_input_that_changes_under_the_run_ends_it_and_a_defect_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_rows(tmp_path, 12)
    arguments = [source, "--output", tmp_path / "out.jsonl", "--batch-size", 1, "--max-new-tokens", 4]
    answer = dataset._Worker.answer
    with monkeypatch.context() as patches:
        patches.setattr(dataset._Worker, "answer", lambda self, images: source.unlink(True) or answer(self, images))
        result = command(*arguments)
    assert result.exit_code == 1, result.output
    assert "rows.jsonl" in result.stderr
    assert "of 12 regions are finished" in result.stderr
    write_rows(tmp_path, 12)
    with monkeypatch.context() as patches:
        patches.setattr(dataset._Worker, "answer", lambda self, images: int("a defect"))
        with pytest.raises(ValueError, match="a defect"):
            command(*arguments)
    assert command(*arguments).exit_code == 0
    assert len(records(tmp_path / "out.jsonl")) == 12


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.progress(is_main=True) as show:
        for second in range(0, 100, 5):
            now[0] = 100.0 + second
            show(1000 + 2 * second, 4000)
    with progress.progress(is_main=False) as show:
        show(0, 10)
        now[0] += 1000
        show(5, 10)
    assert capsys.readouterr().err.splitlines() == [
        "1060 of 4000 regions, 2.0 regions/s, 00:24:30 left",
        "1120 of 4000 regions, 2.0 regions/s, 00:24:00 left",
        "1180 of 4000 regions, 2.0 regions/s, 00:23:30 left",
    ]


def test_caption_with_an_input_is_the_same_command_and_says_so(tmp_path: Path) -> None:
    source = write_rows(tmp_path, 2)
    options = ["--attribute", "color", "--device", "cpu", "--max-new-tokens", "4"]
    calls = {
        "a": ["caption", f"--input={source}"],
        "b": ["caption", "--input", str(source)],
        "c": ["describe", str(source)],
    }
    for name, call in calls.items():
        result = CliRunner().invoke(app, [*call, "--output", str(tmp_path / name), *options])
        assert result.exit_code == 0, result.output
        said = "caption --input FILE is finecaption describe FILE, which runs now."
        assert result.stderr.count(said) == (name != "c")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["caption"], "Missing argument 'image'"),
        (["describe"], "Missing argument 'FILE|DIR|ID'"),
        (["describe", "rows.jsonl"], "Missing option '--output'"),
        (["describe", "rows.jsonl", "--output", "out.jsonl", "--box", "0,0,1,1"], "There is no option --box."),
        (["caption", "a.png", "--batch-size", "1"], "There is no option --batch-size."),
        (["caption", __file__, "--top-p", "2"], "top_p is 2"),
    ],
)
def test_options_of_the_other_command_are_refused(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message.casefold() in " ".join(result.stderr.split()).casefold()


def test_an_attribute_that_is_not_known_lists_those_that_are(tmp_path: Path) -> None:
    source = write_rows(tmp_path, 1)
    result = command(source, "--output", tmp_path / "out.jsonl", "--attribute", "colour")
    assert result.exit_code == 2
    assert "Materials/Texture" in result.stderr
    assert not list(tmp_path.glob("out*"))
