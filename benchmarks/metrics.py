"""How long the caption metrics take for as many captions as CompositionCap's test set has.

    python benchmarks/metrics.py [--json FILE] [--captions N] [--metrics NAME ...] [--bertscore-model FOLDER]

References are sentences of 4 to 40 words (16 on average) made from the words below, every tenth one repeated from
before, as attributes repeat in real data; a prediction is its reference with about a third of the words changed,
dropped or moved. BERTScore runs where a model is given. Times are what `Scores.seconds` reports; loading a model is not
in them.
"""

import argparse
import json
import os
import platform
import random
from pathlib import Path

from finecaption_hf.evaluation.metrics import METRICS, score_captions
from finecaption_hf.evaluation.metrics.bertscore import ROBERTA_LARGE

CAPTIONS = 19_326
# Seconds on two cores with pycocoevalcap 1.2 called directly, and how much of them may be added.
TARGETS = {"tokenizer": 3.0, "rouge_l": 2.0, "bleu": 4.0, "meteor": 46.0, "cider": 9.0}
TOLERANCE = 1.5
WORDS = """
a the a the a the of and with in on is and with its man woman boy dog cow car vase bench tree image region picture
corner jacket trousers pants fur patches chest hair neck body cup coffee grass field metal surface wood wooden
polished shiny smooth soft rough red white blue black brown light dark denim striped short curly round narrow large
small young old wearing sitting standing holding smiling looking facing placed seen viewed made left right lower
upper center beside next near behind under above low high angle shadow reflection background foreground happily
slightly partly visible
""".split()  # noqa: SIM905


def make_captions(number: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Predictions and references."""
    draw = random.Random(seed)
    predictions: list[str] = []
    references: list[str] = []
    for _ in range(number):
        if references and draw.random() < 0.1:
            words = draw.choice(references).rstrip(".").lower().split()
        else:
            words = draw.choices(WORDS, k=min(max(round(draw.lognormvariate(2.65, 0.5)), 4), 40))
        said = [draw.choice(WORDS) if draw.random() < 0.2 else word for word in words if draw.random() > 0.1]
        if len(said) > 1 and draw.random() < 0.5:
            cut = draw.randrange(1, len(said))
            said = said[cut:] + said[:cut]
        references.append(" ".join(words).capitalize() + ".")
        predictions.append(" ".join(said).capitalize() + ".")
    return predictions, references


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--captions", type=int, default=CAPTIONS, help="default: %(default)s")
    parser.add_argument("--metrics", nargs="+", choices=METRICS, help="default: all, BERTScore where a model is given")
    parser.add_argument("--bertscore-model", metavar="FOLDER", help="for BERTScore")
    parser.add_argument("--bertscore-layer", type=int, metavar="N")
    arguments = parser.parse_args()
    metrics = arguments.metrics or [each for each in METRICS if each != "bertscore" or arguments.bertscore_model]
    predictions, references = make_captions(arguments.captions)
    scores = score_captions(
        predictions,
        references,
        metrics,
        bertscore_model=arguments.bertscore_model or ROBERTA_LARGE,
        bertscore_layer=arguments.bertscore_layer,
    )
    result = {
        "captions": arguments.captions,
        "words": sum(len(text.split()) for text in references) / len(references),
        "seconds": scores.seconds,
        "targets": {name: TOLERANCE * TARGETS[name] for name in scores.seconds if name in TARGETS},
        "corpus": scores.corpus,
        "signature": scores.signature,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
    }
    for name, value in scores.seconds.items():
        limit = f"  (at most {TOLERANCE * TARGETS[name]:g})" if name in TARGETS else ""
        print(f"{name:12}{value:8.2f} s{limit}")
    print(f"{result['words']:.1f} words per reference, load {result['load']}\n{scores.signature}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
