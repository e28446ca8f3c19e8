"""Points and boxes -> masks: the real classes at random tiny size, models of known logits, and the classical one."""

import json
import re
import shutil
import sys
import warnings
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import EXAMPLE_MASK, EXAMPLE_PICTURE, ROOT
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from tiny import tiny_model
from transformers import (
    AutoConfig,
    EdgeTamModel,
    EdgeTamVideoConfig,
    EdgeTamVideoModel,
    Sam2ImageProcessor,
    Sam2Model,
    Sam2Processor,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam3Config,
    Sam3ImageProcessor,
    Sam3TrackerModel,
    Sam3TrackerProcessor,
    Sam3TrackerVideoConfig,
    Sam3VideoConfig,
    Sam3VideoModel,
    SamConfig,
    SamImageProcessor,
    SamModel,
    SamProcessor,
)
from transformers.models.sam.modeling_sam import SamVisionEncoder
from typer.testing import CliRunner

from finecaption_hf.asking import load
from finecaption_hf.cli import app
from finecaption_hf.image_processing_finecaption import FineCaptionImageProcessor, fit_within
from finecaption_hf.segmentation import (
    SegmentationError,
    SharedSegmenter,
    open_segmenter,
    open_segmenter_for,
    open_shared_segmenter,
)
from finecaption_hf.segmentation.models import ModelSegmenter
from finecaption_hf.segmentation.segmenter import point_grid, without_duplicates
from finecaption_hf.towers_finecaption import convert_normalisation
from finecaption_hf.training import STAGES
from finecaption_hf.training.callback import apply_stage

SIDE = 128  # pixels of the tiny models' input
SIZE = (90, 60)  # width, height of the picture


def picture(size: tuple[int, int] = SIZE) -> Image.Image:
    """A red disc on blue, with a little noise."""
    image = Image.new("RGB", size, (40, 60, 170))
    ImageDraw.Draw(image).ellipse((size[0] // 4, size[1] // 4, size[0] * 5 // 8, size[1] * 3 // 4), fill=(200, 50, 40))
    noise = np.random.default_rng(0).integers(-6, 7, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.asarray(image).astype(int) + noise, 0, 255).astype(np.uint8))


def disc(size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.asarray(picture(size))[:, :, 0] > 120


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


_DECODER = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
_PROMPTS = {"hidden_size": 32, "image_size": SIDE}
_PYRAMID = {"fpn_hidden_size": 32, "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]]}


_TRANSFORMER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "global_attn_indexes": [1],
    "window_size": 4,
}
_HIERA = {
    "model_type": "sam2_hiera_det_model",
    "hidden_size": 8,
    "image_size": [SIDE, SIDE],
    "blocks_per_stage": [1, 1, 2, 1],
    "embed_dim_per_stage": [8, 16, 32, 64],
    "num_attention_heads_per_stage": [1, 1, 2, 2],
    "window_size_per_stage": [4, 4, 4, 4],
    "global_attention_blocks": [3],
}
_SAM3 = {
    **_TRANSFORMER,
    "model_type": "sam3_vit_model",
    "intermediate_size": 32,
    "patch_size": 16,
    "pretrain_image_size": SIDE,
}
_RESNET = AutoConfig.for_model(
    "timm_wrapper",
    architecture="resnet18",
    model_args={"in_chans": 3, "features_only": True, "out_indices": [1, 2, 3, 4]},
    do_pooling=False,
)
_SAM = {**_TRANSFORMER, "mlp_dim": 32, "output_channels": 32, "num_pos_feats": 16, "initializer_range": 0.1}


def padding_processor(side: int = SIDE) -> SamImageProcessor:
    return SamImageProcessor(size={"longest_edge": side}, pad_size={"height": side, "width": side})


def squashing_processor(kind: Any = Sam2ImageProcessor) -> Any:
    return kind(size={"height": SIDE, "width": SIDE})


# Family -> its model, the fields of its vision encoder, those of its prompt encoder, and its processors.
FAMILIES: dict[str, tuple[Any, dict[str, Any], dict[str, Any], Any, Any]] = {
    "SAM": (SamModel, _SAM, {"image_embedding_size": 8}, SamProcessor, padding_processor()),
    "SAM 2": (
        Sam2Model,
        {"backbone_config": _HIERA, "backbone_channel_list": [64, 32, 16, 8], **_PYRAMID},
        {},
        Sam2Processor,
        squashing_processor(),
    ),
    "SAM 3": (
        Sam3TrackerModel,
        {"backbone_config": _SAM3, **_PYRAMID},
        {"patch_size": 16},
        Sam3TrackerProcessor,
        squashing_processor(Sam3ImageProcessor),
    ),
    "EdgeTAM": (
        EdgeTamModel,
        {"backbone_config": _RESNET, "backbone_channel_list": [512, 256, 128, 64], **_PYRAMID},
        {},
        Sam2Processor,
        squashing_processor(),
    ),
}


def tiny(family: str) -> ModelSegmenter:
    torch.manual_seed(0)
    kind, vision, prompts, _, image_processor = FAMILIES[family]
    model = kind(
        kind.config_class(
            vision_config=vision, prompt_encoder_config={**_PROMPTS, **prompts}, mask_decoder_config=_DECODER
        )
    )
    with torch.no_grad():  # random decoders hardly tell prompts apart; larger weights do
        for parameter in model.mask_decoder.parameters():
            parameter.mul_(3)
    return ModelSegmenter(model, image_processor, family)


def save(segmenter: ModelSegmenter, folder: Path) -> Path:
    segmenter.model.save_pretrained(folder)
    segmenter.image_processor.save_pretrained(folder)
    return folder


class Reopened(NamedTuple):
    """A segmenter that was made here, and what opens from the folder in which it was saved."""

    family: str
    made: ModelSegmenter
    opened: Any


@pytest.fixture(scope="module", params=FAMILIES)
def reopened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reopened:
    made = tiny(request.param)
    folder = save(made, tmp_path_factory.mktemp("family"))
    opened = open_segmenter(folder, device="cpu")
    assert opened.name == f"{request.param} ({folder})"
    return Reopened(request.param, made, opened)


# --- models of transformers ------------------------------------------------------------------------------------------


def test_image_encoder_runs_once_however_many_prompts_follow(reopened: Reopened) -> None:
    calls: list[int] = []
    hook = reopened.opened.model.vision_encoder.register_forward_hook(lambda *_: calls.append(1))
    encoded = reopened.opened.encode(picture())
    encoded.masks(points=[(40, 30), (5, 5)], labels=[1, 0], box_xyxy=[20, 10, 60, 50])
    encoded.masks(box_xyxy=[20, 10, 60, 50], num_candidates=1)
    encoded.everything(points_per_side=4, min_score=-1e9, min_stability=0)
    hook.remove()
    assert len(calls) == 1


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (300, 140)])
def test_masks_of_an_opened_folder_are_those_of_the_librarys_own_way(reopened: Reopened, size: tuple[int, int]) -> None:
    """The reference goes through pixel values, the processors' coordinates and their post-processing."""
    processor = FAMILIES[reopened.family][3](reopened.made.image_processor)
    image, point, box = picture(size), [size[0] / 3, size[1] / 2], [size[0] / 4, 10.0, size[0] - 7.0, size[1] - 9.0]
    inputs = processor(
        images=image, input_points=[[[point]]], input_labels=[[[1]]], input_boxes=[[box]], return_tensors="pt"
    )
    with torch.no_grad():
        model_inputs = {
            name: value.float() if value.is_floating_point() else value
            for name, value in inputs.items()
            if name not in ("original_sizes", "reshaped_input_sizes")
        }
        made = reopened.made.model(**model_inputs)
    extra = [inputs["reshaped_input_sizes"]] if "reshaped_input_sizes" in inputs else []
    expected = processor.post_process_masks(made.pred_masks, inputs["original_sizes"], *extra)[0][0].numpy()
    order = made.iou_scores[0, 0].argsort(descending=True, stable=True)
    wanted = [(expected[index], made.iou_scores[0, 0, index].item()) for index in order if expected[index].any()]
    found = reopened.opened.encode(image).masks(points=[(point[0], point[1])], box_xyxy=box)
    assert wanted and len(found) == len(wanted)
    for candidate, (mask, score) in zip(found, wanted, strict=True):
        # Embeddings that are computed apart are rounded in another order: a logit on the threshold may turn.
        assert (candidate.mask != mask).mean() < 0.002
        assert candidate.score == pytest.approx(score, abs=1e-5)


