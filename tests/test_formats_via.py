"""VGG Image Annotator: JSON of both versions, projects and CSV."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotation_files import HEIGHT, WIDTH, captions_of, masks_of, messages, photo, rows_of
from numpy.typing import NDArray

from finecaption_hf.data import open_regions

RECT = {"name": "rect", "x": 6, "y": 8, "width": 18, "height": 16}
POLYGON = {"name": "polygon", "all_points_x": [6, 24, 24, 6], "all_points_y": [8, 8, 24, 24]}


def region(shape: Any, **attributes: Any) -> dict[str, Any]:
    return {"shape_attributes": shape, "region_attributes": attributes}


def entry(*regions: Any, filename: Any = "a.png") -> dict[str, Any]:
    return {"filename": filename, "size": 123, "regions": list(regions), "file_attributes": {"place": "park"}}


def written(folder: Path, form: str, *entries: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    photo(folder / "a.png")
    if form == "csv":
        with open(folder / "via.csv", "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            names = [
                "file_size",
                "file_attributes",
                "region_count",
                "region_id",
                "region_shape_attributes",
                "region_attributes",
            ]
            table.writerow(["filename", *names])
            for each in entries:
                parts = each["regions"] or [region({})]
                for number, part in enumerate(parts):
                    cells = each["file_attributes"], part["shape_attributes"], part["region_attributes"]
                    of_file, shape, said = (json.dumps(cell) for cell in cells)
                    table.writerow([each["filename"], 123, of_file, len(each["regions"]), number, shape, said])
        return folder / "via.csv"
    listed = {f"{number}-{each['filename']}123": each for number, each in enumerate(entries)}
    if form == "v1":
        for each in listed.values():
            each["regions"] = {str(number): part for number, part in enumerate(each["regions"])}
    document = (
        {"_via_settings": {}, "_via_img_metadata": listed, "_via_attributes": {}} if form == "project" else listed
    )
    (folder / "via.json").write_text(json.dumps(document), encoding="utf-8")
    return folder / "via.json"


def rectangle(top: int, bottom: int, left: int, right: int) -> NDArray[Any]:
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[top:bottom, left:right] = True
    return expected


@pytest.mark.parametrize("form", ["v1", "v2", "project", "csv"])
def test_every_form_of_file_is_read(tmp_path: Path, form: str) -> None:
    given = entry(
        region(RECT, type="cat", caption="a cat"), region({"name": "point", "cx": 1, "cy": 1}), region(POLYGON)
    )
    inputs = open_regions(written(tmp_path, form, given, entry(filename="b.png")))
    assert inputs.title.startswith("VGG")
    assert [(row["image"], len(row["regions"]), row["place"]) for row in rows_of(inputs)] == [
        ("a.png", 2, "park"),
        ("b.png", 0, "park"),
    ]
    assert all((mask == rectangle(8, 24, 6, 24)).all() for mask in masks_of(inputs))
    assert captions_of(inputs) == ["a cat", None]
    assert rows_of(inputs)[0]["regions"][0]["label"] == "cat"
    assert inputs.notes == ["1 shapes of type point have no area: left out."]


def test_circles_and_ellipses_are_in_pixels_and_radians(tmp_path: Path) -> None:
    circle = {"name": "circle", "cx": 20, "cy": 18, "r": 7.5}
    ellipse = {"name": "ellipse", "cx": 30, "cy": 20, "rx": 15, "ry": 4, "theta": np.pi / 2}
    first, second = masks_of(open_regions(written(tmp_path, "v2", entry(region(circle), region(ellipse)))))
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    assert (first == ((columns - 20) ** 2 + (rows - 18) ** 2 <= 7.5**2)).all()
    assert (second == (((columns - 30) / 4) ** 2 + ((rows - 20) / 15) ** 2 <= 1)).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (region({"name": "blob"}), "none of VIA's"),
        (region(7), "none of VIA's"),
        (7, "none of VIA's"),
        (region({**RECT, "width": 0}), "above 0"),
        (region({**RECT, "x": "1"}), "of type str"),
        (region({**POLYGON, "all_points_x": [1]}), "of one length"),
        (region({**POLYGON, "all_points_x": [[]] * 4}), "mixes lists"),
        (region({"name": "circle", "cx": 1, "cy": 1, "r": 1e300}), "no measure"),
        (region({**RECT, "x": 900}), "outside the image"),
    ],
)
def test_broken_shape_is_an_error_in_its_place(tmp_path: Path, given: Any, message: str) -> None:
    first, second = masks_of(open_regions(written(tmp_path, "v2", entry(given, region(RECT)))))
    assert message in str(first)
    assert not isinstance(second, str)


def test_broken_files_are_errors(tmp_path: Path) -> None:
    path = written(tmp_path, "v2", entry(region(RECT), filename=7))
    assert "the name of a picture is needed" in messages(path)[0]
    path.write_text('{"_via_img_metadata": {"a": ' + "[" * 100_000, encoding="utf-8")
    assert "neither JSON nor CSV" in messages(path, format="via")[0]


@pytest.mark.parametrize("form", ["v1", "v2", "project", "csv"])
def test_texts_become_attributes_and_all_else_stays(tmp_path: Path, form: str) -> None:
    given = entry(
        region(RECT, type="cat"),
        region({"name": "point", "cx": 1, "cy": 1}),
        region(POLYGON, caption="old"),
        region(RECT),
    )
    path = written(tmp_path, form, given, entry(filename="b.png"))
    before = path.read_bytes()
    inputs = open_regions(path)
    assert inputs.annotations
    out = tmp_path / f"out{path.suffix}"
    inputs.annotations.write_back(iter([{"q": "a Katze 🐈"}, None, {"colour": "red", "size": "big"}]), out)
    assert path.read_bytes() == before
    made = open_regions(out)
    assert captions_of(made) == ["a Katze 🐈", "old", None]
    assert rows_of(made)[0]["regions"][2]["colour"] == "red"
    if form != "csv":
        text = json.dumps(json.loads(out.read_bytes()), ensure_ascii=False)
        text = text.replace(', "caption": "a Katze 🐈"', "").replace('"colour": "red", "size": "big"', "")
        assert json.loads(text) == json.loads(before)
    else:
        old, new = (list(csv.reader(file.read_text(encoding="utf-8").splitlines())) for file in (path, out))
        assert [row[:-1] for row in new] == [row[:-1] for row in old]
        assert [json.loads(row[-1]) for row in new[1:]] == [
            *({"type": "cat", "caption": "a Katze 🐈"}, {}, {"caption": "old"}, {"colour": "red", "size": "big"}, {}),
        ]
