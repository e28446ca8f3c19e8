"""Masks and their forms, for the tests of everything that turns region references into masks."""

import base64
import gzip
import io

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco

from finecaption_hf.data.encoding import encode_mask, encode_rle
from finecaption_hf.masks_finecaption import MaskError, as_mask

# Derandomised: a failure shows in every run or in none, and no example database is written.
quick = settings(deadline=None, derandomize=True, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
NAN, INF = float("nan"), float("inf")
HUGE = 10**6000  # str() of it raises
DEEP = []
for _ in range(5000):
    DEEP = [DEEP]


@st.composite
def region_masks(draw, max_side=24):
    """Non-empty bool arrays of shape (H, W)."""
    height, width = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    mask = draw(hnp.arrays(np.bool_, (height, width)))
    mask[draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))] = True
    return mask


def random_mask(rng, height, width):
    mask = rng.random((height, width)) < rng.choice([0.01, 0.2, 0.5, 0.95])
    mask[rng.integers(height), rng.integers(width)] = True
    return mask


def assert_region(mask, height, width):
    assert isinstance(mask, np.ndarray)
    assert (mask.dtype, mask.shape) == (np.bool_, (height, width))
    assert mask.flags.c_contiguous
    assert mask.any()
    assert mask.view(np.uint8).max() == 1


def mask_or_error(reference, height, width):
    """A mask, or None for a MaskError; every other exception fails the test that calls this."""
    try:
        mask = as_mask(reference, height, width)
    except MaskError:
        return None
    assert_region(mask, height, width)
    return mask


def each(table):
    """[(message, [references]), ..] -> one case for each reference, for `parametrize`."""
    cases = [(message, reference) for message, references in table for reference in references]
    return [pytest.param(message, reference, id=f"{i}-{message[:30]}") for i, (message, reference) in enumerate(cases)]


def assert_refused(message, call, *arguments):
    """Refused with this message (whatever its case), which is short and printable whatever arrived."""
    with pytest.raises(MaskError, match=f"(?i){message}") as caught:
        call(*arguments)
    text = str(caught.value)
    assert 40 < len(text) < 450
    assert text.endswith(".")
    assert text.isprintable()


def run_lengths(mask):
    columns = mask.T.ravel().astype(np.int8)
    runs = np.diff(np.flatnonzero(np.diff(columns, prepend=2, append=2))).tolist()
    return [0, *runs] if mask[0, 0] else runs


def blob_of(data, level=6):
    return base64.b64encode(gzip.compress(bytes(data), level, mtime=0)).decode()


def as_palette(mask, colours=(0, 0, 0, 255, 255, 255)):
    image = Image.fromarray(mask.astype(np.uint8))
    palette = Image.frombytes("P", image.size, image.tobytes())
    palette.putpalette(colours)
    return palette


def as_rgba(mask, alpha):
    grey = mask.astype(np.uint8) * 255
    return Image.fromarray(np.stack([grey, grey, grey, alpha], axis=-1))


def png_file(mask, **options):
    file = io.BytesIO()
    Image.fromarray(mask).save(file, format="PNG", **options)
    return file


class ArrayLike:
    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class ArraySubclass(np.ndarray):
    pass


