"""`finecaption ablate`: the five configurations of the paper, trained and judged from one recipe."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import Device, errors_in_one_line
from .layout import option_names


class Metric(str, Enum):
    rouge_l = "rouge_l"
    bleu_4 = "bleu_4"
    meteor = "meteor"
    cider = "cider"
    bertscore = "bertscore"


def ablate(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for runs, table and plot.", show_default=False)],
    recipe: Annotated[
        str, typer.Option(metavar="FILE|NAME", help="Stages that every configuration trains, from YAML or by name.")
    ] = "ablation-tiny",
    model: Annotated[
        str | None, typer.Option(metavar="ID_OR_FOLDER", help="Checkpoint that all start from; it has every tower.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="[NAME=]PATH", help="Examples to train on (repeatable).")
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]PATH", help="Folder, .zip or .tar of the pictures of NAME, or of all data."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds each configuration is trained with.")] = 3,
    first_seed: Annotated[
        int, typer.Option(min=0, help="First of the seeds, where another process trains those before.")
    ] = 0,
    configurations: Annotated[
        list[str] | None,
        typer.Option(
            "--configuration",
            metavar="NAME",
            help="Configuration to train: clip, mask, mask-convnext, mask-sam or mask-both (repeatable).",
            show_default="all",
        ),
    ] = None,
    scenes: Annotated[int, typer.Option(min=1, help="How many held-out rendered scenes judge by exact answers.")] = 60,
    scenes_seed: Annotated[int, typer.Option(min=0, help="Number of the first held-out scene.")] = 0,
    eval_data: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", exists=True, help="Described regions to judge by instead of scenes; each run gets a report."
        ),
    ] = None,
    metric: Annotated[Metric, typer.Option(help="Metric in the table, with --eval-data.")] = Metric.rouge_l,
    device: Device = None,
    keep_models: Annotated[bool, typer.Option("--keep-models", help="Keep the trained checkpoints.")] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Make table and plot of the finished runs, and train nothing.")
    ] = False,
) -> None:
    """Train and judge CLIP alone, with the mask, with one high-resolution tower, and with both: table and plot.

    All start from the same towers and language model, with a fresh adapter and an alpha convolution at zero, and train
    the stages of the recipe on the same data. Further options are those of transformers.TrainingArguments, such as
    --max-steps 500; they hold for every stage. Run again after an interruption, the same command goes on. The result
    is DIR/ablation.md, ablation.json and, with matplotlib installed, ablation.png.
    """
    with errors_in_one_line():
        from dataclasses import replace

        from ..training.recipes import read_recipe

        plan = read_recipe(recipe)
        given: dict[str, Any] = {"model": model, "data": None if data is None else _data(data, images)}
        plan = replace(plan, **{name: value for name, value in given.items() if value is not None})

        from ..evaluation import ablation
        from ..training.arguments import parse_options

        options = parse_options(ctx.args, option_names(ctx))
        chosen = tuple(configurations or ablation.CONFIGURATIONS)
        if eval_data is None:
            judged_on: dict[str, Any] = {"scenes": scenes, "seed": scenes_seed, "split": "test"}
            judge, label = ablation.scene_judge(scenes, scenes_seed), "exact answers on held-out scenes"
        else:
            judged_on = {"data": str(eval_data.resolve()), "metric": metric.value}
            judge, label = ablation.metric_judge(eval_data, metric.value), metric.value

    import logging

    from transformers.utils.logging import disable_progress_bar

    logging.basicConfig(format="%(message)s")
    disable_progress_bar()
    with errors_in_one_line(at_work=True):
        if not report_only:
            ablation.ablate(
                plan,
                output,
                judge,
                judged_on=judged_on,
                seeds=range(first_seed, first_seed + seeds),
                configurations=chosen,
                options={"disable_tqdm": True, **options},
                device=device,
                keep_models=keep_models,
                tell=lambda line: typer.echo(line, err=True),
            )
        written = ablation.write_report(ablation.read_results(output), output, label)
    typer.echo((output / "ablation.md").read_text(encoding="utf-8"))
    typer.echo(f"Wrote {', '.join(map(str, written))}", err=True)
    if len(written) < 3:
        typer.echo("There is no plot: it needs matplotlib (pip install matplotlib).", err=True)


def _data(texts: list[str], images: list[str] | None) -> dict[str, Any]:
    from ..training.recipes import named_paths
    from .reading import OnError
    from .train import with_options

    return with_options(named_paths(texts, "--data"), images, OnError.stop)
