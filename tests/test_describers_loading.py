"""One door for every model: what a name means, what suits it, and what cannot be meant."""

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hub_server import HubServer
from other_models import random_model
from PIL import Image

from finecaption_hf import EMBEDDED_CHECKPOINT, asking
from finecaption_hf.asking import DescriberError, FineCaptionDescriber, ask, load_describer
from finecaption_hf.asking.describers import (
    EndpointDescriber,
    FilledBoxDescriber,
    PixelsDescriber,
    PromptTemplates,
    Referral,
    RegionModelDescriber,
    TransformersDescriber,
)
from finecaption_hf.asking.describers.boxes import CONVENTIONS
from finecaption_hf.asking.describers.families import FAMILIES, OTHERS
from finecaption_hf.evaluation.comparators import read_table

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
BOX = {"box_xyxy": [20, 10, 70, 30]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved random models, by type."""
    made = {}
    for family in ("llava", "kosmos-2", "mllama"):
        made[family] = tmp_path_factory.mktemp(family)
        for part in random_model(family):
            part.save_pretrained(made[family])
    return made


def with_config(folder: Path, **fields: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


# --- which kind ------------------------------------------------------------------------------------------------------


def test_image_text_model_of_a_folder_answers_as_if_it_was_built_by_hand(folders: dict[str, Path]) -> None:
    loaded = load_describer(folders["llava"], device="cpu", max_new_tokens=6, referral="crop", batch_size=2)
    assert isinstance(loaded, TransformersDescriber)
    by_hand = TransformersDescriber(*random_model("llava"), Referral("crop"), name="it", max_new_tokens=6)
    asked = (PICTURE, [BOX, None], ["color", "Is it new?"])
    records = ask(loaded, *asked)
    assert records == ask(by_hand, *asked)
    assert all(set(record["answers"]) == {"Color", "Is it new?"} for record in records)
    assert loaded.name == str(folders["llava"]) and loaded.settings["questions_at_once"] == 2


@pytest.mark.parametrize("family", ["llava", "kosmos-2", "mllama"])
def test_family_is_asked_as_it_has_learnt_unless_told_otherwise(family: str, folders: dict[str, Path]) -> None:
    wanted = FAMILIES.get(family, OTHERS)
    found = load_describer(folders[family], device="cpu").settings
    assert (found["referral"], found["prompts"]) == (wanted.referral.settings, wanted.prompts.settings)
    told = load_describer(folders[family], device="cpu", referral={"kind": "box_drawn", "color": "blue"}, prompts="P")
    assert told.settings["referral"]["color"] == "blue" and told.settings["prompts"]["default"] == "P"


def test_families_that_read_boxes_have_a_convention_for_them() -> None:
    assert {name for name, family in FAMILIES.items() if family.referral.kind == "box_text"} <= set(CONVENTIONS)


def test_finecaption_is_known_by_its_configuration_and_takes_a_filled_box() -> None:
    alike = [load_describer(), load_describer(EMBEDDED_CHECKPOINT), load_describer(describer="finecaption")]
    assert all(isinstance(it, FineCaptionDescriber) for it in alike)
    assert len({it.settings["fingerprint"] for it in alike}) == 1
    filled = load_describer(referral="filled_box", max_new_tokens=8)
    assert isinstance(filled, FilledBoxDescriber)
    # The region is a box, so the mask's box says the same.
    alone = load_describer(referral="mask", max_new_tokens=8)
    assert ask(filled, PICTURE, BOX) == ask(alone, PICTURE, BOX)


def test_what_pixels_tell_needs_no_weights() -> None:
    describers = [load_describer("pixels"), load_describer(describer="pixels")]
    assert all(isinstance(describer, PixelsDescriber) for describer in describers)
    green = Image.new("RGB", (60, 40), (0, 160, 0))
    (record,) = ask(describers[0], green, {"box_xyxy": [10, 10, 40, 30]}, "color")
    assert record["answers"] == {"Color": "Green."}


class Echo:
    """The code of a model of one's own."""

    def __init__(self, model: str = "none", word: str = "hi", device: str = "") -> None:
        self.takes_mask = model == "masks"
        self.settings = {"checkpoint": model, "word": word, "device": device}

    def answer(self, image: Image.Image, mask: np.ndarray | None, prompt: str) -> str:
        return f"{self.settings['word']} {'-' if mask is None else int(mask.sum())} {prompt}"


def test_model_with_code_of_its_own_is_told_what_it_takes() -> None:
    own = "test_describers_loading:Echo"
    masked = load_describer("masks", describer=own, device="cpu", arguments={"word": "so"})
    assert isinstance(masked, RegionModelDescriber) and masked.settings["device"] == "cpu"
    assert ask(masked, PICTURE, BOX, "Q?")[0]["answers"] == {"Q?": "so 1000 Q?"}
    marked = load_describer(describer=own, name="mine")
    assert ask(marked, PICTURE, BOX, "Q?")[0]["answers"] == {"Q?": "hi - The marked region is outlined in red. Q?"}
    assert marked.name == "mine"
    with pytest.raises(DescriberError, match=f"revision: no effect with {own}, which does not take it"):
        load_describer("masks", describer=own, revision="main")


def test_key_of_one_endpoint_does_not_go_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai", reason="endpoints are asked by openai")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    ours = load_describer("openai:gpt-4o")
    assert isinstance(ours, EndpointDescriber) and ours._key == "sk-1"
    assert (ours.name, ours.settings["referral"]) == ("gpt-4o", OTHERS.referral.settings)
    local = load_describer("qwen", base_url="http://127.0.0.1:9/v1")
    assert isinstance(local, EndpointDescriber) and local._key == ""
    named = load_describer("qwen", base_url="http://127.0.0.1:9/v1", api_key_env="OPENAI_API_KEY")
    assert isinstance(named, EndpointDescriber) and named._key == "sk-1"
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ValueError, match="OPENAI_API_KEY, which should hold the key"):
        load_describer("openai:gpt-4o")


