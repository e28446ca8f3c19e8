"""Checkpoints to the Hub: everything that belongs to one in one commit, again and again until it is there."""

import json
import logging
import os
import re
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .card_finecaption import (
    FILE,
    ORIGIN_FILE,
    REPO,
    HubError,
    Provenance,
    Report,
    add_tags,
    card_fields,
    llama_terms,
    model_card,
    processor_card,
    read_json,
    read_provenance,
    read_report,
    read_text,
)

logger = logging.getLogger(__name__)

Tell = Callable[[str], None]
Evaluation = str | os.PathLike[str] | Report | None
"""A report.json of `finecaption evaluate`: its path, or its content."""

_PICTURE = r"[\w-]+\.(png|jpg|jpeg|webp|svg)"
_LICENCE_TEXT = r"(LICEN[CS]E|NOTICE|COPYING|USE_POLICY)([._-][\w.-]+)?"
_PROCESSOR = (
    r"((pre)?processor_config\.json|chat_template\.jinja|tokenizer(_config)?\.json|tokenizer\.model"
    r"|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt)"
)
# What a checkpoint is made of. What else lies in its folder stays: optimizer states, pickled training arguments (which
# can hold a token), logs, earlier checkpoints.
_TRAVELS = re.compile(
    r"(model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|config\.json|generation_config\.json"
    rf"|{_PROCESSOR}|\w+_finecaption\.py|assembly\.json|score\.json|{_LICENCE_TEXT}|{_PICTURE})"
)
# Beside the weights, or where an earlier push put those of parts.
_LICENCE_TEXTS = re.compile(rf"(licences/[\w.-]+/)?{_LICENCE_TEXT}")
_NEEDED_OF_PROCESSOR = {"processor_config.json", "tokenizer_config.json"}
_CODE = re.compile(r"\w+_finecaption\.py")
_WEIGHTS = re.compile(r"(model|pytorch_model).*\.(safetensors|bin|index\.json)")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
_NO_TEXT = (".safetensors", ".png", ".jpg", ".jpeg", ".webp")
_MAX_TEXT = 64 * 2**20
_CLASS = "FineCaptionForConditionalGeneration"
_MESSAGE = "Upload FineCaption checkpoint"


@dataclass(frozen=True)
class Pushed:
    """What a push came to.

    Args:
        url: the repository's address.
        commit_url, oid: of the commit.
        files, deleted: paths that were sent and removed.
        commit: what `huggingface_hub` says of the commit (`CommitInfo`).
    """

    url: str
    commit_url: str
    oid: str
    files: list[str]
    deleted: list[str]
    commit: Any


class ModelPushMixin:
    """`push_to_hub` of a model: with its processor, code and a card in one commit."""

    def push_to_hub(
        self,
        repo_id: str,
        *,
        processor: Any = None,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "50GB",
        tags: Sequence[str] | str | None = None,
        **options: Any,
    ) -> Any:
        """Upload weights, code, processor and card in one commit.

        Args:
            repo_id (`str`): `owner/name`, or a name of one's own; it is made where it does not exist.
            processor (`FineCaptionProcessor`, *optional*): of the model. Without it the repository keeps the one that
                it has; where it has none it gets that of the checkpoint that the model was loaded from.
            commit_message, commit_description (`str`, *optional*): of the commit.
            private (`bool`, *optional*): with `True`, nothing is sent to a public repository.
            token (`bool` or `str`, *optional*): by default the one of `hf auth login` or HF_TOKEN.
            revision (`str`, *optional*): branch to commit to, made where it does not exist.
            create_pr (`bool`): propose the commit instead of making it.
            max_shard_size (`int` or `str`): of one file of weights.
            tags (`list[str]`, *optional*): more tags of the card.
            **options: what the card is made from, as `finecaption_hf.hub.push` takes it: `evaluation`, `dataset`,
                `licence`, `space`, `pictures`, and `base_model`, by default the one that the model was loaded from.

        Returns:
            `huggingface_hub.CommitInfo`: of the commit.

        Raises:
            HubError: If the Hub cannot be reached or refuses, or something would not be right there; the message says
                what to do, and has no token.
        """
        pushed = push_model(
            self,
            processor,
            repo_id,
            message=commit_message,
            description=commit_description,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            max_shard_size=max_shard_size,
            tags=_tags(self, tags),
            tell=logger.warning,
            **options,
        )
        return pushed.commit


