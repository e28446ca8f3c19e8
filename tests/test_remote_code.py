"""The embedded checkpoint as a Hub folder: loaded in fresh processes that have neither this package nor a network."""

import json
import os
import re
import shutil
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import NOT_INSTALLED
from fresh import OURS
from PIL import Image
from safetensors.torch import load_file
from transformers import __version__

import finecaption_hf
from finecaption_hf.asking import load
from finecaption_hf.scenes import accepted, is_right, render_scene

pytestmark = pytest.mark.hub

FOLDER = finecaption_hf.EMBEDDED_CHECKPOINT
PACKAGE = Path(finecaption_hf.__file__).parent
HUB_FILES = {
    f"{name}_finecaption.py"
    for name in (
        "branches",
        "configuration",
        "engine",
        "image_processing",
        "mask_codecs",
        "masks",
        "modeling",
        "pipeline",
        "polygons",
        "processing",
        "prompts",
        "towers",
    )
}
SAVED_FILES = HUB_FILES | {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
CARD_FILES = {"README.md", "score.json"}

# What a user's machine looks like: transformers, but not this package, and no way out.
PREAMBLE = (
    NOT_INSTALLED
    + """
import os, socket

def refuse(self, address):
    raise AssertionError(f"a connection to {address} was tried")

socket.socket.connect = refuse
import torch
from PIL import Image

folder, work = sys.argv[1:]
"""
)
ENCODE = """
def encode(processor):
    image = Image.open(os.path.join(work, "scene.png"))
    masks = [Image.open(os.path.join(work, f"mask{i}.png")) for i in range(2)]
    chats = [processor.conversation(image, name, mask) for mask in masks for name in ("color", "dense")]
    return processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
    )
"""


def run(code: str, *arguments: os.PathLike, **environment: str) -> str:
    """Run code in a fresh process; returns what it printed."""
    result = OURS.run(PREAMBLE + ENCODE + textwrap.dedent(code), *arguments, work=Path(arguments[-1]), **environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("remote")
    scene = render_scene(4, split="test")
    Image.fromarray(scene.image).save(folder / "scene.png")
    for index in range(2):
        Image.fromarray(scene.masks[index]).save(folder / f"mask{index}.png")
    return folder


@pytest.fixture(scope="module")
def copy(work) -> Path:
    """The checkpoint away from the package, as a download would be."""
    return Path(shutil.copytree(FOLDER, work / "finecaption-tiny"))


@pytest.fixture(scope="module")
def expected(work) -> dict[str, torch.Tensor]:
    model, processor = load(device="cpu")
    namespace = {"work": str(work), "Image": Image, "os": os}
    exec(ENCODE, namespace)
    inputs = namespace["encode"](processor)
    # One thread, as the fresh processes: sums in another order would not be the same bits.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        logits = model(**inputs).logits
    torch.set_num_threads(threads)
    return {"logits": logits, **inputs}


SAVE_AGAIN = """
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor

trust = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(folder, **trust)
processor = AutoProcessor.from_pretrained(folder, **trust)
image_processor = AutoImageProcessor.from_pretrained(folder, **trust)
model = AutoModelForImageTextToText.from_pretrained(folder, **trust)
assert type(AutoModel.from_pretrained(folder, **trust)).__name__ == "FineCaptionForConditionalGeneration"
assert config.model_type == model.config.model_type == "finecaption"
assert image_processor.to_dict() == processor.image_processor.to_dict()
assert model.training is False
inputs = encode(processor)
with torch.inference_mode():
    logits = model(**inputs).logits
torch.save({"logits": logits, **inputs}, os.path.join(work, "given.pt"))
again = os.path.join(work, "again")
model.save_pretrained(again)
processor.save_pretrained(again)
"""


def assert_same_tensors(work: Path, expected: dict[str, torch.Tensor]) -> None:
    given = torch.load(work / "given.pt", weights_only=True)
    assert set(given) == set(expected)
    for name, value in expected.items():
        assert torch.equal(given[name], value), name


def settings(path: Path) -> dict:
    """A saved JSON file, without what the library notes of how it was loaded."""
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "local_files_only"}


def test_remote_code_gives_the_same_logits_bit_for_bit_and_saves_the_same_files_for_two_generations(
    work, copy, expected
):
    source = copy
    for generation in ("second", "third"):
        run(SAVE_AGAIN, source, work)
        assert_same_tensors(work, expected)
        again = work / "again"
        assert {path.name for path in again.iterdir()} == SAVED_FILES
        # Another release of the library writes out other defaults of its own configurations.
        same_release = json.loads((source / "config.json").read_text())["transformers_version"] == __version__
        for name in SAVED_FILES - {"model.safetensors"}:
            if not name.endswith(".json"):
                assert (again / name).read_bytes() == (source / name).read_bytes(), name
            elif same_release:
                assert settings(again / name) == settings(source / name), name
        first, second = load_file(source / "model.safetensors"), load_file(again / "model.safetensors")
        assert list(first) == list(second)
        assert all(torch.equal(first[key], second[key]) for key in first)
        source = again.rename(work / generation)


def test_lines_of_the_use_this_model_box_work(work, copy, expected):
    printed = run(
        """
        from transformers import AutoModel, AutoProcessor, pipeline

        pipe = pipeline("image-text-to-text", model=folder, trust_remote_code=True)
        scene = Image.open(os.path.join(work, "scene.png"))
        mask = Image.open(os.path.join(work, "mask0.png"))
        chat = [{"role": "user", "content": [
            {"type": "image", "image": scene, "mask": mask}, {"type": "text", "text": "Which color?"}
        ]}]
        print(pipe(text=chat, return_full_text=False)[0]["generated_text"])

        model = AutoModel.from_pretrained(folder, device_map="auto", trust_remote_code=True)
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        inputs = encode(processor).to(model.device)
        output = model.generate(**inputs)
        print(processor.batch_decode(output[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)[0])
        """,
        copy,
        work,
    )
    piped, generated = printed.strip().splitlines()[-2:]
    scene = render_scene(4, split="test")
    assert piped == generated
    assert is_right(generated, accepted(scene, 0)["Color"])


def test_configuration_can_send_automodel_to_the_model_without_head(work, copy, expected):
    """vLLM's and SGLang's generic backends build the language model's head themselves; docs/serving.md has the line."""
    printed = run(
        """
        from transformers import AutoConfig, AutoModel

        config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        config.auto_map["AutoModel"] = "modeling_finecaption.FineCaptionModel"
        model = AutoModel.from_pretrained(folder, config=config, trust_remote_code=True)
        empty = AutoModel.from_config(config, trust_remote_code=True)
        print(type(model).__name__, hasattr(model, "lm_head"), type(empty).__name__)
        """,
        copy,
        work,
    )
    assert printed.strip().splitlines()[-1] == "FineCaptionModel False FineCaptionModel"


@pytest.mark.parametrize("auto_class", ["AutoConfig", "AutoModel", "AutoProcessor", "AutoImageProcessor"])
def test_transformers_below_the_range_ends_in_an_error_that_names_it(work, copy, auto_class):
    printed = run(
        f"""
        from transformers import {auto_class}
        sys.modules["transformers"].__version__ = "5.18.0"  # not before: the library replaces its own module
        try:
            {auto_class}.from_pretrained(folder, trust_remote_code=True)
        except ImportError as error:
            print(error)
        """,
        copy,
        work,
    )
    assert "transformers>=5.19 (tested up to 5.24), but transformers 5.18.0 is installed" in printed


@pytest.mark.parametrize("version", ["5.24.9", "6.0.0"])
def test_on_a_release_that_nobody_knew_one_line_says_so_and_loading_goes_on(work, copy, version):
    """Two checkpoints bring two copies of the code, which say it once together."""
    shutil.copytree(copy, work / f"other-{version}")
    printed = run(
        f"""
        from transformers import AutoModel, AutoProcessor
        sys.modules["transformers"].__version__ = "{version}"
        os.dup2(1, 2)  # what is logged is looked at as well
        for given in (folder, os.path.join(work, "other-{version}")):
            AutoProcessor.from_pretrained(given, trust_remote_code=True)
            print(type(AutoModel.from_pretrained(given, trust_remote_code=True)).__module__)
        """,
        copy,
        work,
    )
    assert len(set(re.findall(r"transformers_modules\.(\w+)\.", printed))) == 2
    assert printed.count("tested up to") == (version == "6.0.0")


def test_folder_holds_exactly_what_travels_and_no_more_than_12_mb():
    assert {path.name for path in FOLDER.iterdir() if path.name != "__pycache__"} == SAVED_FILES | CARD_FILES
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 12_000_000


def test_code_of_the_checkpoint_is_links_to_the_packages():
    """In the repository the Hub files stand once; links that point to anything else would be copies again."""
    code = {path.name: path.readlink() for path in FOLDER.glob("*.py")}
    assert code == {name: Path("..", "..", name) for name in HUB_FILES}


def test_configuration_names_a_class_for_every_auto_class():
    auto_map = json.loads((FOLDER / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_finecaption.FineCaptionConfig",
        "AutoModel": "modeling_finecaption.FineCaptionForConditionalGeneration",
        "AutoModelForImageTextToText": "modeling_finecaption.FineCaptionForConditionalGeneration",
    }
    processor = json.loads((FOLDER / "processor_config.json").read_text())
    assert processor["auto_map"]["AutoProcessor"] == "processing_finecaption.FineCaptionProcessor"
    assert processor["image_processor"]["auto_map"]["AutoImageProcessor"].startswith("image_processing_finecaption.")
