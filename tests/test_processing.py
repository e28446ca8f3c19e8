"""Prompts, chats and pipelines: every image token has its region; no question changes what comes before it."""

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from conftest import RealRegion
from PIL import Image
from tiny import tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast, ProcessorMixin, pipeline
from transformers.utils import logging

from finecaption_hf import EMBEDDED_CHECKPOINT, FineCaptionImageProcessor, FineCaptionProcessor
from finecaption_hf.data.encoding import encode_rle
from finecaption_hf.processing_finecaption import FineCaptionProcessorKwargs
from finecaption_hf.prompts_finecaption import ATTRIBUTES, DEFAULT_CHAT_TEMPLATE, TASKS, find_question

pytestmark = pytest.mark.hub
IMAGE_SEQ_LENGTH = 4
NO_BOS = DEFAULT_CHAT_TEMPLATE.replace("{{- bos_token or '' }}\n", "")


def byte_tokenizer(image_token: str | None = "<image>", special: bool = True) -> PreTrainedTokenizerFast:
    """One token per byte, `<s>` before every text, `<image>` as a special token."""
    words = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="right"
    )
    if image_token is not None:
        tokenizer.add_tokens([image_token], special_tokens=special)
    return tokenizer


def make_processor(**changes: Any) -> FineCaptionProcessor:
    image_processor = FineCaptionImageProcessor(
        size={"height": 28, "width": 28}, high_res_size={"height": 64, "width": 64}
    )
    arguments = {"chat_template": DEFAULT_CHAT_TEMPLATE, "image_seq_length": IMAGE_SEQ_LENGTH, **changes}
    return FineCaptionProcessor(image_processor, byte_tokenizer(), **arguments)


@pytest.fixture
def processor() -> FineCaptionProcessor:
    return make_processor()


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))