class ProcessorPushMixin:
    """`push_to_hub` of a processor: alone, or with its model."""

    def push_to_hub(
        self,
        repo_id: str,
        *,
        model: Any = None,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "50GB",
        tags: Sequence[str] | str | None = None,
        **options: Any,
    ) -> Any:
        """Upload processor, tokenizer and their code in one commit; with `model`, the whole checkpoint.

        Alone it replaces neither weights nor the text of a card that is there.

        Args:
            repo_id (`str`): `owner/name`, or a name of one's own; it is made where it does not exist.
            model (`FineCaptionForConditionalGeneration`, *optional*): goes along, as `model.push_to_hub` would push it
                with this processor.
            commit_message, commit_description, private, token, revision, create_pr, max_shard_size, tags: as there.
            **options: with `model`, what its `push_to_hub` takes as well.

        Returns:
            `huggingface_hub.CommitInfo`: of the commit.

        Raises:
            HubError: As `model.push_to_hub`.
        """
        common: dict[str, Any] = {
            "commit_message": commit_message,
            "commit_description": commit_description,
            "private": private,
            "token": token,
            "revision": revision,
            "create_pr": create_pr,
        }
        if model is not None:
            return model.push_to_hub(
                repo_id, processor=self, max_shard_size=max_shard_size, tags=tags, **common, **options
            )
        if options:
            raise HubError(f"{', '.join(options)} need the model as well: give model=.., or leave them out.")
        return _push_processor(self, repo_id, tags=_tags(None, tags), **common).commit


def _tags(model: Any, tags: Sequence[str] | str | None) -> list[str]:
    given = [tags] if isinstance(tags, str) else list(tags or [])
    return [*(getattr(model, "model_tags", None) or []), *given]


def push(
    folder: str | os.PathLike[str],
    repo: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    evaluation: Evaluation = None,
    dataset: str | None = None,
    licence: str | None = None,
    base_model: str | None = None,
    space: str | None = None,
    pictures: Sequence[str | os.PathLike[str]] = (),
    tags: Sequence[str] = (),
    message: str | None = None,
    description: str | None = None,
    create_pr: bool = False,
    token: bool | str | None = None,
    needs_processor: bool = True,
    tell: Tell = lambda line: None,
) -> Pushed:
    """Upload weights, code, processor, tokenizer, card and evaluation of a checkpoint in one commit.

    After an interruption the same call goes on: files that arrived are not sent again. Weights and code of an earlier
    push that the checkpoint does not have are removed in the same commit. A card on the Hub that somebody wrote or
    edited keeps its text.

    Args:
        folder: a checkpoint, as training, assembling and `save_pretrained` write it.
        repo: `owner/name`, or a name of one's own; it is made where it does not exist.
        private: make it a private one; nothing is sent to one that is public.
        revision: the branch to commit to, made where it does not exist; by default `main`.
        evaluation: report.json of `finecaption evaluate`, for card, `model-index` and `.eval_results`.
        dataset: the Hub id of the evaluation's data; without it there is no `.eval_results`, whose entries name one.
        licence: see `model_card`.
        base_model: folder or Hub repository that it was trained from, used where its files do not tell.
        space: `owner/name` of a Space with a demo of it, for the card.
        pictures: files to be shown in the card, beside those in the folder.
        tags: more tags of the card.
        message, description: of the commit.
        create_pr: propose the commit instead of making it.
        token: by default the one of `hf auth login` or HF_TOKEN.
        needs_processor: refuse a folder without one; with `False` the repository keeps the one that it has.
        tell: gets remarks, a line each: what is missing, and how to add it.

    Raises:
        HubError: If the folder is no whole checkpoint, or the Hub cannot be reached or refuses; no message has a token.
    """
    folder, target = Path(folder), _Target(repo, private, revision, create_pr, token, tell)
    report = None if evaluation is None else read_report(evaluation)
    files = checkpoint_files(folder, needs_processor=needs_processor)
    contents: dict[str, bytes | Path] = {name: folder / name for name in files}
    contents |= _pictures(pictures)
    contents |= _eval_results(report, dataset, target.tell)
    if space is not None and not re.fullmatch(REPO, space):
        raise HubError(f"{space!r} is no Space. Give owner/name.")
    with target.errors():
        provenance = read_provenance(folder, target.fetch, base_model=base_model, repo=target.repo)
        for source in dict.fromkeys([*([base_model] if base_model else []), *provenance.base_models]):
            if source.partition("@")[0] != target.repo:
                contents = {**_licence_texts(target, source), **contents}
    contents[FILE] = provenance.to_json().encode()

    def card(existing: str) -> bytes:
        shown = [name for name in sorted(contents) if re.fullmatch(_PICTURE, name)]
        text = model_card(
            folder,
            target.repo,
            provenance,
            evaluation=report,
            licence=licence,
            existing=existing,
            tags=tags,
            space=space,
            pictures=shown,
        )
        return text.encode()

    # Before the repository is made: what cannot be sent leaves no trace.
    contents["README.md"] = card("")
    target.refuse_tokens(contents)
    with target.errors():
        url = target.open()
        remote = target.files()
        target.refuse_other_model(remote)
        target.tell_of_private(provenance.base_models)
        if "README.md" in remote:
            contents["README.md"] = card(target.read("README.md"))
            target.refuse_tokens({"README.md": contents["README.md"]})
        results = [name for name in remote if name.startswith(".eval_results/") and name not in contents]
        if results:
            target.tell(f"{', '.join(results)} stays as it is in {target.repo}: remove it where the weights changed.")
        _remark_on_llama(provenance, target.repo, {*contents, *remote}, target.tell)
        stale = [name for name in remote if _WEIGHTS.fullmatch(name) or _CODE.fullmatch(name)]
        return target.commit(url, contents, sorted({*stale} - {*contents}), message or _MESSAGE, description)


