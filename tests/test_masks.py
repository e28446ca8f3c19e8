"""Region references: every form gives the same mask, and hostile input gives a MaskError.

References are independent of the code under test, such as pycocotools. RLE and blobs have further tests in
test_mask_codecs.py, boxes and polygons in test_polygons.py.
"""

import base64
import copy
import gzip
import io
import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mask_forms import (
    FORMS,
    HUGE,
    INF,
    NAN,
    ArrayLike,
    as_palette,
    as_rgba,
    assert_refused,
    assert_region,
    each,
    mask_or_error,
    png_file,
    quick,
    random_mask,
    region_masks,
)
from PIL import Image
from pycocotools import mask as coco

from finecaption_hf.data.encoding import encode_mask, encode_rle
from finecaption_hf.masks_finecaption import (
    MaskError,
    as_mask,
    box_around,
    decode_mask,
    decode_rle,
    is_region_reference,
)

# From inside pycocotools with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


# --- Forms of one and the same mask ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_mask(form):
    rng = np.random.default_rng(0)
    for height, width in ((7, 11), (1, 9), (9, 1), (1, 1), (64, 33)):
        mask = random_mask(rng, height, width)
        result = as_mask(FORMS[form](mask), height, width)
        assert_region(result, height, width)
        np.testing.assert_array_equal(result, mask)


@pytest.mark.parametrize("form", FORMS)
def test_reference_is_neither_changed_nor_shared(form):
    mask = random_mask(np.random.default_rng(1), 8, 12)
    reference = FORMS[form](mask)
    first = as_mask(reference, 8, 12)
    first[...] = ~first  # would show in the second reading, were memory shared
    np.testing.assert_array_equal(as_mask(reference, 8, 12), mask)
    if isinstance(reference, np.ndarray):
        assert not np.shares_memory(first, reference)


def test_none_is_the_whole_image_of_any_kind_of_size():
    mask = as_mask(None, np.int64(3), torch.tensor(5))
    assert_region(mask, 3, 5)
    assert mask.all()


def test_lists_and_dicts_are_not_changed():
    references = [
        [1.5, 2, 6, 7],
        [1, 1, 7, 1, 7, 7],
        [[1, 1], [7, 1], [7, 7]],
        [[1, 1, 7, 1, 7, 7], (0, 0, 3, 0, 3, 3)],
        {"polygon": np.array([[1.0, 1], [7, 1], [7, 7]])},
        {"type": "Polygon", "coordinates": [[[0, 0], [8, 0], [8, 8], [0, 0]], [[5, 3], [6, 3], [6, 4], [5, 3]]]},
    ]
    for reference in references:
        before = copy.deepcopy(reference)
        as_mask(reference, 8, 8)
        assert str(reference) == str(before)


def test_overlapping_regions_are_independent():
    a, b = as_mask([0, 0, 6, 6], 10, 10), as_mask([3, 3, 9, 9], 10, 10)
    assert a.sum() == b.sum() == 36
    assert (a & b).sum() == 9
    blobs = [encode_mask(a), encode_mask(b)]
    a[...] = True
    assert decode_mask(blobs[0], 10, 10).sum() == decode_mask(blobs[1], 10, 10).sum() == b.sum() == 36


def test_exif_orientation_turns_a_mask_image():
    mask = random_mask(np.random.default_rng(2), 6, 9)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise
    file = png_file(mask.astype(np.uint8) * 255, exif=exif)
    np.testing.assert_array_equal(as_mask(Image.open(file), 9, 6), np.rot90(mask, -1))


@pytest.mark.parametrize("kind", ["uint8", "bool", "tensor", "RGBA", "0/1"])
def test_colours_in_an_array_are_read_as_those_of_a_picture(kind):
    mask = random_mask(np.random.default_rng(3), 6, 9)
    colours = np.stack([mask.astype(np.uint8) * 255] * 3, axis=2)
    opaque = np.concatenate([colours, np.full((6, 9, 1), 255, np.uint8)], axis=2)
    forms = {"uint8": colours, "bool": colours > 0, "tensor": torch.from_numpy(colours), "RGBA": opaque}
    given = forms.get(kind, colours // 255)
    np.testing.assert_array_equal(as_mask(given, 6, 9), mask)
    assert is_region_reference(given)
    with pytest.raises(MaskError, match="coloured, so it does not say"):
        as_mask(np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8), 6, 9)
    # Several masks of a narrow picture stay several.
    assert not is_region_reference(np.ones((4, 9, 3), bool))
    assert is_region_reference(Sized())


