"""Frames of YouTube-VIS and SA-V as pictures with regions."""

import json
from pathlib import Path

import numpy as np
import pytest
from coco_files import CATEGORIES, H, W, disc, opened, pixels, rle, runs
from PIL import Image
from pycocotools import mask as coco_mask

from finecaption_hf.data import DataError, open_regions


def test_frames_of_youtube_vis_are_pictures_with_the_objects_that_are_in_them(tmp_path: Path) -> None:
    video = {"id": 4, "file_names": ["v/00000.jpg", "v/00005.jpg"], "height": H, "width": W, "length": 2}
    things = [
        {
            "id": 1,
            "video_id": "4",
            "category_id": 3,
            "segmentations": [rle(disc()), None],
            "bboxes": [[1, 2, 3, 4], None],
        },
        {"id": 2, "video_id": 4, "category_id": 90, "segmentations": [runs(disc(r=3)), rle(disc(r=4))]},
        {"id": 3, "video_id": 4, "segmentations": []},
        {"id": 4, "video_id": 9, "segmentations": []},
    ]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"annotations": things, "categories": CATEGORIES, "videos": [video, {"id": 5}]}))
    file, (first, second, broken, orphan) = opened(path)
    assert file.format == "youtube-vis"
    assert [row["image"] for row in (first, second)] == video["file_names"]
    assert [region.get("label") for region in first["regions"]] == ["cat", "toothbrush", None]
    assert first["regions"][0]["bbox"] == [1, 2, 3, 4] and isinstance(first["regions"][2]["mask"], DataError)
    assert [region["id"] for region in second["regions"]] == [2]
    assert np.array_equal(pixels(second["regions"][0]), disc(r=4)) and np.array_equal(
        pixels(first["regions"][1]), disc(r=3)
    )
    assert "names of its frames" in str(broken) and "belongs to no video" in str(orphan)


def test_masklets_of_sa_v_are_read_once_the_frames_are_pictures(tmp_path: Path) -> None:
    nothing = {"size": [H, W], "counts": coco_mask.encode(np.zeros((H, W), np.uint8, order="F"))["counts"].decode()}
    content = {"video_id": "sav_000001", "video_height": float(H), "video_width": float(W), "masklet_id": [0, 1]}
    content["masklet"] = [[rle(disc()), nothing], [rle(disc(r=3)), rle(disc(r=4))]]
    path = tmp_path / "sav_000001_manual.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"2 frames.*there are 0 pictures.*ffmpeg.*--images"):
        open_regions(path)
    frames = tmp_path / "frames" / "sav_000001"
    frames.mkdir(parents=True)
    for number in range(6):
        Image.new("RGB", (W, H)).save(frames / f"{number:05}.jpg")
    file, (first, second) = opened(path, images=tmp_path / "frames")
    assert file.format == "sa-v" and second["image"] == "sav_000001/00004.jpg"
    assert [region["id"] for region in first["regions"]] == [0]
    assert np.array_equal(pixels(second["regions"][1]), disc(r=4))


def test_frames_of_sa_v_have_a_mask_per_object(tmp_path: Path) -> None:
    for name, mask in (("000/00000.png", disc()), ("001/00000.png", disc(r=3)), ("000/00004.png", disc(r=4))):
        target = tmp_path / "Annotations_6fps" / "sav_1" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        palette = Image.fromarray(mask.astype(np.uint8)).convert("P")
        palette.putpalette([0, 0, 0, 200, 30, 30])
        palette.save(target)
    (tmp_path / "JPEGImages_24fps" / "sav_1").mkdir(parents=True)
    for number in (0, 4):
        Image.new("RGB", (W, H)).save(tmp_path / "JPEGImages_24fps" / "sav_1" / f"{number:05}.jpg")
    file, (first, second) = opened(tmp_path)
    assert file.format == "sa-v-frames" and [region["id"] for region in first["regions"]] == ["000", "001"]
    assert np.array_equal(pixels(first["regions"][1]), disc(r=3)) and np.array_equal(
        pixels(second["regions"][0]), disc(r=4)
    )
    assert open_regions(tmp_path)[0].load().size == (W, H)