def push_model(model: Any, processor: Any, repo: str, *, max_shard_size: int | str = "50GB", **options: Any) -> Pushed:
    """Push a model and its processor from memory, as after a training loop of one's own.

    Args:
        model: a FineCaption. The card knows what the checkpoint that it was loaded from knows.
        processor: of the model. With `None` the repository keeps the one that it has; where it has none it gets that of
            the checkpoint that the model was loaded from.
        repo: `owner/name`, or a name of one's own.
        max_shard_size: of one file of weights.
        **options: those of `push`.

    Raises:
        HubError: As `push`.
    """
    tell: Tell = options.get("tell", lambda line: None)
    target = _Target(repo, revision=options.get("revision"), token=options.get("token"), tell=tell)
    origin = model.config.name_or_path or None
    options["base_model"] = options.get("base_model") or origin
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        if processor is not None:
            processor.save_pretrained(folder)
        else:
            with target.errors():
                has_one = set(target.files()) >= _NEEDED_OF_PROCESSOR
                found = {} if has_one or origin is None else target.take(origin, re.compile(_PROCESSOR))
            if found.keys() >= _NEEDED_OF_PROCESSOR:
                tell(f"{target.repo} has no processor and gets the one of {origin}; processor=.. gives another.")
                _write_processor(folder, found)
            elif not has_one:
                tell(f"{target.repo} has no processor, and none is known: processor.push_to_hub(..) adds it.")
        return push(folder, target.repo, needs_processor=False, **options)


def _write_processor(folder: Path, files: Mapping[str, Path]) -> None:
    """Put a checkpoint's processor into a folder, with the code that belongs to the model's."""
    from transformers.dynamic_module_utils import custom_object_save

    # Saving and loading follow this import, so that the processor's code travels with the model's.
    from .processing_finecaption import FineCaptionProcessor

    for name, path in files.items():
        (folder / name).write_bytes(path.read_bytes())
    custom_object_save(FineCaptionProcessor, folder)


