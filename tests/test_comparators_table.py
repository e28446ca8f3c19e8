"""Tables of models: rows are what the file says, each is a run of its own, and cited figures stay apart."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from describers import Request, StubDescriber, describe
from evaluation_data import prediction, write_predictions
from other_models import random_model
from PIL import Image
from typer.testing import CliRunner

from finecaption_hf.asking.describers import (
    EndpointDescriber,
    FilledBoxDescriber,
    RegionModelDescriber,
    TransformersDescriber,
)
from finecaption_hf.asking.describers.region_models import REGION_MODELS
from finecaption_hf.cli import app
from finecaption_hf.data.examples import Branch, Example, Region
from finecaption_hf.evaluation import EvaluationError
from finecaption_hf.evaluation.comparators import (
    PAPER_TABLE_2,
    Row,
    RowResult,
    cited_row,
    read_table,
    report_table,
    run_table,
)
from finecaption_hf.evaluation.metrics import CaptionScorer
from finecaption_hf.evaluation.predictions import read_predictions
from finecaption_hf.prompts_finecaption import ATTRIBUTES, TASKS


def write(folder: Path, *rows: str) -> Path:
    path = folder / "table.yaml"
    path.write_text("rows:\n" + "".join(f"  - {row}\n" for row in rows), encoding="utf-8")
    return path


def examples(count: int = 2) -> list[Example]:
    made = []
    for number in range(count):
        branches = (Branch("A red cup.", name="Category Name"), Branch("It is red.", question="Which color is it?"))
        picture = Image.fromarray(np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8))
        made.append(Example(picture, (Region({"box_xyxy": [8, 8, 40, 30]}, branches),), id=f"picture-{number}"))
    return made


# --- reading ---------------------------------------------------------------------------------------------------------


def test_table_of_the_paper_has_its_systems_in_its_order() -> None:
    rows = {row.name: row for row in read_table("table2")}
    # Names and "visual prompt" of the paper's Table 2: zero-shot, then what only its supervised half has.
    paper = {
        **{"Kosmos-2": "box_text", "Alpha-CLIP-13B": "mask", "Qwen2-VL-7B": "box_text", "Ferret-13B": "mask"},
        **{"ViP-LLaVA-13B": "contour_drawn", "Llama-3.2-11B-Vision": "box_drawn", "Llama-3.2-90B-Vision": "box_drawn"},
        **{"InternVL-2-40B": "box_text", "GPT-4o": "box_drawn", "LLaVA-1.6-13B": "box_text", "VILA1.5-8B": "box_text"},
        **{"LLaVA-HR-X": "box_text", "FineCaption": "mask"},
    }
    assert [(name, row.referral.kind) for name, row in rows.items()][: len(paper)] == list(paper.items())
    assert [row.cites for row in rows.values() if row.cites] == ["FineCaption-8B"]
    assert rows["FineCaption with a filled box"].referral.kind == "filled_box"
    describers = {row.options["describer"]: row for row in rows.values() if row.kind == "describer"}
    assert set(describers) == set(REGION_MODELS)
    for name, row in describers.items():
        assert row.referral == REGION_MODELS[name].family.referral
        assert not row.options.get("trust_remote_code", False)
    assert len({row.slug for row in rows.values()}) == len(rows)


def test_row_has_what_the_file_says(tmp_path: Path) -> None:
    [row] = read_table(
        write(
            tmp_path,
            "{name: Q, kind: transformers, model: a/b, revision: abc, referral: {kind: box_drawn, color: blue},"
            " prompts: {default: '{question} {referral}', by_name: {Color: 'Color?'}}, options: {batch_size: 2}}",
        )
    )
    assert row.settings == {
        "name": "Q",
        "kind": "transformers",
        "model": "a/b",
        "revision": "abc",
        "referral": {"kind": "box_drawn", "color": "blue", "sentence": "The marked region is inside the {color} box."},
        "prompts": {
            "default": "{question} {referral}",
            "whole": None,
            "by_name": {"Color": "Color?"},
            "system": None,
        },
        "options": {"batch_size": 2},
    }


@pytest.mark.parametrize(
    "row, message",
    [
        ("text", "a row is a mapping"),
        ("{kind: transformers, model: a/b, referral: crop}", "name is missing"),
        (
            "{name: 4.5, kind: transformers, model: a/b, referral: crop}",
            "name of a row is 4.5; text is needed. Put it in quotes",
        ),
        (
            "{name: Q, kind: vllm, model: a/b, referral: crop}",
            "There is no kind 'vllm'. There are: finecaption, transformers",
        ),
        ("{name: Q, kind: transformers, referral: crop}", "model is missing"),
        ("{name: Q, kind: transformers, model: a/b}", "referral is missing"),
        ("{name: Q, kind: transformers, model: a/b, referral: arrow}", "no referral 'arrow'"),
        ("{name: Q, kind: transformers, model: a/b, referral: mask}", "takes no mask"),
        ("{name: Q, kind: endpoint, model: m, referral: filled_box}", "takes no mask"),
        ("{name: Q, kind: finecaption, referral: crop}", "by 'mask' or 'filled_box', not by 'crop'"),
        ("{name: Q, kind: finecaption, prompts: '{question}'}", "prompts come with its checkpoint"),
        (
            "{name: Q, kind: transformers, model: a/b, referral: crop, promts: x}",
            "a row: There is no option 'promts'. Did you mean 'prompts'. There are: name, kind",
        ),
        ("{name: Q, kind: transformers, model: a/b, referral: crop, prompts: '{q}'}", "cannot be filled in"),
        (
            "{name: Q, kind: transformers, model: a/b, referral: crop, options: {temperature: 1}}",
            "the kind 'transformers': There is no option 'temperature'. There are: box_format, square",
        ),
        (
            "{name: Q, kind: transformers, model: a/b, referral: crop, options: {batch_size: two}}",
            "whole number is need",
        ),
        (
            "{name: Q, kind: transformers, model: a/b, referral: crop, options: {batch_size: true}}",
            "whole number is ne",
        ),
        ("{name: Q, kind: transformers, model: a/b, referral: crop, options: {square: 1}}", "true or false is needed"),
        ("{name: Q, kind: transformers, model: a/b, referral: crop, options: {box_format: yolo}}", "no box_format"),
        ("{name: Q, kind: transformers, model: a/b, referral: crop, options: [1]}", "a mapping is needed"),
        (
            "{name: Q, kind: endpoint, model: m, referral: crop, options: {api_key: sk-1}}",
            "key is read from the environment variable that",
        ),
        (
            "{name: Q, kind: describer, model: m, referral: mask}",
            "no describer None. There are: describe_anything, gar, .* is module:function",
        ),
        ("{name: Q, kind: describer, model: m, referral: mask, options: {describer: os.system}}", "module:function"),
        ("{name: Q, kind: finecaption, cites: GPT-4o}", "There is no cited model 'GPT-4o'. There are: FineCap"),
        ("{name: '!?', kind: finecaption}", "has a letter or digit"),
    ],
)
def test_row_that_cannot_be_meant_is_named_with_the_reason(row: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, "{name: first, kind: finecaption}", row)
    with pytest.raises(EvaluationError, match=message) as caught:
        read_table(path)
    assert f"{path}, row 2" in str(caught.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("rows: [", "is no YAML"),
        ("- a", "needs rows"),
        ("rows: []", "needs rows"),
        ("{rows: [{name: a, kind: finecaption}], row: 1}", "needs rows, and nothing beside"),
    ],
)
def test_file_that_is_no_table_says_so(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "table.yaml").write_text(text)
    with pytest.raises(EvaluationError, match=message):
        read_table(tmp_path / "table.yaml")


def test_unknown_table_lists_those_of_the_package() -> None:
    with pytest.raises(EvaluationError, match=r"no file or packaged table '.*nowhere.yaml'\. There are: table2"):
        read_table("nowhere.yaml")


def test_names_that_would_share_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"row 2 .*its name is no other row's"):
        read_table(write(tmp_path, "{name: A b, kind: finecaption}", "{name: a-B, kind: finecaption}"))


# --- building --------------------------------------------------------------------------------------------------------


class Echo:
    """A model of one's own."""

    takes_mask = True

    def __init__(self, model: str, word: str) -> None:
        self.settings = {"checkpoint": model, "word": word}

    def answer(self, image: Image.Image, mask: np.ndarray | None, prompt: str) -> str:
        assert mask is not None
        return f"{self.settings['word']} {int(mask.sum())} {prompt}"


