"""Strict accounting: every tensor of every part is used or ignored for a stated reason, every tensor of the model that
a part owes is there, and all shapes agree."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from .errors import AssemblyError
from .key_maps import TIED, KeyMap, Use
from .sources import Source
from .tensors import TensorInfo

_SHOWN = 12  # names per kind of error


@dataclass
class Part:
    """A part with the way of each of its tensors.

    Args:
        option (`str`): the option that named it, such as `"clip"`.
        source (`Source`): where it comes from.
        tensors (`dict[str, TensorInfo]`): what its files hold.
        owes (`tuple[str, ...]`): prefixes of the model's tensors that it must give.
        exempt (`tuple[str, ...]`): of those, the ones that it cannot have.
        uses (`dict[str, list[Use]]`): name in the file -> tensors of the model.
        rows (`dict[str, Use]`): name in the file -> a row of a tensor of the model, over what `uses` gives there.
        ignored (`dict[str, list[str]]`): reason -> names in the file.
        unexpected (`list[str]`): names that are neither.
    """

    option: str
    source: Source
    tensors: dict[str, TensorInfo]
    owes: tuple[str, ...]
    exempt: tuple[str, ...] = ()
    uses: dict[str, list[Use]] = field(default_factory=dict)
    rows: dict[str, Use] = field(default_factory=dict)
    ignored: dict[str, list[str]] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)

    def owed(self, shapes: dict[str, tuple[int, ...]]) -> set[str]:
        return {name for name in shapes if name.startswith(self.owes) and name not in self.exempt}

    def by_file(self) -> dict[Path, dict[str, list[Use]]]:
        """File -> its tensors that are used, so that each file is opened once."""
        files: dict[Path, dict[str, list[Use]]] = defaultdict(dict)
        for key, uses in self.uses.items():
            files[self.tensors[key].file][key] = uses
        return dict(files)


def route(part: Part, key_map: KeyMap) -> Part:
    """Note the way of every tensor."""
    for key in part.tensors:
        way = key_map(key)
        if isinstance(way, str):
            part.ignored.setdefault(way, []).append(key)
        elif way and way[0].row is not None:
            part.rows[key] = way[0]
        elif way:
            part.uses[key] = way
        else:
            part.unexpected.append(key)
    return part


def check(parts: list[Part], shapes: dict[str, tuple[int, ...]], grown: dict[str, int]) -> None:
    """Compare the parts with the model.

    Args:
        parts (`list[Part]`): with their tensors routed.
        shapes (`dict[str, tuple[int, ...]]`): all tensors of the model.
        grown (`dict[str, int]`): tensors that get more rows than their part has -> rows in the part.

    Raises:
        AssemblyError: With all that is missing, unexpected, given twice or wrongly shaped, of all parts.
    """
    problems = [line for part in parts for line in _problems(part, shapes, grown)]
    if problems:
        raise AssemblyError("The parts do not fit.\n" + "\n".join(problems))


def _problems(part: Part, shapes: dict[str, tuple[int, ...]], grown: dict[str, int]) -> list[str]:
    unexpected = list(part.unexpected)
    givers: dict[str, list[str]] = defaultdict(list)
    wrong, unreadable = [], []
    owed = part.owed(shapes)
    for key, uses in part.uses.items():
        if any(use.target not in owed for use in uses):
            unexpected.append(key)
            continue
        info = part.tensors[key]
        if info.dtype is None:
            unreadable.append(key)
        first = shapes[uses[0].target]
        # Some models have single numbers as tensors, which have no first axis.
        needed = (grown.get(uses[0].target, first[0]) * len(uses), *first[1:]) if first else ()
        if info.shape != needed:
            wrong.append(f"{key} is {list(info.shape)}, needed is {list(needed)}")
        for use in uses:
            givers[use.target].append(key)
    for key, row in part.rows.items():
        if part.tensors[key].shape != shapes[row.target][1:]:
            wrong.append(f"{key} is {list(part.tensors[key].shape)}, needed is {list(shapes[row.target][1:])}")
    twice = [f"{target} by {' and '.join(keys)}" for target, keys in givers.items() if len(keys) > 1]
    missing = sorted(f"{name} {list(shapes[name])}" for name in owed - givers.keys())
    where = f"--{part.option.replace('_', '-')} {part.source.name}"
    kinds = {
        "lacks": missing,
        "has unexpected tensors": [f"{key} {list(part.tensors[key].shape)}" for key in unexpected],
        "has tensors of another shape": wrong,
        "gives tensors twice": twice,
        "has tensors that are not of float16, bfloat16, float32 or float64": unreadable,
    }
    return [f"{where} {kind}: {_listed(names)}." for kind, names in kinds.items() if names]


def _listed(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return "; ".join(names[:_SHOWN]) + (f"; and {rest} more" if rest > 0 else "")


def tied_head(part: Part) -> str | None:
    """Name in the file of an output layer that must repeat the embeddings, where there is one."""
    keys = part.ignored.get(TIED, [])
    return keys[0] if keys else None
