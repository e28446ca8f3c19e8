"""Region references: every form gives the same mask, and hostile input gives a MaskError.

References are independent of the code under test: pycocotools for RLE, gzip and base64 for blobs, and for polygons an
even-odd point test in exact fractions, pixel by pixel.
"""

import base64
import copy
import gzip
import io
import itertools
import json
import subprocess
import sys
import time
import tracemalloc
import warnings
import zlib
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco

from finecaption_hf import masks_finecaption
from finecaption_hf.masks_finecaption import (
    MaskError,
    as_mask,
    decode_mask,
    decode_rle,
    encode_mask,
    encode_rle,
    is_region_reference,
    mask_to_box,
)

ROOT = Path(__file__).resolve().parents[1]
REAL_REGIONS = next(
    (folder for folder in (ROOT / "shared/real_regions", ROOT.parent / "shared/real_regions") if folder.is_dir()), None
)

# From inside pycocotools with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

# Derandomised: a failure shows in every run or in none, and no example database is written.
quick = settings(deadline=None, derandomize=True, max_examples=100, suppress_health_check=[HealthCheck.too_slow])


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


def blob_of(data, level=6):
    return base64.b64encode(gzip.compress(bytes(data), level, mtime=0)).decode()


def assert_region(mask, height, width):
    assert isinstance(mask, np.ndarray)
    assert mask.dtype == np.bool_
    assert mask.shape == (height, width)
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


# --- Forms of one and the same mask ----------------------------------------------------------------------------------


def as_palette(mask):
    image = Image.fromarray(mask.astype(np.uint8))
    palette = Image.frombytes("P", image.size, image.tobytes())
    palette.putpalette([0, 0, 0, 255, 255, 255])
    return palette


def as_rgba(mask, alpha):
    grey = mask.astype(np.uint8) * 255
    return Image.fromarray(np.stack([grey, grey, grey, alpha], axis=-1))


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
}


def png_file(mask):
    file = io.BytesIO()
    Image.fromarray(mask).save(file, format="PNG")
    return file


def run_lengths(mask):
    columns = mask.T.ravel().astype(np.int8)
    runs = np.diff(np.flatnonzero(np.diff(columns, prepend=2, append=2))).tolist()
    return [0, *runs] if mask[0, 0] else runs


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


def test_none_is_the_whole_image():
    mask = as_mask(None, 3, 5)
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


def test_numpy_sizes_are_accepted():
    assert as_mask(None, np.int64(3), torch.tensor(5)).shape == (3, 5)


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
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, format="PNG", exif=exif)
    np.testing.assert_array_equal(as_mask(Image.open(file), 9, 6), np.rot90(mask, -1))


def test_bool_bytes_above_one_do_not_leak():
    odd = np.frombuffer(b"\x00\x02\xff\x01", dtype=np.bool_).reshape(2, 2)
    mask = as_mask(odd, 2, 2)
    assert mask.view(np.uint8).tolist() == [[0, 1], [1, 1]]
    assert gzip.decompress(base64.b64decode(encode_mask(odd))) == b"\x00\x01\x01\x01"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_device_tensor_gives_the_same_mask():
    mask = random_mask(np.random.default_rng(3), 8, 9)
    tensor = torch.from_numpy(mask).to("cuda", torch.bfloat16)
    np.testing.assert_array_equal(as_mask(tensor, 8, 9), mask)


def test_is_region_reference_tells_references_from_containers():
    mask = np.ones((4, 5), dtype=np.uint8)
    for reference in (
        None,
        encode_mask(mask),
        encode_rle(mask),
        {"box_xyxy": [0, 0, 1, 1]},
        {"polygon": [0, 0, 1, 1, 0, 1]},
        Image.fromarray(mask),
        mask,
        mask[None],
        mask[..., None],
        torch.from_numpy(mask),
        torch.from_numpy(mask)[None],
        ArrayLike(mask),
    ):
        assert is_region_reference(reference) is True
    for other in (
        [0, 0, 1, 1],
        (0, 0, 1, 1),
        [mask],
        np.stack([mask] * 3),
        torch.ones(3, 4, 5),
        np.ones(4),
        np.float64(1),
        np.ndarray,
        1,
        b"H4sI",
        Path("mask.png"),
        (x for x in ()),
    ):
        assert is_region_reference(other) is False


# --- Blobs -----------------------------------------------------------------------------------------------------------


@quick
@given(region_masks())
def test_blob_round_trip_is_exact(mask):
    blob = encode_mask(mask)
    assert blob == encode_mask(mask)  # deterministic
    decoded = decode_mask(blob, *mask.shape)
    assert_region(decoded, *mask.shape)
    np.testing.assert_array_equal(decoded, mask)
    assert encode_mask(decoded) == blob


@quick
@given(region_masks(), st.sampled_from([1, 255]), st.integers(0, 9))
def test_blob_is_byte_compatible_with_gzip_and_frombuffer(mask, top, level):
    pixels = np.frombuffer(gzip.decompress(base64.b64decode(encode_mask(mask))), dtype=np.uint8)
    np.testing.assert_array_equal(pixels.reshape(mask.shape), mask.astype(np.uint8))
    foreign = base64.b64encode(gzip.compress((mask.astype(np.uint8) * top).tobytes(), level)).decode()
    np.testing.assert_array_equal(decode_mask(foreign, *mask.shape), mask)


def test_blob_carries_no_time_and_no_name():
    raw = base64.b64decode(encode_mask(np.eye(4)))
    assert raw[3:8] == bytes(5)  # flags and modification time


def test_blob_with_a_file_name_is_accepted():
    mask = random_mask(np.random.default_rng(4), 16, 16)
    file = io.BytesIO()
    with gzip.GzipFile("entity_id_3.bin", "wb", fileobj=file) as stream:
        stream.write(mask.tobytes())
    np.testing.assert_array_equal(decode_mask(base64.b64encode(file.getvalue()).decode(), 16, 16), mask)


def test_incompressible_blob_passes_the_length_limit():
    # The most that an honest encoder needs: stored blocks, and fixed codes with 9 bits for each 255.
    mask = np.random.default_rng(5).random((300, 300)) < 0.5
    pixels = mask.astype(np.uint8) * 255
    fixed = zlib.compressobj(9, wbits=31, memLevel=1, strategy=zlib.Z_FIXED)
    for raw in (gzip.compress(pixels.tobytes(), 0), fixed.compress(pixels.tobytes()) + fixed.flush()):
        np.testing.assert_array_equal(decode_mask(base64.b64encode(raw).decode(), 300, 300), mask)


GOOD = np.eye(6, dtype=np.uint8)
GOOD_RAW = gzip.compress(GOOD.tobytes(), mtime=0)


def text(raw):
    return base64.b64encode(raw).decode()


