"""Data for training and evaluation: one example type, readers for each dataset's files, pictures from archives.

>>> from finecaption_hf.data import open_dataset
>>> dataset = open_dataset("finetune_refcoco_train_with_mask.json", images="train2014.zip", on_error="skip")
>>> example = dataset[0]
>>> example.load(), example.regions[0].branches[0].answer
"""

from .annotations import ANNOTATION_FORMATS, ReadOptions
from .dataset import ExampleDataset, open_dataset
from .examples import Branch, DataError, Example, Region
from .images import ImageStore, open_images
from .mixing import MixedDataset
from .objects import as_regions
from .readers import FORMATS, ExampleReader, Keys, NotDescribedError, read_examples
from .regions import RegionInputs, open_regions

__all__ = [
    "ANNOTATION_FORMATS",
    "FORMATS",
    "Branch",
    "DataError",
    "ImageStore",
    "Keys",
    "NotDescribedError",
    "MixedDataset",
    "Example",
    "ExampleDataset",
    "ExampleReader",
    "ReadOptions",
    "Region",
    "RegionInputs",
    "as_regions",
    "open_dataset",
    "open_images",
    "open_regions",
    "read_examples",
]