@pytest.fixture
def other() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 20, 3), dtype=np.uint8))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the image processor decodes, in order."""
    seen: list[Any] = []
    original = FineCaptionImageProcessor.process_image

    def process_image(self: Any, image: Any, *arguments: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(image)
        return original(self, image, *arguments, **kwargs)

    monkeypatch.setattr(FineCaptionImageProcessor, "process_image", process_image)
    return seen


def box_mask(image: Image.Image, *box: int) -> np.ndarray:
    mask = np.zeros((image.height, image.width), dtype=bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def to_inputs(processor: FineCaptionProcessor, conversation: Any, **kwargs: Any) -> Any:
    arguments = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True, **kwargs}
    return processor.apply_chat_template(conversation, **arguments)


def assert_same(inputs: Any, expected: Any) -> None:
    assert set(inputs) == set(expected)
    for name, value in expected.items():
        assert torch.equal(torch.as_tensor(inputs[name]), torch.as_tensor(value)), name


# --- questions -------------------------------------------------------------------------------------------------------


def test_sixteen_attributes_and_three_tasks_have_instructions(processor: FineCaptionProcessor) -> None:
    assert list(TASKS) == ["region", "dense", "global"]
    assert len(ATTRIBUTES) == 16
    assert processor.questions == {**TASKS, **ATTRIBUTES}
    assert len(set(processor.questions.values())) == 19


@pytest.mark.parametrize(
    "name",
    ["Materials/Texture", "materials_texture", "materials texture", "MATERIALS-TEXTURE", " materials / texture "],
)
def test_name_is_found_in_any_case_and_format(name: str, processor: FineCaptionProcessor) -> None:
    assert processor.question(name) == ATTRIBUTES["Materials/Texture"]


def test_unknown_name_lists_the_known(processor: FineCaptionProcessor) -> None:
    with pytest.raises(ValueError, match=r"'smell'.*region, dense, global, Category Name.*Relative Location"):
        processor.question("smell")


def test_list_of_questions_is_open() -> None:
    processor = make_processor(questions={"Smell": "What does it smell of?"})
    assert processor.question("smell") == "What does it smell of?"
    with pytest.raises(ValueError, match="There are: Smell"):
        processor.question("dense")
    assert find_question("größe", {"GRÖSSE": "How large?"}) == "How large?"


def test_conversation_asks_by_name_or_in_own_words(processor: FineCaptionProcessor, image: Image.Image) -> None:
    mask = box_mask(image, 1, 2, 9, 9)
    message = processor.conversation(image, "hair", mask)[0]
    assert message["role"] == "user"
    assert message["content"][0] == {"type": "image", "image": image, "mask": mask}
    assert message["content"][1] == {"type": "text", "text": ATTRIBUTES["Hair"]}
    for text in ("Is it wet?", "Hair?"):
        message = processor.conversation(image, text)[0]
        assert message["content"] == [{"type": "image", "image": image}, {"type": "text", "text": text}]


# --- prompts and regions ---------------------------------------------------------------------------------------------


def test_every_region_gets_its_image_tokens(processor: FineCaptionProcessor, image: Image.Image) -> None:
    inputs = processor(images=image, text="<image>What?", return_tensors="pt")
    assert processor.decode(inputs["input_ids"][0]) == "<s>" + "<image>" * IMAGE_SEQ_LENGTH + "What?"
    assert (inputs["input_ids"] == processor.image_token_id).sum() == IMAGE_SEQ_LENGTH
    assert set(inputs) == set(processor.model_input_names) - {"image_indices"}
    assert set(processor.model_input_names) == {
        "input_ids",
        "attention_mask",
        "pixel_values",
        "high_res_pixel_values",
        "mask_values",
        "image_indices",
    }


def test_there_are_no_image_indices_where_each_region_has_a_picture_of_its_own(
    processor: FineCaptionProcessor, image: Image.Image
) -> None:
    """Serving engines concatenate items of several requests, each of which would count its pictures from 0."""
    others = [image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    assert "image_indices" not in processor(images=others, text=["<image>a", "<image>b"], return_tensors="pt")
    shared = processor(images=[image], masks=[[None, None]], text="<image><image>a", return_tensors="pt")
    assert shared["image_indices"].tolist() == [0, 0]


def test_signature_of_the_processor_names_its_options() -> None:
    """vLLM takes the type of the options from there, else from the first class whose name sounds like one."""
    options = FineCaptionProcessor.__call__.__annotations__["kwargs"]
    assert get_args(options) == (FineCaptionProcessorKwargs,)


def test_prompts_are_padded_on_the_left(processor: FineCaptionProcessor, image: Image.Image) -> None:
    inputs = processor(images=[image, image], text=["<image>a", "<image>abcd"], return_tensors="pt")
    assert inputs["attention_mask"].tolist() == [[0, 0, 0] + [1] * 6, [1] * 9]
    assert inputs["input_ids"][0, :3].tolist() == [0, 0, 0]
    single = processor(images=image, text="<image>a", return_tensors="pt")
    assert inputs["input_ids"][0, 3:].equal(single["input_ids"][0])
    right = processor(images=[image, image], text=["<image>a", "<image>abcd"], padding_side="right")
    assert right["attention_mask"][0][-3:] == [0, 0, 0]
    unpadded = processor(images=[image, image], text=["<image>a", "<image>abcd"], padding=False)
    assert [len(ids) for ids in unpadded["input_ids"]] == [6, 9]


def test_text_alone_and_images_alone(processor: FineCaptionProcessor, image: Image.Image) -> None:
    assert processor(text="hi")["input_ids"] == [[1, *processor.tokenizer("hi", add_special_tokens=False)["input_ids"]]]
    assert set(processor(text=["a", "bc"], return_tensors="pt")) == {"input_ids", "attention_mask"}
    mask = box_mask(image, 3, 3, 20, 20)
    assert_same(processor(images=image, masks=mask), processor.image_processor(image, masks=mask))


def test_ragged_batch_of_prompts(processor: FineCaptionProcessor, image: Image.Image, other: Image.Image) -> None:
    masks = [[[0, 0, 20, 20], None], [[5, 5, 15, 40]]]
    prompts = ["<image>one", "<image>the second", "<image>3"]
    inputs = processor(images=[image, other], masks=masks, text=prompts, return_tensors="pt")
    assert inputs["image_indices"].tolist() == [0, 0, 1]
    assert inputs["input_ids"].shape[0] == 3
    assert inputs["pixel_values"].shape[0] == 2
    flat = processor(
        images=[image, other],
        masks=[masks[0][0], None, masks[1][0]],
        image_indices=[0, 0, 1],
        text=prompts,
        return_tensors="pt",
    )
    assert_same(flat, inputs)


def test_nested_text_repeats_a_region_for_each_of_its_prompts(
    processor: FineCaptionProcessor, image: Image.Image, other: Image.Image
) -> None:
    first, second, third = [0, 0, 20, 20], None, [5, 5, 15, 40]
    nested = processor(
        images=[image, other],
        masks=[[first, second], [third]],
        text=[[["<image>color?", "<image>shape?"], "<image>all?"], [("<image>a", "<image>b", "<image>c")]],
        return_tensors="pt",
    )
    flat = processor(
        images=[image, other],
        masks=[first, first, second, third, third, third],
        image_indices=[0, 0, 0, 1, 1, 1],
        text=["<image>color?", "<image>shape?", "<image>all?", "<image>a", "<image>b", "<image>c"],
        return_tensors="pt",
    )
    assert_same(nested, flat)
    assert nested["mask_values"].shape[0] == 6
    assert nested["pixel_values"].shape[0] == 2


def test_one_prompt_may_hold_several_regions(processor: FineCaptionProcessor, image: Image.Image) -> None:
    inputs = processor(images=image, masks=[[0, 0, 9, 9], None], text="<image>left, <image>right", return_tensors="pt")
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 2 * IMAGE_SEQ_LENGTH
    assert inputs["image_indices"].tolist() == [0, 0]


def test_arguments_may_come_by_modality(processor: FineCaptionProcessor, image: Image.Image) -> None:
    mask = box_mask(image, 3, 3, 20, 20)
    expected = processor(
        images=image,
        masks=mask,
        text="<image>x",
        do_pad=False,
        padding="max_length",
        max_length=20,
        return_tensors="pt",
    )
    images_kwargs = {"masks": mask, "do_pad": False}
    inputs = processor(
        images=image,
        text="<image>x",
        images_kwargs=images_kwargs,
        text_kwargs={"padding": "max_length", "max_length": 20},
        return_tensors="pt",
    )
    assert_same(inputs, expected)
    assert set(images_kwargs) == {"masks", "do_pad"}  # the caller's dict stays as it was


def test_token_types_tell_image_tokens_on_request(processor: FineCaptionProcessor, image: Image.Image) -> None:
    inputs = processor(images=image, text="<image>ab", return_mm_token_type_ids=True, return_tensors="pt")
    assert inputs["mm_token_type_ids"].tolist() == [[0] + [1] * IMAGE_SEQ_LENGTH + [0, 0]]
    counts = processor._get_num_multimodal_tokens(image_sizes=[(30, 40), (50, 20)])
    assert counts["num_image_tokens"] == [IMAGE_SEQ_LENGTH] * 2
    assert counts["num_image_patches"] == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Neither text nor images"),
        ({"text": "<image>x"}, r"1 image tokens '<image>' in the text but 0 regions"),
        ({"text": "x", "images": 1}, r"0 image tokens '<image>' in the text but 1 regions"),
        ({"text": "<image><image>", "images": 1}, r"2 image tokens '<image>' in the text but 1 regions"),
        ({"text": ["<image>", "x"], "images": 2}, r"1 image tokens '<image>' in the text but 2 regions"),
        ({"text": "x", "masks": [None]}, "Regions were given without an image"),
        ({"text": "x", "image_indices": [0]}, "Regions were given without an image"),
        ({"text": [["<image>"]], "images": 2}, "Nested text has 1 entries, but there are 2 images"),
        ({"text": [["<image>"]]}, "Nested text has 1 entries, but there are 0 images"),
        ({"text": [["<image>", "<image>"]], "images": 1}, r"text\[0\] is 2 entries, but image 0 has 1 regions"),
        ({"text": ["<image>", ["<image>"]], "images": 2}, r"text\[0\] is one string"),
        ({"text": [["What?"]], "images": 1}, "'What.' has 0 image tokens"),
        ({"text": "<image>x", "images": 1, "truncation": True, "max_length": 3}, "truncation"),
        ({"text": "x", "videos": [1]}, "takes no videos"),
    ],
)
def test_what_does_not_fit_together_raises(
    arguments: dict[str, Any], message: str, processor: FineCaptionProcessor, image: Image.Image
) -> None:
    if "images" in arguments:
        arguments = {**arguments, "images": [image] * arguments["images"]}
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


@pytest.mark.parametrize("tokenizer", [byte_tokenizer(None), byte_tokenizer(special=False), byte_tokenizer("<img>")])
def test_tokenizer_without_the_image_token_raises(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=r"'<image>' is not a special token.*add_tokens"):
        FineCaptionProcessor(FineCaptionImageProcessor(), tokenizer)


def test_another_image_token_works(image: Image.Image) -> None:
    processor = FineCaptionProcessor(
        FineCaptionImageProcessor(high_res_size=None), byte_tokenizer("<img>"), image_seq_length=3, image_token="<img>"
    )
    inputs = processor(images=image, text="<img><image>", return_tensors="pt")
    assert processor.decode(inputs["input_ids"][0]) == "<s><img><img><img><image>"


# --- images that hold their region -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["one", "list", "lists", "nested text"])
def test_image_with_its_region_equals_image_and_masks(
    shape: str, processor: FineCaptionProcessor, image: Image.Image, other: Image.Image
) -> None:
    mask, box = box_mask(image, 3, 3, 20, 20), [0, 0, 9, 30]
    first, second = {"image": image, "mask": mask}, {"image": other, "box_xyxy": box}
    images, pictures, masks, text = {
        "one": (first, image, [mask], "<image>x"),
        "list": ([first, second, other], [image, other, other], [[mask], [box], None], ["<image>x", "<image><image>"]),
        "lists": (
            [[first, first], [second]],
            [image, image, other],
            [[mask], [mask], [box]],
            ["<image>" * 2, "<image>"],
        ),
        "nested text": ([first, second], [image, other], [[mask], [box]], [["<image>a"], [["<image>b", "<image>c"]]]),
    }[shape]
    inputs = processor(images=images, text=text, return_tensors="pt")
    assert_same(inputs, processor(images=pictures, masks=masks, text=text, return_tensors="pt"))
    assert not inputs["mask_values"].equal(processor(images=pictures, text=text, return_tensors="pt")["mask_values"])


def test_image_with_its_region_stands_in_a_chat(processor: FineCaptionProcessor, image: Image.Image) -> None:
    chat = processor.conversation({"image": image, "box_xyxy": [3, 3, 20, 20]}, "color")
    assert_same(
        to_inputs(processor, chat), to_inputs(processor, processor.conversation(image, "color", [3, 3, 20, 20]))
    )
    chat = processor.conversation({"image": image, "mask": [3, 3, 20, 20]}, "color", [0, 0, 9, 9])
    with pytest.raises(ValueError, match="has a region of its own, and 'mask' beside it"):
        to_inputs(processor, chat)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": [{"image": 0, "mask": [0, 0, 9, 9]}], "masks": [[[0, 0, 9, 9]]]}, "Regions were given beside"),
        ({"images": {"image": 0, "mask": [0, 0, 9, 9], "box_xyxy": [0, 0, 9, 9]}}, "more than one region"),
        ({"images": {"image": 0, "bbox": [0, 0, 9, 9]}}, "Say which"),
        ({"images": [{"image": 0, "caption": "a dog"}]}, "'caption' means nothing here"),
        ({"images": [{"mask": [0, 0, 9, 9]}]}, "without an image"),
        ({"images": [{}]}, "A NoneType arrived as an image"),
    ],
)
def test_region_of_an_image_is_read_as_strictly_as_in_a_chat(
    given: dict[str, Any], message: str, processor: FineCaptionProcessor
) -> None:
    with pytest.raises(ValueError, match=message):
        processor(text="<image>", **given)


def test_chat_with_a_region_that_becomes_text_alone_warns_once(
    processor: FineCaptionProcessor,
    image: Image.Image,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    logging.get_logger("transformers").warning_once.cache_clear()
    silent = [
        processor.conversation(image, "color"),
        processor.conversation({"image": image, "mask": [3, 3, 20, 20]}, "color"),
    ]
    processor.apply_chat_template(silent)
    to_inputs(processor, processor.conversation(image, "color", [3, 3, 20, 20]))
    assert not caplog.records
    for _ in range(2):
        processor.apply_chat_template(processor.conversation(image, "color", [3, 3, 20, 20]))
    assert len(caplog.records) == 1
    assert "give each as {'image': ..., 'mask': ...}" in caplog.text


# --- chats -----------------------------------------------------------------------------------------------------------


def test_chat_equals_its_prompt(processor: FineCaptionProcessor, image: Image.Image) -> None:
    mask = box_mask(image, 3, 3, 20, 20)
    chat = processor.conversation(image, "color", mask)
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert prompt == f"<s>user: <image>{ATTRIBUTES['Color']}\nassistant: "
    expected = processor(images=image, masks=mask, text=prompt, add_special_tokens=False, return_tensors="pt")
    assert_same(to_inputs(processor, chat), expected)
    assert (
        processor.apply_chat_template(chat, tokenize=True, add_generation_prompt=True) == expected["input_ids"].tolist()
    )


@pytest.mark.parametrize("template", [DEFAULT_CHAT_TEMPLATE, NO_BOS])
def test_chat_begins_with_one_bos(template: str, image: Image.Image) -> None:
    processor = make_processor(chat_template=template)
    ids = to_inputs(processor, processor.conversation(image, "color"))["input_ids"][0].tolist()
    assert ids[0] == processor.tokenizer.bos_token_id
    assert ids.count(processor.tokenizer.bos_token_id) == 1


def test_settings_of_a_saved_processor_can_be_given_anew() -> None:
    whole = AutoProcessor.from_pretrained(EMBEDDED_CHECKPOINT)
    asked = {"odd": "Is it odd?"}
    found = AutoProcessor.from_pretrained(EMBEDDED_CHECKPOINT, image_seq_length=4, questions=asked)
    assert isinstance(found, FineCaptionProcessor)
    assert (found.image_seq_length, found.questions) == (4, asked)
    assert found.chat_template == whole.chat_template and found.image_token == whole.image_token
    chat = found.conversation(Image.new("RGB", (9, 9)), "odd")
    assert to_inputs(found, chat)["input_ids"].tolist()[0].count(found.image_token_id) == 4


def test_tokenizer_carries_the_image_token(processor: FineCaptionProcessor, tmp_path: Path) -> None:
    assert (processor.tokenizer.image_token, processor.tokenizer.image_token_id) == (
        "<image>",
        processor.image_token_id,
    )
    processor.save_pretrained(tmp_path)
    for folder in (tmp_path, EMBEDDED_CHECKPOINT):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.image_token == "<image>"
        assert tokenizer("<image>", add_special_tokens=False)["input_ids"] == [tokenizer.image_token_id]


@pytest.mark.parametrize("kind", ["default", "embedded"])
def test_parts_of_a_text_do_not_run_together(kind: str, processor: FineCaptionProcessor, embedded: Any) -> None:
    used = processor if kind == "default" else embedded[1]
    parts = [{"type": "text", "text": text} for text in ("Is it", "red?")]
    for role in ("user", "assistant"):
        chats = [[{"role": role, "content": parts}], [{"role": role, "content": "Is it red?"}]]
        several, one = used.apply_chat_template(chats, tokenize=False)
        assert several == one and "Is it red?" in one


@pytest.mark.parametrize("kind", ["array", "tensor", "PIL", "rle", "box", "box dict", "polygon"])
def test_every_kind_of_region_reference_works_in_a_chat(
    kind: str, processor: FineCaptionProcessor, image: Image.Image
) -> None:
    mask = box_mask(image, 4, 6, 21, 17)
    reference = {
        "array": mask,
        "tensor": torch.from_numpy(mask),
        "PIL": Image.fromarray(mask),
        "rle": encode_rle(mask),
        "box": [4, 6, 21, 17],
        "box dict": {"box_xyxy": [4, 6, 21, 17]},
        "polygon": [[4, 6], [21, 6], [21, 17], [4, 17]],
    }[kind]
    inputs = to_inputs(processor, processor.conversation(image, "color", reference))
    assert inputs["mask_values"].equal(processor.image_processor(image, masks=mask)["mask_values"])


@pytest.mark.parametrize("key", ["image", "url", "path", "image_url"])
def test_every_way_to_name_an_image_works_in_a_chat(
    key: str, processor: FineCaptionProcessor, image: Image.Image, tmp_path: Path
) -> None:
    path = str(tmp_path / "image.png")
    image.save(path)
    mask = box_mask(image, 4, 6, 21, 17)
    item = {"type": "image", key: path, "mask": mask}
    if key == "image_url":
        item = {"type": "image_url", "image_url": {"url": path}, "mask": mask}
    chat = [{"role": "user", "content": [item, {"type": "text", "text": "Color?"}]}]
    assert_same(to_inputs(processor, chat), to_inputs(processor, processor.conversation(image, "Color?", mask)))


def test_images_of_a_batch_are_decoded_once(
    processor: FineCaptionProcessor, image: Image.Image, other: Image.Image, decoded: list[Any], tmp_path: Path
) -> None:
    path = tmp_path / "image.png"
    image.save(path)
    chats = [
        processor.conversation(image, "color", [0, 0, 20, 20]),
        processor.conversation(other, "color"),
        processor.conversation(str(path), "shape"),
        processor.conversation(image, "a longer question", [9, 9, 30, 20]),
        processor.conversation(path, "shape", [1, 1, 8, 8]),
        [{"role": "user", "content": "no image here"}],
        processor.conversation(image.copy(), "shape"),
    ]
    inputs = to_inputs(processor, chats)
    assert len(decoded) == 4
    assert inputs["image_indices"].tolist() == [0, 1, 2, 0, 2, 3]
    assert inputs["pixel_values"].shape[0] == 4
    assert inputs["input_ids"].shape[0] == 7
    regions = iter(range(6))
    for number, chat in enumerate(chats):
        single = to_inputs(processor, chat)
        length = single["input_ids"].shape[1]
        assert inputs["input_ids"][number, -length:].equal(single["input_ids"][0])
        assert not inputs["attention_mask"][number, :-length].any()
        if "mask_values" in single:
            region = next(regions)
            assert inputs["mask_values"][region].equal(single["mask_values"][0])
            assert inputs["pixel_values"][inputs["image_indices"][region]].equal(single["pixel_values"][0])


def test_several_regions_in_one_chat_keep_their_order(
    processor: FineCaptionProcessor, image: Image.Image, other: Image.Image
) -> None:
    boxes = [[0, 0, 20, 20], [5, 5, 15, 40], [9, 9, 30, 20]]
    items = [{"type": "image", "image": picture, "mask": box} for picture, box in zip([image, other, image], boxes)]
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [items[0], {"type": "text", "text": "one"}, items[1]]},
        {"role": "assistant", "content": [{"type": "text", "text": "a thing"}]},
        {"role": "user", "content": [items[2]]},
    ]
    inputs = to_inputs(processor, chat)
    assert inputs["image_indices"].tolist() == [0, 1, 0]
    for values, picture, box in zip(inputs["mask_values"], [image, other, image], boxes):
        assert values.equal(processor.image_processor(picture, masks=[box])["mask_values"][0])


def test_nothing_up_to_the_image_tokens_depends_on_the_question(
    processor: FineCaptionProcessor, image: Image.Image
) -> None:
    item = {"type": "image", "image": image}
    texts = ["Color?", "A much longer question about something else."]
    contents = [[item, {"type": "text", "text": text}] for text in texts]
    contents += [[{"type": "text", "text": text}, item] for text in texts]  # even where the text comes first
    prefixes = set()
    for content in contents:
        ids = to_inputs(processor, [{"role": "user", "content": content}])["input_ids"][0]
        last = int((ids == processor.image_token_id).nonzero()[-1])
        prefixes.add(tuple(ids[: last + 1].tolist()))
    assert len(prefixes) == 1


@dataclass
class Said:
    role: str
    content: list[Any]


@dataclass
class Shown:
    image: Any
    mask: Any
    type: str = "image"


class Dumped:
    """As messages of OpenAI's client give themselves as dicts."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def model_dump(self) -> Any:
        return self.values


