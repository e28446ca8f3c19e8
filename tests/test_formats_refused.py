"""Files of tools that are not read: each is refused by its name, and nothing else is."""

import json
from pathlib import Path
from typing import Any

import pytest

from finecaption_hf.data import DataError, open_regions
from finecaption_hf.data.annotations import recognise
from finecaption_hf.data.annotations.refused import REFUSED

BOX = {"x": 1, "y": 2, "width": 3, "height": 4}
SAMPLES: dict[str, tuple[str, Any]] = {
    "VoTT": ("a-asset.json", {"asset": {"path": "file:a.jpg"}, "regions": [], "version": "2.2.0"}),
    "Labelbox": ("a.ndjson", [{"data_row": {"id": "x"}, "media_attributes": {}, "projects": {}}]),
    "Create ML (RectLabel)": ("a.json", [{"image": "a.jpg", "annotations": [{"label": "cat", "coordinates": BOX}]}]),
    "V7 Darwin": ("a.json", {"version": "2.0", "schema_ref": "x", "item": {"name": "a.jpg"}, "annotations": []}),
    "Encord": ("a.json", [{"label_hash": "x", "data_hash": "y", "data_units": {}}]),
    "Segments.ai": ("a.json", {"name": "v1", "dataset": {"name": "x", "samples": []}}),
    "Prodigy": ("a.jsonl", [{"image": "a.jpg", "spans": [], "_input_hash": 1, "_task_hash": 2}]),
    "Hasty": ("a.json", {"project_name": "x", "export_format_version": "1.1", "label_classes": [], "images": []}),
    "Scale AI": ("a.json", [{"task_id": "x", "params": {}, "response": {"annotations": []}}]),
    "SuperAnnotate": ("a.json", {"metadata": {"name": "a.jpg", "width": 4}, "instances": [], "tags": []}),
    "Kili": ("a.json", [{"id": "x", "externalId": "a.jpg", "labels": [{"jsonResponse": {}}]}]),
    "BDD100K": ("a.json", [{"name": "a.jpg", "labels": [{"category": "car", "box2d": {}}]}]),
    "VIA 3": ("a.json", {"project": {"pid": "x"}, "config": {}, "file": {}, "metadata": {}, "view": {}}),
    "Supervisely for video": ("a.json", {"size": {}, "framesCount": 3, "objects": [], "frames": []}),
    "SageMaker Ground Truth": ("a.manifest", [{"source-ref": "s3://x/a.jpg", "bounding-box": {}}]),
    "Vertex AI": ("a.jsonl", [{"imageGcsUri": "gs://x/a.jpg", "boundingBoxAnnotations": []}]),
    "Roboflow for language models (PaliGemma, Florence-2)": (
        "a.jsonl",
        [{"image": "a.jpg", "prefix": "detect cat", "suffix": "<loc0001><loc0002><loc0003><loc0004> cat"}],
    ),
    "Label Studio in CSV": ("a.csv", b"annotation_id,annotator,created_at,id,image\n"),
    "TensorFlow's detection in CSV": (
        "a.csv",
        b"filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,1,1,cat,0,0,1,1\n",
    ),
    "TensorFlow records": ("train.tfrecord", b"\x10\0\0\0"),
    "MATLAB": ("a.mat", b"MATLAB 5.0 MAT-file, Platform: GLNXA64"),
    "NIfTI": ("a.nii.gz", b"\x1f\x8b\x08"),
    "DICOM": ("a.dcm", bytes(128) + b"DICM"),
    "NRRD": ("a.nrrd", b"NRRD0004\n"),
    "ImageJ's regions": ("a.roi", b"Iout\x00\xe4"),
    "shapes (.shp)": ("a.shp", b"\x00\x00\x27\x0a" + bytes(100)),
    "MOT": ("gt.txt", b"1,1,912,484,97,109,0,7,1\n1,2,1338,418,167,379,1,1,1\n"),
    "KITTI": ("000000.txt", b"Car 0.00 0 -1.57 599.41 156.40 629.75 189.25 2.85 2.63 12.34 0.47 1.49 69.44 -1.56\n"),
}
LINES = (".jsonl", ".ndjson", ".manifest")


def written(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif name.endswith(LINES):
        path.write_text("".join(json.dumps(each) + "\n" for each in content), encoding="utf-8")
    else:
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


@pytest.mark.parametrize("tool", SAMPLES)
def test_file_is_refused_by_its_name_with_a_way_on(tmp_path: Path, tool: str) -> None:
    path = written(tmp_path, *SAMPLES[tool])
    with pytest.raises(DataError) as caught:
        open_regions(path)
    assert f"this is a file of {tool}, which is not read." in str(caught.value)
    assert str(caught.value).endswith(REFUSED[tool][1] + ".")


def test_every_refusal_has_a_sample() -> None:
    assert set(SAMPLES) == set(REFUSED)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", [{"image": "a.png", "mask": None, "labels": [], "name": "x"}]),
        ("a.jsonl", [{"image": "a.png", "regions": [{"box_xyxy": [1, 2, 3, 4]}]}]),
        ("a.json", {"images": [], "annotations": [], "categories": []}),
        ("a.json", {"image": {"file_name": "a.jpg"}, "annotations": [{"segmentation": {}}]}),
        ("a.json", [{"image": "a.jpg", "annotations": [{"label": "cat"}]}]),
        ("a.txt", b"0 0.5 0.5 0.2 0.2\n"),
        ("a.csv", b"image,caption\n"),
        ("a.json", b"{" * 5000),
        ("a.json", b""),
    ],
)
def test_other_files_are_not_refused(tmp_path: Path, name: str, content: Any) -> None:
    recognise(written(tmp_path, name, content))


def test_format_that_is_named_is_not_asked_for_signs(tmp_path: Path) -> None:
    path = written(tmp_path, *SAMPLES["VoTT"])
    with pytest.raises(DataError, match="this is no file of LabelMe"):
        open_regions(path, format="labelme")
