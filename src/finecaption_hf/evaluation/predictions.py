"""What a model said about the regions of a dataset, on disk.

A file of predictions is JSONL: a header, then one line per branch (a question about a region). Lines are appended as
they come, so a run that was ended at any point goes on where it was. docs/evaluation.md has the format.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..resuming import EntryFile, ResumeError, check_same, repair

FORMAT = 1
_MARK = "finecaption_predictions"


@dataclass(frozen=True)
class Prediction:
    """What was said to one question about one region; or, without text and error, what is to be asked.

    Attributes:
        key: stable name of the branch in its dataset: `image|region_index|branch`.
        image: its name in the dataset.
        region_index: counts the regions of that image in the dataset.
        question: what was asked; empty as long as it is asked by its name.
        references: what should have been said: at least one text.
        prediction: what was said; `None` if there is an error.
        name: the task or attribute, as the dataset has it.
        image_id, region_id: as the dataset has them.
        area: pixels of the region.
        image_size: (H, W), pixels.
        box_xyxy: bounding box of the region, whole pixels, right and lower edge exclusive.
        log_prob: of the prediction under its model, natural logarithm.
        error: `{"type": .., "message": ..}`: why nothing was said.
    """

    key: str
    image: str
    region_index: int
    question: str
    references: tuple[str, ...]
    prediction: str | None = None
    name: str | None = None
    image_id: str | int | None = None
    region_id: str | int | None = None
    area: int | None = None
    image_size: tuple[int, int] | None = None
    box_xyxy: tuple[int, int, int, int] | None = None
    log_prob: float | None = None
    error: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.prediction is not None and self.error is not None:
            raise ValueError(f"{self.key}: a prediction needs either a text or an error, and not both.")
        if not self.references:
            raise ValueError(f"{self.key}: there is no reference. Give at least one.")
        if self.log_prob is not None and not math.isfinite(self.log_prob):
            raise ValueError(f"{self.key}: 'log_prob' is {self.log_prob}; a finite number is needed.")

    @property
    def area_share(self) -> float | None:
        """The region's share of its image, 0 to 1."""
        if self.area is None or self.image_size is None:
            return None
        return self.area / (self.image_size[0] * self.image_size[1])

    def to_json(self) -> dict[str, Any]:
        """The line as JSON; `prediction` is always there, other keys only where they have a value.

        Raises:
            ValueError: If nothing was said, nor is there a reason.
        """
        self._check_line()
        values = {name: getattr(self, name) for name in _FIELDS}
        return {name: value for name, value in values.items() if value is not None or name in ("name", "prediction")}

    @classmethod
    def from_json(cls, row: Any) -> "Prediction":
        """Read a line. Keys that are not of the format are left alone.

        Raises:
            ValueError: If the row is none of a prediction.
        """
        if not isinstance(row, dict):
            raise ValueError(f"{type(row).__name__} arrived, an object is needed.")
        values: dict[str, Any] = {}
        for name, (kinds, needed) in _FIELDS.items():
            value = row.get(name)
            if value is None and not needed:
                continue
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise ValueError(f"{name!r} is {_shown(value)}; {kinds[0].__name__} is needed.")
            values[name] = value
        for name, length, kind in (("references", None, str), ("image_size", 2, int), ("box_xyxy", 4, int)):
            entries = values.get(name, ())
            wrong_length = name in values and length not in (None, len(entries))
            if wrong_length or not all(isinstance(entry, kind) for entry in entries):
                raise ValueError(f"{name!r} is {_shown(entries)}, which is not what belongs there.")
            if name in values:
                values[name] = tuple(entries)
        if "error" in values:
            values["error"] = {part: str(values["error"].get(part, "")) for part in ("type", "message")}
        made = cls(**values)
        made._check_line()
        return made

    def _check_line(self) -> None:
        if self.prediction is None and self.error is None:
            raise ValueError(f"{self.key}: a prediction needs either a text or an error, and not both.")


_FIELDS: dict[str, tuple[tuple[type, ...], bool]] = {
    "key": ((str,), True),
    "image": ((str,), True),
    "image_id": ((str, int), False),
    "region_index": ((int,), True),
    "region_id": ((str, int), False),
    "name": ((str,), False),
    "question": ((str,), True),
    "prediction": ((str,), False),
    "references": ((list, tuple), True),
    "area": ((int,), False),
    "image_size": ((list, tuple), False),
    "box_xyxy": ((list, tuple), False),
    "log_prob": ((float, int), False),
    "error": ((dict,), False),
}


