"""Models whose code comes from elsewhere, such as Describe Anything: a small class each makes them comparable."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from ...prompts_finecaption import BranchUpdate
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


class DescribeAnything:
    """NVIDIA's Describe Anything Model (arXiv 2504.16072), through the interface that its code publishes.

    It answers through `get_description(image_pil, mask_pil, query, streaming=, temperature=, top_p=, num_beams=,
    max_new_tokens=)`, with the mask as a picture of 0 and 255 and a query that begins with `<image>`. Its published
    examples draw at temperature 0.2; here it is greedy unless told otherwise, as all models of a table are.

    Args:
        model: what `init_dam` of the published model returns, or anything with that `get_description`.
        max_new_tokens: the longest answer.
        temperature, top_p: 0 takes the likeliest token.
        settings: more for reports, such as the revision.
    """

    takes_mask = True

    def __init__(
        self,
        model: Any,
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 0.5,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._model = model
        self._options = {"temperature": temperature, "top_p": top_p, "num_beams": 1, "max_new_tokens": max_new_tokens}
        self.settings: Mapping[str, Any] = {
            "describer": "describe_anything",
            "decoding": self._options,
            **(settings or {}),
        }

    @classmethod
    def from_pretrained(
        cls,
        model: str = "nvidia/DAM-3B-Self-Contained",
        *,
        trust_remote_code: bool = False,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: str = "float16",
        conv_mode: str = "v1",
        prompt_mode: str = "full+focal_crop",
        **options: Any,
    ) -> "DescribeAnything":
        """Load the published model, whose code lies beside its weights.

        Raises:
            ValueError: If `trust_remote_code` was not given.
        """
        if not trust_remote_code:
            raise ValueError(
                f"{model} runs code that lies beside its weights. Look at that code, then give trust_remote_code: true "
                "and a revision, so that it stays the code that you looked at."
            )
        from transformers import AutoModel

        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = AutoModel.from_pretrained(
            model, trust_remote_code=True, revision=revision, dtype=getattr(torch, dtype)
        ).to(device)
        modes = {"conv_mode": conv_mode, "prompt_mode": prompt_mode}
        settings = {"checkpoint": model, "revision": revision, "dtype": dtype, **modes}
        return cls(loaded.init_dam(**modes), settings=settings, **options)

    def answer(self, image: Image.Image, mask: np.ndarray | None, prompt: str) -> str:
        """See `RegionModel`."""
        if mask is None:
            raise ValueError("Describe Anything needs a mask, also of the whole image.")
        picture = Image.fromarray(mask.astype(np.uint8) * 255)
        answer = self._model.get_description(image, picture, f"<image>\n{prompt}", streaming=False, **self._options)
        return answer if isinstance(answer, str) else "".join(answer)


REGION_MODELS: dict[str, Callable[..., RegionModel]] = {"describe_anything": DescribeAnything.from_pretrained}
"""Name -> what makes a `RegionModel` of a model's name, with revision, device and further arguments by name."""
