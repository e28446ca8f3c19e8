"""Adapters of peft: around a model, several by name, and as folders that stand for a checkpoint."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import EXAMPLE_PICTURE
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from typer.testing import CliRunner

from finecaption_hf import EMBEDDED_CHECKPOINT
from finecaption_hf.asking import FineCaptionDescriber, ask, load
from finecaption_hf.asking.loading import load_processor
from finecaption_hf.cli import app as cli
from finecaption_hf.pipeline_finecaption import RegionCaptioningPipeline

# peft asks transformers 5.24 by a name of 5.19.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LAYERS = r".*language_model.*\.(q|v|down)_proj|.*adapter\.linear_\d|.*vision_tower.*\.fc1"
REGIONS = [{"box_xyxy": [5, 35, 85, 88]}, {"box_xyxy": [2, 2, 40, 30]}]
QUESTIONS = ["color", "shape", "What is it?"]


def config_of(**options: Any) -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=32, target_modules=LAYERS, init_lora_weights=False, **options)


@pytest.fixture(scope="module")
def adapted(embedded: Any) -> PeftModel:
    """The embedded checkpoint with a LoRA and a DoRA, both of which change answers."""
    model = get_peft_model(copy.deepcopy(embedded[0]), config_of(), "plain")
    model.add_adapter("dora", config_of(use_dora=True))
    return model.eval()


def merged(adapted: PeftModel, name: str) -> Any:
    return copy.deepcopy(adapted).merge_and_unload(adapter_names=[name]).eval()


def answers(model: Any, processor: Any) -> Any:
    describer = FineCaptionDescriber(model, processor)
    assert describer.fallback_reason is None
    return ask(describer, EXAMPLE_PICTURE, REGIONS, QUESTIONS, max_new_tokens=8)


def test_adapters_answer_by_name_as_if_they_were_merged(adapted: PeftModel, embedded: Any) -> None:
    processor = embedded[1]
    expected = {name: answers(merged(adapted, name), processor) for name in ("plain", "dora")}
    base = answers(embedded[0], processor)
    assert expected["plain"] != base != expected["dora"] != expected["plain"]
    describer = FineCaptionDescriber(adapted, processor)
    seen = []
    for name in ("plain", "dora", "plain"):
        adapted.set_adapter(name)
        assert ask(describer, EXAMPLE_PICTURE, REGIONS, QUESTIONS, max_new_tokens=8) == expected[name]
        seen.append(describer.settings)
        assert seen[-1]["adapters"] == [name]
    assert seen[0] == seen[2] != seen[1]
    with adapted.disable_adapter():
        assert ask(describer, EXAMPLE_PICTURE, REGIONS, QUESTIONS, max_new_tokens=8) == base
        assert "adapters" not in describer.settings


def test_pipelines_take_a_model_with_adapters(adapted: PeftModel, embedded: Any) -> None:
    processor = embedded[1]
    adapted.set_adapter("dora")
    expected = answers(merged(adapted, "dora"), processor)
    for pipeline in (adapted.as_pipeline(processor), RegionCaptioningPipeline(model=adapted, processor=processor)):
        assert pipeline(EXAMPLE_PICTURE, REGIONS, QUESTIONS, max_new_tokens=8) == expected


def test_learned_prompts_are_refused_by_name(embedded: Any, tmp_path: Path) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2, token_dim=8, num_layers=1)
    config.num_transformer_submodules, config.num_attention_heads = 1, 1
    model = get_peft_model(copy.deepcopy(embedded[0]), config)
    with pytest.raises(ValueError, match=r"PROMPT_TUNING.*LoRA"):
        FineCaptionDescriber(model, embedded[1])
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="learned prompts"):
        load(tmp_path, device="cpu")


@pytest.fixture(scope="module")
def folder(adapted: PeftModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As peft saves the adapter of a model that came from the embedded checkpoint."""
    path = tmp_path_factory.mktemp("adapter")
    adapted.peft_config["dora"].base_model_name_or_path = str(EMBEDDED_CHECKPOINT)
    adapted.save_pretrained(path, selected_adapters=["dora"])
    return path / "dora"


def test_folder_of_an_adapter_stands_for_a_checkpoint(adapted: PeftModel, embedded: Any, folder: Path) -> None:
    expected = answers(merged(adapted, "dora"), embedded[1])
    model, processor = load(folder, device="cpu")
    assert not isinstance(model, PeftModel) and all(it.requires_grad for it in model.parameters())
    assert answers(model, processor) == expected
    assert answers(*load(device="cpu", adapter=folder)) == expected
    assert load_processor(folder).questions == embedded[1].questions
    boxes = [argument for it in REGIONS for argument in ("--box", ",".join(map(str, it["box_xyxy"])))]
    command = ["caption", str(EXAMPLE_PICTURE), *boxes, "--attribute", "shape", "--json", "--device", "cpu"]
    result = CliRunner().invoke(cli, [*command, "--max-new-tokens", "8", "--model", str(folder)])
    assert result.exit_code == 0, result.output
    for found, record in zip(json.loads(result.stdout), expected, strict=True):
        assert found["answers"]["Shape"] == record["answers"]["Shape"]


def test_adapter_brings_its_own_processor(embedded: Any, folder: Path, tmp_path: Path) -> None:
    own = copy.deepcopy(embedded[1])
    own.questions = {"wear": "Is it worn?"}
    own.save_pretrained(tmp_path)
    for path in folder.glob("adapter_*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert load(tmp_path, device="cpu")[1].questions == load_processor(tmp_path).questions == own.questions


def test_adapter_without_its_checkpoint_says_what_to_do(folder: Path, tmp_path: Path) -> None:
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(tmp_path / "gone")
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(FileNotFoundError, match=r"gone, which is not there. Put .* base_model_name_or_path"):
        load(tmp_path, device="cpu")


def test_demo_takes_an_adapter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio", reason="gradio (the extra demo) is not installed")
    from finecaption_hf.demo import app

    built: list[Any] = []
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setattr(app, "build_demo", lambda models, **options: built.append(models))
    monkeypatch.setattr(app, "launch_demo", lambda demo, **options: options["on_start"]("http://here/"))
    result = CliRunner().invoke(cli, ["demo", "--device", "cpu", "--adapter", str(folder)])
    assert result.exit_code == 0, result.output
    (models,) = built
    assert models.offered[models.first].options["adapter"] == str(folder)
    with models.using(models.first) as describer:
        assert answers(describer.model, describer.processor) == answers(*load(folder, device="cpu"))
