"""CVAT's XML for images and for video."""

import json
import time
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
from annotation_files import HEIGHT, WIDTH, captions_of, masks_of, messages, photo, rows_of
from defusedxml.ElementTree import parse, tostring
from numpy.typing import NDArray
from typer.testing import CliRunner

from finecaption_hf import as_mask
from finecaption_hf.cli import app
from finecaption_hf.data import open_regions

META = """<meta><task><id>1</id><labels><label><name>cat</name><attributes>{attributes}</attributes></label></labels>
<original_size><width>60</width><height>40</height></original_size></task></meta>"""
CAPTION = "<attribute><name>caption</name><mutable>False</mutable><input_type>text</input_type></attribute>"
CORNERS = 'xtl="6.0" ytl="8.0" xbr="24.0" ybr="24.0"'
BOX = f'<box label="cat" source="manual" occluded="0" {CORNERS} z_order="0"{{more}}>{{inside}}</box>'


def box(inside: str = "", **more: Any) -> str:
    return BOX.format(inside=inside, more="".join(f' {key}="{value}"' for key, value in more.items()))


def image(*shapes: str, name: str = "a.png", id: Any = 0, width: int = WIDTH, height: int = HEIGHT) -> str:
    return f'<image id="{id}" name={quoteattr(name)} width="{width}" height="{height}">{"".join(shapes)}</image>'


def attribute(name: str, text: str) -> str:
    return f'<attribute name="{name}">{text}</attribute>'


def written(folder: Path, *parts: str, attributes: str = CAPTION, picture: str | None = "a.png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if picture:
        photo(folder / picture)
    content = '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n  '
    content += "\n  ".join([META.format(attributes=attributes), *parts]) + "\n</annotations>\n"
    (folder / "annotations.xml").write_text(content, encoding="utf-8")
    return folder / "annotations.xml"


def rectangle(top: int, bottom: int, left: int, right: int) -> NDArray[Any]:
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[top:bottom, left:right] = True
    return expected


def only_mask(folder: Path, shape: str) -> Any:
    (mask,) = masks_of(open_regions(written(folder, image(shape))))
    return mask


def rle(crop: NDArray[Any]) -> str:
    flat = crop.ravel().astype(int)
    borders = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *borders, flat.size]).tolist()
    return ", ".join(map(str, [0, *runs] if flat[0] else runs))


def mask_shape(crop: NDArray[Any], left: int, top: int, runs: str | None = None) -> str:
    height, width = crop.shape
    given = rle(crop) if runs is None else runs
    return f'<mask label="cat" rle="{given}" left="{left}" top="{top}" width="{width}" height="{height}"></mask>'


# --- pixels ----------------------------------------------------------------------------------------------------------


def test_box_is_between_its_corners(tmp_path: Path) -> None:
    assert (only_mask(tmp_path, box()) == rectangle(8, 24, 6, 24)).all()


def test_box_turns_about_its_middle(tmp_path: Path) -> None:
    # 18 wide and 16 high about (15, 16)
    assert (only_mask(tmp_path, box(rotation="90.0")) == rectangle(7, 25, 7, 23)).all()


def test_polygon_has_points_between_semicolons(tmp_path: Path) -> None:
    shape = '<polygon label="cat" points="6.0,8.0;24.0,8.0;24.0,24.0;6.0,24.0" z_order="0"/>'
    assert (only_mask(tmp_path, shape) == rectangle(8, 24, 6, 24)).all()


def test_ellipse_turns_about_its_middle(tmp_path: Path) -> None:
    shape = '<ellipse label="cat" cx="30" cy="20" rx="15" ry="4" rotation="90"/>'
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    assert (only_mask(tmp_path, shape) == (((columns - 30) / 4) ** 2 + ((rows - 20) / 15) ** 2 <= 1)).all()


