"""A FineCaption checkpoint in vLLM as a describer, for whole data sets."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image
from transformers.utils import cached_file

from .. import install_hint
from ..asking.loading import load_processor, read_config
from ..masks_finecaption import RegionMask
from ..prompts_finecaption import (
    BranchAnswer,
    BranchRequest,
    BranchUpdate,
    PromptEncoder,
    Question,
    find_question,
    nearest,
)
from ..resuming import files_fingerprint
from .vllm import check_version, register, vllm_version

_IF_THERE: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
_ENDS = {"stop": "end", "length": "length"}


class VllmDescriber:
    """Answers of a checkpoint in vLLM, in this process: see `Describer`.

    Args:
        model: a folder or the id of a Hub repository.
        name: for reports; `None` means `model`.
        max_new_tokens: the longest answer where a request says nothing; `None` means the checkpoint's, else 64.
        **options: of `vllm.LLM`, such as `max_model_len` and `tensor_parallel_size`. The weights are as they were saved
            unless `dtype` says otherwise.

    Attributes:
        llm: the `vllm.LLM`.

    Raises:
        ImportError: If vLLM is not installed, or is none of the tested releases.
        ValueError: If vLLM cannot serve the checkpoint, or has no such option.
    """

    independent = False  # a batch changes how sums are rounded

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        name: str | None = None,
        max_new_tokens: int | None = None,
        **options: Any,
    ) -> None:
        try:
            import vllm  # noqa: F401
        except ImportError as error:
            raise ImportError(f"vLLM is not installed. {install_hint('vllm')}.") from error
        check_version()
        register()
        self.name = name or os.fspath(model)
        self.source: tuple[str, str | None] = os.fspath(model), options.get("revision")  # for `note_of`
        config, path = read_config(model), cached_file(os.fspath(model), "config.json", **_IF_THERE)
        if path is None:
            raise ValueError(f"{model} is an adapter. Save what load('{model}') gives, which is merged, and give that.")
        if config.get("model_type") != "finecaption":
            raise ValueError(
                f"{model} holds a model of type {config.get('model_type')!r}; this asks FineCaption alone in vLLM. "
                "Serve others by vllm serve, and ask them by their address (base_url)."
            )
        processor = load_processor(model)
        self._prompts = PromptEncoder(processor)
        self._token, self._length = processor.image_token_id, processor.image_seq_length
        self.questions: Mapping[str, str] = processor.questions
        # vLLM's own choice would be half precision.
        options.setdefault("dtype", config.get("dtype") or config.get("torch_dtype") or "auto")
        of_model = self._start(os.fspath(model), options)
        self._context = of_model.max_model_len
        defaults = of_model.get_diff_sampling_param()  # of the checkpoint's generation configuration
        self.max_new_tokens: int = max_new_tokens or defaults.get("max_tokens") or 64
        self._penalty = defaults.get("repetition_penalty") or 1.0
        self.settings = {
            "fingerprint": files_fingerprint(Path(path).parent),
            "engine": f"vllm {vllm_version()}",
            "dtype": str(of_model.dtype).removeprefix("torch."),
            "referral": "mask",
            "decoding": {"max_new_tokens": self.max_new_tokens},
            "options": options,
        }

    def _start(self, model: str, options: dict[str, Any]) -> Any:
        """Start what answers; gives vLLM's `ModelConfig`."""
        from vllm import LLM

        check_options(options)
        self.llm = LLM(model, **options)
        return self.llm.model_config

    def prepare(self, picture: Image.Image, regions: Sequence[RegionMask]) -> list[dict[str, Any]]:
        """See `Describer`."""
        return [{"image": picture, "mask": None if region.is_whole else region.pixels} for region in regions]

    def refusal(self, question: Question) -> str | None:
        """See `Describer`."""
        try:
            self._question_ids(question)
        except ValueError as error:
            return str(error)
        return None

    def stream(
        self,
        prepared: Sequence[Any],
        requests: Sequence[Sequence[BranchRequest]],
        *,
        log_probs: bool = False,
        partial: bool = False,
    ) -> Iterator[BranchUpdate]:
        """See `Describer`. Answers come whole."""
        # With one placeholder for a region, which vLLM makes as many of as there are image tokens.
        before = [*self._prompts.prefix_ids[: -self._length], self._token]
        prompts: list[dict[str, Any]] = []
        parameters: list[dict[str, Any]] = []
        places = []
        for region, (item, of_region) in enumerate(zip(chain.from_iterable(prepared), requests, strict=True)):
            for branch, request in enumerate(of_region):
                ids = self._question_ids(request.question)
                longest = request.max_new_tokens or self.max_new_tokens
                room = self._context - len(self._prompts.prefix_ids)
                if len(ids) + longest > room:
                    error = (
                        f"The question takes {len(ids)} tokens and its answer up to {longest}, but there is room for "
                        f"{room} of both. Shorten the question, or lower max_new_tokens."
                    )
                    yield BranchUpdate(region, branch, BranchAnswer("", finish_reason="error", error=error))
                    continue
                prompts.append({"prompt_token_ids": [*before, *ids], "multi_modal_data": {"image": item}})
                parameters.append(
                    {
                        "max_tokens": longest,
                        "temperature": request.temperature,
                        "top_p": request.top_p,
                        "repetition_penalty": request.repetition_penalty or self._penalty,
                        "stop": list(request.stop_strings),
                        "seed": request.seed,
                        "logprobs": 0 if log_probs else None,
                    }
                )
                places.append((region, branch))
        for place, answer in zip(places, self._answers(prompts, parameters), strict=True):
            yield BranchUpdate(*place, answer)

    def _answers(
        self, prompts: Sequence[dict[str, Any]], parameters: Sequence[dict[str, Any]]
    ) -> Iterable[BranchAnswer]:
        """What vLLM answers to its prompts, each with the parameters of its sampling."""
        from vllm import SamplingParams

        sampling = [SamplingParams(**each) for each in parameters]
        return (_answer(found.outputs[0]) for found in self.llm.generate(prompts, sampling, use_tqdm=False))

    def _question_ids(self, question: Question) -> tuple[int, ...]:
        if isinstance(question, str):
            question = find_question(question, self.questions) or question
        return self._prompts.question_ids(question)


def check_options(options: Iterable[str], others: Iterable[str] = ()) -> None:
    """
    Raises:
        ValueError: If one of them is neither vLLM's nor one of `others`.
    """
    from vllm import EngineArgs

    known = sorted({*(field.name for field in dataclasses.fields(EngineArgs)), *others})
    for option in options:
        if option not in known:
            near = nearest(option, known)
            meant = f" Did you mean {near!r}?" if near else ""
            raise ValueError(f"There is no engine option {option!r}.{meant} They are those of vllm.LLM.")


def _answer(output: Any) -> BranchAnswer:
    tokens, steps = tuple(output.token_ids), output.logprobs
    found = None if steps is None else tuple(step[token].logprob for token, step in zip(tokens, steps))
    reason = "stop_string" if isinstance(output.stop_reason, str) else _ENDS[output.finish_reason]
    return BranchAnswer(output.text.strip(), tokens, found, reason)
