"""A page to leaf through in a browser: pictures with outlined regions, and their answers, which can be filtered.

The page needs no server and loads nothing but its own pictures. What people and models wrote goes into it as JSON,
which the script shows as text; a policy lets no other script run.
"""

import base64
import hashlib
import io
import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from html import escape
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
from PIL import Image

from ...data.errors import DataError
from ...drawing import COLORS, draw_regions, ink
from ...masks_finecaption import MaskError, as_mask
from .base import Output, Record, Records, well_formed

MAX_EMBEDDED = 48
"""Pictures that lie within the page; of more, all lie in a folder beside it."""

_LONGER_SIDE, _QUALITY = 960, 80  # pixels, enough for the width of a screen; some 100 kB
_FOLDER_SIZE = 1000  # file managers are slow with more
_BLOCK = 32  # pictures whose texts are in one element of the page
_THREADS = 4
_HERE = Path(__file__).parent


class Html(Output):
    """One page; with many pictures they lie beside it, in a folder of its name that ends in `_files`."""

    name = "html"
    suffixes = (".html", ".htm")

    def beside(self, target: Path) -> Path | None:
        """See `Output`."""
        return target.with_name(f"{target.stem}_files")

    def write(self, records: Records, target: Path) -> None:
        """See `Output`."""
        folder = None if len(self.inputs) <= MAX_EMBEDDED else self.beside(target)
        style, script = ((_HERE / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
        with open(target, "w", encoding="utf-8", newline="\n") as page:
            told = next(records(), {}).get("model_note")
            note = "" if told is None else f'<p class="note" role="note">{escape(told)}</p>\n'
            page.write(_HEAD.format(title=escape(target.stem), policy=_policy(style, script), style=style, note=note))
            cards = self._cards(records, folder)
            while block := list(islice(cards, _BLOCK)):
                _write_json(page, block)
            page.write(f"<script>{script}</script>\n</body>\n</html>\n")

    def _cards(self, records: Records, folder: Path | None) -> Iterator[Record]:
        """What the script gets of each image (of one with very many regions, of each part)."""
        waiting: deque[Future[Record]] = deque()
        left = records()
        pool = ThreadPoolExecutor(_THREADS)
        try:
            for index, count in enumerate(self.inputs.region_counts()):
                waiting.append(pool.submit(self._card, index, list(islice(left, count)), folder))
                if len(waiting) > _THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _card(self, index: int, records: list[Record], folder: Path | None) -> Record:
        regions = []
        for record in records:
            errors = {name: why["message"] for name, why in record.get("errors", {}).items()}
            region: Record = {"number": record["region_index"] + 1, "answers": record.get("answers", {})}
            region |= {key: str(record[key]) for key in ("id", "label") if record.get(key) is not None}
            if "error" in record or errors:
                region["errors"] = errors or {record["error"]["type"]: record["error"]["message"]}
            if "error" not in record and record["mask"] is None:
                region["whole"] = True
            regions.append(region)
        card: Record = {"image": records[0]["image"], "regions": regions}
        try:
            picture, colors = self._draw(index, records)
        except (DataError, MaskError) as error:
            return {**card, "missing": str(error)}
        for region, color in zip(regions, colors):
            if color is not None:
                region |= {"color": "#{:02x}{:02x}{:02x}".format(*color), "ink": ink(color)}
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=_QUALITY)
        if folder is None:
            source = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
        else:
            name = f"{index // _FOLDER_SIZE}/{index}.jpg"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(file.getvalue())
            source = f"{folder.name}/{name}"
        return {**card, "source": source, "width": picture.width, "height": picture.height}

    def _draw(self, index: int, records: list[Record]) -> tuple[Image.Image, list[tuple[int, int, int] | None]]:
        """The picture with its regions, and the colour of each; none for one that failed, or is all there is to see."""
        picture = self.inputs[index].load()
        height, width = picture.height, picture.width
        drawn = [record for record in records if "error" not in record]
        if all(record["mask"] is None for record in drawn):
            drawn = []
        picture.thumbnail((_LONGER_SIDE, _LONGER_SIDE), Image.Resampling.LANCZOS)
        masks = [_shrunk(as_mask(record["mask"], height, width), picture.size) for record in drawn]
        are_several = len(records) > 1 or records[0]["region_index"] > 0
        numbers = [record["region_index"] + 1 for record in drawn]
        sheet = draw_regions(picture, masks, numbers=numbers if are_several else None)
        sheet.thumbnail((_LONGER_SIDE, _LONGER_SIDE), Image.Resampling.LANCZOS)
        colors = {number: COLORS[place % len(COLORS)] for place, number in enumerate(numbers)}
        return sheet, [colors.get(record["region_index"] + 1) for record in records]


def _shrunk(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask at the size (width, height) of a smaller picture; one of a few pixels does not vanish."""
    if mask.shape == size[::-1]:
        return mask
    share = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX))
    return share >= max(1, min(128, int(share.max())))


def _policy(style: str, script: str) -> str:
    """Nothing runs but the page's own style and script, and nothing is loaded but its pictures."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii") for text in (style, script))
    return "default-src 'none'; img-src data: file: 'self'; style-src 'sha256-{}'; script-src 'sha256-{}'".format(
        *hashes
    )


def _write_json(page: TextIO, cards: list[Record]) -> None:
    text = well_formed(json.dumps(cards, ensure_ascii=False, separators=(",", ":")))
    # In a script element, a "<" could end it or begin a comment.
    page.write(f'<script type="application/json">{text.replace("<", chr(92) + "u003c")}</script>\n')


_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<form id="filter" role="search">
<label>Text <input id="text" type="search" placeholder="in answers" autocomplete="off"></label>
<label hidden>Question <select id="question"><option value="">all</option></select></label>
<label hidden>Label <select id="label"><option value="">all</option></select></label>
<label hidden class="check"><input id="failed" type="checkbox"> only failures</label>
</form>
<nav aria-label="Pages">
<p id="count" role="status"></p>
<button id="back" type="button" aria-label="Earlier pictures" disabled>‹</button>
<button id="on" type="button" aria-label="Later pictures" disabled>›</button>
</nav>
</header>
{note}<main id="pictures"></main>
<noscript><p>This page shows its pictures and texts by a script, which is switched off here.</p></noscript>
"""
