"""The base of this package's errors."""


class FineCaptionError(Exception):
    """What keeps this package from doing what was asked; the message says what arrived, what was needed and what to do.

    Each error class of the package has it as a base, beside the one of Python that fits (`ValueError`, mostly).
    """


__all__ = ["FineCaptionError"]