def _push_processor(
    processor: Any,
    repo: str,
    *,
    tags: Sequence[str],
    commit_message: str | None,
    commit_description: str | None,
    **options: Any,
) -> Pushed:
    target = _Target(repo, **options)
    with tempfile.TemporaryDirectory() as name:
        processor.save_pretrained(name)
        contents: dict[str, bytes | Path] = {
            path.name: path for path in sorted(Path(name).iterdir()) if _TRAVELS.fullmatch(path.name)
        }
        target.refuse_tokens(contents)
        with target.errors():
            url = target.open()
            remote = target.files()
            target.refuse_other_model(remote)
            if "README.md" not in remote:
                contents["README.md"] = processor_card(target.repo, tags).encode()
            elif tags:
                contents["README.md"] = add_tags(target.read("README.md"), tags).encode()
            return target.commit(url, contents, [], commit_message or "Upload processor", commit_description)


class _Target:
    """A repository on the Hub that is pushed to."""

    def __init__(
        self,
        repo: str,
        private: bool | None = None,
        revision: str | None = None,
        create_pr: bool | None = False,
        token: bool | str | None = None,
        tell: Tell = logger.warning,
    ) -> None:
        from huggingface_hub import HfApi, get_token

        self.api = HfApi(token=token)
        self.secret = token if isinstance(token, str) else get_token()
        self.private, self.revision, self.create_pr = private, revision, bool(create_pr)
        self.tell = tell
        self.repo = repo
        if not re.fullmatch(rf"{REPO}|[\w][\w.-]*", repo):
            raise HubError(f"{repo!r} is no repository. Give owner/name.")
        if "/" not in repo:
            with self.errors():
                self.repo = f"{self.api.whoami()['name']}/{repo}"

    def errors(self) -> AbstractContextManager[None]:
        """Errors of the Hub's client and of its connection as one kind, without a token, with what to do."""
        return hub_errors(self.repo, self.secret)

    def files(self) -> list[str]:
        """Paths that are there; of the main branch, where the branch is not there yet."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        try:
            return list(self.api.list_repo_files(self.repo, revision=self.revision))
        except RevisionNotFoundError:
            return list(self.api.list_repo_files(self.repo))
        except RepositoryNotFoundError:  # or the token is wrong, of which making the repository will tell
            return []

    def read(self, name: str) -> str:
        path = self.api.hf_hub_download(self.repo, name, revision=self.revision)
        return read_text(Path(path))

    def refuse_other_model(self, remote: Sequence[str]) -> None:
        """Raise if the repository holds a model of another kind, whose weights and card a push would spoil."""
        kind = None
        if "config.json" in remote:
            with suppress(ValueError, AttributeError):  # one that nobody can read is nothing to be kept
                kind = json.loads(self.read("config.json")).get("model_type")
        if kind is None and "README.md" in remote:
            kind = card_fields(self.read("README.md")).get("library_name")
        if kind not in (None, "finecaption", "transformers"):
            raise HubError(f"{self.repo} holds a model of another kind ({kind}). Give another repository.")

    def tell_of_private(self, bases: Sequence[str]) -> None:
        """Remark on private base models of a public repository, whose card names them."""
        if not bases or self.api.repo_info(self.repo).private:
            return
        for base in bases:
            with _refusals():
                if self.api.repo_info(base).private:
                    self.tell(f"{base} is private, and everybody can read its name in {self.repo}, which is public.")

    def fetch(self, source: str, name: str) -> Path | None:
        """A file of another repository; `None` where it is not there, or not for everybody."""
        base, _, at = source.partition("@")
        with _refusals():
            return Path(self.api.hf_hub_download(base, name, revision=at or None))
        return None

    def take(self, source: str, wanted: re.Pattern[str]) -> dict[str, Path]:
        """Files of a folder or of another repository, by the path in it."""
        if os.path.isdir(source):
            root = Path(source)
            paths = {path.relative_to(root).as_posix(): path for path in [*root.iterdir(), *root.glob("licences/*/*")]}
            return {name: path for name, path in sorted(paths.items()) if path.is_file() and wanted.fullmatch(name)}
        base, _, at = source.partition("@")
        if not re.fullmatch(REPO, base):
            return {}
        names: list[str] = []
        with _refusals():
            names = [name for name in self.api.list_repo_files(base, revision=at or None) if wanted.fullmatch(name)]
        found = {name: self.fetch(source, name) for name in names}
        return {name: path for name, path in found.items() if path is not None}

    def refuse_tokens(self, contents: Mapping[str, bytes | Path]) -> None:
        """Raise if a text holds what looks like a token."""
        for name, content in contents.items():
            if isinstance(content, Path):
                if content.suffix in _NO_TEXT or content.stat().st_size > _MAX_TEXT:
                    continue
                content = content.read_bytes()
            text = content.decode("utf-8", errors="replace")
            if _TOKEN.search(text) or (self.secret and self.secret in text):
                raise HubError(f"{name} holds an access token, so nothing was sent. Remove it, and revoke the token.")

    def open(self) -> str:
        """Make repository and branch where they do not exist; the repository's address."""
        from huggingface_hub.errors import HfHubHTTPError

        url = self.api.create_repo(self.repo, private=self.private, exist_ok=True)
        if self.private and not self.api.repo_info(self.repo).private:
            raise HubError(
                f"{self.repo} exists and is public, so nothing was sent. Make it private first, or do not ask for a "
                "private one."
            )
        if self.revision is not None and not self.revision.startswith("refs/pr"):
            try:
                self.api.create_branch(self.repo, branch=self.revision, exist_ok=True)
            except HfHubHTTPError as error:
                # Who may only propose makes no branch; a missing one is told of by the commit.
                if not self.create_pr or error.response.status_code != 403:
                    raise
        return str(url)

    def commit(
        self,
        url: str,
        contents: Mapping[str, bytes | Path],
        deleted: Sequence[str],
        message: str,
        description: str | None,
        parent: str | None = None,
    ) -> Pushed:
        from huggingface_hub import CommitOperationDelete

        removals = [CommitOperationDelete(path_in_repo=name) for name in deleted]
        with ExitStack() as files:
            commit = self.api.create_commit(
                self.repo,
                [*self._uploaded(contents, files), *removals],
                commit_message=message,
                commit_description=description,
                revision=self.revision,
                create_pr=self.create_pr,
                parent_commit=parent,
            )
        return Pushed(url, str(commit.commit_url), str(commit.oid), sorted(contents), list(deleted), commit)

    def _uploaded(self, contents: Mapping[str, bytes | Path], files: ExitStack, has_xet: bool = True) -> list[Any]:
        """Additions whose large files have been sent: through Xet where the Hub has it."""
        from huggingface_hub import CommitOperationAdd

        # The client sends open files the way it did before there was Xet.
        additions = [
            CommitOperationAdd(
                path_in_repo=name,
                path_or_fileobj=content
                if has_xet or isinstance(content, bytes)
                else files.enter_context(content.open("rb")),
            )
            for name, content in sorted(contents.items())
        ]
        try:
            self.api.preupload_lfs_files(
                self.repo, additions, revision=self.revision, create_pr=self.create_pr, free_memory=False
            )
        except ConnectionError as error:
            if not has_xet or not re.search(r"404.*/xet-write-token/", str(error), re.DOTALL):
                raise
            self.tell(f"{self.repo}: this Hub has no Xet storage; uploading without it")
            return self._uploaded(contents, files, has_xet=False)
        return additions


