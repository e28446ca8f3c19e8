"""What several commands share: options, loading, and how wrong input ends."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import EMBEDDED_CHECKPOINT

if TYPE_CHECKING:
    from ..asking import FineCaptionDescriber


class Dtype(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Model = Annotated[
    str | None,
    typer.Option(metavar="ID_OR_FOLDER", help="Checkpoint: Hub id or folder.", show_default="the embedded one"),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps ...", show_default="cuda if there is one")]
DtypeOption = Annotated[Dtype | None, typer.Option("--dtype", help="Precision.", show_default="as saved")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")]


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """One line and exit code 2 for what the user can mend; around such steps only: a defect keeps its traceback."""
    try:
        yield
    except (ImportError, OSError, ValueError) as error:
        typer.echo(f"Error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from error


def load_describer(
    model: str | None, device: str | None, dtype: Dtype | None, **options: Any
) -> "FineCaptionDescriber":
    """What answers questions; `options` are those of `asking.load_describer`."""
    from .. import asking

    if model is None and not EMBEDDED_CHECKPOINT.is_dir():
        raise FileNotFoundError(
            f"The embedded checkpoint is missing from {EMBEDDED_CHECKPOINT}. Reinstall, or give --model."
        )

    from transformers.utils import logging

    logging.disable_progress_bar()
    return asking.load_describer(model, device=device, dtype=None if dtype is None else dtype.value, **options)


def check_attributes(questions: Sequence[tuple[str, str]], known: Mapping[str, str]) -> None:
    """Refuse an attribute that is none.

    Args:
        questions: (option, value) as they were given.
        known: the names that there are.
    """
    from ..prompts_finecaption import resolve_question

    for kind, name in questions:
        if kind == "attribute" and name.strip().casefold() != "all":
            resolve_question(name, known)  # with an error that lists the names


def parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: this is no JSON ({error}).") from error
