"""What comes out of `describe`: JSON Lines that are input again, tables, pages, and texts put back into files."""

import base64
import csv
import io
import json
import multiprocessing
import shutil
import signal
import tracemalloc
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from describers import StubDescriber
from killing import kill_after
from PIL import Image
from pycocotools.coco import COCO
from typer.testing import CliRunner
from waiting import exit_code

from finecaption_hf.cli import app
from finecaption_hf.data import DataError, annotations, open_regions
from finecaption_hf.data.annotations import AnnotationFile
from finecaption_hf.data.encoding import encode_rle
from finecaption_hf.data.images import MaskFile
from finecaption_hf.describing import DescribeOptions, Result, ResumeError, UnfinishedError, describe_dataset
from finecaption_hf.describing.outputs import arrow, page, table
from finecaption_hf.masks_finecaption import as_mask

SIZE = (40, 30)  # width, height


def pixels(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8))


def mask(number: int = 0) -> np.ndarray:
    made = np.zeros(SIZE[::-1], dtype=bool)
    made[number : number + 9, 3 : 12 + number] = True
    made[number + 2, 5] = False
    return made


def write(folder: Path, *rows: Any) -> Path:
    """A JSONL file with small pictures a.png to c.png; text stands for a line as it is."""
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate("abc"):
        pixels(seed).save(folder / f"{name}.png")
    path = folder / "rows.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def describe(source: Any, output: Path, questions: Any = "color", **options: Any) -> Result:
    describer = options.pop("describer", None) or StubDescriber()
    reading = {name: options.pop(name) for name in ("images", "format") if name in options}
    inputs = open_regions(source, **reading)
    return describe_dataset(lambda: describer, inputs, output, questions, DescribeOptions(batch_size=2), **options)


