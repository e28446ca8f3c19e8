"""Regions of pictures that their EXIF orientation turns."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps
from typer.testing import CliRunner

from finecaption_hf import MaskError, as_mask
from finecaption_hf.cli import app
from finecaption_hf.data import DataError, open_dataset, open_regions, read_examples
from finecaption_hf.data.check import check_dataset
from finecaption_hf.data.encoding import encode_rle
from finecaption_hf.data.images import to_rgb
from finecaption_hf.data.orientation import TurnedRegion, orientation_of, turned, turned_point, turned_region
from finecaption_hf.segmentation import read_regions
from finecaption_hf.segmentation.clicks import Clicks

STORED = np.zeros((20, 34), bool)
STORED[3:9, 5:30] = True
STORED[9:17, 5:8] = True


def picture(path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    pixels = np.random.default_rng(1).integers(0, 256, (*STORED.shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def displayed(orientation: int) -> np.ndarray:
    """The mask as Pillow turns pictures."""
    stored = Image.fromarray(STORED.astype(np.uint8) * 255)
    stored.getexif()[ExifTags.Base.Orientation] = orientation
    return np.asarray(ImageOps.exif_transpose(stored)) > 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_stored_region_is_turned_as_its_picture_is(tmp_path: Path, orientation: int) -> None:
    image = picture(tmp_path / "a.png", orientation)
    expected = displayed(orientation)
    assert np.array_equal(turned(STORED, orientation), expected)
    assert orientation_of(Image.open(image)) == orientation
    Image.fromarray(STORED.astype(np.uint8) * 255).save(tmp_path / "m.png")
    corners = [5, 3, 30, 3, 30, 9, 8, 9, 8, 17, 5, 17]
    rows = [{"mask": encode_rle(STORED)}, {"mask_file": "m.png"}, {"polygon": corners}, {"mask": None}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "a.png", "regions": rows}))
    item = open_regions(tmp_path / "rows.jsonl", stored_orientation=True)[0]
    loaded = item.load()
    assert (loaded.height, loaded.width) == expected.shape
    found = [as_mask(item.reference(region, loaded), loaded.height, loaded.width) for region in item.regions]
    assert found[3].all()
    for each in found[:3]:
        assert np.array_equal(each, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_stored_point_is_on_the_same_pixel(orientation: int) -> None:
    expected = displayed(orientation)
    for row, column in [(3, 5), (0, 0), (19, 33), (16, 7)]:
        mark = np.zeros(STORED.shape, bool)
        mark[row, column] = True
        x, y = turned_point(column, row, orientation, *expected.shape)
        assert turned(mark, orientation)[int(y), int(x)]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_region_that_fits_the_stored_pixels_only_names_the_orientation(tmp_path: Path, orientation: int) -> None:
    loaded = to_rgb(Image.open(picture(tmp_path / "a.png", orientation)))
    for reference in (STORED, encode_rle(STORED), Image.fromarray(STORED)):
        region = turned_region(reference, loaded)
        with pytest.raises(
            MaskError,
            match=rf"fits the picture's 20x34 .*EXIF orientation {orientation} shows it as 34x20.*--stored-orientation",
        ):
            as_mask(region, loaded.height, loaded.width)
    # What fits neither, or is wrong otherwise, says what it said before.
    for wrong, message in ((np.ones((3, 4)), "3x4"), (np.zeros(STORED.shape), "20x34"), ([1, 1, 1, 1], "degenerate")):
        with pytest.raises(MaskError, match=message) as caught:
            as_mask(turned_region(wrong, loaded), loaded.height, loaded.width)
        assert "orientation 5" not in str(caught.value) and "stored-orientation" not in str(caught.value)
    assert as_mask(turned_region(displayed(orientation), loaded), 34, 20).sum() == STORED.sum()


def test_regions_of_pictures_that_are_not_turned_stay_as_they_are(tmp_path: Path) -> None:
    loaded = to_rgb(Image.open(picture(tmp_path / "a.png", 1)))
    assert turned_region(STORED, loaded, stored=True) is STORED
    turned_one = to_rgb(Image.open(picture(tmp_path / "b.png", 6)))
    assert turned_region(None, turned_one, stored=True) is None
    error = DataError("a", "b")
    assert turned_region(error, turned_one) is error
    assert turned_region(STORED, error) is STORED
    assert isinstance(turned_region(STORED, turned_one), TurnedRegion)


def test_examples_for_training_are_turned_too(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 6)
    branches = [{"name": "region", "answer": "A thing."}]
    row = {"image": "a.png", "regions": [{"mask": encode_rle(STORED), "branches": branches}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    for dataset in (
        open_dataset(tmp_path / "rows.jsonl", stored_orientation=True),
        open_dataset(tmp_path / "rows.jsonl", stored_orientation=True, max_regions=1),
        list(read_examples(tmp_path / "rows.jsonl", stored_orientation=True)),
    ):
        example = dataset[0]
        loaded = example.load()
        found = as_mask(example.reference(example.regions[0], loaded), loaded.height, loaded.width)
        assert np.array_equal(found, displayed(6))
    assert not check_dataset(read_examples(tmp_path / "rows.jsonl", stored_orientation=True)).problems
    problems = check_dataset(read_examples(tmp_path / "rows.jsonl", on_error="skip")).problems
    assert len(problems) == 1 and "EXIF orientation 6" in problems[0][1]


@pytest.mark.parametrize("orientation", [3, 6])
def test_regions_and_clicks_of_one_picture_are_turned(tmp_path: Path, orientation: int) -> None:
    expected = displayed(orientation)
    Image.fromarray(STORED.astype(np.uint8) * 255).save(tmp_path / "m.png")
    given = [("mask", str(tmp_path / "m.png")), ("point", "6,15"), ("box", "5,3,30,17")]
    found: list[Any] = [each for _, each in read_regions(given, *expected.shape, orientation=orientation, stored=True)]
    assert np.array_equal(found[0].pixels, expected)
    assert isinstance(found[1], Clicks)
    x, y = found[1].points[0].astype(int)
    assert expected[y, x]
    assert found[2].box_xyxy == found[0].box_xyxy


def test_the_command_names_the_orientation_and_takes_the_option(tmp_path: Path) -> None:
    image = picture(tmp_path / "a.jpg", 6)
    Image.fromarray(STORED.astype(np.uint8) * 255).save(tmp_path / "m.png")
    command = ["caption", str(image), "--mask", str(tmp_path / "m.png"), "--max-new-tokens", "2", "--json"]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2 and "EXIF orientation 6" in refused.output
    result = CliRunner().invoke(app, [*command, "--stored-orientation"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["area"] == STORED.sum()
