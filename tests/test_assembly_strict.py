"""Assembly refuses what does not fit, executes nothing, leaves no half checkpoint, and says what it did."""

import hashlib
import json
import os
import pickle
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import parts
import pytest
import torch
import yaml
from fresh import OURS
from hub_server import Client, HubServer
from parts import options, small
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import PARTS
from transformers import AutoConfig, CLIPVisionModel
from typer.testing import CliRunner

from finecaption_hf.asking import load
from finecaption_hf.assembly import AssemblyError, assemble, key_maps, plan, sources
from finecaption_hf.assembly.configs import language_config, part_dtype
from finecaption_hf.assembly.writer import ShardWriter
from finecaption_hf.cli import app
from finecaption_hf.configuration_finecaption import FineCaptionConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return parts.one_of_each(tmp_path_factory.mktemp("parts"))


# --- strictness ------------------------------------------------------------------------------------------------------

# part -> a tensor of it that is used, and its shape
USED = {
    "clip": ("vision_model.encoder.layers.1.mlp.fc1.weight", [64, 32]),
    "alpha.pth": ("module.transformer.resblocks.1.attn.in_proj.weight", [96, 32]),
    "convnext": ("stages.2.blocks.1.gamma", [24]),
    "sam": ("vision_encoder.neck.conv2.weight", [16, 16, 3, 3]),
    "sam.pth": ("image_encoder.neck.3.weight", [16]),
    "llm": ("model.layers.1.mlp.up_proj.weight", [64, 32]),
    "llava": ("multi_modal_projector.linear_2.weight", [32, 32]),
}
OPTION = {"alpha.pth": "alpha_clip", "sam.pth": "sam", "llava": "from_llava"}


def damaged(folder: Path, target: Path, part: str, change: Any) -> dict[str, Any]:
    """Options with a copy of one part whose tensors `change` has changed."""
    parts.changed(folder / part, target, change)
    if part == "llava":
        return {"from_llava": str(target)}
    return options(folder, **{OPTION.get(part, part): str(target)})


@pytest.mark.parametrize("part", USED)
@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape"])
def test_tensors_that_do_not_fit_are_named_with_their_shapes(folder, tmp_path, part, fault):
    key, shape = USED[part]

    def change(state: dict[str, torch.Tensor]) -> None:
        assert list(state[key].shape) == shape
        if fault == "missing":
            del state[key]
        elif fault == "unexpected":
            state[f"{key}_too"] = torch.zeros(3, 5)
        else:
            state[key] = torch.zeros(shape[0] + 3, *shape[1:])

    target = tmp_path / (part if part.endswith(".pth") else "part")
    given = damaged(folder, target, part, change)
    with pytest.raises(AssemblyError) as caught:
        assemble(tmp_path / "out", **given)
    message = str(caught.value)
    option = OPTION.get(part, part).replace("_", "-")
    if fault == "missing":
        shown = {
            "alpha.pth": "self_attn.q_proj.weight [32, 32]",
            "sam.pth": "neck.layer_norm2.weight [16]",
            "llava": "model.adapter.linear_2.weight [32, 32]",
        }.get(part, f"{key.removeprefix('vision_model.').removeprefix('model.')} {shape}")
        assert f"--{option} {target.name} lacks: " in message and shown in message
    elif fault == "unexpected":
        assert f"--{option} {target.name} has unexpected tensors: {key}_too [3, 5]." in message
    else:
        assert f"{key} is {[shape[0] + 3, *shape[1:]]}, needed is {shape}" in message
    assert list(tmp_path.iterdir()) == [target]


