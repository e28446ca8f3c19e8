"""The error of this room."""

from ...prompts_finecaption import FineCaptionError


class MetricError(FineCaptionError, ValueError):
    """Captions that cannot be scored, or something missing that a metric needs. No metric is ever left out instead."""