def test_model_of_ones_own_is_imported_by_its_name(tmp_path: Path) -> None:
    [row] = read_table(
        write(
            tmp_path,
            "{name: E, kind: describer, model: m, referral: mask, prompts: 'P {question}',"
            " options: {describer: 'test_comparators_table:Echo', arguments: {word: hi}}}",
        )
    )
    describer = row.build()
    assert isinstance(describer, RegionModelDescriber)
    image = Image.new("RGB", (10, 5))
    asked = Request(image, None, ("Q",), (None,))
    assert next(describe(describer, [asked])).texts == ("hi 50 P Q",)
    assert (describer.settings["checkpoint"], describer.settings["word"]) == ("m", "hi")


def test_model_of_ones_own_that_cannot_be_imported_says_so(tmp_path: Path) -> None:
    [row] = read_table(
        write(tmp_path, "{name: E, kind: describer, model: m, referral: mask, options: {describer: 'nowhere:Echo'}}")
    )
    with pytest.raises(ValueError, match="describer nowhere:Echo cannot be imported: No module named 'nowhere'"):
        row.build()


def test_row_of_an_endpoint_has_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "sk-1")
    [row] = read_table(
        write(
            tmp_path,
            "{name: G, kind: endpoint, model: gpt, referral: crop,"
            " options: {base_url: 'http://127.0.0.1:9/v1', api_key_env: A_KEY, body: {seed: 1}, max_new_tokens: 9}}",
        )
    )
    describer = row.build()
    assert isinstance(describer, EndpointDescriber)
    assert describer.settings["decoding"] == {"model": "gpt", "temperature": 0, "max_tokens": 9, "seed": 1}


