"""What a checkpoint's own card says of what it knows."""

import os
from typing import Any

from huggingface_hub import ModelCard
from transformers.utils import cached_file

SCENES_ONLY = "rendered-scenes-only"
"""The tag of a checkpoint that knows rendered scenes (`finecaption_hf.scenes`) and nothing of photographs."""


def read_card(name: str | os.PathLike[str], revision: str | None = None) -> ModelCard | None:
    """The card beside the weights, of a folder or Hub id; `None` where there is none, or the Hub cannot be asked."""
    source: dict[str, Any] = {"revision": revision, "local_files_only": os.path.isdir(name)}
    try:
        path = cached_file(os.fspath(name), "README.md", _raise_exceptions_for_missing_entries=False, **source)
    except OSError:  # the Hub cannot be reached, or shows it to others only: the weights came from elsewhere then
        return None
    return None if path is None else ModelCard.load(path, ignore_metadata_errors=True)


def card_of(describer: Any) -> ModelCard | None:
    """The card of the checkpoint that answers; `None` where there is none, or what answers is no FineCaption."""
    source = getattr(describer, "source", None)
    return None if source is None else read_card(*source)


def card_address(describer: Any) -> str | None:
    """Where the Hub shows that card; `None` where the weights lie in a folder, or what answers is no FineCaption."""
    source = getattr(describer, "source", None)
    return None if source is None or os.path.isdir(source[0]) else f"https://huggingface.co/{source[0]}"


def note_of(describer: Any) -> str | None:
    """A sentence for people where a checkpoint's card says that it knows rendered scenes only.

    Commands print it, records and the demo's pages hold it, so that its answers about photographs are not taken for
    knowledge.
    """
    card = card_of(describer)
    tags = [] if card is None else card.data.tags or []
    return (
        f"{describer.name} knows rendered scenes only, so what it says of photographs means nothing."
        if (SCENES_ONLY in tags)
        else None
    )
