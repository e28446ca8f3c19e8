"""Tensor parallelism on two CPU processes: the logits and tokens of one process."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from conftest import free_port
from packaging.version import Version
from tiny import random_pixels, random_prompts, tiny_model
from torch.distributed.tensor import DTensor
from transformers.distributed import DistributedConfig
from waiting import exit_code

from finecaption_hf.modeling_finecaption import FineCaptionForConditionalGeneration

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["finecaption_hf.modeling_finecaption"])


def begin(rank: int, port: int) -> None:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")


def run_twice(target: Callable[[int, int, Path], None], folder: Path) -> None:
    port = free_port()
    processes = [PROCESSES.Process(target=target, args=(rank, port, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    assert [exit_code(process) for process in processes] == [0, 0]


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
    # An odd number of tokens, as in the full-size model, cannot be halved; before 5.21 that is an error of the library.
    size = 101 if Version(transformers.__version__) >= Version("5.21") else 100
    model = tiny_model(text_config={"tie_word_embeddings": tied, "vocab_size": size})
    model.save_pretrained(tmp_path)
    run_twice(answer_in_parallel, tmp_path)
    with torch.no_grad():
        expected = model(**QUESTIONS).logits
    tokens = model.generate(**QUESTIONS, max_new_tokens=3, do_sample=False)
    for rank in range(2):
        logits, found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)  # sums in another order
        assert torch.equal(found, tokens)