# --- running ---------------------------------------------------------------------------------------------------------


class Stub(StubDescriber):
    """Notes how often it is asked, and fails where it is told."""

    def __init__(self, row: Row, log: list[str], fail: str | None) -> None:
        def say(picture: Any, region: Any, request: Any) -> str:
            log.append(f"{row.name}: {request.question}")
            if fail is not None:
                raise RuntimeError(fail)
            return f"{row.name} {request.question}"

        super().__init__(say, independent=True, questions={**TASKS, **ATTRIBUTES})
        self.name, self.settings = row.name, {"model": row.name}
        self.served = {"served-name": 1}


def stub_rows(tmp_path: Path) -> list[Row]:
    return read_table(write(tmp_path, *(f"{{name: {name}, kind: finecaption}}" for name in "ABC")))


def run(rows: list[Row], output: Path, log: list[str], fails: dict[str, str] | None = None, **options: Any) -> Any:
    def build(row: Row, *, device: Any = None) -> Any:
        log.append(f"build {row.name}")
        return Stub(row, log, (fails or {}).get(row.name))

    return run_table(rows, examples(), output, build=build, **options)


def test_row_that_fails_leaves_the_others_alone_and_is_asked_again(tmp_path: Path) -> None:
    rows = stub_rows(tmp_path)
    log: list[str] = []
    results = run(rows, tmp_path, log, {"B": "no weights"})
    assert [result.error for result in results] == [None, "RuntimeError: no weights", None]
    assert [result.served for result in results] == [{"served-name": 1}, {}, {"served-name": 1}]
    texts = [entry.prediction for entry in read_predictions(tmp_path / "c" / "predictions.jsonl")[1]]
    assert texts[1] == "C Which color is it?" and len(texts) == 4

    log.clear()
    results = run(rows, tmp_path, log)
    assert [line for line in log if line.startswith("build")] == ["build B"]
    assert [result.error for result in results] == [None] * 3
    assert results[0].served == {"served-name": 1}