FORMS = {
    "bool array": lambda m: m.copy(),
    "uint8 0-1": lambda m: m.astype(np.uint8),
    "uint8 0-255": lambda m: m.astype(np.uint8) * 255,
    "int64 0-1": lambda m: m.astype(np.int64),
    "uint16 0-255": lambda m: m.astype(np.uint16) * 255,
    "big-endian int32": lambda m: m.astype(">i4"),
    "float16 0-1": lambda m: m.astype(np.float16),
    "float32 0-255": lambda m: m.astype(np.float32) * 255,
    "float64 with -0.0": lambda m: np.where(m, 1.0, -0.0),
    "Fortran order": lambda m: np.asfortranarray(m),
    "negative strides": lambda m: np.ascontiguousarray(m[::-1, ::-1])[::-1, ::-1],
    "read-only": lambda m: np.frombuffer(m.tobytes(), dtype=np.bool_).reshape(m.shape),
    "(1, H, W)": lambda m: m[None].astype(np.uint8),
    "(H, W, 1)": lambda m: m[..., None].astype(np.uint8),
    "array subclass": lambda m: m.view(ArraySubclass),
    "masked array, nothing hidden": lambda m: np.ma.MaskedArray(m),
    "__array__": lambda m: ArrayLike(m),
    "bool tensor": lambda m: torch.from_numpy(m.copy()),
    "uint8 tensor 0-255": lambda m: torch.from_numpy(m.astype(np.uint8) * 255),
    "bfloat16 tensor 0-1": lambda m: torch.from_numpy(m.astype(np.float32)).to(torch.bfloat16),
    "bfloat16 tensor 0-255": lambda m: torch.from_numpy(m.astype(np.float32) * 255).to(torch.bfloat16),
    "float8 tensor": lambda m: torch.from_numpy(m.astype(np.float32)).to(torch.float8_e4m3fn),
    "uint16 tensor": lambda m: torch.from_numpy(m.astype(np.uint16)),
    "tensor with gradient": lambda m: torch.from_numpy(m.astype(np.float32)).requires_grad_(),
    "(1, H, W) tensor": lambda m: torch.from_numpy(m.astype(np.int64))[None],
    "tensor with lazy negative bit": lambda m: (
        torch.complex(torch.zeros(m.shape), -torch.from_numpy(m * 1.0).float()).conj().imag
    ),
    "transposed tensor": lambda m: torch.from_numpy(np.ascontiguousarray(m.T)).t(),
    "PIL 1": lambda m: Image.fromarray(m),
    "PIL L 0-1": lambda m: Image.fromarray(m.astype(np.uint8)),
    "PIL L 0-255": lambda m: Image.fromarray(m.astype(np.uint8) * 255),
    "PIL I": lambda m: Image.fromarray(m.astype(np.int32) * 255),
    "PIL I;16": lambda m: Image.fromarray(m.astype(np.uint16)),
    "PIL F": lambda m: Image.fromarray(m.astype(np.float32)),
    "PIL P, grey palette": as_palette,
    "PIL LA": lambda m: Image.fromarray(m.astype(np.uint8) * 255).convert("LA"),
    "PIL RGB": lambda m: Image.fromarray(m.astype(np.uint8) * 255).convert("RGB"),
    "PIL RGBA, opaque": lambda m: as_rgba(m, np.full(m.shape, 255, np.uint8)),
    "PIL RGBA, alpha as colour": lambda m: as_rgba(m, m.astype(np.uint8) * 255),
    "PNG file": lambda m: Image.open(png_file(m)),
    "blob": lambda m: encode_mask(m),
    "blob 0-255 by gzip": lambda m: blob_of(m.astype(np.uint8) * 255, level=9),
    "blob, stored": lambda m: blob_of(m.astype(np.uint8), level=0),
    "RLE str": lambda m: encode_rle(m),
    "RLE bytes by pycocotools": lambda m: coco.encode(np.asfortranarray(m.astype(np.uint8))),
    "RLE list": lambda m: {"size": list(m.shape), "counts": run_lengths(m)},
    "RLE list of JSON floats": lambda m: {
        "size": [float(m.shape[0]), float(m.shape[1])],
        "counts": [float(run) for run in run_lengths(m)],
    },
    "RLE numpy": lambda m: {"size": np.array(m.shape), "counts": np.array(run_lengths(m), dtype=np.uint32)},
    "RLE tensor": lambda m: {"size": m.shape, "counts": torch.tensor(run_lengths(m))},
    "RLE with other keys": lambda m: {**encode_rle(m), "area": int(m.sum()), "caption": "a dog"},
    "RLE of an Arrow struct": lambda m: {**encode_rle(m), "polygon": None, "box_xyxy": None},
}
