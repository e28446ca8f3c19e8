"""The paper's caption metrics: ROUGE-L, BLEU, METEOR, CIDEr and BERTScore, with a signature that says how they
were made.

`score_captions` is the plain function, `RegionCaptionMetrics` the `evaluate.Metric` around it, `trainer_metrics` what
`Trainer(compute_metrics=..)` takes. Nothing here uses the network. docs/evaluation-metrics.md has the definitions.
"""

from typing import TYPE_CHECKING, Any

from .errors import MetricError
from .scores import METRICS, CaptionScorer, Scores, score_captions

if TYPE_CHECKING:
    from .module import RegionCaptionMetrics, trainer_metrics

__all__ = [
    "METRICS",
    "CaptionScorer",
    "MetricError",
    "RegionCaptionMetrics",
    "Scores",
    "score_captions",
    "trainer_metrics",
]


def __getattr__(name: str) -> Any:
    # `import evaluate` takes seconds and only the class needs it.
    if name in ("RegionCaptionMetrics", "trainer_metrics"):
        from . import module

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
