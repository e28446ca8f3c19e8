"""The script behind the embedded checkpoint: a step of every phase, and continuing where it was stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from conftest import ROOT
from safetensors.torch import load_file

from finecaption_hf import EMBEDDED_CHECKPOINT


def train(folder: Path, caption_steps: int) -> list[dict]:
    command = [sys.executable, str(ROOT / "scripts" / "train_tiny.py"), "--output", str(folder)]
    for option in ("--swatch-steps", "--tower-steps", "--word-steps", "--log-every", "--save-every", "--threads"):
        command += [option, "1"]
    command += ["--caption-steps", str(caption_steps), "--images", "2", "--workers", "0"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ})
    assert result.returncode == 0, result.stderr[-2000:]
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def test_training_goes_through_its_phases_and_continues_where_it_stopped(tmp_path: Path) -> None:
    records = train(tmp_path, 1)
    assert [r["phase"] for r in records if "phase" in r] == ["swatches", "towers", "words", "captions"]
    first = load_file(tmp_path / "checkpoint" / "model.safetensors")
    shipped = load_file(EMBEDDED_CHECKPOINT / "model.safetensors")
    assert {name: value.shape for name, value in first.items()} == {n: v.shape for n, v in shipped.items()}

    again = train(tmp_path, 2)
    assert again[0]["done"] == {"swatches": 1, "towers": 1, "words": 1, "captions": 1}
    assert [(r["phase"], r["step"]) for r in again if "phase" in r] == [("captions", 2)]
    second = load_file(tmp_path / "checkpoint" / "model.safetensors")
    moved = [name for name in first if not torch.equal(first[name], second[name])]
    assert len(moved) > 0.9 * len(first)
    assert all(torch.isfinite(value).all() for value in second.values())
