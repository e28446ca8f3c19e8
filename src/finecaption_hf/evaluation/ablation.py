"""The paper's ablation: what the mask and each high-resolution tower are worth, at the same budget.

All configurations start from one checkpoint that has every tower, but with a fresh adapter and an alpha convolution at
zero; each trains the stages of one recipe on the same data in the same order, for several seeds, and is judged in the
same way.
"""

import fnmatch
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import torch

from .. import install_hint
from ..asking import FineCaptionDescriber, load
from ..configuration_finecaption import FineCaptionConfig
from ..data import open_dataset
from ..modeling_finecaption import FineCaptionForConditionalGeneration
from ..prompts_finecaption import no_such
from ..resuming import check_same, read_manifest, whole_file, write_json
from ..scenes.scoring import score_scenes
from ..training.arguments import num_processes
from ..training.recipes import Recipe
from ..training.runner import absolute, split_revision, train
from ..training.stages import Stage, StageError
from .evaluating import PREDICTIONS, report_on
from .metrics import CaptionScorer
from .predicting import run_predictions

if TYPE_CHECKING:
    from ..processing_finecaption import FineCaptionProcessor

logger = logging.getLogger(__name__)

RESULT = "result.json"
_ALPHA = "model.vision_tower.embeddings.alpha_embedding."
_ADAPTER = "model.adapter."
_ALL = "mean of all"

Judge = Callable[[FineCaptionForConditionalGeneration, "FineCaptionProcessor", Path], Mapping[str, Any]]
"""(model, processor, folder of the run) -> what is written into the result; `values` has a number for each question."""


@dataclass(frozen=True)
class Configuration:
    """Which parts a model has. `title` is its name in the table."""

    title: str
    use_mask: bool
    use_convnext: bool
    use_sam: bool

    @property
    def towers(self) -> dict[str, bool]:
        return {"use_mask": self.use_mask, "use_convnext": self.use_convnext, "use_sam": self.use_sam}


CONFIGURATIONS: Mapping[str, Configuration] = {
    "clip": Configuration("CLIP", False, False, False),
    "mask": Configuration("+ mask", True, False, False),
    "mask-convnext": Configuration("+ mask + ConvNeXt", True, True, False),
    "mask-sam": Configuration("+ mask + SAM", True, False, True),
    "mask-both": Configuration("+ mask + both", True, True, True),
}
"""The five of the paper, by the name of their folder."""


def ablate(
    recipe: Recipe,
    output: str | os.PathLike[str],
    judge: Judge,
    *,
    judged_on: Mapping[str, Any],
    seeds: Sequence[int] = (0, 1, 2),
    configurations: Sequence[str] = tuple(CONFIGURATIONS),
    options: Mapping[str, Any] | None = None,
    device: str | None = None,
    keep_models: bool = False,
    tell: Callable[[str], None] = logger.info,
) -> list[dict[str, Any]]:
    """Train and judge configurations; called again, it goes on where it was ended.

    A run has the folder `OUTPUT/<configuration>/seed-<n>`. Its result is written last, and a run that has one is not
    done again; one that was interrupted while training continues from its last checkpoint. Several processes may share
    the work, as long as each has its own configurations or seeds.

    Args:
        recipe: model to start from, data, and stages. What a stage trains of towers that a configuration lacks is left
            out, and a stage of which nothing remains (that of the alpha convolution, without a mask) is skipped.
        output: folder for all of it.
        judge: scores a trained model.
        judged_on: settings of the judge, which are part of what a result was made with.
        seeds: of the fresh adapter and of training.
        configurations: names of `CONFIGURATIONS`.
        options: arguments of `transformers.TrainingArguments`, over those of recipe and stages.
        device: on which models are judged.
        keep_models: keep the trained checkpoints; otherwise only results stay.
        tell: gets a line about every run.

    Returns:
        The results, in the order of `configurations` and `seeds`.

    Raises:
        StageError: If the start lacks a tower, or training refuses.
        ResumeError: If a result was made in another way.
        ImportError: If scipy is missing, which the intervals need.
    """
    unknown = [name for name in configurations if name not in CONFIGURATIONS]
    if unknown or not configurations or not seeds:
        raise StageError(
            no_such("configuration", unknown[0], CONFIGURATIONS)
            if unknown
            else "Nothing is to be done. Give at least one configuration and one seed."
        )
    if recipe.model is None:
        raise StageError("There is no model to start from. Give --model, or model in the recipe.")
    if num_processes() > 1:
        raise StageError(
            "An ablation is one process. To share the work, start several, each with its own configurations or seeds."
        )
    _students_t(1)  # what is missing shows before anything trains
    # No matter in which order runs are done: one seed of all configurations after the other, so that each stretch of
    # time ends with something to compare.
    results = {}
    for seed in seeds:
        for name in configurations:
            folder = Path(output) / name / f"seed-{seed}"
            made_with = _made_with(recipe, options or {}, judged_on, name, seed)
            results[name, seed] = _run(recipe, folder, judge, made_with, options or {}, device, keep_models, tell)
    return [results[name, seed] for name in configurations for seed in seeds]


