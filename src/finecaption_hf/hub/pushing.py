"""A checkpoint to the Hub: everything that belongs to it in one commit, again and again until it is there."""

import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from .card import model_card, results_in
from .checkpoint import LICENCE_TEXT, PICTURE, checkpoint_files, is_replaced, read_json, read_text, weights_digest
from .errors import HubError, is_repo_id
from .figures import Report, eval_results_file, read_report
from .front_matter import card_fields
from .licences import llama_terms
from .provenance import FILE, OF_A_BASE, Provenance, read_provenance, read_pushed
from .repository import Pushed, Repository, State, Tell

Evaluation = str | os.PathLike[str] | Report | None
"""A report.json of `finecaption evaluate`: its path, or its content."""

_CARD = "README.md"
HANDLER = Path(__file__).parent / "templates" / "handler.txt"
HANDLER_NEEDS = "transformers>=5.19,<6\ntimm>=1.0\n"
"""Of what an endpoint's own image may lack or have too old."""


def push(model: Any, processor: Any, repo: str, *, max_shard_size: int | str = "50GB", **options: Any) -> Pushed:
    """Push a model and its processor from memory, as after a training loop of one's own.

    Args:
        model: a FineCaption. The card knows what the checkpoint that it was loaded from knows.
        processor: of the model.
        repo: `owner/name`, or a name of one's own.
        max_shard_size: of one file of weights.
        **options: those of `push_folder`.

    Raises:
        HubError: As `push_folder`.
    """
    options["base_model"] = options.get("base_model") or model.config.name_or_path or None
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        processor.save_pretrained(folder)
        return push_folder(folder, repo, **options)


def push_folder(
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
    handler: bool = False,
    message: str = "Upload FineCaption checkpoint",
    create_pr: bool = False,
    token: bool | str | None = None,
    tell: Tell = lambda line: None,
) -> Pushed:
    """Upload weights, code, processor, tokenizer, card and evaluation of a checkpoint in one commit.

    After an interruption the same call goes on: files that arrived are not sent again. Weights and code of an earlier
    push that the checkpoint does not have are removed in the same commit. A card on the Hub that somebody wrote or
    edited keeps its text. Evaluation, pictures, Space, licence and origin that an earlier push was given stay until
    others are given; evaluation and pictures go where the weights are others, and a remark says so.

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
        handler: write handler.py and requirements.txt as well, with which an Inference Endpoint answers about regions.
        message: of the commit.
        create_pr: propose the commit instead of making it.
        token: by default the one of `hf auth login` or HF_TOKEN.
        tell: gets remarks, a line each: what is missing, and how to add it.

    Raises:
        HubError: If the folder is no whole checkpoint, or the Hub cannot be reached or refuses; no message has a token.
    """
    folder = Path(folder)
    if space is not None and not is_repo_id(space):
        raise HubError(f"{space!r} is no Space. Give owner/name.")
    report = None if evaluation is None else read_report(evaluation)
    contents: dict[str, bytes | Path] = {name: folder / name for name in checkpoint_files(folder)}
    weights = weights_digest(folder, contents)
    given = _pictures(pictures)
    contents |= given
    contents |= _eval_results(report, dataset, tell)
    if handler:
        contents |= {"handler.py": HANDLER.read_bytes(), "requirements.txt": HANDLER_NEEDS.encode()}
    target = Repository(repo, revision=revision, create_pr=create_pr, token=token)

    def look(source: str) -> Path | None:
        return target.fetch(source, OF_A_BASE)

    provenance = read_provenance(folder, look, base_model=base_model, repo=target.name)
    for base in dict.fromkeys([*([base_model] if base_model else []), *provenance.base_models]):
        if base.partition("@")[0] != target.name:
            contents = {**_licence_texts(base, look), **contents}

    def add_card(existing: str, outdated: bool) -> str:
        card = model_card(
            folder,
            target.name,
            provenance,
            evaluation=report,
            licence=licence,
            existing=existing,
            outdated=outdated,
            tags=tags,
            space=space,
            pictures=list(given),
        )
        contents.update({_CARD: card.encode(), FILE: provenance.to_json(weights).encode()})
        return card

    # Before the repository is made: what cannot be sent leaves no trace.
    beside = folder / _CARD
    new_card = add_card(read_text(beside) if beside.is_file() else "", _pushed_with(folder / FILE)[1] != weights)
    target.refuse_tokens(contents)
    with target.errors():
        ModelCard(new_card).validate()
    url, state = target.create(private)
    _refuse_other_model(target, state)
    target.create_branch()
    known, before = _pushed_with(target.download(FILE, state)) if FILE in state.files else (Provenance(), None)
    outdated, lost = before != weights, []
    if known.base_models and not (provenance.base_models or provenance.parts):
        if outdated:
            lost.append("base model")
        else:
            stages, said = provenance.stages or known.stages, provenance.licence or known.licence
            provenance = replace(known, stages=stages, licence=said)
    if not state.is_private:
        for base in filter(target.is_private, provenance.base_models):
            tell(f"{base} is private, and everybody can read its name in {target.name}, which is public.")
    if _CARD in state.files:
        existing = read_text(target.download(_CARD, state))
        add_card(existing, outdated)
        target.refuse_tokens({_CARD: contents[_CARD]})
        earlier = results_in(existing)
        lost += ["evaluation"] if earlier.evaluation and report is None else []
        lost += [] if given else [name for name in earlier.pictures if name not in contents]
    stale = sorted(name for name in state.files if is_replaced(name) and name not in contents)
    results = sorted(name for name in state.files if name.startswith(".eval_results/") and name not in contents)
    if outdated and before is None and results:
        tell(f"{', '.join(results)} stays as it is in {target.name}: remove it where the weights changed.")
    elif outdated:
        stale += results
        lost += results
    if outdated and lost:
        about = "not known to be about these weights" if before is None else "about other weights"
        tell(
            f"Of the earlier push, {', '.join(lost)} {'is' if len(lost) == 1 else 'are'} {about}, and not kept. Give "
            "what is about these: --report, --picture, --base-model."
        )
    _remark_on_llama(provenance, target.name, {*contents, *state.files}, tell)
    return target.commit(contents, stale, message, url=url)


