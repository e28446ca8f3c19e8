"""Checkpoints to a Hub and back, through fresh processes and a server on loopback."""

import copy as copy_module
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import NOT_INSTALLED
from hub_server import COMMAND, TOKEN, HubServer, Repo, card_problems
from huggingface_hub import HfApi, parse_eval_result_entries
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image

import finecaption_hf
from finecaption_hf.hub import HubError, push, push_folder
from finecaption_hf.hub.checkpoint import checkpoint_files
from finecaption_hf.scenes import render_scene

TINY = finecaption_hf.EMBEDDED_CHECKPOINT
PACKAGE = Path(finecaption_hf.__file__).parent
ATTRIBUTES = ".gitattributes"
WRONG_TOKEN = "hf_" + "somebodyElse" * 3


@pytest.fixture(scope="module")
def sharded(embedded, tmp_path_factory) -> Path:
    """The embedded checkpoint in two files of weights, without a card, among what training leaves beside weights."""
    folder = tmp_path_factory.mktemp("sharded")
    model, processor = embedded
    model.save_pretrained(folder, max_shard_size="6MB")
    processor.save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) == 2
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "trainer_state.json", "rng_state.pth"):
        (folder / name).write_bytes(TOKEN.encode())
    return folder


def report(data: str = "scenes") -> dict[str, Any]:
    row = {"value": 87.114, "interval_95": [86.71, 87.51], "images": 200, "segments": 6269}
    return {
        "finecaption_report": 1,
        "model": "finecaption-tiny",
        "data": {"name": data},
        "counts": {"images": 200, "regions": 707, "captions": 6269, "errors": 0, "empty": 0},
        "metrics": {"rouge_l": {"label": "ROUGE-L", "note": "mean of captions", **row}},
        "diagnostics": [],
        "signature": "finecaption_hf:0.1.0|captions:6269|rouge_l:beta-1.2",
    }


# --- what arrives ----------------------------------------------------------------------------------------------------


