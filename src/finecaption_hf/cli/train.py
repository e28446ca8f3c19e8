"""`finecaption train`: the stages of training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import errors_in_one_line
from .layout import option_names
from .reading import (
    Alpha,
    BoxFormat,
    Ignore,
    LabelMap,
    OnError,
    ResizeMasks,
    StoredOrientation,
    Threshold,
    reading_options,
)


def train(
    ctx: typer.Context,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for checkpoints and results.", show_default=False)
    ],
    stage: Annotated[
        str | None,
        typer.Option(metavar="N|NAME", help="Stage to train: 1 (adapter), 2 (alpha_convolution) or 3 (everything)."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="FILE|NAME", help="Stages in a row, from YAML; or a recipe of the package.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="ID_OR_FOLDER", help="Checkpoint that the first stage starts from; a Hub id may end in @revision."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]PATH", help="Described regions to train on (repeatable; a stage weighs them by name)."
        ),
    ] = None,
    eval_data: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]PATH", help="The same for the evaluation loss and sample captions (repeatable)."),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]PATH", help="Folder, .zip or .tar of the pictures of NAME, or of all data."),
    ] = None,
    ignore: Ignore = None,
    label_map: LabelMap = None,
    box_format: BoxFormat = None,
    threshold: Threshold = None,
    alpha: Alpha = False,
    resize_masks: ResizeMasks = False,
    stored_orientation: StoredOrientation = False,
    stream: Annotated[
        bool, typer.Option(help="Read --data as it comes, not by number; needs --max-steps, see docs/training.md.")
    ] = False,
    on_error: Annotated[
        OnError, typer.Option(help="What happens to a bad example: end with an error, or leave it out and count it.")
    ] = OnError.stop,
    eval_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of --data to hold out, where there is no --eval-data.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest packed sequence; more branches make more sequences.")
    ] = None,
    max_regions: Annotated[
        int | None, typer.Option(min=1, help="Regions per item; examples with more are split.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=0, help="Held-out examples that are captioned at every evaluation.")
    ] = None,
    resume: Annotated[
        bool, typer.Option(help="Continue what the folder holds; --no-resume refuses a folder that holds something.")
    ] = True,
) -> None:
    """Train one stage, or the stages of a recipe.

    Further options are those of transformers.TrainingArguments, such as --learning-rate 1e-4 --max-steps 500
    --per-device-train-batch-size 4 --save-steps 100; they hold for every stage. The same command run again continues
    after an interruption. The result is DIR/final, or DIR/N-NAME/final for each stage of a recipe. For several
    processes: accelerate launch -m finecaption_hf.cli train ...
    """
    with errors_in_one_line():
        from dataclasses import replace

        from ..training.recipes import Recipe, named_paths, read_recipe
        from ..training.stages import StageError, find_stage

        if (stage is None) == (recipe is None):
            raise StageError("Give either --stage, for one, or --recipe, for stages in a row.")
        plan = Recipe(stages=(find_stage(stage),)) if stage is not None else read_recipe(str(recipe))
        reading = (images, on_error, reading_options(ctx.params))
        given: dict[str, Any] = {
            "model": model,
            "data": with_options(named_paths(data, "--data"), *reading) if data else None,
            "eval_data": with_options(named_paths(eval_data, "--eval-data"), *reading) if eval_data else None,
            "eval_share": eval_share,
            "max_tokens": max_tokens,
            "max_regions": max_regions,
            "num_samples": samples,
        }
        plan = replace(plan, **{name: value for name, value in given.items() if value is not None})
        if stream:
            entries = {name: entry if isinstance(entry, dict) else {"path": entry} for name, entry in plan.data.items()}
            plan = replace(plan, data={name: {**entry, "stream": True} for name, entry in entries.items()})

        from ..training.arguments import parse_options
        from ..training.runner import train as run

        options = parse_options(ctx.args, option_names(ctx))

    import logging
    import os

    from transformers.utils.logging import disable_progress_bar

    # Of several processes, one speaks.
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(format="%(message)s")
    logging.getLogger("finecaption_hf").setLevel(level)
    disable_progress_bar()  # of loading and saving weights; the one of training stays
    with errors_in_one_line(at_work=True):
        run(plan, output, options=options, resume=resume)


def with_options(
    paths: dict[str, str], images: list[str] | None, on_error: OnError, reading: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """Arguments of `open_dataset` for each name."""
    named = dict(text.split("=", 1) for text in images or () if text.split("=", 1)[0] in paths)
    common = [text for text in images or () if text.split("=", 1)[0] not in paths]
    if len(common) > 1:
        raise ValueError(f"--images {common[0]} and {common[1]} are both for all data. Name the data: NAME=PATH.")
    result: dict[str, Any] = {}
    for name, path in paths.items():
        store = named.get(name, common[0] if common else None)
        result[name] = {
            "path": path,
            **({} if store is None else {"images": store}),
            **({} if on_error is OnError.stop else {"on_error": on_error.value}),
            **reading,
        }
    return result
