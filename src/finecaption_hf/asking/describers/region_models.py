"""Models whose code comes from elsewhere, such as Describe Anything: a small class each makes them describers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ...prompts_finecaption import BranchUpdate
from .families import Family
from .referral import Referral
from .referring import Job, ReferringDescriber, describe_error
from .templates import PromptTemplates


class RegionModel(Protocol):
    """What the code of a model has to offer.

    Attributes:
        settings: all that decides the answers, as JSON, for reports.
        takes_mask: whether `answer` wants masks; without, the referral has to be in the picture or in the text.
    """

    @property
    def settings(self) -> Mapping[str, Any]: ...

    @property
    def takes_mask(self) -> bool: ...

    def answer(self, image: Image.Image, mask: np.ndarray | None, prompt: str) -> str:
        """The answer to one prompt.

        Args:
            image: the picture, RGB, (H, W), in which the referral may have drawn.
            mask: bool (H, W), True inside the region; all True for the whole image; `None` where no mask is wanted.
            prompt: the text, with the referral's sentence.
        """
        ...


class RegionModelDescriber(ReferringDescriber):
    """Answers of a `RegionModel`, one at a time.

    Args:
        model: with its code.
        referral: how the region is pointed out.
        templates: what is asked.
        name: for reports.
        box_format: a name of `BOX_FORMATS`, for boxes in the text.

    Raises:
        DescriberError: If the model takes masks and the referral gives none, or the other way round.
    """

    decodes = ()  # its code is told when it is loaded

    def __init__(
        self,
        model: RegionModel,
        referral: Referral,
        templates: PromptTemplates | None = None,
        *,
        name: str,
        box_format: str = "pixels",
    ) -> None:
        self.takes_mask = model.takes_mask
        super().__init__(name, referral, templates, box_format)
        self._model = model
        self.settings = {**self.settings, **model.settings}

    def _answer(self, jobs: Iterator[Job | BranchUpdate]) -> Iterator[BranchUpdate]:
        for job in jobs:
            if isinstance(job, BranchUpdate):
                yield job
                continue
            try:
                image, mask = job.marked.image, job.marked.mask
                if mask is None and self._model.takes_mask:
                    mask = np.ones((image.height, image.width), dtype=bool)
                text = self._model.answer(image, mask, job.text)
                if not isinstance(text, str):
                    raise TypeError(f"the model answered with {type(text).__name__}, text is needed")
                yield job.answered(text)
            except Exception as error:
                yield job.failed(describe_error(error))


@dataclass(frozen=True)
class OwnCode:
    """A model whose code this package has an adapter for.

    Attributes:
        family: how it is asked where nobody says it.
        box_format: a name of `BOX_FORMATS`: how it writes boxes.
    """

    family: Family
    box_format: str = "pixels"


_MASK = Family(Referral("mask"))
_BOX = Family(Referral("box_text"))

REGION_MODELS: dict[str, OwnCode] = {
    "describe_anything": OwnCode(_MASK),
    "gar": OwnCode(_MASK),
    "pam": OwnCode(Family(Referral("filled_box"))),
    # The form of a question in its training data, Osprey-724K, with its misspelling.
    "osprey": OwnCode(
        Family(Referral("mask", sentence="Ther are 1 part region in the picture: region1<mask><pos>.")),
    ),
    "omg_llava": OwnCode(Family(Referral("mask", sentence="The region in the picture is marked by region1 <mark>."))),
    "glamm": OwnCode(Family(Referral("filled_box", sentence="The region in the picture is marked by <bbox>."))),
    "ferret": OwnCode(
        Family(Referral("mask", sentence="The marked region is the area {box} <region_fea>.")), box_format="ferret"
    ),
    "shikra": OwnCode(_BOX, box_format="shikra"),
    "vila": OwnCode(_BOX, box_format="llava_square"),
    "llava_hr": OwnCode(_BOX, box_format="llava_square"),
}
"""A file of `region_adapters`, whose `load` makes a `RegionModel` of a model's name and further arguments -> the
referral that the model was trained with, and its way of writing boxes."""
