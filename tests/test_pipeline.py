"""`pipeline("region-captioning")`: records, errors, streams and batches, and that it travels with a checkpoint."""

import copy
import io
import itertools
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import EXAMPLE_MASK, EXAMPLE_PICTURE, ROOT
from PIL import Image
from pycocotools import mask as coco
from test_remote_code import SAVED_FILES, run
from tiny import tiny_config, tiny_model
from transformers import CLIPVisionConfig, CLIPVisionModel, pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset

from finecaption_hf import EMBEDDED_CHECKPOINT, MaskError, RegionCaptioningPipeline
from finecaption_hf.asking import FineCaptionDescriber, ask
from finecaption_hf.configuration_finecaption import FineCaptionConfig
from finecaption_hf.pipeline_finecaption import ImageError
from finecaption_hf.scenes import render_scene

TRIANGLE = {"polygon": [178, 92, 215, 25, 249, 96]}
COMMIT = "0123456789" * 4
OUTSIDE = {"box_xyxy": [300, 300, 320, 320]}


@pytest.fixture(scope="module")
def describe(embedded: Any) -> RegionCaptioningPipeline:
    model, processor = embedded
    return model.as_pipeline(processor)


@pytest.fixture(scope="module")
def scenes() -> list[dict[str, Any]]:
    """Five pictures with 2, 3, 1, 2 and 2 regions."""
    rendered = [render_scene(seed, split="test", num_regions=count) for seed, count in enumerate((2, 3, 1, 2, 2))]
    return [{"image": Image.fromarray(scene.image), "regions": list(scene.masks)} for scene in rendered]


