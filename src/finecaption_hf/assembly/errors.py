"""The one error of this room."""

from ..prompts_finecaption import FineCaptionError


class AssemblyError(FineCaptionError, ValueError):
    """The parts do not make a checkpoint; the message says which tensors or files are in the way."""