@pytest.mark.hub
def test_everything_arrives_in_one_commit(hub, client, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(report()))
    options = ("--private", "--report", tmp_path / "report.json", "--dataset", "me/scenes")
    pushed = client.push(TINY, "me/all", *options)
    repo = hub.model("me/all")
    assert repo.private
    commit, initial = repo.history()
    assert initial.message == "initial commit" and pushed["oid"] == commit.oid
    in_folder = {path.name for path in TINY.iterdir() if path.is_file()}
    assert set(commit.files) == in_folder | {ATTRIBUTES, "provenance.json", ".eval_results/me--scenes.yaml"}
    for name in in_folder - {"README.md"}:
        assert commit.files[name] == (TINY / name).read_bytes(), name
    assert commit.lfs == {"model.safetensors"}

    text = commit.files["README.md"].decode()
    _, front, body = text.split("---\n", 2)
    fields = yaml.safe_load(front)
    assert fields["license"] == "apache-2.0" and fields["pipeline_tag"] == "image-text-to-text"
    (result,) = fields["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 87.11
    assert result["metrics"][0]["args"]["interval_95"] == [86.71, 87.51]
    assert result["metrics"][0]["args"]["signature"] == report()["signature"]
    assert body.strip().startswith((TINY / "README.md").read_text().split("---\n", 2)[2].strip())
    assert "87.11 (86.71 to 87.51)" in body
    (entry,) = parse_eval_result_entries(yaml.safe_load(commit.files[".eval_results/me--scenes.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("me/scenes", "rouge_l", 87.11)
    assert "86.71 to 87.51" in entry.notes and report()["signature"] in entry.notes


def test_states_of_training_stay_and_weights_of_an_earlier_push_go_in_the_same_commit(hub, client, sharded):
    first = client.push(sharded, "me/shards")
    shards = {path.name for path in sharded.glob("model*.safetensors*")}
    assert len(shards) == 3 and shards <= set(first["files"])
    commit = hub.model("me/shards").at("main")
    assert not {"optimizer.pt", "scheduler.pt", "training_args.bin", "trainer_state.json"} & set(commit.files)
    assert not any(TOKEN.encode() in content for content in commit.files.values())
    second = client.push(TINY, "me/shards")
    assert set(second["deleted"]) == shards
    assert len(hub.model("me/shards").history()) == 3
    assert {name for name in hub.model("me/shards").at("main").files if "safetensors" in name} == {"model.safetensors"}


def test_a_branch_is_made_and_main_stays_as_it_was(hub, client):
    client.push(TINY, "me/branches", "--revision", "candidates/1")
    repo = hub.model("me/branches")
    assert "model.safetensors" in repo.at("candidates/1").files
    assert set(repo.at("main").files) == {ATTRIBUTES}


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_an_upload_cut_in_the_middle_leaves_nothing_to_be_seen_and_the_retry_completes_it(hub, client, sharded):
    hub.objects.clear()
    sizes = {path.stat().st_size: path for path in sharded.glob("*.safetensors")}
    broken = _sha256(sizes[max(sizes)])
    hub.cut.add(broken)
    line = client.refused(sharded, "me/cut")
    assert "Run the same again" in line and "model-0000" in line
    assert [commit.message for commit in hub.model("me/cut").history()] == ["initial commit"]
    arrived = set(hub.objects)
    assert broken not in arrived
    hub.cut.clear()
    hub.puts.clear()
    client.push(sharded, "me/cut")
    # What had arrived is not sent again.
    assert broken in hub.puts and not arrived & set(hub.puts)
    commit, _ = hub.model("me/cut").history()
    for path in sharded.glob("*.safetensors"):
        assert commit.files[path.name] == path.read_bytes()


def test_a_refused_commit_is_made_by_the_retry_without_uploading_again_and_a_third_push_changes_nothing(
    hub, client, sharded
):
    hub.refuse_commits = 1
    assert "Run the same again" in client.refused(sharded, "me/later")
    hub.puts.clear()
    made = client.push(sharded, "me/later")["oid"]
    assert hub.puts == [] and len(hub.model("me/later").history()) == 2
    assert client.push(sharded, "me/later")["oid"] == made
    assert hub.puts == [] and len(hub.model("me/later").history()) == 2


@pytest.mark.parametrize(
    ("token", "remedy"),
    [(WRONG_TOKEN, "does not take the token"), (WRONG_TOKEN + "ä", "holds a character that none has")],
    ids=["unknown", "not even a header"],
)
def test_a_wrong_token_ends_in_what_to_do_and_is_never_shown(hub, client, token, remedy):
    done = client.run(COMMAND, "push", TINY, "me/refused", HF_TOKEN=token)
    assert done.returncode == 2
    assert remedy in done.stderr
    assert "hf auth login" in done.stderr
    assert WRONG_TOKEN not in done.stdout + done.stderr
    assert ("model", "me/refused") not in hub.repos


def test_nothing_goes_to_a_public_repository_when_a_private_one_was_asked_for(hub, client):
    client.push(TINY, "me/public", "--revision", "other")
    requests = len(hub.requests)
    line = client.refused(TINY, "me/public", "--private")
    assert "me/public exists and is public" in line
    assert not [request for request in hub.requests[requests:] if "preupload" in request or "commit/" in request]


def test_what_is_no_repository_or_no_report_is_refused_without_a_trace(client, tmp_path):
    for name, said in (("me/x.git", "cannot end by '.git'"), ("a/b/c", "'namespace/repo_name': 'a/b/c'")):
        line = client.refused(TINY, name)
        assert said in line and "Run the same again" not in line
    (tmp_path / "report.json").write_text('{"finecaption_report": 1}')
    assert "is no report that this version reads" in client.refused(TINY, "me/x", "--report", "report.json")


def test_without_network_the_error_says_so(client):
    assert "HF_HUB_OFFLINE" in client.refused(TINY, "me/offline", HF_HUB_OFFLINE="1")
    assert "Run the same again" in client.refused(TINY, "me/offline", HF_ENDPOINT="http://127.0.0.1:9")


@pytest.fixture
def copy(tmp_path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__")))


def damaged_weights(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(5_000_000)


def code_elsewhere(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"]["AutoModel"] = "you/theirs--modeling_finecaption.FineCaptionForConditionalGeneration"
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        *(
            (lambda folder, name=name: (folder / name).unlink(), rf"lacks {re.escape(name)}")
            for name in ("model.safetensors", "tokenizer_config.json", "engine_finecaption.py")
        ),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'),
            "holds a model of type 'llama'",
        ),
        (damaged_weights, "damaged or was not written to its end"),
        (code_elsewhere, "takes its code from the repository you/theirs"),
    ],
)
def test_a_folder_that_is_no_whole_checkpoint_is_refused_by_what_is_wrong(copy, damage, message):
    checkpoint_files(copy)
    damage(copy)
    with pytest.raises(HubError, match=message):
        checkpoint_files(copy)


def test_a_model_without_its_head_is_refused(here, embedded):
    model, processor = embedded
    with pytest.raises(HubError, match=r"holds a FineCaptionModel, .* Push the FineCaptionForConditionalGeneration"):
        push(model.model, processor, "me/headless")
    assert ("model", "me/headless") not in here.repos


def test_a_file_with_a_token_in_it_is_not_sent(hub, client, copy):
    with (copy / "README.md").open("a") as file:
        file.write(f"\nHF_TOKEN={WRONG_TOKEN}\n")
    line = client.refused(copy, "me/leak")
    assert "README.md holds an access token" in line and WRONG_TOKEN not in line
    assert ("model", "me/leak") not in hub.repos


# --- and back, through two generations -------------------------------------------------------------------------------

# A machine with transformers and without this package.
ELSEWHERE = (
    NOT_INSTALLED
    + """
import os
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline

trust = {"trust_remote_code": True}

def read(repo, save_as):
    processor = AutoProcessor.from_pretrained(repo, **trust)
    model = AutoModelForImageTextToText.from_pretrained(repo, **trust)
    assert type(model).__module__.startswith("transformers_modules.")
    return model, processor, logits(model, processor, save_as)

def logits(model, processor, save_as):
    image = Image.open("photo.jpg")
    chats = [processor.conversation(image, name, {"box_xyxy": [40, 60, 200, 180]}) for name in ("color", "dense")]
    inputs = processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
    )
    with torch.inference_mode():
        torch.save(model(**inputs).logits, save_as)
"""
)
FIRST = """
model, processor, _ = read("me/base", "base.pt")
try:
    AutoModelForImageTextToText.from_pretrained("me/base", revision="nowhere", **trust)
except OSError as error:
    print("missing revision:", error)
torch.manual_seed(0)
with torch.no_grad():  # what training would do
    for parameter in model.model.adapter.parameters():
        parameter += 0.02 * torch.randn_like(parameter)
logits(model, processor, "tuned.pt")
print("commit:", model.push_to_hub("me/second", private=True).oid)
print("commit:", processor.push_to_hub("me/second").oid)
try:
    AutoConfig.from_pretrained("me/second", token=os.environ["WRONG_TOKEN"], **trust)
except OSError as error:
    print("wrong token:", error)
"""
SECOND = """
from finecaption_hf.asking import load
from finecaption_hf.hub import push

print("commit:", push(*load("me/second", device="cpu"), "you/third", evaluation="report.json").oid)
"""
THIRD = """
read("me/second", "second.pt")
for repo in ("me/second", "you/third"):  # the snippet of the card
    exec(open("snippet.py").read().replace("me/base", repo))
model = AutoModel.from_pretrained("you/third", **trust)
answer = pipeline("image-text-to-text", model="you/third", **trust)
message = [{"type": "image", "path": "photo.jpg"}, {"type": "text", "text": "What is this?"}]
[said] = answer(text=[{"role": "user", "content": message}], max_new_tokens=8)
assert type(model).__name__ == type(answer.model).__name__ and said["generated_text"][-1]["content"]
"""
OFFLINE = """
import socket

def refuse(self, address):
    raise AssertionError(f"a connection to {address} was tried")

socket.socket.connect = refuse
read("you/third", "third.pt")
"""


@pytest.mark.hub
def test_code_and_auto_map_travel_through_two_generations_with_and_without_network(hub, client, tmp_path, sharded):
    Image.fromarray(render_scene(4, split="test").image).save(tmp_path / "photo.jpg")
    shards = {path.name for path in sharded.glob("*.safetensors")}
    client.push(sharded, "me/base", "--license", "apache-2.0")
    card = hub.model("me/base").at("main").files["README.md"].decode()
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert 'model="me/base"' in snippet
    (tmp_path / "snippet.py").write_text(snippet)
    shutil.copy(Path(__file__).parent / "mask_report.json", tmp_path / "report.json")

    first = client.run(ELSEWHERE + FIRST, WRONG_TOKEN=WRONG_TOKEN)
    assert first.returncode == 0, first.stderr[-3000:]
    assert "missing revision: " in first.stdout and "nowhere" in first.stdout
    assert "wrong token: " in first.stdout and WRONG_TOKEN not in first.stdout + first.stderr
    second = client.run(SECOND)
    third = client.run(ELSEWHERE + THIRD)
    for done in (second, third):
        assert done.returncode == 0, done.stderr[-3000:]
    assert third.stdout.count("[40, 60, 200, 180] {'Color': ") == 2
    # Nothing of the earlier repositories is left to load from.
    for repo in ("me/base", "me/second"):
        shutil.rmtree(tmp_path / "home" / "hub" / f"models--{repo.replace('/', '--')}")
    offline = client.run(ELSEWHERE + OFFLINE, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr[-3000:]

    base, tuned = torch.load(tmp_path / "base.pt"), torch.load(tmp_path / "tuned.pt")
    assert not torch.allclose(base, tuned, atol=1e-2)
    assert torch.equal(torch.load(tmp_path / "second.pt"), tuned)
    assert torch.equal(torch.load(tmp_path / "third.pt"), tuned)
    assert hub.model("me/second").private
    given = hub.model("me/base").at("main").files
    # The library's own push_to_hub: a commit each, and a bare card with the tags by which the Hub knows such a model.
    processor_commit, model_commit, _ = hub.model("me/second").history()
    assert [f"commit: {commit.oid}" in first.stdout for commit in (model_commit, processor_commit)] == [True] * 2
    bare = model_commit.files["README.md"].decode()
    assert processor_commit.files["README.md"] == model_commit.files["README.md"] and card_problems(bare) == []
    assert fields_of(bare)["tags"] == ["custom_code", "finecaption", "region-captioning"]
    assert fields_of(bare)["library_name"] == "transformers"
    # Everything in one commit.
    commit, _ = hub.model("you/third").history()
    assert f"commit: {commit.oid}" in second.stdout
    text = commit.files["README.md"].decode()
    assert card_problems(text) == [] and 'model="you/third"' in text
    assert fields_of(text)["tags"] == ["custom_code", "finecaption", "region-captioning"]
    assert (fields_of(text)["base_model"], fields_of(text)["license"]) == (["me/second"], "other")
    for shown in ("86.26 (84.44 to 88.26)", "### Is the mask used?", "| Color | 16 | 2.728 (2.206 to 3.203) |"):
        assert shown in text
    for files in (processor_commit.files, commit.files):
        assert set(files) - {"provenance.json"} == set(given) - {
            "model.safetensors.index.json",
            "provenance.json",
        } - shards | {"model.safetensors"}
        code = {name for name in given if name.endswith("_finecaption.py")}
        assert code == {name for name in files if name.endswith(".py")}
        for name in code:
            assert files[name] == given[name] == (PACKAGE / name).read_bytes(), name
        for name in ("config.json", "processor_config.json"):
            for key in ("auto_map", "custom_pipelines"):
                assert json.loads(files[name]).get(key) == json.loads(given[name]).get(key)


def test_a_checkpoint_trained_from_a_hub_repository_knows_where_it_comes_from(hub, client, tmp_path, sharded):
    client.push(TINY, "me/origin", "--private")
    final = tmp_path / "run" / "final"
    shutil.copytree(sharded, final)
    stage = {"name": "adapter", "trains": ["model.adapter.*"], "learning_rate": 1e-3, "data": {}, "peft": None}
    (final / "stage.json").write_text(json.dumps({"stage": stage, "global_step": 70, "files": {}}))
    run = {"stage": stage, "model": "me/origin", "data": {"scenes": {"path": str(tmp_path / "secret-place")}}}
    (final.parent / "run.json").write_text(json.dumps(run))
    client.push(final, "me/tuned")
    files = hub.model("me/tuned").at("main").files
    fields = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert fields["base_model"] == ["me/origin"] and fields["license"] == "apache-2.0"
    assert "| adapter | `model.adapter.*` | 0.001 | 70 | scenes |" in files["README.md"].decode()
    assert "stage.json" not in files
    assert not any(b"secret-place" in content for content in files.values())


# --- from memory -----------------------------------------------------------------------------------------------------


def edit(hub: HubServer, repo: str, name: str, text: str) -> None:
    """Change a file as on the Hub's page."""
    now = hub.model(repo).at("main")
    hub.model(repo).commit("main", f"Update {name}", {**now.files, name: text.encode()}, set(now.lfs))


def card_of(hub: HubServer, repo: str) -> str:
    return hub.model(repo).at("main").files["README.md"].decode()


def fields_of(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_model_and_processor_go_from_memory_in_one_commit_with_a_card(here, embedded):
    pushed = push(*embedded, "me/memory", message="From memory")
    commit, _ = here.model("me/memory").history()
    assert commit.message == "From memory" and pushed.oid == commit.oid
    assert {path.name for path in TINY.glob("*_finecaption.py")} <= set(commit.files)
    card = commit.files["README.md"].decode()
    # The model was loaded from the embedded checkpoint, whose card states it.
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "apache-2.0"
    assert 'model="me/memory"' in card and str(TINY) not in card


def test_a_proposed_commit_leaves_the_branches_as_they_are(here, embedded):
    options = {"max_shard_size": "6MB", "tags": ["cats"], "token": TOKEN, "message": "First", "revision": "next"}
    pushed = push(*embedded, "named", private=True, create_pr=True, **options)
    repo = here.model("me/named")  # a bare name is one of the user's own
    proposed = repo.at("refs/pr/1")
    assert "discussions/1" in pushed.commit_url and (pushed.oid, proposed.message) == (proposed.oid, "First")
    assert repo.private and all(set(repo.at(name).files) == {ATTRIBUTES} for name in ("main", "next"))
    assert "model-00002-of-00002.safetensors" in proposed.files
    assert "cats" in fields_of(proposed.files["README.md"].decode())["tags"]


def test_a_push_from_memory_that_was_refused_goes_on_without_sending_weights_again(here, embedded):
    here.refuse_commits = 1
    with pytest.raises(HubError, match="Run the same again"):
        push(*embedded, "me/resumed")
    here.puts.clear()
    push(*embedded, "me/resumed")
    assert here.puts == [] and "model.safetensors" in here.model("me/resumed").at("main").files


def test_a_processor_with_a_token_in_it_is_not_sent(here, embedded):
    model, changed = embedded[0], copy_module.copy(embedded[1])
    changed.questions = {"Sound": f"HF_TOKEN={WRONG_TOKEN}"}
    with pytest.raises(HubError, match=r"processor_config\.json holds an access token") as caught:
        push(model, changed, "me/told")
    assert WRONG_TOKEN not in str(caught.value) and ("model", "me/told") not in here.repos


def test_a_wrong_token_that_is_given_is_not_told(here, embedded):
    with pytest.raises(HubError, match="does not take the token") as caught:
        push(*embedded, "me/none", token=WRONG_TOKEN)
    assert WRONG_TOKEN not in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


# --- cards that are there --------------------------------------------------------------------------------------------


def test_a_card_written_on_the_hub_survives_pushes_and_has_one_evaluation(here, embedded, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(report()))
    push(*embedded, "me/edited", evaluation=tmp_path / "report.json")
    made = card_of(here, "me/edited")
    edit(here, "me/edited", "README.md", made.replace("# edited", "# The best one"))
    for data in ("first", "second"):
        push(*embedded, "me/edited", evaluation=report(data))
    card = card_of(here, "me/edited")
    assert "# The best one" in card and card.count("<!-- finecaption-hf: evaluation -->") == 1
    assert "| me/edited | second | 6269 |" in card and "first" not in card
    assert yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"][0]["dataset"]["name"] == "second"


def test_a_card_on_the_hub_that_is_not_to_be_read_stops_the_push(here, embedded, monkeypatch):
    """Otherwise a generated one would take its place."""
    push(*embedded, "me/careful")
    before = here.model("me/careful").at("main").oid

    def unreachable(self: HfApi, repo: str, name: str, **options: Any) -> str:
        raise LocalEntryNotFoundError(f"{name} cannot be reached")

    monkeypatch.setattr(HfApi, "hf_hub_download", unreachable)
    with pytest.raises(HubError, match="cannot be reached"):
        push(*embedded, "me/careful", base_model="me/careful")
    assert here.model("me/careful").at("main").oid == before


# --- what lies beside ------------------------------------------------------------------------------------------------


def test_licence_texts_of_parts_come_along_and_what_a_llama_asks_for_is_told(here, copy):
    origin = {"LICENSE": b"the agreement", "USE_POLICY.md": b"the policy", "config.json": b"{}"}
    repo = here.repos["model", "meta/Llama-3.1-8B"] = Repo("meta/Llama-3.1-8B", False)
    repo.commit("main", "made", origin, set())
    part = {"role": "language model", "source": "meta/Llama-3.1-8B", "revision": "0" * 40, "licence": "llama3.1"}
    (copy / "assembly.json").write_text(json.dumps({"parts": [{**part, "from_hub": True}], "initialised": []}))
    (copy / "README.md").unlink()
    told: list[str] = []
    push_folder(copy, "me/fine", tell=told.append)
    missing, name = told
    assert "NOTICE is missing" in missing and "LICENSE" not in missing
    assert "begins with 'Llama': me/fine does not" in name
    files = here.model("me/fine").at("main").files
    assert files["licences/meta--Llama-3.1-8B/LICENSE"] == b"the agreement"
    assert files["licences/meta--Llama-3.1-8B/USE_POLICY.md"] == b"the policy"
    card = files["README.md"].decode()
    assert "**Built with Llama**" in card and yaml.safe_load(card.split("---\n")[1])["license"] == "llama3.1"
    # A model made from that one has them too, and with a NOTICE and a fitting name there is nothing to say.
    (copy / "assembly.json").unlink()
    (copy / "NOTICE").write_text("the notice")
    told.clear()
    push_folder(copy, "me/Llama-finer", base_model="me/fine", tell=told.append)
    files = here.model("me/Llama-finer").at("main").files
    assert files["licences/meta--Llama-3.1-8B/LICENSE"] == b"the agreement" and files["NOTICE"] == b"the notice"
    assert "**Built with Llama**" in files["README.md"].decode() and told == []


def test_pictures_and_a_space_go_into_the_card(hub, client, copy, tmp_path):
    (copy / "README.md").unlink()
    Image.new("RGB", (8, 8)).save(copy / "inside.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "captioned.jpg")
    options = ("--picture", tmp_path / "captioned.jpg", "--space", "me/show", "--license", "apache-2.0")
    client.push(copy, "me/shown", *options)
    files = hub.model("me/shown").at("main").files
    assert files["captioned.jpg"] == (tmp_path / "captioned.jpg").read_bytes()
    card = files["README.md"].decode()
    assert "![captioned](captioned.jpg)" in card and "![inside](inside.png)" in card
    assert "https://huggingface.co/spaces/me/show" in card
    assert "path 'gone.png' does not exist" in client.refused(copy, "me/shown", "--picture", "gone.png")
    assert "'show' is no Space" in client.refused(copy, "me/shown", "--space", "show")


# --- the library's Trainer -------------------------------------------------------------------------------------------

TRAIN = """
from transformers import Trainer, TrainingArguments

model, processor, _ = read("me/start", "start.pt")
chat = processor.conversation(Image.open("photo.jpg"), "color", {"box_xyxy": [40, 60, 200, 180]})
row = dict(processor.apply_chat_template(
    chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
))
row["labels"] = row["input_ids"].clone()
arguments = TrainingArguments(
    "run", max_steps=2, save_steps=1, save_strategy="steps", logging_steps=1, learning_rate=1e-3, report_to=[],
    push_to_hub=True, hub_model_id="me/trained", hub_private_repo=True, remove_unused_columns=False, use_cpu=True,
    hub_always_push=True,
)
trainer = Trainer(
    model, arguments, train_dataset=[row] * 2, data_collator=lambda rows: rows[0], processing_class=processor
)
trainer.train()
trainer.push_to_hub()
logits(model.eval(), processor, "trained.pt")
"""
FINISH = """
from finecaption_hf.asking import load
from finecaption_hf.hub import push

push(*load("me/trained", device="cpu"), "me/trained")
"""


@pytest.mark.hub
def test_what_the_librarys_trainer_pushes_loads_again_and_a_push_completes_its_card(hub, client, tmp_path):
    Image.fromarray(render_scene(4, split="test").image).save(tmp_path / "photo.jpg")
    client.push(TINY, "me/start")
    trained = client.run(ELSEWHERE + TRAIN)
    assert trained.returncode == 0, trained.stderr[-3000:]
    repo = hub.model("me/trained")
    files = repo.at("main").files
    assert repo.private and {path.name for path in TINY.glob("*.py")} <= set(files)
    fields = yaml.safe_load(card_of(hub, "me/trained").split("---\n")[1])
    assert {"custom_code", "finecaption", "region-captioning"} <= set(fields["tags"])
    assert (fields["library_name"], fields["base_model"]) == ("transformers", "me/start")
    pushes = len(repo.history())
    for code in (FINISH, ELSEWHERE + 'read("me/trained", "again.pt")'):
        finished = client.run(code)
        assert finished.returncode == 0, finished.stderr[-3000:]
    assert torch.equal(torch.load(tmp_path / "again.pt"), torch.load(tmp_path / "trained.pt"))
    assert not torch.allclose(torch.load(tmp_path / "again.pt"), torch.load(tmp_path / "start.pt"), atol=1e-2)
    assert len(repo.history()) == pushes + 1
    card = card_of(hub, "me/trained")
    assert card_problems(card) == [] and "describes any region of an image" in card
    fields = yaml.safe_load(card.split("---\n")[1])
    assert (fields["license"], fields["base_model"]) == ("apache-2.0", ["me/start"])
    assert "- learning_rate: 0.001" in card
    assert repo.at("main").files["tokenizer.json"] == files["tokenizer.json"]


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()