def generated(embedded: Any, image: Any, question: str, mask: Any) -> tuple[str, list[float]]:
    """The answer and log-probabilities of one plain `generate` call."""
    model, processor = embedded
    inputs = processor.apply_chat_template(
        processor.conversation(image, question, mask),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    output = model.generate(**inputs, max_new_tokens=40, return_dict_in_generate=True, output_logits=True)
    tokens = output.sequences[0, inputs["input_ids"].shape[1] :]
    log_probs = [float(logits[0].log_softmax(-1)[token]) for logits, token in zip(output.logits, tokens, strict=True)]
    return processor.tokenizer.decode(tokens, skip_special_tokens=True).strip(), log_probs


# --- records ---------------------------------------------------------------------------------------------------------


@pytest.mark.hub
def test_records_hold_what_plain_generation_answers_with_box_area_and_log_probabilities(embedded, describe, scenes):
    scene = scenes[1]
    questions = ["color", "dense", "Which shape?", "global"]
    records = describe(scene["image"], scene["regions"], questions, log_probs=True, max_new_tokens=40)
    assert [record["region_index"] for record in records] == [0, 1, 2]
    for record, mask in zip(records, scene["regions"], strict=True):
        rows, columns = np.nonzero(mask)
        assert record["box_xyxy"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert record["area"] == np.count_nonzero(mask)
        # Under the name as the processor knows it, in the order asked.
        assert list(record["answers"]) == list(record["log_probs"]) == ["Color", "dense", "Which shape?", "global"]
        for name, text in record["answers"].items():
            expected, log_probs = generated(embedded, scene["image"], name, None if name == "global" else mask)
            assert text == expected
            assert record["log_probs"][name] == pytest.approx(log_probs, abs=1e-4)
    assert json.loads(json.dumps(records)) == records


def chat_of(*turns: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": text} for role, text in zip(itertools.cycle(("user", "assistant")), turns)]


@pytest.mark.hub
def test_a_chat_of_several_turns_is_answered_as_by_generate(embedded, describe, scenes, monkeypatch):
    model, processor = embedded
    image, mask = scenes[1]["image"], scenes[1]["regions"][0]
    turns = ("color", "blue", "Shape", "a cube", "Is it new?")
    questions = [chat_of(*turns), "color", chat_of(*turns[:3])]
    (record,) = describe(image, [mask], questions, max_new_tokens=40)
    assert list(record["answers"]) == ["\n".join(turns), "Color", "\n".join(turns[:3])]
    for asked, answer in zip((turns, turns[:1], turns[:3]), record["answers"].values(), strict=True):
        chat = processor.conversation(image, asked[0], mask)
        for message in chat_of(*asked)[1:]:
            text = processor.questions.get(message["content"].capitalize(), message["content"])
            chat.append({"role": message["role"], "content": [{"type": "text", "text": text}]})
        inputs = processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        output = model.generate(**inputs, max_new_tokens=40)[0, inputs["input_ids"].shape[1] :]
        assert answer == processor.decode(output, skip_special_tokens=True).strip()
    assert len({*record["answers"].values()}) > 1
    # One chat may stand alone, other doors take it, and the plain way answers the same.
    engine = FineCaptionDescriber(model, processor, max_new_tokens=40)
    assert ask(engine, image, [mask], questions) == [record]
    monkeypatch.setattr(engine, "_obstacle", "For this test.")
    assert ask(engine, image, [mask], questions[0])[0]["answers"] == dict([*record["answers"].items()][:1])


def test_all_asks_every_attribute_and_no_task(describe, scenes):
    (record, _) = describe(scenes[0]["image"], scenes[0]["regions"], "all")
    assert list(record["answers"]) == [
        name for name in describe.processor.questions if name not in ("region", "dense", "global")
    ]
    assert len(record["answers"]) == 16
    assert "log_probs" not in record


@pytest.mark.parametrize(
    ("regions", "prefixes", "branches"),
    [([0, 1, 0], 4, 10), ([0, None], 2, 7), (None, 1, 4), ([], 0, 0)],
)
def test_global_is_asked_once_and_a_region_is_prefilled_once(embedded, scenes, regions, prefixes, branches):
    describe = embedded[0].as_pipeline(embedded[1])
    masks = regions and [None if index is None else scenes[0]["regions"][index] for index in regions]
    records = describe(scenes[0]["image"], masks, ["color", "shape", "region", "global"])
    counts = describe._engine(None).counts if records else {"images": 0, "prefixes": 0, "branches": 0}
    assert (counts["images"], counts["prefixes"], counts["branches"]) == (min(prefixes, 1), prefixes, branches)
    assert len({record["answers"]["global"] for record in records}) <= 1
    if records and len(records) == 3:
        assert {**records[0], "region_index": 2} == records[2]


@pytest.mark.hub
def test_one_region_may_come_in_any_form(describe):
    mask = np.asarray(Image.open(EXAMPLE_MASK)) > 0
    rle = coco.encode(np.asfortranarray(mask))
    rle["counts"] = rle["counts"].decode()
    expected = describe(str(EXAMPLE_PICTURE), [mask], "color")
    assert expected == [
        {"region_index": 0, "box_xyxy": [100, 149, 160, 209], "area": 1854, "answers": {"Color": "blue"}}
    ]
    for image in (EXAMPLE_PICTURE, Image.open(EXAMPLE_PICTURE), np.asarray(Image.open(EXAMPLE_PICTURE))):
        for regions in (mask, rle, Image.open(EXAMPLE_MASK), mask[None], torch.tensor(mask)[None], (rle,)):
            assert describe(image, regions, "color") == expected
    (whole,) = describe(EXAMPLE_PICTURE)
    assert (whole["box_xyxy"], whole["area"], list(whole["answers"])) == ([0, 0, 256, 256], 65536, ["region"])
    assert describe(EXAMPLE_PICTURE, np.stack([mask, np.ones_like(mask)])) == describe(EXAMPLE_PICTURE, [mask, None])
    assert describe(EXAMPLE_PICTURE, []) == describe(EXAMPLE_PICTURE, np.zeros((0, 256, 256))) == describe([]) == []
    assert list(describe.stream(EXAMPLE_PICTURE, [])) == list(describe.stream([])) == []
    (piece,) = describe.stream(EXAMPLE_PICTURE, mask, "color", partial=False)
    assert piece == {
        "image_index": 0,
        "region_index": 0,
        "question": "Color",
        "text": "blue",
        "finish_reason": "end",
    }


# --- many images -----------------------------------------------------------------------------------------------------


@pytest.mark.hub
@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "top_p": 0.9, "seed": 3}])
def test_batch_size_budget_and_kind_of_input_change_nothing(describe, scenes, options):
    expected = describe(scenes, questions=["region", "global"], **options)
    assert [len(records) for records in expected] == [2, 3, 1, 2, 2]
    images, regions = [scene["image"] for scene in scenes], [scene["regions"] for scene in scenes]

    def again(given: Any, regions: Any = None, **more: Any) -> Any:
        return describe(given, regions, ["region", "global"], **options, **more)

    assert again(tuple(images), regions, batch_size=2) == expected
    assert again(scenes, batch_size=8, max_batch_tokens=300) == expected
    lazily = again((scene for scene in scenes), batch_size=3)
    assert isinstance(lazily, Iterator) and list(lazily) == expected
    assert list(again(iter(scenes), num_workers=2)) == expected
    answers = again(KeyDataset([{"scene": scene} for scene in scenes], "scene"), batch_size=2)
    assert len(answers) == 5 and list(answers) == expected
    assert again(scenes, batch_size=2, num_workers=1) == expected