BAD_BLOBS = {
    "empty": ("", "starts with 'H4sI'"),
    "path": ("masks/0001.png", "looks like a path"),
    "path without suffix": ("/data/masks/0001", "looks like a path"),
    "url": ("https://example.org/mask", "looks like a path or URL"),
    "data url": ("data:application/gzip;base64,H4sI", "looks like a path or URL"),
    "json": ('{"size": [6, 6]}', "json.loads"),
    "png in base64": (text(b"\x89PNG\r\n\x1a\n" + bytes(9)), "image file in base64"),
    "not gzip": (text(b"hello world!"), "starts with 'H4sI'"),
    "truncated base64": (text(GOOD_RAW)[:-3], "no intact base64.*truncated"),
    "truncated stream": (text(GOOD_RAW[:-9]), "truncated after 36 of 36"),
    "truncated trailer": (text(GOOD_RAW[:-1]), "truncated"),
    "header only": ("H4sI", "truncated after 0 of 36"),
    "not ASCII": (text(GOOD_RAW)[:-4] + "é===", "not ASCII"),
    "lone surrogate": (text(GOOD_RAW)[:8] + "\ud800", "not ASCII"),
    "line break": (text(GOOD_RAW)[:16] + "\n" + text(GOOD_RAW)[16:], "white space"),
    "trailing line break": (text(GOOD_RAW) + "\n", "base64"),
    "url-safe alphabet": (text(GOOD_RAW)[:-8] + "-_" + text(GOOD_RAW)[-6:], "alphabet"),
    "NUL": (text(GOOD_RAW)[:12] + "\0" + text(GOOD_RAW)[13:], "base64"),
    "surplus padding": (text(GOOD_RAW) + "====", "base64"),
    "text after padding": (text(GOOD_RAW + b"\0") + "AAAA", "base64|bytes follow"),
    "bad method": (text(b"\x1f\x8b\x07" + GOOD_RAW[3:]), "starts with 'H4sI'"),
    "bad flags": (text(GOOD_RAW[:3] + b"\xe0" + GOOD_RAW[4:]), "no intact gzip"),
    "bad deflate": (text(GOOD_RAW[:10] + b"\xff" + GOOD_RAW[11:]), "no intact gzip"),
    "bad checksum": (text(GOOD_RAW[:-8] + b"\0\0\0\0" + GOOD_RAW[-4:]), "no intact gzip.*data check"),
    "bad length": (text(GOOD_RAW[:-4] + b"\0\0\0\1"), "no intact gzip.*length check"),
    "trailing byte": (text(GOOD_RAW + b"\0"), "1 bytes follow"),
    "second member": (text(GOOD_RAW + GOOD_RAW), "bytes follow"),
    "empty second member": (text(GOOD_RAW + gzip.compress(b"")), "bytes follow"),
    "one byte short": (text(gzip.compress(GOOD.tobytes()[:-1])), "holds 35 bytes but a 6x6 mask has 36"),
    "one byte long": (text(gzip.compress(GOOD.tobytes() + b"\0")), "more than the 36 bytes"),
    "two members that sum": (text(gzip.compress(bytes([1] * 18)) * 2), "holds 18 bytes"),
    "nothing inside": (text(gzip.compress(b"")), "holds 0 bytes"),
    "huge file name": (
        text(GOOD_RAW[:3] + b"\x08" + GOOD_RAW[4:10] + b"a" * 5000 + b"\0" + GOOD_RAW[10:]),
        "needs more",
    ),
    "endless file name": (text(GOOD_RAW[:3] + b"\x08" + GOOD_RAW[4:10] + b"a" * 900), "truncated after 0"),
    "endless extra field": (
        text(GOOD_RAW[:3] + b"\x04" + GOOD_RAW[4:10] + b"\xff\xff" + b"a" * 900),
        "truncated after 0",
    ),
    "too long": ("H4sI" * 10_000, "has 40000 characters"),
    "empty mask": (text(gzip.compress(bytes(36))), "empty"),
    "soft values": (text(gzip.compress(bytes(range(36)))), "binary.*threshold"),
    "1 and 255": (text(gzip.compress(bytes([0, 1, 255] * 12))), "binary"),
    "values of 2": (text(gzip.compress(bytes([0, 2] * 18))), "such as 2 "),
}


@pytest.mark.parametrize("name", BAD_BLOBS)
def test_bad_blob_raises(name):
    blob, message = BAD_BLOBS[name]
    with pytest.raises(MaskError, match=message):
        decode_mask(blob, 6, 6)
    with pytest.raises(MaskError, match=message):
        as_mask(blob, 6, 6)


def test_blob_with_stray_bits_in_its_last_character_raises():
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    paddings = set()
    for name in (b"a\0", b"aa\0", b"aaa\0"):  # a file name of each length modulo 3
        raw = GOOD_RAW[:3] + b"\x08" + GOOD_RAW[4:10] + name + GOOD_RAW[10:]
        decode_mask(text(raw), 6, 6)
        bare, padding = text(raw).rstrip("="), text(raw).count("=")
        paddings.add(padding)
        if padding:
            stray = bare[:-1] + alphabet[alphabet.index(bare[-1]) + 1] + "=" * padding
            assert base64.b64decode(stray, validate=True) == raw  # the standard library lets it pass
            with pytest.raises(MaskError, match="no canonical base64"):
                decode_mask(stray, 6, 6)
    assert paddings == {0, 1, 2}


@pytest.mark.parametrize("blob", [text(GOOD_RAW).encode(), None, 5, GOOD, ["H4sI"]])
def test_blob_of_another_type_raises(blob):
    with pytest.raises(MaskError, match="arrived where a blob"):
        decode_mask(blob, 6, 6)


def test_blob_for_the_transposed_image_needs_only_the_same_number_of_pixels():
    # The format holds no shape: this is the one mistake that cannot be seen.
    assert decode_mask(encode_mask(np.ones((2, 3))), 3, 2).shape == (3, 2)