def _pictures(paths: Sequence[str | os.PathLike[str]]) -> dict[str, Path]:
    found = {}
    for path in map(Path, paths):
        if not path.is_file():
            raise HubError(f"There is no picture {path}. Give a file.")
        if not re.fullmatch(_PICTURE, path.name):
            raise HubError(f"{path.name} is no picture for a card. Give a PNG, JPEG, WebP or SVG with a plain name.")
        found[path.name] = path
    return found


def _licence_texts(target: _Target, source: str) -> dict[str, bytes | Path]:
    """The licence texts of what a checkpoint was made from, where they will lie."""
    found = target.take(source, _LICENCE_TEXTS)
    if os.path.isdir(source):
        return {**found}
    folder = f"licences/{source.partition('@')[0].replace('/', '--')}"
    return {name if "/" in name else f"{folder}/{name}": path for name, path in found.items()}


def _remark_on_llama(provenance: Provenance, repo: str, names: Iterable[str], tell: Tell) -> None:
    terms = llama_terms(provenance)
    if terms is None:
        return
    beside = [name.rpartition("/")[2].upper() for name in names if _LICENCE_TEXTS.fullmatch(name)]
    missing = [what for what in ("LICENSE", "NOTICE") if not any(name.startswith(what[:5]) for name in beside)]
    if missing:
        tell(
            f"The Llama community licence belongs beside the weights, with a NOTICE: {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing. Put the files of the Llama that it was made from into "
            "the folder and push again."
        )
    if not terms.allows(repo):
        tell(f"The Llama community licence asks for a name that begins with {terms.name!r}: {repo} does not.")


