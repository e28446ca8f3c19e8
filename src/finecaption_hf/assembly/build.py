"""From parts to a checkpoint folder: configuration, accounting, then weights, processor and summary."""

import copy
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.dynamic_module_utils import custom_object_save

from .. import hub, register
from ..hub import HubError
from ..image_processing_finecaption import FineCaptionImageProcessor
from ..modeling_finecaption import FineCaptionForConditionalGeneration
from ..processing_finecaption import FineCaptionProcessor
from ..prompts_finecaption import no_such
from .accounting import Part, check, tied_head
from .errors import AssemblyError
from .initialise import initialised, initialised_order
from .key_maps import EMBEDDINGS, HEAD, Use
from .plan import AssemblyOptions, Plan, make_plan
from .sources import sha256
from .summary import summarise, write_summary
from .tensors import open_tensors
from .writer import DTYPES, ShardWriter, atomic_folder, parse_size

Tell = Callable[[str], None]


def assemble(
    out: str | Path,
    *,
    clip: str | None = None,
    alpha_clip: str | None = None,
    convnext: str | None = None,
    sam: str | None = None,
    llm: str | None = None,
    from_llava: str | None = None,
    from_llava_next: str | None = None,
    from_llava_onevision: str | None = None,
    tokenizer: str | None = None,
    without: tuple[str, ...] | list[str] = (),
    config: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    seed: int = 0,
    image_token: str = "<image>",
    max_shard_size: str = "5GB",
    push: str | None = None,
    private: bool = True,
    tell: Tell = lambda line: None,
) -> dict[str, Any]:
    """Build a FineCaption checkpoint from pretrained parts.

    A part is a file, a folder, or `owner/name`, `owner/name@revision`, `owner/name:file@revision` on the Hub. One that
    is left out is initialised.

    Args:
        out: the folder to make; it must not exist, or be empty.
        clip: CLIP of the Hub, whose vision tower is used.
        alpha_clip: Alpha-CLIP's visual tower (.pth); `clip` then gives its configuration alone, and may be left out
            for towers whose heads are 64 wide.
        convnext: a ConvNeXt of timm: as above, or its name in timm.
        sam: SAM of the Hub, or the .pth of its authors.
        llm: a causal language model with its tokenizer.
        from_llava: a LLaVA-1.5 of the Hub: CLIP, adapter and language model of a one-tower FineCaption.
        from_llava_next, from_llava_onevision: a LLaVA-NeXT or LLaVA-OneVision that sees with CLIP: as above, with its
            view of the whole picture and without tiles.
        tokenizer: for a language model that is left out.
        without: `"mask"`, `"convnext"`, `"sam"`: what the model is built without.
        config: fields of `FineCaptionConfig` that no part decides; configurations of parts that are left out.
        dtype: of all weights; by default the language model's, float32 without one.
        seed: of what is initialised.
        image_token: added to the tokenizer unless it knows it; a LLaVA's own is kept.
        max_shard_size: such as `"5GB"`.
        push: a Hub repository to upload the folder to, as `finecaption_hf.hub.push_folder` does.
        private: make it a private one; nothing goes to a public one then.
        tell: called with a line of progress.

    Returns:
        `dict`: the summary, which is also in the folder as assembly.json.

    Raises:
        AssemblyError: If a tensor is missing, unexpected or wrongly shaped, or a part cannot be read or used.
        HubError: If the upload fails; the folder is complete then.
    """
    register()
    shard_bytes = parse_size(max_shard_size)
    if dtype is not None and dtype not in DTYPES:
        raise AssemblyError(no_such("dtype", dtype, DTYPES))
    options = AssemblyOptions(
        clip=clip,
        alpha_clip=alpha_clip,
        convnext=convnext,
        sam=sam,
        llm=llm,
        from_llava=from_llava,
        from_llava_next=from_llava_next,
        from_llava_onevision=from_llava_onevision,
        tokenizer=tokenizer,
        without=frozenset(without),
        config=dict(config or {}),
        image_token=image_token,
    )
    out = Path(out).expanduser()
    with atomic_folder(out) as folder:
        plan = make_plan(options, tell)
        torch_dtype = DTYPES[dtype or plan.dtype]
        with torch.device("meta"):
            model = FineCaptionForConditionalGeneration(plan.config)
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        if plan.config.tie_word_embeddings:
            del shapes[HEAD]
        grown = {name: plan.vocabulary.rows for name in (EMBEDDINGS, HEAD) if plan.language_is_given}
        check(plan.parts, shapes, grown)
        for part in plan.parts:
            _check_tied(part)
        given = set().union(*(part.owed(shapes) for part in plan.parts))
        fresh = set(shapes) - given
        order = [
            use.target for part in plan.parts for uses in part.by_file().values() for u in uses.values() for use in u
        ]
        order += initialised_order(model, fresh)
        writer = ShardWriter(folder, {name: shapes[name] for name in order}, torch_dtype, shard_bytes)

        def tensors() -> Iterator[tuple[str, torch.Tensor]]:
            for part in plan.parts:
                yield from _tensors_of(part, shapes, grown, plan.vocabulary.tokens, torch_dtype, tell)
            if fresh:
                tell(f"initialising {len(fresh)} tensors")
            yield from initialised(model, fresh, seed)

        writer.write(tensors())
        _write_processor(folder, plan)
        tell("hashing the files of the parts")
        hashes = {path: sha256(path) for part in plan.all_parts for path in part.source.weights}
        dtype_name = next(name for name, value in DTYPES.items() if value == torch_dtype)
        summary = summarise(plan, shapes, fresh, hashes, dtype_name, seed)
        write_summary(folder, summary)
        _write_config(folder, plan, model, dtype_name)  # last: without it, nothing takes the folder for a checkpoint
    if push is not None:
        try:
            hub.push_folder(out, push, private=private, message="Assemble from pretrained parts", tell=tell)
        except HubError as error:
            hint = f"finecaption push {shlex.quote(str(out))} {push}{' --private' if private else ''}"
            raise HubError(f"{error} {out} itself is complete; `{hint}` uploads it.") from None
    return summary


