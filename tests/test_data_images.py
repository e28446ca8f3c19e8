"""Pictures from folders and archives."""

import io
import multiprocessing
import os
import pickle
import sys
import tarfile
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from waiting import exit_code, start

from finecaption_hf import FineCaptionImageProcessor
from finecaption_hf.data import DataError, ImageStore, open_images, open_regions


def picture(seed: int = 0, size: tuple[int, int] = (31, 17)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "deep").mkdir()
    picture(0).save(folder / "a.png")
    picture(1).save(folder / "deep" / "b.jpg")
    rotated = Image.Exif()
    rotated[0x0112] = 6
    picture(2).save(folder / "turned.jpg", exif=rotated)
    clear = picture(3).convert("RGBA")
    clear.putalpha(0)
    clear.save(folder / "clear.png")
    whole = (folder / "deep" / "b.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def archives(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    outside = tmp_path_factory.mktemp("archives")
    with (
        zipfile.ZipFile(outside / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed,
        tarfile.open(outside / "a.tar", "w") as tar,
    ):
        for path in sorted(folder.rglob("*.*")):
            packed.write(path, path.relative_to(folder))
            tar.add(path, "./" + str(path.relative_to(folder)))
    return {"folder": folder, "zip": outside / "a.zip", "tar": outside / "a.tar"}


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", ["a.png", "deep/b.jpg", "turned.jpg", "clear.png", "./deep//b.jpg"])
def test_archives_give_the_pixels_of_the_folder(archives: dict[str, Path], kind: str, name: str) -> None:
    expected = open_images(archives["folder"]).read(name)
    assert expected.mode == "RGB"
    assert np.array_equal(open_images(archives[kind]).read(name), expected)


def test_exif_orientation_is_applied_and_transparency_lies_on_white(folder: Path) -> None:
    store = open_images(folder)
    assert store.read("turned.jpg").size == (17, 31)
    assert np.all(np.asarray(store.read("clear.png")) == 255)
    assert np.array_equal(store.read("a.png"), picture(0))


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.png", "it is not there"),
        ("truncated.jpg", "it cannot be decoded"),
        ("text.png", "no format of pictures"),
        ("deep", "image 'deep': "),
        ("../a.png", "leads out"),
        ("deep/../../a.png", "leads out"),
        ("deep\\..\\..\\a.png", "leads out"),
        ("/etc/passwd", "no relative path"),
        ("C:\\gone.png", "no relative path"),
        ("https://example.org/gone.png", "no relative path"),
        ("https://example.org/../a.png", "leads out"),
        ("a.png\0", "has to be text"),
        ("", "has to be text"),
    ],
)
def test_what_cannot_be_read_is_refused(archives: dict[str, Path], kind: str, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_images(archives[kind]).read(name)


def store_of(folder: Path, kind: str, *names: str) -> ImageStore:
    """Pictures of these names, each of another colour."""
    data = {}
    for number, name in enumerate(names):
        file = io.BytesIO()
        Image.new("RGB", (2, 2), (number, 0, 0)).save(file, "PNG")
        data[name] = file.getvalue()
    with zipfile.ZipFile(folder / "a.zip", "w") as packed, tarfile.open(folder / "a.tar", "w") as tar:
        for name, content in data.items():
            (folder / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "pictures" / name).write_bytes(content)
            packed.writestr(name, content)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return open_images({"folder": folder / "pictures", "zip": folder / "a.zip", "tar": folder / "a.tar"}[kind])


NAMES = (
    "train2017/000000000009.jpg",
    "x/cafe\u0301.jpg",
    "x/b.png",
    "y/b.png",
    "cat_jpg.rf.0123456789abcdef0123456789abcdef.jpg",
    "masks/only.png",
    "deep/x/c.png",
)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("x\\b.png", 2),
        ("x/caf\u00e9.jpg", 1),
        ("caf\u00e9.JPG", 1),
        ("000000000009.jpg", 0),
        ("COCO_train2014_000000000009.jpg", 0),
        ("val2017/000000000009.jpg", 0),
        ("/elsewhere/data/y/b.png", 3),
        ("C:\\data\\x\\b.png", 2),
        ("https://example.org/x/b.png?size=2#top", 2),
        ("/data/local-files/?d=some%20where/c.png", 6),
        ("/data/upload/3/0a1b2c3d-c.png", 6),
        ("cat.jpg", 4),
        ("images/cat.jpeg", 4),
        ("masks/only.png", 5),
        ("other/masks/only.png", 5),
    ],
)
def test_other_names_mean_the_only_file_that_fits(tmp_path: Path, kind: str, name: str, found: int) -> None:
    assert store_of(tmp_path, kind, *NAMES).read(name).getpixel((0, 0)) == (found, 0, 0)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("b.png", r"no file is called exactly so, and it may be 'x/b\.png', 'y/b\.png'. Give the name of one"),
        ("z/b.png", r"'x/b\.png', 'y/b\.png'"),
        ("only.png", "it is not there"),
        ("cat_jpg.rf.00000000000000000000000000000000.jpg", "it is not there"),
        ("og.jpg", "it is not there"),
        ("009.jpg", "it is not there"),
        ("../x/b.png", "leads out"),
        ("x\\..\\..\\b.png", "leads out"),
    ],
)
def test_other_names_that_fit_no_file_or_several_are_refused(
    tmp_path: Path, kind: str, name: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        store_of(tmp_path, kind, *NAMES).read(name)


def test_an_absolute_name_below_the_folder_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = store_of(tmp_path, "folder", *NAMES)
    assert store.read(str(tmp_path / "pictures" / "y" / "b.png")).getpixel((0, 0)) == (3, 0, 0)
    assert not caplog.records
    for name in ("c.png", "cat.jpg"):
        store.read(name)
    assert len(caplog.records) == 1 and "'c.png' is taken to be 'deep/x/c.png'" in caplog.text


def test_masks_are_not_looked_for_in_other_folders(tmp_path: Path) -> None:
    store = store_of(tmp_path, "folder", *NAMES)
    assert store.read_bytes("x\\b.png") == store.read_bytes("x/b.png")
    with pytest.raises(DataError, match="it is not there"):
        store.read_bytes("c.png")
    with pytest.raises(DataError, match="no relative path"):
        store.read_bytes("/deep/x/c.png")


def test_files_outside_are_never_meant(tmp_path: Path) -> None:
    store = store_of(tmp_path, "folder", *NAMES)
    picture().save(tmp_path / "secret.png")
    beside = tmp_path / "pictures2"
    beside.mkdir()
    picture().save(beside / "secret.png")
    for name in ("secret.png", str(tmp_path / "secret.png"), str(beside / "secret.png"), "pictures2/secret.png"):
        with pytest.raises(DataError, match=r"it is not there|no relative path"):
            store.read(name)


def test_member_that_leads_out_of_its_archive_is_never_reached(tmp_path: Path) -> None:
    data = io.BytesIO()
    picture().save(data, "PNG")
    (tmp_path / "evil.png").write_bytes(data.getvalue())
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as packed:
        packed.writestr("../evil.png", data.getvalue())
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        tar.add(tmp_path / "evil.png", "../evil.png")
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "evil.png")
        tar.addfile(link)
    for name in ("evil.zip", "evil.tar"):
        store = open_images(tmp_path / name)
        for image in ("../evil.png", "link.png"):
            with pytest.raises(DataError):
                store.read(image)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_picture_with_too_many_pixels_is_refused(archives: dict[str, Path], kind: str) -> None:
    with pytest.raises(DataError, match="31 x 17 pixels, more than 526"):
        open_images(archives[kind], max_pixels=31 * 17 - 1).read("a.png")
    assert open_images(archives[kind], max_pixels=31 * 17).read("a.png").size == (31, 17)