def test_row_that_changed_or_other_data_is_not_taken_for_finished(tmp_path: Path) -> None:
    rows = stub_rows(tmp_path)
    log: list[str] = []
    run(rows[:1], tmp_path, log)
    log.clear()
    results = run_table(rows[:1], examples(3), tmp_path, build=lambda row, device: Stub(row, log, None))
    assert results[0].error is not None and "was begun by another command" in results[0].error


def test_failed_answers_are_tried_again_on_request(tmp_path: Path) -> None:
    rows = stub_rows(tmp_path)
    log: list[str] = []
    run(rows[:1], tmp_path, log)
    missing = [*examples(), Example(str(tmp_path / "gone.png"), examples()[0].regions)]
    run_table(rows[1:2], missing, tmp_path, build=lambda row, device: Stub(row, log, None))
    log.clear()
    run(rows[:1], tmp_path, log, retry_failed=True)
    assert log == []  # there is nothing to try again
    results = run_table(rows[1:2], missing, tmp_path, build=lambda row, device: Stub(row, log, None), retry_failed=True)
    assert results[0].error is None
    assert sum(entry.error is not None for entry in read_predictions(tmp_path / "b" / "predictions.jsonl")[1]) == 2


def test_table_of_real_models_from_folders(tmp_path: Path, embedded: Any) -> None:
    model, processor = random_model("llava")
    model.save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    path = write(
        tmp_path,
        "{name: mask, kind: finecaption, options: {max_new_tokens: 8}, cites: FineCaption-8B}",
        "{name: box, kind: finecaption, referral: filled_box, options: {max_new_tokens: 8}}",
        f"{{name: other, kind: transformers, model: '{tmp_path / 'llava'}', referral: contour_drawn,"
        " options: {max_new_tokens: 8}}",
        "{name: gone, kind: transformers, model: /nowhere/at/all, referral: crop}",
    )
    results = run_table(read_table(path), examples(), tmp_path / "out", device="cpu", data_name="CompositionCap")
    assert [result.error is None for result in results] == [True, True, True, False]

    headers = [read_predictions(result.predictions)[0] for result in results[:3] if result.predictions]
    assert [header.settings["referral"] for header in headers] == [
        "mask",
        {"kind": "filled_box", "sentence": ""},
        {"kind": "contour_drawn", "color": "red", "sentence": "The marked region is outlined in {color}."},
    ]
    # The region is a box, so the mask's box says the same.
    assert (
        read_predictions(tmp_path / "out/mask/predictions.jsonl")[1]
        == (read_predictions(tmp_path / "out/box/predictions.jsonl")[1])
    )

    content = report_table(
        results,
        tmp_path / "out",
        score=CaptionScorer(["rouge_l"], tokenizer="python"),
        resamples=20,
        command="a command",
    )
    assert content == json.loads((tmp_path / "out" / "table.json").read_text())
    assert [entry["name"] for entry in content["measured"]] == ["mask", "box", "other", "gone"]
    assert content["measured"][0]["metrics"]["rouge_l"] == content["measured"][1]["metrics"]["rouge_l"]
    assert "metrics" not in content["measured"][3] and content["measured"][3]["error"]
    assert (tmp_path / "out" / "other" / "report.html").is_file()

    text = (tmp_path / "out" / "table.md").read_text()
    measured, cited = text.split("## Cited, not measured here")
    assert "127.95" in cited and "127.95" not in measured
    assert "The marked region is outlined in red. {question}" in cited
    assert "a command" in cited


