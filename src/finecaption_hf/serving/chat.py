"""Requests as they come over the wire, and what is said to them.

What a request holds is honoured, or refused by its name: no field is passed over in silence.
"""

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..pipeline_finecaption import AskedRegion, requests_about
from ..prompts_finecaption import BranchAnswer, Question, resolve_questions
from .limits import Limits, RequestError

# What stands in front of the model is bounded: its thread tokenizes, and looks for stop strings after each token.
_Text = Annotated[str, Field(max_length=4_000)]
_Stop = Annotated[str, Field(max_length=200)]
_Turns = Field(max_length=64)
_Tokens = Annotated[int, Field(ge=1)]
_REASONS = {"end": "stop", "stop_string": "stop", "length": "length"}


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Decoding(_Wire):
    """How answers are made. What is absent or null is as in `finecaption caption`: greedy, the model's own length."""

    temperature: float | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=16)] | None = None
    seed: int | None = None
    max_tokens: _Tokens | None = None

    def decoding(self, limits: Limits, longest: int | None) -> dict[str, Any]:
        """For `BranchRequest`; `longest` is the describer's own `max_new_tokens`.

        Raises:
            RequestError: If an answer may be longer than the server allows.
        """
        if self.max_tokens is not None and self.max_tokens > limits.new_tokens:
            raise RequestError(
                f"max_tokens is {self.max_tokens}; this server gives at most {limits.new_tokens}.", param="max_tokens"
            )
        stops = [self.stop] if isinstance(self.stop, str) else self.stop
        given = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "repetition_penalty": self.repetition_penalty,
            "stop_strings": None if stops is None else tuple(stops),
            "seed": self.seed,
            "max_new_tokens": self.max_tokens or min(longest or limits.new_tokens, limits.new_tokens),
        }
        return {name: value for name, value in given.items() if value is not None}


class _TextPart(_Wire):
    type: Literal["text"]
    text: _Text


class _Address(_Wire):
    url: str
    detail: Literal["auto"] | None = None


class ImagePart(_Wire):
    """A picture, and perhaps its region, see regions.py."""

    type: Literal["image_url"]
    image_url: _Address
    mask: Any = None


class _Message(_Wire):
    role: Literal["user", "assistant"]
    content: _Text | list[Annotated[_TextPart | ImagePart, Field(discriminator="type")]]

    @property
    def parts(self) -> "Sequence[_TextPart | ImagePart]":
        return [_TextPart(type="text", text=self.content)] if isinstance(self.content, str) else self.content


class _StreamOptions(_Wire):
    include_usage: bool = False


class _Masks(_Wire):
    masks: list[Any]


class ChatRequest(_Decoding):
    """OpenAI's request for a chat completion, about one region of one picture."""

    model: str
    messages: Annotated[list[_Message], _Turns]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_completion_tokens: _Tokens | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    # What clients send though it changes nothing, and vLLM's place for regions.
    top_logprobs: Literal[0] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    user: str | None = None
    mm_processor_kwargs: _Masks | None = None

    def model_post_init(self, _: Any) -> None:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise RequestError("max_tokens and max_completion_tokens are the same. Send one.", param="max_tokens")
        self.max_tokens = self.max_tokens or self.max_completion_tokens

    def picture(self) -> tuple[str, Any]:
        """The picture's address, and its region, `None` where there is none beside it.

        Raises:
            RequestError: If there is not one picture, in the first message, with at most one region.
        """
        parts = [(number, part) for number, message in enumerate(self.messages) for part in message.parts]
        pictures = [(number, part) for number, part in parts if isinstance(part, ImagePart)]
        if [number for number, _ in pictures] != [0]:
            raise RequestError(
                f"{len(pictures)} pictures arrived, in the messages {[number for number, _ in pictures]}. Send one, in "
                "the first message; /v1/regions takes several regions of it.",
                param="messages",
            )
        ((_, part),) = pictures
        regions = [] if self.mm_processor_kwargs is None else self.mm_processor_kwargs.masks
        if self.mm_processor_kwargs is not None and (len(regions) != 1 or part.mask is not None):
            raise RequestError(
                f"{len(regions)} masks arrived for one picture{' that has a mask of its own' if part.mask else ''}. "
                "Send one region.",
                param="mm_processor_kwargs",
            )
        return part.image_url.url, regions[0] if regions else part.mask

    def question(self, known: Mapping[str, str]) -> tuple[str, Question]:
        """The name and text of what is asked; a chat of several turns is one question.

        Raises:
            RequestError, ValueError: If it is none.
        """
        turns = [
            {
                "role": message.role,
                "content": " ".join(part.text for part in message.parts if isinstance(part, _TextPart)),
            }
            for message in self.messages
        ]
        is_one = len(turns) == 1 and turns[0]["role"] == "user"
        asked = resolve_questions(turns[0]["content"] if is_one else turns, known)
        if len(asked) != 1:
            raise RequestError("Several questions arrived. /v1/regions takes them at once.", param="messages")
        return next(iter(asked.items()))

    def asked(self, known: Mapping[str, str], limits: Limits, longest: int | None) -> AskedRegion:
        """The question once for each choice. The first is answered as `ask` would, others with seeds of their own.

        Raises:
            RequestError, ValueError: If it cannot be asked.
        """
        if (choices := self.n or 1) > limits.answers:
            raise RequestError(f"n is {choices}; at most {limits.answers} are given.", 413, "too_many_answers", "n")
        question, decoding = self.question(known), self.decoding(limits, longest)
        return AskedRegion(
            [
                request
                for choice in range(choices)
                for request in requests_about([question], (0, choice), (0, choice or None), **decoding)
            ]
        )


