"""NVIDIA's Describe Anything Model (arXiv 2504.16072): a mask beside the picture.

The interface is `get_description` in github.com/NVlabs/describe-anything, as the code beside the published weights has
it. Its examples draw at temperature 0.2; here it is greedy unless told otherwise, as all models of a table are.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .shared import check_trusted


class DescribeAnything:
    """See `RegionModel`. The mask goes along as a picture of 0 and 255, the query begins with `<image>`.

    Args:
        model: what `init_dam` of the published model returns, or anything with that `get_description`.
        max_new_tokens: the longest answer.
        temperature, top_p: 0 takes the likeliest token.
        settings: more for reports, such as the revision.
    """

    takes_mask = True

    def __init__(
        self,
        model: Any,
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 0.5,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._model = model
        self._options = {"temperature": temperature, "top_p": top_p, "num_beams": 1, "max_new_tokens": max_new_tokens}
        self.settings = {"describer": "describe_anything", "decoding": self._options, **(settings or {})}

    def answer(self, image: Any, mask: np.ndarray, prompt: str) -> str:
        from PIL import Image

        picture = Image.fromarray(mask.astype(np.uint8) * 255)
        answer = self._model.get_description(image, picture, f"<image>\n{prompt}", streaming=False, **self._options)
        return answer if isinstance(answer, str) else "".join(answer)


def load(
    model: str = "nvidia/DAM-3B-Self-Contained",
    *,
    trust_remote_code: bool = False,
    revision: str | None = None,
    device: str | None = None,
    dtype: str = "float16",
    conv_mode: str = "v1",
    prompt_mode: str = "full+focal_crop",
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 0.5,
) -> DescribeAnything:
    """The published model, whose code lies beside its weights."""
    check_trusted(model, trust_remote_code)
    import torch
    from transformers import AutoModel

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    source: dict[str, Any] = {"trust_remote_code": True, "revision": revision, "torch_dtype": getattr(torch, dtype)}
    loaded = AutoModel.from_pretrained(model, **source).to(device)
    modes = {"conv_mode": conv_mode, "prompt_mode": prompt_mode}
    return DescribeAnything(
        loaded.init_dam(**modes),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        settings={"checkpoint": model, "revision": revision, "dtype": dtype, **modes},
    )
