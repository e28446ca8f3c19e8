"""The pages for people: every command of docs/photographs.md and docs/your-own.md is run as it stands, in its order.

Models of the Hub are small random ones under their names, on a Hub on loopback; pictures are rendered scenes.
`AT_TOY_SCALE` is all that is added to commands. The notebooks of both run offline, with random LLaVAs for real ones.
"""

import io
import json
import re
import shlex
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import parts
import pytest
from conftest import EXAMPLE_MASK, EXAMPLE_PICTURE, ROOT
from hub_server import Client, HubServer, Repo
from other_models import random_model
from PIL import Image

from finecaption_hf.scenes import render_scene

AT_TOY_SCALE = {
    "train": "--max-steps 2 --per-device-train-batch-size 1 --gradient-accumulation-steps 1 --save-steps 1 "
    "--dataloader-num-workers 0 --use-cpu true --bf16 false --disable-tqdm true",
    "describe": "--max-new-tokens 8",
}
HF = "import sys; sys.argv[0] = 'hf'; from huggingface_hub.cli.hf import main; main()"
ALPHA_CLIP = "clip_l14_336_grit_20m_4xe.pth"


def other(family: str) -> Callable[[Path], Any]:
    def write(folder: Path) -> None:
        for part in random_model(family):
            part.save_pretrained(folder)

    return write


STAND_INS: dict[str, Callable[[Path], Any]] = {
    "openai/clip-vit-large-patch14-336": parts.clip,
    "timm/convnext_base.clip_laion2b": parts.convnext,
    "facebook/sam-vit-base": parts.sam,
    "HuggingFaceTB/SmolLM2-360M-Instruct": lambda folder: parts.language_model(
        folder, template=parts.TEMPLATES["smollm2"]
    ),
    "llava-hf/llava-1.5-7b-hf": parts.llava,
    "HuggingFaceTB/SmolVLM-Instruct": other("llava"),
    "Qwen/Qwen2.5-VL-7B-Instruct": other("qwen2_5_vl"),
}


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(page: str) -> Iterator[list[str]]:
    """Those of the page's shell blocks, as words."""
    for line in "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def write_photos(folder: Path, seeds: range) -> None:
    for place in ("images", "masks"):
        (folder / place).mkdir(parents=True)
    for number, seed in enumerate(seeds, start=1):
        scene = render_scene(seed)
        Image.fromarray(scene.image).save(folder / "images" / f"{number:04d}.jpg")
        Image.fromarray(scene.masks[0]).save(folder / "masks" / f"{number:04d}.png")


def llava_pretrain() -> dict[str, bytes]:
    """Its two files, of two pictures."""
    rows, archive = [], io.BytesIO()
    with zipfile.ZipFile(archive, "w") as images:
        for number in range(2):
            name = f"00000/{number:09d}.jpg"
            images.write(EXAMPLE_PICTURE, name)
            turns = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "a blue region"}]
            rows.append({"id": str(number), "image": name, "conversations": turns})
    return {"blip_laion_cc_sbu_558k.json": json.dumps(rows).encode(), "images.zip": archive.getvalue()}


@pytest.fixture
def reader(hub: HubServer, client: Client, tmp_path: Path) -> Client:
    """Who follows the pages: with a photograph, two folders of pictures with masks, Alpha-CLIP's file and a Hub."""
    for name, write in STAND_INS.items():
        write(folder := tmp_path / "hub" / name)
        hub.hold(name, folder)
    hub.repos["dataset", "liuhaotian/LLaVA-Pretrain"] = pretrain = Repo("liuhaotian/LLaVA-Pretrain", False)
    pretrain.commit("main", "all of it", llava_pretrain(), set())
    write_photos(tmp_path / "photos", range(3))
    write_photos(tmp_path / "held-out", range(3, 5))
    Image.open(EXAMPLE_PICTURE).convert("RGB").resize((512, 512)).save(tmp_path / "photo.jpg")
    Image.open(EXAMPLE_MASK).resize((512, 512), Image.Resampling.NEAREST).save(tmp_path / "mask.png")
    parts.alpha_clip(tmp_path / ALPHA_CLIP)
    return client


