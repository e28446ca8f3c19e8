"""The interfaces that the repositories of region models publish, without models: names, arguments, shapes and tokens.

Token ids are characters' numbers, so that a test reads what a model was sent.
"""

import sys
from collections.abc import Callable
from enum import Enum, auto
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

IMAGE, BOS = -200, 1
ANSWER = "a red cup"


def install(monkeypatch: pytest.MonkeyPatch, **modules: Any) -> None:
    """Modules of a package that is not installed, by name (`__` for a dot)."""
    for name, contents in modules.items():
        module = ModuleType(name.replace("__", "."))
        module.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, module.__name__, module)


class Tokenizer:
    """One id per character, `<s>` before."""

    bos_token_id, eos_token_id, pad_token_id, unk_token = BOS, 2, None, "<unk>"

    def __init__(self) -> None:
        self.added: list[str] = []

    def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
        return SimpleNamespace(input_ids=[BOS] * add_special_tokens + [ord(letter) for letter in text])

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = self(text, add_special_tokens).input_ids
        return ids

    def add_tokens(self, tokens: list[str], special_tokens: bool = False) -> None:
        self.added += tokens

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        return read(ids)

    def batch_decode(self, ids: Any, skip_special_tokens: bool = False) -> list[str]:
        return [read(row) for row in ids]


def read(ids: Any) -> str:
    """The text of ids, with `<image>` in its place."""
    return "".join("<image>" if number == IMAGE else "" if number == BOS else chr(number) for number in map(int, ids))


def ids_of(text: str) -> torch.Tensor:
    return torch.tensor([[ord(letter) for letter in text]])


class SeparatorStyle(Enum):
    SINGLE = auto()
    TWO = auto()


class Conversation:
    system, roles, sep, sep2, sep_style = "S", ("USER", "ASSISTANT"), " ", "</s>", SeparatorStyle.TWO

    def __init__(self) -> None:
        self.messages: list[list[Any]] = []

    def copy(self) -> "Conversation":
        return Conversation()

    def append_message(self, role: str, message: str | None) -> None:
        self.messages.append([role, message])

    def get_prompt(self) -> str:
        turns = (f"{role}: {message}{self.sep}" if message else f"{role}:" for role, message in self.messages)
        return self.system + self.sep + "".join(turns)


def tokenizer_image_token(
    prompt: str, tokenizer: Tokenizer, image_token_index: int = IMAGE, return_tensors: str | None = None
) -> torch.Tensor:
    assert return_tensors == "pt"
    first, *others = ([ord(letter) for letter in part] for part in prompt.split("<image>"))
    ids = [BOS, *first]
    for part in others:
        ids += [image_token_index, *part]
    return torch.tensor(ids)


def llava_modules(package: str, template: str) -> dict[str, dict[str, Any]]:
    """`conversation`, `mm_utils` and `constants` of a descendant of LLaVA."""
    constants = {
        "IMAGE_TOKEN_INDEX": IMAGE,
        "DEFAULT_IMAGE_TOKEN": "<image>",
        "DEFAULT_IM_START_TOKEN": "<im_start>",
        "DEFAULT_IM_END_TOKEN": "<im_end>",
    }
    return {
        f"{package}__conversation": {
            "conv_templates": {template: Conversation()},
            "SeparatorStyle": SeparatorStyle,
        },
        f"{package}__mm_utils": {
            "tokenizer_image_token": tokenizer_image_token,
            "get_model_name_from_path": lambda path: path.rstrip("/").rpartition("/")[2],
        },
        f"{package}__constants": constants,
    }


class ImageProcessor:
    """Of CLIP, as far as it is called: it notes its options and gives (1, 3, H, W)."""

    image_mean = [0.5, 0.5, 0.5]

    def __init__(self, **options: Any) -> None:
        self.made_with = options
        self.calls: list[dict[str, Any]] = []

    def preprocess(self, image: Any, return_tensors: str, **options: Any) -> dict[str, torch.Tensor]:
        self.calls.append({"image": image, **options})
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
        return {"pixel_values": pixels.unsqueeze(0)}


class LlavaModel:
    """`generate` of a descendant of LLaVA: prompt and answer; what is bound to `forward` counts as sent."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, framed: bool = False) -> None:
        self.config = SimpleNamespace(mm_use_im_start_end=framed)
        self.sent: list[dict[str, Any]] = []
        self.tower = SimpleNamespace(is_loaded=True, to=lambda **_: None)

    def eval(self) -> "LlavaModel":
        return self

    def to(self, *_: Any, **__: Any) -> "LlavaModel":
        return self

    def modules(self) -> list[Any]:
        return [self]

    def get_vision_tower(self) -> Any:
        return self.tower

    def forward(self, input_ids: Any = None, images: Any = None) -> None: ...

    def generate(self, input_ids: torch.Tensor, *, images: Any, **options: Any) -> torch.Tensor:
        bound = getattr(self.forward, "keywords", {})
        self.sent.append({"prompt": read(input_ids[0]), "images": images, **bound, **options})
        return torch.cat([input_ids, ids_of(f" {ANSWER}</s>")], dim=1)


class Mark2Square:
    """`expand2square` and `expand2square_mask` of OMG-LLaVA and Shikra."""

    @staticmethod
    def expand2square(image: Image.Image, background_color: Any = (255, 255, 255)) -> Image.Image:
        side = max(image.size)
        square = Image.new("RGB", (side, side), background_color)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return square

    @staticmethod
    def expand2square_mask(mask: np.ndarray) -> np.ndarray:
        _, height, width = mask.shape
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        return np.pad(mask, ((0, 0), (top, side - height - top), (left, side - width - left)))


def noted(into: list[Any], returned: Any) -> Callable[..., Any]:
    """A function that keeps its arguments and returns a value."""

    def called(*arguments: Any, **options: Any) -> Any:
        into.append((arguments, options))
        return returned

    return called
