"""The one error of this room."""


class AssemblyError(ValueError):
    """The parts do not make a checkpoint; the message says which tensors or files are in the way."""
