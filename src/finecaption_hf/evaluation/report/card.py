"""Results in the form that a model card takes beside its table: the entries of its `model-index`."""

from collections.abc import Mapping
from typing import Any

from ...card_finecaption import eval_results


def model_index(report: Mapping[str, Any]) -> str:
    """The `model-index` of a model card's metadata, as YAML."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(model_name=str(report["model"]), eval_results=eval_results(report))
    return str(data.to_yaml())
