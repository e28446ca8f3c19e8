#!/usr/bin/env python
"""Train the embedded checkpoint, `finecaption-tiny`, on scenes that are rendered as it goes.

    python scripts/train_tiny.py --output runs/tiny

Four phases, the first three stand-ins for the pretraining that full-size parts bring along:

1. swatches: the ConvNeXt tower learns colours and textures from small boards of them;
2. towers: which colour, shape and texture lies in each grid cell, and whether the cell is in the region;
3. words: the language model reads questions and answers as text alone;
4. captions: all parameters on packed branches; of the branches of a region, each attends to the prefix and to itself.

The state is saved as it goes; the same command continues where it was stopped. The checkpoint is OUTPUT/checkpoint.

Dimension letters: B regions, I images, h w grid, T tokens of a packed sequence.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from torchvision.transforms.v2 import functional as tvF
from transformers import PreTrainedTokenizerFast

from finecaption_hf.configuration_finecaption import FineCaptionConfig
from finecaption_hf.modeling_finecaption import (
    FineCaptionForConditionalGeneration,
)
from finecaption_hf.scenes import (
    COLORS,
    QUESTIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    answers,
    render_scene,
    render_swatches,
    vocabulary,
)

IMAGE, USER, ASSISTANT, END, PAD = "<image>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"
GRID, LOW_RES, HIGH_RES = 8, 84, 256
# The picture comes first, so that what precedes the question does not depend on it.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{ '" + USER + "' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}"
    "{%- for item in message['content'] if item['type'] == 'image' -%}{{ '" + IMAGE + "' }}{%- endfor -%}"
    "{%- for item in message['content'] if item['type'] == 'text' -%}{{ item['text'] }}{%- endfor -%}"
    "{%- endif -%}"
    "{%- elif message['role'] == 'assistant' -%}{{ '" + ASSISTANT + "' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}"
    "{%- for item in message['content'] if item['type'] == 'text' -%}{{ item['text'] }}{%- endfor -%}"
    "{%- endif -%}{{ '" + END + "' }}"
    "{%- else -%}{{ raise_exception('The roles are user and assistant, not ' ~ message['role']) }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '" + ASSISTANT + "' }}{%- endif -%}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE over the wording of scenes; any other text is spelt out in bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=[PAD, USER, ASSISTANT, END, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(vocabulary(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT, IMAGE],
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_config(tokenizer: PreTrainedTokenizerFast) -> FineCaptionConfig:
    """Every part of the full-size architecture at small size; 84/256 px keeps the ratio of 336/1024."""
    return FineCaptionConfig(
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 384,
            "projection_dim": 128,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "image_size": LOW_RES,
            "patch_size": 14,
        },
        convnext_config={
            "architecture": "convnext_atto",
            "model_args": {"depths": [1, 2, 3, 1], "dims": [32, 64, 96, 144], "conv_mlp": False},
            "hidden_size": 144,
            "layer_scale_init_value": 0.1,  # timm's 1e-6 slows training from scratch
        },
        sam_config={
            "hidden_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "global_attn_indexes": [2],
            "window_size": 8,
            "mlp_ratio": 3.0,
            "image_size": HIGH_RES,
            "patch_size": 16,
            "output_channels": 32,
            "initializer_range": 0.02,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 144,
            "intermediate_size": 352,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 1024,
            "initializer_range": 0.05,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": True,
        },
        high_res_image_size=HIGH_RES,
        grid_size=GRID,
        adapter_hidden_size=256,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
    )


class Packed(NamedTuple):
    """One region's sequence: the prefix and its branches."""

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int]
    segments: list[int]  # 0 the prefix, 1.. the branches
    names: list[str]  # of the branches


