"""Fine-tuning from the Hub and pushing back, through two generations of fresh processes and a server on loopback."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import TOKEN, WITHOUT_WAITING, HubServer
from safetensors import safe_open

import finecaption_hf
from finecaption_hf.asking import ask, load_describer
from finecaption_hf.hub.provenance import keep_origin
from finecaption_hf.scenes.writing import write_scenes
from finecaption_hf.training.arguments import build_arguments
from finecaption_hf.training.stages import STAGES, StageError

TINY = finecaption_hf.EMBEDDED_CHECKPOINT
BOX = {"box_xyxy": [40, 60, 200, 180]}
QUICK = ("--use-cpu", "--bf16", "false", "--disable-tqdm", "true", "--max-steps", "2", "--learning-rate", "1e-3")
QUICK += ("--per-device-train-batch-size", "1", "--gradient-accumulation-steps", "1")
CAPTION = f"""
import json, sys
from transformers import pipeline

describe = pipeline("region-captioning", model=sys.argv[1], trust_remote_code=True)
assert type(describe.model).__module__.startswith("transformers_modules."), type(describe.model)
[record] = describe("photo.png", [{BOX}], ["color", "region"])
print(json.dumps({{"answers": list(record["answers"].values()), "sam": describe.model.config.sam_pretrained}}))
"""


@pytest.fixture
def base(tmp_path) -> Path:
    """The embedded checkpoint as assembling leaves one: with parts, of which a tower is research only."""
    folder = Path(shutil.copytree(TINY, tmp_path / "base", ignore=shutil.ignore_patterns("__pycache__", "README.md")))
    parts = [
        ("mask-aware CLIP tower with its mask input", "clip_grit20m.pth", False, None),
        ("SAM tower", "facebook/sam-vit-base", True, "apache-2.0"),
        ("language model", "meta-llama/Llama-3.1-8B-Instruct", True, "llama3.1"),
    ]
    summary = {
        "parts": [
            {
                "role": role,
                "source": source,
                "from_hub": is_hub,
                "revision": "ab" * 20 if is_hub else None,
                "licence": own,
            }
            for role, source, is_hub, own in parts
        ],
        "initialised": [{"what": "adapter"}],
    }
    (folder / "assembly.json").write_text(json.dumps(summary))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "sam_pretrained": "facebook/sam-vit-base"}))
    return folder


def card_of(hub: HubServer, repo: str) -> tuple[dict[str, Any], str]:
    text = hub.model(repo).at("main").files["README.md"].decode()
    _, fields, body = text.split("---\n", 2)
    return yaml.safe_load(fields), body


def test_two_generations_are_trained_from_the_hub_pushed_and_loaded_again(hub, client, base, tmp_path):
    records = write_scenes(tmp_path / "secret-place" / "scenes", 3, size=192)
    shutil.copy(next(records.parent.glob("images/*.png")), tmp_path / "photo.png")
    # A private base of which only a branch holds anything, so that what ignores the revision finds nothing.
    client.push(base, "me/base", "--private", "--revision", "v1")
    assert hub.model("me/base").private

    train = ("train", *QUICK, "--data")
    client.command(*train, records, "--stage", "1", "--model", "me/base@v1", "--output", "runs/one")
    # Whatever becomes of the base: training has kept what it said of its parts.
    origin = hub.repos.pop(("model", "me/base")).at("v1").oid
    client.push("runs/one/final", "me/one")
    one = json.loads(client.run(CAPTION, "me/one").stdout)
    assert one["sam"] == "facebook/sam-vit-base"  # an adapter was trained, beside a tower that stays what it was

    client.command(*train, f"compositioncap={records}", "--stage", "3", "--model", "me/one", "--output", "runs/two")
    client.push("runs/two/final", "you/two")
    two = json.loads(client.run(CAPTION, "you/two").stdout)
    assert two["sam"] is None
    assert (
        json.loads(client.run(CAPTION, "you/two", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9").stdout) == two
    )

    # What was pushed answers as what was trained; each generation has weights of its own.
    for answers, run in ((one["answers"], "one"), (two["answers"], "two")):
        describer = load_describer(tmp_path / "runs" / run / "final", device="cpu")
        (record,) = ask(describer, tmp_path / "photo.png", BOX, ["color", "region"])
        assert list(record["answers"].values()) == answers
    files = {repo: hub.model(repo).at("main").files for repo in ("me/one", "you/two")}
    weights = {content["model.safetensors"] for content in files.values()}
    assert len(weights | {(TINY / "model.safetensors").read_bytes()}) == 3

    for repo, base_model, stages in (
        ("me/one", "me/base", ["adapter"]),
        ("you/two", "me/one", ["adapter", "everything"]),
    ):
        fields, body = card_of(hub, repo)
        assert fields["base_model"] == [base_model]
        assert fields["license"] == "other" and fields["license_name"] == "research-only"
        for words in ("clip_grit20m.pth", "facebook/sam-vit-base", "Llama-3.1-8B-Instruct", "llama3.1", "ab" * 20):
            assert words in body, words
        rows = [line for line in body.splitlines() if "| 0.001 | 2 |" in line]
        assert [row.split("|")[1].strip() for row in rows] == stages
        assert f'model="{repo}"' in body and f"`adapter` began with me/base at commit `{origin}`" in body
    assert "scenes |" in rows[0] and "compositioncap |" in rows[1]
    assert "noncommercial" in body

    # Nothing that is pushed names a folder of this machine.
    for content in files.values():
        assert not {"stage.json", "run.json", "training_args.bin"} & content.keys()
        for name, data in content.items():
            assert b"secret-place" not in data and str(tmp_path).encode() not in data, name
    with safe_open(tmp_path / "runs/two/final/model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


ERRORS = """
import json, os, sys
from finecaption_hf.cli import app

