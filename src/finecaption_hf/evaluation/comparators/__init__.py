"""Other models on the same data: referral, describers for transformers, endpoints and adapters, and tables of them.

>>> from finecaption_hf.evaluation.comparators import read_table, run_table
>>> run_table(read_table("table2"), dataset, "table2")
"""

from .adapters import AdapterDescriber, DescribeAnything, RegionModel
from .endpoint import EndpointDescriber, EndpointError
from .models import FilledBoxDescriber, TransformersDescriber
from .paper import PAPER_TABLE_2, CitedRow, cited_row
from .prompts import Prompts
from .referral import Referral
from .summary import report_table
from .table import Row, RowResult, read_table, run_table

__all__ = [
    "AdapterDescriber",
    "CitedRow",
    "DescribeAnything",
    "EndpointDescriber",
    "EndpointError",
    "FilledBoxDescriber",
    "PAPER_TABLE_2",
    "Prompts",
    "Referral",
    "RegionModel",
    "Row",
    "RowResult",
    "TransformersDescriber",
    "cited_row",
    "read_table",
    "report_table",
    "run_table",
]
