"""YOLO's labels, Pascal VOC's boxes and Open Images' masks, compared with what their tools read."""

import csv
import io
import json
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from finecaption_hf import MaskError, as_mask
from finecaption_hf.cli import app
from finecaption_hf.data import DataError, RegionInputs, open_regions, read_examples

H, W = 40, 60
BOX = "0 0.5 0.5 0.5 0.4"  # columns 15 to 45, rows 12 to 28
OUTLINE = "1 0.1 0.1 0.6 0.1 0.6 0.5 0.1 0.5"


def picture(path: Path, size: tuple[int, int] = (H, W)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def masks(inputs: RegionInputs, index: int = 0) -> list[np.ndarray]:
    item = inputs[index]
    loaded = item.load()
    assert not [region.error for region in item.regions if region.error is not None]
    return [as_mask(item.reference(region, loaded), loaded.height, loaded.width) for region in item.regions]


def errors(inputs: RegionInputs) -> list[str]:
    regions = [region for index in range(len(inputs)) for region in inputs[index].regions]
    return [str(region.error) for region in regions if region.error is not None]


def rectangle(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros((H, W), bool)
    mask[top:bottom, left:right] = True
    return mask


# --- YOLO -------------------------------------------------------------------------------------------------------------


def yolo(folder: Path, lines: str = f"{BOX}\n{OUTLINE}\n", settings: str | None = None) -> Path:
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        picture(folder / "images" / split / f"{name}.jpg")
        text(folder / "labels" / split / f"{name}.txt", lines if name == "a" else "" if name == "b" else BOX)
    if settings is not None:
        text(folder / "data.yaml", settings)
    return folder


@pytest.mark.parametrize("settings", [None, "path: .\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n"])
def test_yolo_labels_are_boxes_and_outlines(tmp_path: Path, settings: str | None) -> None:
    inputs = open_regions(yolo(tmp_path, settings=settings))
    assert (inputs.title, inputs.num_regions, inputs.num_without_regions) == ("YOLO labels", 3, 1)
    assert [inputs[n].name for n in range(2)] == ["images/train/a.jpg", "images/val/c.jpg"]
    box, outline = masks(inputs)
    assert np.array_equal(box, rectangle(12, 28, 15, 45))
    assert np.array_equal(outline, rectangle(4, 20, 6, 36))
    carried = [region.carried for region in inputs[0].regions]
    names = ["cat", "dog"] if settings else [None, None]
    assert [(each["id"], each["class_id"], each.get("label")) for each in carried] == [
        (1, 0, names[0]),
        (2, 1, names[1]),
    ]


def test_parts_of_a_yolo_data_set_are_read_by_name(tmp_path: Path) -> None:
    yolo(tmp_path, settings="path: .\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n")
    for source in (tmp_path, tmp_path / "data.yaml"):
        assert open_regions(source, split="val").num_regions == 1
        assert open_regions(source, split="train").num_regions == 2
        assert open_regions(source).num_regions == 3
    with pytest.raises(DataError, match=r"no part 'test'\. There are: train, val"):
        open_regions(tmp_path, split="test")
    text(tmp_path / "some.txt", "./images/val/c.jpg\n")
    text(tmp_path / "data.yaml", "train: images/train\nval: some.txt\nnames: [cat]\n")
    assert open_regions(tmp_path, split="val")[0].name == "images/val/c.jpg"


@pytest.mark.parametrize(
    ("image", "label", "settings"),
    [
        ("train/images/a_jpg.rf.0123456789abcdef.jpg", "train/labels/a_jpg.rf.0123456789abcdef.txt", "../train/images"),
        ("obj_train_data/a.jpg", "obj_train_data/a.txt", None),
        ("a.jpg", "a.txt", None),
        ("images/a.png", "labels/a.txt", None),
    ],
)
def test_yolo_labels_lie_where_tools_put_them(tmp_path: Path, image: str, label: str, settings: str | None) -> None:
    picture(tmp_path / image)
    text(tmp_path / label, BOX)
    text(tmp_path / "classes.txt", "cat\ndog\n")
    if settings:
        text(tmp_path / "data.yaml", f"train: {settings}\nnc: 1\nnames: ['cat']\n")
    inputs = open_regions(tmp_path)
    assert (inputs.title, inputs[0].name) == ("YOLO labels", image)
    assert inputs[0].regions[0].carried["label"] == "cat"
    assert np.array_equal(masks(inputs)[0], rectangle(12, 28, 15, 45))


def test_yolo_labels_alone_take_pictures_from_elsewhere(tmp_path: Path) -> None:
    yolo(tmp_path)
    (tmp_path / "images").rename(tmp_path / "pictures")
    for source in (tmp_path / "labels", tmp_path / "labels" / "train"):
        inputs = open_regions(source, images=tmp_path / "pictures")
        assert inputs[0].name == "train/a.jpg" and inputs.num_regions == (3 if source.name == "labels" else 2)


def test_labels_are_seen_beside_however_many_pictures(tmp_path: Path) -> None:
    yolo(tmp_path)
    for number in range(2100):
        (tmp_path / "images" / "train" / f"_{number}.jpg").touch()
    assert open_regions(tmp_path).title == "YOLO labels"


@pytest.mark.parametrize(
    ("line", "carried"),
    [
        (f"{BOX} 0.87", {"confidence": 0.87}),
        (f"{BOX} 17", {"track_id": 17}),
        (f"{BOX} 0.87 17", {"confidence": 0.87, "track_id": 17}),
        (f"{OUTLINE} 0.5", {"confidence": 0.5}),
        ("3 0.1 0.1 0.9 0.1 0.9 1", {}),
        ("3 -0.01 0.1 1.004 0.1 0.9 0.9 0.2 0.5", {}),
    ],
)
def test_what_follows_a_yolo_box_or_outline_is_known(tmp_path: Path, line: str, carried: dict[str, Any]) -> None:
    inputs = open_regions(yolo(tmp_path, lines=line))
    found = inputs[0].regions[0].carried
    assert {key: value for key, value in found.items() if key not in ("id", "class_id")} == carried
    assert masks(inputs)[0].any()


def test_keypoints_are_told_by_the_settings(tmp_path: Path) -> None:
    pose = f"{BOX} 0.5 0.5 2 0.2 0.2 0 0.1 0.1 1"
    inputs = open_regions(yolo(tmp_path, lines=pose))
    assert "may be a box with keypoints" in errors(inputs)[0]
    settings = "train: images/train\nval: images/val\nkpt_shape: [3, 3]\nnames: [cat]\n"
    inputs = open_regions(yolo(tmp_path, lines=pose, settings=settings))
    assert np.array_equal(masks(inputs)[0], rectangle(12, 28, 15, 45))
    assert "1 boxes have keypoints, which are left out." in inputs.notes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 12 20 30 40", "no shares of the picture"),
        ("0 0.5 0.5 0.1", "there are 3 numbers"),
        ("cat 0.5 0.5 0.1 0.1", "numbers are needed"),
        ("-1 0.5 0.5 0.1 0.1", "no number of a class"),
        ("0 0.5 0.5 0 0.1", "0 wide"),
        ("0 nan 0.5 0.1 0.1", "no shares"),
    ],
)
def test_a_broken_yolo_line_is_an_error_in_its_place(tmp_path: Path, line: str, message: str) -> None:
    inputs = open_regions(yolo(tmp_path, lines=f"{BOX}\n{line}\n{BOX}"))
    assert inputs.num_regions == 4
    (error,) = errors(inputs)
    assert "labels/train/a.txt:2" in error and message in error


