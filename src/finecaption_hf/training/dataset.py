"""How often the whole image is the region."""

from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ..prompts_finecaption import is_global


class WholeImageDataset(Dataset):
    """A data set of examples in which a share of the samples is the whole image with its global caption.

    Of an example that has a region without mask with a branch named `global`, `share` of the items are that region
    alone; the others leave it out, unless there is no other region. Which, is decided by seed and index, so
    it is the same in every epoch and process. Other examples pass unchanged.

    Args:
        dataset: examples by index.
        share (`float`): between 0 and 1; Alpha-CLIP (arXiv 2312.03818) takes 0.1.
        seed (`int`): of the choice.
    """

    def __init__(self, dataset: Any, share: float, seed: int = 0) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}; it must be between 0 and 1.")
        self.dataset, self.share, self.seed = dataset, share, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        index = range(len(self))[index]
        return choose_regions(self.dataset[index], self.share, (self.seed, index))


def choose_regions(example: Any, share: float, seed: tuple[int, int]) -> Any:
    """The example with the region that is its whole image alone, or without it: see `WholeImageDataset`."""
    whole = tuple(region for region in example.regions if _is_whole(region))
    others = tuple(region for region in example.regions if not _is_whole(region))
    if not whole or not others:
        return example
    return replace(example, regions=whole if np.random.default_rng(seed).random() < share else others)


def _is_whole(region: Any) -> bool:
    names = (branch.name for branch in region.branches if branch.name is not None)
    return region.mask is None and any(map(is_global, names))
