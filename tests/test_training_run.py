"""Training from start to end: interruption, several processes, and what checkpoints hold."""

import json
import multiprocessing
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_data import write_checkpoint, write_records

from finecaption_hf.training.recipes import Recipe
from finecaption_hf.training.run import train
from finecaption_hf.training.stages import STAGES, Stage

OPTIONS = {
    "use_cpu": True,
    "per_device_train_batch_size": 2,
    "max_steps": 7,
    "save_steps": 2,
    "logging_steps": 1,
    "disable_tqdm": True,
    "bf16": False,
    "seed": 3,
}
# A server that has imported everything once: starting a process anew would take most of the time.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["finecaption_hf.training.run", "finecaption_hf.modeling_finecaption", "training_data"]
)


def small(stage: Stage, **changes: Any) -> Stage:
    return replace(stage, **{"global_batch_size": 4, "learning_rate": 1e-2, "whole_image_share": 0.5, **changes})


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory, embedded: Any) -> Recipe:
    """A random model with dropout, so that random numbers matter, and ragged records; one stage on everything."""
    folder = tmp_path_factory.mktemp("setting")
    model = write_checkpoint(
        folder / "model", embedded[1], vision_config={"attention_dropout": 0.1}, text_config={"attention_dropout": 0.1}
    )
    data = write_records(folder / "train", 18)
    held_out = write_records(folder / "test", 3, seed=1)
    return Recipe(
        stages=(small(STAGES[3]),),
        model=str(model),
        data={"records": str(data)},
        eval_data={"test": str(held_out)},
        num_samples=1,
    )


def run(
    recipe: Recipe, output: Path, options: dict[str, Any], kill: str | None, number: int, environment: dict
) -> None:
    """What a process does: train, and end at once where `kill` says."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    if kill is not None:
        _arm(kill, number)
    train(recipe, output, options=options)


def _arm(kill: str, number: int) -> None:
    """End the process, as SIGKILL does, when a function is called for the `number`-th time."""
    import transformers

    owner, name = {
        "step": (transformers.trainer_callback.CallbackHandler, "on_step_end"),
        "optimizer is saved": (transformers.Trainer, "_save_optimizer_and_scheduler"),
        "rng is saved": (transformers.Trainer, "_save_rng_state"),
        "checkpoint is declared whole": (transformers.trainer_callback.CallbackHandler, "on_save"),
        "evaluation": (transformers.Trainer, "evaluate"),
        "final checkpoint": (transformers.trainer_callback.CallbackHandler, "on_train_end"),
    }[kill]
    original, calls = getattr(owner, name), [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, counted)


def start(
    recipe: Recipe,
    output: Path,
    options: dict[str, Any] | None = None,
    kill: str | None = None,
    number: int = 1,
    environment: dict[str, str] | None = None,
) -> Any:
    arguments = (recipe, output, {**OPTIONS, **(options or {})}, kill, number, environment or {})
    process = PROCESSES.Process(target=run, args=arguments)
    process.start()
    return process


def finish(process: Any) -> int:
    process.join(120)
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "final" / "model.safetensors")


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.fixture(scope="module")
def uninterrupted(setting: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    output = tmp_path_factory.mktemp("uninterrupted")
    assert finish(start(setting, output)) == 0
    return weights(output)


KILLS = [("step", 5), ("optimizer is saved", 2), ("checkpoint is declared whole", 3)]
MORE_KILLS = [
    ("step", 1),
    ("step", 6),
    ("rng is saved", 1),
    ("optimizer is saved", 3),
    ("checkpoint is declared whole", 1),
    ("evaluation", 2),
    ("final checkpoint", 1),
]


@pytest.mark.parametrize(
    ("kill", "number"), KILLS + [pytest.param(*point, marks=pytest.mark.slow) for point in MORE_KILLS]
)
def test_killed_training_continues_to_the_same_weights(
    setting: Recipe, uninterrupted: dict[str, torch.Tensor], tmp_path: Path, kill: str, number: int
) -> None:
    output = tmp_path / "run"
    assert finish(start(setting, output, kill=kill, number=number)) == -signal.SIGKILL
    assert finish(start(setting, output)) == 0
    assert_equal(weights(output), uninterrupted)


# --- several processes -----------------------------------------------------------------------------------------------


def free_port() -> str:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return str(opened.getsockname()[1])


def start_together(recipe: Recipe, output: Path, number: int, options: dict[str, Any]) -> list[Any]:
    """Processes with the environment that torchrun and accelerate launch give them."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(number)}
    ranks = ({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number))
    return [start(recipe, output, options, environment=environment) for environment in ranks]


def losses(output: Path) -> list[float]:
    state = json.loads(sorted(output.glob("checkpoint-*"))[-1].joinpath("trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def test_two_processes_train_like_one(setting: Recipe, tmp_path: Path, embedded: Any) -> None:
    # Without dropout, whose random numbers differ between processes. The answers are ragged, so a mean over processes
    # of their means would be another loss. 16 records make whole batches: a last one that is not whole is filled up.
    model = write_checkpoint(tmp_path / "model", embedded[1])
    data = write_records(tmp_path / "data", 16)
    recipe = replace(setting, model=str(model), data={"records": str(data)}, eval_data={})
    options = {"max_steps": 6, "save_steps": 6, "learning_rate": 1e-3, "logging_steps": 1}
    alone = start(recipe, tmp_path / "one", options)
    together = start_together(recipe, tmp_path / "two", 2, options)
    assert [finish(process) for process in (alone, *together)] == [0, 0, 0]
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 6
    assert len(set(one)) == 6
    assert two == pytest.approx(one, abs=1e-5)