def test_runs_of_masks_go_along_the_rows_of_their_part(tmp_path: Path) -> None:
    crop = np.random.default_rng(2).random((9, 14)) > 0.5
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[5:14, 20:34] = crop
    assert (only_mask(tmp_path, mask_shape(crop, 20, 5)) == expected).all()


def test_every_mask_and_box_equals_datumaros(tmp_path: Path) -> None:
    cvat = pytest.importorskip(
        "datumaro.plugins.data_formats.cvat.base", reason="datumaro is not installed: pip install .[annotation-tools]"
    )
    rng = np.random.default_rng(5)
    crops = [rng.random((height, width)) > 0.4 for height, width in ((3, 4), (1, 9), (20, 11))]
    path = written(
        tmp_path, image(*(mask_shape(crop, 7, 11) for crop in crops), box(), name="a.png"), picture="images/a.png"
    )
    (item,) = cvat.CvatBase(str(path))
    *found, last = item.annotations
    *masks, of_box = masks_of(open_regions(path))
    assert len(found) == 3
    for mask, reference in zip(masks, found, strict=True):
        assert (mask == reference.image.astype(bool)).all()
    x, y, width, height = last.get_bbox()
    assert (of_box == as_mask({"box_xyxy": [x, y, x + width, y + height]}, HEIGHT, WIDTH)).all()


# --- what is read ----------------------------------------------------------------------------------------------------


def test_attributes_and_tags_are_carried(tmp_path: Path) -> None:
    given = box(attribute("description", "a &lt;cat&gt;") + attribute("colour", "red"), group_id="4")
    inputs = open_regions(written(tmp_path, image('<tag label="park" source="manual"></tag>', given, id=17)))
    assert inputs[0].regions[0].carried == {
        **{"image_id": 17, "tags": ["park"], "label": "cat", "caption": "a <cat>", "description": "a <cat>"},
        **{"colour": "red", "source": "manual", "occluded": "0", "z_order": "0", "group_id": "4"},
    }


def test_lines_points_and_empty_images_are_counted(tmp_path: Path) -> None:
    line = '<polyline label="cat" points="1,1;2,2" z_order="0"/>'
    path = written(
        tmp_path, image(line, box(), line), '<image id="1" name="a.png" width="60" height="40"/>', attributes=""
    )
    inputs = open_regions(path)
    assert (inputs.num_regions, inputs.num_without_regions) == (1, 1)
    assert inputs.notes == [
        "2 shapes of type polyline have no area: left out.",
        "Texts can be put back into a project whose labels have a text attribute called caption.",
    ]


@pytest.mark.parametrize("name", ["a.png", "images/a.png", "images/train/a.png"])
def test_picture_is_found_where_exports_have_it(tmp_path: Path, name: str) -> None:
    part = image(box()).replace("<image ", '<image subset="train" ')
    inputs = open_regions(written(tmp_path, part, picture=name))
    assert inputs[0].name == name
    assert inputs[0].load().size == (WIDTH, HEIGHT)


def test_folder_of_an_export_is_read(tmp_path: Path) -> None:
    written(tmp_path, image(box()), picture="images/a.png")
    assert open_regions(tmp_path).num_regions == 1
    written(tmp_path / "more", image(box()))
    with pytest.raises(ValueError, match="2 files of CVAT"):
        open_regions(tmp_path)


def test_picture_of_another_size_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, image(box(), width=WIDTH * 2))
    assert "picture of 40x120" in messages(path)[0]


# --- video -----------------------------------------------------------------------------------------------------------


def track(number: int, *frames: int, outside: int | None = None) -> str:
    boxes = [
        box(attribute("caption", f"{number}-{frame}"), frame=frame, outside=int(frame == outside), keyframe=1)
        for frame in frames
    ]
    return f'<track id="{number}" label="dog" source="manual">{"".join(boxes)}</track>'