def test_messages_and_parts_that_are_objects_keep_their_regions(
    processor: FineCaptionProcessor, image: Image.Image
) -> None:
    region, text = {"box_xyxy": [0, 0, 10, 10]}, {"type": "text", "text": "What is this?"}
    item = {"type": "image", "image": image, "mask": region}
    wanted = to_inputs(processor, [{"role": "user", "content": [item, text]}])
    for message in (
        Said("user", [item, text]),
        {"role": "user", "content": [Shown(image, region), text]},
        Said("user", [Shown(image, region), Dumped(text)]),
        Dumped({"role": "user", "content": [item, text]}),
    ):
        assert_same(to_inputs(processor, [message]), wanted)


def test_chat_without_images_works(processor: FineCaptionProcessor) -> None:
    chat = [{"role": "user", "content": "hello"}]
    inputs = to_inputs(processor, chat)
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert processor.decode(inputs["input_ids"][0]) == "<s>user: hello\nassistant: "


def test_callers_messages_stay_as_they_were(processor: FineCaptionProcessor, image: Image.Image) -> None:
    mask = box_mask(image, 1, 1, 9, 9)
    item = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}, "mask": mask}
    content = [{"type": "image", "image": image, "mask": mask}, item, {"type": "text", "text": "x"}]
    chat = [{"role": "user", "content": content}]
    processor.apply_chat_template(chat)
    to_inputs(processor, [{"role": "user", "content": content[:1] + content[2:]}])
    assert chat == [{"role": "user", "content": content}]
    assert content[0] == {"type": "image", "image": image, "mask": mask}
    assert content[1] is item
    assert set(item) == {"type", "image_url", "mask"}


