"""`StageCallback` on the stock Trainer: what trains is what the stage declares, and nothing else changes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import checkpoint_activations, checkpointing_option, random_pixels, random_prompts, tiny_model
from torch import nn
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments

from finecaption_hf.modeling_finecaption import FineCaptionForConditionalGeneration
from finecaption_hf.resuming import ResumeError
from finecaption_hf.training import STAGES, Stage, StageCallback, StageError, StageTrainer, apply_stage
from finecaption_hf.training.checkpoints import check_weights
from finecaption_hf.training.runner import _write_final

TOWERS = ("vision_tower", "convnext_tower", "sam_tower")
ALPHA = "model.vision_tower.embeddings.alpha_embedding.weight"
LORA = Stage(name="lora", trains=("model.adapter.*",), learning_rate=1e-2, peft={"r": 2, "init_lora_weights": False})
EACH = [STAGES[1], STAGES[2], STAGES[3], LORA]


class Samples(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """One region each, with answers of different lengths."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        prompts = random_prompts(1, seed=index)
        labels = prompts.clone()
        labels[:, : 65 + index % 4] = -100
        pixels = random_pixels(1, [0], seed=index)
        del pixels["image_indices"]
        return {**pixels, "input_ids": prompts, "labels": labels}


def collate(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    values = {
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "remove_unused_columns": False,
        "report_to": "none",
        "save_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        **changes,
    }
    return TrainingArguments(str(folder), **values)


def trainer_of(
    model: nn.Module, folder: Path, *callbacks: Any, kind: type[Trainer] = Trainer, **changes: Any
) -> Trainer:
    return kind(
        model=model,
        args=arguments(folder, **changes),
        data_collator=collate,
        train_dataset=Samples(),
        callbacks=list(callbacks),
    )


def plain(name: str) -> str:
    return name.replace(".base_layer", "")


# --- what trains -----------------------------------------------------------------------------------------------------


@pytest.mark.hub
@pytest.mark.parametrize("is_checkpointing", [False, True], ids=["stored", "recomputed"])
@pytest.mark.parametrize("stage", EACH, ids=lambda stage: stage.name)
def test_only_what_the_stage_declares_changes(stage: Stage, is_checkpointing: bool, tmp_path: Path) -> None:
    # The alpha convolution at zero, as it is when it is about to be trained.
    model = tiny_model(alpha=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = checkpointing_option() if is_checkpointing else {}
    trainer_of(model, tmp_path, StageCallback(stage), save_strategy="no", **options).train()
    declared = set(stage.select(before))
    after = {plain(name): value for name, value in model.state_dict().items() if ".lora_" not in name}
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == declared
    lora = {name: value for name, value in model.named_parameters() if ".lora_" in name}
    assert all(value.requires_grad and name.startswith("model.language_model.") for name, value in lora.items())
    assert bool(lora) == (stage is LORA)


def test_recomputing_activations_leaves_the_gradient_of_stage_2_as_it_is(tmp_path: Path) -> None:
    gradients = []
    for options in ({}, checkpointing_option()):
        model = tiny_model(alpha=False)
        trainer = trainer_of(model, tmp_path, StageCallback(STAGES[2]), save_strategy="no", max_grad_norm=0, **options)
        gradients.append(torch.empty(0))

        def keep(gradient: torch.Tensor) -> None:
            gradients[-1] = gradient.clone()

        model.get_parameter(ALPHA).register_hook(keep)
        trainer.train()
    stored, recomputed = gradients
    assert stored.abs().max() > 1e-4
    torch.testing.assert_close(recomputed, stored)


def test_the_table_counts_what_trains(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model()
    callback = StageCallback(STAGES[2])
    with caplog.at_level("INFO", logger="finecaption_hf.training"):
        trainer_of(model, tmp_path, callback)
    rows = {row.part: row for row in callback.table}
    assert set(rows) == {*TOWERS, "adapter", "language_model", "lm_head"}
    assert (rows["vision_tower"].tensors, rows["vision_tower"].values) == (1, model.get_parameter(ALPHA).numel())
    assert sum(row.values for row in rows.values()) == rows["vision_tower"].values
    assert sum(row.all_values for row in rows.values()) == sum(value.numel() for value in model.parameters())
    assert "Stage 'alpha_convolution' trains" in caplog.text
    assert "6,272 of" in caplog.text


# --- frozen parts ----------------------------------------------------------------------------------------------------


def stored_shapes(model: nn.Module, part: str) -> int:
    """Tensors that autograd stores while a part of the model runs, apart from parameters."""
    parameters = {value.data_ptr() for value in model.parameters()}
    stored: list[torch.Tensor] = []
    module = model.get_submodule(f"model.{part}")
    hooks: list[Any] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in parameters:
            stored.append(tensor)
        return tensor

    def enter(*_: Any) -> None:
        hooks.append(torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor))
        hooks[-1].__enter__()

    def leave(*_: Any) -> None:
        hooks.pop().__exit__(None, None, None)

    handles = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    model(**Samples()[0]).loss.backward()
    for handle in handles:
        handle.remove()
    return len(stored)


@pytest.mark.hub
@pytest.mark.parametrize("is_checkpointing", [False, True], ids=["stored", "recomputed"])
def test_towers_that_need_no_gradient_store_no_activations(is_checkpointing: bool) -> None:
    expected = {
        "adapter": {"vision_tower": False, "convnext_tower": False, "sam_tower": False},
        "alpha_convolution": {"vision_tower": True, "convnext_tower": False, "sam_tower": False},
        "everything": {"vision_tower": True, "convnext_tower": True, "sam_tower": True},
    }
    for stage in STAGES.values():
        model = tiny_model()
        apply_stage(model, stage)
        model.train()
        if is_checkpointing:
            checkpoint_activations(model)
            # As for adapters: inputs of every encoder then ask for a gradient, frozen or not.
            model.enable_input_require_grads()
            model.train()
        assert {tower: stored_shapes(model, tower) > 0 for tower in TOWERS} == expected[stage.name]


def test_frozen_layers_in_the_way_of_the_gradient_recompute_their_activations() -> None:
    stored = {}
    for is_checkpointing in (False, True):
        model = tiny_model()
        apply_stage(model, STAGES[2])
        if is_checkpointing:
            checkpoint_activations(model)
        model.train()
        stored[is_checkpointing] = {part: stored_shapes(model, part) for part in ("vision_tower", "language_model")}
    assert stored[True]["vision_tower"] < stored[False]["vision_tower"] / 3
    assert stored[True]["language_model"] < stored[False]["language_model"] / 3


@pytest.mark.parametrize("number", [1, 2])
def test_dropout_of_frozen_parts_stays_off(number: int, tmp_path: Path) -> None:
    dropouts = {"vision_config": {"attention_dropout": 0.5}, "text_config": {"attention_dropout": 0.5}}
    losses = []
    for options in ({}, checkpointing_option()):
        for seed in (0, 1):
            model = tiny_model(**dropouts)
            # All samples in one batch, so that the seed decides of nothing but dropout.
            values = {"per_device_train_batch_size": 8, "logging_steps": 1, "save_strategy": "no", "seed": seed}
            trainer = trainer_of(model, tmp_path, StageCallback(STAGES[number]), **values, **options)
            trainer.train()
            assert not model.model.sam_tower.training
            assert not any(module.training for module in model.model.convnext_tower.modules())
            losses.append(trainer.state.log_history[0]["loss"])
    assert max(losses) - min(losses) < 1e-5


def test_dropout_of_trained_parts_is_on() -> None:
    model = tiny_model()
    apply_stage(model, STAGES[3])
    model.train()
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in model.eval().modules())


# --- refusals --------------------------------------------------------------------------------------------------------


def test_callback_that_was_added_after_construction_is_refused(tmp_path: Path) -> None:
    trainer = trainer_of(tiny_model(), tmp_path)
    trainer.add_callback(StageCallback(STAGES[1]))
    with pytest.raises(StageError, match="attached too late: the optimizer exists"):
        trainer.train()


def test_optimizer_that_exists_already_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(StageError, match="attached too late"):
        Trainer(
            model=model,
            args=arguments(tmp_path),
            train_dataset=Samples(),
            callbacks=[StageCallback(STAGES[1])],
            optimizers=(optimizer, None),
        )


def test_parameters_that_were_thawed_behind_the_stage_are_refused(tmp_path: Path) -> None:
    model = tiny_model()
    trainer = trainer_of(model, tmp_path, StageCallback(STAGES[1]))
    model.get_parameter(ALPHA).requires_grad_(True)
    with pytest.raises(StageError, match=r"alpha_embedding.*changed since"):
        trainer.train()


def test_pattern_that_matches_nothing_is_refused() -> None:
    stage = Stage(name="typo", trains=("model.adapter.*", "model.adaptor.*"), learning_rate=1e-3)
    with pytest.raises(StageError, match=r"'model.adaptor.\*' matches none of .* model.adapter"):
        apply_stage(tiny_model(), stage)


def test_number_of_parameters_that_is_not_the_declared_one_is_refused() -> None:
    stage = Stage(name="two", trains=("*alpha_embedding*",), learning_rate=1e-3, num_tensors=2)
    with pytest.raises(StageError, match="match 1 parameters, but it declares 2"):
        apply_stage(tiny_model(), stage)


def test_stage_2_of_a_model_without_mask_input_is_refused() -> None:
    with pytest.raises(StageError, match="matches none"):
        apply_stage(tiny_model(use_mask=False), STAGES[2])


@pytest.mark.parametrize(("first", "second"), [(1, 2), (1, 3), (3, 1)])
def test_checkpoint_of_another_stage_is_not_resumed(first: int, second: int, tmp_path: Path) -> None:
    trainer_of(tiny_model(), tmp_path, StageCallback(STAGES[first])).train()
    message = f"checkpoint of stage '{STAGES[first].name}' and cannot be resumed in stage '{STAGES[second].name}'"
    for folder in (True, str(tmp_path / "checkpoint-1")):
        trainer = trainer_of(tiny_model(), tmp_path, StageCallback(STAGES[second]), kind=StageTrainer, max_steps=2)
        with pytest.raises(ResumeError, match=message):
            trainer.train(resume_from_checkpoint=folder)
    # The stock trainer tells nothing of it before it loads the optimizer.
    trainer = trainer_of(tiny_model(), tmp_path, StageCallback(STAGES[second]), max_steps=2)
    with pytest.raises(ValueError, match="optimizer"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("kind", [Trainer, StageTrainer])
def test_stage_that_trains_something_else_by_now_is_not_resumed(kind: type[Trainer], tmp_path: Path) -> None:
    stage = Stage(name="own", trains=("model.adapter.linear_1.*",), learning_rate=1e-3)
    other = Stage(name="own", trains=("model.adapter.linear_2.*",), learning_rate=1e-3)
    trainer_of(tiny_model(), tmp_path, StageCallback(stage)).train()
    trainer = trainer_of(tiny_model(), tmp_path, StageCallback(other), kind=kind, max_steps=2)
    with pytest.raises(
        ResumeError, match=r'trains was \["model.adapter.linear_1.\*"\], now it is .*Resume with the same'
    ):
        trainer.train(resume_from_checkpoint=True)


def test_checkpoint_that_was_written_without_a_stage_is_not_resumed(tmp_path: Path) -> None:
    trainer_of(tiny_model(), tmp_path).train()
    trainer = trainer_of(tiny_model(), tmp_path, StageCallback(STAGES[3]), max_steps=2)
    with pytest.raises(ResumeError, match="not written in a stage"):
        trainer.train(resume_from_checkpoint=True)


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [STAGES[1], LORA], ids=lambda stage: stage.name)
def test_resumed_stage_ends_like_an_uninterrupted_one(stage: Stage, tmp_path: Path) -> None:
    whole = tiny_model()
    trainer_of(whole, tmp_path / "whole", StageCallback(stage), max_steps=4).train()
    trainer_of(tiny_model(), tmp_path / "half", StageCallback(stage), max_steps=4, save_steps=2).train()
    shutil.rmtree(tmp_path / "half" / "checkpoint-4")
    resumed = tiny_model()
    trainer_of(resumed, tmp_path / "half", StageCallback(stage), max_steps=4).train(resume_from_checkpoint=True)
    expected, found = whole.state_dict(), resumed.state_dict()
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_adapters_of_a_checkpoint_elsewhere_are_found_or_missed_aloud(tmp_path: Path) -> None:
    whole = tiny_model()
    trainer_of(whole, tmp_path / "whole", StageCallback(LORA), max_steps=2, logging_steps=1).train()
    # In the way of the stock trainer: a checkpoint of the same step, of another run.
    trainer_of(
        tiny_model(), tmp_path / "other", StageCallback(LORA), max_steps=1, logging_steps=1, learning_rate=0.1
    ).train()
    given = {"max_steps": 2, "logging_steps": 1}
    for kind in (Trainer, StageTrainer):
        resumed = tiny_model()
        trainer = trainer_of(resumed, tmp_path / "other", StageCallback(LORA), kind=kind, **given)
        if kind is Trainer:
            with pytest.raises(ResumeError, match=r"is not .*other/checkpoint-1, .*Use .*StageTrainer"):
                trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
        else:
            trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
            expected, found = whole.state_dict(), resumed.state_dict()
            assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


@pytest.mark.hub
@pytest.mark.parametrize("stage", EACH, ids=lambda stage: stage.name)
def test_checkpoint_loads_like_any_other_and_gives_the_trained_logits(stage: Stage, tmp_path: Path) -> None:
    model = tiny_model()
    trainer_of(model, tmp_path, StageCallback(stage)).train()
    folder = tmp_path / "checkpoint-1"
    record = json.loads((folder / "stage.json").read_text())
    assert record["stage"]["name"] == stage.name
    assert record["global_step"] == 1
    loaded = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
    # As before training: it generates with its cache of keys and values.
    assert loaded.config.text_config.use_cache is True
    assert getattr(loaded.config, "use_cache", True) is True
    assert loaded.state_dict().keys() == tiny_model().state_dict().keys()
    sample = Samples()[0]
    with torch.no_grad():
        expected, found = model.eval()(**sample).logits, loaded(**sample).logits
    # Merging adapters rounds once more than adding their output does.
    torch.testing.assert_close(found, expected, atol=1e-4 if stage is LORA else 0, rtol=0)


def test_next_stage_starts_from_the_weights_of_the_one_before(tmp_path: Path) -> None:
    trainer_of(tiny_model(), tmp_path / "one", StageCallback(LORA)).train()
    model = FineCaptionForConditionalGeneration.from_pretrained(tmp_path / "one" / "checkpoint-1")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer_of(model, tmp_path / "two", StageCallback(STAGES[2])).train()
    assert {name for name in before if not torch.equal(before[name], model.state_dict()[name])} == {ALPHA}


def test_two_whole_checkpoints_are_kept_at_least(tmp_path: Path) -> None:
    trainer_of(tiny_model(), tmp_path, StageCallback(STAGES[1]), max_steps=3, save_total_limit=1).train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]


