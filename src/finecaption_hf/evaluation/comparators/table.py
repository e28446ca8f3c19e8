"""A table of models from one YAML file, row by row: each row's predictions are a file that a later run goes on with."""

import gc
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...asking import Describer, load_describer
from ...asking.describers import (
    BOX_FORMATS,
    PromptTemplates,
    Referral,
)
from ...asking.describers.referral import WITH_MASK, read_referral
from ...asking.describers.referring import describe_error
from ...asking.describers.region_models import REGION_MODELS
from ...asking.describers.settings import check_options, options_of
from ...asking.describers.templates import read_templates
from ...asking.kinds import options_of_kind
from ...data.examples import Example
from ...prompts_finecaption import no_such
from ...resuming import ResumeError, differences, read_manifest, write_json
from ..errors import EvaluationError
from ..predicting import describe_data, run_predictions
from ..predictions import read_predictions
from .paper import CitedRow, cited_row

TABLES = Path(__file__).parent / "tables"
"""Folder of the tables that come with the package; they are found by name."""

PREDICTIONS, ROW = "predictions.jsonl", "row.json"


KINDS = ("finecaption", "transformers", "endpoint", "describer")
_BY_THE_ROW = ("referral", "prompts", "name", "revision", "device", "keep_sent")


@dataclass(frozen=True)
class Row:
    """A model with everything that decides its answers.

    Attributes:
        name: in the table; each row has its own.
        kind: `"finecaption"`, `"transformers"` (any image-text-to-text model of the library), `"endpoint"` (OpenAI's
            interface) or `"describer"` (a model with code of its own).
        model: a folder or Hub id; of an endpoint, the name that it has there; `None` with `"finecaption"` is the
            checkpoint that comes with the package.
        referral: how regions are pointed out.
        revision: branch, tag or commit of a Hub repository.
        prompts: what other models are asked; FineCaption has its own.
        options: of the kind's describer; docs/comparators.md lists them.
        cites: the model of `PAPER_TABLE_2` whose published figures stand beside this row's.
    """

    name: str
    kind: str
    model: str | None
    referral: Referral
    revision: str | None = None
    prompts: PromptTemplates = field(default_factory=PromptTemplates)
    options: Mapping[str, Any] = field(default_factory=dict)
    cites: str | None = None

    @property
    def slug(self) -> str:
        """The name of the row's folder."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.casefold()).strip("-")

    @property
    def cited(self) -> CitedRow | None:
        """The published figures that stand beside this row's."""
        return None if self.cites is None else cited_row(self.cites)

    @property
    def settings(self) -> dict[str, Any]:
        """The row as JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "model": self.model,
            "revision": self.revision,
            "referral": self.referral.settings,
            "prompts": None if self.kind == "finecaption" else self.prompts.settings,
            "options": json.loads(json.dumps(dict(self.options), default=dict)),
        }

    def build(self, *, device: str | torch.device | None = None) -> Describer:
        """Load the row's model.

        Args:
            device: where it goes; `None` means CUDA where there is one, else the CPU. Endpoints have no use for it.

        Raises:
            ValueError, OSError: If it cannot be loaded, or referred to as the row says.
        """
        options = dict(self.options)
        return load_describer(
            self.model,
            describer=options.pop("describer") if self.kind == "describer" else self.kind,
            name=self.name,
            referral=self.referral,
            prompts=None if self.kind == "finecaption" else self.prompts,
            revision=self.revision,
            device=None if self.kind == "endpoint" else device,
            **options,
        )


def read_table(source: str | os.PathLike[str]) -> list[Row]:
    """The rows of a table.

    Args:
        source: a YAML file with `rows: [...]`, or the name of a table of the package, such as `"table2"`.

    Raises:
        EvaluationError: If there is none, it is no YAML, or a row cannot be meant.
    """
    import yaml

    path, packaged = Path(source), TABLES / f"{os.fspath(source)}.yaml"
    if not path.is_file():
        if not packaged.is_file():
            known = sorted(item.stem for item in TABLES.glob("*.yaml"))
            raise EvaluationError(no_such("file or packaged table", str(source), known))
        path = packaged
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path} is no YAML: {error}") from error
    if (
        not isinstance(values, dict)
        or set(values) != {"rows"}
        or not isinstance(values["rows"], list)
        or not values["rows"]
    ):
        raise EvaluationError(
            f"{path} needs rows, and nothing beside them: rows: [{{name: .., kind: .., model: ..}}, ..]."
        )
    rows: list[Row] = []
    for number, value in enumerate(values["rows"], start=1):
        label = value.get("name") if isinstance(value, dict) else None
        try:
            row = _read_row(value)
            if not row.slug or row.slug in {other.slug for other in rows}:
                raise EvaluationError("its name is no other row's, and has a letter or digit. Change it.")
        except ValueError as error:
            raise EvaluationError(f"{path}, row {number}{f' ({label})' if label else ''}: {error}") from error
        rows.append(row)
    return rows


def _read_row(value: Any) -> Row:
    if not isinstance(value, dict):
        raise EvaluationError("a row is a mapping, such as {name: .., kind: .., model: ..}.")
    value = {"model": None, **value, "options": value.get("options") or {}}
    check_options(value, options_of(Row), "a row")
    kind, options = value.get("kind"), value["options"]
    if kind not in KINDS:
        raise EvaluationError(no_such("kind", kind, KINDS))
    ours = kind == "finecaption"
    if kind == "describer" and (own := REGION_MODELS.get(str(options.get("describer")).partition("@")[0])):
        value = {"referral": own.family.referral, **value}
    for name in ("name",) if ours else ("name", "model", "referral"):
        if value.get(name) is None:
            hint = " Say how the region is pointed out, such as box_drawn or box_text." if name == "referral" else ""
            raise EvaluationError(f"{name} is missing.{hint}")
    referral = read_referral(value.get("referral", "mask"))
    if ours and referral.kind not in WITH_MASK:
        raise EvaluationError(f"FineCaption is referred to by 'mask' or 'filled_box', not by {referral.kind!r}.")
    if ours and value.get("prompts") is not None:
        raise EvaluationError("FineCaption's prompts come with its checkpoint. Take prompts out of this row.")
    if kind in ("transformers", "endpoint") and referral.kind in WITH_MASK:
        raise EvaluationError(f"a model of kind {kind!r} takes no mask, so its referral cannot be {referral.kind!r}.")
    if kind == "endpoint" and "api_key" in options:
        raise EvaluationError("the key is read from the environment variable that the option api_key_env names.")
    check_options(options, _options_of(kind), f"the kind {kind!r}")
    if options.get("box_format", "pixels") not in BOX_FORMATS:
        raise EvaluationError(no_such("box_format", options["box_format"], BOX_FORMATS))
    known = "|".join(REGION_MODELS)
    if kind == "describer" and not re.fullmatch(rf"({known}|[\w.]+:\w+)(@.+)?", options.get("describer", "")):
        raise EvaluationError(
            f"{no_such('describer', options.get('describer'), REGION_MODELS)} One of your own is module:function."
        )
    row = Row(**{**value, "referral": referral, "prompts": read_templates(value.get("prompts"))})
    if row.cites is not None:
        cited_row(row.cites)
    return row


def _options_of(kind: str) -> dict[str, tuple[type, ...]]:
    """The options of a row; what it has keys of its own for is none."""
    known = options_of_kind("describe_anything" if kind == "describer" else kind)
    options = {name: kinds for name, kinds in known.items() if name not in _BY_THE_ROW}
    return {"describer": (str,), **options} if kind == "describer" else options


# --- running ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowResult:
    """What became of a row.

    Attributes:
        row: the row.
        predictions: its file, which holds what was answered so far; `None` if there is none yet.
        error: why the row has not come to its end; `None` if it has.
        served: names that an endpoint gave the model in its answers, with their numbers.
    """

    row: Row
    predictions: Path | None
    error: str | None = None
    served: Mapping[str, int] = field(default_factory=dict)


def run_table(
    rows: Sequence[Row],
    dataset: Iterable[Example],
    output: str | os.PathLike[str],
    *,
    data_name: str = "",
    limit: int | None = None,
    device: str | torch.device | None = None,
    retry_failed: bool = False,
    build: Callable[..., Describer] = Row.build,
    tell: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> list[RowResult]:
    """Ask every row's model, one after the other; a row that fails leaves the others alone.

    Args:
        rows: as `read_table` gives them.
        dataset: as for `run_predictions`.
        output: folder with a folder for each row. Called again, finished rows are not loaded, others are gone on with.
        data_name, limit, retry_failed, tell: as for `run_predictions`.
        device: where models go.
        build: what makes a describer of a row.
        **options: further ones of `run_predictions`.

    Returns:
        One result per row, in their order.
    """
    data = describe_data(dataset, data_name, limit)
    results = []
    for number, row in enumerate(rows, start=1):
        folder = Path(output) / row.slug
        folder.mkdir(parents=True, exist_ok=True)
        predictions, note = folder / PREDICTIONS, folder / ROW
        wanted = {"row": row.settings, "data": data["fingerprint"]}
        label = f"Row {number} of {len(rows)}, {row.name}"
        before = _read_note(note)
        finished = not differences(before, wanted) and predictions.is_file()
        if finished and not (retry_failed and _has_errors(predictions)):
            tell(f"{label}: finished before.")
            results.append(RowResult(row, predictions, served=before.get("served", {})))
            continue
        tell(f"{label}: asked.")
        describer: Any = None
        error: str | None = None
        served: dict[str, int] = {}
        try:
            describer = build(row, device=device)
            run_predictions(
                describer,
                dataset,
                predictions,
                data_name=data_name,
                limit=limit,
                retry_failed=retry_failed,
                tell=tell,
                **options,
            )
            served = dict(getattr(describer, "served", {}))
            write_json(note, {**wanted, "served": served})
        except Exception as caught:
            error = describe_error(caught)
            tell(f"{label}: {error}")
        # One model at a time: the next may need all of the memory.
        del describer
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        results.append(RowResult(row, predictions if predictions.is_file() else None, error, served))
    return results


def _has_errors(predictions: Path) -> bool:
    return any(prediction.error is not None for prediction in read_predictions(predictions)[1])


def _read_note(path: Path) -> dict[str, Any]:
    try:
        return read_manifest(path)
    except (OSError, ResumeError):  # the row is asked, and finds its predictions
        return {}