def test_bare_placeholders_render_and_take_their_images_later(
    processor: FineCaptionProcessor, image: Image.Image
) -> None:
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Color?"}]}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    expected = to_inputs(processor, processor.conversation(image, "Color?"))
    assert_same(processor(images=image, text=prompt, add_special_tokens=False, return_tensors="pt"), expected)
    with pytest.raises(ValueError, match="1 image tokens '<image>' in the text but 0 regions"):
        to_inputs(processor, chat)


def test_settings_reach_the_processor_from_a_chat(processor: FineCaptionProcessor, image: Image.Image) -> None:
    chat = processor.conversation(image, "color", [0, 0, 20, 20])
    expected = to_inputs(processor, chat, processor_kwargs={"do_pad": False, "padding": "max_length", "max_length": 99})
    assert expected["input_ids"].shape == (1, 99)
    assert expected["mask_values"].max() > 0 and not expected["pixel_values"].equal(
        to_inputs(processor, chat)["pixel_values"]
    )
    flat = to_inputs(processor, chat, do_pad=False, padding="max_length", max_length=99)
    assert_same(flat, expected)
    given = {"do_pad": False}
    both = to_inputs(processor, chat, processor_kwargs=given, padding="max_length", max_length=99)
    assert_same(both, expected)
    assert given == {"do_pad": False}


