"""`finecaption assemble`: a checkpoint from pretrained parts."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .common import Dtype, Json, errors_in_one_line, parse_json


def assemble(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make.", show_default=False)],
    clip: Annotated[str | None, typer.Option(metavar="PART", help="CLIP, in the Hub's format.")] = None,
    alpha_clip: Annotated[
        str | None,
        typer.Option(metavar="PART", help="Alpha-CLIP's visual tower (.pth); it replaces CLIP's own weights."),
    ] = None,
    convnext: Annotated[str | None, typer.Option(metavar="PART", help="A ConvNeXt of timm, or its name there.")] = None,
    sam: Annotated[
        str | None, typer.Option(metavar="PART", help="SAM, in the Hub's format or its authors' .pth.")
    ] = None,
    llm: Annotated[str | None, typer.Option(metavar="PART", help="A causal language model with its tokenizer.")] = None,
    from_llava: Annotated[
        str | None,
        typer.Option(metavar="PART", help="LLaVA-1.5: CLIP, adapter and language model of a one-tower model."),
    ] = None,
    from_llava_next: Annotated[
        str | None, typer.Option(metavar="PART", help="LLaVA-NeXT, without its tiles: as --from-llava.")
    ] = None,
    from_llava_onevision: Annotated[
        str | None, typer.Option(metavar="PART", help="LLaVA-OneVision with a CLIP: as --from-llava-next.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(metavar="PART", help="Tokenizer, where --llm is left out.")] = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="mask|convnext|sam", help="What to build without (repeatable).")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", exists=True, help="JSON with fields of FineCaptionConfig that no part decides."),
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Precision of all weights.", show_default="the language model's")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed for what no part gives.")] = 0,
    max_shard_size: Annotated[str, typer.Option(help="Largest file of weights.")] = "5GB",
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload the folder to this Hub repository.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Upload to a public repository; without it, only a private one is taken.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Build a checkpoint from pretrained parts, key by key.

    A PART is a file, a folder, or a Hub repository: owner/name, owner/name@revision, owner/name:file@revision. One that
    is left out starts from random weights.
    """
    with errors_in_one_line():
        from ..assembly import assemble as build
        from ..assembly.summary import print_lines

        fields = {} if config is None else parse_json(config.read_text(encoding="utf-8"), str(config))
        if not isinstance(fields, dict):
            raise ValueError(f"{config} holds no JSON object. Give fields of FineCaptionConfig with their values.")
        summary = build(
            out,
            clip=clip,
            alpha_clip=alpha_clip,
            convnext=convnext,
            sam=sam,
            llm=llm,
            from_llava=from_llava,
            from_llava_next=from_llava_next,
            from_llava_onevision=from_llava_onevision,
            tokenizer=tokenizer,
            without=without or (),
            config=fields,
            dtype=None if dtype is None else dtype.value,
            seed=seed,
            max_shard_size=max_shard_size,
            push=push,
            private=not public,
            tell=lambda line: typer.echo(line, err=True),
        )
    if as_json:
        typer.echo(json.dumps(summary, ensure_ascii=False, indent=2))
        return
    for line in print_lines(summary):
        typer.echo(line)
    typer.echo(f"Wrote {out}", err=True)