class RegionsRequest(_Decoding):
    """One picture, R regions, any number of questions.

    Args:
        image: a data URL, or an address that the server opens.
        regions: see regions.py; absent, it is the picture's alpha channel, else the whole picture.
        questions: one or several names, own words, or chats, as `finecaption_hf.asking.ask` takes them.
        log_probs: whether records hold the log-probability of each token.
        stream: whether each record comes as soon as it is there.
    """

    image: str
    regions: list[Any] | None = None
    questions: _Text | list[_Text | Annotated[list[dict[str, _Text]], _Turns]] = "region"
    model: str | None = None
    log_probs: bool = False
    stream: bool = False

    def asked(
        self, num_regions: int, known: Mapping[str, str], limits: Limits, longest: int | None
    ) -> list[AskedRegion]:
        """The questions about each region.

        Raises:
            RequestError, ValueError: If they cannot be asked.
        """
        found: dict[str, Question] = {}
        for question in [self.questions] if isinstance(self.questions, str) else self.questions:
            found |= resolve_questions(question, known)
        if not found:
            raise RequestError("No question arrived. Send one, such as 'region', or none of the field.")
        if (total := num_regions * len(found)) > limits.answers:
            raise RequestError(
                f"{num_regions} regions with {len(found)} questions are {total} answers, more than {limits.answers}. "
                "Send several requests.",
                413,
                "too_many_answers",
            )
        decoding = self.decoding(limits, longest)
        return [
            AskedRegion(requests_about(found.items(), (0, number), (0, None), **decoding), {"region_index": number})
            for number in range(num_regions)
        ]


class Completion:
    """The answers to a `ChatRequest`, whole or in pieces.

    Args:
        request: what was asked.
        region: with the answers.
        tokenizer: for the texts of tokens with their log-probabilities.
    """

    def __init__(self, request: ChatRequest, region: AskedRegion, tokenizer: Any = None) -> None:
        self._request, self._region, self._tokenizer = request, region, tokenizer
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": request.model}
        self._sent = [(0, 0)] * len(region.requests)  # characters and tokens of each choice
        self._ended: set[int] = set()

    def whole(self, prompt_tokens: int | None) -> dict[str, Any]:
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": self._log_probs(answer, 0),
                "finish_reason": _REASONS[answer.finish_reason or ""],
            }
            for number, answer in sorted(self._region.answers.items())
        ]
        return {
            **self._head,
            "object": "chat.completion",
            "choices": choices,
            "usage": self._usage(prompt_tokens),
        }

    def begin(self) -> list[dict[str, Any]]:
        """A first piece of each choice, without text."""
        return [
            self._piece(number, {"role": "assistant", "content": ""}) for number in range(len(self._region.requests))
        ]

    def pieces(self) -> Iterator[dict[str, Any]]:
        """What there is of the answers that was not given before.

        Raises:
            RequestError: If a question was not answered.
        """
        for number, answer in sorted(self._region.answers.items()):
            if number in self._ended:
                continue
            raise_error(answer)
            characters, tokens = self._sent[number]
            is_last = answer.finish_reason is not None
            text = answer.text if is_last else _settled(answer.text, self._region.requests[number].stop_strings)
            if len(text) > characters or (is_last and len(answer.token_ids) > tokens):
                self._sent[number] = max(len(text), characters), len(answer.token_ids)
                yield self._piece(number, {"content": text[characters:]}, self._log_probs(answer, tokens))
            if is_last:
                self._ended.add(number)
                yield self._piece(number, {}, finish_reason=_REASONS[answer.finish_reason or ""])

    def last(self, prompt_tokens: int | None) -> dict[str, Any] | None:
        """The piece with the usage, where it was asked for."""
        options = self._request.stream_options
        if options is None or not options.include_usage:
            return None
        return {
            **self._head,
            "object": "chat.completion.chunk",
            "choices": [],
            "usage": self._usage(prompt_tokens),
        }

    def _piece(
        self,
        number: int,
        delta: dict[str, Any],
        log_probs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        choice = {"index": number, "delta": delta, "logprobs": log_probs, "finish_reason": finish_reason}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def _log_probs(self, answer: BranchAnswer, start: int) -> dict[str, Any] | None:
        if not self._request.logprobs:
            return None
        content = []
        for token, log_prob in zip(answer.token_ids[start:], (answer.log_probs or ())[start:]):
            text = self._tokenizer.decode([token])
            content.append({"token": text, "logprob": log_prob, "bytes": list(text.encode()), "top_logprobs": []})
        return {"content": content, "refusal": None}

    def _usage(self, prompt_tokens: int | None) -> dict[str, int] | None:
        if prompt_tokens is None:
            return None
        # Once, though each choice was asked apart.
        prompt = prompt_tokens // len(self._region.requests)
        answers = sum(len(answer.token_ids) for answer in self._region.answers.values())
        return {"prompt_tokens": prompt, "completion_tokens": answers, "total_tokens": prompt + answers}


def raise_error(answer: BranchAnswer) -> None:
    """
    Raises:
        RequestError: If this is why there is no answer.
    """
    if answer.error is not None:
        raise RequestError(answer.error, param="messages")


def _settled(text: str, stops: Sequence[str]) -> str:
    """A text so far, without an end that may be the first part of a stop string, which is then taken away."""
    held = max((length for stop in stops for length in range(1, len(stop)) if text.endswith(stop[:length])), default=0)
    return text[: len(text) - held].rstrip()
