"""`finecaption quantise`: what it writes, where that loads, and what its card says."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EXAMPLE_PICTURE, NOT_INSTALLED
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from finecaption_hf import EMBEDDED_CHECKPOINT
from finecaption_hf.asking import ask, load, load_describer
from finecaption_hf.assembly import AssemblyError
from finecaption_hf.assembly.quantising import quantise
from finecaption_hf.cli import app
from finecaption_hf.hub.checkpoint import checkpoint_files
from finecaption_hf.scenes import write_scenes

bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes, of the extra train")

CUBE = [178, 25, 249, 96]
SCHEMES = ["int8", "int4"]
# In a fresh process, without this package: logits of a prompt about a region, by each checkpoint.
LOGITS = """
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

picture, out, *folders = sys.argv[1:]
logits = []
for folder in folders:
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    chat = processor.conversation(Image.open(picture), "color", [178, 25, 249, 96])
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    with torch.inference_mode():
        logits.append(model(**processor.apply_chat_template(chat, **options)).logits)
torch.save(logits, out)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The embedded checkpoint, with a licence text beside it, quantised by each scheme."""
    work = tmp_path_factory.mktemp("quantised")
    ignored = shutil.ignore_patterns("README.md", "__pycache__")
    source = Path(shutil.copytree(EMBEDDED_CHECKPOINT, work / "plain", ignore=ignored))
    (source / "licences" / "some--llm").mkdir(parents=True)
    (source / "licences" / "some--llm" / "LICENSE").write_text("terms")
    for scheme in SCHEMES:
        result = CliRunner().invoke(app, ["quantise", str(source), "--scheme", scheme, "--out", str(work / scheme)])
        assert result.exit_code == 0, result.output
    return {scheme: work / scheme for scheme in SCHEMES}


def of_bitsandbytes(weight: torch.Tensor, scheme: str) -> torch.Tensor:
    """What bitsandbytes itself makes of a weight."""
    functional = bitsandbytes.functional
    if scheme == "int4":
        packed = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        return functional.dequantize_4bit(*packed).float()
    whole, scales, _ = functional.int8_vectorwise_quant(weight.half())
    return functional.int8_vectorwise_dequant(whole, scales).float()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_linear_layers_of_the_language_model_are_quantised_and_nothing_else(
    folders: dict[str, Path], scheme: str
) -> None:
    from peft.utils.integrations import dequantize_bnb_weight

    before = load_file(EMBEDDED_CHECKPOINT / "model.safetensors")
    model, _ = load(folders[scheme], device="cpu")
    kind = {"int8": bitsandbytes.nn.Linear8bitLt, "int4": bitsandbytes.nn.Linear4bit}[scheme]
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, kind)}
    linear = {name for name in before if "language_model.layers" in name and name.endswith("proj.weight")}
    assert {f"{name}.weight" for name in layers} == linear and len(linear) == 21
    for name, layer in layers.items():
        found = dequantize_bnb_weight(layer.weight, state=getattr(layer, "state", None)).float()
        # The values, of at most 2, are given back in bfloat16 or float16.
        expected = of_bitsandbytes(before[f"{name}.weight"].bfloat16(), scheme)
        assert (found - expected).abs().max() <= 2**-8 * expected.abs().max(), name
    state = load_file(folders[scheme] / "model.safetensors")
    for name in before.keys() - linear:
        assert torch.equal(state[name], before[name].bfloat16()), name


@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantised_checkpoint_is_whole_and_its_card_says_what_it_is(folders: dict[str, Path], scheme: str) -> None:
    folder = folders[scheme]
    assert "licences/some--llm/LICENSE" in checkpoint_files(folder)
    card = (folder / "README.md").read_text()
    bits = {"int8": "8 bits (LLM.int8)", "int4": "4 bits (NF4)"}[scheme]
    kept = "lm_head, vision_tower, convnext_tower, sam_tower, adapter"
    assert f"Weights of linear layers are held in {bits}, except for those of: {kept}." in card
    plain = load_file(EMBEDDED_CHECKPOINT / "model.safetensors")
    count = sum(value.numel() for value in plain.values())
    size = (folder / "model.safetensors").stat().st_size
    assert f"{count:,} parameters" in card
    assert f"take {size / 1e6:.1f} MB, {size / (2 * count):.0%} of what bfloat16 takes" in card
    assert "Loading them needs `bitsandbytes`" in card and "What that costs in accuracy was not measured." in card
    assert "Stated for the whole: **apache-2.0**" not in card  # its own card, which said so, was not there


@pytest.mark.hub
def test_quantised_checkpoints_load_without_the_package_to_the_same_logits(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    given = tmp_path / "logits.pt"
    script = tmp_path / "script.py"
    script.write_text(NOT_INSTALLED + LOGITS)
    command = [sys.executable, script, EXAMPLE_PICTURE, given, *folders.values()]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, timeout=300, cwd=tmp_path, env=environment)
    picture = Image.open(EXAMPLE_PICTURE)
    for folder, found in zip(folders.values(), torch.load(given), strict=True):
        model, processor = load(folder, device="cpu")
        chat = processor.conversation(picture, "color", CUBE)
        options: dict[str, Any] = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
        inputs = processor.apply_chat_template(chat, add_generation_prompt=True, **options)
        with torch.inference_mode():
            logits = model(**inputs).logits
        # bfloat16, whose sums another number of threads may put in another order.
        assert torch.nn.functional.cosine_similarity(found.float(), logits.float(), dim=-1).min() > 0.999


@pytest.mark.parametrize("scheme", SCHEMES)
def test_engine_answers_with_a_quantised_checkpoint(
    folders: dict[str, Path], scheme: str, capfd: pytest.CaptureFixture[str]
) -> None:
    describer = load_describer(folders[scheme], device="cpu")
    capfd.readouterr()
    (record,) = ask(describer, EXAMPLE_PICTURE, [CUBE], ["color", "region"])
    assert describer.fallback_reason is None
    assert record["answers"]["Color"] in ("pink", "it is pink") and "pink" in record["answers"]["region"]
    assert "MatMul8bitLt" not in capfd.readouterr().err  # which bitsandbytes says for every layer and step


def test_card_has_the_measured_cost(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", 2, split="test", num_regions=1)
    out, reports = tmp_path / "small", tmp_path / "reports"
    command = ["quantise", str(EMBEDDED_CHECKPOINT), "--scheme", "int8", "--out", str(out), "--limit", "1"]
    command += ["--data", str(tmp_path / "scenes"), "--evaluation", str(reports), "--device", "cpu"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    before, after = (json.loads((reports / name / "report.json").read_text()) for name in ("before", "after"))
    row = after["comparison"]["metrics"]["rouge_l"]
    assert (
        row["second"] == before["metrics"]["rouge_l"]["value"] and row["first"] == after["metrics"]["rouge_l"]["value"]
    )
    assert (before["model"], after["model"]) == ("finecaption-tiny", "small")
    card = (out / "README.md").read_text()
    assert "What that costs in accuracy stands under Evaluation." in card
    assert "### Compared with finecaption-tiny" in card
    assert f"| ROUGE-L | {row['second']:.2f} | {row['first']:.2f} | {row['difference']:+.2f} |" in card
    right = [report["diagnostics"][0]["values"]["all"]["value"] for report in (before, after)]
    (line,) = (line for line in card.splitlines() if line.startswith("| all | "))
    assert [cell.split()[0] for cell in line.split("|")[3:5]] == [f"{share:.3f}" for share in right]
    assert "| question | answers | finecaption-tiny | small |" in card
    assert str(tmp_path) not in card


def test_what_cannot_be_quantised_is_refused_and_nothing_is_left(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def broken(quantised: Path) -> Any:
        raise AssemblyError(f"{len(list(quantised.iterdir()))} files")

    with pytest.raises(AssemblyError, match="quantised already"):
        quantise(folders["int4"], out, "int8")
    with pytest.raises(AssemblyError, match="exists already"):
        quantise(EMBEDDED_CHECKPOINT, folders["int4"], "int8")
    with pytest.raises(AssemblyError, match="files"):
        quantise(EMBEDDED_CHECKPOINT, out, "int8", measure=broken)
    result = CliRunner().invoke(app, ["quantise", str(tmp_path), "--scheme", "int4", "--out", str(out)])
    assert result.exit_code == 2 and "no config.json" in result.output
    command = ["quantise", str(EMBEDDED_CHECKPOINT), "--scheme", "int4", "--out", str(out), "--limit", "1"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and "are for --data" in result.output
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"\.\[train\]"):
        quantise(EMBEDDED_CHECKPOINT, out, "int8")
    assert list(tmp_path.iterdir()) == []
