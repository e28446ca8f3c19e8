"""Results in the form that a model card takes beside its table: the entries of its `model-index`."""

from collections.abc import Mapping
from typing import Any

import yaml

from ...hub import figures


def model_index(report: Mapping[str, Any]) -> str:
    """The `model-index` of a model card's metadata, as YAML."""
    return yaml.safe_dump(figures.model_index(report, str(report["model"])), sort_keys=False, allow_unicode=True)
