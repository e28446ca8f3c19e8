"""The error of evaluations."""

from ..prompts_finecaption import FineCaptionError


class EvaluationError(FineCaptionError, ValueError):
    """An evaluation that cannot be made as asked.

    A table or a row that cannot be meant; runs that are not about the same; something that could
    not be described, where that was not to be recorded.
    """
