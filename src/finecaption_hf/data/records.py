"""What every reader gives: an image, its regions, and for each region branches of questions and answers."""

from dataclasses import dataclass
from typing import Any

from PIL import Image


class DataError(ValueError):
    """A record that cannot be used; `where` says which, `reason` why."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = reason


@dataclass(frozen=True)
class Branch:
    """One description of a region: the name of a task or attribute, or a question in own words, and the answer."""

    answer: str
    name: str | None = None
    question: str | None = None


@dataclass(frozen=True)
class Region:
    """A region (any reference that `as_mask` takes; `None` is the whole image) and its branches."""

    mask: Any
    branches: tuple[Branch, ...]
    id: str | None = None


@dataclass(frozen=True)
class Record:
    """An image (its name in the image store, or a picture) with its regions; `where` is "file:line" for messages."""

    image: str | Image.Image
    regions: tuple[Region, ...]
    id: str | None = None
    where: str = ""
