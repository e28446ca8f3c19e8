"""How fast the processor is: a 1920x1080 photo with one mask, against PIL and against bare torchvision.

    python benchmarks/processor.py [--json FILE] [--rounds N] [--threads N]

All contestants make the same tensors: the picture at 1024 and at 336 pixels, normalised, and the region's alpha at 336.

- processor: `FineCaptionProcessor(images=photo, masks=mask)`, keeping the proportions and padding.
- PIL: the plain way, with PIL's bicubic and bilinear resizes, a padded canvas and numpy. It and the processor start
  from the same PIL image: `speedup_over_pil`.
- bare: the same torchvision resizes and normalisations called directly on the decoded array, channels last, without
  padding, checks or peaks. It and the processor start from the same array: `ratio_to_bare`. What Pillow needs to turn
  an image into an array is shown beside it.

Contestants take turns, medians count. All run on one core, like PIL: with more threads, a busy machine measures its
scheduler. Before timing, the outputs are compared with each other.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvF
from transformers import PreTrainedTokenizerFast

from finecaption_hf import FineCaptionImageProcessor, FineCaptionProcessor

HEIGHT, WIDTH = 1080, 1920
SIZES = (1024, 336)
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
MASK_MEAN, MASK_STD = 0.5, 0.26


def make_photo() -> tuple[np.ndarray, np.ndarray]:
    """A smooth picture with noise, uint8 (H, W, 3), and an ellipse in it, bool (H, W)."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
    noise = np.random.default_rng(0).normal(0, 6, (HEIGHT, WIDTH, 3))
    waves = [127 + 100 * np.sin(x / (90 + 30 * c) + c) * np.cos(y / (70 + 20 * c)) for c in range(3)]
    photo = np.clip(np.stack(waves, axis=-1) + noise, 0, 255).astype(np.uint8)
    mask = ((x - 1100) / 420) ** 2 + ((y - 520) / 310) ** 2 < 1
    return photo, mask


def fitted(size: int) -> tuple[int, int, int]:
    """Height and width of the photo in a square input, and its offset from the top."""
    height = round(HEIGHT * size / WIDTH)
    return height, size, (size - height) // 2


def make_processor() -> FineCaptionProcessor:
    words = Tokenizer(WordLevel({"<pad>": 0, "<image>": 1}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>")
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    return FineCaptionProcessor(FineCaptionImageProcessor(), tokenizer)


def with_pil(photo: Image.Image, mask: np.ndarray) -> dict[str, torch.Tensor]:
    pixels = []
    for size in SIZES:
        height, width, top = fitted(size)
        canvas = Image.new("RGB", (size, size), tuple(round(255 * mean) for mean in MEAN))
        canvas.paste(photo.resize((width, height), Image.Resampling.BICUBIC), (0, top))
        values = (np.asarray(canvas, dtype=np.float32) / 255 - MEAN.astype(np.float32)) / STD.astype(np.float32)
        pixels.append(torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))[None])
    height, width, top = fitted(336)
    region = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BILINEAR)
    soft = np.asarray(region, dtype=np.float32) / 255
    alpha = np.zeros((336, 336), dtype=np.float32)
    alpha[top : top + height] = soft / min(soft.max(), 1)
    alpha = (alpha - MASK_MEAN) / MASK_STD
    return {
        "high_res_pixel_values": pixels[0],
        "pixel_values": pixels[1],
        "mask_values": torch.from_numpy(alpha)[None, None],
    }


