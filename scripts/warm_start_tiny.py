#!/usr/bin/env python
"""Warm-start the parts of the embedded checkpoint, `finecaption-tiny`, on scenes that are rendered as it goes.

    python scripts/warm_start_tiny.py --output runs/warm

Stands in for the pretrained encoders and the pretrained language model of the full size. The alpha convolution stays at
zero and every region is the whole picture, so nothing here can use a mask:

1. swatches: the ConvNeXt tower learns colours and textures from small boards of them;
2. close-ups: it learns the facets of objects, heads and bodies from crops around them;
3. towers: each tower learns what lies in each grid cell: the facets of the object or person there and of its neighbour;
4. words: the language model reads questions and answers as text alone;
5. captions: towers, adapter and language model answer questions about pictures of one object or person, and caption
   pictures of several.

The state is saved as it goes; the same command continues where it was stopped. OUTPUT/with-adapter is what that gives.
OUTPUT/checkpoint has a fresh adapter instead, as a model that is assembled from pretrained parts has: from there
`finecaption train --recipe finecaption-tiny` runs the paper's three stages. Both are complete Hub folders.

Dimension letters: B regions, I images, h w grid, T tokens of a packed sequence.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from torchvision.transforms.v2 import functional as tvF
from transformers import PreTrainedTokenizerFast

from finecaption_hf import register
from finecaption_hf.branches_finecaption import PADDING_BRANCH, branch_attention_mask
from finecaption_hf.configuration_finecaption import FineCaptionConfig
from finecaption_hf.data.packing import IGNORED_LABEL, PackedSequence, pack_branches
from finecaption_hf.image_processing_finecaption import FineCaptionImageProcessor
from finecaption_hf.modeling_finecaption import FineCaptionForConditionalGeneration
from finecaption_hf.processing_finecaption import FineCaptionProcessor
from finecaption_hf.scenes import (
    COLORS,
    FACETS,
    QUESTIONS,
    TEXTURES,
    VIEWPOINTS,
    Scene,
    answers,
    render_scene,
    render_swatches,
    vocabulary,
)
from finecaption_hf.scenes.attributes import KINDS, RELATIONS

IMAGE, USER, ASSISTANT, END, PAD = "<image>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"
GRID, LOW_RES, HIGH_RES = 8, 84, 256
# The picture comes first, so that what precedes the question does not depend on it.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{ '" + USER + "' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}"
    "{%- for item in message['content'] if item['type'] == 'image' -%}{{ '" + IMAGE + "' }}{%- endfor -%}"
    "{{ message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') }}"
    "{%- endif -%}"
    "{%- elif message['role'] == 'assistant' -%}{{ '" + ASSISTANT + "' }}"
    "{%- generation -%}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}"
    "{{ message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') }}"
    "{%- endif -%}{{ '" + END + "' }}"
    "{%- endgeneration -%}"
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
        vocab_size=1024,
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
            "layer_scale_init_value": 0.5,  # timm's 1e-6 slows training from scratch
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


class BranchPacker:
    """Packs the prefix of a region and branches (question name, answer) in one sequence."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.tokenizer = tokenizer
        self.encode = lru_cache(maxsize=None)(self._encode)
        self.prefix = self._encode(USER + IMAGE * GRID**2)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def __call__(self, branches: list[tuple[str, str]], with_prefix: bool = True) -> PackedSequence:
        tokens = [(self.encode(QUESTIONS[name] + ASSISTANT), self.encode(answer + END)) for name, answer in branches]
        (packed,) = pack_branches(self.prefix, tokens)
        start = 0 if with_prefix else len(self.prefix)
        return PackedSequence(*(values[start:] for values in packed[:4]), packed.branches)


def collate_text(sequences: list[PackedSequence], pad: int) -> dict[str, torch.Tensor]:
    """Pad on the right; a token sees the prefix and, causally, its own branch."""
    length = max(len(item.input_ids) for item in sequences)

    def padded(field: str, value: int) -> torch.Tensor:
        rows = [list(getattr(item, field)) for item in sequences]
        return torch.tensor([row + [value] * (length - len(row)) for row in rows])

    return {
        "input_ids": padded("input_ids", pad),
        "labels": padded("labels", IGNORED_LABEL),
        "position_ids": padded("position_ids", 0),
        "attention_mask": branch_attention_mask(padded("branch_ids", PADDING_BRANCH)),
    }


