"""A folder of `finecaption space` to the Hub."""

import os
import re
from pathlib import Path

from ..card_finecaption import REPO, HubError
from ..hub_finecaption import Tell, hub_errors


def push_space(
    folder: str | os.PathLike[str],
    repo: str,
    *,
    private: bool = False,
    token: str | None = None,
    tell: Tell = lambda line: None,
) -> str:
    """Upload a Space in one commit, and return its address. The Hub then builds and starts it.

    Args:
        folder: the Space.
        repo: `owner/name` of the Space; it is made where it does not exist.
        private: make it a private one.
        token: by default the one of `hf auth login` or HF_TOKEN.
        tell: gets lines about the progress.

    Raises:
        HubError: If the Hub cannot be reached or refuses; no message has a token.
    """
    from huggingface_hub import HfApi, get_token

    if not re.fullmatch(REPO, repo):
        raise HubError(f"{repo!r} is no repository. Give owner/name.")
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    api = HfApi(token=token)
    with hub_errors(repo, token or get_token()):
        tell(f"{repo}: {len(files)} files")
        url = api.create_repo(repo, repo_type="space", space_sdk="gradio", private=private or None, exist_ok=True)
        if private and not api.repo_info(repo, repo_type="space").private:
            raise HubError(
                f"{repo} exists and is public, so nothing was sent. Make it private first, or leave --private out."
            )
        # Code that an earlier version had, and this one has not, goes.
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            repo_type="space",
            commit_message="Upload FineCaption demo",
            delete_patterns="finecaption_hf/*",
            ignore_patterns=["**/__pycache__/*", "*.pyi"],  # left by running it
        )
    return str(url)