def test_row_of_a_table_is_what_the_door_gives(tmp_path: Path, folders: dict[str, Path]) -> None:
    path = tmp_path / "table.yaml"
    options = "{max_new_tokens: 5, box_format: pixels}"
    path.write_text(
        f"rows: [{{name: R, kind: transformers, model: '{folders['llava']}', referral: box_text, options: {options}}}]"
    )
    given: dict[str, Any] = {"referral": "box_text", "max_new_tokens": 5, "box_format": "pixels"}
    opened = load_describer(folders["llava"], device="cpu", name="R", **given)
    assert read_table(path)[0].build(device="cpu").settings == opened.settings


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_prompts_are_read_from_a_file_or_given_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text(yaml.safe_dump({"default": "D {question}", "by_name": {"color": "{referral} Which colour?"}}))
    own = "test_describers_loading:Echo"
    asked = ask(load_describer(describer=own, referral="crop", prompts=path), PICTURE, BOX, ["Color", "shape"])
    assert asked[0]["answers"]["Color"] == "hi - The image is cropped to the marked region. Which colour?"
    assert asked[0]["answers"]["Shape"] == "hi - D Describe the shape of the marked region."
    same = PromptTemplates("D {question}")
    assert load_describer(describer=own, prompts=same).settings["prompts"] == same.settings
    path.write_text("by_nam: {}")
    with pytest.raises(DescriberError, match=r"prompts.yaml has no prompts: .*Did you mean 'by_name'"):
        load_describer(describer=own, prompts=path)


def test_what_was_sent_is_in_the_record_where_it_is_asked_for() -> None:
    own = "test_describers_loading:Echo"
    plain, kept = (load_describer(describer=own, referral="crop", **more) for more in ({}, {"keep_sent": True}))
    asked: tuple[Any, ...] = (PICTURE, [BOX], ["Q?", "global"])
    (record,) = ask(kept, *asked)
    assert record.pop("sent") == {
        "Q?": {
            "text": "The image is cropped to the marked region. Q?",
            "referral": "crop",
            "image_size": [32, 50],
            "box_xyxy": [0, 6, 50, 26],
        },
        "global": {
            "text": "Describe the whole image in detail.",
            "referral": "whole image",
            "image_size": [60, 90],
            "box_xyxy": None,
        },
    }
    assert [record] == ask(plain, *asked)
    assert kept.settings != plain.settings  # records with it and without are of different runs
    with pytest.raises(DescriberError, match="keep_sent: no effect with the embedded checkpoint"):
        load_describer(keep_sent=True)


