"""`finecaption describe`: every region of a whole data set."""

import json
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import (
    ApiKeyEnv,
    AtOnce,
    Attributes,
    BaseUrl,
    DataEngine,
    Describing,
    Device,
    DtypeOption,
    EngineOptions,
    Json,
    KeepSent,
    MaxBatchTokens,
    MaxNewTokens,
    Model,
    OwnQuestions,
    Prompts,
    Referring,
    Seed,
    Tasks,
    Temperature,
    TopP,
    TrustRemoteCode,
    asked_in_order,
    check_attributes,
    describer_options,
    load_describer,
)
from .progress import progress
from .reading import (
    Alpha,
    BoxFormat,
    Format,
    Ignore,
    ImageList,
    LabelMap,
    ResizeMasks,
    StoredOrientation,
    Threshold,
    reading_options,
)

if TYPE_CHECKING:
    from ..data import RegionInputs
    from ..describing import Result


def describe(
    ctx: typer.Context,
    path: Annotated[
        str,
        typer.Argument(
            metavar="FILE|DIR|ID",
            help="Regions: a file or folder of an annotation tool, JSON Lines, a folder of pictures with masks, or a "
            "dataset.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            metavar="FILE|DIR",
            help="File or folder to make. The same command goes on after an interruption.",
            show_default=False,
        ),
    ],
    output_format: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Form of the output: jsonl, csv, parquet, datasets, coco, or same, which puts the texts into a "
            "copy of the annotations.",
            show_default="what the suffix says",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|ZIP|TAR", exists=True, help="Where the pictures lie.", show_default="the folder of FILE"
        ),
    ] = None,
    format: Format = None,
    split: Annotated[str | None, typer.Option(help="Split of a dataset.")] = None,
    image_list: ImageList = None,
    ignore: Ignore = None,
    label_map: LabelMap = None,
    box_format: BoxFormat = None,
    threshold: Threshold = None,
    alpha: Alpha = False,
    resize_masks: ResizeMasks = False,
    stored_orientation: StoredOrientation = False,
    task: Tasks = None,
    attribute: Attributes = None,
    question: OwnQuestions = None,
    model: Model = None,
    device: Device = None,
    dtype: DtypeOption = None,
    engine: DataEngine = None,
    engine_options: EngineOptions = None,
    describer: Describing = None,
    referral: Referring = None,
    prompts: Prompts = None,
    base_url: BaseUrl = None,
    api_key_env: ApiKeyEnv = None,
    trust_remote_code: TrustRemoteCode = False,
    keep_sent: KeepSent = False,
    at_once: AtOnce = False,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    log_probs: Annotated[bool, typer.Option("--log-probs", help="Write the log-probability of each token.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures that are described together.")] = 4,
    max_batch_tokens: MaxBatchTokens = None,
    num_workers: Annotated[int, typer.Option(min=1, help="Threads that read pictures ahead.")] = 4,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew, and replace the output at the end.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Describe again the regions of a finished output that failed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Describe every region of a data set: a record per region, in the input's order.

    Questions are in the order of the command line; a region may have its own. The global caption is about the whole
    picture.

    For several processes: accelerate launch -m finecaption_hf.cli describe annotations.json --output ...
    """
    questions = asked_in_order(ctx, task, attribute, question)
    from ..data import ReadOptions, open_regions
    from ..describing import (
        DescribeOptions,
        Processes,
        ProcessLostError,
        ResumeError,
        UnfinishedError,
        check_output,
        describe_dataset,
    )

    processes = Processes.launched()
    if not processes.is_main:
        from transformers.utils import logging

        logging.set_verbosity_error()
        warnings.simplefilter("ignore")
    if device is None and processes.count > 1 and engine is None:
        device = _own_device()

    def tell(line: str) -> None:
        if processes.is_main:
            typer.echo(line, err=True)

    def stop(line: str, code: int) -> typer.Exit:
        tell(f"Error: {' '.join(line.split())}")
        return typer.Exit(code)

    def load() -> Any:
        loaded = load_describer(
            model, device, dtype, max_batch_tokens=max_batch_tokens, **describer_options(ctx.params)
        )
        check_attributes(questions, loaded.questions)
        return loaded

    started = time.monotonic()
    counted: list[tuple[int, int]] = []

    def so_far() -> str:
        finished = "{} of {} regions are finished. ".format(*counted[-1]) if counted else ""
        return f"{finished}What was finished is kept; the same command goes on from there."

    try:
        if engine is not None and processes.count > 1:
            raise ValueError(
                "vLLM starts processes of its own. Run finecaption describe once, with --engine-options such as "
                "{tensor_parallel_size: 2}."
            )
        check_output(output, output_format)
        reading = ReadOptions(images=images, format=format, split=split, **reading_options(ctx.params))
        inputs = open_regions(path, reading)
        tell(f"{path}: read as {inputs.title}, {inputs.num_regions} regions.")
        for note in inputs.notes:
            tell(note)
        if inputs.num_without_regions:
            tell(f"{inputs.num_without_regions} pictures have no region and give no record.")
        with progress(processes.is_main) as show:

            def on_progress(done: int, total: int) -> None:
                counted.append((done, total))
                del counted[1:-1]
                show(done, total)

            result = describe_dataset(
                load,
                inputs,
                output,
                [value for _, value in questions],
                DescribeOptions(max_new_tokens, temperature, top_p, seed, log_probs, batch_size),
                output_format=output_format,
                overwrite=overwrite,
                retry_failed=retry_failed,
                num_workers=num_workers,
                processes=processes,
                on_progress=on_progress,
                tell=tell,
            )
    except KeyboardInterrupt:
        tell(f"Stopped. {so_far()}")
        raise typer.Exit(130) from None
    except (UnfinishedError, ProcessLostError) as error:
        raise stop(f"{error} {so_far()}", 1) from error
    except (ImportError, OSError, ValueError) as error:
        if counted and not isinstance(error, ResumeError):
            raise  # input was good and work had begun: a defect, which keeps its traceback
        raise stop(str(error), 2) from error
    if processes.is_main:
        _report(result, inputs, output, as_json, counted, time.monotonic() - started)
    if result.failed:
        raise typer.Exit(1)


def _own_device() -> str | None:
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else None


def _report(
    result: "Result",
    inputs: "RegionInputs",
    output: Path,
    as_json: bool,
    counted: Sequence[tuple[int, int]],
    seconds: float,
) -> None:
    if as_json:
        report = {
            "output": str(output),
            "regions": result.regions,
            "whole_pictures": inputs.num_whole_images,
            "pictures_without_regions": inputs.num_without_regions,
            "failed": result.failed,
            "failures": result.places,
        }
        typer.echo(json.dumps(report, ensure_ascii=False, indent=2))
    if counted:
        number = counted[-1][0] - counted[0][0]
        rate = f", {number} of them now in {seconds:.0f} s" if number < result.regions else f" in {seconds:.0f} s"
        typer.echo(f"Wrote {output}: {result.regions} regions{rate}", err=True)
    if result.failed:
        typer.echo(f"{result.failed} of {result.regions} regions could not be described:", err=True)
        for place in result.places:
            typer.echo(f"  {' '.join(place.split())}", err=True)
        if more := result.failed - len(result.places):
            typer.echo(f'  and {more} more: the lines with "error" in {result.records}', err=True)
        typer.echo("Once their cause is mended, --retry-failed describes them.", err=True)
