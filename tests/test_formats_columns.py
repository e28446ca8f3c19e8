"""Regions in GeoJSON, in columns of tables, in shards of WebDataset, and in streams."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finecaption_hf import as_mask
from finecaption_hf.data import DataError, ReadOptions, RegionInputs, open_regions
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