def test_frames_of_a_video_are_pictures(tmp_path: Path) -> None:
    for frame in (0, 2, 3):
        photo(tmp_path / "images" / f"frame_{frame:06d}.PNG")
    inputs = open_regions(written(tmp_path, track(0, 2, 3), track(1, 0, 2, 3, outside=3), picture=None))
    assert [row["frame"] for row in rows_of(inputs)] == [0, 2, 3]
    assert captions_of(inputs) == ["1-0", "0-2", "1-2", "0-3"]
    assert [region["track_id"] for region in rows_of(inputs)[1]["regions"]] == ["0", "1"]
    assert inputs[1].name == "images/frame_000002.PNG"
    assert inputs[1].load().size == (WIDTH, HEIGHT)


def test_video_without_its_frames_is_refused_by_name(tmp_path: Path) -> None:
    path = written(tmp_path, track(0, 2, 3), picture=None)
    with pytest.raises(ValueError, match=r"export of a video by CVAT.*Save images"):
        open_regions(path)


# --- hostile ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (mask_shape(np.ones((3, 3), bool), 0, 0, "0, 8"), "a sum of 8, not the 9 pixels"),
        (mask_shape(np.ones((3, 3), bool), 0, 0, "0, -1, 10"), "The runs of the mask"),
        (mask_shape(np.ones((3, 3), bool), 0, 0, "0, inf"), "The runs of the mask"),
        (mask_shape(np.ones((3, 3), bool), 0, 0, ""), "no list of numbers"),
        ('<mask rle="0, 10000000000" left="0" top="0" width="100000" height="100000"/>', "larger than the picture"),
        ('<mask rle="0, 4" left="0" top="0" width="-2" height="-2"/>', "The runs of the mask"),
        ('<polygon points="1,1;2"/>', "coordinates"),
        ('<polygon points="1,a;2,2"/>', "no list of numbers"),
        ('<polygon points="nan,1;2,2;3,3"/>', "NaN"),
        ("<polygon/>", "no list of numbers"),
        (box(rotation="x"), "no list of numbers"),
        ('<box xtl="9" ytl="9" xbr="2" ybr="12"/>', "both have to be above 0"),
        ('<ellipse cx="1" cy="1" rx="1e99" ry="1"/>', "no measure in pixels"),
    ],
)
def test_broken_shape_is_an_error_in_its_place(tmp_path: Path, shape: str, message: str) -> None:
    first, second = masks_of(open_regions(written(tmp_path, image(shape, box()))))
    assert message in str(first)
    assert not isinstance(second, str)


def test_bombs_of_entities_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, image(box(attribute("caption", "&j;"))))
    entities = '<!ENTITY a "ha">' + "".join(
        f'<!ENTITY {name} "{f"&{before};" * 10}">' for before, name in zip("abcdefghi", "bcdefghij")
    )
    text = path.read_text(encoding="utf-8").replace("<annotations>", f"<!DOCTYPE x [{entities}]><annotations>")
    path.write_text(text, encoding="utf-8")
    start = time.monotonic()
    assert "broken or unsafe" in messages(path)[0]
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("change", [("</annotations>", ""), ("<image ", "<image <"), ("</image>", "</imag>")])
def test_broken_xml_is_an_error(tmp_path: Path, change: tuple[str, str]) -> None:
    path = written(tmp_path, image(box()))
    path.write_text(path.read_text(encoding="utf-8").replace(*change), encoding="utf-8")
    assert "broken or unsafe" in messages(path)[0]


def test_deep_nesting_ends_well(tmp_path: Path) -> None:
    depth = 20_000
    path = written(tmp_path, image(box("<a>" * depth + "</a>" * depth)))
    assert open_regions(path).num_regions == 1


def test_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, image(box()))
    text = path.read_text(encoding="utf-8").replace('encoding="utf-8"', 'encoding="iso-8859-1"')
    path.write_bytes(text.encode("latin-1"))
    assert "not in UTF-8" in messages(path)[0]


# --- texts back ------------------------------------------------------------------------------------------------------


def as_tree(path: Path) -> str:
    return tostring(parse(path).getroot(), encoding="unicode")