def test_generator_is_read_only_as_far_as_answers_are_taken(describe, scenes):
    read = []

    def reading() -> Iterator[Any]:
        for number, scene in enumerate(scenes):
            read.append(number)
            yield scene

    answers = describe(reading(), questions="color", batch_size=2)
    next(answers)
    assert read == [0, 1]


def test_items_may_have_questions_of_their_own(describe, scenes):
    items = [{**scenes[0], "questions": ["shape", "color"]}, scenes[2], {"image": scenes[0]["image"]}]
    first, second, third = describe(items, questions="color", batch_size=3)
    assert [list(record["answers"]) for record in (*first, *second, *third)] == [["Shape", "Color"]] * 2 + [
        ["Color"]
    ] * 2
    assert third[0]["area"] == 256 * 256
    assert describe(items[0]) == first


def test_draws_follow_the_seed_and_differ_between_images_regions_and_questions(describe, scenes):
    same = {"image": scenes[0]["image"], "regions": [scenes[0]["regions"][0]] * 3}
    questions = ["Describe it.", "describe it", "global"]
    options: dict[str, Any] = {"temperature": 20.0, "max_new_tokens": 8}
    one = describe([same, same], questions=questions, seed=1, **options)
    assert describe([same, same], questions=questions, seed=1, batch_size=2, **options) == one
    assert describe([same, same], questions=questions, seed=2, **options) != one
    texts = [record["answers"][name] for records in one for record in records for name in questions[:2]]
    assert len(set(texts)) == len(texts) == 12
    assert [len({record["answers"]["global"] for record in records}) for records in one] == [1, 1]


def test_options_given_on_construction_are_defaults_of_calls(embedded, scenes):
    model, processor = embedded
    describe = model.as_pipeline(processor, questions="dense", max_new_tokens=2, batch_size=2)
    short = describe(scenes)
    whole = describe(scenes, max_new_tokens=40)
    for records, longer in zip(short, whole, strict=True):
        for record, other in zip(records, longer, strict=True):
            assert list(record["answers"]) == ["dense"]
            assert len(record["answers"]["dense"]) < len(other["answers"]["dense"])
    color = describe(scenes[0], questions="color", max_new_tokens=40)
    assert color == model.as_pipeline(processor)(scenes[0], questions="color")
    stopped = describe(scenes[0], max_new_tokens=40, stop_strings=" ")
    assert [record["answers"]["dense"] for record in stopped] == [
        record["answers"]["dense"].split(" ")[0] for record in whole[0]
    ]


# --- a picture that is encoded already -------------------------------------------------------------------------------


