"""Ask a model about regions of pictures.

>>> from finecaption_hf.asking import ask, load_describer
>>> describer = load_describer()  # the embedded checkpoint; or any model: docs/describers.md
>>> ask(describer, "photo.jpg", [{"box_xyxy": [40, 60, 200, 180]}], ["color", "shape"])
[{'region_index': 0, 'box_xyxy': [40, 60, 200, 180], 'area': 19200, 'answers': {'Color': ..., 'Shape': ...}}]
"""

from .asker import ask, check_questions, stream
from .captioning import caption_regions
from .describer import Describer
from .errors import DescriberError
from .finecaption import FineCaptionDescriber
from .kinds import load_describer
from .loading import load

__all__ = [
    "Describer",
    "DescriberError",
    "FineCaptionDescriber",
    "ask",
    "caption_regions",
    "check_questions",
    "load",
    "load_describer",
    "stream",
]
