"""A prefix and its branches as one sequence, for training: questions with their answers.

A branch attends to the prefix and, causally, to itself, and positions restart after the prefix for every branch, so
that each branch has the loss and gradients of the sequence that holds it alone.

Dimension letters: T tokens of a sequence.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..prompts_finecaption import EXAMPLES, PromptEncoder

IGNORED_LABEL = -100


class PackedSequence(NamedTuple):
    """A prefix and some branches of it, lists of T whole numbers.

    Args:
        input_ids: the tokens.
        labels: the answers' tokens; -100 elsewhere.
        branch_ids: 0 in the prefix, 1, 2, .. in the branches.
        position_ids: restart after the prefix for every branch.
        branches: which of the given branches these are, by their position.
    """

    input_ids: list[int]
    labels: list[int]
    branch_ids: list[int]
    position_ids: list[int]
    branches: list[int]


def pack_branches(
    prefix_ids: Sequence[int],
    branches: Sequence[tuple[Sequence[int], Sequence[int]]],
    max_tokens: int | None = None,
) -> list[PackedSequence]:
    """Lay a prefix and its branches in one sequence, or in several that repeat the prefix.

    Args:
        prefix_ids: tokens up to the last image token.
        branches: for each branch the tokens of its question (up to where the answer starts) and of its answer.
        max_tokens (*optional*): what a sequence may hold; branches that do not fit go to the next one, in order.

    Raises:
        ValueError: If a branch has no tokens of a question or of an answer, or does not fit beside the prefix.
    """
    if not prefix_ids or not branches:
        raise ValueError(
            f"A prefix of {len(prefix_ids)} tokens and {len(branches)} branches arrived. Give at least one of each."
        )
    packed: list[PackedSequence] = []
    start = len(prefix_ids)
    for number, (question_ids, answer_ids) in enumerate(branches):
        if not question_ids or not answer_ids:
            # The first token of an answer is predicted from the token before it: it must be of the same branch.
            raise ValueError(
                f"Branch {number} has {len(question_ids)} tokens of a question and {len(answer_ids)} of an answer. "
                "Each needs at least one."
            )
        length = len(question_ids) + len(answer_ids)
        if max_tokens is not None and start + length > max_tokens:
            raise ValueError(
                f"Branch {number} has {length} tokens, with its prefix {start + length}, but max_tokens is "
                f"{max_tokens}. A branch is never cut: raise max_tokens, or shorten or leave out the branch."
            )
        if not packed or (max_tokens is not None and len(packed[-1].input_ids) + length > max_tokens):
            packed.append(
                PackedSequence(list(prefix_ids), [IGNORED_LABEL] * start, [0] * start, list(range(start)), [])
            )
        sequence = packed[-1]
        sequence.branches.append(number)
        sequence.input_ids.extend(question_ids)
        sequence.input_ids.extend(answer_ids)
        sequence.labels.extend([IGNORED_LABEL] * len(question_ids))
        sequence.labels.extend(answer_ids)
        sequence.branch_ids.extend([len(sequence.branches)] * length)
        sequence.position_ids.extend(range(start, start + length))
    return packed


class BranchEncoder(PromptEncoder):
    """Tokens of a prefix and its branches, for training: questions with their answers.

    An answer's tokens end with the token that ends the turn (the first special token that the template puts after an
    answer, such as `<|eot_id|>`), so that a model learns to stop; where a template has none, the tokenizer's end of
    sequence is added. What the template puts after that token is left out. White space around an answer is dropped.

    On construction two conversations are compared with prefix and branch as well. Where a tokenizer would merge the
    end of the prompt with the start of an answer, the prompt stays as generation gets it, and the answer starts with a
    token of its own.

    Args:
        processor (`FineCaptionProcessor`): as for `PromptEncoder`.

    Raises:
        ValueError: If the chat template does not split into a prefix, a question and an answer.
    """

    def __init__(self, processor: Any) -> None:
        super().__init__(processor)
        self._around_answer: tuple[str, str] | None = None
        self._adds_end = False
        for question, answer in EXAMPLES:
            self._learn_answer(self._render(question), self._render(question, answer), answer)
            _, answer_ids = self.encode([(question, answer)])[0]
            self._prove_answer(self._tokenize_chat(question, answer), self._prompts[question], list(answer_ids))

    def encode(self, branches: Sequence[tuple[str, str]]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Tokens of the question and of the answer, for each pair of a question and an answer.

        Raises:
            ValueError: If an answer is empty, or a text holds a special token, such as that of an image.
        """
        lead, trail = self._around_answer or ("", "")
        prompts, replies = [], []
        for question, answer in branches:
            answer = answer.strip()
            if not answer:
                raise ValueError(f"The answer to {question!r} is empty. Leave the branch out, or give its answer.")
            self._refuse_special(answer, "answer")
            prompts.append(self._question(question))
            replies.append(lead + answer + trail)
        whole = self._tokenize_after_image([text + reply for (text, _), reply in zip(prompts, replies)])
        encoded = []
        for (text, question_ids), reply, ids in zip(prompts, replies, whole):
            count = len(question_ids)
            answer_ids = ids[count:] if ids[:count] == question_ids else self._apart(text, question_ids, reply, ids)
            encoded.append((question_ids, answer_ids))
        return encoded

    def _apart(self, text: str, question_ids: tuple[int, ...], reply: str, whole: tuple[int, ...]) -> tuple[int, ...]:
        """The answer's tokens where those of question and answer together do not start with the question's."""
        answer_ids = self._tokenize_after_image([reply])[0]
        if self._decode(question_ids + answer_ids) != self._decode(whole):
            raise self._fault(f"{text + reply!r} cannot be cut into tokens of a question and of an answer.")
        return answer_ids

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)

    def _learn_answer(self, prompt: str, whole: str, answer: str) -> None:
        """Find out what the template puts between the prompt and an answer, and after the answer."""
        lead, found, trail = whole[len(prompt) :].partition(answer)
        if not whole.startswith(prompt) or not found:
            raise self._fault(f"A conversation becomes {whole!r}, which does not continue its prompt {prompt!r}.")
        end = self._special.search(trail)
        if end:
            trail = trail[: end.end()]
        elif self.tokenizer.eos_token is not None:
            trail = trail.rstrip() + self.tokenizer.eos_token
            self._adds_end = True
        else:
            raise self._fault(
                f"Nothing ends an answer: a conversation becomes {whole!r}. Put the token that ends a turn after it."
            )
        if self._around_answer not in (None, (lead, trail)):
            raise self._fault(f"What it puts around an answer changes: {self._around_answer} and {(lead, trail)}.")
        self._around_answer = lead, trail

    def _prove_answer(self, whole: list[int], prompt: list[int], answer_ids: list[int]) -> None:
        """Compare with the tokens of the whole conversation, up to the end of the turn."""
        made = prompt + (answer_ids[:-1] if self._adds_end else answer_ids)
        if whole[: len(made)] == made:
            return
        # The text must be the same at least: tokens may differ at the border (see the class), and where an added end
        # of sequence stands for the white space that the template puts after an answer.
        border_only = self._adds_end or whole[: len(prompt)] != prompt
        if not border_only or not self._decode(whole).startswith(self._decode(made)):
            raise self._fault("The tokens of a conversation differ from those of its prefix and its branch.")