def test_texts_become_attributes_and_all_else_stays(tmp_path: Path) -> None:
    line = '<polyline label="cat" points="1,1;2,2"/>'
    first = image(line, box(attribute("colour", "red") + attribute("caption", "old")), "<!-- kept -->", box())
    second, third = image(box().replace("></box>", "/>"), name="ü.png", id=1), '<image id="2" name="a.png"/>'
    path = written(tmp_path, first, second, third)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    before = path.read_bytes()
    inputs = open_regions(path)
    assert inputs.annotations
    texts = iter([{"q": "a <Katze> & \x00 🐈"}, None, {"colour": "red", "shape": "round\r\n"}])
    inputs.annotations.write_back(texts, tmp_path / "out.xml")
    assert path.read_bytes() == before
    made = (tmp_path / "out.xml").read_bytes()
    expected = before.replace(b">old<", "><![CDATA[a <Katze> & ]]>  🐈<".encode())
    box_of_second = b'z_order="0"/>'
    new = attribute("colour", "red") + attribute("shape", "round\n")
    assert expected.count(box_of_second) == 1
    (tmp_path / "expected.xml").write_bytes(expected.replace(box_of_second, f'z_order="0">{new}</box>'.encode()))
    assert as_tree(tmp_path / "out.xml") == as_tree(tmp_path / "expected.xml")
    assert made.startswith(
        b'\xef\xbb\xbf<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>'
    )
    assert b"<!-- kept -->" in made and third.encode() in made
    assert captions_of(open_regions(tmp_path / "out.xml")) == ["a <Katze> &   🐈", None, None]


def test_texts_go_back_into_frames_of_tracks(tmp_path: Path) -> None:
    for frame in (2, 3):
        photo(tmp_path / f"frame_{frame:06d}.png")
    inputs = open_regions(written(tmp_path, track(0, 2, 3), track(1, 2, 3), picture=None))
    assert inputs.annotations
    inputs.annotations.write_back(({"q": f"text {number}"} for number in range(4)), tmp_path / "out.xml")
    assert captions_of(open_regions(tmp_path / "out.xml")) == ["text 0", "text 1", "text 2", "text 3"]
    changed = (tmp_path / "out.xml").read_text(encoding="utf-8")
    for number, name in enumerate(("0-2", "1-2", "0-3", "1-3")):
        changed = changed.replace(f">text {number}<", f">{name}<")
    assert changed == (tmp_path / "annotations.xml").read_text(encoding="utf-8")


def test_datumaro_reads_what_is_written(tmp_path: Path) -> None:
    cvat = pytest.importorskip(
        "datumaro.plugins.data_formats.cvat.base", reason="datumaro is not installed: pip install .[annotation-tools]"
    )
    path = written(tmp_path, image(box(), mask_shape(np.eye(4) > 0, 3, 3)), picture="images/a.png")
    annotations = open_regions(path).annotations
    assert annotations
    annotations.write_back(iter([{"q": "a cat"}, {"q": "a dog"}]), tmp_path / "out.xml")
    (old,), (new,) = cvat.CvatBase(str(path)), cvat.CvatBase(str(tmp_path / "out.xml"))
    assert [each.attributes.pop("caption") for each in new.annotations] == ["a cat", "a dog"]
    for before, after in zip(old.annotations, new.annotations, strict=True):
        assert before == after and before.attributes == after.attributes


def test_command_describes_an_export(tmp_path: Path) -> None:
    path = written(tmp_path, image(box(), id=3))
    output = tmp_path / "out.jsonl"
    given = ["describe", str(path), "--output", str(output), "--max-new-tokens", "3", "--device", "cpu"]
    outcome = CliRunner().invoke(app, given)
    assert outcome.exit_code == 0, outcome.output
    assert "read as CVAT, 1 regions" in outcome.output
    (record,) = map(json.loads, output.read_text(encoding="utf-8").splitlines())
    assert (record["image_id"], record["box_xyxy"]) == (3, [6, 8, 24, 24])
