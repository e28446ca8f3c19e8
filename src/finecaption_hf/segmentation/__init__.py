"""Points and boxes -> region masks, through any SAM-family model of transformers, or without one by colour alone.

>>> from finecaption_hf.segmentation import open_segmenter
>>> segmenter = open_segmenter("facebook/sam2.1-hiera-tiny")
>>> picture = segmenter.encode(image)  # the only run of the image encoder
>>> best, *others = picture.masks(points=[(120, 80)])
>>> regions = picture.everything()
"""

from .clicks import Clicks, SegmentationError
from .opening import open_segmenter
from .pointing import find_regions, read_regions
from .segmenter import Candidate, EncodedImage, Segmenter
from .shared import SharedSegmenter, open_segmenter_beside, open_segmenter_for, open_shared_segmenter

__all__ = [
    "Candidate",
    "Clicks",
    "EncodedImage",
    "SegmentationError",
    "Segmenter",
    "SharedSegmenter",
    "find_regions",
    "open_segmenter",
    "open_segmenter_beside",
    "open_segmenter_for",
    "open_shared_segmenter",
    "read_regions",
]
