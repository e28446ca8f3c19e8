"""What goes wrong between users and the Hub besides what test_hub_push.py has: storage, limits, gates, lost answers."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
from hub_server import TOKEN, WITHOUT_WAITING, HubServer

import finecaption_hf
from finecaption_hf.hub import HubError, push_folder
from finecaption_hf.hub.checkpoint import checkpoint_files

TINY = finecaption_hf.EMBEDDED_CHECKPOINT
WEIGHTS = (TINY / "model.safetensors").read_bytes()
SHA = hashlib.sha256(WEIGHTS).hexdigest()


def messages(hub: HubServer, repo: str) -> list[str]:
    return [commit.message for commit in hub.model(repo).history()]


def test_an_upload_in_parts_that_is_cut_in_a_part_is_completed_by_the_retry(hub, client):
    hub.part_size = 3_000_000
    assert len(WEIGHTS) > 3 * hub.part_size
    hub.cut.add(SHA)
    line = client.refused(TINY, "me/parts")
    assert "model.safetensors" in line and "Run the same again" in line
    assert hub.part_puts == [(SHA, 1)] and messages(hub, "me/parts") == ["initial commit"]
    hub.cut.clear()
    client.push(TINY, "me/parts")
    assert hub.part_puts[1:] == [(SHA, number) for number in (1, 2, 3, 4)]
    commit, _ = hub.model("me/parts").history()
    assert commit.files["model.safetensors"] == WEIGHTS and "model.safetensors" in commit.lfs


LOAD = """
import sys
from finecaption_hf.asking import load
from safetensors.torch import load_file

model, processor = load(sys.argv[1], device="cpu")
for name, tensor in load_file(sys.argv[2]).items():
    assert model.state_dict()[name].equal(tensor), name
