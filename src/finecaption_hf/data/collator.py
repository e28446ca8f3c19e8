"""Examples -> the tensors of a training step, each image loaded once and each region's branches packed together.

Dimension letters: B regions, I images, S sequences, T tokens of a sequence.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from PIL import Image

from ..branches_finecaption import PADDING_BRANCH
from .examples import Branch, DataError, Example, Region
from .packing import IGNORED_LABEL, BranchEncoder, PackedSequence, pack_branches


class RegionCollator:
    """Makes a batch of examples for a `Trainer` or a `DataLoader`; can be sent to worker processes.

    Images and regions go through the processor's image processor, texts through its chat template and tokenizer, so
    training sees what inference sees. Examples of the same image (the same name of one file, or the same picture)
    share it. Give the Trainer `remove_unused_columns=False`.

    Args:
        processor (`FineCaptionProcessor`): of the checkpoint that trains.
        load_image: gives the picture of an example, such as `dataset.load`.
        max_tokens (`int`, *optional*): of a sequence, with its prefix. A region whose branches do not fit has several
            sequences, which share its image tokens; a branch is never cut.
        packed (`bool`): `False` makes one sequence per branch, with an image and a region of its own, and a plain
            attention mask: as training without branches does it. For comparison.

    Raises:
        ValueError: If the processor's chat template cannot be used for training.
    """

    def __init__(
        self,
        processor: Any,
        *,
        load_image: Callable[[Example], Image.Image],
        max_tokens: int | None = None,
        packed: bool = True,
    ) -> None:
        self.processor = processor
        self.load_image = load_image
        self.max_tokens = max_tokens
        self.packed = packed
        self.encoder = BranchEncoder(processor)
        pad_token_id = processor.tokenizer.pad_token_id
        self.pad_token_id: int = processor.tokenizer.eos_token_id if pad_token_id is None else pad_token_id
        if self.pad_token_id is None:
            raise ValueError("The tokenizer has neither a padding nor an end-of-sequence token. Set its pad_token.")

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Prepare a batch.

        Args:
            examples: in any order; sequences come by image and region, each in the order of their first appearance.

        Returns:
            `dict` with, for I images, B regions and S sequences of T tokens, padded on the right,

            - `pixel_values` `(I, 3, h, w)`, `high_res_pixel_values` `(I, 3, h', w')` where the processor makes them,
            - `mask_values` `(B, 1, h, w)` where the processor makes them, and `image_indices` `(B,)`,
            - `region_indices` `(S,)`, the region of each sequence,
            - `input_ids`, `labels` (answers only, -100 elsewhere) and `branch_ids` `(S, T)`.

            With `packed=False`, I, B and S are the number of branches, and `attention_mask` `(S, T)` takes the place of
            `branch_ids`, `image_indices` and `region_indices`.

        Raises:
            DataError: If an image, a region or a text of an example cannot be used; its `where` is the example's.
        """
        if not examples:
            raise ValueError("The batch is empty. Give at least one example.")
        groups: dict[Hashable, list[Example]] = {}
        for example in examples:
            groups.setdefault(_image_key(example), []).append(example)

        # Texts first: they are cheap, and a bad one need not wait for its image.
        regions: list[tuple[int, Example, Region]] = []
        sequences: list[PackedSequence] = []
        region_indices: list[int] = []
        for index, group in enumerate(groups.values()):
            for example, region in [(item, region) for item in group for region in item.regions]:
                packed = self._pack(example, region)
                region_indices += [len(regions)] * len(packed)
                sequences += packed
                regions.append((index, example, region))
        pictures = [self._load(group[0]) for group in groups.values()]
        if not self.packed:
            # As peers do it: every branch brings its region and its image.
            regions = [regions[region] for region in region_indices]
            pictures = [pictures[index] for index, _, _ in regions]
            regions = [(number, example, region) for number, (_, example, region) in enumerate(regions)]
        batch = {**self._pad(sequences), **self._prepare_regions(pictures, regions)}
        if self.packed:
            batch["region_indices"] = torch.tensor(region_indices)
        else:
            batch["attention_mask"] = (batch.pop("branch_ids") != PADDING_BRANCH).long()
            del batch["image_indices"]
        return batch

    def _pack(self, example: Example, region: Region) -> list[PackedSequence]:
        try:
            branches = self.encoder.encode([(self._question(branch), branch.answer) for branch in region.branches])
            if self.packed:
                return pack_branches(self.encoder.prefix_ids, branches, self.max_tokens)
            return [
                packed
                for branch in branches
                for packed in pack_branches(self.encoder.prefix_ids, [branch], self.max_tokens)
            ]
        except ValueError as error:
            raise DataError(example.where, f"{_name(example, region)}: {error}") from error

    def _question(self, branch: Branch) -> str:
        if branch.question is not None:
            return branch.question
        assert branch.name is not None, "a branch has a name or a question"
        return self.processor.question(branch.name)

    def _load(self, example: Example) -> Image.Image:
        try:
            return self.load_image(example)
        except DataError:
            raise
        except (OSError, ValueError, KeyError) as error:
            raise DataError(example.where, f"its image cannot be loaded: {error}") from error

    def _prepare_regions(
        self, pictures: list[Image.Image], regions: list[tuple[int, Example, Region]]
    ) -> dict[str, torch.Tensor]:
        def prepare(pictures: list[Image.Image], regions: list[tuple[int, Example, Region]]) -> dict[str, torch.Tensor]:
            masks = [example.reference(region, pictures[index]) for index, example, region in regions]
            indices = [index for index, _, _ in regions]
            return dict(self.processor.image_processor(pictures, masks=masks, image_indices=indices))

        try:
            return prepare(pictures, regions)
        except (OSError, ValueError) as error:
            # Only now look for the example that is to blame.
            for index, example, region in regions:
                try:
                    prepare([pictures[index]], [(0, example, region)])
                except (OSError, ValueError) as reason:
                    raise DataError(example.where, f"{_name(example, region)}: {reason}") from error
            raise

    def _pad(self, sequences: list[PackedSequence]) -> dict[str, torch.Tensor]:
        length = max(len(sequence.input_ids) for sequence in sequences)
        padding = {"input_ids": self.pad_token_id, "labels": IGNORED_LABEL, "branch_ids": PADDING_BRANCH}
        return {
            name: torch.tensor(
                [row + [value] * (length - len(row)) for row in (getattr(item, name) for item in sequences)]
            )
            for name, value in padding.items()
        }


def _image_key(example: Example) -> Hashable:
    """What examples of one image share. Names count within a store and a file: `images/1.png` may be in several."""
    if not isinstance(example.image, str):
        return id(example.image)
    source = example.where.rpartition("[" if example.where.endswith("]") else ":")[0]
    return id(example.store), source, example.image


def _name(example: Example, region: Region) -> str:
    if region.id is not None:
        return f"region {region.id!r}"
    return f"region {next(number for number, item in enumerate(example.regions, 1) if item is region)}"


__all__ = ["RegionCollator"]
