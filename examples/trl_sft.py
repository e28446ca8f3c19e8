"""Teach answers about regions with TRL's SFTTrainer, unmodified: python examples/trl_sft.py CHECKPOINT OUTPUT"""

import sys
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer

FOLDER = Path(__file__).parent
MESSAGES = List({"role": Value("string"), "content": Value("string")})
# A region travels with its image. Without the Image features, files would arrive undecoded.
IMAGES = List({"image": Image(), "mask": Image(), "box_xyxy": List(Value("int32"))})


def rows(form: str = "messages") -> Dataset:
    """Two regions of a picture; `form` is TRL's: `messages`, or `prompt` and `completion`."""
    picture, mask = str(FOLDER / "scene.png"), str(FOLDER / "scene-mask.png")
    regions: list[dict[str, Any]] = [{"mask": mask, "box_xyxy": None}, {"mask": None, "box_xyxy": [178, 25, 249, 96]}]
    images = [[{"image": picture, **region}] for region in regions]
    questions = [[{"role": "user", "content": "What color is it?"}]] * 2
    answers = [[{"role": "assistant", "content": color}] for color in ("blue", "red")]
    if form == "messages":
        chats = [question + answer for question, answer in zip(questions, answers)]
        return Dataset.from_dict({"images": images, "messages": chats}, Features(images=IMAGES, messages=MESSAGES))
    features = Features(images=IMAGES, prompt=MESSAGES, completion=MESSAGES)
    return Dataset.from_dict({"images": images, "prompt": questions, "completion": answers}, features)


def make_trainer(checkpoint: str, output: str, form: str = "messages", **options: Any) -> SFTTrainer:
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, trust_remote_code=True, dtype="float32")
    processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
    options = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-4, "report_to": [], **options}
    # max_length would cut off image tokens, which is an error; packing is for text alone.
    settings = SFTConfig(output_dir=output, max_length=None, **options)
    return SFTTrainer(model, settings, train_dataset=rows(form), processing_class=processor)


if __name__ == "__main__":
    trainer = make_trainer(*sys.argv[1:3], assistant_only_loss=True)
    trainer.train()
    trainer.save_model()
