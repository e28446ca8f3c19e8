"""The model against references: the library's own towers, plain loops, and itself in other arrangements."""

import math
from typing import Any

import pytest
import timm
import torch
from tiny import (
    IMAGE_TOKEN_ID,
    VOCAB_SIZE,
    checkpoint_activations,
    random_pixels,
    random_prompts,
    tiny_config,
    tiny_model,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionModel,
    CompileConfig,
    PreTrainedTokenizerFast,
    TextIteratorStreamer,
)
from transformers.models.sam.modeling_sam import SamVisionModel
from transformers.utils import logging
from waiting import LIMIT_S, start

from finecaption_hf.image_processing_finecaption import pack_pixels
from finecaption_hf.modeling_finecaption import FineCaptionForConditionalGeneration, FineCaptionVisionModel
from finecaption_hf.towers_finecaption import convert_normalisation

pytestmark = pytest.mark.hub
# float32 sums in another order differ by a few units in the last place of values of order 1 to 10.
FLOAT32 = {"atol": 1e-5, "rtol": 1e-4}


class CallCounter:
    """Counts the forward calls of a module and the rows of their first input."""

    def __init__(self, module: nn.Module):
        self.rows: list[int] = []
        self.handle = module.register_forward_pre_hook(lambda _, args: self.rows.append(args[0].shape[0]))


