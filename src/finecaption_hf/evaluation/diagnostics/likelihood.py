"""How likely a model finds given answers about regions: all branches of a region in one pass over its prefix.

Dimension letters: B regions, I images, N image tokens of a region, S sequences, T tokens of a sequence, D width of the
language model, A answer tokens, V vocabulary.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ...branches_finecaption import PADDING_BRANCH, attention_window, branch_obstacle
from ...data.packing import IGNORED_LABEL, BranchEncoder, PackedSequence, pack_branches
from ...prompts_finecaption import find_question

_PACKABLE = ("sdpa", "eager", "flex_attention")

Branch = tuple[tuple[int, ...], tuple[int, ...]]
"""Tokens of a question and of an answer."""


class AnswerScore(NamedTuple):
    """Natural logarithm of an answer's probability, summed over its tokens, and their number. The token that ends the
    answer is one of them."""

    log_prob: float
    num_tokens: int

    @property
    def per_token(self) -> float:
        return self.log_prob / self.num_tokens


class AnswerScorer:
    """Scores given answers. A language model that cannot keep branches apart gets one sequence per branch.

    Args:
        model (`FineCaptionForConditionalGeneration`): in evaluation mode.
        processor (`FineCaptionProcessor`): the checkpoint's.
        branch_tokens: how many tokens of branches share a prefix in one sequence; attention's memory grows with its
            square. One branch may be longer.
        tokens_at_once: how many tokens go through the language model together.

    Raises:
        ValueError: If the chat template does not split into a prefix, a question and an answer.
    """

    answers_at_once = 512  # positions whose logits are held at once, each as wide as the vocabulary

    def __init__(self, model: Any, processor: Any, *, branch_tokens: int = 1024, tokens_at_once: int = 8192) -> None:
        self.model = model
        self.processor = processor
        self.branch_tokens = branch_tokens
        self.tokens_at_once = tokens_at_once
        self._encoder = BranchEncoder(processor)
        self._prefix_ids = self._encoder.prefix_ids

    def encode(self, question: str, answer: str) -> Branch:
        """The tokens of a branch.

        Args:
            question: a name that the processor knows, or own words.
            answer: what is to be scored.

        Raises:
            ValueError: If the answer is empty, or a text holds a special token.
        """
        text = find_question(question, self.processor.questions)
        return self._encoder.encode([(question if text is None else text, answer)])[0]

    @torch.inference_mode()
    def image_tokens(self, vision: Mapping[str, Any]) -> torch.Tensor:
        """The image tokens of regions; each image goes through the high-resolution towers once.

        Regions are encoded one by one: in a batch, the place of a region decides how its sums are rounded, but regions
        that are the same to the model shall have the same tokens, bit by bit.

        Args:
            vision: what the processor's image processor returns for I images and B regions.

        Returns:
            `torch.Tensor` of shape `(B, N, D)`.
        """
        model = self.model
        inputs = {name: torch.as_tensor(value).to(model.device) for name, value in vision.items()}
        pixels, masks = inputs["pixel_values"].to(model.dtype), inputs.get("mask_values")
        indices = inputs.get("image_indices")
        images = list(range(len(pixels))) if indices is None else indices.tolist()
        high_res: dict[int, torch.Tensor | None] = {}
        found = []
        for region, image in enumerate(images):
            if image not in high_res:
                given = inputs.get("high_res_pixel_values")
                part = None if given is None else given[image : image + 1].to(model.dtype)
                high_res[image] = None if part is None else model.get_high_res_features(part)
            output = model.get_image_features(
                pixels[image : image + 1],
                mask_values=None if masks is None else masks[region : region + 1].to(model.dtype),
                high_res_features=high_res[image],
                return_dict=True,
            )
            found.append(output.pooler_output)
        return torch.cat(found)

    @torch.inference_mode()
    def score(self, image_tokens: torch.Tensor, branches: Sequence[Sequence[Branch]]) -> list[list[AnswerScore]]:
        """The score of each answer.

        Args:
            image_tokens (`torch.Tensor` of shape `(B, N, D)`): of regions.
            branches: for each region its branches, as `encode` gives them; may be none.
        """
        if len(image_tokens) != len(branches):
            raise ValueError(
                f"Branches of {len(branches)} regions arrived for {len(image_tokens)}. Give those of each."
            )
        scores: list[list[AnswerScore]] = [[AnswerScore(0.0, 0)] * len(row) for row in branches]
        sequences: list[tuple[int, PackedSequence]] = []
        packed = self._can_pack(branches)
        prefix = len(self._prefix_ids)
        for region, row in enumerate(branches):
            if packed and row:
                longest = max(len(question) + len(answer) for question, answer in row)
                limit = prefix + max(self.branch_tokens, longest)
                sequences += [(region, it) for it in pack_branches(self._prefix_ids, row, limit)]
            elif row:
                sequences += [
                    (region, pack_branches(self._prefix_ids, [branch])[0]._replace(branches=[number]))
                    for number, branch in enumerate(row)
                ]
        # Those of like length together, for little padding.
        sequences.sort(key=lambda item: len(item[1].input_ids), reverse=True)
        while sequences:
            count = max(1, self.tokens_at_once // len(sequences[0][1].input_ids))
            chunk, sequences = sequences[:count], sequences[count:]
            for (region, sequence), of_branches in zip(chunk, self._score(image_tokens, chunk, packed), strict=True):
                for number, score in zip(sequence.branches, of_branches, strict=True):
                    scores[region][number] = score
        return scores

    def _can_pack(self, branches: Sequence[Sequence[Branch]]) -> bool:
        language_model = self.model.model.language_model
        if branch_obstacle(language_model) is not None:
            return False
        if language_model.config._attn_implementation not in _PACKABLE:
            return False
        window = attention_window(language_model)
        longest = max((len(question) + len(answer) for row in branches for question, answer in row), default=0)
        return window is None or len(self._prefix_ids) + longest <= window

    def _score(
        self, image_tokens: torch.Tensor, chunk: Sequence[tuple[int, PackedSequence]], packed: bool
    ) -> list[list[AnswerScore]]:
        """Scores of the branches of each sequence."""
        device = self.model.device
        length = max(len(sequence.input_ids) for _, sequence in chunk)

        def padded(name: str, value: int) -> torch.Tensor:
            rows = (getattr(sequence, name) for _, sequence in chunk)
            return torch.tensor([row + [value] * (length - len(row)) for row in rows])

        branch_ids, labels = padded("branch_ids", PADDING_BRANCH), padded("labels", IGNORED_LABEL)
        inputs: dict[str, Any]
        if packed:
            regions = sorted({region for region, _ in chunk})
            inputs = {
                "branch_ids": branch_ids.to(device),
                "region_indices": torch.tensor([regions.index(region) for region, _ in chunk], device=device),
            }
        else:
            regions = [region for region, _ in chunk]
            inputs = {"attention_mask": (branch_ids != PADDING_BRANCH).long().to(device)}
        hidden = self.model.model(
            input_ids=padded("input_ids", 0).to(device),
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=image_tokens[regions])},
            use_cache=False,
            return_dict=True,
            **inputs,
        ).last_hidden_state
        # What stands before a token predicts it.
        rows, columns = (labels[:, 1:] != IGNORED_LABEL).nonzero(as_tuple=True)
        found = []
        for part in torch.arange(len(rows)).split(self.answers_at_once):
            logits = self.model.lm_head(hidden[rows[part].to(device), columns[part].to(device)]).float()
            targets = labels[rows[part], columns[part] + 1].to(device)
            found.append(logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0].double().cpu())
        log_probs = torch.cat(found)
        scores = []
        for row, (_, sequence) in enumerate(chunk):
            of_row = log_probs[rows == row]
            owners = branch_ids[row, columns[rows == row] + 1]
            parts = [of_row[owners == number] for number in range(1, len(sequence.branches) + 1)]
            scores.append([AnswerScore(float(part.sum()), len(part)) for part in parts])
        return scores


def score_answers(
    model: Any, processor: Any, vision: Mapping[str, Any], branches: Sequence[Sequence[tuple[str, str]]]
) -> list[list[AnswerScore]]:
    """How likely given answers are.

    Args:
        model, processor: as `asking.load` returns them.
        vision: what the processor's image processor returns for B regions.
        branches: for each region its questions (names that the processor knows, or own words) with their answers.

    Returns:
        B lists of scores, one for each branch, in their order.

    Raises:
        ValueError: If an answer is empty, a text holds a special token, or branches are not those of B regions.
    """
    scorer = AnswerScorer(model, processor)
    encoded = [[scorer.encode(question, answer) for question, answer in row] for row in branches]
    return scorer.score(scorer.image_tokens(vision), encoded)


def same_tokens(image_tokens: torch.Tensor) -> list[int]:
    """For each region `(B, N, D)` the first one whose tokens are the same, bit by bit."""
    first: dict[bytes, int] = {}
    found = []
    for region, tokens in enumerate(image_tokens):
        content = tokens.contiguous().view(torch.uint8).cpu().numpy().tobytes()
        found.append(first.setdefault(hashlib.sha256(content).digest(), region))
    return found
