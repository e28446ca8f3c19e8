"""Assembled from parts, a checkpoint computes what the parts compute: against their own implementations."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import parts
import pytest
import timm
import torch
from conftest import NOT_INSTALLED
from fresh import OURS
from parts import options, small
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPVisionModel,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    SamModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from finecaption_hf.asking import load
from finecaption_hf.assembly import assemble
from finecaption_hf.assembly.summary import print_lines
from finecaption_hf.evaluation.comparators import read_table
from finecaption_hf.prompts_finecaption import PromptEncoder
from finecaption_hf.towers_finecaption import convert_normalisation

pytestmark = pytest.mark.hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return parts.one_of_each(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def full(folder) -> Path:
    """All five parts, in several shards."""
    assemble(folder / "full", **options(folder, alpha_clip=str(folder / "alpha.pth")), max_shard_size="200KB")
    return folder / "full"


def assembled(out: Path, **given: Any) -> Any:
    """Model and processor of a checkpoint that is assembled and loaded."""
    assemble(out, **given)
    return load(out, device="cpu")


def pixels(size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def masks(seed: int = 1) -> torch.Tensor:
    return (torch.rand(2, 1, 84, 84, generator=torch.Generator().manual_seed(seed)) - 0.5) / 0.26


def renamed(new_name: Callable[[str], str]) -> Any:
    """A change of tensors for `parts.changed`."""
    return lambda state: {new_name(name): tensor for name, tensor in state.items()}


def keys_of(folder: Path) -> set[str]:
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names |= set(file.keys())
    return names


# --- towers ----------------------------------------------------------------------------------------------------------


def test_clip_without_alpha_is_bit_equal_to_the_clip_vision_model(folder, tmp_path):
    tower = assembled(tmp_path / "out", **small(folder), seed=3)[0].model.vision_tower
    expected = CLIPVisionModel.from_pretrained(folder / "clip").eval()
    with torch.inference_mode():
        wanted = expected(pixels(84), output_hidden_states=True).hidden_states[-2]
        assert torch.equal(tower(pixels(84), mask_values=masks()), wanted)


@pytest.mark.parametrize("format", ["sharded", "bin", "unprefixed"])
def test_clip_is_read_in_every_format_of_the_hub(folder, tmp_path, format):
    given = tmp_path / "clip"
    if format == "unprefixed":
        parts.changed(folder / "clip", given, renamed(lambda name: name.removeprefix("vision_model.")))
    else:
        model = parts.CLIPModel.from_pretrained(folder / "clip")
        model.save_pretrained(given, max_shard_size="50KB" if format == "sharded" else "5GB")
        if format == "sharded":
            assert len(list(given.glob("model-*.safetensors"))) > 1
        else:
            torch.save(load_file(given / "model.safetensors"), given / "pytorch_model.bin")
            (given / "model.safetensors").unlink()
    assemble(tmp_path / "one", **small(folder))
    assemble(tmp_path / "two", **small(folder, clip=str(given)))
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def alpha_clip_by_formula(
    state: dict[str, torch.Tensor], pixels: Any, alpha: Any, layers: int, heads: int = 2
) -> torch.Tensor:
    """Alpha-CLIP, section 3.2 (arXiv 2312.03818), in a few lines: RGB and alpha convolutions are added, then CLIP."""
    w = {name.removeprefix("module."): tensor for name, tensor in state.items()}

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = F.conv2d(pixels, w["conv1.weight"], stride=14) + F.conv2d(alpha, w["conv1_alpha.weight"], stride=14)
    x = torch.cat([w["class_embedding"].expand(len(x), 1, -1), x.flatten(2).mT], 1) + w["positional_embedding"]
    x = norm(x, "ln_pre")
    for i in range(layers):
        block = f"transformer.resblocks.{i}"
        q, k, v = (
            y.unflatten(-1, (heads, -1)).transpose(1, 2)
            for y in linear(norm(x, f"{block}.ln_1"), f"{block}.attn.in_proj").chunk(3, -1)
        )
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        x = x + linear((weights @ v).transpose(1, 2).flatten(2), f"{block}.attn.out_proj")
        hidden = linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        x = x + linear(hidden * torch.sigmoid(1.702 * hidden), f"{block}.mlp.c_proj")
    return x


@pytest.mark.parametrize("prefix", ["", "module.", "visual.", "module.visual."])
def test_alpha_clip_equals_its_formula_before_and_after_the_split(folder, tmp_path, prefix):
    file = parts.alpha_clip(tmp_path / "alpha.pth", prefix)
    tower = assembled(tmp_path / "out", **small(folder, alpha_clip=str(file)))[0].model.vision_tower
    state = {name.removeprefix(prefix): tensor for name, tensor in torch.load(file, weights_only=True).items()}
    joint = state["transformer.resblocks.1.attn.in_proj.weight"]
    split = [getattr(tower.encoder.layers[1].self_attn, f"{name}_proj").weight for name in "qkv"]
    assert torch.equal(joint, torch.cat(split))
    with torch.inference_mode():
        found = tower(pixels(84), mask_values=masks())
        wanted = alpha_clip_by_formula(state, pixels(84), masks(), layers=2)
        without = alpha_clip_by_formula(state, pixels(84), 0 * masks(), layers=2)
    # float32; the same sums in another order
    assert torch.allclose(found, wanted, atol=2e-5, rtol=1e-5)
    assert not torch.allclose(found, without, atol=1e-2)


def test_alpha_clip_alone_tells_its_own_configuration(folder, tmp_path):
    file = parts.alpha_clip(tmp_path / "alpha.pth", width=64, legacy=True)
    model = assembled(tmp_path / "out", **small(folder, clip=None, alpha_clip=str(file)))[0]
    vision = model.config.vision_config
    assert (vision.hidden_size, vision.num_attention_heads, vision.num_hidden_layers) == (64, 1, 3)
    assert (vision.image_size, vision.patch_size, vision.hidden_act) == (84, 14, "quick_gelu")
    state = torch.load(file, weights_only=True)
    with torch.inference_mode():
        found = model.model.vision_tower(pixels(84), mask_values=masks())
        wanted = alpha_clip_by_formula(state, pixels(84), masks(), layers=2, heads=1)
    assert torch.allclose(found, wanted, atol=2e-5, rtol=1e-5)


def convnext_of_timm(folder: Path) -> Any:
    architecture, model_args = parts.CONVNEXT
    reference = timm.create_model(architecture, num_classes=7, **model_args).eval()
    reference.load_state_dict(load_file(folder / "convnext" / "model.safetensors"))
    return reference


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin"])
def test_convnext_features_equal_those_of_timm_in_every_format(folder, tmp_path, name):
    given = Path(shutil.copytree(folder / "convnext", tmp_path / "convnext"))
    if name != "model.safetensors":
        state = load_file(given / "model.safetensors")
        (given / "model.safetensors").unlink()
        if name.startswith("open_clip"):
            state = {f"visual.trunk.{key}": tensor for key, tensor in state.items() if not key.startswith("head.fc")}
            others = ("logit_scale", "token_embedding.weight", "transformer.resblocks.0.a", "visual.head.proj.weight")
            state |= {key: torch.zeros(2) for key in others}
        torch.save(state, given / name)
    model = assembled(tmp_path / "out", **options(folder, convnext=str(given)))[0]
    assert model.config.convnext_image_mean == [0.5, 0.4, 0.3]
    with torch.inference_mode():
        wanted = convnext_of_timm(folder).forward_features(pixels(256))
        assert torch.equal(model.model.convnext_tower(pixels(256)), wanted)


@pytest.mark.parametrize("name", ["sam", "sam.pth"])
def test_sam_features_equal_those_of_the_library(folder, tmp_path, name):
    given = options(folder, sam=str(folder / name), convnext=None, without=["convnext"])
    model = assembled(tmp_path / "out", **given)[0]
    reference = SamModel.from_pretrained(folder / "sam").eval()
    with torch.inference_mode():
        wanted = reference.get_image_embeddings(pixels(256))
        wanted = wanted if isinstance(wanted, torch.Tensor) else wanted.last_hidden_state
        assert torch.equal(model.model.sam_tower(pixels(256)), wanted)
    # 16 cells a side, folded by two and two
    assert model.config.grid_size == 8 and model.config.sam_feature_size == 64
    assert model.config.sam_pretrained is None  # a folder has no name that others know


def test_earlier_layers_can_be_chosen(folder, tmp_path):
    fields = {"vision_feature_layer": 1, "sam_feature_layer": 0, "convnext_config": {"feature_stage": -2}}
    summary = assemble(tmp_path / "out", **options(folder), config=fields)
    model = load(tmp_path / "out", device="cpu")[0].model
    reasons = {entry["reason"].split(":")[0] for part in summary["parts"] for entry in part["ignored"]}
    assert {"a layer behind the one whose features are used", "SAM's neck"} <= reasons
    reference = SamModel.from_pretrained(folder / "sam").eval()
    with torch.inference_mode():
        wanted = reference.vision_encoder(pixels(256), output_hidden_states=True).hidden_states[1]
        assert torch.equal(model.sam_tower(pixels(256)), wanted.permute(0, 3, 1, 2))
    assert len(model.convnext_tower.encoder.stages) == 3 and len(model.vision_tower.encoder.layers) == 1


def test_both_towers_see_their_own_statistics(folder, full):
    model = load(full, device="cpu")[0]
    config = model.config
    raw = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(3))
    identity = ([0.0] * 3, [1.0] * 3)
    with torch.inference_mode():
        arriving = convert_normalisation(raw, identity, (config.high_res_image_mean, config.high_res_image_std))
        features = model.get_high_res_features(arriving)
        own = convert_normalisation(raw, identity, ([0.5, 0.4, 0.3], [0.2, 0.25, 0.3]))
        # two float32 conversions instead of one
        assert torch.allclose(features[:, :32], convnext_of_timm(folder).forward_features(own), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("option", ["clip", "sam", "from_llava"])
@pytest.mark.parametrize("file", ["processor_config.json", "preprocessor_config.json"])
def test_image_statistics_are_read_from_either_file_and_their_lack_is_said(folder, tmp_path, option, file):
    given = Path(shutil.copytree(folder / option.removeprefix("from_"), tmp_path / "part"))
    parts_given = {"from_llava": str(given)} if option == "from_llava" else options(folder, **{option: str(given)})
    prefix = "sam_image" if option == "sam" else "image"
    summary = assemble(tmp_path / "without", **parts_given)
    notes = [
        note
        for note in summary["notes"]
        if f"--{option.replace('_', '-')} part does not say how its pictures are" in note
    ]
    assert len(notes) == 1 and f"{prefix}_mean and {prefix}_std" in notes[0]
    assert any(line == f"note: {notes[0]}" for line in print_lines(summary))

    values = {"image_mean": [0.1, 0.2, 0.3], "image_std": 0.5, "image_processor_type": "CLIPImageProcessor"}
    nested = {"image_processor": values, "processor_class": "CLIPProcessor"}
    (given / file).write_text(json.dumps(values if file.startswith("pre") else nested))
    if file == "processor_config.json":  # transformers prefers what is in the processor's
        (given / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.9] * 3, "image_std": [0.9] * 3}))
    summary = assemble(tmp_path / "out", **parts_given)
    assert not any(
        f"--{option.replace('_', '-')} part does not say how its pictures are" in note for note in summary["notes"]
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config[f"{prefix}_mean"], config[f"{prefix}_std"]) == ([0.1, 0.2, 0.3], [0.5] * 3)


# --- the language model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra_rows", [0, 5], ids=["full", "with_room"])
@pytest.mark.parametrize("tied", [False, True], ids=["separate", "tied"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "apertus"])
def test_text_only_logits_equal_those_of_the_language_model(folder, tmp_path, family, tied, extra_rows):
    given = parts.language_model(tmp_path / "llm", family, tied, extra_rows, max_shard_size="30KB")
    assert len(list(given.glob("*.safetensors"))) > 1
    model, processor = assembled(tmp_path / "out", **small(folder, llm=str(given)))
    original = AutoModelForCausalLM.from_pretrained(given).eval()
    rows = original.config.vocab_size
    ids = torch.randint(0, rows, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = model(input_ids=ids).logits
        # Exact but for the number of columns, with which a matrix product may take another way.
        assert torch.allclose(logits[..., :rows], original(input_ids=ids).logits, atol=1e-5)
    tokenizer = processor.tokenizer  # some families' tokenizers have a token more than was saved
    assert logits.shape[-1] == (rows if extra_rows else len(tokenizer))
    assert tokenizer.convert_tokens_to_ids("<image>") == model.config.image_token_id == len(tokenizer) - 1
    embeddings, head = model.get_input_embeddings().weight, model.lm_head.weight
    assert (head is embeddings) == tied
    assert ("lm_head.weight" in keys_of(tmp_path / "out")) != tied
    if not extra_rows:
        assert torch.allclose(embeddings[-1], embeddings[:rows].mean(0), atol=1e-6)
        assert torch.allclose(head[-1], head[:rows].mean(0), atol=1e-6)


def test_padding_gets_a_token_that_is_not_the_end(folder, full):
    processor = load(full, device="cpu")[1]
    assert processor.tokenizer.pad_token == "<unk>"
    assert json.loads((full / "generation_config.json").read_text())["pad_token_id"] == 0


@pytest.mark.parametrize("family", ["llama3", "qwen3", "mistral", "smollm2", "none"])
def test_template_is_the_language_models_own_with_images_first(folder, tmp_path, family):
    given = parts.language_model(tmp_path / "llm", template=parts.TEMPLATES.get(family))
    processor = assembled(tmp_path / "out", **small(folder, llm=str(given)))[1]
    image = {"type": "image"}
    question, answer = {"type": "text", "text": "what color"}, {"type": "text", "text": "red"}
    chat = [
        {"role": "user", "content": [question, image]},
        {"role": "assistant", "content": [answer]},
        {"role": "user", "content": "what is this region?"},
    ]
    found = processor.apply_chat_template(chat, add_generation_prompt=True)
    if family == "none":
        assert found.index("<image>") < found.index("what color")
        return
    plain = [
        {"role": "user", "content": "<image>what color"},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "what is this region?"},
    ]
    tokenizer = AutoTokenizer.from_pretrained(given)
    for texts, images in ((plain[:1], chat[:1]), (plain, chat), (plain[:1], plain[:1])):
        wanted = tokenizer.apply_chat_template(texts, tokenize=False, add_generation_prompt=True)
        assert processor.apply_chat_template(images, add_generation_prompt=True) == wanted
    assert found.index("<image>") < found.index("what color")


# --- LLaVA -----------------------------------------------------------------------------------------------------------


def old_llava_name(name: str) -> str:
    """Before the vision tower lost its inner `vision_model.`."""
    return name.replace("vision_tower.", "vision_tower.vision_model.")


def new_llava_name(name: str) -> str:
    """As modules are nested now."""
    if name == "language_model.lm_head.weight":
        return "lm_head.weight"
    return "model." + name.replace("language_model.model.", "language_model.")


def llava_inputs(model: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    text = torch.randint(3, 15, (2, 8), generator=generator)
    image = torch.full((2, 36), model.config.image_token_id)
    return {"input_ids": torch.cat([text[:, :2], image, text[:, 2:]], dim=1), "pixel_values": pixels(84)}


@pytest.mark.parametrize("names", [None, old_llava_name, new_llava_name], ids=["as_saved", "old", "new"])
def test_llava_gives_its_own_logits_for_any_mask_while_alpha_is_zero(folder, tmp_path, names):
    given = folder / "llava"
    if names is not None:
        given = parts.changed(given, tmp_path / "llava", renamed(names))
    summary = assemble(tmp_path / "out", from_llava=str(given))
    model, processor = load(tmp_path / "out", device="cpu")
    original = LlavaForConditionalGeneration.from_pretrained(folder / "llava").eval()
    assert model.config.image_token_id == original.config.image_token_index
    assert model.config.text_config.vocab_size == original.config.text_config.vocab_size
    assert [entry["what"].split(": ")[1] for entry in summary["initialised"]] == [
        "model.vision_tower.embeddings.alpha_embedding.weight"
    ]
    inputs = llava_inputs(model)
    with torch.inference_mode():
        wanted = original(**inputs).logits
        for mask_values in (None, masks(1), masks(2)):
            assert (model(**inputs, mask_values=mask_values).logits - wanted).abs().max() < 1e-5
    chat = [{"role": "user", "content": [{"type": "text", "text": "what color"}, {"type": "image"}]}]
    assert processor.apply_chat_template(chat, add_generation_prompt=True) == "USER: <image>\nwhat color ASSISTANT:"
    chat = [{"role": "user", "content": "what color"}]
    assert processor.apply_chat_template(chat, add_generation_prompt=True) == "USER: what color ASSISTANT:"


@pytest.mark.parametrize("fit", ["crop", "pad", "squash", "unknown"])
def test_llava_sees_its_own_pictures_as_its_own_processor_shows_them(folder, tmp_path, fit):
    given = Path(shutil.copytree(folder / "llava", tmp_path / "llava"))
    square = {"height": 84, "width": 84}
    theirs = LlavaImageProcessor(size={"shortest_edge": 84}, crop_size=square, do_pad=fit == "pad")
    if fit == "squash":
        theirs = LlavaImageProcessor(size=square, do_center_crop=False)
    if fit != "unknown":
        theirs.save_pretrained(given)
    summary = assemble(tmp_path / "out", from_llava=str(given))
    assert any("become 84 px squares" in note for note in summary["notes"]) == (fit == "unknown")
    assert any("near the original's, not equal" in note for note in summary["notes"]) == (fit == "pad")
    model, processor = load(tmp_path / "out", device="cpu")
    assert (processor.image_processor.do_center_crop, processor.image_processor.do_pad) == (
        fit == "crop",
        fit != "squash",
    )
    if fit == "unknown":
        return
    height = 100 if fit == "pad" else 60  # padding is the original's for square pictures, else moved by part of a pixel
    generator = torch.Generator().manual_seed(8)
    picture = torch.randint(0, 256, (height, 100, 3), generator=generator, dtype=torch.uint8).numpy()
    inputs = llava_inputs(model)
    inputs = {name: tensor[:1] for name, tensor in inputs.items()}
    original = LlavaForConditionalGeneration.from_pretrained(folder / "llava").eval()
    with torch.inference_mode():
        shown = theirs(picture, return_tensors="pt")["pixel_values"]
        wanted = original(input_ids=inputs["input_ids"], pixel_values=shown).logits
        mine = processor.image_processor(picture, return_tensors="pt")
        found = model(input_ids=inputs["input_ids"], **mine).logits
        assert (found - wanted).abs().max() < 1e-4
        if fit != "pad":
            padded = processor.image_processor(picture, do_center_crop=False, do_pad=True)["pixel_values"]
            assert (model(input_ids=inputs["input_ids"], pixel_values=padded).logits - wanted).abs().max() > 1e-2


@pytest.fixture(scope="module", params=[(family, rows) for family in parts.TILED for rows in (6, 0)], ids=str)
def tiled(request, tmp_path_factory) -> tuple[Path, Path]:
    """Folders of a LLaVA with tiles, whose vocabulary has room for a token or not, and of what is assembled of it."""
    family, extra_rows = request.param
    folder = tmp_path_factory.mktemp(family)
    given = parts.llava_with_tiles(folder / "given", family, extra_rows=extra_rows)
    assemble(folder / "out", **{f"from_{family}": str(given)})
    return given, folder / "out"


@pytest.mark.parametrize("height, width", [(60, 100), (100, 60), (90, 90)])
def test_llava_with_tiles_gives_its_own_logits_for_its_view_of_the_whole(tiled, height, width):
    given, out = tiled
    model, processor = load(out, device="cpu")
    original = AutoModelForImageTextToText.from_pretrained(given).eval()
    tokenizer = AutoTokenizer.from_pretrained(given)
    generator = torch.Generator().manual_seed(8)
    picture = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8).numpy()
    chat = processor.conversation(picture, "what color", {"box_xyxy": [30, 30, 60, 60]})
    inputs = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    # The original, asked with the first of the views that its image processor makes, and no tile.
    views = AutoImageProcessor.from_pretrained(given)(picture, return_tensors="pt")
    assert views["pixel_values"].shape[1] > 2
    original.config.image_grid_pinpoints = [[0, 0]]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text.replace("<image>", "<image>" * 37), return_tensors="pt")["input_ids"]
    rows = original.config.text_config.vocab_size
    with torch.inference_mode():
        wanted = original(
            input_ids=ids, pixel_values=views["pixel_values"][:, :1], image_sizes=views["image_sizes"]
        ).logits
        found = model(**inputs).logits
    assert (found[..., :rows] - wanted).abs().max() < 1e-4


def test_llava_with_tiles_keeps_its_prompt_with_the_newline_as_a_token(tiled):
    given, out = tiled
    summary = json.loads((out / "assembly.json").read_text())
    model, processor = load(out, device="cpu")
    tokenizer, state = AutoTokenizer.from_pretrained(given), load_file(given / "model.safetensors")
    image, question = {"type": "image"}, {"type": "text", "text": "what color"}
    chat = [{"role": "user", "content": [image, question]}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    shown = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text.count("<image>") == 1 and shown == text.replace("<image>", "<image><image_newline>")
    newline, embeddings = processor.tokenizer.convert_tokens_to_ids("<image_newline>"), model.get_input_embeddings()
    assert PromptEncoder(processor).question_ids("what color")[0] == newline
    [name] = [name for name in state if name.endswith("image_newline")]
    assert torch.equal(embeddings.weight[newline], state[name])

    rows = next(len(tensor) for name, tensor in state.items() if name.endswith("embed_tokens.weight"))
    assert newline == len(tokenizer) and len(embeddings.weight) == max(rows, newline + 1)
    # Of a row that is new, the embedding is given; that of the output layer is the mean of the others.
    grown = [entry["parameters"] for entry in summary["initialised"] if "new row" in entry["what"]]
    assert grown == ([] if newline < rows else [32])
    tensors = summary["parts"][0]["tensors"]
    assert tensors["used"] + tensors["ignored"] == tensors["in_files"] == len(state)
    assert any("no tile. Its logits are the original's for that view" in note for note in summary["notes"])


@pytest.mark.parametrize("family", ["llava", *parts.TILED])
def test_llava_with_alpha_clip_gives_the_logits_of_llava_on_features_of_alpha_clip(folder, tmp_path, family):
    """The baseline Alpha-CLIP of the paper, at full size with LLaVA-13B."""
    given = folder / "llava" if family == "llava" else parts.llava_with_tiles(tmp_path / "given", family)
    summary = assemble(tmp_path / "out", **{f"from_{family}": str(given)}, alpha_clip=str(folder / "alpha.pth"))
    assert summary["initialised"] == []
    model, processor = load(tmp_path / "out", device="cpu")
    original = AutoModelForImageTextToText.from_pretrained(given).eval()
    state = torch.load(folder / "alpha.pth", weights_only=True)
    inputs = llava_inputs(model)
    ids, newline = inputs["input_ids"], processor.tokenizer.convert_tokens_to_ids("<image_newline>")
    if family != "llava":
        inputs["input_ids"] = torch.cat([ids[:, :38], torch.full((2, 1), newline), ids[:, 38:]], 1)
        ids = torch.cat([ids[:, :38], ids[:, 37:]], 1)
    with torch.inference_mode():
        seen = alpha_clip_by_formula(state, inputs["pixel_values"], masks(), layers=model.config.vision_num_layers)
        assert torch.allclose(model.model.vision_tower(inputs["pixel_values"], masks()), seen, atol=2e-5, rtol=1e-5)
        tokens = original.model.multi_modal_projector(seen[:, 1:])
        if family != "llava":
            tokens = torch.cat([tokens, original.model.image_newline.expand(2, 1, -1)], 1)
        image = BaseModelOutputWithPooling(pooler_output=list(tokens))
        wanted = original(input_ids=ids, mm_encoder_outputs={"image": image}).logits
        one, two = (model(**inputs, mask_values=masks(seed)).logits for seed in (1, 2))
        assert (one - wanted).abs().max() < 1e-4
        assert not torch.allclose(one, two, atol=1e-3)


def test_row_of_the_table_asks_the_folder_that_the_recipe_makes(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
    [section] = [text for text in page.split("\n## ") if text.startswith("Without training, Alpha-CLIP-13B")]
    [out] = [line.split()[1] for line in section.splitlines() if line.strip().startswith("--out")]
    [row] = [row for row in read_table("table2") if row.name == "Alpha-CLIP-13B"]
    assert (row.kind, row.referral.kind) == ("finecaption", "mask")
    with pytest.raises(FileNotFoundError, match="neither a folder nor"):
        row.build(device="cpu")
    assemble(out, from_llava=str(folder / "llava"), alpha_clip=str(folder / "alpha.pth"))
    assert row.build(device="cpu").name == "Alpha-CLIP-13B"


# --- the folder ------------------------------------------------------------------------------------------------------

FRESH = f"""{NOT_INSTALLED}
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