class SceneBatches(IterableDataset):
    """Endless batches of rendered scenes, from a seed on; scenes of the test split are counted from 0."""

    def __init__(self, first_seed: int, images: int, tokenizer: PreTrainedTokenizerFast, texts: bool):
        self.first_seed, self.images, self.texts = first_seed, images, texts
        self.packer = BranchPacker(tokenizer)
        self.pad = tokenizer.pad_token_id

    def __iter__(self) -> Iterator[dict[str, Any]]:
        torch.set_num_threads(1)
        seed = self.first_seed
        while True:
            yield self.batch(range(seed, seed + self.images))
            seed += self.images

    def batch(self, seeds: range) -> dict[str, Any]:
        # With texts, five of six pictures show one object or person, and all questions about it are asked.
        single = [self.texts and seed % 6 > 0 for seed in seeds]
        # People have the finer facets, so the towers see one in most pictures.
        scenes = [
            render_scene(
                seed,
                size=HIGH_RES,
                num_regions=1 if alone else None,
                with_person=None if self.texts or seed % 6 == 0 else True,
            )
            for seed, alone in zip(seeds, single, strict=True)
        ]
        batch: dict[str, Any] = {
            "images": torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)
        }
        if self.texts:
            branches = [
                list(answers(scene, 0).items()) if alone else [("global", answers(scene, 0)["global"])]
                for scene, alone in zip(scenes, single, strict=True)
            ]
            batch["text"] = collate_text([self.packer(items) for items in branches], self.pad)
        else:
            cells = [cell_labels(scene) for scene in scenes]
            batch["cells"] = {key: torch.from_numpy(np.stack([cell[key] for cell in cells])) for key in cells[0]}
        return batch


class CloseUps(IterableDataset):
    """Endless batches of crops around objects, heads and bodies: seven times smaller than scenes."""

    def __init__(self, first_seed: int, crops: int):
        self.first_seed, self.crops = first_seed, crops

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        torch.set_num_threads(1)
        seed, waiting = self.first_seed, []
        while True:
            while len(waiting) < self.crops:
                waiting += close_ups(render_scene(seed, size=HIGH_RES), np.random.default_rng(seed))
                seed += 1
            batch, waiting = waiting[: self.crops], waiting[self.crops :]
            labels = {name: torch.tensor([facets.get(name, -100) for _, facets in batch]) for name in CLOSE_UP_CLASSES}
            yield {"images": torch.from_numpy(np.stack([crop for crop, _ in batch])).permute(0, 3, 1, 2), **labels}


HEAD_FACETS = ("expression", "skin_tone", "skin_texture", "hair_color", "hair_style", "accessory", "pose", "shirt")
BODY_FACETS = ("pose", "build", "shirt", "trousers")
CLOSE_UP_CLASSES = (*FACETS, "linked")
CLOSE_UP = 96  # pixels a side


def close_ups(scene: Scene, rng: np.random.Generator) -> list[tuple[np.ndarray, dict[str, int]]]:
    """Crops with the classes of the facets that can be seen in them."""
    views: list[tuple[float, float, dict[str, int]]] = []
    for region in scene.regions:
        facets = {name: FACETS[name].index(value) for name, value in region.facets.items()}
        (x, y), top = region.center_xy, region.box_xyxy[1]
        if region.sort == "person":
            views.append((x, top + 38, {name: facets[name] for name in HEAD_FACETS}))
            views.append((x, top + 98, {name: facets[name] for name in BODY_FACETS}))
        else:
            views.append((x, y, facets))
        if region.neighbor is not None:  # half-way to the neighbour, where there is a rope or none
            other_x, other_y = scene.regions[region.neighbor].center_xy
            views.append(((x + other_x) / 2, (y + other_y) / 2, {"linked": int(region.linked)}))
    found = []
    for x, y, classes in views:
        left, upper = (
            int(np.clip(value - CLOSE_UP / 2 + rng.uniform(-9, 9), 0, HIGH_RES - CLOSE_UP)) for value in (x, y)
        )
        found.append((scene.image[upper : upper + CLOSE_UP, left : left + CLOSE_UP], classes))
    return found


CELL_CLASSES: dict[str, int] = {
    "sort": 3,
    **{name: len(values) for name, values in FACETS.items()},
    "viewpoint": len(VIEWPOINTS),
    "relation": len(RELATIONS),
    "linked": 2,
    "neighbor_color": len(COLORS) + 1,
    "neighbor_kind": len(KINDS) + 1,
    "rope": 2,
}
HIGH_RES_ONLY = ("texture", "skin_texture")