def follow(page: str, reader: Client) -> list[str]:
    """Run the page: what each of its commands printed."""
    for block in blocks(page, "yaml"):
        (name,) = re.findall(r"Save this as `([\w.-]+)`", (ROOT / "docs" / page).read_text(encoding="utf-8"))
        (reader.work / name).write_text(block, encoding="utf-8")
    said = []
    for program, *words in commands(page):
        if program == "hf":
            done = reader.run(HF, *words)
            assert done.returncode == 0, done.stderr
            continue
        assert program == "finecaption", f"{page}: {program} cannot be run by this test"
        said.append(reader.command(*words, *shlex.split(AT_TOY_SCALE.get(words[0], ""))))
    return said


@pytest.mark.slow
def test_every_command_from_a_photograph_to_captions_runs(reader):
    said = follow("photographs.md", reader)
    assert "blue" in said[0] and json.loads(said[4])[0]["sent"] and "parameters. Weights" in said[5]
    for name in ("seen.png", "described.png", "masked.png"):
        assert Image.open(reader.work / name).size[0] >= 512
    assert (reader.work / "photos.html").stat().st_size > 10_000


@pytest.mark.slow
def test_every_command_of_a_model_of_your_own_runs_from_parts_to_a_space(reader, hub):
    follow("your-own.md", reader)
    sealed = json.loads((reader.work / "runs/mine/3-everything/final/stage.json").read_text())
    assert sealed["stage"]["name"] == "everything" and sealed["global_step"] == 2
    card = hub.model("me/my-finecaption").at("main").files["README.md"].decode()
    assert "me/what-is-this" in card and "name: held-out" in card and hub.model("me/my-finecaption").private
    assert b"me/my-finecaption" in hub.repos["space", "me/what-is-this"].at("main").files["app.py"]
    report = json.loads((reader.work / "runs/eval/report.json").read_text())
    assert report["comparison"]["model"] == "pixels" and report["diagnostics"][0]["title"] == "Is the mask used?"
    assert (reader.work / "runs/eval/report.html").stat().st_size > 10_000
    assert Image.open(reader.work / "answered.png")


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """Run a notebook of examples/ in a folder of its own: the outputs of its cells, as text."""
    nbformat = pytest.importorskip("nbformat", reason="notebooks are run by nbclient and ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="notebooks are run by nbclient and ipykernel")
    pytest.importorskip("ipykernel", reason="notebooks are run by nbclient and ipykernel")

    def run(name: str, **environment: object) -> str:
        for variable, value in environment.items():
            monkeypatch.setenv(variable, str(value))
        opened = nbformat.read(ROOT / "examples" / name, as_version=4)
        assert not any(cell.get("outputs") for cell in opened.cells), "a notebook is kept without outputs"
        kernel = nbclient.NotebookClient(opened, timeout=900, resources={"metadata": {"path": str(tmp_path)}})
        return json.dumps(kernel.execute())

    return run


@pytest.mark.slow
def test_the_notebook_about_a_photograph_runs_offline(notebook, tmp_path):
    other("llava")(tmp_path / "any")
    parts.llava(tmp_path / "llava")
    parts.alpha_clip(tmp_path / ALPHA_CLIP)
    files = {"PHOTO": EXAMPLE_PICTURE, "MASK": EXAMPLE_MASK, "ALPHA_CLIP": tmp_path / ALPHA_CLIP}
    said = notebook("photograph.ipynb", MODEL=tmp_path / "any", LLAVA=tmp_path / "llava", **files)
    assert said.count('"image/png"') == 5 and "outlined in red" in said
    assert (tmp_path / "alpha-clip" / "config.json").is_file()


@pytest.mark.slow
def test_the_notebook_about_a_model_of_your_own_runs_offline(notebook, tmp_path):
    said = notebook("your_own.ipynb", PICTURES=4, STEPS=2)
    assert "finished before" in said and "minus pixels" in said
    assert (tmp_path / "my-space" / "app.py").is_file()
