"""Model cards: what they say follows from a checkpoint's files, and the Hub takes them."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import card_problems
from huggingface_hub import ModelCard, ModelCardData
from safetensors.torch import load_file
from test_hub_push import report
from transformers.modelcard import TrainingSummary

import finecaption_hf
from finecaption_hf.hub import HubError, Provenance, model_card, read_provenance
from finecaption_hf.hub.front_matter import card_fields, stated_licence
from finecaption_hf.hub.licences import llama_terms

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


def evaluation() -> dict[str, Any]:
    values = report()
    table = {"columns": ["swap", "change"], "rows": [["other|region", "-1.25 (-1.40 to -1.10)"]]}
    values["diagnostics"] = [{"title": "Use of the mask", "table": table, "notes": ["Nats per token."], "values": {}}]
    return values


GOOD = {
    "library_name": "transformers",
    "pipeline_tag": "image-text-to-text",
    "tags": ["custom_code"],
    "license": "apache-2.0",
}


def as_card(fields: dict[str, Any], body: str = "# Text\n") -> str:
    return f"---\n{yaml.safe_dump(fields)}---\n{body}"


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
    final = stage(tmp_path / "run", "all", "you/base", {"scenes": {"path": "/x"}})
    second = read_provenance(final, {"you/base": folder}.get)
    assert second.base_models == ["you/base"] and second.parts == first.parts
    assert second.licences() == first.licences()


@pytest.mark.parametrize(
    "text",
    [
        '{"format": 7}',
        '{"format": 1, "parts": [{"source": "me/x", "revision": null, "licence": null}]}',
        '{"format": 1, "parts": {"role": "language model"}}',
        '{"format": 1, "stages": ["adapter"]}',
        '{"format": 1, "owner": "me"}',
    ],
)
def test_a_provenance_of_another_kind_is_refused_by_its_name(folder, text):
    (folder / "provenance.json").write_text(text)
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
    (folder / "README.md").write_text((TINY / "README.md").read_text())  # which states apache-2.0
    with pytest.raises(HubError, match="is looser than"):
        model_card(folder, "me/x", found)


# --- the text --------------------------------------------------------------------------------------------------------


def test_the_card_of_a_trained_and_evaluated_checkpoint_has_all_that_is_known(folder, tmp_path):
    (folder / "assembly.json").write_text(json.dumps(assembly("alpha_clip", "sam", "llm")))
    final = stage(tmp_path / "run", "everything", str(folder), {"scenes": {"path": "/x"}}, 2000)
    card = model_card(folder, "me/fine", read_provenance(final), evaluation=evaluation())
    assert card_problems(card) == []
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


def test_a_checkpoint_that_was_taken_out_of_its_run_is_told_its_base(folder, tmp_path, monkeypatch):
    stage = {"name": "adapter", "trains": ["*"], "learning_rate": 1e-3, "data": {}, "peft": None}
    (folder / "stage.json").write_text(json.dumps({"stage": stage, "learning_rate": 2e-4, "global_step": 7}))
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "assembly.json").write_text(json.dumps(assembly("sam")))
    monkeypatch.chdir(tmp_path)
    found = read_provenance(folder, base_model="base")
    assert [part["source"] for part in found.parts] == ["some/sam"] and found.base_models == ["some/sam"]
    assert [(stage["steps"], stage["learning_rate"]) for stage in found.stages] == [(7, 2e-4)]
    (tmp_path / "origin").mkdir()  # of another run
    (tmp_path / "origin" / "origin.json").write_text(json.dumps({"model": "you/other", "commit": "0" * 40}))
    (stage,) = read_provenance(folder, base_model="me/base").stages
    assert "origin" not in stage
    assert read_provenance(folder, base_model="me/base").base_models == ["me/base"]
    assert read_provenance(folder).base_models == []


def test_an_assembled_checkpoint_is_called_untrained(folder):
    (folder / "assembly.json").write_text(json.dumps(assembly("sam")))
    assert "**It is untrained as a whole**" in model_card(folder, "me/x", read_provenance(folder))


def test_a_generated_card_is_made_anew(folder):
    found = read_provenance(folder)
    card = model_card(folder, "me/x", found)
    (folder / "README.md").write_text(card)
    made = model_card(folder, "me/x", found, evaluation=evaluation(), existing=card)
    (folder / "README.md").unlink()
    assert made == model_card(folder, "me/x", found, evaluation=evaluation())
    assert "87.11" in made and made.count("## Evaluation") == 1


def other_evaluation() -> dict[str, Any]:
    values = evaluation()
    values["metrics"]["rouge_l"] |= {"value": 91.5, "interval_95": [90.0, 93.0]}
    return values


def section(body: str) -> str:
    """What stands between the two marks, of which there is one pair."""
    (found,) = re.findall(
        r"<!-- finecaption-hf: evaluation -->\n(.*?)\n<!-- finecaption-hf: end of evaluation -->", body, re.DOTALL
    )
    return found


def test_an_own_card_keeps_its_text_and_has_the_evaluation_once_between_two_marks(folder):
    found = read_provenance(folder)
    own = (TINY / "README.md").read_text()
    (folder / "README.md").write_text(own)
    assert model_card(folder, "me/x", found).split("---\n", 2)[2].strip() == own.split("---\n", 2)[2].strip()
    card = model_card(folder, "me/x", found, evaluation=evaluation())
    text = card.split("---\n", 2)[2].strip()
    assert text.startswith(own.split("---\n", 2)[2].strip())
    for shown in ("87.11 (86.71 to 87.51)", f"`{report()['signature']}`", "### Use of the mask", "Nats per token."):
        assert shown in section(text)
    assert fields_of(card)["model-index"][0]["results"][0]["metrics"][0]["value"] == 87.11
    # The next push finds the section, wherever it was moved to, and replaces it.
    start = text.index("<!-- finecaption-hf: evaluation")
    moved = f"# Mine\n\n{text[start:]}\n\n## Last words\n"
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(fields_of(card))}---\n{moved}")
    again = model_card(folder, "me/x", found, evaluation=other_evaluation())
    assert "91.50 (90.00 to 93.00)" in section(again) and "87.11" not in again
    body = again.split("---\n", 2)[2].strip()
    assert body.startswith("# Mine\n") and body.endswith("## Last words")
    # A push without a report leaves it as it is.
    (folder / "README.md").write_text(again)
    assert model_card(folder, "me/x", found) == again
    (folder / "README.md").write_text(again.replace("<!-- finecaption-hf: end of evaluation -->", ""))
    with pytest.raises(HubError, match="only one of the two marks"):
        model_card(folder, "me/x", found, evaluation=evaluation())


def test_what_an_own_card_lacks_in_front_is_added_and_what_it_has_stays(folder):
    (folder / "assembly.json").write_text(json.dumps(assembly("sam")))
    found = read_provenance(folder)
    (folder / "README.md").write_text("# Mine\n\nNo front matter.\n")
    card = model_card(folder, "me/x", found)
    assert card_problems(card) == [] and "# Mine\n\nNo front matter." in card
    fields = fields_of(card)
    assert (fields["license"], fields["base_model"]) == ("apache-2.0", ["some/sam"])
    own = {"license": "other", "license_name": "mine", "license_link": "LICENSE", "tags": ["cats"], "language": "en"}
    (folder / "README.md").write_text(as_card(own))
    fields = fields_of(model_card(folder, "me/x", found, tags=["dogs"]))
    assert {name: fields[name] for name in own if name != "tags"} == {k: v for k, v in own.items() if k != "tags"}
    assert fields["tags"] == ["cats", "custom_code", "finecaption", "region-captioning", "dogs"]
    assert fields["library_name"] == "transformers"


def test_a_card_on_the_hub_that_somebody_wrote_or_edited_keeps_its_text(folder):
    found = read_provenance(folder)
    theirs = as_card(GOOD, "# Written on the Hub\n")
    card = model_card(folder, "me/x", found, evaluation=evaluation(), existing=theirs)
    assert "# Written on the Hub" in card and "87.11" in section(card) and "## Limits" not in card
    made = model_card(folder, "me/x", found, evaluation=evaluation())
    edited = made.replace("A caption may name what is not there.", "It invents hats.")
    assert edited != made
    card = model_card(folder, "me/x", found, evaluation=other_evaluation(), existing=edited)
    assert "It invents hats." in card and "91.50" in section(card) and "87.11" not in card
    # What lies in the folder comes before it.
    (folder / "README.md").write_text(as_card(GOOD, "# In the folder\n"))
    assert "# In the folder" in model_card(folder, "me/x", found, existing=theirs)


def test_front_matter_set_on_the_hub_stays_where_it_does_not_come_from_the_checkpoint(folder):
    found = read_provenance(folder)
    made = model_card(folder, "me/x", found, evaluation=evaluation())
    fields = {**fields_of(made), "language": "en", "tags": ["custom_code", "cats"], "base_model": "old/one"}
    existing = f"---\n{yaml.safe_dump(fields)}---\n{made.split('---' + chr(10), 2)[2]}"
    fields = fields_of(model_card(folder, "me/x", found, existing=existing))
    assert fields["language"] == "en" and "cats" in fields["tags"] and "finecaption" in fields["tags"]
    assert "base_model" not in fields


@pytest.mark.hub
def test_cards_that_the_library_writes_give_way(folder, tmp_path):
    found = read_provenance(folder)
    summary = TrainingSummary(model_name="x", hyperparameters={"seed": 42}).to_model_card()
    description = "This is the model card of a 🤗 transformers model that has been pushed on the Hub."
    blank = ModelCard.from_template(ModelCardData(library_name="transformers"), model_description=description)
    for existing in (summary, str(blank)):
        assert "describes any region of an image" in model_card(folder, "me/x", found, existing=existing)
    card = model_card(folder, "me/x", found, existing=summary)
    assert "- seed: 42" in card and "record no training" not in card
    again = model_card(folder, "me/x", found, existing=card, evaluation=evaluation())
    assert again.count("- seed: 42") == 1 and "87.11" in again
    filled = str(blank).replace("[More Information Needed]", "We know.")
    assert "We know." in model_card(folder, "me/x", found, existing=filled)


def test_the_mask_diagnostics_of_a_real_report_stand_in_the_card(folder):
    """The report: finecaption evaluate --diagnostics mask, finecaption-tiny on 8 held-out scenes from seed 5."""
    values = json.loads((Path(__file__).parent / "mask_report.json").read_text())
    card = model_card(folder, "me/x", read_provenance(folder), evaluation=values)
    text = section(card)
    (diagnostic,) = values["diagnostics"]
    assert f"### {diagnostic['title']}" in text and all(note in text for note in diagnostic["notes"])
    for row in diagnostic["table"]["rows"]:
        assert f"| {' | '.join(row)} |" in text
    assert "| Color | 16 | 2.728 (2.206 to 3.203) |" in text
    assert "| me/x | finecaption-scenes | 259 | 86.26 (84.44 to 88.26) | 87.89 (85.08 to 90.51) |" in text
    assert "259 captions of 29 regions in 8 images" in text and f"`{values['signature']}`" in text


def test_names_in_a_report_neither_end_the_section_nor_tell_of_folders(folder):
    values = evaluation()
    values |= {"model": "/data/somebody/run/final", "data": {"name": "/data/somebody/scenes_test.jsonl"}}
    values["diagnostics"][0]["table"]["rows"].append(["<!-- finecaption-hf: end of evaluation -->", "0"])
    card = model_card(folder, "me/x", read_provenance(folder), evaluation=values)
    assert "somebody" not in card
    assert "| me/x | scenes\\_test.jsonl | 6269 |" in section(card)
    assert fields_of(card)["model-index"][0]["results"][0]["dataset"]["name"] == "scenes_test.jsonl"


def test_the_demo_of_a_card_has_its_command_the_space_and_the_pictures(folder):
    found = read_provenance(folder)
    card = model_card(folder, "me/x", found)
    assert "`finecaption demo --model me/x`" in card and "huggingface.co/spaces" not in card
    card = model_card(folder, "me/x", found, space="me/show", pictures=["a_street.png"])
    assert "[me/show](https://huggingface.co/spaces/me/show)" in card
    assert "![a\\_street](a_street.png)" in card
    (folder / "README.md").write_text(as_card(GOOD, "# Mine\n"))
    assert "## Demo" not in model_card(folder, "me/x", found)
    card = model_card(folder, "me/x", found, space="me/show")
    (folder / "README.md").write_text(card)
    card = model_card(folder, "me/x", found, space="me/new")
    assert card.count("## Demo") == 1 and "spaces/me/new" in card and "me/show" not in card


@pytest.mark.parametrize(
    ("source", "licence", "notice", "bad", "good"),
    [
        ("meta/Llama-2-7b", "llama2", "", None, "me/any"),
        ("meta/Meta-Llama-3-8B", "llama3", "Built with Meta Llama 3", "me/Llama-fine", "me/llama-3-fine"),
        ("meta/Llama-3.1-8B", "llama3.1", "Built with Llama", "me/fine-llama", "me/Llama-fine"),
        ("meta-llama/Llama-9", None, "Built with Llama", "me/x", "me/Llama-x"),
        ("small/TinyLlama-1.1B", "apache-2.0", None, None, None),
        ("liu/llava-7b", "apache-2.0", None, None, None),
    ],
)
def test_what_the_licence_of_a_llama_asks_for_is_known_by_version(source, licence, notice, bad, good):
    part = {"role": "language model", "source": source, "revision": None, "licence": licence}
    terms = llama_terms(Provenance(parts=[part]).licences())
    assert (terms and terms.notice) == notice
    if terms is not None:
        assert terms.allows(good) and (bad is None or not terms.allows(bad))


def test_a_model_trained_further_under_its_own_name_is_not_its_own_base(folder, tmp_path):
    (folder / "provenance.json").write_text(Provenance(["some/sam"], stages=[]).to_json())
    final = stage(tmp_path / "run", "all", "me/x", {})
    look = {"me/x": folder}.get
    assert read_provenance(final, look, repo="me/x").base_models == ["some/sam"]
    assert read_provenance(final, look, repo="me/y").base_models == ["me/x"]


# --- what is not taken -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "example"),
    [
        ("library_name", "transfomers", "transformers"),
        ("pipeline_tag", "region-captioning", "image-text-to-text"),
    ],
)
def test_a_word_that_the_hub_takes_without_knowing_it_is_refused(folder, name, value, example):
    (folder / "README.md").write_text(as_card({**GOOD, name: value}))
    with pytest.raises(HubError, match=f"has {name} '{value}', .* Give {example}"):
        model_card(folder, "me/x", read_provenance(folder))


@pytest.mark.parametrize("front", ["a: [", "just words"])
def test_front_matter_that_cannot_be_read_is_refused(folder, front):
    (folder / "README.md").write_text(f"---\n{front}\n---\n# Mine\n")
    with pytest.raises(HubError, match=r"front matter of README\.md is no (YAML|mapping)"):
        model_card(folder, "me/x", read_provenance(folder))


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: other\nlicense_name: mine\n---\n", "mine"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\r\nlicense:\r\n- mit\r\n- isc\r\n---\r\n", "mit, isc"),
        ("\ufeff---\nlicense: mit\n---\nnaïve", "mit"),
        ("---\na: [\n---\n", None),
        ("license: mit", None),
    ],
)
def test_the_licence_of_any_card_is_read(tmp_path, card, licence):
    for encoding in ("utf-8", "utf-16"):
        (tmp_path / encoding).write_bytes(card.encode(encoding))
    assert stated_licence(card_fields(tmp_path / "utf-8")) == licence
    assert stated_licence(card_fields(tmp_path / "utf-16")) is None
    assert stated_licence(card_fields(tmp_path / "gone")) is None


def test_the_embedded_checkpoints_own_card_is_good():
    assert card_problems((TINY / "README.md").read_text()) == []


def test_comparison_with_another_model_stands_on_the_card_without_its_path(folder: Path) -> None:
    row = {"label": "ROUGE-L", "first": 86.5, "second": 87.1, "difference": -0.6, "interval_95": [-1.49, 0.25]}
    values = {**evaluation(), "comparison": {"model": "runs/before", "metrics": {"rouge_l": row}}}
    card = model_card(folder, "me/tiny", Provenance(), evaluation=values)
    assert "### Compared with before\n" in card and "runs/before" not in card
    assert "| ROUGE-L | 87.10 | 86.50 | -0.60 | -1.49 to +0.25 |" in card
