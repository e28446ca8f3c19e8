"""Stages one after the other, each continued where it was interrupted."""

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, enable_fsdp_ram_efficient_loading
from huggingface_hub import try_to_load_from_cache
from torch import nn
from torch.utils.data import Dataset, Subset
from transformers import TrainingArguments

from ..asking import load
from ..asking.kinds import loading_told
from ..data import Example, MixedDataset, open_dataset
from ..data.collator import RegionCollator
from ..hub.errors import HubError
from ..hub.provenance import ORIGIN, keep_origin
from ..resuming import ResumeError, check_same, read_manifest, read_seal, write_json
from .arguments import build_arguments
from .callback import StageCallback
from .checkpoints import last_checkpoint, seal_checkpoint
from .dataset import WholeImageDataset
from .recipes import Recipe
from .samples import SampleCallback
from .stages import Stage, StageError, with_given_data
from .streaming import ExampleStream
from .trainer import StageTrainer

logger = logging.getLogger(__name__)

FINAL = "final"
"""Folder of a finished stage's checkpoint, inside the stage's."""

_RUN = "run.json"


def train(
    recipe: Recipe,
    output: str | os.PathLike[str],
    *,
    options: Mapping[str, Any] | None = None,
    resume: bool = True,
    tell: Callable[[str], None] = logger.info,
) -> Path:
    """Train the stages of a recipe in a row; run again after an interruption, it continues to the same weights.

    Args:
        recipe: model, data and stages.
        output: folder for all of it. A single stage has its `checkpoint-N` and `final` there, several have a folder
            each, `1-adapter` and so on.
        options: arguments of `transformers.TrainingArguments`, over those of recipe and stages.
        resume: continue what the folder holds; `False` refuses a folder that holds something.
        tell: gets a line about every stage and every checkpoint that is skipped.

    Returns:
        `Path`: the checkpoint of the last stage.

    Raises:
        StageError: If a stage does not fit the model.
        ResumeError: If the folder holds another run.
        DataError: If an example cannot be used.
    """
    output = Path(output)
    if recipe.model is None:
        raise StageError("There is no model to start from. Give --model, or model in the recipe.")
    if not recipe.data:
        raise StageError("There is no data to train on. Give --data, or data in the recipe.")
    if not resume and output.is_dir() and any(output.iterdir()):
        raise ResumeError(f"{output} is not empty. Leave --no-resume out to continue it, or give another folder.")
    model = os.path.abspath(recipe.model) if os.path.isdir(recipe.model) else recipe.model
    several = len(recipe.stages) > 1
    origin = model
    for number, stage in enumerate(recipe.stages, start=1):
        stage = with_given_data(stage, recipe.data)
        folder = output / f"{number}-{stage.name}" if several else output
        title = f"Stage {number} of {len(recipe.stages)}, {stage.name}"
        if (folder / FINAL).is_dir():
            _check_run(folder, _description(recipe, stage, origin))
            read_seal(folder / FINAL)
            tell(f"{title}: finished before, see {folder / FINAL}")
        else:
            tell(f"{title}: starts from {model}")
            _train_stage(recipe, stage, model, origin, folder, options or {}, tell)
            tell(f"{title}: wrote {folder / FINAL}")
        model = str((folder / FINAL).resolve())
        origin = f"../{folder.name}/{FINAL}"  # relative, so that the whole of it can be moved
    return Path(model)


