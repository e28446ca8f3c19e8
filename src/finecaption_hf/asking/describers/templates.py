"""What other models are asked: a template around each question."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...prompts_finecaption import find_question, is_global
from ..errors import DescriberError
from .referral import check_fields
from .settings import check_options, options_of

_FIELDS = ("question", "referral", "box", "name")

_HEADER = """\
# What models beside FineCaption are asked: --prompts FILE, see docs/describers.md.
# {referral} is the sentence that points out the region, {box} its box as the model writes it, {question} the question,
# {name} its name; write a brace itself twice. by_name has the whole text for each task and attribute; what is asked in
# own words goes into default, what is asked about the whole image into whole (null: default without the referral).
"""


@dataclass(frozen=True)
class PromptTemplates:
    """Templates with `{question}` (that of the dataset), `{referral}` (the sentence that points out the region),
    `{box}` (its box as the model writes it) and `{name}` (of the task or attribute).

    Args:
        default: for every question.
        whole: for questions about the whole image, where `{referral}` and `{box}` are empty; `None` means `default`.
        by_name: templates for single tasks and attributes; case and separators of the names do not matter.
        system: a system message; `None` leaves it out.

    Raises:
        DescriberError: If a template cannot be filled in.
    """

    default: str = "{referral} {question}"
    whole: str | None = None
    by_name: Mapping[str, str] = field(default_factory=dict)
    system: str | None = None

    def __post_init__(self) -> None:
        templates = {"default": self.default, "whole": self.whole}
        for name, template in [*templates.items(), *((f"by_name.{name}", text) for name, text in self.by_name.items())]:
            if template is not None:
                check_fields(template, _FIELDS, f"The prompt {name}")

    def write(self, question: str, name: str | None, *, referral: str, box: str, whole: bool) -> str:
        """The text for one question."""
        template = None if name is None else find_question(name, self.by_name)
        if template is None:
            template = self.whole if whole and self.whole is not None else self.default
        if not referral:
            template = template.replace("{referral} ", "")  # with the space that would stand alone
        return template.format(question=question, referral=referral, box=box, name=name or "").strip()

    def to_yaml(self, questions: Mapping[str, str]) -> str:
        """These templates as a file to edit, with one of its own for each question.

        Args:
            questions: names and texts.
        """
        import yaml

        by_name = dict(self.by_name)
        for name, text in questions.items():
            if find_question(name, by_name) is None:
                chosen = self.whole if is_global(name) and self.whole is not None else self.default
                by_name[name] = chosen.replace("{question}", text.replace("{", "{{").replace("}", "}}"))
        values = {"default": self.default, "whole": self.whole, "system": self.system, "by_name": by_name}
        return _HEADER + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)

    @property
    def settings(self) -> dict[str, Any]:
        """All templates, for reports."""
        return {"default": self.default, "whole": self.whole, "by_name": dict(self.by_name), "system": self.system}


def read_templates(value: Any) -> PromptTemplates:
    """Templates from one for all questions, or from a mapping with `default`, `whole`, `by_name` and `system`.

    Raises:
        DescriberError: If they cannot be meant.
    """
    if value is None:
        return PromptTemplates()
    if isinstance(value, str):
        return PromptTemplates(default=value)
    if not isinstance(value, Mapping):
        raise DescriberError(
            f"{value!r} are no prompts. Give a template, or a mapping such as {{default: .., system: ..}}."
        )
    given = {name: entry for name, entry in value.items() if entry is not None}
    check_options(given, options_of(PromptTemplates), "prompts")
    return PromptTemplates(**given)


def read_prompts(value: Any) -> PromptTemplates:
    """Templates as `read_templates` takes them, or from a YAML file with them.

    Args:
        value: a file, where it is a path and no text.

    Raises:
        DescriberError: If they cannot be meant.
        OSError: If there is no such file.
    """
    if isinstance(value, PromptTemplates):
        return value
    if not isinstance(value, os.PathLike):
        return read_templates(value)
    import yaml

    try:
        return read_templates(yaml.safe_load(Path(value).read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError, DescriberError) as error:
        raise DescriberError(f"{os.fspath(value)} has no prompts: {error}") from error
