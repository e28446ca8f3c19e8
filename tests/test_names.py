"""A name that is none of a closed list is refused with the nearest one, and with all that there are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finecaption_hf.asking import load_describer
from finecaption_hf.asking.describers.boxes import write_box
from finecaption_hf.asking.describers.referral import read_referral
from finecaption_hf.asking.describers.settings import check_options
from finecaption_hf.asking.loading import usable_device
from finecaption_hf.assembly import assemble
from finecaption_hf.assembly.cost import read_config
from finecaption_hf.data import Keys, ReadOptions, open_regions, read_examples
from finecaption_hf.data.annotations import open_annotations
from finecaption_hf.data.boxes import as_box_format
from finecaption_hf.describing.outputs import name_output
from finecaption_hf.drawing import draw_regions
from finecaption_hf.evaluation.ablation import ablate
from finecaption_hf.evaluation.comparators import read_table
from finecaption_hf.evaluation.comparators.paper import cited_row
from finecaption_hf.evaluation.diagnosing import diagnostic_names
from finecaption_hf.evaluation.diagnostics import run_diagnostics
from finecaption_hf.evaluation.metrics import CaptionScorer
from finecaption_hf.prompts_finecaption import nearest
from finecaption_hf.scenes import render_scene
from finecaption_hf.scenes.scoring import score_scenes
from finecaption_hf.training.arguments import build_arguments, parse_options
from finecaption_hf.training.recipes import Recipe, read_recipe
from finecaption_hf.training.stages import STAGES, Stage, find_stage

PICTURE = Image.new("RGB", (8, 8))
RECIPE = Recipe(stages=(STAGES[1],))


def _table(text: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        (folder / "table.yaml").write_text(f"rows: [{{name: A, {text}}}]")
        return read_table(folder / "table.yaml")

    return read


def _label_map(folder: Path) -> Any:
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(folder / "a_mask.png")
    return open_annotations(folder, ReadOptions(format="label-map", label_map="indx"))


def _recipe(folder: Path) -> Any:
    (folder / "recipe.yaml").write_text("stagse: []")
    return read_recipe(folder / "recipe.yaml")


CASES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "referral": (lambda _: read_referral("box-drawn"), "box_drawn"),
    "referral's option": (lambda _: read_referral({"kind": "box_drawn", "colour": "red"}), "color"),
    "referral's color": (lambda _: read_referral({"kind": "box_drawn", "color": "yelow"}), "yellow"),
    "box format in words": (lambda _: write_box((0, 0, 4, 4), (8, 8), "pixel"), "pixels"),
    "describer": (lambda _: load_describer("m", describer="describe_anythin"), "describe_anything"),
    "describer's option": (lambda _: check_options({"devise": "cpu"}, {"device": (str,)}, "it"), "device"),
    "device": (lambda _: usable_device("cdua"), "cuda"),
    "annotation format of regions": (lambda _: open_regions("x", format="cocoo"), "coco"),
    "annotation format of examples": (lambda _: read_examples("x", "osprei"), "osprey"),
    "annotation format": (lambda _: open_annotations(Path("x"), ReadOptions(format="labelmee")), "labelme"),
    "what happens to bad examples": (lambda _: read_examples("x", on_error="skipp"), "skip"),
    "rule of label maps": (_label_map, "index"),
    "box format of data": (lambda _: as_box_format("xyxyy"), "xyxy"),
    "field of a mapping": (lambda _: Keys().changed({"anwser": "text"}), "answer"),
    "style": (lambda _: draw_regions(PICTURE, [], style="spotligth"), "spotlight"),  # type: ignore[arg-type]
    "output format": (lambda _: name_output(Path("x"), "parquett"), "parquet"),
    "diagnostic": (lambda _: diagnostic_names("consistensy"), "consistency"),
    "diagnostic of a model": (lambda _: run_diagnostics(None, [], ["maskk"]), "mask"),  # type: ignore[arg-type]
    "metric": (lambda _: CaptionScorer(["rouge"]), "rouge_l"),
    "tokenizer": (lambda _: CaptionScorer(["rouge_l"], tokenizer="pyton"), "python"),  # type: ignore[arg-type]
    "table": (lambda _: read_table("tabel2"), "table2"),
    "table's kind": (_table("kind: transformer, model: a/b, referral: crop"), "transformers"),
    "table's key": (_table("kind: transformers, modle: a/b, referral: crop"), "model"),
    "table's box format": (
        _table("kind: transformers, model: a/b, referral: crop, options: {box_format: pixel}"),
        "pixels",
    ),
    "table's describer": (_table("kind: describer, model: a/b, referral: mask, options: {describer: ospry}"), "osprey"),
    "cited model": (lambda _: cited_row("FineCaption-8"), "FineCaption-8B"),
    "configuration": (
        lambda out: ablate(RECIPE, out, None, judged_on={}, configurations=["mask_sam"]),  # type: ignore[arg-type]
        "mask-sam",
    ),
    "stage": (lambda _: find_stage("adaptor"), "adapter"),
    "field of a stage": (lambda _: Stage.from_dict({"stage": 1, "lerning_rate": 1}), "learning_rate"),
    "recipe": (lambda _: read_recipe("finecaption-tini"), "finecaption-tiny"),
    "field of a recipe": (_recipe, "stages"),
    "option of loading": (lambda _: Recipe(stages=(STAGES[1],), model_options={"dtyp": "auto"}), "dtype"),
    "option of TrainingArguments": (lambda _: parse_options(["--lerning-rate", "1"]), "--learning-rate"),
    "TrainingArguments of a recipe": (
        lambda out: build_arguments(STAGES[1], str(out), {"lerning_rate": 1}, {}, False),
        "learning_rate",
    ),
    "split of scenes": (lambda _: render_scene(0, split="tset"), "test"),  # type: ignore[arg-type]
    "question of scenes": (lambda _: score_scenes(None, n=1, names=("Colour",)), "Color"),
    "part to leave away": (lambda out: assemble(out / "a", tokenizer="x", without={"convnet"}), "convnext"),
    "field to assemble": (lambda out: assemble(out / "a", tokenizer="x", config={"use_msak": 1}), "use_mask"),
    "dtype to assemble": (lambda out: assemble(out / "a", tokenizer="x", dtype="bfloat"), "bfloat16"),
    "field of --set": (lambda _: read_config(None, ["use_msak=false"]), "use_mask"),
    "part of --set": (lambda _: read_config(None, ["txt_config.hidden_size=8"]), "text_config"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_unknown_name_is_refused_with_the_nearest(case: str, tmp_path: Path) -> None:
    call, meant = CASES[case]
    with pytest.raises(ValueError, match=rf"Did you mean '?{meant}"):
        call(tmp_path)


def test_question_of_a_processor_too(embedded: Any) -> None:
    with pytest.raises(ValueError, match=r"no task or attribute 'colour'\. Did you mean 'Color'"):
        embedded[1].question("colour")


def test_what_is_like_nothing_has_no_nearest() -> None:
    assert nearest("zzz", ["region", "dense"]) is None