@pytest.mark.hub
def test_one_encoding_serves_several_calls_and_changes_no_answer(describe, scenes, monkeypatch):
    scene, questions = scenes[1], ["color", "dense", "global"]
    options: dict[str, Any] = {"log_probs": True, "temperature": 1.5, "seed": 3}
    expected = describe(scene, questions=questions, **options)
    alone = [describe(scene["image"], mask, "shape", log_probs=True) for mask in scene["regions"]]
    runs: list[str] = []
    prepared: list[set[str]] = []
    towers = (describe.model.model.sam_tower, describe.model.model.convnext_tower)
    hooks = [tower.register_forward_hook(lambda module, *_: runs.append(type(module).__name__)) for tower in towers]
    engine = describe._engine(None)
    answer = engine.answer

    def noting(vision: Any, *args: Any, **kwargs: Any) -> Any:
        prepared.append(set(vision))
        return answer(vision, *args, **kwargs)

    monkeypatch.setattr(engine, "answer", noting)
    try:
        features = describe.encode(scene["image"])
        assert len(runs) == len(set(runs)) == 2
        given = {"high_res_features": features.to(torch.float64)}  # as another device, another type is no hindrance
        assert describe(scene, questions=questions, **given, **options) == expected
        assert [describe(scene["image"], mask, "shape", log_probs=True, **given) for mask in scene["regions"]] == alone
        streamed = describe.stream(
            scene["image"], scene["regions"], questions, **given, partial=False, num_workers=1, **options
        )
        assert {(piece["region_index"], piece["question"], piece["text"]) for piece in streamed} == {
            (record["region_index"], name, text) for record in expected for name, text in record["answers"].items()
        }
        assert len(runs) == 2
    finally:
        for hook in hooks:
            hook.remove()
    assert all("high_res_pixel_values" not in names and "high_res_features" in names for names in prepared)
    assert not features.requires_grad and not features.is_inference()


def test_encoding_of_an_image_is_read_as_a_call_reads_it(describe, tmp_path):
    image = Image.open(EXAMPLE_PICTURE).convert("RGBA")
    image.putalpha(Image.open(EXAMPLE_MASK).point(lambda level: 255 if level else 100))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    for given in (tmp_path / "turned.png", image, np.asarray(image)):
        vision = describe.processor.image_processor(str(given) if isinstance(given, Path) else given)
        with torch.no_grad():
            expected = describe.model.get_high_res_features(vision["high_res_pixel_values"])
        assert torch.equal(describe.encode(given), expected)
    with pytest.raises(ImageError, match="no such file"):
        describe.encode(tmp_path / "none.png")


def test_model_without_high_resolution_towers_has_nothing_to_encode(embedded):
    processor = copy.deepcopy(embedded[1])
    model = tiny_model(use_sam=False, use_convnext=False, text_config={"vocab_size": len(processor.tokenizer)})
    for name, value in model.config.image_processor_kwargs().items():
        setattr(processor.image_processor, name, value)
    describe = RegionCaptioningPipeline(model, processor)
    assert describe.encode(EXAMPLE_PICTURE) is None
    with pytest.raises(ValueError, match=r"no high-resolution towers. Leave high_res_features out"):
        describe(EXAMPLE_PICTURE, high_res_features=torch.zeros(1, 8, 8, 8))


def test_encoding_that_does_not_belong_to_the_call_is_refused(describe, scenes):
    features = describe.encode(EXAMPLE_PICTURE)
    for several in ([EXAMPLE_PICTURE], iter([EXAMPLE_PICTURE]), KeyDataset([{"scene": scenes[0]}], "scene")):
        with pytest.raises(ValueError, match=r"of one image, but several arrived. Call once per image"):
            describe(several, high_res_features=features)
    for wrong, shown in ((features[0], "Tensor of shape"), (features.numpy(), "ndarray of shape"), ("no", "str of")):
        with pytest.raises(ValueError, match=rf"a {shown} .*Give what `encode` returns"):
            describe(EXAMPLE_PICTURE, high_res_features=wrong)
        with pytest.raises(ValueError, match="Give what `encode` returns"):
            describe.stream(EXAMPLE_PICTURE, high_res_features=wrong)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.hub