def test_final_message_can_be_continued(processor: FineCaptionProcessor, image: Image.Image) -> None:
    chat = [
        *processor.conversation(image, "Color?"),
        {"role": "assistant", "content": [{"type": "text", "text": "It is"}]},
    ]
    inputs = to_inputs(processor, chat, add_generation_prompt=False, continue_final_message=True)
    assert processor.decode(inputs["input_ids"][0]).endswith("Color?\nassistant: It is")


def test_answers_can_be_told_from_the_rest(processor: FineCaptionProcessor, image: Image.Image) -> None:
    answer = {"role": "assistant", "content": [{"type": "text", "text": "It is red."}]}
    chat = [*processor.conversation(image, "Color?", [0, 0, 20, 20]), answer]
    longer = [*chat, {"role": "user", "content": "And?"}, answer]
    inputs = to_inputs(processor, [chat, longer], add_generation_prompt=False, return_assistant_tokens_mask=True)
    answers = [
        processor.decode(ids[torch.as_tensor(mask, dtype=torch.bool)])
        for ids, mask in zip(inputs["input_ids"], inputs["assistant_masks"])
    ]
    assert answers == ["It is red.</s>", "It is red.</s>It is red.</s>"]


def test_image_token_inside_a_question_raises_or_stays_text(
    processor: FineCaptionProcessor, image: Image.Image
) -> None:
    chat = processor.conversation(image, "What says <image> here?")
    with pytest.raises(ValueError, match=r"2 image tokens.*none inside a question"):
        to_inputs(processor, chat)
    if "sanitize_control_tokens" not in inspect.signature(ProcessorMixin.apply_chat_template).parameters:
        pytest.skip("this release of transformers cannot mark a user's text")
    inputs = to_inputs(processor, chat, sanitize_control_tokens=True)
    assert (inputs["input_ids"] == processor.image_token_id).sum() == IMAGE_SEQ_LENGTH
    assert "What says <image> here?" in processor.decode(inputs["input_ids"][0])


