"""Other models on the same data: of transformers, behind endpoints or with code of their own, and tables of them.

>>> from finecaption_hf.evaluation.comparators import read_table, run_table
>>> run_table(read_table("table2"), dataset, "table2")
"""

from .endpoint import EndpointDescriber, EndpointError
from .models import FilledBoxDescriber, TransformersDescriber
from .paper import PAPER_TABLE_2, CitedRow, cited_row
from .referral import Referral
from .region_models import DescribeAnything, RegionModel, RegionModelDescriber
from .summary import report_table
from .table import Row, RowResult, read_table, run_table
from .templates import PromptTemplates

__all__ = [
    "CitedRow",
    "DescribeAnything",
    "EndpointDescriber",
    "EndpointError",
    "FilledBoxDescriber",
    "PAPER_TABLE_2",
    "PromptTemplates",
    "Referral",
    "RegionModel",
    "RegionModelDescriber",
    "Row",
    "RowResult",
    "TransformersDescriber",
    "cited_row",
    "read_table",
    "report_table",
    "run_table",
]
