"""A Space of the Hub: the demo of one checkpoint, with the code that it runs; as a folder, and to the Hub."""

import json
import os
from importlib.metadata import requires
from pathlib import Path
from string import Template

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .errors import HubError, is_repo_id
from .repository import Repository

PYTHON_VERSION = "3.12.12"
"""Of a Space. Without it 3.10 is taken, which current releases of transformers and torch do not support any more, and
ZeroGPU has 3.10.13 and exactly this one."""

_PACKAGE = Path(__file__).parents[1]
# The Space has its own checkpoint, and does nothing but answer.
_STAY = {"checkpoints", "assembly", "cli", "describing", "evaluation", "hub", "training"}

_TEMPLATES = Path(__file__).parent / "templates"


def write_space(out: str | os.PathLike[str], model: str, title: str = "FineCaption") -> list[str]:
    """Write a Space that shows the demo of a checkpoint.

    Args:
        out: a folder that does not exist yet, or has only files of this very Space, as an earlier try leaves them.
        model: the checkpoint's id on the Hub.
        title: of the Space, one line.

    Returns:
        The names of what lies in the folder.

    Raises:
        ValueError: If the model is no id, or the title has several lines.
        FileExistsError: If the folder holds something else.
    """
    if not is_repo_id(model):
        raise ValueError(f"{model!r} is no id of a Hub repository. Give OWNER/NAME, such as the one you pushed to.")
    if not title.strip() or not title.isprintable():
        raise ValueError(f"The title {title!r} is no line of text.")
    tested = _tested()
    values = {"model": model, "heading": title, "python": PYTHON_VERSION}
    values["gradio"] = str(tested["gradio"].specifier).removeprefix("==")
    values["title"] = json.dumps(title, ensure_ascii=False)  # JSON text is YAML text
    files = {
        **_code(),
        "app.py": _filled("space_app.txt", values),
        "README.md": _filled("space_readme.md", values),
        "requirements.txt": "".join(f"{line}\n" for line in _requirements(tested)).encode(),
    }
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is there already, and is no folder. Give a new one.")
    for path in _files_in(folder):
        name = path.relative_to(folder).as_posix()
        if name not in files or path.read_bytes() != files[name]:
            raise FileExistsError(
                f"{folder} is there already, and its {name} is not of this Space. Give a new folder, or empty this one."
            )
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return sorted({name.split("/")[0] for name in files})


def _filled(template: str, values: dict[str, str]) -> bytes:
    return Template((_TEMPLATES / template).read_text(encoding="utf-8")).substitute(values).encode()


def _code() -> dict[str, bytes]:
    """What answers, by its place in the Space."""
    files = (path for path in _files_in(_PACKAGE) if path.relative_to(_PACKAGE).parts[0] not in _STAY)
    return {path.relative_to(_PACKAGE.parent).as_posix(): path.read_bytes() for path in files}


def _files_in(folder: Path) -> list[Path]:
    """Those that were written, rather than left by running them: gradio writes .pyi files beside components."""
    files = (path for path in folder.rglob("*") if not path.is_dir())
    return sorted(path for path in files if "__pycache__" not in path.parts and path.suffix != ".pyi")


def _tested() -> dict[str, Requirement]:
    """The releases with which everything was tested, by name, for the Python of a Space."""
    lines = (_TEMPLATES / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    python = {"python_version": PYTHON_VERSION.rpartition(".")[0]}
    return {canonicalize_name(each.name): each for each in found if not each.marker or each.marker.evaluate(python)}


def _requirements(tested: dict[str, Requirement]) -> list[str]:
    """What the package and its classical segmenter need, in the tested releases, whenever the Hub builds the Space.
    Gradio comes with it, as the front matter says; `spaces` has to go with what the Hub itself runs that day."""
    lines = {"spaces"}
    for line in requires("finecaption-hf") or ():
        needed = Requirement(line)
        if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", "segmentation")):
            release = tested.get(canonicalize_name(needed.name), needed)
            lines.add(f"{needed.name}{release.specifier}")
    return sorted(lines)


def push_space(folder: str | os.PathLike[str], repo: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a Space in one commit, and return its address. The Hub then builds and starts it.

    Args:
        folder: as `write_space` leaves it.
        repo: `owner/name` of the Space; it is made where it does not exist.
        private: make it a private one.
        token: by default the one of `hf auth login` or HF_TOKEN.

    Raises:
        HubError: If the Hub cannot be reached or refuses; no message has a token.
    """
    if not is_repo_id(repo):
        raise HubError(f"{repo!r} is no Space. Give owner/name.")
    target = Repository(repo, token=token, kind="space")
    url, _ = target.create(private or None)
    with target.errors():
        target.api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            repo_type="space",
            commit_message="Upload FineCaption demo",
            delete_patterns="finecaption_hf/*",  # code that an earlier version had, and this one has not
            ignore_patterns=["**/__pycache__/*", "*.pyi"],  # left by running it
        )
    return url