def _train_stage(
    recipe: Recipe,
    stage: Stage,
    model_source: str,
    origin: str,
    folder: Path,
    options: Mapping[str, Any],
    tell: Callable[[str], None],
) -> None:
    args = build_arguments(stage, str(folder), recipe.training, options, bool(recipe.eval_data or recipe.eval_share))
    if args.n_gpu > 1:
        raise StageError(
            f"{args.n_gpu} GPUs but one process: a batch cannot be cut by its first dimension. Start one process for "
            "each with accelerate launch, or show one with CUDA_VISIBLE_DEVICES=0."
        )
    _check_sharding(stage, args)
    if args.deepspeed:
        import deepspeed

        # accelerate does it for GPUs only, and without it ZeRO-3 counts one process while the model is made.
        deepspeed.init_distributed()
    streams = any(_is_stream(recipe.data[name]) for name in stage.data or recipe.data if name in recipe.data)
    if streams:
        _prepare_for_stream(stage, recipe, args)
    description = _description(recipe, stage, origin)
    if args.should_save:
        folder.mkdir(parents=True, exist_ok=True)
        _check_run(folder, description)
        write_json(folder / _RUN, description)
        last_checkpoint(folder, stage, tell, discard=True)
    _wait(args)
    checkpoint = last_checkpoint(folder, stage, logger.debug, discard=False)
    if checkpoint is not None:
        tell(f"Continuing from {checkpoint}")
        before = read_seal(checkpoint)["num_processes"]
        if before != args.world_size:
            tell(f"It was written by {before} processes, now there are {args.world_size}: random numbers will differ.")

    batch_size = args.train_batch_size * args.world_size
    train_data, eval_data = open_data(recipe, stage, args.seed, tell, batch_size)
    if isinstance(train_data, ExampleStream) and checkpoint is not None:
        # Read past without opening pictures; the trainer would make all those batches again.
        train_data.num_skipped = read_seal(checkpoint)["global_step"] * args.gradient_accumulation_steps * batch_size
        args.ignore_data_skip = True
    model, processor = _load_model(recipe, model_source, args)
    if args.should_save and checkpoint is None:
        _keep_origin(model_source, folder)
    callback = StageCallback(stage)
    callbacks: list[Any] = [callback]
    if eval_data is not None and recipe.num_samples:
        callbacks.append(SampleCallback(processor, eval_data, recipe.num_samples))
    trainer = StageTrainer(
        model=model,
        args=args,
        data_collator=RegionCollator(processor, load_image=Example.load, max_tokens=recipe.max_tokens),
        train_dataset=train_data,
        eval_dataset=eval_data,
        processing_class=processor,
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    _write_final(trainer, callback, stage, folder)


def _is_stream(entry: Any) -> bool:
    return isinstance(entry, Mapping) and bool(entry.get("stream"))


def _prepare_for_stream(stage: Stage, recipe: Recipe, args: TrainingArguments) -> None:
    """Refuse what needs a length, and have each process take its batches itself: they cannot be cut for sending."""
    names = list(stage.data or recipe.data)
    if len(names) > 1:
        raise StageError(
            f"A stream is not mixed with others, but there are {', '.join(names)}. Write their shards mixed."
        )
    if recipe.eval_share and not recipe.eval_data:
        raise StageError("Of a stream no share can be held out. Give --eval-data instead of --eval-share.")
    if args.max_steps <= 0:
        raise StageError("A stream has no length, so the trainer cannot know when to end. Give --max-steps.")
    args.accelerator_config.dispatch_batches = False


def _check_sharding(stage: Stage, args: TrainingArguments) -> None:
    """Refuse at once what would shard nothing, or end at the first checkpoint: each process holds parts of tensors."""
    zero3 = args.deepspeed and args.hf_deepspeed_config.is_zero3()
    if (zero3 or args.fsdp) and stage.peft is not None:
        raise StageError(
            f"Stage {stage.name!r}: adapters are not merged under ZeRO-3 and FSDP. Use DeepSpeed with "
            "zero_optimization stage 2, without options that begin with stage3_."
        )
    option = "stage3_gather_16bit_weights_on_model_save"
    if zero3 and not args.hf_deepspeed_config.get_value(f"zero_optimization.{option}", False):
        raise StageError(f"ZeRO-3 would write checkpoints without weights. Set {option}: true under zero_optimization.")
    if args.fsdp and args.fsdp_config.get("state_dict_type", "FULL_STATE_DICT") != "FULL_STATE_DICT":
        raise StageError("FSDP would write checkpoints without weights. Set state_dict_type: FULL_STATE_DICT.")
    if args.fsdp and args.distributed_state.distributed_type in (DistributedType.NO, DistributedType.MULTI_CPU):
        # accelerate would leave the model whole in each process (DDP) and say nothing.
        raise StageError("FSDP needs several processes on GPUs: accelerate does not shard elsewhere. Leave fsdp out.")


def _write_final(trainer: StageTrainer, callback: StageCallback, stage: Stage, folder: Path) -> None:
    """The folder appears when all of it is written, so that there is no half-finished stage."""
    args, partial = trainer.args, folder / f"{FINAL}.partial"
    if args.should_save and partial.exists():
        shutil.rmtree(partial)
    _wait(args)
    trainer.save_model(str(partial))
    _wait(args)
    if args.should_save:
        # It names folders of this machine and is not needed to use the model.
        (partial / "training_args.bin").unlink(missing_ok=True)
        callback.complete(trainer.model, partial)
        seal_checkpoint(partial, stage, args.learning_rate, trainer.state.global_step, args.world_size)
        os.replace(partial, folder / FINAL)
    _wait(args)


def _wait(args: TrainingArguments) -> None:
    """All processes get here before one goes on."""
    if args.world_size > 1:
        torch.distributed.barrier()


# --- model and data --------------------------------------------------------------------------------------------------


def _load_model(recipe: Recipe, source: str, args: TrainingArguments) -> tuple[Any, Any]:
    options = {"dtype": "float32", **recipe.model_options}
    quantization = options.pop("quantization_config", None)
    if quantization is not None:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(**quantization)
    # Where the model is whole on each GPU, it goes there at once, not through the main memory.
    device = "cpu" if args.fsdp else str(args.device)
    if args.fsdp and args.fsdp_config.get("cpu_ram_efficient_loading"):
        enable_fsdp_ram_efficient_loading()
        device = "cpu" if args.local_process_index == 0 else "meta"
    name, revision = split_revision(source)
    with loading_told(name):
        model, processor = load(name, device=device, revision=revision, **options)
    if device == "meta":
        # accelerate deals out the weights of the first process. It knows parameters by their addresses, which those on
        # the meta device lack; memory that nothing is written to takes no room.
        for module in model.modules():
            for key, value in module.named_parameters(recurse=False):
                setattr(module, key, nn.Parameter(torch.empty_like(value, device="cpu"), value.requires_grad))
        model.tie_weights()
    return model, processor


def _keep_origin(source: str, folder: Path) -> None:
    """What a base on the Hub says of its parts and licence now: it may be another one when the run is pushed."""
    name, revision = split_revision(source)
    if os.path.isdir(name):
        return
    loaded = try_to_load_from_cache(name, "config.json", revision=revision)
    if not isinstance(loaded, str):
        return
    try:
        keep_origin(f"{name}@{Path(loaded).parent.name}", folder / ORIGIN)
    except HubError as error:  # without network the push asks for it
        logger.info("Not kept: %s", error)


def split_revision(source: str) -> tuple[str, str | None]:
    """`owner/name@revision` -> name and revision; folders have none."""
    if os.path.isdir(source):
        return source, None
    name, _, revision = source.partition("@")
    return name, revision or None


def open_data(
    recipe: Recipe,
    stage: Stage,
    seed: int,
    tell: Callable[[str], None] = lambda line: None,
    batch_size: int = 1,
) -> tuple[Dataset, Dataset | None]:
    """Data of a stage: the mix with its whole-image samples, and what is held out.

    Args:
        recipe, stage: what says which data.
        seed: of mix and samples.
        tell: gets a line about each data set.
        batch_size: see `ExampleStream`.

    Raises:
        StageError: If the stage names data that is not given.
    """
    missing = sorted(stage.data.keys() - recipe.data.keys())
    if missing:
        raise StageError(
            f"Stage {stage.name!r} trains on {', '.join(missing)}, but data is given for {', '.join(recipe.data)}. "
            f"Give --data {missing[0]}=PATH."
        )
    names = list(stage.data) or list(recipe.data)

    def opened(entry: Any) -> Any:
        fields = dict(entry) if isinstance(entry, Mapping) else {"path": entry}
        path = fields.pop("path")
        data = open_dataset(path, max_regions=recipe.max_regions, **fields)
        tell(f"{path}: {data.num_whole_images:,} of {data.num_regions:,} regions are whole pictures.")
        return data

    held_out: list[Any] = [opened(entry) for entry in recipe.eval_data.values()]
    if _is_stream(entry := recipe.data[names[0]]):
        fields = {name: value for name, value in entry.items() if name not in ("path", "stream")}
        share, most = stage.whole_image_share, recipe.max_regions
        stream = ExampleStream(
            entry["path"], seed=seed, whole_image_share=share, max_regions=most, batch_size=batch_size, **fields
        )
        tell(f"{entry['path']}: read as a stream, of {len(stream.shards)} shards.")
        return stream, _joined(held_out)
    parts: dict[str, Any] = {}
    for name in names:
        whole = opened(recipe.data[name])
        if recipe.eval_share and not recipe.eval_data:
            kept, out = _split(len(whole), recipe.eval_share, seed)
            parts[name] = Subset(whole, kept)
            held_out.append(Subset(whole, out))
        else:
            parts[name] = whole
    mix = next(iter(parts.values()))
    if len(parts) > 1:
        mix = MixedDataset(parts, dict(stage.data) or None, seed=seed)
    return WholeImageDataset(mix, stage.whole_image_share, seed), _joined(held_out)


def _joined(datasets: list[Any]) -> Any:
    return datasets[0] if len(datasets) == 1 else torch.utils.data.ConcatDataset(datasets) if datasets else None


def _split(length: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold out, the same in every stage and run."""
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed)).tolist()
    number = round(length * share)
    if not 0 < number < length:
        raise StageError(f"eval_share {share} of {length} examples holds out {number}. Give eval_data instead.")
    return sorted(order[number:]), sorted(order[:number])


# --- what a folder was made with -------------------------------------------------------------------------------------


def _description(recipe: Recipe, stage: Stage, model: str) -> dict[str, Any]:
    return {
        "stage": stage.to_dict(),
        "model": model,
        "data": {name: absolute(entry) for name, entry in recipe.data.items()},
    }


def absolute(entry: Any) -> Any:
    """An entry of a recipe's data with its path from the root, so that the same data is known from any folder."""
    if isinstance(entry, Mapping):
        return {**entry, "path": absolute(entry["path"])}
    return os.path.abspath(entry) if isinstance(entry, str | os.PathLike) else type(entry).__name__


def _check_run(folder: Path, description: Mapping[str, Any]) -> None:
    """Refuse to continue another run.

    Raises:
        ResumeError: If model, stage or data differ, or the folder holds checkpoints of which nothing is known.
    """
    if (folder / _RUN).is_file():
        check_same(read_manifest(folder / _RUN), description, folder)
    elif folder.is_dir() and any(folder.glob("checkpoint-*")):
        raise ResumeError(f"{folder} holds checkpoints that this command did not write. Give another --output.")


__all__: Sequence[str] = ["train"]
