"""What it costs to ask a model beside FineCaption every question about a region, against one call per question.

    python benchmarks/describers.py [--json FILE] [--threads N] [--rounds N] [--device cpu|cuda] [--tiny]

One picture, one region, 18 questions (the 16 attributes, a sentence, a dense caption), 24 new tokens each, greedy, by
a random LLaVA with its own processor: 336 px, 576 image tokens, about one token per word. Contestants, each from the
picture to the texts:

- `calls_s`: one call per question.
- `batched_s`: one call, the questions as a batch with left padding, each with a prefix of its own; the picture is
  prepared once.
- `shared_s`: one call, the questions behind one prefix.
- `first_s`: as `shared_s`, the first call of a describer, which tries whether sharing changes the logits. Once.

Tokens are compared before anything is reported. Contestants take turns, medians count; `*_cpu_s` are the seconds of
the process on its processors, which other work on the machine changes less.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from training import make_processor
from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from finecaption_hf.asking.describers import Referral, TransformersDescriber
from finecaption_hf.masks_finecaption import RegionMask
from finecaption_hf.prompts_finecaption import ATTRIBUTES, TASKS, BranchRequest

QUESTIONS = (*ATTRIBUTES.values(), TASKS["region"], TASKS["dense"])
TEMPLATE = """\
{%- for message in messages %}{{ message['role'] + ': ' }}{%- for part in message['content'] %}\
{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% else %}{{ part['text'] }}{% endif %}{%- endfor %}\
{{ '\\n' }}{%- endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"""

Answers = list[tuple[int, ...]]


def make_model(tiny: bool) -> tuple[Any, Any]:
    """A random LLaVA-1.5 with the geometry of the published ones; tiny: 4 image tokens, for tests."""
    side = 28 if tiny else 336
    tokenizer = make_processor(True).tokenizer
    width, layers = (32, 2) if tiny else (512, 8)
    sizes = {"hidden_size": width, "intermediate_size": 3 * width, "num_attention_heads": width // 16}
    vision = {"hidden_size": width // 2, "intermediate_size": width, "num_attention_heads": width // 32}
    config = LlavaConfig(
        text_config={
            **sizes,
            "model_type": "llama",
            "num_hidden_layers": layers,
            "vocab_size": len(tokenizer),
            "initializer_range": 0.1,
        },
        vision_config={
            **vision,
            "model_type": "clip_vision_model",
            "num_hidden_layers": layers,
            "image_size": side,
            "patch_size": 14,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = None  # every answer takes all its tokens
    return model, processor


def timed(work: Callable[[], Answers]) -> tuple[float, float, Answers]:
    start, cpu_start = time.perf_counter(), time.process_time()
    found = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - cpu_start, found


def measure(model: Any, processor: Any, rounds: int, new_tokens: int) -> dict[str, Any]:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))
    region = RegionMask({"box_xyxy": [120, 80, 400, 360]}, 480, 640)
    options = {"name": "LLaVA", "batch_size": len(QUESTIONS), "max_new_tokens": new_tokens}

    def describer(shares: bool | None) -> TransformersDescriber:
        made = TransformersDescriber(model, processor, Referral("box_text"), **options)  # type: ignore[arg-type]
        made.shares_prefixes = shares
        return made

    def ask(asked: TransformersDescriber, questions: tuple[str, ...]) -> Answers:
        updates = asked.stream([asked.prepare(picture, [region])], [[BranchRequest(it) for it in questions]])
        found = {update.branch: update.answer.token_ids for update in updates}
        return [found[number] for number in range(len(questions))]

    plain, sharing, fresh = describer(False), describer(True), describer(None)
    for warm, questions in ((plain, QUESTIONS[:1]), (sharing, QUESTIONS)):  # what libraries do once
        ask(warm, questions)
    first, first_cpu, expected = timed(lambda: ask(fresh, QUESTIONS))
    assert fresh.shares_prefixes, "the questions do not share their prefix"
    contestants: dict[str, Callable[[], Answers]] = {
        "calls": lambda: [ask(plain, (question,))[0] for question in QUESTIONS],
        "batched": lambda: ask(plain, QUESTIONS),
        "shared": lambda: ask(sharing, QUESTIONS),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, work in contestants.items():
            seconds, cpu, found = timed(work)
            assert found == expected, f"{name} gives other tokens"
            assert all(len(tokens) == new_tokens for tokens in found)
            times[name].append((seconds, cpu))
    figures: dict[str, Any] = {"first_s": first, "first_cpu_s": first_cpu}
    for name, pairs in times.items():
        figures[f"{name}_s"], figures[f"{name}_cpu_s"] = (statistics.median(it) for it in zip(*pairs, strict=True))
    for name in ("batched", "shared", "first"):
        figures[f"{name}_share"] = figures[f"{name}_s"] / figures["calls_s"]
        figures[f"{name}_cpu_share"] = figures[f"{name}_cpu_s"] / figures["calls_cpu_s"]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="Write the figures to this file.")
    parser.add_argument("--threads", type=int, help="How many threads torch may use.")
    parser.add_argument("--rounds", type=int, default=3, help="How often each contestant is timed.")
    parser.add_argument("--new-tokens", type=int, default=24, help="The length of each answer.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="Where to compute.")
    parser.add_argument("--tiny", action="store_true", help="Use a model of no size, to see that the benchmark runs.")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    model, processor = make_model(given.tiny)
    figures = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "device": given.device,
        "threads": torch.get_num_threads(),
        "questions": len(QUESTIONS),
        "image_tokens": 4 if given.tiny else 576,
        **measure(model.to(given.device), processor, given.rounds, given.new_tokens),
    }
    print(json.dumps(figures, indent=2))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
