"""A prefix and its branches: all questions and answers about one region in one sequence, as if each were alone.

The prefix of a region is everything up to its last image token; a branch is one question with its answer. A branch
attends to the prefix and, causally, to itself; positions restart after the prefix for every branch. So each branch gets
the logits of the sequence that holds it alone, and the prefix is computed once.

Dimension letters: S sequences, T tokens of a sequence.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

IGNORED_LABEL = -100
PADDING_BRANCH = -1


def branch_attention_mask(branch_ids: torch.Tensor) -> torch.Tensor:
    """Which tokens attend to which: causally, to the prefix and to their own branch.

    Args:
        branch_ids (`torch.LongTensor` of shape `(S, T)`): 0 in the prefix, 1, 2, .. in its branches, -1 in padding.

    Returns:
        `torch.BoolTensor` of shape `(S, 1, T, T)`, True where the query (third axis) attends to the key (fourth).
        Padding attends to the prefix and to padding, so that no row is empty; nothing else attends to padding.
    """
    length = branch_ids.shape[1]
    query, key = branch_ids[:, :, None], branch_ids[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=branch_ids.device).tril()
    return (((query == key) | (key == 0)) & causal)[:, None]


def branch_block_mask(branch_ids: torch.Tensor) -> BlockMask:
    """The rule of `branch_attention_mask` for flex attention, which skips blocks that nothing attends to."""
    branch_ids = branch_ids.contiguous()

    def attends(sequence: Any, head: Any, query: Any, key: Any) -> Any:
        own = branch_ids[sequence, query] == branch_ids[sequence, key]
        return (query >= key) & (own | (branch_ids[sequence, key] == 0))

    num_sequences, length = branch_ids.shape
    return create_block_mask(attends, num_sequences, None, length, length, device=branch_ids.device)


def branch_position_ids(branch_ids: torch.Tensor) -> torch.Tensor:
    """Positions that count through the prefix and restart after it for every branch.

    Args:
        branch_ids (`torch.LongTensor` of shape `(S, T)`): as in `branch_attention_mask`, branches one after another.

    Returns:
        `torch.LongTensor` of shape `(S, T)`; padding has position 0.
    """
    steps = torch.arange(branch_ids.shape[1], device=branch_ids.device).expand_as(branch_ids)
    first = torch.ones_like(branch_ids, dtype=torch.bool)
    first[:, 1:] = branch_ids[:, 1:] != branch_ids[:, :-1]
    starts = torch.where(first, steps, 0).cummax(dim=1).values
    prefix_lengths = (branch_ids == 0).sum(dim=1, keepdim=True)
    positions = steps - starts + torch.where(branch_ids > 0, prefix_lengths, 0)
    return torch.where(branch_ids < 0, 0, positions)


def are_branch_ids(branch_ids: torch.Tensor) -> torch.Tensor:
    """Whether every sequence is a prefix, its branches in order, then padding: a bool of shape `()`."""
    before, after = branch_ids[:, :-1], branch_ids[:, 1:]
    follows = (after == PADDING_BRANCH) | ((before >= 0) & ((after == before) | (after == before + 1)))
    return follows.all() & (branch_ids[:, 0] == 0).all()


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


class BranchEncoder:
    """Tokens of a prefix and its branches, as the chat template and tokenizer of a processor make them.

    A question's tokens reach up to where generation would continue. An answer's tokens end with the token that ends
    the turn (the first special token that the template puts after an answer, such as `<|eot_id|>`), so that a model
    learns to stop; where a template has none, the tokenizer's end of sequence is added. What the template puts after
    that token is left out. White space around an answer is dropped.

    On construction two conversations are tokenized by `processor.apply_chat_template`, and prefix and branch compared
    with them. Where a tokenizer would merge the end of the prompt with the start of an answer, the prompt stays as
    generation gets it, and the answer starts with a token of its own.

    Args:
        processor (`FineCaptionProcessor`): with a chat template. Questions go through `processor.conversation`.

    Raises:
        ValueError: If the chat template does not split into a prefix, a question and an answer.
    """

    max_cached_questions = 10_000

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self._questions: dict[str, tuple[str, tuple[int, ...]]] = {}
        special = {str(token): index for index, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        special |= dict(zip(self.tokenizer.all_special_tokens, self.tokenizer.all_special_ids))
        self._special = re.compile("|".join(re.escape(token) for token in sorted(special, key=len, reverse=True)))
        self._before_image: str | None = None
        self._around_answer: tuple[str, str] | None = None
        self._adds_end = False
        prefixes = []
        for question, answer in (("What is it?", "a cup"), ("Which color has this thing, and why?", "Red, it seems.")):
            prompt, after = self._split(self._render(question))
            self._learn_answer(prompt + after, self._render(question, answer), answer)
            expected = self._tokenize_chat(question)
            if self.processor.image_token_id not in expected:
                raise self._fault(f"A prompt becomes {prompt + after!r}, whose tokens hold no image token.")
            end = len(expected) - expected[::-1].index(self.processor.image_token_id)
            prefixes.append(expected[:end])
            question_ids, answer_ids = self.encode([(question, answer)])[0]
            if prefixes[-1] + list(question_ids) != expected:
                raise self._fault("The tokens of a prompt differ from those of its prefix and its question.")
            self._prove_answer(self._tokenize_chat(question, answer), expected, list(answer_ids))
        if prefixes[0] != prefixes[1]:
            raise self._fault("The tokens up to the image depend on the question.")
        self.prefix_ids: tuple[int, ...] = tuple(prefixes[0])
        """Tokens up to the last image token; the same for every region."""

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

    def _question(self, question: str) -> tuple[str, tuple[int, ...]]:
        """What follows the image in the prompt of a question: text and tokens."""
        if question not in self._questions:
            self._refuse_special(question, "question")
            _, after = self._split(self._render(question))
            if len(self._questions) >= self.max_cached_questions:
                self._questions.clear()
            self._questions[question] = (after, self._tokenize_after_image([after])[0])
        return self._questions[question]

    def _apart(self, text: str, question_ids: tuple[int, ...], reply: str, whole: tuple[int, ...]) -> tuple[int, ...]:
        """The answer's tokens where those of question and answer together do not start with the question's."""
        answer_ids = self._tokenize_after_image([reply])[0]
        if self._decode(question_ids + answer_ids) != self._decode(whole):
            raise self._fault(f"{text + reply!r} cannot be cut into tokens of a question and of an answer.")
        return answer_ids

    def _refuse_special(self, text: str, what: str) -> None:
        found = self._special.search(text)
        if found:
            raise ValueError(
                f"The {what} {text!r} holds {found[0]!r}, a special token of the tokenizer. Take it out of the text."
            )

    def _render(self, question: str, answer: str | None = None) -> str:
        chat = self._chat(question, answer)
        return self.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=answer is None)

    def _tokenize_chat(self, question: str, answer: str | None = None) -> list[int]:
        """The tokens that the processor makes of a chat: those that a model gets at inference."""
        chat = self._chat(question, answer)
        inputs = self.processor.apply_chat_template(
            chat, tokenize=True, return_dict=True, add_generation_prompt=answer is None
        )
        return list(inputs["input_ids"][0])

    def _chat(self, question: str, answer: str | None) -> list[dict[str, Any]]:
        chat = self.processor.conversation(np.zeros((8, 8, 3), dtype=np.uint8), question)
        if answer is not None:
            chat.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return chat

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

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)

    def _fault(self, reason: str) -> ValueError:
        return ValueError(
            f"The processor's chat template cannot be used for training. {reason} Give the processor another "
            "chat_template, such as prompts_finecaption.DEFAULT_CHAT_TEMPLATE."
        )


__all__ = [
    "BranchEncoder",
    "PackedSequence",
    "are_branch_ids",
    "branch_attention_mask",
    "branch_block_mask",
    "branch_position_ids",
    "pack_branches",
]
