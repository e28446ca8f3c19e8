"""Label maps of all kinds, compared with what their tools read."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from finecaption_hf import MaskError, as_mask
from finecaption_hf.cli import app
from finecaption_hf.data import DataError, ReadOptions, RegionInputs, open_regions
from finecaption_hf.data.annotations import recognise
from finecaption_hf.data.annotations.label_maps import LABEL_MAPS, MAX_LABELS, read_map
from finecaption_hf.data.looking import voc_colours

H, W = 30, 44
VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128, *range(253), *range(253), *range(247)]


def labels(*values: int, dtype: Any = np.uint8) -> np.ndarray:
    """A map with a rectangle for each value, on 0."""
    found = np.zeros((H, W), dtype)
    for number, value in enumerate(values):
        found[2 + 4 * number : 9 + 4 * number, 3 + 5 * number : 20 + 3 * number] = value
    return found


def write(path: Path, values: np.ndarray | None = None, palette: bool = False) -> Path:
    """A map; or a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if values is None:
        values = np.random.default_rng(len(path.name)).integers(0, 256, (H, W, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    if palette:
        image.putpalette(VOC)
    image.save(path)
    return path


def regions(inputs: RegionInputs) -> dict[str, dict[Any, np.ndarray]]:
    """Picture -> id -> mask."""
    found: dict[str, dict[Any, np.ndarray]] = {}
    for index in range(len(inputs)):
        item = inputs[index]
        loaded = item.load()
        for region in item.regions:
            assert region.error is None, region.error
            mask = as_mask(item.reference(region, loaded), loaded.height, loaded.width)
            found.setdefault(str(item.name), {})[region.carried["id"]] = mask
    return found


def same(found: dict[Any, np.ndarray], values: np.ndarray, ids: list[int]) -> None:
    assert list(found) == ids
    for value, mask in found.items():
        assert np.array_equal(mask, values == value), value


# --- where maps and pictures lie -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("picture", "map_"),
    [
        ("JPEGImages/a.jpg", "SegmentationObject/a.png"),
        ("images/a.jpg", "masks/a.png"),
        ("images/train/a.jpg", "labels/train/a.png"),
        ("a.jpg", "a.png"),
        ("JPEGImages/480p/bear/00003.jpg", "Annotations/480p/bear/00003.png"),
        ("photos/a.jpg", "annotations/a_labels.png"),
    ],
)
def test_palette_maps_are_found_beside_their_pictures(tmp_path: Path, picture: str, map_: str) -> None:
    values = labels(1, 2, 4, 255)
    write(tmp_path / picture)
    write(tmp_path / map_, values, palette=True)
    inputs = open_regions(tmp_path)
    assert inputs.title == "label maps"
    same(regions(inputs)[picture], values, [1, 2, 4])
    assert any("rule index" in note and "0, 255 are none (--ignore)" in note for note in inputs.notes)


def test_frames_of_videos_keep_their_numbers(tmp_path: Path) -> None:
    for video, frame in (("bear", "00000"), ("bear", "00005"), ("cows", "00000")):
        write(tmp_path / "JPEGImages" / video / f"{frame}.jpg")
        write(tmp_path / "sam2" / video / f"{frame}.png", labels(1, 3 if video == "cows" else 2), palette=True)
    found = regions(open_regions(tmp_path / "sam2", images=tmp_path / "JPEGImages"))
    assert {name: list(ids) for name, ids in found.items()} == {
        "bear/00000.jpg": [1, 2],
        "bear/00005.jpg": [1, 2],
        "cows/00000.jpg": [1, 3],
    }


def test_masks_of_sam_2_one_folder_for_each_object_are_masks(tmp_path: Path) -> None:
    for video in ("bear", "cows"):
        write(tmp_path / "JPEGImages" / video / "00000.jpg")
        for number in (1, 2):
            mask = (labels(1, 2) == number).astype(np.uint8) * 255
            write(tmp_path / "out" / video / f"{number:03d}" / "00000.png", mask)
    inputs = open_regions(tmp_path / "out", images=tmp_path / "JPEGImages")
    found = regions(inputs)
    assert list(found) == ["bear/00000.jpg", "cows/00000.jpg"]
    assert list(found["cows/00000.jpg"]) == ["cows/001/00000.png", "cows/002/00000.png"]
    assert np.array_equal(found["bear/00000.jpg"]["bear/002/00000.png"], labels(1, 2) == 2)


def test_objects_are_taken_before_classes(tmp_path: Path) -> None:
    write(tmp_path / "JPEGImages" / "a.jpg")
    write(tmp_path / "JPEGImages" / "b.jpg")
    write(tmp_path / "SegmentationClass" / "a.png", labels(3, 3), palette=True)
    write(tmp_path / "SegmentationObject" / "a.png", labels(1, 2), palette=True)
    inputs = open_regions(tmp_path)
    same(regions(inputs)["JPEGImages/a.jpg"], labels(1, 2), [1, 2])
    assert "1 pictures have no label map and are left out." in inputs.notes


def test_one_map_is_a_file(tmp_path: Path) -> None:
    write(tmp_path / "pictures" / "a.jpg")
    path = write(tmp_path / "a.png", labels(1, 2), palette=True)
    same(regions(open_regions(path, images=tmp_path / "pictures"))["a.jpg"], labels(1, 2), [1, 2])
    with pytest.raises(DataError, match=r"label maps, and their pictures are not beside them. Give --images"):
        open_regions(path)


def test_a_map_without_its_picture_is_an_error_in_its_place(tmp_path: Path) -> None:
    write(tmp_path / "images" / "a.jpg")
    for name in "ab":
        write(tmp_path / "masks" / f"{name}.png", labels(1, 2), palette=True)
    inputs = open_regions(tmp_path)
    assert inputs.num_regions == 3
    assert "masks/b.png': there is no picture" in str(inputs[1].regions[0].error)


def test_masks_in_black_and_white_are_no_label_maps(tmp_path: Path) -> None:
    write(tmp_path / "images" / "a.jpg")
    write(tmp_path / "masks" / "a.png", labels(255))
    assert not recognise(tmp_path)
    assert open_regions(tmp_path).title == "a folder of pictures with masks"
    # Among maps, one with a single object may be such.
    write(tmp_path / "images" / "b.jpg")
    write(tmp_path / "masks" / "b.png", labels(1, 2))
    found = regions(open_regions(tmp_path))
    same(found["images/a.jpg"], labels(255), [255])
    same(found["images/b.jpg"], labels(1, 2), [1, 2])


def test_a_map_of_another_size_is_refused_or_resized(tmp_path: Path) -> None:
    write(tmp_path / "images" / "a.jpg")
    write(tmp_path / "masks" / "a.png", labels(1, 2)[::2, ::2], palette=True)
    inputs = open_regions(tmp_path)
    with pytest.raises(MaskError, match=r"'masks/a\.png' is 15x22 but the image is 30x44.*--resize-masks"):
        regions(inputs)
    found = regions(open_regions(tmp_path, resize_masks=True))["images/a.jpg"]
    same(found, np.kron(labels(1, 2)[::2, ::2], np.ones((2, 2), np.uint8)), [1, 2])


# --- rules ------------------------------------------------------------------------------------------------------------


def read(values: np.ndarray, name: str = "m.png", **options: Any) -> Any:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "tiff" if name.endswith("tif") else "png")
    return read_map(file.getvalue(), name, ReadOptions(**options))