def test_all_faults_are_reported_at_once(folder, tmp_path):
    def change(state: dict[str, torch.Tensor]) -> None:
        del state["model.norm.weight"]
        state["model.layers.7.mlp.up_proj.weight"] = torch.zeros(64, 32)
        state["model.layers.0.input_layernorm.weight"] = torch.zeros(4)
        state["model.layers.1.input_layernorm.weight"] = torch.zeros(32, dtype=torch.int8)

    given = damaged(folder, tmp_path / "part", "llm", change)
    with pytest.raises(AssemblyError) as caught:
        assemble(tmp_path / "out", **given)
    for expected in (
        "lacks: model.language_model.norm.weight [32]",
        "has unexpected tensors: model.layers.7.mlp.up_proj.weight [64, 32]",
        "model.layers.0.input_layernorm.weight is [4], needed is [32]",
        "not of float16, bfloat16, float32 or float64: model.layers.1.input_layernorm.weight",
    ):
        assert expected in str(caught.value)


def test_tensors_that_are_given_twice_are_an_error(folder, tmp_path):
    def change(state: dict[str, torch.Tensor]) -> None:
        state["embeddings.class_embedding"] = state["vision_model.embeddings.class_embedding"].clone()

    given = damaged(folder, tmp_path / "part", "clip", change)
    with pytest.raises(AssemblyError, match=r"gives tensors twice: .*class_embedding by .* and "):
        assemble(tmp_path / "out", **given)


def test_ignored_tensors_are_all_listed_with_reasons(folder, tmp_path):
    summary = assemble(
        tmp_path / "out", **options(folder, alpha_clip=str(folder / "alpha.pth"), sam=str(folder / "sam.pth"))
    )
    for part in summary["parts"]:
        count = part["tensors"]
        assert count["used"] + count["ignored"] == count["in_files"]
        assert count["ignored"] == sum(len(entry["tensors"]) for entry in part["ignored"])
    by_option = {part["option"]: part for part in summary["parts"]}
    ignored = {
        option: {name for entry in part["ignored"] for name in entry["tensors"]} for option, part in by_option.items()
    }
    assert by_option["clip"]["files"] == [] and by_option["clip"]["tensors"]["in_files"] == 0
    layer = {name for name in ignored["alpha_clip"] if name.startswith("module.transformer.resblocks.2.")}
    assert len(layer) == 12
    assert ignored["alpha_clip"] == layer | {"module.proj", "module.ln_post.weight", "module.ln_post.bias"}
    assert ignored["convnext"] == {"head.norm.weight", "head.norm.bias", "head.fc.weight", "head.fc.bias"}
    assert all(name.startswith(("mask_decoder.", "prompt_encoder.")) for name in ignored["sam"])
    assert ignored["llm"] == set()


def test_documented_reasons_are_those_of_the_code():
    documented = (Path(__file__).parents[1] / "docs" / "assembly.md").read_text(encoding="utf-8")
    for name, value in vars(key_maps).items():
        if name.isupper() and isinstance(value, str) and " " in value:
            assert value in documented, name


def test_tied_head_in_the_file_must_repeat_the_embeddings(folder, tmp_path):
    given = parts.language_model(tmp_path / "llm", tied=True)
    state = load_file(given / "model.safetensors")
    assert "lm_head.weight" not in state
    for difference in (0.0, 1.0):
        state["lm_head.weight"] = state["model.embed_tokens.weight"] + difference
        save_file(state, given / "model.safetensors", metadata={"format": "pt"})
        if difference:
            with pytest.raises(AssemblyError, match=r"ties the output layer .* Set tie_word_embeddings"):
                assemble(tmp_path / "other", **small(folder, llm=str(given)))
        else:
            summary = assemble(tmp_path / "out", **small(folder, llm=str(given)))
            assert summary["parts"][-1]["ignored"][0]["tensors"] == ["lm_head.weight"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "is quantised"),
        ({"final_logit_softcapping": 30.0}, "changes its logits"),
        ({"model_type": "nothing_known"}, "does not know"),
        ({"model_type": "bert"}, "built differently|no causal language model"),
    ],
)
def test_language_models_that_do_not_fit_are_refused(folder, tmp_path, changes, message):
    shutil.copytree(folder / "llm", tmp_path / "llm")
    config = json.loads((tmp_path / "llm" / "config.json").read_text())
    (tmp_path / "llm" / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(AssemblyError, match=message):
        assemble(tmp_path / "out", **small(folder, llm=str(tmp_path / "llm")))


SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 200,
    "pad_token_id": 0,
}
MOE = {"num_local_experts": 4, "num_experts": 4, "moe_intermediate_size": 32}


