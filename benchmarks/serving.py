"""What vLLM with the plugin costs beside the own engine, in one run, and what is shared between regions and questions.

    python benchmarks/serving.py [--size tiny|small] [--regions N] [--rounds N] [--json FILE]

All in one process, on one thread, without compilation; processor time counts, since other programs may keep the machine
busy. Each turn asks all questions about the regions of a picture. `tiny` is the embedded checkpoint with its answers;
`small` is the random model of regions.py with the paper's geometry (336 and 1,024 px, 1,024 image tokens), 24 new
tokens each. Contestants take turns, medians count, and the tokens of all answers are compared.

- `new`: a picture that was not asked about before, in every turn.
- `again`: the same picture again, whose features and prefixes vLLM still has; the engine keeps nothing between calls.
- `tower_share`: pictures that the high-resolution towers encoded, of the regions that were asked about (new pictures).
- `prefix_share`: prompt tokens that came from the cache of prefixes, of all prompt tokens (new pictures).
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
os.environ |= {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "VLLM_NO_USAGE_STATS": "1"}
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")

import numpy as np
import torch
from PIL import Image
from regions import NAMES, make_masks, make_model
from training import make_processor

from finecaption_hf import EMBEDDED_CHECKPOINT
from finecaption_hf.asking import FineCaptionDescriber, load
from finecaption_hf.masks_finecaption import RegionMask
from finecaption_hf.prompts_finecaption import BranchRequest
from finecaption_hf.serving.vllm_describer import VllmDescriber


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "small"), default="small")
    parser.add_argument("--regions", type=int, default=4, help="of a picture (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=18, choices=range(1, 19), metavar="1..18")
    parser.add_argument("--rounds", type=int, default=3, help="turns with a new picture (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = run(arguments, checkpoint(arguments.size, Path(folder)))
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def checkpoint(size: str, folder: Path) -> Path:
    if size == "tiny":
        return EMBEDDED_CHECKPOINT
    processor = make_processor(False)
    settings = argparse.Namespace(size="small", tiny=False, device="cpu", dtype="float32", compile=False)
    model = make_model(processor, settings)
    model.config.text_config.eos_token_id = None
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    longest = None if arguments.size == "tiny" else 24
    own = FineCaptionDescriber(*load(folder, device="cpu"))
    tokens = own.processor.image_seq_length
    served = VllmDescriber(
        folder,
        dtype="float32",
        max_model_len=tokens + 256,
        max_num_seqs=128,
        max_num_batched_tokens=max(4096, 2 * tokens),
        block_size=32,
        enforce_eager=True,
        disable_log_stats=False,
    )
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 256, (600, 800, 3), dtype=np.uint8)) for _ in range(arguments.rounds + 1)
    ]
    masks = [RegionMask(mask, 600, 800) for mask in make_masks(arguments.regions, 600, 800, rng)]
    requests = [[BranchRequest(name, longest) for name in NAMES[-arguments.questions :]] for _ in masks]

    def turn(describer: Any, picture: Image.Image) -> tuple[float, dict[tuple[int, int], tuple[int, ...]]]:
        start = time.process_time()
        updates = list(describer.stream([describer.prepare(picture, masks)], requests))
        spent = time.process_time() - start
        return spent, {(it.region, it.branch): it.answer.token_ids for it in updates if it.answer.finish_reason}

    seconds: dict[str, list[float]] = {"engine new": [], "vllm new": [], "engine again": [], "vllm again": []}
    same = answers = 0
    turn(own, pictures[-1])
    turn(served, pictures[-1])
    before = counts(served)
    for picture in pictures[:-1]:
        found = {}
        for name, describer in (("engine", own), ("vllm", served)):
            spent, found[name] = turn(describer, picture)
            seconds[f"{name} new"].append(spent)
        same += sum(found["engine"][place] == found["vllm"].get(place) for place in found["engine"])
        answers += len(found["engine"])
    after = counts(served)
    for _ in range(arguments.rounds):
        for name, describer in (("engine", own), ("vllm", served)):
            seconds[f"{name} again"].append(turn(describer, pictures[0])[0])
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    encoded, found_again, hits, queried = (now - then for now, then in zip(after, before))
    return {
        "size": arguments.size,
        "image_tokens": tokens,
        "regions": arguments.regions,
        "questions": arguments.questions,
        "rounds": arguments.rounds,
        "same_answers": same,
        "answers": answers,
        "seconds": medians,
        "range": {name: [min(values), max(values)] for name, values in seconds.items()},
        "times_engine_new": medians["vllm new"] / medians["engine new"],
        "times_engine_again": medians["vllm again"] / medians["engine again"],
        "tower_share": encoded / (encoded + found_again),
        "prefix_share": hits / queried,
    }


def counts(served: VllmDescriber) -> tuple[int, int, int, int]:
    """Pictures encoded and found, prompt tokens from the cache of prefixes and in all."""
    encoded, found = served.llm.apply_model(lambda model: (model.kept.encoded, model.kept.found))[0]
    metrics = {metric.name: getattr(metric, "value", 0) for metric in served.llm.get_metrics()}
    return encoded, found, metrics["vllm:prefix_cache_hits"], metrics["vllm:prefix_cache_queries"]


if __name__ == "__main__":
    main()
