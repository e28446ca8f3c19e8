"""BERTScore (Zhang et al., arXiv 1904.09675): every token is matched with the most similar one of the other caption.

The F1 of bert-score 0.3 without idf, in code of its own: that package fails on transformers 5.

L tokens, D the model's width.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from .errors import MetricError

# What the papers use. Its older name, without the owner, finds nothing in a cache that has it under this one.
ROBERTA_LARGE = "FacebookAI/roberta-large"
_PAIRS_AT_ONCE = 2048
# By the last part of the model's name: the layer that correlates best with people, and the F1 of unrelated English
# captions at that layer (both as published with bert-score).
_KNOWN: dict[str, tuple[int, float]] = {"roberta-large": (17, 0.83122575)}


class _Tokens(NamedTuple):
    """A caption's tokens, special ones included: unit vectors (L, D), and weights (L,), 0 for special tokens."""

    vectors: Any
    weights: Any


class BertScorer:
    """A model that lies on this machine, cut after one layer.

    Args:
        model: a folder, or the name of a model in the Hub's cache; nothing is downloaded.
        layer: which layer's outputs are compared, counted from 1. `None`: 17 for roberta-large, else the last one.
        baseline: F1 of unrelated captions, for rescaling. `None`: roberta-large's at layer 17, else there is none.
        device: `None` means CUDA where there is one, else the CPU.
        batch_size: captions embedded at once.

    Attributes:
        baseline (`float | None`): in use; `None` means that nothing can be rescaled.
        name (`str`): model, layer, baseline and a digest of the weights, for the signature.

    Raises:
        MetricError: If the model is missing or incomplete, or has no such layer.
    """

    def __init__(
        self,
        model: str | PathLike[str],
        *,
        layer: int | None = None,
        baseline: float | None = None,
        device: str | None = None,
        batch_size: int = 64,
    ) -> None:
        import torch

        known_layer, known_baseline = _KNOWN.get(Path(model).name, (None, None))
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._tokenizer, self._model, layer = _load(model, layer)
        self._batch_size = batch_size
        self.baseline = known_baseline if baseline is None and layer == known_layer else baseline
        if self.baseline is not None and not self.baseline < 1:
            raise MetricError(f"The baseline of BERTScore is {self.baseline}. It is an F1 below 1, such as 0.83122575.")
        digest = hashlib.sha256()
        for weights in self._model.state_dict().values():
            digest.update(weights.contiguous().numpy())
        self._model.to(self._device)
        rescaled = "unknown, not rescaled" if self.baseline is None else f"{self.baseline:.8f}"
        # Of a folder, enough to recognise it; the rest would only tell where somebody keeps files.
        label = "/".join(Path(model).parts[-2:])
        self.name = f"{label}@layer{layer},idf:no,baseline:{rescaled},weights:{digest.hexdigest()[:8]}"

    def __call__(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """F1 of each caption with its best reference; 0 for a caption without tokens."""
        pairs = sorted(
            {(one, other) for one, group in zip(predictions, references, strict=True) for other in group},
            key=lambda pair: (len(pair[0]), pair),
        )
        uses = Counter(text for pair in pairs for text in pair)
        held: dict[str, _Tokens] = {}
        scores: dict[tuple[str, str], float] = {}
        for start in range(0, len(pairs), _PAIRS_AT_ONCE):
            some = pairs[start : start + _PAIRS_AT_ONCE]
            # Alike in length, to pad little; in an order that does not change from run to run.
            new = sorted({text for pair in some for text in pair} - held.keys(), key=lambda text: (len(text), text))
            held |= self._embed(new)
            scores |= {pair: _f1(held[pair[0]], held[pair[1]]) for pair in some}
            # Each string is embedded once, and kept only while pairs that need it are left.
            uses.subtract(text for pair in some for text in pair)
            held = {text: tokens for text, tokens in held.items() if uses[text]}
        return [max(scores[one, other] for other in group) for one, group in zip(predictions, references)]

    def rescale(self, value: float) -> float:
        """With the baseline at 0 and 1 at 1."""
        assert self.baseline is not None
        return (value - self.baseline) / (1 - self.baseline)

    def _embed(self, texts: Sequence[str]) -> dict[str, _Tokens]:
        import torch

        found = {}
        for start in range(0, len(texts), self._batch_size):
            some = list(texts[start : start + self._batch_size])
            batch = self._tokenize(some)
            with torch.inference_mode():
                hidden = self._model(**batch.to(self._device)).last_hidden_state
            hidden = torch.nn.functional.normalize(hidden.float(), dim=-1).cpu()
            ids, present = batch["input_ids"].cpu(), batch["attention_mask"].cpu().bool()
            marks = (self._tokenizer.cls_token_id, self._tokenizer.sep_token_id)
            special = torch.tensor([mark for mark in marks if mark is not None], dtype=ids.dtype)
            weights = (~torch.isin(ids, special)).float()
            for row, text in enumerate(some):
                # A copy, or one caption would keep its whole batch in memory.
                found[text] = _Tokens(hidden[row, present[row]].clone(), weights[row, present[row]])
        return found

    def _tokenize(self, texts: Sequence[str]) -> Any:
        from tokenizers.pre_tokenizers import ByteLevel

        # RoBERTa's first word has to look like every other word: with a space before it.
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is not None and isinstance(backend.pre_tokenizer, ByteLevel):
            texts = [f" {text}" if text else text for text in texts]
        return self._tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")


def _f1(one: _Tokens, other: _Tokens) -> float:
    """Tokens match special ones too, as in bert-score, but only the others count."""
    if not one.weights.any() or not other.weights.any():
        return 0.0
    similarity = one.vectors @ other.vectors.T
    precision = float((similarity.amax(1) * one.weights).sum() / one.weights.sum())
    recall = float((similarity.amax(0) * other.weights).sum() / other.weights.sum())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def find_model(model: str | PathLike[str], layer: int | None = None) -> tuple[Any, int]:
    """The configuration of a model on this machine, and the layer to use; quick, for it reads no weights.

    Raises:
        MetricError: If there is no such model, or it has no such layer.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(os.fspath(model), local_files_only=True)
        layers = config.num_hidden_layers
    except (OSError, ValueError, AttributeError) as error:
        raise _unusable(model, error) from error
    layer = _KNOWN.get(Path(model).name, (layers, 0.0))[0] if layer is None else layer
    if not 1 <= layer <= layers:
        raise MetricError(f"BERTScore was asked for layer {layer} of {model}, which has {layers}. Give 1 to {layers}.")
    return config, layer


def _load(model: str | PathLike[str], layer: int | None) -> tuple[Any, Any, int]:
    """Tokenizer, the model's first layers, and how many these are."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    config, layer = find_model(model, layer)
    config.num_hidden_layers = layer
    name = os.fspath(model)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    # The loader would report the layers above, which are left out on purpose.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
        options: dict[str, Any] = {"config": config, "dtype": "float32", "local_files_only": True}
        encoder, info = AutoModel.from_pretrained(name, output_loading_info=True, **options)
    except (OSError, ValueError) as error:
        raise _unusable(model, error) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise MetricError(f"The BERTScore model {name} lacks {len(missing)} of its weights, such as {missing[0]}.")
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None:
        # RoBERTa's positions start after the padding token's.
        tokenizer.model_max_length = min(tokenizer.model_max_length, limit - 2 * (config.model_type == "roberta"))
    return tokenizer, encoder.eval(), layer


def _unusable(model: str | PathLike[str], error: Exception) -> MetricError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return MetricError(
        f"The BERTScore model {os.fspath(model)} is not on this machine, or cannot be used: {reason} Nothing is "
        f"downloaded while scoring. Run `hf download {ROBERTA_LARGE}` once, which is the default, or pass a folder "
        "with a model as bertscore_model."
    )