@pytest.mark.parametrize("batch_size", [1, 4])
def test_what_fails_has_a_record_and_the_others_are_answered(describe, scenes, tmp_path, batch_size):
    whole = (tmp_path / "whole.png", tmp_path / "half.png")
    scenes[0]["image"].save(whole[0])
    whole[1].write_bytes(whole[0].read_bytes()[:2000])
    mask = scenes[0]["regions"][0]
    regions = [np.zeros_like(mask), mask, OUTSIDE, mask[:100], {"box": [1, 2, 3, 4]}]
    items = [
        {"image": whole[0], "regions": regions},
        {"image": whole[1], "regions": [mask, None]},
        {"image": tmp_path / "none.png"},
        {"image": None, "regions": mask},
        {"image": np.full((8, 8, 3), -1.0), "regions": []},
        {"image": whole[0], "regions": [OUTSIDE]},
        scenes[1],
    ]
    questions = ["color", "global"]
    damaged, half, absent, nothing, unasked, outside, good = describe(items, questions=questions, batch_size=batch_size)
    assert good == describe(scenes[1], questions=questions)
    assert damaged[1] == {**describe(whole[0], [mask], questions)[0], "region_index": 1}
    for index, message in ((0, "empty"), (2, "outside the image of 256x256"), (3, "100x256"), (4, "'box'")):
        assert damaged[index].keys() == {"region_index", "error"}
        assert damaged[index]["region_index"] == index
        assert damaged[index]["error"]["type"] == "MaskError" == MaskError.__name__
        assert message in damaged[index]["error"]["message"]
    assert len(half) == 2 and half[0]["error"] == half[1]["error"]
    for records, message in ((half, "half.png' cannot be read"), (absent, "no such file"), (nothing, "A NoneType")):
        assert records[0].keys() == {"region_index", "error"}
        assert records[0]["error"]["type"] == "ImageError"
        assert message in records[0]["error"]["message"]
    assert unasked == []
    assert [record["error"]["type"] for record in outside] == ["MaskError"]

    streamed = list(describe.stream(items, questions=questions, batch_size=batch_size, partial=False))
    failed = [{"image_index": 0, **damaged[index]} for index in (0, 2, 3, 4)]
    failed += [
        {"image_index": number + 1, **record} for number, of in enumerate((half, absent, nothing)) for record in of
    ]
    failed += [{"image_index": 5, **record} for record in outside]
    assert [piece for piece in streamed if "error" in piece] == failed
    assert {piece["image_index"] for piece in streamed if "error" not in piece} == {0, 6}


@pytest.mark.parametrize(
    ("end", "error", "message"),
    [
        (lambda: 1 / 0, ZeroDivisionError, "division by zero"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), RuntimeError, "DataLoader worker .* (killed|exited)"),
    ],
)
def test_process_that_reads_ahead_and_dies_ends_the_call(describe, end, error, message):
    def pictures():
        yield EXAMPLE_PICTURE
        end()

    with pytest.raises(error, match=message):
        list(describe(pictures(), None, ["Color"], num_workers=1, max_new_tokens=2))


