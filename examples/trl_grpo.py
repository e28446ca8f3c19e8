"""Reward answers about a region with TRL's GRPOTrainer, unmodified: python examples/trl_grpo.py CHECKPOINT OUTPUT"""

import sys
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

FOLDER = Path(__file__).parent
MESSAGES = List({"role": Value("string"), "content": Value("string")})
IMAGES = List({"image": Image(), "mask": Image(), "box_xyxy": List(Value("int32"))})


def rows() -> Dataset:
    """Two regions of a picture, and what their answers are to hold."""
    picture, mask = str(FOLDER / "scene.png"), str(FOLDER / "scene-mask.png")
    regions: list[dict[str, Any]] = [{"mask": mask, "box_xyxy": None}, {"mask": None, "box_xyxy": [178, 25, 249, 96]}]
    columns = {
        "images": [[{"image": picture, **region}] for region in regions],
        "prompt": [[{"role": "user", "content": "What color is it?"}]] * 2,
        "color": ["blue", "red"],
    }
    return Dataset.from_dict(columns, Features(images=IMAGES, prompt=MESSAGES, color=Value("string")))


def names_the_color(completions: list[Any], color: list[str], **_: Any) -> list[float]:
    return [float(name in completion[0]["content"]) for completion, name in zip(completions, color)]


def make_trainer(checkpoint: str, output: str, method: str = "grpo", **options: Any) -> GRPOTrainer | RLOOTrainer:
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, trust_remote_code=True, dtype="float32")
    processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
    # These trainers hand on pixel_values alone: they have to hold high-resolution pictures and masks as well.
    processor.image_processor.do_pack = True
    options = {"max_steps": 2, "num_generations": 2, "per_device_train_batch_size": 4, "report_to": [], **options}
    config, trainer = (GRPOConfig, GRPOTrainer) if method == "grpo" else (RLOOConfig, RLOOTrainer)
    settings = config(output_dir=output, max_completion_length=8, learning_rate=1e-5, **options)
    return trainer(model, names_the_color, args=settings, train_dataset=rows(), processing_class=processor)


if __name__ == "__main__":
    trainer = make_trainer(*sys.argv[1:3])
    trainer.train()
    trainer.save_model()
