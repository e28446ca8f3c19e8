"""What an earlier push wrote survives the next ones, as long as it is true of the weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import HubServer, card_problems
from PIL import Image
from safetensors.numpy import load_file, save_file
from test_hub_push import TINY, card_of, edit, fields_of, report

from finecaption_hf.hub import HubError, push, push_folder
from finecaption_hf.hub.checkpoint import weights_digest

REPO = "me/again"
NOT_EVALUATED = "No evaluation is recorded"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint without a card, of which the files do not tell what it was made from."""
    return Path(shutil.copytree(TINY, tmp_path / "folder", ignore=shutil.ignore_patterns("README.md", "__pycache__")))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8)).save(tmp_path / "captioned.png")
    return tmp_path / "captioned.png"


def train(folder: Path) -> None:
    """Other weights of the same shapes."""
    tensors = load_file(folder / "model.safetensors")
    name = min(tensors)
    save_file({**tensors, name: tensors[name] + 1}, folder / "model.safetensors", {"format": "pt"})


def again(folder: Path, **options: Any) -> list[str]:
    """Push it: what is remarked."""
    told: list[str] = []
    push_folder(folder, REPO, tell=told.append, **options)
    return told


# What is given, and what the card then shows.
GIVEN = {
    "evaluation": ({"evaluation": report()}, "87.11 (86.71 to 87.51)"),
    "model-index": ({"evaluation": report()}, "name: ROUGE-L"),
    "eval_results": ({"evaluation": report(), "dataset": "me/scenes"}, "87.11 (86.71 to 87.51)"),
    "picture": ({"pictures": ["captioned.png"]}, "![captioned](captioned.png)"),
    "space": ({"space": "me/show"}, "[me/show](https://huggingface.co/spaces/me/show)"),
    "licence": ({"licence": "mit"}, "license: mit"),
    "base model": ({"base_model": "they/base"}, "Trained from they/base."),
    "base model in front": ({"base_model": "they/base"}, "base_model:\n- they/base"),
    "tags": ({"tags": ["cats"]}, "- cats"),
}


