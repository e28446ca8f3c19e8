"""Texts back into annotations: a new COCO file, or a copy of the file that the regions came from."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from ...data.annotations import write_coco
from ...data.errors import DataError
from ...data.images import MAX_PIXELS
from ...data.regions import RegionInputs
from ...masks_finecaption import as_mask
from .base import Output, Record, Records, well_formed


class Coco(Output):
    """COCO instances with captions, made of the records alone. A region that is no mask has no place in them."""

    name = "coco"
    suffixes = (".json",)

    def write(self, records: Records, target: Path) -> None:
        """See `Output`."""
        write_coco((record for record in records() if _has_place(record)), target)


def _has_place(record: Record) -> bool:
    """Of a region that failed, the picture may be unknown, and the mask wrong, or larger than any picture."""
    if "error" not in record or record["image"] is None:
        return "error" not in record
    try:
        height, width = record["mask"]["size"]
        if height * width <= MAX_PIXELS:
            as_mask(record["mask"], height, width)
            return True
    except (KeyError, TypeError, ValueError):  # MaskError is one
        pass
    return False


class SameKind(Output):
    """The annotation file or folder once more, with the answers where its format has texts.

    Texts of regions without an answer stay as they were.
    """

    def __init__(self, inputs: RegionInputs) -> None:
        super().__init__(inputs)
        if inputs.annotations is None:
            raise ValueError(
                f"{inputs.name} was read as {inputs.title}; texts are put back into files of annotation tools only. "
                "Give --output-format jsonl, csv, parquet, datasets, coco or html."
            )
        self.annotations = inputs.annotations
        self.name = self.annotations.format
        self.is_folder = self.annotations.path.is_dir()
        if not self.annotations.takes_texts:
            self.annotations.write_back(iter(()), Path())  # its own error

    def write(self, records: Records, target: Path) -> None:
        """See `Output`."""
        self.annotations.write_back(self._answers(records), target)
        if not target.exists():
            raise DataError(self.inputs.name, f"{self.annotations.title} gave no file with the texts.")

    def _answers(self, records: Records) -> Iterator[Mapping[str, str] | None]:
        for record in records():
            if record["image"] is None:
                continue  # of a row that could not be read, which has no regions
            answers = record.get("answers") or {}
            yield {name: well_formed(text) for name, text in answers.items()} or None