def records(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


# --- JSON Lines -------------------------------------------------------------------------------------------------------

EVERYTHING = (
    {"image": "a.png", "id": 7, "mask": encode_rle(mask()), "label": "a dog", "own": {"bbox": [1, 2]}, "bbox": None},
    {"image": "a.png", "id": "7", "box_xyxy": [1, 2, 9.5, 8], "questions": ["shape", "Is it new?"]},
    {"image": "a.png", "image_id": 12, "polygon": [1, 1, 20, 1, 20, 20], "bbox": [1, 1, 19, 19]},
    {"image": "b.png", "id": 5, "source": "x", "regions": [{"id": 1, "mask_file": "m.png"}, encode_rle(mask(2))]},
    {"image": "c.png"},
    {"image": "c.png", "mask": None, "notes": [[1, 2]]},
)
FAILING = (
    {"image": "a.png", "id": 1, "box_xyxy": [900, 900, 950, 950]},
    {"image": "a.png", "mask_file": "gone.png"},
    {"image": "gone.png", "mask": encode_rle(mask()), "label": "a dog"},
    {"image": "gone.png", "mask": None},
    {"image": "a.png", "mask": encode_rle(mask()), "polygon": [1, 1, 20, 1, 20, 20]},
    {"image": "a.png", "mask": encode_rle(mask()), "questions": 5},
    {"image": "b.png", "bbox": [1, 2, 3, 4], "id": 3},
    {"image": "b.png", "counts": "x", "size": [3, 4]},
    {"mask": encode_rle(mask())},
    '{"image": "a.png", "box_',
)


def test_records_have_mask_size_ids_and_own_keys(tmp_path: Path) -> None:
    source = write(tmp_path, *EVERYTHING)
    Image.fromarray(mask(1)).save(tmp_path / "m.png")
    describe(source, tmp_path / "out.jsonl")
    found = records(tmp_path / "out.jsonl")
    assert [as_mask(record["mask"], *SIZE[::-1]).sum() for record in found] == [record["area"] for record in found]
    assert [record["mask"] for record in found[3:5]] == [encode_rle(mask(1)), encode_rle(mask(2))]
    assert [record["mask"] for record in found[5:]] == [None, None]
    assert found[5]["box_xyxy"] == [0, 0, *SIZE]
    assert all(record["mask"]["size"] == list(SIZE[::-1]) for record in found[:5])
    assert [record.get("id") for record in found] == [7, "7", None, 1, None, None, None]
    assert [record.get("image_id") for record in found] == [None, None, 12, 5, 5, None, None]
    assert (found[0]["label"], found[0]["own"], found[3]["source"]) == ("a dog", {"bbox": [1, 2]}, "x")
    assert found[1]["questions"] == ["shape", "Is it new?"]


def test_records_are_input_that_gives_the_same_regions(tmp_path: Path) -> None:
    source = write(tmp_path, *EVERYTHING)
    Image.fromarray(mask(1)).save(tmp_path / "m.png")
    describe(source, tmp_path / "out.jsonl")
    again = open_regions(tmp_path / "out.jsonl")
    first = open_regions(source)
    assert (again.num_regions, again.num_whole_images) == (first.num_regions, first.num_whole_images) == (7, 2)
    describe(tmp_path / "out.jsonl", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()
    # The mask counts, not the box around it; and of the records that a pipeline gives, the box.
    item = again[0]
    picture = item.load()
    assert np.array_equal(as_mask(item.reference(item.regions[0]), picture.height, picture.width), mask())
    row = {"image": "a.png", "region_index": 0, "box_xyxy": [1, 2, 5, 6], "area": 16, "answers": {"Color": "red"}}
    item = open_regions(write(tmp_path, row))[0]
    assert item.regions[0].reference == {"box_xyxy": [1, 2, 5, 6]}


def test_failed_regions_keep_what_they_were(tmp_path: Path) -> None:
    source = write(tmp_path, *FAILING, EVERYTHING[0])
    assert describe(source, tmp_path / "out.jsonl").failed == len(FAILING)
    found = records(tmp_path / "out.jsonl")
    kept = [{key: record.get(key, "absent") for key in ("mask", "mask_file")} for record in found[: len(FAILING)]]
    rle = encode_rle(mask())
    assert [each["mask"] for each in kept] == [
        {"box_xyxy": [900, 900, 950, 950]},
        "absent",
        rle,
        None,
        {"mask": rle, "polygon": [1, 1, 20, 1, 20, 20]},
        rle,
        "absent",
        {"counts": "x", "size": [3, 4]},
        rle,
        "absent",
    ]
    assert [each["mask_file"] for each in kept if each["mask_file"] != "absent"] == ["gone.png"]
    assert found[2]["label"] == "a dog" and found[0]["id"] == 1 and found[6]["id"] == 3
    # Read again they fail again, for the same reasons; but for the question that was none, which is not kept.
    again = open_regions(tmp_path / "out.jsonl")
    assert [region.as_given().get("mask") for region in again[0].regions[:1]] == [kept[0]["mask"]]
    assert again.num_whole_images == 1
    describe(tmp_path / "out.jsonl", tmp_path / "again.jsonl")
    found_again = records(tmp_path / "again.jsonl")
    assert [number for number, record in enumerate(found_again) if "error" not in record] == [5, len(FAILING)]
    for number in (0, 1, 2, 3, 6, 7, 9, 10):
        assert found_again[number] == found[number]
    # Once the cause is mended they are described.
    pixels(9).save(tmp_path / "gone.png")
    Image.fromarray(mask(3)).save(tmp_path / "mask.png")
    describe(tmp_path / "out.jsonl", tmp_path / "mended.jsonl")
    mended = records(tmp_path / "mended.jsonl")
    assert (mended[2]["mask"], mended[3]["mask"], mended[3]["area"]) == (rle, None, SIZE[0] * SIZE[1])


def test_failed_regions_of_a_data_set_do_not_become_whole_pictures(tmp_path: Path) -> None:
    source = write(tmp_path, EVERYTHING[0], FAILING[6])
    describe(source, tmp_path / "out.jsonl")
    found = records(tmp_path / "out.jsonl")
    columns = dict.fromkeys(key for record in found for key in record)
    rows = datasets.Dataset.from_dict({key: [record.get(key) for record in found] for key in columns})
    inputs = open_regions(rows, images=tmp_path)
    assert (inputs.num_regions, inputs.num_whole_images) == (2, 0)
    assert str(inputs[1].regions[0].error) == found[1]["error"]["message"]


def test_mask_files_of_failed_regions_are_mask_files_again(tmp_path: Path) -> None:
    describe(write(tmp_path, FAILING[1], EVERYTHING[0]), tmp_path / "out.jsonl")
    assert open_regions(tmp_path / "out.jsonl")[0].regions[0].reference == MaskFile("gone.png")


# --- tables and data sets ---------------------------------------------------------------------------------------------

# What could end a cell, a row, a script or a line, or be taken for a formula, a direction or a code point.
HOSTILE = (
    'a, "quoted"\r\nsecond line\nthird',
    '=HYPERLINK("http://x")',
    "-1+1",
    "\t@SUM(A1)",
    "</script><script>alert(1)</script><!-- ]]> &amp; ${x} `y`",
    "\u202eright to left\u202c שלום \u2028 \u2029 \u0000 \u001b",
    "half \ud83d of a pair",
    "",
    " spaces ",
    "'apostrophe",
)


def of_answers(folder: Path, texts: Any = HOSTILE, name: str = "out.csv", **options: Any) -> Path:
    """An output in which region n has the n-th text as its answer and as a key of its own."""
    rows = [{"image": "a.png", "id": n, "own": text, "mask": encode_rle(mask(n % 9))} for n, text in enumerate(texts)]
    said = iter(texts)
    describe(write(folder, *rows), folder / name, describer=StubDescriber(lambda *_: next(said)), **options)
    return folder / name


def readable(text: str) -> str:
    return text.replace("\ud83d", "\ufffd")


def csv_rows(path: Path) -> list[dict[str, str]]:
    content = path.read_bytes()
    assert content.startswith(b"\xef\xbb\xbfimage,")
    return list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True))


