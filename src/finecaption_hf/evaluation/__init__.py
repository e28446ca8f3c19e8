"""Evaluation that others can repeat: predictions kept on disk, metrics with intervals, comparisons, a report."""

from .predictions import (
    Describer,
    DescribeRequest,
    Description,
    Header,
    Prediction,
    PredictionWriter,
    read_predictions,
)

__all__ = [
    "DescribeRequest",
    "Describer",
    "Description",
    "Header",
    "Prediction",
    "PredictionWriter",
    "read_predictions",
]
