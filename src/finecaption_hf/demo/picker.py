"""The region picker: a component with one canvas, whose code is in picker.html, picker.css and picker.js."""

from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import gradio as gr
from gradio import FileData
from gradio.data_classes import GradioModel

from ..drawing import COLORS, ink
from .segmenting import PointMasks
from .uploads import MAX_FILE_BYTES, MAX_PICTURE_PIXELS, MAX_REGIONS


class Rle(GradioModel):
    """A mask as COCO RLE: `size` is [H, W], `counts` are runs down the columns, or their compressed text."""

    size: list[int]
    counts: list[int] | str


class PickedRegions(GradioModel):
    """A picture in the app's store and the regions marked on it; `versions` tell the browser which masks they were."""

    image: FileData
    regions: list[Rle]
    versions: list[int] = []


class RegionPicker(gr.HTML):
    """A picture and several regions of it. Without `data_model` a client could make the server open any file.

    Args:
        value: a `PickedRegions`, or none.
        point_masks: makes masks of points; without it the picker shows no tools for points.
    """

    data_model = PickedRegions

    def __init__(self, value: Any = None, point_masks: PointMasks | None = None, **kwargs: Any) -> None:
        folder = resources.files(__package__)
        limits = {"bytes": MAX_FILE_BYTES, "pixels": MAX_PICTURE_PIXELS, "regions": MAX_REGIONS}
        super().__init__(
            value=value,
            html_template=(folder / "picker.html").read_text(encoding="utf-8"),
            css_template=(folder / "picker.css").read_text(encoding="utf-8"),
            js_on_load=(folder / "picker.js").read_text(encoding="utf-8"),
            apply_default_css=False,
            limits=limits,
            colors=[list(color) for color in COLORS],
            inks=[ink(color) for color in COLORS],
            segmenter=None if point_masks is None else point_masks.name,
            server_functions=None if point_masks is None else [_server_function(point_masks)],
            **kwargs,
        )

    def preprocess(self, payload: PickedRegions | None) -> PickedRegions | None:
        return payload

    def postprocess(self, value: PickedRegions | None) -> PickedRegions | None:
        return value

    def api_info(self) -> dict[str, Any]:
        return PickedRegions.model_json_schema()

    def example_payload(self) -> Any:
        return None

    def example_value(self) -> Any:
        return None


def _server_function(point_masks: PointMasks) -> Callable[[Any], dict[str, Any]]:
    """As the browser calls it; gradio sets an attribute, which methods do not take."""

    def segment(request: Any) -> dict[str, Any]:
        return point_masks.segment(request)

    return segment


def picked(path: str, name: str, regions: Sequence[dict[str, Any]]) -> PickedRegions:
    """A value for the picker: a file that the app made, and COCO RLE of regions."""
    return PickedRegions(
        image=FileData(path=path, orig_name=name),
        regions=[Rle(size=rle["size"], counts=rle["counts"]) for rle in regions],
    )
