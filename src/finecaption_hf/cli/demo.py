"""`finecaption demo`: mark regions in a browser, and ask about them."""

from importlib.util import find_spec
from typing import Annotated

import typer

from .common import (
    ApiKeyEnv,
    BaseUrl,
    Describing,
    Device,
    DtypeOption,
    Model,
    Prompts,
    Referring,
    TrustRemoteCode,
    describer_options,
    errors_in_one_line,
    load_describer,
)


def demo(
    ctx: typer.Context,
    model: Model = None,
    adapter: Annotated[
        str | None,
        typer.Option(metavar="ID_OR_FOLDER", help="LoRA or DoRA of peft, merged into the checkpoint."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port to listen on.", show_default="the first free one from 7860"),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
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

    Needs the extra demo (pip install "finecaption-hf[demo]"). Nothing leaves this machine.
    """
    with errors_in_one_line():
        # Not imported here: `demo.app` has to say first that gradio must not call home.
        if find_spec("gradio") is None:
            raise ImportError('The demo needs gradio. Install it: pip install "finecaption-hf[demo]".')
        loaded = load_describer(model, device, dtype, adapter=adapter, **describer_options(ctx.params))
        from ..demo.app import build_demo, launch_demo
        from ..segmentation import open_segmenter_beside

        try:
            opened = open_segmenter_beside(loaded, segmenter, device, None if dtype is None else dtype.value)
        except ImportError as error:
            if segmenter is not None:
                raise
            typer.echo(f"There are no tools for points. {error}", err=True)
            opened = None
        app = build_demo(loaded, adapter or model, segmenter=opened)

        def tell(address: str) -> None:
            typer.echo(f"The demo is at {address} (Ctrl+C ends it).")

        launch_demo(app, host=host, port=port, on_start=tell)
