"""The error of data that cannot be used."""

from ..prompts_finecaption import FineCaptionError


class DataError(FineCaptionError, ValueError):
    """Data that cannot be used.

    Attributes:
        where (`str`): the place, such as `"train.jsonl:17"` or `"train.json[16]"`.
        reason (`str`): what is wrong there.
    """

    def __init__(self, where: str, reason: str | None = None) -> None:
        # The reason may be missing because torch rebuilds errors of its workers from their text alone.
        super().__init__(where, reason)
        self.where = where
        self.reason = where if reason is None else reason

    def __str__(self) -> str:
        return self.where if self.args[1] is None else f"{self.where}: {self.reason}"

    def at(self, where: str) -> "DataError":
        """The same error, of a part (which `self.where` names) of what lies at `where`."""
        return DataError(where, str(self))
