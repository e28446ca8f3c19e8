"""Files of masks that are not plainly black and white at the picture's size, and folders that hold them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finecaption_hf import MaskError, as_mask
from finecaption_hf.cli.caption import CaptionCommand
from finecaption_hf.data import DataError, open_regions
from finecaption_hf.data.folder import pair, pair_apart
from finecaption_hf.data.images import MaskContent
from finecaption_hf.data.mask_rules import STRICT, MaskRules
from finecaption_hf.masks_finecaption import RegionMask
from finecaption_hf.segmentation import read_regions

H, W = 24, 36


def inside() -> np.ndarray:
    values = np.zeros((H, W), bool)
    values[4:15, 6:30] = True
    values[12:20, 2:9] = True
    return values


def grey(mask: np.ndarray | None = None) -> Image.Image:
    return Image.fromarray((inside() if mask is None else mask).astype(np.uint8) * 255)


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read(data: bytes, name: str = "m.png", rules: MaskRules = STRICT, size: tuple[int, int] = (H, W)) -> np.ndarray:
    content = MaskContent(data, name)
    return as_mask(content.mask(name, content.parts[0], rules), *size)


# --- rules ------------------------------------------------------------------------------------------------------------


def test_soft_edges_need_a_threshold(tmp_path: Path) -> None:
    soft = saved(grey(), "jpeg", quality=60)
    with pytest.raises(MaskError, match=r"The file 'm\.jpg': .*--threshold 0\.5"):
        read(soft, "m.jpg")
    values = np.asarray(Image.open(io.BytesIO(soft)))
    for share in (0.1, 0.5, 0.9):
        assert np.array_equal(read(soft, "m.jpg", MaskRules(threshold=share)), values > 255 * share)
    assert np.array_equal(read(soft, "m.jpg", MaskRules(threshold=0.5)), inside())


@pytest.mark.parametrize("kind", ["u1-01", "u1-0255", "u2", "1", "rgb", "palette", "f4"])
def test_a_threshold_leaves_what_is_binary_as_it_is(kind: str) -> None:
    mask = inside()
    data = {
        "u1-01": lambda: saved(Image.fromarray(mask.astype(np.uint8)), "png"),
        "u1-0255": lambda: saved(grey(), "png"),
        "u2": lambda: saved(Image.fromarray(mask.astype(np.uint16) * 65535), "png"),
        "1": lambda: saved(grey().convert("1"), "png"),
        "rgb": lambda: saved(grey().convert("RGB"), "png"),
        "palette": lambda: saved(grey().convert("P"), "png"),
        "f4": lambda: saved(Image.fromarray(mask.astype(np.float32)), "tiff"),
    }[kind]()
    assert np.array_equal(read(data, rules=MaskRules(threshold=0.5)), mask)


def test_the_cut_out_of_a_picture_is_what_is_not_transparent() -> None:
    cut_out = picture().convert("RGBA")
    cut_out.putalpha(grey())
    with pytest.raises(MaskError, match="--alpha"):
        read(saved(cut_out, "png"))
    assert np.array_equal(read(saved(cut_out, "png"), rules=MaskRules(alpha=True)), inside())
    soft = np.full((H, W), 100, np.uint8)
    soft[inside()] = 200
    cut_out.putalpha(Image.fromarray(soft))
    assert read(saved(cut_out, "webp", lossless=True), rules=MaskRules(alpha=True)).all()
    half = MaskRules(alpha=True, threshold=0.5)
    assert np.array_equal(read(saved(cut_out, "webp", lossless=True), rules=half), inside())


@pytest.mark.parametrize("image", [picture(), picture().convert("RGBA")])
def test_a_picture_without_transparency_is_no_cut_out(image: Image.Image) -> None:
    with pytest.raises(MaskError, match="Leave --alpha out"):
        read(saved(image, "png"), rules=MaskRules(alpha=True))


def test_what_is_coloured_is_no_mask_at_any_threshold() -> None:
    with pytest.raises(MaskError, match=r"coloured.*label-map"):
        read(saved(picture(), "png"), rules=MaskRules(threshold=0.5))
    cut_out = grey().convert("LA")
    cut_out.putalpha(grey())
    with pytest.raises(MaskError, match="give --alpha"):
        read(saved(cut_out, "png"), rules=MaskRules(threshold=0.5))


def test_a_mask_of_half_the_size_is_doubled_pixel_by_pixel() -> None:
    half = saved(grey(inside()[::2, ::2]), "png")
    with pytest.raises(MaskError, match=r"12x18 but the image is 24x36.*--resize-masks"):
        read(half)
    with pytest.raises(MaskError, match="12x18 but the image is 24x36"):
        read(half, rules=MaskRules(threshold=0.5))
    found = read(half, rules=MaskRules(resize=True))
    assert np.array_equal(found, np.kron(inside()[::2, ::2], np.ones((2, 2), bool)))


@pytest.mark.parametrize("size", [(7, 11), (24, 36), (50, 70), (25, 25), (37, 100)])
def test_each_pixel_of_a_resized_mask_is_the_one_under_its_centre(size: tuple[int, int]) -> None:
    mask = np.random.default_rng(size[0]).random(size) < 0.5
    found = read(saved(grey(mask), "png"), rules=MaskRules(resize=True))
    rows = ((np.arange(H) + 0.5) * size[0] / H).astype(int)
    columns = ((np.arange(W) + 0.5) * size[1] / W).astype(int)
    assert np.array_equal(found, mask[rows[:, None], columns])


def test_a_mask_that_lies_on_its_side_is_not_resized() -> None:
    with pytest.raises(MaskError, match=r"48x30, but the image is 24x36.*lies on its side"):
        read(saved(grey(np.ones((48, 30), bool)), "png"), rules=MaskRules(resize=True))


# --- several in a file ------------------------------------------------------------------------------------------------


def layers(number: int = 3) -> np.ndarray:
    masks = np.zeros((number, H, W), bool)
    for index in range(number):
        masks[index, index : index + 5, 3 : 9 + index] = True
    return masks


def stack(name: str, masks: np.ndarray) -> bytes:
    file = io.BytesIO()
    if name.endswith(".npz"):
        np.savez_compressed(file, first=masks[0], rest=masks[1:])
    elif name.endswith(".npy"):
        np.save(file, masks.astype(np.uint8))
    elif name.endswith(".fortran"):
        np.save(file, np.asfortranarray(masks))
    else:
        pages = [grey(mask) for mask in masks]
        pages[0].save(file, "tiff" if name.endswith("tif") else "gif", save_all=True, append_images=pages[1:])
    return file.getvalue()


@pytest.mark.parametrize("name", ["m.tif", "m.gif", "m.npy", "m.npz"])
def test_each_page_and_plane_is_a_region_wherever_files_of_masks_are_taken(tmp_path: Path, name: str) -> None:
    masks = layers()
    picture().save(tmp_path / "a.png")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / name.replace("m.", "a.")).write_bytes(stack(name, masks))
    inputs = open_regions(tmp_path)
    assert inputs.num_regions == 3
    item = inputs[0]
    loaded = item.load()
    # In any order: pages of a picture are sought.
    for index in (2, 0, 1):
        found = as_mask(item.reference(item.regions[index], loaded), H, W)
        assert np.array_equal(found, masks[index])
    ids = [region.carried["id"] for region in item.regions]
    start = name.replace("m.", "masks/a.")
    assert ids == ([f"{start}#first", f"{start}#rest/0", f"{start}#rest/1"] if name == "m.npz" else ids)
    assert len(set(ids)) == 3 and ids[0].startswith(f"{start}#")
    read = read_regions([("mask", str(tmp_path / "masks" / name.replace("m.", "a.")))], H, W)
    assert [where for where, _ in read] == [f"region {n} (--mask)" for n in (1, 2, 3)]
    assert all(isinstance(region, RegionMask) for _, region in read)
    assert all(np.array_equal(region.pixels, mask) for (_, region), mask in zip(read, masks, strict=True))


def test_arrays_are_read_whatever_their_order_and_channels() -> None:
    masks = layers()
    content = MaskContent(stack("m.fortran", masks), "m.npy")
    assert [
        np.array_equal(as_mask(content.mask("m.npy", part, STRICT), H, W), masks[part[0]]) for part in content.parts
    ]
    for array in (masks[0], masks[0][..., None], np.stack([masks[0].astype(np.uint8) * 255] * 3, axis=2)):
        file = io.BytesIO()
        np.save(file, array)
        content = MaskContent(file.getvalue(), "m.npy")
        assert content.parts == [()]
        assert np.array_equal(as_mask(content.mask("m.npy", (), STRICT), H, W), masks[0])


def test_a_stack_where_one_mask_is_needed_is_refused(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    (tmp_path / "m.tif").write_bytes(stack("m.tif", layers()))
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "mask_file": "m.tif"}\n')
    inputs = open_regions(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match="holds 3 masks, and one is needed"):
        inputs[0].reference(inputs[0].regions[0])


def hostile(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (hostile((100_000, 100_000)), "more than masks of any picture"),
        (hostile((10**6, 8, 8)), "holds 1000000 masks"),
        (hostile((2, 3, 4, 5)), "masks are numbers of shape"),
        (hostile((3, 4), "|O"), "masks are numbers of shape"),
        (hostile((-3, 4)), "masks are numbers of shape"),
        (hostile((1000, 1000)), "cannot be read"),
        (b"PK\x03\x04" + bytes(100), "cannot be read"),
        (b"no arrays", "cannot be read"),
    ],
)
def test_hostile_arrays_are_refused_before_they_are_made(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(data, "m.npy")


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "masks"),
    [
        ("images/a.jpg", ["mask/a.png"]),
        ("images/a.jpg", ["labels/a.png"]),
        ("imgs/a.jpg", ["annotations/a.png"]),
        ("a.jpg", ["GT/a.png"]),
        ("JPEGImages/a.jpg", ["SegmentationObject/a.png"]),
        ("photos/a.jpg", ["ground-truth/a_gt.png"]),
        ("images/train/a.jpg", ["masks/train/a.png"]),
        ("train/images/a.jpg", ["train/masks/a/0.png", "train/masks/a/1.png"]),
        ("pics/deep/a.jpg", ["pics_masks/deep/a.png"]),
        ("train/a.jpg", ["train_masks/a_mask.gif"]),
        ("fg/a.png", ["matte/a.png"]),
        ("data/x/img_1.jpg", ["data/masks/img_1_0.png", "data/masks/img_1_1.png"]),
        ("JPEGImages/480p/bear/00000.jpg", ["Annotations/480p/bear/00000.png"]),
        ("a.jpg", ["a-mask.png", "a_mask.npy"]),
    ],
)
def test_masks_are_found_in_folders_of_the_usual_names(image: str, masks: list[str]) -> None:
    found = pair(sorted([image, *masks]))
    assert (found.pictures, found.masks, found.orphans) == ([image], {image: masks}, [])


@pytest.mark.parametrize(
    ("names", "pictures", "orphans"),
    [
        (["wine/labels/a.png", "wine/labels/b.png"], ["wine/labels/a.png", "wine/labels/b.png"], []),
        (["labels/a.jpg", "labels/masks/a.png"], ["labels/a.jpg"], []),
        (["images/a.jpg", "labels/a.png", "labels/b.png"], ["images/a.jpg"], ["labels/b.png"]),
        (["a.jpg", "masks/b.png"], ["a.jpg"], ["masks/b.png"]),
        (["a.jpg", "b_mask.npy"], ["a.jpg"], ["b_mask.npy"]),
    ],
)
def test_a_folder_is_one_of_masks_only_beside_their_pictures(
    names: list[str], pictures: list[str], orphans: list[str]
) -> None:
    found = pair(names)
    assert (found.pictures, found.orphans) == (pictures, orphans)


def test_a_jpeg_beside_a_picture_is_its_mask_where_masks_may_be_soft(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.jpg")
    (tmp_path / "a-mask.jpg").write_bytes(saved(grey(), "jpeg"))
    assert open_regions(tmp_path).num_whole_images == 2
    inputs = open_regions(tmp_path, threshold=0.5)
    assert inputs.num_regions == 1
    assert np.array_equal(as_mask(inputs[0].reference(inputs[0].regions[0]), H, W), inside())
    assert inputs.fingerprint != open_regions(tmp_path, threshold=0.4).fingerprint


def test_masks_and_pictures_may_lie_in_two_places(tmp_path: Path) -> None:
    for name in ("pictures/x/a.png", "pictures/y/a.png", "pictures/y/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture().save(tmp_path / name)
    for name in ("cut/x/a.png", "cut/y/a/0.png", "cut/y/a/1.png", "cut/gone.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        grey().save(tmp_path / name)
    inputs = open_regions(tmp_path / "cut", images=tmp_path / "pictures")
    assert (inputs.num_regions, inputs.num_without_regions) == (4, 1)
    assert [inputs[n].name for n in range(3)] == ["x/a.png", "y/a.png", None]
    assert np.array_equal(as_mask(inputs[1].reference(inputs[1].regions[1]), H, W), inside())
    with pytest.raises(DataError, match=r"may be a mask of x/a\.png and of y/a\.png"):
        pair_apart(["a.png"], ["x/a.png", "y/a.png"])


@pytest.mark.parametrize("kind", ["voc", "grey", "16", "binary", "rgb"])
@pytest.mark.parametrize("alone", [False, True])
def test_label_maps_among_pictures_are_not_described(tmp_path: Path, kind: str, alone: bool) -> None:
    labels = np.zeros((60, 80), np.uint8)
    labels[5:40, 10:50], labels[30:55, 40:70] = 1, 2
    made = Image.fromarray(labels)
    if kind == "voc":
        made.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
    elif kind == "16":
        made = Image.fromarray(labels.astype(np.uint16) * 1000 + 24001)
    elif kind in ("binary", "rgb"):
        made = Image.fromarray((labels > 0).astype(np.uint8) * 255).convert("RGB" if kind == "rgb" else "L")
    if not alone:
        picture().save(tmp_path / "photo.jpg")
    for number in range(5):
        made.save(tmp_path / f"map{number}.png")
    looks = "a mask" if kind in ("binary", "rgb") else "a label map"
    if alone and looks == "a label map":
        with pytest.raises(DataError, match=r"these are label maps, and their pictures are not beside them.*--images"):
            open_regions(tmp_path)
        return
    with pytest.raises(DataError, match=rf"map0\.png looks like {looks}.*and so do 2 more.*--format label-map"):
        open_regions(tmp_path)


def test_pictures_of_few_colours_are_pictures(tmp_path: Path) -> None:
    drawing = Image.new("RGB", (60, 40), "white")
    drawing.paste("red", (5, 5, 30, 30))
    drawing.save(tmp_path / "drawing.png")
    drawing.quantize(4).save(tmp_path / "palette.png")
    Image.new("L", (60, 40), 7).save(tmp_path / "plain.png")
    smooth = np.tile(np.arange(80, dtype=np.uint16) * 800, (60, 1))
    Image.fromarray(smooth).save(tmp_path / "depth.png")
    Image.fromarray(np.tile(np.arange(80, dtype=np.uint8), (60, 1))).save(tmp_path / "ramp.png")
    assert open_regions(tmp_path).num_whole_images == 5


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("p.jpg --mask a b c", "p.jpg --mask a --mask b --mask c"),
        ("--mask a b p.jpg", "--mask a --mask b p.jpg"),
        ("--mask a p.jpg", "--mask a p.jpg"),
        ("--mask a b --json p.jpg", "--mask a --mask b --json p.jpg"),
        ("p.jpg --mask=a b --box 1,2,3,4 --mask c d", "p.jpg --mask=a --mask b --box 1,2,3,4 --mask c --mask d"),
        ("--device cpu p.jpg --mask a b", "--device cpu p.jpg --mask a --mask b"),
        ("p.jpg --json", "p.jpg --json"),
        ("p.jpg q.jpg --box 1,2,3,4", "p.jpg q.jpg --box 1,2,3,4"),
    ],
)
def test_several_files_may_follow_one_mask_option(given: str, expected: str) -> None:
    from typer.main import get_command

    from finecaption_hf.cli import app

    command = get_command(app).commands["caption"]  # type: ignore[attr-defined]
    assert isinstance(command, CaptionCommand)
    assert command.one_mask_each(given.split()) == expected.split()


def test_a_pattern_names_files_of_masks_in_natural_order(tmp_path: Path) -> None:
    masks = layers()
    for number, mask in zip((1, 2, 10), masks):
        grey(mask).save(tmp_path / f"m{number}.png")
    found = read_regions([("mask", str(tmp_path / "m*.png"))], H, W)
    assert [np.array_equal(region.pixels, mask) for (_, region), mask in zip(found, masks)] == [True] * 3
    with pytest.raises(ValueError, match="no file is called so"):
        read_regions([("mask", str(tmp_path / "n*.png"))], H, W)


def test_the_command_reads_masks_by_rules(tmp_path: Path) -> None:
    (tmp_path / "m.jpg").write_bytes(saved(grey(), "jpeg"))
    with pytest.raises(MaskError, match="--threshold"):
        read_regions([("mask", str(tmp_path / "m.jpg"))], H, W)
    ((_, region),) = read_regions([("mask", str(tmp_path / "m.jpg"))], H, W, rules=MaskRules(threshold=0.5))
    assert isinstance(region, RegionMask) and np.array_equal(region.pixels, inside())