def test_cityscapes_instances_are_thousands(tmp_path: Path) -> None:
    values = labels(7, 24001, 26000, 26001, dtype=np.uint16)
    values[0] = 3
    write(tmp_path / "leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png")
    for kind in ("labelIds", "color"):
        write(tmp_path / f"gtFine/train/ulm/ulm_000000_000019_gtFine_{kind}.png", (values // 1000).astype(np.uint8))
    write(tmp_path / "gtFine/train/ulm/ulm_000000_000019_gtFine_instanceIds.png", values)
    inputs = open_regions(tmp_path)
    same(regions(inputs)["leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png"], values, [7, 24001, 26000, 26001])
    carried = [region.carried for region in inputs[0].regions]
    assert [(each["category_id"], each.get("instance")) for each in carried] == [(7, None), (24, 1), (26, 0), (26, 1)]
    assert any("value // 1000" in note for note in inputs.notes)


def test_mapillary_instances_are_bytes(tmp_path: Path) -> None:
    values = labels(5 << 8, (5 << 8) + 1, 19 << 8, dtype=np.uint16)
    write(tmp_path / "training/images/a.jpg")
    write(tmp_path / "training/labels/a.png", (values >> 8).astype(np.uint8), palette=True)
    write(tmp_path / "training/instances/a.png", values)
    inputs = open_regions(tmp_path)
    same(regions(inputs)["training/images/a.jpg"], values, [0, 5 << 8, (5 << 8) + 1, 19 << 8])
    assert [(each.carried["category_id"], each.carried["instance"]) for each in inputs[0].regions] == [
        *[(0, 0), (5, 0), (5, 1), (19, 0)]
    ]


def test_sixteen_bits_are_an_index_unless_something_says_otherwise() -> None:
    values = labels(1, 255, 300, 65535, dtype=np.uint16)
    found = read(values)
    assert (found.rule, found.labels, found.ignored) == ("index", [1, 255, 300, 65535], (0,))
    assert np.array_equal(found.values, values)
    assert read(values, label_map="instance-1000").rule == "instance-1000"
    assert read(values, ignore=(300, 255)).labels == [0, 1, 65535]
    assert read(values.astype(np.int32), "m.tif").labels == [1, 255, 300, 65535]


def test_colours_are_panoptic_ids() -> None:
    ids = labels(1, 256, 70_000, 2**24 - 1, dtype=np.uint32)
    colours = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=2).astype(np.uint8)
    found = read(colours)
    assert (found.rule, found.labels) == ("rgb", [1, 256, 70_000, 2**24 - 1])
    assert np.array_equal(found.values, ids)
    with pytest.raises(DataError, match=r"has colours, and the rule index reads numbers. Give --label-map rgb"):
        read(colours, label_map="index")
    with pytest.raises(DataError, match=r"no colours .*which the rule rgb reads"):
        read(labels(1), label_map="rgb")
    assert read(np.stack([labels(1, 2)] * 3, axis=2), label_map="index").labels == [1, 2]


def test_colours_of_voc_are_its_labels() -> None:
    found = read(np.asarray(Image.fromarray(labels(1, 2, 255))), "m.png")
    palette = voc_colours()
    assert palette[[1, 2, 255]].tolist() == [[128, 0, 0], [0, 128, 0], [224, 224, 192]]
    coloured = read(palette[labels(1, 2, 255)])
    assert (coloured.rule, coloured.labels) == ("index", [1, 2]) == (found.rule, found.labels)
    assert np.array_equal(coloured.values, found.values)


def test_the_rgb_rule_is_that_of_transformers() -> None:
    from transformers.image_transforms import rgb_to_id

    colours = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8).repeat(1, axis=0)
    found = read(np.kron(colours[:4, :6], np.ones((5, 5, 1), np.uint8)))
    assert np.array_equal(found.values, rgb_to_id(np.kron(colours[:4, :6], np.ones((5, 5, 1), np.uint8))))