def _pushed_with(path: Path) -> tuple[Provenance, str | None]:
    """What a provenance.json says and the digest of its weights; nothing where it is not there or damaged."""
    with suppress(HubError, OSError):
        return read_pushed(path)
    return Provenance(), None


def _pictures(paths: Sequence[str | os.PathLike[str]]) -> dict[str, Path]:
    found = {}
    for path in map(Path, paths):
        if not path.is_file():
            raise HubError(f"There is no picture {path}. Give a file.")
        if not PICTURE.fullmatch(path.name):
            raise HubError(f"{path.name} is no picture for a card. Give a PNG, JPEG, WebP or SVG with a plain name.")
        found[path.name] = path
    return found


def _eval_results(report: Report | None, dataset: str | None, tell: Tell) -> dict[str, bytes]:
    if report is None and dataset is not None:
        raise HubError("A data set was named (--dataset), but no evaluation on it. Give --report too.")
    if report is not None and dataset is None:
        tell("no .eval_results: its entries name a data set of the Hub, which --dataset gives")
    return {} if report is None or dataset is None else eval_results_file(report, dataset)


def _licence_texts(source: str, look: Any) -> dict[str, bytes | Path]:
    """The licence texts of what a checkpoint was made from, where they will lie."""
    is_local = os.path.isdir(source)
    folder = Path(source) if is_local else look(source)
    paths = [] if folder is None else [*folder.glob("*"), *folder.glob("licences/*/*")]
    names = {path.relative_to(folder).as_posix(): path for path in paths if path.is_file()}
    beside = "" if is_local else f"licences/{source.partition('@')[0].replace('/', '--')}/"
    found = {name: path for name, path in names.items() if LICENCE_TEXT.fullmatch(name)}
    return {name if "/" in name else f"{beside}{name}": path for name, path in found.items()}


def _refuse_other_model(target: Repository, state: State) -> None:
    """Raise if the repository holds a model of another kind, whose weights and card a push would spoil."""
    kind = None
    if "config.json" in state.files:
        path = target.download("config.json", state)
        with suppress(HubError):  # one that nobody can read is nothing to be kept
            kind = read_json(path).get("model_type")
    if kind is None and _CARD in state.files:
        kind = card_fields(target.download(_CARD, state)).get("library_name")
    if kind not in (None, "finecaption", "transformers"):
        raise HubError(f"{target.name} holds a model of another kind ({kind}). Give another repository.")


def _remark_on_llama(provenance: Provenance, repo: str, names: Iterable[str], tell: Tell) -> None:
    terms = llama_terms(provenance.licences())
    if terms is None:
        return
    beside = [name.rpartition("/")[2].upper() for name in names if LICENCE_TEXT.fullmatch(name)]
    missing = [what for what in ("LICENSE", "NOTICE") if not any(name.startswith(what[:5]) for name in beside)]
    if missing:
        tell(
            f"The Llama community licence belongs beside the weights, with a NOTICE: {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing. Put the files of the Llama that it was made from into "
            "the folder and push again."
        )
    if not terms.allows(repo):
        tell(f"The Llama community licence asks for a name that begins with {terms.name!r}: {repo} does not.")
