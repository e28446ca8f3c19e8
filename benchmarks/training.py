"""What packing saves in training: branches of a region in one sequence, against one sample per description.

    python benchmarks/training.py [--json FILE] [--images N] [--regions N] [--seed N] [--dtype float32|bfloat16]

Both contestants train the same model on the same descriptions, with `RegionCollator`:

- packed: each image is encoded once, each region's 1,024 image tokens are one prefix for all of its branches;
- separate (`packed=False`): one sample per description, which encodes its image itself and has a prefix of its own, in
  micro-batches of a few samples, as the peers train.

Regions have different numbers of descriptions, 12.8 on average (rounded down where a batch of few regions has no such
average), out of 16 attributes, a sentence and a dense caption, with the instructions of prompts_finecaption and
answers of such lengths. Before timing, the losses are compared.

- `token_ratio`: tokens that the language model reads, separate over packed, padding left out (at least 8).
- `step_time_ratio`: seconds of a training step (collating, forward, backward, AdamW; everything trains) per
  description, separate over packed (at least 6). Contestants take turns, medians count.
- `memory_ratio`: peak memory of a step beyond what is held before it, for one region's descriptions at once, separate
  over packed. On the CPU in a process each (`VmHWM`), on a GPU what torch has allocated.

Weights are random and the widths small, so that it runs on two CPU cores; the geometry is the paper's (336 and 1,024
px, 576 patches, a 32x32 grid). What is printed of the parts tells how the ratios change with size: the towers' part is
saved as often as descriptions share an image or region, the language model's as `token_ratio` says, or more, since its
attention grows with the square of a sample's length; the optimizer's is not saved.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from finecaption_hf import FineCaptionConfig, FineCaptionForConditionalGeneration, FineCaptionProcessor
from finecaption_hf.data.collator import RegionCollator
from finecaption_hf.data.examples import Branch, Example, Region
from finecaption_hf.image_processing_finecaption import FineCaptionImageProcessor
from finecaption_hf.prompts_finecaption import ATTRIBUTES, DEFAULT_CHAT_TEMPLATE, TASKS

BRANCHES_PER_REGION = 12.8
"""Of CompositionCap: 186,490 descriptions of 14,590 entities."""

# Fewest and most words of an answer; the rest is about the length of a clause.
WORDS_OF = {
    "Category Name": (1, 3),
    "Age Range": (1, 4),
    "Color": (2, 9),
    "Shape": (2, 9),
    "One-Sentence Description": (9, 18),
    "region": (9, 18),
    "dense": (30, 60),
}
VOCABULARY = (
    "the a of and with on in to is which has large small round long dark light blue red green brown grey white wooden "
    "metal soft shiny smooth striped man woman child dog car table chair shirt jacket trousers hat hair face hand arm "
    "stands sits holds wears looks leans walks left right behind front above below near far beside window street grass "
    "wall shadow sunlight short curly straight smiling calm young old about thirty years seen from level slightly"
)
WORDS = VOCABULARY.split()

MODEL: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 336,
        "patch_size": 14,
    },
    "convnext_config": {
        "architecture": "convnext_atto",
        "model_args": {"depths": [1, 1, 1, 1], "dims": [8, 16, 32, 64]},
        "hidden_size": 64,
    },
    "sam_config": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "global_attn_indexes": [1],
        "image_size": 1024,
        "patch_size": 16,
        "output_channels": 16,
    },
    "text_config": {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "high_res_image_size": 1024,
    "grid_size": 32,
}
# For a test that only the program runs.
TINY = {
    "vision_config": {"image_size": 84},
    "sam_config": {"image_size": 256},
    "high_res_image_size": 256,
    "grid_size": 8,
}


def make_examples(num_images: int, num_regions: int, seed: int) -> list[Example]:
    """Pictures of noise with boxes, and descriptions of random words: what training costs depends on lengths only."""
    rng = np.random.default_rng(seed)
    names = [*ATTRIBUTES, "region", "dense"]
    counts = ragged_counts(num_images * num_regions, len(names), rng)
    examples = []
    for number in range(num_images):
        picture = Image.fromarray(rng.integers(0, 256, (600, 800, 3), dtype=np.uint8))
        regions = []
        for _ in range(num_regions):
            x, y = (int(value) for value in rng.integers(0, 400, 2))
            chosen = rng.choice(names, counts.pop(), replace=False).tolist()
            branches = tuple(
                Branch(
                    " ".join(rng.choice(WORDS, rng.integers(*WORDS_OF.get(name, (5, 15)), endpoint=True))), name=name
                )
                for name in chosen
            )
            regions.append(Region([x, y, x + 150, y + 120], branches))
        examples.append(Example(picture, tuple(regions), where=f"benchmark:{number}"))
    return examples


def ragged_counts(num_regions: int, most: int, rng: np.random.Generator) -> list[int]:
    """A number of branches for each region, 1 to `most`, binomial but for a sum that gives the average."""
    counts = rng.binomial(most, BRANCHES_PER_REGION / most, num_regions).clip(1)
    while (excess := int(counts.sum()) - int(BRANCHES_PER_REGION * num_regions)) != 0:
        index = rng.integers(num_regions)
        counts[index] = np.clip(counts[index] - np.sign(excess), 1, most)
    return counts.tolist()


def make_processor(tiny: bool) -> FineCaptionProcessor:
    """With byte-level BPE that knows every word used here: about one token per word, as large vocabularies have."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    texts = [*ATTRIBUTES.values(), *TASKS.values(), "user: \nassistant: ", " ".join(WORDS)]
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts * 2, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    config = make_config(tokenizer, tiny)
    return FineCaptionProcessor(
        FineCaptionImageProcessor(**config.image_processor_kwargs()),
        tokenizer,
        chat_template=DEFAULT_CHAT_TEMPLATE,
        image_seq_length=config.image_seq_length,
    )


