"""Captions for whole datasets: images read ahead of the model, a record per region, and work that survives a stop.

>>> from finecaption_hf.asking import load_describer
>>> from finecaption_hf.data import open_regions
>>> from finecaption_hf.describing import DescribeOptions, describe_dataset
>>> inputs = open_regions("regions.jsonl")
>>> result = describe_dataset(load_describer, inputs, "captions.jsonl", ["color", "dense"], DescribeOptions(seed=1))
"""

from ..resuming import ResumeError, UnfinishedError
from .dataset import DescribeOptions, describe_dataset
from .entries import Result, check_output
from .processes import Processes, ProcessLostError

__all__ = [
    "DescribeOptions",
    "ProcessLostError",
    "Processes",
    "Result",
    "ResumeError",
    "UnfinishedError",
    "check_output",
    "describe_dataset",
]
