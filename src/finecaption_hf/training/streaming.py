"""Examples one after the other, of shards and streams that are not gone through before training begins."""

import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from ..data import DataError, Example, read_examples
from ..data.annotations import shards_of
from .dataset import choose_regions


class ExampleStream(IterableDataset):
    """Examples of a source that is gone through again and again; it has no end and no length.

    A pass gives each example once: the shards in a random order, their examples mixed in a buffer. The order follows
    from the seed and the number of the pass, and from nothing else: each process and each worker of a `DataLoader`
    reads every row, and leaves out those of others, whose pictures it does not open.

    Args:
        source: whatever `open_dataset` reads, of which a folder or pattern of .tar or .parquet files is as many shards;
            or a `datasets.IterableDataset`, which needs a fixed seed where it is shuffled already.
        seed: of the order, and of `whole_image_share`.
        buffer_size: of how many examples the next one is drawn; 1 keeps the order of each shard.
        whole_image_share: see `WholeImageDataset`.
        max_regions: see `open_dataset`.
        batch_size: items of a batch of all processes together; workers take turns by so many.
        **reading: for `read_examples`.

    Attributes:
        num_skipped: items that are not given: those that an interrupted run had.
    """

    def __init__(
        self,
        source: Any,
        *,
        seed: int = 0,
        buffer_size: int = 1000,
        whole_image_share: float = 0.0,
        max_regions: int | None = None,
        batch_size: int = 1,
        **reading: Any,
    ) -> None:
        if buffer_size < 1:
            raise ValueError(f"buffer_size is {buffer_size}. Give at least 1, which keeps the order.")
        is_path = isinstance(source, str | os.PathLike)
        self.shards: list[Any] = shards_of(Path(source)) if is_path else [source]
        self.seed, self.buffer_size, self.reading = seed, buffer_size, reading
        self.whole_image_share, self.max_regions, self.batch_size = whole_image_share, max_regions, batch_size
        self.num_skipped = 0

    def __iter__(self) -> Iterator[Example]:
        """The items of this process's worker.

        Raises:
            DataError: If an example cannot be used, or there is none.
        """
        worker = get_worker_info()
        own, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        items = enumerate(itertools.chain.from_iterable(map(self._pass, itertools.count())))
        for index, example in itertools.islice(items, self.num_skipped, None):
            if (index - self.num_skipped) // self.batch_size % workers == own:
                yield choose_regions(example, self.whole_image_share, (self.seed, index))

    def _pass(self, number: int) -> Iterator[Example]:
        random = np.random.default_rng((self.seed, number))
        buffer: list[Example] = []
        for item in self._read([self.shards[place] for place in random.permutation(len(self.shards))], number):
            buffer.append(item)
            if len(buffer) >= self.buffer_size:
                yield buffer.pop(random.integers(len(buffer)))
        yield from (buffer[place] for place in random.permutation(len(buffer)))

    def _read(self, shards: list[Any], number: int) -> Iterator[Example]:
        found = False
        for shard in shards:
            if hasattr(shard, "set_epoch"):
                shard = shard.shuffle(seed=self.seed, buffer_size=1)  # its files; examples are mixed here
                shard.set_epoch(number)
            for example in read_examples(shard, **self.reading):
                found = True
                step = self.max_regions or len(example.regions)
                for start in range(0, len(example.regions), step):
                    yield replace(example, regions=example.regions[start : start + step])
        if not found:
            raise DataError(str(self.shards[0])[:200], "it holds no example that can be used.")