def test_csv_has_a_row_for_each_region_and_a_column_for_each_question(tmp_path: Path) -> None:
    rows = [*EVERYTHING[:3], FAILING[0], {"image": "c.png", "questions": ["What is <image>?", "shape"]}]
    describe(write(tmp_path, *rows), tmp_path / "out.csv", ["color", "Is it new?", "label"])
    found, kept = csv_rows(tmp_path / "out.csv"), records(tmp_path / "out.csv.records.jsonl")
    assert list(found[0]) == [
        *("image", "image_id", "id", "region_index", "label", "own", "questions", "bbox"),
        *("x0", "y0", "x1", "y1", "area"),
        *("Color", "Is it new?", "answer: label", "Shape", "What is <image>?", "error"),
    ]
    for row, record in zip(found, kept, strict=True):
        assert row["region_index"] == str(record["region_index"])
        if "answers" in record:
            assert [int(row[key]) for key in ("x0", "y0", "x1", "y1")] == record["box_xyxy"]
            assert {name: row[name] for name in record["answers"] if name != "label"} == {
                name: text for name, text in record["answers"].items() if name != "label"
            }
    assert (found[0]["own"], found[0]["label"]) == ('{"bbox": [1, 2]}', "a dog")
    assert found[0]["answer: label"] == kept[0]["answers"]["label"]
    assert found[3]["error"].startswith("MaskError: ") and found[3]["Color"] == ""
    assert found[4]["error"] == "What is <image>?: a special token"


def test_csv_texts_come_back_and_none_is_a_formula(tmp_path: Path) -> None:
    found = csv_rows(of_answers(tmp_path))
    risky = [text[:1] in ("=", "-", "\t") for text in HOSTILE]
    expected = [f"'{readable(text)}" if risk else readable(text) for text, risk in zip(HOSTILE, risky)]
    assert [row["Color"] for row in found] == [row["own"] for row in found] == expected
    with open(tmp_path / "out.csv", newline="", encoding="utf-8-sig") as file:
        assert len(list(csv.reader(file, strict=True))) == len(HOSTILE) + 1


def test_csv_of_very_many_questions_keeps_them_in_one_column(tmp_path: Path) -> None:
    rows = [{"image": "a.png", f"key {n}": n, "questions": [f"What is {n}?"]} for n in range(300)]
    describe(write(tmp_path, *rows), tmp_path / "out.csv")
    found = csv_rows(tmp_path / "out.csv")
    assert list(found[0]) == ["image", "region_index", "own", "x0", "y0", "x1", "y1", "area", "answers"]
    assert json.loads(found[299]["answers"]) == {"What is 299?": "What is 299? all"}
    assert json.loads(found[299]["own"])["key 299"] == 299


def loaded(path: Path, tmp_path: Path) -> Any:
    if path.is_dir():
        return datasets.load_from_disk(str(path))
    return datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["out.parquet", "out"])
