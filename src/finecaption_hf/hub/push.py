"""A checkpoint folder to the Hub: everything that belongs to it in one commit, again and again until it is there."""

import json
import os
import re
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .card import Evaluation, model_card
from .errors import HubError
from .provenance import FILE, read_provenance

Tell = Callable[[str], None]

# What a checkpoint is made of. What else lies in its folder stays: optimizer states, pickled training arguments (which
# can hold a token), logs, earlier checkpoints.
_TRAVELS = re.compile(
    r"(model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|config\.json|generation_config\.json"
    r"|(pre)?processor_config\.json|chat_template\.jinja|tokenizer(_config)?\.json|tokenizer\.model|special_tokens_map\.json"
    r"|added_tokens\.json|vocab\.(json|txt)|merges\.txt|\w+_finecaption\.py|assembly\.json|score\.json"
    r"|(LICENSE|NOTICE)(\.\w+)?|[\w-]+\.(png|jpg|svg))"
)
_WEIGHTS = re.compile(r"(model|pytorch_model).*\.(safetensors|bin|index\.json)")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
_MAX_TEXT = 64 * 2**20


@dataclass(frozen=True)
class Pushed:
    """What a push came to: the repository's address, the commit (URL and id), paths that were sent and removed."""

    url: str
    commit_url: str
    oid: str
    files: list[str]
    deleted: list[str]


def push(
    folder: str | os.PathLike[str],
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    evaluation: Evaluation | None = None,
    dataset: str | None = None,
    licence: str | None = None,
    base_model: str | None = None,
    message: str = "Upload FineCaption checkpoint",
    token: str | None = None,
    tell: Tell = lambda line: None,
) -> Pushed:
    """Upload weights, code, processor, tokenizer, card and evaluation of a checkpoint in one commit.

    After an interruption the same call goes on: files that arrived are not sent again. Weights and code of an earlier
    push that the checkpoint does not have are removed in the same commit.

    Args:
        folder: a checkpoint, as training, assembling and `save_pretrained` write it.
        repo: `owner/name`; it is made where it does not exist.
        private: make it a private one.
        revision: the branch to commit to, made where it does not exist; by default `main`.
        evaluation: for card, `model-index` and `.eval_results`.
        dataset: the Hub id of the evaluation's data; without it there is no `.eval_results`, whose entries name one.
        licence: see `model_card`.
        base_model: folder or Hub repository that it was trained from, used where its files do not tell.
        message: of the commit.
        token: by default the one of `hf auth login` or HF_TOKEN.
        tell: gets lines about the progress.

    Raises:
        HubError: If the folder is no whole checkpoint, or the Hub cannot be reached or refuses; no message has a token.
    """
    from huggingface_hub import CommitOperationDelete, HfApi, get_token

    path = Path(folder)
    if not re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", repo):
        raise HubError(f"{repo!r} is no repository. Give owner/name.")
    files = checkpoint_files(path)
    secret = token or get_token()
    api = HfApi(token=token)

    def fetch(source: str, name: str) -> Path | None:
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

        try:
            base, _, at = source.partition("@")
            return Path(api.hf_hub_download(base, name, revision=at or None))
        except (EntryNotFoundError, HfHubHTTPError):
            return None

    with _hub_errors(repo, secret):
        provenance = read_provenance(path, fetch, base_model=base_model)
    card = model_card(path, repo, provenance, evaluation=evaluation, licence=licence)
    contents: dict[str, bytes | Path] = {name: path / name for name in files}
    contents["README.md"] = card.encode()
    contents[FILE] = provenance.to_json().encode()
    contents |= _eval_results(evaluation, dataset, tell)
    for name, content in contents.items():
        _refuse_tokens(name, content, secret)

    with _hub_errors(repo, secret):
        tell(f"{repo}: {len(contents)} files")
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo).private:
            raise HubError(
                f"{repo} exists and is public, so nothing was sent. Make it private first, or leave --private out."
            )
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        remote = api.list_repo_files(repo, revision=revision)
        deleted = sorted(
            name
            for name in remote
            if name not in contents and (_WEIGHTS.fullmatch(name) or re.fullmatch(r"\w+_finecaption\.py", name))
        )
        removals = [CommitOperationDelete(path_in_repo=name) for name in deleted]
        with _uploaded(api, repo, revision, contents, tell) as additions:
            commit = api.create_commit(repo, [*additions, *removals], commit_message=message, revision=revision)
    return Pushed(str(url), str(commit.commit_url), str(commit.oid), sorted(contents), deleted)