class BranchPacker:
    """Packs the prefix of a region and branches (question name, answer) in one sequence."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.tokenizer = tokenizer
        self.encode = lru_cache(maxsize=None)(self._encode)
        self.prefix = self._encode(USER + IMAGE * GRID**2)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def __call__(self, branches: list[tuple[str, str]], with_prefix: bool = True) -> Packed:
        start = len(self.prefix)
        ids = list(self.prefix) if with_prefix else []
        labels, segments = [-100] * len(ids), [0] * len(ids)
        positions = list(range(len(ids)))
        for number, (name, answer) in enumerate(branches, start=1):
            question = self.encode(QUESTIONS[name] + ASSISTANT)
            reply = self.encode(answer + END)
            ids += question + reply
            labels += [-100] * len(question) + list(reply)
            segments += [number] * (len(question) + len(reply))
            positions += range(start, start + len(question) + len(reply))
        return Packed(ids, labels, positions, segments, [name for name, _ in branches])


def collate_text(sequences: list[Packed], pad: int) -> dict[str, torch.Tensor]:
    """Pad on the right; a token sees the prefix and, causally, its own branch."""
    length = max(len(item.input_ids) for item in sequences)

    def padded(field: str, value: int) -> torch.Tensor:
        rows = [list(getattr(item, field)) for item in sequences]
        return torch.tensor([row + [value] * (length - len(row)) for row in rows])

    segments = padded("segments", -1)
    query, key = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    attention = ((query == key) | (key == 0)) & causal
    return {
        "input_ids": padded("input_ids", pad),
        "labels": padded("labels", -100),
        "position_ids": padded("position_ids", 0),
        "attention_mask": attention[:, None],
        "segments": segments,
    }


class SceneBatches(IterableDataset):
    """Endless batches of rendered scenes, from a seed on."""

    def __init__(self, first_seed: int, images: int, tokenizer: PreTrainedTokenizerFast, split: str = "train"):
        self.first_seed, self.images, self.split = first_seed, images, split
        self.packer = BranchPacker(tokenizer)
        self.pad = tokenizer.pad_token_id

    def __iter__(self) -> Iterator[dict[str, Any]]:
        torch.set_num_threads(1)
        seed = self.first_seed
        while True:
            yield self.batch(range(seed, seed + self.images))
            seed += self.images

    def batch(self, seeds: range) -> dict[str, Any]:
        scenes = [render_scene(seed, size=HIGH_RES, split=self.split) for seed in seeds]
        rng = np.random.default_rng(seeds.start)
        sequences, masks, image_indices, in_region, cells = [], [], [], [], []
        for index, scene in enumerate(scenes):
            cells.append(cell_labels(scene))
            for number, mask in enumerate(scene.masks):
                texts = answers(scene.objects, number)
                names = list(rng.permutation(["color", "shape", "texture", "size", "position"]))
                names.append("region" if rng.random() < 0.5 else "dense")
                sequences.append(self.packer([(name, texts[name]) for name in names]))
                masks.append(mask)
                image_indices.append(index)
                in_region.append(number)
            if rng.random() < 0.25:  # the whole image as region, with the caption of the whole
                sequences.append(self.packer([("global", answers(scene.objects, 0)["global"])]))
                masks.append(np.ones_like(scene.masks[0]))
                image_indices.append(index)
                in_region.append(-1)
        return {
            "images": torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2),
            "alpha": region_alpha(np.stack(masks)),
            "image_indices": torch.tensor(image_indices),
            "object_indices": torch.tensor(in_region),
            "cells": {key: torch.from_numpy(np.stack([cell[key] for cell in cells])) for key in cells[0]},
            "text": collate_text(sequences, self.pad),
            "names": [item.names for item in sequences],
        }


def region_alpha(masks: np.ndarray) -> torch.Tensor:
    """Bool `(B, H, W)` to soft alpha `(B, 1, 84, 84)` in [0, 1], as the image processor makes it."""
    alpha = tvF.resize(torch.from_numpy(masks[:, None].astype(np.float32)), [LOW_RES, LOW_RES], antialias=True)
    return alpha / alpha.amax(dim=(2, 3), keepdim=True).clamp(max=1.0)


def cell_labels(scene: Any) -> dict[str, np.ndarray]:
    """Class of colour, shape, texture, size of each grid cell (0: background), and the object's number (-1: none)."""
    count = len(scene.objects)
    side = HIGH_RES // GRID
    share = scene.masks.reshape(count, GRID, side, GRID, side).mean(axis=(2, 4))
    owner = np.where(share.max(axis=0) > 0.2, share.argmax(axis=0), -1)
    labels = {"owner": owner}
    for name, words in (("color", COLORS), ("shape", SHAPES), ("texture", TEXTURES), ("size", SIZES)):
        classes = np.array([0] + [1 + words.index(getattr(item, name)) for item in scene.objects])
        labels[name] = classes[owner + 1]
    return labels


