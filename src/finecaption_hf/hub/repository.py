"""A repository on the Hub: what is there, what others say of themselves, and one commit."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from .errors import TOKEN, HubError, hub_errors, is_repo_id, where_allowed

Tell = Callable[[str], None]
Contents = Mapping[str, bytes | Path]
"""Path in the repository -> content, or the file that has it."""

_NO_TEXT = (".safetensors", ".png", ".jpg", ".jpeg", ".webp")
_MAX_TEXT = 64 * 2**20


@dataclass(frozen=True)
class Pushed:
    """What a push came to.

    Args:
        url: the repository's address.
        commit_url, oid: of the commit; of a proposed one, the address of its pull request.
        files, deleted: paths that were sent and removed.
    """

    url: str
    commit_url: str
    oid: str
    files: list[str]
    deleted: list[str]


@dataclass(frozen=True)
class State:
    """What a repository holds at a commit."""

    commit: str
    is_private: bool
    files: list[str]


class Repository:
    """A repository that is written to. What goes wrong there is a `HubError`.

    Args:
        name: `owner/name`, or a name of one's own.
        revision: the branch; by default `main`.
        create_pr: propose the commit instead of making it.
        token: by default the one of `hf auth login` or HF_TOKEN.
        kind: `"model"` or `"space"`.
    """

    def __init__(
        self,
        name: str,
        *,
        revision: str | None = None,
        create_pr: bool = False,
        token: bool | str | None = None,
        kind: str = "model",
    ) -> None:
        self.api = HfApi(token=token)
        self.secret = token if isinstance(token, str) else get_token()
        self.name, self.revision, self.create_pr, self.kind = name, revision, create_pr, kind
        with self.errors():
            validate_repo_id(name)
            if "/" not in name:
                self.name = f"{self.api.whoami()['name']}/{name}"

    def errors(self) -> AbstractContextManager[None]:
        return hub_errors(self.name, self.secret)

    def state(self, *, or_main: bool = False) -> State:
        """What is there; with `or_main` on the main branch, from which a new one is made, where the branch is not."""
        with self.errors():
            try:
                info = self.api.repo_info(self.name, revision=self.revision, repo_type=self.kind)
            except RevisionNotFoundError:
                if not or_main:
                    raise
                info = self.api.repo_info(self.name, repo_type=self.kind)
        return State(info.sha, bool(info.private), [file.rfilename for file in info.siblings])

    def create(self, private: bool | None) -> tuple[str, State]:
        """Make the repository where it does not exist: its address, and what is there."""
        sdk = {"space_sdk": "gradio"} if self.kind == "space" else {}
        with self.errors():
            url = self.api.create_repo(self.name, private=private, exist_ok=True, repo_type=self.kind, **sdk)
        state = self.state(or_main=True)
        if private and not state.is_private:
            raise HubError(
                f"{self.name} exists and is public, so nothing was sent. Make it private first, or do not ask for a "
                "private one."
            )
        return str(url), state

    def create_branch(self) -> None:
        """Make the branch where it does not exist."""
        if self.revision is None or self.revision.startswith("refs/pr"):
            return
        with self.errors():
            try:
                self.api.create_branch(self.name, branch=self.revision, exist_ok=True)
            except HfHubHTTPError as error:
                # Who may only propose makes no branch; a missing one is told of by the commit.
                if not self.create_pr or error.response.status_code != 403:
                    raise

    def download(self, file: str, state: State) -> Path:
        with self.errors():
            return Path(self.api.hf_hub_download(self.name, file, revision=state.commit))

    def fetch(self, source: str, wanted: re.Pattern[str]) -> Path | None:
        """Files of another repository, in a folder; `None` where they are not there, or not for this user.

        Args:
            source: `owner/name`, with `@revision` where it is not the main branch.
            wanted: their paths.
        """
        base, _, revision = source.partition("@")
        folder = None
        if not is_repo_id(base):
            return None
        with self.errors(), where_allowed():
            info = self.api.repo_info(base, revision=revision or None)
            for file in filter(wanted.fullmatch, (file.rfilename for file in info.siblings)):
                with where_allowed():  # what is gated, beside a card that is not
                    path = Path(self.api.hf_hub_download(base, file, revision=info.sha))
                    folder = path.parents[file.count("/")]
        return folder

    def is_private(self, other: str) -> bool:
        """Whether another repository is known to be a private one."""
        with self.errors(), where_allowed():
            return bool(self.api.repo_info(other).private)
        return False

    def refuse_tokens(self, contents: Contents) -> None:
        """Raise if a text holds what looks like a token."""
        for name, content in contents.items():
            if isinstance(content, Path):
                if content.suffix in _NO_TEXT or content.stat().st_size > _MAX_TEXT:
                    continue
                content = content.read_bytes()
            text = content.decode("utf-8", errors="replace")
            if TOKEN.search(text) or (self.secret and self.secret in text):
                raise HubError(f"{name} holds an access token, so nothing was sent. Remove it, and revoke the token.")

    def commit(
        self, contents: Contents, deleted: Sequence[str], message: str, *, url: str = "", parent: str | None = None
    ) -> Pushed:
        """One commit; with `parent`, only if no other has arrived since that one."""
        additions = [CommitOperationAdd(name, content) for name, content in sorted(contents.items())]
        with self.errors():
            commit = self.api.create_commit(
                self.name,
                [*additions, *(CommitOperationDelete(name) for name in deleted)],
                commit_message=message,
                revision=self.revision,
                create_pr=self.create_pr,
                parent_commit=parent,
            )
        return Pushed(url, str(commit.pr_url or commit.commit_url), str(commit.oid), sorted(contents), list(deleted))
