"""What the tests of annotation files share."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finecaption_hf import MaskError, as_mask
from finecaption_hf.data import DataError, RegionInputs, open_regions

HEIGHT, WIDTH = 40, 60


def photo(path: Path, height: int = HEIGHT, width: int = WIDTH) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def png(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    return file.getvalue()


def base64_png(array: NDArray[Any]) -> str:
    return base64.b64encode(png(array)).decode()


def rows_of(inputs: RegionInputs) -> list[Any]:
    """What the annotation file says, picture by picture."""
    assert inputs.annotations
    return [row for _, row in inputs.annotations.scan()]


def masks_of(inputs: RegionInputs, height: int = HEIGHT, width: int = WIDTH) -> list[NDArray[Any] | str]:
    """The pixels of all regions in their order; of those that cannot be used, the message."""
    found: list[NDArray[Any] | str] = []
    for index in range(len(inputs)):
        item = inputs[index]
        for region in item.regions:
            try:
                if region.error is not None:
                    raise region.error
                found.append(as_mask(item.reference(region), height, width))
            except (MaskError, DataError) as error:
                found.append(str(error))
    return found


def messages(path: Path, **options: Any) -> list[str]:
    """The messages of all regions of a file in which nothing can be used."""
    try:
        found = masks_of(open_regions(path, **options))
    except DataError as error:
        return [str(error)]
    assert all(isinstance(each, str) for each in found), found
    return [str(each) for each in found]


def captions_of(inputs: RegionInputs) -> list[Any]:
    return [region.get("caption") for row in rows_of(inputs) for region in row["regions"]]
