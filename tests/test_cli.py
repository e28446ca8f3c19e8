"""The command line, and captions from Python, on real photographs and on the example."""

import base64
import gzip
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import typer
from conftest import EXAMPLE_MASK, EXAMPLE_PICTURE, RealRegion
from PIL import Image
from pycocotools import mask as coco
from typer.testing import CliRunner

from finecaption_hf import __version__
from finecaption_hf.asking import FineCaptionDescriber, load
from finecaption_hf.cli import app
from finecaption_hf.cli.common import errors_in_one_line
from finecaption_hf.drawing import MIN_SIDE
from finecaption_hf.image_processing_finecaption import FineCaptionImageProcessor
from finecaption_hf.scenes import ATTRIBUTE_NAMES, accepted, is_right, render_scene

# What the parts of the example are: examples/README.md says how it was made.
EXAMPLE_SCENE, EXAMPLE_REGION = 7, 1
EXAMPLE_TRUTH = {
    "region": "a blue badge shaped like a diamond",
    "Category Name": "badge",
    "Color": "blue",
    "Shape": "diamond",
    "Materials/Texture": "smooth plastic",
    "Associative Visual Effect": "a shadow to the right",
    "Interaction with Other Objects": "held by the person",
    "Relative Location with Other Objects": "right of the person",
}
NUM_REGIONS = 27


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run_caption(image: Path, *arguments: object) -> list[dict[str, Any]]:
    """The records that `finecaption caption IMAGE ... --json` prints, without the note on the embedded checkpoint."""
    result = run("caption", image, "--json", "--device", "cpu", "--max-new-tokens", 8, *arguments)
    assert result.exit_code == 0, result.output
    records: list[dict[str, Any]] = json.loads(result.stdout)
    assert all("rendered scenes" in record.pop("model_note") for record in records)
    return records


# --- every way to say which pixels are meant -------------------------------------------------------------------------


def box_of(mask: np.ndarray) -> list[int]:
    """[x0, y0, x1, y1], ends exclusive, by pycocotools."""
    x, y, width, height = map(int, coco.toBbox(coco.encode(np.asfortranarray(mask.astype(np.uint8)))))
    return [x, y, x + width, y + height]


def filled_box(mask: np.ndarray) -> np.ndarray:
    x0, y0, x1, y1 = box_of(mask)
    result = np.zeros_like(mask)
    result[y0:y1, x0:x1] = True
    return result


def as_blob(mask: np.ndarray) -> str:
    return base64.b64encode(gzip.compress(mask.astype(np.uint8).tobytes())).decode()


def as_geojson(mask: np.ndarray) -> dict[str, Any]:
    """One rectangle for each run of pixels in a row: exactly the mask."""
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    starts, ends = np.argwhere(edges == 1), np.argwhere(edges == -1)
    return {
        "type": "MultiPolygon",
        "coordinates": [
            [[[int(x0), int(y)], [int(x1), int(y)], [int(x1), int(y) + 1], [int(x0), int(y) + 1], [int(x0), int(y)]]]
            for (y, x0), (_, x1) in zip(starts, ends, strict=True)
        ],
    }


def runs_of(mask: np.ndarray) -> list[int]:
    """Uncompressed counts of COCO RLE."""
    columns = np.concatenate([[0], mask.T.ravel().astype(np.int8), [1 - mask[-1, -1]]])
    ends = np.flatnonzero(np.diff(columns))
    return np.diff(np.concatenate([[0], ends])).tolist()


def corners_of(mask: np.ndarray) -> list[int]:
    x0, y0, x1, y1 = box_of(mask)
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def command_line_forms(region: RealRegion, folder: Path, name: str) -> Iterator[tuple[str, str, np.ndarray]]:
    """(option, value, mask that is meant) for each form that the command line takes."""
    mask = region.mask
    files = {suffix: folder / f"{name}{suffix}" for suffix in (".png", ".npy", ".txt", ".json", ".geojson")}
    Image.fromarray(mask.astype(np.uint8) * 255).save(files[".png"])
    np.save(files[".npy"], mask)
    files[".txt"].write_text(as_blob(mask) + "\n")
    files[".json"].write_text(json.dumps(region.rle))
    files[".geojson"].write_text(json.dumps(as_geojson(mask)))
    for suffix in (".png", ".npy", ".txt", ".json"):
        yield "--mask", str(files[suffix]), mask
    yield "--mask", as_blob(mask), mask
    yield "--rle", json.dumps(region.rle), mask
    yield "--rle", str(files[".json"]), mask
    yield "--polygon", str(files[".geojson"]), mask
    yield "--polygon", ",".join(map(str, corners_of(mask))), filled_box(mask)
    yield "--box", ",".join(map(str, box_of(mask))), filled_box(mask)