@pytest.mark.parametrize("part", GIVEN)
def test_what_the_first_push_was_given_survives_the_second_and_the_third(
    here: HubServer, folder: Path, picture: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(picture.parent)
    options, shown = GIVEN[part]
    again(folder, **options)
    first = here.model(REPO).at("main")
    assert shown in card_of(here, REPO)
    assert again(folder) == []
    assert here.model(REPO).at("main").oid == first.oid  # nothing to be changed: no commit
    # The Space is made when the checkpoint is there, and the card then learns of it.
    assert again(folder, space="me/new") == []
    now = here.model(REPO).at("main").files
    card = now["README.md"].decode()
    assert "spaces/me/new" in card and card_problems(card) == []
    assert shown in card or part == "space"
    assert now.keys() == first.files.keys()


def test_all_parts_survive_together_until_others_are_given(here: HubServer, folder: Path, picture: Path) -> None:
    again(folder, evaluation=report(), pictures=[picture], space="me/show", licence="mit", tags=["cats"])
    edit(here, REPO, "README.md", card_of(here, REPO).replace("library_name:", "language: en\nlibrary_name:", 1))
    again(folder)
    other = shutil.copy(picture, picture.with_name("other.png"))
    again(folder, pictures=[other])
    card = card_of(here, REPO)
    assert "captioned.png" not in card and "![other](other.png)" in card
    assert "spaces/me/show" in card and "87.11 (86.71" in card and fields_of(card)["license"] == "mit"
    assert fields_of(card)["language"] == "en" and "cats" in fields_of(card)["tags"]
    again(folder, evaluation=report("others"), space="me/new", licence="isc")
    card = card_of(here, REPO)
    assert "| me/again | others |" in card and "| scenes |" not in card and card.count("## Evaluation") == 1
    assert fields_of(card)["model-index"][0]["results"][0]["dataset"]["name"] == "others"
    assert "spaces/me/new" in card and "me/show" not in card and fields_of(card)["license"] == "isc"
    assert "![other](other.png)" in card


def test_a_card_of_ones_own_gets_what_an_earlier_push_was_given(here: HubServer, folder: Path, picture: Path) -> None:
    own = "---\nlicense: mit\n---\n\n# Mine\n\nMy words.\n"
    (folder / "README.md").write_text(own)
    again(folder, evaluation=report(), pictures=[picture], space="me/show")
    first = card_of(here, REPO)
    assert again(folder) == [] and card_of(here, REPO) == first
    # Words of one's own change, and what stands between the marks stays.
    (folder / "README.md").write_text(own.replace("My words.", "Other words."))
    again(folder)
    card = card_of(here, REPO)
    assert card == first.replace("My words.", "Other words.")
    assert fields_of(card)["model-index"] and "87.11" in card and "captioned.png" in card and "me/show" in card
    # On the Hub's page, too.
    (folder / "README.md").unlink()
    edit(here, REPO, "README.md", card.replace("Other words.", "Words on the page."))
    again(folder)
    assert card_of(here, REPO) == first.replace("My words.", "Words on the page.")


@pytest.mark.parametrize("own", [False, True], ids=["generated", "own words"])
def test_figures_and_pictures_of_other_weights_go_and_a_line_says_so(
    here: HubServer, folder: Path, picture: Path, own: bool
) -> None:
    given = {"evaluation": report(), "dataset": "me/scenes", "pictures": [picture], "base_model": "they/base"}
    again(folder, space="me/show", licence="mit", **given)
    if own:
        edit(here, REPO, "README.md", card_of(here, REPO).replace("# again", "# Mine"))
    train(folder)
    (line,) = again(folder)
    lost = "base model, evaluation, captioned.png, .eval_results/me--scenes.yaml are about other weights, and not kept"
    assert lost in line
    files = here.model(REPO).at("main").files
    card = files["README.md"].decode()
    assert NOT_EVALUATED in card and "87.11" not in card and "captioned.png" not in card
    assert "model-index" not in fields_of(card) and ".eval_results/me--scenes.yaml" not in files
    assert "spaces/me/show" in card and fields_of(card)["license"] == "mit"
    assert ("# Mine" in card) == own
    # Those of the new weights stay again.
    again(folder, evaluation=report("others"))
    assert again(folder) == [] and "| me/again | others |" in card_of(here, REPO)


def test_new_figures_with_new_weights_take_the_place_of_the_old_without_a_line(here: HubServer, folder: Path) -> None:
    again(folder, evaluation=report())
    train(folder)
    told = again(folder, evaluation=report("others"), dataset="me/scenes")
    assert told == [] and "| me/again | others |" in card_of(here, REPO)


def test_of_a_card_whose_weights_are_not_known_no_figures_stay(here: HubServer, folder: Path) -> None:
    again(folder, evaluation=report(), dataset="me/scenes")
    now = here.model(REPO).at("main")
    values = json.loads(now.files["provenance.json"])
    del values["weights"]  # as before there were any
    edit(here, REPO, "provenance.json", json.dumps(values))
    stays, gone = again(folder)
    assert ".eval_results/me--scenes.yaml stays as it is" in stays
    assert "evaluation is not known to be about these weights" in gone
    assert NOT_EVALUATED in card_of(here, REPO)


def test_weights_that_the_library_pushed_in_between_do_not_make_old_figures_theirs(
    here: HubServer, folder: Path
) -> None:
    """Its own push leaves card and provenance as they are."""
    again(folder, evaluation=report())
    train(folder)
    now = here.model(REPO).at("main")
    weights = (folder / "model.safetensors").read_bytes()
    here.model(REPO).commit("main", "Upload model", {**now.files, "model.safetensors": weights}, set(now.lfs))
    (line,) = again(folder)
    assert "evaluation is about other weights" in line and NOT_EVALUATED in card_of(here, REPO)


def test_the_card_of_a_downloaded_checkpoint_goes_along_to_another_repository(here: HubServer, folder: Path) -> None:
    again(folder, evaluation=report(), space="me/show", licence="mit")
    for name in ("README.md", "provenance.json"):
        (folder / name).write_bytes(here.model(REPO).at("main").files[name])
    push_folder(folder, "you/other")
    card = card_of(here, "you/other")
    assert "87.11 (86.71" in card and 'model="you/other"' in card and fields_of(card)["license"] == "mit"
    train(folder)
    push_folder(folder, "you/trained")
    assert NOT_EVALUATED in card_of(here, "you/trained")


def test_a_licence_that_an_earlier_push_was_given_yields_to_stricter_parts(here: HubServer, folder: Path) -> None:
    again(folder, licence="mit")
    part = {"role": "language model", "source": "some/llama", "revision": None, "licence": "llama3.1"}
    (folder / "assembly.json").write_text(json.dumps({"parts": [{**part, "from_hub": False}], "initialised": []}))
    again(folder)
    assert fields_of(card_of(here, REPO))["license"] == "llama3.1"
    with pytest.raises(HubError, match="is looser than"):
        again(folder, licence="mit")


def test_weights_are_the_same_in_however_many_files_they_lie(
    here: HubServer, embedded: Any, folder: Path, tmp_path: Path
) -> None:
    embedded[0].save_pretrained(tmp_path / "shards", max_shard_size="6MB")
    shards = [path.name for path in (tmp_path / "shards").glob("*.safetensors")]
    digest = weights_digest(folder, ["config.json", "model.safetensors"])
    assert len(shards) == 2 and weights_digest(tmp_path / "shards", shards) == digest
    train(folder)
    assert weights_digest(folder, ["model.safetensors"]) != digest
    # And so from memory.
    push(*embedded, REPO, evaluation=report())
    push(*embedded, REPO, max_shard_size="6MB")
    assert json.loads(here.model(REPO).at("main").files["provenance.json"])["weights"] == digest
    assert yaml.safe_load(card_of(here, REPO).split("---\n")[1])["model-index"]
