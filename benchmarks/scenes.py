"""How fast rendered scenes are written and read again, in pictures per second.

    python benchmarks/scenes.py [--json FILE] [--n N] [--size PIXELS]

- render: drawing alone, on one core.
- write: drawing, PNG file and row of the data set, on one core.
- write_all_cores: the same with one process per core, as `finecaption scenes render` does; starting them is counted.
- read: on one core, what training does with a picture: decode its PNG and the masks of its regions, and make the
  tensors of both resolutions.

The first three also per second of processor time, which is what they would be on a core of their own.

Training on pictures that are rendered beforehand is held up by `read`, on pictures rendered as it goes by `render`.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from finecaption_hf import EMBEDDED_CHECKPOINT, FineCaptionImageProcessor
from finecaption_hf.masks_finecaption import as_mask
from finecaption_hf.scenes import render_scene, write_scenes


def rate(name: str, n: int, work: Callable[[], Any]) -> dict[str, float]:
    """Pictures per second of time, and of this process's share of a core."""
    start, cpu_start = time.perf_counter(), time.process_time()
    work()
    elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    return {name: round(n / elapsed, 1), f"{name}_per_cpu_second": round(n / cpu, 1)}


def read(records: Path, processor: FineCaptionImageProcessor) -> None:
    with records.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            with Image.open(records.parent / row["image"]) as file:
                image = file.convert("RGB")
            masks = [as_mask(region["mask"], image.height, image.width) for region in row["regions"]]
            processor([image], masks=masks, image_indices=[0] * len(masks), return_tensors="pt")


def write_all_cores(folder: Path, n: int, size: int, cores: int) -> float:
    return rate("all", n, lambda: write_scenes(folder, n, size=size, processes=cores))["all"]


def measure(n: int, size: int) -> dict[str, Any]:
    processor = FineCaptionImageProcessor.from_pretrained(EMBEDDED_CHECKPOINT)
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        one, many = Path(folder, "one"), Path(folder, "many")
        render_scene(0, size=size)  # what is computed once
        return {
            **rate("render", n, lambda: [render_scene(seed, size=size) for seed in range(n)]),
            **rate("write", n, lambda: write_scenes(one, n, size=size, processes=1)),
            **rate("read", n, lambda: read(one / "records.jsonl", processor)),
            "write_all_cores": write_all_cores(many, n * cores, size, cores),
            "bytes_per_picture": sum(file.stat().st_size for file in (one / "images").iterdir()) // n,
            "cores": cores,
            "n": n,
            "size": size,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--n", type=int, default=200, help="scenes per measurement and core")
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    args = parser.parse_args()
    torch.set_num_threads(1)
    figures = measure(args.n, args.size)
    for name, value in figures.items():
        print(f"{name:>21}  {value}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
