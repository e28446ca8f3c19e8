"""What it costs to answer every question about every region of a picture, against the stock API and a lower bound.

    python benchmarks/regions.py [--json FILE] [--plot FILE] [--threads N] [--device cpu|cuda] [--compile] [--static]
    python benchmarks/regions.py --show FILE [--plot FILE]        # table and plot of an earlier run

One picture, 4 regions, 18 questions (the 16 attributes, a sentence, a dense caption), 24 new tokens each, greedy. All
contestants start from the picture and the masks and end with text:

- `naive_s`: one `generate` per question, each with inputs of its own, as all peers do.
- `batched_s`: one `generate` per region, on its 18 questions with left padding, what a careful user does with the stock
  API; the processor prepares the picture once, so the high-resolution towers run once per batch.
- `engine_s`: `BranchEngine`, which encodes a picture once, a region once, and keeps the cache of a region once.
- `bound_s`: the operations and bytes that no exact program avoids, at the machine's own speed, measured in this run:
  see bound.py.

Answers are compared token by token before anything is reported. Where they differ, both tokens' logits must lie within
1e-4 of each other at the first difference (float32; in half precision, differences are counted and shown).

The model is random and small, with the geometry of the paper (336 and 1,024 px, 1,024 image tokens); on CUDA it is the
full-size one in bfloat16 (`--size` chooses). It never ends an answer early: there is no end of sequence. Contestants
take turns, medians count. The phases of the two that use `generate` are measured by hooks in a turn of their own, and
given as shares of the median; memory is measured in a process of its own (on the CPU `VmHWM` beyond what is held
before, on a GPU what torch has allocated), for those two on one question and on one region.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from bisect import bisect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import transformers
from bound import Bound, Machine
from PIL import Image
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from training import make_config, make_processor, status
from transformers import AutoModelForCausalLM, CLIPVisionModel, SamVisionModel

from finecaption_hf import FineCaptionConfig, FineCaptionForConditionalGeneration, FineCaptionProcessor
from finecaption_hf.engine_finecaption import BranchEngine
from finecaption_hf.prompts_finecaption import ATTRIBUTES, BranchRequest

NAMES = (*ATTRIBUTES, "region", "dense")
CONTESTANTS = ("naive", "batched", "engine")
NEAR_TIE = 1e-4
# The engine's names of its phases, and those of the table.
PHASES = {
    "preprocessing": "preprocessing",
    "images": "high-resolution towers",
    "regions": "mask-aware tower, adapter",
    "prefixes": "prefixes (stock: with question)",
    "questions": "questions",
    "tokens": "decoding",
    "rest": "tokenizing, text, rest",
}
# Where operators belong in the profile, by the first pattern that their names hold.
OPERATORS = {
    "attention": ("attention", "softmax", "bmm", "baddbmm"),
    "matrix products, convolutions": ("mm", "conv", "linear", "gemm", "cutlass", "nvjet"),
    "copies": ("copy", "cat", "index", "gather", "clone", "fill", "zero", "slice", "select", "Memcpy", "Memset"),
}

ELEMENTWISE = "elementwise, norms, views"
IDLE = "outside of operators"
PHASE_MARK = "phase: "

Answers = list[list[tuple[int, ...]]]
"""Tokens of each question of each region."""


class Setting:
    """The model, picture, masks and questions that all contestants get."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device = torch.device(arguments.device)
        self.dtype = getattr(torch, arguments.dtype)
        self.new_tokens = arguments.new_tokens
        self.static, self.compiled = arguments.static, arguments.compile
        self.now = time.process_time if arguments.processor_time else time.perf_counter
        self.processor: FineCaptionProcessor = make_processor(arguments.tiny)
        self.model = make_model(self.processor, arguments)
        self.engine = MarkedEngine(self.model, self.processor)
        rng = np.random.default_rng(0)
        self.picture = Image.fromarray(rng.integers(0, 256, (600, 800, 3), dtype=np.uint8))
        self.masks = make_masks(max(arguments.regions, arguments.most_regions), 600, 800, rng)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    # --- contestants: answers to some questions about the first regions; a clock measures their phases ---

    def naive(self, num_regions: int, names: Sequence[str], clock: "Clock | None" = None) -> Answers:
        """One `generate` per question."""
        return [[self._generate([mask], [name], clock)[0] for name in names] for mask in self.masks[:num_regions]]

    def batched(self, num_regions: int, names: Sequence[str], clock: "Clock | None" = None) -> Answers:
        """One `generate` per region."""
        return [self._generate([mask] * len(names), names, clock) for mask in self.masks[:num_regions]]

    def _generate(
        self, masks: list[np.ndarray], names: Sequence[str], clock: "Clock | None" = None
    ) -> list[tuple[int, ...]]:
        with measured(clock, "preprocessing"):
            chats = [self.processor.conversation(self.picture, name, mask=mask) for mask, name in zip(masks, names)]
            inputs = self.processor.apply_chat_template(
                chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            ).to(self.device, dtype=self.dtype)
        # Hooks inside of a compiled decoding step would break it up.
        options = {"cache_implementation": "static"} if self.static and clock is None else {}
        with torch.inference_mode(), clock.hooks() if clock else nullcontext():
            output = self.model.generate(**inputs, max_new_tokens=self.new_tokens, do_sample=False, **options)
        answers = output[:, inputs["input_ids"].shape[1] :]
        self.processor.batch_decode(answers, skip_special_tokens=True)
        return [tuple(answer) for answer in answers.tolist()]

    def shared(self, num_regions: int, names: Sequence[str], clock: "Clock | None" = None) -> Answers:
        """The engine, on all questions of all regions."""
        with measured(clock, "preprocessing"):
            vision = self.processor.image_processor(
                [self.picture], masks=[self.masks[:num_regions]], return_tensors="pt"
            )
        requests = [[BranchRequest(name, max_new_tokens=self.new_tokens) for name in names]] * num_regions
        before = dict(self.engine.seconds)
        answers = self.engine.answer(vision, requests)
        if clock is not None:
            clock.seconds.update({phase: value - before[phase] for phase, value in self.engine.seconds.items()})
        return [[answer.token_ids for answer in of_region] for of_region in answers]

    @property
    def contestants(self) -> dict[str, Callable[..., Answers]]:
        return {"naive": self.naive, "batched": self.batched, "engine": self.shared}


