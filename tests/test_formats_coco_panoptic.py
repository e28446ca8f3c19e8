"""COCO panoptic: segments by the colours of a PNG, in a folder or an archive."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from coco_files import H, W, image, opened, pixels, write
from PIL import Image

from finecaption_hf import MaskError
from finecaption_hf.data import DataError
from finecaption_hf.data.readers.detection import detect_format


def _panoptic(folder: Path) -> tuple[Path, np.ndarray]:
    ids = np.zeros((H, W), np.uint32)
    ids[:, :20], ids[:, 20:40] = 7, 3 + 256 * 200 + 65536 * 9
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    (folder / "panoptic_val").mkdir()
    Image.fromarray(colours).save(folder / "panoptic_val" / "5.png")
    segments = [{"id": number, "category_id": 3, "iscrowd": 0, "area": 800} for number in (7, int(ids[0, 20]), 77)]
    annotations = [{"image_id": 5, "file_name": "5.png", "segments_info": segments}]
    return write(folder / "panoptic_val.json", [image(5), image(6)], annotations), ids


def test_panoptic_segments_are_the_pixels_of_their_colour(tmp_path: Path) -> None:
    path, ids = _panoptic(tmp_path)
    file, (row, empty) = opened(path)
    assert file.format == "coco-panoptic" and empty["regions"] == []
    first, second, missing = row["regions"]
    for region in (first, second):
        assert np.array_equal(pixels(region), ids == region["id"])
        assert region["label"] == "cat"
    with pytest.raises(MaskError, match=r"No pixel of .5\.png. is of segment 77"):
        pixels(missing)
    with pytest.raises(MaskError, match=r"40x60 \(height x width\), but the picture is 10x10"):
        pixels(first, 10, 10)
    # As COCO packs it: a .zip with a folder of the same name.
    with zipfile.ZipFile(tmp_path / "panoptic_val.zip", "w") as archive:
        archive.write(tmp_path / "panoptic_val" / "5.png", "panoptic_val/5.png")
    (tmp_path / "panoptic_val" / "5.png").unlink()
    with pytest.raises(MaskError, match="it is not there"):
        pixels(opened(path)[1][0]["regions"][0])
    (tmp_path / "panoptic_val").rmdir()
    assert np.array_equal(pixels(opened(path)[1][0]["regions"][0]), ids == 7)


def test_panoptic_segments_of_a_picture_share_one_decoded_file(tmp_path: Path) -> None:
    _, (row, _) = opened(_panoptic(tmp_path)[0])
    first, second, _ = row["regions"]
    pixels(first)
    (tmp_path / "panoptic_val" / "5.png").unlink()
    assert pixels(second).any()


def test_panoptic_pictures_of_another_mode_are_refused(tmp_path: Path) -> None:
    path, _ = _panoptic(tmp_path)
    Image.new("P", (W, H)).save(tmp_path / "panoptic_val" / "5.png")
    with pytest.raises(MaskError, match=r"mode 'P'.*red"):
        pixels(opened(path)[1][0]["regions"][0])


def test_captions_go_back_into_panoptic_segments(tmp_path: Path) -> None:
    path, _ = _panoptic(tmp_path)
    file, _ = opened(path)
    file.write_back(iter([None, {"region": "b"}, {"dense": "c", "Color": "red"}]), tmp_path / "out.json")
    out, expected = json.loads((tmp_path / "out.json").read_text()), json.loads(path.read_text())
    segments = out["annotations"][0]["segments_info"]
    assert segments[1].pop("caption") == "b" and segments[2].pop("caption") == "c"
    assert segments[2].pop("attributes") == {"dense": "c", "Color": "red"} and out == expected


def test_regions_without_texts_are_no_data_for_training(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="this is COCO panoptic: regions without texts"):
        detect_format(_panoptic(tmp_path)[0])
