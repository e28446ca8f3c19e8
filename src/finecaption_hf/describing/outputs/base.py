"""What every form of output has in common: it is made of all records at once, in one step, when they are there."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from ...data.regions import RegionInputs

Record = dict[str, Any]
Records = Callable[[], Iterator[Record]]
"""All records in the input's order, from the first one on with every call."""

FIRST = ("image", "image_id", "id", "region_index", "label")
"""The keys that come first in tables; those of one's own follow, then what was found."""


class Output(ABC):
    """A form that records are put into.

    Args:
        inputs: what the records are about.

    Attributes:
        name (`str`): on the command line.
        suffixes (`tuple[str, ...]`): of files that have this form without a word.
        is_folder (`bool`): whether it is a folder.

    Raises:
        ValueError: If it cannot be made of this input.
    """

    name: str
    suffixes: ClassVar[tuple[str, ...]] = ()
    is_folder: bool = False

    def __init__(self, inputs: RegionInputs) -> None:
        self.inputs = inputs

    def beside(self, target: Path) -> Path | None:
        """The folder that belongs to `target`, whether or not it is needed; most forms have none."""
        return None

    @abstractmethod
    def write(self, records: Records, target: Path) -> None:
        """Make the file or folder `target`, and `beside(target)` where it is needed, the same for the same records.

        Memory does not grow with their number.

        Raises:
            DataError: If it cannot be made.
            OSError: If it cannot be written.
        """


def well_formed(text: str) -> str:
    """Text for files that are UTF-8: half a surrogate pair, as in file names that are none, becomes U+FFFD."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
