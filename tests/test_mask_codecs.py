"""Blobs against gzip and base64, RLE against pycocotools, and hostile text against time and memory."""

import base64
import gzip
import io
import json
import subprocess
import sys
import tracemalloc
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mask_forms import (
    HUGE,
    INF,
    NAN,
    assert_refused,
    assert_region,
    blob_of,
    each,
    mask_or_error,
    quick,
    random_mask,
    region_masks,
    run_lengths,
)
from pycocotools import mask as coco

from finecaption_hf import mask_codecs_finecaption
from finecaption_hf.data.encoding import encode_mask, encode_rle
from finecaption_hf.masks_finecaption import MaskError, as_mask, decode_mask, decode_rle

# From inside pycocotools with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

# --- Blobs -----------------------------------------------------------------------------------------------------------


@quick
@given(region_masks())
def test_blob_round_trip_is_exact(mask):
    blob = encode_mask(mask)
    assert blob == encode_mask(mask)
    assert base64.b64decode(blob)[3:8] == bytes(5)  # flags and modification time: the same on every day
    decoded = decode_mask(blob, *mask.shape)
    assert_region(decoded, *mask.shape)
    np.testing.assert_array_equal(decoded, mask)
    assert encode_mask(decoded) == blob


@quick
@given(region_masks(), st.sampled_from([1, 255]), st.integers(0, 9))
def test_blob_is_byte_compatible_with_gzip_and_frombuffer(mask, top, level):
    pixels = np.frombuffer(gzip.decompress(base64.b64decode(encode_mask(mask))), dtype=np.uint8)
    np.testing.assert_array_equal(pixels.reshape(mask.shape), mask.astype(np.uint8))
    foreign = blob_of((mask.astype(np.uint8) * top).tobytes(), level)
    np.testing.assert_array_equal(decode_mask(foreign, *mask.shape), mask)


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


BAD_BLOBS = [
    ("starts with 'H4sI'", ["", text(b"hello world!"), text(b"\x1f\x8b\x07" + GOOD_RAW[3:])]),
    ("looks like a path or URL", ["masks/0001.png", "/data/masks/0001", "https://example.org/mask"]),
    ("looks like a path or URL", ["data:application/gzip;base64,H4sI"]),
    ("json.loads", ['{"size": [6, 6]}']),
    ("image file in base64", [text(b"\x89PNG\r\n\x1a\n" + bytes(9))]),
    ("no intact base64.*truncated", [text(GOOD_RAW)[:-3]]),
    ("truncated after 36 of 36", [text(GOOD_RAW[:-9]), text(GOOD_RAW[:-1])]),
    ("truncated after 0 of 36", ["H4sI"]),
    ("'ascii' codec", [text(GOOD_RAW)[:-4] + "é===", text(GOOD_RAW)[:8] + "\ud800"]),
    ("white space", [text(GOOD_RAW)[:16] + "\n" + text(GOOD_RAW)[16:]]),
    ("alphabet", [text(GOOD_RAW)[:-8] + "-_" + text(GOOD_RAW)[-6:]]),
    # A trailing line break, NUL, surplus padding.
    ("base64", [text(GOOD_RAW) + "\n", text(GOOD_RAW)[:12] + "\0" + text(GOOD_RAW)[13:], text(GOOD_RAW) + "===="]),
    ("base64|bytes follow", [text(GOOD_RAW + b"\0") + "AAAA"]),
    # Bad flags, bad deflate.
    ("no intact gzip", [text(GOOD_RAW[:3] + b"\xe0" + GOOD_RAW[4:]), text(GOOD_RAW[:10] + b"\xff" + GOOD_RAW[11:])]),
    ("no intact gzip.*data check", [text(GOOD_RAW[:-8] + b"\0\0\0\0" + GOOD_RAW[-4:])]),
    ("no intact gzip.*length check", [text(GOOD_RAW[:-4] + b"\0\0\0\1")]),
    ("1 bytes follow", [text(GOOD_RAW + b"\0")]),
    ("bytes follow", [text(GOOD_RAW + GOOD_RAW), text(GOOD_RAW + gzip.compress(b""))]),
    ("holds 35 bytes but a 6x6 mask has 36", [blob_of(GOOD.tobytes()[:-1])]),
    ("more than the 36 bytes", [blob_of(GOOD.tobytes() + b"\0")]),
    ("holds 18 bytes", [text(gzip.compress(bytes([1] * 18)) * 2)]),
    ("holds 0 bytes", [blob_of(b"")]),
    # A huge file name, then an endless one and an endless extra field.
    ("needs more", [text(GOOD_RAW[:3] + b"\x08" + GOOD_RAW[4:10] + b"a" * 5000 + b"\0" + GOOD_RAW[10:])]),
    ("truncated after 0", [text(GOOD_RAW[:3] + b"\x08" + GOOD_RAW[4:10] + b"a" * 900)]),
    ("truncated after 0", [text(GOOD_RAW[:3] + b"\x04" + GOOD_RAW[4:10] + b"\xff\xff" + b"a" * 900)]),
    ("has 40000 characters", ["H4sI" * 10_000]),
    ("is empty", [blob_of(bytes(36))]),
    ("binary.*threshold", [blob_of(bytes(range(36)))]),
    ("binary", [blob_of(bytes([0, 1, 255] * 12))]),
    ("such as 2 ", [blob_of(bytes([0, 2] * 18))]),
]