def _tensors_of(
    part: Part, shapes: dict[str, tuple[int, ...]], grown: dict[str, int], tokens: int, dtype: torch.dtype, tell: Tell
) -> Iterator[tuple[str, torch.Tensor]]:
    """The model's tensors that a part gives, with one of its files open at a time."""
    rows = list(_rows_of(part))
    for path, keys in part.by_file().items():
        tell(f"reading {len(keys)} tensors of {path.name}")
        with open_tensors(path) as file:
            for key, uses in keys.items():
                tensor = file.read(key)
                for use in uses:
                    piece = tensor.chunk(use.pieces)[use.piece] if use.pieces > 1 else tensor
                    if grown.get(use.target, 0) and piece.shape[0] < shapes[use.target][0]:
                        piece = grow(piece, shapes[use.target][0], tokens, dtype)
                    for place, values in rows:
                        if place.target == use.target:
                            piece = piece.clone()
                            piece[place.row] = values
                    yield use.target, piece
                    del piece
                del tensor  # or its file stayed mapped while the next is read


def _rows_of(part: Part) -> Iterator[tuple[Use, torch.Tensor]]:
    """Rows of the model's tensors that a part keeps as tensors of their own."""
    for key, place in part.rows.items():
        with open_tensors(part.tensors[key].file) as file:
            yield place, file.read(key).clone()


def grow(rows: torch.Tensor, needed: int, tokens: int, dtype: torch.dtype) -> torch.Tensor:
    """Embeddings `(V, D)` with new rows, each the mean of those that stand for a token, `(needed, D)`."""
    total = torch.zeros(rows.shape[1], dtype=torch.float64)
    known = rows[:tokens]
    for chunk in known.split(4096):
        total += chunk.to(torch.float64).sum(0)
    result = torch.empty(needed, rows.shape[1], dtype=dtype)
    result[: len(rows)] = rows
    result[len(rows) :] = (total / len(known)).to(dtype)
    return result


def _check_tied(part: Part) -> None:
    """An output layer that a file holds beside the embeddings that it is tied to must repeat them."""
    head = tied_head(part)
    if head is None:
        return
    embeddings = next(key for key, uses in part.uses.items() if uses[0].target == EMBEDDINGS)
    with open_tensors(part.tensors[head].file) as first, open_tensors(part.tensors[embeddings].file) as second:
        a, b = first.read(head), second.read(embeddings)
        equal = a.shape == b.shape and all(torch.equal(x, y) for x, y in zip(a.split(4096), b.split(4096)))
    if not equal:
        raise AssemblyError(
            f"{part.source.name}: its configuration ties the output layer to the embeddings, but {head} "
            f"{list(a.shape)} is not {embeddings} {list(b.shape)}. Set tie_word_embeddings in its config.json to false."
        )


def _write_processor(folder: Path, plan: Plan) -> None:
    tokenizer = plan.tokenizer
    for transient in ("chat_template", "local_files_only", "name_or_path"):
        tokenizer.init_kwargs.pop(transient, None)
    tokenizer.chat_template = None  # kept by the processor, in a file of its own
    tokenizer.name_or_path = ""
    FineCaptionProcessor(
        FineCaptionImageProcessor(**plan.config.image_processor_kwargs(), **plan.image_processor),
        tokenizer,
        chat_template=plan.chat_template,
        image_seq_length=plan.config.image_seq_length,
        image_token=plan.vocabulary.image_token,
    ).save_pretrained(folder)


def _write_config(folder: Path, plan: Plan, model: FineCaptionForConditionalGeneration, dtype: str) -> None:
    config = copy.deepcopy(plan.config)
    config.architectures = [type(model).__name__]
    for each in (config, config.vision_config, config.convnext_config, config.sam_config, config.text_config):
        each.dtype = dtype
    text = config.text_config
    # Sampling settings of the language model are not taken over: a caption is the most probable one.
    GenerationConfig(
        bos_token_id=plan.generation.get("bos_token_id", text.bos_token_id),
        eos_token_id=plan.generation.get("eos_token_id", text.eos_token_id),
        pad_token_id=plan.tokenizer.pad_token_id,
    ).save_pretrained(folder)
    custom_object_save(model, folder, config=config)
    config.save_pretrained(folder)