def test_hostile_settings_of_yolo_are_refused(tmp_path: Path) -> None:
    yolo(tmp_path)
    text(tmp_path / "data.yaml", "train: x\nnames: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(DataError, match="cannot be read as YAML"):
        open_regions(tmp_path)
    laughs = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(20)
    )
    text(tmp_path / "data.yaml", f"train: images/train\nnames: [cat]\n{laughs}")
    assert open_regions(tmp_path).num_regions == 3


@pytest.mark.filterwarnings("ignore")
def test_yolo_labels_are_read_as_ultralytics_and_supervision_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "open", Image.open)  # Ultralytics puts another one in its place
    cv2 = pytest.importorskip("cv2")
    supervision = pytest.importorskip(
        "supervision", reason="supervision is not installed: pip install .[annotation-tools]"
    )
    settings = "path: .\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n"
    outline = "1 0.1 0.1 0.61 0.1 0.61 0.5 0.33 0.8 0.1 0.5"
    yolo(tmp_path, lines=f"{outline}\n0 0.2 0.3 0.4 0.3 0.4 0.9\n", settings=settings)
    inputs = open_regions(tmp_path, split="train")
    theirs = supervision.DetectionDataset.from_yolo(
        images_directory_path=str(tmp_path / "images/train"),
        annotations_directory_path=str(tmp_path / "labels/train"),
        data_yaml_path=str(tmp_path / "data.yaml"),
        force_masks=True,
    )
    found = theirs.annotations[str(tmp_path / "images/train/a.jpg")]
    for mask, other in zip(masks(inputs), found.mask, strict=True):
        # OpenCV fills the pixels under the outline too: what differs is next to it, or at a sharp tip.
        edge = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5))) > cv2.erode(mask.astype(np.uint8), np.ones((3, 3)))
        assert not ((mask ^ other) & ~edge).any() and (mask & other).sum() > 0.95 * mask.sum()
    utils = pytest.importorskip("ultralytics.data.utils", reason="ultralytics is not installed")
    paths = tmp_path / "images/train/a.jpg", tmp_path / "labels/train/a.txt"
    found = utils.verify_image_label((*map(str, paths), "", False, 2, 0, 0, False))
    segments = [np.asarray(segment).reshape(-1) for segment in found[3]]
    assert [region.carried["class_id"] for region in inputs[0].regions] == found[1][:, 0].astype(int).tolist()
    for region, segment in zip(inputs[0].regions, segments, strict=True):
        assert np.allclose(region.reference.points, segment)


