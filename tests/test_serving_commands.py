"""`--engine vllm` of commands: their options, and the same files whichever engine answers."""

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import EXAMPLE_PICTURE
from typer.testing import CliRunner

from finecaption_hf import EMBEDDED_CHECKPOINT
from finecaption_hf.asking import FineCaptionDescriber
from finecaption_hf.cli import app
from finecaption_hf.data.examples import Branch, Example, Region

BOXES = [[100, 149, 160, 209], [178, 25, 249, 96], [0, 0, 50, 50]]


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture()
def rows(tmp_path: Path) -> Path:
    shutil.copy(EXAMPLE_PICTURE, tmp_path / "scene.png")
    lines = [{"image": "scene.png", "box_xyxy": box} for box in BOXES]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "rows.jsonl"


@pytest.fixture()
def engines(embedded: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What would be loaded into vLLM; the own engine answers in its place."""
    loaded: list[dict[str, Any]] = []

    def load(model: Any, *, name: str, max_new_tokens: int | None, **options: Any) -> FineCaptionDescriber:
        loaded.append({"model": model, **options})
        return FineCaptionDescriber(*embedded, name=name, max_new_tokens=max_new_tokens)

    for name in ("VLLM_LOGGING_STREAM", "VLLM_LOGGING_LEVEL", "VLLM_NO_USAGE_STATS"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")  # put back at the end
        monkeypatch.delenv(name)
    monkeypatch.setattr("finecaption_hf.serving.ray_describer.RayDescriber", partial(load, through="ray"))
    monkeypatch.setattr("finecaption_hf.serving.vllm_describer.VllmDescriber", load)
    return loaded


def test_options_reach_vllm_and_the_files_are_those_of_the_engine(
    rows: Path, tmp_path: Path, engines: list[dict[str, Any]]
) -> None:
    (tmp_path / "options.yaml").write_text("max_model_len: 2048\ntensor_parallel_size: 2\n")
    questions = ("--task", "region", "--attribute", "color", "--json")
    ways: dict[str, tuple[Any, ...]] = {
        "own": ("--device", "cpu"),
        "vllm": ("--engine", "vllm"),
        "inline": ("--engine", "vllm", "--engine-options", "{max_model_len: 2048}", "--dtype", "bfloat16"),
        "file": ("--engine", "vllm", "--engine-options", tmp_path / "options.yaml"),
        "ray": ("--engine", "ray", "--engine-options", "{max_model_len: 2048, concurrency: 2}"),
    }
    written = {}
    for way, options in ways.items():
        output = tmp_path / f"{way}.jsonl"
        result = run("describe", rows, "--output", output, *questions, *options)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["failed"] == 0
        written[way] = output.read_bytes()
    assert len(set(written.values())) == 1 and written["own"].count(b"\n") == len(BOXES)
    assert engines == [
        {"model": EMBEDDED_CHECKPOINT},
        {"model": EMBEDDED_CHECKPOINT, "max_model_len": 2048, "dtype": "bfloat16"},
        {"model": EMBEDDED_CHECKPOINT, "max_model_len": 2048, "tensor_parallel_size": 2},
        {"model": EMBEDDED_CHECKPOINT, "max_model_len": 2048, "concurrency": 2, "through": "ray"},
    ]
    assert os.environ["VLLM_LOGGING_STREAM"] == "ext://sys.stderr" and os.environ["VLLM_NO_USAGE_STATS"] == "1"


def test_evaluate_asks_through_vllm(rows: Path, tmp_path: Path, engines: list[dict[str, Any]]) -> None:
    regions = tuple(Region({"box_xyxy": box}, (Branch("It is red.", name="Color"),)) for box in BOXES)
    data = tmp_path / "described.jsonl"
    data.write_text(json.dumps(Example("scene.png", regions).to_json()) + "\n")
    options = ("--data", data, "--metrics", "rouge_l", "--tokenizer", "python", "--resamples", 2, "--output")
    assert run("evaluate", *options, tmp_path / "own", "--device", "cpu").exit_code == 0
    found = run("evaluate", *options, tmp_path / "vllm", "--engine", "vllm", "--max-new-tokens", 64)
    assert found.exit_code == 0, found.output
    said = [(tmp_path / way / "predictions.jsonl").read_text().splitlines()[1:] for way in ("own", "vllm")]
    assert said[0] == said[1] and len(said[0]) == len(BOXES)
    assert engines == [{"model": EMBEDDED_CHECKPOINT}]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--engine", "vllm", "--device", "cpu"), "--device: no effect with --engine vllm."),
        (("--engine", "ray", "--device", "cpu"), "--device: no effect with --engine ray."),
        (("--engine", "vllm", "--max-batch-tokens", "5", "--referral", "mask"), "--max-batch-tokens, --referral"),
        (("--engine-options", "{a: 1}"), "--engine-options have no effect without --engine vllm."),
        (("--engine", "vllm", "--engine-options", "{a: ["), "this is no YAML"),
        (("--engine", "vllm", "--engine-options", "absent.yaml"), "absent.yaml"),
    ],
)
def test_options_without_effect_end_with_one_line(
    rows: Path, tmp_path: Path, engines: list[dict[str, Any]], options: tuple[str, ...], reason: str
) -> None:
    result = run("describe", rows, "--output", tmp_path / "out.jsonl", *options)
    assert result.exit_code == 2 and reason in result.stderr, result.output
    assert not engines and not (tmp_path / "out.jsonl").exists()


def test_several_processes_are_refused_since_vllm_has_its_own(
    rows: Path, tmp_path: Path, engines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from finecaption_hf.describing import Processes

    monkeypatch.setattr(Processes, "launched", staticmethod(lambda: Processes(0, 2)))
    result = run("describe", rows, "--output", tmp_path / "out.jsonl", "--engine", "vllm")
    assert result.exit_code == 2 and "Run finecaption describe once" in result.stderr and not engines
