"""Prefer right answers to wrong ones with TRL's DPOTrainer, unmodified: python examples/trl_dpo.py CHECKPOINT OUTPUT"""

import sys
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import DPOConfig, DPOTrainer

FOLDER = Path(__file__).parent
MESSAGES = List({"role": Value("string"), "content": Value("string")})
# A region travels with its image. Without the Image features, files would arrive undecoded.
IMAGES = List({"image": Image(), "mask": Image(), "box_xyxy": List(Value("int32"))})


def rows() -> Dataset:
    """Two regions of a picture, each with a right and a wrong answer."""
    picture, mask = str(FOLDER / "scene.png"), str(FOLDER / "scene-mask.png")
    regions: list[dict[str, Any]] = [{"mask": mask, "box_xyxy": None}, {"mask": None, "box_xyxy": [178, 25, 249, 96]}]
    answers = [[{"role": "assistant", "content": color}] for color in ("blue", "red")]
    columns = {
        "images": [[{"image": picture, **region}] for region in regions],
        "prompt": [[{"role": "user", "content": "What color is it?"}]] * 2,
        "chosen": answers,
        "rejected": answers[::-1],
    }
    return Dataset.from_dict(columns, Features(images=IMAGES, prompt=MESSAGES, chosen=MESSAGES, rejected=MESSAGES))


def make_trainer(checkpoint: str, output: str, **options: Any) -> DPOTrainer:
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, trust_remote_code=True, dtype="float32")
    processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
    options = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-5, "report_to": [], **options}
    settings = DPOConfig(output_dir=output, max_length=None, **options)
    return DPOTrainer(model, args=settings, train_dataset=rows(), processing_class=processor)


if __name__ == "__main__":
    trainer = make_trainer(*sys.argv[1:3])
    trainer.train()
    trainer.save_model()
