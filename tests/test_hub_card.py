"""Model cards: what they say follows from a checkpoint's files, and the check finds what the Hub would refuse."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from test_hub_push import report

import finecaption_hf
from finecaption_hf.evaluation.report.card import card_row, eval_results
from finecaption_hf.hub import Evaluation, HubError, Provenance, check_card, model_card, read_provenance

TINY = finecaption_hf.EMBEDDED_CHECKPOINT

PARTS = [
    {"option": "clip", "role": "configuration of the mask-aware CLIP tower", "source": "some/clip", "licence": "other"},
    {
        "option": "alpha_clip",
        "role": "mask-aware CLIP tower with its mask input",
        "source": "alpha.pth",
        "licence": None,
        "from_hub": False,
    },
    {"option": "sam", "role": "SAM tower", "source": "some/sam", "licence": "apache-2.0"},
    {"option": "llm", "role": "language model", "source": "meta/Llama-3.1-8B", "licence": "llama3.1"},
]


def assembly(*options: str) -> dict[str, Any]:
    parts = [{"from_hub": True, "revision": "0" * 40, **part} for part in PARTS if part["option"] in options]
    return {"parts": parts, "initialised": [{"what": "adapter", "tensors": 4, "parameters": 10}]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The embedded checkpoint without its own card."""
    return Path(shutil.copytree(TINY, tmp_path / "start", ignore=shutil.ignore_patterns("README.md", "__pycache__")))


def stage(folder: Path, name: str, origin: str, data: dict[str, Any], steps: int = 100) -> Path:
    """What training leaves: `final` with its record, and what the stage was started with beside it."""
    final = folder / "final"
    final.mkdir(parents=True)
    values = {"name": name, "trains": ["model.adapter.*"], "learning_rate": 2e-5, "data": {}, "peft": None}
    (final / "stage.json").write_text(json.dumps({"stage": values, "global_step": steps, "files": {}}))
    (folder / "run.json").write_text(json.dumps({"stage": values, "model": origin, "data": data}))
    return final