@pytest.fixture
def model() -> FineCaptionForConditionalGeneration:
    return tiny_model()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Four regions of two images, one prompt each."""
    return {"input_ids": random_prompts(4), **random_pixels(2, [0, 0, 1, 0])}


# Towers against their references


def reference_clip(tower: nn.Module) -> CLIPVisionModel:
    clip = CLIPVisionModel(tower.config).eval()
    state = {key: value for key, value in tower.state_dict().items() if "alpha" not in key}
    missing, unexpected = clip.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("layers.2." in key or "post_layernorm" in key for key in missing)  # behind the layer that is used
    return clip


def test_tower_with_alpha_at_zero_is_clip_bit_for_bit(batch):
    tower = tiny_model(alpha=False).model.vision_tower
    assert not tower.embeddings.alpha_embedding.weight.any()
    expected = reference_clip(tower)(batch["pixel_values"], output_hidden_states=True).hidden_states[-2]
    given = tower(batch["pixel_values"], batch["mask_values"], batch["image_indices"])
    assert torch.equal(given, expected[batch["image_indices"]])


def test_tower_with_alpha_adds_the_mask_patches_before_class_token_and_positions(batch, model):
    tower = model.model.vision_tower
    pixels, masks, indices = batch["pixel_values"], batch["mask_values"], batch["image_indices"]
    embeddings = tower.embeddings
    patch = embeddings.patch_embedding.weight
    alpha = embeddings.alpha_embedding.weight

    # Alpha-CLIP's formula, patch by patch: E = Flatten(E_patch + E_mask)^T.
    def patches(image: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        columns = nn.functional.unfold(image, kernel_size=14, stride=14)
        return (weight.flatten(1) @ columns).transpose(1, 2)

    tokens = patches(pixels[indices], patch) + patches(masks, alpha)
    tokens = torch.cat([embeddings.class_embedding.expand(4, 1, -1), tokens], dim=1)
    hidden = tower.pre_layrnorm(tokens + embeddings.position_embedding.weight)
    for layer in tower.encoder.layers:
        hidden = layer(hidden, None)
    torch.testing.assert_close(tower(pixels, masks, indices), hidden, **FLOAT32)


def test_other_hidden_states_of_clip_can_be_chosen(batch):
    for layer in (-1, 1, 2, 3):
        tower = tiny_model(alpha=False, vision_feature_layer=layer).model.vision_tower
        clip = CLIPVisionModel(tower.config).eval()
        clip.load_state_dict({k: v for k, v in tower.state_dict().items() if "alpha" not in k}, strict=False)
        expected = clip(batch["pixel_values"], output_hidden_states=True).hidden_states[layer]
        assert torch.equal(tower(batch["pixel_values"], batch["mask_values"][:2]), expected)


def raw_images(num_images: int = 2) -> torch.Tensor:
    return torch.rand(num_images, 3, 256, 256, generator=torch.Generator().manual_seed(1))


def normalised(image: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    return (image - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


def test_high_resolution_towers_equal_timm_and_sam_on_their_own_statistics(model):
    config, parts = model.config, model.model
    arguments = config.convnext_config.model_args
    convnext = timm.create_model("convnext_atto", num_classes=0, **arguments).eval()
    missing, unexpected = convnext.load_state_dict(parts.convnext_tower.encoder.state_dict(), strict=False)
    assert not unexpected
    assert set(missing) == {"head.norm.weight", "head.norm.bias"}
    sam = SamVisionModel(config.sam_config).eval()
    sam.load_state_dict(parts.sam_tower.state_dict())

    image = raw_images()
    features = parts.get_high_res_features(normalised(image, config.high_res_image_mean, config.high_res_image_std))
    expected_convnext = convnext.forward_features(
        normalised(image, [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    )
    neck = sam(normalised(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])).last_hidden_state
    # Cell (y, x) of the grid holds the four neck cells (2y + i, 2x + j), channel by channel.
    folded = neck.unflatten(3, (8, 2)).unflatten(2, (8, 2)).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
    torch.testing.assert_close(features[:, :32], expected_convnext, **FLOAT32)
    torch.testing.assert_close(features[:, 32:], folded, **FLOAT32)


def test_converting_between_statistics_is_the_same_as_normalising_with_the_other():
    image = raw_images(1)
    first, second = ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]), ([0.7, 0.3, 0.5], [0.2, 0.9, 0.1])
    converted = convert_normalisation(normalised(image, *first), first, second)
    torch.testing.assert_close(converted, normalised(image, *second), **FLOAT32)
    assert convert_normalisation(image, first, first) is image


def test_a_sam_block_and_an_earlier_convnext_stage_can_be_chosen(model):
    chosen = tiny_model(sam_feature_layer=0, convnext_config={"feature_stage": -2, "hidden_size": 24, "stride": 16})
    parts = chosen.model
    assert len(parts.sam_tower.vision_encoder.layers) == 1
    image = normalised(raw_images(1), chosen.config.high_res_image_mean, chosen.config.high_res_image_std)
    assert parts.get_high_res_features(image).shape == (1, 24 * 4 + 32 * 4, 8, 8)
    sam = SamVisionModel(chosen.config.sam_config).eval()
    sam.load_state_dict(parts.sam_tower.state_dict(), strict=False)
    given = normalised(raw_images(1), chosen.config.sam_image_mean, chosen.config.sam_image_std)
    block = sam(given, output_hidden_states=True).hidden_states[1].permute(0, 3, 1, 2)
    expected = nn.functional.pixel_unshuffle(block, 2)
    torch.testing.assert_close(parts.get_high_res_features(image)[:, 96:], expected, **FLOAT32)


def test_image_tokens_are_the_adapter_of_clip_convnext_sam_in_row_major_order(batch, model):
    parts = model.model
    batch.pop("input_ids")
    output = parts.get_image_features(**batch)
    indices = batch["image_indices"]
    clip = parts.vision_tower(batch["pixel_values"], batch["mask_values"], indices)[:, 1:]
    grid = nn.functional.interpolate(clip.transpose(1, 2).reshape(4, 32, 6, 6), size=(8, 8), mode="bilinear")
    high = parts.get_high_res_features(batch["high_res_pixel_values"])[indices]
    for y, x in ((0, 0), (0, 7), (5, 2)):
        cell = torch.cat([grid[:, :, y, x], high[:, :, y, x]], dim=1)
        torch.testing.assert_close(output.last_hidden_state[:, 8 * y + x], cell, **FLOAT32)
        torch.testing.assert_close(output.pooler_output[:, 8 * y + x], parts.adapter(cell[:, None])[:, 0], **FLOAT32)


def test_states_that_are_not_kept_are_refused_by_name(batch, model):
    names = ("pixel_values", "high_res_pixel_values", "mask_values", "image_indices")
    inputs = {name: batch[name] for name in names}
    with pytest.raises(ValueError, match=r"knows no output_hidden_states\."):
        model.get_image_features(**inputs, output_hidden_states=True, output_attentions=False)


def test_a_grid_of_clips_own_size_is_not_resampled(batch):
    model = tiny_model(use_convnext=False, use_sam=False, grid_size=6)
    output = model.get_image_features(batch["pixel_values"], mask_values=batch["mask_values"][:2])
    hidden = model.model.vision_tower(batch["pixel_values"], batch["mask_values"][:2])
    assert torch.equal(output.last_hidden_state, hidden[:, 1:])


# One image, many regions


def test_high_resolution_towers_run_once_per_image_and_clip_once_per_region(batch, model):
    counters = {name: CallCounter(getattr(model.model, f"{name}_tower")) for name in ("convnext", "sam", "vision")}
    layer = CallCounter(model.model.vision_tower.encoder.layers[0])
    model(**batch)
    assert counters["convnext"].rows == counters["sam"].rows == [2]
    assert counters["vision"].rows == [2]  # each image's patches are embedded once ..
    assert layer.rows == [4]  # .. and its regions go through the layers


@pytest.mark.parametrize(
    "arguments",
    [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}],
    ids=["greedy", "beams", "samples"],
)
def test_generate_encodes_once_however_many_sequences_it_keeps(batch, model, arguments):
    counters = [CallCounter(m) for m in (model.model.convnext_tower, model.model.sam_tower)]
    counters.append(CallCounter(model.model.vision_tower))
    adapter = CallCounter(model.model.adapter)
    output = model.generate(**batch, max_new_tokens=5, min_new_tokens=5, **arguments)
    assert output.shape == (4 * arguments.get("num_return_sequences", 1), 64 + 6 + 5)
    assert [counter.rows for counter in counters] == [[2], [2], [2]]
    assert adapter.rows == [4]


def test_cached_high_resolution_features_equal_fresh_ones(batch, model):
    fresh = model(**batch).logits
    features = model.get_high_res_features(batch.pop("high_res_pixel_values"))
    assert torch.equal(model(**batch, high_res_features=features).logits, fresh)
    generated = model.generate(**batch, high_res_features=features, max_new_tokens=3)
    encoded = model.get_image_features(
        **{k: v for k, v in batch.items() if k != "input_ids"}, high_res_features=features
    )
    reused = model.generate(batch["input_ids"], mm_encoder_outputs={"image": encoded}, max_new_tokens=3)
    assert torch.equal(reused, generated)


def test_a_batch_equals_its_regions_one_by_one(batch, model):
    together = model(**batch).logits
    for index, image in enumerate(batch["image_indices"].tolist()):
        alone = model(
            input_ids=batch["input_ids"][index : index + 1],
            pixel_values=batch["pixel_values"][image : image + 1],
            high_res_pixel_values=batch["high_res_pixel_values"][image : image + 1],
            mask_values=batch["mask_values"][index : index + 1],
        ).logits
        torch.testing.assert_close(together[index], alone[0], **FLOAT32)


def test_regions_of_one_image_differ_and_no_mask_is_the_whole_image(batch, model):
    logits = model(**batch).logits
    assert (logits[0] - logits[1]).abs().max() > 1e-3  # same image, another mask (prompts differ in text only)
    prompt = random_prompts(2)
    pixels = {key: batch[key] for key in ("pixel_values", "high_res_pixel_values")}
    whole = torch.full((2, 1, 84, 84), (1 - 0.5) / 0.26)
    assert torch.equal(model(prompt, **pixels).logits, model(prompt, **pixels, mask_values=whole).logits)


def test_several_regions_in_one_prompt_go_to_their_placeholders_in_order(batch, model):
    text = torch.randint(3, 99, (1, 4), generator=torch.Generator().manual_seed(5))
    tokens = torch.full((1, 64), IMAGE_TOKEN_ID)
    prompt = torch.cat([text[:, :1], tokens, text[:, 1:2], tokens, text[:, 2:]], dim=1)
    pixels = random_pixels(2, [1, 0])
    features = model.get_image_features(**pixels).pooler_output
    embeddings = model.get_input_embeddings()(text)
    spliced = torch.cat([embeddings[:, :1], features[:1], embeddings[:, 1:2], features[1:], embeddings[:, 2:]], dim=1)
    expected = model(inputs_embeds=spliced).logits
    torch.testing.assert_close(model(prompt, **pixels).logits, expected, **FLOAT32)


# The language model's side


def test_left_padding_changes_nothing(batch, model):
    plain = model(**batch).logits
    padded_ids = torch.cat([torch.zeros(4, 5, dtype=torch.long), batch["input_ids"]], dim=1)
    mask = torch.cat([torch.zeros(4, 5, dtype=torch.long), torch.ones_like(batch["input_ids"])], dim=1)
    pixels = {k: v for k, v in batch.items() if k != "input_ids"}
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    padded = model(padded_ids, **pixels, attention_mask=mask, position_ids=positions).logits[:, 5:]
    torch.testing.assert_close(padded, plain, **FLOAT32)
    expected = model.generate(**batch, max_new_tokens=6)[:, batch["input_ids"].shape[1] :]
    given = model.generate(padded_ids, **pixels, attention_mask=mask, max_new_tokens=6)[:, padded_ids.shape[1] :]
    assert torch.equal(given, expected)


def test_text_alone_is_the_language_model_alone(model):
    language_model = AutoModelForCausalLM.from_config(model.config.text_config).eval()
    language_model.model.load_state_dict(model.model.language_model.state_dict())
    language_model.lm_head.load_state_dict(model.lm_head.state_dict())
    tokens = random_prompts(2, image_tokens=0)
    assert torch.equal(model(tokens).logits, language_model(tokens).logits)


def test_greedy_generation_equals_a_loop_without_cache(batch, model):
    # A random model may well answer with the image token, which the loop below would take for a placeholder.
    never = [model.config.text_config.eos_token_id, IMAGE_TOKEN_ID]
    generated = model.generate(**batch, max_new_tokens=6, suppress_tokens=never)
    pixels = {k: v for k, v in batch.items() if k != "input_ids"}
    tokens = batch["input_ids"]
    for _ in range(6):
        scores = model(tokens, **pixels, use_cache=False).logits[:, -1]
        scores[:, never] = -math.inf
        tokens = torch.cat([tokens, scores.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(generated, tokens)


def test_beam_search_finds_what_exhaustive_search_finds(model):
    pixels, prompt = random_pixels(1, [0]), random_prompts(1)
    found = model.generate(prompt, **pixels, num_beams=VOCAB_SIZE, max_new_tokens=2, min_new_tokens=2)[0, -2:]
    first = model(prompt, **pixels).logits[0, -1].log_softmax(-1)
    extended = torch.cat([prompt.expand(VOCAB_SIZE, -1), torch.arange(VOCAB_SIZE)[:, None]], dim=1)
    features = model.get_image_features(**pixels).pooler_output
    embeddings = model.get_input_embeddings()(extended)
    embeddings[:, :64] = features
    second = model(inputs_embeds=embeddings).logits[:, -1].log_softmax(-1)
    total = first[:, None] + second
    total[model.config.text_config.eos_token_id] = total[:, model.config.text_config.eos_token_id] = -math.inf
    best = divmod(int(total.argmax()), VOCAB_SIZE)
    assert tuple(found.tolist()) == best


def test_sampling_repeats_with_its_seed_and_depends_on_it(batch, model):
    def sample(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model.generate(**batch, do_sample=True, max_new_tokens=8, min_new_tokens=8)

    assert torch.equal(sample(3), sample(3))
    assert not torch.equal(sample(3), sample(4))


def test_vision_model_alone_gives_the_image_tokens_of_the_whole_model(batch, model, tmp_path):
    """What serving engines load beside a language model of their own, from the same checkpoint."""
    model.save_pretrained(tmp_path)
    vision, report = FineCaptionVisionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not (report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"])
    assert not any("language_model" in name or "lm_head" in name for name in vision.state_dict())
    pixels = {name: value for name, value in batch.items() if name != "input_ids"}
    found = vision.eval()(**pixels).pooler_output
    assert torch.equal(found, model.get_image_features(**pixels).pooler_output)
    assert torch.equal(model(**batch).image_outputs.pooler_output, found)


def test_streamed_pieces_join_to_the_generated_text(batch, model):
    words = {f"w{index}": index for index in range(VOCAB_SIZE)}
    raw = Tokenizer(models.WordLevel(words, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    one = {"input_ids": batch["input_ids"][:1], **random_pixels(1, [0])}
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=LIMIT_S)

    def generate():
        try:
            model.generate(**one, max_new_tokens=7, streamer=streamer)
        finally:
            streamer.end()  # where it failed, the reader would wait

    generated = start(generate)
    streamed = "".join(streamer)
    generated.result(timeout=LIMIT_S)
    assert streamed == tokenizer.decode(model.generate(**one, max_new_tokens=7)[0, one["input_ids"].shape[1] :])


def test_packed_branches_equal_separate_sequences(model):
    """What the training script relies on: a branch attends to the prefix and to itself, positions restart."""
    pixels = random_pixels(1, [0])
    lengths = [3, 7, 1]
    branches = [torch.randint(3, 99, (1, n), generator=torch.Generator().manual_seed(n)) for n in lengths]
    prefix = torch.full((1, 64), IMAGE_TOKEN_ID)
    tokens = torch.cat([prefix, *branches], dim=1)
    segments = torch.cat([torch.zeros(64)] + [torch.full((n,), i + 1.0) for i, n in enumerate(lengths)])
    visible = (segments[:, None] == segments) | (segments == 0)
    mask = (visible & torch.ones_like(visible).tril())[None, None]
    positions = torch.cat([torch.arange(64)] + [64 + torch.arange(n) for n in lengths])[None]
    packed = model(tokens, **pixels, attention_mask=mask, position_ids=positions).logits[:, 64:]
    for branch, logits in zip(branches, packed.split(lengths, dim=1)):
        alone = model(torch.cat([prefix, branch], dim=1), **pixels).logits[:, 64:]
        torch.testing.assert_close(logits, alone, **FLOAT32)


# Training


def test_loss_is_the_mean_likelihood_of_labelled_tokens(batch, model):
    labels = batch["input_ids"].clone()
    labels[:, :66] = -100
    labels[1, 67:] = -100
    output = model(**batch, labels=labels)
    likelihood = output.logits[:, :-1].log_softmax(-1)
    chosen = [
        likelihood[row, column - 1, labels[row, column]]
        for row in range(4)
        for column in range(1, labels.shape[1])
        if labels[row, column] != -100
    ]
    torch.testing.assert_close(output.loss, -torch.stack(chosen).mean(), **FLOAT32)
    # The Trainer's count over a global batch replaces the mean.
    summed = model(**batch, labels=labels, num_items_in_batch=torch.tensor(40)).loss
    torch.testing.assert_close(summed, -torch.stack(chosen).sum() / 40, **FLOAT32)


def gradients(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_every_parameter_gets_a_gradient(batch, model):
    found = gradients(model.train(), batch)
    assert set(found) == {name for name, _ in model.named_parameters()}
    # A key's bias shifts all scores of a query alike, so its gradient is zero up to rounding.
    silent = {name for name, gradient in found.items() if not gradient.any()}
    assert all(name.endswith("k_proj.bias") for name in silent)


def test_gradient_checkpointing_recomputes_every_tower_and_keeps_the_gradients(batch, model):
    plain = gradients(model.train(), batch)
    parts = model.model
    layers = {
        "clip": parts.vision_tower.encoder.layers[0],
        "convnext": parts.convnext_tower.encoder.stages[2].blocks[0],
        "sam": parts.sam_tower.vision_encoder.layers[0],
        "llm": parts.language_model.layers[0],
    }
    # Inside of the layers, because a checkpointed layer's own call is what gets wrapped.
    inner = {
        "clip": layers["clip"].mlp,
        "convnext": layers["convnext"].mlp,
        "sam": layers["sam"].mlp,
        "llm": layers["llm"].mlp,
    }
    counters = {name: CallCounter(module) for name, module in inner.items()}
    gradients(model, batch)
    assert {name: len(counter.rows) for name, counter in counters.items()} == dict.fromkeys(inner, 1)
    checkpoint_activations(model, {"use_reentrant": False})
    checkpointed = gradients(model, batch)
    assert {name: len(counter.rows) for name, counter in counters.items()} == dict.fromkeys(inner, 3)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, **FLOAT32)
    checkpoint_activations(model, enable=False)
    gradients(model, batch)
    assert {name: len(counter.rows) for name, counter in counters.items()} == dict.fromkeys(inner, 4)


# dtypes, devices, attention


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_follows_float32_and_forward_leaves_the_model_alone(batch, model, dtype):
    expected = model(**batch).logits
    half = tiny_model().to(dtype)
    before = {name: value.clone() for name, value in half.state_dict().items()}
    inputs = {k: v.clone() for k, v in batch.items()}
    logits = half(**batch).logits
    assert logits.dtype == dtype
    # Two towers, an adapter and a language model at 8 (11) bits of mantissa: a few per cent of the logits' scale.
    assert (logits.float() - expected).abs().max() < 0.1 * expected.abs().max()
    half.generate(**batch, max_new_tokens=2)
    after = half.state_dict()
    assert all(after[name].dtype == value.dtype and torch.equal(after[name], value) for name, value in before.items())
    assert all(torch.equal(inputs[name], value) for name, value in batch.items())


def test_eager_attention_equals_sdpa(batch, model):
    expected = model(**batch).logits
    model.set_attn_implementation("eager")
    assert model.model.vision_tower.config._attn_implementation == "eager"
    torch.testing.assert_close(model(**batch).logits, expected, **FLOAT32)


def test_every_attention_may_be_asked_for_and_sam_keeps_one_that_knows_positions(model, tmp_path):
    """Flash and flex attention take no relative positions, which used to be the end of a whole model's loading."""
    model.save_pretrained(tmp_path)
    loaded = FineCaptionForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="flex_attention")
    model.set_attn_implementation("flex_attention")
    for found in (loaded, model):
        parts = found.model
        used = [
            part.config._attn_implementation for part in (parts.language_model, parts.vision_tower, parts.sam_tower)
        ]
        assert used == ["flex_attention", "flex_attention", "sdpa"]
    eager = FineCaptionForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager")
    assert eager.model.sam_tower.config._attn_implementation == "eager"


