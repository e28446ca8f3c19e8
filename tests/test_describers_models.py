"""Other models: the real classes of transformers at random tiny size, asked about regions."""

from typing import Any

import numpy as np
import pytest
import torch
from describers import Request, StubDescriber, Told, describe, unmarkable
from other_models import FAMILIES, llava_without_template, random_model
from PIL import Image
from transformers import AutoModelForImageTextToText

from finecaption_hf.asking import DescriberError, ask, load_describer
from finecaption_hf.asking.describers import (
    DescribeAnything,
    FilledBoxDescriber,
    PromptTemplates,
    Referral,
    RegionModelDescriber,
    TransformersDescriber,
)
from finecaption_hf.asking.describers.boxes import CONVENTIONS
from finecaption_hf.masks_finecaption import RegionMask


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def region(image: Image.Image, box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((image.height, image.width), dtype=bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def requests() -> list[Request]:
    """Two regions and a whole picture, of different sizes, with questions of different length."""
    wide, tall = picture(60, 90), picture(80, 50, seed=1)
    return [
        Request(wide, region(wide, (20, 10, 70, 30)), ("What is it?", "Color?"), (None, "Color")),
        Request(tall, region(tall, (5, 40, 20, 70)), ("A longer question, to see padding at work.",), (None,)),
        Request(tall, None, ("What is it?",), (None,)),
    ]


class Watched(TransformersDescriber):
    """Remembers the token ids of its answers, which texts of random bytes do not show."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"name": "it", "max_new_tokens": 6, **options})
        self.tokens: dict[str, list[int]] = {}
        self.batches: list[int] = []

    def _choose(self, jobs: Any, inputs: Any) -> Any:
        self.batches.append(len(jobs))
        for job, update in zip(jobs, super()._choose(jobs, inputs), strict=True):
            self.tokens[job.text] = list(update.answer.token_ids)
            yield update


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[Any, Any]]:
    return {family: random_model(family) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_gives_the_tokens_of_single_questions(family: str, models: dict[str, Any]) -> None:
    batched = Watched(*models[family], Referral("box_text"), batch_size=3)
    descriptions = list(describe(batched, requests()))
    single = Watched(*models[family], Referral("box_text"), batch_size=1)
    assert list(describe(single, requests())) == descriptions
    assert batched.tokens == single.tokens
    assert [len(description.texts) for description in descriptions] == [2, 1, 1]
    assert all(error is None for description in descriptions for error in description.errors or ())
    assert len(set(map(tuple, batched.tokens.values()))) > 1
    assert batched.batches == {"kosmos-2": [1, 1, 1, 1], "mllama": [3, 1]}.get(family, [2, 1, 1])


@pytest.mark.parametrize("family", FAMILIES)
def test_answer_depends_on_picture_and_question(family: str, models: dict[str, Any]) -> None:
    describer = Watched(*models[family], Referral("box_text"), max_new_tokens=12)
    image, other = picture(60, 90), picture(60, 90, seed=5)
    mask = region(image, (20, 10, 70, 30))

    def tokens(image: Image.Image, question: str) -> list[int]:
        describer.tokens.clear()
        list(describe(describer, [Request(image, mask, (question,), (None,))]))
        return next(iter(describer.tokens.values()))

    asked = tokens(image, "What is it?")
    assert tokens(image, "What is it?") == asked
    assert tokens(other, "What is it?") != asked or tokens(image, "Which colour?") != asked


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answer_is_that_of_the_models_own_generate(family: str, models: dict[str, Any]) -> None:
    model, processor = models[family]
    describer = Watched(model, processor, Referral("crop"))
    image = picture(60, 90)
    mask = region(image, (20, 10, 70, 50))
    list(describe(describer, [Request(image, mask, ("What is it?",), (None,))]))

    text = "The image is cropped to the marked region. What is it?"
    crop = image.crop((20, 10, 70, 50))
    if family in ("llava", "vipllava"):  # as LLaVA pads: the mean colour above and below
        square = Image.new("RGB", (50, 50), (122, 116, 104))
        square.paste(crop, (0, 5))
        crop = square
    if processor.chat_template:
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
        begins = {"add_special_tokens": False} if prompt.startswith("<s>") else {}
        inputs = processor(images=[crop], text=[prompt], return_tensors="pt", **begins)
    else:
        inputs = processor(images=[crop], text=[text], return_tensors="pt")
    made = model.generate(**inputs, do_sample=False, max_new_tokens=6)
    assert describer.tokens == {text: made[0, inputs["input_ids"].shape[1] :].tolist()}


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_answers(family: str) -> None:
    model, processor = random_model(family)
    describer = Watched(model.to(torch.bfloat16), processor, Referral("box_text"))
    descriptions = list(describe(describer, requests()))
    assert all(error is None for description in descriptions for error in description.errors or ())
    assert describer.settings["dtype"] == "bfloat16"


def test_types_of_the_table_are_those_of_their_configurations(models: dict[str, Any]) -> None:
    assert {model.config.model_type for model, _ in models.values()} == set(FAMILIES)
    assert set(FAMILIES) - set(CONVENTIONS) == {"mllama"}


def test_boxes_of_qwen2_5_vl_are_in_the_pixels_that_it_sees(models: dict[str, Any]) -> None:
    describer = TransformersDescriber(*models["qwen2_5_vl"], Referral("box_text"), name="it")
    image = picture(60, 90)
    marked = Referral("box_text").mark(image, RegionMask({"box_xyxy": [0, 0, 45, 60]}, 60, 90))
    _, rows, columns = (
        models["qwen2_5_vl"][1].image_processor([image], return_tensors="pt")["image_grid_thw"][0].tolist()
    )
    assert (rows * 14, columns * 14) != (60, 90)
    assert f"[0, 0, {columns * 7}, {rows * 14}]" in describer.prompt(marked, "What?")


def test_boxes_of_llava_count_from_the_corner_of_the_padded_square(models: dict[str, Any]) -> None:
    describer = Watched(*models["llava"], Referral("box_text"))
    image = picture(60, 120)
    list(describe(describer, [Request(image, region(image, (0, 0, 60, 60)), ("Q",), (None,))]))
    assert list(describer.tokens) == ["The marked region is the box [0.0, 0.25, 0.5, 0.75]. Q"]
    assert describer.settings["square"] is True


def test_picture_of_an_image_processor_that_cuts_is_padded_and_a_tiled_one_is_not(models: dict[str, Any]) -> None:
    cutting = TransformersDescriber(*models["llava"], Referral("crop"), name="it", square=None)
    tiled = TransformersDescriber(*models["llava_next"], Referral("crop"), name="it")
    assert (cutting.settings["square"], tiled.settings["square"]) == (True, False)
    from finecaption_hf.asking.describers.transformers_models import _cuts

    assert _cuts(models["llava"][1].image_processor)
    assert not any(_cuts(models[family][1].image_processor) for family in FAMILIES if "lava" not in family)


def test_model_without_template_gets_an_image_token_and_the_prompt_as_it_is() -> None:
    torch.manual_seed(0)
    model, processor = llava_without_template()
    prompts = PromptTemplates(default="USER: <image>\n{referral} {question} ASSISTANT:", whole="{question}")
    describer = Watched(model.eval(), processor, Referral("contour_drawn"), prompts)
    descriptions = list(describe(describer, requests()))
    assert all(error is None for description in descriptions for error in description.errors or ())
    assert describer.settings["prompt_example"] == (
        "USER: <image>\nThe marked region is outlined in red. {question} ASSISTANT:"
    )


def test_system_message_and_prompts_are_in_the_example(models: dict[str, Any]) -> None:
    prompts = PromptTemplates(default="{referral} Q: {question}", system="You describe regions.")
    describer = TransformersDescriber(*models["qwen2_vl"], Referral("box_drawn"), prompts, name="it")
    assert describer.settings["prompt_example"] == (
        "system: You describe regions.\nuser: <|vision_start|><|image_pad|><|vision_end|>"
        "The marked region is inside the red box. Q: {question}\nassistant: "
    )
    assert describer.settings["prompts"]["system"] == "You describe regions."


def test_boxes_that_kosmos_writes_after_phrases_are_taken_out(models: dict[str, Any]) -> None:
    model, processor = models["kosmos-2"]
    written = "<phrase> a dog</phrase><object><patch_index_0044><patch_index_0863></object> on grass</s>"
    ids = processor.tokenizer(written, add_special_tokens=False, return_tensors="pt")["input_ids"]
    describer = TransformersDescriber(model, processor, Referral("box_text"), name="it")
    assert describer._text(ids[0].tolist()).strip() == "a dog on grass"


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_question_that_fails_loses_no_other(batch_size: int, models: dict[str, Any]) -> None:
    describer = Watched(*models["llava"], Referral("box_text"), batch_size=batch_size)
    expected = list(describe(describer, requests()))
    inputs = describer._inputs

    def fail(images: list[Image.Image], texts: list[str], *processor: Any) -> Any:
        if any("Color" in text for text in texts):
            raise RuntimeError("no memory\nleft")
        return inputs(images, texts, *processor)

    describer._inputs = fail  # type: ignore[method-assign]
    descriptions = list(describe(describer, requests()))
    assert descriptions[0] == Told((expected[0].texts[0], None), (None, "RuntimeError: no memory left"))
    assert descriptions[1:] == expected[1:]


def test_region_that_cannot_be_marked_loses_no_other(models: dict[str, Any]) -> None:
    describer = unmarkable(Watched(*models["llava"], Referral("crop")))
    asked = requests()
    broken = Request(asked[0].image, {"box_xyxy": [3, 3, 4, 4]}, ("A?", "B?"), (None, None))
    descriptions = list(describe(describer, [asked[0], broken, asked[1]]))
    assert descriptions[1].texts == (None, None)
    assert descriptions[1].errors == ("ValueError: it cannot be marked",) * 2
    assert [descriptions[0], descriptions[2]] == list(describe(describer, asked[:2]))


def test_descriptions_come_as_soon_as_they_are_there(models: dict[str, Any]) -> None:
    describer = Watched(*models["llava"], Referral("crop"), batch_size=2)
    made = describe(describer, requests())
    next(made)
    assert describer.batches == [2]


@pytest.mark.parametrize("kind", ["mask", "filled_box"])
def test_model_without_mask_input_refuses_a_mask(kind: str, models: dict[str, Any]) -> None:
    with pytest.raises(DescriberError, match="takes no mask"):
        TransformersDescriber(*models["llava"], Referral(kind), name="it")


def test_sampling_of_a_checkpoint_is_switched_off_and_asked_for_by_name(models: dict[str, Any]) -> None:
    model, processor = models["qwen2_vl"]
    model.generation_config.update(do_sample=True, temperature=0.7, top_k=3)
    parts = (model, processor, Referral("crop"))
    try:
        greedy = TransformersDescriber(*parts, name="it")._generation
        assert (greedy.do_sample, greedy.temperature) == (False, None)
        drawn = TransformersDescriber(*parts, name="it", generation={"do_sample": True, "temperature": 0.5})
        found = drawn._generation
        assert (found.do_sample, found.temperature, found.top_k) == (True, 0.5, None)
        assert drawn.settings["decoding"]["temperature"] == 0.5
        assert model.generation_config.temperature == 0.7
        with pytest.raises(ValueError, match="no option 'beams'"):
            TransformersDescriber(*parts, name="it", generation={"beams": 2})
    finally:
        model.generation_config.update(do_sample=False, temperature=None, top_k=None)


def test_model_is_loaded_from_a_folder_with_options_of_its_processor(tmp_path: Any, models: dict[str, Any]) -> None:
    model, processor = models["qwen2_5_vl"]
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    smaller = {"size": {"shortest_edge": 28 * 28, "longest_edge": 2 * 28 * 28}}
    describer = TransformersDescriber.from_pretrained(
        str(tmp_path), Referral("crop"), device="cpu", processor_options=smaller, max_new_tokens=6
    )
    assert isinstance(describer._model, AutoModelForImageTextToText._model_mapping[type(model.config)])
    whole = TransformersDescriber(model, processor, Referral("crop"), name="it")
    assert describer._seen_size((60, 90)) != whole._seen_size((60, 90))
    assert describer.settings["checkpoint"] == str(tmp_path)
    assert describer.settings["processor_options"] == smaller
    assert all(text is not None for description in describe(describer, requests()) for text in description.texts)


# --- filled boxes and region models -----------------------------------------------------------------------------------


def test_filled_box_takes_the_place_of_the_mask_and_of_nothing_else() -> None:
    stub = StubDescriber(referral="mask")
    image = picture(60, 90)
    mask = region(image, (20, 10, 70, 30))
    mask[15:20, 30:40] = False
    describer = FilledBoxDescriber(stub)
    told = list(describe(describer, [Request(image, mask, ("Q",), ("Color",)), Request(image, None, ("Q",), (None,))]))
    assert told == [Told(("Q 1000",), (None,)), Told(("Q all",), (None,))]
    (filled, request), (whole, _) = stub.asked
    assert (filled.pixels == region(image, (20, 10, 70, 30))).all() and whole.is_whole
    assert request.name == "Color"
    assert describer.settings == {"model": "stub", "referral": {"kind": "filled_box", "sentence": ""}}
    assert (describer.questions, describer.refusal("<image>")) == (stub.questions, "a special token")


def test_several_turns_are_not_asked_of_models_that_take_one_question() -> None:
    chat = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    describer = RegionModelDescriber(DescribeAnything(StandIn(), max_new_tokens=5), Referral("mask"), name="DAM")
    with pytest.raises(ValueError, match="DAM is asked one question at a time, not several turns"):
        ask(describer, picture(60, 90), None, [chat])


class StandIn:
    """The published interface of Describe Anything: `get_description` and its arguments. No model is behind it."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def get_description(
        self,
        image_pil: Image.Image,
        mask_pil: Image.Image,
        query: str,
        streaming: bool = False,
        temperature: float = 0.2,
        top_p: float = 0.5,
        num_beams: int = 1,
        max_new_tokens: int = 512,
    ) -> str:
        self.calls.append({"mask": np.asarray(mask_pil), "mode": mask_pil.mode, "query": query} | locals())
        if "fail" in query:
            raise RuntimeError("out of memory")
        return f" {query.upper()} "


def test_describe_anything_gets_mask_picture_and_query_in_its_own_form() -> None:
    stand_in = StandIn()
    describer = RegionModelDescriber(DescribeAnything(stand_in, max_new_tokens=50), Referral("mask"), name="DAM")
    image = picture(60, 90)
    mask = region(image, (20, 10, 70, 30))
    asked = [
        Request(image, mask, ("describe it", "please fail"), (None, None)),
        Request(image, None, ("the whole",), (None,)),
    ]
    descriptions = list(describe(describer, asked))
    assert descriptions == [
        Told(("<IMAGE>\nDESCRIBE IT", None), (None, "RuntimeError: out of memory")),
        Told(("<IMAGE>\nTHE WHOLE",), (None,)),
    ]
    first = stand_in.calls[0]
    expected = {"mode": "L", "query": "<image>\ndescribe it", "temperature": 0.0, "streaming": False}
    assert {name: first[name] for name in expected} == expected and first["max_new_tokens"] == 50
    assert (first["mask"] == mask * 255).all()
    assert (stand_in.calls[2]["mask"] == 255).all()
    assert describer.settings["describer"] == "describe_anything"


class Texter:
    takes_mask = False
    settings = {"checkpoint": "texter"}

    def answer(self, image: Image.Image, mask: np.ndarray | None, prompt: str) -> Any:
        return None if "nothing" in prompt else f"{image.size} {mask} {prompt}"


def test_region_model_without_masks_gets_the_text_instead() -> None:
    describer = RegionModelDescriber(Texter(), Referral("box_text"), name="texter", box_format="unit")
    image = picture(60, 90)
    asked = Request(image, region(image, (0, 0, 45, 30)), ("What?", "nothing"), (None, None))
    description = next(describe(describer, [asked]))
    assert description.texts == ("(90, 60) None The marked region is the box [0.0, 0.0, 0.5, 0.5]. What?", None)
    assert (description.errors or ())[1] == "TypeError: the model answered with NoneType, text is needed"


@pytest.mark.parametrize(
    "model, kind, message",
    [(DescribeAnything(StandIn()), "crop", "takes a mask, so"), (Texter(), "mask", "takes no mask, so")],
)
def test_region_model_refuses_a_referral_that_it_cannot_follow(model: Any, kind: str, message: str) -> None:
    with pytest.raises(DescriberError, match=message):
        RegionModelDescriber(model, Referral(kind), name="it")


def test_code_beside_weights_is_not_run_unasked() -> None:
    with pytest.raises(DescriberError, match="Look at that code, then give trust_remote_code"):
        load_describer("nvidia/DAM-3B-Self-Contained", describer="describe_anything")
