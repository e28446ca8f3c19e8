"""What is asked and what is said: tasks and attributes with their instructions, requests and answers, a chat template,
and the tokens of a prefix and of questions about it.

The paper (arXiv 2411.15411) counts 18 attributes, of which 16 are named in its figures; those are here. The list is
open: a processor takes any mapping of names to instructions as `questions` and saves it with the checkpoint.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class FineCaptionError(Exception):
    """What keeps this package from doing what was asked; the message says what arrived, what was needed and what to do.

    Each error class of the package has it as a base, beside the one of Python that fits (`ValueError`, mostly). It
    stands here because importing this file imports no other library.
    """


TASKS = {
    "region": "Describe the marked region in one sentence.",
    "dense": "Describe the marked region in detail.",
    "global": "Describe the whole image in detail.",
}
"""Task name -> instruction: a short caption of a region, a dense one, and a caption of the whole image."""

ATTRIBUTES = {
    "Category Name": "What is in the marked region? Answer with the name of its category.",
    "One-Sentence Description": "Sum up what the marked region shows in a single sentence.",
    "Body Pose/Gesture": "Describe the body pose and the gestures in the marked region.",
    "Body Shape": "Describe the body shape in the marked region.",
    "Facial Expression": "Describe the facial expression in the marked region.",
    "Skin Texture and Color": "Describe the texture and the color of the skin in the marked region.",
    "Hair": "Describe the hair in the marked region.",
    "Clothing, Shoes and Accessories": "Describe the clothing, the shoes and the accessories in the marked region.",
    "Age Range": "Which age range does the marked region suggest?",
    "Color": "Describe the colors of the marked region.",
    "Materials/Texture": "Describe the materials and the texture of the marked region.",
    "Shape": "Describe the shape of the marked region.",
    "Camera Viewpoint": "From which camera viewpoint is the marked region seen?",
    "Associative Visual Effect": (
        "Describe the visual effects that belong to the marked region, such as shadows, reflections or motion blur."
    ),
    "Interaction with Other Objects": "How does the marked region interact with other objects?",
    "Relative Location with Other Objects": "Where is the marked region in relation to other objects?",
}
"""Attribute name -> instruction, in the paper's spelling of the names."""

DEFAULT_CHAT_TEMPLATE = """\
{{- bos_token or '' }}
{%- for message in messages %}
    {{- message['role'] + ': ' }}
    {%- if message['content'] is string %}
        {%- set parts = [{'type': 'text', 'text': message['content']}] %}
    {%- else %}
        {%- set parts = message['content'] %}
    {%- endif %}
    {%- for part in parts if part['type'] == 'image' %}
        {{- '<image>' }}
    {%- endfor %}
    {%- set text = parts | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') %}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}
            {{- text + (eos_token or '') }}
        {%- endgeneration %}
    {%- else %}
        {{- text }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'assistant: ' }}
{%- endif %}"""
"""For a language model that has no template of its own. The images of a message come before its text, wherever they
stand in the message, so that nothing up to the last image token depends on the question."""


def normalise_name(name: str) -> str:
    """Bring a name to one form: `"Materials/Texture"` and `"materials texture"` become `"materials_texture"`.

    Only separators go: `"Color?"` is a question in someone's own words, not the name `"Color"`.
    """
    return re.sub(r"[\s_/,&-]+", "_", name.casefold()).strip("_")


def is_global(name: str) -> bool:
    """Whether a question is the one about the whole image, whatever the regions."""
    return normalise_name(name) == "global"


def find_question(name: str, questions: Mapping[str, str]) -> str | None:
    """The instruction of a task or attribute, `None` where no name matches. See `normalise_name` for what matters."""
    wanted = normalise_name(name)
    return next((text for known, text in questions.items() if normalise_name(known) == wanted), None)


def nearest(name: Any, known: Iterable[str]) -> str | None:
    """The name that is most like another, whatever their case; `None` where none is."""
    folded = {each.casefold(): each for each in known}
    found = difflib.get_close_matches(str(name).casefold(), folded, n=1)
    return folded[found[0]] if found else None


def no_such(what: str, name: Any, known: Iterable[str]) -> str:
    """Sentences: there is none of that name, what is nearest, and all that there are; one with a comma is quoted."""
    near = nearest(name, known := list(known))
    names = ", ".join(f'"{each}"' if "," in each else each for each in known)
    return f"There is no {what} {name!r}.{f' Did you mean {near!r}?' if near else ''} There are: {names}."


# Conversations on which a chat template has to show that it can be cut where an image ends.
EXAMPLES = (("What is it?", "a cup"), ("Which color has this thing, and why?", "Red, it seems."))


Question = str | tuple[str, ...]  # a text; or the turns of a chat about the region, the user's first and last


