"""What keeps something from the Hub: one error, in one line that says what to do and holds no token."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from ..prompts_finecaption import FineCaptionError

TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")


class HubError(FineCaptionError, ValueError):
    """What keeps a checkpoint from the Hub; the message says what to do."""


def is_repo_id(text: str) -> bool:
    """Whether a text is the id of a repository, `owner/name`."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return "/" in text


@contextmanager
def hub_errors(repo: str, secret: str | None) -> Iterator[None]:
    """Around calls of the Hub's client, and nothing else: whatever they raise becomes a `HubError`.

    It is of no common class: errors of HTTP and of Xet, a ValueError for an id, a KeyError for an odd answer.
    """
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        reason, cause = _one_line(error), error.__cause__ or error.__context__
        if isinstance(error, RuntimeError) and cause is not None:  # "Error while uploading ..."
            reason += f": {_one_line(cause)}"
        # Also as the representation of bytes shows it.
        for form in (secret, repr(secret)[1:-1], repr(secret.encode())[2:-1]) if secret else ():
            reason = reason.replace(form, "***")
        # Messages further down may hold request headers; the chain ends here.
        raise HubError(f"{repo}: {TOKEN.sub('***', reason)} {_remedy(error)}") from None


@contextmanager
def where_allowed() -> Iterator[None]:
    """Swallow that something is not there, or not for this user; a Hub that is not reached says neither."""
    try:
        yield
    except (EntryNotFoundError, HfHubHTTPError) as error:
        # What a file is refused with is the cause of an error that speaks of the cache.
        answer = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        status = answer.response.status_code if isinstance(answer, HfHubHTTPError) else 500
        if status >= 500 or status == 429:
            raise


def _one_line(error: BaseException) -> str:
    """What an error says, in one line; its kind where it says nothing, or nothing but a name."""
    lines = [part.strip() for part in str(error).splitlines()]
    text = " ".join(line for line in dict.fromkeys(lines) if line and not line.startswith("For more information"))
    kind = type(error).__name__
    return (f"{kind}: {text}" if isinstance(error, LookupError) else text or kind).rstrip(".")[:500]


def _remedy(error: Exception) -> str:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, OfflineModeIsEnabled):
        return "- The Hub is switched off: unset HF_HUB_OFFLINE."
    if isinstance(error, RevisionNotFoundError):
        return "- There is no such revision."
    if isinstance(error, GatedRepoError):
        return "- Ask for access on the repository's page, with the account of the token."
    if status == 401:
        return "- The Hub does not take the token, or there is none. Log in with `hf auth login`, or set HF_TOKEN."
    if isinstance(error, RepositoryNotFoundError):
        return "- There is no such repository, or not for this token."
    if status == 403:
        return "- The token may not write there. Take one that may, or a repository of your own."
    if status == 412:
        return "- Another commit has arrived meanwhile. Run the same again."
    if status == 429:
        return "- The Hub takes no more requests for now. Wait some minutes and run the same again."
    if isinstance(error, UnicodeEncodeError):  # of the request's headers
        return "- The token holds a character that none has. Log in again with `hf auth login`."
    if isinstance(error, (LookupError, TypeError, AttributeError, json.JSONDecodeError)):
        return "- That is no answer of a Hub. See what HF_ENDPOINT names, and whether there is a newer huggingface_hub."
    if isinstance(error, (ConnectionError, TimeoutError)):  # as hf_xet raises them; HTTP has errors of its own
        return (
            "- Run the same again. If that does not help, the Hub has no Xet storage, or the network keeps it away: "
            "set HF_HUB_DISABLE_XET=1."
        )
    is_local = isinstance(error, (OSError, ValueError)) and not isinstance(error, LocalEntryNotFoundError)
    if is_local if status is None else status < 500:
        return ""
    return "- Run the same again: it goes on with what has arrived, and nothing is to be seen before all of it has."
