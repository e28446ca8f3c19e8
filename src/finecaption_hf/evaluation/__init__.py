"""Evaluation that others can repeat: predictions kept on disk, metrics with intervals, comparisons, a report."""

from .errors import EvaluationError
from .predictions import (
    Header,
    Prediction,
    PredictionWriter,
    read_predictions,
)

__all__ = [
    "EvaluationError",
    "Header",
    "Prediction",
    "PredictionWriter",
    "read_predictions",
]