def test_data_sets_hold_the_records_and_are_input_again(tmp_path: Path, name: str) -> None:
    mixed = [{"image": "b.png", "mixed": value, "n": value} for value in (1, 2.5)]
    rows = [*EVERYTHING[:3], *mixed, *FAILING[:4], {"image": "c.png", "mask": None, "mixed": "text", "many": {}}]
    output = tmp_path / name
    options = {"output_format": "datasets"} if name == "out" else {}
    describe(write(tmp_path, *rows), output, ["color", "global"], **options)
    kept = records(tmp_path / f"{name}.records.jsonl")
    found = loaded(output, tmp_path)
    assert found.column_names[:5] == ["image", "image_id", "id", "region_index", "label"]
    for row, record in zip(found, kept, strict=True):
        for key in ("image", "image_id", "region_index", "box_xyxy", "area", "label", "error", "own", "bbox"):
            assert row[key] == record.get(key)
        answers = row["answers"] and {name: text for name, text in row["answers"].items() if text is not None}
        assert answers == record.get("answers")
        # Ids of two types, and keys whose values have nothing in common, are JSON.
        for key in ("id", "mixed", "many"):
            assert row[key] == (json.dumps(record[key]) if key in record else None)
        assert row["n"] == record.get("n")
        if "answers" in record or record["image"] == "gone.png":
            assert row["mask"] == record["mask"]
    inputs = open_regions(found, images=tmp_path)
    assert (inputs.num_regions, inputs.num_whole_images) == (len(rows), 3)
    describe(found, tmp_path / "again.jsonl", ["color", "global"], images=tmp_path)
    again = records(tmp_path / "again.jsonl")
    assert [record.get("answers") for record in again] == [record.get("answers") for record in kept]
    assert [record.get("mask") for record in again] == [
        record.get("mask") if "answers" in record or record["image"] == "gone.png" else None for record in kept
    ]


@pytest.mark.parametrize("name", ["out.parquet", "out"])
def test_data_sets_take_any_text_and_any_number_of_keys(tmp_path: Path, capfd: Any, name: str) -> None:
    output = of_answers(tmp_path, name=name, output_format="parquet" if "." in name else "datasets")
    assert capfd.readouterr().err == ""  # of the library's bars
    assert [row["answers"]["Color"] for row in loaded(output, tmp_path)] == list(map(readable, HOSTILE))
    rows = [{"image": "a.png", f"key {n}": n, "own": "x", "questions": [f"What is {n}?"]} for n in range(300)]
    other = tmp_path / f"other{name[3:]}"
    describe(write(tmp_path, *rows), other, output_format="parquet" if "." in name else "datasets")
    found = loaded(other, tmp_path)
    assert json.loads(found[299]["own"]) == {"key 299": 299, "own": "x", "questions": ["What is 299?"]}
    assert json.loads(found[299]["answers"]) == {"What is 299?": "What is 299? all"}


# --- pages ------------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a browser finds: elements, and the JSON that the script reads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pictures: list[dict[str, Any]] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == ("script", {"type": "application/json"}) and data.strip():
            self.pictures += json.loads(data)

    def picture(self, index: int) -> Image.Image:
        source = self.pictures[index]["source"]
        if not source.startswith("data:image/jpeg;base64,"):
            return Image.open(self.path.parent / source)
        return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))


def test_page_holds_all_pictures_regions_and_failures(tmp_path: Path) -> None:
    described = describe(write(tmp_path, *EVERYTHING[:3], *FAILING[:4], *EVERYTHING[4:]), tmp_path / "out.html")
    shown = Page(tmp_path / "out.html")
    assert [(each["image"], len(each["regions"])) for each in shown.pictures] == [
        ("a.png", 5),
        ("gone.png", 2),
        ("c.png", 2),
    ]
    regions = [region for each in shown.pictures for region in each["regions"]]
    for region, record in zip(regions, records(described.records), strict=True):
        assert region["number"] == record["region_index"] + 1
        assert region["answers"] == record.get("answers", {})
        assert region.get("errors") == (
            {record["error"]["type"]: record["error"]["message"]} if "error" in record else None
        )
        assert region.get("id") == (str(record["id"]) if "id" in record else None)
        assert ("whole" in region) == ("answers" in record and record["mask"] is None)
        assert ("color" in region) == ("answers" in record and record["mask"] is not None)
    assert "it is not there" in shown.pictures[1]["missing"] and "source" not in shown.pictures[1]
    for index in (0, 2):
        assert shown.picture(index).size == (shown.pictures[index]["width"], shown.pictures[index]["height"])
    # Pictures are small here; all is in the page, and it asks for nothing else.
    assert sorted(path.name for path in tmp_path.glob("out*")) == [
        *("out.html", "out.html.manifest.json", "out.html.records.jsonl")
    ]
    assert not any(key in ("src", "href") for _, attributes in shown.tags for key in attributes)
    policy = next(each["content"] for tag, each in shown.tags if each.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; ")


def test_page_outlines_regions_in_their_places(tmp_path: Path) -> None:
    source = write(tmp_path, {"image": "a.png", "box_xyxy": [4, 4, 20, 26]})
    Image.new("RGB", SIZE, (128, 128, 128)).save(tmp_path / "a.png")
    describe(source, tmp_path / "out.html")
    drawn = np.asarray(Page(tmp_path / "out.html").picture(0)).astype(int)
    scale = drawn.shape[1] / SIZE[0]
    rows, columns = np.nonzero(np.abs(drawn - page.COLORS[0]).sum(2) < 90)
    found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / scale
    assert np.abs(found - (4, 4, 20, 26)).max() < 1


def test_page_with_many_pictures_has_them_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path, *({"image": name, "mask": encode_rle(mask())} for name in ("a.png", "b.png", "c.png")))
    monkeypatch.setattr(page, "MAX_EMBEDDED", 2)
    describe(source, tmp_path / "out.html")
    shown = Page(tmp_path / "out.html")
    assert [each["source"] for each in shown.pictures] == [f"out_files/0/{number}.jpg" for number in range(3)]
    assert all(
        shown.picture(number).size == (shown.pictures[0]["width"], shown.pictures[0]["height"]) for number in range(3)
    )
    # What lies beside the page belongs to it.
    (tmp_path / "out_files" / "0" / "1.jpg").write_bytes(b"")
    with pytest.raises(ResumeError, match=r"out_files is not any more what was written"):
        describe(source, tmp_path / "out.html")
    monkeypatch.setattr(page, "MAX_EMBEDDED", 3)
    describe(source, tmp_path / "out.html", overwrite=True)
    assert not (tmp_path / "out_files").exists()
    (tmp_path / "other_files").mkdir()
    with pytest.raises(ResumeError, match=r"did not make the folder .*other_files"):
        describe(source, tmp_path / "other.html", overwrite=True)
    assert (tmp_path / "other_files").is_dir()


