"""Pictures for people: regions outlined and numbered, with their captions.

>>> from finecaption_hf.drawing import draw_regions
>>> draw_regions(image, masks, ["a red cup", "its shadow"]).save("outlined.png")
"""

from .numbers import ink
from .regions import COLORS, MIN_SIDE, STYLES, draw_regions, grow

__all__ = ["COLORS", "MIN_SIDE", "STYLES", "draw_regions", "grow", "ink"]
