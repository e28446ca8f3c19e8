"""All attributes in one question: one JSON object, read strictly, whose parts stand where single answers would."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from describers import StubDescriber
from PIL import Image
from test_describers_endpoint import Stub, answer, describer, stub  # noqa: F401  (a fixture)

from finecaption_hf.asking import DescriberError, ask, load_describer
from finecaption_hf.asking.describers import AtOnceDescriber
from finecaption_hf.evaluation import EvaluationError
from finecaption_hf.evaluation.diagnostics import attribute_consistency, check_diagnostics
from finecaption_hf.prompts_finecaption import ATTRIBUTES, BranchAnswer, BranchRequest

PICTURE = Image.new("RGB", (40, 30), "grey")
REGIONS = [{"box_xyxy": [2, 2, 20, 20]}, {"box_xyxy": [10, 5, 30, 25]}]


def keys_of(question: str) -> list[str]:
    return [json.loads(line.split(": ")[0]) for line in question.splitlines()[1:]]


def obedient(change: Callable[[dict[str, Any]], Any] = lambda found: found) -> AtOnceDescriber:
    """Answers each attribute with its name and the region's area, as JSON where it is asked for that."""

    def say(picture: Any, region: Any, request: BranchRequest) -> str | BranchAnswer:
        if "JSON" not in str(request.question):
            return f"alone {region.area}"
        found = change({name: f"{name} {region.area}" for name in keys_of(str(request.question))})
        return found if isinstance(found, str | BranchAnswer) else json.dumps(found)

    return AtOnceDescriber(StubDescriber(say))


def test_attributes_are_asked_in_one_question_and_told_apart() -> None:
    made = obedient()
    records = ask(made, PICTURE, REGIONS, ["region", "color", "shape", "Is it new?", "hair"], max_new_tokens=10)
    for record in records:
        area = record["area"]
        names = ("Color", "Shape", "Hair")
        others = {"region": f"alone {area}", "Is it new?": f"alone {area}"}
        assert record["answers"] == {**others, **{name: f"{name} {area}" for name in names}}
        assert list(record["answers"]) == ["region", "Color", "Shape", "Is it new?", "Hair"]
    asked = [request for call in made._describer.calls for _, request in call]  # type: ignore[attr-defined]
    assert len(asked) == 2 * 3
    together = next(it for it in asked if it.name == "Attributes")
    assert all(ATTRIBUTES[name] in together.question for name in ("Color", "Shape", "Hair"))
    assert together.max_new_tokens == 30


def test_all_attributes_are_one_question() -> None:
    made = obedient()
    record = ask(made, PICTURE, REGIONS[:1], "all")[0]
    assert list(record["answers"]) == list(ATTRIBUTES)
    assert len(made._describer.calls[0]) == 1  # type: ignore[attr-defined]


def test_attribute_alone_is_asked_as_ever() -> None:
    made = obedient()
    assert ask(made, PICTURE, REGIONS[:1], ["color"])[0]["answers"] == {"Color": "alone 324"}


def test_marks_of_code_around_the_object_are_taken_off() -> None:
    record = ask(obedient(lambda found: f"```json\n{json.dumps(found)}\n```"), PICTURE, None, ["color", "hair"])[0]
    assert record["answers"] == {"Color": "Color 1200", "Hair": "Hair 1200"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: "It is red.", "'It is red.' is none with these names"),
        (lambda found: json.dumps(found)[:-9], "is none with these names"),
        (lambda found: [found], "it is a list"),
        (lambda found: {"Color": "red"}, "it lacks Hair"),
        (lambda found: {**found, "Age": "old"}, "it adds Age"),
        (lambda found: {**found, "Hair": None}, "Hair: no text"),
        (lambda found: '{"Color": "red", "Color": "blue", "Hair": "none"}', "it has a name twice"),
        (lambda found: f"Here it is: {json.dumps(found)}", "is none with these names"),
        (lambda found: "[" * 100_000, "is none with these names"),
        (lambda found: BranchAnswer('{"Color": "r', (), None, "length"), "cut at the longest answer; raise max_new"),
        (lambda found: BranchAnswer("", (), None, "error", "the server is gone"), "^the server is gone$"),
    ],
)
def test_what_is_no_such_object_is_an_error_of_each_attribute(change: Any, message: str) -> None:
    record = ask(obedient(change), PICTURE, None, ["color", "hair", "region"])[0]
    assert record["answers"] == {"region": "alone 1200"}
    assert set(record["errors"]) == {"Color", "Hair"}
    assert all(re.search(message, error["message"]) for error in record["errors"].values())


def test_endpoint_is_sent_the_schema(stub: Stub) -> None:  # noqa: F811
    stub.replies = [(200, answer('{"Color": "red", "Hair": "none"}'), {}), None]
    asked = AtOnceDescriber(describer(stub, concurrency=1))
    record = ask(asked, PICTURE, REGIONS[:1], ["color", "hair", "region"])[0]
    assert (record["answers"]["Color"], record["answers"]["Hair"]) == ("red", "none")
    form = stub.requests[0]["response_format"]
    assert form["type"] == "json_schema" and form["json_schema"]["strict"] is True
    assert form["json_schema"]["schema"]["required"] == ["Color", "Hair"]
    assert "response_format" not in stub.requests[1]
    for body in ({"response_format": None}, {"response_format": {"type": "json_object"}}):
        ask(AtOnceDescriber(describer(stub, body=body)), PICTURE, REGIONS[:1], ["color", "hair"])
        assert stub.requests[-1].get("response_format") == body["response_format"]


def test_option_makes_it_and_what_cannot_write_json_refuses_it(stub: Stub) -> None:  # noqa: F811
    made = load_describer("stub", base_url=stub.url, at_once=True)
    assert isinstance(made, AtOnceDescriber) and made.settings["at_once"]
    for model in (None, "pixels"):
        with pytest.raises(DescriberError, match="at_once: no effect"):
            load_describer(model, at_once=True)
        with pytest.raises(EvaluationError, match="at-once wants all attributes as one JSON object"):
            check_diagnostics(["at-once"], load_describer(model))
    with pytest.raises(EvaluationError, match="asks in both ways itself"):
        check_diagnostics(["at-once"], made)


def test_diagnostic_counts_how_often_both_ways_agree() -> None:
    from test_diagnostics import three_attributes

    alone = {"Age Range": "an old thing", "Color": "deep red", "Shape": "round", "Hair": "none of it"}

    def say(picture: Any, region: Any, request: BranchRequest) -> str:
        if "JSON" in str(request.question):
            return json.dumps({**dict.fromkeys(keys_of(str(request.question)), "of no kind"), "Color": "a deep red"})
        return next((text for name, text in alone.items() if ATTRIBUTES[name] == request.question), "?")

    model = StubDescriber(say)
    found = attribute_consistency(
        model, [three_attributes()], captions=(), together=None, at_once=AtOnceDescriber(model)
    )
    assert set(found["values"]["all"]) == {"as JSON"}
    counts = {
        name: (it["as JSON"]["agree"], it["as JSON"]["silent"]) for name, it in found["values"]["by_question"].items()
    }
    assert counts.pop("Color") == (1, 0)
    assert counts and set(counts.values()) == {(0, 1)}