@pytest.mark.parametrize("stage", [STAGES[1], LORA], ids=lambda stage: stage.name)
def test_checkpoint_that_lacks_a_tensor_is_not_declared_whole(stage: Stage, tmp_path: Path) -> None:
    """As DeepSpeed ZeRO-3 leaves one: no file of weights, or tensors of which another process holds all."""
    model, callback = tiny_model(), StageCallback(stage)
    trainer = trainer_of(model, tmp_path, callback)
    whole = tmp_path / "whole"
    trainer.save_model(str(whole))
    callback.complete(model, whole)
    path = whole / "model.safetensors"
    tensors = load_file(path)
    name = "model.convnext_tower.encoder.stem.0.weight"
    for kept in ({key: value for key, value in tensors.items() if key != name}, {**tensors, name: torch.empty(0)}):
        save_file(kept, path, metadata={"format": "pt"})
        with pytest.raises(StageError, match=f"lacks 1 of .*{name}.*stage3_gather_16bit"):
            check_weights(whole, callback._weights)
    path.unlink()
    with pytest.raises(StageError, match=f"lacks {len(tensors)} of {len(tensors)}"):
        check_weights(whole, callback._weights)

    def save_without_weights(folder: str, *_: Any, **__: Any) -> None:
        shutil.copytree(whole, folder)

    trainer.save_model = save_without_weights
    stage_folder = tmp_path / "run"
    if stage is not LORA:  # whose merged weights are written anew
        with pytest.raises(StageError, match="lacks"):
            _write_final(trainer, callback, stage, stage_folder)
        assert not (stage_folder / "final").exists()
