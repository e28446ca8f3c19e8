"""What is to be described: rows, folders and datasets -> images with their regions."""

import contextlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from conftest import RealRegion
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from finecaption_hf import MaskError, as_mask
from finecaption_hf.data import DataError, RegionInputs, open_images, open_regions
from finecaption_hf.data.regions import MAX_REGIONS

BOX = {"box_xyxy": [1, 2, 5, 6]}


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8))


def mask(seed: int = 0) -> Image.Image:
    values = np.zeros((12, 16), np.uint8)
    values[seed % 10 : seed % 10 + 2] = 255
    return Image.fromarray(values)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def of_rows(folder: Path, *rows: Any, images: Any = None) -> RegionInputs:
    """The inputs of a JSONL file; text stands for a line as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return open_regions(folder / "rows.jsonl", images=images)


def names(inputs: RegionInputs) -> list[tuple[str | None, int]]:
    """Image and number of regions of each item."""
    items = [inputs[index] for index in range(len(inputs))]
    assert list(inputs.region_counts()) == [len(item.regions) for item in items]
    return [(item.name, len(item.regions)) for item in items]


def errors(inputs: RegionInputs) -> dict[int, str]:
    """Position -> message of the regions that cannot be described."""
    regions = [region for index in range(len(inputs)) for region in inputs[index].regions]
    assert [region.position for region in regions] == list(range(inputs.num_regions))
    return {region.position: str(region.error) for region in regions if region.error is not None}


def pixels(inputs: RegionInputs, index: int = 0) -> list[np.ndarray]:
    item = inputs[index]
    loaded = item.load()
    return [as_mask(item.reference(region), loaded.height, loaded.width) for region in item.regions]


# --- rows -------------------------------------------------------------------------------------------------------------


def test_rows_of_the_same_image_are_one_image(tmp_path: Path, real_regions: list[RealRegion]) -> None:
    folder = real_regions[0].image.parents[1]
    inputs = open_regions(folder / "regions.jsonl")
    expected = [str(region.image.relative_to(folder)) for region in real_regions]
    assert inputs.num_regions == len(expected) == 27
    assert names(inputs) == [(name, expected.count(name)) for name in dict.fromkeys(expected)]
    assert not errors(inputs)
    for index in range(len(inputs)):
        for region, found in zip(inputs[index].regions, pixels(inputs, index), strict=True):
            assert np.array_equal(found, real_regions[region.position].mask)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(st.sampled_from(["a.png", "b.png"]), st.sampled_from([1, 2, 63, 64, 150])), max_size=6))
def test_regions_keep_their_order_however_they_are_cut(tmp_path: Path, rows: list[tuple[str, int]]) -> None:
    rows.append(("c.png", 1))
    expected = [(name, f"{row}.{n}") for row, (name, number) in enumerate(rows) for n in range(number)]
    inputs = of_rows(
        tmp_path,
        *(
            {"image": name, "regions": [{**BOX, "id": f"{row}.{n}"} for n in range(number)]}
            for row, (name, number) in enumerate(rows)
        ),
    )
    found, previous = [], None
    for index in range(len(inputs)):
        item = inputs[index]
        assert 1 <= len(item.regions) <= MAX_REGIONS
        # A new image starts where the name changes, and only there.
        first = item.regions[0].region_index
        assert first == (0 if previous is None or previous[0] != item.name else previous[1] + 1)
        assert [region.region_index - first for region in item.regions] == list(range(len(item.regions)))
        found += [(item.name, region.carried["id"]) for region in item.regions]
        previous = (item.name, item.regions[-1].region_index)
    assert found == expected
    assert inputs.num_regions == len(expected)


def test_ids_own_keys_and_questions_go_with_their_regions(tmp_path: Path) -> None:
    inputs = of_rows(
        tmp_path,
        {
            "image": "a.png",
            "id": 7,
            "split": "val",
            "questions": "color",
            "regions": [{"id": "x", "mask": BOX, "branches": []}, {**BOX, "questions": ["dense", "Is it new?"]}],
        },
        # As COCO has it, with an area that the record has itself.
        {
            "image": "b.png",
            "id": 5,
            "image_id": 3,
            "segmentation": [[0, 0, 9, 0, 9, 9]],
            "area": 40,
            "bbox": [0, 0, 9, 9],
        },
    )
    assert [(region.carried, region.questions) for n in range(2) for region in inputs[n].regions] == [
        ({"image_id": 7, "split": "val", "id": "x"}, ("color",)),
        ({"image_id": 7, "split": "val"}, ("dense", "Is it new?")),
        ({"id": 5, "image_id": 3, "bbox": [0, 0, 9, 9]}, None),
    ]


@pytest.mark.parametrize(
    "region",
    [
        BOX,
        {"mask": BOX},
        {"segmentation": [[1, 2, 5, 2, 5, 6, 1, 6]], "bbox": [1, 2, 4, 4]},
        {"polygon": [1, 2, 5, 2, 5, 6, 1, 6]},
        {"mask_rle": {"size": [12, 16], "counts": [14, 4, 8, 4, 8, 4, 8, 4, 138]}},
        {"mask_file": "masks/box.png"},
        {"mask": None, **BOX},
    ],
)
def test_a_region_may_be_given_in_any_form(tmp_path: Path, region: dict[str, Any]) -> None:
    expected = np.zeros((12, 16), bool)
    expected[2:6, 1:5] = True
    (tmp_path / "masks").mkdir()
    Image.fromarray(expected.astype(np.uint8) * 255).save(tmp_path / "masks" / "box.png")
    picture().save(tmp_path / "a.png")
    inputs = of_rows(tmp_path, {"image": "a.png", **region}, {"image": "a.png", "regions": [region]})
    assert names(inputs) == [("a.png", 2)]
    for found in pixels(inputs):
        assert np.array_equal(found, expected)


def test_a_row_without_a_region_is_the_whole_image(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    assert pixels(of_rows(tmp_path, {"image": "a.png"}))[0].all()


def test_what_is_broken_is_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    inputs = of_rows(
        tmp_path,
        {"image": "a.png", **BOX},
        '{"image": "a.png", ',
        "[1, 2]",
        {"image": "a.png", "regions": [BOX, {"mask": 3}, {"bbox": [1, 2, 3, 4]}, {**BOX, "questions": []}]},
        {"image": "a.png", "regions": []},
        {"image": "a.png", **BOX, "questions": [" "]},
        {"image": "a.png", **BOX},
    )
    found = errors(inputs)
    assert sorted(found) == [1, 2, 4, 5, 6, 7]
    assert inputs.num_regions == 9 and inputs.num_without_regions == 1
    parts = {
        1: "rows.jsonl:2: the line is no JSON",
        2: "rows.jsonl:3: row: a list",
        4: "rows.jsonl:4: regions[1]: mask",
    }
    parts |= {
        5: "regions[2]: region: The key 'bbox'",
        6: "questions: there is none",
        7: "questions[0]: it is empty",
    }
    for position, part in parts.items():
        assert part in found[position]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
KEYS = ["image", "id", "regions", "questions", "mask", "segmentation", "mask_file", "box_xyxy", "bbox", "counts"]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=st.dictionaries(st.sampled_from(KEYS), ANYTHING | st.just([{"mask": 1}, None, 2, {"id": []}])) | ANYTHING)
def test_whatever_a_row_holds_becomes_regions_or_errors(tmp_path: Path, row: Any) -> None:
    picture().save(tmp_path / "a.png")
    inputs = of_rows(tmp_path, {"image": "a.png", **BOX}, row, {"image": "a.png", **BOX})
    errors(inputs)
    for index in range(len(inputs)):
        item = inputs[index]
        try:
            loaded = item.load()
        except DataError:
            continue
        for region in item.regions:
            if region.error is None:
                with contextlib.suppress(DataError, MaskError):
                    as_mask(item.reference(region), loaded.height, loaded.width)


def test_an_image_that_is_missing_or_damaged_says_so_when_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    rows = [
        {"image": "gone.png", **BOX},
        {"image": "text.png", **BOX},
        {"image": "../a.png", **BOX},
        {"file": "a", **BOX},
    ]
    inputs = of_rows(tmp_path, *rows, {"image": "", **BOX}, {"image": 3, **BOX}, {"image": "\ud800", **BOX})
    expected = ["'gone.png': it is not there", "no format of pictures", "leads out", "rows.jsonl:4: image: nothing"]
    expected += ["rows.jsonl:5: image: text arrived", "rows.jsonl:6: image: a number arrived", "can't encode"]
    assert len(inputs) == len(expected)
    for index, part in enumerate(expected):
        with pytest.raises(DataError, match=part.replace("[", r"\[")):
            inputs[index].load()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"image": "a.png"}]', "one JSON array"),
        (b"\x1f\x8b\x08\x00", "file is packed"),
        (b"\n\n", "holds no region"),
        (b"\x89PNG\r\n\x1a\n", "wrong.jsonl:1: the line is no UTF-8"),
        (b'{"picture": "a.png"}\n', "wrong.jsonl:1: image: nothing arrived.*'picture'"),
    ],
)
def test_a_file_of_which_nothing_can_be_used_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "wrong.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_regions(tmp_path / "wrong.jsonl")


def test_pictures_and_masks_come_from_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as packed:
        packed.writestr("a.png", png(picture(3)))
        packed.writestr("a-mask.png", png(mask(4)))
    inputs = of_rows(tmp_path, {"image": "a.png", "mask_file": "a-mask.png"}, images=tmp_path / "images.zip")
    assert np.array_equal(inputs[0].load(), picture(3))
    assert np.array_equal(pixels(inputs)[0], np.asarray(mask(4)) > 0)


def test_a_changed_file_has_another_fingerprint_and_the_same_file_elsewhere_has_not(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    rows = [{"image": "a.png", **BOX}, {"image": "b.png", **BOX}]
    first = of_rows(tmp_path / "one", *rows).fingerprint
    assert of_rows(tmp_path / "two", *rows).fingerprint == first
    assert of_rows(tmp_path / "two", *rows[::-1]).fingerprint != first


def test_a_file_that_changes_under_the_run_is_noticed(tmp_path: Path) -> None:
    inputs = of_rows(tmp_path, {"image": "a.png", "regions": [BOX] * 70})
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "a.png"}) + "\n")
    with pytest.raises(DataError, match="changed since"):
        inputs[1]


# --- folders ----------------------------------------------------------------------------------------------------------


def test_masks_beside_pictures_and_in_folders_of_their_own_are_found(tmp_path: Path) -> None:
    layout = {
        "a.jpg": [f"a-mask{n}.png" for n in (1, 2, 10)],
        "gas_mask.png": ["gas_mask_mask.png"],
        "deep/b.png": ["deep/masks/b.png"],
        "deep/c.png": ["deep/masks/c/left.png", "deep/masks/c/right.png"],
        "set/images/d.webp": ["set/masks/d.png"],
        "set/images/e.png": ["set/masks/e/0.png"],
        "whole.bmp": [],
    }
    for name, masks in layout.items():
        for each in (name, *masks):
            (tmp_path / each).parent.mkdir(parents=True, exist_ok=True)
            (picture() if each == name else mask(len(each))).save(tmp_path / each)
    (tmp_path / "deep" / "masks" / "orphan.png").write_bytes(png(mask()))
    (tmp_path / "._a.jpg").write_text("of another system")
    (tmp_path / "notes.txt").write_text("left alone")
    inputs = open_regions(tmp_path)
    assert inputs.num_regions == 11
    items = [inputs[index] for index in range(len(inputs))]
    found = {item.name: [region.carried.get("id") for region in item.regions] for item in items[:-1]}
    assert found == {name: masks or [None] for name, masks in layout.items()}
    assert "deep/masks/orphan.png" in errors(inputs)[10]
    assert inputs.num_whole_images == 1
    assert np.array_equal(pixels(inputs)[2], np.asarray(mask(len("a-mask10.png"))) > 0)


def test_masks_of_two_pictures_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a-mask.png"):
        picture().save(tmp_path / name)
    with pytest.raises(DataError, match=r"a-mask\.png: it may be a mask of a\.jpg and of a\.png"):
        open_regions(tmp_path)


def test_a_damaged_mask_file_names_itself(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    (tmp_path / "a-mask.png").write_text("no picture")
    inputs = open_regions(tmp_path)
    with pytest.raises(DataError, match=r"mask 'a-mask\.png': it cannot be decoded \(no format"):
        pixels(inputs)


def test_a_folder_with_records_is_read_by_them(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text(json.dumps({"image": "images/a.png", **BOX}) + "\n")
    assert names(open_regions(tmp_path)) == [("images/a.png", 1)]


def test_what_is_not_there_says_what_could_be_given(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file or folder.*--split"):
        open_regions(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match="no pictures in this folder"):
        open_regions(tmp_path)


# --- datasets ---------------------------------------------------------------------------------------------------------


def dataset() -> datasets.Dataset:
    """Two rows with pictures and masks inside."""
    rows = {
        "image": [{"bytes": png(picture(n)), "path": None} for n in range(2)],
        "mask": [{"bytes": png(mask(n)), "path": None} for n in range(2)],
        "id": [10, 11],
    }
    features = datasets.Features(image=datasets.Image(), mask=datasets.Image(), id=datasets.Value("int64"))
    return datasets.Dataset.from_dict(rows, features=features)


def test_a_dataset_gives_its_pictures_and_masks(tmp_path: Path) -> None:
    datasets.DatasetDict(train=dataset(), test=dataset().select([1])).save_to_disk(tmp_path / "saved")
    for inputs in (open_regions(dataset()), open_regions(tmp_path / "saved", split="train")):
        assert [count for _, count in names(inputs)] == [1, 1]
        for index in range(2):
            assert np.array_equal(inputs[index].load(), picture(index))
            assert np.array_equal(pixels(inputs, index)[0], np.asarray(mask(index)) > 0)
            assert inputs[index].regions[0].carried == {"id": 10 + index}
    one = open_regions(tmp_path / "saved", split="test")
    assert one.num_regions == 1
    assert one.fingerprint != open_regions(tmp_path / "saved", split="train").fingerprint
    with pytest.raises(DataError, match=r"no split 'dev'\. There are: train, test"):
        open_regions(tmp_path / "saved", split="dev")
    with pytest.raises(DataError, match="splits train, test"):
        open_regions(tmp_path / "saved")


def test_rows_of_a_dataset_that_name_pictures_are_grouped(tmp_path: Path) -> None:
    picture(5).save(tmp_path / "a.png")
    rows = [
        {"image": "a.png", "regions": [{"mask": {"box_xyxy": [0, 0, 4, 4]}}, {"mask": {"box_xyxy": [0, 0, 5, 5]}}]},
        {"image": "a.png", "regions": [{"mask": {"box_xyxy": [0, 0, 6, 6]}}]},
    ]
    inputs = open_regions(datasets.Dataset.from_list(rows), images=open_images(tmp_path))
    assert names(inputs) == [("a.png", 3)]
    assert [found.sum() for found in pixels(inputs)] == [16, 25, 36]
    bare = open_regions(datasets.Dataset.from_list(rows))
    with pytest.raises(DataError, match="Give --images"):
        bare[0].load()


def test_a_format_that_is_none_lists_those_that_are(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "a.png", **BOX}))
    with pytest.raises(
        DataError, match=r"no format 'cocoo'\. Did you mean 'coco'\? There are: jsonl, folder, .*geojson\.$"
    ):
        open_regions(tmp_path / "rows.jsonl", format="cocoo")
    assert open_regions(tmp_path / "rows.jsonl", format="jsonl").num_regions == 1


@pytest.mark.parametrize("apart", [False, True], ids=["beside", "apart"])
def test_folders_that_are_links_are_followed_but_not_in_a_circle(tmp_path, apart):
    """Data sets lie on other disks: their folders are linked into the place where one works."""
    disk, here = tmp_path / "disk", tmp_path / "here"
    for folder in (disk / "images", disk / "masks", here):
        folder.mkdir(parents=True)
    picture().save(disk / "images" / "a.png")
    mask().save(disk / "masks" / "a.png")
    (disk / "images" / "again").symlink_to(disk, target_is_directory=True)
    for name in ("images",) if apart else ("images", "masks"):
        (here / name).symlink_to(disk / name, target_is_directory=True)
    inputs = open_regions(disk / "masks", images=here) if apart else open_regions(here)
    assert names(inputs) == [("images/a.png", 1)]
    assert not errors(inputs)
