"""The benchmarks run, compare like with like, and report what the documentation quotes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


def test_processor_benchmark_compares_the_same_work_and_reports_both_ratios(tmp_path: Path) -> None:
    """It refuses to time contestants whose outputs differ; two rounds are no measurement, so none is judged."""
    result = tmp_path / "result.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "processor.py"), "--rounds", "2", "--json", str(result)]
    subprocess.run(command, check=True, timeout=300)
    figures = json.loads(result.read_text())
    assert figures["speedup_over_pil"] > 0
    assert figures["ratio_to_bare"] > 0
    assert max(figures["agreement"].values()) <= 1.01


def test_training_benchmark_compares_the_same_work_and_reports_its_ratios(tmp_path: Path) -> None:
    """It refuses to time contestants whose losses differ; at tiny sizes and one round nothing is judged."""
    result = tmp_path / "result.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "training.py"), "--tiny", "--images", "1", "--rounds", "1"]
    subprocess.run([*command, "--threads", "1", "--json", str(result)], check=True, timeout=300)
    figures = json.loads(result.read_text())
    assert figures["image_tokens"] == 64
    assert figures["losses"]["packed"] == pytest.approx(figures["losses"]["separate"], rel=1e-4)
    # A prefix of 64 tokens beside branches of about 35: far from the 8 that 1,024 give.
    assert 2 < figures["token_ratio"] < 4
    assert figures["step_time_ratio"] > 0 and figures["memory_ratio"] > 1
    assert figures["seconds"]["packed"].keys() == figures["seconds"]["separate"].keys()
