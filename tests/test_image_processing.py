"""Images and regions against references: float64 filters, PIL, and pictures whose bright object is the region."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RealRegion
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from transformers import AutoImageProcessor, CLIPImageProcessor
from transformers.utils import logging

from finecaption_hf import FineCaptionImageProcessor, MaskError, encode_mask, image_processing_finecaption
from finecaption_hf.data.encoding import encode_rle
from finecaption_hf.image_processing_finecaption import fit_within, region_alpha

pytestmark = pytest.mark.hub
# torch computes filter positions in float32: near pixel 6000 they are off by 2e-4 of a pixel, its weights by some 1e-5.
ALPHA = {"atol": 1e-4, "rtol": 0.0}
SMALL = {"size": {"height": 84, "width": 84}, "high_res_size": {"height": 256, "width": 256}}
INVERSE_OF_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.fixture
def processor() -> FineCaptionImageProcessor:
    return FineCaptionImageProcessor(**SMALL)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ellipse(height: int, width: int, center: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
    """Center (y, x) and radii as fractions of the sides; bool (height, width)."""
    y, x = np.mgrid[0:height, 0:width] + 0.5
    return ((y / height - center[0]) / radii[0]) ** 2 + ((x / width - center[1]) / radii[1]) ** 2 < 1


def grey_levels(pixel_values: torch.Tensor, processor: FineCaptionImageProcessor) -> torch.Tensor:
    """Undo the normalisation: levels 0 to 255."""
    mean = torch.tensor(processor.image_mean)[:, None, None]
    std = torch.tensor(processor.image_std)[:, None, None]
    return (pixel_values * std + mean) * 255


def alpha(mask_values: torch.Tensor) -> torch.Tensor:
    """Undo the normalisation: 0 outside, 1 inside."""
    return mask_values * 0.26 + 0.5


def filter_matrix(source: int, target: int) -> torch.Tensor:
    """The antialiased bilinear filter of one axis, `(target, source)`: a triangle as wide as two target pixels."""
    scale = source / target
    centers = (torch.arange(target, dtype=torch.float64)[:, None] + 0.5) * scale
    pixels = torch.arange(source, dtype=torch.float64) + 0.5
    weights = (1 - (pixels - centers).abs() / max(scale, 1.0)).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


def reference_alpha(mask: np.ndarray, size: int, pad: bool) -> torch.Tensor:
    """The whole mask through a float64 filter, then peak and padding; `(1, 1, size, size)`."""
    height, width, top, left = fit_within(*mask.shape, size, size, pad)
    soft = (
        filter_matrix(mask.shape[0], height) @ torch.from_numpy(mask).double() @ filter_matrix(mask.shape[1], width).T
    )
    canvas = torch.zeros(1, 1, size, size, dtype=torch.float64)
    canvas[0, 0, top : top + height, left : left + width] = soft / soft.max().clamp(max=1)
    return canvas


# --- geometry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("picture", [(60, 90), (91, 50), (84, 84), (500, 333), (37, 41), (84, 85), (3, 300)])
def test_centre_crop_is_that_of_clips_own_processor(picture: tuple[int, int]) -> None:
    image = noise(*picture)
    theirs = CLIPImageProcessor(size={"shortest_edge": 84}, crop_size={"height": 84, "width": 84})
    wanted = theirs(image, return_tensors="pt")["pixel_values"]
    processor = FineCaptionImageProcessor(**{**SMALL, "high_res_size": None}, do_center_crop=True)
    # The same whole grey levels; one subtraction and division instead of two.
    assert torch.allclose(processor(image)["pixel_values"], wanted, atol=1e-5)
    again = FineCaptionImageProcessor.from_dict(processor.to_dict())
    assert torch.equal(again(image)["pixel_values"], processor(image)["pixel_values"])


def test_regions_are_cropped_as_their_picture_is_and_never_lost() -> None:
    size = SMALL["size"]["height"]
    processor = FineCaptionImageProcessor(**{**SMALL, "high_res_size": None}, do_center_crop=True)
    picture = np.zeros((60, 120, 3), np.uint8)
    picture[10:30, 50:70] = 255  # in the middle
    mask = picture[:, :, 0] > 0
    seen = processor(picture, masks=mask, image_mean=[0.0] * 3, image_std=[1.0] * 3, resample=2)
    alpha = seen["mask_values"][0, 0] * 0.26 + 0.5
    # Twice rounded grey levels against floats.
    assert (alpha - seen["pixel_values"][0, 0]).abs().max() < 0.01 and alpha.amax() > 0.99
    assert alpha.shape == (size, size)
    whole = processor(picture)["mask_values"]
    assert torch.allclose(whole, torch.full_like(whole, 0.5 / 0.26))
    at_the_edge = np.zeros((60, 120), bool)
    at_the_edge[:, :10] = True
    with pytest.raises(MaskError, match=r"Region 2 \(of images\[0\]\).*outside of the middle .*do_center_crop"):
        processor(picture, masks=[mask, at_the_edge])


@pytest.mark.parametrize(
    ("picture", "target", "pad", "expected"),
    [
        ((1080, 1920), 1024, True, (576, 1024, 224, 0)),
        ((1080, 1920), 336, True, (189, 336, 73, 0)),
        ((1920, 1080), 1024, True, (1024, 576, 0, 224)),
        ((1080, 1920), 1024, False, (1024, 1024, 0, 0)),
        ((500, 500), 336, True, (336, 336, 0, 0)),
        ((101, 336), 336, True, (101, 336, 117, 0)),  # 235 rows of padding: 117 above, 118 below
        ((3, 672), 336, True, (2, 336, 167, 0)),  # 1.5 rows: halves are rounded up
        ((1, 100_000), 336, True, (1, 336, 167, 0)),
        ((10, 20), 336, True, (168, 336, 84, 0)),  # small pictures are enlarged
    ],
)
def test_fit_within_gives_these_numbers(
    picture: tuple[int, int], target: int, pad: bool, expected: tuple[int, int, int, int]
) -> None:
    assert fit_within(*picture, target, target, pad) == expected


@given(height=st.integers(1, 10_000), width=st.integers(1, 10_000), target=st.sampled_from([84, 336, 1024]))
def test_padded_picture_is_centred_and_keeps_its_proportions(height: int, width: int, target: int) -> None:
    fitted = fit_within(height, width, target, target, pad=True)
    assert max(fitted.height, fitted.width) == target
    assert 0 <= (target - fitted.height - fitted.top) - fitted.top <= 1
    assert 0 <= (target - fitted.width - fitted.left) - fitted.left <= 1
    scale = target / max(height, width)
    assert abs(fitted.height - height * scale) <= 0.5 or fitted.height == 1
    assert abs(fitted.width - width * scale) <= 0.5 or fitted.width == 1


def picture_sizes(count: int = 20_000) -> np.ndarray:
    """Heights and widths `(n, 2)`: all up to 60, and many up to 6000."""
    small = np.stack(np.meshgrid(np.arange(1, 61), np.arange(1, 61)), axis=-1).reshape(-1, 2)
    return np.concatenate([small, np.random.default_rng(0).integers(1, 6001, (count, 2))])


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize(("target", "finer"), [(336, 1024), (84, 256)])
def test_both_inputs_show_the_picture_at_the_same_place_to_half_a_pixel(target: int, finer: int, crop: bool) -> None:
    sizes = picture_sizes()
    fine, alone, placed = (
        np.array([fit_within(*map(int, size), side, side, True, crop, other) for size in sizes])
        for side, other in ((finer, None), (target, None), (target, (finer, finer)))
    )

    def distance(geometry: np.ndarray) -> np.ndarray:
        """The most that a border is away from where the finer input has it, in pixels of this one."""
        borders = [
            np.abs(geometry[:, 2:] + end * geometry[:, :2] - (fine[:, 2:] + end * fine[:, :2]) * target / finer)
            for end in (0, 1)
        ]
        return np.maximum(*borders).max(axis=1)

    off = distance(alone) > 0.5
    assert 0.2 < off.mean() < 0.5  # so much would be off
    assert (placed == alone)[~off].all()
    # A picture whose strip is less than a pixel keeps one pixel.
    thin = alone[:, :2].min(axis=1) == 1
    assert (distance(placed)[~thin] <= 0.5).all() and (distance(placed)[thin] < 0.7).all()
    assert (placed[:, :2] >= 1).all()
    if crop:
        assert (placed[:, 2:] <= 0).all() and (placed[:, 2:] + placed[:, :2] >= target).all()
    else:
        assert (placed[:, 2:] >= 0).all() and (placed[:, 2:] + placed[:, :2] <= target).all()


@pytest.mark.parametrize("options", [{}, {"do_center_crop": True}])
def test_picture_and_region_move_together_where_the_two_inputs_round_apart(options: dict[str, Any]) -> None:
    height, width = 180, 321
    assert fit_within(height, width, 84, 84, True, bool(options), (256, 256)) != fit_within(
        height, width, 84, 84, True, bool(options)
    )
    picture = np.zeros((height, width, 3), np.uint8)
    picture[60:140, 150:220] = 255
    plain = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "resample": Image.Resampling.BILINEAR, **options}
    processor = FineCaptionImageProcessor(**SMALL, **plain)
    seen = processor(picture, masks=picture[..., 0] > 0)
    # Twice rounded grey levels against floats.
    assert (alpha(seen["mask_values"][0, 0]) - seen["pixel_values"][0, 0]).abs().max() < 0.01
    # What was encoded before has the same geometry, though the finer input is not made again.
    again = processor(picture, masks=picture[..., 0] > 0, high_res_features=torch.zeros(1, 1, 1, 1))
    assert "high_res_pixel_values" not in again
    for name in ("pixel_values", "mask_values"):
        assert again[name].equal(seen[name])


def test_padding_is_the_mean_colour_and_lies_on_both_sides(processor: FineCaptionImageProcessor) -> None:
    inputs = processor(Image.new("RGB", (200, 100), "white"))
    for name, size in (("pixel_values", 84), ("high_res_pixel_values", 256)):
        levels = grey_levels(inputs[name][0], processor)
        margin = size // 4
        expected = torch.tensor([round(255 * mean) for mean in processor.image_mean]).float()[:, None, None]
        for padding in (levels[:, :margin], levels[:, -margin:]):
            torch.testing.assert_close(padding, expected.expand_as(padding), atol=1e-3, rtol=0)
        picture = levels[:, margin:-margin]
        torch.testing.assert_close(picture, torch.full_like(picture, 255), atol=1e-3, rtol=0)


def test_squashed_picture_has_no_padding() -> None:
    inputs = FineCaptionImageProcessor(**SMALL, do_pad=False)(Image.new("RGB", (200, 100), "white"))
    assert inputs["pixel_values"].amin((2, 3)).equal(inputs["pixel_values"].amax((2, 3)))
    assert alpha(inputs["mask_values"]).min() == 1


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("size", [(60, 400), (300, 400), (333, 333), (400, 300), (400, 60), (20, 30), (1, 9)])
def test_region_lies_on_the_object_at_every_aspect_ratio(size: tuple[int, int], pad: bool) -> None:
    check_region_on_object(ellipse(*size, (0.35, 0.6), (0.25, 0.3)) if min(size) > 1 else np.eye(*size, 6, bool), pad)


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("orientation", [1, *INVERSE_OF_ORIENTATION])
@pytest.mark.parametrize("source", ["path", "bytes", "PIL"])
def test_exif_orientation_is_applied_before_the_region(
    source: str, orientation: int, pad: bool, tmp_path: Path
) -> None:
    mask = ellipse(200, 320, (0.3, 0.7), (0.2, 0.15))
    displayed = Image.fromarray(np.where(mask[..., None], 255, noise(200, 320) // 4).astype(np.uint8))
    stored = displayed if orientation == 1 else displayed.transpose(INVERSE_OF_ORIENTATION[orientation])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    stored.save(buffer, "PNG", exif=exif)
    path = tmp_path / "photo.png"
    path.write_bytes(buffer.getvalue())
    images = {"path": str(path), "bytes": buffer.getvalue(), "PIL": Image.open(io.BytesIO(buffer.getvalue()))}

    processor = FineCaptionImageProcessor(**SMALL, do_pad=pad)
    turned, expected = processor(images[source], masks=mask), processor(displayed, masks=mask)
    for name in expected:
        assert turned[name].equal(expected[name]), name
    check_region_on_object(mask, pad)


def check_region_on_object(mask: np.ndarray, pad: bool) -> None:
    """A white object on black: brightness and alpha are the same picture, up to bicubic against bilinear edges."""
    processor = FineCaptionImageProcessor(**SMALL, do_pad=pad, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    inputs = processor(Image.fromarray(mask).convert("RGB"), masks=mask)
    brightness = inputs["pixel_values"][0].mean(0)
    region = alpha(inputs["mask_values"][0, 0])
    brightness = brightness / brightness.max()
    together = torch.stack([brightness.flatten(), region.flatten()])
    assert torch.corrcoef(together)[0, 1] > 0.98
    assert (brightness - region).abs().max() < 0.25
    rows, columns = torch.meshgrid(torch.arange(84.0), torch.arange(84.0), indexing="ij")
    for positions in (rows, columns):
        centers = [(values * positions).sum() / values.sum() for values in (brightness, region)]
        assert abs(centers[0] - centers[1]) < 0.1


# --- regions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("size", [(480, 640), (1080, 1920), (997, 613), (50, 70), (64, 1000)])
def test_alpha_equals_the_float64_filter(size: tuple[int, int], pad: bool) -> None:
    for mask in (
        ellipse(*size, (0.4, 0.6), (0.2, 0.1)),
        ellipse(*size, (0.0, 1.0), (0.3, 0.3)),
        np.random.default_rng(0).random(size) < 0.01,
        np.random.default_rng(0).random(size) < 0.7,
    ):
        values = region_alpha(torch.from_numpy(mask)[None, None], (336, 336), pad)
        torch.testing.assert_close(alpha(values).double(), reference_alpha(mask, 336, pad), **ALPHA)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), height=st.integers(1, 900), width=st.integers(1, 900), pad=st.booleans())
def test_alpha_of_any_box_equals_the_float64_filter(data: st.DataObject, height: int, width: int, pad: bool) -> None:
    y0, x0 = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    y1, x1 = data.draw(st.integers(y0 + 1, height)), data.draw(st.integers(x0 + 1, width))
    mask = np.zeros((height, width), dtype=bool)
    mask[y0:y1, x0:x1] = True
    values = region_alpha(torch.from_numpy(mask)[None, None], (84, 84), pad)
    torch.testing.assert_close(alpha(values).double(), reference_alpha(mask, 84, pad), **ALPHA)
    torch.testing.assert_close(alpha(values).max(), torch.tensor(1.0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("pixel", [(0, 0), (3999, 5999), (2000, 3000), (1234, 4321), (17, 5982)])
@pytest.mark.parametrize("pad", [True, False])
def test_one_pixel_of_a_24_megapixel_photo_stays(pixel: tuple[int, int], pad: bool) -> None:
    mask = np.zeros((4000, 6000), dtype=bool)
    mask[pixel] = True
    values = region_alpha(torch.from_numpy(mask)[None, None], (336, 336), pad)[0, 0]
    region = alpha(values)
    height, width, top, left = fit_within(4000, 6000, 336, 336, pad)
    position = torch.tensor([top + (pixel[0] + 0.5) * height / 4000, left + (pixel[1] + 0.5) * width / 6000])
    rows, columns = torch.meshgrid(torch.arange(336) + 0.5, torch.arange(336) + 0.5, indexing="ij")
    distance = (torch.stack([rows, columns], dim=-1) - position).abs().amax(-1)
    assert values.max() == (torch.tensor(1.0) - 0.5) / 0.26
    # The filter reaches one pixel to each side, so the peak is on a pixel less than one away, the rest is outside.
    assert distance.flatten()[region.argmax()] < 1
    assert region[distance > 1].abs().max() < 1e-6


def test_one_pixel_reaches_mask_values_through_every_kind_of_reference() -> None:
    image = Image.new("RGB", (6000, 4000))
    mask = np.zeros((4000, 6000), dtype=bool)
    mask[1234, 4321] = True
    references = [mask, encode_rle(mask), {"box_xyxy": [4321, 1234, 4322, 1235]}]
    values = FineCaptionImageProcessor(high_res_size=None)(image, masks=references)["mask_values"]
    assert alpha(values).amax((1, 2, 3)).tolist() == pytest.approx([1.0] * 3)
    for other in values[1:]:
        assert other.equal(values[0])


@pytest.mark.parametrize("kind", ["row", "column", "diagonal"])
def test_line_of_one_pixel_stays_connected(kind: str) -> None:
    mask = np.zeros((3000, 3000), dtype=bool)
    if kind == "row":
        mask[1111] = True
    elif kind == "column":
        mask[:, 1111] = True
    else:
        np.fill_diagonal(mask, True)
    region = alpha(region_alpha(torch.from_numpy(mask)[None, None], (336, 336)))[0, 0]
    assert region.max() == pytest.approx(1)
    # Every column (or row) of the model's input sees the line, none fainter than half of its brightest place.
    along = region.amax(1) if kind == "column" else region.amax(0)
    assert along.min() > 0.5


def test_no_mask_equals_a_mask_of_everything(processor: FineCaptionImageProcessor) -> None:
    image = noise(90, 160)
    everything = np.ones((90, 160), dtype=bool)
    expected = processor(image, masks=everything)["mask_values"]
    assert processor(image)["mask_values"].equal(expected)
    assert processor([image], masks=[None])["mask_values"].equal(expected)
    assert processor(image, masks=[[0, 0, 160, 90]])["mask_values"].equal(expected)
    region = alpha(expected)[0, 0]
    assert region[18:66].min() == 1  # 48 rows of 84: the picture
    assert region[:18].max() == region[66:].max() == 0  # the padding lies outside of every region


def test_region_alpha_takes_any_dtype() -> None:
    mask = torch.from_numpy(ellipse(50, 60, (0.5, 0.5), (0.3, 0.3)))[None, None]
    expected = region_alpha(mask, (84, 84))
    for dtype in (torch.uint8, torch.int64, torch.float32, torch.bfloat16):
        assert region_alpha(mask.to(dtype), (84, 84)).equal(expected)
    assert region_alpha(mask.to(torch.uint8) * 255, (84, 84)).equal(expected)
    both = torch.cat([mask, ~mask])
    assert region_alpha(both, (84, 84))[:1].equal(expected)


def test_region_alpha_refuses_an_empty_region() -> None:
    masks = torch.ones(2, 1, 30, 40, dtype=torch.bool)
    masks[1] = False
    with pytest.raises(ValueError, match="mask 2 is empty"):
        region_alpha(masks, (84, 84))
    with pytest.raises(ValueError, match=r"shape \(30, 40\)"):
        region_alpha(masks[0, 0], (84, 84))


def test_real_regions_keep_their_place_and_area(real_regions: list[RealRegion]) -> None:
    processor = FineCaptionImageProcessor(high_res_size=None)
    for region in real_regions:
        mask = region.mask
        values = alpha(processor(region.image, masks=region.rle)["mask_values"][0, 0]).double()
        height, width, top, left = fit_within(*mask.shape, 336, 336, True)
        y, x = np.nonzero(mask)
        rows, columns = torch.meshgrid(torch.arange(336) + 0.5, torch.arange(336) + 0.5, indexing="ij")
        center = [(values * positions).sum() / values.sum() for positions in (rows, columns)]
        # Half a pixel of the photo or less than a tenth of the model's.
        assert center[0] == pytest.approx((y.mean() + 0.5) * height / mask.shape[0] + top, abs=0.1)
        assert center[1] == pytest.approx((x.mean() + 0.5) * width / mask.shape[1] + left, abs=0.1)
        area = mask.sum() * height * width / mask.size
        # Only regions that need the peak raised grow.
        assert values.sum() >= area * 0.99
        if values.sum() > area * 1.01:
            assert area < 30


# --- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(480, 640), (1080, 1920), (100, 70)])
def test_pixels_equal_pils_to_two_grey_levels(size: tuple[int, int]) -> None:
    image = Image.fromarray(noise(*size)).resize(size[::-1])
    processor = FineCaptionImageProcessor()
    inputs = processor(image)
    for name, target in (("pixel_values", 336), ("high_res_pixel_values", 1024)):
        height, width, top, left = fit_within(*size, target, target, True)
        expected = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        levels = grey_levels(inputs[name][0], processor)[:, top : top + height, left : left + width]
        # The two round their integer filters differently, in each of two passes.
        torch.testing.assert_close(levels, torch.from_numpy(expected.copy()).float(), atol=2.01, rtol=0)


def test_both_sizes_come_from_the_original() -> None:
    image = noise(300, 400)
    both = FineCaptionImageProcessor(**SMALL)(image)
    low = FineCaptionImageProcessor(size=SMALL["size"], high_res_size=None)(image)
    high = FineCaptionImageProcessor(size=SMALL["high_res_size"], high_res_size=None)(image)
    assert both["pixel_values"].equal(low["pixel_values"])
    assert both["high_res_pixel_values"].equal(high["pixel_values"])


def test_outputs_are_contiguous_float32_tensors(processor: FineCaptionImageProcessor) -> None:
    inputs = processor([noise(30, 40), noise(50, 20)], masks=[[None], None])
    shapes = {"pixel_values": (2, 3, 84, 84), "high_res_pixel_values": (2, 3, 256, 256), "mask_values": (2, 1, 84, 84)}
    assert list(inputs) == processor.model_input_names == [*shapes, "image_indices"]
    for name, shape in shapes.items():
        assert inputs[name].shape == shape
        assert inputs[name].dtype == torch.float32
        assert inputs[name].is_contiguous()
    assert inputs["image_indices"].dtype == torch.int64


def test_every_form_of_the_same_image_gives_the_same_pixels(
    processor: FineCaptionImageProcessor, tmp_path: Path
) -> None:
    array = noise(48, 64)
    path = tmp_path / "image.png"
    Image.fromarray(array).save(path)
    read_only = array.copy()
    read_only.flags.writeable = False
    expected = processor(Image.fromarray(array))["pixel_values"]
    forms: dict[str, Any] = {
        "path as str": str(path),
        "path": path,
        "bytes": path.read_bytes(),
        "open file": io.BytesIO(path.read_bytes()),
        "rows, columns, channels": array,
        "read-only": read_only,
        "negative strides": array[::-1].copy()[::-1],
        "wider integers": array.astype(np.int64),
        "unsigned integers": array.astype(np.uint16),
        "channels, rows, columns": array.transpose(2, 0, 1).copy(),
        "tensor": torch.from_numpy(array).permute(2, 0, 1).contiguous(),
        "floats to 1": array.astype(np.float32) / 255,
        "doubles to 1": torch.from_numpy(array).double() / 255,
        "opaque RGBA": np.concatenate([array, np.full((48, 64, 1), 255, np.uint8)], axis=-1),
        "cut from a larger array": np.pad(array, ((3, 4), (5, 6), (0, 0)))[3:-4, 5:-6],
    }
    for name, form in forms.items():
        assert processor(form)["pixel_values"].equal(expected), name


def test_every_mode_of_pil_becomes_rgb(processor: FineCaptionImageProcessor) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    expected = processor(Image.fromarray(grey).convert("RGB"))["pixel_values"]
    sixteen = Image.fromarray(grey.astype(np.uint16) * 257)
    assert sixteen.mode.startswith("I;16")
    for image in (
        Image.fromarray(grey),
        sixteen,
        Image.fromarray(grey).convert("LA"),
        grey,
        grey[None],
        grey[..., None],
    ):
        assert processor(image)["pixel_values"].equal(expected)
    for mode in ("1", "P", "CMYK", "YCbCr", "HSV"):
        image = Image.fromarray(noise(8, 8)).convert(mode)
        assert processor(image)["pixel_values"].equal(processor(image.convert("RGB"))["pixel_values"]), mode
    black_or_white = np.eye(8, dtype=bool)
    assert processor(black_or_white)["pixel_values"].equal(processor(Image.fromarray(black_or_white))["pixel_values"])


def test_transparency_is_laid_on_white(processor: FineCaptionImageProcessor, tmp_path: Path) -> None:
    rgba = np.concatenate([noise(40, 40), np.zeros((40, 40, 1), np.uint8)], axis=-1)
    rgba[:, :20, 3] = 255
    expected_array = rgba[..., :3].copy()
    expected_array[:, 20:] = 255
    expected = processor(expected_array)["pixel_values"]
    image = Image.fromarray(rgba)
    image.save(tmp_path / "image.png")
    for form in (image, rgba, str(tmp_path / "image.png"), rgba.astype(np.float32) / 255):
        assert processor(form)["pixel_values"].equal(expected)
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.info["transparency"] = 0
    red_on_white = np.array([[[255] * 3, [255, 0, 0]], [[255, 0, 0], [255] * 3]], np.uint8)
    assert processor(palette)["pixel_values"].equal(processor(red_on_white)["pixel_values"])


def test_normalisation_can_be_switched_off(processor: FineCaptionImageProcessor) -> None:
    image = noise(84, 84)
    planes = torch.from_numpy(image).permute(2, 0, 1).float()
    plain = processor(image, do_normalize=False)["pixel_values"][0]
    torch.testing.assert_close(plain, planes / 255)
    assert processor(image, do_normalize=False, do_rescale=False)["pixel_values"][0].equal(planes)
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    expected = (planes / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(processor(image)["pixel_values"][0], expected)


def test_each_size_has_its_own_statistics() -> None:
    processor = FineCaptionImageProcessor(**SMALL, high_res_image_mean=[0.5] * 3, high_res_image_std=[0.25] * 3)
    inputs = processor(Image.new("RGB", (256, 256), (255, 0, 128)))
    assert inputs["high_res_pixel_values"][0, :, 0, 0].tolist() == pytest.approx([2, -2, (128 / 255 - 0.5) * 4])
    levels = grey_levels(inputs["pixel_values"][0], processor)[:, 0, 0]
    assert levels.tolist() == pytest.approx([255, 0, 128], abs=1e-3)


# --- batches ---------------------------------------------------------------------------------------------------------


def test_batch_equals_single_images(processor: FineCaptionImageProcessor) -> None:
    sizes = [(30, 50), (90, 40), (30, 50), (64, 64)]
    images = [noise(*size, seed) for seed, size in enumerate(sizes)]
    masks = [ellipse(*size, (0.5, 0.4), (0.3, 0.2)) for size in sizes]
    batch = processor(images, masks=masks)
    for number, (image, mask) in enumerate(zip(images, masks)):
        single = processor(image, masks=mask)
        for name in ("pixel_values", "high_res_pixel_values", "mask_values"):
            assert batch[name][number].equal(single[name][0])
    assert batch["image_indices"].tolist() == [0, 1, 2, 3]


def test_ragged_batch_keeps_the_order_of_regions(processor: FineCaptionImageProcessor) -> None:
    images = [noise(40, 60), noise(70, 30), noise(50, 50)]
    first = [[0, 0, 20, 20], {"box_xyxy": [10, 10, 50, 30]}, None]
    third = np.stack([ellipse(50, 50, (0.3, 0.3), (0.2, 0.2)), ellipse(50, 50, (0.7, 0.6), (0.2, 0.3))])
    batch = processor(images, masks=[first, None, third])
    assert batch["image_indices"].tolist() == [0, 0, 0, 1, 2, 2]
    assert len(batch["pixel_values"]) == 3
    singles = [(0, reference) for reference in first] + [(1, None)] + [(2, reference) for reference in third]
    for values, (index, reference) in zip(batch["mask_values"], singles):
        assert values.equal(processor(images[index], masks=[reference])["mask_values"][0])

    flat = [reference for _, reference in singles]
    order = [5, 0, 3, 2, 1, 4]
    shuffled = processor(
        images, masks=[flat[i] for i in order], image_indices=torch.tensor([singles[i][0] for i in order])
    )
    assert shuffled["mask_values"].equal(batch["mask_values"][order])
    assert shuffled["image_indices"].tolist() == [2, 0, 1, 0, 0, 2]


def test_one_image_takes_one_region_or_several(processor: FineCaptionImageProcessor) -> None:
    image, mask = noise(40, 60), ellipse(40, 60, (0.5, 0.5), (0.3, 0.3))
    one = processor(image, masks=mask)["mask_values"]
    assert processor(image, masks=torch.from_numpy(mask))["mask_values"].equal(one)
    assert processor(image, masks=[mask])["mask_values"].equal(one)
    assert processor(image, masks=mask[None])["mask_values"].equal(one)
    assert processor(image, masks=mask[..., None])["mask_values"].equal(one)
    assert processor(image, masks=encode_rle(mask))["mask_values"].equal(one)
    assert processor(image, masks=encode_mask(mask))["mask_values"].equal(one)
    assert processor(image, masks=Image.fromarray(mask))["mask_values"].equal(one)
    assert processor(image, masks=[[5, 5, 9, 9], [0, 0, 60, 40]])["mask_values"].shape[0] == 2
    assert processor(image, masks=np.stack([mask, ~mask]))["mask_values"].shape[0] == 2


def test_images_may_come_as_one_array_or_nested(processor: FineCaptionImageProcessor) -> None:
    images = np.stack([noise(30, 40, seed) for seed in range(3)])
    expected = processor(list(images))
    for form in (images, [[images[0]], [], [images[1], images[2]]]):
        inputs = processor(form)
        assert all(inputs[name].equal(expected[name]) for name in expected)


def test_region_that_is_given_again_is_resized_once(
    processor: FineCaptionImageProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = image_processing_finecaption.as_mask
    monkeypatch.setattr(
        image_processing_finecaption, "as_mask", lambda *arguments: calls.append(1) or original(*arguments)
    )
    mask = ellipse(40, 60, (0.5, 0.5), (0.3, 0.3))
    other = mask.copy()
    images = [noise(40, 60), noise(40, 60, 1)]
    inputs = processor(images, masks=[mask, other, mask, mask, None, None], image_indices=[0, 0, 0, 1, 1, 1])
    assert len(calls) == 4
    assert inputs["mask_values"].shape == (6, 1, 84, 84)
    assert all(values.equal(inputs["mask_values"][0]) for values in inputs["mask_values"][1:4])


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"high_res_size": None, "do_mask": False},
        {"do_pad": False, "high_res_size": {"height": 512, "width": 512}, "resample": 2},
        {"image_mean": [0.1, 0.2, 0.3], "high_res_image_std": [0.4, 0.5, 0.6], "mask_mean": 0.25, "mask_std": 0.5},
    ],
)
def test_settings_survive_saving_and_loading(changes: dict[str, Any], tmp_path: Path) -> None:
    processor = FineCaptionImageProcessor(**changes)
    processor.save_pretrained(tmp_path)
    image = noise(40, 60)
    expected = processor(image)
    for loaded in (FineCaptionImageProcessor.from_pretrained(tmp_path), AutoImageProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is FineCaptionImageProcessor
        assert loaded.to_json_string() == FineCaptionImageProcessor.from_pretrained(tmp_path).to_json_string()
        inputs = loaded(image)
        assert list(inputs) == list(expected) == processor.model_input_names
        assert all(inputs[name].equal(expected[name]) for name in expected)
    saved = json.loads(loaded.to_json_string())
    assert {name: saved[name] for name in changes} == changes
    assert (
        FineCaptionImageProcessor(high_res_size=512, size=224).to_dict().items()
        >= {
            "high_res_size": {"height": 512, "width": 512},
            "size": {"height": 224, "width": 224},
        }.items()
    )


def test_settings_can_change_for_one_call(processor: FineCaptionImageProcessor) -> None:
    image = noise(40, 60)
    inputs = processor(image, do_pad=False, high_res_size=None, size={"height": 42, "width": 42}, mask_std=1.0)
    expected = FineCaptionImageProcessor(
        do_pad=False, high_res_size=None, size={"height": 42, "width": 42}, mask_std=1.0
    )(image)
    assert list(inputs) == list(expected)
    assert all(inputs[name].equal(expected[name]) for name in expected)
    assert processor(image)["high_res_pixel_values"].shape == (1, 3, 256, 256)


def test_packed_pixels_hold_all_of_each_region(processor: FineCaptionImageProcessor, tmp_path: Path) -> None:
    images, masks = [noise(40, 60), noise(50, 30)], [[[0, 0, 9, 9], [5, 5, 20, 30]], [None]]
    expected = processor(images, masks=masks)
    processor.do_pack = True
    processor.save_pretrained(tmp_path)
    packed = FineCaptionImageProcessor.from_pretrained(tmp_path)(images, masks=masks)
    assert set(packed) == {"pixel_values", "image_indices"} and packed["image_indices"].tolist() == [0, 1, 2]
    for row, mask, index in zip(packed["pixel_values"], expected["mask_values"], [0, 0, 1], strict=True):
        parts = (expected["pixel_values"][index], expected["high_res_pixel_values"][index], mask)
        assert row.equal(torch.cat([part.flatten() for part in parts]))


def test_without_masks_setting_leaves_them_out_and_says_so(
    processor: FineCaptionImageProcessor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    logging.get_logger("transformers").warning_once.cache_clear()
    image = noise(40, 60)
    inputs = processor(image, masks=[[0, 0, 9, 9]], do_mask=False)
    assert "mask_values" not in inputs
    assert inputs["image_indices"].tolist() == [0]
    assert "masks have no effect" in caplog.text


def test_numpy_arrays_on_request(processor: FineCaptionImageProcessor) -> None:
    expected = processor(noise(40, 60), return_tensors="pt")
    arrays = processor(noise(40, 60), return_tensors="np")
    for name, value in arrays.items():
        assert isinstance(value, np.ndarray)
        np.testing.assert_array_equal(value, expected[name].numpy())


def test_device_is_where_everything_ends_up(processor: FineCaptionImageProcessor) -> None:
    inputs = processor(noise(40, 60), masks=[[0, 0, 9, 9]], device="cpu")
    assert {value.device.type for value in inputs.values()} == {"cpu"}


@pytest.mark.gpu
def test_gpu_gives_what_the_cpu_gives() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    processor = FineCaptionImageProcessor()
    image, mask = noise(1080, 1920), ellipse(1080, 1920, (0.4, 0.6), (0.2, 0.1))
    expected = processor(image, masks=[mask, None, [3, 4, 5, 6]])
    inputs = processor(image, masks=[mask, None, [3, 4, 5, 6]], device="cuda")
    assert {value.device.type for value in inputs.values()} == {"cuda"}
    for name in ("pixel_values", "high_res_pixel_values"):
        # CUDA resizes in float and rounds once, the CPU after each of two passes: one grey level is 0.015.
        torch.testing.assert_close(inputs[name].cpu(), expected[name], atol=0.032, rtol=0)
    torch.testing.assert_close(inputs["mask_values"].cpu(), expected["mask_values"], atol=1e-3, rtol=0)
    assert inputs["image_indices"].cpu().equal(expected["image_indices"])


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ([], "no image"),
        ([[], []], "no image"),
        (np.zeros((0, 5, 3), np.uint8), r"shape \(0, 5, 3\)"),
        (Image.new("RGB", (0, 5)), "5x0"),
        (np.zeros((5, 5, 2), np.uint8), r"shape \(5, 5, 2\)"),
        (np.zeros(5, np.uint8), r"shape \(5,\)"),
        (np.full((5, 5, 3), 2.0), "floats from 0 to 1"),
        (np.full((5, 5, 3), -0.5), "floats from 0 to 1"),
        (np.full((5, 5, 3), np.nan), "floats from 0 to 1"),
        (np.full((5, 5, 3), 256), "whole numbers from 0 to 255"),
        (np.full((5, 5, 3), 60_000, np.uint16), "values from 60000 to 60000"),
        (np.full((5, 5, 3), -1), "whole numbers from 0 to 255"),
        (7, "int arrived as an image"),
        (None, "NoneType arrived as an image"),
    ],
)
def test_what_is_no_image_raises(image: Any, message: str, processor: FineCaptionImageProcessor) -> None:
    with pytest.raises(ValueError, match=message):
        processor(image)


@pytest.mark.parametrize(
    ("masks", "indices", "message"),
    [
        ([None], None, "1 entries in masks but 2 images"),
        ([None, None, None], None, "3 entries in masks but 2 images"),
        (np.ones((30, 40), bool), None, "One region reference"),
        ({"box_xyxy": [0, 0, 5, 5]}, None, "One region reference"),
        ([[0, 0, 5, 5], None], None, r"masks\[0\] is a bare list of numbers"),
        ([None, 5], None, r"masks\[1\] is a int"),
        ([None, []], None, "Image 1 of 2 has no region"),
        ([None], [0], "Image 1 of 2 has no region"),
        ([None, None], [0], "2 masks but 1 image_indices"),
        ([None, None], [0, 2], "image_indices holds 2"),
        ([None, None], [0, -1], "image_indices holds -1"),
        (None, [0.0, 1.0], "one whole number per region"),
        (None, [[0, 1]], "one whole number per region"),
        ([], [], "one whole number per region"),
    ],
)
def test_masks_that_do_not_match_the_images_raise(
    masks: Any, indices: Any, message: str, processor: FineCaptionImageProcessor
) -> None:
    with pytest.raises(ValueError, match=message):
        processor([noise(30, 40), noise(30, 40, 1)], masks=masks, image_indices=indices)


def test_bad_region_is_named(processor: FineCaptionImageProcessor) -> None:
    images = [noise(30, 40), noise(30, 40, 1)]
    with pytest.raises(MaskError, match=r"Region 3 \(of images\[1\]\)"):
        processor(images, masks=[[None, None], np.zeros((30, 40), bool)])
    with pytest.raises(MaskError, match=r"Region 1 \(of images\[0\]\).*30x40"):
        processor(images[0], masks=np.ones((40, 30), bool))


@pytest.mark.parametrize("setting", [{"do_resize": False}, {"do_center_crop": True, "crop_size": 42}])
def test_settings_without_one_geometry_raise(setting: dict[str, Any], processor: FineCaptionImageProcessor) -> None:
    with pytest.raises(ValueError, match="one geometry"):
        processor(noise(30, 40), **setting)
    with pytest.raises(ValueError, match="high_res_pixel_values does not say its height and width"):
        processor(noise(30, 40), high_res_size={"shortest_edge": 84})
