"""Do answers agree? What is said to one question about a region, beside what is said to another one that implies it."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from PIL import Image

from ...asking import Describer
from ...data.examples import DataError, Example
from ...pipeline_finecaption import AskedImage, AskedRegion, answer_all, requests_about
from ...prompts_finecaption import find_question, normalise_name
from ..predicting import walk
from ..predictions import Prediction
from .tables import Truth, Values, as_json, cell, diagnostic, mean_interval, plain_text, told, words_of

CAPTIONS = ("region", "dense", "One-Sentence Description")
"""What is asked beside the attributes, and may speak of all of them."""

AS_JSON = "as JSON"
_EXAMPLES_AT_ONCE = 4
_MAX_EXAMPLES = 20
_FUNCTION_WORDS = frozenset(
    words_of(
        "a an the and or but of in on at to from with by for as is are was were be been it its this that these those "
        "there here which who whose what has have had having do does some any very also both his her their he she they"
    )
)


@dataclass
class _Compared:
    """The answers to an attribute alone and to a question that implies it.

    Attributes:
        status: "agree", "conflict" or "silent"; else why they cannot be compared.
        share: of the words of the attribute's answer that the other one has; 0 or 1 with closed vocabularies.
        separate_right, joint_right: where the truth is known.
    """

    image: str
    region_index: int
    label: str
    form: str
    separate: str
    joint: str
    status: str
    share: float = 0.0
    separate_right: bool | None = None
    joint_right: bool | None = None


def attribute_consistency(
    describer: Describer,
    dataset: Iterable[Example],
    *,
    attributes: Sequence[str] | None = None,
    values: Values | None = None,
    truth: Truth | None = None,
    captions: Sequence[str] = CAPTIONS,
    together: int | None = 2,
    at_once: Describer | None = None,
    max_new_tokens: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    on_example: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Whether a model says the same of a region when asked for one attribute, for several at once, or for a caption.

    Of each region the attributes are asked, greedily, that its example has, or those given: each one alone, `together`
    of them in one question (their instructions one after another), and the captions. An attribute's own answer is
    compared with every other one that implies it.

    With `values`, by value: an answer says a value of an attribute if it holds a phrase of it as whole words, and no
    longer phrase of another value around it. Two answers agree if the joint one says all that the separate one says,
    conflict if it says other values only or lacks one, and the joint one is silent if it says none of that attribute.
    Without `values`, by words: the share of the separate answer's content words (function words left out) that the
    joint one has. This knows neither synonyms nor inflections ("cars" is not "car"), nor does it see a negation or
    which thing a word belongs to; so it tells how much is repeated, not whether answers contradict each other.

    Args:
        describer: the model.
        dataset: examples; their references are not used but by `truth`.
        attributes: names to ask about every region, whatever its example has.
        values: closed vocabularies by attribute, see `Values`; attributes that have none are left out and counted.
        truth: where it knows right answers, it is told which side of a conflict is right.
        captions: names of the captions; those that the describer does not know are left out.
        together: how many attributes are asked in one question; `None` leaves that out.
        at_once: answers all attributes as one JSON object, which then are compared, too: an `AtOnceDescriber`.
        max_new_tokens: the longest answer; `None` means the describer's own limit.
        limit: only so many examples, the first.
        seed: of the intervals, which are resampled by image.
        on_example: called with the number of examples done.

    Returns:
        `title`, `table`, `notes` and `values`.

    Raises:
        ValueError: If an option makes no sense, or no answers could be compared.
    """
    if together is not None and together < 2:
        raise ValueError(f"together is {together}. Ask at least two attributes in one question.")
    known = [name for name in captions if find_question(name, describer.questions) is not None]
    asker = _Asker(describer, known, attributes, together, at_once, values, truth, max_new_tokens)
    compared: list[_Compared] = []
    examples = walk(dataset, limit)
    done = 0
    while batch := list(islice(examples, _EXAMPLES_AT_ONCE)):
        compared += asker.compare(batch)
        done += len(batch)
        on_example(done)
    if not compared:
        raise ValueError(f"No answers could be compared ({told(asker.left_out) or 'there is no example'}).")
    return _result(compared, asker, values is not None, seed)


def said(text: str, values: Sequence[Sequence[str]]) -> set[int]:
    """Which values a text says: phrases as whole words; of phrases inside each other the longest."""
    words = words_of(text)
    found = []
    for number, phrases in enumerate(values):
        for phrase in map(words_of, phrases):
            for start in range(len(words) - len(phrase) + 1):
                if words[start : start + len(phrase)] == phrase:
                    found.append((start, start + len(phrase), number))
    return {
        number
        for start, stop, number in found
        if not any(a <= start and stop <= b and b - a > stop - start for a, b, _ in found)
    }


@dataclass
class _Plan:
    """What is asked about a region. `joint` says for every form and label in which question the label is implied; and
    what is asked as JSON."""

    region: AskedRegion
    as_json: AskedRegion
    image: str
    region_index: int
    labels: list[str]
    joint: dict[tuple[str, str], int]
    known: Mapping[str, Sequence[str]]


