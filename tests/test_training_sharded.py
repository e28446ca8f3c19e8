"""DeepSpeed ZeRO-2 and ZeRO-3, and FSDP2, on two CPU processes: they train, save and continue as DDP does.

accelerate shards with FSDP2 on GPUs only, but nothing in that needs one: told that the two processes are of a machine
with GPUs, it does so on the CPU.
"""

import copy
import importlib.util
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import free_port
from PIL import Image
from safetensors.torch import load_file
from test_training_runner import OPTIONS, PROCESSES, assert_equal, run, small
from training_data import write_checkpoint, write_records
from waiting import exit_code

from finecaption_hf.asking import load
from finecaption_hf.resuming import read_seal
from finecaption_hf.training import runner
from finecaption_hf.training.callback import StageCallback
from finecaption_hf.training.recipes import Recipe, read_recipe
from finecaption_hf.training.stages import STAGES, StageError

RECIPES = {"zero3": "finecaption-8b-8gpu-deepspeed-zero3", "fsdp2": "finecaption-8b-8gpu-fsdp2"}
DEEPSPEED = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed: pip install it")
KINDS = [pytest.param("zero2", marks=DEEPSPEED), pytest.param("zero3", marks=DEEPSPEED), "fsdp2"]
FLOAT32 = {**OPTIONS, "max_steps": 4, "save_steps": 2, "learning_rate": 1e-3}
LIMIT_S = 300
"""Of three stages: DeepSpeed gathers each tensor of a checkpoint on its own."""


def settings(kind: str) -> dict[str, Any]:
    """What the shipped recipe says of sharding; ZeRO-2 is that of ZeRO-3 without what only that has."""
    if kind == "ddp":
        return {}
    training = copy.deepcopy(read_recipe(RECIPES.get(kind, RECIPES["zero3"])).training)
    if kind == "zero2":
        zero = training["deepspeed"]["zero_optimization"]
        zero["stage"] = 2
        for name in [name for name in zero if name.startswith("stage3_")]:
            del zero[name]
    return {name: training[name] for name in ("deepspeed", "fsdp", "fsdp_config") if name in training}


def become(rank: int, port: int, kind: str) -> None:
    """Make this process one of two."""
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo", "WORLD_SIZE": "2"}
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2")
    if kind.startswith("zero"):
        os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        # Without it sums are gloo's; it would be compiled first, which takes minutes.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    elif kind == "fsdp2":
        from accelerate.state import PartialState
        from accelerate.utils import DistributedType

        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
        torch.distributed.init_process_group("gloo")
        PartialState._prepare_backend = lambda *args: ("gloo", DistributedType.MULTI_GPU)


def run_sharded(rank: int, port: int, kind: str, recipe: Recipe, output: Path, options: dict, kill: str | None) -> None:
    """What each of the two processes does, killed at its third step where `kill` says."""
    become(rank, port, kind)
    run(recipe, output, options, kill, 3, {})


