"""A folder that is a Space of the Hub: the demo of one checkpoint, with the code that it runs."""

import json
import os
import re
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYTHON_VERSION = "3.12.12"
"""Of a Space. Without it 3.10 is taken, which current releases of transformers and torch do not support any more, and
ZeroGPU has 3.10.13 and exactly this one."""

_PACKAGE = Path(__file__).parents[1]
# The Space has its own checkpoint, and does nothing but answer.
_STAY = {"checkpoints", "assembly", "cli", "describing", "evaluation", "hub", "training"}

_APP = '''"""The demo of {model}, as a Space."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported, which `spaces` does

import spaces  # before torch: on ZeroGPU it makes it speak of a GPU before there is one

import torch

from finecaption_hf.asking import load
from finecaption_hf.demo.app import build_demo, launch_demo
from finecaption_hf.demo.zerogpu import on_zero_gpu
from finecaption_hf.segmentation import open_segmenter, open_segmenter_for

MODEL = {model!r}
ON_ZERO_GPU = bool(os.environ.get("SPACES_ZERO_GPU"))

# To the GPU only here: ZeroGPU stands in for it in this thread, and loading uses several.
model, processor = load(MODEL, device="cpu")
if torch.cuda.is_available():
    model.to("cuda")
# What makes masks of points stays in this process, which has no GPU on ZeroGPU: there it is one that needs none.
demo = build_demo(
    model,
    processor,
    MODEL,
    on_gpu=on_zero_gpu(spaces.GPU) if ON_ZERO_GPU else None,
    segmenter=open_segmenter() if ON_ZERO_GPU else open_segmenter_for(model, processor),
)

if __name__ == "__main__":
    launch_demo(
        demo,
        host=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"),
        port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
        on_start=lambda address: print(address, flush=True),
    )
'''

_README = """---
title: {title}
emoji: 🔎
colorFrom: blue
colorTo: green
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
models:
- {model}
short_description: Mark a part of a picture and ask what it is
suggested_hardware: zero-a10g
---

# {title}

The demo of [{model}](https://huggingface.co/{model}): mark regions of a picture, and ask about them.
Scripts use its endpoint:

```python
from gradio_client import Client, handle_file

client = Client("OWNER/SPACE")
box = {{"box_xyxy": [40, 60, 200, 180]}}
print(client.predict(handle_file("photo.jpg"), box, ["Color", "Shape"], api_name="/describe"))
```

It runs on ZeroGPU, on other GPUs and on CPUs; choose the hardware in the settings of the Space. If {model} is
private or gated, add a token that may read it there, as a secret named `HF_TOKEN`.

`finecaption space` of finecaption-hf wrote this folder; `finecaption_hf/` is the code of that package.
"""


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
    if not re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", model):
        raise ValueError(f"{model!r} is no id of a Hub repository. Give OWNER/NAME, such as the one you pushed to.")
    if not title.strip() or not title.isprintable():
        raise ValueError(f"The title {title!r} is no line of text.")
    # JSON text is YAML text.
    shown = json.dumps(title, ensure_ascii=False)
    tested = _tested()
    gradio = str(tested["gradio"].specifier).removeprefix("==")
    readme = _README.format(title=shown, gradio=gradio, python=PYTHON_VERSION, model=model)
    files = {
        **_code(),
        "app.py": _APP.format(model=model).encode(),
        "README.md": readme.replace(f"# {shown}\n", f"# {title}\n").encode(),
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
    lines = (Path(__file__).parent / "constraints.txt").read_text(encoding="utf-8").splitlines()
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