def read_results(output: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All results in a folder, in the order of configurations and seeds.

    Raises:
        StageError: If there is none.
    """
    found = [
        json.loads(path.read_text(encoding="utf-8"))
        for name in CONFIGURATIONS
        for path in sorted(Path(output).glob(f"{name}/seed-*/{RESULT}"), key=lambda path: int(path.parent.name[5:]))
    ]
    if not found:
        raise StageError(f"{output} holds no finished run of an ablation. Leave --report-only out to make some.")
    return found


def ablated(start: Any, configuration: Configuration, seed: int) -> Any:
    """A model with some of the parts of another one.

    Args:
        start (`FineCaptionForConditionalGeneration`): has at least these parts.
        configuration: which parts.
        seed: of the adapter, which is fresh.

    Returns:
        `FineCaptionForConditionalGeneration`: an alpha convolution, where there is one, is zero; all else is the same.

    Raises:
        StageError: If the start lacks a part.
    """
    lacking = [name for name, used in configuration.towers.items() if used and not getattr(start.config, name)]
    if lacking:
        raise StageError(
            f"{configuration.title!r} cannot be made from a model with {'=false and '.join(lacking)}=false. Start "
            "from a checkpoint that has every tower and the mask."
        )
    torch.manual_seed(seed)
    model = FineCaptionForConditionalGeneration(
        FineCaptionConfig.from_dict({**start.config.to_dict(), **configuration.towers})
    )
    given, own = start.state_dict(), model.state_dict()
    for name, value in own.items():
        if name.startswith(_ALPHA):
            value.zero_()
        elif not name.startswith(_ADAPTER):
            value.copy_(given[name])
    model.generation_config = start.generation_config
    return model.to(start.dtype)


def stages_of(stages: Sequence[Stage], names: Sequence[str], all_names: Sequence[str]) -> tuple[Stage, ...]:
    """Stages without what a configuration lacks.

    Args:
        stages: of the recipe.
        names: parameters of the configuration.
        all_names: parameters of the model that has every part.

    Raises:
        StageError: If nothing is left, or a pattern matches nothing of the whole model either.
    """
    found = []
    for stage in stages:
        stage.select(all_names)
        patterns = tuple(pattern for pattern in stage.trains if fnmatch.filter(names, pattern))
        if patterns or stage.peft is not None:
            left = replace(stage, trains=patterns, num_tensors=None)
            # A count belongs to the whole model.
            found.append(stage if len(left.select(names)) == stage.num_tensors else left)
    if not found:
        raise StageError("No stage of the recipe trains anything of this configuration.")
    return tuple(found)


def _made_with(
    recipe: Recipe, options: Mapping[str, Any], judged_on: Mapping[str, Any], name: str, seed: int
) -> dict[str, Any]:
    source = str(recipe.model)
    return json.loads(
        json.dumps(
            {
                "configuration": name,
                "seed": seed,
                "model": os.path.abspath(source) if os.path.isdir(source) else source,
                "data": {name: absolute(entry) for name, entry in recipe.data.items()},
                "stages": [stage.to_dict() for stage in recipe.stages],
                "training": dict(recipe.training),
                "options": dict(options),
                "max_tokens": recipe.max_tokens,
                "max_regions": recipe.max_regions,
                "judged_on": dict(judged_on),
            },
            default=str,
        )
    )


def _run(
    recipe: Recipe,
    folder: Path,
    judge: Judge,
    made_with: dict[str, Any],
    options: Mapping[str, Any],
    device: str | None,
    keep_models: bool,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    title, seed = CONFIGURATIONS[made_with["configuration"]].title, made_with["seed"]
    path = folder / RESULT
    begun = folder / "made_with.json"
    for known in (path, begun):
        if known.is_file():
            written = read_manifest(known)
            check_same(written["made_with"] if known == path else written, made_with, folder)
            if known == path:
                tell(f"{title}, seed {seed}: finished before")
                return written
    folder.mkdir(parents=True, exist_ok=True)
    write_json(begun, made_with)

    started = time.time()
    start_folder, training = folder / "start", folder / "training"
    stages = _write_start(recipe, start_folder, CONFIGURATIONS[made_with["configuration"]], seed)
    tell(f"{title}, seed {seed}: training {', '.join(stage.name for stage in stages)}")
    final = train(
        replace(recipe, model=str(start_folder), stages=stages),
        training,
        options={**options, "seed": seed},
        tell=logger.debug,
    )
    trained = time.time() - started
    model, processor = load(final, device=device)
    result = {
        "configuration": made_with["configuration"],
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained_stages": [stage.name for stage in stages],
        "train_seconds": round(trained),
        **judge(model, processor, folder),
        "made_with": made_with,
    }
    write_json(path, result)
    shutil.rmtree(start_folder)
    if not keep_models:
        shutil.rmtree(training)
    tell(f"{title}, seed {seed}: {mean(result['values'].values()):.3f} on average, trained in {trained:.0f} s")
    return result


def _write_start(recipe: Recipe, folder: Path, configuration: Configuration, seed: int) -> tuple[Stage, ...]:
    """The checkpoint that a configuration starts from, and the stages that it trains."""
    name, revision = split_revision(str(recipe.model))
    dtype = recipe.model_options.get("dtype", "float32")
    start, processor = load(name, device="cpu", dtype=dtype, revision=revision)
    model = ablated(start, configuration, seed)
    stages = stages_of(
        recipe.stages,
        [name for name, _ in model.named_parameters()],
        [name for name, _ in start.named_parameters()],
    )
    if not folder.is_dir():
        processor.image_processor = type(processor.image_processor)(**model.config.image_processor_kwargs())
        partial = folder.with_name(folder.name + ".partial")
        if partial.is_dir():
            shutil.rmtree(partial)
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        os.replace(partial, folder)
    return stages


# --- judges -----------------------------------------------------------------------------------------------------------


def scene_judge(number: int, seed: int) -> Judge:
    """Exact answers, by free generation, on held-out rendered scenes from `seed` on."""

    def judge(model: Any, processor: Any, folder: Path) -> dict[str, Any]:
        scored = score_scenes(FineCaptionDescriber(model, processor), number, seed=seed)
        return {"values": scored.pop("accuracy"), **scored}

    return judge


def metric_judge(data: Path, metric: str) -> Judge:
    """A metric by attribute; predictions and the report of `finecaption evaluate` stay in the run's folder.

    Args:
        data: described regions.
        metric: its name in reports.

    Raises:
        DataError, MetricError: If there is no such data, or something is missing that the metric needs.
    """
    dataset = open_dataset(data)
    score = CaptionScorer([metric.removesuffix("_4")])

    def judge(model: Any, processor: Any, folder: Path) -> dict[str, Any]:
        describer = FineCaptionDescriber(model, processor, name="/".join(folder.parts[-2:]))
        predictions = folder / PREDICTIONS
        run_predictions(describer, dataset, predictions, data_name=str(data))
        report = report_on(predictions, folder, score=score, dataset=dataset)
        shown = "meteor_segments" if metric == "meteor" else metric
        values = {row["name"]: row["metrics"][shown]["value"] for row in report["by_attribute"]}
        return {"values": values, "signature": report["signature"]}

    return judge


# --- table and plot ---------------------------------------------------------------------------------------------------


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds with 95 % intervals (Student's t), by configuration and question.

    Args:
        results: of `ablate`.

    Returns:
        `configurations` (names), `seeds`, `questions`, `table` (by question, then configuration: `mean`, `half_width`,
        `values` by seed) and `steps` (differences of the mean of all between one configuration and the one that it adds
        a part to, paired by seed).

    Raises:
        StageError: If the results were not made in the same way.
    """
    first = results[0]["made_with"]
    for result in results:
        for name in first.keys() - {"configuration", "seed"}:
            if result["made_with"][name] != first[name]:
                raise StageError(f"Runs with different {name} cannot stand in one table. Give each an --output.")
        if result["values"].keys() != results[0]["values"].keys():
            raise StageError("Runs that answer different questions cannot stand in one table.")
    names = [name for name in CONFIGURATIONS if any(result["configuration"] == name for result in results)]
    questions = list(results[0]["values"])
    scores: dict[str, dict[str, dict[int, float]]] = {question: {} for question in [_ALL, *questions]}
    for result in results:
        for question in scores:
            value = mean(result["values"].values()) if question == _ALL else result["values"][question]
            scores[question].setdefault(result["configuration"], {})[result["seed"]] = value
    steps = []
    for before, after in _STEPS:
        if before in names and after in names:
            one, other = scores[_ALL][before], scores[_ALL][after]
            steps.append({"from": before, "to": after, **_spread([other[s] - one[s] for s in one if s in other])})
    return {
        "configurations": names,
        "seeds": sorted({result["seed"] for result in results}),
        "questions": questions,
        "table": {
            question: {name: _spread(list(scores[question][name].values())) for name in names} for question in scores
        },
        "steps": [step for step in steps if step["values"]],
        "made_with": {name: value for name, value in first.items() if name not in ("configuration", "seed")},
    }


_STEPS = (
    ("clip", "mask"),
    ("mask", "mask-convnext"),
    ("mask", "mask-sam"),
    ("mask-convnext", "mask-both"),
    ("mask-sam", "mask-both"),
)


def _students_t(freedom: int) -> float:
    """The quantile at 0.975."""
    try:
        from scipy.stats import t
    except ImportError as error:
        raise ImportError(f"Intervals of an ablation need scipy. {install_hint('evaluation')}.") from error
    return float(t.ppf(0.975, freedom))


def _spread(values: list[float]) -> dict[str, Any]:
    if not values:
        return {"mean": None, "half_width": None, "values": []}
    width = None
    if len(values) > 1:
        width = round(_students_t(len(values) - 1) * stdev(values) / len(values) ** 0.5, 6)
    return {"mean": round(mean(values), 6), "half_width": width, "values": values}


def to_markdown(summary: Mapping[str, Any]) -> str:
    """The table: mean over seeds ± half of the 95 % interval."""
    names = summary["configurations"]
    titles = [CONFIGURATIONS[name].title for name in names]
    lines = [f"| question | {' | '.join(titles)} |", f"|---|{'---|' * len(names)}"]
    for question, row in summary["table"].items():
        lines.append(f"| {question} | {' | '.join(_cell(row[name]) for name in names)} |")
    if summary["steps"]:
        lines += ["", "| what is added | difference of the mean of all, paired by seed |", "|---|---|"]
        for step in summary["steps"]:
            added = f"{CONFIGURATIONS[step['from']].title} to {CONFIGURATIONS[step['to']].title}"
            lines.append(f"| {added} | {_cell(step)} |")
    seeds = ", ".join(map(str, summary["seeds"]))
    lines += ["", f"Means over the seeds {seeds}, ± half of the 95 % interval (Student's t over seeds)."]
    return "\n".join(lines) + "\n"


def _cell(spread: Mapping[str, Any]) -> str:
    width = spread["half_width"]
    return f"{spread['mean']:.3f}" + ("" if width is None else f" ± {width:.3f}")


def draw(summary: Mapping[str, Any], path: str | os.PathLike[str], label: str) -> None:
    """Draw the table as bars with error bars, to a PNG.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names, rows = summary["configurations"], list(summary["table"])
    figure = Figure(figsize=(11, 1 + 0.34 * len(rows)))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    height = 0.8 / len(names)
    for number, name in enumerate(names):
        at = [row + (number - (len(names) - 1) / 2) * height for row in range(len(rows))]
        spreads = [summary["table"][question][name] for question in rows]
        means = [spread["mean"] for spread in spreads]
        widths = None if None in (w := [spread["half_width"] for spread in spreads]) else w
        axes.barh(at, means, height, xerr=widths, label=CONFIGURATIONS[name].title, error_kw={"elinewidth": 0.8})
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set_xlabel(f"{label} (mean over seeds, 95 % interval)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=len(names), frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def write_report(results: Sequence[Mapping[str, Any]], output: str | os.PathLike[str], label: str) -> list[Path]:
    """Write `ablation.json`, `ablation.md` and, with matplotlib installed, `ablation.png`; returns what was written."""
    folder, summary = Path(output), summarise(results)
    write_json(folder / "ablation.json", summary)
    with whole_file(folder / "ablation.md") as file:
        file.write(to_markdown(summary).encode())
    written = [folder / "ablation.json", folder / "ablation.md"]
    try:
        draw(summary, folder / "ablation.png", label)
    except ImportError:
        return written
    return [*written, folder / "ablation.png"]
