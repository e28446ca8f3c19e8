"""Training from start to end: interruption, several processes, and what checkpoints hold."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import free_port
from PIL import Image
from safetensors.torch import load_file
from training_data import write_checkpoint, write_records
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner
from waiting import exit_code

from finecaption_hf.cli import app
from finecaption_hf.resuming import ResumeError
from finecaption_hf.training.recipes import Recipe
from finecaption_hf.training.runner import open_data, train
from finecaption_hf.training.stages import STAGES, Stage, StageError

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
    ["finecaption_hf.training.runner", "finecaption_hf.modeling_finecaption", "training_data"]
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


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "final" / "model.safetensors")


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.fixture(scope="module")
def uninterrupted(setting: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted")
    assert exit_code(start(setting, output)) == 0
    return output


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
    setting: Recipe, uninterrupted: Path, tmp_path: Path, kill: str, number: int
) -> None:
    output = tmp_path / "run"
    assert exit_code(start(setting, output, kill=kill, number=number)) == -signal.SIGKILL
    assert exit_code(start(setting, output)) == 0
    assert_equal(weights(output), weights(uninterrupted))


# --- several processes -----------------------------------------------------------------------------------------------


def start_together(recipe: Recipe, output: Path, number: int, options: dict[str, Any]) -> list[Any]:
    """Processes with the environment that torchrun and accelerate launch give them."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(number)}
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
    assert [exit_code(process) for process in (alone, *together)] == [0, 0, 0]
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 6
    assert len(set(one)) == 6
    assert two == pytest.approx(one, abs=1e-5)


@pytest.mark.slow
def test_accelerate_launch_starts_two_processes(setting: Recipe, tmp_path: Path) -> None:
    # --multi_gpu is how accelerate is told to start several processes; --use-cpu keeps them on the CPU, with gloo.
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *(
            "--num_machines",
            "1",
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            "--main_process_port",
            str(free_port()),
        ),
        *("-m", "finecaption_hf.cli", "train", "--stage", "1", "--model", setting.model, "--output", str(tmp_path)),
        *("--data", setting.data["records"], "--max-steps", "1", "--per-device-train-batch-size", "2"),
        *("--gradient-accumulation-steps", "1", "--use-cpu", "--bf16", "false"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "final" / "stage.json").read_text())
    assert record["num_processes"] == 2


# --- stages in a row -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def row(setting: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """Three stages of two steps each, with an evaluation at the end of each."""
    recipe = replace(setting, stages=tuple(small(stage) for stage in STAGES.values()))
    output = tmp_path_factory.mktemp("row") / "run"
    train(recipe, output, options={**OPTIONS, "max_steps": 2})
    return recipe, output


def test_each_stage_changes_what_it_declares_and_starts_from_the_one_before(row: tuple[Recipe, Path]) -> None:
    recipe, output = row
    before = load_file(Path(recipe.model) / "model.safetensors")
    for number, stage in enumerate(recipe.stages, start=1):
        after = weights(output / f"{number}-{stage.name}")
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == set(stage.select(before))
        before = after


