"""What the endpoint for scripts takes and gives, for its documentation and for clients."""

from typing import Literal, TypedDict


class FileMeta(TypedDict):
    """Marks a file for gradio's clients."""

    _type: Literal["gradio.FileData"]


class UploadedFile(TypedDict):
    """A file in the app's store, as `gradio_client.handle_file` sends it."""

    path: str
    meta: FileMeta


class RleMask(TypedDict):
    """COCO RLE: `size` is [H, W], `counts` are runs down the columns, or their compressed text."""

    size: list[int]
    counts: list[int] | str


class BoxMask(TypedDict):
    """A box in pixels, ends exclusive."""

    box_xyxy: list[float]


class PolygonMask(TypedDict):
    """Polygons of x, y, x, y, .. in pixels."""

    polygon: list[list[float]]


class AnsweredRegion(TypedDict):
    """A region with its answers, by question."""

    region_index: int
    box_xyxy: list[int]
    area: int
    answers: dict[str, str]


class RegionRecord(AnsweredRegion, total=False):
    """With what the model's card says of its limits, if it does."""

    model_note: str
