"""The high-resolution towers' features of pictures, kept from one region of a picture to the next."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import nn


class KeptFeatures(nn.Module):
    """High-resolution features (C, h, w) of the pictures that were asked about last, in memory that is taken at the
    start, so that vLLM counts it.

    Attributes:
        encoded, found: pictures that were encoded, and that were still there.
    """

    features: torch.Tensor

    def __init__(self, number: int, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(number, *shape, dtype=dtype), persistent=False)
        self._places: OrderedDict[bytes, int] = OrderedDict()
        self.encoded = self.found = 0

    def of(
        self, keys: Sequence[bytes], pixels: Sequence[torch.Tensor], encode: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Features (B, C, h, w) of the pictures with these keys; `encode` makes those of new ones, each once."""
        new = {key: number for number, key in enumerate(keys) if key not in self._places}
        made = dict(zip(new, encode(torch.stack([pixels[number] for number in new.values()])))) if new else {}
        self.encoded += len(made)
        self.found += len(keys) - len(made)
        # Before places are given anew, whose features may be wanted as well.
        wanted = torch.stack([made[key] if key in made else self.features[self._places[key]] for key in keys])
        for key in dict.fromkeys(key for key in keys if key not in made):
            self._places.move_to_end(key)
        for key in made if len(self.features) else ():
            taken = len(self._places)
            place = taken if taken < len(self.features) else self._places.popitem(last=False)[1]
            self.features[place] = made[key]
            self._places[key] = place
        return wanted
