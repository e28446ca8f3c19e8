"""Models whose code comes from elsewhere, such as Describe Anything: a small class each makes them comparable."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from ..predictions import DescribeRequest, Description
from .models import describe_error
from .prompts import Prompts
from .referral import BOX_FORMATS, WITH_MASK, Referral, ReferralError, write_box


class RegionModel(Protocol):
    """What an adapter offers.

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


class AdapterDescriber:
    """Answers of a `RegionModel`, one at a time.

    Args:
        model: the adapter.
        referral: how the region is pointed out.
        prompts: what is asked.
        name: for reports.
        box_format: a name of `BOX_FORMATS`, for boxes in the text.

    Raises:
        ReferralError: If the model takes masks and the referral gives none, or the other way round.
    """

    independent = True

    def __init__(
        self,
        model: RegionModel,
        referral: Referral,
        prompts: Prompts | None = None,
        *,
        name: str,
        box_format: str = "pixels",
    ) -> None:
        if (referral.kind in WITH_MASK) != model.takes_mask:
            takes, wanted = (
                ("masks", "'mask'") if model.takes_mask else ("no masks", "one in the picture or in the text")
            )
            raise ReferralError(f"{name} takes {takes}, but the referral is {referral.kind!r}. Give {wanted}.")
        if box_format not in BOX_FORMATS or BOX_FORMATS[box_format].units == "seen":
            raise ReferralError(f"The box format {box_format!r} cannot be used with an adapter. Give 'pixels', say.")
        self.name = name
        self._model, self._referral, self._prompts = model, referral, prompts or Prompts()
        self._box_format = box_format
        self.settings: Mapping[str, Any] = {
            "model": name,
            "referral": referral.settings,
            "box_format": box_format,
            "prompts": self._prompts.settings,
            **model.settings,
        }

    def describe(self, requests: Sequence[DescribeRequest]) -> Iterator[Description]:
        """See `Describer`. What fails for a question is its error."""
        for request in requests:
            pairs = [self._answer(request, *asked) for asked in zip(request.questions, request.names, strict=True)]
            yield Description(tuple(text for text, _ in pairs), errors=tuple(error for _, error in pairs))

    def _answer(self, request: DescribeRequest, question: str, name: str | None) -> tuple[str | None, str | None]:
        try:
            marked = self._referral.mark(request.image, request.mask)
            size = (marked.image.height, marked.image.width)
            box = "" if marked.box_xyxy is None else write_box(marked.box_xyxy, size, self._box_format)
            sentence = self._referral.text(marked, box)
            prompt = self._prompts.write(question, name, referral=sentence, box=box, whole=marked.box_xyxy is None)
            mask = np.ones(size, dtype=bool) if marked.mask is None and self._model.takes_mask else marked.mask
            text = self._model.answer(marked.image, mask, prompt)
            if not isinstance(text, str):
                raise TypeError(f"the adapter answered with {type(text).__name__}, text is needed")
            return text.strip(), None
        except Exception as error:
            return None, describe_error(error)


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
            "adapter": "describe_anything",
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
