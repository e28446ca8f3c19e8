"""Models with code of their own, against stand-ins for the interface that their repositories publish."""

import os
import re
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from region_stand_ins import (
    ANSWER,
    BOS,
    IMAGE,
    ImageProcessor,
    LlavaModel,
    Mark2Square,
    Tokenizer,
    ids_of,
    install,
    llava_modules,
    noted,
    read,
)
from transformers import AutoModel, AutoProcessor, AutoTokenizer, CLIPImageProcessor

from finecaption_hf.asking import DescriberError, ask, load_describer
from finecaption_hf.asking.describers.boxes import BOX_FORMATS, write_box
from finecaption_hf.asking.describers.region_models import REGION_MODELS

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8))
MASK = np.zeros((60, 100), dtype=bool)  # an L, so that it is not its box: box_xyxy (29, 10, 80, 50)
MASK[10:50, 29:40] = MASK[40:50, 29:80] = True
WHOLE = None


def answers(describer: Any, region: Any = MASK, question: str = "What is it?") -> str:
    """The answer about a region, or its error."""
    (record,) = ask(describer, PICTURE, region, question)
    if "errors" in record:
        return str(record["errors"][question]["message"])
    return str(record["answers"][question])


@pytest.fixture
def ferret(monkeypatch: pytest.MonkeyPatch) -> Any:
    model, image_processor = LlavaModel(framed=True), ImageProcessor()
    loads: list[Any] = []
    load = noted(loads, (Tokenizer(), model, image_processor, 2048))
    install(monkeypatch, **llava_modules("ferret", "ferret_v1"), ferret__model__builder={"load_pretrained_model": load})
    return SimpleNamespace(model=model, image_processor=image_processor, loads=loads)


def test_ferret_gets_the_mask_with_x_before_y_and_its_box_in_thousandths(ferret: Any) -> None:
    describer = load_describer("weights/ferret-13b", describer="ferret", max_new_tokens=9)
    assert ferret.loads == [(("weights/ferret-13b", None, "ferret-13b"), {})]
    assert answers(describer) == ANSWER
    (sent,) = ferret.model.sent
    assert sent["prompt"] == (
        "S USER: <im_start><image><im_end>\n"
        "The marked region is the area [290, 166, 800, 833] <region_fea>. What is it? ASSISTANT:"
    )
    ((mask,),) = sent["region_masks"]
    assert mask.dtype == torch.float16 and (mask.numpy() == MASK.T).all()
    assert ferret.image_processor.calls[0]["size"] == [336, 336] and sent["images"].dtype == torch.float16
    assert (sent["do_sample"], sent["max_new_tokens"]) == (False, 9)
    assert not hasattr(ferret.model.forward, "keywords")  # what was bound for this question is gone

    answers(describer, WHOLE)
    assert ferret.model.sent[1]["region_masks"] is None and "<region_fea>" not in ferret.model.sent[1]["prompt"]


def test_region_is_not_lost_where_prompts_leave_its_token_out(ferret: Any) -> None:
    describer = load_describer("ferret", describer="ferret", prompts="{question}")
    assert "The prompt has <region_fea> 0 times" in answers(describer)
    assert answers(describer, WHOLE) == ANSWER
    with pytest.raises(DescriberError, match="called llama; Ferret's loader takes one with ferret"):
        load_describer("llama", describer="ferret")


