"""How much memory `finecaption assemble` takes: more than one billion parameters in bfloat16, from parts on disk.

    python benchmarks/assembly.py [--json FILE] [--parameters N] [--folder DIR]

Random parts are written in their own formats: a CLIP as one pickle, a ConvNeXt as one file, a language model in
shards. A process of its own assembles them. What it holds at its peak (mapped files included, as the kernel counts
them) beyond what it holds after its imports, over the size of the largest file of a part, is
`peak_rss_over_largest_shard`. The `bound` is one largest file and one file of the output, as a ratio to the former; the
model is many times that.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, PreTrainedTokenizerFast

SHARD = 200_000_000  # bytes, of the language model and of the output
VOCABULARY = 32_000
# Imports come first, what transformers loads lazily included. The peak is read from /proc: getrusage would begin with
# what the parent held when it started this process.
CHILD = """
import json, sys

import timm, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast
from finecaption_hf import FineCaptionProcessor
from finecaption_hf.assembly import assemble

def status(field):
    with open("/proc/self/status") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))

torch.set_num_threads(1)
before = status("VmRSS")
summary = assemble(**json.loads(sys.argv[1]))
print(json.dumps({"before": before, "peak": status("VmHWM"), "parameters": summary["parameters"]["total"]}))
"""


def random_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Tensors of a model on the meta device, in bfloat16; one block of random numbers serves all of them."""
    noise = torch.randn(1 << 20).mul_(0.02).to(torch.bfloat16)

    def fill(shape: torch.Size) -> torch.Tensor:
        count = shape.numel()
        return noise.repeat(-(-count // len(noise)))[:count].reshape(shape).clone()

    return {name: fill(parameter.shape) for name, parameter in model.named_parameters()}


def write_clip(folder: Path) -> None:
    config = CLIPVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        image_size=336,
        patch_size=14,
    )
    with torch.device("meta"):
        model = CLIPVisionModel(config)
    config.save_pretrained(folder)
    tensors = {f"vision_model.{name.removeprefix('vision_model.')}": t for name, t in random_weights(model).items()}
    torch.save(tensors, folder / "pytorch_model.bin")  # the format of the published one


def write_convnext(folder: Path) -> None:
    import timm

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architecture": "convnext_base"}))
    with torch.device("meta"):
        model = timm.create_model("convnext_base", num_classes=0)
    save_file(random_weights(model), folder / "model.safetensors")


def write_language_model(folder: Path, parameters: int) -> None:
    """A Llama 2,048 wide, with as many layers as it takes."""
    width, inner = 2048, 5632
    per_layer = 4 * width**2 + 3 * width * inner + 2 * width
    layers = max(1, -(-(parameters - 2 * VOCABULARY * width) // per_layer))
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        bos_token_id=1,
        eos_token_id=2,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.save_pretrained(folder)
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    noise = torch.randn(1 << 20).mul_(0.02).to(torch.bfloat16)
    shards: list[dict[str, torch.Size]] = [{}]
    size = 0
    for name, parameter in model.named_parameters():
        if shards[-1] and size + 2 * parameter.numel() > SHARD:
            shards.append({})
            size = 0
        shards[-1][name] = parameter.shape
        size += 2 * parameter.numel()
    weight_map = {}
    for number, shapes in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {
            name: noise.repeat(-(-shape.numel() // len(noise)))[: shape.numel()].reshape(shape)
            for name, shape in shapes.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shapes, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def measure(folder: Path, parameters: int) -> dict[str, Any]:
    write_clip(folder / "clip")
    write_convnext(folder / "convnext")
    write_language_model(folder / "llm", parameters)
    files = [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".bin")]
    largest = max(path.stat().st_size for path in files)
    arguments = {
        "out": str(folder / "out"),
        "clip": str(folder / "clip"),
        "convnext": str(folder / "convnext"),
        "llm": str(folder / "llm"),
        "without": ["sam"],
        "dtype": "bfloat16",
        "max_shard_size": f"{SHARD // 10**6}MB",
    }
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(arguments)], capture_output=True, text=True, timeout=3600
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    found = json.loads(done.stdout.splitlines()[-1])
    output = max(path.stat().st_size for path in (folder / "out").glob("*.safetensors"))
    return {
        "peak_rss_over_largest_shard": (found["peak"] - found["before"]) / largest,
        "bound": (largest + output) / largest,
        "parameters": found["parameters"],
        "model_bytes": sum(path.stat().st_size for path in (folder / "out").glob("*.safetensors")),
        "largest_shard_bytes": largest,
        "largest_output_shard_bytes": output,
        "rss_after_imports_bytes": found["before"],
        "peak_rss_bytes": found["peak"],
        "seconds": time.perf_counter() - start,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--parameters", type=float, default=1.1e9, help="of the language model (default: %(default)g)")
    parser.add_argument("--folder", type=Path, help="where to put parts and output meanwhile; 4 bytes a parameter")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="assembly-benchmark-", dir=arguments.folder))
    try:
        result = measure(folder, int(arguments.parameters))
    finally:
        shutil.rmtree(folder)
    print(f"{result['parameters'] / 1e9:.2f} billion parameters, {result['model_bytes'] / 1e9:.2f} GB of weights")
    print(
        f"peak {result['peak_rss_bytes'] / 1e9:.2f} GB, {result['rss_after_imports_bytes'] / 1e9:.2f} GB after imports"
    )
    print(f"peak_rss_over_largest_shard {result['peak_rss_over_largest_shard']:.2f} (at most {result['bound']:.2f})")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