def test_arrays_of_numpy_are_maps_too(tmp_path: Path) -> None:
    values = labels(1, 2, 70_000, dtype=np.int64)
    file = io.BytesIO()
    np.save(file, values)
    found = read_map(file.getvalue(), "m.npy", ReadOptions())
    assert found.labels == [1, 2, 70_000] and np.array_equal(found.values, values)
    for wrong, message in ((values - 1, "whole numbers from 0"), (values * 0.5, "whole numbers"), (values << 40, "32")):
        file = io.BytesIO()
        np.save(file, wrong)
        with pytest.raises(DataError, match=message):
            read_map(file.getvalue(), "m.npy", ReadOptions())


def test_an_identity_for_each_pixel_is_no_label_map(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"has 65535 values, more than the {MAX_LABELS} regions"):
        read(np.arange(1, 65536, dtype=np.uint16).reshape(255, 257))
    with pytest.raises(DataError, match="has 16384 values"):
        read(np.random.default_rng(0).permutation(2**14).reshape(128, 128).astype(np.int32), "m.tif")
    with pytest.raises(DataError, match="no format of pictures"):
        read_map(b"no picture", "m.png", ReadOptions())
    with pytest.raises(DataError, match="it cannot be decoded"):
        read_map(write(tmp_path / "m.png", labels(1)).read_bytes()[:-40], "m.png", ReadOptions())
    with pytest.raises(DataError, match=rf"no rule 'best'. There are: {', '.join(LABEL_MAPS)}"):
        open_regions(tmp_path, format="label-map", label_map="best")


