"""Tables of models on the same data, and what others have published.

>>> from finecaption_hf.evaluation.comparators import read_table, run_table
>>> run_table(read_table("table2"), dataset, "table2")
"""

from .paper import PAPER_TABLE_2, CitedRow, cited_row
from .summary import report_table
from .table import Row, RowResult, read_table, run_table

__all__ = [
    "CitedRow",
    "PAPER_TABLE_2",
    "Row",
    "RowResult",
    "cited_row",
    "read_table",
    "report_table",
    "run_table",
]