folder, again, inputs = sys.argv[1:]
model, info = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
with torch.inference_mode():
    torch.save(model.eval()(**torch.load(inputs)).logits, again + ".logits")
model.save_pretrained(again)
processor.save_pretrained(again)
"""


def test_folder_loads_as_remote_code_and_saves_again_with_identical_keys(full, tmp_path):
    model, processor = load(full, device="cpu")
    chat = [processor.conversation(torch.rand(3, 50, 60).numpy(), "what color", {"box_xyxy": [5, 5, 30, 40]})]
    inputs = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 64
    torch.save(dict(inputs), tmp_path / "inputs.pt")
    with torch.inference_mode():
        logits = model(**inputs).logits
    again = tmp_path / "again"
    done = OURS.run(FRESH, full, again, tmp_path / "inputs.pt", work=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert torch.equal(torch.load(f"{again}.logits"), logits)
    assert keys_of(again) == keys_of(full) == set(model.state_dict())
    written, saved = (json.loads((place / "config.json").read_text()) for place in (full, again))
    assert written.pop("transformers_version") and saved.pop("transformers_version")
    assert written == saved
    names = {path.name for path in full.iterdir() if not path.name.startswith("model")}
    assert names - {path.name for path in again.iterdir()} == {"assembly.json"}