def python_forms(region: RealRegion) -> list[Any]:
    """References that mean the same mask."""
    mask = region.mask
    return [
        region.rle,
        {"size": region.rle["size"], "counts": runs_of(mask)},
        mask,
        mask.astype(np.uint8) * 255,
        torch.from_numpy(mask),
        Image.fromarray(mask.astype(np.uint8) * 255),
        as_blob(mask),
        as_geojson(mask),
    ]


def python_box_forms(region: RealRegion) -> list[Any]:
    corners = corners_of(region.mask)
    return [
        {"box_xyxy": box_of(region.mask)},
        box_of(region.mask),
        {"polygon": corners},
        corners,
        filled_box(region.mask),
    ]


def by_picture(regions: Sequence[RealRegion]) -> dict[Path, list[RealRegion]]:
    pictures: dict[Path, list[RealRegion]] = {}
    for region in regions:
        pictures.setdefault(region.image, []).append(region)
    return pictures


def test_every_real_region_in_every_form_through_the_command_line(
    embedded: Any, real_regions: list[RealRegion], tmp_path: Path
) -> None:
    assert len(real_regions) == NUM_REGIONS
    for image, regions in by_picture(real_regions).items():
        forms = [
            form
            for number, region in enumerate(regions)
            for form in command_line_forms(region, tmp_path, f"{image.stem}-{number}")
        ]
        records = run_caption(image, *(text for option, value, _ in forms for text in (option, value)))
        assert [record["region_index"] for record in records] == list(range(len(forms)))
        for record, (option, _, mask) in zip(records, forms, strict=True):
            assert record["box_xyxy"] == box_of(mask), option
            assert record["area"] == mask.sum(), option
            assert list(record["answers"]) == ["region"] and record["answers"]["region"], option


# --- captions --------------------------------------------------------------------------------------------------------


def example_wordings() -> dict[str, tuple[str, ...]]:
    return accepted(render_scene(EXAMPLE_SCENE, split="test"), EXAMPLE_REGION)


def test_example_is_captioned_rightly(embedded: Any) -> None:
    result = run("caption", EXAMPLE_PICTURE, "--mask", EXAMPLE_MASK, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert is_right(result.stdout, example_wordings()["region"])


def test_example_attributes_are_answered_rightly(embedded: Any) -> None:
    names = [text for name in EXAMPLE_TRUTH for text in ("--attribute", name)]
    (record,) = run_caption(EXAMPLE_PICTURE, "--mask", EXAMPLE_MASK, *names, "--max-new-tokens", 32)
    wordings = example_wordings()
    assert {name for name, text in record["answers"].items() if not is_right(text, wordings[name])} == set()


def test_regions_and_questions_keep_the_order_of_the_command_line(embedded: Any) -> None:
    records = run_caption(
        *(EXAMPLE_PICTURE, "--box", "10,20,30,40", "--question", "What is this?", "--polygon", "0,0,50,0,0,50"),
        *("--attribute", "shape", "--mask", EXAMPLE_MASK, "--task", "dense", "--attribute=color", "--box=1,2,3,4"),
    )
    assert [record["box_xyxy"] for record in records][::3] == [[10, 20, 30, 40], [1, 2, 3, 4]]
    assert records[2]["box_xyxy"] == box_of(np.asarray(Image.open(EXAMPLE_MASK)))
    assert all(list(record["answers"]) == ["What is this?", "Shape", "dense", "Color"] for record in records)


def test_picture_without_a_region_is_captioned_whole(embedded: Any) -> None:
    (record,) = run_caption(EXAMPLE_PICTURE, "--task", "global")
    assert record["box_xyxy"] == [0, 0, 256, 256] and record["area"] == 256 * 256
    assert list(record["answers"]) == ["global"]


def test_global_caption_is_about_the_whole_picture_whatever_the_regions(embedded: Any) -> None:
    (whole,) = run_caption(EXAMPLE_PICTURE, "--task", "global")
    records = run_caption(
        EXAMPLE_PICTURE, "--mask", EXAMPLE_MASK, "--box", "0,70,80,155", "--task", "global", "--attribute", "color"
    )
    assert [list(record["answers"]) for record in records] == [["global", "Color"]] * 2
    assert {record["answers"]["global"] for record in records} == {whole["answers"]["global"]}
    assert is_right(records[0]["answers"]["Color"], example_wordings()["Color"])


def test_records_are_those_of_the_pipeline_for_the_same_seed(embedded: Any) -> None:
    model, processor = embedded
    regions = [Image.open(EXAMPLE_MASK), {"box_xyxy": [10, 20, 90, 80]}, Image.open(EXAMPLE_MASK)]
    options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 5.0, "top_p": 0.9}
    expected = model.as_pipeline(processor)(EXAMPLE_PICTURE, regions, ["all", "global", "Which? "], seed=3, **options)
    arguments = ["--mask", EXAMPLE_MASK, "--box", "10,20,90,80", "--mask", EXAMPLE_MASK]
    arguments += ["--attribute", "all", "--task", "global", "--question", "Which? "]
    arguments += ["--temperature", 5.0, "--top-p", 0.9]
    records = run_caption(EXAMPLE_PICTURE, *arguments, "--seed", 3)
    assert records == expected
    # Equal regions are drawn for apart, and another seed draws otherwise.
    assert records[0]["answers"] != records[2]["answers"]
    assert run_caption(EXAMPLE_PICTURE, *arguments, "--seed", 4) != records


