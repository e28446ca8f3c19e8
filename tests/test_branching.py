"""Packed branches equal separate sequences: in logits, loss and gradients, whatever the shapes and attention."""

import shutil
from typing import Any

import pytest
import torch
from test_processing import byte_tokenizer, make_processor
from tiny import IMAGE_TOKEN_ID, checkpoint_activations, random_pixels, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from finecaption_hf.branches_finecaption import branch_attention_mask, branch_block_mask, branch_position_ids
from finecaption_hf.data.packing import BranchEncoder, pack_branches
from finecaption_hf.processing_finecaption import FineCaptionProcessor
from finecaption_hf.prompts_finecaption import DEFAULT_CHAT_TEMPLATE

pytestmark = pytest.mark.hub

# Sums over other numbers of tokens round differently; a wrong mask or position is off by more than 1e-2.
LOGITS = {"atol": 1e-5, "rtol": 1e-5}
GRADIENT = 1e-4

Branches = list[tuple[list[int], list[int]]]


class Case:
    """Random regions with branches of random lengths, packed and one by one.

    `region_images[b]` is the image of region b, `counts[b]` its number of branches.
    """

    def __init__(
        self,
        region_images: list[int],
        counts: list[int],
        seed: int = 0,
        max_tokens: int | None = None,
        image_tokens: int = 64,
    ):
        generator = torch.Generator().manual_seed(seed)

        def tokens(low: int, high: int) -> list[int]:
            length = int(torch.randint(low, high, (), generator=generator))
            return torch.randint(3, IMAGE_TOKEN_ID, (length,), generator=generator).tolist()

        self.pixels = random_pixels(max(region_images) + 1, region_images, seed)
        self.prefix = [5, 7, *[IMAGE_TOKEN_ID] * image_tokens]
        self.branches: list[Branches] = [[(tokens(1, 6), tokens(1, 9)) for _ in range(count)] for count in counts]
        self.max_tokens = max_tokens
        self.region_images = region_images

    def packed(self, **changes: Any) -> dict[str, torch.Tensor]:
        sequences = [pack_branches(self.prefix, branches, self.max_tokens) for branches in self.branches]
        region_indices = [region for region, found in enumerate(sequences) for _ in found]
        rows = [sequence for found in sequences for sequence in found]
        length = max(len(row.input_ids) for row in rows)
        fields = {"input_ids": 0, "labels": -100, "branch_ids": -1}
        text = {
            name: torch.tensor([getattr(row, name) + [fill] * (length - len(row.input_ids)) for row in rows])
            for name, fill in fields.items()
        }
        return {**self.pixels, **text, "region_indices": torch.tensor(region_indices), **changes}

    def separate(self) -> dict[str, torch.Tensor]:
        """Plain sequences with a plain mask, each with its own copy of its image and region."""
        rows = [(region, *branch) for region, branches in enumerate(self.branches) for branch in branches]
        length = max(len(self.prefix) + len(question) + len(answer) for _, question, answer in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        labels, attended = torch.full_like(ids, -100), torch.zeros_like(ids)
        for row, (_, question, answer) in enumerate(rows):
            start, end = len(self.prefix) + len(question), len(self.prefix) + len(question) + len(answer)
            ids[row, :end] = torch.tensor(self.prefix + question + answer)
            labels[row, start:end] = torch.tensor(answer)
            attended[row, :end] = 1
        regions = torch.tensor([region for region, _, _ in rows])
        images = torch.tensor(self.region_images)[regions]
        of_image = ("pixel_values", "high_res_pixel_values")
        pixels = {name: self.pixels[name][images] for name in of_image if name in self.pixels}
        pixels["mask_values"] = self.pixels["mask_values"][regions]
        return {**pixels, "input_ids": ids, "labels": labels, "attention_mask": attended}


def branch_logits(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Logits at each branch's tokens, in order."""
    if "branch_ids" in batch:
        ids = batch["branch_ids"]
        return [logits[row][ids[row] == n] for row in range(len(ids)) for n in range(1, int(ids[row].max()) + 1)]
    prefix = 2 + int((batch["input_ids"][0] == IMAGE_TOKEN_ID).sum())
    return [row[prefix : int(attended.sum())] for row, attended in zip(logits, batch["attention_mask"])]


def run(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor], dict[str, torch.Tensor]]:
    """Loss, logits of branches, gradients of all parameters."""
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return output.loss.detach(), [item.detach() for item in branch_logits(output.logits, batch)], gradients


def assert_equal_runs(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found[0], expected[0], **LOGITS)
    assert len(found[1]) == len(expected[1]) > 0
    for ours, alone in zip(found[1], expected[1]):
        torch.testing.assert_close(ours, alone, **LOGITS)
    assert found[2].keys() == expected[2].keys()
    for name, gradient in expected[2].items():
        difference = (found[2][name] - gradient).norm()
        assert difference <= GRADIENT * gradient.norm() + 1e-9, f"{name}: {difference / gradient.norm():.1e}"


CASES = {
    "one branch": Case([0], [1]),
    "ragged": Case([0], [7], seed=1),
    "several regions of one image": Case([0, 0, 0], [1, 5, 2], seed=2),
    "several images": Case([0, 1, 1, 2], [3, 1, 6, 2], seed=3),
    "split": Case([0, 1, 1], [9, 1, 8], seed=4, max_tokens=90),
}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_packed_branches_equal_separate_sequences(case: Case, implementation: str) -> None:
    model = tiny_model(seed=len(case.branches))
    expected = run(model, case.separate())
    model.model.language_model.set_attn_implementation(implementation)
    assert_equal_runs(run(model, case.packed()), expected)


def test_long_branch_lists_are_split_over_sequences_of_one_region() -> None:
    batch = CASES["split"].packed()
    assert len(batch["input_ids"]) > len(CASES["split"].branches) == batch["region_indices"].unique().numel()
    assert batch["input_ids"].shape[1] <= 90


def test_gradient_checkpointing_changes_nothing() -> None:
    case = CASES["several images"]
    model = tiny_model(3).train()
    expected = run(model, case.separate())
    checkpoint_activations(model, {"use_reentrant": False})
    assert_equal_runs(run(model, case.packed()), expected)


def test_thousand_image_tokens_are_shared_by_branches() -> None:
    """The paper's prefix; towers of high resolution are left out because they would need its image size."""
    model = tiny_model(5, grid_size=32, use_convnext=False, use_sam=False)
    case = Case([0, 0], [12, 5], seed=6, image_tokens=1024)
    del case.pixels["high_res_pixel_values"]
    assert_equal_runs(run(model, case.packed()), run(model, case.separate()))


@pytest.mark.slow  # compiling for the CPU takes most of a minute
@pytest.mark.skipif(shutil.which("g++") is None, reason="flex attention is compiled: needs a C++ compiler")
def test_flex_attention_gives_the_same_logits() -> None:
    """On the CPU flex attention has no gradients; those are compared where there is an accelerator."""
    case = CASES["several images"]
    model = tiny_model(3)
    with torch.no_grad():
        separate = case.separate()
        expected = branch_logits(model(**separate).logits, separate)
        model.model.language_model.set_attn_implementation("flex_attention")
        packed = case.packed()
        for ours, alone in zip(branch_logits(model(**packed).logits, packed), expected):
            torch.testing.assert_close(ours, alone, **LOGITS)


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", ["sdpa", "flex_attention"])
def test_packed_branches_equal_separate_sequences_on_a_gpu(implementation: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    case = CASES["several images"]
    # Triton kernels need heads of at least 16 channels.
    model = tiny_model(3, text_config={"head_dim": 16}).cuda()
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        expected = run(model, {name: value.cuda() for name, value in case.separate().items()})
        model.model.language_model.set_attn_implementation(implementation)
        assert_equal_runs(run(model, {name: value.cuda() for name, value in case.packed().items()}), expected)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32


def test_plain_causal_mask_fails_the_equality() -> None:
    """The tests above can fail: a branch that sees the ones before it has other logits, so do other positions."""
    case = CASES["ragged"]
    model = tiny_model(1)
    expected = run(model, case.separate())
    batch = case.packed()
    branch_ids = batch.pop("branch_ids")
    positions = {"position_ids": branch_position_ids(branch_ids)}
    mask = {"attention_mask": branch_attention_mask(branch_ids)}
    for wrong in (positions, mask):
        output = model(**batch, **wrong)
        found = branch_logits(output.logits, {"branch_ids": branch_ids})
        assert max((ours - alone).abs().max() for ours, alone in zip(found, expected[1])) > 1e-2
    right = branch_logits(model(**batch, **positions, **mask).logits, {"branch_ids": branch_ids})
    assert max((ours - alone).abs().max() for ours, alone in zip(right, expected[1])) < 1e-5


def test_branch_does_not_see_another() -> None:
    case = CASES["ragged"]
    model = tiny_model(1)
    batch = case.packed()
    with torch.no_grad():
        before = branch_logits(model(**batch).logits, batch)
        changed = batch["input_ids"].clone()
        changed[batch["branch_ids"] == 3] = 11
        after = branch_logits(model(**{**batch, "input_ids": changed}).logits, batch)
    for number, (old, new) in enumerate(zip(before, after), start=1):
        assert torch.equal(old, new) == (number != 3)


# --- masks, positions, packing ---------------------------------------------------------------------------------------


def random_branch_ids(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(3):
        lengths = torch.randint(1, 7, (int(torch.randint(1, 6, (), generator=generator)),), generator=generator)
        rows.append([number for number, length in enumerate(lengths.tolist()) for _ in range(length)])
    longest = max(map(len, rows))
    return torch.tensor([row + [-1] * (longest - len(row)) for row in rows])


@pytest.mark.parametrize("seed", range(5))
def test_token_attends_to_its_prefix_and_its_branch(seed: int) -> None:
    ids = random_branch_ids(seed)
    mask = branch_attention_mask(ids)
    assert mask.dtype == torch.bool and mask.shape == (3, 1, ids.shape[1], ids.shape[1])
    for row, own in enumerate(ids.tolist()):
        for query, of_query in enumerate(own):
            for key, of_key in enumerate(own):
                assert mask[row, 0, query, key] == (key <= query and of_key in (0, of_query))
    # A branch's position is the number of tokens before it that it sees.
    real = ids >= 0
    assert torch.equal(branch_position_ids(ids)[real], (mask[:, 0].sum(-1) - 1)[real])
    assert (branch_position_ids(ids)[~real] == 0).all()


def test_block_mask_is_the_same_rule() -> None:
    ids = torch.cat([torch.zeros(2, 300, dtype=torch.long), random_branch_ids(1)[:2] + 1], dim=1)
    mask = branch_attention_mask(ids)[:, 0]
    block_mask = branch_block_mask(ids)
    query, key = torch.meshgrid(torch.arange(ids.shape[1]), torch.arange(ids.shape[1]), indexing="ij")
    for row in range(2):
        allowed = block_mask.mask_mod(torch.tensor(row), torch.tensor(0), query, key)
        assert torch.equal(allowed, mask[row])
    # Three blocks of 128 by three: those above the diagonal are skipped.
    assert block_mask.to_dense().sum() == 2 * 6


def test_packing_keeps_branches_whole_and_in_order() -> None:
    branches: Branches = [([1] * n, [2] * (n + 1)) for n in (3, 1, 4, 1, 2)]
    prefix = [9] * 10
    (whole,) = pack_branches(prefix, branches)
    assert whole.branches == [0, 1, 2, 3, 4]
    assert whole.position_ids == branch_position_ids(torch.tensor([whole.branch_ids]))[0].tolist()
    assert [label for label in whole.labels if label != -100] == [2] * (4 + 2 + 5 + 2 + 3)
    split = pack_branches(prefix, branches, max_tokens=20)
    assert [item.branches for item in split] == [[0, 1], [2], [3, 4]]
    for item in split:
        assert len(item.input_ids) == len(item.labels) == len(item.branch_ids) == len(item.position_ids) <= 20
        assert item.input_ids[:10] == prefix and item.labels[:10] == [-100] * 10


def test_what_cannot_be_packed_raises() -> None:
    with pytest.raises(ValueError, match=r"Branch 1 has 9 tokens, with its prefix 13, but max_tokens is 12"):
        pack_branches([1] * 4, [([1], [2]), ([1] * 4, [2] * 5)], max_tokens=12)
    with pytest.raises(ValueError, match="Branch 0 has 0 tokens of a question"):
        pack_branches([1], [([], [2])])
    with pytest.raises(ValueError, match="at least one of each"):
        pack_branches([1], [])


def test_contradicting_inputs_raise() -> None:
    model, batch = tiny_model(), CASES["split"].packed()
    ids = batch["input_ids"]

    def fails(match: str, **changes: Any) -> None:
        with pytest.raises((ValueError, RuntimeError), match=match):
            model(**{**batch, **changes})

    fails("branch_ids were given together with attention_mask", attention_mask=torch.ones_like(ids))
    fails("together with position_ids", position_ids=torch.zeros_like(ids))
    fails("branch_ids have shape", branch_ids=batch["branch_ids"][:, 1:])
    fails("branch_ids must be 0 in the prefix", branch_ids=batch["branch_ids"].flip(1))
    fails("branch_ids must be 0 in the prefix", branch_ids=batch["branch_ids"].clamp(min=1))
    fails("region_indices must be between 0 and 2", region_indices=batch["region_indices"] + 1)
    fails("Some of the 3 regions have no sequence", region_indices=batch["region_indices"].clamp(max=1))
    fails("region_indices have shape", region_indices=batch["region_indices"][:-1])
    fails("without images", pixel_values=None, high_res_pixel_values=None, mask_values=None, image_indices=None)


def test_attention_that_takes_no_such_mask_raises() -> None:
    model = tiny_model()
    model.model.language_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"'flash_attention_2', which takes no mask.*Choose sdpa"):
        model(**CASES["ragged"].packed())


def test_branches_beyond_the_window_of_a_language_model_raise() -> None:
    """A mask given as a whole takes the place of the model's own, window included."""
    text = {"model_type": "mistral", "sliding_window": 70}
    model = tiny_model(text_config=text)
    with pytest.raises((ValueError, RuntimeError), match="longer than the window of 70 tokens"):
        model(**CASES["ragged"].packed())
    model = tiny_model(text_config={**text, "sliding_window": 90})
    case = CASES["ragged"]
    assert case.packed()["input_ids"].shape[1] > 90
    assert_equal_runs(run(model, case.packed()), run(model, case.separate()))


# --- templates -------------------------------------------------------------------------------------------------------

LLAMA_3 = """\
{{- bos_token }}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\n\\n<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- for part in message['content'] if part['type'] == 'image' %}{{- '<image>' }}{%- endfor %}
    {%- for part in message['content'] if part['type'] == 'text' %}{{- part['text'] | trim }}{%- endfor %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
TEXT_FIRST = """\
{%- for message in messages %}
    {%- for part in message['content'] if part['type'] == 'text' %}{{- part['text'] }}{%- endfor %}
    {%- for part in message['content'] if part['type'] == 'image' %}{{- '<image>' }}{%- endfor %}
    {{- '</s>' }}
{%- endfor %}"""
LLAVA = """\
{%- for message in messages %}{{- message['role'].upper() + ':' }}
    {%- for part in message['content'] if part['type'] == 'image' %}{{- ' <image>\\n' }}{%- endfor %}
    {%- for part in message['content'] if part['type'] == 'text' %}{{- ' ' + part['text'] + ' ' }}{%- endfor %}
{%- endfor %}{%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{%- endif %}"""


def llama_3_processor() -> Any:
    processor = make_processor(chat_template=LLAMA_3)
    headers = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    processor.tokenizer.add_tokens(headers, special_tokens=True)
    return processor


def conversation_ids(processor: Any, question: str, answer: str | None = None) -> list[int]:
    chat = processor.conversation(torch.zeros(3, 8, 8, dtype=torch.uint8), question)
    if answer is not None:
        chat.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=answer is None)
    return list(inputs["input_ids"][0])


@pytest.mark.parametrize("template", ["default", "llama 3", "embedded"])
def test_prefix_and_branch_are_the_tokens_of_the_conversation(template: str, embedded: Any) -> None:
    processor = {"default": make_processor, "llama 3": llama_3_processor, "embedded": lambda: embedded[1]}[template]()
    ends = {"default": "</s>", "llama 3": "<|eot_id|>", "embedded": "<|end|>"}
    encoder = BranchEncoder(processor)
    pairs = [("What color is this region?", "red"), ("Und was\nnoch?", "  A ‘cup’, 2 in.\n\nwide \n")] * 2
    for (question, answer), (question_ids, answer_ids) in zip(pairs, encoder.encode(pairs)):
        prompt = [*encoder.prefix_ids, *question_ids]
        assert prompt == conversation_ids(processor, question)
        assert processor.tokenizer.convert_ids_to_tokens(answer_ids[-1]) == ends[template]
        whole = conversation_ids(processor, question, answer.strip())
        made = [*prompt, *answer_ids]
        assert whole[: len(made)] == made
        # The default template ends a turn with a line feed, which no model needs to generate.
        assert processor.tokenizer.decode(whole[len(made) :]).strip() == ""
    assert encoder.prefix_ids[-1] == processor.image_token_id
    assert encoder.prefix_ids.count(processor.image_token_id) == processor.image_seq_length


def test_system_text_belongs_to_the_prefix() -> None:
    processor = llama_3_processor()
    prefix = processor.tokenizer.decode(BranchEncoder(processor).prefix_ids)
    assert "Cutting Knowledge Date" in prefix and prefix.startswith("<s>")


def test_template_with_the_question_before_the_image_raises() -> None:
    with pytest.raises(ValueError, match=r"chat template cannot be used.*before the image depends on the question"):
        BranchEncoder(make_processor(chat_template=TEXT_FIRST))


def test_template_that_changes_the_prompt_once_answered_raises() -> None:
    template = DEFAULT_CHAT_TEMPLATE.replace("'assistant: '", "'assistant: <think>'")
    with pytest.raises(ValueError, match="does not continue its prompt"):
        BranchEncoder(make_processor(chat_template=template))


def test_template_without_an_end_of_turn_gets_the_end_of_sequence() -> None:
    processor = make_processor(chat_template=LLAVA)
    ((question_ids, answer_ids),) = BranchEncoder(processor).encode([("Color?", "red")])
    assert processor.tokenizer.decode(question_ids) == "\n Color? ASSISTANT:"
    assert processor.tokenizer.decode(answer_ids) == " red</s>"
    processor.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="Nothing ends an answer"):
        BranchEncoder(processor)


def test_prompt_stays_whole_where_a_tokenizer_merges_into_the_answer() -> None:
    """The default prompt ends in a space, which byte-level BPE joins to a word; generation starts after the space."""
    backend = byte_tokenizer().backend_tokenizer
    vocabulary = backend.get_vocab(with_added_tokens=False)
    merges = [("Ġ", "r"), ("r", "e"), ("re", "d")]
    vocabulary.update({"Ġr": len(vocabulary) + 9, "re": len(vocabulary) + 10, "red": len(vocabulary) + 11})
    merging = Tokenizer(models.BPE(vocabulary, merges))
    merging.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    merging.decoder = backend.decoder
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=merging, eos_token="</s>", pad_token="<pad>", bos_token="<s>")
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    processor = FineCaptionProcessor(
        make_processor().image_processor, tokenizer, chat_template=DEFAULT_CHAT_TEMPLATE, image_seq_length=4
    )
    encoder = BranchEncoder(processor)
    ((question_ids, answer_ids),) = encoder.encode([("Color?", "red")])
    assert [*encoder.prefix_ids, *question_ids] == conversation_ids(processor, "Color?")
    assert tokenizer.convert_ids_to_tokens(answer_ids) == ["red", "</s>"]
    assert "Ġr" in tokenizer.convert_ids_to_tokens(conversation_ids(processor, "Color?", "red"))


def test_special_tokens_in_texts_raise() -> None:
    encoder = BranchEncoder(make_processor())
    with pytest.raises(ValueError, match="answer 'a <image>' holds '<image>'"):
        encoder.encode([("Color?", "a <image>")])
    with pytest.raises(ValueError, match="question 'a</s>' holds '</s>'"):
        encoder.encode([("a</s>", "red")])
    with pytest.raises(ValueError, match="answer to 'Color\\?' is empty"):
        encoder.encode([("Color?", " \n")])


def test_names_become_their_instructions() -> None:
    processor = make_processor()
    encoder = BranchEncoder(processor)
    by_name, by_text = encoder.encode([("color", "red"), (processor.question("color"), "red")])
    assert by_name == by_text