def together(
    kind: str,
    recipe: Recipe,
    output: Path,
    options: dict[str, Any],
    kill: str | None = None,
    work: Callable[..., None] = run_sharded,
) -> list[int]:
    """Exit codes of two processes."""
    arguments = (free_port(), kind, recipe, output, options, kill)
    processes = [PROCESSES.Process(target=work, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        return [exit_code(process, LIMIT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory, embedded: Any) -> Recipe:
    """Three stages on a random tiny model."""
    folder = tmp_path_factory.mktemp("setting")
    model = write_checkpoint(folder / "model", embedded[1])
    data = write_records(folder / "data", 16)
    stages = tuple(small(stage, data={}, whole_image_share=0.0) for stage in STAGES.values())
    return Recipe(stages=stages, model=str(model), data={"records": str(data)})


def sharded(recipe: Recipe, kind: str) -> Recipe:
    stages = recipe.stages
    if kind == "fsdp2":  # recomputes activations itself
        stages = tuple(replace(stage, activation_checkpointing=False) for stage in stages)
    return replace(recipe, stages=stages, training=settings(kind))


@pytest.fixture(scope="module")
def finished(setting: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a kind's three stages, trained once."""
    folders: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in folders:
            folder = tmp_path_factory.mktemp(kind) / "run"
            assert together(kind, sharded(setting, kind), folder, FLOAT32) == [0, 0]
            folders[kind] = folder
        return folders[kind]

    return of


def stage_weights(folder: Path, number: int) -> dict[str, torch.Tensor]:
    return load_file(folder / f"{number}-{STAGES[number].name}" / "final" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_sharded_stages_end_with_the_weights_of_ddp(
    setting: Recipe, finished: Callable[[str], Path], kind: str
) -> None:
    before = load_file(Path(str(setting.model)) / "model.safetensors")
    for number, stage in STAGES.items():
        expected, found = stage_weights(finished("ddp"), number), stage_weights(finished(kind), number)
        assert found.keys() == expected.keys() == before.keys()
        trained = set(stage.select(before))
        for name, value in expected.items():
            assert found[name].shape == value.shape, name
            # float32 in another order of sums. AdamW's steps of 1e-3 go by the sign of a gradient that is all but zero.
            assert (found[name] - value).abs().mean() < 1e-6, name
            assert torch.equal(found[name], before[name]) == (name not in trained), name
        before = found


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_sharded_training_continues_to_the_same_weights(
    setting: Recipe, finished: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    recipe, output = sharded(setting, kind), tmp_path / "run"
    shutil.copytree(finished(kind), output)
    shutil.rmtree(output / "3-everything")
    assert together(kind, recipe, output, FLOAT32, kill="step") == [-signal.SIGKILL] * 2
    assert [path.name for path in (output / "3-everything").glob("checkpoint-*")] == ["checkpoint-2"]
    assert together(kind, recipe, output, FLOAT32) == [0, 0]
    assert_equal(stage_weights(output, 3), stage_weights(finished(kind), 3))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_final_folder_of_sharded_training_is_whole(finished: Callable[[str], Path], kind: str) -> None:
    final = finished(kind) / "3-everything" / "final"
    assert read_seal(final)["num_processes"] == 2
    values = load_file(final / "model.safetensors")
    assert [name for name, value in values.items() if not value.numel()] == []
    model, processor = load(final, device="cpu")
    assert {name for name, _ in model.named_parameters()} == values.keys()
    assert all(torch.equal(parameter, values[name]) for name, parameter in model.named_parameters())
    chat = processor.conversation(Image.new("RGB", (90, 60)), "color")
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[1] == inputs["input_ids"].shape[1] + 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS[1:])
def test_every_stage_of_the_recipe_takes_two_steps(kind: str, setting: Recipe, tmp_path: Path) -> None:
    recipe = read_recipe(RECIPES[kind])
    names = {name for stage in recipe.stages for name in stage.data}
    # Nothing but sizes, and the CPU. The batch of a stage stands over that of the options.
    stages = tuple(
        replace(stage, global_batch_size=2, training={"per_device_train_batch_size": 1}) for stage in recipe.stages
    )
    recipe = replace(recipe, stages=stages, model=setting.model, data=dict.fromkeys(names, setting.data["records"]))
    sizes = {"use_cpu": True, "max_steps": 2, "dataloader_num_workers": 0, "disable_tqdm": True}
    assert together(kind, recipe, tmp_path, sizes) == [0, 0]
    for number, stage in enumerate(recipe.stages, start=1):
        final = tmp_path / f"{number}-{stage.name}" / "final"
        state = json.loads((tmp_path / f"{number}-{stage.name}" / "checkpoint-2" / "trainer_state.json").read_text())
        assert state["global_step"] == 2
        load(final, device="cpu")


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changes", "peft", "message"),
    [
        pytest.param(
            *("zero3", {"stage3_gather_16bit_weights_on_model_save": False}, None),
            "Set stage3_gather_16bit_weights_on_model_save: true",
            marks=DEEPSPEED,
        ),
        pytest.param("zero3", {}, {"r": 2}, "zero_optimization stage 2", marks=DEEPSPEED),
        ("fsdp2", {"state_dict_type": "SHARDED_STATE_DICT"}, None, "Set state_dict_type: FULL_STATE_DICT"),
        ("fsdp2", {}, {"r": 2}, "zero_optimization stage 2"),
        ("fsdp2", {}, None, "FSDP needs several processes on GPUs"),
    ],
)
def test_what_would_not_shard_or_write_no_weights_is_refused(
    kind: str, changes: dict[str, Any], peft: dict[str, Any] | None, message: str, setting: Recipe, tmp_path: Path
) -> None:
    recipe = sharded(setting, kind)
    where = recipe.training["fsdp_config"] if kind == "fsdp2" else recipe.training["deepspeed"]["zero_optimization"]
    where.update(changes)
    recipe = replace(recipe, stages=(replace(recipe.stages[0], peft=peft),))
    with pytest.raises(StageError, match=message):
        runner.train(recipe, tmp_path / "out", options={"use_cpu": True, "bf16": False})


# --- memory ----------------------------------------------------------------------------------------------------------

WIDE = 400_000
"""Tokens of a vocabulary whose two matrices are nearly all of a model: 32 channels in float32, 51.2 MB each."""


def held() -> int:
    """Bytes of main memory that this process holds, without what it has in common with files."""
    return 1024 * int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])


def run_measured(rank: int, port: int, kind: str, recipe: Recipe, output: Path, options: dict, kill: None) -> None:
    """Write what is held more when the model is loaded and when it is sharded, and end."""
    become(rank, port, kind)
    found, start = [], held()

    class Measured(StageCallback):
        def on_init_end(self, *args: Any, **kwargs: Any) -> None:
            found.append(held() - start)
            super().on_init_end(*args, **kwargs)

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            found.append(held() - start)
            (output / f"{rank}.json").write_text(json.dumps(found))
            torch.distributed.barrier()
            os._exit(0)

    runner.StageCallback = Measured  # type: ignore[misc]
    run(recipe, output, options, None, 0, {})


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured on Linux")
@pytest.mark.parametrize("kind", KINDS[1:])
def test_one_process_alone_loads_the_weights(kind: str, setting: Recipe, tmp_path: Path, embedded: Any) -> None:
    model = write_checkpoint(tmp_path / "model", embedded[1], text_config={"vocab_size": WIDE})
    size = (model / "model.safetensors").stat().st_size
    load(model, device="cpu", dtype="bfloat16")[0].save_pretrained(model)  # as big ones are; trained in float32
    recipe = sharded(replace(setting, stages=setting.stages[:1], model=str(model)), kind)
    assert together(kind, recipe, tmp_path, FLOAT32, work=run_measured) == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    margin = 40e6  # of what libraries and the towers take
    loaded = {"zero3": (size / 2, size / 2), "fsdp2": (size, 0)}[kind]
    assert first[0] < loaded[0] + margin
    assert second[0] < loaded[1] + margin
    assert max(first[1], second[1]) < size / 2 + margin
