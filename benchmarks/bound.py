"""The lower bound of answering questions about regions: operations and bytes that no exact program avoids.

Counted are matrix products, convolutions and attention (elementwise work counts nothing), each of them once where
results can be shared: towers per image or region, the text before the image once, tokens in which questions of a region
start alike once, of the last layer only keys and values where no logits are needed. Weights are read once per pass, a
region's cache once per step. At the best speeds that a machine shows, each phase takes at least the larger of its
operations over the matrix speed and its bytes over the memory speed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from finecaption_hf.assembly.cost import model_info
from finecaption_hf.prompts_finecaption import PromptEncoder


class Machine:
    """The best speed seen so far of matrix products (operations per second) and of memory (bytes per second)."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype, seconds_of: Callable[[Callable[[], Any]], float]
    ) -> None:
        self.on_gpu = device.type == "cuda"
        self.options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.seconds_of = seconds_of
        self.operations = self.bytes = 0.0

    @torch.no_grad()
    def measure(self) -> None:
        """Products of a few sizes; reading and copying, on the CPU also of what the last cache holds."""
        options = self.options
        for size in (4096, 8192, 16384) if self.on_gpu else (512, 1024, 2048):
            matrix = torch.randn(size, size, **options)
            self.operations = max(self.operations, 2 * size**3 / self._best(lambda matrix=matrix: matrix @ matrix))
        for size in (2**30, 2**32) if self.on_gpu else (2**24, 2**26, 2**28):
            rows = torch.randn(size // matrix.element_size() // 4096, 4096, **options)
            vector, target = torch.randn(4096, **options), torch.empty_like(rows)
            for moved, action in (
                (size, lambda rows=rows, vector=vector: rows @ vector),
                (size, lambda rows=rows: rows.sum()),
                (2 * size, lambda rows=rows, target=target: target.copy_(rows)),
            ):
                self.bytes = max(self.bytes, moved / self._best(action))

    def _best(self, action: Callable[[], Any]) -> float:
        return min(self.seconds_of(action) for _ in range(4))

    def seconds(self, operations: float, moved: float) -> float:
        return max(operations / self.operations, moved / self.bytes)


class Bound:
    """Operations and bytes that cannot be avoided, by phase.

    Args:
        model, processor: with a language model of attention layers as Llama has them.
        new_tokens: of each answer.
        names: of the questions, with their names in the processor.
    """

    def __init__(self, model: Any, processor: Any, new_tokens: int, names: Sequence[str]) -> None:
        config = model.config
        info = model_info(config)
        self.new_tokens = new_tokens
        self.item = model.dtype.itemsize
        self.parameters = info.parameters
        self.config = config

        self.flops = {name: value or 0 for name, value in info.flops.items()}
        vision = config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        # A picture's patches are embedded once; only the mask's are of the region.
        self.patch_flops = 2 * patches * 3 * vision.patch_size**2 * vision.hidden_size

        layers = model.model.language_model.layers
        self.num_layers = len(layers)
        weights = [sum(m.weight.numel() for m in layer.modules() if isinstance(m, nn.Linear)) for layer in layers]
        attention = layers[-1].self_attn
        kept = attention.k_proj.weight.numel() + attention.v_proj.weight.numel()
        self.linear, self.last = sum(weights) - weights[-1] + kept, weights[-1] - kept
        self.head = model.lm_head.weight.numel()
        text = config.text_config
        self.attended = 4 * text.num_attention_heads * attention.head_dim  # operations per pair and layer
        self.cached = kept // text.hidden_size * self.num_layers * self.item  # bytes per token

        encoder = PromptEncoder(processor)
        self.lead = len(encoder.prefix_ids) - config.image_seq_length
        self.prefix = len(encoder.prefix_ids)
        self.questions = {name: encoder.question_ids(processor.question(name)) for name in names}

    def of(self, num_regions: int, names: Sequence[str]) -> dict[str, tuple[float, float]]:
        """Operations and bytes of each phase, for one image."""
        config, flops, item = self.config, self.flops, self.item
        weights = {name: count * item for name, count in self.parameters.items()}
        fine, coarse = 3 * config.high_res_image_size**2, 3 * config.vision_config.image_size**2
        tokens = config.image_seq_length
        fused, width = config.fused_feature_size, config.text_config.hidden_size
        branches = num_regions * len(names)
        questions = [self.questions[name] for name in names]

        image = flops.get("convnext_tower", 0) + flops.get("sam_tower", 0)
        region = num_regions * (flops["vision_tower"] + flops["adapter"]) - (num_regions - 1) * self.patch_flops
        # Beginnings of questions: a region computes each different one once.
        begun = {ids[:end] for ids in questions for end in range(1, len(ids) + 1)}
        steps = range(1, self.new_tokens)
        ends = [self.prefix + len(ids) for ids in questions]
        last_layer = self.last * item
        head = self.head * item
        return {
            "preprocessing": (0, 4 * (fine + coarse + num_regions * coarse / 3)),
            "images": (
                image,
                weights.get("convnext_tower", 0)
                + weights.get("sam_tower", 0)
                + item * (fine + tokens * (fused - config.vision_config.hidden_size)),
            ),
            "regions": (
                region,
                weights["vision_tower"] + weights["adapter"] + item * num_regions * tokens * (fused + width),
            ),
            "prefixes": (
                self._language(
                    self.lead + num_regions * tokens,
                    causal(self.lead) + num_regions * (causal(self.prefix) - causal(self.lead)),
                ),
                self.linear * item + self.cached * (self.lead + num_regions * tokens),
            ),
            "questions": (
                self._language(
                    num_regions * len(begun),
                    num_regions * sum(self.prefix + len(ids) for ids in begun),
                    branches,
                    num_regions * sum(ends),
                ),
                self.linear * item + last_layer + head + self.cached * num_regions * (self.prefix + len(begun)),
            ),
            "tokens": (
                sum(
                    self._language(branches, pairs, branches, pairs)
                    for pairs in (num_regions * sum(end + step for end in ends) for step in steps)
                ),
                sum(
                    self.linear * item
                    + last_layer
                    + head
                    + self.cached * num_regions * (self.prefix + len(begun) + len(questions) * step)
                    + item * branches * config.text_config.vocab_size
                    for step in steps
                ),
            ),
        }

    def _language(self, tokens: int, pairs: int, outputs: int = 0, output_pairs: int = 0) -> float:
        """Operations for some new tokens, of which `outputs` need logits, and pairs of a query and a key."""
        linear = 2 * (tokens * self.linear + outputs * (self.last + self.head))
        return linear + self.attended * (pairs * (self.num_layers - 1) + output_pairs)

    def seconds(self, machine: Machine, num_regions: int, names: Sequence[str]) -> dict[str, float]:
        return {phase: machine.seconds(*counts) for phase, counts in self.of(num_regions, names).items()}


def causal(length: int) -> int:
    """Pairs of a query and a key in a causal sequence."""
    return length * (length + 1) // 2
