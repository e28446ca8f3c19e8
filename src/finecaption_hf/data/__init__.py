"""Data for training and evaluation: one record type, readers for each dataset's files, pictures from archives.

>>> from finecaption_hf.data import open_dataset
>>> dataset = open_dataset("finetune_refcoco_train_with_mask.json", images="train2014.zip", on_error="skip")
>>> record = dataset[0]
>>> record.load(), record.regions[0].branches[0].answer
"""

from .dataset import RecordDataset, open_dataset
from .images import ImageStore, open_images
from .mixing import MixedDataset
from .readers import FORMATS, Keys, RecordReader, read_records
from .records import Branch, DataError, Record, Region

__all__ = [
    "FORMATS",
    "Branch",
    "DataError",
    "ImageStore",
    "Keys",
    "MixedDataset",
    "Record",
    "RecordDataset",
    "RecordReader",
    "Region",
    "open_dataset",
    "open_images",
    "read_records",
]
