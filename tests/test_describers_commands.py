"""Commands with a model beside FineCaption: the same records, files and resumption."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from describers import StubDescriber
from other_models import random_model
from PIL import Image
from test_describers_endpoint import Stub, stub  # noqa: F401  (a fixture)
from typer.testing import CliRunner

from finecaption_hf.asking import ask, load_describer
from finecaption_hf.asking.describers import PromptTemplates, Referral, TransformersDescriber
from finecaption_hf.asking.describers.templates import read_prompts
from finecaption_hf.cli import app
from finecaption_hf.data.examples import Branch, Example, Region
from finecaption_hf.demo.answering import AskedPicture, python_snippet, stream_pieces, what_was_seen
from finecaption_hf.prompts_finecaption import ATTRIBUTES, TASKS

BOXES = [[4, 4, 30, 20], [40, 2, 60, 30], [8, 30, 28, 46], [33, 33, 60, 45], [0, 0, 64, 10]]
QUESTIONS = ("--attribute", "color", "--question", "Is it new?", "--task", "global", "--max-new-tokens", "4")


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with five regions each, and a random LLaVA beside them."""
    made = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    rows = []
    for number in range(3):
        Image.fromarray(generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(made / f"{number}.png")
        rows += [
            {"image": f"{number}.png", "id": f"{number}.{index}", "box_xyxy": box} for index, box in enumerate(BOXES)
        ]
    (made / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for part in random_model("llava"):
        part.save_pretrained(made / "llava")
    return made


def models(folder: Path) -> dict[str, tuple[object, ...]]:
    return {"ours": (), "theirs": ("--model", folder / "llava")}


# --- records, files and resumption ------------------------------------------------------------------------------------


def test_picture_with_five_regions_gets_the_same_records_and_files(folder: Path, tmp_path: Path) -> None:
    found: dict[str, Any] = {}
    for name, chosen in models(folder).items():
        boxes = [part for box in BOXES for part in ("--box", ",".join(map(str, box)))]
        picture = tmp_path / f"{name}.png"
        result = run("caption", folder / "0.png", *boxes, *QUESTIONS, *chosen, "--json", "--out", picture)
        assert result.exit_code == 0, result.output
        found[name] = json.loads(result.stdout)
        assert Image.open(picture).width >= 720
    answers = {name: [record.pop("answers") for record in records] for name, records in found.items()}
    assert all(record.pop("model_note") for record in found["ours"])  # which knows no such pictures
    assert found["ours"] == found["theirs"]  # places, boxes, areas
    assert [record["box_xyxy"] for record in found["theirs"]] == BOXES
    assert [list(it) for it in answers["ours"]] == [list(it) for it in answers["theirs"]]
    by_hand = TransformersDescriber(*random_model("llava"), Referral("box_text"), name="it")
    regions = [{"box_xyxy": box} for box in BOXES]
    asked = ask(by_hand, folder / "0.png", regions, ["color", "Is it new?", "global"], max_new_tokens=4)
    assert answers["theirs"] == [record["answers"] for record in asked]


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Interrupts describers at the question whose number is put in."""
    left: list[int] = []
    for kind in ("finecaption.FineCaptionDescriber", "describers.TransformersDescriber"):
        module, _, name = f"finecaption_hf.asking.{kind}".rpartition(".")
        describer = getattr(__import__(module, fromlist=[name]), name)

        def stream(self: Any, *given: Any, real: Any = describer.stream, **options: Any) -> Iterator[Any]:
            for update in real(self, *given, **options):
                yield update
                if left and update.answer.finish_reason is not None:
                    left[0] -= 1
                    if not left[0]:
                        raise KeyboardInterrupt

        monkeypatch.setattr(describer, "stream", stream)
    yield left


def test_data_set_gets_the_same_files_also_after_an_interruption(
    folder: Path, tmp_path: Path, stopped: list[int]
) -> None:
    for name, chosen in models(folder).items():
        options = (*QUESTIONS, *chosen, "--batch-size", 1, "--device", "cpu")
        whole, parts = tmp_path / f"{name}.jsonl", tmp_path / f"{name}-parts.jsonl"
        assert run("describe", folder / "rows.jsonl", "--output", whole, *options).exit_code == 0
        stopped[:] = [16]  # eleven questions about a picture: in the midst of the second
        result = run("describe", folder / "rows.jsonl", "--output", parts, *options)
        assert result.exit_code == 130 and "5 of 15 regions are finished" in result.output, result.output
        stopped.clear()
        result = run("describe", folder / "rows.jsonl", "--output", parts, *options)
        assert result.exit_code == 0 and "5 of 15 regions were described before; going on." in result.output
        assert parts.read_bytes() == whole.read_bytes()
    ours, theirs = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()] for name in models(folder)
    )
    assert all(record.pop("model_note") for record in ours)
    for records in (ours, theirs):
        assert all(list(record.pop("answers")) == ["Color", "Is it new?", "global"] for record in records)
    assert ours == theirs
    refused = run(
        "describe", folder / "rows.jsonl", "--output", tmp_path / "theirs.jsonl", *QUESTIONS, "--batch-size", 1
    )
    assert refused.exit_code == 2 and "model" in refused.output


def test_evaluation_takes_another_model_and_goes_on(folder: Path, tmp_path: Path, stopped: list[int]) -> None:
    regions = tuple(Region({"box_xyxy": box}, (Branch("It is red.", name="Color"),)) for box in BOXES)
    data = tmp_path / "described.jsonl"
    data.write_text(json.dumps(Example(str(folder / "0.png"), regions).to_json()) + "\n")
    options: tuple[object, ...] = ("--data", data, "--model", folder / "llava", "--referral", "crop")
    options += ("--metrics", "rouge_l", "--tokenizer", "python", "--resamples", 10, "--max-new-tokens", 4)
    stopped[:] = [3]
    CliRunner().invoke(app, list(map(str, ("evaluate", "--output", tmp_path / "a", *options))))
    stopped.clear()
    for output in ("a", "b"):
        result = run("evaluate", "--output", tmp_path / output, *options)
        assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert report["settings"]["referral"]["kind"] == "crop" and report["counts"]["captions"] == 5
    texts = [(tmp_path / output / "predictions.jsonl").read_text().splitlines()[1:] for output in ("a", "b")]
    assert texts[0] == texts[1]
    refused = run("evaluate", "--output", tmp_path / "c", *options, "--diagnostics", "mask")
    assert refused.exit_code == 2 and "mask look into FineCaption's mask-aware tower" in refused.output


def test_endpoint_that_ends_a_run_keeps_what_was_finished(stub: Stub, folder: Path, tmp_path: Path) -> None:  # noqa: F811
    options = ("--base-url", stub.url, "--model", "m", "--api-key-env", "STUB_KEY", "--batch-size", 1)
    command = ("describe", folder / "rows.jsonl", "--output", tmp_path / "out.jsonl", "--attribute", "color", *options)
    stub.replies = [*[None] * 7, *[(401, "", {})] * 3]
    ended = run(*command)
    assert ended.exit_code == 1 and "answers nothing with this key" in ended.output
    assert "5 of 15 regions are finished. What was finished is kept" in ended.output
    asked_before = len(stub.requests)
    stub.replies = []
    assert run(*command).exit_code == 0
    assert len(stub.requests) - asked_before == 10
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    said = "About: The marked region is outlined in red. Describe the colors of the marked region."
    assert [record["answers"] for record in records] == [{"Color": said}] * 15


def test_endpoint_that_answers_nothing_is_one_line_of_caption(stub: Stub, folder: Path) -> None:  # noqa: F811
    stub.replies = [(401, "", {})]
    options = ("--base-url", stub.url, "--model", "m", "--api-key-env", "STUB_KEY")
    result = run("caption", folder / "0.png", *options)
    assert result.exit_code == 2 and result.stderr.startswith("Error:") and result.stderr.count("\n") == 1
    stub.replies = [(400, {"error": {"message": "too large"}}, {}), None]
    result = run("caption", folder / "0.png", *options, "--question", "A?", "--question", "B?")
    told, refused = ("B?", "A?") if "About: B?" in result.stdout else ("A?", "B?")  # both are asked at once
    assert result.exit_code == 1 and f"About: {told}" in result.stdout
    assert f"Error: region 1, {refused}: " in result.stderr and "too large" in result.stderr


# --- options ----------------------------------------------------------------------------------------------------------


class Echo:
    """The code of a model of one's own."""

    takes_mask = False
    settings: dict[str, Any] = {}

    def answer(self, image: Image.Image, mask: np.ndarray | None, prompt: str) -> str:
        return f"{image.width}x{image.height} {prompt}"


ECHO = ("--describer", "test_describers_commands:Echo")


def test_points_of_another_model_are_segmented_without_one(folder: Path) -> None:
    pytest.importorskip("cv2", reason="points are segmented by OpenCV, of the extra segmentation")
    result = run("caption", folder / "0.png", "--point", "20,20", *ECHO, "--referral", "contour_drawn")
    assert result.exit_code == 0, result.output
    assert "64x48 The marked region is outlined in red." in result.stdout and "1 region found by" in result.stderr


def test_referral_prompts_and_what_was_sent_are_options(folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("{default: '{referral} Q: {question}', by_name: {color: '{referral} Which colour?'}}")
    command = ("caption", folder / "0.png", "--box", "4,4,44,40", *ECHO, "--prompts", prompts, "--json", "--keep-sent")
    referral = ("--referral", "{kind: box_drawn, color: blue}")
    [record] = json.loads(run(*command, *referral, "--attribute", "color", "--question", "New?").stdout)
    sentence = "The marked region is inside the blue box."
    assert record["answers"] == {"Color": f"64x48 {sentence} Which colour?", "New?": f"64x48 {sentence} Q: New?"}
    assert {name: sent["text"] for name, sent in record["sent"].items()} == {
        "Color": f"{sentence} Which colour?",
        "New?": f"{sentence} Q: New?",
    }


@pytest.mark.parametrize(
    "options, message",
    [
        (("--referral", "crop"), "FineCaption is referred to by 'mask' or 'filled_box', not by 'crop'"),
        (("--referral", "{kind"), "--referral {kind: this is no YAML"),
        (("--prompts", "nowhere.yaml"), "prompts: no effect with the embedded checkpoint"),
        ((*ECHO, "--prompts", "nowhere.yaml"), "nowhere.yaml: there is no such file or folder."),
        (("--keep-sent",), "--keep-sent goes with --json"),
        (("--model", "nobody/nothing"), "nobody/nothing is no folder, is not on this machine, and the Hub"),
        (("--base-url", "http://127.0.0.1:9/v1"), "There is no model. Give the name that it has at the endpoint"),
    ],
)
def test_option_that_cannot_be_meant_is_one_line(options: tuple[str, ...], message: str, folder: Path) -> None:
    result = run("caption", folder / "0.png", *options)
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1


def test_prompts_that_are_written_ask_what_is_asked_without_them(folder: Path, tmp_path: Path) -> None:
    known = {**TASKS, **ATTRIBUTES}
    kosmos = tmp_path / "kosmos"
    kosmos.mkdir()
    (kosmos / "config.json").write_text('{"model_type": "kosmos-2"}')
    grounded = PromptTemplates("<grounding> {referral} Question: {question} Answer:")
    for chosen, asked in (((), PromptTemplates()), (("--model", kosmos), grounded)):
        out = tmp_path / f"{len(chosen)}.yaml"
        assert run("prompts", *chosen, "--out", out).exit_code == 0
        assert set(yaml.safe_load(out.read_text())["by_name"]) == set(known)
        written = read_prompts(out)
        for name, question in {**known, "own": "Is it new?"}.items():
            for referral in ("R.", ""):
                filled = {"referral": referral, "box": "B", "whole": not referral}
                assert written.write(question, name, **filled) == asked.write(question, name, **filled)
        again = run("prompts", "--out", out)
        assert again.exit_code == 2 and "is there already" in again.stderr


# --- decoding ---------------------------------------------------------------------------------------------------------


def test_request_says_how_long_and_how_it_is_drawn() -> None:
    describer = TransformersDescriber(*random_model("llava"), Referral("crop"), name="it", batch_size=3)
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    regions = [{"box_xyxy": box} for box in BOXES]

    def said(regions: list[Any], **decoding: Any) -> list[str]:
        return [
            text for record in ask(describer, picture, regions, "Q?", **decoding) for text in record["answers"].values()
        ]

    lengths: list[int] = []
    generate = describer._model.generate

    def watched(**inputs: Any) -> Any:
        made = generate(**inputs)
        lengths.append(made.shape[1] - inputs["input_ids"].shape[1])
        return made

    describer._model.generate = watched
    short = said(regions, max_new_tokens=3)
    assert lengths == [3, 3] and said(regions, max_new_tokens=3) == short
    drawn = said(regions, max_new_tokens=9, temperature=1.5, seed=1)
    assert drawn == said(regions, max_new_tokens=9, temperature=1.5, seed=1)
    assert drawn[:2] == said(regions[:2], max_new_tokens=9, temperature=1.5, seed=1)  # whatever is asked beside them
    assert drawn != said(regions, max_new_tokens=9, temperature=1.5, seed=2) != said(regions, max_new_tokens=9)


def test_endpoint_is_told_how_to_decode(stub: Stub, folder: Path) -> None:  # noqa: F811
    options = ("--base-url", stub.url, "--model", "m", "--max-new-tokens", 7, "--temperature", 0.5, "--top-p", 0.9)
    assert run("caption", folder / "0.png", *options).exit_code == 0
    [sent] = stub.requests
    assert (sent["max_tokens"], sent["temperature"], sent["top_p"]) == (7, 0.5, 0.9) and 0 <= sent["seed"] < 2**31


def test_code_that_cannot_be_told_says_so(folder: Path) -> None:
    result = run("caption", folder / "0.png", *ECHO, "--temperature", 0.5)
    assert result.exit_code == 1 and "temperature, top_p, seed: no effect with" in result.stderr


def test_stop_strings_end_an_answer() -> None:
    describer = load_describer(describer="test_describers_commands:Echo", referral="crop")
    [record] = ask(describer, Image.new("RGB", (64, 48)), None, "What? Which?", stop_strings=("Which", "?"))
    assert record["answers"] == {"What? Which?": "64x48 What"}


# --- the demo ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_demo_is_built_around_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio", reason="gradio (the extra demo) is not installed")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    from finecaption_hf.demo import app as demo_app

    built: list[Any] = []
    monkeypatch.setattr(demo_app, "launch_demo", lambda demo, **options: built.append(demo))
    assert run("demo", *ECHO, "--referral", "crop").exit_code == 0
    assert "answer" in {it.name for it in built[0].fns.values()}


def test_demo_answers_with_another_model(folder: Path) -> None:
    describer = load_describer(describer=ECHO[1], referral="crop")
    picture = Image.open(folder / "0.png").convert("RGB")
    regions = [{"box_xyxy": [4, 4, 44, 40]}]
    asked = AskedPicture.read(picture, "0.png", regions, ["color"], describer.questions, temperature=0.0, seed=0)
    for piece in stream_pieces(describer, asked):
        asked.take(*piece)
    assert asked.records[0]["answers"]["Color"].startswith("40x36 The image is cropped to the marked region.")
    assert [(seen.size, line) for seen, line in what_was_seen(describer, asked)] == [((40, 36), "Region 1, 40x36")]
    assert "ask(describer, '0.png'" in python_snippet(asked, "them/theirs", is_finecaption=False)
    assert what_was_seen(StubDescriber(), asked) == []
