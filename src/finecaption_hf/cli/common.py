"""What several commands share: options, loading, and how wrong input ends."""

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import EMBEDDED_CHECKPOINT
from ..prompts_finecaption import ATTRIBUTES, FineCaptionError, find_question, no_such, normalise_name
from .layout import Command

if TYPE_CHECKING:
    from ..asking import Describer


class Dtype(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Task(str, Enum):
    region = "region"
    dense = "dense"
    whole = "global"


class EngineName(str, Enum):
    vllm = "vllm"


class DataEngineName(str, Enum):
    vllm = "vllm"
    ray = "ray"


_QUESTIONS, _ANSWERS = "Questions (repeatable; none: --task region)", "Answers"

Model = Annotated[
    str | None,
    typer.Option(
        metavar="ID_OR_FOLDER",
        help="FineCaption or any image-text model (Hub id or folder), openai:MODEL, or pixels.",
        show_default="the embedded FineCaption",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="Where the model runs, such as cpu, cuda:1 or mps.", show_default="cuda if there is one"),
]
DtypeOption = Annotated[Dtype | None, typer.Option("--dtype", help="Precision.", show_default="as saved")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")]
Tasks = Annotated[list[Task] | None, typer.Option("--task", help="A kind of caption.", rich_help_panel=_QUESTIONS)]


def _attributes(incomplete: str) -> list[str]:
    """For completion: the attributes that FineCaption checkpoints know, in a form that needs no quotes."""
    return ["all", *map(normalise_name, ATTRIBUTES)]


Attributes = Annotated[
    list[str] | None,
    typer.Option(
        "--attribute",
        metavar="NAME",
        autocompletion=_attributes,
        help="An attribute that the checkpoint knows, such as color, or all; a wrong name lists them.",
        rich_help_panel=_QUESTIONS,
    ),
]
OwnQuestions = Annotated[
    list[str] | None,
    typer.Option("--question", metavar="TEXT", help="Your own words.", rich_help_panel=_QUESTIONS),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Longest answer, in tokens.",
        show_default="the checkpoint's, else 64; of others 128",
        rich_help_panel=_ANSWERS,
    ),
]
Temperature = Annotated[
    float,
    typer.Option(help="0 takes the likeliest token; above it, tokens are drawn.", rich_help_panel=_ANSWERS),
]
TopP = Annotated[
    float,
    typer.Option(help="Draw from the likeliest tokens that have this probability together.", rich_help_panel=_ANSWERS),
]
Seed = Annotated[int, typer.Option(help="Seed for sampling.", rich_help_panel=_ANSWERS)]
MaxBatchTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Tokens that are held at once.",
        show_default="what half of the free memory takes",
        rich_help_panel=_ANSWERS,
    ),
]


_OTHERS = "Models beside FineCaption (docs/describers.md)"

Describing = Annotated[
    str | None,
    typer.Option(
        "--describer",
        metavar="KIND|MODULE:FUNCTION",
        help="What asks the model, such as describe_anything; a wrong name lists them.",
        show_default="what the model says",
        rich_help_panel=_OTHERS,
    ),
]
Referring = Annotated[
    str | None,
    typer.Option(
        "--referral",
        metavar="KIND|YAML",
        help="How regions are pointed out: a kind, or {kind: box_drawn, color: blue}; a wrong name lists the kinds.",
        show_default="what suits the model",
        rich_help_panel=_OTHERS,
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="YAML with the text of each question; finecaption prompts writes one to edit.",
        show_default="what suits the model",
        rich_help_panel=_OTHERS,
    ),
]
BaseUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Address of an OpenAI-compatible server, up to /v1; --model is the name that the model has there.",
        rich_help_panel=_OTHERS,
    ),
]
ApiKeyEnv = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Environment variable that holds the server's key.",
        show_default="OPENAI_API_KEY for openai:MODEL, none with --base-url",
        rich_help_panel=_OTHERS,
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run the code that lies beside the weights.", rich_help_panel=_OTHERS),
]
KeepSent = Annotated[
    bool,
    typer.Option(
        "--keep-sent", help="Put what the model was sent into the records, beside the answers.", rich_help_panel=_OTHERS
    ),
]
AtOnce = Annotated[
    bool,
    typer.Option(
        "--at-once",
        help="Ask for all attributes of a region in one question, which the model answers as JSON.",
        rich_help_panel=_OTHERS,
    ),
]

