"""What was assembled from what: assembly.json, from which pushing makes the model card."""

import json
from pathlib import Path
from typing import Any

import timm
import torch
import transformers

from .. import __version__
from .accounting import Part
from .key_maps import EMBEDDINGS, HEAD
from .llava import FAMILIES
from .plan import Plan

FILE = "assembly.json"
_ROLES = {
    "clip": "mask-aware CLIP tower",
    "alpha_clip": "mask-aware CLIP tower with its mask input",
    "convnext": "ConvNeXt tower",
    "sam": "SAM tower",
    "llm": "language model",
    **dict.fromkeys(FAMILIES, "CLIP tower, adapter and language model"),
    "tokenizer": "tokenizer",
}
_TOWERS: dict[str, str | tuple[str, ...]] = {
    "mask-aware CLIP tower": "model.vision_tower.",
    "ConvNeXt tower": "model.convnext_tower.",
    "SAM tower": "model.sam_tower.",
    "adapter": "model.adapter.",
    "language model": ("model.language_model.", "lm_head."),
}


def summarise(
    plan: Plan,
    shapes: dict[str, tuple[int, ...]],
    fresh: set[str],
    hashes: dict[Path, str],
    dtype: str,
    seed: int,
) -> dict[str, Any]:
    """Everything that the folder's reader may want to know about its origin, without local paths."""
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    vocabulary = plan.vocabulary
    return {
        "versions": {
            "finecaption-hf": __version__,
            "transformers": transformers.__version__,
            "timm": timm.__version__,
            "torch": torch.__version__,
        },
        "dtype": dtype,
        "parameters": {
            tower: sum(size for name, size in sizes.items() if name.startswith(prefix))
            for tower, prefix in _TOWERS.items()
        }
        | {"total": sum(sizes.values())},
        "parts": [_part(part, hashes, bool(part.source.weights)) for part in plan.all_parts],
        "initialised": [*_initialised(fresh, sizes), *_new_rows(plan, shapes)],
        "notes": plan.notes,
        "seed": seed,
        "vocabulary": {
            "image_token": vocabulary.image_token,
            "image_token_id": vocabulary.image_token_id,
            "image_token_is_new": vocabulary.is_new,
            "rows_before": vocabulary.rows if plan.language_is_given else 0,
            "rows": vocabulary.needed,
            "output_layer": "tied to the embeddings" if plan.config.tie_word_embeddings else "separate",
        },
        "chat_template": plan.template_note,
        "image_tokens_per_region": plan.config.image_seq_length,
    }


def _part(part: Part, hashes: dict[Path, str], gives_weights: bool) -> dict[str, Any]:
    source = part.source
    return {
        "option": part.option,
        "role": _ROLES[part.option] if gives_weights else f"configuration of the {_ROLES[part.option]}",
        "source": source.name,
        "from_hub": source.is_hub,
        "revision": source.revision,
        "licence": source.licence,
        "files": [{"name": path.name, "bytes": path.stat().st_size, "sha256": hashes[path]} for path in source.weights],
        "tensors": {
            "in_files": len(part.tensors),
            "used": len(part.uses) + len(part.rows),
            "ignored": sum(len(keys) for keys in part.ignored.values()),
        },
        "ignored": [{"reason": reason, "tensors": keys} for reason, keys in part.ignored.items()],
    }


def _initialised(fresh: set[str], sizes: dict[str, int]) -> list[dict[str, Any]]:
    found = []
    for tower, prefix in _TOWERS.items():
        names = sorted(name for name in fresh if name.startswith(prefix))
        if names:
            whole = len(names) == sum(name.startswith(prefix) for name in sizes)
            found.append(
                {
                    "what": tower if whole else f"{tower}: {', '.join(names)}",
                    "tensors": len(names),
                    "parameters": sum(sizes[name] for name in names),
                }
            )
    return found


def _new_rows(plan: Plan, shapes: dict[str, tuple[int, ...]]) -> list[dict[str, Any]]:
    """Rows that the embeddings of a given language model, and its output layer where it is separate, have grown by."""
    rows = plan.vocabulary.needed - plan.vocabulary.rows
    if not (plan.language_is_given and rows):
        return []
    grown = [shapes[name] for name in (EMBEDDINGS, HEAD) if name in shapes]
    newline = plan.vocabulary.newline_id
    given = 0 if newline is None or newline < plan.vocabulary.rows else shapes[EMBEDDINGS][1]
    return [
        {
            "what": f"language model: {rows} new row{'s' * (rows > 1)} of the vocabulary, the mean of the others",
            "tensors": len(grown),
            "parameters": sum(rows * shape[1] for shape in grown) - given,
        }
    ]


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    (folder / FILE).write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def print_lines(summary: dict[str, Any]) -> list[str]:
    """A few lines for a terminal."""
    lines = []
    for part in summary["parts"]:
        count = part["tensors"]
        origin = f"{part['source']}@{part['revision'][:12]}" if part["revision"] else part["source"]
        lines.append(
            f"{part['role']}: {origin} ({part['licence'] or 'licence not stated'}), {count['used']} of "
            f"{count['in_files']} tensors used, {count['ignored']} ignored"
        )
    lines += [f"initialised: {entry['what']} ({entry['parameters']:,} parameters)" for entry in summary["initialised"]]
    lines += [f"note: {note}" for note in summary["notes"]]
    lines.append(f"{summary['parameters']['total']:,} parameters in {summary['dtype']}")
    return lines
