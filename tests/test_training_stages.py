"""Stages and recipes as declarations, and the share of whole-image samples."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import tiny_config
from transformers import TrainingArguments

from finecaption_hf.assembly.cost import model_info, read_config
from finecaption_hf.data import Branch, Example, Region
from finecaption_hf.training import STAGES, Stage, StageError, WholeImageDataset, find_stage
from finecaption_hf.training.arguments import build_arguments, parse_options
from finecaption_hf.training.recipes import RECIPES, named_paths, read_recipe
from finecaption_hf.training.stages import with_given_data

PACKAGED = sorted(path.stem for path in RECIPES.glob("*.yaml"))


def test_defaults_are_those_of_the_paper_and_of_eagle() -> None:
    assert [stage.name for stage in STAGES.values()] == ["adapter", "alpha_convolution", "everything"]
    assert [stage.learning_rate for stage in STAGES.values()] == [1e-3, 1e-4, 2e-5]
    assert (STAGES[1].global_batch_size, STAGES[3].global_batch_size) == (256, 128)
    for stage in STAGES.values():
        assert stage.whole_image_share == 0.1
        assert stage.activation_checkpointing
        values = stage.training_arguments()
        assert (values["num_train_epochs"], values["lr_scheduler_type"]) == (1, "cosine")
        assert (values["warmup_steps"], values["bf16"]) == (0.03, True)


def test_full_size_stages_train_what_their_names_say() -> None:
    trains = model_info(read_config()).trainable_parameters
    assert trains["stage_2_alpha_convolution"] == 1024 * 14 * 14
    assert trains["stage_1_adapter"] == 5120 * 4096 + 4096 + 4096 * 4096 + 4096
    assert model_info(tiny_config(use_mask=False)).trainable_parameters["stage_2_alpha_convolution"] == 0


@pytest.mark.parametrize("stage", [*STAGES.values(), Stage("mine", (), 1e-4, peft={"r": 4})], ids=lambda it: it.name)
def test_stage_survives_yaml(stage: Stage) -> None:
    assert Stage.from_dict(yaml.safe_load(yaml.safe_dump(stage.to_dict()))) == stage


def test_entry_of_a_recipe_changes_a_known_stage() -> None:
    stage = Stage.from_dict({"stage": 2, "learning_rate": 1e-3, "training": {"max_steps": 5}})
    # The data sets have the names that the recipe gives them.
    assert stage == dataclasses.replace(STAGES[2], learning_rate=1e-3, training={"max_steps": 5}, data={})
    # A count belongs to the patterns that it was made for.
    assert Stage.from_dict({"stage": 2, "trains": ["model.adapter.*"]}).num_tensors is None


def test_stage_without_a_recipe_takes_its_data_by_name_or_all_that_is_given() -> None:
    assert with_given_data(STAGES[3], ["refcoco", "grand"]).data == {"grand": 1, "refcoco": 1}
    assert with_given_data(STAGES[3], ["mine"]) == dataclasses.replace(STAGES[3], data={})
    mine = dataclasses.replace(STAGES[3], data={"scenes": 2})
    assert with_given_data(mine, ["other"]) == mine


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stage": 4}, "no stage .4.. There are: 1, adapter, 2"),
        ({"stage": 1, "lr": 1}, "no field .lr."),
        ({"name": "a"}, "lacks trains, learning_rate"),
        ({"stage": 1, "trains": []}, "nothing would train"),
        ({"stage": 1, "trains": "model.adapter.*"}, "Give a list"),
        ({"stage": 1, "learning_rate": 0}, "above 0"),
        ({"stage": 1, "learning_rate": "fast"}, "no number"),
        ({"stage": 1, "name": "a/b"}, "it names a folder"),
        ({"stage": 1, "whole_image_share": 2}, "between 0 and 1"),
        ({"stage": 1, "global_batch_size": 0}, "above 0"),
        ({"stage": 1, "data": {"a": 0}}, "weights are numbers above 0"),
        ({"stage": 1, "data": ["a"]}, "a weight for each name"),
        ({"stage": 3, "peft": {"target_modules": ["q_proj"]}}, "bare names would meet the CLIP tower"),
        ({"stage": 1, "training": {"learning_rate": 1}}, "a field of the stage itself"),
    ],
)
def test_what_cannot_be_meant_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(StageError, match=message):
        Stage.from_dict(values)


def test_number_of_yaml_without_a_dot_is_a_number() -> None:
    assert Stage.from_dict({"stage": 1, "learning_rate": "1e-3"}).learning_rate == 1e-3


def test_stage_is_found_by_number_and_name() -> None:
    assert find_stage("2") is find_stage(2) is find_stage("alpha_convolution") is STAGES[2]


# --- options ---------------------------------------------------------------------------------------------------------


def test_options_are_those_of_training_arguments_as_far_as_given() -> None:
    given = ["--learning-rate", "1e-4", "--max_steps=5", "--bf16", "false", "--save-strategy", "epoch", "--fsdp"]
    assert parse_options(given) == {
        "learning_rate": 1e-4,
        "max_steps": 5,
        "bf16": False,
        "save_strategy": "epoch",
        "fsdp": True,
    }
    assert parse_options([]) == {}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["--learning-rat", "1"], "no option --learning-rat. Did you mean --learning-rate"),
        (["--nothing-like-it"], "no option --nothing-like-it"),
        (["--max-steps", "many"], "max.steps.*whole number"),
        (["--output_dir", "x"], "Give --output instead"),
    ],
)
def test_wrong_options_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(StageError, match=message):
        parse_options(texts)


def build(stage: Stage = STAGES[1], **given: Any) -> TrainingArguments:
    return build_arguments(stage, "out", {}, {"use_cpu": True, **given}, False)


def test_batch_of_a_process_makes_up_the_global_one() -> None:
    args = build(per_device_train_batch_size=16)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (16, 16)
    small = dataclasses.replace(STAGES[1], global_batch_size=6)
    args = build(small)
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 6
    args = build(per_device_train_batch_size=3, gradient_accumulation_steps=2)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (3, 2)
    with pytest.raises(StageError, match="does not divide the stage's global_batch_size 256"):
        build(per_device_train_batch_size=7)


def test_command_line_wins_over_stage_and_stage_over_recipe() -> None:
    stage = dataclasses.replace(STAGES[1], training={"max_steps": 5, "weight_decay": 0.2})
    common = {"max_steps": 3, "weight_decay": 0.1, "logging_steps": 7}
    args = build_arguments(stage, "out", common, {"use_cpu": True, "max_steps": 9, "learning_rate": 0.5}, False)
    assert (args.max_steps, args.weight_decay, args.logging_steps, args.learning_rate) == (9, 0.2, 7, 0.5)


def test_wrong_argument_of_a_recipe_is_refused() -> None:
    with pytest.raises(StageError, match=r"has no max_step\. Did you mean 'max_steps'"):
        build(max_step=3)
    with pytest.raises(StageError, match="no evaluation without data"):
        build(eval_strategy="steps")


# --- recipes ---------------------------------------------------------------------------------------------------------


def test_recipes_of_the_package_are_there() -> None:
    assert PACKAGED == [
        "ablation-tiny",
        "alpha-clip-13b-40gb",
        "finecaption-8b-24gb-lora-4bit",
        "finecaption-8b-8gpu-deepspeed-zero3",
        "finecaption-8b-8gpu-fsdp2",
        "finecaption-llama-3b-24gb",
        "finecaption-qwen-1.5b-8gb",
        "finecaption-smollm2-360m-24gb",
        "finecaption-tiny",
    ]


@pytest.mark.parametrize("name", PACKAGED)
def test_recipe_makes_stages_and_arguments(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = read_recipe(name)
    # deepspeed wants itself installed, and its own checks come with it.
    common = {key: value for key, value in recipe.training.items() if key != "deepspeed"}
    world = 8 if "8gpu" in name else 1
    monkeypatch.setattr("finecaption_hf.training.arguments.num_processes", lambda: world)
    for stage in recipe.stages:
        args = build_arguments(stage, "out", common, {"use_cpu": True}, False)
        assert args.per_device_train_batch_size * args.gradient_accumulation_steps * world == stage.global_batch_size
        assert args.learning_rate == stage.learning_rate


def test_paths_of_a_recipe_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "data: {a: a.jsonl, b: {path: b.json, images: /pictures, on_error: skip}}\nstages: [{stage: 1}]\n"
    )
    assert read_recipe(tmp_path / "mine.yaml").data == {
        "a": str(tmp_path / "a.jsonl"),
        "b": {"path": str(tmp_path / "b.json"), "images": "/pictures", "on_error": "skip"},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: [", "no YAML"),
        ("- 1", "no mapping"),
        ("stages: []", "at least one stage"),
        ("stages: [{stage: 1}, {stage: 1}]", "a name of its own"),
        ("stages: [{stage: 1}]\nepochs: 3", "no field 'epochs'"),
        ("stages: [{stage: 1}]\nmodel_options: {device: cuda}", "no option 'device'"),
        ("stages: 3", "a list of mappings"),
    ],
)
def test_wrong_recipes_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(StageError, match=message):
        read_recipe(tmp_path / "wrong.yaml")


def test_recipe_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(StageError, match="finecaption-tiny"):
        read_recipe("finecaption-huge")


def test_data_has_the_name_of_its_file_or_folder() -> None:
    assert named_paths(["x=a.json", "b/c.jsonl", "d/records.jsonl"], "--data") == {
        "x": "a.json",
        "c": "b/c.jsonl",
        "d": "d/records.jsonl",
    }
    with pytest.raises(StageError, match="two called 'c'"):
        named_paths(["b/c.jsonl", "a/c.jsonl"], "--data")


# --- whole images ----------------------------------------------------------------------------------------------------


def examples(number: int, *, whole: bool = True, regions: bool = True) -> list[Example]:
    part = Region({"box_xyxy": [0, 0, 5, 5]}, (Branch("red", name="Color"),))
    image = Region(None, (Branch("a scene", name="Global"),))
    both = (*((part, part) if regions else ()), *((image,) if whole else ()))
    return [Example("a.png", both, id=str(index)) for index in range(number)]


def test_a_tenth_of_the_samples_is_the_whole_image() -> None:
    dataset = WholeImageDataset(examples(2000), 0.1, seed=4)
    whole = [index for index in range(2000) if dataset[index].regions[0].mask is None]
    # 200 expected; 13.4 is the standard deviation of that many draws.
    assert 140 < len(whole) < 260
    assert all(len(dataset[index].regions) == (1 if index in whole else 2) for index in range(100))
    again = WholeImageDataset(examples(2000), 0.1, seed=4)
    assert [index for index in range(2000) if again[index].regions[0].mask is None] == whole
    other = WholeImageDataset(examples(2000), 0.1, seed=5)
    assert [index for index in range(2000) if other[index].regions[0].mask is None] != whole


def test_records_without_a_choice_pass_unchanged() -> None:
    for given in (examples(20, whole=False), examples(20, regions=False)):
        dataset = WholeImageDataset(given, 0.5)
        assert [dataset[index] for index in range(20)] == given
    assert WholeImageDataset(examples(3), 0.5)[-1].id == "2"
    with pytest.raises(IndexError):
        WholeImageDataset(examples(3), 0.5)[3]
