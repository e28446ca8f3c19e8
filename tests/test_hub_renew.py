"""Today's code for checkpoints that were saved earlier: in folders, whenever it ends, and on a Hub on loopback."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import NOT_INSTALLED
from hub_server import Client
from safetensors.torch import load_file

import finecaption_hf
from finecaption_hf.asking import load
from finecaption_hf.hub import HubError, renew
from finecaption_hf.resuming import read_seal, seal

TINY = finecaption_hf.EMBEDDED_CHECKPOINT
PACKAGE = Path(finecaption_hf.__file__).parent
CODE = {path.name: path.read_bytes() for path in PACKAGE.glob("*_finecaption.py")}
OLD = b"# written for another release\nimport transformers.name_that_is_gone\n"
OBSOLETE, ADDED = "packing_finecaption.py", "pipeline_finecaption.py"
CONFIGURATIONS = ("config.json", "processor_config.json")


def make_old(folder: Path) -> Path:
    """The embedded checkpoint as if pushed with other code: files that changed, one too many, one too few."""
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("masks_finecaption.py", "configuration_finecaption.py"):
        (folder / name).write_bytes(OLD + (folder / name).read_bytes())
    (folder / ADDED).unlink()
    (folder / OBSOLETE).write_bytes(OLD)
    with (folder / "modeling_finecaption.py").open("ab") as file:
        file.write(b"\nfrom .packing_finecaption import pack\n")
    config = json.loads((folder / "config.json").read_text())
    ours = {**config["auto_map"], "AutoModelForVision2Seq": "modeling_finecaption.Old"}
    ours["AutoModel"] = "they/other--modeling_finecaption.FineCaption"
    config |= {"auto_map": {"AutoModelForCausalLM": "mine.Captioner", **ours}, "note": ["é", 1e-05, None]}
    config["custom_pipelines"] = {"old": {"impl": "packing_finecaption.Pipeline"}, "mine": {"impl": "mine.Pipeline"}}
    (folder / "config.json").write_text(json.dumps(config))
    processor = json.loads((folder / "processor_config.json").read_text())
    processor["auto_map"] = {"AutoProcessor": "processing_finecaption.OldProcessor"}
    del processor["image_processor"]["auto_map"]
    (folder / "processor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture
def old(tmp_path) -> Path:
    return make_old(tmp_path / "old")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_renewed(found: dict[str, bytes], before: dict[str, bytes]) -> None:
    assert {name: found[name] for name in found if name.endswith(".py")} == CODE
    for name in before.keys() - {*CODE, *CONFIGURATIONS, OBSOLETE}:
        assert found[name] == before[name], name
    config, was = json.loads(found["config.json"]), json.loads(before["config.json"])
    today = json.loads((TINY / "config.json").read_bytes())
    assert config["auto_map"] == {**today["auto_map"], "AutoModelForCausalLM": "mine.Captioner"}
    assert config["custom_pipelines"] == {**today["custom_pipelines"], "mine": {"impl": "mine.Pipeline"}}
    keys = ("auto_map", "custom_pipelines")
    assert {k: v for k, v in config.items() if k not in keys} == {k: v for k, v in was.items() if k not in keys}
    assert json.loads(found["processor_config.json"]) == json.loads((TINY / "processor_config.json").read_bytes())


def test_a_folder_gets_the_code_and_the_entries_of_today_and_keeps_everything_else(old):
    before = content(old)
    weights = (old / "model.safetensors").stat()
    planned = renew(old, dry_run=True)
    assert content(old) == before
    assert renew(old) == planned
    assert planned.replaced == [
        "config.json",
        "configuration_finecaption.py",
        "masks_finecaption.py",
        "modeling_finecaption.py",
        "processor_config.json",
    ]
    assert (planned.added, planned.deleted, planned.commit_url) == ([ADDED], [OBSOLETE], None)
    assert_renewed(content(old), before)
    now = (old / "model.safetensors").stat()
    assert (now.st_ino, now.st_mtime_ns) == (weights.st_ino, weights.st_mtime_ns)
    model, _ = load(old, device="cpu")
    assert all(model.state_dict()[name].equal(tensor) for name, tensor in load_file(TINY / "model.safetensors").items())
    times = {path.name: path.stat().st_mtime_ns for path in old.iterdir()}
    assert renew(old).is_up_to_date
    assert {path.name: path.stat().st_mtime_ns for path in old.iterdir()} == times


class Killed(BaseException):
    pass


def generations(folder: Path) -> list[set[bytes]]:
    """For each configuration, what the code that it names comes to: that of the package, or what was there before."""
    found = []
    for name in CONFIGURATIONS:
        queue = re.findall(r'"(\w+_finecaption)\.\w+"', (folder / name).read_text())
        assert queue, name
        seen: dict[str, str] = {}
        while queue:
            module = queue.pop()
            if module not in seen:
                seen[module] = (folder / f"{module}.py").read_text()
                queue += re.findall(r"^from \.(\w+) import", seen[module], re.MULTILINE)
        found.append({text.replace("_renewed_finecaption", "_finecaption").encode() for text in seen.values()})
    return found


def test_a_folder_can_be_loaded_whenever_renewing_ends_and_the_next_call_finishes(tmp_path, monkeypatch):
    """Code of two releases is never mixed: no part of either knows the other's names."""
    given = make_old(tmp_path / "given")
    for name in CONFIGURATIONS:  # code that names only what is there
        shutil.copy(TINY / name, given / name)
    for name in CODE:
        (given / name).write_bytes(OLD + CODE[name])
    old_code = {path.read_bytes() for path in given.glob("*.py")}
    replace, unlink = os.replace, Path.unlink
    steps, ended = 0, False
    while not ended:
        folder = Path(shutil.copytree(given, tmp_path / f"killed-{steps}", copy_function=os.link))
        left = [steps]

        def counted(function: Any, *arguments: Any, left: list[int] = left) -> Any:
            if not left[0]:
                raise Killed
            left[0] -= 1
            return function(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", lambda *arguments: counted(replace, *arguments))
            patch.setattr(Path, "unlink", lambda *arguments: counted(unlink, *arguments))
            try:
                renew(folder)
                ended = True
            except Killed:
                steps += 1
        for code in generations(folder):
            assert code <= old_code or code <= set(CODE.values()), steps
        renew(folder)
        assert_renewed_code(folder)
        if steps % 10 == 0:
            load(folder, device="cpu")
    assert steps > 2 * len(CODE)


def assert_renewed_code(folder: Path) -> None:
    assert {path.name: path.read_bytes() for path in folder.iterdir() if "finecaption.py" in path.name} == CODE


def test_a_checkpoint_of_training_stays_whole(old):
    seal(old, {"global_step": 7})
    renew(old)
    sealed = read_seal(old)
    assert sealed["global_step"] == 7 and OBSOLETE not in sealed["files"] and ADDED in sealed["files"]
    assert renew(old).is_up_to_date


def test_links_are_replaced_and_what_they_point_to_stays(old, tmp_path):
    elsewhere = tmp_path / "elsewhere.py"
    elsewhere.write_bytes(OLD)
    (old / "prompts_finecaption.py").unlink()
    (old / "prompts_finecaption.py").symlink_to(elsewhere)
    (old / "masks_finecaption.py").unlink()
    (old / "masks_finecaption.py").symlink_to(PACKAGE / "masks_finecaption.py")
    (old / OBSOLETE).unlink()
    (old / OBSOLETE).symlink_to(PACKAGE / "__init__.py")
    package = {path: path.read_bytes() for path in PACKAGE.glob("*.py")}
    renew(old)
    assert elsewhere.read_bytes() == OLD and not (old / "prompts_finecaption.py").is_symlink()
    assert {path: path.read_bytes() for path in PACKAGE.glob("*.py")} == package
    assert (old / "masks_finecaption.py").is_symlink() and not (old / OBSOLETE).is_symlink()


def test_the_embedded_checkpoint_is_up_to_date():
    links = {path.name: path.readlink() for path in TINY.glob("*.py") if path.is_symlink()}
    assert renew(TINY).is_up_to_date
    assert {path.name: path.readlink() for path in TINY.glob("*.py") if path.is_symlink()} == links


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"model_type": "llama"}', "is no FineCaption checkpoint: its model_type is 'llama'"),
        (None, r"it has no config\.json"),
        ("{", r"config\.json is no JSON"),
    ],
)
def test_what_is_no_finecaption_is_refused_and_left_alone(tmp_path, config, message):
    (tmp_path / "modeling_finecaption.py").write_text("mine")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    before = content(tmp_path)
    with pytest.raises(HubError, match=message):
        renew(tmp_path)
    with pytest.raises(HubError, match="is a folder, which has no branches"):
        renew(tmp_path, revision="main")
    assert content(tmp_path) == before