def test_osprey_gets_the_mask_at_the_pictures_size_and_its_two_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = LlavaModel(), Tokenizer()
    llama = {"OspreyLlamaForCausalLM": SimpleNamespace(from_pretrained=lambda *_, **__: model)}
    modules = llava_modules("osprey", "osprey_v1")
    install(monkeypatch, **modules, osprey__model__language_model__osprey_llama=llama)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: tokenizer)

    describer = load_describer("sunshine-lwt/Osprey-Chat-7b", describer="osprey", device="cpu")
    assert tokenizer.added == ["<mask>", "<pos>"] and model.tokenizer is tokenizer  # type: ignore[attr-defined]
    assert [answers(describer), answers(describer, WHOLE)] == [ANSWER, ANSWER]
    sent, whole = model.sent
    assert sent["prompt"] == (
        "S USER: <image>\nThis provides an overview of the picture.\n"
        "Ther are 1 part region in the picture: region1<mask><pos>. What is it? ASSISTANT:"
    )
    assert sent["img_metas"] == [None] and (sent["masks"][0].numpy() == MASK[None]).all()
    assert sent["images"].shape == (1, 3, 512, 512)
    row = torch.from_numpy(np.array(PICTURE.resize((512, 512), Image.Resampling.BICUBIC))[256]).float()
    usual = CLIPImageProcessor()
    of_clip = (row / 255 - torch.tensor(usual.image_mean)) / torch.tensor(usual.image_std)
    assert (sent["images"][0, :, 256].T.float() - of_clip).abs().mean() < 0.15  # all of the picture, none of it cut
    assert whole["prompt"] == "S USER: <image>\nWhat is it? ASSISTANT:" and "masks" not in whole


