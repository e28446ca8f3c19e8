"""Figures that others have published. They are cited beside what is measured here, and never mixed with it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ...prompts_finecaption import no_such


@dataclass(frozen=True)
class CitedRow:
    """A row of a published table.

    Attributes:
        model: as the table calls it.
        source: where it stands.
        data: on which data it was measured.
        metrics: the figures, x100, under the names of `RegionCaptionMetrics`.
        note: what the source leaves open.
    """

    model: str
    source: str
    data: str
    metrics: Mapping[str, float]
    note: str = ""

    def is_about(self, data: str) -> bool:
        """Whether data of that name, as `--data-name` or a path gives it, are those of the table."""
        letters = re.sub(r"[^a-z]", "", data.lower())
        return re.sub(r"[^a-z]", "", self.data.partition(",")[0].lower()) in letters


METRIC_NAMES = ("rouge_l", "bleu_4", "meteor", "cider", "bertscore")
"""The columns of the paper's Table 2, as `RegionCaptionMetrics` calls them."""

PAPER_TABLE_2: tuple[CitedRow, ...] = (
    CitedRow(
        model="FineCaption-8B",
        source="arXiv 2411.15411, Table 2",
        data="CompositionCap, test",
        metrics={"rouge_l": 41.05, "bleu_4": 14.46, "meteor": 22.01, "cider": 127.95, "bertscore": 80.97},
        note="The paper does not say whether its BERTScore is raw or rescaled, nor how answers were decoded.",
    ),
)
"""The rows of the paper's table that this package cites. Rows of other models are left to the paper itself."""


def cited_row(model: str) -> CitedRow:
    """The cited row of a model, by the name that the paper gives it.

    Raises:
        ValueError: If none is cited.
    """
    for row in PAPER_TABLE_2:
        if row.model.casefold() == model.casefold():
            return row
    raise ValueError(no_such("cited model", model, [row.model for row in PAPER_TABLE_2]))
