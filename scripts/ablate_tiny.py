#!/usr/bin/env python
"""The paper's ablation at tiny size: what the mask and each high-resolution tower are worth, at equal budget.

    finecaption scenes render --out runs/scenes --n 12000 --seed 40000000
    python scripts/ablate_tiny.py --output runs/ablation --data runs/scenes \\
        --start runs/tiny/3-everything/checkpoint-600
    python scripts/ablate_tiny.py --output runs/ablation --report docs

Five configurations start from the same towers and language model, with a fresh adapter and, where there is a mask, with
the alpha convolution back at zero; all train everything for the same number of steps on the same scenes in the same
order. The parts come from stage 3 of the tiny recipe, so that the language model knows how to read every tower. Scores
are exact answers by free generation on held-out combinations. A finished run is a line of OUTPUT/results.jsonl; the
same command goes on with what is missing. `--report` makes the table and, with matplotlib installed, the plot.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from finecaption_hf import register
from finecaption_hf.captioning import load
from finecaption_hf.configuration_finecaption import FineCaptionConfig
from finecaption_hf.data import open_dataset
from finecaption_hf.data.collator import RegionCollator
from finecaption_hf.modeling_finecaption import FineCaptionForConditionalGeneration
from finecaption_hf.scenes.scoring import score_scenes
from finecaption_hf.training import Stage, StageCallback, WholeImageDataset

CONFIGURATIONS: dict[str, dict[str, bool]] = {
    "CLIP": {"use_mask": False, "use_convnext": False, "use_sam": False},
    "+ mask": {"use_mask": True, "use_convnext": False, "use_sam": False},
    "+ mask + ConvNeXt": {"use_mask": True, "use_convnext": True, "use_sam": False},
    "+ mask + SAM": {"use_mask": True, "use_convnext": False, "use_sam": True},
    "+ mask + both": {"use_mask": True, "use_convnext": True, "use_sam": True},
}
T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t by number of seeds


def build(start: FineCaptionForConditionalGeneration, towers: dict[str, bool], seed: int) -> Any:
    """A model with some of the towers; its adapter is fresh, drawn from the seed, and its alpha convolution zero."""
    config = FineCaptionConfig.from_dict({**start.config.to_dict(), **towers})
    torch.manual_seed(seed)
    model = FineCaptionForConditionalGeneration(config)
    kept = {
        name: value
        for name, value in start.state_dict().items()
        if name in model.state_dict() and not name.startswith("model.adapter.") and "alpha_embedding" not in name
    }
    missing, unexpected = model.load_state_dict(kept, strict=False)
    assert not unexpected and all("adapter" in name or "alpha_embedding" in name for name in missing), missing
    model.generation_config = start.generation_config
    return model


def run(args: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Train and score one configuration."""
    start, processor = load(args.start, device="cpu")
    model = build(start, CONFIGURATIONS[name], seed)
    processor.image_processor = type(processor.image_processor)(**model.config.image_processor_kwargs())
    stage = Stage(name="ablation", trains=("*",), learning_rate=args.learning_rate, activation_checkpointing=False)
    dataset = open_dataset(args.data)
    arguments = TrainingArguments(
        output_dir=str(Path(args.output) / "trainer"),
        max_steps=args.steps,
        per_device_train_batch_size=args.images,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, args.steps // 10),
        adam_beta2=0.98,
        weight_decay=0.01,
        bf16=args.bf16,
        use_cpu=True,
        seed=seed,
        dataloader_num_workers=args.workers,
        remove_unused_columns=False,
        save_strategy="no",
        logging_steps=50,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=WholeImageDataset(dataset, stage.whole_image_share, seed),
        data_collator=RegionCollator(processor, load_image=dataset.load),
        callbacks=[StageCallback(stage)],
    )
    started = time.time()
    loss = trainer.train().training_loss
    trained = time.time() - started
    score = score_scenes(model.eval(), processor, args.scenes)
    return {
        "configuration": name,
        "seed": seed,
        "steps": args.steps,
        "images": args.images,
        "learning_rate": args.learning_rate,
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": round(loss, 4),
        "train_seconds": round(trained),
        **score,
    }


def report(results: list[dict[str, Any]], folder: Path) -> None:
    """Print the table in Markdown and draw `ablation.png`: mean over seeds with 95 % intervals (Student's t)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in CONFIGURATIONS if any(item["configuration"] == name for item in results)]
    questions = list(results[0]["accuracy"])
    values: dict[str, dict[str, list[float]]] = {
        name: {
            question: [item["accuracy"][question] for item in results if item["configuration"] == name]
            for question in questions
        }
        for name in names
    }
    for name in names:
        values[name]["mean of all"] = [mean(run) for run in zip(*(values[name][question] for question in questions))]
    rows = ["mean of all", *questions]
    print(f"| attribute | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for question in rows:
        cells = [f"{mean(values[name][question]):.3f} ± {half_width(values[name][question]):.3f}" for name in names]
        print(f"| {question} | {' | '.join(cells)} |")

    figure, axes = plt.subplots(figsize=(11, 6.5))
    height = 0.8 / len(names)
    for number, name in enumerate(names):
        at = [row + (number - (len(names) - 1) / 2) * height for row in range(len(rows))]
        shares = [mean(values[name][question]) for question in rows]
        errors = [half_width(values[name][question]) for question in rows]
        axes.barh(at, shares, height, xerr=errors, label=name, error_kw={"elinewidth": 0.8})
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("exact answers on held-out scenes (mean over seeds, 95 % interval)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=len(names), frameon=False)
    figure.tight_layout()
    figure.savefig(folder / "ablation.png", dpi=110)


def half_width(values: list[float]) -> float:
    """Half of the 95 % interval of a mean."""
    return T_975[len(values)] * stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", help="checkpoint with the towers and the language model")
    parser.add_argument("--data", help="folder of `finecaption scenes render`")
    parser.add_argument("--output", required=True)
    parser.add_argument("--seeds", type=int, default=3, help="seeds are 0, 1, .. below this number")
    parser.add_argument("--first-seed", type=int, default=0, help="where another process runs those before")
    parser.add_argument("--configurations", nargs="*", default=list(CONFIGURATIONS), choices=list(CONFIGURATIONS))
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--images", type=int, default=12, help="scenes per step, two or three regions each")
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--scenes", type=int, default=60, help="held-out scenes that are scored")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast; pays where the machine has bf16 products")
    parser.add_argument("--report", help="make table and plot in this folder instead of training")
    args = parser.parse_args()
    file = Path(args.output) / "results.jsonl"
    results = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    if args.report is not None:
        report(results, Path(args.report))
        return
    register()
    torch.set_num_threads(args.threads)
    Path(args.output).mkdir(parents=True, exist_ok=True)
    done = {(item["configuration"], item["seed"]) for item in results}
    for seed in range(args.first_seed, args.seeds):
        for name in args.configurations:
            if (name, seed) not in done:
                result = run(args, name, seed)
                with file.open("a") as lines:
                    lines.write(json.dumps(result) + "\n")
                average = mean(result["accuracy"].values())
                print(f"{name}, seed {seed}: {average:.3f} in {result['train_seconds']} s", flush=True)


if __name__ == "__main__":
    main()
