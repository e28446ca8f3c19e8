"""What agents can call: the demo's MCP tool, over the protocol's own SDK. It needs the extra `mcp`.

Gradio can make tools of its endpoints by itself, but their types would be those of its uploads, the answers Python's
notation; and it opens every file of this machine that a call names in the form of an upload.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any

from mcp.server.fastmcp import FastMCP
from mcp.types import ToolAnnotations
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from starlette.routing import BaseRoute

from ..data.images import read_data_url
from ..masks_finecaption import MaskError
from .guard import MAX_BODY_BYTES
from .uploads import MAX_QUESTIONS, MAX_REGIONS, decode_mask_file, decode_picture


class _Region(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Box(_Region):
    """A box, in pixels of the upright picture from its top left corner."""

    box_xyxy: Annotated[list[float], Field(min_length=4, max_length=4, description="left, top, right, bottom")]


class Polygon(_Region):
    """Polygons, in pixels of the upright picture from its top left corner."""

    polygon: Annotated[list[list[float]], Field(min_length=1, description="each of them x, y, x, y, ..")]


class Rle(_Region):
    """COCO's run-length encoding of a mask of the picture's size."""

    size: Annotated[list[int], Field(min_length=2, max_length=2, description="height, width")]
    counts: Annotated[list[int] | str, Field(description="runs down the columns, first of 0, or their compressed text")]


MaskUrl = Annotated[
    str,
    Field(description="a black and white picture of the same size, white inside, as data:image/png;base64,.."),
]


class Record(BaseModel):
    """A region with its answers."""

    region_index: Annotated[int, Field(description="its place among the regions")]
    box_xyxy: Annotated[list[int], Field(description="its box in pixels: left, top, right, bottom, ends exclusive")]
    area: Annotated[int, Field(description="its pixels")]
    answers: Annotated[dict[str, str], Field(description="by question")]


class Described(BaseModel):
    """What came out."""

    model: Annotated[str, Field(description="that answered")]
    model_note: Annotated[str | None, Field(description="what the model does not know; pass it on with the answers")]
    records: list[Record]


class AgentTools:
    """The MCP server at `/mcp` of the app; `build_demo` gives it its tool, `launch_demo` serves it.

    Args:
        title: of the page.
        host: where the app listens. Where that is this machine alone, pages of other sites are kept out.
    """

    def __init__(self, title: str, host: str) -> None:
        self._server = FastMCP(
            title,
            host=host,
            stateless_http=True,
            json_response=True,
            max_request_body_size=MAX_BODY_BYTES,
            log_level="WARNING",
        )

    @property
    def routes(self) -> list[BaseRoute]:
        return self._server.streamable_http_app().routes

    def life(self, _: Any) -> AbstractAsyncContextManager[None]:
        """The server's, as long as the app's."""
        return self._server.session_manager.run()

    def add(
        self,
        describe: Callable[[Image.Image, Sequence[Any], Sequence[str]], list[dict[str, Any]]],
        questions: Sequence[str],
        model: str,
        note: str | None,
        at_once: int,
    ) -> None:
        """Offer the tool.

        Args:
            describe: a picture in RGB, regions as `as_mask` takes them, and questions -> a record for each region.
            questions: that the model knows by name.
            model: its name.
            note: what its card says of its limits.
            at_once: calls that are answered at the same time.
        """
        turns = asyncio.Semaphore(at_once)
        named = ", ".join(questions)

        async def describe_regions(
            image: Annotated[str, Field(description="the picture as a data URL: data:image/png;base64,.. or jpeg")],
            regions: Annotated[
                list[Box | Polygon | Rle | MaskUrl] | None,
                Field(max_length=MAX_REGIONS, description="parts of the picture; none means the whole picture"),
            ] = None,
            questions: Annotated[
                list[str] | None,
                Field(
                    max_length=MAX_QUESTIONS,
                    description=f"about each region: names ({named}), or own words. None means one sentence (region).",
                ),
            ] = None,
        ) -> Described:
            def answered() -> list[dict[str, Any]]:
                picture = decode_picture(read_data_url(image, "picture"))
                references = [_reference(number, region) for number, region in enumerate(regions or ())]
                return describe(picture, references, questions or ["region"])

            async with turns:
                records = await asyncio.to_thread(answered)
            return Described(model=model, model_note=note, records=[Record(**record) for record in records])

        self._server.add_tool(
            describe_regions,
            title="Describe regions of a picture",
            description=(
                "Say what parts of a picture are: a caption of each region, or answers to questions about it. "
                f"{model} answers, which sees the whole picture and is told which pixels are meant."
                + ("" if note is None else f" {note}")
            ),
            annotations=ToolAnnotations(readOnlyHint=True, idempotentHint=True, openWorldHint=False),
        )


def _reference(number: int, region: "Box | Polygon | Rle | str") -> Any:
    """What `as_mask` takes.

    Raises:
        MaskError: If a picture of a mask cannot be read.
    """
    if not isinstance(region, str):
        return region.model_dump()
    try:
        return decode_mask_file(read_data_url(region, "mask"))
    except ValueError as error:
        raise MaskError(f"regions[{number}]: {error}") from error