def cell_labels(scene: Scene) -> dict[str, np.ndarray]:
    """Classes `(h, w)` of each cell by name, -100 where a cell has none: `sort` and `viewpoint` are everywhere."""
    count, side = len(scene.regions), HIGH_RES // GRID
    share = scene.masks.reshape(count, GRID, side, GRID, side).mean(axis=(2, 4))
    owner = np.where(share.max(axis=0) > 0.15, share.argmax(axis=0), -1)
    classes = {name: np.full(count + 1, -100) for name in CELL_CLASSES}
    classes["sort"][0] = 0
    classes["viewpoint"][:] = VIEWPOINTS.index(scene.viewpoint)
    for number, region in enumerate(scene.regions, start=1):
        classes["sort"][number] = 1 + (region.sort == "person")
        for name, value in region.facets.items():
            classes[name][number] = FACETS[name].index(value)
        classes["linked"][number] = region.linked
        if region.neighbor is not None and region.relation is not None:
            neighbor = scene.regions[region.neighbor]
            person = neighbor.sort == "person"
            classes["relation"][number] = RELATIONS.index(region.relation)
            classes["neighbor_color"][number] = len(COLORS) if person else COLORS.index(neighbor.facets["color"])
            classes["neighbor_kind"][number] = len(KINDS) if person else KINDS.index(neighbor.facets["kind"])
    labels = {name: values[owner + 1] for name, values in classes.items()}
    # Where a rope crosses the background.
    labels["rope"] = np.where(owner < 0, 0, -100)
    ends = [region.center_xy for region in scene.regions if region.linked]
    if ends:
        along = np.linspace(ends[0], ends[1], 65)
        columns, rows = (along // side).astype(int).T
        crossed = owner[rows, columns] < 0
        labels["rope"][rows[crossed], columns[crossed]] = 1
    return labels


def normalise(pixels: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    """uint8 `(I, 3, H, W)` to (pixels / 255 - mean) / std."""
    return tvF.normalize(pixels.float() / 255, mean, std)


def model_inputs(images: torch.Tensor, config: FineCaptionConfig) -> dict[str, torch.Tensor]:
    """uint8 images to what the image processor makes of them."""
    low = tvF.resize(images, [LOW_RES, LOW_RES], interpolation=tvF.InterpolationMode.BICUBIC, antialias=True)
    return {
        "pixel_values": normalise(low, config.image_mean, config.image_std),
        "high_res_pixel_values": normalise(images, config.high_res_image_mean, config.high_res_image_std),
        # Every region is the whole picture.
        "mask_values": torch.full((len(low), 1, LOW_RES, LOW_RES), (1.0 - config.mask_mean) / config.mask_std),
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
    # Beside features of that size, positions of 0.02 (CLIP) or zero (SAM) would take long to be noticed.
    nn.init.normal_(base.vision_tower.embeddings.position_embedding.weight, std=0.5)
    nn.init.normal_(base.sam_tower.vision_encoder.pos_embed, std=0.5)
    # Without a bias the normalisation behind the first layer would take the brightness out of an even surface.
    nn.init.normal_(base.convnext_tower.encoder.stem[0].bias, std=1.0)


class CellHeads(nn.Module):
    """Linear read-outs of each tower's cells, used before the captions only."""

    def __init__(self, config: FineCaptionConfig):
        super().__init__()
        widths = {
            "clip": config.vision_config.hidden_size,
            "convnext": config.convnext_feature_size,
            "sam": config.sam_feature_size,
        }
        self.heads = nn.ModuleDict(
            {tower: nn.Linear(width, sum(CELL_CLASSES.values())) for tower, width in widths.items()}
        )

    def forward(self, model: FineCaptionForConditionalGeneration, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Logits `(I, h * w, classes)` by tower and name."""
        base = model.model
        high = base.get_high_res_features(inputs["high_res_pixel_values"]).flatten(2).transpose(1, 2)
        convnext, sam = high.split([base.config.convnext_feature_size, base.config.sam_feature_size], dim=-1)
        clip = base._to_grid(base.vision_tower(inputs["pixel_values"])[:, 1:]).flatten(2).transpose(1, 2)
        results = {}
        for tower, features in (("clip", clip), ("convnext", convnext), ("sam", sam)):
            parts = self.heads[tower](features).float().split(list(CELL_CLASSES.values()), dim=-1)
            for name, logits in zip(CELL_CLASSES, parts, strict=True):
                if tower != "clip" or name not in HIGH_RES_ONLY:
                    results[f"{tower}_{name}"] = logits
        return results


class WarmStart:
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
        self.done = {"swatches": 0, "close-ups": 0, "towers": 0, "words": 0, "captions": 0}
        self.saved: dict[str, Any] = {}
        if self.state_file.exists():
            self.saved = torch.load(self.state_file, weights_only=True)
            self.done = self.saved["done"]
            self.model.load_state_dict(self.saved["model"])
            self.heads.load_state_dict(self.saved["heads"])
        # The mask is for stage 2: here the alpha convolution is as untrained as in a fresh assembly.
        self.model.model.vision_tower.embeddings.alpha_embedding.requires_grad_(False)
        count = sum(p.numel() for p in self.model.parameters())
        self.log(event="start", parameters=count, vocabulary=len(self.tokenizer), done=self.done)

    @staticmethod
    def log(**record: Any) -> None:
        print(json.dumps({"time": round(time.time(), 1), **record}), flush=True)

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.args.bf16)

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

    def batches(self, phase: str, first_seed: int) -> Iterator[dict[str, Any]]:
        start = first_seed + self.done[phase] * self.args.images
        dataset = SceneBatches(start, self.args.images, self.tokenizer, texts=phase == "captions")
        ahead = 4 if self.args.workers else None
        return iter(DataLoader(dataset, batch_size=None, num_workers=self.args.workers, prefetch_factor=ahead))

    def towers(self) -> list[nn.Parameter]:
        base = self.model.model
        towers = (base.vision_tower, base.convnext_tower, base.sam_tower)
        return [p for tower in towers for p in tower.parameters() if p.requires_grad]

    def train_swatches(self) -> None:
        """Only the ConvNeXt tower, on boards of 2x2 swatches: 16 times smaller than scenes, every cell labelled."""
        tower = self.model.model.convnext_tower
        head = nn.Linear(self.config.convnext_feature_size, len(COLORS) + len(TEXTURES))
        groups = [{"params": [*tower.parameters(), *head.parameters()], "lr": 2e-3}]

        def step_loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            boards = [render_swatches(step * 32 + number) for number in range(32)]
            images = torch.from_numpy(np.stack([board[0] for board in boards])).permute(0, 3, 1, 2)
            with self.autocast():
                features = tower(normalise(images, self.config.convnext_image_mean, self.config.convnext_image_std))
                logits = head(features.flatten(2).transpose(1, 2)).float().flatten(0, 1)
            loss, report = torch.zeros(()), {}
            parts = logits.split([len(COLORS), len(TEXTURES)], dim=-1)
            for number, (name, values) in enumerate(zip(("color", "texture"), parts, strict=True), start=1):
                truth = torch.from_numpy(np.stack([board[number] for board in boards])).flatten()
                loss = loss + nn.functional.cross_entropy(values, truth)
                report[name] = (values.argmax(-1) == truth).float().mean().item()
            return loss, report

        self.optimise("swatches", self.args.swatch_steps, groups, step_loss)

    def train_close_ups(self) -> None:
        tower, head = self.model.model.convnext_tower, self.heads.heads["convnext"]
        dataset = CloseUps(20_000_000 + self.done["close-ups"] * 12, crops=32)
        ahead = 4 if self.args.workers else None
        loader = iter(DataLoader(dataset, batch_size=None, num_workers=self.args.workers, prefetch_factor=ahead))
        groups = [{"params": [*tower.parameters(), *head.parameters()], "lr": 2e-3}]

        def step_loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            batch = next(loader)
            inputs = normalise(batch["images"], self.config.convnext_image_mean, self.config.convnext_image_std)
            with self.autocast():
                logits = head(tower(inputs).flatten(2).transpose(1, 2)).float()
            parts = dict(zip(CELL_CLASSES, logits.split(list(CELL_CLASSES.values()), dim=-1), strict=True))
            loss, report = torch.zeros(()), {}
            for name in CLOSE_UP_CLASSES:
                truth = batch[name][:, None].expand(-1, logits.shape[1]).flatten()
                chosen, values = truth >= 0, parts[name].flatten(0, 1)
                if chosen.any():
                    loss = loss + nn.functional.cross_entropy(values[chosen], truth[chosen])
                    report[name] = (values.argmax(-1)[chosen] == truth[chosen]).float().mean().item()
            return loss, report

        self.optimise("close-ups", self.args.close_up_steps, groups, step_loss)

    def train_towers(self) -> None:
        loader = self.batches("towers", 10_000_000)
        groups = [{"params": [*self.towers(), *self.heads.parameters()], "lr": 1.5e-3}]

        def step_loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            batch = next(loader)
            with self.autocast():
                results = self.heads(self.model, model_inputs(batch["images"], self.config))
            loss, report = torch.zeros(()), {}
            for key, logits in results.items():
                labels = batch["cells"][key.partition("_")[2]].flatten()
                logits = logits.flatten(0, 1)
                chosen = labels >= 0
                if not chosen.any():
                    continue
                loss = loss + nn.functional.cross_entropy(logits[chosen], labels[chosen])
                report[key] = (logits.argmax(-1)[chosen] == labels[chosen]).float().mean().item()
            return loss, report

        self.optimise("towers", self.args.tower_steps, groups, step_loss)

    def train_words(self) -> None:
        packer = BranchPacker(self.tokenizer)
        groups = [{"params": [*self.model.model.language_model.parameters()], "lr": 1e-3}]

        def step_loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            rng = np.random.default_rng(step)
            sequences = []
            for seed in rng.integers(20_000_000, 30_000_000, size=6):
                scene = render_scene(int(seed), size=HIGH_RES)
                for number in range(len(scene.regions)):
                    sequences.append(packer(list(answers(scene, number).items()), with_prefix=False))
            text = collate_text(sequences, self.tokenizer.pad_token_id)
            with self.autocast():
                loss = self.model(**text).loss
            return loss, {}

        self.optimise("words", self.args.word_steps, groups, step_loss)

    def train_captions(self) -> None:
        base = self.model.model
        loader = self.batches("captions", 30_000_000)
        others = [*base.adapter.parameters(), *base.language_model.parameters()]
        groups = [{"params": others, "lr": 1.2e-3}, {"params": self.towers(), "lr": 4e-4}]

        def step_loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            batch = next(loader)
            with self.autocast():
                outputs = self.model(**batch["text"], **model_inputs(batch["images"], self.config))
            return outputs.loss, {}

        self.optimise("captions", self.args.caption_steps, groups, step_loss)

    def finish(self) -> None:
        """Write both checkpoints."""
        folder = Path(self.args.output)
        save_checkpoint(self.model, self.tokenizer, folder / "with-adapter")
        torch.manual_seed(self.args.seed)
        for layer in (self.model.model.adapter.linear_1, self.model.model.adapter.linear_2):
            layer.reset_parameters()
        save_checkpoint(self.model, self.tokenizer, folder / "checkpoint")


def save_checkpoint(model: FineCaptionForConditionalGeneration, tokenizer: Any, folder: Path) -> None:
    """A complete Hub folder: weights, configuration, code and processor."""
    model.generation_config.do_sample = False
    model.generation_config.max_new_tokens = 64
    model.save_pretrained(folder)
    processor = FineCaptionProcessor(
        FineCaptionImageProcessor(**model.config.image_processor_kwargs()),
        tokenizer,
        chat_template=tokenizer.chat_template,  # kept by the processor, in a file of its own
        image_seq_length=model.config.image_seq_length,
        questions=QUESTIONS,
    )
    processor.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder for the state, the log and the checkpoint")
    parser.add_argument("--swatch-steps", type=int, default=400)
    parser.add_argument("--close-up-steps", type=int, default=3500)
    parser.add_argument("--tower-steps", type=int, default=900)
    parser.add_argument("--word-steps", type=int, default=250)
    parser.add_argument("--caption-steps", type=int, default=600)
    parser.add_argument("--images", type=int, default=16, help="scenes per step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="processes that render ahead")
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast; pays where the machine has bf16 products")
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--save-every", type=int, default=300)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    register()
    warm_start = WarmStart(args)
    warm_start.train_swatches()
    warm_start.train_close_ups()
    warm_start.train_towers()
    warm_start.train_words()
    warm_start.train_captions()
    warm_start.finish()


if __name__ == "__main__":
    main()
