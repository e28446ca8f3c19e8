"""Regions in GeoJSON, in columns of tables, in shards of WebDataset, and in streams."""

import gzip
import io
import itertools
import json
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image
from typer.testing import CliRunner

from finecaption_hf import as_mask
from finecaption_hf.cli import app
from finecaption_hf.data import DataError, ReadOptions, RegionInputs, open_dataset, open_regions
from finecaption_hf.data.annotations import open_annotations, recognise
from finecaption_hf.data.annotations.geojson import GeoJson

HEIGHT, WIDTH = 24, 32
SQUARE = [[4, 6], [14, 6], [14, 16], [4, 16], [4, 6]]
HOLE = [[7, 9], [10, 9], [10, 12], [7, 12], [7, 9]]


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def regions(inputs: RegionInputs) -> Iterator[tuple[str | None, Any, np.ndarray | str]]:
    """Picture, what is carried, and pixels or the error of every region."""
    for item in map(inputs.__getitem__, range(len(inputs))):
        for region in item.regions:
            if region.error is not None:
                yield item.name, dict(region.carried), str(region.error)
                continue
            loaded = item.load()
            yield item.name, dict(region.carried), as_mask(item.reference(region), loaded.height, loaded.width)


# --- GeoJSON ---------------------------------------------------------------------------------------------------------


