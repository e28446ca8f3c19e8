"""Shards on two CPU processes. FSDP2 of torch: stages train, save and load, and end with the weights of one process.
Tensor parallelism: the logits and tokens of one process.

accelerate, through which the Trainer shards, does not do so on the CPU; what the model and the stages bring along is
tested here without it.
"""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import free_port
from tiny import random_pixels, random_prompts, tiny_model
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers.distributed import DistributedConfig
from waiting import exit_code

from finecaption_hf.modeling_finecaption import FineCaptionForConditionalGeneration
from finecaption_hf.training import STAGES, apply_stage

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["finecaption_hf.modeling_finecaption", "finecaption_hf.training.callback"])
STEPS = 2


def sample(index: int) -> dict[str, torch.Tensor]:
    prompts = random_prompts(1, seed=index)
    labels = prompts.clone()
    labels[:, :65] = -100
    pixels = random_pixels(1, [0], seed=index)
    return {**pixels, "input_ids": prompts, "labels": labels}


def prepared(number: int) -> FineCaptionForConditionalGeneration:
    model = tiny_model()
    apply_stage(model, STAGES[number])
    return model


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-2)


def begin(rank: int, port: int) -> None:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")


def train_sharded(rank: int, port: int, folder: Path) -> None:
    """What each of the two processes does: every stage, on its own sample of each step."""
    begin(rank, port)
    mesh = init_device_mesh("cpu", (2,))
    for number in STAGES:
        model = prepared(number)
        parts = model.model
        towers = (parts.vision_tower, parts.convnext_tower, parts.sam_tower, parts.adapter)
        for part in (*parts.language_model.layers, *towers, model):
            fully_shard(part, mesh=mesh)
        optimizer = optimizer_of(model)
        for step in range(STEPS):
            model.train()
            model(**sample(2 * step + rank)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if rank == 0:
            model.save_pretrained(folder / str(number), state_dict=whole)
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def run_twice(target: Callable[[int, int, Path], None], folder: Path) -> None:
    port = free_port()
    processes = [PROCESSES.Process(target=target, args=(rank, port, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    assert [exit_code(process) for process in processes] == [0, 0]


def test_sharded_stages_train_save_and_load_like_one_process(tmp_path: Path) -> None:
    run_twice(train_sharded, tmp_path)
    for number in STAGES:
        expected = prepared(number)
        optimizer = optimizer_of(expected)
        for step in range(STEPS):
            expected.train()
            for rank in range(2):
                (expected(**sample(2 * step + rank)).loss / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
        loaded = FineCaptionForConditionalGeneration.from_pretrained(tmp_path / str(number)).state_dict()
        for name, value in expected.state_dict().items():
            # AdamW's first steps go by the sign of a gradient, which rounding may turn where it is all but zero.
            assert (loaded[name] - value).abs().mean() < 1e-5, name
            if name not in STAGES[number].select([name for name, _ in expected.named_parameters()]):
                assert torch.equal(loaded[name], value), name


QUESTIONS: dict[str, torch.Tensor] = {"input_ids": random_prompts(3), **random_pixels(2, [0, 0, 1])}


def answer_in_parallel(rank: int, port: int, folder: Path) -> None:
    begin(rank, port)
    model = FineCaptionForConditionalGeneration.from_pretrained(
        folder, distributed_config=DistributedConfig(tp_size=2, tp_plan="auto")
    )
    assert model.supports_tp_plan and isinstance(model.lm_head.weight, DTensor)
    with torch.no_grad():
        logits = model(**QUESTIONS).logits
    tokens = model.generate(**QUESTIONS, max_new_tokens=3, do_sample=False)
    torch.save([logits, tokens], folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("tied", [False, True])
def test_tensor_parallel_model_answers_like_one_process(tmp_path: Path, tied: bool) -> None:
    # An odd number of tokens, as in the full-size model, cannot be halved.
    model = tiny_model(text_config={"tie_word_embeddings": tied, "vocab_size": 101})
    model.save_pretrained(tmp_path)
    run_twice(answer_in_parallel, tmp_path)
    with torch.no_grad():
        expected = model(**QUESTIONS).logits
    tokens = model.generate(**QUESTIONS, max_new_tokens=3, do_sample=False)
    for rank in range(2):
        logits, found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)  # sums in another order
        assert torch.equal(found, tokens)
