"""The vision part of a checkpoint as an ONNX file: pictures and region masks to image tokens, without PyTorch.

The language model is not exported: it decodes with a cache, for which engines have their own formats.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import EMBEDDED_CHECKPOINT, install_hint
from ..hub.checkpoint import read_json
from ..modeling_finecaption import FineCaptionVisionModel
from .cost import read_any_config

INPUTS = ("pixel_values", "high_res_pixel_values", "mask_values")
OUTPUT = "image_features"
# Of the largest value: sums in another order give some 1e-6, a wrong operator far more.
TOLERANCE = 1e-3


class VisionToTokens(nn.Module):
    """Tensors alone: what `torch.export` takes. Inputs in the order of `INPUTS`, without those that the model lacks."""

    def __init__(self, model: FineCaptionVisionModel) -> None:
        super().__init__()
        self.model = model
        config = model.config
        has = {"high_res_pixel_values": config.use_convnext or config.use_sam, "mask_values": config.use_mask}
        self.names = [name for name in INPUTS if has.get(name, True)]

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        """Image tokens `(B, N, D)` of B regions, each with a picture of its own."""
        features: torch.Tensor = self.model.get_image_features(**dict(zip(self.names, values))).pooler_output
        return features

    def sample(self, regions: int = 2) -> tuple[torch.Tensor, ...]:
        """Random inputs of the shapes that the model takes."""
        config, generator = self.model.config, torch.Generator().manual_seed(0)
        low, high = config.vision_config.image_size, config.high_res_image_size
        shapes = {"pixel_values": (3, low, low), "high_res_pixel_values": (3, high, high), "mask_values": (1, low, low)}
        return tuple(torch.randn(regions, *shapes[name], generator=generator) for name in self.names)


def load_vision(checkpoint: str | os.PathLike[str] | None) -> VisionToTokens:
    """Towers and adapter of a checkpoint, in float32 on the CPU.

    Args:
        checkpoint: a folder or the id of a Hub repository; `None` means the checkpoint that comes with the package.

    Raises:
        ValueError: If it is no FineCaption, is an adapter, or is quantised.
    """
    name = os.fspath(EMBEDDED_CHECKPOINT if checkpoint is None else checkpoint)
    if (Path(name) / "adapter_config.json").is_file() and not (Path(name) / "config.json").is_file():
        base = read_json(Path(name) / "adapter_config.json", ValueError).get("base_model_name_or_path")
        raise ValueError(
            f"{name} holds an adapter of {base}. Merge the two (merge_and_unload), save them, and give that."
        )
    config = read_any_config(name)
    if config.model_type != "finecaption":
        raise ValueError(f"{name} holds a model of type {config.model_type!r}. Give a FineCaption checkpoint.")
    if getattr(config, "quantization_config", None):
        raise ValueError(f"{name} is quantised, which cannot be exported. Give the checkpoint that it was made from.")
    model = FineCaptionVisionModel.from_pretrained(name, dtype=torch.float32)
    return VisionToTokens(model).eval()


@torch.no_grad()
def export_onnx(checkpoint: str | os.PathLike[str] | None, out: str | os.PathLike[str]) -> dict[str, Any]:
    """Write the vision part of a checkpoint as ONNX, and compare it with PyTorch.

    Args:
        checkpoint: as in `load_vision`.
        out: the file to write; weights beyond 2 GB lie beside it, in `out` with `.data` behind its name.

    Returns:
        `dict`: `inputs` and `output` (names and shapes), and `difference`, the largest one from PyTorch.

    Raises:
        ImportError: If onnx, onnxscript or onnxruntime is missing.
        ValueError: If the checkpoint cannot be exported, or the file computes something else; then it is deleted.
        FileExistsError: If the file is there already.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (what torch writes ONNX with)
    except ImportError as error:
        raise ImportError(f"{error.name} is not installed. {install_hint('onnx')}.") from error
    path = Path(out)
    if path.exists():
        raise FileExistsError(f"{path} is there already. Give another name, or delete it.")
    vision = load_vision(checkpoint)
    sample = vision.sample()
    regions = torch.export.Dim("regions", min=1)
    try:
        # `forward` takes its tensors as one tuple.
        program = torch.onnx.export(
            vision,
            sample,
            dynamo=True,
            dynamic_shapes=(tuple({0: regions} for _ in sample),),
            input_names=vision.names,
            output_names=[OUTPUT],
            verbose=False,
        )
    except Exception as error:  # torch's own, of many classes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"The vision part of {checkpoint or EMBEDDED_CHECKPOINT.name} cannot be exported: {reason}"
        ) from error
    assert program is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    difference = 0.0
    for count in (2, 3):  # another number of regions than it was exported with, too
        given = vision.sample(count)
        wanted = vision(*given)
        found = torch.from_numpy(session.run(None, {n: t.numpy() for n, t in zip(vision.names, given)})[0])
        difference = max(difference, float((found - wanted).abs().max() / wanted.abs().max()))
    if not difference <= TOLERANCE:
        del session
        path.unlink()
        raise ValueError(
            f"The exported file differs from PyTorch by {difference:.1e} of the largest value; it is deleted."
        )
    inputs = {name: ["regions", *tensor.shape[1:]] for name, tensor in zip(vision.names, sample)}
    return {"inputs": inputs, "output": {OUTPUT: ["regions", *wanted.shape[1:]]}, "difference": difference}
