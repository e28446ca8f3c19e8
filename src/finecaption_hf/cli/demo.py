"""`finecaption demo`: mark regions in a browser, and ask about them."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import EMBEDDED_CHECKPOINT, install_hint
from .common import (
    ApiKeyEnv,
    BaseUrl,
    Describing,
    Device,
    DtypeOption,
    Prompts,
    Referring,
    TrustRemoteCode,
    describer_options,
    errors_in_one_line,
    load_describer,
)

if TYPE_CHECKING:
    from ..demo.models import Offered


def demo(
    ctx: typer.Context,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID_OR_FOLDER|YAML",
            help="FineCaption or any image-text model (Hub id or folder), openai:MODEL, or pixels; repeated, a menu. "
            "{model: ID, name: .., referral: ..} gives one options of its own.",
            show_default="the embedded FineCaption",
        ),
    ] = None,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "FineCaption",
    adapter: Annotated[
        str | None,
        typer.Option(metavar="ID_OR_FOLDER", help="LoRA or DoRA of peft, merged into the checkpoint."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port to listen on.", show_default="the first free one from 7860"),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    mcp: Annotated[
        bool, typer.Option("--mcp", help="Let agents ask, too: serve a tool of the Model Context Protocol at /mcp.")
    ] = False,
    segmenter: Annotated[
        str | None,
        typer.Option(
            metavar="ID_OR_FOLDER",
            help="SAM, SAM 2, SAM 3 or EdgeTAM, which makes masks of points and boxes.",
            show_default="the SAM that the checkpoint's tower comes from, else by colour, with OpenCV",
        ),
    ] = None,
    device: Device = None,
    dtype: DtypeOption = None,
    describer: Describing = None,
    referral: Referring = None,
    prompts: Prompts = None,
    base_url: BaseUrl = None,
    api_key_env: ApiKeyEnv = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Open the demo: mark regions of a picture in a browser, and ask about them.

    Needs the extra demo (pip install ".[demo]" in the project's folder). Nothing leaves this machine.
    """
    with errors_in_one_line():
        # Not imported here: `demo.app` has to say first that gradio must not call home.
        if find_spec("gradio") is None:
            raise ImportError(f"The demo needs gradio. {install_hint('demo')}.")
        if mcp and find_spec("mcp") is None:
            raise ImportError(f"--mcp needs the package mcp. {install_hint('demo,mcp')}.")
        options = {"device": device, "dtype": None if dtype is None else dtype.value, "adapter": adapter}
        offered = _read_models(model, options | describer_options(ctx.params))
        loaded = load_describer(offered[0].model, **offered[0].options)
        from ..demo.app import build_demo, launch_demo
        from ..demo.models import Models
        from ..segmentation import open_segmenter, open_segmenter_beside

        try:
            if len(offered) == 1:
                opened = open_segmenter_beside(loaded, segmenter, device, options["dtype"])
            else:  # not over the tower of a model that goes when another is chosen
                opened = open_segmenter(segmenter, device, options["dtype"])
        except ImportError as error:
            if segmenter is not None:
                raise
            typer.echo(f"There are no tools for points. {error}", err=True)
            opened = None
        models = Models(offered, loaded)
        del loaded  # or it would stay in memory when another one is chosen
        tools = None
        if mcp:
            from ..demo.tools import AgentTools

            tools = AgentTools(title, host)
        app = build_demo(models, segmenter=opened, title=title, tools=tools)

        def tell(address: str) -> None:
            typer.echo(f"The demo is at {address} (Ctrl+C ends it).")
            if mcp:
                typer.echo(f"Agents find its tool at {address}mcp.")

        launch_demo(app, host=host, port=port, on_start=tell, tools=tools)


def _read_models(given: Sequence[str] | None, options: Mapping[str, Any]) -> "list[Offered]":
    """What `--model` names: ids and folders, or YAML with options of one model's own.

    Args:
        given: as on the command line.
        options: of all of them; `None` means that one is not given.

    Raises:
        ValueError: If a model is no such YAML, or two have the same name.
    """
    from ..demo.models import Offered

    offered = []
    texts: Sequence[str | None] = given or [None]
    for text in texts:
        own: Any = {"model": text}
        if text is not None and text.startswith("{"):
            import yaml

            try:
                own = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise ValueError(f"--model {text}: this is no YAML ({error}).") from error
        own = {name: value for name, value in {**options, **own}.items() if value is not None}
        source = own.pop("model", None)
        name = own.get("name") or own.get("adapter") or source or EMBEDDED_CHECKPOINT.name
        # Of a folder, the last part of its path is what readers know it by.
        offered.append(Offered(Path(name).resolve().name if Path(name).is_dir() else name, source, own))
    names = [each.name for each in offered]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(
            f"Two models are named {twice!r}. Name one of them: --model '{{model: ID_OR_FOLDER, name: OTHER}}'."
        )
    return offered
