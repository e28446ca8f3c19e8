"""SAM, SAM 2, SAM 3 and EdgeTAM of transformers: the image encoder once per picture, the mask decoder per prompt.

Legend: H W height and width of the picture, h w of the decoder's masks, n prompts, P points of a prompt, c candidates.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..data.images import to_rgb
from ..image_processing_finecaption import Geometry
from .clicks import Clicks
from .segmenter import Candidate, EncodedImage, Proposals, Segmenter

_THINNEST = 64  # a picture whose sides differ by more than this factor is stretched for the encoder
_STABILITY_OFFSET = 1.0  # in logits, as in Segment Anything (arXiv 2304.02643, appendix B)


class ModelSegmenter(Segmenter):
    """Any model of transformers with `get_image_embeddings` and SAM's prompts.

    Args:
        model: such as `SamModel` or `Sam2Model`.
        image_processor: the one that belongs to it.
        name: for people.
    """

    def __init__(self, model: Any, image_processor: Any, name: str):
        self.model, self.image_processor, self.name = model.eval(), image_processor, name

    @torch.no_grad()
    def encode(self, image: Image.Image) -> "ModelEncodedImage":
        picture = to_rgb(image)
        # SAM's processor would shrink a very thin picture to no pixel at all.
        least = -(-max(picture.size) // _THINNEST)
        seen = picture.resize((max(picture.width, least), max(picture.height, least)))
        inputs = self.image_processor(images=seen, return_tensors="pt")
        pixel_values = inputs["pixel_values"].to(self.model.device, self.model.dtype)
        input_size = (int(pixel_values.shape[-2]), int(pixel_values.shape[-1]))
        # SAM keeps the proportions and pads at the right or bottom; its successors squash the picture to a square.
        height, width = (int(side) for side in inputs.get("reshaped_input_sizes", [input_size])[0])
        return ModelEncodedImage(
            self.model,
            self.model.get_image_embeddings(pixel_values),
            (picture.height, picture.width),
            input_size,
            Geometry(height, width, 0, 0),
        )


class ModelEncodedImage(EncodedImage):
    """A picture's embeddings, and where the picture lies in the model's input.

    Args:
        model: whose prompt encoder and mask decoder are used.
        embeddings: what the model takes as `image_embeddings`, of one image.
        size: (H, W) of the picture.
        input_size: (height, width) of the model's input.
        placed: where in it the picture lies.
    """

    min_score, min_stability = 0.88, 0.95  # those of Segment Anything's own generator

    def __init__(
        self, model: Any, embeddings: Any, size: tuple[int, int], input_size: tuple[int, int], placed: Geometry
    ):
        super().__init__(*size)
        self.model, self.embeddings, self.input_size, self.placed = model, embeddings, input_size, placed

    def _segment(self, clicks: Clicks, num_candidates: int) -> list[Candidate]:
        points, labels = clicks.points[None], clicks.labels[None]
        box = None if clicks.box_xyxy is None else clicks.box_xyxy.reshape(1, 2, 2)
        # A box or several points leave little doubt, and for those the model has a mask of its own.
        ambiguous = num_candidates > 1 or (box is None and points.shape[1] == 1)
        logits, scores = self._decode(points if points.size else None, labels, box, several=ambiguous)
        return [Candidate(self._finish(mask), float(score)) for mask, score in zip(logits[0], scores[0], strict=True)]

    def _propose(self, points: np.ndarray) -> Proposals:
        logits, scores = self._decode(points[:, None], np.ones((len(points), 1), dtype=np.int64), None, several=True)
        flat = self._without_padding(logits.flatten(0, 1))
        inside = (flat > _STABILITY_OFFSET).sum(dim=(1, 2))
        around = (flat > -_STABILITY_OFFSET).sum(dim=(1, 2))
        return Proposals(
            (flat > 0).cpu().numpy(),
            scores.flatten().cpu().numpy(),
            (inside / around.clamp(min=1)).cpu().numpy(),
            list(logits.flatten(0, 1).unbind()),
        )

    def _finish(self, source: torch.Tensor) -> np.ndarray:
        """Logits (h, w) -> bool (H, W): up to the model's input, padding off, then to the picture's size."""
        logits, placed = source[None, None], self.placed
        if (placed.height, placed.width) != self.input_size:
            logits = F.interpolate(logits, self.input_size, mode="bilinear", align_corners=False)
            logits = logits[..., placed.top : placed.top + placed.height, placed.left : placed.left + placed.width]
        logits = F.interpolate(logits, (self.height, self.width), mode="bilinear", align_corners=False)
        return (logits[0, 0] > 0).cpu().numpy()

    def _without_padding(self, logits: torch.Tensor) -> torch.Tensor:
        """Cut coarse masks (n, h, w) to the cells whose middle lies on the picture, one of them at least."""
        spans = []
        for cells, side, start, length in (
            (logits.shape[1], self.input_size[0], self.placed.top, self.placed.height),
            (logits.shape[2], self.input_size[1], self.placed.left, self.placed.width),
        ):
            first = min(cells - 1, round(start * cells / side))
            spans.append(slice(first, max(first + 1, round((start + length) * cells / side))))
        return logits[:, spans[0], spans[1]]

    def _to_input(self, places: np.ndarray) -> torch.Tensor:
        """Pixels (..., 2) of the picture -> pixels of the model's input, one image before the first axis."""
        scale = [self.placed.width / self.width, self.placed.height / self.height]
        moved = places * scale + [self.placed.left, self.placed.top]
        return torch.tensor(moved[None], dtype=torch.float32, device=self.model.device)

    @torch.no_grad()
    def _decode(
        self, points: np.ndarray | None, labels: np.ndarray, boxes: np.ndarray | None, several: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Points (n, P, 2) with labels (n, P) and boxes as corners (n, 2, 2) -> logits (n, c, h, w), scores (n, c)."""
        prompts: dict[str, torch.Tensor] = {}
        if points is not None:
            prompts["input_points"] = self._to_input(points).to(self.model.dtype)
            prompts["input_labels"] = torch.tensor(labels[None], device=self.model.device)
        if boxes is not None:
            prompts["input_boxes"] = self._to_input(boxes).flatten(-2).to(self.model.dtype)
        made = self.model(image_embeddings=self.embeddings, multimask_output=several, **prompts)
        return made.pred_masks[0].float(), made.iou_scores[0].float()