def make_model(processor: FineCaptionProcessor, arguments: argparse.Namespace) -> FineCaptionForConditionalGeneration:
    """A random model whose answers depend on mask and question, and never end."""
    if arguments.size == "full":
        config = FineCaptionConfig(image_token_id=processor.image_token_id)
    else:
        config = make_config(processor.tokenizer, arguments.tiny)
        # With the usual range, a random model of this width says one word whatever it is asked.
        config.text_config.initializer_range = 0.1
        config.initializer_range = 0.1
    torch.manual_seed(0)
    with torch.device(arguments.device):
        model = FineCaptionForConditionalGeneration._from_config(config, dtype=getattr(torch, arguments.dtype)).eval()
    nn.init.normal_(model.model.vision_tower.embeddings.alpha_embedding.weight, std=0.1)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    if arguments.compile:
        # Not the language model: its lengths change all the time; with a static cache, generate compiles it itself.
        for name, part in model.model.named_children():
            if name != "language_model":
                part.forward = torch.compile(part.forward)
    return model


def make_masks(count: int, height: int, width: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Ellipses of different places and sizes."""
    y, x = np.mgrid[:height, :width]
    masks = []
    for _ in range(count):
        center = rng.uniform((0.2, 0.2), (0.8, 0.8)) * (height, width)
        radius = rng.uniform((0.05, 0.05), (0.3, 0.3)) * (height, width)
        masks.append(((y - center[0]) / radius[0]) ** 2 + ((x - center[1]) / radius[1]) ** 2 <= 1)
    return masks


# --- time, by phase and by operator ----------------------------------------------------------------------------------


class Clock:
    """Seconds by phase, for contestants that call the model as a whole: hooks measure its parts."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.seconds: dict[str, float] = defaultdict(float)
        """`rest` is what a turn took beyond the other phases."""
        self._started: list[float] = []
        self._phase = "prefixes"

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        self._start()
        yield
        self._stop(phase)

    @contextmanager
    def hooks(self) -> Iterator[None]:
        parts = self.setting.model.model
        towers = {"convnext_tower": "images", "sam_tower": "images", "vision_tower": "regions", "adapter": "regions"}
        handles = []
        for module, phase in [
            *((part, towers[name]) for name, part in parts.named_children() if name in towers),
            (parts.language_model, None),
            (self.setting.model.lm_head, None),
        ]:
            handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
            handles.append(module.register_forward_hook(self._after(phase)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, module: nn.Module, positional: Any, keywords: dict[str, Any]) -> None:
        embeddings = keywords.get("inputs_embeds")
        if embeddings is not None and module is self.setting.model.model.language_model:
            self._phase = "tokens" if embeddings.shape[1] == 1 else "prefixes"
        self._start()

    def _after(self, phase: str | None) -> Callable[..., None]:
        return lambda *_: self._stop(phase or self._phase)

    def _start(self) -> None:
        self.setting.synchronize()
        self._started.append(time.perf_counter())

    def _stop(self, phase: str) -> None:
        self.setting.synchronize()
        self.seconds[phase] += time.perf_counter() - self._started.pop()


def measured(clock: Clock | None, phase: str) -> AbstractContextManager[None]:
    return nullcontext() if clock is None else clock.measure(phase)


def timed(setting: Setting, action: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    setting.synchronize()
    start = setting.now()
    result = action(*arguments)
    setting.synchronize()
    return setting.now() - start, result


def timed_phases(
    setting: Setting, action: Callable[..., Answers], num_regions: int, names: Sequence[str]
) -> tuple[dict[str, float], Answers]:
    """Seconds by phase, and the answers."""
    clock = Clock(setting)
    start = time.perf_counter()
    total, answers = timed(setting, action, num_regions, names, clock)
    whole = time.perf_counter() - start
    clock.seconds["rest"] = whole - sum(clock.seconds.values())
    return {phase: clock.seconds[phase] * total / whole for phase in PHASES}, answers


class MarkedEngine(BranchEngine):
    """Puts the names of phases into profiles."""

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        with record_function(PHASE_MARK + phase), super()._timed(phase):
            yield


def profile_engine(setting: Setting, num_regions: int, names: Sequence[str]) -> dict[str, Any]:
    """Where the engine's time goes, as shares of a turn: kinds of operators by phase, and the costliest operators."""
    on_gpu = setting.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        start = time.perf_counter()
        setting.shared(num_regions, names)
        setting.synchronize()
        total = time.perf_counter() - start
    # A kernel's time is its operator's as well.
    events = [event for event in profiler.events() if event.device_type == DeviceType.CPU]
    marks = sorted((event for event in events if event.name.startswith(PHASE_MARK)), key=lambda it: it.time_range.start)
    starts = [mark.time_range.start for mark in marks]
    kinds: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for mark in marks:
        kinds[mark.name.removeprefix(PHASE_MARK)][IDLE] += mark.time_range.elapsed_us() / 1e6
    kinds["rest"][IDLE] = total - sum(of_phase[IDLE] for of_phase in kinds.values())
    operators: dict[str, float] = defaultdict(float)
    for event in events:
        if event.name.startswith(PHASE_MARK):
            continue
        place = bisect(starts, event.time_range.start) - 1
        inside = place >= 0 and event.time_range.start <= marks[place].time_range.end
        phase = marks[place].name.removeprefix(PHASE_MARK) if inside else "rest"
        seconds = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
        kinds[phase][kind_of(event.name)] += seconds
        kinds[phase][IDLE] -= seconds
        operators[event.name] += seconds
    return {
        "turn_seconds": total,
        "operator_calls": len(events),
        "kinds": {phase: shares(kinds[phase], total) for phase in PHASES if phase in kinds},
        "operators": dict(list(shares(operators, total).items())[:12]),
    }


def shares(seconds: dict[str, float], total: float) -> dict[str, float]:
    """Of a total, the largest first."""
    return {name: seconds[name] / total for name in sorted(seconds, key=lambda name: -seconds[name])}


def kind_of(operator: str) -> str:
    for kind, patterns in OPERATORS.items():
        if any(pattern in operator for pattern in patterns):
            return kind
    return ELEMENTWISE


# --- the same answers ------------------------------------------------------------------------------------------------


def compare(setting: Setting, expected: Answers, found: Answers, names: Sequence[str]) -> dict[str, Any]:
    """Count answers that differ, with how far both tokens' logits are apart at the first difference."""
    gaps = []
    for region, (ours, theirs) in enumerate(zip(expected, found, strict=True)):
        for name, one, other in zip(names, ours, theirs, strict=True):
            if len(one) != len(other) or len(one) != setting.new_tokens:
                raise SystemExit(f"{name!r} of region {region} has answers of {len(one)} and {len(other)} tokens.")
            if one != other:
                first = next(place for place, pair in enumerate(zip(one, other)) if pair[0] != pair[1])
                gaps.append(logit_gap(setting, region, name, one[:first], one[first], other[first]))
    return {"answers": sum(map(len, expected)), "different": len(gaps), "largest_gap": max(gaps, default=0.0)}


@torch.no_grad()
def logit_gap(setting: Setting, region: int, name: str, so_far: Sequence[int], one: int, other: int) -> float:
    """How far the logits of two tokens are apart after the beginning of an answer."""
    chat = setting.processor.conversation(setting.picture, name, mask=setting.masks[region])
    inputs = setting.processor.apply_chat_template(
        [chat], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(setting.device, dtype=setting.dtype)
    begun = torch.tensor([so_far], dtype=torch.long, device=setting.device)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], begun], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    logits = setting.model(**inputs, logits_to_keep=1).logits[0, -1].float()
    return abs(float(logits[one] - logits[other]))


# --- the composite against its parts ---------------------------------------------------------------------------------


@torch.no_grad()
def measure_forward(setting: Setting, rounds: int) -> dict[str, Any]:
    """Seconds of the model's forward pass on one region with a prompt, and of its parts run bare one after another."""
    model, config = setting.model, setting.model.config
    chat = setting.processor.conversation(setting.picture, "dense", mask=setting.masks[0])
    inputs = setting.processor.apply_chat_template(
        [chat], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(setting.device, dtype=setting.dtype)
    options = {"dtype": setting.dtype}
    low, high = inputs["pixel_values"], inputs["high_res_pixel_values"]
    fused = torch.randn(1, config.image_seq_length, config.fused_feature_size, dtype=setting.dtype, device=low.device)
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    clip_config = type(config.vision_config)(
        **{**config.vision_config.to_dict(), "num_hidden_layers": config.vision_num_layers}
    )
    with torch.device(setting.device):
        clip = CLIPVisionModel._from_config(clip_config, **options).eval()
        convnext = timm.create_model(
            config.convnext_config.architecture, num_classes=0, **(config.convnext_config.model_args or {})
        )
        convnext = convnext.to(setting.dtype).eval()
        sam = SamVisionModel._from_config(config.sam_config, **options).eval()
        first, second = model.model.adapter.linear_1, model.model.adapter.linear_2
        adapter = nn.Sequential(
            nn.Linear(first.in_features, first.out_features),
            nn.GELU(),
            nn.Linear(second.in_features, second.out_features),
        ).to(setting.dtype)
        language = AutoModelForCausalLM.from_config(config.text_config, **options).eval()
    run_convnext = convnext.forward_features
    if setting.compiled:  # as those of the model are
        run_convnext = torch.compile(run_convnext)
        for part in (clip, sam, adapter):
            part.forward = torch.compile(part.forward)
    parts = {
        "CLIPVisionModel": lambda: clip(low),
        "timm ConvNeXt": lambda: run_convnext(high),
        "SamVisionModel": lambda: sam(high),
        "linear layers of the adapter": lambda: adapter(fused),
        "language model": lambda: language(inputs_embeds=embeddings, use_cache=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ("composite", *parts)}
    for turn in range(rounds + 1):
        actions = {"composite": lambda: model(**inputs, use_cache=False), **parts}
        for name, action in actions.items():
            value = timed(setting, action)[0]
            if turn:  # the first turn warms up
                seconds[name].append(value)
    whole = seconds.pop("composite")
    sums = [sum(values) for values in zip(*seconds.values())]
    return {
        "forward_ratio": statistics.median(whole) / statistics.median(sums),
        "composite_s": statistics.median(whole),
        "parts_s": {name: statistics.median(values) for name, values in seconds.items()},
    }


# --- memory ----------------------------------------------------------------------------------------------------------


def peak_memory(setting: Setting, contestant: str, num_regions: int, names: Sequence[str]) -> int:
    """Bytes at the peak of a turn beyond what is held before; what repeats itself runs a few times only."""
    if contestant == "naive":
        num_regions, names = 1, names[-1:]
    elif contestant == "batched":
        num_regions = 1
    action = setting.contestants[contestant]
    if setting.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action(num_regions, names)
        return torch.cuda.max_memory_allocated() - before
    before = status("VmRSS")
    action(num_regions, names)
    return status("VmHWM") - before


def measure_memory(arguments: argparse.Namespace) -> dict[str, int]:
    """Of each contestant, in a process of its own; on a GPU one after another, since they share its memory."""
    running = {}
    for contestant in CONTESTANTS:
        command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", contestant]
        running[contestant] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if arguments.device != "cpu":
            running[contestant].wait(3600)
    found = {}
    for contestant, process in running.items():
        output, errors = process.communicate(timeout=3600)
        if process.returncode:
            raise SystemExit(errors[-3000:])
        found[contestant] = int(output.split()[-1])
    return found


# --- all of it -------------------------------------------------------------------------------------------------------


def measure_turns(
    setting: Setting, machine: Machine, num_regions: int, names: Sequence[str], rounds: int
) -> tuple[dict[str, list[float]], dict[str, dict[str, float]], dict[str, Answers]]:
    """Seconds of each contestant's turns, the phases of its median, and its answers."""
    seconds: dict[str, list[float]] = {name: [] for name in setting.contestants}
    answers: dict[str, Answers] = {}
    own: list[dict[str, float]] = []
    setting.naive(1, names[:2])
    setting.batched(1, names)
    setting.shared(num_regions, names)
    for _ in range(rounds):
        machine.measure()
        for name in ("naive", "engine", "batched", "engine"):
            if name == "engine":  # a short turn, so it takes more of them
                parts, answers[name] = timed_phases(setting, setting.shared, num_regions, names)
                own.append(parts)
                value = sum(parts.values())
            else:
                value, answers[name] = timed(setting, setting.contestants[name], num_regions, names)
            seconds[name].append(value)
    phases = {}
    for name in ("naive", "batched"):
        parts, _ = timed_phases(setting, setting.contestants[name], num_regions, names)
        scale = statistics.median(seconds[name]) / sum(parts.values())
        phases[name] = {phase: scale * value for phase, value in parts.items()}
    middle = statistics.median(seconds["engine"])
    # The engine measures its phases whenever it runs.
    nearest = min(own, key=lambda parts: abs(sum(parts.values()) - middle))
    phases["engine"] = {phase: value * middle / sum(nearest.values()) for phase, value in nearest.items()}
    return seconds, phases, answers


def measure_growth(
    setting: Setting, bound: Bound, machine: Machine, arguments: argparse.Namespace, names: Sequence[str]
) -> dict[str, list[dict[str, float]]]:
    """Seconds by number of regions and by number of questions; batched only as far as the main measurement goes."""
    regions = sorted({count for count in (1, 2, 4, 8, 16) if count < arguments.most_regions} | {arguments.most_regions})
    questions = sorted({count for count in (1, 2, 4, 8, 12) if count < len(names)} | {len(names)})
    points: dict[str, list[dict[str, float]]] = {}
    for what, settings in (
        ("regions", [(count, names) for count in regions]),
        ("questions", [(arguments.regions, names[:count]) for count in questions]),
    ):
        points[what] = []
        for num_regions, chosen in settings:
            turns = [timed(setting, setting.shared, num_regions, chosen)[0] for _ in range(3)]
            point = {
                "regions": num_regions,
                "questions": len(chosen),
                "engine_s": statistics.median(turns),
                "bound_s": sum(bound.seconds(machine, num_regions, chosen).values()),
            }
            if num_regions <= arguments.regions:
                point["batched_s"] = timed(setting, setting.batched, num_regions, chosen)[0]
            points[what].append(point)
    return points


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    memory = {} if arguments.no_memory else measure_memory(arguments)
    names = NAMES[-arguments.questions :]
    setting = Setting(arguments)
    machine = Machine(setting.device, setting.dtype, lambda action: timed(setting, action)[0])
    seconds, phases, answers = measure_turns(setting, machine, arguments.regions, names, arguments.rounds)
    agreement = {name: compare(setting, answers["naive"], answers[name], names) for name in ("batched", "engine")}
    if arguments.dtype == "float32" and max(item["largest_gap"] for item in agreement.values()) > NEAR_TIE:
        raise SystemExit(f"The contestants do different work: {agreement}.")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    bound = Bound(setting.model, setting.processor, arguments.new_tokens, NAMES)
    bound_phases = bound.seconds(machine, arguments.regions, names)
    counts = bound.of(arguments.regions, names)
    profiled = profile_engine(setting, arguments.regions, names)
    growth = measure_growth(setting, bound, machine, arguments, names)
    forward = measure_forward(setting, arguments.forward_rounds)
    tokens = arguments.regions * len(names) * arguments.new_tokens
    bound_s = sum(bound_phases.values())
    spent = phases["engine"]
    prefill = ("prefixes", "questions")
    return {
        **{f"{name}_s": value for name, value in medians.items()},
        "bound_s": bound_s,
        "times_naive": medians["naive"] / medians["engine"],
        "times_batched": medians["batched"] / medians["engine"],
        "times_bound": medians["engine"] / bound_s,
        "forward_ratio": forward["forward_ratio"],
        "new_tokens_per_second": {name: tokens / value for name, value in medians.items()},
        "peak_memory_bytes": memory,
        "phase_seconds": {**phases, "bound": bound_phases},
        "bound_counts": {
            phase: {"operations": operations, "bytes": moved} for phase, (operations, moved) in counts.items()
        },
        "share_of_matrix_speed": {
            phase: operations / spent[phase] / machine.operations for phase, (operations, _) in counts.items()
        },
        "share_of_memory_speed": {phase: moved / spent[phase] / machine.bytes for phase, (_, moved) in counts.items()},
        "prefill_share_of_matrix_speed": sum(counts[phase][0] for phase in prefill)
        / sum(spent[phase] for phase in prefill)
        / machine.operations,
        "decode_share_of_memory_speed": counts["tokens"][1] / spent["tokens"] / machine.bytes,
        "machine": {
            "matrix_operations_per_second": machine.operations,
            "memory_bytes_per_second": machine.bytes,
            "device": device_name(setting.device),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "profile": profiled,
        "growth": growth,
        "forward": forward,
        "turns": seconds,
        "agreement": agreement,
        "different_answers": len({answer for of_region in answers["naive"] for answer in of_region}),
        "image_tokens": setting.model.config.image_seq_length,
        "parameters": sum(parameter.numel() for parameter in setting.model.parameters()),
        "questions": len(names),
        **{name: getattr(arguments, name) for name in ("regions", "new_tokens", "rounds", "size", "tiny")},
        **{
            name: getattr(arguments, name)
            for name in ("device", "dtype", "threads", "processor_time", "compile", "static")
        },
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as lines:
            model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} processors"


# --- what is shown ---------------------------------------------------------------------------------------------------


def show(result: dict[str, Any]) -> None:
    columns = (*CONTESTANTS, "bound")
    machine = result["machine"]
    print(
        f"1 image x {result['regions']} regions x {result['questions']} questions x {result['new_tokens']} new tokens, "
        f"{result['image_tokens']} image tokens, {result['parameters'] / 1e6:.1f} million parameters, "
        f"{result['dtype']}\n{machine['device']}, {result['threads']} threads: "
        f"{machine['matrix_operations_per_second'] / 1e9:.1f} GFLOP/s, "
        f"{machine['memory_bytes_per_second'] / 1e9:.1f} GB/s"
    )
    print(f"| |{'|'.join(f' {name} ' for name in columns)}|\n|---|{'---|' * len(columns)}")
    totals = {name: result[f"{name}_s"] for name in columns}
    phases = result["phase_seconds"]
    print(
        row("processor seconds" if result["processor_time"] else "seconds", [f"{totals[name]:.3g}" for name in columns])
    )
    for phase, title in PHASES.items():
        shares = [(phases[name].get(phase, 0.0), sum(phases[name].values())) for name in columns]
        print(row(title, [f"{value:.3g} ({value / total:.0%})" if value else "" for value, total in shares]))
    tokens = result["regions"] * result["questions"] * result["new_tokens"]
    print(row("new tokens per second", [f"{tokens / totals[name]:,.0f}" for name in columns]))
    memory = result["peak_memory_bytes"]
    print(row("peak memory, MB", [f"{memory[name] / 1e6:,.0f}" if name in memory else "" for name in columns]))
    print(row("engine is faster", [f"{totals[name] / totals['engine']:.2f} times" for name in columns]))
    print("\n| engine | GFLOP | MB | bound, s | spent, s | beyond | of matrix speed | of memory speed |")
    print("|---|---|---|---|---|---|---|---|")
    excess = totals["engine"] - totals["bound"]
    for phase, title in PHASES.items():
        counts = result["bound_counts"].get(phase, {"operations": 0, "bytes": 0})
        least, spent = phases["bound"].get(phase, 0.0), phases["engine"][phase]
        cells = [f"{counts['operations'] / 1e9:,.3g}", f"{counts['bytes'] / 1e6:,.3g}", f"{least:.3g}", f"{spent:.3g}"]
        cells.append(f"{(spent - least) / excess:.0%}")
        for kind in ("share_of_matrix_speed", "share_of_memory_speed"):
            cells.append(f"{result[kind].get(phase, 0.0):.0%}")
        print(row(title.partition(" (")[0], cells))
    columns = (*OPERATORS, ELEMENTWISE, IDLE)
    print(f"\n| profile of the engine | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for phase, kinds in result["profile"]["kinds"].items():
        title = "preprocessing, rest" if phase == "rest" else PHASES[phase].partition(" (")[0]
        print(row(title, [f"{max(kinds.get(kind, 0.0), 0.0):.1%}" for kind in columns]))
    operators = result["profile"]["operators"]
    print("\ncostliest operators: " + ", ".join(f"{name} {share:.0%}" for name, share in operators.items()))
    for name, item in result["agreement"].items():
        print(
            f"{name} against naive: {item['different']} of {item['answers']} answers differ"
            + (f", by logits at most {item['largest_gap']:.1e} apart" if item["different"] else "")
        )
    print(
        f"prefill {result['prefill_share_of_matrix_speed']:.0%} of the matrix speed, decoding "
        f"{result['decode_share_of_memory_speed']:.0%} of the memory speed\n"
        f"times_naive {result['times_naive']:.1f} (at least 12), times_batched {result['times_batched']:.1f} (at least "
        f"6), times_bound {result['times_bound']:.2f}, forward_ratio {result['forward_ratio']:.3f} (at most 1.05)"
    )


def row(title: str, cells: Sequence[str]) -> str:
    return f"| {title} | {' | '.join(cells)} |"


def draw(result: dict[str, Any], path: Path) -> None:
    """Phases of each contestant, and cost by number of regions and of questions."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (bars, regions, questions) = plt.subplots(1, 3, figsize=(14, 4.6), width_ratios=(1.25, 1, 1))
    columns = (*CONTESTANTS, "bound")
    left = [0.0] * len(columns)
    for phase, title in PHASES.items():
        shares = [
            max(result["phase_seconds"][name].get(phase, 0.0), 0.0) / sum(result["phase_seconds"][name].values())
            for name in columns
        ]
        bars.barh(columns, shares, left=left, label=title)
        left = [start + share for start, share in zip(left, shares)]
    for place, name in enumerate(columns):
        bars.text(1.01, place, f"{result[f'{name}_s']:.3g} s", va="center")
    bars.invert_yaxis()
    bars.set_xlim(0, 1.18)
    bars.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    bars.legend(loc="upper center", bbox_to_anchor=(0.45, -0.08), ncols=2, frameon=False, fontsize=8)
    bars.set_title(f"{result['regions']} regions x {result['questions']} questions: share of each phase", fontsize=10)
    per_answer = result["naive_s"] / result["regions"] / result["questions"]
    for axes, what, title in (
        (regions, "regions", f"seconds by regions, {result['questions']} questions each"),
        (questions, "questions", f"seconds by questions, {result['regions']} regions"),
    ):
        points = result["growth"][what]
        at = [point[what] for point in points]
        axes.plot(
            at,
            [per_answer * point["regions"] * point["questions"] for point in points],
            linestyle="--",
            color="C0",
            label="naive (scaled)",
        )
        for name, color in (("batched", "C1"), ("engine", "C2"), ("bound", "C7")):
            found = [(point[what], point[f"{name}_s"]) for point in points if f"{name}_s" in point]
            axes.plot(*zip(*found), marker="o", markersize=3, color=color, label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(at, [str(count) for count in at])
        axes.minorticks_off()
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
    regions.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def parse_arguments() -> argparse.Namespace:
    has_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw phases and growth there (needs matplotlib)")
    parser.add_argument("--show", type=Path, metavar="FILE", help="show an earlier result and measure nothing")
    parser.add_argument("--regions", type=int, default=4, help="of the picture (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=18, choices=range(1, 19), metavar="1..18")
    parser.add_argument("--new-tokens", type=int, default=24, help="of an answer (default: %(default)s)")
    parser.add_argument("--most-regions", type=int, default=32, help="of the growth curve (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="timed turns (default: %(default)s)")
    parser.add_argument("--forward-rounds", type=int, default=15, help="timed turns of the forward pass")
    parser.add_argument("--device", default="cuda" if has_gpu else "cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--size", choices=("small", "full"), help="of the model (default: full on CUDA, else small)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on CUDA, else float32")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU (default: %(default)s)")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count processor time, where other programs keep the machine busy (one thread on the CPU)",
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile towers and adapter")
    parser.add_argument("--static", action="store_true", help="a static cache for the contestants that use generate")
    parser.add_argument("--no-memory", action="store_true", help="leave the peak memory out")
    parser.add_argument("--tiny", action="store_true", help="84/256 px and 64 image tokens: only to try the program")
    parser.add_argument("--memory-of", choices=CONTESTANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    on_gpu = arguments.device.startswith("cuda")
    arguments.size = arguments.size or ("full" if on_gpu and not arguments.tiny else "small")
    arguments.dtype = arguments.dtype or ("bfloat16" if on_gpu else "float32")
    if arguments.processor_time and (on_gpu or arguments.threads != 1):
        parser.error(
            "--processor-time counts what one thread on the CPU does. Leave it out, or --device and --threads."
        )
    return arguments


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        setting = Setting(arguments)
        print(peak_memory(setting, arguments.memory_of, arguments.regions, NAMES[-arguments.questions :]))
        return
    result = json.loads(arguments.show.read_text()) if arguments.show else run(arguments)
    show(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    if arguments.plot:
        draw(result, arguments.plot)


if __name__ == "__main__":
    main()