for model, token in json.loads(sys.argv[2]):
    os.environ["HF_TOKEN"] = token
    try:
        app([*json.loads(sys.argv[1]), "--model", model, "--output", model.replace("/", "-")])
    except SystemExit as end:
        assert end.code == 2, model
"""


def test_a_base_that_cannot_be_had_ends_in_a_line_that_says_why(hub, client, tmp_path):
    records = write_scenes(tmp_path / "scenes", 1, size=192)
    hub.hold("they/gated", TINY).gated = True
    hub.hold("they/open", TINY)
    hub.hold("they/private", TINY).private = True
    asked = [("they/gated", TOKEN), ("they/gated", ""), ("they/open@v9", TOKEN)]
    asked += [("they/open", "hf_wrong"), ("they/private", "")]
    command = ["train", "--stage", "1", "--data", str(records), *QUICK]
    done = client.run(WITHOUT_WAITING + ERRORS, json.dumps(command), json.dumps(asked))
    assert done.returncode == 0, done.stderr[-3000:]
    refused, unknown, missing, wrong, private = [
        line for line in done.stderr.splitlines() if line.startswith("Error: ")
    ]
    assert "Traceback" not in done.stderr
    for gated in (refused, unknown):
        assert "they/gated is gated" in gated
    assert "they/open has no such revision" in missing
    assert "401" in wrong and "hf_wrong" not in done.stdout + done.stderr
    assert "they/private" in private and "for a private one log in" in private
    # Nothing was begun that would be in the way of the next attempt.
    assert not list(tmp_path.glob("they-*/checkpoint-*")) and not list(tmp_path.glob("they-*/final"))


def test_the_upload_of_the_trainer_is_refused():
    with pytest.raises(StageError, match="use finecaption push"):
        build_arguments(STAGES[1], "nowhere", {}, {"push_to_hub": True}, False)


def test_what_a_base_says_is_kept_of_the_commit_that_a_run_begins_with(here, tmp_path):
    repo = here.hold("they/base", TINY)
    first, kept = repo.at("main"), tmp_path / "run" / "origin"
    kept.parent.mkdir()
    keep_origin(f"they/base@{first.oid}", kept)
    assert {path.name for path in kept.iterdir()} == {"README.md", "origin.json"}
    second = repo.commit("main", "changed", {**first.files, "README.md": b"changed"}, first.lfs)
    for commit in (first, second):
        keep_origin(f"they/base@{commit.oid}", kept)
        assert json.loads((kept / "origin.json").read_text()) == {"model": "they/base", "commit": commit.oid}
        assert (kept / "README.md").read_bytes() == commit.files["README.md"]
