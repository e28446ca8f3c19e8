"""Batches of examples: what is shared, what carries loss, and that training on them is training on separate samples."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from parts import TEMPLATES, TILED
from PIL import Image
from test_branching import GRADIENT, LOGITS, branch_logits, conversation_ids
from test_processing import make_processor
from tiny import checkpointing_option, tiny_model
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from finecaption_hf.assembly.language import chat_template
from finecaption_hf.assembly.llava import NEWLINE
from finecaption_hf.data.collator import RegionCollator
from finecaption_hf.data.examples import Branch, DataError, Example, Region
from finecaption_hf.data.packing import BranchEncoder
from finecaption_hf.scenes import render_scene

NAMES = ("color", "shape", "materials_texture", "hair", "dense")
WORDS = "a large red blue square circle striped with dots left of the small one above".split()  # noqa: SIM905


def scene_examples(seeds: range, max_branches: int = 7) -> list[Example]:
    """One example per rendered scene, with ragged numbers of regions and branches; the last region is the whole."""
    examples = []
    for seed in seeds:
        scene = render_scene(seed)
        rng = np.random.default_rng(seed)

        def branches(rng: np.random.Generator = rng) -> tuple[Branch, ...]:
            texts = [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(rng.integers(1, max_branches))]
            return tuple(
                Branch(text, name=NAMES[number % 5]) if number % 3 else Branch(text, question=f"What of {text[:5]}?")
                for number, text in enumerate(texts)
            )

        regions = [Region(mask, branches()) for mask in scene.masks] + [Region(None, branches())]
        examples.append(Example(Image.fromarray(scene.image), tuple(regions), where=f"scenes.jsonl:{seed}"))
    return examples


def load_image(example: Example) -> Any:
    return example.image


@pytest.fixture(scope="module")
def processor(embedded: Any) -> Any:
    return embedded[1]


@pytest.fixture
def collator(processor: Any) -> RegionCollator:
    return RegionCollator(processor, load_image=load_image)


@pytest.fixture
def model(embedded: Any) -> Any:
    """A copy that tests may train."""
    model = type(embedded[0])(embedded[0].config)
    model.load_state_dict(embedded[0].state_dict())
    return model.eval()


def run(model: Any, batch: dict[str, torch.Tensor]) -> tuple[Any, dict[str, torch.Tensor]]:
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("max_tokens", [None, 110])
def test_packed_batch_trains_the_embedded_checkpoint_as_separate_samples_do(
    model: Any, processor: Any, max_tokens: int | None
) -> None:
    examples = scene_examples(range(2))
    packed = RegionCollator(processor, load_image=load_image, max_tokens=max_tokens)(examples)
    separate = RegionCollator(processor, load_image=load_image, packed=False)(examples)
    number = sum(len(region.branches) for example in examples for region in example.regions)
    num_regions = sum(len(example.regions) for example in examples)
    assert len(separate["input_ids"]) == len(separate["pixel_values"]) == len(separate["mask_values"]) == number
    assert len(packed["pixel_values"]) == 2 and len(packed["mask_values"]) == num_regions
    assert (len(packed["input_ids"]) > num_regions) == (max_tokens is not None)

    ours, our_gradients = run(model, packed)
    alone, gradients = run(model, separate)
    torch.testing.assert_close(ours.loss, alone.loss, **LOGITS)
    prefix = len(RegionCollator(processor, load_image=load_image).encoder.prefix_ids)
    found = branch_logits(ours.logits, packed)
    assert len(found) == number
    for logits, row, attended in zip(found, alone.logits, separate["attention_mask"]):
        torch.testing.assert_close(logits, row[prefix : int(attended.sum())], **LOGITS)
    # Biases of keys have no gradient but rounding, which is relative to what all parameters have.
    rounding = 1e-7 * torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    for name, gradient in gradients.items():
        assert (our_gradients[name] - gradient).norm() <= GRADIENT * gradient.norm() + rounding, name


def test_only_answers_and_their_ends_carry_loss(collator: RegionCollator) -> None:
    examples = scene_examples(range(3))
    batch = collator(examples)
    wanted = [branch.answer for example in examples for region in example.regions for branch in region.branches]
    found = []
    for ids, labels, branches in zip(batch["input_ids"], batch["labels"], batch["branch_ids"]):
        carried = labels != -100
        assert torch.equal(ids[carried], labels[carried]) and (branches[carried] > 0).all()
        assert (ids[branches == -1] == collator.pad_token_id).all()
        for number in range(1, int(branches.max()) + 1):
            found.append(collator.processor.tokenizer.decode(labels[carried & (branches == number)]))
    assert found == [f"{answer}<|end|>" for answer in wanted]


def test_each_image_is_loaded_and_prepared_once(processor: Any) -> None:
    loaded: list[Example] = []
    scene = render_scene(1)

    def load(example: Example) -> Any:
        loaded.append(example)
        return Image.fromarray(scene.image)

    def example(image: str, where: str) -> Example:
        return Example(image, (Region(scene.masks[0], (Branch("red", name="color"),)),), where=where)

    collator = RegionCollator(processor, load_image=load)
    one, other = example("1.png", "a.jsonl:1"), example("1.png", "a.jsonl:7")
    batch = collator([one, example("2.png", "a.jsonl:2"), other, example("1.png", "b.jsonl:1")])
    # The same name in another file is another picture: data sets have folders of their own.
    assert [(item.image, item.where) for item in loaded] == [
        ("1.png", "a.jsonl:1"),
        ("2.png", "a.jsonl:2"),
        ("1.png", "b.jsonl:1"),
    ]
    assert batch["image_indices"].tolist() == [0, 0, 1, 2]
    assert batch["region_indices"].tolist() == [0, 1, 2, 3]


def test_training_sees_what_inference_sees(collator: RegionCollator, processor: Any) -> None:
    (example,) = scene_examples(range(5, 6))
    batch = collator([example])
    chats = [processor.conversation(example.image, "color", region.mask) for region in example.regions]
    expected = processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    for name in ("pixel_values", "high_res_pixel_values", "mask_values", "image_indices"):
        assert torch.equal(batch[name], expected[name]), name


def test_batches_are_the_same_in_workers_and_again(collator: RegionCollator) -> None:
    examples = scene_examples(range(4))
    expected = [collator(examples[:2]), pickle.loads(pickle.dumps(collator))(examples[2:])]
    loader = DataLoader(examples, batch_size=2, collate_fn=collator, num_workers=1, multiprocessing_context="fork")
    for found, wanted in zip(loader, expected, strict=True):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_bad_record_is_named(collator: RegionCollator, processor: Any) -> None:
    good, bad = scene_examples(range(2))

    def fails(region: Region, match: str, **changes: Any) -> None:
        example = Example(bad.image, (bad.regions[0], region), where="my.jsonl:17")
        with pytest.raises(DataError, match=match) as error:
            RegionCollator(processor, load_image=load_image, **changes)([good, example])
        assert error.value.where == "my.jsonl:17"

    branch = Branch("red", name="color")
    fails(Region(np.zeros((256, 256), bool), (branch,)), "my.jsonl:17: region 2: .*empty")
    fails(Region(np.ones((5, 5), bool), (branch,), id="cup"), "region 'cup': .*5x5")
    fails(Region(None, (Branch("red", name="colour of it"),)), "no task or attribute 'colour of it'")
    fails(Region(None, (Branch("<image>", name="color"),)), "special token")
    fails(Region(None, (Branch("red " * 99, name="color"),)), "max_tokens is 120", max_tokens=120)

    def broken(example: Example) -> Any:
        raise OSError("truncated")

    with pytest.raises(DataError, match=r"scenes.jsonl:0: its image cannot be loaded: truncated"):
        RegionCollator(processor, load_image=broken)([good])
    with pytest.raises(ValueError, match="batch is empty"):
        collator([])


ENDS = {"llama3": "<|eot_id|>", "qwen3": "<|im_end|>", "mistral": "</s>", "smollm2": "<|im_end|>", "llava": "</s>"}
ENDS |= {"llava_next": "</s>", "llava_onevision": "<|im_end|>"}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_of_published_language_models_split(name: str) -> None:
    """As `finecaption assemble` adapts them; where LLaVA's ends no turn, the end of sequence does."""
    processor = make_processor()
    tokenizer = processor.tokenizer
    headers = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_tokens(headers, special_tokens=True)
    tokenizer.chat_template = TEMPLATES[name]
    newline = NEWLINE if name in TILED else ""
    if newline:
        tokenizer.add_tokens([newline], special_tokens=True)
    processor.chat_template, _ = chat_template(tokenizer, "<image>", newline)
    encoder = BranchEncoder(processor)
    ((question_ids, answer_ids),) = encoder.encode([("What color is this?", "A red one.")])
    assert tokenizer.decode(question_ids).startswith(newline)
    prompt = [*encoder.prefix_ids, *question_ids]
    assert prompt == conversation_ids(processor, "What color is this?")
    assert tokenizer.decode(answer_ids).strip() == "A red one." + ENDS[name]
    whole = conversation_ids(processor, "What color is this?", "A red one.")
    same = len(prompt) + len(answer_ids) - (name == "llava")
    assert whole[:same] == [*prompt, *answer_ids][:same]