def test_page_shows_hostile_texts_as_texts(tmp_path: Path) -> None:
    shown = Page(of_answers(tmp_path, name="out.html"))
    (picture,) = shown.pictures
    assert [region["answers"]["Color"] for region in picture["regions"]] == list(map(readable, HOSTILE))
    assert [tag for tag, _ in shown.tags].count("script") == 2


def test_page_of_other_pictures_than_were_described_says_so(tmp_path: Path) -> None:
    source = write(tmp_path, EVERYTHING[0])
    inputs = open_regions(source)
    describe(source, tmp_path / "out.jsonl")
    pixels().resize((9, 9)).save(tmp_path / "a.png")
    page.Html(inputs).write(lambda: iter(records(tmp_path / "out.jsonl")), tmp_path / "late.html")
    assert "30x40 but the image is 9x9" in Page(tmp_path / "late.html").pictures[0]["missing"]


# --- texts back into files of tools -----------------------------------------------------------------------------------


class Notes(AnnotationFile):
    """A format for these tests: pictures with boxes and a text for each."""

    format, title = "notes", "Notes"
    answered = True

    @classmethod
    def recognises(cls, seen: Any) -> bool:
        return isinstance(seen.json, dict) and "notes" in seen.json

    def _pictures(self) -> list[dict[str, Any]]:
        return json.loads(self.path.read_text(encoding="utf-8"))["notes"]

    def scan(self) -> Iterator[tuple[str, Any]]:
        for index in range(len(self._pictures())):
            yield self.read(index)

    def read(self, index: int) -> tuple[str, Any]:
        picture = self._pictures()[index]
        if picture.get("broken"):
            return "notes", DataError("notes", "it is broken.")
        regions = [{"mask": box and {"box_xyxy": box}, "id": n} for n, (box, _) in enumerate(picture["things"])]
        return f"notes {index}", {"image": picture["image"], "regions": regions}

    def write_back(self, answers: Iterator[Mapping[str, str] | None], target: Path) -> None:
        if not self.answered:
            raise DataError(self.name, "there is no place for a text in it.")
        pictures = self._pictures()
        for picture in pictures:
            for thing in () if picture.get("broken") else picture["things"]:
                if (answer := next(answers)) is not None:
                    thing[1] = "; ".join(f"{name}: {text}" for name, text in answer.items())
        assert next(answers, "the end") == "the end"
        target.write_text(json.dumps({"notes": pictures, "more": 1}), encoding="utf-8")


class NoPlace(Notes):
    answered = takes_texts = False


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(annotations, "ANNOTATION_FORMATS", (Notes,))
    write(tmp_path)
    return write_notes(tmp_path)


def write_notes(folder: Path) -> Path:
    things = [[[1, 2, 9, 9], "old"], [[900, 900, 990, 990], "kept"], [None, ""]]
    pictures = [
        {"image": "a.png", "things": things},
        {"image": "b.png", "broken": True},
        {"image": "b.png", "things": []},
        {"image": "gone.png", "things": [[[1, 2, 9, 9], "kept, too"]]},
        {"image": "c.png", "things": [[[1, 2, 9, 19], "old"]]},
    ]
    (folder / "in.notes").write_text(json.dumps({"notes": pictures}), encoding="utf-8")
    return folder / "in.notes"


