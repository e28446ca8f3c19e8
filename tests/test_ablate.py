"""The ablation at a size at which it shows nothing: what is built, what trains, what is kept, what the table says."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model
from training_data import write_checkpoint, write_records
from typer.testing import CliRunner

from finecaption_hf.asking import load
from finecaption_hf.cli import app
from finecaption_hf.evaluation.ablation import (
    CONFIGURATIONS,
    ablate,
    ablated,
    read_results,
    stages_of,
    summarise,
    to_markdown,
    write_report,
)
from finecaption_hf.resuming import ResumeError
from finecaption_hf.training.recipes import Recipe, read_recipe
from finecaption_hf.training.stages import STAGES, Stage, StageError

OPTIONS = {"max_steps": 2, "use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no"}
EVERYTHING = replace(STAGES[3], global_batch_size=2, learning_rate=1e-3)
ADAPTER, ALPHA = "model.adapter.", "alpha_embedding"


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory, embedded: Any) -> Recipe:
    folder = tmp_path_factory.mktemp("ablation")
    model = write_checkpoint(folder / "model", embedded[1])
    data = write_records(folder / "train", 6)
    return Recipe(stages=(EVERYTHING,), model=str(model), data={"records": str(data)})


# --- what is built and what trains -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configuration_has_its_parts_of_the_start_a_fresh_adapter_and_no_alpha(name: str) -> None:
    start = tiny_model()
    model = ablated(start, CONFIGURATIONS[name], seed=1)
    given, own = start.state_dict(), model.state_dict()
    for key, value in own.items():
        if ALPHA in key:
            assert not value.any() and given[key].any()
        elif key.startswith(ADAPTER):
            assert key.endswith("bias") or not torch.equal(value, given[key][tuple(map(slice, value.shape))])
        else:
            assert torch.equal(value, given[key])
    parts = {"vision_tower": True, "convnext_tower": "convnext" in name or "both" in name}
    parts["sam_tower"] = "sam" in name or "both" in name
    for part, present in parts.items():
        assert any(key.startswith(f"model.{part}.") for key in own) == present
    assert any(ALPHA in key for key in own) == (name != "clip")

    def adapter(seed: int) -> torch.Tensor:
        weights = ablated(start, CONFIGURATIONS[name], seed).model.adapter.parameters()
        return torch.cat([weight.flatten() for weight in weights])

    assert torch.equal(adapter(1), adapter(1)) and not torch.equal(adapter(1), adapter(2))


def test_start_without_a_tower_is_refused() -> None:
    with pytest.raises(StageError, match=r"use_sam=false\. Start from a checkpoint that has every tower"):
        ablated(tiny_model(use_sam=False), CONFIGURATIONS["mask-both"], 0)
    assert ablated(tiny_model(use_sam=False), CONFIGURATIONS["mask-convnext"], 0).config.use_convnext


def names_of(configuration: str) -> list[str]:
    model = ablated(tiny_model(), CONFIGURATIONS[configuration], 0)
    return [name for name, _ in model.named_parameters()]


def test_stages_lose_what_a_configuration_lacks() -> None:
    everything = names_of("mask-both")
    towers = Stage(name="towers", trains=("model.sam_tower.*", "model.adapter.*"), learning_rate=1e-3)
    stages = (STAGES[1], STAGES[2], towers, STAGES[3])
    assert stages_of(stages, everything, everything) == stages
    for name in CONFIGURATIONS:
        left = {stage.name: stage for stage in stages_of(stages, names_of(name), everything)}
        assert ("alpha_convolution" in left) == (name != "clip")
        assert ("model.sam_tower.*" in left["towers"].trains) == (name in ("mask-sam", "mask-both"))
        for stage in left.values():
            assert stage.select(names_of(name))
    # A count is that of the whole model.
    counted = replace(towers, num_tensors=len(towers.select(everything)))
    assert stages_of((counted,), everything, everything) == (counted,)
    assert stages_of((counted,), names_of("mask"), everything)[0].num_tensors is None
    with pytest.raises(StageError, match="No stage of the recipe trains anything"):
        stages_of((STAGES[2],), names_of("clip"), everything)
    with pytest.raises(StageError, match="matches none of the model's"):
        stages_of((replace(towers, trains=("model.typo.*",)),), everything, everything)


def test_packaged_recipe_is_that_of_the_results() -> None:
    (stage,) = read_recipe("ablation-tiny").stages
    assert (stage.trains, stage.learning_rate, stage.global_batch_size) == (("*",), 8e-4, 12)
    assert (stage.training["max_steps"], stage.training["warmup_steps"]) == (120, 12)


# --- runs ------------------------------------------------------------------------------------------------------------


class Judge:
    """A number that every weight decides; may fail, as an interruption does."""

    def __init__(self, fail: bool = False) -> None:
        self.fail = fail
        self.folders: list[str] = []

    def __call__(self, model: Any, processor: Any, folder: Path) -> dict[str, Any]:
        self.folders.append("/".join(folder.parts[-2:]))
        if self.fail:
            raise KeyboardInterrupt
        with torch.no_grad():
            total = sum(float(parameter.double().abs().sum()) for parameter in model.parameters())
        return {"values": {"Color": total, "Shape": total / 2}, "model_mask": model.config.use_mask}


def run(recipe: Recipe, output: Path, judge: Judge, **changes: Any) -> list[dict[str, Any]]:
    given = {"judged_on": {"test": 1}, "seeds": (0, 1), "configurations": ("clip", "mask-both"), "options": OPTIONS}
    return ablate(recipe, output, judge, device="cpu", **{**given, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def done(setting: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], Judge]:
    folder, judge = tmp_path_factory.mktemp("runs"), Judge()
    return folder, run(setting, folder, judge), judge


def test_every_configuration_and_seed_is_trained_judged_kept_and_not_done_again(done: Any, setting: Recipe) -> None:
    folder, results, judge = done
    # One seed of every configuration before the next seed; results in the order of configurations.
    runs = [f"{name}/seed-{seed}" for seed in (0, 1) for name in ("clip", "mask-both")]
    assert judge.folders == runs
    order = [(it["configuration"], it["seed"], it["model_mask"]) for it in results]
    assert order == [("clip", 0, False), ("clip", 1, False), ("mask-both", 0, True), ("mask-both", 1, True)]
    assert read_results(folder) == results
    assert len({it["values"]["Color"] for it in results}) == 4
    assert all(it["trained_stages"] == ["everything"] and it["parameters"] > 0 for it in results)
    files = {path.name for path in folder.rglob("*") if path.is_file()}
    assert files == {"result.json", "made_with.json"}  # no weights
    again = Judge()
    assert run(setting, folder, again) == results and again.folders == []
    (folder / runs[3] / "result.json").unlink()
    repeated = run(setting, folder, again)
    assert again.folders == runs[3:]
    assert repeated[3]["values"] == results[3]["values"]  # the same weights, from the same seed


def test_interrupted_run_goes_on_after_its_training(setting: Recipe, tmp_path: Path, done: Any) -> None:
    one = {"seeds": (0,), "configurations": ("clip",), "keep_models": True}
    with pytest.raises(KeyboardInterrupt):
        run(setting, tmp_path, Judge(fail=True), **one)
    final = tmp_path / "clip" / "seed-0" / "training" / "final"
    before = {path.name: path.stat().st_mtime_ns for path in final.iterdir()}
    (found,) = run(setting, tmp_path, Judge(), **one)
    assert {path.name: path.stat().st_mtime_ns for path in final.iterdir()} == before
    assert found["values"] == done[1][0]["values"]
    model, processor = load(final, device="cpu")  # kept, complete, with a processor that fits
    assert not model.config.use_mask and not processor.image_processor.do_mask
    assert not (tmp_path / "clip" / "seed-0" / "start").exists()


@pytest.mark.parametrize("what", ["options", "judged_on", "stages"])
def test_result_that_was_made_in_another_way_is_refused(done: Any, setting: Recipe, what: str) -> None:
    folder, results, _ = done
    changes: dict[str, Any] = {"options": {**OPTIONS, "max_steps": 3}, "judged_on": {"test": 2}}
    recipe = replace(setting, stages=(replace(EVERYTHING, learning_rate=1.0),)) if what == "stages" else setting
    with pytest.raises(ResumeError, match=rf"another command\. {what}: [\w: ]+ was .* now it is .* another --output"):
        run(recipe, folder, Judge(), **{what: changes[what]} if what in changes else {})
    with pytest.raises(StageError, match=f"Runs with different {what}"):
        summarise([results[0], {**results[1], "made_with": {**results[1]["made_with"], what: "other"}}])


def test_nothing_to_do_raises(setting: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageError, match=r"no configuration 'dino'\. There are: clip, mask"):
        run(setting, tmp_path, Judge(), configurations=("dino",))
    with pytest.raises(StageError, match="at least one configuration and one seed"):
        run(setting, tmp_path, Judge(), seeds=())
    with pytest.raises(StageError, match="no model to start from"):
        run(replace(setting, model=None), tmp_path, Judge())
    with pytest.raises(StageError, match="holds no finished run"):
        read_results(tmp_path)
    with monkeypatch.context() as patches:
        patches.setitem(sys.modules, "scipy.stats", None)
        with pytest.raises(ImportError, match="need scipy"):
            run(setting, tmp_path, Judge())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(StageError, match="one process"):
        run(setting, tmp_path, Judge())


# --- table and plot --------------------------------------------------------------------------------------------------


def result(name: str, seed: int, color: float, shape: float) -> dict[str, Any]:
    return {
        "configuration": name,
        "seed": seed,
        "values": {"Color": color, "Shape": shape},
        "made_with": {"configuration": name, "seed": seed, "model": "m"},
    }


RESULTS = [
    *(result("clip", seed, 0.1 * seed, 0.5) for seed in (1, 2, 3)),
    *(result("mask", seed, 0.1 * seed + 0.4, 0.5) for seed in (1, 2, 3)),
    result("mask-sam", 1, 0.9, 0.9),
]


def test_table_has_means_and_students_intervals_over_seeds() -> None:
    summary = summarise(RESULTS)
    color = summary["table"]["Color"]["clip"]
    # Mean 0.2, standard deviation 0.1, three seeds: t is 4.3027 with two degrees of freedom.
    assert (color["mean"], color["half_width"]) == pytest.approx((0.2, 4.3027 * 0.1 / 3**0.5), abs=1e-4)
    assert summary["table"]["mean of all"]["mask"]["mean"] == pytest.approx((0.6 + 0.5) / 2)
    assert summary["table"]["Shape"]["mask-sam"]["half_width"] is None
    # Paired by seed, the difference is the same every time; only the first seed has all three.
    first, second = summary["steps"]
    assert (first["from"], first["to"]) == ("clip", "mask")
    assert (first["mean"], first["half_width"]) == pytest.approx((0.2, 0), abs=1e-6)
    assert (second["from"], second["to"], second["values"]) == ("mask", "mask-sam", [pytest.approx(0.4)])
    text = to_markdown(summary)
    assert "| question | CLIP | + mask | + mask + SAM |" in text
    assert "| Color | 0.200 ± 0.248 | 0.600 ± 0.248 | 0.900 |" in text
    assert "| CLIP to + mask | 0.200 ± 0.000 |" in text


def test_report_is_table_numbers_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_report(RESULTS, tmp_path, "exact answers")
    assert [path.name for path in written] == ["ablation.json", "ablation.md", "ablation.png"]
    assert json.loads(written[0].read_text())["seeds"] == [1, 2, 3]
    assert written[2].read_bytes().startswith(b"\x89PNG") and written[2].stat().st_size > 5000
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    assert [path.name for path in write_report(RESULTS, tmp_path, "x")] == ["ablation.json", "ablation.md"]


# --- the command -----------------------------------------------------------------------------------------------------


def command(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["ablate", *map(str, arguments)])


def short_run(setting: Recipe, output: Path, *arguments: object) -> Any:
    given = ("--output", output, "--model", setting.model, "--data", setting.data["records"], "--device", "cpu")
    options = ("--max-steps", 1, "--per-device-train-batch-size", 2, "--gradient-accumulation-steps", 1)
    return command(*given, *options, "--seeds", 1, "--dataloader-num-workers", 0, *arguments)


def test_command_trains_scores_on_scenes_and_draws(setting: Recipe, tmp_path: Path) -> None:
    ran = short_run(setting, tmp_path, "--scenes", 1, "--configuration", "clip", "--configuration", "mask")
    assert ran.exit_code == 0, ran.output
    assert "| question | CLIP | + mask |" in ran.output and "| Color |" in ran.output
    assert (tmp_path / "ablation.png").is_file()
    scored = json.loads((tmp_path / "mask" / "seed-0" / "result.json").read_text())
    assert scored["scenes"] == 1 and scored["split"] == "test" and "values" in scored
    table = (tmp_path / "ablation.md").read_text()
    (tmp_path / "ablation.md").unlink()
    assert command("--output", tmp_path, "--report-only").exit_code == 0
    assert (tmp_path / "ablation.md").read_text() == table


def test_command_judges_by_a_metric_on_described_regions(setting: Recipe, tmp_path: Path) -> None:
    held_out = write_records(tmp_path / "test", 2, seed=1, whole=False)
    output, only = tmp_path / "out", ("--configuration", "mask")
    ran = short_run(setting, output, *only, "--eval-data", held_out, "--metric", "rouge_l")
    assert ran.exit_code == 0, ran.output
    folder = output / "mask" / "seed-0"
    values = json.loads((folder / "result.json").read_text())["values"]
    report = json.loads((folder / "report.json").read_text())
    assert values == {row["name"]: row["metrics"]["rouge_l"]["value"] for row in report["by_attribute"]}
    assert "Color" in values and all(0 <= value <= 100 for value in values.values())
    assert (folder / "predictions.jsonl").is_file()
    refused = short_run(setting, output, *only, "--scenes", 1)
    assert refused.exit_code == 2 and "another command. judged_on: " in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "nothing"], "There is no file or packaged recipe 'nothing'"),
        (["--configuration", "dino"], "no configuration 'dino'"),
        (["--report-only"], "holds no finished run"),
        (["--max-stps", "3"], "Did you mean --max-steps?"),
        ([], "no model to start from"),
    ],
)
def test_command_ends_in_one_line_on_wrong_input(arguments: list[str], message: str, tmp_path: Path) -> None:
    found = command("--output", tmp_path, *arguments)
    assert found.exit_code == 2
    assert message in found.stderr and len(found.stderr.strip().splitlines()) == 1