def checkpoint_files(folder: Path, *, needs_processor: bool = True) -> list[str]:
    """Names of the files that make up a checkpoint; `licences/` holds the texts of its parts.

    Raises:
        HubError: If one is missing or cut short, or the checkpoint is of another model.
    """
    if not (folder / "config.json").is_file():
        inside = _checkpoints_in(folder)
        if inside:
            listed = ", ".join(map(str, inside[:6])) + (f" and {len(inside) - 6} more" if len(inside) > 6 else "")
            raise HubError(f"{folder} is no checkpoint, but there are some in it: {listed}. Give one of them.")
        raise HubError(f"{folder} is no checkpoint: it has no config.json. Give the folder that holds the weights.")
    config = read_json(folder / "config.json")
    if config.get("model_type") != "finecaption":
        raise HubError(f"{folder} holds a model of type {config.get('model_type')!r}. Give a FineCaption checkpoint.")
    classes = config.get("architectures") or [_CLASS]
    if classes != [_CLASS]:
        raise HubError(
            f"{folder} holds a {classes[0]}, which cannot describe anything by itself. Push the {_CLASS} that it "
            "belongs to."
        )
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and _TRAVELS.fullmatch(path.name))
    texts = [path.relative_to(folder).as_posix() for path in sorted(folder.glob("licences/*/*"))]
    needed = set(_NEEDED_OF_PROCESSOR) if needs_processor else set()
    index = folder / "model.safetensors.index.json"
    needed |= _shards(index) if index.is_file() else {"model.safetensors"}
    needed |= _code(folder, config)
    missing = sorted(needed - set(names))
    if missing:
        raise HubError(
            f"{folder} lacks {', '.join(missing)}. Save model and processor into one folder with save_pretrained."
        )
    for name in names:
        if name.endswith(".safetensors"):
            _check_weights(folder / name)
    return names + [name for name in texts if _LICENCE_TEXTS.fullmatch(name)]


def _shards(index: Path) -> set[str]:
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise HubError(f"{index} names no files of weights. Save the checkpoint again.")
    return set(files.values())