def test_the_memory_of_a_map_is_bounded_by_its_pixels() -> None:
    import tracemalloc

    data = io.BytesIO()
    Image.fromarray(np.zeros((4000, 4000), np.uint8)).save(data, "png")  # 16 MB from a few kB
    tracemalloc.start()
    read_map(data.getvalue(), "m.png", ReadOptions())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 4000 * 4000


# --- through the command ----------------------------------------------------------------------------------------------


def test_label_maps_are_described_with_the_rule_named(tmp_path: Path) -> None:
    write(tmp_path / "images" / "a.png")
    write(tmp_path / "masks" / "a.png", labels(1, 2, 3), palette=True)
    output = tmp_path / "out.jsonl"
    command = ["describe", str(tmp_path), "--output", str(output), "--max-new-tokens", "3", "--ignore", "0,3"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "read as label maps, 2 regions" in result.output and "rule index" in result.output
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(record["id"], record["area"]) for record in records] == [
        (value, int((labels(1, 2, 3) == value).sum())) for value in (1, 2)
    ]


# --- ADE20K -----------------------------------------------------------------------------------------------------------


def ade_2017(folder: Path) -> np.ndarray:
    """Two things and a part; values of the blue channel."""
    blue = labels(40, 90)
    seg = np.stack([np.full_like(blue, 10), np.full_like(blue, 7), blue], axis=2)
    write(folder / "train" / "a.jpg")
    write(folder / "train" / "a_seg.png", seg)
    write(folder / "train" / "a_parts_1.png", seg)
    (folder / "train" / "a_atr.txt").write_text(
        '001 # 0 # 0 # car, auto # car # ""\n002 # 0 # 1 # person # person # "sitting, red"\n'
        '003 # 1 # 0 # wheel # wheel # ""\n'
    )
    return blue


def ade_2021(folder: Path) -> np.ndarray:
    things = labels(1, 2)
    objects = []
    write(folder / "b.jpg")
    write(folder / "b_seg.png", np.stack([things] * 3, axis=2))
    for number in (1, 2, 3):
        mask = (things == number).astype(np.uint8) * 255
        if number == 1:
            mask[-3:] = 128  # behind something
        write(folder / "b" / f"instance_{number:03d}_b.png", mask)
        objects.append(
            {
                "id": number,
                "name": "car, auto",
                "name_ndx": 401,
                "raw_name": "car",
                "attributes": ["parked"],
                "occluded": "no",
                "crop": "0",
                "parts": {"part_level": int(number == 3)},
                "instance_mask": f"b/instance_{number:03d}_b.png",
                "polygon": {"x": [1, 2, 3], "y": [1, 2, 4]},
            }
        )
    (folder / "b.json").write_text(json.dumps({"annotation": {"filename": "b.jpg", "object": objects}}))
    return things


