"""Several datasets as one."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .examples import Example


class MixedDataset:
    """A mix of datasets, the same for the same arguments.

    Without weights every item comes once. With weights, the shares of the datasets in the mix are the weights' shares,
    and the mix is as long as it must be for every item of every dataset to come at least once: no item is left out,
    those of datasets with larger weights (relative to their sizes) come several times. Each item of a dataset comes as
    often as any other of it, give or take one.

    The order is drawn at random, so that each stretch of it is a mix, too.

    Args:
        datasets: name -> dataset with a length and items by number.
        weights (*optional*): name -> how often the dataset is drawn from, relative to the others.
        seed (`int`): of the order, and of which items come once more.

    Raises:
        ValueError: If there is no dataset, one is empty, or weights are not positive or not of the datasets.
    """

    def __init__(self, datasets: Mapping[str, Any], weights: Mapping[str, float] | None = None, seed: int = 0) -> None:
        if not datasets:
            raise ValueError("There is nothing to mix. Give at least one dataset.")
        self.names = tuple(datasets)
        self.datasets = tuple(datasets.values())
        sizes = {name: len(dataset) for name, dataset in datasets.items()}
        if empty := [name for name, size in sizes.items() if not size]:
            raise ValueError(f"The dataset {empty[0]!r} is empty. Leave it out of the mix.")
        if weights is not None and (
            set(weights) != set(sizes) or not all(_is_weight(each) for each in weights.values())
        ):
            raise ValueError(
                f"There are the datasets {', '.join(sizes)} and the weights {dict(weights)}. Give one positive weight "
                "for each dataset; leave out those that are not to be drawn from."
            )
        self.num_draws = {name: _num_draws(name, sizes, weights) for name in sizes}
        generator = np.random.default_rng(seed)
        sources, items = [], []
        for number, name in enumerate(sizes):
            rounds, rest = divmod(self.num_draws[name], sizes[name])
            drawn = [*([np.arange(sizes[name])] * rounds), generator.permutation(sizes[name])[:rest]]
            items.append(np.concatenate(drawn))
            sources.append(np.full(self.num_draws[name], number))
        order = generator.permutation(sum(self.num_draws.values()))
        self._sources = np.concatenate(sources)[order].astype(np.int32)
        self._items = np.concatenate(items)[order].astype(np.int64)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Example:
        return self.datasets[self._sources[index]][int(self._items[index])]

    def source(self, index: int) -> str:
        """The name of the dataset that item `index` comes from."""
        return self.names[self._sources[index]]


def _is_weight(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 < value < float("inf")


def _num_draws(name: str, sizes: Mapping[str, int], weights: Mapping[str, float] | None) -> int:
    """How often a dataset is drawn from, where the one that is largest for its weight is drawn from once per item."""
    if weights is None:
        return sizes[name]
    per_weight = max(size / weights[other] for other, size in sizes.items())
    return max(sizes[name], round(weights[name] * per_weight))