@pytest.mark.parametrize("split", ["auto", "towers on disk"])
def test_a_device_map_leaves_the_logits_unchanged(batch, model, tmp_path, split):
    expected = model(**batch).logits
    model.save_pretrained(tmp_path / "model")
    device_map: str | dict[str, str] = "auto"
    if split == "towers on disk":
        device_map = {"lm_head": "cpu", "model.adapter": "cpu", "model.language_model": "cpu"} | {
            f"model.{part}": "disk" for part in ("vision_tower", "convnext_tower", "sam_tower")
        }
    loaded = FineCaptionForConditionalGeneration.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    device = loaded.lm_head.weight.device
    assert torch.equal(loaded(**{k: v.to(device) for k, v in batch.items()}).logits.cpu(), expected)


def test_towers_are_never_split_between_devices(model):
    assert {"FineCaptionVisionTower", "FineCaptionConvNextTower", "FineCaptionSamTower"} <= set(model._no_split_modules)
    assert "LlamaDecoderLayer" in model._no_split_modules


# Compiling


@torch.no_grad()
def test_a_forward_with_pixels_compiles_as_one_graph_that_still_refuses(batch):
    """Without inductor, which takes minutes and changes nothing about graphs. Each layer takes time to trace."""
    convnext = {"model_args": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}}
    model = tiny_model(
        vision_config={"num_hidden_layers": 2}, convnext_config=convnext, text_config={"num_hidden_layers": 1}
    )
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, backend="eager")
    other = {"input_ids": random_prompts(4, seed=1), **random_pixels(2, [1, 0, 1, 0], seed=1)}
    with torch._dynamo.config.patch(error_on_recompile=True):
        for given in (batch, other):
            torch.testing.assert_close(compiled(**given).logits, model(**given).logits, **FLOAT32)
        for name, wrong in (
            ("image_indices", torch.tensor([0, 0, 1, 2])),
            ("image_indices", torch.zeros(4, dtype=torch.long)),
            ("input_ids", torch.full((4, 70), 5)),
        ):
            with pytest.raises(RuntimeError, match=r"Inputs do not fit each other\. Without torch\.compile"):
                compiled(**{**batch, name: wrong})
    counted = torch._dynamo.utils.counters
    assert counted["stats"]["unique_graphs"] == 1 and not counted["graph_break"]


