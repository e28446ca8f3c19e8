"""Captions of a few held-out regions at every evaluation, beside the right answers."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..asking import FineCaptionDescriber
from ..pipeline_finecaption import AskedImage, AskedRegion, answer_all, requests_about
from ..prompts_finecaption import find_question
from ..resuming import whole_file


class SampleCallback(TrainerCallback):
    """Writes greedy captions to `samples.jsonl` in the output folder, with step, question and right answer.

    Args:
        processor (`FineCaptionProcessor`): of the model that trains.
        examples: held-out examples, by index.
        num_samples: how many examples to take, from the start; of each, the first region and its first branches.
    """

    def __init__(self, processor: Any, examples: Any, num_samples: int) -> None:
        self.processor = processor
        self.examples = [examples[index] for index in range(min(num_samples, len(examples)))]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        path = _path(args)
        if not state.is_world_process_zero or not path.is_file():
            return
        # Steps that an interrupted run did after its last checkpoint come again.
        lines = path.read_bytes().splitlines(keepends=True)
        with whole_file(path) as file:
            file.writelines(line for line in lines if _is_before(line, state.global_step))

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        model = kwargs["model"]
        # A model that is spread over processes generates in all of them or not at all.
        if not (state.is_world_process_zero or args.fsdp or args.deepspeed):
            return
        model.eval()
        describer = FineCaptionDescriber(model, self.processor)
        lines = []
        for example in self.examples:
            region = example.regions[0]
            branches = region.branches[:4]
            # Drawing no random numbers, this leaves the training as it would have been.
            with torch.autocast(model.device.type, torch.bfloat16, enabled=args.bf16):
                asked = _ask(describer, example, branches)
            for number, branch in enumerate(branches):
                error = asked.why_not(number)
                lines.append(
                    {
                        "step": state.global_step,
                        "record": example.where,
                        "region": region.id,
                        "question": branch.question or branch.name,
                        "answer": branch.answer,
                        "caption": asked.text(number),
                        **({} if error is None else {"error": error}),
                    }
                )
        if state.is_world_process_zero:
            with _path(args).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _ask(describer: FineCaptionDescriber, example: Any, branches: Any) -> AskedRegion:
    """The branches of an example's first region, asked anew."""
    questions = [
        (branch.name, branch.question or find_question(branch.name, describer.questions) or branch.name)
        for branch in branches
    ]
    asked = AskedRegion(requests_about(questions, (), ()))
    picture = example.load()
    reference = example.reference(example.regions[0], picture)
    answer_all(describer, [AskedImage.prepare(describer.prepare, picture, [reference], [asked])])
    return asked


def _path(args: TrainingArguments) -> Path:
    return Path(args.output_dir) / "samples.jsonl"


def _is_before(line: bytes, step: int) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except ValueError:
        return False  # the process ended while it wrote this line