# --- on the Hub ------------------------------------------------------------------------------------------------------


LOAD = (
    NOT_INSTALLED
    + """
import json
from transformers import AutoModelForImageTextToText, AutoProcessor
options = {"trust_remote_code": True, **json.loads(sys.argv[2])}
try:
    if "code_revision" not in options:  # which the library does not hand on to the image processor
        AutoProcessor.from_pretrained(sys.argv[1], **options)
    print(type(AutoModelForImageTextToText.from_pretrained(sys.argv[1], **options)).__module__)
except ImportError as error:
    print(f"old code: {error}")
"""
)


def loaded(client: Client, repo: str, **options: str) -> str:
    """What a machine without this package gets of a repository."""
    done = client.run(LOAD, repo, json.dumps(options))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_repository_is_renewed_in_one_commit_and_loads_again(hub, client, old):
    repo = hub.hold("me/old", old)
    first = repo.at("main")
    assert "name_that_is_gone" in loaded(client, "me/old")
    listed = client.command("renew", "me/old", "--dry-run")
    assert f"to be deleted: {OBSOLETE}" in listed and "to be replaced: config.json" in listed
    assert repo.at("main") is first
    printed = client.command("renew", "me/old")
    made = repo.at("main")
    assert made.parent == first.oid and made.oid in printed and f"added: {ADDED}" in printed
    assert_renewed(made.files, first.files)
    assert made.lfs == first.lfs and not hub.puts
    assert "transformers_modules.me." in loaded(client, "me/old")
    assert client.command("renew", "me/old") == "me/old is up to date.\n"
    assert repo.at("main") is made