def fields_of(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def evaluation() -> Evaluation:
    values = report()
    table = {"columns": ["swap", "change"], "rows": [["other|region", "-1.25 (-1.40 to -1.10)"]]}
    values["diagnostics"] = [{"title": "Use of the mask", "table": table, "notes": ["Nats per token."], "values": {}}]
    return Evaluation(values, card_row(values), eval_results(values))


# --- where it comes from ---------------------------------------------------------------------------------------------


def test_stages_are_followed_back_to_the_parts_and_no_path_is_told(folder, tmp_path):
    (folder / "assembly.json").write_text(json.dumps(assembly("alpha_clip", "llm")))
    places = {"llava": {"path": str(tmp_path / "pretrain.json")}}
    stage(tmp_path / "run/1-adapter", "adapter", str(folder), places)
    final = stage(tmp_path / "run/2-all", "all", "../1-adapter/final", {"compositioncap": {"path": "/x"}}, 250)
    found = read_provenance(final)
    assert [entry["name"] for entry in found.stages] == ["adapter", "all"]
    assert [entry["steps"] for entry in found.stages] == [100, 250]
    assert found.data == ["llava", "compositioncap"]
    assert [part["source"] for part in found.parts] == ["alpha.pth", "meta/Llama-3.1-8B"]
    assert found.base_models == ["meta/Llama-3.1-8B"]
    assert found.initialised == ["adapter"]
    assert str(tmp_path) not in found.to_json() + model_card(folder, "me/x", found)


def test_what_was_pushed_is_read_again_and_a_later_stage_adds_to_it(folder, tmp_path):
    (folder / "assembly.json").write_text(json.dumps(assembly("llm")))
    first = read_provenance(folder)
    (folder / "provenance.json").write_text(first.to_json())
    assert read_provenance(folder) == first
    files = {("you/base", "provenance.json"): folder / "provenance.json"}
    final = stage(tmp_path / "run", "all", "you/base", {"scenes": {"path": "/x"}})
    second = read_provenance(final, lambda repo, name: files.get((repo, name)))
    assert second.base_models == ["you/base"] and second.parts == first.parts
    assert second.licences() == first.licences()
    (folder / "provenance.json").write_text('{"format": 7}')
    with pytest.raises(HubError, match=r"provenance\.json is not of a kind that this version reads"):
        read_provenance(folder)


def test_without_any_record_the_card_says_that_nothing_is_known(folder):
    card = model_card(folder, "me/x", read_provenance(folder))
    assert fields_of(card)["license"] == "unknown"
    for sentence in (
        "do not say what its parts were initialised from",
        "record no training",
        "No evaluation is recorded",
        "do not say what terms",
    ):
        assert sentence in card


# --- licences --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "data", "stated"),
    [
        (["sam"], [], "apache-2.0"),
        (["clip", "sam"], [], "apache-2.0"),  # CLIP gives its configuration alone, whatever its licence
        (["sam", "llm"], [], "llama3.1"),
        (["sam", "llm"], ["CompositionCap-train"], "noncommercial-research"),
        (["alpha_clip", "llm"], ["compositioncap"], "research-only"),
    ],
)
def test_the_strictest_licence_of_parts_and_data_is_stated(folder, options, data, stated):
    (folder / "assembly.json").write_text(json.dumps(assembly(*options)))
    found = read_provenance(folder)
    trained = {"name": "all", "trains": ["*"], "learning_rate": 1e-5, "steps": 1, "data": data}
    found = Provenance(**{**vars(found), "stages": [trained]})
    card = model_card(folder, "me/x", found)
    fields = fields_of(card)
    if fields["license"] == "other":
        assert fields["license_name"] == stated
        assert fields["license_link"] == "https://huggingface.co/me/x#licences" and "## Licences" in card
    else:
        assert fields["license"] == stated
    assert f"**{stated}**" in card
    # Every term stands there, not the strictest alone.
    for term in found.licences():
        assert f"| {term.of} | {term.name} |" in card
    assert ("Built with Llama" in card) == ("llm" in options)


def test_a_part_of_unknown_licence_is_not_called_permissive(folder):
    summary = assembly("sam")
    summary["parts"][0]["licence"] = None
    (folder / "assembly.json").write_text(json.dumps(summary))
    card = model_card(folder, "me/x", read_provenance(folder))
    assert fields_of(card)["license_name"] == "not-stated-by-all-parts"
    assert fields_of(model_card(folder, "me/x", read_provenance(folder), licence="mit"))["license"] == "mit"


def test_a_stated_licence_cannot_be_looser_than_a_part(folder):
    (folder / "assembly.json").write_text(json.dumps(assembly("llm")))
    found = read_provenance(folder)
    with pytest.raises(HubError, match=r"'apache-2\.0' is looser than the terms of language model .*llama3\.1"):
        model_card(folder, "me/x", found, licence="apache-2.0")
    assert fields_of(model_card(folder, "me/x", found, licence="cc-by-nc-4.0"))["license"] == "cc-by-nc-4.0"
    with pytest.raises(HubError, match="'my own' is no licence that the Hub lists"):
        model_card(folder, "me/x", found, licence="my own")
    (folder / "README.md").write_text((TINY / "README.md").read_text())  # which states apache-2.0
    with pytest.raises(HubError, match="is looser than"):
        model_card(folder, "me/x", found)


# --- the text --------------------------------------------------------------------------------------------------------


