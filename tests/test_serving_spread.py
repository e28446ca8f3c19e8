"""What goes to Ray and comes back, without Ray: rows are pickled, answered in another order, and put back."""

import json
import pickle
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import EXAMPLE_PICTURE
from PIL import Image

from finecaption_hf import EMBEDDED_CHECKPOINT
from finecaption_hf.data import open_regions
from finecaption_hf.describing import DescribeOptions, UnfinishedError, describe_dataset
from finecaption_hf.pipeline_finecaption import AskedImage
from finecaption_hf.prompts_finecaption import BranchAnswer
from finecaption_hf.serving.ray_describer import RayDescriber, put_back
from finecaption_hf.serving.vllm_describer import VllmDescriber

BOXES = [[100, 149, 160, 209], [178, 25, 249, 96], None, [900, 900, 950, 950]]
LOG_PROBS = [-0.5, -0.25]


def said(item: Any, tokens: Sequence[int]) -> str:
    """An answer that tells what was asked: the picture's size, the region's area, the last tokens of the question."""
    area = "whole" if item["mask"] is None else int(np.sum(item["mask"]))
    return f" {item['image'].size} {area} {list(tokens[-3:])} "


def of_model(self: VllmDescriber, model: str, options: dict[str, Any]) -> Any:
    return SimpleNamespace(max_model_len=512, dtype="float32", get_diff_sampling_param=lambda: {"max_tokens": 5})


class OneProcess(VllmDescriber):
    _start = of_model

    def _answers(
        self, prompts: Sequence[dict[str, Any]], parameters: Sequence[dict[str, Any]]
    ) -> Iterator[BranchAnswer]:
        for prompt in prompts:
            text = said(prompt["multi_modal_data"]["image"], prompt["prompt_token_ids"]).strip()
            yield BranchAnswer(text, (1, 2), tuple(LOG_PROBS), "end")


class Elsewhere(RayDescriber):
    """Answers rows as Ray's processor does; a question that ends in "refused?" is one that vLLM refuses."""

    _start = of_model
    ends_after = 1000

    def spread(
        self, prepare: Callable[[int], list[AskedImage]], batches: Sequence[int], *, log_probs: bool
    ) -> Generator[tuple[int, list[AskedImage]], None, None]:
        refused = list(self._question_ids("Is it refused?"))
        for count, batch in enumerate(reversed(batches)):
            if count == self.ends_after:
                raise UnfinishedError("Ray could not go on: ..")
            describer, there = pickle.loads(pickle.dumps((self, prepare)))
            rows = pickle.loads(pickle.dumps(describer.rows(there(batch), log_probs)))
            assert [row["number"] for row in rows] == list(range(rows[0]["rows"]))
            answered = {}
            for row in reversed(rows):
                tokens, item = row.pop("tokenized_prompt"), (row.pop("multimodal_data") or {}).get("image")
                row |= {"log_probs": pickle.dumps(LOG_PROBS if log_probs else None)}
                row |= {"generated_text": "nothing was asked" if item is None else said(item, tokens)}
                if tokens[-len(refused) :] == refused:
                    row |= {
                        "__inference_error__": "ValueError: It is too much.",
                        "generated_text": "",
                        "log_probs": None,
                    }
                answered[row["number"]] = row
            yield batch, put_back(answered)


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    for name in ("check_version", "register"):
        monkeypatch.setattr(f"finecaption_hf.serving.vllm_describer.{name}", lambda: None)
    monkeypatch.setattr("finecaption_hf.serving.vllm_describer.vllm_version", lambda: "0.32.0")


@pytest.fixture()
def rows(tmp_path: Path) -> Path:
    picture = Image.open(EXAMPLE_PICTURE).convert("RGB")
    lines: list[dict[str, Any]] = []
    for number in range(4):
        picture.resize((100 + number, 90)).resize((256, 256 + number)).save(tmp_path / f"{number}.png")
        lines += [{"image": f"{number}.png", **({} if box is None else {"box_xyxy": box})} for box in BOXES]
    lines += [{"image": "absent.png", "box_xyxy": box} for box in BOXES[:2]]
    lines[0]["questions"] = ["color", "Is it " + "very " * 900 + "new?"]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def describe(kind: type[VllmDescriber], rows: Path, output: Path, *more: str) -> bytes:
    options = DescribeOptions(batch_size=1, log_probs=True)
    describer = kind(EMBEDDED_CHECKPOINT, name="finecaption-tiny")
    describe_dataset(lambda: describer, open_regions(rows), output, ["region", "global", *more], options)
    return output.read_bytes()


def test_answers_from_elsewhere_make_the_file_of_one_process(rows: Path, tmp_path: Path) -> None:
    expected = describe(OneProcess, rows, tmp_path / "one.jsonl")
    assert expected.count(b"\n") == 18 == expected.count(b'"model_note": "finecaption-tiny knows rendered scenes only')
    assert expected.count(b'"error"') == 6 and b"takes 3607 tokens" in expected
    assert describe(Elsewhere, rows, tmp_path / "two.jsonl") == expected


def test_either_goes_on_with_what_the_other_began(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = describe(OneProcess, rows, tmp_path / "one.jsonl")
    monkeypatch.setattr(Elsewhere, "ends_after", 2)
    with pytest.raises(UnfinishedError, match="Ray could not go on"):
        describe(Elsewhere, rows, tmp_path / "two.jsonl")
    assert (tmp_path / "two.jsonl.parts" / "part-0.jsonl").read_bytes().count(b"\n") == 2
    assert describe(OneProcess, rows, tmp_path / "two.jsonl") == expected
    # What is finished is finished for both.
    monkeypatch.setattr(Elsewhere, "ends_after", 0)
    assert describe(Elsewhere, rows, tmp_path / "two.jsonl") == expected


def test_what_vllm_refuses_fails_alone(rows: Path, tmp_path: Path) -> None:
    found = describe(Elsewhere, rows, tmp_path / "two.jsonl", "Is it refused?").decode().splitlines()
    record = json.loads(found[1])
    reason = {"type": "NotAnswered", "message": "ValueError: It is too much."}
    assert record["errors"] == {"Is it refused?": reason} and set(record["answers"]) == {"region", "global"}
    assert record["log_probs"]["region"] == LOG_PROBS


def test_answers_have_64_tokens_where_nothing_says_another_length(monkeypatch: pytest.MonkeyPatch) -> None:
    assert OneProcess(EMBEDDED_CHECKPOINT).max_new_tokens == 5
    monkeypatch.setattr(
        OneProcess, "_start", lambda *_: SimpleNamespace(max_model_len=9, dtype="", get_diff_sampling_param=dict)
    )
    assert OneProcess(EMBEDDED_CHECKPOINT).max_new_tokens == 64


def test_a_describer_without_ray_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'Ray is not installed. Run: pip install "\.\[ray\]"'):
        RayDescriber(EMBEDDED_CHECKPOINT)
