"""What Segment Anything writes: SA-1B and the masks of its script."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_files import H, W, disc, opened, pixels, rle
from PIL import Image

from finecaption_hf import MaskError
from finecaption_hf.data import DataError, ReadOptions, open_regions
from finecaption_hf.data.annotations import open_annotations


def _sa1b(number: int) -> dict[str, Any]:
    return {
        "image": {"image_id": number, "file_name": f"sa_{number}.jpg", "height": H, "width": W},
        "annotations": [
            {"id": 10 * number + k, "segmentation": rle(disc(r=4 + k)), "predicted_iou": 0.9, "stability_score": 0.95}
            for k in range(2)
        ],
    }


def test_sa_1b_is_read_from_a_file_and_from_a_folder_in_the_order_of_numbers(tmp_path: Path) -> None:
    for number in (10, 2):
        (tmp_path / f"sa_{number}.json").write_text(json.dumps(_sa1b(number)))
        Image.new("RGB", (W, H)).save(tmp_path / f"sa_{number}.jpg")
    (tmp_path / "sa_11.json").write_text("[]")
    file, (first, second, broken) = opened(tmp_path)
    assert file.format == "sa-1b" and (first["id"], second["id"]) == (2, 10)
    assert "there is no object 'image'" in str(broken)
    assert [region["id"] for region in second["regions"]] == [100, 101]
    assert np.array_equal(pixels(second["regions"][1]), disc(r=5))
    assert open_regions(tmp_path / "sa_2.json")[0].load().size == (W, H)


def test_texts_go_back_into_a_folder_of_sa_1b(tmp_path: Path) -> None:
    folder, target = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in (10, 2):
        (folder / f"sa_{number}.json").write_text(json.dumps(_sa1b(number)))
    (folder / "sa_11.json").write_text("[]")
    file, _ = opened(folder)
    with pytest.raises(DataError, match="into the original"):
        file.write_back(iter([]), folder / "out")
    file.write_back(iter([{"region": "one"}, None, None, {"region": "four"}]), target)
    assert json.loads((target / "sa_10.json").read_text())["annotations"][1]["caption"] == "four"
    assert (target / "sa_11.json").read_text() == "[]"
    out, expected = json.loads((target / "sa_2.json").read_text()), _sa1b(2)
    assert out["annotations"][0].pop("caption") == "one" and out == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    open_annotations(folder / "sa_2.json", ReadOptions()).write_back(iter([None, {"region": "b"}]), tmp_path / "2.json")
    assert json.loads((tmp_path / "2.json").read_text())["annotations"][1]["caption"] == "b"


def _amg(folder: Path, *masks: np.ndarray) -> None:
    """As write_masks_to_folder of SAM's script writes."""
    folder.mkdir(parents=True)
    header = "id,area,bbox_x0,bbox_y0,bbox_w,bbox_h,point_input_x,point_input_y,predicted_iou,stability_score,"
    lines = [header + "crop_box_x0,crop_box_y0,crop_box_w,crop_box_h"]
    for number, mask in enumerate(masks):
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{number}.png")
        lines.append(f"{number},{mask.sum()},1,2,3,4,5.5,6.5,0.98,0.97,0,0,{W},{H}")
    (folder / "metadata.csv").write_text("\n".join(lines))


def test_masks_by_amg_find_their_picture_by_its_name(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("dog.jpg", "two.png", "two.jpg"):
        Image.new("RGB", (W, H)).save(photos / name)
    _amg(tmp_path / "out" / "dog", disc(), disc(r=3))
    _amg(tmp_path / "out" / "two", disc())
    entry = {"segmentation": rle(disc(r=5)), "area": 81, "bbox": [1, 2, 3, 4], "predicted_iou": 0.9}
    entry |= {"point_coords": [[1.5, 2.5]], "stability_score": 0.9, "crop_box": [0, 0, W, H]}
    file, (row, ambiguous) = opened(tmp_path / "out", images=photos)
    assert file.format == "sam-masks" and row["image"] == "dog.jpg"
    assert "there are two.jpg, two.png" in str(ambiguous)
    assert np.array_equal(pixels(row["regions"][1]), disc(r=3))
    assert row["regions"][1]["point_coords"] == [[5.5, 6.5]] and row["regions"][1]["id"] == 1
    assert open_regions(tmp_path / "out" / "dog", images=photos)[0].load().size == (W, H)
    (photos / "dog.json").write_text(json.dumps([entry]))
    file, (row,) = opened(photos / "dog.json")
    assert file.format == "sam-masks" and row["image"] == "dog.jpg"
    assert np.array_equal(pixels(row["regions"][0]), disc(r=5))
    (tmp_path / "out" / "dog" / "1.png").unlink()
    with pytest.raises(MaskError, match=r"1\.png.*No such file"):
        pixels(opened(tmp_path / "out", images=photos)[1][0]["regions"][1])