@pytest.mark.parametrize(
    ("regions", "prefixes"), [((), 1), (("--box", "10,20,90,80"), 2), (("--mask", EXAMPLE_MASK, "--box", "0,0,9,9"), 3)]
)
def test_picture_is_prepared_and_encoded_once_with_a_global_question_too(
    embedded: Any, monkeypatch: pytest.MonkeyPatch, regions: tuple[object, ...], prefixes: int
) -> None:
    monkeypatch.setattr("finecaption_hf.asking.loading.load", lambda *_, **__: embedded)
    made: list[Any] = []
    prepared: list[Any] = []
    preprocess = FineCaptionImageProcessor.preprocess

    def make(*args: Any, **kwargs: Any) -> FineCaptionDescriber:
        made.append(FineCaptionDescriber(*args, **kwargs))
        prepared.clear()  # prompts are tokenized with pictures of their own
        return made[-1]

    def prepare(self: Any, images: Any, *args: Any, **kwargs: Any) -> Any:
        prepared.append(images)
        return preprocess(self, images, *args, **kwargs)

    monkeypatch.setattr("finecaption_hf.asking.kinds.FineCaptionDescriber", make)
    monkeypatch.setattr(FineCaptionImageProcessor, "preprocess", prepare)
    run_caption(EXAMPLE_PICTURE, *regions, "--task", "region", "--task", "global", "--attribute", "color")
    (engine,) = made
    assert (engine.counts["images"], engine.counts["prefixes"], len(prepared)) == (1, prefixes, 1)


