"""TRL's trainers as they are, by the examples in examples/: the regions of a data set arrive at the model."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EXAMPLE_MASK, EXAMPLE_PICTURE, ROOT
from PIL import Image

from finecaption_hf import FineCaptionImageProcessor

pytest.importorskip("trl", reason="trl is not installed: pip install .[trl]")
# TRL and the library call each other by names that go with a later release.
pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]
TINY = ROOT / "src" / "finecaption_hf" / "checkpoints" / "finecaption-tiny"
OPTIONS: dict[str, Any] = {"use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no"}


def example(name: str) -> Any:
    specification = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def given_masks() -> torch.Tensor:
    """What the two regions of the examples are to the model."""
    processor = FineCaptionImageProcessor.from_pretrained(TINY)
    regions = [[Image.open(EXAMPLE_MASK)], [[178, 25, 249, 96]]]
    masks: torch.Tensor = processor([Image.open(EXAMPLE_PICTURE)] * 2, masks=regions)["mask_values"]
    return masks


def trained(trainer: Any) -> list[torch.Tensor]:
    """Train; the masks that arrived at each step. Every part has moved, the alpha convolution included."""
    arrived = []
    model = trainer.model.model
    hook = model.register_forward_pre_hook(
        lambda _, __, inputs: arrived.append(inputs["mask_values"].detach().clone()), with_kwargs=True
    )
    alpha = model.vision_tower.embeddings.alpha_embedding.weight
    before = alpha.detach().clone()
    trainer.train()
    hook.remove()
    assert not alpha.equal(before)
    return arrived


def assert_arrived(arrived: list[torch.Tensor], repeats: int = 1) -> None:
    """The masks of both regions, in any order, at each of two steps."""
    expected = given_masks()
    assert len(arrived) == 2
    for masks in arrived:
        assert len(masks) == 2 * repeats
        for mask in expected:
            assert sum(bool((mask == each).all()) for each in masks) == repeats


@pytest.mark.parametrize(
    ("form", "options"),
    [("messages", {}), ("messages", {"assistant_only_loss": True}), ("completion", {})],
    ids=["messages", "assistant only", "prompt and completion"],
)
def test_sft_sees_the_regions(form: str, options: dict[str, Any], tmp_path: Path) -> None:
    trainer = example("trl_sft").make_trainer(str(TINY), str(tmp_path), form, **OPTIONS, **options)
    batch = next(iter(trainer.get_train_dataloader()))
    learned = [trainer.processing_class.decode(labels[labels != -100]) for labels in batch["labels"]]
    if form == "completion" or options:
        assert sorted(learned) == ["blue<|end|>", "red<|end|>"]
    assert_arrived(trained(trainer))


def test_dpo_sees_the_regions(tmp_path: Path) -> None:
    trainer = example("trl_dpo").make_trainer(str(TINY), str(tmp_path), **OPTIONS)
    assert_arrived(trained(trainer), repeats=2)


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_rewarded_answers_are_about_the_regions(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While answers are drawn, where they are scored against a reference, and where they are learned from."""
    module = example("trl_grpo")
    # Rewards that differ in a group, so that there is something to learn.
    monkeypatch.setattr(module, "names_the_color", lambda completions, **_: list(map(float, range(len(completions)))))
    trainer = module.make_trainer(str(TINY), str(tmp_path), method, beta=0.1, **OPTIONS)
    arrived: list[torch.Tensor] = []
    learning = []

    def look(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        arrived.append(inputs["mask_values"].detach().clone())
        learning.append(torch.is_grad_enabled())

    tower = trainer.model.model.vision_tower
    tower.register_forward_pre_hook(look, with_kwargs=True)
    alpha = tower.embeddings.alpha_embedding.weight
    before = alpha.detach().clone()
    trainer.train()
    assert not alpha.equal(before)
    assert sum(learning) == 2 and len(arrived) >= 4
    for masks in arrived:
        for mask in given_masks():
            assert sum(bool((mask == each).all()) for each in masks) == 2


def test_trainer_that_hands_on_some_inputs_only_is_an_error(tmp_path: Path) -> None:
    trainer = example("trl_grpo").make_trainer(str(TINY), str(tmp_path), **OPTIONS)
    trainer.processing_class.image_processor.do_pack = False
    with pytest.raises(ValueError, match="do_pack"):
        trainer.train()