class Sized:
    def __region_mask__(self, height, width):
        return np.ones((height, width), bool)


def test_mask_with_swapped_sides_is_not_told_to_be_transposed():
    # The picture may be shown turned by its EXIF orientation: the transposed mask would fit, and be wrong.
    with pytest.raises(MaskError, match=r"8x6 but the image is 6x8. Its sides are swapped.*exif_transpose") as caught:
        as_mask(np.ones((8, 6)), 6, 8)
    assert "mask.T" not in str(caught.value) and "transposed" not in str(caught.value)


def test_bool_bytes_above_one_do_not_leak():
    odd = np.frombuffer(b"\x00\x02\xff\x01", dtype=np.bool_).reshape(2, 2)
    assert as_mask(odd, 2, 2).view(np.uint8).tolist() == [[0, 1], [1, 1]]
    assert gzip.decompress(base64.b64decode(encode_mask(odd))) == b"\x00\x01\x01\x01"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_device_tensor_gives_the_same_mask():
    mask = random_mask(np.random.default_rng(3), 8, 9)
    tensor = torch.from_numpy(mask).to("cuda", torch.bfloat16)
    np.testing.assert_array_equal(as_mask(tensor, 8, 9), mask)


def test_is_region_reference_tells_references_from_containers():
    mask = np.ones((4, 5), dtype=np.uint8)
    shapes = [None, encode_mask(mask), encode_rle(mask), {"box_xyxy": [0, 0, 1, 1]}, {"polygon": [0, 0, 1, 1, 0, 1]}]
    arrays = [mask, mask[None], mask[..., None], torch.from_numpy(mask), torch.from_numpy(mask)[None], ArrayLike(mask)]
    for reference in (*shapes, *arrays, Image.fromarray(mask)):
        assert is_region_reference(reference) is True
    lists = [[0, 0, 1, 1], (0, 0, 1, 1), [mask], np.stack([mask] * 3), torch.ones(3, 4, 5)]
    others = [np.ones(4), np.float64(1), np.ndarray, 1, b"H4sI", Path("mask.png"), (x for x in ())]
    for other in (*lists, *others):
        assert is_region_reference(other) is False


@quick
@given(region_masks())
def test_box_around_a_mask_is_the_inverse_of_a_box(mask):
    x0, y0, x1, y1 = box = box_around(mask)
    assert all(type(value) is int for value in box)
    around = as_mask(list(box), *mask.shape)
    assert not (mask & ~around).any()
    for side in (mask[y0, :], mask[y1 - 1, :], mask[:, x0], mask[:, x1 - 1]):
        assert side.any()
    assert box_around(around) == box


@pytest.mark.parametrize("function", [encode_mask, encode_rle])
def test_functions_of_masks_take_the_same_arrays_and_refuse_the_same(function):
    mask = random_mask(np.random.default_rng(11), 6, 8)
    for form in ("uint8 0-255", "float32 0-255", "bfloat16 tensor 0-1", "PIL 1", "Fortran order", "negative strides"):
        assert function(FORMS[form](mask)) == function(mask)
    for wrong, message in (
        (np.zeros((6, 8), dtype=bool), "empty"),
        (np.ones((0, 8)), "empty"),
        (np.full((6, 8), 0.5), "Threshold"),
        (np.ones((2, 6, 8)), "two-dimensional"),
        (np.ones(6), "two-dimensional"),
        (None, "no region reference"),
        ("H4sI", "no region reference"),
        ([[True]], "no region reference"),
    ):
        with pytest.raises(MaskError, match=message):
            function(wrong)


# --- Whatever is wrong -----------------------------------------------------------------------------------------------


class Broken:
    def __array__(self, dtype=None, copy=None):
        raise KeyError("no array today")


class LateMask:
    def __array__(self, dtype=None, copy=None):
        raise MaskError("The mask 'a.png' is not there. Put it beside the pictures.")


def closed_image():
    image = Image.open(png_file(np.ones((6, 8), dtype=bool)))
    image.close()
    return image


def coloured(mode):
    return Image.fromarray(np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)).convert(mode)


