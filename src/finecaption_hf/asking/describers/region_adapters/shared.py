"""What the files of this folder share.

Legend: H W height and width of the picture in pixels. Masks are bool (H, W). A box is box_xyxy, ends exclusive.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np


def imported(module: str, name: str, repository: str, install: str) -> Any:
    """A module of a model's own code.

    Raises:
        ImportError: If it is missing; the message says which repository has it, and how it gets here.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{name} needs the code of {repository} ({error}). In a Python environment of its own: {install}. Then "
            f"give that environment's Python as well: describer {name}@/path/to/python."
        ) from error


def check_trusted(model: str, trusted: bool) -> None:
    """Refuse to run code that lies beside weights where nobody allowed it.

    Raises:
        ValueError: If it was not allowed.
    """
    if not trusted:
        raise ValueError(
            f"{model} runs code that lies beside its weights. Look at that code, then give trust_remote_code: true "
            "(--trust-remote-code) and a revision, so that it stays the code that you looked at."
        )


@contextmanager
def bound(model: Any, **inputs: Any) -> Iterator[None]:
    """Give every forward call of a model more inputs, which its `generate` does not hand on; models' own scripts do it
    in this way, too."""
    forward = model.forward
    model.forward = partial(forward, **inputs)
    try:
        yield
    finally:
        model.forward = forward


def refers(prompt: str, mask: np.ndarray, token: str) -> bool:
    """Whether a prompt has the token in whose place a model puts the region.

    Raises:
        ValueError: If the region would be lost, because the token is missing, or if the token is there twice.
    """
    count = prompt.count(token)
    if count > 1 or (count == 0 and not mask.all()):
        raise ValueError(
            f"The prompt has {token} {count} times, where the region goes; once is needed. The referral's sentence "
            "brings it: keep {referral} in the prompts, and the token in a sentence of your own."
        )
    return count == 1


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The bounding box of a mask, box_xyxy with exclusive ends."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


class LlavaChat:
    """The way of a prompt into token ids, and of token ids into an answer, that descendants of LLaVA's code share.

    Args:
        conversation, mm_utils, constants: their modules of that name.
        tokenizer: of the model.
        template: name of the conversation's form, in `conversation.conv_templates`.
    """

    def __init__(self, conversation: Any, mm_utils: Any, constants: Any, tokenizer: Any, template: str) -> None:
        self._conversation, self._mm_utils, self._constants = conversation, mm_utils, constants
        self._tokenizer, self._template = tokenizer, template

    def input_ids(self, text: str, framed: bool = False) -> Any:
        """Token ids (1, L) of a user's turn; `<image>` in it becomes the picture's place.

        Args:
            text: of the turn, with `<image>`.
            framed: the picture's place has a start and an end, `config.mm_use_im_start_end` of a model.
        """
        if framed:
            constants = self._constants
            picture = constants.DEFAULT_IMAGE_TOKEN
            text = text.replace(picture, constants.DEFAULT_IM_START_TOKEN + picture + constants.DEFAULT_IM_END_TOKEN)
        turns = self._conversation.conv_templates[self._template].copy()
        turns.append_message(turns.roles[0], text)
        turns.append_message(turns.roles[1], None)
        index = self._constants.IMAGE_TOKEN_INDEX
        return self._mm_utils.tokenizer_image_token(
            turns.get_prompt(), self._tokenizer, index, return_tensors="pt"
        ).unsqueeze(0)

    def answer(self, output_ids: Any) -> str:
        """The text of generated token ids (1, L), without what ends a turn."""
        turns = self._conversation.conv_templates[self._template]
        two = turns.sep_style == self._conversation.SeparatorStyle.TWO
        end: str = turns.sep2 if two else turns.sep
        text: str = self._tokenizer.batch_decode(output_ids, skip_special_tokens=True)[0].strip()
        return text[: -len(end)].strip() if end and text.endswith(end) else text
