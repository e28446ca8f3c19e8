"""`finecaption train`: the stages of training."""

from pathlib import Path
from typing import Annotated

import typer

from .common import errors_in_one_line

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}


def train(
    ctx: typer.Context,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for checkpoints and results.", show_default=False)
    ],
    stage: Annotated[
        str | None, typer.Option(metavar="N|NAME", help="1 (adapter), 2 (alpha_convolution) or 3 (everything).")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="FILE|NAME", help="Stages in a row, from YAML; or a recipe of the package.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="ID_OR_FOLDER", help="Checkpoint that the first stage starts from.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]PATH", help="Records to train on (repeatable; a stage weighs them by name)."),
    ] = None,
    eval_data: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]PATH", help="Records for the evaluation loss and sample captions (repeatable)."),
    ] = None,
    eval_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of --data to hold out, where there is no --eval-data.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest packed sequence; more branches make more sequences.")
    ] = None,
    max_regions: Annotated[
        int | None, typer.Option(min=1, help="Regions per item; records with more are split.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=0, help="Held-out records that are captioned at every evaluation.")
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
        given = {
            "model": model,
            "data": named_paths(data, "data") if data else None,
            "eval_data": named_paths(eval_data, "eval_data") if eval_data else None,
            "eval_share": eval_share,
            "max_tokens": max_tokens,
            "max_regions": max_regions,
            "num_samples": samples,
        }
        plan = replace(plan, **{name: value for name, value in given.items() if value is not None})

        from ..training.arguments import parse_options
        from ..training.run import train as run

        options = parse_options(ctx.args)

    import logging
    import os

    from transformers.utils.logging import disable_progress_bar

    from ..data.records import DataError

    # Of several processes, one speaks.
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(format="%(message)s")
    logging.getLogger("finecaption_hf").setLevel(level)
    disable_progress_bar()  # of loading and saving weights; the one of training stays
    try:
        run(plan, output, options=options, resume=resume)
    except (StageError, DataError, OSError) as error:
        typer.echo(f"Error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from error
