"""The front matter of a card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from .errors import HubError


def split_card(text: str) -> tuple[dict[str, Any], str]:
    """Front matter and body of a card.

    Raises:
        HubError: If the front matter is no YAML mapping.
    """
    match = REGEX_YAML_BLOCK.search(text.lstrip("\ufeff"))
    if match is None:
        return {}, text
    try:
        fields = yaml.safe_load(match[2])
    except yaml.YAMLError as error:
        raise HubError(f"The front matter of README.md is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(fields, dict):
        raise HubError("The front matter of README.md is no mapping of names to values.")
    return fields, text.lstrip("\ufeff")[match.end() :]


def join_card(fields: Mapping[str, Any], body: str) -> str:
    return f"---\n{yaml.safe_dump(dict(fields), sort_keys=False, allow_unicode=True)}---\n\n{body.strip()}\n"


def card_fields(path: Path) -> dict[str, Any]:
    """The front matter of a card in a file; empty where there is none that can be read."""
    try:
        return split_card(path.read_text(encoding="utf-8", errors="replace"))[0] if path.is_file() else {}
    except HubError:
        return {}


def stated_licence(fields: Mapping[str, Any]) -> str | None:
    """The licence in a front matter: its id, or its own name; `None` where it states none."""
    licence = fields.get("license")
    if licence == "other":
        licence = fields.get("license_name") or licence
    return ", ".join(map(str, licence)) if isinstance(licence, list) else licence and str(licence)


def joined(*lists: Any) -> list[Any]:
    """Entries of several lists, each once; a text is a list of one."""
    entries = [entry for given in lists for entry in ([given] if isinstance(given, str) else given or [])]
    return list(dict.fromkeys(entries))