def test_yolo_boxes_that_datumaro_wrote_are_its_boxes(tmp_path: Path) -> None:
    dm = pytest.importorskip("datumaro", reason="datumaro is not installed: pip install .[annotation-tools]")
    from datumaro.components.annotation import Bbox
    from datumaro.components.media import Image as Media

    pixels = np.zeros((H, W, 3), np.uint8)
    boxes = [Bbox(3, 4, 20, 10, label=1), Bbox(0, 0, 60, 40, label=0), Bbox(30, 20, 11, 13, label=1)]
    item = dm.DatasetItem("p", subset="train", media=Media.from_numpy(pixels), annotations=boxes)
    dm.Dataset.from_iterable([item], categories=["cat", "dog"], media_type=Media).export(
        str(tmp_path), "yolo", save_media=True
    )
    inputs = open_regions(tmp_path)
    for mask, box in zip(masks(inputs), boxes, strict=True):
        assert np.array_equal(mask, rectangle(int(box.y), int(box.y + box.h), int(box.x), int(box.x + box.w)))
    assert [region.carried["label"] for region in inputs[0].regions] == ["dog", "cat", "dog"]


# --- Pascal VOC -------------------------------------------------------------------------------------------------------


def voc(objects: str, filename: str = "a.jpg", size: tuple[int, int] = (H, W)) -> str:
    height, width = size
    return (
        f"<annotation><folder>VOC</folder><filename>{filename}</filename><size><width>{width}</width><height>{height}"
        f"</height><depth>3</depth></size>{objects}</annotation>"
    )


