"""Ask a model about regions of pictures.

>>> from finecaption_hf.asking import ask, load_describer
>>> describer = load_describer()  # the embedded checkpoint; or any model: docs/describers.md
>>> ask(describer, "photo.jpg", [{"box_xyxy": [40, 60, 200, 180]}], ["color", "shape"])
[{'region_index': 0, 'box_xyxy': [40, 60, 200, 180], 'area': 19200, 'answers': {'Color': ..., 'Shape': ...}}]
"""

from .asker import ask, check_questions, stream
from .captioning import caption_regions
from .cards import SCENES_ONLY, card_address, card_of, note_of
from .describer import Describer, Spreading
from .errors import DescriberError
from .finecaption import FineCaptionDescriber
from .kinds import load_describer
from .loading import load

__all__ = [
    "SCENES_ONLY",
    "Describer",
    "DescriberError",
    "FineCaptionDescriber",
    "Spreading",
    "ask",
    "caption_regions",
    "card_address",
    "card_of",
    "check_questions",
    "load",
    "load_describer",
    "note_of",
    "stream",
]