def test_every_checkpoint_is_a_complete_hub_folder(row: tuple[Recipe, Path]) -> None:
    _, output = row
    folders = [*output.glob("*/final"), *output.glob("*/checkpoint-*")]
    assert len(folders) == 6
    for folder in folders:
        names = {path.name for path in folder.iterdir()}
        assert {"model.safetensors", "config.json", "generation_config.json", "stage.json"} <= names
        assert {"tokenizer.json", "chat_template.jinja", "processor_config.json"} <= names
        assert {"modeling_finecaption.py", "processing_finecaption.py", "engine_finecaption.py"} <= names
        assert "training_args.bin" not in names or folder.name != "final"
    model = AutoModelForImageTextToText.from_pretrained(folders[0], trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folders[0], trust_remote_code=True)
    picture = Image.new("RGB", (90, 60))
    inputs = processor.apply_chat_template(
        processor.conversation(picture, "color"), tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[1] == inputs["input_ids"].shape[1] + 2


def test_samples_hold_captions_beside_the_right_answers(row: tuple[Recipe, Path]) -> None:
    _, output = row
    lines = [json.loads(line) for line in (output / "1-adapter" / "samples.jsonl").read_text().splitlines()]
    assert lines
    assert {line["step"] for line in lines} == {2}
    assert all(set(line) == {"step", "record", "region", "question", "answer", "caption"} for line in lines)


def test_finished_stages_are_skipped_and_an_interrupted_one_continues(row: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, finished = row
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    expected = weights(output / "3-everything")
    shutil.rmtree(output / "3-everything" / "final")
    told: list[str] = []
    train(recipe, output, options={**OPTIONS, "max_steps": 2}, tell=told.append)
    assert [line for line in told if "finished before" in line] == told[:2]
    assert any("Continuing from" in line and "checkpoint-2" in line for line in told)
    assert_equal(weights(output / "3-everything"), expected)


def test_torn_checkpoint_is_skipped_with_a_message(setting: Recipe, uninterrupted: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(uninterrupted, output)
    shutil.rmtree(output / "final")
    (output / "checkpoint-7" / "stage.json").unlink()
    optimizer = output / "checkpoint-6" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-100])
    told: list[str] = []
    train(setting, output, options=OPTIONS, tell=told.append)
    assert any("Skipping checkpoint-7" in line and "has no stage.json" in line for line in told)
    assert any("Skipping checkpoint-6" in line and "optimizer.pt has" in line for line in told)
    assert any("Continuing from" in line and "checkpoint-4" in line for line in told)
    assert_equal(weights(output), weights(uninterrupted))


# --- refusals --------------------------------------------------------------------------------------------------------


def test_folder_of_another_run_is_not_continued(row: tuple[Recipe, Path], setting: Recipe, tmp_path: Path) -> None:
    recipe, output = row
    other = replace(recipe, stages=tuple(replace(stage, learning_rate=0.5) for stage in recipe.stages))
    with pytest.raises(ResumeError, match=r"another command\. stage: learning_rate was .*, now it is 0\.5"):
        train(other, output, options=OPTIONS)
    with pytest.raises(ResumeError, match="data: records was"):
        train(replace(recipe, data={"records": "other.jsonl"}), output, options=OPTIONS)
    with pytest.raises(ResumeError, match="is not empty"):
        train(recipe, output, options=OPTIONS, resume=False)
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(ResumeError, match="did not write"):
        train(setting, tmp_path, options=OPTIONS)
    assert (tmp_path / "checkpoint-3").is_dir()


def test_missing_model_data_and_weighted_data_are_named(setting: Recipe, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="Give --model"):
        train(replace(setting, model=None), tmp_path)
    with pytest.raises(StageError, match="Give --data"):
        train(replace(setting, data={}), tmp_path)
    stage = replace(setting.stages[0], data={"scenes": 1})
    with pytest.raises(StageError, match="trains on scenes, but data is given for records"):
        train(replace(setting, stages=(stage,)), tmp_path, options=OPTIONS)


def test_held_out_share_is_not_trained_on(setting: Recipe) -> None:
    told: list[str] = []
    setting = replace(setting, eval_data={}, eval_share=0.25)
    training, held_out = open_data(setting, replace(STAGES[1], data={}), seed=0, tell=told.append)
    assert len(told) == 1 and re.search(r"records\.jsonl: 18 of \d+ regions are whole pictures\.", told[0])
    ids = [{data[index].id for index in range(len(data))} for data in (training, held_out)]
    assert [len(each) for each in ids] == [14, 4]
    assert not ids[0] & ids[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "1", "--max-step", "3"], "no option --max-step. Did you mean --max-steps?"),
        (["--stage", "9"], "no stage '9'"),
        ([], "Give either --stage"),
        (["--recipe", "finecaption-tiny"], "Give --model"),
        (["--stage", "1", "--model", "m", "--data", "a=x", "--images", "x", "--images", "y"], "both for all data"),
    ],
)
def test_command_ends_in_one_line_on_wrong_input(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", "--output", str(tmp_path), *arguments])
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