def with_bare_torchvision(photo: np.ndarray, mask: np.ndarray) -> dict[str, torch.Tensor]:
    picture = torch.from_numpy(photo).permute(2, 0, 1)[None]
    pixels = []
    for size in SIZES:
        height, width, _ = fitted(size)
        small = tvF.resize(picture, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)
        # Normalising planes is faster than normalising interleaved channels, the change of layout included.
        planes = small.to(torch.float32, memory_format=torch.contiguous_format)
        pixels.append(tvF.normalize(planes, (255 * MEAN).tolist(), (255 * STD).tolist(), inplace=True))
    height, width, _ = fitted(336)
    # As bytes: faster than as floats, though too coarse for regions of a few pixels.
    region = torch.from_numpy(mask).view(torch.uint8)[None, None] * 255
    soft = tvF.resize(region, [height, width], interpolation=InterpolationMode.BILINEAR, antialias=True)
    alpha = tvF.normalize(soft.to(torch.float32), [255 * MASK_MEAN], [255 * MASK_STD], inplace=True)
    return {"high_res_pixel_values": pixels[0], "pixel_values": pixels[1], "mask_values": alpha}


def compare(ours: dict[str, Any], pil: dict[str, Any], bare: dict[str, Any]) -> dict[str, float]:
    """Largest differences, in grey levels of 255 and in alpha of 1; fails where the work is not the same."""
    worst = {"levels_to_pil": 0.0, "levels_to_bare": 0.0}
    for name in ("high_res_pixel_values", "pixel_values"):
        level = torch.tensor(STD * 255, dtype=torch.float32)[:, None, None]
        height, _, top = fitted(ours[name].shape[-1])
        placed = ours[name][:, :, top : top + height]
        worst["levels_to_pil"] = max(worst["levels_to_pil"], float(((ours[name] - pil[name]) * level).abs().max()))
        worst["levels_to_bare"] = max(worst["levels_to_bare"], float(((placed - bare[name]) * level).abs().max()))
    height, _, top = fitted(336)
    alpha = ours["mask_values"]
    worst["alpha_to_pil"] = float((alpha - pil["mask_values"]).abs().max()) * MASK_STD
    worst["alpha_to_bare"] = float((alpha[:, :, top : top + height] - bare["mask_values"]).abs().max()) * MASK_STD
    # Bytes are rounded after each pass of a resize, and not alike: one grey level of 255.
    limits = {"levels_to_pil": 1.01, "levels_to_bare": 0.01, "alpha_to_pil": 0.01, "alpha_to_bare": 0.01}
    for name, limit in limits.items():
        if worst[name] > limit:
            raise SystemExit(f"The contestants do different work: {name} is {worst[name]:g}, more than {limit:g}.")
    return worst


def measure(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each contestant; they take turns, so a busy machine slows all of them."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 3):
        for name, contestant in contestants.items():
            start = time.perf_counter()
            contestant()
            if turn >= 3:  # the first turns warm up
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--rounds", type=int, default=40, help="timed turns (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1, as in a DataLoader's worker)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    array, mask = make_photo()
    photo = Image.fromarray(array)
    processor = make_processor()
    agreement = compare(processor(images=photo, masks=mask), with_pil(photo, mask), with_bare_torchvision(array, mask))
    contestants: dict[str, Callable[[], Any]] = {
        "processor, from PIL": lambda: processor(images=photo, masks=mask),
        "PIL": lambda: with_pil(photo, mask),
        "processor, from array": lambda: processor(images=array, masks=mask),
        "bare torchvision": lambda: with_bare_torchvision(array, mask),
        "PIL to array alone": lambda: np.array(photo),
    }
    milliseconds = measure(contestants, arguments.rounds)
    result = {
        "speedup_over_pil": milliseconds["PIL"] / milliseconds["processor, from PIL"],
        "ratio_to_bare": milliseconds["processor, from array"] / milliseconds["bare torchvision"],
        "milliseconds": milliseconds,
        "agreement": agreement,
        "photo": [HEIGHT, WIDTH],
        "rounds": arguments.rounds,
        "threads": torch.get_num_threads(),
    }
    for name, value in milliseconds.items():
        print(f"{name:24}{value:8.2f} ms")
    print(f"speedup_over_pil {result['speedup_over_pil']:.2f} (at least 3), ", end="")
    print(f"ratio_to_bare {result['ratio_to_bare']:.2f} (at most 1.3)")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