def test_a_defect_is_not_taken_for_a_users_error(describe, monkeypatch):
    def broken(*args: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("finecaption_hf.pipeline_finecaption.RegionMask", broken)
    with pytest.raises(ZeroDivisionError):
        describe(EXAMPLE_PICTURE)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((EXAMPLE_PICTURE, None, []), {}, "No question was given"),
        ((EXAMPLE_PICTURE, None, ["color", " "]), {}, "' ' is no question"),
        ((EXAMPLE_PICTURE, None, chat_of("color", "red")), {}, "ends with the user's"),
        ((EXAMPLE_PICTURE, None, [[*chat_of("color"), *chat_of("shape", "round")]]), {}, "ends with the user's"),
        ((EXAMPLE_PICTURE, None, chat_of("color", "", "shape")), {}, "is no question"),
        ((EXAMPLE_PICTURE, None, chat_of("color", "red", "<image>?")), {}, "a special token"),
        ((EXAMPLE_PICTURE, [1, 2, 3, 4]), {}, "bare list of numbers"),
        (([EXAMPLE_PICTURE] * 2, [TRIANGLE]), {}, "2 images are a list of 1. Give a list with one entry per image"),
        (([EXAMPLE_PICTURE] * 2, TRIANGLE), {}, "2 images are a dict of 1"),
        ((iter([EXAMPLE_PICTURE]), [TRIANGLE]), {}, "Put them into its items"),
        (({"image": EXAMPLE_PICTURE}, [TRIANGLE]), {}, "Put them into it"),
        (([{"image": EXAMPLE_PICTURE, "masks": []}],), {}, "keys 'image', 'masks' arrived as image 0"),
        (([{"regions": []}],), {}, "keys 'regions' arrived as image 0"),
        ((EXAMPLE_PICTURE,), {"temperature": -1}, "temperature is -1"),
        ((EXAMPLE_PICTURE,), {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ((EXAMPLE_PICTURE,), {"max_batch_tokens": 0}, "max_batch_tokens is 0"),
    ],
)
def test_wrong_calls_are_refused_before_any_work(describe, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        describe(*arguments, **options)
    with pytest.raises(ValueError, match=message):
        list(describe.stream(*arguments, **options))


def test_unknown_options_are_refused(describe):
    with pytest.raises(TypeError, match="num_beams"):
        describe(EXAMPLE_PICTURE, num_beams=2)


def test_a_pipeline_needs_a_finecaption_model_and_its_processor(embedded):
    with pytest.raises(ValueError, match="needs the model's processor"):
        RegionCaptioningPipeline(embedded[0])
    other = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=28, patch_size=14
        )
    )
    with pytest.raises(ValueError, match="type 'clip_vision_model' arrived"):
        RegionCaptioningPipeline(other, embedded[1])


