"""Evaluation: captions against references, with the paper's metrics."""
