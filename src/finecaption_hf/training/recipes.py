"""Recipes: a model, data and stages in one YAML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..prompts_finecaption import no_such
from .stages import Stage, StageError

RECIPES = Path(__file__).parent / "recipes"
"""Folder of the recipes that come with the package; `finecaption train --recipe NAME` finds them by name."""


@dataclass(frozen=True)
class Recipe:
    """What `finecaption train --recipe` reads; options on the command line win.

    Args:
        stages: in the order in which they train; each starts from the weights of the one before.
        model: checkpoint that the first stage starts from: a folder, `owner/name` or `owner/name@revision` on the Hub.
        data: examples by name: a path, or the arguments of `finecaption_hf.data.open_dataset` with `path`, such as
            `{path: a.json, images: a.zip, on_error: skip, box_format: xywh}`; relative paths are relative to the
            recipe. With `stream: true` those of `ExampleStream`, whose `path` may be a `datasets.IterableDataset`.
        eval_data: the same, for the evaluation loss and the sample captions.
        eval_share: share of the data that is held out for that, where there is no `eval_data`.
        training: `transformers.TrainingArguments` of all stages.
        model_options: `dtype`, `attn_implementation` and `quantization_config` (of bitsandbytes) to load with.
        max_tokens: of a packed sequence.
        max_regions: of an item; examples with more are split.
        num_samples: captions of held-out regions that are written at every evaluation.
    """

    stages: tuple[Stage, ...]
    model: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    eval_data: Mapping[str, Any] = field(default_factory=dict)
    eval_share: float = 0.0
    training: Mapping[str, Any] = field(default_factory=dict)
    model_options: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    max_regions: int | None = None
    num_samples: int = 4

    def __post_init__(self) -> None:
        if not self.stages:
            raise StageError("A recipe needs at least one stage.")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise StageError(f"Each stage of a recipe needs a name of its own; these are {', '.join(names)}.")
        if unknown := sorted(self.model_options.keys() - _MODEL_OPTIONS):
            raise StageError(f"model_options: {no_such('option', unknown[0], sorted(_MODEL_OPTIONS))}")


_MODEL_OPTIONS = {"dtype", "attn_implementation", "quantization_config"}


def read_recipe(source: str | Path) -> Recipe:
    """Read a recipe.

    Args:
        source: a YAML file, or the name of a recipe of the package.

    Raises:
        StageError: If there is none, it is no YAML, or a field is unknown or cannot be meant.
    """
    import yaml

    path = Path(source)
    packaged = RECIPES / f"{source}.yaml"
    if not path.is_file():
        if not packaged.is_file():
            known = sorted(item.stem for item in RECIPES.glob("*.yaml"))
            raise StageError(no_such("file or packaged recipe", str(source), known))
        path = packaged
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StageError(f"{path} is no YAML: {error}") from error
    if not isinstance(values, dict):
        raise StageError(f"{path} holds no mapping. Give at least stages: [...].")
    known_fields = sorted(item.name for item in fields(Recipe))
    if unknown := [name for name in values if name not in known_fields]:
        raise StageError(f"{path}: {no_such('field', unknown[0], known_fields)}")
    given = {name: value for name, value in values.items() if value is not None}
    stages = given.pop("stages", [])
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise StageError(f"{path}: stages is a list of mappings, such as [{{stage: 1}}, {{stage: 2}}].")
    for name in ("data", "eval_data"):
        if name in given:
            entries = given[name] if isinstance(given[name], Mapping) else named_paths(given[name], name)
            given[name] = {str(key): _relative(value, path) for key, value in entries.items()}
    return Recipe(stages=tuple(Stage.from_dict(stage) for stage in stages), **given)


def named_paths(texts: str | Sequence[str], option: str) -> dict[str, str]:
    """Paths by name from `[NAME=]PATH` texts; the name that is left out is that of the file or folder."""
    paths: dict[str, str] = {}
    for text in [texts] if isinstance(texts, str) else texts:
        name, equals, path = text.partition("=")
        if not equals or "/" in name:
            path = text
            name = Path(path).resolve().parent.name if Path(path).name == "records.jsonl" else Path(path).stem
        if name in paths:
            raise StageError(f"{option} has two called {name!r}. Give names, such as {name}2={path}.")
        paths[name] = path
    return paths


def _relative(entry: Any, recipe: Path) -> Any:
    if isinstance(entry, Mapping):
        paths = {name: _relative(entry[name], recipe) for name in ("path", "images", "rejects") if name in entry}
        return {**entry, **paths}
    return str(recipe.parent / Path(str(entry)).expanduser())