Engine = Annotated[
    EngineName | None,
    typer.Option("--engine", help="Ask FineCaption through vLLM (docs/serving.md).", rich_help_panel=_ANSWERS),
]
DataEngine = Annotated[
    DataEngineName | None,
    typer.Option(
        "--engine",
        help="Ask FineCaption through vLLM, here or on the machines of a Ray cluster (docs/serving.md).",
        rich_help_panel=_ANSWERS,
    ),
]
EngineOptions = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|YAML",
        help="Options of vllm.LLM: a YAML file, or {max_model_len: 2048, tensor_parallel_size: 2}.",
        rich_help_panel=_ANSWERS,
    ),
]

_DESCRIBING = (
    "engine",
    "engine_options",
    "describer",
    "referral",
    "prompts",
    "base_url",
    "api_key_env",
    "trust_remote_code",
    "keep_sent",
    "at_once",
)


def describer_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options above that a call of a command gives, for `load_describer`.

    Args:
        given: all its options (`ctx.params`).

    Raises:
        ValueError: If a referral in braces is no YAML.
    """
    found = {name: value for name in _DESCRIBING if (value := given.get(name)) is not None and value is not False}
    if found.get("referral", "").startswith("{"):
        found["referral"] = _read_yaml(found["referral"], "--referral")
    return found


def _read_yaml(text: str, option: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{option} {text}: this is no YAML ({error}).") from error


class OrderedCommand(Command):
    """Notes in which order options stand on the command line; otherwise only the order within each option is known."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        rest = super().parse_args(ctx, args)
        if given:
            _, _, parameters = self.make_parser(ctx).parse_args(args=given)
            ctx.meta["order"] = [parameter.name for parameter in parameters]
        return rest


def in_order(ctx: typer.Context, **options: Sequence[str] | None) -> list[tuple[str, str]]:
    """(option, value) of repeatable options, as they stand on the command line."""
    values = {name: iter(given or ()) for name, given in options.items()}
    return [(name, next(values[name])) for name in ctx.meta.get("order", ()) if name in values]


def asked_in_order(
    ctx: typer.Context,
    task: Sequence[Task] | None,
    attribute: Sequence[str] | None,
    question: Sequence[str] | None,
) -> list[tuple[str, str]]:
    """(option, question) as they stand on the command line; `--task region` where there is none."""
    tasks = None if task is None else [each.value for each in task]
    return in_order(ctx, task=tasks, attribute=attribute, question=question) or [("task", Task.region.value)]


@contextmanager
def errors_in_one_line(*, at_work: bool = False) -> Iterator[None]:
    """One line and exit code 2 for what the user can mend; around such steps only: a defect keeps its traceback.

    Args:
        at_work: whether the arguments were checked before, so that a bare `ValueError` is a defect.
    """
    try:
        yield
    except (FineCaptionError, ImportError, OSError, ValueError) as error:
        if at_work and not isinstance(error, FineCaptionError | ImportError | OSError):
            raise
        remedy = _where_to_write() if isinstance(error, OSError) else ""
        typer.echo(f"Error: {_in_sentences(error)}{remedy}", err=True)
        raise typer.Exit(2) from error


_SYSTEM = {
    errno.ENOENT: "there is no such file or folder. Check the name; a new file needs a folder that exists.",
    errno.EEXIST: "this is there already. Give another name.",
    errno.ENOTDIR: "a part of this path is a file where a folder is needed. Give another path.",
    errno.EISDIR: "this is a folder where a file is needed. Name a file.",
    errno.EACCES: "you may not read or write this. Give another place, or change its permissions.",
    errno.EROFS: "nothing can be written there. Give another place.",
    errno.ENOSPC: "the disk is full. Make room, or give another place.",
}