def of_type(folder: Path, kind: str, **values: Any) -> sources.Source:
    """A language model of which only the configuration is there: it is judged before a weight is read."""
    folder.mkdir(exist_ok=True)
    AutoConfig.for_model(kind, **values).save_pretrained(folder)
    return sources.Source("model", None, folder, (), None, False)


@pytest.mark.parametrize(
    "kind, values, message",
    [
        ("gemma4_text", {"head_dim": 16}, "embeddings per layer.* Give a dense"),
        ("gemma3n_text", {"num_kv_shared_layers": 0, "layer_types": ["full_attention"] * 4}, "changes its logits"),
        ("recurrent_gemma", {"lru_width": 64, "head_dim": 16}, "changes its logits .logits_soft_cap"),
        ("cohere", {"logit_scale": 0.5}, "changes its logits .logit_scale"),
        ("mixtral", MOE, "in pieces that transformers joins .* mixtures of experts"),
        ("qwen3_moe", MOE, "in pieces that transformers joins .* mixtures of experts"),
        ("llama4_text", {**MOE, "intermediate_size_mlp": 96}, "built differently"),
        ("mamba", {"state_size": 4}, "built differently"),
    ],
)
def test_language_models_that_cannot_be_used_are_refused_by_name_before_weights_are_read(
    tmp_path, kind, values, message
):
    source = of_type(tmp_path / "llm", kind, **{**SMALL, **values})
    with pytest.raises(AssemblyError, match=rf"(?s)^--llm model.*{message}"):
        language_config(source)


@pytest.mark.parametrize("kind", ["inkling_text", "inkling_mm_model", "llama4", "gemma4", "qwen2_5_vl"])
def test_configurations_of_every_kind_end_in_a_refusal_and_not_in_a_traceback(tmp_path, kind):
    """At their full size, of which nothing is built but on the meta device."""
    with pytest.raises(AssemblyError, match=r"^--llm model.* Give "):
        language_config(of_type(tmp_path / "llm", kind))


def test_logits_that_are_changed_under_any_name_are_noticed(tmp_path, monkeypatch):
    source = of_type(tmp_path / "llm", "gemma2", **SMALL, head_dim=16, final_logit_softcapping=5.0)
    monkeypatch.setattr("finecaption_hf.assembly.configs._LOGIT_FIELDS", {})
    with pytest.raises(AssemblyError, match="cannot stand behind image tokens: it changes its logits"):
        language_config(source)


