"""A picture, regions and questions -> what is said about them, in one call."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .asker import ask
from .describer import Describer
from .finecaption import FineCaptionDescriber
from .kinds import load_describer

if TYPE_CHECKING:
    from ..modeling_finecaption import FineCaptionForConditionalGeneration
    from ..processing_finecaption import FineCaptionProcessor

    Model = str | os.PathLike[str] | tuple[FineCaptionForConditionalGeneration, FineCaptionProcessor] | Describer | None


def caption_regions(
    image: Any,
    regions: Any = None,
    questions: str | Sequence[str] = "region",
    *,
    model: "Model" = None,
    **decoding: Any,
) -> list[dict[str, Any]]:
    """Caption regions of a picture, and answer questions about them.

    Args:
        image: a picture as `RegionCaptioningPipeline` takes it: a file's path, a PIL picture, an array (H, W, 3).
        regions: what `as_mask` takes, one or a list of them, in the picture's pixels; also the objects of
            `finecaption_hf.data.as_regions`. `None` means the whole picture.
        questions: one or several: `"region"` (a sentence), `"dense"` (several sentences), attributes such as `"color"`,
            or own words.
        model: what `load` gives, to be used for several pictures; or a folder or Hub id, which is loaded for this call;
            or any describer. `None` means the checkpoint that comes with the package.
        **decoding: such as `max_new_tokens`, `temperature` and `seed`.

    Returns:
        A record for each region: `{"region_index", "box_xyxy", "area", "answers": {name: text}}`, or
        `{"region_index", "error": {"type", "message"}}` where a region, or all of the picture, cannot be asked about.

    Raises:
        OSError: If there is no such model.
        ValueError: If several pictures are given, or a question cannot be asked.
    """
    if isinstance(image, list | tuple):
        raise ValueError(
            f"{len(image)} pictures arrived. Give one at a time, or all of them to `finecaption_hf.asking.ask`."
        )
    if isinstance(model, tuple):
        describer: Describer = FineCaptionDescriber(*model)
    elif model is None or isinstance(model, str | os.PathLike):
        describer = load_describer(model)
    else:
        describer = model
    records: list[dict[str, Any]] = ask(describer, image, regions, questions, **decoding)
    return records