@dataclass(frozen=True)
class Header:
    """The first line of a file of predictions.

    Attributes:
        model: its name, for the report.
        settings: what decides the texts, see `Describer`.
        data: which data: `name`, `fingerprint`, and `branches`, the number of lines that a finished file has.
        made_with: what is worth knowing, but may differ when a run is resumed: versions, device, command.
    """

    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    made_with: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            _MARK: FORMAT,
            "model": self.model,
            "settings": dict(self.settings),
            "data": dict(self.data),
            "made_with": dict(self.made_with),
        }

    @classmethod
    def from_json(cls, row: Any) -> "Header":
        """Read the first line.

        Raises:
            ValueError: If it is no header, or of another version of the format.
        """
        if not isinstance(row, dict) or _MARK not in row:
            raise ValueError(f"it does not begin with a header that has the key {_MARK!r}")
        if row[_MARK] != FORMAT:
            raise ValueError(f"it is of format {_shown(row[_MARK])}, this version reads {FORMAT}")
        parts = {name: row.get(name, {}) for name in ("settings", "data", "made_with")}
        if not isinstance(row.get("model"), str) or not all(isinstance(part, dict) for part in parts.values()):
            raise ValueError("its header needs a model (text), and settings, data and made_with as objects")
        return cls(row["model"], **parts)


def read_predictions(path: str | os.PathLike[str]) -> tuple[Header, list[Prediction]]:
    """Read a file of predictions.

    Returns:
        The header, and the predictions in the order of the file.

    Raises:
        OSError: If there is no such file.
        ResumeError: If it is damaged; the message names the line.
    """
    header: Header | None = None
    predictions: list[Prediction] = []
    lines: dict[str, int] = {}
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = _parse(line)
                if header is None:
                    header = Header.from_json(row)
                    continue
                prediction = Prediction.from_json(row)
            except ValueError as error:
                torn = "" if line.endswith(b"\n") else " It was not written to its end: the same run mends it."
                raise ResumeError(f"{path}:{number} cannot be used: {error}.{torn}") from error
            if prediction.key in lines:
                raise ResumeError(
                    f"{path}:{number} has the key {prediction.key!r} of line {lines[prediction.key]} again. Take one "
                    "of them out."
                )
            lines[prediction.key] = number
            predictions.append(prediction)
    if header is None:
        raise ResumeError(f"{path} is empty: it has no header, so there are no predictions in it.")
    return header, predictions


class PredictionWriter:
    """Appends predictions to a file, which no other process may write to meanwhile. A context manager.

    A file that is there is gone on with if it has the same settings and data. A last line that was not written to its
    end is taken away.

    Args:
        path: the file; its folder has to exist.
        header: what the predictions belong to.
        overwrite: forget what is there.
        retry_failed: forget the lines that hold an error.
        tell: gets a line about what was repaired.

    Attributes:
        done (`set[str]`): keys of the predictions that are there.

    Raises:
        ResumeError: If the file belongs to another run, is damaged, or is in use.
        OSError: If it cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        header: Header,
        *,
        overwrite: bool = False,
        retry_failed: bool = False,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.path = Path(os.path.realpath(path))
        self.done: set[str] = set()
        self._file = EntryFile(self.path)
        try:
            if overwrite:
                os.truncate(self.path, 0)
            repair(self.path, tell, "that prediction is made again")
            if self.path.stat().st_size == 0:
                self._file.append(header.to_json())
                return
            written, predictions = read_predictions(self.path)
            check_same(
                written.to_json(),
                {"settings": header.settings, "data": header.data},
                self.path,
                "Give the same as then, another output, or --overwrite to start anew.",
            )
            self.done = {entry.key for entry in predictions if not (retry_failed and entry.error)}
            if len(self.done) < len(predictions):
                tell(f"{len(predictions) - len(self.done)} predictions failed before; they are tried again.")
                self._replace(written, [entry for entry in predictions if entry.key in self.done])
        except BaseException:
            self.close()
            raise

    def write(self, prediction: Prediction) -> None:
        """Append a line, all of it or nothing.

        Raises:
            UnfinishedError: If it cannot be written, as on a full disk.
        """
        self._file.append(prediction.to_json())
        self.done.add(prediction.key)

    def sort(self, keys: Iterable[str]) -> None:
        """Bring the lines in the order of the keys, which are all of those in the file."""
        header, predictions = read_predictions(self.path)
        places = {key: place for place, key in enumerate(keys)}
        ordered = sorted(predictions, key=lambda prediction: places[prediction.key])
        if ordered != predictions:
            self._replace(header, ordered)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "PredictionWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _replace(self, header: Header, predictions: Iterable[Prediction]) -> None:
        self._file.replace([header.to_json(), *(prediction.to_json() for prediction in predictions)])


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the line is no JSON ({error})") from error


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