def thing(xmin: Any, ymin: Any, xmax: Any, ymax: Any, name: str = "cat", more: str = "") -> str:
    box = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
    return f"<object><name>{name}</name><difficult>0</difficult><bndbox>{box}</bndbox>{more}</object>"


@pytest.mark.parametrize("source", ["", "Annotations", "Annotations/a.xml"])
def test_voc_counts_pixels_from_one_with_the_last_included(tmp_path: Path, source: str) -> None:
    picture(tmp_path / "JPEGImages" / "a.jpg")
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part>"
    content = voc(thing(1, 1, 60, 40) + thing(4, 3, 10.0, 20, "dog", part))
    text(tmp_path / "Annotations" / "a.xml", content)
    inputs = open_regions(tmp_path / source)
    assert (inputs.title, inputs.notes) == ("Pascal VOC", ["1 parts of things are left out."])
    whole, box = masks(inputs)
    assert whole.all() and np.array_equal(box, rectangle(2, 20, 3, 10))
    assert inputs[0].regions[1].carried == {"label": "dog", "difficult": "0"}


def test_a_first_pixel_of_zero_proves_that_all_files_count_from_zero(tmp_path: Path) -> None:
    for name, box in (("a", thing(4, 3, 10, 20)), ("b", thing("0.0", 3, 10, 20))):
        picture(tmp_path / f"{name}.jpg")
        text(tmp_path / f"{name}.xml", voc(box, f"{name}.jpg"))
    inputs = open_regions(tmp_path)
    assert "counted from 0, not from 1 as in VOC: 1 file has a first pixel 0" in inputs.notes[0]
    assert np.array_equal(masks(inputs)[0], rectangle(3, 20, 4, 10))
    assert np.array_equal(masks(inputs, 1)[0], rectangle(3, 20, 0, 10))


def test_voc_boxes_of_a_picture_of_another_size_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    text(tmp_path / "a.xml", voc(thing(4, 3, 10, 20), size=(80, 120)))
    with pytest.raises(MaskError, match=r"picture of 80x120 .*but the picture is 40x60"):
        masks(open_regions(tmp_path))
    text(tmp_path / "a.xml", voc(thing(4, 3, 10, 20), size=(0, 0)))  # as some tools leave it
    assert masks(open_regions(tmp_path))[0].sum() == 18 * 7


@pytest.mark.parametrize("filename", ["a", "C:\\data\\a.jpg", "b.jpg", "", "../JPEGImages/a.jpg"])
def test_the_picture_of_a_voc_file_is_found(tmp_path: Path, filename: str) -> None:
    picture(tmp_path / "JPEGImages" / "a.jpg")
    text(tmp_path / "Annotations" / "a.xml", voc(thing(4, 3, 10, 20), filename))
    assert masks(open_regions(tmp_path))[0].any()


def test_what_a_voc_file_cannot_say_is_an_error_in_its_place(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    rotated = "<object><name>x</name><robndbox><cx>1</cx></robndbox></object>"
    text(tmp_path / "a.xml", voc(thing(4, 3, 10, 20) + rotated + thing(1, "x", 3, 4)))
    text(tmp_path / "b.xml", "<annotation><object>")
    text(tmp_path / "c.xml", "<other/>")
    found = errors(open_regions(tmp_path))
    assert len(found) == 4
    for part in ("object 2: bndbox: it is missing; there is a robndbox", "object 3", "b.xml: it is no XML", "<other>"):
        assert any(part in error for error in found), part


def test_an_xml_bomb_ends_at_once(tmp_path: Path) -> None:
    entities = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(12))
    bomb = f'<?xml version="1.0"?><!DOCTYPE annotation [<!ENTITY e0 "ha">{entities}]>' + voc(thing(1, 1, 5, 5, "&e12;"))
    picture(tmp_path / "a.jpg")
    text(tmp_path / "a.xml", bomb)
    started = time.monotonic()
    with pytest.raises(DataError, match="declares types or entities"):
        open_regions(tmp_path)
    assert time.monotonic() - started < 5