def test_regions_beside_a_chat_raise(processor: FineCaptionProcessor, image: Image.Image) -> None:
    with pytest.raises(ValueError, match="Put each into its message"):
        to_inputs(processor, processor.conversation(image, "color"), processor_kwargs={"masks": [[0, 0, 9, 9]]})
    with pytest.raises(ValueError, match="conversation is empty"):
        processor.apply_chat_template([])


# --- files -----------------------------------------------------------------------------------------------------------


def test_processor_survives_saving_and_loading(tmp_path: Path, image: Image.Image) -> None:
    processor = make_processor(questions={"Smell": "What does it smell of?"}, image_seq_length=7)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["image_seq_length"] == 7
    assert saved["image_token"] == "<image>"
    assert saved["questions"] == {"Smell": "What does it smell of?"}
    assert (tmp_path / "chat_template.jinja").read_text() == DEFAULT_CHAT_TEMPLATE
    chat = processor.conversation(image, "smell", [0, 0, 20, 20])
    for loaded in (FineCaptionProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is FineCaptionProcessor
        assert loaded.tokenizer.padding_side == "left"
        assert_same(to_inputs(loaded, chat), to_inputs(processor, chat))


# --- pipelines -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def captioner() -> Any:
    tokenizer = byte_tokenizer()
    model = tiny_model(
        text_config={"vocab_size": len(tokenizer)}, image_token_id=tokenizer.convert_tokens_to_ids("<image>")
    )
    processor = FineCaptionProcessor(
        FineCaptionImageProcessor(**model.config.image_processor_kwargs()),
        tokenizer,
        chat_template=DEFAULT_CHAT_TEMPLATE,
        image_seq_length=model.config.image_seq_length,
    )
    return pipeline("image-text-to-text", model=model, processor=processor)


def caption(captioner: Any, chats: Any, **kwargs: Any) -> Any:
    return captioner(
        chats, return_full_text=False, generate_kwargs={"max_new_tokens": 12, "do_sample": False}, **kwargs
    )


def generated(captioner: Any, chat: Any) -> str:
    inputs = to_inputs(captioner.processor, chat)
    output = captioner.model.generate(**inputs, max_new_tokens=12, do_sample=False)
    full, prompt = captioner.processor.batch_decode([output[0], inputs["input_ids"][0]], skip_special_tokens=True)
    return full.removeprefix(prompt)


def test_pipeline_captions_the_region(captioner: Any, image: Image.Image) -> None:
    captions = []
    for mask in (None, box_mask(image, 0, 0, 12, 30), [20, 3, 38, 28]):
        chat = captioner.processor.conversation(image, "color", mask)
        (answer,) = caption(captioner, chat)
        assert answer["generated_text"] == generated(captioner, chat)
        assert answer["input_text"] == chat
        captions.append(answer["generated_text"])
    assert len(set(captions)) == 3  # the mask reaches the model


def test_pipeline_takes_a_list_of_chats_and_settings(captioner: Any, image: Image.Image, other: Image.Image) -> None:
    chats = [
        captioner.processor.conversation(image, "color", [0, 0, 20, 20]),
        captioner.processor.conversation(other, "a longer question", [5, 5, 15, 40]),
        [{"role": "user", "content": "no image"}],
    ]
    answers = [answer["generated_text"] for (answer,) in caption(captioner, chats)]
    assert answers == [generated(captioner, chat) for chat in chats]
    (squashed,) = caption(captioner, chats[1], do_pad=False)
    assert squashed["generated_text"] != answers[1]


def test_pipeline_takes_image_and_prompt(captioner: Any, image: Image.Image) -> None:
    (answer,) = caption(captioner, image, text="<image>What?")
    inputs = captioner.processor(images=image, text="<image>What?", return_tensors="pt")
    output = captioner.model.generate(**inputs, max_new_tokens=12, do_sample=False)
    text, prompt = captioner.processor.batch_decode([output[0], inputs["input_ids"][0]], skip_special_tokens=True)
    assert answer["generated_text"] == text.removeprefix(prompt)


def test_pipeline_continues_a_given_answer(captioner: Any, image: Image.Image) -> None:
    beginning = {"role": "assistant", "content": [{"type": "text", "text": "It is"}]}
    chat = [*captioner.processor.conversation(image, "color", [0, 0, 20, 20]), beginning]
    (answer,) = captioner(chat, generate_kwargs={"max_new_tokens": 4, "do_sample": False})
    assert answer["generated_text"][-1]["content"][0]["text"].startswith("It is")


def test_real_photo_with_all_its_regions_in_one_batch(captioner: Any, real_regions: list[RealRegion]) -> None:
    regions = [region for region in real_regions if region.image == real_regions[0].image]
    chats = [captioner.processor.conversation(str(region.image), "color", region.rle) for region in regions]
    inputs = to_inputs(captioner.processor, chats)
    assert inputs["pixel_values"].shape[0] == 1
    assert inputs["mask_values"].shape[0] == len(regions) > 1
    for number, chat in enumerate(chats):
        single = to_inputs(captioner.processor, chat)
        assert inputs["mask_values"][number].equal(single["mask_values"][0])
        assert inputs["pixel_values"].equal(single["pixel_values"])
