"""Boxes and polygons against an even-odd point test in exact fractions, pixel by pixel; hostile outlines."""

import logging
import math
import time
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from mask_forms import DEEP, HUGE, INF, NAN, assert_refused, each, mask_or_error, quick

from finecaption_hf.masks_finecaption import as_mask, box_around

HALF = Fraction(1, 2)


def quiet_mask(reference, height, width):
    """A mask, or None for a MaskError; small coordinates need not be fractions of the image here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return mask_or_error(reference, height, width)


# --- Boxes -----------------------------------------------------------------------------------------------------------


def test_box_covers_exactly_its_pixels():
    expected = np.zeros((8, 9), dtype=bool)
    expected[2:6, 1:4] = True
    for reference in (
        [1, 2, 4, 6],
        (1, 2, 4, 6),
        {"box_xyxy": [1.0, 2.0, 4.0, 6.0], "polygon": None},
        {"box_xyxy": np.array([1, 2, 4, 6])},
        {"box_xyxy": torch.tensor([1, 2, 4, 6], dtype=torch.bfloat16)},
        list(torch.tensor([1.0, 2, 4, 6])),
        list(np.array([1, 2, 4, 6], dtype=np.float32)),
    ):
        np.testing.assert_array_equal(as_mask(reference, 8, 9), expected)
    np.testing.assert_array_equal(as_mask([-1e6, -0.4, 3, 1e6], 4, 6), as_mask([0, 0, 3, 4], 4, 6))  # clipped


coordinates = st.integers(-60, 180).map(lambda n: n / 8) | st.floats(-8, 24)


@quick
@given(coordinates, coordinates, coordinates, coordinates)
def test_box_marks_the_pixels_whose_centres_it_holds(x0, y0, x1, y1):
    height, width = 13, 16
    mask = quiet_mask([x0, y0, x1, y1], height, width)
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


BAD_BOXES = [
    ("degenerate.*x0 < x1", [[3, 1, 3, 5], [5, 5, 1, 1]]),
    (r"x \+ width", [[5, 5, 3, 2], {"bbox": [1, 2, 3, "4"]}]),
    ("outside the image of 6x8", [[-5, 0, -1, 5], [8, 0, 9, 5], [0, -3, 5, 0], [0, 6, 5, 9]]),
    ("NaN or infinite", [[0, 0, NAN, 5], [0, 0, INF, 5]]),
    (r"beyond 1e\+09", [[0, 0, 1e300, 5]]),
    ("too large", [[0, 0, HUGE, 5]]),
    ("one region", [["0", 0, 5, 5], [0, 0, None, 5]]),
    ("type bool", [[False, False, True, True]]),
    ("type complex", [[0, 0, 5j, 5]]),
    ("type bytes", [[b"0", 0, 5, 5]]),
    ("mixes", [[0, 0, [5], 5]]),
    ("5 coordinates|3 coordinates", [[1, 2, 3], [1, 2, 3, 4, 5]]),
    ("looks like boxes", [[[0, 0, 5, 5], [1, 1, 3, 3]], [[0, 0, 5, 5]]]),
    ("no box", [{"box_xyxy": [1, 2, 3]}, {"box_xyxy": "1234"}, {"box_xyxy": {"x": 1}}]),
    ("more than one box", [{"box_xyxy": np.ones((4, 4))}]),
    ("dtype bool", [{"box_xyxy": np.ones(4, dtype=bool)}]),
    ("no readable", [{"box_xyxy": torch.ones(4, device="meta")}]),
]


@pytest.mark.parametrize(("message", "reference"), each(BAD_BOXES))
def test_bad_box_raises(message, reference):
    assert_refused(message, as_mask, reference, 6, 8)


@pytest.mark.parametrize("reference", [[0.1, 0.1, 0.9, 0.8], [0.1, 0.1, 0.9, 0.8, 0.2, 0.7]])
def test_coordinates_that_are_fractions_of_the_image_warn(reference):
    with pytest.warns(UserWarning, match="lie between 0 and 1.*multiply x by its width") as caught:
        assert as_mask(reference, 40, 50).sum() == 1
    assert caught[0].filename == __file__


# --- Polygons --------------------------------------------------------------------------------------------------------


def crossed(rings, y):
    """Where edges of rings cross the line at y, sorted, in exact fractions; upper ends of edges belong to them."""
    edges = [edge for ring in rings for edge in zip(ring, ring[1:] + ring[:1])]
    return sorted(
        ax + (y - ay) * (bx - ax) / (by - ay) for (ax, ay), (bx, by) in edges if (ay <= y) != (by <= y)
    )  # fmt: skip


def exact(rings):
    return [[(Fraction(x), Fraction(y)) for x, y in ring] for ring in rings]


def reference_fill(rings, height, width):
    """Whether each centre is inside by the even-odd rule; left and top borders count as inside."""
    rows = [crossed(exact(rings), row + HALF) for row in range(height)]
    return np.array([[sum(x <= column + HALF for x in row) % 2 == 1 for column in range(width)] for row in rows])


def assert_middles(mask, rings):
    """Marked is, on each centre line, the pixel under the middle of each stretch; either one where rounding decides."""
    expected, rings, tie = [], exact(rings), Fraction(1, 10**9)
    for (num_lines, length), turn in ((mask.shape, 1), (mask.shape[::-1], -1)):
        turned = [[xy[::turn] for xy in ring] for ring in rings]
        for line in range(num_lines):
            at = [min(max(x, 0), length) for x in crossed(turned, line + HALF)]
            for low, high in pairs([at]):
                if high - low > tie:
                    places = {math.floor((low + high) / 2 + shift) for shift in (-tie, tie)}
                    expected.append({(line, min(place, length - 1))[::turn] for place in places})
    marked = set(zip(*(indices.tolist() for indices in mask.nonzero())))
    if expected:
        assert all(places & marked for places in expected)
        assert marked <= set().union(*expected)
    else:  # between all centre lines: one pixel, which a corner is in or next to
        assert len(marked) == 1
        ((row, column),) = marked
        assert any(abs(x - column - HALF) < 1.5 and abs(y - row - HALF) < 1.5 for x, y in rings[0])


def check_polygon(ring, height, width):
    expected = reference_fill([ring], height, width)
    mask = quiet_mask({"polygon": ring}, height, width)
    if expected.any():
        np.testing.assert_array_equal(mask, expected)
    elif mask is not None:
        assert_middles(mask, [ring])
    else:  # on one line, up to rounding, or in no pixel but perhaps within half a pixel of a corner of the image
        (ax, ay), *others = exact([ring])[0]
        spread = max(abs((bx - ax) * (cy - ay) - (by - ay) * (cx - ax)) for bx, by in others for cx, cy in others)
        spans = [crossed(exact([ring]), row + HALF) for row in range(height)]
        assert spread <= 1e-9 or all(high - low < 1e-9 or high <= 0 or low >= width for low, high in pairs(spans))


def pairs(spans):
    return [pair for at in spans for pair in zip(at[::2], at[1::2])]


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
    # Rounded, since stretches below 1e-12 of the coordinates count as rounding errors; and for short fractions.
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


@quick
@given(st.floats(-4, 20), st.floats(-4, 20), st.floats(1, 20), st.floats(1, 20))
def test_rectangle_as_polygon_equals_the_box(x, y, w, h):
    assume(x + w > x + 0.99 and y + h > y + 0.99)
    a = quiet_mask([x, y, x + w, y + h], 13, 16)
    b = quiet_mask([x, y, x + w, y, x + w, y + h, x, y + h], 13, 16)
    assert (a is None) == (b is None)
    if a is not None:
        np.testing.assert_array_equal(a, b)


def test_all_spellings_of_a_polygon_give_the_same_mask():
    ring, flat = [[1, 1], [9, 2], [8, 7], [2, 6]], [1, 1, 9, 2, 8, 7, 2, 6]
    bare = [flat, tuple(flat), ring, list(map(tuple, ring)), ring[::-1], ring + ring[:1], [flat], [np.array(flat)]]
    polygons = [flat, ring, [flat, flat], np.array(ring), np.array(flat, dtype=np.float32)]
    polygons += [torch.tensor(ring, dtype=torch.float16)]
    rings = [[ring + ring[:1]], [ring], (np.array(ring),)]
    for reference in (
        *bare,
        list(map(np.array, ring)),
        *({"polygon": polygon} for polygon in polygons),
        *({"type": "Polygon", "coordinates": coordinates} for coordinates in rings),
        {"type": "MultiPolygon", "coordinates": [[ring]]},
    ):
        np.testing.assert_array_equal(as_mask(reference, 9, 11), reference_fill([ring], 9, 11))


def test_several_polygons_are_a_union():
    a, b = [1, 1, 7, 1, 7, 7, 1, 7], [4, 4, 10, 4, 10, 9, 4, 9]
    union = as_mask(a, 10, 12) | as_mask(b, 10, 12)
    np.testing.assert_array_equal(as_mask([a, b], 10, 12), union)  # even-odd over both would cut a hole here
    multi = [[[[x, y] for x, y in zip(flat[::2], flat[1::2])]] for flat in (a, b)]
    np.testing.assert_array_equal(as_mask({"type": "MultiPolygon", "coordinates": multi}, 10, 12), union)


@pytest.mark.parametrize("part", [[60, 40], [6, 4, 6, 5], [1, 1, 3, 1, 5, 1], [50, 50, 60, 50, 60, 60]])
def test_part_without_area_or_outside_is_left_out_with_a_warning(part, caplog):
    good = [1, 1, 7, 1, 7, 7]
    with caplog.at_level(logging.WARNING):
        mask = as_mask([good, part], 10, 12)
    np.testing.assert_array_equal(mask, as_mask(good, 10, 12))
    assert [record.getMessage() for record in caplog.records] == [
        "Left out 1 of 2 parts of a region, which cover no pixel."
    ]


def test_geojson_holes_are_cut_out():
    outline = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]
    hole, other = [[2, 2], [5, 2], [5, 5], [2, 5], [2, 2]], [[4, 4], [8, 4], [8, 8], [4, 8], [4, 4]]
    square = as_mask([0, 0, 10, 10], 12, 12)
    holes = as_mask([2, 2, 5, 5], 12, 12) | as_mask([4, 4, 8, 8], 12, 12)
    line = [[1, 1], [2, 2], [3, 3]]  # cuts nothing
    mask = as_mask({"type": "Polygon", "coordinates": [outline, hole, other, line]}, 12, 12)
    np.testing.assert_array_equal(mask, square & ~holes)  # overlapping holes do not fill each other
    island = [[3, 3], [4, 3], [4, 4], [3, 4], [3, 3]]
    mask = as_mask({"type": "MultiPolygon", "coordinates": [[outline, hole], [island]]}, 12, 12)
    assert not mask[2, 2]
    assert mask[3, 3]  # the hole of one polygon does not cut the other


@quick
@given(polygon_rings(-2, 12, 4, max_points=5), polygon_rings(0, 10, 4, max_points=5))
def test_holes_match_an_exact_test(outline, hole):
    expected = reference_fill([outline], 9, 11) & ~reference_fill([hole], 9, 11)
    mask = quiet_mask({"type": "Polygon", "coordinates": [outline, hole]}, 9, 11)
    if expected.any():
        np.testing.assert_array_equal(mask, expected)


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
    ("polygon", "box"),
    [
        ([2.1, 2.1, 2.3, 2.1, 2.2, 2.3], (2, 2, 3, 3)),
        ([1.0, 3.1, 9.0, 3.1, 9.0, 3.2, 1.0, 3.2], (1, 3, 9, 4)),
        ([4.9, 1, 5.1, 1, 5.1, 8, 4.9, 8], (5, 1, 6, 8)),
        ([0, 0, 10, 8, 10, 8.001], (0, 0, 10, 8)),
        ([-5, 3.1, 50, 3.1, 50, 3.2, -5, 3.2], (0, 3, 10, 4)),
        ([9.9, 1, 10, 1, 10, 7, 9.9, 7], (9, 1, 10, 7)),
        ([-3, 2, 0.2, 2, 0.2, 6, -3, 6], (0, 2, 1, 6)),
        ([-5, -5, 0.3, -5, 0.3, 0.3, -5, 0.3], (0, 0, 1, 1)),
    ],
)
def test_thin_polygon_does_not_vanish_and_has_no_gaps(polygon, box):
    mask = as_mask(polygon, 8, 10)
    x0, y0, x1, y1 = box_around(mask)
    assert (x0, y0, x1, y1) == box
    assert mask[:, x0:x1].any(axis=0).all()
    assert mask[y0:y1].any(axis=1).all()


def test_thin_part_of_a_region_does_not_vanish():
    mask = as_mask([[0, 0, 4, 0, 4, 4, 0, 4], [7.1, 6.1, 7.2, 6.1, 7.2, 6.2]], 8, 10)
    assert mask.sum() == 17
    assert mask[6, 7]


def test_thin_ring_with_a_hole_does_not_vanish():
    outline, hole = [[1, 1], [7, 1], [7, 7], [1, 7]], [[1.1, 1.1], [6.9, 1.1], [6.9, 6.9], [1.1, 6.9]]
    expected = as_mask(outline, 9, 9)
    expected[2:6, 2:6] = False
    beside = [[7.2, 7.2], [8.2, 7.2], [8.2, 8.2], [7.2, 8.2]]  # a hole outside its polygon marks nothing
    for holes in ([hole], [hole, beside]):
        mask = as_mask({"type": "Polygon", "coordinates": [outline, *holes]}, 9, 9)
        np.testing.assert_array_equal(mask, expected)


def square(size):
    return [[0, 0], [size, 0], [size, size], [0, size], [0, 0]]


def geojson(*coordinates, kind="Polygon"):
    return [{"type": kind, "coordinates": each} for each in coordinates]


AROUND = [[[-9, -9], [20, -9], [20, 20], [-9, 20]], [[-1, -1], [11, -1], [11, 11], [-1, 11]]]  # the image in the hole
TRIANGLES = [[0, 0, 1, 0, 1, 1]] * 10_001
BAD_POLYGONS = [
    ("no polygon", [[], {"polygon": []}, {"polygon": 3}, {"polygon": "1,1,5,1,5,5"}, {"polygon": {"x": 1}}]),
    ("no polygon", [{"polygon": (x for x in [1])}, {"id": 3, "segmentation": []}]),
    ("0 coordinates", [[[]], *geojson([[]])]),
    ("7 coordinates", [[1, 1, 5, 1, 5, 5, 3]]),
    ("covers no pixel.*one line.*three", [[[1, 1], [5, 5]], [2, 2, 2, 2, 2, 2], [1, 1, 3, 3, 5, 5], [[1, 1], [3, 3]]]),
    ("on one line", [[0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.7, 0.7], {"polygon": [0, 0, 5, 5]}]),
    ("on one line", [[[60, 40], [1, 1, 2, 2, 3, 3]], *geojson([[[0, 0], [5, 5], [0, 0]]])]),
    (
        "covers no pixel.*outside",
        [[20, 20, 30, 20, 30, 30], [-20, -20, -10, -20, -10, -10], [-5, 0, 0, 0, 0, 5, -5, 5]],
    ),
    ("covers no pixel.*outside", [[[20, 20, 30, 20, 30, 30], [-9, -9, -5, -9, -5, -5]], [-1, -20, 30, 10, 30, -20]]),
    ("covers no pixel.*outside", geojson(AROUND)),
    ("cancels itself", [[0, 0, 4, 0, 4, 4, 0, 4] * 2]),
    ("all hole", geojson([square(5), square(5)], [square(5), square(7)])),
    ("NaN or infinite", [[1, 1, 5, 1, NAN, 5], [1, 1, 5, 1, -INF, 5]]),
    ("beyond", [[1, 1, 5, 1, 1e10, 5]]),
    ("too large", [[1, 1, 5, 1, HUGE, 5]]),
    ("one region", [[1, 1, 5, 1, "5", 5]]),
    ("type bool", [[[True, False], [True, True], [False, True]]]),
    ("mixes", [[[1, 1], 5, [5, 5]]]),
    ("3 coordinates", [[[1, 1, 0], [5, 1, 0], [5, 5, 0]]]),
    ("GeoJSON", [[[[1, 1], [5, 1], [5, 5]], [[2, 2], [3, 2], [3, 3]]]]),
    ("one|list|polygon", [DEEP]),
    (r"np.array\(mask\)", [np.eye(8, dtype=int).tolist(), np.eye(8, dtype=bool).tolist()]),
    ("shape", [{"polygon": np.ones((5, 3))}]),
    ("dtype", [{"polygon": np.array([["1", "2"]] * 3)}]),
    ("1000001 points, more than 1000000", [{"polygon": [0.5] * 2_000_002}]),
    ("10001 polygons, more than", [TRIANGLES]),
    ("too complex", [{"polygon": np.tile([[0, 0], [4, 8], [8, 0]], (300_001, 1))}]),
    ("Polygon or a MultiPolygon", geojson([1, 2], kind="Point") + geojson([square(5)], kind=["Polygon"])),
    ("Polygon or a MultiPolygon", [{"coordinates": [square(5)]}]),
    ("list of rings", geojson([]) + geojson([], [None], kind="MultiPolygon")),
    ("its points", geojson([None], [0, 0, 5, 0, 5, 5])),
    ("not a pair", geojson([[[0, 0, 1], [5, 0, 1], [5, 5, 1]]])),
    ("pair|points|rings", geojson(DEEP, kind="MultiPolygon")),
    ("10001 rings, more than", geojson([square(5)] * 10_001)),
]


@pytest.mark.parametrize(("message", "reference"), each(BAD_POLYGONS))
def test_bad_polygon_raises(message, reference):
    assert_refused(message, as_mask, reference, 8, 8)


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
