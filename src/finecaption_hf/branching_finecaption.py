"""A prefix and its branches: all questions and answers about one region in one sequence, as if each were alone.

The prefix of a region is everything up to its last image token; a branch is one question with its answer. A branch
attends to the prefix and, causally, to itself; positions restart after the prefix for every branch. So each branch gets
the logits of the sequence that holds it alone, and the prefix is computed once.

Dimension letters: S sequences, T tokens of a sequence.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

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


__all__ = [
    "PackedSequence",
    "are_branch_ids",
    "branch_attention_mask",
    "branch_block_mask",
    "branch_position_ids",
    "pack_branches",
]
