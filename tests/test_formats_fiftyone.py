"""FiftyOne: the samples.json of an exported data set."""

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from annotation_files import HEIGHT, WIDTH, captions_of, masks_of, messages, photo, png, rows_of
from numpy.typing import NDArray

from finecaption_hf.data import open_regions

# 18 by 16 pixels from (6, 8) on
BOX = [0.1, 0.2, 0.3, 0.4]


def packed(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return zlib.compress(file.getvalue())


def mongo(data: bytes) -> dict[str, Any]:
    return {"$binary": {"base64": base64.b64encode(data).decode(), "subType": "00"}}


def detection(**more: Any) -> dict[str, Any]:
    return {
        "_id": {"$oid": "64"},
        "_cls": "Detection",
        "attributes": {},
        "tags": [],
        "label": "cat",
        "bounding_box": BOX,
        **more,
    }


def polyline(*rings: Any, **more: Any) -> dict[str, Any]:
    return {"_cls": "Polyline", "label": "dog", "points": list(rings), "closed": True, "filled": True, **more}


def sample(*labels: Any, filepath: str = "data/a.png", **more: Any) -> dict[str, Any]:
    lists = {"Detection": ("Detections", "detections"), "Polyline": ("Polylines", "polylines")}
    given: dict[str, Any] = {"filepath": filepath, "tags": ["train"], "_id": {"$oid": "5f"}, "_media_type": "image"}
    for label in labels:
        name, key = lists[label["_cls"]]
        given.setdefault("found_" + key, {"_cls": name, key: []})[key].append(label)
    return given | {"metadata": {"_cls": "ImageMetadata", "width": WIDTH, "height": HEIGHT}} | more


def written(folder: Path, *samples: Any) -> Path:
    photo(folder / "data" / "a.png")
    (folder / "samples.json").write_text(json.dumps({"samples": list(samples)}), encoding="utf-8")
    return folder / "samples.json"


def rectangle(top: int, bottom: int, left: int, right: int) -> NDArray[Any]:
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[top:bottom, left:right] = True
    return expected


def only_mask(path: Path) -> Any:
    (mask,) = masks_of(open_regions(path))
    return mask


def test_box_is_in_shares(tmp_path: Path) -> None:
    assert (only_mask(written(tmp_path, sample(detection())).parent) == rectangle(8, 24, 6, 24)).all()


@pytest.mark.parametrize("form", ["mongo", "old mongo", "text", "path"])
def test_mask_lies_in_its_box(tmp_path: Path, form: str) -> None:
    crop = np.random.default_rng(0).random((16, 18)) > 0.5
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[8:24, 6:24] = crop
    text = base64.b64encode(packed(crop)).decode()
    given = {"mongo": mongo(packed(crop)), "old mongo": {"$binary": text, "$type": "00"}, "text": text}
    (tmp_path / "fields").mkdir()
    (tmp_path / "fields" / "m.png").write_bytes(png(crop.astype(np.uint8) * 255))
    label = detection(mask_path="/data/export/fields/m.png") if form == "path" else detection(mask=given[form])
    assert (only_mask(written(tmp_path, sample(label))) == expected).all()


def test_mask_of_another_size_is_brought_to_its_box(tmp_path: Path) -> None:
    crop = np.array([[1, 0, 1], [0, 1, 0]], np.uint8)
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[8:24, 6:24] = np.kron(crop, np.ones((8, 6))) > 0
    assert (only_mask(written(tmp_path, sample(detection(mask=mongo(packed(crop)))))) == expected).all()


def test_polylines_are_filled_as_by_opencv(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    given = [[rng.uniform(0, 0.99, (6, 2)).tolist() for _ in range(number)] for number in (1, 1, 2, 3)]
    masks = masks_of(open_regions(written(tmp_path, sample(*(polyline(*rings) for rings in given)))))
    for rings, mask in zip(given, masks, strict=True):
        expected = np.zeros((HEIGHT, WIDTH), np.uint8)
        cv2.fillPoly(expected, [(np.array(ring) * (WIDTH, HEIGHT)).astype(np.int32) for ring in rings], 1)
        assert (mask == expected.astype(bool)).all()


def test_fields_attributes_and_classes_are_carried(tmp_path: Path) -> None:
    old = {"colour": {"_cls": "CategoricalAttribute", "value": "red"}}
    more = {
        "scene": {"_cls": "Classification", "label": "park"},
        "single": detection(label="dog", caption="a dog"),
        "points": {"_cls": "Keypoints", "keypoints": []},
    }
    open_line = polyline([[0, 0], [1, 1]], closed=False, filled=False)
    inputs = open_regions(written(tmp_path, sample(detection(attributes=old, iscrowd=0), open_line, **more)))
    assert inputs[0].load().size == (WIDTH, HEIGHT)
    first, second = inputs[0].regions
    assert first.carried == {
        **{
            "image_id": "5f",
            "tags": ["train"],
            "scene": "park",
            "id": "64",
            "label": "cat",
            "colour": "red",
            "iscrowd": 0,
        },
        **{"field": "found_detections"},
    }
    assert (second.carried["field"], second.carried["caption"]) == ("single", "a dog")
    assert inputs.notes == ["1 open polylines, which have no area: left out.", "1 fields of Keypoints: left out."]
    assert captions_of(inputs) == [None, "a dog"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (detection(bounding_box=[0.1, 0.2, 0.3]), "a list arrived"),
        (detection(bounding_box=["0", 0, 1, 1]), "of type str"),
        (detection(bounding_box=[0.1, 0.2, 0, 0.1]), "degenerate"),
        (detection(bounding_box=[0, 0, 900, 900], mask=mongo(packed(np.ones((2, 2))))), "The box of a mask"),
        (detection(mask="!"), "no intact base64"),
        (detection(mask=mongo(b"no stream")), "no intact zlib"),
        (detection(mask=mongo(packed(np.ones((4, 4)))[:-8])), "truncated"),
        (detection(mask=mongo(zlib.compress(bytes(10**8)))), "more than the"),
        (detection(mask=mongo(zlib.compress(b"no array"))), "no array of numpy"),
        (detection(mask=mongo(packed(np.ones(4)))), "two dimensions"),
        (detection(mask=mongo(packed(np.array([[{}]], object)))), "no array of numpy"),
        (detection(mask_path="../../secret.png"), "it is not there"),
        (detection(mask_path=7), "mask_path"),
        (polyline(7), "arrived as points"),
        (polyline(), "empty"),
        (polyline([[0, 0], [1, 1e300]]), "beyond"),
    ],
)
def test_broken_label_is_an_error_in_its_place(tmp_path: Path, given: Any, message: str) -> None:
    masks = masks_of(open_regions(written(tmp_path, sample(given, detection()))))
    found = [mask for mask in masks if isinstance(mask, str)]
    assert len(masks) == 2 and len(found) == 1
    assert message in found[0]


def test_array_that_claims_more_than_it_holds_is_an_error(tmp_path: Path) -> None:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|b1", "fortran_order": False, "shape": (10**5, 10**5)})
    label = detection(mask=mongo(zlib.compress(file.getvalue() + bytes(9))))
    assert "no array of numpy" in messages_of(written(tmp_path, sample(label)))


def messages_of(path: Path) -> str:
    return " ".join(messages(path))


def test_broken_samples_are_told(tmp_path: Path) -> None:
    path = written(tmp_path, sample(detection()), 7, {"filepath": 7})
    assert [isinstance(mask, str) for mask in masks_of(open_regions(path))] == [False, True, True]
    wrong = {"metadata": {"_cls": "ImageMetadata", "width": 7, "height": 9}}
    assert "picture of 9x7" in messages_of(written(tmp_path, sample(detection(), **wrong)))


def test_texts_become_attributes_and_all_else_stays(tmp_path: Path) -> None:
    path = written(
        tmp_path / "in",
        sample(detection(), polyline([[0, 0], [0.5, 0], [0.5, 0.5]])),
        sample(detection(caption="old")),
        sample(),
    )
    annotations = open_regions(tmp_path / "in").annotations
    assert annotations
    annotations.write_back(iter([{"q": "a Katze 🐈"}, {"colour": "red", "size": "big"}, None]), tmp_path / "out")
    made = json.loads((tmp_path / "out" / "samples.json").read_text(encoding="utf-8"))
    assert captions_of(open_regions(tmp_path / "out", images=tmp_path / "in")) == ["a Katze 🐈", None, "old"]
    assert made["samples"][0]["found_detections"]["detections"][0].pop("caption") == "a Katze 🐈"
    line = made["samples"][0]["found_polylines"]["polylines"][0]
    assert (line.pop("colour"), line.pop("size")) == ("red", "big")
    assert made == json.loads(path.read_text(encoding="utf-8"))
    assert rows_of(open_regions(path))[2]["regions"] == []
