"""Licences by the names that the Hub has for them, and how strict they are.

Ids: docs/hub/repositories-licenses.md (huggingface/hub-docs at 008d54d0), and the page itself as of 2026-02-26. What
the Hub has taken in since then is missing.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .errors import HubError


def _ids(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PERMISSIVE = _ids(
    "apache-2.0 mit bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear isc zlib unlicense cc0-1.0 cc-by-2.0 cc-by-2.5 "
    "cc-by-3.0 cc-by-4.0 pddl odc-by cdla-permissive-1.0 cdla-permissive-2.0 artistic-2.0 bsl-1.0 ncsa ecl-2.0 "
    "postgresql wtfpl afl-3.0 ms-pl etalab-2.0 openmdw-1.0"
)
_WITH_CONDITIONS = _ids(
    "gpl gpl-2.0 gpl-3.0 agpl-3.0 lgpl lgpl-2.1 lgpl-3.0 lgpl-lr mpl-2.0 epl-1.0 epl-2.0 eupl-1.1 eupl-1.2 osl-3.0 "
    "cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nd-4.0 odbl gfdl ofl-1.1 lppl-1.3c cdla-sharing-1.0 c-uda "
    "llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma openrail openrail++ creativeml-openrail-m "
    "bigscience-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m grok2-community apple-ascl"
)
_NONCOMMERCIAL = _ids(
    "cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 "
    "cc-by-nc-sa-4.0 fair-noncommercial-research-license apple-amlr intel-research h-research deepfloyd-if-license"
)
# `cc` is any of Creative Commons: what it allows is not known.
_KNOWN = _PERMISSIVE | _WITH_CONDITIONS | _NONCOMMERCIAL | {"cc", "unknown"}

RESEARCH, NONCOMMERCIAL, UNKNOWN = 4, 3, 2
UNSTATED = "not-stated-by-all-parts"


@dataclass(frozen=True)
class Licence:
    """Terms that a checkpoint is under because of something in it."""

    of: str
    name: str

    @property
    def rank(self) -> int:
        """How strict they are: 0 permissive, 1 with conditions, 2 unknown, 3 noncommercial, 4 research only."""
        name = self.name.lower()
        if name in _PERMISSIVE:
            return 0
        if name in _WITH_CONDITIONS:
            return 1
        if "research-only" in name or "research only" in name:
            return RESEARCH
        if name in _NONCOMMERCIAL or "noncommercial" in name or "non-commercial" in name:
            return NONCOMMERCIAL
        return UNKNOWN


def licence_fields(terms: Sequence[Licence], given: str | None, repo: str) -> dict[str, Any]:
    """Front matter of a card: the strictest of the terms, or the licence that was given.

    Args:
        terms: the strictest first.
        given: a licence's id on the Hub; it cannot loosen the terms.
        repo: `owner/name` of the card, whose section on licences the front matter points to.
    """
    if given is not None:
        refuse_looser(terms, given)
        return {"license": given}
    if not terms:
        return {"license": "unknown"}
    if terms[0].name.lower() in _KNOWN:
        return {"license": terms[0].name.lower()}
    names = {RESEARCH: "research-only", NONCOMMERCIAL: "noncommercial-research"}
    return {
        "license": "other",
        "license_name": names.get(terms[0].rank, UNSTATED),
        "license_link": f"https://huggingface.co/{repo}#licences",
    }


def refuse_looser(terms: Sequence[Licence], licence: str) -> None:
    for term in terms:
        if term.rank != UNKNOWN and term.rank > Licence("the card", licence).rank:
            raise HubError(
                f"The licence {licence!r} is looser than the terms of {term.of}: {term.name}. State those, or leave "
                "the licence out: then the strictest is stated."
            )


@dataclass(frozen=True)
class LlamaTerms:
    """What the community licence of a Llama asks of who passes on a model made from it, beside its text and a NOTICE.

    Args:
        notice: to be displayed; empty where nothing is.
        name: what the name of the model has to begin with; empty where that is free.
    """

    notice: str
    name: str

    def allows(self, repo: str) -> bool:
        """Whether a repository's name begins as it has to."""
        squeezed = re.sub(r"[^a-z0-9]", "", repo.rpartition("/")[2].lower())
        return squeezed.startswith(re.sub(r"[^a-z0-9]", "", self.name.lower()))


def llama_terms(terms: Sequence[Licence]) -> LlamaTerms | None:
    """What has to be said of a Llama in a checkpoint; `None` where there is none."""
    for term in terms:
        name = term.name.lower()
        if name == "llama2":
            return LlamaTerms("", "")
        if name == "llama3":
            return LlamaTerms("Built with Meta Llama 3", "Llama 3")
        # Others have Llama in their names (TinyLlama, OpenLLaMA) and terms of their own.
        of_meta = term.rank == UNKNOWN and re.search(r"\b(meta-)?llama", term.of, re.IGNORECASE)
        if re.match(r"llama\W?\d", name) or of_meta:
            return LlamaTerms("Built with Llama", "Llama")
    return None