def normalise(pixels: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    """uint8 `(I, 3, H, W)` to (pixels / 255 - mean) / std."""
    return tvF.normalize(pixels.float() / 255, mean, std)


def model_inputs(batch: dict[str, Any], config: FineCaptionConfig) -> dict[str, torch.Tensor]:
    """Normalise uint8 images and alphas as the image processor does."""
    images = batch["images"]
    low = tvF.resize(images, [LOW_RES, LOW_RES], interpolation=tvF.InterpolationMode.BICUBIC, antialias=True)

    return {
        "pixel_values": normalise(low, config.image_mean, config.image_std),
        "high_res_pixel_values": normalise(images, config.high_res_image_mean, config.high_res_image_std),
        "mask_values": (batch["alpha"] - config.mask_mean) / config.mask_std,
        "image_indices": batch["image_indices"],
    }


def scale_initial_weights(model: FineCaptionForConditionalGeneration) -> None:
    """Start the towers' layers at a variance of 1 / inputs.

    The library's 0.02 suits wide layers that come with pretrained weights. In towers this narrow it all but hides fine
    textures: on boards of swatches they were still at chance after 300 steps, and learnt within 200 from here. Scenes
    alone taught textures from neither start within 400 steps, hence the boards.
    """
    base = model.model
    for tower in (base.vision_tower, base.convnext_tower, base.sam_tower):
        for name, module in tower.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and "alpha_embedding" not in name:
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")


class CellHeads(nn.Module):
    """Linear read-outs of each tower's cells, used before the captions only."""

    def __init__(self, config: FineCaptionConfig):
        super().__init__()
        classes = {"color": len(COLORS) + 1, "shape": len(SHAPES) + 1, "texture": len(TEXTURES) + 1}
        widths = {"convnext": config.convnext_feature_size, "sam": config.sam_feature_size}
        self.heads = nn.ModuleDict(
            {f"{tower}_{name}": nn.Linear(width, n) for tower, width in widths.items() for name, n in classes.items()}
        )
        clip = config.vision_config.hidden_size
        self.heads["clip_color"] = nn.Linear(clip, classes["color"])
        self.heads["clip_shape"] = nn.Linear(clip, classes["shape"])
        self.heads["clip_inside"] = nn.Linear(clip, 2)
        self.heads["clip_region_color"] = nn.Linear(clip, len(COLORS) + 1)
        self.heads["clip_region_size"] = nn.Linear(clip, len(SIZES) + 1)

    def forward(self, model: FineCaptionForConditionalGeneration, batch: dict[str, Any], inputs: dict) -> dict:
        """Logits and labels by read-out name, each over all cells."""
        base = model.model
        cells, indices, objects = batch["cells"], batch["image_indices"], batch["object_indices"]
        high = base.get_high_res_features(inputs["high_res_pixel_values"]).flatten(2).transpose(1, 2)
        split = [base.config.convnext_feature_size, base.config.sam_feature_size]
        results = {}
        for tower, features in zip(("convnext", "sam"), high.split(split, dim=-1), strict=True):
            for name in ("color", "shape", "texture"):
                results[f"{tower}_{name}"] = self.heads[f"{tower}_{name}"](features), cells[name].flatten(1)
        hidden = base.vision_tower(inputs["pixel_values"], inputs["mask_values"], indices)
        clip = base._to_grid(hidden[:, 1:]).flatten(2).transpose(1, 2)
        owner = cells["owner"].flatten(1)[indices]
        inside = (owner == objects[:, None]) & (objects[:, None] >= 0)
        region_known = (objects >= 0)[:, None] & torch.ones_like(owner, dtype=torch.bool)
        for name in ("color", "shape"):
            results[f"clip_{name}"] = self.heads[f"clip_{name}"](clip), cells[name].flatten(1)[indices]
        results["clip_inside"] = self.heads["clip_inside"](clip), torch.where(region_known, inside.long(), -100)
        for name in ("color", "size"):
            labels = torch.where(inside, cells[name].flatten(1)[indices], torch.where(region_known, 0, -100))
            results[f"clip_region_{name}"] = self.heads[f"clip_region_{name}"](clip), labels
        return results


class Trainer:
    """The phases, resumable at every `--save-every` steps."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        torch.manual_seed(args.seed)
        self.tokenizer = build_tokenizer()
        self.config = build_config(self.tokenizer)
        self.model = FineCaptionForConditionalGeneration(self.config)
        scale_initial_weights(self.model)
        self.heads = CellHeads(self.config)
        self.state_file = Path(args.output) / "state.pt"
        self.done = {"swatches": 0, "towers": 0, "words": 0, "captions": 0}
        self.saved: dict[str, Any] = {}
        if self.state_file.exists():
            self.saved = torch.load(self.state_file, weights_only=True)
            self.done = self.saved["done"]
            self.model.load_state_dict(self.saved["model"])
            self.heads.load_state_dict(self.saved["heads"])
        count = sum(p.numel() for p in self.model.parameters())
        self.log(event="start", parameters=count, done=self.done)

    @staticmethod
    def log(**record: Any) -> None:
        print(json.dumps({"time": round(time.time(), 1), **record}), flush=True)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.args.device, dtype=torch.bfloat16, enabled=self.args.bf16)

    def save(self, phase: str, step: int, optimizer: torch.optim.Optimizer) -> None:
        self.done[phase] = step
        self.state_file.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "done": self.done,
            "phase": phase,
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        partial = self.state_file.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.state_file)

    def optimise(self, phase: str, steps: int, groups: list[dict], step_loss: Any) -> None:
        """Run a phase's remaining steps: AdamW, warm-up, cosine."""
        if self.done[phase] >= steps:
            return
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01)
        if self.saved.get("phase") == phase:
            optimizer.load_state_dict(self.saved["optimizer"])
        peaks = [group["lr"] for group in groups]
        warmup = max(1, min(200, steps // 20))
        parameters = [p for group in groups for p in group["params"]]
        started, sums, counted = time.time(), {}, 0
        self.model.train()
        for step in range(self.done[phase], steps):
            progress = max(0.0, (step - warmup) / max(1, steps - warmup))
            factor = min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            loss, report = step_loss(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            counted += 1
            for key, value in {"loss": loss.item(), **report}.items():
                sums[key] = sums.get(key, 0.0) + value
            if (step + 1) % self.args.log_every == 0:
                means = {key: round(value / counted, 4) for key, value in sums.items()}
                self.log(phase=phase, step=step + 1, seconds=round(time.time() - started), **means)
                sums, counted = {}, 0
            if (step + 1) % self.args.save_every == 0 or step + 1 == steps:
                self.save(phase, step + 1, optimizer)
                if phase == "captions":
                    self.evaluate(step + 1)
                    save_checkpoint(self.model, self.tokenizer, Path(self.args.output) / "checkpoint")

    def batches(self, first_seed: int) -> Iterator[dict[str, Any]]:
        dataset = SceneBatches(first_seed, self.args.images, self.tokenizer)
        ahead = 4 if self.args.workers else None
        return iter(DataLoader(dataset, batch_size=None, num_workers=self.args.workers, prefetch_factor=ahead))

    def train_swatches(self) -> None:
        """Only the ConvNeXt tower, on boards of 2x2 swatches: 16 times smaller than scenes, every cell labelled."""
        tower = self.model.model.convnext_tower
        heads = {name: self.heads.heads[f"convnext_{name}"] for name in ("color", "texture")}
        groups = [{"params": [*tower.parameters(), *(p for h in heads.values() for p in h.parameters())], "lr": 2e-3}]

        def step_loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            boards = [render_swatches(step * 32 + number) for number in range(32)]
            images = torch.from_numpy(np.stack([board[0] for board in boards])).permute(0, 3, 1, 2)
            labels = {"color": np.stack([b[1] for b in boards]), "texture": np.stack([b[2] for b in boards])}
            with self.autocast():
                features = tower(normalise(images, self.config.convnext_image_mean, self.config.convnext_image_std))
                logits = {name: head(features.flatten(2).transpose(1, 2)).float() for name, head in heads.items()}
            loss, report = torch.zeros(()), {}
            for name, values in logits.items():
                truth = torch.from_numpy(labels[name]).flatten() + 1
                loss = loss + nn.functional.cross_entropy(values.flatten(0, 1), truth)
                report[name] = (values.flatten(0, 1).argmax(-1) == truth).float().mean().item()
            return loss, report

        self.optimise("swatches", self.args.swatch_steps, groups, step_loss)

    def train_towers(self) -> None:
        base = self.model.model
        loader = self.batches(10_000_000 + self.done["towers"] * self.args.images)
        towers = [p for m in (base.vision_tower, base.convnext_tower, base.sam_tower) for p in m.parameters()]
        groups = [{"params": [*towers, *self.heads.parameters()], "lr": 1.5e-3}]

        def step_loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            batch = next(loader)
            with self.autocast():
                results = self.heads(self.model, batch, model_inputs(batch, self.config))
            loss, report = torch.zeros(()), {}
            for name, (logits, labels) in results.items():
                logits, labels = logits.float().flatten(0, 1), labels.flatten()
                loss = loss + nn.functional.cross_entropy(logits, labels)
                chosen = labels > 0
                report[name] = (logits.argmax(-1)[chosen] == labels[chosen]).float().mean().item()
            return loss, report

        self.optimise("towers", self.args.tower_steps, groups, step_loss)

    def train_words(self) -> None:
        packer = BranchPacker(self.tokenizer)
        groups = [
            {"params": [*self.model.model.language_model.parameters()], "lr": 1e-3},
        ]

        def step_loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            rng = np.random.default_rng(step)
            sequences = []
            for seed in rng.integers(20_000_000, 30_000_000, size=8):
                scene = render_scene(int(seed), size=HIGH_RES)
                for number in range(len(scene.objects)):
                    sequences.append(packer(list(answers(scene.objects, number).items()), with_prefix=False))
            text = collate_text(sequences, self.tokenizer.pad_token_id)
            text.pop("segments")
            with self.autocast():
                loss = self.model(**text).loss
            return loss, {}

        self.optimise("words", self.args.word_steps, groups, step_loss)

    def train_captions(self) -> None:
        base = self.model.model
        loader = self.batches(30_000_000 + self.done["captions"] * self.args.images)
        towers = [p for m in (base.vision_tower, base.convnext_tower, base.sam_tower) for p in m.parameters()]
        others = [*base.adapter.parameters(), *base.language_model.parameters()]
        groups = [{"params": others, "lr": 1.2e-3}, {"params": towers, "lr": 4e-4}]

        def step_loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            batch = next(loader)
            text = dict(batch["text"])
            segments = text.pop("segments")
            with self.autocast():
                outputs = self.model(**text, **model_inputs(batch, self.config))
            return outputs.loss, exact_answers(outputs.logits, text["labels"], segments, batch["names"])

        self.optimise("captions", self.args.caption_steps, groups, step_loss)

    @torch.no_grad()
    def evaluate(self, step: int) -> None:
        """Teacher-forced exact answers on held-out combinations: a monitor, not the score that is reported."""
        self.model.eval()
        dataset = SceneBatches(0, 16, self.tokenizer, split="test")
        totals: dict[str, list[float]] = {}
        for start in range(0, 96, 16):
            batch = dataset.batch(range(start, start + 16))
            text = dict(batch["text"])
            segments = text.pop("segments")
            logits = self.model(**text, **model_inputs(batch, self.config)).logits
            for key, value in exact_answers(logits, text["labels"], segments, batch["names"]).items():
                totals.setdefault(key, []).append(value)
        self.log(held_out=step, **{key: round(sum(v) / len(v), 4) for key, v in totals.items()})
        self.model.train()


def exact_answers(
    logits: torch.Tensor, labels: torch.Tensor, segments: torch.Tensor, names: list[list[str]]
) -> dict[str, float]:
    """Share of branches, by question, whose every answer token is the likeliest one."""
    predicted = logits[:, :-1].argmax(-1)
    wrong = (predicted != labels[:, 1:]) & (labels[:, 1:] != -100)
    results: dict[str, list[float]] = {}
    for row, branch_names in enumerate(names):
        for number, name in enumerate(branch_names, start=1):
            right = not bool(wrong[row][segments[row, 1:] == number].any())
            results.setdefault(name, []).append(float(right))
    return {name: sum(values) / len(values) for name, values in results.items()}


def save_checkpoint(model: FineCaptionForConditionalGeneration, tokenizer: Any, folder: Path) -> None:
    """Weights, configuration and tokenizer; scripts/package_tiny.py adds processor, code and card."""
    model.generation_config.do_sample = False
    model.generation_config.max_new_tokens = 64
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder for the state, the log and the checkpoint")
    parser.add_argument("--swatch-steps", type=int, default=400)
    parser.add_argument("--tower-steps", type=int, default=600)
    parser.add_argument("--word-steps", type=int, default=200)
    parser.add_argument("--caption-steps", type=int, default=1500)
    parser.add_argument("--images", type=int, default=16, help="scenes per step, two to four regions each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="processes that render ahead")
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast; pays where the machine has bf16 products")
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--save-every", type=int, default=500)
    args = parser.parse_args()
    args.device = "cpu"
    torch.set_num_threads(args.threads)
    trainer = Trainer(args)
    trainer.train_swatches()
    trainer.train_towers()
    trainer.train_words()
    trainer.train_captions()


if __name__ == "__main__":
    main()
