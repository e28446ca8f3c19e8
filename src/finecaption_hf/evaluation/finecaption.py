"""A FineCaption checkpoint as a `Describer`: through the engine, each image, region and prefix computed once."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..asking_finecaption import derived_seed
from ..engine_finecaption import BranchAnswer, BranchEngine, BranchRequest
from ..prompts_finecaption import PromptEncoder
from ..resuming import model_fingerprint
from .predictions import DescribeRequest, Description


class FineCaptionDescriber:
    """Answers through `BranchEngine`.

    Args:
        model, processor: as `asking.load` returns them.
        name: of the model, for the report.
        max_new_tokens: the longest answer; `None` means what the generation configuration says, else 64.
        temperature, top_p: 0 takes the likeliest token; above 0, tokens are drawn.
        seed: of the draws, together with the region's key and the question.
        max_batch_tokens: how much is held at once, see `BranchEngine`.

    Raises:
        ValueError: If a setting makes no sense.
    """

    independent = False  # a batch changes how sums are rounded, which decides where two tokens are as likely

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        name: str = "FineCaption",
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        max_batch_tokens: int | None = None,
    ) -> None:
        self.name = name
        self.questions: Mapping[str, str] = processor.questions
        self._decoding = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
        self._seed = seed
        self._request("region", "")  # the settings are checked by it
        self._engine = BranchEngine(model, processor, max_batch_tokens=max_batch_tokens)
        try:
            self._prompts: PromptEncoder | None = PromptEncoder(processor)
        except ValueError:  # the engine said so, and answers in its plain way
            self._prompts = None
        self.settings: Mapping[str, Any] = {
            "model": name,
            "fingerprint": model_fingerprint(model, processor),
            "dtype": str(model.dtype).removeprefix("torch."),
            "referral": "mask",
            "decoding": {**self._decoding, **({"seed": seed} if temperature > 0 else {})},
            "max_batch_tokens": max_batch_tokens,
        }

    def describe(self, requests: Sequence[DescribeRequest]) -> Iterator[Description]:
        """See `Describer`; all requests are one batch."""
        reasons = [[self._reason_against(question) for question in request.questions] for request in requests]
        asked = [number for number, of_region in enumerate(reasons) if None in of_region]
        answers: dict[int, list[BranchAnswer]] = {}
        if asked:
            images: dict[int, int] = {}
            pictures: list[Image.Image] = []
            masks: list[np.ndarray] = []
            indices: list[int] = []
            branches: list[list[BranchRequest]] = []
            for number in asked:
                request = requests[number]
                if id(request.image) not in images:
                    images[id(request.image)] = len(pictures)
                    pictures.append(request.image)
                indices.append(images[id(request.image)])
                whole = np.ones((request.image.height, request.image.width), dtype=bool)
                masks.append(whole if request.mask is None else request.mask)
                branches.append(
                    [
                        self._request(question, request.key)
                        for question, reason in zip(request.questions, reasons[number])
                        if reason is None
                    ]
                )
            vision = self._engine.processor.image_processor(
                pictures, masks=masks, image_indices=indices, return_tensors="pt"
            )
            answers = dict(zip(asked, self._engine.answer(vision, branches, log_probs=True), strict=True))
        for number, of_region in enumerate(reasons):
            found = iter(answers.get(number, ()))
            told = [next(found) if reason is None else None for reason in of_region]
            yield Description(
                tuple(None if answer is None else answer.text for answer in told),
                tuple(None if answer is None else sum(answer.log_probs or ()) for answer in told),
                tuple(of_region),
            )

    def _request(self, question: str, key: str) -> BranchRequest:
        return BranchRequest(question, **self._decoding, seed=derived_seed(self._seed, key, question))  # type: ignore[arg-type]

    def _reason_against(self, question: str) -> str | None:
        if self._prompts is None:
            return None
        try:
            self._prompts.question_ids(question)
        except ValueError as error:
            return str(error)
        return None
