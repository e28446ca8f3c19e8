"""BLEU and CIDEr by pycocoevalcap, ROUGE-L as there, METEOR by the jar inside it. Values are fractions here, not x100.

Each function takes tokenized captions and returns, by name, the value of the corpus and one value per caption. The
corpus's METEOR and BLEU are not means of their segments.
"""

import math
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .errors import MetricError
from .java import Java
from .tokens import pycocoevalcap_folder

METEOR_VERSION = "1.5"
ROUGE_BETA = 1.2
Values = dict[str, tuple[float, list[float]]]


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Values:
    """The best precision and the best recall among the references, weighted as in pycocoevalcap.

    Its own code takes longer, and counts an empty caption as a word that equals a reference of mere punctuation.
    """
    found = [_rouge_l(words, group) for words, group in zip(predictions, references, strict=True)]
    return {"rouge_l": (math.fsum(found) / len(found), found)}


def _rouge_l(prediction: str, references: Sequence[str]) -> float:
    if not prediction:
        return 0.0
    # Not split(): some tokens hold a non-breaking space.
    said = prediction.split(" ")
    groups = [reference.split(" ") for reference in references]
    common = [_longest_common_subsequence(said, words) for words in groups]
    precision = max(common) / len(said)
    recall = max(length / len(words) for length, words in zip(common, groups, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _longest_common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Its length, row by row of the usual table with the differences of a row as the bits of a number (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for number, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << number
    everywhere = (1 << len(one)) - 1
    row = everywhere
    for word in other:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & everywhere
    return len(one) - row.bit_count()


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Values:
    from pycocoevalcap.bleu.bleu import Bleu

    corpus, segments = Bleu(4).compute_score(*_by_number(predictions, references), verbose=0)
    return {f"bleu_{n}": (float(corpus[n - 1]), [float(value) for value in segments[n - 1]]) for n in range(1, 5)}


def bleu_counts(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[list[int]]:
    """What BLEU sums over captions, for each of them: its length, the closest reference's, and for n = 1 .. 4 how many
    n-grams it has and how many of those are in a reference."""
    from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

    found = []
    for words, group in zip(predictions, references, strict=True):
        counts = cook_test(words, cook_refs(group), eff="closest")
        found.append([counts["testlen"], counts["reflen"], *counts["guess"], *counts["correct"]])
    return found


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Values:
    from pycocoevalcap.cider.cider import Cider

    if not any(words for group in references for words in group):
        # No n-gram occurs in any document, where pycocoevalcap fails.
        return {"cider": (0.0, [0.0] * len(predictions))}
    corpus, segments = Cider().compute_score(*_by_number(predictions, references))
    return {"cider": (float(corpus), [float(value) for value in segments])}


def meteor_jar() -> Path:
    """The METEOR jar of pycocoevalcap.

    Raises:
        MetricError: If it is not there.
    """
    jar = pycocoevalcap_folder() / "meteor" / f"meteor-{METEOR_VERSION}.jar"
    if not jar.is_file():
        raise MetricError(f"{jar} is missing: pycocoevalcap is incomplete. Install it again.")
    return jar


def meteor(predictions: Sequence[str], references: Sequence[Sequence[str]], java: Java) -> Values:
    """One run of the jar over files. Its interactive protocol, which pycocoevalcap uses, can wait for ever."""
    width = max(len(group) for group in references)
    # The best reference counts, so that repeating one fills the fixed number of lines without a change.
    padded = [line for group in references for line in [*group, *[group[0]] * (width - len(group))]]
    with tempfile.TemporaryDirectory(prefix="finecaption-meteor-") as folder:
        hypothesis, reference = Path(folder) / "hypotheses", Path(folder) / "references"
        _write_lines(hypothesis, predictions)
        _write_lines(reference, padded)
        files = [str(hypothesis), str(reference)]
        arguments = ["-Xmx2G", "-jar", str(meteor_jar()), *files, "-l", "en", "-norm", "-q", "-r", str(width)]
        out, err = java.run(arguments, len(padded))
    corpus, segments = _numbers(out), _numbers(err)
    if len(corpus) != 1 or len(segments) != len(predictions):
        raise MetricError(
            f"METEOR printed {len(segments)} segment scores and {len(corpus)} totals for {len(predictions)} captions. "
            f"It said: {err.strip()[-1000:]}"
        )
    return {"meteor": (corpus[0], segments)}


def _by_number(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[Mapping[int, Sequence[str]], Mapping[int, Sequence[str]]]:
    """What pycocoevalcap takes: references and predictions, by a key in the order of the captions."""
    return (
        {number: list(group) for number, group in enumerate(references)},
        {number: [words] for number, words in enumerate(predictions)},
    )


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)


def _numbers(text: str) -> list[float]:
    """The lines that are numbers: the runtime may add its own remarks. No number at all (0 of 0) is 0."""
    found = [line.strip() for line in text.splitlines()]
    values = [float(line) for line in found if re.fullmatch(r"\d+(\.\d*)?(E-?\d+)?|NaN", line)]
    return [0.0 if math.isnan(value) else value for value in values]
