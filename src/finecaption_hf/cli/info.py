"""`finecaption info`: what a model costs."""

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from .common import Json, errors_in_one_line
from .tables import print_whole

if TYPE_CHECKING:
    from ..assembly.cost import ModelInfo, WeightsInfo

_RUNS = {
    "vision_tower": "once per region",
    "convnext_tower": "once per image",
    "sam_tower": "once per image",
    "adapter": "once per region",
    "language_model": "prefill of the prefix, once per region",
}
_SUMS = {
    "first_region": "first region of an image",
    "next_region": "each further region",
    "token": "each decoded token",
}


def info(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="CONFIG_OR_CHECKPOINT",
            help="Folder, configuration file (.json) or Hub id; none: the full-size default.",
            show_default=False,
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change a field of the configuration first (repeatable), such as text_config.num_hidden_layers=16.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell what a model costs: parameters, FLOPs, tokens per region, memory, trainable parameters per stage.

    Of models beside FineCaption, parameters and memory of the weights. Counted from the configuration alone: no weights
    are read. Memory is that of weights and of one region's prefix; activations come on top.
    """
    with errors_in_one_line():
        from ..assembly.cost import model_info, read_config, weights_info

        found: ModelInfo | WeightsInfo
        if source is not None and _is_of_others(source):
            if changes:
                raise ValueError(f"{source} is no FineCaption: --set changes fields of FineCaption alone.")
            found = weights_info(source)
        else:
            found = model_info(read_config(source, changes or ()))
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        _print_info(found)


def _is_of_others(source: str) -> bool:
    """Whether a folder or repository holds a model beside FineCaption."""
    from ..asking.loading import read_config

    try:
        return not os.path.isfile(source) and read_config(source).get("model_type") != "finecaption"
    except OSError:
        return False  # what is wrong with the name is said by whoever reads it next


def _print_info(found: "ModelInfo | WeightsInfo") -> None:
    from ..assembly.cost import WeightsInfo

    console = Console()
    if isinstance(found, WeightsInfo):
        console.print(f"{_millions(found.parameters)} parameters. Weights:")
        for dtype, size in found.weight_bytes.items():
            console.print(f"  {dtype}: {_gibibytes(size)}")
        console.print("Activations and the cache of keys and values come on top.")
        return
    parts = Table("part", "parameters", "FLOPs", "runs")
    for name, runs in _RUNS.items():
        if name in found.parameters:
            parts.add_row(name, _millions(found.parameters[name]), _scaled(found.flops[name]), runs)
    parts.add_section()
    counts = [_millions(found.parameters["total"]), "", ""]
    for (name, runs), count in zip(_SUMS.items(), counts, strict=True):
        parts.add_row("total" if count else "", count, _scaled(found.flops[name]), runs)
    memory = Table("memory", "weights", f"cache of one region's prefix, {found.tokens_per_region} tokens")
    for dtype, size in found.weight_bytes.items():
        cache = found.prefix_cache_bytes.get(dtype)
        memory.add_row(dtype, _gibibytes(size), "" if cache is None else _gibibytes(cache))
    stages = Table("stage", "trainable parameters")
    for name, number in found.trainable_parameters.items():
        stages.add_row(name, _millions(number))
    for table in (parts, memory, stages):
        for column in table.columns[1:3]:
            column.justify = "right"
        print_whole(console, table)
    console.print("int8, int4: linear layers inside the language model; all else bfloat16. Activations come on top.")


def _millions(number: int) -> str:
    return f"{number / 1e6:,.1f} M" if number >= 1e5 or not number else f"{number:,}"


def _gibibytes(number: int) -> str:
    return f"{number / 2**30:,.2f} GiB" if number >= 2**26 else f"{number / 2**20:,.2f} MiB"


def _scaled(number: int | None) -> str:
    if number is None:
        return "depends on values"
    unit, size = ("T", 1e12) if number >= 1e12 else ("G", 1e9) if number >= 1e9 else ("M", 1e6)
    return f"{number / size:,.2f} {unit}"