# --- what cannot be meant ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"prompts": "P"}, "prompts: no effect with the embedded checkpoint, which is a FineCaption checkpoint. Leave"),
        ({"trust_remote_code": True, "box_format": "unit"}, "trust_remote_code, box_format: no effect"),
        ({"referral": "crop"}, "FineCaption is referred to by 'mask' or 'filled_box', not by 'crop'"),
        ({"describer": "vllm"}, "no describer 'vllm'. There are: finecaption, transformers, endpoint, pixels, desc"),
        ({"model": "pixels", "device": "cpu"}, "device: no effect with pixels, which is no model. Leave that out"),
        ({"describer": "os.system"}, "One of your own is module:function"),
        ({"describer": "nowhere:Echo"}, "The describer nowhere:Echo cannot be imported: No module named 'nowhere'"),
        ({"describer": "transformers"}, "There is no model. Give the folder or Hub id"),
        ({"base_url": "http://127.0.0.1:9/v1"}, "There is no model. Give the name that it has at the endpoint"),
        ({"model": "openai:m", "device": "cpu"}, "device: no effect with openai:m, which is an endpoint"),
        (
            {"model": "openai:m", "max_side": 8, "max_sid": 8},
            "The describer 'endpoint': There is no option 'max_sid'. Did you mean 'max_side'",
        ),
        ({"model": "LLAVA", "adapter": "a"}, "adapter: no effect with .*, which is a model of transformers"),
        ({"model": "LLAVA", "base": 1}, "The describer 'transformers': There is no option 'base'"),
        ({"model": "LLAVA", "referral": "mask"}, "takes no mask, so it cannot be referred to by 'mask'"),
        ({"model": "LLAVA", "referral": "arrow"}, "no referral 'arrow'"),
        ({"model": "LLAVA", "prompts": "{q}"}, "cannot be filled in"),
    ],
)
def test_option_without_effect_is_refused_by_name(
    options: dict[str, Any], message: str, folders: dict[str, Path]
) -> None:
    model = options.get("model")
    with pytest.raises(DescriberError, match=message) as caught:
        load_describer(**{**options, "model": str(folders["llava"]) if model == "LLAVA" else model})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"model_type": "bert"}, "of type 'bert', which transformers has no image-text-to-text model of"),
        ({"model_type": "of_tomorrow"}, r"'of_tomorrow', which transformers [\d.]+ does not know. Update it if"),
        (
            {"model_type": "own", "auto_map": {"AutoModelForImageTextToText": "its.Model"}},
            "runs code that lies beside its weights. Look at that code, then give trust_remote_code",
        ),
        (
            {"model_type": "own", "auto_map": {"AutoModel": "its.Model"}},
            "code of its own .* Give what asks it .describer, such as module:function",
        ),
        ({"model_type": "llava"}, "cannot be loaded: "),
    ],
)
def test_model_that_cannot_be_asked_says_what_to_give(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DescriberError, match=message) as caught:
        load_describer(with_config(tmp_path / "it", **config), device="cpu")
    assert ("\n" not in str(caught.value) and "docs/" in str(caught.value)) or "code" in message or "loaded" in message


def test_name_that_can_be_no_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(DescriberError, match="is neither a folder nor the id of a Hub repository"):
        load_describer("a/b/c")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DescriberError, match=r"empty has no config\.json"):
        load_describer(tmp_path / "empty")


def test_repository_that_cannot_be_read_says_why(here: HubServer, tmp_path: Path) -> None:
    here.hold("they/gated", with_config(tmp_path / "it", model_type="llava")).gated = True
    with pytest.raises(DescriberError, match=r"they/gated is gated: .*hf auth login"):
        load_describer("they/gated")
    with pytest.raises(DescriberError, match="they/missing is no folder, and the Hub has no such repository"):
        load_describer("they/missing")
    here.hold("they/open", tmp_path / "it")
    with pytest.raises(DescriberError, match="they/open has no such revision"):
        load_describer("they/open", revision="v9")


def test_hub_that_cannot_be_reached_is_told() -> None:
    with pytest.raises(DescriberError, match="not on this machine, and the Hub cannot be reached"):
        load_describer("they/never-fetched")


def test_memory_that_does_not_suffice_is_told(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried ..\nlines")

    monkeypatch.setattr("transformers.AutoModelForImageTextToText.from_pretrained", fail)
    with pytest.raises(DescriberError, match=r"does not fit into the memory of meta. Give a dtype such as bfloat16"):
        load_describer(folders["llava"], device="meta")


def test_other_models_are_imported_where_one_is_asked_for_only() -> None:
    for path in Path(asking.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            assert not (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("describers")), path