"""


def test_a_download_that_is_cut_goes_on_and_stays_with_its_commit_when_another_arrives(hub, client):
    client.push(TINY, "me/moving", "--private")
    repo = hub.model("me/moving")
    first = repo.at("main")

    def another() -> None:
        files = {**first.files, "model.safetensors": b"of a model with other shapes", "processor_config.json": b"{"}
        repo.commit("main", "another", files, first.lfs)

    hub.cut_downloads[SHA] = another
    done = client.run(WITHOUT_WAITING + LOAD, "me/moving", TINY / "model.safetensors")
    assert done.returncode == 0, done.stderr[-3000:]
    assert messages(hub, "me/moving")[0] == "another"
    assert hub.requests.count(f"GET /lfs/{SHA}") == 2  # from the start, and the rest of it
    # Files of a private repository come from another host, which is given no token to keep.
    assert hub.tokens_at == {"127.0.0.1"}


def test_a_lost_answer_to_the_commit_makes_neither_a_second_one_nor_an_error_that_stays(hub, client):
    hub.lose(r"POST .*/commit/main")
    assert "Run the same again" in client.refused(TINY, "me/lost")
    made = hub.model("me/lost").at("main")
    assert messages(hub, "me/lost") == ["Upload FineCaption checkpoint", "initial commit"]
    hub.puts.clear()
    assert client.push(TINY, "me/lost")["oid"] == made.oid
    assert hub.puts == [] and len(messages(hub, "me/lost")) == 2


def test_a_limit_on_requests_is_waited_for_or_named(hub, client):
    hub.refuse(r"POST .*/preupload/main", 429, Retry_After="1")
    client.push(TINY, "me/limited")
    hub.refuse(r"POST .*/commit/main", 429, Retry_After="60")
    line = client.refused(TINY, "me/limited-too")
    assert "429" in line and "Wait some minutes" in line
    assert messages(hub, "me/limited-too") == ["initial commit"]
    client.push(TINY, "me/limited-too")


def test_servers_that_are_down_for_a_moment_are_asked_again(hub, client):
    hub.refuse(r"PUT /lfs/.*", 500, times=2)
    hub.refuse(r"POST .*/preupload/main", 503)
    client.push(TINY, "me/moment")
    assert hub.puts == [SHA] and len(messages(hub, "me/moment")) == 2


def test_where_the_token_may_only_read_nothing_is_sent(hub, client):
    client.push(TINY, "they/theirs")
    hub.read_only.add("they")
    hub.objects.clear()
    for repo in ("they/theirs", "they/new"):
        line = client.refused(TINY, repo)
        assert "The token may not write there" in line
    assert hub.objects == {} and ("model", "they/new") not in hub.repos


@pytest.mark.parametrize(
    ("request_", "answer", "said"),
    [
        (r"POST /api/repos/create", {}, "KeyError: 'url' - That is no answer of a Hub"),
        (r"POST /api/repos/create", b"<html>", "That is no answer of a Hub"),
        (r"POST .*/commit/main", {"secret": TOKEN}, "KeyError: 'commitUrl' - That is no answer of a Hub"),
    ],
)
def test_an_odd_answer_ends_in_a_line(here, request_, answer, said):
    here.refuse(request_, 200, body=answer)
    with pytest.raises(HubError, match=re.escape(said)) as caught:
        push_folder(TINY, "me/odd")
    assert TOKEN not in str(caught.value) and caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", '{"model_type": "bert"}'), ("README.md", "---\nlibrary_name: diffusers\n---\n# Mine\n")],
)
def test_a_model_of_another_kind_is_not_pushed_over(here, tmp_path, name, content):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / name).write_text(content)
    (tmp_path / "other" / "pytorch_model.bin").write_bytes(b"weights")
    here.hold("me/other", tmp_path / "other")
    for revision in (None, "next"):
        with pytest.raises(HubError, match=r"me/other holds a model of another kind \((bert|diffusers)\)"):
            push_folder(TINY, "me/other", revision=revision)
    assert messages(here, "me/other") == ["all of it"] and set(here.model("me/other").branches) == {"main"}


def test_a_damaged_configuration_on_the_hub_is_replaced(here, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{")
    here.hold("me/damaged", tmp_path / "other")
    push_folder(TINY, "me/damaged")
    assert here.model("me/damaged").at("main").files["config.json"] == (TINY / "config.json").read_bytes()


def test_a_base_that_cannot_be_reached_stops_the_push_and_one_that_is_gone_does_not(here, tmp_path, monkeypatch):
    """Otherwise a moment without network would make a base for research only one whose licence is unknown."""
    folder = tmp_path / "tuned"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("README.md"))
    here.hold("they/base", TINY)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits half a minute
    for request in ("GET /api/models/they/base.*", "HEAD /they/base/.*"):
        here.refuse(request, 502, times=20)
        with pytest.raises(HubError, match="Run the same again"):
            push_folder(folder, "me/tuned", base_model="they/base")
        assert ("model", "me/tuned") not in here.repos
        here._refused.clear()
    del here.repos["model", "they/base"]
    push_folder(folder, "me/tuned", base_model="they/base")
    assert b"- they/base" in here.model("me/tuned").at("main").files["README.md"]


def test_the_name_of_a_private_base_in_a_public_card_is_remarked_on(here, tmp_path):
    folder = tmp_path / "tuned"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("README.md"))
    here.hold("they/base", TINY)
    for private, lines in ((False, 0), (True, 1)):
        here.model("they/base").private = private
        told: list[str] = []
        push_folder(folder, "me/public", base_model="they/base", tell=told.append)
        push_folder(folder, "me/private", base_model="they/base", private=True, tell=told.append)
        assert told == ["they/base is private, and everybody can read its name in me/public, which is public."] * lines


# --- Xet -------------------------------------------------------------------------------------------------------------

XET = {
    "HF_HUB_DISABLE_XET": "0",
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1",  # otherwise it tries for minutes
    "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms",
}


def test_a_hub_without_xet_takes_the_files_by_the_stock_switch(hub, client):
    pytest.importorskip("hf_xet")
    assert "set HF_HUB_DISABLE_XET=1" in client.refused(TINY, "me/without", **XET)
    assert any("xet-write-token" in request for request in hub.requests) and hub.puts == []
    client.push(TINY, "me/without", **XET | {"HF_HUB_DISABLE_XET": "1"})
    assert hub.model("me/without").at("main").files["model.safetensors"] == WEIGHTS


def test_an_upload_to_xet_that_is_cut_is_completed_by_the_retry(hub, client):
    pytest.importorskip("hf_xet")
    hub.xet = {SHA: WEIGHTS}
    hub.cut_xet = True
    line = client.refused(TINY, "me/xet", **XET)
    assert "Run the same again" in line and "HF_HUB_DISABLE_XET=1" in line
    assert messages(hub, "me/xet") == ["initial commit"]
    hub.cut_xet = False
    client.push(TINY, "me/xet", **XET)
    commit, _ = hub.model("me/xet").history()
    assert commit.files["model.safetensors"] == WEIGHTS
    assert hub.puts == [] and hub.tokens_at >= {"127.0.0.1"}


# --- folders that are nearly right -----------------------------------------------------------------------------------


def test_a_run_is_no_checkpoint_and_its_checkpoints_are_named_the_best_first(tmp_path):
    for name in ("1-adapter/final", "1-adapter/checkpoint-20", "3-everything/checkpoint-100", "3-everything/final"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "config.json").write_text(json.dumps({"model_type": "finecaption"}))
    with pytest.raises(HubError) as caught:
        checkpoint_files(tmp_path / "run")
    named = re.findall(r"run/([\w/-]+)", str(caught.value).split(":", 1)[1])
    assert named == ["3-everything/final", "1-adapter/final", "3-everything/checkpoint-100", "1-adapter/checkpoint-20"]
    with pytest.raises(HubError) as caught:
        checkpoint_files(tmp_path / "run" / "3-everything")
    assert str(caught.value).endswith(
        "/final, " + str(tmp_path / "run/3-everything/checkpoint-100") + ". Give one of them."
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(HubError, match=r"it has no config\.json"):
        checkpoint_files(tmp_path / "empty")


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "{"])
def test_an_index_that_names_no_files_is_refused(tmp_path, text):
    folder = Path(shutil.copytree(TINY, tmp_path / "copy"))
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(HubError, match=r"index\.json .*Save (it|the checkpoint) again"):
        checkpoint_files(folder)


@pytest.mark.parametrize(
    ("front", "said"),
    [
        ("license: Apache 2.0", "'Apache 2.0'"),
        ("license: other\nlicense_name: mine", '"license_link" are required'),
        ("license: mit\nbase_model: /models/mine", '"base_model" with value .*/models/mine.* is not valid'),
        ("license: mit\nmodel-index:\n- name: x\n  results:\n  - task: {type: t}", "model_index.*dataset"),
    ],
)
def test_a_card_that_the_hub_refuses_stops_the_push_before_anything_is_made(here, tmp_path, front, said):
    folder = Path(shutil.copytree(TINY, tmp_path / "copy"))
    (folder / "README.md").write_text(f"---\n{front}\n---\n# Mine\n")
    with pytest.raises(HubError, match=said):
        push_folder(folder, "me/bad-card")
    assert ("model", "me/bad-card") not in here.repos


def test_a_card_that_is_no_text_is_refused_by_name(tmp_path):
    folder = Path(shutil.copytree(TINY, tmp_path / "copy"))
    (folder / "README.md").write_bytes("# Café\n".encode("latin-1"))
    with pytest.raises(HubError, match=r"README\.md is no text in UTF-8"):
        push_folder(folder, "me/x")
