"""A FineCaption checkpoint as a describer."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from PIL import Image

from ..engine_finecaption import BranchEngine, encode_picture
from ..resuming import model_fingerprint


class FineCaptionDescriber(BranchEngine):
    """The engine with a name and with what decides its texts: see `Describer`.

    Args:
        model, processor: as `load` returns them.
        name: of the model, for reports.
        max_batch_tokens: how much is held at once, see `BranchEngine`.
        max_new_tokens: the longest answer where a request says nothing; `None` means that of `BranchEngine`.

    Raises:
        ValueError: If a setting makes no sense.
    """

    independent = False  # a batch changes how sums are rounded, which decides where two tokens are as likely

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        name: str = "FineCaption",
        max_batch_tokens: int | None = None,
        max_new_tokens: int | None = None,
    ) -> None:
        super().__init__(model, processor, max_batch_tokens=max_batch_tokens)
        self.name = name
        if max_new_tokens is not None:
            self.max_new_tokens = max_new_tokens
        self._given_batch_tokens = max_batch_tokens

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def source(self) -> tuple[str, str | None] | None:
        """Folder or Hub id that the weights are from, and the commit of a Hub id; `None` where they are of none."""
        name = self.model.name_or_path
        return (name, getattr(self.model.config, "_commit_hash", None)) if name else None

    @cached_property
    def _fingerprint(self) -> str:
        return model_fingerprint(self.model, self.processor)

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Describer`."""
        # Those of a `PeftModel` that are switched on: the fingerprint is of all.
        adapters = {
            name
            for layer in self.model.modules()
            if isinstance(names := getattr(layer, "active_adapters", None), list) and not layer.disable_adapters
            for name in names
        }
        return {
            "fingerprint": self._fingerprint,
            **({"adapters": sorted(adapters)} if adapters else {}),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "referral": "mask",
            "decoding": {"max_new_tokens": self.max_new_tokens},
            "max_batch_tokens": self._given_batch_tokens,  # not what shortage of memory has made of it
        }

    def encode(self, picture: Image.Image) -> torch.Tensor | None:
        """`high_res_features` (1, C, h, w) of a picture, for several calls about it; `None` where there are none."""
        return encode_picture(self.model, self.processor.image_processor, picture)