def turns_of(question: Any) -> tuple[str, ...]:
    """The turns of a question, or of a chat as the library has it: `[{"role": .., "content": text}, ..]`.

    Raises:
        ValueError: If user and assistant do not take turns, the user has not the last one, or one is empty.
    """
    turns: Sequence[Any] = (question,) if isinstance(question, str) else question
    if isinstance(question, list) and all(isinstance(each, Mapping) for each in question):
        roles = (["user", "assistant"] * len(question))[: len(question)]
        turns = tuple(each.get("content") if each.get("role") == role else None for each, role in zip(question, roles))
    if (
        not isinstance(turns, tuple)
        or len(turns) % 2 == 0
        or not all(isinstance(it, str) and it.strip() for it in turns)
    ):
        raise ValueError(
            f"{question!r} is no question. Give a name, such as 'color', your own words, or a chat of texts that ends "
            "with the user's: [{'role': 'user', 'content': 'color'}, {'role': 'assistant', 'content': 'red'}, ..]."
        )
    return turns


def resolve_questions(questions: Any, known: Mapping[str, str]) -> dict[str, Question]:
    """What is asked -> the instructions, in the order asked.

    Args:
        questions: one or several of: the name of a task or attribute, a question in own words, a chat (see `turns_of`,
            whose questions may be names, too), or `"all"`, which is every known name that is not a task.
        known (`Mapping[str, str]`): names and their instructions, such as those of a processor.

    Returns:
        `dict[str, Question]`: under the name as it is known, or the own words, the instruction; each once. A chat is
        under its turns, a line each.

    Raises:
        ValueError: If there is no question, or one is empty.
    """
    asked = [questions] if isinstance(questions, str) else list(questions)
    asked = [asked] if asked and isinstance(asked[0], Mapping) else asked
    names = {normalise_name(name): name for name in known}
    found: dict[str, Question] = {}
    for question in asked:
        turns = turns_of(question)
        form = normalise_name(turns[0])
        if len(turns) > 1:
            asks = (names.get(normalise_name(turn), "") if place % 2 == 0 else "" for place, turn in enumerate(turns))
            found["\n".join(turns)] = tuple(known.get(name, turn) for name, turn in zip(asks, turns))
        elif form in names:
            found[names[form]] = known[names[form]]
        elif form == "all":
            found.update({name: text for name, text in known.items() if normalise_name(name) not in TASKS})
        else:
            found[turns[0]] = turns[0]
    if not found:
        raise ValueError("No question was given. Give at least one, such as 'region'.")
    return found


@dataclass(frozen=True)
class BranchRequest:
    """A question about a region, and how it is to be answered.

    Args:
        question: a name that the processor knows, or a question in own words; or the turns of a chat about the region.
        max_new_tokens: the longest answer; `None` means `BranchEngine.max_new_tokens`.
        temperature: 0 takes the likeliest token; above 0 tokens are drawn from the distribution at this temperature.
        top_p: draw from the likeliest tokens that together have this probability.
        repetition_penalty: above 1, tokens of the prompt and of the answer so far become less likely (as in
            `transformers`); `None` means what the generation configuration says, else none.
        stop_strings: the answer ends before the first of these.
        seed: of the draws; a branch draws the same tokens whatever else is answered with it.
        name: the task or attribute that the question stands for, where it has a name.

    Raises:
        ValueError: If a value makes no sense.
    """

    question: Question
    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float | None = None
    stop_strings: tuple[str, ...] = ()
    seed: int = 0
    name: str | None = None

    def __post_init__(self) -> None:
        turns_of(self.question)
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}. Ask for at least one token.")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}. Give 0 (the likeliest token) or a positive number.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}. Give a probability above 0, at most 1.")
        if self.repetition_penalty is not None and not self.repetition_penalty > 0:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}. Give a positive number; 1 is none.")
        stops = (self.stop_strings,) if isinstance(self.stop_strings, str) else tuple(self.stop_strings)
        if not all(isinstance(stop, str) and stop for stop in stops):
            raise ValueError(f"stop_strings are {self.stop_strings!r}. Give texts that are not empty.")
        object.__setattr__(self, "stop_strings", stops)

    @property
    def label(self) -> str:
        return self.name or "\n".join(turns_of(self.question))