def make_config(tokenizer: Any, tiny: bool) -> FineCaptionConfig:
    parts = {name: dict(value) if isinstance(value, dict) else value for name, value in MODEL.items()}
    for name, value in TINY.items() if tiny else ():
        parts[name] = {**parts[name], **value} if isinstance(value, dict) else value
    parts["text_config"] |= {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return FineCaptionConfig(**parts, image_token_id=tokenizer.convert_tokens_to_ids("<image>"))


def load_image(example: Example) -> Any:
    return example.image


class Contestant:
    """Trains on all descriptions of the examples, packed or separate."""

    def __init__(self, arguments: argparse.Namespace, packed: bool) -> None:
        processor = make_processor(arguments.tiny)
        torch.manual_seed(0)
        config = make_config(processor.tokenizer, arguments.tiny)
        self.device = torch.device(arguments.device)
        self.dtype = getattr(torch, arguments.dtype)
        self.model = FineCaptionForConditionalGeneration(config).to(self.device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.collator = RegionCollator(processor, load_image=load_image, packed=packed)
        self.packed = packed
        self.rows = arguments.micro_batch

    def micro_batches(self, batch: dict[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
        """All at once where packed; otherwise a few samples at a time."""
        size = len(batch["input_ids"])
        for start in range(0, size, size if self.packed else self.rows):
            rows = slice(start, size if self.packed else start + self.rows)
            part = batch if self.packed else {name: value[rows] for name, value in batch.items()}
            yield {name: value.to(self.device) for name, value in part.items()}

    def collate(self, examples: list[Example]) -> dict[str, torch.Tensor]:
        return self.collator(examples)

    def loss(self, batch: dict[str, torch.Tensor], backward: bool = True) -> float:
        """Loss per answer token over the whole batch, whatever the micro-batches."""
        count = (batch["labels"] != -100).sum().to(self.device)
        total = 0.0
        for part in self.micro_batches(batch):
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                loss = self.model(**part, num_items_in_batch=count).loss
            if backward:
                loss.backward()
            total += loss.item()
        return total

    def step(self, batch: dict[str, torch.Tensor]) -> None:
        self.loss(batch)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def encode_images(self, batch: dict[str, torch.Tensor]) -> None:
        """The towers' and the adapter's part of a step."""
        names = ("pixel_values", "high_res_pixel_values", "mask_values", "image_indices")
        for part in self.micro_batches(batch):
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                features = self.model.get_image_features(**{name: part[name] for name in names if name in part})
            features.pooler_output.float().sum().backward()
        self.model.zero_grad()

    def optimise(self, batch: dict[str, torch.Tensor]) -> None:
        """The optimizer's part of a step."""
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()


def num_tokens(batch: dict[str, torch.Tensor]) -> int:
    real = batch["branch_ids"] >= 0 if "branch_ids" in batch else batch["attention_mask"] == 1
    return int(real.sum())


def timed(action: Any, *arguments: Any) -> tuple[float, Any]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = action(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def measure_times(
    contestants: dict[str, Contestant], examples: list[Example], rounds: int
) -> dict[str, dict[str, float]]:
    """Median seconds of each part of a step; contestants take turns, so a busy machine slows both."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in contestants}
    for turn in range(rounds + 1):
        for name, contestant in contestants.items():
            collating, batch = timed(contestant.collate, examples)
            seconds = {
                "collating": collating,
                "step": timed(contestant.step, batch)[0],
                "towers and adapter": timed(contestant.encode_images, batch)[0],
                "optimizer": timed(contestant.optimise, batch)[0],
            }
            if turn:  # the first turn warms up
                for part, value in seconds.items():
                    found[name].setdefault(part, []).append(value)
    medians = {name: {part: statistics.median(values) for part, values in of.items()} for name, of in found.items()}
    for parts in medians.values():
        step = parts.pop("step")
        parts["language model"] = step - parts["towers and adapter"] - parts["optimizer"]
        parts["total"] = step + parts["collating"]
    return medians


def status(field: str) -> int:
    """Bytes of memory that the kernel counts for this process."""
    with open("/proc/self/status") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def step_memory(arguments: argparse.Namespace, packed: bool) -> int:
    """Bytes that a step on one region's descriptions takes at its peak, beyond what is held before."""
    examples = make_examples(1, 1, arguments.seed)
    arguments.micro_batch = 10**6  # all descriptions of the region at once
    contestant = Contestant(arguments, packed)
    contestant.optimise({})  # what the optimizer keeps is there before
    batch = contestant.collate(examples)
    if arguments.device == "cpu":
        before = status("VmRSS")
        contestant.step(batch)
        return status("VmHWM") - before
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    contestant.step(batch)
    return torch.cuda.max_memory_allocated() - before


def measure_memory(packed: bool) -> int:
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", "packed" if packed else "separate"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return int(done.stdout.split()[-1])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--images", type=int, default=2, help="of a batch (default: %(default)s)")
    parser.add_argument("--regions", type=int, default=1, help="of an image (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of regions and descriptions (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="timed turns (default: %(default)s)")
    parser.add_argument("--micro-batch", type=int, default=4, help="samples at once where separate (default: 4)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16: autocast")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="of torch on the CPU (default: %(default)s)")
    parser.add_argument("--only-tokens", action="store_true", help="count tokens, and measure nothing")
    parser.add_argument("--tiny", action="store_true", help="84/256 px and 64 image tokens: only to try the program")
    parser.add_argument("--memory-of", choices=("packed", "separate"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(step_memory(arguments, arguments.memory_of == "packed"))
        return
    examples = make_examples(arguments.images, arguments.regions, arguments.seed)
    contestants = {"packed": Contestant(arguments, True), "separate": Contestant(arguments, False)}
    batches = {name: contestant.collate(examples) for name, contestant in contestants.items()}
    tokens = {name: num_tokens(batch) for name, batch in batches.items()}
    if arguments.only_tokens:
        print(f"tokens {tokens}, token_ratio {tokens['separate'] / tokens['packed']:.2f}")
        return
    memory = {"packed": measure_memory(True), "separate": measure_memory(False)}

    with torch.no_grad():
        losses = {name: contestant.loss(batches[name], backward=False) for name, contestant in contestants.items()}
    limit = 1e-4 if arguments.dtype == "float32" else 1e-2
    if abs(losses["packed"] - losses["separate"]) > limit * losses["separate"]:
        raise SystemExit(f"The contestants do different work: their losses are {losses}.")

    seconds = measure_times(contestants, examples, arguments.rounds)
    descriptions = sum(len(region.branches) for example in examples for region in example.regions)
    num_regions = arguments.images * arguments.regions
    result = {
        "token_ratio": tokens["separate"] / tokens["packed"],
        "step_time_ratio": seconds["separate"]["total"] / seconds["packed"]["total"],
        "memory_ratio": memory["separate"] / memory["packed"],
        "descriptions": descriptions,
        "descriptions_per_region": descriptions / num_regions,
        "image_tokens": contestants["packed"].model.config.image_seq_length,
        "tokens_per_description": {name: count / descriptions for name, count in tokens.items()},
        "seconds": seconds,
        "step_memory_bytes": memory,
        "losses": losses,
        "parameters": sum(p.numel() for p in contestants["packed"].model.parameters()),
        **{name: getattr(arguments, name) for name in ("images", "regions", "seed", "rounds", "micro_batch")},
        **{name: getattr(arguments, name) for name in ("dtype", "device", "threads")},
    }
    print(
        f"{descriptions} descriptions of {num_regions} regions of {arguments.images} images, {result['image_tokens']} "
        f"image tokens, {result['parameters'] / 1e6:.1f} million parameters"
    )
    print(f"{'seconds per step':24}{'packed':>18}{'separate':>18}{'ratio':>8}")
    for part in ("collating", "towers and adapter", "language model", "optimizer", "total"):
        cells = [seconds[name][part] for name in contestants]
        shares = [f"{value:8.2f} ({value / seconds[name]['total']:4.0%})" for name, value in zip(contestants, cells)]
        print(f"{part:24}{shares[0]:>18}{shares[1]:>18}{cells[1] / cells[0]:8.1f}")
    print(f"{'tokens':24}{tokens['packed']:18}{tokens['separate']:18}")
    print(f"{'MB of one region':24}{memory['packed'] / 1e6:18.0f}{memory['separate'] / 1e6:18.0f}")
    print(f"token_ratio {result['token_ratio']:.2f} (at least 8), ", end="")
    print(f"step_time_ratio {result['step_time_ratio']:.2f} (at least 6), memory_ratio {result['memory_ratio']:.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