def feature(geometry: Any, **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def polygon(*rings: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def collection(*features: Any, **more: Any) -> dict[str, Any]:
    return {"type": "FeatureCollection", **more, "features": list(features)}


def geojson(folder: Path, content: Any, name: str = "slide.geojson", image: str | None = "slide.png") -> Path:
    if image is not None:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        picture().save(folder / image)
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_features_are_regions_of_the_picture_with_the_files_name(tmp_path: Path) -> None:
    qupath = {
        "objectType": "annotation",
        "classification": {"name": "Tumor", "color": [200, 0, 0]},
        "measurements": [1],
    }
    path = geojson(
        tmp_path,
        collection(
            {**feature(polygon(SQUARE, HOLE), **qupath), "id": "7d9c"},
            feature({"type": "MultiPolygon", "coordinates": [[SQUARE], [[[20, 1], [24, 1], [24, 5], [20, 5]]]]}, id=5),
            feature(
                {"type": "GeometryCollection", "geometries": [polygon(HOLE), {"type": "Point", "coordinates": []}]}
            ),
        ),
    )
    inputs = open_regions(path)
    found = list(regions(inputs))
    assert inputs.title == "GeoJSON" and [name for name, _, _ in found] == ["slide.png"] * 3
    assert found[0][1] == {"id": "7d9c", "label": "Tumor", **qupath} and found[1][1] == {"id": 5}
    expected = [box(4, 6, 14, 16) & ~box(7, 9, 10, 12), box(4, 6, 14, 16) | box(20, 1, 24, 5), box(7, 9, 10, 12)]
    assert all(np.array_equal(mask, known) for (_, _, mask), known in zip(found, expected, strict=True))


def test_masks_of_geojson_are_those_of_shapely(tmp_path: Path) -> None:
    shapely = pytest.importorskip("shapely", reason="shapely is not installed: pip install .[annotation-tools]")
    random = np.random.default_rng(3)
    shapes = [shapely.Point(*random.uniform(5, 20, 2)).buffer(random.uniform(2, 9)) for _ in range(12)]
    shapes = [shapes[0], *(a.symmetric_difference(b) for a, b in itertools.pairwise(shapes))]
    content = collection(*(feature(json.loads(shapely.to_geojson(shape))) for shape in shapes))
    ys, xs = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    found = [mask for _, _, mask in regions(open_regions(geojson(tmp_path, content)))]
    for shape, mask in zip(shapes, found, strict=True):
        assert np.array_equal(mask, shapely.contains_xy(shape, xs, ys))


@pytest.mark.parametrize("form", ["array", "feature", "sorted keys", "byte order mark"])
def test_geojson_comes_in_several_forms(form: str, tmp_path: Path) -> None:
    one = feature(polygon(SQUARE), note="Größe 🌍")
    content = {"array": [one], "feature": one}.get(form, {"features": [one], "type": "FeatureCollection"})
    text = json.dumps(content, ensure_ascii=False, indent=2)
    path = geojson(tmp_path, "\ufeff" + text if form == "byte order mark" else text)
    assert recognise(path) == [GeoJson]
    ((_, carried, mask),) = regions(open_regions(path))
    assert carried == {"note": "Größe 🌍"} and np.array_equal(mask, box(4, 6, 14, 16))


def test_features_of_several_pictures_are_joined_by_the_name_in_them(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture().save(tmp_path / name)
    features = [feature(polygon(SQUARE), image=name, n=n) for n, name in enumerate(["a.png", "b.png", "a.png"])]
    found = list(regions(open_regions(geojson(tmp_path, collection(*features)))))
    assert [(name, carried) for name, carried, _ in found] == [
        ("a.png", {"n": 0}),
        ("a.png", {"n": 2}),
        ("b.png", {"n": 1}),
    ]


def test_a_folder_of_geojson_has_a_picture_for_each_file(tmp_path: Path) -> None:
    geojson(tmp_path, collection(feature(polygon(SQUARE))))
    geojson(tmp_path, collection(feature(polygon(HOLE))), "sub/b.ome.geojson", "sub/b.ome.png")
    geojson(tmp_path, "[broken", "z.geojson", None)
    geojson(tmp_path, collection(feature(polygon(SQUARE))), "x.geojson", None)
    found = list(regions(open_regions(tmp_path)))
    assert [name for name, _, _ in found] == ["slide.png", "sub/b.ome.png", None, None]
    assert "no picture is named by its properties" in str(found[2][2])
    assert "broken" in str(found[3][2])


def test_pictures_of_geojson_may_lie_elsewhere(tmp_path: Path) -> None:
    path = geojson(tmp_path, collection(feature(polygon(SQUARE))), image="pictures/slide.tiff")
    with pytest.raises(DataError, match=r"none called slide\.\* lies in .*--images"):
        open_regions(path)
    assert open_regions(path, images=tmp_path / "pictures")[0].name == "slide.tiff"
    picture().save(tmp_path / "pictures/slide.png")
    with pytest.raises(DataError, match=r"slide\.png or slide\.tiff"):
        open_regions(path, images=tmp_path / "pictures")


def test_what_has_no_area_is_counted_and_what_is_broken_is_an_error_of_its_own(tmp_path: Path) -> None:
    line = {"type": "LineString", "coordinates": [[1, 1], [2, 2]]}
    content = collection(
        feature(line),
        feature(None),
        {**feature(polygon(SQUARE)), "nucleusGeometry": polygon(HOLE)},
        feature({"type": "Circle", "coordinates": [1, 2]}),
        feature(polygon([[1, "a"], [2, 2], [3, 3]])),
        5,
    )
    inputs = open_regions(geojson(tmp_path, content))
    assert inputs.notes == [
        "1 features without a geometry: left out.",
        "1 points and lines have no area: left out.",
        "1 second outlines (nucleusGeometry): left out.",
    ]
    assert inputs.num_regions == 4
    assert "its type is 'Circle'" in str(inputs[0].regions[1].error)


@pytest.mark.parametrize("crs", [None, {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}])
def test_degrees_are_no_pixels(crs: Any, tmp_path: Path) -> None:
    around = [[13.4, 52.5], [13.41, 52.5], [13.41, 52.51]]
    for content in (
        collection(feature(polygon(around)), crs=crs),
        {**collection(feature(polygon(around))), "crs": crs},
    ):
        with pytest.raises(DataError, match="these are degrees"):
            open_regions(geojson(tmp_path, content))


def test_texts_go_back_into_geojson_and_nothing_else_changes(tmp_path: Path) -> None:
    features = [
        feature(polygon(SQUARE), image="b.png", caption="old", tags=[1.5, None]),
        feature({"type": "Point", "coordinates": [1, 2]}, image="a.png"),
        feature(polygon(HOLE), image="a.png"),
        {**feature(polygon(HOLE), image="b.png"), "bbox": [7, 9, 10, 12]},
    ]
    path = geojson(tmp_path, json.dumps(collection(*features, name="größe"), indent=1, ensure_ascii=False))
    before = path.read_bytes()
    opened = open_annotations(path, ReadOptions())
    assert [len(row["regions"]) for _, row in opened.scan()] == [2, 1]
    answers = [{"region": "a cup"}, None, {"Color": "rot", "Shape": "rund ünd"}]
    opened.write_back(iter(answers), tmp_path / "out.geojson")
    assert path.read_bytes() == before and sorted(each.name for each in tmp_path.iterdir()) == [
        "out.geojson",
        "slide.geojson",
        "slide.png",
    ]
    features[0]["properties"]["caption"] = "a cup"
    features[2]["properties"] |= {"caption": "Color: rot\nShape: rund ünd", "answers": answers[2]}
    assert json.loads((tmp_path / "out.geojson").read_text("utf-8")) == collection(*features, name="größe")


def test_texts_go_back_into_a_folder_of_geojson(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    geojson(folder, feature(polygon(SQUARE)), "a.geojson", "a.png")
    geojson(folder, [feature(polygon(SQUARE))], "no picture.geojson", None)
    geojson(folder, [feature(polygon(SQUARE))], "sub/c.geojson", "sub/c.png")
    opened = open_annotations(folder, ReadOptions())
    list(opened.scan())
    opened.write_back(iter([{"region": "first"}, None, {"region": "third"}]), tmp_path / "out")
    written = {each.name: json.loads(each.read_text()) for each in (tmp_path / "out").rglob("*.geojson")}
    assert written["a.geojson"]["properties"] == {"caption": "first"}
    assert written["no picture.geojson"] == [feature(polygon(SQUARE))]
    assert written["c.geojson"][0]["properties"] == {"caption": "third"}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["in", "out"]


def test_hostile_geojson_ends_in_an_error(tmp_path: Path) -> None:
    nested = feature(polygon(SQUARE))
    for _ in range(300):
        nested = feature({"type": "GeometryCollection", "geometries": [nested["geometry"]]})
    (_, _, error), (_, _, mask) = regions(open_regions(geojson(tmp_path, collection(nested, feature(polygon(SQUARE))))))
    assert "a collection within a collection" in str(error) and np.array_equal(mask, box(4, 6, 14, 16))
    with pytest.raises(DataError, match="nested too deeply"):
        open_regions(geojson(tmp_path, '{"type": "FeatureCollection", "features": [' + "[" * 100_000))


# --- columns of tables -----------------------------------------------------------------------------------------------

BOXES = [[4, 6, 14, 16], [20, 1, 31, 9]]
XYWH = [[a, b, c - a, d - b] for a, b, c, d in BOXES]


def mask(number: int = 0) -> Image.Image:
    return Image.fromarray(box(*BOXES[number]).astype(np.uint8) * 255)


def objects(**columns: Any) -> datasets.Dataset:
    """One picture with the objects of the documentation of `datasets`: an object of lists, classes by number."""
    names = ["cup", "dog"]
    types: dict[str, Any] = {
        "id": datasets.List(datasets.Value("int64")),
        "category": datasets.List(datasets.ClassLabel(names=names)),
        "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
        "area": datasets.List(datasets.Value("float32")),
    }
    held = {"id": [7, 8], "category": [1, 0], **columns}
    features = {"image": datasets.Image(), "objects": {key: types[key] for key in held}}
    return datasets.Dataset.from_list([{"image": picture(), "objects": held}], features=datasets.Features(features))


def test_objects_of_a_table_are_regions_with_the_names_of_their_classes() -> None:
    inputs = open_regions(objects(bbox=XYWH), box_format="xywh")
    found = list(regions(inputs))
    assert [carried["label"] for _, carried, _ in found] == ["dog", "cup"]
    assert [carried["id"] for _, carried, _ in found] == [7, 8]
    assert all(np.array_equal(pixels, box(*own)) for (_, _, pixels), own in zip(found, BOXES, strict=True))


@pytest.mark.parametrize(("name", "boxes"), [("coco", XYWH), ("pascal_voc", BOXES), ("xyxy", BOXES)])
def test_box_formats_have_the_names_that_libraries_give_them(name: str, boxes: Any) -> None:
    found = regions(open_regions(objects(bbox=boxes), box_format=name))
    assert all(np.array_equal(pixels, box(*own)) for (_, _, pixels), own in zip(found, BOXES, strict=True))


def test_the_area_of_an_object_tells_what_its_box_is() -> None:
    areas = [w * h for _, _, w, h in XYWH]
    for boxes in (BOXES, XYWH):
        found = list(regions(open_regions(objects(bbox=boxes, area=areas))))
        assert all(np.array_equal(pixels, box(*own)) for (_, _, pixels), own in zip(found, BOXES, strict=True))


def test_a_box_of_which_nothing_says_what_it_is_names_both_readings() -> None:
    with pytest.raises(DataError, match=r"box_xyxy \[4, 6, 18, 22\], or corners, which is box_xyxy \[4, 6, 14, 16\]"):
        open_regions(objects(bbox=BOXES))
    with pytest.raises(DataError, match=r"no box format 'yxyx'\. Did you mean 'xyxy'\? There are: xyxy, xywh"):
        open_regions(objects(bbox=BOXES), box_format="yxyx")


@pytest.mark.parametrize("source", ["memory", "parquet"])
def test_the_metadata_of_a_column_may_name_its_box_format(source: str, tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    boxes = pyarrow.field("bbox", pyarrow.list_(pyarrow.float32()), metadata={"box_format": "coco"})
    row = pyarrow.struct([boxes])
    schema = pyarrow.schema([pyarrow.field("image", pyarrow.string()), pyarrow.field("objects", pyarrow.list_(row))])
    table: Any = pyarrow.table([["a.png"], [[{"bbox": own} for own in XYWH]]], schema=schema)
    if source == "parquet":
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
        inputs = open_regions(tmp_path / "a.parquet")
    else:
        inputs = open_regions(datasets.Dataset(table), images=tmp_path)
    found = list(regions(inputs))
    assert all(np.array_equal(pixels, box(*own)) for (_, _, pixels), own in zip(found, BOXES, strict=True))


IMAGE = datasets.Image()
MASKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one": ({"mask": mask()}, {"mask": IMAGE}),
    "label": ({"label": mask()}, {"label": IMAGE}),
    "several": ({"masks": [mask(), mask(1)]}, {"masks": datasets.List(IMAGE)}),
    "with labels": (
        {"masks": [mask(), mask(1)], "labels": ["a", "b"]},
        {"masks": datasets.List(IMAGE), "labels": datasets.List(datasets.Value("string"))},
    ),
    "in objects": (
        {"objects": [{"mask": mask(), "label": "a"}, {"mask": mask(1), "label": "b"}]},
        {"objects": datasets.List({"mask": IMAGE, "label": datasets.Value("string")})},
    ),
}


@pytest.mark.parametrize("form", MASKS)
@pytest.mark.parametrize("source", ["memory", "disk", "parquet", "stream"])
def test_pictures_in_columns_are_masks(form: str, source: str, tmp_path: Path) -> None:
    values, types = MASKS[form]
    rows = [{"pixel_values": picture(n), **values, "note": n} for n in range(3)]
    features = datasets.Features({"pixel_values": IMAGE, **types, "note": datasets.Value("int64")})
    table: Any = datasets.Dataset.from_list(rows, features=features)
    if source == "disk":
        table.save_to_disk(tmp_path / "saved")
        table = tmp_path / "saved"
    elif source == "parquet":
        table.to_parquet(tmp_path / "a.parquet", batch_size=2)
        table = tmp_path / "a.parquet"
    elif source == "stream":
        table = table.to_iterable_dataset()
    inputs = open_regions(table)
    found = list(regions(inputs))
    number = len(found) // 3
    assert number == (1 if form in ("one", "label") else 2)
    for place, (_, carried, pixels) in enumerate(found):
        assert np.array_equal(pixels, box(*BOXES[place % number])) and carried["note"] == place // number
        assert carried.get("label") == ("ab"[place % number] if form in ("with labels", "in objects") else None)
    assert np.array_equal(np.asarray(inputs[2].load()), np.asarray(picture(2)))


def test_annotations_of_coco_in_a_table_are_regions() -> None:
    entries = [
        {"segmentation": [[4, 6, 14, 6, 14, 16, 4, 16]], "bbox": XYWH[0], "category_id": 3, "caption": "a cup"},
        {"segmentation": [], "bbox": XYWH[1], "area": 88, "category_id": 4, "caption": None},
    ]
    table = datasets.Dataset.from_list([{"image": picture(), "annotations": entries}])
    found = list(regions(open_regions(table)))
    assert all(np.array_equal(pixels, box(*own)) for (_, _, pixels), own in zip(found, BOXES, strict=True))
    assert found[0][1]["caption"] == "a cup" and found[1][1]["category_id"] == 4


def test_columns_that_both_hold_regions_are_named() -> None:
    table = datasets.Dataset.from_list([{"image": picture(), "masks": [mask()], "objects": [{"box_xyxy": BOXES[0]}]}])
    with pytest.raises(DataError, match="the columns 'masks' and 'objects' hold regions"):
        open_regions(table)
    with pytest.raises(DataError, match="its lists have 2 id, 2 category, 1 bbox"):
        open_regions(objects(bbox=BOXES[:1]))


def test_an_object_without_a_region_is_never_the_whole_picture() -> None:
    rows = [{"image": picture(), "objects": [{"label": "cup"}, {"label": "dog", "box_xyxy": BOXES[0]}]}]
    inputs = open_regions(datasets.Dataset.from_list(rows))
    assert inputs.num_whole_images == 0 and "there is no region in it, only 'label'" in str(inputs[0].regions[0].error)
    rows = [{"image": picture(), "masks": [None, mask()]}, {"image": picture(), "masks": []}]
    features = datasets.Features({"image": IMAGE, "masks": datasets.List(IMAGE)})
    with pytest.raises(DataError, match="there is no region in it"):
        inputs = open_regions(datasets.Dataset.from_list(rows, features=features))
        raise inputs[0].regions[0].error or AssertionError


# --- parquet ---------------------------------------------------------------------------------------------------------


def table_of(number: int, start: int = 0) -> datasets.Dataset:
    rows = [{"image": picture(n), "mask": mask(n % 2), "n": n} for n in range(start, start + number)]
    features = datasets.Features({"image": IMAGE, "mask": IMAGE, "n": datasets.Value("int64")})
    return datasets.Dataset.from_list(rows, features=features)


@pytest.mark.parametrize("given", ["folder", "pattern", "braces"])
def test_parquet_files_are_one_input_in_their_order(given: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for shard in (2, 10, 1):
        table_of(3, shard * 10).to_parquet(tmp_path / "data" / f"part-{shard}.parquet", batch_size=2)
    path = {"folder": tmp_path, "pattern": tmp_path / "data" / "part-*.parquet"}.get(
        given, tmp_path / "data" / "part-{1,2,10}.parquet"
    )
    inputs = open_regions(path)
    assert inputs.title == "parquet" and inputs.num_regions == 9
    order = [8, 0, 4, 4, 1, *range(9)]  # rows are asked for by several threads, and again
    expected = [10, 11, 12, 20, 21, 22, 100, 101, 102]
    for index in order:
        item = inputs[index]
        assert item.regions[0].carried["n"] == expected[index]
        assert np.array_equal(np.asarray(item.load()), np.asarray(picture(expected[index])))
        assert np.array_equal(as_mask(item.reference(item.regions[0]), HEIGHT, WIDTH), box(*BOXES[expected[index] % 2]))


def test_parquet_of_others_than_datasets_is_read(tmp_path: Path) -> None:
    contents = []
    for number in range(3):
        file = io.BytesIO()
        picture(number).save(file, "png")
        contents.append(file.getvalue())
    four = pyarrow.field("bbox", pyarrow.list_(pyarrow.float32()), metadata={"box_format": "xywh"})
    table = pyarrow.table(
        [pyarrow.array(contents, pyarrow.binary()), pyarrow.array([XYWH[0]] * 3, four.type)],
        schema=pyarrow.schema([pyarrow.field("image", pyarrow.binary()), four]),
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    found = list(regions(open_regions(tmp_path / "a.parquet")))
    assert len(found) == 3 and all(np.array_equal(pixels, box(*BOXES[0])) for _, _, pixels in found)


def test_pictures_are_not_read_to_know_what_is_in_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table_of(6).to_parquet(tmp_path / "a.parquet", batch_size=2)
    opened = open_annotations(tmp_path / "a.parquet", ReadOptions())
    assert all(row["image"]["bytes"] is row["mask"]["bytes"] is None for _, row in opened.scan())
    groups: list[int] = []
    read = pyarrow.parquet.ParquetFile.read_row_group
    monkeypatch.setattr(
        pyarrow.parquet.ParquetFile, "read_row_group", lambda self, i, **k: (groups.append(i), read(self, i, **k))[1]
    )
    assert [opened.read(index)[1]["n"] for index in (0, 1, 2, 1, 3, 5)] == [0, 1, 2, 1, 3, 5]
    assert groups == [0, 1, 2]


def test_parquet_with_several_splits_asks_for_one(tmp_path: Path) -> None:
    for split in ("train", "test"):
        table_of(1).to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    with pytest.raises(DataError, match="there are the splits test, train"):
        open_regions(tmp_path)
    assert open_regions(tmp_path / "train-00000-of-00001.parquet").num_regions == 1


def test_a_damaged_parquet_file_is_an_error(tmp_path: Path) -> None:
    table_of(3).to_parquet(tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="this parquet file cannot be read"):
        open_regions(tmp_path / "b.parquet")


# --- WebDataset ------------------------------------------------------------------------------------------------------


def content(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def shard(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    """A .tar of (key, ending -> content)."""
    with tarfile.open(path, "w") as archive:
        for key, parts in samples.items():
            for ending, data in parts.items():
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


def sample(number: int, **parts: Any) -> dict[str, bytes]:
    own = {
        ending.replace("_", "."): part if isinstance(part, bytes) else json.dumps(part).encode()
        for ending, part in parts.items()
    }
    return {"png": content(picture(number)), **own}


def test_samples_of_webdataset_are_pictures_with_their_regions(tmp_path: Path) -> None:
    rle = {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * 3, HEIGHT * 2, HEIGHT * (WIDTH - 5)]}}
    samples = {
        "a/0001": sample(
            1, json={"image": {"file_name": "x.jpg"}, "annotations": [{**rle, "bbox": [3, 0, 2, 24], "id": 5}]}
        ),
        "a/0002": sample(2, mask_png=content(mask()), mask2_png=content(mask(1)), cls=b"7"),
        "a/0003": sample(
            3, json=[{"box": {"xmin": 4, "ymin": 6, "xmax": 14, "ymax": 16}, "label": "cup"}], txt=b"A photo"
        ),
    }
    inputs = open_regions(shard(tmp_path / "a.tar", samples))
    found = list(regions(inputs))
    assert [name for name, _, _ in found] == ["0001.png", "0002.png", "0002.png", "0003.png"]
    expected = [box(3, 0, 5, 24), box(*BOXES[0]), box(*BOXES[1]), box(*BOXES[0])]
    assert all(np.array_equal(pixels, known) for (_, _, pixels), known in zip(found, expected, strict=True))
    assert found[0][1]["id"] == 5 and found[3][1]["label"] == "cup" and found[3][1]["global_caption"] == "A photo"
    assert np.array_equal(np.asarray(inputs[1].load()), np.asarray(picture(2)))


def test_shards_are_what_webdataset_writes(tmp_path: Path) -> None:
    webdataset = pytest.importorskip(
        "webdataset", reason="webdataset is not installed: pip install .[annotation-tools]"
    )
    pattern = str(tmp_path / "s-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=2, verbose=0) as writer:
        for number in range(5):
            writer.write(
                {
                    "__key__": f"{number:04d}",
                    "png": picture(number),
                    "json": {"objects": [{"box_xyxy": BOXES[number % 2]}]},
                }
            )
    read = webdataset.WebDataset(str(tmp_path / "s-{000000..000002}.tar"), shardshuffle=False).decode("pil")
    for given in (tmp_path, tmp_path / "s-{000000..000002}.tar", tmp_path / "s-*.tar"):
        inputs = open_regions(given)
        for theirs, (name, _, pixels), index in zip(read, regions(inputs), range(5), strict=True):
            assert name == f"{theirs['__key__']}.png"
            assert np.array_equal(np.asarray(inputs[index].load()), np.asarray(theirs["png"]))
            assert np.array_equal(pixels, box(*theirs["json"]["objects"][0]["box_xyxy"]))


def test_broken_samples_and_shards_leave_the_others(tmp_path: Path) -> None:
    good = {"k": sample(1, json={"box_xyxy": BOXES[0]})}
    shard(tmp_path / "1.tar", {"a": sample(1, json=b"{"), **good, "b": {"json": b"{}"}})
    data = shard(tmp_path / "2.tar", {**good, "z": sample(2, json={"box_xyxy": BOXES[1]})}).read_bytes()
    (tmp_path / "2.tar").write_bytes(data[: len(data) // 2])
    (tmp_path / "3.tar").write_bytes(gzip.compress(data))
    shard(tmp_path / "4.tar", good)
    found = [error for *_, error in regions(open_regions(tmp_path)) if isinstance(error, str)]
    assert "1.tar/a: json: it is no JSON" in found[0] and "it has 0 pictures, one is needed" in found[1]
    assert "2.tar" in found[2] and "gunzip" in found[-1]
    with pytest.raises(DataError, match=r"there is no such file, which x-\{0\.\.2\}\.tar names"):
        open_regions(tmp_path / "x-{0..2}.tar")


# --- streams ---------------------------------------------------------------------------------------------------------


def test_a_stream_is_gone_through_once_for_regions_and_once_for_pictures() -> None:
    passes: list[int] = []

    def rows() -> Iterator[dict[str, Any]]:
        passes.append(0)
        for number in range(6):
            passes[-1] += 1
            yield {
                "image": picture(number),
                "objects": [{"box_xyxy": own} for own in BOXES[: 1 + number % 2]],
                "n": number,
            }

    inputs = open_regions(datasets.IterableDataset.from_generator(rows))
    assert passes == [6] and inputs.num_regions == 9
    with ThreadPoolExecutor(3) as pool:
        items = list(pool.map(inputs.__getitem__, range(6)))
    assert [item.regions[0].carried["n"] for item in items] == list(range(6)) and sum(passes[1:]) == 6
    assert all(np.array_equal(np.asarray(item.load()), np.asarray(picture(n))) for n, item in enumerate(items))
    assert open_regions(datasets.IterableDataset.from_generator(rows)).fingerprint == inputs.fingerprint


def test_a_stream_that_changes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = iter(range(10))

    def rows() -> Iterator[dict[str, Any]]:
        start = next(starts)
        for number in range(3):
            yield {"image": picture(), "box_xyxy": BOXES[0], "n": number + start}

    inputs = open_regions(datasets.IterableDataset.from_generator(rows))
    with pytest.raises(DataError, match="another row than at first"):
        inputs[0]
    with pytest.raises(DataError, match="it streams, but rows are drawn by number here"):
        open_dataset(datasets.IterableDataset.from_generator(rows))


# --- the command -----------------------------------------------------------------------------------------------------


def test_describe_reads_shards_by_a_pattern_and_says_what_it_read(tmp_path: Path) -> None:
    for number in range(2):
        shard(
            tmp_path / f"s-{number}.tar",
            {"a": sample(number, json={"objects": [{"bbox": XYWH[number], "label": "cup"}]})},
        )
    command = ["describe", str(tmp_path / "s-{0..1}.tar"), "--box-format", "coco", "--max-new-tokens", "3"]
    result = CliRunner().invoke(app, [*command, "--device", "cpu", "--output", str(tmp_path / "out.jsonl")])
    assert result.exit_code == 0, result.output
    assert "read as WebDataset, 2 regions" in result.output
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [record["box_xyxy"] for record in found] == BOXES and {record["label"] for record in found} == {"cup"}