def test_a_branch_is_renewed_and_main_stays_as_it_was(hub, client, old):
    repo = hub.hold("me/old", old)
    first = repo.at("main")
    repo.branches["v1"] = first.oid
    client.command("renew", "me/old", "--revision", "v1")
    assert repo.at("main") is first and OBSOLETE not in repo.at("v1").files
    assert "There is no such revision" in client.fails("renew", "me/old", "--revision", "v2")


def test_who_may_not_write_proposes_the_commit_and_loads_from_there(hub, client, old):
    """As docs/renewing.md says."""
    for name in CONFIGURATIONS:  # of a checkpoint whose classes have the names of today
        shutil.copy(TINY / name, old / name)
    repo = hub.hold("they/old", old)
    first = repo.at("main")
    hub.read_only.add("they")
    assert "The token may not write there" in client.fails("renew", "they/old")
    assert "Log in with `hf auth login`" in client.fails("renew", "they/old", HF_TOKEN="")
    assert "discussions/1" in client.command("renew", "they/old", "--create-pr")
    assert repo.at("main") is first
    assert "name_that_is_gone" in loaded(client, "they/old")
    for option in ("revision", "code_revision"):
        assert "transformers_modules.they." in loaded(client, "they/old", **{option: "refs/pr/1"})


def test_what_is_nowhere_is_named_with_what_to_do(client, hub, old):
    line = client.fails("renew", "me/nowhere")
    assert "There is no folder me/nowhere; on the Hub: me/nowhere:" in line
    assert line.endswith("There is no such repository, or not for this token.")
    assert "'namespace/repo_name': 'a/b/c'" in client.fails("renew", "a/b/c")
    (old / "config.json").write_text('{"model_type": "llama"}')
    hub.hold("me/llama", old)
    assert "me/llama is no FineCaption checkpoint" in client.fails("renew", "me/llama")


def test_neither_a_lost_answer_nor_another_commit_meanwhile_does_harm(hub, client, old):
    repo = hub.hold("me/old", old)
    hub.lose(r"POST .*/commit/main")
    assert "Run the same again" in client.fails("renew", "me/old")
    assert client.command("renew", "me/old") == "me/old is up to date.\n" and len(repo.history()) == 2
    first = repo.commit("main", "back", repo.history()[1].files, repo.history()[1].lfs)
    hub.before_commit = lambda: repo.commit("main", "meanwhile", {**first.files, "README.md": b"new"}, first.lfs)
    assert "Another commit has arrived meanwhile. Run the same again." in client.fails("renew", "me/old")
    client.command("renew", "me/old")
    assert repo.at("main").files["README.md"] == b"new" and OBSOLETE not in repo.at("main").files