ONES, EYE = np.ones((6, 8)), np.eye(6, 8)
TRUNCATED = Image.open(io.BytesIO(png_file(np.random.default_rng(10).random((6, 8)) < 0.5).getvalue()[:45]))
BAD_ARRAYS = [
    ("is empty.*at least one pixel", [ONES == 0, ONES.astype(np.uint8) * 0, ONES * 0, torch.zeros(6, 8)]),
    ("is empty.*at least one pixel", [Image.new("L", (8, 6))]),
    (r"such as 0.5 .*mask > 0.5", [ONES / 2]),
    (r"threshold it", [torch.linspace(0, 1, 48).reshape(6, 8), torch.linspace(-4, 4, 48).reshape(6, 8), ONES - 1e-9]),
    ("such as -1", [np.full((6, 8), -1)]),
    ("labels ==", [np.arange(48).reshape(6, 8)]),
    ("such as 7 .*labels ==", [EYE.astype(int) * 7]),
    ("binary", [EYE.astype(int) * 254 + 1]),
    ("such as 65535", [EYE.astype(np.uint16) * 65535]),
    ("threshold", [Image.linear_gradient("L").resize((8, 6))]),
    ("NaN or infinite", [np.where(EYE, NAN, 1.0), ONES * NAN, ONES * INF, torch.full((6, 8), NAN).bfloat16()]),
    ("mask is 5x8 but the image is 6x8. Give the mask at the image's size", [np.ones((5, 8))]),
    ("mask is 6x7 but the image is 6x8", [Image.new("L", (7, 6))]),
    ("sides are swapped", [np.ones((8, 6)), Image.new("L", (6, 8), 255)]),
    ("several regions", [np.ones((3, 6, 8)), torch.ones(2, 6, 8)]),
    ("6x8x3", [np.ones((6, 8, 3))]),
    ("1x1x6x8", [np.ones((1, 1, 6, 8))]),
    ("a single number", [np.float64(1.0), torch.tensor(True)]),
    ("box_xyxy.*'polygon'", [np.array([0, 0, 5, 5]), np.ones((5, 2))]),
    ("0x0", [np.ones((0, 0))]),
    ("dtype complex128", [ONES.astype(complex)]),
    ("dtype complex64", [torch.ones(6, 8, dtype=torch.complex64)]),
    ("dtype", [ONES.astype(object), ONES.astype(str), np.zeros((6, 8), dtype=[("a", int)])]),
    ("dtype datetime64", [ONES.astype(int).astype("M8[s]")]),
    ("filled", [np.ma.MaskedArray(ONES, mask=EYE)]),
    ("on meta", [torch.ones(6, 8, device="meta")]),
    ("dense", [torch.ones(6, 8).to_sparse()]),
    ("dense|mask is", [torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)]),
    ("1000000x1000000", [torch.ones(1, dtype=torch.bfloat16).expand(10**6, 10**6)]),
    ("gave no array .KeyError", [Broken()]),
    ("'a.png' is not there", [LateMask()]),
    ("gave no array", [ArrayLike([[1], [1, 2]])]),
    ("single number|no array", [np.ndarray]),
    ("coloured.*np.asarray", [coloured("RGB"), coloured("RGBA")]),
    ("mode 'CMYK'", [coloured("CMYK")]),
    ("mode 'HSV'", [coloured("HSV")]),
    ("mode 'P' is coloured.*label", [as_palette(EYE, (0, 0, 0, 128, 0, 0))]),
    ("getchannel", [as_rgba(ONES, EYE.astype(np.uint8) * 255)]),
    ("could not be decoded", [TRUNCATED, closed_image()]),
    ("ambiguous", [b"H4sI", bytearray(48), memoryview(bytes(48))]),
    ("open the file", [Path("mask.png")]),
    ("no region reference", [5, True, NAN, {1, 2, 3, 4}, range(4), io.BytesIO(), dict]),
    ("integer of 19932 bits", [HUGE]),
    ("type generator", [(x for x in [0, 0, 5, 5])]),
    ("list", [[ONES]]),
    ("one region.*one at a time", [[{"size": [6, 8], "counts": "0"}], ["H4sI", "H4sI"], [None]]),
    ("one region.*one at a time", [[Image.new("L", (8, 6))]]),
    ("no region", [{}, {1: 2, (3,): 4}, {"polygon": None}]),
    ("more than one region", [{"box_xyxy": [0, 0, 5, 5], "polygon": [0, 0, 5, 0, 5, 5]}]),
]


@pytest.mark.parametrize(("message", "reference"), each(BAD_ARRAYS))
def test_bad_reference_raises(message, reference):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nor may NaN and the like make numpy complain
        assert_refused(message, as_mask, reference, 6, 8)


SIZES = [(0, 5), (5, 0), (-1, 5), (5.0, 5), (True, 5), (None, 5), ("5", 5), (NAN, 5), (5, [5]), (10**9,) * 2, (HUGE, 5)]