class _Asker:
    def __init__(
        self,
        describer: Describer,
        captions: list[str],
        attributes: Sequence[str] | None,
        together: int | None,
        at_once: Describer | None,
        values: Values | None,
        truth: Truth | None,
        max_new_tokens: int | None,
    ) -> None:
        self.describer = describer
        self.captions = captions
        self.attributes = attributes
        self.together = together
        self.at_once = at_once
        self.values = values
        self.truth = truth
        self.max_new_tokens = max_new_tokens
        self.left_out: Counter[str] = Counter()

    @property
    def forms(self) -> list[str]:
        together = [] if self.together is None else [f"{self.together} at once"]
        return [*self.captions, *together, *([] if self.at_once is None else [AS_JSON])]

    def compare(self, batch: Sequence[tuple[Example, list[list[Prediction]]]]) -> list[_Compared]:
        plans: list[_Plan] = []
        images: list[AskedImage] = []
        as_json: list[AskedImage] = []
        for example, rows in batch:
            try:
                picture = example.load()
            except (DataError, OSError) as error:
                self.left_out[f"the picture cannot be read ({type(error).__name__})"] += 1
                continue
            references, of_example = [], []
            for region, row in zip(example.regions, rows, strict=True):
                if (plan := self._plan(row, picture)) is not None:
                    references.append(example.reference(region, picture))
                    of_example.append(plan)
            regions = [plan.region for plan in of_example]
            images.append(AskedImage.prepare(self.describer.prepare, picture, references, regions))
            if self.at_once is not None:
                regions = [plan.as_json for plan in of_example]
                as_json.append(AskedImage.prepare(self.at_once.prepare, picture, references, regions))
            plans += of_example
        answer_all(self.describer, images)
        if self.at_once is not None:
            answer_all(self.at_once, as_json)
        return [found for plan in plans for found in self._compare(plan)]

    def _plan(self, row: Sequence[Prediction], picture: Image.Image) -> _Plan | None:
        apart = {normalise_name(name) for name in (*self.captions, *CAPTIONS, "global")}
        labels: dict[str, str] = {}
        named = [(branch.name, branch.question) for branch in row]
        if self.attributes is not None:
            named = [(name, "") for name in self.attributes]
        for name, own_words in named:
            question = own_words or find_question(name or "", self.describer.questions)
            label = name or question
            if label is None or normalise_name(label) in apart:
                continue
            if question is None:
                self.left_out["the model knows no question of that name"] += 1
            elif self.values is not None and label not in self.values:
                self.left_out["the values of the attribute are not known"] += 1
            else:
                labels[label] = question
        if not labels:
            return None
        known_captions = (find_question(name, self.describer.questions) or "" for name in self.captions)
        questions = [*labels.values(), *known_captions]
        joint = {(name, label): len(labels) + number for number, name in enumerate(self.captions) for label in labels}
        names = list(labels)
        together = self.together or 0
        for start in range(0, len(names) if together else 0, together or 1):
            group = names[max(0, min(start, len(names) - together)) :][:together]
            if len(group) < 2:
                break
            for label in names[start : start + together]:
                joint[f"{together} at once", label] = len(questions)
            questions.append(" ".join(labels[label] for label in group))
        first = row[0]
        known: Mapping[str, Sequence[str]] = {}
        if self.truth is not None:
            references = {it.name: it.references[0] for it in row if it.name is not None}
            known = self.truth(first.image_id, first.region_id, (picture.height, picture.width), references)
        longest = {"max_new_tokens": self.max_new_tokens}
        requests = requests_about(((None, it) for it in questions), (), (), **longest)
        as_json = requests_about(labels.items(), (), (), **longest)
        asked = AskedRegion(requests), AskedRegion(as_json)
        return _Plan(*asked, first.image, first.region_index, names, joint, known)

    def _compare(self, plan: _Plan) -> Iterable[_Compared]:
        if plan.region.error is not None:
            self.left_out[f"the mask cannot be used ({plan.region.error['type']})"] += len(plan.labels)
            return
        for place, label in enumerate(plan.labels):
            for form in self.forms:
                if form == AS_JSON:
                    joint = plan.as_json.text(place)
                elif (form, label) in plan.joint:
                    joint = plan.region.text(plan.joint[form, label])
                else:
                    continue
                separate = plan.region.text(place)
                if separate is None or joint is None:
                    self.left_out["a question was not answered"] += 1
                    continue
                found = _Compared(plan.image, plan.region_index, label, form, separate, joint, "")
                if self.values is None:
                    _by_words(found)
                else:
                    _by_values(found, self.values[label], plan.known.get(label, ()))
                yield found


def _by_words(found: _Compared) -> None:
    content = set(words_of(found.separate)) - _FUNCTION_WORDS
    if not content:
        found.status = "the separate answer has no content words"
        return
    found.share = len(content & set(words_of(found.joint))) / len(content)
    found.status = "agree" if found.share == 1 else "silent" if found.share == 0 else "partly"


