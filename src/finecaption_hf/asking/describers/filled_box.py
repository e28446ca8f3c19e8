"""What a mask is worth: a model with a mask input, given boxes."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from ...masks_finecaption import RegionMask
from ..describer import Describer
from .referral import Referral


class FilledBoxDescriber:
    """A model that takes masks, given the filled box of each in its place: what the mask is worth.

    Args:
        describer: of the model.
    """

    def __init__(self, describer: Describer) -> None:
        self._describer = describer
        self.name = describer.name
        self.independent = describer.independent
        self.questions = describer.questions
        self.settings: Mapping[str, Any] = {**describer.settings, "referral": Referral("filled_box").settings}
        self.source = getattr(describer, "source", None)  # whose card speaks of this too
        self.refusal, self.stream = describer.refusal, describer.stream

    def prepare(self, picture: Image.Image, regions: Sequence[RegionMask]) -> Any:
        """See `Describer`."""
        size = (picture.height, picture.width)
        boxes = [it if it.is_whole else RegionMask({"box_xyxy": it.box_xyxy}, *size) for it in regions]
        return self._describer.prepare(picture, boxes)