def _in_sentences(error: Exception) -> str:
    """An error in one line; what the system says, by its number, as this package says it."""
    if isinstance(error, OSError) and error.filename is not None and error.errno in _SYSTEM:
        return f"{error.filename}: {_SYSTEM[error.errno]}"
    said = " ".join(str(error).split())
    return said if said.endswith((".", "!", "?")) else f"{said}."


def _where_to_write() -> str:
    """What to do where the Hub's folder, for models and the code beside them, cannot be written to."""
    from huggingface_hub.constants import HF_HOME

    home = Path(HF_HOME)
    nearest = next(folder for folder in (home, *home.absolute().parents) if folder.exists())
    if nearest.is_dir() and os.access(nearest, os.W_OK):
        return ""
    return f" (Files of the Hub go to {home}, which cannot be written to. Set HF_HOME to a folder that can.)"


def load_describer(
    model: str | None, device: str | None = None, dtype: Dtype | str | None = None, **options: Any
) -> "Describer":
    """What answers questions; `options` are those of `asking.load_describer`, or `engine` and
    `engine_options`."""
    from .. import asking

    if model is None and not EMBEDDED_CHECKPOINT.is_dir():
        raise FileNotFoundError(
            f"The embedded checkpoint is missing from {EMBEDDED_CHECKPOINT}. Reinstall, or give --model."
        )

    from transformers.utils import logging

    logging.disable_progress_bar()
    if "engine" in options or "engine_options" in options:
        loaded: Describer = _in_vllm(model, device=device, dtype=dtype, **options)
    else:
        precision = None if dtype is None else Dtype(dtype).value
        loaded = asking.load_describer(model, device=device, dtype=precision, **options)
    if (note := asking.note_of(loaded)) is not None and os.environ.get("RANK", "0") == "0":
        typer.echo(f"Note: {note} Another model: --model.", err=True)
    return loaded


def _in_vllm(
    model: str | None,
    *,
    engine: EngineName | DataEngineName | None = None,
    engine_options: str | None = None,
    dtype: Dtype | str | None = None,
    name: str | None = None,
    max_new_tokens: int | None = None,
    **others: Any,
) -> "Describer":
    if engine is None:
        raise ValueError("--engine-options have no effect without --engine vllm.")
    if useless := [f"--{option.replace('_', '-')}" for option, value in others.items() if value is not None]:
        raise ValueError(
            f"{', '.join(useless)}: no effect with --engine {engine.value}. Leave that out; see --engine-options."
        )
    given: Any = {}
    if engine_options is not None:
        inline = engine_options.lstrip().startswith("{")
        text = engine_options if inline else Path(engine_options).read_text(encoding="utf-8")
        given = _read_yaml(text, "--engine-options")
        if not isinstance(given, dict):
            raise ValueError(
                f"--engine-options are {given!r}. Give names with values, such as {{max_model_len: 2048}}."
            )
    # Standard output is for records, and what vLLM would tell its makers is not ours to send.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    through: Any
    if engine == "ray":
        from ..serving.ray_describer import RayDescriber as through
    else:
        from ..serving.vllm_describer import VllmDescriber as through

    if dtype is not None:
        given["dtype"] = Dtype(dtype).value
    shown = name or (EMBEDDED_CHECKPOINT.name if model is None else model)
    described: Describer = through(model or EMBEDDED_CHECKPOINT, name=shown, max_new_tokens=max_new_tokens, **given)
    return described


def check_attributes(questions: Sequence[tuple[str, str]], known: Mapping[str, str]) -> None:
    """Refuse an attribute that is none.

    Args:
        questions: (option, value) as they were given.
        known: the names that there are.

    Raises:
        ValueError: If there is one; the message tells the nearest name and lists all.
    """
    for kind, name in questions:
        if kind == "attribute" and name.strip().casefold() != "all" and find_question(name, known) is None:
            raise ValueError(f"{no_such('attribute', name, known)} Your own words go to --question.")


def parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: this is no JSON ({error}).") from error