@pytest.mark.parametrize("tells_sizes", [True, False])
def test_llava_hr_gets_boxes_of_the_padded_square(tells_sizes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Newer(LlavaModel):
        def forward(self, input_ids: Any = None, images: Any = None, image_sizes: Any = None) -> None: ...

    model = Newer() if tells_sizes else LlavaModel()
    modules = llava_modules("llava_hr", "llava_v1")
    modules["llava_hr__mm_utils"]["process_images"] = lambda images, processor, config: torch.zeros(1, 3, 8, 8)
    load = noted([], (Tokenizer(), model, None, 2048))
    install(monkeypatch, **modules, llava_hr__model__builder={"load_pretrained_model": load})
    describer = load_describer("favor123/llava-hr-13b-x-sft-1024", describer="llava_hr")
    assert answers(describer) == ANSWER
    (sent,) = model.sent
    # 20 pixels above and below make a square of 100 x 60.
    assert "\nThe marked region is the box [0.29, 0.3, 0.8, 0.7]. What is it? ASSISTANT:" in sent["prompt"]
    assert sent.get("image_sizes") == ([(100, 60)] if tells_sizes else None)
    assert sent["images"].dtype == torch.float16


class Settings:
    """Of generation, as VILA's model gives them."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def update(self, **values: Any) -> None:
        self.values |= values


def test_vila_gets_picture_and_text_in_one_list(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Model:
        default_generation_config = property(lambda self: Settings())
        generate_content = staticmethod(noted(calls, ANSWER))

    install(monkeypatch, llava={"load": lambda model, model_base=None: Model()})
    describer = load_describer("Efficient-Large-Model/Llama-3-VILA1.5-8B", describer="vila", max_new_tokens=7)
    assert answers(describer) == ANSWER
    (((prompt,), options),) = calls
    assert prompt[0].size == (100, 60)
    assert prompt[1] == "The marked region is the box [0.29, 0.3, 0.8, 0.7]. What is it?"
    assert options["generation_config"].values == {"do_sample": False, "num_beams": 1, "max_new_tokens": 7}

    install(monkeypatch, llava={})
    with pytest.raises(ImportError, match="llava that is installed is not VILA's"):
        load_describer("x/y", describer="vila")


def test_shikra_gets_a_square_and_its_own_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[Any] = []

    class Interactive:
        roles = ("human", "gpt")

        def set_image(self, image: Image.Image) -> None:
            self.image = image

        def append_message(self, role: str, message: str, *, boxes: Any = None, boxes_seq: Any = None) -> None:
            turns.append((self.image.size, role, message, boxes, boxes_seq))

        def to_model_input(self) -> dict[str, Any]:
            return {"input_ids": ids_of("P"), "images": torch.zeros(1, 3, 8, 8)}

    class Model(LlavaModel):
        def generate(self, input_ids: torch.Tensor, *, images: Any, **options: Any) -> torch.Tensor:
            assert {"pad_token_id", "bos_token_id", "eos_token_id"} <= set(options)
            return super().generate(input_ids, images=images)

    model = Model()
    model.model = SimpleNamespace(vision_tower=[model])  # type: ignore[attr-defined]
    loads: list[Any] = []
    install(
        monkeypatch,
        mllm__models__builder__build_shikra={
            "load_pretrained_shikra": noted(loads, (model, {"text": Tokenizer(), "image": None}))
        },
        mllm__dataset__builder={"prepare_interactive": lambda model_args, preprocessor: Interactive()},
        mllm__dataset__utils__transform={"expand2square": Mark2Square.expand2square},
        mllm__dataset__process_function={"PlainBoxFormatter": object},
        mmengine={"Config": lambda values: SimpleNamespace(**values)},
    )
    describer = load_describer("weights/shikra-7b", describer="shikra")
    ((model_args, _),) = (arguments for arguments, _ in loads)
    assert model_args.model_name_or_path == "weights/shikra-7b" and model_args.image_token_len == 256
    assert answers(describer) == f"{ANSWER}</s>"  # its end is a special token, which its tokenizer leaves out
    message = "The marked region is the box [0.290,0.300,0.800,0.700]. What is it?"
    assert turns == [((100, 100), "human", message, [], [])]


def test_glamm_gets_the_masks_box_as_shares_and_its_prompt_back(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []

    class Glamm(LlavaModel):
        def get_model(self) -> Any:
            return SimpleNamespace(
                config=self.config, initialize_vision_modules=lambda config: None, get_vision_tower=lambda: self.tower
            )

        bfloat16 = cuda = LlavaModel.eval

        def evaluate(  # the names are those of its code
            self,
            global_enc_images: torch.Tensor,
            grounding_enc_images: torch.Tensor,
            input_ids: torch.Tensor,
            resize_list: list[tuple[int, int]],
            orig_sizes: list[tuple[int, int]],
            max_tokens_new: int = 32,
            bboxes: Any = None,
        ) -> tuple[torch.Tensor, list[Any]]:
            sent.append(dict(locals(), prompt=read(input_ids[0])))
            return torch.cat([input_ids, ids_of(f" <p> {ANSWER} </p> [SEG]</s>")], dim=1), []

    model = Glamm()
    model.config.vision_tower = "clip"
    modules = llava_modules("model__llava", "llava_v1")
    longest = SimpleNamespace(apply_image=lambda pixels: np.ones((614, 1024, 3), dtype=np.uint8))
    install(
        monkeypatch,
        **modules,
        tools__utils=modules["model__llava__constants"],
        model__GLaMM={"GLaMMForCausalLM": SimpleNamespace(from_pretrained=lambda *_, **__: model)},
        model__SAM__utils__transforms={"ResizeLongestSide": lambda side: longest},
    )
    monkeypatch.setattr(CLIPImageProcessor, "from_pretrained", lambda *_, **__: ImageProcessor())
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: Tokenizer())

    describer = load_describer("MBZUAI/GLaMM-FullScope", describer="glamm", max_new_tokens=9)
    assert [answers(describer), answers(describer, WHOLE)] == [ANSWER, ANSWER]
    first = sent[0]
    assert first["prompt"] == (
        "S USER: The <im_start><image><im_end> provides an overview of the picture.\n"
        "The region in the picture is marked by <bbox>. What is it? ASSISTANT:"
    )
    (boxes,) = first["bboxes"]
    assert boxes.shape == (1, 4) and boxes.dtype == torch.bfloat16
    assert boxes[0].tolist() == pytest.approx([0.29, 1 / 6, 0.8, 5 / 6], abs=2e-3)  # eight bits of a share
    assert first["grounding_enc_images"].shape == (1, 3, 1024, 1024)
    assert (first["grounding_enc_images"][..., 614:, :] == 0).all()
    assert (first["resize_list"], first["orig_sizes"], first["max_tokens_new"]) == ([(614, 1024)], [(60, 100)], 9)
    assert sent[1]["bboxes"] is None
    assert describer.settings["referral"]["kind"] == "filled_box"


def test_omg_llava_gets_the_mask_of_the_padded_square(monkeypatch: pytest.MonkeyPatch) -> None:
    regions: list[torch.Tensor] = []
    inputs: list[Any] = []
    generated: list[Any] = []

    class Encoder(LlavaModel):
        def __call__(self, pixels: torch.Tensor, output_hidden_states: bool) -> torch.Tensor:
            assert pixels.shape == (1, 3, 100, 100) and output_hidden_states
            return pixels

        def forward_region_sam(self, masks: torch.Tensor, of_picture: torch.Tensor) -> torch.Tensor:
            regions.append(masks)
            assert of_picture.tolist() == [0]
            return torch.ones(1, 1, 4)

    class Projector:
        model = SimpleNamespace(query_proj=torch.nn.Linear(4, 2), model=torch.nn.Identity())

        def __call__(self, visual: torch.Tensor) -> str:
            return "visual"

    class Omg(LlavaModel):
        llm = SimpleNamespace(generate=noted(generated, ids_of(f"{ANSWER} [SEG]")))
        tokenizer, visual_encoder, projector, mark_token_idx = Tokenizer(), Encoder(), Projector(), 7

        def load_state_dict(self, state: Any, strict: bool) -> Any:
            return SimpleNamespace(unexpected_keys=[] if state == "state" else ["strange"])

    settings = SimpleNamespace(model=SimpleNamespace(), image_processor={"type": ImageProcessor})
    configs: list[Any] = []
    install(
        monkeypatch,
        omg_llava={"__path__": ["/clone/omg_llava"]},
        omg_llava__dataset__utils=vars(Mark2Square),
        omg_llava__model__utils={
            "prepare_inputs_labels_for_multimodal_with_visual_prompts": noted(inputs, {"inputs_embeds": "embedded"})
        },
        xtuner__registry={"BUILDER": SimpleNamespace(build=lambda model: Omg())},
        xtuner__model__utils={"guess_load_checkpoint": lambda path: "state" if path.endswith("omg.pth") else "other"},
        xtuner__tools__utils={"get_stop_criteria": lambda tokenizer, stop_words: stop_words},
        xtuner__utils={
            "PROMPT_TEMPLATE": {"internlm2_chat": {"INSTRUCTION": "U {input} A", "STOP_WORDS": ["</s>"]}},
            "DEFAULT_IMAGE_TOKEN": "<image>",
            "IMAGE_TOKEN_INDEX": IMAGE,
        },
        mmengine__config={"Config": SimpleNamespace(fromfile=noted(configs, settings))},
    )
    describer = load_describer("omg.pth", describer="omg_llava", device="cpu")
    assert configs[0][0] == (os.path.join("/clone/omg_llava", "configs/finetune/omg_llava_7b_finetune_8gpus.py"),)
    assert answers(describer) == ANSWER
    ((_, given),) = inputs
    assert read(given["input_ids"][0]) == (
        "U <image>\nThe region in the picture is marked by region1 <mark>. What is it? A"
    )
    assert given["input_ids"][0, 0] == BOS and given["mark_id"] == 7 and given["mark_feats"].shape == (1, 2)
    (region,) = regions
    assert region.shape == (1, 1024, 1024)
    square = np.pad(MASK, ((20, 20), (0, 0)))
    assert (region[0, 5::1024, 5::1024].numpy() == square[:1, :1]).all()
    assert region.float().mean() == pytest.approx(square.mean(), abs=5e-3)  # nearest, 100 to 1024 pixels
    assert generated[0][1]["stopping_criteria"] == ["</s>"] and generated[0][1]["inputs_embeds"] == "embedded"
    answers(describer, WHOLE)
    assert inputs[1][1]["mark_feats"] == [] and len(regions) == 1
    with pytest.raises(DescriberError, match="has strange, which the model of"):
        load_describer("else.pth", describer="omg_llava", device="cpu")


class GarTokenizer(Tokenizer):
    eos_token_id = pad_token_id = 2
    ids = {**{f"<Prompt{number}>": 128256 + number for number in range(5)}, "<NO_Prompt>": 128261}

    def convert_tokens_to_ids(self, token: str) -> int:
        return self.ids.get(token, 128011)


def test_gar_gets_a_picture_of_prompts_and_the_box_by_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    sent: list[Any] = []

    class Processor:
        tokenizer = GarTokenizer()

        def apply_chat_template(self, messages: Any, add_generation_prompt: bool, tokenize: bool) -> str:
            (message,) = messages
            return f"<|user|>{message['content'][1]['text']}<|assistant|>"

        def __call__(self, text: list[str], images: Any, visual_prompts: Any, return_tensors: str) -> Any:
            calls.append((text[0], images[0].size, visual_prompts[0]))
            return {
                "input_ids": ids_of("x"),
                "attention_mask": torch.ones(1, 1),
                "pixel_values": torch.zeros(1, 2, 3, 8, 8),
                "mask_values": torch.zeros(1, 2, 1, 8, 8),
                "aspect_ratio": torch.tensor([1, 2]),
            }

    class Model(LlavaModel):
        def generate(self, **given: Any) -> Any:
            sent.append(given)
            return SimpleNamespace(sequences=ids_of(f" {ANSWER} "))

    model = Model()
    model.config = SimpleNamespace(prompt_numbers=5)
    loads: list[Any] = []
    monkeypatch.setattr(AutoModel, "from_pretrained", noted(loads, model))
    monkeypatch.setattr(AutoProcessor, "from_pretrained", lambda *_, **__: Processor())
    with pytest.raises(DescriberError, match="Look at that code, then give trust_remote_code"):
        load_describer("Haochen-Wang409/GAR-1B", describer="gar")
    describer = load_describer(
        "Haochen-Wang409/GAR-1B", describer="gar", trust_remote_code=True, revision="abc", device="cpu"
    )
    assert loads[0][1] == {"trust_remote_code": True, "revision": "abc", "torch_dtype": torch.bfloat16}
    assert answers(describer) == ANSWER
    ((text, size, prompts),) = calls
    assert text == (
        "<|user|>There are some objects I am curious about: <Prompt1>;\n<Prompt1>: "
        + "<|reserved_special_token_3|>" * 256
        + "What is it?<|assistant|>"
    )
    assert size == (100, 60) and (np.asarray(prompts) == np.where(MASK, 1, 5)).all()
    (given,) = sent
    assert given["bboxes"] == [{"128011": (0.29, 10 / 60, 0.79, 49 / 60)}]
    assert given["pixel_values"].shape == (2, 3, 8, 8) and given["global_mask_values"].shape == (2, 8, 8)
    assert given["aspect_ratios"].shape == (1, 2) and given["return_dict"] is True


def test_pam_gets_the_box_in_a_video_of_one_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    frames: list[Any] = []

    class Model(LlavaModel):
        def generate(self, input_ids: torch.Tensor, *, images: Any, **options: Any) -> Any:
            ((frame,),) = images
            frames.append((frame, Image.open(frame).size))
            super().generate(input_ids, images=images, **options)
            return ids_of(ANSWER), None, None

    model = Model()
    loads: list[Any] = []
    load = noted(loads, (Tokenizer(), model, None, 2048))
    install(monkeypatch, **llava_modules("llava", "qwen_2"), llava__model__builder={"load_pretrained_model": load})
    describer = load_describer("Perceive-Anything/PAM-3B", describer="pam", device="cpu")
    assert answers(describer) == ANSWER
    (sent,) = model.sent
    assert sent["prompt"] == "S USER: <image>\nWhat is it? ASSISTANT:"
    assert (sent["visual_prompts"], sent["vp_labels"], sent["types"]) == ([[29, 10, 80, 50]], [None], ["video"])
    assert frames[0][1] == (100, 60) and not Path(frames[0][0]).exists()
    assert loads[0][1]["multimodal"] is True and loads[0][1]["device_map"] == "cpu"


# --- without the code, or with it elsewhere ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(REGION_MODELS) - {"describe_anything", "gar"}))
def test_code_that_is_not_installed_is_named_with_the_way_to_it(name: str) -> None:
    with pytest.raises(ImportError, match=rf"{name} needs the code of github.com/.* describer {name}@/path/to/python"):
        load_describer("some/model", describer=name)


def test_box_formats_of_region_models_are_there_and_count_from_the_square() -> None:
    assert {code.box_format for code in REGION_MODELS.values()} <= set(BOX_FORMATS)
    tall = write_box((5, 40, 20, 70), (80, 50), "shikra")  # 15 pixels left and right make a square of 50 x 80
    assert tall == "[0.250,0.500,0.438,0.875]"
    assert write_box((0, 0, 50, 80), (80, 50), "llava_square") == "[0.19, 0.0, 0.81, 1.0]"
    assert write_box((0, 0, 50, 80), (80, 50), "ferret") == "[0, 0, 1000, 1000]"


VILA = """
import os
print("loading", flush=True)  # what a model's code prints is no answer

class Config:
    def update(self, **values):
        self.values = values

class Model:
    default_generation_config = property(lambda self: Config())

    def generate_content(self, prompt, generation_config):
        image, text = prompt
        if "end" in text:
            os._exit(3)
        if "fail" in text:
            raise RuntimeError("no memory")
        return f"{image.size} {image.getpixel((7, 5))} {text} {generation_config.values['max_new_tokens']}"

def load(model_path, model_base=None):
    return Model()
"""


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path of other Pythons, with a stand-in for VILA's package and a model of one's own."""
    (tmp_path / "llava.py").write_text(VILA)
    own = """
    import numpy as np

    class Counts:
        takes_mask, settings = True, {"checkpoint": "mine"}

        def answer(self, image, mask, prompt):
            return f"{np.asarray(image)[mask].sum()} {mask.shape} {prompt}"

    def load(model, word="hi"):
        return Counts()
    """
    (tmp_path / "own_model.py").write_text(textwrap.dedent(own))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_model_answers_in_the_environment_of_its_code(elsewhere: Path) -> None:
    describer = load_describer("x/vila", describer=f"vila@{sys.executable}", max_new_tokens=5)
    assert describer.settings["describer"] == "vila"
    box = "The marked region is the box [0.29, 0.3, 0.8, 0.7]."
    assert answers(describer) == f"(100, 60) {PICTURE.getpixel((7, 5))} {box} What is it? 5"
    assert answers(describer, question="fail") == "DescriberError: RuntimeError: no memory"
    assert answers(describer, WHOLE, "And?").endswith(" And? 5")
    assert "process ended with code 3" in answers(describer, question="end")
    assert "process ended with code 3" in answers(describer)


def test_model_of_ones_own_answers_in_another_environment(elsewhere: Path) -> None:
    code = f"own_model:load@{sys.executable}"
    describer = load_describer("mine", describer=code)
    assert answers(describer) == f"{np.asarray(PICTURE)[MASK].sum()} (60, 100) What is it?"
    process = describer._model._process  # type: ignore[attr-defined]
    del describer
    assert process.wait(timeout=10) == 0  # it ends with the describer
    with pytest.raises(DescriberError, match=r"cannot be loaded by .* ValueError: device: no effect"):
        load_describer("mine", describer=code, device="cpu")


def test_python_that_is_none_says_so() -> None:
    with pytest.raises(DescriberError, match=r"/no/python cannot be started .* Give the path of a Python"):
        load_describer("x/y", describer="vila@/no/python")
    with pytest.raises(DescriberError, match=r"no describer 'endpoint@/no/python'\. .*There are: finecaption"):
        load_describer("x/y", describer="endpoint@/no/python")


def test_adapter_of_the_docs_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of docs/describers.md, with a model that only that example knows."""
    text = (ROOT / "docs" / "describers.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(# my_model\.py\n.*?)```", text, flags=re.DOTALL)
    assert len(code.splitlines()) <= 30
    (tmp_path / "my_model.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    calls: list[Any] = []
    model = SimpleNamespace(describe=noted(calls, ANSWER))
    install(monkeypatch, their_package={"load_model": lambda name, device: model})
    describer = load_describer("weights", describer="my_model:load", device="cpu")
    assert answers(describer) == ANSWER
    (((image, mask, prompt), options),) = calls
    assert image.size == (100, 60) and (mask == MASK * 255).all() and prompt == "What is it?"
    assert describer.settings["checkpoint"] == "weights" and options == {"max_new_tokens": 128}
