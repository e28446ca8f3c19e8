"""`describe --engine ray`: two engines give the file of one, also where the run was killed."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import EXAMPLE_PICTURE
from PIL import Image
from serving_vllm import MARKS, OPTIONS, environment

pytest.importorskip("ray", reason="Ray is not installed: CONTRIBUTING.md says how")

pytestmark = MARKS

WAIT_S = 600.0  # for a run of a minute, where nothing else runs
# A row at a time, so that both engines have work, and are in the midst of it when they are killed.
OF_RAY = {
    "concurrency": [2, 2],
    "batch_size": 1,
    "max_concurrent_batches": 1,
    "placement_group_config": {"bundles": [{"CPU": 0.5}]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures with two regions each, of which some cannot be described."""
    folder = tmp_path_factory.mktemp("ray")
    picture = Image.open(EXAMPLE_PICTURE).convert("RGB")
    rows: list[dict[str, Any]] = []
    for number in range(10):
        picture.rotate(9 * number).save(folder / f"{number}.png")
        rows += [{"image": f"{number}.png", "box_xyxy": box} for box in ([100, 149, 160, 209], [178, 25, 249, 96])]
    rows[3]["box_xyxy"] = [900, 900, 950, 950]
    rows[4]["image"] = rows[5]["image"] = "absent.png"
    rows[8]["questions"] = ["Is it " + "very " * 900 + "new?"]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def command(output: str, engine: str, **options: Any) -> list[str]:
    return [
        *(sys.executable, "-m", "finecaption_hf.cli", "describe", "rows.jsonl", "--output", output, "--json"),
        *("--task", "region", "--attribute", "color", "--task", "global", "--batch-size", "1"),
        *("--engine", engine, "--engine-options", json.dumps(OPTIONS | options)),
    ]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {**environment(tmp_path_factory.mktemp("plugin")), "RAY_USAGE_STATS_ENABLED": "0"}


def run(command: list[str], folder: Path, settings: dict[str, str]) -> Any:
    done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 1, done.stderr[-3000:]  # four regions fail
    return json.loads(done.stdout)


def engines(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children(recursive=True) if child.name() == "VLLM::EngineCore"]


@pytest.mark.timeout(4 * WAIT_S)
def test_two_engines_that_were_killed_end_with_the_file_of_one(folder: Path, settings: dict[str, str]) -> None:
    expected = run(command("one.jsonl", "vllm"), folder, settings)
    assert expected["regions"] == 20 and expected["failed"] == 4
    finished = folder / "two.jsonl.parts" / "part-0.jsonl"
    log = folder / "log"
    with log.open("wb") as file:
        again = command("two.jsonl", "ray", **OF_RAY)
        started = psutil.Popen(again, cwd=folder, env=settings, stdout=file, stderr=file)
    try:
        end, most = time.monotonic() + WAIT_S, 0
        while not (finished.is_file() and finished.read_bytes().count(b"\n") >= 2):
            assert started.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
            most = max(most, len(engines(started)))
            time.sleep(0.1)
    finally:
        others = started.children(recursive=True) if started.poll() is None else []
        started.kill()
        started.wait(60)
        # Ray ends with the process that started it.
        _, left = psutil.wait_procs(others, timeout=120)
        for process in left:
            process.kill()
    assert most == 2 and not left
    assert not (folder / "two.jsonl").exists() and finished.read_bytes().count(b"\n") < 10
    found = run(again, folder, settings)
    assert (folder / "two.jsonl").read_bytes() == (folder / "one.jsonl").read_bytes()
    assert found == json.loads(json.dumps(expected).replace("one.jsonl", "two.jsonl"))


@pytest.mark.timeout(2 * WAIT_S)
def test_log_probs_are_those_of_the_engine(folder: Path, settings: dict[str, str]) -> None:
    (folder / "first.jsonl").write_text((folder / "rows.jsonl").read_text().splitlines(keepends=True)[0])
    records = []
    for output, options in (("own.jsonl", ["--device", "cpu"]), ("ray.jsonl", ["--engine", "ray"])):
        if "ray" in options:
            options += ["--engine-options", json.dumps({**OPTIONS, **OF_RAY, "concurrency": 1})]
        command = [sys.executable, "-m", "finecaption_hf.cli", "describe", "first.jsonl", "--output", output, *options]
        done = subprocess.run(
            [*command, "--log-probs", "--attribute", "all"],
            cwd=folder,
            env=settings,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        records.append(json.loads((folder / output).read_text()))
    own, ray = records
    assert own.pop("log_probs") == {
        name: pytest.approx(values, abs=1e-4) for name, values in ray.pop("log_probs").items()
    }
    assert own == ray and len(own["answers"]) > 10
