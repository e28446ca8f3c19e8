"""The error of describers."""

from ..prompts_finecaption import FineCaptionError


class DescriberError(FineCaptionError, ValueError):
    """A model that cannot be asked as it was to be: it cannot be loaded, or an option, a referral or a prompt does not
    go with it."""