def _by_values(found: _Compared, values: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    separate, joint = said(found.separate, values), said(found.joint, values)
    if not separate:
        found.status = "the separate answer says no known value"
        return
    found.status = "silent" if not joint else "agree" if separate <= joint else "conflict"
    found.share = float(found.status == "agree")
    if right:
        found.separate_right = plain_text(found.separate) in set(map(plain_text, right))
        found.joint_right = said(right[0], values) == joint


# --- the result -------------------------------------------------------------------------------------------------------


def _result(compared: list[_Compared], asker: _Asker, by_values: bool, seed: int) -> dict[str, Any]:
    labels = list(dict.fromkeys(it.label for it in compared))
    forms = [form for form in asker.forms if any(it.form == form for it in compared)]
    values: dict[str, Any] = {
        "compared_by": "values" if by_values else "words",
        "together": asker.together,
        "captions": asker.captions,
        "seed": seed,
        "images": len({it.image for it in compared}),
        "left_out": dict(asker.left_out),
        "by_question": {},
    }
    rows = []
    for label in [None, *labels]:
        of_label = [it for it in compared if label in (None, it.label)]
        found = {form: _of_form([it for it in of_label if it.form == form], by_values, seed) for form in forms}
        row = [label or "all", str(len({(it.image, it.region_index) for it in of_label}))]
        for form in forms:
            row += [cell(found[form].pop("_first")), cell(found[form].pop("_second"))]
        rows.append(row)
        if label is None:
            values["all"] = found
        else:
            values["by_question"][label] = found
    conflicts = [it for it in compared if it.status == "conflict"]
    values["examples"] = [
        {
            "image": it.image,
            "region_index": it.region_index,
            "question": it.label,
            "alone": it.separate,
            it.form: it.joint,
        }
        for it in conflicts[:_MAX_EXAMPLES]
    ]
    beside = "captions of the same region and beside the answer to a question for "
    beside += f"{asker.together} attributes at once"
    if asker.at_once is not None:
        beside = "that of a JSON object with all of them"
    if by_values:
        first, second = "agrees", "says it"
        notes = [
            f"Each attribute's answer beside {beside}. Agrees: of the joint answers that say a value of the attribute, "
            "the share that says the one of the attribute's own answer. Says it: share of joint answers that say a "
            "value of it. 95 % intervals, resampled by image."
        ]
        for form in forms:
            found = values["all"][form]
            line = f"{form}: {found['agree']} agree, {found['conflict']} conflict, {found['silent']} silent"
            if found["judged_conflicts"]:
                line += (
                    f"; of {found['judged_conflicts']} conflicts the attribute's own answer is right in "
                    f"{found['separate_right']}, the joint one in {found['joint_right']}"
                )
            notes.append(f"{line}.")
    else:
        first, second = "words", "all words"
        notes = [
            f"Each attribute's answer beside {beside}. Words: share of the content words of the attribute's own answer "
            "that the joint one has; all words: share of answers of which it has all. Synonyms and inflections "
            "count as missing, negations are not seen. 95 % intervals, resampled by image."
        ]
    reasons: Counter[str] = Counter()
    for form in forms:
        reasons.update(values["all"][form]["not_applicable"])
    if reasons:
        notes.append(f"Not compared: {told(reasons)}.")
    if asker.left_out:
        notes.append(f"Not asked: {told(asker.left_out)}.")
    columns = ["question", "regions", *(f"{form}: {what}" for form in forms for what in (first, second))]
    return diagnostic("Do answers agree?", columns, rows, notes, values)


def _of_form(compared: list[_Compared], by_values: bool, seed: int) -> dict[str, Any]:
    """Counts and shares of one form; `_first` and `_second` are the columns of the table."""
    counts = Counter(it.status for it in compared)
    usual = ("agree", "conflict", "silent") if by_values else ("agree", "partly", "silent")
    valid = [it for it in compared if it.status in usual]
    spoken = [it for it in valid if it.status != "silent"] if by_values else valid
    first = mean_interval([it.share for it in spoken], [it.image for it in spoken], seed)
    marks = [float(it.status != "silent" if by_values else it.status == "agree") for it in valid]
    second = mean_interval(marks, [it.image for it in valid], seed)
    found: dict[str, Any] = {status: counts[status] for status in usual}
    found["not_applicable"] = {status: count for status, count in counts.items() if status not in usual}
    names = ("agreement", "says_it") if by_values else ("words", "all_words")
    found.update({names[0]: as_json(first), names[1]: as_json(second), "_first": first, "_second": second})
    if by_values:
        judged = [it for it in compared if it.status == "conflict" and it.separate_right is not None]
        found["judged_conflicts"] = len(judged)
        found["separate_right"] = sum(bool(it.separate_right) for it in judged)
        found["joint_right"] = sum(bool(it.joint_right) for it in judged)
    return found