@pytest.mark.parametrize(("height", "width"), SIZES, ids=lambda value: type(value).__name__)
def test_bad_image_size_raises(height, width):
    for reference in (None, "H4sI", [0, 0, 1, 1]):
        with pytest.raises(MaskError, match="in pixels"):
            as_mask(reference, height, width)
    with pytest.raises(MaskError, match="in pixels"):
        decode_mask("H4sI", height, width)


def test_mask_error_is_a_value_error():
    assert issubclass(MaskError, ValueError)


def test_list_that_holds_itself_raises():
    loop = []
    loop.append(loop)
    with pytest.raises(MaskError):
        as_mask(loop, 8, 8)
    loop.extend([loop] * 5)
    with pytest.raises(MaskError):
        as_mask({"type": "MultiPolygon", "coordinates": loop}, 8, 8)


numbers = st.integers() | st.floats() | st.integers(-2, 12) | st.sampled_from([0.5, 1e9, -0.0, 2**63, 1e-300])
leaves = st.none() | st.booleans() | numbers | st.text(max_size=8) | st.sampled_from(["Polygon", "MultiPolygon", "0T1"])
keys = st.sampled_from(["size", "counts", "box_xyxy", "polygon", "type", "coordinates", "bbox", "mask", "mask_file"])
json_values = st.recursive(
    leaves | st.lists(numbers, max_size=8) | st.lists(st.lists(numbers, min_size=2, max_size=2), max_size=6),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=12,
)


@settings(quick, max_examples=300)
@given(json_values)
def test_any_json_ends_in_a_mask_or_a_mask_error(value):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        mask_or_error(value, 6, 5)
        for key in ("box_xyxy", "polygon", "counts"):
            mask_or_error({"size": [6, 5], key: value}, 6, 5)
        for kind in ("Polygon", "MultiPolygon"):
            mask_or_error({"type": kind, "coordinates": value}, 6, 5)


dtypes = st.one_of(
    *(hnp.boolean_dtypes(), hnp.integer_dtypes(), hnp.unsigned_integer_dtypes(), hnp.floating_dtypes()),
    *(hnp.complex_number_dtypes(), hnp.unicode_string_dtypes(), hnp.datetime64_dtypes()),
)


@quick
@given(hnp.arrays(dtypes, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))
def test_any_array_ends_in_a_mask_or_a_mask_error(array):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mask = mask_or_error(array, 3, 3)
    if mask is not None:
        np.testing.assert_array_equal(mask, array.reshape(3, 3).astype(bool))
        assert set(np.unique(array.astype(float))) <= {0.0, array.astype(float).max()}


# --- Real regions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(27))
def test_real_region_is_the_same_in_every_form(index, real_regions):
    assert len(real_regions) == 27
    rle, expected = real_regions[index].rle, real_regions[index].mask
    height, width = expected.shape
    with Image.open(real_regions[index].image) as image:
        assert (image.height, image.width) == (height, width)
    np.testing.assert_array_equal(as_mask(rle, height, width), expected)
    np.testing.assert_array_equal(decode_rle(rle, height, width), expected)
    assert encode_rle(expected)["counts"] == rle["counts"]
    for form, make in FORMS.items():
        np.testing.assert_array_equal(as_mask(make(expected), height, width), expected, err_msg=form)
    # As polygons: one rectangle for each run of a row, which is exact; and with the box around it as a cut.
    runs = [np.flatnonzero(np.diff(row.astype(int), prepend=0, append=0)).reshape(-1, 2) for row in expected]
    rectangles = [[a, row, b, row, b, row + 1, a, row + 1] for row in range(height) for a, b in runs[row].tolist()]
    np.testing.assert_array_equal(as_mask(rectangles, height, width), expected)
    x0, y0, x1, y1 = box_around(expected)
    assert not (expected & ~as_mask([x0, y0, x1, y1], height, width)).any()
    assert expected[y0:y1, x0:x1].sum() == expected.sum()


def test_real_regions_of_one_image_stay_independent(real_regions):
    for image in {region.image for region in real_regions}:
        rles = [region.rle for region in real_regions if region.image == image]
        masks = [as_mask(rle, *rle["size"]) for rle in rles]
        overlaps = coco.iou(rles, rles, [0] * len(rles))
        for a, b in itertools.combinations(range(len(masks)), 2):
            assert not np.shares_memory(masks[a], masks[b])
            iou = (masks[a] & masks[b]).sum() / (masks[a] | masks[b]).sum()
            assert iou == pytest.approx(overlaps[a, b], abs=1e-9)
