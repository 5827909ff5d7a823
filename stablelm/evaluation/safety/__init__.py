"""What a model must not do: a first look, not a certificate.

Toxic continuations of neutral prompts, stereotypes in the likelihoods of sentence pairs, personal data in
continuations that invite it. Small sets of our own come with the package (`data/`); a user's files of the
same names are measured beside them. Results are in lm_eval's schema, as those of any suite, so they have the
same files, tables and pages; `interchange/card_results.py` makes a section of the model card of them."""

from stablelm.evaluation.safety.comparison import compared
from stablelm.evaluation.safety.suite import LIMITS, run

__all__ = ["LIMITS", "compared", "run"]
