"""What trains in a stage, how fast and on what: declarations, without torch.

The three stages are those of FineCaption (arXiv 2411.15411); a stage of your own has the same form:

>>> Stage(name="lora", trains=("model.adapter.*",), learning_rate=1e-4, peft={"r": 16, "lora_alpha": 32})
"""

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ..prompts_finecaption import FineCaptionError, no_such

LANGUAGE_MODEL_LINEAR = r"model\.language_model\..*\.(q|k|v|o|gate|up|down)_proj"
"""Regular expression of the linear layers of a llama-like language model, for LoRA. A list of bare names such as
`q_proj` would meet the CLIP tower's layers too."""

_TRAINING = {"num_train_epochs": 1, "lr_scheduler_type": "cosine", "warmup_steps": 0.03, "bf16": True}


class StageError(FineCaptionError, ValueError):
    """A stage that cannot be meant, or does not fit the model or the trainer."""


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Args:
        name: letters, digits, `-`, `_` and `.`; names the stage's folder and is written into its checkpoints.
        trains: patterns (`fnmatch`, where `*` also matches dots) of parameter names of
            `FineCaptionForConditionalGeneration`; what none of them matches is frozen. May be empty with `peft`.
        learning_rate: peak learning rate.
        data: weight of each data set by name: relative number of draws. Empty: all that are given, each sample once.
        whole_image_share: share of the samples with a global caption that use the whole image as region
            (Alpha-CLIP trains with 0.1).
        global_batch_size: items (examples) per optimizer step, over all processes.
        activation_checkpointing: recompute activations in the backward pass instead of storing them.
        num_tensors: how many parameters the patterns must match; `None` where that depends on the model.
        peft: fields of `peft.LoraConfig`, such as `{"r": 16}`; adapters are trained beside `trains` and merged into the
            weights of every checkpoint. `target_modules` is a regular expression over module names; by default it is
            the linear layers of the language model.
        training: further `transformers.TrainingArguments`, over those that all stages start from: 1 epoch, cosine,
            3 % warm-up, bf16.

    Raises:
        StageError: If a value cannot be meant.
    """

    name: str
    trains: tuple[str, ...]
    learning_rate: float
    data: Mapping[str, float] = field(default_factory=dict)
    whole_image_share: float = 0.1
    global_batch_size: int = 128
    activation_checkpointing: bool = True
    num_tensors: int | None = None
    peft: Mapping[str, Any] | None = None
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.trains, str):
            raise StageError(f"trains is the text {self.trains!r}. Give a list of patterns, such as [{self.trains!r}].")
        if not isinstance(self.name, str) or not re.fullmatch(r"[\w-][\w.-]*", self.name):
            raise self._error(f"name is {self.name!r}; use letters, digits, '-', '_' and '.': it names a folder.")
        if not self.trains and self.peft is None:
            raise self._error('trains is empty, so nothing would train. Give patterns such as "model.adapter.*".')
        for pattern in self.trains:
            if not isinstance(pattern, str) or not pattern:
                raise self._error(f"trains holds {pattern!r}; patterns are texts such as 'model.adapter.*'.")
        if not _is_number(self.learning_rate) or self.learning_rate <= 0:
            raise self._error(f"learning_rate is {self.learning_rate!r}; it must be a number above 0.")
        if not _is_number(self.whole_image_share) or not 0 <= self.whole_image_share <= 1:
            raise self._error(f"whole_image_share is {self.whole_image_share!r}; it must be between 0 and 1.")
        if not isinstance(self.global_batch_size, int) or self.global_batch_size < 1:
            raise self._error(f"global_batch_size is {self.global_batch_size!r}; it must be a whole number above 0.")
        if not isinstance(self.data, Mapping):
            raise self._error(f"data is {self.data!r}; give a weight for each name, such as {{scenes: 1}}.")
        for name, weight in self.data.items():
            if not _is_number(weight) or weight <= 0:
                raise self._error(f"data gives {name!r} the weight {weight!r}; weights are numbers above 0.")
        if self.peft is not None and not isinstance(self.peft.get("target_modules", ""), str):
            raise self._error(
                f"peft.target_modules is {self.peft['target_modules']!r}. Give one regular expression over whole "
                f"module names, such as {LANGUAGE_MODEL_LINEAR!r}: bare names would meet the CLIP tower's layers too."
            )
        if "learning_rate" in self.training:
            raise self._error("training holds learning_rate, which is a field of the stage itself.")

    def _error(self, reason: str) -> StageError:
        return StageError(f"Stage {self.name!r}: {reason}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Stage":
        """A stage from plain values, such as an entry of a recipe.

        With `stage: 2`, or the name of one of `STAGES`, the fields that are left out are that stage's, but for `data`,
        whose names are the recipe's; its `training` and the given one are merged.
        """
        given = dict(values)
        base: dict[str, Any] = {}
        if "stage" in given:
            base = find_stage(given.pop("stage")).to_dict()
            base.pop("data")
        known = {item.name for item in fields(cls)}
        unknown = sorted(given.keys() - known)
        if unknown:
            raise StageError(
                f"Stage: {no_such('field', unknown[0], sorted(known))} Arguments of "
                "transformers.TrainingArguments go under training."
            )
        # A count belongs to the patterns that it was made for.
        if "trains" in given or "peft" in given:
            base.pop("num_tensors", None)
        given["training"] = {**base.pop("training", {}), **(given.get("training") or {})}
        merged = {**base, **given}
        missing = [name for name in ("name", "trains", "learning_rate") if name not in merged]
        if missing and not (missing == ["trains"] and merged.get("peft") is not None):
            raise StageError(
                f"A stage lacks {', '.join(missing)}. Give it, or take a known stage with stage: 1, 2 or 3."
            )
        trains = merged.get("trains") or ()
        merged["trains"] = trains if isinstance(trains, str) else tuple(trains)
        for name in ("learning_rate", "whole_image_share"):
            if isinstance(merged.get(name), str):  # YAML reads 1e-3, without a dot, as text
                try:
                    merged[name] = float(merged[name])
                except ValueError:
                    raise StageError(
                        f"Stage {merged.get('name')!r}: {name} is {merged[name]!r}, which is no number."
                    ) from None
        return cls(**merged)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as for JSON or YAML; `Stage.from_dict` takes them back."""
        return {
            **asdict(self),
            "trains": list(self.trains),
            "data": dict(self.data),
            "peft": None if self.peft is None else dict(self.peft),
            "training": dict(self.training),
        }

    def training_arguments(self, common: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Arguments of `transformers.TrainingArguments` for the stage: all but batch sizes and folders.

        Args:
            common: those of all stages of a recipe; the stage's own `training` wins.
        """
        return {**_TRAINING, **(common or {}), "learning_rate": self.learning_rate, **self.training}

    def select(self, names: Iterable[str]) -> list[str]:
        """Which of the parameter names train, in their order.

        Raises:
            StageError: If a pattern matches none, or the number is not `num_tensors`.
        """
        names = list(names)
        chosen: set[str] = set()
        for pattern in self.trains:
            matched = fnmatch.filter(names, pattern)
            if not matched:
                raise self._error(
                    f"the pattern {pattern!r} matches none of the model's {len(names)} parameters, which lie under "
                    f"{', '.join(sorted({_part(name) for name in names}))}."
                )
            chosen.update(matched)
        if self.num_tensors is not None and len(chosen) != self.num_tensors:
            raise self._error(
                f"its patterns match {len(chosen)} parameters, but it declares {self.num_tensors}: "
                f"{', '.join(sorted(chosen)[:8])}{' ...' if len(chosen) > 8 else ''}. Correct trains or num_tensors."
            )
        return [name for name in names if name in chosen]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _part(name: str) -> str:
    """The model's part that a parameter belongs to: `model.adapter`, `lm_head`."""
    return ".".join(name.split(".")[: 2 if name.startswith("model.") else 1])


_REGIONS = {"compositioncap": 1, "grand": 1, "refcoco": 1}

STAGES: dict[int, Stage] = {
    1: Stage(
        name="adapter",
        trains=("model.adapter.*",),
        learning_rate=1e-3,
        data={"llava": 1},
        global_batch_size=256,
    ),
    2: Stage(
        name="alpha_convolution",
        trains=("model.vision_tower.embeddings.alpha_embedding.*",),
        learning_rate=1e-4,
        data=_REGIONS,
        global_batch_size=256,
        num_tensors=1,
    ),
    3: Stage(
        name="everything",
        trains=("*",),
        learning_rate=2e-5,
        data=_REGIONS,
        global_batch_size=128,
    ),
}
"""The paper's stages; learning rates and batch sizes follow EAGLE, whose towers the model has. The paper names the
data sets but not their shares; here those of a stage have equal ones."""


def with_given_data(stage: Stage, names: Iterable[str]) -> Stage:
    """A stage whose data sets are given.

    Of the mix of one of `STAGES`, what is not given is left out, and where nothing of it is given, all that is given
    counts. A mix of one's own stays as it is.
    """
    if all(stage.data != known.data for known in STAGES.values()):
        return stage
    given = set(names)
    return replace(stage, data={name: weight for name, weight in stage.data.items() if name in given})


def find_stage(stage: int | str) -> Stage:
    """One of `STAGES` by number or name.

    Raises:
        StageError: If there is none.
    """
    for number, known in STAGES.items():
        if str(stage) in (str(number), known.name):
            return known
    names = [text for number, known in STAGES.items() for text in (str(number), known.name)]
    raise StageError(f"{no_such('stage', str(stage), names)} Stages of your own go into a recipe.")