def test_transparent_and_deep_pictures_are_seen_as_the_pipeline_sees_them(embedded: Any, tmp_path: Path) -> None:
    model, processor = embedded
    describe = model.as_pipeline(processor)
    transparent = Image.open(EXAMPLE_PICTURE).convert("RGBA")
    transparent.putalpha(Image.open(EXAMPLE_MASK))
    transparent.save(tmp_path / "transparent.png")
    deep = np.asarray(Image.open(EXAMPLE_PICTURE).convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for name in ("transparent.png", "deep.png"):
        records = run_caption(tmp_path / name, "--task", "dense", "--box", "100,149,160,209", "--max-new-tokens", 40)
        expected = describe(tmp_path / name, {"box_xyxy": [100, 149, 160, 209]}, "dense", max_new_tokens=40)
        assert records == expected


def test_question_with_a_special_token_ends_in_one_error(embedded: Any) -> None:
    result = run("caption", EXAMPLE_PICTURE, "--device", "cpu", "--question", f"What {embedded[1].image_token} is it?")
    assert result.exit_code == 2 and "Error: " in result.stderr and "Traceback" not in result.output


def test_several_answers_are_printed_as_a_table(embedded: Any) -> None:
    result = run(
        *("caption", EXAMPLE_PICTURE, "--mask", EXAMPLE_MASK, "--attribute", "color", "--attribute", "shape"),
        *("--device", "cpu", "--question", "What [bold]is[/bold] this?"),
    )
    assert result.exit_code == 0, result.output
    assert "blue" in result.stdout and "diamond" in result.stdout
    assert "[bold]is[/bold]" in result.stdout  # not taken for markup


def test_out_writes_an_outlined_picture(embedded: Any, tmp_path: Path) -> None:
    out = tmp_path / "outlined.png"
    result = run("caption", EXAMPLE_PICTURE, "--mask", EXAMPLE_MASK, "--device", "cpu", "--out", out)
    assert result.exit_code == 0, result.output
    assert str(out) in result.stderr.replace("\n", "")
    with Image.open(out) as drawn:
        assert drawn.width >= MIN_SIDE and drawn.height > drawn.width  # the picture is square; captions are below


def test_mask_fits_the_picture_as_it_is_displayed(embedded: Any, tmp_path: Path) -> None:
    """A phone's portrait photograph is stored lying down, with a note to turn it."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    Image.new("RGB", (120, 80), (200, 40, 40)).save(tmp_path / "portrait.jpg", exif=exif)
    mask = np.zeros((120, 80), dtype=np.uint8)
    mask[100:110, 10:30] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    (record,) = run_caption(tmp_path / "portrait.jpg", "--mask", tmp_path / "mask.png", "--out", tmp_path / "out.png")
    assert record["box_xyxy"] == [10, 100, 30, 110]
    (same,) = embedded[0].as_pipeline(embedded[1])(tmp_path / "portrait.jpg", mask, "region", max_new_tokens=8)
    assert same == record


def test_device_that_cannot_be_used_raises(embedded: Any) -> None:
    with pytest.raises(ValueError, match="no device 'abacus'"):
        load(device="abacus")


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mask", "nothing.png"], "neither an existing file nor a mask blob"),
        (["--mask", "A" * 5000], "neither an existing file nor a mask blob"),
        (["--mask", "H4sIAAAA"], "region 1 (--mask): The gzip stream in the blob is truncated"),
        (["--mask", __file__], "cannot be read as a mask"),
        (["--mask", EXAMPLE_PICTURE], "coloured"),
        (["--box", "1,2,3"], "region 1 (--box): A list of 3 entries is no box"),
        (["--box", "left"], "Give X0,Y0,X1,Y1 in pixels"),
        (["--box", "1,2,30,40", "--box", "900,900,999,999"], "region 2 (--box): The box [900, 900, 999, 999]"),
        (["--polygon", "1,2,3,4"], "Give at least three"),
        (["--rle", "{"], "--rle: this is no JSON"),
        (["--rle", "[" * 100_000], "--rle: this is no JSON"),
        (["--rle", "nothing.json"], "neither an existing file nor JSON"),
        (["--rle", '{"size": [4, 4], "counts": "04"}'], "256"),
        (["--out", "caption.doc"], ".doc names no format for pictures in colour"),
        (["--out", "caption"], "no suffix names no format"),
        (["--out", "caption.xbm"], ".xbm names no format for pictures in colour"),  # black and white only
        (["--out", "caption.hdf"], ".hdf names no format"),  # for which nothing is installed
        (["--out", EXAMPLE_PICTURE], "is the picture itself, which is not written over"),
        (["--out", "no-such-folder/out.png"], "folder no-such-folder does not exist"),
        (["--model", "/no/such/folder"], "neither a folder nor the id of a Hub repository"),
        (["--task", "sing"], "region"),
        (["--dtype", "int8"], "bfloat16"),
        (["--max-new-tokens", "0"], "--max-new-tokens"),
    ],
)  # fmt: skip
def test_wrong_input_ends_in_one_error_that_names_the_remedy(arguments: list[object], message: str) -> None:
    result = run("caption", EXAMPLE_PICTURE, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output and not result.stdout


def test_wrong_attribute_lists_the_known_ones(embedded: Any) -> None:
    result = run("caption", EXAMPLE_PICTURE, "--attribute", "smell", "--device", "cpu")
    assert result.exit_code == 2
    assert "smell" in result.stderr and "Materials/Texture" in result.stderr and "Age Range" in result.stderr


def test_picture_that_is_missing_or_none_ends_in_an_error() -> None:
    result = run("caption", "nothing.jpg")
    assert result.exit_code == 2 and "'nothing.jpg' does not exist" in result.stderr
    result = run("caption", __file__)
    assert result.exit_code == 2 and "cannot be read as an image: cannot identify image file" in result.stderr


def test_coordinates_that_look_like_fractions_are_warned_about(embedded: Any) -> None:
    result = run("caption", EXAMPLE_PICTURE, "--box", "0.1,0.1,0.9,0.9", "--json", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "Warning: region 1 (--box)" in result.stderr and "between 0 and 1" in result.stderr
    assert json.loads(result.stdout)[0]["area"] == 1


# --- scenes ----------------------------------------------------------------------------------------------------------


def test_rendered_scenes_are_a_data_set(tmp_path: Path) -> None:
    for folder, processes in (("one", 1), ("two", 2)):
        options = ("--n", 3, "--seed", 6, "--size", 192, "--regions", 2, "--split", "test", "--processes", processes)
        result = run("scenes", "render", "--out", tmp_path / folder, *options)
        assert result.exit_code == 0, result.output
        assert "Wrote 3 scenes" in result.stderr and not result.stdout
    lines = (tmp_path / "one" / "records.jsonl").read_text()
    assert lines == (tmp_path / "two" / "records.jsonl").read_text()
    records = [json.loads(line) for line in lines.splitlines()]
    assert [record["id"] for record in records] == ["test-6", "test-7", "test-8"]
    for record in records:
        with Image.open(tmp_path / "one" / record["image"]) as image:
            assert image.size == (192, 192)
        *regions, whole = record["regions"]
        assert len(regions) == 2 and whole["mask"] is None
        assert all(coco.area(region["mask"]) > 0 for region in regions)


def test_example_is_the_scene_that_its_note_says() -> None:
    scene = render_scene(EXAMPLE_SCENE, split="test")
    assert np.array_equal(scene.image, Image.open(EXAMPLE_PICTURE))
    assert np.array_equal(scene.masks[EXAMPLE_REGION], np.asarray(Image.open(EXAMPLE_MASK)))
    assert {region.sort for region in scene.regions} == {"object", "person"}
    assert {
        name: wordings[0] for name, wordings in example_wordings().items() if name in EXAMPLE_TRUTH
    } == EXAMPLE_TRUTH


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--size", 3], "192 to 1024 px"), (["--regions", 4], "Give 1 to 3"), (["--processes", 0], "--processes")],
)
def test_impossible_scenes_end_in_an_error(arguments: list[object], message: str, tmp_path: Path) -> None:
    result = run("scenes", "render", "--out", tmp_path / "set", *arguments)
    assert result.exit_code == 2 and message in " ".join(result.stderr.split()) and "Traceback" not in result.output
    assert not (tmp_path / "set").exists()


def test_scenes_are_not_rendered_over_others(tmp_path: Path) -> None:
    assert run("scenes", "render", "--out", tmp_path, "--n", 1).exit_code == 0
    result = run("scenes", "render", "--out", tmp_path, "--n", 1)
    assert result.exit_code == 2 and "Choose another folder" in result.stderr


def test_score_prints_accuracy_per_question(embedded: Any) -> None:
    result = run("scenes", "score", "--n", 1, "--json", "--device", "cpu")
    assert result.exit_code == 0, result.output
    score = json.loads(result.stdout)
    assert set(score["accuracy"]) <= set(score["counts"]) == set(ATTRIBUTE_NAMES)
    assert all(0 <= share <= 1 for share in score["accuracy"].values())


def test_score_asks_what_is_asked_for(embedded: Any) -> None:
    options = (
        "--n",
        2,
        "--regions",
        2,
        "--no-mask",
        "--name",
        "color",
        "--name",
        "materials texture",
        "--name",
        "global",
    )
    result = run("scenes", "score", *options, "--device", "cpu")
    assert result.exit_code == 0, result.output
    table = " ".join(result.stdout.split())
    assert "asked" in table and "Materials/Texture" in table and "Hair" not in table
    assert "4 regions of 2 scenes, first scene 0" in table


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--name", "smell"], "smell"), (["--size", 3], "192"), (["--regions", 4], "1 to 3")]
)
def test_impossible_scores_end_in_an_error(arguments: list[object], message: str) -> None:
    result = run("scenes", "score", *arguments)
    assert result.exit_code == 2 and message in result.stderr and "Traceback" not in result.output


# --- start-up --------------------------------------------------------------------------------------------------------


def test_module_runs_as_the_command_does() -> None:
    command = [sys.executable, "-m", "finecaption_hf.cli", "--version"]
    assert (
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        .stdout.strip()
        .endswith(__version__)
    )
    assert run("--version").stdout.strip().endswith(__version__)


@pytest.mark.parametrize("arguments", [["--help"], ["caption", "--help"], ["scenes", "render", "--help"]])
def test_help_comes_without_importing_torch(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from finecaption_hf.cli import app\n"
        f"assert CliRunner().invoke(app, {arguments!r}).exit_code == 0\n"
        "assert not {'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_home_that_cannot_be_written_to_is_named_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    errors = []
    for home in (tmp_path / "file" / "home", tmp_path / "home"):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(home))
        with pytest.raises(typer.Exit), errors_in_one_line():
            raise PermissionError(13, "Permission denied", str(home / "hub"))
        errors.append(capsys.readouterr().err)
    assert "you may not read or write this" in errors[0] and "Set HF_HOME to a folder that can" in errors[0]
    assert "HF_HOME" not in errors[1]