@pytest.mark.parametrize(("message", "blob"), each(BAD_BLOBS))
def test_bad_blob_raises(message, blob):
    assert_refused(message, decode_mask, blob, 6, 6)
    assert_refused(message, as_mask, blob, 6, 6)


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
    raw += checksum.to_bytes(4, "little") + (size % 2**32).to_bytes(4, "little")
    inflate, rest, inflated = zlib.decompressobj(wbits=31), raw, 0
    while not inflate.eof:
        inflated += len(inflate.decompress(rest, 2**20))
        rest = inflate.unconsumed_tail
    assert inflated == size  # zlib has checked checksum and length at this point
    return text(raw)


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

    monkeypatch.setattr(mask_codecs_finecaption, "zlib", SpyZlib)
    with pytest.raises(MaskError, match="more than the 1000000 bytes of a 1000x1000 mask"):
        decode_mask(bomb, 1000, 1000)
    assert produced == [1000 * 1000 + 1]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to reset the high-water mark of resident memory")
def test_gzip_bomb_keeps_the_process_small(bomb):
    """As the operating system sees it, in a process of its own, with a control that the meter works."""
    program = """
import sys
from finecaption_hf import masks_finecaption as masks

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
    done = subprocess.run([sys.executable, "-c", program], input=bomb, capture_output=True, text=True, timeout=300)
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
    np.testing.assert_array_equal(decode_rle(reference, *mask.shape), mask)
    np.testing.assert_array_equal(decode_rle(rle, *mask.shape), mask)
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
        np.testing.assert_array_equal(decode_rle(rle, *mask.shape), mask)


@quick
@given(region_masks())
def test_uncompressed_rle_matches_pycocotools(mask):
    rle = {"size": list(mask.shape), "counts": run_lengths(mask)}
    np.testing.assert_array_equal(decode_rle(rle, *mask.shape), mask)
    compressed = coco.frPyObjects(rle, *mask.shape)
    assert compressed["counts"].decode() == encode_rle(mask)["counts"]


def test_zero_length_runs_are_accepted():
    mask = decode_rle({"size": [2, 3], "counts": [0, 2, 0, 1, 3, 0]}, 2, 3)
    np.testing.assert_array_equal(mask, [[1, 1, 0], [1, 0, 0]])


def rle(counts, size=(6, 6)):
    return {"size": size if not isinstance(size, tuple) else list(size), "counts": counts}


BAD_RLES = [
    ("'size' is missing", [{"counts": "0"}, rle([0, 36], None)]),
    ("no region", [{"size": [6, 6], "polygon": None}, rle(None)]),
    ("sum to the 36 pixels.*but to 20", [rle([10, 10])]),
    ("sum to the 36 pixels.*but to 40", [rle([10, 10, 20])]),
    ("sum to the 36", [rle([]), rle("")]),
    ("sum to the 36 pixels.*but to 36, in runs of -4 to", [rle([40, -4]), rle([30, -4, 10])]),
    ("not whole", [rle([10.5, 25.5]), rle([NAN, 36]), rle([INF, 36])]),
    ("type bool", [rle([True, 35])]),
    ("type str", [rle(["36"])]),
    ("type NoneType", [rle([None, 36])]),
    ("type list", [rle([[36]])]),
    ("beyond", [rle([HUGE, 36]), rle([2**63, 2**63, 36]), rle([2**64 - 4, 40])]),
    ("to 2305843009213693952", [rle([2**61] * 8 + [36])]),
    ("arrived as the RLE's counts", [rle(36), rle({}), rle(x for x in [36])]),
    ("dtype", [rle(np.array(["36"]))]),
    ("shape", [rle(np.ones((6, 6), dtype=int))]),
    ("102 runs, more than 36", [rle([0] * 100 + [0, 36])]),
    ("middle of a number", [rle("P"), rle("0T1P")]),
    ("COCO uses '0' to 'o'", [rle(b"\xff\xfe"), rle("0 4"), rle("0é"), rle("0\ud800")]),
    ("a number beyond all sizes", [rle("o" * 40 + "0"), rle("o" * 11 + "O")]),
    ("in runs of -1 to -1", [rle("O"), rle("O" * 40)]),
    ("sum to the 36", [rle("oooooooo0" * 8)]),  # would overflow, were they all summed up
    ("4000 characters, more than", [rle("0" * 4000)]),
    ("is empty", [rle([36]), rle("T1")]),
    ("RLE is 4x6 but the image is 6x6", [rle([0, 24], (4, 6))]),
    ("the value 6.5 arrived for the height", [rle([0, 36], (6.5, 6))]),
    ("positive int", [rle([0, 36], (NAN, 6)), rle([0, 36], (-6, -6)), rle([], (0, 0)), rle([0, 36], (6, INF))]),
    ("positive int", [rle([0, 1], (True, True)), rle([0, 36], ("6", "6"))]),
    ("no RLE size", [rle([0, 36], "66"), rle([0, 36], (6, 6, 1))]),
    ("2\\*\\*40", [rle([10**18], (10**9, 10**9)), rle([HUGE], (HUGE, HUGE))]),
    ("100000x100000", [rle([0, 10**10], (10**5, 10**5))]),
]


@pytest.mark.parametrize(("message", "reference"), each(BAD_RLES))
def test_bad_rle_raises(message, reference):
    assert_refused(message, as_mask, reference, 6, 6)


@pytest.mark.parametrize("size", [[10**9, 10**9], [30_000, 30_000]])
def test_rle_with_a_huge_size_allocates_nothing(size):
    reference = {"size": size, "counts": [0, size[0] * size[1]]}
    tracemalloc.start()
    try:
        with pytest.raises(MaskError):
            decode_rle(reference, 10, 10)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_rle_of_another_type_or_with_swapped_sides_raises():
    with pytest.raises(MaskError, match="COCO RLE is needed"):
        decode_rle("T1", 6, 6)
    with pytest.raises(MaskError, match=r"RLE is 4x6 but the image is 6x4. Its sides are swapped"):
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
