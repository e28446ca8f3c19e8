"""Lets torchvision be imported that was built for CUDA, beside a PyTorch that was not: scripts/environment.sh puts this
into .venv-vllm, where each process of vLLM starts with it.

The compiled part of such a torchvision cannot be loaded, and its Python part then misses operators by name. They are
named here; nothing that resizes pictures calls them.
"""

import sys
from typing import Any


class Operators:
    """Finds no module, but names the operators when torchvision is about to be imported."""

    library: Any = None

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> None:
        if name == "torchvision" and cls.library is None:
            from torch.library import Library

            cls.library = Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                cls.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


sys.meta_path.insert(0, Operators)
