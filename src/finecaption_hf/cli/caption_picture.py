"""`finecaption caption PICTURE`: regions of one picture, given or found, and questions about them."""

import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .common import Dtype, check_attributes, errors_in_one_line, load_describer
from .picture_regions import GivenRegion, read_regions

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

_MAX_REGIONS = 20


def caption_picture(
    image: Path,
    given: Sequence[tuple[str, str]],
    questions: Sequence[tuple[str, str]],
    *,
    refine: bool,
    everything: bool,
    segmenter: str | None,
    max_regions: int | None,
    model: str | None,
    device: str | None,
    dtype: Dtype | None,
    options: dict[str, Any],
    out: Path | None,
    as_json: bool,
) -> None:
    """Caption regions of a picture.

    Args:
        image: its file.
        given, questions: (option, value) as they stand on the command line.
        options: of the pipeline, such as `temperature`.
        refine, everything, segmenter, max_regions, model, device, dtype, out, as_json: the options of that name.
    """
    with errors_in_one_line():
        from ..asking import ask, check_questions
        from ..branches_finecaption import BranchRequest

        # What can be found out before a model is loaded comes first.
        BranchRequest("region", temperature=options["temperature"], top_p=options["top_p"])
        _check_writable(out, image)
        _check_regions([kind for kind, _ in given], refine, everything, segmenter, max_regions)
        picture = _open_picture(image)
        regions = read_regions(given, picture, refine)
        describer = load_describer(model, device, dtype, max_batch_tokens=options.pop("max_batch_tokens"))
        check_attributes(questions, describer.questions)
        asked = [name for _, name in questions]
        check_questions(describer, asked)
        masks, features = _find(
            describer.model, describer.processor, picture, regions, segmenter, device, dtype, everything, max_regions
        )
    records = ask(describer, picture, masks, asked, high_res_features=features, **options)
    if as_json:
        typer.echo(json.dumps(records, ensure_ascii=False, indent=2))
    else:
        _print_answers(records)
    if out is not None:
        _write_picture(out, picture, masks, records)


def _check_regions(
    kinds: list[str], refine: bool, everything: bool, segmenter: str | None, max_regions: int | None
) -> None:
    """No option without the one that it goes with."""
    if everything and (kinds or refine):
        other = kinds[0].replace("_", "-") if kinds else "refine"
        raise ValueError(f"--everything finds the regions itself; leave --{other} out, or --everything.")
    if max_regions is not None and not everything:
        raise ValueError("--max-regions goes with --everything only.")
    if refine and "box" not in kinds:
        raise ValueError("--refine goes with --box: it takes a box for what stands in it.")
    if segmenter is not None and not (everything or refine or {"point", "not_point"} & set(kinds)):
        raise ValueError("--segmenter goes with --everything, --point, or --box and --refine.")


def _find(
    checkpoint: Any,
    processor: Any,
    picture: "Image.Image",
    regions: list[GivenRegion],
    name: str | None,
    device: str | None,
    dtype: Dtype | None,
    everything: bool,
    max_regions: int | None,
) -> "tuple[list[np.ndarray | None], Any]":
    """Masks of the regions, `None` for the whole picture; and the picture's encoding, where a segmenter shares it.

    Who found regions is told on standard error.
    """
    if not regions and not everything:
        return [None], None
    to_find = [region for region in regions if region.needs_segmenter]
    if not to_find and not everything:
        return [region.mask for region in regions], None
    from ..segmentation import open_segmenter_for

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        segmenter = open_segmenter_for(checkpoint, processor, name, device, None if dtype is None else dtype.value)
    for warning in caught:
        typer.echo(f"Warning: {' '.join(str(warning.message).split())}", err=True)
    encoded = segmenter.encode(picture)
    if everything:
        found = [it.mask for it in encoded.everything(max_regions=max_regions or _MAX_REGIONS)]
    else:
        found = [region.find(encoded, segmenter.name) for region in regions]
    number = len(found) if everything else len(to_find)
    typer.echo(f"{number} region{'' if number == 1 else 's'} found by: {segmenter.name}", err=True)
    if not found:
        raise ValueError("No region was found in the picture. Name some with --mask, --box, --polygon or --point.")
    return list(found), encoded.high_res_features


def _print_answers(records: list[dict[str, Any]]) -> None:
    """A single caption as it is; a table of several, numbered from 1 like the drawn regions."""
    if len(records) == 1 and len(records[0]["answers"]) == 1:
        typer.echo(next(iter(records[0]["answers"].values())))
        return
    table = Table("region", "box (x0, y0, x1, y1)", "question", "answer", show_lines=False)
    for record in records:
        cells = [str(record["region_index"] + 1), ", ".join(map(str, record["box_xyxy"]))]
        for name, text in record["answers"].items():
            # Text: a caption with square brackets is not to be read as markup.
            table.add_row(*cells, Text(name), Text(text))
            cells = ["", ""]
        table.add_section()
    Console().print(table)


def _write_picture(
    out: Path, picture: "Image.Image", masks: "Sequence[np.ndarray | None]", records: list[dict[str, Any]]
) -> None:
    from ..drawing import draw_regions
    from ..masks_finecaption import as_mask

    answers: list[dict[str, str]] = [record["answers"] for record in records]
    # A single question needs no repeating.
    captions = [dict(it) if len(it) > 1 else next(iter(it.values())) for it in answers]
    with errors_in_one_line():
        regions = [as_mask(mask, picture.height, picture.width) for mask in masks]
        draw_regions(picture, regions, captions).save(out)
    typer.echo(f"Wrote {out}", err=True)


def _open_picture(path: Path) -> "Image.Image":
    from PIL import Image

    from ..data.images import to_rgb
    from ..data.records import DataError

    if not path.is_file():
        raise FileNotFoundError(f"There is no picture file {path}.")
    try:
        return to_rgb(Image.open(path))
    except (OSError, SyntaxError, DataError, Image.DecompressionBombError) as error:
        reason = str(error.reason if isinstance(error, DataError) else error).rstrip(".")
        raise ValueError(f"{path} cannot be read as a picture: {reason}. Give a JPEG, PNG or similar file.") from error


def _check_writable(out: Path | None, image: Path) -> None:
    """Find out before the model runs, not after it."""
    if out is None:
        return
    from PIL import Image

    try:
        Image.new("RGB", (1, 1)).save(io.BytesIO(), Image.registered_extensions()[out.suffix.lower()])
    except (KeyError, OSError) as error:
        raise ValueError(
            f"--out {out}: {out.suffix or 'no suffix'} names no format for pictures in colour. Give a name such as "
            "out.png."
        ) from error
    if out.resolve() == image.resolve():
        raise ValueError(f"--out {out} is the picture itself, which is not written over. Give another name.")
    if not out.resolve().parent.is_dir():
        raise FileNotFoundError(f"--out {out}: the folder {out.parent} does not exist. Make it first.")