@pytest.mark.parametrize(
    "kind, values, note",
    [
        ("llama", {}, None),
        ("gemma3_text", {"head_dim": 16, "sliding_window": 64}, None),
        ("apertus", {}, None),
        ("jetmoe", {**MOE, "kv_channels": 16}, "RuntimeError"),
        ("lfm2", {"layer_types": ["conv", "full_attention"] * 2}, "conv"),
        ("bamba", {"attn_layer_indices": [2], "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8}, "kinds"),
    ],
)
def test_language_models_are_accepted_by_what_they_compute(tmp_path, kind, values, note):
    """Hybrids and experts that no branches can be packed for are accepted, and answer questions one by one."""
    found = language_config(of_type(tmp_path / "llm", kind, **{**SMALL, **values}))
    assert found.config.num_hidden_layers == 4 and found.config.vocab_size == 200
    assert found.note is None if note is None else (note in found.note and "one by one" in found.note)


def test_infinity_as_the_library_saves_it_is_a_number(tmp_path):
    values = {"attn_layer_indices": [2], "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8}
    source = of_type(tmp_path / "llm", "bamba", **{**SMALL, **values, "time_step_limit": [0.0, float("inf")]})
    assert '"__float__"' in (tmp_path / "llm" / "config.json").read_text()
    assert list(language_config(source).config.time_step_limit) == [0.0, float("inf")]


def test_the_language_model_of_a_multimodal_checkpoint_is_taken(folder, tmp_path):
    summary = assemble(tmp_path / "out", **small(folder, llm=str(folder / "llava")))
    assert [entry["reason"] for entry in summary["parts"][-1]["ignored"]] == [key_maps.OTHER_PARTS]
    found = load_file(tmp_path / "out" / "model.safetensors")
    for key, tensor in load_file(folder / "llava" / "model.safetensors").items():
        if "layers." in key and "language_model" in key:
            rest = key.split("language_model.")[1].removeprefix("model.")
            assert torch.equal(found[f"model.language_model.{rest}"], tensor), key


LLAMA_3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3"}


@pytest.mark.parametrize(
    "values",
    [
        {
            "model_type": "llama",
            "rope_theta": 5e5,
            "rope_scaling": {**LLAMA_3, "original_max_position_embeddings": 8192},
        },
        {"model_type": "llama", "rope_theta": 1e5, "rope_scaling": None, "is_llama_config": True, "pad_token_id": 2},
        {"model_type": "qwen2", "rope_theta": 1e6, "sliding_window": 32768, "use_sliding_window": False},
        {"model_type": "qwen3", "rope_theta": 1000000, "head_dim": 128, "max_window_layers": 28},
        {"model_type": "mistral", "rope_theta": 1e6, "sliding_window": None, "torch_dtype": "bfloat16"},
    ],
)
def test_configurations_of_older_releases_mean_the_same(tmp_path, values):
    """As published: positions described by fields that the library has renamed since."""
    values = {"num_hidden_layers": 2, "transformers_version": "4.42.3", "torch_dtype": "bfloat16", **values}
    (tmp_path / "config.json").write_text(json.dumps(values))
    source = sources.Source("published", None, tmp_path, (), None, False)
    found, theirs = language_config(source)[0].to_dict(), AutoConfig.from_pretrained(tmp_path).to_dict()
    different = {name for name in found.keys() | theirs.keys() if found.get(name) != theirs.get(name)}
    assert different <= {"_name_or_path", "dtype", "architectures"}
    assert found["rope_parameters"]["rope_theta"] == values["rope_theta"]
    assert part_dtype(values) == "bfloat16"


def test_full_size_parts_meet_on_the_grid_of_the_paper():
    paper = FineCaptionConfig()
    fields = {"vision_config": paper.vision_config, "sam_config": paper.sam_config}
    assert plan._geometry(fields) == {"high_res_image_size": 1024, "grid_size": 32}
    assert plan._geometry({**fields, "use_convnext": False}) == {"high_res_image_size": 1024, "grid_size": 32}
    assert plan._geometry({**fields, "use_convnext": False, "use_sam": False})["grid_size"] == 24


@pytest.mark.parametrize(
    "given, message",
    [
        ({"llm": None}, "Give --llm, or --tokenizer"),
        ({"convnext": "x", "without": ["convnext"]}, "contradict each other"),
        ({"config": {"use_sam": False}}, "--sam and --without sam contradict each other"),
        ({"from_llava": "x"}, "one-tower model with its own language model"),
        ({"from_llava": "x", "from_llava_next": "x"}, "--from-llava-next has no place in it"),
        ({"without": ["clip"]}, "no part 'clip'. There are: mask, convnext, sam"),
        ({"config": {"vision_config": {}}}, "--clip decides vision_config"),
        ({"config": {"no_such": 1}}, "no field 'no_such'"),
        ({"dtype": "int8"}, "no dtype 'int8'"),
        ({"max_shard_size": "5"}, "no size of a shard"),
        ({"clip": "no such folder"}, "neither a file, nor a folder"),
    ],
)
def test_options_that_contradict_end_in_an_error(folder, tmp_path, given, message):
    with pytest.raises(AssemblyError, match=message):
        assemble(tmp_path / "out", **{**options(folder), **given})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "option, family, tower, message",
    [
        ("from_llava", "llava_next", "clip_vision_model", "not 'llava'. Give it as --from-llava-next."),
        ("from_llava_next", "llava_onevision", "clip_vision_model", "Give it as --from-llava-onevision."),
        ("from_llava_onevision", "llava_onevision", "siglip_vision_model", "Alpha-CLIP is published for CLIP alone"),
    ],
)
def test_llavas_that_cannot_be_assembled_are_refused_with_what_to_do(tmp_path, option, family, tower, message):
    given = parts.llava_with_tiles(tmp_path / "given", family, tower)
    (given / "model.safetensors").unlink()  # its weights are not asked for
    with pytest.raises(AssemblyError, match=re.escape(message)) as caught:
        assemble(tmp_path / "out", **{option: str(given)})
    if tower.startswith("siglip"):
        assert "sees with siglip_vision_model" in str(caught.value) and "--model given --referral" in str(caught.value)
    command = ["assemble", "--out", str(tmp_path / "out"), f"--{option.replace('_', '-')}", str(given)]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 2 and message in found.stderr


@pytest.mark.parametrize("fault, message", [("missing", "lacks: image_newline."), ("shape", "needed is [32]")])
def test_newline_that_is_missing_or_wrongly_shaped_is_an_error(tmp_path, fault, message):
    given = parts.llava_with_tiles(tmp_path / "given", "llava_next")

    def change(state: dict[str, torch.Tensor]) -> None:
        [name] = [name for name in state if name.endswith("image_newline")]
        newline = state.pop(name)
        if fault == "shape":
            state[name] = newline[:8].clone()

    parts.changed(given, tmp_path / "changed", change)
    with pytest.raises(AssemblyError, match=re.escape(message)):
        assemble(tmp_path / "out", from_llava_next=str(tmp_path / "changed"))


# --- safety ----------------------------------------------------------------------------------------------------------


class Payload:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.witness),))