def _checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoints of a training run, the one to be preferred first: the last stage's final one."""

    def rank(path: Path) -> tuple[bool, int, int]:
        names = path.relative_to(folder).parts
        stage, step = (re.match(r"(?:checkpoint-)?(\d+)", name) for name in (names[0], names[-1]))
        return path.name != "final", -int(stage[1]) if stage and len(names) > 1 else 0, -int(step[1]) if step else 0

    found = [path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/config.json")]
    return sorted((path for path in found if not path.name.endswith(".partial")), key=rank)


def _code(folder: Path, config: dict[str, Any]) -> set[str]:
    """Files of code that the Auto classes and the pipeline need, with what those import."""
    references = list((config.get("auto_map") or {}).values())
    references += [entry["impl"] for entry in (config.get("custom_pipelines") or {}).values()]
    if (folder / "processor_config.json").is_file():
        references += list((read_json(folder / "processor_config.json").get("auto_map") or {}).values())
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


def _eval_results(report: Report | None, dataset: str | None, tell: Tell) -> dict[str, bytes | Path]:
    """The file of `.eval_results`, with an entry for each metric."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    if report is None:
        if dataset is not None:
            raise HubError("A data set was named (--dataset), but no evaluation on it. Give --report too.")
        return {}
    if dataset is None:
        tell("no .eval_results: its entries name a data set of the Hub, which --dataset gives")
        return {}
    if not re.fullmatch(REPO, dataset):
        raise HubError(f"{dataset!r} is no data set of the Hub. Give owner/name.")
    entries = []
    for name, row in report["metrics"].items():
        bounds = row["interval_95"]
        note = "" if bounds is None else f"95 % interval {bounds[0]:.2f} to {bounds[1]:.2f}; "
        entries.append(
            EvalResultEntry(
                dataset_id=dataset,
                task_id=name,
                value=round(row["value"], 2),
                notes=f"{row['label']}; {note}{row['segments']} captions; {report['signature']}",
            )
        )
    text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
    return {f".eval_results/{dataset.replace('/', '--')}.yaml": text.encode()}


def keep_origin(source: str, folder: Path) -> None:
    """Keep what a base on the Hub says of its origin and licence, for a push of what is trained from it.

    Args:
        source: `owner/name@commit`.
        folder: to be made for it; what it holds of another commit is replaced.

    Raises:
        HubError: If the Hub cannot be reached.
    """
    repo, _, commit = source.partition("@")
    values = {"model": repo, "commit": commit}
    if (folder / ORIGIN_FILE).is_file() and read_json(folder / ORIGIN_FILE) == values:
        return
    shutil.rmtree(folder, ignore_errors=True)
    target = _Target(repo)
    with target.errors():
        found = target.take(source, re.compile(rf"{re.escape(FILE)}|assembly\.json|README\.md"))
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(exist_ok=True)
    for name, path in found.items():
        (partial / name).write_bytes(path.read_bytes())
    (partial / ORIGIN_FILE).write_text(json.dumps(values) + "\n", encoding="utf-8")
    os.replace(partial, folder)


@contextmanager
def hub_errors(repo: str, secret: str | None) -> Iterator[None]:
    """Errors of the Hub's client and of its connection as one kind, without a token, with what to do."""
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        # What the client raises is of no common kind: errors of its HTTP library, a KeyError for an odd answer.
        if not isinstance(error, (OSError, ValueError)) and not _is_of_client(error):
            raise
        reason, cause = _first_line(error), error.__cause__ or error.__context__
        if isinstance(error, RuntimeError) and cause is not None:  # "Error while uploading ..."
            reason += f": {_first_line(cause)}"
        message = f"{repo}: {_without_token(reason, secret)} {_remedy(error)}"
        # Messages further down may hold request headers; the chain ends here.
        raise HubError(message) from None


@contextmanager
def _refusals() -> Iterator[None]:
    """Swallow what says that something is not there, or not for this user; a Hub that is not reached says neither."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        yield
    except (EntryNotFoundError, HfHubHTTPError) as error:
        answer = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
        if answer is None or answer.status_code >= 500 or answer.status_code == 429:
            raise


def _is_of_client(error: BaseException) -> bool:
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__", "").partition(".")[0] == "huggingface_hub" for frame in frames)


def _first_line(error: BaseException) -> str:
    """What an error says, in one line; its kind where it says nothing, or nothing but a name."""
    lines = [part.strip() for part in str(error).splitlines()]
    text = " ".join(line for line in dict.fromkeys(lines) if line and not line.startswith("For more information"))
    kind = type(error).__name__
    return (f"{kind}: {text}" if isinstance(error, LookupError) else text or kind).rstrip(".")[:500]


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
    if status == 412:
        return "- Another commit has arrived meanwhile. Run the same again."
    if status == 429:
        return "- The Hub takes no more requests for now. Wait some minutes and run the same again."
    if isinstance(error, (LookupError, TypeError, AttributeError, json.JSONDecodeError)):
        return "- That is no answer of a Hub. See what HF_ENDPOINT names, and whether there is a newer huggingface_hub."
    if any(frame.name == "_upload_xet_files" for frame in traceback.extract_tb(error.__traceback__)):
        return (
            "- Run the same again. If that does not help, the network keeps the Hub's Xet storage away: set "
            "HF_HUB_DISABLE_XET=1."
        )
    is_of_network = type(error).__module__.startswith("httpx") or isinstance(error, (ConnectionError, TimeoutError))
    if is_of_network or isinstance(error, RuntimeError) or (status or 0) >= 500:
        return "- Run the same again: it goes on with what has arrived, and nothing is to be seen before all of it has."
    return ""
