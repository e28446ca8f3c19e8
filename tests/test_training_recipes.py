"""The recipes of the package take steps on the tiny model, with nothing but their sizes changed.

The one in 4 bit is trained in tests/test_training_quantised.py, those for eight GPUs in tests/test_training_sharded.py.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_data import write_checkpoint, write_records

from finecaption_hf.resuming import read_seal
from finecaption_hf.training.recipes import read_recipe
from finecaption_hf.training.runner import train


@pytest.mark.parametrize(
    "name",
    [
        "finecaption-tiny",
        "ablation-tiny",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "alpha-clip-13b-40gb",
                "finecaption-llama-3b-24gb",
                "finecaption-qwen-1.5b-8gb",
                "finecaption-smollm2-360m-24gb",
            )
        ),
    ],
)
def test_every_stage_of_the_recipe_takes_two_steps(name: str, tmp_path: Path, embedded: Any) -> None:
    recipe = read_recipe(name)
    data = write_records(tmp_path / "data", 4)
    names = {kind for stage in recipe.stages for kind in stage.data} or {"records"}
    sizes = {"max_steps": 2, "per_device_train_batch_size": 1, "logging_steps": 1, "disable_tqdm": True}
    recipe = replace(
        recipe,
        stages=tuple(replace(stage, global_batch_size=2) for stage in recipe.stages),
        model=str(write_checkpoint(tmp_path / "model", embedded[1])),
        data=dict.fromkeys(sorted(names), str(data)),
    )
    final = train(recipe, tmp_path / "run", options={"use_cpu": True, **sizes})
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "model", final))
    assert before.keys() == after.keys()
    assert any(not torch.equal(after[key], value) for key, value in before.items())
    finished = [final] if len(recipe.stages) == 1 else sorted((tmp_path / "run").glob("*/final"))
    assert [read_seal(folder)["global_step"] for folder in finished] == [2] * len(recipe.stages)