@pytest.mark.parametrize("option", ["alpha_clip", "convnext", "sam", "llm", "clip"])
def test_code_in_a_pickle_is_not_executed(folder, tmp_path, option):
    witness = tmp_path / "witness"
    if option in ("alpha_clip", "sam"):
        file = given = tmp_path / "part.pth"
    else:
        given = Path(shutil.copytree(folder / option, tmp_path / "part"))
        (given / "model.safetensors").unlink()
        file = given / "pytorch_model.bin"
    torch.save({"weight": torch.zeros(2), "more": Payload(witness)}, file)
    with pytest.raises(AssemblyError, match="cannot be read as tensors alone"):
        assemble(tmp_path / "out", **options(folder, **{option: str(given)}))
    assert not witness.exists()
    file.write_bytes(pickle.dumps(Payload(witness)))
    with pytest.raises(AssemblyError, match="cannot be read as tensors alone"):
        assemble(tmp_path / "out", **options(folder, **{option: str(given)}))
    assert not witness.exists()


def test_code_beside_a_language_model_is_not_executed(folder, tmp_path):
    given = Path(shutil.copytree(folder / "llm", tmp_path / "llm"))
    config = json.loads((given / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (given / "config.json").write_text(json.dumps(config))
    (given / "code.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'witness')!r})\n")
    with pytest.raises(AssemblyError):
        assemble(tmp_path / "out", **small(folder, llm=str(given)))
    assert not (tmp_path / "witness").exists()


def test_broken_safetensors_end_in_an_error(folder, tmp_path):
    given = Path(shutil.copytree(folder / "convnext", tmp_path / "part"))
    whole = (given / "model.safetensors").read_bytes()
    (given / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AssemblyError, match="cannot be read as safetensors"):
        assemble(tmp_path / "out", **options(folder, convnext=str(given)))


def test_missing_shard_ends_in_an_error(folder, tmp_path):
    given = parts.language_model(tmp_path / "llm", max_shard_size="30KB")
    next(given.glob("model-00002-*")).unlink()
    with pytest.raises(AssemblyError, match=r"model-00002-of-.* is missing"):
        assemble(tmp_path / "out", **small(folder, llm=str(given)))


def test_index_cannot_reach_out_of_its_folder(folder, tmp_path):
    given = Path(shutil.copytree(folder / "llm", tmp_path / "llm"))
    (given / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../clip/model.safetensors"}}))
    with pytest.raises(AssemblyError, match="outside of its folder"):
        assemble(tmp_path / "out", **small(folder, llm=str(given)))


# --- what is left out ------------------------------------------------------------------------------------------------


def test_parts_that_are_left_out_are_initialised_and_named(folder, tmp_path):
    config = {name: value for name, value in PARTS.items() if name not in ("image_token_id", "sam_config")}
    given = {"tokenizer": str(folder / "llm"), "sam": str(folder / "sam"), "config": config}
    summary = assemble(tmp_path / "out", **given)
    names = {entry["what"]: entry["tensors"] for entry in summary["initialised"]}
    assert names.keys() == {"mask-aware CLIP tower", "ConvNeXt tower", "adapter", "language model"}
    model = load(tmp_path / "out", device="cpu")[0]
    state = model.state_dict()
    assert sum(names.values()) == sum(not name.startswith("model.sam_tower.") for name in state)
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert not state["model.vision_tower.embeddings.alpha_embedding.weight"].any()
    # As the library initialises a CLIP of this size, in which the scale of each matrix has its own formula.
    # The formulas count all layers of the configuration, of which the tower keeps two.
    reference = CLIPVisionModel(model.config.vision_config).state_dict()
    for name in ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"):
        wanted = torch.stack([reference[f"encoder.layers.{i}.{name}.weight"] for i in range(2)]).std()
        found = torch.stack([state[f"model.vision_tower.encoder.layers.{i}.{name}.weight"] for i in range(2)]).std()
        assert abs(found / wanted - 1) < 0.15, name  # 2,048 random numbers or more; the scales differ by 1.4 and more
    assert abs(state["model.language_model.layers.0.mlp.up_proj.weight"].std() / 0.2 - 1) < 0.1
    assert (state["model.convnext_tower.encoder.stages.2.blocks.1.gamma"] == 0.5).all()
    assert (state["model.language_model.norm.weight"] == 1).all()

    again = assemble(tmp_path / "again", **given)
    other = assemble(tmp_path / "other", **given, seed=1)
    assert again == summary and other["seed"] == 1
    one, two, three = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "again", "other"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["model.adapter.linear_1.weight"], three["model.adapter.linear_1.weight"])


# --- the folder ------------------------------------------------------------------------------------------------------


def test_the_summary_tells_where_everything_comes_from(folder, tmp_path):
    given = options(folder, alpha_clip=str(folder / "alpha.pth"))
    summary = assemble(tmp_path / "out", **given, max_shard_size="100KB")
    assert json.loads((tmp_path / "out" / "assembly.json").read_text()) == summary
    files = {file["name"]: file["sha256"] for part in summary["parts"] for file in part["files"]}
    alpha = hashlib.sha256((folder / "alpha.pth").read_bytes()).hexdigest()
    assert files["alpha.pth"] == alpha
    licences = {part["option"]: part["licence"] for part in summary["parts"]}
    expected = {"clip": "mit", "alpha_clip": None, "convnext": "apache-2.0", "sam": "some-licence", "llm": None}
    assert licences == expected
    assert str(folder) not in json.dumps(summary)
    for path in (tmp_path / "out").glob("*.json"):
        assert str(folder) not in path.read_text(), path.name
    model = load(tmp_path / "out", device="cpu")[0]
    assert summary["parameters"]["total"] == sum(parameter.numel() for parameter in model.parameters())
    assert summary["initialised"] == [
        {"what": "adapter", "tensors": 4, "parameters": 128 * 32 + 32 * 32 + 2 * 32},
        {"what": "language model: 1 new row of the vocabulary, the mean of the others", "tensors": 2, "parameters": 64},
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_written_in_the_precision_that_is_asked_for(folder, tmp_path, dtype):
    assemble(tmp_path / "out", **small(folder), dtype=dtype)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {getattr(torch, dtype)}
    key = "encoder.layers.0.mlp.fc1.weight"
    original = load_file(folder / "clip" / "model.safetensors")[f"vision_model.{key}"]
    assert torch.equal(found[f"model.vision_tower.{key}"], original.to(getattr(torch, dtype)))
    assert load(tmp_path / "out", device="cpu")[0].dtype == getattr(torch, dtype)


def test_shards_are_as_large_as_asked_and_indexed(folder, tmp_path):
    assemble(tmp_path / "one", **small(folder))
    assemble(tmp_path / "many", **small(folder), max_shard_size="30KB")
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    one = load_file(tmp_path / "one" / "model.safetensors")
    assert index["weight_map"].keys() == one.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in one.values())
    for path in (tmp_path / "many").glob("model-*.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            sizes = [file.get_tensor(key).nbytes for key in file.keys()]  # noqa: SIM118
            assert sum(sizes) <= 30_000 or len(sizes) == 1
            assert {index["weight_map"][key] for key in file.keys()} == {path.name}  # noqa: SIM118


def test_writer_refuses_another_order(tmp_path):
    writer = ShardWriter(tmp_path, {"a": (2,), "b": (3,)}, torch.float32, 10**6)
    with pytest.raises(RuntimeError, match="a of shape"):
        writer.write([("b", torch.zeros(3)), ("a", torch.zeros(2))])
    with pytest.raises(RuntimeError, match="the end"):
        writer.write([("a", torch.zeros(2))])


def test_existing_folder_is_not_overwritten(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(AssemblyError, match="exists already"):
        assemble(tmp_path / "out", **small(folder))
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]
    (tmp_path / "out" / "mine.txt").unlink()
    assemble(tmp_path / "out", **small(folder))
    assert (tmp_path / "out" / "config.json").is_file()


def test_error_in_the_middle_leaves_nothing(folder, tmp_path, monkeypatch):
    def fail(*arguments: Any) -> None:
        raise RuntimeError("disk is gone")

    monkeypatch.setattr("finecaption_hf.assembly.build.write_summary", fail)
    with pytest.raises(RuntimeError, match="disk is gone"):
        assemble(tmp_path / "out", **small(folder))
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
import finecaption_hf.assembly.build as room

stage, out, clip, llm = sys.argv[1:]
name = {"weights": "_tensors_of", "processor": "_write_processor", "config": "_write_config"}[stage]
original = getattr(room, name)

def killed(*arguments):
    if stage != "weights":
        os.kill(os.getpid(), signal.SIGKILL)
    for number, item in enumerate(original(*arguments)):
        if number == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        yield item

setattr(room, name, killed if stage == "weights" else lambda *a: next(killed(*a)))
room.assemble(out, clip=clip, llm=llm, without=["convnext", "sam"], max_shard_size="20KB")
"""


@pytest.mark.parametrize("stage", ["weights", "processor", "config"])
def test_killed_assembly_leaves_no_folder_that_looks_complete(folder, tmp_path, stage):
    out = tmp_path / "out"
    done = OURS.run(KILLED, stage, out, folder / "clip", folder / "llm", work=tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert not out.exists()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out-") and left.name.endswith(".unfinished")
    assert list(left.glob("model-*.safetensors")) and not (left / "config.json").exists()
    # It is not in the way of another attempt.
    assemble(out, **small(folder))
    assert (out / "config.json").is_file()


# --- the Hub and the command -----------------------------------------------------------------------------------------


def test_command_assembles_parts_of_the_hub_and_pushes_what_it_made(folder, tmp_path):
    llm = Path(shutil.copytree(folder / "llm", tmp_path / "llm"))
    (llm / "pytorch_model.bin").write_text("fetched by nobody who can have safetensors")
    held = {"some/clip": folder / "clip", "some/llm": llm, "some/sam": folder / "sam"}
    held["timm/convnext_atto.tag"] = folder / "convnext"
    with HubServer() as server:
        client = Client(server, tmp_path)
        revisions = {name: server.hold(name, part).at("main").oid for name, part in held.items()}
        server.model("some/clip").commit("main", "another revision", {}, set())
        given = ["--clip", f"some/clip@{revisions['some/clip']}", "--llm", "some/llm", "--sam", "some/sam"]
        given += ["--alpha-clip", folder / "alpha.pth", "--convnext", "convnext_atto.tag:model.safetensors@main"]
        server.refuse(r"POST .*/commit/main", 500)
        line = client.fails("assemble", "--out", "out", *given, "--push", "me/mine")
        assert line.endswith("out itself is complete; `finecaption push out me/mine --private` uploads it.")
        weights = [line for line in server.requests if line.endswith((".safetensors", ".bin"))]
        # Alpha-CLIP replaces CLIP's weights, so they are not fetched; pickles are not where safetensors are.
        fetched = {re.sub(r"\w+ /(.+)/resolve/\w+/", r"\1/", line) for line in weights}
        assert fetched == {f"{name}/model.safetensors" for name in held if name != "some/clip"}
        parts_of = json.loads((tmp_path / "out" / "assembly.json").read_text())["parts"]
        assert {part["source"].split(":")[0]: part["revision"] for part in parts_of} == {**revisions, "alpha.pth": None}
        assert json.loads((tmp_path / "out" / "config.json").read_text())["sam_pretrained"] == "some/sam"
        repo = server.model("me/mine")
        assert repo.private and len(repo.history()) == 1
        client.push("out", "me/mine", "--private")
        assert len(repo.history()) == 2
        files = repo.at("main").files
        assert {path.name for path in (tmp_path / "out").iterdir()} < files.keys()
        assert "README.md" not in os.listdir(tmp_path / "out")
        _, fields, body = files["README.md"].decode().split("---\n", 2)
        assert set(yaml.safe_load(fields)["base_model"]) == held.keys()
        assert yaml.safe_load(fields)["license_name"] == "research-only"  # Alpha-CLIP's weights
        assert f"| configuration of the mask-aware CLIP tower | some/clip | {revisions['some/clip']} | mit |" in body
        assert "untrained as a whole" in body and not any(str(tmp_path).encode() in data for data in files.values())


def test_an_upload_is_to_a_public_repository_where_one_is_asked_for(folder, tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(
        "finecaption_hf.hub.push_folder", lambda *args, **options: pushed.append((*args, options["private"]))
    )
    arguments = ["assemble", "--out", tmp_path / "out", "--clip", folder / "clip", "--llm", folder / "llm"]
    arguments += ["--without", "sam", "--without", "convnext", "--push", "me/mine", "--public"]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    assert pushed == [(tmp_path / "out", "me/mine", False)]


def test_command_assembles_and_prints_the_summary(folder, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"high_res_image_size": 256}))
    arguments = ["assemble", "--out", tmp_path / "out", "--clip", folder / "clip", "--llm", folder / "llm"]
    arguments += ["--convnext", folder / "convnext", "--without", "sam", "--config", config, "--dtype", "bfloat16"]
    done = CliRunner().invoke(app, [str(argument) for argument in [*arguments, "--json"]])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads((tmp_path / "out" / "assembly.json").read_text())
    arguments[2] = tmp_path / "second"
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "mask-aware CLIP tower: clip (mit), 37 of 78 tensors used, 41 ignored" in done.stdout
    assert "initialised: adapter" in done.stdout
    assert f"Wrote {tmp_path / 'second'}" in done.stderr
    arguments[-5] = "clip"
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 2 and done.stderr.splitlines()[-1].startswith("Error: ")