def test_the_card_of_a_trained_and_evaluated_checkpoint_has_all_that_is_known(folder, tmp_path):
    (folder / "assembly.json").write_text(json.dumps(assembly("alpha_clip", "sam", "llm")))
    final = stage(tmp_path / "run", "everything", str(folder), {"scenes": {"path": "/x"}}, 2000)
    card = model_card(folder, "me/fine", read_provenance(final), evaluation=evaluation())
    assert check_card(card) == []
    assert "| SAM tower | some/sam | " in card
    assert "| everything | `model.adapter.*` | 2e-05 | 2,000 | scenes |" in card
    assert "87.11 (86.71 to 87.51)" in card and f"`{report()['signature']}`" in card
    assert "### Use of the mask" in card and "| other\\|region | -1.25 (-1.40 to -1.10) |" in card
    count = sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
    assert f"{count:,} parameters, saved as F32." in card
    assert "84 px, ConvNeXt and SAM at 256 px; a region becomes 64 image tokens" in card
    assert "untrained" not in card
    # The Hub's own reader gets the same out of it.
    read = ModelCard(card)
    (result,) = read.data.eval_results
    assert read.data.model_name == "fine" and read.data.base_model == ["some/sam", "meta/Llama-3.1-8B"]
    assert (result.metric_value, result.dataset_name) == (87.11, "scenes")
    assert result.metric_args["interval_95"] == [86.71, 87.51]


def test_an_assembled_checkpoint_is_called_untrained(folder):
    (folder / "assembly.json").write_text(json.dumps(assembly("sam")))
    assert "**It is untrained as a whole**" in model_card(folder, "me/x", read_provenance(folder))


def test_a_generated_card_is_made_anew_and_an_own_one_is_kept(folder):
    found = read_provenance(folder)
    card = model_card(folder, "me/x", found)
    (folder / "README.md").write_text(card)
    assert "87.11" in model_card(folder, "me/x", found, evaluation=evaluation()).split("---\n", 2)[2]
    own = (TINY / "README.md").read_text()
    (folder / "README.md").write_text(own)
    kept = model_card(folder, "me/x", found, evaluation=evaluation())
    assert kept.split("---\n", 2)[2].strip() == own.split("---\n", 2)[2].strip()
    assert fields_of(kept)["model-index"][0]["results"][0]["metrics"][0]["value"] == 87.11
    (folder / "README.md").write_text("# Mine\n\nNo front matter.\n")
    with pytest.raises(HubError, match=r"library_name is None.*Correct README\.md"):
        model_card(folder, "me/x", found, evaluation=evaluation())


# --- the check -------------------------------------------------------------------------------------------------------

GOOD = {
    "library_name": "transformers",
    "pipeline_tag": "image-text-to-text",
    "tags": ["custom_code"],
    "license": "apache-2.0",
}


def as_card(fields: dict[str, Any], body: str = "# Text\n") -> str:
    return f"---\n{yaml.safe_dump(fields)}---\n{body}"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"library_name": "transfomers"}, "library_name is 'transfomers'"),
        ({"pipeline_tag": "region-captioning"}, "pipeline_tag is 'region-captioning'"),
        ({"license": "Apache 2.0"}, "license is 'Apache 2.0'"),
        ({"license": None}, "license is None"),
        ({"license": "other", "license_link": "LICENSE"}, "license: other needs license_name"),
        ({"license": "other", "license_name": "x", "license_link": "see below"}, "license_link is 'see below'"),
        ({"base_model": "/models/mine"}, "base_model holds '/models/mine'"),
        ({"datasets": ["a b"]}, "datasets holds 'a b'"),
        ({"tags": ["finecaption"]}, "tags lacks custom_code"),
        ({"tags": "custom_code"}, "tags is no list"),
        ({"model-index": [{"name": "x", "results": [{"task": {"type": "t"}}]}]}, "lacks dataset.type, dataset.name"),
        ({"model-index": [{"results": []}]}, "has no name"),
    ],
)
def test_the_check_names_what_the_hub_would_refuse(changes, problem):
    assert check_card(as_card(GOOD)) == []
    (found,) = check_card(as_card({**GOOD, **changes}))
    assert problem in found


def test_the_check_finds_a_card_without_front_matter_or_text():
    assert "no front matter" in check_card("# Text\n")[0]
    assert check_card(as_card(GOOD, "")) == ["it has no text"]
    assert "no YAML" in check_card("---\na: [\n---\ntext")[0]


def test_the_embedded_checkpoints_own_card_is_good():
    assert check_card((TINY / "README.md").read_text()) == []