_MEMORY = {
    "memory_attention_hidden_size": 32,
    "memory_attention_num_layers": 1,
    "memory_attention_feed_forward_hidden_size": 32,
    "memory_attention_rope_feat_sizes": [8, 8],
    "memory_encoder_hidden_size": 32,
    "memory_encoder_output_channels": 16,
    "mask_downsampler_embed_dim": 32,
    "memory_fuser_embed_dim": 32,
    "memory_fuser_intermediate_dim": 32,
}


def _video_model(family: str, image_model: Any) -> Any:
    """The video model of a family, with vision encoder, prompts and decoder of the same sizes."""
    vision = image_model.config.vision_config.to_dict()
    parts = {"prompt_encoder_config": _PROMPTS, "mask_decoder_config": _DECODER, **_MEMORY}
    if family == "SAM 2":
        return Sam2VideoModel(Sam2VideoConfig(vision_config=vision, **parts))
    if family == "EdgeTAM":
        resampler = {f"perceiver_resampler_{name}": 4 for name in ("num_latents", "num_latents_2d")}
        resampler |= {f"perceiver_resampler_{name}": 32 for name in ("hidden_size", "mlp_intermediate_size")}
        return EdgeTamVideoModel(EdgeTamVideoConfig(vision_config=vision, image_size=SIDE, **parts, **resampler))
    parts["prompt_encoder_config"] = {**_PROMPTS, "patch_size": 16}
    tracker = Sam3TrackerVideoConfig(vision_config=vision, image_size=SIDE, **parts)
    small = {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    detector = Sam3Config(
        vision_config=vision,
        text_config={**text, "vocab_size": 60, "projection_dim": 32, "max_position_embeddings": 16},
        geometry_encoder_config=small,
        detr_encoder_config=small,
        detr_decoder_config={**small, "num_queries": 4},
        mask_decoder_config={"hidden_size": 32, "num_upsampling_stages": 3, "num_attention_heads": 2},
    )
    return Sam3VideoModel(Sam3VideoConfig(detector_config=detector.to_dict(), tracker_config=tracker.to_dict()))


@pytest.mark.parametrize("family", ["SAM 2", "SAM 3", "EdgeTAM"])
def test_published_video_checkpoints_segment_pictures_with_their_own_weights(family: str, tmp_path: Path) -> None:
    """Weights lie in the file under the names of the video model, as in the repositories of SAM 2.1, SAM 3, EdgeTAM."""
    made = tiny(family)
    video = _video_model(family, made.model)
    made.image_processor.save_pretrained(tmp_path)
    video.config.save_pretrained(tmp_path)
    weights = {name: tensor.clone().contiguous() for name, tensor in video.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    opened = open_segmenter(tmp_path, device="cpu")
    assert opened.name == f"{family} ({tmp_path})"
    found = opened.encode(picture()).masks(points=[(40, 30)])
    assert found and all(it.mask.shape == (60, 90) for it in found)
    # The same picture and point by the part of the video model that does it for its first frame.
    inner = video.tracker_model if family == "SAM 3" else video
    parts = {"mask_decoder": inner.mask_decoder, "prompt_encoder": inner.prompt_encoder}
    neck = video.tracker_neck if family == "SAM 3" else video.vision_encoder.neck
    backbone = (video.detector_model if family == "SAM 3" else video).vision_encoder.backbone
    for part, theirs in {**parts, "vision_encoder.neck": neck, "vision_encoder.backbone": backbone}.items():
        ours = opened.model.get_submodule(part).state_dict()
        assert ours.keys() <= theirs.state_dict().keys()
        assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.items()), part


def test_checkpoint_that_lacks_weights_is_refused_instead_of_segmenting_at_random(tmp_path: Path) -> None:
    save(tiny("SAM"), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["mask_decoder.iou_token.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        SegmentationError, match=r"lacks 1 of the weights of a SamModel, such as mask_decoder.iou_token"
    ):
        open_segmenter(tmp_path, device="cpu")


# --- known logits ----------------------------------------------------------------------------------------------------


class KnownModel(torch.nn.Module):
    """Answers every prompt with the same logits (c, h, w) and scores (c,), and notes which prompts arrived."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, logits: torch.Tensor, scores: torch.Tensor) -> None:
        super().__init__()
        self.logits, self.scores = logits, scores
        self.prompts: list[dict[str, Any]] = []

    def get_image_embeddings(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return pixel_values

    def forward(self, image_embeddings: Any, multimask_output: bool, **prompts: Any) -> Any:
        self.prompts.append(prompts)
        number = next(iter(prompts.values())).shape[1]
        return SimpleNamespace(
            pred_masks=self.logits.expand(1, number, *self.logits.shape), iou_scores=self.scores.expand(1, number, -1)
        )


_ALL = torch.ones(1, 8, 8)


def known(logits: torch.Tensor = _ALL, scores: torch.Tensor | None = None, squash: bool = False) -> ModelSegmenter:
    model = KnownModel(logits, torch.ones(len(logits)) if scores is None else scores)
    return ModelSegmenter(model, squashing_processor() if squash else padding_processor(), "known")


def test_padded_input_is_cut_off_exactly_where_the_picture_ends() -> None:
    logits = torch.full((1, 8, 8), -8.0)
    logits[:, :, :4] = 8.0  # the left half of the input, padding included
    segmenter = known(logits)
    wide = segmenter.encode(picture((128, 64))).masks(points=[(1, 1)])[0].mask
    assert wide[:, :64].all() and not wide[:, 64:].any()
    tall = segmenter.encode(picture((64, 128))).masks(points=[(1, 1)])[0].mask
    assert tall.all()  # the other half of the input is padding


def test_points_and_boxes_arrive_in_the_pixels_of_the_models_input() -> None:
    segmenter = known()
    segmenter.encode(picture((64, 32))).masks(points=[(10, 20), (3, 4)], labels=[1, 0], box_xyxy=[-5, 8, 16, 99])
    (prompt,) = segmenter.model.prompts
    assert prompt["input_points"].tolist() == [[[[20.0, 40.0], [6.0, 8.0]]]]
    assert prompt["input_labels"].tolist() == [[[1, 0]]]
    assert prompt["input_boxes"].tolist() == [[[0.0, 16.0, 32.0, 64.0]]]  # cut at the border


def test_candidates_are_sorted_and_empty_or_equal_ones_left_out() -> None:
    full, half, empty = torch.full((8, 8), 5.0), torch.full((8, 8), 5.0), torch.full((8, 8), -5.0)
    half[:, 4:] = -5.0
    segmenter = known(torch.stack([half, full, empty, full]), torch.tensor([0.3, 0.9, 1.0, 0.5]), squash=True)
    encoded = segmenter.encode(picture())
    found = encoded.masks(points=[(1, 1)])
    assert [candidate.score for candidate in found] == pytest.approx([0.9, 0.3])
    assert found[0].mask.all() and not found[1].mask.all()
    assert len(encoded.masks(points=[(1, 1)], num_candidates=1)) == 1


def test_everything_filters_by_score_stability_and_size_and_drops_duplicates() -> None:
    left, right, soft, speck = (torch.full((16, 16), -9.0) for _ in range(4))
    left[:, :8] = 9.0
    right[:, 8:] = 9.0
    soft[:8] = 0.5  # vanishes when the threshold rises
    speck[3, 3] = 9.0
    nearly_left = left.clone()
    nearly_left[0, 8] = 9.0
    bad = torch.full((16, 16), 9.0)
    masks = torch.stack([left, nearly_left, right, soft, speck, bad])
    scores = torch.tensor([0.9, 0.95, 0.97, 0.99, 0.99, 0.2])

    encoded = known(masks, scores, squash=True).encode(picture((64, 64)))
    found = encoded.everything(points_per_side=3, min_area=0.01)
    assert [candidate.score for candidate in found] == pytest.approx([0.97, 0.95])
    assert overlap(found[0].mask, found[1].mask) < 0.05
    assert (found[0].mask | found[1].mask).all()
    assert len(encoded.everything(points_per_side=3, min_area=0.01, max_regions=1)) == 1
    assert len(encoded.everything(points_per_side=3, min_area=0)) == 3  # and the speck
    assert len(encoded.everything(points_per_side=3, min_area=0.01, min_stability=0)) == 3  # and the soft one
    assert len(encoded.everything(points_per_side=3, min_area=0.01, min_score=0)) == 3  # and the bad one


def test_kept_masks_overlap_by_at_most_the_limit_and_every_other_is_like_a_better_one() -> None:
    random = np.random.default_rng(1)
    masks = [np.zeros((20, 20), dtype=bool) for _ in range(60)]
    for mask in masks:
        y, x = random.integers(0, 14, 2)
        mask[y : y + random.integers(3, 9), x : x + random.integers(3, 9)] = True
    scores = random.random(60).tolist()
    kept = without_duplicates(masks, scores, 0.5)
    assert 1 < len(kept) < 60
    assert [scores[index] for index in kept] == sorted((scores[index] for index in kept), reverse=True)
    for place, index in enumerate(kept):
        assert all(overlap(masks[index], masks[other]) <= 0.5 for other in kept[:place])
    for index in set(range(60)) - set(kept):
        assert any(overlap(masks[index], masks[other]) > 0.5 and scores[other] >= scores[index] for other in kept)
    assert without_duplicates([], [], 0.5) == []
    apart = without_duplicates(masks, scores, 0.5, max_inside=0.4)
    for place, index in enumerate(apart):
        for other in apart[:place]:
            assert (masks[index] & masks[other]).sum() <= 0.4 * min(masks[index].sum(), masks[other].sum())
    assert 1 < len(apart) < len(kept)


@pytest.mark.parametrize("size", [(60, 90), (1, 500), (7, 7)])
def test_grid_lies_inside_evenly(size: tuple[int, int]) -> None:
    height, width = size
    grid = point_grid(height, width, 8)
    assert (grid > 0).all() and (grid < [width, height]).all()
    assert np.allclose(grid.mean(axis=0), [width / 2, height / 2])
    assert len({tuple(point) for point in grid.tolist()}) == len(grid) <= 64


# --- hostile input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"points": [(90, 10)]}, "lies outside of the picture, which is 90 wide and 60 high"),
        ({"points": [(-1, 10)]}, "lies outside"),
        ({"points": [(float("nan"), 10)]}, "not finite"),
        ({"points": [(10, 10, 10)]}, r"points must be \[\(x, y\), ...\]"),
        ({"points": ["spot"]}, "points must be"),
        ({"points": [(10, 10)], "labels": [1, 1]}, "2 labels for 1 points"),
        ({"points": [(10, 10)], "labels": [2]}, "a label is 1"),
        ({"points": [(10, 10)], "labels": [0]}, "none of them positive"),
        ({}, "0 points arrived"),
        ({"box_xyxy": [5, 5, 5, 9]}, "is empty: x0 < x1"),
        ({"box_xyxy": [50, 5, 20, 9]}, "is empty"),
        ({"box_xyxy": [200, 5, 220, 9]}, "lies outside"),
        ({"box_xyxy": [5, 5, 9]}, "box_xyxy must be"),
        ({"box_xyxy": [0, 0, float("inf"), 9]}, "not finite"),
        ({"points": [(10, 10)], "num_candidates": 0}, "at least one"),
        ({"points_per_side": 0}, "give 1 to 256"),
        ({"points_per_side": 1000}, "give 1 to 256"),
        ({"max_overlap": 2}, "both are shares"),
        ({"min_area": -1}, "both are shares"),
        ({"max_regions": 0}, "at least one"),
    ],
)
def test_prompt_or_number_that_cannot_be_raises(prompt: dict[str, Any], message: str) -> None:
    encoded = known().encode(picture())
    of_everything = {"points_per_side", "max_overlap", "min_area", "max_regions"} & prompt.keys()
    with pytest.raises(SegmentationError, match=message):
        (encoded.everything if of_everything else encoded.masks)(**prompt)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("clip", "makes no masks of points and boxes"),
        ("sam3", "finds things by words; what takes points and boxes is SAM 3's tracker"),
        ("sam3_lite_text", "finds things by words"),
        ("sam_hq", "takes points and boxes through a decoder of its own, which is not supported"),
        ("sam3_tracker_video", "makes no masks"),
    ],
)
def test_model_of_another_kind_is_refused(kind: str, reason: str, tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(SegmentationError, match=rf"of type '{kind}', which {reason}.*sam2"):
        open_segmenter(tmp_path)


# --- the classical one -----------------------------------------------------------------------------------------------


@pytest.fixture
def classical() -> Any:
    pytest.importorskip("cv2", reason='needs OpenCV: pip install ".[segmentation]"')
    return open_segmenter(None)


@pytest.mark.parametrize("prompt", [{"box_xyxy": [43, 28, 115, 93]}, {"points": [(75, 60)]}])
def test_classical_finds_the_object_of_a_loose_box_or_a_point_and_the_same_every_time(
    classical: Any, prompt: dict[str, Any]
) -> None:
    size = (180, 120)
    encoded = classical.encode(picture(size))
    first, second = (encoded.masks(**prompt) for _ in range(2))
    loose = np.zeros(size[::-1], dtype=bool)
    loose[28:93, 43:115] = True
    assert overlap(first[0].mask, disc(size)) > 0.93 > overlap(loose, disc(size))
    assert all(np.array_equal(a.mask, b.mask) and a.score == b.score for a, b in zip(first, second, strict=True))


def test_classical_finds_a_thing_of_two_colours_from_a_point(classical: Any) -> None:
    """Growth of like colour stops at the stripe; cuts from discs do not."""
    image = picture((180, 120))
    ImageDraw.Draw(image).rectangle((70, 45, 87, 75), fill=(230, 170, 60))
    candidates = classical.encode(image).masks(points=[(78, 60)])
    true = disc((180, 120))
    true[45:76, 70:88] = True
    assert max(overlap(it.mask, true) for it in candidates) > 0.85


def test_classical_chooses_no_speck_where_a_larger_candidate_fits(classical: Any) -> None:
    """In texture, cuts keep a few pixels that look like nothing around them."""
    pixels = np.random.default_rng(0).integers(0, 256, (72, 96, 3), dtype=np.uint8)
    encoded = classical.encode(Image.fromarray(pixels).resize((192, 144), Image.Resampling.NEAREST))
    candidates = encoded.masks(points=[(60, 70)], num_candidates=9)
    are_specks = [bool(it.mask.mean() < 0.0005) for it in candidates]
    assert True in are_specks and are_specks == sorted(are_specks)
    assert not are_specks[0]


@pytest.mark.parametrize("size", [(180, 120), (33, 700), (3, 2), (1, 1)])
def test_classical_masks_hold_positive_points_and_no_negative_ones(classical: Any, size: tuple[int, int]) -> None:
    encoded = classical.encode(picture(size))
    points = [(int(x), int(y)) for x, y in np.random.default_rng(0).integers(0, size, (4, 2))]
    outside = set(points[2:])
    for box in (None, [0, 0, max(1, size[0] // 2), max(1, size[1] // 2)]):
        for mask, score in encoded.masks(points=points, labels=[1, 1, 0, 0], box_xyxy=box):
            assert 0 <= score <= 1 and mask.shape == (size[1], size[0])
            assert all(mask[y, x] for x, y in set(points[:2]) - outside)
            assert not any(mask[y, x] for x, y in outside)


def test_classical_keeps_the_box_where_there_is_nothing_to_cut(classical: Any) -> None:
    flat = Image.new("RGB", (100, 80), (120, 120, 120))
    best = classical.encode(flat).masks(box_xyxy=[20, 10, 70, 60])[0].mask
    expected = np.zeros((80, 100), dtype=bool)
    expected[10:60, 20:70] = True
    assert overlap(best, expected) > 0.75


@pytest.mark.parametrize("colors", [(0, 0), (0, 255), (255, 254), (100, 103), (100, 110)])
def test_classical_comes_to_an_end_on_flat_colors(classical: Any, colors: tuple[int, int]) -> None:
    for width, height in ((1, 1), (9, 5), (64, 300)):
        pixels = np.full((height, width, 3), colors[0], dtype=np.uint8)
        pixels[height // 3 :, width // 2 :] = colors[1]
        encoded = classical.encode(Image.fromarray(pixels))
        for box in (None, [0, 0, width, height], [width // 3, height // 3, width, height]):
            assert encoded.masks(points=[(width // 2, height // 2)], box_xyxy=box)


def test_classical_everything_has_neither_specks_nor_the_same_thing_twice(classical: Any) -> None:
    size = (256, 192)
    ramp = np.linspace(60, 200, size[0], dtype=np.uint8)
    pixels = np.stack([np.broadcast_to(ramp, size[::-1]), np.full(size[::-1], 90), np.full(size[::-1], 150)], axis=-1)
    image = Image.fromarray(pixels.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for x in range(8, 256, 16):  # specks
        draw.rectangle((x, 20, x + 2, 22), fill=(250, 250, 40))
    draw.ellipse((60, 70, 160, 170), fill=(20, 120, 30))
    found = classical.encode(image).everything()
    ellipse = np.asarray(image)[:, :, 0] == 20
    assert sum(overlap(it.mask, ellipse) > 0.9 for it in found) == 1
    assert all(it.mask.mean() > 0.001 for it in found)
    for number, candidate in enumerate(found):
        for other in found[:number]:
            shared = (candidate.mask & other.mask).sum()
            assert shared <= 0.5 * min(candidate.mask.sum(), other.mask.sum())


# --- any picture -----------------------------------------------------------------------------------------------------


def hostile_picture(kind: str, random: np.random.Generator) -> Image.Image:
    sizes = {"one pixel": (1, 1), "wide": (2000, 3), "tall": (3, 2000), "two": (2, 1), "odd": (41, 67)}
    width, height = sizes.get(kind, (50, 30))
    if kind == "flat":
        return Image.new("RGB", (width, height), tuple(random.integers(0, 256, 3).tolist()))
    shapes = Image.new("RGB", (width, height), tuple(random.integers(0, 256, 3).tolist()))
    for _ in range(5):
        x, y = int(random.integers(0, width)), int(random.integers(0, height))
        ImageDraw.Draw(shapes).ellipse((x - 9, y - 7, x + 9, y + 7), fill=tuple(random.integers(0, 256, 3).tolist()))
    if kind == "16-bit":
        return Image.fromarray(np.asarray(shapes.convert("L")).astype(np.uint16) * 257)
    if kind == "transparent":
        shapes.putalpha(Image.fromarray(random.integers(0, 256, (height, width), dtype=np.uint8)))
    if kind == "turned":
        shapes.getexif()[0x0112] = 8
    return shapes


SHAPES = ["one pixel", "two", "wide", "tall", "odd", "flat", "turned"]


@pytest.mark.parametrize(
    ("family", "kind"), [*product(["classical"], SHAPES), *product(["SAM"], [*SHAPES, "transparent", "16-bit"])]
)
def test_every_picture_has_sorted_different_masks_of_its_displayed_size(
    family: str, kind: str, request: pytest.FixtureRequest
) -> None:
    segmenter = request.getfixturevalue("classical") if family == "classical" else tiny(family)
    for seed in range(1 if family == "classical" else 3):
        random = np.random.default_rng(seed)
        image = hostile_picture(kind, random)
        encoded = segmenter.encode(image)
        width, height = image.size[::-1] if kind == "turned" else image.size
        assert (encoded.height, encoded.width) == (height, width)
        points = random.uniform(0, 1, (3, 2)) * [width, height]
        corners = np.sort(random.uniform(-3, 3 + max(width, height), (2, 2)), axis=0)
        corners[0] = np.minimum(corners[0], [width - 0.5, height - 0.5])
        box = [*corners[0], *np.maximum(corners[1], np.maximum(corners[0], 0) + 0.5)]
        for prompt in ({"points": points[:1]}, {"points": points, "labels": [1, 0, 1]}, {"box_xyxy": box}):
            found = encoded.masks(**prompt)
            assert [it.score for it in found] == sorted((it.score for it in found), reverse=True)
            assert len({it.mask.tobytes() for it in found}) == len(found) <= 3
            assert all(it.mask.shape == (height, width) and it.mask.dtype == bool and it.mask.any() for it in found)
            if family == "classical" and "box_xyxy" in prompt:
                assert found
        least = {"min_score": -1e9, "min_stability": 0} if family == "SAM" else {}
        everything = encoded.everything(points_per_side=4, max_overlap=0.5, min_area=0, **least)
        assert [it.score for it in everything] == sorted((it.score for it in everything), reverse=True)
        for number, candidate in enumerate(everything):
            assert candidate.mask.shape == (height, width) and candidate.mask.any()
            assert all(overlap(candidate.mask, other.mask) <= 0.5 for other in everything[:number])


def test_deep_picture_is_segmented_like_its_upper_eight_bits(classical: Any) -> None:
    shallow = picture((90, 60)).convert("L")
    deep = Image.fromarray(np.asarray(shallow).astype(np.uint16) * 257)
    (a,), (b,) = (classical.encode(it).masks(points=[(38, 30)], num_candidates=1) for it in (shallow, deep))
    assert np.array_equal(a.mask, b.mask) and not a.mask.all()


# --- one encoding for segmentation and captions ----------------------------------------------------------------------


def sam_of(model: Any) -> SamModel:
    """A SAM with a random decoder, whose encoder is the tower of a FineCaption model."""
    vision = model.config.sam_config
    channels = vision.output_channels
    prompts = {"hidden_size": channels, "image_embedding_size": vision.image_size // vision.patch_size}
    sam = SamModel(
        SamConfig(
            vision_config={**vision.to_dict(), "num_pos_feats": channels // 2},
            prompt_encoder_config={**prompts, "image_size": vision.image_size},
            mask_decoder_config={**_DECODER, "hidden_size": channels},
        )
    )
    if model.config.sam_feature_layer is None:
        sam.vision_encoder.load_state_dict(model.model.sam_tower.vision_encoder.state_dict())
    return sam.eval()


def shared_parts(**changes: Any) -> tuple[Any, Any, SamModel]:
    """A tiny FineCaption model, its image processor, and the SAM that its tower was taken from."""
    model = tiny_model(sam_config={"output_channels": 32}, **changes)
    processor = SimpleNamespace(image_processor=FineCaptionImageProcessor(**model.config.image_processor_kwargs()))
    return model, processor, sam_of(model)


@pytest.mark.parametrize("size", [(90, 60), (60, 90)])
def test_one_encoder_call_serves_masks_and_captions(size: tuple[int, int], tmp_path: Any) -> None:
    model, processor, sam = shared_parts()
    sam.save_pretrained(tmp_path)
    model.config.sam_pretrained = str(tmp_path)
    calls: list[int] = []
    model.model.sam_tower.vision_encoder.register_forward_hook(lambda *_: calls.append(1))
    image = picture(size)
    encoded = open_shared_segmenter(model, processor).encode(image)
    box = [size[0] / 4, 10, size[0] - 7, size[1] - 9]
    found = encoded.masks(box_xyxy=box)
    prepared = processor.image_processor(image, masks=[found[0].mask], return_tensors="pt")
    high_res = prepared.pop("high_res_pixel_values")
    tokens = model.get_image_features(**prepared, high_res_features=encoded.high_res_features).pooler_output
    assert len(calls) == 1

    reference = model.get_image_features(**prepared, high_res_pixel_values=high_res).pooler_output
    assert torch.allclose(tokens, reference, atol=1e-5)
    # The same prompt by SAM alone, on the picture as the captioning model sees it.
    config, placed = model.config, fit_within(size[1], size[0], 256, 256, True)
    given = (config.high_res_image_mean, config.high_res_image_std)
    pixels = convert_normalisation(high_res, given, (config.sam_image_mean, config.sam_image_std))
    corner = np.array([placed.left, placed.top])
    scale = np.array([placed.width / size[0], placed.height / size[1]])
    moved = (np.array(box).reshape(2, 2) * scale + corner).reshape(1, 1, 4)
    with torch.no_grad():
        made = sam(pixel_values=pixels, input_boxes=torch.tensor(moved, dtype=torch.float32))
    assert [it.score for it in found] == pytest.approx(
        sorted(made.iou_scores.flatten().tolist(), reverse=True)[: len(found)], abs=1e-4
    )


def test_tower_that_was_trained_since_is_not_shared() -> None:
    model, processor, sam = shared_parts()
    with pytest.raises(SegmentationError, match="does not say from which SAM"):
        open_shared_segmenter(model, processor)
    with torch.no_grad():
        model.model.sam_tower.vision_encoder.layers[1].mlp.lin1.bias[0] += 0.01
    with pytest.raises(SegmentationError, match=r"1 tensors differ, such as layers.1.mlp.lin1.bias"):
        SharedSegmenter(model, processor, sam)
    model, processor, sam = shared_parts(sam_feature_layer=0)
    with pytest.raises(SegmentationError, match="no SAM tower with its neck"):
        SharedSegmenter(model, processor, sam)


def test_segmenter_beside_a_model_is_over_its_tower_where_that_is_the_published_one(tmp_path: Any) -> None:
    model, processor, sam = shared_parts()
    save(ModelSegmenter(sam, padding_processor(256), "SAM"), tmp_path / "sam")
    for name in (tmp_path / "sam", str(tmp_path / "sam")):  # it is compared with the tower, whatever the configuration
        shared = open_segmenter_for(model, processor, name)
        assert isinstance(shared, SharedSegmenter)
        assert shared.name == f"SAM ({tmp_path / 'sam'}), over the captioning model's own tower"
    model.config.sam_pretrained = str(tmp_path / "sam")
    assert isinstance(open_segmenter_for(model, processor), SharedSegmenter)

    folder = save(tiny("SAM 2"), tmp_path / "sam2")
    opened = open_segmenter_for(model, processor, folder, device="cpu", dtype="bfloat16")
    assert opened.name == f"SAM 2 ({folder})" and opened.model.dtype == torch.bfloat16

    with torch.no_grad():
        model.model.sam_tower.vision_encoder.layers[1].mlp.lin1.bias[0] += 0.01
    alone = open_segmenter_for(model, processor, tmp_path / "sam", device="cpu")
    assert alone.name == f"SAM ({tmp_path / 'sam'})"
    with pytest.raises(SegmentationError, match="neither a folder nor"):
        open_segmenter_for(model, processor, tmp_path / "nothing")


def test_segmenter_beside_a_model_is_the_classical_one_where_nothing_can_be_shared(classical: Any) -> None:
    assert "classical" in classical.name and "OpenCV" in classical.name and "without a model" in classical.name
    model, processor, _ = shared_parts()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_segmenter_for(model, processor).name == classical.name
    model.config.sam_pretrained = "someone/not-here"
    with pytest.warns(UserWarning, match=r"someone/not-here.*cannot be used, so that regions are found by colour"):
        assert open_segmenter_for(model, processor).name == classical.name


def test_segmenter_that_is_nowhere_is_looked_for_on_the_hub_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found, asked = AutoConfig.from_pretrained, []

    def count(name: str, **options: Any) -> Any:
        asked.append(options.get("local_files_only", False))
        return found(name, **options)

    monkeypatch.setattr(AutoConfig, "from_pretrained", count)
    model, processor, _ = shared_parts()
    with pytest.raises(OSError, match=r"someone/not-here is no folder, is not on this machine"):
        open_segmenter_for(model, processor, "someone/not-here")
    assert asked == [True, False]  # without a network, each time on the Hub takes half a minute


@pytest.mark.parametrize("name", ["", "/no/such/folder", "a/b/c"])
def test_name_that_can_be_no_segmenter_is_shown(name: str) -> None:
    with pytest.raises(SegmentationError, match=f"^'{name}' is neither a folder nor"):
        open_segmenter(name)


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_checkpoint_says_whose_encoder_its_tower_is_until_that_trains(stage: Any) -> None:
    model = tiny_model(sam_pretrained="facebook/sam-vit-large")
    apply_stage(model, stage)
    trains = any(parameter.requires_grad for parameter in model.model.sam_tower.parameters())
    assert model.config.sam_pretrained == (None if trains else "facebook/sam-vit-large")


@pytest.fixture(scope="module")
def sam_and_checkpoint(embedded: Any, tmp_path_factory: Any) -> tuple[Path, Path]:
    """Folders of a SAM whose encoder is the embedded checkpoint's tower, and of that checkpoint, which says so.

    The SAM's decoder is random, and so sure of itself that `everything` finds something.
    """
    folder = tmp_path_factory.mktemp("shared")
    model, processor = embedded
    torch.manual_seed(0)
    sam = sam_of(model)
    with torch.no_grad():
        for parameter in sam.mask_decoder.parameters():
            parameter.mul_(3)
        sam.mask_decoder.iou_prediction_head.proj_out.bias.fill_(6)
        for layer in sam.mask_decoder.output_hypernetworks_mlps:
            layer.proj_out.weight.mul_(1e5)
    sam.save_pretrained(folder / "sam")
    SamImageProcessor().save_pretrained(folder / "sam")
    model.save_pretrained(folder / "checkpoint")
    processor.save_pretrained(folder / "checkpoint")
    config = json.loads((folder / "checkpoint" / "config.json").read_text())
    config["sam_pretrained"] = str(folder / "sam")
    (folder / "checkpoint" / "config.json").write_text(json.dumps(config))
    return folder / "sam", folder / "checkpoint"


def test_examples_of_the_documentation_run(
    sam_and_checkpoint: tuple[Path, Path], classical: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """In order, as one session; the model is one with a shared tower."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    loaded = load(sam_and_checkpoint[1], device="cpu")
    monkeypatch.setattr("finecaption_hf.asking.load", lambda: loaded)
    names: dict[str, Any] = {}
    text = (ROOT / "docs" / "segmentation.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    exec(compile(blocks[0], "segmentation.md", "exec"), names)
    printed = capsys.readouterr().out
    assert printed.startswith("classical") and 1 <= len(names["regions"]) <= 10
    triangle = np.zeros((256, 256), dtype=bool)
    triangle[25:96, 178:249] = True
    assert (names["refined"].mask & triangle).sum() > 0.4 * triangle.sum()
    exec(compile(blocks[1], "segmentation.md", "exec"), names)
    assert isinstance(names["segmenter"], SharedSegmenter)
    assert "'Color'" in capsys.readouterr().out


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("regions", "number"),
    [
        (["--everything", "--max-regions", 3], 3),
        (["--point", "130,180", "--mask", EXAMPLE_MASK, "--box", "178,25,249,96", "--refine"], 2),
    ],
)
def test_picture_is_encoded_once_for_masks_and_captions(
    sam_and_checkpoint: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, regions: list[object], number: int
) -> None:
    sam, folder = sam_and_checkpoint
    runs: list[int] = []
    forward = SamVisionEncoder.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        runs.append(1)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(SamVisionEncoder, "forward", counted)
    command = ["caption", EXAMPLE_PICTURE, *regions, "--task", "region", "--task", "global", "--json"]
    result = run(*command, "--model", folder, "--device", "cpu", "--max-new-tokens", 8)
    assert result.exit_code == 0, result.output
    assert f"{number} regions found by: SAM ({sam}), over the captioning model's own tower" in result.stderr
    assert len(json.loads(result.stdout)) == 3
    assert len(runs) == 1
    # The regions are those that the shared segmenter finds, and the answers those of a pipeline that encodes anew.
    model, processor = load(folder, device="cpu")
    picture = Image.open(EXAMPLE_PICTURE)
    encoded = open_segmenter_for(model, processor).encode(picture)
    if "--everything" in regions:
        masks = [it.mask for it in encoded.everything(max_regions=3)]
    else:
        masks = [
            encoded.masks(points=[(130, 180)], num_candidates=1)[0].mask,
            np.asarray(Image.open(EXAMPLE_MASK)) > 0,
            encoded.masks(box_xyxy=[178, 25, 249, 96], num_candidates=1)[0].mask,
        ]
    expected = model.as_pipeline(processor)(picture, masks, ["region", "global"], max_new_tokens=8)
    assert json.loads(result.stdout) == expected


def test_sam_that_cannot_be_loaded_is_told_and_the_classical_one_used(
    sam_and_checkpoint: tuple[Path, Path], classical: Any, tmp_path: Path
) -> None:
    shutil.copytree(sam_and_checkpoint[1], tmp_path / "checkpoint")
    config = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    config["sam_pretrained"] = "someone/not-here"
    (tmp_path / "checkpoint" / "config.json").write_text(json.dumps(config))
    command = ["caption", EXAMPLE_PICTURE, "--point", "130,180", "--device", "cpu", "--max-new-tokens", 4]
    result = run(*command, "--model", tmp_path / "checkpoint")
    assert result.exit_code == 0, result.output
    assert "Warning: someone/not-here, to which the checkpoint's SAM tower belongs, cannot be used" in result.stderr
    assert f"1 region found by: {classical.name}" in result.stderr
    result = run(*command, "--model", tmp_path / "checkpoint", "--segmenter", "someone/not-here")
    assert result.exit_code == 2 and "not-here is no folder, is not on this machine" in result.stderr


def test_points_and_boxes_become_regions_in_the_order_of_the_command_line(classical: Any, tmp_path: Path) -> None:
    size = (180, 120)
    picture(size).save(tmp_path / "disc.png")
    disc_box, corner = np.array([45, 30, 113, 91]), [0, 0, 20, 10]
    command = ["caption", tmp_path / "disc.png", "--device", "cpu", "--max-new-tokens", 4, "--json"]
    result = run(
        *(*command, "--box", "0,0,20,10", "--point", "60,50,90,70", "--not-point", "50,60"),
        *("--polygon", "0,0,50,0,0,50", "--point", "5 110"),
    )
    assert result.exit_code == 0, result.output
    assert "2 regions found by: classical" in result.stderr
    box, points, polygon, outside = json.loads(result.stdout)
    assert box["box_xyxy"] == corner and polygon["box_xyxy"] == [0, 0, 49, 49]
    assert np.abs(np.array(points["box_xyxy"]) - disc_box).max() <= 4
    encoded = classical.encode(picture(size))
    expected = encoded.masks(points=[(60, 50), (90, 70), (50, 60)], labels=[1, 1, 0], num_candidates=1)[0].mask
    assert points["area"] == expected.sum()
    assert outside["area"] > size[0] * size[1] / 2

    loose = ["--box", "38,22,125,100"]
    (plain,) = json.loads(run(*command, *loose).stdout)
    assert plain["box_xyxy"] == [38, 22, 125, 100]
    (refined,) = json.loads(run(*command, *loose, "--refine").stdout)
    (without,) = json.loads(run(*command, *loose, "--not-point", "40,24,40,98").stdout)
    for record in (refined, without):
        assert np.abs(np.array(record["box_xyxy"]) - disc_box).max() <= 4


def test_points_without_opencv_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    result = run("caption", EXAMPLE_PICTURE, "--point", "5,5", "--device", "cpu")
    assert result.exit_code == 2 and 'pip install ".[segmentation]"' in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--everything", "--box", "1,2,30,40"], "leave --box out"),
        (["--everything", "--not-point", "1,2"], "leave --not-point out"),
        (["--everything", "--refine"], "leave --refine out"),
        (["--segmenter", "some/model"], "--segmenter goes with --everything, --point, or --box and --refine"),
        (["--segmenter", "some/model", "--box", "1,2,30,40"], "--segmenter goes with"),
        (["--max-regions", "3"], "--max-regions goes with --everything only"),
        (["--everything", "--segmenter", "/no/such/folder"], "neither a folder nor the id"),
        (["--refine", "--mask", EXAMPLE_MASK], "--refine goes with --box"),
        (["--not-point", "1,2", "--point", "3,4"], "--not-point 1,2: it says what is not part of the region before it"),
        (["--mask", EXAMPLE_MASK, "--not-point", "1,2"], "which has to be a --point or a --box"),
        (["--point", "1,2,3"], "--point 1,2,3: these are no points. Give X,Y or X,Y,X,Y,..."),
        (["--point", "there"], "these are no points"),
        (["--box", "1,2,3,4", "--point", "256,3"], "region 2 (--point): The point (256, 3) lies outside"),
        (["--point", "-4,3"], "region 1 (--point): The point (-4, 3) lies outside"),
        (["--point", "5,5", "--not-point", "5,nan"], "region 1 (--point): points hold a number that is not finite"),
        (["--input", "a.jsonl", "--output", "b.jsonl", "--point", "1,2"], "There is no option --point."),
    ],
)
def test_wrong_use_of_regions_ends_in_one_error(arguments: list[str], message: str) -> None:
    result = run("caption", *([] if "--input" in arguments else [EXAMPLE_PICTURE]), *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output and not result.stdout
