"""The script that warm-starts the embedded checkpoint's parts: every phase, and continuing where it was stopped."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from fresh import OURS
from PIL import Image
from safetensors.torch import load_file

from finecaption_hf.scenes import QUESTIONS, render_scene

PHASES = ["swatches", "close-ups", "towers", "words", "captions"]
ALPHA = "model.vision_tower.embeddings.alpha_embedding.weight"


def warm_start(folder: Path, caption_steps: int) -> list[dict[str, Any]]:
    """The records that a run logs."""
    options: list[Any] = ["--output", folder]
    phases = ("--swatch-steps", "--close-up-steps", "--tower-steps", "--word-steps")
    for option in (*phases, "--log-every", "--save-every", "--threads"):
        options += [option, "1"]
    options += ["--caption-steps", caption_steps, "--images", "2", "--workers", "0"]
    script = str(ROOT / "scripts" / "warm_start_tiny.py")
    code = f"import runpy; runpy.run_path({script!r}, run_name='__main__')"
    result = OURS.run(code, *options, work=folder)
    assert result.returncode == 0, result.stderr[-2000:]
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("warm")


@pytest.fixture(scope="module")
def weights(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """All that was trained, after one caption step and after a second run's other one."""
    records = warm_start(folder, 1)
    assert [record["phase"] for record in records if "phase" in record] == PHASES
    first = load_file(folder / "with-adapter" / "model.safetensors")
    records = warm_start(folder, 2)
    assert records[0]["done"] == dict.fromkeys(PHASES, 1)
    assert [(record["phase"], record["step"]) for record in records if "phase" in record] == [("captions", 2)]
    return first, load_file(folder / "with-adapter" / "model.safetensors")


def test_training_goes_through_its_phases_and_continues_where_it_stopped(weights: Any) -> None:
    first, second = weights
    assert {name: value.shape for name, value in first.items()} == {name: v.shape for name, v in second.items()}
    moved = {name for name in first if not torch.equal(first[name], second[name])}
    assert len(moved) > 0.9 * len(first)
    assert all(torch.isfinite(value).all() for value in second.values())


def test_the_mask_is_left_for_later(weights: Any) -> None:
    for state in weights:
        assert state[ALPHA].numel() and not state[ALPHA].any()


def test_checkpoint_has_a_fresh_adapter_and_is_trained_otherwise(folder: Path, weights: Any) -> None:
    checkpoint = load_file(folder / "checkpoint" / "model.safetensors")
    changed = {name for name, value in weights[1].items() if not torch.equal(value, checkpoint[name])}
    assert changed == {name for name in checkpoint if name.startswith("model.adapter.")} != set()


def test_checkpoint_is_a_complete_hub_folder(folder: Path, weights: Any) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    checkpoint = folder / "checkpoint"
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
    assert {path.name for path in checkpoint.glob("*.py")} >= {"modeling_finecaption.py", "processing_finecaption.py"}
    assert dict(processor.questions) == QUESTIONS
    saved = load_file(checkpoint / "model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items() if name in saved)
    scene = render_scene(1)
    logits = []
    for mask in (scene.masks[0], scene.masks[1]):
        chat = processor.conversation(Image.fromarray(scene.image), "Category Name", mask)
        inputs = processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        with torch.inference_mode():
            logits.append(model(**inputs).logits)
    # With alpha at zero, no region is told from another.
    assert torch.equal(*logits)


def test_packaging_makes_a_folder_with_card_and_scores(
    folder: Path, weights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specification = importlib.util.spec_from_file_location("package_tiny", ROOT / "scripts" / "package_tiny.py")
    assert specification is not None and specification.loader is not None
    package_tiny = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(package_tiny)

    part = {
        "accuracy": {"Color": 0.951},
        "intervals_95": {"Color": [0.94, 0.96]},
        "counts": {"Color": 777},
        "both_of_a_pair": {"Color": 0.9},
    }
    score = {**part, "sentences": part, "scenes": 500, "regions": 1234, "seed": 0}
    stages = {"warm start": {**score, "accuracy": {"Color": 0.25}}, "stage 1": score}
    (tmp_path / "stages.json").write_text(json.dumps(stages))
    monkeypatch.setattr(package_tiny, "measure", lambda *_: dict(score))
    out = tmp_path / "tiny"
    out.mkdir()
    (out / "old.bin").write_text("of an earlier checkpoint")
    (folder / "checkpoint" / "optimizer.pt").write_text("of a trainer")
    options = ["--output", str(out), "--stages", str(tmp_path / "stages.json"), "--training", ", in a minute"]
    monkeypatch.setattr(sys, "argv", ["package_tiny.py", str(folder / "checkpoint"), *options])
    package_tiny.main()

    assert not (out / "old.bin").exists() and not (out / "optimizer.pt").exists()
    assert not list(tmp_path.glob("*.new"))
    packaged, trained = (load_file(path / "model.safetensors") for path in (out, folder / "checkpoint"))
    assert all(torch.equal(value, packaged[name]) for name, value in trained.items())
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "| Color | 777 | 0.951 (0.940 to 0.960) | 0.900 |" in text
    assert "| question | warm start | stage 1 |" in text and "| Color | 0.250 (0.940 to 0.960) | 0.951" in text
    assert ", in a minute. `scripts/warm_start_tiny.py`" in text and "{" not in text.partition("## Data")[2]
    assert json.loads((out / "score.json").read_text())["stages"] == stages
    for path in (out / "modeling_finecaption.py", out / "masks_finecaption.py"):
        assert path.read_text() == (ROOT / "src" / "finecaption_hf" / path.name).read_text()
