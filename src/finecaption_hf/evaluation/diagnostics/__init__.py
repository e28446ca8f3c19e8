"""What n-grams do not tell: exact answers where the truth is known, whether the mask is used, whether answers agree.

>>> from finecaption_hf.evaluation.diagnostics import run_diagnostics
>>> run_diagnostics(model, processor, dataset, ["mask"])["mask"]["table"]
"""

from .likelihood import AnswerScore, AnswerScorer, score_answers
from .sensitivity import mask_sensitivity