def test_archive_without_its_end_tells_so(archives: dict[str, Path], tmp_path: Path) -> None:
    whole = archives["tar"].read_bytes()
    store = open_images(archives["tar"])
    store.path = str(tmp_path / "short.tar")
    (tmp_path / "short.tar").write_bytes(whole[:600])
    with pytest.raises(DataError, match="the archive ends"):
        store.read("a.png")
    with pytest.raises(DataError, match="neither a folder nor"):
        (tmp_path / "bad.zip").write_bytes(b"PK\3\4" + bytes(2000))
        open_images(tmp_path / "bad.zip")


def test_compressed_tar_is_refused_with_the_remedy(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(folder / "a.png", "a.png")
    with pytest.raises(DataError, match=r"compressed \.tar .*pack it anew"):
        open_images(tmp_path / "a.tar.gz")
    with pytest.raises(DataError, match="no such folder"):
        open_images(tmp_path / "absent")


def _first_pixel(store: ImageStore, answers: Any) -> None:
    answers.put(np.asarray(store.read("a.png"))[0, 0].tolist())


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_store_works_in_forked_and_unpickled_copies(archives: dict[str, Path], kind: str) -> None:
    store = open_images(archives[kind])
    expected = np.asarray(store.read("a.png"))[0, 0].tolist()
    assert np.asarray(pickle.loads(pickle.dumps(store)).read("a.png"))[0, 0].tolist() == expected
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    workers = [context.Process(target=_first_pixel, args=(store, answers)) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert [answers.get(timeout=60) for _ in workers] == [expected] * 3
    assert [exit_code(worker) for worker in workers] == [0, 0, 0]


def test_fork_while_another_thread_opens_the_archive_does_not_hang(
    archives: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = pickle.loads(pickle.dumps(open_images(archives["zip"])))
    here, opening, go_on, real = os.getpid(), threading.Event(), threading.Event(), zipfile.ZipFile

    def slow(path: Any) -> zipfile.ZipFile:
        if os.getpid() == here:
            opening.set()
            assert go_on.wait(60)
        return real(path)

    monkeypatch.setattr(zipfile, "ZipFile", slow)
    reading = start(store.read, "a.png")
    assert opening.wait(60)
    worker = multiprocessing.get_context("fork").Process(target=store.read, args=("a.png",))
    worker.start()
    try:
        assert exit_code(worker, 20) == 0
    finally:
        go_on.set()
    assert reading.result(timeout=60).size == store.read("a.png").size


def heic(image: Image.Image) -> bytes:
    library = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed: pip install .[heif]")
    file = io.BytesIO()
    library.from_pillow(image).save(file, quality=-1, chroma=444)
    return file.getvalue()


def test_heic_is_read_as_other_pictures_are(tmp_path: Path) -> None:
    smooth = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
    (tmp_path / "a.heic").write_bytes(heic(smooth))
    found = open_images(tmp_path).read("a.heic")
    # Lossless but for the way to YCbCr and back.
    assert found.mode == "RGB" and np.abs(np.asarray(found).astype(int) - np.asarray(smooth)).max() <= 2
    assert open_regions(tmp_path).num_whole_images == 1


def test_without_its_library_heic_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    with pytest.raises(DataError, match=r"a\.heic.*HEIC.*\.\[heif\]"):
        open_images(tmp_path).read("a.heic")


@pytest.mark.parametrize("name", ["a.jp2", "a.jfif", "a.JPG"])
def test_folders_list_pictures_of_rarer_endings(tmp_path: Path, name: str) -> None:
    picture().save(tmp_path / name)
    assert open_regions(tmp_path)[0].load().size == (31, 17)


@pytest.mark.parametrize(("mode", "conversions"), [("RGB", []), ("P", ["RGB"]), ("LA", ["RGBA", "RGB"])])
def test_picture_is_converted_once_on_its_way_to_both_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, conversions: list[str]
) -> None:
    Image.new(mode, (30, 20)).save(tmp_path / "a.png")
    converted: list[str] = []
    decoded: list[Any] = []
    convert, process = Image.Image.convert, FineCaptionImageProcessor.process_image
    monkeypatch.setattr(
        Image.Image, "convert", lambda self, to, *rest: converted.append(to) or convert(self, to, *rest)
    )
    monkeypatch.setattr(
        FineCaptionImageProcessor, "process_image", lambda *args, **kw: decoded.append(args[1]) or process(*args, **kw)
    )
    picture = open_images(tmp_path).read("a.png")
    assert converted == conversions
    inputs = FineCaptionImageProcessor()(picture)
    assert converted == conversions and decoded == [picture]
    assert {"pixel_values", "high_res_pixel_values"} <= inputs.keys()