@contextmanager
def _uploaded(
    api: Any, repo: str, revision: str | None, contents: Mapping[str, bytes | Path], tell: Tell
) -> Iterator[list[Any]]:
    """Additions whose large files have been sent: through Xet where the Hub has it."""
    from huggingface_hub import CommitOperationAdd

    def addition(name: str, content: Any) -> Any:
        return CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)

    with ExitStack() as files:
        additions = [addition(name, content) for name, content in sorted(contents.items())]
        try:
            api.preupload_lfs_files(repo, additions, revision=revision, free_memory=False)
        except ConnectionError as error:
            if not re.search(r"404.*/xet-write-token/", str(error), re.DOTALL):
                raise
            # A mirror or an older Hub. The client sends open files the way it did before there was Xet.
            tell(f"{repo}: this Hub has no Xet storage; uploading without it")
            additions = [
                addition(name, files.enter_context(content.open("rb")) if isinstance(content, Path) else content)
                for name, content in sorted(contents.items())
            ]
            api.preupload_lfs_files(repo, additions, revision=revision, free_memory=False)
        yield additions


def push_model(model: Any, processor: Any, repo: str, **options: Any) -> Pushed:
    """Push a model and its processor from memory, as after a training loop of one's own.

    Args:
        model, processor: of FineCaption. The card knows what the checkpoint that the model was loaded from knows.
        repo: `owner/name`.
        **options: those of `push`.

    Raises:
        HubError: As `push`.
    """
    with tempfile.TemporaryDirectory() as name:
        model.save_pretrained(name)
        processor.save_pretrained(name)
        return push(name, repo, **{"base_model": model.config.name_or_path or None, **options})


