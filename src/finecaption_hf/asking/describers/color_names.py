"""The colour of a pixel in one word, by a partition of CIELAB.

The words are the eleven basic colour terms of English (Berlin & Kay 1969) with "beige" and "cyan". Where one ends and
the next begins was drawn from names that people gave: the survey of colour names by Munroe (xkcd.com/color/rgb, CC0).
"""

from functools import cache

import numpy as np

COLOR_NAMES = (
    "black",
    "white",
    "grey",
    "orange",
    "beige",
    "yellow",
    "brown",
    "green",
    "cyan",
    "blue",
    "purple",
    "pink",
    "red",
)
"""Every name that is given, by its number."""

_BITS = 5  # of each channel, from which a name is looked up
_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB to CIELAB with the white of sRGB, D65.

    Args:
        rgb: (..., 3), 0 to 255.

    Returns:
        Float64 (..., 3): L* 0 to 100, a*, b*.

    IEC 61966-2-1 (sRGB) and CIE 15:2004, section 8.2.1.
    """
    encoded = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ.T / _TO_XYZ.sum(axis=1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def name_lab(lab: np.ndarray) -> np.ndarray:
    """Number in `COLOR_NAMES` of each colour: the first rule that holds.

    Args:
        lab: CIELAB (..., 3).

    Returns:
        Int (...).
    """
    lightness, a, b = np.moveaxis(lab, -1, 0)
    chroma, hue = np.hypot(a, b), np.degrees(np.arctan2(b, a)) % 360

    def between(low: float, high: float) -> np.ndarray:
        return (hue >= low) & (hue < high)

    # Of light colours a tint shows sooner, and a warm one sooner than a cool one.
    rules = {
        "black": (lightness < 22) & (chroma < 12) | (lightness < 7) & (chroma < 30),
        "white": (lightness >= 90) & (chroma < np.where((lightness >= 97) & (hue < 150), 16, 10)),
        "grey": chroma < np.where(between(170, 300) | (lightness < 75), 12, 9),
        "orange": between(47, 75) & (lightness >= 45) & (chroma >= 56)
        | between(40, 78) & (lightness >= 58) & (chroma >= 48),
        "beige": between(55, 112) & (lightness >= 60) & (chroma < np.where(lightness < 72, 40, 48)),
        "yellow": between(78, 103) & (lightness >= 58) | between(103, 112) & (lightness >= 80),
        "brown": between(22, 40) & (lightness < 55) & (chroma < np.where(lightness < 20, 20, 28))
        | between(40, 95) & ((chroma < 60) | (hue >= 47)),
        "green": (hue >= 95) & (hue < np.where(chroma < 22, 185, np.where(lightness >= 70, 163, 172))),
        "cyan": between(160, 232) & (chroma >= np.where(lightness > 80, np.where(hue > 195, 26, 22), 12)),
        "blue": between(160, 298) | between(298, 308) & (lightness <= 45) & (chroma >= 45),
        "purple": (hue >= 298)
        & (hue < np.where(lightness < 35, 360, np.where(lightness < 50, 340, 332)))
        & ((hue < 322) | (lightness < 58) | (chroma < 80)),
        "pink": (hue >= 298)
        | (hue < 14) & (lightness >= 40)
        | (hue < 32) & (lightness >= 55) & (chroma < 42)
        | (hue < 42) & (lightness >= 62),
    }
    numbers = [COLOR_NAMES.index(name) for name in rules]
    return np.select(list(rules.values()), numbers, COLOR_NAMES.index("red"))


def name_pixels(rgb: np.ndarray) -> np.ndarray:
    """Number in `COLOR_NAMES` of each pixel, by the upper five bits of its channels.

    Args:
        rgb: uint8 (..., 3).

    Returns:
        Uint8 (...).
    """
    red, green, blue = np.moveaxis(rgb >> (8 - _BITS), -1, 0)
    return _table()[red, green, blue]


@cache
def _table() -> np.ndarray:
    """Names of all colours of that many bits, each cell's by its middle: uint8 (32, 32, 32)."""
    levels = (np.arange(2**_BITS) + 0.5) * 255 / 2**_BITS
    cells = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1)
    return name_lab(to_lab(cells)).astype(np.uint8)
