"""DeepSpeed ZeRO-3: what could not write a whole checkpoint is refused before it trains."""

import copy
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from training_data import write_checkpoint, write_records

from finecaption_hf.training.recipes import Recipe, read_recipe
from finecaption_hf.training.runner import train
from finecaption_hf.training.stages import StageError

pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed: pip install it")

RECIPE = read_recipe("finecaption-8b-8gpu-deepspeed-zero3")
# Without compiling its own products, and with gloo.
ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0"}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory, embedded: Any) -> Recipe:
    """The last stage of the shipped recipe, on a random tiny model and with a batch of four."""
    folder = tmp_path_factory.mktemp("deepspeed")
    model = write_checkpoint(folder / "model", embedded[1])
    data = write_records(folder / "data", 16)
    stage = replace(RECIPE.stages[2], global_batch_size=4, data={}, whole_image_share=0.0)
    return replace(RECIPE, stages=(stage,), model=str(model), data={"records": str(data)})


def test_zero3_that_would_write_no_weights_is_refused(setting: Recipe, tmp_path: Path, monkeypatch: Any) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    settings = copy.deepcopy(setting.training)
    del settings["deepspeed"]["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"]
    stage = replace(setting.stages[0], peft={"r": 2})
    for recipe, message in (
        (replace(setting, training=settings), "Set stage3_gather_16bit_weights_on_model_save: true"),
        (replace(setting, stages=(stage,)), "Use zero_optimization stage 2"),
    ):
        with pytest.raises(StageError, match=message):
            train(recipe, tmp_path / "out", options={"use_cpu": True, "bf16": False})
