"""The names that things have in the files of a dataset: one mapping, which a user can change."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ...prompts_finecaption import no_such
from ..examples import DataError, as_reference, region_of

Names = tuple[str, ...]


@dataclass(frozen=True)
class Keys:
    """Which key holds what. Each field is the names under which it may stand; the first that is there counts.

    Attributes:
        image: file name of the image.
        id: id of the example.
        global_caption: caption of the whole image.
        regions: list of regions, or an object of them by id.
        region_id: id of a region.
        mask: its region reference (or, in an example without a list of regions, one or a list of them), where it has
            another name than the package's keys of a region, which always count.
        caption: short caption of a region; becomes a branch named `caption_name`.
        dense_caption: detailed caption of a region; becomes a branch named "dense".
        attributes: attributes of a region: an object of texts (or lists of texts) by name, or a list of objects.
        attribute_name, attribute_text: keys of such an object.
        conversations: list of turns.
        descriptions: list with one detailed description for each region.
        question, answer: of a row that asks one question.
        own: further keys, which are known not to be a region whatever they hold.
        caption_name: not a key but the name of the branch that `caption` becomes.
    """

    image: Names = ("image",)
    id: Names = ("id",)
    global_caption: Names = ("global_caption",)
    regions: Names = ("regions",)
    region_id: Names = ("id",)
    mask: Names = ()
    caption: Names = ("caption",)
    dense_caption: Names = ("dense_caption",)
    attributes: Names = ("attributes",)
    attribute_name: Names = ("name",)
    attribute_text: Names = ("text",)
    conversations: Names = ("conversations",)
    descriptions: Names = ("description",)
    question: Names = ("question",)
    answer: Names = ("answer",)
    own: Names = ()
    caption_name: str = "region"

    def changed(self, changes: "Mapping[str, Any] | str | os.PathLike[str] | None") -> "Keys":
        """These keys with some of them changed.

        Args:
            changes: field -> name, or list of names; or a YAML or JSON file with such a mapping.

        Raises:
            DataError: If the file cannot be read, or a field is unknown or no text.
        """
        if changes is None:
            return self
        where = "mapping"
        if isinstance(changes, (str, os.PathLike)):
            where = os.fspath(changes)
            changes = _read_mapping(Path(changes))
        known = {field.name for field in fields(self)}
        result: dict[str, Any] = {}
        for name, value in changes.items():
            if name not in known:
                raise DataError(where, no_such("field", name, sorted(known)))
            names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, (list, tuple)) else ()
            if not names or not all(isinstance(each, str) and each for each in names):
                raise DataError(where, f"{name} needs a key, or a list of keys.")
            result[name] = names[0] if name == "caption_name" else names
        return replace(self, **result)

    def get(self, row: Mapping[str, Any], field: str) -> Any:
        """What stands in `row` under one of the names of `field`; `None` where there is nothing."""
        names: Names = getattr(self, field)
        return next((row[name] for name in names if row.get(name) is not None), None)

    def region(self, row: dict[str, Any]) -> Any:
        """The region reference of a row; `None` is the whole image.

        Raises:
            DataError: See `region_of`.
        """
        given = self.get(row, "mask")
        return region_of(row, self._known)[1] if given is None else as_reference(given, self.mask[0])

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(
            name for field in fields(self) if field.name != "caption_name" for name in getattr(self, field.name)
        )


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".json":
            found = json.loads(text)
        else:
            import yaml  # type: ignore[import-untyped]

            try:
                found = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise ValueError(error) from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(str(path), f"the mapping cannot be read ({error}). Give YAML or JSON: field: key.") from error
    if not isinstance(found, dict):
        raise DataError(str(path), "the mapping is no object. Give YAML or JSON: field: key.")
    return found


COMPOSITIONCAP = Keys(
    image=("image",),
    id=("image_id",),
    global_caption=("global_caption",),
    regions=("entities",),
    region_id=("entity_id",),
    caption=("caption",),
    dense_caption=("dense_caption",),
    attributes=("attributes",),
    attribute_name=("name",),
    attribute_text=("description",),
)
"""CompositionCap. The key names of the published file are not known here: these are a guess to be changed."""

OSPREY = Keys(
    image=("image", "file_name"),
    regions=("annotation",),
    caption_name="dense",
)
"""Osprey-724K (`file_name`, `annotation`, `description`) and DAM (`image`, `mask_rle`)."""

DATASETS = Keys(image=("image", "image_path", "file_name"))
"""Columns of a `datasets.Dataset`."""