@pytest.fixture(scope="module")
def bomb():
    """About a megabyte of base64 that inflates to 1 GiB of zeros: one intact gzip member, checksum and all."""
    size, chunk = 2**30, bytes(2**22)
    deflate = zlib.compressobj(9, wbits=-15)
    deflate.compress(chunk)
    deflate.flush(zlib.Z_FULL_FLUSH)
    block = deflate.compress(chunk) + deflate.flush(zlib.Z_FULL_FLUSH)  # byte-aligned, so it can be repeated
    checksum = 0
    for _ in range(size // len(chunk)):
        checksum = zlib.crc32(chunk, checksum)
    end = zlib.compressobj(9, wbits=-15).flush()
    raw = b"\x1f\x8b\x08" + bytes(6) + b"\xff" + block * (size // len(chunk)) + end
    return text(raw + checksum.to_bytes(4, "little") + (size % 2**32).to_bytes(4, "little"))


def test_gzip_bomb_is_a_real_one(bomb):
    inflate, rest, size = zlib.decompressobj(wbits=31), base64.b64decode(bomb), 0
    while not inflate.eof:
        size += len(inflate.decompress(rest, 2**20))
        rest = inflate.unconsumed_tail
    assert size == 2**30  # zlib has checked checksum and length at this point


def test_gzip_bomb_stops_one_byte_past_the_mask(bomb, monkeypatch):
    produced = []

    class Spy:
        def __init__(self, wbits):
            self.real = zlib.decompressobj(wbits=wbits)

        def decompress(self, data, max_length):
            result = self.real.decompress(data, max_length)
            produced.append(len(result))
            return result

        def __getattr__(self, name):
            return getattr(self.real, name)

    class SpyZlib:
        error = zlib.error
        decompressobj = Spy

    monkeypatch.setattr(masks_finecaption, "zlib", SpyZlib)
    with pytest.raises(MaskError, match="more than the 1000000 bytes of a 1000x1000 mask"):
        decode_mask(bomb, 1000, 1000)
    assert produced == [1000 * 1000 + 1]


def test_gzip_bomb_keeps_the_memory_peak_small(bomb):
    """The peak of Python's allocators: pixels of the mask and copies of the text, nothing of the GiB."""
    tracemalloc.start()
    try:
        with pytest.raises(MaskError, match="more than"):
            decode_mask(bomb, 1000, 1000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    print(f"gzip bomb of {len(bomb)} characters, 1 GiB inflated, 1000x1000 mask: traced peak {peak / 2**20:.1f} MiB")
    # The mask's bytes twice (zlib's blocks, then joined), the text as bytes twice and decoded once.
    assert peak < 2 * 1_000_001 + 3 * len(bomb) + 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to reset the high-water mark of resident memory")
def test_gzip_bomb_keeps_the_process_small(bomb):
    """The same seen by the operating system, in a process of its own, with a control that the meter works."""
    program = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("masks", {masks_finecaption.__file__!r})
masks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(masks)
blob = sys.stdin.read()

def grown(call):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the high-water mark starts anew: importing torch took more than what is measured here
    def peak():
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024
    before = peak()
    call()
    return peak() - before

def decode():
    try:
        masks.decode_mask(blob, 1000, 1000)
    except masks.MaskError as error:
        assert "more than the 1000000 bytes" in str(error)
    else:
        raise AssertionError("no error")

print(grown(decode), grown(lambda: bytearray(64 * 2**20).count(1)))
"""
    done = subprocess.run([sys.executable, "-c", program], input=bomb, capture_output=True, text=True, timeout=120)
    if "clear_refs" in done.stderr:
        pytest.skip("/proc/self/clear_refs cannot be written here")
    assert done.returncode == 0, done.stderr
    grown, control = map(float, done.stdout.split())
    print(f"gzip bomb: resident memory grew by {grown:.1f} MiB (control of 64 MiB: {control:.1f} MiB)")
    assert control > 60
    assert grown < 16


def test_mutated_blobs_end_in_a_mask_or_a_mask_error():
    """At least 20,000 blobs, damaged below (gzip) and above (text) the base64; any other exception fails."""
    rng = np.random.default_rng(6)
    outcomes = Counter()
    for _ in range(24_000):
        height, width = rng.integers(1, 24, 2).tolist()
        mask = random_mask(rng, height, width)
        raw = bytearray(gzip.compress(mask.tobytes(), int(rng.integers(0, 10)), mtime=0))
        below = rng.random() < 0.6
        data = raw if below else bytearray(text(raw), "ascii")
        for _ in range(int(rng.integers(1, 4))):
            mutate(data, rng, header=10 if below else 16)
        blob = text(data) if below else data.decode("latin-1")
        result = mask_or_error(blob, height, width)
        outcomes["error" if result is None else "same" if (result == mask).all() else "other"] += 1
    print(dict(outcomes))
    assert outcomes.total() >= 20_000
    # The checksum leaves only damage that changes nothing (time stamp, level) or is made good by a second one.
    assert outcomes["error"] > 15_000
    assert outcomes["same"] > 500
    assert outcomes["other"] < 50


def mutate(data, rng, header):
    where = int(rng.integers(len(data) + 1))
    kind = rng.integers(8)
    if kind == 0 and data:  # flip a bit
        data[where % len(data)] ^= 1 << int(rng.integers(8))
    elif kind == 1 and data:  # another byte
        data[where % len(data)] = int(rng.integers(256))
    elif kind == 2:  # truncate
        del data[where:]
    elif kind == 3:  # insert
        data[where:where] = rng.bytes(int(rng.integers(1, 9)))
    elif kind == 4:  # duplicate a piece
        data[where:where] = data[: int(rng.integers(len(data) + 1))]
    elif kind == 5 and data:  # edit the header
        data[int(rng.integers(min(header, len(data))))] = int(rng.integers(256))
    elif kind == 6 and len(data) > 8:  # edit the end: checksum and length, or padding
        data[-int(rng.integers(1, 9))] = int(rng.integers(256))
    elif kind == 7:  # cut out a piece
        del data[where : where + int(rng.integers(1, 9))]


@quick
@given(region_masks(12), st.binary(max_size=40), st.integers(0, 60))
def test_any_bytes_in_a_blob_end_in_a_mask_or_a_mask_error(mask, junk, cut):
    raw = gzip.compress(mask.tobytes())
    for data in (b"\x1f\x8b\x08" + junk, raw[:cut] + junk, raw[:cut] + junk + raw[cut:], raw + junk):
        mask_or_error(text(data), *mask.shape)


# --- COCO RLE --------------------------------------------------------------------------------------------------------


@quick
@given(region_masks())
def test_rle_matches_pycocotools_both_ways(mask):
    rle = encode_rle(mask)
    reference = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert rle == {"size": list(mask.shape), "counts": reference["counts"].decode()}
    assert rle["size"] == reference["size"]
    np.testing.assert_array_equal(coco.decode(rle), mask)
    np.testing.assert_array_equal(decode_rle(reference), mask)
    np.testing.assert_array_equal(decode_rle(rle), mask)
    json.dumps(rle)


def test_rle_matches_pycocotools_on_long_runs():
    # Long and uneven runs: numbers of up to five chunks, positive and negative differences.
    rng = np.random.default_rng(7)
    for _ in range(40):
        height, width = rng.integers(300, 1500, 2)
        borders = np.sort(rng.choice(height * width, int(rng.integers(2, 12)) * 2, replace=False))
        flat = np.zeros(height * width, dtype=np.uint8)
        for start, end in borders.reshape(-1, 2):
            flat[start:end] = 1
        mask = flat.reshape(width, height).T
        rle = encode_rle(mask)
        assert rle["counts"].encode() == coco.encode(np.asfortranarray(mask))["counts"]
        np.testing.assert_array_equal(decode_rle(rle), mask)


@quick
@given(region_masks())
def test_uncompressed_rle_matches_pycocotools(mask):
    rle = {"size": list(mask.shape), "counts": run_lengths(mask)}
    np.testing.assert_array_equal(decode_rle(rle), mask)
    compressed = coco.frPyObjects(rle, *mask.shape)
    assert compressed["counts"].decode() == encode_rle(mask)["counts"]


def test_zero_length_runs_are_accepted():
    mask = decode_rle({"size": [2, 3], "counts": [0, 2, 0, 1, 3, 0]})
    np.testing.assert_array_equal(mask, [[1, 1, 0], [1, 0, 0]])


def rle(counts, size=(6, 6)):
    return {"size": size if not isinstance(size, tuple) else list(size), "counts": counts}


DEEP = []
for _ in range(5000):
    DEEP = [DEEP]
HUGE = 10**6000  # str() of it raises

BAD_RLES = {
    "no size": ({"counts": "0"}, "'size' is missing"),
    "no counts": ({"size": [6, 6], "polygon": None}, "'counts' is missing|no polygon"),
    "short sum": (rle([10, 10]), "sum to the 36 pixels.*but to 20"),
    "long sum": (rle([10, 10, 20]), "sum to the 36 pixels.*but to 40"),
    "no counts at all": (rle([]), "sum to the 36"),
    "empty text": (rle(""), "sum to the 36"),
    "negative": (rle([40, -4]), "between 0 and"),
    "negative that sums": (rle([30, -4, 10]), "run of -4 pixels"),
    "fraction": (rle([10.5, 25.5]), "not whole"),
    "NaN": (rle([float("nan"), 36]), "not whole"),
    "infinity": (rle([float("inf"), 36]), "not whole"),
    "bool": (rle([True, 35]), "type bool"),
    "str in list": (rle(["36"]), "type str"),
    "None in list": (rle([None, 36]), "type NoneType"),
    "nested": (rle([[36]]), "type list"),
    "huge integer": (rle([HUGE, 36]), "beyond"),
    "64-bit overflow": (rle([2**63, 2**63, 36]), "beyond"),
    "unsigned overflow": (rle([2**64 - 4, 40]), "beyond"),
    "wrapping sum": (rle([2**61] * 8 + [36]), "run of 2305843009213693952"),
    "counts of a wrong type": (rle(36), "arrived as the RLE's counts"),
    "counts None": (rle(None), "arrived as the RLE's counts"),
    "counts dict": (rle({}), "arrived as the RLE's counts"),
    "counts generator": (rle(x for x in [36]), "arrived as the RLE's counts"),
    "counts of strings": (rle(np.array(["36"])), "dtype"),
    "counts 2-D": (rle(np.ones((6, 6), dtype=int)), "shape"),
    "too many runs": (rle([0] * 100 + [0, 36]), "102 runs, more than 36"),
    "unterminated": (rle("P"), "middle of a number"),
    "unterminated end": (rle("0T1P"), "middle of a number"),
    "not ASCII": (rle("0é"), "not ASCII"),
    "bytes above 127": (rle(b"\xff\xfe"), "COCO uses '0' to 'o'"),
    "space": (rle("0 4"), "COCO uses '0' to 'o'"),
    "endless number": (rle("o" * 40 + "0"), "41 characters"),
    "big number": (rle("o" * 11 + "O"), "between 0 and"),
    "negative text": (rle("O"), "run of -1"),
    "long text": (rle("0" * 4000), "4000 characters, more than"),
    "empty mask": (rle([36]), "empty"),
    "empty mask text": (rle("T1"), "empty"),
    "size swapped": (rle([0, 24], (4, 6)), "RLE is 4x6 but the image is 6x6"),
    "size of floats": (rle([0, 36], (6.5, 6)), "no height"),
    "size NaN": (rle([0, 36], (float("nan"), 6)), "no height"),
    "size infinite": (rle([0, 36], (6, float("inf"))), "no width"),
    "size negative": (rle([0, 36], (-6, -6)), "no height"),
    "size zero": (rle([], (0, 0)), "no height"),
    "size bool": (rle([0, 1], (True, True)), "no height"),
    "size text": (rle([0, 36], "66"), "no RLE size"),
    "size of strings": (rle([0, 36], ("6", "6")), "no height"),
    "size of three": (rle([0, 36], (6, 6, 1)), "no RLE size"),
    "size None": (rle([0, 36], None), "no RLE size"),
    "size deep": (rle([0, 36], DEEP), "no RLE size"),
    "size huge": (rle([10**18], (10**9, 10**9)), "2\\*\\*40"),
    "size huge integers": (rle([HUGE], (HUGE, HUGE)), "2\\*\\*40"),
    "size large": (rle([0, 10**10], (10**5, 10**5)), "100000x100000"),
}


@pytest.mark.parametrize("name", BAD_RLES)
def test_bad_rle_raises(name):
    reference, message = BAD_RLES[name]
    with pytest.raises(MaskError, match=message):
        as_mask(reference, 6, 6)


def test_rle_of_another_type_raises():
    with pytest.raises(MaskError, match="COCO RLE is needed"):
        decode_rle("T1")


@pytest.mark.parametrize("size", [[10**9, 10**9], [30_000, 30_000]])
def test_rle_with_a_huge_size_allocates_nothing(size):
    reference = {"size": size, "counts": [0, size[0] * size[1]]}
    tracemalloc.start()
    try:
        with pytest.raises(MaskError):
            decode_rle(reference)
        with pytest.raises(MaskError):
            as_mask(reference, 10, 10)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_rle_swapped_size_is_named():
    with pytest.raises(MaskError, match=r"RLE is 4x6 but the image is 6x4. They are swapped"):
        as_mask(encode_rle(np.ones((4, 6))), 6, 4)


def test_mutated_rles_end_in_a_mask_or_a_mask_error():
    rng = np.random.default_rng(8)
    outcomes = Counter()
    for _ in range(8_000):
        height, width = rng.integers(1, 24, 2).tolist()
        data = bytearray(encode_rle(random_mask(rng, height, width))["counts"], "ascii")
        for _ in range(int(rng.integers(1, 3))):
            mutate(data, rng, header=4)
        if rng.random() < 0.5:  # stay in the alphabet, so that numbers and sums are put to the test
            data = bytearray(48 + byte % 64 for byte in data)
        counts = bytes(data) if rng.random() < 0.5 else data.decode("latin-1")
        outcomes[mask_or_error({"size": [height, width], "counts": counts}, height, width) is None] += 1
    assert outcomes[True] > 4_000
    assert outcomes[False] > 100


@quick
@given(st.lists(st.integers(-3, 12) | st.integers() | st.floats() | st.booleans() | st.none(), max_size=8))
def test_any_counts_end_in_a_mask_or_a_mask_error(counts):
    mask = mask_or_error({"size": [4, 3], "counts": counts}, 4, 3)
    if mask is not None:
        assert sum(counts) == 12


# --- Boxes -----------------------------------------------------------------------------------------------------------


def test_box_covers_exactly_its_pixels():
    mask = as_mask([1, 2, 4, 6], 8, 9)
    expected = np.zeros((8, 9), dtype=bool)
    expected[2:6, 1:4] = True
    np.testing.assert_array_equal(mask, expected)
    for reference in (
        (1, 2, 4, 6),
        {"box_xyxy": [1.0, 2.0, 4.0, 6.0]},
        {"box_xyxy": np.array([1, 2, 4, 6])},
        {"box_xyxy": torch.tensor([1, 2, 4, 6], dtype=torch.bfloat16)},
        list(torch.tensor([1.0, 2, 4, 6])),
        list(np.array([1, 2, 4, 6], dtype=np.float32)),
    ):
        np.testing.assert_array_equal(as_mask(reference, 8, 9), expected)


fraction_coordinates = st.integers(-60, 180).map(lambda n: n / 8) | st.floats(-8, 24)


@quick
@given(fraction_coordinates, fraction_coordinates, fraction_coordinates, fraction_coordinates)
def test_box_marks_the_pixels_whose_centres_it_holds(x0, y0, x1, y1):
    height, width = 13, 16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        mask = mask_or_error([x0, y0, x1, y1], height, width)
    if mask is None:
        assert x0 >= x1 or y0 >= y1 or x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height
        return
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    columns, rows = (x0 <= x) & (x < x1), (y0 <= y) & (y < y1)
    if not columns.any():  # thinner than a pixel: the one under the middle of what is inside the image
        columns[min(int((max(x0, 0) + min(x1, width)) / 2), width - 1)] = True
    if not rows.any():
        rows[min(int((max(y0, 0) + min(y1, height)) / 2), height - 1)] = True
    np.testing.assert_array_equal(mask, rows[:, None] & columns)


@quick
@given(region_masks())
def test_mask_to_box_is_the_inverse_of_a_box(mask):
    x0, y0, x1, y1 = box = mask_to_box(mask)
    assert all(type(value) is int for value in box)
    around = as_mask(list(box), *mask.shape)
    assert not (mask & ~around).any()
    for side in (mask[y0, :], mask[y1 - 1, :], mask[:, x0], mask[:, x1 - 1]):
        assert side.any()
    assert mask_to_box(around) == box


def test_partly_outside_box_is_clipped():
    np.testing.assert_array_equal(as_mask([-1e6, -0.4, 3, 1e6], 4, 6), as_mask([0, 0, 3, 4], 4, 6))


@pytest.mark.parametrize(
    ("box", "row", "column"),
    [
        ([2.6, 3.6, 3.4, 4.4], 4, 3),
        ([2.1, 3.1, 2.2, 3.2], 3, 2),
        ([5.9, 7.9, 50, 50], 7, 5),
        ([-9, -9, 0.1, 0.1], 0, 0),
        ([2.0, 3.0, float(np.nextafter(2, 3)), float(np.nextafter(3, 4))], 3, 2),
        ([float(np.nextafter(6, 0)), float(np.nextafter(8, 0)), 6, 8], 7, 5),
    ],
)
def test_box_thinner_than_a_pixel_does_not_vanish(box, row, column):
    mask = as_mask(box, 8, 6)
    assert mask.sum() == 1
    assert mask[row, column]


NAN, INF = float("nan"), float("inf")
BAD_BOXES = {
    "zero width": ([3, 1, 3, 5], "degenerate.*x0 < x1"),
    "inverted": ([5, 5, 1, 1], "degenerate"),
    "xywh": ([5, 5, 3, 2], r"x \+ width"),
    "outside left": ([-5, 0, -1, 5], "outside the image of 6x8"),
    "outside right": ([8, 0, 9, 5], "outside the image"),
    "outside above": ([0, -3, 5, 0], "outside the image"),
    "outside below": ([0, 6, 5, 9], "outside the image"),
    "NaN": ([0, 0, NAN, 5], "NaN or infinite"),
    "infinite": ([0, 0, INF, 5], "NaN or infinite"),
    "huge": ([0, 0, 1e300, 5], r"beyond 1e\+09"),
    "huge integer": ([0, 0, HUGE, 5], "too large"),
    "text": (["0", 0, 5, 5], "one region"),
    "None": ([0, 0, None, 5], "one region"),
    "bool": ([False, False, True, True], "type bool"),
    "complex": ([0, 0, 5j, 5], "type complex"),
    "bytes": ([b"0", 0, 5, 5], "type bytes"),
    "nested": ([0, 0, [5], 5], "mixes"),
    "three numbers": ([1, 2, 3], "at least three points"),
    "five numbers": ([1, 2, 3, 4, 5], "at least three points"),
    "two boxes": ([[0, 0, 5, 5], [1, 1, 3, 3]], "looks like boxes.*one region"),
    "one nested box": ([[0, 0, 5, 5]], "looks like boxes"),
    "dict of three": ({"box_xyxy": [1, 2, 3]}, "no box"),
    "dict None": ({"box_xyxy": None}, "no box"),
    "dict text": ({"box_xyxy": "1234"}, "no box"),
    "dict of dict": ({"box_xyxy": {"x": 1}}, "no box"),
    "dict of four boxes": ({"box_xyxy": np.ones((4, 4))}, "more than one box"),
    "dict of bools": ({"box_xyxy": np.ones(4, dtype=bool)}, "dtype bool"),
    "meta tensor": ({"box_xyxy": torch.ones(4, device="meta")}, "no readable"),
    "coco bbox": ({"bbox": [1, 2, 3, 4]}, r"x \+ width"),
}


@pytest.mark.parametrize("name", BAD_BOXES)
def test_bad_box_raises(name):
    reference, message = BAD_BOXES[name]
    with pytest.raises(MaskError, match=message):
        as_mask(reference, 6, 8)


@pytest.mark.parametrize("reference", [[0.1, 0.1, 0.9, 0.8], [0.1, 0.1, 0.9, 0.8, 0.2, 0.7]])
def test_coordinates_that_are_fractions_of_the_image_warn(reference):
    with pytest.warns(UserWarning, match="lie between 0 and 1.*multiply x by its width") as caught:
        assert as_mask(reference, 40, 50).sum() == 1
    assert caught[0].filename == __file__


# --- Polygons --------------------------------------------------------------------------------------------------------


def inside_even_odd(rings, x, y):
    """Whether (x, y) is inside by the even-odd rule, in exact fractions; left and top borders count as inside."""
    inside = False
    for ring in rings:
        for (ax, ay), (bx, by) in zip(ring, ring[1:] + ring[:1]):
            if (ay <= y) != (by <= y) and ax + (y - ay) * (bx - ax) / (by - ay) <= x:
                inside = not inside
    return inside


def reference_fill(rings, height, width):
    rings = [[(Fraction(x), Fraction(y)) for x, y in ring] for ring in rings]
    half = Fraction(1, 2)
    return np.array([[inside_even_odd(rings, c + half, r + half) for c in range(width)] for r in range(height)])


def runs_through(a, b, row, column):
    """Whether the segment from a to b runs through the open square of a pixel, in exact fractions (Liang-Barsky)."""
    enter, leave = Fraction(0), Fraction(1)
    for axis, low in ((0, column), (1, row)):
        start, run = Fraction(a[axis]), Fraction(b[axis]) - Fraction(a[axis])
        if run == 0:
            if not low < start < low + 1:
                return False
            continue
        near, far = sorted(((low - start) / run, (low + 1 - start) / run))
        enter, leave = max(enter, near), min(leave, far)
    return enter < leave


def polygon_rings(low, high, step, max_points=7):
    coordinate = st.integers(low * step, high * step).map(lambda n: n / step)
    return st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=max_points)


@quick
@given(polygon_rings(-3, 14, 4))
def test_polygon_matches_an_exact_even_odd_test(ring):
    """Self-crossing, repeated and clipped outlines; a quarter-pixel grid puts many vertices and edges on centres."""
    check_polygon(ring, 9, 11)


@quick
@given(polygon_rings(2, 5, 16, max_points=4))
def test_small_polygon_matches_an_exact_even_odd_test(ring):
    """Polygons of few pixels and less: the rule for those without a centre."""
    check_polygon(ring, 7, 7)


@quick
@given(
    # Rounded, since pieces below 1e-12 of an edge count as rounding errors; and so that fractions stay short.
    st.lists(st.tuples(*[st.floats(-5, 20, width=32).map(lambda v: round(v, 4))] * 2), min_size=3, max_size=6)
)
def test_polygon_of_any_floats_matches_an_exact_even_odd_test(ring):
    # Where an edge runs through a centre, rounding may decide; the grids above test those ties, where nothing rounds.
    assume(not any(near_centre(a, b) for a, b in zip(ring, ring[1:] + ring[:1])))
    check_polygon(ring, 9, 11)


def near_centre(a, b):
    """Whether the segment from a to b runs within 1e-9 of the centre of a pixel in its rows."""
    (ax, ay), (bx, by) = sorted((a, b), key=lambda point: point[1])
    rows = np.arange(np.ceil(ay - 0.5 - 1e-9), np.floor(by - 0.5 + 1e-9) + 1) + 0.5
    x = ax + (rows - ay) * (bx - ax) / (by - ay or 1)
    return bool((np.abs(x % 1 - 0.5) < 1e-9).any())


def check_polygon(ring, height, width):
    expected = reference_fill([ring], height, width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        mask = mask_or_error({"polygon": ring}, height, width)
    if not expected.any():  # without a centre, the pixels that the polygon reaches into are those of its edges
        edges = list(zip(ring, ring[1:] + ring[:1]))
        for row, column in itertools.product(range(height), range(width)):
            expected[row, column] = any(runs_through(a, b, row, column) for a, b in edges)
    if mask is None:
        (ax, ay), *others = [(Fraction(x), Fraction(y)) for x, y in ring]
        spread = max(abs((bx - ax) * (cy - ay) - (by - ay) * (cx - ax)) for bx, by in others for cx, cy in others)
        is_line = spread <= Fraction(1, 10**9)  # refused up to rounding
        assert is_line or not expected.any()
    else:
        np.testing.assert_array_equal(mask, expected)


@quick
@given(
    st.floats(-4, 20),
    st.floats(-4, 20),
    st.floats(1, 20),
    st.floats(1, 20),
)
def test_rectangle_as_polygon_equals_the_box(x, y, w, h):
    box = [x, y, x + w, y + h]
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    assert box[2] > x + 0.99 and box[3] > y + 0.99
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        a, b = mask_or_error(box, 13, 16), mask_or_error(polygon, 13, 16)
    assert (a is None) == (b is None)
    if a is not None and (a.sum(axis=0).max() > 1 and a.sum(axis=1).max() > 1):  # else the rules for thin shapes differ
        np.testing.assert_array_equal(a, b)


def test_all_spellings_of_a_polygon_give_the_same_mask():
    ring = [[1, 1], [9, 2], [8, 7], [2, 6]]
    flat = [1, 1, 9, 2, 8, 7, 2, 6]
    expected = reference_fill([ring], 9, 11)
    for reference in (
        flat,
        tuple(flat),
        ring,
        [tuple(point) for point in ring],
        ring[::-1],
        ring + ring[:1],
        [flat],
        [np.array(flat)],
        [np.array(point) for point in ring],
        {"polygon": flat},
        {"polygon": ring},
        {"polygon": [flat, flat]},
        {"polygon": np.array(ring)},
        {"polygon": np.array(flat, dtype=np.float32)},
        {"polygon": torch.tensor(ring, dtype=torch.float16)},
        {"type": "Polygon", "coordinates": [ring + ring[:1]]},
        {"type": "Polygon", "coordinates": [ring]},
        {"type": "Polygon", "coordinates": (np.array(ring),)},
        {"type": "MultiPolygon", "coordinates": [[ring]]},
    ):
        np.testing.assert_array_equal(as_mask(reference, 9, 11), expected)


def test_several_polygons_are_a_union():
    a, b = [1, 1, 7, 1, 7, 7, 1, 7], [4, 4, 10, 4, 10, 9, 4, 9]
    union = as_mask(a, 10, 12) | as_mask(b, 10, 12)
    np.testing.assert_array_equal(as_mask([a, b], 10, 12), union)  # even-odd over both would cut a hole here
    pairs = [[[[x, y] for x, y in zip(flat[::2], flat[1::2])]] for flat in (a, b)]
    np.testing.assert_array_equal(as_mask({"type": "MultiPolygon", "coordinates": pairs}, 10, 12), union)


def test_outside_parts_of_a_region_are_dropped():
    inside, outside = [1, 1, 7, 1, 7, 7], [50, 50, 60, 50, 60, 60]
    np.testing.assert_array_equal(as_mask([inside, outside], 10, 12), as_mask(inside, 10, 12))


def test_geojson_holes_are_cut_out():
    outline = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]
    hole, other = [[2, 2], [5, 2], [5, 5], [2, 5], [2, 2]], [[4, 4], [8, 4], [8, 8], [4, 8], [4, 4]]
    square = as_mask([0, 0, 10, 10], 12, 12)
    holes = as_mask([2, 2, 5, 5], 12, 12) | as_mask([4, 4, 8, 8], 12, 12)
    mask = as_mask({"type": "Polygon", "coordinates": [outline, hole, other]}, 12, 12)
    np.testing.assert_array_equal(mask, square & ~holes)  # overlapping holes do not fill each other
    island = [[3, 3], [4, 3], [4, 4], [3, 4], [3, 3]]
    mask = as_mask({"type": "MultiPolygon", "coordinates": [[outline, hole], [island]]}, 12, 12)
    assert not mask[2, 2]
    assert mask[3, 3]  # the hole of one polygon does not cut the other


@quick
@given(polygon_rings(-2, 12, 4, max_points=5), polygon_rings(0, 10, 4, max_points=5))
def test_holes_match_an_exact_test(outline, hole):
    expected = reference_fill([outline], 9, 11) & ~reference_fill([hole], 9, 11)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        mask = mask_or_error({"type": "Polygon", "coordinates": [outline, hole]}, 9, 11)
    if expected.any() and mask is not None:
        np.testing.assert_array_equal(mask, expected)
    elif expected.any():  # refused only where one of the rings is a line
        assert any(mask_or_error({"polygon": ring}, 9, 11) is None for ring in (outline, hole))


def test_pentagram_is_hollow():
    angles = np.pi * (0.8 * np.arange(5) - 0.5)
    star = np.stack([50 + 45 * np.cos(angles), 50 + 45 * np.sin(angles)], axis=1)
    mask = as_mask({"polygon": star}, 100, 100)
    assert not mask[50, 50]
    assert mask[10, 50]
    assert mask.sum() == reference_fill([star.tolist()], 100, 100).sum()


def test_neighbouring_polygons_share_no_pixel_and_leave_none():
    """Triangles around one point fill the image: every pixel belongs to exactly one of them."""
    rng = np.random.default_rng(9)
    height, width = 97, 131
    for _ in range(20):
        centre = rng.uniform([40, 30], [90, 70])
        if rng.random() < 0.3:
            centre = np.floor(centre) + 0.5  # on a pixel's centre, where ties are many
        x, y = np.sort(rng.integers(5, 125, (2, 3)) + rng.choice([0, 0.5]), axis=1), rng.integers(10, 90, 2) + 0.5
        border = [[0, 0], *([v, 0] for v in x[0]), [width, 0], [width, y[0]], [width, height]]
        border += [*([v, height] for v in x[1][::-1]), [0, height], [0, y[1]]]
        border = [point for point, following in zip(border, border[1:] + border[:1]) if point != following]
        count = np.zeros((height, width), dtype=int)
        for a, b in zip(border, border[1:] + border[:1]):
            count += as_mask({"polygon": [centre.tolist(), a, b]}, height, width)
        assert (count == 1).all()


@pytest.mark.parametrize(
    "polygon",
    [
        [2.1, 2.1, 2.3, 2.1, 2.2, 2.3],
        [1.0, 3.1, 9.0, 3.1, 9.0, 3.2, 1.0, 3.2],
        [4.9, 1, 5.1, 1, 5.1, 8, 4.9, 8],
        [0, 0, 10, 8, 10, 8.001],
        [-5, 3.1, 50, 3.1, 50, 3.2, -5, 3.2],
        [9.9, 1, 10, 1, 10, 7, 9.9, 7],
        [-3, 2, 0.2, 2, 0.2, 6, -3, 6],
    ],
)
def test_thin_polygon_does_not_vanish(polygon):
    mask = as_mask(polygon, 8, 10)
    x0, y0, x1, y1 = mask_to_box(mask)
    xs, ys = np.clip(polygon[::2], 0, 10), np.clip(polygon[1::2], 0, 8)
    assert x0 <= xs.min() and x1 >= xs.max()
    assert y0 <= ys.min() and y1 >= ys.max()
    assert mask[:, x0:x1].any(axis=0).all()  # without gaps


@pytest.mark.parametrize(
    "ring", [[(0, 2), (4, 0), (0, 1.99)], [(0, 0), (4, 2), (4, 1.99)], [(1, 4), (4, 1), (4, 1.01)]]
)
def test_sliver_through_grid_points_marks_no_pixel_beside_it(ring):
    check_polygon(ring, 9, 11)


def test_thin_part_of_a_region_does_not_vanish():
    mask = as_mask([[0, 0, 4, 0, 4, 4, 0, 4], [7.1, 6.1, 7.2, 6.1, 7.2, 6.2]], 8, 10)
    assert mask.sum() == 17
    assert mask[6, 7]


def test_thin_ring_with_a_hole_does_not_vanish():
    outline, hole = [[1, 1], [7, 1], [7, 7], [1, 7]], [[1.1, 1.1], [6.9, 1.1], [6.9, 6.9], [1.1, 6.9]]
    mask = as_mask({"type": "Polygon", "coordinates": [outline, hole]}, 9, 9)
    expected = as_mask(outline, 9, 9)
    expected[2:6, 2:6] = False
    np.testing.assert_array_equal(mask, expected)
    beside = [[7.2, 7.2], [8.2, 7.2], [8.2, 8.2], [7.2, 8.2]]  # a hole outside its polygon marks nothing
    np.testing.assert_array_equal(as_mask({"type": "Polygon", "coordinates": [outline, hole, beside]}, 9, 9), expected)


def square(size):
    return [[0, 0], [size, 0], [size, size], [0, size], [0, 0]]


BAD_POLYGONS = {
    "empty list": ([], "no polygon"),
    "empty polygon": ([[]], "at least three points"),
    "empty dict": ({"polygon": []}, "no polygon"),
    "two points": ([[1, 1], [5, 5]], "at least three points"),
    "odd count": ([1, 1, 5, 1, 5, 5, 3], "7 coordinates"),
    "one point thrice": ([2, 2, 2, 2, 2, 2], "degenerate"),
    "a line": ([1, 1, 3, 3, 5, 5], "degenerate.*one line"),
    "a line of fractions": ([0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.7, 0.7], "degenerate"),
    "second one a line": ([[0, 0, 4, 0, 4, 4], [1, 1, 3, 1, 5, 1]], "Polygon 2 of 2 is degenerate"),
    "all outside": ([20, 20, 30, 20, 30, 30], "covers no pixel.*outside"),
    "outside, negative": ([-20, -20, -10, -20, -10, -10], "outside"),
    "twice around": ([0, 0, 4, 0, 4, 4, 0, 4] * 2, "cancels itself"),
    "touching the border": ([-5, 0, 0, 0, 0, 5, -5, 5], "outside"),
    "around a corner": ([-1, -20, 30, 10, 30, -20], "outside"),
    "both outside": ([[20, 20, 30, 20, 30, 30], [-9, -9, -5, -9, -5, -5]], "outside"),
    "NaN": ([1, 1, 5, 1, NAN, 5], "NaN or infinite"),
    "infinite": ([1, 1, 5, 1, -INF, 5], "NaN or infinite"),
    "huge": ([1, 1, 5, 1, 1e10, 5], "beyond"),
    "huge integer": ([1, 1, 5, 1, HUGE, 5], "too large"),
    "text": ([1, 1, 5, 1, "5", 5], "one region"),
    "bool": ([[True, False], [True, True], [False, True]], "type bool"),
    "mixed": ([[1, 1], 5, [5, 5]], "mixes"),
    "mixed lengths": ([[1, 1], [5, 1, 5, 5, 1, 5]], "Polygon 1 of 2 has 2 coordinates"),
    "three dimensions": ([[1, 1, 0], [5, 1, 0], [5, 5, 0]], "at least three points"),
    "lists of points": ([[[1, 1], [5, 1], [5, 5]], [[2, 2], [3, 2], [3, 3]]], "GeoJSON"),
    "deep": (DEEP, "one|list|polygon"),
    "nested pixels": (np.eye(8, dtype=int).tolist(), r"np.array\(mask\)"),
    "nested bools": (np.eye(8, dtype=bool).tolist(), r"np.array\(mask\)"),
    "array of three columns": ({"polygon": np.ones((5, 3))}, "shape"),
    "array of text": ({"polygon": np.array([["1", "2"]] * 3)}, "dtype"),
    "dict of a number": ({"polygon": 3}, "no polygon"),
    "dict of text": ({"polygon": "1,1,5,1,5,5"}, "no polygon"),
    "dict of None": ({"polygon": None}, "no polygon"),
    "dict of a dict": ({"polygon": {"x": 1}}, "no polygon"),
    "dict of a box": ({"polygon": [0, 0, 5, 5]}, "at least three points"),
    "dict of a generator": ({"polygon": (x for x in [1])}, "no polygon"),
    "many points": ({"polygon": [0.5] * 2_000_002}, "more than 1000000"),
    "many polygons": ([[0, 0, 1, 0, 1, 1]] * 10_001, "10001 polygons"),
    "too complex": ({"polygon": np.tile([[0, 0], [4, 8], [8, 0]], (300_001, 1))}, "too complex"),
    "geojson point": ({"type": "Point", "coordinates": [1, 2]}, "Polygon or a MultiPolygon"),
    "geojson no type": ({"coordinates": [square(5)]}, "Polygon or a MultiPolygon"),
    "geojson odd type": ({"type": ["Polygon"], "coordinates": [square(5)]}, "Polygon or a MultiPolygon"),
    "geojson empty": ({"type": "Polygon", "coordinates": []}, "list of rings"),
    "geojson empty ring": ({"type": "Polygon", "coordinates": [[]]}, "at least three points"),
    "geojson empty multi": ({"type": "MultiPolygon", "coordinates": []}, "list of polygons"),
    "geojson None": ({"type": "Polygon", "coordinates": None}, "list of rings"),
    "geojson None in multi": ({"type": "MultiPolygon", "coordinates": [None]}, "list of rings"),
    "geojson ring None": ({"type": "Polygon", "coordinates": [None]}, "its points"),
    "geojson flat": ({"type": "Polygon", "coordinates": [0, 0, 5, 0, 5, 5]}, "its points"),
    "geojson flat ring": ({"type": "Polygon", "coordinates": [[0, 0, 5, 0, 5, 5]]}, "not a pair"),
    "geojson altitude": ({"type": "Polygon", "coordinates": [[[0, 0, 1], [5, 0, 1], [5, 5, 1]]]}, "not a pair"),
    "geojson deep": ({"type": "MultiPolygon", "coordinates": DEEP}, "pair|points|rings"),
    "geojson line": ({"type": "Polygon", "coordinates": [[[0, 0], [5, 5], [0, 0]]]}, "degenerate"),
    "geojson hole a line": (
        {"type": "Polygon", "coordinates": [square(5), [[1, 1], [2, 2], [3, 3]]]},
        "Ring 2 of polygon 1",
    ),
    "geojson hole as outline": ({"type": "Polygon", "coordinates": [square(5), square(5)]}, "holes leave nothing"),
    "geojson hole larger": ({"type": "Polygon", "coordinates": [square(5), square(7)]}, "holes leave nothing"),
    "geojson image in hole": (
        {
            "type": "Polygon",
            "coordinates": [[[-9, -9], [20, -9], [20, 20], [-9, 20]], [[-1, -1], [11, -1], [11, 11], [-1, 11]]],
        },
        "outside",
    ),
    "geojson many rings": ({"type": "Polygon", "coordinates": [square(5)] * 10_001}, "More than 10000 rings"),
    "geojson feature": ({"type": "Feature", "geometry": {}}, "pass its 'geometry'"),
    "coco annotation": ({"id": 3, "segmentation": []}, "pass its 'segmentation'"),
    "two forms": ({"box_xyxy": [0, 0, 5, 5], "polygon": [0, 0, 5, 0, 5, 5]}, "more than one region"),
    "empty": ({}, "no region"),
    "odd keys": ({1: 2, (3,): 4}, "no region"),
}


@pytest.mark.parametrize("name", BAD_POLYGONS)
def test_bad_polygon_raises(name):
    reference, message = BAD_POLYGONS[name]
    with pytest.raises(MaskError, match=message):
        as_mask(reference, 8, 8)


def test_list_that_holds_itself_raises():
    loop = []
    loop.append(loop)
    with pytest.raises(MaskError):
        as_mask(loop, 8, 8)
    loop.extend([loop] * 5)
    with pytest.raises(MaskError):
        as_mask({"type": "MultiPolygon", "coordinates": loop}, 8, 8)


def test_big_polygon_is_fast():
    """1,000 vertices on 24 megapixels; processor time, with a wide margin over the fifth of a second that it takes."""
    angles = np.linspace(0, 2 * np.pi, 1000, endpoint=False)
    radius = 1 + 0.3 * np.sin(37 * angles)
    ring = np.stack([3000 + 2200 * radius * np.cos(angles), 2000 + 1500 * radius * np.sin(angles)], axis=1).tolist()
    start = time.process_time()
    mask = as_mask(ring, 4000, 6000)
    assert time.process_time() - start < 2
    # The shoelace formula gives the area; pixels are right up to part of the outline's length.
    x, y = np.array(ring).T
    area = 0.5 * abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))
    assert mask.sum() == pytest.approx(area, rel=1e-3)


# --- Arrays, images and everything else that is wrong ----------------------------------------------------------------


class Broken:
    def __array__(self, dtype=None, copy=None):
        raise KeyError("no array today")


def truncated_png():
    file = io.BytesIO(png_file(np.random.default_rng(10).random((6, 8)) < 0.5).getvalue()[:45])
    return Image.open(file)


def closed_image():
    image = Image.open(png_file(np.ones((6, 8), dtype=bool)))
    image.close()
    return image


def coloured(mode):
    return Image.fromarray(np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)).convert(mode)


def voc_labels():
    image = Image.fromarray(np.eye(6, 8, dtype=np.uint8))
    palette = Image.frombytes("P", image.size, image.tobytes())
    palette.putpalette([0, 0, 0, 128, 0, 0])
    return palette


ONES = np.ones((6, 8))
BAD_ARRAYS = {
    "empty bool": (np.zeros((6, 8), dtype=bool), "empty.*at least one pixel"),
    "empty uint8": (np.zeros((6, 8), dtype=np.uint8), "empty"),
    "empty float": (np.zeros((6, 8)), "empty"),
    "empty tensor": (torch.zeros(6, 8), "empty"),
    "empty image": (Image.new("L", (8, 6)), "empty"),
    "soft": (np.full((6, 8), 0.5), r"such as 0.5 .*mask > 0.5"),
    "soft tensor": (torch.linspace(0, 1, 48).reshape(6, 8), "Threshold"),
    "logits": (torch.linspace(-4, 4, 48).reshape(6, 8), "Threshold"),
    "almost one": (np.full((6, 8), 1 - 1e-9), "Threshold"),
    "negative": (np.full((6, 8), -1), "such as -1"),
    "label map": (np.arange(48).reshape(6, 8), "labels =="),
    "one label of 7": (np.eye(6, 8, dtype=int) * 7, "such as 7 .*labels =="),
    "1 and 255": (np.eye(6, 8, dtype=int) * 254 + 1, "binary"),
    "16-bit full scale": (np.eye(6, 8, dtype=np.uint16) * 65535, "such as 65535"),
    "soft image": (Image.linear_gradient("L").resize((8, 6)), "threshold"),
    "NaN": (np.where(np.eye(6, 8), np.nan, 1.0), "NaN"),
    "all NaN": (np.full((6, 8), np.nan), "NaN"),
    "infinite": (np.full((6, 8), np.inf), "NaN or infinite"),
    "NaN tensor": (torch.full((6, 8), torch.nan, dtype=torch.bfloat16), "NaN"),
    "wrong size": (np.ones((5, 8)), "mask is 5x8 but the image is 6x8. Give the mask at the image's size"),
    "transposed": (np.ones((8, 6)), "8x6 but the image is 6x8. It seems to be transposed"),
    "wrong size image": (Image.new("L", (7, 6)), "mask is 6x7 but the image is 6x8"),
    "transposed image": (Image.new("L", (6, 8), 255), "transposed"),
    "stack": (np.ones((3, 6, 8)), "several regions"),
    "stack tensor": (torch.ones(2, 6, 8), "several regions"),
    "colours": (np.ones((6, 8, 3)), "6x8x3"),
    "four dimensions": (np.ones((1, 1, 6, 8)), "1x1x6x8"),
    "no dimensions": (np.float64(1.0), "a single number"),
    "no dimensions tensor": (torch.tensor(True), "a single number"),
    "box array": (np.array([0, 0, 5, 5]), "box_xyxy"),
    "polygon array": (np.ones((5, 2)), "'polygon'"),
    "no pixels": (np.ones((0, 0)), "0x0"),
    "complex": (ONES.astype(complex), "dtype complex128"),
    "complex tensor": (torch.ones(6, 8, dtype=torch.complex64), "dtype complex64"),
    "object": (ONES.astype(object), "dtype object"),
    "text array": (ONES.astype(str), "dtype"),
    "dates": (ONES.astype(int).astype("M8[s]"), "dtype datetime64"),
    "records": (np.zeros((6, 8), dtype=[("a", int)]), "dtype"),
    "hidden entries": (np.ma.MaskedArray(ONES, mask=np.eye(6, 8)), "filled"),
    "meta tensor": (torch.ones(6, 8, device="meta"), "on meta"),
    "sparse tensor": (torch.ones(6, 8).to_sparse(), "dense"),
    "nested tensor": (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged), "dense|mask is"),
    "expanded tensor": (torch.ones(1, dtype=torch.bfloat16).expand(10**6, 10**6), "1000000x1000000"),
    "broken __array__": (Broken(), "gave no array .KeyError"),
    "ragged __array__": (ArrayLike([[1], [1, 2]]), "gave no array"),
    "array class": (np.ndarray, "single number|no array"),
    "coloured image": (coloured("RGB"), "coloured.*np.asarray"),
    "coloured with alpha": (coloured("RGBA"), "coloured"),
    "CMYK image": (coloured("CMYK"), "mode 'CMYK'"),
    "HSV image": (coloured("HSV"), "mode 'HSV'"),
    "colour palette": (voc_labels(), "mode 'P' is coloured.*label"),
    "alpha says other": (as_rgba(np.ones((6, 8)), np.eye(6, 8).astype(np.uint8) * 255), "getchannel"),
    "truncated image": (truncated_png(), "could not be decoded"),
    "closed image": (closed_image(), "could not be decoded"),
    "bytes": (b"H4sI", "ambiguous"),
    "bytearray": (bytearray(48), "ambiguous"),
    "memoryview": (memoryview(bytes(48)), "ambiguous"),
    "path": (Path("mask.png"), "open the file"),
    "number": (5, "no region reference"),
    "huge number": (HUGE, "integer of 19932 bits"),
    "bool": (True, "no region reference"),
    "float": (NAN, "no region reference"),
    "set": ({1, 2, 3, 4}, "no region reference"),
    "range": (range(4), "no region reference"),
    "generator": ((x for x in [0, 0, 5, 5]), "type generator"),
    "file": (io.BytesIO(), "no region reference"),
    "class": (dict, "no region reference"),
    "list of masks": ([ONES], "list"),
    "list of RLE": ([{"size": [6, 8], "counts": "0"}], "one region.*one at a time"),
    "list of blobs": (["H4sI", "H4sI"], "one region"),
    "list of None": ([None], "one region"),
    "list of images": ([Image.new("L", (8, 6))], "one region"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_reference_raises(name):
    reference, message = BAD_ARRAYS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nor may NaN and the like make numpy complain
        with pytest.raises(MaskError, match=f"(?i){message}"):
            as_mask(reference, 6, 8)


@pytest.mark.parametrize(
    ("height", "width"),
    [(0, 5), (5, 0), (-1, 5), (5.0, 5), (True, 5), (None, 5), ("5", 5), (NAN, 5), (5, [5]), (10**9, 10**9), (HUGE, 5)],
    ids=lambda value: type(value).__name__,
)
def test_bad_image_size_raises(height, width):
    for reference in (None, "H4sI", [0, 0, 1, 1]):
        with pytest.raises(MaskError, match="in pixels"):
            as_mask(reference, height, width)
    with pytest.raises(MaskError, match="in pixels"):
        decode_mask("H4sI", height, width)


@pytest.mark.parametrize("function", [encode_mask, encode_rle, mask_to_box])
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


def test_mask_error_is_a_value_error():
    assert issubclass(MaskError, ValueError)


def test_error_messages_are_short_whatever_arrived():
    tables = ((BAD_BLOBS, 6, 6), (BAD_RLES, 6, 6), (BAD_BOXES, 6, 8), (BAD_POLYGONS, 8, 8), (BAD_ARRAYS, 6, 8))
    for table, height, width in tables:
        for name, (reference, _) in table.items():
            with pytest.raises(MaskError) as caught:
                as_mask(reference, height, width)
            message = str(caught.value)
            assert 40 < len(message) < 450, name
            assert message.endswith("."), name
            assert message.isprintable(), name


numbers = st.integers() | st.floats() | st.integers(-2, 12) | st.sampled_from([0.5, 1e9, -0.0, 2**63, 1e-300])
leaves = st.none() | st.booleans() | numbers | st.text(max_size=8) | st.sampled_from(["Polygon", "MultiPolygon", "0T1"])
json_values = st.recursive(
    leaves | st.lists(numbers, max_size=8) | st.lists(st.lists(numbers, min_size=2, max_size=2), max_size=6),
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.dictionaries(
            st.sampled_from(["size", "counts", "box_xyxy", "polygon", "type", "coordinates", "bbox"]), inner, max_size=3
        )
    ),
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


@quick
@given(
    hnp.arrays(
        st.one_of(
            hnp.boolean_dtypes(),
            hnp.integer_dtypes(),
            hnp.unsigned_integer_dtypes(),
            hnp.floating_dtypes(),
            hnp.complex_number_dtypes(),
            hnp.unicode_string_dtypes(),
            hnp.datetime64_dtypes(),
        ),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    )
)
def test_any_array_ends_in_a_mask_or_a_mask_error(array):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mask = mask_or_error(array, 3, 3)
    if mask is not None:
        np.testing.assert_array_equal(mask, array.reshape(3, 3).astype(bool))
        assert set(np.unique(array.astype(float))) <= {0.0, array.astype(float).max()}


# --- Real regions ----------------------------------------------------------------------------------------------------


def real_regions():
    if REAL_REGIONS is None:
        pytest.skip("no folder shared/real_regions beside or in the repository")
    lines = (REAL_REGIONS / "regions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("index", range(27))
def test_real_region_is_the_same_in_every_form(index):
    regions = real_regions()
    assert len(regions) == 27
    segmentation = regions[index]["segmentation"]
    height, width = segmentation["size"]
    with Image.open(REAL_REGIONS / regions[index]["image"]) as image:
        assert (image.height, image.width) == (height, width)
    expected = coco.decode(segmentation).astype(bool)
    np.testing.assert_array_equal(as_mask(segmentation, height, width), expected)
    np.testing.assert_array_equal(decode_rle(segmentation), expected)
    assert encode_rle(expected)["counts"] == segmentation["counts"]
    for form, make in FORMS.items():
        np.testing.assert_array_equal(as_mask(make(expected), height, width), expected, err_msg=form)
    # As polygons: one rectangle for each run of a row, which is exact; and with the box around it as a cut.
    rectangles = [
        [start, row, end, row, end, row + 1, start, row + 1]
        for row in range(height)
        for start, end in np.flatnonzero(np.diff(expected[row].astype(int), prepend=0, append=0))
        .reshape(-1, 2)
        .tolist()
    ]
    np.testing.assert_array_equal(as_mask(rectangles, height, width), expected)
    x0, y0, x1, y1 = mask_to_box(expected)
    assert not (expected & ~as_mask([x0, y0, x1, y1], height, width)).any()
    assert expected[y0:y1, x0:x1].sum() == expected.sum()


def test_real_regions_of_one_image_stay_independent():
    by_image = {}
    for region in real_regions():
        by_image.setdefault(region["image"], []).append(region["segmentation"])
    for segmentations in by_image.values():
        height, width = segmentations[0]["size"]
        masks = [as_mask(segmentation, height, width) for segmentation in segmentations]
        overlaps = coco.iou(segmentations, segmentations, [0] * len(segmentations))
        for a, b in itertools.combinations(range(len(masks)), 2):
            assert not np.shares_memory(masks[a], masks[b])
            iou = (masks[a] & masks[b]).sum() / (masks[a] | masks[b]).sum()
            assert iou == pytest.approx(overlaps[a, b], abs=1e-9)
