"""The error of this room."""


class MetricError(ValueError):
    """Captions that cannot be scored, or something missing that a metric needs. No metric is ever left out instead."""