EXPECTED_NOTES = [
    *("color: color 56; shape: shape 56", "kept", "color: color all; shape: shape all", "kept, too"),
    "color: color 136; shape: shape 136",
]


@pytest.mark.parametrize("name", ["same", "notes"])
def test_texts_go_back_into_the_same_kind_of_file(tmp_path: Path, notes: Path, name: str) -> None:
    before = notes.read_bytes()
    said = StubDescriber(
        lambda picture, region, request: f"{request.name.lower()} {'all' if region.is_whole else region.area}"
    )
    result = describe(notes, tmp_path / "out.notes", ["color", "shape"], output_format=name, describer=said)
    assert (result.regions, result.failed) == (6, 3)
    found = json.loads((tmp_path / "out.notes").read_text())
    texts = [thing[1] for picture in found["notes"] for thing in picture.get("things", ())]
    assert [text.lower() for text in texts] == EXPECTED_NOTES
    assert notes.read_bytes() == before


def test_command_puts_captions_into_a_copy_of_a_coco_file(tmp_path: Path) -> None:
    write(tmp_path)
    segmentation = [[1, 1, 20, 1, 20, 20]]
    annotation = {"id": 7, "image_id": 5, "category_id": 1, "segmentation": segmentation, "bbox": [1, 1, 19, 19]}
    images = [
        {"id": number, "file_name": name, "width": 40, "height": 30} for number, name in ((5, "a.png"), (6, "b.png"))
    ]
    given = {"images": images, "annotations": [{**annotation, "area": 180}], "categories": [{"id": 1, "name": "dog"}]}
    (tmp_path / "in.json").write_text(json.dumps(given))
    arguments = ["describe", str(tmp_path / "in.json"), "--output", str(tmp_path / "out.json"), "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, "--attribute", "color", "--max-new-tokens", "3"])
    assert result.exit_code == 0, result.output
    assert "1 pictures have no region and give no record." in result.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    caption = found["annotations"][0].pop("caption")
    assert (caption, found) == (records(tmp_path / "out.json.records.jsonl")[0]["answers"]["Color"], given)


def test_texts_that_cannot_go_back_are_told_before_a_model_is_loaded(
    tmp_path: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotations, "ANNOTATION_FORMATS", (NoPlace,))
    monkeypatch.setattr("finecaption_hf.asking.load_describer", lambda *_, **__: pytest.fail("a model was loaded"))
    before = sorted(tmp_path.iterdir())
    for arguments, message in (
        (
            [notes, "--output", tmp_path / "out", "--output-format", "same"],
            "in.notes: there is no place for a text in it.",
        ),
        ([notes, "--output", tmp_path / "out", "--output-format", "notes"], "there is no place for a text in it."),
        (
            [tmp_path / "rows.jsonl", "--output", tmp_path / "out", "--output-format", "same"],
            "read as JSON Lines; texts",
        ),
        ([notes, "--output", notes, "--output-format", "same"], "is, or holds, the input, which stays as it is"),
        ([tmp_path, "--output", tmp_path / "out", "--output-format", "same"], "lies in the input"),
    ):
        (tmp_path / "rows.jsonl").write_text(json.dumps(EVERYTHING[0]))
        result = CliRunner().invoke(app, ["describe", *map(str, arguments)])
        assert (result.exit_code, message in " ".join(result.stderr.split())) == (2, True), result.output
    assert sorted(tmp_path.iterdir()) == before


def test_coco_is_read_by_pycocotools(tmp_path: Path) -> None:
    bad = [{"image": "a.png", "mask": given} for given in ({"size": [2, 2]}, {"size": 5, "counts": "x"}, [1, 2])]
    bad.append({"image": "a.png", "mask": {"size": [10**6, 10**6], "counts": [1, 10**12 - 1]}})
    describe(write(tmp_path, *EVERYTHING[:3], *FAILING, *bad, EVERYTHING[4]), tmp_path / "out.json")
    found = COCO(str(tmp_path / "out.json"))
    kept = records(tmp_path / "out.json.records.jsonl")
    assert sum("error" in record for record in kept) == len(FAILING) + len(bad)
    # A region that failed is there without a caption, if it is a mask of some picture.
    failed = [record for record in kept if record["image"] and record.get("mask") == encode_rle(mask())]
    kept = [record for record in kept if "error" not in record or record in failed]
    assert sum("error" in record for record in kept) == 2
    for annotation, record in zip(found.dataset["annotations"], kept, strict=True):
        if "error" in record:
            assert "caption" not in annotation
        elif len(record["answers"]) == 1:
            assert annotation["caption"] == record["answers"]["Color"]
        else:
            assert annotation["attributes"] == record["answers"]
        assert found.annToMask(annotation).sum() == annotation["area"] == record.get("area", mask().sum())
        assert "id" not in record or annotation["id"] == record["id"]
        name = found.imgs[annotation["image_id"]]["file_name"]
        assert name == record["image"]


def test_suffix_that_may_mean_two_formats_is_an_error(tmp_path: Path, notes: Path) -> None:
    with pytest.raises(ValueError, match=r"may be made of COCO .* or, as the input, of Notes .*Give the one"):
        describe(notes, tmp_path / "out.json")
    with pytest.raises(ValueError, match="read as JSON Lines; texts are put back"):
        describe(write(tmp_path, EVERYTHING[0]), tmp_path / "out.txt", output_format="notes")


def test_file_that_is_not_written_back_leaves_what_is_finished(
    tmp_path: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patches:
        patches.setattr(Notes, "write_back", lambda self, answers, target: None)
        with pytest.raises(UnfinishedError, match=r"out\.notes cannot be made: in\.notes: Notes gave no file"):
            describe(notes, tmp_path / "out.notes", output_format="same")
    silent = StubDescriber(lambda *_: pytest.fail("a region is described again"))
    assert describe(notes, tmp_path / "out.notes", output_format="same", describer=silent).failed == 3


# --- the same after an interruption -----------------------------------------------------------------------------------

FORMS = {"jsonl": "out.jsonl", "csv": "out.csv", "coco": "out.json", "html": "out.html", "parquet": "out.parquet"}
FORMS |= {"datasets": "out", "same": "out.notes"}
ROWS = (*EVERYTHING[:3], FAILING[0], *EVERYTHING[4:], {"image": "b.png"}, {"image": "a.png", "box_xyxy": [1, 1, 9, 9]})
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["finecaption_hf.describing", "finecaption_hf.asking", "datasets"])


def write_source(folder: Path, form: str) -> Path:
    source = write(folder, *ROWS)
    return write_notes(folder) if form == "same" else source


def content(output: Path, form: str) -> Any:
    """What has to be the same: bytes, or rows where files hold a fingerprint."""
    if form in ("parquet", "datasets"):
        return list(loaded(output, output.parent.parent))
    beside = output.parent / "out_files"
    pictures = {path.name: path.read_bytes() for path in beside.rglob("*.jpg")}
    assert bool(pictures) == (form == "html")
    return output.read_bytes(), pictures


def _describe_and_be_killed(source: Path, output: Path, form: str, steps: int) -> None:
    page.MAX_EMBEDDED = 1
    annotations.ANNOTATION_FORMATS = (Notes,)
    kill_after(steps)
    describe(source, output, output_format=form)


@pytest.mark.parametrize("form", FORMS)
def test_a_kill_at_any_step_changes_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(annotations, "ANNOTATION_FORMATS", (Notes,))
    monkeypatch.setattr(page, "MAX_EMBEDDED", 1)
    source = write_source(tmp_path, form)
    (tmp_path / "expected").mkdir()
    describe(source, tmp_path / "expected" / FORMS[form], output_format=form)
    expected = content(tmp_path / "expected" / FORMS[form], form)
    names = {path.name for path in (tmp_path / "expected").iterdir()}
    for steps in range(5, 200, 6):
        output = tmp_path / str(steps) / FORMS[form]
        output.parent.mkdir()
        process = PROCESSES.Process(target=_describe_and_be_killed, args=(source, output, form, steps))
        process.start()
        code = exit_code(process, 60)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        if output.exists():  # it is whole, or it is not there
            assert content(output, form) == expected
        describe(source, output, output_format=form)
        assert content(output, form) == expected
        assert {path.name for path in output.parent.iterdir()} == names
        shutil.rmtree(output.parent)
    assert steps > 17  # the records are merged, the output is made, it gets its name, and the parts go


@pytest.mark.parametrize("form", FORMS)
def test_finished_outputs_are_known_and_changed_ones_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(annotations, "ANNOTATION_FORMATS", (Notes,))
    monkeypatch.setattr(page, "MAX_EMBEDDED", 1)
    source, output = write_source(tmp_path, form), tmp_path / FORMS[form]
    first = describe(source, output, output_format=form)
    silent = StubDescriber(lambda *_: pytest.fail("a region is described again"))
    told: list[str] = []
    assert describe(source, output, output_format=form, describer=silent, tell=told.append) == first
    assert told[-1] == f"{output.name} was finished before; nothing is left to do."
    with pytest.raises(ResumeError, match=r"another command\. options: seed was 0, now it is 1"):
        describe_dataset(
            lambda: silent, open_regions(source), output, "color", DescribeOptions(seed=1), output_format=form
        )
    changed = output / "state.json" if form == "datasets" else output
    good = changed.read_bytes()
    changed.write_bytes(good.replace(b"a", b"b", 1))
    with pytest.raises(ResumeError, match=f"{output.name} is not any more what was written"):
        describe(source, output, output_format=form)
    changed.write_bytes(good)
    if form != "jsonl":
        kept = first.records.read_bytes()
        first.records.write_bytes(kept[:-9])
        with pytest.raises(ResumeError, match=r"records\.jsonl is not any more what was written"):
            describe(source, output, output_format=form)
        first.records.write_bytes(kept)
    # A region that failed is described once its cause is mended, and only its batch.
    assert first.failed
    pixels(9).save(tmp_path / "gone.png")
    asked = StubDescriber()
    again = describe(source, output, output_format=form, describer=asked, retry_failed=True)
    assert again.failed == first.failed - (form == "same")
    assert 0 < len(asked.asked) < first.regions
    fresh = tmp_path / "fresh" / FORMS[form]
    fresh.parent.mkdir()
    assert describe(source, fresh, output_format=form).failed == again.failed
    assert content(output, form) == content(fresh, form)
    # To start anew replaces it.
    other = StubDescriber(lambda *_: "other", another="model")
    with pytest.raises(ResumeError, match="another command"):
        describe(source, output, output_format=form, describer=other)
    describe(source, output, output_format=form, describer=other, overwrite=True)
    assert content(output, form) != content(fresh, form)
    assert {text for record in records(again.records) for text in record.get("answers", {}).values()} == {"other"}


@pytest.mark.parametrize("form", ["csv", "datasets"])
def test_outputs_of_others_are_not_replaced(tmp_path: Path, form: str) -> None:
    source, output = write(tmp_path, EVERYTHING[0]), tmp_path / FORMS[form]
    if form == "datasets":
        output.mkdir()
        (output / "mine").write_text("mine")
    else:
        output.write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for options in ({}, {"overwrite": True}) if form == "datasets" else ({},):
        with pytest.raises(ResumeError, match=r"did not make the folder|is there already"):
            describe(source, output, output_format=form, **options)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with pytest.raises(ResumeError, match=r"is no file|is no folder"):
        describe(source, output, output_format="datasets" if form == "csv" else "csv")


def test_same_output_in_another_form_is_another_command(tmp_path: Path) -> None:
    source = write(tmp_path, EVERYTHING[0])
    describe(source, tmp_path / "out", output_format="csv")
    for other in ("jsonl", "parquet"):
        with pytest.raises(ResumeError, match=r'another command\. output was "csv"'):
            describe(source, tmp_path / "out", output_format=other)


# --- memory -----------------------------------------------------------------------------------------------------------


class Many:
    """The records of many regions, made when they are asked for."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self) -> Iterator[dict[str, Any]]:
        rle = encode_rle(mask())
        for n in range(self.number):
            answers = {"Color": f"red {n} " * 20, "dense": "a dog " * 30}
            record = {"image": f"{n // 20}.png", "id": n, "region_index": n % 20, "mask": rle}
            yield {**record, "box_xyxy": [0, 0, 9, 9], "area": 80, "answers": answers}


class ManyPictures:
    """Stands for `RegionInputs` with pictures of twenty regions."""

    annotations = None

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number // 20

    def region_counts(self) -> list[int]:
        return [20] * len(self)

    def __getitem__(self, index: int) -> Any:
        return self

    def load(self) -> Image.Image:
        return pixels()


@pytest.mark.parametrize("form", [table.Csv, arrow.Parquet, arrow.SavedDataset, page.Html])
def test_memory_does_not_grow_with_the_number_of_regions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: type
) -> None:
    monkeypatch.setattr(page, "draw_regions", lambda picture, masks, **_: picture)  # which has no part in it
    peaks = []
    for number in (1_000, 10_000):
        (tmp_path / str(number)).mkdir()
        tracemalloc.start()
        form(ManyPictures(number)).write(Many(number), tmp_path / str(number) / "out")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # The texts of 10,000 regions have 4 MB; those of a block of a thousand records stay.
    assert peaks[1] < 1.2 * peaks[0] + 2**20, peaks
    assert peaks[1] < 32 * 2**20, peaks