def test_steps_with_a_static_cache_compile_as_one_graph_once(batch, model):
    """As `generate` does on a GPU, where it may: the model says so, and asks its language model."""
    assert model._can_compile_fullgraph
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "cache_implementation": "static"}
    compiling = CompileConfig(fullgraph=True, backend="eager", mode=None)
    compiling._compile_all_devices = True  # the CPU, too
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = model.generate(**batch, **options, compile_config=compiling)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert torch.equal(found, model.generate(**batch, **options, disable_compile=True))


# Loading


def test_saved_model_loads_with_the_same_keys_and_logits(batch, model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, report = FineCaptionForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_tensors_that_a_checkpoint_lacks_are_initialised_as_declared(model, tmp_path):
    state = model.state_dict()
    lost = [
        "model.vision_tower.embeddings.alpha_embedding.weight",
        "model.convnext_tower.encoder.stages.0.blocks.0.gamma",
        "model.adapter.linear_1.weight",
        "model.adapter.linear_2.bias",
    ]
    model.save_pretrained(tmp_path, state_dict={key: value for key, value in state.items() if key not in lost})
    loaded, report = FineCaptionForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == set(lost)
    after = loaded.state_dict()
    assert not after[lost[0]].any()
    assert (after[lost[1]] == 0.5).all()
    assert after[lost[2]].std().item() == pytest.approx(0.2, rel=0.1)
    assert not after[lost[3]].any()


def test_layer_scale_and_response_norms_of_other_convnexts_are_initialised():
    v2 = tiny_model(
        convnext_config={
            "architecture": "convnextv2_atto",
            "model_args": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]},
        }
    )
    grn = v2.model.convnext_tower.encoder.stages[0].blocks[0].mlp.grn
    assert not grn.weight.any()
    assert all(torch.isfinite(p).all() for p in v2.parameters())


