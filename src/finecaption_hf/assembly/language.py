"""The language model's tokenizer and chat format, fitted to images: an image token, and a template that puts images
before the question."""

from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from transformers import AutoTokenizer

from ..hub.checkpoint import read_json
from ..prompts_finecaption import DEFAULT_CHAT_TEMPLATE
from .errors import AssemblyError
from .sources import Source

# A language model's template wants strings: this makes one of every content that is a list, its images first.
_TO_STRINGS = """\
{%- set finecaption = namespace(messages=[]) %}
{%- for message in messages %}
    {%- if 'content' in message and message['content'] is not string and message['content'] is not mapping \
and message['content'] is iterable %}
        {%- set content = namespace(text='') %}
        {%- for part in message['content'] if part['type'] == 'image' %}
            {%- set content.text = content.text + IMAGE_TOKEN %}
        {%- endfor %}
        {%- for part in message['content'] if part['type'] == 'text' %}
            {%- set content.text = content.text + part['text'] %}
        {%- endfor %}
        {%- set finecaption.messages = finecaption.messages + [dict(message, content=content.text)] %}
    {%- else %}
        {%- set finecaption.messages = finecaption.messages + [message] %}
    {%- endif %}
{%- endfor %}
{%- set messages = finecaption.messages %}
"""

# A template that knows images wants lists: this makes one of every string, and puts the images first.
_TO_LISTS = """\
{%- set finecaption = namespace(messages=[]) %}
{%- for message in messages %}
    {%- if 'content' in message and message['content'] is string %}
        {%- set parts = [{'type': 'text', 'text': message['content']}] %}
        {%- set finecaption.messages = finecaption.messages + [dict(message, content=parts)] %}
    {%- elif 'content' in message and message['content'] is iterable and message['content'] is not mapping %}
        {%- set content = namespace(images=[], others=[]) %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'image' %}
                {%- set content.images = content.images + [part] %}
            {%- else %}
                {%- set content.others = content.others + [part] %}
            {%- endif %}
        {%- endfor %}
        {%- set parts = content.images + content.others %}
        {%- set finecaption.messages = finecaption.messages + [dict(message, content=parts)] %}
    {%- else %}
        {%- set finecaption.messages = finecaption.messages + [message] %}
    {%- endif %}
{%- endfor %}
{%- set messages = finecaption.messages %}
"""
_PAD_TOKENS = ("<|finetune_right_pad_id|>", "<pad>", "<|pad|>", "[PAD]", "<|endoftext|>", "<unk>")


class Vocabulary(NamedTuple):
    """Sizes around the image token: tokens before it, rows of the part's embeddings, rows needed now; and the token
    that stands behind it, where there is one."""

    tokens: int
    rows: int
    needed: int
    image_token: str
    image_token_id: int
    is_new: bool
    newline_id: int | None = None


def load_tokenizer(source: Source) -> Any:
    """The tokenizer that lies beside a language model; code beside it is not run."""
    folder = source.folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(_existing(folder, source.name), local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise AssemblyError(f"{source.name} has no tokenizer that can be loaded: {error}") from error
    if not tokenizer.chat_template and folder is not None and (folder / "chat_template.json").is_file():
        # Where processors kept it before it had a file of its own.
        tokenizer.chat_template = read_json(folder / "chat_template.json", AssemblyError).get("chat_template")
    if len(tokenizer) == 0:
        raise AssemblyError(f"{source.name} has a tokenizer without tokens. Give a folder with its tokenizer files.")
    return tokenizer


def _existing(folder: Path | None, name: str) -> Path:
    if folder is None:
        raise AssemblyError(f"{name} is a bare file, without a tokenizer. Give the folder or Hub id that has one.")
    return folder


def add_image_token(
    tokenizer: Any, rows: int, image_token: str, image_token_id: int | None = None, newline: str | None = None
) -> Vocabulary:
    """Make the image token one special token, and choose a padding token where there is none.

    Args:
        tokenizer: changed in place.
        rows (`int`): embeddings that the language model has; those beyond the tokenizer's are room for new tokens.
        image_token (`str`): the token to add, or to reuse where the tokenizer has it.
        image_token_id (`int`, *optional*): the id of a token to reuse, whatever its name.
        newline (`str`, *optional*): a second token to add, which stands behind the image.

    Raises:
        AssemblyError: If there is no token of that id.
    """
    tokens = len(tokenizer)
    if image_token_id is not None:
        known = tokenizer.convert_ids_to_tokens(image_token_id) if image_token_id < tokens else None
        if known is None:
            raise AssemblyError(
                f"The tokenizer has no token {image_token_id}, which its model reads as the image token."
            )
        image_token = known
    is_new = image_token not in tokenizer.get_vocab()
    tokenizer.add_tokens([image_token] if newline is None else [image_token, newline], special_tokens=True)
    found = tokenizer.convert_tokens_to_ids(image_token)
    if tokenizer.pad_token_id is None:
        vocabulary = tokenizer.get_vocab()
        tokenizer.pad_token = next((token for token in _PAD_TOKENS if token in vocabulary), tokenizer.eos_token)
        if tokenizer.pad_token is None:
            raise AssemblyError("The tokenizer has no padding token and none that could be one. Set its pad_token.")
    newline_id = None if newline is None else tokenizer.convert_tokens_to_ids(newline)
    return Vocabulary(tokens, rows, max(rows, len(tokenizer), found + 1), image_token, found, is_new, newline_id)


def chat_template(tokenizer: Any, image_token: str, newline: str = "") -> tuple[str, str]:
    """The language model's own chat template, with images before the question, and what was done to it.

    `newline` is put behind every image token.

    Raises:
        AssemblyError: If the template cannot take a question about an image.
    """
    own = tokenizer.chat_template
    if isinstance(own, dict):
        own = own.get("default")
    shown = image_token + newline
    if not own:
        return DEFAULT_CHAT_TEMPLATE.replace("<image>", shown), "the default of FineCaption: it has none"
    own = own.replace(image_token, shown)
    candidates = {
        "its own, images before the text": _TO_LISTS + own,
        "its own, with lists of content turned to strings, images before the text": (
            _TO_STRINGS.replace("IMAGE_TOKEN", repr(shown)) + own
        ),
    }
    reasons = []
    for done, template in candidates.items():
        reason = _fault(tokenizer, template, image_token, shown)
        if reason is None:
            return template, done
        reasons.append(reason)
    raise AssemblyError(f"The language model's chat template cannot be used: {reasons[-1]}")


def _fault(tokenizer: Any, template: str, image_token: str, shown: str) -> str | None:
    """Why a template does not serve, seen on samples; `None` where it does. An image has to become `shown`."""
    image, question = {"type": "image"}, {"type": "text", "text": "QUESTION"}
    chat: list[dict[str, Any]] = [
        {"role": "user", "content": [question, image]},
        {"role": "assistant", "content": [{"type": "text", "text": "ANSWER"}]},
        {"role": "user", "content": "AGAIN"},
    ]
    for length, words in ((1, ["QUESTION"]), (3, ["QUESTION", "ANSWER", "AGAIN"])):
        try:
            text = tokenizer.apply_chat_template(
                chat[:length], chat_template=template, tokenize=False, add_generation_prompt=True
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            return f"it fails ({error})."
        places = [text.find(word) for word in (shown, *words)]
        if text.count(image_token) != 1 or -1 in places or places != sorted(places):
            return f"a question about an image becomes {text!r}."
    return None
