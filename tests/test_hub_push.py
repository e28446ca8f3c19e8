"""Checkpoints to a Hub and back, through fresh processes and a server on loopback."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hub_server import TOKEN, HubServer
from huggingface_hub import constants, parse_eval_result_entries
from PIL import Image

import finecaption_hf
from finecaption_hf.hub import HubError, push_model
from finecaption_hf.hub_finecaption import checkpoint_files
from finecaption_hf.scenes import render_scene

TINY = finecaption_hf.EMBEDDED_CHECKPOINT
PACKAGE = Path(finecaption_hf.__file__).parent
ATTRIBUTES = ".gitattributes"
WRONG_TOKEN = "hf_" + "somebodyElse" * 3

# The client waits half a minute in all before it gives a connection up; nothing is to be learnt from that here.
WITHOUT_WAITING = "import time; time.sleep = lambda seconds: None\n"
COMMAND = WITHOUT_WAITING + "from finecaption_hf.cli import main; main()"


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


class Client:
    """Runs code as a user of the Hub, in a fresh process with a home of its own."""

    def __init__(self, hub: HubServer, work: Path) -> None:
        self.work = work
        self.environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(work / "home"),
            "HF_MODULES_CACHE": str(work / "home" / "modules"),
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1",
        }

    def run(self, code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=self.work,
            env={**self.environment, **environment},
        )
        assert TOKEN not in done.stdout + done.stderr
        return done

    def push(self, *arguments: object, **environment: str) -> dict[str, Any]:
        done = self.run(COMMAND, "push", *arguments, "--json", **environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def refused(self, *arguments: object, **environment: str) -> str:
        """The one line that a push ends in."""
        done = self.run(COMMAND, "push", *arguments, **environment)
        assert done.returncode == 2, done.stderr
        line = done.stderr.strip().splitlines()[-1]
        assert line.startswith("Error: ") and "Traceback" not in done.stderr
        return line


@pytest.fixture
def client(hub, tmp_path) -> Client:
    return Client(hub, tmp_path)


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
    line = client.refused(TINY, "me/x.git")
    assert "cannot end by '.git'" in line and "Run the same again" not in line
    (tmp_path / "report.json").write_text('{"finecaption_report": 1}')
    assert "is no report that this version reads" in client.refused(TINY, "me/x", "--report", "report.json")


def test_without_network_the_error_says_so(client):
    assert "HF_HUB_OFFLINE" in client.refused(TINY, "me/offline", HF_HUB_OFFLINE="1")
    assert "Run the same again" in client.refused(TINY, "me/offline", HF_ENDPOINT="http://127.0.0.1:9")


@pytest.fixture
def copy(tmp_path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__")))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer_config.json", "branching_finecaption.py"])
def test_a_folder_that_lacks_a_file_is_refused_by_name(copy, name):
    (copy / name).unlink()
    with pytest.raises(HubError, match=rf"lacks {re.escape(name)}"):
        checkpoint_files(copy)


def test_a_checkpoint_of_another_model_is_refused(copy):
    (copy / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(HubError, match="holds a model of type 'llama'"):
        checkpoint_files(copy)


def test_weights_that_were_not_written_to_their_end_are_refused(copy):
    with (copy / "model.safetensors").open("r+b") as file:
        file.truncate(5_000_000)
    with pytest.raises(HubError, match="damaged or was not written to its end"):
        checkpoint_files(copy)


def test_code_that_lies_in_another_repository_is_refused(copy):
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"]["AutoModel"] = "you/theirs--modeling_finecaption.FineCaptionForConditionalGeneration"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(HubError, match="takes its code from the repository you/theirs"):
        checkpoint_files(copy)


def test_a_file_with_a_token_in_it_is_not_sent(hub, client, copy):
    with (copy / "README.md").open("a") as file:
        file.write(f"\nHF_TOKEN={WRONG_TOKEN}\n")
    line = client.refused(copy, "me/leak")
    assert "README.md holds an access token" in line and WRONG_TOKEN not in line
    assert ("model", "me/leak") not in hub.repos


# --- and back, through two generations -------------------------------------------------------------------------------

# A machine with transformers and without this package.
ELSEWHERE = """
import importlib.abc, os, sys

class NotInstalled(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "finecaption_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, pipeline

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
model.push_to_hub("me/second", private=True)
processor.push_to_hub("me/second", private=True)
try:
    AutoConfig.from_pretrained("me/second", token=os.environ["WRONG_TOKEN"], **trust)
except OSError as error:
    print("wrong token:", error)
"""
SECOND = """
model, processor, _ = read("me/second", "second.pt")
model.push_to_hub("you/third")
processor.push_to_hub("you/third")
del model, processor
exec(open("snippet.py").read())  # asks you/third
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
    client.push(sharded, "me/base", "--license", "apache-2.0")
    card = hub.model("me/base").at("main").files["README.md"].decode()
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert 'model="me/base"' in snippet
    (tmp_path / "snippet.py").write_text(snippet.replace("me/base", "you/third"))

    first = client.run(ELSEWHERE + FIRST, WRONG_TOKEN=WRONG_TOKEN)
    assert first.returncode == 0, first.stderr[-3000:]
    assert "missing revision: " in first.stdout and "nowhere" in first.stdout
    assert "wrong token: " in first.stdout and WRONG_TOKEN not in first.stdout + first.stderr
    second = client.run(ELSEWHERE + SECOND)
    assert second.returncode == 0, second.stderr[-3000:]
    assert "[40, 60, 200, 180] {'Color': " in second.stdout
    # Nothing of the earlier repositories is left to load from.
    for repo in ("me/base", "me/second"):
        shutil.rmtree(tmp_path / "home" / "hub" / f"models--{repo.replace('/', '--')}")
    third = client.run(ELSEWHERE + OFFLINE, HF_HUB_OFFLINE="1")
    assert third.returncode == 0, third.stderr[-3000:]

    base, tuned = torch.load(tmp_path / "base.pt"), torch.load(tmp_path / "tuned.pt")
    assert not torch.allclose(base, tuned, atol=1e-2)
    assert torch.equal(torch.load(tmp_path / "second.pt"), tuned)
    assert torch.equal(torch.load(tmp_path / "third.pt"), tuned)
    assert hub.model("me/second").private
    given = hub.model("me/base").at("main").files
    for repo in ("me/second", "you/third"):
        files = hub.model(repo).at("main").files
        tags = yaml.safe_load(files["README.md"].decode().split("---\n")[1])["tags"]
        assert tags == ["custom_code", "finecaption", "region-captioning"]
        code = {name for name in given if name.endswith("_finecaption.py")}
        assert code == {name for name in files if name.endswith(".py")}
        for name in code:
            assert files[name] == given[name] == (PACKAGE / name).read_bytes(), name
        for name in ("config.json", "processor_config.json"):
            assert json.loads(files[name])["auto_map"] == json.loads(given[name])["auto_map"]
        assert (
            json.loads(files["config.json"])["custom_pipelines"] == json.loads(given["config.json"])["custom_pipelines"]
        )


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


def test_model_and_processor_go_from_memory_in_one_commit_with_a_card(hub, embedded, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    pushed = push_model(*embedded, "me/memory", token=TOKEN, message="From memory")
    commit, _ = hub.model("me/memory").history()
    assert commit.message == "From memory" and pushed.oid == commit.oid
    assert {path.name for path in TINY.glob("*_finecaption.py")} <= set(commit.files)
    card = commit.files["README.md"].decode()
    # The model was loaded from the embedded checkpoint, whose card states it.
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "apache-2.0"
    assert 'model="me/memory"' in card and str(TINY) not in card


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()