# Inputs that do not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.pop("image_indices"), "4 region masks for 2 images. Give image_indices"),
        (lambda b: b.update(image_indices=torch.tensor([0, 0, 1, 2])), "image_indices must be between 0 and 1"),
        (lambda b: b.update(image_indices=torch.tensor([0, 0, 1, -1])), "image_indices must be between 0 and 1"),
        (lambda b: b.update(image_indices=torch.tensor([0, 1])), "4 region masks for 2 regions"),
        (lambda b: b.update(image_indices=torch.tensor([0, 0, 0, 0])), "Some of the 2 images have no region"),
        (lambda b: b.pop("high_res_pixel_values"), "give high_res_pixel_values"),
        (lambda b: b.update(high_res_features=torch.zeros(2, 96, 8, 8)), "not both"),
        (lambda b: b.update(high_res_pixel_values=torch.zeros(3, 3, 256, 256)), "3 high-resolution images for 2"),
        (lambda b: b.update(high_res_pixel_values=torch.zeros(2, 3, 224, 256)), "are 224x256 .* take 256x256"),
        (lambda b: b.update(pixel_values=torch.zeros(2, 3, 98, 84)), "are 98x84 .* takes 84x84"),
        (
            lambda b: b.update(mask_values=torch.zeros(4, 84, 84)),
            r"shape \(4, 84, 84\); needed is \(regions, 1, 84, 84\)",
        ),
        (lambda b: b.update(input_ids=b["input_ids"][:3]), "hold 192 image tokens but the regions give 256"),
        (lambda b: b.update(inputs_embeds=torch.zeros(1, 1, 32)), "exactly one of input_ids and inputs_embeds"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(batch, model, change, message):
    change(batch)
    with pytest.raises(ValueError, match=message):
        model(**batch)


def test_a_mask_for_a_model_without_mask_input_warns(batch, caplog):
    model = tiny_model(use_mask=False)
    unmasked = model(**{k: v for k, v in batch.items() if k != "mask_values"}).logits
    with caplog.at_level("WARNING"):
        logging.enable_propagation()
        given = model(**batch).logits
        logging.disable_propagation()
    assert torch.equal(given, unmasked)
    assert "mask_values have no effect" in caplog.text


def test_configuration_of_the_tests_is_the_one_that_is_described():
    config = tiny_config()
    assert (config.image_seq_length, config.fused_feature_size) == (64, 32 + 32 + 64)


@pytest.mark.parametrize(
    "changes", [{}, {"use_sam": False}, {"use_convnext": False, "use_sam": False}, {"use_mask": False}]
)
def test_packed_pixels_are_the_same_regions(changes: dict[str, Any]) -> None:
    model = tiny_model(**changes)
    batch = random_pixels(2, [0, 1, 0])
    if not (model.config.use_convnext or model.config.use_sam):
        del batch["high_res_pixel_values"]
    if not model.config.use_mask:
        del batch["mask_values"]
    packed = pack_pixels(batch)
    assert packed["pixel_values"].ndim == 2 and packed["image_indices"].tolist() == [0, 1, 2]
    found = model.get_image_features(packed["pixel_values"]).pooler_output
    torch.testing.assert_close(found, model.get_image_features(**batch).pooler_output)
    with pytest.raises(ValueError, match="numbers per region where this model takes"):
        model.get_image_features(packed["pixel_values"][:, 1:])


def test_training_on_pixels_without_masks_is_an_error() -> None:
    """Some trainers hand on pixel_values alone. Asking about whole images needs no masks."""
    model = tiny_model(use_convnext=False, use_sam=False)
    pixels, prompt = random_pixels(1, [0])["pixel_values"], random_prompts(1)
    model(prompt, pixel_values=pixels)
    with pytest.raises(ValueError, match="regions would be lost"):
        model.train()(prompt, pixel_values=pixels)
