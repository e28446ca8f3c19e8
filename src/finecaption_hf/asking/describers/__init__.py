"""Models beside FineCaption that answer questions about regions: of transformers, behind endpoints, with own code.

>>> from finecaption_hf.asking.describers import Referral, TransformersDescriber
>>> describer = TransformersDescriber.from_pretrained("HuggingFaceTB/SmolVLM-Instruct", Referral("contour_drawn"))
"""

from .at_once import AtOnceDescriber
from .boxes import BOX_FORMATS, BoxFormat
from .endpoint import EndpointDescriber, EndpointError
from .filled_box import FilledBoxDescriber
from .pixels import PixelsDescriber
from .referral import Referral
from .region_adapters.describe_anything import DescribeAnything
from .region_models import RegionModel, RegionModelDescriber
from .templates import PromptTemplates
from .transformers_models import TransformersDescriber

__all__ = [
    "BOX_FORMATS",
    "AtOnceDescriber",
    "BoxFormat",
    "DescribeAnything",
    "EndpointDescriber",
    "EndpointError",
    "FilledBoxDescriber",
    "PixelsDescriber",
    "PromptTemplates",
    "Referral",
    "RegionModel",
    "RegionModelDescriber",
    "TransformersDescriber",
]