def checkpoint_files(folder: Path) -> list[str]:
    """Names of the files that make up a checkpoint.

    Raises:
        HubError: If one is missing or cut short, or the checkpoint is of another model.
    """
    if not (folder / "config.json").is_file():
        inside = _checkpoints_in(folder)
        if inside:
            listed = ", ".join(map(str, inside[:6])) + (f" and {len(inside) - 6} more" if len(inside) > 6 else "")
            raise HubError(f"{folder} is no checkpoint, but there are some in it: {listed}. Give one of them.")
        raise HubError(f"{folder} is no checkpoint: it has no config.json. Give the folder that holds the weights.")
    config = _json(folder / "config.json")
    if config.get("model_type") != "finecaption":
        raise HubError(f"{folder} holds a model of type {config.get('model_type')!r}. Give a FineCaption checkpoint.")
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and _TRAVELS.fullmatch(path.name))
    needed = {"processor_config.json", "tokenizer_config.json"}
    index = folder / "model.safetensors.index.json"
    needed |= set(_json(index)["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    needed |= _code(folder, config)
    missing = sorted(needed - set(names))
    if missing:
        raise HubError(
            f"{folder} lacks {', '.join(missing)}. Save model and processor into one folder with save_pretrained."
        )
    for name in names:
        if name.endswith(".safetensors"):
            _check_weights(folder / name)
    return names


def _checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoints of a training run, the one to be preferred first: the last stage's final one."""

    def rank(path: Path) -> tuple[bool, int, int]:
        names = path.relative_to(folder).parts
        stage, step = (re.match(r"(?:checkpoint-)?(\d+)", name) for name in (names[0], names[-1]))
        return path.name != "final", -int(stage[1]) if stage and len(names) > 1 else 0, -int(step[1]) if step else 0

    found = [path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/config.json")]
    return sorted((path for path in found if not path.name.endswith(".partial")), key=rank)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise HubError(f"{path} is no JSON ({error}). Save the checkpoint again.") from error


def _code(folder: Path, config: dict[str, Any]) -> set[str]:
    """Files of code that the Auto classes and the pipeline need, with what those import."""
    references = list((config.get("auto_map") or {}).values())
    references += [entry["impl"] for entry in (config.get("custom_pipelines") or {}).values()]
    if (folder / "processor_config.json").is_file():
        references += list((_json(folder / "processor_config.json").get("auto_map") or {}).values())
    if not references:
        raise HubError(f"{folder}/config.json names no code (auto_map). Save the model with save_pretrained.")
    needed: set[str] = set()
    queue = []
    for reference in references:
        if "--" in reference:
            raise HubError(
                f"{folder} takes its code from the repository {reference.partition('--')[0]}, which may change or go. "
                "Load the checkpoint and save it with save_pretrained: then its code lies beside it."
            )
        queue.append(f"{reference.partition('.')[0]}.py")
    while queue:
        name = queue.pop()
        if name not in needed:
            needed.add(name)
            if (folder / name).is_file():
                text = (folder / name).read_text(encoding="utf-8")
                queue += [f"{module}.py" for module in re.findall(r"^\s*from \.(\w+) import", text, re.MULTILINE)]
    return needed


def _check_weights(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise HubError(
            f"{path} is damaged or was not written to its end ({error}). Save the checkpoint again."
        ) from error


def _eval_results(evaluation: Evaluation | None, dataset: str | None, tell: Tell) -> dict[str, bytes]:
    """The file of `.eval_results`, with an entry for each metric."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    if evaluation is None:
        if dataset is not None:
            raise HubError("A data set was named (--dataset), but no evaluation on it. Give --report too.")
        return {}
    if dataset is None:
        tell("no .eval_results: its entries name a data set of the Hub, which --dataset gives")
        return {}
    if not re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", dataset):
        raise HubError(f"{dataset!r} is no data set of the Hub. Give owner/name.")
    entries = []
    for name, row in evaluation.report["metrics"].items():
        bounds = row["interval_95"]
        note = "" if bounds is None else f"95 % interval {bounds[0]:.2f} to {bounds[1]:.2f}; "
        entries.append(
            EvalResultEntry(
                dataset_id=dataset,
                task_id=name,
                value=round(row["value"], 2),
                notes=f"{row['label']}; {note}{row['segments']} captions; {evaluation.report['signature']}",
            )
        )
    text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
    return {f".eval_results/{dataset.replace('/', '--')}.yaml": text.encode()}


def _refuse_tokens(name: str, content: bytes | Path, secret: str | None) -> None:
    """Raise if a text holds what looks like a token."""
    if isinstance(content, Path):
        if content.suffix in (".safetensors", ".png", ".jpg") or content.stat().st_size > _MAX_TEXT:
            return
        content = content.read_bytes()
    text = content.decode("utf-8", errors="replace")
    if _TOKEN.search(text) or (secret and secret in text):
        raise HubError(f"{name} holds an access token, so nothing was sent. Remove it, and revoke the token.")


@contextmanager
def _hub_errors(repo: str, secret: str | None) -> Iterator[None]:
    """Errors of the Hub's client and of its connection as one kind, without a token, with what to do."""
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        # The client lets the errors of its HTTP library through, which are of no common kind.
        if not isinstance(error, (OSError, RuntimeError, ValueError)) and not type(error).__module__.startswith(
            "httpx"
        ):
            raise
        reasons, cause = [], error.__cause__ or error.__context__
        reasons.append(_first_line(error))
        if isinstance(error, RuntimeError) and cause is not None:  # "Error while uploading ..."
            reasons.append(_first_line(cause))
        message = f"{repo}: {_without_token(': '.join(reasons), secret)} {_remedy(error)}"
        # Messages further down may hold request headers; the chain ends here.
        raise HubError(message) from None


def _first_line(error: BaseException) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    lines = [part.strip() for part in str(error).splitlines()]
    text = " ".join(line for line in dict.fromkeys(lines) if line and not line.startswith("For more information"))
    return (text or type(error).__name__).rstrip(".")[:500]


def _without_token(text: str, secret: str | None) -> str:
    if secret:
        # Also as the representation of bytes shows it.
        for form in (secret, repr(secret)[1:-1], repr(secret.encode())[2:-1]):
            text = text.replace(form, "***")
    return _TOKEN.sub("***", text)


def _remedy(error: BaseException) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, OfflineModeIsEnabled):
        return "- The Hub is switched off: unset HF_HUB_OFFLINE."
    if isinstance(error, RevisionNotFoundError):
        return "- There is no such revision."
    if isinstance(error, GatedRepoError):
        return "- Ask for access on the repository's page, with the account of the token."
    if status == 401 or isinstance(error, RepositoryNotFoundError):
        return "- The Hub does not take the token, or there is none. Log in with `hf auth login`, or set HF_TOKEN."
    if status == 403:
        return "- The token may not write there. Take one that may, or a repository of your own."
    if isinstance(error, UnicodeEncodeError):  # of the request's headers
        return "- The token holds a character that none has. Log in again with `hf auth login`."
    if status == 429:
        return "- The Hub takes no more requests for now. Wait some minutes and run the same again."
    if any(frame.name == "_upload_xet_files" for frame in traceback.extract_tb(error.__traceback__)):
        return (
            "- Run the same again. If that does not help, the network keeps the Hub's Xet storage away: set "
            "HF_HUB_DISABLE_XET=1."
        )
    is_of_network = type(error).__module__.startswith("httpx") or isinstance(error, (ConnectionError, TimeoutError))
    if is_of_network or isinstance(error, RuntimeError) or (status or 0) >= 500:
        return "- Run the same again: it goes on with what has arrived, and nothing is to be seen before all of it has."
    return ""