def test_examples_of_the_documentation_run(tmp_path, monkeypatch, capsys):
    for name in ("src", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "pipeline.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "pipeline.md", "exec"), names)
    colors = [record["answers"]["Color"] for record in names["records"]]
    assert "blue" in colors[0] and "pink" in colors[1]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("[100, 149, 160, 209] 3600 {'Color': ")
    assert printed[-2].startswith("0 {'") and "'Shape': 'a diamond'" in printed[-2] and printed[-1].startswith("1 {'")
    assert any(line.startswith("1 dense ") and line.endswith(" end") for line in printed)


# --- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.hub
@pytest.mark.parametrize("batch_size", [1, 3])
def test_streamed_answers_grow_to_those_of_a_call(describe, scenes, batch_size):
    questions = ["color", "dense", "global"]
    expected = describe(scenes, questions=questions, log_probs=True)
    texts: dict[tuple[int, int, str], list[str]] = {}
    final = {}
    for piece in describe.stream(scenes, questions=questions, log_probs=True, batch_size=batch_size):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        key = piece["image_index"], piece["region_index"], piece["question"]
        assert key not in final, "an answer went on after its end"
        texts.setdefault(key, []).append(piece["text"])
        if piece["finish_reason"] is not None:
            final[key] = piece
    assert set(final) == set(texts)
    assert len(final) == 10 * 3
    for (image, region, name), piece in final.items():
        record = expected[image][region]
        assert piece["finish_reason"] == "end"
        assert piece["text"] == record["answers"][name]
        assert piece["log_probs"] == pytest.approx(record["log_probs"][name], abs=1e-5)
        so_far = texts[image, region, name]
        assert all(after.startswith(before) for before, after in itertools.pairwise(so_far))
        assert name != "dense" or len(set(so_far)) > 3
    finished = list(describe.stream(scenes, questions=questions, partial=False, batch_size=batch_size))
    assert len(finished) == len(final)
    assert all(piece["text"] == final[tuple(piece[k] for k in list(piece)[:3])]["text"] for piece in finished)


# --- travelling with the checkpoint ----------------------------------------------------------------------------------

ASK = """
import json
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

def ask(pipe):
    scene, mask = (os.path.join(work, name) for name in ("scene.png", "mask0.png"))
    given = [Image.open(mask), {"box_xyxy": [300, 300, 320, 320]}, None]
    return [pipe(scene, given, ["color", "global"]), list(pipe.stream(scene, given, ["color", "global"]))]
"""

FIRST = """
# Without the package the task is known by the checkpoint's configuration only, and its code is not run unasked.
try:
    pipeline("region-captioning", model=folder, trust_remote_code=False)
except (ValueError, KeyError) as error:
    assert "trust_remote_code" in str(error), error
else:
    raise AssertionError("code ran without trust")

pipe = pipeline("region-captioning", model=folder, trust_remote_code=True, dtype="bfloat16", device_map="auto")
assert pipe.model.dtype == torch.bfloat16 and pipe.device == pipe.model.device, pipe
assert [list(record["answers"]) for record in ask(pipe)[0] if "error" not in record] == [["Color", "global"]] * 2
pipe = pipeline(model=folder, trust_remote_code=True, local_files_only=True)
assert pipe.task == "region-captioning" and type(pipe).__module__.startswith("transformers_modules."), type(pipe)
print(json.dumps(ask(pipe)))
pipe.save_pretrained(os.path.join(work, "hub", "models--someone--tiny", "snapshots", "0123456789" * 4))
"""

SECOND = """
model = AutoModelForImageTextToText.from_pretrained("someone/tiny", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("someone/tiny", trust_remote_code=True)
direct = ask(model.as_pipeline(processor))
pipe = pipeline("region-captioning", model="someone/tiny", trust_remote_code=True)
assert ask(pipe) == direct
print(json.dumps(direct))
model.save_pretrained(os.path.join(work, "third"))
processor.save_pretrained(os.path.join(work, "third"))

chat = [{"role": "user", "content": [
    {"type": "image", "image": os.path.join(work, "scene.png"), "mask": Image.open(os.path.join(work, "mask0.png"))},
    {"type": "text", "text": processor.question("color")},
]}]
stock = pipeline("image-text-to-text", model="someone/tiny", trust_remote_code=True)
assert stock(text=chat, return_full_text=False)[0]["generated_text"] == direct[0][0]["answers"]["Color"]
"""


@pytest.mark.hub
def test_pipeline_travels_for_generations_from_a_folder_and_from_the_hub(describe, tmp_path):
    """The package saves; a fresh process without it loads the folder and saves; another loads that from a Hub cache."""
    scene = render_scene(4, split="test")
    Image.fromarray(scene.image).save(tmp_path / "scene.png")
    Image.fromarray(scene.masks[0]).save(tmp_path / "mask0.png")
    given = [Image.open(tmp_path / "mask0.png"), OUTSIDE, None]
    questions = ["color", "global"]
    expected = [
        describe(tmp_path / "scene.png", given, questions),
        list(describe.stream(tmp_path / "scene.png", given, questions)),
    ]
    assert sum("error" in record for record in expected[0]) == 1

    describe.save_pretrained(tmp_path / "first")
    repository = tmp_path / "hub" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    printed = run(ASK + FIRST, tmp_path / "first", tmp_path)
    assert json.loads(printed.splitlines()[-1]) == expected
    printed = run(ASK + SECOND, tmp_path / "first", tmp_path, HF_HUB_CACHE=str(tmp_path / "hub"))
    assert json.loads(printed.splitlines()[-1]) == expected

    for folder in (tmp_path / "first", repository / "snapshots" / COMMIT, tmp_path / "third"):
        assert {path.name for path in folder.iterdir()} == SAVED_FILES
        assert (folder / "pipeline_finecaption.py").read_bytes() == (
            EMBEDDED_CHECKPOINT / "pipeline_finecaption.py"
        ).read_bytes()
        assert named_pipelines(folder) == named_pipelines(EMBEDDED_CHECKPOINT)


def named_pipelines(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())["custom_pipelines"]


@pytest.mark.hub
def test_with_the_package_no_remote_code_is_run(describe, tmp_path, caplog):
    expected = describe(EXAMPLE_PICTURE, [TRIANGLE], "all")
    for trust in ({}, {"trust_remote_code": True}, {"dtype": "float32", "device_map": "auto"}):
        pipe = pipeline("region-captioning", model=str(EMBEDDED_CHECKPOINT), **trust)
        assert type(pipe) is RegionCaptioningPipeline
        assert type(pipe.model) is type(describe.model)
        assert pipe(EXAMPLE_PICTURE, [TRIANGLE], "all") == expected
    assert type(pipeline("region-captioning", model=pipe.model, processor=pipe.processor)) is type(pipe)
    assert type(pipeline("image-text-to-text", model=str(EMBEDDED_CHECKPOINT))).__name__ == "ImageTextToTextPipeline"
    assert PIPELINE_REGISTRY.check_task("region-captioning")[1]["impl"] is RegionCaptioningPipeline


@pytest.mark.hub
@pytest.mark.parametrize("registered", [True, False])
def test_saved_configurations_name_the_pipeline(tmp_path, monkeypatch, registered):
    """In memory only where its code must come from the checkpoint; other people's pipelines stay."""
    monkeypatch.setattr(FineCaptionConfig, "registered_tasks", frozenset({"region-captioning"} if registered else ()))
    tiny_config().save_pretrained(tmp_path / "default")
    assert named_pipelines(tmp_path / "default") == named_pipelines(EMBEDDED_CHECKPOINT)
    another = {"pointing": {"impl": "pointing.PointingPipeline", "pt": ["AutoModel"]}}
    config = tiny_config(custom_pipelines=another)
    assert set(config.custom_pipelines) == ({"pointing"} if registered else {"pointing", "region-captioning"})
    for entry in config.custom_pipelines.values():
        entry["pt"] = (object,)  # as the library does
    tiny_config(custom_pipelines={}).save_pretrained(tmp_path / "after")
    assert named_pipelines(tmp_path / "after") == named_pipelines(EMBEDDED_CHECKPOINT)
    tiny_config(custom_pipelines={"pointing": {"impl": "pointing.PointingPipeline"}}).save_pretrained(tmp_path / "more")
    again = FineCaptionConfig.from_pretrained(tmp_path / "more")
    assert again.custom_pipelines.get("pointing") == {"impl": "pointing.PointingPipeline"}
    assert ("region-captioning" in again.custom_pipelines) is not registered
    again.save_pretrained(tmp_path / "again")
    assert named_pipelines(tmp_path / "again") == named_pipelines(tmp_path / "more")


# --- photographs -----------------------------------------------------------------------------------------------------


def test_photographs_are_answered_alike_in_every_batch(describe, real_regions):
    pictures = list(dict.fromkeys(region.image for region in real_regions))
    items = [
        {"image": picture, "regions": [region.rle for region in real_regions if region.image == picture]}
        for picture in pictures
    ]
    one = describe(items, questions=["region", "color", "global"], batch_size=1)
    assert describe(items, questions=["region", "color", "global"], batch_size=4) == one
    records = {(picture, record["region_index"]): record for picture, of in zip(pictures, one) for record in of}
    assert len(records) == 27
    seen: dict[Path, int] = {}
    for region in real_regions:
        index = seen[region.image] = seen.get(region.image, -1) + 1
        record = records[region.image, index]
        x, y, width, height = coco.toBbox(region.rle)
        assert record["box_xyxy"] == [x, y, x + width, y + height]
        assert record["area"] == coco.area(region.rle)
        assert all(record["answers"].values())


def test_an_open_file_is_one_picture(describe, scenes):
    file = io.BytesIO()
    scenes[0]["image"].save(file, "PNG")
    box = {"box_xyxy": [2, 2, 30, 30]}
    assert describe(file, [box], max_new_tokens=2) == describe(scenes[0]["image"], [box], max_new_tokens=2)