@dataclass(frozen=True)
class BranchAnswer:
    """The answer of a branch, whole or so far.

    Args:
        text: without special tokens, and without white space around it.
        token_ids: as they were generated, with the token that ends the answer.
        log_probs: where asked for, the natural logarithm of each token's probability in the model's own distribution
            (before temperature, top_p and penalty).
        finish_reason: `"end"`, `"stop_string"`, `"length"` or `"error"`; `None` while the answer goes on.
        error: why there is no answer.
        sent: where kept, what a model was sent to ask it, as JSON.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] | None = None
    finish_reason: str | None = None
    error: str | None = None
    sent: Mapping[str, Any] | None = None


class BranchUpdate(NamedTuple):
    """Where an answer belongs, and the answer: `region` counts the regions, `branch` the requests of that region."""

    region: int
    branch: int
    answer: BranchAnswer


def chat_about(processor: Any, question: Question, answer: str | None = None) -> list[dict[str, Any]]:
    """A question about a region, of one turn or several, and its answer, as a chat for `apply_chat_template`."""
    import numpy as np  # here alone: commands import this file before they know whether they have work to do

    first, *rest = turns_of(question)
    chat: list[dict[str, Any]] = processor.conversation(np.zeros((8, 8, 3), dtype=np.uint8), first)
    for place, text in enumerate(rest if answer is None else [*rest, answer]):
        chat.append({"role": ("assistant", "user")[place % 2], "content": [{"type": "text", "text": text}]})
    return chat


class PromptEncoder:
    """Tokens of a prefix and of questions about it, as the chat template and tokenizer of a processor make them.

    On construction two prompts are tokenized by `processor.apply_chat_template` and compared with prefix and question.

    Args:
        processor (`FineCaptionProcessor`): with a chat template. Questions go through `processor.conversation`.

    Raises:
        ValueError: If the chat template does not split into a prefix, which is the same for all, and a question.
    """

    max_cached_questions = 10_000

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self._questions: dict[Question, tuple[str, tuple[int, ...]]] = {}
        special = {str(token): index for index, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        special |= dict(zip(self.tokenizer.all_special_tokens, self.tokenizer.all_special_ids))
        self._special = re.compile("|".join(re.escape(token) for token in sorted(special, key=len, reverse=True)))
        self._before_image: str | None = None
        self._prompts = {question: self._prove_prompt(question) for question, _ in EXAMPLES}
        prefixes = [prompt[: len(prompt) - len(self.question_ids(text))] for text, prompt in self._prompts.items()]
        if prefixes[0] != prefixes[1]:
            raise self._fault("The tokens up to the image depend on the question.")
        self.prefix_ids: tuple[int, ...] = tuple(prefixes[0])
        """Tokens up to the last image token; the same for every region."""

    def question_ids(self, question: Question) -> tuple[int, ...]:
        """Tokens from behind the image to where generation continues.

        Raises:
            ValueError: If the question holds a special token, such as that of an image.
        """
        return self._question(question)[1]

    def _prove_prompt(self, question: str) -> list[int]:
        """The tokens of a prompt, whose end is that of the question."""
        prompt = self._tokenize_chat(question)
        if self.processor.image_token_id not in prompt:
            raise self._fault(f"A prompt becomes {self._render(question)!r}, whose tokens hold no image token.")
        end = len(prompt) - prompt[::-1].index(self.processor.image_token_id)
        if prompt[end:] != list(self.question_ids(question)):
            raise self._fault("The tokens of a prompt differ from those of its prefix and its question.")
        return prompt

    def _question(self, question: Question) -> tuple[str, tuple[int, ...]]:
        """What follows the image in the prompt of a question: text and tokens."""
        if question not in self._questions:
            self._refuse_special("\n".join(turns_of(question)), "question")
            _, after = self._split(self._render(question))
            if len(self._questions) >= self.max_cached_questions:
                self._questions.clear()
            self._questions[question] = (after, self._tokenize_after_image([after])[0])
        return self._questions[question]

    def _refuse_special(self, text: str, what: str) -> None:
        found = self._special.search(text)
        if found:
            raise ValueError(
                f"The {what} {text!r} holds {found[0]!r}, a special token of the tokenizer. Take it out of the text."
            )

    def _render(self, question: Question, answer: str | None = None) -> str:
        chat = chat_about(self.processor, question, answer)
        return self.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=answer is None)

    def _tokenize_chat(self, question: Question, answer: str | None = None) -> list[int]:
        """The tokens that the processor makes of a chat: those that a model gets at inference."""
        chat = chat_about(self.processor, question, answer)
        inputs = self.processor.apply_chat_template(
            chat, tokenize=True, return_dict=True, add_generation_prompt=answer is None
        )
        return list(inputs["input_ids"][0])

    def _tokenize_after_image(self, texts: list[str]) -> list[tuple[int, ...]]:
        """Tokens of texts that follow an image token: some tokenizers treat the start of a text in another way."""
        whole = [self.processor.image_token + text for text in texts]
        encoded = self.tokenizer(whole, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return [tuple(ids[1:]) for ids in encoded]

    def _split(self, prompt: str) -> tuple[str, str]:
        """A prompt -> the text up to the image token, and what follows; the first must always be the same."""
        before, token, after = prompt.rpartition(self.processor.image_token)
        if prompt.count(self.processor.image_token) != 1:
            raise self._fault(f"A prompt about one region becomes {prompt!r}, which has not one image token.")
        if self._before_image is None:
            self._before_image = before
        if before != self._before_image:
            raise self._fault(
                f"What it puts before the image depends on the question: {self._before_image!r} and {before!r}. Put "
                "the image before the question."
            )
        return before + token, after

    def _fault(self, reason: str) -> ValueError:
        return ValueError(
            f"The processor's chat template cannot be used. {reason} Give the processor another "
            "chat_template, such as prompts_finecaption.DEFAULT_CHAT_TEMPLATE."
        )