@pytest.mark.filterwarnings("ignore")
def test_voc_boxes_are_those_of_torchvision_and_datumaro(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision.datasets")
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    picture(folder / "JPEGImages" / "a.jpg")
    text(folder / "Annotations" / "a.xml", voc(thing(4, 3, 10, 20, "cat") + thing(1, 1, 60, 40, "dog")))
    text(folder / "ImageSets" / "Main" / "train.txt", "a\n")
    _, annotation = torchvision.VOCDetection(str(tmp_path), year="2012", image_set="train")[0]
    inputs = open_regions(folder)
    for mask, other in zip(masks(inputs), annotation["annotation"]["object"], strict=True):
        x0, y0, x1, y1 = (int(other["bndbox"][side]) for side in ("xmin", "ymin", "xmax", "ymax"))
        assert np.array_equal(mask, rectangle(y0 - 1, y1, x0 - 1, x1))
    dm = pytest.importorskip("datumaro", reason="datumaro is not installed: pip install .[annotation-tools]")
    (item,) = dm.Dataset.import_from(str(folder), "voc_detection")
    for mask, box in zip(masks(inputs), item.annotations, strict=True):
        # It moves the first pixel only where asked to, and has the size between pixels rather than of them.
        assert (box.x - 1, box.y - 1) == (int(mask.any(0).argmax()), int(mask.any(1).argmax()))
        assert (box.w + 1, box.h + 1) == (int(mask.any(0).sum()), int(mask.any(1).sum()))


# --- Open Images ------------------------------------------------------------------------------------------------------

COLUMNS = (
    "MaskPath",
    "ImageID",
    "LabelName",
    "BoxID",
    "BoxXMin",
    "BoxXMax",
    "BoxYMin",
    "BoxYMax",
    "PredictedIoU",
    "Clicks",
)
ID = "38d66c6c5cafcd63"


def open_images(folder: Path, packed: bool = False, size: tuple[int, int] = (H // 2, W // 2)) -> list[np.ndarray]:
    """Two masks of one picture, at half its size, their lines apart; as they are at its size."""
    found, rows, files = [], [], {}
    for number in range(2):
        mask = np.zeros(size, bool)
        mask[2 + number : 9 + 3 * number, 4 : 20 - number] = True
        name = f"{ID}_m01g317_{number:08x}.png"
        file = io.BytesIO()
        Image.fromarray(mask).save(file, "PNG")
        files[name] = file.getvalue()
        rows.append([name, ID, "/m/01g317", f"{number:08x}", 0.1, 0.4, 0.2, 0.5, "0.88" if number else "", "0.1 0.2 1"])
        found.append(np.kron(mask, np.ones((H // size[0], W // size[1]), bool)))
    rows.insert(1, ["gone.png", "0000000000000000", "/m/0", "aa", "", "", "", "", "", ""])
    (folder / "masks" / "test").mkdir(parents=True)
    if packed:
        with zipfile.ZipFile(folder / "masks" / "test-masks-3.zip", "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        for name, content in files.items():
            (folder / "masks" / "test" / name).write_bytes(content)
    table = folder / "annotations" / "test-annotations-object-segmentation.csv"
    table.parent.mkdir()
    with open(table, "w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    text(folder / "annotations" / "class-descriptions.csv", '/m/01g317,Person\n/m/0,"Cat, big"\n')
    return found


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("source", ["", "annotations/test-annotations-object-segmentation.csv"])
def test_open_images_masks_are_brought_to_the_picture(tmp_path: Path, packed: bool, source: str) -> None:
    expected = open_images(tmp_path, packed)
    picture(tmp_path / "images" / "test" / f"{ID}.jpg")
    inputs = open_regions(tmp_path / source)
    assert inputs.title == "Open Images masks"
    assert all(np.array_equal(mask, wanted) for mask, wanted in zip(masks(inputs), expected, strict=True))
    assert [region.carried["id"] for region in inputs[0].regions] == ["00000000", "00000001"]
    assert inputs[0].regions[1].carried == {
        **{"id": "00000001", "image_id": ID, "label": "Person", "label_name": "/m/01g317", "predicted_iou": "0.88"}
    }
    assert "mask 'gone.png': it is not there" in errors(inputs)[0]


def test_open_images_have_the_names_of_compositioncap(tmp_path: Path) -> None:
    open_images(tmp_path)
    picture(tmp_path / "images" / "003568437.jpg")
    text(tmp_path / "filename2oiid.json", json.dumps({"003568437.jpg": ID}))
    inputs = open_regions(tmp_path / "annotations", images=tmp_path / "images")
    assert inputs[0].name == "003568437.jpg" and len(masks(inputs)) == 2


@pytest.mark.parametrize("has", ["003568437.jpg", f"{ID}.jpg", f"test/{ID}.jpg"])
def test_compositioncap_takes_photographs_under_their_names_in_open_images(tmp_path: Path, has: str) -> None:
    picture(tmp_path / "photos" / has)
    text(tmp_path / "filename2oiid.json", json.dumps({"003568437.jpg": ID}))
    entity = {"mask": {"box_xyxy": [1, 1, 9, 9]}, "attributes": {"Color": "red"}}
    text(tmp_path / "c.json", json.dumps([{"image": "003568437.jpg", "entities": [entity]}]))
    (example,) = read_examples(tmp_path / "c.json", images=tmp_path / "photos")
    assert example.load().size == (W, H)


@pytest.mark.filterwarnings("ignore")
def test_open_images_are_read_as_datumaro_reads_them(tmp_path: Path) -> None:
    dm = pytest.importorskip("datumaro", reason="datumaro is not installed: pip install .[annotation-tools]")
    open_images(tmp_path)
    picture(tmp_path / "images" / "test" / f"{ID}.jpg")
    text(
        tmp_path / "annotations" / "test-images-with-rotation.csv",
        "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,OriginalSize,OriginalMD5,"
        f"Thumbnail300KURL,Rotation\n{ID},test,,,,,,,,,,\n",
    )
    table = tmp_path / "annotations" / "test-annotations-object-segmentation.csv"
    table.write_text("".join(line for line in table.read_text().splitlines(True) if "gone" not in line))
    theirs = next(item for item in dm.Dataset.import_from(str(tmp_path), "open_images") if item.id == ID)
    ours = {
        region.carried["id"]: mask
        for region, mask in zip(open_regions(tmp_path)[0].regions, masks(open_regions(tmp_path)))
    }
    for annotation in theirs.annotations:
        assert np.array_equal(ours[annotation.attributes["box_id"]], annotation.image.astype(bool))


def test_a_broken_table_of_open_images_is_told(tmp_path: Path) -> None:
    table = text(tmp_path / "x-annotations-object-segmentation.csv", f"{','.join(COLUMNS)}\n../a.png,{ID},/m/0,b\n")
    picture(tmp_path / f"{ID}.jpg")
    with pytest.raises(DataError, match="MaskPath: it has to be the name of a file"):
        open_regions(table)


# --- through the command ----------------------------------------------------------------------------------------------


def test_yolo_labels_are_described(tmp_path: Path) -> None:
    yolo(tmp_path / "set", settings="path: .\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n")
    output = tmp_path / "out.jsonl"
    command = ["describe", str(tmp_path / "set"), "--split", "val", "--output", str(output), "--max-new-tokens", "3"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "read as YOLO labels, 1 regions" in result.output
    (record,) = map(json.loads, output.read_text().splitlines())
    assert (record["label"], record["area"]) == ("cat", 16 * 30)
