"""`finecaption serve`: regions, questions and answers over HTTP."""

import os
from importlib.util import find_spec
from typing import Annotated

import typer

from .. import install_hint
from .common import (
    ApiKeyEnv,
    AtOnce,
    BaseUrl,
    Describing,
    Device,
    DtypeOption,
    MaxBatchTokens,
    Model,
    Prompts,
    Referring,
    TrustRemoteCode,
    describer_options,
    errors_in_one_line,
    load_describer,
)

_WHO, _LIMITS = "Who may ask", "Limits on a request"


def serve(
    ctx: typer.Context,
    model: Model = None,
    adapter: Annotated[
        str | None,
        typer.Option(metavar="ID_OR_FOLDER", help="LoRA or DoRA of peft, merged into the checkpoint."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="What clients call the model.", show_default="the last part of --model, or finecaption-tiny"),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 is any free one.")] = 8000,
    segmenter: Annotated[
        str | None,
        typer.Option(
            metavar="ID_OR_FOLDER",
            help="SAM, SAM 2, SAM 3 or EdgeTAM, which makes masks of points.",
            show_default="the SAM that the checkpoint's tower comes from, else by colour, with OpenCV",
        ),
    ] = None,
    token_env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Environment variable with the token that requests have to bear.",
            show_default="none is needed",
            rich_help_panel=_WHO,
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST[:PORT]",
            help="A host from which pictures are fetched by address (repeatable).",
            show_default="none",
            rich_help_panel=_WHO,
        ),
    ] = None,
    max_bytes: Annotated[int, typer.Option(min=1, help="Of its body.", rich_help_panel=_LIMITS)] = 20_000_000,
    max_pixels: Annotated[int, typer.Option(min=1, help="Of its picture.", rich_help_panel=_LIMITS)] = 40_000_000,
    max_regions: Annotated[int, typer.Option(min=1, help="Regions.", rich_help_panel=_LIMITS)] = 256,
    max_answers: Annotated[int, typer.Option(min=1, help="Regions times questions.", rich_help_panel=_LIMITS)] = 1024,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.", rich_help_panel=_LIMITS)] = 512,
    max_requests: Annotated[
        int, typer.Option(min=1, help="Requests at the same time, those that wait included.", rich_help_panel=_LIMITS)
    ] = 128,
    max_seconds: Annotated[float, typer.Option(min=0.1, help="Until it is answered.", rich_help_panel=_LIMITS)] = 120.0,
    device: Device = None,
    dtype: DtypeOption = None,
    max_batch_tokens: MaxBatchTokens = None,
    describer: Describing = None,
    referral: Referring = None,
    prompts: Prompts = None,
    base_url: BaseUrl = None,
    api_key_env: ApiKeyEnv = None,
    trust_remote_code: TrustRemoteCode = False,
    at_once: AtOnce = False,
) -> None:
    """Serve a model over HTTP: OpenAI's chat completions, and many regions of a picture in one request.

    Needs the extra serve. docs/serving.md has the requests.
    """
    with errors_in_one_line():
        missing = [it for it in ("fastapi", "uvicorn", "prometheus_client", "pydantic") if find_spec(it) is None]
        if missing:
            raise ImportError(f"The server needs {missing[0]}. {install_hint('serve')}.")
        token = None
        if token_env is not None and not (token := os.environ.get(token_env, "").strip()):
            raise ValueError(f"--token-env {token_env}: this variable is empty. Set it to the token.")
        from ..segmentation import open_segmenter_beside
        from ..serving.app import build_server, run_server
        from ..serving.limits import Limits

        loaded = load_describer(
            model, device, dtype, adapter=adapter, max_batch_tokens=max_batch_tokens, **describer_options(ctx.params)
        )
        try:
            opened = open_segmenter_beside(loaded, segmenter, device, None if dtype is None else dtype.value)
        except ImportError as error:
            if segmenter is not None:
                raise
            typer.echo(f"Regions cannot be given by points. {error}", err=True)
            opened = None
        if token is None and host not in ("127.0.0.1", "localhost", "::1"):
            typer.echo("Whoever reaches this machine may ask. --token-env sets a token.", err=True)
        known = name or (os.path.basename((adapter or model or "finecaption-tiny").rstrip("/")))
        limits = Limits(
            body_bytes=max_bytes,
            pixels=max_pixels,
            regions=max_regions,
            answers=max_answers,
            new_tokens=max_tokens,
            requests=max_requests,
            seconds=max_seconds,
            connections=max(Limits.connections, 2 * max_requests),
        )
        app = build_server(loaded, known, token=token, limits=limits, segmenter=opened, hosts=allow_host or ())

    def tell(address: str) -> None:
        typer.echo(f"{known} is served at {address}/v1 (Ctrl+C ends it).")

    run_server(app, host, port, limits, tell)