def test_ade20k_of_2017_has_names_and_leaves_parts_out(tmp_path: Path) -> None:
    blue = ade_2017(tmp_path / "images" / "ADE")
    inputs = open_regions(tmp_path)
    assert inputs.title == "ADE20K" and inputs.notes == ["1 parts of things are left out."]
    found = regions(inputs)["images/ADE/train/a.jpg"]
    assert np.array_equal(found[1], blue == 40) and np.array_equal(found[2], blue == 90)
    assert [region.carried for region in inputs[0].regions] == [
        {"id": 1, "label": "car"},
        {"id": 2, "label": "person", "attributes": "sitting, red"},
    ]


def test_ade20k_of_2021_takes_what_can_be_seen(tmp_path: Path) -> None:
    things = ade_2021(tmp_path)
    inputs = open_regions(tmp_path)
    found = regions(inputs)["b.jpg"]
    assert np.array_equal(found[1], (things == 1) & (np.arange(H) < H - 3)[:, None])
    assert np.array_equal(found[2], things == 2)
    assert inputs[0].regions[0].carried["label"] == "car" and inputs[0].regions[0].carried["name_ndx"] == 401
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(DataError, match=r"there is no list of things under annotation\.object"):
        open_regions(tmp_path)


def test_a_thing_that_its_map_does_not_have_is_an_error(tmp_path: Path) -> None:
    ade_2017(tmp_path)
    atr = tmp_path / "train" / "a_atr.txt"
    atr.write_text(atr.read_text().replace("002", "009"))
    with pytest.raises(MaskError, match=r"a_seg\.png has 3 values, so there is no thing 9"):
        regions(open_regions(tmp_path))
    atr.write_text("1 # 2\n")
    with pytest.raises(DataError, match="line 1: six cells"):
        open_regions(tmp_path)


# --- as other libraries read them -------------------------------------------------------------------------------------


def by_datumaro(path: Path, name: str) -> dict[str, list[np.ndarray]]:
    dm = pytest.importorskip("datumaro", reason="datumaro is not installed: pip install .[annotation-tools]")
    return {
        item.id.rpartition("/")[2]: [each.image.astype(bool) for each in item.annotations if each.type.name == "mask"]
        for item in dm.Dataset.import_from(str(path), name)
    }


def agree(inputs: RegionInputs, theirs: dict[str, list[np.ndarray]]) -> None:
    ours = {Path(name).stem.removesuffix("_leftImg8bit"): list(ids.values()) for name, ids in regions(inputs).items()}
    assert list(ours) == list(theirs)
    for name, masks in theirs.items():
        key = {mask.tobytes(): (int(mask.sum()), mask.any(0).argmax()) for mask in masks}
        assert {mask.tobytes(): (int(mask.sum()), mask.any(0).argmax()) for mask in ours[name]} == key


@pytest.mark.filterwarnings("ignore")  # of datumaro, about itself and Pillow
@pytest.mark.parametrize("name", ["voc_instance_segmentation", "cityscapes"])
def test_maps_that_datumaro_wrote_are_read_as_it_reads_them(tmp_path: Path, name: str) -> None:
    dm = pytest.importorskip("datumaro", reason="datumaro is not installed: pip install .[annotation-tools]")
    from datumaro.components.annotation import Mask
    from datumaro.components.media import Image as Media

    values = labels(1, 2, 3)
    masks = [Mask(values == n, label=24 + n % 2, id=n, group=n, attributes={"track_id": n}) for n in (1, 2, 3)]
    pixels = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    items = [dm.DatasetItem(f"p{n}", subset="train", media=Media.from_numpy(pixels), annotations=masks) for n in (1, 2)]
    kinds = [f"kind{n}" for n in range(34)]
    dm.Dataset.from_iterable(items, categories=kinds, media_type=Media).export(str(tmp_path), name, save_media=True)
    agree(open_regions(tmp_path), by_datumaro(tmp_path, name))


def test_ade20k_is_read_as_datumaro_reads_it(tmp_path: Path) -> None:
    ade_2017(tmp_path)
    theirs = by_datumaro(tmp_path, "ade20k2017")
    assert len(theirs["a"]) == 3  # with the part
    agree(open_regions(tmp_path), {"a": theirs["a"][:2]})