# --- the stock Trainer -----------------------------------------------------------------------------------------------


def train(model: Any, collator: RegionCollator, examples: list[Example], folder: Any, **arguments: Any) -> list[float]:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "remove_unused_columns": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "optim": "sgd",
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "seed": 0,
        "max_steps": 1,
        **arguments,
    }
    trainer = Trainer(model, TrainingArguments(**settings), data_collator=collator, train_dataset=examples)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.hub
@pytest.mark.parametrize("checkpointing", [False, True])
def test_accumulated_micro_batches_take_the_step_of_one_batch(
    embedded: Any, tmp_path: Any, checkpointing: bool
) -> None:
    """Loss counts per answer token over the global batch, however ragged the micro-batches are."""
    examples = scene_examples(range(4), max_branches=5)
    collator = RegionCollator(embedded[1], load_image=load_image)
    stepped, losses = [], []
    for size in (4, 1):
        model = type(embedded[0])(embedded[0].config)
        model.load_state_dict(embedded[0].state_dict())
        losses += train(
            model,
            collator,
            examples,
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=4 // size,
            **checkpointing_option(checkpointing),
        )
        stepped.append({name: value.clone() for name, value in model.named_parameters()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    start = dict(embedded[0].named_parameters())
    assert any((stepped[0][name] - start[name]).abs().max() > 1e-3 for name in start)
    for name, value in stepped[0].items():
        torch.testing.assert_close(value, stepped[1][name], atol=1e-6, rtol=1e-6, msg=name)


def test_packed_and_separate_samples_take_the_same_step(embedded: Any, tmp_path: Any) -> None:
    examples = scene_examples(range(1), max_branches=4)
    stepped = []
    for packed in (True, False):
        model = type(embedded[0])(embedded[0].config)
        model.load_state_dict(embedded[0].state_dict())
        collator = RegionCollator(embedded[1], load_image=load_image, packed=packed)
        train(model, collator, examples, tmp_path, per_device_train_batch_size=1)
        stepped.append(dict(model.named_parameters()))
    for name, value in stepped[0].items():
        torch.testing.assert_close(value, stepped[1][name], atol=1e-6, rtol=1e-5, msg=name)


def test_random_model_learns_the_answers_of_its_branches(processor: Any, tmp_path: Any) -> None:
    """End to end: packed batches bring the loss down on a model that knows nothing."""
    tokens = {"vocab_size": len(processor.tokenizer), "pad_token_id": processor.tokenizer.pad_token_id}
    model = tiny_model(0, text_config=tokens, image_token_id=processor.image_token_id)
    examples = scene_examples(range(2), max_branches=4)
    collator = RegionCollator(processor, load_image=load_image)
    losses = train(
        model, collator, examples, tmp_path, per_device_train_batch_size=2, max_steps=12, optim="adamw_torch",
        learning_rate=5e-3,
    )  # fmt: skip
    assert losses[-1] < 0.6 * losses[0]
