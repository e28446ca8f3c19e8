"""A checkpoint that says of itself that it knows rendered scenes only, and who is told."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import EXAMPLE_PICTURE
from describers import StubDescriber
from typer.testing import CliRunner

from finecaption_hf import EMBEDDED_CHECKPOINT
from finecaption_hf.asking import FineCaptionDescriber, load_describer, note_of
from finecaption_hf.asking.describers import FilledBoxDescriber
from finecaption_hf.cli import app

NOTE = "finecaption-tiny knows rendered scenes only"


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights, whose card says nothing of what they know."""
    folder = tmp_path_factory.mktemp("silent") / "model"
    shutil.copytree(EMBEDDED_CHECKPOINT, folder)
    (folder / "README.md").write_text("---\ntags:\n- custom_code\n---\n\n# A model\n")
    return folder


def test_note_is_of_checkpoints_whose_card_says_it(silent: Path) -> None:
    told = note_of(load_describer())
    assert told is not None and told.startswith(NOTE)
    assert note_of(load_describer(referral="filled_box")) == told
    assert note_of(load_describer(silent)) is None
    (silent / "README.md").unlink()
    assert note_of(load_describer(silent)) is None
    assert note_of(load_describer("pixels")) is None and note_of(StubDescriber()) is None


def test_weights_of_no_folder_say_nothing(embedded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded[0], "name_or_path", "")
    assert note_of(FineCaptionDescriber(*embedded)) is None
    assert note_of(FilledBoxDescriber(FineCaptionDescriber(*embedded))) is None


def test_commands_say_it_once_and_records_hold_it(silent: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> Any:
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code == 0, result.output
        return result

    caption = ("caption", EXAMPLE_PICTURE, "--box", "178,25,249,96", "--json")
    told = run(*caption)
    assert told.stderr.count(NOTE) == 1
    (record,) = json.loads(told.stdout)
    assert record["model_note"].startswith(NOTE)
    quiet = run(*caption, "--model", silent)
    assert "scenes" not in quiet.stderr and "model_note" not in quiet.stdout

    rows = tmp_path / "rows.jsonl"
    shutil.copy(EXAMPLE_PICTURE, tmp_path / "scene.png")
    rows.write_text(json.dumps({"image": "scene.png", "box_xyxy": [178, 25, 249, 96]}) + "\n")
    told = run("describe", rows, "--output", tmp_path / "told.jsonl")
    assert told.stderr.count(NOTE) == 1
    assert json.loads((tmp_path / "told.jsonl").read_text())["model_note"].startswith(NOTE)
    run("describe", rows, "--output", tmp_path / "quiet.jsonl", "--model", silent)
    assert "model_note" not in json.loads((tmp_path / "quiet.jsonl").read_text())


def test_pages_and_reports_say_it(tmp_path: Path) -> None:
    data = tmp_path / "scenes"
    for command in (
        ("scenes", "render", "--out", data, "--n", 1, "--split", "test", "--size", 192),
        ("describe", data, "--output", tmp_path / "page.html", "--max-new-tokens", 2),
        ("evaluate", "--data", data, "--output", tmp_path / "run", "--metrics", "rouge_l", "--resamples", 20),
    ):
        result = CliRunner().invoke(app, list(map(str, command)))
        assert result.exit_code == 0, result.output
    assert f'<p class="note" role="note">{NOTE}' in (tmp_path / "page.html").read_text()
    assert f"<strong>{NOTE}" in (tmp_path / "run" / "report.html").read_text()
    assert f"**{NOTE}" in (tmp_path / "run" / "report.md").read_text()