def test_cited_figures_are_those_of_the_paper_and_in_a_table_of_their_own(tmp_path: Path) -> None:
    assert cited_row("finecaption-8b").metrics == {
        "rouge_l": 41.05,
        "bleu_4": 14.46,
        "meteor": 22.01,
        "cider": 127.95,
        "bertscore": 80.97,
    }
    assert [row.model for row in PAPER_TABLE_2] == ["FineCaption-8B"]
    row = read_table(write(tmp_path, "{name: mine, kind: finecaption, cites: FineCaption-8B}"))[0]
    content = report_table(
        [RowResult(row, None, "not run")], tmp_path, score=CaptionScorer(["rouge_l"], tokenizer="python")
    )
    assert "metrics" not in content["measured"][0] and content["cited"] == []
    (line,) = content["not_cited"]
    assert "FineCaption-8B (arXiv 2411.15411, Table 2) are about CompositionCap, test" in line


@pytest.mark.parametrize(
    ("data", "cited"),
    [("CompositionCap", True), ("../composition_cap/test.json", True), ("finecaption-scenes", False), ("", False)],
)
def test_the_papers_figures_stand_beside_its_own_data_alone(tmp_path: Path, data: str, cited: bool) -> None:
    row = read_table(write(tmp_path, "{name: mine, kind: finecaption, cites: FineCaption-8B}"))[0]
    path = write_predictions(tmp_path / "mine.jsonl", [prediction("a|0|0", "red", "red")], name=data)
    content = report_table(
        [RowResult(row, path, None)], tmp_path / "out", score=CaptionScorer(["rouge_l"], tokenizer="python")
    )
    text = (tmp_path / "out" / "table.md").read_text()
    assert ("127.95" in text, bool(content["cited"]), bool(content["not_cited"])) == (cited, cited, not cited)


def test_classes_of_the_kinds_are_what_the_rows_build(tmp_path: Path) -> None:
    model, processor = random_model("llava")
    model.save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    rows = read_table(
        write(
            tmp_path,
            f"{{name: other, kind: transformers, model: '{tmp_path / 'llava'}', referral: crop}}",
            "{name: box, kind: finecaption, referral: filled_box}",
        )
    )
    assert isinstance(rows[0].build(device="cpu"), TransformersDescriber)
    assert isinstance(rows[1].build(device="cpu"), FilledBoxDescriber)


# --- command line ----------------------------------------------------------------------------------------------------


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    lines = []
    for number, example in enumerate(examples()):
        assert isinstance(example.image, Image.Image)
        example.image.save(folder / "images" / f"{number}.png")
        lines.append(json.dumps(Example(f"images/{number}.png", example.regions).to_json()))
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_command_makes_the_table_and_goes_on_with_rows_that_failed(tmp_path: Path, scenes: Path) -> None:
    table = write(
        tmp_path,
        "{name: mask, kind: finecaption, options: {max_new_tokens: 6}, cites: FineCaption-8B}",
        f"{{name: later, kind: transformers, model: '{tmp_path / 'llava'}', referral: crop}}",
    )
    arguments = ["evaluate", "--table", str(table), "--data", str(scenes), "--output", str(tmp_path / "out")]
    arguments += ["--metrics", "rouge_l", "--tokenizer", "python", "--resamples", "10", "--device", "cpu"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1, result.output
    assert "1 of 2 rows have not come to their end: later. The same command goes on with them." in result.output
    assert (tmp_path / "out" / "mask" / "report.html").is_file()

    model, processor = random_model("llava")
    model.save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "Row 1 of 2, mask: finished before." in result.output
    content = json.loads((tmp_path / "out" / "table.json").read_text())
    assert ["metrics" in entry for entry in content["measured"]] == [True, True]
    assert content["measured"][0]["folder"] == "mask"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "here"], "--table does not go with --model: the table's rows say that themselves"),
        (["--from-predictions", __file__], "--table does not go with --from-predictions"),
        (["--temperature", "1", "--overwrite"], "--table does not go with --temperature, --overwrite"),
    ],
)
def test_option_that_the_rows_decide_is_refused(
    arguments: list[str], message: str, tmp_path: Path, scenes: Path
) -> None:
    table = write(tmp_path, "{name: mask, kind: finecaption}")
    command = ["evaluate", "--table", str(table), "--data", str(scenes), "--output", str(tmp_path / "out"), *arguments]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "out").exists()
