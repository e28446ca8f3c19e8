"""The vision part as torch.export and ONNX have it computes what it computes in PyTorch."""

import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_config
from typer.testing import CliRunner

from finecaption_hf.assembly.exporting import VisionToTokens, load_vision
from finecaption_hf.cli import app
from finecaption_hf.modeling_finecaption import FineCaptionVisionModel

MISSING = "{} is not installed: pip install .[onnx]"


@torch.no_grad()
def test_exported_vision_gives_the_same_bits_and_takes_other_numbers_of_regions() -> None:
    vision = load_vision(None)
    regions = torch.export.Dim("regions", min=1, max=64)
    sample = vision.sample()
    exported = torch.export.export(vision, sample, dynamic_shapes=(tuple({0: regions} for _ in sample),)).module()
    assert torch.equal(exported(*sample), vision(*sample))
    for count in (1, 3):  # for which PyTorch itself may sum in another order
        given = vision.sample(count)
        wanted = vision(*given)
        assert (exported(*given) - wanted).abs().max() < 1e-5 * wanted.abs().max(), count
    one, other = vision.sample(), (*vision.sample()[:-1], -vision.sample()[-1])
    assert not torch.allclose(exported(*one), exported(*other), atol=1e-3)  # it sees the mask


def test_onnx_file_gives_what_pytorch_gives(tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason=MISSING.format(name))
    onnxruntime = pytest.importorskip("onnxruntime", reason=MISSING.format("onnxruntime"))
    file = tmp_path / "vision.onnx"
    result = CliRunner().invoke(app, ["export", "onnx", "--out", str(file), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.strip().splitlines()[-1])["inputs"].keys() == {
        "pixel_values", "high_res_pixel_values", "mask_values"
    }  # fmt: skip
    vision = load_vision(None)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for count in (1, 4):
        given = vision.sample(count)
        with torch.no_grad():
            wanted = vision(*given)
        found = torch.from_numpy(session.run(None, {n: t.numpy() for n, t in zip(vision.names, given)})[0])
        # Sums in another order, over up to 1024 places.
        assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max(), count
    again = CliRunner().invoke(app, ["export", "onnx", "--out", str(file)])
    assert again.exit_code == 2 and "there already" in again.output


@pytest.mark.parametrize("without", ["use_mask", "use_high_res"])
def test_inputs_are_those_that_the_model_has(without: str) -> None:
    changes = {"use_mask": False} if without == "use_mask" else {"use_convnext": False, "use_sam": False}
    names = VisionToTokens(FineCaptionVisionModel(tiny_config(**changes))).names
    assert names == (
        ["pixel_values", "high_res_pixel_values"] if without == "use_mask" else ["pixel_values", "mask_values"]
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": {"model_type": "llama"}}, "of type 'llama'. Give a FineCaption"),
        ({"adapter_config.json": {"base_model_name_or_path": "some/base"}}, "an adapter of some/base. Merge"),
        ({"config.json": {"model_type": "finecaption", "quantization_config": {"quant_method": "x"}}}, "is quantised"),
    ],
)
def test_what_cannot_be_exported_is_refused_by_name(tmp_path: Path, files: dict[str, object], message: str) -> None:
    for name, values in files.items():
        (tmp_path / name).write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        load_vision(tmp_path)
