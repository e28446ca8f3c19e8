"""All attributes of a region in one question, which is answered as JSON."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ...prompts_finecaption import TASKS, BranchAnswer, BranchRequest, BranchUpdate, normalise_name
from ..describer import Describer
from .endpoint import EndpointDescriber

NAME = "Attributes"
"""Of the question, for `by_name` of prompts."""
QUESTION = (
    "Answer these questions about the marked region. Reply with one JSON object and nothing else. Its keys are exactly "
    "{keys}, in this order; each value is a short text.\n{questions}"
)
_TOKENS_EACH = 48


class _Asked(NamedTuple):
    """A request to the model: the places of the requests that it stands for, and their names, where it is JSON."""

    request: BranchRequest
    places: list[int]
    names: list[str]


class AtOnceDescriber:
    """A describer that is asked for all attributes of a region in one question, answered as a JSON object; captions and
    own words are asked as ever, and so is an attribute alone.

    The answer is read strictly: one object, with the names that were asked and no others, each with a text. Whatever
    else comes is an error of each of these attributes, with what arrived. Endpoints are sent the schema of the object
    as `response_format`, unless their `body` says something of it.

    Args:
        describer: of a model that follows instructions.
    """

    independent = False  # one attribute's answer depends on which others are asked

    def __init__(self, describer: Describer) -> None:
        self._describer = describer
        self.name = describer.name
        self.questions = describer.questions
        self.settings: Mapping[str, Any] = {**describer.settings, "at_once": QUESTION}
        self.prepare, self.refusal = describer.prepare, describer.refusal

    def stream(
        self,
        prepared: Sequence[Any],
        requests: Sequence[Sequence[BranchRequest]],
        *,
        log_probs: bool = False,
        partial: bool = False,
    ) -> Iterator[BranchUpdate]:
        """See `Describer`. Attributes come together, without log-probabilities."""
        asked = [self._together(of_region) for of_region in requests]
        inner = [[it.request for it in of_region] for of_region in asked]
        for region, place, answer in self._describer.stream(prepared, inner, log_probs=log_probs, partial=partial):
            _, places, names = asked[region][place]
            if not names:
                yield BranchUpdate(region, places[0], answer)
            elif answer.finish_reason is not None:
                found = _read(answer, names)
                yield from (BranchUpdate(region, *each) for each in zip(places, found, strict=True))

    def _together(self, requests: Sequence[BranchRequest]) -> list[_Asked]:
        attributes = [place for place, request in enumerate(requests) if self._is_attribute(request)]
        if len(attributes) < 2:
            return [_Asked(request, [place], []) for place, request in enumerate(requests)]
        alone = [_Asked(it, [place], []) for place, it in enumerate(requests) if place not in attributes]
        names = [str(requests[place].name) for place in attributes]
        lines = [f"{json.dumps(name)}: {requests[place].question}" for name, place in zip(names, attributes)]
        question = QUESTION.format(keys=", ".join(map(json.dumps, names)), questions="\n".join(lines))
        if isinstance(self._describer, EndpointDescriber):
            self._describer.response_formats[question] = _schema(names)
        longest = sum(requests[place].max_new_tokens or _TOKENS_EACH for place in attributes)
        first = replace(requests[attributes[0]], question=question, name=NAME, max_new_tokens=longest)
        return [_Asked(first, attributes, names), *alone]

    def _is_attribute(self, request: BranchRequest) -> bool:
        return request.name in self.questions and normalise_name(str(request.name)) not in TASKS


def _schema(names: Sequence[str]) -> dict[str, Any]:
    """What OpenAI's protocol takes as `response_format`."""
    schema = {
        "type": "object",
        "properties": {name: {"type": "string"} for name in names},
        "required": list(names),
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "attributes", "strict": True, "schema": schema}}


def _read(answer: BranchAnswer, names: Sequence[str]) -> list[BranchAnswer]:
    """The answer to each name, from one JSON object; the same error for all where it is none."""
    if answer.error is not None:
        return [answer] * len(names)
    reason = "" if answer.finish_reason != "length" else " It was cut at the longest answer; raise max_new_tokens."
    try:
        found = json.loads(_without_fence(answer.text), object_pairs_hook=_once)
        if not isinstance(found, dict):
            raise ValueError(f"it is a {type(found).__name__}")
        if set(found) != set(names):
            missing = [name for name in names if name not in found]
            more = [name for name in found if name not in names]
            told = [f"{what} {', '.join(them)}" for what, them in (("lacks", missing), ("adds", more)) if them]
            raise ValueError(f"it {' and '.join(told)}")
        if other := [name for name in names if not isinstance(found[name], str)]:
            raise ValueError(f"{', '.join(other)}: no text")
    except (ValueError, RecursionError) as error:
        arrived = " ".join(answer.text.split())[:200]
        failed = (
            f"All attributes were asked for in one JSON object, but {arrived!r} is none with these names: {error}."
            f"{reason} Ask for each attribute by itself, without --at-once."
        )
        return [replace(answer, text="", token_ids=(), log_probs=None, finish_reason="error", error=failed)] * len(
            names
        )
    return [replace(answer, text=found[name].strip(), token_ids=(), log_probs=None) for name in names]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("it has a name twice")
    return dict(pairs)


def _without_fence(text: str) -> str:
    """JSON without the marks of code that chat models put around it."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```"):
        text = text[3:-3].removeprefix("json")
    return text
